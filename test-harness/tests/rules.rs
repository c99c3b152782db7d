//! The examples for Prometheus and Kubernetes: rules by promtool's tests, what prometheus-adapter would ask by a real
//! Prometheus that scrapes a real Envoy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kit::Filter as _;
use latency::Latency;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use test_harness::metrics::Sample;
use test_harness::prometheus::promtool;
use test_harness::{Envoy, H1, HttpFilter, Listener, Prometheus, Request, Route, Upstream, module, root};

const RULES: &str = "prometheus/latency-rules.yaml";
const RULES_TEST: &str = "prometheus/latency-rules-test.yaml";
const PROMETHEUS: &str = "prometheus/prometheus.yaml";
const ADAPTER: &str = "kubernetes/prometheus-adapter.yaml";
const AUTOSCALER: &str = "kubernetes/hpa.yaml";
const PODS: &str = "kubernetes/prometheus.yaml";

fn example(name: &str) -> PathBuf {
    root().join("examples").join(name)
}

fn text(name: &str) -> Result<String> {
    fs::read_to_string(example(name)).with_context(|| name.to_owned())
}

fn yaml<T: DeserializeOwned>(name: &str) -> Result<T> {
    serde_saphyr::from_str(&text(name)?).with_context(|| name.to_owned())
}

/// What promtool says of a file by this check.
async fn check(arguments: &[&str], name: &str) -> Result<String> {
    let report = promtool(&[arguments, &[example(name).to_str().unwrap()]].concat(), "").await?;
    assert_eq!(report.code, Some(0), "{arguments:?} of {name}: {}", report.said);
    Ok(report.said)
}

#[tokio::test]
async fn promtool_takes_the_rules_and_their_tests_and_the_configuration_that_loads_them() -> Result<()> {
    let said = check(&["check", "rules"], RULES).await?;
    let number = text(RULES)?.lines().filter(|line| line.contains("- record: ") || line.contains("- alert: ")).count();
    assert!(said.contains(&format!("{number} rules found")), "{said}");
    let said = check(&["check", "config"], PROMETHEUS).await?;
    assert!(said.contains("1 rule files found") && said.contains(&format!("{number} rules found")), "{said}");
    check(&["test", "rules"], RULES_TEST).await?;
    Ok(())
}

/// A metric that was renamed would leave rules behind that are right and never have a value.
#[test]
fn examples_speak_only_of_metrics_that_there_are() -> Result<()> {
    let declared: BTreeSet<&str> = Latency::metrics().iter().map(|metric| metric.name).collect();
    for name in [RULES, RULES_TEST, ADAPTER] {
        let text = text(name)?;
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let metrics: BTreeSet<&str> = text.split(|c: char| !word(c)).filter(|w| w.starts_with("meshfilter_")).collect();
        // The beginning of all names, and what the adapter makes new ones of.
        let not_metrics = ["meshfilter_", "meshfilter_requests", "meshfilter_request_duration"];
        for metric in &metrics {
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|end| metric.strip_suffix(end)).unwrap_or(metric);
            assert!(declared.contains(base) || not_metrics.contains(metric), "{name}: {metric}");
        }
        assert!(metrics.len() > 2, "{name}: {metrics:?}");
    }
    Ok(())
}

/// The configuration of prometheus-adapter, as far as it is about pods; it refuses other fields, too.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Adapter {
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    series_query: String,
    resources: Resources,
    name: Name,
    metrics_query: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    overrides: BTreeMap<String, Resource>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    resource: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    matches: String,
    r#as: String,
}

impl Rule {
    /// The label that stands for a kind of object.
    fn label(&self, resource: &str) -> &str {
        let found = self.resources.overrides.iter().find(|(_, object)| object.resource == resource);
        found.unwrap_or_else(|| panic!("no {resource} in {self:?}")).0
    }

    /// The names of the series that the adapter finds, by the names that it gives them. Go's expressions are
    /// Prometheus' own.
    async fn names(&self, prometheus: &Prometheus) -> Result<BTreeMap<String, String>> {
        let (matches, name) = (json!(self.name.matches), json!(self.name.r#as));
        let found = format!(r#"label_replace({}, "api", {name}, "__name__", {matches})"#, self.series_query);
        let mut names = BTreeMap::new();
        for series in prometheus.wait_for(&found, |series| !series.is_empty()).await? {
            for label in self.resources.overrides.keys() {
                assert!(series.labels.contains_key(label), "no {label}: {series:?}");
            }
            names.insert(series.labels["api"].clone(), series.name);
        }
        Ok(names)
    }

    /// What the adapter asks for pods of a namespace, as its `pkg/naming/metrics_query.go` does.
    fn query(&self, series: &str, namespace: &str, pods: &[&str]) -> String {
        let equals = if pods.len() > 1 { "=~" } else { "=" };
        let (of_namespace, of_pod) = (self.label("namespace"), self.label("pod"));
        let matchers = format!("{of_namespace}=\"{namespace}\",{of_pod}{equals}\"{}\"", pods.join("|"));
        let query = self.metrics_query.replace("<<.Series>>", series).replace("<<.LabelMatchers>>", &matchers);
        let query = query.replace("<<.GroupBy>>", of_pod);
        assert!(!query.contains("<<"), "{query}");
        query
    }
}

/// A pod's proxy: it takes requests, and sends some of its own.
async fn pod(upstream: &Upstream) -> Result<Envoy> {
    let listener = |name: &str, direction: &str| -> Result<Listener> {
        // A plugin of its own for each: the filter asks once for its plugin's direction.
        let filter = HttpFilter::wasm(name, module("latency")?);
        let listener = Listener::http(name).merge(json!({ "traffic_direction": direction }));
        Ok(listener.filter(filter).route(Route::cluster("up")))
    };
    let labels: BTreeSet<&str> = Latency::metrics().iter().flat_map(|metric| metric.labels).copied().collect();
    labels
        .into_iter()
        .fold(Envoy::builder(), |builder, label| builder.stats_tag(label, &kit::tag_regex(label)))
        .cluster("up", upstream.addr())
        .listener(listener("in", "INBOUND")?)
        .listener(listener("out", "OUTBOUND")?)
        .start()
        .await
}

/// The job for pods in Kubernetes, with these in place of what Kubernetes would tell of: Debian's Prometheus is built
/// without it.
fn job(pods: Value) -> Result<Value> {
    let mut config: Value = yaml(PODS)?;
    assert_eq!(config["rule_files"], json!(["../prometheus/latency-rules.yaml"]));
    let mut job = config["scrape_configs"][0].take();
    let discovery = job.as_object_mut().unwrap().remove("kubernetes_sd_configs");
    assert_eq!(discovery, Some(json!([{ "role": "pod" }])));
    job["static_configs"] = pods;
    Ok(job)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_autoscaler_gets_what_the_adapter_asks_of_pods_that_prometheus_found() -> Result<()> {
    let upstream = Upstream::start().await?;
    let (busy, idle) = (pod(&upstream).await?, pod(&upstream).await?);
    let told = |reply: &str| Request::get("/").header("x-reply", reply);
    for envoy in [&busy, &idle] {
        assert_eq!(envoy.send("in", &told("pause=70")).await?.status, 200);
    }
    let found = |envoy: &Envoy, pod: &str, label: &str, port: &str| {
        json!({ "targets": [envoy.admin_addr().to_string()], "labels": {
            "__meta_kubernetes_pod_container_port_name": port, "__meta_kubernetes_namespace": "prod",
            "__meta_kubernetes_pod_name": pod, label: "shop" } })
    };
    let job = job(json!([
        found(&busy, "shop-1", "__meta_kubernetes_pod_label_app", "http-envoy-prom"),
        found(&idle, "shop-2", "__meta_kubernetes_pod_label_app_kubernetes_io_name", "http-envoy-prom"),
        // Another port of the pod.
        found(&idle, "shop-3", "__meta_kubernetes_pod_label_app", "http"),
    ]))?;
    let prometheus = Prometheus::builder().scrape(job, 2).rules(example(RULES)).start().await?;

    // What the idle pod sends itself is nothing that it serves.
    let mut stay = Vec::new();
    for (envoy, listener) in [(&busy, "in"), (&idle, "out")] {
        let mut connection = H1::connect(envoy.addr(listener)).await?;
        connection.write(&told("pause=600000").to_bytes()).await?;
        stay.push(connection);
    }
    for _ in 0..5 {
        assert_eq!(busy.send("in", &told("pause=70")).await?.status, 200);
    }
    prometheus.wait_for("meshfilter_requests_in_flight > 0", |series| series.len() == 2).await?;

    let adapter: Adapter = yaml(ADAPTER)?;
    let mut served = BTreeMap::new();
    for rule in &adapter.rules {
        for (name, series) in rule.names(&prometheus).await? {
            let twice = served.insert(name, (rule, series));
            assert!(twice.is_none(), "{twice:?}");
        }
    }
    let (flight, rate, p95) =
        ("meshfilter_requests_in_flight", "meshfilter_requests_per_second", "meshfilter_request_duration_p95_seconds");
    assert_eq!(served.keys().map(String::as_str).collect::<BTreeSet<_>>(), [flight, rate, p95].into());
    for (name, least, most) in [(flight, 0.0, 2.0), (rate, 0.0, 1000.0), (p95, 0.05, 60.0)] {
        let (rule, series) = &served[name];
        let both = rule.query(series, "prod", &["shop-1", "shop-2"]);
        // By what the adapter knows the pod again.
        let of = |pod: &str| [(rule.label("pod").to_owned(), pod.to_owned())].into();
        let is = |sample: &Sample, pod, wanted: &dyn Fn(f64) -> bool| sample.labels == of(pod) && wanted(sample.value);
        let at_work = |value: f64| value > least && value <= most;
        let wanted = |samples: &[Sample]| {
            samples.len() == 2
                && samples.iter().any(|sample| is(sample, "shop-1", &at_work))
                && samples.iter().any(|sample| is(sample, "shop-2", &|value| value == 0.0))
        };
        prometheus.wait_for(&both, wanted).await?;
        let one = rule.query(series, "prod", &["shop-1"]);
        prometheus.wait_for(&one, |samples| matches!(samples, [one] if is(one, "shop-1", &at_work))).await?;
        for (namespace, pod) in [("prod", "shop-3"), ("test", "shop-1")] {
            assert_eq!(prometheus.query(&rule.query(series, namespace, &[pod])).await?, []);
        }
    }

    let autoscaler: HorizontalPodAutoscaler = yaml(AUTOSCALER)?;
    for metric in autoscaler.spec.unwrap().metrics.unwrap() {
        assert!(served.contains_key(&metric.pods.unwrap().metric.name));
    }
    // The rules know the service by what the job puts on its pods, and see it as one.
    let labels = [("job", "envoy-stats"), ("namespace", "prod"), ("app", "shop"), ("direction", "inbound")];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned())).into();
    let one = |samples: &[Sample]| matches!(samples, [one] if one.labels == labels && one.value > 0.0);
    prometheus.wait_for("route:meshfilter_requests:rate5m > 0", one).await?;
    Ok(())
}

/// What the types do not know they leave out, and then it is missing in what they write.
#[test]
fn the_autoscaler_has_only_fields_that_kubernetes_knows() -> Result<()> {
    let (typed, plain): (HorizontalPodAutoscaler, Value) = (yaml(AUTOSCALER)?, yaml(AUTOSCALER)?);
    assert_eq!(serde_json::to_value(&typed)?, plain);
    Ok(())
}
