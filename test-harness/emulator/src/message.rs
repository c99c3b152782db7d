//! What is said: requests, responses, replies in place of them, with the parts in which bodies come.

use crate::abi::{Pairs, pairs};

/// A request or response, with its chunk plan: the parts in which its body comes.
///
/// The end of the stream is told with the last part that there is. For a body that ends with an empty chunk, as it
/// comes over some wires, give one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Message {
    /// Headers, `:method` and the like among them.
    pub headers: Pairs,
    /// The body.
    pub chunks: Vec<Vec<u8>>,
    /// Trailers.
    pub trailers: Option<Pairs>,
}

impl Message {
    /// Headers alone.
    pub fn new<N: AsRef<[u8]>, V: AsRef<[u8]>>(headers: impl IntoIterator<Item = (N, V)>) -> Self {
        Self { headers: pairs(headers), ..Self::default() }
    }

    /// Appends a part of the body.
    pub fn chunk(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.chunks.push(bytes.as_ref().to_vec());
        self
    }

    /// Sets the trailers.
    pub fn trailers<N: AsRef<[u8]>, V: AsRef<[u8]>>(mut self, trailers: impl IntoIterator<Item = (N, V)>) -> Self {
        self.trailers = Some(pairs(trailers));
        self
    }

    /// What the proxy itself answers a call with that takes too long.
    pub(crate) fn timed_out() -> Self {
        let body = "upstream request timeout";
        let length = body.len().to_string();
        Self::new([(":status", "504"), ("content-length", &length), ("content-type", "text/plain")]).chunk(body)
    }
}

/// What left the chain, on one of its sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Headers; `None`: they have not left.
    pub headers: Option<Pairs>,
    /// The parts of the body.
    pub chunks: Vec<Vec<u8>>,
    /// Trailers.
    pub trailers: Option<Pairs>,
    /// Whether all of it has left.
    pub ended: bool,
}

impl Sent {
    /// The body as a whole.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        self.chunks.concat()
    }

    /// The values of a header, in order.
    #[must_use]
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        let pairs = self.headers.iter().flatten();
        pairs.filter(|(other, _)| other == name.as_bytes()).map(|(_, value)| value.as_slice()).collect()
    }
}

/// A reply in place of the upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u32,
    /// `%RESPONSE_CODE_DETAILS%`.
    pub details: String,
    /// Its body.
    pub body: Vec<u8>,
    /// Headers besides those that the proxy gives it.
    pub headers: Pairs,
    /// For gRPC.
    pub grpc_status: Option<u32>,
}

impl Reply {
    /// Headers and body as the proxy writes them.
    pub(crate) fn render(&self, grpc: bool) -> (Pairs, Vec<u8>) {
        if grpc {
            // Trailers only: gRPC has its status in the headers, and the text in place of a body.
            let status = self.grpc_status.unwrap_or(match self.status {
                400 => 13,
                401 => 16,
                403 => 7,
                404 => 12,
                429 | 502..=504 => 14,
                _ => 2,
            });
            let mut headers = pairs([(":status", "200"), ("content-type", "application/grpc")]);
            headers.push((b"grpc-status".to_vec(), status.to_string().into_bytes()));
            headers.push((b"grpc-message".to_vec(), self.body.clone()));
            headers.extend(self.headers.clone());
            return (headers, Vec::new());
        }
        let mut headers = pairs([(":status", self.status.to_string())]);
        headers.extend(self.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
        if !self.body.is_empty() {
            headers.push((b"content-length".to_vec(), self.body.len().to_string().into_bytes()));
            if !headers.iter().any(|(name, _)| name == b"content-type") {
                headers.push((b"content-type".to_vec(), b"text/plain".to_vec()));
            }
        }
        (headers, self.body.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_caller_gets_the_status_in_the_headers() {
        let reply = Reply {
            status: 403,
            details: String::new(),
            body: b"no".to_vec(),
            headers: Pairs::new(),
            grpc_status: None,
        };
        let (headers, body) = reply.render(true);
        assert_eq!(headers[2..], pairs([("grpc-status", "7"), ("grpc-message", "no")]));
        assert!(body.is_empty());
    }
}
