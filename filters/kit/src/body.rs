//! A part of a body, as it passes.

use crate::host::{Bytes, Host, Map};

/// What the proxy has of a body at this moment: one part of it, which goes on afterwards. Nothing is held or copied
/// unless a filter reads it.
pub struct Body<'h> {
    host: &'h dyn Host,
    map: Map,
    size: usize,
}

impl<'h> Body<'h> {
    pub(crate) fn new(host: &'h dyn Host, map: Map, size: usize) -> Self {
        Self { host, map, size }
    }

    /// Bytes of this part.
    pub fn size(&self) -> usize {
        self.size
    }

    /// At most `max` bytes of it, from `start` on; none where the host gives none. A hostcall.
    pub fn read(&self, start: usize, max: usize) -> Bytes {
        self.host.body(self.map, start, max).unwrap_or_default()
    }
}
