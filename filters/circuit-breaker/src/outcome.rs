//! How a request ended, as a breaker sees it.

use kit::Host;

/// What an end says of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did its work.
    Success,
    /// It did not: its answer is an error, or it gave none, or not to the end.
    Error,
    /// Nothing: the client left, or somebody else answered.
    Nothing,
}

/// Bits of `response.flags` as Envoy numbers them (`StreamInfo::CoreResponseFlag`), by what they say.
///
/// The upstream's: NoHealthyUpstream (1), UpstreamRequestTimeout (2), LocalReset (3), UpstreamRemoteReset (4),
/// UpstreamConnectionFailure (5), UpstreamConnectionTermination (6), StreamIdleTimeout (16),
/// UpstreamMaxStreamDurationReached (19), DurationTimeout (22), UpstreamProtocolError (23), DnsResolutionFailed (26).
const UPSTREAM: i64 = bits(&[1, 2, 3, 4, 5, 6, 16, 19, 22, 23, 26]);

/// DownstreamConnectionTermination (14), DownstreamProtocolError (18), DownstreamRemoteReset (28).
const CLIENT: i64 = bits(&[14, 18, 28]);

/// StreamIdleTimeout.
const IDLE: i64 = bits(&[16]);

// The compiler runs it: what could panic in it would not build.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
const fn bits(numbers: &[u32]) -> i64 {
    let (mut all, mut index) = (0, 0);
    while index < numbers.len() {
        all |= 1 << numbers[index];
        index += 1;
    }
    all
}

/// The end of a request that did not end well at a glance: by what the proxy says of it. `error`: the status that the
/// client got is one; `status`: that itself, 0 for none.
pub(crate) fn of_proxy(host: &dyn Host, error: bool, status: u16) -> Outcome {
    let flags = host.number(&["response", "flags"]).unwrap_or(0);
    // A client that does not send the rest of its request is given up with 408, an upstream that does not answer with 504.
    let idle_client = flags & IDLE != 0 && status == 408;
    if flags & CLIENT != 0 || idle_client {
        return Outcome::Nothing;
    }
    if flags & UPSTREAM != 0 {
        return Outcome::Error;
    }
    match host.property(&["response", "code_details"]) {
        // The longest duration of a stream, and the time that a client has to send its request, end without a flag.
        Ok(details) if *details == *b"max_duration_timeout" => Outcome::Error,
        // Its own answer; a filter's or the proxy's own one says something else.
        Ok(details) if *details == *b"via_upstream" => {
            if error {
                Outcome::Error
            } else {
                Outcome::Success
            }
        }
        _ => Outcome::Nothing,
    }
}
