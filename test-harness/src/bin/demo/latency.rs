//! latency's part of the tour.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kit::Filter as _;
use latency::Latency;
use serde_json::{Value, json};
use test_harness::{AccessLog, Envoy, HttpFilter, Listener, PATIENCE, Route, eventually, module};

use crate::tour::{Tour, curl, shown};

fn configuration() -> Value {
    json!({
        "labels": ["protocol", "method", "code", "failure"],
        "slo": [{ "name": "fast", "within": "50ms" }],
        "server_timing": true,
        "properties": { "json": true },
    })
}

/// Its listener.
pub(crate) fn listeners() -> Result<Vec<Listener>> {
    let log = [("latency", "%FILTER_STATE(wasm.latency.json:PLAIN)%"), ("status", "%RESPONSE_CODE%")];
    let route = Route::cluster("service").merge(json!({ "route": { "timeout": "0.1s" } }));
    Ok(vec![
        Listener::http("timed")
            .filter(HttpFilter::wasm("latency", module("latency")?).config(configuration()))
            .route(route)
            .access_log(AccessLog::json(log)),
    ])
}

/// What takes the labels out of the names of its metrics.
pub(crate) fn stats_tags() -> Vec<(String, String)> {
    let mut labels: Vec<&str> = Latency::metrics().iter().flat_map(|metric| metric.labels).copied().collect();
    labels.sort_unstable();
    labels.dedup();
    labels.into_iter().map(|label| (label.into(), kit::tag_regex(label))).collect()
}

/// The steps.
pub(crate) async fn tour(tour: &Tour<'_>) -> Result<()> {
    tour.step("Where the time of a request went", "The upstream takes 30 ms to its headers and 10 ms more to the end.");
    tour.row("configured", &configuration().to_string());
    let slow = tour.send("timed", &[("x-reply", "pause=30; head; pause=10; chunk=ok")], &["x-request-id"]).await?;
    tour.row("caller got", &shown(&slow.response.headers, &["server-timing"]).join("\n"));
    let parts: Value = serde_json::from_str(slow.log["latency"].as_str().context("no parts in the log")?)?;
    let upstream = Duration::from_micros(parts["upstream_us"].as_u64().context("no upstream_us")?);
    ensure!(upstream >= Duration::from_millis(40), "the upstream's pauses are not the upstream's time: {upstream:?}");

    tour.step("One that failed has its reason", "The route allows 100 ms; the upstream takes 300.");
    tour.send("timed", &[("x-reply", "pause=300; chunk=late")], &["x-request-id"]).await?;

    tour.step("What Prometheus gets of the two", "Labels from a closed set, an objective, and nothing left in flight.");
    let ours = eventually("both requests in the histogram", PATIENCE, async || {
        let text = tour.envoy.admin_get("/stats/prometheus").await.map_err(|error| format!("{error:#}"))?;
        let wanted = |line: &&str| {
            line.starts_with("meshfilter_")
                && !line.contains("_trace_")
                && !line.contains("_circuit_")
                && !line.contains("_bucket")
        };
        let ours: Vec<&str> = text.lines().filter(wanted).collect();
        // It shows a histogram from its first value on, and the value at the next flush.
        let counts = ours.iter().filter(|line| line.contains("request_duration_millis_count"));
        let counted = counts.filter(|line| !line.ends_with(" 0")).count();
        if counted == 2 { Ok(ours.join("\n")) } else { Err(ours.join("\n")) }
    });
    tour.row("metrics", &ours.await?);
    Ok(())
}

/// What to try with a demo that goes on running.
pub(crate) fn to_try(envoy: &Envoy) -> Vec<String> {
    vec![curl(envoy, "timed", "/hello", &[("x-reply", "pause=30; chunk=ok")])]
}
