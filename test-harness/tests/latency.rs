//! latency in a real Envoy with two workers: what comes out of sockets, logs and Prometheus.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kit::Filter as _;
use latency::Latency;
use serde_json::{Map, Value, json};
use test_harness::envoy::Builder;
use test_harness::metrics::{Metrics, Sample};
use test_harness::prometheus::promtool;
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
    async fn echo() -> Result<Self> {
        Self::echoing(None).await
    }

    /// The same behind an upgrade.
    async fn websocket() -> Result<Self> {
        let upgraded = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        Self::echoing(Some(upgraded)).await
    }

    async fn echoing(upgrade: Option<&'static [u8]>) -> Result<Self> {
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
            "it lasted too long, and was answered",
            told("/longest", "head; chunk=a; pause=400; chunk=late"),
            200,
            "-",
            "timeout",
            Some(1),
            "upstream_us proxy_us",
            false,
        ),
        (
            "a deadline, and it was answered",
            grpc("/deadline", "header=content-type:application/grpc; head; chunk=a; pause=400; chunk=late")
                .header("grpc-timeout", "50m"),
            200,
            "-",
            "timeout",
            Some(1),
            "upstream_us proxy_us",
            false,
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
    // In the middle of an answer, to which the proxy gives a status of its own in gRPC.
    let endless = grpc("/h2/c", "header=content-type:application/grpc; head; chunk=a; pause=60000");
    assert!(timeout(Duration::from_millis(100), h2.send(&endless)).await.is_err());
    becomes(&envoy, "meshfilter_requests_finished_total", &[("failure", "client_gone")], 4.0).await?;
    let gone = envoy.prometheus().await?;
    // Who left in the middle did not get a bad answer; who left without one, in time, does not count.
    assert_eq!(gone.value("meshfilter_slo_good_requests_total", &[]), Some(good + 2.0));
    assert_eq!(gone.value("meshfilter_slo_requests_total", &[]), Some(count + 2.0));
    becomes(&envoy, "meshfilter_requests_in_flight", &[("direction", "outbound")], 0.0).await?;
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_protocol_is_known_and_streams_are_apart() -> Result<()> {
    let upstream = Upstream::start().await?;
    let websocket = Raw::websocket().await?;
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
    // Two messages, empty ones, are a stream, whatever its path; one message is none.
    let unary = grpc("/a.B/C", "header=content-type:application/grpc; header=grpc-status:0");
    for body in [[0; 5].as_slice(), &[0; 10]] {
        assert_eq!(h2.send(&Request { body: body.to_vec(), ..unary.clone() }).await?.status, 200);
    }
    becomes(&envoy, "meshfilter_request_duration_millis_count", &[("protocol", "grpc")], 6.0).await?;
    becomes(&envoy, "meshfilter_stream_duration_millis_count", &[("protocol", "grpc")], 1.0).await?;
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
    becomes(&envoy, &format!("{lifetime}_count"), &[("protocol", "grpc"), ("grpc_status", "0")], 2.0).await?;
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
    becomes(&envoy, "meshfilter_request_duration_millis_count", &[], 10.0).await?;
    assert!(counted("meshfilter_request_first_byte_millis", &[]).await? >= 14.0);
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
    let echo = Raw::echo().await?;
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

/// What ended, each as `request` or `stream`, whichever histogram it is in, with its labels but direction and the values
/// alone; and how often.
fn ended(metrics: &Metrics) -> BTreeMap<String, f64> {
    let mut ended = BTreeMap::new();
    for kind in ["request", "stream", "connection"] {
        for sample in metrics.series(&format!("meshfilter_{kind}_duration_millis_count"), &[]) {
            let labels = ALL_LABELS[1..].iter().filter_map(|label| sample.labels.get(*label));
            let line = labels.fold(kind.to_owned(), |line, value| line + " " + value);
            *ended.entry(line).or_default() += sample.value;
        }
    }
    ended
}

/// Waits until just these have ended since then, and counted as finished, and nothing else.
async fn ends(envoy: &Envoy, what: &str, before: &mut Metrics, wanted: &[&str]) -> Result<()> {
    let mut expected = ended(before);
    for line in wanted {
        *expected.entry((*line).to_owned()).or_default() += 1.0;
    }
    let finished = |metrics: &Metrics| {
        let of = |kind: &str| metrics.value(&format!("meshfilter_{kind}_finished_total"), &[]).unwrap_or(0.0);
        of("requests") + of("connections")
    };
    let total: f64 = expected.values().sum();
    *before = eventually(format!("{what}: {wanted:?}"), PATIENCE, async || {
        let now = envoy.prometheus().await.map_err(|error| format!("{error:#}"))?;
        let right = ended(&now) == expected && (finished(&now) - total).abs() < 0.5;
        if right { Ok(now) } else { Err(format!("finished {}, {:#?}", finished(&now), ended(&now))) }
    })
    .await?;
    Ok(())
}

/// Sends these bytes on a connection of their own and reads until this has come, or the end; the connection is still
/// open then.
async fn talk(addr: SocketAddr, bytes: &str, until: &str) -> Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes.as_bytes()).await?;
    let mut text = String::new();
    timeout(PATIENCE, async {
        let mut some = [0; 4096];
        while !text.contains(until) {
            match stream.read(&mut some).await? {
                0 => break,
                read => text.push_str(&String::from_utf8_lossy(&some[..read])),
            }
        }
        anyhow::Ok(())
    })
    .await
    .with_context(|| format!("no {until:?} but {text:?}"))??;
    Ok((stream, text))
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_are_counted_once_and_as_what_they_were() -> Result<()> {
    let tried = AtomicBool::new(false);
    let upstream = Upstream::with(move |request| match &*request.path {
        "/flaky" if !tried.swap(true, Ordering::Relaxed) => Reply::new(503).pause(Duration::from_millis(60)),
        "/redirect" => Reply::new(302).header("location", "http://a/redirect/on"),
        _ => Reply::to(request),
    })
    .await?;
    let (mirror, echo) = (Upstream::start().await?, Raw::echo().await?);
    let interim = Raw::start(|mut stream| async move {
        let _ = stream.read(&mut [0; 4000]).await?;
        for interim in ["103 Early Hints\r\nlink: x", "100 Continue"] {
            stream.write_all(format!("HTTP/1.1 {interim}\r\n\r\n").as_bytes()).await?;
            sleep(Duration::from_millis(60)).await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
        let _ = stream.read(&mut [0; 4000]).await?;
        Ok(())
    })
    .await?;
    let websocket = Raw::start(|mut stream| async move {
        let _ = stream.read(&mut [0; 4000]).await?;
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nframes";
        stream.write_all(head.as_bytes()).await?;
        drop(stream.read(&mut [0; 4000]).await);
        Ok(())
    })
    .await?;
    // A preface, settings, and an extended CONNECT (RFC 8441), each field a literal.
    let fields = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":path", "/ws"),
        (":authority", "a"),
    ];
    let text = |text: &str| format!("{}{text}", char::from(u8::try_from(text.len()).unwrap()));
    let fields: String = fields.iter().map(|(name, value)| format!("\0{}{}", text(name), text(value))).collect();
    let length = char::from(u8::try_from(fields.len()).unwrap());
    let over_h2 = format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0{length}\x01\x04\0\0\0\x01{fields}");
    let configuration = json!({ "labels": ALL_LABELS, "properties": { "json": true },
        "exclude": { "paths": ["/left-out"], "routes": ["/probe"] }, "streams": ["/endless"] });
    let mut site = listener("in")
        .merge_hcm(json!({ "http_protocol_options": { "accept_http_10": true, "enable_trailers": true },
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "websocket" }, { "upgrade_type": "CONNECT" }],
            "proxy_100_continue": true, "request_headers_timeout": "0.3s", "request_timeout": "0.5s" }))
        .filter(latency("latency", configuration)?)
        .filter(HttpFilter::wasm("trap", module("trap")?));
    let off = json!({ "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": true });
    let retry = json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 2,
        "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } } });
    for (path, cluster, merge) in [
        ("/flaky", "up", json!({ "route": retry })),
        ("/interim", "interim", json!({})),
        ("/mirrored", "up", json!({ "route": { "request_mirror_policies": [{ "cluster": "mirror" }] } })),
        ("/redirect", "up", json!({ "route": { "internal_redirect_policy": { "max_internal_redirects": 1 } } })),
        ("/off", "up", json!({ "typed_per_filter_config": { "latency": off } })),
        ("/left-out", "up", json!({ "route": { "prefix_rewrite": "/" } })),
        ("/put-in", "up", json!({ "route": { "prefix_rewrite": "/left-out" } })),
        ("/endless", "up", json!({ "route": { "prefix_rewrite": "/" } })),
        ("/probe", "up", json!({})),
        ("/ws", "ws", json!({})),
        ("/plain", "up", json!({})),
    ] {
        site = site.route(route(path, cluster, merge));
    }
    let tunnel =
        Route::cluster("echo").merge(json!({ "name": "tunnel", "match": { "prefix": null, "connect_matcher": {},
            "headers": [{ "name": "x-tunnel", "present_match": true }] },
        "route": { "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] } }));
    let envoy = builder()
        .cluster("up", upstream.addr())
        .cluster("mirror", mirror.addr())
        .cluster("echo", echo.addr)
        .cluster("interim", interim.addr)
        .cluster("ws", websocket.addr)
        .listener(site.route(tunnel))
        .start()
        .await?;
    let mut before = Metrics::default();
    for (what, bytes, until, wanted) in [
        ("no body", "HEAD /plain HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n\r\n", &["request http HEAD 2xx /plain up"][..]),
        (
            "204",
            "GET /plain HTTP/1.1\r\nhost: a\r\nx-reply: status=204\r\n\r\n",
            "\r\n\r\n",
            &["request http GET 2xx /plain up"],
        ),
        (
            "304",
            "GET /plain HTTP/1.1\r\nhost: a\r\nx-reply: status=304\r\n\r\n",
            "\r\n\r\n",
            &["request http GET 3xx /plain up"],
        ),
        ("HTTP/1.0", "GET /plain HTTP/1.0\r\nhost: a\r\n\r\n", "ok", &["request http GET 2xx /plain up"]),
        (
            "trailers",
            "PUT /plain HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\r\n\r\n",
            "ok",
            &["request http PUT 2xx /plain up"],
        ),
        (
            "a pipeline",
            "GET /plain HTTP/1.1\r\nhost: a\r\n\r\nGET /plain HTTP/1.1\r\nhost: a\r\nx-reply: status=404\r\n\r\nGET /plain HTTP/1.1\r\nhost: a\r\nx-reply: chunk=third\r\n\r\n",
            "third",
            &["request http GET 2xx /plain up", "request http GET 4xx /plain up", "request http GET 2xx /plain up"],
        ),
        ("a second attempt", "GET /flaky HTTP/1.1\r\nhost: a\r\n\r\n", "ok", &["request http GET 2xx /flaky up"]),
        (
            "interim responses",
            "PUT /interim HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nab",
            "ok",
            &["request http PUT 2xx /interim interim"],
        ),
        (
            "a copy goes elsewhere",
            "GET /mirrored HTTP/1.1\r\nhost: a\r\n\r\n",
            "ok",
            &["request http GET 2xx /mirrored up"],
        ),
        (
            "a redirect by the proxy itself",
            "GET /redirect HTTP/1.1\r\nhost: a\r\n\r\n",
            "ok",
            &["request http GET 3xx /redirect up", "request http GET 2xx /redirect up"],
        ),
        ("not measured", "GET /off HTTP/1.1\r\nhost: a\r\n\r\n", "ok", &[]),
        ("left out, and written over", "GET /left-out HTTP/1.1\r\nhost: a\r\n\r\n", "ok", &[]),
        (
            "written over to what is left out",
            "GET /put-in HTTP/1.1\r\nhost: a\r\n\r\n",
            "ok",
            &["request http GET 2xx /put-in up"],
        ),
        ("a probe, by its route", "GET /probe HTTP/1.1\r\nhost: a\r\n\r\n", "ok", &[]),
        ("a WebSocket over h2", &over_h2, "frames", &["stream websocket GET 1xx client_gone /ws ws"]),
        (
            "a stream, and written over",
            "GET /endless HTTP/1.1\r\nhost: a\r\n\r\n",
            "ok",
            &["stream http GET 2xx /endless up"],
        ),
        (
            "no upgrade",
            "GET /plain HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-reply: status=403\r\n\r\n",
            "\r\n\r\n",
            &["request http GET 4xx /plain up"],
        ),
        (
            "a tunnel",
            "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\nx-tunnel: y\r\n\r\n",
            "\r\n\r\n",
            &["stream websocket CONNECT 2xx client_gone tunnel echo"],
        ),
        ("no tunnel", "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", "\r\n\r\n", &["request http CONNECT 4xx no_route"]),
        ("headers without end", "GET /plain HTTP/1.1\r\nhost: a\r\n", "\r\n\r\n", &["request http 4xx"]),
        (
            "a body without end",
            "PUT /plain HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n",
            "\r\n\r\n",
            &["request http PUT 4xx timeout /plain up"],
        ),
        ("no HTTP", "what?\r\n\r\n", "\r\n\r\n", &["request http 4xx client_gone"]),
    ] {
        drop(talk(envoy.addr("in"), bytes, until).await?);
        ends(&envoy, what, &mut before, wanted).await?;
    }
    becomes(&envoy, "meshfilter_requests_in_flight", &[], 0.0).await?;
    // One that was left out by its route began; two came to nothing before the filter heard of them.
    assert_eq!(
        before.value("meshfilter_requests_started_total", &[]).unwrap(),
        before.value("meshfilter_requests_finished_total", &[]).unwrap() + 1.0 - 2.0
    );
    let lines = envoy.wait_for_json("in", 25).await?;
    let of = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap();
    let again = of("/flaky");
    assert!(part(again, "attempts") == Some(2) && part(again, "proxy_us").unwrap() >= 60_000, "{again:?}");
    assert!(again["json"].as_str().unwrap().ends_with(r#","attempts":2,"approximate":true}"#), "{again:?}");
    assert!(!of("/mirrored")["json"].as_str().unwrap().contains("approximate"));
    assert!(part(of("/interim"), "ttfb_us").unwrap() >= 120_000, "{:?}", of("/interim"));
    assert!(part(of("/off"), "total_us").is_none() && part(of("/left-out"), "total_us").is_some());
    assert_eq!(mirror.wait(1).await?.len(), 1);
    assert_no_trap(&envoy);
    // Another module traps: in a VM of its own, and what it was to see is counted here.
    envoy.get("in", "/plain", [("x-trap", "y")]).await?;
    ends(&envoy, "a trap", &mut before, &["request http GET 5xx /plain up"]).await?;
    becomes(&envoy, "meshfilter_requests_in_flight", &[], 0.0).await?;
    Ok(())
}

/// A network filter but the module.
fn network(kind: &str, config: Value) -> Value {
    let mut config = config;
    config["@type"] = format!("type.googleapis.com/envoy.extensions.filters.network.{kind}").into();
    json!({ "name": kind, "typed_config": config })
}

#[tokio::test(flavor = "multi_thread")]
async fn however_a_connection_ends_it_is_counted_once_and_not_open() -> Result<()> {
    let (echo, closing) = (Raw::echo().await?, Raw::saying(b"bye").await?);
    let resetting = Raw::start(|mut stream| async move {
        let _ = stream.read(&mut [0; 1000]).await?;
        stream.set_zero_linger()
    })
    .await?;
    let measured = || anyhow::Ok(latency("latency", json!({ "labels": ALL_LABELS }))?.of_connections());
    let proxy = |cluster: &str, merge: Value| {
        let mut config = json!({ "stat_prefix": "tcp", "cluster": cluster });
        config.as_object_mut().unwrap().extend(merge.as_object().unwrap().clone());
        network("tcp_proxy.v3.TcpProxy", config)
    };
    let deny = || {
        network(
            "rbac.v3.RBAC",
            json!({ "stat_prefix": "deny", "rules": { "action": "DENY",
        "policies": { "all": { "permissions": [{ "any": true }], "principals": [{ "any": true }] } } } }),
        )
    };
    let direct = network("direct_response.v3.Config", json!({ "response": { "inline_string": "direct" } }));
    let listeners = [
        ("echo", vec![measured()?, proxy("echo", json!({}))]),
        ("closing", vec![measured()?, proxy("closing", json!({}))]),
        ("resetting", vec![measured()?, proxy("resetting", json!({}))]),
        ("idle", vec![measured()?, proxy("echo", json!({ "idle_timeout": "0.1s" }))]),
        ("longest", vec![measured()?, proxy("echo", json!({ "max_downstream_connection_duration": "0.1s" }))]),
        ("denied", vec![measured()?, deny(), proxy("echo", json!({}))]),
        ("in front", vec![deny(), measured()?, proxy("echo", json!({}))]),
        ("direct", vec![measured()?, direct]),
        ("no proxy", vec![measured()?, network("echo.v3.Echo", json!({}))]),
        ("removed", vec![measured()?, proxy("echo", json!({}))]),
    ];
    let mut builder = builder()
        .cluster("echo", echo.addr)
        .cluster("closing", closing.addr)
        .cluster("resetting", resetting.addr)
        .drain_time(Duration::from_secs(1));
    let mut kept = Vec::new();
    for (name, filters) in listeners {
        let listener = Listener::tcp(name, filters).access_log(log());
        builder = builder.listener(listener.clone());
        kept.push((name, listener));
    }
    let envoy = builder.start().await?;
    let mut before = Metrics::default();
    // Up to 1.37 it has no flag for it.
    let late = envoy.version().await?.as_str() >= "1.38";
    let reset = if late { "connection tcp upstream_reset resetting" } else { "connection tcp resetting" };
    #[derive(PartialEq)]
    enum End {
        Theirs,
        Close,
        HalfClose,
        Reset,
        Removal,
    }
    for (name, end, said, word) in [
        ("echo", End::Close, "hello", &["connection tcp echo"][..]),
        ("echo", End::HalfClose, "hello", &["connection tcp echo"]),
        ("echo", End::Reset, "hello", &["connection tcp echo"]),
        ("closing", End::Theirs, "bye", &["connection tcp closing"]),
        ("resetting", End::Theirs, "", &[reset]),
        ("idle", End::Theirs, "hello", &["connection tcp echo"]),
        ("longest", End::Theirs, "hello", &["connection tcp timeout echo"]),
        ("denied", End::Theirs, "", &["connection tcp echo"]),
        ("in front", End::Theirs, "", &["connection tcp echo"]),
        ("direct", End::Theirs, "direct", &["connection tcp"]),
        ("no proxy", End::Close, "hello", &["connection tcp"]),
        ("no proxy", End::Reset, "hello", &["connection tcp"]),
        ("removed", End::Removal, "hello", &["connection tcp echo"]),
    ] {
        let mut stream = TcpStream::connect(envoy.addr(name)).await?;
        stream.write_all(b"hello").await?;
        let mut text = vec![0; said.len()];
        let _ = stream.read_exact(&mut text).await;
        assert_eq!(String::from_utf8_lossy(&text), said, "{name}");
        match end {
            End::Theirs => drop(stream.read(&mut [0; 1]).await),
            End::Close => {}
            End::HalfClose => {
                stream.shutdown().await?;
                drop(stream.read(&mut [0; 1]).await);
            }
            End::Reset => stream.set_zero_linger()?,
            End::Removal => {
                let rest = kept.iter().filter(|(kept, _)| *kept != name).map(|(_, listener)| listener.clone());
                envoy.push(rest).await?.accepted()?;
                drop(stream.read(&mut [0; 1]).await);
            }
        }
        drop(stream);
        ends(&envoy, name, &mut before, word).await?;
        assert_eq!(before.value("meshfilter_connections_open", &[]), Some(0.0), "{name}");
    }
    assert_eq!(
        before.value("meshfilter_connections_started_total", &[]),
        before.value("meshfilter_connections_finished_total", &[])
    );
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_began_under_one_configuration_ends_under_it() -> Result<()> {
    let upstream = Upstream::start().await?;
    let (websocket, echo) = (Raw::websocket().await?, Raw::echo().await?);
    let begun = json!({ "labels": ["direction", "protocol", "route"] });
    let configurations = [
        (begun.clone(), ""),
        // Without direction the gauges are other series.
        (json!({ "labels": ["protocol"], "unit": "us" }), ""),
        (json!({ "labels": ["direction", "code"], "code": "exact", "max_series": 10 }), ""),
        // Other VMs.
        (begun, "another"),
        (json!({ "role": "inner" }), ""),
    ];
    let filter =
        |name: &str, (configuration, vm): &(Value, &str)| anyhow::Ok(latency(name, configuration.clone())?.vm_id(vm));
    let discovered = |with| anyhow::Ok(filter("discovered", with)?.discovered());
    // Inline, delivered on its own, and for TCP; without any in the end.
    let listeners = |with: Option<&(Value, &str)>| {
        let site = |name: &str| {
            listener(name)
                .merge(json!({ "traffic_direction": "INBOUND" }))
                .merge_hcm(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
                .route(route("/ws", "ws", json!({})))
                .route(route("/", "up", json!({})))
        };
        let inline = with.map(|with| filter("latency", with)).transpose()?;
        let connections = inline.clone().map(HttpFilter::of_connections);
        let proxy = network("tcp_proxy.v3.TcpProxy", json!({ "stat_prefix": "tcp", "cluster": "echo" }));
        anyhow::Ok([
            inline.into_iter().fold(site("in"), Listener::filter),
            site("ecds").filter(discovered(&configurations[0])?),
            Listener::tcp("tcp", connections.into_iter().chain([proxy]))
                .merge(json!({ "traffic_direction": "INBOUND" })),
        ])
    };
    let mut builder = builder().cluster("up", upstream.addr()).cluster("ws", websocket.addr).cluster("echo", echo.addr);
    for listener in listeners(Some(&configurations[0]))? {
        builder = builder.listener(listener);
    }
    let envoy = builder.drain_time(Duration::from_secs(600)).start().await?;

    let (in_flight, open) = ("meshfilter_requests_in_flight", "meshfilter_connections_open");
    let ask = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n{more}\r\n");
    let events = ask("/", "x-reply: header=content-type:text/event-stream; head; chunk=begun; pause=600000\r\n");
    let socket = ask("/ws", "connection: upgrade\r\nupgrade: websocket\r\n");
    let silent = ask("/silent", "x-reply: pause=600000\r\n");
    let (mut held, mut rounds) = (Vec::new(), 0.0);
    for next in configurations[1..].iter().map(Some).chain([None]) {
        if next.is_some() {
            rounds += 1.0;
            for name in ["in", "ecds"] {
                for (bytes, until) in [(&events, "begun"), (&socket, "101"), (&silent, "")] {
                    held.push(talk(envoy.addr(name), bytes, until).await?.0);
                }
            }
            held.push(talk(envoy.addr("tcp"), "hello", "hello").await?.0);
        }
        becomes(&envoy, in_flight, &[], 6.0 * rounds).await?;
        becomes(&envoy, open, &[], rounds).await?;
        if let Some(next) = next {
            envoy.push_extension(&discovered(next)?).await?.accepted()?;
        }
        envoy.push(listeners(next)?).await?.accepted()?;
    }
    let metrics = envoy.prometheus().await?;
    for gauge in [in_flight, open] {
        assert!(metrics.series(gauge, &[("direction", "inbound")])[0].value > metrics.value(gauge, &[]).unwrap() / 2.0);
        assert_eq!(metrics.series(gauge, &[]).len(), 2, "one with and one without a direction");
    }

    drop(held);
    for (gauge, what, times) in [(in_flight, "requests", 6.0), (open, "connections", 1.0)] {
        becomes(&envoy, &format!("meshfilter_{what}_finished_total"), &[], times * rounds).await?;
        let metrics = envoy.prometheus().await?;
        assert!(
            metrics.series(gauge, &[]).iter().all(|series| series.value == 0.0),
            "{:?}",
            metrics.series(gauge, &[])
        );
        assert_eq!(metrics.value(&format!("meshfilter_{what}_started_total"), &[]), Some(times * rounds));
    }
    // Each is in one histogram, of the unit that it began with: four rounds, of which one was in the other unit. What is
    // delivered on its own comes to the workers when it comes.
    let times = |metrics: &Metrics, kind: &str, unit: &str| {
        metrics.value(&format!("meshfilter_{kind}_duration_{unit}_count"), &[]).unwrap_or(0.0)
    };
    for (kind, all, finer) in [("stream", 16.0, 2.0), ("request", 8.0, 1.0), ("connection", 4.0, 1.0)] {
        eventually(format!("{all} of {kind}"), PATIENCE, async || {
            let metrics = envoy.prometheus().await.map_err(|error| format!("{error:#}"))?;
            let (ms, us) = (times(&metrics, kind, "millis"), times(&metrics, kind, "micros"));
            if ms + us == all && us >= finer { Ok(()) } else { Err(format!("{ms} and {us}")) }
        })
        .await?;
    }
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_any_kind_stay_labels_and_a_thousand_stay_few() -> Result<()> {
    let upstream = Upstream::start().await?;
    let (long, cut) = ("long".repeat(100), "long".repeat(32));
    // As the operator wrote them, and as labels.
    let names = [
        ("plain", "plain"),
        ("a.b|c d:80/é日", "a.b|c d:80/é日"),
        ("route=.=forged;.;code=.=x;.;", "route_._forged_._code_._x_._"),
        ("\"quotes\" and \\", "\"quotes\" and \\"),
        ("line\nbreak\ttab", "line_break_tab"),
        // The proxy itself drops empty parts of a name.
        (" ends in dots...", " ends in dots"),
        ("overflow", "overflow"),
        (&long, &cut),
    ];
    let mut odd = Listener::http("odd").filter(latency("latency", json!({ "labels": ["route"] }))?);
    for (n, (name, _)) in names.iter().enumerate() {
        odd = odd.route(route(&format!("/{n}/"), "up", json!({ "name": name })));
    }
    let few = json!({ "labels": ["route"], "max_series": 10 });
    let mut many = Listener::http("many").filter(latency("few", few)?.vm_id("few"));
    for n in 0..1000 {
        many = many.route(route(&format!("/{n}/"), "up", json!({ "name": format!("route {n}") })));
    }
    let envoy = builder().cluster("up", upstream.addr()).listener(odd).listener(many).start().await?;
    for n in 0..names.len() {
        assert_eq!(envoy.get("odd", &format!("/{n}/"), ()).await?.status, 200);
    }
    let finished = "meshfilter_requests_finished_total";
    let counted = async |wanted: f64| becomes(&envoy, finished, &[], wanted).await;
    counted(8.0).await?;
    let text = envoy.admin_get("/stats/prometheus").await?;
    let metrics = Metrics::parse(&text);
    for (_, label) in names {
        let series = metrics.series(finished, &[("route", label)]);
        assert!(series.len() == 1 && series[0].value == 1.0 && series[0].labels.len() == 1, "{label:?}: {metrics:#?}");
    }
    let known: BTreeSet<&str> = Latency::metrics().iter().map(|metric| metric.name).collect();
    let base =
        |name: &str| ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).map(str::to_owned);
    for name in metrics.names("meshfilter_") {
        assert!(known.contains(name) || base(name).is_some_and(|base| known.contains(&*base)), "{name}");
    }
    let report = promtool(&["check", "metrics"], &text).await?;
    assert_ne!(report.code, Some(1), "{report:?}");

    // Each route on each worker.
    let flood = async |routes: usize| -> Result<()> {
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            let addr = envoy.addr("many");
            clients.spawn(async move {
                let mut h1 = H1::connect(addr).await?;
                for n in 0..routes {
                    ensure!(h1.send(&Request::get(&format!("/{n}/"))).await?.status == 200, "not answered");
                }
                anyhow::Ok(())
            });
        }
        while let Some(client) = clients.join_next().await {
            client??;
        }
        Ok(())
    };
    flood(20).await?;
    counted(8.0 + 160.0).await?;
    let held = async || anyhow::Ok((envoy.stats("wasmcustom.meshfilter_").await?.len(), envoy.linear_memory()?));
    let before = held().await?;
    flood(1000).await?;
    counted(8.0 + 160.0 + 8000.0).await?;
    assert_eq!(held().await?, before);
    // 10 in each worker, and one more.
    let metrics = envoy.prometheus().await?;
    let routes =
        metrics.series(finished, &[]).into_iter().filter(|series| series.labels["route"].starts_with("route "));
    assert!(routes.filter(|series| !series.labels["route"].contains('_')).count() <= 20);
    assert!(metrics.value(finished, &[("method", "overflow"), ("route", "overflow")]).unwrap() > 7000.0);
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_very_long_stream_is_one_stream() -> Result<()> {
    const CHUNKS: u32 = 50_000;
    let events = Raw::start(|mut stream| async move {
        let (head, chunk) = (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            b"9\r\ndata: a\n\n\r\n",
        );
        loop {
            let mut request = [0; 1000];
            let read = stream.read(&mut request).await?;
            let chunks = if read == 0 {
                return Ok(());
            } else if request.starts_with(b"GET /long") {
                CHUNKS
            } else {
                1
            };
            stream.write_all(head).await?;
            for _ in 0..chunks {
                stream.write_all(chunk).await?;
            }
            stream.write_all(b"0\r\n\r\n").await?;
        }
    })
    .await?;
    let configuration = json!({ "labels": ["protocol"], "bytes": true });
    let site = listener("in").filter(latency("latency", configuration)?).route(route("/", "events", json!({})));
    let envoy = builder().cluster("events", events.addr).listener(site).concurrency(1).start().await?;
    let lifetime = "meshfilter_stream_duration_millis_count";
    let mut h1 = H1::connect(envoy.addr("in")).await?;
    for n in 1..=10 {
        h1.send(&Request::get("/short")).await?;
        becomes(&envoy, lifetime, &[], f64::from(n)).await?;
    }
    let held = async || anyhow::Ok((envoy.stats("wasmcustom.meshfilter_").await?.len(), envoy.linear_memory()?));
    let (before, bytes) = (held().await?, "meshfilter_response_bytes_total");
    let sent = value(&envoy, bytes, &[]).await?;
    let length = u32::try_from(h1.send(&Request::get("/long")).await?.body.len())?;
    assert_eq!(length, 9 * CHUNKS);
    becomes(&envoy, lifetime, &[], 11.0).await?;
    assert_eq!(held().await?, before);
    assert!(value(&envoy, bytes, &[]).await? - sent > f64::from(length));
    let metrics = envoy.prometheus().await?;
    assert_eq!(metrics.value("meshfilter_requests_finished_total", &[]), Some(11.0));
    assert_eq!(metrics.value("meshfilter_requests_in_flight", &[]), Some(0.0));
    assert_eq!(metrics.value("meshfilter_request_duration_millis_count", &[]), None);
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_in_the_middle_is_counted_once() -> Result<()> {
    let upstream = Upstream::start().await?;
    let websocket = Raw::websocket().await?;
    let site = |name: &str, options: Value| -> Result<Listener> {
        Ok(listener(name)
            .merge_hcm(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }], "drain_timeout": "0.1s" }))
            .merge_hcm(options)
            .filter(latency("latency", json!({ "labels": ALL_LABELS }))?)
            .route(route("/ws", "ws", json!({})))
            .route(route("/", "up", json!({}))))
    };
    let removed = site("removed", json!({}))?;
    let kept = [
        site("client", json!({}))?,
        site("longest", json!({ "common_http_protocol_options": { "max_stream_duration": "1s" } }))?,
        site("idle", json!({ "stream_idle_timeout": "1s" }))?,
    ];
    let mut builder = builder().cluster("up", upstream.addr()).cluster("ws", websocket.addr).listener(removed);
    for listener in kept.clone() {
        builder = builder.listener(listener);
    }
    let envoy = builder.drain_time(Duration::from_secs(1)).start().await?;
    let events = "header=content-type:text/event-stream; head; chunk=begun; pause=600000";
    let ask = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\n{more}\r\n");
    let (mut before, mut answered) = (Metrics::default(), 0);
    let hung_up = if envoy.version().await?.as_str() < "1.40" { "client_gone" } else { "" };
    // What it says of those that had no answer, of those that had one, and of the WebSocket.
    for (name, silent, begun, socket) in [
        ("client", "client_gone", "client_gone", "client_gone"),
        ("longest", "5xx timeout", "timeout", "timeout"),
        ("idle", "5xx timeout", "timeout", "timeout"),
        // Envoy says of its own hanging up that it was the client's, from 1.40 on not of an upgrade's.
        ("removed", "client_gone", "client_gone", hung_up),
    ] {
        let mut held = Vec::new();
        for (bytes, until) in [
            (ask("/", &format!("x-reply: {events}\r\n")), "begun"),
            (ask("/ws", "connection: upgrade\r\nupgrade: websocket\r\n"), "101"),
            (ask("/silent", "x-reply: pause=600000\r\n"), ""),
        ] {
            held.push(talk(envoy.addr(name), &bytes, until).await?.0);
        }
        let h2 = H2::connect(envoy.addr(name)).await?;
        let mut both = JoinSet::new();
        for reply in [events, "pause=600000"] {
            let (h2, request) = (h2.clone(), Request::get("/").header("x-reply", reply));
            both.spawn(async move { h2.send(&request).await });
        }
        drop(h2);
        answered += 2;
        envoy.wait_for_counter("cluster.up.upstream_rq_200", answered).await?;
        match name {
            "longest" | "idle" => {}
            _ => becomes(&envoy, "meshfilter_requests_in_flight", &[], 5.0).await?,
        }
        match name {
            // With its last request the h2 connection is closed as well.
            "client" => {
                held.clear();
                both.abort_all();
            }
            "removed" => envoy.push(kept.clone()).await?.accepted()?,
            _ => {}
        }
        let silent = format!("request http GET {silent} / up");
        let begun = format!("stream http GET 2xx {begun} / up");
        let socket = format!("stream websocket GET 1xx {socket} /ws ws").replace("  ", " ");
        ends(&envoy, name, &mut before, &[&silent, &silent, &begun, &begun, &socket]).await?;
        assert_eq!(before.value("meshfilter_requests_in_flight", &[]), Some(0.0), "{name}");
    }
    assert_eq!(before.value("meshfilter_requests_started_total", &[]), Some(20.0));
    assert_no_trap(&envoy);
    Ok(())
}

/// Envoy gives them one root context for it.
#[tokio::test]
async fn two_listeners_with_the_same_plugin_have_a_direction_each() -> Result<()> {
    let on = |name: &str, direction: &str| -> Result<Listener> {
        let listener = listener(name).merge(json!({ "traffic_direction": direction }));
        Ok(listener.filter(latency("latency", json!({ "labels": ["direction"] }))?).route(Route::respond(200, "ok")))
    };
    let envoy =
        builder().concurrency(1).listener(on("in", "INBOUND")?).listener(on("out", "OUTBOUND")?).start().await?;
    for name in ["in", "out", "out"] {
        assert_eq!(envoy.get(name, "/", ()).await?.status, 200);
    }
    for (direction, times) in [("inbound", 1.0), ("outbound", 2.0)] {
        for name in ["started", "finished"] {
            becomes(&envoy, &format!("meshfilter_requests_{name}_total"), &[("direction", direction)], times).await?;
        }
        becomes(&envoy, "meshfilter_requests_in_flight", &[("direction", direction)], 0.0).await?;
    }
    Ok(())
}
