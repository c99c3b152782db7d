//! `X-Amzn-Trace-Id`: AWS X-Ray Developer Guide, "Tracing header", and Elastic Load Balancing, "Request tracing".
//!
//! Fields `Name=value` divided by `;`, in any order:
//! `Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1`. A load balancer that starts a trace sends `Root`
//! alone; one that continues it adds `Self=`, Lambda adds `Lineage=`: of those nothing is read.
//!
//! Names are matched in any case, as the X-Ray SDK for Node does (the one for Go does not).

use crate::context::{Invalid, Local, Remote, Sampling, SpanId, TraceId};
use crate::w3c::{concat, trim_ows};

/// Header name.
pub const X_AMZN_TRACE_ID: &str = "x-amzn-trace-id";

/// Reads an `X-Amzn-Trace-Id` value.
///
/// # Errors
/// Why there is no trace to continue. A field that stands there twice is [`Invalid::Duplicate`]: X-Ray's SDKs take the last one, but
/// two answers to one question are no answer, as with two `traceparent` headers.
pub fn parse(value: &[u8]) -> Result<Remote, Invalid> {
    let (mut root, mut parent, mut sampled) = (None, None, None);
    for field in value.split(|byte| *byte == b';') {
        let mut parts = field.splitn(2, |byte| *byte == b'=').map(trim_ows);
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else {
            continue;
        };
        let known = if name.eq_ignore_ascii_case(b"Root") {
            &mut root
        } else if name.eq_ignore_ascii_case(b"Parent") {
            &mut parent
        } else if name.eq_ignore_ascii_case(b"Sampled") {
            &mut sampled
        } else {
            continue;
        };
        if known.replace(value).is_some() {
            return Err(Invalid::Duplicate);
        }
    }
    Ok(Remote {
        trace_id: trace_id(root.ok_or(Invalid::Length)?)?,
        span_id: match parent.unwrap_or_default() {
            [] => None,
            digits if digits.len() == 16 => Some(SpanId::from_hex(digits)?),
            _ => return Err(Invalid::Length),
        },
        // `?` asks whoever comes next to decide; X-Ray's SDKs take anything else for no decision, too.
        sampling: match sampled {
            Some(b"1") => Sampling::Keep,
            Some(b"0") => Sampling::Drop,
            _ => Sampling::Defer,
        },
        random: false,
    })
}

/// `1-{8 hex}-{24 hex}`.
fn trace_id(root: &[u8]) -> Result<TraceId, Invalid> {
    let mut parts = root.splitn(3, |byte| *byte == b'-');
    let mut part = || parts.next().unwrap_or_default();
    let (version, time, unique) = (part(), part(), part());
    if version != b"1" {
        return Err(Invalid::Version);
    }
    if time.len() != 8 || unique.len() != 24 {
        return Err(Invalid::Length);
    }
    TraceId::from_hex(&concat::<32, 2>([time, unique]))
}

/// Writes an `X-Amzn-Trace-Id` value.
pub fn write(local: &Local) -> [u8; 74] {
    let trace_id = local.trace_id.hex();
    let (time, unique) = trace_id.split_at_checked(8).unwrap_or_default();
    concat([
        b"Root=1-",
        time,
        b"-",
        unique,
        b";Parent=",
        &local.span_id.hex(),
        if local.sampled() { b";Sampled=1" } else { b";Sampled=0" },
    ])
}

/// A new trace id that X-Ray takes: it refuses one whose first four bytes are not a recent time in Unix seconds. The low 12 bytes
/// of `random` are kept, so that the id counts as random in the sense of W3C Level 2.
pub fn new_trace_id(unix_seconds: u64, random: [u8; 16]) -> TraceId {
    let [.., a, b, c, d] = unix_seconds.to_be_bytes();
    let [_, _, _, _, unique @ ..] = random;
    TraceId::from_random(concat([&[a, b, c, d], &unique]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::w3c::tests::{any_local, as_remote};
    use kit::prelude::*;
    use proptest::prelude::*;

    const ROOT: &str = "Root=1-5759e988-bd862e3fe1be46a994272793";
    const SELF: &str = "Self=1-67891234-12456789abcdef012345678";
    const TRACE: &str = "5759e988bd862e3fe1be46a994272793";
    const SPAN: &str = "53995c3f42cd8ad8";

    #[test]
    fn valid() {
        for (text, parent, sampling) in [
            (format!("{ROOT};Parent={SPAN};Sampled=1"), true, Sampling::Keep),
            (format!("Sampled=0;Parent={SPAN};{ROOT}"), true, Sampling::Drop),
            (format!("{ROOT};Parent={SPAN};Sampled=?"), true, Sampling::Defer),
            (format!("{ROOT};Parent={SPAN};Sampled="), true, Sampling::Defer),
            (format!("{ROOT};Parent={SPAN};Sampled=yes"), true, Sampling::Defer),
            (ROOT.into(), false, Sampling::Defer),
            (format!("{ROOT};Sampled=1"), false, Sampling::Keep),
            (format!("{ROOT};Parent=;Sampled=1"), false, Sampling::Keep),
            (format!("{SELF};{ROOT};CalledFrom=app"), false, Sampling::Defer),
            (format!("{ROOT};Parent={SPAN};Sampled=1;Lineage=1:a87bd80c:0"), true, Sampling::Keep),
            (format!(" {ROOT} ;\tparent = {SPAN} ; SAMPLED= 1 ;"), true, Sampling::Keep),
            (format!(";;x;{};=;Parent={}", ROOT.to_uppercase(), SPAN.to_uppercase()), true, Sampling::Defer),
            (format!("{ROOT};Rooted=1;Self=1;Self=2"), false, Sampling::Defer),
        ] {
            let remote = Remote {
                trace_id: TraceId::from_hex(TRACE.as_bytes()).unwrap(),
                span_id: SpanId::from_hex(SPAN.as_bytes()).ok().filter(|_| parent),
                sampling,
                random: false,
            };
            assert_eq!(parse(text.as_bytes()), Ok(remote), "{text}");
        }
    }

    #[test]
    fn near_misses() {
        for (text, why) in [
            (String::new(), Invalid::Length),
            ("Sampled=1".into(), Invalid::Length),
            (format!("Parent={SPAN};Sampled=1"), Invalid::Length),
            (SELF.into(), Invalid::Length),
            (format!("Root=1-{TRACE}"), Invalid::Length),
            (ROOT.get(..39).unwrap().into(), Invalid::Length),
            (format!("{ROOT}0"), Invalid::Length),
            (format!("{ROOT}-"), Invalid::Length),
            ("Root=1-5759e98-8bd862e3fe1be46a994272793".into(), Invalid::Length),
            (format!("{ROOT};Parent=53995c3f42cd8ad"), Invalid::Length),
            ("Root=".into(), Invalid::Version),
            (ROOT.replace("=1-", "=2-"), Invalid::Version),
            (ROOT.replace("=1-", "=-"), Invalid::Version),
            (ROOT.replace("bd86", "bd8g"), Invalid::Syntax),
            (format!("{ROOT};Parent=53995c3f42cd8ad."), Invalid::Syntax),
            (format!("{ROOT};{ROOT}"), Invalid::Duplicate),
            (format!("{ROOT};Sampled=1;sampled=0"), Invalid::Duplicate),
            ("Root=1-00000000-000000000000000000000000".into(), Invalid::Zero),
            (format!("{ROOT};Parent=0000000000000000"), Invalid::Zero),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(why), "{text}");
        }
    }

    #[test]
    fn new_ids_begin_with_the_time() {
        let id = new_trace_id(0x5759_e988, [0xab; 16]);
        assert_eq!(&id.hex(), b"5759e988abababababababababababab");
        // After 2106 the field is too narrow; what is left of it still is no panic.
        assert_eq!(new_trace_id(u64::MAX, [0; 16]).bytes()[..5], [255, 255, 255, 255, 0]);
        assert_eq!(new_trace_id(0, [0; 16]).bytes(), [1; 16]);
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(local in any_local()) {
            prop_assert_eq!(parse(&write(&local)), Ok(as_remote(&local)));
        }

        #[test]
        fn any_bytes(value: Vec<u8>, text in "((Root|Parent|Sampled|x) ?=?[0-9a-f-]{0,40};?){0,6}") {
            let _ = (parse(&value), parse(text.as_bytes()));
        }
    }
}
