//! What stands before a value and says what it is.

use crate::view::View;

/// How far before a value a word may stand.
const WINDOW: usize = 48;

/// Words that say what a value is.
pub(crate) struct Words {
    all: &'static [&'static [u8]],
    /// With what they begin: a set in which a byte is its lowest bits.
    firsts: u64,
    /// Last parts of names in which the words say nothing.
    but: &'static [&'static [u8]],
}

impl Words {
    pub(crate) const fn of(all: &'static [&'static [u8]]) -> Self {
        let (mut firsts, mut rest) = (0, all);
        while let [word, others @ ..] = rest {
            if let [first, ..] = word {
                firsts |= bit(*first);
            }
            rest = others;
        }
        Self { all, firsts, but: &[] }
    }

    /// The words say nothing in a name whose last part is one of these, in lower case: `phone_id`, `phoneId`, `phone-id`.
    pub(crate) const fn but(self, last: &'static [&'static [u8]]) -> Self {
        Self { but: last, ..self }
    }
}

const fn bit(byte: u8) -> u64 {
    1 << (byte & 63)
}

/// Whether one of the words stands before a position: in a name (`user_phone`, `userPhone`), or in a sentence. Words
/// are lower case, with `_` between the parts of one; in the text, letters may be of either case.
pub(crate) fn has(view: &View<'_>, position: usize, words: &Words) -> bool {
    let mut copy = [0_u8; WINDOW];
    has_word(own(view.last(position, &mut copy)), words)
}

/// What of the text before a value is about it: with a name and its sign before it, as in `phone=1, id=2`, nothing that
/// is before the pair.
fn own(window: &[u8]) -> &[u8] {
    let Some(sign) = window.iter().rposition(|byte| matches!(byte, b':' | b'=')) else { return window };
    let ends = |byte: &u8| matches!(byte, b',' | b';' | b'&' | b'|' | b'{' | b'}' | b']' | b'\r' | b'\n');
    let before = window.get(..sign).unwrap_or(&[]);
    before.iter().rposition(ends).and_then(|end| window.get(end.saturating_add(1)..)).unwrap_or(window)
}

/// Whether there is nothing but it in the text, in which it may stand after a name and `=`, or in quotes.
pub(crate) fn is_whole(view: &View<'_>, start: usize, end: usize) -> bool {
    let quote = view.before(start);
    if matches!(quote, b'"' | b'\'') {
        return view.at(end) == quote;
    }
    if end != view.end() || view.is_cut() {
        return false;
    }
    // There are zeros before a text. A name of which no beginning is known may be anything.
    let named = |at: &usize| view.at(*at).is_ascii_alphanumeric() || matches!(view.at(*at), b'_' | b'-' | b'.');
    let Some(name) = start.checked_sub(1).filter(|_| quote == b'=') else { return quote == 0 };
    let length = (name.saturating_sub(WINDOW)..name).rev().take_while(named).count();
    length > 0 && view.before(name.saturating_sub(length)) == 0
}

/// Whether there is no word at all before a position: quickly said, and most often so where there are many numbers.
pub(crate) fn is_bare(view: &View<'_>, position: usize) -> bool {
    let mut copy = [0_u8; WINDOW];
    // All of them, so that the processor takes many at once.
    !view.last(position, &mut copy).iter().fold(false, |word, byte| word | (*byte >= b'A'))
}

fn has_word(window: &[u8], words: &Words) -> bool {
    window.iter().enumerate().any(|(at, byte)| {
        let first = byte.to_ascii_lowercase();
        // Most letters begin no word.
        if words.firsts & bit(first) == 0 {
            return false;
        }
        let before = at.checked_sub(1).and_then(|at| window.get(at)).copied().unwrap_or(0);
        // A mask's name says nothing of what follows it. Words of other scripts have no spaces around.
        let begins = if byte.is_ascii() {
            byte.is_ascii_alphabetic()
                && before != b'['
                && (!before.is_ascii_alphabetic() || (before.is_ascii_lowercase() && byte.is_ascii_uppercase()))
        } else {
            true
        };
        begins
            && words.all.iter().any(|word| word.first() == Some(&first) && says(window, at, word))
            && (words.but.is_empty() || !is_one(last_part(name(window.get(at..).unwrap_or(&[]))), words.but))
    })
}

fn is_one(part: &[u8], of: &[&[u8]]) -> bool {
    of.iter().any(|one| one.eq_ignore_ascii_case(part))
}

/// The name that a text begins with.
fn name(text: &[u8]) -> &[u8] {
    let length = text.iter().take_while(|byte| byte.is_ascii_alphanumeric() || is_joint(**byte)).count();
    text.get(..length).unwrap_or(text)
}

/// The last of the words that a name is made of: of `order_id`, `orderId`, `order-id` and `orderID`.
fn last_part(name: &[u8]) -> &[u8] {
    let mut from = name.len();
    while let Some(at) = from.checked_sub(1)
        && let Some(byte) = name.get(at)
        && !is_joint(*byte)
    {
        from = at;
        let before = at.checked_sub(1).and_then(|at| name.get(at));
        if byte.is_ascii_uppercase() && before.is_some_and(u8::is_ascii_lowercase) {
            break;
        }
    }
    name.get(from..).unwrap_or(&[])
}

fn is_joint(byte: u8) -> bool {
    matches!(byte, b'_' | b'-' | b'.')
}

/// Whether a word stands there and ends there.
fn says(window: &[u8], at: usize, word: &[u8]) -> bool {
    let Some((last, length)) = written(window.get(at..).unwrap_or(&[]), word) else { return false };
    let after = window.get(at.saturating_add(length)).copied().unwrap_or(0);
    let ends = !after.is_ascii_alphabetic() || (last.is_ascii_lowercase() && after.is_ascii_uppercase());
    !last.is_ascii() || ends || (word.len() > 4 && !word.ends_with(b"_no"))
}

/// How long a word is that a text begins with, and its last byte. Where the word has a `_`, the text may have any sign
/// that joins two words, or none.
fn written(text: &[u8], word: &[u8]) -> Option<(u8, usize)> {
    let (mut length, mut last) = (0_usize, 0);
    for letter in word {
        let byte = text.get(length).copied()?;
        if *letter == b'_' {
            length = length.saturating_add(usize::from(matches!(byte, b'_' | b'-' | b' ' | b'.')));
            continue;
        }
        if !byte.eq_ignore_ascii_case(letter) {
            return None;
        }
        (length, last) = (length.saturating_add(1), byte);
    }
    Some((last, length))
}

/// Names of what is a number and nobody's secret.
const OTHERS: Words = Words::of(&[
    b"order",
    b"invoice",
    b"trace",
    b"span",
    b"spanid",
    b"parent",
    b"b3",
    b"nonce",
    b"cursor",
    b"offset",
    b"hash",
    b"request",
    b"req",
    b"timestamp",
    b"time",
    b"ts",
    b"transaction",
    b"txn",
    b"tracking",
    b"sku",
    b"product",
    b"item",
    b"session",
    b"correlation",
    b"event",
    b"message",
    b"version",
    b"build",
    b"seq",
]);

/// Whether the name right before a value, as in `order_id=` or `"order": "`, says that it is something else.
pub(crate) fn labels_other(view: &View<'_>, position: usize) -> bool {
    let mut copy = [0; WINDOW];
    has_word(label(view, position, &mut copy).0, &OTHERS)
}

/// Whether the name right before a value, in a path the segment, ends with one of these parts, as `user_id` and `userId`
/// do with `id`, and none of the words is in it. In a sentence, none may be before it either.
pub(crate) fn is_named(view: &View<'_>, position: usize, last: &[&[u8]], words: &Words) -> bool {
    let mut copy = [0; WINDOW];
    let (name, is_sure) = if view.before(position) == b'/' {
        (name_before(view, position.saturating_sub(1), &mut copy), true)
    } else {
        label(view, position, &mut copy)
    };
    is_one(last_part(name), last) && !has_word(name, words) && (is_sure || !has(view, position, words))
}

/// The name right before a value, and whether more than a space joins them.
fn label<'b>(view: &View<'_>, position: usize, copy: &'b mut [u8; WINDOW]) -> (&'b [u8], bool) {
    let mut at = position;
    let (mut joints, mut is_sure) = (0_u8, false);
    while joints < 6 && matches!(view.before(at), b' ' | b'"' | b'\'' | b':' | b'=' | b'#' | b'\\') {
        is_sure |= !matches!(view.before(at), b' ' | b'#');
        at = at.saturating_sub(1);
        joints = joints.saturating_add(1);
    }
    (name_before(view, at, copy), is_sure)
}

/// The name that ends at a position.
fn name_before<'b>(view: &View<'_>, end: usize, copy: &'b mut [u8; WINDOW]) -> &'b [u8] {
    let mut at = end;
    while at > end.saturating_sub(WINDOW) && (view.word_before(at) || matches!(view.before(at), b'-' | b'.')) {
        at = at.saturating_sub(1);
    }
    copy.iter_mut().zip(at..end).for_each(|(byte, index)| *byte = view.at(index));
    copy.get(..end.saturating_sub(at)).unwrap_or(&[])
}
