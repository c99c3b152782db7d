//! `make w3c HARNESS=<checkout of w3c/trace-context>`: the W3C's conformance harness against an Envoy with trace-id.
//!
//! The harness calls a service, tells it whom to call, and looks at the headers of those calls. The service here forwards
//! the trace headers of its caller as they came, byte for byte, through an Envoy on the way out: what arrives is the
//! filter's work alone.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_harness::upstream::Reply;
use test_harness::{Envoy, HttpFilter, Listener, Request, Route, Upstream, module};

/// Where the harness listens.
const HARNESS: &str = "127.0.0.1:7777";

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(python), Some(checkout), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: w3c <python with aiohttp> <checkout of w3c/trace-context>");
    };
    let folder = PathBuf::from(checkout).join("test");
    ensure!(folder.join("test.py").is_file(), "no test.py in {}", folder.display());
    let listener = Listener::http("egress")
        .filter(HttpFilter::wasm("trace-id", module("trace-id")?))
        .route(Route::cluster("harness"));
    let envoy = Envoy::builder().cluster("harness", HARNESS.parse()?).listener(listener).start().await?;
    let egress = envoy.addr("egress");
    let service = Upstream::with(move |request| match serve(request, egress) {
        Ok(()) => Reply::new(200),
        Err(error) => Reply::new(500).chunk(format!("{error:#}")),
    })
    .await?;
    let endpoint = format!("http://{}/test", service.addr());
    let mut harness = Command::new(&python);
    harness.current_dir(&folder).args(["test.py", &endpoint]).env("SPEC_LEVEL", "2").env("STRICT_LEVEL", "2");
    harness.env("SERVICE_ENDPOINT", &endpoint);
    let status = tokio::task::spawn_blocking(move || harness.status()).await?.with_context(|| python.clone())?;
    envoy.stop().await?;
    ensure!(status.success(), "the harness is not content");
    Ok(())
}

/// Makes the calls that the harness asks for.
fn serve(request: &Request, egress: SocketAddr) -> Result<()> {
    let calls: Vec<Value> = serde_json::from_slice(&request.body)?;
    for call in calls {
        let url = call.get("url").and_then(Value::as_str).context("a call without url")?;
        let (_, path) = url.split_once(HARNESS).with_context(|| format!("{url} is not the harness"))?;
        let body = serde_json::to_vec(call.get("arguments").unwrap_or(&Value::Null))?;
        let mut out = Request::post(path, body).header("host", HARNESS).header("connection", "close");
        for (name, value) in request.headers.iter() {
            // Names come in any case: the harness tries them.
            if [&b"traceparent"[..], b"tracestate"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
                out = out.header(name, value);
            }
        }
        let mut stream = TcpStream::connect(egress)?;
        stream.write_all(&out.to_bytes())?;
        stream.read_to_end(&mut Vec::new())?;
    }
    Ok(())
}
