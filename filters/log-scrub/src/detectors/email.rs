//! E-mail addresses: the dot-atom form of RFC 5321 without the signs that URLs and logs put before an address
//! (`/ = & ? # { |`), and a domain whose last label is a top-level one by its form.

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

fn is_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-' | b'\'')
}

fn is_domain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')
}

pub(super) fn find(view: &View<'_>) -> Look {
    address(view, view.anchor()).into()
}

/// The address that a value found at `start` is a part of.
pub(crate) fn covering(view: &View<'_>, start: usize) -> Option<Found> {
    let end = view.skip(start, is_local);
    if view.at(end) != b'@' || end.saturating_sub(start) > LOCAL {
        return None;
    }
    address(view, end).filter(|address| address.start <= start)
}

fn address(view: &View<'_>, at: usize) -> Option<Found> {
    if view.at(at) != b'@' {
        return None;
    }
    // Also in what is settled, though only what is not can be covered: a text that replaces a value may join two parts.
    let local = (1..=LOCAL).take_while(|back| is_local(view.at(at.saturating_sub(*back)))).count();
    let mut start = at.saturating_sub(local);
    // Of a longer one, what begins a word.
    while local == LOCAL && start < at && view.word_before(start) {
        start = start.saturating_add(1);
    }
    while matches!(view.at(start), b'.' | b'-' | b'\'' | b'%') {
        start = start.saturating_add(1);
    }
    // What was kept of a value that was masked in part.
    let rest = (1_usize..=3).all(|back| view.at(start.saturating_sub(back)) == b'*');
    if start >= at || view.before(at) == b'.' || rest {
        return None;
    }
    domain(view, at.saturating_add(1)).map(|end| Found::new(start.max(view.first()), end))
}

/// The end of the longest domain that begins here.
fn domain(view: &View<'_>, start: usize) -> Option<usize> {
    let (mut end, mut label, mut labels) = (None, start, 0_u8);
    let most = start.saturating_add(DOMAIN);
    while label < most {
        let next = view.skip(label, |byte| is_domain(byte) && byte != b'.');
        let text = view.slice(label, next);
        if text.is_empty() || text.len() > LABEL || text.starts_with(b"-") || next > most {
            break;
        }
        // What follows a dash need not belong to it.
        let letters = view.skip(label, |byte| byte.is_ascii_alphabetic());
        for top in [letters, next] {
            if labels > 0 && is_top(view.slice(label, top)) && !is_word(view.at(top)) {
                end = Some(top);
            }
        }
        labels = labels.saturating_add(1);
        if view.at(next) != b'.' {
            break;
        }
        label = next.saturating_add(1);
    }
    end
}

/// Two letters at least, or an internationalised one in its ASCII form.
fn is_top(label: &[u8]) -> bool {
    let letters = label.iter().all(u8::is_ascii_alphabetic) && (2..=24).contains(&label.len());
    let international = label.len() > 4 && label.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"xn--"));
    (letters && !FILES.iter().any(|file| file.eq_ignore_ascii_case(label))) || international
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
            ],
        );
    }
}
