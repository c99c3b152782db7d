//! What a real Prometheus makes of the metrics: labels, values, types, rules, and what `promtool` says of the names.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use kit::{Filter, Metric, MetricKind};
use latency::Latency;
use serde_json::{Value, json};
use suite::Suite;
use test_harness::metrics::Sample;
use test_harness::prometheus::{self, promtool};
use test_harness::{
    Cluster, Envoy, H1, H2, HttpFilter, Listener, PATIENCE, Prometheus, Request, Route, Upstream, eventually, module,
    root,
};
use tokio::task::JoinSet;

/// Every metric of every filter.
fn metrics() -> Vec<&'static Metric> {
    Suite::metrics()
}

/// Every label of every metric.
fn labels() -> BTreeSet<&'static str> {
    metrics().iter().flat_map(|metric| metric.labels).copied().collect()
}

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Two workers with trace-id, and the tags that its README gives, which come from the same declarations.
async fn traced(upstream: &Upstream) -> Result<Envoy> {
    let filter = HttpFilter::wasm("trace-id", module("trace-id")?);
    let listener = Listener::http("in").filter(filter).route(Route::cluster("up"));
    let builder = Envoy::builder().cluster("up", upstream.addr()).listener(listener).concurrency(2);
    labels().iter().fold(builder, |builder, label| builder.stats_tag(label, &kit::tag_regex(label))).start().await
}

fn latency(configuration: Value) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm("latency", module("latency")?).config(configuration))
}

/// Two workers with latency as it can be: in both units, and for TCP. Nobody listens at the cluster `dead`.
async fn measured(upstream: &Upstream) -> Result<Envoy> {
    let all = ["direction", "protocol", "method", "code", "grpc_status", "failure", "route", "cluster"];
    let route = |name: &str, cluster: &str| Route::cluster(cluster).prefix(name).merge(json!({ "name": name }));
    let dead = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    // gRPC's status is a trailer, and those get lost in HTTP/1.1.
    let builder = Envoy::builder().add_cluster(Cluster::new("up", upstream.addr()).http2()).cluster("dead", dead);
    let builder = labels().iter().fold(builder, |builder, label| builder.stats_tag(label, &kit::tag_regex(label)));
    [("ms", "INBOUND"), ("us", "OUTBOUND")]
        .iter()
        .try_fold(builder, |builder, (unit, direction)| {
            let direction = json!({ "traffic_direction": direction });
            let outer = latency(json!({ "labels": all, "unit": unit, "role": "outer", "bytes": true, "apdex": "1m",
                "streams": ["/stream"], "slo": [{ "name": "fast", "within": "1m" }] }))?;
            let inner = HttpFilter::wasm("inner", module("latency")?).config(json!({ "role": "inner" }));
            let http = Listener::http(unit).merge(direction.clone()).filter(outer).filter(inner);
            let http = http.route(route("/stream/dead", "dead")).route(route("/stream", "up"));
            let http = http.route(route("/dead", "dead")).route(route("/up", "up"));
            let tcp = |cluster: &str| -> Result<Listener> {
                let proxy = json!({ "name": "tcp", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": "tcp", "cluster": cluster,
                } });
                let filter = latency(json!({ "labels": all, "unit": unit, "bytes": true }))?.of_connections();
                Ok(Listener::tcp(&format!("tcp-{unit}-{cluster}"), [filter, proxy]).merge(direction.clone()))
            };
            Ok::<_, anyhow::Error>(builder.listener(http).listener(tcp("up")?).listener(tcp("dead")?))
        })?
        .start()
        .await
}

/// On each of its listeners: three requests, one of them bad; two streams, one of them bad; two connections.
async fn measure(envoy: &Envoy) -> Result<()> {
    let grpc = |path: &str| {
        let request =
            Request::post(path, b"\0\0\0\0\0").header("content-type", "application/grpc").header("te", "trailers");
        request.header("x-reply", "head; chunk=a; trailer=grpc-status:0")
    };
    for unit in ["ms", "us"] {
        let h2 = H2::connect(envoy.addr(unit)).await?;
        let both = [Request::get("/up"), grpc("/up"), Request::get("/dead"), grpc("/stream"), grpc("/stream/dead")];
        for request in &both {
            h2.send(request).await?;
        }
        assert_eq!(envoy.send(&format!("tcp-{unit}-up"), &Request::get("/")).await?.status, 200);
        // It is closed without an answer.
        let _ = envoy.send(&format!("tcp-{unit}-dead"), &Request::get("/")).await;
    }
    Ok(())
}

/// Requests with this `traceparent`, each on a connection of its own, so that both workers get some.
async fn requests(envoy: &Envoy, number: usize, traceparent: Option<&str>) -> Result<()> {
    for _ in 0..number {
        let request =
            traceparent.into_iter().fold(Request::get("/"), |request, value| request.header("traceparent", value));
        assert_eq!(envoy.send("in", &request).await?.status, 200);
    }
    Ok(())
}

fn sample(name: &str, envoy: &Envoy, labels: &[(&str, &str)], value: f64) -> Sample {
    let target = [("job", "mesh".to_owned()), ("instance", envoy.admin_addr().to_string())];
    let labels = labels.iter().map(|(label, value)| (*label, (*value).to_owned())).chain(target);
    Sample { name: name.into(), labels: labels.map(|(label, value)| (label.to_owned(), value)).collect(), value }
}

/// Waits until the expression comes to just these samples, in any order.
async fn comes_to(prometheus: &Prometheus, promql: &str, wanted: &[Sample]) -> Result<()> {
    let all_there = |found: &[Sample]| wanted.iter().all(|sample| found.contains(sample));
    prometheus.wait_for(promql, |found| found.len() == wanted.len() && all_there(found)).await?;
    Ok(())
}

/// Four requests with three kinds of findings, and one that cannot be looked at, through log-scrub.
async fn scrubbed(upstream: &Upstream) -> Result<Envoy> {
    let filter = HttpFilter::wasm("log-scrub", module("log-scrub")?);
    let filter = filter.config(json!({ "outputs": { "request_body": true } }));
    let listener = Listener::http("in").filter(filter).route(Route::cluster("up"));
    let builder = Envoy::builder().cluster("up", upstream.addr()).listener(listener).concurrency(2);
    let builder = labels().iter().fold(builder, |builder, label| builder.stats_tag(label, &kit::tag_regex(label)));
    let envoy = builder.start().await?;
    for _ in 0..4 {
        let body = r#"{"a":"ann@example.com","b":["bob@example.com"]}"#;
        let request = Request::post("/ann@example.com?token=a", body).header("content-type", "application/json");
        assert_eq!(envoy.send("in", &request).await?.status, 200);
    }
    let odd = Request::post("/", "odd").header("content-type", "application/zip");
    assert_eq!(envoy.send("in", &odd).await?.status, 200);
    Ok(envoy)
}

#[tokio::test]
async fn what_was_found_and_what_could_not_be_looked_at_arrive_by_rule_place_and_reason() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = scrubbed(&upstream).await?;
    let prometheus = Prometheus::builder().envoy("mesh", &envoy).start().await?;
    let (found, unscanned) = ("meshfilter_scrub_findings_total", "meshfilter_scrub_unscanned_total");
    let by = |rule, place, value| sample(found, &envoy, &[("rule", rule), ("place", place)], value);
    let wanted = [by("email", "path", 4.0), by("email", "request_body", 8.0), by("field", "query", 4.0)];
    comes_to(&prometheus, found, &wanted).await?;
    comes_to(&prometheus, unscanned, &[sample(unscanned, &envoy, &[("reason", "type")], 1.0)]).await?;
    // Path, query and body of four, and the path of one.
    let bytes = "meshfilter_scrub_bytes_total";
    let looked = 4.0 * (16.0 + 7.0 + 47.0) + 1.0;
    comes_to(&prometheus, bytes, &[sample(bytes, &envoy, &[], looked)]).await
}

#[tokio::test]
async fn what_all_four_count_of_one_request_arrives_from_one_module() -> Result<()> {
    let upstream = Upstream::start().await?;
    let rule = json!({ "id": "errors", "resource": "up", "strategy": "error_ratio", "threshold": 0.5 });
    let configuration =
        json!({ "trace_id": {}, "latency": {}, "log_scrub": {}, "circuit_breaker": { "rules": [rule] } });
    let filter = HttpFilter::wasm("suite", module("suite")?).config(configuration);
    let listener = Listener::http("in").filter(filter).route(Route::cluster("up"));
    let builder = Envoy::builder().cluster("up", upstream.addr()).listener(listener).concurrency(2);
    let builder = labels().iter().fold(builder, |builder, label| builder.stats_tag(label, &kit::tag_regex(label)));
    let envoy = builder.start().await?;
    assert_eq!(envoy.get("in", "/ann@example.com", ()).await?.status, 200);
    let prometheus = Prometheus::builder().envoy("mesh", &envoy).start().await?;
    for (name, labels, value) in [
        ("meshfilter_trace_requests_total", &[("outcome", "generated"), ("format", "none")][..], 1.0),
        ("meshfilter_requests_finished_total", &[("protocol", "http"), ("method", "GET"), ("code", "2xx")], 1.0),
        ("meshfilter_requests_in_flight", &[], 0.0),
        ("meshfilter_scrub_findings_total", &[("rule", "email"), ("place", "path")], 1.0),
        ("meshfilter_circuit_allowed_total", &[("resource", "up"), ("rule", "errors")], 1.0),
    ] {
        comes_to(&prometheus, name, &[sample(name, &envoy, labels, value)]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn labels_arrive_as_labels_counters_count_and_have_a_rate() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = traced(&upstream).await?;
    requests(&envoy, 7, None).await?;
    requests(&envoy, 5, Some(TRACEPARENT)).await?;
    requests(&envoy, 3, Some("nonsense")).await?;
    let prometheus = Prometheus::builder().envoy("mesh", &envoy).start().await?;
    let (total, invalid) = ("meshfilter_trace_requests_total", "meshfilter_trace_invalid_total");
    let by = |outcome, format, value| sample(total, &envoy, &[("outcome", outcome), ("format", format)], value);
    let refused = sample(invalid, &envoy, &[("format", "w3c"), ("reason", "length")], 3.0);
    let all = [by("continued", "w3c", 5.0), by("generated", "none", 10.0), refused];
    comes_to(&prometheus, r#"{__name__=~"meshfilter_.*"}"#, &all).await?;

    // What is scraped later counts on.
    requests(&envoy, 4, Some(TRACEPARENT)).await?;
    comes_to(&prometheus, total, &[by("continued", "w3c", 9.0), by("generated", "none", 10.0)]).await?;
    let sum = Sample { name: String::new(), labels: [].into(), value: 19.0 };
    comes_to(&prometheus, &format!("scalar(sum({total}))"), &[sum]).await?;

    // Of the type that they were declared with.
    let types = prometheus.types().await?;
    let ours: BTreeSet<&str> =
        types.keys().map(String::as_str).filter(|name| name.starts_with("meshfilter_")).collect();
    assert_eq!(ours, [total, invalid].into());
    for metric in metrics().iter().filter(|metric| ours.contains(metric.name)) {
        assert_eq!(types[metric.name], type_of(metric.kind), "{}", metric.name);
    }
    // Where requests came it is above zero, where none did it is zero.
    let rate = "sort_desc(sum by (outcome) (rate(meshfilter_trace_requests_total[1m])))";
    let one = |sample: &Sample, outcome| sample.labels["outcome"] == outcome;
    let wanted = |samples: &[Sample]| match samples {
        [some, none] => one(some, "continued") && some.value > 0.0 && one(none, "generated") && none.value == 0.0,
        _ => false,
    };
    prometheus.wait_for(rate, wanted).await?;
    // A rate is extrapolated, the growth itself is not.
    let growth = "sum by (outcome) (max_over_time(meshfilter_trace_requests_total[1m]) \
                  - min_over_time(meshfilter_trace_requests_total[1m])) > 0";
    prometheus.wait_for(growth, |samples| matches!(samples, [one] if one.value == 4.0)).await?;
    Ok(())
}

/// Samples of a metric, as a program would give them that knows its help.
fn text(Metric { kind, name, help, labels }: &Metric) -> String {
    let labels: String = labels.iter().map(|label| format!("{label}=\"a\",")).collect();
    let samples = match kind {
        MetricKind::Histogram => {
            let (bucket, rest) = (format!("{labels}le=\"+Inf\""), ["sum", "count"]);
            let rest = rest.map(|end| format!("{name}_{end}{{{labels}}} 1\n")).concat();
            format!("{name}_bucket{{{bucket}}} 1\n{rest}")
        }
        MetricKind::Counter | MetricKind::Gauge => format!("{name}{{{labels}}} 1\n"),
    };
    format!("# HELP {name} {help}\n# TYPE {name} {}\n{samples}", type_of(*kind))
}

fn type_of(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

#[tokio::test]
async fn promtool_finds_no_fault_with_our_names_but_that_envoy_gives_no_help() -> Result<()> {
    let all: String = metrics().iter().map(|metric| text(metric)).collect();
    let report = promtool(&["check", "metrics"], &all).await?;
    assert_eq!((report.code, report.said.as_str()), (Some(0), ""), "of\n{all}");

    let upstream = Upstream::start().await?;
    let envoy = traced(&upstream).await?;
    requests(&envoy, 1, Some("nonsense")).await?;
    let measured = measured(&upstream).await?;
    measure(&measured).await?;
    // Histograms are there after the next flush.
    let last = "meshfilter_connection_duration_micros";
    let there = async || match measured.prometheus().await {
        Ok(metrics) if metrics.names(last).is_empty() => Err("others".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{error:#}")),
    };
    eventually(last, PATIENCE, there).await?;
    let mut ours = BTreeSet::new();
    let scrubbed = scrubbed(&upstream).await?;
    for envoy in [&envoy, &measured, &scrubbed] {
        let report = promtool(&["check", "metrics"], &envoy.admin_get("/stats/prometheus").await?).await?;
        // 1 would be: it cannot be read. Envoy's own names are not all as promtool wants them.
        assert_eq!(report.code, Some(3), "{}", report.said);
        ours.extend(report.said.lines().filter(|line| line.contains("meshfilter_")).map(str::to_owned));
    }
    // There is no tracer here that would put its own in a trace's place, and no breaker.
    let absent = |name: &str| name == trace_id::REPLACED.name || name.starts_with("meshfilter_circuit_");
    let there = metrics().into_iter().filter(|metric| !absent(metric.name));
    let wanted: BTreeSet<String> = there.map(|metric| format!("{} no help text", metric.name)).collect();
    assert_eq!(ours, wanted);
    Ok(())
}

/// What names rest on. A unit must be a base unit, which Envoy's whole numbers rule out for times, but a word for one
/// that promtool does not know may stand there.
#[tokio::test]
async fn promtool_wants_base_units_in_names() -> Result<()> {
    let seconds = "use base unit \"seconds\" instead of \"milliseconds\"";
    let abbreviated = "metric names should not contain abbreviated units";
    let total = "counter metrics should have \"_total\" suffix";
    for (kind, name, complaint) in [
        (MetricKind::Histogram, "meshfilter_request_duration_milliseconds", Some(seconds)),
        (MetricKind::Histogram, "meshfilter_request_duration_ms", Some(abbreviated)),
        (MetricKind::Histogram, "meshfilter_request_duration_seconds", None),
        (MetricKind::Histogram, "meshfilter_request_duration", None),
        (MetricKind::Histogram, "meshfilter_request_duration_millis", None),
        (MetricKind::Gauge, "meshfilter_requests_in_flight", None),
        (MetricKind::Counter, "meshfilter_request_bytes_total", None),
        (MetricKind::Counter, "meshfilter_request_bytes", Some(total)),
    ] {
        let report = promtool(&["check", "metrics"], &text(&Metric { kind, name, help: "Help.", labels: &[] })).await?;
        let (code, said) = match complaint {
            Some(complaint) => (3, format!("{name} {complaint}\n")),
            None => (0, String::new()),
        };
        assert_eq!((report.code, report.said), (Some(code), said));
    }
    Ok(())
}

/// The rules that users are given.
const RULES: &str = "examples/prometheus/latency-rules.yaml";

#[tokio::test]
async fn every_metric_of_latency_has_its_labels_and_every_recording_rule_a_value() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = measured(&upstream).await?;
    // Once before the first scrape and then again: a rate knows what was before, and not what began above zero.
    measure(&envoy).await?;
    let prometheus = Prometheus::builder().envoy("mesh", &envoy).rules(root().join(RULES)).start().await?;
    measure(&envoy).await?;

    let connections = ["direction", "protocol", "failure", "cluster"];
    for Metric { kind, name, labels, .. } in Latency::metrics() {
        let (kind, end, le) = match kind {
            MetricKind::Histogram => ("histogram", "_bucket", Some("le")),
            MetricKind::Counter | MetricKind::Gauge => (type_of(*kind), "", None),
        };
        let own: BTreeSet<&str> = match name.contains("_connection") && labels.len() > 1 {
            true => connections.into(),
            false => labels.iter().copied().collect(),
        };
        let wanted: BTreeSet<&str> = own.iter().copied().chain(["job", "instance"]).chain(le).collect();
        // Not all on each series: what has no value is no label.
        let all = |found: &[Sample]| {
            let found: BTreeSet<&str> = found.iter().flat_map(|one| one.labels.keys()).map(String::as_str).collect();
            found == wanted
        };
        prometheus.wait_for(&format!("{name}{end}"), all).await?;
        assert_eq!(prometheus.types().await?[*name], kind, "{name}");
    }
    // Nothing of a label is left in a name.
    let ours = prometheus.query(r#"group by (__name__) ({__name__=~".*meshfilter_.*"})"#).await?;
    let known = |name: &str| name.contains(':') || metrics().iter().any(|metric| name.starts_with(metric.name));
    assert_eq!(ours.iter().find(|one| !known(&one.name)), None);

    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(root().join(RULES))?)?;
    let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
    let records: BTreeSet<&str> = rules.filter_map(|rule| rule["record"].as_str()).collect();
    assert!(records.len() == 20, "{records:?}");
    for record in records {
        prometheus.wait_for(record, |found| !found.is_empty() && found.iter().all(|one| one.value >= 0.0)).await?;
    }
    // One of three requests was bad, and the time that an objective or Apdex gives is longer than anybody waits.
    let near = |value: f64| move |found: &[Sample]| matches!(found, [one] if (one.value - value).abs() < 1e-6);
    let errors = r#"objective:meshfilter_slo_errors_per_requests:ratio_rate1h{objective="fast"}"#;
    prometheus.wait_for(errors, near(1.0 / 3.0)).await?;
    prometheus.wait_for("app:meshfilter_apdex:ratio_rate5m", near(2.0 / 3.0)).await?;
    let failures = |route: &str, direction: &str| {
        let name = "route:meshfilter_request_failures_per_requests:ratio_rate5m";
        format!(r#"{name}{{route="{route}",direction="{direction}"}}"#)
    };
    for direction in ["inbound", "outbound"] {
        for (route, share) in [("/up", 0.0), ("/dead", 1.0), ("/stream", 0.0), ("/stream/dead", 1.0)] {
            prometheus.wait_for(&failures(route, direction), near(share)).await?;
        }
    }
    // Both units come to seconds: what a request takes on this machine.
    let p95 = "route:meshfilter_request_duration_seconds:p95_rate5m";
    let some = |found: &[Sample]| found.len() == 4 && found.iter().all(|one| one.value > 0.0 && one.value < 20.0);
    prometheus.wait_for(p95, some).await?;
    Ok(())
}

/// As the proxies of Istio 1.20 to 1.30 start (`envoy_bootstrap.json`): their expressions, with those that it makes of
/// `extraStatTags` in the middle, and a list of what is counted at all. Some of its own find a part of a label's value,
/// and make a further label of it.
#[tokio::test]
async fn istios_bootstrap_leaves_names_and_labels_as_they_are() -> Result<()> {
    let upstream = Upstream::start().await?;
    let extra = labels().into_iter().map(|label| json!({ "tag_name": label, "regex": kit::tag_regex(label) }));
    let tag = |(name, regex): (&str, &str)| json!({ "tag_name": name, "regex": regex });
    let before = [
        ("cluster_name", r"^cluster(\.(.+);)"),
        ("tcp_prefix", r"^tcp\.((.*?)\.)\w+?$"),
        ("response_code", r"_rq(_(\d{3}))$"),
        ("response_code_class", r"_rq(_(\dxx))$"),
        ("mongo_prefix", r"^mongo\.(.+?)\.(collection|cmd|cx_|op_|delays_|decoding_)(.*?)$"),
    ];
    let after = [
        ("cache", r"(cache\.(.+?)\.)"),
        ("component", r"(component\.(.+?)\.)"),
        ("tag", r"(tag\.(.+?);\.)"),
        ("wasm_filter", r"(wasm_filter\.(.+?)\.)"),
        ("authz_enforce_result", r"rbac(\.(allowed|denied))"),
    ];
    let tags: Vec<Value> = before.map(tag).into_iter().chain(extra).chain(after.map(tag)).collect();
    let counted = ["reporter=", "cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "wasm", "istio"];
    let counted = counted.map(|prefix| json!({ "prefix": prefix }));
    let all = json!({ "labels": ["direction", "protocol", "method", "code", "route"], "code": "exact" });
    let named = |path: &str, name: &str| Route::cluster("up").prefix(path).merge(json!({ "name": name }));
    let listener = Listener::http("in").merge(json!({ "traffic_direction": "INBOUND" })).filter(latency(all)?);
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener.route(named("/plain", "default")).route(named("/cache", "redis-cache.prod.svc:80")))
        .merge_bootstrap(json!({ "stats_config": { "use_all_default_tags": false, "stats_tags": tags,
            "stats_matcher": { "inclusion_list": { "patterns": counted } } } }))
        .start()
        .await?;
    for path in ["/plain", "/cache"] {
        assert_eq!(envoy.send("in", &Request::get(path)).await?.status, 200);
    }
    let prometheus = Prometheus::builder().envoy("mesh", &envoy).start().await?;
    let name = "meshfilter_requests_finished_total";
    let ours = [("direction", "inbound"), ("protocol", "http"), ("method", "GET"), ("code", "200")];
    let of = |more: &[(&str, &str)]| sample(name, &envoy, &[&ours, more].concat(), 1.0);
    let plain = of(&[("route", "default")]);
    let cache = of(&[("route", "redis-cache.prod.svc:80"), ("cache", "prod")]);
    comes_to(&prometheus, name, &[plain, cache]).await?;
    let durations = "meshfilter_request_duration_millis_count";
    prometheus.wait_for(durations, |found| found.len() == 2).await?;
    Ok(())
}

/// Each a quarter longer than the one before.
const BUCKETS: [u32; 15] = [100, 125, 156, 195, 244, 305, 381, 477, 596, 745, 931, 1164, 1455, 1819, 2274];

/// What callers measured and what Prometheus makes of the histogram fall into the same bucket or into neighbours. Not
/// always the same: Envoy keeps two digits, so that a value near a border may be on its other side (the border itself is
/// before Envoy 1.38), and what a caller sees is later than what the proxy saw by what its machine needs to wake it up.
/// The neighbours are a quarter shorter and longer, at the median 76 ms and 96 ms, at the end 233 ms and more.
#[tokio::test(flavor = "multi_thread")]
async fn quantiles_agree_with_the_callers() -> Result<()> {
    const CALLERS: u32 = 50;
    const EACH: u32 = 8;
    let upstream = Upstream::start().await?;
    let filter = latency(json!({ "labels": ["code"] }))?;
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(Listener::http("in").filter(filter).route(Route::cluster("up")))
        .stats_tag("code", &kit::tag_regex("code"))
        .histogram_buckets(json!({ "match": { "prefix": "wasmcustom.meshfilter_" }, "buckets": BUCKETS }))
        .start()
        .await?;
    let prometheus = Prometheus::builder().envoy("mesh", &envoy).start().await?;
    let all = f64::from(CALLERS * EACH);
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let mut h1 = H1::connect(envoy.addr("in")).await?;
        callers.spawn(async move {
            let mut taken = Vec::new();
            for n in 0..EACH {
                // From 150 ms to 1.5 s, and half of them below 320 ms.
                let place = f64::from(n * CALLERS + caller) / all;
                let request =
                    Request::get("/").header("x-reply", format!("pause={:.0}", 150.0 + 1350.0 * place.powi(3)));
                let begin = Instant::now();
                assert_eq!(h1.send(&request).await?.status, 200);
                taken.push(begin.elapsed().as_secs_f64() * 1e3);
            }
            anyhow::Ok(taken)
        });
    }
    let mut taken = Vec::new();
    while let Some(caller) = callers.join_next().await {
        taken.extend(caller??);
    }
    taken.sort_by(f64::total_cmp);

    let name = "meshfilter_request_duration_millis";
    prometheus.wait_for(&format!("{name}_count"), |found| matches!(found, [one] if one.value == all)).await?;
    let borders = prometheus.query(&format!("{name}_bucket")).await?;
    let borders: BTreeSet<&str> = borders.iter().map(|one| one.labels["le"].as_str()).collect();
    let wanted: Vec<String> = BUCKETS.iter().map(u32::to_string).chain(["+Inf".to_owned()]).collect();
    assert_eq!(borders, wanted.iter().map(String::as_str).collect());
    let bucket = |value: f64| BUCKETS.iter().filter(|border| f64::from(**border) < value).count();
    for (hundredths, rank) in [(50, 200), (95, 380), (99, 396)] {
        let caller = taken[rank - 1];
        let found = prometheus.query(&format!("histogram_quantile(0.{hundredths}, {name}_bucket)")).await?;
        let [Sample { value, .. }] = found.as_slice() else { panic!("{found:?}") };
        println!("p{hundredths}: {caller:.1} ms by the callers, {value:.1} ms by the histogram");
        assert!(bucket(*value).abs_diff(bucket(caller)) <= 1, "p{hundredths} is {caller} to callers, {value} here");
    }
    Ok(())
}

const HISTOGRAM: &str = "meshfilter_test_durationroute=.=a;.;";
const GAUGE: &str = "meshfilter_test_in_flightroute=.=a;.;";

/// Records the number in header `x-value` in the histogram, and counts requests that are under way in the gauge.
fn meter(dir: &Path) -> Result<HttpFilter> {
    let (histogram, gauge) = (HISTOGRAM.len(), GAUGE.len());
    let text = format!(
        r#"(module
        (import "env" "proxy_define_metric" (func $define (param i32 i32 i32 i32) (result i32)))
        (import "env" "proxy_record_metric" (func $record (param i32 i64) (result i32)))
        (import "env" "proxy_increment_metric" (func $increment (param i32 i64) (result i32)))
        (import "env" "proxy_get_header_map_value" (func $header (param i32 i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 100) "x-value")
        (data (i32.const 200) "{HISTOGRAM}")
        (data (i32.const 300) "{GAUGE}")
        (func (export "proxy_abi_version_0_2_1"))
        (func (export "_initialize"))
        (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 1024)
        (func (export "proxy_on_context_create") (param i32 i32))
        (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
            (drop (call $define (i32.const 2) (i32.const 200) (i32.const {histogram}) (i32.const 0)))
            (drop (call $define (i32.const 1) (i32.const 300) (i32.const {gauge}) (i32.const 4)))
            i32.const 1)
        (func $value (result i64) (local $at i32) (local $end i32) (local $value i64)
            (drop (call $header (i32.const 0) (i32.const 100) (i32.const 7) (i32.const 12) (i32.const 16)))
            (local.set $at (i32.load (i32.const 12)))
            (local.set $end (i32.add (local.get $at) (i32.load (i32.const 16))))
            (block $done (loop $digits
                (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
                (local.set $value (i64.add (i64.mul (local.get $value) (i64.const 10))
                    (i64.extend_i32_u (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)))))
                (local.set $at (i32.add (local.get $at) (i32.const 1)))
                (br $digits)))
            local.get $value)
        (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $increment (i32.load (i32.const 4)) (i64.const 1)))
            (drop (call $record (i32.load (i32.const 0)) (call $value)))
            (i32.const 0))
        (func (export "proxy_on_done") (param i32) (result i32)
            (drop (call $increment (i32.load (i32.const 4)) (i64.const -1)))
            (i32.const 1)))"#
    );
    let path = dir.join("meter.wasm");
    std::fs::write(&path, wat::parse_str(text)?)?;
    Ok(HttpFilter::wasm("meter", path))
}

/// The setting for buckets sees a histogram by its whole name in Envoy, with the labels in it. Envoy keeps two digits
/// of a value: 500 and 509 are the same to it. A bucket up to 500 takes both, and before Envoy 1.38 neither; and a sum
/// is not exact.
#[tokio::test]
async fn a_histogram_has_its_buckets_and_two_digits_of_a_value_and_a_gauge_returns_to_zero() -> Result<()> {
    let (upstream, dir) = (Upstream::start().await?, tempfile::tempdir()?);
    let buckets = [10, 50, 100, 200, 500];
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(Listener::http("in").filter(meter(dir.path())?).route(Route::cluster("up")))
        .stats_tag("route", &kit::tag_regex("route"))
        // The first that matches counts. This is the name without its labels, and matches nothing.
        .histogram_buckets(json!({ "match": { "exact": "wasmcustom.meshfilter_test_duration" }, "buckets": [1] }))
        .histogram_buckets(json!({ "match": { "prefix": "wasmcustom.meshfilter_test_duration" }, "buckets": buckets }))
        .start()
        .await?;
    let prometheus = Prometheus::builder().envoy("mesh", &envoy).start().await?;
    for value in [10, 11, 200, 209, 210, 500, 509, 510] {
        let request = Request::get("/").header("x-value", value.to_string());
        assert_eq!(envoy.send("in", &request).await?.status, 200);
    }
    let name = |end: &str| format!("meshfilter_test_duration{end}");
    let of_route = |name: &str, value| sample(name, &envoy, &[("route", "a")], value);
    comes_to(&prometheus, &name("_count"), &[of_route(&name("_count"), 8.0)]).await?;
    let version = envoy.version().await?;
    let [ten, two_hundred, five_hundred] = match version.starts_with("1.36.") || version.starts_with("1.37.") {
        true => [0.0, 2.0, 5.0],
        false => [1.0, 4.0, 7.0],
    };
    let some = [("10", ten), ("50", 2.0), ("100", 2.0), ("200", two_hundred), ("500", five_hundred), ("+Inf", 8.0)];
    let wanted = some.map(|(le, value)| sample(&name("_bucket"), &envoy, &[("route", "a"), ("le", le)], value));
    comes_to(&prometheus, &name("_bucket"), &wanted).await?;
    let exact = 2159.0;
    let near = |sum: f64| sum != exact && (sum / exact - 1.0).abs() < 0.05;
    prometheus.wait_for(&name("_sum"), |samples| matches!(samples, [sum] if near(sum.value))).await?;
    // A quarter of 8: the second, and that is the last of those up to 50.
    let quantile = format!("histogram_quantile(0.25, {})", name("_bucket"));
    comes_to(&prometheus, &quantile, &[of_route("", 50.0)]).await?;
    let types = prometheus.types().await?;
    assert_eq!((&*types[&name("")], &*types["meshfilter_test_in_flight"]), ("histogram", "gauge"));

    // A gauge goes up and down, and stays listed at zero.
    let gauge = "meshfilter_test_in_flight";
    let is = async |value| comes_to(&prometheus, gauge, &[of_route(gauge, value)]).await;
    is(0.0).await?;
    // Longer than anybody waits; it is given up when it was seen.
    let slow = Request::get("/").header("x-value", "1").header("x-reply", "pause=600000; head");
    let under_way = async { envoy.send("in", &slow).await.map(|_| ()) };
    tokio::select! {
        ended = under_way => panic!("it ended: {ended:?}"),
        seen = is(1.0) => seen?,
    }
    is(0.0).await
}

#[tokio::test]
async fn rules_are_evaluated_and_wrong_ones_refused() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = traced(&upstream).await?;
    requests(&envoy, 3, None).await?;
    let dir = tempfile::tempdir()?;
    let (good, wrong) = (dir.path().join("good.yaml"), dir.path().join("wrong.yaml"));
    let rules = |expression: &str| {
        json!({ "groups": [{ "name": "test", "rules": [
            { "record": "outcome:requests:sum", "expr": expression },
            { "alert": "ManyGenerated", "expr": "outcome:requests:sum{outcome=\"generated\"} > 2", "labels": { "severity": "page" } },
            { "alert": "TooMany", "expr": "outcome:requests:sum > 3" },
        ] }] })
        .to_string()
    };
    std::fs::write(&good, rules("sum by (outcome) (meshfilter_trace_requests_total)"))?;
    std::fs::write(&wrong, rules("sum by outcome"))?;
    let report = promtool(&["check", "rules", good.to_str().unwrap()], "").await?;
    assert!(report.code == Some(0) && report.said.contains("3 rules found"), "{report:?}");

    let prometheus = Prometheus::builder().envoy("mesh", &envoy).rules(&good).start().await?;
    let recorded = prometheus.wait_for("outcome:requests:sum", |samples| !samples.is_empty()).await?;
    assert!(matches!(recorded.as_slice(), [one] if one.value == 3.0 && one.labels["outcome"] == "generated"));
    prometheus.wait_for("ALERTS{alertstate=\"firing\"}", |alerts| !alerts.is_empty()).await?;
    let alerts = prometheus.query("ALERTS").await?;
    let names: Vec<&str> = alerts.iter().map(|alert| alert.labels["alertname"].as_str()).collect();
    assert_eq!((names.as_slice(), alerts[0].labels["severity"].as_str()), (["ManyGenerated"].as_slice(), "page"));

    let refused = Prometheus::builder().rules(&wrong).start().await.unwrap_err().to_string();
    assert!(refused.contains("Prometheus has ended") && refused.contains("parse error"), "{refused}");
    let missing = Prometheus::builder().rules(dir.path().join("none.yaml")).start().await.unwrap_err().to_string();
    assert!(missing.contains("none.yaml"), "{missing}");
    Ok(())
}

#[tokio::test]
async fn it_is_the_pinned_one_says_what_is_wrong_and_ends_with_its_value() -> Result<()> {
    let pin = root().join(format!("test-harness/debian/prometheus/{}.txt", prometheus::VERSION));
    assert!(pin.is_file(), "no {}: `make prometheus` installs another version", pin.display());
    let prometheus = Prometheus::builder().start().await?;
    if std::env::var_os("PROMETHEUS").is_none_or(|directory| directory.is_empty()) {
        let log = prometheus.log();
        assert!(log.contains(&format!("version={}", prometheus::VERSION)), "{log}");
    }
    for (wrong, why) in [("sum by", "parse error"), ("up[1m]", "neither a number nor one for each series")] {
        let said = format!("{:#}", prometheus.query(wrong).await.unwrap_err());
        assert!(said.contains(why) && said.contains(wrong), "{said}");
    }
    assert_eq!(prometheus.query("no_such").await?, []);
    let process = format!("/proc/{}/cmdline", prometheus.pid());
    let command = std::fs::read_to_string(&process)?;
    let home = command.split('\0').find(|argument| argument.ends_with("/data")).unwrap().to_owned();
    assert!(Path::new(&home).is_dir());
    drop(prometheus);
    assert!(!Path::new(&process).exists() && !Path::new(&home).exists());
    Ok(())
}
