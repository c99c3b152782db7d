//! Says where the time of a request went.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod config;
mod messages;
pub mod outcome;

use config::{Code, Config, Label, Role, Unit};
use core::cell::OnceCell;
use kit::prelude::*;
use kit::{Body, Context, Filter, Flow, Headers, Host, Labels, Metric, MetricKind, Pass, Phases, Refusal};
use messages::Messages;
use outcome::Protocol;

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident $kind:ident $text:literal $help:literal $labels:expr;)+) => {
        $($(#[$doc])* pub static $name: Metric =
            Metric { kind: MetricKind::$kind, name: $text, help: Metric::help($help), labels: $labels };)+
        const ALL: &[&Metric] = &[$(&$name),+];
    };
}

/// The labels that configuration chooses from, in the order of the series' names.
const LABELS: &[&str] = &["direction", "protocol", "method", "code", "grpc_status", "failure", "route", "cluster"];
/// The labels of what is under way: known from the first moment.
const UNDER_WAY: &[&str] = &["direction"];

metrics! {
    /// Of requests that are no streams.
    DURATION_MS Histogram "meshfilter_request_duration_millis"
        "Time from a request's headers to its end, without streams." LABELS;
    /// The same, the finer unit.
    DURATION_US Histogram "meshfilter_request_duration_micros"
        "Time from a request's headers to its end, without streams." LABELS;
    /// Of requests and streams.
    TTFB_MS Histogram "meshfilter_request_first_byte_millis"
        "Time from a request's headers to its response's headers, streams included." LABELS;
    /// The same, the finer unit.
    TTFB_US Histogram "meshfilter_request_first_byte_micros"
        "Time from a request's headers to its response's headers, streams included." LABELS;
    /// WebSockets, server-sent events and what configuration calls a stream.
    STREAM_MS Histogram "meshfilter_stream_duration_millis" "How long streams lived." LABELS;
    /// The same, the finer unit.
    STREAM_US Histogram "meshfilter_stream_duration_micros" "How long streams lived." LABELS;
    /// TCP.
    CONNECTION_MS Histogram "meshfilter_connection_duration_millis" "How long TCP connections were open." LABELS;
    /// The same, the finer unit.
    CONNECTION_US Histogram "meshfilter_connection_duration_micros" "How long TCP connections were open." LABELS;
    /// Between an outer and an inner instance.
    FILTERS_US Histogram "meshfilter_filters_duration_micros"
        "Time that a request and its response's headers took through the filters between role outer and role inner."
        UNDER_WAY;
    /// Under way.
    IN_FLIGHT Gauge "meshfilter_requests_in_flight" "Requests and streams that began and have not ended." UNDER_WAY;
    /// Under way.
    OPEN Gauge "meshfilter_connections_open" "TCP connections that are open." UNDER_WAY;
    /// Begun.
    STARTED Counter "meshfilter_requests_started_total" "Requests and streams that began." UNDER_WAY;
    /// Ended.
    FINISHED Counter "meshfilter_requests_finished_total" "Requests and streams that ended, resets included." LABELS;
    /// Begun.
    ACCEPTED Counter "meshfilter_connections_started_total" "TCP connections that were accepted." UNDER_WAY;
    /// Ended.
    CLOSED Counter "meshfilter_connections_finished_total" "TCP connections that were closed." LABELS;
    /// Upwards.
    REQUEST_BYTES Counter "meshfilter_request_bytes_total" "Bytes from clients, headers included." LABELS;
    /// Downwards.
    RESPONSE_BYTES Counter "meshfilter_response_bytes_total" "Bytes to clients, headers included." LABELS;
    /// Objectives.
    SLO Counter "meshfilter_slo_requests_total" "Requests, streams left out, by objective." &["objective"];
    /// Objectives.
    SLO_GOOD Counter "meshfilter_slo_good_requests_total"
        "Requests that did not fail and were within their objective's time." &["objective"];
    /// Apdex.
    APDEX Counter "meshfilter_apdex_requests_total"
        "Requests by what their user felt: satisfied up to T, tolerating up to 4 T, frustrated beyond or failed."
        &["feeling"];
}

/// The filter.
#[derive(Debug)]
pub struct Latency {
    config: Config,
    /// By [`LABELS`]: whether configuration chose it.
    chosen: [bool; LABELS.len()],
    /// The series of Apdex: all of them are there when one is, so that their shares are numbers.
    feelings: OnceCell<[Labels; 3]>,
}

/// What is kept of a request or connection.
#[derive(Debug, Default)]
pub struct Stream {
    /// When it began; 0: nobody told.
    start_ns: u64,
    /// When the response's headers came.
    first_ns: u64,
    /// Its gauge, until it has ended.
    under_way: Option<Labels>,
    tcp: bool,
    /// Of its listener, of which several may share a plugin.
    direction: Option<&'static str>,
    seen: Option<Seen>,
    /// Of gRPC: the client's, the server's.
    messages: [Messages; 2],
}

/// What a request's headers say, as they came to the filter: routes write paths over.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    method: &'static str,
    grpc: bool,
    left_out: bool,
    /// By configuration.
    stream: bool,
}

/// When the request began, which trace-id says as well.
const START_TIME: &str = "start_time_ns";

/// Where the inner instance leaves the times of request and response for the outer one.
const INNER: &str = "latency.inner_ns";

impl Filter for Latency {
    const NAME: &'static str = "latency";
    const SHARED: &'static [&'static str] = &[START_TIME];
    const PHASES: Phases = Phases::REQUEST_HEADERS
        .and(Phases::REQUEST_BODY)
        .and(Phases::RESPONSE_HEADERS)
        .and(Phases::RESPONSE_BODY)
        .and(Phases::LOG)
        .and(Phases::CONNECTION);
    type Config = Config;
    type State = ();
    type Stream = Stream;

    fn new(config: Config) -> Result<Self, Refusal> {
        let mut chosen = [false; LABELS.len()];
        for (index, label) in config.labels.iter().enumerate() {
            let place = chosen.get_mut(place(*label));
            if let Some(place) = place
                && core::mem::replace(place, true)
            {
                return Err(Refusal::at(&format!("labels[{index}]"), "stands there twice, take one out"));
            }
        }
        for (index, objective) in config.slo.iter().enumerate() {
            let at = |field: &str| format!("slo[{index}].{field}");
            if objective.name.is_empty() {
                return Err(Refusal::at(&at("name"), "is empty, give what the label `objective` is to say"));
            }
            // Two that are one label would count into one series.
            if objective.name.len() > 64 || objective.name.contains(|c: char| matches!(c, ';' | '=') || c.is_control())
            {
                return Err(Refusal::at(
                    &at("name"),
                    "does not fit into a label, give up to 64 bytes without `;`, `=` and control characters",
                ));
            }
            if objective.name == kit::OVERFLOW {
                return Err(Refusal::at(&at("name"), "is what stands for all that is over `max_series`, give another"));
            }
            if config.slo.iter().take(index).any(|earlier| earlier.name == objective.name) {
                return Err(Refusal::at(&at("name"), "stands there twice, give each objective its own"));
            }
            if objective.within.ms() == 0 {
                return Err(Refusal::at(&at("within"), "is zero, give a duration such as \"250ms\""));
            }
        }
        if config.apdex.is_some_and(|t| t.ms() == 0) {
            return Err(Refusal::at("apdex", "is zero, give a duration such as \"100ms\""));
        }
        let idle = [
            ("slo", !config.slo.is_empty()),
            ("apdex", config.apdex.is_some()),
            ("bytes", config.bytes),
            ("server_timing", config.server_timing),
        ];
        if config.role == Role::Inner
            && let Some((name, _)) = idle.iter().find(|(_, given)| *given)
        {
            return Err(Refusal::at(name, "does nothing with role inner, give it to the outer one"));
        }
        let lists = [
            ("exclude.paths", &config.exclude.paths),
            ("exclude.routes", &config.exclude.routes),
            ("streams", &config.streams),
        ];
        for (name, list) in lists {
            if let Some(index) = list.iter().position(String::is_empty) {
                return Err(Refusal::at(&format!("{name}[{index}]"), "is empty and would mean all, take it out"));
            }
        }
        Ok(Self { config, chosen, feelings: OnceCell::new() })
    }

    fn max_series(&self) -> Option<usize> {
        match self.config.role {
            Role::Inner => None,
            Role::Alone | Role::Outer => usize::try_from(self.config.max_series.get()).ok(),
        }
    }

    fn metrics() -> Vec<&'static Metric> {
        ALL.to_vec()
    }

    fn connection(&self, cx: &mut Context<'_, Self>) {
        cx.stream.tcp = true;
        cx.stream.start_ns = cx.now_ns();
        if self.config.role != Role::Inner {
            self.begin(cx, &ACCEPTED, &OPEN);
        }
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        let now_ns = cx.now_ns();
        if self.config.role != Role::Inner {
            let seen = self.see(headers);
            cx.stream.seen = Some(seen);
            if seen.left_out {
                return Flow::Continue;
            }
            self.begin(cx, &STARTED, &IN_FLIGHT);
        }
        cx.stream.start_ns = now_ns;
        Flow::Continue
    }

    fn request_body(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) -> Pass {
        if cx.stream.seen.is_some_and(|seen| seen.grpc) {
            let [messages, _] = &mut cx.stream.messages;
            messages.pass(body);
        }
        Pass::On
    }

    fn response_body(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) -> Pass {
        if cx.stream.seen.is_some_and(|seen| seen.grpc) {
            let [_, messages] = &mut cx.stream.messages;
            messages.pass(body);
        }
        Pass::On
    }

    fn response_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        let now_ns = cx.now_ns();
        if self.config.role == Role::Inner {
            let times = [cx.stream.start_ns.to_le_bytes(), now_ns.to_le_bytes()].concat();
            let _ = cx.host.set_filter_state(INNER, &times);
        }
        cx.stream.first_ns = now_ns;
        if self.config.server_timing && cx.stream.start_ns != 0 {
            // Milliseconds with a fraction, as the header has them (Server Timing, 3).
            let us = us(now_ns.saturating_sub(cx.stream.start_ns));
            let text = format!("ttfb;dur={}.{:03}", us / 1000, us % 1000);
            headers.add("server-timing", text.as_bytes());
        }
        Flow::Continue
    }

    fn log(&self, cx: &mut Context<'_, Self>, request: &Headers<'_>, response: &Headers<'_>) {
        if self.config.role == Role::Inner {
            return;
        }
        if let Some(labels) = cx.stream.under_way.take() {
            cx.metrics.add_to(cx.host, if cx.stream.tcp { &OPEN } else { &IN_FLIGHT }, labels, -1);
        }
        let now_ns = cx.now_ns();
        if cx.stream.tcp {
            self.log_connection(cx, now_ns);
        } else {
            self.log_request(cx, request, response, now_ns);
        }
    }
}

/// Where a label stands in [`LABELS`].
fn place(label: Label) -> usize {
    match label {
        Label::Direction => 0,
        Label::Protocol => 1,
        Label::Method => 2,
        Label::Code => 3,
        Label::GrpcStatus => 4,
        Label::Failure => 5,
        Label::Route => 6,
        Label::Cluster => 7,
    }
}

/// Whole microseconds.
fn us(ns: u64) -> u64 {
    ns / 1000
}

/// Parts of a request's time, in microseconds; what is not known is not there.
#[derive(Clone, Copy, Default)]
struct Parts {
    start_ns: u64,
    total: u64,
    first_byte: Option<u64>,
    upstream: Option<u64>,
    pool: Option<u64>,
    attempts: Option<u64>,
}

impl Latency {
    fn chose(&self, label: Label) -> bool {
        self.chosen.get(place(label)).copied().unwrap_or(false)
    }

    fn direction(&self, cx: &mut Context<'_, Self>) -> &'static str {
        if !self.chose(Label::Direction) {
            return "";
        }
        cx.stream.direction.get_or_insert_with(|| match cx.host.number(&["xds", "listener_direction"]) {
            Some(1) => "inbound",
            Some(2) => "outbound",
            _ => "",
        })
    }

    fn begin(&self, cx: &mut Context<'_, Self>, started: &'static Metric, under_way: &'static Metric) {
        let direction = self.direction(cx);
        let labels = cx.metrics.labels(&[direction]);
        cx.metrics.add_to(cx.host, started, labels, 1);
        cx.metrics.add_to(cx.host, under_way, labels, 1);
        cx.stream.under_way = Some(labels);
    }

    fn log_connection(&self, cx: &mut Context<'_, Self>, now_ns: u64) {
        let failure = self.failure(cx.host, false);
        let cluster = self.name(cx.host, Label::Cluster);
        let direction = self.direction(cx);
        let chosen = |label, value| if self.chose(label) { value } else { "" };
        let labels = cx.metrics.labels(&[
            direction,
            chosen(Label::Protocol, Protocol::Tcp.name()),
            "",
            "",
            "",
            chosen(Label::Failure, failure),
            "",
            &cluster,
        ]);
        let published = self.published(cx);
        let parts = self.parts(cx, now_ns, published, true);
        cx.metrics.add_to(cx.host, &CLOSED, labels, 1);
        self.record(cx, labels, [&CONNECTION_MS, &CONNECTION_US], parts.total);
        self.count_bytes(cx, labels);
        if published {
            self.publish(cx, parts, None);
        }
    }

    fn log_request(&self, cx: &mut Context<'_, Self>, request: &Headers<'_>, response: &Headers<'_>, now_ns: u64) {
        // A filter in front may have answered: then it is seen only now.
        let Seen { method, grpc, left_out, stream: told } = cx.stream.seen.unwrap_or_else(|| self.see(request));
        if left_out {
            return;
        }
        let route = self.name(cx.host, Label::Route);
        if self.config.exclude.routes.iter().any(|name| name.as_bytes() == route.as_bytes()) {
            return;
        }
        let status = outcome::status(response);
        let protocol = Protocol::of(method, grpc, status);
        let stream = told
            || protocol == Protocol::Websocket
            || outcome::streams(response)
            || cx.stream.messages.iter().any(Messages::many);
        let answered = protocol != Protocol::Grpc && status.is_some_and(|status| status < 500);
        let published = self.published(cx);
        // Also for what is not published: whether a filter answered, and whether the upstream's response was cut off.
        let asked = published || self.config.role == Role::Outer || self.judges();
        let parts = self.parts(cx, now_ns, asked, !answered);
        let grpc = if protocol == Protocol::Grpc { cx.host.number(&["response", "grpc_status"]) } else { None };
        let failure = self.failure(cx.host, parts.upstream.is_none());

        let code = match self.config.code {
            Code::Class => String::new(),
            Code::Exact => status.map(outcome::digits).unwrap_or_default(),
        };
        let code = match self.config.code {
            Code::Class => outcome::class(status),
            Code::Exact => &code,
        };
        let grpc_status = grpc.map(outcome::grpc_status).unwrap_or_default();
        let cluster = self.name(cx.host, Label::Cluster);
        let direction = self.direction(cx);
        let chosen = |label, value| if self.chose(label) { value } else { "" };
        let labels = cx.metrics.labels(&[
            direction,
            chosen(Label::Protocol, protocol.name()),
            chosen(Label::Method, method),
            chosen(Label::Code, code),
            chosen(Label::GrpcStatus, &grpc_status),
            chosen(Label::Failure, failure),
            chosen(Label::Route, &route),
            &cluster,
        ]);
        cx.metrics.add_to(cx.host, &FINISHED, labels, 1);
        let durations = if stream { [&STREAM_MS, &STREAM_US] } else { [&DURATION_MS, &DURATION_US] };
        self.record(cx, labels, durations, parts.total);
        if let Some(first_byte) = parts.first_byte {
            self.record(cx, labels, [&TTFB_MS, &TTFB_US], first_byte);
        }
        self.count_bytes(cx, labels);
        if !stream {
            let unanswered = status.is_none() && failure == outcome::CLIENT_GONE;
            self.judge(cx, parts.total, outcome::failed(status, grpc, failure), unanswered);
        }
        let filters = self.filters(cx, &parts);
        if published {
            self.publish(cx, parts, filters);
        }
    }

    fn see(&self, request: &Headers<'_>) -> Seen {
        let begins = |list: &[String]| {
            let any = |path: &[u8]| list.iter().any(|beginning| path.starts_with(beginning.as_bytes()));
            !list.is_empty() && request.look(":path", |path| path.is_some_and(any))
        };
        if begins(&self.config.exclude.paths) {
            return Seen { left_out: true, ..Seen::default() };
        }
        let method = request.look(":method", outcome::method);
        // gRPC's are all POST.
        let grpc = method == "POST" && request.look("content-type", |value| value.is_some_and(outcome::grpc));
        Seen { method, grpc, left_out: false, stream: begins(&self.config.streams) }
    }

    /// A name that the proxy gave, where it is a label or is asked for.
    fn name(&self, host: &dyn Host, label: Label) -> String {
        let asked = label == Label::Route && !self.config.exclude.routes.is_empty();
        if !asked && !self.chose(label) {
            return String::new();
        }
        let attribute = if label == Label::Route { "route_name" } else { "cluster_name" };
        let name = host.property(&["xds", attribute]).map(|name| name.to_vec()).unwrap_or_default();
        String::from_utf8(name).unwrap_or_default()
    }

    /// Whether it says something why a request failed: as a label, or for an objective.
    fn judges(&self) -> bool {
        self.chose(Label::Failure) || !self.config.slo.is_empty() || self.config.apdex.is_some()
    }

    /// Whether this is one of the requests that are to be logged.
    fn published(&self, cx: &mut Context<'_, Self>) -> bool {
        let share = self.config.properties.sample;
        share.get() >= 1.0 || cx.rng.share(share)
    }

    /// Why it failed. `cut`: the upstream's response did not come
    /// to its end, or there was none.
    fn failure(&self, host: &dyn Host, cut: bool) -> &'static str {
        if !self.judges() {
            return "";
        }
        match host.number(&["response", "flags"]) {
            // The longest duration of a stream, a gRPC deadline among them, and the time that a client has to send its
            // request end without a flag.
            Some(0) if cut => match host.property(&["response", "code_details"]) {
                Ok(details) if matches!(&*details, b"max_duration_timeout" | b"request_overall_timeout") => {
                    outcome::TIMEOUT
                }
                _ => "",
            },
            flags => flags.map_or("", outcome::failure),
        }
    }

    /// The upstream's parts only if they are `asked` for; `failed`: there may have been attempts that came to no connection.
    fn parts(&self, cx: &mut Context<'_, Self>, now_ns: u64, asked: bool, failed: bool) -> Parts {
        let number = |path: &[&str]| cx.host.number(path).and_then(|number| u64::try_from(number).ok());
        if cx.stream.start_ns == 0 {
            // A filter in front answered, and this one hears of it only now.
            cx.stream.start_ns = number(&["request", "time"]).unwrap_or(now_ns);
        }
        let Stream { start_ns, first_ns, tcp, .. } = *cx.stream;
        let duration = |path| number(path).map(us);
        let pool = if asked { duration(&["upstream", "cx_pool_ready_duration"]) } else { None };
        // 0 where nobody went for an upstream. A question that has an answer is dear.
        let attempts =
            if asked && failed || pool.is_some() { number(&["upstream", "request_attempt_count"]) } else { None };
        let attempts = attempts.filter(|attempts| *attempts > 0);
        Parts {
            start_ns,
            total: us(now_ns.saturating_sub(start_ns)),
            first_byte: (first_ns != 0).then(|| us(first_ns.saturating_sub(start_ns))),
            // From the first byte to the upstream to the last one from it; unknown where that never came.
            upstream: if tcp || attempts.is_none() { None } else { duration(&["response", "backend_latency"]) },
            pool,
            attempts,
        }
    }

    fn record(&self, cx: &mut Context<'_, Self>, labels: Labels, metrics: [&'static Metric; 2], us: u64) {
        let [ms_metric, us_metric] = metrics;
        match self.config.unit {
            Unit::Ms => cx.metrics.record_to(cx.host, ms_metric, labels, us.saturating_add(500) / 1000),
            Unit::Us => cx.metrics.record_to(cx.host, us_metric, labels, us),
        }
    }

    fn count_bytes(&self, cx: &mut Context<'_, Self>, labels: Labels) {
        if !self.config.bytes {
            return;
        }
        for (metric, side) in [(&REQUEST_BYTES, "request"), (&RESPONSE_BYTES, "response")] {
            if let Some(bytes) = cx.host.number(&[side, "total_size"]) {
                cx.metrics.add_to(cx.host, metric, labels, bytes);
            }
        }
    }

    /// `unanswered`: the client left before there was an answer. If it had waited for longer than was promised, that is
    /// a bad one; else nobody knows what it would have become, and it does not count.
    fn judge(&self, cx: &mut Context<'_, Self>, total_us: u64, failed: bool, unanswered: bool) {
        let in_time = |ms: u64| total_us <= ms.saturating_mul(1000);
        let within = |ms: u64| !failed && in_time(ms);
        for objective in &self.config.slo {
            if unanswered && in_time(objective.within.ms()) {
                continue;
            }
            let labels = cx.metrics.labels(&[&objective.name]);
            cx.metrics.add_to(cx.host, &SLO, labels, 1);
            // A bad one makes the series too: a share of nothing is no number, and no alert.
            cx.metrics.add_to(cx.host, &SLO_GOOD, labels, i64::from(within(objective.within.ms())));
        }
        if let Some(t) = self.config.apdex
            && !(unanswered && in_time(t.ms().saturating_mul(4)))
        {
            let feeling = match (within(t.ms()), within(t.ms().saturating_mul(4))) {
                (true, _) => 0,
                (_, true) => 1,
                _ => 2,
            };
            let series = self.feelings.get_or_init(|| {
                ["satisfied", "tolerating", "frustrated"].map(|feeling| {
                    let labels = cx.metrics.labels(&[feeling]);
                    cx.metrics.add_to(cx.host, &APDEX, labels, 0);
                    labels
                })
            });
            if let Some(labels) = series.get(feeling) {
                cx.metrics.add_to(cx.host, &APDEX, *labels, 1);
            }
        }
    }

    /// Leaves the parts for access logs.
    fn publish(&self, cx: &mut Context<'_, Self>, parts: Parts, filters: Option<u64>) {
        if parts.start_ns != 0 {
            cx.share(START_TIME, itoa::Buffer::new().format(parts.start_ns).as_bytes());
        }
        let proxy = parts.upstream.map(|upstream| parts.total.saturating_sub(upstream));
        let fields = [
            ("latency.total_us", Some(parts.total)),
            ("latency.ttfb_us", parts.first_byte),
            ("latency.upstream_us", parts.upstream),
            ("latency.pool_us", parts.pool),
            ("latency.proxy_us", proxy),
            ("latency.filters_us", filters),
            ("latency.attempts", parts.attempts),
        ];
        let mut json = String::new();
        for (key, value) in fields {
            let Some(value) = value else { continue };
            let mut text = itoa::Buffer::new();
            let text = text.format(value);
            let _ = cx.host.set_filter_state(key, text.as_bytes());
            if self.config.properties.json {
                json.push_str(if json.is_empty() { "{\"" } else { ",\"" });
                json.push_str(key.strip_prefix("latency.").unwrap_or(key));
                json.push_str("\":");
                json.push_str(text);
            }
        }
        if self.config.properties.json {
            // With several attempts the upstream's time is the last one's, and the rest counts as the proxy's.
            json.push_str(if parts.attempts.is_some_and(|attempts| attempts > 1) {
                ",\"approximate\":true}"
            } else {
                "}"
            });
            let _ = cx.host.set_filter_state("latency.json", json.as_bytes());
        }
    }

    /// The time between this outer instance and the inner one, both ways.
    fn filters(&self, cx: &mut Context<'_, Self>, parts: &Parts) -> Option<u64> {
        if self.config.role != Role::Outer {
            return None;
        }
        let total = match cx.host.property(&[INNER]) {
            Ok(inner) => {
                let (request, rest) = inner.split_first_chunk()?;
                let (response, _) = rest.split_first_chunk()?;
                let (request, response) = (u64::from_le_bytes(*request), u64::from_le_bytes(*response));
                let there = request.saturating_sub(cx.stream.start_ns);
                us(there.saturating_add(cx.stream.first_ns.saturating_sub(response)))
            }
            // A filter between them answered: it was there, or further out, all the time.
            Err(_) if parts.attempts.is_none() => parts.first_byte?,
            Err(_) => return None,
        };
        let direction = self.direction(cx);
        let labels = cx.metrics.labels(&[direction]);
        cx.metrics.record_to(cx.host, &FILTERS_US, labels, total);
        Some(total)
    }
}

kit::export!(Latency);
