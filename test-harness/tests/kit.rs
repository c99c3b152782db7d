//! The kit in a real Envoy: what a trap costs, what outlives a change of configuration, several filters in one module.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::{
    AccessLog, Cluster, Envoy, H1, H2, Headers, HttpFilter, Listener, Load, PATIENCE, Request, Route, Upstream,
    eventually, module,
};

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn wasm(name: &str) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm(name, module(name)?))
}

fn listener(filter: HttpFilter) -> Listener {
    Listener::http("in").filter(filter).route(Route::cluster("up"))
}

/// One worker, so that every request meets the same VM.
async fn one_worker(upstream: &Upstream, filter: HttpFilter) -> Result<Envoy> {
    let builder = Envoy::builder().concurrency(1).cluster("up", upstream.addr()).listener(listener(filter));
    // No connection shall be drained while a test looks at it.
    builder.drain_time(Duration::from_secs(600)).start().await
}

/// Sends a request through the trap module; how many requests its VM has seen then, or the status of the refusal.
async fn seen(envoy: &Envoy, upstream: &Upstream, request: &Request) -> Result<Result<u64, u16>> {
    let status = envoy.send("in", request).await?.status;
    Ok(match upstream.take().as_slice() {
        [] => Err(status),
        [received] => Ok(received.headers.text("x-seen-by-vm").expect("the filter's header").parse()?),
        more => panic!("one request became {more:?}"),
    })
}

/// What Envoy or a filter logged as wrong.
fn errors(log: &str) -> Vec<&str> {
    log.lines().filter(|line| ["[error]", "[critical]"].iter().any(|level| line.contains(level))).collect()
}

fn trapping() -> Request {
    Request::get("/").header("x-trap", "s3cret-of-a-request")
}

#[tokio::test]
async fn a_trap_with_fail_reload_costs_one_request_and_the_next_meets_a_new_vm() -> Result<()> {
    let upstream = Upstream::start().await?;
    // With 1 ms, Envoy divides by zero and dies: all from 1.36 to 1.40.
    let soon = json!({ "reload_config": { "backoff": { "base_interval": "0.002s" } } });
    let envoy = one_worker(&upstream, wasm("trap")?.failure_policy("FAIL_RELOAD").merge_plugin(soon)).await?;
    for round in 1..=3 {
        assert_eq!(seen(&envoy, &upstream, &trapping()).await?, Err(503));
        let first = eventually("a new VM", PATIENCE, async || {
            let seen = seen(&envoy, &upstream, &Request::get("/")).await.map_err(|error| format!("{error:#}"))?;
            seen.map_err(|status| status.to_string())
        });
        assert_eq!(first.await?, 1, "what the old VM knew is gone");
        assert_eq!(seen(&envoy, &upstream, &Request::get("/")).await?, Ok(2));
        assert_eq!(envoy.wait_for_counter("wasm.trap.vm_reload_success", round).await?, round);
    }
    let log = envoy.log();
    assert!(!log.contains("s3cret"), "the panic said it, and nobody repeats it");
    let place = "mesh-filters: panic at test-harness/modules/trap/src/lib.rs:";
    assert_eq!(log.matches(place).count(), 3, "where it was is logged: {:#?}", errors(&log));
    Ok(())
}

/// By default a VM is not started again within a second after its start; here the time does not come.
#[tokio::test]
async fn a_vm_that_traps_before_its_time_is_not_started_again() -> Result<()> {
    let upstream = Upstream::start().await?;
    let late = json!({ "reload_config": { "backoff": { "base_interval": "600s" } } });
    let envoy = one_worker(&upstream, wasm("trap")?.failure_policy("FAIL_RELOAD").merge_plugin(late)).await?;
    assert_eq!(seen(&envoy, &upstream, &trapping()).await?, Err(503));
    for _ in 0..3 {
        assert_eq!(seen(&envoy, &upstream, &Request::get("/")).await?, Err(503));
    }
    assert_eq!(envoy.wait_for_counter("wasm.trap.vm_reload_backoff", 3).await?, 3);
    Ok(())
}

#[tokio::test]
async fn a_trap_without_a_policy_closes_the_door_until_the_configuration_changes() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = one_worker(&upstream, wasm("trap")?).await?;
    let addr = envoy.addr("in");
    let slow = Request::get("/slow").header("x-reply", "pause=5000; chunk=late");
    let in_flight = tokio::spawn(async move { H1::connect(addr).await?.send(&slow).await });
    upstream.wait(1).await?;
    assert_eq!(seen(&envoy, &upstream, &trapping()).await?, Err(503));
    assert_eq!(in_flight.await??.status, 503, "and so it is for a request under way");
    for _ in 0..3 {
        assert_eq!(seen(&envoy, &upstream, &Request::get("/")).await?, Err(503));
    }
    assert!(!envoy.log().contains("s3cret"));
    envoy.push([listener(wasm("trap")?.config_text("{ }"))]).await?.accepted()?;
    assert_eq!(seen(&envoy, &upstream, &Request::get("/")).await?, Ok(1));
    Ok(())
}

#[tokio::test]
async fn what_traffic_did_outlives_a_change_of_configuration() -> Result<()> {
    let upstream = Upstream::start().await?;
    let with = |text: &str| -> Result<HttpFilter> { Ok(wasm("trap")?.config_text(text)) };
    let envoy = one_worker(&upstream, with("{}")?).await?;
    let mut open = H1::connect(envoy.addr("in")).await?;
    for expected in [1, 2] {
        assert_eq!(seen(&envoy, &upstream, &Request::get("/")).await?, Ok(expected));
    }
    for (text, expected) in [("{ }", 3), ("{  }", 5)] {
        envoy.push([listener(with(text)?)]).await?.accepted()?;
        assert_eq!(seen(&envoy, &upstream, &Request::get("/")).await?, Ok(expected), "{text:?}");
        // A connection from before is served by the old configuration: with the same state.
        open.send(&Request::get("/")).await?;
        let received = upstream.wait(1).await?.remove(0);
        assert_eq!(received.headers.text("x-seen-by-vm"), Some((expected + 1).to_string()));
    }
    Ok(())
}

fn duo(configuration: Value) -> Result<HttpFilter> {
    Ok(wasm("duo")?.config(configuration))
}

#[tokio::test]
async fn two_filters_in_one_module_act_in_order_and_see_each_other() -> Result<()> {
    let upstream = Upstream::start().await?;
    let both = json!({
        "trace_id": { "response": { "trace_id_header": "x-trace-id" } },
        "stamp": { "text": "hello" },
    });
    let fields = [("trace_id", "%FILTER_STATE(wasm.trace_id:PLAIN)%"), ("details", "%RESPONSE_CODE_DETAILS%")];
    let on = |name: &str, filter: HttpFilter| {
        Listener::http(name).filter(filter).route(Route::cluster("up")).access_log(AccessLog::json(fields))
    };
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(on("both", duo(both)?))
        .listener(on("stamp", duo(json!({ "stamp": { "text": "hello" } }))?))
        .listener(on("trace", duo(json!({ "trace_id": {} }))?))
        .start()
        .await?;

    let came = Request::get("/").header("traceparent", TRACEPARENT);
    let response = envoy.send("both", &came).await?;
    let sent = upstream.wait(1).await?.remove(0).headers.clone();
    let traceparent = sent.text("traceparent").unwrap();
    assert!(traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && traceparent != TRACEPARENT);
    assert_eq!(sent.all("x-saw"), [traceparent.as_bytes()], "the second sees what the first has written");
    assert_eq!(response.headers.text("x-stamp").as_deref(), Some("hello"));
    let trace = response.headers.text("x-trace-id").unwrap();
    assert!(traceparent.contains(&trace));

    let refused = envoy.send("both", &Request::post("/", "body").header("x-refuse", "1")).await?;
    assert_eq!((refused.status, refused.text().as_str()), (418, "refused"));
    assert_eq!(refused.headers.text("x-stamp").as_deref(), Some("hello"), "its own reply as well");
    let lines = envoy.wait_for_json("both", 2).await?;
    assert_eq!(lines[0]["trace_id"], json!(trace));
    assert_eq!(lines[1]["trace_id"], json!(refused.headers.text("x-trace-id").unwrap()));
    assert_eq!(lines[1]["details"], json!("stamp_refused"));
    assert!(upstream.take().is_empty(), "nothing of it went upstream");

    // One of them alone.
    let response = envoy.send("stamp", &came).await?;
    let sent = upstream.wait(1).await?.remove(0).headers.clone();
    assert_eq!(sent.text("traceparent").as_deref(), Some(TRACEPARENT));
    assert_eq!((sent.text("x-saw").as_deref(), response.headers.has("x-stamp")), (Some(TRACEPARENT), true));
    let response = envoy.send("trace", &came.clone().header("x-refuse", "1")).await?;
    let sent = upstream.wait(1).await?.remove(0).headers.clone();
    assert_ne!(sent.text("traceparent").as_deref(), Some(TRACEPARENT));
    assert_eq!((response.status, sent.has("x-saw"), response.headers.has("x-stamp")), (200, false, false));
    Ok(())
}

#[tokio::test]
async fn a_refusal_names_the_filter_of_the_module_that_it_comes_from() -> Result<()> {
    let upstream = Upstream::start().await?;
    let good = listener(duo(json!({ "stamp": { "text": "old" } }))?);
    let envoy = Envoy::builder().cluster("up", upstream.addr()).listener(good).start().await?;
    for (configuration, said) in [
        (
            json!({ "trace_id": {}, "stamp": { "text": "" } }),
            "at `stamp.text`: is empty, give what the stamp is to say",
        ),
        (json!({ "trace_id": { "inject": ["w3c", "w3c"] } }), "at `trace_id.inject[1]`: stands there twice"),
        (json!({ "stamps": {} }), "at `stamps`: is no field, give one of trace_id, stamp"),
    ] {
        let why = envoy.push([listener(duo(configuration)?)]).await?.rejected()?;
        assert!(why.contains(&format!("duo: configuration refused {said}")), "{said:?} in {why}");
        let response = envoy.get("in", "/", ()).await?;
        assert_eq!(response.headers.text("x-stamp").as_deref(), Some("old"));
    }
    Ok(())
}

#[tokio::test]
async fn a_filter_that_does_nothing_changes_nothing() -> Result<()> {
    let upstream = Upstream::start().await?;
    let mut builder =
        Envoy::builder().cluster("up", upstream.addr()).add_cluster(Cluster::new("up2", upstream.addr()).http2());
    let names = ["plain", "noop", "called"];
    for name in names {
        let mut on = Listener::http(name).generate_request_id(false).route(Route::cluster("up2").prefix("/2"));
        if name != "plain" {
            on = on.filter(wasm(name)?);
        }
        builder = builder.listener(on.route(Route::cluster("up")));
    }
    let envoy = builder.start().await?;
    let odd: [(&str, &[u8]); 4] = [("x-a", b"1"), ("x-b", b"\xff\xfe"), ("x-a", b"2"), ("x-empty", b"")];
    for h2 in [false, true] {
        let mut passed = Vec::new();
        for name in names {
            let request = Request::post(if h2 { "/2" } else { "/" }, vec![7; 100_000]).headers(odd);
            let (response, request) = if h2 {
                let request = request.trailer("x-t", b"\xff");
                (H2::connect(envoy.addr(name)).await?.send(&request).await?, request)
            } else {
                (envoy.send(name, &request).await?, request)
            };
            assert_eq!((response.status, response.text().as_str()), (200, "ok"));
            let received = upstream.wait(1).await?.remove(0);
            assert!(received.body == request.body && received.trailers == request.trailers, "{name}");
            let names: Vec<Vec<u8>> = response.headers.iter().map(|(name, _)| name.to_vec()).collect();
            passed.push((received.headers.clone(), names));
        }
        assert!(passed.iter().all(|other| *other == passed[0]), "{passed:#?}");
    }
    assert_eq!(errors(&envoy.log()), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn ten_thousand_hostile_requests_and_a_change_in_their_midst_leave_no_error() -> Result<()> {
    let upstream = Upstream::start().await?;
    let configuration = |text: &str| {
        duo(json!({
            "trace_id": { "inject": ["w3c", "b3", "datadog"], "join": {}, "response": { "server_timing": true } },
            "stamp": { "text": text },
        }))
    };
    let envoy =
        Envoy::builder().cluster("up", upstream.addr()).listener(listener(configuration("one")?)).start().await?;
    let mut bytes: Headers = (0x80..=0xff_u8).map(|byte| ("baggage", [byte; 3])).take(40).collect();
    for (name, value) in [
        ("traceparent", &b"\xff\xfe\xfd"[..]),
        ("traceparent", TRACEPARENT.as_bytes()),
        ("tracestate", b"\xc3\x28=\x80,,=,"),
        ("b3", b"---"),
        ("x-b3-traceid", b"\x80\x81"),
        ("x-datadog-trace-id", b"99999999999999999999999"),
        ("x-datadog-tags", b"_dd.p.tid=\xff"),
        ("x-amzn-trace-id", b"Root=1-;Root=;;=;\xff"),
        ("uber-trace-id", b"%3%3A:::"),
    ] {
        bytes.push(name, value);
    }
    let long: Headers = [("traceparent", "0".repeat(8_000)), ("tracestate", "a=1,".repeat(2_000))].into();
    let mut loads = Vec::new();
    for headers in [bytes, long] {
        let request = Request::get("/").headers(headers);
        loads.push(Load::h1(envoy.addr("in"), 6, &request));
        loads.push(Load::h2(envoy.addr("in"), 4, &request));
    }
    let answered = || loads.iter().map(|load| load.report().answered()).sum::<u64>();
    let until = async |wanted: u64| {
        eventually(format!("{wanted} answers"), PATIENCE, async || {
            // What came is not looked at here, and would only fill the memory.
            drop(upstream.take());
            let answered = answered();
            if answered >= wanted { Ok(()) } else { Err(format!("{answered}")) }
        })
        .await
    };
    for wanted in (1_000..=10_000).step_by(1_000) {
        until(wanted).await?;
        if wanted == 5_000 {
            envoy.push([listener(configuration("two")?)]).await?.accepted()?;
        }
    }
    for load in loads {
        load.stop().await.all_ok()?;
    }
    assert_eq!(envoy.get("in", "/", ()).await?.headers.text("x-stamp").as_deref(), Some("two"));
    assert_eq!(errors(&envoy.log()), [""; 0]);
    Ok(())
}
