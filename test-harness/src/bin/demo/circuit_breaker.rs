//! circuit-breaker's part of the tour: an upstream turns sick, the breaker opens, its thresholds change meanwhile, it closes.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use circuit_breaker::CircuitBreaker;
use kit::Filter as _;
use serde_json::{Value, json};
use test_harness::{AccessLog, Envoy, HttpFilter, Listener, Request, Route, Thresholds, module};
use tokio::time::sleep;

use crate::tour::{Tour, curl};

/// The cluster that serves the rules.
pub(crate) const SOURCE: &str = "thresholds";

const SICK: (&str, &str) = ("x-reply", "status=500; chunk=out of order");

/// What the source says: of ten requests half may fail.
fn rules(threshold: f64) -> Value {
    json!({ "rules": [{
        "id": "errors", "resource": "service", "strategy": "error_ratio", "threshold": threshold, "min_requests": 10,
        "interval": "10s", "retry_timeout": "2s"
    }] })
}

/// The source of rules, as it is at first.
pub(crate) async fn thresholds() -> Result<Thresholds> {
    Thresholds::start(rules(0.5).to_string()).await
}

/// Its listener.
pub(crate) fn listeners() -> Result<Vec<Listener>> {
    let configuration = json!({ "source": { "cluster": SOURCE, "path": "/rules", "interval": "200ms" } });
    let key = |key: &str| format!("%FILTER_STATE(wasm.circuit.{key}:PLAIN)%");
    let log = ["decision", "rule", "state", "version"].map(|name| (name, key(name)));
    let status = ("status", "%RESPONSE_CODE%".to_owned());
    Ok(vec![
        Listener::http("protected")
            .filter(HttpFilter::wasm("circuit-breaker", module("circuit-breaker")?).config(configuration))
            .route(Route::cluster("service"))
            .access_log(AccessLog::json(log.into_iter().chain([status]))),
    ])
}

/// What takes the labels out of the names of its metrics.
pub(crate) fn stats_tags() -> Vec<(String, String)> {
    let labels = CircuitBreaker::metrics().into_iter().flat_map(|metric| metric.labels);
    labels.map(|label| ((*label).into(), kit::tag_regex(label))).collect()
}

/// The steps.
pub(crate) async fn tour(tour: &Tour<'_>, thresholds: &Thresholds) -> Result<()> {
    gauge(tour, "rules_version", 1).await?;
    tour.step(
        "An upstream turns sick, and the breaker opens",
        "The rules come from a server of thresholds. Ten requests fail; the next one does not go upstream, on no worker.",
    );
    tour.row("rules", &rules(0.5).to_string());
    for _ in 0..10 {
        let request = Request::get("/pay").header(SICK.0, SICK.1);
        let status =
            tour.envoy.send("protected", &request).await.inspect_err(|_| eprintln!("{}", tour.envoy.log()))?.status;
        ensure!(status == 500, "the upstream says {status}");
    }
    let opened = Instant::now();
    gauge(tour, "state", 2).await?;
    tour.row("sent", "ten times what the upstream answers with 500");
    let told = tour.send_to("protected", "/pay", &[], &[]).await?;
    ensure!(told.response.status == 503 && told.upstream.is_none(), "it was let through");
    let headers = ["retry-after", "x-circuit-state"];
    tour.row("client got", &format!("503\n{}", crate::tour::shown(&told.response.headers, &headers).join("\n")));

    tour.step(
        "Thresholds change while it is open",
        "Nothing is applied, nothing restarts. Open stays open until its time: no request goes upstream because of it.",
    );
    thresholds.set(rules(0.8).to_string());
    tour.row("rules", &rules(0.8).to_string());
    gauge(tour, "rules_version", 2).await?;
    let told = tour.send_to("protected", "/pay", &[], &[]).await?;
    ensure!(told.response.status == 503 && told.upstream.is_none(), "the update let it through");

    tour.step(
        "It recovers by one probe",
        "When the two seconds are over one request goes upstream. The upstream is well again, so all may pass.",
    );
    sleep(Duration::from_millis(2100).saturating_sub(opened.elapsed())).await;
    let told = tour.send_to("protected", "/pay", &[], &[]).await?;
    ensure!(told.response.status == 200 && told.upstream.is_some(), "the probe was not let through");
    let told = tour.send_to("protected", "/pay", &[], &[]).await?;
    ensure!(told.response.status == 200, "it did not close");
    let log = tour.envoy.log();
    let lines = log.lines().filter_map(|line| Some(line.split_once("circuit-breaker: ")?.1));
    let lines: Vec<&str> = lines.filter(|line| line.contains(" to ")).collect();
    ensure!(lines.len() >= 3, "not all of its changes are in the log: {lines:?}");
    tour.row("Envoy's log", &lines.join("\n"));
    let metrics = tour.envoy.admin_get("/stats/prometheus").await?;
    let found: Vec<&str> = metrics.lines().filter(|line| line.starts_with("meshfilter_circuit_")).collect();
    tour.row("metrics", &found.join("\n"));
    Ok(())
}

/// Waits until a gauge stands so.
async fn gauge(tour: &Tour<'_>, name: &str, wanted: u32) -> Result<()> {
    let (name, wanted) = (format!("meshfilter_circuit_{name}{{"), format!(" {wanted}"));
    for _ in 0..200 {
        let metrics = tour.envoy.admin_get("/stats/prometheus").await?;
        if metrics.lines().any(|line| line.starts_with(&name) && line.ends_with(&wanted)) {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    bail!("{name}…}} did not become{wanted}")
}

/// What to try with a demo that goes on running.
pub(crate) fn to_try(envoy: &Envoy, thresholds: &Thresholds) -> Vec<String> {
    vec![
        format!("for n in $(seq 12); do {}; done", curl(envoy, "protected", "/pay", &[SICK])),
        format!("curl -X PUT http://{}/rules -d '{}'", thresholds.addr(), rules(0.3)),
    ]
}
