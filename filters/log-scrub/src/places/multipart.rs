//! `multipart/form-data`, RFC 7578.
//!
//! Lines may end with a line feed alone, as some readers take them: whichever way such text is split, all of it is
//! cleaned or not shown. What stands before the first boundary or after the last one is nothing that anyone sends.

use super::encoding::SEGMENT;
use super::{LONG, Scan, UNSCANNED, Why, settle};
use crate::{Findings, Rule, Rules};
use kit::prelude::*;
use memchr::memmem::Finder;

/// The longest boundary, RFC 2046.
const BOUNDARY: usize = 70;

/// The longest head of a part.
const HEAD: usize = 8 << 10;

/// The most spaces after a boundary.
const PADDING: usize = 64;

/// So much is taken at a time.
const PIECE: usize = 8 << 10;

/// A form that comes in parts of any size: part by part, each with its name and its value.
pub(super) struct Multipart {
    /// The boundary after two dashes at the beginning of a line.
    line: Finder<'static>,
    phase: Phase,
    /// What is not decided.
    pending: Vec<u8>,
    failed: Option<Why>,
}

enum Phase {
    /// Before the first boundary.
    Begin,
    /// In the head of a part.
    Head(Vec<u8>),
    Value(Value),
    /// After the last boundary.
    End,
}

/// A value of which the end has not come.
struct Value {
    kind: Kind,
    held: Vec<u8>,
    /// Whether anything of it came.
    begun: bool,
}

enum Kind {
    /// Text of a field of this name.
    Text(String),
    Covered(Rule),
    /// A file, or what else is not looked at.
    Other,
}

/// What a line that begins with two dashes and the boundary is.
enum Border {
    /// None: it goes on with something else.
    None,
    /// Not enough of it came.
    Open,
    /// The end of a part, so long with its line end.
    Next(usize),
    /// The end of all.
    Last(usize),
}

impl core::fmt::Debug for Multipart {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Multipart")
            .field("held", &self.pending.len())
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl Multipart {
    pub(super) fn new(boundary: &[u8]) -> Self {
        let such = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
        let valid = (1..=BOUNDARY).contains(&boundary.len()) && boundary.iter().all(such) && !boundary.ends_with(b" ");
        Self {
            line: Finder::new(&[b"\n--", boundary].concat()).into_owned(),
            phase: Phase::Begin,
            pending: Vec::new(),
            failed: (!valid).then_some(Why::Broken),
        }
    }

    pub(super) fn push(&mut self, rules: &Rules, part: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        for piece in part.chunks(PIECE) {
            if self.failed.is_some() {
                return;
            }
            self.pending.extend_from_slice(piece);
            loop {
                match self.step(rules, out, findings) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(why) => {
                        self.failed = Some(why);
                        break;
                    }
                }
            }
        }
    }

    /// Why nothing that was written may be used.
    pub(super) fn failed(&self) -> Option<Why> {
        self.failed
    }

    pub(super) fn finish(self) -> Result<(), Why> {
        match (self.failed, self.phase) {
            (Some(why), _) => Err(why),
            (None, Phase::End) => Ok(()),
            (None, _) => Err(Why::Broken),
        }
    }

    /// Takes what is decided of what is pending, and says whether there may be more.
    fn step(&mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) -> Result<bool, Why> {
        match &mut self.phase {
            Phase::Begin => {
                // Some begin with an empty line.
                let blank = self.pending.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
                let text = self.pending.get(blank..).unwrap_or(&[]);
                let dashes = self.line.needle().get(1..).unwrap_or(&[]);
                let came = text.get(..dashes.len()).unwrap_or(text);
                if blank > 2 || !dashes.starts_with(came) {
                    return Err(Why::Broken);
                }
                if came.len() < dashes.len() {
                    return Ok(false);
                }
                self.border(blank, out)
            }
            Phase::Head(head) => {
                let end = super::find(b'\n', &self.pending).map(|end| end.saturating_add(1));
                let taken = end.unwrap_or(self.pending.len());
                if head.len().saturating_add(taken) > HEAD {
                    return Err(Why::Long);
                }
                if end.is_none() {
                    return Ok(false);
                }
                let line = self.pending.get(..taken).unwrap_or(&[]);
                let blank = matches!(line, b"\n" | b"\r\n");
                if blank {
                    let head = core::mem::take(head);
                    let kind = clean_head(Scan::new(rules), &head, out, findings)?;
                    out.extend_from_slice(line);
                    self.phase = Phase::Value(Value { kind, held: Vec::new(), begun: false });
                } else {
                    head.extend_from_slice(line);
                }
                self.take(taken);
                Ok(true)
            }
            Phase::Value(value) => {
                // Where nothing is between, the empty line is also the one before the boundary.
                let dashes = self.line.needle().get(1..).unwrap_or(&[]);
                if !value.begun && dashes.starts_with(self.pending.get(..dashes.len()).unwrap_or(&self.pending)) {
                    match border(self.pending.get(dashes.len()..)) {
                        Border::Open => return Ok(false),
                        Border::None => {}
                        _ => {
                            value.write(rules, out, findings);
                            return self.border(0, out);
                        }
                    }
                }
                let mut from = 0_usize;
                loop {
                    let rest = self.pending.get(from..).unwrap_or(&[]);
                    let found = self.line.find(rest).map(|at| from.saturating_add(at));
                    let room = self.line.needle().len();
                    // A carriage return may belong to the line end before the boundary.
                    let sure = found.unwrap_or(self.pending.len().saturating_sub(room));
                    let before = sure.checked_sub(1).and_then(|at| self.pending.get(at));
                    let sure = if before == Some(&b'\r') { sure.saturating_sub(1) } else { sure };
                    let is = found.map(|at| border(self.pending.get(at.saturating_add(room)..)));
                    if let Some(Border::None) = is {
                        from = found.unwrap_or(0).saturating_add(1);
                        continue;
                    }
                    value.add(self.pending.get(..sure).unwrap_or(&[]));
                    if let Some(Border::Next(_) | Border::Last(_)) = is {
                        value.write(rules, out, findings);
                        let dashes = found.unwrap_or(0).saturating_add(1);
                        out.extend_from_slice(self.pending.get(sure..dashes).unwrap_or(&[]));
                        self.take(dashes);
                        return self.border(0, out);
                    }
                    self.take(sure);
                    return Ok(false);
                }
            }
            Phase::End => {
                if !self.pending.iter().all(u8::is_ascii_whitespace) {
                    return Err(Why::Broken);
                }
                out.append(&mut self.pending);
                Ok(false)
            }
        }
    }

    /// Takes the line of a boundary whose dashes come after so many bytes.
    fn border(&mut self, before: usize, out: &mut Vec<u8>) -> Result<bool, Why> {
        let after = before.saturating_add(self.line.needle().len()).saturating_sub(1);
        let (phase, length) = match border(self.pending.get(after..)) {
            Border::None => return Err(Why::Broken),
            Border::Open => return Ok(false),
            Border::Next(length) => (Phase::Head(Vec::new()), length),
            Border::Last(length) => (Phase::End, length),
        };
        let end = after.saturating_add(length);
        out.extend_from_slice(self.pending.get(..end).unwrap_or(&[]));
        self.take(end);
        self.phase = phase;
        Ok(true)
    }

    fn take(&mut self, length: usize) {
        self.pending.drain(..length.min(self.pending.len()));
    }
}

/// Looks at what follows a boundary.
fn border(rest: Option<&[u8]>) -> Border {
    let rest = rest.unwrap_or(&[]);
    if let [b'-', more @ ..] = rest {
        return match more {
            [] => Border::Open,
            [b'-', ..] => Border::Last(2),
            _ => Border::None,
        };
    }
    let spaces = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match rest.get(spaces..) {
        _ if spaces > PADDING => Border::None,
        Some([b'\n', ..]) => Border::Next(spaces.saturating_add(1)),
        Some([b'\r', b'\n', ..]) => Border::Next(spaces.saturating_add(2)),
        Some([] | [b'\r']) => Border::Open,
        _ => Border::None,
    }
}

impl Value {
    fn add(&mut self, part: &[u8]) {
        self.begun = self.begun || !part.is_empty();
        let room = match self.kind {
            Kind::Other => 0,
            _ => LONG.saturating_add(1).saturating_sub(self.held.len()),
        };
        self.held.extend_from_slice(part.get(..room).unwrap_or(part));
    }

    /// Writes the value, which is whole.
    fn write(&mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        let held = core::mem::take(&mut self.held);
        let long = held.len() > LONG;
        match &self.kind {
            Kind::Covered(rule) => {
                let value = if long { UNSCANNED } else { &held };
                out.extend_from_slice(&rules.cover(*rule, value, findings));
            }
            Kind::Text(name) if !long && core::str::from_utf8(&held).is_ok() => {
                out.extend_from_slice(&clean_text(Scan::new(rules), name, &held, findings).unwrap_or(held));
            }
            _ if !self.begun => {}
            _ => {
                findings.add_unscanned();
                out.extend_from_slice(UNSCANNED);
            }
        }
    }
}

/// Cleans a text as it is, and as it may be encoded though it should not; none if there was nothing to find.
fn clean_text(scan: Scan<'_>, name: &str, text: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
    settle(text, findings, |text, findings| {
        let plain = scan.value(name, text, findings);
        let encoded = SEGMENT.clean(scan, name, plain.as_deref().unwrap_or(text), findings);
        encoded.or(plain)
    })
}

/// Writes the head of a part, and says what its value is.
fn clean_head(scan: Scan<'_>, head: &[u8], out: &mut Vec<u8>, findings: &mut Findings) -> Result<Kind, Why> {
    core::str::from_utf8(head).map_err(|_| Why::Encoding)?;
    let (mut disposition, mut plain) = (None, true);
    for line in head.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let end = line.get(text.len()..).unwrap_or(&[]);
        let colon = super::find(b':', text).ok_or(Why::Broken)?;
        let (name, rest) = text.split_at_checked(colon).ok_or(Why::Broken)?;
        let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        if name.is_empty() || !name.iter().all(is_token) || text.iter().any(|byte| *byte == b'\r' || *byte == 0) {
            return Err(Why::Broken);
        }
        let value = rest.get(1..).unwrap_or(&[]).trim_ascii();
        let blank = rest.iter().skip(1).take_while(|byte| byte.is_ascii_whitespace()).count();
        out.extend_from_slice(name);
        out.extend_from_slice(rest.get(..=blank).unwrap_or(rest));
        if name.eq_ignore_ascii_case(b"content-disposition") {
            if disposition.is_some() {
                return Err(Why::Broken);
            }
            let mut clean = Vec::new();
            let all = clean_disposition(scan, value, &mut clean, findings)?;
            out.extend_from_slice(if all.changed { &clean } else { value });
            disposition = Some(all);
        } else {
            plain &= if name.eq_ignore_ascii_case(b"content-type") {
                is_plain(value)
            } else if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
                [b"7bit".as_slice(), b"8bit", b"binary"].iter().any(|known| value.eq_ignore_ascii_case(known))
            } else {
                true
            };
            let clean = match scan.field(name) {
                Some(rule) => Some(scan.rules.cover(rule, value, findings)),
                None => clean_text(scan, &String::from_utf8_lossy(name), value, findings),
            };
            out.extend_from_slice(clean.as_deref().unwrap_or(value));
        }
        out.extend_from_slice(end);
    }
    Ok(match disposition {
        Some(Disposition { name: Some(_), rule: Some(rule), .. }) => Kind::Covered(rule),
        Some(Disposition { name: Some(name), file: false, .. }) if plain => Kind::Text(name),
        _ => Kind::Other,
    })
}

/// Whether text of this type can be read here.
fn is_plain(kind: &[u8]) -> bool {
    let mut parts = kind.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let text = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"text/plain"));
    text && parts.all(|part| {
        let Some((name, set)) = part.split_at_checked(8) else { return true };
        let set = set.trim_ascii().trim_ascii_start();
        let set = set.strip_prefix(b"\"").and_then(|set| set.strip_suffix(b"\"")).unwrap_or(set);
        !name.eq_ignore_ascii_case(b"charset=")
            || [b"utf-8".as_slice(), b"utf8", b"us-ascii"].iter().any(|known| set.eq_ignore_ascii_case(known))
    })
}

/// What a part is for.
#[derive(Default)]
struct Disposition {
    name: Option<String>,
    rule: Option<Rule>,
    file: bool,
    /// Whether anything of it was cleaned.
    changed: bool,
}

/// Splits RFC 8187's `UTF-8'en'text` after the language.
fn set_and_language(text: &[u8]) -> Result<(&[u8], &[u8]), Why> {
    let is_quote = |byte: &u8| *byte == b'\'';
    let mut quotes = text.iter().enumerate().filter(|(_, byte)| is_quote(byte)).map(|(at, _)| at);
    let (_, second) = quotes.next().zip(quotes.next()).ok_or(Why::Broken)?;
    let (lead, text) = text.split_at_checked(second.saturating_add(1)).ok_or(Why::Broken)?;
    let such = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'\'');
    if lead.len() <= 32 && lead.iter().all(such) { Ok((lead, text)) } else { Err(Why::Broken) }
}

/// Writes what a Content-Disposition says, with the names in it cleaned.
fn clean_disposition(
    scan: Scan<'_>,
    value: &[u8],
    out: &mut Vec<u8>,
    findings: &mut Findings,
) -> Result<Disposition, Why> {
    let mut all = Disposition::default();
    let end = super::find(b';', value).unwrap_or(value.len());
    let (kind, mut rest) = value.split_at_checked(end).ok_or(Why::Broken)?;
    if kind.is_empty() || !kind.trim_ascii().iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-') {
        return Err(Why::Broken);
    }
    out.extend_from_slice(kind);
    while let [b';', after @ ..] = rest {
        out.extend_from_slice(b"; ");
        let after = after.trim_ascii_start();
        if after.is_empty() {
            break;
        }
        let equals = super::find(b'=', after).ok_or(Why::Broken)?;
        let (parameter, after) = after.split_at_checked(equals).ok_or(Why::Broken)?;
        let parameter = parameter.trim_ascii();
        if !parameter.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*')) {
            return Err(Why::Broken);
        }
        let after = after.get(1..).unwrap_or(&[]).trim_ascii_start();
        let (text, quoted, after) = parameter_value(after)?;
        rest = after.trim_ascii_start();
        if !matches!(rest, [] | [b';', ..]) {
            return Err(Why::Broken);
        }
        let extended = parameter.ends_with(b"*");
        let (lead, text) = if extended { set_and_language(&text)? } else { ([].as_slice(), text.as_slice()) };
        let clean = clean_text(scan, "", text, findings);
        let is = |name: &[u8]| parameter.strip_suffix(b"*").unwrap_or(parameter).eq_ignore_ascii_case(name);
        if is(b"name") {
            let name = clean.as_deref().unwrap_or(text);
            if all.name.is_some() {
                return Err(Why::Broken);
            }
            // What is left may be a field's name, and would be found to be when it is cleaned again.
            let field = |name| SEGMENT.find(name, |name| scan.field(name));
            all.rule = field(text).or_else(|| field(name));
            all.name = Some(String::from_utf8_lossy(&SEGMENT.decoded(name)).into_owned());
        } else if is(b"filename") {
            all.file = true;
        }
        out.extend_from_slice(parameter);
        out.push(b'=');
        // In another set, letters may be written that are not seen.
        let known = !extended || lead.get(..6).is_some_and(|set| set.eq_ignore_ascii_case(b"utf-8'"));
        all.changed |= clean.is_some() || !known;
        if !known {
            findings.add_unscanned();
            out.extend_from_slice(b"UTF-8''");
            out.extend_from_slice(UNSCANNED);
        } else if extended {
            out.extend_from_slice(lead);
            match &clean {
                Some(clean) => out.extend_from_slice(&SEGMENT.encoded(&SEGMENT.decoded(clean))),
                None => out.extend_from_slice(text),
            }
        } else if quoted || clean.is_some() {
            out.push(b'"');
            for byte in clean.as_deref().unwrap_or(text) {
                if matches!(byte, b'"' | b'\\') {
                    out.push(b'\\');
                }
                out.push(*byte);
            }
            out.push(b'"');
        } else {
            out.extend_from_slice(text);
        }
    }
    Ok(all)
}

/// The value that begins here, without quotes, whether it has them, and what follows.
fn parameter_value(text: &[u8]) -> Result<(Vec<u8>, bool, &[u8]), Why> {
    let [b'"', inside @ ..] = text else {
        let end = super::find(b';', text).unwrap_or(text.len());
        let (value, after) = text.split_at_checked(end).ok_or(Why::Broken)?;
        let value = value.trim_ascii();
        return if value.contains(&b'"') { Err(Why::Broken) } else { Ok((value.to_vec(), false, after)) };
    };
    let (mut value, mut rest) = (Vec::new(), inside);
    loop {
        match rest {
            // Only these are escaped; others write paths with a `\`.
            [b'\\', byte @ (b'"' | b'\\'), after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [b'"', after @ ..] => return Ok((value, true, after)),
            [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return Err(Why::Broken),
        }
    }
}
