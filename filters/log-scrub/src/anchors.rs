//! The one pass over all bytes: finds where a detector is worth its time.
//!
//! An anchor is three bytes in a row, each of a set. A byte is looked up by its two halves: a table for the low one and
//! one for the high one give the anchors, one bit each, whose set it may be in. So sixteen positions take six table
//! look-ups with `simd128`, for all anchors together. A set is then the product of low and high halves: where one of the
//! sixteen may be an anchor, they are looked up one by one in whole tables.

/// Three digits, or two with a space, dot or dash between, as phone numbers may be written.
pub(crate) const DIGITS: u8 = 1;
/// `@` before a letter or digit, of any script, or a bracket, that is not alone.
pub(crate) const AT: u8 = 1 << 1;
/// A colon or dot between hex digits or colons.
pub(crate) const ADDRESS: u8 = 1 << 2;
/// Two capital letters and a digit.
pub(crate) const COUNTRY: u8 = 1 << 3;
/// The beginnings of JWTs, AWS's and Google's keys, and of `BEGIN`.
pub(crate) const UPPER: u8 = 1 << 4;
/// The ends of prefixes such as `ghp_`.
pub(crate) const UNDERSCORE: u8 = 1 << 5;
/// The ends of prefixes such as `glpat-`, `ya29.` and `hooks.`.
pub(crate) const DASH: u8 = 1 << 6;
/// The beginnings of `Bearer` and `Basic`.
pub(crate) const SCHEME: u8 = 1 << 7;
/// How many anchors there are.
pub(crate) const COUNT: usize = 8;

use crate::blocks::{Bits, SEEN};

/// What a domain begins with: letters and digits, the first bytes of characters of other scripts, and a bracket.
const HOST: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz[\xc3\xc4\xc5\xc6\xc7\xc8\xc9\xca\xcb\xcc\xcd\xce\xcf\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xdb\xdc\xdd\xde\xdf\xe0\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xeb\xec\xed\xee\xef\xf0\xf1\xf2\xf3\xf4";

/// What follows that: more of the same, a dot or a dash, the rest of a character.
const OF_HOST: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.-\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x90\x91\x92\x93\x94\x95\x96\x97\x98\x99\x9a\x9b\x9c\x9d\x9e\x9f\xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf\xb0\xb1\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xbb\xbc\xbd\xbe\xbf\xc3\xc4\xc5\xc6\xc7\xc8\xc9\xca\xcb\xcc\xcd\xce\xcf\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8\xd9\xda\xdb\xdc\xdd\xde\xdf\xe0\xe1\xe2\xe3\xe4\xe5\xe6\xe7\xe8\xe9\xea\xeb\xec\xed\xee\xef\xf0\xf1\xf2\xf3\xf4";

/// In the order of the bits; an empty set is any byte.
const SETS: [[&[u8]; 3]; COUNT] = [
    [b"0123456789", b"0123456789 .-", b"0123456789"],
    [b"@", HOST, OF_HOST],
    [b"0123456789abcdefABCDEF:", b":.", b"0123456789abcdefABCDEF:"],
    [b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"0123456789"],
    [b"eAB", b"yKSBC3IE", b"JICTzGS"],
    [b"hpsrat", b"pousrmkt", b"_"],
    [b"xapdrkbcfmntwP2", b"bpartseioX9", b"-."],
    [b"bB", b"eEaA", b"aAsS"],
];

#[cfg(any(test, all(target_arch = "wasm32", target_feature = "simd128")))]
/// By place in the anchor: anchors by low half, and by high half.
type Halves = [([u8; 16], [u8; 16]); 3];

#[cfg(any(test, all(target_arch = "wasm32", target_feature = "simd128")))]
const HALVES: Halves = halves();
const WHOLE: [[u8; 256]; 3] = whole();

// The compiler runs these two: what could panic in them would not build.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]
#[cfg(any(test, all(target_arch = "wasm32", target_feature = "simd128")))]
const fn halves() -> Halves {
    let mut halves = [([0; 16], [0; 16]); 3];
    let mut place = 0;
    while place < 3 {
        let mut anchor = 0;
        while anchor < COUNT {
            let set = SETS[anchor][place];
            let mut index = 0;
            while index < set.len() {
                halves[place].0[(set[index] & 15) as usize] |= 1 << anchor;
                halves[place].1[(set[index] >> 4) as usize] |= 1 << anchor;
                index += 1;
            }
            index = 0;
            while set.is_empty() && index < 16 {
                halves[place].0[index] |= 1 << anchor;
                halves[place].1[index] |= 1 << anchor;
                index += 1;
            }
            anchor += 1;
        }
        place += 1;
    }
    halves
}

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]
const fn whole() -> [[u8; 256]; 3] {
    let mut whole = [[0; 256]; 3];
    let mut place = 0;
    while place < 3 {
        let mut anchor = 0;
        while anchor < COUNT {
            let set = SETS[anchor][place];
            let mut index = 0;
            while index < set.len() {
                whole[place][set[index] as usize] |= 1 << anchor;
                index += 1;
            }
            index = 0;
            while set.is_empty() && index < 256 {
                whole[place][index] |= 1 << anchor;
                index += 1;
            }
            anchor += 1;
        }
        place += 1;
    }
    whole
}

#[inline]
fn anchors_of(place: &[u8; 256], byte: u8) -> u8 {
    place.get(usize::from(byte)).copied().unwrap_or(0)
}

/// The anchors at three bytes in a row.
#[inline]
fn at(three: [u8; 3]) -> u8 {
    let [first, second, third] = &WHOLE;
    let [a, b, c] = three;
    anchors_of(first, a) & anchors_of(second, b) & anchors_of(third, c)
}

/// The first position in `from..limit` with one of the `wanted` anchors, and which. Past its end a text is zeros.
pub(crate) fn next(text: &[u8], from: usize, limit: usize, wanted: u8) -> Option<(usize, u8)> {
    Anchors::new(text).next(from, limit, wanted)
}

/// The anchors of a text one after the other: those of a step are found together.
pub(crate) struct Anchors<'t> {
    text: &'t [u8],
    /// For these the step was looked at.
    wanted: u8,
    /// Where the step begins.
    base: usize,
    /// Where an anchor may be in it, and was not told yet.
    hits: u32,
    /// What is before was looked at.
    done: usize,
}

impl<'t> Anchors<'t> {
    pub(crate) fn new(text: &'t [u8]) -> Self {
        Self { text, wanted: 0, base: 0, hits: 0, done: 0 }
    }

    /// See [`next`]; `from` never goes back.
    #[inline]
    pub(crate) fn next(&mut self, from: usize, limit: usize, wanted: u8) -> Option<(usize, u8)> {
        let limit = limit.min(self.text.len());
        // What was found for more serves for fewer too.
        if wanted & !self.wanted != 0 {
            (self.wanted, self.hits, self.done) = (wanted, 0, from);
        }
        loop {
            while self.hits != 0 {
                let bit = usize::try_from(self.hits.trailing_zeros()).unwrap_or(0);
                let position = self.base.wrapping_add(bit);
                if position >= limit {
                    return None;
                }
                self.hits &= self.hits.wrapping_sub(1);
                if position < from {
                    continue;
                }
                let rest = self.text.get(position..).unwrap_or(&[]);
                let three = match rest {
                    [a, b, c, ..] => [*a, *b, *c],
                    [a, b] => [*a, *b, 0],
                    [a] => [*a, 0, 0],
                    [] => [0; 3],
                };
                let found = at(three) & wanted;
                if found != 0 {
                    return Some((position, found));
                }
            }
            let start = self.done.max(from);
            if start >= limit {
                return None;
            }
            self.wanted = wanted;
            let most = limit.wrapping_sub(start);
            let (sure, hits) = quick(self.text.get(start..).unwrap_or(&[]), most, wanted);
            self.base = start.wrapping_add(sure);
            // Where no whole step is left, each position is looked at.
            self.hits = if hits == 0 && sure < most { (1 << STEP) - 1 } else { hits };
            self.done = self.base.wrapping_add(if self.hits == 0 { 0 } else { STEP });
        }
    }
}

/// How many positions are looked at together.
const STEP: usize = if cfg!(all(target_arch = "wasm32", target_feature = "simd128")) { 16 } else { 8 };

/// How many positions, of `most`, surely have no anchor, and where in the step behind them one may be.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
fn quick(text: &[u8], most: usize, wanted: u8) -> (usize, u32) {
    let mut done = 0_usize;
    let mut rest = text;
    while let Some((block, _)) = rest.split_first_chunk::<{ STEP.saturating_add(2) }>() {
        if done >= most {
            break;
        }
        let mut found = 0;
        for three in block.array_windows::<3>() {
            found |= at(*three);
        }
        if found & wanted != 0 {
            let hits =
                block.array_windows::<3>().rev().fold(0, |hits, three| hits << 1 | u32::from(at(*three) & wanted != 0));
            return (done, hits);
        }
        done = done.saturating_add(STEP);
        rest = rest.get(STEP..).unwrap_or(&[]);
    }
    (done.min(most), 0)
}

/// How many positions, of `most`, surely have no anchor, and where in the step behind them one may be.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
fn quick(text: &[u8], most: usize, wanted: u8) -> (usize, u32) {
    use core::arch::wasm32::{
        u8x16_bitmask, u8x16_gt, u8x16_shr, u8x16_splat, u8x16_swizzle, v128, v128_and, v128_any_true,
    };

    fn load(bytes: &[u8; 16]) -> v128 {
        // SAFETY: sixteen bytes are there, and a load need not be aligned.
        #[allow(unsafe_code)]
        unsafe {
            core::arch::wasm32::v128_load(bytes.as_ptr().cast())
        }
    }
    #[inline(always)]
    fn anchors(block: &[u8; 18], place: usize, low: v128, high: v128) -> v128 {
        let bytes = block.get(place..).and_then(|rest| rest.first_chunk()).map_or_else(|| u8x16_splat(0), load);
        let halves = v128_and(bytes, u8x16_splat(15));
        v128_and(u8x16_swizzle(low, halves), u8x16_swizzle(high, u8x16_shr(bytes, 4)))
    }

    let [(l0, h0), (l1, h1), (l2, h2)] = &HALVES;
    let wanted = u8x16_splat(wanted);
    let (l0, l1, l2) = (v128_and(load(l0), wanted), load(l1), load(l2));
    let (h0, h1, h2) = (load(h0), load(h1), load(h2));
    let mut done = 0_usize;
    let mut rest = text;
    while let Some((block, _)) = rest.split_first_chunk::<{ STEP.saturating_add(2) }>() {
        if done >= most {
            break;
        }
        let found = v128_and(v128_and(anchors(block, 0, l0, h0), anchors(block, 1, l1, h1)), anchors(block, 2, l2, h2));
        if v128_any_true(found) {
            return (done, u32::from(u8x16_bitmask(u8x16_gt(found, u8x16_splat(0)))));
        }
        done = done.saturating_add(STEP);
        rest = rest.get(STEP..).unwrap_or(&[]);
    }
    (done.min(most), 0)
}

/// Where a value has to be looked at, by its bytes: none of ASCII, one that JSON escapes, or of values in values.
#[cfg(any(test, not(all(target_arch = "wasm32", target_feature = "simd128"))))]
const IN_VALUES: u8 = 1;
/// Where a name has to.
#[cfg(any(test, not(all(target_arch = "wasm32", target_feature = "simd128"))))]
const IN_NAMES: u8 = 2;
#[cfg(any(test, not(all(target_arch = "wasm32", target_feature = "simd128"))))]
const QUOTE: u8 = 4;

/// What a byte is.
#[cfg(any(test, not(all(target_arch = "wasm32", target_feature = "simd128"))))]
const KINDS: [u8; 256] = kinds();

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]
#[cfg(any(test, not(all(target_arch = "wasm32", target_feature = "simd128"))))]
const fn kinds() -> [u8; 256] {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        kinds[byte] = match byte as u8 {
            b'"' => QUOTE,
            0..b' ' | b'\\' | 128.. | b'[' | b']' | b'{' | b'}' => IN_VALUES | IN_NAMES,
            b'=' | b':' | b'<' | b'/' | b'%' => IN_VALUES,
            b' ' | b'.' => IN_NAMES,
            _ => 0,
        };
        byte += 1;
    }
    kinds
}

/// The bits of a block. Anchors count for both, values and names.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
pub(crate) fn bits(seen: &[u8; SEEN], wanted: u8) -> Bits {
    one_by_one(seen, wanted)
}

#[cfg(any(test, not(all(target_arch = "wasm32", target_feature = "simd128"))))]
fn one_by_one(seen: &[u8; SEEN], wanted: u8) -> Bits {
    let mut bits = Bits::default();
    for (place, three) in seen.array_windows::<3>().enumerate() {
        let [byte, ..] = *three;
        let kind = anchors_of(&KINDS, byte);
        let anchor = u8::from(at(*three) & wanted != 0);
        let bit = |set: u8| u64::from(set != 0) << (place & 63);
        bits.quotes |= bit(kind & QUOTE);
        bits.values |= bit(kind & IN_VALUES | anchor);
        bits.names |= bit(kind & IN_NAMES | anchor);
    }
    bits
}

/// The bits of a block. Anchors count for both, values and names.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(crate) fn bits(seen: &[u8; SEEN], wanted: u8) -> Bits {
    use core::arch::wasm32::{
        i8x16_eq, i8x16_lt, i8x16_splat, u8x16_add_sat, u8x16_bitmask, u8x16_shr, u8x16_shuffle, u8x16_splat,
        u8x16_swizzle, v128, v128_and, v128_or,
    };

    /// By low and high half: brackets, `=`, `:` and `<`, `/` and `%`, space, `.`.
    const LOW: [u8; 16] = [8, 0, 0, 0, 0, 4, 0, 0, 0, 0, 2, 1, 2, 3, 16, 4];
    const HIGH: [u8; 16] = [0, 0, 28, 2, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

    fn load(bytes: &[u8; 16]) -> v128 {
        // SAFETY: sixteen bytes are there, and a load need not be aligned.
        #[allow(unsafe_code)]
        unsafe {
            core::arch::wasm32::v128_load(bytes.as_ptr().cast())
        }
    }

    let [(l0, h0), (l1, h1), (l2, h2)] = &HALVES;
    let wanted = u8x16_splat(wanted);
    let (l0, l1, l2) = (v128_and(load(l0), wanted), load(l1), load(l2));
    let (h0, h1, h2) = (load(h0), load(h1), load(h2));
    let (low, high) = (load(&LOW), load(&HIGH));
    let halves = |bytes: v128| (v128_and(bytes, u8x16_splat(15)), u8x16_shr(bytes, 4));
    let places = |(low, high): (v128, v128)| {
        (
            v128_and(u8x16_swizzle(l1, low), u8x16_swizzle(h1, high)),
            v128_and(u8x16_swizzle(l2, low), u8x16_swizzle(h2, high)),
        )
    };
    // The last two bytes, which only the ends of anchors may be.
    let [t0, t1] = seen.last_chunk().copied().unwrap_or_default();
    let mut after = places(halves(load(&[t0, t1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])));
    let mut bits = Bits::default();
    let (chunks, _) = seen.as_chunks::<16>();
    for chunk in chunks.iter().take(4).rev() {
        let bytes = load(chunk);
        let halves = halves(bytes);
        let first = v128_and(u8x16_swizzle(l0, halves.0), u8x16_swizzle(h0, halves.1));
        let here = places(halves);
        let second = u8x16_shuffle::<1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16>(here.0, after.0);
        let third = u8x16_shuffle::<2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17>(here.1, after.1);
        after = here;
        let anchors = v128_and(v128_and(first, second), third);
        let class = v128_and(u8x16_swizzle(low, halves.0), u8x16_swizzle(high, halves.1));
        // Signed: what is not ASCII is less than zero.
        let odd = v128_or(i8x16_lt(bytes, i8x16_splat(32)), i8x16_eq(bytes, i8x16_splat(92)));
        let both = v128_or(anchors, odd);
        // The highest bit where any is set.
        let any = |of: i8| {
            let set = v128_or(both, v128_and(class, i8x16_splat(of)));
            u8x16_bitmask(u8x16_add_sat(set, u8x16_splat(127)))
        };
        let quotes = u8x16_bitmask(i8x16_eq(bytes, i8x16_splat(34)));
        bits.quotes = bits.quotes << 16 | u64::from(quotes);
        bits.values = bits.values << 16 | u64::from(any(7));
        bits.names = bits.names << 16 | u64::from(any(25));
    }
    bits
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use kit::prelude::*;
    use proptest::prelude::*;

    #[test]
    fn every_set_is_let_through() {
        for (bit, [first, second, third]) in SETS.iter().enumerate() {
            let any: &[u8] = b"\0~\xff";
            let or_any = |set: &'static [u8]| if set.is_empty() { any } else { set };
            for a in or_any(first) {
                for b in or_any(second) {
                    for c in or_any(third) {
                        assert_ne!(at([*a, *b, *c]) & (1 << bit), 0);
                        let half = |place: usize, byte: u8| {
                            HALVES[place].0[usize::from(byte & 15)] & HALVES[place].1[usize::from(byte >> 4)]
                        };
                        assert_ne!(half(0, *a) & half(1, *b) & half(2, *c) & (1 << bit), 0);
                    }
                }
            }
        }
    }

    #[test]
    fn plain_words_and_short_numbers_have_none() {
        for text in ["{\"name\":\"Widget\",\"price\":12,\"inStock\":true}", "the quick fox jumps over 42 lazy dogs. ok"]
        {
            assert_eq!(next(text.as_bytes(), 0, text.len(), 0xff), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn quick_is_as_one_by_one(text in proptest::collection::vec(prop_oneof![Just(b'1'), Just(b':'), Just(b'@'), any::<u8>()], 0..200), wanted: u8) {
            let mut expected = Vec::new();
            for position in 0..text.len() {
                let byte = |ahead: usize| text.get(position + ahead).copied().unwrap_or(0);
                let found = at([byte(0), byte(1), byte(2)]) & wanted;
                if found != 0 { expected.push((position, found)); }
            }
            let (mut found, mut from) = (Vec::new(), 0);
            while let Some(hit) = next(&text, from, text.len(), wanted) {
                found.push(hit);
                from = hit.0 + 1;
            }
            prop_assert_eq!(&found, &expected);

            // Fewer and more in turn.
            let in_turn = |position: usize| if (position / 3).is_multiple_of(2) { wanted & 0xfa } else { wanted };
            let (mut found, mut from, mut anchors) = (Vec::new(), 0, Anchors::new(&text));
            while from < text.len() {
                let limit = from / 3 * 3 + 3;
                match anchors.next(from, limit, in_turn(from)) {
                    Some(hit) => {
                        found.push(hit);
                        from = hit.0 + 1;
                    }
                    None => from = limit,
                }
            }
            let fewer = expected.iter().map(|hit| (hit.0, hit.1 & in_turn(hit.0)));
            prop_assert_eq!(found, fewer.filter(|hit| hit.1 != 0).collect::<Vec<_>>());
        }
    }
}
