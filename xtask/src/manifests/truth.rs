//! What the manifests say: of each filter where it stands, what it is told, and why. Everything else is form.

use anyhow::{Context as _, Result};
use kit::{Filter, Metric};
use schemars::JsonSchema;
use serde_json::{Value, json};

/// What the filters' own copies of an access log, and where Istio's resources of the mesh, are applied.
pub(crate) const ROOT_NAMESPACE: &str = "istio-system";

/// The source of thresholds: a Service of that name in that namespace.
pub(crate) const SOURCE: (&str, &str) = ("thresholds", "mesh-filters");

/// The access log's provider, in the mesh's configuration and in the Telemetry that chooses it.
pub(crate) const LOG: &str = "clean-access-log";

/// Where the proxy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Sidecar,
    Gateway,
    Waypoint,
}

impl Place {
    pub(crate) const ALL: [Self; 3] = [Self::Sidecar, Self::Gateway, Self::Waypoint];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Gateway => "gateway",
            Self::Waypoint => "waypoint",
        }
    }
}

/// Which requests of a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Those that come in, and those that the workload makes.
    Both,
    /// Those that the workload makes.
    Client,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Both => "CLIENT_AND_SERVER",
            Self::Client => "CLIENT",
        }
    }
}

/// Where in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// In the phase AUTHN, with this priority.
    First(i32),
    /// Next to the router.
    Last,
}

/// A module and all that its manifests say.
pub(crate) struct Deployed {
    pub(crate) name: &'static str,
    /// `{"trace_id": …}`: as the chart's values and the suite call it.
    pub(crate) key: String,
    pub(crate) does: &'static str,
    pub(crate) position: Position,
    /// Why there.
    pub(crate) why_there: &'static str,
    pub(crate) mode: Mode,
    pub(crate) why_mode: &'static str,
    pub(crate) when_missing: &'static str,
    configuration: fn(Place) -> Value,
    pub(crate) metrics: Vec<&'static Metric>,
    pub(crate) schema: Value,
}

impl Deployed {
    fn of<F: Filter<Config: JsonSchema>>(
        name: &'static str,
        does: &'static str,
        (position, why_there): (Position, &'static str),
        (mode, why_mode): (Mode, &'static str),
        when_missing: &'static str,
        configuration: fn(Place) -> Value,
    ) -> Result<Self> {
        let schema = serde_json::to_value(schemars::schema_for!(F::Config)).with_context(|| name.to_owned())?;
        Ok(Self {
            name,
            key: name.replace('-', "_"),
            does,
            position,
            why_there,
            mode,
            why_mode,
            when_missing,
            configuration,
            metrics: F::metrics(),
            schema,
        })
    }

    pub(crate) fn configuration(&self, place: Place) -> Value {
        (self.configuration)(place)
    }

    /// Whether it asks the source of thresholds.
    pub(crate) fn asks(&self) -> bool {
        self.configuration(Place::Sidecar).to_string().contains(&cluster())
    }

    /// The labels of its metrics.
    pub(crate) fn tags(&self) -> Vec<&'static str> {
        let mut tags: Vec<&str> = self.metrics.iter().flat_map(|metric| metric.labels).copied().collect();
        tags.sort_unstable();
        tags.dedup();
        tags
    }

    /// The histograms' buckets, by the beginnings of names, of those that it has.
    pub(crate) fn buckets(&self) -> Value {
        let has = |prefix: &str| self.metrics.iter().any(|metric| metric.name.starts_with(prefix));
        let all = [
            // Milliseconds of requests.
            ("meshfilter_request_duration_", json!([5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000])),
            ("meshfilter_request_first_byte_", json!([5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000])),
            // Microseconds of filters.
            ("meshfilter_filters_", json!([10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000])),
        ];
        let own = all.into_iter().filter(|(prefix, _)| has(prefix));
        own.map(|(prefix, buckets)| (format!("wasmcustom.{prefix}"), buckets)).collect()
    }
}

/// The source's cluster, as Istio names it.
pub(crate) fn cluster() -> String {
    format!("outbound|80||{}", host(SOURCE.1))
}

/// The source's host, in that namespace.
pub(crate) fn host(namespace: &str) -> String {
    format!("{}.{namespace}.svc.cluster.local", SOURCE.0)
}

fn trace_id(place: Place) -> Value {
    match place {
        // The edge: what strangers say of traces is not continued, and callers learn the id to ask for.
        Place::Gateway => {
            json!({ "inject": ["w3c"], "response": { "trace_id_header": "x-trace-id" }, "trust": "restart" })
        }
        Place::Sidecar | Place::Waypoint => json!({ "inject": ["w3c"] }),
    }
}

fn latency(_: Place) -> Value {
    json!({
        "labels": ["direction", "protocol", "method", "code", "grpc_status", "failure"],
        "slo": [{ "name": "fast", "within": "250ms" }],
    })
}

fn log_scrub(_: Place) -> Value {
    json!({
        "outputs": {
            "authority": true,
            "method": true,
            "request_headers": ["x-request-id"],
            "response_headers": ["location", "grpc-message"],
        },
    })
}

fn circuit_breaker(_: Place) -> Value {
    json!({ "rules": [], "source": { "cluster": cluster(), "interval": "5s", "path": "/rules" } })
}

fn suite(place: Place) -> Value {
    json!({
        "circuit_breaker": circuit_breaker(place),
        "latency": latency(place),
        "log_scrub": log_scrub(place),
        "trace_id": trace_id(place),
    })
}

const BOTH: &str = "What comes in and what the workload calls.";

/// All modules, in the order in which they stand in a chain; the suite, which is all of them, at the end.
pub(crate) fn all() -> Result<Vec<Deployed>> {
    Ok(vec![
        Deployed::of::<trace_id::TraceId>(
            "trace-id",
            "gives every request a valid trace context",
            (
                Position::First(1000),
                "As early as can be, so that all filters behind see the context, and their replies are logged with it.",
            ),
            (Mode::Both, BOTH),
            "requests keep the trace context that they came with, and logs have no ids",
            trace_id,
        )?,
        Deployed::of::<latency::Latency>(
            "latency",
            "says where the time of a request went",
            (
                Position::First(900),
                "Early, to see all of the time; behind trace-id, whose start it takes, and which takes microseconds.",
            ),
            (Mode::Both, "What comes in and what the workload calls: the label `direction` tells them apart."),
            "nothing is measured",
            latency,
        )?,
        Deployed::of::<log_scrub::LogScrub>(
            "log-scrub",
            "leaves clean copies of requests for logs",
            (
                Position::First(800),
                "Before what may answer by itself: a filter that answers first keeps it from seeing bodies.",
            ),
            (Mode::Both, BOTH),
            "the clean access log has empty fields, never raw ones",
            log_scrub,
        )?,
        Deployed::of::<circuit_breaker::CircuitBreaker>(
            "circuit-breaker",
            "stops sending requests to an upstream that is slow or failing",
            (
                Position::Last,
                "Late: behind authentication and authorization, so that who is not allowed in is no probe, and what they answer is \
                 not taken for the upstream's.",
            ),
            (Mode::Client, "What the workload calls: breakers stand before upstreams."),
            "nothing is broken, every request goes upstream",
            circuit_breaker,
        )?,
        Deployed::of::<suite::Suite>(
            "suite",
            "is trace-id, latency, log-scrub and circuit-breaker in one module",
            (
                Position::Last,
                "Late, for the breaker in it: what the mesh's own filters turn away has no trace of it and is in no numbers. Where that \
                 counts, take the filters one by one.",
            ),
            (
                Mode::Both,
                "What comes in and what the workload calls; so the breaker stands before the workload itself too.",
            ),
            "it is as if none of the four were there",
            suite,
        )?,
    ])
}

/// The fields of the clean access log: what the proxy itself knows, and clean copies. Nothing that a client or an
/// upstream wrote is printed raw: no `REQ()`, no `RESP()`, no path, no address.
pub(crate) fn log_fields() -> Value {
    let state = |name: &str| Value::from(format!("%FILTER_STATE(wasm.{name}:PLAIN)%"));
    let fields = [
        ("start", "%START_TIME%".into()),
        ("trace_id", state("trace_id")),
        ("span_id", state("span_id")),
        ("trace_sampled", state("trace_sampled")),
        ("method", state("scrub.method")),
        ("host", state("scrub.authority")),
        ("path", state("scrub.path")),
        ("query", state("scrub.query")),
        ("protocol", "%PROTOCOL%".into()),
        ("referer", state("scrub.referer")),
        ("user_agent", state("scrub.user_agent")),
        ("request_id", state("scrub.header.x-request-id")),
        ("status", "%RESPONSE_CODE%".into()),
        ("flags", "%RESPONSE_FLAGS%".into()),
        ("details", "%RESPONSE_CODE_DETAILS%".into()),
        ("location", state("scrub.response_header.location")),
        ("grpc_message", state("scrub.response_header.grpc-message")),
        ("bytes_received", "%BYTES_RECEIVED%".into()),
        ("bytes_sent", "%BYTES_SENT%".into()),
        ("total_us", state("latency.total_us")),
        ("first_byte_us", state("latency.ttfb_us")),
        ("upstream_us", state("latency.upstream_us")),
        ("pool_us", state("latency.pool_us")),
        ("proxy_us", state("latency.proxy_us")),
        ("attempts", state("latency.attempts")),
        ("circuit_decision", state("circuit.decision")),
        ("circuit_rule", state("circuit.rule")),
        ("circuit_state", state("circuit.state")),
        ("circuit_version", state("circuit.version")),
        ("upstream_cluster", "%UPSTREAM_CLUSTER%".into()),
        ("route", "%ROUTE_NAME%".into()),
    ];
    fields.into_iter().map(|(field, operator)| (field.to_owned(), operator)).collect()
}
