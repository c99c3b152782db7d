//! HTTP messages as they are on the wire: headers are bytes, in order, with every duplicate.
//!
//! HTTP/1.1 is read and written here by hand, because a library would refuse, fold or reorder just what a test of a
//! proxy wants to send and to see.

use std::fmt;
use std::io;

use hyper::http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// Header fields in order of arrival, duplicates kept. Over HTTP/1.1 this is the exact order of the wire; over h2 the
/// fields of one name stand together, at the place of the first.
///
/// Made from arrays, slices or vectors of pairs of anything byte-like; from `()` when there are none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Vec<u8>, Vec<u8>)>);

impl Headers {
    /// Appends a field.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.0.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
    }

    /// The first value of that name, in any case of letters.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).into_iter().next()
    }

    /// Every value of that name, in order.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        self.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, v)| v).collect()
    }

    /// The first value of that name, as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// Whether there is a field of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// All fields, name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `[[name, value], …]`, where a byte becomes the character of that number, so that nothing is lost.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.iter().map(|(name, value)| Value::from(vec![latin1(name), latin1(value)])).collect()
    }

    pub(crate) fn from_map(map: &HeaderMap) -> Self {
        map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }

    pub(crate) fn to_map(&self) -> anyhow::Result<HeaderMap> {
        let mut map = HeaderMap::new();
        for (name, value) in self.iter() {
            map.append(HeaderName::from_bytes(name)?, HeaderValue::from_bytes(value)?);
        }
        Ok(map)
    }

    pub(crate) fn write(&self, to: &mut Vec<u8>) {
        for (name, value) in self.iter() {
            to.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
        }
    }
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(n, v)| format!("{}: {}", n.escape_ascii(), v.escape_ascii()))).finish()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        Self(fields.into_iter().map(|(n, v)| (n.as_ref().to_vec(), v.as_ref().to_vec())).collect())
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>, const K: usize> From<[(N, V); K]> for Headers {
    fn from(fields: [(N, V); K]) -> Self {
        fields.into_iter().collect()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> From<&[(N, V)]> for Headers {
    fn from(fields: &[(N, V)]) -> Self {
        fields.iter().map(|(n, v)| (n, v)).collect()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> From<Vec<(N, V)>> for Headers {
    fn from(fields: Vec<(N, V)>) -> Self {
        fields.into_iter().collect()
    }
}

impl From<()> for Headers {
    fn from((): ()) -> Self {
        Self::default()
    }
}

/// A request, to send or as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The header fields. Over h2, `:authority` stands among them as `host`, first.
    pub headers: Headers,
    /// The whole body.
    pub body: Vec<u8>,
    /// The trailer fields.
    pub trailers: Headers,
}

impl Request {
    /// A request without headers or body.
    #[must_use]
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), ..Self::default() }
    }

    /// A GET.
    #[must_use]
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// A POST with a body.
    #[must_use]
    pub fn post(path: &str, body: impl AsRef<[u8]>) -> Self {
        Self { body: body.as_ref().to_vec(), ..Self::new("POST", path) }
    }

    /// Appends a header field.
    #[must_use]
    pub fn header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.headers.push(name, value);
        self
    }

    /// Appends many header fields.
    #[must_use]
    pub fn headers(mut self, fields: impl Into<Headers>) -> Self {
        self.headers.0.extend(fields.into().0);
        self
    }

    /// Appends a trailer field. Over HTTP/1.1 the body is then sent in chunks.
    #[must_use]
    pub fn trailer(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.trailers.push(name, value);
        self
    }

    /// The bytes of HTTP/1.1. Adds `host: test` and the framing header, unless they are there.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = format!("{} {} HTTP/1.1\r\n", self.method, self.path).into_bytes();
        let mut head = self.headers.clone();
        if !head.has("host") {
            head.0.insert(0, (b"host".to_vec(), b"test".to_vec()));
        }
        let framed = head.has("content-length") || head.has("transfer-encoding");
        let chunked = !self.trailers.is_empty();
        if chunked && !framed {
            head.push("transfer-encoding", "chunked");
        } else if !self.body.is_empty() && !framed {
            head.push("content-length", self.body.len().to_string());
        }
        head.write(&mut out);
        out.extend_from_slice(b"\r\n");
        if chunked {
            write_chunk(&mut out, &self.body);
            write_last_chunk(&mut out, &self.trailers);
        } else {
            out.extend_from_slice(&self.body);
        }
        out
    }
}

/// A response as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The header fields.
    pub headers: Headers,
    /// The whole body.
    pub body: Vec<u8>,
    /// The trailer fields.
    pub trailers: Headers,
}

impl Response {
    /// The body as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none; the message holds the body.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).map_err(|e| anyhow::anyhow!("{e} in {:?}", self.text()))
    }

    /// Whether this HTTP/1.1 response announces that the connection ends with it.
    #[must_use]
    pub fn closes(&self) -> bool {
        self.headers.all("connection").iter().any(|value| value.eq_ignore_ascii_case(b"close"))
    }
}

/// A start line and the header fields under it.
pub(crate) struct Head {
    pub(crate) start: Vec<u8>,
    pub(crate) headers: Headers,
}

/// `None` when the peer closed before the first byte.
pub(crate) async fn read_head(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Head>> {
    if from.fill_buf().await?.is_empty() {
        return Ok(None);
    }
    let start = read_line(from).await?;
    Ok(Some(Head { start, headers: read_fields(from).await? }))
}

/// How the end of a body is known.
#[derive(Clone, Copy)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Framing {
    /// As the headers say; `otherwise` when they say nothing.
    pub(crate) fn of(headers: &Headers, otherwise: Self) -> io::Result<Self> {
        if headers.text("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().ends_with("chunked")) {
            return Ok(Self::Chunked);
        }
        match headers.text("content-length") {
            Some(length) => length.parse().map(Self::Length).map_err(|_| broken("content-length", length.as_bytes())),
            None => Ok(otherwise),
        }
    }
}

/// Appends to `body` as it comes, so that the part which came before an error is not lost. Returns the trailers.
pub(crate) async fn read_body(
    from: &mut (impl AsyncBufRead + Unpin),
    framing: Framing,
    body: &mut Vec<u8>,
) -> io::Result<Headers> {
    match framing {
        Framing::Length(length) => read_exactly(from, length, body).await?,
        Framing::UntilClose => {
            from.read_to_end(body).await?;
        }
        Framing::Chunked => loop {
            let line = read_line(from).await?;
            let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
            let size = std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
            match size.ok_or_else(|| broken("chunk size", &line))? {
                0 => return read_fields(from).await,
                size => read_exactly(from, size, body).await?,
            }
            read_line(from).await?;
        },
    }
    Ok(Headers::default())
}

async fn read_exactly(from: &mut (impl AsyncBufRead + Unpin), length: u64, to: &mut Vec<u8>) -> io::Result<()> {
    let got = from.take(length).read_to_end(to).await? as u64;
    if got < length {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("closed after {got} of {length} bytes of body"),
        ));
    }
    Ok(())
}

async fn read_fields(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Headers> {
    let mut fields = Headers::default();
    loop {
        let line = read_line(from).await?;
        if line.is_empty() {
            return Ok(fields);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| broken("header line", &line))?;
        fields.push(&line[..colon], trim(&line[colon + 1..]));
    }
}

/// Optional white space of RFC 9110 5.6.3: space and tab, nothing else.
fn trim(value: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    &value[start..end]
}

async fn read_line(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).await?;
    if line.pop_if(|last| *last == b'\n').is_none() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("closed in a line: {}", line.escape_ascii())));
    }
    line.pop_if(|last| *last == b'\r');
    Ok(line)
}

fn broken(what: &str, bytes: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a {what}: {}", bytes.escape_ascii()))
}

pub(crate) fn write_chunk(to: &mut Vec<u8>, chunk: &[u8]) {
    if !chunk.is_empty() {
        to.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        to.extend_from_slice(chunk);
        to.extend_from_slice(b"\r\n");
    }
}

pub(crate) fn write_last_chunk(to: &mut Vec<u8>, trailers: &Headers) {
    to.extend_from_slice(b"0\r\n");
    trailers.write(to);
    to.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parsed(bytes: &[u8]) -> io::Result<(Head, Vec<u8>, Headers)> {
        let mut from = bytes;
        let head = read_head(&mut from).await?.expect("a head");
        let mut body = Vec::new();
        let framing = Framing::of(&head.headers, Framing::UntilClose)?;
        let trailers = read_body(&mut from, framing, &mut body).await?;
        Ok((head, body, trailers))
    }

    #[tokio::test]
    async fn what_is_written_is_read_back_byte_for_byte() {
        let sent = Request::post("/p?q", b"body")
            .header("X-A", "1")
            .header("b", b"\xff\x01")
            .header("x-a", "")
            .trailer("t", "v");
        let (head, body, trailers) = parsed(&sent.to_bytes()).await.unwrap();
        assert_eq!(head.start, b"POST /p?q HTTP/1.1");
        let expected: [(&str, &[u8]); 5] =
            [("host", b"test"), ("X-A", b"1"), ("b", b"\xff\x01"), ("x-a", b""), ("transfer-encoding", b"chunked")];
        assert_eq!(head.headers, expected.into());
        assert_eq!((body.as_slice(), trailers), (&b"body"[..], [("t", "v")].into()));
    }

    #[tokio::test]
    async fn a_cut_body_says_where_it_was_cut() {
        let error = parsed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab").await.err().unwrap().to_string();
        assert_eq!(error, "closed after 2 of 5 bytes of body");
        let error = parsed(b"HTTP/1.1 200 OK\r\ncontent-le").await.err().unwrap().to_string();
        assert_eq!(error, "closed in a line: content-le");
    }
}
