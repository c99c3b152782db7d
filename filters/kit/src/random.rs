//! Random numbers without a hostcall per request.

use rand_core::{Rng as _, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The VM's generator, seeded once from the host.
///
/// xoshiro256++: 256 bits of state, so that the streams of thousands of proxies do not meet. It is fast and well
/// spread, and it is *not* for secrets.
pub struct Rng(Xoshiro256PlusPlus);

impl Rng {
    /// A generator that gives the same numbers for the same seed.
    pub fn new(seed: [u8; 32]) -> Self {
        Self(Xoshiro256PlusPlus::from_seed(seed))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// True in this share of all cases.
    pub fn share(&mut self, share: crate::config::Ratio) -> bool {
        // 53 bits, which an f64 holds exactly.
        #[allow(clippy::as_conversions, clippy::cast_precision_loss)]
        let drawn = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        drawn < share.get()
    }

    /// As many random bytes as asked for.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        self.0.fill_bytes(&mut out);
        out
    }
}
