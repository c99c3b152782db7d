//! What all workers agree on: of each breaker its state, and who may probe.
//!
//! It stands in one key of the proxy's shared data. A worker reads it, computes what it shall become, and writes that if
//! nobody wrote in between; else it reads again. Everything here is that computing: `None` says that nothing changes, so
//! that nothing needs to be written.

use crate::wire::{self, Reader};
use kit::prelude::*;

/// Of a breaker.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Requests pass and are counted.
    #[default]
    Closed,
    /// None passes.
    Open,
    /// A few pass, and show whether the upstream is well again.
    HalfOpen,
}

impl State {
    /// For people and labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }

    /// For gauges: the more, the worse.
    pub fn number(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Closed, Self::HalfOpen, Self::Open].into_iter().find(|state| state.number() == number)
    }
}

/// The right to one probe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Lease {
    /// No other probe has the same, of whatever worker and time.
    pub id: u64,
    /// Then it has run out, and another probe may take its place: this one may never end.
    pub until_ns: u64,
}

/// What is agreed on about one breaker. [`Word::default`] is one that never opened.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Word {
    /// Its state.
    pub state: State,
    /// When it came to that.
    pub since_ns: u64,
    /// When it opened last, unless it is closed.
    pub opened_ns: u64,
    /// From when on it may be probed, unless it is closed.
    pub retry_at_ns: u64,
    /// How often it opened without closing in between.
    pub openings: u32,
    /// Probes of this half-open period that went well.
    pub succeeded: u32,
    /// Probes of this half-open period that have said nothing yet.
    pub leases: Vec<Lease>,
    /// Probes of earlier periods that have not ended, and have not run out: they are upstream still, so they take places of
    /// new ones. What they say counts no more.
    pub late: Vec<Lease>,
}

/// Whether a request may be a probe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// It may, once this word is written.
    Granted(Word),
    /// It may not.
    Wait,
}

impl Word {
    /// The counts have reached the threshold. `None` unless it is closed.
    pub fn tripped(&self, now_ns: u64, retry_ns: u64) -> Option<Self> {
        (self.state == State::Closed).then(|| self.opened(now_ns, retry_ns))
    }

    /// Whether the clock was put back since it came to its state.
    pub fn is_ahead(&self, now_ns: u64) -> bool {
        is_before(now_ns, self.since_ns)
    }

    /// Whether an open one may be probed: it is time, or the clock was put back, which is not waited for.
    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.retry_at_ns || is_before(now_ns, self.opened_ns)
    }

    /// A request comes that could be a probe, the first one from the time of the retry on. Leases that have run out make
    /// room, but those that succeeded and those in flight are no more than `probes` together.
    ///
    /// Where a change of rules has brought `probes` down to what has succeeded already, one more is let through: only a
    /// result closes the breaker.
    pub fn probe(&self, now_ns: u64, id: u64, probes: u32, lease_ns: u64) -> Probe {
        let lease = Lease { id, until_ns: now_ns.saturating_add(lease_ns) };
        let mut next = self.clone();
        match self.state {
            State::Open if self.is_due(now_ns) => {
                next = Self { state: State::HalfOpen, since_ns: now_ns, succeeded: 0, leases: Vec::new(), ..next };
            }
            State::HalfOpen => {
                next.leases.retain(|lease| now_ns < lease.until_ns && !is_before(now_ns, self.since_ns));
            }
            State::Open | State::Closed => return Probe::Wait,
        }
        next.late.retain(|lease| now_ns < lease.until_ns && !is_before(now_ns, self.opened_ns));
        let in_flight = u32::try_from(next.leases.len().saturating_add(next.late.len())).unwrap_or(u32::MAX);
        let room = in_flight == 0 || next.succeeded.saturating_add(in_flight) < probes;
        // Two of one id could not be told apart.
        if !room || next.leases.iter().chain(&next.late).any(|lease| lease.id == id) {
            return Probe::Wait;
        }
        next.leases.push(lease);
        Probe::Granted(next)
    }

    /// A probe ended without saying anything about the upstream: another rule kept it back, or its client left. Where
    /// that leaves none in flight and none succeeded, it is as if nobody had probed. `None` if its lease is gone.
    pub fn withdrawn(&self, id: u64) -> Option<Self> {
        if let Some(next) = self.without_late(id) {
            return Some(next);
        }
        let mut next = self.without(id)?;
        if next.leases.is_empty() && next.succeeded == 0 {
            next = Self { state: State::Open, since_ns: next.opened_ns, ..next };
        }
        Some(next)
    }

    /// A probe went well; the last one closes the breaker. `None` if its lease is gone: if another probe has its place,
    /// or if it is of an earlier period, and then it only leaves its place. One that has run out and still has its place
    /// counts: what it says is true.
    pub fn passed(&self, now_ns: u64, id: u64, probes: u32) -> Option<Self> {
        if let Some(next) = self.without_late(id) {
            return Some(next);
        }
        let mut next = self.without(id)?;
        next.succeeded = next.succeeded.saturating_add(1);
        if next.succeeded >= probes {
            next = Self { since_ns: now_ns, late: next.late, ..Self::default() };
        }
        Some(next)
    }

    /// A probe went wrong: the breaker opens again, whatever others say later. `None` if its lease is gone, as in
    /// [`Self::passed`].
    pub fn failed(&self, now_ns: u64, id: u64, retry_ns: u64) -> Option<Self> {
        self.without_late(id).or_else(|| Some(self.without(id)?.opened(now_ns, retry_ns)))
    }

    fn opened(&self, now_ns: u64, retry_ns: u64) -> Self {
        Self {
            state: State::Open,
            since_ns: now_ns,
            opened_ns: now_ns,
            retry_at_ns: now_ns.saturating_add(retry_ns),
            openings: self.openings.saturating_add(1),
            succeeded: 0,
            leases: Vec::new(),
            late: self.late.iter().chain(&self.leases).copied().collect(),
        }
    }

    /// One of an earlier period has ended.
    fn without_late(&self, id: u64) -> Option<Self> {
        let place = self.late.iter().position(|lease| lease.id == id)?;
        let mut next = self.clone();
        next.late.remove(place);
        Some(next)
    }

    fn without(&self, id: u64) -> Option<Self> {
        let mut next = self.clone();
        next.leases.retain(|lease| lease.id != id);
        (self.state == State::HalfOpen && next.leases.len() < self.leases.len()).then_some(next)
    }
}

/// How much longer one that is not closed is kept: it is a day where closed ones have an hour.
const FORGOTTEN: u64 = 24;

/// Whether a clock that showed `then_ns` was put back since, by more than two threads may differ in what they read.
fn is_before(now_ns: u64, then_ns: u64) -> bool {
    now_ns.saturating_add(1_000_000_000) < then_ns
}

/// What is agreed on about all breakers.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct Board {
    /// Of the rules that were accepted from a source.
    pub version: u64,
    /// In the order of their keys, without those that never opened.
    words: Vec<(u64, Word)>,
}

static NEVER_OPENED: Word = Word {
    state: State::Closed,
    since_ns: 0,
    opened_ns: 0,
    retry_at_ns: 0,
    openings: 0,
    succeeded: 0,
    leases: Vec::new(),
    late: Vec::new(),
};

/// The first byte of a board: another one would be of another release, which may share a proxy for a while.
const VERSION: u8 = 1;

impl Board {
    /// About one breaker.
    pub fn get(&self, key: u64) -> &Word {
        self.place(key).ok().and_then(|place| self.words.get(place)).map_or(&NEVER_OPENED, |(_, word)| word)
    }

    /// About one breaker, from now on.
    pub fn set(&mut self, key: u64, word: Word) {
        match self.place(key) {
            Ok(place) if word == NEVER_OPENED => drop(self.words.remove(place)),
            Ok(place) => {
                if let Some((_, old)) = self.words.get_mut(place) {
                    *old = word;
                }
            }
            Err(_) if word == NEVER_OPENED => {}
            Err(place) => self.words.insert(place, (key, word)),
        }
    }

    /// About each breaker that has opened, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Word)> {
        self.words.iter().map(|(key, word)| (*key, word))
    }

    /// Leaves out those that closed longer ago, so that breakers which no rule names any more do not stay for ever; and those
    /// that nobody probed for a day, where that is an hour.
    pub fn forget(&mut self, now_ns: u64, after_ns: u64) {
        self.words.retain(|(_, word)| {
            let from_ns = if word.state == State::Closed { word.since_ns } else { word.retry_at_ns.max(word.since_ns) };
            let times = if word.state == State::Closed { 1 } else { FORGOTTEN };
            now_ns.saturating_sub(from_ns) <= after_ns.saturating_mul(times)
        });
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        wire::put_varint(&mut bytes, self.version);
        wire::put_count(&mut bytes, &self.words);
        for (key, word) in &self.words {
            bytes.push(word.state.number());
            for number in [*key, word.since_ns, word.opened_ns, word.retry_at_ns] {
                wire::put_u64(&mut bytes, number);
            }
            wire::put_varint(&mut bytes, u64::from(word.openings));
            wire::put_varint(&mut bytes, u64::from(word.succeeded));
            for leases in [&word.leases, &word.late] {
                wire::put_count(&mut bytes, leases);
                for lease in leases {
                    wire::put_u64(&mut bytes, lease.id);
                    wire::put_u64(&mut bytes, lease.until_ns);
                }
            }
        }
        bytes
    }

    /// From bytes, if they are a board and nothing else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u8()? != VERSION {
            return None;
        }
        let version = reader.varint()?;
        let words = reader.list(|reader| {
            let state = State::of(reader.u8()?)?;
            let key = reader.u64()?;
            let word = Word {
                state,
                since_ns: reader.u64()?,
                opened_ns: reader.u64()?,
                retry_at_ns: reader.u64()?,
                openings: reader.u32()?,
                succeeded: reader.u32()?,
                leases: leases(reader)?,
                late: leases(reader)?,
            };
            Some((key, word))
        })?;
        reader.end()?;
        words.is_sorted_by(|(one, _), (next, _)| one < next).then_some(Self { version, words })
    }

    fn place(&self, key: u64) -> Result<usize, usize> {
        self.words.binary_search_by_key(&key, |(key, _)| *key)
    }
}

fn leases(reader: &mut Reader<'_>) -> Option<Vec<Lease>> {
    reader.list(|reader| Some(Lease { id: reader.u64()?, until_ns: reader.u64()? }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test that is wrong shall stop")]

    use super::*;
    use proptest::prelude::*;

    const RETRY: u64 = 10;
    const LEASE: u64 = 5;

    fn open() -> Word {
        Word::default().tripped(100, RETRY).unwrap()
    }

    fn granted(probe: Probe) -> Word {
        match probe {
            Probe::Granted(word) => word,
            Probe::Wait => panic!("it must wait"),
        }
    }

    #[test]
    fn it_opens_is_probed_and_closes() {
        let open = open();
        assert_eq!((open.state, open.since_ns, open.opened_ns, open.retry_at_ns), (State::Open, 100, 100, 110));
        assert_eq!((open.openings, open.tripped(105, RETRY)), (1, None));
        assert_eq!(open.probe(109, 1, 3, LEASE), Probe::Wait);
        let one = granted(open.probe(110, 1, 3, LEASE));
        assert_eq!((one.state, one.since_ns, one.opened_ns), (State::HalfOpen, 110, 100));
        assert_eq!(one.leases, [Lease { id: 1, until_ns: 115 }]);
        assert_eq!(one.tripped(111, RETRY), None);
        assert_eq!(one.probe(111, 1, 3, LEASE), Probe::Wait, "an id that is there already");
        let three = granted(granted(one.probe(111, 2, 3, LEASE)).probe(112, 3, 3, LEASE));
        assert_eq!(three.probe(112, 4, 3, LEASE), Probe::Wait);
        let two = three.passed(113, 2, 3).unwrap();
        assert_eq!((two.state, two.succeeded, two.leases.len(), two.since_ns), (State::HalfOpen, 1, 2, 110));
        assert_eq!(two.passed(113, 2, 3), None, "twice");
        assert_eq!(two.probe(113, 4, 3, LEASE), Probe::Wait, "one succeeded, two are in flight");
        let closed = two.passed(113, 1, 3).unwrap().passed(114, 3, 3).unwrap();
        assert_eq!(closed, Word { since_ns: 114, ..Word::default() });
        assert_eq!((closed.passed(115, 3, 3), closed.failed(115, 3, RETRY), closed.withdrawn(3)), (None, None, None));
        assert_eq!(closed.probe(200, 5, 3, LEASE), Probe::Wait);
        assert_eq!(closed.tripped(120, RETRY).unwrap().openings, 1);
    }

    #[test]
    fn one_failure_opens_it_again() {
        let two = granted(granted(open().probe(110, 1, 2, LEASE)).probe(110, 2, 2, LEASE));
        let again = two.passed(111, 1, 2).unwrap().failed(112, 2, 2 * RETRY).unwrap();
        let expected =
            Word { state: State::Open, since_ns: 112, opened_ns: 112, retry_at_ns: 132, openings: 2, ..open() };
        assert_eq!(again, expected);
        let late = two.failed(112, 2, RETRY).unwrap();
        assert_eq!(late.late, [Lease { id: 1, until_ns: 115 }]);
        let gone = Word { late: Vec::new(), ..late.clone() };
        for said in [late.passed(113, 1, 2), late.failed(113, 1, RETRY), late.withdrawn(1)] {
            assert_eq!(said, Some(gone.clone()), "it leaves its place, and says nothing");
        }
        let later = granted(late.probe(122, 3, 1, LEASE));
        assert_eq!(later.passed(123, 1, 1), None, "of the half-open period before");
        assert!(later.passed(123, 3, 1).is_some());
    }

    #[test]
    fn one_of_an_earlier_period_that_is_upstream_still_takes_a_place() {
        let two = granted(granted(open().probe(110, 1, 2, 100)).probe(110, 2, 2, 100));
        let again = two.failed(112, 2, RETRY).unwrap();
        let one = granted(again.probe(122, 3, 2, 100));
        assert_eq!(one.probe(122, 4, 2, 100), Probe::Wait, "two are upstream");
        assert!(matches!(one.passed(123, 1, 2).unwrap().probe(123, 4, 2, 100), Probe::Granted(_)), "it has ended");
        assert!(matches!(one.probe(210, 4, 2, 100), Probe::Granted(_)), "it has run out");
        let full = two.failed(112, 2, RETRY).unwrap();
        assert_eq!(full.probe(122, 3, 1, 100), Probe::Wait, "with room for one");
        assert_eq!(full.passed(123, 1, 1).unwrap().state, State::Open);
    }

    #[test]
    fn a_clock_that_was_put_back_is_not_waited_for() {
        let second = 1_000_000_000;
        let open = Word::default().tripped(2 * second, RETRY).unwrap();
        assert_eq!(open.probe(2 * second - RETRY, 1, 1, LEASE), Probe::Wait, "a little");
        assert!(matches!(open.probe(second - 1, 1, 1, LEASE), Probe::Granted(_)));
    }

    #[test]
    fn a_probe_that_never_ends_makes_room() {
        let one = granted(open().probe(110, 1, 1, LEASE));
        assert_eq!(one.probe(114, 2, 1, LEASE), Probe::Wait);
        let two = granted(one.probe(115, 2, 1, LEASE));
        assert_eq!(two.leases, [Lease { id: 2, until_ns: 120 }]);
        assert_eq!(two.since_ns, 110, "the half-open period is the same");
        assert_eq!((two.passed(116, 1, 1), two.failed(116, 1, RETRY)), (None, None), "its place is taken");
        assert_eq!(one.passed(119, 1, 1).unwrap().state, State::Closed, "late, but nobody has its place");
        assert_eq!(one.failed(119, 1, RETRY).unwrap().state, State::Open);
    }

    #[test]
    fn a_probe_that_said_nothing_was_none() {
        let open = open();
        let one = granted(open.probe(110, 1, 2, LEASE));
        assert_eq!(one.withdrawn(1).unwrap(), open);
        assert_eq!(one.withdrawn(2), None);
        let two = granted(one.probe(111, 2, 2, LEASE));
        assert_eq!(two.withdrawn(2).unwrap(), one);
        let passed = two.passed(112, 1, 2).unwrap().withdrawn(2).unwrap();
        assert_eq!((passed.state, passed.succeeded, passed.leases.len()), (State::HalfOpen, 1, 0), "one succeeded");
        assert!(matches!(passed.probe(113, 3, 2, LEASE), Probe::Granted(_)));
    }

    #[test]
    fn fewer_probes_by_a_change_of_rules_do_not_leave_it_half_open() {
        let mut word = granted(open().probe(110, 1, 3, LEASE)).passed(111, 1, 3).unwrap();
        word = granted(word.probe(111, 2, 3, LEASE)).passed(112, 2, 3).unwrap();
        assert_eq!((word.state, word.succeeded), (State::HalfOpen, 2));
        for probes in [0, 1, 2] {
            let one = granted(word.probe(113, 3, probes, LEASE));
            assert_eq!(one.probe(113, 4, probes, LEASE), Probe::Wait, "one only");
            assert_eq!(one.passed(114, 3, probes).unwrap().state, State::Closed);
        }
    }

    #[test]
    fn times_that_have_no_end() {
        let open = Word::default().tripped(u64::MAX, u64::MAX).unwrap();
        let one = granted(open.probe(u64::MAX, 1, 1, u64::MAX));
        assert_eq!(one.failed(u64::MAX, 1, 1).unwrap().openings, 2);
        let many = Word { openings: u32::MAX, ..Word::default() };
        assert_eq!(many.tripped(1, 1).unwrap().openings, u32::MAX);
    }

    #[test]
    fn states_by_name_and_number() {
        for (state, name, number) in
            [(State::Closed, "closed", 0), (State::HalfOpen, "half_open", 1), (State::Open, "open", 2)]
        {
            assert_eq!((state.name(), state.number(), State::of(number)), (name, number, Some(state)));
        }
        assert_eq!(State::of(3), None);
    }

    #[test]
    fn the_board_keeps_what_opened() {
        let mut board = Board { version: 7, ..Board::default() };
        board.set(3, Word::default());
        assert_eq!((board.iter().count(), board.get(3)), (0, &Word::default()));
        for key in [5, 1, 3] {
            board.set(key, Word { openings: u32::try_from(key).unwrap(), ..open() });
        }
        board.set(3, Word { openings: 9, ..open() });
        assert_eq!(board.iter().map(|(key, word)| (key, word.openings)).collect::<Vec<_>>(), [(1, 1), (3, 9), (5, 5)]);
        board.set(5, Word::default());
        assert_eq!((board.iter().count(), board.get(5), board.get(3).openings), (2, &Word::default(), 9));
    }

    #[test]
    fn what_closed_long_ago_is_forgotten() {
        let mut board = Board::default();
        board.set(1, Word { since_ns: 100, ..Word::default() });
        board.set(2, open());
        board.set(3, granted(open().probe(110, 1, 1, LEASE)));
        board.forget(50, 0);
        board.forget(150, 50);
        assert_eq!(board.iter().count(), 3, "no older than that");
        board.forget(151, 50);
        assert_eq!(board.iter().map(|(key, _)| key).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn bytes_that_are_no_board() {
        let mut board = Board::default();
        assert_eq!(board.encode(), [1, 0, 0]);
        for bytes in [&[2, 0, 0][..], &[1, 0, 0, 0], &[1, 0], &[1], &[]] {
            assert_eq!(Board::decode(bytes), None, "{bytes:?}");
        }
        // 2^63 words: room for so many would end the module.
        let mut many = vec![1, 0];
        wire::put_varint(&mut many, 1 << 63);
        many.resize(300, 0);
        assert_eq!(Board::decode(&many), None);
        board.set(1, open());
        let one = board.encode();
        let twice = [&[1, 0, 2][..], &one[3..], &one[3..]].concat();
        assert_eq!(Board::decode(&twice), None, "one key twice");
        let mut state = one.clone();
        state[3] = 3;
        assert_eq!(Board::decode(&state), None, "an unknown state");
    }

    fn word() -> impl Strategy<Value = Word> {
        let lease = (any::<u64>(), any::<u64>()).prop_map(|(id, until_ns)| Lease { id, until_ns });
        let times = (any::<u64>(), any::<u64>(), any::<u64>());
        let counts = (any::<u32>(), any::<u32>());
        (0_u8..3, times, counts, prop::collection::vec(lease, 0..4)).prop_map(|(state, times, counts, mut leases)| {
            Word {
                state: State::of(state).unwrap(),
                since_ns: times.0,
                opened_ns: times.1,
                retry_at_ns: times.2,
                openings: counts.0,
                succeeded: counts.1,
                late: leases.split_off(leases.len() / 2),
                leases,
            }
        })
    }

    /// A probe as the upstream sees it.
    #[derive(Debug)]
    struct Sent {
        id: u64,
        until_ns: u64,
        period: u32,
        ended: bool,
    }

    proptest! {
        #[test]
        fn a_board_comes_back(version in any::<u64>(), words in prop::collection::vec((any::<u64>(), word()), 0..6)) {
            let mut board = Board { version, ..Board::default() };
            words.into_iter().for_each(|(key, word)| board.set(key, word));
            let bytes = board.encode();
            for end in 0..bytes.len() {
                prop_assert_eq!(Board::decode(&bytes[..end]), None);
            }
            prop_assert_eq!(Board::decode(&bytes), Some(board));
        }

        #[test]
        fn garbage_is_no_board(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let versioned = [&[VERSION, 0][..], &bytes].concat();
            for bytes in [&bytes, &versioned] {
                if let Some(board) = Board::decode(bytes) {
                    let read: usize = board.iter().map(|(_, word)| 37 + 16 * (word.leases.len() + word.late.len())).sum();
                    prop_assert!(read <= bytes.len());
                }
            }
        }

        #[test]
        fn whatever_happens(
            probes in 1_u32..4,
            lease in prop::sample::select(vec![LEASE, 3 * RETRY]),
            steps in prop::collection::vec((0_u8..6, any::<prop::sample::Index>(), 0_u64..8), 1..300),
        ) {
            let (mut word, mut now, mut next_id) = (Word::default(), 0, 0);
            let mut sent: Vec<Sent> = vec![];
            // Half-open periods so far, and the results in this one.
            let (mut period, mut passed, mut results) = (0, 0_u32, 0);
            for (step, which, amount) in steps {
                let before = word.clone();
                let which = (!sent.is_empty()).then(|| which.index(sent.len()));
                // One of an earlier period leaves its place, and says nothing.
                if let (3..=5, Some(which)) = (step, which)
                    && before.late.iter().any(|lease| lease.id == sent[which].id)
                {
                    let id = sent[which].id;
                    let next = [word.passed(now, id, probes), word.failed(now, id, RETRY), word.withdrawn(id)];
                    word.late.retain(|lease| lease.id != id);
                    prop_assert!(next.iter().all(|next| next.as_ref() == Some(&word)));
                    sent[which].ended = true;
                    continue;
                }
                // Whether its lease may still count: not ended, of this period, and not taken away.
                let counts = which.is_some_and(|which| {
                    let one = &sent[which];
                    !one.ended && one.period == period && before.leases.iter().any(|lease| lease.id == one.id)
                });
                match (step, which) {
                    (0, _) => now += amount,
                    (1, _) => {
                        let next = word.tripped(now, RETRY);
                        prop_assert_eq!(next.is_some(), before.state == State::Closed);
                        word = next.unwrap_or(word);
                    }
                    (2, _) => {
                        next_id += 1;
                        if let Probe::Granted(next) = word.probe(now, next_id, probes, lease) {
                            if before.state == State::Open {
                                prop_assert!(now >= before.retry_at_ns);
                                (period, passed, results) = (period + 1, 0, 0);
                            }
                            prop_assert!(before.state != State::Closed && next.state == State::HalfOpen);
                            sent.push(Sent { id: next_id, until_ns: now + lease, period, ended: false });
                            word = next;
                        }
                    }
                    (3, Some(which)) => {
                        let next = word.passed(now, sent[which].id, probes);
                        prop_assert_eq!(next.is_some(), counts);
                        sent[which].ended = true;
                        if let Some(next) = next {
                            (passed, results) = (passed + 1, results + 1);
                            prop_assert_eq!(next.state == State::Closed, passed == probes);
                            word = next;
                        }
                    }
                    (4, Some(which)) => {
                        let next = word.failed(now, sent[which].id, RETRY);
                        prop_assert_eq!(next.is_some(), counts);
                        sent[which].ended = true;
                        if let Some(next) = next {
                            results += 1;
                            prop_assert_eq!((next.state, next.openings), (State::Open, before.openings + 1));
                            word = next;
                        }
                    }
                    (5, Some(which)) => {
                        let next = word.withdrawn(sent[which].id);
                        prop_assert_eq!(next.is_some(), counts);
                        sent[which].ended = true;
                        if let Some(next) = next {
                            let as_before = (next.state, next.since_ns) == (State::Open, before.opened_ns);
                            prop_assert!(next.state == State::HalfOpen || as_before && passed == 0);
                            prop_assert_eq!((next.retry_at_ns, next.openings), (before.retry_at_ns, before.openings));
                            word = next;
                        }
                    }
                    _ => {}
                }
                // Of whatever period.
                let in_flight = sent.iter().filter(|one| !one.ended && now < one.until_ns).count();
                prop_assert!(in_flight <= probes as usize);
                prop_assert!(word.state != State::HalfOpen || in_flight + passed as usize <= probes as usize);
                prop_assert!(results <= probes);
                prop_assert!(word.state == State::HalfOpen || word.leases.is_empty() && word.succeeded == 0);
            }
        }
    }
}
