//! Gives every request a valid trace context, carries it on, and hands it to logs.
//!
#![doc = include_str!("../README.md")]
#![no_std]

#[cfg(test)]
extern crate std;

pub mod b3;
pub mod config;
pub mod context;
pub mod datadog;
mod hex;
pub mod jaeger;
mod join;
mod propagation;
pub mod sampling;
pub mod tracestate;
pub mod w3c;
pub mod xray;

use config::{Config, FollowTracer, Format, RequestId, RootSampler, Trust};
use context::{Local, Remote, Sampling, SpanId};
use kit::prelude::*;
use kit::{Context, Filter, Flow, Headers, Host, Metric, MetricKind, Phases, Refusal};
use propagation::{DatadogExtras, Formats, Found, Incoming};
use sampling::{Root, Threshold};
use tracestate::Joined;

/// Requests, by what became of their trace context.
pub static REQUESTS: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_trace_requests_total",
    help: Metric::help(
        "Requests by what became of their trace context: continued, generated, restarted, linked, joined.",
    ),
    labels: &["outcome", "format"],
};

/// Contexts that were refused.
pub static INVALID: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_trace_invalid_total",
    help: Metric::help(
        "Trace contexts that were refused, by format and reason: duplicate, length, syntax, version, zero.",
    ),
    labels: &["format", "reason"],
};

/// Contexts that the proxy's own tracer put in place of the filter's.
pub static REPLACED: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_trace_replaced_total",
    help: Metric::help("Requests that went upstream with a context of the proxy's own tracer, by its format."),
    labels: &["format"],
};

/// When the request began, which latency says as well.
const START_TIME: &str = "start_time_ns";

/// The filter.
#[derive(Debug)]
pub struct TraceId {
    config: Config,
    root: Root,
    inject: Formats,
    extract: Formats,
}

/// What a worker knows of the proxy's own tracer.
#[derive(Debug, Default)]
pub struct Tracer {
    /// Requests since the last one that it wrote a context into.
    quiet: u32,
    seen: bool,
}

impl Tracer {
    /// Requests that are looked at before its absence is believed.
    const PROBATION: u32 = 256;
    /// After that, one in so many.
    const SAMPLE: u32 = 16;

    fn look(&self, follow: FollowTracer) -> bool {
        match follow {
            FollowTracer::Always => true,
            FollowTracer::Never => false,
            FollowTracer::Auto => self.seen || self.quiet < Self::PROBATION || self.quiet.is_multiple_of(Self::SAMPLE),
        }
    }
}

/// What is kept of a request.
#[derive(Debug, Default)]
pub struct Stream {
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    local: Local,
    traceparent: [u8; 55],
    /// Contexts that came in and go on untouched, beside the filter's own.
    passed: Vec<(Format, Remote)>,
}

/// What a request's headers led to.
struct Plan {
    local: Local,
    traceparent: [u8; 55],
    outcome: &'static str,
    format: &'static str,
    present: Formats,
    /// Contexts that go on untouched, beside the filter's own.
    passed: Vec<(Format, Remote)>,
    /// Formats that must not go on as they came.
    remove: Formats,
    tracestate: StateChange,
    datadog: DatadogExtras,
    link: Option<Remote>,
    needs_request_id: bool,
}

enum StateChange {
    Keep,
    Remove,
    Set(Vec<u8>),
}

impl Filter for TraceId {
    const NAME: &'static str = "trace-id";
    const SHARED: &'static [&'static str] = &[START_TIME];
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::RESPONSE_HEADERS).and(Phases::LOG);
    type Config = Config;
    type State = Tracer;
    type Stream = Stream;

    fn new(config: Config) -> Result<Self, Refusal> {
        if config.inject.is_empty() {
            return Err(Refusal::at(
                "inject",
                "is empty, give at least one of w3c, b3, b3_single, jaeger, datadog, xray",
            ));
        }
        for (index, format) in config.extract.iter().enumerate() {
            if config.extract.iter().take(index).any(|earlier| earlier == format) {
                return Err(Refusal::at(&format!("extract[{index}]"), "stands there twice, take one out"));
            }
        }
        for (index, form) in config.inject.iter().enumerate() {
            if config.inject.iter().take(index).any(|earlier| earlier == form) {
                return Err(Refusal::at(&format!("inject[{index}]"), "stands there twice, take one out"));
            }
        }
        if config.trust_mtls && config.trust == Trust::Accept {
            return Err(Refusal::at(
                "trust_mtls",
                "makes no difference with `trust: accept`, give `restart` or `link`",
            ));
        }
        if let Some(join) = &config.join
            && !(100..=3_600_000).contains(&join.ttl.ms())
        {
            return Err(Refusal::at("join.ttl", "is out of range, give a duration from 100ms to 1h"));
        }
        let root = match (config.sampling.root, config.sampling.ratio) {
            (RootSampler::AlwaysOn, None) => Root::AlwaysOn,
            (RootSampler::AlwaysOff, None) => Root::AlwaysOff,
            (RootSampler::Ratio, Some(ratio)) if ratio.get() == 0.0 => Root::AlwaysOff,
            (RootSampler::Ratio, Some(ratio)) => Threshold::new(ratio.get()).map(Root::Ratio).ok_or_else(|| {
                Refusal::at("sampling.ratio", "is too small to tell apart from 0, give 0 or at least 1.4e-17 (2^-56)")
            })?,
            (RootSampler::Ratio, None) => {
                return Err(Refusal::at("sampling.ratio", "is missing, give a number from 0 to 1 with `root: ratio`"));
            }
            (_, Some(_)) => return Err(Refusal::at("sampling.ratio", "is only for `root: ratio`")),
        };
        let mut inject = Formats::default();
        config.inject.iter().for_each(|form| inject.insert(form.format()));
        let mut extract = Formats::default();
        config.extract.iter().for_each(|format| extract.insert(*format));
        Ok(Self { root, inject, extract, config })
    }

    fn metrics() -> Vec<&'static Metric> {
        vec![&REQUESTS, &INVALID, &REPLACED]
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        let now_ns = cx.now_ns();
        let joining = self.config.join.as_ref().map(|join| (join, direction(cx.host)));
        let plan = self.plan(cx, headers, joining, now_ns);
        self.write(cx, headers, &plan, now_ns);

        // Read again: the header may be the request id that was just made.
        if let Some((join, Direction::Inbound | Direction::Unknown)) = joining
            && let Some(key) = headers.get(join.header.as_str()).and_then(join::Key::new)
        {
            join::remember(cx.host, join, &key, &plan.local, now_ns);
        }
        publish(cx.host, &plan.local);
        if now_ns != 0 {
            cx.share(START_TIME, itoa::Buffer::new().format(now_ns).as_bytes());
        }
        if let Some(link) = plan.link {
            let mut text = link.trace_id.hex().to_vec();
            if let Some(span_id) = link.span_id {
                text.push(b'-');
                text.extend(span_id.hex());
            }
            let _ = cx.host.set_filter_state("trace_link", &text);
        }
        cx.metrics.add(cx.host, &REQUESTS, &[plan.outcome, plan.format], 1);
        cx.stream.sent = Some(Sent { local: plan.local, traceparent: plan.traceparent, passed: plan.passed });
        Flow::Continue
    }

    fn response_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        // A filter in front may have answered: then this one gave no context to speak of.
        let Some(Sent { local, traceparent, .. }) = &cx.stream.sent else { return Flow::Continue };
        let response = &self.config.response;
        if let Some(name) = &response.trace_id_header {
            headers.set(name.as_str(), &local.trace_id.hex());
        }
        if response.server_timing {
            let parts: [&[u8]; 5] =
                [b"trace;desc=\"", &local.trace_id.hex(), b"\", traceparent;desc=\"", traceparent, b"\""];
            // The upstream's own timings stay.
            headers.add("server-timing", &parts.concat());
        }
        if response.traceresponse {
            headers.set("traceresponse", traceparent);
        }
        Flow::Continue
    }

    fn log(&self, cx: &mut Context<'_, Self>, request: &Headers<'_>, _: &Headers<'_>) {
        match &cx.stream.sent {
            Some(sent) => {
                let look = cx.state.look(self.config.follow_tracer);
                cx.state.quiet = cx.state.quiet.wrapping_add(1);
                if !look {
                    return;
                }
                let wire = Incoming::scan(request);
                let Some((format, remote)) = self.replaced(sent, &wire) else { return };
                (cx.state.quiet, cx.state.seen) = (0, true);
                let same_trace = remote.trace_id == sent.local.trace_id;
                let _ = cx.host.set_filter_state("trace_id", &remote.trace_id.hex());
                let _ = cx
                    .host
                    .set_filter_state("span_id", remote.span_id.map(|id| id.hex()).as_ref().map_or(b"", |id| id));
                let _ = cx.host.set_filter_state("trace_sampled", sampled_text(remote.sampling));
                if !same_trace && sent.local.parent_id.is_some() {
                    let _ = cx.host.set_filter_state("parent_span_id", b"");
                }
                cx.metrics.add(cx.host, &REPLACED, &[format.name()], 1);
            }
            // Answered by a filter in front, so nothing went upstream: the log gets the context that the caller sent.
            None => {
                let wire = Incoming::scan(request);
                let context = self.config.extract.iter().find_map(|format| match wire.read(*format) {
                    Ok(Found::Context(remote)) => Some(remote),
                    _ => None,
                });
                if let Some(remote) = context
                    && (self.config.trust == Trust::Accept || self.exempt(cx.host))
                {
                    let _ = cx.host.set_filter_state("trace_id", &remote.trace_id.hex());
                    if let Some(span_id) = remote.span_id {
                        let _ = cx.host.set_filter_state("parent_span_id", &span_id.hex());
                    }
                }
                if let Ok(time) = cx.host.property(&["request", "time"])
                    && let Some(ns) = time.first_chunk()
                {
                    cx.share(START_TIME, u64::from_le_bytes(*ns).to_string().as_bytes());
                }
            }
        }
    }
}

impl TraceId {
    /// Reads what came in and decides what goes on. Changes nothing.
    fn plan(
        &self,
        cx: &mut Context<'_, Self>,
        headers: &Headers<'_>,
        joining: Option<(&config::Join, Direction)>,
        now_ns: u64,
    ) -> Plan {
        let incoming = Incoming::scan(headers);
        let mut remove = Formats::default();
        let mut remote = None;
        let mut decision = Sampling::Defer;
        for format in &self.config.extract {
            match incoming.read(*format) {
                Ok(Found::Nothing) => {}
                Ok(Found::Decision(sampling)) if decision == Sampling::Defer => decision = sampling,
                Ok(Found::Decision(_)) => {}
                Ok(Found::Context(context)) => remote = remote.or(Some((*format, context))),
                Err(reason) => {
                    cx.metrics.add(cx.host, &INVALID, &[format.name(), reason.name()], 1);
                    remove.insert(*format);
                }
            }
        }

        let mut link = None;
        let mut outcome = "continued";
        let untrusted = self.config.trust != Trust::Accept
            && (incoming.tracestate || !incoming.present.is_empty())
            && !self.exempt(cx.host);
        if untrusted {
            outcome = if self.config.trust == Trust::Link && remote.is_some() { "linked" } else { "restarted" };
            link = remote.take().map(|(_, context)| context).filter(|_| self.config.trust == Trust::Link);
            decision = Sampling::Defer;
            Formats::ALL.into_iter().filter(|format| incoming.present.has(*format)).for_each(|f| remove.insert(f));
        } else if remote.is_none() {
            outcome = "generated";
        }
        let origin = remote.map(|(format, _)| format);
        // A stranger may guess a header's value: only what surely goes out, or comes from the trusted, is joined.
        let joining = joining.filter(|(_, way)| match way {
            Direction::Inbound => false,
            Direction::Outbound => true,
            Direction::Unknown => self.config.trust == Trust::Accept,
        });
        if remote.is_none()
            && !untrusted
            && let Some((join, _)) = joining
            && let Some(key) = headers.get(join.header.as_str()).and_then(join::Key::new)
            && let Some(context) = join::recall(cx.host, join, &key, now_ns)
        {
            outcome = "joined";
            remote = Some((Format::W3c, context));
        }

        let context = remote.map(|(_, context)| context);
        let trace_id = context.map_or_else(|| self.new_trace_id(cx, now_ns), |context| context.trace_id);
        let asked = context.map_or(decision, |context| context.sampling);
        let sampling = match asked {
            Sampling::Defer if self.root.decide(&trace_id) => Sampling::Keep,
            Sampling::Defer => Sampling::Drop,
            decided => decided,
        };
        let local = Local {
            trace_id,
            span_id: SpanId::from_random(cx.rng.bytes()),
            parent_id: context.and_then(|context| context.span_id),
            sampling,
            random: context.is_none_or(|context| context.random),
        };

        let tracestate = match (origin, self.root.ot()) {
            (Some(Format::W3c), _) if !incoming.tracestate => StateChange::Keep,
            (Some(Format::W3c), _) => {
                let limit = usize::try_from(self.config.tracestate_limit.get()).unwrap_or(usize::MAX);
                match tracestate::join(headers.all(w3c::TRACESTATE), None, limit) {
                    Ok(Joined::Unchanged) => StateChange::Keep,
                    // Valid, and its traceparent goes on untouched: so does it.
                    Ok(_) if !self.inject.has(Format::W3c) => StateChange::Keep,
                    Ok(Joined::Text(text)) => StateChange::Set(text),
                    Ok(Joined::Empty) => StateChange::Remove,
                    Err(reason) => {
                        cx.metrics.add(cx.host, &INVALID, &["tracestate", reason.name()], 1);
                        StateChange::Remove
                    }
                }
            }
            (_, Some(ot)) if asked == Sampling::Defer && local.sampled() && self.inject.has(Format::W3c) => {
                StateChange::Set(["ot=", ot].concat().into_bytes())
            }
            // It belongs to a traceparent that is not there or does not go on.
            _ if incoming.tracestate
                && (untrusted
                    || self.inject.has(Format::W3c)
                    || self.extract.has(Format::W3c) && !incoming.present.has(Format::W3c)) =>
            {
                StateChange::Remove
            }
            _ => StateChange::Keep,
        };
        let datadog = if self.inject.has(Format::Datadog) {
            let (priority, tags) =
                if origin == Some(Format::Datadog) { incoming.datadog_extras() } else { (None, None) };
            DatadogExtras {
                priority: datadog::write_priority(&local, priority).to_vec(),
                tags: datadog::write_tags(&local.trace_id, tags),
            }
        } else {
            DatadogExtras::default()
        };
        Plan {
            traceparent: w3c::write_traceparent(&local),
            local,
            outcome,
            format: origin.map_or("none", Format::name),
            present: incoming.present,
            passed: incoming.contexts(|format| !remove.has(format) && !self.inject.has(format)),
            remove,
            tracestate,
            datadog,
            link,
            needs_request_id: !incoming.request_id,
        }
    }

    /// Writes what was decided into the request.
    fn write(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>, plan: &Plan, now_ns: u64) {
        if !plan.remove.is_empty() {
            Formats::ALL.into_iter().filter(|f| plan.remove.has(*f)).for_each(|f| propagation::remove(headers, f));
        }
        match &plan.tracestate {
            StateChange::Keep => {}
            StateChange::Remove => headers.remove(w3c::TRACESTATE),
            StateChange::Set(text) => headers.set(w3c::TRACESTATE, text),
        }
        for form in &self.config.inject {
            propagation::write(headers, *form, plan);
        }
        if plan.present.has(Format::B3) {
            propagation::remove_other_b3(headers, &self.config.inject);
        }
        if plan.needs_request_id {
            let id = match self.config.request_id {
                RequestId::Off => return,
                RequestId::V4 => uuid::Builder::from_random_bytes(cx.rng.bytes()),
                RequestId::V7 => uuid::Builder::from_unix_timestamp_millis(now_ns / 1_000_000, &cx.rng.bytes()),
            };
            let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
            headers.set("x-request-id", id.into_uuid().hyphenated().encode_lower(&mut text).as_bytes());
        }
    }

    fn new_trace_id(&self, cx: &mut Context<'_, Self>, now_ns: u64) -> context::TraceId {
        if self.inject.has(Format::Xray) {
            return xray::new_trace_id(now_ns / 1_000_000_000, cx.rng.bytes());
        }
        context::TraceId::from_random(cx.rng.bytes())
    }

    fn exempt(&self, host: &dyn Host) -> bool {
        self.config.trust_mtls && host.property(&["connection", "mtls"]).is_ok_and(|value| value.first() == Some(&1))
    }

    /// The context on the wire that is not the one that this filter sent: the proxy's tracer wrote it.
    fn replaced(&self, sent: &Sent, wire: &Incoming<'_>) -> Option<(Format, Remote)> {
        Formats::ALL.into_iter().filter(|format| wire.present.has(*format)).find_map(|format| match wire.read(format) {
            // By far the most common, and cheap to see.
            _ if format == Format::W3c && self.inject.has(format) && wire.has_traceparent(&sent.traceparent) => None,
            Ok(Found::Context(remote))
                if self.inject.has(format)
                    && (remote.trace_id != sent.local.trace_id || remote.span_id != Some(sent.local.span_id)) =>
            {
                Some((format, remote))
            }
            // A context that neither passed through nor was written here.
            Ok(Found::Context(remote)) if !self.inject.has(format) && !sent.passed.contains(&(format, remote)) => {
                Some((format, remote))
            }
            _ => None,
        })
    }
}

/// Hands the context to whoever reads filter state.
fn publish(host: &dyn Host, local: &Local) {
    let _ = host.set_filter_state("trace_id", &local.trace_id.hex());
    let _ = host.set_filter_state("span_id", &local.span_id.hex());
    let _ = host.set_filter_state("trace_sampled", sampled_text(local.sampling));
    if let Some(parent) = local.parent_id {
        let _ = host.set_filter_state("parent_span_id", &parent.hex());
    }
}

fn sampled_text(sampling: Sampling) -> &'static [u8] {
    if matches!(sampling, Sampling::Keep | Sampling::Debug) { b"true" } else { b"false" }
}

#[derive(Clone, Copy)]
enum Direction {
    Inbound,
    Outbound,
    Unknown,
}

/// Which way the listener faces, as the mesh says it; a plain proxy need not say.
fn direction(host: &dyn Host) -> Direction {
    match host.property(&["xds", "listener_direction"]).ok().and_then(|value| value.first().copied()) {
        Some(1) => Direction::Inbound,
        Some(2) => Direction::Outbound,
        _ => Direction::Unknown,
    }
}

kit::export!(TraceId);
