//! circuit-breaker in a real Envoy, with four workers where it matters: what reaches the upstream, and what does not.
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
    AccessLog, Cluster, Envoy, H1, H2, HttpFilter, Listener, Load, PATIENCE, Reply, Request, Response, Route,
    Thresholds, Upstream, eventually, module,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
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
    most_at_once: AtomicUsize,
    /// When the clients sent what arrived here, by their own word.
    arrived: Mutex<Vec<u64>>,
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
        let now = health.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        health.most_at_once.fetch_max(now, Ordering::SeqCst);
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

    fn arrived(&self) -> Vec<u64> {
        self.health.arrived.lock().unwrap().clone()
    }

    fn at_once(&self) -> usize {
        self.health.at_once.load(Ordering::SeqCst)
    }

    fn most_at_once(&self) -> &AtomicUsize {
        &self.health.most_at_once
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
            self.arrived.lock().unwrap().push(sent);
            let at_once = AtOnce::new(&self);
            let silent = |left: usize| left.checked_sub(1);
            if self.silent.fetch_update(Ordering::SeqCst, Ordering::SeqCst, silent).is_ok() {
                // Until the caller leaves.
                let _ = stream.fill_buf().await?;
                return Ok(());
            }
            let delay = self.delay_ms.load(Ordering::SeqCst);
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

/// What the upstream got of what was sent in this time.
fn sent_within(arrived: &[u64], from_ns: u64, until_ns: u64) -> usize {
    arrived.iter().filter(|sent| (from_ns..until_ns).contains(sent)).count()
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
        let closed = turned(&envoy, "half_open", "closed", 1).await?;
        flood.everywhere(|shot| shot.status == 200).await?;
        let from_ns = now_ns();
        flood.wait(100, |shot| shot.sent_ns > from_ns).await?;
        let shots = flood.stop().await?;
        assert!(shots.iter().filter(|shot| shot.sent_ns > from_ns).all(|shot| shot.status == 200));

        let first_ns = first_rejection_ns(&shots);
        let (opened_ns, half_ns) = (written_ns(&opened), written_ns(&half));
        // The line is written a moment after the time from which the retry counts.
        assert!(half_ns - opened_ns + 250_000_000 >= RETRY_MS * 1_000_000, "{opened}\n{half}");
        let probe = sent_within(&service.arrived(), first_ns, half_ns);
        let rejected = shots.iter().filter(|shot| shot.status == 503 && !shot.upstream).count();
        let before = shots.iter().filter(|shot| shot.upstream && shot.sent_ns < first_ns).count();
        let on_their_way = before - shots.iter().filter(|shot| shot.upstream && shot.sent_ns < opened_ns).count();
        println!(
            "{name}: {} requests, {rejected} rejected; {on_their_way} sent between the opening and the first rejection; \
             then {probe} up to the retry, the probe",
            shots.len()
        );
        // The probe itself was sent before its line was written.
        assert!(probe <= 1, "{probe} requests reached the upstream while it was open");
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
