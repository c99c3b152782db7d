//! E-mail addresses: RFC 5322's local parts, quoted ones too, and a domain whose last label is a top-level one by its
//! form; both may have letters of any script (RFC 6531).
//!
//! URLs and logs put signs before an address that could be of its local part (`/ = & ? # { |`). They are where it is
//! in angle brackets; an `=` also is after another one or after a `+`, as in the addresses that mailing lists return to.

use super::{Found, Look};
use crate::view::{BEHIND, View, is_word};

/// RFC 5321: at most 64 bytes before the `@`, 255 after it, 63 in a label.
const LOCAL: usize = BEHIND;
const DOMAIN: usize = 255;
const LABEL: usize = 63;

/// Last labels of what is no address but a file's name with a density or version in it, such as `logo@2x.png`.
const FILES: [&[u8]; 20] = [
    b"bmp", b"css", b"gif", b"htm", b"html", b"ico", b"jpeg", b"jpg", b"js", b"json", b"jsx", b"mjs", b"pdf", b"php",
    b"png", b"svg", b"tsx", b"txt", b"webp", b"xml",
];

/// Names of what has an address for its value.
const NAMES: [&[u8]; 12] =
    [b"mail", b"email", b"to", b"from", b"cc", b"bcc", b"user", b"username", b"login", b"sender", b"rcpt", b"contact"];

fn is_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-' | b'\'' | b'!' | b'$' | b'^' | b'~')
}

/// What RFC 5322 allows besides.
fn is_rare(byte: u8) -> bool {
    matches!(byte, b'/' | b'=' | b'&' | b'?' | b'#' | b'{' | b'}' | b'|' | b'`' | b'*')
}

fn is_domain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')
}

/// The length of the letter of another script that ends before a position, 0 if there is none.
fn letter_before(view: &View<'_>, at: usize) -> usize {
    let length = (1_usize..=4).find(|back| !matches!(view.at(at.saturating_sub(*back)), 0x80..=0xBF)).unwrap_or(0);
    if length > 1 && letter(view, at.saturating_sub(length)) == length { length } else { 0 }
}

/// The length of the letter of another script at a position, 0 if there is none: signs and spaces are none.
fn letter(view: &View<'_>, at: usize) -> usize {
    let byte = |ahead: usize| view.at(at.saturating_add(ahead));
    let (length, is_letter) = match (byte(0), byte(1), byte(2)) {
        // `×` and `÷` are two of few signs that have two bytes and are not among the first.
        (0xC3, second, _) => (2, !matches!(second, 0x97 | 0xB7)),
        (0xC4..=0xDF, ..) => (2, true),
        // Dashes, quotes, arrows and the like; those of Chinese and Japanese; the wide forms of ASCII's.
        (0xE2, ..) | (0xE3, 0x80, 0x80..=0x84 | 0x86..=0xBF) | (0xEF, 0xB8..=0xBF, _) => (3, false),
        (0xE0..=0xEF, ..) => (3, true),
        (0xF0, 0x9F, _) => (4, false),
        (0xF0..=0xF4, ..) => (4, true),
        _ => return 0,
    };
    let whole = (1..length).all(|ahead| matches!(byte(ahead), 0x80..=0xBF));
    if is_letter && whole { length } else { 0 }
}

pub(super) fn find(view: &View<'_>) -> Look {
    address(view, view.anchor()).into()
}

/// The address that a value found at `start` is a part of.
pub(crate) fn covering(view: &View<'_>, start: usize) -> Option<Found> {
    let end = view.skip(start, |byte| is_local(byte) || byte >= 0x80);
    if view.at(end) != b'@' || end.saturating_sub(start) > LOCAL {
        return None;
    }
    address(view, end).filter(|address| address.start <= start)
}

fn address(view: &View<'_>, at: usize) -> Option<Found> {
    if view.at(at) != b'@' {
        return None;
    }
    let after = at.saturating_add(1);
    let end = if view.at(after) == b'[' { literal(view, after)? } else { domain(view, after)? };
    let start = if view.before(at) == b'"' { quoted(view, at)? } else { local(view, at, end)? };
    Some(Found::new(start.max(view.first()), end))
}

/// Where a local part begins; also in what is settled, though only what is not can be covered: a text that replaces a
/// value may join two parts.
fn local(view: &View<'_>, at: usize, end: usize) -> Option<usize> {
    let earliest = at.saturating_sub(LOCAL);
    // Words of a script without spaces may stand right before an address, unless it is itself of such.
    let wide = letter_before(view, at) > 2 || view.slice(at, end).iter().any(|byte| *byte >= 0xE0);
    let back = |from: usize, rare: bool| {
        let mut start = from;
        loop {
            let before = view.before(start);
            let step = match before {
                0x80.. => letter_before(view, start),
                _ => usize::from(is_local(before) || (rare && is_rare(before))),
            };
            let narrow = before >= 0x80 && step > 2 && !wide;
            let next = start.saturating_sub(step);
            if step == 0 || narrow || next < earliest {
                return start;
            }
            start = next;
        }
    };
    let mut start = back(at, false);
    // Of a longer one, what begins a word.
    let long = start.saturating_sub(4) < earliest && (view.word_before(start) || view.before(start) >= 0x80);
    while long && start < at && (view.word_before(start) || matches!(view.at(start), 0x80..=0xBF)) {
        start = start.saturating_add(1);
    }
    if start < at && !long {
        start = before_equals(view, start, earliest, back(start, true), end);
    }
    while start < at && matches!(view.at(start), b'.' | b'-' | b'\'' | b'%' | b'!' | b'$' | b'^' | b'~') {
        start = start.saturating_add(1);
    }
    // What was kept of a value that was masked in part.
    let rest = (1_usize..=3).all(|back| view.at(start.saturating_sub(back)) == b'*');
    (start < at && view.before(at) != b'.' && !rest).then_some(start)
}

/// Where a local part begins of which the signs before `start` may be a part, down to `all`.
fn before_equals(view: &View<'_>, start: usize, earliest: usize, all: usize, end: usize) -> usize {
    if all < start && view.before(all) == b'<' && view.at(end) == b'>' {
        return all;
    }
    let piece = |end: usize| {
        let mut start = end;
        while start > earliest && is_local(view.before(start)) {
            start = start.saturating_sub(1);
        }
        start
    };
    let mut start = start;
    while view.before(start) == b'=' && start.saturating_sub(1) > earliest {
        let equals = start.saturating_sub(1);
        let before = piece(equals);
        let is_name = NAMES.iter().any(|name| {
            equals.saturating_sub(before) == name.len()
                && (before..equals).zip(*name).all(|(at, letter)| view.at(at).eq_ignore_ascii_case(letter))
        });
        let has_plus = (before..equals).any(|at| view.at(at) == b'+');
        if is_name || before == equals || !(has_plus || view.before(before) == b'=') {
            break;
        }
        start = before;
    }
    start
}

/// Where a local part in quotes begins.
fn quoted(view: &View<'_>, at: usize) -> Option<usize> {
    let close = at.checked_sub(1)?;
    let mut start = close;
    while start > at.saturating_sub(LOCAL) {
        start = start.checked_sub(1)?;
        match view.at(start) {
            b'"' if view.before(start) == b'\\' => {}
            b'"' => return (start.saturating_add(1) < close && !view.word_before(start)).then_some(start),
            byte if byte < b' ' => return None,
            _ => {}
        }
    }
    None
}

/// The end of an address of a host in brackets.
fn literal(view: &View<'_>, start: usize) -> Option<usize> {
    let inside = start.saturating_add(1);
    let end = view.skip(inside, |byte| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':' | b'I' | b'P' | b'v'));
    let text = str::from_utf8(view.slice(inside, end)).ok()?;
    let address = match text.strip_prefix("IPv6:") {
        Some(six) => six.parse::<core::net::Ipv6Addr>().is_ok(),
        None => text.parse::<core::net::Ipv4Addr>().is_ok(),
    };
    (address && view.at(end) == b']').then(|| end.saturating_add(1))
}

/// The end of the longest domain that begins here.
fn domain(view: &View<'_>, start: usize) -> Option<usize> {
    let (mut end, mut label, mut labels) = (None, start, 0_u8);
    let most = start.saturating_add(DOMAIN);
    while label < most {
        let mut next = label;
        let mut ascii = true;
        loop {
            let step = match view.at(next) {
                b'.' => 0,
                0x80.. => letter(view, next),
                byte => usize::from(is_domain(byte)),
            };
            ascii &= step < 2;
            if step == 0 || next > most {
                break;
            }
            next = next.saturating_add(step);
        }
        // The first is none alone.
        if labels == 0 && view.at(next) != b'.' {
            return None;
        }
        let text = view.slice(label, next);
        if text.is_empty() || text.starts_with(b"-") {
            break;
        }
        // What follows a dash, or is of another script, need not belong to it.
        let letters = view.skip(label, |byte| byte.is_ascii_alphabetic());
        let others = view.skip(label, |byte| byte >= 0x80).min(next);
        for top in [letters, others, next] {
            let fits = top.saturating_sub(label) <= LABEL && top <= most;
            let ends = !is_word(view.at(top)) || view.before(top) >= 0x80;
            if labels > 0 && fits && ends && is_top(view.slice(label, top)) {
                end = Some(top);
            }
        }
        labels = labels.saturating_add(1);
        if view.at(next) != b'.' || text.len() > if ascii { LABEL } else { 3 * LABEL } || next > most {
            break;
        }
        label = next.saturating_add(1);
    }
    end
}

/// Two letters at least, of ASCII or of other scripts, or an internationalised one in its ASCII form.
fn is_top(label: &[u8]) -> bool {
    let letters = label.iter().all(u8::is_ascii_alphabetic) && (2..=24).contains(&label.len());
    let international = label.len() > 4 && label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"xn--"));
    let other = label.len() >= 4 && !label.iter().any(|byte| byte.is_ascii());
    (letters && !FILES.iter().any(|file| file.eq_ignore_ascii_case(label))) || international || other
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};

    #[test]
    fn addresses() {
        found(
            "email",
            &[
                ("<ann@example.com>", "<[email]>"),
                ("to=ann.b+tag@mail.example.co.uk&x", "to=[email]&x"),
                ("\"ann_b@example.org\"", "\"[email]\""),
                ("Ann@EXAMPLE.COM.", "[email]."),
                ("邮箱ann@example.cn，", "邮箱[email]，"),
                ("a@b.co,c@d.io", "[email],[email]"),
                ("https://user:pw@host.example.com/", "https://user:[email]/"),
                ("ann@example.com-x, ann@a-b.example-c.org", "[email]-x, [email]"),
                ("ann@example.com.7", "[email].7"),
                ("ann@xn--bcher-kva.example", "[email]"),
                ("x@y.xn--p1ai", "[email]"),
                ("4111111111111111@example.com", "[email]"),
                ("..ann@example.com", "..[email]"),
                // All that RFC 5322 allows, where nothing else may be meant.
                ("!ann$b^c~d@example.com", "![email]"),
                ("<first=last@example.com>", "<[email]>"),
                ("<a/b{c}|d?e#f&g`h*i@example.com>", "<[email]>"),
                ("bounce+7-ann=example.com@lists.example.org", "[email]"),
                ("SRS0=aB3=TT=example.org=ann@example.net", "SRS0=[email]"),
                ("first=last@example.com", "first=[email]"),
                ("mail=ann=example.org@example.com", "mail=[email]"),
                ("note=mail=ann@example.com", "note=mail=[email]"),
                ("\"ann b\"@example.com", "[email]"),
                ("x \"a\\\"@b\"@example.com", "x [email]"),
                ("ann@[203.0.113.7], ann@[IPv6:2001:db8::1]", "[email], [email]"),
                // Other scripts.
                ("用户@例子.公司", "[email]"),
                ("用户7@例子.公司，", "[email]，"),
                ("ann@bücher.example", "[email]"),
                ("jürgen.groß@example.de", "[email]"),
                ("«иван@пример.рф»", "«[email]»"),
                ("请写信给ann@example.com谢谢", "请写信给[email]谢谢"),
                ("（用户@例子.公司）", "（[email]）"),
                ("名ann@пример.рф", "名[email]"),
                ("δοκιμή@παράδειγμα.δοκιμή", "[email]"),
                ("संपर्क@उदाहरण.भारत", "[email]"),
                (
                    "ann@example.comxoxp-1234567890-1234567890-1234567890-1234567890-1234567890-12345",
                    "[email]-1234567890-1234567890-1234567890-1234567890-1234567890-12345",
                ),
            ],
        );
    }

    #[test]
    fn no_addresses() {
        untouched(
            "email",
            &[
                "@example.com",
                "ann@",
                "ann@localhost",
                "ann@example.c",
                "logo@2x.png",
                "pkg@1.2.3",
                "a@@b.com@",
                "ann.@example.com",
                "ann@.com",
                "ann@-a.com",
                "@media print",
                "foo @ bar.com",
                "ann@ex_ample.com",
                "image@sha256:0123456789abcdef",
                "\"chat\"@en",
                "ann@[local.host]",
                "@用户 你好",
                "小明@小红",
                "ann@例子",
                "ann@x.。",
            ],
        );
    }
}
