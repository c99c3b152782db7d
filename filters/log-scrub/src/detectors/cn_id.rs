//! Chinese resident identity numbers: GB 11643-1999. Eighteen: a region (GB/T 2260), a date of birth, a sequence and the
//! check digit of ISO/IEC 7064, MOD 11-2, which may be `X`. Fifteen, until 1999: without century and check digit, so
//! only where a word says what it is.

use super::Found;
use crate::context::{self, Words};
use crate::digits::{Cluster, Group, stands_alone};
use crate::view::View;

const WORDS: Words =
    Words::of(&[b"id_card", b"id_number", b"id_no", b"identity", b"resident", "身份证".as_bytes(), "证件".as_bytes()]);

pub(super) fn find(view: &View<'_>, _: &Cluster, group: Group) -> Option<Found> {
    let end = match (group.len(), view.at(group.end)) {
        (17, b'X' | b'x') => group.end.saturating_add(1),
        (15 | 18, _) => group.end,
        _ => return None,
    };
    let text = view.slice(group.start, end);
    let valid = if let Some(text) = text.first_chunk::<18>() {
        valid(text) && !context::labels_other(view, group.start)
    } else {
        let (region, rest) = text.split_at_checked(6)?;
        let (date, _) = rest.split_at_checked(6)?;
        is_region(region) && is_date(number(date).saturating_add(19_000_000)) && context::has(view, group.start, &WORDS)
    };
    (valid && stands_alone(view, group.start, end)).then(|| Found::new(group.start, end))
}

fn valid(text: &[u8; 18]) -> bool {
    let Some((region, rest)) = text.split_first_chunk::<6>() else { return false };
    let Some((date, _)) = rest.split_first_chunk::<8>() else { return false };
    // Doubling from the left weighs the digits as the standard does, from the right.
    let sum = text.iter().fold(0_u32, |sum, digit| {
        let digit = if digit.is_ascii_digit() { u32::from(digit.wrapping_sub(b'0')) } else { 10 };
        sum.wrapping_mul(2).wrapping_add(digit) % 11
    });
    sum == 1 && is_region(region) && is_date(number(date))
}

fn number(digits: &[u8]) -> u32 {
    digits.iter().fold(0, |sum, digit| sum.wrapping_mul(10).wrapping_add(u32::from(digit.wrapping_sub(b'0'))))
}

/// A province, and in it a prefecture and a county as they are numbered.
fn is_region(digits: &[u8]) -> bool {
    let number = number(digits);
    let (province, prefecture, county) = (number / 10_000, number / 100 % 100, number % 100);
    matches!(province, 11..=15 | 21..=23 | 31..=37 | 41..=46 | 50..=54 | 61..=65 | 71 | 81..=83)
        && matches!(prefecture, 0..=70 | 90)
        && county < 90
}

/// A date of somebody who may be alive: `yyyymmdd`.
fn is_date(date: u32) -> bool {
    let (year, month, day) = (date / 10_000, date / 100 % 100, date % 100);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => 0,
    };
    (1900..=2035).contains(&year) && (1..=days).contains(&day)
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};

    #[test]
    fn numbers() {
        // The standard's own example, and numbers made by its rule.
        found(
            "cn_id",
            &[
                ("11010519491231002X", "[cn_id]"),
                ("11010519491231002x,", "[cn_id],"),
                ("身份证11010519491231002X。", "身份证[cn_id]。"),
                ("\"440524188001010014\" 440524198001010013", "\"440524188001010014\" [cn_id]"),
                ("身份证 110105491231002", "身份证 [cn_id]"),
                ("id_card=110105491231002&", "id_card=[cn_id]&"),
                ("id-card: 110105491231002", "id-card: [cn_id]"),
                ("id card 110105491231002, userIdCard=110105491231002", "id card [cn_id], userIdCard=[cn_id]"),
                ("id.card=110105491231002&ID-NO=110105491231002", "id.card=[cn_id]&ID-NO=[cn_id]"),
                ("id-number: 110105491231002; idNumbers 110105491231002", "id-number: [cn_id]; idNumbers [cn_id]"),
            ],
        );
    }

    #[test]
    fn no_numbers() {
        untouched(
            "cn_id",
            &[
                "110105194912310021",
                "11010519491331002X",
                "990105194912310029",
                "110105491231002",
                "身份证 110105491331002",
                "a11010519491231002X",
                "11010519491231002XY",
                "1011010519491231002X",
                "order_id=11010519491231002X",
                "id note 110105491231002",
                "valid card 110105491231002",
                "id--card 110105491231002",
            ],
        );
    }
}
