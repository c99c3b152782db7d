//! Rules of one's own.

use crate::config::Own as Config;
use crate::detectors::Found;
use crate::pattern::{MOST, Pattern};
use crate::view::{BEHIND, View};
use kit::Refusal;
use kit::prelude::*;
use memchr::memmem::Finder;

/// What is looked for.
pub(crate) enum Own {
    /// A text.
    Literal(Box<Finder<'static>>),
    /// A pattern, and the bytes that it begins with.
    Pattern(Box<Pattern>, Box<[bool]>),
}

impl Own {
    pub(crate) fn new(config: &Config) -> Result<Self, Refusal> {
        let named = config.name.starts_with(|first: char| first.is_ascii_lowercase())
            && config.name.len() <= 32
            && config
                .name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'));
        if !named {
            return Err(Refusal::at("name", "is no name, give up to 32 of a-z, 0-9, `_` and `-`, a letter first"));
        }
        match (&config.literal, &config.regex) {
            (Some(literal), None) if !literal.is_empty() && literal.len() <= MOST => {
                Ok(Self::Literal(Box::new(Finder::new(literal.as_bytes()).into_owned())))
            }
            (Some(_), None) => Err(Refusal::at("literal", "is empty or too long, give 1 to 256 bytes")),
            (None, Some(regex)) => {
                let pattern = Pattern::new(regex)?;
                let begins = (0..=255).map(|byte| pattern.begins(byte)).collect();
                Ok(Self::Pattern(Box::new(pattern), begins))
            }
            _ => Err(Refusal::at("", "looks for nothing or for two things, give either `literal` or `regex`")),
        }
    }

    /// The first position in `from..limit` where a match may begin.
    pub(crate) fn next(&self, text: &[u8], from: usize, limit: usize) -> usize {
        let found = match self {
            Self::Literal(finder) => {
                let end = limit.saturating_add(finder.needle().len()).saturating_sub(1).min(text.len());
                text.get(from..end).and_then(|text| finder.find(text))
            }
            Self::Pattern(_, begins) => text
                .get(from..limit)
                .and_then(|text| text.iter().position(|byte| begins.get(usize::from(*byte)).copied().unwrap_or(false))),
        };
        found.map_or(limit, |index| from.saturating_add(index))
    }

    /// The match at the anchor.
    pub(crate) fn find(&self, view: &View<'_>) -> Option<Found> {
        let start = view.anchor();
        let end = match self {
            Self::Literal(finder) if view.starts(start, finder.needle()) => start.saturating_add(finder.needle().len()),
            Self::Literal(_) => return None,
            Self::Pattern(pattern, _) => pattern.longest(view, start)?,
        };
        // The name in what stands for a value is none.
        let mask = view.before(start) == b'[' && matches!(view.at(end), b']' | b'_');
        (!mask && start >= BEHIND).then(|| Found::new(start, end))
    }
}
