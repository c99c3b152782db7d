//! What a detector may see: a window of fixed size around its anchor.
//!
//! The window is the same however the text was cut into parts, so a detector's answer is too. What lies before the
//! last match is seen as it was *written*, not as it was read: a second pass then sees just what the first one saw.

use crate::digits::is_part;

/// How far before its anchor a match may begin, and how much clean text before that is known.
pub(crate) const BEHIND: usize = 64;

/// How far from its anchor a detector may look.
pub(crate) const AHEAD: usize = 1024;

/// The last clean bytes, the newest at the end; zeros before there were any.
#[derive(Clone)]
pub(crate) struct Before([u8; BEHIND]);

impl Before {
    /// Starts after the name of a field, which gives context like any text before a value.
    pub(crate) fn new(name: &[u8]) -> Self {
        let mut before = Self([0; BEHIND]);
        if !name.is_empty() {
            before.note(name);
            before.note(b"=");
        }
        before
    }

    /// Whether digits at the beginning of what follows may belong to a number that began here.
    pub(crate) fn joins(&self) -> bool {
        self.0.last().is_some_and(|byte| is_part(*byte))
    }

    pub(crate) fn note(&mut self, clean: &[u8]) {
        match clean.last_chunk::<BEHIND>() {
            Some(last) => self.0 = *last,
            None => {
                self.0.copy_within(clean.len().., 0);
                let kept = BEHIND.saturating_sub(clean.len());
                if let Some(last) = self.0.get_mut(kept..) {
                    last.copy_from_slice(clean);
                }
            }
        }
    }
}

/// The window. Positions count from the first known byte; [`BEHIND`] is where the text that is not settled begins.
pub(crate) struct View<'a> {
    before: &'a Before,
    text: &'a [u8],
    anchor: usize,
    /// What is before here is gone in a stream, so it is not seen anywhere.
    gone: usize,
}

impl<'a> View<'a> {
    /// The window around `text[anchor]`.
    pub(crate) fn new(before: &'a Before, text: &'a [u8], anchor: usize) -> Self {
        let text = text.get(..anchor.saturating_add(AHEAD)).unwrap_or(text);
        Self { before, text, anchor, gone: anchor.saturating_sub(BEHIND) }
    }

    /// The anchor's position.
    pub(crate) fn anchor(&self) -> usize {
        self.anchor.saturating_add(BEHIND)
    }

    /// Where a match may begin at the earliest.
    pub(crate) fn first(&self) -> usize {
        self.anchor.max(BEHIND)
    }

    /// The end of the window.
    pub(crate) fn end(&self) -> usize {
        self.text.len().saturating_add(BEHIND)
    }

    /// Whether the text may go on beyond the window.
    pub(crate) fn is_cut(&self) -> bool {
        self.text.len() >= self.anchor.saturating_add(AHEAD)
    }

    /// The byte at a position, 0 outside the window.
    #[inline]
    pub(crate) fn at(&self, position: usize) -> u8 {
        if position < self.gone {
            return 0;
        }
        match self.text.get(position.wrapping_sub(BEHIND)) {
            Some(byte) => *byte,
            None => self.before.0.get(position).copied().unwrap_or(0),
        }
    }

    /// The byte before a position.
    #[inline]
    pub(crate) fn before(&self, position: usize) -> u8 {
        position.checked_sub(1).map_or(0, |position| self.at(position))
    }

    /// Text that is not settled; empty outside.
    pub(crate) fn slice(&self, start: usize, end: usize) -> &'a [u8] {
        let range = start.saturating_sub(BEHIND)..end.saturating_sub(BEHIND);
        if start < BEHIND { &[] } else { self.text.get(range).unwrap_or(&[]) }
    }

    /// The bytes before a position, settled ones too; `copy` takes them where they do not lie in one piece.
    pub(crate) fn last<'b, const N: usize>(&'b self, position: usize, copy: &'b mut [u8; N]) -> &'b [u8; N] {
        let start = position.saturating_sub(N);
        if start >= BEHIND.max(self.anchor.saturating_sub(BEHIND))
            && let Some(window) = self.slice(start, position).first_chunk()
        {
            return window;
        }
        copy.iter_mut().enumerate().for_each(|(index, byte)| *byte = self.at(start.saturating_add(index)));
        copy
    }

    /// Whether the text at a position begins so.
    pub(crate) fn starts(&self, position: usize, with: &[u8]) -> bool {
        self.slice(position, position.saturating_add(with.len())) == with
    }

    /// The first position from `from` on whose byte is not such.
    #[inline]
    pub(crate) fn skip(&self, from: usize, such: impl Fn(u8) -> bool) -> usize {
        let rest = self.slice(from, self.end());
        from.saturating_add(rest.iter().position(|byte| !such(*byte)).unwrap_or(rest.len()))
    }

    /// The earliest position from which all bytes up to `to` are such, no earlier than [`View::first`].
    #[inline]
    pub(crate) fn skip_back(&self, to: usize, such: impl Fn(u8) -> bool) -> usize {
        let mut start = to;
        while start > self.first() && such(self.before(start)) {
            start = start.saturating_sub(1);
        }
        start
    }

    /// Whether a word of letters and digits ends before or goes on at a position. A `*` counts: it stands for a part
    /// of a value that was masked.
    pub(crate) fn word_before(&self, position: usize) -> bool {
        is_word(self.before(position))
    }

    /// See [`View::word_before`].
    pub(crate) fn word_at(&self, position: usize) -> bool {
        is_word(self.at(position))
    }
}

/// Letters, digits, `_`, and `*` as in masked values.
pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'*')
}

/// The alphabet of base64url.
pub(crate) fn is_base64url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}
