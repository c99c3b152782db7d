//! A source of thresholds, for the demo and the tests: one document over HTTP, as nginx, a key-value store or a
//! program of one's own would give it, and every way in which such a source fails or lies.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::sources::Held;
use crate::upstream::{Reply, Upstream};
use crate::wire::Request;
use crate::{PATIENCE, eventually};

/// How a server answers `GET /rules`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As it should: 200 with the document, or 304 to who has it already.
    #[default]
    Serve,
    /// With this status and a line of text.
    Refuse(u16),
    /// Never; the connection stays open.
    Hang,
    /// As it should, but so much later.
    Slow(Duration),
    /// Not at all: the connection is reset.
    Drop,
    /// With half of the document; then the connection is reset.
    Torn,
    /// With the document, and blanks after it until there are so many bytes: JSON still, and wrong only in its size.
    Oversized(usize),
    /// With 200 and an empty body.
    Empty,
    /// With the document, always, and without an ETag.
    NoEtag,
    /// With 304, also to who has another document or none.
    NotModified,
}

/// A request that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When it had come to its end.
    pub at: Instant,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// Its header `if-none-match`.
    pub if_none_match: Option<String>,
    /// The status it gets; none where no answer is given.
    pub status: Option<u16>,
    /// The ETag it gets.
    pub etag: Option<String>,
}

/// A server with one document at `/rules`: `GET` gives it, with a strong ETag, and `PUT` replaces it by any bytes.
/// It lives in the runtime that started it, and ends with this value. It speaks HTTP/1.1 and h2c.
#[derive(Debug)]
pub struct Thresholds {
    shared: Arc<Shared>,
    held: Held,
    /// None while it is down.
    server: Option<Upstream>,
}

#[derive(Debug, Default)]
struct Shared {
    now: Mutex<Now>,
    seen: Mutex<VecDeque<Seen>>,
    more: Notify,
}

#[derive(Clone, Debug, Default)]
struct Now {
    document: Vec<u8>,
    mode: Mode,
}

impl Thresholds {
    /// Starts a server with this document, on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(document: impl AsRef<[u8]>) -> Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), document).await
    }

    /// Starts a server with this document there.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start_at(addr: SocketAddr, document: impl AsRef<[u8]>) -> Result<Self> {
        let mut thresholds = Self { shared: Arc::default(), held: Held::at(addr)?, server: None };
        thresholds.set(document);
        thresholds.up().await?;
        Ok(thresholds)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.held.addr
    }

    /// Replaces the document.
    pub fn set(&self, document: impl AsRef<[u8]>) {
        self.shared.now.lock().unwrap().document = document.as_ref().to_vec();
    }

    /// Sets how the requests from now on are answered.
    pub fn mode(&self, mode: Mode) {
        self.shared.now.lock().unwrap().mode = mode;
    }

    /// The ETag of the document as it is now.
    #[must_use]
    pub fn etag(&self) -> String {
        etag(&self.shared.now.lock().unwrap().document)
    }

    /// Stops listening, and breaks off what is open: connections are refused until it is [up](Self::up) again. The
    /// address stays its own.
    ///
    /// # Errors
    /// When it goes on listening.
    pub async fn down(&mut self) -> Result<()> {
        self.server = None;
        eventually(format!("nobody listens at {}", self.addr()), PATIENCE, async || {
            match TcpStream::connect(self.addr()).await {
                Err(_) => Ok(()),
                Ok(_) => Err("somebody does".to_owned()),
            }
        })
        .await
    }

    /// Listens again, where it did before.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn up(&mut self) -> Result<()> {
        if self.server.is_none() {
            let shared = Arc::clone(&self.shared);
            self.server = Some(Upstream::at(self.addr(), move |request| shared.answer(request)).await?);
        }
        Ok(())
    }

    /// Takes the requests that were seen so far.
    #[must_use]
    pub fn take(&self) -> Vec<Seen> {
        self.forget();
        std::mem::take(&mut *self.shared.seen.lock().unwrap()).into()
    }

    /// Waits until at least so many requests were seen since the last taking, and takes them all.
    ///
    /// # Errors
    /// When fewer came in time; the message shows them.
    pub async fn wait(&self, n: usize) -> Result<Vec<Seen>> {
        eventually(format!("{n} requests at the source of thresholds"), PATIENCE, async || {
            let seen = self.shared.seen.lock().unwrap();
            if seen.len() >= n { Ok(()) } else { Err(format!("{seen:#?}")) }
        })
        .await?;
        Ok(self.take())
    }

    /// Takes the oldest request that was seen, and waits for one without end.
    pub async fn next(&self) -> Seen {
        loop {
            let more = self.shared.more.notified();
            self.forget();
            let first = self.shared.seen.lock().unwrap().pop_front();
            match first {
                Some(seen) => return seen,
                None => more.await,
            }
        }
    }

    /// The server underneath keeps every request whole.
    fn forget(&self) {
        drop(self.server.as_ref().map(Upstream::take));
    }
}

impl Shared {
    fn answer(&self, request: &Request) -> Reply {
        let path = request.path.split('?').next().unwrap_or_default();
        let if_none_match = request.headers.text("if-none-match");
        let answer = match (request.method.as_str(), path) {
            ("GET" | "HEAD", "/rules") => self.now.lock().unwrap().clone().answer(if_none_match.as_deref()),
            ("PUT", "/rules") => {
                let mut now = self.now.lock().unwrap();
                now.document.clone_from(&request.body);
                Answer::new(204).etag(&now.document)
            }
            (_, "/rules") => Answer { reply: Reply::new(405).header("allow", "GET, HEAD, PUT"), ..Answer::new(405) },
            _ => Answer::new(404),
        };
        let (method, path) = (request.method.clone(), request.path.clone());
        let Answer { reply, status, etag } = answer;
        let seen = Seen { at: Instant::now(), method, path, if_none_match, status, etag };
        self.seen.lock().unwrap().push_back(seen);
        self.more.notify_one();
        reply
    }
}

/// A reply, and what is told of it.
struct Answer {
    reply: Reply,
    status: Option<u16>,
    etag: Option<String>,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { reply: Reply::new(status), status: Some(status), etag: None }
    }

    /// With the ETag of these bytes.
    fn etag(self, of: &[u8]) -> Self {
        let etag = etag(of);
        Self { reply: self.reply.header("etag", &etag), etag: Some(etag), ..self }
    }

    /// 200 with these bytes, said to be JSON whatever they are.
    fn json(bytes: &[u8]) -> Self {
        let answer = Self::new(200);
        Self { reply: answer.reply.header("content-type", "application/json").chunk(bytes), ..answer }
    }

    /// None is given.
    fn none(reply: Reply) -> Self {
        Self { reply, status: None, etag: None }
    }
}

impl Now {
    fn answer(mut self, if_none_match: Option<&str>) -> Answer {
        match self.mode {
            Mode::Serve => self.served(if_none_match),
            Mode::Refuse(status) => {
                let answer = Answer::new(status);
                Answer { reply: answer.reply.chunk("refused, as told\n"), ..answer }
            }
            // As near to without end as a timer can be.
            Mode::Hang => Answer::none(Reply::new(200).pause(Duration::from_secs(86_400 * 365)).reset()),
            Mode::Slow(time) => {
                let answer = self.served(if_none_match);
                Answer { reply: answer.reply.delay(time), ..answer }
            }
            Mode::Drop => Answer::none(Reply::new(200).reset()),
            Mode::Torn => {
                let length = self.document.len().to_string();
                self.document.truncate(self.document.len() / 2);
                let answer = Answer::json(&self.document);
                Answer { reply: answer.reply.header("content-length", length).reset(), ..answer }
            }
            Mode::Oversized(length) => {
                self.document.resize(length.max(self.document.len()), b' ');
                self.served(if_none_match)
            }
            Mode::Empty => Answer::json(b"").etag(b""),
            Mode::NoEtag => Answer::json(&self.document),
            Mode::NotModified => Answer::new(304).etag(&self.document),
        }
    }

    fn served(&self, if_none_match: Option<&str>) -> Answer {
        let etag = etag(&self.document);
        let known = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == etag;
        if if_none_match.is_some_and(|list| list.split(',').map(str::trim).any(known)) {
            Answer::new(304).etag(&self.document)
        } else {
            Answer::json(&self.document).etag(&self.document)
        }
    }
}

/// Of the bytes, and of nothing else: a document that comes back has its old one again.
fn etag(document: &[u8]) -> String {
    let hash = Sha256::digest(document);
    let mut etag = "\"".to_owned();
    for byte in hash.iter().take(16) {
        write!(etag, "{byte:02x}").expect("a string takes all");
    }
    etag + "\""
}
