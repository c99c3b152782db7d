//! Hex, eight digits at a time: ids are read and written several times per request, and one by one that was the largest
//! part of the filter's own code, in time and in size.
//!
//! A digit's value is in its low four bits, plus 9 for a letter; eight of them lie in one u64, so one shift or addition
//! works on all. A number is valid hex if it is written again as it was.

use crate::context::Invalid;

/// One in every byte.
const ONES: u64 = 0x0101_0101_0101_0101;

/// The eight lower-case digits of a number.
fn digits(number: u32) -> u64 {
    let mut x = u64::from(number);
    x = (x & 0xffff_0000) << 16 | x & 0xffff;
    x = (x & 0x0000_ff00_0000_ff00) << 8 | x & 0x0000_00ff_0000_00ff;
    x = (x & 0x00f0_00f0_00f0_00f0) << 4 | x & 0x000f_000f_000f_000f;
    let letters = (x.wrapping_add(ONES.wrapping_mul(6)) >> 4) & ONES;
    x.wrapping_add(ONES.wrapping_mul(0x30)).wrapping_add(letters.wrapping_mul(0x27))
}

/// The number of eight lower-case digits.
fn number(text: u64) -> Option<u32> {
    let letters = (text >> 6) & ONES;
    let mut x = (text & ONES.wrapping_mul(0x0f)).wrapping_add(letters.wrapping_mul(9)) & ONES.wrapping_mul(0x0f);
    x = (x | x >> 4) & 0x00ff_00ff_00ff_00ff;
    x = (x | x >> 8) & 0x0000_ffff_0000_ffff;
    x = (x | x >> 16) & 0xffff_ffff;
    let number = u32::try_from(x).ok()?;
    (digits(number) == text).then_some(number)
}

/// Writes bytes, four by four, as lower-case digits.
pub(crate) fn encode(bytes: &[u8], out: &mut [u8]) {
    for (text, four) in out.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *text = digits(u32::from_be_bytes(*four)).to_be_bytes();
    }
}

/// Reads exactly `2 * N` lower-case digits; N is 16 at most.
pub(crate) fn decode_lower<const N: usize>(text: &[u8]) -> Result<[u8; N], Invalid> {
    if text.len() != N.saturating_mul(2) {
        return Err(Invalid::Length);
    }
    decode_padded(text, 0)
}

/// Reads 1 to `2 * N` digits of either case into the low end of `N` bytes; N is 16 at most.
pub(crate) fn decode<const N: usize>(text: &[u8]) -> Result<[u8; N], Invalid> {
    if text.is_empty() || text.len() > N.saturating_mul(2) {
        return Err(Invalid::Length);
    }
    // Bit 5 makes a capital letter small; it may be set only where bit 6 says that there is a letter.
    decode_padded(text, 0x40)
}

fn decode_padded<const N: usize>(text: &[u8], fold: u64) -> Result<[u8; N], Invalid> {
    decode_any(text, fold).and_then(|bytes| bytes.last_chunk().copied().ok_or(Invalid::Length))
}

/// One for all lengths: it is fast enough, and there once.
fn decode_any(text: &[u8], fold: u64) -> Result<[u8; 16], Invalid> {
    let mut bytes = [0; 16];
    let mut rest = text;
    for four in bytes.as_chunks_mut::<4>().0.iter_mut().rev() {
        let digits = match rest.split_last_chunk::<8>() {
            Some((before, digits)) => {
                rest = before;
                *digits
            }
            None if rest.is_empty() => break,
            None => {
                let mut digits = [b'0'; 8];
                digits.iter_mut().rev().zip(rest.iter().rev()).for_each(|(to, from)| *to = *from);
                rest = &[];
                digits
            }
        };
        let digits = u64::from_be_bytes(digits);
        let digits = digits | (digits & ONES.wrapping_mul(fold)) >> 1;
        *four = number(digits).ok_or(Invalid::Syntax)?.to_be_bytes();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kit::prelude::*;
    use proptest::prelude::*;

    #[test]
    fn every_byte_in_every_place() {
        for place in 0..8 {
            for byte in 0..=255_u8 {
                let mut text = *b"12ab34cd";
                text[place] = byte;
                let (lower, either): (Result<[u8; 4], _>, Result<[u8; 4], _>) = (decode_lower(&text), decode(&text));
                assert_eq!(lower.is_ok(), byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte), "{byte:#x}");
                assert_eq!(either.is_ok(), byte.is_ascii_hexdigit(), "{byte:#x}");
            }
        }
    }

    #[test]
    fn short_numbers_are_padded_on_the_left() {
        assert_eq!(decode::<3>(b"aBc"), Ok([0, 0x0a, 0xbc]));
        assert_eq!(decode::<3>(b"fffffff"), Err(Invalid::Length));
        assert_eq!(decode::<3>(b""), Err(Invalid::Length));
        assert_eq!(decode::<3>(b"0g"), Err(Invalid::Syntax));
        assert_eq!(decode_lower::<1>(b"f"), Err(Invalid::Length));
        assert_eq!(decode_lower::<1>(b"fF"), Err(Invalid::Syntax));
    }

    proptest! {
        #[test]
        fn as_the_standard_library_has_it(bytes in any::<[u8; 16]>()) {
            let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            let mut out = [0; 32];
            encode(&bytes, &mut out);
            prop_assert_eq!(&out[..], text.as_bytes());
            prop_assert_eq!(decode_lower(text.as_bytes()), Ok(bytes));
            prop_assert_eq!(decode(text.to_ascii_uppercase().as_bytes()), Ok(bytes));
        }

        #[test]
        fn any_bytes(text in proptest::collection::vec(any::<u8>(), 0..40)) {
            let valid = !text.is_empty() && text.len() <= 32 && text.iter().all(u8::is_ascii_hexdigit);
            prop_assert_eq!(decode::<16>(&text).is_ok(), valid);
        }
    }
}
