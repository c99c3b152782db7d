//! `x-datadog-*`: Datadog's tracing libraries (there is no written specification; dd-trace-go and dd-trace-py are followed).
//!
//! Ids are decimal 64-bit numbers, the trace id's high half comes as a tag, in hex:
//! `x-datadog-trace-id: 11803532876627986230`, `x-datadog-parent-id: 67667974448284343`, `x-datadog-sampling-priority: 1`,
//! `x-datadog-tags: _dd.p.dm=-4,_dd.p.tid=640cfd8d00000000`. `x-datadog-origin` goes on as it came.

use crate::context::{Invalid, Local, Remote, Sampling, SpanId, TraceId};
use crate::hex;
use crate::w3c::trim_ows;
use kit::prelude::*;

/// Header name.
pub const TRACE_ID: &str = "x-datadog-trace-id";
/// Header name.
pub const PARENT_ID: &str = "x-datadog-parent-id";
/// Header name.
pub const SAMPLING_PRIORITY: &str = "x-datadog-sampling-priority";
/// Header name.
pub const TAGS: &str = "x-datadog-tags";
/// Header name. Where a trace comes from; it goes on as it came.
pub const ORIGIN: &str = "x-datadog-origin";

/// The tag with the high half of the trace id.
const TID: &[u8] = b"_dd.p.tid=";
/// The libraries' default of `DD_TRACE_X_DATADOG_TAGS_MAX_LENGTH`. They read nothing from a longer header; here the high half is
/// still found in it.
const MAX_TAGS: usize = 512;

/// The values of the headers that make a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers<'a> {
    /// [`TRACE_ID`]. Without it there is no context.
    pub trace_id: &'a [u8],
    /// [`PARENT_ID`].
    pub parent_id: Option<&'a [u8]>,
    /// [`SAMPLING_PRIORITY`].
    pub priority: Option<&'a [u8]>,
    /// [`TAGS`].
    pub tags: Option<&'a [u8]>,
}

/// Reads a context.
///
/// A parent that is 0 or missing makes a trace without a parent, as in dd-trace-py; dd-trace-go takes that only from Datadog's
/// synthetic tests.
///
/// # Errors
/// Why it is none. A malformed `_dd.p.tid` is no reason, as in the libraries: the trace id is then 64 bits.
pub fn parse(headers: &Headers<'_>) -> Result<Remote, Invalid> {
    let low = decimal(trim_ows(headers.trace_id))?;
    if low == 0 {
        return Err(Invalid::Zero);
    }
    let high = headers.tags.into_iter().flat_map(tags).find_map(high_half);
    let trace_id = u128::from(high.unwrap_or(0)) << 64 | u128::from(low);
    let parent_id = headers.parent_id.map_or(Ok(0), |id| decimal(trim_ows(id)))?;
    Ok(Remote {
        trace_id: TraceId::new(trace_id.to_be_bytes()).ok_or(Invalid::Zero)?,
        span_id: SpanId::new(parent_id.to_be_bytes()),
        sampling: headers.priority.map_or(Ok(Sampling::Defer), priority)?,
        random: false,
    })
}

fn decimal(digits: &[u8]) -> Result<u64, Invalid> {
    if digits.is_empty() {
        return Err(Invalid::Length);
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        if !digit.is_ascii_digit() {
            return Err(Invalid::Syntax);
        }
        number.checked_mul(10).and_then(|number| number.checked_add(u64::from(digit & 0x0f))).ok_or(Invalid::Length)
    })
}

/// -1 and 2 are the user's decision, 0 and 1 a sampler's; the libraries take any other number by its sign.
fn priority(value: &[u8]) -> Result<Sampling, Invalid> {
    let value = trim_ows(value);
    let (negative, digits) = match value {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    Ok(if decimal(digits)? == 0 || negative { Sampling::Drop } else { Sampling::Keep })
}

fn tags(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim_ows).filter(|tag| !tag.is_empty())
}

fn high_half(tag: &[u8]) -> Option<u64> {
    let bytes = hex::decode_lower(tag.strip_prefix(TID)?).ok()?;
    Some(u64::from_be_bytes(bytes))
}

/// Writes [`TRACE_ID`]: the low half.
pub fn write_trace_id(trace_id: &TraceId) -> String {
    let [_, low] = halves(trace_id);
    u64::from_be_bytes(low).to_string()
}

/// Writes [`PARENT_ID`].
pub fn write_parent_id(span_id: &SpanId) -> String {
    u64::from_be_bytes(span_id.bytes()).to_string()
}

/// Writes [`SAMPLING_PRIORITY`]: what came in, as long as it says what was decided, because -1 and 2 tell more than 0 and 1.
/// Debug is 2, as in dd-trace-py's reading of B3: no sampler of Datadog's may then drop the trace.
pub fn write_priority<'a>(local: &Local, incoming: Option<&'a [u8]>) -> &'a [u8] {
    let decision = if local.sampled() { Sampling::Keep } else { Sampling::Drop };
    match (incoming, local.sampling) {
        (Some(text), _) if priority(text) == Ok(decision) => trim_ows(text),
        (_, Sampling::Debug) => b"2",
        (_, Sampling::Keep) => b"1",
        (_, Sampling::Drop | Sampling::Defer) => b"0",
    }
}

/// Writes [`TAGS`]: the high half of the trace id, if it has one, and the tags that came with this trace, of which those that would
/// go past 512 characters are left out. Empty: do not send the header.
pub fn write_tags(trace_id: &TraceId, incoming: Option<&[u8]>) -> Vec<u8> {
    let mut text = Vec::new();
    if let [high, _] = halves(trace_id)
        && high != [0; 8]
    {
        text.extend_from_slice(TID);
        text.extend(trace_id.hex().into_iter().take(16));
    }
    for tag in incoming.into_iter().flat_map(tags) {
        let comma: &[u8] = if text.is_empty() { b"" } else { b"," };
        let room = MAX_TAGS.saturating_sub(text.len());
        if comma.len().saturating_add(tag.len()) <= room && !tag.starts_with(TID) {
            text.extend_from_slice(comma);
            text.extend_from_slice(tag);
        }
    }
    text
}

fn halves(trace_id: &TraceId) -> [[u8; 8]; 2] {
    let [a, b, c, d, e, f, g, h, low @ ..] = trace_id.bytes();
    [[a, b, c, d, e, f, g, h], low]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::w3c::tests::{any_local, as_remote};
    use proptest::prelude::*;

    /// 640cfd8d00000000 a3ce929d0e0e4736
    const LOW: &str = "11803532876627986230";
    const TID_TAG: &str = "_dd.p.tid=640cfd8d00000000";

    /// Trace id, parent id, priority, tags; `-` for a header that is not there.
    fn read(values: [&str; 4]) -> Result<Remote, Invalid> {
        let [trace_id, parent_id, priority, tags] = values.map(|value| (value != "-").then_some(value.as_bytes()));
        parse(&Headers { trace_id: trace_id.unwrap_or_default(), parent_id, priority, tags })
    }

    #[test]
    fn valid() {
        let (short, long) = ("a3ce929d0e0e4736", "640cfd8d00000000a3ce929d0e0e4736");
        let both = format!("_dd.p.dm=-4, {TID_TAG},_dd.p.usr=x");
        let upper = TID_TAG.replace("cfd", "CFD");
        for (values, trace, parent, sampling) in [
            ([LOW, "67667974448284343", "1", "-"], short, 67_667_974_448_284_343, Sampling::Keep),
            ([LOW, "18446744073709551615", "2", TID_TAG], long, u64::MAX, Sampling::Keep),
            ([LOW, "1", "0", &both], long, 1, Sampling::Drop),
            ([LOW, "1", "-1", ""], short, 1, Sampling::Drop),
            ([LOW, "1", "-", "no tags at all,,=;"], short, 1, Sampling::Defer),
            ([LOW, "0", "3", "-"], short, 0, Sampling::Keep),
            ([LOW, "-", "-2", "-"], short, 0, Sampling::Drop),
            ([" 011803532876627986230", "\t01 ", " 1 ", "-"], short, 1, Sampling::Keep),
            // Malformed: as if it were not there.
            ([LOW, "1", "1", "_dd.p.tid=640cfd8d"], short, 1, Sampling::Keep),
            ([LOW, "1", "1", "_dd.p.tid=640cfd8d0000000g"], short, 1, Sampling::Keep),
            ([LOW, "1", "1", &upper], short, 1, Sampling::Keep),
            ([LOW, "1", "1", "_dd.p.tid=0000000000000000"], short, 1, Sampling::Keep),
        ] {
            let remote = Remote {
                trace_id: TraceId::from_hex(trace.as_bytes()).unwrap(),
                span_id: SpanId::new(parent.to_be_bytes()),
                sampling,
                random: false,
            };
            assert_eq!(read(values), Ok(remote), "{values:?}");
        }
    }

    #[test]
    fn near_misses() {
        for (values, why) in [
            (["-", "1", "1", TID_TAG], Invalid::Length),
            (["", "1", "1", "-"], Invalid::Length),
            (["18446744073709551616", "1", "1", "-"], Invalid::Length),
            ([LOW, "99999999999999999999", "1", "-"], Invalid::Length),
            ([LOW, "", "1", "-"], Invalid::Length),
            ([LOW, "1", "", "-"], Invalid::Length),
            (["-1", "1", "1", "-"], Invalid::Syntax),
            (["+1", "1", "1", "-"], Invalid::Syntax),
            (["a3ce929d0e0e4736", "1", "1", "-"], Invalid::Syntax),
            ([LOW, "1a", "1", "-"], Invalid::Syntax),
            ([LOW, "1", "1.0", "-"], Invalid::Syntax),
            ([LOW, "1", "--1", "-"], Invalid::Syntax),
            (["0", "1", "1", TID_TAG], Invalid::Zero),
        ] {
            assert_eq!(read(values), Err(why), "{values:?}");
        }
    }

    #[test]
    fn priority_stays_while_it_says_what_was_decided() {
        use Sampling::{Debug, Drop, Keep};
        for (sampling, incoming, out) in [
            (Keep, None, "1"),
            (Drop, None, "0"),
            (Debug, None, "2"),
            (Keep, Some("2"), "2"),
            (Drop, Some("-1"), "-1"),
            (Keep, Some("-1"), "1"),
            (Drop, Some("2"), "0"),
            (Keep, Some("x"), "1"),
        ] {
            let local = Local {
                trace_id: TraceId::from_hex(b"1").unwrap(),
                span_id: SpanId::from_hex(b"1").unwrap(),
                parent_id: None,
                sampling,
                random: false,
            };
            assert_eq!(write_priority(&local, incoming.map(str::as_bytes)), out.as_bytes());
        }
    }

    #[test]
    fn tags_fit_the_trace_id() {
        let (short, long) = ("a3ce929d0e0e4736", "640cfd8d00000000a3ce929d0e0e4736");
        let (full, over) = (format!("_dd.p.x={}", "y".repeat(504)), format!("_dd.p.x={}", "y".repeat(505)));
        let over_with_tid = format!("{full},_dd.p.dm=-4");
        for (trace, incoming, out) in [
            (short, None, String::new()),
            (long, None, TID_TAG.into()),
            (long, Some("_dd.p.dm=-4,_dd.p.tid=1111111111111111,k=v"), format!("{TID_TAG},_dd.p.dm=-4,k=v")),
            (short, Some("_dd.p.tid=1111111111111111,_dd.p.dm=-4"), "_dd.p.dm=-4".into()),
            (long, Some("_dd.p.tid=bad"), TID_TAG.into()),
            (short, Some("_dd.p.tid=bad,"), String::new()),
            (short, Some(&full), full.clone()),
            (short, Some(&over), String::new()),
            (long, Some(&over_with_tid), format!("{TID_TAG},_dd.p.dm=-4")),
        ] {
            let trace = TraceId::from_hex(trace.as_bytes()).unwrap();
            assert_eq!(write_tags(&trace, incoming.map(str::as_bytes)), out.as_bytes(), "{incoming:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(local in any_local(), tags in "(_dd.p.(tid|dm)=[0-9a-f-]{0,20},?){0,40}") {
            let tags = write_tags(&local.trace_id, Some(tags.as_bytes()));
            prop_assert!(tags.len() <= MAX_TAGS);
            prop_assert_eq!(parse(&Headers {
                trace_id: write_trace_id(&local.trace_id).as_bytes(),
                parent_id: Some(write_parent_id(&local.span_id).as_bytes()),
                priority: Some(write_priority(&local, None)),
                tags: Some(&tags),
            }), Ok(as_remote(&local)));
        }

        #[test]
        fn any_bytes(local in any_local(), values: [Option<Vec<u8>>; 4]) {
            let [trace_id, parent_id, priority, tags] = values.each_ref().map(Option::as_deref);
            let _ = parse(&Headers { trace_id: trace_id.unwrap_or_default(), parent_id, priority, tags });
            let _ = write_priority(&local, priority);
            prop_assert!(write_tags(&local.trace_id, tags).len() <= MAX_TAGS);
        }
    }
}
