//! Rules from a source: asked by one worker for all, at an interval.
//!
//! Who asks holds a lease, a key of the shared data: the next worker takes it over when it has run out, as it does when its
//! VM is gone. What does not come, or is refused, changes nothing.

use crate::config::{Endpoint, Settings};
use crate::rules::{self, Rule};
use crate::shared::{Shared, exchange};
use crate::state::Tick;
use kit::prelude::*;
use kit::{Answer, Call, Host, Metric, MetricKind, Refusal, Rng};

/// Answers of the source.
pub(crate) static UPDATES: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_updates_total",
    help: Metric::help("Questions to the source of rules, by result: applied, unchanged, refused or unreachable."),
    labels: &["plugin", "result"],
};
/// The rules that hold.
pub(crate) static VERSION: Metric = Metric {
    kind: MetricKind::Gauge,
    name: "meshfilter_circuit_rules_version",
    help: Metric::help("How often rules of a source were accepted; 0 while those of the configuration hold."),
    labels: &["plugin"],
};
/// How fresh they are.
pub(crate) static AGE: Metric = Metric {
    kind: MetricKind::Gauge,
    name: "meshfilter_circuit_rules_age_seconds",
    help: Metric::help("Time since the source last said what the rules are, or that they are the same."),
    labels: &["plugin"],
};

const MS: u64 = 1_000_000;
/// Longest pause between two questions to a source that does not answer.
const LONGEST_NS: u64 = 3_600_000 * MS;
/// Longest pause after the first question that failed.
const SOON_NS: u64 = 10_000 * MS;
/// How much longer than its pause a worker that asks is waited for.
const GRACE_NS: u64 = 1_000 * MS;

/// Of so many questions one is not whether anything is new, but what it is.
const WHOLE: u32 = 10;

/// What a worker knows of the source.
#[derive(Debug, Default)]
pub(crate) struct Poll {
    /// Before then there is nothing to do.
    due_ns: u64,
    /// The call that is under way.
    call: Option<u32>,
    /// When it was made.
    called_ns: u64,
    /// Whether this worker was the last to ask: then it tells the age.
    asks: bool,
    /// Questions so far.
    asked: u32,
    /// What was last said of it in the log.
    said: Option<String>,
}

/// Who asks, in the shared data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Lease {
    id: u64,
    until_ns: u64,
    /// When the source last answered well.
    good_ns: u64,
    /// Questions without a good answer since.
    failures: u64,
}

impl Lease {
    fn encode(self) -> Vec<u8> {
        [self.id, self.until_ns, self.good_ns, self.failures].iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, _) = bytes.as_chunks();
        let [id, until_ns, good_ns, failures] = words else { return None };
        let [id, until_ns, good_ns, failures] = [id, until_ns, good_ns, failures].map(|word| u64::from_le_bytes(*word));
        Some(Self { id, until_ns, good_ns, failures })
    }
}

/// By what its keys are known: another source has other rules.
pub(crate) fn name(source: &Endpoint) -> String {
    let mut parts: Vec<&str> = vec![&source.cluster, "\0", &source.authority, "\0", &source.path, "\0", &source.body];
    // A namespace may be one of them.
    for (name, value) in &source.headers {
        parts.extend(["\0", name, "\0", value]);
    }
    let hash = rules::fnv(&parts);
    format!("source-{hash}")
}

impl Poll {
    /// Asks, if it is time and this worker's turn.
    pub(crate) fn tick(&mut self, source: &Endpoint, shared: &Shared, cx: &mut Tick<'_>) {
        let (host, now_ns) = (cx.host, cx.now_ns);
        let key = shared.key(&[&name(source), "/poller"].concat());
        let lease = || host.shared_data(&key).ok().and_then(|(bytes, _)| Lease::decode(&bytes)).unwrap_or_default();
        if self.asks {
            let lease = lease();
            self.asks = lease.id == shared.id();
            if self.asks && lease.good_ns > 0 {
                let age = now_ns.saturating_sub(lease.good_ns) / 1_000_000_000;
                cx.metrics.record(host, &AGE, &[shared.plugin()], age);
            }
        }
        // A clock that was put back is not waited for.
        let longest =
            pause(source, u64::MAX).saturating_add(source.timeout_ms.saturating_mul(MS)).saturating_add(GRACE_NS);
        if now_ns < self.due_ns && self.due_ns.saturating_sub(now_ns) <= longest {
            return;
        }
        // One question at a time: who asked again before the answer would never hear of a slow one. An end comes within the
        // timeout, whatever it is.
        let answer_ns = source.timeout_ms.saturating_mul(MS).saturating_add(GRACE_NS);
        if self.call.is_some() && now_ns.abs_diff(self.called_ns) < answer_ns {
            return;
        }
        self.call = None;
        let id = shared.id();
        let mut outcome = Ok(0);
        let taken = exchange(host, &key, &mut |bytes| {
            let old = bytes.and_then(Lease::decode).unwrap_or_default();
            let others = old.id != id && now_ns < old.until_ns && old.until_ns.saturating_sub(now_ns) <= longest;
            let pause = jittered(pause(source, old.failures), cx.rng);
            let new = Lease {
                id,
                until_ns: now_ns
                    .saturating_add(pause)
                    .saturating_add(source.timeout_ms.saturating_mul(MS))
                    .saturating_add(GRACE_NS),
                ..old
            };
            // Somebody else asks: nothing is written.
            outcome = if others { Err(old.until_ns) } else { Ok(pause) };
            Some(if others { old } else { new }.encode())
        });
        match taken.map(|()| outcome) {
            Ok(Ok(pause)) => {
                self.asks = true;
                self.due_ns = now_ns.saturating_add(pause);
                self.ask(source, shared, cx, &key);
            }
            Ok(Err(until_ns)) => {
                self.asks = false;
                self.due_ns = until_ns;
            }
            Err(_) => {}
        }
    }

    fn ask(&mut self, source: &Endpoint, shared: &Shared, cx: &mut Tick<'_>, key: &str) {
        let document = shared.document(cx.host, &name(source)).unwrap_or_default();
        let text = |name: &str, value: &str| (String::from(name), value.as_bytes().to_vec());
        let mut headers = vec![
            text(":method", source.method.name()),
            text(":path", &source.path),
            text(":authority", &source.authority),
        ];
        headers.extend(source.headers.iter().map(|(name, value)| text(name, value)));
        // Now and then all of it: nginx says the same of two files of one length that were written in one second.
        let whole = self.asked.is_multiple_of(WHOLE);
        self.asked = self.asked.wrapping_add(1);
        if !document.etag.is_empty() && !whole {
            headers.push(("if-none-match".into(), document.etag));
        }
        let timeout_ms = u32::try_from(source.timeout_ms).unwrap_or(u32::MAX);
        let call = Call {
            cluster: &source.cluster,
            headers: &headers,
            body: source.body.as_bytes(),
            timeout_ms: timeout_ms.max(1),
        };
        match cx.host.call(&call) {
            Ok(call) => (self.call, self.called_ns) = (Some(call), cx.now_ns),
            Err(_) => {
                let problem =
                    format!("the proxy sends nothing to `{}`: no such cluster, or nobody in it", source.cluster);
                self.failed(source, shared, cx, key, ("unreachable", &problem));
            }
        }
    }

    /// The version of the rules that an answer brings, or confirms.
    pub(crate) fn answered(
        &mut self,
        settings: &Settings,
        source: &Endpoint,
        shared: &Shared,
        cx: &mut Tick<'_>,
        (call, answer): (u32, &Answer<'_>),
        last_version: u64,
    ) -> Option<u64> {
        if self.call != Some(call) {
            return None;
        }
        self.call = None;
        let place = name(source);
        let key = shared.key(&[&place, "/poller"].concat());
        match answer.status() {
            Some(304) => {
                self.good(source, shared, cx, &key, "unchanged");
                // Another worker may have accepted it, and told nobody any more.
                return shared.document(cx.host, &place).map(|document| document.version);
            }
            Some(200) => match read(settings, source, answer) {
                Ok((body, rules)) => {
                    let etag = answer.header("etag").filter(|etag| etag.len() <= 256);
                    let etag = etag.as_deref().unwrap_or(&[]);
                    let last = shared.document(cx.host, &place);
                    // Servers that serve the same side by side may each have an ETag of their own for it: it is no change.
                    if let Some(last) = last.filter(|last| last.body == body) {
                        if last.etag != etag {
                            shared.relabel(cx.host, &place, last.version, etag);
                        }
                        self.good(source, shared, cx, &key, "unchanged");
                        // Another worker may have accepted it, and told nobody any more.
                        return Some(last.version);
                    }
                    let document = shared.accept(cx.host, &place, last_version, (etag, &body))?;
                    self.good(source, shared, cx, &key, "applied");
                    let (number, version) = (rules.len(), document.version);
                    log::info!(
                        "circuit-breaker: version {version} of the rules, {number} of them, from {}",
                        place_of(source)
                    );
                    return Some(document.version);
                }
                Err(problem) => self.failed(source, shared, cx, &key, ("refused", &problem)),
            },
            Some(status) => {
                let problem = format!("{} says {status}", place_of(source));
                self.failed(source, shared, cx, &key, ("unreachable", &problem));
            }
            None => {
                let problem = format!("{} gives no answer", place_of(source));
                self.failed(source, shared, cx, &key, ("unreachable", &problem));
            }
        }
        None
    }

    fn good(&mut self, source: &Endpoint, shared: &Shared, cx: &mut Tick<'_>, key: &str, result: &str) {
        cx.metrics.add(cx.host, &UPDATES, &[shared.plugin(), result], 1);
        if self.said.take().is_some() {
            log::info!("circuit-breaker: the source of rules answers again");
        }
        // It is well: the pause that it was given for its failures is over.
        self.due_ns = self.due_ns.min(cx.now_ns.saturating_add(pause(source, 0)));
        note(cx.host, key, &|lease| Lease { good_ns: cx.now_ns, failures: 0, ..lease });
    }

    fn failed(
        &mut self,
        source: &Endpoint,
        shared: &Shared,
        cx: &mut Tick<'_>,
        key: &str,
        (result, problem): (&str, &str),
    ) {
        cx.metrics.add(cx.host, &UPDATES, &[shared.plugin(), result], 1);
        // Once, and not each time.
        if self.said.as_deref() != Some(problem) {
            log::warn!("circuit-breaker: the rules stay as they are: {problem}");
            self.said = Some(problem.into());
        }
        // A document that is wrong is put right by somebody who waits for it.
        if result == "refused" {
            return;
        }
        let mut failures = 1_u64;
        let _ = exchange(cx.host, key, &mut |bytes| {
            let lease = Lease::decode(bytes?)?;
            failures = lease.failures.saturating_add(1);
            Some(Lease { failures, ..lease }.encode())
        });
        // Its interval may be an hour.
        self.due_ns = self.due_ns.min(cx.now_ns.saturating_add(pause(source, failures)));
    }
}

fn read(settings: &Settings, source: &Endpoint, answer: &Answer<'_>) -> Result<(Vec<u8>, Vec<Rule>), String> {
    if answer.size() > source.max_bytes {
        return Err(format!("{} bytes from {}, max_bytes is {}", answer.size(), place_of(source), source.max_bytes));
    }
    let body = answer.body(source.max_bytes);
    let wrong = |refusal: Refusal| format!("from {}, {refusal}", place_of(source));
    let (document, rules) = settings.read(source.form, &body).map_err(wrong)?;
    Ok((document.into_owned(), rules))
}

fn note(host: &dyn Host, key: &str, change: &dyn Fn(Lease) -> Lease) {
    // Who took the lease over meanwhile asks anew.
    let _ = exchange(host, key, &mut |bytes| Some(change(Lease::decode(bytes?)?).encode()));
}

fn place_of(source: &Endpoint) -> String {
    [&source.cluster, &*source.path].concat()
}

/// The interval. After failures as long, but no longer than 10 s, and twice as long each time: up to sixteen intervals, and
/// an hour.
fn pause(source: &Endpoint, failures: u64) -> u64 {
    let interval = source.interval_ms.saturating_mul(MS);
    let Some(before) = failures.checked_sub(1) else { return interval };
    let times = 1_u64 << before.min(20);
    let most = interval.saturating_mul(16).min(LONGEST_NS.max(interval));
    interval.min(SOON_NS).saturating_mul(times).min(most)
}

/// Up to a tenth less, so that proxies that started together do not ask together.
fn jittered(pause: u64, rng: &mut Rng) -> u64 {
    let tenth = (pause / 10).max(1);
    pause.saturating_sub(rng.next_u64().checked_rem(tenth).unwrap_or(0))
}
