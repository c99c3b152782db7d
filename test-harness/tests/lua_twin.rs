//! The Lua script and the filter of the proxy-wasm crate that the benchmark compares trace-id with do the same work: otherwise
//! their speed would mean nothing.
//!
//! Compared for W3C, which is all that the two have: whether a trace goes on, with which flags, and what becomes of
//! `tracestate`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::json;
use test_harness::{AccessLog, Envoy, H1, Headers, HttpFilter, Listener, Request, Route, Upstream, module, root};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

const TWINS: [&str; 3] = ["filter", "script", "plain"];

async fn twins(upstream: &Upstream) -> Result<Envoy> {
    let script = std::fs::read_to_string(root().join("test-harness/bench/trace_id.lua"))?;
    let filter = HttpFilter::wasm("trace-id", module("trace-id")?).config(json!({ "extract": ["w3c"] }));
    let plain = HttpFilter::wasm("plain", module("trace-id-sdk")?);
    let keys = ["trace_id", "span_id", "parent_span_id"];
    let state = keys.map(|key| (key, format!("%FILTER_STATE(wasm.{key}:PLAIN)%")));
    let metadata = keys.map(|key| (key, format!("%DYNAMIC_METADATA(trace:{key})%")));
    let on = |name, filter, log| {
        Listener::http(name).filter(filter).route(Route::cluster("up")).access_log(AccessLog::json(log))
    };
    Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(on("filter", filter, state.clone()))
        .listener(on("script", HttpFilter::lua("trace-id", &script), metadata))
        .listener(on("plain", plain, state))
        .start()
        .await
}

/// What went upstream, without what is random.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Whether the trace goes on, or a new one begins.
    goes_on: bool,
    flags: String,
    /// Its members; over how many headers they are spread means nothing (RFC 9110, 5.3), nor does an empty one.
    tracestate: Vec<String>,
}

fn outcome(headers: &Headers) -> Outcome {
    let [traceparent] = headers.all("traceparent")[..] else { panic!("not one traceparent: {headers:?}") };
    let text = String::from_utf8_lossy(traceparent).into_owned();
    let fields: Vec<&str> = text.split('-').collect();
    let ["00", trace, span, flags] = fields[..] else { panic!("{text}") };
    let is_id = |id: &str| id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    assert!(trace.len() == 32 && is_id(trace) && span.len() == 16 && is_id(span) && span != SPAN, "{text}");
    let tracestate = headers.all("tracestate").join(&b","[..]);
    let members =
        tracestate.split(|byte| *byte == b',').map(|member| String::from_utf8_lossy(member).trim().to_owned());
    Outcome {
        goes_on: trace == TRACE,
        flags: flags.to_owned(),
        tracestate: members.filter(|member| !member.is_empty()).collect(),
    }
}

#[tokio::test]
async fn the_script_and_the_plain_filter_do_what_the_filter_does() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = twins(&upstream).await?;
    let of = |version: &str, end: &str| format!("{version}-{TRACE}-{SPAN}-{end}");
    let traceparents: Vec<String> = vec![
        TRACEPARENT.into(),
        of("00", "00"),
        of("00", "02"),
        of("00", "03"),
        of("00", "ff"),
        of("cc", "01"),
        of("cc", "01-what-the-future-will-be-like"),
        of("cc", "03-"),
        of("cc", "01.what"),
        of("00", "01-more"),
        of("00", "01-"),
        of("00", "001"),
        of("00", "1"),
        of("00", "0A"),
        of("ff", "01"),
        of("0", "01"),
        of("0X", "01"),
        of("CC", "01"),
        format!("00-{:032}-{SPAN}-01", 0),
        format!("00-{TRACE}-{:016}-01", 0),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}0-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}"),
        format!("00 {TRACE} {SPAN} 01"),
        format!("  {TRACEPARENT}\t"),
        format!("{TRACEPARENT},{TRACEPARENT}"),
        String::new(),
        "nonsense".into(),
    ];
    let members = |count: usize| (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    let key = "k".repeat(256);
    let tracestates: Vec<String> = vec![
        "vendor=opaque".into(),
        "a=1,b=2".into(),
        "a=1 \t , b=2".into(),
        ",a=1,,b=2,".into(),
        "a=1,a=2".into(),
        "tenant@system=x/y*z".into(),
        "0a=!\"#$%&'()*+-./:;<>?@[]^_`{|}~".into(),
        "a=in the midst".into(),
        members(32),
        members(33),
        format!("{key}=1"),
        format!("{key}k=1"),
        format!("a={key}"),
        format!("a={key}k"),
        "BAD".into(),
        "A=1".into(),
        "_a=1".into(),
        "a=1,b".into(),
        "a=1=2".into(),
        "a=".into(),
        "=1".into(),
        "a =1".into(),
        "a=1\t2".into(),
        "a.b=1".into(),
        "a=\u{e9}".into(),
        " , ,".into(),
        String::new(),
    ];
    let mut cases: Vec<Headers> = vec![
        ().into(),
        [("tracestate", "a=1")].into(),
        [("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)].into(),
        [("traceparent", &*of("cc", "01")), ("Traceparent", &*of("cc", "01"))].into(),
        [("tracestate", "a=1"), ("traceparent", TRACEPARENT), ("Tracestate", "b=2")].into(),
        [("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("tracestate", "BAD")].into(),
        [("traceparent", TRACEPARENT), ("tracestate", ""), ("tracestate", "a=1")].into(),
        [("traceparent", TRACEPARENT), ("tracestate", members(16).as_str()), ("tracestate", members(17).as_str())]
            .into(),
    ];
    cases.extend(traceparents.iter().map(|value| [("traceparent", value.as_str()), ("tracestate", "a=1")].into()));
    cases.extend(tracestates.iter().map(|value| [("traceparent", TRACEPARENT), ("tracestate", value)].into()));

    let mut clients = Vec::new();
    for name in TWINS {
        clients.push(H1::connect(envoy.addr(name)).await?);
    }
    let mut differ = Vec::new();
    for case in &cases {
        let mut outcomes = Vec::new();
        for client in &mut clients {
            client.send(&Request::get("/").headers(case.clone())).await?;
            outcomes.push(outcome(&upstream.wait(1).await?.remove(0).headers));
        }
        for (twin, outcome) in TWINS.iter().zip(&outcomes).skip(1).filter(|(_, outcome)| **outcome != outcomes[0]) {
            differ.push(format!("{case:?}\n    filter: {:?}\n    {twin}: {outcome:?}", outcomes[0]));
        }
    }
    assert!(differ.is_empty(), "{} of {} differ:\n{}", differ.len(), cases.len(), differ.join("\n"));
    Ok(())
}

#[tokio::test]
async fn all_make_ids_that_differ_between_workers_and_log_what_they_send() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = twins(&upstream).await?;
    const CONNECTIONS: usize = 24;
    const EACH: usize = 4;
    for name in TWINS {
        let mut sent = BTreeSet::new();
        for _ in 0..CONNECTIONS {
            let mut client = H1::connect(envoy.addr(name)).await?;
            for _ in 0..EACH {
                client.send(&Request::get("/")).await?;
                let headers = upstream.wait(1).await?.remove(0).headers.clone();
                sent.insert(headers.text("traceparent").unwrap().rsplit_once('-').unwrap().0.to_owned());
            }
        }
        assert_eq!(sent.len(), CONNECTIONS * EACH, "{name}");
        let traces: BTreeSet<_> = sent.iter().map(|text| text.split('-').nth(1).unwrap()).collect();
        assert_eq!(traces.len(), CONNECTIONS * EACH, "{name}");
        let lines = envoy.wait_for_json(name, CONNECTIONS * EACH).await?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("none").to_owned();
        let logged: BTreeSet<_> =
            lines.iter().map(|line| format!("00-{}-{}", text(&line["trace_id"]), text(&line["span_id"]))).collect();
        assert_eq!(logged, sent, "{name}");
    }
    Ok(())
}
