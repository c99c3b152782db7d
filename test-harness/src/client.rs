//! Callers: exact bytes over HTTP/1.1, h2c by prior knowledge, and continuous load.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Poll, ready};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::wire::{Framing, Headers, Request, Response, read_body, read_head};
use crate::{PATIENCE, eventually};

/// A connection that speaks HTTP/1.1, and sends just the bytes that it is given.
#[derive(Debug)]
pub struct H1 {
    stream: BufReader<TcpStream>,
}

impl H1 {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await.with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads the response. The connection can be used again, unless the response
    /// [closes](Response::closes) it.
    ///
    /// # Errors
    /// When no whole response came in time.
    pub async fn send(&mut self, request: &Request) -> Result<Response> {
        self.exchange(&request.to_bytes()).await
    }

    /// Sends these bytes and reads one response; the first bytes must be the method.
    ///
    /// # Errors
    /// When no whole response came in time.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Response> {
        // Who refuses a request may close before it has read all of it; the answer counts, not the failed write.
        let written = self.write(request).await;
        self.read(request.starts_with(b"HEAD ")).await.or_else(|error| written.and(Err(error)))
    }

    /// Sends these bytes, a part of a request perhaps.
    ///
    /// # Errors
    /// When the peer has closed.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.context("sending")
    }

    /// Reads one response; interim ones (1xx) are passed over.
    ///
    /// # Errors
    /// When no whole response came in time. When the peer closed before the first byte, the cause is an
    /// [`io::ErrorKind::ConnectionReset`].
    pub async fn read(&mut self, to_head: bool) -> Result<Response> {
        let mut seen = Response::default();
        match timeout(PATIENCE, self.read_into(&mut seen, to_head)).await {
            Ok(Ok(())) => Ok(seen),
            Ok(Err(error)) => Err(anyhow::Error::from(error).context(format!("no whole response, but {seen:?}"))),
            Err(_) => bail!("no whole response within {PATIENCE:?}, but {seen:?}"),
        }
    }

    async fn read_into(&mut self, response: &mut Response, to_head: bool) -> io::Result<()> {
        loop {
            let closed = || io::Error::new(io::ErrorKind::ConnectionReset, "closed before the response");
            let head = read_head(&mut self.stream).await?.ok_or_else(closed)?;
            let status =
                head.start.split(|byte| *byte == b' ').nth(1).and_then(|code| str::from_utf8(code).ok()?.parse().ok());
            let not_http =
                || io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {}", head.start.escape_ascii()));
            response.status = status.ok_or_else(not_http)?;
            response.headers = head.headers;
            match response.status {
                100..=199 => continue,
                204 | 304 => return Ok(()),
                _ if to_head => return Ok(()),
                _ => {}
            }
            let framing = Framing::of(&response.headers, Framing::UntilClose)?;
            response.trailers = read_body(&mut self.stream, framing, &mut response.body).await?;
            return Ok(());
        }
    }

    /// Waits until the peer closes, and returns what it sent before that.
    ///
    /// # Errors
    /// When it does not close in time, or resets the connection.
    pub async fn closed(&mut self) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        match timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await {
            Ok(Ok(_)) => Ok(rest),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => bail!("not closed within {PATIENCE:?}, but sent {:?}", rest.escape_ascii().to_string()),
        }
    }
}

/// A body that is fed from elsewhere; `Err` resets the stream.
pub(crate) struct Fed(pub(crate) mpsc::Receiver<Result<Frame<Bytes>, io::Error>>);

impl Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(ready!(self.0.poll_recv(cx)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

impl Fed {
    /// A body that is known already.
    fn whole(body: &[u8], trailers: &Headers) -> Result<Self> {
        let (feed, fed) = mpsc::channel(2);
        if !body.is_empty() {
            feed.try_send(Ok(Frame::data(Bytes::copy_from_slice(body))))?;
        }
        if !trailers.is_empty() {
            feed.try_send(Ok(Frame::trailers(trailers.to_map()?)))?;
        }
        Ok(Self(fed))
    }
}

/// A connection that speaks h2c by prior knowledge. Clones share it, so that many requests can run at once.
#[derive(Clone, Debug)]
pub struct H2 {
    sender: http2::SendRequest<Fed>,
}

impl H2 {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there, or does not speak h2.
    pub async fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await.with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // Its errors come to the requests as well.
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Sends a request and reads the response. A `host` header becomes `:authority`. Dropping the future resets the
    /// stream, as a client does that gives up.
    ///
    /// # Errors
    /// When no whole response came in time, or the request holds what h2 cannot carry.
    pub async fn send(&self, request: &Request) -> Result<Response> {
        let mut headers = request.headers.to_map()?;
        let host = headers.remove("host");
        let host = host.as_ref().map_or(Ok("test"), |host| host.to_str())?;
        let uri = format!("http://{host}{}", request.path);
        let mut outgoing = hyper::Request::builder()
            .method(request.method.as_str())
            .uri(uri)
            .body(Fed::whole(&request.body, &request.trailers)?)?;
        *outgoing.headers_mut() = headers;
        let mut seen = Response::default();
        match timeout(PATIENCE, self.exchange(outgoing, &mut seen)).await {
            Ok(Ok(())) => Ok(seen),
            Ok(Err(error)) => Err(anyhow::Error::from(error).context(format!("no whole response, but {seen:?}"))),
            Err(_) => bail!("no whole response within {PATIENCE:?}, but {seen:?}"),
        }
    }

    async fn exchange(&self, request: hyper::Request<Fed>, seen: &mut Response) -> hyper::Result<()> {
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let (head, mut body) = sender.send_request(request).await?.into_parts();
        seen.status = head.status.as_u16();
        seen.headers = Headers::from_map(&head.headers);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => seen.body.extend_from_slice(&data),
                Err(frame) => seen.trailers = frame.trailers_ref().map(Headers::from_map).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Whether the peer has said that it takes no more requests on this connection.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Requests without end, to see that none gets lost while something else changes.
///
/// It behaves as a good client does: it opens a new connection after `connection: close` or GOAWAY, and never sends a
/// request twice. So whatever it counts as an error, a real client would have suffered.
#[derive(Debug)]
pub struct Load {
    report: Arc<Mutex<LoadReport>>,
    stop: watch::Sender<bool>,
    workers: JoinSet<()>,
}

/// What came of a [`Load`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// How many responses had each status.
    pub statuses: BTreeMap<u16, u64>,
    /// The requests that got no whole response, or one that did not pass the check, each with the reason.
    pub errors: Vec<String>,
    /// How many connections were opened.
    pub connections: u64,
}

impl LoadReport {
    /// How many responses came.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.statuses.values().sum()
    }

    /// Whether every request was answered, and with 200.
    ///
    /// # Errors
    /// When a request was lost, or a response was not 200, or there was none at all.
    pub fn all_ok(&self) -> Result<()> {
        match (self.errors.is_empty(), self.answered(), self.statuses.get(&200)) {
            (true, all, Some(ok)) if all == *ok => Ok(()),
            _ => bail!("not every request was answered with 200: {self:?}"),
        }
    }
}

/// What a [`Load`] speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    H1,
    /// h2c by prior knowledge.
    H2,
}

/// Between two requests of a connection, so that the load does not take the processor from what it watches.
const PAUSE: Duration = Duration::from_millis(1);

impl Load {
    /// Starts so many connections over HTTP/1.1, each sending this request again and again.
    #[must_use]
    pub fn h1(addr: SocketAddr, connections: usize, request: &Request) -> Self {
        Self::checked(addr, connections, request, Protocol::H1, |_| Ok(()))
    }

    /// Starts so many connections over h2c, each sending this request again and again.
    #[must_use]
    pub fn h2(addr: SocketAddr, connections: usize, request: &Request) -> Self {
        Self::checked(addr, connections, request, Protocol::H2, |_| Ok(()))
    }

    /// Starts so many connections, each sending this request again and again; a response that does not pass the check
    /// counts as an error.
    #[must_use]
    pub fn checked(
        addr: SocketAddr,
        connections: usize,
        request: &Request,
        protocol: Protocol,
        check: fn(&Response) -> Result<()>,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let report = Arc::<Mutex<LoadReport>>::default();
        let worker = Worker { addr, request: request.clone(), protocol, check, report: Arc::clone(&report), stopped };
        let workers = (0..connections).map(|_| worker.clone().run()).collect();
        Self { report, stop, workers }
    }

    /// What came of it so far.
    #[must_use]
    pub fn report(&self) -> LoadReport {
        self.report.lock().unwrap().clone()
    }

    /// Waits until so many more requests were answered.
    ///
    /// # Errors
    /// When they were not in time.
    pub async fn wait_for(&self, more: u64) -> Result<()> {
        let wanted = self.report().answered() + more;
        eventually(format!("{more} more answers under load"), PATIENCE, async || {
            let report = self.report();
            if report.answered() >= wanted { Ok(()) } else { Err(format!("{report:?}")) }
        })
        .await
    }

    /// Ends the load: requests in flight are still waited for.
    pub async fn stop(mut self) -> LoadReport {
        self.stop.send_replace(true);
        while self.workers.join_next().await.is_some() {}
        self.report()
    }
}

#[derive(Clone)]
struct Worker {
    addr: SocketAddr,
    request: Request,
    protocol: Protocol,
    check: fn(&Response) -> Result<()>,
    report: Arc<Mutex<LoadReport>>,
    stopped: watch::Receiver<bool>,
}

enum Connection {
    H1(H1),
    H2(H2),
}

impl Worker {
    async fn run(self) {
        let mut connection = None;
        while !*self.stopped.borrow() {
            let result = self.one(&mut connection).await;
            self.note(result);
            sleep(PAUSE).await;
        }
    }

    fn note(&self, result: Result<Response>) {
        let mut report = self.report.lock().unwrap();
        let wrong = match result {
            Ok(response) => {
                *report.statuses.entry(response.status).or_default() += 1;
                (self.check)(&response).err()
            }
            Err(error) => Some(error),
        };
        report.errors.extend(wrong.map(|error| format!("{error:#}")));
    }

    /// Takes the connection, and gives it back when it can be used again.
    async fn one(&self, connection: &mut Option<Connection>) -> Result<Response> {
        match connection.take() {
            Some(Connection::H1(mut h1)) => {
                let response = h1.send(&self.request).await?;
                *connection = (!response.closes()).then_some(Connection::H1(h1));
                Ok(response)
            }
            Some(Connection::H2(h2)) if !h2.closed() => match h2.send(&self.request).await {
                Ok(response) => {
                    *connection = Some(Connection::H2(h2));
                    Ok(response)
                }
                // The GOAWAY came just before: nothing was sent.
                Err(error) if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) => {
                    self.again(connection).await
                }
                Err(error) => Err(error),
            },
            _ => self.again(connection).await,
        }
    }

    async fn again(&self, connection: &mut Option<Connection>) -> Result<Response> {
        self.report.lock().unwrap().connections += 1;
        *connection = Some(match self.protocol {
            Protocol::H1 => Connection::H1(H1::connect(self.addr).await?),
            Protocol::H2 => Connection::H2(H2::connect(self.addr).await?),
        });
        Box::pin(self.one(connection)).await
    }
}
