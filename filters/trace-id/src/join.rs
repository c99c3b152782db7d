//! Joins what an application sends out to what it was asked, by a header that it forwards.
//!
//! An application that forwards `x-request-id` but no trace headers tears every trace in two. The sidecar sees both
//! halves: on the way in it remembers the trace of that id in shared data, and on the way out it looks it up.
//!
//! Memory is bounded by configuration: `entries` slots, of which a value's hash chooses one; a newer request takes the
//! slot of an older one. One write or one read per request, no lock, no clean-up.

use crate::{
    config::Join,
    context::{Local, Remote, Sampling, SpanId, TraceId},
};
use kit::Host;
use kit::prelude::*;

/// A value of the header, made comparable.
pub(crate) struct Key(Vec<u8>);

/// Longer values are not remembered.
const KEY_MAX: usize = 128;
/// Where Envoy writes its sampling decision into a UUID: 9, a, b or 4, and not the same on the way in and out.
const TRACE_REASON: usize = 14;

impl Key {
    pub(crate) fn new(value: &[u8]) -> Option<Self> {
        let mut key = value.to_vec();
        if key.is_empty() || key.len() > KEY_MAX {
            return None;
        }
        let uuid = key.len() == 36 && [8, 13, 18, 23].iter().all(|at| key.get(*at) == Some(&b'-'));
        if let Some(nibble) = key.get_mut(TRACE_REASON)
            && uuid
        {
            *nibble = b'4';
        }
        Some(Self(key))
    }

    fn slot(&self, join: &Join) -> String {
        // FNV-1a. Whoever can choose the header can only push out others, which a flood of requests does as well.
        let hash = self
            .0
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let slot = hash.checked_rem(join.entries.get().into()).unwrap_or(0);
        format!("meshfilter/trace-id/join/{slot}")
    }
}

/// Remembers the trace of a request that came in. Value: expiry in ms (8 bytes), trace id, span id, sampling, key.
pub(crate) fn remember(host: &dyn Host, join: &Join, key: &Key, local: &Local, now_ns: u64) {
    let expiry = (now_ns / 1_000_000).saturating_add(join.ttl.ms());
    let flags = u8::from(local.sampled())
        | if local.random { 2 } else { 0 }
        | if local.sampling == Sampling::Debug { 4 } else { 0 };
    let value = [&expiry.to_le_bytes()[..], &local.trace_id.bytes(), &local.span_id.bytes(), &[flags], &key.0].concat();
    // Written whatever is there: a slot that is lost to another request is the price of a bounded store.
    let _ = host.set_shared_data(&key.slot(join), &value, 0);
}

/// The trace that a request going out belongs to.
pub(crate) fn recall(host: &dyn Host, join: &Join, key: &Key, now_ns: u64) -> Option<Remote> {
    let (value, _) = host.shared_data(&key.slot(join)).ok()?;
    let (expiry, rest) = value.split_first_chunk()?;
    let (trace_id, rest) = rest.split_first_chunk()?;
    let (span_id, rest) = rest.split_first_chunk()?;
    let (flags, stored) = rest.split_first()?;
    let alive = u64::from_le_bytes(*expiry) > now_ns / 1_000_000;
    (alive && stored == key.0).then_some(Remote {
        trace_id: TraceId::new(*trace_id)?,
        span_id: SpanId::new(*span_id),
        sampling: match (flags & 4, flags & 1) {
            (0, 0) => Sampling::Drop,
            (0, _) => Sampling::Keep,
            _ => Sampling::Debug,
        },
        random: flags & 2 != 0,
    })
}
