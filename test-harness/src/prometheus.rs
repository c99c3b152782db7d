//! A running Prometheus, and `promtool`.
//!
//! What [`Metrics`](crate::metrics::Metrics) reads is what Envoy wrote. This is what becomes of it: as the real one
//! parses it, stores it, and answers in PromQL.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::client::H1;
use crate::metrics::Sample;
use crate::process::{Process, packaged, tail};
use crate::wire::Request;
use crate::{Envoy, PATIENCE, eventually};

/// The version that `make prometheus` installs: `debian/prometheus/<version>.txt` pins it.
pub const VERSION: &str = "2.42.0";

/// How long it may take to start, where all processors are busy.
const START: Duration = Duration::from_secs(60);

/// How long `promtool` may run: some days of rules are 10 s of work, and a minute where all processors are busy.
const WORK: Duration = Duration::from_secs(300);

/// One of the programs that come with Prometheus, `prometheus` or `promtool`: from the directory `PROMETHEUS`, or from
/// where `make prometheus` put it.
///
/// # Errors
/// When it is not there; the message says how to get it.
pub fn binary(program: &str) -> Result<PathBuf> {
    packaged("Prometheus", VERSION, program)
}

/// What a run of `promtool` came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended: 0 when all was well; for `check metrics`, 1 when it could not read the text, 3 when there is
    /// something to say about it. `None` when it was killed.
    pub code: Option<i32>,
    /// What it said: standard output, then standard error.
    pub said: String,
}

/// Runs `promtool` with these arguments, and this on its standard input.
///
/// # Errors
/// When there is none, or it does not end in time.
pub async fn promtool(arguments: &[&str], input: &str) -> Result<Report> {
    // A file, and no pipe: it need not be written while the output is read.
    let mut file = tempfile::tempfile()?;
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    let mut command = tokio::process::Command::new(binary("promtool")?);
    command.args(arguments).stdin(file).kill_on_drop(true);
    let output = timeout(WORK, command.output()).await;
    let output = output.with_context(|| format!("promtool {arguments:?} did not end within {WORK:?}"))??;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(Report { code: output.status.code(), said })
}

/// What to start.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    scrapes: Vec<Value>,
    /// How many targets these come to.
    targets: usize,
    rules: Vec<PathBuf>,
    interval: Duration,
}

impl Builder {
    /// Adds an Envoy to scrape, as the job of this name.
    pub fn envoy(self, job: &str, envoy: &Envoy) -> Self {
        self.target(job, envoy.admin_addr(), "/stats/prometheus")
    }

    /// Adds a page to scrape, as the job of this name.
    pub fn target(self, job: &str, address: SocketAddr, path: &str) -> Self {
        let scrape = json!({
            "job_name": job,
            "metrics_path": path,
            "static_configs": [{ "targets": [address.to_string()] }],
        });
        self.scrape(scrape, 1)
    }

    /// Adds an entry of `scrape_configs`, which comes to so many targets.
    pub fn scrape(mut self, config: Value, targets: usize) -> Self {
        self.scrapes.push(config);
        self.targets += targets;
        self
    }

    /// Adds a file of rules for recording and alerting.
    pub fn rules(mut self, file: impl Into<PathBuf>) -> Self {
        self.rules.push(file.into());
        self
    }

    /// Sets the time from one scrape to the next, and from one evaluation of the rules to the next; 500 ms unless told
    /// otherwise. A scrape that takes longer fails, and its series are gone until the next.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Starts Prometheus; returns when every target was scraped once. With targets that takes 5 s, nearly all of it
    /// waiting: Prometheus' list of targets gets to its scraper only every 5 s, and no option changes that.
    ///
    /// # Errors
    /// When there is no binary, when Prometheus refuses the configuration or the rules, ends, or a target cannot be
    /// scraped. The message ends with the last lines of its log.
    pub async fn start(self) -> Result<Prometheus> {
        let home = tempfile::Builder::new().prefix("prometheus-").tempdir()?;
        let mut rules = Vec::new();
        for file in &self.rules {
            rules.push(file.canonicalize().with_context(|| format!("rules {}", file.display()))?);
        }
        let interval = format!("{}ms", self.interval.as_millis());
        // JSON is YAML.
        let configuration = json!({
            "global": { "scrape_interval": interval, "evaluation_interval": interval },
            "scrape_configs": self.scrapes,
            "rule_files": rules,
        });
        let file = home.path().join("prometheus.yml");
        fs::write(&file, configuration.to_string())?;
        let mut command = Command::new(binary("prometheus")?);
        command.arg("--config.file").arg(file);
        command.arg("--storage.tsdb.path").arg(home.path().join("data"));
        // The log tells which port it got.
        command.args(["--web.listen-address", "127.0.0.1:0"]);
        let log = File::create(log_file(&home))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Process::start(command).await?;
        let mut prometheus = Prometheus { process, address: SocketAddr::from(([127, 0, 0, 1], 0)), home };
        prometheus.address = prometheus.while_alive(prometheus.listening()).await?;
        prometheus.while_alive(prometheus.first_scrapes(self.targets)).await?;
        Ok(prometheus)
    }
}

fn log_file(home: &TempDir) -> PathBuf {
    home.path().join("prometheus.log")
}

/// A running Prometheus. Dropping it kills the process; in a panic, the last lines of its log are printed.
#[derive(Debug)]
pub struct Prometheus {
    // The process goes before its directory does.
    process: Process,
    address: SocketAddr,
    home: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- Prometheus's log ends with:\n{}", tail(&self.log()));
        }
    }
}

impl Prometheus {
    /// A Prometheus without targets, to be told what it shall have.
    pub fn builder() -> Builder {
        Builder { scrapes: Vec::new(), targets: 0, rules: Vec::new(), interval: Duration::from_millis(500) }
    }

    /// The address of its API.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Everything logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(log_file(&self.home)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// What the expression comes to now: a sample for each series, or one without labels for a number. A sample's name
    /// is empty where the expression leaves none.
    ///
    /// # Errors
    /// When Prometheus refuses the expression; when it comes to something else, as `x[5m]` does.
    pub async fn query(&self, promql: &str) -> Result<Vec<Sample>> {
        query(self.address, promql).await
    }

    /// Asks again and again, until the answer is such, and returns it.
    ///
    /// # Errors
    /// When it is not in time; the message tells the last answer.
    pub async fn wait_for(&self, promql: &str, wanted: impl Fn(&[Sample]) -> bool) -> Result<Vec<Sample>> {
        let wait = eventually(promql, PATIENCE, async || {
            let samples = self.query(promql).await.map_err(|error| format!("{error:#}"))?;
            if wanted(&samples) { Ok(samples) } else { Err(shown(&samples)) }
        });
        self.while_alive(wait).await
    }

    /// What the expression comes to from one time to another, in steps, all in seconds since 1970: for each series its
    /// labels, and times with values.
    ///
    /// # Errors
    /// When Prometheus refuses it.
    pub async fn range(&self, promql: &str, (from, to): (f64, f64), step: f64) -> Result<Vec<Track>> {
        let path = format!("/api/v1/query_range?query={}&start={from}&end={to}&step={step}", encoded(promql));
        let data = self.get(&path).await.with_context(|| promql.to_owned())?;
        let track = |series: &Value| {
            let label = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            let point = |pair: &Value| Some((pair.get(0)?.as_f64()?, pair.get(1)?.as_str()?.parse().ok()?));
            let labels = series.get("metric")?.as_object()?.iter().map(label).collect::<Option<_>>()?;
            Some(Track { labels, points: series.get("values")?.as_array()?.iter().map(point).collect::<Option<_>>()? })
        };
        let tracks = data["result"].as_array().and_then(|all| all.iter().map(track).collect());
        tracks.with_context(|| format!("{promql}: no series over time: {data}"))
    }

    /// The values that a label has in these series.
    ///
    /// # Errors
    /// When Prometheus does not answer, or refuses the selector.
    pub async fn label_values(&self, series: &str, label: &str) -> Result<Vec<String>> {
        let data = self.get(&format!("/api/v1/label/{label}/values?match%5b%5d={}", encoded(series))).await?;
        serde_json::from_value(data).with_context(|| format!("values of {label} in {series}"))
    }

    /// The types of all metrics that were scraped, by name: what it read in the lines `# TYPE`.
    ///
    /// # Errors
    /// When Prometheus does not answer.
    pub async fn types(&self) -> Result<BTreeMap<String, String>> {
        let data = self.get("/api/v1/metadata").await?;
        let one =
            |(name, of_targets): (&String, &Value)| Some((name.clone(), of_targets[0]["type"].as_str()?.to_owned()));
        data.as_object()
            .and_then(|metrics| metrics.iter().map(one).collect())
            .with_context(|| format!("no types: {data}"))
    }

    async fn get(&self, path: &str) -> Result<Value> {
        get(self.address, path).await
    }

    /// Waits for the line in the log that tells the address.
    async fn listening(&self) -> Result<SocketAddr> {
        eventually("Prometheus' address in its log", START, async || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains("msg=\"Listening on\"")).ok_or("other lines")?;
            let address = line.split(" address=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
            address.parse().map_err(|error| format!("{line}: {error}"))
        })
        .await
    }

    async fn first_scrapes(&self, targets: usize) -> Result<()> {
        eventually(format!("{targets} targets, all up"), START, async || {
            let data = self.get("/api/v1/targets?state=active").await.map_err(|error| format!("{error:#}"))?;
            let active = data["activeTargets"].as_array().map(Vec::as_slice).unwrap_or_default();
            let state = |target: &Value| {
                let text = |field: &str| target[field].as_str().unwrap_or_default().to_owned();
                (text("health"), text("scrapeUrl"), text("lastError"))
            };
            let states: Vec<_> = active.iter().map(state).collect();
            let up = states.len() == targets && states.iter().all(|(health, _, _)| health == "up");
            if up { Ok(()) } else { Err(format!("{states:?}")) }
        })
        .await
    }

    async fn while_alive<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.process.while_alive("Prometheus", || self.log(), work).await
    }
}

/// A series over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Track {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Times in seconds since 1970, and the values.
    pub points: Vec<(f64, f64)>,
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// What the expression comes to now at the Prometheus that is there: see [`Prometheus::query`].
///
/// # Errors
/// When Prometheus refuses the expression; when it comes to something else, as `x[5m]` does.
pub async fn query(prometheus: SocketAddr, promql: &str) -> Result<Vec<Sample>> {
    let data = get(prometheus, &format!("/api/v1/query?query={}", encoded(promql)))
        .await
        .with_context(|| promql.to_owned())?;
    samples(&data).with_context(|| format!("{promql}: neither a number nor one for each series: {data}"))
}

/// What the API that is there answers under `data`.
///
/// # Errors
/// When it does not answer, or with an error.
pub async fn get(prometheus: SocketAddr, path: &str) -> Result<Value> {
    let request = Request::get(path).header("connection", "close");
    let response = H1::connect(prometheus).await?.send(&request).await?;
    let text = response.text();
    let mut body: Value = serde_json::from_str(&text).with_context(|| format!("{}: {text}", response.status))?;
    match (response.status, body.get_mut("data")) {
        (200, Some(data)) => Ok(data.take()),
        (status, _) => bail!("{status}: {}", body["error"].as_str().unwrap_or(&text)),
    }
}

fn samples(data: &Value) -> Option<Vec<Sample>> {
    let number = |value: &Value| value.get(1)?.as_str()?.parse::<f64>().ok();
    let label = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
    let series = |series: &Value| {
        let labels = series.get("metric")?.as_object()?.iter().map(label);
        let mut labels = labels.collect::<Option<BTreeMap<_, _>>>()?;
        let name = labels.remove("__name__").unwrap_or_default();
        Some(Sample { name, labels, value: number(series.get("value")?)? })
    };
    let result = data.get("result")?;
    match data.get("resultType")?.as_str()? {
        "vector" => result.as_array()?.iter().map(series).collect(),
        "scalar" => Some(vec![Sample { name: String::new(), labels: BTreeMap::new(), value: number(result)? }]),
        _ => None,
    }
}

/// For people: a line per sample, as PromQL writes it.
fn shown(samples: &[Sample]) -> String {
    let one = |Sample { name, labels, value }: &Sample| {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        format!("{name}{{{}}} {value}", labels.join(", "))
    };
    if samples.is_empty() { "no series".to_owned() } else { samples.iter().map(one).collect::<Vec<_>>().join("\n") }
}
