//! A case through the engine, place by place, as the filter does it.

use super::request::{BOUNDARY, Case, Headers, Part};
use log_scrub::places::{self, Body, Header};
use log_scrub::{Findings, Rules};

/// What would be logged of a part.
#[derive(Debug)]
pub struct Output {
    /// Which.
    pub part: Part,
    /// Its clean form.
    pub bytes: Vec<u8>,
    /// What was found.
    pub findings: Findings,
    /// Whether `[UNSCANNED]` stands for all of it.
    pub is_unscanned: bool,
}

/// Cleans all parts. Headers of one name are one part.
pub fn drive(rules: &Rules, case: &Case) -> Vec<Output> {
    let mut findings = Findings::default();
    let target = places::url(rules, &case.path_and_query, &mut findings).into_owned();
    let mut outputs = vec![Output { part: Part::Target, bytes: target, findings, is_unscanned: false }];
    for (all, part) in [
        (&case.request_headers, Part::RequestHeader as fn(String) -> Part),
        (&case.response_headers, Part::ResponseHeader as fn(String) -> Part),
    ] {
        for (name, value) in all {
            let part = part(name.clone());
            let known = outputs.iter().position(|output| output.part == part);
            let index = known.unwrap_or_else(|| {
                outputs.push(Output { part, bytes: Vec::new(), findings: Findings::default(), is_unscanned: false });
                outputs.len() - 1
            });
            let clean = Header::new(rules, name).clean(rules, value, &mut outputs[index].findings);
            outputs[index].is_unscanned |= clean.is_err();
            outputs[index].bytes.extend_from_slice(clean.as_deref().unwrap_or(b"[UNSCANNED]"));
            outputs[index].bytes.extend_from_slice(b"\r\n");
        }
    }
    for (headers, body, part) in [
        (&case.request_headers, &case.request_body, Part::RequestBody),
        (&case.response_headers, &case.response_body, Part::ResponseBody),
    ] {
        let mut findings = Findings::default();
        let clean = pass(rules, headers, body, &mut findings);
        let is_unscanned = clean.is_none();
        let bytes = clean.unwrap_or_else(|| b"[UNSCANNED]".to_vec());
        outputs.push(Output { part, bytes, findings, is_unscanned });
    }
    outputs
}

/// None if nothing that came out may be used.
fn pass(rules: &Rules, headers: &Headers, parts: &[Vec<u8>], findings: &mut Findings) -> Option<Vec<u8>> {
    let kind = headers.iter().find(|(name, _)| name == "content-type").map(|(_, value)| value.as_slice());
    let mut body = match kind? {
        b"application/json" => Body::json(),
        b"application/x-www-form-urlencoded" => Body::form(),
        kind if kind.starts_with(b"multipart/") => Body::multipart(BOUNDARY.as_bytes()),
        _ => Body::text(rules),
    };
    let mut out = Vec::new();
    for part in parts {
        body.push(rules, part, &mut out, findings);
    }
    body.finish(rules, &mut out, findings).ok()?;
    Some(out)
}
