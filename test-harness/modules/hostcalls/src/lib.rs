//! Makes the hostcalls that it is told to and does nothing with what they say: what each costs, and what all of those that
//! a filter needs cost without the filter.
#![no_std]

use kit::{Body, Context, Filter, Flow, Headers, Map, Metric, MetricKind, Pass, Phases, Refusal};

static COUNTER: Metric =
    Metric { kind: MetricKind::Counter, name: "hostcalls_total", help: Metric::help("Calls."), labels: &[] };
static HISTOGRAM: Metric =
    Metric { kind: MetricKind::Histogram, name: "hostcalls_values", help: Metric::help("Values."), labels: &[] };

/// The filter.
#[derive(Debug)]
pub struct Hostcalls(Config);

/// How often each is called, by phase.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// With the request's headers.
    pub request: Calls,
    /// With the response's headers.
    pub response: Calls,
    /// With each part of the response's body.
    pub response_body: Calls,
    /// With the log.
    pub log: Calls,
}

/// How often.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calls {
    /// `proxy_get_current_time_nanoseconds`.
    pub clock: u8,
    /// `proxy_get_header_map_pairs` of the request.
    pub request_pairs: u8,
    /// The same of the response.
    pub response_pairs: u8,
    /// `proxy_get_header_map_value` of one that is there.
    pub header: u8,
    /// The same of one that is not.
    pub header_missing: u8,
    /// `proxy_replace_header_map_value`, `traceparent`.
    pub set_header: u8,
    /// `proxy_get_property` of a number: the listener's direction.
    pub number: u8,
    /// The same of a text: the route's name, empty where it has none.
    pub name: u8,
    /// The same of one without a value: the time for a connection of the pool, where there is no upstream.
    pub missing: u8,
    /// `proxy_set_property`, each of another key of its phase.
    pub state: u8,
    /// `proxy_set_property` of the first key again.
    pub state_again: u8,
    /// `proxy_increment_metric`.
    pub count: u8,
    /// `proxy_record_metric`.
    pub record: u8,
    /// `proxy_get_metric`.
    pub read_count: u8,
}

/// As long as those of the filters.
const KEYS: [&str; 12] = [
    "trace_id",
    "span_id",
    "trace_sampled",
    "start_time_ns",
    "latency.total_us",
    "latency.ttfb_us",
    "scrub.path",
    "scrub.query",
    "scrub.referer",
    "scrub.user_agent",
    "circuit.decision",
    "circuit.resource",
];

impl Hostcalls {
    fn call(&self, calls: Calls, first_key: usize, cx: &mut Context<'_, Self>) {
        let host = cx.host;
        let times = |count: u8, call: &dyn Fn()| (0..count).for_each(|_| call());
        times(calls.clock, &|| _ = host.now_ns());
        times(calls.request_pairs, &|| _ = host.header_pairs(Map::Request));
        times(calls.response_pairs, &|| _ = host.header_pairs(Map::Response));
        times(calls.header, &|| _ = host.header(Map::Request, ":method"));
        times(calls.header_missing, &|| _ = host.header(Map::Request, "x-circuit-fallback"));
        times(calls.number, &|| _ = host.property(&["xds", "listener_direction"]));
        times(calls.name, &|| _ = host.property(&["xds", "route_name"]));
        times(calls.missing, &|| _ = host.property(&["upstream", "cx_pool_ready_duration"]));
        for key in KEYS.iter().skip(first_key).take(calls.state.into()) {
            let _ = host.set_filter_state(key, b"0af7651916cd43dd");
        }
        times(calls.state_again, &|| _ = host.set_filter_state("trace_id", b"0af7651916cd43dd"));
        let labels = cx.metrics.labels(&[]);
        (0..calls.count).for_each(|_| cx.metrics.add_to(host, &COUNTER, labels, 1));
        (0..calls.record).for_each(|_| cx.metrics.record_to(host, &HISTOGRAM, labels, 1));
        (0..calls.read_count).for_each(|_| _ = cx.metrics.value_of(host, &COUNTER, labels));
        let traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        times(calls.set_header, &|| _ = host.replace_header(Map::Request, b"traceparent", traceparent));
    }
}

impl Filter for Hostcalls {
    const NAME: &'static str = "hostcalls";
    const PHASES: Phases =
        Phases::REQUEST_HEADERS.and(Phases::RESPONSE_HEADERS).and(Phases::RESPONSE_BODY).and(Phases::LOG);
    type Config = Config;
    type State = ();
    type Stream = ();

    fn new(config: Config) -> Result<Self, Refusal> {
        Ok(Self(config))
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, _: &mut Headers<'_>) -> Flow {
        self.call(self.0.request, 0, cx);
        Flow::Continue
    }

    fn response_headers(&self, cx: &mut Context<'_, Self>, _: &mut Headers<'_>) -> Flow {
        self.call(self.0.response, 0, cx);
        Flow::Continue
    }

    fn response_body(&self, cx: &mut Context<'_, Self>, _: &Body<'_>) -> Pass {
        self.call(self.0.response_body, 0, cx);
        Pass::On
    }

    fn log(&self, cx: &mut Context<'_, Self>, _: &Headers<'_>, _: &Headers<'_>) {
        self.call(self.0.log, self.0.request.state.into(), cx);
    }
}

kit::export!(Hostcalls);
