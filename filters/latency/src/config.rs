//! What the operator says.

use kit::config::{Bounded, Duration, Ratio};
use kit::prelude::*;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of latency. Every field may be left out.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct Config {
    /// Where in the chain the filter stands. `outer` first and `inner` last in one chain give the time that the filters
    /// between them take; an `inner` does nothing else.
    pub role: Role,
    /// Labels of the metrics.
    #[cfg_attr(feature = "schema", schemars(extend("uniqueItems" = true)))]
    pub labels: Vec<Label>,
    /// How the label `code` says the status: `2xx`, or `200`.
    pub code: Code,
    /// Unit of the histograms, and the last word of their names. The proxy's own buckets suit milliseconds.
    pub unit: Unit,
    /// Most series of this module in one worker; one more per metric, `overflow`, takes the rest. The least of what the
    /// plugins of one VM say.
    pub max_series: Bounded<10, 100_000>,
    /// What is left for access logs.
    pub properties: Properties,
    /// Counts the bytes of bodies and connections as well.
    pub bytes: bool,
    /// Requests that are not measured, such as health checks.
    pub exclude: Exclude,
    /// Paths, by their beginnings and as clients sent them, whose requests are streams although nothing in them says so,
    /// such as `/watch`. WebSockets, server-sent events and gRPC calls of several messages are known by themselves.
    pub streams: Vec<String>,
    /// Objectives: how many requests were good, and how many there were.
    pub slo: Vec<Objective>,
    /// The T of Apdex: satisfied up to T, tolerating up to 4 T.
    pub apdex: Option<Duration>,
    /// Tells the caller how long it took to the first byte of the response: `server-timing: ttfb;dur=<milliseconds>`.
    pub server_timing: bool,
}

kit::fields!(Config {
    role,
    labels,
    code,
    unit,
    max_series,
    properties,
    bytes,
    exclude,
    streams,
    slo,
    apdex,
    server_timing
});

impl Default for Config {
    fn default() -> Self {
        Self {
            role: Role::Alone,
            labels: vec![
                Label::Direction,
                Label::Protocol,
                Label::Method,
                Label::Code,
                Label::GrpcStatus,
                Label::Route,
            ],
            code: Code::Class,
            unit: Unit::Ms,
            max_series: Bounded::new(1000).unwrap_or(Bounded::LEAST),
            properties: Properties::default(),
            bytes: false,
            exclude: Exclude::default(),
            streams: Vec::new(),
            slo: Vec::new(),
            apdex: None,
            server_timing: false,
        }
    }
}

/// A place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The only one.
    Alone,
    /// First, with an `inner` further on.
    Outer,
    /// Last, with an `outer` before it.
    Inner,
}

/// A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// `inbound` or `outbound`, where the listener says it.
    Direction,
    /// `http`, `grpc`, `websocket` or `tcp`.
    Protocol,
    /// `GET` and the other registered methods, else `OTHER`.
    Method,
    /// The status, as the field `code` says it.
    Code,
    /// The status of gRPC, 0 to 16, else `other`; in gRPC alone.
    GrpcStatus,
    /// Why it failed, in a word: `timeout`, `no_upstream`, `upstream_reset`, `client_gone`, `no_route`, `limited`, `retries`, `local`.
    Failure,
    /// The route's name.
    Route,
    /// The cluster's name.
    Cluster,
}

/// How a status is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// `2xx`.
    Class,
    /// `200`.
    Exact,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
}

/// What is left for access logs.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Properties {
    /// Of how many requests.
    pub sample: Ratio,
    /// All of them once more, as one JSON text.
    pub json: bool,
}

kit::fields!(Properties { sample, json });

impl Default for Properties {
    fn default() -> Self {
        Self { sample: Ratio::ALL, json: false }
    }
}

/// Requests that are not measured.
#[derive(Clone, Debug, Default)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Exclude {
    /// By the beginnings of their paths, as clients sent them.
    pub paths: Vec<String>,
    /// By the names of their routes.
    pub routes: Vec<String>,
}

kit::fields!(Exclude { paths, routes });

/// A service level objective.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(deny_unknown_fields)]
pub struct Objective {
    /// The label `objective`: up to 64 bytes, without `;`, `=` and control characters.
    pub name: String,
    /// A request is good when it did not fail and took no longer.
    pub within: Duration,
}
