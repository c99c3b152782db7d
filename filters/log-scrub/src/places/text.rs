//! Plain text: what is assigned to a field in it, and URLs.
//!
//! A word alone says nothing: "the password is wrong". So a value is only what a sign joins to the name: `=`, `:`, `=>`,
//! a tag, or `--` before the name and a space after it. It goes on to its own end, which a quote, a space or a separator
//! is, or the end of the line for headers that have all of it.

use super::cookie::{cookie, set_cookie};
use super::encoding::{goes_on_as_utf8, has_percent};
use super::{Edit, LONG, ROUNDS, Scan, UNSCANNED, Why, changed, settle, url};
use crate::detectors::Tail;
use crate::{Findings, Rule, Rules, Stream, fields};
use alloc::borrow::Cow;
use kit::alloc;
use kit::prelude::*;

/// The longest name.
const NAME: usize = 64;

/// The longest tag.
const TAG: usize = 256;

/// The most spaces between a name, its sign and its value.
const SPACES: usize = 16;

/// How far behind a word there is what it says something of.
const NEAR: usize = 64;

/// Brackets and quotes that a value may stand in, but for those of ASCII that end it and those of JSON.
const BRACKETS: [(&str, &str); 14] = [
    ("(", ")"),
    ("<", ">"),
    ("«", "»"),
    ("‹", "›"),
    ("“", "”"),
    ("„", "“"),
    ("‘", "’"),
    ("（", "）"),
    ("「", "」"),
    ("『", "』"),
    ("【", "】"),
    ("《", "》"),
    ("［", "］"),
    ("｛", "｝"),
];

/// What is no secret, whatever it is assigned to.
const WORDS: [&[u8]; 13] = [
    b"none",
    b"null",
    b"nil",
    b"true",
    b"false",
    b"undefined",
    b"empty",
    b"missing",
    b"required",
    b"invalid",
    b"expired",
    b"unknown",
    b"-",
];

/// Cleans plain text, such as a User-Agent, a line of a log, or a text body that is not long. Besides what is found
/// anywhere, that is what is assigned to the name of a field, and what is in URLs.
pub fn text<'t>(rules: &Rules, name: &str, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
    if rules.field(name).is_some() {
        return rules.scrub(name, text, findings);
    }
    let scan = Scan::new(rules);
    let clean = settle(text, findings, |text, findings| {
        let apart = scan.taken_apart(text, findings);
        let text = apart.as_deref().unwrap_or(text);
        changed(scan.rules.scrub(name, text, findings)).or(apart)
    });
    clean.map_or(Cow::Borrowed(text), Cow::Owned)
}

/// A text body that comes in parts: lines, in each of which fields and URLs are looked for, and through all of which
/// values may go.
pub(super) struct Lines {
    stream: Stream,
    line: Vec<u8>,
    /// Of a line that is too long, what goes on behind it.
    skips: Option<Box<Behind>>,
    /// What of a value goes on in the line.
    tail: Option<Tail>,
    /// Whether something stands for that value already.
    is_covered: bool,
    /// The beginning of a character.
    partial: Vec<u8>,
    failed: bool,
}

impl core::fmt::Debug for Lines {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Lines").field("held", &self.line.len()).finish_non_exhaustive()
    }
}

impl Lines {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            stream: rules.stream(""),
            line: Vec::new(),
            skips: None,
            tail: None,
            is_covered: false,
            partial: Vec::new(),
            failed: false,
        }
    }

    pub(super) fn push(&mut self, rules: &Rules, part: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        // Text in two bytes a letter is full of zeros, and UTF-8 to those who do not look.
        self.failed |= !goes_on_as_utf8(&mut self.partial, part) || super::find(0, part).is_some();
        if self.failed {
            return;
        }
        for line in part.split_inclusive(|byte| *byte == b'\n') {
            if let Some(behind) = &mut self.skips {
                behind.push(rules, line);
            } else {
                self.line.extend_from_slice(line);
                if self.line.len() > LONG {
                    let mut behind = Box::new(Behind { tail: self.tail.take(), stream: rules.stream("") });
                    behind.push(rules, &self.line);
                    self.skips = Some(behind);
                }
            }
            if line.ends_with(b"\n") {
                self.end(rules, out, findings);
            }
        }
    }

    fn end(&mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        let mut line = core::mem::take(&mut self.line);
        if let Some(behind) = self.skips.take() {
            findings.add_unscanned();
            self.stream.push(rules, &[UNSCANNED, b"\n"].concat(), out, findings);
            self.tail = behind.end(rules);
            self.is_covered = true;
        } else {
            self.short(rules, &line, out, findings);
        }
        line.clear();
        self.line = line;
    }

    fn short(&mut self, rules: &Rules, line: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        let mut rest = line;
        if let Some(tail) = &mut self.tail {
            let (taken, ended) = tail.of(line);
            let (value, after) = line.split_at_checked(taken).unwrap_or((line, &[]));
            if !self.is_covered {
                self.stream.push(rules, value, out, findings);
            }
            if !ended {
                return;
            }
            self.tail = None;
            rest = after;
        }
        let scan = Scan::new(rules);
        // Until nothing changes; what goes over lines is left to the stream.
        let clean = settle(rest, findings, |line, findings| {
            let apart = scan.taken_apart(line, findings);
            changed(rules.scrub("", apart.as_deref().unwrap_or(line), findings)).or(apart)
        });
        self.stream.push(rules, clean.as_deref().unwrap_or(rest), out, findings);
        // What goes on in the next line begins with such.
        if memchr::memmem::find(rest, b"-----BEGIN ").is_some() {
            self.tail = Behind::line(rules, rest);
            self.is_covered = clean.is_some_and(|clean| Behind::line(rules, &clean).is_none());
        }
    }

    /// Why nothing that was written may be used.
    pub(super) fn failed(&self) -> Option<Why> {
        self.failed.then_some(Why::Encoding)
    }

    pub(super) fn finish(mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) -> Result<(), Why> {
        if !self.line.is_empty() || self.skips.is_some() {
            self.end(rules, out, findings);
        }
        self.stream.finish(rules, out, findings);
        if self.failed || !self.partial.is_empty() { Err(Why::Encoding) } else { Ok(()) }
    }
}

/// Looks through text that is not shown for what goes on behind it.
struct Behind {
    /// What of a value goes on in what comes.
    tail: Option<Tail>,
    stream: Stream,
}

impl Behind {
    /// What goes on behind a line.
    fn line(rules: &Rules, line: &[u8]) -> Option<Tail> {
        let mut behind = Self { tail: None, stream: rules.stream("") };
        behind.push(rules, line);
        behind.end(rules)
    }

    fn push(&mut self, rules: &Rules, text: &[u8]) {
        let mut rest = text;
        if let Some(tail) = &mut self.tail {
            let (taken, ended) = tail.of(text);
            if !ended {
                return;
            }
            self.tail = None;
            rest = text.get(taken..).unwrap_or(&[]);
        }
        self.stream.push(rules, rest, &mut Vec::new(), &mut Findings::default());
    }

    fn end(self, rules: &Rules) -> Option<Tail> {
        self.tail.or_else(|| self.stream.goes_on(rules))
    }
}

/// Where something of a kind is next, if anywhere.
struct Next<F> {
    find: F,
    at: Option<usize>,
}

impl<F: Fn(usize) -> Option<usize>> Next<F> {
    fn new(find: F) -> Self {
        let at = find(0);
        Self { find, at }
    }

    /// From a position on.
    fn from(&mut self, from: usize) -> Option<usize> {
        if self.at.is_some_and(|at| at < from) {
            self.at = (self.find)(from);
        }
        self.at
    }
}

impl Scan<'_> {
    /// Cleans what is of fields and URLs; none if there is nothing.
    pub(super) fn taken_apart(self, text: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
        let assigned = changed(self.assigned(text, findings));
        changed(self.urls(assigned.as_deref().unwrap_or(text), findings)).or(assigned)
    }

    /// Covers what is assigned to fields.
    fn assigned<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        let mut edit = Edit::new(text);
        let rest = |from: usize| text.get(from..).unwrap_or(&[]);
        let mut sign =
            Next::new(|from| memchr::memchr3(b'=', b':', b'<', rest(from)).map(|at| from.saturating_add(at)));
        let mut option = Next::new(|from| {
            let dashes = memchr::memchr_iter(b'-', rest(from)).map(|at| from.saturating_add(at));
            dashes.into_iter().find(|at| text.get(at.saturating_add(1)) == Some(&b'-'))
        });
        let mut from = 0_usize;
        while let Some(at) = [sign.from(from), option.from(from)].into_iter().flatten().min() {
            let found = match text.get(at) {
                Some(b'<') => self.tag(text, at),
                Some(b'-') => self.option(text, at),
                _ => self.pair(text, from, at),
            };
            from = at.saturating_add(1);
            let Some(Assigned { rule, start, end, how }) = found else { continue };
            let value = text.get(start..end).unwrap_or(&[]);
            from = end.max(from);
            if value.is_empty() || (how == How::Value && WORDS.iter().any(|word| word.eq_ignore_ascii_case(value))) {
                continue;
            }
            let before = findings.clone();
            let cover = match how {
                How::Value => Cow::Owned(self.rules.cover(rule, value, findings)),
                How::Cookie => cookie(self.rules, value, findings),
                How::SetCookie => set_cookie(self.rules, value, findings),
            };
            // Nothing would join what is before and after, and the next word would be the value.
            let cover = if cover.is_empty() { Cow::Borrowed(b"[]".as_slice()) } else { cover };
            if rest(start).starts_with(&cover) && start.saturating_add(cover.len()) >= end {
                *findings = before;
                from = start.saturating_add(cover.len()).max(from);
            } else {
                edit.replace(start, end, &cover);
            }
        }
        edit.finish()
    }

    /// `name=value`, `"name": "value"`, `name => value`, where the sign is at a position, and nothing before `from` is
    /// of a name.
    fn pair(self, text: &[u8], from: usize, at: usize) -> Option<Assigned> {
        let byte = |at: usize| text.get(at).copied().unwrap_or(0);
        let before = |at: usize| at.checked_sub(1).map_or(0, byte);
        // `:=`, `==` and `=>` are one sign, `::` is none.
        let colon = byte(at) == b':';
        let mut start = at.saturating_add(1);
        if colon && (byte(start) == b':' || before(at) == b':') {
            return None;
        }
        while matches!(byte(start), b'=' | b'>') && start < at.saturating_add(3) {
            start = start.saturating_add(1);
        }
        let (name, quoted) = name_before(text, from, at)?;
        let rule = self.field(name)?;
        let spaces = text.iter().skip(start).take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if spaces > SPACES {
            return None;
        }
        start = start.saturating_add(spaces);
        let last = name.rsplit(|byte| matches!(byte, b'.' | b'[')).next().unwrap_or(name);
        let line = || {
            let end = |byte: &u8| matches!(byte, b'\r' | b'\n' | b'"');
            start.saturating_add(text.iter().skip(start).position(end).unwrap_or(text.len().saturating_sub(start)))
        };
        let how = match (colon && !quoted, last) {
            (true, name) if name.eq_ignore_ascii_case(b"cookie") => How::Cookie,
            (true, name) if name.eq_ignore_ascii_case(b"set-cookie") => How::SetCookie,
            _ => {
                let (start, end) = self.whole(text, start, quoted);
                return Some(Assigned { rule, start, end, how: How::Value });
            }
        };
        Some(Assigned { rule, start, end: line(), how })
    }

    /// `<name>value</name>`.
    fn tag(self, text: &[u8], at: usize) -> Option<Assigned> {
        let inside = at.saturating_add(1);
        let rest = text.get(inside..)?;
        let close = super::find(b'>', rest.get(..TAG).unwrap_or(rest))?;
        let length = rest.iter().take_while(|byte| is_name(**byte) || **byte == b':').count();
        let name = rest.get(..length.min(close))?;
        let name = name.rsplit(|byte| *byte == b':').next().filter(|name| !name.is_empty())?;
        // A tag that is closed at once has no value.
        if rest.get(close.checked_sub(1)?) == Some(&b'/') {
            return None;
        }
        let rule = self.field(name)?;
        let start = inside.saturating_add(close).saturating_add(1);
        let value = text.get(start..)?;
        let (start, end) = if let Some(value) = value.strip_prefix(b"<![CDATA[") {
            let start = start.saturating_add(9);
            (start, start.saturating_add(memchr::memmem::find(value, b"]]>").unwrap_or(value.len())))
        } else {
            (start, start.saturating_add(super::find(b'<', value).unwrap_or(value.len())))
        };
        let value = text.get(start..end)?;
        let lead = value.len().saturating_sub(value.trim_ascii_start().len());
        let start = start.saturating_add(lead);
        Some(Assigned { rule, start, end: start.saturating_add(value.trim_ascii().len()), how: How::Value })
    }

    /// `--name value`.
    fn option(self, text: &[u8], at: usize) -> Option<Assigned> {
        if at.checked_sub(1).and_then(|at| text.get(at)).is_some_and(|byte| is_name(*byte)) {
            return None;
        }
        let inside = at.saturating_add(2);
        let rest = text.get(inside..)?;
        let length = rest.iter().take(NAME).take_while(|byte| is_name(**byte)).count();
        let [b' ' | b'\t', first, ..] = rest.get(length..)? else { return None };
        if matches!(first, b'-' | b' ' | b'\t' | b'\r' | b'\n') {
            return None;
        }
        let rule = self.field(rest.get(..length)?)?;
        let (start, end) = self.whole(text, inside.saturating_add(length).saturating_add(1), false);
        Some(Assigned { rule, start, end, how: How::Value })
    }

    /// Where a value is that begins at a position, with what would not be found any more without its first word: the
    /// rest of a number in groups, of a key, or what this word said something of.
    fn whole(self, text: &[u8], at: usize, strict: bool) -> (usize, usize) {
        let (start, mut end) = value(text, at, strict);
        // In quotes it has an end of its own.
        if start > at || end == start {
            return (start, end);
        }
        for _ in 0..ROUNDS {
            let near = end.saturating_add(NEAR).saturating_sub(start);
            let with = self.rules.values("", text.get(start..).unwrap_or(&[]), near);
            let Some(next) = with.map(|value| start.saturating_add(value.end)).find(|next| *next > end) else { break };
            let mut without = self.rules.values("", text.get(end..).unwrap_or(&[]), NEAR);
            if without.next().is_some_and(|value| end.saturating_add(value.end) == next) {
                break;
            }
            end = next;
        }
        let kept = text.get(start..end).unwrap_or(&[]).trim_ascii_end().len();
        (start, start.saturating_add(kept))
    }

    /// Cleans URLs, paths that have a query, and words that are percent-encoded.
    pub(super) fn urls<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        let mut edit = Edit::new(text);
        let such = memchr::memmem::find(text, b"://").is_some() || memchr::memchr2(b'?', b'%', text).is_some();
        if !such {
            return edit.finish();
        }
        let ends = |byte: u8| matches!(byte, 0..=b' ' | b'"' | b'\'' | b'`' | b'<' | b'>' | b'|' | b'\\');
        for (at, word) in super::pieces(text, ends) {
            let start = match memchr::memmem::find(word, b"://") {
                Some(colon) => {
                    let scheme = word.get(..colon).unwrap_or(&[]);
                    let is_in = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
                    colon.saturating_sub(scheme.iter().rev().take_while(is_in).count())
                }
                None if has_percent(word) || (word.starts_with(b"/") && word.contains(&b'?')) => 0,
                None => continue,
            };
            let word = word.get(start..).unwrap_or(&[]);
            // What ends a sentence.
            let sentence = |byte: &&u8| matches!(byte, b'.' | b',' | b';' | b':' | b'!' | b'?' | b')');
            let length = word.len().saturating_sub(word.iter().rev().take_while(sentence).count());
            let word = word.get(..length).unwrap_or(word);
            let start = at.saturating_add(start);
            let clean = if url::looks_so(word) || word.starts_with(b"/") {
                changed(self.url(word, findings))
            } else if has_percent(word) {
                self.decoded("", word, findings)
            } else {
                None
            };
            if let Some(clean) = clean {
                edit.replace(start, start.saturating_add(length), &clean);
            }
        }
        edit.finish()
    }
}

/// A value in a text.
struct Assigned {
    rule: Rule,
    start: usize,
    end: usize,
    how: How,
}

/// How a value is covered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Value,
    /// All of a header: the names in it stay.
    Cookie,
    SetCookie,
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')
}

/// The name that ends before a sign, and whether it is in quotes.
fn name_before(text: &[u8], from: usize, at: usize) -> Option<(&[u8], bool)> {
    let before = text.get(from..at)?;
    let mut rest = before;
    while let Some((b' ' | b'\t', shorter)) = rest.split_last()
        && before.len().saturating_sub(shorter.len()) <= SPACES
    {
        rest = shorter;
    }
    // The quote, or the escaped quote, of a name in JSON or of an index: `params["name"]`.
    let index = rest.strip_suffix(b"]").filter(|inner| matches!(inner.last(), Some(b'"' | b'\'')));
    rest = index.unwrap_or(rest);
    let unquoted = rest.strip_suffix(b"\"").or_else(|| rest.strip_suffix(b"'")).or_else(|| rest.strip_suffix(b"`"));
    rest = unquoted.map_or(rest, |rest| rest.strip_suffix(b"\\").unwrap_or(rest));
    let length = rest.iter().rev().take(NAME).take_while(|byte| is_name(**byte) || matches!(byte, b'[' | b']')).count();
    let name = rest.get(rest.len().saturating_sub(length)..).filter(|name| !name.is_empty())?;
    // What stands for a value is no name: `[jwt]: …`.
    if name.strip_prefix(b"[").is_some_and(|name| name.ends_with(b"]")) {
        return None;
    }
    let name = name.iter().position(|byte| !matches!(byte, b'-')).and_then(|first| name.get(first..))?;
    Some((name, unquoted.is_some() && index.is_none()))
}

/// Where a value is that begins at a position: within its quotes if it has such. `strict` if it is a number or word of
/// JSON if it has none.
fn value(text: &[u8], at: usize, strict: bool) -> (usize, usize) {
    let rest = text.get(at..).unwrap_or(&[]);
    let (quote, lead): (&[u8], usize) = match rest {
        [b'\\', b'"', ..] => (b"\\\"", 2),
        [b'\\', b'\'', ..] => (b"\\'", 2),
        [b'"', ..] => (b"\"", 1),
        [b'\'', ..] => (b"'", 1),
        [b'`', ..] => (b"`", 1),
        _ => {
            // A scheme stays, and of most the rest is one word.
            let scheme = fields::scheme(rest.get(..NAME).unwrap_or(rest));
            let rest = rest.get(scheme..).unwrap_or(&[]);
            return (at, at.saturating_add(scheme).saturating_add(plain(rest, strict)));
        }
    };
    let start = at.saturating_add(lead);
    let inside = rest.get(lead..).unwrap_or(&[]);
    let mut length = 0_usize;
    loop {
        let tail = inside.get(length..).unwrap_or(&[]);
        match tail {
            [] => break,
            _ if tail.starts_with(quote) => break,
            // One that is not closed ends with its line.
            [b'\r' | b'\n', ..] => break,
            [b'\\', _, ..] => length = length.saturating_add(2),
            _ => length = length.saturating_add(1),
        }
    }
    (start, start.saturating_add(length.min(inside.len())))
}

/// How long a value without quotes is.
fn plain(text: &[u8], strict: bool) -> usize {
    // What stands for a value is one whatever the value may have in it.
    let mask = text.strip_prefix(b"[").map_or(0, |inside| {
        let length = inside
            .iter()
            .take(NAME)
            .take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
            .count();
        if inside.get(length) == Some(&b']') { length.saturating_add(2) } else { 0 }
    });
    if mask == 0 && matches!(text, [b'[' | b'{', ..]) {
        return nested(text);
    }
    let lead = if mask == 0 { bracket(text) } else { mask };
    let word = |from: usize| {
        let rest = text.get(from..).unwrap_or(&[]);
        let ends = |byte: &u8| {
            matches!(byte, 0..=b' ' | b'"' | b'\'' | b'`' | b'&' | b',' | b';' | b'<')
                || (strict && matches!(byte, b'}' | b']' | b'\\'))
        };
        from.saturating_add(rest.iter().position(ends).unwrap_or(rest.len()))
    };
    let end = word(lead);
    // A scheme behind a bracket, or behind other signs, says nothing.
    let is_in = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let length = text.get(..end).unwrap_or(text).iter().rev().take_while(is_in).count();
    let last = text.get(end.saturating_sub(length)..).unwrap_or(&[]);
    let scheme = fields::scheme(last.get(..NAME).unwrap_or(last));
    if scheme > 0 { word(end.saturating_add(1)) } else { end }
}

/// How long what is in brackets is, with these; without the second one, just the first counts. 0 if there is none.
fn bracket(text: &[u8]) -> usize {
    let find = |(open, _): &&(&str, &str)| text.starts_with(open.as_bytes());
    let Some((open, close)) = BRACKETS.iter().find(find).filter(|_| !text.starts_with(b"</")) else { return 0 };
    let inside = text.get(open.len()..).unwrap_or(&[]);
    let line = inside.iter().take(TAG).position(|byte| matches!(byte, b'\r' | b'\n'));
    let inside = inside.get(..line.unwrap_or(TAG)).unwrap_or(inside);
    let length = memchr::memmem::find(inside, close.as_bytes()).map_or(0, |at| at.saturating_add(close.len()));
    open.len().saturating_add(length)
}

/// How long an object or array is, or what of it there is.
fn nested(text: &[u8]) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth = depth.saturating_add(1),
            b']' | b'}' if !quoted => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at.saturating_add(1);
                }
            }
            _ => {}
        }
    }
    text.len()
}
