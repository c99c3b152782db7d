//! What the workers tell each other, over the proxy's shared data.
//!
//! Three things, each under keys of the plugin's name. The *board* holds the state of every breaker that ever opened: it
//! is changed by compare-and-swap alone, so that workers agree on it exactly. *Slots*, one per worker, hold what each has
//! counted: whoever reads them is late by as much as a tick, twice. A *document* holds the rules that a source gave.
//!
//! That something changed is told by a counter: to read it is a hostcall that returns a number, which costs a tenth of one
//! that returns bytes. So a worker may ask before each request whether what it knows of the others is still true.

use crate::board::Board;
use crate::window::Slot;
use kit::prelude::*;
use kit::{Host, Labels, Metric, MetricKind, Metrics, Status};

/// Moves with each change that concerns all workers.
pub(crate) static CHANGES: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_circuit_changes_total",
    help: Metric::help("Changes of state, rules and workers that all workers follow."),
    labels: &["plugin"],
};

/// With it a key is made only where there is none: the host checks the number of what is there, and gives out small ones.
const CREATE: u32 = u32::MAX;

/// How often a change is tried again because another worker was faster. Each failure is a success of somebody else.
const TRIES: u32 = 64;

/// A slot whose worker says nothing for so long is free.
const STALE_NS: u64 = 10_000_000_000;

/// Most workers that count together; what is beyond counts for itself.
const WORKERS: usize = 256;

/// The plugin's part of the shared data.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    plugin: String,
    /// Of [`CHANGES`].
    labels: Option<Labels>,
    /// Of [`CHANGES`], as it was when this worker last looked at the board; none before it ever did.
    seen: Option<u64>,
    /// This worker, among others of its plugin.
    id: u64,
    /// The ids of workers by their slots; 0 where it is free.
    workers: Vec<u64>,
}

/// Rules from a source, as they were accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) version: u64,
    pub(crate) etag: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

impl Shared {
    pub(crate) fn new(plugin: &str, id: u64) -> Self {
        Self { plugin: plugin.into(), labels: None, seen: None, id: id.max(1), workers: Vec::new() }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn plugin(&self) -> &str {
        &self.plugin
    }

    pub(crate) fn key(&self, what: &str) -> String {
        ["meshfilter/circuit-breaker/", &self.plugin, "/", what].concat()
    }

    /// The board, if it may have changed since this was last asked.
    #[inline]
    pub(crate) fn news(&mut self, host: &dyn Host, metrics: &mut Metrics) -> Option<Board> {
        let labels = *self.labels.get_or_insert_with(|| metrics.labels(&[&self.plugin]));
        let changes = metrics.value_of(host, &CHANGES, labels);
        // Where a host has no numbers to give, it is looked at each time.
        if changes.is_some() && changes == self.seen {
            return None;
        }
        self.workers = self.read_workers(host).0;
        let board = match host.shared_data(&self.key("board")) {
            Ok((bytes, _)) => Board::decode(&bytes),
            // Before anything ever happened there is none.
            Err(Status::NotFound) => Some(Board::default()),
            // What cannot be read now is as it was, and looked at again.
            Err(_) => return None,
        };
        self.seen = changes;
        board
    }

    /// Has [`Shared::news`] look at the board, whatever was told.
    pub(crate) fn look_again(&mut self) {
        self.seen = None;
    }

    /// Tells the other workers that something changed.
    pub(crate) fn tell(&self, host: &dyn Host, metrics: &mut Metrics) {
        let labels = metrics.labels(&[&self.plugin]);
        metrics.add_to(host, &CHANGES, labels, 1);
    }

    /// Changes the board: `change` may run several times, each time on what is there, and says whether it did anything.
    pub(crate) fn change(
        &self,
        host: &dyn Host,
        change: &mut dyn FnMut(&mut Board) -> bool,
    ) -> Result<Board, Unchanged> {
        let mut board = Board::default();
        exchange(host, &self.key("board"), &mut |bytes| {
            board = bytes.and_then(Board::decode).unwrap_or_default();
            change(&mut board).then(|| board.encode())
        })?;
        Ok(board)
    }

    fn read_workers(&self, host: &dyn Host) -> (Vec<u64>, u32) {
        match host.shared_data(&self.key("workers")) {
            Ok((bytes, cas)) => (read_ids(&bytes), cas),
            Err(_) => (Vec::new(), CREATE),
        }
    }

    /// The slot of this worker; it gets one where it has none.
    fn own_slot(&mut self, host: &dyn Host, metrics: &mut Metrics, now_ns: u64) -> Option<usize> {
        if let Some(slot) = self.workers.iter().position(|id| *id == self.id) {
            return Some(slot);
        }
        let (mut slot, mut workers) = (0, Vec::new());
        exchange(host, &self.key("workers"), &mut |bytes| {
            workers = bytes.map(read_ids).unwrap_or_default();
            slot = match workers.iter().position(|id| *id == 0) {
                Some(free) => free,
                None => {
                    let stale = (0..workers.len()).find(|slot| match self.read_slot(host, *slot) {
                        Some(told) => now_ns.saturating_sub(told.at_ns) > STALE_NS,
                        None => true,
                    });
                    stale.unwrap_or(workers.len())
                }
            };
            if slot >= WORKERS {
                return None;
            }
            workers.resize(workers.len().max(slot.saturating_add(1)), 0);
            *workers.get_mut(slot)? = self.id;
            Some(workers.iter().flat_map(|id| id.to_le_bytes()).collect())
        })
        .ok()?;
        self.workers = workers;
        self.tell(host, metrics);
        Some(slot)
    }

    /// Leaves for the others what this worker has counted.
    pub(crate) fn publish(&mut self, host: &dyn Host, metrics: &mut Metrics, slot: &Slot) -> bool {
        let Some(place) = self.own_slot(host, metrics, slot.at_ns) else { return false };
        host.set_shared_data(&self.slot_key(place), &slot.encode(), 0).is_ok()
    }

    /// What the others have counted.
    pub(crate) fn others(&self, host: &dyn Host) -> Vec<Slot> {
        let others = self.workers.iter().enumerate().filter(|(_, id)| **id != 0 && **id != self.id);
        others.filter_map(|(slot, _)| self.read_slot(host, slot)).collect()
    }

    fn slot_key(&self, slot: usize) -> String {
        self.key(&format!("slot/{slot}"))
    }

    #[inline(never)]
    fn read_slot(&self, host: &dyn Host, slot: usize) -> Option<Slot> {
        Slot::decode(&host.shared_data(&self.slot_key(slot)).ok()?.0)
    }

    /// The rules that came from this source.
    pub(crate) fn document(&self, host: &dyn Host, source: &str) -> Option<Document> {
        Document::decode(&host.shared_data(&self.key(&[source, "/rules"].concat())).ok()?.0)
    }

    /// Puts new rules in the place of the old ones, under the version after `last` and theirs.
    pub(crate) fn accept(
        &self,
        host: &dyn Host,
        source: &str,
        last: u64,
        (etag, body): (&[u8], &[u8]),
    ) -> Option<Document> {
        let mut next = Document { version: 0, etag: etag.to_vec(), body: body.to_vec() };
        exchange(host, &self.key(&[source, "/rules"].concat()), &mut |bytes| {
            let there = bytes.and_then(Document::decode).map_or(0, |there| there.version);
            next.version = there.max(last).saturating_add(1);
            Some(next.encode())
        })
        .ok()?;
        Some(next)
    }

    /// Notes another ETag for the rules of that version, to be asked with; where they have changed meanwhile, nothing.
    pub(crate) fn relabel(&self, host: &dyn Host, source: &str, version: u64, etag: &[u8]) {
        let _ = exchange(host, &self.key(&[source, "/rules"].concat()), &mut |bytes| {
            let there = Document::decode(bytes?).filter(|there| there.version == version)?;
            Some(Document { etag: etag.to_vec(), ..there }.encode())
        });
    }
}

/// What a key's bytes are to become, by what they are.
type Change<'c> = dyn FnMut(Option<&[u8]>) -> Option<Vec<u8>> + 'c;

/// Changes what is under a key, as often as another worker is faster: `change` gives the new bytes. It is called, and not
/// compiled into each caller: a module is as large as that.
pub(crate) fn exchange(host: &dyn Host, key: &str, change: &mut Change<'_>) -> Result<(), Unchanged> {
    for _ in 0..TRIES {
        let (old, cas) = match host.shared_data(key) {
            Ok((bytes, cas)) => (Some(bytes), cas),
            Err(Status::NotFound) => (None, CREATE),
            Err(_) => return Err(Unchanged::Host),
        };
        let new = change(old.as_deref()).ok_or(Unchanged::Unwanted)?;
        match host.set_shared_data(key, &new, cas) {
            Ok(()) => return Ok(()),
            Err(Status::CasMismatch) => {}
            Err(_) => return Err(Unchanged::Host),
        }
    }
    Err(Unchanged::Contended)
}

/// Why a key is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unchanged {
    /// There was nothing to change.
    Unwanted,
    /// Others were faster each time.
    Contended,
    /// The host neither gives nor takes it.
    Host,
}

fn read_ids(bytes: &[u8]) -> Vec<u64> {
    let (ids, _) = bytes.as_chunks();
    ids.iter().take(WORKERS).map(|id| u64::from_le_bytes(*id)).collect()
}

impl Document {
    fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(self.etag.len()).unwrap_or(u32::MAX);
        [&self.version.to_le_bytes(), length.to_le_bytes().as_slice(), &self.etag, &self.body].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (etag, body) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        Some(Self { version: u64::from_le_bytes(*version), etag: etag.to_vec(), body: body.to_vec() })
    }
}
