//! Requests begin and end in virtual time, before the filter's own breakers.
//!
//! There is one worker, so counts are exact, where workers of a proxy know of each other's within two ticks. A request that
//! is refused has no end: its recorded one is not used, but to say whether it was refused needlessly. Whoever would have
//! been a probe ends as recorded.
//!
//! Logs are written when requests end, or sorted by when they began. Both are put in order by holding what began within
//! the look-ahead before the latest beginning, and what is under way. So memory is bounded, and a request that took longer
//! than the look-ahead in a log sorted by ends turns up after its beginning was due: it is then decided by the state that
//! the breaker was in, which is the same but in half-open periods, where it counts as refused.

use crate::ending::Outcome;
use crate::log::Line;
use crate::real;
use crate::timeline::Timeline;
use anyhow::{Result, bail};
use circuit_breaker::board::{Probe, State, Word};
use circuit_breaker::breaker::{Breaker, Completion, Verdict};
use circuit_breaker::resource::{Kind, meets};
use circuit_breaker::rules::{LONGEST_RESOURCE, Mode, Rule, Strategy};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};

/// A step forward by more is believed once another line goes on from there.
const JUMP_NS: u64 = 3_600_000_000_000;
/// Of which the report has each; the others are counted.
const LISTED: usize = 1000;
/// Spans of a picture; finer ones become one.
const SPANS: usize = 2000;
/// For requests whose beginning turns up late.
const REMEMBERED: usize = 256;
/// What-if rows: by what thresholds are multiplied.
const FACTORS: [f64; 5] = [0.5, 0.8, 1.25, 1.5, 2.0];
/// So many bits has what is kept of a request under way.
const MOST_VARIATIONS: usize = 63;
/// As in the filter.
const MOST_PLACES: usize = 4;

/// By what requests are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The cluster where the line says it, else the host.
    Any,
    /// As in the filter.
    Kind(Kind),
    /// All are one.
    Fixed(String),
    /// A field of JSON, by its place among those that are asked for.
    Field(usize),
}

impl By {
    /// Reads what the command is given: `cluster`, `host`, `route`, `method` or a template as in the filter's
    /// configuration, `field:<name of a JSON field>`, `=<fixed name>`; none for cluster, else host. With the JSON fields
    /// that are asked for.
    ///
    /// # Errors
    /// Which word is not known, and what would be.
    pub fn read(words: &[String]) -> Result<(Vec<Self>, Vec<String>)> {
        let (mut all, mut fields, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        for word in words {
            if let Some(name) = word.strip_prefix('=').filter(|name| !name.is_empty()) {
                all.push(Self::Fixed(name.to_owned()));
            } else if let Some(name) = word.strip_prefix("field:").filter(|name| !name.is_empty()) {
                all.push(Self::Field(fields.len()));
                fields.push(name.to_owned());
            } else if word.starts_with("header:") {
                bail!("--resource {word}: a log has no headers, give field:<name> for the JSON field that has it");
            } else {
                kinds.push(word.clone());
            }
        }
        match Kind::read(&kinds) {
            Ok(kinds) => all.extend(kinds.into_iter().map(Self::Kind)),
            Err(_) => bail!(
                "--resource {}: give cluster, host, route, method, a template such as /users/{{id}}, field:<JSON field> \
                 or =<fixed name>, none twice",
                kinds.join(" --resource ")
            ),
        }
        if all.is_empty() {
            all.push(Self::Any);
        }
        all.truncate(MOST_PLACES);
        Ok((all, fields))
    }

    /// What a request is called, and its cluster if it is called by that.
    fn name<'l>(&self, line: &'l Line) -> Option<(Cow<'l, str>, Option<&'l str>)> {
        let of = |kind: &Kind, from: &'l Option<String>| {
            let method = line.method.as_deref().unwrap_or_default().as_bytes();
            kind.name(from.as_deref()?.as_bytes(), method).map(|name| Cow::Owned(name.into_owned()))
        };
        let cluster = || Some((of(&Kind::Cluster, &line.cluster)?, line.cluster.as_deref()));
        let plain = |kind, from| Some((of(kind, from)?, None));
        match self {
            Self::Any => cluster().or_else(|| plain(&Kind::Host, &line.host)),
            Self::Kind(Kind::Cluster) => cluster(),
            Self::Kind(kind) => {
                let from = match kind {
                    Kind::Host => &line.host,
                    Kind::Route => &line.route,
                    Kind::Path(_) => &line.path,
                    Kind::Method => &line.method,
                    Kind::Cluster | Kind::Header(_) => return None,
                };
                plain(kind, from)
            }
            Self::Fixed(name) => Some((Cow::Owned(name.clone()), None)),
            Self::Field(place) => {
                let name = line.named.get(*place)?.as_deref()?;
                (name.len() <= LONGEST_RESOURCE).then_some((Cow::Borrowed(name), None))
            }
        }
    }
}

/// What is kept of a request.
#[derive(Clone, Copy, Debug)]
struct Request {
    begin_ns: u64,
    end_ns: u64,
    rt_us: u64,
    outcome: Outcome,
    /// No other has the same: its permit for a probe.
    id: u64,
    places: [usize; MOST_PLACES],
    count: usize,
}

impl Request {
    fn places(&self) -> &[usize] {
        self.places.get(..self.count).unwrap_or(&[])
    }

    fn done(&self) -> Completion {
        let error = self.outcome == Outcome::Error;
        Completion { begun_ns: self.begin_ns, now_ns: self.end_ns, rt_us: self.rt_us, error }
    }
}

/// A beginning or an end that is due.
#[derive(Debug)]
struct Due {
    at_ns: u64,
    request: Request,
    /// For each of its places: the lowest bit where it was refused, the others where it would have been.
    refused: [u64; MOST_PLACES],
}

impl Ord for Due {
    /// The earliest is the greatest: a heap gives that first. At one time those that were read first go first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ns, other.request.id).cmp(&(self.at_ns, self.request.id))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

/// One time that a breaker opened, until it closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// When.
    pub at_ns: u64,
    /// Of so many requests in the window …
    pub total: u32,
    /// … so many were bad.
    pub bad: u32,
    /// When it closed; none where the log ended before.
    pub closed_ns: Option<u64>,
    /// How many probes failed, each of which opened it again.
    pub failed_probes: u64,
    /// How many requests it refused.
    pub refused: u64,
}

/// Sums of one breaker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that met it.
    pub requests: u64,
    /// Those of them that were bad by the record.
    pub bad: u64,
    /// Those whose end says nothing.
    pub unclear: u64,
    /// Those that would have been refused, by what the record says of them: good ones, …
    pub refused_good: u64,
    /// … bad ones, …
    pub refused_bad: u64,
    /// … and those whose end says nothing.
    pub refused_unclear: u64,
    /// Probes.
    pub probes: u64,
    /// Those of them that failed.
    pub probes_failed: u64,
    /// How often it opened.
    pub openings: u64,
    /// How long it was open or half open.
    pub open_ns: u64,
}

impl Tally {
    /// All that would have been refused.
    pub fn refused(&self) -> u64 {
        self.refused_good.saturating_add(self.refused_bad).saturating_add(self.refused_unclear)
    }
}

/// A time in which a breaker was not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From when.
    pub from_ns: u64,
    /// Until when.
    pub until_ns: u64,
    /// Open or half open.
    pub state: State,
}

/// A breaker, and what it did.
#[derive(Debug)]
pub struct Judge {
    /// What it protects.
    pub resource: String,
    /// By what rule.
    pub rule: Rule,
    /// Sums.
    pub tally: Tally,
    /// The first of its openings.
    pub openings: Vec<Opening>,
    /// When it was not closed.
    pub spans: Vec<Span>,
    /// What is drawn; none for a what-if.
    pub timeline: Option<Timeline>,
    breaker: Breaker,
    /// Since when it was in which state.
    history: VecDeque<(u64, State)>,
}

impl Judge {
    fn new(resource: &str, rule: Rule, timeline: Option<Timeline>) -> Self {
        let breaker = Breaker::new(rule.key(resource), &rule);
        let (tally, openings, spans, history) = (Tally::default(), Vec::new(), Vec::new(), VecDeque::new());
        Self { resource: resource.into(), rule, tally, openings, spans, timeline, breaker, history }
    }

    /// The state that the log's end left it in.
    pub fn state(&self) -> State {
        self.breaker.word.state
    }

    /// The time beyond which a request is slow by now, in µs; none for rules that do not look at it.
    pub fn limit_us(&self) -> Option<u64> {
        match &self.rule.strategy {
            Strategy::SlowRatio { limit, .. } => Some(self.breaker.limit_us(limit)),
            Strategy::ErrorRatio { .. } | Strategy::ErrorCount { .. } => None,
        }
    }

    fn acts(&self, now_ns: u64) -> bool {
        self.rule.mode != Mode::Disabled && self.rule.is_active(now_ns)
    }

    fn judges(&self, now_ns: u64) -> bool {
        matches!(self.rule.mode, Mode::Enforce | Mode::DryRun) && self.rule.is_active(now_ns)
    }

    fn verdict(&self, now_ns: u64, late: bool) -> Verdict {
        match self.rule.mode {
            Mode::ForcedOpen => Verdict::Block,
            Mode::ForcedClosed | Mode::Disabled => Verdict::Pass,
            Mode::Enforce | Mode::DryRun if late => {
                let then = self.history.iter().rev().find(|(since, _)| *since <= now_ns);
                if then.is_none_or(|(_, state)| *state == State::Closed) { Verdict::Pass } else { Verdict::Block }
            }
            Mode::Enforce | Mode::DryRun => self.breaker.verdict(now_ns),
        }
    }

    /// A request comes.
    fn meet(&mut self, request: &Request) {
        let bad = self.breaker.is_bad(&self.rule, &request.done()) && request.outcome != Outcome::Nothing;
        raise(&mut self.tally.requests);
        if bad {
            raise(&mut self.tally.bad);
        } else if request.outcome == Outcome::Nothing {
            raise(&mut self.tally.unclear);
        }
        if let Some(bin) = self.timeline.as_mut().and_then(|timeline| timeline.at(request.begin_ns)) {
            raise(&mut bin.total);
            bin.bad = bin.bad.saturating_add(u64::from(bad));
        }
    }

    fn refuse(&mut self, request: &Request) {
        let bad = self.breaker.is_bad(&self.rule, &request.done());
        raise(match request.outcome {
            Outcome::Nothing => &mut self.tally.refused_unclear,
            _ if bad => &mut self.tally.refused_bad,
            _ => &mut self.tally.refused_good,
        });
        if self.breaker.word.state != State::Closed
            && let Some(opening) = self.openings.last_mut().filter(|opening| opening.closed_ns.is_none())
        {
            raise(&mut opening.refused);
        }
        if let Some(bin) = self.timeline.as_mut().and_then(|timeline| timeline.at(request.begin_ns)) {
            raise(&mut bin.refused);
        }
    }

    /// A request ends that was let pass.
    fn end(&mut self, request: &Request) {
        let done = request.done();
        self.probed(request, &done);
        if request.outcome == Outcome::Nothing || !self.acts(done.now_ns) {
            return;
        }
        let bad = self.breaker.is_bad(&self.rule, &done);
        let trip = self.breaker.count(&self.rule, &done);
        if let Some(bin) = self.timeline.as_mut().and_then(|timeline| timeline.at(done.now_ns))
            && (bad || bin.measure.is_none())
        {
            let counts = trip.unwrap_or_else(|| self.breaker.counts(done.now_ns));
            if counts.total >= self.rule.min_requests {
                let measure = match self.rule.strategy {
                    Strategy::ErrorCount { .. } => f64::from(counts.bad),
                    _ => f64::from(counts.bad) / f64::from(counts.total),
                };
                bin.measure = Some(bin.measure.map_or(measure, |most| most.max(measure)));
            }
        }
        let Some(counts) = trip else { return };
        if self.judges(done.now_ns)
            && let Some(word) = self.breaker.word.tripped(done.now_ns, self.rule.retry_ns)
        {
            raise(&mut self.tally.openings);
            if self.openings.len() < LISTED {
                let Completion { now_ns: at_ns, .. } = done;
                let (total, bad) = (counts.total, counts.bad);
                self.openings.push(Opening { at_ns, total, bad, closed_ns: None, failed_probes: 0, refused: 0 });
            }
            self.turn(done.now_ns, &word);
        }
    }

    /// What a request says that may be a probe: whose lease is gone is none.
    fn probed(&mut self, request: &Request, done: &Completion) {
        let word = &self.breaker.word;
        if word.state != State::HalfOpen {
            return;
        }
        let (new, failed) = if request.outcome == Outcome::Nothing {
            (word.withdrawn(request.id), false)
        } else if self.breaker.is_bad(&self.rule, done) {
            (word.failed(done.now_ns, request.id, self.rule.retry_ns), true)
        } else {
            (word.passed(done.now_ns, request.id, self.rule.probes), false)
        };
        let Some(new) = new else { return };
        if failed {
            raise(&mut self.tally.probes_failed);
            if let Some(opening) = self.openings.last_mut().filter(|opening| opening.closed_ns.is_none()) {
                raise(&mut opening.failed_probes);
            }
        }
        self.turn(done.now_ns, &new);
    }

    fn turn(&mut self, now_ns: u64, word: &Word) {
        let from = self.breaker.word.state;
        self.breaker.follow(word);
        let to = self.breaker.word.state;
        if from == to {
            return;
        }
        if self.history.len() >= REMEMBERED {
            self.history.pop_front();
        }
        self.history.push_back((now_ns, to));
        self.leave(from, now_ns);
        if to == State::Closed {
            if let Some(opening) = self.openings.last_mut().filter(|opening| opening.closed_ns.is_none()) {
                opening.closed_ns = Some(now_ns);
            }
        } else {
            self.spans.push(Span { from_ns: now_ns, until_ns: now_ns, state: to });
            self.merge(now_ns);
        }
    }

    /// The end of a time in this state.
    fn leave(&mut self, state: State, now_ns: u64) {
        if state != State::Closed
            && let Some(span) = self.spans.last_mut()
        {
            self.tally.open_ns = self.tally.open_ns.saturating_add(now_ns.saturating_sub(span.from_ns));
            span.until_ns = now_ns;
        }
    }

    /// Spans that nobody could see apart become one.
    fn merge(&mut self, now_ns: u64) {
        if self.spans.len() < SPANS {
            return;
        }
        let first_ns = self.spans.first().map_or(now_ns, |span| span.from_ns);
        let fine_ns = now_ns.saturating_sub(first_ns) / 500;
        let mut merged: Vec<Span> = Vec::with_capacity(SPANS);
        for span in self.spans.drain(..) {
            match merged.last_mut() {
                Some(last) if span.until_ns.saturating_sub(last.from_ns) < fine_ns => {
                    last.until_ns = span.until_ns.max(last.until_ns);
                    last.state = State::Open;
                }
                _ => merged.push(span),
            }
        }
        self.spans = merged;
    }
}

fn raise(number: &mut u64) {
    *number = number.saturating_add(1);
}

/// Whether a request may pass the breakers at these places. All permits for probes are taken, or none.
fn decide(judges: &mut [Judge], places: impl Iterator<Item = usize> + Clone, request: &Request, late: bool) -> bool {
    let now_ns = request.begin_ns;
    let (mut blocked, mut asked) = (None, false);
    for place in places.clone() {
        let Some(judge) = judges.get_mut(place).filter(|judge| judge.acts(now_ns)) else { continue };
        judge.meet(request);
        match judge.verdict(now_ns, late) {
            Verdict::Pass => {}
            Verdict::Probe => asked = true,
            Verdict::Block if judge.rule.mode == Mode::DryRun => judge.refuse(request),
            Verdict::Block => {
                blocked.get_or_insert(place);
            }
        }
    }
    if asked && blocked.is_none() {
        let (mut granted, mut dry) = (Vec::new(), Vec::new());
        for place in places {
            let Some(judge) = judges.get(place) else { continue };
            if !judge.judges(now_ns) || judge.verdict(now_ns, late) != Verdict::Probe {
                continue;
            }
            match judge.breaker.word.probe(now_ns, request.id, judge.rule.probes, judge.rule.probe_timeout_ns) {
                Probe::Granted(word) => granted.push((place, word)),
                Probe::Wait if judge.rule.mode == Mode::DryRun => dry.push(place),
                Probe::Wait => {
                    blocked = Some(place);
                    break;
                }
            }
        }
        if blocked.is_none() {
            for (place, word) in granted {
                let Some(judge) = judges.get_mut(place) else { continue };
                raise(&mut judge.tally.probes);
                judge.turn(now_ns, &word);
            }
            for place in dry {
                judges.get_mut(place).into_iter().for_each(|judge| judge.refuse(request));
            }
        }
    }
    if let Some(judge) = blocked.and_then(|place| judges.get_mut(place)) {
        judge.refuse(request);
    }
    blocked.is_none()
}

/// What a breaker would have done with another threshold, the other rules of its resource as they are.
#[derive(Debug)]
pub struct Variation {
    /// Of the breaker at this place in [`Replay::judges`].
    pub of: usize,
    /// By how much the threshold is another.
    pub factor: f64,
    place: usize,
    judges: Vec<Judge>,
}

impl Variation {
    /// The breaker with that threshold.
    pub fn judge(&self) -> Option<&Judge> {
        self.judges.get(self.place)
    }
}

/// The same rule with its threshold multiplied, if that is another.
fn scaled(rule: &Rule, factor: f64) -> Option<Rule> {
    let mut new = rule.clone();
    match &mut new.strategy {
        Strategy::SlowRatio { threshold, .. } | Strategy::ErrorRatio { threshold } => {
            *threshold = (*threshold * factor).min(1.0);
        }
        Strategy::ErrorCount { threshold } => {
            *threshold = format!("{:.0}", (f64::from(*threshold) * factor).ceil()).parse().unwrap_or(u32::MAX).max(1);
        }
    }
    (new != *rule).then_some(new)
}

#[derive(Debug)]
struct Resource {
    name: String,
    base: Vec<usize>,
    variations: Vec<Variation>,
}

/// What came of the lines.
#[derive(Debug, Default)]
pub struct Seen {
    /// Lines that were read.
    pub lines: u64,
    /// Those of them that say nothing, and why, the first few by their numbers.
    pub unread: u64,
    /// See `unread`.
    pub unread_first: Vec<(u64, String)>,
    /// Requests that no rule meets.
    pub unprotected: u64,
    /// The names of some of them.
    pub unprotected_names: BTreeMap<String, u64>,
    /// Requests that came when their time was over, or whose time nobody else shared.
    pub misplaced: u64,
    /// The first few of their lines.
    pub misplaced_first: Vec<u64>,
    /// Requests longer than the look-ahead, which were decided late.
    pub late: u64,
    /// Requests that would have ended long after the log.
    pub unfinished: u64,
    /// When the first request that counts began.
    pub first_ns: u64,
    /// When the last one ended or began.
    pub last_ns: u64,
}

/// Most of what is shown of lines that do not count.
const FEW: usize = 5;

/// Requests that begin and end.
#[derive(Debug)]
pub struct Replay {
    /// The breakers, by resource and rule.
    pub judges: Vec<Judge>,
    /// What came of the lines.
    pub seen: Seen,
    rules: Vec<Rule>,
    by: Vec<By>,
    max_resources: usize,
    look_ahead_ns: u64,
    what_if: bool,
    resources: Vec<Resource>,
    /// For each of `by`.
    names: Vec<HashMap<String, Option<usize>>>,
    waiting: BinaryHeap<Due>,
    under_way: BinaryHeap<Due>,
    /// A line after a long silence, if it is one: the next line tells.
    jumped: Option<(u64, Request)>,
    latest_ns: Option<u64>,
    now_ns: u64,
}

impl Replay {
    /// Before the first request.
    pub fn new(rules: Vec<Rule>, by: Vec<By>, max_resources: usize, look_ahead_ns: u64, what_if: bool) -> Self {
        let names = by.iter().map(|_| HashMap::new()).collect();
        Self {
            judges: Vec::new(),
            seen: Seen::default(),
            rules,
            by,
            max_resources,
            look_ahead_ns,
            what_if,
            resources: Vec::new(),
            names,
            waiting: BinaryHeap::new(),
            under_way: BinaryHeap::new(),
            jumped: None,
            latest_ns: None,
            now_ns: 0,
        }
    }

    /// The what-ifs, by breaker and factor.
    pub fn variations(&self) -> impl Iterator<Item = &Variation> {
        self.resources.iter().flat_map(|resource| &resource.variations)
    }

    /// How many requests are held.
    pub fn held(&self) -> usize {
        self.waiting.len().saturating_add(self.under_way.len())
    }

    /// A line that says nothing.
    pub fn unread(&mut self, number: u64, why: String) {
        raise(&mut self.seen.unread);
        if self.seen.unread_first.len() < FEW {
            self.seen.unread_first.push((number, why));
        }
    }

    /// A line of the log.
    pub fn line(&mut self, number: u64, line: &Line) {
        let mut request = Request {
            begin_ns: line.begin_ns,
            end_ns: line.end_ns(),
            rt_us: line.rt_us,
            outcome: line.outcome.unwrap_or(Outcome::Nothing),
            id: number,
            places: [0; MOST_PLACES],
            count: 0,
        };
        let mut called = None;
        for by in 0..self.by.len() {
            let (place, name) = self.place(by, line);
            called = called.or(name);
            if let Some(place) = place.filter(|place| !request.places().contains(place))
                && let Some(free) = request.places.get_mut(request.count)
            {
                *free = place;
                request.count = request.count.saturating_add(1);
            }
        }
        if request.count == 0 {
            raise(&mut self.seen.unprotected);
            let names = &mut self.seen.unprotected_names;
            let name = called.unwrap_or_else(|| "(no name)".into());
            if names.contains_key(&name) || names.len() < FEW {
                raise(names.entry(name).or_default());
            }
            return;
        }
        // One line of another time shall not make all that follow late.
        if let Some((of, jumped)) = self.jumped.take() {
            if request.begin_ns.saturating_add(JUMP_NS) >= jumped.begin_ns {
                self.accept(of, jumped);
            } else {
                self.misplaced(of);
            }
        }
        if self.latest_ns.is_none_or(|latest_ns| request.begin_ns > latest_ns.saturating_add(JUMP_NS)) {
            self.jumped = Some((number, request));
        } else {
            self.accept(number, request);
        }
    }

    /// The end of the log.
    pub fn finish(&mut self) {
        if let Some((number, jumped)) = self.jumped.take() {
            self.accept(number, jumped);
        }
        // A log is written when requests end: what would end long after it has a duration that cannot be.
        let end_ns = self.latest_ns.unwrap_or(0).saturating_add(self.look_ahead_ns.max(JUMP_NS));
        self.advance(end_ns);
        self.seen.unfinished = u64::try_from(self.held()).unwrap_or(u64::MAX);
        self.seen.last_ns = self.now_ns;
        let variations = self.resources.iter_mut().flat_map(|resource| &mut resource.variations);
        for judge in self.judges.iter_mut().chain(variations.flat_map(|variation| &mut variation.judges)) {
            judge.leave(judge.state(), self.now_ns);
        }
    }

    fn misplaced(&mut self, number: u64) {
        raise(&mut self.seen.misplaced);
        if self.seen.misplaced_first.len() < FEW {
            self.seen.misplaced_first.push(number);
        }
    }

    fn accept(&mut self, number: u64, request: Request) {
        if request.end_ns < self.now_ns {
            return self.misplaced(number);
        }
        if self.latest_ns.is_none() {
            self.seen.first_ns = request.begin_ns;
        }
        let latest_ns = self.latest_ns.map_or(request.begin_ns, |latest_ns| latest_ns.max(request.begin_ns));
        self.latest_ns = Some(latest_ns);
        if request.begin_ns < self.now_ns {
            raise(&mut self.seen.late);
            self.begin(request, true);
        } else {
            self.seen.first_ns = self.seen.first_ns.min(request.begin_ns);
            self.waiting.push(Due { at_ns: request.begin_ns, request, refused: [0; MOST_PLACES] });
        }
        self.advance(latest_ns.saturating_sub(self.look_ahead_ns));
    }

    /// Lets happen what is due. Of what happens at one time, ends go first.
    fn advance(&mut self, until_ns: u64) {
        loop {
            let begin = self.waiting.peek().map_or(u64::MAX, |due| due.at_ns);
            let end = self.under_way.peek().map_or(u64::MAX, |due| due.at_ns);
            if begin.min(end) > until_ns {
                return;
            }
            if end <= begin
                && let Some(due) = self.under_way.pop()
            {
                self.now_ns = self.now_ns.max(due.at_ns);
                self.end(&due);
            } else if let Some(due) = self.waiting.pop() {
                self.now_ns = self.now_ns.max(due.at_ns);
                self.begin(due.request, false);
            } else {
                return;
            }
        }
    }

    fn begin(&mut self, request: Request, late: bool) {
        let Self { judges, resources, .. } = self;
        let base = request.places().iter().filter_map(|place| resources.get(*place)).flat_map(|one| &one.base).copied();
        let passes = decide(judges, base, &request, late);
        let mut refused = [0; MOST_PLACES];
        let mut any = passes;
        for (place, bits) in request.places().iter().zip(&mut refused) {
            *bits = u64::from(!passes);
            let Some(resource) = resources.get_mut(*place) else { continue };
            for (variation, bit) in resource.variations.iter_mut().zip(1_u32..) {
                let all = 0..variation.judges.len();
                if decide(&mut variation.judges, all, &request, late) {
                    any = true;
                } else {
                    *bits |= 1_u64.checked_shl(bit).unwrap_or(0);
                }
            }
        }
        if any {
            self.under_way.push(Due { at_ns: request.end_ns, request, refused });
        }
    }

    fn end(&mut self, due: &Due) {
        let Self { judges, resources, .. } = self;
        for (place, bits) in due.request.places().iter().zip(due.refused) {
            let Some(resource) = resources.get_mut(*place) else { continue };
            if bits & 1 == 0 {
                for place in &resource.base {
                    judges.get_mut(*place).into_iter().for_each(|judge| judge.end(&due.request));
                }
            }
            for (variation, bit) in resource.variations.iter_mut().zip(1_u32..) {
                if bits.checked_shr(bit).unwrap_or(0) & 1 == 0 {
                    variation.judges.iter_mut().for_each(|judge| judge.end(&due.request));
                }
            }
        }
    }

    /// The resource of a request, and what the request is called.
    fn place(&mut self, by: usize, line: &Line) -> (Option<usize>, Option<String>) {
        let Some((name, cluster)) = self.by.get(by).and_then(|by| by.name(line)) else { return (None, None) };
        let key = cluster.unwrap_or(&name);
        let known = self.names.get(by).and_then(|names| names.get(key)).copied();
        let place = known.unwrap_or_else(|| {
            let place = self.new_resource(&name, cluster);
            // What a client names is not kept for ever.
            let most = self.max_resources.saturating_mul(4);
            if let Some(names) = self.names.get_mut(by).filter(|names| names.len() < most) {
                names.insert(key.to_owned(), place);
            }
            place
        });
        let shown = place.is_none().then(|| name.into_owned());
        (place, shown)
    }

    fn new_resource(&mut self, name: &str, cluster: Option<&str>) -> Option<usize> {
        let named =
            |rule: &&Rule| rule.resource != "*" && meets(&rule.resource, name.as_bytes(), cluster.map(str::as_bytes));
        let mut met: Vec<&Rule> = self.rules.iter().filter(named).collect();
        if met.is_empty() {
            met = self.rules.iter().filter(|rule| rule.resource == "*").collect();
        }
        if met.is_empty() {
            return None;
        }
        // Subsets of one host are one resource, but where a rule names a cluster in full.
        let own = cluster.filter(|cluster| met.iter().any(|rule| rule.resource == **cluster));
        let name = own.unwrap_or(name);
        if let Some(place) = self.resources.iter().position(|known| known.name == name) {
            return Some(place);
        }
        if self.resources.len() >= self.max_resources {
            return None;
        }
        let (mut base, mut variations) = (Vec::new(), Vec::new());
        for (place, rule) in met.iter().enumerate() {
            let of = self.judges.len();
            base.push(of);
            self.judges.push(Judge::new(name, (*rule).clone(), Some(Timeline::default())));
            let mut before = None;
            for factor in FACTORS.into_iter().filter(|_| self.what_if) {
                let acts = matches!(rule.mode, Mode::Enforce | Mode::DryRun);
                let Some(other) = scaled(rule, factor).filter(|other| acts && before.as_ref() != Some(other)) else {
                    continue;
                };
                if variations.len() >= MOST_VARIATIONS {
                    break;
                }
                before = Some(other.clone());
                let with = |(at, rule): (usize, &&Rule)| {
                    let rule = if at == place { other.clone() } else { (*rule).clone() };
                    Judge::new(name, rule, None)
                };
                let judges = met.iter().enumerate().map(with).collect();
                variations.push(Variation { of, factor, place, judges });
            }
        }
        self.resources.push(Resource { name: name.into(), base, variations });
        Some(self.resources.len().saturating_sub(1))
    }
}

/// A share, for people.
pub fn share(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { real(part) / real(all) }
}
