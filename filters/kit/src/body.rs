//! A part of a body, as it passes; and what answers a call.

use crate::host::{Bytes, Host, Map, Status};

/// What the proxy has of a body at this moment: one part of it, which goes on afterwards. Nothing is held or copied
/// unless a filter reads it.
pub struct Body<'h> {
    host: &'h dyn Host,
    map: Map,
    size: usize,
    last: bool,
}

/// What happens to a part of a body after a phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pass {
    /// It goes on, and all that was held before it.
    #[default]
    On,
    /// It waits, and comes again together with the next part. The proxy keeps as much as the listener's buffer limit
    /// says, 1 MiB by default, and ends the request when there is more: let go before.
    Hold,
}

impl<'h> Body<'h> {
    pub(crate) fn new(host: &'h dyn Host, map: Map, size: usize, last: bool) -> Self {
        Self { host, map, size, last }
    }

    /// Bytes of this part, and of what was held before it.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether nothing comes after it. Where trailers follow, no part is the last.
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// At most `max` bytes of it, from `start` on; none where the host gives none. A hostcall.
    pub fn read(&self, start: usize, max: usize) -> Bytes {
        self.host.body(self.map, start, max).unwrap_or_default()
    }

    /// Puts other bytes in place of all of it.
    ///
    /// # Errors
    /// What the host said; then it is as it was.
    pub fn replace(&self, bytes: &[u8]) -> Result<(), Status> {
        self.host.replace_body(self.map, bytes)
    }
}

/// How a call ended. Its bytes stay where they are until a filter reads them.
pub struct Answer<'h> {
    host: &'h dyn Host,
    pairs: usize,
    size: usize,
}

impl<'h> Answer<'h> {
    pub(crate) fn new(host: &'h dyn Host, pairs: usize, size: usize) -> Self {
        Self { host, pairs, size }
    }

    /// The status; `None` where there was no answer at all. A call that took too long has 504 from the proxy itself.
    pub fn status(&self) -> Option<u16> {
        if self.pairs == 0 {
            return None;
        }
        str::from_utf8(&self.header(":status")?).ok()?.parse().ok()
    }

    /// A header of it.
    pub fn header(&self, name: &str) -> Option<Bytes> {
        self.host.header(Map::Answer, name).ok()
    }

    /// Bytes of its body.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Its body, up to so many bytes.
    pub fn body(&self, max: usize) -> Bytes {
        self.host.body(Map::Answer, 0, max).unwrap_or_default()
    }
}
