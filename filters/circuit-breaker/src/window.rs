//! What ended in the last while: a sliding window of one worker's completions, and the slot in which a worker leaves its
//! own for the others.
//!
//! A window of n buckets of width w knows of a completion only in which bucket it was. Its sum is that of the bucket of
//! now and the n - 1 before: of the last (n - 1)w to nw.

use crate::wire::{self, Reader};
use core::num::NonZeroU64;
use kit::prelude::*;

/// Completions.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// All.
    pub total: u32,
    /// Those that speak against the upstream.
    pub bad: u32,
}

/// The completions of one stretch of time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Its time since 1970 by the width of a bucket.
    pub index: u64,
    /// All; with none it is empty.
    pub total: u32,
    /// Those that speak against the upstream.
    pub bad: u32,
}

impl Bucket {
    fn take(&mut self, total: u32, bad: u32) {
        self.total = self.total.saturating_add(total);
        self.bad = self.bad.saturating_add(bad);
    }
}

/// A sliding window.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    width: NonZeroU64,
    /// A ring: a bucket stands at its index modulo their number, until a later one takes its place.
    ring: Vec<Bucket>,
    /// Where the last completion went, so that the next ones in the same bucket cost no division.
    began_ns: u64,
    index: u64,
    place: usize,
    /// The latest time that was told.
    latest_ns: u64,
}

/// Most buckets of a window.
pub const MAX_BUCKETS: u32 = 100;

fn width(interval_ns: u64, buckets: u32) -> NonZeroU64 {
    NonZeroU64::new(interval_ns.div_ceil(u64::from(number(buckets)))).unwrap_or(NonZeroU64::MIN)
}

fn number(buckets: u32) -> u32 {
    buckets.clamp(1, MAX_BUCKETS)
}

impl Window {
    /// An empty one of 1 to [`MAX_BUCKETS`] buckets, which are no narrower than 1 ns.
    pub fn new(interval_ns: u64, buckets: u32) -> Self {
        let length = usize::try_from(number(buckets)).unwrap_or(1);
        let ring = vec![Bucket::default(); length];
        Self { width: width(interval_ns, buckets), ring, began_ns: 0, index: 0, place: 0, latest_ns: 0 }
    }

    /// Counts what ended now. Where the clock was put back it counts at the time that the clock shows; by more than the
    /// window, and what was counted at the later times is gone, so that it does not turn up again when they come.
    pub fn add(&mut self, now_ns: u64, bad: bool) {
        let index = self.index(now_ns);
        if index != self.index {
            self.turn(index, now_ns);
        }
        self.latest_ns = self.latest_ns.max(now_ns);
        if let Some(bucket) = self.ring.get_mut(self.place) {
            if bucket.index != index {
                *bucket = Bucket { index, ..Bucket::default() };
            }
            bucket.take(1, u32::from(bad));
        }
    }

    /// What ended in the window whose last bucket is that of now.
    pub fn sum(&self, now_ns: u64) -> Counts {
        let mut counts = Bucket::default();
        self.live(now_ns).for_each(|bucket| counts.take(bucket.total, bucket.bad));
        Counts { total: counts.total, bad: counts.bad }
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        self.ring.fill(Bucket::default());
    }

    /// The same counts in other buckets.
    ///
    /// Each old bucket goes where its middle is, or the latest time that was told if its middle has not come yet. So what
    /// is counted may move by half the width of an old bucket, and by no more however often the shape goes to and fro:
    /// of one time it is the middle of the same bucket again. By their beginnings counts would move back each time, out
    /// of the window in the end. Whatever is still inside the new window by this time is in it.
    pub fn reshaped(&self, interval_ns: u64, buckets: u32) -> Self {
        let mut new = Self::new(interval_ns, buckets);
        new.latest_ns = self.latest_ns;
        for old in self.live(self.latest_ns) {
            let began = old.index.saturating_mul(self.width.get());
            let middle = began.saturating_add(self.width.get() / 2).min(self.latest_ns);
            new.put(Bucket { index: middle / new.width, ..old });
        }
        new
    }

    /// The buckets of [`Self::sum`], the empty ones left out: what is published.
    pub fn live(&self, now_ns: u64) -> impl Iterator<Item = Bucket> {
        let (now, length) = (self.index(now_ns), self.length());
        // Those after now are of a clock that was put back.
        let inside = move |bucket: &Bucket| now.checked_sub(bucket.index).is_some_and(|age| age < length);
        self.ring.iter().filter(move |bucket| bucket.total > 0 && inside(bucket)).copied()
    }

    /// Adds another worker's bucket of the same width.
    pub fn merge(&mut self, bucket: Bucket) {
        self.latest_ns = self.latest_ns.max(bucket.index.saturating_mul(self.width.get()));
        self.put(bucket);
    }

    /// Whether [`Self::new`] would make one of the same shape.
    pub fn same_shape(&self, interval_ns: u64, buckets: u32) -> bool {
        self.width == width(interval_ns, buckets) && self.length() == u64::from(number(buckets))
    }

    /// The width of a bucket: what makes buckets of two workers the same.
    pub fn width_ns(&self) -> u64 {
        self.width.get()
    }

    fn length(&self) -> u64 {
        u64::try_from(self.ring.len()).unwrap_or(1)
    }

    fn index(&self, now_ns: u64) -> u64 {
        let same = now_ns.checked_sub(self.began_ns).is_some_and(|since| since < self.width.get());
        if same { self.index } else { now_ns / self.width }
    }

    fn place(&self, index: u64) -> usize {
        index.checked_rem(self.length()).and_then(|place| usize::try_from(place).ok()).unwrap_or(0)
    }

    fn turn(&mut self, index: u64, now_ns: u64) {
        let beyond = index.saturating_add(self.length());
        if index < self.index {
            self.ring.iter_mut().filter(|bucket| bucket.index >= beyond).for_each(|bucket| *bucket = Bucket::default());
            if self.index >= beyond {
                self.latest_ns = now_ns;
            }
        }
        self.began_ns = index.saturating_mul(self.width.get());
        self.index = index;
        self.place = self.place(index);
    }

    /// Of two that share a place the later one stays.
    fn put(&mut self, bucket: Bucket) {
        let place = self.place(bucket.index);
        if let Some(old) = self.ring.get_mut(place)
            && bucket.total > 0
            && (old.total == 0 || old.index <= bucket.index)
        {
            if old.index != bucket.index {
                *old = Bucket { index: bucket.index, ..Bucket::default() };
            }
            old.take(bucket.total, bucket.bad);
        }
    }
}

/// The live buckets of one breaker in one worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Published {
    /// Of the breaker.
    pub key: u64,
    /// The counts are of the closed period that began then.
    pub since_ns: u64,
    /// The width of a bucket.
    pub width_ns: u64,
    /// As [`Window::live`] says them.
    pub buckets: Vec<Bucket>,
}

/// What one worker leaves for the others.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// When it was written.
    pub at_ns: u64,
    /// By breaker.
    pub published: Vec<Published>,
}

/// The first byte of a slot: another one would be of another release, which may share a proxy for a while.
const VERSION: u8 = 1;

impl Slot {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        wire::put_u64(&mut bytes, self.at_ns);
        wire::put_count(&mut bytes, &self.published);
        for published in &self.published {
            wire::put_u64(&mut bytes, published.key);
            wire::put_u64(&mut bytes, published.since_ns);
            wire::put_varint(&mut bytes, published.width_ns);
            wire::put_count(&mut bytes, &published.buckets);
            // Neighbours differ by little; a ring that begins in its middle goes back once.
            let mut before = 0_u64;
            for bucket in &published.buckets {
                wire::put_varint(&mut bytes, bucket.index.wrapping_sub(before));
                wire::put_varint(&mut bytes, u64::from(bucket.total));
                wire::put_varint(&mut bytes, u64::from(bucket.bad));
                before = bucket.index;
            }
        }
        bytes
    }

    /// From bytes, if they are a slot and nothing else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u8()? != VERSION {
            return None;
        }
        let at_ns = reader.u64()?;
        let published = reader.list(|reader| {
            let (key, since_ns, width_ns) = (reader.u64()?, reader.u64()?, reader.varint()?);
            let mut before = 0_u64;
            let buckets = reader.list(|reader| {
                before = before.wrapping_add(reader.varint()?);
                Some(Bucket { index: before, total: reader.u32()?, bad: reader.u32()? })
            })?;
            Some(Published { key, since_ns, width_ns, buckets })
        })?;
        reader.end()?;
        Some(Self { at_ns, published })
    }
}
