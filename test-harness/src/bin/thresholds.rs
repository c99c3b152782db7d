//! `thresholds --listen 127.0.0.1:8500 rules.json`: a source of thresholds. It serves the file at `/rules`, takes
//! another document by `PUT`, and takes the file again when that changes. A line for each request.

use std::io::{IsTerminal, stdout};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use owo_colors::{OwoColorize, Style};
use test_harness::Thresholds;
use test_harness::thresholds::Seen;
use tokio::fs;
use tokio::time::sleep;

/// Where it listens unless told.
const LISTEN: &str = "127.0.0.1:8500";

/// How often the file is read. Its content is looked at, for its time may stay the same.
const READ: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<()> {
    let (listen, file) = arguments(std::env::args().skip(1))?;
    let document = fs::read(&file).await.with_context(|| format!("cannot read {}", file.display()))?;
    let thresholds = Thresholds::start_at(listen, &document).await?;
    let out = Out { coloured: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
    out.line(
        Style::new().bold(),
        &format!("{} at http://{}/rules  {}", file.display(), thresholds.addr(), thresholds.etag()),
    );
    tokio::join!(follow(&thresholds, &file, document, &out), async {
        loop {
            out.seen(&thresholds.next().await);
        }
    });
    Ok(())
}

fn arguments(mut arguments: impl Iterator<Item = String>) -> Result<(SocketAddr, PathBuf)> {
    let (mut listen, mut file) = (LISTEN.to_owned(), None);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--listen" => listen = arguments.next().context("--listen needs an address")?,
            flag if flag.starts_with('-') => bail!("unknown: {flag}; there is --listen <address>"),
            path if file.is_none() => file = Some(PathBuf::from(path)),
            more => bail!("one file, and not {more} as well"),
        }
    }
    let listen = listen.parse().with_context(|| format!("{listen} is no address such as {LISTEN}"))?;
    Ok((listen, file.with_context(|| format!("usage: thresholds [--listen {LISTEN}] rules.json"))?))
}

/// Takes the file whenever it changes; while it cannot be read, what was there stays.
async fn follow(thresholds: &Thresholds, file: &Path, mut last: Vec<u8>, out: &Out) {
    let mut missing = false;
    loop {
        sleep(READ).await;
        match fs::read(file).await {
            Ok(document) if document != last => {
                thresholds.set(&document);
                out.told(Style::new().cyan(), "FILE", "read", &thresholds.etag());
                (last, missing) = (document, false);
            }
            Ok(_) => missing = false,
            Err(error) if !missing => {
                out.told(Style::new().red(), "FILE", "lost", &format!("{error}; the last document stays"));
                missing = true;
            }
            Err(_) => {}
        }
    }
}

/// Lines for people.
struct Out {
    coloured: bool,
}

impl Out {
    fn line(&self, style: Style, text: &str) {
        if self.coloured { println!("{}", text.style(style)) } else { println!("{text}") }
    }

    fn seen(&self, seen: &Seen) {
        let (style, status) = match seen.status {
            Some(304) => (Style::new().dimmed(), "304".to_owned()),
            Some(status @ ..400) => (Style::new().green(), status.to_string()),
            Some(status) => (Style::new().red(), status.to_string()),
            None => (Style::new().red(), "none".to_owned()),
        };
        let rest = match (seen.path.as_str(), &seen.etag) {
            ("/rules", Some(etag)) => etag.clone(),
            (path, Some(etag)) => format!("{path} {etag}"),
            (path, None) => path.to_owned(),
        };
        self.told(style, &seen.method, &status, &rest);
    }

    fn told(&self, style: Style, what: &str, status: &str, rest: &str) {
        let time = jiff::Zoned::now().strftime("%H:%M:%S%.3f");
        self.line(style, &format!("{time}  {what:<4} {status:<4} {rest}"));
    }
}
