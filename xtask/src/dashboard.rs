//! The dashboard for Grafana, described here and written to `examples/grafana/mesh-filters.json`.
//!
//! An expression says `name{@}` or `name{@,label="value"}`: what the dashboard's variables select stands in place of the
//! `@`. Every name in it must be one of the filters' metrics or of the recorded rules, and every metric must be in some
//! panel: so neither a renamed metric nor a new one is forgotten here. That the queries return data is tested on a real
//! Prometheus, in `test-harness/tests/dashboard.rs`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use kit::{Filter as _, Metric, MetricKind};
use serde_json::{Value, json};
use suite::Suite;

use crate::docs;

/// How wide the page is, and how high a panel.
const COLUMNS: u32 = 24;
const HEIGHT: u32 = 8;

/// The dashboard and its place.
pub(crate) fn page() -> Result<(PathBuf, String)> {
    let rules = fs::read_to_string(docs::root()?.join("examples/prometheus/latency-rules.yaml"))?;
    let recorded = rules.lines().filter_map(|line| Some(line.trim().strip_prefix("- record: ")?.to_owned())).collect();
    let names = Names { metrics: Suite::metrics(), recorded };
    let rows = rows();
    names.check(&rows)?;
    let json = serde_json::to_string_pretty(&dashboard(&rows, &names)?)?;
    Ok((docs::root()?.join("examples/grafana/mesh-filters.json"), format!("{json}\n")))
}

/// A group of panels.
struct Row {
    title: &'static str,
    panels: Vec<Panel>,
}

/// One picture. What it shows and what to do about it is in `about`.
struct Panel {
    title: &'static str,
    about: &'static str,
    kind: Kind,
    unit: &'static str,
    width: u32,
    queries: Vec<Query>,
    /// Series by the beginning of their name, and their colour.
    colours: Vec<(&'static str, &'static str)>,
    /// From which value on it is of which colour; a line at each.
    limits: Vec<(f64, &'static str)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Lines,
    /// Of what is a hundred times as much at one time as at another, and 0 at most.
    Logarithms,
    /// One on the other.
    Stack,
    /// What keeps its value until it has another.
    Steps,
    /// How often something seldom happened.
    Bars,
    /// States of breakers.
    States,
    /// The last value, large.
    Number,
}

struct Query {
    expression: String,
    legend: &'static str,
}

fn query(legend: &'static str, expression: impl Into<String>) -> Query {
    Query { expression: expression.into(), legend }
}

impl Panel {
    fn new(
        title: &'static str,
        (kind, unit, width): (Kind, &'static str, u32),
        about: &'static str,
        queries: impl Into<Vec<Query>>,
    ) -> Self {
        Self { title, about, kind, unit, width, queries: queries.into(), colours: Vec::new(), limits: Vec::new() }
    }

    fn colours(self, colours: impl Into<Vec<(&'static str, &'static str)>>) -> Self {
        Self { colours: colours.into(), ..self }
    }

    fn limits(self, limits: impl Into<Vec<(f64, &'static str)>>) -> Self {
        Self { limits: limits.into(), ..self }
    }
}

/// By second, over all proxies that are selected.
fn rate(metric: &str, by: &str) -> String {
    let by = if by.is_empty() { String::new() } else { format!(" by ({by})") };
    format!("sum{by} (rate({metric}{{@}}[$__rate_interval]))")
}

/// By how much a counter grew. Not `increase`: that does not see a series begin, and the first opening of a breaker is what
/// begins its series.
fn growth(metric: &str, by: &str) -> String {
    format!(
        "sum by ({by}) (clamp_min({metric}{{@}} - ({metric}{{@}} offset $__rate_interval or 0 * {metric}{{@}}), 0))"
    )
}

/// A quantile of a histogram that is in milliseconds or in microseconds, in seconds. `>= 0` is what NaN is not.
fn quantile(quantile: &str, metric: &str) -> String {
    let of = |unit: &str| {
        let buckets = format!("rate({metric}_{unit}_bucket{{@}}[$__rate_interval])");
        format!("(histogram_quantile({quantile}, sum by (le) ({buckets})) >= 0)")
    };
    format!("{} / 1e3 or {} / 1e6", of("millis"), of("micros"))
}

/// The mean of one, likewise. Where proxies differ in their unit it is of those with milliseconds, as in the recorded rules.
fn mean(metric: &str) -> String {
    let of = |unit: &str| {
        let rate = |end: &str| format!("sum(rate({metric}_{unit}_{end}{{@}}[$__rate_interval]))");
        format!("({} / {} >= 0)", rate("sum"), rate("count"))
    };
    format!("({} / 1e3 or {} / 1e6)", of("millis"), of("micros"))
}

/// What Envoy counts for each plugin, whose name it puts into the metric's: here it is a label. A name alone would not
/// do, for a rate drops it.
fn of_plugins(before: &str, after: &str) -> String {
    let all = format!("{{@,__name__=~\"{before}.+{after}\"}}");
    let labelled = format!("label_replace({all}, \"plugin\", \"$1\", \"__name__\", \"{before}(.+){after}\")");
    format!("sum by (plugin) (increase({labelled}[$__rate_interval:]))")
}

const GREEN: &str = "green";
const RED: &str = "red";
const YELLOW: &str = "yellow";
const ORANGE: &str = "orange";
const BLUE: &str = "blue";
const PURPLE: &str = "purple";
const GREY: &str = "#8e8e8e";

fn rows() -> Vec<Row> {
    vec![traffic(), latency(), objectives(), breakers(), scrubbing(), traces(), health()]
}

fn traffic() -> Row {
    use Kind::{Lines, Stack};
    let panels = vec![
        Panel::new(
            "Requests by class",
            (Stack, "reqps", 12),
            "Requests and streams that ended, by their status. Needs the label `code`. Red that grows: look at failures by \
             reason beside it, and at the breakers, whose rejections are among them.",
            [query("{{code}}", rate("meshfilter_requests_finished_total", "code"))],
        )
        .colours([("1", GREY), ("2", GREEN), ("3", BLUE), ("4", ORANGE), ("5", RED)]),
        Panel::new(
            "Failures by reason",
            (Stack, "reqps", 6),
            "Why requests failed. Needs the label `failure`. `timeout` and `upstream_reset` are the upstream's, \
             `no_upstream` is one that cannot be reached, `client_gone` a caller that did not wait, `local` a filter's or the \
             proxy's own answer, a breaker's rejection among them.",
            [query(
                "{{failure}}",
                "sum by (failure) (rate(meshfilter_requests_finished_total{@,failure!=\"\"}[$__rate_interval]))",
            )],
        ),
        Panel::new(
            "In flight",
            (Lines, "short", 6),
            "Requests, streams and TCP connections that began and have not ended. It rises before anything else when an \
             upstream gets slow. What never falls again are streams, or requests without a timeout.",
            [
                query("requests", "sum(meshfilter_requests_in_flight{@})"),
                query("connections", "sum(meshfilter_connections_open{@}) or vector(0)"),
            ],
        ),
        Panel::new(
            "Begun and ended",
            (Lines, "reqps", 8),
            "Requests and streams. Where more begin than end, they pile up: see in flight.",
            [
                query("begun", rate("meshfilter_requests_started_total", "")),
                query("ended", rate("meshfilter_requests_finished_total", "")),
            ],
        ),
        Panel::new(
            "Bytes",
            (Lines, "Bps", 8),
            "From and to clients, headers included. Needs `bytes: true`.",
            [
                query("from clients", rate("meshfilter_request_bytes_total", "")),
                query("to clients", rate("meshfilter_response_bytes_total", "")),
            ],
        ),
        Panel::new(
            "TCP connections",
            (Lines, "cps", 8),
            "Where the filter measures TCP. `ended` is by reason of failure, where the label `failure` is chosen.",
            [
                query("begun", rate("meshfilter_connections_started_total", "")),
                query("ended {{failure}}", rate("meshfilter_connections_finished_total", "failure")),
            ],
        ),
    ];
    Row { title: "Traffic", panels }
}

fn latency() -> Row {
    use Kind::{Lines, Stack};
    let (duration, first_byte) = ("meshfilter_request_duration", "meshfilter_request_first_byte");
    let filters = "(sum(rate(meshfilter_filters_duration_micros_sum{@}[$__rate_interval])) \
                   / sum(rate(meshfilter_filters_duration_micros_count{@}[$__rate_interval])) >= 0) / 1e6";
    let three = |metric: &str| {
        [("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99")].map(|(name, part)| query(name, quantile(part, metric)))
    };
    let [body, head] = [mean(duration), mean(first_byte)];
    let panels = vec![
        Panel::new(
            "Where the time goes",
            (Stack, "s", 12),
            "The mean request in parts. Filters: those between role `outer` and role `inner`; without these roles it is 0. \
             Waiting: until the response's headers, nearly all of it the upstream. Body: from there to the end, slow readers \
             included. Streams count in the first two and not in the third. Here one sees which part grew; then look at its \
             percentiles.",
            [
                query("filters", format!("({filters}) or 0 * {head}")),
                query("waiting", format!("clamp_min({head} - (({filters}) or 0 * {head}), 0)")),
                query("body", format!("clamp_min({body} - {head}, 0)")),
            ],
        )
        .colours([("filters", PURPLE), ("waiting", ORANGE), ("body", BLUE)]),
        Panel::new(
            "Whole requests",
            (Lines, "s", 6),
            "Percentiles from a request's headers to its end, without streams. As exact as the proxy's buckets are.",
            three(duration),
        )
        .colours([("p50", GREEN), ("p95", ORANGE), ("p99", RED)]),
        Panel::new(
            "To the first byte",
            (Lines, "s", 6),
            "Percentiles from a request's headers to its response's headers, streams included. Where this is as high as the \
             whole, the upstream thinks; where it is lower, it sends slowly, or callers read slowly.",
            three(first_byte),
        )
        .colours([("p50", GREEN), ("p95", ORANGE), ("p99", RED)]),
        Panel::new(
            "p95 by route",
            (Lines, "s", 8),
            "The ten slowest routes, over 5 minutes: from the recorded rules, so only the variables job, namespace and app \
             select here. Needs the label `route`.",
            [query(
                "{{route}} {{direction}}",
                "topk(10, max by (route, direction) (route:meshfilter_request_duration_seconds:p95_rate5m{@}))",
            )],
        ),
        Panel::new(
            "Failing share by route",
            (Lines, "percentunit", 8),
            "The ten routes with the largest share of failures, over 5 minutes, from the recorded rules.",
            [query(
                "{{route}} {{direction}}",
                "topk(10, max by (route, direction) (route:meshfilter_request_failures_per_requests:ratio_rate5m{@}))",
            )],
        ),
        Panel::new(
            "The filters' own cost",
            (Lines, "s", 8),
            "What a request and its response's headers take through the filters between role `outer` and role `inner`. As \
             exact as a bucket: the proxy's own begin at 0.5 µs. When it grows, look at what configuration was pushed.",
            [("p50", "0.5"), ("p99", "0.99")].map(|(name, part)| {
                let buckets = rate("meshfilter_filters_duration_micros_bucket", "le");
                query(name, format!("(histogram_quantile({part}, {buckets}) >= 0) / 1e6"))
            }),
        ),
        Panel::new(
            "How long streams lived",
            (Lines, "s", 8),
            "WebSockets, server-sent events, gRPC streams, and what is told to be one.",
            three("meshfilter_stream_duration"),
        ),
        Panel::new(
            "How long TCP connections lived",
            (Lines, "s", 8),
            "Short ones in numbers: a client without a pool, or an upstream that refuses.",
            three("meshfilter_connection_duration"),
        ),
        Panel::new(
            "Apdex",
            (Lines, "percentunit", 8),
            "From 0 %, all are frustrated, to 100 %, all are satisfied, over 5 minutes, from the recorded rules; and the \
             shares now. Needs `apdex`.",
            [
                query("apdex {{app}}", "max by (app) (app:meshfilter_apdex:ratio_rate5m{@})"),
                query(
                    "{{feeling}}",
                    format!(
                        "{} / ignoring (feeling) group_left () {}",
                        rate("meshfilter_apdex_requests_total", "feeling"),
                        rate("meshfilter_apdex_requests_total", "")
                    ),
                ),
            ],
        )
        .colours([("apdex", BLUE), ("satisfied", GREEN), ("tolerating", YELLOW), ("frustrated", RED)]),
    ];
    Row { title: "Latency breakdown", panels }
}

fn objectives() -> Row {
    use Kind::{Lines, Logarithms, Number};
    let errors = |window: &str| format!("objective:meshfilter_slo_errors_per_requests:ratio_rate{window}{{@}}");
    let budget = "on (objective) group_left () objective:meshfilter_slo_error_budget:ratio";
    let burn = |window: &str| format!("max by (objective) ({} / {budget})", errors(window));
    let panels = vec![
        Panel::new(
            "Burn of the error budget",
            (Logarithms, "suffix:×", 12),
            "How many times too fast the budget burns: at 1 it lasts just the 30 days. Both windows over 14.4: an alert that \
             gets somebody up. 5m fell again and 1h has not: it is over. Needs `slo`, a budget for each objective in \
             latency-rules.yaml, and these rules loaded.",
            [query("{{objective}} 5m", burn("5m")), query("{{objective}} 1h", burn("1h"))],
        )
        .limits([(1.0, YELLOW), (6.0, ORANGE), (14.4, RED)]),
        Panel::new(
            "Slow burn",
            (Logarithms, "suffix:×", 6),
            "The same over 6 hours, and 3 days. Over 6 in 6 hours somebody gets up, over 1 in 3 days somebody looks in the \
             morning.",
            [query("{{objective}} 6h", burn("6h")), query("{{objective}} 3d", burn("3d"))],
        )
        .limits([(1.0, YELLOW), (6.0, RED)]),
        Panel::new(
            "Alerts that fire",
            (Number, "short", 6),
            "Of latency-rules.yaml: burns, objectives without a budget, and series over the limit.",
            [query("alerts", "count(ALERTS{@,alertname=~\"MeshFilter.+\",alertstate=\"firing\"}) or vector(0)")],
        )
        .limits([(1.0, RED)]),
        Panel::new(
            "Good requests",
            (Lines, "percentunit", 12),
            "The share that did not fail and was within the objective's time.",
            [query(
                "{{objective}}",
                format!(
                    "({} or 0 * {all}) / {all}",
                    rate("meshfilter_slo_good_requests_total", "objective"),
                    all = rate("meshfilter_slo_requests_total", "objective")
                ),
            )],
        ),
        Panel::new(
            "Budget burnt in 3 days",
            (Number, "percentunit", 12),
            "What part of 30 days' budget went in the last 3. A tenth would be as it should be; from one half on, changes \
             should wait.",
            [query("{{objective}}", format!("max by (objective) ({} / {budget}) * 3 / 30", errors("3d")))],
        )
        .limits([(0.1, YELLOW), (0.5, RED)]),
    ];
    Row { title: "SLO burn", panels }
}

fn breakers() -> Row {
    use Kind::{Bars, Lines, Stack, States, Steps};
    let of = |name: &str| rate(&format!("meshfilter_circuit_{name}_total"), "");
    let panels = vec![
        Panel::new(
            "Breakers over time",
            (States, "short", 12),
            "The worst state among the proxies that are selected, by resource and rule. Each proxy has breakers of its own: \
             how many of them are open says the panel beside it.",
            [query("{{resource}} · {{rule}}", "max by (resource, rule) (meshfilter_circuit_state{@})")],
        ),
        Panel::new(
            "Proxies with it open",
            (Lines, "short", 6),
            "How many proxies have the breaker open. All: the upstream is sick. One: that proxy, or its way to the upstream.",
            [query(
                "{{resource}} · {{rule}}",
                "sum by (resource, rule) (meshfilter_circuit_state{@} == bool 2)",
            )],
        ),
        Panel::new(
            "Openings",
            (Bars, "short", 6),
            "How often a breaker opened in the rate interval before each point: with scrapes every 15 s and a range of some \
             hours, the last minute. Again and again: its retry_timeout is shorter than the upstream needs.",
            [query(
                "{{resource}} · {{rule}}",
                growth("meshfilter_circuit_transitions_total", "resource, rule, to").replace("{@}", "{@,to=\"open\"}"),
            )],
        ),
        Panel::new(
            "Decisions",
            (Stack, "reqps", 12),
            "What became of requests that a rule looks at. A rejected one did not go upstream, or went to the fallback; one \
             that a dry run would have rejected is among the allowed, and shows what enforcing would cost.",
            [
                query("allowed", of("allowed")),
                query("probes", format!("{} or vector(0)", of("probes"))),
                query("rejected", format!("{} or vector(0)", of("rejected"))),
                query("dry run", format!("{} or vector(0)", of("dry_run_rejected"))),
            ],
        )
        .colours([("allowed", GREEN), ("probes", YELLOW), ("rejected", RED), ("dry run", PURPLE)]),
        Panel::new(
            "Thresholds' version",
            (Steps, "short", 6),
            "How often a proxy accepted other rules from its source; 0 while those of its configuration hold. Proxies count \
             by themselves: those that started later have lower ones.",
            [
                query("{{plugin}} highest", "max by (plugin) (meshfilter_circuit_rules_version{@})"),
                query("{{plugin}} lowest", "min by (plugin) (meshfilter_circuit_rules_version{@})"),
            ],
        ),
        Panel::new(
            "Thresholds' age",
            (Lines, "s", 6),
            "Since the source last answered, in the proxy where it is longest ago. It should stay under twice the `interval` \
             of the source. While it rises, the rules that were last accepted hold.",
            [query("{{plugin}}", "max by (plugin) (meshfilter_circuit_rules_age_seconds{@})")],
        ),
        Panel::new(
            "Answers of the source",
            (Bars, "short", 12),
            "Questions to the source of rules, by result, in the rate interval before each point. `refused`: the document is \
             wrong, and the proxy's log says where. `unreachable`: the cluster, the path or the server.",
            [query("{{result}}", growth("meshfilter_circuit_updates_total", "result"))],
        )
        .colours([("applied", BLUE), ("unchanged", GREEN), ("refused", RED), ("unreachable", ORANGE)]),
        Panel::new(
            "Without a breaker",
            (Lines, "reqps", 6),
            "Requests to resources beyond `max_resources`. Above 0: raise it, or call requests by fewer names.",
            [query("{{plugin}}", format!("{} or vector(0)", rate("meshfilter_circuit_unprotected_total", "plugin")))],
        ),
        Panel::new(
            "Changes that workers follow",
            (Lines, "ops", 6),
            "Of state, rules and workers. A steady high number without openings: report it.",
            [query("{{plugin}}", rate("meshfilter_circuit_changes_total", "plugin"))],
        ),
    ];
    Row { title: "Circuit breaker", panels }
}

fn scrubbing() -> Row {
    use Kind::{Bars, Lines, Stack};
    let panels = vec![
        Panel::new(
            "Findings by rule",
            (Stack, "ops", 8),
            "Values that were found and covered. A new colour after a release: somebody began to send what does not belong \
             there.",
            [query("{{rule}}", rate("meshfilter_scrub_findings_total", "rule"))],
        ),
        Panel::new(
            "Findings by place",
            (Stack, "ops", 4),
            "Where they were. In paths and queries they are also in other people's logs.",
            [query("{{place}}", rate("meshfilter_scrub_findings_total", "place"))],
        ),
        Panel::new(
            "Bytes looked at",
            (Lines, "Bps", 4),
            "What the filter's work depends on.",
            [query("bytes", rate("meshfilter_scrub_bytes_total", ""))],
        ),
        Panel::new(
            "What could not be looked at",
            (Bars, "short", 8),
            "Values and bodies, by reason, in the rate interval before each point. They are left out of the copies, and so of \
             logs. `compressed` and `type` say what upstreams and clients send; `large` and `long` are limits to raise.",
            [query("{{reason}}", format!("{} or vector(0)", growth("meshfilter_scrub_unscanned_total", "reason")))],
        ),
    ];
    Row { title: "Log-scrub", panels }
}

fn traces() -> Row {
    use Kind::{Lines, Stack};
    let panels = vec![
        Panel::new(
            "Where contexts come from",
            (Stack, "reqps", 8),
            "`continued`: the caller sent one. `generated`: none came, or none that was valid. Inside the mesh nearly all \
             should be continued: an application that does not hand headers on is what breaks traces.",
            [query("{{outcome}}", rate("meshfilter_trace_requests_total", "outcome"))],
        )
        .colours([("continued", GREEN), ("generated", BLUE)]),
        Panel::new(
            "By format",
            (Stack, "reqps", 4),
            "In which format contexts came; `none` where none did.",
            [query("{{format}}", rate("meshfilter_trace_requests_total", "format"))],
        ),
        Panel::new(
            "Contexts that were refused",
            (Lines, "reqps", 8),
            "By format and reason. A caller with a broken library, or somebody who tries.",
            [query(
                "{{format}} · {{reason}}",
                format!("{} or vector(0)", rate("meshfilter_trace_invalid_total", "format, reason")),
            )],
        ),
        Panel::new(
            "Replaced by the proxy's tracer",
            (Lines, "reqps", 4),
            "Requests that went upstream with a context of the proxy's own tracer. The logged id is that one then.",
            [query("{{format}}", format!("{} or vector(0)", rate("meshfilter_trace_replaced_total", "format")))],
        ),
    ];
    Row { title: "Trace-id", panels }
}

fn health() -> Row {
    use Kind::{Bars, Lines, Number};
    let grew = |metric: &str| format!("sum(increase({metric}{{@}}[$__rate_interval]))");
    let panels = vec![
        Panel::new(
            "Proxies",
            (Number, "short", 4),
            "Those that have a wasm VM, of all that are selected. Fewer than there should be: they did not load the module, or \
             are not scraped.",
            [query("proxies", "count(sum by (job, instance) (envoy_wasm_envoy_wasm_runtime_v8_active{@}) > 0)")],
        ),
        Panel::new(
            "VMs",
            (Lines, "short", 6),
            "Running, and how many were started per second. A module has one in each worker, one in the main thread and one \
             as the base. Starts without a push: they trap.",
            [
                query("running", "sum(envoy_wasm_envoy_wasm_runtime_v8_active{@})"),
                query("started per second", rate("envoy_wasm_envoy_wasm_runtime_v8_created", "")),
            ],
        ),
        Panel::new(
            "Traps: VMs that were replaced",
            (Bars, "short", 7),
            "With `failure_policy: FAIL_RELOAD` a trap costs the requests that are in the VM, and the next one has a new VM. \
             Any is a bug: the proxy's log has the panic. `not yet` waits after a trap that came too soon after another.",
            [
                query("{{plugin}}", of_plugins("envoy_wasm_", "_vm_reload_success")),
                query("{{plugin}}, failed", of_plugins("envoy_wasm_", "_vm_reload_failure")),
                query("{{plugin}}, not yet", of_plugins("envoy_wasm_", "_vm_reload_backoff")),
            ],
        ),
        Panel::new(
            "Configurations that were refused",
            (Bars, "short", 7),
            "The old one goes on. The proxy's log says at which field, and what would be right. Of listeners, and of filters \
             that are delivered on their own (a proxy's extension_config_discovery, where its statistics are kept).",
            [
                query("listeners", format!("{} or vector(0)", grew("envoy_listener_manager_lds_update_rejected"))),
                query(
                    "{{plugin}}",
                    format!("{} or vector(0)", of_plugins("envoy_extension_config_discovery_http_filter_", "_update_rejected")),
                ),
            ],
        ),
        Panel::new(
            "Modules fetched by the proxy",
            (Bars, "short", 12),
            "Where Envoy itself fetches modules over HTTP. In Istio the agent does, and this stays at 0: see the agent's own \
             metrics. A module that cannot be fetched is a filter that is not there.",
            [
                query("fetched", grew("envoy_wasm_remote_load_fetch_successes")),
                query("failed", grew("envoy_wasm_remote_load_fetch_failures")),
            ],
        )
        .colours([("fetched", GREEN), ("failed", RED)]),
        Panel::new(
            "Series over the limit",
            (Lines, "short", 12),
            "Series that say `overflow`: a filter has more series than its max_series allows, and what came later is counted \
             without its labels. Choose fewer labels, or raise the limit.",
            [query(
                "series",
                "count({@,__name__=~\"meshfilter_.+\",__name__!~\".+_bucket\",direction=\"overflow\"} \
                 or {@,__name__=~\"meshfilter_.+\",objective=\"overflow\"} or {@,__name__=~\"meshfilter_.+\",rule=\"overflow\"} \
                 or {@,__name__=~\"meshfilter_.+\",format=\"overflow\"}) or vector(0)",
            )],
        )
        .limits([(1.0, RED)]),
    ];
    Row { title: "Filter health", panels }
}

/// What expressions may speak of.
struct Names {
    metrics: Vec<&'static Metric>,
    recorded: Vec<String>,
}

impl Names {
    /// Whether all that expressions name is there, and all metrics are in an expression.
    fn check(&self, rows: &[Row]) -> Result<()> {
        let panels = || rows.iter().flat_map(|row| &row.panels);
        let mut named = Vec::new();
        for panel in panels() {
            for query in &panel.queries {
                for name in words(&query.expression).into_iter().filter(|name| name.contains("meshfilter_")) {
                    ensure!(self.knows(name), "panel `{}`: there is no `{name}`", panel.title);
                    named.push(name.to_owned());
                }
            }
        }
        let shown = |metric: &Metric| named.iter().any(|name| self.metric(name).is_some_and(|m| m.name == metric.name));
        for metric in &self.metrics {
            ensure!(shown(metric), "`{}` is in no panel", metric.name);
        }
        let mut titles: Vec<&str> = panels().map(|panel| panel.title).collect();
        titles.sort_unstable();
        let twice = titles.windows(2).find(|two| two.first() == two.last());
        ensure!(twice.is_none(), "two panels of one title: {twice:?}");
        for row in rows {
            let fills = lines(row).iter().all(|line| line.iter().map(|panel| panel.width).sum::<u32>() == COLUMNS);
            ensure!(fills, "row `{}`: a line of panels is not {COLUMNS} columns wide", row.title);
        }
        Ok(())
    }

    fn knows(&self, name: &str) -> bool {
        if name.contains(':') { self.recorded.iter().any(|rule| rule == name) } else { self.metric(name).is_some() }
    }

    /// The metric that a series of this name is of.
    fn metric(&self, name: &str) -> Option<&'static Metric> {
        self.metrics.iter().copied().find(|metric| match metric.kind {
            MetricKind::Histogram => {
                name.strip_prefix(metric.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
            }
            MetricKind::Counter | MetricKind::Gauge => name == metric.name,
        })
    }

    /// The expression with what the variables select. Recorded rules and alerts are of all proxies of an app; a cluster can
    /// be told where it is a label.
    fn select(&self, expression: &str) -> String {
        let mut parts = expression.split("{@");
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let name = words(&text).pop().filter(|name| text.ends_with(name)).unwrap_or_default();
            let mut labels = vec!["job", "namespace", "app"];
            if !name.contains(':') && name != "ALERTS" {
                labels.push("instance");
            }
            if self.metric(name).is_some_and(|metric| metric.labels.contains(&"cluster")) {
                labels.push("cluster");
            }
            let labels: Vec<String> = labels.iter().map(|label| format!("{label}=~\"${label}\"")).collect();
            text = format!("{text}{{{}{part}", labels.join(","));
        }
        text
    }
}

/// Names and keywords of an expression; what is in quotes is none.
fn words(expression: &str) -> Vec<&str> {
    let outside = expression.split('"').step_by(2);
    let words = outside.flat_map(|text| text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))));
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')).collect()
}

/// A row's panels, as they stand beside each other.
fn lines(row: &Row) -> Vec<Vec<&Panel>> {
    let mut lines: Vec<Vec<&Panel>> = Vec::new();
    let mut free = 0_u32;
    for panel in &row.panels {
        match (free.checked_sub(panel.width), lines.last_mut()) {
            (Some(rest), Some(line)) => {
                line.push(panel);
                free = rest;
            }
            _ => {
                lines.push(vec![panel]);
                free = COLUMNS.saturating_sub(panel.width);
            }
        }
    }
    lines
}

/// What every panel and variable asks.
fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

fn dashboard(rows: &[Row], names: &Names) -> Result<Value> {
    let mut panels = Vec::new();
    let (mut id, mut y) = (0_u32, 0_u32);
    let mut next = || {
        id = id.saturating_add(1);
        id
    };
    for row in rows {
        panels.push(json!({
            "id": next(), "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": { "h": 1, "w": COLUMNS, "x": 0, "y": y },
        }));
        y = y.saturating_add(1);
        for line in lines(row) {
            let mut x = 0_u32;
            for panel in line {
                let place = json!({ "h": HEIGHT, "w": panel.width, "x": x, "y": y });
                panels.push(panel.json(next(), &place, names)?);
                x = x.saturating_add(panel.width);
            }
            y = y.saturating_add(HEIGHT);
        }
    }
    // Every proxy with a filter has it, in plain Envoy and in Istio.
    let all = "envoy_wasm_envoy_wasm_runtime_v8_active";
    let of = |labels: &str| format!("{all}{{{labels}}}");
    let changed = names.select("sum by (plugin) (changes(meshfilter_circuit_rules_version{@}[$__rate_interval])) > 0");
    Ok(json!({
        "uid": "mesh-filters",
        "title": "Mesh filters",
        "description": "What the filters of mesh-filters do, in every proxy that has them. Made by `make docs`.",
        "tags": ["envoy", "istio", "wasm", "mesh-filters"],
        "schemaVersion": 39,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": { "from": "now-1h", "to": "now" },
        "timezone": "browser",
        "annotations": { "list": [{
            "name": "Thresholds changed", "datasource": source(), "enable": true, "iconColor": BLUE, "expr": changed,
            "titleFormat": "Thresholds changed", "textFormat": "{{plugin}}",
        }] },
        "templating": { "list": [
            {
                "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "regex": "",
                "refresh": 1, "hide": 0, "includeAll": false, "multi": false, "options": [], "current": {},
            },
            variable("job", all),
            variable("namespace", &of("job=~\"$job\"")),
            variable("app", &of("job=~\"$job\",namespace=~\"$namespace\"")),
            variable("instance", &of("job=~\"$job\",namespace=~\"$namespace\",app=~\"$app\"")),
            variable(
                "cluster",
                &"meshfilter_requests_finished_total{@}"
                    .replace('@', "job=~\"$job\",namespace=~\"$namespace\",app=~\"$app\",instance=~\"$instance\""),
            ),
        ] },
        "panels": panels,
    }))
}

/// One of many values of a label. All of them also are series that do not have the label.
fn variable(label: &str, series: &str) -> Value {
    let query = format!("label_values({series}, {label})");
    json!({
        "name": label, "label": label, "type": "query", "datasource": source(), "definition": query,
        "query": { "qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery" },
        "refresh": 2, "regex": "", "sort": 1, "hide": 0, "options": [],
        "includeAll": true, "allValue": ".*", "multi": true, "current": { "text": ["All"], "value": ["$__all"] },
    })
}

impl Panel {
    fn json(&self, id: u32, place: &Value, names: &Names) -> Result<Value> {
        let targets = ('A'..).zip(&self.queries).map(|(letter, query)| {
            json!({
                "refId": letter.to_string(), "datasource": source(), "expr": names.select(&query.expression),
                "legendFormat": query.legend, "range": true, "instant": false, "editorMode": "code",
            })
        });
        let overrides = self.colours.iter().map(|(start, colour)| {
            json!({
                "matcher": { "id": "byRegexp", "options": format!("/^{start}/") },
                "properties": [{ "id": "color", "value": { "mode": "fixed", "fixedColor": colour } }],
            })
        });
        let steps = self.limits.iter().map(|(from, colour)| json!({ "color": colour, "value": from }));
        let steps: Vec<Value> = [json!({ "color": GREEN, "value": null })].into_iter().chain(steps).collect();
        let legend = json!({ "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [] });
        let mut defaults = json!({
            "unit": self.unit, "min": 0, "mappings": [], "color": { "mode": "palette-classic" },
            "thresholds": { "mode": "absolute", "steps": steps },
        });
        let (kind, options) = match self.kind {
            Kind::Number => {
                set(&mut defaults, "color", json!({ "mode": "thresholds" }))?;
                let options = json!({
                    "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto",
                    "textMode": "auto", "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                });
                ("stat", options)
            }
            Kind::States => {
                let state = |index: u32, text, colour| json!({ "index": index, "text": text, "color": colour });
                let states = json!({
                    "0": state(0, "closed", GREEN), "1": state(1, "half open", YELLOW), "2": state(2, "open", RED),
                });
                set(&mut defaults, "mappings", json!([{ "type": "value", "options": states }]))?;
                set(&mut defaults, "color", json!({ "mode": "thresholds" }))?;
                set(&mut defaults, "custom", json!({ "lineWidth": 0, "fillOpacity": 80 }))?;
                let options = json!({
                    "mergeValues": true, "showValue": "never", "alignValue": "left", "rowHeight": 0.8, "legend": legend,
                    "tooltip": { "mode": "single", "sort": "none" },
                });
                ("state-timeline", options)
            }
            Kind::Lines | Kind::Logarithms | Kind::Stack | Kind::Steps | Kind::Bars => {
                let stacked = matches!(self.kind, Kind::Stack | Kind::Bars);
                let custom = json!({
                    "drawStyle": if self.kind == Kind::Bars { "bars" } else { "line" },
                    "lineInterpolation": if self.kind == Kind::Steps { "stepAfter" } else { "linear" },
                    "lineWidth": if self.kind == Kind::Steps { 2 } else { 1 },
                    "fillOpacity": if stacked { 60 } else { 10 },
                    "stacking": { "mode": if stacked { "normal" } else { "none" }, "group": "A" },
                    "showPoints": "never", "spanNulls": false,
                    "thresholdsStyle": { "mode": if self.limits.is_empty() { "off" } else { "dashed" } },
                });
                set(&mut defaults, "custom", custom)?;
                if self.kind == Kind::Logarithms {
                    let scale = json!({ "type": "symlog", "log": 10, "linearThreshold": 1 });
                    set(defaults.get_mut("custom").context("just set")?, "scaleDistribution", scale)?;
                }
                ("timeseries", json!({ "legend": legend, "tooltip": { "mode": "multi", "sort": "desc" } }))
            }
        };
        Ok(json!({
            "id": id, "type": kind, "title": self.title, "description": self.about, "gridPos": place,
            "datasource": source(), "targets": targets.collect::<Vec<_>>(), "options": options,
            "fieldConfig": { "defaults": defaults, "overrides": overrides.collect::<Vec<_>>() },
        }))
    }
}

fn set(object: &mut Value, key: &str, value: Value) -> Result<()> {
    object.as_object_mut().context("an object")?.insert(key.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(expression: &str, width: u32) -> Vec<Row> {
        let panel = Panel::new("a", (Kind::Lines, "short", width), "About.", [query("a", expression)]);
        vec![Row { title: "r", panels: vec![panel] }]
    }

    static COUNTER: Metric =
        Metric { kind: MetricKind::Counter, name: "meshfilter_a_total", help: "", labels: &["cluster"] };
    static TIMES: Metric = Metric { kind: MetricKind::Histogram, name: "meshfilter_b", help: "", labels: &[] };

    fn said(names: &Names, rows: &[Row]) -> String {
        names.check(rows).unwrap_err().to_string()
    }

    #[test]
    fn no_name_is_unknown_and_no_metric_forgotten() {
        let names = Names { metrics: vec![&COUNTER, &TIMES], recorded: vec!["x:meshfilter_a:rate".into()] };
        let both = "meshfilter_a_total{@} + meshfilter_b_sum{@} + x:meshfilter_a:rate{@,a=\"meshfilter_c\"}";
        names.check(&row(both, 24)).unwrap();
        assert!(said(&names, &row(both, 23)).contains("not 24 columns"));
        assert!(said(&names, &row("meshfilter_a_total", 24)).contains("`meshfilter_b` is in no panel"));
        // A histogram is no series itself, and a counter has no buckets.
        for wrong in ["meshfilter_b", "meshfilter_a_total_sum", "meshfilter_c", "y:meshfilter_a:rate"] {
            let said = said(&names, &row(wrong, 24));
            assert!(said.contains(&format!("there is no `{wrong}`")), "{said}");
        }
        let twice: Vec<Row> = row(both, 24).into_iter().chain(row(both, 24)).collect();
        assert!(said(&names, &twice).contains("two panels"));
    }

    #[test]
    fn each_name_is_selected_by_what_it_has() {
        let names = Names { metrics: vec![&COUNTER, &TIMES], recorded: Vec::new() };
        let app = "job=~\"$job\",namespace=~\"$namespace\",app=~\"$app\"";
        let proxy = format!("{app},instance=~\"$instance\"");
        for (given, wanted) in [
            ("a(meshfilter_a_total{@}[1m])", format!("a(meshfilter_a_total{{{proxy},cluster=~\"$cluster\"}}[1m])")),
            ("meshfilter_b_sum{@,x=\"y\"}", format!("meshfilter_b_sum{{{proxy},x=\"y\"}}")),
            ("ALERTS{@} + a:b:c{@}", format!("ALERTS{{{app}}} + a:b:c{{{app}}}")),
            ("x or {@,__name__=~\"y\"}", format!("x or {{{proxy},__name__=~\"y\"}}")),
        ] {
            assert_eq!(names.select(given), wanted);
        }
    }
}
