//! Telephone numbers: ITU-T E.164 after a `+`, eight to fifteen digits of which the first are an assigned country code;
//! without it, seven to twelve digits where a word says that it is a phone.

use super::{Found, card};
use crate::context;
use crate::digits::{Cluster, Group, stands_alone};
use crate::view::View;
use core::ops::RangeInclusive;

const WORDS: [&[u8]; 16] = [
    b"phone",
    b"mobile",
    b"tel",
    b"telephone",
    b"telefon",
    b"telefono",
    b"cell",
    b"cellphone",
    b"fax",
    b"call",
    b"sms",
    b"msisdn",
    b"whatsapp",
    "电话".as_bytes(),
    "手机".as_bytes(),
    "電話".as_bytes(),
];

/// How far before three digits a number may begin: `+1 (`, `0049 (0) 6 `.
const LEAD: usize = 12;

/// With a country's code.
const WORLD: RangeInclusive<usize> = 8..=15;

/// Without.
const NATION: RangeInclusive<usize> = 7..=12;

pub(super) fn find(view: &View<'_>, cluster: &Cluster, from: Group) -> Option<Found> {
    let earliest = view.first().max(from.start.saturating_sub(LEAD));
    // Where only digits and spaces stand so far before, there is no `+`.
    let far = cluster.depth(from) > LEAD;
    let signs = |position: &usize| is_in_number(view.at(*position));
    let signs = if far { LEAD } else { (earliest..from.start).rev().take_while(signs).count() };
    let lead = from.start.saturating_sub(signs);
    let plus = lead.checked_sub(1).filter(|plus| view.at(*plus) == b'+' && *plus >= view.first());
    if let Some(plus) = plus
        && !view.word_before(plus)
    {
        return is_assigned(view, lead)
            .then(|| read(view, lead, &WORLD, Some(cluster)))
            .flatten()
            .and_then(|end| found(view, plus, end));
    }
    if from.len() > 12 || view.word_before(from.start) || (from.len() == 4 && is_date(view, cluster, from)) {
        return None;
    }
    // What costs more is asked for later.
    if cluster.is_bare() || context::is_bare(view, from.start) {
        return None;
    }
    read(view, from.start, &NATION, None)?;
    if !context::has(view, from.start, &WORDS) || context::labels_other(view, from.start) {
        return None;
    }
    let bracket = view.before(from.start) == b'(' && from.start > view.first();
    let start = if bracket { from.start.saturating_sub(1) } else { from.start };
    found(view, start, read(view, from.start, &NATION, Some(cluster))?)
}

fn found(view: &View<'_>, start: usize, end: usize) -> Option<Found> {
    stands_alone(view, start, end).then(|| Found::new(start, end))
}

/// The end of the longest number of so many digits that begins here, and that has no card of the cluster in it.
fn read(view: &View<'_>, start: usize, digits: &RangeInclusive<usize>, cards: Option<&Cluster>) -> Option<usize> {
    let (mut at, mut count, mut end, mut signs) = (start, 0_usize, None, 0_u8);
    loop {
        let byte = view.at(at);
        if byte.is_ascii_digit() {
            let begins = !view.before(at).is_ascii_digit();
            let group = cards
                .filter(|_| begins && count > 0)
                .and_then(|cluster| cluster.groups().iter().find(|group| group.start == at));
            let card = group.zip(cards).is_some_and(|(group, cluster)| card::find(view, cluster, *group).is_some());
            if count >= *digits.end() || card {
                break;
            }
            count = count.saturating_add(1);
            signs = 0;
            if digits.contains(&count) && !view.at(at.saturating_add(1)).is_ascii_digit() {
                end = Some(at.saturating_add(1));
            }
        } else if is_in_number(byte) && signs < 2 {
            signs = signs.saturating_add(1);
        } else {
            break;
        }
        at = at.saturating_add(1);
    }
    end
}

fn is_in_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b' ' | b'-' | b'.' | b'(' | b')' | b'/')
}

/// `2024-01-02`: a day, whatever a word before it says.
fn is_date(view: &View<'_>, cluster: &Cluster, from: Group) -> bool {
    let mut lengths = cluster.joined(view, from).map(Group::len);
    (lengths.next(), lengths.next(), lengths.next()) == (Some(4), Some(2), Some(2))
}

/// Whether a country or a service has the code that these digits begin with.
fn is_assigned(view: &View<'_>, start: usize) -> bool {
    let digits =
        view.slice(start, start.saturating_add(2 * LEAD).min(view.end())).iter().filter(|byte| byte.is_ascii_digit());
    let mut digits = digits.map(|digit| digit.wrapping_sub(b'0'));
    let (Some(a), Some(b), Some(c)) = (digits.next(), digits.next(), digits.next()) else { return false };
    match (a, b) {
        (1 | 7, _) => true,
        (2, 0 | 7) | (3, 0..=4 | 6 | 9) | (4, 0 | 1 | 3..=9) | (5, 1..=8) | (6, 0..=6) => true,
        (8, 1 | 2 | 4 | 6) | (9, 0..=5 | 8) => true,
        (2, 1) => matches!(c, 1..=3 | 6 | 8),
        (2, 2..=6) | (3, 5 | 7) | (5, 0 | 9) | (6, 8) => true,
        (2, 9) => matches!(c, 0 | 1 | 7..=9),
        (3, 8) => matches!(c, 0..=3 | 5..=7 | 9),
        (4, 2) => matches!(c, 0 | 1 | 3),
        (6, 7) => c != 1,
        (6, 9) => c <= 2,
        (8, 0) => matches!(c, 0 | 8),
        (8, 5) => matches!(c, 0 | 2 | 3 | 5 | 6),
        (8, 7) => matches!(c, 0 | 8),
        (8, 8) => matches!(c, 0..=3 | 6 | 8),
        (9, 6) => c <= 8,
        (9, 7) => c != 8,
        (9, 9) => matches!(c, 2..=6 | 8),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};

    #[test]
    fn numbers() {
        found(
            "phone",
            &[
                ("+4915112345678", "[phone]"),
                ("+1 (555) 123-4567", "[phone]"),
                ("+1-555-123-4567,", "[phone],"),
                ("+44 20 7946 0958.", "[phone]."),
                ("+33 6 12 34 56 789", "[phone]"),
                ("tel:+358401234567", "tel:[phone]"),
                ("phone: 555-123-4567", "phone: [phone]"),
                ("\"phoneNumber\":\"(555) 123-4567\"", "\"phoneNumber\":\"[phone]\""),
                ("Call me at 030 1234567!", "Call me at [phone]!"),
                ("电话：010-12345678", "电话：[phone]"),
                ("+49 30 123456 4111 1111 1111 1111", "[phone] 4111 1111 1111 1111"),
            ],
        );
    }

    #[test]
    fn no_numbers() {
        untouched(
            "phone",
            &[
                "+0800123456",
                "+1234567",
                "+21012345678",
                "a+4915112345678",
                "+4915112345678901",
                "555-123-4567",
                "5551234567",
                "phone call on 2024-01-02 03:04:05",
                "phone order_id=5551234567",
                "hotel 5551234567",
                "+08:00",
                "phone 123",
                "phone v1.234.567",
            ],
        );
    }
}
