//! What traffic did: the breakers of a worker, and how they follow what all workers agreed on.

use crate::board::{Board, Probe, State as Phase};
use crate::breaker::{Breaker, Completion, Verdict};
use crate::resource;
use crate::rules::{self, Mode, Rule, Strategy};
use crate::shared::{Shared, Unchanged};
use crate::source::{Poll, VERSION};
use crate::window::{Counts, Published, Slot};
use core::hash::{BuildHasherDefault, Hasher};
use hashbrown::HashMap;
use kit::prelude::*;
use kit::{Host, Labels, Metric, MetricKind, Metrics, Rng};

/// Of a breaker.
const LABELS: &[&str] = &["resource", "rule"];

/// Where it stands.
pub(crate) static STATE: Metric = Metric {
    kind: MetricKind::Gauge,
    name: "meshfilter_circuit_state",
    help: "State of a breaker: 0 closed, 1 half open, 2 open.",
    labels: LABELS,
};
/// How it came there.
pub(crate) static TRANSITIONS: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_transitions_total",
    help: "Changes of a breaker's state, by where it came from and went to.",
    labels: &["resource", "rule", "from", "to"],
};
/// What it let pass.
pub(crate) static ALLOWED: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_allowed_total",
    help: "Requests that a breaker let pass, probes not among them.",
    labels: LABELS,
};
/// What it did not.
pub(crate) static REJECTED: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_rejected_total",
    help: "Requests that a breaker did not let pass: answered, or sent to the fallback.",
    labels: LABELS,
};
/// What it would not have let pass.
pub(crate) static DRY_RUN: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_dry_run_rejected_total",
    help: "Requests that a breaker in dry run let pass and would have rejected.",
    labels: LABELS,
};
/// What it tried.
pub(crate) static PROBES: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_probes_total",
    help: "Requests that a breaker let pass to see whether the upstream is well again.",
    labels: LABELS,
};
/// What has no breaker.
pub(crate) static UNPROTECTED: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_unprotected_total",
    help: "Requests to resources beyond max_resources, which have no breakers.",
    labels: &["plugin"],
};

/// A closed breaker whose last change is as old as this is taken off the board.
const FORGET_NS: u64 = 3_600_000_000_000;
/// How often a worker says that it is there, if it has counted anything.
const HEARTBEAT_NS: u64 = 1_000_000_000;

/// What traffic did to a plugin on one worker.
#[derive(Default)]
pub struct State {
    pub(crate) shared: Shared,
    pub(crate) poll: Poll,
    rules: Vec<Rule>,
    /// Of the rules from the source; 0 where they are the configuration's.
    pub(crate) version: u64,
    /// Of rules that say none.
    pub(crate) mode: Mode,
    /// Whose configuration holds: the place of the policy.
    pub(crate) policy: usize,
    /// The name of its source, and whether it has one.
    pub(crate) source: Option<String>,
    /// Whether any of them has one.
    fallback: bool,
    resources: Vec<Resource>,
    names: HashMap<Box<[u8]>, usize, BuildHasherDefault<NameHasher>>,
    published_ns: u64,
    /// Whether anything was counted that the others do not know yet.
    counted: bool,
    /// Of the board's versions, the last one that was followed.
    handled: u64,
}

/// What is protected.
struct Resource {
    name: String,
    /// What rules meet it by, and the cluster that one of them names in full.
    host: String,
    cluster: Option<Box<[u8]>>,
    /// By the places of their rules, in that order.
    breakers: Vec<(usize, Breaker, Labels)>,
}

/// A permit for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    pub(crate) key: u64,
    pub(crate) id: u64,
}

/// What the breakers of a request say to it.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// Resource and place of the breaker that does not let it pass.
    pub(crate) blocked: Option<At>,
    /// The same in dry run.
    pub(crate) dry_run: Option<At>,
    pub(crate) permits: Vec<Permit>,
}

/// Who is asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Class {
    #[default]
    Ordinary,
    /// Passes whatever a breaker says.
    Exempt,
    /// Passes until a probe has failed.
    ShedLast,
}

impl State {
    /// Takes over other rules: what they name keeps its state, its counts and its retry time.
    pub(crate) fn adopt(&mut self, host: &dyn Host, metrics: &mut Metrics, rules: Vec<Rule>, version: u64) {
        if version != self.version {
            self.version = version;
            metrics.record(host, &VERSION, &[self.shared.plugin()], version);
        }
        if rules == self.rules {
            return;
        }
        let old_rules = core::mem::replace(&mut self.rules, rules);
        let Self { rules, resources, names, .. } = self;
        // What no rule met may be met now.
        names.retain(|_, resource| *resource != NONE);
        for resource in resources {
            let mut old = core::mem::take(&mut resource.breakers);
            for (place, rule) in met(rules, resource.host.as_bytes(), resource.cluster.as_deref()) {
                let key = rule.key(&resource.name);
                let kept = old.iter().position(|(_, breaker, _)| breaker.key == key).map(|at| old.swap_remove(at));
                let (breaker, labels) = match kept {
                    Some((old_place, mut breaker, labels)) => {
                        if let Some(old_rule) = old_rules.get(old_place) {
                            breaker.under(old_rule, rule);
                        }
                        (breaker, labels)
                    }
                    None => (Breaker::new(key, rule), labels_of(host, metrics, &resource.name, rule)),
                };
                resource.breakers.push((place, breaker, labels));
            }
            for (_, breaker, labels) in old {
                // Nothing is broken by a rule that is gone.
                if breaker.word.state != Phase::Closed {
                    metrics.record_to(host, &STATE, labels, 0);
                }
            }
        }
        // Those that are new here may be old to others.
        self.shared.look_again();
        self.fallback = self.rules.iter().any(|rule| rule.fallback.is_some());
    }

    /// Whether a rule sends requests to another route.
    pub(crate) fn has_fallback(&self) -> bool {
        self.fallback
    }

    /// Whether a request that took so long is slow under any rule of its resources.
    pub(crate) fn is_slow(&self, resources: &[usize], rt_us: u64) -> bool {
        let mut found = places(&self.resources, resources).filter_map(|at| find(&self.rules, &self.resources, at));
        found.any(|(rule, breaker)| match &rule.strategy {
            Strategy::SlowRatio { limit, .. } => rt_us > breaker.limit_us(limit),
            Strategy::ErrorRatio { .. } | Strategy::ErrorCount { .. } => false,
        })
    }

    /// Follows what all workers agreed on, if anything of it changed.
    #[inline]
    pub(crate) fn follow(&mut self, host: &dyn Host, metrics: &mut Metrics) {
        if let Some(board) = self.shared.news(host, metrics) {
            self.take_over(host, metrics, &board);
        }
    }

    #[cold]
    fn take_over(&mut self, host: &dyn Host, metrics: &mut Metrics, board: &Board) {
        if board.version != self.handled {
            self.handled = board.version;
            self.read_document(host, metrics);
        }
        for (_, breaker, _) in self.resources.iter_mut().flat_map(|resource| &mut resource.breakers) {
            breaker.follow(board.get(breaker.key));
        }
    }

    /// The rules of the source, where there are any yet.
    pub(crate) fn read_document(&mut self, host: &dyn Host, metrics: &mut Metrics) -> bool {
        let mode = self.mode;
        if let Some(source) = &self.source
            && let Some(document) = self.shared.document(host, source)
            && let Ok(rules) = rules::read_as(&document.body, mode)
        {
            self.adopt(host, metrics, rules, document.version);
            return true;
        }
        false
    }

    /// The resource of that name; `Some(None)` where it is known that no rule meets it.
    #[inline]
    pub(crate) fn known(&self, name: &[u8]) -> Option<Option<usize>> {
        self.names.get(name).map(|place| (*place != NONE).then_some(*place))
    }

    /// The resource of a name that is not known yet; none where no rule meets it, or there are too many.
    #[cold]
    pub(crate) fn new_resource(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        name: &str,
        cluster: Option<&[u8]>,
        max: usize,
    ) -> Option<usize> {
        let key = cluster.unwrap_or(name.as_bytes());
        let met: Vec<usize> = met(&self.rules, name.as_bytes(), cluster).into_iter().map(|(place, _)| place).collect();
        if met.is_empty() {
            // Clusters are the operator's, and few; what a client names is not kept.
            if cluster.is_some() && self.names.len() < max {
                self.names.insert(key.into(), NONE);
            }
            return None;
        }
        // Subsets of one host are one resource, but where a rule names a cluster in full.
        let own = cluster.filter(|cluster| self.rules.iter().any(|rule| rule.resource.as_bytes() == *cluster));
        let host_name = name;
        let name = own.and_then(|own| str::from_utf8(own).ok()).unwrap_or(name);
        let same = self.resources.iter().position(|known| known.name == name);
        let place = match same {
            Some(place) => place,
            None if self.resources.len() >= max => {
                metrics.add(host, &UNPROTECTED, &[self.shared.plugin()], 1);
                return None;
            }
            None => {
                let mut breakers = Vec::with_capacity(met.len());
                for place in met {
                    let Some(rule) = self.rules.get(place) else { continue };
                    let labels = labels_of(host, metrics, name, rule);
                    breakers.push((place, Breaker::new(rule.key(name), rule), labels));
                }
                let cluster = own.map(Into::into);
                self.resources.push(Resource { name: name.into(), host: host_name.into(), cluster, breakers });
                // Others may have opened it long ago.
                self.shared.look_again();
                self.follow(host, metrics);
                self.resources.len().saturating_sub(1)
            }
        };
        self.names.insert(key.into(), place);
        Some(place)
    }

    /// Whether a request may pass. Takes its permits for probes, all of them or none.
    pub(crate) fn decide(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        rng: &mut Rng,
        resources: &[usize],
        class: Class,
        now_ns: u64,
    ) -> Decision {
        let mut decision = Decision::default();
        let mut asked = false;
        for place in resources {
            let Some(resource) = self.resources.get(*place) else { continue };
            for (at, (rule, breaker, labels)) in resource.breakers.iter().enumerate() {
                let Some(rule) = self.rules.get(*rule) else { continue };
                let (mode, verdict) = match rule.mode {
                    Mode::Disabled => continue,
                    _ if !rule.is_active(now_ns) => continue,
                    Mode::ForcedClosed => (Mode::ForcedClosed, Verdict::Pass),
                    Mode::ForcedOpen => (Mode::Enforce, Verdict::Block),
                    mode => (mode, breaker.verdict(now_ns)),
                };
                let verdict = match class {
                    Class::Exempt => Verdict::Pass,
                    Class::ShedLast if breaker.word.openings <= 1 && rule.mode != Mode::ForcedOpen => match verdict {
                        Verdict::Block => Verdict::Pass,
                        other => other,
                    },
                    _ => verdict,
                };
                match verdict {
                    Verdict::Pass => metrics.add_to(host, &ALLOWED, *labels, 1),
                    Verdict::Probe => asked = true,
                    Verdict::Block if mode == Mode::DryRun => {
                        metrics.add_to(host, &DRY_RUN, *labels, 1);
                        decision.dry_run.get_or_insert((*place, at));
                    }
                    Verdict::Block => {
                        decision.blocked.get_or_insert((*place, at));
                    }
                }
            }
        }
        // A request that another breaker blocks is no probe.
        if asked && decision.blocked.is_none() {
            self.probe(host, metrics, rng, resources, class, now_ns, &mut decision);
        }
        if let Some(at) = decision.blocked {
            self.count_at(host, metrics, at, &REJECTED);
        }
        decision
    }

    /// Takes permits from all breakers that are to be probed, in one change of the board: so one that is refused needs no
    /// giving back of others.
    #[cold]
    #[allow(clippy::too_many_arguments, reason = "what a context has, in its parts")]
    fn probe(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        rng: &mut Rng,
        resources: &[usize],
        class: Class,
        now_ns: u64,
        decision: &mut Decision,
    ) {
        let id = rng.next_u64();
        let (mut refused, mut granted, mut turns) = (Vec::new(), Vec::new(), Vec::new());
        let mut blocked = None;
        let mut first = None;
        let changed = self.shared.change(host, |board| {
            refused.clear();
            granted.clear();
            turns.clear();
            (blocked, first) = (None, None);
            for at in places(&self.resources, resources) {
                let Some((rule, breaker)) = find(&self.rules, &self.resources, at) else { continue };
                let concerned = matches!(rule.mode, Mode::Enforce | Mode::DryRun) && rule.is_active(now_ns);
                if !concerned || breaker.verdict(now_ns) != Verdict::Probe {
                    continue;
                }
                let word = board.get(breaker.key);
                let (state, openings) = (word.state, word.openings);
                match word.probe(now_ns, id, rule.probes, rule.probe_timeout_ns) {
                    Probe::Granted(new) => {
                        if state != new.state {
                            turns.push((at, state, Cause::Retry));
                        }
                        board.set(breaker.key, new);
                        granted.push((at, Permit { key: breaker.key, id }));
                        first.get_or_insert(at);
                    }
                    // Closed meanwhile, by another worker.
                    Probe::Wait if state == Phase::Closed => {}
                    Probe::Wait if rule.mode == Mode::DryRun => refused.push(at),
                    Probe::Wait if class == Class::ShedLast && openings <= 1 => {}
                    Probe::Wait => {
                        blocked = Some(at);
                        return None;
                    }
                }
            }
            board.forget(now_ns, FORGET_NS);
            (!granted.is_empty()).then_some(())
        });
        match changed {
            Ok(((), board)) => {
                for (at, permit) in granted {
                    self.count_at(host, metrics, at, &PROBES);
                    decision.permits.push(permit);
                }
                self.turned(host, metrics, &board, turns);
            }
            // Whoever is not counted as a probe might be one too many.
            Err(Unchanged::Contended) => blocked = blocked.or(first),
            // What this worker knew is old.
            Err(Unchanged::Unwanted) => self.shared.look_again(),
            // Without a host that keeps the board nobody can be told apart, and then traffic passes.
            Err(Unchanged::Host) => {}
        }
        decision.blocked = blocked;
        if blocked.is_none() {
            for at in refused {
                self.count_at(host, metrics, at, &DRY_RUN);
                decision.dry_run.get_or_insert(at);
            }
        }
    }

    fn count_at(&self, host: &dyn Host, metrics: &mut Metrics, (place, at): At, metric: &'static Metric) {
        if let Some((_, _, labels)) = self.resources.get(place).and_then(|resource| resource.breakers.get(at)) {
            metrics.add_to(host, metric, *labels, 1);
        }
    }

    /// A request has ended; `done` is none where its end says nothing.
    pub(crate) fn complete(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        resources: &[usize],
        permits: &[Permit],
        done: Option<&Completion>,
    ) {
        if !permits.is_empty() {
            self.probed(host, metrics, resources, permits, done);
        }
        let Some(done) = done else { return };
        self.counted = true;
        let Self { resources: all, rules, .. } = self;
        let mut trips = Vec::new();
        for place in resources {
            let Some(resource) = all.get_mut(*place) else { continue };
            for (at, (rule, breaker, _)) in resource.breakers.iter_mut().enumerate() {
                let Some(rule) = rules.get(*rule) else { continue };
                if rule.mode == Mode::Disabled || !rule.is_active(done.now_ns) {
                    continue;
                }
                if let Some(counts) = breaker.count(rule, done)
                    && matches!(rule.mode, Mode::Enforce | Mode::DryRun)
                {
                    trips.push(((*place, at), counts));
                }
            }
        }
        if !trips.is_empty() {
            self.trip(host, metrics, &trips, done.now_ns);
        }
    }

    /// What probes found out.
    #[cold]
    fn probed(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        resources: &[usize],
        permits: &[Permit],
        done: Option<&Completion>,
    ) {
        let mut turns = Vec::new();
        let changed = self.shared.change(host, |board| {
            turns.clear();
            let mut any = false;
            for at in places(&self.resources, resources) {
                let Some((rule, breaker)) = find(&self.rules, &self.resources, at) else { continue };
                let Some(permit) = permits.iter().find(|permit| permit.key == breaker.key) else { continue };
                let word = board.get(breaker.key);
                let (new, cause) = match done {
                    None => (word.withdrawn(permit.id), Cause::Withdrawn),
                    Some(done) if breaker.is_bad(rule, done) => {
                        (word.failed(done.now_ns, permit.id, rule.retry_ns), Cause::Failed(done.rt_us))
                    }
                    Some(done) => (word.passed(done.now_ns, permit.id, rule.probes), Cause::Passed),
                };
                // Of an earlier period, or it ran out.
                let Some(new) = new else { continue };
                if word.state != new.state {
                    turns.push((at, word.state, cause));
                }
                board.set(breaker.key, new);
                any = true;
            }
            any.then_some(())
        });
        if let Ok(((), board)) = changed {
            self.turned(host, metrics, &board, turns);
        }
    }

    #[cold]
    fn trip(&mut self, host: &dyn Host, metrics: &mut Metrics, trips: &[(At, Counts)], now_ns: u64) {
        let mut turns = Vec::new();
        let changed = self.shared.change(host, |board| {
            turns.clear();
            for (at, counts) in trips {
                let Some((rule, breaker)) = find(&self.rules, &self.resources, *at) else { continue };
                let word = board.get(breaker.key);
                if let Some(new) = word.tripped(now_ns, rule.retry_ns) {
                    turns.push((*at, word.state, Cause::Counts(*counts)));
                    board.set(breaker.key, new);
                }
            }
            (!turns.is_empty()).then_some(())
        });
        match changed {
            Ok(((), board)) => self.turned(host, metrics, &board, turns),
            Err(_) => self.shared.look_again(),
        }
    }

    /// This worker has changed the state of breakers: the others are told, and so are people.
    fn turned(&mut self, host: &dyn Host, metrics: &mut Metrics, board: &Board, turns: Vec<(At, Phase, Cause)>) {
        for ((place, at), from, cause) in &turns {
            let Some(resource) = self.resources.get_mut(*place) else { continue };
            let Resource { name, breakers, .. } = resource;
            let Some((rule, breaker, labels)) = breakers.get_mut(*at) else { continue };
            let Some(rule) = self.rules.get(*rule) else { continue };
            breaker.follow(board.get(breaker.key));
            let to = breaker.word.state;
            metrics.record_to(host, &STATE, *labels, to.number().into());
            metrics.add(host, &TRANSITIONS, &[name, &rule.id, from.name(), to.name()], 1);
            log::warn!(
                "circuit-breaker: {name}, rule {}: {} to {}: {}",
                rule.id,
                from.name(),
                to.name(),
                why(rule, breaker, cause)
            );
        }
        if !turns.is_empty() {
            self.shared.tell(host, metrics);
        }
    }

    /// Time has passed: what this worker counted goes to the others, and theirs comes here.
    pub(crate) fn exchange(&mut self, host: &dyn Host, metrics: &mut Metrics, now_ns: u64) {
        self.follow(host, metrics);
        let quiet = now_ns.saturating_sub(self.published_ns) < HEARTBEAT_NS && now_ns >= self.published_ns;
        if self.counted || (!quiet && self.published_ns > 0) {
            let mut published: Vec<Published> = Vec::new();
            for (_, breaker, _) in self.resources.iter().flat_map(|resource| &resource.breakers) {
                let buckets: Vec<_> = breaker.own.live(now_ns).collect();
                if !buckets.is_empty() {
                    let (key, since_ns, width_ns) = (breaker.key, breaker.word.since_ns, breaker.own.width_ns());
                    published.push(Published { key, since_ns, width_ns, buckets });
                }
            }
            published.sort_unstable_by_key(|published| published.key);
            let told = self.shared.publish(host, metrics, &Slot { at_ns: now_ns, published });
            self.counted = self.counted && !told;
            self.published_ns = now_ns;
        }
        let slots = self.shared.others(host);
        let mut trips = Vec::new();
        for (place, resource) in self.resources.iter_mut().enumerate() {
            for (at, (rule, breaker, _)) in resource.breakers.iter_mut().enumerate() {
                let before = breaker.others.sum(now_ns);
                breaker.others.clear();
                for slot in &slots {
                    let found = slot.published.binary_search_by_key(&breaker.key, |published| published.key);
                    let Some(told) = found.ok().and_then(|found| slot.published.get(found)) else { continue };
                    if told.since_ns == breaker.word.since_ns && told.width_ns == breaker.own.width_ns() {
                        told.buckets.iter().for_each(|bucket| breaker.others.merge(*bucket));
                    }
                }
                // One of theirs may be the one that was missing.
                let Some(rule) = self.rules.get(*rule) else { continue };
                let judged = matches!(rule.mode, Mode::Enforce | Mode::DryRun) && rule.is_active(now_ns);
                if judged
                    && breaker.others.sum(now_ns).bad > before.bad
                    && let Some(counts) = breaker.trips(rule, now_ns)
                {
                    trips.push(((place, at), counts));
                }
            }
        }
        if !trips.is_empty() {
            self.trip(host, metrics, &trips, now_ns);
        }
    }

    /// New rules of the source, accepted by this worker: all others are to have them.
    pub(crate) fn spread(&mut self, host: &dyn Host, metrics: &mut Metrics, version: u64, rules: Vec<Rule>) {
        let changed = self.shared.change(host, |board| (board.version < version).then(|| board.version = version));
        if changed.is_ok() {
            self.shared.tell(host, metrics);
        }
        self.handled = version;
        self.adopt(host, metrics, rules, version);
    }

    /// The highest version that was ever told.
    pub(crate) fn last_version(&self) -> u64 {
        self.handled
    }

    /// Name of a breaker's resource, and its rule.
    pub(crate) fn named(&self, (place, at): At) -> Option<(&str, &Rule, &Breaker)> {
        let resource = self.resources.get(place)?;
        let (rule, breaker, _) = resource.breakers.get(at)?;
        Some((&resource.name, self.rules.get(*rule)?, breaker))
    }
}

/// The rules that meet a name: those that say it, else those for all the rest.
fn met<'r>(rules: &'r [Rule], name: &[u8], cluster: Option<&[u8]>) -> Vec<(usize, &'r Rule)> {
    let of = |wanted: &dyn Fn(&Rule) -> bool| -> Vec<(usize, &'r Rule)> {
        rules.iter().enumerate().filter(|(_, rule)| wanted(rule)).collect()
    };
    let named = of(&|rule| rule.resource != REST && resource::meets(&rule.resource, name, cluster));
    if named.is_empty() { of(&|rule| rule.resource == REST) } else { named }
}

/// What a rule protects that protects all the rest.
const REST: &str = "*";

/// Resource, and place among its breakers.
pub(crate) type At = (usize, usize);

/// No resource: no rule meets the name.
const NONE: usize = usize::MAX;

/// Why a breaker changed its state.
enum Cause {
    Counts(Counts),
    Retry,
    Passed,
    Failed(u64),
    Withdrawn,
}

fn why(rule: &Rule, breaker: &Breaker, cause: &Cause) -> String {
    let retry = rule.retry_ns / 1_000_000;
    match (cause, &rule.strategy) {
        (Cause::Counts(Counts { total, bad }), strategy) => {
            let what = match strategy {
                Strategy::SlowRatio { limit, .. } => format!("slower than {} ms", breaker.limit_us(limit) / 1000),
                Strategy::ErrorRatio { .. } | Strategy::ErrorCount { .. } => "errors".into(),
            };
            let interval = rule.interval_ns / 1_000_000;
            format!("{bad} of {total} requests in {interval} ms were {what}; probes after {retry} ms")
        }
        (Cause::Retry, _) => format!("{retry} ms are over, a probe goes upstream"),
        (Cause::Passed, _) => format!("{} of {} probes were good", rule.probes, rule.probes),
        (Cause::Failed(us), Strategy::SlowRatio { .. }) => {
            format!("a probe took {} ms; the next after {retry} ms", us / 1000)
        }
        (Cause::Failed(_), _) => format!("a probe failed; the next after {retry} ms"),
        (Cause::Withdrawn, _) => "a probe ended without saying anything".into(),
    }
}

fn places(all: &[Resource], wanted: &[usize]) -> impl Iterator<Item = At> {
    wanted.iter().flat_map(|place| {
        let breakers = all.get(*place).map_or(0, |resource| resource.breakers.len());
        (0..breakers).map(|at| (*place, at))
    })
}

fn find<'s>(rules: &'s [Rule], all: &'s [Resource], (place, at): At) -> Option<(&'s Rule, &'s Breaker)> {
    let (rule, breaker, _) = all.get(place)?.breakers.get(at)?;
    Some((rules.get(*rule)?, breaker))
}

fn labels_of(host: &dyn Host, metrics: &mut Metrics, resource: &str, rule: &Rule) -> Labels {
    let labels = metrics.labels(&[resource, &rule.id]);
    metrics.add_to(host, &STATE, labels, 0);
    labels
}

/// Eight bytes at a time, one multiplication each, no seed: who could choose names so that they meet chooses among
/// `max_resources`.
#[derive(Default)]
pub(crate) struct NameHasher(u64);

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        self.write_u64(u64::from_le_bytes(last));
    }
    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, length: usize) {
        self.write_u64(u64::try_from(length).unwrap_or(0));
    }
}
