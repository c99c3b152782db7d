//! One breaker: a rule over one resource.

use crate::adaptive::Baseline;
use crate::board::{State, Word};
use crate::rules::{Limit, Rule, Strategy};
use crate::window::{Counts, Window};

/// What traffic did to one rule over one resource, as one worker knows it.
#[derive(Debug)]
pub struct Breaker {
    /// By which all workers know it.
    pub key: u64,
    /// What they agreed on.
    pub word: Word,
    /// Completions on this worker.
    pub own: Window,
    /// Completions on the others, as they last said.
    pub others: Window,
    /// For an adaptive limit.
    pub baseline: Baseline,
    /// Whether a bad one may be in the window: one that is healthy need not be summed up.
    pub suspect: bool,
}

/// What a breaker says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Pass,
    /// It may pass if there is a permit for a probe.
    Probe,
    /// It may not.
    Block,
}

/// One request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// When it began.
    pub begun_ns: u64,
    /// When it ended.
    pub now_ns: u64,
    /// How long it took, by what counts.
    pub rt_us: u64,
    /// Whether it failed.
    pub error: bool,
}

impl Breaker {
    /// A closed one.
    pub fn new(key: u64, rule: &Rule) -> Self {
        Self {
            key,
            word: Word::default(),
            own: Window::new(rule.interval_ns, rule.buckets),
            others: Window::new(rule.interval_ns, rule.buckets),
            baseline: Baseline::default(),
            suspect: false,
        }
    }

    /// The same under an edited rule: it stays as open as it is, and keeps what it counted, unless that says nothing any more.
    pub fn under(&mut self, old: &Rule, new: &Rule) {
        if core::mem::discriminant(&old.strategy) != core::mem::discriminant(&new.strategy) {
            self.own = Window::new(new.interval_ns, new.buckets);
            self.others = self.own.clone();
        } else if !self.own.same_shape(new.interval_ns, new.buckets) {
            self.own = self.own.reshaped(new.interval_ns, new.buckets);
            self.others = self.others.reshaped(new.interval_ns, new.buckets);
        }
    }

    /// What it says to a request, by its state alone.
    #[inline]
    pub fn verdict(&self, now_ns: u64) -> Verdict {
        match self.word.state {
            State::Closed => Verdict::Pass,
            State::Open if !self.word.is_due(now_ns) => Verdict::Block,
            State::Open | State::HalfOpen => Verdict::Probe,
        }
    }

    /// Takes over what the workers agreed on. True where it began another period: then what was counted is of the last.
    pub fn follow(&mut self, word: &Word) -> bool {
        // One that closed long ago is taken off the board; it is the same period still.
        let forgotten = *word == Word::default() && self.word.state == State::Closed;
        let turned = !forgotten && (self.word.since_ns != word.since_ns || self.word.state != word.state);
        self.word.clone_from(word);
        if turned {
            self.own.clear();
            self.others.clear();
            self.baseline.reset_window();
        }
        turned
    }

    /// Whether a request is bad under this rule.
    pub fn is_bad(&self, rule: &Rule, done: &Completion) -> bool {
        match &rule.strategy {
            Strategy::SlowRatio { limit, .. } => done.rt_us > self.limit_us(limit),
            Strategy::ErrorRatio { .. } | Strategy::ErrorCount { .. } => done.error,
        }
    }

    /// The longest time that is not slow, in microseconds.
    pub fn limit_us(&self, limit: &Limit) -> u64 {
        match limit {
            Limit::Fixed { us } => *us,
            Limit::Adaptive(policy) => self.baseline.limit_us(policy),
        }
    }

    /// Counts a request, if it is one of this closed period. Counts are given where they trip the breaker.
    pub fn count(&mut self, rule: &Rule, done: &Completion) -> Option<Counts> {
        self.add(rule, done)?;
        self.trips(rule, done.now_ns)
    }

    /// The same, without a look whether it trips: if it might, whether it was bad.
    pub fn add(&mut self, rule: &Rule, done: &Completion) -> Option<bool> {
        // One that began before this period is of the last; but where the clock was put back all seem to.
        let late = done.begun_ns < self.word.since_ns && !self.word.is_ahead(done.now_ns);
        if self.word.state != State::Closed || late {
            return None;
        }
        let bad = self.is_bad(rule, done);
        self.own.add(done.now_ns, bad);
        // What fails at once is no measure of what is good.
        if let Strategy::SlowRatio { limit: Limit::Adaptive(policy), .. } = &rule.strategy
            && !done.error
        {
            self.baseline.record(policy, done.now_ns, done.rt_us, rule.interval_ns);
        }
        self.suspect |= bad;
        // A good one may be the one that was missing for enough requests.
        self.suspect.then_some(bad)
    }

    /// The counts of all workers, if they trip the breaker.
    pub fn trips(&mut self, rule: &Rule, now_ns: u64) -> Option<Counts> {
        let counts = self.counts(now_ns);
        self.suspect = counts.bad > 0;
        (self.word.state == State::Closed && rule.trips(counts.total, counts.bad)).then_some(counts)
    }

    /// The counts of all workers.
    pub fn counts(&self, now_ns: u64) -> Counts {
        let (own, others) = (self.own.sum(now_ns), self.others.sum(now_ns));
        Counts { total: own.total.saturating_add(others.total), bad: own.bad.saturating_add(others.bad) }
    }
}
