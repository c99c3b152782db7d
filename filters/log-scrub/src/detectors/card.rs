//! Payment cards: the issuers' number ranges and lengths (ISO/IEC 7812, the card schemes' public BIN tables), and the
//! check digit of ISO/IEC 7812-1, annex B (Luhn).
//!
//! Sixteen random digits pass both in two of a hundred cases. So digits without spaces whose label says that they are
//! something else are left alone, and the rarer lengths need a label that says card.

use super::Found;
use crate::context::{self, Words};
use crate::digits::{Cluster, Group, stands_alone};
use crate::view::View;
use core::ops::RangeInclusive;

const WORDS: Words = Words::of(&[
    b"card",
    b"cardno",
    b"cardnumber",
    b"ccn",
    b"ccnum",
    b"carte",
    b"carta",
    b"tarjeta",
    b"cartao",
    "cartão".as_bytes(),
    b"karte",
    b"kartennummer",
    b"kreditkarte",
    b"kreditkort",
    b"kaart",
    b"karta",
    b"karty",
    "карта".as_bytes(),
    "卡".as_bytes(),
    b"credit",
    b"debit",
    b"visa",
    b"mastercard",
    b"maestro",
    b"amex",
    b"unionpay",
    b"pan",
    b"cc",
    b"payment",
    "卡号".as_bytes(),
    "银行卡".as_bytes(),
    "信用卡".as_bytes(),
]);

/// Those of them that in a name which ends as that of an id still say card: not `payment_id`.
const CARDS: Words = Words::of(&[
    b"card",
    b"cardno",
    b"cardnumber",
    b"creditcard",
    b"debitcard",
    b"ccn",
    b"ccnum",
    b"tarjeta",
    b"karte",
    b"kreditkarte",
    b"pan",
    b"cc",
]);

/// With what a name ends whose digits in a row are no card.
const IDS: [&[u8]; 18] = [
    b"id",
    b"uid",
    b"guid",
    b"uuid",
    b"accountid",
    b"customerid",
    b"orderid",
    b"requestid",
    b"sessionid",
    b"userid",
    b"ticket",
    b"tickets",
    b"serial",
    b"order",
    b"orders",
    b"invoice",
    b"invoices",
    b"etag",
];

pub(super) fn find(view: &View<'_>, cluster: &Cluster, from: Group) -> Option<Found> {
    if from.len() < 4 || matches!(view.at(from.start), b'0' | b'7') {
        return None;
    }
    let kind = kind(view.slice(from.start, from.end))?;
    let mut digits = [0_u8; 19];
    let (mut count, mut groups, mut best, mut was_common) = (0_usize, 0_usize, None, false);
    for group in cluster.joined(view, from) {
        let text = view.slice(group.start, group.end);
        let Some(free) = digits.get_mut(count..count.saturating_add(text.len())) else { break };
        free.copy_from_slice(text);
        count = count.saturating_add(text.len());
        groups = groups.saturating_add(1);
        // In print, the first group has four digits, and none is shorter than two; or there are twice eight.
        let halves = groups == 2 && from.len() == 8 && text.len() == 8;
        if groups > 1 && !halves && (from.len() != 4 || text.len() < 2 || text.len() > 7) {
            break;
        }
        let number = digits.get(..count).unwrap_or(&[]);
        // What has a few digits more in print is no shorter number where there are such long ones.
        if groups > 4 && text.len() < 4 && is_often_long(number) {
            best = None;
        }
        // Nor is a rare one when more is joined to it.
        best = best.filter(|_| was_common);
        let Some(common) = kind.issues(count) else { continue };
        if !luhn(number) || !stands_alone(view, from.start, group.end) {
            continue;
        }
        let sure = common && groups > 1 && !halves;
        if !common && groups > 1 && is_cut(view, cluster, from) {
            continue;
        }
        if sure || context::has(view, from.start, &WORDS) || (common && !context::labels_other(view, from.start)) {
            best = Some(Found::new(from.start, group.end));
            was_common = common;
        }
    }
    let is_id = |found: &Found| found.end == from.end && context::is_named(view, from.start, &IDS, &CARDS);
    best.filter(|found| !is_id(found) && !is_in_account(view, from.start))
}

/// Whether a card may be what a row of groups begins with, the first of them of four or eight digits; a quick guess,
/// never wrong where it says no.
pub(crate) fn may_begin(row: &[u8]) -> bool {
    let fours = row.first_chunk().and_then(fours);
    if fours == Some([false; 2]) {
        return false;
    }
    let Some(kind) = row.first_chunk::<4>().and_then(|first| kind(first)) else { return false };
    if let Some([twelve, sixteen]) = fours {
        return (twelve && kind.rare.contains(&12)) || (sixteen && kind.rare.contains(&16));
    }
    // The digits doubled that stand at even places, and those at odd ones.
    let (mut sums, mut count) = ([0_u32; 2], 0_usize);
    let mut sign = 0;
    let mut bytes = row.iter();
    loop {
        // Beyond the window there may be more.
        let Some(byte) = bytes.next().copied() else { return true };
        if byte.is_ascii_digit() {
            let digit = u32::from(byte.wrapping_sub(b'0'));
            let doubled = if digit > 4 { digit.wrapping_mul(2).wrapping_sub(9) } else { digit.wrapping_mul(2) };
            let [even, odd] = sums;
            sums = if count.is_multiple_of(2) {
                [even.wrapping_add(doubled), odd.wrapping_add(digit)]
            } else {
                [even.wrapping_add(digit), odd.wrapping_add(doubled)]
            };
            count = count.wrapping_add(1);
            if count > *kind.rare.end() {
                return false;
            }
            continue;
        }
        let [even, odd] = sums;
        let sum = if count.is_multiple_of(2) { even } else { odd };
        if kind.rare.contains(&count) && sum.is_multiple_of(10) {
            return true;
        }
        if !matches!(byte, b' ' | b'-') || (sign != 0 && sign != byte) {
            return false;
        }
        sign = byte;
    }
}

/// Of five groups of four digits with the same sign between: whether the first twelve pass Luhn's test, and the first
/// sixteen.
fn fours(row: &[u8; 24]) -> Option<[bool; 2]> {
    let [a, b, c, d, first, e, f, g, h, second, i, j, k, l, third, m, n, o, p, fourth, q, r, s, t] = *row;
    let groups = [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p], [q, r, s, t]].map(u32::from_le_bytes);
    // All digits: in each byte the high half is three, and stays so with six more.
    let digits = |group: &u32| group & group.wrapping_add(0x0606_0606) & 0xF0F0_F0F0 == 0x3030_3030;
    if !matches!(first, b' ' | b'-') || [second, third, fourth] != [first; 3] || !groups.iter().all(digits) {
        return None;
    }
    // The first and the third of a group are doubled.
    let sum = |group: u32| {
        let (doubled, plain) = (group & 0x000F_000F, group >> 8 & 0x000F_000F);
        let carried = doubled.wrapping_add(0x007B_007B) >> 7 & 0x0001_0001;
        let sums = doubled.wrapping_mul(2).wrapping_add(plain).wrapping_sub(carried.wrapping_mul(9));
        (sums & 0xFFFF).wrapping_add(sums >> 16)
    };
    let [a, b, c, d, _] = groups.map(sum);
    let twelve = a.wrapping_add(b).wrapping_add(c);
    Some([twelve.is_multiple_of(10), twelve.wrapping_add(d).is_multiple_of(10)])
}

/// Whether it is a part of what begins as an IBAN in print: `GB29 NWBK 6016`.
fn is_in_account(view: &View<'_>, from: usize) -> bool {
    let mut at = from;
    for _ in 0..LONGEST_ACCOUNT {
        let Some(start) = at.checked_sub(5) else { return false };
        let letter = |at: usize| view.at(at).is_ascii_uppercase();
        let four = (start..start.saturating_add(4)).all(|at| letter(at) || view.at(at).is_ascii_digit());
        if !four || !matches!(view.before(at), b' ' | b'-') {
            return false;
        }
        let digit = |at: usize| view.at(at).is_ascii_digit();
        let [a, b, c, d] = [0, 1, 2, 3].map(|ahead| start.saturating_add(ahead));
        if letter(a) && letter(b) && digit(c) && digit(d) && !view.word_before(start) {
            return true;
        }
        at = start;
    }
    false
}

/// Groups before the last of an IBAN.
const LONGEST_ACCOUNT: usize = 8;

/// Whether four digits are joined to it before: then what is rare is a part of something.
fn is_cut(view: &View<'_>, cluster: &Cluster, from: Group) -> bool {
    let before = cluster.groups().iter().find(|group| group.end.saturating_add(1) == from.start);
    before.is_some_and(|before| before.len() == 4 && view.before(from.start) == view.at(from.end))
}

/// Of UnionPay and Maestro, more than sixteen digits are nothing unusual.
fn is_often_long(number: &[u8]) -> bool {
    matches!(number, [b'5', b'0' | b'6'..=b'8', ..] | [b'6', b'2' | b'3' | b'7', ..])
}

/// A range of numbers.
struct Kind {
    /// How many digits most have.
    common: &'static [usize],
    /// How many any has.
    rare: RangeInclusive<usize>,
}

impl Kind {
    /// Whether there are cards with so many digits, and whether most of their kind have as many.
    fn issues(&self, length: usize) -> Option<bool> {
        self.rare.contains(&length).then(|| self.common.contains(&length))
    }
}

/// The kind of cards whose numbers begin so.
fn kind(number: &[u8]) -> Option<Kind> {
    let first = |digits: usize| {
        number
            .iter()
            .take(digits)
            .fold(0_u32, |sum, digit| sum.wrapping_mul(10).wrapping_add(u32::from(digit.wrapping_sub(b'0'))))
    };
    let (two, three, four) = (first(2), first(3), first(4));
    let (common, rare): (&[usize], RangeInclusive<usize>) = match (two, three, four) {
        // American Express.
        (34 | 37, ..) => (&[15], 15..=15),
        // Diners Club.
        (36 | 38 | 39, ..) | (_, 300..=305 | 309, _) => (&[14], 14..=19),
        // JCB.
        (_, _, 3528..=3589) => (&[16], 16..=19),
        // Visa.
        (40..=49, ..) => (&[16], 13..=19),
        // Mastercard.
        (51..=55, ..) | (_, _, 2221..=2720) => (&[16], 16..=16),
        // UnionPay.
        (62, ..) => (&[16, 19], 16..=19),
        // Discover.
        (_, _, 6011) | (_, 644..=649, _) | (65, ..) => (&[16], 16..=19),
        // Mir, Troy, RuPay.
        (_, _, 2200..=2205 | 9792) | (60 | 81 | 82, ..) => (&[16], 16..=19),
        // Verve, Elo, RuPay.
        (_, _, 5060 | 5061) => (&[16, 18, 19], 16..=19),
        (_, _, 5041 | 5066 | 5067 | 5078..=5099 | 6362 | 6363) => (&[16], 16..=19),
        // InstaPayment.
        (_, 637..=639, _) => (&[16], 16..=16),
        // Dankort, Bankcard, and what of Maestro is in use.
        (_, _, 5018..=5020 | 5038 | 5610 | 5612 | 5893 | 6304 | 6331 | 6333 | 6334 | 6759 | 6761..=6763 | 6767) => {
            (&[16], 12..=19)
        }
        // UATP, and JCB before.
        (10..=19, ..) | (_, _, 2131) => (&[], 15..=15),
        // Maestro.
        (50 | 56..=58 | 61 | 63 | 66..=69, ..) => (&[], 12..=19),
        _ => return None,
    };
    Some(Kind { common, rare })
}

fn luhn(number: &[u8]) -> bool {
    let sum = number.iter().rev().enumerate().fold(0_u32, |sum, (place, digit)| {
        let digit = u32::from(digit.wrapping_sub(b'0'));
        let weighed = if place.is_multiple_of(2) { digit } else { digit.wrapping_mul(2) };
        sum.wrapping_add(if weighed > 9 { weighed.wrapping_sub(9) } else { weighed })
    });
    sum.is_multiple_of(10) && number.iter().any(|digit| *digit != b'0')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{found, untouched};
    use kit::prelude::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fours_are_as_one_by_one(text in "[0-9]{4}( [0-9]{4}){4}|[0-9]{4}([ -][0-9:/]{4}){4}") {
            let row = text.as_bytes().first_chunk().unwrap();
            let digits = text.bytes().filter(u8::is_ascii_digit).collect::<Vec<_>>();
            let same = text.matches(' ').count() == 4 || text.matches('-').count() == 4;
            let expected = (digits.len() == 20 && same).then(|| [12, 16].map(|count| luhn(&digits[..count])));
            // Zeros alone are no number, which is of no matter here.
            if !text.starts_with("0000 0000 0000") {
                prop_assert_eq!(fours(row), expected, "{}", text);
            }
        }
    }

    #[test]
    fn cards() {
        // The schemes' own numbers for tests.
        found(
            "card",
            &[
                ("4111111111111111", "[card]"),
                ("4111 1111 1111 1111", "[card]"),
                ("\"4111-1111-1111-1111\"", "\"[card]\""),
                ("5555555555554444,378282246310005", "[card],[card]"),
                ("3782 822463 10005", "[card]"),
                ("6011111111111117 30569309025904 3530111333300000", "[card] [card] [card]"),
                ("2223003122003222.", "[card]."),
                ("6200000000000005", "[card]"),
                ("card=4222222222222&", "card=[card]&"),
                ("pan: 6759649826438453", "pan: [card]"),
                ("5019717010103742,6759649826438453", "[card],[card]"),
                ("40128888 88881881", "[card]"),
                ("credit card: 122000000000003", "credit card: [card]"),
                ("\"numero_tarjeta\":\"4222222222222\"", "\"numero_tarjeta\":\"[card]\""),
                ("Kreditkarte 6304000000000000000", "Kreditkarte [card]"),
                // Of each network.
                ("2200000000000004 9792000000000003 6521111111111110 8171999927660000", "[card] [card] [card] [card]"),
                ("3056 930902 5904, 3782-822463-10005", "[card], [card]"),
                ("50610000000000007,506100000000000005,5090000000000000", "50610000000000007,[card],[card]"),
                ("6212 3456 7890 1234 569", "[card]"),
                ("5067230000009011 6362970000457013 6500000000000002", "[card] [card] [card]"),
                ("4111 1111 1111 1111 12/27 123", "[card] 12/27 123"),
                ("1 4111 1111 1111 1111", "1 [card]"),
                ("4111 1111 1111 1111 123", "[card] 123"),
                ("卡号4111111111111111。", "卡号[card]。"),
                ("order paid with 4111111111111111", "order paid with [card]"),
                ("order 4111 1111 1111 1111", "order [card]"),
                ("id=4111 1111 1111 1111&\"userId\":\"4111-1111-1111-1111\"", "id=[card]&\"userId\":\"[card]\""),
                ("card_id=4111111111111111&panId=4111111111111111", "card_id=[card]&panId=[card]"),
                (
                    "\"creditCardID\": 4111111111111111, \"cc-id\":4111111111111111",
                    "\"creditCardID\": [card], \"cc-id\":[card]",
                ),
                ("paid=4111111111111111&void:4111111111111111", "paid=[card]&void:[card]"),
                ("card id 4111111111111111", "card id [card]"),
                ("/cards/4111111111111111 /card-id/4111111111111111", "/cards/[card] /card-id/[card]"),
                ("/users/4111111111111111?id=1", "/users/[card]?id=1"),
                ("id=1 4111111111111111", "id=1 [card]"),
            ],
        );
    }

    #[test]
    fn no_cards() {
        untouched(
            "card",
            &[
                // Luhn.
                "4111111111111112",
                "4111 1111 1111 1112",
                "4000 0000 0000 0000",
                // Digits before and after, as in a number of 20.
                "41111111111111110000",
                "00004111111111111111",
                "x4111111111111111",
                "4111111111111111x",
                "4111_1111_1111_1111",
                // No such range; two kinds of separators; a fraction; lengths.
                "1111111111111117",
                "4111 1111-1111 1111",
                "0.4111111111111111",
                "4111111111111111.5",
                "4222222222222",
                "122000000000003",
                "4012888 888881881",
                "411111",
                "4111 1111",
                "6207 6231 2861 0380 067",
                "6759 5884 7357 8205 35",
                "IS06 9482 8249 3513 1842 5288 48",
                "MU59 QZZD 4518 5151 6655 9942 564P JA",
                "card 6272 6129 7157 8997 20928",
                "card 5018 8849 7473 0480",
                // In an id.
                "550e8400-e29b-41d4-a716-4111111111111111",
                "4111111111111111-abcd-1234",
                "\"order_id\":\"4111111111111111\"",
                "trace=4111111111111111",
                "{\"parent\":\"4111111111111111\",\"parentId\":\"4111111111111111\"}",
                "span_id=4111111111111111&nonce=4111111111111111&x-b3-parentspanid: 4111111111111111",
                "{\"id\":\"4111111111111111\",\"user_id\":4111111111111111,\"customerId\": \"4111111111111111\"}",
                "{\\\"id\\\": \\\"4111111111111111\\\"}",
                "id=4111111111111111&USER_ID=4111111111111111&user-id: 4111111111111111",
                "payment_id=4111111111111111, visaId=4111111111111111, credit.id=4111111111111111",
                "ticket=4111111111111111&serial=4111111111111111&orders: 4111111111111111",
                "ETag: \"4111111111111111\", invoice 4111111111111111, ticket #4111111111111111",
                "customerID='4111111111111111' customerid=4111111111111111 uuid=4111111111111111",
                "/orders/4111111111111111 /v1/tickets/4111111111111111/notes /invoice/4111111111111111?a=b",
                "{\"card\":{\"id\":\"4111111111111111\"}}",
                // As Diners Club has them, sixteen are rare.
                "3600000000000008",
            ],
        );
    }
}
