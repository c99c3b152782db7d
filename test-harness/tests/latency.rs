//! latency in a real Envoy with two workers: what comes out of sockets, logs and Prometheus.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kit::Filter as _;
use latency::Latency;
use serde_json::{Map, Value, json};
use test_harness::envoy::Builder;
use test_harness::metrics::{Metrics, Sample};
use test_harness::{
    AccessLog, Cluster, Envoy, H1, H2, HttpFilter, Listener, PATIENCE, Reply, Request, Route, Upstream, eventually,
    module,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

const KEYS: [&str; 8] = ["total_us", "ttfb_us", "upstream_us", "pool_us", "proxy_us", "filters_us", "attempts", "json"];

const ALL_LABELS: [&str; 8] = ["direction", "protocol", "method", "code", "grpc_status", "failure", "route", "cluster"];

fn latency(name: &str, configuration: Value) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm(name, module("latency")?).config(configuration))
}

/// What the filter left, and what else is looked at.
fn log() -> AccessLog {
    let state = KEYS.map(|key| (key, format!("%FILTER_STATE(wasm.latency.{key}:PLAIN)%")));
    let others = [
        ("start_time_ns", "%FILTER_STATE(wasm.start_time_ns:PLAIN)%"),
        ("path", "%REQ(:PATH)%"),
        ("code", "%RESPONSE_CODE%"),
        ("flags", "%RESPONSE_FLAGS_LONG%"),
        ("duration", "%DURATION%"),
        ("between", "%REQ(X-BETWEEN-US)%"),
        ("back", "%RESP(X-BACK-US)%"),
    ];
    AccessLog::json(state.into_iter().chain(others.map(|(key, operator)| (key, operator.to_owned()))))
}

fn listener(name: &str) -> Listener {
    // A connection that is cut off is kept open for a second otherwise.
    Listener::http(name).access_log(log()).merge_hcm(json!({ "delayed_close_timeout": "0.05s" }))
}

/// Prometheus gets the labels as labels.
fn builder() -> Builder {
    let labels: BTreeSet<&str> = Latency::metrics().iter().flat_map(|metric| metric.labels).copied().collect();
    labels.into_iter().fold(Envoy::builder(), |builder, label| builder.stats_tag(label, &kit::tag_regex(label)))
}

/// A part that the filter left, in microseconds.
fn part(line: &Map<String, Value>, key: &str) -> Option<u64> {
    line[key].as_str().map(|text| text.parse().unwrap_or_else(|_| panic!("{key} is {text:?}")))
}

async fn value(envoy: &Envoy, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(envoy.prometheus().await?.value(name, labels).unwrap_or(0.0))
}

/// Waits until the sum of these series is so large: histograms and workers follow a moment later.
async fn becomes(envoy: &Envoy, name: &str, labels: &[(&str, &str)], wanted: f64) -> Result<()> {
    eventually(format!("{name} {labels:?} at {wanted}"), PATIENCE, async || {
        let metrics = envoy.prometheus().await.map_err(|error| format!("{error:#}"))?;
        let is = metrics.value(name, labels).unwrap_or(0.0);
        if (is - wanted).abs() < 0.5 { Ok(()) } else { Err(format!("{is}: {:#?}", metrics.series(name, &[]))) }
    })
    .await
}

fn assert_no_trap(envoy: &Envoy) {
    let log = envoy.log();
    for sign in ["panic", "Function: ", "Wasm VM failed", "wasm log latency: "] {
        assert_eq!(log.lines().find(|line| line.contains(sign)), None, "{sign:?} in the log");
    }
}

/// A server of bytes, as long as this lives.
struct Raw {
    addr: SocketAddr,
    task: AbortHandle,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Raw {
    async fn start<F: Future<Output = std::io::Result<()>> + Send + 'static>(
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Ok(Self { addr, task: task.abort_handle() })
    }

    /// Sends this when something comes, and closes a moment later.
    async fn saying(text: &'static [u8]) -> Result<Self> {
        Self::start(move |mut stream| async move {
            let _ = stream.read(&mut [0; 1000]).await?;
            stream.write_all(text).await?;
            sleep(Duration::from_millis(50)).await;
            Ok(())
        })
        .await
    }

    /// Sends back what comes; before that, once, the answer to an upgrade if there is one.
    async fn echo(upgrade: Option<&'static [u8]>) -> Result<Self> {
        Self::start(move |mut stream| async move {
            if let Some(answer) = upgrade {
                let _ = stream.read(&mut [0; 4000]).await?;
                stream.write_all(answer).await?;
            }
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await.map(drop)
        })
        .await
    }
}

/// An address at which nobody listens.
fn dead() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

/// A route of that name to a cluster, for the paths that begin so.
fn route(path: &str, cluster: &str, merge: Value) -> Route {
    Route::cluster(cluster).prefix(path).merge(json!({ "name": path })).merge(merge)
}

fn typed(kind: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}").into();
    config
}

fn grpc(path: &str, reply: &str) -> Request {
    Request::post(path, b"\0\0\0\0\0")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-reply", reply)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_fail_has_its_word_and_the_parts_that_there_were() -> Result<()> {
    let (upstream, garbage) = (Upstream::start().await?, Raw::saying(b"garbage\r\n\r\n").await?);
    let limits = json!({ "token_bucket": { "max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s" },
        "filter_enabled": { "default_value": { "numerator": 100 } },
        "filter_enforced": { "default_value": { "numerator": 100 } }, "stat_prefix": "limit" });
    let limited = json!({ "typed_per_filter_config": { "limit": typed("local_ratelimit.v3.LocalRateLimit", limits) } });
    let open = json!({ "typed_per_filter_config": { "authz": typed("ext_authz.v3.ExtAuthzPerRoute", json!({ "disabled": true })) } });
    let retries = |on: &str| json!({ "retry_on": on, "num_retries": 2, "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } });
    let per_try = |mut policy: Value| {
        policy["per_try_timeout"] = "0.05s".into();
        policy
    };
    let labels = json!({ "labels": ALL_LABELS, "code": "exact", "slo": [{ "name": "ok", "within": "1m" }] });
    let mut site = listener("in")
        .merge(json!({ "traffic_direction": "OUTBOUND" }))
        .filter(HttpFilter::lua("front", "function envoy_on_request(h) if h:headers():get('x-front') then h:respond({[':status'] = '403'}, 'front') end end"))
        .filter(latency("latency", labels)?)
        .filter(HttpFilter::lua("behind", "function envoy_on_request(h) if h:headers():get('x-behind') then h:respond({[':status'] = '418'}, 'behind') end end"))
        .filter(HttpFilter::raw("fault", typed("fault.v3.HTTPFault", json!({
            "abort": { "header_abort": {}, "percentage": { "numerator": 100 } },
            "delay": { "header_delay": {}, "percentage": { "numerator": 100 } } }))))
        .filter(HttpFilter::raw("limit", typed("local_ratelimit.v3.LocalRateLimit", json!({ "stat_prefix": "limit" }))))
        .filter(HttpFilter::raw("authz", typed("ext_authz.v3.ExtAuthz", json!({
            "http_service": { "server_uri": { "uri": "http://up", "cluster": "up", "timeout": "5s" }, "path_prefix": "/status/403?" } }))))
        .route(route("/denied", "up", json!({})));
    for (path, cluster, merge) in [
        ("/timeout", "up", json!({ "route": { "timeout": "0.05s" } })),
        ("/per-try", "up", json!({ "route": { "retry_policy": per_try(retries("5xx")) } })),
        ("/retry", "up", json!({ "route": { "retry_policy": retries("5xx,reset") } })),
        ("/idle", "up", json!({ "route": { "idle_timeout": "0.05s" } })),
        ("/longest", "up", json!({ "route": { "max_stream_duration": { "max_stream_duration": "0.05s" } } })),
        (
            "/deadline",
            "h2",
            json!({ "route": { "timeout": "0s", "max_stream_duration": { "grpc_timeout_header_max": "0s" } } }),
        ),
        ("/limited", "up", limited),
        ("/empty", "empty", json!({})),
        ("/dead", "dead", json!({})),
        ("/full", "full", json!({})),
        ("/garbage", "garbage", json!({})),
        ("/h2", "h2", json!({})),
        ("/up", "up", json!({})),
    ] {
        site = site.route(route(path, cluster, merge).merge(open.clone()));
    }
    let nowhere =
        Route::respond(200, "").merge(open).merge(json!({ "name": "/nowhere", "match": { "prefix": "/nowhere" },
        "direct_response": null, "route": { "cluster_header": "x-cluster" } }));
    let envoy = builder()
        .cluster("up", upstream.addr())
        .cluster("dead", dead()?)
        .cluster("garbage", garbage.addr)
        .add_cluster(Cluster::new("h2", upstream.addr()).http2())
        .add_cluster(Cluster::new("empty", upstream.addr()).merge(json!({ "load_assignment": { "endpoints": [] } })))
        .add_cluster(
            Cluster::new("full", upstream.addr())
                .merge(json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } })),
        )
        .listener(site.route(nowhere))
        .start()
        .await?;

    let get = |path: &str| Request::get(path);
    let told = |path: &str, reply: &str| Request::get(path).header("x-reply", reply);
    let slow = |path: &str| told(path, "pause=400; chunk=late");
    // Path; code; the proxy's own flags; the filter's word; attempts; parts that are not known; whether it is good.
    type Row = (&'static str, Request, u16, &'static str, &'static str, Option<u64>, &'static str, bool);
    let rows: Vec<Row> = vec![
        ("it is answered", told("/up/a", "chunk=a"), 200, "-", "", Some(1), "", true),
        (
            "a delay",
            get("/up/b").header("x-envoy-fault-delay-request", "5"),
            200,
            "DelayInjected",
            "",
            Some(1),
            "",
            true,
        ),
        (
            "its time ran out",
            slow("/timeout"),
            504,
            "UpstreamRequestTimeout",
            "timeout",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
        (
            "so did each try's",
            slow("/per-try"),
            504,
            "UpstreamRetryLimitExceeded,UpstreamRequestTimeout",
            "timeout",
            Some(3),
            "upstream_us proxy_us",
            false,
        ),
        ("nothing moved", slow("/idle"), 504, "StreamIdleTimeout", "timeout", Some(1), "upstream_us proxy_us", false),
        ("it lasted too long", slow("/longest"), 504, "-", "timeout", Some(1), "upstream_us proxy_us", false),
        (
            "each try failed",
            told("/retry/a", "status=503"),
            503,
            "UpstreamRetryLimitExceeded",
            "retries",
            Some(3),
            "",
            false,
        ),
        (
            "each try was reset",
            told("/retry/b", "reset"),
            503,
            "UpstreamRetryLimitExceeded,UpstreamConnectionTermination",
            "upstream_reset",
            Some(3),
            "upstream_us proxy_us",
            false,
        ),
        (
            "the upstream closed",
            told("/up/c", "reset"),
            503,
            "UpstreamConnectionTermination",
            "upstream_reset",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
        (
            "the upstream reset",
            told("/h2/a", "reset"),
            503,
            "UpstreamRemoteReset",
            "upstream_reset",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
        (
            "it broke off",
            told("/h2/b", "head; chunk=a; pause=20; reset"),
            200,
            "UpstreamRemoteReset",
            "upstream_reset",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
        (
            "no HTTP",
            get("/garbage"),
            502,
            "UpstreamProtocolError",
            "upstream_reset",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
        (
            "nobody is there",
            get("/empty"),
            503,
            "NoHealthyUpstream",
            "no_upstream",
            Some(1),
            "upstream_us pool_us proxy_us",
            false,
        ),
        (
            "nobody listens",
            get("/dead"),
            503,
            "UpstreamConnectionFailure",
            "no_upstream",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
        ("too many", get("/full"), 503, "UpstreamOverflow", "no_upstream", Some(1), "upstream_us proxy_us", false),
        (
            "no such cluster",
            get("/nowhere").header("x-cluster", "no"),
            503,
            "NoClusterFound",
            "no_upstream",
            None,
            "upstream_us pool_us proxy_us",
            false,
        ),
        ("no route", get("/else"), 404, "NoRouteFound", "no_route", None, "upstream_us pool_us proxy_us", true),
        ("the first of many", get("/limited/a"), 200, "-", "", Some(1), "", true),
        ("the second", get("/limited/b"), 429, "RateLimited", "limited", None, "upstream_us pool_us proxy_us", true),
        (
            "refused by another",
            get("/denied"),
            403,
            "UnauthorizedExternalService",
            "local",
            None,
            "upstream_us pool_us proxy_us",
            true,
        ),
        (
            "a fault",
            get("/up/d").header("x-envoy-fault-abort-request", "500"),
            500,
            "FaultInjected",
            "local",
            None,
            "upstream_us pool_us proxy_us",
            false,
        ),
        (
            "a filter in front answers",
            get("/up/e").header("x-front", "y"),
            403,
            "-",
            "",
            None,
            "ttfb_us upstream_us pool_us proxy_us",
            true,
        ),
        (
            "a filter behind answers",
            get("/up/f").header("x-behind", "y"),
            418,
            "-",
            "",
            None,
            "upstream_us pool_us proxy_us",
            true,
        ),
        (
            "a deadline",
            grpc("/deadline", "pause=400").header("grpc-timeout", "50m"),
            200,
            "-",
            "timeout",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
    ];
    let (mut good, mut count, mut before) = (0.0, 0.0, Metrics::default());
    for (n, (what, request, code, flags, word, attempts, unknown, is_good)) in rows.into_iter().enumerate() {
        // That some of them break off is looked at in the log.
        let _ = envoy.send("in", &request).await;
        let line = envoy.wait_for_json("in", n + 1).await?.remove(n);
        assert_eq!((&line["code"], &line["flags"]), (&json!(code), &json!(flags)), "{what}: {line:?}");
        let unknown: Vec<&str> = unknown.split_whitespace().chain(["filters_us", "json"]).collect();
        for key in KEYS.into_iter().filter(|key| *key != "attempts") {
            assert_eq!(line[key].is_null(), unknown.contains(&key), "{what}: {key} in {line:?}");
        }
        assert_eq!(part(&line, "attempts"), attempts, "{what}: {line:?}");
        // What the proxy itself measures, in milliseconds, began before the filter.
        assert!(part(&line, "total_us").unwrap() / 1000 <= line["duration"].as_u64().unwrap() + 1, "{what}: {line:?}");

        let path = request.path.split('/').nth(1).map(|name| format!("/{name}")).unwrap();
        // Of all the same labels: a label that is not there is an empty one.
        let (path, code) = (if word == "no_route" { "" } else { &path }, code.to_string());
        let labels = [("direction", "outbound"), ("code", &code), ("failure", word), ("route", path)];
        let metrics = envoy.prometheus().await?;
        let times = |metrics: &Metrics| -> f64 {
            let all = metrics.series("meshfilter_requests_finished_total", &[]);
            let same = |sample: &&&Sample| {
                labels.iter().all(|(name, value)| sample.labels.get(*name).map_or("", String::as_str) == *value)
            };
            all.iter().filter(same).map(|sample| sample.value).sum()
        };
        assert_eq!(times(&metrics) - times(&before), 1.0, "{what}: {labels:?}");
        before = metrics.clone();
        count += 1.0;
        good += if is_good { 1.0 } else { 0.0 };
        let slo = |name: &str| metrics.value(name, &[("objective", "ok")]);
        assert_eq!(slo("meshfilter_slo_requests_total"), Some(count), "{what}");
        assert_eq!(slo("meshfilter_slo_good_requests_total"), Some(good), "{what}");
    }

    // The client goes, over either protocol; and one that does not speak it.
    let mut h1 = H1::connect(envoy.addr("in")).await?;
    h1.write(&slow("/up/g").to_bytes()).await?;
    upstream.wait(1).await?;
    drop(h1);
    becomes(&envoy, "meshfilter_requests_finished_total", &[("failure", "client_gone")], 1.0).await?;
    let h2 = H2::connect(envoy.addr("in")).await?;
    assert!(timeout(Duration::from_millis(100), h2.send(&slow("/up/h"))).await.is_err());
    becomes(&envoy, "meshfilter_requests_finished_total", &[("failure", "client_gone")], 2.0).await?;
    let mut h1 = H1::connect(envoy.addr("in")).await?;
    h1.write(b"POST /up/i HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await?;
    becomes(&envoy, "meshfilter_requests_finished_total", &[("failure", "client_gone")], 3.0).await?;
    let gone = envoy.prometheus().await?;
    assert_eq!(
        gone.value("meshfilter_requests_finished_total", &[("failure", "client_gone"), ("code", "400")]),
        Some(1.0)
    );
    // Who left did not get a bad answer.
    assert_eq!(gone.value("meshfilter_slo_good_requests_total", &[]), Some(good + 3.0));
    becomes(&envoy, "meshfilter_requests_in_flight", &[("direction", "outbound")], 0.0).await?;
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_protocol_is_known_and_streams_are_apart() -> Result<()> {
    let upstream = Upstream::start().await?;
    let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let websocket = Raw::echo(Some(upgraded)).await?;
    let configuration = json!({ "labels": ALL_LABELS, "streams": ["/chat.Chat/"], "bytes": true });
    let buckets = json!({ "match": { "prefix": "wasmcustom.meshfilter_" }, "buckets": [10, 50, 100, 200, 500] });
    let envoy = builder()
        .histogram_buckets(buckets)
        .cluster("up", upstream.addr())
        .cluster("ws", websocket.addr)
        .add_cluster(Cluster::new("h2", upstream.addr()).http2())
        .listener(
            listener("in")
                .merge_hcm(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
                .filter(latency("latency", configuration)?)
                .route(route("/ws", "ws", json!({})))
                .route(route("/plain", "up", json!({})))
                .route(route("/", "h2", json!({}))),
        )
        .start()
        .await?;
    let finished = "meshfilter_requests_finished_total";
    let counted = async |name: &str, labels: &[(&str, &str)]| value(&envoy, &format!("{name}_count"), labels).await;
    let h2 = H2::connect(envoy.addr("in")).await?;

    // HTTP/1.1 and h2, with bodies and without, and one that waits to be asked for its body.
    let post = Request::post("/plain", [b'x'; 1000]);
    assert_eq!(envoy.send("in", &post).await?.status, 200);
    assert_eq!(h2.send(&post).await?.status, 200);
    assert_eq!(envoy.send("in", &Request::new("HEAD", "/plain")).await?.status, 200);
    let mut h1 = H1::connect(envoy.addr("in")).await?;
    h1.write(b"PUT /plain HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await?;
    sleep(Duration::from_millis(100)).await;
    h1.write(b"abc").await?;
    assert_eq!(h1.read(false).await?.status, 200);
    for (method, times) in [("POST", 2.0), ("HEAD", 1.0), ("PUT", 1.0)] {
        becomes(&envoy, finished, &[("protocol", "http"), ("method", method), ("code", "2xx")], times).await?;
    }
    let waited = envoy.wait_for_json("in", 4).await?.remove(3);
    assert!(part(&waited, "ttfb_us").unwrap() >= 50_000, "100 is not the response: {waited:?}");
    let labels = [("protocol", "http"), ("method", "POST")];
    let bytes = envoy.prometheus().await?;
    assert!(bytes.value("meshfilter_request_bytes_total", &labels).unwrap() > 2000.0);
    assert!(bytes.value("meshfilter_response_bytes_total", &labels).unwrap() > 4.0);

    // gRPC: the status from trailers, from headers, from neither, and from the proxy itself.
    for (path, reply, status) in [
        ("/a.B/C", "header=content-type:application/grpc; chunk=x; trailer=grpc-status:0", "0"),
        ("/a.B/C", "header=content-type:application/grpc; chunk=x; trailer=grpc-status:5", "5"),
        ("/a.B/C", "header=content-type:application/grpc; header=grpc-status:7", "7"),
        ("/a.B/C", "header=content-type:application/grpc; chunk=x", "2"),
        ("/a.B/C", "status=503", "14"),
    ] {
        let _ = h2.send(&grpc(path, reply)).await;
        becomes(&envoy, finished, &[("protocol", "grpc"), ("grpc_status", status)], 1.0).await?;
    }
    becomes(&envoy, "meshfilter_request_duration_millis_count", &[("protocol", "grpc")], 5.0).await?;
    assert!(
        envoy
            .prometheus()
            .await?
            .series(finished, &[("protocol", "http")])
            .iter()
            .all(|s| !s.labels.contains_key("grpc_status"))
    );

    // Streams, each seen while it is under way: server-sent events, a gRPC stream, a WebSocket.
    let events =
        Request::get("/plain").header("x-reply", "header=content-type:text/event-stream; head; pause=300; chunk=a");
    let watch = grpc(
        "/chat.Chat/Watch",
        "header=content-type:application/grpc; head; pause=300; chunk=a; trailer=grpc-status:0",
    );
    let (in_flight, lifetime) = ("meshfilter_requests_in_flight", "meshfilter_stream_duration_millis");
    let long = async |request: &Request| -> Result<()> {
        let (answer, under_way) = tokio::join!(h2.send(request), becomes(&envoy, in_flight, &[], 1.0));
        ensure!(answer?.status == 200, "not answered");
        under_way
    };
    long(&events).await?;
    becomes(&envoy, &format!("{lifetime}_count"), &[("protocol", "http"), ("method", "GET")], 1.0).await?;
    long(&watch).await?;
    becomes(&envoy, &format!("{lifetime}_count"), &[("protocol", "grpc"), ("grpc_status", "0")], 1.0).await?;
    let mut socket = TcpStream::connect(envoy.addr("in")).await?;
    socket.write_all(b"GET /ws HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await?;
    let mut head = vec![0; 4];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    socket.write_all(b"frames").await?;
    let mut echo = [0; 6];
    socket.read_exact(&mut echo).await?;
    assert_eq!(&echo, b"frames");
    becomes(&envoy, in_flight, &[], 1.0).await?;
    drop(socket);
    becomes(&envoy, &format!("{lifetime}_count"), &[("protocol", "websocket"), ("code", "1xx"), ("route", "/ws")], 1.0)
        .await?;
    becomes(&envoy, in_flight, &[], 0.0).await?;

    // What was no stream is in the other histogram, and all have a first byte.
    becomes(&envoy, "meshfilter_request_duration_millis_count", &[], 9.0).await?;
    assert!(counted("meshfilter_request_first_byte_millis", &[]).await? >= 12.0);
    assert_eq!(counted("meshfilter_request_duration_millis", &[("protocol", "websocket")]).await?, 0.0);
    let metrics = envoy.prometheus().await?;
    let buckets = metrics.series("meshfilter_request_duration_millis_bucket", &[]);
    let limits: BTreeSet<&str> = buckets.iter().map(|bucket| bucket.labels["le"].as_str()).collect();
    assert_eq!(limits, ["+Inf", "10", "100", "200", "50", "500"].into());
    assert_no_trap(&envoy);
    Ok(())
}

fn connections(name: &str, cluster: &str, configuration: Value) -> Result<Listener> {
    let proxy = json!({ "name": "tcp", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name, "cluster": cluster, "max_connect_attempts": 2,
    } });
    let filter = latency("latency", configuration)?.of_connections();
    Ok(Listener::tcp(name, [filter, proxy]).access_log(log()).merge(json!({ "traffic_direction": "INBOUND" })))
}

#[tokio::test]
async fn a_connection_has_its_own_metrics_from_the_same_module() -> Result<()> {
    let echo = Raw::echo(None).await?;
    let configuration = json!({ "labels": ALL_LABELS, "bytes": true, "properties": { "json": true } });
    let listeners = |more: &str| -> Result<Vec<Listener>> {
        let mut configuration = configuration.clone();
        configuration["apdex"] = more.into();
        Ok(vec![connections("echo", "echo", configuration.clone())?, connections("dead", "dead", configuration)?])
    };
    let mut builder = builder().cluster("echo", echo.addr).cluster("dead", dead()?);
    for listener in listeners("1s")? {
        builder = builder.listener(listener);
    }
    let envoy = builder.start().await?;
    let open = "meshfilter_connections_open";
    let inbound = ("direction", "inbound");

    let mut stream = TcpStream::connect(envoy.addr("echo")).await?;
    stream.write_all(b"hello").await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    becomes(&envoy, open, &[inbound], 1.0).await?;
    // One that stays open while the listener is replaced, and is reset.
    let mut other = TcpStream::connect(envoy.addr("echo")).await?;
    other.write_all(b"hello").await?;
    other.read_exact(&mut answer).await?;
    becomes(&envoy, open, &[inbound], 2.0).await?;
    envoy.push(listeners("2s")?).await?.accepted()?;
    other.set_zero_linger()?;
    drop(other);
    becomes(&envoy, open, &[inbound], 1.0).await?;
    stream.shutdown().await?;
    drop(stream);
    becomes(&envoy, open, &[inbound], 0.0).await?;

    let labels = [inbound, ("protocol", "tcp"), ("cluster", "echo")];
    becomes(&envoy, "meshfilter_connections_finished_total", &labels, 2.0).await?;
    becomes(&envoy, "meshfilter_connection_duration_millis_count", &labels, 2.0).await?;
    let metrics = envoy.prometheus().await?;
    for name in ["meshfilter_request_bytes_total", "meshfilter_response_bytes_total"] {
        assert_eq!(metrics.value(name, &labels), Some(10.0), "{name}");
    }
    assert_eq!(metrics.value("meshfilter_connections_started_total", &[inbound]), Some(2.0));
    let line = envoy.wait_for_json("echo", 2).await?.remove(0);
    assert!(part(&line, "total_us").is_some() && part(&line, "pool_us").is_some(), "{line:?}");
    assert_eq!((part(&line, "attempts"), part(&line, "upstream_us")), (Some(1), None), "{line:?}");
    assert!(line["start_time_ns"].is_string() && line["json"].as_str().unwrap().starts_with("{\"total_us\":"));

    // Nobody listens there: two attempts.
    let mut refused = TcpStream::connect(envoy.addr("dead")).await?;
    let _ = refused.read(&mut [0; 1]).await;
    let failed = [("failure", "no_upstream"), ("cluster", "dead")];
    becomes(&envoy, "meshfilter_connections_finished_total", &failed, 1.0).await?;
    let line = envoy.wait_for_json("dead", 1).await?.remove(0);
    assert_eq!(part(&line, "attempts"), Some(2), "{line:?}");
    assert!(envoy.prometheus().await?.names("meshfilter_requests").is_empty(), "it is no request");
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn gauges_are_at_zero_after_a_storm_of_resets_and_pushes() -> Result<()> {
    let upstream = Upstream::start().await?;
    let listener = |number: u64, merge: Value| -> Result<Listener> {
        let filter = latency("latency", json!({ "max_series": 100 + number }))?;
        Ok(listener("in").merge(merge).filter(filter).route(route("/", "up", json!({}))))
    };
    let envoy = builder().cluster("up", upstream.addr()).listener(listener(0, json!({}))?).start().await?;
    let request = Request::get("/").header("x-reply", "head; pause=30; chunk=a; pause=30");
    let broken = Request::get("/").header("x-reply", "head; chunk=a; pause=10; reset");
    let mut clients = JoinSet::new();
    let until = Instant::now() + Duration::from_secs(4);
    for client in 0..12_u64 {
        let (addr, request) = (envoy.addr("in"), if client % 3 == 0 { broken.clone() } else { request.clone() });
        clients.spawn(async move {
            let mut turn = client;
            while Instant::now() < until {
                turn += 1;
                // Each gives up at another moment, before the headers or after them, or not at all.
                let patience = Duration::from_millis(turn * 7 % 80);
                if client % 2 == 0 {
                    let Ok(h2) = H2::connect(addr).await else { continue };
                    let _ = timeout(patience, async {
                        tokio::join!(h2.send(&request), h2.send(&request), h2.send(&request))
                    })
                    .await;
                } else {
                    let Ok(mut h1) = H1::connect(addr).await else { continue };
                    let _ = timeout(patience, h1.send(&request)).await;
                }
            }
        });
    }
    let mut pushes = 0;
    while Instant::now() < until {
        pushes += 1;
        envoy.push([listener(pushes, json!({}))?]).await?.accepted()?;
        sleep(Duration::from_millis(200)).await;
    }
    while clients.join_next().await.is_some() {}
    becomes(&envoy, "meshfilter_requests_in_flight", &[], 0.0).await?;
    let metrics = envoy.prometheus().await?;
    let (started, finished) = ("meshfilter_requests_started_total", "meshfilter_requests_finished_total");
    assert!(pushes >= 5 && metrics.value(started, &[]).unwrap() > 200.0, "{pushes} pushes");
    assert_eq!(metrics.value(started, &[]), metrics.value(finished, &[]));
    assert!(metrics.series(finished, &[]).len() > 1, "some were broken off");
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_strangers_make_up_makes_no_series_and_no_memory() -> Result<()> {
    let upstream = Upstream::start().await?;
    let labels = json!({ "labels": ["protocol", "method", "code", "route"], "code": "exact", "max_series": 40 });
    let envoy = builder()
        .cluster("up", upstream.addr())
        .listener(
            Listener::http("in")
                .filter(latency("latency", labels)?)
                .route(route("/up", "up", json!({})))
                .route(Route::respond(200, "ok")),
        )
        .start()
        .await?;
    // 8 connections; each request with another host and path.
    let flood = async |times: u64| -> Result<()> {
        let mut clients = JoinSet::new();
        for client in 0..8_u64 {
            let addr = envoy.addr("in");
            clients.spawn(async move {
                let mut h1 = H1::connect(addr).await?;
                for n in 0..times {
                    let one = format!("GET /{client}/{n} HTTP/1.1\r\nhost: {n}.{client}.example\r\n\r\n");
                    let response = h1.exchange(one.as_bytes()).await?;
                    ensure!(response.status == 200, "{response:?}");
                }
                anyhow::Ok(())
            });
        }
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok(())
    };
    let series = async || -> Result<usize> { Ok(envoy.stats("wasmcustom.meshfilter_").await?.len()) };
    let h2 = H2::connect(envoy.addr("in")).await?;
    h2.send(&Request::new("MADE-UP", "/")).await?;
    flood(100).await?;
    let (before, memory) = (series().await?, envoy.linear_memory()?);
    flood(12_500).await?;
    for n in 0..200 {
        h2.send(&Request::new(&format!("M{n}"), "/")).await?;
    }
    assert_eq!((series().await?, envoy.linear_memory()?), (before, memory));
    let finished = "meshfilter_requests_finished_total";
    assert!(value(&envoy, finished, &[("method", "GET")]).await? >= 100_000.0);
    becomes(&envoy, finished, &[("method", "OTHER")], 201.0).await?;

    // What an upstream makes up goes as far as the limit, in each worker, and one more of each metric.
    for n in 200..400 {
        h2.send(&Request::get("/up").header("x-reply", format!("status={n}"))).await?;
    }
    becomes(&envoy, "meshfilter_requests_in_flight", &[], 0.0).await?;
    let metrics = envoy.prometheus().await?;
    let labels = metrics.series(finished, &[]).len();
    assert!(labels < 45 && metrics.value(finished, &[("code", "overflow")]).unwrap() > 150.0, "{labels}");
    assert_no_trap(&envoy);
    Ok(())
}

fn median(mut of: Vec<i64>) -> i64 {
    of.sort_unstable();
    of[of.len() / 2]
}

/// Waits in the worker until so many microseconds have passed, and says how many there were.
const WAIT: &str = "local function us(h)
    return tonumber(h:timestampString(EnvoyTimestampResolution.MICROSECOND))
end
local function wait(h, long)
    local begin, now = us(h), 0
    repeat now = us(h) until now - begin >= long
    return now - begin
end
function envoy_on_request(h)
    if not h:headers():get('x-quick') then h:headers():add('x-between-us', string.format('%d', wait(h, 5000))) end
end
function envoy_on_response(h)
    if h:headers():get('x-slow') then h:headers():add('x-back-us', string.format('%d', wait(h, 3000))) end
end";

fn now_us() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
}

/// Runs rounds until one is right: the machine may be busy with something else for a while, but not for ten rounds, and
/// what is wrong by construction is wrong in each.
async fn in_a_quiet_moment(mut round: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let mut last = Ok(());
    for _ in 0..10 {
        last = round().await;
        if last.is_ok() {
            return last;
        }
    }
    last.context("in each of 10 rounds")
}

const REQUESTS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn known_pauses_are_where_they_were_put() -> Result<()> {
    // Stops this very thread, because a timer's wake-up would be a millisecond late, and notes how long and until when.
    let pauses = Arc::<Mutex<Vec<(i64, i64)>>>::default();
    let noted = Arc::clone(&pauses);
    let upstream = Upstream::with(move |request| {
        let begun = now_us();
        std::thread::sleep(Duration::from_millis(8));
        noted.lock().unwrap().push((now_us() - begun, now_us()));
        // Without a body: what comes behind the headers is read when the filters have let them through, and while one of
        // them keeps the worker busy, that is time of the upstream.
        Reply::new(200).header(if request.headers.has("x-quick") { "x-fast" } else { "x-slow" }, "y")
    })
    .await?;
    let role = |role: &str| latency(role, json!({ "role": role, "labels": ["route"], "unit": "us" }));
    let one = json!({ "circuit_breakers": { "thresholds": [{ "max_connections": 1 }] } });
    let envoy = builder()
        .add_cluster(Cluster::new("up", upstream.addr()).merge(one))
        .listener(
            listener("in")
                .filter(role("outer")?)
                .filter(HttpFilter::lua("between", WAIT))
                .filter(role("inner")?)
                .route(route("/", "up", json!({}))),
        )
        .start()
        .await?;
    let h2 = H2::connect(envoy.addr("in")).await?;
    let number = |line: &Map<String, Value>, key: &str| -> Result<i64> {
        Ok(line[key].as_str().with_context(|| format!("no {key} in {line:?}"))?.parse()?)
    };
    let near = |what: &str, off: Vec<i64>| -> Result<()> {
        let off = median(off);
        println!("{what}: off by {off} us at the median");
        ensure!((-1000..=1000).contains(&off), "{what}: off by {off} us at the median of {REQUESTS}");
        Ok(())
    };

    // In the upstream, and between the two instances, there and back.
    in_a_quiet_moment(async || {
        pauses.lock().unwrap().clear();
        let before = envoy.access_log("in").len();
        for _ in 0..REQUESTS {
            h2.send(&Request::get("/")).await?;
        }
        let lines = envoy.wait_for_json("in", before + REQUESTS).await?.split_off(before);
        let slept: Vec<i64> = pauses.lock().unwrap().iter().map(|(length, _)| *length).collect();
        let (mut upstream, mut filters, mut proxy, mut pool, mut first) = (vec![], vec![], vec![], vec![], vec![]);
        for (line, slept) in lines.iter().zip(&slept) {
            let between = number(line, "between")? + number(line, "back")?;
            upstream.push(number(line, "upstream_us")? - slept);
            filters.push(number(line, "filters_us")? - between);
            proxy.push(number(line, "proxy_us")? - between);
            pool.push(number(line, "pool_us")?);
            first.push(number(line, "ttfb_us")? - between - slept);
        }
        near("upstream_us", upstream)?;
        near("filters_us", filters)?;
        near("proxy_us", proxy)?;
        near("pool_us, without a pause", pool)?;
        near("ttfb_us", first)
    })
    .await?;
    let answered = envoy.access_log("in").len();
    becomes(&envoy, "meshfilter_filters_duration_micros_count", &[], f64::from(u32::try_from(answered)?)).await?;

    // In the pool: a second request has to wait until the first gives the only connection free.
    in_a_quiet_moment(async || {
        let mut waited = vec![];
        for _ in 0..REQUESTS {
            pauses.lock().unwrap().clear();
            let before = envoy.access_log("in").len();
            let request = Request::get("/").header("x-quick", "y");
            let second = async {
                sleep(Duration::from_millis(2)).await;
                h2.send(&request).await
            };
            let (one, other) = tokio::join!(h2.send(&request), second);
            ensure!(one?.status == 200 && other?.status == 200, "not answered");
            let line = envoy.wait_for_json("in", before + 2).await?.remove(before + 1);
            // It was held back until it arrived at the upstream, all the time from its beginning.
            let (slept, until) = pauses.lock().unwrap()[1];
            waited.push(number(&line, "pool_us")? - (until - slept - number(&line, "start_time_ns")? / 1000));
        }
        near("pool_us", waited)
    })
    .await?;
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test]
async fn a_filter_between_that_answers_took_the_time_itself() -> Result<()> {
    let role = |role: &str| latency(role, json!({ "role": role, "labels": [] }));
    let script = WAIT
        .replace("function envoy_on_response", "function unused")
        .replace("wait(h, 5000))) end", "wait(h, 5000))) h:respond({[':status'] = '403'}, 'no') end");
    let envoy = builder()
        .listener(
            listener("in").filter(role("outer")?).filter(HttpFilter::lua("between", &script)).filter(role("inner")?),
        )
        .start()
        .await?;
    assert_eq!(envoy.get("in", "/", ()).await?.status, 403);
    assert_eq!(envoy.get("in", "/", [("x-quick", "y")]).await?.status, 200);
    let lines = envoy.wait_for_json("in", 2).await?;
    assert!(part(&lines[0], "filters_us").unwrap() >= 5000, "{:?}", lines[0]);
    // The router's own answer came through both.
    assert!(part(&lines[1], "filters_us").unwrap() <= part(&lines[1], "total_us").unwrap(), "{:?}", lines[1]);
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test]
async fn trace_id_and_latency_agree_on_the_beginning() -> Result<()> {
    let upstream = Upstream::start().await?;
    let log = AccessLog::json([("start", "%FILTER_STATE(wasm.start_time_ns:PLAIN)%")]);
    let trace_id = HttpFilter::wasm("trace-id", module("trace-id")?).config(json!({ "join": {} }));
    // 5 ms between the two, so that their own beginnings differ by more than it takes to look.
    let delay = HttpFilter::lua("between", WAIT);
    let both = Listener::http("both").filter(trace_id).filter(delay).filter(latency("latency", json!({}))?);
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(both.access_log(log.clone()).route(Route::cluster("up")))
        .listener(
            Listener::http("one").filter(latency("latency", json!({}))?).access_log(log).route(Route::cluster("up")),
        )
        .start()
        .await?;
    for (name, since) in [("both", 25_000), ("one", 20_000)] {
        let before = now_us();
        envoy.get(name, "/", [("x-reply", "pause=20")]).await?;
        let end = now_us();
        let line = envoy.wait_for_json(name, 1).await?.remove(0);
        let start = line["start"].as_str().context("no start")?.parse::<i64>()? / 1000;
        assert!((before..=end - since).contains(&start), "{name}: {line:?}");
    }
    assert_no_trap(&envoy);
    Ok(())
}
