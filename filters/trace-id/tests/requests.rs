//! What a request becomes: the whole filter in an emulated proxy, natively and as the built module.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use std::time::Duration;

use kit::testing::{Pairs, Proxy, pairs};
use trace_id::TraceId;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn proxy(configuration: &str) -> Proxy<TraceId> {
    Proxy::start_beside("dist/trace-id.wasm", configuration).unwrap_or_else(|| panic!("{configuration} is refused"))
}

fn get(pairs: &Pairs, name: &str) -> Option<String> {
    let mut values =
        pairs.iter().filter(|(n, _)| n == name).map(|(_, value)| String::from_utf8_lossy(value).into_owned());
    let first = values.next();
    assert_eq!(values.next(), None, "{name} stands there twice");
    first
}

/// Headers of the request that the proxy's own tracer writes, behind all filters.
fn write(stream: &emulator::HttpStream, tracer: &[(&str, &str)]) {
    stream.edit_request_headers(|headers| {
        for (name, value) in tracer {
            headers.retain(|(other, _)| other != name.as_bytes());
            headers.push((name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        }
    });
}

fn requests(proxy: &Proxy<TraceId>, outcome: &str, format: &str) -> Option<u64> {
    proxy.metric(&format!("meshfilter_trace_requests_totaloutcome=.={outcome};.;format=.={format};.;"))
}

fn invalid(proxy: &Proxy<TraceId>, format: &str, reason: &str) -> Option<u64> {
    proxy.metric(&format!("meshfilter_trace_invalid_totalformat=.={format};.;reason=.={reason};.;"))
}

#[test]
fn what_the_project_was_asked_for() {
    let mut proxy = proxy(r#"{"inject": ["b3"]}"#);
    let upstream = proxy.request(pairs(&[(":path", "/"), ("x-request-id", "r")]));
    let id = get(&upstream, "x-b3-traceid").unwrap();
    assert_eq!(id.len(), 32);
    assert_eq!(proxy.state("trace_id"), Some(id));
    assert_eq!(proxy.state("span_id"), get(&upstream, "x-b3-spanid"));
    assert_eq!(proxy.state("start_time_ns").unwrap(), "1700000000000000000");
    assert_eq!(proxy.state("trace_sampled").unwrap(), "true");
    assert_eq!(proxy.state("parent_span_id"), None);
    assert_eq!(get(&upstream, "x-b3-sampled").unwrap(), "1");
    assert_eq!(get(&upstream, "traceparent"), None);
    assert_eq!(requests(&proxy, "generated", "none"), Some(1));
}

#[test]
fn a_trace_goes_on_with_a_new_span_from_every_format_into_every_other() {
    let b3_multi = [
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
        ("x-b3-parentspanid", "00000000000000ff"),
        ("x-b3-sampled", "1"),
    ];
    let datadog = [
        ("x-datadog-trace-id", "9532127138774266268"),
        ("x-datadog-parent-id", "13235353014750950193"),
        ("x-datadog-sampling-priority", "2"),
        ("x-datadog-tags", "_dd.p.dm=-4,_dd.p.tid=0af7651916cd43dd"),
    ];
    let single = format!("{TRACE}-{SPAN}-1");
    let jaeger = format!("{TRACE}:{SPAN}:0:1");
    let xray = format!("Root=1-0af76519-16cd43dd8448eb211c80319c;Parent={SPAN};Sampled=1");
    let incoming: [(&str, Pairs); 6] = [
        ("w3c", pairs(&[("traceparent", TRACEPARENT)])),
        ("b3", pairs(&b3_multi)),
        ("b3", pairs(&[("b3", &single)])),
        ("jaeger", pairs(&[("uber-trace-id", &jaeger)])),
        ("datadog", pairs(&datadog)),
        ("xray", pairs(&[("x-amzn-trace-id", &xray)])),
    ];
    for (format, headers) in incoming {
        let mut proxy = proxy(r#"{"inject": ["w3c", "b3", "b3_single", "jaeger", "datadog", "xray"]}"#);
        let upstream = proxy.request(headers);
        let span = proxy.state("span_id").unwrap();
        assert_ne!(span, SPAN, "{format}");
        assert_eq!(get(&upstream, "traceparent").unwrap(), format!("00-{TRACE}-{span}-01"), "{format}");
        assert_eq!(get(&upstream, "b3").unwrap(), format!("{TRACE}-{span}-1-{SPAN}"));
        assert_eq!(get(&upstream, "x-b3-traceid").unwrap(), TRACE);
        assert_eq!(get(&upstream, "x-b3-spanid").unwrap(), span);
        assert_eq!(get(&upstream, "x-b3-parentspanid").unwrap(), SPAN);
        assert_eq!(get(&upstream, "x-b3-sampled").unwrap(), "1");
        assert_eq!(get(&upstream, "uber-trace-id").unwrap(), format!("{TRACE}:{span}:0:1"));
        assert_eq!(get(&upstream, "x-datadog-trace-id").unwrap(), "9532127138774266268");
        let span_number = u64::from_str_radix(&span, 16).unwrap();
        assert_eq!(get(&upstream, "x-datadog-parent-id").unwrap(), span_number.to_string());
        let (priority, tags) = match format {
            "datadog" => ("2", "_dd.p.tid=0af7651916cd43dd,_dd.p.dm=-4"),
            _ => ("1", "_dd.p.tid=0af7651916cd43dd"),
        };
        assert_eq!(get(&upstream, "x-datadog-sampling-priority").unwrap(), priority);
        assert_eq!(get(&upstream, "x-datadog-tags").unwrap(), tags);
        let root = format!("Root=1-0af76519-16cd43dd8448eb211c80319c;Parent={span};Sampled=1");
        assert_eq!(get(&upstream, "x-amzn-trace-id").unwrap(), root);
        assert_eq!(proxy.state("parent_span_id").unwrap(), SPAN);
        assert_eq!(requests(&proxy, "continued", format), Some(1), "{format}");
    }
}

#[test]
fn the_first_valid_format_wins_and_what_is_not_valid_goes() {
    let mut proxy = proxy(r#"{"extract": ["xray", "b3", "w3c"], "inject": ["w3c"]}"#);
    let upstream = proxy.request(pairs(&[
        ("traceparent", TRACEPARENT),
        ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0"),
        ("x-amzn-trace-id", "Root=2-nonsense"),
        ("baggage", "userId=alice"),
        ("tracestate", "vendor=1"),
    ]));
    let traceparent = get(&upstream, "traceparent").unwrap();
    assert!(
        traceparent.starts_with("00-80f198ee56343ba864fe8b2a57d3eff7-") && traceparent.ends_with("-00"),
        "{traceparent}"
    );
    assert_eq!(get(&upstream, "x-amzn-trace-id"), None);
    assert_eq!(get(&upstream, "tracestate"), None, "it belongs to the traceparent that lost");
    assert_eq!(get(&upstream, "baggage").unwrap(), "userId=alice");
    assert_eq!(invalid(&proxy, "xray", "version"), Some(1));
    assert_eq!(requests(&proxy, "continued", "b3"), Some(1));
}

#[test]
fn a_format_that_is_not_written_passes_through_whole() {
    let w3c = [("traceparent", TRACEPARENT), ("tracestate", "vendor=1"), ("x-request-id", "r")];
    let b3 = [("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1")];
    let mut proxy = proxy(r#"{"extract": ["b3", "w3c"], "inject": ["b3_single"]}"#);
    let upstream = proxy.request(pairs(&[&w3c[..], &b3].concat()));
    for (name, value) in w3c {
        assert_eq!(get(&upstream, name).unwrap(), value);
    }
    let twice = [("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("tracestate", "b=2")];
    let upstream = proxy.request(pairs(&twice));
    assert_eq!(upstream.iter().filter(|(name, _)| name == "tracestate").count(), 2);
    let upstream = proxy.request(pairs(&[("tracestate", "vendor=1")]));
    assert_eq!(get(&upstream, "tracestate"), None, "without its traceparent it means nothing");
}

#[test]
fn an_invalid_traceparent_starts_a_new_trace_and_drops_tracestate() {
    for (value, reason) in [
        ("00-00000000000000000000000000000000-b7ad6b7169203331-01", "zero"),
        ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "version"),
        ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", "syntax"),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", "length"),
        ("", "length"),
    ] {
        let mut proxy = proxy("");
        let upstream = proxy.request(pairs(&[("traceparent", value), ("tracestate", "a=1")]));
        let new = get(&upstream, "traceparent").unwrap();
        assert!(!new.contains(TRACE) && new.ends_with("-03"), "{value} became {new}");
        assert_eq!(get(&upstream, "tracestate"), None);
        assert_eq!(invalid(&proxy, "w3c", reason), Some(1), "{value}");
        assert_eq!(requests(&proxy, "generated", "none"), Some(1));
    }
}

#[test]
fn two_traceparents_are_invalid_and_one_goes_on() {
    let mut proxy = proxy("");
    let upstream = proxy.request(pairs(&[("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)]));
    assert!(!get(&upstream, "traceparent").unwrap().contains(TRACE));
    assert_eq!(invalid(&proxy, "w3c", "duplicate"), Some(1));
}

#[test]
fn tracestate_alone_may_be_invalid() {
    let mut proxy = proxy("");
    let upstream = proxy.request(pairs(&[("traceparent", TRACEPARENT), ("tracestate", "BAD")]));
    assert!(get(&upstream, "traceparent").unwrap().contains(TRACE));
    assert_eq!(get(&upstream, "tracestate"), None);
    assert_eq!(invalid(&proxy, "tracestate", "syntax"), Some(1));
}

#[test]
fn several_tracestates_become_one_and_a_sound_one_is_not_touched() {
    let mut proxy = proxy("");
    let upstream = proxy.request(pairs(&[("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("tracestate", "b=2")]));
    assert_eq!(get(&upstream, "tracestate").unwrap(), "a=1,b=2");
    let before = proxy.calls("proxy_replace_header_map_value");
    let upstream =
        proxy.request(pairs(&[("traceparent", TRACEPARENT), ("tracestate", "a=1 , b=2"), ("x-request-id", "r")]));
    assert_eq!(get(&upstream, "tracestate").unwrap(), "a=1 , b=2");
    assert_eq!(proxy.calls("proxy_replace_header_map_value"), before + 1, "traceparent alone is written");
}

#[test]
fn an_edge_restarts_or_links() {
    let caller = [("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("b3", "1"), ("uber-trace-id", "1:2:0:1")];
    for (trust, outcome) in [("restart", "restarted"), ("link", "linked")] {
        let mut proxy = proxy(&format!(r#"{{"trust": "{trust}", "sampling": {{"root": "always_off"}}}}"#));
        let upstream = proxy.request(pairs(&caller));
        let new = get(&upstream, "traceparent").unwrap();
        assert!(!new.contains(TRACE) && new.ends_with("-02"), "{new}");
        for gone in ["tracestate", "b3", "uber-trace-id"] {
            assert_eq!(get(&upstream, gone), None, "{gone}");
        }
        let link = (trust == "link").then(|| format!("{TRACE}-{SPAN}"));
        assert_eq!(proxy.state("trace_link"), link);
        assert_eq!(requests(&proxy, outcome, "none"), Some(1));
    }
    let mut proxy = proxy(r#"{"trust": "restart", "trust_mtls": true}"#);
    proxy.each(|proxy| proxy.set_property(&["connection", "mtls"], true));
    assert!(get(&proxy.request(pairs(&caller)), "traceparent").unwrap().contains(TRACE));
    proxy.each(|proxy| proxy.set_property(&["connection", "mtls"], false));
    assert!(!get(&proxy.request(pairs(&caller)), "traceparent").unwrap().contains(TRACE));
}

#[test]
fn sampling_follows_the_caller_and_else_the_root() {
    let off = r#"{"sampling": {"root": "always_off"}, "inject": ["b3", "w3c"]}"#;
    let sampled = |configuration: &str, headers: &[(&str, &str)]| {
        let mut proxy = proxy(configuration);
        let upstream = proxy.request(pairs(headers));
        (get(&upstream, "x-b3-sampled"), get(&upstream, "x-b3-flags"), proxy.state("trace_sampled").unwrap())
    };
    let yes = || (Some(String::from("1")), None, String::from("true"));
    let no = || (Some(String::from("0")), None, String::from("false"));
    assert_eq!(sampled(off, &[]), no());
    assert_eq!(sampled(off, &[("traceparent", TRACEPARENT)]), yes());
    assert_eq!(sampled(off, &[("b3", "1")]), yes(), "a decision without ids");
    assert_eq!(sampled(off, &[("b3", "d")]), (None, Some("1".into()), "true".into()));
    assert_eq!(sampled(off, &[("x-b3-sampled", "true")]), yes());
    assert_eq!(sampled(off, &[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)]), no(), "deferred to us");
    assert_eq!(sampled(r#"{"inject": ["b3"]}"#, &[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)]), yes());
    assert_eq!(sampled(r#"{"inject": ["b3"]}"#, &[("x-b3-sampled", "0")]), no());
}

#[test]
fn a_ratio_keeps_its_share_and_says_so() {
    let mut proxy = proxy(r#"{"sampling": {"root": "ratio", "ratio": 0.25}}"#);
    let mut kept = 0_u32;
    for _ in 0..4000 {
        let upstream = proxy.request(pairs(&[]));
        let traceparent = get(&upstream, "traceparent").unwrap();
        let sampled = traceparent.ends_with("-03");
        assert_eq!(get(&upstream, "tracestate"), sampled.then(|| "ot=th:c".into()));
        assert_eq!(sampled, u64::from_str_radix(&traceparent[21..35], 16).unwrap() >= 0xc0_0000_0000_0000);
        kept += u32::from(sampled);
    }
    assert!((880..1120).contains(&kept), "{kept} of 4000");
}

#[test]
fn b3_forms_do_not_contradict_each_other() {
    let both =
        [("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"), ("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    let upstream = proxy(r#"{"inject": ["b3"]}"#).request(pairs(&both));
    assert_eq!(get(&upstream, "b3"), None);
    assert_eq!(get(&upstream, "x-b3-traceid").unwrap(), "80f198ee56343ba864fe8b2a57d3eff7");
    let upstream = proxy(r#"{"inject": ["b3_single"]}"#).request(pairs(&both));
    assert_eq!(get(&upstream, "x-b3-traceid"), None);
    assert!(get(&upstream, "b3").unwrap().starts_with("80f198ee56343ba864fe8b2a57d3eff7-"));
}

#[test]
fn an_invalid_single_b3_does_not_hide_the_others() {
    let upstream = proxy("").request(pairs(&[("b3", "nonsense"), ("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)]));
    assert!(get(&upstream, "traceparent").unwrap().contains(TRACE));
}

#[test]
fn a_request_id_is_kept_or_made() {
    let mut proxy = proxy("");
    assert_eq!(get(&proxy.request(pairs(&[("x-request-id", "mine")])), "x-request-id").unwrap(), "mine");
    let v4 = get(&proxy.request(pairs(&[])), "x-request-id").unwrap();
    assert_eq!((v4.len(), &v4[14..15]), (36, "4"));
    let v7 = get(&self::proxy(r#"{"request_id": "v7"}"#).request(pairs(&[])), "x-request-id").unwrap();
    assert_eq!(&v7[..15], "018bcfe5-6800-7", "2023-11-14T22:13:20Z");
    assert_eq!(get(&self::proxy(r#"{"request_id": "off"}"#).request(pairs(&[])), "x-request-id"), None);
}

#[test]
fn xray_ids_begin_with_the_time() {
    let upstream = proxy(r#"{"inject": ["xray", "w3c"]}"#).request(pairs(&[]));
    assert!(get(&upstream, "x-amzn-trace-id").unwrap().starts_with("Root=1-6553f100-"));
    assert!(get(&upstream, "traceparent").unwrap().starts_with("00-6553f100"));
}

#[test]
fn the_caller_is_told_if_so_configured() {
    let mut proxy =
        proxy(r#"{"response": {"trace_id_header": "X-Trace-Id", "server_timing": true, "traceresponse": true}}"#);
    let response = pairs(&[(":status", "200"), ("server-timing", "db;dur=5"), ("x-trace-id", "forged")]);
    let (upstream, down) = proxy.exchange(pairs(&[("traceparent", TRACEPARENT)]), response);
    let sent = get(&upstream, "traceparent").unwrap();
    assert_eq!(get(&down, "x-trace-id").unwrap(), TRACE);
    assert_eq!(get(&down, "traceresponse").unwrap(), sent);
    let timings: Vec<_> = down.iter().filter(|(name, _)| name == "server-timing").map(|(_, v)| v.clone()).collect();
    assert_eq!(timings[0], b"db;dur=5");
    assert_eq!(timings[1], format!("trace;desc=\"{TRACE}\", traceparent;desc=\"{sent}\"").into_bytes());
    let (_, down) = self::proxy("").exchange(pairs(&[]), pairs(&[(":status", "200")]));
    assert_eq!(down, pairs(&[(":status", "200")]), "and else it is not");
}

#[test]
fn what_is_logged_is_what_the_proxys_tracer_sent() {
    let replaced = |configuration: &str, tracer: &[(&str, &str)]| {
        let mut proxy = proxy(configuration);
        proxy.steps(|stream| {
            stream.request_headers(emulator::pairs([("traceparent", TRACEPARENT)]), true);
            write(stream, tracer);
        });
        ["trace_id", "span_id", "parent_span_id", "trace_sampled"].map(|key| proxy.state(key).unwrap())
    };
    let theirs = "00-11111111111111111111111111111111-2222222222222222-00";
    let ones = ["11111111111111111111111111111111", "2222222222222222", "", "false"];
    assert_eq!(replaced("", &[("traceparent", theirs)]), ones);
    let b3 = [("x-b3-traceid", ones[0]), ("x-b3-spanid", ones[1]), ("x-b3-sampled", "0")];
    assert_eq!(replaced("", &b3), ones, "a format that we do not write");
    // A format that came in, passes through, and is then the tracer's: Zipkin's at every hop but the first.
    let came = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")];
    let mut hop = proxy("");
    let upstream = hop.steps(|stream| stream.request_headers(emulator::pairs(came), true)).upstream;
    let own = hop.state("span_id").unwrap();
    let sent = upstream.all("traceparent")[0];
    assert!(sent.ends_with(format!("-{own}-01").as_bytes()), "what passed through is not the tracer's");
    hop.steps(|stream| {
        stream.request_headers(emulator::pairs(came), true);
        write(stream, &[("x-b3-spanid", ones[1])]);
    });
    assert_eq!(hop.state("span_id").unwrap(), ones[1]);
    assert_eq!(hop.state("parent_span_id").unwrap(), SPAN);
    let same = "00-0af7651916cd43dd8448eb211c80319c-2222222222222222-01";
    assert_eq!(replaced("", &[("traceparent", same)]), [TRACE, ones[1], SPAN, "true"], "the parent is still right");
    let [trace, ..] = replaced(r#"{"follow_tracer": "never"}"#, &[("traceparent", theirs)]);
    assert_eq!(trace, TRACE);
    let [trace, ..] = replaced("", &[("traceparent", "nonsense")]);
    assert_eq!(trace, TRACE);
}

#[test]
fn a_request_that_a_filter_in_front_answered_is_logged_with_its_callers_context() {
    let mut proxy = proxy("");
    proxy.steps(|stream| {
        stream.set_property(&["request", "time"], 42_u64);
        stream.edit_request_headers(|headers| *headers = emulator::pairs([("traceparent", TRACEPARENT)]));
    });
    assert_eq!(proxy.state("trace_id").unwrap(), TRACE);
    assert_eq!(proxy.state("parent_span_id").unwrap(), SPAN);
    assert_eq!(proxy.state("start_time_ns").unwrap(), "42");
}

#[test]
fn a_forwarded_header_joins_what_goes_out_to_what_came_in() {
    let mut proxy = proxy(r#"{"join": {"ttl": "10s"}}"#);
    let direction = |proxy: &Proxy<TraceId>, way: i64| {
        proxy.each(|proxy| proxy.set_property(&["xds", "listener_direction"], way));
    };
    direction(&proxy, 1);
    // Envoy writes its decision into the 15th digit: 9 on the way in, 4 on the way out.
    proxy.request(pairs(&[("traceparent", TRACEPARENT), ("x-request-id", "e1d34fd8-93ab-9d32-b8a2-52a18a0a0f9b")]));
    let inbound = proxy.state("span_id").unwrap();
    direction(&proxy, 2);
    let out = pairs(&[("x-request-id", "e1d34fd8-93ab-4d32-b8a2-52a18a0a0f9b")]);
    let upstream = proxy.request(out.clone());
    assert!(get(&upstream, "traceparent").unwrap().contains(TRACE));
    assert_eq!(proxy.state("parent_span_id").unwrap(), inbound);
    assert_eq!(requests(&proxy, "joined", "none"), Some(1));
    let other = pairs(&[("x-request-id", "ffffffff-93ab-4d32-b8a2-52a18a0a0f9b")]);
    assert!(!get(&proxy.request(other), "traceparent").unwrap().contains(TRACE));
    proxy.each(|proxy| proxy.advance(Duration::from_secs(10)));
    assert!(!get(&proxy.request(out), "traceparent").unwrap().contains(TRACE), "too late");
}

#[test]
fn a_request_id_that_was_just_made_is_remembered() {
    let mut proxy = proxy(r#"{"join": {}}"#);
    let upstream = proxy.request(pairs(&[("traceparent", TRACEPARENT)]));
    let id = get(&upstream, "x-request-id").unwrap();
    let upstream = proxy.request(pairs(&[("x-request-id", &id)]));
    assert!(get(&upstream, "traceparent").unwrap().contains(TRACE));
}

#[test]
fn an_edge_joins_no_stranger() {
    let mut proxy = proxy(r#"{"join": {}, "trust": "restart"}"#);
    let mut seen = Vec::new();
    for headers in [&[("x-request-id", "abc"), ("traceparent", TRACEPARENT)][..], &[("x-request-id", "abc")]] {
        for _ in 0..2 {
            proxy.request(pairs(headers));
            let trace = proxy.state("trace_id").unwrap();
            assert!(!seen.contains(&trace));
            seen.push(trace);
        }
    }
}

#[test]
fn an_edge_lets_no_trace_header_of_a_stranger_pass() {
    let mut proxy = proxy(r#"{"trust": "restart"}"#);
    let upstream = proxy.request(pairs(&[("x-datadog-origin", "rum"), ("x-request-id", "r")]));
    assert_eq!(get(&upstream, "x-datadog-origin"), None);
    assert_eq!(requests(&proxy, "restarted", "none"), Some(1));
}

#[test]
fn a_clock_that_fails_is_not_logged_as_zero() {
    let mut proxy = proxy("");
    proxy.fail("proxy_get_current_time_nanoseconds");
    proxy.request(pairs(&[]));
    assert_eq!(proxy.state("start_time_ns"), None);
    assert!(proxy.state("trace_id").is_some());
}

#[test]
fn every_example_of_the_readme_is_taken_and_every_filter_state_is_in_it() {
    let readme = include_str!("../README.md");
    let examples: Vec<&str> =
        readme.lines().filter_map(|line| Some(line.split_once("| `{")?.1.split_once("` |")?.0)).collect();
    assert!(examples.len() >= 6);
    examples.iter().for_each(|example| drop(proxy(&format!("{{{example}"))));
    let mut proxy = proxy(r#"{"trust": "link"}"#);
    proxy.request(pairs(&[("traceparent", TRACEPARENT)]));
    let mut set = proxy.states();
    assert!(proxy.configure("{}"));
    proxy.request(pairs(&[("traceparent", TRACEPARENT)]));
    set.extend(proxy.states());
    set.sort();
    set.dedup();
    let mut named: Vec<&str> =
        readme.lines().filter_map(|line| Some(line.strip_prefix("| `wasm.")?.split_once('`')?.0)).collect();
    named.sort();
    assert_eq!(set, named);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut proxy = proxy(r#"{"join": {"header": "x-flow", "entries": 16}}"#);
    for n in 0..10_000 {
        proxy.request(pairs(&[("x-flow", &n.to_string())]));
    }
    assert_eq!(proxy.each(|proxy| proxy.all_shared_data("")).len(), 16);
    proxy.request(pairs(&[("x-flow", &"x".repeat(129))]));
    let kept = proxy.each(|proxy| proxy.all_shared_data(""));
    assert!(kept.values().all(|value| value.len() <= 8 + 16 + 8 + 1 + 128));
}

#[test]
fn every_byte_in_every_trace_header_is_taken_as_it_comes() {
    let names = [
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
        "uber-trace-id",
        "x-datadog-trace-id",
        "x-datadog-parent-id",
        "x-datadog-sampling-priority",
        "x-datadog-tags",
        "x-amzn-trace-id",
        "x-request-id",
        "baggage",
    ];
    let mut proxy = proxy(r#"{"inject": ["w3c", "b3", "b3_single", "jaeger", "datadog", "xray"], "join": {}}"#);
    for name in names {
        for byte in 0..=255_u8 {
            for value in [
                vec![byte],
                vec![byte; 55],
                [&TRACEPARENT.as_bytes()[..10], &[byte], &TRACEPARENT.as_bytes()[11..]].concat(),
            ] {
                let upstream = proxy.request(vec![
                    ("traceparent".into(), TRACEPARENT.into()),
                    (name.into(), value.clone()),
                    (name.into(), value),
                ]);
                assert_eq!(get(&upstream, "traceparent").unwrap().len(), 55);
            }
        }
    }
}

#[test]
fn a_host_that_fails_every_call_stops_nothing() {
    let mut proxy = proxy(r#"{"join": {}, "trust": "link", "trust_mtls": true, "response": {"server_timing": true}}"#);
    proxy.fail_all();
    let came = pairs(&[("traceparent", TRACEPARENT)]);
    assert_eq!(proxy.request(came.clone()), came);
    assert_eq!(proxy.held(), (0, 1));
}

#[test]
fn a_wrong_configuration_is_refused_and_the_old_one_serves() {
    let mut proxy = proxy(r#"{"inject": ["b3"]}"#);
    for wrong in [
        r#"{"inject": []}"#,
        r#"{"inject": ["w3c", "w3c"]}"#,
        r#"{"extract": ["b4"]}"#,
        r#"{"extract": ["b3", "b3"]}"#,
        r#"{"injekt": ["b3"]}"#,
        r#"{"sampling": {"root": "ratio"}}"#,
        r#"{"sampling": {"ratio": 0.5}}"#,
        r#"{"sampling": {"root": "ratio", "ratio": 1.5}}"#,
        r#"{"sampling": {"root": "ratio", "ratio": 1e-20}}"#,
        r#"{"trust_mtls": true}"#,
        r#"{"tracestate_limit": 511}"#,
        r#"{"join": {"entries": 0}}"#,
        r#"{"join": {"header": ":path"}}"#,
        r#"{"join": {"ttl": 5}}"#,
        r#"{"join": {"ttl": "2h"}}"#,
        r#"{"join": {"ttl": "99ms"}}"#,
        "inject: [b3]",
    ] {
        assert!(!proxy.configure(wrong), "{wrong}");
    }
    assert!(get(&proxy.request(pairs(&[])), "x-b3-traceid").is_some());
    assert!(proxy.configure(r#"{"sampling": {"root": "ratio", "ratio": 0}}"#));
    assert!(get(&proxy.request(pairs(&[])), "traceparent").unwrap().ends_with("-02"));
}

#[test]
fn a_request_costs_one_read_of_the_headers() {
    let mut proxy = proxy("");
    proxy.request(pairs(&[("traceparent", TRACEPARENT), ("x-request-id", "r")]));
    proxy.take_calls();
    proxy.request(pairs(&[("traceparent", TRACEPARENT), ("x-request-id", "r")]));
    // One read to decide; one when it is over, to see what the proxy's tracer did: later only at every 16th request.
    assert_eq!(
        proxy.take_calls().into_iter().collect::<Vec<_>>(),
        [
            ("proxy_get_current_time_nanoseconds", 1),
            ("proxy_get_header_map_pairs", 2),
            ("proxy_increment_metric", 1),
            ("proxy_replace_header_map_value", 1),
            ("proxy_set_property", 5),
        ]
    );
    let reads = |proxy: &mut Proxy<TraceId>, requests: u64| {
        let before = proxy.calls("proxy_get_header_map_pairs");
        (0..requests).for_each(|_| drop(proxy.request(pairs(&[("x-request-id", "r")]))));
        proxy.calls("proxy_get_header_map_pairs") - before
    };
    assert_eq!(reads(&mut proxy, 254), 254 * 2);
    assert_eq!(reads(&mut proxy, 1600), 1600 + 100);
}

#[test]
fn a_tracer_that_was_seen_once_is_looked_for_at_each_request() {
    let mut proxy = proxy("");
    (0..1000).for_each(|_| drop(proxy.request(pairs(&[]))));
    let mut followed = Vec::new();
    for _ in 0..64 {
        proxy.steps(|stream| {
            stream.request_headers(emulator::Pairs::new(), true);
            write(stream, &[("traceparent", TRACEPARENT)]);
        });
        followed.push(proxy.state("trace_id").unwrap() == TRACE);
    }
    let first = followed.iter().position(|yes| *yes).unwrap();
    assert!(first < 16, "found at request {first}");
    assert!(followed[first..].iter().all(|yes| *yes));
}
