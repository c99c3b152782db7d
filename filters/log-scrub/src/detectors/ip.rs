//! IP addresses: version 4 in four octets, version 6 as in RFC 4291 with a version 4 address at the end or without.

use super::{Found, Look};
use crate::context::{self, Words};
use crate::view::{View, is_word};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use kit::prelude::*;

/// The longest form in text, `ffff:` six times and an address of version 4.
const LONGEST: usize = 45;

/// What has versions that are written as addresses are.
const WORDS: Words = Words::of(&[b"version", b"firmware"]);

pub(super) fn find(view: &View<'_>) -> Look {
    if view.at(view.anchor().saturating_add(1)) == b'.' { four(view) } else { six(view) }
}

fn four(view: &View<'_>) -> Look {
    let start = view.skip_back(view.anchor().saturating_add(1), |byte| byte.is_ascii_digit());
    let end = view.skip(start, |byte| byte.is_ascii_digit() || byte == b'.');
    let no = Look::Until(end);
    let before = view.before(start);
    // A dot at the end belongs to the sentence.
    let end = if view.before(end) == b'.' { end.saturating_sub(1) } else { end };
    let Some(address) = read::<Ipv4Addr>(view.slice(start, end)) else { return no };
    let build = view.at(end) == b'-' && is_word(view.at(end.saturating_add(1)));
    // After a colon it may be the end of a longer one.
    let joined = before == b':' && {
        let from = view.skip_back(start, |byte| byte.is_ascii_hexdigit() || byte == b':');
        view.slice(from, start).iter().filter(|byte| **byte == b':').count() > 1 && !view.word_before(from)
    };
    if is_word(before) || before == b'.' || joined || is_word(view.at(end)) || build {
        return no;
    }
    // `Chrome/120.0.0.0`
    let product = before == b'/' && view.before(start.saturating_sub(1)).is_ascii_alphanumeric();
    let [_, rest @ ..] = address.octets();
    if (product && rest == [0; 3]) || context::has(view, start, &WORDS) {
        return no;
    }
    Look::Found(Found::new(start, end))
}

fn six(view: &View<'_>) -> Look {
    let in_six = |byte: u8| byte.is_ascii_hexdigit() || byte == b':';
    let start = view.skip_back(view.anchor().saturating_add(1), in_six);
    let plain = view.skip(start, in_six);
    let dotted = view.skip(plain, |byte| byte.is_ascii_digit() || byte == b'.');
    let fraction = view.before(start) == b'.' && view.before(start.saturating_sub(1)).is_ascii_digit();
    let found = if is_word(view.before(start)) || fraction {
        None
    } else {
        // Dots and colons at the end belong to the sentence.
        let dotted = if view.before(dotted) == b'.' { dotted.saturating_sub(1) } else { dotted };
        let one = if view.before(plain) == b':' && !view.slice(start, plain).ends_with(b"::") { 1 } else { 0 };
        // And what follows a colon may be a word.
        let part = view.slice(start, plain).iter().rev().take_while(|byte| **byte != b':').count();
        let word = plain.saturating_sub(part).saturating_sub(1);
        // With digits after a dot, it ends with an address of version 4, or is none.
        let most = if dotted > plain.saturating_add(1) { 1 } else { 3 };
        let ends = [dotted, plain.saturating_sub(one), word];
        ends.into_iter().take(most).find(|end| is_six(view, start, *end))
    };
    // What follows the last colon may be one of version 4.
    found.map_or(Look::Until(plain.saturating_sub(1)), |end| Look::Found(Found::new(start, end)))
}

fn is_six(view: &View<'_>, start: usize, end: usize) -> bool {
    let text = view.slice(start, end);
    // An address without its last part is a network's; in other text, colons stand between names.
    let open = text.ends_with(b"::") && view.at(end) != b'/';
    // Eight octets are a hardware address.
    let hardware = text.len() == 23 && text.split(|byte| *byte == b':').all(|octet| octet.len() == 2);
    let digit = text.iter().any(u8::is_ascii_digit);
    digit && !open && !hardware && !is_word(view.at(end)) && read::<Ipv6Addr>(text).is_some()
}

fn read<A: core::str::FromStr>(text: &[u8]) -> Option<A> {
    if text.len() > LONGEST { None } else { str::from_utf8(text).ok()?.parse().ok() }
}

/// Writes the network of an address: its last octet 0, or its first 64 bits.
pub(crate) fn network(address: &[u8], out: &mut Vec<u8>) {
    let four = |address: Ipv4Addr| {
        let [a, b, c, _] = address.octets();
        format!("{a}.{b}.{c}.0")
    };
    let text = match read::<IpAddr>(address) {
        Some(IpAddr::V4(address)) => four(address),
        Some(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(mapped) => format!("::ffff:{}", four(mapped)),
            None => {
                let [a, b, c, d, ..] = address.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::")
            }
        },
        None => String::from("[ip]"),
    };
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::network;
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn addresses() {
        found(
            "ip",
            &[
                ("203.0.113.7", "[ip]"),
                ("from 203.0.113.7:8080.", "from [ip]:8080."),
                ("203.0.113.7.", "[ip]."),
                ("http://203.0.113.7/x", "http://[ip]/x"),
                ("2001:db8::1", "[ip]"),
                ("[2001:db8:0:1:2:3:4:5]:443", "[[ip]]:443"),
                ("::ffff:203.0.113.7", "[ip]"),
                ("client=::1,", "client=[ip],"),
                ("fe80::1%eth0", "[ip]%eth0"),
                ("203.0.113.7,198.51.100.2", "[ip],[ip]"),
                ("addr:203.0.113.7", "addr:[ip]"),
                ("source:203.0.113.7:80", "source:[ip]:80"),
                ("[::ffff:203.0.113.7]:443", "[[ip]]:443"),
                ("2001:0DB8:0000:0000:0000:0000:0000:0001, 64:ff9b::203.0.113.7", "[ip], [ip]"),
            ],
        );
    }

    #[test]
    fn no_addresses() {
        untouched(
            "ip",
            &[
                "1.2.3",
                "1.2.3.4.5",
                "::ffff:256.0.0.1",
                "2001:db8::203.0.113",
                "12:34:56:203.0.113.7",
                "256.1.1.1",
                "01.2.3.4",
                "v1.2.3.4",
                "1.2.3.4-beta",
                "version: 1.2.3.4",
                "Chrome/120.0.0.0",
                "12:34:56",
                "00:1a:2b:3c:4d:5e",
                "02:00:5e:10:00:00:00:01",
                "a::b",
                "std::f32",
                "::",
                "1:2:3",
                "2024-01-02T03:04:05.678",
                "48.8566,2.3522",
            ],
        );
    }

    #[test]
    fn networks() {
        for (address, expected) in [
            ("203.0.113.7", "203.0.113.0"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::ffff:203.0.113.7", "::ffff:203.0.113.0"),
            ("::1", "0:0:0:0::"),
        ] {
            let (mut once, mut twice) = (Vec::new(), Vec::new());
            network(address.as_bytes(), &mut once);
            assert_eq!(once, expected.as_bytes());
            network(&once, &mut twice);
            assert_eq!(once, twice);
        }
    }
}
