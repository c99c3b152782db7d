//! Properties: what is there when, and of which type.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::world::{Ask as _, Plugin, Scene, Site, World, bytes, number};

fn get(path: &[&str]) -> Value {
    json!(["get_property", path])
}

const PHASES: [&str; 4] = ["configure", "request_headers", "response_headers", "log"];

/// The given properties in each of the [`PHASES`], and the time in the last.
async fn ask<W: World>(paths: &[&[&str]], request: &Request) -> Result<([Value; 4], Duration)> {
    // The world's own time stands behind them.
    let steps: Value = paths.iter().map(|path| get(path)).chain([json!(["time"])]).collect();
    let script: Value =
        PHASES.iter().map(|phase| ((*phase).to_owned(), steps.clone())).collect::<serde_json::Map<_, _>>().into();
    let plugin = Plugin { root_id: "the root", vm_id: "the vm", ..Plugin::new("p", script) };
    let world = W::start(&Scene::new([Site::new("in", [plugin])])).await?;
    world.send("in", request).await?;
    let mut seen = [const { Value::Null }; 4];
    let mut now = 0;
    for (seen, phase) in seen.iter_mut().zip(PHASES) {
        *seen = world.steps("p", phase).await?;
        let time = seen.as_array_mut().unwrap().pop().unwrap();
        assert_eq!(time[1], 0, "{time}");
        now = time[2].as_u64().unwrap();
    }
    Ok((seen, Duration::from_nanos(now)))
}

/// Those of request headers are there when the headers are: not in between, though the stream goes on.
pub async fn what_comes_from_headers_is_there_when_they_are<W: World>() -> Result<()> {
    let paths: [&[&str]; 9] = [
        &["request", "path"],
        &["request", "url_path"],
        &["request", "host"],
        &["request", "scheme"],
        &["request", "method"],
        &["request", "query"],
        &["request", "useragent"],
        &["request", "headers", "x-a"],
        &["request", "id"],
    ];
    let request = Request::get("/p?q=1").header("x-a", "a").header("user-agent", "me").header("x-request-id", "7");
    let ([configure, first, between, log], _) = ask::<W>(&paths, &request).await?;
    // The request's own id is taken only from a caller that is trusted.
    let values = ["/p?q=1", "/p", "test", "http", "GET", "q=1", "me", "a"];
    for (at, value) in values.iter().enumerate() {
        assert_eq!(first[at], json!(["get_property", 0, value]));
        assert_eq!(log[at], first[at]);
    }
    assert_eq!((&first[8][1], &first[8]), (&json!(0), &log[8]));
    for at in 0..paths.len() {
        assert_eq!(
            (&configure[at], &between[at]),
            (&json!(["get_property", 1]), &json!(["get_property", 1])),
            "{:?}",
            paths[at]
        );
    }
    Ok(())
}

pub async fn what_comes_from_the_stream_comes_when_it_is_known<W: World>() -> Result<()> {
    let paths: [&[&str]; 21] = [
        &["request", "time"],
        &["request", "size"],
        &["request", "protocol"],
        &["xds", "cluster_name"],
        &["xds", "route_name"],
        &["xds", "virtual_host_name"],
        &["xds", "listener_direction"],
        &["source", "address"],
        &["destination", "port"],
        &["connection", "id"],
        &["connection", "mtls"],
        // From here on with the upstream.
        &["response", "code"],
        &["response", "code_details"],
        &["response", "headers", "x-r"],
        &["upstream", "address"],
        &["upstream", "port"],
        &["upstream", "cx_pool_ready_duration"],
        // From here on only at the end.
        &["request", "duration"],
        &["response", "backend_latency"],
        // From here on never.
        &["connection", "tls_version"],
        &["upstream", "transport_failure_reason", "x"],
    ];
    let ([configure, first, between, log], now) =
        ask::<W>(&paths, &Request::post("/", "body").header("x-reply", "header=x-r:r; chunk=ok")).await?;
    for (at, path) in paths.iter().enumerate() {
        let there = |steps: &Value| steps[at][1] == 0;
        assert_eq!(configure[at], json!(["get_property", 1]), "{path:?}");
        assert_eq!(
            (there(&first), there(&between), there(&log)),
            (at < 11, at < 17, at < 19),
            "{path:?}: {first} {between} {log}"
        );
    }
    for (at, value) in [(2, "HTTP/1.1"), (3, "up"), (4, "default"), (5, "all"), (12, "via_upstream"), (13, "r")] {
        assert_eq!(log[at], json!(["get_property", 0, value]));
    }
    assert!(first[7][2].as_str().unwrap().starts_with("127.0.0.1:"), "{first}");
    // 8 bytes, little-endian.
    assert_eq!((number(&first[1]), number(&first[6]), number(&log[11])), (4, 0, 200));
    assert!(number(&first[8]) > 0 && number(&first[9]) >= 0 && number(&log[15]) > 0);
    // A truth is one byte.
    assert_eq!(bytes(&first[10]), [0]);
    // A time is in nanoseconds since 1970, a duration in nanoseconds.
    let age = now.checked_sub(Duration::from_nanos(number(&log[0]).try_into()?));
    assert!(age.is_some_and(|age| age < Duration::from_secs(60)), "{age:?}");
    for at in [16, 17, 18] {
        let duration = Duration::from_nanos(number(&log[at]).try_into()?);
        assert!(duration < Duration::from_secs(10), "{:?}: {duration:?}", paths[at]);
    }
    assert!(number(&log[17]) >= number(&log[18]), "the whole takes no less than the upstream's part");
    Ok(())
}

/// Some are there from the start, and change.
pub async fn numbers_grow_with_the_stream<W: World>() -> Result<()> {
    let paths: [&[&str]; 5] = [
        &["response", "flags"],
        &["upstream", "request_attempt_count"],
        &["response", "size"],
        &["response", "total_size"],
        &["response", "grpc_status"],
    ];
    let ([_, first, between, log], _) = ask::<W>(&paths, &Request::get("/")).await?;
    assert_eq!([number(&first[0]), number(&between[0]), number(&log[0])], [0; 3]);
    assert_eq!([number(&first[1]), number(&between[1]), number(&log[1])], [0, 1, 1]);
    assert_eq!([number(&first[2]), number(&between[2]), number(&log[2])], [0, 0, 2]);
    assert!(number(&first[3]) == 0 && number(&log[3]) > 2);
    // Without gRPC it is made from the HTTP status.
    assert_eq!((&first[4], number(&between[4]), number(&log[4])), (&json!(["get_property", 1]), 2, 2));
    Ok(())
}

pub async fn the_plugin_knows_itself<W: World>() -> Result<()> {
    let paths: [&[&str]; 3] = [&["plugin_name"], &["plugin_root_id"], &["plugin_vm_id"]];
    for seen in ask::<W>(&paths, &Request::get("/")).await?.0 {
        let wanted = json!([["get_property", 0, "p"], ["get_property", 0, "the root"], ["get_property", 0, "the vm"]]);
        assert_eq!(seen, wanted);
    }
    Ok(())
}

/// What is unknown is not found; what is no single value has another status, but for maps of text.
pub async fn there_is_a_status_for_what_is_no_property<W: World>() -> Result<()> {
    let paths: [&[&str]; 8] = [
        &["none"],
        &["none", "x"],
        &["request", "none"],
        &["request", "path", "x"],
        // Old names that are gone.
        &["cluster_name"],
        &["route_name"],
        &["request"],
        &["filter_state"],
    ];
    let ([_, first, _, log], _) = ask::<W>(&paths, &Request::get("/")).await?;
    let wanted: Value = (0..8).map(|at| json!(["get_property", if at < 6 { 1 } else { 3 }])).collect();
    assert_eq!((&first, &log), (&wanted, &wanted));
    Ok(())
}
