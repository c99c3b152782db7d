//! Where the quotes of a text are, and where it has anything that is not plain: bits, for 64 bytes at a time.
//!
//! They are made once for every byte, and only as far as somebody asks.

use crate::anchors;

/// How many bytes one mask is for.
pub(crate) const BLOCK: usize = 64;

/// What a block is looked at with: anchors begin in it and end behind it.
pub(crate) const SEEN: usize = BLOCK + 2;

/// Blocks that are known together.
const COUNT: usize = 64;

/// Blocks that are made together.
const STEP: usize = 8;

/// The bits of one block.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bits {
    /// `"`.
    pub(crate) quotes: u64,
    /// Where a string or number has to be looked at: an anchor begins there, the byte is one that JSON escapes, not
    /// ASCII, or of what values in values are made of: `=/[]{}`.
    pub(crate) values: u64,
    /// Where a name has to be: as above, but for what joins names: ` .[]{}`.
    pub(crate) names: u64,
}

/// The bits of a text, made as they are needed. Positions are those of the text.
pub(crate) struct Blocks<'t> {
    text: &'t [u8],
    wanted: u8,
    /// Where the first block begins.
    base: usize,
    made: usize,
    bits: [Bits; COUNT],
}

impl<'t> Blocks<'t> {
    /// None are made; `wanted` are the anchors to look for.
    pub(crate) fn new(text: &'t [u8], wanted: u8) -> Self {
        Self { text, wanted, base: 0, made: 0, bits: [Bits::default(); COUNT] }
    }

    /// Forgets what is before a position, if much is, and says so. Up to [`Blocks::end`] may then be asked for.
    pub(crate) fn begin(&mut self, at: usize) -> bool {
        let much = at.wrapping_sub(self.base) / BLOCK >= COUNT / 2;
        if much {
            self.base = at;
            self.made = 0;
        }
        much
    }

    /// How far is looked.
    pub(crate) fn end(&self) -> usize {
        self.base.saturating_add(COUNT.saturating_mul(BLOCK)).min(self.text.len())
    }

    /// The first quote from a position on, before the end; and whether any bit for values is set up to there, and any
    /// for names.
    #[inline]
    pub(crate) fn string(&mut self, from: usize) -> Option<(usize, bool, bool)> {
        let offset = from.wrapping_sub(self.base);
        let mut index = offset / BLOCK;
        let mut mask = u64::MAX << (offset % BLOCK);
        let (mut values, mut names) = (0, 0);
        loop {
            if index >= self.made && !self.make(index) {
                return None;
            }
            let bits = self.bits.get(index)?;
            let quotes = bits.quotes & mask;
            // All where there is none.
            let before = (quotes & quotes.wrapping_neg()).wrapping_sub(1) & mask;
            values |= bits.values & before;
            names |= bits.names & before;
            if quotes != 0 {
                let bit = usize::try_from(quotes.trailing_zeros()).unwrap_or(0);
                let at = self.base.wrapping_add(index.wrapping_mul(BLOCK)).wrapping_add(bit);
                return Some((at, values != 0, names != 0));
            }
            mask = u64::MAX;
            index = index.wrapping_add(1);
        }
    }

    /// Whether any bit for values is set in `start..end`, which is not empty and ends before the end.
    #[inline]
    pub(crate) fn values(&mut self, start: usize, end: usize) -> bool {
        let (start, last) = (start.wrapping_sub(self.base), end.wrapping_sub(self.base).wrapping_sub(1));
        let last_block = last / BLOCK;
        if last_block >= self.made && !self.make(last_block) {
            return true;
        }
        let get = |index: usize| self.bits.get(index).map_or(u64::MAX, |bits| bits.values);
        let mut from = u64::MAX << (start % BLOCK);
        let mut index = start / BLOCK;
        while index < last_block {
            if get(index) & from != 0 {
                return true;
            }
            from = u64::MAX;
            index = index.wrapping_add(1);
        }
        get(index) & from & (u64::MAX >> (63 ^ (last % BLOCK))) != 0
    }

    #[inline(never)]
    fn make(&mut self, index: usize) -> bool {
        let begin = self.base.saturating_add(self.made.saturating_mul(BLOCK));
        if index >= COUNT || begin >= self.text.len() {
            return false;
        }
        let most = index.saturating_add(STEP).min(COUNT);
        let mut rest = self.text.get(begin..).unwrap_or(&[]);
        let bits = self.bits.get_mut(self.made..most).unwrap_or(&mut []);
        for bits in bits {
            if let Some(seen) = rest.first_chunk() {
                *bits = anchors::bits(seen, self.wanted);
            } else {
                let mut seen = [0; SEEN];
                seen.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
                *bits = anchors::bits(&seen, self.wanted);
            }
            rest = rest.get(BLOCK..).unwrap_or(&[]);
            self.made = self.made.saturating_add(1);
            if rest.is_empty() {
                break;
            }
        }
        index < self.made
    }
}
