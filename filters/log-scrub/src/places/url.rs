//! Paths, queries, and whole URLs as in Referer and Location.

use super::encoding::{AUTHORITY, Code, QUERY, SEGMENT};
use super::{Edit, Scan, UNSCANNED, changed, pieces};
use crate::{Findings, Rules};
use alloc::borrow::Cow;
use kit::alloc;
use kit::prelude::*;

/// Cleans a path, without a query.
pub fn path<'t>(rules: &Rules, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
    Scan::new(rules).path(text, findings)
}

/// Cleans a query, without its `?`.
pub fn query<'t>(rules: &Rules, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
    Scan::new(rules).query(text, findings)
}

/// Cleans a URL, whole or relative. Who logs in stays hidden whatever the rules say.
pub fn url<'t>(rules: &Rules, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
    Scan::new(rules).url(text, findings)
}

/// Whether a value is a URL, or the path and query of one.
pub(super) fn looks_so(text: &[u8]) -> bool {
    // Mostly there is none.
    if super::find(b'/', text).is_none() {
        return false;
    }
    let (scheme, rest) = text.split_at_checked(scheme(text)).unwrap_or((&[], text));
    rest.starts_with(b"//") || (scheme.is_empty() && rest.starts_with(b"/") && rest.contains(&b'?'))
}

/// How long the scheme is, with its colon.
fn scheme(text: &[u8]) -> usize {
    let such = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let length = text.iter().take_while(|byte| such(byte)).count();
    let is_one = text.first().is_some_and(u8::is_ascii_alphabetic) && text.get(length) == Some(&b':');
    if is_one { length.saturating_add(1) } else { 0 }
}

impl Scan<'_> {
    pub(super) fn path<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        if self.is_plain(text) { Cow::Borrowed(text) } else { self.segments(text, findings) }
    }

    pub(super) fn segments<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        let mut edit = Edit::new(text);
        // The segment before is context: `/phone/…`. It covers nothing: `/token/refresh` is no secret.
        let mut name = Cow::Borrowed("");
        for (start, segment) in pieces(text, |byte| byte == b'/') {
            let end = start.saturating_add(segment.len());
            let context = if self.rules.field(&name).is_some() { "" } else { &*name };
            let clean = if segment.contains(&b'=') {
                changed(self.pairs(SEGMENT, segment, findings))
            } else {
                SEGMENT.clean(self, context, segment, findings)
            };
            name = match &clean {
                Some(clean) => Cow::Owned(String::from_utf8_lossy(&SEGMENT.decoded(clean)).into_owned()),
                None => match SEGMENT.decoded(segment) {
                    Cow::Borrowed(segment) => String::from_utf8_lossy(segment),
                    Cow::Owned(segment) => Cow::Owned(String::from_utf8_lossy(&segment).into_owned()),
                },
            };
            if let Some(clean) = clean {
                edit.replace(start, end, &clean);
            }
        }
        edit.finish()
    }

    pub(super) fn query<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        if self.is_plain(text) { Cow::Borrowed(text) } else { self.parameters(text, findings) }
    }

    pub(super) fn parameters<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        let mut edit = Edit::new(text);
        for (start, part) in pieces(text, |byte| byte == b'&') {
            if let Cow::Owned(clean) = self.pairs(QUERY, part, findings) {
                edit.replace(start, start.saturating_add(part.len()), &clean);
            }
        }
        edit.finish()
    }

    /// Pairs with `;` between them. The value of a covered one may have such in it, so it goes on to the end.
    fn pairs<'t>(self, code: Code, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        let mut edit = Edit::new(text);
        for (start, part) in pieces(text, |byte| byte == b';') {
            let end = start.saturating_add(part.len());
            let name_end = part.iter().position(|byte| *byte == b'=');
            let Some((name, value)) = name_end.and_then(|at| Some((part.get(..at)?, part.get(at.checked_add(1)?..)?)))
            else {
                if let Some(clean) = code.clean(self, "", part, findings) {
                    edit.replace(start, end, &clean);
                }
                continue;
            };
            let value_start = end.saturating_sub(value.len());
            let mut rule = code.find(name, |name| self.parameter(name));
            // Also where its last part alone says what the value is.
            let clean_name = code.clean(self, "", name, findings);
            if let Some(name) = &clean_name {
                edit.replace(start, start.saturating_add(name_end.unwrap_or(0)), name);
                // What is left may be a field's name, and would be found to be when it is cleaned again.
                rule = rule.or_else(|| code.find(name, |name| self.parameter(name)));
            }
            if let Some(rule) = rule {
                let raw = text.get(value_start..).unwrap_or(value);
                let value = code.decoded(raw);
                let cover = self.rules.cover(rule, &value, findings);
                if *cover != *value {
                    edit.replace(value_start, text.len(), &code.encoded(&cover));
                }
                break;
            }
            let name = code.decoded(clean_name.as_deref().unwrap_or(name)).into_owned();
            if let Some(clean) = code.clean(self, &String::from_utf8_lossy(&name), value, findings) {
                edit.replace(value_start, end, &clean);
            }
        }
        edit.finish()
    }

    pub(super) fn url<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        let mut edit = Edit::new(text);
        let find = |from: usize, signs: &[u8]| {
            let rest = text.get(from..).unwrap_or(&[]);
            from.saturating_add(rest.iter().position(|byte| signs.contains(byte)).unwrap_or(rest.len()))
        };
        let part = |start: usize, end: usize| text.get(start..end).unwrap_or(&[]);
        let mut put = |start: usize, end: usize, clean: Cow<'_, [u8]>| {
            if let Cow::Owned(clean) = clean {
                edit.replace(start, end, &clean);
            }
        };

        let mut at = scheme(text);
        if part(at, text.len()).starts_with(b"//") {
            at = at.saturating_add(2);
            let end = find(at, b"/?#");
            if let Some(length) = part(at, end).iter().rposition(|byte| *byte == b'@') {
                let host = at.saturating_add(length);
                put(at, host, self.user(part(at, host), findings));
                at = host.saturating_add(1);
            }
            if let Some(clean) = AUTHORITY.clean(Scan { depth: 0, ..self }, "", part(at, end), findings) {
                put(at, end, Cow::Owned(clean));
            }
            at = end;
        }
        let end = find(at, b"?#");
        put(at, end, self.path(part(at, end), findings));
        at = end;
        if text.get(at) == Some(&b'?') {
            at = at.saturating_add(1);
            let end = find(at, b"#");
            put(at, end, self.query(part(at, end), findings));
            at = end;
        }
        if text.get(at) == Some(&b'#') {
            at = at.saturating_add(1);
            // A page that finds its own way has a path and a query here; others have a query at most.
            if matches!(part(at, text.len()), [b'/', ..] | [b'!', b'/', ..]) {
                let end = find(at, b"?");
                put(at, end, self.path(part(at, end), findings));
                at = if end < text.len() { end.saturating_add(1) } else { end };
            }
            put(at, text.len(), self.query(part(at, text.len()), findings));
        }
        edit.finish()
    }

    /// Covers a user and a password.
    fn user<'t>(self, text: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        let user = AUTHORITY.decoded(text);
        let Some(rule) = self.rules.field("password").or_else(|| self.rules.field("authorization")) else {
            if user.is_empty() || text == UNSCANNED {
                return Cow::Borrowed(text);
            }
            findings.add_unscanned();
            return Cow::Owned(UNSCANNED.into());
        };
        let cover = self.rules.cover(rule, &user, findings);
        if *cover == *user { Cow::Borrowed(text) } else { Cow::Owned(AUTHORITY.encoded(&cover)) }
    }
}
