//! The suite with all that stands around it, end to end: `compose/envoy.yaml`, an upstream, a source of thresholds,
//! Prometheus. Each case starts them here, or, with `ENVOY_URL`, takes those that run there: see
//! [`Stack`](test_harness::Stack).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test"
)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use test_harness::dashboard::{Dashboard, filled};
use test_harness::{H2, Request, Response, Stack, eventually};
use tokio::sync::{Mutex, MutexGuard};

/// An answer to a change of thresholds, and of a breaker: an interval of both, where all processors are busy.
const SOON: Duration = Duration::from_secs(30);

/// The stack for one case. Where it is the same for all, one has it at a time.
async fn stack() -> Result<(Stack, Option<MutexGuard<'static, ()>>)> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = if Stack::is_shared() { Some(TURN.lock().await) } else { None };
    Ok((Stack::start().await?, turn))
}

fn trace_id(response: &Response) -> Result<String> {
    response.headers.text("x-trace-id").with_context(|| format!("no trace id: {response:?}"))
}

/// The answer, and the line that the log has of it.
async fn exchange(stack: &Stack, request: &Request) -> Result<(Response, Map<String, Value>)> {
    let response = stack.send(request).await?;
    let line = stack.line(&trace_id(&response)?).await?;
    Ok((response, line))
}

/// A header of what arrived at the upstream.
fn header(received: &Value, name: &str) -> Vec<String> {
    let fields = received["headers"].as_array().unwrap().iter();
    fields.filter(|field| field[0] == name).map(|field| field[1].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_is_made_for_who_has_none() -> Result<()> {
    let (stack, _turn) = stack().await?;
    let (response, line) = exchange(&stack, &Request::get("/made")).await?;
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    let trace = trace_id(&response)?;
    assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()), "{trace}");
    let received = stack.upstream().received().await?;
    let [received] = &received[..] else { panic!("not one request: {received:?}") };
    let span = line["span_id"].as_str().context("no span")?;
    // Sampled, and of random bytes.
    assert_eq!(
        (header(received, "traceparent"), &line["sampled"]),
        (vec![format!("00-{trace}-{span}-03")], &json!("true"))
    );
    assert_eq!((&line["trace_id"], &line["path"], &line["status"]), (&json!(trace), &json!("/made"), &json!(200)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_for_who_has_one() -> Result<()> {
    let (stack, _turn) = stack().await?;
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let request = Request::get("/continued").header("traceparent", format!("00-{trace}-{parent}-01"));
    let request = request.header("tracestate", "vendor=1");
    let response = stack.send(&request).await?;
    assert_eq!(trace_id(&response)?, trace);
    let received = stack.upstream().received().await?;
    let [received] = &received[..] else { panic!("not one request: {received:?}") };
    let [traceparent] = &header(received, "traceparent")[..] else { panic!("not one: {received}") };
    let words: Vec<&str> = traceparent.split('-').collect();
    assert_eq!((words[0], words[1], words[3]), ("00", trace, "01"), "{traceparent}");
    assert_eq!(header(received, "tracestate"), ["vendor=1"]);
    // The same trace may be in the log of an earlier run; this span is not.
    let span = words[2];
    assert_ne!(span, parent);
    let line = stack.line(span).await?;
    assert_eq!(
        (&line["trace_id"], &line["span_id"], &line["parent_span_id"]),
        (&json!(trace), &json!(span), &json!(parent))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_and_the_metrics_tell_where_the_time_went() -> Result<()> {
    let (stack, _turn) = stack().await?;
    let labels = [("route", "everything"), ("code", "2xx"), ("method", "GET"), ("direction", "outbound")];
    let finished = "meshfilter_requests_finished_total";
    let before = stack.metrics().await?.value(finished, &labels).unwrap_or_default();
    let request = Request::get("/slow").header("x-reply", "pause=300; status=201; chunk=late");
    let (response, line) = exchange(&stack, &request).await?;
    assert_eq!((response.status, response.text().as_str()), (201, "late"));
    let micros = |field: &str| {
        line[field].as_str().unwrap_or_default().parse::<u64>().with_context(|| format!("{field}: {line:?}"))
    };
    let (total, first, upstream, proxy) =
        (micros("total_us")?, micros("first_byte_us")?, micros("upstream_us")?, micros("proxy_us")?);
    assert!(upstream >= 300_000 && first >= upstream && total >= first && proxy <= total - upstream, "{line:?}");
    let metrics = stack.metrics().await?;
    assert_eq!(metrics.value(finished, &labels), Some(before + 1.0));
    // Of the histogram, with the buckets that the configuration has; Envoy adds to them every few seconds.
    eventually("the time in its bucket", SOON, async || {
        let metrics = stack.metrics().await.map_err(|error| format!("{error:#}"))?;
        let at = |le| {
            metrics.value("meshfilter_request_duration_millis_bucket", &[labels.as_slice(), &[("le", le)]].concat())
        };
        match (at("200"), at("+Inf")) {
            (Some(below), Some(all)) if all >= before + 1.0 && below < all => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log() -> Result<()> {
    let (stack, _turn) = stack().await?;
    let secrets = [
        Request::get("/users/kanari.path@example.com/cards/4111111111111111"),
        Request::get("/a?token=kanari-query&q=kanari%2Equery%40example.com&card=4111+1111+1111+1111"),
        Request::get("/a;session_id=kanari-session").header("user-agent", "app (kanari.agent@example.com)"),
        Request::get("/a").header("authorization", "Bearer kanari-bearer").header("cookie", "sid=kanari-cookie"),
        Request::get("/a").header("referer", "https://a.example/?access_token=kanari-referer"),
        Request::get("/status/503?password=kanari-failed"),
        Request::post("/a", r#"{"mail":"kanari.body@example.com"}"#).header("content-type", "application/json"),
    ];
    let mut lines = Vec::new();
    for request in &secrets {
        let (_, line) = exchange(&stack, request).await?;
        lines.push(line);
    }
    assert_eq!(
        (&lines[0]["path"], &lines[1]["query"]),
        (&json!("/users/[email]/cards/[card]"), &json!("token=[field]&q=[email]&card=[card]"))
    );
    assert_eq!(lines[2]["user_agent"], "app ([email])");
    // They were there: the upstream, which has to get them, got them.
    let received = json!(stack.upstream().received().await?).to_string();
    let log = stack.log()?;
    for secret in ["kanari", "4111111111111111", "4111+1111"] {
        assert!(received.contains(secret), "{secret} did not reach the upstream: {received}");
        let leak = log.lines().find(|line| line.contains(secret));
        assert_eq!(leak, None, "{secret} is in the log");
    }
    let found = stack.metrics().await?.value("meshfilter_scrub_findings_total", &[("place", "path")]);
    assert!(found.is_some_and(|found| found >= 1.0), "{found:?}");
    Ok(())
}

/// Rules of which one breaks at five errors.
fn breaks(id: &str, retry_timeout: &str) -> String {
    let rule = json!({
        "id": id, "resource": "service", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 5,
        "interval": "30s", "retry_timeout": retry_timeout,
    });
    json!({ "rules": [rule] }).to_string()
}

/// Sends requests until one has that decision in its line, by that rule.
async fn until(stack: &Stack, rule: &str, decision: &str) -> Result<Response> {
    eventually(format!("{decision} by {rule}"), SOON, async || {
        let told = exchange(stack, &Request::get("/breaker")).await.map_err(|error| format!("{error:#}"))?;
        let (response, line) = told;
        if line["rule"] == rule && line["decision"] == decision { Ok(response) } else { Err(format!("{line:?}")) }
    })
    .await
}

/// How often listeners were added, changed and removed since Envoy began to run.
async fn listeners(stack: &Stack) -> Result<String> {
    stack.admin_get("/stats?filter=listener_manager.listener_(added|modified|removed)$").await
}

/// For how many seconds Envoy runs.
async fn uptime(stack: &Stack) -> Result<u64> {
    let info: Value = serde_json::from_str(&stack.admin_get("/server_info").await?)?;
    let uptime = info["uptime_current_epoch"].as_str().and_then(|text| text.strip_suffix('s'));
    uptime.and_then(|text| text.parse().ok()).with_context(|| format!("no uptime: {info}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_opens_on_errors_and_closes_when_the_upstream_is_well_again() -> Result<()> {
    let (mut stack, _turn) = stack().await?;
    stack.set_thresholds(breaks("heals", "300ms"))?;
    until(&stack, "heals", "allowed").await?;
    stack.upstream().script("status=503; chunk=sick").await?;
    let rejected = until(&stack, "heals", "rejected").await?;
    assert_eq!(rejected.status, 503);
    assert!(rejected.headers.has("x-circuit-state") && rejected.headers.has("retry-after"), "{rejected:?}");
    assert_ne!(rejected.text(), "sick");
    let opened =
        stack.metrics().await?.value("meshfilter_circuit_transitions_total", &[("rule", "heals"), ("to", "open")]);
    assert!(opened.is_some_and(|opened| opened >= 1.0), "{opened:?}");
    stack.upstream().script("").await?;
    let healed = until(&stack, "heals", "allowed").await?;
    assert_eq!((healed.status, healed.text().as_str()), (200, "ok"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_follows_new_thresholds_without_a_restart() -> Result<()> {
    let (mut stack, _turn) = stack().await?;
    let before = (listeners(&stack).await?, uptime(&stack).await?);
    // It would stay open for as long as this test could wait.
    stack.set_thresholds(breaks("strict", "1h"))?;
    until(&stack, "strict", "allowed").await?;
    stack.upstream().script("status=500").await?;
    until(&stack, "strict", "rejected").await?;
    // What is rejected does not go upstream, and the upstream being well alone changes nothing.
    stack.upstream().script("").await?;
    drop(stack.upstream().received().await?);
    until(&stack, "strict", "rejected").await?;
    assert_eq!(stack.upstream().received().await?, Vec::<Value>::new());
    let state = stack.metrics().await?.value("meshfilter_circuit_state", &[("rule", "strict")]);
    assert_eq!(state, Some(2.0));
    // Other thresholds do.
    stack.set_thresholds(breaks("lenient", "1s"))?;
    let passed = until(&stack, "lenient", "allowed").await?;
    assert_eq!(passed.status, 200);
    // What is no JSON is refused, and what was there stays.
    let refused = async |stack: &Stack| {
        let metrics = stack.metrics().await?;
        anyhow::Ok(metrics.value("meshfilter_circuit_updates_total", &[("result", "refused")]).unwrap_or_default())
    };
    let earlier = refused(&stack).await?;
    stack.set_thresholds("{\"rules\": [")?;
    eventually("a refusal", SOON, async || {
        let now = refused(&stack).await.map_err(|error| format!("{error:#}"))?;
        if now > earlier { Ok(()) } else { Err(now.to_string()) }
    })
    .await?;
    until(&stack, "lenient", "allowed").await?;
    assert_eq!(listeners(&stack).await?, before.0);
    assert!(uptime(&stack).await? >= before.1, "Envoy has been started anew");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_answers_while_the_upstream_is_down() -> Result<()> {
    let (mut stack, _turn) = stack().await?;
    // So that nothing but the proxy answers.
    stack.set_thresholds(
        json!({ "rules": [
        { "id": "watching", "resource": "service", "strategy": "error_ratio", "threshold": 0.5, "mode": "dry_run" },
    ] })
        .to_string(),
    )?;
    until(&stack, "watching", "allowed").await?;
    stack.upstream().up(false).await?;
    let (response, line) = exchange(&stack, &Request::get("/users/ann@example.com?token=abc")).await?;
    assert_eq!(response.status, 503, "{response:?}");
    assert_eq!((&line["path"], &line["query"]), (&json!("/users/[email]"), &json!("token=[field]")));
    assert!(line["flags"].as_str().is_some_and(|flags| flags.contains("UF") || flags.contains("UC")), "{line:?}");
    let total: u64 = line["total_us"].as_str().unwrap_or_default().parse().with_context(|| format!("{line:?}"))?;
    assert!(total > 0, "{line:?}");
    stack.upstream().up(true).await?;
    let back = eventually("an answer of the upstream", SOON, async || {
        let response = stack.send(&Request::get("/")).await.map_err(|error| format!("{error:#}"))?;
        if response.status == 200 { Ok(response) } else { Err(format!("{response:?}")) }
    });
    assert_eq!(back.await?.text(), "ok");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_grpc_passes_with_its_trailers() -> Result<()> {
    let (stack, _turn) = stack().await?;
    let finished = "meshfilter_requests_finished_total";
    let labels = [("route", "grpc"), ("grpc_status", "5")];
    let before = stack.metrics().await?.value(finished, &labels).unwrap_or_default();
    let call = Request::post("/shop.Orders/Get", [0, 0, 0, 0, 0])
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-reply", "header=content-type:application/grpc; chunk=12345; trailer=grpc-status:5");
    let response = H2::connect(stack.addr()).await?.send(&call).await?;
    assert_eq!((response.status, response.text().as_str()), (200, "12345"));
    assert_eq!(response.trailers.text("grpc-status").as_deref(), Some("5"));
    let line = stack.line(&trace_id(&response)?).await?;
    assert_eq!((&line["route"], &line["path"]), (&json!("grpc"), &json!("/shop.Orders/Get")));
    assert_eq!(stack.metrics().await?.value(finished, &labels), Some(before + 1.0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_has_the_metrics_and_the_rules() -> Result<()> {
    let (stack, _turn) = stack().await?;
    let prometheus = stack.prometheus().await?;
    let load = async {
        loop {
            if let Err(error) = stack.send(&Request::get("/load")).await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let asks = async {
        let of = r#"{job="envoy",direction="outbound",route="everything",code="2xx",method="GET"}"#;
        prometheus.above(&format!("meshfilter_requests_finished_total{of}"), 0.0).await?;
        prometheus.above(&format!("meshfilter_request_duration_millis_count{of}"), 0.0).await?;
        prometheus.above("meshfilter_slo_good_requests_total{objective=\"fast\"}", 0.0).await?;
        // Those that are recorded, and both windows of a rate.
        prometheus.above(r#"route:meshfilter_requests:rate5m{job="envoy",route="everything"}"#, 0.0).await?;
        prometheus.above(r#"route:meshfilter_request_duration_seconds:p95_rate5m{route="everything"}"#, 0.0).await?;
        let rules = prometheus.rules().await?;
        ensure!(rules > 20, "only {rules} rules");
        Ok(())
    };
    tokio::select! {
        done = asks => done,
        error = load => Err(error),
    }
}

/// Panels of what is not in this stack: TCP, streams, a filter at the chain's other end.
const NOT_HERE: [&str; 4] =
    ["TCP connections", "The filters' own cost", "How long streams lived", "How long TCP connections lived"];

#[tokio::test(flavor = "multi_thread")]
async fn every_other_panel_of_the_dashboard_shows_something() -> Result<()> {
    let (mut stack, _turn) = stack().await?;
    // It opens soon, again and again.
    stack.set_thresholds(breaks("shown", "300ms"))?;
    let prometheus = stack.prometheus().await?;
    let load = async {
        loop {
            let mail = Request::get("/users/ann@example.com?token=abc").header("traceparent", "nonsense");
            let (sick, cut) = (Request::get("/sick"), Request::get("/cut").header("x-reply", "reset"));
            for request in [mail, sick.header("x-reply", "status=500"), cut, Request::post("/", "text")] {
                if let Err(error) = stack.send(&request).await {
                    return error;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let asks = async {
        let dashboard = Dashboard::read()?;
        let mut empty = Vec::new();
        for panel in dashboard.panels() {
            for (expression, _) in &panel.queries {
                if NOT_HERE.contains(&panel.title.as_str()) {
                    continue;
                }
                // Where nothing is chosen, and over several scrapes, however long one takes.
                let filled = filled(expression, &dashboard.all(), "30s")?;
                let shows = prometheus.above(&filled, f64::NEG_INFINITY).await;
                empty.extend(shows.err().map(|error| format!("{}: {error:#}", panel.title)));
            }
        }
        ensure!(empty.is_empty(), "{}", empty.join("\n"));
        Ok(())
    };
    tokio::select! {
        done = asks => done,
        error = load => Err(error),
    }
}
