//! Numbers as people write them: groups of digits with one space or dash between.

use crate::context;
use crate::detectors::{self, Find, Found};
use crate::view::{View, is_word};

/// Most groups that are looked at together; the longest value, an IBAN in print, has fewer.
const GROUPS: usize = 16;

/// A longer row of groups is taken in pieces, each with this much of the one before.
const LONGEST: usize = 64;

/// The longest hex group of an id, as in a `traceparent`.
const HEX: usize = 32;

/// Digits in a row: `start..end`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Group {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Its place in the cluster.
    place: usize,
}

impl Group {
    pub(crate) fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }
}

/// Groups in a row.
pub(crate) struct Cluster {
    groups: [Group; GROUPS],
    count: usize,
    /// Whether more groups follow.
    cut: bool,
    /// Whether there is no word before, which then is so for each of the groups.
    bare: bool,
}

impl Cluster {
    /// The groups around the one that begins here, from `tried` on.
    fn read(view: &View<'_>, group: usize, tried: usize) -> Self {
        let mut start = group;
        let earliest = view.first().max(start.saturating_sub(LONGEST / 2)).max(tried);
        while start > earliest {
            let end = start.saturating_sub(1);
            if !is_separator(view.at(end)) || !view.before(end).is_ascii_digit() {
                break;
            }
            start = view.skip_back(end, |byte| byte.is_ascii_digit());
        }
        let mut cluster =
            Self { groups: [Group::default(); GROUPS], count: 0, cut: true, bare: context::is_bare(view, start) };
        for (place, group) in cluster.groups.iter_mut().enumerate() {
            let end = view.skip(start, |byte| byte.is_ascii_digit());
            *group = Group { start, end, place };
            cluster.count = cluster.count.saturating_add(1);
            if !is_separator(view.at(end)) || !view.at(end.saturating_add(1)).is_ascii_digit() {
                cluster.cut = false;
                break;
            }
            start = end.saturating_add(1);
        }
        cluster
    }

    /// Whether there surely is no word before a group.
    pub(crate) fn is_bare(&self) -> bool {
        self.bare
    }

    /// How far from the beginning a group stands.
    pub(crate) fn depth(&self, group: Group) -> usize {
        self.groups().first().map_or(0, |first| group.start.saturating_sub(first.start))
    }

    pub(crate) fn groups(&self) -> &[Group] {
        self.groups.get(..self.count).unwrap_or(&[])
    }

    /// The groups from one on, as far as the same separator joins them.
    pub(crate) fn joined<'a>(&'a self, view: &'a View<'_>, from: Group) -> impl Iterator<Item = Group> + 'a {
        let mut separator = None;
        let groups = self.groups().get(from.place..).unwrap_or(&[]);
        groups.iter().copied().take_while(move |group| {
            group.place == from.place || *separator.get_or_insert(view.before(group.start)) == view.before(group.start)
        })
    }

    /// Where the next look is worth its time.
    fn until(&self) -> usize {
        let last = self.groups().last().copied().unwrap_or_default();
        if self.cut {
            // What begins in the second half may end beyond.
            self.groups.get(GROUPS / 2).map_or(last.end, |group| group.start)
        } else {
            last.end
        }
    }
}

/// The fewest digits of any value.
pub(crate) const FEWEST: usize = 7;

/// How far before an anchor digits that a value may have are looked for, and how far behind.
const AROUND: usize = 40;

/// Where digits and the signs that numbers are written with end, if too few digits are among them for any value that
/// [`stands_alone`]: those in the middle of a word count for nothing. Most ids and times are such. `joins` says whether
/// what is before the text may belong to them.
pub(crate) fn sparse(text: &[u8], anchor: usize, joins: bool) -> Option<usize> {
    let (before, after) = text.split_at_checked(anchor)?;
    let behind = before.iter().rev().take(AROUND).take_while(|byte| is_part(**byte)).count();
    let start = anchor.wrapping_sub(behind);
    if behind == AROUND || (joins && start == 0) {
        return None;
    }
    let ahead = after.iter().take(AROUND).take_while(|byte| is_part(**byte)).count();
    if ahead == AROUND {
        return None;
    }
    let end = anchor.wrapping_add(ahead);
    let mut part = text.get(start..end)?;
    let digits = |part: &[u8]| part.iter().filter(|byte| byte.is_ascii_digit()).count();
    if text.get(end).is_some_and(|byte| is_word(*byte) && !matches!(byte, b'x' | b'X')) {
        let group = part.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
        part = part.get(..part.len().wrapping_sub(group))?;
    }
    if before.get(start.wrapping_sub(1)).is_some_and(|byte| is_word(*byte)) {
        let group = part.iter().take_while(|byte| byte.is_ascii_digit()).count();
        part = part.get(group..)?;
    }
    // Milliseconds since 1970, or before: no card and no phone has so many digits and such a first one.
    let time = matches!(part, [b'0' | b'1', ..]) && (13..=14).contains(&part.len()) && digits(part) == part.len();
    (time || digits(part) < FEWEST).then_some(end)
}

/// Whether a number may have it in it.
pub(crate) fn is_part(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b' ' | b'-' | b'.' | b'(' | b')' | b'/' | b'+')
}

/// Whether a row of digits is no value nor a part of one: in the middle of a word, or alone and too short.
fn is_idle(view: &View<'_>, start: usize, end: usize) -> bool {
    let (before, after) = (view.before(start), view.at(end));
    let joined_before = is_separator(before) && view.before(start.saturating_sub(1)).is_ascii_digit();
    let joined_after = is_separator(after) && view.at(end.saturating_add(1)).is_ascii_digit();
    if joined_before || joined_after {
        return false;
    }
    // Phone numbers have more signs.
    let signs = matches!(before, b'+' | b'.' | b'(' | b')' | b'/') || matches!(after, b'.' | b'(' | b')' | b'/');
    let short = end.saturating_sub(start) < FEWEST && !signs;
    short || is_word(before) || (is_word(after) && !matches!(after, b'x' | b'X'))
}

/// Whether there are fewer digits than any value has, with what may stand between: prices and versions.
fn is_short(view: &View<'_>, start: usize) -> bool {
    let signs = |byte: &&u8| byte.is_ascii_digit() || matches!(byte, b' ' | b'-' | b'.' | b'(' | b')' | b'/');
    let text = view.slice(start, start.saturating_add(24).min(view.end()));
    text.iter().take_while(signs).filter(|byte| byte.is_ascii_digit()).count() < 7
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b' ' | b'-')
}

/// Whether a value may stand at `start..end`: it is no part of a longer word, of a number with a fraction, of a version
/// or of an id in hex groups, as UUIDs are.
pub(crate) fn stands_alone(view: &View<'_>, start: usize, end: usize) -> bool {
    let (before, after) = (view.before(start), view.at(end));
    if is_word(before) || is_word(after) {
        return false;
    }
    let dotted_before = before == b'.' && view.before(start.saturating_sub(1)).is_ascii_digit();
    let dotted_after = after == b'.' && view.at(end.saturating_add(1)).is_ascii_digit();
    let hex = |position: &usize| view.at(*position).is_ascii_hexdigit();
    let hex_before = before == b'-' && {
        let to = start.saturating_sub(1);
        let token = (to.saturating_sub(HEX)..to).rev().take_while(hex).count();
        token >= 4 && !view.word_before(to.saturating_sub(token))
    };
    let hex_after = after == b'-' && {
        let from = end.saturating_add(1);
        let token = (from..from.saturating_add(HEX)).take_while(hex).count();
        let end = from.saturating_add(token);
        // With a colon, it is an address.
        token >= 4 && !view.word_at(end) && view.at(end) != b':'
    };
    !(dotted_before || dotted_after || hex_before || hex_after)
}

/// What the best of the detectors finds among the groups at an anchor, of which nothing begins before `tried`; else
/// where the next look is worth its time.
pub(crate) fn find<'d>(
    view: &View<'_>,
    tried: usize,
    detectors: impl Iterator<Item = (usize, &'d Find)> + Clone,
) -> Result<(usize, Found), usize> {
    look(view, tried, detectors).map_err(|until| pass(view, until))
}

/// As [`find`], but of one cluster alone.
fn look<'d>(
    view: &View<'_>,
    tried: usize,
    detectors: impl Iterator<Item = (usize, &'d Find)> + Clone,
) -> Result<(usize, Found), usize> {
    let start = view.skip_back(view.anchor(), |byte| byte.is_ascii_digit());
    let end = view.skip(view.anchor(), |byte| byte.is_ascii_digit());
    if is_idle(view, start, end) || (end.saturating_sub(view.anchor()) < 3 && is_short(view, start)) {
        return Err(end);
    }
    let cluster = Cluster::read(view, start, tried);
    for group in cluster.groups() {
        let mut best: Option<(usize, Found)> = None;
        for (rule, find) in detectors.clone() {
            let Find::Digits(find) = find else { continue };
            let Some(found) = find(view, &cluster, *group) else { continue };
            let better = best.is_none_or(|(_, best)| (found.start, best.end) < (best.start, found.end));
            if better {
                best = Some((rule, found));
            }
        }
        if let Some(best) = best {
            return Ok(best);
        }
    }
    Err(cluster.until())
}

/// How far before a number its sign may be, with what may stand between.
const SIGN: usize = 13;

/// Where the next look is worth its time in a long row of groups: passes those that begin nothing, which is quickly said
/// where there is no word and no `+` before. It goes on where [`look`] would have gone on, cluster by cluster.
fn pass(view: &View<'_>, until: usize) -> usize {
    let joint = |at: usize| matches!(view.at(at), b' ' | b'-' | b'.') && view.at(at.saturating_add(1)).is_ascii_digit();
    let first = match view.at(until) {
        b'.' if joint(until) => until.saturating_add(1),
        b'0'..=b'9' if is_separator(view.before(until)) => until,
        _ => return until,
    };
    let of_row = |at: usize| view.at(at).is_ascii_digit() || matches!(view.at(at), b' ' | b'-' | b'.');
    if !(first.saturating_sub(SIGN)..first).all(of_row) || !context::is_bare(view, first) {
        return until;
    }
    let text = view.slice(first, view.end());
    // The beginnings of the last two clusters of half as many groups as are looked at together.
    let (mut cluster, mut half, mut place) = (0_usize, 0_usize, 0_usize);
    let (mut start, mut before) = (0_usize, 0_usize);
    let mut rest = text;
    loop {
        let length = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        let (group, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        let [sign @ (b' ' | b'-' | b'.'), b'0'..=b'9', ..] = after else { break };
        // What begins with three digits has two or four in the next group.
        if (before == 3 && matches!(length, 2 | 4)) || !begins_nothing(group, rest) {
            break;
        }
        before = if *sign == b'.' { 0 } else { length };
        start = start.saturating_add(length).saturating_add(1);
        rest = text.get(start..).unwrap_or(&[]);
        place = place.saturating_add(1);
        if *sign == b'.' {
            (cluster, half, place) = (start, start, 0);
        } else if place.is_multiple_of(GROUPS / 2) {
            if place >= GROUPS {
                cluster = half;
            }
            half = start;
        }
    }
    first.saturating_add(cluster)
}

/// Whether no value begins with a group that is joined to others, and that has no word and no sign before it.
fn begins_nothing(group: &[u8], row: &[u8]) -> bool {
    match (group.len(), group) {
        // With three digits, what follows was not such.
        (1 | 3 | 5..=7 | 9 | 10, _) => true,
        // Perhaps the country of a mobile number.
        (2, _) => !group.starts_with(b"8"),
        (4, b"0086") => false,
        (4 | 8, _) => !detectors::may_begin_card(row),
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::view::{BEHIND, Before};
    use kit::prelude::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn nothing_begins_where_digits_are_sparse(
            name in prop::sample::select(vec!["", "phone", "card", "ssn", "tel 12"]),
            parts in prop::collection::vec(prop_oneof![
                4 => "[0-9]{1,5}",
                1 => "[01][0-9]{11,14}",
                1 => prop::sample::select(vec!["4111", "1111", "123-45-6789", "+49", "555-1234", "(415) 555-2671", "2024-03-01T",
                    "13800138000", "1101051949123100", "X", "x", "abc", "phone ", "e1", "="]).prop_map(str::to_owned),
                3 => "[-+ ./()]{1,2}",
            ], 1..12),
        ) {
            let text = parts.concat().into_bytes();
            let before = Before::new(name.as_bytes());
            let finds = || detectors::ALL.iter().enumerate().map(|(rule, detector)| (rule, &detector.find));
            for at in 0..text.len() {
                if text[at..].len() < 3 || !text[at..at + 3].iter().all(u8::is_ascii_digit) {
                    continue;
                }
                let Some(end) = sparse(&text, at, before.joins()) else { continue };
                let finds = finds().filter(|(_, find)| matches!(find, Find::Digits(_)));
                if let Ok((_, found)) = find(&View::new(&before, &text, at), 0, finds) {
                    prop_assert!(found.start >= end + BEHIND, "{} at {at}, {}", text.escape_ascii(), found.start - BEHIND);
                }
            }
        }
    }

    /// All that is found, one after the other.
    fn all(
        text: &[u8],
        name: &str,
        find: impl Fn(&View<'_>, usize) -> Result<(usize, Found), usize>,
    ) -> Vec<[usize; 3]> {
        let (before, mut from, mut skip, mut found) = (Before::new(name.as_bytes()), 0, 0, Vec::new());
        while let Some((at, _)) = crate::anchors::next(text, from.max(skip), text.len(), crate::anchors::DIGITS) {
            from = at + 1;
            match find(&View::new(&before, text, at), skip + BEHIND) {
                Ok((rule, value)) => {
                    found.push([rule, value.start, value.end]);
                    (from, skip) = (from.max(value.end - BEHIND), 0);
                }
                Err(until) => skip = until - BEHIND,
            }
        }
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn a_row_of_groups_is_passed_as_one_by_one(
            name in prop::sample::select(vec!["", "phone", "card"]),
            lead in prop::sample::select(vec!["", "ssn ", "+49 ", "(", "+"]),
            same in "[0-9]{1,4}",
            sign in prop::sample::select(vec![" ", "-", "."]),
            parts in prop::collection::vec((prop_oneof![
                8 => Just(None),
                1 => "[0-9]{1,4}".prop_map(Some),
                1 => prop::sample::select(vec!["4111 1111 1111 1111", "4111-1111-1111-1111", "123-45-6789", "138-0013-8000",
                    "86 13800138000", "0086-138-0013-8000", "4111111111111111", "110105194912310020", "090-1234-5678", "5018 0000 0009",
                    "41111111 11111111", "37 8282", "3782 822463 10005", "a", "(415) 555-2671", "123.45.6789", "/", "2 2 "])
                    .prop_map(|text| Some(text.to_owned())),
            ], prop_oneof![20 => Just(None), 1 => prop::sample::select(vec![" ", "-", ".", "  "]).prop_map(Some)]), 1..400),
        ) {
            let mut text = lead.to_owned();
            for (part, other) in &parts {
                text += part.as_deref().unwrap_or(&same);
                text += other.unwrap_or(sign);
            }
            let finds = || detectors::ALL.iter().enumerate().map(|(rule, detector)| (rule, &detector.find));
            let finds = || finds().filter(|(_, find)| matches!(find, Find::Digits(_)));
            let expected = all(text.as_bytes(), name, |view, tried| look(view, tried, finds()));
            prop_assert_eq!(all(text.as_bytes(), name, |view, tried| find(view, tried, finds())), expected, "{}", text);
        }
    }

    #[test]
    fn a_card_is_found_however_long_the_row_before_is() {
        let finds = || detectors::ALL.iter().enumerate().map(|(rule, detector)| (rule, &detector.find));
        let finds = || finds().filter(|(_, find)| matches!(find, Find::Digits(_)));
        for count in 0..450 {
            let text = "1111 ".repeat(count) + "4111 1111 1111 1111";
            let found = all(text.as_bytes(), "", |view, tried| find(view, tried, finds()));
            assert_eq!(found.len(), 1, "{count}");
        }
    }

    #[test]
    fn ids_and_times_are_sparse() {
        for text in [
            "0f8fad5b-d9cb-469f-a165-70867728950e",
            "2024-03-01T12:34:56.789Z",
            "AB-123",
            "v1.234.5",
            "1234567890ab",
            "1700000000123",
        ] {
            let text = text.as_bytes();
            let mut at = 0;
            while let Some((next, _)) = crate::anchors::next(text, at, text.len(), crate::anchors::DIGITS) {
                at = sparse(text, next, false).expect("few digits");
            }
        }
        for text in ["4155552671", "+49 151 123", "123-45-6789", "11010519491231002X"] {
            assert_eq!(sparse(text.as_bytes(), text.find("1").unwrap(), false), None, "{text}");
        }
    }
}
