//! The dashboard for Grafana: what its file says, asked as Grafana asks it, and a stage on which all of it happens.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kit::Filter;
use serde_json::{Value, json};
use suite::Suite;

use crate::{
    Cluster, Envoy, HttpFilter, Listener, PATIENCE, Prometheus, Request, Route, Thresholds, Upstream, eventually,
    module, root,
};

/// `examples/grafana/mesh-filters.json`.
#[derive(Clone, Debug)]
pub struct Dashboard(pub Value);

/// A panel, without rows.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What stands over it.
    pub title: String,
    /// Expressions with the dashboard's variables, and how their series are called.
    pub queries: Vec<(String, String)>,
}

impl Dashboard {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is not there, or no JSON.
    pub fn read() -> Result<Self> {
        let path = root().join("examples/grafana/mesh-filters.json");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(Self(serde_json::from_str(&text)?))
    }

    /// Its panels, in their order.
    #[must_use]
    pub fn panels(&self) -> Vec<Panel> {
        let all = self.0["panels"].as_array().map(Vec::as_slice).unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let query = |target: &Value| (text(&target["expr"]), text(&target["legendFormat"]));
        let panel = |panel: &Value| {
            let queries = panel["targets"].as_array()?.iter().map(query).collect();
            Some(Panel { title: text(&panel["title"]), queries })
        };
        all.iter().filter_map(panel).collect()
    }

    /// All that the file says of the panel of this title.
    #[must_use]
    pub fn panel(&self, title: &str) -> Option<&Value> {
        self.0["panels"].as_array()?.iter().find(|panel| panel["title"] == title)
    }

    /// Its variables that ask for values of a label, in their order: the name, and the query.
    #[must_use]
    pub fn variables(&self) -> Vec<(String, String)> {
        let all = self.0["templating"]["list"].as_array().map(Vec::as_slice).unwrap_or_default();
        let asks = all.iter().filter(|variable| variable["type"] == "query");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        asks.map(|variable| (text(&variable["name"]), text(&variable["query"]["query"]))).collect()
    }

    /// Every variable at `All`.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, String> {
        self.variables().into_iter().map(|(name, _)| (name, ".*".to_owned())).collect()
    }
}

/// The expression, with these in place of variables, as Grafana replaces them: the longest name first.
///
/// # Errors
/// When a variable is left.
pub fn filled(expression: &str, values: &BTreeMap<String, String>, interval: &str) -> Result<String> {
    let own = [("__rate_interval", interval), ("__interval", interval), ("__range", "15m")];
    let mut all: Vec<(&str, &str)> = values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    all.extend(own);
    all.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let mut text = expression.to_owned();
    for (name, value) in all {
        text = text.replace(&format!("${{{name}}}"), value).replace(&format!("${name}"), value);
    }
    // `$1` is of a replacement in PromQL.
    let left = text.split('$').skip(1).find(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    ensure!(left.is_none(), "{expression}: no variable ${}", left.unwrap_or_default());
    Ok(text)
}

/// Some chosen values of a variable, as Grafana writes them into a regular expression.
#[must_use]
pub fn chosen(values: &[String]) -> String {
    let escape = |value: &String| -> String {
        let one = |c: char| match c {
            '\\' => r"\\\\".to_owned(),
            c if "^$*+?.()|[]{}".contains(c) => format!(r"\\{c}"),
            c => c.to_string(),
        };
        value.chars().map(one).collect()
    };
    format!("({})", values.iter().map(escape).collect::<Vec<_>>().join("|"))
}

/// The document of the source: a breaker on slow answers, one on errors, one in dry run, and one of a resource too many.
#[must_use]
pub fn rules(slow: &str, retry: &str) -> String {
    let rule = |id: &str, resource: &str, strategy: &str, more: Value| {
        let own = json!({
            "id": id, "resource": resource, "strategy": strategy, "threshold": 0.5, "min_requests": 10, "interval": "4s",
            "retry_timeout": retry,
        });
        crate::config::merged(own, more)
    };
    json!({ "rules": [
        rule("slow", "payment", "slow_ratio", json!({ "max_allowed_rt": slow })),
        rule("errors", "sick", "error_ratio", json!({ "min_requests": 2, "interval": "1s" })),
        rule("trial", "shop", "error_ratio", json!({ "mode": "dry_run", "threshold": 0.1, "min_requests": 1 })),
        rule("spare", "other", "error_count", json!({ "threshold": 100 })),
    ] })
    .to_string()
}

/// An Envoy with the suite, an upstream, a source of thresholds, and a Prometheus that scrapes it and has the rules of
/// `examples/prometheus`. It has the listeners
///
/// - `edge`: the suite between `latency`'s outer and inner, to `shop`, `/pay` to `payment`, `/sick` to `sick`, `/dead` to
///   nobody, `/other` beyond `max_resources`;
/// - `traced`: with a tracer of Envoy's own; `discovered`: with a filter that is delivered on its own; `trap`: with a
///   module that traps when told; `tcp`: of connections.
#[derive(Debug)]
pub struct Stage {
    /// The proxy.
    pub envoy: Envoy,
    /// What scrapes it.
    pub prometheus: Prometheus,
    /// Where its breakers' rules come from.
    pub thresholds: Thresholds,
    /// What is behind it. It answers as requests say.
    pub upstream: Upstream,
}

/// The filter that stands in the listener `discovered`, of this configuration.
///
/// # Errors
/// When its module is not built.
pub fn discovered(configuration: Value) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm("delivered", module("trace-id")?).config(configuration).discovered())
}

/// The listeners, with trace-id of this configuration in the one with a tracer.
///
/// # Errors
/// When a module is not built.
pub fn listeners(trace_id: Value) -> Result<Vec<Listener>> {
    let labels = json!(["direction", "protocol", "method", "code", "grpc_status", "failure", "route", "cluster"]);
    let suite = HttpFilter::wasm("suite", module("suite")?).config(json!({
        "trace_id": {},
        "latency": {
            "role": "outer", "labels": labels, "bytes": true, "streams": ["/stream"], "apdex": "100ms",
            "slo": [{ "name": "fast", "within": "100ms" }, { "name": "usable", "within": "1s" }],
        },
        "log_scrub": { "outputs": { "request_body": true } },
        "circuit_breaker": {
            "source": { "cluster": "thresholds", "path": "/rules", "interval": "200ms" }, "max_resources": 3,
        },
    }));
    let inner = HttpFilter::wasm("inner", module("latency")?).config(json!({ "role": "inner" }));
    let route = |path: &str, cluster: &str| Route::cluster(cluster).prefix(path).merge(json!({ "name": path }));
    let mut edge = Listener::http("edge").merge(json!({ "traffic_direction": "INBOUND" })).filter(suite).filter(inner);
    for (path, cluster) in [
        ("/pay", "payment"),
        ("/sick", "sick"),
        ("/dead", "dead"),
        ("/other", "other"),
        ("/stream", "shop"),
        ("/", "shop"),
    ] {
        edge = edge.route(route(path, cluster));
    }
    let tracer = json!({
        "provider": { "name": "envoy.tracers.opentelemetry", "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "service_name": "stage",
            "http_service": { "http_uri": { "uri": "http://shop/v1/traces", "cluster": "shop", "timeout": "1s" } },
        } },
        "random_sampling": { "value": 100 },
    });
    let traced = Listener::http("traced").tracing(tracer).route(Route::cluster("shop"));
    let traced = traced.filter(HttpFilter::wasm("trace-id", module("trace-id")?).config(trace_id));
    let delivered = Listener::http("discovered").filter(discovered(json!({}))?).route(Route::cluster("shop"));
    let trap = HttpFilter::wasm("trap", module("trap")?).failure_policy("FAIL_RELOAD");
    let trap = Listener::http("trap").filter(trap).route(Route::cluster("shop"));
    let proxy = json!({ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "tcp", "cluster": "shop",
    } });
    let of_connections = HttpFilter::wasm("latency", module("latency")?)
        .config(json!({ "labels": labels, "bytes": true, "unit": "us" }));
    let tcp = Listener::tcp("tcp", [of_connections.of_connections(), proxy]);
    Ok(vec![edge, traced, delivered, trap, tcp])
}

/// How often the stage is scraped.
pub const SCRAPES: Duration = Duration::from_millis(500);

/// Over what rates are taken. Grafana takes four times as long as from scrape to scrape; where all processors are busy
/// some scrapes come too late, so it is more here.
pub const RATE_INTERVAL: &str = "5s";

impl Stage {
    /// Starts all of it; returns when the proxy was scraped once.
    ///
    /// # Errors
    /// When a part of it does not start.
    pub async fn start(retry: &str) -> Result<Self> {
        let upstream = Upstream::start().await?;
        let thresholds = Thresholds::start(rules("150ms", retry)).await?;
        let dead = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        let mut builder = Envoy::builder().cluster("thresholds", thresholds.addr()).cluster("dead", dead);
        for cluster in ["shop", "payment", "sick", "other"] {
            builder = builder.add_cluster(Cluster::new(cluster, upstream.addr()));
        }
        let mut labels: Vec<&str> = Suite::metrics().iter().flat_map(|metric| metric.labels).copied().collect();
        labels.sort_unstable();
        labels.dedup();
        for label in labels {
            builder = builder.stats_tag(label, &kit::tag_regex(label));
        }
        let buckets = [5, 10, 20, 30, 40, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 2000, 5000];
        builder = builder
            .histogram_buckets(json!({ "match": { "prefix": "wasmcustom.meshfilter_request_" }, "buckets": buckets }));
        for listener in listeners(json!({}))? {
            builder = builder.listener(listener);
        }
        let envoy = builder.start().await?;
        let scrape = json!({
            "job_name": "mesh", "metrics_path": "/stats/prometheus",
            "static_configs": [{
                "targets": [envoy.admin_addr().to_string()], "labels": { "namespace": "shop", "app": "edge" },
            }],
        });
        let rules = root().join("examples/prometheus/latency-rules.yaml");
        let prometheus = Prometheus::builder().scrape(scrape, 1).rules(rules).interval(SCRAPES).start().await?;
        let stage = Self { envoy, prometheus, thresholds, upstream };
        stage.protected().await?;
        Ok(stage)
    }

    /// Waits until what `max_resources` leaves room for has its breakers, and nothing else.
    async fn protected(&self) -> Result<()> {
        eventually("a breaker for each", PATIENCE, async || {
            let mut missing = Vec::new();
            for (path, resource) in [("/", "shop"), ("/pay", "payment"), ("/sick", "sick")] {
                self.send("edge", Request::get(path)).await;
                let metrics = self.envoy.prometheus().await.map_err(|error| format!("{error:#}"))?;
                if metrics.value("meshfilter_circuit_state", &[("resource", resource)]).is_none() {
                    missing.push(resource);
                }
            }
            if missing.is_empty() { Ok(()) } else { Err(format!("none for {missing:?}")) }
        })
        .await
    }

    /// Sends it there; what comes of it is for the metrics to say.
    pub async fn send(&self, listener: &str, request: Request) {
        let _ = self.envoy.send(listener, &request).await;
        // It keeps each.
        drop(self.upstream.take());
    }
}
