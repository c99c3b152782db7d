//! Tokens that begin with their issuer's mark.

use super::{Found, Look, Tail};
use crate::view::{View, is_word};

/// One form of token.
pub(crate) struct Form {
    /// How far after its beginning the anchor stands.
    pub(super) anchor: usize,
    /// What it may begin with.
    pub(super) prefixes: &'static [&'static [u8]],
    /// What follows.
    pub(super) such: fn(u8) -> bool,
    /// How many of those.
    pub(super) length: Length,
    /// What else is to hold of them.
    pub(super) fits: fn(&[u8]) -> bool,
}

impl Form {
    /// What stands where the anchor is.
    pub(super) fn heads(&self) -> impl Iterator<Item = u8> + '_ {
        self.prefixes.iter().filter_map(|prefix| prefix.get(self.anchor).copied())
    }
}

/// How long a token is, without its prefix.
pub(crate) enum Length {
    Exactly(usize),
    AtLeast(usize),
}

pub(super) fn find(view: &View<'_>, forms: &[Form]) -> Look {
    forms
        .iter()
        .find_map(|form| match token(view, form) {
            Look::Nothing => None,
            look => Some(look),
        })
        .unwrap_or(Look::Nothing)
}

fn token(view: &View<'_>, form: &Form) -> Look {
    let Some(start) = view.anchor().checked_sub(form.anchor).filter(|start| *start >= view.first()) else {
        return Look::Nothing;
    };
    let Some(prefix) = form.prefixes.iter().find(|prefix| view.starts(start, prefix)) else { return Look::Nothing };
    // A name may be joined to a token with `_`.
    if view.word_before(start) && view.before(start) != b'_' {
        return Look::Nothing;
    }
    let body = start.saturating_add(prefix.len());
    match form.length {
        Length::Exactly(length) => {
            let end = body.saturating_add(length);
            let whole = view.slice(body, end);
            let found = whole.len() == length
                && whole.iter().all(|byte| (form.such)(*byte))
                && !is_word(view.at(end))
                && is_varied(whole);
            found.then(|| Found::new(start, end)).into()
        }
        Length::AtLeast(least) => {
            let run = view.skip(body, form.such);
            // A private key may follow, and its dashes are none of a token's.
            let dashes = view.slice(body, run).array_windows::<6>().position(|six| six == b"-----B");
            let end = dashes.map_or(run, |dashes| body.saturating_add(dashes));
            let text = view.slice(body, end);
            if text.len() < least || !is_varied(text) || !(form.fits)(text) {
                return Look::Until(end);
            }
            let tail = if end == view.end() && view.is_cut() { Tail::Token } else { Tail::None };
            Look::Found(Found { start, end, tail })
        }
    }
}

/// Whether there are four different signs at least: `xxxxxxxx` stands for a token that somebody shall put there.
fn is_varied(text: &[u8]) -> bool {
    let mut seen = [0_u8; 4];
    let mut count = 0_usize;
    for byte in text {
        if seen.iter().take(count).any(|other| other == byte) {
            continue;
        }
        let Some(free) = seen.get_mut(count) else { return true };
        *free = *byte;
        count = count.saturating_add(1);
    }
    count == seen.len()
}

/// Nothing else.
pub(super) fn any(_: &[u8]) -> bool {
    true
}

pub(super) fn is_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
}

pub(super) fn is_alphanumeric_or_underscore(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

pub(super) fn is_base64url_or_dot(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

pub(super) fn is_alphanumeric_or_dash(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-'
}
