//! trace-id's part of the tour.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use test_harness::{AccessLog, Envoy, HttpFilter, Listener, Route, module};

use crate::tour::{Tour, curl, shown};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn configurations() -> [(&'static str, Value); 3] {
    [
        ("b3", json!({ "inject": ["b3"], "response": { "trace_id_header": "x-trace-id" } })),
        ("w3c", json!({ "inject": ["w3c", "b3_single", "jaeger", "datadog", "xray"] })),
        ("edge", json!({ "trust": "link", "sampling": { "root": "ratio", "ratio": 0.25 } })),
    ]
}

fn listener(name: &str, configuration: Value) -> Result<Listener> {
    let state = |key: &str| format!("%FILTER_STATE(wasm.{key}:PLAIN)%");
    let fields = ["trace_id", "span_id", "parent_span_id", "trace_sampled", "trace_link", "start_time_ns"];
    let log = fields.map(|key| (key, state(key))).into_iter().chain([("status", "%RESPONSE_CODE%".into())]);
    Ok(Listener::http(name)
        .filter(HttpFilter::wasm("trace-id", module("trace-id")?).config(configuration))
        .route(Route::cluster("service"))
        .access_log(AccessLog::json(log)))
}

/// A listener per configuration.
pub(crate) fn listeners() -> Result<Vec<Listener>> {
    configurations().into_iter().map(|(name, configuration)| listener(name, configuration)).collect()
}

/// What takes the labels out of the names of its metrics.
pub(crate) fn stats_tags() -> Vec<(String, String)> {
    ["outcome", "format", "reason"].map(|label| (label.into(), kit::tag_regex(label))).to_vec()
}

/// The steps.
pub(crate) async fn tour(tour: &Tour<'_>) -> Result<()> {
    tour.step("A request without a trace gets one", "The upstream, the access log and the caller have the same id.");
    tour.row("configured", &configurations()[0].1.to_string());
    let first = tour.send("b3", &[], &["x-b3-"]).await?;
    tour.row("caller got", &shown(&first.response.headers, &["x-trace-id"]).join("\n"));
    let sent = first.upstream.and_then(|headers| headers.text("x-b3-traceid")).context("no x-b3-traceid upstream")?;
    ensure!(first.log["trace_id"] == sent.as_str(), "the log and the wire differ");

    tour.step(
        "A trace goes on, in every format that is wanted",
        "Same trace, a new span, the caller's span as parent.",
    );
    tour.row("configured", &configurations()[1].1.to_string());
    let formats = ["traceparent", "tracestate", "b3", "uber", "x-datadog", "x-amzn"];
    tour.send("w3c", &[("traceparent", TRACEPARENT), ("tracestate", "vendor=opaque")], &formats).await?;

    tour.step(
        "What is not valid does not go on",
        "All-zero ids are invalid (W3C Trace Context, 3.2.2.3): a new trace.",
    );
    let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
    tour.send("w3c", &[("traceparent", zero), ("tracestate", "vendor=opaque")], &["traceparent", "tracestate"]).await?;

    tour.step(
        "An edge does not take a stranger's trace",
        "A new trace, sampled by the edge's own rule (1 in 4); the stranger's is in the log.",
    );
    tour.row("configured", &configurations()[2].1.to_string());
    tour.send("edge", &[("traceparent", TRACEPARENT)], &["traceparent", "tracestate"]).await?;

    tour.step(
        "A wrong configuration is refused, the old one goes on",
        "The refusal says where, and what would be right.",
    );
    let mut pushed = crate::listeners()?;
    pushed[0] = listener("b3", json!({ "inject": ["b3"], "sampling": { "root": "ratio", "ratio": 25 } }))?;
    tour.row("pushed", r#"{"inject": ["b3"], "sampling": {"root": "ratio", "ratio": 25}}"#);
    tour.envoy.push(pushed).await?.rejected()?;
    let log = tour.envoy.log();
    let said = log.lines().rev().find_map(|line| Some(&line[line.find("trace-id: configuration refused")?..]));
    tour.row("Envoy's log", said.context("Envoy's log does not say why")?);
    tour.send("b3", &[], &["x-b3-traceid"]).await?;

    tour.step("What it counted", "/stats/prometheus, by outcome and format.");
    let metrics = tour.envoy.admin_get("/stats/prometheus").await?;
    let ours: Vec<&str> = metrics.lines().filter(|line| line.starts_with("meshfilter_trace_")).collect();
    tour.row("metrics", &ours.join("\n"));
    Ok(())
}

/// What to try with a demo that goes on running.
pub(crate) fn to_try(envoy: &Envoy) -> Vec<String> {
    vec![
        curl(envoy, "b3", "/hello", &[]).replace("/hello", "/echo"),
        curl(envoy, "w3c", "/hello", &[("traceparent", TRACEPARENT)]).replace("/hello", "/echo"),
        curl(envoy, "edge", "/hello", &[("traceparent", TRACEPARENT)]).replace("/hello", "/echo"),
        format!("curl http://{}/stats/prometheus | grep meshfilter_", envoy.admin_addr()),
    ]
}
