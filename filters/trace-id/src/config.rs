//! What the operator says.

use kit::config::{Bounded, Duration, HeaderName, Ratio};
use kit::prelude::*;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of trace-id. Every field may be left out.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct Config {
    /// Formats that are read, in this order: the first with a valid context wins. What a format's headers hold that is
    /// not valid is taken out of the request.
    #[cfg_attr(feature = "schema", schemars(extend("uniqueItems" = true)))]
    pub extract: Vec<Format>,
    /// Formats that the upstream gets. Headers of other formats pass through.
    #[cfg_attr(feature = "schema", schemars(length(min = 1), extend("uniqueItems" = true)))]
    pub inject: Vec<Inject>,
    /// What happens to a request without `x-request-id`; an existing one is never changed.
    pub request_id: RequestId,
    /// Whether a trace that begins here, or whose caller left it open, is recorded. A caller's decision stands.
    pub sampling: Sampling,
    /// What a caller's trace context is worth: `accept` inside the mesh, `restart` or `link` at its edge.
    pub trust: Trust,
    /// Accept the context of callers with a client certificate, whatever `trust` says of others.
    pub trust_mtls: bool,
    /// What the caller is told.
    pub response: Response,
    /// Whether to look, when a request is over, for a context that the proxy's own tracer sent upstream in place of the
    /// filter's, and then log that one.
    pub follow_tracer: FollowTracer,
    /// Joins the requests that an application makes to the one that it answers, by a header that it forwards. What came in
    /// through a listener of direction inbound is remembered, what goes out through one of direction outbound is joined;
    /// a listener that says no direction does both if `trust` is `accept`, and else only remembers.
    pub join: Option<Join>,
    /// Longest `tracestate` that is sent on, in bytes; whole members are cut.
    pub tracestate_limit: Bounded<512, 65_536>,
}

kit::fields!(Config {
    extract,
    inject,
    request_id,
    sampling,
    trust,
    trust_mtls,
    response,
    follow_tracer,
    join,
    tracestate_limit
});

impl Default for Config {
    fn default() -> Self {
        Self {
            extract: vec![Format::W3c, Format::B3, Format::Jaeger, Format::Datadog, Format::Xray],
            inject: vec![Inject::W3c],
            request_id: RequestId::V4,
            sampling: Sampling::default(),
            trust: Trust::Accept,
            trust_mtls: false,
            response: Response::default(),
            follow_tracer: FollowTracer::Auto,
            join: None,
            tracestate_limit: Bounded::new(4096).unwrap_or(Bounded::LEAST),
        }
    }
}

/// A family of headers that a context is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `traceparent` and `tracestate`.
    W3c,
    /// `b3`, else `x-b3-…`.
    B3,
    /// `uber-trace-id`.
    Jaeger,
    /// `x-datadog-…`.
    Datadog,
    /// `x-amzn-trace-id`.
    Xray,
}

impl Format {
    /// As in configuration and as a label.
    pub fn name(self) -> &'static str {
        match self {
            Format::W3c => "w3c",
            Format::B3 => "b3",
            Format::Jaeger => "jaeger",
            Format::Datadog => "datadog",
            Format::Xray => "xray",
        }
    }
}

/// A form that a context is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Inject {
    /// `traceparent` and `tracestate`.
    W3c,
    /// `x-b3-traceid`, `x-b3-spanid`, `x-b3-parentspanid`, `x-b3-sampled` or `x-b3-flags`.
    B3,
    /// `b3`.
    B3Single,
    /// `uber-trace-id`.
    Jaeger,
    /// `x-datadog-…`.
    Datadog,
    /// `x-amzn-trace-id`. New trace ids then begin with the time, as X-Ray asks.
    Xray,
}

impl Inject {
    /// The family that it belongs to.
    pub fn format(self) -> Format {
        match self {
            Inject::W3c => Format::W3c,
            Inject::B3 | Inject::B3Single => Format::B3,
            Inject::Jaeger => Format::Jaeger,
            Inject::Datadog => Format::Datadog,
            Inject::Xray => Format::Xray,
        }
    }
}

/// What happens to a request without `x-request-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum RequestId {
    /// Nothing.
    Off,
    /// It gets a random UUID.
    V4,
    /// It gets a UUID that begins with the time.
    V7,
}

/// How traces that begin here are sampled.
#[derive(Clone, Debug, Default)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Sampling {
    /// The rule.
    pub root: RootSampler,
    /// The share that is recorded, with `root: ratio` and only then.
    pub ratio: Option<Ratio>,
}

kit::fields!(Sampling { root, ratio });

/// The rule for a trace that begins here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum RootSampler {
    /// All of them.
    #[default]
    AlwaysOn,
    /// None of them.
    AlwaysOff,
    /// A share, by the trace id alone, so that every proxy decides alike.
    Ratio,
}

/// What a caller's trace context is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// It is continued.
    Accept,
    /// It is dropped, and a new trace begins.
    Restart,
    /// A new trace begins, and the caller's is in filter state `wasm.trace_link`.
    Link,
}

/// When to look for a context of the proxy's own tracer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum FollowTracer {
    /// At each of a worker's first 256 requests, and if none had one, at every 16th from then on; once one had one, at
    /// each. A tracer writes into every request of its listener, sampled or not, so it is found at the first.
    Auto,
    /// At every request.
    Always,
    /// Not at all: there is no tracer, or what it writes does not matter.
    Never,
}

/// What the caller is told.
#[derive(Clone, Debug, Default)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Response {
    /// Name of a response header for the trace id, such as `x-trace-id`.
    pub trace_id_header: Option<HeaderName>,
    /// `server-timing: trace;desc="<trace id>", traceparent;desc="00-…"`, which browsers hand to scripts.
    pub server_timing: bool,
    /// `traceresponse: 00-<trace id>-<span id>-<flags>`.
    pub traceresponse: bool,
}

kit::fields!(Response { trace_id_header, server_timing, traceresponse });

/// Joining by a forwarded header.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Join {
    /// The header that the application forwards, at most 128 bytes of value.
    pub header: HeaderName,
    /// How many requests are remembered, over all workers; a newer one takes the place of an older.
    pub entries: Bounded<16, 65_536>,
    /// For how long: 100ms to 1h.
    pub ttl: Duration,
}

kit::fields!(Join { header, entries, ttl });

impl Default for Join {
    fn default() -> Self {
        Self {
            header: HeaderName::REQUEST_ID,
            entries: Bounded::new(4096).unwrap_or(Bounded::LEAST),
            ttl: Duration::from_ms(60_000),
        }
    }
}
