//! The suite's part of the tour: all four in one module, and what its log has of a request that passes and of one that does not.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use test_harness::{AccessLog, Envoy, HttpFilter, Listener, Route, module};

use crate::tour::{Tour, curl};

/// A kind of clients is turned away by force, so that there is something to see.
fn configuration() -> Value {
    json!({
        "trace_id": {},
        "latency": {},
        "log_scrub": {},
        "circuit_breaker": {
            "properties": "all",
            "resources": ["cluster", "header:x-team"],
            "rules": [
                { "id": "errors", "resource": "service", "strategy": "error_ratio", "threshold": 0.5 },
                { "id": "off", "resource": "header:x-team=batch", "strategy": "error_count", "threshold": 1, "mode": "forced_open" },
            ],
        },
    })
}

/// Its listener.
pub(crate) fn listeners() -> Result<Vec<Listener>> {
    let names = ["trace_id", "latency.total_us", "scrub.path", "scrub.query", "circuit.decision", "circuit.rule"];
    let log = names.map(|name| (name, format!("%FILTER_STATE(wasm.{name}:PLAIN)%")));
    let status = ("status", "%RESPONSE_CODE%".to_owned());
    Ok(vec![
        Listener::http("suite")
            .filter(HttpFilter::wasm("suite", module("suite")?).config(configuration()))
            .route(Route::cluster("service"))
            .access_log(AccessLog::json(log.into_iter().chain([status]))),
    ])
}

const PATH: &str = "/users/ann@example.com?token=abc123";
const BATCH: (&str, &str) = ("x-team", "batch");

/// The steps.
pub(crate) async fn tour(tour: &Tour<'_>) -> Result<()> {
    tour.step(
        "All four in one module",
        "One VM, one read of the headers, one line of the log: its trace, its time, its path without the address, the decision.",
    );
    tour.row("configured", &configuration().to_string());
    let told = tour.send_to("suite", PATH, &[], &["traceparent"]).await?;
    whole(&told.log, "allowed")?;
    ensure!(told.response.status == 200 && told.upstream.is_some(), "it was not let through");

    tour.step(
        "One that is turned away has all of it too",
        "It did not go upstream, and its log does not lack anything.",
    );
    let told = tour.send_to("suite", PATH, &[BATCH], &["traceparent"]).await?;
    whole(&told.log, "rejected")?;
    ensure!(told.response.status == 503 && told.upstream.is_none(), "it was let through");
    Ok(())
}

/// Whether a line has something of each filter.
fn whole(log: &serde_json::Map<String, Value>, decision: &str) -> Result<()> {
    let text = |key: &str| log.get(key).and_then(Value::as_str).unwrap_or_default();
    ensure!(text("trace_id").len() == 32 && !text("latency.total_us").is_empty(), "not all is there: {log:?}");
    ensure!(text("scrub.path") == "/users/[email]" && text("scrub.query") == "token=[field]", "not clean: {log:?}");
    ensure!(text("circuit.decision") == decision, "not {decision}: {log:?}");
    Ok(())
}

/// What to try with a demo that goes on running.
pub(crate) fn to_try(envoy: &Envoy) -> Vec<String> {
    vec![curl(envoy, "suite", PATH, &[]), curl(envoy, "suite", PATH, &[BATCH])]
}
