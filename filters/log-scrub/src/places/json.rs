//! JSON, read as it passes.
//!
//! Only one name, string, number or word is held at a time, as it came, and written as it came unless it is changed.
//! What contains it is a stack, not a recursion; only JSON in a string is read within, three times at most.

use super::encoding::{goes_on_as_utf8, hex};
use super::{LONG, Scan, UNSCANNED, Why, settle};
use crate::blocks::Blocks;
use crate::digits::FEWEST;
use crate::{Findings, Rule, Rules, Stream};
use alloc::borrow::Cow;
use kit::alloc;
use kit::prelude::*;

/// How deep objects and arrays may nest.
const DEEP: usize = 512;

/// How much of a name is kept as context: no more is looked at.
const NAME: usize = 64;

/// Of a long string so much is decoded at a time.
const PIECE: usize = 4096;

/// JSON that comes in parts.
pub(super) struct Json {
    /// The name of the whole, as context, and then those of the objects within each other.
    names: String,
    /// How much of them is the name of the next value outside all objects.
    name: usize,
    /// Whether that name itself covers, or the end of it that is kept does.
    covers: bool,
    /// How deep JSON in strings is yet read.
    depth: u8,
    /// Whether objects and arrays may stand one after the other.
    several: bool,
    frames: Vec<Frame>,
    expects: Expects,
    token: Token,
    /// The token as it came; of a long one what is not decoded.
    held: Vec<u8>,
    failed: Option<Why>,
}

/// An object or array that has not ended.
struct Frame {
    is_object: bool,
    /// The rule that covers all of it.
    covered: Option<Rule>,
    /// Where in `names` those of its values are.
    base: usize,
    /// Where the name of the next value is, and the rule that covers it.
    name: (usize, usize),
    rule: Option<Rule>,
    /// Whether the name covers though no rule says so: of a long name just the end is kept, and looked up again.
    covers: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// A value, or nothing at all.
    First,
    Value,
    ValueOrEnd,
    Name,
    NameOrEnd,
    Colon,
    CommaOrEnd,
    /// The whole has ended. Whether another object or array may follow; a number after a number could be one to a
    /// reader, and would not be looked at as one.
    Nothing {
        more: bool,
    },
}

enum Token {
    None,
    /// A number, `true`, `false` or `null`.
    Word,
    /// Whether the next byte is escaped.
    String {
        escaped: bool,
    },
    /// A string too long to be held.
    Long {
        escaped: bool,
        stream: Box<Stream>,
        partial: Vec<u8>,
    },
    /// A string for which something else stands already.
    Skipped {
        escaped: bool,
    },
}

impl core::fmt::Debug for Json {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Json").field("deep", &self.frames.len()).field("failed", &self.failed).finish_non_exhaustive()
    }
}

/// Whether a text may be JSON in a string. Numbers need no second look.
pub(super) fn looks_so(text: &[u8]) -> bool {
    matches!(text.trim_ascii_start().first(), Some(b'{' | b'[' | b'"'))
}

/// Whether a text begins as an object does, or as a list of texts or objects.
fn nests(text: &[u8]) -> bool {
    matches!(text.trim_ascii_start(), [b'{', ..] | [b'[', b'"' | b'{', ..])
}

/// Cleans a text that is JSON; none if it is not.
pub(super) fn whole(scan: Scan<'_>, name: &str, text: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
    let mut json = Json::new(scan.depth, name, false);
    json.covers = scan.rules.field(name).is_some();
    let mut out = Vec::new();
    json.push(scan.rules, text, &mut out, findings);
    json.finish(scan.rules, &mut out, findings).ok()?;
    Some(out)
}

impl Json {
    pub(super) fn new(depth: u8, name: &str, several: bool) -> Self {
        let expects = if several { Expects::First } else { Expects::Value };
        Self {
            names: name.into(),
            name: name.len(),
            covers: false,
            depth,
            several,
            frames: Vec::new(),
            expects,
            token: Token::None,
            held: Vec::new(),
            failed: None,
        }
    }

    pub(super) fn push(&mut self, rules: &Rules, part: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        let scan = Scan { rules, depth: self.depth };
        let mut blocks = Blocks::new(part, rules.anchors().0);
        let mut rest = part;
        while self.failed.is_none() {
            if let Token::None = self.token {
                rest = self.glide(scan, part, part.len().saturating_sub(rest.len()), &mut blocks, out, findings);
            }
            let Some((byte, after)) = rest.split_first() else { break };
            let step = match &mut self.token {
                Token::None => self.structure(*byte, out).map(|taken| if taken { after } else { rest }),
                Token::Word => self.word(scan, rest, out, findings),
                Token::String { escaped } | Token::Long { escaped, .. } | Token::Skipped { escaped } => {
                    // Up to the next byte that says something.
                    let taken = if *escaped {
                        1
                    } else {
                        memchr::memchr2(b'"', b'\\', rest).map_or(rest.len(), |at| at.saturating_add(1))
                    };
                    let taken = taken.min(LONG.saturating_add(1).saturating_sub(self.held.len()).max(1));
                    let (piece, after) = rest.split_at_checked(taken).unwrap_or((rest, &[]));
                    let last = piece.last().copied().unwrap_or(0);
                    let ends = !*escaped && last == b'"';
                    *escaped = !*escaped && last == b'\\';
                    let piece = if ends { piece.split_last().map_or(piece, |(_, piece)| piece) } else { piece };
                    self.string(scan, piece, ends, out, findings).map(|()| after)
                }
            };
            match step {
                Ok(after) => rest = after,
                Err(why) => self.failed = Some(why),
            }
        }
    }

    /// Why nothing that was written may be used.
    pub(super) fn failed(&self) -> Option<Why> {
        self.failed
    }

    pub(super) fn finish(mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) -> Result<(), Why> {
        if let (Token::Word, None) = (&self.token, self.failed) {
            self.end_word(Scan { rules, depth: self.depth }, out, findings)?;
        }
        match (self.failed, self.token, self.expects) {
            (Some(why), ..) => Err(why),
            (None, Token::None, Expects::Nothing { .. } | Expects::First) => Ok(()),
            _ => Err(Why::Broken),
        }
    }

    /// Takes a byte that is not of a token, or sees that one begins with it.
    fn structure(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<bool, Why> {
        let scalar = matches!(self.expects, Expects::First | Expects::Value | Expects::ValueOrEnd);
        let value = scalar || self.expects == (Expects::Nothing { more: true });
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b'{' | b'[' if value => {
                if self.frames.len() >= DEEP {
                    return Err(Why::Deep);
                }
                self.open(byte == b'{');
            }
            b'}' | b']' => {
                let fits = match self.expects {
                    Expects::CommaOrEnd => true,
                    Expects::ValueOrEnd => byte == b']',
                    Expects::NameOrEnd => byte == b'}',
                    _ => false,
                };
                if !fits || !self.close(byte == b'}') {
                    return Err(Why::Broken);
                }
            }
            b',' if self.expects == Expects::CommaOrEnd => {
                let is_object = self.frames.last().is_some_and(|frame| frame.is_object);
                self.expects = if is_object { Expects::Name } else { Expects::Value };
            }
            b':' if self.expects == Expects::Colon => self.expects = Expects::Value,
            b'"' if scalar || matches!(self.expects, Expects::Name | Expects::NameOrEnd) => {
                self.token = Token::String { escaped: false };
                return Ok(true);
            }
            b'-' | b'0'..=b'9' | b'a'..=b'z' if scalar => {
                self.token = Token::Word;
                return Ok(false);
            }
            _ => return Err(Why::Broken),
        }
        out.push(byte);
        Ok(true)
    }

    /// An object or an array begins.
    fn open(&mut self, is_object: bool) {
        let outer = (0, self.name);
        let (name, rule, covers) =
            self.frames.last().map_or((outer, None, self.covers), |frame| (frame.name, frame.rule, frame.covers));
        self.frames.push(Frame { is_object, covered: rule, base: self.names.len(), name, rule, covers });
        self.expects = if is_object { Expects::NameOrEnd } else { Expects::ValueOrEnd };
    }

    /// An object or an array ends, if it is what there is.
    fn close(&mut self, is_object: bool) -> bool {
        let Some(frame) = self.frames.pop_if(|frame| frame.is_object == is_object) else { return false };
        self.names.truncate(frame.base);
        self.ended(true);
        true
    }

    /// The name of the value that comes, and the rule that covers it.
    fn context(&self) -> (&str, Option<Rule>) {
        let ((start, end), rule) = self.frames.last().map_or(((0, self.name), None), |frame| (frame.name, frame.rule));
        (self.names.get(start..end).unwrap_or(""), rule)
    }

    /// A value has ended.
    fn ended(&mut self, was_nest: bool) {
        self.token = Token::None;
        self.expects = match self.frames.last() {
            Some(_) => Expects::CommaOrEnd,
            None => Expects::Nothing { more: self.several && was_nest },
        };
    }

    /// The name of a value has ended.
    fn named(&mut self, name: &[u8], rule: Option<Rule>) {
        self.token = Token::None;
        self.expects = Expects::Colon;
        self.note(name, rule);
    }

    /// Keeps the name of the next value.
    fn note(&mut self, name: &[u8], rule: Option<Rule>) {
        if let Some(frame) = self.frames.last_mut() {
            frame.rule = frame.covered.or(rule);
            let tail = name.get(name.len().saturating_sub(NAME)..).unwrap_or(name);
            self.names.truncate(frame.base);
            match core::str::from_utf8(tail) {
                Ok(tail) => self.names.push_str(tail),
                Err(_) => self.names.push_str(&String::from_utf8_lossy(tail)),
            }
            frame.name = (frame.base, self.names.len());
            // Any name that is not long was looked up.
            frame.covers = name.len() > NAME;
        }
    }

    /// Takes tokens that are whole and plain, and says what is left. What is taken is just what would become of it
    /// byte by byte, so it may stop anywhere: at what is escaped, broken or long, and at the end of the part.
    #[inline(never)]
    fn glide<'t>(
        &mut self,
        scan: Scan<'_>,
        part: &'t [u8],
        from: usize,
        blocks: &mut Blocks<'t>,
        out: &mut Vec<u8>,
        findings: &mut Findings,
    ) -> &'t [u8] {
        let own = scan.rules.anchors().1;
        let covers = |json: &Self| own || json.frames.last().map_or(json.covers, |frame| frame.covers);
        let (mut at, mut written) = (from, from);
        // A name that is not kept yet, and what covers its value.
        let mut name: Option<&[u8]> = None;
        let mut rule = self.context().1;
        // Whether values have to be looked at whatever is in them.
        let mut asks = rule.is_some() || covers(self);
        let mut expects = self.expects;
        // What comes after a value, and if there is anything around it, after a comma.
        let follows = |json: &Self| match json.frames.last() {
            None => (Expects::Nothing { more: false }, None),
            Some(frame) if frame.is_object => (Expects::CommaOrEnd, Some(Expects::Name)),
            Some(_) => (Expects::CommaOrEnd, Some(Expects::Value)),
        };
        let (mut after, mut next) = follows(self);
        blocks.begin(at);
        let mut end = blocks.end();
        loop {
            if at >= end {
                blocks.begin(at);
                end = blocks.end();
            }
            let is_name = matches!(expects, Expects::Name | Expects::NameOrEnd);
            if !asks && (is_name || matches!(expects, Expects::Value | Expects::ValueOrEnd)) && next.is_some() {
                let run = run(scan, part, blocks, at, is_name, next == Some(Expects::Name));
                if run.at > at {
                    (at, expects) = (run.at, run.expects);
                    name = run.name.or(name);
                }
            }
            let Some(byte) = part.get(at) else { break };
            let scalar = matches!(expects, Expects::First | Expects::Value | Expects::ValueOrEnd);
            let (start, stop) = match byte {
                byte if is_blank(*byte) => {
                    at = at.wrapping_add(1);
                    continue;
                }
                b',' if expects == Expects::CommaOrEnd => {
                    expects = next.unwrap_or(after);
                    at = at.wrapping_add(1);
                    continue;
                }
                b':' if expects == Expects::Colon => {
                    expects = Expects::Value;
                    at = at.wrapping_add(1);
                    continue;
                }
                b'"' => {
                    let start = at.wrapping_add(1);
                    let Some((stop, values, names)) = blocks.string(start) else {
                        if blocks.begin(at) {
                            end = blocks.end();
                            continue;
                        }
                        break;
                    };
                    if !scalar {
                        let text = part.get(start..stop).unwrap_or(&[]);
                        if !matches!(expects, Expects::Name | Expects::NameOrEnd)
                            || text.len() > NAME
                            || own
                            || (names && !is_plain_name(scan, text))
                        {
                            break;
                        }
                        let found = if scan.rules.may_be_field(text) { scan.field(text) } else { None };
                        rule = self.frames.last().and_then(|frame| frame.covered).or(found);
                        name = Some(text);
                        if found.is_some() {
                            self.note(text, found);
                            name = None;
                        }
                        asks = rule.is_some();
                        at = stop.wrapping_add(1);
                        // Mostly here, which saves a turn.
                        let colon = part.get(at) == Some(&b':');
                        expects = if colon { Expects::Value } else { Expects::Colon };
                        at = at.wrapping_add(usize::from(colon));
                        continue;
                    }
                    if !(asks || values) {
                        (expects, at) = behind(part, stop.wrapping_add(1), after, next);
                        continue;
                    }
                    (start, stop)
                }
                b'-' | b'0'..=b'9' | b'a'..=b'z' if scalar => {
                    let rest = part.get(at..).unwrap_or(&[]);
                    let stop = at.wrapping_add(rest.iter().position(|byte| !is_of_word(*byte)).unwrap_or(rest.len()));
                    let word = part.get(at..stop).unwrap_or(&[]);
                    if stop >= end && blocks.begin(at) {
                        end = blocks.end();
                        continue;
                    }
                    if stop >= end || word.len() > LONG {
                        break;
                    }
                    let literal = matches!(word, b"true" | b"false" | b"null");
                    if !literal && !is_number(word) {
                        break;
                    }
                    if literal || !(asks || blocks.values(at, stop)) {
                        (expects, at) = behind(part, stop, after, next);
                        continue;
                    }
                    (at, stop)
                }
                b'{' | b'[' if scalar || expects == (Expects::Nothing { more: true }) => {
                    if self.frames.len() >= DEEP {
                        break;
                    }
                    if let Some(name) = name.take() {
                        self.note(name, None);
                    }
                    self.open(*byte == b'{');
                    expects = self.expects;
                    (after, next) = follows(self);
                    at = at.wrapping_add(1);
                    continue;
                }
                b'}' | b']' => {
                    let fits = match expects {
                        Expects::CommaOrEnd => true,
                        Expects::ValueOrEnd => *byte == b']',
                        Expects::NameOrEnd => *byte == b'}',
                        _ => false,
                    };
                    if !fits || !self.close(*byte == b'}') {
                        break;
                    }
                    name = None;
                    rule = self.context().1;
                    asks = rule.is_some() || covers(self);
                    expects = self.expects;
                    (after, next) = follows(self);
                    at = at.wrapping_add(1);
                    continue;
                }
                _ => break,
            };
            let text = part.get(start..stop).unwrap_or(&[]);
            let is_string = start > at;
            if is_string && !is_plain(text) {
                break;
            }
            if asks || scan.may_change(text) {
                if let Some(name) = name.take() {
                    self.note(name, None);
                }
                if let Some(clean) = self.clean(scan, text, findings) {
                    out.extend_from_slice(part.get(written..at).unwrap_or(&[]));
                    write_string(&clean, out);
                    written = if is_string { stop.wrapping_add(1) } else { stop };
                }
            }
            let stop = if is_string { stop.wrapping_add(1) } else { stop };
            (expects, at) = behind(part, stop, after, next);
        }
        if let Some(name) = name {
            self.note(name, None);
        }
        self.expects = expects;
        out.extend_from_slice(part.get(written..at).unwrap_or(&[]));
        part.get(at..).unwrap_or(&[])
    }

    /// Takes what is of a number or a word.
    fn word<'t>(
        &mut self,
        scan: Scan<'_>,
        rest: &'t [u8],
        out: &mut Vec<u8>,
        findings: &mut Findings,
    ) -> Result<&'t [u8], Why> {
        let length = rest.iter().take_while(|byte| is_of_word(**byte)).count();
        let (piece, after) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        if self.held.len().saturating_add(piece.len()) > LONG {
            return Err(Why::Long);
        }
        self.held.extend_from_slice(piece);
        if !after.is_empty() {
            self.end_word(scan, out, findings)?;
        }
        Ok(after)
    }

    fn end_word(&mut self, scan: Scan<'_>, out: &mut Vec<u8>, findings: &mut Findings) -> Result<(), Why> {
        let word = core::mem::take(&mut self.held);
        self.write_word(scan, &word, out, findings)?;
        self.held = word;
        self.held.clear();
        self.ended(false);
        Ok(())
    }

    fn write_word(&self, scan: Scan<'_>, word: &[u8], out: &mut Vec<u8>, findings: &mut Findings) -> Result<(), Why> {
        // They say nothing of anyone, and have no text to cover.
        if matches!(word, b"true" | b"false" | b"null") {
            out.extend_from_slice(word);
            return Ok(());
        }
        if !is_number(word) {
            return Err(Why::Broken);
        }
        match self.clean(scan, word, findings) {
            None => out.extend_from_slice(word),
            Some(clean) => write_string(&clean, out),
        }
        Ok(())
    }

    /// Covers or cleans a value; none if it stays.
    fn clean(&self, scan: Scan<'_>, text: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
        match self.context() {
            (_, Some(rule)) => Some(scan.rules.cover(rule, text, findings)).filter(|cover| cover != text),
            // Deeper than anyone needs it is not taken apart, and so not shown.
            (_, None) if scan.depth == 0 && nests(text) => {
                findings.add_unscanned();
                Some(UNSCANNED.into())
            }
            (name, None) => scan.value(name, text, findings),
        }
    }

    /// Takes what is of a string, without the quote at its end.
    fn string(
        &mut self,
        scan: Scan<'_>,
        piece: &[u8],
        ends: bool,
        out: &mut Vec<u8>,
        findings: &mut Findings,
    ) -> Result<(), Why> {
        let is_name = matches!(self.expects, Expects::Name | Expects::NameOrEnd);
        match &mut self.token {
            Token::None | Token::Word => {}
            Token::Skipped { .. } if !ends => {}
            Token::Skipped { .. } => {
                if is_name {
                    self.named(UNSCANNED, None);
                } else {
                    self.ended(false);
                }
            }
            Token::String { escaped } => {
                self.held.extend_from_slice(piece);
                let escaped = *escaped;
                if self.held.len() > LONG {
                    self.begin_long(scan, is_name, escaped, out, findings)?;
                } else if ends {
                    let raw = core::mem::take(&mut self.held);
                    self.end_string(scan, is_name, &raw, out, findings)?;
                    self.held = raw;
                    self.held.clear();
                }
            }
            Token::Long { stream, partial, .. } => {
                self.held.extend_from_slice(piece);
                if !ends && self.held.len() < PIECE {
                    return Ok(());
                }
                let mut text = Vec::new();
                let taken = unescape(&self.held, ends, &mut text)?;
                if !goes_on_as_utf8(partial, self.held.get(..taken).unwrap_or(&[])) || (ends && !partial.is_empty()) {
                    return Err(Why::Encoding);
                }
                self.held.drain(..taken.min(self.held.len()));
                let mut clean = Vec::new();
                stream.push(scan.rules, &text, &mut clean, findings);
                if ends && let Token::Long { stream, .. } = core::mem::replace(&mut self.token, Token::None) {
                    stream.finish(scan.rules, &mut clean, findings);
                    escape(&clean, out);
                    out.push(b'"');
                    self.ended(false);
                } else {
                    escape(&clean, out);
                }
            }
        }
        Ok(())
    }

    /// Writes a name or a string.
    fn end_string(
        &mut self,
        scan: Scan<'_>,
        is_name: bool,
        raw: &[u8],
        out: &mut Vec<u8>,
        findings: &mut Findings,
    ) -> Result<(), Why> {
        core::str::from_utf8(raw).map_err(|_| Why::Encoding)?;
        let mut text = Cow::Borrowed(raw);
        if raw.iter().any(|byte| matches!(byte, b'\\' | 0..b' ')) {
            let mut plain = Vec::new();
            unescape(raw, true, &mut plain)?;
            text = Cow::Owned(plain);
        }
        let (mut rule, mut clean) = (None, None);
        if is_name {
            rule = scan.field(&text);
            // Also where its last part alone says what the value is.
            if rule.is_none() || scan.rules.may_hold(&text) {
                clean = settle(&text, findings, |text, findings| super::changed(scan.rules.scrub("", text, findings)));
                // What is left may be a field's name, and would be found to be when it is cleaned again.
                rule = rule.or_else(|| clean.as_deref().and_then(|clean| scan.field(clean)));
            }
        } else {
            clean = self.clean(scan, &text, findings);
        }
        match &clean {
            Some(clean) => write_string(clean, out),
            None => {
                out.push(b'"');
                out.extend_from_slice(raw);
                out.push(b'"');
            }
        }
        if is_name {
            self.named(clean.as_deref().unwrap_or(&text), rule);
        } else {
            self.ended(false);
        }
        Ok(())
    }

    /// Sees what becomes of a string that is too long to be held.
    fn begin_long(
        &mut self,
        scan: Scan<'_>,
        is_name: bool,
        escaped: bool,
        out: &mut Vec<u8>,
        findings: &mut Findings,
    ) -> Result<(), Why> {
        let mut text = Vec::new();
        unescape(&self.held, false, &mut text)?;
        let (name, rule) = self.context();
        let instead = match rule {
            Some(rule) if !is_name => Some(scan.rules.cover(rule, &text, findings)),
            // Of blanks alone it is not known what they begin.
            _ if is_name || text.trim_ascii().is_empty() || looks_so(&text) || scan.has_parts(&text) => {
                findings.add_unscanned();
                Some(UNSCANNED.into())
            }
            _ => None,
        };
        if let Some(instead) = instead {
            write_string(&instead, out);
            self.held.clear();
            self.token = Token::Skipped { escaped };
        } else {
            let stream = Box::new(scan.rules.stream(name));
            out.push(b'"');
            self.token = Token::Long { escaped, stream, partial: Vec::new() };
        }
        Ok(())
    }
}

/// How far tokens were taken, what comes then, and the last name if there was one.
struct Run<'t> {
    at: usize,
    expects: Expects,
    name: Option<&'t [u8]>,
}

/// Takes names and values of one object or array as long as nothing in them has to be looked at. Kept small, because most
/// bytes pass here.
#[inline(never)]
fn run<'t>(
    scan: Scan<'_>,
    part: &'t [u8],
    blocks: &mut Blocks<'t>,
    from: usize,
    is_name: bool,
    is_object: bool,
) -> Run<'t> {
    let mut run = Run { at: from, expects: if is_name { Expects::Name } else { Expects::Value }, name: None };
    let mut at = from;
    let mut is_name = is_name;
    while let Some(byte) = part.get(at) {
        if is_blank(*byte) {
            at = at.wrapping_add(1);
            continue;
        }
        if is_name {
            let start = at.wrapping_add(1);
            if *byte != b'"' {
                break;
            }
            let Some((stop, _, looks)) = blocks.string(start) else { break };
            let Some(name) = part.get(start..stop) else { break };
            let found = name.len() > NAME || scan.rules.may_be_field(name) || (looks && !is_plain_name(scan, name));
            if found || part.get(stop.wrapping_add(1)) != Some(&b':') {
                break;
            }
            at = stop.wrapping_add(2);
            is_name = false;
            (run.at, run.expects, run.name) = (at, Expects::Value, Some(name));
            continue;
        }
        if *byte == b'"' {
            let start = at.wrapping_add(1);
            let Some((stop, looks, _)) = blocks.string(start) else { break };
            if looks && !part.get(start..stop).is_some_and(|text| is_plain(text) && !scan.may_change(text)) {
                break;
            }
            at = stop.wrapping_add(1);
        } else if let Some(stop) = plain_word(scan, part, at, blocks) {
            at = stop;
        } else {
            break;
        }
        (run.at, run.expects) = (at, Expects::CommaOrEnd);
        if part.get(at) != Some(&b',') {
            break;
        }
        at = at.wrapping_add(1);
        is_name = is_object;
        (run.at, run.expects) = (at, if is_object { Expects::Name } else { Expects::Value });
    }
    run
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The end of a number or word in which nothing has to be looked at.
fn plain_word(scan: Scan<'_>, part: &[u8], at: usize, blocks: &mut Blocks<'_>) -> Option<usize> {
    let rest = part.get(at..blocks.end())?;
    let (word, _) = rest.split_at_checked(rest.iter().position(|byte| !is_of_word(*byte))?)?;
    let stop = at.wrapping_add(word.len());
    (matches!(word, b"true" | b"false" | b"null")
        || (is_number(word) && (word.len() < FEWEST || !blocks.values(at, stop) || !scan.may_change(word))))
    .then_some(stop)
}

/// What is expected behind a value, and where: a comma is mostly there, and is taken with it.
#[inline]
fn behind(part: &[u8], at: usize, after: Expects, next: Option<Expects>) -> (Expects, usize) {
    match next {
        Some(next) if part.get(at) == Some(&b',') => (next, at.wrapping_add(1)),
        _ => (after, at),
    }
}

/// Whether a string is as it is written.
fn is_plain(text: &[u8]) -> bool {
    let odd = text.iter().fold(false, |odd, byte| odd | (*byte < b' ') | (*byte == b'\\'));
    !odd && (text.is_ascii() || core::str::from_utf8(text).is_ok())
}

/// Whether nothing is to be found in a name, which is as it is written.
fn is_plain_name(scan: Scan<'_>, name: &[u8]) -> bool {
    is_plain(name) && !scan.rules.may_hold(name) && scan.field(name).is_none()
}

fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

/// Whether a word is a number as JSON has it.
fn is_number(word: &[u8]) -> bool {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let word = word.strip_prefix(b"-").unwrap_or(word);
    let (whole, rest) = word.split_at_checked(digits(word)).unwrap_or((word, &[]));
    if whole.is_empty() || (whole.len() > 1 && whole.starts_with(b"0")) {
        return false;
    }
    let mut rest = rest;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = digits(fraction);
        if length == 0 {
            return false;
        }
        rest = fraction.get(length..).unwrap_or(&[]);
    }
    match rest {
        [] => true,
        [b'e' | b'E', b'+' | b'-', power @ ..] | [b'e' | b'E', power @ ..] => {
            !power.is_empty() && digits(power) == power.len()
        }
        _ => false,
    }
}

/// Decodes a string, up to an escape that is not whole unless this is `all` of it, and says how much that was. Halves
/// of pairs that stand alone become U+FFFD.
fn unescape(raw: &[u8], all: bool, out: &mut Vec<u8>) -> Result<usize, Why> {
    let mut rest = raw;
    loop {
        let plain = memchr::memchr(b'\\', rest).unwrap_or(rest.len());
        let (plain, escape) = rest.split_at_checked(plain).unwrap_or((rest, &[]));
        if plain.iter().any(|byte| *byte < b' ') {
            return Err(Why::Broken);
        }
        out.extend_from_slice(plain);
        rest = escape;
        let cut = if all { Err(Why::Broken) } else { Ok(raw.len().saturating_sub(rest.len())) };
        let [_, kind, after @ ..] = rest else {
            return if rest.is_empty() { Ok(raw.len()) } else { cut };
        };
        let byte = match kind {
            b'"' | b'\\' | b'/' => *kind,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let Some((digits, mut after)) = after.split_first_chunk() else { return cut };
                let mut code = four(digits)?;
                if (0xD800..0xDC00).contains(&code) {
                    if !all && after.len() < 6 {
                        return cut;
                    }
                    if let Some(([b'\\', b'u', digits @ ..], behind)) = after.split_first_chunk::<6>()
                        && let low @ 0xDC00..0xE000 = four(digits)?
                    {
                        code = (code & 0x3FF) << 10 | (low & 0x3FF);
                        code = code.saturating_add(0x1_0000);
                        after = behind;
                    }
                }
                let letter = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
                continue;
            }
            _ => return Err(Why::Broken),
        };
        out.push(byte);
        rest = after;
    }
}

/// Four hex digits.
fn four(digits: &[u8; 4]) -> Result<u32, Why> {
    digits.iter().try_fold(0, |code, digit| Ok(code << 4 | u32::from(hex(*digit).ok_or(Why::Broken)?)))
}

fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    escape(String::from_utf8_lossy(text).as_bytes(), out);
    out.push(b'"');
}

fn escape(text: &[u8], out: &mut Vec<u8>) {
    if !text.iter().fold(false, |odd, byte| odd | matches!(byte, b'"' | b'\\' | 0..b' ')) {
        out.extend_from_slice(text);
        return;
    }
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..b' ' => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            byte => out.push(*byte),
        }
    }
}
