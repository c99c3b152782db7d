//! An [`Upstream`] that is told over HTTP, for where it is no value of the same program: in a container, on another
//! machine.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use crate::client::H1;
use crate::sources::Held;
use crate::upstream::{Reply, Upstream};
use crate::wire::Request;
use crate::{PATIENCE, eventually};

/// Between two attempts to have an address back.
const RETRY: Duration = Duration::from_millis(5);

/// An upstream, and beside it an HTTP server that tells what it got and takes what it shall do:
///
/// | | |
/// | --- | --- |
/// | `GET /` | `{"up": true, "script": ""}` |
/// | `PUT /script` | how requests are answered that do not say it themselves, in the steps of [`Reply::to`]; nothing: as ever |
/// | `POST /down`, `POST /up` | nobody listens, and all connections are gone; listens again |
/// | `GET /received` | the requests since this was last asked, as a list of `method`, `path`, `headers` and `body` |
///
/// It lives in the runtime that started it, and ends with this value.
#[derive(Debug)]
pub struct Scripted {
    service: SocketAddr,
    control: Upstream,
    keeper: AbortHandle,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// What the two servers share.
#[derive(Debug)]
struct Shared {
    // By itself: what answers holds it, and must not hold what holds that.
    script: Arc<Mutex<String>>,
    upstream: Mutex<Option<Upstream>>,
    wanted: watch::Sender<bool>,
}

impl Scripted {
    /// Starts both; with port 0 on a free one.
    ///
    /// # Errors
    /// When an address cannot be had.
    pub async fn start(service: SocketAddr, control: SocketAddr) -> Result<Self> {
        let held = Held::at(service)?;
        let service = held.addr;
        let (wanted, mut changed) = watch::channel(true);
        let shared = Arc::new(Shared { script: Arc::default(), upstream: Mutex::default(), wanted });
        let upstream = shared.serve(service).await?;
        *shared.upstream.lock().unwrap() = Some(upstream);
        let keeps = Arc::clone(&shared);
        let keeper = tokio::spawn(async move {
            // While it is down the address stays ours.
            let _held = held;
            while changed.changed().await.is_ok() {
                while *changed.borrow_and_update() != keeps.is_up() {
                    // The one before may still be on its way out: then once more.
                    let upstream = if keeps.is_up() { None } else { keeps.serve(service).await.ok() };
                    *keeps.upstream.lock().unwrap() = upstream;
                    sleep(RETRY).await;
                }
            }
        })
        .abort_handle();
        let control = Upstream::at(control, move |request| shared.told(request)).await?;
        Ok(Self { service, control, keeper })
    }

    /// Where the service is.
    #[must_use]
    pub fn service(&self) -> SocketAddr {
        self.service
    }

    /// Where it is told.
    #[must_use]
    pub fn control(&self) -> SocketAddr {
        self.control.addr()
    }
}

impl Shared {
    fn is_up(&self) -> bool {
        self.upstream.lock().unwrap().is_some()
    }

    async fn serve(&self, at: SocketAddr) -> Result<Upstream> {
        let script = Arc::clone(&self.script);
        Upstream::at(at, move |request| {
            let script = script.lock().unwrap().clone();
            match request.headers.has("x-reply") || script.is_empty() {
                true => Reply::to(request),
                false => Reply::to(&Request::get(&request.path).header("x-reply", script)),
            }
        })
        .await
    }

    fn told(&self, request: &Request) -> Reply {
        let json = |value: Value| Reply::new(200).header("content-type", "application/json").chunk(value.to_string());
        let upstream = self.upstream.lock().unwrap();
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/") => json(json!({ "up": upstream.is_some(), "script": *self.script.lock().unwrap() })),
            ("PUT", "/script") => match String::from_utf8(request.body.clone()) {
                Ok(script) => {
                    script.trim().clone_into(&mut self.script.lock().unwrap());
                    Reply::new(204)
                }
                Err(_) => Reply::new(400).chunk("no text\n"),
            },
            ("POST", path @ ("/up" | "/down")) => {
                self.wanted.send_replace(path == "/up");
                Reply::new(202)
            }
            ("GET", "/received") => {
                let received = upstream.as_ref().map(Upstream::take).unwrap_or_default();
                let one = |request: &Request| {
                    let body: String = request.body.iter().copied().map(char::from).collect();
                    let headers = request.headers.to_json();
                    json!({ "method": request.method, "path": request.path, "headers": headers, "body": body })
                };
                json(received.iter().map(|received| one(received)).collect())
            }
            _ => Reply::new(404).chunk("there is: GET /, PUT /script, POST /down, POST /up, GET /received\n"),
        }
    }
}

/// Who tells a [`Scripted`], wherever that runs.
#[derive(Clone, Copy, Debug)]
pub struct Control(SocketAddr);

impl Control {
    /// Of the one that is told there.
    #[must_use]
    pub fn at(addr: SocketAddr) -> Self {
        Self(addr)
    }

    /// Says how requests are answered that do not say it themselves; with nothing, as ever.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn script(&self, steps: &str) -> Result<()> {
        self.ask(Request { body: steps.as_bytes().to_vec(), ..Request::new("PUT", "/script") }).await?;
        Ok(())
    }

    /// Lets it go away, or come back; returns when it has.
    ///
    /// # Errors
    /// When it does not answer, or does not do it.
    pub async fn up(&self, up: bool) -> Result<()> {
        let path = if up { "/up" } else { "/down" };
        self.ask(Request::new("POST", path)).await?;
        eventually(format!("the upstream after {path}"), PATIENCE, async || {
            let state = self.ask(Request::get("/")).await.map_err(|error| format!("{error:#}"))?;
            if state["up"] == up { Ok(()) } else { Err(state.to_string()) }
        })
        .await
    }

    /// Takes what arrived since the last time: each an object with `method`, `path`, `headers` and `body`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn received(&self) -> Result<Vec<Value>> {
        match self.ask(Request::get("/received")).await? {
            Value::Array(received) => Ok(received),
            other => bail!("no list: {other}"),
        }
    }

    async fn ask(&self, request: Request) -> Result<Value> {
        let request = request.header("connection", "close");
        let response = H1::connect(self.0).await?.send(&request).await?;
        ensure!((200..300).contains(&response.status), "{}: {} {}", request.path, response.status, response.text());
        Ok(if response.body.is_empty() { Value::Null } else { response.json()? })
    }
}
