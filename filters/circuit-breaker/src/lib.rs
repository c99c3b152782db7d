//! Breaks the circuit to an upstream that is slow or failing, by rules that change while it runs.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod adaptive;
pub mod board;
pub mod breaker;
pub mod config;
pub mod moment;
mod outcome;
pub mod resource;
pub mod rules;
mod shared;
mod source;
mod state;
pub mod window;
mod wire;

use breaker::{Breaker, Completion};
use config::{Config, Properties, Settings, Treat};
use core::cell::Cell;
use kit::alloc::rc::Rc;
use kit::prelude::*;
use kit::{Answer, Body, Context, Filter, Flow, Headers, Map, Metric, Pass, Phases, Refusal, Reply, RootContext};
use outcome::Outcome;
use resource::Kind;
use rules::{Mode, Reject, Rule};
pub use state::State;
use state::{Class, Permit, Places, Tick};

/// The filter.
#[derive(Debug)]
pub struct CircuitBreaker {
    settings: Settings,
    /// Whether more than one header is looked at: then all of them come at once.
    reads_all: bool,
    /// Lives as long as this configuration does.
    owner: Rc<()>,
    /// What its requests meet, in the state.
    table: Cell<usize>,
}

/// What is kept of a request.
#[derive(Debug, Default)]
pub struct Stream {
    /// When it began; 0: nobody told.
    start_ns: u64,
    /// Of gRPC, the first message.
    first_ns: u64,
    status: u16,
    grpc: bool,
    /// What it concerns.
    resources: Places,
    permits: Vec<Permit>,
    /// By configuration: judged by its first byte.
    stream: bool,
}

impl Filter for CircuitBreaker {
    const NAME: &'static str = "circuit-breaker";
    const PHASES: Phases = Phases::REQUEST_HEADERS
        .and(Phases::RESPONSE_HEADERS)
        .and(Phases::RESPONSE_BODY)
        .and(Phases::RESPONSE_TRAILERS)
        .and(Phases::LOG)
        .and(Phases::TICK)
        .and(Phases::ANSWERED);

    type Config = Config;
    type State = State;
    type Stream = Stream;

    fn new(config: Config) -> Result<Self, Refusal> {
        let settings = Settings::new(config)?;
        let kinds = settings.resources.iter().map(|kind| match kind {
            Kind::Cluster | Kind::Route => 0,
            Kind::Host | Kind::Method | Kind::Header(_) => 1,
            Kind::Path(_) => 2,
        });
        let looks = kinds.sum::<usize>().saturating_add(usize::from(!settings.streams.is_empty()));
        let reads_all = looks > 1;
        Ok(Self { settings, reads_all, owner: Rc::new(()), table: Cell::new(usize::MAX) })
    }

    fn max_series(&self) -> Option<usize> {
        Some(self.settings.max_series)
    }

    fn metrics() -> Vec<&'static Metric> {
        vec![
            &state::STATE,
            &state::TRANSITIONS,
            &state::ALLOWED,
            &state::REJECTED,
            &state::PROBES,
            &state::DRY_RUN,
            &state::UNPROTECTED,
            &source::UPDATES,
            &source::VERSION,
            &source::AGE,
            &shared::CHANGES,
        ]
    }

    fn configured(&self, cx: &mut RootContext<'_, Self>) {
        if cx.state.shared.id() == 0 {
            let plugin = cx.host.property(&["plugin_name"]).unwrap_or_default();
            // The proxy takes none that is not UTF-8.
            cx.state.shared = shared::Shared::new(str::from_utf8(&plugin).unwrap_or_default(), cx.rng.next_u64());
        }
        let source = self.settings.source.as_ref().map(source::name);
        let of = (source, self.settings.mode);
        self.table.set(cx.state.install(cx.host, cx.metrics, &self.owner, of, &self.settings.rules));
    }

    fn tick_ms(&self) -> u32 {
        u32::try_from(self.settings.tick_ms).unwrap_or(u32::MAX)
    }

    fn tick(&self, cx: &mut RootContext<'_, Self>) {
        let now_ns = cx.host.now_ns();
        let tick_ns = self.settings.tick_ms.saturating_mul(1_000_000);
        let mut tick = Tick { host: cx.host, metrics: &mut *cx.metrics, rng: &mut *cx.rng, now_ns };
        cx.state.tick(&mut tick, self.settings.source.as_ref(), tick_ns);
    }

    fn answered(&self, cx: &mut RootContext<'_, Self>, call: u32, answer: &Answer<'_>) {
        let now_ns = cx.host.now_ns();
        let mut tick = Tick { host: cx.host, metrics: &mut *cx.metrics, rng: &mut *cx.rng, now_ns };
        cx.state.answered(&mut tick, &self.settings, call, answer);
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        cx.state.follow(cx.host, cx.metrics);
        // Whoever the client is, where its request goes is not its to say.
        // Also where no rule has a fallback just now: the route that matches it is there.
        let table = self.table.get();
        let forged = headers.look(&self.settings.fallback_header, |value| {
            Some(cx.state.is_fallback(table, value.filter(|value| !value.is_empty())?))
        });
        if let Some(chosen) = forged {
            headers.remove(&self.settings.fallback_header);
            if chosen {
                // It chose the route, and with it the cluster that the proxy tells; where the request goes without it is not
                // told before it goes there. So nobody chooses while anything is open.
                let broken = cx.state.is_broken(table, cx.now_ns());
                return if broken { self.refuse(cx, &self.settings.reject, "open", 1, None) } else { Flow::Continue };
            }
        }
        if self.reads_all {
            headers.read();
        }
        let resources = self.resources(cx, headers);
        if resources.is_empty() {
            return Flow::Continue;
        }
        let now_ns = cx.now_ns();
        if now_ns == 0 {
            // Without a clock nothing that is open would ever be probed.
            return Flow::Continue;
        }
        cx.stream.start_ns = now_ns;
        cx.stream.resources = resources;
        cx.stream.stream = self.streams(headers);
        let class = self.class(headers);
        let decision = cx.state.decide(cx.host, cx.metrics, cx.rng, &resources, class, now_ns);
        cx.stream.permits = decision.permits;
        if let Some(at) = decision.blocked {
            return self.reject(cx, headers, at, now_ns);
        }
        let word = if !cx.stream.permits.is_empty() {
            "probe"
        } else if decision.dry_run.is_some() {
            "dry_run"
        } else if self.settings.properties == Properties::All {
            "allowed"
        } else {
            return Flow::Continue;
        };
        let at = decision.dry_run.or_else(|| cx.state.first(&resources));
        self.publish(cx, word, at);
        Flow::Continue
    }

    fn response_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        if cx.stream.start_ns == 0 {
            return Flow::Continue;
        }
        headers.read();
        let media_type = |name| headers.get("content-type").is_some_and(|value| is_of(value, name));
        cx.stream.status = number(headers.get(":status")).unwrap_or(0);
        cx.stream.grpc = media_type(GRPC);
        let now_ns = cx.now_ns();
        if headers.ends() {
            self.over(cx, now_ns, number(headers.get("grpc-status")));
        } else if cx.stream.status == 101 || media_type(EVENTS) || (cx.stream.stream && !cx.stream.grpc) {
            // Streams are judged by their first byte. They may last for hours: what they say is said by now.
            self.over(cx, now_ns, None);
        }
        Flow::Continue
    }

    fn response_body(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) -> Pass {
        let Stream { start_ns, grpc, first_ns, stream, .. } = *cx.stream;
        let first = grpc && first_ns == 0;
        if start_ns != 0 && (first || body.is_last()) {
            let now_ns = cx.now_ns();
            if first {
                cx.stream.first_ns = now_ns;
            }
            if body.is_last() || stream {
                self.over(cx, now_ns, None);
            }
        }
        Pass::On
    }

    fn response_trailers(&self, cx: &mut Context<'_, Self>, _body: &Body<'_>) {
        if cx.stream.start_ns != 0 {
            let status = cx.host.header(Map::ResponseTrailers, "grpc-status").ok();
            self.over(cx, cx.now_ns(), number(status.as_deref()));
        }
    }

    fn log(&self, cx: &mut Context<'_, Self>, _request: &Headers<'_>, _response: &Headers<'_>) {
        // There was no response, or not all of it.
        if cx.stream.start_ns != 0 {
            let now_ns = cx.now_ns();
            let error = self.settings.failures.has_status(cx.stream.status);
            self.end(cx, now_ns, now_ns, outcome::of_proxy(cx.host, error, cx.stream.status));
        }
    }
}

impl CircuitBreaker {
    fn resources(&self, cx: &mut Context<'_, Self>, headers: &Headers<'_>) -> Places {
        let max = self.settings.max_resources;
        let (host, metrics, state) = (cx.host, &mut *cx.metrics, &mut *cx.state);
        let table = self.table.get();
        let mut places = Places::of(table);
        for kind in &self.settings.resources {
            let mut named = |from: Option<&[u8]>, method: &[u8]| {
                let from = from?;
                let cluster = matches!(kind, Kind::Cluster).then_some(from);
                // The names of clusters are known as they are.
                if let Some(known) = cluster.and_then(|cluster| state.known(table, cluster)) {
                    return known;
                }
                let name = kind.name(from, method)?;
                match state.known(table, name.as_bytes()) {
                    Some(known) if cluster.is_none() => known,
                    _ => state.new_resource(host, metrics, (table, max), &name, cluster),
                }
            };
            let place = match kind {
                Kind::Cluster => named(host.property(&["xds", "cluster_name"]).ok().as_deref(), &[]),
                Kind::Route => named(host.property(&["xds", "route_name"]).ok().as_deref(), &[]),
                Kind::Host => headers.look(":authority", |from| named(from, &[])),
                Kind::Method => headers.look(":method", |from| named(from, &[])),
                Kind::Header(name) => headers.look(name, |from| named(from, &[])),
                Kind::Path(_) => named(headers.get(":path"), headers.get(":method").unwrap_or_default()),
            };
            if let Some(place) = place {
                places.push(place);
            }
        }
        places
    }

    fn streams(&self, headers: &Headers<'_>) -> bool {
        let begins = |path: &[u8]| self.settings.streams.iter().any(|start| path.starts_with(start.as_bytes()));
        !self.settings.streams.is_empty() && headers.look(":path", |path| path.is_some_and(begins))
    }

    fn class(&self, headers: &Headers<'_>) -> Class {
        for class in &self.settings.classes {
            let fits = headers.look(class.header.as_str(), |value| match (&class.value, value) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(wanted), Some(value)) => value == wanted.as_bytes(),
            });
            if fits {
                return match class.treat {
                    Treat::Exempt => Class::Exempt,
                    Treat::ShedLast => Class::ShedLast,
                };
            }
        }
        Class::Ordinary
    }

    /// What becomes of a request that may not pass.
    #[cold]
    fn reject(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>, at: usize, now_ns: u64) -> Flow {
        // It goes elsewhere, or nowhere: what becomes of it says nothing about this upstream.
        cx.stream.start_ns = 0;
        let Some((_, rule, breaker)) = cx.state.named(at) else { return Flow::Continue };
        let phase = stands(rule, breaker).name();
        let wait_ns =
            if rule.mode == Mode::ForcedOpen { rule.retry_ns } else { breaker.word.retry_at_ns.saturating_sub(now_ns) };
        if let Some(fallback) = &rule.fallback {
            headers.set(&self.settings.fallback_header, fallback.as_bytes());
            self.publish(cx, "fallback", Some(at));
            return Flow::Continue;
        }
        let reject = rule.reject.clone();
        let reject = reject.as_ref().unwrap_or(&self.settings.reject);
        self.refuse(cx, reject, phase, wait_ns.div_ceil(1_000_000_000).max(1), Some(at))
    }

    /// Answers in the upstream's place; `wait` in seconds.
    #[cold]
    fn refuse(&self, cx: &Context<'_, Self>, reject: &Reject, phase: &str, wait: u64, at: Option<usize>) -> Flow {
        let mut pairs = Vec::new();
        let mut say = |name: &str, value: &str| pairs.push((name.into(), value.into()));
        for (name, value) in &reject.headers {
            say(name, value);
        }
        if reject.retry_after {
            say("retry-after", &wait.to_string());
        }
        if let Some(name) = &self.settings.state_header {
            say(name, phase);
        }
        let reply = Reply {
            status: reject.status,
            headers: pairs,
            body: reject.body.clone().into_bytes(),
            grpc_status: Some(reject.grpc_status),
            details: "circuit_open",
        };
        self.publish(cx, "rejected", at);
        Flow::Reply(reply)
    }

    /// Leaves for access logs what was decided.
    fn publish(&self, cx: &Context<'_, Self>, decision: &str, at: Option<usize>) {
        let _ = cx.host.set_filter_state("circuit.decision", decision.as_bytes());
        let Some(at) = at else { return };
        if let Some((resource, rule, breaker)) = cx.state.named(at) {
            let _ = cx.host.set_filter_state("circuit.resource", resource.as_bytes());
            let _ = cx.host.set_filter_state("circuit.rule", rule.id.as_bytes());
            let _ = cx.host.set_filter_state("circuit.state", stands(rule, breaker).name().as_bytes());
            let version = cx.state.version(self.table.get()).to_string();
            let _ = cx.host.set_filter_state("circuit.version", version.as_bytes());
        }
    }

    /// The response is all there, or as much of it as counts. It is judged before the client has the end of it: whoever comes
    /// next meets what it did. A call of gRPC is judged by its first message, which of one with a single message is the end.
    fn over(&self, cx: &mut Context<'_, Self>, now_ns: u64, grpc_status: Option<u32>) {
        let Stream { first_ns, status, .. } = *cx.stream;
        let error = self.settings.failures.has_status(status)
            || grpc_status.is_some_and(|status| self.settings.failures.has_grpc(status));
        // Whose an error is, the proxy says; and where it closes a breaker, whose a success is.
        let plain = status < 400 && !error && cx.stream.permits.is_empty();
        let outcome = if plain { Outcome::Success } else { outcome::of_proxy(cx.host, error, cx.stream.status) };
        self.end(cx, now_ns, if first_ns != 0 { first_ns } else { now_ns }, outcome);
    }

    /// What a request says of its upstream is said; nothing that comes later counts. It is judged by the time up to
    /// `judged_ns`.
    fn end(&self, cx: &mut Context<'_, Self>, now_ns: u64, judged_ns: u64, outcome: Outcome) {
        let Stream { start_ns, resources, .. } = *cx.stream;
        let permits = core::mem::take(&mut cx.stream.permits);
        cx.stream.start_ns = 0;
        let rt_us = us(start_ns, judged_ns);
        let done = Completion { begun_ns: start_ns, now_ns, rt_us, error: outcome == Outcome::Error };
        let done = (outcome != Outcome::Nothing).then_some(&done);
        cx.state.complete(cx.host, cx.metrics, &resources, &permits, done);
    }
}

/// Where a breaker stands to the outside.
fn stands(rule: &Rule, breaker: &Breaker) -> board::State {
    match rule.mode {
        Mode::ForcedOpen => board::State::Open,
        Mode::ForcedClosed => board::State::Closed,
        _ => breaker.word.state,
    }
}

fn us(from_ns: u64, until_ns: u64) -> u64 {
    until_ns.saturating_sub(from_ns) / 1000
}

fn number<N: core::str::FromStr>(value: Option<&[u8]>) -> Option<N> {
    str::from_utf8(value?).ok()?.parse().ok()
}

/// Server-sent events: a response without an end in sight.
const EVENTS: &[u8] = b"text/event-stream";
/// With anything behind `+` or `;`.
const GRPC: &[u8] = b"application/grpc";

/// Whether a content type is this media type, whose letters may be of either case (RFC 9110, 8.3.1).
fn is_of(content_type: &[u8], media_type: &[u8]) -> bool {
    let Some((start, rest)) = content_type.split_at_checked(media_type.len()) else { return false };
    start.eq_ignore_ascii_case(media_type) && matches!(rest, [] | [b'+' | b';' | b' ', ..])
}

kit::export!(CircuitBreaker);
