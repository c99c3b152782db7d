//! International bank account numbers: ISO 13616, with each country's length as in SWIFT's public registry, and the
//! check digits of ISO/IEC 7064, MOD 97-10.

use super::{Found, Look};
use crate::view::{View, is_word};

/// Countries by the length of their numbers.
const LENGTHS: [(usize, &[u8]); 18] = [
    (15, b"NO"),
    (16, b"BE"),
    (18, b"DKFIFKFONLSDGL"),
    (19, b"MKSI"),
    (20, b"ATBAEEKZLTLUMNXK"),
    (21, b"CHHRLILV"),
    (22, b"BGBHCRDEGBGEIEMERSVA"),
    (23, b"AEGIILIQOMSOTL"),
    (24, b"ADCZESMDPKROSASESKTNVG"),
    (25, b"LYPTST"),
    (26, b"ISTR"),
    (27, b"BIDJFRGRITMCMRSM"),
    (28, b"ALAZBYCYDOGTHNHULBNIPLSV"),
    (29, b"BREGPSQAUA"),
    (30, b"JOKWMUYE"),
    (31, b"MTSC"),
    (32, b"LC"),
    (33, b"RU"),
];

pub(super) fn find(view: &View<'_>) -> Look {
    number(view).into()
}

fn number(view: &View<'_>) -> Option<Found> {
    let start = view.anchor();
    let country = view.slice(start, start.saturating_add(2)).first_chunk::<2>()?;
    if view.word_before(start) || !view.at(start.saturating_add(3)).is_ascii_digit() {
        return None;
    }
    let length =
        LENGTHS.iter().find(|(_, countries)| countries.as_chunks::<2>().0.iter().any(|known| known == country))?.0;
    // The first four are moved to the end; a letter is a number of two digits.
    let (mut end, mut count) = (start, 0_usize);
    let (mut head, mut rest) = (Mod97::default(), Mod97::default());
    let (mut row, mut longest, mut dashes) = (0_usize, 0_usize, false);
    while count < length {
        let byte = view.at(end);
        if matches!(byte, b' ' | b'-') && count > 0 && view.before(end).is_ascii_alphanumeric() {
            dashes |= byte == b'-';
            row = 0;
            end = end.saturating_add(1);
            continue;
        }
        // Between dashes there are four, and in ids as UUIDs are, more.
        row = row.saturating_add(1);
        longest = row.max(longest);
        let part = if count < 4 { &mut head } else { &mut rest };
        part.push(byte)?;
        count = count.saturating_add(1);
        end = end.saturating_add(1);
    }
    let grouped = !dashes || longest <= 6;
    (grouped && !is_word(view.at(end)) && rest.then(&head) == 1).then(|| Found::new(start, end))
}

/// A number of any length, modulo 97, and the power of ten that it shifts what stands before it by.
struct Mod97 {
    value: u32,
    shift: u32,
}

impl Default for Mod97 {
    fn default() -> Self {
        Self { value: 0, shift: 1 }
    }
}

impl Mod97 {
    fn push(&mut self, byte: u8) -> Option<()> {
        let (value, ten) = match byte {
            b'0'..=b'9' => (byte.wrapping_sub(b'0'), 10),
            b'A'..=b'Z' => (byte.wrapping_sub(b'A').wrapping_add(10), 100),
            _ => return None,
        };
        self.value = self.value.wrapping_mul(ten).wrapping_add(u32::from(value)) % 97;
        self.shift = self.shift.wrapping_mul(ten) % 97;
        Some(())
    }

    fn then(&self, next: &Self) -> u32 {
        self.value.wrapping_mul(next.shift).wrapping_add(next.value) % 97
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};

    #[test]
    fn numbers() {
        // The registry's own examples.
        found(
            "iban",
            &[
                ("GB29NWBK60161331926819", "[iban]"),
                ("GB29 NWBK 6016 1331 9268 19", "[iban]"),
                ("\"DE89370400440532013000\"", "\"[iban]\""),
                ("DE89 3704 0044 0532 0130 00, NL91ABNA0417164300.", "[iban], [iban]."),
                ("FR1420041010050500013M02606", "[iban]"),
                ("MT84MALT011000012345MTLCAST001S", "[iban]"),
                ("NO9386011117947", "[iban]"),
                ("KW81CBKU0000000000001234560101", "[iban]"),
                ("LC55HEMM000100010012001200023015", "[iban]"),
                ("CH9300762011623852957 x", "[iban] x"),
                ("QA58DOHB00001234567890ABCDEFG", "[iban]"),
                ("EG380019000500000000263180002", "[iban]"),
                ("DE89-3704-0044-0532-0130-00", "[iban]"),
            ],
        );
    }

    #[test]
    fn no_numbers() {
        untouched(
            "iban",
            &[
                "GB28NWBK60161331926819",
                "DE8937040044053201300",
                "DE893704004405320130000",
                "XX89370400440532013000",
                "xDE89370400440532013000",
                "DE89370400440532013000x",
                "DE89  3704 0044 0532 0130 00",
                "DE89 -3704 0044 0532 0130 00",
                "EE674A6A-2195-9E8B-A626-042B137803A1",
                "ORDER DE89",
                "ISO8601",
            ],
        );
    }
}
