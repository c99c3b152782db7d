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

    /// A request comes that could be a probe, the first one from the time of the retry on. Leases that have run out make
    /// room, but those that succeeded and those in flight are no more than `probes` together.
    ///
    /// Where a change of rules has brought `probes` down to what has succeeded already, one more is let through: only a
    /// result closes the breaker.
    pub fn probe(&self, now_ns: u64, id: u64, probes: u32, lease_ns: u64) -> Probe {
        let lease = Lease { id, until_ns: now_ns.saturating_add(lease_ns) };
        let mut next = self.clone();
        match self.state {
            State::Open if now_ns >= self.retry_at_ns => {
                next = Self { state: State::HalfOpen, since_ns: now_ns, succeeded: 0, leases: Vec::new(), ..next };
            }
            State::HalfOpen => next.leases.retain(|lease| now_ns < lease.until_ns),
            State::Open | State::Closed => return Probe::Wait,
        }
        let in_flight = u32::try_from(next.leases.len()).unwrap_or(u32::MAX);
        let room = next.leases.is_empty() || next.succeeded.saturating_add(in_flight) < probes;
        // Two of one id could not be told apart.
        if !room || next.leases.iter().any(|lease| lease.id == id) {
            return Probe::Wait;
        }
        next.leases.push(lease);
        Probe::Granted(next)
    }

    /// A probe ended without saying anything about the upstream: another rule kept it back, or its client left. Where
    /// that leaves none in flight and none succeeded, it is as if nobody had probed. `None` if its lease is gone.
    pub fn withdrawn(&self, id: u64) -> Option<Self> {
        let mut next = self.without(id)?;
        if next.leases.is_empty() && next.succeeded == 0 {
            next = Self { state: State::Open, since_ns: next.opened_ns, ..next };
        }
        Some(next)
    }

    /// A probe went well; the last one closes the breaker. `None` if its lease is gone: if another probe has its place,
    /// or if it is of an earlier period. One that has run out and still has its place counts: what it says is true.
    pub fn passed(&self, now_ns: u64, id: u64, probes: u32) -> Option<Self> {
        let mut next = self.without(id)?;
        next.succeeded = next.succeeded.saturating_add(1);
        if next.succeeded >= probes {
            next = Self { since_ns: now_ns, ..Self::default() };
        }
        Some(next)
    }

    /// A probe went wrong: the breaker opens again, whatever others say later. `None` if its lease is gone, as in
    /// [`Self::passed`].
    pub fn failed(&self, now_ns: u64, id: u64, retry_ns: u64) -> Option<Self> {
        Some(self.without(id)?.opened(now_ns, retry_ns))
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
        }
    }

    fn without(&self, id: u64) -> Option<Self> {
        let mut next = self.clone();
        next.leases.retain(|lease| lease.id != id);
        (self.state == State::HalfOpen && next.leases.len() < self.leases.len()).then_some(next)
    }
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

    /// Leaves out those that closed longer ago, so that breakers which no rule names any more do not stay for ever.
    pub fn forget(&mut self, now_ns: u64, after_ns: u64) {
        self.words.retain(|(_, word)| word.state != State::Closed || now_ns.saturating_sub(word.since_ns) <= after_ns);
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
            wire::put_count(&mut bytes, &word.leases);
            for lease in &word.leases {
                wire::put_u64(&mut bytes, lease.id);
                wire::put_u64(&mut bytes, lease.until_ns);
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
                leases: reader.list(|reader| Some(Lease { id: reader.u64()?, until_ns: reader.u64()? }))?,
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
