//! Social security numbers of the United States, by the Social Security Administration's rules: no area 000, 666 or 900
//! to 999, no group 00, no serial 0000. Nine digits in a row only where a word says what they are.
//!
//! With spaces, sizes and counts are written too: then a word says what it is, or there is nothing else.

use super::Found;
use crate::context::{self, Words};
use crate::digits::{Cluster, Group, stands_alone};
use crate::view::View;

const WORDS: Words = Words::of(&[b"ssn", b"social_security"]);

/// What is said of one in a sentence.
const SPOKEN: Words = Words::of(&[b"ssn", b"social"]);

pub(super) fn find(view: &View<'_>, cluster: &Cluster, from: Group) -> Option<Found> {
    if from.len() == 9 {
        let text = view.slice(from.start, from.end);
        let (area, rest) = text.split_at_checked(3)?;
        let (group, serial) = rest.split_at_checked(2)?;
        let found = valid(area, group, serial)
            && stands_alone(view, from.start, from.end)
            && context::has(view, from.start, &WORDS);
        return found.then(|| Found::new(from.start, from.end));
    }
    if from.len() != 3 {
        return None;
    }
    if view.at(from.end) == b'.' {
        return dotted(view, from);
    }
    let mut groups = cluster.joined(view, from);
    let (area, group, serial) = (groups.next()?, groups.next()?, groups.next()?);
    let text = |group: Group| view.slice(group.start, group.end);
    let dashed = |before: u8, digit: u8| before == b'-' && digit.is_ascii_digit();
    let found = (area.len(), group.len(), serial.len()) == (3, 2, 4)
        && valid(text(area), text(group), text(serial))
        && stands_alone(view, area.start, serial.end)
        && !dashed(view.before(area.start), view.before(area.start.saturating_sub(1)))
        && !dashed(view.at(serial.end), view.at(serial.end.saturating_add(1)));
    let known = || {
        view.at(area.end) != b' '
            || context::is_whole(view, area.start, serial.end)
            || context::has(view, area.start, &SPOKEN)
    };
    (found && known()).then(|| Found::new(area.start, serial.end))
}

/// With dots, as versions have them: only where a word says what it is.
fn dotted(view: &View<'_>, area: Group) -> Option<Found> {
    let text = view.slice(area.start, area.start.saturating_add(11));
    let (area_text, rest) = text.split_at_checked(3)?;
    let [b'.', a, b, b'.', serial @ ..] = rest else { return None };
    let digits = serial.len() == 4 && serial.iter().chain([a, b]).all(u8::is_ascii_digit);
    let end = area.start.saturating_add(text.len());
    let found = digits
        && valid(area_text, &[*a, *b], serial)
        && stands_alone(view, area.start, end)
        && context::has(view, area.start, &WORDS);
    found.then(|| Found::new(area.start, end))
}

fn valid(area: &[u8], group: &[u8], serial: &[u8]) -> bool {
    area != b"000" && area != b"666" && !area.starts_with(b"9") && group != b"00" && serial != b"0000"
}

#[cfg(test)]
mod tests {
    use crate::Findings;
    use crate::testing::{found, only, untouched};

    #[test]
    fn numbers() {
        found(
            "us_ssn",
            &[
                // Vector's pattern misses such serials.
                ("123-45-6709", "[us_ssn]"),
                ("123-45-6789", "[us_ssn]"),
                ("(123-45-6789)", "([us_ssn])"),
                ("ssn 123 45 6789", "ssn [us_ssn]"),
                ("my social is 123 45 6789.", "my social is [us_ssn]."),
                ("{\"ssn\":\"123 45 6789\"}", "{\"ssn\":\"[us_ssn]\"}"),
                ("{\"n\":\"123 45 6789\"}", "{\"n\":\"[us_ssn]\"}"),
                ("ssn=123456789&", "ssn=[us_ssn]&"),
                ("SSN: 123.45.6789.", "SSN: [us_ssn]."),
                ("social_security_no=123456789", "social_security_no=[us_ssn]"),
                ("\"userSsn\":\"123456789\"", "\"userSsn\":\"[us_ssn]\""),
                ("Social Security number: 123456789", "Social Security number: [us_ssn]"),
            ],
        );
    }

    #[test]
    fn a_whole_value() {
        let rules = only("us_ssn");
        for name in ["", "n", "x-value", "a_very_long_name_that_fills_all_that_may_be_known_of_what_is_before_a_value"]
        {
            let mut findings = Findings::default();
            let clean = rules.scrub(name, b"123 45 6789", &mut findings);
            assert_eq!(
                (&*clean == b"[us_ssn]", findings.total()),
                (name.len() < 40, u32::from(name.len() < 40)),
                "{name}"
            );
        }
    }

    #[test]
    fn no_numbers() {
        untouched(
            "us_ssn",
            &[
                "000-45-6789",
                "666-45-6789",
                "900-45-6789",
                "123-00-6789",
                "123-45-0000",
                "sizes 128 64 4096",
                "128 64 4096 8192",
                "a=1&b=128 64 4096",
                "128 64 4096\n",
                "n=128 64 4096 kB",
                "\"128 64 4096",
                "\"n\": \"at 128 64 4096\"",
                "123-45 6789",
                "123.45.6789",
                "ssn 123.45.678",
                "ssn 123.45.6789.1",
                "123456789",
                "ssn=000456789",
                "123-45-67890",
                "0123-45-6789",
                "1-123-45-6789",
                "123-45-6789-1",
                "x123-45-6789",
                "ssnx=123456789",
                "lessn=123456789",
            ],
        );
    }
}
