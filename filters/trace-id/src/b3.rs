//! `b3` and `X-B3-*`: OpenZipkin b3-propagation.
//!
//! One header `{trace-id}-{span-id}-{sampling}-{parent-span-id}`, the last two optional, or a sampling decision alone; or one
//! header for each of them. It is for the caller to prefer the single header, and the first of several values ("Http Encodings").
//!
//! The specification has lower-case hex. Readers differ (Envoy's Zipkin tracer and OpenTelemetry for Python take both cases, Brave and
//! OpenTelemetry for JavaScript lower case only): both are read here, lower case is written.

use crate::context::{Invalid, Local, Remote, Sampling, SpanId, TraceId};
use crate::hex;
use crate::w3c::trim_ows;
use kit::prelude::*;

/// Header name of the single form.
pub const B3: &str = "b3";
/// Header name of the multiple form.
pub const TRACE_ID: &str = "x-b3-traceid";
/// Header name of the multiple form.
pub const SPAN_ID: &str = "x-b3-spanid";
/// Header name of the multiple form.
pub const PARENT_SPAN_ID: &str = "x-b3-parentspanid";
/// Header name of the multiple form.
pub const SAMPLED: &str = "x-b3-sampled";
/// Header name of the multiple form.
pub const FLAGS: &str = "x-b3-flags";

/// What B3 headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extract {
    /// A trace to continue.
    Context(Remote),
    /// A decision for the trace that starts here; [`Sampling::Defer`] where nothing was said at all.
    Decision(Sampling),
}

/// The values of the `X-B3-*` headers. An empty value counts as none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Multi<'a> {
    /// [`TRACE_ID`].
    pub trace_id: Option<&'a [u8]>,
    /// [`SPAN_ID`].
    pub span_id: Option<&'a [u8]>,
    /// [`PARENT_SPAN_ID`].
    pub parent_span_id: Option<&'a [u8]>,
    /// [`SAMPLED`].
    pub sampled: Option<&'a [u8]>,
    /// [`FLAGS`].
    pub flags: Option<&'a [u8]>,
}

/// Reads a `b3` value ("Single Header").
///
/// # Errors
/// Why it is none.
pub fn parse_single(value: &[u8]) -> Result<Extract, Invalid> {
    let mut fields = trim_ows(value).splitn(4, |byte| *byte == b'-');
    let first = fields.next().unwrap_or_default();
    let Some(span_id) = fields.next() else {
        // A trace id alone is no context.
        return match first.len() {
            1 => Ok(Extract::Decision(state(first)?)),
            _ => Err(Invalid::Length),
        };
    };
    let (sampling, parent) = (fields.next(), fields.next());
    context(first, span_id, parent, sampling.map_or(Ok(Sampling::Defer), state)?)
}

/// Reads the `X-B3-*` values ("Multiple Headers").
///
/// # Errors
/// Why they are no context and no decision; a trace id without a span id, and the reverse, are [`Invalid::Length`].
pub fn parse_multi(values: &Multi<'_>) -> Result<Extract, Invalid> {
    // "Debug Flag": implies accept. Finagle's other flag bits never came into use; whatever else is in there is ignored.
    let sampling = if present(values.flags) == Some(b"1") {
        Sampling::Debug
    } else {
        match present(values.sampled) {
            None => Sampling::Defer,
            Some(b"1") => Sampling::Keep,
            Some(b"0") => Sampling::Drop,
            // "Sampling State": tracers older than the specification say it in words.
            Some(word) if word.eq_ignore_ascii_case(b"true") => Sampling::Keep,
            Some(word) if word.eq_ignore_ascii_case(b"false") => Sampling::Drop,
            Some(_) => return Err(Invalid::Syntax),
        }
    };
    let parent = present(values.parent_span_id);
    match (present(values.trace_id), present(values.span_id)) {
        (Some(trace_id), Some(span_id)) => context(trace_id, span_id, parent, sampling),
        (None, None) if parent.is_none() => Ok(Extract::Decision(sampling)),
        _ => Err(Invalid::Length),
    }
}

/// A value that says something.
fn present(value: Option<&[u8]>) -> Option<&[u8]> {
    value.map(trim_ows).filter(|value| !value.is_empty())
}

/// The third field of the single form.
fn state(field: &[u8]) -> Result<Sampling, Invalid> {
    match field {
        b"1" => Ok(Sampling::Keep),
        b"0" => Ok(Sampling::Drop),
        b"d" => Ok(Sampling::Debug),
        _ => Err(Invalid::Syntax),
    }
}

fn context(trace_id: &[u8], span_id: &[u8], parent: Option<&[u8]>, sampling: Sampling) -> Result<Extract, Invalid> {
    if !matches!(trace_id.len(), 16 | 32) || span_id.len() != 16 {
        return Err(Invalid::Length);
    }
    // The parent is checked but not needed: the caller's span is what we go on from. Zero is let pass, some senders have it
    // for "none".
    if let Some(parent) = parent {
        if parent.len() != 16 {
            return Err(Invalid::Length);
        }
        hex::decode::<8>(parent)?;
    }
    Ok(Extract::Context(Remote {
        trace_id: TraceId::from_hex(trace_id)?,
        span_id: Some(SpanId::from_hex(span_id)?),
        sampling,
        // B3 does not say how an id came about, and the high half of a padded one is not random for sure.
        random: false,
    }))
}

/// Writes a `b3` value: 51 characters, 68 with a parent.
pub fn write_single(local: &Local) -> Vec<u8> {
    let mut text = Vec::with_capacity(68);
    text.extend_from_slice(&local.trace_id.hex());
    text.push(b'-');
    text.extend_from_slice(&local.span_id.hex());
    text.extend_from_slice(match local.sampling {
        Sampling::Debug => b"-d",
        Sampling::Keep => b"-1",
        Sampling::Drop | Sampling::Defer => b"-0",
    });
    if let Some(parent) = &local.parent_id {
        text.push(b'-');
        text.extend_from_slice(&parent.hex());
    }
    text
}

/// The `X-B3-*` values to send; a header whose value is `None` must not be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiText {
    /// [`TRACE_ID`].
    pub trace_id: [u8; 32],
    /// [`SPAN_ID`].
    pub span_id: [u8; 16],
    /// [`PARENT_SPAN_ID`].
    pub parent_span_id: Option<[u8; 16]>,
    /// [`SAMPLED`].
    pub sampled: Option<&'static str>,
    /// [`FLAGS`].
    pub flags: Option<&'static str>,
}

/// Writes the `X-B3-*` values. "Debug Flag": with it, `X-B3-Sampled` is not sent.
pub fn write_multi(local: &Local) -> MultiText {
    let (sampled, flags) = match local.sampling {
        Sampling::Debug => (None, Some("1")),
        Sampling::Keep => (Some("1"), None),
        Sampling::Drop | Sampling::Defer => (Some("0"), None),
    };
    MultiText {
        trace_id: local.trace_id.hex(),
        span_id: local.span_id.hex(),
        parent_span_id: local.parent_id.map(|id| id.hex()),
        sampled,
        flags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::w3c::tests::{any_local, as_remote};
    use proptest::prelude::*;

    const TRACE: &str = "80f198ee56343ba864fe8b2a57d3eff7";
    const TRACE64: &str = "64fe8b2a57d3eff7";
    const SPAN: &str = "05e3ac9a4f6e3b90";
    const PARENT: &str = "e457b5a2e4d86bd1";
    const ZERO: &str = "0000000000000000";

    fn remote(trace_id: &str, sampling: Sampling) -> Extract {
        Extract::Context(Remote {
            trace_id: TraceId::from_hex(trace_id.as_bytes()).unwrap(),
            span_id: SpanId::from_hex(SPAN.as_bytes()).ok(),
            sampling,
            random: false,
        })
    }

    #[test]
    fn single_forms() {
        for (text, extract) in [
            ("0".to_owned(), Extract::Decision(Sampling::Drop)),
            ("1".into(), Extract::Decision(Sampling::Keep)),
            ("d".into(), Extract::Decision(Sampling::Debug)),
            (format!("{TRACE}-{SPAN}"), remote(TRACE, Sampling::Defer)),
            (format!("{TRACE}-{SPAN}-1"), remote(TRACE, Sampling::Keep)),
            (format!("{TRACE}-{SPAN}-0"), remote(TRACE, Sampling::Drop)),
            (format!("{TRACE}-{SPAN}-d"), remote(TRACE, Sampling::Debug)),
            (format!("{TRACE}-{SPAN}-1-{PARENT}"), remote(TRACE, Sampling::Keep)),
            (format!("{TRACE}-{SPAN}-1-{ZERO}"), remote(TRACE, Sampling::Keep)),
            (format!("{TRACE64}-{SPAN}"), remote(TRACE64, Sampling::Defer)),
            (format!("{TRACE64}-{SPAN}-d-{PARENT}"), remote(TRACE64, Sampling::Debug)),
            (format!("{ZERO}{TRACE64}-{SPAN}-0"), remote(TRACE64, Sampling::Drop)),
            (format!("\t{}-{SPAN}-1 ", TRACE.to_uppercase()), remote(TRACE, Sampling::Keep)),
        ] {
            assert_eq!(parse_single(text.as_bytes()), Ok(extract), "{text}");
        }
    }

    #[test]
    fn single_near_misses() {
        let [trace31, span15, parent15] = [TRACE, SPAN, PARENT].map(|id| id.get(1..).unwrap());
        for (text, why) in [
            (String::new(), Invalid::Length),
            (TRACE.into(), Invalid::Length),
            (format!("{TRACE}-"), Invalid::Length),
            (format!("-{SPAN}"), Invalid::Length),
            (format!("{TRACE}-{}", span15), Invalid::Length),
            (format!("{}-{SPAN}-1", trace31), Invalid::Length),
            (format!("0{TRACE}-{SPAN}-1"), Invalid::Length),
            (format!("{TRACE}-{SPAN}-1-{}", parent15), Invalid::Length),
            (format!("{TRACE}-{SPAN}-1-{PARENT}-1"), Invalid::Length),
            (format!("{TRACE}-{SPAN}-1-"), Invalid::Length),
            ("2".into(), Invalid::Syntax),
            ("D".into(), Invalid::Syntax),
            (format!("{TRACE}-{SPAN}-"), Invalid::Syntax),
            (format!("{TRACE}-{SPAN}-2"), Invalid::Syntax),
            (format!("{TRACE}-{SPAN}-true"), Invalid::Syntax),
            (format!("{TRACE}-{SPAN}-{PARENT}"), Invalid::Syntax),
            (format!("{TRACE}-{SPAN}-1-{}g", parent15), Invalid::Syntax),
            (format!("{}g-{SPAN}", trace31), Invalid::Syntax),
            (format!("{ZERO}-{SPAN}-1"), Invalid::Zero),
            (format!("{ZERO}{ZERO}-{SPAN}-1"), Invalid::Zero),
            (format!("{TRACE}-{ZERO}-1"), Invalid::Zero),
        ] {
            assert_eq!(parse_single(text.as_bytes()), Err(why), "{text}");
        }
    }

    /// Trace id, span id, parent span id, sampled, flags; `-` for a header that is not there.
    fn multi(values: [&str; 5]) -> Result<Extract, Invalid> {
        let [trace_id, span_id, parent_span_id, sampled, flags] =
            values.map(|value| (value != "-").then_some(value.as_bytes()));
        parse_multi(&Multi { trace_id, span_id, parent_span_id, sampled, flags })
    }

    #[test]
    fn multi_forms() {
        for (values, extract) in [
            (["-", "-", "-", "-", "-"], Extract::Decision(Sampling::Defer)),
            (["-", "-", "-", "0", "-"], Extract::Decision(Sampling::Drop)),
            (["-", "-", "-", "True", "-"], Extract::Decision(Sampling::Keep)),
            (["-", "-", "-", "-", "1"], Extract::Decision(Sampling::Debug)),
            (["", "", "", "", ""], Extract::Decision(Sampling::Defer)),
            ([TRACE, SPAN, "-", "-", "-"], remote(TRACE, Sampling::Defer)),
            ([TRACE, SPAN, PARENT, "1", "-"], remote(TRACE, Sampling::Keep)),
            ([TRACE, SPAN, "", "FALSE", "0"], remote(TRACE, Sampling::Drop)),
            ([TRACE64, SPAN, "-", "true", "-"], remote(TRACE64, Sampling::Keep)),
            // Debug stands above whatever is said beside it.
            ([TRACE, SPAN, "-", "0", "1"], remote(TRACE, Sampling::Debug)),
            ([TRACE, SPAN, "-", "1", "x"], remote(TRACE, Sampling::Keep)),
        ] {
            assert_eq!(multi(values), Ok(extract), "{values:?}");
        }
        for (values, why) in [
            ([TRACE, "-", "-", "1", "-"], Invalid::Length),
            (["-", SPAN, "-", "1", "-"], Invalid::Length),
            (["-", "-", PARENT, "1", "-"], Invalid::Length),
            ([TRACE, SPAN, "1", "1", "-"], Invalid::Length),
            ([TRACE, SPAN, "-", "2", "-"], Invalid::Syntax),
            ([TRACE, SPAN, "-", "d", "-"], Invalid::Syntax),
            ([ZERO, SPAN, "-", "1", "-"], Invalid::Zero),
            ([TRACE, ZERO, "-", "1", "-"], Invalid::Zero),
        ] {
            assert_eq!(multi(values), Err(why), "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(local in any_local()) {
            let remote = Extract::Context(Remote { sampling: local.sampling, ..as_remote(&local) });
            prop_assert_eq!(parse_single(&write_single(&local)), Ok(remote));

            let out = write_multi(&local);
            prop_assert_eq!(parse_multi(&Multi {
                trace_id: Some(&out.trace_id),
                span_id: Some(&out.span_id),
                parent_span_id: out.parent_span_id.as_ref().map(|id| &id[..]),
                sampled: out.sampled.map(str::as_bytes),
                flags: out.flags.map(str::as_bytes),
            }), Ok(remote));
            prop_assert!(out.sampled.is_some() != out.flags.is_some());
        }

        #[test]
        fn any_bytes(values: [Option<Vec<u8>>; 5]) {
            let [trace_id, span_id, parent_span_id, sampled, flags] = values.each_ref().map(Option::as_deref);
            let _ = parse_single(trace_id.unwrap_or_default());
            let _ = parse_multi(&Multi { trace_id, span_id, parent_span_id, sampled, flags });
        }
    }
}
