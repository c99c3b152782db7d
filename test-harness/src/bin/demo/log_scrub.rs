//! log-scrub's part of the tour.

use anyhow::{Result, ensure};
use kit::Filter as _;
use log_scrub::LogScrub;
use serde_json::{Value, json};
use test_harness::{AccessLog, Envoy, HttpFilter, Listener, Route, module};

use crate::tour::{Tour, curl};

fn configuration() -> Value {
    json!({ "outputs": { "response_body": true } })
}

/// Its listener.
pub(crate) fn listeners() -> Result<Vec<Listener>> {
    let copy = |key: &str| format!("%FILTER_STATE(wasm.scrub.{key}:PLAIN)%");
    let log = ["path", "query", "user_agent", "response_body"].map(|key| (key, copy(key)));
    Ok(vec![
        Listener::http("scrubbed")
            .filter(HttpFilter::wasm("log-scrub", module("log-scrub")?).config(configuration()))
            .route(Route::cluster("service"))
            .access_log(AccessLog::json(log)),
    ])
}

/// What takes the labels out of the names of its metrics.
pub(crate) fn stats_tags() -> Vec<(String, String)> {
    let labels = LogScrub::metrics().into_iter().flat_map(|metric| metric.labels);
    labels.map(|label| ((*label).into(), kit::tag_regex(label))).collect()
}

const PATH: &str = "/users/ann@example.com?token=abc123&card=4111+1111+1111+1111&order=20240102-000123";
const HEADERS: [(&str, &str); 2] = [
    ("user-agent", "shop/1.2 (+4915112345678)"),
    (
        "x-reply",
        r#"header=content-type:application/json; chunk={"mail":"ann@exam; chunk=ple.com","password":"hunter2","id":17}"#,
    ),
];

/// The steps.
pub(crate) async fn tour(tour: &Tour<'_>) -> Result<()> {
    tour.step(
        "What is logged is clean, what goes upstream is not touched",
        "Values are found by their form and checked, fields by their names; the order's number stays. The response comes in two \
         parts.",
    );
    tour.row("configured", &configuration().to_string());
    let told = tour.send_to("scrubbed", PATH, &HEADERS, &["user-agent"]).await?;
    let printed = serde_json::to_string(&told.log)?;
    for hidden in ["ann@example.com", "abc123", "1111", "4915112345678", "hunter2"] {
        ensure!(!printed.contains(hidden), "{hidden} is in the log");
    }
    ensure!(printed.contains("20240102-000123"), "the order's number is gone");
    ensure!(told.response.text().contains("ann@example.com"), "the client's response was changed");
    let metrics = tour.envoy.admin_get("/stats/prometheus").await?;
    let found: Vec<&str> = metrics.lines().filter(|line| line.starts_with("meshfilter_scrub_")).collect();
    tour.row("metrics", &found.join("\n"));
    Ok(())
}

/// What to try with a demo that goes on running.
pub(crate) fn to_try(envoy: &Envoy) -> Vec<String> {
    vec![curl(envoy, "scrubbed", PATH, &[("user-agent", "shop/1.2 (+4915112345678)")])]
}
