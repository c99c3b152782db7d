//! What a request was and how it ended, in a few words.

use kit::Headers;
use kit::prelude::*;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP of any version.
    Http,
    /// gRPC: `content-type: application/grpc`, with anything behind `+` or `;`.
    Grpc,
    /// A WebSocket, or any other upgrade or tunnel.
    Websocket,
    /// A connection.
    Tcp,
}

impl Protocol {
    /// As a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Websocket => "websocket",
            Self::Tcp => "tcp",
        }
    }

    /// By the headers of both sides. gRPC by the request's: a reply of the proxy itself to a gRPC caller says so as well,
    /// one of a plain server does not.
    pub(crate) fn of(method: &str, grpc: bool, status: Option<u16>) -> Self {
        match status {
            Some(101) => Self::Websocket,
            Some(200..=299) if method == "CONNECT" => Self::Websocket,
            _ if grpc => Self::Grpc,
            _ => Self::Http,
        }
    }
}

/// Whether this content type is gRPC's, with anything behind `+` or `;`.
pub(crate) fn grpc(content_type: &[u8]) -> bool {
    matches!(after(content_type, b"application/grpc"), Some([] | [b'+' | b';', ..]))
}

/// Whether a response says of itself that it has no end in sight.
pub(crate) fn streams(response: &Headers<'_>) -> bool {
    response.get("content-type").and_then(|value| after(value, b"text/event-stream")).is_some()
}

/// What comes behind a media type, whose letters may be of either case (RFC 9110, 8.3.1).
fn after<'a>(value: &'a [u8], media_type: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = value.split_at_checked(media_type.len())?;
    start.eq_ignore_ascii_case(media_type).then_some(rest)
}

/// The registered methods (RFC 9110, 9.3, and PATCH); what a stranger makes up is `OTHER`.
pub(crate) fn method(method: Option<&[u8]>) -> &'static str {
    match method {
        Some(b"GET") => "GET",
        Some(b"HEAD") => "HEAD",
        Some(b"POST") => "POST",
        Some(b"PUT") => "PUT",
        Some(b"DELETE") => "DELETE",
        Some(b"CONNECT") => "CONNECT",
        Some(b"OPTIONS") => "OPTIONS",
        Some(b"TRACE") => "TRACE",
        Some(b"PATCH") => "PATCH",
        Some(_) => "OTHER",
        None => "",
    }
}

/// A status of three digits.
pub(crate) fn status(response: &Headers<'_>) -> Option<u16> {
    let text = str::from_utf8(response.get(":status")?).ok()?;
    text.parse().ok().filter(|status| (100..=999).contains(status))
}

/// `2xx`; nothing where there was no response.
pub(crate) fn class(status: Option<u16>) -> &'static str {
    match status {
        Some(100..=199) => "1xx",
        Some(200..=299) => "2xx",
        Some(300..=399) => "3xx",
        Some(400..=499) => "4xx",
        Some(500..=599) => "5xx",
        Some(_) => "other",
        None => "",
    }
}

/// Why a request failed, by the proxy's response flags. Bits as Envoy numbers them (`StreamInfo::CoreResponseFlag`);
/// `DelayInjected` (9) and `ResponseFromCacheFilter` (20) are no failures.
pub(crate) fn failure(flags: i64) -> &'static str {
    // The first that fits: what retries ended in says more than that there were some.
    const BITS: [(&[u32], &str); 8] = [
        // UpstreamRequestTimeout, StreamIdleTimeout, UpstreamMaxStreamDurationReached, DurationTimeout.
        (&[2, 16, 19, 22], TIMEOUT),
        // NoHealthyUpstream, UpstreamConnectionFailure, UpstreamOverflow, NoClusterFound, DnsResolutionFailed.
        (&[1, 5, 7, 24, 26], "no_upstream"),
        // UpstreamRemoteReset, UpstreamConnectionTermination, UpstreamProtocolError.
        (&[4, 6, 23], UPSTREAM_RESET),
        // DownstreamConnectionTermination, DownstreamProtocolError, DownstreamRemoteReset.
        (&[14, 18, 28], CLIENT_GONE),
        // NoRouteFound.
        (&[8], "no_route"),
        // RateLimited, RateLimitServiceError, OverloadManager, DropOverLoad, UnconditionalDropOverload.
        (&[11, 13, 25, 27, 29], "limited"),
        // UpstreamRetryLimitExceeded.
        (&[15], "retries"),
        // FailedLocalHealthCheck, LocalReset, FaultInjected, UnauthorizedExternalService, InvalidEnvoyRequestHeaders,
        // NoFilterConfigFound.
        (&[0, 3, 10, 12, 17, 21], "local"),
    ];
    let set = |bit: &u32| flags.checked_shr(*bit).unwrap_or(0) & 1 == 1;
    BITS.iter().find(|(bits, _)| bits.iter().any(set)).map_or("", |(_, word)| word)
}

/// It took too long.
pub(crate) const TIMEOUT: &str = "timeout";
/// The upstream broke off, perhaps in the middle of a response that began well.
const UPSTREAM_RESET: &str = "upstream_reset";
/// The client broke off.
pub(crate) const CLIENT_GONE: &str = "client_gone";

/// Whether a request of this outcome is bad whatever time it took: the server's fault, or no answer at all.
pub(crate) fn failed(status: Option<u16>, grpc: Option<i64>, failure: &str) -> bool {
    // In gRPC the proxy has a status even for who did not wait for one.
    if failure == CLIENT_GONE {
        return false;
    }
    match grpc {
        // Unknown, deadline exceeded, unimplemented, internal, unavailable, data loss; and what no status is.
        Some(code) => matches!(code, 2 | 4 | 12 | 13 | 14 | 15) || !KNOWN_GRPC.contains(&code),
        None => status.is_none_or(|status| status >= 500) || matches!(failure, TIMEOUT | UPSTREAM_RESET),
    }
}

/// From OK to unauthenticated.
const KNOWN_GRPC: core::ops::RangeInclusive<i64> = 0..=16;

/// An upstream may send any number.
pub(crate) fn grpc_status(code: i64) -> String {
    if KNOWN_GRPC.contains(&code) { itoa::Buffer::new().format(code).into() } else { "other".into() }
}

/// Three digits as text.
pub(crate) fn digits(number: u16) -> String {
    itoa::Buffer::new().format(number).into()
}
