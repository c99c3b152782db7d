//! What a log line is, and which of its parts is what.

use log_scrub::places::{self, Body};
use log_scrub::{Findings, Rules};
use std::borrow::Cow;
use std::ops::Range;

/// Stands for what could not be looked at.
pub const UNSCANNED: &[u8] = b"[UNSCANNED]";

/// A longer line is not looked at: no more than this is held.
pub const LONGEST: usize = 1 << 20;

/// Kinds of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A JSON object, alone or after a prefix as container runtimes write it.
    Json,
    /// Envoy's text format, Istio's too.
    Envoy,
    /// The common and the combined format of nginx and Apache.
    Combined,
    /// Any other text.
    Text,
    /// Not UTF-8, too long, or JSON that is broken: `[UNSCANNED]` stands for it.
    Unscanned,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Json, Self::Envoy, Self::Combined, Self::Text, Self::Unscanned];

    /// In a summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Envoy => "Envoy's format",
            Self::Combined => "common or combined format",
            Self::Text => "other text",
            Self::Unscanned => "[UNSCANNED]",
        }
    }
}

/// Where in a line something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// In bytes from the beginning of the line.
    pub offset: usize,
    /// The rule's name.
    pub rule: String,
    /// Whether it begins right there; else it is in the part of the line that begins there.
    pub exact: bool,
}

/// What a part of a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Text,
    /// Who logged in, as the server knows: configured names decide.
    User,
    Url,
    /// Text that nginx or Apache wrote with `\x22` in it.
    Escaped,
    EscapedUrl,
    Json,
}

/// The parts of a line, in order.
type Parts = Vec<(Place, Range<usize>)>;

/// The clean form of a line without its end, and what kind it is.
pub fn clean<'t>(rules: &Rules, line: &'t [u8], findings: &mut Findings) -> (Kind, Cow<'t, [u8]>) {
    let Some((kind, parts)) = parts(line) else { return (Kind::Unscanned, Cow::Borrowed(UNSCANNED)) };
    let mut edit = Edit { text: line, done: 0, out: Vec::new() };
    for (place, range) in parts {
        let Some(part) = line.get(range.clone()) else { continue };
        match clean_part(rules, place, part, findings) {
            Some(Cow::Borrowed(_)) => {}
            Some(Cow::Owned(clean)) => edit.replace(range, &clean),
            None => return (Kind::Unscanned, Cow::Borrowed(UNSCANNED)),
        }
    }
    (kind, edit.finish())
}

/// What is found in a line, and where. The rules must mask: their names are looked for in what comes out.
pub fn explain(rules: &Rules, line: &[u8]) -> Vec<Mark> {
    let mut marks = Vec::new();
    for (place, range) in parts(line).map(|(_, parts)| parts).unwrap_or_default() {
        let mut findings = Findings::default();
        let Some(part) = line.get(range.clone()) else { continue };
        let Some(Cow::Owned(clean)) = clean_part(rules, place, part, &mut findings) else { continue };
        let mut names: Vec<&str> =
            findings.iter(rules).flat_map(|(name, count)| (0..count).map(move |_| name)).collect();
        names.sort_unstable();
        let aligned = align(part, &clean, rules).filter(|aligned| {
            let mut found: Vec<&str> = aligned.iter().map(|(_, name)| *name).collect();
            found.sort_unstable();
            found == names
        });
        match aligned {
            Some(aligned) => marks.extend(aligned.into_iter().map(|(at, name)| Mark {
                offset: range.start.saturating_add(at),
                rule: name.into(),
                exact: true,
            })),
            None => marks.extend(names.into_iter().map(|name| Mark {
                offset: range.start,
                rule: name.into(),
                exact: false,
            })),
        }
    }
    marks
}

/// Where each mask's value was, if all that stands between masks is found again in the same order.
fn align<'r>(part: &[u8], clean: &[u8], rules: &'r Rules) -> Option<Vec<(usize, &'r str)>> {
    let mut marks = Vec::new();
    let (mut at, mut rest) = (0_usize, clean);
    let mut pending = false;
    loop {
        let mask = rest.iter().enumerate().filter(|(_, byte)| **byte == b'[').find_map(|(start, _)| {
            let inside = rest.get(start.saturating_add(1)..)?;
            let length = inside.iter().position(|byte| *byte == b']')?;
            let name = inside.get(..length)?;
            let rule = rules.names().find(|rule| rule.as_bytes() == name)?;
            Some((start, length.saturating_add(2), rule))
        });
        let clean = rest.get(..mask.map_or(rest.len(), |(start, ..)| start))?;
        let tail = part.get(at..)?;
        let skipped = match (pending, mask) {
            // The first piece is where it was; the last one ends where it did.
            (false, _) => tail.starts_with(clean).then_some(0)?,
            (true, None) => tail.ends_with(clean).then(|| tail.len().checked_sub(clean.len()))??,
            (true, Some(_)) if clean.is_empty() => return None,
            (true, Some(_)) => memchr::memmem::find(tail, clean)?,
        };
        at = at.saturating_add(skipped).saturating_add(clean.len());
        let Some((start, length, rule)) = mask else { return Some(marks) };
        marks.push((at, rule));
        pending = true;
        rest = rest.get(start.saturating_add(length)..)?;
    }
}

/// Takes a line apart; none if it cannot be looked at.
fn parts(line: &[u8]) -> Option<(Kind, Parts)> {
    if line.len() > LONGEST || std::str::from_utf8(line).is_err() {
        return None;
    }
    if let Some(parts) = json(line) {
        return Some((Kind::Json, parts));
    }
    Some(served(line).unwrap_or_else(|| (Kind::Text, vec![(Place::Text, 0..line.len())])))
}

/// A JSON object. One that begins a line need not be whole: broken, it is not taken for text.
fn json(line: &[u8]) -> Option<Parts> {
    let start = line.iter().position(|byte| *byte == b'{')?;
    let object = line.get(start..)?;
    let begins = line.get(..start)?.trim_ascii().is_empty();
    let looks_so =
        object.get(1..).unwrap_or(&[]).trim_ascii_start().first().is_some_and(|byte| matches!(byte, b'"' | b'}'));
    let is_one = looks_so && (begins || serde_json::from_slice::<serde::de::IgnoredAny>(object).is_ok());
    is_one.then(|| vec![(Place::Text, 0..start), (Place::Json, start..line.len())])
}

/// A line of a server's access log: `… [time] "GET /path HTTP/1.1" …`, with more in quotes after it.
fn served(line: &[u8]) -> Option<(Kind, Parts)> {
    let quoted = memchr::memmem::find(line, b"] \"")?.saturating_add(2);
    let (request, _) = quotation(line, quoted)?;
    let target = target(line.get(request.clone())?)?;
    let target = request.start.saturating_add(target.start)..request.start.saturating_add(target.end);
    let is_envoy = line.starts_with(b"[");
    let mut parts = Vec::new();
    if is_envoy {
        parts.push((Place::Text, 0..quoted));
    } else {
        // `host ident user [time]`
        let time = memchr::memrchr(b'[', line.get(..quoted)?)?;
        let before = line.get(..time)?.trim_ascii_end();
        let user = memchr::memrchr(b' ', before).map_or(0, |space| space.saturating_add(1));
        parts.push((Place::Text, 0..user));
        parts.push((Place::User, user..before.len()));
        parts.push((Place::Text, before.len()..quoted));
    }
    let (text, url) = if is_envoy { (Place::Text, Place::Url) } else { (Place::Escaped, Place::EscapedUrl) };
    parts.push((text, quoted..target.start));
    parts.push((url, target.clone()));
    let mut at = target.end;
    // What is left of the request's quotation, and then one after the other.
    let mut next = request.end.saturating_add(1);
    while let Some(quote) = line.get(next..).and_then(|rest| memchr::memchr(b'"', rest)) {
        let Some((inside, end)) = quotation(line, next.saturating_add(quote)) else { break };
        let place = if is_url(line.get(inside.clone()).unwrap_or(&[])) { url } else { text };
        parts.push((text, at..inside.start));
        parts.push((place, inside.clone()));
        at = inside.end;
        next = end;
    }
    parts.push((text, at..line.len()));
    Some((if is_envoy { Kind::Envoy } else { Kind::Combined }, parts))
}

/// What is between the quotes that begin here, and where it goes on after them.
fn quotation(line: &[u8], quote: usize) -> Option<(Range<usize>, usize)> {
    let start = quote.checked_add(1)?;
    let mut escaped = false;
    let length = line.get(start..)?.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    })?;
    let end = start.saturating_add(length);
    Some((start..end, end.saturating_add(1)))
}

/// The target in `GET /path HTTP/1.1`.
fn target(request: &[u8]) -> Option<Range<usize>> {
    let start = request.iter().position(|byte| *byte == b' ')?.saturating_add(1);
    let method = request.get(..start.saturating_sub(1))?;
    let known =
        !method.is_empty() && method.iter().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'));
    let end = memchr::memrchr(b' ', request)?;
    (known && end >= start && request.get(end..)?.starts_with(b" HTTP/")).then_some(start..end)
}

fn is_url(text: &[u8]) -> bool {
    let scheme =
        text.iter().take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')).count();
    text.starts_with(b"/") || (scheme > 0 && text.get(scheme..).is_some_and(|rest| rest.starts_with(b"://")))
}

/// None if nothing of it may be shown.
fn clean_part<'t>(rules: &Rules, place: Place, part: &'t [u8], findings: &mut Findings) -> Option<Cow<'t, [u8]>> {
    Some(match place {
        Place::Text => places::text(rules, "", part, findings),
        Place::User => rules.scrub("user", part, findings),
        Place::Url => places::url(rules, part, findings),
        Place::Escaped => escaped(part, |plain| owned(places::text(rules, "", plain, findings))),
        Place::EscapedUrl => escaped(part, |plain| owned(places::url(rules, plain, findings))),
        Place::Json => return json_object(rules, part, findings),
    })
}

fn owned(text: Cow<'_, [u8]>) -> Option<Vec<u8>> {
    match text {
        Cow::Borrowed(_) => None,
        Cow::Owned(text) => Some(text),
    }
}

/// Cleans what nginx and Apache wrote with `\"` and `\x22`: a value may stand right after one.
fn escaped(part: &[u8], clean: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', part).is_none() {
        return clean(part).map_or(Cow::Borrowed(part), Cow::Owned);
    }
    let (mut plain, mut rest) = (Vec::with_capacity(part.len()), part);
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let code = match (*byte, after) {
            (b'\\', [b'x', high, low, ..]) => std::str::from_utf8(&[*high, *low])
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .map(|code| (code, 3)),
            (b'\\', [sign @ (b'"' | b'\\'), ..]) => Some((*sign, 1)),
            _ => None,
        };
        let (byte, more) = code.unwrap_or((*byte, 0));
        plain.push(byte);
        rest = rest.get(more..).unwrap_or(&[]);
    }
    let Some(clean) = clean(&plain) else { return Cow::Borrowed(part) };
    let mut out = Vec::with_capacity(clean.len());
    for byte in clean {
        match byte {
            b'"' | b'\\' | 0..b' ' | 0x7f.. => out.extend_from_slice(format!("\\x{byte:02X}").as_bytes()),
            byte => out.push(byte),
        }
    }
    Cow::Owned(out)
}

/// Cleans an object, as the filter does with a body.
fn json_object<'t>(rules: &Rules, object: &'t [u8], findings: &mut Findings) -> Option<Cow<'t, [u8]>> {
    let (mut body, mut out) = (Body::json(), Vec::with_capacity(object.len()));
    body.push(rules, object, &mut out, findings);
    body.finish(rules, &mut out, findings).ok()?;
    Some(if out == object { Cow::Borrowed(object) } else { Cow::Owned(out) })
}

/// A text of which pieces are replaced, in order; nothing is copied before one is.
struct Edit<'t> {
    text: &'t [u8],
    done: usize,
    out: Vec<u8>,
}

impl<'t> Edit<'t> {
    fn replace(&mut self, range: Range<usize>, with: &[u8]) {
        self.out.extend_from_slice(self.text.get(self.done..range.start).unwrap_or(&[]));
        self.out.extend_from_slice(with);
        self.done = range.end;
    }

    fn finish(mut self) -> Cow<'t, [u8]> {
        if self.done == 0 {
            return Cow::Borrowed(self.text);
        }
        self.out.extend_from_slice(self.text.get(self.done..).unwrap_or(&[]));
        Cow::Owned(self.out)
    }
}
