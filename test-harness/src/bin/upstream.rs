//! `upstream [--listen 0.0.0.0:8080] [--control 0.0.0.0:8081]`: the scripted service, as a program.
//!
//! `upstream probe <host:port> <path>` asks once, and fails unless the answer is 2xx: the health check of every
//! container, for most images have no program for it. Linked statically, it runs in all of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use test_harness::Scripted;

/// A health check's own time is longer.
const WAIT: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["probe", at, path] => probe(at, path),
        ["probe", ..] => bail!("usage: upstream probe <host:port> <path>"),
        ref options => serve(options).await,
    }
}

async fn serve(options: &[&str]) -> Result<()> {
    let (mut listen, mut control) = ("0.0.0.0:8080", "0.0.0.0:8081");
    for option in options.chunks(2) {
        match option {
            ["--listen", address] => listen = address,
            ["--control", address] => control = address,
            other => bail!("unknown: {other:?}; there is --listen <address> and --control <address>"),
        }
    }
    let address = |text: &str| text.parse::<SocketAddr>().with_context(|| format!("{text} is no address"));
    let scripted = Scripted::start(address(listen)?, address(control)?).await?;
    println!("the service is at http://{}, and is told at http://{}", scripted.service(), scripted.control());
    // As the first process of a container it would else not hear of the end.
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = end.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}

fn probe(at: &str, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(at).with_context(|| format!("nobody is at {at}"))?;
    stream.set_read_timeout(Some(WAIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n")?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).with_context(|| format!("{at} did not answer"))?;
    let line = String::from_utf8_lossy(&start);
    ensure!(line.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "{at}{path}: {line}");
    Ok(())
}
