//! The filter in an emulated proxy: requests that begin and end when a test says so, and what can be seen from outside.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each of the tests uses a part of it")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use circuit_breaker::CircuitBreaker;
use emulator::{CallEnd, Exchange, FailurePolicy, HttpStream, Message, Plugin, Proxy, VmKind};

pub const MS: u64 = 1_000_000;
/// Of workers, unless a configuration says otherwise.
pub const TICK_MS: u64 = 100;
/// The cluster of requests that say nothing.
pub const UP: &str = "up";

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Allowed,
    Probe,
    DryRun,
    Rejected,
    Fallback,
    /// No rule looks at it.
    None,
}

/// How an upstream ends a request, or somebody else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Status(u16),
    /// The upstream resets it before its headers.
    Reset,
    /// The client leaves.
    Gone,
    /// The proxy or another filter answers in place of the upstream.
    Local(u16),
}

pub const GOOD: End = End::Status(200);
pub const BAD: End = End::Status(500);

/// A proxy with one listener, `in`, and the filter in it.
pub struct Bed {
    pub proxy: Proxy,
    code: Rc<dyn emulator::Code>,
}

impl Bed {
    /// # Panics
    /// When the configuration is refused.
    pub fn new(workers: usize, configuration: &str) -> Self {
        Self::seeded(11, workers, configuration)
    }

    /// One whose chances are others.
    pub fn seeded(seed: u64, workers: usize, configuration: &str) -> Self {
        Self::made(kit::testing::native::<CircuitBreaker>(), seed, workers, configuration)
    }

    pub fn of(code: Rc<dyn emulator::Code>, workers: usize, configuration: &str) -> Self {
        Self::made(code, 11, workers, configuration)
    }

    fn made(code: Rc<dyn emulator::Code>, seed: u64, workers: usize, configuration: &str) -> Self {
        let bed = Self { proxy: Proxy::new(workers, seed), code };
        bed.proxy.set_property(&["xds", "cluster_name"], UP);
        bed.push(configuration);
        bed
    }

    /// The filter as a plugin, `cb`.
    pub fn plugin(&self, configuration: &str) -> Plugin {
        let plugin = Plugin::new("cb", &self.code).configuration(configuration);
        plugin.failure_policy(FailurePolicy::Reload).reload_backoff(Duration::ZERO)
    }

    pub fn push(&self, configuration: &str) {
        self.push_to("in", configuration);
    }

    pub fn push_to(&self, listener: &str, configuration: &str) {
        let pushed = self.proxy.push(listener, [self.plugin(configuration)]);
        pushed.unwrap_or_else(|why| panic!("{configuration}: {why}: {:?}", self.proxy.log().last()));
    }

    pub fn refuses(&self, configuration: &str) -> String {
        assert!(self.proxy.push("in", [self.plugin(configuration)]).is_err(), "{configuration} is taken");
        self.proxy.log().into_iter().map(|line| line.text).rfind(|text| text.contains("refused")).unwrap_or_default()
    }

    pub fn begin(&self, worker: usize) -> HttpStream {
        self.begin_with("in", worker, UP, &[])
    }

    pub fn begin_with(&self, listener: &str, worker: usize, cluster: &str, headers: &[(&str, &str)]) -> HttpStream {
        let stream = self.proxy.http(listener, worker);
        stream.set_property(&["xds", "cluster_name"], cluster);
        let first = [(":method", "GET"), (":path", "/"), (":authority", "host")];
        let first = first.iter().filter(|(name, _)| headers.iter().all(|(other, _)| other != name));
        stream.request(&Message::new(first.chain(headers).copied()));
        stream
    }

    /// A request that takes no time.
    pub fn send(&self, worker: usize, how: End) -> Decision {
        self.send_to(worker, UP, how)
    }

    pub fn send_to(&self, worker: usize, cluster: &str, how: End) -> Decision {
        let stream = self.begin_with("in", worker, cluster, &[]);
        let decision = decision(&stream);
        drop(end(&stream, how));
        decision
    }

    /// A request that takes so long.
    pub fn send_for(&self, worker: usize, ms: u64, how: End) -> Decision {
        let stream = self.begin(worker);
        let decision = decision(&stream);
        if decision != Decision::Rejected {
            self.advance(ms);
        }
        drop(end(&stream, how));
        decision
    }

    pub fn advance(&self, ms: u64) {
        self.proxy.advance(Duration::from_millis(ms));
    }

    /// To the next time that so many milliseconds divide, at which buckets of that width begin.
    pub fn align(&self, ms: u64) {
        let over = self.proxy.now_ns() % (ms * MS);
        if over > 0 {
            self.proxy.advance(Duration::from_nanos(ms * MS - over));
        }
    }

    /// The value of a series.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let labels: String = labels.iter().map(|(label, value)| format!("{label}=.={value};.;")).collect();
        self.proxy.metric(&format!("{name}{labels}")).map_or(0, |metric| metric.value)
    }

    /// Of a rule of [`UP`]: `allowed_total` and the like.
    pub fn of_rule(&self, what: &str, rule: &str) -> u64 {
        self.metric(&format!("meshfilter_circuit_{what}"), &[("resource", UP), ("rule", rule)])
    }

    /// `closed`, `half_open` or `open`, as the gauge says.
    pub fn state(&self, rule: &str) -> &'static str {
        ["closed", "half_open", "open"][usize::try_from(self.of_rule("state", rule)).unwrap()]
    }

    /// Changes of a rule's state.
    pub fn turns(&self, rule: &str, from: &str, to: &str) -> u64 {
        let labels = [("resource", UP), ("rule", rule), ("from", from), ("to", to)];
        self.metric("meshfilter_circuit_transitions_total", &labels)
    }

    /// Lines of the log that have this in them.
    pub fn log(&self, part: &str) -> Vec<String> {
        self.proxy.log().into_iter().map(|line| line.text).filter(|text| text.contains(part)).collect()
    }

    /// No VM has trapped.
    pub fn is_well(&self) {
        assert!(self.proxy.vms().iter().all(|vm| !vm.failed), "{:?}", self.log("trapped"));
    }
}

/// What the filter decided on a request that has begun.
pub fn decision(stream: &HttpStream) -> Decision {
    match stream.filter_state("circuit.decision").as_deref() {
        Some(b"probe") => Decision::Probe,
        Some(b"dry_run") => Decision::DryRun,
        Some(b"rejected") => Decision::Rejected,
        Some(b"fallback") => Decision::Fallback,
        Some(b"allowed") => Decision::Allowed,
        Some(other) => panic!("{}", other.escape_ascii()),
        None if stream.reply().is_some() => Decision::Rejected,
        None => Decision::None,
    }
}

/// Whether it went upstream.
pub fn passes(stream: &HttpStream) -> bool {
    stream.reply().is_none() && stream.upstream().headers.is_some()
}

/// Ends a request, unless it was answered already.
pub fn end(stream: &HttpStream, how: End) -> Exchange {
    if stream.reply().is_some() {
        return stream.finish();
    }
    let details = |text: &str| stream.set_property(&["response", "code_details"], text);
    let flag = |bit: i64| stream.set_property(&["response", "flags"], 1_i64 << bit);
    let answer = |status: u16| stream.response(&Message::new([(":status", status.to_string())]));
    match how {
        End::Status(status) => {
            details("via_upstream");
            answer(status);
        }
        End::Reset => {
            flag(4);
            details("upstream_reset_before_response_started{connection_termination}");
            answer(503);
        }
        End::Gone => {
            flag(14);
            details("downstream_remote_disconnect");
        }
        End::Local(status) => {
            details("ext_authz_denied");
            answer(status);
        }
    }
    stream.finish()
}

/// A generator of numbers, the same ones for the same seed (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `most` - 1.
    pub fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    pub fn index(&mut self, most: usize) -> usize {
        usize::try_from(self.below(u64::try_from(most).unwrap())).unwrap()
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index(all.len())]
    }

    /// Once in so many times.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// What a source of rules says.
#[derive(Clone, Debug)]
pub struct Says {
    pub status: u16,
    pub body: String,
    /// Told with 200; a question that names it gets 304.
    pub etag: Option<String>,
    pub after_ms: u64,
    /// The connection breaks.
    pub breaks: bool,
}

/// A question to a source.
#[derive(Clone, Debug)]
pub struct Asked {
    pub at_ns: u64,
    pub by: VmKind,
    pub headers: Vec<(String, String)>,
    pub timeout: Duration,
}

/// A source of rules: the cluster `rules`.
#[derive(Clone)]
pub struct Source {
    pub says: Rc<RefCell<Says>>,
    pub asked: Rc<RefCell<Vec<Asked>>>,
}

impl Source {
    pub fn new(bed: &Bed, body: &str) -> Self {
        let says = Says { status: 200, body: body.into(), etag: None, after_ms: 1, breaks: false };
        let source = Self { says: Rc::new(RefCell::new(says)), asked: Rc::default() };
        let (says, asked, proxy) = (Rc::clone(&source.says), Rc::clone(&source.asked), bed.proxy.clone());
        bed.proxy.cluster("rules", move |call| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let headers: Vec<_> = call.request.headers.iter().map(|(name, value)| (text(name), text(value))).collect();
            let says = says.borrow();
            let named = headers.iter().find(|(name, _)| name == "if-none-match").map(|(_, value)| value.clone());
            let same = says.status == 200 && named.is_some() && named == says.etag;
            asked.borrow_mut().push(Asked { at_ns: proxy.now_ns(), by: call.vm, headers, timeout: call.timeout });
            let after = Duration::from_millis(says.after_ms);
            if says.breaks {
                return Some((after, CallEnd::Reset));
            }
            let status = if same { "304".to_owned() } else { says.status.to_string() };
            let mut pairs = vec![(":status", status.as_str())];
            if let Some(etag) = &says.etag {
                pairs.push(("etag", etag));
            }
            let message = Message::new(pairs);
            Some((after, CallEnd::Response(if same { message } else { message.chunk(&says.body) })))
        });
        source
    }

    pub fn say(&self, body: &str) {
        *self.says.borrow_mut() = Says { status: 200, body: body.into(), etag: None, after_ms: 1, breaks: false };
    }

    pub fn change(&self, change: impl FnOnce(&mut Says)) {
        change(&mut self.says.borrow_mut());
    }

    pub fn times(&self) -> usize {
        self.asked.borrow().len()
    }

    pub fn last(&self) -> Asked {
        self.asked.borrow().last().expect("it was asked").clone()
    }
}
