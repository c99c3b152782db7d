//! The harness, checked on itself: what the other tests lean on holds with the Envoy that is installed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use test_harness::{
    AccessLog, Cluster, Envoy, H1, H2, Headers, HttpFilter, Listener, Load, PATIENCE, Protocol, Reply, Request,
    Response, Route, Upstream, eventually,
};

/// A filter that does nothing, and takes any configuration but one of three bytes.
const MODULE: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "_initialize"))
    (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 1024)
    (func (export "proxy_on_context_create") (param i32 i32))
    (func (export "proxy_on_vm_start") (param i32 i32) (result i32) i32.const 1)
    (func (export "proxy_on_configure") (param $root i32) (param $size i32) (result i32)
        (i32.ne (local.get $size) (i32.const 3))))"#;

fn module(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("module.wasm");
    std::fs::write(&path, wat::parse_str(MODULE).unwrap()).unwrap();
    path
}

fn answering(name: &str, body: &str) -> Listener {
    Listener::http(name).route(Route::respond(200, body))
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is dead, whether or not somebody has taken note.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

#[tokio::test]
async fn answers_both_protocols_and_tells_of_itself() -> Result<()> {
    let envoy = Envoy::builder()
        .listener(answering("a", "one"))
        .listener(answering("b", "two"))
        .stats_tag("api", r"^listener_manager\.((lds)\.)")
        .histogram_buckets(json!({ "match": { "suffix": "downstream_rq_time" }, "buckets": [7, 77] }))
        .start()
        .await?;
    assert_ne!(envoy.port("a"), envoy.port("b"));
    assert_eq!(envoy.get("a", "/", ()).await?.text(), "one");
    let h2 = H2::connect(envoy.addr("b")).await?;
    let (get, head) = (Request::get("/"), Request::new("HEAD", "/"));
    let (first, second) = tokio::join!(h2.send(&get), h2.send(&head));
    assert_eq!((first?.text().as_str(), second?.status), ("two", 200));

    assert_eq!(envoy.version().await?.split('.').count(), 3);
    assert_eq!(envoy.wait_for_counter("http.b.downstream_rq_2xx", 2).await?, 2);
    assert_eq!(envoy.counter("http.b.no_such").await?, None);
    let metrics = envoy.prometheus().await?;
    let labels = [("envoy_http_conn_manager_prefix", "b"), ("envoy_response_code_class", "2")];
    assert_eq!(metrics.value("envoy_http_downstream_rq_xx", &labels), Some(2.0));
    assert_eq!(metrics.value("envoy_listener_manager_update_success", &[("api", "lds")]), Some(1.0));
    let flushed = eventually("a histogram with our buckets", PATIENCE, async || {
        let metrics = envoy.prometheus().await.map_err(|error| error.to_string())?;
        let labels = [("envoy_http_conn_manager_prefix", "b"), ("le", "77")];
        let value = metrics.value("envoy_http_downstream_rq_time_bucket", &labels);
        if value == Some(2.0) { Ok(()) } else { Err(format!("{value:?}")) }
    });
    flushed.await?;
    assert!(envoy.memory()? > 10 << 20);
    assert!(envoy.stop().await?.success());
    Ok(())
}

#[tokio::test]
async fn linear_memory_is_what_the_vms_asked_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let listener = |vms: usize| {
        let filters = (0..vms).map(|vm| HttpFilter::wasm("m", module(&dir)).vm_id(&vm.to_string()));
        filters.fold(answering("in", "ok"), Listener::filter)
    };
    let envoy = Envoy::builder().listener(listener(0)).start().await?;
    let files = envoy.open_files()?;
    assert_eq!(envoy.linear_memory()?, 0);
    envoy.push([listener(3)]).await?.accepted()?;
    // The one that others are made from, and one each on the main thread and two workers, with a page of memory each.
    eventually("three times four VMs", PATIENCE, async || {
        let vms = envoy.counter("wasm.envoy.wasm.runtime.v8.active").await.map_err(|error| error.to_string())?;
        let memory = envoy.linear_memory().map_err(|error| error.to_string())?;
        if (vms, memory) == (Some(12), 12 << 16) { Ok(()) } else { Err(format!("{vms:?}, {memory} bytes")) }
    })
    .await?;
    assert!(envoy.anonymous_memory()? < envoy.memory()?);
    let client = H1::connect(envoy.addr("in")).await?;
    assert!(envoy.open_files()? >= files);
    drop(client);
    Ok(())
}

#[tokio::test]
async fn what_the_client_sends_reaches_the_upstream_byte_for_byte() -> Result<()> {
    let upstream = Upstream::start().await?;
    let envoy = Envoy::builder()
        .cluster("h1", upstream.addr())
        .add_cluster(Cluster::new("h2", upstream.addr()).http2())
        .listener(Listener::http("in").route(Route::cluster("h2").prefix("/h2")).route(Route::cluster("h1")))
        .start()
        .await?;
    let sent: [(&str, &[u8]); 3] = [("x-a", b"1"), ("x-b", b"\xff\xc3\x28"), ("x-a", b"2")];

    let mut h1 = H1::connect(envoy.addr("in")).await?;
    let response = h1.send(&Request::get("/echo").headers(sent)).await?;
    assert!(response.json()?["headers"].as_array().unwrap().contains(&json!(["x-b", "\u{ff}\u{c3}("])), "{response:?}");
    // The same connection again, now to the h2 side, and with a body.
    h1.send(&Request::post("/h2/x", "body").headers(sent)).await?;
    let h2 = H2::connect(envoy.addr("in")).await?;
    h2.send(&Request::post("/h2/y", "body").header("host", "else").headers(sent).trailer("x-t", "v")).await?;

    let received = upstream.wait(3).await?;
    let ours = |at: usize| {
        received[at]
            .headers
            .iter()
            .filter(|(name, _)| matches!(*name, b"x-a" | b"x-b"))
            .map(|(_, v)| v)
            .collect::<Vec<_>>()
    };
    assert_eq!((received[0].h2, received[1].h2, received[2].h2), (false, true, true));
    assert_eq!(ours(0), [&b"1"[..], b"\xff\xc3\x28", b"2"], "in order over HTTP/1.1");
    assert_eq!(ours(1), [&b"1"[..], b"2", b"\xff\xc3\x28"], "by name over h2");
    assert_eq!((received[1].method.as_str(), received[1].body.as_slice()), ("POST", &b"body"[..]));
    assert_eq!(received[2].headers.get("host"), Some(&b"else"[..]));
    assert_eq!(received[2].trailers, [("x-t", "v")].into());
    Ok(())
}

#[tokio::test]
async fn the_upstream_answers_as_told() -> Result<()> {
    let upstream = Upstream::with(|request| match request.path.as_str() {
        "/script" => Reply::new(418).header("x", b"\xfe").pause(Duration::from_millis(30)).chunk("tea"),
        _ => Reply::to(request),
    })
    .await?;
    let envoy = Envoy::builder()
        .cluster("h1", upstream.addr())
        .add_cluster(Cluster::new("h2", upstream.addr()).http2())
        .listener(Listener::http("h1").route(Route::cluster("h1")))
        .listener(Listener::http("h2").route(Route::cluster("h2")))
        .start()
        .await?;
    let version = envoy.version().await?;
    for side in ["h1", "h2"] {
        let response = envoy.get(side, "/script", ()).await?;
        assert_eq!(
            (response.status, response.headers.get("x"), response.text().as_str()),
            (418, Some(&b"\xfe"[..]), "tea")
        );
        assert_eq!(envoy.get(side, "/status/204", ()).await?.status, 204);

        let h2 = H2::connect(envoy.addr(side)).await?;
        let told = |script: &str| Request::post("/", "{}").header("x-reply", script);
        let response = h2.send(&told("head; pause=20; chunk=a; pause=20; chunk=b; trailer=grpc-status:14")).await?;
        // From an HTTP/1.1 upstream, Envoy takes trailers only where `enable_trailers` is set.
        let trailers = if side == "h2" { [("grpc-status", "14")].into() } else { Headers::default() };
        assert_eq!((response.text().as_str(), response.trailers), ("ab", trailers), "{side}");

        assert_eq!(h2.send(&told("pause=10; reset")).await?.status, 503, "{side}: before the head");
        let midway = h2.send(&told("chunk=part; pause=20; reset")).await;
        if version.starts_with("1.36.") {
            // It resets the stream with NO_ERROR, and that looks like the end of the whole response.
            let response = midway?;
            assert_eq!((response.status, response.text().as_str()), (200, "part"), "{side}: midway");
        } else {
            let error = format!("{:#}", midway.unwrap_err());
            assert!(error.contains("status: 200"), "{side}: midway: {error}");
        }
        let error = envoy.send(side, &told("chunk=part; pause=20; reset")).await.unwrap_err();
        assert!(format!("{error:#}").contains("no whole response"), "{side}: midway: {error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn bytes_that_are_no_http_get_400_and_the_connection_ends() -> Result<()> {
    let envoy = Envoy::builder().listener(answering("a", "one")).start().await?;
    for bad in [&b"GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n"[..], b"\xff\xff\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut client = H1::connect(envoy.addr("a")).await?;
        let response = client.exchange(bad).await?;
        assert_eq!((response.status, response.closes()), (400, true), "{}", bad.escape_ascii());
        assert!(client.closed().await?.is_empty());
    }
    Ok(())
}

#[tokio::test]
async fn a_load_tells_wrong_answers_from_right_ones() -> Result<()> {
    let envoy = Envoy::builder().listener(answering("in", "one")).start().await?;
    let check: fn(&Response) -> Result<()> = |response| {
        ensure!(response.text() == "two", "not two");
        Ok(())
    };
    for protocol in [Protocol::H1, Protocol::H2] {
        let load = Load::checked(envoy.addr("in"), 1, &Request::get("/"), protocol, check);
        load.wait_for(3).await?;
        let report = load.stop().await;
        assert_eq!(u64::try_from(report.errors.len())?, report.answered());
        assert_eq!((report.errors[0].as_str(), report.all_ok().is_err()), ("not two", true));
    }
    Ok(())
}

#[tokio::test]
async fn a_push_under_load_loses_no_request() -> Result<()> {
    let envoy = Envoy::builder().listener(answering("a", "0")).listener(answering("b", "0")).start().await?;
    let (a, b) = (envoy.port("a"), envoy.port("b"));
    let over_h1 = Load::h1(envoy.addr("a"), 4, &Request::get("/"));
    let over_h2 = Load::h2(envoy.addr("b"), 2, &Request::get("/"));
    over_h1.wait_for(100).await?;
    // With a change in the filter chain alone, Envoy keeps the listener; a change of the listener itself makes a new
    // one.
    for (body, limit) in [("1", 1 << 20), ("2", 1 << 20), ("3", 1 << 19)] {
        let pushed =
            ["a", "b"].map(|name| answering(name, body).merge(json!({ "per_connection_buffer_limit_bytes": limit })));
        envoy.push(pushed).await?.accepted()?;
        assert_eq!(envoy.get("a", "/", ()).await?.text(), body, "every new connection has the new one");
        assert_eq!((envoy.port("a"), envoy.port("b")), (a, b));
        over_h1.wait_for(100).await?;
        over_h2.wait_for(100).await?;
    }
    envoy.wait_for_counter("listener_manager.listener_in_place_updated", 1).await?;
    let drained = eventually("everything drained", PATIENCE, async || {
        let stats = envoy.stats("listener_manager.total_").await.map_err(|error| error.to_string())?;
        let draining =
            stats["listener_manager.total_filter_chains_draining"] + stats["listener_manager.total_listeners_draining"];
        if draining == 0 { Ok(()) } else { Err(format!("{stats:?}")) }
    });
    drained.await?;
    for (load, connections) in [(over_h1, 4), (over_h2, 2)] {
        let report = load.stop().await;
        report.all_ok()?;
        assert!(report.connections > connections, "all were drained: {report:?}");
    }
    Ok(())
}

#[tokio::test]
async fn listeners_come_and_go_and_keep_their_ports() -> Result<()> {
    let envoy = Envoy::builder().listener(answering("a", "1")).start().await?;
    let a = envoy.port("a");
    // While the old filter chain of `a` is drained, a new listener gets a port of its own.
    envoy.push([answering("a", "2")]).await?.accepted()?;
    envoy.push([answering("a", "2"), answering("b", "3")]).await?.accepted()?;
    assert_eq!(envoy.get("b", "/", ()).await?.text(), "3");
    envoy.push([answering("b", "4")]).await?.accepted()?;
    let gone = eventually("the end of a listener that is not pushed any more", PATIENCE, async || {
        if H1::connect(envoy.addr("a")).await.is_err() { Ok(()) } else { Err("still there".to_owned()) }
    });
    gone.await?;
    envoy.push([answering("a", "5"), answering("b", "4")]).await?.accepted()?;
    assert_eq!((envoy.port("a"), envoy.get("a", "/", ()).await?.text().as_str()), (a, "5"));
    assert_eq!(envoy.get("b", "/", ()).await?.text(), "4");
    Ok(())
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_its_reason_while_the_old_one_serves() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (module, text) = (module(&dir), dir.path().join("text.wasm"));
    std::fs::write(&text, "text")?;
    let with = |filter: HttpFilter| Listener::http("a").filter(filter).route(Route::respond(200, "served"));
    let good = with(HttpFilter::wasm("f", &module).config(json!({ "a": 1 })));
    let bad = with(HttpFilter::wasm("f", &module).config_text("bad"));
    let builder = || Envoy::builder().concurrency(1);

    builder().listener(good.clone()).validate().await?.accepted()?;
    let why = builder().listener(bad.clone()).validate().await?.rejected()?;
    assert!(why.contains("Unable to create Wasm plugin f"), "{why}");
    let error = builder().listener(bad.clone()).start().await.unwrap_err().to_string();
    assert!(error.contains("Unable to create Wasm plugin f"), "{error}");

    let envoy = builder().listener(good.clone()).start().await?;
    let refusals = [
        (bad, "Unable to create Wasm plugin f"),
        (with(HttpFilter::wasm("f", &text)), "Unable to create Wasm plugin f"),
        (with(HttpFilter::lua("l", "functon")), "script load error"),
        (with(HttpFilter::raw("r", json!({ "@type": "type.googleapis.com/no.such.Type" }))), "no.such.Type"),
        (good.clone().merge(json!({ "no_such_field": 1 })), "no_such_field"),
    ];
    for (listener, reason) in refusals {
        let why = envoy.push([listener]).await?.rejected()?;
        assert!(why.contains(reason), "{reason:?} in {why}");
        assert_eq!(envoy.get("a", "/", ()).await?.text(), "served");
    }
    envoy.push([good]).await?.accepted()
}

#[tokio::test]
async fn an_extension_changes_without_its_listener() -> Result<()> {
    let tagged = |value: &str| {
        HttpFilter::lua("tag", &format!("function envoy_on_response(h) h:headers():add('x-tag', '{value}') end"))
            .discovered()
    };
    let envoy = Envoy::builder().listener(answering("a", "ok").filter(tagged("one"))).start().await?;
    let mut client = H1::connect(envoy.addr("a")).await?;
    assert_eq!(client.send(&Request::get("/")).await?.headers.text("x-tag").as_deref(), Some("one"));
    envoy.push_extension(&tagged("two")).await?.accepted()?;
    let changed = eventually("the new extension on an open connection", PATIENCE, async || {
        let response = client.send(&Request::get("/")).await.map_err(|error| error.to_string())?;
        if response.headers.text("x-tag").as_deref() == Some("two") { Ok(()) } else { Err(format!("{response:?}")) }
    });
    changed.await?;
    let why = envoy.push_extension(&HttpFilter::lua("tag", "functon").discovered()).await?.rejected()?;
    assert!(why.contains("script load error"), "{why}");
    assert_eq!(client.send(&Request::get("/")).await?.headers.text("x-tag").as_deref(), Some("two"));
    Ok(())
}

#[tokio::test]
async fn access_logs_are_read_as_json_and_as_text() -> Result<()> {
    let fields = [("code", "%RESPONSE_CODE%"), ("who", "%REQ(x-who)%"), ("state", "%FILTER_STATE(none:PLAIN)%")];
    let envoy = Envoy::builder()
        .listener(answering("json", "ok").access_log(AccessLog::json(fields)))
        .listener(answering("text", "ok").access_log(AccessLog::text("%PROTOCOL% %REQ(:PATH)%")))
        .start()
        .await?;
    for who in ["a", "b"] {
        envoy.get("json", "/", [("x-who", who)]).await?;
    }
    envoy.get("text", "/p?q", ()).await?;
    let lines = envoy.wait_for_json("json", 2).await?;
    assert_eq!(
        json!(lines),
        json!([{ "code": 200, "who": "a", "state": null }, { "code": 200, "who": "b", "state": null }])
    );
    assert_eq!(envoy.wait_for_lines("text", 1).await?, ["HTTP/1.1 /p?q"]);
    assert!(envoy.wait_for_log("starting main dispatch loop", PATIENCE).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn tcp_listeners_work_as_well() -> Result<()> {
    let upstream = Upstream::start().await?;
    let proxy = json!({
        "name": "tcp",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tcp",
            "cluster": "up",
        },
    });
    let envoy = Envoy::builder().cluster("up", upstream.addr()).listener(Listener::tcp("tcp", [proxy])).start().await?;
    assert_eq!(envoy.get("tcp", "/", ()).await?.text(), "ok");
    Ok(())
}

#[test]
fn an_envoy_ends_with_a_panic() {
    let pid = Mutex::new(None);
    let panicked = std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let envoy = Envoy::builder().start().await.unwrap();
                *pid.lock().unwrap() = Some(envoy.pid());
                assert!(alive(envoy.pid()));
                panic!("on purpose");
            });
        });
        run.join().is_err()
    });
    assert!(panicked && !alive(pid.into_inner().unwrap().expect("it started")));
}

const HOLD: &str = "TEST_HARNESS_HOLDS_AN_ENVOY";

/// Does nothing unless the next test starts it in a process of its own.
#[tokio::test]
async fn hold_an_envoy_until_killed() -> Result<()> {
    if std::env::var_os(HOLD).is_some() {
        let envoy = Envoy::builder().start().await?;
        println!("\npid={}", envoy.pid());
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_envoy_ends_with_a_killed_test_process() -> Result<()> {
    // Without one, the other process would say so and this one not.
    test_harness::envoy::binary()?;
    let dir = tempfile::tempdir()?;
    let mut test = Command::new(std::env::current_exe()?)
        // Who is killed leaves its files behind.
        .env("TMPDIR", dir.path())
        .args(["--exact", "hold_an_envoy_until_killed", "--nocapture"])
        .env(HOLD, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines();
    let pid = lines.find_map(|line| line.ok()?.strip_prefix("pid=")?.parse().ok()).expect("it told the pid");
    assert!(alive(pid));
    test.kill()?;
    test.wait()?;
    eventually("the end of its Envoy", PATIENCE, async || if alive(pid) { Err("alive".to_owned()) } else { Ok(()) })
        .await
}
