//! The dashboard for Grafana: how it is built, and that every query of it returns data of a real proxy from a real
//! Prometheus.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeSet;
use std::future::pending;
use std::time::Duration;

use anyhow::{Context, Result};
use kit::{Filter, MetricKind};
use serde_json::{Value, json};
use suite::Suite;
use test_harness::dashboard::{Dashboard, Panel, RATE_INTERVAL, Stage, chosen, discovered, filled, listeners, rules};
use test_harness::{PATIENCE, Request, Verdict, eventually, root};
use tokio::time::sleep;

/// What stays without data where all is well, and says 0 then. Nothing on the stage provokes it.
const SELDOM: [&str; 1] = ["Series over the limit"];

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// All that a panel shows, again and again.
async fn everything_happens(stage: &Stage) -> Result<()> {
    let get = Request::get;
    let sick = ("x-reply", "status=500; chunk=sick");
    for number in 0_u64.. {
        let (good, half) = (rules("150ms", &format!("{}ms", 1000_u64.saturating_add(number % 7))), r#"{"rules": [{}"#);
        // The source is asked five times a second.
        match number % 16 {
            0 => stage.thresholds.set(good),
            4 => stage.thresholds.set(half),
            8 => stage.thresholds.mode(test_harness::thresholds::Mode::Refuse(500)),
            12 => stage.thresholds.mode(test_harness::thresholds::Mode::Serve),
            _ => {}
        }
        for (listener, request) in [
            ("edge", get("/hello").header("x-reply", "pause=2; head; pause=2; chunk=ok")),
            ("edge", get("/pay").header("traceparent", TRACEPARENT)),
            ("edge", get("/sick").header(sick.0, sick.1)),
            ("edge", get("/sick").header(sick.0, sick.1)),
            ("edge", get("/dead")),
            ("edge", get("/other")),
            (
                "edge",
                get("/users/ann@example.com?token=abc&card=4111+1111+1111+1111").header("traceparent", "nonsense"),
            ),
            ("edge", get("/").header(sick.0, sick.1)),
            ("edge", Request::post("/", "odd").header("content-type", "application/zip")),
            ("edge", get("/stream").header("x-reply", "chunk=a; pause=5; chunk=b")),
            ("traced", get("/")),
            ("discovered", get("/")),
            ("tcp", get("/")),
        ] {
            stage.send(listener, request).await;
        }
        // Not in a row: a new VM is not started before a second after the last.
        if number % 10 == 5 {
            stage.send("trap", get("/").header("x-trap", "now")).await;
        }
        if number % 20 == 10 {
            // No two are the same: Envoy remembers what it refused.
            let wrong = json!({ "nonsense": number });
            let pushed = stage.envoy.push_extension(&discovered(wrong.clone())?).await?;
            assert!(matches!(pushed, Verdict::Rejected(_)));
            let pushed = stage.envoy.push(listeners(wrong)?).await?;
            assert!(matches!(pushed, Verdict::Rejected(_)));
        }
        sleep(Duration::from_millis(50)).await;
    }
    pending().await
}

/// Whether every query of the dashboard returns data, with all that there is and with what is there chosen by name.
async fn every_query_returns_data(stage: &Stage) -> Result<()> {
    let (dashboard, prometheus) = (Dashboard::read()?, &stage.prometheus);
    let all = dashboard.all();
    let mut some = all.clone();
    for (name, query) in dashboard.variables() {
        let inside = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
        let (series, label) = inside.and_then(|inside| inside.rsplit_once(", ")).context(query.clone())?;
        assert_eq!(label, name);
        let values = eventually(&query, PATIENCE, async || {
            let series = filled(series, &some, RATE_INTERVAL).map_err(|error| error.to_string())?;
            let values = prometheus.label_values(&series, label).await.map_err(|error| format!("{error:#}"))?;
            if values.is_empty() { Err("none".to_owned()) } else { Ok(values) }
        })
        .await?;
        some.insert(name, chosen(&values));
    }
    let queries = dashboard.panels().into_iter().flat_map(|Panel { title, queries }| {
        queries.into_iter().map(move |(expression, _)| (title.clone(), expression))
    });
    let annotations = dashboard.0["annotations"]["list"].as_array().unwrap();
    let annotations = annotations.iter().map(|one| ("annotation".to_owned(), one["expr"].as_str().unwrap().to_owned()));
    let mut failed = Vec::new();
    for (title, expression) in queries.chain(annotations) {
        for values in [&all, &some] {
            let filled = filled(&expression, values, RATE_INTERVAL)?;
            // What takes the place of data is no data.
            let bare = filled.strip_suffix(" or vector(0)").filter(|_| !SELDOM.contains(&title.as_str()));
            let finite = |found: &[test_harness::metrics::Sample]| found.iter().any(|one| one.value.is_finite());
            if let Err(error) = prometheus.wait_for(bare.unwrap_or(&filled), finite).await {
                failed.push(format!("{title}: {error:#}"));
            }
        }
    }
    assert!(failed.is_empty(), "{} without data:\n{}", failed.len(), failed.join("\n"));

    // Of what is not from the filters' lists, no name stands in an expression only where another has the data.
    let known = |name: &str| {
        Suite::metrics().iter().any(|metric| match metric.kind {
            MetricKind::Histogram => {
                name.strip_prefix(metric.name).is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end))
            }
            MetricKind::Counter | MetricKind::Gauge => name == metric.name,
        })
    };
    let mut names = BTreeSet::new();
    for (expression, _) in dashboard.panels().iter().flat_map(|panel| &panel.queries) {
        for text in expression.split('"').step_by(2) {
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':')));
            let ours = |word: &&str| word.starts_with("envoy_") || word.contains("meshfilter_");
            names.extend(words.filter(ours).map(str::to_owned));
        }
    }
    assert!(names.len() > 40, "{names:?}");
    for name in names.iter().filter(|name| !known(name)) {
        assert!(!prometheus.query(name).await?.is_empty(), "there is no {name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_query_of_the_dashboard_returns_data_of_a_proxy_in_which_all_of_it_happens() -> Result<()> {
    let stage = Stage::start("1s").await?;
    tokio::select! {
        ended = everything_happens(&stage) => ended.context("the traffic ended"),
        asked = every_query_returns_data(&stage) => asked,
    }
}

#[test]
fn every_panel_has_its_place_its_words_and_its_source() -> Result<()> {
    let dashboard = Dashboard::read()?;
    let panels = dashboard.0["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    let mut bottom = 0;
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is another's");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        bottom = bottom.max(place("y") + place("h"));
        for (x, y) in (place("x")..place("x") + place("w"))
            .flat_map(|x| (place("y")..place("y") + place("h")).map(move |y| (x, y)))
        {
            assert!(x < 24 && cells.insert((x, y)), "{title}: is over another, or out of the page");
        }
        if panel["type"] == "row" {
            continue;
        }
        let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        assert!(text(&panel["description"]) && text(&panel["fieldConfig"]["defaults"]["unit"]), "{title}");
        let targets = panel["targets"].as_array().unwrap();
        let refs: BTreeSet<&str> = targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
        assert!(!targets.is_empty() && refs.len() == targets.len(), "{title}");
        for source in targets.iter().chain([panel]).map(|one| &one["datasource"]) {
            assert_eq!(*source, json!({ "type": "prometheus", "uid": "${datasource}" }), "{title}");
        }
        assert!(targets.iter().all(|target| text(&target["legendFormat"])), "{title}");
    }
    assert_eq!(u64::try_from(cells.len())?, bottom * 24, "there are holes in the page");
    assert_eq!(dashboard.0["uid"], "mesh-filters");
    let first = &dashboard.0["templating"]["list"][0];
    assert_eq!(
        (&first["name"], &first["type"], &first["query"]),
        (&json!("datasource"), &json!("datasource"), &json!("prometheus"))
    );
    Ok(())
}

/// Where one gives Grafana the folder, it finds the dashboard, and a source for it.
#[test]
fn grafana_is_told_where_its_files_are() -> Result<()> {
    let read = |path: &str| -> Result<Value> {
        let path = root().join("examples/grafana/provisioning").join(path);
        Ok(serde_saphyr::from_str(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?)?)
    };
    let source = &read("datasources/prometheus.yaml")?["datasources"][0];
    assert_eq!((&source["type"], &source["url"]), (&json!("prometheus"), &json!("${PROMETHEUS_URL}")));
    let provider = &read("dashboards/mesh-filters.yaml")?["providers"][0];
    assert_eq!(
        (&provider["type"], &provider["options"]["path"]),
        (&json!("file"), &json!("/etc/mesh-filters/grafana"))
    );
    Ok(())
}

#[test]
fn variables_are_replaced_as_grafana_replaces_them() -> Result<()> {
    let values = [("app", "a"), ("application", "b")].map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let text = filled("x{a=~\"$app\",b=~\"${application}\",c=\"$1\"}[$__rate_interval]", &values, "2s")?;
    assert_eq!(text, "x{a=~\"a\",b=~\"b\",c=\"$1\"}[2s]");
    assert!(filled("x{a=~\"$other\"}", &values, "2s").unwrap_err().to_string().contains("no variable $other"));
    assert_eq!(chosen(&["127.0.0.1:9".into(), r"a|\b".into()]), r"(127\\.0\\.0\\.1:9|a\\|\\\\b)");
    Ok(())
}
