//! circuit-breaker in a real Envoy, with four workers where it matters: what reaches the upstream, and what does not.
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
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use circuit_breaker::CircuitBreaker;
use kit::Filter as _;
use serde_json::{Map, Value, json};
use test_harness::envoy::Builder;
use test_harness::thresholds::Mode;
use test_harness::{
    AccessLog, Cluster, Envoy, H1, H2, HttpFilter, Listener, Load, PATIENCE, Reply, Request, Route, Thresholds,
    Upstream, eventually, module,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// How long the longest of them waits for what takes its time: pushes, retries, pauses of a source that failed.
const LONG: Duration = Duration::from_secs(60);

const WORKERS: u32 = 4;

/// As Istio calls it; rules call it `payment-service`.
const PAYMENT: &str = "outbound|80||payment-service.default.svc.cluster.local";

fn breaker(configuration: Value) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm("circuit-breaker", module("circuit-breaker")?).config(configuration))
}

/// Prometheus gets the labels as labels.
fn builder() -> Builder {
    let labels: BTreeSet<&str> = CircuitBreaker::metrics().iter().flat_map(|metric| metric.labels).copied().collect();
    labels.into_iter().fold(Envoy::builder(), |builder, label| builder.stats_tag(label, &kit::tag_regex(label)))
}

/// What the filter left, and what else is looked at.
fn log() -> AccessLog {
    let state = ["decision", "resource", "rule", "state", "version"]
        .map(|key| (key, format!("%FILTER_STATE(wasm.circuit.{key}:PLAIN)%")));
    let others = [("path", "%REQ(:PATH)%"), ("code", "%RESPONSE_CODE%"), ("flags", "%RESPONSE_FLAGS_LONG%")];
    AccessLog::json(state.into_iter().chain(others.map(|(key, operator)| (key, operator.to_owned()))))
}

fn listener(name: &str) -> Listener {
    // A connection that is cut off is kept open for a second otherwise.
    Listener::http(name).access_log(log()).merge_hcm(json!({ "delayed_close_timeout": "0.05s" }))
}

/// The rule, with what most of them have.
fn rule(own: Value) -> Value {
    let mut rule = json!({ "id": "r", "resource": "payment-service", "min_requests": 1, "interval": "60s", "retry_timeout": "60s" });
    rule.as_object_mut().unwrap().extend(own.as_object().unwrap().clone());
    rule
}

fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

async fn value(envoy: &Envoy, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(envoy.prometheus().await?.value(&format!("meshfilter_circuit_{name}"), labels).unwrap_or(0.0))
}

/// Waits until the sum of these series is so.
async fn becomes(envoy: &Envoy, name: &str, labels: &[(&str, &str)], wanted: impl Fn(f64) -> bool) -> Result<f64> {
    eventually(format!("{name} {labels:?}"), LONG, async || {
        let is = value(envoy, name, labels).await.map_err(|error| format!("{error:#}"))?;
        if wanted(is) { Ok(is) } else { Err(format!("{is}\n{}", said(envoy).join("\n"))) }
    })
    .await
}

/// The filter's own lines in the log.
fn said(envoy: &Envoy) -> Vec<String> {
    envoy.log().lines().filter(|line| line.contains("circuit-breaker: ")).map(str::to_owned).collect()
}

/// Those of a transition.
fn turns(envoy: &Envoy, from: &str, to: &str) -> Vec<String> {
    let turn = format!(": {from} to {to}: ");
    said(envoy).into_iter().filter(|line| line.contains(&turn)).collect()
}

/// Waits for the line of a transition, the `n`th such.
async fn turned(envoy: &Envoy, from: &str, to: &str, n: usize) -> Result<String> {
    eventually(format!("{from} to {to}, time {n}"), LONG, async || {
        turns(envoy, from, to).get(n - 1).cloned().ok_or_else(|| said(envoy).join("\n"))
    })
    .await
}

/// When a line of the log was written, within the last minutes. Its clock may be of any zone, which differ by quarters of
/// an hour.
fn written_ns(line: &str) -> u64 {
    const QUARTER: u64 = 900_000;
    let clock = line.split([' ', ']']).nth(1).unwrap();
    let numbers: Vec<u64> = clock.split([':', '.']).map(|number| number.parse().unwrap()).collect();
    let written_ms = ((numbers[0] * 60 + numbers[1]) * 60 + numbers[2]) * 1000 + numbers[3];
    let now_ms = now_ns() / 1_000_000;
    (now_ms - (now_ms % QUARTER + QUARTER - written_ms % QUARTER) % QUARTER) * 1_000_000
}

fn assert_no_trap(envoy: &Envoy) {
    let log = envoy.log();
    for sign in ["panic", "Function: ", "Wasm VM failed", "wasm log circuit-breaker: proxy"] {
        assert_eq!(log.lines().find(|line| line.contains(sign)), None, "{sign:?} in the log");
    }
}

/// How many connections each worker has had.
async fn connections(envoy: &Envoy, name: &str) -> Result<Vec<u64>> {
    let stats = envoy.stats(&format!("listener.127.0.0.1_{}.worker_", envoy.port(name))).await?;
    Ok(stats.into_iter().filter(|(name, _)| name.ends_with("downstream_cx_total")).map(|(_, value)| value).collect())
}

/// A service whose health is set from outside, and which knows how many requests it has at once.
struct Service {
    addr: SocketAddr,
    health: Arc<Health>,
    task: AbortHandle,
}

#[derive(Default)]
struct Health {
    sick: AtomicBool,
    /// Before the answer.
    delay_ms: AtomicU64,
    /// No answer at all, to so many more requests.
    silent: AtomicUsize,
    at_once: AtomicUsize,
    /// What the second of three takes longer than the first, and the third than the second.
    stagger_ms: AtomicU64,
    arrived: Mutex<Vec<Arrival>>,
}

/// A request at a [`Service`].
#[derive(Clone, Copy, Debug)]
struct Arrival {
    /// When it was sent, by the client's own word.
    sent_ns: u64,
    at_ns: u64,
    /// How many there were then, with this one.
    at_once: usize,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Counts a request as long as it lives: the caller that leaves ends it as well.
struct AtOnce<'a>(&'a Health);

impl<'a> AtOnce<'a> {
    fn new(health: &'a Health) -> Self {
        health.at_once.fetch_add(1, Ordering::SeqCst);
        Self(health)
    }
}

impl Drop for AtOnce<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (addr, health) = (listener.local_addr()?, Arc::<Health>::default());
        let shared = Arc::clone(&health);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let health = Arc::clone(&shared);
                connections.spawn(async move { health.serve(stream).await });
            }
        });
        Ok(Self { addr, health, task: task.abort_handle() })
    }

    fn sick(&self, sick: bool) {
        self.health.sick.store(sick, Ordering::SeqCst);
    }

    fn delay(&self, ms: u64) {
        self.health.delay_ms.store(ms, Ordering::SeqCst);
    }

    fn silent(&self, requests: usize) {
        self.health.silent.store(requests, Ordering::SeqCst);
    }

    /// Of three requests the second takes so much longer than the first, and the third than the second.
    fn stagger(&self, ms: u64) {
        self.health.stagger_ms.store(ms, Ordering::SeqCst);
    }

    fn arrived(&self) -> Vec<Arrival> {
        self.health.arrived.lock().unwrap().clone()
    }

    fn at_once(&self) -> usize {
        self.health.at_once.load(Ordering::SeqCst)
    }
}

impl Health {
    async fn serve(self: Arc<Self>, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        loop {
            let mut sent = 0;
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await? == 0 {
                    return Ok(());
                }
                if let Some(value) = line.strip_prefix("x-sent: ") {
                    sent = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
            }
            let at_once = AtOnce::new(&self);
            let number = {
                let mut arrived = self.arrived.lock().unwrap();
                let at_once = self.at_once.load(Ordering::SeqCst);
                arrived.push(Arrival { sent_ns: sent, at_ns: now_ns(), at_once });
                u64::try_from(arrived.len()).unwrap()
            };
            let silent = |left: usize| left.checked_sub(1);
            if self.silent.fetch_update(Ordering::SeqCst, Ordering::SeqCst, silent).is_ok() {
                // Until the caller leaves.
                let _ = stream.fill_buf().await?;
                return Ok(());
            }
            let delay = self.delay_ms.load(Ordering::SeqCst) + number % 3 * self.stagger_ms.load(Ordering::SeqCst);
            if delay > 0 {
                sleep(Duration::from_millis(delay)).await;
            }
            let status = if self.sick.load(Ordering::SeqCst) { 503 } else { 200 };
            drop(at_once);
            let answer = format!("HTTP/1.1 {status} -\r\ncontent-length: 2\r\nx-upstream: yes\r\n\r\nok");
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

/// One request of a [`Flood`].
#[derive(Clone, Copy, Debug)]
struct Shot {
    sent_ns: u64,
    done_ns: u64,
    status: u16,
    /// Whether the upstream answered, and not the proxy.
    upstream: bool,
    /// The client's connection.
    connection: usize,
}

/// Load without end, over connections that stay, each request with the time at which it was sent.
struct Flood {
    shots: Arc<Mutex<Vec<Shot>>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<Result<()>>,
}

impl Flood {
    fn start(addr: SocketAddr, connections: usize) -> Self {
        let (stop, stopped) = watch::channel(false);
        let shots = Arc::<Mutex<Vec<Shot>>>::default();
        let mut clients = JoinSet::new();
        for connection in 0..connections {
            let (stopped, shots) = (stopped.clone(), Arc::clone(&shots));
            clients.spawn(async move {
                let mut open = None;
                while !*stopped.borrow() {
                    let mut h1 = match open.take() {
                        Some(h1) => h1,
                        None => H1::connect(addr).await?,
                    };
                    let sent_ns = now_ns();
                    let request = Request::get("/").header("x-sent", sent_ns.to_string());
                    let response = h1.send(&request).await?;
                    let upstream = response.headers.has("x-upstream");
                    let status = response.status;
                    shots.lock().unwrap().push(Shot { sent_ns, done_ns: now_ns(), status, upstream, connection });
                    open = (!response.closes()).then_some(h1);
                    sleep(Duration::from_millis(2)).await;
                }
                Ok(())
            });
        }
        Self { shots, stop, clients }
    }

    fn shots(&self) -> Vec<Shot> {
        self.shots.lock().unwrap().clone()
    }

    /// Waits for so many more answers like this.
    async fn wait(&self, more: usize, like: impl Fn(&Shot) -> bool) -> Result<()> {
        let before = self.shots().len();
        eventually(format!("{more} more answers"), LONG, async || {
            let shots = self.shots();
            let count = shots[before..].iter().filter(|shot| like(shot)).count();
            if count >= more { Ok(()) } else { Err(format!("{count} of {}", shots.len() - before)) }
        })
        .await
    }

    /// Waits until each connection has had such an answer to a request from now on.
    async fn everywhere(&self, like: impl Fn(&Shot) -> bool) -> Result<()> {
        let from_ns = now_ns();
        let all: BTreeSet<usize> = self.shots().iter().map(|shot| shot.connection).collect();
        eventually("an answer on each connection", LONG, async || {
            let shots = self.shots();
            let like = shots.iter().filter(|shot| shot.sent_ns > from_ns && like(shot));
            let seen: BTreeSet<usize> = like.map(|shot| shot.connection).collect();
            if seen.is_superset(&all) { Ok(()) } else { Err(format!("{seen:?} of {all:?}")) }
        })
        .await
    }

    /// Ends it: what is under way is waited for. An error of a client is one of the test.
    async fn stop(mut self) -> Result<Vec<Shot>> {
        self.stop.send_replace(true);
        while let Some(client) = self.clients.join_next().await {
            client??;
        }
        Ok(self.shots())
    }
}

/// When the first client had its rejection: by then every worker knows.
fn first_rejection_ns(shots: &[Shot]) -> u64 {
    shots.iter().filter(|shot| shot.status == 503 && !shot.upstream).map(|shot| shot.done_ns).min().unwrap()
}

/// What was sent after this time, and reached the upstream before that. Which was not on its way before, and not let
/// through after it.
fn reached(arrived: &[Arrival], sent_from_ns: u64, until_ns: u64) -> usize {
    arrived.iter().filter(|arrival| arrival.sent_ns >= sent_from_ns && arrival.at_ns < until_ns).count()
}

// --- the opening ---

/// The owner's example with a shorter retry timeout, and a rule of each other kind.
#[tokio::test(flavor = "multi_thread")]
async fn from_the_opening_to_the_retry_not_one_request_reaches_a_sick_upstream() -> Result<()> {
    const RETRY_MS: u64 = 2000;
    let slow = json!({ "resource": "payment-service", "strategy": 0, "retryTimeoutMs": RETRY_MS, "minRequestAmount": 10,
        "statIntervalMs": 60_000, "maxAllowedRtMs": 500, "threshold": 0.5 });
    let ratio = rule(
        json!({ "resource": "ratio", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 10, "retry_timeout": "2s" }),
    );
    let count = rule(
        json!({ "resource": "count", "strategy": "error_count", "threshold": 20, "min_requests": 10, "retry_timeout": "2s" }),
    );
    for (name, cluster, rule, is_slow) in
        [("payment-service", PAYMENT, slow, true), ("ratio", "ratio", ratio, false), ("count", "count", count, false)]
    {
        let service = Service::start().await?;
        let site = listener("in").filter(breaker(json!({ "rules": [rule] }))?).route(Route::cluster(cluster));
        let envoy = builder().concurrency(WORKERS).cluster(cluster, service.addr).listener(site).start().await?;
        let flood = Flood::start(envoy.addr("in"), 32);
        flood.wait(100, |shot| shot.status == 200).await?;
        assert_eq!(said(&envoy), [""; 0], "a healthy one stays closed");
        if is_slow {
            service.delay(800);
        } else {
            service.sick(true);
        }
        let opened = turned(&envoy, "closed", "open", 1).await?;
        flood.everywhere(|shot| shot.status == 503 && !shot.upstream).await?;
        let fed = connections(&envoy, "in").await?;
        assert!(fed.len() == 4 && !fed.contains(&0), "each worker has a part of the load: {fed:?}");
        service.sick(false);
        service.delay(0);
        let half = turned(&envoy, "open", "half_open", 1).await?;
        turned(&envoy, "half_open", "closed", 1).await?;
        flood.everywhere(|shot| shot.status == 200).await?;
        let from_ns = now_ns();
        flood.wait(100, |shot| shot.sent_ns > from_ns).await?;
        let shots = flood.stop().await?;
        assert!(shots.iter().filter(|shot| shot.sent_ns > from_ns).all(|shot| shot.status == 200));

        let first_ns = first_rejection_ns(&shots);
        let (opened_ns, half_ns) = (written_ns(&opened), written_ns(&half));
        // The line is written a moment after the time from which the retry counts.
        assert!(half_ns - opened_ns + 250_000_000 >= RETRY_MS * 1_000_000, "{opened}\n{half}");
        let extra = reached(&service.arrived(), first_ns, half_ns);
        let rejected = shots.iter().filter(|shot| shot.status == 503 && !shot.upstream).count();
        let before = shots.iter().filter(|shot| shot.upstream && shot.sent_ns < first_ns).count();
        let on_their_way = before - shots.iter().filter(|shot| shot.upstream && shot.sent_ns < opened_ns).count();
        println!(
            "{name}: {} requests, {rejected} rejected; {on_their_way} sent between the opening and the first rejection; \
             then {extra} up to the retry",
            shots.len()
        );
        assert_eq!(extra, 0, "requests reached the upstream while it was open");
        assert_eq!(turns(&envoy, "closed", "open").len(), 1);
        let labels = [("resource", "payment-service.default.svc.cluster.local")];
        let labels = if is_slow { labels } else { [("resource", name)] };
        assert_eq!(value(&envoy, "rejected_total", &labels).await?, f64::from(u32::try_from(rejected)?));
        assert_eq!(value(&envoy, "probes_total", &labels).await?, 1.0);
        assert_eq!(value(&envoy, "state", &labels).await?, 0.0);
        let passed = f64::from(u32::try_from(service.arrived().len())?);
        assert_eq!(value(&envoy, "allowed_total", &labels).await?, passed - 1.0);
        assert_no_trap(&envoy);
    }
    Ok(())
}

/// With the filter, and with the one of the proxy-wasm crate that it is measured against: its speed would mean nothing otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn five_errors_open_the_filter_and_the_plain_one_alike_and_a_good_probe_closes_them() -> Result<()> {
    for name in ["circuit-breaker", "circuit-breaker-sdk"] {
        for retry in ["60s", "1s"] {
            let service = Service::start().await?;
            let rule = json!({ "resource": "up", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 5, "retry_timeout": retry });
            let filter = HttpFilter::wasm(name, module(name)?).config(json!({ "rules": [rule] }));
            let site = listener("in").filter(filter).route(Route::cluster("up"));
            let envoy = builder().concurrency(WORKERS).cluster("up", service.addr).listener(site).start().await?;
            let mut client = H1::connect(envoy.addr("in")).await?;
            service.sick(true);
            for _ in 0..5 {
                let answer = client.send(&Request::get("/")).await?;
                assert!(answer.status == 503 && answer.headers.has("x-upstream"), "{name}: {answer:?}");
            }
            if retry == "60s" {
                // On the worker that counted, and then on others.
                for _ in 0..16 {
                    let answer = client.send(&Request::get("/")).await?;
                    assert!(answer.status == 503 && !answer.headers.has("x-upstream"), "{name}: {answer:?}");
                    assert_eq!(answer.headers.text("x-circuit-state").as_deref(), Some("open"), "{name}");
                    let wait: u32 = answer.headers.text("retry-after").unwrap().parse()?;
                    assert!((1..=60).contains(&wait), "{name}: {wait}");
                    client = H1::connect(envoy.addr("in")).await?;
                }
                assert_eq!(service.arrived().len(), 5, "{name}: none of them went upstream");
                let labels = [("resource", "up"), ("rule", "up/error_ratio")];
                becomes(&envoy, "rejected_total", &labels, |rejected| rejected == 16.0).await?;
                becomes(&envoy, "allowed_total", &labels, |allowed| allowed == 5.0).await?;
            } else {
                service.sick(false);
                eventually(format!("{name}: a probe passes"), LONG, async || {
                    let answer = client.send(&Request::get("/")).await.map_err(|error| format!("{error:#}"))?;
                    if answer.status == 200 { Ok(()) } else { Err(answer.status.to_string()) }
                })
                .await?;
                assert_eq!(service.arrived().len(), 6, "{name}: one probe was enough");
                // All may pass again; and what this worker counted before opens nothing.
                service.sick(true);
                for _ in 0..3 {
                    let answer = client.send(&Request::get("/")).await?;
                    assert!(answer.status == 503 && answer.headers.has("x-upstream"), "{name}: {answer:?}");
                }
            }
            assert_no_trap(&envoy);
        }
    }
    Ok(())
}

// --- changes while it runs ---

/// A source of rules that is asked as often as may be.
fn source(more: Value) -> Value {
    let mut source = json!({ "cluster": "rules", "path": "/rules", "interval": "100ms", "timeout": "2s" });
    source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    source
}

/// By everything that can change one: the source, the plugin's own configuration on its own and with its listener, and
/// another VM.
#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_that_is_open_stays_open_until_its_time_whatever_is_changed() -> Result<()> {
    const RETRY_MS: u64 = 15_000;
    let service = Service::start().await?;
    let set = |more: Value| {
        let mut rule = rule(
            json!({ "strategy": "error_ratio", "threshold": 0.5, "min_requests": 10, "retry_timeout": format!("{RETRY_MS}ms") }),
        );
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([rule]).to_string()
    };
    let thresholds = Thresholds::start(set(json!({}))).await?;
    // The cluster of the source, one by ECDS and one by LDS.
    let plugin = |tick: &str, vm: &str| -> Result<HttpFilter> {
        let vm = json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": vm });
        let configuration = json!({ "source": source(json!({})), "tick": tick, "properties": "all" });
        Ok(breaker(configuration)?.merge_plugin(json!({ "vm_config": { "configuration": vm } })))
    };
    let site = |name: &str, filter: HttpFilter| listener(name).filter(filter).route(Route::cluster("payment-service"));
    let envoy = builder()
        .concurrency(WORKERS)
        .cluster("payment-service", service.addr)
        .cluster("rules", thresholds.addr())
        .listener(site("lds", plugin("100ms", "a")?))
        .listener(site("ecds", plugin("100ms", "a")?.discovered()))
        .start()
        .await?;
    becomes(&envoy, "rules_version", &[], |version| version == 1.0).await?;
    let floods = ["lds", "ecds"].map(|name| Flood::start(envoy.addr(name), 16));
    for flood in &floods {
        flood.wait(10, |shot| shot.status == 200).await?;
    }
    service.sick(true);
    let opened = turned(&envoy, "closed", "open", 1).await?;
    for flood in &floods {
        flood.everywhere(|shot| shot.status == 503 && !shot.upstream).await?;
    }
    // The source says something else, again and again: a retry that would be over, a rule that would not have tripped,
    // more probes, other windows, and, for a while, nothing at all of a rule of another name.
    let changes = [
        json!({ "retry_timeout": "100ms" }),
        json!({ "threshold": 1.0, "min_requests": 100_000 }),
        json!({ "probes": 5, "interval": "10s", "buckets": 20 }),
        json!({ "threshold": 0.1, "retry_timeout": "1h" }),
        json!({ "retry_timeout": "1ms", "probes": 1 }),
    ];
    for (n, change) in (2..).zip(changes) {
        thresholds.set(set(change));
        let version = f64::from(n);
        becomes(&envoy, "rules_version", &[], |is| is == version).await?;
        for flood in &floods {
            flood.everywhere(|shot| shot.status == 503 && !shot.upstream).await?;
        }
    }
    envoy.push_extension(&plugin("200ms", "a")?.discovered()).await?.accepted()?;
    envoy
        .push([site("lds", plugin("200ms", "a")?), site("ecds", plugin("100ms", "a")?.discovered())])
        .await?
        .accepted()?;
    for flood in &floods {
        flood.everywhere(|shot| shot.status == 503 && !shot.upstream).await?;
    }
    // Another VM: what workers know of the breaker is gone, what they agreed on is not.
    envoy.push_extension(&plugin("100ms", "b")?.discovered()).await?.accepted()?;
    envoy
        .push([site("lds", plugin("100ms", "b")?), site("ecds", plugin("100ms", "a")?.discovered())])
        .await?
        .accepted()?;
    for flood in &floods {
        flood.everywhere(|shot| shot.status == 503 && !shot.upstream).await?;
    }
    let changed_ns = now_ns();
    service.sick(false);
    let half = turned(&envoy, "open", "half_open", 1).await?;
    turned(&envoy, "half_open", "closed", 1).await?;
    let (opened_ns, half_ns) = (written_ns(&opened), written_ns(&half));
    assert!(changed_ns < half_ns, "the test was too slow, and has shown nothing");
    assert!(half_ns - opened_ns + 250_000_000 >= RETRY_MS * 1_000_000, "{opened}\n{half}");
    let mut shots = Vec::new();
    for flood in floods {
        flood.everywhere(|shot| shot.status == 200).await?;
        shots.extend(flood.stop().await?);
    }
    let extra = reached(&service.arrived(), first_rejection_ns(&shots), half_ns);
    let rejected = shots.iter().filter(|shot| shot.status == 503 && !shot.upstream).count();
    println!("{rejected} rejected while open, over 5 sets of rules and 4 pushes; {extra} upstream up to the retry");
    assert_eq!(extra, 0, "requests reached the upstream while it was open");
    assert_eq!(turns(&envoy, "closed", "open").len(), 1);
    assert_no_trap(&envoy);
    Ok(())
}

/// Of rules that a source gives: after the line that says so, each request on each worker.
#[tokio::test(flavor = "multi_thread")]
async fn every_worker_has_new_rules_within_a_tick() -> Result<()> {
    let service = Service::start().await?;
    let forced = |open: bool| {
        let mode = if open { "forced_open" } else { "enforce" };
        json!([rule(json!({ "strategy": "error_count", "threshold": 5, "mode": mode }))]).to_string()
    };
    let thresholds = Thresholds::start(forced(false)).await?;
    let site = listener("in")
        .filter(breaker(json!({ "source": source(json!({})), "properties": "all" }))?)
        .route(Route::cluster("payment-service"));
    let envoy = builder()
        .concurrency(WORKERS)
        .cluster("payment-service", service.addr)
        .cluster("rules", thresholds.addr())
        .listener(site)
        .start()
        .await?;
    becomes(&envoy, "rules_version", &[], |version| version == 1.0).await?;
    let flood = Flood::start(envoy.addr("in"), 32);
    let mut latest = 0;
    for version in 2_u32..=11 {
        let open = version % 2 == 0;
        let before = flood.shots().len();
        thresholds.set(forced(open));
        let line = eventually("the line", LONG, async || {
            let wanted = format!("version {version} of the rules, ");
            said(&envoy).into_iter().find(|line| line.contains(&wanted)).ok_or_else(|| said(&envoy).join("\n"))
        })
        .await?;
        flood.everywhere(|shot| (shot.status == 503) == open).await?;
        becomes(&envoy, "rules_version", &[], |is| is == f64::from(version)).await?;
        let applied_ns = written_ns(&line) + 1_000_000;
        let old = |shot: &&Shot| (shot.status == 503) != open;
        let last_ns = flood.shots()[before..].iter().filter(old).map(|shot| shot.sent_ns).max().unwrap_or(0);
        latest = latest.max(last_ns.saturating_sub(applied_ns));
        // A tick, and a second for a machine that has other things to do.
        assert!(last_ns < applied_ns + 1_100_000_000, "{} ms later", (last_ns - applied_ns) / 1_000_000);
    }
    let fed = connections(&envoy, "in").await?;
    assert!(fed.len() == 4 && !fed.contains(&0), "each worker has a part of the load: {fed:?}");
    let shots = flood.stop().await?;
    println!(
        "{} requests over 10 sets of rules; the last one under old rules was sent {} us after the line that says the new ones",
        shots.len(),
        latest / 1000
    );
    eventually("the last version in the access log", PATIENCE, async || {
        let line = envoy.access_log("in").pop().unwrap();
        let line: Map<String, Value> = serde_json::from_str(&line).unwrap();
        if line["version"] == "11" { Ok(()) } else { Err(format!("{line:?}")) }
    })
    .await?;
    assert_no_trap(&envoy);
    Ok(())
}

/// Over both protocols, on connections that stay and on new ones.
#[tokio::test(flavor = "multi_thread")]
async fn no_change_costs_a_request_where_the_upstream_is_well() -> Result<()> {
    let upstream = Upstream::start().await?;
    let set = |n: u32| {
        let slow = json!({ "id": "slow", "strategy": "slow_ratio", "max_allowed_rt": "30s", "threshold": 0.5 });
        let errors = json!({ "strategy": "error_ratio", "threshold": 0.1 + f64::from(n % 9) / 10.0,
            "min_requests": 1 + n % 7, "interval": format!("{}s", 1 + n % 60), "buckets": 2 + n % 30 });
        let mut rules = vec![rule(errors)];
        if n.is_multiple_of(2) {
            rules.push(rule(slow));
        }
        json!({ "rules": rules }).to_string()
    };
    let thresholds = Thresholds::start(set(0)).await?;
    let plugin = |n: u32| {
        breaker(
            json!({ "source": source(json!({})), "tick": format!("{}ms", 50 + n), "properties": if n.is_multiple_of(2) { "all" } else { "changes" } }),
        )
    };
    let site = |name: &str, filter: HttpFilter| listener(name).filter(filter).route(Route::cluster("payment-service"));
    let envoy = builder()
        .concurrency(WORKERS)
        .cluster("payment-service", upstream.addr())
        .cluster("rules", thresholds.addr())
        .listener(site("lds", plugin(0)?))
        .listener(site("ecds", plugin(0)?.discovered()))
        .start()
        .await?;
    let request = Request::get("/");
    let loads = [
        Load::h1(envoy.addr("ecds"), 8, &request),
        Load::h2(envoy.addr("ecds"), 4, &request),
        Load::h1(envoy.addr("lds"), 8, &request),
        Load::h2(envoy.addr("lds"), 4, &request),
    ];
    let mut version = 0.0;
    for n in 1..=20 {
        thresholds.set(set(n));
        envoy.push_extension(&plugin(n)?.discovered()).await?.accepted()?;
        if n % 5 == 0 {
            envoy.push([site("lds", plugin(n)?), site("ecds", plugin(n)?.discovered())]).await?.accepted()?;
        }
        version = becomes(&envoy, "rules_version", &[], |is| is > version).await?;
        for load in &loads {
            load.wait_for(20).await?;
        }
        drop(upstream.take());
    }
    let mut answered = 0;
    for load in loads {
        let report = load.stop().await;
        report.all_ok()?;
        answered += report.answered();
    }
    println!("{answered} requests, all 200, over 20 ECDS and 4 LDS pushes and {version} sets of rules");
    assert_eq!(value(&envoy, "rejected_total", &[]).await?, 0.0);
    assert_eq!(value(&envoy, "updates_total", &[("result", "refused")]).await?, 0.0);
    assert_no_trap(&envoy);
    Ok(())
}

// --- probes ---

#[tokio::test(flavor = "multi_thread")]
async fn no_more_probes_are_under_way_than_may_be() -> Result<()> {
    const PROBES: usize = 3;
    let service = Service::start().await?;
    let rule = rule(
        json!({ "strategy": "error_ratio", "threshold": 0.5, "min_requests": 10, "retry_timeout": "300ms", "probe_timeout": "60s", "probes": PROBES }),
    );
    let site = listener("in").filter(breaker(json!({ "rules": [rule] }))?).route(Route::cluster("payment-service"));
    let envoy = builder().concurrency(WORKERS).cluster("payment-service", service.addr).listener(site).start().await?;
    service.sick(true);
    let flood = Flood::start(envoy.addr("in"), 32);
    turned(&envoy, "closed", "open", 1).await?;
    flood.everywhere(|shot| !shot.upstream).await?;
    let quiet = eventually("what was under way has ended", LONG, async || match service.at_once() {
        0 => Ok(()),
        n => Err(format!("{n}")),
    });
    quiet.await?;
    let before = service.arrived().len();
    service.delay(150);
    turned(&envoy, "half_open", "open", 3).await?;
    // Of each round one fails at once, and the others are still under way when the next round begins.
    service.delay(0);
    service.stagger(1000);
    turned(&envoy, "half_open", "open", 8).await?;
    // Then it is well, and slow.
    service.sick(false);
    let closed = turned(&envoy, "half_open", "closed", 1).await?;
    service.stagger(0);
    service.delay(150);
    flood.everywhere(|shot| shot.status == 200).await?;
    flood.wait(100, |shot| shot.status == 200).await?;
    let shots = flood.stop().await?;
    let (mut most, mut crowd, closed_ns) = (0, 0, written_ns(&closed));
    for Arrival { at_ns, at_once, .. } in &service.arrived()[before..] {
        let most = if *at_ns < closed_ns { &mut most } else { &mut crowd };
        *most = (*most).max(*at_once);
    }
    let probes = value(&envoy, "probes_total", &[]).await?;
    let rounds = turns(&envoy, "open", "half_open").len();
    println!(
        "{} requests, {probes} probes in {rounds} rounds, {most} at once up to the closing, {crowd} after it",
        shots.len()
    );
    assert!(most <= PROBES, "{most} probes at once");
    assert!(crowd > PROBES, "the count can tell");
    assert_no_trap(&envoy);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_never_ends_gives_its_place_to_another() -> Result<()> {
    let service = Service::start().await?;
    let rule =
        rule(json!({ "strategy": "error_count", "threshold": 3, "retry_timeout": "300ms", "probe_timeout": "2s" }));
    let site = listener("in")
        .filter(breaker(json!({ "rules": [rule] }))?)
        .route(Route::cluster("payment-service").merge(json!({ "route": { "timeout": "0s" } })));
    let envoy = builder().concurrency(WORKERS).cluster("payment-service", service.addr).listener(site).start().await?;
    service.sick(true);
    for _ in 0..3 {
        assert_eq!(envoy.get("in", "/", ()).await?.status, 503);
    }
    turned(&envoy, "closed", "open", 1).await?;
    service.sick(false);
    service.silent(1);
    let addr = envoy.addr("in");
    // Whoever comes first from then on has no answer.
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        clients.spawn(async move {
            let mut h1 = H1::connect(addr).await?;
            loop {
                let asked = timeout(Duration::from_secs(30), h1.send(&Request::get("/"))).await;
                match asked {
                    Ok(Ok(response)) if response.status == 200 => return anyhow::Ok(true),
                    Ok(Ok(_)) => sleep(Duration::from_millis(5)).await,
                    _ => return Ok(false),
                }
            }
        });
    }
    let closed = turned(&envoy, "half_open", "closed", 1).await?;
    let half = turned(&envoy, "open", "half_open", 1).await?;
    assert!(written_ns(&closed) - written_ns(&half) + 250_000_000 >= 2_000_000_000, "{half}\n{closed}");
    assert_eq!(service.at_once(), 1, "it is still under way");
    assert_eq!(value(&envoy, "probes_total", &[]).await?, 2.0);
    let mut well = 0;
    while well < 15 {
        well += usize::from(clients.join_next().await.unwrap()??);
    }
    // What never ended was none of the open period's, and says nothing of this one.
    drop(clients);
    eventually("it is gone", LONG, async || if service.at_once() == 0 { Ok(()) } else { Err(String::new()) }).await?;
    assert_eq!(envoy.get("in", "/", ()).await?.status, 200);
    assert_eq!((turns(&envoy, "closed", "open").len(), value(&envoy, "state", &[]).await?), (1, 0.0));
    assert_no_trap(&envoy);
    Ok(())
}

// --- what counts ---

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
    /// Sends this when something comes, and then what else comes back to where it came from.
    async fn saying(text: &'static [u8]) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let _ = stream.read(&mut [0; 4000]).await?;
                    stream.write_all(text).await?;
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.map(drop)
                });
            }
        });
        Ok(Self { addr, task: task.abort_handle() })
    }

    async fn websocket() -> Result<Self> {
        Self::saying(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await
    }
}

/// Writes to a connection of its own, and reads until this has come.
async fn talk(addr: SocketAddr, bytes: &str, until: &str) -> Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes.as_bytes()).await?;
    let mut text = String::new();
    timeout(PATIENCE, async {
        let mut some = [0; 4096];
        // A rejection is no answer to wait for.
        while !text.contains(until) && !text.contains("x-circuit-state") {
            match stream.read(&mut some).await? {
                0 => break,
                read => text.push_str(&String::from_utf8_lossy(&some[..read])),
            }
        }
        anyhow::Ok(())
    })
    .await
    .with_context(|| format!("no {until:?} but {text:?}"))??;
    ensure!(text.contains(until), "no {until:?} but {text:?}");
    Ok((stream, text))
}

/// An address at which nobody listens.
fn dead() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
}

fn route(path: &str, cluster: &str, merge: Value) -> Route {
    Route::cluster(cluster).prefix(path).merge(merge)
}

fn told(path: &str, reply: &str) -> Request {
    Request::get(path).header("x-reply", reply)
}

fn grpc(path: &str, reply: &str) -> Request {
    Request::post(path, b"\0\0\0\0\0")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-reply", format!("header=content-type:application/grpc; {reply}"))
}

/// What a request counted as, of which nothing else is known than what it was called by: the first error on it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Error,
    Success,
    Nothing,
}

/// Told by an error that comes after it: it opens what was closed, and the line says of how many.
async fn counted(envoy: &Envoy, row: &str) -> Result<Counted> {
    let error = told("/up", "status=503").header("x-row", row);
    let answer = envoy.send("in", &error).await?;
    let opened = format!("header:x-row={row}, rule r: closed to open: ");
    let line = envoy.wait_for_log(&opened, PATIENCE).await?;
    Ok(match (answer.headers.has("x-circuit-state"), line.contains(": 1 of 1 "), line.contains(": 1 of 2 ")) {
        (true, true, _) => Counted::Error,
        (false, true, _) => Counted::Nothing,
        (false, _, true) => Counted::Success,
        other => panic!("{other:?}: {line}"),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_upstream_did_counts_and_what_others_did_does_not() -> Result<()> {
    let (tried, again) = (AtomicBool::new(false), AtomicBool::new(false));
    let upstream = Upstream::with(move |request| match &*request.path {
        "/retry/503" if !tried.swap(true, Ordering::SeqCst) => Reply::new(503),
        "/retry/reset" if !again.swap(true, Ordering::SeqCst) => Reply::new(200).reset(),
        _ => Reply::to(request),
    })
    .await?;
    let garbage = Raw::saying(b"garbage\r\n\r\n").await?;
    let answers = |header: &str| {
        format!(
            "function envoy_on_request(h) local s = h:headers():get('{header}') if s then h:respond({{[':status'] = s}}, 'mine') end end"
        )
    };
    let retries = json!({ "route": { "retry_policy": { "retry_on": "5xx,reset", "num_retries": 2,
        "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } } } });
    let mut per_try = retries.clone();
    per_try["route"]["retry_policy"]["per_try_timeout"] = "0.05s".into();
    let rule = json!([rule(json!({ "resource": "*", "strategy": "error_count", "threshold": 1 }))]);
    let mut site = listener("in")
        .filter(HttpFilter::lua("front", &answers("x-front")))
        .filter(breaker(json!({ "resources": ["header:x-row"], "rules": rule }))?)
        .filter(HttpFilter::lua("behind", &answers("x-behind")))
        .route(Route::respond(503, "direct").prefix("/direct/503"))
        .route(Route::respond(200, "direct").prefix("/direct/200"));
    for (path, cluster, merge) in [
        ("/timeout", "up", json!({ "route": { "timeout": "0.05s" } })),
        ("/per-try", "up", per_try),
        ("/retry", "up", retries),
        ("/idle", "up", json!({ "route": { "idle_timeout": "0.05s" } })),
        ("/longest", "up", json!({ "route": { "max_stream_duration": { "max_stream_duration": "0.05s" } } })),
        (
            "/deadline",
            "h2",
            json!({ "route": { "timeout": "0s", "max_stream_duration": { "grpc_timeout_header_max": "0s" } } }),
        ),
        ("/empty", "empty", json!({})),
        ("/dead", "dead", json!({})),
        ("/full", "full", json!({})),
        ("/garbage", "garbage", json!({})),
        ("/h2", "h2", json!({})),
        ("/up", "up", json!({})),
    ] {
        site = site.route(route(path, cluster, merge));
    }
    let envoy = builder()
        .concurrency(1)
        .cluster("up", upstream.addr())
        .cluster("dead", dead()?)
        .cluster("garbage", garbage.addr)
        .add_cluster(Cluster::new("h2", upstream.addr()).http2())
        .add_cluster(Cluster::new("empty", upstream.addr()).merge(json!({ "load_assignment": { "endpoints": [] } })))
        .add_cluster(
            Cluster::new("full", upstream.addr())
                .merge(json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } })),
        )
        .listener(site)
        .start()
        .await?;
    let slow = "pause=400; chunk=late";
    let get = Request::get;
    use Counted::{Error, Nothing, Success};
    let rows: Vec<(&str, Request, Counted)> = vec![
        ("well", get("/up"), Success),
        ("404", told("/up", "status=404"), Success),
        ("429", told("/up", "status=429"), Success),
        ("500", told("/up", "status=500"), Error),
        ("503", told("/up", "status=503; chunk=no"), Error),
        ("retried-and-well", get("/retry/503"), Success),
        ("retried-after-a-reset", get("/retry/reset"), Success),
        ("each-try-failed", told("/retry/a", "status=503"), Error),
        ("each-try-was-reset", told("/retry/a", "reset"), Error),
        ("each-try-timed-out", told("/per-try", slow), Error),
        ("timeout", told("/timeout", slow), Error),
        ("timeout-in-the-middle", told("/timeout", "head; chunk=a; pause=400; chunk=b"), Error),
        ("idle", told("/idle", slow), Error),
        ("longest", told("/longest", slow), Error),
        ("closed", told("/up", "reset"), Error),
        ("reset", told("/h2", "reset"), Error),
        ("reset-in-the-middle", told("/h2", "head; chunk=a; pause=20; reset"), Error),
        ("no-http", get("/garbage"), Error),
        ("nobody-healthy", get("/empty"), Error),
        ("refused", get("/dead"), Error),
        ("too-many-for-the-proxy", get("/full"), Nothing),
        ("no-route", get("/nowhere"), Nothing),
        ("direct-503", get("/direct/503"), Nothing),
        // Who gave a good answer is asked only where it would close a breaker: here it would be one more question for
        // each request that goes well.
        ("direct-200", get("/direct/200"), Success),
        ("a-filter-in-front", get("/up").header("x-front", "503"), Nothing),
        ("a-filter-behind", get("/up").header("x-behind", "503"), Nothing),
        ("a-filter-behind-403", get("/up").header("x-behind", "403"), Nothing),
        ("a-filter-behind-200", get("/up").header("x-behind", "200"), Success),
        ("grpc-ok", grpc("/h2", "chunk=a; trailer=grpc-status:0"), Success),
        ("grpc-not-found", grpc("/h2", "chunk=a; trailer=grpc-status:5"), Success),
        ("grpc-unavailable", grpc("/h2", "chunk=a; trailer=grpc-status:14"), Error),
        ("grpc-unavailable-late", grpc("/h2", "head; chunk=a; pause=50; chunk=b; trailer=grpc-status:14"), Error),
        ("grpc-trailers-only", grpc("/h2", "header=grpc-status:14"), Error),
        ("grpc-trailers-only-not-found", grpc("/h2", "header=grpc-status:5"), Success),
        ("grpc-unheard-of", grpc("/h2", "chunk=a; trailer=grpc-status:77"), Error),
        ("grpc-deadline", grpc("/deadline", "pause=400").header("grpc-timeout", "50m"), Error),
    ];
    let (mut lines, mut wrong) = (0, Vec::new());
    for (row, request, wanted) in rows {
        // That some of them break off is looked at in the log.
        let _ = envoy.send("in", &request.header("x-row", row)).await;
        envoy.wait_for_lines("in", lines + 1).await?;
        let is = counted(&envoy, row).await?;
        lines += 2;
        if is != wanted {
            wrong.push(format!(
                "{row}: {is:?}, not {wanted:?}: {}",
                envoy.wait_for_lines("in", lines - 1).await?[lines - 2]
            ));
        }
    }
    assert_eq!(wrong, [""; 0]);

    // The client goes: before the answer, and in the middle of one, over either protocol.
    drop(upstream.take());
    for (row, reply) in [("gone", "pause=60000"), ("gone-in-the-middle", "head; chunk=begun; pause=60000")] {
        let request = told("/up", reply).header("x-row", row);
        let mut h1 = H1::connect(envoy.addr("in")).await?;
        h1.write(&request.to_bytes()).await?;
        upstream.wait(1).await?;
        drop(h1);
        envoy.wait_for_lines("in", lines + 1).await?;
        assert_eq!(counted(&envoy, row).await?, Nothing, "{row}");
        lines += 2;
        drop(upstream.take());
        let row = format!("{row}-h2");
        let h2 = H2::connect(envoy.addr("in")).await?;
        let request = told("/up", reply).header("x-row", &row);
        tokio::select! {
            answer = h2.send(&request) => panic!("{answer:?}"),
            arrived = upstream.wait(1) => drop(arrived?),
        }
        envoy.wait_for_lines("in", lines + 1).await?;
        assert_eq!(counted(&envoy, &row).await?, Nothing, "{row}");
        lines += 2;
        drop(upstream.take());
    }
    assert_no_trap(&envoy);
    Ok(())
}

/// By a rule of its own: with an exempt class there is still something to count while it rejects.
#[tokio::test(flavor = "multi_thread")]
async fn what_it_rejected_itself_does_not_count() -> Result<()> {
    let upstream = Upstream::start().await?;
    let rules = [
        rule(json!({ "id": "off", "strategy": "error_ratio", "threshold": 1.0, "mode": "forced_open" })),
        rule(json!({ "id": "r", "strategy": "error_count", "threshold": 1 })),
    ];
    let classes = json!([{ "header": "x-tier", "value": "gold", "treat": "exempt" }]);
    let site = listener("in")
        .filter(breaker(json!({ "rules": rules, "classes": classes }))?)
        .route(Route::cluster("payment-service"));
    let envoy = builder().concurrency(1).cluster("payment-service", upstream.addr()).listener(site).start().await?;
    for _ in 0..5 {
        assert_eq!(envoy.get("in", "/", ()).await?.status, 503);
    }
    envoy.wait_for_lines("in", 5).await?;
    assert_eq!(turns(&envoy, "closed", "open"), [""; 0]);
    let gold = told("/", "status=500").header("x-tier", "gold");
    assert_eq!(envoy.send("in", &gold).await?.status, 500);
    let line = turned(&envoy, "closed", "open", 1).await?;
    assert!(line.contains("rule r: closed to open: 1 of 1 "), "{line}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_as_slow_as_its_first_byte() -> Result<()> {
    let (upstream, websocket) = (Upstream::start().await?, Raw::websocket().await?);
    let slow = rule(
        json!({ "resource": "*", "strategy": "slow_ratio", "max_allowed_rt": "1s", "threshold": 0.01, "min_requests": 1 }),
    );
    let site = listener("in")
        .merge_hcm(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
        .filter(breaker(json!({ "resources": ["header:x-row"], "streams": ["/watch"], "rules": [slow] }))?)
        .route(route("/ws", "ws", json!({})))
        .route(route("/h2", "h2", json!({})))
        .route(route("/", "up", json!({})));
    let envoy = builder()
        .concurrency(1)
        .cluster("up", upstream.addr())
        .cluster("ws", websocket.addr)
        .add_cluster(Cluster::new("h2", upstream.addr()).http2())
        .listener(site)
        .start()
        .await?;
    const EVENTS: &str = "header=content-type:text/event-stream";
    let rows = [
        ("at-once", told("/", "chunk=a"), false),
        ("late", told("/", "pause=2000; chunk=a"), true),
        ("long", told("/", "head; chunk=a; pause=2000; chunk=b"), true),
        ("events", told("/", &format!("{EVENTS}; head; chunk=a; pause=2000; chunk=b")), false),
        ("events-late", told("/", &format!("{EVENTS}; pause=2000; chunk=a")), true),
        ("watch", told("/watch", "head; chunk=a; pause=2000; chunk=b"), false),
        ("watch-late", told("/watch", "pause=2000; chunk=a"), true),
        ("messages", grpc("/h2", "head; chunk=a; pause=2000; chunk=b; trailer=grpc-status:0"), false),
        ("messages-late", grpc("/h2", "pause=2000; chunk=a; trailer=grpc-status:0"), true),
        ("message-late", grpc("/h2", "head; pause=2000; chunk=a; trailer=grpc-status:0"), true),
    ];
    let addr = envoy.addr("in");
    let mut clients = JoinSet::new();
    for (row, request, _) in rows.clone() {
        let request = request.header("x-row", row);
        clients.spawn(async move { H1::connect(addr).await?.send(&request).await });
    }
    let upgrade = "GET /ws HTTP/1.1\r\nhost: a\r\nx-row: socket\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let (mut socket, _) = talk(addr, upgrade, "101").await?;
    while let Some(answer) = clients.join_next().await {
        assert_eq!(answer??.status, 200);
    }
    socket.write_all(b"ping").await?;
    drop(socket);
    let all = rows.len() + 1;
    envoy.wait_for_lines("in", all).await?;
    // The proxy's metrics have no `=` in a label.
    let wanted: BTreeSet<String> =
        rows.iter().filter(|(.., slow)| *slow).map(|(row, ..)| format!("header:x-row_{row}")).collect();
    eventually("those that are slow", PATIENCE, async || {
        let metrics = envoy.prometheus().await.map_err(|error| format!("{error:#}"))?;
        let open = metrics.series("meshfilter_circuit_state", &[]).into_iter().filter(|sample| sample.value == 2.0);
        let open: BTreeSet<String> = open.map(|sample| sample.labels["resource"].clone()).collect();
        if open == wanted { Ok(()) } else { Err(format!("{open:?}, not {wanted:?}")) }
    })
    .await?;
    assert_no_trap(&envoy);
    Ok(())
}

/// What each says is said when it begins, or when it is clear that it will not.
#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_is_a_stream_closes_before_its_end() -> Result<()> {
    let (upstream, websocket) = (Upstream::start().await?, Raw::websocket().await?);
    let rule = rule(
        json!({ "resource": "*", "strategy": "error_count", "threshold": 1, "retry_timeout": "50ms", "probe_timeout": "1h" }),
    );
    let site = listener("in")
        .merge_hcm(json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
        .filter(breaker(json!({ "resources": ["header:x-row"], "streams": ["/watch"], "rules": [rule] }))?)
        .route(route("/ws", "ws", json!({})))
        .route(route("/", "up", json!({ "route": { "timeout": "0s" } })));
    let envoy = builder()
        .concurrency(1)
        .cluster("up", upstream.addr())
        .cluster("ws", websocket.addr)
        .listener(site)
        .start()
        .await?;
    let addr = envoy.addr("in");
    let ask =
        |path: &str, row: &str, more: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-row: {row}\r\n{more}\r\n");
    const EVENTS: &str = "header=content-type:text/event-stream; head; chunk=begun; pause=600000";
    let mut held = Vec::new();
    for (row, path, more, until, to) in [
        ("events", "/", format!("x-reply: {EVENTS}\r\n"), "begun", "closed"),
        ("socket", "/ws", "connection: upgrade\r\nupgrade: websocket\r\n".to_owned(), "101", "closed"),
        ("watch", "/watch", "x-reply: head; chunk=begun; pause=600000\r\n".to_owned(), "begun", "closed"),
        ("events-503", "/", format!("x-reply: status=503; {EVENTS}\r\n"), "begun", "open"),
        ("watch-503", "/watch", "x-reply: status=503; head; chunk=begun; pause=600000\r\n".to_owned(), "begun", "open"),
    ] {
        let error = told("/", "status=503").header("x-row", row);
        assert!(!envoy.send("in", &error).await?.headers.has("x-circuit-state"), "{row}");
        envoy.wait_for_log(&format!("x-row={row}, rule r: closed to open"), PATIENCE).await?;
        // As soon as the retry time has come it is a probe.
        held.push(
            eventually(format!("a probe for {row}"), PATIENCE, async || {
                talk(addr, &ask(path, row, &more), until).await.map_err(|error| format!("{error:#}"))
            })
            .await?,
        );
        envoy.wait_for_log(&format!("x-row={row}, rule r: half_open to {to}"), PATIENCE).await?;
    }
    assert_no_trap(&envoy);
    Ok(())
}

/// So is the place of a probe that somebody else answered.
#[tokio::test(flavor = "multi_thread")]
async fn the_place_of_a_probe_whose_client_goes_is_free_again() -> Result<()> {
    let upstream = Upstream::start().await?;
    let rule =
        rule(json!({ "strategy": "error_count", "threshold": 1, "retry_timeout": "100ms", "probe_timeout": "1h" }));
    let behind = "function envoy_on_request(h) local s = h:headers():get('x-behind') if s then h:respond({[':status'] = s}, 'mine') end end";
    let site = listener("in")
        .filter(breaker(json!({ "rules": [rule] }))?)
        .filter(HttpFilter::lua("behind", behind))
        .route(route("/", "payment-service", json!({ "route": { "timeout": "0s" } })));
    let envoy =
        builder().concurrency(WORKERS).cluster("payment-service", upstream.addr()).listener(site).start().await?;
    assert_eq!(envoy.send("in", &told("/", "status=503")).await?.status, 503);
    turned(&envoy, "closed", "open", 1).await?;
    drop(upstream.take());
    let reached = async |request: &Request| {
        eventually("a probe", PATIENCE, async || {
            let mut h1 = H1::connect(envoy.addr("in")).await.map_err(|error| error.to_string())?;
            h1.write(&request.to_bytes()).await.map_err(|error| error.to_string())?;
            // Rejections come at once.
            tokio::select! {
                answer = h1.read(false) => Err(format!("{answer:?}")),
                arrived = upstream.wait(1) => arrived.map(|_| h1).map_err(|error| error.to_string()),
            }
        })
        .await
    };
    let probe = reached(&told("/", "pause=600000")).await?;
    for _ in 0..20 {
        assert_eq!(envoy.get("in", "/", ()).await?.status, 503, "one probe at a time");
    }
    drop(probe);
    turned(&envoy, "half_open", "open", 1).await?;
    // The retry time is over already.
    for status in ["503", "403", "200"] {
        let answer = envoy.get("in", "/", [("x-behind", status)]).await?;
        assert_eq!((answer.status.to_string().as_str(), answer.text().as_str()), (status, "mine"));
    }
    turned(&envoy, "half_open", "open", 4).await?;
    assert_eq!(turns(&envoy, "half_open", "closed"), [""; 0], "nobody has asked the upstream");
    assert_eq!(envoy.get("in", "/", ()).await?.status, 200);
    turned(&envoy, "half_open", "closed", 1).await?;
    assert_eq!(envoy.get("in", "/", ()).await?.status, 200);
    let lines = turns(&envoy, "half_open", "open");
    assert!(lines.iter().all(|line| line.contains("ended without saying anything")), "{lines:#?}");
    assert_no_trap(&envoy);
    Ok(())
}

// --- what a rejection is ---

#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_rejected_by_trailers_alone() -> Result<()> {
    let upstream = Upstream::start().await?;
    let rule = rule(json!({ "strategy": "error_count", "threshold": 1, "retry_timeout": "1h" }));
    let site = listener("in").filter(breaker(json!({ "rules": [&rule] }))?).route(Route::cluster("payment-service"));
    // As the rule says it; the proxy would make 14 of the status by itself.
    let busy = json!({ "mode": "forced_open", "reject": { "grpc_status": 8 } });
    let mut rules = json!([rule]);
    rules[0].as_object_mut().unwrap().extend(busy.as_object().unwrap().clone());
    let other = listener("busy").filter(breaker(json!({ "rules": rules }))?.vm_id("busy"));
    let envoy = builder()
        .concurrency(WORKERS)
        .add_cluster(Cluster::new("payment-service", upstream.addr()).http2())
        .listener(site)
        .listener(other.route(Route::cluster("payment-service")))
        .start()
        .await?;
    let h2 = H2::connect(envoy.addr("in")).await?;
    let failed = h2.send(&grpc("/a.B/C", "chunk=a; trailer=grpc-status:14")).await?;
    assert_eq!((failed.status, failed.trailers.text("grpc-status").as_deref()), (200, Some("14")));
    turned(&envoy, "closed", "open", 1).await?;
    drop(upstream.take());
    let mut rejected = vec![h2.send(&grpc("/a.B/C", "")).await?];
    for _ in 0..16 {
        rejected.push(H2::connect(envoy.addr("in")).await?.send(&grpc("/a.B/C", "")).await?);
    }
    for answer in rejected {
        assert_eq!((answer.status, answer.headers.text("grpc-status").as_deref()), (200, Some("14")), "{answer:?}");
        assert_eq!(answer.headers.text("content-type").as_deref(), Some("application/grpc"));
        assert_eq!(answer.headers.text("x-circuit-state").as_deref(), Some("open"));
        assert!(answer.body.is_empty() && answer.trailers.is_empty(), "{answer:?}");
        let wait: u64 = answer.headers.text("retry-after").unwrap().parse()?;
        assert!((3000..=3600).contains(&wait), "{wait}");
    }
    let plain = envoy.get("in", "/", ()).await?;
    assert_eq!((plain.status, plain.body.len(), plain.headers.has("grpc-status")), (503, 0, false));
    let busy = H2::connect(envoy.addr("busy")).await?.send(&grpc("/a.B/C", "")).await?;
    assert_eq!((busy.status, busy.headers.text("grpc-status").as_deref()), (200, Some("8")));
    assert!(upstream.take().is_empty());
    Ok(())
}

/// The header leads to a route, which is chosen again.
#[tokio::test(flavor = "multi_thread")]
async fn a_fallback_goes_to_another_cluster_and_no_client_gets_there() -> Result<()> {
    let (primary, cache) = (Upstream::start().await?, Upstream::start().await?);
    let rule = rule(json!({ "strategy": "error_count", "threshold": 1, "retry_timeout": "1h", "fallback": "cache" }));
    let matched =
        json!({ "match": { "headers": [{ "name": "x-circuit-fallback", "string_match": { "exact": "cache" } }] } });
    let site = listener("in")
        .filter(breaker(json!({ "rules": [rule] }))?)
        .route(route("/", "cache", matched))
        .route(Route::cluster(PAYMENT));
    let envoy = builder()
        .concurrency(WORKERS)
        .cluster(PAYMENT, primary.addr())
        .cluster("cache", cache.addr())
        .listener(site)
        .start()
        .await?;
    // A client that says it itself: the route was chosen by then, and is chosen again.
    for name in ["x-circuit-fallback", "X-Circuit-Fallback"] {
        assert_eq!(envoy.get("in", "/", [(name, "cache")]).await?.status, 200);
    }
    assert_eq!((primary.take().len(), cache.take().len()), (2, 0));
    assert_eq!(envoy.send("in", &told("/", "status=500")).await?.status, 500);
    turned(&envoy, "closed", "open", 1).await?;
    drop((primary.take(), cache.take()));
    for _ in 0..20 {
        let answer = envoy.get("in", "/", [("x-circuit-fallback", "other")]).await?;
        assert_eq!((answer.status, answer.headers.has("x-circuit-state")), (200, false));
    }
    let seen = cache.wait(20).await?;
    assert!(seen.iter().all(|request| request.headers.all("x-circuit-fallback") == [b"cache"]), "{seen:#?}");
    assert!(primary.take().is_empty());
    let lines = envoy.wait_for_json("in", 23).await?;
    assert!(lines[3..].iter().all(|line| line["decision"] == "fallback" && line["code"] == 200), "{lines:#?}");
    assert_eq!(value(&envoy, "rejected_total", &[]).await?, 20.0);
    Ok(())
}

/// The cluster of such a request is that of the route which it chose itself, until the header is gone: of the primary, which
/// is open, nobody has asked anything by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_forged_fallback_is_no_way_around_an_open_breaker() -> Result<()> {
    let (primary, cache) = (Upstream::start().await?, Upstream::start().await?);
    let rule = rule(json!({ "strategy": "error_count", "threshold": 1, "retry_timeout": "1h", "fallback": "cache" }));
    let matched =
        json!({ "match": { "headers": [{ "name": "x-circuit-fallback", "string_match": { "exact": "cache" } }] } });
    let site = listener("in")
        .filter(breaker(json!({ "rules": [rule] }))?)
        .route(route("/", "cache", matched))
        .route(Route::cluster(PAYMENT));
    let envoy = builder()
        .concurrency(WORKERS)
        .cluster(PAYMENT, primary.addr())
        .cluster("cache", cache.addr())
        .listener(site)
        .start()
        .await?;
    assert_eq!(envoy.send("in", &told("/", "status=500")).await?.status, 500);
    turned(&envoy, "closed", "open", 1).await?;
    drop(primary.take());
    for _ in 0..20 {
        drop(envoy.get("in", "/", [("x-circuit-fallback", "cache")]).await?);
    }
    assert_eq!(primary.take().len(), 0, "of 20 requests, while it is open");
    Ok(())
}

// --- sources ---

/// A set of rules that can be told by its answers: it rejects everything with this status.
fn rejecting(status: u16) -> String {
    let rule = rule(
        json!({ "strategy": "error_count", "threshold": 5, "mode": "forced_open", "reject": { "status": status } }),
    );
    json!([rule]).to_string()
}

async fn guarded(thresholds: &Thresholds, upstream: &Upstream, source: Value) -> Result<Envoy> {
    let site = listener("in").filter(breaker(json!({ "source": source }))?).route(Route::cluster("payment-service"));
    builder()
        .concurrency(WORKERS)
        .cluster("payment-service", upstream.addr())
        .cluster("rules", thresholds.addr())
        .listener(site)
        .start()
        .await
}

/// Waits until so many requests in a row, on connections of their own, have this status.
async fn answers(envoy: &Envoy, status: u16) -> Result<()> {
    for _ in 0..12 {
        eventually(format!("status {status}"), LONG, async || {
            let answer = envoy.get("in", "/", ()).await.map_err(|error| format!("{error:#}"))?;
            if answer.status == status { Ok(()) } else { Err(answer.status.to_string()) }
        })
        .await?;
    }
    Ok(())
}

/// Whether the rules are as they were, on connections of their own.
async fn still(envoy: &Envoy, status: u16) -> Result<()> {
    for _ in 0..12 {
        let answer = envoy.get("in", "/", ()).await?;
        ensure!(answer.status == status, "{answer:?}");
    }
    Ok(())
}

/// In each way that the server knows, and then by documents that are wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_or_lies_changes_nothing() -> Result<()> {
    let upstream = Upstream::start().await?;
    let thresholds = Thresholds::start(rejecting(420)).await?;
    let options = source(json!({ "timeout": "500ms", "max_bytes": 65_536 }));
    let envoy = guarded(&thresholds, &upstream, options).await?;
    answers(&envoy, 420).await?;
    let (mut version, mut status) = (1.0, 420);
    let modes = [
        ("refuses", Mode::Refuse(503), "unreachable"),
        ("says 404", Mode::Refuse(404), "unreachable"),
        ("hangs", Mode::Hang, "unreachable"),
        ("is slow", Mode::Slow(Duration::from_secs(3)), "unreachable"),
        // Slower than the interval, and within the timeout.
        ("takes its time", Mode::Slow(Duration::from_millis(250)), "unchanged"),
        ("drops", Mode::Drop, "unreachable"),
        ("breaks off", Mode::Torn, "unreachable"),
        ("says too much", Mode::Oversized(65_537), "refused"),
        ("says nothing", Mode::Empty, "refused"),
        ("has no etag", Mode::NoEtag, "unchanged"),
        ("says 304 to all", Mode::NotModified, "unchanged"),
    ];
    let next = async |version: &mut f64, status: &mut u16| -> Result<()> {
        (*version, *status) = (*version + 1.0, *status + 1);
        thresholds.set(rejecting(*status));
        thresholds.mode(Mode::Serve);
        answers(&envoy, *status).await?;
        ensure!(value(&envoy, "rules_version", &[]).await? == *version, "another version than {version}");
        Ok(())
    };
    for (what, mode, result) in modes {
        let before = value(&envoy, "updates_total", &[("result", result)]).await?;
        thresholds.mode(mode);
        becomes(&envoy, "updates_total", &[("result", result)], |now| now >= before + 3.0).await?;
        still(&envoy, status).await.context(what)?;
        // The same rules under another ETag, or none, are the same version.
        assert_eq!(value(&envoy, "rules_version", &[]).await?, version, "{what}");
        next(&mut version, &mut status).await.context(what)?;
    }
    let good: Value = serde_json::from_str(&rejecting(599))?;
    let mut two = json!([good[0], good[0]]);
    two[1]["id"] = "second".into();
    two[1]["reject"]["status"] = 99.into();
    let documents = [
        ("no JSON", "{".to_owned(), "from rules/rules"),
        ("another thing", json!({ "unit": "ms" }).to_string(), "unit"),
        ("half of it", json!([good[0], { "resource": "a" }]).to_string(), "[1]."),
        ("one number", two.to_string(), "[1].reject.status"),
        ("a page", "<html>sign in</html>".to_owned(), "from rules/rules"),
    ];
    for (what, document, says) in documents {
        let before = value(&envoy, "updates_total", &[("result", "refused")]).await?;
        thresholds.set(document);
        becomes(&envoy, "updates_total", &[("result", "refused")], |now| now >= before + 2.0).await?;
        still(&envoy, status).await.context(what)?;
        assert_eq!(value(&envoy, "rules_version", &[]).await?, version, "{what}");
        let lines = said(&envoy);
        let last = lines.iter().rfind(|line| line.contains("the rules stay as they are: ")).unwrap();
        assert!(last.contains(says), "{what}: {last}");
        next(&mut version, &mut status).await.context(what)?;
    }
    // No rules are rules as well.
    thresholds.set("[]");
    answers(&envoy, 200).await?;
    assert_eq!(value(&envoy, "rules_version", &[]).await?, version + 1.0);
    let seen = said(&envoy).iter().filter(|line| line.contains("the rules stay as they are: ")).count();
    println!("{seen} lines about {} failures", value(&envoy, "updates_total", &[("result", "unreachable")]).await?);
    assert_no_trap(&envoy);
    Ok(())
}

/// For as long as sixteen intervals and more: then the pause between two questions is at its longest.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_down_loses_nothing_and_is_asked_less_and_less() -> Result<()> {
    let upstream = Upstream::start().await?;
    let mut thresholds = Thresholds::start(rejecting(420)).await?;
    let envoy = guarded(&thresholds, &upstream, source(json!({ "timeout": "500ms" }))).await?;
    answers(&envoy, 420).await?;
    let age = async || value(&envoy, "rules_age_seconds", &[]).await;
    assert!(age().await? <= 1.0);
    thresholds.down().await?;
    let from_ns = now_ns();
    let load = Load::h1(envoy.addr("in"), 4, &Request::get("/"));
    becomes(&envoy, "rules_age_seconds", &[], |age| age >= 6.0).await?;
    let asked = value(&envoy, "updates_total", &[("result", "unreachable")]).await?;
    let seconds = (now_ns() - from_ns) / 1_000_000_000;
    // 0.1 + 0.1 + 0.2 + 0.4 + 0.8 s and from then on each 1.6 s, a tenth less at times.
    println!("down for {seconds} s: {asked} questions");
    assert!(asked >= 2.0 && asked <= 6.0 + f64::from(u32::try_from(seconds)?) / 1.4, "{asked} in {seconds} s");
    let report = load.stop().await;
    assert_eq!(report.statuses.keys().collect::<Vec<_>>(), [&420], "{report:?}");
    assert_eq!(value(&envoy, "rules_version", &[]).await?, 1.0);
    let lines = said(&envoy);
    let stays = lines.iter().filter(|line| line.contains("the rules stay as they are: ")).count();
    assert!((1..=u64::from(WORKERS) + 1).contains(&u64::try_from(stays)?), "once, and not each time: {lines:#?}");
    thresholds.set(rejecting(421));
    thresholds.up().await?;
    answers(&envoy, 421).await?;
    becomes(&envoy, "rules_age_seconds", &[], |age| age <= 1.0).await?;
    assert_eq!(value(&envoy, "rules_version", &[]).await?, 2.0);
    assert!(said(&envoy).iter().any(|line| line.contains("answers again")));
    assert_no_trap(&envoy);
    Ok(())
}

/// Of all workers and of the main thread; and another takes it over when its VM is gone.
#[tokio::test(flavor = "multi_thread")]
async fn one_worker_asks_for_all_and_another_when_that_is_gone() -> Result<()> {
    const QUESTIONS: usize = 30;
    let upstream = Upstream::start().await?;
    let thresholds = Thresholds::start(rejecting(420)).await?;
    let plugin = |vm: &str| -> Result<Listener> {
        let vm = json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": vm });
        let filter = breaker(json!({ "source": source(json!({ "timeout": "500ms" })) }))?;
        let filter = filter.merge_plugin(json!({ "vm_config": { "configuration": vm } }));
        Ok(listener("in").filter(filter).route(Route::cluster("payment-service")))
    };
    let envoy = builder()
        .concurrency(WORKERS)
        .cluster("payment-service", upstream.addr())
        .cluster("rules", thresholds.addr())
        .listener(plugin("a")?)
        .drain_time(Duration::from_secs(1))
        .start()
        .await?;
    answers(&envoy, 420).await?;
    let rate = async || -> Result<(usize, u128)> {
        drop(thresholds.take());
        let seen = thresholds.wait(QUESTIONS).await?;
        Ok((seen.len() - 1, (seen[seen.len() - 1].at - seen[0].at).as_millis()))
    };
    // The interval is 100 ms, and up to a tenth less; what waited in between comes sooner.
    let not_more = |(asked, ms): (usize, u128)| ms + 200 >= u128::try_from(asked).unwrap() * 90;
    let before = rate().await?;
    assert!(not_more(before), "{before:?}");
    let known = thresholds.take();
    assert!(known.iter().filter(|seen| seen.if_none_match.is_none()).count() <= 1 + known.len() / 5, "{known:#?}");
    let vms = async || {
        let vms = envoy.counter("wasm.envoy.wasm.runtime.v8.active").await;
        vms.map_err(|error| format!("{error:#}"))?.ok_or_else(|| "none".to_owned())
    };
    let all = vms().await.unwrap();
    // Another VM in its place, with a new worker on each thread. Once the old one is gone, nobody who ever asked is there.
    for (vm, status) in [("b", 421), ("c", 422)] {
        envoy.push([plugin(vm)?]).await?.accepted()?;
        eventually("no VM but the new one", LONG, async || match vms().await? {
            now if now == all => Ok(()),
            now => Err(format!("{now}, not {all}")),
        })
        .await?;
        thresholds.set(rejecting(status));
        answers(&envoy, status).await?;
    }
    let after = rate().await?;
    assert!(not_more(after), "{after:?}");
    println!("questions and ms: {before:?}, and after two other VMs {after:?}");
    assert_eq!(value(&envoy, "rules_version", &[]).await?, 3.0);
    assert_no_trap(&envoy);
    Ok(())
}
