//! What traffic did: the breakers of a worker, and how they follow what all workers agreed on.

use crate::board::{Board, Probe, State as Phase, Word};
use crate::breaker::{Breaker, Completion, Verdict};
use crate::config::{Endpoint, Settings};
use crate::resource::{self, MOST_KINDS};
use crate::rules::{self, Mode, Rule, Strategy};
use crate::shared::{Shared, Unchanged};
use crate::source::{self, Poll, VERSION};
use crate::window::{Counts, Published, Slot};
use kit::alloc::rc::{Rc, Weak};
use kit::prelude::*;
use kit::{Answer, Host, Labels, Metric, MetricKind, Metrics, Rng};

/// Of a breaker.
const LABELS: &[&str] = &["resource", "rule"];

/// Where it stands.
pub(crate) static STATE: Metric = Metric {
    kind: MetricKind::Gauge,
    name: "meshfilter_circuit_state",
    help: Metric::help("State of a breaker: 0 closed, 1 half open, 2 open."),
    labels: LABELS,
};
/// How it came there.
pub(crate) static TRANSITIONS: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_transitions_total",
    help: Metric::help("Changes of a breaker's state, by where it came from and went to."),
    labels: &["resource", "rule", "from", "to"],
};
/// What it let pass.
pub(crate) static ALLOWED: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_allowed_total",
    help: Metric::help("Requests that a breaker let pass, probes not among them."),
    labels: LABELS,
};
/// What it did not.
pub(crate) static REJECTED: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_rejected_total",
    help: Metric::help("Requests that a breaker did not let pass: answered, or sent to the fallback."),
    labels: LABELS,
};
/// What it would not have let pass.
pub(crate) static DRY_RUN: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_dry_run_rejected_total",
    help: Metric::help("Requests that a breaker in dry run let pass and would have rejected."),
    labels: LABELS,
};
/// What it tried.
pub(crate) static PROBES: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_probes_total",
    help: Metric::help("Requests that a breaker let pass to see whether the upstream is well again."),
    labels: LABELS,
};
/// What has no breaker.
pub(crate) static UNPROTECTED: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_unprotected_total",
    help: Metric::help("Requests to resources beyond max_resources, which have no breakers."),
    labels: &["plugin"],
};

/// A closed breaker whose last change is as old as this is taken off the board.
const FORGET_NS: u64 = 3_600_000_000_000;
/// When something bad ended, the other workers' counts are asked for before the next tick, if they are older than this,
/// and for each breaker, whose counts are published and read, this much more.
const SOON_NS: u64 = 100_000;
const SOON_EACH_NS: u64 = 10_000;
/// How often a worker says that it is there, if it has counted anything.
const HEARTBEAT_NS: u64 = 1_000_000_000;

/// What traffic did to a plugin on one worker, under all the configurations that it has.
#[derive(Default)]
pub struct State {
    pub(crate) shared: Shared,
    /// By the names of their sources, which are few.
    polls: Vec<(String, Poll)>,
    /// Free places are none, and are taken again.
    breakers: Vec<Option<Entry>>,
    /// Their places by their keys, in order.
    index: Vec<(u64, usize)>,
    /// By the configurations that have them; the place of one that is gone is none, and is taken again.
    tables: Vec<Option<Table>>,
    /// Of the table that came last.
    serial: u64,
    /// Whether anything on the board is not closed.
    open: bool,
    /// Of the board's versions, the last one that was followed.
    handled: u64,
    exchanged_ns: u64,
    published_ns: u64,
    /// Whether anything was counted that the others do not know yet.
    counted: bool,
}

/// One breaker, under the rule that was taken over last.
struct Entry {
    resource: String,
    rule: Rule,
    breaker: Breaker,
    labels: Labels,
}

impl Entry {
    /// The mode that it is in, and whether it acts by its state.
    fn judges(&self, now_ns: u64) -> bool {
        matches!(self.rule.mode, Mode::Enforce | Mode::DryRun) && self.rule.is_active(now_ns)
    }

    /// By which others know its counts: slow ones are no errors, where not all have heard of a change yet.
    fn counted(&self) -> u64 {
        self.breaker.key ^ u64::from(matches!(self.rule.strategy, Strategy::SlowRatio { .. }))
    }
}

/// Which breakers the requests under one configuration meet.
struct Table {
    /// Gone when the configuration is.
    owner: Weak<()>,
    /// The later it came, the larger.
    serial: u64,
    /// The name of its source, if it has one.
    source: Option<String>,
    /// Of rules that say none.
    mode: Mode,
    rules: Vec<Rule>,
    /// Of the rules from the source; 0 where they are the configuration's.
    version: u64,
    /// Places in it are kept by requests: none goes away.
    resources: Vec<Resource>,
    names: Names,
}

/// What is protected.
struct Resource {
    name: String,
    /// What rules meet it by, and the cluster that one of them names in full.
    host: String,
    cluster: Option<Box<[u8]>>,
    breakers: Vec<usize>,
}

/// A permit for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    key: u64,
    id: u64,
}

/// What the breakers of a request say to it. Breakers by their places.
#[derive(Debug, Default)]
pub(crate) struct Decision {
    /// That does not let it pass.
    pub(crate) blocked: Option<usize>,
    /// The same in dry run.
    pub(crate) dry_run: Option<usize>,
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

/// What a request concerns: resources of a configuration's table, no more than there may be kinds of them. Hardly ever more
/// than one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Places {
    table: usize,
    all: [usize; MOST_KINDS],
    count: usize,
}

impl Places {
    pub(crate) fn of(table: usize) -> Self {
        Self { table, ..Self::default() }
    }

    pub(crate) fn push(&mut self, place: usize) {
        if self.get().contains(&place) {
            return;
        }
        if let Some(free) = self.all.get_mut(self.count) {
            *free = place;
            self.count = self.count.saturating_add(1);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn get(&self) -> &[usize] {
        self.all.get(..self.count).unwrap_or(&[])
    }
}

impl State {
    /// A configuration takes office: the place of its table.
    pub(crate) fn install(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        owner: &Rc<()>,
        (source, mode): (Option<String>, Mode),
        rules: &[Rule],
    ) -> usize {
        self.retire(host, metrics);
        self.serial = self.serial.saturating_add(1);
        let serial = self.serial;
        let (names, resources) = (Names::default(), Vec::new());
        let owner = Rc::downgrade(owner);
        let table = Table { owner, serial, source, mode, rules: Vec::new(), version: 0, resources, names };
        let place = put(&mut self.tables, table);
        // What the source once said holds until it says something else.
        if !self.read_document(host, metrics, place) {
            self.adopt(host, metrics, place, rules.to_vec(), 0);
        }
        self.follow(host, metrics);
        place
    }

    /// Drops the tables of configurations that are gone, and what only they had.
    fn retire(&mut self, host: &dyn Host, metrics: &mut Metrics) {
        let gone = |table: &Option<Table>| table.as_ref().is_some_and(|table| table.owner.strong_count() == 0);
        if !self.tables.iter().any(gone) {
            return;
        }
        let Self { tables, polls, breakers, .. } = self;
        tables.iter_mut().filter(|table| gone(table)).for_each(|table| *table = None);
        polls.retain(|(name, _)| tables.iter().flatten().any(|table| table.source.as_ref() == Some(name)));
        // One that is there again, since the proxy went back to it, did not say so.
        let left = by_age(tables);
        let newest_first = left.iter().rev().filter_map(|place| tables.get(*place)?.as_ref());
        hold(breakers, || newest_first.clone().map(|table| table.rules.as_slice()));
        self.forget(host, metrics);
    }

    /// Takes over other rules: what they name keeps its state, its counts and its retry time.
    fn adopt(&mut self, host: &dyn Host, metrics: &mut Metrics, place: usize, rules: Vec<Rule>, version: u64) {
        let Self { tables, breakers, index, shared, .. } = self;
        let Some(table) = tables.get_mut(place).and_then(Option::as_mut) else { return };
        if table.version != version {
            table.version = version;
            metrics.record(host, &VERSION, &[shared.plugin()], version);
        }
        if rules == table.rules {
            return;
        }
        table.rules = rules;
        // Also what this table has not met yet: a worker without requests still hears of the others'.
        hold(breakers, || core::iter::once(table.rules.as_slice()));
        // What no rule met may be met now.
        table.names.0.retain(|(_, _, resource)| *resource != NONE);
        let Table { rules, resources, .. } = table;
        for Resource { name, host: met_by, cluster, breakers: meets } in resources {
            meets.clear();
            for rule in met(rules, met_by.as_bytes(), cluster.as_deref()) {
                enter((&mut *breakers, &mut *index), host, metrics, name, (rule, meets));
            }
        }
        self.forget(host, metrics);
        // Those that are new here may be old to others.
        self.shared.look_again();
    }

    /// Drops breakers that no configuration has any more. Nothing is broken by a rule that is gone; but one that a rule
    /// still names stays as long as there is something to it, whether or not a request has met it under that rule.
    fn forget(&mut self, host: &dyn Host, metrics: &mut Metrics) {
        let now_ns = host.now_ns();
        let Self { tables, breakers, index, .. } = self;
        let mut met = vec![false; breakers.len()];
        for place in tables.iter().flatten().flat_map(|table| &table.resources).flat_map(|resource| &resource.breakers)
        {
            if let Some(met) = met.get_mut(*place) {
                *met = true;
            }
        }
        for (place, _) in breakers.iter_mut().zip(met).filter(|(_, met)| !met) {
            let Some(Entry { resource, rule, breaker, labels }) = place else { continue };
            let says = breaker.word.state != Phase::Closed || breaker.counts(now_ns).total > 0;
            let named = |table: &Table| held(&table.rules, resource, &rule.id).is_some();
            if says && tables.iter().flatten().any(named) {
                continue;
            }
            if breaker.word.state != Phase::Closed {
                metrics.record_to(host, &STATE, *labels, 0);
            }
            index.retain(|(key, _)| *key != breaker.key);
            *place = None;
        }
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
            // The newest last: of a rule that several have, that one's holds.
            for place in by_age(&self.tables) {
                self.read_document(host, metrics, place);
            }
        }
        self.open = board.iter().any(|(_, word)| word.state != Phase::Closed);
        for Entry { breaker, .. } in self.breakers.iter_mut().flatten() {
            breaker.follow(board.get(breaker.key));
        }
    }

    /// The rules of a table's source, where there are any yet.
    fn read_document(&mut self, host: &dyn Host, metrics: &mut Metrics, place: usize) -> bool {
        let Some(Table { source: Some(source), mode, .. }) = self.table(place) else { return false };
        let Some(document) = self.shared.document(host, source) else { return false };
        let Ok(rules) = rules::read_as(&document.body, *mode) else { return false };
        self.adopt(host, metrics, place, rules, document.version);
        true
    }

    fn table(&self, place: usize) -> Option<&Table> {
        self.tables.get(place)?.as_ref()
    }

    fn entry(&self, place: usize) -> Option<&Entry> {
        self.breakers.get(place)?.as_ref()
    }

    /// The resource of that name; `Some(None)` where it is known that no rule meets it.
    #[inline]
    pub(crate) fn known(&self, table: usize, name: &[u8]) -> Option<Option<usize>> {
        self.table(table)?.names.get(name).map(|place| (place != NONE).then_some(place))
    }

    /// The resource of a name that is not known yet; none where no rule meets it, or there are too many.
    #[cold]
    pub(crate) fn new_resource(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        (table, max): (usize, usize),
        name: &str,
        cluster: Option<&[u8]>,
    ) -> Option<usize> {
        let Self { tables, breakers, index, shared, .. } = self;
        let Table { rules, resources, names, .. } = tables.get_mut(table)?.as_mut()?;
        let key = cluster.unwrap_or(name.as_bytes());
        let met = met(rules, name.as_bytes(), cluster);
        if met.is_empty() {
            // Clusters are the operator's, and few; what a client names is not kept.
            if cluster.is_some() && names.0.len() < max {
                names.insert(key, NONE);
            }
            return None;
        }
        // Subsets of one host are one resource, but where a rule names a cluster in full.
        let own = cluster.filter(|cluster| met.iter().any(|rule| rule.resource.as_bytes() == *cluster));
        let met_by = name;
        let name = own.and_then(|own| str::from_utf8(own).ok()).unwrap_or(name);
        let place = match names.get(name.as_bytes()).filter(|place| *place != NONE) {
            Some(place) => place,
            None if resources.len() >= max => {
                metrics.add(host, &UNPROTECTED, &[shared.plugin()], 1);
                return None;
            }
            None => {
                let mut meets = Vec::with_capacity(met.len());
                for rule in met {
                    enter((&mut *breakers, &mut *index), host, metrics, name, (rule, &mut meets));
                }
                let (cluster, name) = (own.map(Into::into), name.into());
                resources.push(Resource { name, host: met_by.into(), cluster, breakers: meets });
                resources.len().saturating_sub(1)
            }
        };
        names.insert(key, place);
        if names.get(name.as_bytes()) != Some(place) {
            // Under this name it may come by another way: another subset, or the host that a client asks for.
            names.insert(name.as_bytes(), place);
        }
        // Others may have opened it long ago.
        self.shared.look_again();
        self.follow(host, metrics);
        Some(place)
    }

    /// Whether a request may pass. Takes its permits for probes, all of them or none.
    pub(crate) fn decide(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        rng: &mut Rng,
        places: &Places,
        class: Class,
        now_ns: u64,
    ) -> Decision {
        let mut decision = Decision::default();
        let mut asked = false;
        // Two loops and not the one over `concerned`, whose steps cost more than the decision.
        let meets = |place: &usize| Some(self.table(places.table)?.resources.get(*place)?.breakers.as_slice());
        for breakers in places.get().iter().filter_map(meets) {
            for at in breakers.iter().copied() {
                let Some(Entry { rule, breaker, labels, .. }) = self.entry(at) else { continue };
                if !rule.is_active(now_ns) {
                    continue;
                }
                let verdict = match rule.mode {
                    Mode::Disabled => continue,
                    _ if class == Class::Exempt => Verdict::Pass,
                    Mode::ForcedClosed => Verdict::Pass,
                    Mode::ForcedOpen => Verdict::Block,
                    Mode::Enforce | Mode::DryRun => match breaker.verdict(now_ns) {
                        Verdict::Block if class == Class::ShedLast && breaker.word.openings <= 1 => Verdict::Pass,
                        verdict => verdict,
                    },
                };
                match verdict {
                    Verdict::Pass => metrics.add_to(host, &ALLOWED, *labels, 1),
                    Verdict::Probe => asked = true,
                    Verdict::Block if rule.mode == Mode::DryRun => {
                        metrics.add_to(host, &DRY_RUN, *labels, 1);
                        decision.dry_run.get_or_insert(at);
                    }
                    Verdict::Block => {
                        decision.blocked.get_or_insert(at);
                    }
                }
            }
        }
        // A request that another breaker blocks is no probe.
        if asked && decision.blocked.is_none() {
            self.probe(host, metrics, rng, places, class, now_ns, &mut decision);
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
        places: &Places,
        class: Class,
        now_ns: u64,
        decision: &mut Decision,
    ) {
        let id = rng.next_u64();
        let (mut passed, mut refused, mut granted, mut turns) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut blocked, mut first) = (None, None);
        let changed = self.shared.change(host, &mut |board| {
            passed.clear();
            refused.clear();
            granted.clear();
            turns.clear();
            (blocked, first) = (None, None);
            for at in concerned(&self.tables, places) {
                let Some(entry) = self.entry(at) else { continue };
                let Entry { rule, breaker, .. } = entry;
                if !entry.judges(now_ns) || breaker.verdict(now_ns) != Verdict::Probe {
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
                        if rule.mode == Mode::Enforce {
                            first.get_or_insert(at);
                        }
                    }
                    // Closed meanwhile, by another worker.
                    Probe::Wait if state == Phase::Closed => passed.push(at),
                    Probe::Wait if rule.mode == Mode::DryRun => refused.push(at),
                    Probe::Wait if class == Class::ShedLast && openings <= 1 => passed.push(at),
                    Probe::Wait => {
                        blocked = Some(at);
                        return false;
                    }
                }
            }
            board.forget(now_ns, FORGET_NS);
            !granted.is_empty()
        });
        match changed {
            Ok(board) => {
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
            for at in passed {
                self.count_at(host, metrics, at, &ALLOWED);
            }
            for at in refused {
                self.count_at(host, metrics, at, &DRY_RUN);
                decision.dry_run.get_or_insert(at);
            }
        }
    }

    /// Whether a request that says this in the fallback header may have chosen its route by it: where no rule has a fallback
    /// just now, whatever it says.
    pub(crate) fn is_fallback(&self, table: usize, value: &[u8]) -> bool {
        let Some(table) = self.table(table) else { return true };
        let mut all = table.rules.iter().filter_map(|rule| rule.fallback.as_deref());
        let mut any = false;
        all.any(|fallback| {
            any = true;
            fallback.as_bytes() == value
        }) || !any
    }

    /// Whether anything is open, by what all workers agreed on, or by force.
    pub(crate) fn is_broken(&self, table: usize, now_ns: u64) -> bool {
        let forced = |rule: &Rule| rule.mode == Mode::ForcedOpen && rule.is_active(now_ns);
        self.open || self.table(table).is_some_and(|table| table.rules.iter().any(forced))
    }

    fn count_at(&self, host: &dyn Host, metrics: &mut Metrics, at: usize, metric: &'static Metric) {
        if let Some(entry) = self.entry(at) {
            metrics.add_to(host, metric, entry.labels, 1);
        }
    }

    /// A request has ended; `done` is none where its end says nothing.
    pub(crate) fn complete(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        places: &Places,
        permits: &[Permit],
        done: Option<&Completion>,
    ) {
        if !permits.is_empty() {
            self.probed(host, metrics, places, permits, done);
        }
        let Some(done) = done else { return };
        self.counted = true;
        let Self { tables, breakers, .. } = self;
        let (mut suspect, mut bad) = (false, false);
        for at in concerned(tables, places) {
            let Some(Entry { rule, breaker, .. }) = breakers.get_mut(at).and_then(Option::as_mut) else { continue };
            if rule.mode != Mode::Disabled
                && rule.is_active(done.now_ns)
                && let Some(is_bad) = breaker.add(rule, done)
            {
                (suspect, bad) = (true, bad | is_bad);
            }
        }
        if suspect {
            self.judge(host, metrics, places, bad, done.now_ns);
        }
    }

    /// Whether it was one too many. If it was bad, that is said by the counts of all workers, as fresh as can be had cheaply.
    #[cold]
    fn judge(&mut self, host: &dyn Host, metrics: &mut Metrics, places: &Places, bad: bool, now_ns: u64) {
        let breakers = u64::try_from(self.breakers.len()).unwrap_or(u64::MAX);
        if bad && now_ns.abs_diff(self.exchanged_ns) >= SOON_NS.saturating_add(breakers.saturating_mul(SOON_EACH_NS)) {
            self.exchange(host, metrics, now_ns);
        }
        let Self { tables, breakers, .. } = self;
        let mut trips = Vec::new();
        for at in concerned(tables, places) {
            if let Some(entry) = breakers.get_mut(at).and_then(Option::as_mut)
                && entry.judges(now_ns)
                && let Some(counts) = entry.breaker.trips(&entry.rule, now_ns)
            {
                trips.push((at, counts));
            }
        }
        if !trips.is_empty() {
            self.trip(host, metrics, &trips, now_ns);
        }
    }

    /// What probes found out.
    #[cold]
    fn probed(
        &mut self,
        host: &dyn Host,
        metrics: &mut Metrics,
        places: &Places,
        permits: &[Permit],
        done: Option<&Completion>,
    ) {
        let mut turns = Vec::new();
        let changed = self.shared.change(host, &mut |board| {
            turns.clear();
            let mut any = false;
            for at in concerned(&self.tables, places) {
                let Some(Entry { rule, breaker, .. }) = self.entry(at) else { continue };
                let Some(permit) = permits.iter().find(|permit| permit.key == breaker.key) else { continue };
                let word = board.get(breaker.key);
                let state = word.state;
                let (new, cause) = match done {
                    None => (word.withdrawn(permit.id), Cause::Withdrawn),
                    Some(done) if breaker.is_bad(rule, done) => {
                        (word.failed(done.now_ns, permit.id, rule.retry_ns), Cause::Failed(done.rt_us))
                    }
                    Some(done) => (word.passed(done.now_ns, permit.id, rule.probes), Cause::Passed),
                };
                // Of an earlier period, or it ran out.
                let Some(new) = new else { continue };
                if state != new.state {
                    turns.push((at, state, cause));
                }
                board.set(breaker.key, new);
                any = true;
            }
            any
        });
        if let Ok(board) = changed {
            self.turned(host, metrics, &board, turns);
        }
    }

    #[cold]
    fn trip(&mut self, host: &dyn Host, metrics: &mut Metrics, trips: &[(usize, Counts)], now_ns: u64) {
        let mut turns = Vec::new();
        let changed = self.shared.change(host, &mut |board| {
            turns.clear();
            for (at, counts) in trips {
                let Some(Entry { rule, breaker, .. }) = self.entry(*at) else { continue };
                let word = board.get(breaker.key);
                // It may have opened and closed again since this worker last looked: then its counts are old.
                if word.since_ns != breaker.word.since_ns {
                    continue;
                }
                let state = word.state;
                if let Some(new) = word.tripped(now_ns, rule.retry_ns) {
                    turns.push((*at, state, Cause::Counts(*counts)));
                    board.set(breaker.key, new);
                }
            }
            board.forget(now_ns, FORGET_NS);
            !turns.is_empty()
        });
        match changed {
            Ok(board) => self.turned(host, metrics, &board, turns),
            Err(_) => self.shared.look_again(),
        }
    }

    /// This worker has changed the state of breakers: the others are told, and so are people.
    fn turned(&mut self, host: &dyn Host, metrics: &mut Metrics, board: &Board, turns: Vec<(usize, Phase, Cause)>) {
        // Workers first: what they do not know yet, they let pass.
        if !turns.is_empty() {
            self.shared.tell(host, metrics);
        }
        for (at, from, cause) in &turns {
            let Some(Some(Entry { resource, rule, breaker, labels })) = self.breakers.get_mut(*at) else { continue };
            let why = why(rule, breaker, cause);
            breaker.follow(board.get(breaker.key));
            let to = breaker.word.state;
            metrics.record_to(host, &STATE, *labels, to.number().into());
            metrics.add(host, &TRANSITIONS, &[resource, &rule.id, from.name(), to.name()], 1);
            log::warn!("circuit-breaker: {resource}, rule {}: {} to {}: {why}", rule.id, from.name(), to.name());
        }
    }

    /// Time has passed: what this worker counted goes to the others, theirs comes here, and the source is asked.
    pub(crate) fn tick(&mut self, cx: &mut Tick<'_>, source: Option<&Endpoint>, tick_ns: u64) {
        let now_ns = cx.now_ns;
        self.retire(cx.host, cx.metrics);
        // A proxy may be told to keep no such counter, and a full list of series may have none for it.
        self.shared.look_again();
        self.follow(cx.host, cx.metrics);
        // Several configurations tick each for itself.
        if now_ns.abs_diff(self.exchanged_ns) >= tick_ns / 2 {
            self.exchange(cx.host, cx.metrics, now_ns);
        }
        if let Some(source) = source {
            let Self { shared, polls, .. } = self;
            if let Some(poll) = poll_of(polls, source) {
                poll.tick(source, shared, cx);
            }
        }
    }

    /// A call has ended, perhaps one to the source.
    pub(crate) fn answered(&mut self, cx: &mut Tick<'_>, settings: &Settings, call: u32, answer: &Answer<'_>) {
        let Some(source) = &settings.source else { return };
        let Self { shared, polls, handled, .. } = self;
        let Some(poll) = poll_of(polls, source) else { return };
        let Some(version) = poll.answered(settings, source, shared, cx, (call, answer), *handled) else { return };
        // All others are to have them as well.
        let changed = self.shared.change(cx.host, &mut |board| {
            let newer = board.version < version;
            board.version = board.version.max(version);
            newer
        });
        if changed.is_ok() {
            self.shared.tell(cx.host, cx.metrics);
            self.follow(cx.host, cx.metrics);
        }
    }

    fn exchange(&mut self, host: &dyn Host, metrics: &mut Metrics, now_ns: u64) {
        self.exchanged_ns = now_ns;
        let quiet = now_ns.abs_diff(self.published_ns) < HEARTBEAT_NS;
        if self.counted || (!quiet && self.published_ns > 0) {
            let mut published: Vec<Published> = Vec::new();
            for entry in self.breakers.iter().flatten() {
                let breaker = &entry.breaker;
                let buckets: Vec<_> = breaker.own.live(now_ns).collect();
                if !buckets.is_empty() {
                    let (key, since_ns, width_ns) = (entry.counted(), breaker.word.since_ns, breaker.own.width_ns());
                    published.push(Published { key, since_ns, width_ns, buckets });
                }
            }
            sort(&mut published);
            let told = self.shared.publish(host, metrics, &Slot { at_ns: now_ns, published });
            self.counted = self.counted && !told;
            self.published_ns = now_ns;
        }
        let slots = self.shared.others(host);
        let mut trips = Vec::new();
        for (at, entry) in self.breakers.iter_mut().enumerate() {
            let Some(entry) = entry else { continue };
            let counted = entry.counted();
            let breaker = &mut entry.breaker;
            let before = breaker.others.sum(now_ns);
            breaker.others.clear();
            for slot in &slots {
                let found = slot.published.binary_search_by_key(&counted, |published| published.key);
                let Some(told) = found.ok().and_then(|found| slot.published.get(found)) else { continue };
                if told.since_ns == breaker.word.since_ns && told.width_ns == breaker.own.width_ns() {
                    told.buckets.iter().for_each(|bucket| breaker.others.merge(*bucket));
                }
            }
            // One of theirs may be the one that was missing.
            let after = breaker.others.sum(now_ns);
            breaker.suspect |= after.bad > 0;
            if after != before
                && entry.judges(now_ns)
                && let Some(counts) = entry.breaker.trips(&entry.rule, now_ns)
            {
                trips.push((at, counts));
            }
        }
        if !trips.is_empty() {
            self.trip(host, metrics, &trips, now_ns);
        }
    }

    /// A breaker with its resource and rule.
    pub(crate) fn named(&self, at: usize) -> Option<(&str, &Rule, &Breaker)> {
        let Entry { resource, rule, breaker, .. } = self.entry(at)?;
        Some((resource, rule, breaker))
    }

    /// The first breaker of a request.
    pub(crate) fn first(&self, places: &Places) -> Option<usize> {
        concerned(&self.tables, places).next()
    }

    /// Which rules of the source hold under a configuration; 0 where those of the configuration do.
    pub(crate) fn version(&self, table: usize) -> u64 {
        self.table(table).map_or(0, |table| table.version)
    }
}

/// Where there is no request: the host, and what a VM has one of.
pub(crate) struct Tick<'a> {
    pub(crate) host: &'a dyn Host,
    pub(crate) metrics: &'a mut Metrics,
    pub(crate) rng: &'a mut Rng,
    pub(crate) now_ns: u64,
}

/// What is known of a source; nothing yet, where it is new.
fn poll_of<'p>(polls: &'p mut Vec<(String, Poll)>, source: &Endpoint) -> Option<&'p mut Poll> {
    let name = source::name(source);
    let known = polls.iter().position(|(known, _)| *known == name);
    let place = known.unwrap_or_else(|| {
        polls.push((name, Poll::default()));
        polls.len().saturating_sub(1)
    });
    polls.get_mut(place).map(|(_, poll)| poll)
}

/// The places of the tables, the oldest first.
fn by_age(tables: &[Option<Table>]) -> Vec<usize> {
    let mut all: Vec<(u64, usize)> = Vec::new();
    for (place, table) in tables.iter().enumerate() {
        if let Some(table) = table {
            let at = all.iter().take_while(|(serial, _)| *serial < table.serial).count();
            all.insert(at.min(all.len()), (table.serial, place));
        }
    }
    all.into_iter().map(|(_, place)| place).collect()
}

/// Puts a value in the first free place.
fn put<T>(places: &mut Vec<Option<T>>, value: T) -> usize {
    if let Some(free) = places.iter().position(Option::is_none)
        && let Some(place) = places.get_mut(free)
    {
        *place = Some(value);
        return free;
    }
    places.push(Some(value));
    places.len().saturating_sub(1)
}

/// By their keys, by insertion over ever smaller distances (Shell): a tenth of the code of the library's, and hardly ever
/// more than a few.
fn sort(published: &mut [Published]) {
    for gap in [1750, 701, 301, 132, 57, 23, 10, 4, 1] {
        for end in gap..published.len() {
            let mut at = end;
            while let Some(before) = at.checked_sub(gap)
                && published.get(before).map(|one| one.key) > published.get(at).map(|one| one.key)
            {
                published.swap(before, at);
                at = before;
            }
        }
    }
}

/// Adds the place of the breaker of a rule over a resource. The rule that comes last is the one that holds: two that say one
/// resource by two names, `pay` and `pay.shop`, and have one id, are one.
#[inline(never)]
fn enter(
    (breakers, index): (&mut Vec<Option<Entry>>, &mut Vec<(u64, usize)>),
    host: &dyn Host,
    metrics: &mut Metrics,
    resource: &str,
    (rule, meets): (&Rule, &mut Vec<usize>),
) {
    let key = rule.key(resource);
    let first = index.partition_point(|(known, _)| *known < key);
    let known = index.get(first).filter(|(known, _)| *known == key).map(|(_, place)| *place);
    let place = match known.and_then(|place| Some((place, breakers.get_mut(place)?.as_mut()?))) {
        Some((place, entry)) => {
            entry.breaker.under(&entry.rule, rule);
            entry.rule.clone_from(rule);
            place
        }
        None => {
            let labels = metrics.labels(&[resource, &rule.id]);
            // It is there from now on, as it stands: another worker may have opened it.
            metrics.add_to(host, &STATE, labels, 0);
            let breaker = Breaker::new(key, rule);
            let place = put(breakers, Entry { resource: resource.into(), rule: rule.clone(), breaker, labels });
            index.insert(first, (key, place));
            place
        }
    };
    if !meets.contains(&place) {
        meets.push(place);
    }
}

/// The breakers that are there come under these rules: each under those of the first set that has one for it.
fn hold<'r, S: Iterator<Item = &'r [Rule]>>(breakers: &mut [Option<Entry>], sets: impl Fn() -> S) {
    for Entry { resource, rule, breaker, .. } in breakers.iter_mut().flatten() {
        if let Some(new) = sets().find_map(|rules| held(rules, resource, &rule.id)) {
            breaker.under(rule, new);
            rule.clone_from(new);
        }
    }
}

/// Of these rules the one of this name that meets a resource.
fn held<'r>(rules: &'r [Rule], resource: &str, id: &str) -> Option<&'r Rule> {
    let name = resource.as_bytes();
    met(rules, resource::cluster_host(name), Some(name)).into_iter().find(|rule| rule.id == id)
}

/// The places of the breakers that concern a request.
fn concerned<'s>(tables: &'s [Option<Table>], places: &'s Places) -> impl Iterator<Item = usize> + 's {
    let table = tables.get(places.table).and_then(Option::as_ref);
    let resources = places.get().iter().filter_map(move |place| table?.resources.get(*place));
    resources.flat_map(|resource| resource.breakers.iter().copied())
}

/// The rules that meet a name: those that say it, else those for all the rest.
fn met<'r>(rules: &'r [Rule], name: &[u8], cluster: Option<&[u8]>) -> Vec<&'r Rule> {
    let meets = |rule: &&Rule| rule.resource != REST && resource::meets(&rule.resource, name, cluster);
    let mut met = Vec::new();
    for rule in rules {
        if meets(&rule) {
            met.push(rule);
        }
    }
    if met.is_empty() {
        met.extend(rules.iter().filter(|rule| rule.resource == REST));
    }
    met
}

/// What a rule protects that protects all the rest.
const REST: &str = "*";

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
    let retry = span(rule.retry_ns / 1000);
    match (cause, &rule.strategy) {
        (Cause::Counts(Counts { total, bad }), strategy) => {
            let what = match strategy {
                Strategy::SlowRatio { limit, .. } => ["slower than ", &span(breaker.limit_us(limit))].concat(),
                Strategy::ErrorRatio { .. } | Strategy::ErrorCount { .. } => "errors".into(),
            };
            format!("{bad} of {total} requests in {} were {what}; probes after {retry}", span(rule.interval_ns / 1000))
        }
        (Cause::Retry, _) => {
            // As long as it was to wait, whatever the rule says by now.
            let Word { opened_ns, retry_at_ns, .. } = breaker.word;
            format!("{} are over, a probe goes upstream", span(retry_at_ns.saturating_sub(opened_ns) / 1000))
        }
        (Cause::Passed, _) => format!("{} of {} probes were good", rule.probes, rule.probes),
        (Cause::Failed(us), Strategy::SlowRatio { .. }) => {
            format!("a probe took {}; the next after {retry}", span(*us))
        }
        (Cause::Failed(_), _) => format!("a probe failed; the next after {retry}"),
        (Cause::Withdrawn, _) => "a probe ended without saying anything".into(),
    }
}

/// A time in microseconds, as configuration writes it.
fn span(us: u64) -> String {
    let ms = us / 1000;
    let (number, unit) = if ms > 0 && ms.is_multiple_of(1000) { (ms / 1000, "s") } else { (ms, "ms") };
    [&number.to_string(), unit].concat()
}

/// Names and the places of what they mean, by a number that is made of each. A sorted list and no hash table, which is
/// three times the code.
#[derive(Default)]
struct Names(Vec<(u64, Box<[u8]>, usize)>);

impl Names {
    fn first(&self, number: u64) -> usize {
        self.0.partition_point(|(known, ..)| *known < number)
    }

    fn get(&self, name: &[u8]) -> Option<usize> {
        let number = number(name);
        let mut alike = self.0.get(self.first(number)..)?.iter().take_while(|(known, ..)| *known == number);
        alike.find(|(_, known, _)| **known == *name).map(|(.., place)| *place)
    }

    /// In front of what it meant before.
    fn insert(&mut self, name: &[u8], place: usize) {
        let number = number(name);
        self.0.insert(self.first(number), (number, name.into(), place));
    }
}

/// Eight bytes at a time, one multiplication each, no seed: who could choose names so that they meet chooses among
/// `max_resources`.
fn number(name: &[u8]) -> u64 {
    let take = |number: u64, word: [u8; 8]| {
        (number.rotate_left(5) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    let (words, rest) = name.as_chunks();
    let number = words.iter().fold(u64::try_from(name.len()).unwrap_or(0), |number, word| take(number, *word));
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    take(number, last)
}
