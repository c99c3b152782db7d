//! How many messages a gRPC call has: what tells a stream from a call of one question and one answer.

use kit::Body;

/// What stands before each message: a byte for compression and four of length, big-endian (gRPC over HTTP/2,
/// Length-Prefixed-Message).
const HEAD: usize = 5;

/// The messages of one direction, as far as they were looked at.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    begun: u8,
    /// Bytes until the next head.
    rest: u64,
    /// As much of a head as has come, and how many bytes that is: a part of a body may end within it.
    head: u64,
    have: usize,
}

impl Messages {
    /// Whether there was more than one.
    pub(crate) fn many(&self) -> bool {
        self.begun > 1
    }

    /// Looks at the heads in a part of the body, until there were two.
    pub(crate) fn pass(&mut self, body: &Body<'_>) {
        let mut at = 0_usize;
        while !self.many() {
            let left = u64::try_from(body.size().saturating_sub(at)).unwrap_or(u64::MAX);
            if self.rest >= left {
                self.rest = self.rest.saturating_sub(left);
                return;
            }
            at = at.saturating_add(usize::try_from(self.rest).unwrap_or(usize::MAX));
            self.rest = 0;
            let part = body.read(at, HEAD.saturating_sub(self.have));
            if part.is_empty() {
                return;
            }
            for byte in part.iter().take(HEAD.saturating_sub(self.have)) {
                self.head = (self.head << 8) | u64::from(*byte);
            }
            self.have = self.have.saturating_add(part.len());
            at = at.saturating_add(part.len());
            if self.have >= HEAD {
                self.begun = self.begun.saturating_add(1);
                self.rest = self.head & 0xffff_ffff;
                (self.head, self.have) = (0, 0);
            }
        }
    }
}
