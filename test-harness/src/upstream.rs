//! The service behind Envoy: it records what arrives, and answers as it is told.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::client::Fed;
use crate::wire::{Framing, Headers, Request, read_body, read_head, write_chunk, write_last_chunk};
use crate::{PATIENCE, eventually};

/// An HTTP server, on a free port of 127.0.0.1 unless told where, for HTTP/1.1 and h2c, whichever the caller speaks. It lives in the
/// runtime that started it, and ends with this value.
///
/// Unless it has a closure, the request says how it shall be answered, see [`Reply::to`].
#[derive(Debug)]
pub struct Upstream {
    addr: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    server: AbortHandle,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// The request itself.
    pub request: Request,
    /// Whether it came over h2.
    pub h2: bool,
    /// The number of the connection, counted from 1.
    pub connection: u64,
    /// Whether it came to its end. If not, the body is what came before the caller gave up.
    pub complete: bool,
}

impl std::ops::Deref for Received {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Upstream {
    /// Starts a server that answers as the request says.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start() -> Result<Self> {
        Self::with(Reply::to).await
    }

    /// Starts a server that answers as the closure says. It is asked when the request has come to its end.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn with(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Self> {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    /// Starts a server at this address that answers as the closure says.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn at(addr: SocketAddr, script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind(addr).await.with_context(|| format!("cannot listen at {addr}"))?;
        let addr = listener.local_addr()?;
        let received = Arc::<Mutex<Vec<Received>>>::default();
        let service = Arc::new(Service { script: Box::new(script), received: Arc::clone(&received) });
        let server = tokio::spawn(async move {
            // Dropped with this task, and all connections with it.
            let mut connections = JoinSet::new();
            for number in 1.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                connections.spawn(Arc::clone(&service).serve(stream, number));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { addr, received, server: server.abort_handle() })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Takes what has arrived so far.
    #[must_use]
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut self.received.lock().unwrap())
    }

    /// Waits until at least so many requests have arrived since the last taking, and takes them all.
    ///
    /// # Errors
    /// When fewer came in time; the message shows them.
    pub async fn wait(&self, n: usize) -> Result<Vec<Received>> {
        eventually(format!("{n} requests at the upstream"), PATIENCE, async || {
            let received = self.received.lock().unwrap();
            if received.len() >= n { Ok(()) } else { Err(format!("{received:#?}")) }
        })
        .await?;
        Ok(self.take())
    }
}

/// How a request is answered: a head, then steps in their order.
#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Headers,
    steps: Vec<Step>,
    trailers: Headers,
}

#[derive(Clone, Debug)]
enum Step {
    Pause(Duration),
    Head,
    Chunk(Vec<u8>),
    Reset,
}

impl Reply {
    /// A response without headers and body.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self { status, headers: Headers::default(), steps: Vec::new(), trailers: Headers::default() }
    }

    /// Appends a header field.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.headers.push(name, value);
        self
    }

    /// Waits now: before the head, if nothing else came before.
    #[must_use]
    pub fn pause(self, time: Duration) -> Self {
        self.step(Step::Pause(time))
    }

    /// Waits before all else.
    #[must_use]
    pub fn delay(mut self, time: Duration) -> Self {
        self.steps.insert(0, Step::Pause(time));
        self
    }

    /// Sends the head now, and not with the first chunk.
    #[must_use]
    pub fn head(self) -> Self {
        self.step(Step::Head)
    }

    /// Sends a part of the body.
    #[must_use]
    pub fn chunk(self, bytes: impl AsRef<[u8]>) -> Self {
        self.step(Step::Chunk(bytes.as_ref().to_vec()))
    }

    /// Breaks off: the connection is reset, over h2 the stream.
    #[must_use]
    pub fn reset(self) -> Self {
        self.step(Step::Reset)
    }

    /// Appends a trailer field.
    #[must_use]
    pub fn trailer(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.trailers.push(name, value);
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// What the request asks for: `/echo` gives back the request as JSON (`method`, `path`, `headers` as pairs in
    /// order, each byte the character of that number, and `body`), `/status/503` that status, and else it is 200 `ok`.
    ///
    /// A header `x-reply` says it in full, in steps: `status=503; header=a:b; pause=50; head; chunk=text; reset;
    /// trailer=grpc-status:0`, pauses in milliseconds.
    ///
    /// # Panics
    /// When `x-reply` holds anything else; the caller sees the connection close.
    #[must_use]
    pub fn to(request: &Request) -> Self {
        if let Some(script) = request.headers.text("x-reply") {
            return script.split(';').map(str::trim).filter(|step| !step.is_empty()).fold(Self::new(200), Self::told);
        }
        let path = request.path.split('?').next().unwrap_or_default();
        if path == "/echo" {
            let body: String = request.body.iter().copied().map(char::from).collect();
            let headers = request.headers.to_json();
            let echo = json!({ "method": request.method, "path": request.path, "headers": headers, "body": body });
            return Self::new(200).header("content-type", "application/json").chunk(echo.to_string());
        }
        match path.strip_prefix("/status/").and_then(|status| status.parse().ok()) {
            Some(status) => Self::new(status),
            None => Self::new(200).chunk("ok"),
        }
    }

    fn told(self, step: &str) -> Self {
        let (verb, object) = step.split_once('=').unwrap_or((step, ""));
        let pair = || object.split_once(':').unwrap_or((object, ""));
        let number = || object.parse().unwrap_or_else(|_| panic!("no number in {step:?}"));
        match verb {
            "status" => Self { status: u16::try_from(number()).expect("a status"), ..self },
            "header" => self.header(pair().0, pair().1),
            "trailer" => self.trailer(pair().0, pair().1),
            "pause" => self.pause(Duration::from_millis(number())),
            "chunk" => self.chunk(object),
            "head" => self.head(),
            "reset" => self.reset(),
            _ => panic!("unknown step {step:?}"),
        }
    }

    /// The steps, with the head at its place, unless all ends before that.
    fn script(&self) -> Vec<Step> {
        let mut steps = self.steps.clone();
        let first = steps.iter().position(|step| !matches!(step, Step::Pause(_))).unwrap_or(steps.len());
        if !matches!(steps.get(first), Some(Step::Head | Step::Reset)) {
            steps.insert(first, Step::Head);
        }
        steps
    }

    /// The body's length, if all of it is there when the head is sent.
    fn length(&self) -> Option<usize> {
        let after = self.script().into_iter().skip_while(|step| matches!(step, Step::Pause(_))).skip(1);
        let lengths = after.map(|step| match step {
            Step::Chunk(bytes) => Some(bytes.len()),
            _ => None,
        });
        if self.trailers.is_empty() { lengths.sum() } else { None }
    }
}

struct Service {
    script: Box<dyn Fn(&Request) -> Reply + Send + Sync>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Service {
    fn record(&self, request: &Request, h2: bool, connection: u64, complete: bool) {
        self.received.lock().unwrap().push(Received { request: request.clone(), h2, connection, complete });
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, number: u64) {
        // A caller that goes away is part of the game; what it did is in the record.
        let _ = stream.set_nodelay(true);
        let mut stream = BufReader::new(stream);
        match stream.fill_buf().await {
            // The preface of h2 begins so, and comes in one piece.
            Ok(first) if first.starts_with(b"PRI ") => self.serve_h2(stream, number).await,
            _ => drop(self.serve_h1(stream, number).await),
        }
    }

    async fn serve_h1(&self, mut stream: BufReader<TcpStream>, number: u64) -> io::Result<()> {
        while let Some(head) = read_head(&mut stream).await? {
            let line = String::from_utf8_lossy(&head.start).into_owned();
            let mut words = line.split(' ');
            let mut request = Request::new(words.next().unwrap_or_default(), words.next().unwrap_or_default());
            request.headers = head.headers;
            let framing = Framing::of(&request.headers, Framing::Length(0))?;
            match read_body(&mut stream, framing, &mut request.body).await {
                Ok(trailers) => request.trailers = trailers,
                Err(error) => {
                    self.record(&request, false, number, false);
                    return Err(error);
                }
            }
            self.record(&request, false, number, true);
            let reply = (self.script)(&request);
            if !send_h1(&mut stream, &reply, &request).await? {
                // With nothing left to send, closing now sends RST.
                stream.get_ref().set_zero_linger()?;
                return Ok(());
            }
        }
        Ok(())
    }

    async fn serve_h2(self: Arc<Self>, stream: BufReader<TcpStream>, number: u64) {
        let service = service_fn(|incoming| {
            let service = Arc::clone(&self);
            async move { service.answer_h2(incoming, number).await }
        });
        let _ = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer_h2(&self, incoming: hyper::Request<Incoming>, number: u64) -> Result<hyper::Response<Fed>> {
        let (head, mut body) = incoming.into_parts();
        let path = head.uri.path_and_query().map_or("", |path| path.as_str());
        let mut request = Request::new(head.method.as_str(), path);
        request.headers = head.uri.authority().map(|authority| ("host", authority.as_str())).into_iter().collect();
        request = request.headers(Headers::from_map(&head.headers));
        while let Some(frame) = body.frame().await {
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => request.body.extend_from_slice(&data),
                Ok(Err(frame)) => request.trailers = frame.trailers_ref().map(Headers::from_map).unwrap_or_default(),
                Err(error) => {
                    self.record(&request, true, number, false);
                    return Err(error.into());
                }
            }
        }
        self.record(&request, true, number, true);
        start_h2((self.script)(&request)).await
    }
}

/// Whether the connection can go on.
async fn send_h1(stream: &mut BufReader<TcpStream>, reply: &Reply, request: &Request) -> io::Result<bool> {
    let bodiless = request.method == "HEAD" || matches!(reply.status, 204 | 304);
    let mut headers = reply.headers.clone();
    let mut chunked = false;
    if !bodiless && !headers.has("content-length") {
        match reply.length() {
            Some(length) => headers.push("content-length", length.to_string()),
            None => {
                headers.push("transfer-encoding", "chunked");
                chunked = true;
            }
        }
    }
    // What goes out before the next pause.
    let mut out = Vec::new();
    for step in reply.script() {
        match step {
            Step::Head => {
                out.extend_from_slice(format!("HTTP/1.1 {} -\r\n", reply.status).as_bytes());
                headers.write(&mut out);
                out.extend_from_slice(b"\r\n");
            }
            Step::Chunk(_) if bodiless => {}
            Step::Chunk(bytes) if chunked => write_chunk(&mut out, &bytes),
            Step::Chunk(bytes) => out.extend_from_slice(&bytes),
            Step::Pause(time) => {
                stream.write_all(&std::mem::take(&mut out)).await?;
                sleep(time).await;
            }
            Step::Reset => {
                stream.write_all(&out).await?;
                return Ok(false);
            }
        }
    }
    if chunked {
        write_last_chunk(&mut out, &reply.trailers);
    }
    stream.write_all(&out).await?;
    Ok(true)
}

/// Goes as far as the head; the rest is fed into the body.
async fn start_h2(reply: Reply) -> Result<hyper::Response<Fed>> {
    let mut steps = reply.script().into_iter();
    for step in steps.by_ref() {
        match step {
            Step::Pause(time) => sleep(time).await,
            Step::Reset => return Err(reset().into()),
            Step::Head | Step::Chunk(_) => break,
        }
    }
    let (feed, fed) = mpsc::channel(1);
    let mut response = hyper::Response::builder().status(reply.status).body(Fed(fed))?;
    *response.headers_mut() = reply.headers.to_map()?;
    let trailers = (!reply.trailers.is_empty()).then(|| reply.trailers.to_map()).transpose()?;
    // Without these, the head itself ends the stream.
    if steps.len() > 0 || trailers.is_some() {
        tokio::spawn(async move {
            for step in steps {
                match step {
                    Step::Pause(time) => sleep(time).await,
                    Step::Chunk(bytes) => feed.send(Ok(Frame::data(Bytes::from(bytes)))).await?,
                    Step::Reset => return feed.send(Err(reset())).await,
                    Step::Head => {}
                }
            }
            match trailers {
                Some(trailers) => feed.send(Ok(Frame::trailers(trailers))).await,
                None => Ok(()),
            }
        });
    }
    Ok(response)
}

fn reset() -> io::Error {
    io::Error::other("reset, as told")
}
