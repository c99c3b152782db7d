//! Trace context, whatever header it travels in.

use crate::hex;
use core::fmt;
use kit::prelude::*;

/// Identifies a trace: 16 bytes, never all zero. Written as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceId([u8; 16]);

/// Identifies one hop of a trace: 8 bytes, never all zero. Written as 16 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// `None` for the all-zero id, which every format calls invalid.
    pub fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// From random bytes; the all-zero draw, which must not be, becomes another id.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self::new(bytes).unwrap_or(Self([1; 16]))
    }

    /// From 1 to 32 hex digits of either case; fewer than 32 are the low ones.
    pub fn from_hex(digits: &[u8]) -> Result<Self, Invalid> {
        Self::new(hex::decode(digits)?).ok_or(Invalid::Zero)
    }

    /// The 16 bytes, most significant first.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// 32 lower-case hex digits.
    pub fn hex(&self) -> [u8; 32] {
        let mut out = [0; 32];
        hex::encode(&self.0, &mut out);
        out
    }
}

impl SpanId {
    /// `None` for the all-zero id, which every format calls invalid.
    pub fn new(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// From random bytes; the all-zero draw, which must not be, becomes another id.
    pub fn from_random(bytes: [u8; 8]) -> Self {
        Self::new(bytes).unwrap_or(Self([1; 8]))
    }

    /// From 1 to 16 hex digits of either case; fewer than 16 are the low ones.
    pub fn from_hex(digits: &[u8]) -> Result<Self, Invalid> {
        Self::new(hex::decode(digits)?).ok_or(Invalid::Zero)
    }

    /// The 8 bytes, most significant first.
    pub fn bytes(&self) -> [u8; 8] {
        self.0
    }

    /// 16 lower-case hex digits.
    pub fn hex(&self) -> [u8; 16] {
        let mut out = [0; 16];
        hex::encode(&self.0, &mut out);
        out
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.hex()))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.hex()))
    }
}

/// What a context says of recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// Says nothing: whoever reads it decides (B3's "defer", X-Ray's `Sampled=?`).
    Defer,
    /// Do not record.
    Drop,
    /// Record.
    Keep,
    /// Record whatever the sampling rules say (B3's `d`, Jaeger's debug bit). Counts as [`Sampling::Keep`].
    Debug,
}

/// What a caller's headers say: the context that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The trace that the caller is in.
    pub trace_id: TraceId,
    /// The caller's own span; `None` where the format allows a trace without one (X-Ray's `Root=` alone).
    pub span_id: Option<SpanId>,
    /// The caller's decision.
    pub sampling: Sampling,
    /// W3C Level 2 flag 02: the low 7 bytes of the trace id are random.
    pub random: bool,
}

/// What goes on to the next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The trace, the caller's or a new one.
    pub trace_id: TraceId,
    /// This hop's span: new for every outgoing request.
    pub span_id: SpanId,
    /// The caller's span, if there was one.
    pub parent_id: Option<SpanId>,
    /// Decided: never [`Sampling::Defer`].
    pub sampling: Sampling,
    /// W3C Level 2 flag 02.
    pub random: bool,
}

impl Local {
    /// Whether the trace is to be recorded.
    pub fn sampled(&self) -> bool {
        matches!(self.sampling, Sampling::Keep | Sampling::Debug)
    }
}

/// Why a context was refused; the label `reason` of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// More than one header where the format has one.
    Duplicate,
    /// Wrong length or a missing part.
    Length,
    /// A character or separator that the format does not have.
    Syntax,
    /// A version that no reader may take (W3C `ff`).
    Version,
    /// An id that is all zero.
    Zero,
}

impl Invalid {
    /// As a label.
    pub fn name(self) -> &'static str {
        match self {
            Invalid::Duplicate => "duplicate",
            Invalid::Length => "length",
            Invalid::Syntax => "syntax",
            Invalid::Version => "version",
            Invalid::Zero => "zero",
        }
    }
}
