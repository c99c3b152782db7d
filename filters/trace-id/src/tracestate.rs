//! `tracestate`: W3C Trace Context Level 2, "Tracestate Header".
//!
//! A list of at most 32 members `key=value`, newest first, over one or more headers: `rojo=00f067aa0ba902b7,congo=t61rcWkgMzE`.
//! A header that is sound and short enough is left alone byte for byte; text is made only where something has to change.
//!
//! Duplicated keys: senders must not produce them, receivers may keep or drop them ("Mutating the tracestate Field", and the
//! conformance harness takes either). They are kept: which of the two its owner wants is not ours to say. Only our own key
//! appears once.

use crate::context::Invalid;
use crate::w3c::trim_ows;
use kit::prelude::*;

/// "tracestate Field Values": members of a list, over all headers, empty ones not counted.
const MAX_MEMBERS: usize = 32;
/// "Key" and "Value": characters of each.
const MAX_PART: usize = 256;
/// "tracestate Limits": so much is propagated whatever the limit says.
const MIN_LIMIT: usize = 512;
/// "tracestate Limits": longer members are the first to go.
const LONG_MEMBER: usize = 128;

/// What to do with the `tracestate` of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The one header that came may go on as it is.
    Unchanged,
    /// One header with this text in place of those that came.
    Text(Vec<u8>),
    /// No member at all: remove what came ("Vendors … SHOULD avoid sending" empty ones).
    Empty,
}

/// Joins the values of all `tracestate` headers, in their order (RFC 9110, 5.3), and puts `own` (key, value) leftmost in place
/// of older members with its key. What is longer than `limit` characters (at least 512) loses whole members: from the right, those
/// over 128 characters first. `own` stays; it is left out only if it does not fit the grammar.
///
/// # Errors
/// The list is not valid: remove it, and keep `traceparent`.
pub fn join<'a>(
    mut values: impl Iterator<Item = &'a [u8]> + Clone,
    own: Option<(&str, &[u8])>,
    limit: usize,
) -> Result<Joined, Invalid> {
    let mut slots: [&[u8]; MAX_MEMBERS] = [&[]; MAX_MEMBERS];
    let members = read(values.clone(), &mut slots)?;

    let limit = limit.max(MIN_LIMIT);
    let own = own.filter(|(key, value)| check(key.as_bytes(), value).is_ok());
    if own.is_none() {
        if members.is_empty() {
            return Ok(Joined::Empty);
        }
        if let (Some(value), None) = (values.next(), values.next())
            && value.len() <= limit
        {
            return Ok(Joined::Unchanged);
        }
    }
    Ok(match write(own, members, limit) {
        text if text.is_empty() => Joined::Empty,
        text => Joined::Text(text),
    })
}

/// Fills `slots` from the left with the members, without the white space around them, and gives back the filled part.
fn read<'s, 'a>(
    values: impl Iterator<Item = &'a [u8]>,
    slots: &'s mut [&'a [u8]; MAX_MEMBERS],
) -> Result<&'s mut [&'a [u8]], Invalid> {
    let mut free = slots.iter_mut();
    for member in values.flat_map(|value| value.split(|byte| *byte == b',')) {
        let member = trim_ows(member);
        if !member.is_empty() {
            let (key, value) = split(member).ok_or(Invalid::Syntax)?;
            check(key, value)?;
            *free.next().ok_or(Invalid::Length)? = member;
        }
    }
    let filled = MAX_MEMBERS.saturating_sub(free.len());
    Ok(slots.get_mut(..filled).unwrap_or_default())
}

/// `key=value`, at the first `=`.
fn split(member: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = member.iter().position(|byte| *byte == b'=')?;
    let (key, value) = member.split_at_checked(at)?;
    Some((key, value.get(1..)?))
}

/// "Key" and "Value".
fn check(key: &[u8], value: &[u8]) -> Result<(), Invalid> {
    let (Some(first), Some(last)) = (key.first(), value.last()) else {
        return Err(Invalid::Length);
    };
    if key.len() > MAX_PART || value.len() > MAX_PART {
        return Err(Invalid::Length);
    }
    let starts_key = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let in_key = |byte: &u8| starts_key(byte) || b"_-*/@".contains(byte);
    let in_value = |byte: &u8| matches!(byte, b' '..=b'~') && !b",=".contains(byte);
    if starts_key(first) && key.iter().all(in_key) && value.iter().all(in_value) && *last != b' ' {
        Ok(())
    } else {
        Err(Invalid::Syntax)
    }
}

/// The text of `own` and as many `members` as `limit` allows; a member that goes is made empty.
fn write(own: Option<(&str, &[u8])>, members: &mut [&[u8]], limit: usize) -> Vec<u8> {
    if let Some((key, _)) = own {
        for member in members.iter_mut() {
            if split(member).is_some_and(|(other, _)| other == key.as_bytes()) {
                *member = &[];
            }
        }
        // "tracestate Field Values": the right-most goes if there is one more than there may be.
        if members.len() == MAX_MEMBERS
            && members.iter().all(|member| !member.is_empty())
            && let Some(last) = members.last_mut()
        {
            *last = &[];
        }
    }

    // Every member is counted with the comma after it, and the limit with the comma that the last one does not have.
    let cost = |part: &[u8]| match part.len() {
        0 => 0,
        length => length.saturating_add(1),
    };
    let own_length = own.map_or(0, |(key, value)| key.len().saturating_add(value.len()).saturating_add(2));
    let mut length = members.iter().map(|member| cost(member)).fold(own_length, usize::saturating_add);
    let limit = limit.saturating_add(1);
    for shortest_to_go in [LONG_MEMBER.saturating_add(1), 1] {
        for member in members.iter_mut().rev() {
            if length > limit && member.len() >= shortest_to_go {
                length = length.saturating_sub(cost(member));
                *member = &[];
            }
        }
    }

    let mut text = Vec::with_capacity(length);
    if let Some((key, value)) = own {
        text.extend_from_slice(key.as_bytes());
        text.push(b'=');
        text.extend_from_slice(value);
    }
    for member in members.iter().filter(|member| !member.is_empty()) {
        if !text.is_empty() {
            text.push(b',');
        }
        text.extend_from_slice(member);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    fn joined(values: &[&str], own: Option<(&str, &str)>, limit: usize) -> Result<Joined, Invalid> {
        let own = own.map(|(key, value)| (key, value.as_bytes()));
        join(values.iter().map(|value| value.as_bytes()), own, limit)
    }

    fn text(text: &str) -> Result<Joined, Invalid> {
        Ok(Joined::Text(text.into()))
    }

    /// `count` members of `length` characters each: `m00=xx`, `m01=xx`.
    fn many(count: usize, length: usize) -> Vec<String> {
        (0..count).map(|i| format!("{:x<length$}", format!("m{i:02}="))).collect()
    }

    #[test]
    fn one_sound_header_stays_as_it_is() {
        let key = "abcdefghijklmnopqrstuvwxyz0123456789_-*/@a-z0-9_-*/";
        let value: String = (' '..='~').filter(|c| !",=".contains(*c)).collect();
        let all_characters = format!("{key}={value}");
        let longest = format!("{}={}", "k".repeat(256), "v".repeat(255));
        for header in [
            "shop=1",
            "shop=1,cart=2",
            "shop=1 \t , \t cart=2,\t \tpay= 3",
            "\t shop=1 \t",
            ",shop=1,, \t,cart=2,",
            "shop=1,shop=1",
            "shop=1,shop=2",
            "shop=1;cart:2",
            "shop@=1,cart=2",
            "shop@@eu=1",
            "shop@eu@west=1",
            "0/*-_@=!",
            &all_characters,
            &longest,
            &many(32, 6).join(","),
        ] {
            assert_eq!(joined(&[header], None, 512), Ok(Joined::Unchanged), "{header}");
        }
    }

    #[test]
    fn several_headers_become_one() {
        let key = "k".repeat(256);
        for (headers, out) in [
            (&["a=1,b=2", "c=3,d=4", "e=5"][..], "a=1,b=2,c=3,d=4,e=5"),
            (&["a=1", ""], "a=1"),
            (&["", "a=1"], "a=1"),
            (&[" \t a=1 ,", " , b=2\t"], "a=1,b=2"),
            // Kept, both of them.
            (&["a=1", "a=2"], "a=1,a=2"),
            (&["a=1", &format!("{key}=1")], &format!("a=1,{key}=1")),
        ] {
            assert_eq!(joined(headers, None, 512), text(out), "{headers:?}");
        }
        for headers in [&[][..], &[""], &["", " , \t,"]] {
            assert_eq!(joined(headers, None, 512), Ok(Joined::Empty), "{headers:?}");
        }
    }

    #[test]
    fn invalid_lists() {
        let (long_key, long_value) = (format!("{}=1", "k".repeat(257)), format!("a={}", "v".repeat(257)));
        let (four, three) = (many(30, 6).join(","), "x=1,y=2,z=3");
        for (headers, why) in [
            (&["a"][..], Invalid::Syntax),
            (&["a =1"], Invalid::Syntax),
            (&["A=1"], Invalid::Syntax),
            (&["a.b=1"], Invalid::Syntax),
            (&["@a=1,b=2"], Invalid::Syntax),
            (&["_a=1"], Invalid::Syntax),
            (&["a=1=2"], Invalid::Syntax),
            (&["a=1\t2"], Invalid::Syntax),
            (&["a=\x7f"], Invalid::Syntax),
            (&["a=é"], Invalid::Syntax),
            (&["a=1", "b"], Invalid::Syntax),
            (&["=1"], Invalid::Length),
            (&["a=,b=3"], Invalid::Length),
            (&["a=  "], Invalid::Length),
            (&["a=1", &long_key], Invalid::Length),
            (&[&long_value], Invalid::Length),
            (&[&four, three], Invalid::Length),
        ] {
            assert_eq!(joined(headers, None, 512), Err(why), "{headers:?}");
        }
    }

    #[test]
    fn own_member_is_leftmost_and_alone() {
        let own = Some(("ot", "th:8"));
        let full = many(32, 6);
        let with_old = |at: usize| {
            let mut members = full.clone();
            members[at] = "ot=th:0".into();
            members.join(",")
        };
        for (headers, out) in [
            (&[][..], "ot=th:8".to_owned()),
            (&[""], "ot=th:8".into()),
            (&["a=1,b=2"], "ot=th:8,a=1,b=2".into()),
            (&["a=1,ot=th:c,b=2", "ot=th:0"], "ot=th:8,a=1,b=2".into()),
            // The key is the whole of what stands before `=`.
            (&["ot@x=1,o=2"], "ot=th:8,ot@x=1,o=2".into()),
            // A 33rd member pushes the last one out, unless an older one of ours made room.
            (&[&full.join(",")], format!("ot=th:8,{}", full[..31].join(","))),
            (&[&with_old(31)], format!("ot=th:8,{}", full[..31].join(","))),
            (&[&with_old(0)], format!("ot=th:8,{}", full[1..].join(","))),
        ] {
            assert_eq!(joined(headers, own, 512), text(&out), "{headers:?}");
        }
        assert_eq!(joined(&["a=1"], Some(("Ot", "1")), 512), Ok(Joined::Unchanged));
        assert_eq!(joined(&["a=1"], Some(("ot", "1,2")), 512), Ok(Joined::Unchanged));
        assert_eq!(joined(&["a"], own, 512), Err(Invalid::Syntax));
    }

    #[test]
    fn too_long_loses_whole_members() {
        let short = many(8, 63);
        // 8 × 63 + 7 commas = 511.
        let fits = short.join(",");
        assert_eq!(joined(&[&fits], None, 0), Ok(Joined::Unchanged));
        assert_eq!(joined(&[&format!("{fits} ")], None, 0), Ok(Joined::Unchanged));
        // White space counts while it is there, and goes first.
        assert_eq!(joined(&[&format!("{fits}  ")], None, 0), text(&fits));
        // Then from the right.
        assert_eq!(joined(&[&fits, "z=1"], None, 0), text(&fits));
        assert_eq!(joined(&[&fits, "z=1"], None, 600), text(&format!("{fits},z=1")));
        assert_eq!(joined(&[&fits], Some(("ot", "th:8")), 0), text(&format!("ot=th:8,{}", short[..7].join(","))));
        // Over 128 characters go before that, the right-most of them first.
        let long = many(4, 129);
        assert_eq!(
            joined(&["a=1", &long.join(","), "z=1"], None, 512),
            text(&format!("a=1,{},z=1", long[..3].join(",")))
        );
        let at_limit = many(4, 128);
        assert_eq!(joined(&[&at_limit.join(",")], None, 512), text(&at_limit[..3].join(",")));
        // A lone member longer than what may go on.
        assert_eq!(joined(&[&format!("{}={}", "k".repeat(256), "v".repeat(256))], None, 512), Ok(Joined::Empty));
    }

    proptest! {
        #[test]
        fn joins_what_was_split(
            headers in vec(vec("[a-z0-9][a-z0-9_*/@-]{0,8}= {0,2}[!-+./-<>-~]{1,8}", 0..6), 2..6),
            gap in "[ \t]{0,2}(,[ \t]{0,2}){1,2}",
        ) {
            let values: Vec<String> = headers.iter().map(|members| members.join(&gap)).collect();
            let joined = join(values.iter().map(String::as_bytes), None, usize::MAX);
            prop_assert_eq!(joined, Ok(match headers.concat().join(",") {
                text if text.is_empty() => Joined::Empty,
                text => Joined::Text(text.into_bytes()),
            }));
        }

        #[test]
        fn what_it_writes_is_valid_and_short_enough(
            values in vec("([ab]{1,3}=[x ]{1,200}y[ \t]?,){0,6}", 0..6),
            limit in 0..2000_usize,
            own: bool,
        ) {
            let own = own.then_some(("ab", &b"own"[..]));
            if let Ok(Joined::Text(text)) = join(values.iter().map(String::as_bytes), own, limit) {
                prop_assert!(text.len() <= limit.max(512));
                prop_assert_eq!(join([text.as_slice()].into_iter(), None, limit), Ok(Joined::Unchanged));
                prop_assert!(own.is_none() || text.starts_with(b"ab=own"));
            }
        }

        #[test]
        fn any_bytes(values: Vec<Vec<u8>>, value: Vec<u8>, limit: usize) {
            let _ = join(values.iter().map(Vec::as_slice), Some(("k", &value)), limit);
        }
    }
}
