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
    #[inline(never)]
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
    /// is counted may move by half the width of an old bucket, but not on and on when the shape goes to and fro: the
    /// middle of the narrower bucket is in the wider one from which it came. By their beginnings counts would move back
    /// each time, out of the window in the end. Whatever is still inside the new window by this time is in it.
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
    #[inline(never)]
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
    #[inline(never)]
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

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test that is wrong shall stop")]

    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;

    fn counts(total: u32, bad: u32) -> Counts {
        Counts { total, bad }
    }

    fn window(interval_ns: u64, buckets: u32, ended: &[(u64, bool)]) -> Window {
        let mut window = Window::new(interval_ns, buckets);
        ended.iter().for_each(|(at, bad)| window.add(*at, *bad));
        window
    }

    #[test]
    fn it_slides() {
        let mut window = Window::new(SECOND, 10);
        let around = (0..9).map(|_| 995 * MS).chain((0..9).map(|_| 1003 * MS));
        around.for_each(|at| window.add(at, true));
        assert_eq!(window.sum(1003 * MS), counts(18, 18));
        assert_eq!(window.sum(1899 * MS), counts(18, 18), "900 ms and more are covered");
        assert_eq!(window.sum(1900 * MS), counts(9, 9));
        assert_eq!(window.sum(2000 * MS), counts(0, 0));
        window.clear();
        assert_eq!(window.sum(1003 * MS), counts(0, 0));
    }

    #[test]
    fn shapes_that_make_no_sense_are_bent() {
        for (interval, buckets, length, width) in
            [(0, 0, 1, 1), (5, 10, 10, 1), (1000, 1000, 100, 10), (1001, 10, 10, 101), (u64::MAX, 1, 1, u64::MAX)]
        {
            let mut window = Window::new(interval, buckets);
            assert_eq!((window.ring.len(), window.width_ns()), (length, width), "{interval} {buckets}");
            assert!(window.same_shape(interval, buckets));
            for at in [0, 1, u64::MAX, 5, u64::MAX - 1, 0] {
                window.add(at, true);
                assert!(window.sum(at).total >= 1, "{interval} {buckets} {at}");
            }
        }
        assert!(!Window::new(SECOND, 10).same_shape(SECOND, 5));
        assert!(!Window::new(SECOND, 10).same_shape(2 * SECOND, 10));
        assert!(!Window::new(SECOND, 10).same_shape(2 * SECOND, 20), "as wide, but more of them");
    }

    #[test]
    fn a_clock_put_back() {
        let mut window = window(SECOND, 10, &[(10 * SECOND, false), (10 * SECOND + 500 * MS, true)]);
        window.add(10 * SECOND, true);
        assert_eq!(window.sum(10 * SECOND), counts(2, 1), "what is of later does not count yet");
        assert_eq!(window.sum(10 * SECOND + 500 * MS), counts(3, 2), "but then");
        window.add(2 * SECOND, true);
        assert_eq!(window.sum(2 * SECOND), counts(1, 1));
        assert_eq!(window.sum(10 * SECOND + 500 * MS), counts(0, 0), "what was counted before turns up no more");
        assert_eq!(window.reshaped(SECOND, 5).sum(2 * SECOND), counts(1, 1));
    }

    #[test]
    fn counts_end_where_a_number_does() {
        let mut window = Window::new(SECOND, 1);
        for bad in [u32::MAX, 1] {
            window.merge(Bucket { index: 0, total: u32::MAX, bad });
        }
        window.add(0, true);
        assert_eq!(window.sum(0), counts(u32::MAX, u32::MAX));
    }

    #[test]
    fn of_another_worker_the_later_bucket_counts() {
        let mut window = window(SECOND, 10, &[(10 * SECOND, true)]);
        window.merge(Bucket { index: 90, total: 5, bad: 5 });
        assert_eq!(window.sum(10 * SECOND), counts(1, 1), "an old one does not take its place");
        window.merge(Bucket { index: 110, total: 0, bad: 0 });
        assert_eq!(window.sum(10 * SECOND), counts(1, 1), "nor does an empty one");
        window.merge(Bucket { index: 110, total: 2, bad: 1 });
        assert_eq!(window.sum(11 * SECOND), counts(2, 1));
    }

    #[test]
    fn a_new_shape_keeps_the_counts() {
        let old = window(60 * SECOND, 10, &[(60 * SECOND, true), (100 * SECOND, false), (101 * SECOND, true)]);
        for (interval, buckets, left) in [
            (60, 10, counts(3, 2)),
            (60, 60, counts(3, 2)),
            (120, 10, counts(3, 2)),
            (30, 10, counts(2, 1)),
            // 100 s is in the bucket from 96 to 102 s, whose middle is 99 s.
            (1, 10, counts(0, 0)),
            (3, 3, counts(2, 1)),
        ] {
            let new = old.reshaped(interval * SECOND, buckets);
            assert!(new.same_shape(interval * SECOND, buckets));
            assert_eq!(new.sum(101 * SECOND), left, "{interval} s, {buckets} buckets");
        }
    }

    #[test]
    fn a_bucket_of_now_is_not_put_into_the_future() {
        let old = window(60 * SECOND, 1, &[(61 * SECOND, true)]);
        assert_eq!(old.reshaped(10 * SECOND, 10).sum(61 * SECOND), counts(1, 1));
    }

    #[test]
    fn a_slot_is_what_it_is() {
        let bytes = Slot { at_ns: 1, published: vec![] }.encode();
        assert_eq!(bytes, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(Slot::decode(&bytes).is_some());
        let mut other = bytes.clone();
        other[0] = 2;
        assert_eq!(Slot::decode(&other), None, "another version");
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(Slot::decode(&longer), None, "something behind");
        // 2^63 of them: room for so many would end the module.
        let mut many = bytes[..9].to_vec();
        wire::put_varint(&mut many, 1 << 63);
        many.resize(200, 1);
        assert_eq!(Slot::decode(&many), None);
        // A number of more than 64 bits.
        let mut large = bytes[..9].to_vec();
        large.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]);
        assert_eq!(Slot::decode(&large), None);
    }

    fn shape() -> impl Strategy<Value = (u64, u32)> {
        (1_u64..20_000, 0_u32..110)
    }

    fn bucket() -> impl Strategy<Value = Bucket> {
        (any::<u64>(), any::<u32>(), any::<u32>()).prop_map(|(index, total, bad)| Bucket { index, total, bad })
    }

    fn slot() -> impl Strategy<Value = Slot> {
        let buckets = prop::collection::vec(bucket(), 0..5);
        let published = (any::<u64>(), any::<u64>(), any::<u64>(), buckets)
            .prop_map(|(key, since_ns, width_ns, buckets)| Published { key, since_ns, width_ns, buckets });
        (any::<u64>(), prop::collection::vec(published, 0..4)).prop_map(|(at_ns, published)| Slot { at_ns, published })
    }

    proptest! {
        #[test]
        fn a_sum_is_of_what_ended_in_it(
            (interval, buckets) in shape(),
            steps in prop::collection::vec((0_u64..3000, any::<bool>()), 1..200),
            later in 0_u64..20_000,
        ) {
            let mut ended = vec![];
            let mut window = Window::new(interval, buckets);
            let mut now = 0;
            for (step, bad) in steps {
                now += step;
                ended.push((now, bad));
                window.add(now, bad);
                let (width, length) = (window.width_ns(), window.length());
                for now in [now, now + later] {
                    let within = |least: &dyn Fn(u64) -> bool| {
                        let mut sum = counts(0, 0);
                        for (_, bad) in ended.iter().filter(|(at, _)| least(*at)) {
                            sum.total += 1;
                            sum.bad += u32::from(*bad);
                        }
                        sum
                    };
                    let sum = window.sum(now);
                    prop_assert_eq!(sum, within(&|at| at / width + length > now / width));
                    prop_assert!(sum.total >= within(&|at| now - at <= (length - 1) * width).total);
                    prop_assert!(sum.total <= within(&|at| now - at < length * width).total);
                }
            }
        }

        #[test]
        fn a_clock_may_do_anything((interval, buckets) in shape(), times in prop::collection::vec(any::<u64>(), 1..100), small in any::<bool>()) {
            let mut window = Window::new(interval, buckets);
            for (before, at) in times.iter().enumerate() {
                let at = if small { at % 50_000 } else { *at };
                window.add(at, before % 3 == 0);
                let sum = window.sum(at);
                prop_assert!(sum.bad <= sum.total && sum.total >= 1 && sum.total as usize <= before + 1);
                let reshaped = window.reshaped(interval / 2, buckets);
                prop_assert!(reshaped.sum(at).total as usize <= before + 1);
            }
        }

        #[test]
        fn workers_together_are_one(
            (interval, buckets) in shape(),
            ended in prop::collection::vec((0_u64..30_000, any::<bool>(), 0_usize..4), 1..200),
        ) {
            let mut ended = ended;
            ended.sort_unstable();
            let mut workers = vec![Window::new(interval, buckets); 4];
            let mut one = Window::new(interval, buckets);
            let mut now = 0;
            for (at, bad, worker) in ended {
                workers[worker].add(at, bad);
                one.add(at, bad);
                now = at;
            }
            let mut merged = Window::new(interval, buckets);
            workers.iter().flat_map(|worker| worker.live(now)).for_each(|bucket| merged.merge(bucket));
            prop_assert_eq!(merged.sum(now), one.sum(now));
        }

        #[test]
        fn a_new_shape_loses_nothing_inside(
            (interval, buckets) in shape(),
            (new_interval, new_buckets) in shape(),
            ended in prop::collection::vec(0_u64..30_000, 1..100),
        ) {
            let mut ended = ended;
            ended.sort_unstable();
            let mut old = Window::new(interval, buckets);
            ended.iter().for_each(|at| old.add(*at, false));
            let now = ended[ended.len() - 1];
            let new = old.reshaped(new_interval, new_buckets);
            let (old_width, width) = (old.width_ns(), new.width_ns());
            let surely = |at: &&u64| {
                let age = now - **at + old_width.div_ceil(2);
                now / old_width - **at / old_width < old.length() && age <= (new.length() - 1) * width
            };
            let perhaps = |at: &&u64| now - **at <= new.length() * width + old_width.div_ceil(2);
            let total = new.sum(now).total as usize;
            prop_assert!(total >= ended.iter().filter(surely).count());
            prop_assert!(total <= ended.iter().filter(perhaps).count());
        }

        #[test]
        fn to_and_fro_moves_nothing_on(
            one in (1_u64..500, 1_u64..500),
            ended in prop::collection::vec(0_u64..10_000, 1..50),
        ) {
            // Both are long enough for all of it, whatever way it moves.
            let shapes = [(one.0 * 100 + 20_000, 100), (one.1 * 100 + 20_000, 100)];
            let mut ended = ended;
            ended.sort_unstable();
            let now = ended[ended.len() - 1];
            let mut window = Window::new(shapes[0].0, shapes[0].1);
            ended.iter().for_each(|at| window.add(*at, true));
            let mut seen = vec![];
            for _ in 0..20 {
                window = window.reshaped(shapes[1].0, shapes[1].1).reshaped(shapes[0].0, shapes[0].1);
                prop_assert_eq!(window.sum(now).total as usize, ended.len());
                seen.push(window.live(now).collect::<Vec<_>>());
            }
            prop_assert_eq!(&seen[2], &seen[19]);
        }

        #[test]
        fn a_slot_comes_back(slot in slot()) {
            let bytes = slot.encode();
            for end in 0..bytes.len() {
                prop_assert_eq!(Slot::decode(&bytes[..end]), None);
            }
            prop_assert_eq!(Slot::decode(&bytes), Some(slot));
        }

        #[test]
        fn garbage_is_no_slot(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let versioned = [&[VERSION][..], &bytes].concat();
            for bytes in [&bytes, &versioned] {
                if let Some(slot) = Slot::decode(bytes) {
                    let read: usize = slot.published.iter().map(|one| 18 + 3 * one.buckets.len()).sum();
                    prop_assert!(read <= bytes.len());
                }
            }
        }
    }
}
