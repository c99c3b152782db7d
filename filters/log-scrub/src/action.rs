//! What stands for a value that was found.

use crate::config::{How, Kind};
use crate::detectors::Normal;
use hmac::{Hmac, KeyInit, Mac};
use kit::Refusal;
use kit::prelude::*;
use sha2::Sha256;

/// Most bytes that may be kept of a value, at each end.
pub(crate) const KEPT: usize = 8;

/// Most `*` in a row; a value's length is its own secret.
const STARS: usize = 32;

/// The longest text that replaces a value.
const WITH: usize = 64;

/// A shorter value is covered whole, so that there are three stars at least.
const LEAST: usize = 4;

/// What is done with a value, ready to be done.
#[derive(Clone)]
pub(crate) enum Action {
    /// `[name]`.
    Mask,
    /// `first`, stars, `last`.
    Partial { first: usize, last: usize },
    /// `[]`.
    Drop,
    /// A text.
    Replace(Box<[u8]>),
    /// `[name_0123456789abcdef]`: so many hex digits of the HMAC.
    Hmac { key: Box<Hmac<Sha256>>, digits: usize },
    /// An address's network.
    Network,
}

impl Action {
    /// As the operator says it, of an address or of anything else. Once in the module, and not wherever there may be one.
    #[inline(never)]
    pub(crate) fn new(how: &How, address: bool, key: Option<&Hmac<Sha256>>) -> Result<Self, Refusal> {
        let small = |number| usize::try_from(number).unwrap_or(0);
        Ok(match how.kind {
            Kind::Mask => Self::Mask,
            Kind::Partial => Self::Partial { first: small(how.first.get()), last: small(how.last.get()) },
            Kind::Drop => Self::Drop,
            // It may stand there often: what is left must not become many times as long as what came.
            Kind::Replace if how.with.len() > WITH || how.with.contains(char::is_control) => {
                return Err(Refusal::at("with", "is too long or not in one line, give up to 64 bytes"));
            }
            Kind::Replace => Self::Replace(how.with.as_bytes().into()),
            Kind::Hmac => {
                let key = key.ok_or_else(|| Refusal::at("kind", "needs a key, give `hmac_key`"))?;
                Self::Hmac { key: Box::new(key.clone()), digits: small(how.digits.get()) }
            }
            Kind::Network if address => Self::Network,
            Kind::Network => return Err(Refusal::at("kind", "`network` is for addresses, give another to this rule")),
        })
    }
}

/// A value being covered; it may come in parts.
pub(crate) struct Cover {
    normal: Normal,
    length: usize,
    first: [u8; KEPT],
    last: [u8; KEPT],
    mac: Option<Box<Hmac<Sha256>>>,
}

impl Cover {
    pub(crate) fn new(action: &Action, normal: Normal) -> Self {
        let mac = if let Action::Hmac { key, .. } = action { Some(key.clone()) } else { None };
        Self { normal, length: 0, first: [0; KEPT], last: [0; KEPT], mac }
    }

    pub(crate) fn push(&mut self, part: &[u8]) {
        self.first.iter_mut().skip(self.length).zip(part).for_each(|(to, from)| *to = *from);
        self.length = self.length.saturating_add(part.len());
        if let Some(last) = part.last_chunk::<KEPT>() {
            self.last = *last;
        } else {
            self.last.rotate_left(part.len());
            self.last.iter_mut().rev().zip(part.iter().rev()).for_each(|(to, from)| *to = *from);
        }
        if let Some(mac) = &mut self.mac {
            match self.normal {
                Normal::Exact => mac.update(part),
                Normal::Alphanumeric => part
                    .iter()
                    .filter(|byte| byte.is_ascii_alphanumeric())
                    .for_each(|byte| mac.update(&[byte.to_ascii_uppercase()])),
                Normal::Lower => part.iter().for_each(|byte| mac.update(&[byte.to_ascii_lowercase()])),
            }
        }
    }

    /// Writes what stands for the value.
    pub(crate) fn finish(self, action: &Action, name: &str, out: &mut Vec<u8>) {
        match action {
            Action::Mask | Action::Network => {
                out.push(b'[');
                out.extend_from_slice(name.as_bytes());
                out.push(b']');
            }
            // Not nothing: the text before and after it would be one.
            Action::Drop => out.extend_from_slice(b"[]"),
            Action::Replace(text) => out.extend_from_slice(text),
            Action::Partial { first, last } => {
                // Less than half is kept, so that what is left does not say the rest, and no signs: they would make
                // words of what is kept, which could be found with the words around.
                let enough = first.saturating_add(*last).saturating_mul(2) < self.length && self.length > LEAST;
                let (first, last) = if enough { (*first, *last) } else { (0, 0) };
                let word = |byte: &&u8| byte.is_ascii_alphanumeric();
                let first = self.first.iter().take(first).take_while(word).count();
                let last = self.last.iter().rev().take(last).take_while(word).count();
                let stars = self.length.saturating_sub(first).saturating_sub(last).min(STARS);
                out.extend(self.first.iter().take(first));
                out.extend(core::iter::repeat_n(b'*', stars));
                out.extend(self.last.iter().skip(KEPT.saturating_sub(last)));
            }
            Action::Hmac { digits, .. } => {
                out.push(b'[');
                out.extend_from_slice(name.as_bytes());
                out.push(b'_');
                let mac = self.mac.map(|mac| mac.finalize().into_bytes()).unwrap_or_default();
                let hex = mac
                    .iter()
                    .flat_map(|byte| [byte >> 4, byte & 15])
                    .filter_map(|half| b"0123456789abcdef".get(usize::from(half)));
                out.extend(hex.take(*digits));
                out.push(b']');
            }
        }
    }
}

/// A key for [`Action::Hmac`], of 32 bytes at least.
pub(crate) fn key(bytes: &[u8]) -> Option<Box<Hmac<Sha256>>> {
    if bytes.len() < 32 { None } else { Hmac::new_from_slice(bytes).ok().map(Box::new) }
}
