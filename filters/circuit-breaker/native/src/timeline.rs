//! What a breaker saw over time, in no more room for a year than for a minute.

/// Most bins; when they are full, each becomes twice as wide.
pub const MOST: usize = 192;

/// A stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Requests that began in it.
    pub total: u64,
    /// Those of them that were bad by the record.
    pub bad: u64,
    /// Those that would have been refused.
    pub refused: u64,
    /// The most that the window had against the upstream: a ratio or a count; none where too little ended.
    pub measure: Option<f64>,
}

/// Bins, one after the other.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// Of the first request.
    start_ns: Option<u64>,
    width_ns: u64,
    bins: Vec<Bin>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { start_ns: None, width_ns: SECOND_NS, bins: Vec::new() }
    }
}

const SECOND_NS: u64 = 1_000_000_000;

impl Timeline {
    /// How wide a bin is.
    pub fn width_ns(&self) -> u64 {
        self.width_ns
    }

    /// The bins with their beginnings.
    pub fn bins(&self) -> impl Iterator<Item = (u64, &Bin)> {
        let start_ns = self.start_ns.unwrap_or(0);
        let starts = (0_u64..).map(move |place| start_ns.saturating_add(place.saturating_mul(self.width_ns)));
        starts.zip(&self.bins)
    }

    /// The bin of a time. What is earlier than the first one counts there.
    pub fn at(&mut self, at_ns: u64) -> Option<&mut Bin> {
        let start_ns = *self.start_ns.get_or_insert(at_ns.saturating_sub(at_ns % SECOND_NS));
        let place = loop {
            let place = at_ns.saturating_sub(start_ns).checked_div(self.width_ns)?;
            match usize::try_from(place) {
                Ok(place) if place < MOST => break place,
                _ => self.halve(),
            }
        };
        if place >= self.bins.len() {
            self.bins.resize(place.saturating_add(1), Bin::default());
        }
        self.bins.get_mut(place)
    }

    fn halve(&mut self) {
        self.width_ns = self.width_ns.saturating_mul(2);
        let pairs = self.bins.chunks(2).map(|pair| {
            pair.iter().fold(Bin::default(), |sum, bin| Bin {
                total: sum.total.saturating_add(bin.total),
                bad: sum.bad.saturating_add(bin.bad),
                refused: sum.refused.saturating_add(bin.refused),
                measure: match (sum.measure, bin.measure) {
                    (Some(one), Some(other)) => Some(one.max(other)),
                    (one, other) => one.or(other),
                },
            })
        });
        self.bins = pairs.collect();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::arithmetic_side_effects, reason = "a test that is wrong shall stop")]

    use super::*;

    #[test]
    fn it_keeps_all_in_little_room() {
        let mut timeline = Timeline::default();
        for second in 0..100_000_u64 {
            let bin = timeline.at(1_000_000_000_000 + second * 1_000_000_000).unwrap();
            bin.total += 1;
            bin.bad += u64::from(second % 10 == 0);
            bin.measure = Some(bin.measure.unwrap_or(0.0).max(if second == 70_000 { 0.7 } else { 0.1 }));
        }
        let bins: Vec<_> = timeline.bins().collect();
        assert!(bins.len() <= MOST && bins.len() > MOST / 2, "{}", bins.len());
        assert_eq!(timeline.width_ns(), 1024 * 1_000_000_000);
        assert_eq!(bins.iter().map(|(_, bin)| bin.total).sum::<u64>(), 100_000);
        assert_eq!(bins.iter().map(|(_, bin)| bin.bad).sum::<u64>(), 10_000);
        assert_eq!(bins[70_000 / 1024].1.measure, Some(0.7));
        for at in [0, u64::MAX] {
            timeline.at(at).unwrap().total += 1;
        }
        assert_eq!(timeline.bins().map(|(_, bin)| bin.total).sum::<u64>(), 100_002);
    }
}
