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
