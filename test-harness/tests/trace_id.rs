//! trace-id in a real Envoy with two workers: what comes out of sockets, logs and stats.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use kit::testing::refusal;
use serde_json::{Map, Value, json};
use test_harness::upstream::Received;
use test_harness::{
    AccessLog, Cluster, Envoy, H1, H2, Headers, HttpFilter, Listener, Load, PATIENCE, Reply, Request, Response, Route,
    Upstream, eventually, module,
};
use tokio::task::JoinSet;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Every header that carries a trace context, or belongs to one, with a value that is valid: one trace in five formats.
const CONTEXTS: [(&str, &str); 16] = [
    ("traceparent", TRACEPARENT),
    ("tracestate", "vendor=opaque,other=1"),
    ("b3", "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1"),
    ("x-b3-traceid", TRACE),
    ("x-b3-spanid", SPAN),
    ("x-b3-parentspanid", "00000000000000ff"),
    ("x-b3-sampled", "1"),
    ("x-b3-flags", "0"),
    ("uber-trace-id", "0af7651916cd43dd8448eb211c80319c:b7ad6b7169203331:0:1"),
    ("x-datadog-trace-id", "9532127138774266268"),
    ("x-datadog-parent-id", "13235353014750950193"),
    ("x-datadog-sampling-priority", "1"),
    ("x-datadog-tags", "_dd.p.tid=0af7651916cd43dd"),
    ("x-amzn-trace-id", "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1"),
    ("x-request-id", "e1d34fd8-93ab-4d32-b8a2-52a18a0a0f9b"),
    ("baggage", "userId=alice"),
];

fn trace_id(configuration: Value) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm("trace-id", module("trace-id")?).config(configuration))
}

fn wasm(name: &str) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm(name, module(name)?))
}

/// A listener that logs what the filter found, and sends everything to cluster `up`.
fn listener(name: &str) -> Listener {
    let keys = ["trace_id", "span_id", "parent_span_id", "trace_sampled", "trace_link", "start_time_ns"];
    let state = keys.map(|key| (key, format!("%FILTER_STATE(wasm.{key}:PLAIN)%")));
    let fields = state.into_iter().chain([("path", "%REQ(:PATH)%".into()), ("code", "%RESPONSE_CODE%".into())]);
    Listener::http(name).access_log(AccessLog::json(fields)).route(Route::cluster("up"))
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// The one value of that name.
fn one(headers: &Headers, name: &str) -> Option<String> {
    let values = headers.all(name);
    assert!(values.len() <= 1, "{name} stands there {} times: {headers:?}", values.len());
    values.first().map(|value| String::from_utf8_lossy(value).into_owned())
}

fn is_id(text: &str, digits: usize) -> bool {
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == digits && text.bytes().all(hex) && text.bytes().any(|byte| byte != b'0')
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct TraceParent {
    trace: String,
    span: String,
    flags: String,
}

/// The one `traceparent` that went upstream, which must be as the specification has it.
fn traceparent(headers: &Headers) -> TraceParent {
    let text = one(headers, "traceparent").unwrap_or_else(|| panic!("no traceparent: {headers:?}"));
    let fields: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = fields.as_slice() else { panic!("{text}") };
    assert!(*version == "00" && is_id(trace, 32) && is_id(span, 16), "{text}");
    assert!(matches!(*flags, "00" | "01" | "02" | "03"), "{text}");
    TraceParent { trace: (*trace).into(), span: (*span).into(), flags: (*flags).into() }
}

/// The first request at the upstream since the last look; all others are dropped.
async fn arrived(upstream: &Upstream) -> Result<Received> {
    Ok(upstream.wait(1).await?.remove(0))
}

/// Sends one request over HTTP/1.1 or h2, on a connection of its own.
async fn send(envoy: &Envoy, listener: &str, h2: bool, request: &Request) -> Result<Response> {
    match h2 {
        true => H2::connect(envoy.addr(listener)).await?.send(request).await,
        false => envoy.send(listener, request).await,
    }
}

/// What a broken VM leaves in the log.
fn assert_no_trap(envoy: &Envoy) {
    let log = envoy.log();
    for sign in ["panic", "Function: ", "wasm log trace-id: ", "Wasm VM failed"] {
        let line = log.lines().find(|line| line.contains(sign));
        assert_eq!(line, None, "{sign:?} in the log");
    }
}

#[tokio::test]
async fn a_request_without_a_trace_gets_one_that_is_upstream_and_in_the_log() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener("edge").filter(trace_id(json!({ "inject": ["b3"] }))?))
        .start()
        .await?;
    let before = now_ns();
    envoy.get("edge", "/", ()).await?;
    let after = now_ns();
    let sent = arrived(&upstream).await?.headers.clone();
    let id = one(&sent, "x-b3-traceid").unwrap();
    let span = one(&sent, "x-b3-spanid").unwrap();
    assert!(is_id(&id, 32) && is_id(&span, 16), "{id} {span}");
    assert_eq!((one(&sent, "x-b3-sampled").unwrap().as_str(), one(&sent, "traceparent")), ("1", None));

    let line = envoy.wait_for_json("edge", 1).await?.remove(0);
    assert_eq!((&line["trace_id"], &line["span_id"]), (&json!(id), &json!(span)));
    assert_eq!((&line["trace_sampled"], &line["parent_span_id"]), (&json!("true"), &Value::Null));
    let start: u128 = line["start_time_ns"].as_str().unwrap().parse()?;
    assert!((before..=after).contains(&start), "{start} is not from {before} to {after}");
    Ok(())
}

#[tokio::test]
async fn a_trace_goes_on_from_every_format_into_every_other_over_http_1_and_2() -> Result<()> {
    let upstream = Upstream::start().await?;
    let all = json!({ "inject": ["w3c", "b3", "b3_single", "jaeger", "datadog", "xray"] });
    let to = |cluster| Route::cluster(cluster).prefix(if cluster == "up2" { "/2" } else { "/" });
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .add_cluster(Cluster::new("up2", upstream.addr()).http2())
        .listener(Listener::http("in").filter(trace_id(all)?).route(to("up2")).route(to("up")))
        .start()
        .await?;
    let (single, jaeger) = (format!("{TRACE}-{SPAN}-1"), format!("{TRACE}:{SPAN}:0:1"));
    let xray = format!("Root=1-0af76519-16cd43dd8448eb211c80319c;Parent={SPAN};Sampled=1");
    let incoming: [(&str, Headers); 6] = [
        ("w3c", [("traceparent", TRACEPARENT)].into()),
        ("b3", [("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN), ("X-B3-Sampled", "1")].into()),
        ("b3_single", [("b3", &single)].into()),
        ("jaeger", [("uber-trace-id", &jaeger)].into()),
        (
            "datadog",
            [
                ("x-datadog-trace-id", "9532127138774266268"),
                ("x-datadog-parent-id", "13235353014750950193"),
                ("x-datadog-sampling-priority", "1"),
                ("x-datadog-tags", "_dd.p.tid=0af7651916cd43dd"),
            ]
            .into(),
        ),
        ("xray", [("X-Amzn-Trace-Id", &xray)].into()),
    ];
    for (format, headers) in incoming {
        for (h2, path) in [(false, "/1"), (true, "/1"), (false, "/2"), (true, "/2")] {
            let request = Request::get(path).headers(headers.clone());
            assert_eq!(send(&envoy, "in", h2, &request).await?.status, 200);
            let received = arrived(&upstream).await?;
            assert_eq!(received.h2, path == "/2");
            let sent = &received.headers;
            let TraceParent { trace, span, flags } = traceparent(sent);
            assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"), "{format}");
            assert_ne!(span, SPAN);
            let span_number = u64::from_str_radix(&span, 16)?.to_string();
            for (name, value) in [
                ("b3", format!("{TRACE}-{span}-1-{SPAN}")),
                ("x-b3-traceid", TRACE.into()),
                ("x-b3-spanid", span.clone()),
                ("x-b3-parentspanid", SPAN.into()),
                ("x-b3-sampled", "1".into()),
                ("uber-trace-id", format!("{TRACE}:{span}:0:1")),
                ("x-datadog-trace-id", "9532127138774266268".into()),
                ("x-datadog-parent-id", span_number),
                ("x-datadog-sampling-priority", "1".into()),
                ("x-datadog-tags", "_dd.p.tid=0af7651916cd43dd".into()),
                ("x-amzn-trace-id", format!("Root=1-0af76519-16cd43dd8448eb211c80319c;Parent={span};Sampled=1")),
            ] {
                assert_eq!(one(sent, name), Some(value), "{name} from {format}, h2 {h2}, to {path}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_invalid_or_there_twice_goes_and_one_valid_context_takes_its_place() -> Result<()> {
    let upstream = Upstream::start().await?;
    let mut builder = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener("in").filter(trace_id(json!({ "inject": ["w3c", "b3"] }))?));
    for label in ["outcome", "format", "reason"] {
        builder = builder.stats_tag(label, &kit::tag_regex(label));
    }
    let envoy = builder.start().await?;
    let single = format!("{TRACE}-{SPAN}-1");
    let jaeger = format!("{TRACE}:{SPAN}:0:1");
    let xray = format!("Root=1-0af76519-16cd43dd8448eb211c80319c;Parent={SPAN};Sampled=1");
    let b3 = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    let upper = TRACEPARENT.to_uppercase();
    let zero = format!("00-{:032}-{SPAN}-01", 0);
    let version_ff = format!("ff-{TRACE}-{SPAN}-01");
    let cases: [(Headers, &str, &str); 17] = [
        ([("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)].into(), "w3c", "duplicate"),
        ([("traceparent", TRACEPARENT), ("Traceparent", "")].into(), "w3c", "duplicate"),
        ([("traceparent", upper.as_str()), ("tracestate", "a=1")].into(), "w3c", "syntax"),
        ([("traceparent", zero.as_str()), ("tracestate", "a=1")].into(), "w3c", "zero"),
        ([("traceparent", version_ff.as_str())].into(), "w3c", "version"),
        ([("traceparent", "")].into(), "w3c", "length"),
        ([("traceparent", &*format!("{TRACEPARENT}, {TRACEPARENT}"))].into(), "w3c", "length"),
        ([("b3", single.as_str()), ("b3", single.as_str())].into(), "b3", "duplicate"),
        ([b3[0], b3[0], b3[1]].into(), "b3", "duplicate"),
        ([b3[0], b3[1], ("x-b3-sampled", "1"), ("X-B3-Sampled", "0")].into(), "b3", "duplicate"),
        ([("x-b3-traceid", "xyz"), b3[1]].into(), "b3", "length"),
        ([("uber-trace-id", jaeger.as_str()), ("uber-trace-id", "1:2:0:1")].into(), "jaeger", "duplicate"),
        ([("uber-trace-id", "0:0:0:0")].into(), "jaeger", "zero"),
        ([("x-datadog-trace-id", "1"), ("x-datadog-trace-id", "1")].into(), "datadog", "duplicate"),
        ([("x-datadog-trace-id", "-1")].into(), "datadog", "syntax"),
        ([("x-amzn-trace-id", xray.as_str()), ("x-amzn-trace-id", xray.as_str())].into(), "xray", "duplicate"),
        ([("x-amzn-trace-id", "Root=2-0-0")].into(), "xray", "version"),
    ];
    let mut counted = BTreeMap::<(&str, &str), f64>::new();
    for (headers, format, reason) in &cases {
        assert_eq!(envoy.send("in", &Request::get("/").headers(headers.clone())).await?.status, 200);
        let sent = arrived(&upstream).await?.headers.clone();
        let new = traceparent(&sent);
        assert!(new.trace != TRACE && new.flags == "03", "{headers:?} became {sent:?}");
        assert_eq!(one(&sent, "x-b3-traceid"), Some(new.trace), "{headers:?}");
        for gone in ["tracestate", "b3", "uber-trace-id", "x-datadog-trace-id", "x-amzn-trace-id"] {
            assert!(!sent.has(gone), "{headers:?} became {sent:?}");
        }
        *counted.entry((format, reason)).or_default() += 1.0;
    }
    // A tracestate that is not valid does not take the trace with it.
    let alone = Request::get("/").header("traceparent", TRACEPARENT).header("tracestate", "BAD");
    envoy.send("in", &alone).await?;
    let sent = arrived(&upstream).await?.headers.clone();
    assert_eq!((traceparent(&sent).trace.as_str(), one(&sent, "tracestate")), (TRACE, None));
    counted.insert(("tracestate", "syntax"), 1.0);
    // Several become one.
    let several =
        Request::get("/").headers([("tracestate", "a=1"), ("traceparent", TRACEPARENT), ("Tracestate", "b=2")]);
    envoy.send("in", &several).await?;
    assert_eq!(one(&arrived(&upstream).await?.headers, "tracestate").as_deref(), Some("a=1,b=2"));

    let metrics = envoy.prometheus().await?;
    let mut series: Vec<_> = metrics.series("meshfilter_trace_invalid_total", &[]);
    series.sort_by_key(|sample| (sample.labels["format"].clone(), sample.labels["reason"].clone()));
    let found: BTreeMap<_, _> =
        series.iter().map(|s| ((s.labels["format"].as_str(), s.labels["reason"].as_str()), s.value)).collect();
    assert_eq!(found, counted, "labels are labels, and every refusal is counted");
    let requests =
        |outcome, format| metrics.value("meshfilter_trace_requests_total", &[("outcome", outcome), ("format", format)]);
    assert_eq!((requests("generated", "none"), requests("continued", "w3c")), (Some(17.0), Some(2.0)));
    assert_no_trap(&envoy);
    Ok(())
}

/// Requests with all of [`CONTEXTS`], but for one of them: there it has `byte` alone, or in the midst of its value.
fn altered(name: &str, byte: u8) -> [Request; 2] {
    let headers: Headers = CONTEXTS.into();
    let valid = headers.get(name).unwrap();
    let (before, after) = valid.split_at(valid.len() / 2);
    [vec![byte], [before, &[byte], &after[1..]].concat()].map(|value| {
        let others = headers.iter().filter(|(other, _)| *other != name.as_bytes());
        Request::get("/").headers(others.chain([(name.as_bytes(), value.as_slice())]).collect::<Headers>())
    })
}

#[tokio::test]
async fn no_byte_in_any_trace_header_does_harm() -> Result<()> {
    let upstream = Upstream::start().await?;
    let all = json!({ "inject": ["w3c", "b3", "b3_single", "jaeger", "datadog", "xray"], "join": {} });
    let edge = json!({ "trust": "link", "response": { "server_timing": true, "traceresponse": true } });
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener("in").filter(trace_id(all)?).generate_request_id(false))
        .listener(listener("edge").filter(trace_id(edge)?))
        .start()
        .await?;
    let names = |part: usize| CONTEXTS.into_iter().skip(part).step_by(2).map(|(name, _)| name);
    let mut senders = JoinSet::<Result<usize>>::new();
    for (listener, part) in [("in", 0), ("in", 1), ("edge", 0), ("edge", 1)] {
        let addr = envoy.addr(listener);
        senders.spawn(async move {
            let mut client = H1::connect(addr).await?;
            let mut served = 0;
            for (name, byte) in names(part).flat_map(|name| (0..=u8::MAX).map(move |byte| (name, byte))) {
                for request in altered(name, byte) {
                    let response = client.send(&request).await?;
                    match (response.status, byte.is_ascii_control()) {
                        (200, _) => served += 1,
                        // Envoy refuses most of them itself.
                        (400, true) => {}
                        (status, _) => panic!("{status} for {byte:#x} in {name}"),
                    }
                    if response.closes() {
                        client = H1::connect(addr).await?;
                    }
                }
            }
            Ok(served)
        });
        // What may stand in a header, but is not ASCII.
        senders.spawn(async move {
            let client = H2::connect(addr).await?;
            let mut served = 0;
            for (name, byte) in names(part).flat_map(|name| (0x80..=u8::MAX).map(move |byte| (name, byte))) {
                for request in altered(name, byte) {
                    assert_eq!(client.send(&request).await?.status, 200, "{byte:#x} in {name}");
                    served += 1;
                }
            }
            Ok(served)
        });
    }
    let mut served = 0;
    while let Some(sender) = senders.join_next().await {
        served += sender??;
    }
    for request in upstream.wait(served).await? {
        traceparent(&request.headers);
    }
    for (listener, continues) in [("in", true), ("edge", false)] {
        envoy.get(listener, "/", CONTEXTS).await?;
        assert_eq!(traceparent(&arrived(&upstream).await?.headers).trace == TRACE, continues);
    }
    assert_no_trap(&envoy);
    Ok(())
}

fn tracer(provider: &str, sampled: u32) -> Value {
    let typed_config = match provider {
        "opentelemetry" => json!({
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "service_name": "test",
            "http_service": { "http_uri": { "uri": "http://sink/v1/traces", "cluster": "sink", "timeout": "1s" } },
        }),
        _ => json!({
            "@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig",
            "collector_cluster": "sink",
            "collector_endpoint": "/api/v2/spans",
            "collector_endpoint_version": "HTTP_JSON",
            "trace_id_128bit": true,
        }),
    };
    let provider = json!({ "name": format!("envoy.tracers.{provider}"), "typed_config": typed_config });
    json!({ "provider": provider, "random_sampling": { "value": sampled } })
}

/// The trace that a reader of that tracer's kind takes from what went upstream: for Zipkin, the single header comes
/// before the others. Where the tracer wrote nothing, it is the filter's own.
fn on_the_wire(provider: &str, headers: &Headers) -> String {
    let field = |name, n| headers.text(name).and_then(|text| text.split('-').nth(n).map(str::to_owned));
    let of_w3c = || field("traceparent", 1);
    let of_b3 = || match field("b3", 0) {
        // A lone decision, `b3: 0`, names no trace. Envoy 1.36 lets it stand beside the headers that it writes.
        Some(single) => Some(single).filter(|id| is_id(id, 32)),
        None => field("x-b3-traceid", 0),
    };
    let (first, second) = if provider == "zipkin" { (of_b3(), of_w3c()) } else { (of_w3c(), of_b3()) };
    first.or(second).unwrap_or_else(|| panic!("no trace: {headers:?}"))
}

struct Traced<'a> {
    provider: &'a str,
    sampled: u32,
    configuration: Value,
    incoming: Vec<(&'a str, Headers)>,
}

/// Sends all these through listeners of their own, and compares what is logged with what went upstream.
async fn assert_logged_as_sent(cases: &[Traced<'_>]) -> Result<()> {
    let (upstream, sink) = (Upstream::start().await?, Upstream::start().await?);
    // By default, spans are sent when there are five of them, or after five seconds.
    let at_once = json!({ "tracing.opentelemetry.min_flush_spans": 1, "tracing.zipkin.min_flush_spans": 1 });
    let runtime = json!({ "layers": [{ "name": "test", "static_layer": at_once }] });
    let mut builder = Envoy::builder()
        .cluster("up", upstream.addr())
        .cluster("sink", sink.addr())
        .merge_bootstrap(json!({ "layered_runtime": runtime }));
    for (number, case) in cases.iter().enumerate() {
        let filter = trace_id(case.configuration.clone())?;
        let traced = listener(&number.to_string()).filter(filter).tracing(tracer(case.provider, case.sampled));
        builder = builder.listener(traced);
    }
    let envoy = builder.start().await?;
    for (number, case) in cases.iter().enumerate() {
        let listener = number.to_string();
        let mut wire = BTreeMap::new();
        for (path, headers) in &case.incoming {
            let request = Request::get(&format!("/{path}")).headers(headers.clone());
            assert_eq!(envoy.send(&listener, &request).await?.status, 200);
            let sent = arrived(&upstream).await?;
            wire.insert(sent.path.clone(), on_the_wire(case.provider, &sent.headers));
        }
        let lines = envoy.wait_for_json(&listener, wire.len()).await?;
        let text = |line: &Map<String, Value>, key| line[key].as_str().unwrap_or_default().to_owned();
        let logged: BTreeMap<_, _> = lines.iter().map(|line| (text(line, "path"), text(line, "trace_id"))).collect();
        assert_eq!(logged, wire, "logged, and sent: {} with {}", case.provider, case.configuration);
    }
    // The tracer did trace: its spans arrive.
    if cases.iter().any(|case| case.sampled > 0) {
        sink.wait(1).await?;
    }
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test]
async fn the_logged_trace_is_the_one_on_the_wire_when_envoys_own_tracer_made_it() -> Result<()> {
    let (single, jaeger) = (format!("{TRACE}-{SPAN}-1"), format!("{TRACE}:{SPAN}:0:1"));
    let incoming: Vec<(&str, Headers)> = vec![
        ("nothing", ().into()),
        ("nothing-again", ().into()),
        ("w3c", [("traceparent", TRACEPARENT), ("tracestate", "a=1")].into()),
        ("w3c-twice", [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)].into()),
        ("w3c-invalid", [("traceparent", "00-nonsense")].into()),
        ("b3", [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")].into()),
        ("b3-unsampled", [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0")].into()),
        ("b3-single", [("b3", &single)].into()),
        ("b3-invalid", [("x-b3-traceid", "nonsense"), ("x-b3-spanid", SPAN)].into()),
        ("jaeger", [("uber-trace-id", &jaeger)].into()),
    ];
    let (default, both) = (json!({}), json!({ "inject": ["w3c", "b3"] }));
    let cases = [
        ("opentelemetry", 100, &default),
        ("opentelemetry", 0, &both),
        ("zipkin", 100, &default),
        ("zipkin", 0, &both),
    ]
    .map(|(provider, sampled, configuration)| Traced {
        provider,
        sampled,
        configuration: configuration.clone(),
        incoming: incoming.clone(),
    });
    assert_logged_as_sent(&cases).await
}

#[tokio::test]
async fn the_logged_trace_is_the_tracers_also_where_the_filter_took_out_what_came_in_its_format() -> Result<()> {
    let b3: Headers = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "1")].into();
    let twice: Headers = [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)].into();
    let cases = [
        ("zipkin", json!({}), vec![("sampled", [("x-b3-sampled", "1")].into()), ("single", [("b3", "0")].into())]),
        ("zipkin", json!({ "trust": "restart" }), vec![("restarted", b3)]),
        ("opentelemetry", json!({ "inject": ["b3"] }), vec![("twice", twice)]),
    ]
    .map(|(provider, configuration, incoming)| Traced { provider, sampled: 100, configuration, incoming });
    assert_logged_as_sent(&cases).await
}

#[tokio::test]
async fn other_filters_before_and_after_see_what_they_should() -> Result<()> {
    let upstream = Upstream::start().await?;
    let copy = "function envoy_on_request(handle)
        local headers = handle:headers()
        headers:add('x-copy', headers:get('traceparent'))
    end";
    let own = "function envoy_on_request(handle) handle:headers():add('x-before', 'yes') end";
    let mut after = HttpFilter::wasm("noop-sdk-after", module("noop-sdk")?);
    after = after.config(json!({}));
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(
            listener("in")
                .filter(wasm("noop-sdk")?)
                .filter(HttpFilter::lua("before", own))
                .filter(wasm("called")?)
                .filter(trace_id(json!({}))?)
                .filter(HttpFilter::lua("copy", copy))
                .filter(wasm("noop")?)
                .filter(HttpFilter::wasm("called-after", module("called")?))
                .filter(after),
        )
        .start()
        .await?;
    for (headers, came) in [(Headers::default(), None), ([("traceparent", TRACEPARENT)].into(), Some(TRACE))] {
        envoy.send("in", &Request::get("/").headers(headers)).await?;
        let sent = arrived(&upstream).await?.headers.clone();
        let TraceParent { trace, span, .. } = traceparent(&sent);
        assert!(came.is_none_or(|came| came == trace) && span != SPAN);
        assert_eq!(one(&sent, "x-copy"), one(&sent, "traceparent"), "the one after sees what was written");
        assert_eq!(one(&sent, "x-before").as_deref(), Some("yes"), "and what one before wrote goes on");
    }
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test]
async fn a_reply_of_another_filter_is_logged_with_a_trace_and_a_start() -> Result<()> {
    let answer =
        HttpFilter::lua("answer", "function envoy_on_request(handle) handle:respond({[':status'] = '403'}, 'no') end");
    let filter = || trace_id(json!({ "response": { "trace_id_header": "x-trace-id" } }));
    let envoy = Envoy::builder()
        .listener(listener("front").filter(answer.clone()).filter(filter()?))
        .listener(listener("behind").filter(filter()?).filter(answer))
        .cluster("up", "127.0.0.1:1".parse()?)
        .start()
        .await?;
    for (name, headers) in
        [("front", [("traceparent", TRACEPARENT)].into()), ("front", Headers::default()), ("behind", ().into())]
    {
        let before = now_ns();
        let lines = envoy.access_log(name).len();
        let response = envoy.send(name, &Request::get("/").headers(headers.clone())).await?;
        assert_eq!((response.status, response.text().as_str()), (403, "no"));
        let line = envoy.wait_for_json(name, lines + 1).await?.remove(lines);
        let start: u128 = line["start_time_ns"].as_str().unwrap().parse()?;
        assert!((before..=now_ns()).contains(&start), "{name}: {start}");
        match (name, headers.is_empty()) {
            ("front", false) => {
                assert_eq!((&line["trace_id"], &line["parent_span_id"]), (&json!(TRACE), &json!(SPAN)));
                assert_eq!((&line["span_id"], response.headers.has("x-trace-id")), (&Value::Null, false));
            }
            ("front", true) => assert_eq!(line["trace_id"], Value::Null, "nothing came, and nothing was sent"),
            _ => {
                let id = line["trace_id"].as_str().unwrap();
                assert!(is_id(id, 32) && is_id(line["span_id"].as_str().unwrap(), 16));
                assert_eq!(one(&response.headers, "x-trace-id").as_deref(), Some(id));
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_request_id_is_made_where_envoy_makes_none_and_a_given_one_is_kept() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener("in").filter(trace_id(json!({}))?).generate_request_id(false))
        .start()
        .await?;
    for given in [None, Some("mine"), Some("e1d34fd8-93ab-9d32-b8a2-52a18a0a0f9b"), None] {
        envoy.get("in", "/", given.map(|id| ("x-request-id", id)).into_iter().collect::<Headers>()).await?;
        let sent = one(&arrived(&upstream).await?.headers, "x-request-id").unwrap();
        match given {
            Some(given) => assert_eq!(sent, given),
            None => assert!(sent.len() == 36 && sent.as_bytes()[14] == b'4', "a UUID of version 4: {sent}"),
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_caller_is_told_as_configured_and_else_nothing() -> Result<()> {
    let upstream = Upstream::start().await?;
    let response = |fields: Value| trace_id(json!({ "response": fields }));
    let told = [
        ("none", json!({})),
        ("header", json!({ "trace_id_header": "X-Trace-Id" })),
        ("timing", json!({ "server_timing": true })),
        ("w3c", json!({ "traceresponse": true })),
    ];
    let mut builder = Envoy::builder().cluster("up", upstream.addr());
    for (name, fields) in &told {
        builder = builder.listener(listener(name).filter(response(fields.clone())?));
    }
    let envoy = builder.start().await?;
    let script = "header=server-timing:db; header=x-trace-id:forged; header=traceresponse:forged; chunk=ok";
    for (name, _) in &told {
        for h2 in [false, true] {
            let request = Request::get("/").header("x-reply", script).header("traceparent", TRACEPARENT);
            let response = send(&envoy, name, h2, &request).await?.headers;
            let sent = one(&arrived(&upstream).await?.headers, "traceparent").unwrap();
            let timing = format!("trace;desc=\"{TRACE}\", traceparent;desc=\"{sent}\"");
            let is = |of: &str, value: &str, else_: &str| if *name == of { value.to_owned() } else { else_.to_owned() };
            assert_eq!(one(&response, "x-trace-id"), Some(is("header", TRACE, "forged")), "{name}");
            assert_eq!(one(&response, "traceresponse"), Some(is("w3c", &sent, "forged")), "{name}");
            let timings = response.all("server-timing");
            assert_eq!(timings[0], b"db", "the upstream's own stays");
            let ours: Vec<_> = timings[1..].iter().map(|value| String::from_utf8_lossy(value)).collect();
            let wanted = if *name == "timing" { vec![timing.as_str()] } else { vec![] };
            assert_eq!(ours, wanted, "{name}");
        }
    }
    Ok(())
}

/// A sidecar: requests come in through one listener, and the application's own go out through another.
#[tokio::test]
async fn what_goes_out_is_joined_to_what_came_in_across_workers() -> Result<()> {
    const CONNECTIONS: usize = 24;
    let upstream = Upstream::start().await?;
    let way = |name: &str| -> Result<Listener> {
        Ok(listener(name)
            .filter(trace_id(json!({ "join": { "ttl": "1m" } }))?)
            .generate_request_id(false)
            .merge(json!({ "traffic_direction": name })))
    };
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(way("INBOUND")?)
        .listener(way("OUTBOUND")?)
        .start()
        .await?;
    // Envoy writes its sampling decision into the 15th digit, and not the same on each way.
    let id = |number: usize, digit: char| format!("e1d34fd8-93ab-{digit}d32-b8a2-{number:012x}");
    let mut came = Vec::new();
    let mut connections = Vec::new();
    for number in 0..CONNECTIONS {
        let mut client = H1::connect(envoy.addr("INBOUND")).await?;
        client.send(&Request::get("/in").header("x-request-id", id(number, '9'))).await?;
        came.push(traceparent(&arrived(&upstream).await?.headers));
        connections.push(client);
    }
    let traces: BTreeSet<_> = came.iter().map(|context| &context.trace).collect();
    assert_eq!(traces.len(), CONNECTIONS);
    let mut parents = BTreeMap::new();
    for (number, inbound) in came.iter().enumerate() {
        let mut client = H1::connect(envoy.addr("OUTBOUND")).await?;
        for attempt in 0..2 {
            let path = format!("/out/{number}/{attempt}");
            client.send(&Request::get(&path).header("x-request-id", id(number, '4'))).await?;
            let sent = traceparent(&arrived(&upstream).await?.headers);
            assert_eq!((&sent.trace, &sent.flags), (&inbound.trace, &inbound.flags), "{number}");
            assert_ne!(sent.span, inbound.span);
            parents.insert(path, inbound.span.clone());
        }
        connections.push(client);
    }
    for line in envoy.wait_for_json("OUTBOUND", parents.len()).await? {
        assert_eq!(line["parent_span_id"], json!(parents[line["path"].as_str().unwrap()]));
    }
    // A stranger's id, and one with a context of its own.
    let stranger = Request::get("/").header("x-request-id", id(CONNECTIONS, '4'));
    envoy.send("OUTBOUND", &stranger).await?;
    assert!(!traces.contains(&traceparent(&arrived(&upstream).await?.headers).trace));
    let own = Request::get("/").header("x-request-id", id(0, '4')).header("traceparent", TRACEPARENT);
    envoy.send("OUTBOUND", &own).await?;
    assert_eq!(traceparent(&arrived(&upstream).await?.headers).trace, TRACE);

    for name in ["INBOUND", "OUTBOUND"] {
        let stats = envoy.stats(&format!("listener.127.0.0.1_{}.worker_", envoy.port(name))).await?;
        let used = stats.iter().filter(|(stat, count)| stat.ends_with("downstream_cx_total") && **count > 0).count();
        assert_eq!(used, 2, "connections on both workers: {stats:?}");
    }
    Ok(())
}

#[tokio::test]
async fn bodies_and_trailers_of_grpc_pass_untouched() -> Result<()> {
    let upstream = Upstream::with(|request| {
        let half = request.body.len() / 2;
        Reply::new(200)
            .header("content-type", "application/grpc")
            .chunk(&request.body[..half])
            .chunk(&request.body[half..])
            .trailer("grpc-status", "0")
            .trailer("x-bin", b"\xff\xfe")
    })
    .await?;
    let told = json!({ "response": { "trace_id_header": "x-trace-id" } });
    let envoy = Envoy::builder()
        .add_cluster(Cluster::new("up", upstream.addr()).http2())
        .listener(listener("in").filter(trace_id(told)?))
        .start()
        .await?;
    let client = H2::connect(envoy.addr("in")).await?;
    for size in [0_u32, 5, 300_000] {
        // A frame: not compressed, a length, the message.
        let message = (0..size).map(|at| u8::try_from(at % 251).unwrap());
        let body: Vec<u8> = [0].into_iter().chain(size.to_be_bytes()).chain(message).collect();
        let request = Request::post("/pkg.Service/Method", &body)
            .headers([("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "5S")])
            .trailer("x-request-trailer", b"\xff");
        let response = client.send(&request).await?;
        assert_eq!((response.status, response.body == body), (200, true));
        let trailers: [(&str, &[u8]); 2] = [("grpc-status", b"0"), ("x-bin", b"\xff\xfe")];
        assert_eq!(response.trailers, trailers.into());
        let received = arrived(&upstream).await?;
        assert!(received.complete && received.body == body, "{size}");
        assert_eq!(received.trailers, request.trailers);
        assert_eq!(one(&response.headers, "x-trace-id"), Some(traceparent(&received.headers).trace));
    }
    Ok(())
}

#[tokio::test]
async fn a_thousand_headers_pass_with_the_context_that_is_among_them() -> Result<()> {
    let upstream = Upstream::start().await?;
    let limits = json!({
        "max_request_headers_kb": 96,
        "common_http_protocol_options": { "max_headers_count": 1200 },
    });
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener("in").filter(trace_id(json!({}))?).merge_hcm(limits))
        .start()
        .await?;
    let many: Headers = (0..1000).map(|n| (format!("x-{}", n % 500), n.to_string())).collect();
    for h2 in [false, true] {
        let request = Request::get("/").headers(many.clone()).header("traceparent", TRACEPARENT);
        assert_eq!(send(&envoy, "in", h2, &request).await?.status, 200);
        let sent = arrived(&upstream).await?.headers.clone();
        assert_eq!(traceparent(&sent).trace, TRACE);
        for n in 0..500 {
            let values = [n.to_string(), (n + 500).to_string()];
            assert_eq!(sent.all(&format!("x-{n}")), values.each_ref().map(String::as_bytes));
        }
    }
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_its_place_while_the_old_one_serves() -> Result<()> {
    let upstream = Upstream::start().await?;
    let with = |filter: HttpFilter| listener("in").filter(filter);
    let plugin = HttpFilter::wasm("trace-id", module("trace-id")?);
    let good = with(trace_id(json!({ "inject": ["b3"] }))?);
    let cases = [
        (r#"{"sampling": {"root": "ratio", "ratio": 1.5}}"#, "at `sampling.ratio`: is out of range"),
        (r#"{"sampling": {"root": "ratio"}}"#, "at `sampling.ratio`: is missing"),
        (r#"{"injekt": ["b3"]}"#, "at `injekt`: is no field, give one of"),
        (r#"{"inject": ["w3c", "b4"]}"#, "at `inject[1]`: is not known, give one of"),
        (r#"{"join": {"ttl": 5}}"#, "at `join.ttl`: is a whole number, give a duration"),
        (r#"{"response": {"trace_id_header": ":path"}}"#, "at `response.trace_id_header`: is no header name"),
        ("inject: [b3]", "at `(top level)`: is not JSON"),
    ];
    let envoy = Envoy::builder().cluster("up", upstream.addr()).listener(good.clone()).start().await?;
    let mut client = H1::connect(envoy.addr("in")).await?;
    for (configuration, place) in cases {
        let why = envoy.push([with(plugin.clone().config_text(configuration))]).await?.rejected()?;
        let why = refusal("trace-id", &why);
        let said = format!("trace-id: configuration refused {place}");
        assert!(why.contains(&said), "{configuration}: {said:?} in {why}");
        client.send(&Request::get("/")).await?;
        envoy.get("in", "/", ()).await?;
        for request in upstream.wait(2).await? {
            assert!(request.headers.has("x-b3-traceid"), "the old configuration serves");
        }
    }
    envoy.push([good]).await?.accepted()?;

    let builder = || Envoy::builder().cluster("up", upstream.addr()).concurrency(1);
    let (configuration, place) = cases[0];
    let why = builder().listener(with(plugin.clone().config_text(configuration))).validate().await?.rejected()?;
    assert!(refusal("trace-id", &why).contains(place), "{why}");
    Ok(())
}

/// Istio hands over JSON as text. Plain Envoy takes any message, and hands over a Struct as protobuf's bytes, though its
/// documentation says JSON.
#[tokio::test]
async fn a_configuration_comes_as_nothing_as_text_or_as_a_struct() -> Result<()> {
    let upstream = Upstream::start().await?;
    let plugin = HttpFilter::wasm("trace-id", module("trace-id")?);
    let with = |name: &str, filter: HttpFilter| listener(name).filter(filter);
    let off = json!({
        "inject": ["b3_single"],
        "sampling": { "root": "ratio", "ratio": 0.0 },
        "tracestate_limit": 1024,
        "trust_mtls": false,
        "join": { "entries": 16, "ttl": "5s" },
    });
    let good = [
        with("nothing", plugin.clone()),
        with("empty", plugin.clone().config_text("")),
        with("text", plugin.clone().config(off.clone())),
        with("struct", plugin.clone().config_struct(off)),
    ];
    let mut builder = Envoy::builder().cluster("up", upstream.addr());
    for listener in good {
        builder = builder.listener(listener);
    }
    let envoy = builder.start().await?;
    for (name, configured) in [("nothing", false), ("empty", false), ("text", true), ("struct", true)] {
        envoy.get(name, "/", ()).await?;
        let sent = arrived(&upstream).await?.headers.clone();
        assert_eq!(one(&sent, "traceparent").is_none(), configured, "{name}: {sent:?}");
        assert_eq!(one(&sent, "b3").is_some_and(|b3| b3.ends_with("-0")), configured, "{name}: {sent:?}");
    }
    for (wrong, place) in [
        (json!({ "tracestate_limit": 1024.5 }), "at `tracestate_limit`: is"),
        (json!({ "sampling": { "root": "ratio", "ratio": 2 } }), "at `sampling.ratio`: is out of range"),
        (json!({ "inject": ["b3", "b4"] }), "at `inject[1]`: is not known"),
        (json!({ "join": { "ttl": null } }), "at `join.ttl`: is null"),
    ] {
        for filter in [plugin.clone().config(wrong.clone()), plugin.clone().config_struct(wrong.clone())] {
            let why = refusal("trace-id", &envoy.push([with("nothing", filter)]).await?.rejected()?);
            assert!(why.contains(&format!("trace-id: configuration refused {place}")), "{wrong}: {why}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_configuration_changes_under_traffic_without_a_failed_request() -> Result<()> {
    let upstream = Upstream::start().await?;
    // One is changed with its listener, the other on its own, as Istio does it.
    let filter = |inject: &str| trace_id(json!({ "inject": [inject] }));
    let discovered = |inject: &str| -> Result<_> {
        let plugin = HttpFilter::wasm("found", module("trace-id")?);
        Ok(plugin.config(json!({ "inject": [inject] })).discovered())
    };
    let listeners = |inject: &str| -> Result<_> {
        Ok([listener("lds").filter(filter(inject)?), listener("ecds").filter(discovered("w3c")?)])
    };
    let [lds, ecds] = listeners("w3c")?;
    let envoy = Envoy::builder().cluster("up", upstream.addr()).listener(lds).listener(ecds).start().await?;
    let loads: Vec<Load> = ["lds", "ecds"]
        .into_iter()
        .flat_map(|name| {
            let request = Request::get("/load").header("traceparent", TRACEPARENT);
            [Load::h1(envoy.addr(name), 2, &request), Load::h2(envoy.addr(name), 2, &request)]
        })
        .collect();
    let progress = async |more| -> Result<()> {
        for load in &loads {
            load.wait_for(more).await?;
        }
        Ok(())
    };
    progress(50).await?;
    let injects =
        |headers: &Headers| (one(headers, "x-b3-traceid").as_deref() == Some(TRACE), one(headers, "b3").is_some());
    for (inject, wanted) in [("b3", (true, false)), ("b3_single", (false, true)), ("w3c", (false, false))] {
        envoy.push(listeners(inject)?).await?.accepted()?;
        envoy.push_extension(&discovered(inject)?).await?.accepted()?;
        for name in ["lds", "ecds"] {
            eventually(format!("{inject} on {name}"), PATIENCE, async || {
                let probe = Request::get("/probe").header("traceparent", TRACEPARENT);
                envoy.send(name, &probe).await.map_err(|error| format!("{error:#}"))?;
                let sent = upstream.take().into_iter().find(|request| request.path == "/probe").unwrap();
                if injects(&sent.headers) == wanted { Ok(()) } else { Err(format!("{:?}", sent.headers)) }
            })
            .await?;
        }
        progress(50).await?;
    }
    for load in loads {
        load.stop().await.all_ok()?;
    }
    assert_no_trap(&envoy);
    Ok(())
}

/// Replaces `x-replaced`, removes `x-removed` and adds `x-added`, with one hostcall each.
const WRITER: &str = r#"(module
    (import "env" "proxy_replace_header_map_value" (func $replace (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))
    (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "x-replacedx-removedx-addednew")
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "_initialize"))
    (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 1024)
    (func (export "proxy_on_context_create") (param i32 i32))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
        (drop (call $replace (i32.const 0) (i32.const 0) (i32.const 10) (i32.const 26) (i32.const 3)))
        (drop (call $remove (i32.const 0) (i32.const 10) (i32.const 9)))
        (drop (call $add (i32.const 0) (i32.const 19) (i32.const 7) (i32.const 26) (i32.const 3)))
        (i32.const 0)))"#;

/// What the kit's way of writing headers rests on.
#[tokio::test]
async fn the_host_replaces_all_of_several_by_one_removes_all_and_adds_behind() -> Result<()> {
    let upstream = Upstream::start().await?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("writer.wasm");
    std::fs::write(&path, wat::parse_str(WRITER)?)?;
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener("in").filter(HttpFilter::wasm("writer", path)))
        .start()
        .await?;
    let names = ["x-replaced", "x-removed", "x-added", "x-other"];
    let twice: Headers = ["1", "2"].into_iter().flat_map(|value| names.map(|name| (name, value))).collect();
    for (headers, expected) in [
        (twice, vec!["x-added: 1", "x-other: 1", "x-added: 2", "x-other: 2", "x-replaced: new", "x-added: new"]),
        (Headers::default(), vec!["x-replaced: new", "x-added: new"]),
    ] {
        envoy.send("in", &Request::get("/").headers(headers)).await?;
        let sent = arrived(&upstream).await?.headers.clone();
        let lines = sent.iter().map(|(name, value)| format!("{}: {}", name.escape_ascii(), value.escape_ascii()));
        let found: Vec<String> = lines.filter(|line| names.iter().any(|name| line.starts_with(name))).collect();
        assert_eq!(found, expected);
    }
    Ok(())
}
