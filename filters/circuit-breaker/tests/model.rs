//! All that several workers can do to one board, one step at a time, as far as the bounds of the model go.
//!
//! A worker reads the board, computes with what the filter itself computes with, and writes by compare-and-swap. Between
//! the two the clock may move, others may write, and the worker may die. The store is the proxy's: a key that is not there
//! takes any number, one that is there takes its own, and 0 without asking.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "a test that is wrong shall stop"
)]

use circuit_breaker::board::{Board, Probe, State, Word};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// The breaker that is looked at.
const BREAKER: u64 = 1;
/// Another one on the same board, which only opens.
const OTHER: u64 = 2;
/// From an opening to the first probe.
const RETRY: u64 = 1;
const LEASE: u64 = 2;
/// What no key's number is: a key that appeared in the meantime is not written over.
const ABSENT: u32 = u32::MAX;

/// How the workers of the model write.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Writing {
    /// As the filter shall.
    Compare,
    /// Without asking whether somebody wrote in between.
    Blindly,
    /// Blindly only where the key was not there when it was read.
    BlindlyAtFirst,
}

#[derive(Clone, Debug)]
struct Workers {
    workers: usize,
    probes: u32,
    /// Bounds: of the clock, of trips of the breaker, of probes that are let through, and of deaths.
    until: u64,
    trips: u32,
    sent: u64,
    deaths: u32,
    writing: Writing,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Change {
    Trip(u64),
    Probe,
    Pass(Sent),
    Fail(Sent),
    Withdraw(Sent),
}

/// A probe on its way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Sent {
    id: u64,
    until: u64,
    /// The half-open period in which it was let through.
    period: u32,
    /// `None` once that has died: nobody will say how it ended.
    worker: Option<usize>,
}

/// What is in the key, and its number.
type Stored = Option<(Vec<u8>, u32)>;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Worker {
    Idle,
    /// Its write was refused.
    Again(Change),
    /// It has read, at this time.
    Read {
        change: Change,
        now: u64,
        seen: Stored,
    },
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    now: u64,
    store: Stored,
    workers: Vec<Worker>,
    upstream: Vec<Sent>,
    deaths: u32,
    trips: [u32; 2],
    next_id: u64,
    /// Half-open periods so far, and good results of probes of this one.
    period: u32,
    passed: u32,
    /// What must not be, when it has been.
    lost: bool,
    too_early: bool,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Step {
    Tick,
    Begin(usize, Change),
    Read(usize),
    Write(usize),
    Die(usize),
}

fn board(stored: &Stored) -> Board {
    stored.as_ref().map_or_else(Board::default, |(bytes, _)| Board::decode(bytes).unwrap())
}

impl World {
    fn word(&self) -> Word {
        board(&self.store).get(BREAKER).clone()
    }

    /// Of this half-open period, as the upstream sees them, whose leases have not run out.
    fn in_flight(&self) -> usize {
        let leased = |sent: &&Sent| sent.period == self.period && self.now < sent.until;
        if self.word().state == State::HalfOpen { self.upstream.iter().filter(leased).count() } else { 0 }
    }
}

/// Worlds in which the same can happen look the same, so that only one of them is gone into: which worker is which is
/// all one, and so is what one saw whose write will be refused, and how often the key was written.
fn representative(world: &World) -> World {
    let mut same = world.clone();
    let number = world.store.as_ref().map(|(_, number)| *number);
    for worker in &mut same.workers {
        if let Worker::Read { seen, .. } = worker {
            *seen = (seen.as_ref().map(|(_, number)| *number) == number).then(|| (vec![], 1));
        }
    }
    if let Some((_, number)) = &mut same.store {
        *number = 1;
    }
    let mut order: Vec<usize> = (0..same.workers.len()).collect();
    let has = |worker: usize| {
        let sent = world.upstream.iter().filter(move |sent| sent.worker == Some(worker));
        (same.workers[worker].clone(), sent.map(|sent| sent.id).collect::<Vec<_>>())
    };
    order.sort_by_cached_key(|worker| has(*worker));
    let workers = order.iter().map(|worker| same.workers[*worker].clone()).collect();
    for sent in &mut same.upstream {
        sent.worker = sent.worker.and_then(|worker| order.iter().position(|other| *other == worker));
    }
    World { workers, ..same }
}

impl Change {
    fn key(self) -> u64 {
        if let Self::Trip(key) = self { key } else { BREAKER }
    }
}

impl Workers {
    fn compute(&self, word: &Word, change: Change, now: u64, id: u64) -> Option<Word> {
        match change {
            Change::Trip(_) => word.tripped(now, RETRY),
            Change::Probe => match word.probe(now, id, self.probes, LEASE) {
                Probe::Granted(word) => Some(word),
                Probe::Wait => None,
            },
            Change::Pass(sent) => word.passed(now, sent.id, self.probes),
            Change::Fail(sent) => word.failed(now, sent.id, RETRY),
            Change::Withdraw(sent) => word.withdrawn(sent.id),
        }
    }

    fn write(&self, world: &mut World, worker: usize, change: Change, now: u64, seen: &Stored) {
        let id = world.next_id;
        let mut mine = board(seen);
        world.workers[worker] = Worker::Idle;
        let Some(next) = self.compute(mine.get(change.key()), change, now, id) else { return };
        let cas = match (self.writing, seen) {
            (Writing::Blindly, _) | (Writing::BlindlyAtFirst, None) => 0,
            (_, Some((_, number))) => *number,
            (Writing::Compare, None) => ABSENT,
        };
        let number = world.store.as_ref().map_or(0, |(_, number)| *number);
        if world.store.is_some() && cas != 0 && cas != number {
            world.workers[worker] = Worker::Again(change);
            return;
        }

        let before = board(&world.store);
        world.lost |= before != mine;
        if change.key() == BREAKER {
            let was = before.get(BREAKER).state;
            if was == State::Open && next.state == State::HalfOpen {
                (world.period, world.passed) = (world.period + 1, 0);
            }
            if let Change::Pass(sent) = change {
                world.passed += u32::from(sent.period == world.period);
            }
            if next.state == State::Closed {
                world.too_early |= was != State::HalfOpen || world.passed < self.probes;
            }
        }
        match change {
            Change::Trip(key) => world.trips[key as usize - 1] += 1,
            Change::Probe => {
                world.next_id += 1;
                let until = now + LEASE;
                world.upstream.push(Sent { id, until, period: world.period, worker: Some(worker) });
            }
            _ => {}
        }
        mine.set(change.key(), next);
        world.store = Some((mine.encode(), number + 1));
    }
}

impl Model for Workers {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            now: 1,
            store: None,
            workers: vec![Worker::Idle; self.workers],
            upstream: vec![],
            deaths: 0,
            trips: [0, 0],
            next_id: 1,
            period: 0,
            passed: 0,
            lost: false,
            too_early: false,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.now < self.until {
            steps.push(Step::Tick);
        }
        for (worker, state) in world.workers.iter().enumerate() {
            match state {
                Worker::Idle => {
                    for key in [BREAKER, OTHER] {
                        let most = if key == BREAKER { self.trips } else { 1 };
                        if world.trips[key as usize - 1] < most {
                            steps.push(Step::Begin(worker, Change::Trip(key)));
                        }
                    }
                    if world.next_id <= self.sent {
                        steps.push(Step::Begin(worker, Change::Probe));
                    }
                    for sent in world.upstream.iter().filter(|sent| sent.worker == Some(worker)) {
                        let sent = Sent { worker: None, ..*sent };
                        let ends = [Change::Pass(sent), Change::Fail(sent), Change::Withdraw(sent)];
                        steps.extend(ends.map(|change| Step::Begin(worker, change)));
                    }
                }
                Worker::Again(_) => steps.push(Step::Read(worker)),
                Worker::Read { .. } => {
                    steps.push(Step::Write(worker));
                    if world.deaths < self.deaths {
                        steps.push(Step::Die(worker));
                    }
                }
            }
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Tick => next.now += 1,
            Step::Begin(worker, change) => {
                if let Change::Pass(sent) | Change::Fail(sent) | Change::Withdraw(sent) = change {
                    next.upstream.retain(|other| other.id != sent.id);
                }
                // What changes nothing is not written.
                let word = board(&world.store).get(change.key()).clone();
                if self.compute(&word, change, world.now, world.next_id).is_some() {
                    next.workers[worker] = Worker::Read { change, now: world.now, seen: world.store.clone() };
                }
            }
            Step::Read(worker) => {
                let Worker::Again(change) = world.workers[worker] else { panic!("{step:?}") };
                next.workers[worker] = Worker::Read { change, now: world.now, seen: world.store.clone() };
            }
            Step::Write(worker) => {
                let Worker::Read { change, now, seen } = &world.workers[worker] else { panic!("{step:?}") };
                self.write(&mut next, worker, *change, *now, seen);
            }
            Step::Die(worker) => {
                next.deaths += 1;
                next.workers[worker] = Worker::Idle;
                let mine = next.upstream.iter_mut().filter(|sent| sent.worker == Some(worker));
                mine.for_each(|sent| sent.worker = None);
            }
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(IN_FLIGHT, |model: &Self, world: &World| {
                world.in_flight() + world.word().succeeded as usize <= model.probes as usize
            }),
            Property::always(NOT_TOO_EARLY, |_, world: &World| !world.too_early),
            Property::always(NOTHING_LOST, |_, world: &World| !world.lost),
            Property::sometimes("it closes", |_, world: &World| {
                let word = world.word();
                word.state == State::Closed && word.since_ns > 0
            }),
            Property::sometimes("it opens again", |_, world: &World| world.word().openings > 1),
            Property::sometimes("as many are in flight as may be", |model: &Self, world: &World| {
                world.in_flight() == model.probes as usize
            }),
            Property::sometimes("a probe that does not end is replaced", |_, world: &World| {
                let word = world.word();
                let replaced = |sent: &Sent| word.leases.iter().all(|lease| lease.id != sent.id);
                word.state == State::HalfOpen
                    && world.upstream.iter().any(|sent| sent.period == world.period && replaced(sent))
            }),
            Property::sometimes("a write is refused", |_, world: &World| {
                world.workers.iter().any(|worker| matches!(worker, Worker::Again(_)))
            }),
        ]
    }
}

const IN_FLIGHT: &str = "no more probes in flight, with those that went well, than may be";
const NOT_TOO_EARLY: &str = "it closes only after so many good results of one half-open period";
const NOTHING_LOST: &str = "nobody writes over what he has not seen";

fn check(model: Workers) {
    let said = format!("{model:?}");
    let checker = model
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .symmetry_fn(representative)
        .threads(2)
        .spawn_dfs()
        .join();
    println!("{said}: {} states, {} steps", checker.unique_state_count(), checker.state_count());
    checker.assert_properties();
}

const TWO: Workers =
    Workers { workers: 2, probes: 1, until: 4, trips: 2, sent: 2, deaths: 1, writing: Writing::Compare };

#[test]
fn two_workers() {
    check(TWO);
}

#[test]
fn two_workers_and_two_probes() {
    check(Workers { probes: 2, sent: 3, trips: 1, deaths: 0, ..TWO });
}

#[test]
fn three_workers() {
    check(Workers { workers: 3, trips: 1, deaths: 0, ..TWO });
}

/// What the checker finds where workers do not write as they shall; so it would find it in the filter.
fn found(writing: Writing, faults: &[&'static str]) {
    let faults = HasDiscoveries::AllOf(faults.iter().copied().collect());
    let checker = Workers { writing, ..TWO }.checker().finish_when(faults.clone()).threads(2).spawn_bfs().join();
    println!("{writing:?}: found within {} states", checker.unique_state_count());
    let found = checker.discoveries().into_keys().collect();
    assert!(faults.matches(&found, &Workers::properties(&TWO)), "{found:?}");
}

#[test]
fn writing_blindly_is_found_out() {
    found(Writing::Blindly, &[IN_FLIGHT, NOT_TOO_EARLY, NOTHING_LOST]);
}

#[test]
fn writing_blindly_at_first_is_found_out() {
    found(Writing::BlindlyAtFirst, &[NOTHING_LOST]);
}
