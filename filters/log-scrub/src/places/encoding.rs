//! Percent-encoding, in layers, and UTF-8 in parts.

use super::{Scan, settle};
use crate::Findings;
use alloc::borrow::Cow;
use kit::alloc;
use kit::prelude::*;

/// A layer of encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layer {
    /// `%41`.
    Percent,
    /// `%41`, and `+` for a space.
    Plus,
}

/// How a kind of text may have been encoded.
#[derive(Clone, Copy)]
pub(super) struct Code {
    /// The way it is meant.
    usual: Layer,
    /// Signs that stay as they are when it is encoded, but for letters, digits and `-._~[]*`.
    signs: &'static [u8],
}

/// The ways to read a text, each from the outer layer to the inner one. All of them are looked at: a `+` may be a
/// space where it should not, and none where it should.
const READINGS: [&[Layer]; 4] =
    [&[Layer::Percent], &[Layer::Plus], &[Layer::Percent, Layer::Percent], &[Layer::Percent, Layer::Plus]];

/// Segments of paths, and values of cookies.
pub(super) const SEGMENT: Code = Code { usual: Layer::Percent, signs: b"!$'()+:@<>" };

/// Before the path of a URL.
pub(super) const AUTHORITY: Code = Code { usual: Layer::Percent, signs: b"!$'()+:<>" };

/// Names and values of queries and forms.
pub(super) const QUERY: Code = Code { usual: Layer::Plus, signs: b"!$'()+,/:@<>" };

impl Code {
    /// Cleans a text in every reading, the one in which most is found first; none if there was nothing to find.
    pub(super) fn clean(self, scan: Scan<'_>, name: &str, raw: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
        settle(raw, findings, |raw, findings| {
            let mut clean: Option<Vec<u8>> = None;
            for layers in readings(scan, name, raw) {
                let Some(text) = read(layers, clean.as_deref().unwrap_or(raw)) else { continue };
                if let Some(text) = scan.value(name, &text, findings) {
                    clean = Some(layers.iter().rev().fold(text, |text, layer| self.encode(*layer, &text)));
                }
            }
            clean
        })
    }

    /// The text as it is meant.
    pub(super) fn decoded(self, raw: &[u8]) -> Cow<'_, [u8]> {
        decode(self.usual, raw)
    }

    /// What reads as this text.
    pub(super) fn encoded(self, text: &[u8]) -> Vec<u8> {
        self.encode(self.usual, text)
    }

    /// Whether it is such in any reading.
    pub(super) fn find<T>(self, raw: &[u8], such: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        READINGS.iter().find_map(|layers| such(&read(layers, raw)?))
    }

    fn encode(self, layer: Layer, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        for byte in text {
            match byte {
                b' ' if layer == Layer::Plus => out.push(b'+'),
                b'+' if layer == Layer::Plus => out.extend_from_slice(b"%2B"),
                b'-' | b'.' | b'_' | b'~' | b'[' | b']' | b'*' => out.push(*byte),
                byte if byte.is_ascii_alphanumeric() || self.signs.contains(byte) => out.push(*byte),
                byte => {
                    out.push(b'%');
                    let halves = [byte >> 4, byte & 15];
                    out.extend(halves.iter().filter_map(|half| b"0123456789ABCDEF".get(usize::from(*half))));
                }
            }
        }
        out
    }
}

/// The readings, that one first in which most of a text is of values: another one may find just the end of what this one
/// finds, such as the last groups of a number.
fn readings(scan: Scan<'_>, name: &str, raw: &[u8]) -> [&'static [Layer]; 4] {
    let mut all = READINGS;
    if READINGS.iter().skip(1).any(|layers| read(layers, raw).is_some()) {
        all.sort_by_cached_key(|layers| {
            let found = read(layers, raw).map_or(0, |text| {
                scan.rules.values(name, &text, text.len()).fold(0_usize, |sum, value| sum.saturating_add(value.len()))
            });
            core::cmp::Reverse(found)
        });
    }
    all
}

/// Takes layers off; none if another reading gives the same text.
fn read<'t>(layers: &[Layer], raw: &'t [u8]) -> Option<Cow<'t, [u8]>> {
    let (last, outer) = layers.split_last()?;
    let mut text = Cow::Borrowed(raw);
    for layer in outer {
        text = Cow::Owned(decode(*layer, &text).into_owned());
    }
    let tells = match last {
        Layer::Plus => text.contains(&b'+'),
        Layer::Percent => outer.is_empty() || text.contains(&b'%'),
    };
    if !tells {
        return None;
    }
    Some(match text {
        Cow::Borrowed(text) => decode(*last, text),
        Cow::Owned(text) => Cow::Owned(decode(*last, &text).into_owned()),
    })
}

fn decode(layer: Layer, raw: &[u8]) -> Cow<'_, [u8]> {
    let plus = layer == Layer::Plus;
    if memchr::memchr2(b'%', if plus { b'+' } else { b'%' }, raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if let (b'%', Some(([high, low], after))) = (*byte, after.split_first_chunk())
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = after;
        } else {
            out.push(if plus && *byte == b'+' { b' ' } else { *byte });
        }
    }
    Cow::Owned(out)
}

/// Whether anything in a text is percent-encoded.
pub(super) fn has_percent(text: &[u8]) -> bool {
    memchr::memchr_iter(b'%', text).any(|at| {
        let digit = |ahead: usize| text.get(at.saturating_add(ahead)).is_some_and(u8::is_ascii_hexdigit);
        digit(1) && digit(2)
    })
}

/// The value of a hex digit.
pub(super) fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => digit.checked_sub(b'0'),
        b'a'..=b'f' => digit.checked_sub(b'a' - 10),
        b'A'..=b'F' => digit.checked_sub(b'A' - 10),
        _ => None,
    }
}

/// Whether a part goes on as UTF-8; the beginning of a character that is not complete is kept for the next.
pub(super) fn goes_on_as_utf8(partial: &mut Vec<u8>, part: &[u8]) -> bool {
    let mut rest = part;
    while !partial.is_empty()
        && let Some((byte, after)) = rest.split_first()
    {
        partial.push(*byte);
        rest = after;
        match core::str::from_utf8(partial) {
            Ok(_) => partial.clear(),
            Err(error) if error.error_len().is_some() => return false,
            Err(_) => {}
        }
    }
    match core::str::from_utf8(rest) {
        Ok(_) => true,
        Err(error) => {
            partial.extend_from_slice(rest.get(error.valid_up_to()..).unwrap_or(&[]));
            error.error_len().is_none()
        }
    }
}
