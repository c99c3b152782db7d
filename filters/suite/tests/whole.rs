//! The four in one module, natively and as that module: their order, what they share, and what none of them may do to
//! another.
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

use std::collections::BTreeMap;
use std::time::Duration;

use emulator::{HttpStream, Message, Peer, Sent};
use kit::Filter;
use kit::testing::Proxy;
use suite::Suite;

const ALL: &str = r#"{"trace_id": {}, "latency": {}, "log_scrub": {}, "circuit_breaker": {}}"#;

/// Everything to a cluster is rejected.
const OFF: &str = r#"{"id": "off", "resource": "*", "strategy": "error_count", "threshold": 1, "mode": "forced_open"}"#;

/// One error opens it.
const ONE: &str = r#"{"id": "one", "resource": "*", "strategy": "error_count", "threshold": 1, "min_requests": 1, "retry_timeout": "60s"}"#;

fn start(configuration: &str) -> Proxy<Suite> {
    let proxy = Proxy::<Suite>::start_beside("dist/suite.wasm", configuration);
    let proxy = proxy.unwrap_or_else(|| panic!("{configuration} is refused"));
    proxy.each(|proxy| proxy.set_property(&["xds", "cluster_name"], "up"));
    proxy
}

fn get(headers: &[(&str, &str)]) -> Message {
    let first = [(":method", "GET"), (":path", "/users/ann@example.com"), (":authority", "a")];
    Message::new(first.iter().chain(headers).copied())
}

fn answer(headers: &[(&str, &str)]) -> Message {
    Message::new([(":status", "200")].iter().chain(headers).copied())
}

/// An answer that is the upstream's, and no other filter's.
fn upstream_says(stream: &HttpStream, response: &Message) {
    stream.set_property(&["response", "code_details"], "via_upstream");
    stream.response(response);
}

fn bad(stream: &HttpStream) {
    stream.request(&get(&[]));
    upstream_says(stream, &Message::new([(":status", "500")]));
}

fn well(stream: &HttpStream) {
    stream.request(&get(&[]));
    upstream_says(stream, &answer(&[]));
}

/// The only value of a header, as text.
fn one(sent: &Sent, name: &str) -> Option<String> {
    let [value] = sent.all(name)[..] else { return None };
    Some(String::from_utf8(value.to_vec()).unwrap())
}

fn series(name: &str, labels: &[(&str, &str)]) -> String {
    labels.iter().fold(name.to_owned(), |series, (label, value)| series + &format!("{label}=.={value};.;"))
}

const FINISHED: &str = "meshfilter_requests_finished_total";

fn refusal(text: &str) -> String {
    match kit::config::parse(text.as_bytes()).and_then(Suite::new) {
        Ok(_) => panic!("{text} is taken"),
        Err(refusal) => refusal.to_string(),
    }
}

/// trace-id and latency come before circuit-breaker.
#[test]
fn what_is_turned_away_has_a_trace_of_its_own_and_is_timed_and_counted() {
    let mut proxy = start(&format!(
        r#"{{"trace_id": {{"response": {{"trace_id_header": "x-trace-id"}}}}, "latency": {{"server_timing": true}},
            "log_scrub": {{"outputs": {{"response_headers": ["x-circuit-state"]}}}}, "circuit_breaker": {{"rules": [{OFF}]}}}}"#
    ));
    let done = proxy.steps(well);
    assert!(done.upstream.headers.is_none());
    let told = |name: &str| one(&done.downstream, name).unwrap_or_default();
    assert_eq!((told(":status"), told("x-circuit-state")), ("503".into(), "open".into()));
    let trace = proxy.state("trace_id").unwrap();
    assert_eq!((told("x-trace-id"), trace.len()), (trace, 32));
    assert_eq!(proxy.state("span_id").unwrap().len(), 16);
    assert!(told("server-timing").starts_with("ttfb;dur="));
    assert!(proxy.state("latency.total_us").is_some());
    let labels = [("protocol", "http"), ("method", "GET"), ("code", "5xx")];
    assert_eq!(proxy.metric(&series(FINISHED, &labels)), Some(1));
    assert_eq!(proxy.state("scrub.path").as_deref(), Some("/users/[email]"));
    assert_eq!(proxy.state("scrub.response_header.x-circuit-state").as_deref(), Some("open"));
    assert_eq!(proxy.state("circuit.decision").as_deref(), Some("rejected"));
}

/// log-scrub comes before circuit-breaker.
#[test]
fn what_is_cleaned_on_its_way_is_clean_where_it_becomes_the_name_of_a_resource() {
    let one = ONE.replace("one", "r");
    let mut proxy = start(&format!(
        r#"{{"log_scrub": {{"mutate": {{"request_headers": ["x-user"]}}}},
            "circuit_breaker": {{"resources": ["header:x-user"], "rules": [{one}]}}}}"#
    ));
    proxy.steps(|stream| {
        stream.request(&get(&[("x-user", "ann@example.com")]));
        upstream_says(stream, &Message::new([(":status", "500")]));
    });
    let turns = [("resource", "header:x-user_[email]"), ("rule", "r"), ("from", "closed"), ("to", "open")];
    assert_eq!(proxy.metric(&series("meshfilter_circuit_transitions_total", &turns)), Some(1));
    proxy.each(|proxy| {
        assert!(proxy.metrics().keys().all(|name| !name.contains("ann@")));
        assert!(proxy.log().iter().any(|line| line.text.contains("x-user=[email], rule r: closed to open")));
        assert!(proxy.log().iter().all(|line| !line.text.contains("ann@")));
    });
}

/// An answer meets circuit-breaker first: it judges what the upstream said, and not what the others made of it.
#[test]
fn an_answer_meets_them_in_the_reverse_order() {
    let mut proxy = start(&format!(
        r#"{{"log_scrub": {{"own": [{{"name": "code", "literal": "14"}}], "mutate": {{"response_headers": ["grpc-status"]}}}},
            "circuit_breaker": {{"properties": "all", "rules": [{ONE}]}}}}"#
    ));
    let call = |stream: &HttpStream| {
        stream.request(&get(&[("content-type", "application/grpc")]));
        upstream_says(stream, &answer(&[("content-type", "application/grpc"), ("grpc-status", "14")]));
    };
    let done = proxy.steps(call);
    assert_eq!(one(&done.downstream, "grpc-status").as_deref(), Some("[code]"), "it was changed after");
    assert_eq!(proxy.state("circuit.decision").as_deref(), Some("allowed"));
    proxy.steps(call);
    assert_eq!(proxy.state("circuit.decision").as_deref(), Some("rejected"), "14 is an error, `[code]` would be none");
}

#[test]
fn one_reads_what_another_wrote_in_one_request() {
    let mut proxy = start(&format!(
        r#"{{"trace_id": {{}}, "log_scrub": {{"outputs": {{"request_headers": ["traceparent", "x-circuit-fallback"]}}}},
            "circuit_breaker": {{"rules": [{}]}}}}"#,
        OFF.replace(r#""mode""#, r#""fallback": "cache", "mode""#)
    ));
    let done = proxy.steps(|stream| {
        stream.request(&get(&[("x-circuit-fallback", "forged")]));
        stream.response(&answer(&[]));
    });
    let sent = |name: &str| one(&done.upstream, name).unwrap_or_default();
    assert_eq!(sent("x-circuit-fallback"), "cache");
    assert_eq!(proxy.state("scrub.header.x-circuit-fallback").as_deref(), Some("cache"));
    assert!(sent("traceparent").starts_with(&format!("00-{}-", proxy.state("trace_id").unwrap())));
    assert_eq!(proxy.state("scrub.header.traceparent"), Some(sent("traceparent")));
}

/// The hostcalls of a request's three phases, once metrics are defined and headers known.
fn phases(proxy: &Proxy<Suite>) -> [BTreeMap<&'static str, u64>; 3] {
    proxy.each(|proxy| {
        (0..3).for_each(|_| drop(proxy.exchange("test", 0, &get(&[]), &answer(&[]))));
        let stream = proxy.http("test", 0);
        drop(proxy.take_tally());
        stream.request(&get(&[]));
        let request = proxy.take_tally().hostcalls;
        stream.response(&answer(&[]));
        let response = proxy.take_tally().hostcalls;
        drop(stream.finish());
        [request, response, proxy.take_tally().hostcalls]
    })
}

/// Each of them alone reads all headers of every phase that this configuration has, and so do all four.
#[test]
fn headers_are_read_once_for_each_phase_however_many_look_at_them() {
    let trace_id = r#""trace_id": {}"#;
    let latency = r#""latency": {"streams": ["/s"]}"#;
    let log_scrub = r#""log_scrub": {"mutate": {"request_headers": ["x-a"], "response_headers": ["x-b"]},
        "outputs": {"request_headers": ["x-a"], "response_headers": ["x-b"]}}"#;
    let breaker = format!(r#""circuit_breaker": {{"resources": ["cluster", "host", "method"], "rules": [{ONE}]}}"#);
    let reads = |parts: &[&str]| {
        let proxy = start(&format!("{{{}}}", parts.join(",")));
        phases(&proxy).map(|calls| calls.get("proxy_get_header_map_pairs").copied().unwrap_or(0))
    };
    let single = [trace_id, latency, log_scrub, &breaker].map(|part| reads(&[part]));
    let sum = |phase: usize| single.iter().map(|reads| reads[phase]).sum::<u64>();
    assert!(sum(0) >= 3 && sum(1) >= 2 && sum(2) >= 3, "{single:?}");
    // The log has the request's and the response's.
    assert_eq!(reads(&[trace_id, latency, log_scrub, &breaker]), [1, 1, 2], "alone: {single:?}");
}

#[test]
fn without_a_configuration_nothing_is_done() {
    for configuration in ["", "{}", " {} "] {
        let mut proxy = start(configuration);
        assert!(phases(&proxy).iter().all(BTreeMap::is_empty), "{configuration}: {:?}", phases(&proxy));
        let done = proxy.steps(|stream| {
            stream.request(&get(&[("x-circuit-fallback", "a"), ("content-type", "application/json")]).chunk("{}"));
            stream
                .response(&answer(&[("content-type", "application/grpc")]).chunk("a").trailers([("grpc-status", "0")]));
        });
        assert_eq!(one(&done.upstream, "x-circuit-fallback").as_deref(), Some("a"));
        assert!(done.filter_state.is_empty(), "{:?}", done.filter_state);
        proxy.each(|proxy| {
            assert!(proxy.metrics().is_empty() && proxy.all_shared_data("").is_empty());
            drop(proxy.take_tally());
            proxy.advance(Duration::from_secs(10));
            let tally = proxy.take_tally();
            assert!(tally.entries.is_empty() && tally.hostcalls.is_empty(), "{:?}", tally.entries);
        });
    }
}

#[test]
fn one_that_is_left_out_costs_no_call() {
    let all = phases(&start(r#"{"latency": {}}"#));
    for other in ["trace_id", "log_scrub", "circuit_breaker"] {
        let more = phases(&start(&format!(r#"{{"latency": {{}}, "{other}": {{}}}}"#)));
        assert_ne!(more, all, "{other} does something, so this would see it");
    }
    let single = Proxy::<latency::Latency>::start_beside("dist/latency.wasm", "{}").unwrap();
    let single = single.each(|proxy| {
        (0..3).for_each(|_| drop(proxy.exchange("test", 0, &get(&[]), &answer(&[]))));
        drop(proxy.take_tally());
        drop(proxy.exchange("test", 0, &get(&[]), &answer(&[])));
        proxy.take_tally().hostcalls
    });
    let mut sum = BTreeMap::new();
    all.iter().flatten().for_each(|(call, count)| *sum.entry(*call).or_insert(0) += count);
    assert_eq!(sum, single, "as latency alone");
}

#[test]
fn there_is_one_tick_and_only_where_one_wants_it() {
    let ticks = |configuration: &str| {
        let proxy = Proxy::<Suite>::start_beside("dist/suite.wasm", configuration).unwrap();
        let set = proxy.calls("proxy_set_tick_period_milliseconds");
        proxy.each(|proxy| {
            drop(proxy.take_tally());
            proxy.advance(Duration::from_secs(1));
        });
        let entries = proxy.each(|proxy| proxy.take_tally().entries.get("proxy_on_tick").copied().unwrap_or(0));
        (set, entries)
    };
    assert_eq!(ticks(r#"{"trace_id": {}, "latency": {}, "log_scrub": {}}"#), (0, 0));
    let alone = ticks(r#"{"circuit_breaker": {"tick": "250ms"}}"#);
    // Of the main thread and the worker; the canary that tries the configuration sets one too.
    assert_eq!(alone, (3, 8));
    assert_eq!(ticks(&ALL.replace(r#""circuit_breaker": {}"#, r#""circuit_breaker": {"tick": "250ms"}"#)), alone);
}

#[test]
fn a_refusal_names_the_filter_the_place_and_the_cure() {
    for (text, said) in [
        (
            r#"{"latency": {}, "circuit_breaker": {"rules": [{"resource": "a", "strategy": "error_ratio", "threshold": 2}]}}"#,
            "at `circuit_breaker.rules[0].threshold`: ",
        ),
        (r#"{"trace_id": {"inject": ["w4c"]}}"#, "at `trace_id.inject[0]`: is not known, give one of w3c, "),
        (
            r#"{"trace_id": {}, "latency": {"labels": ["route", "route"]}}"#,
            "at `latency.labels[1]`: stands there twice",
        ),
        (r#"{"log_scrub": {"outputs": {"paht": true}}}"#, "at `log_scrub.outputs.paht`: is no field, give one of "),
        (r#"{"log_scrub": []}"#, "at `log_scrub`: "),
        (r#"{"latency": {}, "latency": {}}"#, "at `latency`: stands there twice, take one out"),
    ] {
        let refused = refusal(text);
        assert!(refused.starts_with(said), "{text}: {refused}");
    }
    let keys = "give one of trace_id, latency, log_scrub, circuit_breaker";
    assert_eq!(refusal(r#"{"trace-id": {}}"#), format!("at `trace-id`: is no field, {keys}"));
    assert_eq!(refusal(r#"{"rules": []}"#), format!("at `rules`: is no field, {keys}"));

    let mut proxy = start(ALL);
    assert!(!proxy.configure(r#"{"trace_id": {"inject": []}}"#));
    let said = "suite: configuration refused at `trace_id.inject`: is empty";
    proxy.each(|proxy| assert!(proxy.log().last().unwrap().text.starts_with(said), "{:?}", proxy.log().last()));
    proxy.request(Vec::new());
    assert!(proxy.state("trace_id").is_some() && proxy.state("scrub.path").is_none(), "the old one serves");
}

#[test]
fn a_push_under_traffic_keeps_what_is_open_and_what_is_under_way() {
    let with = |more: &str| {
        format!(
            r#"{{"trace_id": {{}}, "latency": {{{more}}}, "log_scrub": {{}}, "circuit_breaker": {{"rules": [{ONE}]}}}}"#
        )
    };
    let mut proxy = start(&with(""));
    let in_flight = "meshfilter_requests_in_flight";
    proxy.steps(bad);
    proxy.steps(well);
    assert_eq!(proxy.state("circuit.decision").as_deref(), Some("rejected"));
    // Requests of the first configuration that end under another, and under one without latency.
    for configuration in [with(r#""bytes": true"#), r#"{"trace_id": {}}"#.to_owned(), with("")] {
        let began = proxy.metric(in_flight).unwrap();
        let sides = std::cell::RefCell::new(Vec::new());
        proxy.each(|proxy| {
            let stream = proxy.http("test", 0);
            stream.request(&get(&[]));
            sides.borrow_mut().push(stream);
        });
        let during = proxy.metric(in_flight).unwrap();
        assert!(proxy.configure(&configuration), "{configuration}");
        assert_eq!(proxy.metric(in_flight).unwrap(), during);
        let mut streams = sides.into_inner().into_iter();
        proxy.each(|_| {
            let done = streams.next().unwrap().finish();
            assert!(done.filter_state.contains_key("wasm.trace_id"));
        });
        assert_eq!(proxy.metric(in_flight), Some(began), "{configuration}");
    }
    assert_eq!(proxy.metric(in_flight), Some(0));
    proxy.steps(well);
    assert_eq!(proxy.state("circuit.decision").as_deref(), Some("rejected"), "it is open still");
}

#[test]
fn of_a_connection_latency_measures_and_the_others_leave_it_alone() {
    let log_scrub =
        r#""log_scrub": {"outputs": {"request_headers": ["x-a"], "response_headers": ["x-b"], "method": true}}"#;
    let rest =
        format!(r#""trace_id": {{"follow_tracer": "always"}}, {log_scrub}, "circuit_breaker": {{"rules": [{OFF}]}}"#);
    let connect = |configuration: &str| {
        let proxy = start(configuration);
        proxy.each(|proxy| {
            drop(proxy.take_tally());
            let stream = proxy.tcp("test", 0);
            stream.downstream_data("abc", false);
            proxy.advance(Duration::from_millis(9));
            stream.upstream_data("d", false);
            stream.close(Peer::Remote);
            let state = |key: &str| stream.filter_state(key).map(|value| String::from_utf8(value).unwrap());
            let left = ["trace_id", "span_id", "scrub.path", "scrub.method", "circuit.decision"].map(state);
            assert_eq!(left, [const { None }; 5]);
            let metrics: Vec<String> = proxy.metrics().into_keys().filter(|name| name.contains("connection")).collect();
            (state("latency.total_us"), metrics, proxy.log().len())
        })
    };
    let (total, metrics, lines) = connect(&format!(r#"{{"latency": {{}}, {rest}}}"#));
    assert_eq!((total.as_deref(), lines), (Some("9000"), 0));
    assert!(metrics.iter().any(|name| name.starts_with("meshfilter_connections_finished_total")), "{metrics:?}");
    assert_eq!(connect(&format!("{{{rest}}}")), (None, Vec::new(), 0));
}

#[test]
fn what_two_of_them_share_is_declared_once() {
    assert_eq!((trace_id::TraceId::SHARED, latency::Latency::SHARED), (&["start_time_ns"][..], &["start_time_ns"][..]));
    assert_eq!(Suite::SHARED, ["start_time_ns"]);
    // By the canary, the main thread and the worker.
    assert_eq!(start(ALL).calls("proxy_call_foreign_function"), 3);
}

/// Series are bounded for the VM as a whole, by the largest limit of the filters that are there.
#[test]
fn the_largest_max_series_counts() {
    let limit = |text: &str| kit::config::parse(text.as_bytes()).and_then(Suite::new).unwrap().max_series();
    assert_eq!(limit("{}"), None);
    assert_eq!(limit(r#"{"latency": null}"#), None, "it is left out");
    assert_eq!(limit(r#"{"latency": {"max_series": 50}}"#), Some(50));
    assert_eq!(limit(r#"{"latency": {"max_series": 50}, "circuit_breaker": {"max_series": 70}}"#), Some(70));
    assert_eq!(limit(r#"{"latency": {"max_series": 50}, "trace_id": {}}"#), Some(kit::MAX_SERIES));
}
