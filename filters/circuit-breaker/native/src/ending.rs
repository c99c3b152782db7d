//! What the end of a request says of its upstream, by what a log says of it.

use circuit_breaker::config::Failures;

/// What an end says of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did its work.
    Success,
    /// It did not: its answer is an error, or it gave none, or not to the end.
    Error,
    /// Nothing: the client left, or somebody else answered.
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    /// The client left.
    Client,
    /// The upstream failed.
    Upstream,
    /// Somebody before the upstream answered.
    Local,
    /// Something that the status tells better.
    Neither,
}

/// Envoy's response flags in the order of their bits, as `%RESPONSE_FLAGS%` and `%RESPONSE_FLAGS_LONG%` write them.
const FLAGS: [(&str, &str, Says); 30] = [
    ("LH", "FailedLocalHealthCheck", Says::Local),
    ("UH", "NoHealthyUpstream", Says::Upstream),
    ("UT", "UpstreamRequestTimeout", Says::Upstream),
    ("LR", "LocalReset", Says::Upstream),
    ("UR", "UpstreamRemoteReset", Says::Upstream),
    ("UF", "UpstreamConnectionFailure", Says::Upstream),
    ("UC", "UpstreamConnectionTermination", Says::Upstream),
    ("UO", "UpstreamOverflow", Says::Local),
    ("NR", "NoRouteFound", Says::Local),
    ("DI", "DelayInjected", Says::Neither),
    ("FI", "FaultInjected", Says::Local),
    ("RL", "RateLimited", Says::Local),
    ("UAEX", "UnauthorizedExternalService", Says::Local),
    ("RLSE", "RateLimitServiceError", Says::Local),
    ("DC", "DownstreamConnectionTermination", Says::Client),
    ("URX", "UpstreamRetryLimitExceeded", Says::Neither),
    ("SI", "StreamIdleTimeout", Says::Upstream),
    ("IH", "InvalidEnvoyRequestHeaders", Says::Local),
    ("DPE", "DownstreamProtocolError", Says::Client),
    ("UMSDR", "UpstreamMaxStreamDurationReached", Says::Upstream),
    ("RFCF", "ResponseFromCacheFilter", Says::Local),
    ("NFCF", "NoFilterConfigFound", Says::Local),
    ("DT", "DurationTimeout", Says::Upstream),
    ("UPE", "UpstreamProtocolError", Says::Upstream),
    ("NC", "NoClusterFound", Says::Local),
    ("OM", "OverloadManagerTerminated", Says::Local),
    ("DF", "DnsResolutionFailed", Says::Upstream),
    ("DO", "DropOverLoad", Says::Local),
    ("DR", "DownstreamRemoteReset", Says::Client),
    ("UDO", "UnconditionalDropOverload", Says::Local),
];

/// What a log says of an end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said<'a> {
    /// 0 where there was no response.
    pub status: u16,
    /// Names with commas between, or a number whose bits are flags; empty and `-` for none.
    pub flags: &'a str,
    /// `via_upstream` where the upstream answered; empty and `-` where the log does not say.
    pub details: &'a str,
    /// Of gRPC.
    pub grpc: Option<u32>,
}

/// What it says of the upstream, as the filter in the proxy would have seen it: by flags, then by the status.
pub fn of(said: &Said<'_>, failures: &Failures) -> Outcome {
    let bits = said.flags.parse::<u64>().ok();
    let named = |short: &str, long: &str| {
        said.flags.split(',').map(str::trim).any(|flag| flag == short || flag.eq_ignore_ascii_case(long))
    };
    let has = |says: Says| {
        FLAGS.iter().zip(0_u32..).any(|((short, long, of), bit)| {
            *of == says && bits.map_or_else(|| named(short, long), |bits| bits.checked_shr(bit).unwrap_or(0) & 1 == 1)
        })
    };
    let flagged = !matches!(said.flags, "" | "-" | "0");
    if flagged && has(Says::Client) {
        return Outcome::Nothing;
    }
    if flagged && has(Says::Upstream) {
        return Outcome::Error;
    }
    let error = failures.has_status(said.status) || said.grpc.is_some_and(|status| failures.has_grpc(status));
    if said.status == 0 && !error {
        return Outcome::Nothing;
    }
    if said.status < 400 && !error {
        return Outcome::Success;
    }
    match said.details {
        "max_duration_timeout" => return Outcome::Error,
        "" | "-" if flagged && has(Says::Local) => return Outcome::Nothing,
        "" | "-" | "via_upstream" => {}
        _ => return Outcome::Nothing,
    }
    if error { Outcome::Error } else { Outcome::Success }
}

/// The number of a status of gRPC, which is written as that or by its name in any of three ways.
pub fn grpc(text: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "ok",
        "cancelled",
        "unknown",
        "invalidargument",
        "deadlineexceeded",
        "notfound",
        "alreadyexists",
        "permissiondenied",
        "resourceexhausted",
        "failedprecondition",
        "aborted",
        "outofrange",
        "unimplemented",
        "internal",
        "unavailable",
        "dataloss",
        "unauthenticated",
    ];
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let name: String = text.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect();
    let name = if name == "canceled" { "cancelled" } else { &name };
    NAMES.iter().zip(0_u32..).find(|(known, _)| **known == name).map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use circuit_breaker::config::{Config, Settings};

    #[test]
    fn ends() {
        use Outcome::{Error, Nothing, Success};
        let failures = Settings::new(Config::default()).unwrap().failures;
        for (status, flags, details, grpc, expected) in [
            (200, "-", "via_upstream", None, Success),
            (200, "", "", None, Success),
            (404, "-", "via_upstream", None, Success),
            (404, "-", "", None, Success),
            (500, "-", "", None, Error),
            (503, "-", "via_upstream", None, Error),
            (503, "-", "circuit_open", None, Nothing),
            (503, "UH", "no_healthy_upstream", None, Error),
            (503, "UF,URX", "-", None, Error),
            (503, "URX", "via_upstream", None, Error),
            (503, "UO", "overflow", None, Nothing),
            (503, "UO", "", None, Nothing),
            (504, "UT", "", None, Error),
            (429, "RL", "", None, Nothing),
            (503, "RLSE", "", None, Nothing),
            (403, "UAEX", "ext_authz_denied", None, Nothing),
            (404, "NR", "route_not_found", None, Nothing),
            (503, "FI", "", None, Nothing),
            (500, "DI", "", None, Error),
            (200, "UC", "", None, Error),
            (200, "DC", "", None, Nothing),
            (0, "DC", "", None, Nothing),
            (0, "-", "", None, Nothing),
            (0, "UR", "", None, Error),
            (503, "DC,UC", "", None, Nothing),
            (200, "DR", "", None, Nothing),
            (408, "SI", "", None, Error),
            (200, "UMSDR", "", None, Error),
            (504, "DT", "", None, Error),
            (502, "UPE", "", None, Error),
            (503, "DF", "", None, Error),
            (408, "-", "max_duration_timeout", None, Error),
            (504, "UpstreamRequestTimeout", "", None, Error),
            // Bits 2 and 14.
            (504, "4", "", None, Error),
            (0, "16384", "", None, Nothing),
            (200, "0", "", None, Success),
            (200, "-", "", Some(0), Success),
            (200, "-", "via_upstream", Some(14), Error),
            (200, "-", "via_upstream", Some(5), Success),
        ] {
            let said = Said { status, flags, details, grpc };
            assert_eq!(of(&said, &failures), expected, "{said:?}");
        }
    }

    #[test]
    fn statuses_of_grpc() {
        for (text, number) in [("14", Some(14)), ("Unavailable", Some(14)), ("DEADLINE_EXCEEDED", Some(4))] {
            assert_eq!(grpc(text), number);
        }
        assert_eq!((grpc("Canceled"), grpc("-"), grpc("")), (Some(1), None, None));
    }
}
