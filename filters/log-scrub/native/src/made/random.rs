//! Random choices that a seed repeats.

use kit::Rng;

/// A source of choices.
pub struct Random(Rng);

/// Signs that tokens are made of.
pub const ALPHANUMERIC: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
pub(crate) const BASE64URL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
pub(crate) const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
pub(crate) const DIGITS: &[u8] = b"0123456789";
pub(crate) const LOWER: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
pub(crate) const UPPER: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
pub(crate) const HEX: &[u8] = b"0123456789abcdef";

impl Random {
    /// The choices of a seed; `part` tells apart what shall not depend on each other.
    pub fn new(seed: u64, part: u64) -> Self {
        // Seeds that are alike would begin alike: they are mixed as SplitMix64 does it.
        let mut state = seed ^ part.rotate_left(32);
        let mut bytes = [0; 32];
        for eight in bytes.chunks_mut(8) {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = state;
            mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            eight.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes());
        }
        Self(Rng::new(bytes))
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.0.next_u64() % limit.max(1) as u64) as usize
    }

    /// A number from one to another, both included.
    pub fn within(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    /// Whether something happens that does so in so many of a hundred cases.
    pub fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// So many signs of a set.
    pub fn signs(&mut self, set: &[u8], count: usize) -> String {
        (0..count).map(|_| char::from(*self.pick(set))).collect()
    }

    /// Digits, of which the first is not 0.
    pub(crate) fn number(&mut self, count: usize) -> String {
        self.signs(b"123456789", 1) + &self.signs(DIGITS, count - 1)
    }

    /// A seed for something else.
    pub fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_seed_do_not_begin_alike() {
        for choices in [2, 3, 6] {
            let first: std::collections::BTreeSet<_> =
                (0..100).map(|part| Random::new(1, part).below(choices)).collect();
            assert_eq!(first.len(), choices);
        }
    }
}
