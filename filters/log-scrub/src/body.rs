//! A body as it passes: looked at part by part, or held and cleaned on its way.

use crate::places::{self, UNSCANNED};
use crate::{Findings, Place, Reason, Rules, Seen, Tally};
use kit::prelude::*;
use kit::{Body, Headers, Pass};

/// One body of a request.
#[derive(Debug)]
pub(crate) struct Passing {
    place: Place,
    state: State,
    findings: Findings,
    /// How much of it has passed.
    passed: usize,
    /// How much of it was looked at.
    looked: usize,
}

#[derive(Debug)]
enum State {
    /// Parts of it are looked at.
    Open { body: places::Body, clean: Vec<u8> },
    /// It waits for its end.
    Held,
    /// It was cleaned as a whole.
    Clean(Vec<u8>),
    /// Nothing of it may be logged but why.
    Failed(Reason),
}

/// What a body is, by its headers.
enum Kind {
    Json,
    Form,
    Multipart(Vec<u8>),
    Text,
}

impl Passing {
    /// A body whose headers are there.
    pub(crate) fn begin(
        place: Place,
        rules: &Rules,
        mutate: bool,
        most: usize,
        headers: &mut Headers<'_>,
    ) -> Box<Self> {
        let is_none = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
        let encoded = headers.all("content-encoding").any(|coding| !is_none(coding.trim_ascii()));
        let kind = if encoded {
            Err(Reason::Compressed)
        } else {
            headers.look("content-type", |content_type| kind(content_type.unwrap_or(&[])))
        };
        let state = match kind {
            Ok(Kind::Json) if mutate => {
                let length = headers.look("content-length", |length| {
                    length.and_then(|length| core::str::from_utf8(length).ok()?.parse::<usize>().ok())
                });
                if length.is_some_and(|length| length > most) {
                    State::Failed(Reason::Large)
                } else {
                    // It goes on before the body does, and the body may become longer or shorter.
                    if length.is_some() {
                        headers.remove("content-length");
                    }
                    State::Held
                }
            }
            Ok(Kind::Json) => State::Open { body: places::Body::json(), clean: Vec::new() },
            Ok(Kind::Form) => State::Open { body: places::Body::form(), clean: Vec::new() },
            Ok(Kind::Multipart(boundary)) => {
                State::Open { body: places::Body::multipart(&boundary), clean: Vec::new() }
            }
            Ok(Kind::Text) => State::Open { body: places::Body::text(rules), clean: Vec::new() },
            Err(reason) => State::Failed(reason),
        };
        Box::new(Self { place, state, findings: Findings::default(), passed: 0, looked: 0 })
    }

    /// A part of it passes, or comes with all that was held.
    pub(crate) fn pass(&mut self, rules: &Rules, most: usize, part: &Body<'_>) -> Pass {
        match &mut self.state {
            State::Held => {
                self.passed = part.size();
                if part.size() > most {
                    self.state = State::Failed(Reason::Large);
                    return Pass::On;
                }
                if !part.is_last() {
                    return Pass::Hold;
                }
                self.end(rules, most, part);
                return Pass::On;
            }
            State::Open { body, clean } => {
                self.passed = self.passed.saturating_add(part.size());
                let room = most.saturating_sub(self.looked);
                let wanted = part.size().min(room);
                if wanted > 0 {
                    let bytes = part.read(0, wanted);
                    if bytes.len() == wanted {
                        body.push(rules, &bytes, clean, &mut self.findings);
                        self.looked = self.looked.saturating_add(wanted);
                    } else {
                        self.state = State::Failed(Reason::Host);
                    }
                }
            }
            State::Clean(_) | State::Failed(_) => self.passed = self.passed.saturating_add(part.size()),
        }
        Pass::On
    }

    /// All of what was held is there: it is cleaned in its place.
    pub(crate) fn end(&mut self, rules: &Rules, most: usize, whole: &Body<'_>) {
        if !matches!(self.state, State::Held) {
            return;
        }
        let bytes = whole.read(0, most);
        // All of it, or what is put in its place would cut it off.
        if bytes.is_empty() || bytes.len() != self.passed {
            self.state = if self.passed == 0 { State::Clean(Vec::new()) } else { State::Failed(Reason::Host) };
            return;
        }
        self.looked = bytes.len();
        let (mut body, mut clean) = (places::Body::json(), Vec::new());
        body.push(rules, &bytes, &mut clean, &mut self.findings);
        self.state = match body.finish(rules, &mut clean, &mut self.findings) {
            Err(why) => State::Failed(why.into()),
            Ok(()) if *clean != *bytes && whole.replace(&clean).is_err() => State::Failed(Reason::Host),
            Ok(()) => State::Clean(clean),
        };
    }

    /// Its clean text, if there was a body.
    pub(crate) fn finish(self, rules: &Rules, tally: &mut Tally) -> Option<Vec<u8>> {
        let Self { place, state, mut findings, passed, looked } = self;
        if passed == 0 {
            return None;
        }
        tally.add_bytes(looked);
        let clean = match state {
            State::Open { body, mut clean } if passed > looked => match body.cut() {
                Ok(()) => {
                    clean.extend_from_slice(UNSCANNED);
                    Ok((clean, Some(Reason::Large)))
                }
                Err(why) => Err(why.into()),
            },
            State::Open { body, mut clean } => match body.finish(rules, &mut clean, &mut findings) {
                Ok(()) => Ok((clean, None)),
                Err(why) => Err(why.into()),
            },
            State::Clean(clean) => Ok((clean, None)),
            State::Held => Err(Reason::Incomplete),
            State::Failed(reason) => Err(reason),
        };
        let (clean, unscanned) = clean.unwrap_or_else(|reason| {
            // How far it was read before depends on how it was cut.
            findings.clear();
            (UNSCANNED.into(), Some(reason))
        });
        if unscanned.is_some() || findings.any() {
            tally.note(Seen { place, findings, unscanned });
        }
        Some(clean)
    }
}

/// What a Content-Type says, in so far as such can be looked at.
fn kind(content_type: &[u8]) -> Result<Kind, Reason> {
    let text = core::str::from_utf8(content_type).map_err(|_| Reason::Type)?.to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    // Bytes of other encodings may look like other text.
    if let Some(charset) = parameter(&text, "charset")
        && !matches!(charset, "utf-8" | "utf8" | "us-ascii" | "ascii" | "iso-8859-1" | "latin1" | "windows-1252")
    {
        return Err(Reason::Encoding);
    }
    match essence {
        "application/json"
        | "text/json"
        | "application/x-json"
        | "application/x-ndjson"
        | "application/ndjson"
        | "application/jsonl"
        | "application/csp-report" => Ok(Kind::Json),
        "application/x-www-form-urlencoded" => Ok(Kind::Form),
        "multipart/form-data" => {
            // In the case that it came in.
            let original = core::str::from_utf8(content_type).unwrap_or_default();
            let boundary = parameter(original, "boundary").filter(|boundary| !boundary.is_empty());
            boundary.map(|boundary| Kind::Multipart(boundary.into())).ok_or(Reason::Broken)
        }
        // Text in which characters are written by numbers.
        "text/html" | "text/xml" | "text/rtf" => Err(Reason::Type),
        "application/graphql" => Ok(Kind::Text),
        // Messages with five bytes before each, whatever is in them; and a call may wait for an answer to the first.
        _ if essence.starts_with("application/grpc") => Err(Reason::Type),
        _ if essence.ends_with("+json") => Ok(Kind::Json),
        _ if essence.starts_with("text/") => Ok(Kind::Text),
        _ => Err(Reason::Type),
    }
}

/// The value of a parameter, without quotes; its name in lower case.
fn parameter<'t>(content_type: &'t str, name: &str) -> Option<&'t str> {
    content_type.split(';').skip(1).find_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}
