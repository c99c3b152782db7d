//! `uber-trace-id`: Jaeger client libraries, "Propagation Format".
//!
//! `{trace-id}:{span-id}:{parent-span-id}:{flags}`, hex: `5b2b4c5d8d3e1f:7d3e1f:0:1`. Leading zeros may be left out. Some clients
//! percent-encode the value, in which only the colons are touched: `5b2b4c5d8d3e1f%3A7d3e1f%3A0%3A1`.
//!
//! The parent is deprecated ("most Jaeger clients ignore on the receiving side"); like OpenTelemetry's propagators we do not read
//! it, and write `0`.

use crate::context::{Invalid, Local, Remote, Sampling, SpanId, TraceId};
use crate::hex;
use crate::w3c::{concat, trim_ows};

/// Header name.
pub const UBER_TRACE_ID: &str = "uber-trace-id";

const SAMPLED: u8 = 0x01;
const DEBUG: u8 = 0x02;

/// Reads a `uber-trace-id` value.
///
/// # Errors
/// Why it is none.
pub fn parse(value: &[u8]) -> Result<Remote, Invalid> {
    let (trace_id, rest) = field(trim_ows(value))?;
    let (span_id, rest) = field(rest)?;
    let (_parent, flags) = field(rest)?;
    let [flags] = hex::decode(flags)?;
    Ok(Remote {
        trace_id: TraceId::from_hex(trace_id)?,
        span_id: Some(SpanId::from_hex(span_id)?),
        // "Debug flag should only be set when the sampled flag is set": alone it says nothing.
        sampling: if flags & SAMPLED == 0 {
            Sampling::Drop
        } else if flags & DEBUG == 0 {
            Sampling::Keep
        } else {
            Sampling::Debug
        },
        random: false,
    })
}

/// What stands before the first colon, and what after it.
fn field(value: &[u8]) -> Result<(&[u8], &[u8]), Invalid> {
    let at = value.iter().position(|byte| matches!(byte, b':' | b'%'));
    let (field, rest) = at.and_then(|at| value.split_at_checked(at)).ok_or(Invalid::Length)?;
    match rest {
        [b':', rest @ ..] | [b'%', b'3', b'A' | b'a', rest @ ..] => Ok((field, rest)),
        _ => Err(Invalid::Syntax),
    }
}

/// Writes a `uber-trace-id` value, ids in full width.
pub fn write(local: &Local) -> [u8; 53] {
    let end = match local.sampling {
        Sampling::Debug => b":0:3",
        Sampling::Keep => b":0:1",
        Sampling::Drop | Sampling::Defer => b":0:0",
    };
    concat([&local.trace_id.hex(), b":", &local.span_id.hex(), end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::w3c::tests::{any_local, as_remote};
    use kit::prelude::*;
    use proptest::prelude::*;

    const TRACE: &str = "3d1a2f0b4c5d6e7f8091a2b3c4d5e6f7";
    const SPAN: &str = "8091a2b3c4d5e6f7";

    #[test]
    fn valid() {
        for (text, trace, span, sampling) in [
            (format!("{TRACE}:{SPAN}:0:1"), TRACE, SPAN, Sampling::Keep),
            (format!("{TRACE}:{SPAN}:{SPAN}:0"), TRACE, SPAN, Sampling::Drop),
            (format!("{TRACE}:{SPAN}:0:03"), TRACE, SPAN, Sampling::Debug),
            (format!("{TRACE}:{SPAN}:0:2"), TRACE, SPAN, Sampling::Drop),
            // Firehose and bits without a meaning.
            (format!("{TRACE}:{SPAN}:0:fd"), TRACE, SPAN, Sampling::Keep),
            (format!("{TRACE}:{SPAN}::1"), TRACE, SPAN, Sampling::Keep),
            (format!("{TRACE}:{SPAN}:not read:1"), TRACE, SPAN, Sampling::Keep),
            (format!("{TRACE}%3A{SPAN}%3a0%3A1"), TRACE, SPAN, Sampling::Keep),
            (format!(" {}:{SPAN}:0:1\t", TRACE.to_uppercase()), TRACE, SPAN, Sampling::Keep),
            (format!("{SPAN}:{SPAN}:0:1"), SPAN, SPAN, Sampling::Keep),
            ("abc:d:0:1".into(), "abc", "d", Sampling::Keep),
            ("000abc:00d:0:1".into(), "abc", "d", Sampling::Keep),
        ] {
            let remote = Remote {
                trace_id: TraceId::from_hex(trace.as_bytes()).unwrap(),
                span_id: SpanId::from_hex(span.as_bytes()).ok(),
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
            (TRACE.into(), Invalid::Length),
            (format!("{TRACE}:{SPAN}:1"), Invalid::Length),
            (format!("{TRACE}:{SPAN}:0:"), Invalid::Length),
            (format!("{TRACE}:{SPAN}:0:001"), Invalid::Length),
            (format!("{TRACE}0:{SPAN}:0:1"), Invalid::Length),
            (format!("{TRACE}:{SPAN}0:0:1"), Invalid::Length),
            (format!(":{SPAN}:0:1"), Invalid::Length),
            (format!("{TRACE}::0:1"), Invalid::Length),
            (format!("{TRACE}:{SPAN}:0:1:"), Invalid::Syntax),
            (format!("{TRACE}:{SPAN}:0::"), Invalid::Syntax),
            (format!("{TRACE}:{SPAN}:0:x"), Invalid::Syntax),
            (format!("{TRACE}:g:0:1"), Invalid::Syntax),
            (format!("-{SPAN}:{SPAN}:0:1"), Invalid::Syntax),
            (format!("{TRACE}%3B{SPAN}:0:1"), Invalid::Syntax),
            (format!("{TRACE}:{SPAN}:0%3"), Invalid::Syntax),
            (format!("0:{SPAN}:0:1"), Invalid::Zero),
            (format!("{TRACE}:0:0:1"), Invalid::Zero),
        ] {
            assert_eq!(parse(text.as_bytes()), Err(why), "{text}");
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(local in any_local()) {
            let remote = Remote { sampling: local.sampling, ..as_remote(&local) };
            let text = write(&local);
            prop_assert_eq!(parse(&text), Ok(remote));
            let encoded = String::from_utf8_lossy(&text).replace(':', "%3A");
            prop_assert_eq!(parse(encoded.as_bytes()), Ok(remote));
        }

        #[test]
        fn any_bytes(value: Vec<u8>) {
            let _ = parse(&value);
        }
    }
}
