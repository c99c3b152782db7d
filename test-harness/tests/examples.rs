//! The examples as they stand: Envoy takes each, with the built modules, and they say what the filters declare.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use circuit_breaker::CircuitBreaker;
use kit::{Filter, Metric};
use latency::Latency;
use log_scrub::LogScrub;
use serde_json::{Value, json};
use suite::Suite;
use test_harness::{envoy, root};
use trace_id::TraceId;

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
