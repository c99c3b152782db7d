//! The examples as they stand: each is started with the built modules, in front of the upstreams that its first lines name,
//! and does what they promise; and they say what the filters declare.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use circuit_breaker::CircuitBreaker;
use kit::{Filter, Metric};
use latency::Latency;
use log_scrub::LogScrub;
use serde_json::{Map, Value, json};
use suite::Suite;
use test_harness::{Envoy, H1, PATIENCE, Request, Response, Thresholds, Upstream, envoy, eventually, root};
use trace_id::TraceId;

/// Each has a test that starts it.
const EXAMPLES: [&str; 5] = ["circuit-breaker", "latency", "log-scrub", "suite", "trace-id"];

#[test]
fn the_first_lines_of_every_example_start_it_and_so_does_the_readme() {
    let folder = root().join("examples/envoy");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, EXAMPLES.map(|name| OsString::from(format!("{name}.yaml"))));
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    // Not by a pattern: with several versions installed that names several programs.
    let command = |name: &str| {
        let version = envoy::VERSION;
        format!(".tools/envoy-{version}/envoy/_bin/envoy -c examples/envoy/{name}.yaml\n")
    };
    assert!(readme.contains(&format!("$ {}", command("suite"))), "{}", command("suite"));
    for name in EXAMPLES {
        let text = fs::read_to_string(folder.join(format!("{name}.yaml"))).unwrap();
        assert!(text.contains(&format!("#   {}", command(name))), "{name}: {}", command(name));
        assert!(readme.contains(&format!("](examples/envoy/{name}.yaml)")), "{name} in the README");
    }
}

async fn start(name: &str, upstreams: &[(u16, SocketAddr)]) -> Result<Envoy> {
    Envoy::of_file(&root().join(format!("examples/envoy/{name}.yaml")), upstreams).await
}

/// A field of an entry of the access log that has to be a text.
fn text<'l>(line: &'l Map<String, Value>, field: &str) -> &'l str {
    line[field].as_str().unwrap_or_else(|| panic!("{field} in {line:?}"))
}

fn number(line: &Map<String, Value>, field: &str) -> u64 {
    text(line, field).parse().unwrap_or_else(|error| panic!("{field} in {line:?}: {error}"))
}

/// Waits until that is what the metric says.
async fn becomes(envoy: &Envoy, name: &str, labels: &[(&str, &str)], value: f64) -> Result<()> {
    eventually(format!("{name} {labels:?} of {value}"), PATIENCE, async || {
        let metrics = envoy.prometheus().await.map_err(|error| format!("{error:#}"))?;
        if metrics.value(name, labels) == Some(value) {
            Ok(())
        } else {
            Err(format!("{:?}", metrics.series(name, &[])))
        }
    })
    .await
}

#[tokio::test]
async fn the_example_of_trace_id_gives_upstream_caller_and_log_one_id() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = start("trace-id", &[(8080, upstream.addr())]).await?;
    let response = envoy.get("edge", "/", ()).await?;
    assert_eq!(response.status, 200);
    let id = response.headers.text("x-trace-id").context("x-trace-id")?;
    let received = upstream.wait(1).await?.remove(0);
    let told = |name: &str| received.headers.text(name).unwrap_or_default();
    assert_eq!(told("traceparent").split('-').nth(1), Some(&*id), "{received:?}");
    assert_eq!(told("x-b3-traceid"), id, "{received:?}");
    let line = envoy.wait_for_json("stdout", 1).await?.remove(0);
    assert_eq!((text(&line, "trace_id"), text(&line, "path"), &line["status"]), (&*id, "/", &json!(200)));
    assert_eq!(text(&line, "span_id").len(), 16);
    becomes(&envoy, "meshfilter_trace_requests_total", &[("outcome", "generated")], 1.0).await
}

#[tokio::test]
async fn the_example_of_latency_measures_requests_and_connections() -> Result<()> {
    let (service, bytes) = (Upstream::start().await?, Upstream::start().await?);
    let envoy = start("latency", &[(8080, service.addr()), (8081, bytes.addr())]).await?;
    let slow = [("x-reply", "pause=30; chunk=ok")];
    let response = envoy.get("edge", "/", slow).await?;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    let timing = response.headers.text("server-timing").context("server-timing")?;
    assert!(timing.starts_with("ttfb;dur="), "{timing}");
    let line = envoy.wait_for_json("stdout", 1).await?.remove(0);
    assert!(number(&line, "total") >= number(&line, "upstream"), "{line:?}");
    // The upstream took that long.
    assert!(number(&line, "upstream") >= 30_000, "{line:?}");
    number(&line, "filters");
    let labels = [("direction", "inbound"), ("protocol", "http"), ("method", "GET"), ("route", "everything")];
    becomes(&envoy, "meshfilter_requests_finished_total", &labels, 1.0).await?;
    becomes(&envoy, "meshfilter_request_duration_millis_count", &labels, 1.0).await?;
    becomes(&envoy, "meshfilter_slo_requests_total", &[("objective", "fast")], 1.0).await?;

    let mut connection = H1::connect(envoy.addr("plain")).await?;
    assert_eq!(connection.send(&Request::get("/")).await?.status, 200);
    drop(connection);
    bytes.wait(1).await?;
    let line = envoy.wait_for_json("stdout", 2).await?.remove(1);
    assert!(number(&line, "total") >= number(&line, "connect"), "{line:?}");
    becomes(&envoy, "meshfilter_connections_finished_total", &[("cluster", "bytes")], 1.0).await
}

#[tokio::test]
async fn the_example_of_log_scrub_logs_nothing_that_is_private() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = start("log-scrub", &[(8080, upstream.addr())]).await?;
    let path = "/users/ann@example.com?token=abc123";
    let body = r#"{"password": "hunter2", "colour": "blue"}"#;
    let request = Request::post(path, body).header("content-type", "application/json");
    assert_eq!(envoy.send("edge", &request.header("user-agent", "mail bob@example.com")).await?.status, 200);
    let received = upstream.wait(1).await?.remove(0);
    assert_eq!((received.path.as_str(), received.body.as_slice()), (path, body.as_bytes()));
    let line = envoy.wait_for_json("stdout", 1).await?.remove(0);
    assert_eq!((text(&line, "path"), text(&line, "query")), ("/users/[email]", "token=[field]"));
    let all = envoy.access_log("stdout").concat();
    for private in ["ann@", "bob@", "abc123", "hunter2"] {
        assert!(!all.contains(private), "{private} in {all}");
    }
    assert!(text(&line, "request_body").contains("blue"), "{line:?}");
    becomes(&envoy, "meshfilter_scrub_findings_total", &[("rule", "email"), ("place", "path")], 1.0).await
}

/// Has the upstream fail until a request is turned away, which it is after ten at the latest that are known to all workers.
async fn fail_until_rejected(envoy: &Envoy) -> Result<Response> {
    for _ in 0..100 {
        let response = envoy.get("edge", "/status/500", ()).await?;
        if response.headers.has("x-circuit-state") {
            return Ok(response);
        }
        ensure!(response.status == 500, "{response:?}");
    }
    anyhow::bail!("nothing was rejected")
}

async fn rejected(envoy: &Envoy) -> Result<Map<String, Value>> {
    eventually("a rejected request in the log", PATIENCE, async || {
        let lines = envoy.wait_for_json("stdout", 1).await.map_err(|error| format!("{error:#}"))?;
        let rejected = lines.iter().find(|line| line["decision"] == "rejected");
        rejected.cloned().ok_or_else(|| format!("{lines:?}"))
    })
    .await
}

#[tokio::test]
async fn the_example_of_circuit_breaker_rejects_by_the_rules_of_its_source() -> Result<()> {
    let upstream = Upstream::start().await?;
    let rules = Thresholds::start(fs::read(root().join("examples/thresholds/rules.json"))?).await?;
    let envoy = start("circuit-breaker", &[(8080, upstream.addr()), (8500, rules.addr())]).await?;
    assert!(rules.wait(1).await?.len() == 1);
    becomes(&envoy, "meshfilter_circuit_rules_version", &[], 1.0).await?;
    assert_eq!(envoy.get("edge", "/", ()).await?.status, 200);
    let response = fail_until_rejected(&envoy).await?;
    assert_eq!((response.status, response.text().as_str()), (503, "The service is resting.\n"));
    assert_eq!(response.headers.text("content-type").as_deref(), Some("text/plain"));
    assert!(response.headers.has("retry-after"), "{response:?}");
    let failed = upstream.take().iter().filter(|request| request.path == "/status/500").count();
    // With the one that went well, as many as its rule wants at least.
    assert!((9..100).contains(&failed), "{failed}");
    // What is critical is let through, as a probe or beside one.
    assert_eq!(envoy.get("edge", "/", [("x-priority", "critical")]).await?.status, 200);
    let line = rejected(&envoy).await?;
    assert_eq!((text(&line, "rule"), text(&line, "resource"), text(&line, "version")), ("errors", "service", "1"));
    let opened = [("resource", "service"), ("rule", "errors"), ("from", "closed"), ("to", "open")];
    becomes(&envoy, "meshfilter_circuit_transitions_total", &opened, 1.0).await
}

#[tokio::test]
async fn the_example_of_the_suite_does_what_all_four_do() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = start("suite", &[(8080, upstream.addr())]).await?;
    let response = envoy.get("edge", "/users/ann@example.com?token=abc", ()).await?;
    assert_eq!(response.status, 200);
    let id = response.headers.text("x-trace-id").context("x-trace-id")?;
    let received = upstream.wait(1).await?.remove(0);
    assert_eq!(received.headers.text("traceparent").unwrap_or_default().split('-').nth(1), Some(&*id));
    let line = envoy.wait_for_json("stdout", 1).await?.remove(0);
    assert_eq!(text(&line, "trace_id"), id);
    assert!(number(&line, "total_us") > 0);
    assert_eq!((text(&line, "path"), text(&line, "query")), ("/users/[email]", "token=[field]"));
    assert_eq!((text(&line, "decision"), text(&line, "state")), ("allowed", "closed"));
    assert_eq!(fail_until_rejected(&envoy).await?.status, 503);
    // Who is turned away has it all too.
    let line = rejected(&envoy).await?;
    assert_eq!((text(&line, "state"), text(&line, "path"), &line["status"]), ("open", "/status/500", &json!(503)));
    assert_eq!(text(&line, "trace_id").len(), 32);
    assert!(number(&line, "total_us") > 0);
    for (name, labels) in [
        ("meshfilter_requests_finished_total", [("direction", "outbound"), ("route", "everything")]),
        ("meshfilter_scrub_findings_total", [("rule", "email"), ("place", "path")]),
        ("meshfilter_circuit_transitions_total", [("from", "closed"), ("to", "open")]),
        ("meshfilter_trace_requests_total", [("outcome", "generated"), ("outcome", "generated")]),
    ] {
        let value = envoy.prometheus().await?.value(name, &labels);
        assert!(value.is_some_and(|value| value >= 1.0), "{name} {labels:?}: {value:?}");
    }
    Ok(())
}

#[test]
fn envoy_takes_every_example_as_it_stands() {
    let folder = root().join("examples/envoy");
    let mut seen = 0;
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        // As its first lines say: from the root of the project. `validate` makes the VM and configures the plugin.
        let output = Command::new(envoy::binary().unwrap())
            .current_dir(root())
            .args(["--mode", "validate", "--log-level", "warning", "-c"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
        seen += 1;
    }
    assert!(seen > 0, "no example in {}", folder.display());
}

/// The blocks of YAML in a page.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[test]
fn labels_are_taken_out_of_names_as_declared_in_each_example_and_for_istio() {
    for (filter, metrics) in [
        ("trace-id", TraceId::metrics()),
        ("latency", Latency::metrics()),
        ("log-scrub", LogScrub::metrics()),
        ("circuit-breaker", CircuitBreaker::metrics()),
        ("suite", Suite::metrics()),
    ] {
        let labels = |metric: &&'static Metric| metric.labels.iter().copied();
        let labels: BTreeSet<&str> = metrics.iter().flat_map(labels).collect();
        let tag = |label: &&str| json!({ "tag_name": label, "regex": kit::tag_regex(label) });
        let tags: Value = labels.iter().map(tag).collect();
        let example = fs::read_to_string(root().join(format!("examples/envoy/{filter}.yaml"))).unwrap();
        assert_eq!(documents(&example)[0]["stats_config"]["stats_tags"], tags, "the example of {filter}");

        let readme = fs::read_to_string(root().join(format!("filters/{filter}/README.md"))).unwrap();
        let marked = readme.split("<!-- stats-tags -->").nth(1).unwrap().split("<!-- end -->").next().unwrap();
        let [both] = blocks(marked)[..] else { panic!("not one block: {marked}") };
        let [envoy, istio] = &documents(both)[..] else { panic!("not two: {both}") };
        assert_eq!(*envoy, json!({ "stats_config": { "stats_tags": tags } }), "the README of {filter}");
        // An annotation is a text, and this one is YAML again.
        let annotations = istio.as_object().unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["proxy.istio.io/config"]);
        let config = documents(annotations["proxy.istio.io/config"].as_str().unwrap());
        assert_eq!(config, [json!({ "extraStatTags": labels })], "the README of {filter}");
    }
}

#[test]
fn the_yaml_of_every_readme_is_yaml_and_so_is_what_it_quotes() {
    let mut texts = 0;
    for filter in ["trace-id", "latency", "log-scrub", "circuit-breaker", "suite"] {
        let readme = fs::read_to_string(root().join(format!("filters/{filter}/README.md"))).unwrap();
        for block in blocks(&readme) {
            for document in documents(block) {
                for (name, value) in document.as_object().unwrap() {
                    if name == "sidecar.istio.io/statsHistogramBuckets" {
                        let buckets: Value = serde_json::from_str(value.as_str().unwrap()).unwrap();
                        let borders =
                            |value: &Value| value.as_array().is_some_and(|all| all.iter().all(Value::is_number));
                        assert!(buckets.as_object().unwrap().values().all(borders), "{buckets}");
                        texts += 1;
                    }
                }
            }
        }
    }
    assert!(texts > 0, "no annotation for buckets");
}
