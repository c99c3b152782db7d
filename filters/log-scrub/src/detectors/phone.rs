//! Telephone numbers: ITU-T E.164 after a `+`, eight to fifteen digits of which the first are an assigned country code;
//! without it, seven to twelve digits where a word says that it is a phone.

use super::{Found, card, us_ssn};
use crate::context::{self, Words};
use crate::digits::{Cluster, Group, stands_alone};
use crate::view::View;
use core::ops::RangeInclusive;

const WORDS: Words = Words::of(&[
    b"phone",
    b"mobile",
    b"mobil",
    b"tel",
    b"telephone",
    b"telefon",
    b"telefono",
    b"telefone",
    b"telefoon",
    b"cell",
    b"cellphone",
    b"fax",
    b"call",
    b"sms",
    b"msisdn",
    b"whatsapp",
    b"handy",
    b"handynummer",
    b"mob",
    b"celular",
    b"movil",
    b"cellulare",
    b"portable",
    b"gsm",
    b"komorka",
    b"mobiel",
    b"telemovel",
    b"contact_number",
    b"contact_no",
    "téléphone".as_bytes(),
    "teléfono".as_bytes(),
    "móvil".as_bytes(),
    "telemóvel".as_bytes(),
    "komórka".as_bytes(),
    "电话".as_bytes(),
    "電話".as_bytes(),
    "手机".as_bytes(),
    "手機".as_bytes(),
    "携帯".as_bytes(),
    "전화".as_bytes(),
    "휴대폰".as_bytes(),
    "핸드폰".as_bytes(),
    "телефон".as_bytes(),
    "тел".as_bytes(),
    "моб".as_bytes(),
])
.but(&OTHERS);

/// What of a phone or a call is no number to dial.
const OTHERS: [&[u8]; 16] = [
    b"at",
    b"count",
    b"date",
    b"day",
    b"duration",
    b"epoch",
    b"id",
    b"ids",
    b"ms",
    b"seconds",
    b"time",
    b"timestamp",
    b"total",
    b"ts",
    b"type",
    b"version",
];

/// What an extension begins with.
const EXTENSIONS: [&[u8]; 3] = [b"ext.", b"ext", b"x"];

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
        let number = Number { start: plus, digits: WORLD, usual: usual(view, lead)?, cluster: Some(cluster) };
        return number.end(view, lead).map(|end| Found::new(plus, end));
    }
    if from.len() > 12 || view.word_before(from.start) || (from.len() == 4 && is_date(view, cluster, from)) {
        return None;
    }
    if let Some(found) = by_form(view, from) {
        return Some(found);
    }
    // What costs more is asked for later.
    if cluster.is_bare() || context::is_bare(view, from.start) {
        return None;
    }
    // Digits before the first group, as in `(11) 91234-5678`.
    let is_first = cluster.groups().first().is_some_and(|group| group.start == from.start);
    let begins = |at: &usize| is_first && (view.at(*at).is_ascii_digit() || view.at(*at) == b'(');
    let lead = (lead..from.start).find(begins).filter(|lead| !view.word_before(*lead));
    let bracket = from.start.checked_sub(1).filter(|at| view.at(*at) == b'(' && *at >= view.first());
    // A bracket may be around all of it.
    let starts = [lead.unwrap_or(from.start), bracket.unwrap_or(from.start), from.start];
    let number = |start, cluster| Number { start, digits: NATION, usual: NATION, cluster }.end(view, start);
    let start = starts.into_iter().find(|start| number(*start, None).is_some())?;
    if !context::has(view, start, &WORDS) || context::labels_other(view, start) {
        return None;
    }
    Some(Found::new(start, number(start, Some(cluster))?))
}

/// A number that is written as nothing else is: `(555) 123-4567` of North America, `090-1234-5678` of Japan's mobiles.
fn by_form(view: &View<'_>, from: Group) -> Option<Found> {
    let digits = |from: usize, count: usize| {
        let end = view.skip(from, |byte| byte.is_ascii_digit());
        (end.saturating_sub(from) == count).then_some(end)
    };
    let dash = |at: usize, sign: &[u8]| sign.contains(&view.at(at)).then(|| at.saturating_add(1));
    if from.len() != 3 {
        return None;
    }
    let bracket = from.start.checked_sub(1).filter(|at| view.at(*at) == b'(' && *at >= view.first());
    if let Some(start) = bracket {
        let after = dash(from.end, b")")?;
        let after = dash(after, b" ").unwrap_or(after);
        let end = digits(dash(digits(after, 3)?, b"-. ")?, 4)?;
        let whole = with_extension(view, end);
        return stands_alone(view, start, whole).then(|| Found::new(start, whole));
    }
    if !matches!(view.slice(from.start, from.end), b"070" | b"080" | b"090") {
        return None;
    }
    let end = digits(dash(digits(dash(from.end, b"-")?, 4)?, b"-")?, 4)?;
    stands_alone(view, from.start, end).then(|| Found::new(from.start, end))
}

/// What a number is like.
struct Number<'c> {
    start: usize,
    /// How many digits it may have, and how many of such do.
    digits: RangeInclusive<usize>,
    usual: RangeInclusive<usize>,
    /// No card and no social security number of the cluster is a part of it.
    cluster: Option<&'c Cluster>,
}

impl Number<'_> {
    /// The end of the longest number from a position on, of a usual length if there is one.
    fn end(&self, view: &View<'_>, from: usize) -> Option<usize> {
        let (mut count, mut longest, mut usual, mut open) = (0_usize, None, None, false);
        let mut at = joint(view, from, count, &mut open);
        loop {
            let end = view.skip(at, |byte| byte.is_ascii_digit());
            let length = end.saturating_sub(at);
            if length == 0 || (count > 0 && self.is_other(view, at)) {
                break;
            }
            count = count.saturating_add(length);
            if count > *self.digits.end() {
                break;
            }
            // What follows may be something else, so the longest that stands alone.
            let whole = with_extension(view, end);
            if self.digits.contains(&count) && !open && stands_alone(view, self.start, whole) {
                longest = Some(whole);
                if self.usual.contains(&count) {
                    usual = Some(whole);
                }
            }
            at = joint(view, end, count, &mut open);
        }
        usual.or(longest)
    }

    fn is_other(&self, view: &View<'_>, start: usize) -> bool {
        let Some(cluster) = self.cluster else { return false };
        let group = cluster.groups().iter().find(|group| group.start == start);
        group.is_some_and(|group| {
            card::find(view, cluster, *group).is_some() || us_ssn::find(view, cluster, *group).is_some()
        })
    }
}

/// Where the next digits may begin after so many: after one sign, and brackets that fit.
fn joint(view: &View<'_>, at: usize, count: usize, open: &mut bool) -> usize {
    let sign = |at: usize| at.saturating_add(usize::from(matches!(view.at(at), b' ' | b'-' | b'.' | b'/')));
    let mut at = at;
    if *open && view.at(at) == b')' {
        *open = false;
        at = at.saturating_add(1);
    }
    // After the whole number, these would stand between two.
    let wide = count < *NATION.start() && (view.starts(at, b" / ") || view.starts(at, b" - "));
    at = if wide { at.saturating_add(3) } else { sign(at) };
    // Not dialled from abroad.
    if view.starts(at, b"(0)") {
        at = sign(at.saturating_add(3));
    }
    if !*open && view.at(at) == b'(' {
        *open = true;
        at = at.saturating_add(1);
    }
    at
}

/// The end of a number with what is dialled after it: `x12`, `ext. 345`.
fn with_extension(view: &View<'_>, end: usize) -> usize {
    let space = |at: usize| at.saturating_add(usize::from(view.at(at) == b' '));
    let at = space(end);
    let has = |mark: &[u8]| view.slice(at, at.saturating_add(mark.len())).eq_ignore_ascii_case(mark);
    let Some(mark) = EXTENSIONS.iter().find(|mark| has(mark)) else { return end };
    let at = space(at.saturating_add(mark.len()));
    let last = view.skip(at, |byte| byte.is_ascii_digit());
    let whole = (1..=6).contains(&last.saturating_sub(at)) && !view.word_at(last);
    if whole { last } else { end }
}

fn is_in_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b' ' | b'-' | b'.' | b'(' | b')' | b'/')
}

/// `2024-01-02`: a day, whatever a word before it says.
fn is_date(view: &View<'_>, cluster: &Cluster, from: Group) -> bool {
    let mut lengths = cluster.joined(view, from).map(Group::len);
    let year = matches!((view.at(from.start), view.at(from.start.saturating_add(1))), (b'1', b'9') | (b'2', b'0'));
    year && (lengths.next(), lengths.next(), lengths.next()) == (Some(4), Some(2), Some(2))
}

/// How many digits the numbers of a country usually have, its code among them; none if no country and no service has
/// the code that these digits begin with.
fn usual(view: &View<'_>, start: usize) -> Option<RangeInclusive<usize>> {
    let digits =
        view.slice(start, start.saturating_add(2 * LEAD).min(view.end())).iter().filter(|byte| byte.is_ascii_digit());
    let mut digits = digits.map(|digit| digit.wrapping_sub(b'0'));
    let (a, b, c) = (digits.next()?, digits.next()?, digits.next()?);
    let assigned = match (a, b) {
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
    };
    assigned.then_some(match (a, b, c) {
        (1 | 7, ..) | (2, 7, _) | (3, 1 | 3 | 4, _) | (4, 1 | 8, _) | (6, 1, _) => 11..=11,
        (3, 0, _) | (5, 7, _) | (6, 3, _) | (9, 0..=2 | 8, _) | (4, 2, 0 | 1) | (3, 5, 1) => 12..=12,
        (4, 5 | 7, _) | (6, 5, _) => 10..=10,
        (3, 2 | 6, _) => 10..=11,
        (8, 1 | 2, _) | (3, 5, 3) | (8, 8, 6) | (9, 7, 1 | 2) | (4, 4, _) => 11..=12,
        (8, 6, _) | (5, 2 | 4 | 5, _) => 12..=13,
        (8, 5, _) => 11..=11,
        (4, 9, _) | (3, 9, _) | (6, 2, _) => 10..=13,
        _ => WORLD,
    })
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
                ("ask (415) 555-0132, (415)555-0132 or (415) 555.0132 x7.", "ask [phone], [phone] or [phone]."),
                ("090-1234-5678", "[phone]"),
                ("phones: 030 1234567, 040 1234567", "phones: [phone], [phone]"),
                ("Handy 0151/12345678", "Handy [phone]"),
                ("phone=(0704613234), tel (457.496.5949)", "phone=([phone]), tel ([phone])"),
                ("\"telefonnummer\":\"030 1234567\"", "\"telefonnummer\":\"[phone]\""),
                ("Móvil: 612 34 56 78", "Móvil: [phone]"),
                ("celular (11) 91234-5678", "celular [phone]"),
                ("Portable : 06-12-34-56-78", "Portable : [phone]"),
                ("cellulare 347 1234567; gsm 0470 12 34 56", "cellulare [phone]; gsm [phone]"),
                ("Telefoon: 06-12345678", "Telefoon: [phone]"),
                ("telemóvel=912345678", "telemóvel=[phone]"),
                ("komórka 601 234 567", "komórka [phone]"),
                ("携帯：090 1234 5678", "携帯：[phone]"),
                ("手機 0912-345-678, 휴대폰 010-1234-5678", "手機 [phone], 휴대폰 [phone]"),
                ("телефон 8 (912) 345-67-89", "телефон [phone]"),
                (
                    "{\"contact_phone\":\"02079460958\",\"cellPhone\":5551234567,\"mobileNo\":\"07700 900123\"}",
                    "{\"contact_phone\":\"[phone]\",\"cellPhone\":[phone],\"mobileNo\":\"[phone]\"}",
                ),
                ("msisdn=491511234567&contact_number=9876543210", "msisdn=[phone]&contact_number=[phone]"),
                ("phone: 555-123-4567", "phone: [phone]"),
                ("phone_id phone 5551234567, id_phone=5551234567", "phone_id phone [phone], id_phone=[phone]"),
                ("call at 5551234567; phone_format=5551234567", "call at [phone]; phone_format=[phone]"),
                ("contact-number: 9876543210, contactNo=9876543210", "contact-number: [phone], contactNo=[phone]"),
                (
                    "contact.number: 9876543210; contact number 9876543210",
                    "contact.number: [phone]; contact number [phone]",
                ),
                ("\"phoneNumber\":\"(555) 123-4567\"", "\"phoneNumber\":\"[phone]\""),
                ("Call me at 030 1234567!", "Call me at [phone]!"),
                ("电话：010-12345678", "电话：[phone]"),
                ("+49 30 123456 4111 1111 1111 1111", "[phone] 4111 1111 1111 1111"),
                // What follows is not joined to it, and does not hide it.
                ("+4915112345678 10.1.2.3", "[phone] 10.1.2.3"),
                ("+4915112345678//10.1.2.3", "[phone]//10.1.2.3"),
                ("+4915112345678//10", "[phone]//10"),
                ("+4915112345678 10", "[phone] 10"),
                ("+33 6 12 34 56 78 901", "[phone] 901"),
                ("(+49 30 1234567) 890", "([phone]) 890"),
                ("+49 30 12345 123-45-6789", "[phone] 123-45-6789"),
                ("+49 (0)30 123 456-0", "[phone]"),
                ("+44 (0) 20 7946 0958", "[phone]"),
                ("+49 30 / 123 4567", "[phone]"),
                ("+1.555.123.4567", "[phone]"),
                ("+1 (555) 123-4567 ext. 89", "[phone]"),
                ("+15551234567x123,", "[phone],"),
                ("+33 6 12 34 56 78", "[phone]"),
                ("Tel. 06.12.34.56.78", "Tel. [phone]"),
                ("téléphone : 06 12 34 56 78", "téléphone : [phone]"),
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
                "phone=x, ssn: 905-03-1263",
                "{\"phone\":\"\",\"n\":5551234567}",
                "(415) 555-01321",
                "f(415) 555",
                "190-1234-5678",
                "automobile 5551234567",
                "mobiles sold: 12, price 1299.99",
                "5551234567",
                "phone call on 2024-01-02 03:04:05",
                "called 1999-12-31 23:59",
                "phone order_id=5551234567",
                "phone_verified_at=1700000000",
                "\"phoneVerifiedAt\":1700000000",
                "phone-verified-at: 1700000000",
                "{\"phone_id\":5551234567,\"callId\":\"5551234567\",\"callID\": 5551234567}",
                "call_id=5551234567&fax_id=5551234567&call-id=5551234567",
                "telephone_count: 1234567, mobile_os_version=1234567",
                "phone_type=1234567; phone_ts=1700000000; call_time=1700000000; mobileDate=20240102",
                "CALL_ID=5551234567",
                "phone.id=5551234567",
                "hotel 5551234567",
                "contact notes 5551234567",
                "+08:00",
                "phone 123",
                "phone v1.234.567",
            ],
        );
    }
}
