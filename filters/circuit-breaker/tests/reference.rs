//! The filter against a reference: random traffic through an emulated proxy, beside a model that was written from what is
//! specified, that keeps every request with its time, and knows nothing of how the filter does it.
//!
//! On one worker both have to be in the same state after every step, and to have let the same requests pass. The model
//! counts by buckets as the filter says that it does: a completion is known by the bucket it fell in.
//!
//! On several workers the moment of opening is the filter's to choose within bounds: not before the counts of all workers,
//! but for good completions of others in the last two ticks, justify it, and not later than two ticks after those of all
//! did so without a break. All the rest is exact: what passes, who probes, and when it closes.
//!
//! `CIRCUIT_TRACES` times as many traces run where it is set, with other seeds.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "a test that is wrong shall stop"
)]

mod support;

use emulator::HttpStream;
use std::collections::BTreeMap;
use std::time::Duration;
use support::{Bed, Decision, End, MS, Random, TICK_MS, decision, end};

/// What is specified, and nothing else.
mod model {
    use super::support::Decision;

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Strategy {
        Slow { limit_us: u64, ratio: f64 },
        Ratio(f64),
        Count(f64),
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Mode {
        Enforce,
        DryRun,
        ForcedOpen,
        ForcedClosed,
        Disabled,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub struct Rule {
        pub strategy: Strategy,
        pub mode: Mode,
        pub min: u64,
        pub interval_ns: u64,
        pub buckets: u64,
        pub retry_ns: u64,
        pub probes: u64,
        pub lease_ns: u64,
    }

    impl Rule {
        pub fn is_bad(&self, rt_us: u64, error: bool) -> bool {
            match self.strategy {
                Strategy::Slow { limit_us, .. } => rt_us > limit_us,
                Strategy::Ratio(_) | Strategy::Count(_) => error,
            }
        }

        pub fn trips(&self, total: u64, bad: u64) -> bool {
            let ratio = bad as f64 / total as f64;
            total >= self.min
                && bad > 0
                && match self.strategy {
                    Strategy::Slow { ratio: threshold, .. } | Strategy::Ratio(threshold) => ratio >= threshold,
                    Strategy::Count(threshold) => bad as f64 >= threshold,
                }
        }

        fn acts(&self) -> bool {
            matches!(self.mode, Mode::Enforce | Mode::DryRun)
        }

        pub fn width(&self) -> u64 {
            self.interval_ns.div_ceil(self.buckets)
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum State {
        Closed,
        HalfOpen,
        Open,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct Done {
        pub at: u64,
        pub bad: bool,
        pub worker: usize,
    }

    pub struct Breaker {
        pub rule: Rule,
        pub state: State,
        pub since: u64,
        pub retry_at: u64,
        /// Every completion of this closed period.
        pub done: Vec<Done>,
        /// When anything last ended on each worker.
        latest: [u64; 4],
        succeeded: u64,
        /// Requests that are probes, and when their permits run out.
        pub probes: Vec<(usize, u64)>,
        /// The same of earlier periods: upstream still, without a say.
        late: Vec<(usize, u64)>,
    }

    impl Breaker {
        pub fn new(rule: Rule) -> Self {
            let (done, probes, late) = (Vec::new(), Vec::new(), Vec::new());
            Self { rule, state: State::Closed, since: 0, retry_at: 0, done, latest: [0; 4], succeeded: 0, probes, late }
        }

        pub fn window(&self, now: u64) -> impl Iterator<Item = &Done> {
            let (width, buckets) = (self.rule.width(), self.rule.buckets);
            self.done.iter().filter(move |done| done.at / width + buckets > now / width)
        }

        pub fn counts(&self, now: u64) -> (u64, u64) {
            self.window(now).fold((0, 0), |(total, bad), done| (total + 1, bad + u64::from(done.bad)))
        }

        /// A rule edited keeps state and retry time, and its counts, but where they were counts of something else. Those of
        /// a bucket are from now on what happened in its middle, or at the last time that anything ended on their worker.
        pub fn edit(&mut self, rule: Rule) {
            let old = std::mem::replace(&mut self.rule, rule);
            if std::mem::discriminant(&old.strategy) != std::mem::discriminant(&rule.strategy) {
                self.done.clear();
            } else if (old.width(), old.buckets) != (rule.width(), rule.buckets) {
                let (width, latest) = (old.width(), self.latest);
                self.done.retain(|done| done.at / width + old.buckets > latest[done.worker] / width);
                for done in &mut self.done {
                    done.at = (done.at / width * width + width / 2).min(latest[done.worker]);
                }
            }
        }

        pub fn open(&mut self, now: u64) {
            (self.state, self.retry_at) = (State::Open, now + self.rule.retry_ns);
            self.done.clear();
            self.late.append(&mut self.probes);
        }

        pub fn arrives(&mut self, now: u64, request: usize) -> Decision {
            let blocked = match self.rule.mode {
                Mode::Disabled | Mode::ForcedClosed => return Decision::Allowed,
                Mode::ForcedOpen => return Decision::Rejected,
                Mode::Enforce => Decision::Rejected,
                Mode::DryRun => Decision::DryRun,
            };
            match self.state {
                State::Closed => return Decision::Allowed,
                State::Open if now < self.retry_at => return blocked,
                State::Open | State::HalfOpen => {}
            }
            let succeeded = if self.state == State::Open { 0 } else { self.succeeded };
            let alive = |probes: &[(usize, u64)]| -> Vec<(usize, u64)> {
                probes.iter().copied().filter(|(_, until)| now < *until).collect()
            };
            let (under_way, late) = (alive(&self.probes), alive(&self.late));
            let upstream = under_way.len() + late.len();
            if upstream > 0 && succeeded + upstream as u64 >= self.rule.probes {
                return blocked;
            }
            (self.state, self.succeeded) = (State::HalfOpen, succeeded);
            (self.probes, self.late) = (under_way, late);
            self.probes.push((request, now + self.rule.lease_ns));
            Decision::Probe
        }

        /// `how` is none where the end says nothing. Given where it is counted: whether it opens now, if all is known.
        pub fn ends(
            &mut self,
            now: u64,
            request: usize,
            worker: usize,
            begun: u64,
            how: Option<(u64, bool)>,
        ) -> Option<bool> {
            let bad = how.map(|(rt_us, error)| self.rule.is_bad(rt_us, error));
            self.late.retain(|(probe, _)| *probe != request);
            if self.state == State::HalfOpen && self.probes.iter().any(|(probe, _)| *probe == request) {
                self.probes.retain(|(probe, _)| *probe != request);
                match bad {
                    None if self.probes.is_empty() && self.succeeded == 0 => self.state = State::Open,
                    None => {}
                    Some(true) => self.open(now),
                    Some(false) => {
                        self.succeeded += 1;
                        if self.succeeded >= self.rule.probes {
                            (self.state, self.since) = (State::Closed, now);
                            self.probes.clear();
                        }
                    }
                }
            }
            let bad = bad?;
            if self.rule.mode == Mode::Disabled || self.state != State::Closed || begun < self.since {
                return None;
            }
            self.done.push(Done { at: now, bad, worker });
            self.latest[worker] = now;
            let oldest = now.saturating_sub(3_600_000_000_000);
            if self.done.len() > 4000 {
                self.done.retain(|done| done.at > oldest);
            }
            Some(self.justified(now))
        }

        pub fn justified(&self, now: u64) -> bool {
            let (total, bad) = self.counts(now);
            self.rule.acts() && self.state == State::Closed && self.rule.trips(total, bad)
        }
    }
}

use model::{Breaker, Mode, Rule, State, Strategy};

impl Rule {
    fn random(random: &mut Random) -> Self {
        let limit_us = random.of(&[1000, 20_000, 50_000]);
        let ratio = random.of(&[0.0, 0.1, 0.3, 0.5, 0.5, 0.75, 1.0]);
        let strategy = match random.below(3) {
            0 => Strategy::Slow { limit_us, ratio },
            1 => Strategy::Ratio(ratio),
            _ => Strategy::Count(random.of(&[0.0, 1.0, 2.5, 5.0, 20.0])),
        };
        let mode = match random.below(16) {
            0 => Mode::DryRun,
            1 => Mode::ForcedOpen,
            2 => Mode::ForcedClosed,
            3 => Mode::Disabled,
            _ => Mode::Enforce,
        };
        Self {
            strategy,
            mode,
            min: random.of(&[1, 2, 5, 10, 40]),
            interval_ns: MS * random.of(&[7, 100, 1000, 1003, 5000, 60_000]),
            buckets: random.of(&[2, 3, 10, 10, 64, 100]),
            retry_ns: MS * random.of(&[1, 50, 500, 3000]),
            probes: random.of(&[1, 1, 2, 5]),
            lease_ns: MS * random.of(&[5, 100, 2000]),
        }
    }

    /// `number`: one that was there before would not be told to the filter again, while requests hold it.
    fn configuration(&self, number: usize) -> String {
        let threshold = match self.strategy {
            Strategy::Slow { limit_us, ratio } => {
                format!(r#""strategy": "slow_ratio", "max_allowed_rt": "{}ms", "threshold": {ratio}"#, limit_us / 1000)
            }
            Strategy::Ratio(ratio) => format!(r#""strategy": "error_ratio", "threshold": {ratio}"#),
            Strategy::Count(count) => format!(r#""strategy": "error_count", "threshold": {count}"#),
        };
        let mode = match self.mode {
            Mode::Enforce => "enforce",
            Mode::DryRun => "dry_run",
            Mode::ForcedOpen => "forced_open",
            Mode::ForcedClosed => "forced_closed",
            Mode::Disabled => "disabled",
        };
        let Self { min, buckets, probes, .. } = self;
        let [interval, retry, lease] = [self.interval_ns, self.retry_ns, self.lease_ns].map(|ns| ns / MS);
        format!(
            r#"{{"properties": "all", "reject": {{"body": "{number}"}}, "rules": [{{"id": "r", "resource": "up", {threshold}, "mode": "{mode}",
            "min_requests": {min}, "interval": "{interval}ms", "buckets": {buckets}, "retry_timeout": "{retry}ms",
            "probes": {probes}, "probe_timeout": "{lease}ms"}}]}}"#
        )
    }
}

struct Request {
    worker: usize,
    begun: u64,
    stream: HttpStream,
    how: End,
}

/// What traces came to, so that a test can see that they were worth it.
#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    rejected: u64,
    probes: u64,
    opened: u64,
    reopened: u64,
    closed: u64,
    withdrawn: u64,
    edits: u64,
    /// Openings by another worker's counts, at a tick.
    at_tick: u64,
}

struct Trace {
    seed: u64,
    bed: Bed,
    random: Random,
    model: Breaker,
    under_way: BTreeMap<(u64, usize), Request>,
    /// Requests that never end.
    hung: Vec<HttpStream>,
    next_id: usize,
    workers: usize,
    /// Since when the counts of all workers say that it should be open, and the first completion since then.
    due: Option<(u64, Option<u64>)>,
    edited: u64,
    seen: Seen,
    said: Vec<String>,
}

impl Trace {
    fn new(workers: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let rule = Rule::random(&mut random);
        let bed = Bed::new(workers, &rule.configuration(0));
        Self {
            seed,
            bed,
            random,
            model: Breaker::new(rule),
            under_way: BTreeMap::new(),
            hung: Vec::new(),
            next_id: 0,
            workers,
            due: None,
            edited: 0,
            seen: Seen::default(),
            said: Vec::new(),
        }
    }

    fn now(&self) -> u64 {
        self.bed.proxy.now_ns()
    }

    fn wrong(&self, why: &str) -> ! {
        let last = self.said.len().saturating_sub(40);
        let (now, rule) = (self.now(), self.model.rule);
        let log = self.bed.log("rule r:").pop().unwrap_or_default();
        let said = self.said[last..].join("\n");
        panic!("seed {}, {} workers, at {now}: {why}\n{rule:?}\n{said}\n{log}", self.seed, self.workers)
    }

    fn say(&mut self, what: String) {
        self.said.push(format!("{} {what}; {:?}", self.bed.proxy.now_ns(), self.model.state));
        if self.said.len() > 400 {
            self.said.drain(..200);
        }
    }

    /// The same state on both sides. Only on several workers the filter may open later, or earlier, within bounds.
    fn compare(&mut self, ended: Option<usize>) {
        let state = match self.bed.state("r") {
            "closed" => State::Closed,
            "open" => State::Open,
            _ => State::HalfOpen,
        };
        let now = self.now();
        if self.workers > 1 && self.model.state == State::Closed {
            if state == State::Open {
                self.allowed_to_open(now, ended);
                self.model.open(now);
                self.seen.opened += 1;
                self.seen.at_tick += u64::from(ended.is_none());
                self.due = None;
            } else if self.model.justified(now) {
                let (since, first) = self.due.unwrap_or((now, None));
                self.due = Some((since, first.or(ended.map(|_| now))));
                if first.is_some_and(|first| now > first + 2 * TICK_MS * MS) {
                    self.wrong(&format!("it should have opened by now, since {since}"));
                }
            } else {
                self.due = None;
            }
        }
        if state != self.model.state {
            let counts = self.model.counts(now);
            self.wrong(&format!("the filter is {state:?}, the model {:?} with {counts:?}", self.model.state));
        }
    }

    /// All that a worker may not know yet are completions of others in the last two ticks.
    fn allowed_to_open(&self, now: u64, ended: Option<usize>) {
        // In what buckets workers have put each other's counts is known when they have told each other again.
        if now <= self.edited + 2 * TICK_MS * MS {
            return;
        }
        let (total, bad) = self.model.counts(now);
        let recent = now - 2 * TICK_MS * MS;
        let unknown =
            self.model.window(now).filter(|done| done.at >= recent && !done.bad && Some(done.worker) != ended);
        let known = total - unknown.count() as u64;
        let rule = Rule { min: 1, ..self.model.rule };
        if total < self.model.rule.min || !rule.trips(known.max(bad), bad) {
            self.wrong(&format!("it opens with {bad} of {total}, of which {known} may be known"));
        }
    }

    fn arrive(&mut self) {
        let (now, id) = (self.now(), self.next_id);
        let worker = usize::try_from(self.random.below(self.workers as u64)).unwrap();
        self.next_id += 1;
        let stream = self.bed.begin(worker);
        let before = self.model.state;
        let (decided, expected) = (decision(&stream), self.model.arrives(now, id));
        self.say(format!("{id} comes to {worker}: {decided:?}"));
        let alike = match self.model.rule.mode {
            Mode::Disabled => decided == Decision::Allowed || decided == Decision::None,
            _ => decided == expected,
        };
        if !alike {
            self.wrong(&format!("the filter says {decided:?}, the model {expected:?}, {before:?}"));
        }
        if support::passes(&stream) == (decided == Decision::Rejected) {
            self.wrong("it does otherwise than it says");
        }
        self.seen.requests += 1;
        self.seen.probes += u64::from(decided == Decision::Probe);
        self.compare(None);
        if decided == Decision::Rejected {
            self.seen.rejected += 1;
            drop(end(&stream, End::Gone));
            return self.compare(None);
        }
        let limit = match self.model.rule.strategy {
            Strategy::Slow { limit_us, .. } => limit_us * 1000,
            _ => 20 * MS,
        };
        let takes = match self.random.below(8) {
            0 => limit,
            1 => limit + 1000,
            2 => limit + 999,
            3 => 100 * MS + self.random.below(300 * MS),
            4 => 2000 * MS,
            _ => 1000 + self.random.below(2 * limit),
        };
        // It goes through good times and bad ones.
        let sick = (now / (5000 * MS)).is_multiple_of(3);
        let how = match self.random.below(20) {
            0 => End::Gone,
            1 => End::Reset,
            2 => End::Local(503),
            3 => End::Status(404),
            4 => support::BAD,
            5..12 if sick => support::BAD,
            _ => support::GOOD,
        };
        if decided == Decision::Probe && self.random.once_in(10) {
            self.hung.push(stream);
            return;
        }
        self.under_way.insert((now + takes, id), Request { worker, begun: now, stream, how });
    }

    fn ends(&mut self, id: usize, request: &Request) {
        let now = self.now();
        drop(end(&request.stream, request.how));
        let before = self.model.state;
        let rt_us = (now - request.begun) / 1000;
        let said = match request.how {
            End::Gone | End::Local(_) => None,
            End::Reset => Some((rt_us, true)),
            End::Status(status) => Some((rt_us, status >= 500)),
        };
        let counted = self.model.ends(now, id, request.worker, request.begun, said);
        if counted == Some(true) && self.workers == 1 {
            self.model.open(now);
            self.seen.opened += 1;
        }
        match (before, self.model.state) {
            (State::HalfOpen, State::Open) if said.is_none() => self.seen.withdrawn += 1,
            (State::HalfOpen, State::Open) => self.seen.reopened += 1,
            (State::HalfOpen, State::Closed) => self.seen.closed += 1,
            _ => {}
        }
        self.say(format!("{id} ends: {:?} after {rt_us} us", request.how));
        self.compare(counted.map(|_| request.worker));
    }

    fn edit(&mut self) {
        let old = self.model.rule;
        let mut rule = Rule::random(&mut self.random);
        // Mostly a number or two.
        if !self.random.once_in(4) {
            let new = std::mem::replace(&mut rule, self.model.rule);
            match self.random.below(4) {
                0 => (rule.min, rule.retry_ns) = (new.min, new.retry_ns),
                1 => (rule.interval_ns, rule.buckets) = (new.interval_ns, new.buckets),
                2 => rule.mode = new.mode,
                _ => (rule.probes, rule.lease_ns) = (new.probes, new.lease_ns),
            }
        }
        self.bed.push(&rule.configuration(self.next_id));
        self.model.edit(rule);
        self.seen.edits += 1;
        (self.due, self.edited) = (None, self.now());
        self.say(format!("edited from {old:?} to {rule:?}"));
        self.compare(None);
    }

    /// Lets time pass to `at`, no further than the next tick each time.
    fn pass(&mut self, at: u64) {
        while self.now() < at {
            let next = if self.workers > 1 { self.next_tick() } else { at };
            self.bed.proxy.advance(Duration::from_nanos(next.min(at) - self.now()));
            self.compare(None);
        }
    }

    /// Configurations come at a quarter of a tick's time, so that ticks do.
    fn next_tick(&self) -> u64 {
        let quarter = TICK_MS * MS / 4;
        (self.now() / quarter + 1) * quarter
    }

    /// Lets time pass to `at`, and end what ends until then.
    fn until(&mut self, at: u64) {
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= at) {
            let ((at, id), request) = entry.remove_entry();
            self.pass(at);
            self.ends(id, &request);
        }
        self.pass(at);
    }

    fn run(mut self, requests: usize) -> Seen {
        while self.next_id < requests {
            let gap = match self.random.below(200) {
                0 => self.random.below(3000 * MS),
                1 => self.model.retry_at.saturating_sub(self.now()),
                2..40 => 0,
                _ => self.random.below(30 * MS),
            };
            self.until(self.now() + gap);
            if self.random.once_in(150) {
                self.until(self.next_tick());
                self.edit();
            }
            self.arrive();
        }
        self.bed.is_well();
        self.seen
    }
}

fn run(workers: usize, traces: u64, requests: usize) -> Seen {
    let times = std::env::var("CIRCUIT_TRACES").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    let mut all = Seen::default();
    for seed in 0..traces * times {
        let seen = Trace::new(workers, 1000 * workers as u64 + seed).run(requests);
        all.requests += seen.requests;
        all.rejected += seen.rejected;
        all.probes += seen.probes;
        all.opened += seen.opened;
        all.reopened += seen.reopened;
        all.closed += seen.closed;
        all.withdrawn += seen.withdrawn;
        all.edits += seen.edits;
        all.at_tick += seen.at_tick;
    }
    println!("{workers} workers: {all:?}");
    assert!(all.requests >= 100_000 && all.edits > 200, "{all:?}");
    let turns = [all.rejected, all.probes, all.opened, all.reopened, all.closed, all.withdrawn];
    assert!(turns.iter().all(|turns| *turns >= 50), "a trace without turns says nothing: {all:?}");
    all
}

#[test]
fn one_worker_does_what_the_reference_does() {
    run(1, 100, 1000);
}

#[test]
fn four_workers_do_it_within_the_bounds() {
    let seen = run(4, 100, 1000);
    assert!(seen.at_tick >= 20, "they hardly needed each other: {seen:?}");
}
