//! A limit for "slow" that is measured: a multiple of what is normal for the upstream.
//!
//! Let `B` be the baseline, in microseconds. The limit is
//!
//! ```text
//! limit = min(ceiling, max(floor, factor * B))      while there is no baseline: limit = ceiling
//! ```
//!
//! Completions are gathered while the breaker is closed, and looked at when an interval is over and there are 20 of them:
//! where requests are few, an interval goes on until then. Let `n` be their number, `s` how many of them took longer
//! than the limit at that time, and `Q` the time that the share `quantile` of them took at most (from a histogram of 8
//! buckets to each doubling, between whose bounds it is interpolated: off by 1/8 of itself at most, from 64 µs to 134 s).
//! Then
//!
//! ```text
//! s >= n / 4   the interval is refused: B stays
//! no B yet     B = Q
//! Q <= B       B = B - (B - Q) / 2
//! Q >  B       B = min(Q, 1.05 * B)
//! ```
//!
//! When the breaker opens, what was gathered in this interval is thrown away; `B` stays.
//!
//! What follows from it:
//!
//! - **A slow period does not become the measure.** Once a quarter of the requests is over the limit, `B` stands still.
//!   Before that, or if the period is not that slow, `k` intervals raise `B` by a factor of at most `1.05^k`; afterwards
//!   half of the excess goes in each interval.
//! - **A slow creep is followed**, up to 5 % per interval: `B` may double in 15 intervals (`ln 2 / ln 1.05 = 14.2`), grow
//!   tenfold in 48 (47.2), so with an interval of 60 s in a quarter of an hour and in 48 minutes. Only the ceiling stops
//!   it: the ceiling is what nobody shall have to bear. With intervals of a second all that takes seconds: the interval
//!   of an adaptive rule should be a minute or more.
//! - **A sudden lasting rise** by a factor `r` that leaves less than a quarter of the requests over the limit (about:
//!   `r < factor`) is followed, in `ln r / ln 1.05` intervals. A larger one never is, however long it lasts, unless the
//!   floor or the ceiling says so: nothing in the times tells a new normal from an outage. If it is the new normal, the
//!   operator raises the floor above it. The limit follows at once, requests are within it again, and `B` grows by 5 % per
//!   interval; when it has arrived, the floor may go back.
//! - **A drop is followed quickly**: after 4 intervals 94 % of the way. When the old times come back, at more than
//!   `factor` times the new ones, that is a sudden rise, as above. So the floor should be no lower than what is normal on
//!   the slowest good day: what takes no longer than the floor is never slow.
//! - **The first interval** is believed if three quarters of it are within the ceiling. A worker that starts while the
//!   upstream is slow has a baseline that is too high, and half of the excess goes with each good interval.
//! - Each worker measures for itself, so that their limits differ a little.

/// What the operator wants of a limit that is measured.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Adaptive {
    /// How many times the baseline is slow: 1.1 to 100.
    pub factor: f64,
    /// The limit is never lower.
    pub floor_us: u64,
    /// The limit is never higher, even than the floor.
    pub ceiling_us: u64,
    /// Which share of the requests the baseline is to cover: 0.5 to 0.99.
    pub quantile: f64,
}

impl Adaptive {
    fn limit_us(&self, baseline_us: Option<f64>) -> u64 {
        let measured =
            baseline_us.map_or(self.ceiling_us, |baseline| whole(within(self.factor, 1.1, 100.0) * baseline));
        measured.max(self.floor_us).min(self.ceiling_us)
    }
}

/// An interval with fewer requests goes on.
const ENOUGH: u32 = 20;
/// One in so many over the limit, and the interval is refused.
const MANY: u32 = 4;
/// How far up an interval takes the baseline.
const UP: f64 = 1.05;
/// How much of the way down.
const DOWN: f64 = 0.5;

/// What is normal, as far as it was measured.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Baseline {
    baseline_us: Option<f64>,
    gathered: Histogram,
    /// Of what is gathered: over the limit.
    slow: u32,
    /// When gathering began; `None` before the first request of an interval.
    began_ns: Option<u64>,
    refused: u32,
}

impl Baseline {
    /// Takes the time of a request that ended while the breaker was closed. Of one that did not fail: a refusal that comes
    /// at once says nothing about what is normal.
    pub fn record(&mut self, policy: &Adaptive, now_ns: u64, rt_us: u64, interval_ns: u64) {
        match self.began_ns {
            None => self.began_ns = Some(now_ns),
            Some(began) => match now_ns.checked_sub(began) {
                // The clock was put back: nobody knows how long it has been.
                None => self.began_ns = Some(now_ns),
                Some(age) if age >= interval_ns && self.gathered.total >= ENOUGH => {
                    self.conclude(policy);
                    self.began_ns = Some(now_ns);
                }
                Some(_) => {}
            },
        }
        self.slow = self.slow.saturating_add(u32::from(rt_us > self.limit_us(policy)));
        self.gathered.add(rt_us);
    }

    /// What takes longer is slow.
    pub fn limit_us(&self, policy: &Adaptive) -> u64 {
        policy.limit_us(self.baseline_us)
    }

    /// The breaker opened: what was gathered in this interval says more about why than about what is normal.
    pub fn reset_window(&mut self) {
        self.gathered = Histogram::default();
        self.slow = 0;
        self.began_ns = None;
    }

    /// What is normal, if it is known.
    pub fn baseline_us(&self) -> Option<f64> {
        self.baseline_us
    }

    /// How many intervals in a row were refused: if that does not end, the operator has a word to say.
    pub fn refused(&self) -> u32 {
        self.refused
    }

    fn conclude(&mut self, policy: &Adaptive) {
        if self.slow >= self.gathered.total.div_ceil(MANY) {
            self.refused = self.refused.saturating_add(1);
        } else {
            self.refused = 0;
            let seen = self.gathered.quantile(within(policy.quantile, 0.5, 0.99));
            self.baseline_us = Some(match self.baseline_us {
                None => seen,
                Some(old) if seen <= old => old - (old - seen) * DOWN,
                // From nothing 5 % lead nowhere.
                Some(old) => seen.min(old.max(1.0) * UP),
            });
        }
        self.reset_window();
    }
}

/// Buckets to each doubling, and how many bits number them.
const PARTS: u64 = 8;
const PART_BITS: u32 = 3;
/// Below 2^6 µs there is one bucket, above 2^27 µs none: what takes longer counts as that.
const LOWEST_BIT: u32 = 6;
const DOUBLINGS: u32 = 21;
const BUCKETS: usize = 1 + 21 * 8;

/// How often what time was taken.
#[derive(Clone, PartialEq, Debug)]
struct Histogram {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    fn add(&mut self, us: u64) {
        let highest = us.checked_ilog2().unwrap_or(0);
        let place = match highest.checked_sub(LOWEST_BIT) {
            None => 0,
            Some(doublings) if doublings >= DOUBLINGS => BUCKETS.saturating_sub(1),
            Some(doublings) => {
                let part = us.checked_shr(highest.saturating_sub(PART_BITS)).unwrap_or(0) % PARTS;
                let place = u64::from(doublings).saturating_mul(PARTS).saturating_add(part).saturating_add(1);
                usize::try_from(place).unwrap_or(0)
            }
        };
        if let Some(count) = self.counts.get_mut(place) {
            *count = count.saturating_add(1);
            self.total = self.total.saturating_add(1);
        }
    }

    /// What this share of them took at most.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = share * f64::from(self.total);
        let (mut before, mut bound) = (0.0, 0.0);
        for (count, (low, width)) in self.counts.iter().zip(bounds()) {
            let count = f64::from(*count);
            if count > 0.0 {
                bound = low + width * ((wanted - before) / count).clamp(0.0, 1.0);
                before += count;
                if before >= wanted {
                    break;
                }
            }
        }
        bound
    }
}

/// Where each bucket begins, and its width.
fn bounds() -> impl Iterator<Item = (f64, f64)> {
    let lowest = 64.0;
    let each = core::iter::successors(Some((lowest, lowest / 8.0, 1_u32)), |(low, width, part)| {
        let (next, part) = (low + width, part.wrapping_add(1));
        Some(if part % 8 == 1 { (next, width * 2.0, part) } else { (next, *width, part) })
    });
    core::iter::once((0.0, lowest)).chain(each.map(|(low, width, _)| (low, width)))
}

/// Not a number is the least.
fn within(value: f64, least: f64, most: f64) -> f64 {
    if value.is_nan() { least } else { value.clamp(least, most) }
}

/// Casts from float saturate, and what is no number becomes 0.
#[allow(clippy::as_conversions)]
fn whole(us: f64) -> u64 {
    us as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "a test that is wrong shall stop")]

    extern crate std;

    use super::*;
    use kit::prelude::*;
    use proptest::prelude::*;

    const MINUTE: u64 = 60_000_000_000;
    const MS: u64 = 1000;
    const POLICY: Adaptive = Adaptive { factor: 3.0, floor_us: 20 * MS, ceiling_us: 2000 * MS, quantile: 0.5 };

    /// Minutes, each with so many requests of such times.
    #[derive(Default)]
    struct Upstream {
        baseline: Baseline,
        now: u64,
    }

    impl Upstream {
        fn minutes(&mut self, minutes: u64, times_us: &[u64]) -> &mut Self {
            for _ in 0..minutes {
                for (request, us) in (0_u64..).zip(times_us) {
                    self.baseline.record(&POLICY, self.now + request * 100_000_000, *us, MINUTE);
                }
                self.now += MINUTE;
            }
            self
        }

        /// A last one, which is not looked at, but ends what came before.
        fn baseline_us(&self) -> Option<f64> {
            let mut baseline = self.baseline.clone();
            baseline.record(&POLICY, self.now, 0, MINUTE);
            baseline.baseline_us()
        }

        fn limit_ms(&self) -> u64 {
            POLICY.limit_us(self.baseline_us()) / MS
        }
    }

    /// Within what the histogram is off by.
    fn about(us: f64, expected_ms: f64) -> bool {
        (us / (expected_ms * 1000.0) - 1.0).abs() <= 0.125
    }

    #[test]
    fn what_becomes_of_it() {
        let normal = [100 * MS; 100];
        // Upstreams by what they do, and the baseline they shall have in the end, in ms.
        type Life = fn(&mut Upstream) -> &mut Upstream;
        let lives: [(&str, Life, f64); 12] = [
            ("steady", |up| up, 100.0),
            ("a slow hour", |up| up.minutes(60, &[1000 * MS; 100]), 100.0),
            (
                "a slow hour, and it is over",
                |up| up.minutes(60, &[1000 * MS; 100]).minutes(10, &[100 * MS; 100]),
                100.0,
            ),
            (
                "a quarter of it slow for an hour",
                |up| {
                    let mut times = [250 * MS; 100];
                    times[75..].fill(1000 * MS);
                    up.minutes(60, &times)
                },
                100.0,
            ),
            ("slow, but not very: at most 5 % in a minute", |up| up.minutes(5, &[250 * MS; 100]), 127.6),
            (
                "and down again by half each minute",
                |up| up.minutes(5, &[250 * MS; 100]).minutes(3, &[100 * MS; 100]),
                103.4,
            ),
            ("a new normal within the limit: there in 19 minutes", |up| up.minutes(19, &[250 * MS; 100]), 250.0),
            (
                "a creep of 2 % in a minute",
                |up| (0..70).fold(up, |up, minute| up.minutes(1, &[(100_000.0 * 1.02_f64.powi(minute)) as u64; 100])),
                392.0,
            ),
            (
                "a creep of 10 % in a minute: followed by 5 until it is over the limit",
                |up| (0..60).fold(up, |up, minute| up.minutes(1, &[(100_000.0 * 1.1_f64.powi(minute)) as u64; 100])),
                290.0,
            ),
            ("a drop", |up| up.minutes(1, &[20 * MS; 100]), 60.0),
            ("a drop, after 4 minutes", |up| up.minutes(4, &[20 * MS; 100]), 25.0),
            ("few requests are waited for", |up| up.minutes(3, &[20 * MS; 5]), 100.0),
        ];
        for (what, life, expected) in lives {
            let mut upstream = Upstream::default();
            let baseline = life(upstream.minutes(10, &normal)).baseline_us().unwrap();
            assert!(about(baseline, expected), "{what}: {baseline} us");
        }
    }

    #[test]
    fn few_requests_make_a_baseline_in_time() {
        let mut upstream = Upstream::default();
        assert_eq!(upstream.minutes(3, &[50 * MS; 5]).baseline_us(), None);
        assert_eq!(upstream.limit_ms(), 2000, "the ceiling");
        assert!(about(upstream.minutes(1, &[50 * MS; 5]).baseline_us().unwrap(), 50.0));
    }

    #[test]
    fn the_limit_is_between_floor_and_ceiling() {
        for (ms, least, most) in [(1, 20, 20), (100, 262, 338), (900, 2000, 2000)] {
            let limit = Upstream::default().minutes(1, &[ms * MS; 30]).limit_ms();
            assert!((least..=most).contains(&limit), "{ms}: {limit}");
        }
        let crossed = Adaptive { floor_us: 500, ceiling_us: 100, ..POLICY };
        assert_eq!(Baseline::default().limit_us(&crossed), 100);
    }

    #[test]
    fn a_new_normal_beyond_the_limit_waits_for_the_operator() {
        let mut upstream = Upstream::default();
        upstream.minutes(5, &[100 * MS; 100]).minutes(1000, &[500 * MS; 100]);
        assert!(about(upstream.baseline.baseline_us().unwrap(), 100.0));
        assert_eq!(upstream.baseline.refused(), 999);
        let raised = Adaptive { floor_us: 600 * MS, ..POLICY };
        assert_eq!(upstream.baseline.limit_us(&raised), 600 * MS, "at once");
        for _ in 0..40 {
            for request in 0..100 {
                upstream.baseline.record(&raised, upstream.now + request, 500 * MS, MINUTE);
            }
            upstream.now += MINUTE;
        }
        assert!(about(upstream.baseline.baseline_us().unwrap(), 500.0));
        assert_eq!(upstream.baseline.refused(), 0);
    }

    #[test]
    fn an_opening_throws_the_interval_away_and_not_the_baseline() {
        let mut upstream = Upstream::default();
        upstream.minutes(5, &[100 * MS; 100]).minutes(1, &[10 * MS; 100]);
        let before = upstream.baseline.baseline_us();
        upstream.baseline.reset_window();
        assert_eq!(upstream.baseline_us(), before);
        assert!(upstream.baseline.baseline_us().is_some());
    }

    #[test]
    fn a_slow_first_interval_is_no_baseline() {
        let mut upstream = Upstream::default();
        upstream.minutes(5, &[3000 * MS; 100]);
        assert_eq!((upstream.baseline_us(), upstream.limit_ms()), (None, 2000));
    }

    #[test]
    fn a_clock_put_back_delays_and_no_more() {
        let mut upstream = Upstream { now: 100 * MINUTE, ..Upstream::default() };
        upstream.minutes(2, &[100 * MS; 100]);
        upstream.now = 0;
        assert!(about(upstream.minutes(3, &[100 * MS; 100]).baseline_us().unwrap(), 100.0));
    }

    #[test]
    fn buckets_are_where_their_times_are() {
        let all: Vec<_> = bounds().take(BUCKETS).collect();
        assert_eq!((all[0], all[1], all[8], all[9]), ((0.0, 64.0), (64.0, 8.0), (120.0, 8.0), (128.0, 16.0)));
        assert_eq!(all[BUCKETS - 1].0 + all[BUCKETS - 1].1, 134_217_728.0);
        for (place, (low, width)) in all.iter().enumerate() {
            for us in [*low, low + width - 1.0] {
                let mut histogram = Histogram::default();
                histogram.add(us as u64);
                assert_eq!(histogram.counts.iter().position(|count| *count > 0), Some(place), "{us}");
            }
        }
    }

    fn odd() -> impl Strategy<Value = f64> {
        prop_oneof![any::<f64>(), Just(f64::NAN), Just(f64::INFINITY), Just(0.0), 0.0..100.0]
    }

    proptest! {
        #[test]
        fn no_number_is_lost(
            factor in odd(), quantile in odd(), floor_us in any::<u64>(), ceiling_us in any::<u64>(), interval in any::<u64>(),
            times in prop::collection::vec((any::<u64>(), any::<u64>()), 0..300),
        ) {
            let policy = Adaptive { factor, floor_us, ceiling_us, quantile };
            let mut baseline = Baseline::default();
            for (now, rt) in times {
                baseline.record(&policy, now, rt, interval % 1000);
                prop_assert!(baseline.baseline_us().is_none_or(|us| (0.0..=134_217_728.0).contains(&us)));
                let limit = baseline.limit_us(&policy);
                prop_assert!(limit <= ceiling_us && limit >= floor_us.min(ceiling_us));
            }
        }

        #[test]
        fn a_quantile_is_off_by_an_eighth(mut times in prop::collection::vec(64_u64..134_217_728, 1..300), share in 0.5..0.99) {
            let mut histogram = Histogram::default();
            times.iter().for_each(|us| histogram.add(*us));
            times.sort_unstable();
            let rank = f64::ceil(share * times.len() as f64) as usize;
            let (found, exact) = (histogram.quantile(share), times[rank.max(1) - 1] as f64);
            prop_assert!((found / exact - 1.0).abs() <= 0.125, "{found} {exact}");
        }

        #[test]
        fn no_interval_leads_up_by_more(intervals in prop::collection::vec((1_u64..3000, 20_usize..50), 1..60)) {
            let mut upstream = Upstream::default();
            for (ms, requests) in intervals {
                let before = upstream.baseline_us();
                let limit = upstream.limit_ms();
                upstream.minutes(1, &vec![ms * MS; requests]);
                let after = upstream.baseline_us();
                if let (Some(before), Some(after)) = (before, after) {
                    prop_assert!(after <= before * 1.0500001);
                    prop_assert!(ms <= limit || after == before, "slow, and believed");
                    prop_assert!(after >= before.min(ms as f64 * 1000.0) * 0.5);
                }
            }
        }
    }
}
