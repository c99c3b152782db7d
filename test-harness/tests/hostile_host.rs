//! The release modules under a host that answers as none should: every call fails, or succeeds and gives nothing, or gives
//! what is no header map; and that calls them as none should. A trap would end every plugin of the VM, so there must be
//! none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use emulator::{CallEnd, Callback, Fault, Message, Peer, Plugin, Proxy, Status};
use std::time::Duration;
use test_harness::module;

/// All that the filter asks for and writes.
const LATENCY: &str = r#"{
    "labels": ["direction", "protocol", "method", "code", "grpc_status", "failure", "route", "cluster"], "code": "exact",
    "bytes": true, "server_timing": true, "apdex": "10ms", "slo": [{"name": "a", "within": "1s"}], "max_series": 10,
    "properties": {"json": true, "sample": 0.5}, "exclude": {"routes": ["a"]}, "streams": ["/s"]
}"#;

/// All that the filter looks at, writes and changes.
const LOG_SCRUB: &str = r#"{
    "outputs": {"method": true, "authority": true, "request_headers": ["x-trap"], "response_headers": ["t", "x"],
        "request_body": true, "response_body": true, "line": true, "proxy_log": true},
    "mutate": {"request_headers": ["x-trap"], "response_headers": ["x"], "request_body": true, "response_body": true},
    "packs": ["secrets", "pii", "pii-cn", "financial"], "own": [{"name": "own", "regex": "a+b"}],
    "action": {"kind": "hmac"}, "hmac_key": "0123456789abcdef0123456789abcdef"
}"#;

/// All that the filter looks at, asks for and writes; it is open from the first error on.
const CIRCUIT_BREAKER: &str = r#"{
    "rules": [
        {"resource": "*", "strategy": "error_count", "threshold": 1, "min_requests": 1, "retry_timeout": "1ms", "fallback": "a"},
        {"resource": "GET /**", "strategy": "slow_ratio", "threshold": 0, "max_allowed_rt": {"adaptive": {}}, "min_requests": 1}
    ],
    "resources": ["cluster", "host", "route", "method", "header:x-trap", "GET /**"],
    "errors": {"status": ["2xx"]}, "classes": [{"header": "x-none", "treat": "shed_last"}], "streams": ["/s"],
    "source": {"cluster": "source", "path": "/rules", "interval": "100ms", "timeout": "50ms"}, "properties": "all",
    "tick": "10ms", "max_series": 10
}"#;

/// All of these at once.
fn suite(trace_id: &str) -> String {
    format!(
        r#"{{"trace_id": {trace_id}, "latency": {LATENCY}, "log_scrub": {LOG_SCRUB}, "circuit_breaker": {CIRCUIT_BREAKER}}}"#
    )
}

/// A life of the module under this host. What trapped is the error.
fn live(name: &str, configuration: &str, fault: &Fault) -> Result<(), String> {
    let code = emulator::Module::read(module(name).unwrap()).unwrap();
    let plugin = || Plugin::new(name, &code).configuration(configuration);
    let trapped = |proxy: &Proxy| match proxy.log().into_iter().find(|line| line.text.contains("trapped")) {
        Some(line) => Err(line.text),
        None => Ok(()),
    };
    let json = ("content-type", "application/json");
    let request = [(":method", "GET"), (":path", "/"), ("traceparent", "00"), ("x-trap", "y"), json];
    let request = Message::new(request).chunk("[").chunk("1]");
    let response = Message::new([(":status", "200"), json]).chunk("{").chunk("}").trailers([("t", "1")]);

    let rules = r#"[{"resource": "*", "grade": 2, "count": 1, "timeWindow": 1, "minRequestAmount": 1}]"#;
    let source = |proxy: &Proxy| {
        let rules = Message::new([(":status", "200"), ("etag", "\"1\"")]).chunk(rules);
        proxy.cluster("source", move |_| Some((Duration::from_millis(1), CallEnd::Response(rules.clone()))));
    };

    // From its first callback on.
    let proxy = Proxy::new(1, 1);
    source(&proxy);
    proxy.fault(fault.clone());
    if proxy.push("in", [plugin()]).is_ok() {
        drop(proxy.exchange("in", 0, &request, &response));
        proxy.advance(Duration::from_millis(250));
        drop(proxy.exchange("in", 0, &request, &response));
    }
    trapped(&proxy)?;

    // Once it is configured; and while it is configured anew.
    let proxy = Proxy::new(1, 1);
    source(&proxy);
    proxy.push("in", [plugin()]).unwrap();
    proxy.fault(fault.clone());
    let early = proxy.http("in", 0);
    early.request(&request);
    let _ = proxy.push("in", [plugin().configuration(format!("{configuration} "))]);
    for _ in 0..3 {
        drop(proxy.exchange("in", 0, &request, &response));
        proxy.advance(Duration::from_millis(110));
    }
    drop(proxy.http("in", 0).finish());
    let connection = proxy.tcp("in", 0);
    connection.downstream_data("a", false);
    connection.close(Peer::Remote);
    early.response(&response);
    drop(early.finish());

    // Contexts that never were, were before, or are a plugin's; phases twice and in the wrong order.
    let call = |callback| proxy.call_out_of_order("in", 0, callback);
    for context in [0, 1, 2, 3, 7, 99, u32::MAX] {
        call(Callback::Log { context });
        call(Callback::NewConnection { context });
        call(Callback::ResponseHeaders { context, count: 3, end: 1 });
        call(Callback::RequestHeaders { context, count: u32::MAX, end: 7 });
        call(Callback::ContextCreate { context, parent: 98 });
        call(Callback::Delete { context });
        call(Callback::Delete { context });
        call(Callback::Configure { context, size: u32::MAX });
        call(Callback::RequestHeaders { context, count: 0, end: 0 });
        call(Callback::Tick { context });
        call(Callback::HttpCallResponse { context, token: context, headers: u32::MAX, body: u32::MAX, trailers: 9 });
    }
    trapped(&proxy)
}

#[test]
fn no_answer_of_the_host_makes_a_module_trap() {
    // Counts and lengths that lie; a sound map whose text is cut; one pair, and bytes behind it.
    let maps: [&[u8]; 7] = [
        b"",
        b"\x01",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x02\0\0\0\x0b\0\0\0\x05\0\0\0\x0b\0\0\0\x05\0\0\0traceparent\0aaaaa",
        b"\x01\0\0\0\x0b\0\0\0\x02\0\0\0traceparent\0\xff\0\0trailing",
        &[0xff; 5000],
    ];
    let lies = maps.iter().map(|map| Fault::any().status(Status::OK).bytes(*map));
    let failures = [1, 2, 8, 10, u32::MAX].map(|status| Fault::any().status(Status(status)));
    let faults: Vec<Fault> = lies.chain(failures).chain([Fault::any().status(Status::OK)]).collect();

    let join = r#"{"join": {}, "trust": "link", "trust_mtls": true, "response": {"server_timing": true}}"#;
    let everything =
        r#"{"inject": ["w3c", "b3", "b3_single", "jaeger", "datadog", "xray"], "follow_tracer": "always"}"#;
    let both = r#"{"trace_id": {"join": {}}, "stamp": {"text": "x"}}"#;
    let four = suite(everything);
    let modules = [
        ("trace-id", join),
        ("trace-id", everything),
        ("trace-id", "{}"),
        ("latency", LATENCY),
        ("latency", r#"{"role": "outer"}"#),
        ("latency", r#"{"role": "inner"}"#),
        ("log-scrub", LOG_SCRUB),
        ("log-scrub", r#"{"outputs": {"request_body": true, "response_body": true}}"#),
        ("circuit-breaker", CIRCUIT_BREAKER),
        ("suite", &four),
        ("suite", "{}"),
        ("duo", both),
        ("called", ""),
    ];
    for (name, configuration) in modules {
        for fault in &faults {
            live(name, configuration, fault)
                .unwrap_or_else(|trap| panic!("{name}, {configuration}, {fault:?}: {trap}"));
        }
    }
}

/// One call fails at a time, in the middle of each thing that a filter does.
#[test]
fn no_single_failure_makes_a_module_trap() {
    let join = r#"{"join": {}, "trust": "link", "trust_mtls": true, "response": {"server_timing": true}}"#;
    for call in [
        "proxy_get_header_map_pairs",
        "proxy_replace_header_map_value",
        "proxy_remove_header_map_value",
        "proxy_get_property",
        "proxy_set_property",
        "proxy_get_shared_data",
        "proxy_set_shared_data",
        "proxy_define_metric",
        "proxy_increment_metric",
        "proxy_get_current_time_nanoseconds",
        "proxy_get_header_map_value",
        "proxy_add_header_map_value",
        "proxy_get_buffer_bytes",
        "proxy_set_buffer_bytes",
        "proxy_get_log_level",
        "proxy_log",
        "proxy_http_call",
        "proxy_get_metric",
        "proxy_set_tick_period_milliseconds",
        "random_get",
    ] {
        for fault in [Fault::of(call), Fault::of(call).after(1).times(1), Fault::of(call).status(Status::OK)] {
            for (name, configuration) in [
                ("trace-id", join),
                ("latency", LATENCY),
                ("log-scrub", LOG_SCRUB),
                ("circuit-breaker", CIRCUIT_BREAKER),
                ("suite", &suite(join)),
            ] {
                live(name, configuration, &fault).unwrap_or_else(|trap| panic!("{name}, {fault:?}: {trap}"));
            }
        }
    }
}

#[test]
fn a_trap_is_seen_here() {
    let map = b"\x01\0\0\0\x06\0\0\0\x01\0\0\0x-trap\0y\0";
    let lie = Fault::of("proxy_get_header_map_pairs").status(Status::OK).bytes(map);
    let trap = live("trap", "", &lie).unwrap_err();
    assert!(trap.starts_with("proxy_on_request_headers trapped: "), "{trap}");
}
