//! `traceparent`: W3C Trace Context Level 2, "Traceparent Header".
//!
//! `{version}-{trace-id}-{parent-id}-{flags}`, lower-case hex of 1, 16, 8 and 1 bytes:
//! `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03`. `tracestate`, which travels beside it, is in
//! [`crate::tracestate`].

use crate::context::{Invalid, Local, Remote, Sampling, SpanId, TraceId};
use crate::hex;
use core::mem;

/// Header name.
pub const TRACEPARENT: &str = "traceparent";
/// Header name.
pub const TRACESTATE: &str = "tracestate";

/// "Sampled flag".
const SAMPLED: u8 = 0x01;
/// "Random Trace ID Flag", new in Level 2.
const RANDOM: u8 = 0x02;

/// Reads a `traceparent` value.
///
/// # Errors
/// The reason why the trace has to start anew. Two headers are [`Invalid::Duplicate`], which the caller finds out.
pub fn parse_traceparent(value: &[u8]) -> Result<Remote, Invalid> {
    let value = trim_ows(value);
    // Every field has its place; whatever stands where a hyphen should is found there.
    let (fixed, rest) = value.split_at_checked(55).ok_or(Invalid::Length)?;
    let field = |from: usize, to: usize| match (fixed.get(from..to), fixed.get(to)) {
        (Some(field), None | Some(b'-')) => Ok(field),
        _ => Err(Invalid::Length),
    };
    let [version] = hex::decode_lower(field(0, 2)?)?;
    if version == 0xff {
        return Err(Invalid::Version);
    }
    let trace_id = TraceId::new(hex::decode_lower(field(3, 35)?)?).ok_or(Invalid::Zero)?;
    let span_id = SpanId::new(hex::decode_lower(field(36, 52)?)?).ok_or(Invalid::Zero)?;
    let [flags] = hex::decode_lower(field(53, 55)?)?;
    // "Versioning of traceparent": only a later version may go on, and what it says there is not ours to read.
    if !rest.is_empty() && (version == 0 || !rest.starts_with(b"-")) {
        return Err(Invalid::Length);
    }
    Ok(Remote {
        trace_id,
        span_id: Some(span_id),
        sampling: if flags & SAMPLED == 0 { Sampling::Drop } else { Sampling::Keep },
        random: flags & RANDOM != 0,
    })
}

/// Writes a version 00 `traceparent`; "Other Flags" has all bits but the two known ones sent as zero.
pub fn write_traceparent(local: &Local) -> [u8; 55] {
    let flags: &[u8] = match (local.random, local.sampled()) {
        (false, false) => b"-00",
        (false, true) => b"-01",
        (true, false) => b"-02",
        (true, true) => b"-03",
    };
    concat([b"00-", &local.trace_id.hex(), b"-", &local.span_id.hex(), flags])
}

// What the other formats share with this one.

/// Takes away the optional white space (RFC 9110, 5.6.3: SP and HTAB) around a value.
pub(crate) fn trim_ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// The parts one after another, `N` bytes in all.
pub(crate) fn concat<const N: usize, const PARTS: usize>(parts: [&[u8]; PARTS]) -> [u8; N] {
    debug_assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), N);
    let mut out = [0; N];
    let mut rest = out.as_mut_slice();
    for part in parts {
        let Some((head, tail)) = mem::take(&mut rest).split_at_mut_checked(part.len()) else {
            break;
        };
        head.copy_from_slice(part);
        rest = tail;
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use kit::prelude::*;
    use proptest::prelude::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    /// Any context that may go out.
    pub(crate) fn any_local() -> impl Strategy<Value = Local> {
        let span = || any::<[u8; 8]>().prop_filter_map("zero", SpanId::new);
        let sampling = prop_oneof![Just(Sampling::Drop), Just(Sampling::Keep), Just(Sampling::Debug)];
        (
            any::<[u8; 16]>().prop_filter_map("zero", TraceId::new),
            span(),
            proptest::option::of(span()),
            sampling,
            any::<bool>(),
        )
            .prop_map(|(trace_id, span_id, parent_id, sampling, random)| Local {
                trace_id,
                span_id,
                parent_id,
                sampling,
                random,
            })
    }

    /// What the next hop reads of `local` in a format that has neither debug nor a random flag.
    pub(crate) fn as_remote(local: &Local) -> Remote {
        Remote {
            trace_id: local.trace_id,
            span_id: Some(local.span_id),
            sampling: if local.sampled() { Sampling::Keep } else { Sampling::Drop },
            random: false,
        }
    }

    #[test]
    fn valid() {
        for (version, end, sampling, random) in [
            ("00", "00", Sampling::Drop, false),
            ("00", "01", Sampling::Keep, false),
            ("00", "02", Sampling::Drop, true),
            ("00", "03", Sampling::Keep, true),
            // Unknown bits are ignored, in every version.
            ("00", "ff", Sampling::Keep, true),
            ("00", "fc", Sampling::Drop, false),
            ("01", "01", Sampling::Keep, false),
            ("cc", "03-later-fields_of any.kind", Sampling::Keep, true),
            ("fe", "00-", Sampling::Drop, false),
        ] {
            for (before, after) in [("", ""), (" ", ""), ("", "\t"), ("\t ", " \t")] {
                let text = format!("{before}{version}-{TRACE}-{SPAN}-{end}{after}");
                let remote = parse_traceparent(text.as_bytes()).expect(&text);
                assert_eq!(remote.trace_id.hex(), TRACE.as_bytes(), "{text}");
                assert_eq!(remote.span_id.map(|id| id.hex()).as_ref().map(|h| &h[..]), Some(SPAN.as_bytes()));
                assert_eq!((remote.sampling, remote.random), (sampling, random), "{text}");
            }
        }
    }

    #[test]
    fn invalid() {
        use Invalid::{Length, Syntax, Version, Zero};
        let (trace31, span15) = (TRACE.get(1..).unwrap(), SPAN.get(1..).unwrap());
        let upper = TRACE.to_uppercase();
        let cases = [
            (String::new(), Length),
            ("-".into(), Length),
            ("00".into(), Length),
            (format!("00-{TRACE}-{SPAN}"), Length),
            (format!("00-{TRACE}-{SPAN}-"), Length),
            (format!("00-{TRACE}-{SPAN}-1"), Length),
            (format!("00-{TRACE}-{SPAN}-001"), Length),
            (format!("00-{TRACE}-{SPAN}-01."), Length),
            (format!("00-{TRACE}-{SPAN}-01-"), Length),
            (format!("00-{TRACE}-{SPAN}-01-more"), Length),
            (format!("cc-{TRACE}-{SPAN}-01.more"), Length),
            (format!("0-{TRACE}-{SPAN}-01"), Length),
            (format!("000-{TRACE}-{SPAN}-01"), Length),
            (format!("0000-{TRACE}-{SPAN}-01"), Length),
            (format!("00-{TRACE}0-{SPAN}-01"), Length),
            (format!("00-{}-{SPAN}-01", trace31), Length),
            (format!("00-{TRACE}-{SPAN}0-01"), Length),
            (format!("00-{TRACE}-{}-01", span15), Length),
            (format!("00--{TRACE}-{SPAN}-01"), Length),
            (format!(".0-{TRACE}-{SPAN}-01"), Syntax),
            (format!("0.-{TRACE}-{SPAN}-01"), Syntax),
            (format!("00-.{}-{SPAN}-01", trace31), Syntax),
            (format!("00-{TRACE}-{}.-01", span15), Syntax),
            (format!("00-{TRACE}-{SPAN}-.0"), Syntax),
            (format!("00-{TRACE}-{SPAN}-0."), Syntax),
            (format!("00-{upper}-{SPAN}-01"), Syntax),
            (format!("00-{TRACE}-{SPAN}-0A"), Syntax),
            (format!("CC-{TRACE}-{SPAN}-01"), Syntax),
            (format!("00-{TRACE}-{SPAN}-0\n"), Syntax),
            (format!("00 {TRACE}-{SPAN}-01"), Length),
            (format!("ff-{TRACE}-{SPAN}-01"), Version),
            (format!("00-{:032}-{SPAN}-01", 0), Zero),
            (format!("00-{TRACE}-{:016}-01", 0), Zero),
        ];
        for (text, why) in cases {
            assert_eq!(parse_traceparent(text.as_bytes()), Err(why), "{text:?}");
        }
    }

    #[test]
    fn writes_version_00_and_two_flags() {
        let mut local = Local {
            trace_id: TraceId::from_hex(TRACE.as_bytes()).unwrap(),
            span_id: SpanId::from_hex(SPAN.as_bytes()).unwrap(),
            parent_id: None,
            sampling: Sampling::Debug,
            random: true,
        };
        assert_eq!(write_traceparent(&local), *format!("00-{TRACE}-{SPAN}-03").as_bytes());
        (local.sampling, local.random) = (Sampling::Drop, false);
        assert_eq!(write_traceparent(&local), *format!("00-{TRACE}-{SPAN}-00").as_bytes());
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(local in any_local()) {
            let remote = Remote { random: local.random, ..as_remote(&local) };
            prop_assert_eq!(parse_traceparent(&write_traceparent(&local)), Ok(remote));
        }

        #[test]
        fn any_bytes(value: Vec<u8>) {
            let _ = parse_traceparent(&value);
        }

        #[test]
        fn any_near_miss(local in any_local(), at in 0..55_usize, byte: u8) {
            let mut text = write_traceparent(&local);
            text[at] = byte;
            if let Ok(remote) = parse_traceparent(&text) {
                let kept = Local { trace_id: remote.trace_id, random: remote.random, ..local };
                prop_assert_eq!(&write_traceparent(&kept)[3..35], &text[3..35]);
            }
        }
    }
}
