//! All that `docker-compose.yaml` starts: Envoy with the suite, a scripted upstream, nginx with thresholds, Prometheus.
//!
//! It runs elsewhere, in containers as a rule, or is started here, natively, from the same files in `compose/`. Who
//! uses it need not know which.

use std::env;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::net::lookup_host;

use crate::client::H1;
use crate::metrics::Metrics;
use crate::process::{Process, tail};
use crate::scripted::{Control, Scripted};
use crate::wire::{Request, Response};
use crate::{ConfigMap, Nginx, PATIENCE, Prometheus, envoy, eventually, module, root};

/// What says where a stack runs: Envoy's listener; all the others are asked for with it.
pub const ENVOY_URL: &str = "ENVOY_URL";

/// A stack that runs.
#[derive(Debug)]
pub struct Stack {
    envoy: SocketAddr,
    admin: SocketAddr,
    upstream: Control,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Started by somebody else.
    Elsewhere { prometheus: SocketAddr, thresholds: PathBuf, log: String },
    /// Started by this value.
    Here(Box<Native>),
}

#[derive(Debug)]
struct Native {
    // The processes go before their directory does.
    process: Process,
    home: TempDir,
    thresholds: ConfigMap,
    _nginx: Nginx,
    upstream: Scripted,
}

impl Drop for Stack {
    fn drop(&mut self) {
        if let (true, Ok(log)) = (thread::panicking(), self.log()) {
            eprintln!("--- Envoy's log ends with:\n{}", tail(&log));
        }
    }
}

/// How a stack is found and begins.
impl Stack {
    /// The stack that `ENVOY_URL` and the variables with it tell, or, without that, one that is started here. In both the
    /// thresholds are those of `compose/thresholds`, the upstream is up, and answers as each request says.
    ///
    /// The others: `ADMIN_URL`, Envoy's admin; `UPSTREAM_URL`, where the upstream is [told](Scripted); `PROMETHEUS_URL`;
    /// `THRESHOLDS`, the file that the source of thresholds serves; `ENVOY_LOG`, a command for a shell that prints all
    /// that Envoy has printed.
    ///
    /// # Errors
    /// When one of these is missing, or the stack does not answer.
    pub async fn start() -> Result<Self> {
        let mut stack = if Self::is_shared() { Self::elsewhere().await? } else { Self::native().await? };
        stack.reset().await?;
        Ok(stack)
    }

    /// Whether all that start one get the same.
    #[must_use]
    pub fn is_shared() -> bool {
        told(ENVOY_URL).is_some()
    }

    async fn elsewhere() -> Result<Self> {
        let wanted = |name: &str| told(name).with_context(|| format!("{ENVOY_URL} is given, and {name} is not"));
        let address = async |name: &str| resolve(&wanted(name)?).await.with_context(|| name.to_owned());
        Ok(Self {
            envoy: address(ENVOY_URL).await?,
            admin: address("ADMIN_URL").await?,
            upstream: Control::at(address("UPSTREAM_URL").await?),
            place: Place::Elsewhere {
                prometheus: address("PROMETHEUS_URL").await?,
                thresholds: wanted("THRESHOLDS")?.into(),
                log: wanted("ENVOY_LOG")?,
            },
        })
    }

    async fn native() -> Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let upstream = Scripted::start(any, any).await?;
        let thresholds = ConfigMap::mount(default_thresholds()?)?;
        let nginx_conf = fs::read_to_string(compose("nginx.conf"))?;
        let served = thresholds.path().join("rules.json");
        let nginx = Nginx::configured(|addr, home| {
            let put = [
                ("/tmp/", format!("{}/", home.display())),
                ("8500", addr.to_string()),
                ("/etc/thresholds/rules.json", served.display().to_string()),
            ];
            replaced(&nginx_conf, &put)
        })
        .await?;
        let home = tempfile::Builder::new().prefix("stack-").tempdir()?;
        let suite = module("suite")?;
        let put = [
            // Both the cluster for HTTP and the one for gRPC.
            ("address: upstream, port_value: 8080", of(upstream.service())),
            ("address: thresholds, port_value: 8500", of(nginx.addr())),
            ("address: 0.0.0.0, port_value: 10000", of(any)),
            ("address: 0.0.0.0, port_value: 9901", of(any)),
            ("/modules/suite.wasm", suite.display().to_string()),
        ];
        let configuration = home.path().join("envoy.yaml");
        fs::write(&configuration, replaced(&fs::read_to_string(compose("envoy.yaml"))?, &put))?;
        let mut command = Command::new(envoy::binary()?);
        command.arg("-c").arg(configuration).args(["--concurrency", "2", "--file-flush-interval-msec", "50"]);
        // Without the first, instances share memory and sockets by base id.
        command.arg("--disable-hot-restart").arg("--admin-address-path").arg(home.path().join("admin"));
        let log = File::create(home.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Process::start(command).await?;
        let native = Native { process, home, thresholds, _nginx: nginx, upstream };
        let control = Control::at(native.upstream.control());
        let admin = native.while_alive(native.admin()).await?;
        let mut stack = Self { envoy: any, admin, upstream: control, place: Place::Here(Box::new(native)) };
        let listener = eventually("Envoy's listener", envoy::START, async || {
            stack.listener().await.map_err(|error| format!("{error:#}"))
        });
        stack.envoy = match &stack.place {
            Place::Here(native) => native.while_alive(listener).await?,
            Place::Elsewhere { .. } => listener.await?,
        };
        Ok(stack)
    }

    async fn listener(&self) -> Result<SocketAddr> {
        self.admin_get("/ready").await?;
        let listeners: Value = serde_json::from_str(&self.admin_get("/listeners?format=json").await?)?;
        let port = &listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"];
        let port = port.as_u64().with_context(|| format!("no listener: {listeners}"))?;
        Ok(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port)?)))
    }

    /// Whatever was before: all is as in the beginning, and a request passes.
    async fn reset(&mut self) -> Result<()> {
        self.upstream.script("").await?;
        self.upstream.up(true).await?;
        self.set_thresholds(default_thresholds()?)?;
        eventually(format!("an answer of the upstream through Envoy at {}", self.envoy), envoy::START, async || {
            let response = self.send(&Request::get("/")).await.map_err(|error| format!("{error:#}"))?;
            if response.status == 200 { Ok(()) } else { Err(format!("{}: {}", response.status, response.text())) }
        })
        .await?;
        drop(self.upstream.received().await?);
        Ok(())
    }
}

fn told(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// `http://host:port`, also with a slash at the end.
async fn resolve(url: &str) -> Result<SocketAddr> {
    let host = url.strip_prefix("http://").with_context(|| format!("{url} is not http://host:port"))?;
    let host = host.trim_end_matches('/');
    let mut all = lookup_host(host).await.with_context(|| format!("{url} is not http://host:port"))?;
    all.next().with_context(|| format!("{host} has no address"))
}

/// A file of those that the containers have mounted.
fn compose(file: &str) -> PathBuf {
    root().join("test-harness/compose").join(file)
}

fn default_thresholds() -> Result<Vec<u8>> {
    let file = compose("thresholds/rules.json");
    fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
}

fn of(addr: SocketAddr) -> String {
    format!("address: {}, port_value: {}", addr.ip(), addr.port())
}

/// The text with what is here in place of what is in containers, all of which has to be there.
fn replaced(text: &str, put: &[(&str, String)]) -> String {
    put.iter().fold(text.to_owned(), |text, (there, here)| {
        assert!(text.contains(there), "no {there:?} in the configuration, which has to be replaced by {here:?}");
        text.replace(there, here)
    })
}

impl Native {
    async fn admin(&self) -> Result<SocketAddr> {
        eventually("Envoy's admin address", envoy::START, async || {
            let text = fs::read_to_string(self.home.path().join("admin")).map_err(|error| error.to_string())?;
            text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
        })
        .await
    }

    fn log(&self) -> String {
        fs::read(self.home.path().join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    async fn while_alive<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.process.while_alive("Envoy", || self.log(), work).await
    }
}

/// What one does with it.
impl Stack {
    /// Sends one request to Envoy over HTTP/1.1, on a connection of its own.
    ///
    /// # Errors
    /// When no whole response came.
    pub async fn send(&self, request: &Request) -> Result<Response> {
        H1::connect(self.envoy).await?.send(&request.clone().header("connection", "close")).await
    }

    /// Where Envoy takes requests.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.envoy
    }

    /// Who tells the upstream.
    #[must_use]
    pub fn upstream(&self) -> Control {
        self.upstream
    }

    /// Replaces the document that the source of thresholds serves, at once: nobody finds half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_thresholds(&mut self, document: impl AsRef<[u8]>) -> Result<()> {
        match &mut self.place {
            Place::Here(native) => native.thresholds.update(document),
            Place::Elsewhere { thresholds, .. } => {
                let new = thresholds.with_extension("new");
                fs::write(&new, document).with_context(|| format!("cannot write {}", new.display()))?;
                fs::rename(&new, &*thresholds).with_context(|| format!("cannot write {}", thresholds.display()))
            }
        }
    }

    /// The body of a page of Envoy's admin.
    ///
    /// # Errors
    /// When the answer is not 200.
    pub async fn admin_get(&self, path: &str) -> Result<String> {
        let request = Request::get(path).header("connection", "close");
        let response = H1::connect(self.admin).await?.send(&request).await?;
        ensure!(response.status == 200, "admin {path}: {} {}", response.status, response.text());
        Ok(response.text())
    }

    /// What Prometheus would scrape.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.admin_get("/stats/prometheus").await?))
    }

    /// All that Envoy has printed: its log, and a line for each request.
    ///
    /// # Errors
    /// When the command that prints it fails.
    pub fn log(&self) -> Result<String> {
        match &self.place {
            Place::Here(native) => Ok(native.log()),
            Place::Elsewhere { log, .. } => {
                let output = Command::new("sh").args(["-c", log]).output()?;
                let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
                ensure!(output.status.success(), "{log}: {}: {said}", output.status);
                Ok(said)
            }
        }
    }

    /// Waits for the line of the request with that trace.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn line(&self, trace_id: &str) -> Result<Map<String, Value>> {
        eventually(format!("a line with the trace {trace_id}"), PATIENCE, async || {
            let log = self.log().map_err(|error| format!("{error:#}"))?;
            let line = log.lines().rev().filter(|line| line.starts_with('{')).find(|line| line.contains(trace_id));
            let line = line.ok_or_else(|| tail(&log))?;
            serde_json::from_str(line).map_err(|error| format!("{line}: {error}"))
        })
        .await
    }

    /// A Prometheus that scrapes this Envoy with the rules of the examples.
    ///
    /// # Errors
    /// When it cannot be started, or has not scraped Envoy.
    pub async fn prometheus(&self) -> Result<Scraping> {
        match &self.place {
            Place::Elsewhere { prometheus, .. } => Ok(Scraping { address: *prometheus, _here: None }),
            Place::Here(_) => {
                let rules = root().join("examples/prometheus/latency-rules.yaml");
                let here = Prometheus::builder().target("envoy", self.admin, "/stats/prometheus").rules(rules);
                let here = here.start().await?;
                Ok(Scraping { address: here.addr(), _here: Some(here) })
            }
        }
    }
}

/// A Prometheus of a [`Stack`].
#[derive(Debug)]
pub struct Scraping {
    address: SocketAddr,
    _here: Option<Prometheus>,
}

impl Scraping {
    /// Asks again and again, until the expression has a series with a value above this.
    ///
    /// # Errors
    /// When it has none in time.
    pub async fn above(&self, promql: &str, value: f64) -> Result<()> {
        eventually(format!("{promql} > {value}"), envoy::START, async || {
            let samples = crate::prometheus::query(self.address, promql).await.map_err(|error| format!("{error:#}"))?;
            if samples.iter().any(|sample| sample.value > value) { Ok(()) } else { Err(format!("{samples:?}")) }
        })
        .await
    }

    /// How many rules there are, all of them well.
    ///
    /// # Errors
    /// When one is not.
    pub async fn rules(&self) -> Result<usize> {
        eventually("rules that were all evaluated", envoy::START, async || {
            let data = crate::prometheus::get(self.address, "/api/v1/rules").await;
            let data = data.map_err(|error| format!("{error:#}"))?;
            let groups = data["groups"].as_array().into_iter().flatten();
            let rules: Vec<&Value> = groups.flat_map(|group| group["rules"].as_array()).flatten().collect();
            match rules.iter().find(|rule| rule["health"] != "ok") {
                Some(ill) => Err(ill.to_string()),
                None => Ok(rules.len()),
            }
        })
        .await
    }
}
