//! One running Envoy.
//!
//! It is started by [`Envoy::builder`], gets its listeners from a file that [`Envoy::push`] replaces (LDS), and ends
//! with the value that stands for it: on drop, on a panic, and also when the whole test process is killed.

use std::collections::{BTreeMap, HashMap};
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::client::H1;
use crate::config::{Bootstrap, Cluster, HttpFilter, Listener, Places, file_source};
use crate::metrics::Metrics;
use crate::process::{Process, tail};
use crate::wire::{Headers, Request, Response};
use crate::{PATIENCE, eventually, root};

/// The version that runs unless `ENVOY_VERSION` names another.
pub const VERSION: &str = "1.40.0";

/// Envoy optimises every module when it loads it, about 1 ms of CPU per KB, and tests run side by side on few cores.
pub(crate) const START: Duration = Duration::from_secs(60);

/// Envoy's binary: `ENVOY_BIN`, or the one that `make envoy` installed.
///
/// # Errors
/// When there is none; the message says how to get it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("ENVOY_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "ENVOY_BIN is {}, and there is no such file", path.display());
        return Ok(path);
    }
    let version = env::var("ENVOY_VERSION").unwrap_or_else(|_| VERSION.to_owned());
    let path = root().join(format!(".tools/envoy-{version}/envoy/_bin/envoy"));
    ensure!(path.is_file(), "no Envoy {version} at {}: run `make envoy`, or set ENVOY_BIN", path.display());
    Ok(path)
}

/// What Envoy said of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It serves now.
    Accepted,
    /// It was refused: what was logged about it at level warning and above, the plugins' own lines included.
    Rejected(String),
}

impl Verdict {
    /// # Errors
    /// When it was refused, with the reason.
    pub fn accepted(self) -> Result<()> {
        match self {
            Self::Accepted => Ok(()),
            Self::Rejected(why) => bail!("Envoy refused the configuration:\n{why}"),
        }
    }

    /// The reason of the refusal.
    ///
    /// # Errors
    /// When it was accepted.
    pub fn rejected(self) -> Result<String> {
        match self {
            Self::Accepted => bail!("Envoy accepted a configuration that it should have refused"),
            Self::Rejected(why) => Ok(why),
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    bootstrap: Bootstrap,
    listeners: Vec<Listener>,
    concurrency: u32,
    log_level: String,
    drain_time: Duration,
    args: Vec<OsString>,
}

impl Builder {
    /// Adds a listener.
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listeners.push(listener);
        self
    }

    /// Adds a cluster that is spoken to in HTTP/1.1.
    pub fn cluster(self, name: &str, address: SocketAddr) -> Self {
        self.add_cluster(Cluster::new(name, address))
    }

    /// Adds a cluster.
    pub fn add_cluster(mut self, cluster: Cluster) -> Self {
        self.bootstrap.clusters.push(cluster);
        self
    }

    /// Sets the number of workers; 2 unless told otherwise.
    pub fn concurrency(mut self, workers: u32) -> Self {
        self.concurrency = workers;
        self
    }

    /// Adds to `stats_config.stats_tags`: a label, and the regex that finds it in a stat's name.
    pub fn stats_tag(mut self, tag: &str, regex: &str) -> Self {
        self.bootstrap.stats_tags.push(json!({ "tag_name": tag, "regex": regex }));
        self
    }

    /// Adds to `stats_config.histogram_bucket_settings`.
    pub fn histogram_buckets(mut self, settings: Value) -> Self {
        self.bootstrap.histogram_buckets.push(settings);
        self
    }

    /// Merges JSON into the bootstrap.
    pub fn merge_bootstrap(mut self, json: Value) -> Self {
        let overrides = std::mem::take(&mut self.bootstrap.overrides);
        self.bootstrap.overrides = crate::config::merged(overrides, json);
        self
    }

    /// Sets the level of the log, such as `info` (which it is by default), or with components as `warning,wasm:debug`.
    pub fn log_level(mut self, level: &str) -> Self {
        level.clone_into(&mut self.log_level);
        self
    }

    /// Sets how long connections of a replaced listener live on, 2 seconds unless told otherwise. From the second
    /// second on, responses say `connection: close` (h2: GOAWAY), the longer the more; at the end the connection is
    /// closed, whatever runs on it. So with 1 second, clients are cut off without a warning.
    pub fn drain_time(mut self, time: Duration) -> Self {
        self.drain_time = time;
        self
    }

    /// Adds an argument to the command line.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Starts Envoy; returns when every listener takes requests on every worker.
    ///
    /// # Errors When there is no binary, when Envoy refuses the configuration, ends, or is not ready in time. The
    /// message ends with the last lines of its log.
    pub async fn start(self) -> Result<Envoy> {
        let home = Home::new(&self.listeners)?;
        home.replace(&home.lds(), &resources(self.listeners.iter().map(|listener| home.render(listener))))?;
        let lds = json!({ "lds_config": file_source(&home.lds(), home.lds().parent().expect("a directory")) });
        let bootstrap = self.bootstrap.render(("dynamic_resources", lds));
        let command = self.command(&home, &bootstrap)?;
        let envoy = Envoy::run(command, home, self.concurrency).await?;
        envoy.while_alive(envoy.first_listeners(&self.listeners)).await?.accepted()?;
        Ok(envoy)
    }

    /// Lets Envoy look at the configuration as `envoy --mode validate` does, which also starts the modules.
    ///
    /// # Errors
    /// When it could not be asked.
    pub async fn validate(self) -> Result<Verdict> {
        let home = Home::new(&self.listeners)?;
        let mut listeners: Vec<Value> = self.listeners.iter().map(|listener| home.render(listener)).collect();
        for listener in &mut listeners {
            // Static ones are no `Any`.
            listener.as_object_mut().expect("a listener is an object").remove("@type");
        }
        let bootstrap = self.bootstrap.render(("static_resources", json!({ "listeners": listeners })));
        let mut command = self.command(&home, &bootstrap)?;
        command.args(["--mode", "validate"]);
        let process = Process::start(command).await?;
        let status = eventually("end of envoy --mode validate", START, async || {
            process.ended().ok_or_else(|| tail(&home.log()))
        });
        Ok(if status.await?.success() { Verdict::Accepted } else { Verdict::Rejected(home.log()) })
    }

    fn command(&self, home: &Home, bootstrap: &Value) -> Result<Command> {
        let file = home.path("bootstrap.json");
        fs::write(&file, bootstrap.to_string())?;
        let mut levels = self.log_level.splitn(2, ',');
        let mut command = invocation(&file, self.concurrency)?;
        command.args(["--log-level", levels.next().unwrap_or("info")]);
        command.args(levels.flat_map(|components| ["--component-log-level", components]));
        command.args(["--drain-time-s", &self.drain_time.as_secs().to_string()]);
        // Without it, a misspelt field in a listener does nothing, in silence.
        command.arg("--reject-unknown-dynamic-fields");
        command.args(&self.args);
        let log = File::create(home.path("envoy.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

fn invocation(file: &Path, concurrency: u32) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("-c").arg(file);
    command.args(["--concurrency", &concurrency.to_string()]);
    // Without it, instances share memory and sockets by base id.
    command.arg("--disable-hot-restart");
    // Access logs are flushed every 10 s by default.
    command.args(["--file-flush-interval-msec", "50"]);
    Ok(command)
}

/// A configuration with other ports: those of upstreams are these, the admin's is any, and each listener's is one that is
/// ours.
fn with_ports(text: &str, upstreams: &[(u16, SocketAddr)]) -> Result<(String, Vec<Port>)> {
    const FIELD: &str = "port_value: ";
    const ADMIN: u16 = 9901;
    let mut parts = text.split(FIELD);
    let (mut all, mut reserved) = (parts.next().unwrap_or_default().to_owned(), Vec::new());
    for part in parts {
        let rest = part.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let number = part[..part.len() - rest.len()].parse::<u16>().with_context(|| format!("{FIELD}{part}"))?;
        let other = match upstreams.iter().find(|(port, _)| *port == number) {
            Some((_, addr)) => addr.port(),
            None if number == ADMIN => 0,
            None => {
                reserved.push(Port::reserve()?);
                reserved.last().map(|port| port.number).unwrap_or_default()
            }
        };
        all.push_str(&format!("{FIELD}{other}{rest}"));
    }
    Ok((all, reserved))
}

fn resources(resources: impl Iterator<Item = Value>) -> Value {
    json!({ "resources": resources.collect::<Vec<_>>() })
}

async fn admin_address(file: &Path) -> Result<SocketAddr> {
    eventually("Envoy's admin address", START, async || {
        let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
        text.trim().parse().map_err(|error| format!("{text:?}: {error}"))
    })
    .await
}

/// What one instance has for itself: a directory, removed at its end, and ports.
#[derive(Debug)]
struct Home {
    dir: TempDir,
    ports: Mutex<HashMap<String, Port>>,
}

/// A port that is ours. The socket is bound, but does not listen, so nobody else gets the port, and Envoy, who sets
/// `SO_REUSEPORT` as well, gets every connection.
///
/// Port 0 in the configuration would do for the first listeners, but not for later ones: Envoy takes any two listeners
/// with port 0 for the same address, and gives a new one the socket of another that it is just draining.
#[derive(Debug)]
struct Port {
    number: u16,
    _held: Option<TcpSocket>,
}

impl Port {
    fn reserve() -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseport(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self { number: socket.local_addr()?.port(), _held: Some(socket) })
    }
}

impl Home {
    fn new(listeners: &[Listener]) -> Result<Self> {
        let home = Self { dir: tempfile::Builder::new().prefix("envoy-").tempdir()?, ports: Mutex::default() };
        for dir in ["lds", "ecds", "access"] {
            fs::create_dir(home.path(dir))?;
        }
        home.prepare(listeners)?;
        Ok(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lds(&self) -> PathBuf {
        self.path("lds/listeners.json")
    }

    fn places(&self) -> Places {
        Places { logs: self.path("access"), extensions: self.path("ecds") }
    }

    /// Gives a port to each listener that has none yet, and a file to each discovered filter.
    fn prepare(&self, listeners: &[Listener]) -> Result<()> {
        let mut ports = self.ports.lock().unwrap();
        for listener in listeners {
            match listener.port {
                Some(number) => drop(ports.insert(listener.name.clone(), Port { number, _held: None })),
                None if ports.contains_key(&listener.name) => {}
                None => drop(ports.insert(listener.name.clone(), Port::reserve()?)),
            }
        }
        for filter in listeners.iter().flat_map(Listener::extensions) {
            let file = self.places().extension(filter.name());
            if !file.exists() {
                self.replace(&file, &resources(std::iter::once(filter.render_extension())))?;
            }
        }
        Ok(())
    }

    fn render(&self, listener: &Listener) -> Value {
        listener.render(&self.places(), self.ports.lock().unwrap()[&listener.name].number)
    }

    /// Envoy reads a file again when it is moved to its place, and must never see half of one.
    fn replace(&self, file: &Path, content: &Value) -> Result<()> {
        let new = self.path("new.json");
        fs::write(&new, content.to_string())?;
        fs::rename(&new, file).with_context(|| format!("moving to {}", file.display()))
    }

    fn log(&self) -> String {
        fs::read(self.path("envoy.log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

/// A running Envoy. Dropping it kills the process; in a panic, the last lines of its log are printed.
#[derive(Debug)]
pub struct Envoy {
    // The process goes before its directory does.
    process: Process,
    admin: SocketAddr,
    concurrency: u64,
    turn: tokio::sync::Mutex<()>,
    home: Home,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- Envoy's log ends with:\n{}", self.tail());
        }
    }
}

/// What runs, and how it ends.
impl Envoy {
    /// An Envoy without listeners and clusters, to be told what it shall have.
    pub fn builder() -> Builder {
        let overrides = json!({});
        Builder {
            bootstrap: Bootstrap {
                clusters: Vec::new(),
                stats_tags: Vec::new(),
                histogram_buckets: Vec::new(),
                overrides,
            },
            listeners: Vec::new(),
            concurrency: 2,
            log_level: "info".to_owned(),
            drain_time: Duration::from_secs(2),
            args: Vec::new(),
        }
    }

    /// Starts a configuration as it stands, with two workers, from the root of the project, where its paths begin. Only ports
    /// are others: an upstream's is that of the address given for it, all others are free ones. Its listeners have their
    /// names here too, and what it writes to standard output is the access log of `stdout`.
    ///
    /// # Errors
    /// As of [`Builder::start`].
    pub async fn of_file(file: &Path, upstreams: &[(u16, SocketAddr)]) -> Result<Self> {
        let home = Home::new(&[])?;
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let (text, mut reserved) = with_ports(&text, upstreams)?;
        let own = home.path("bootstrap.yaml");
        fs::write(&own, text)?;
        let concurrency = 2;
        let mut command = invocation(&own, concurrency)?;
        let output = File::create(home.places().access_log("stdout"))?;
        command.current_dir(root()).stdin(Stdio::null()).stdout(output).stderr(File::create(home.path("envoy.log"))?);
        let envoy = Self::run(command, home, concurrency).await?;
        let ready = async {
            envoy.ready().await?;
            envoy.workers_follow(&BTreeMap::new()).await?;
            envoy.admin_get("/listeners?format=json").await
        };
        let listeners: Value = serde_json::from_str(&envoy.while_alive(ready).await?)?;
        for listener in listeners["listener_statuses"].as_array().into_iter().flatten() {
            let number = &listener["local_address"]["socket_address"]["port_value"];
            let place =
                reserved.iter().position(|port| *number == port.number).with_context(|| listener.to_string())?;
            let name = listener["name"].as_str().with_context(|| listener.to_string())?;
            envoy.home.ports.lock().unwrap().insert(name.to_owned(), reserved.swap_remove(place));
        }
        Ok(envoy)
    }

    /// Returns when the admin interface answers.
    async fn run(mut command: Command, home: Home, concurrency: u32) -> Result<Self> {
        let admin_file = home.path("admin");
        command.arg("--admin-address-path").arg(&admin_file);
        let mut envoy = Self {
            process: Process::start(command).await?,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            concurrency: u64::from(concurrency),
            turn: tokio::sync::Mutex::new(()),
            home,
        };
        envoy.admin = envoy.while_alive(admin_address(&admin_file)).await?;
        Ok(envoy)
    }

    async fn ready(&self) -> Result<String> {
        eventually("Envoy ready", START, async || self.admin_get("/ready").await.map_err(|error| error.to_string()))
            .await
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// How the process ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Asks Envoy to quit, and waits until it has. Its logs stay readable.
    ///
    /// # Errors
    /// When it does not quit in time.
    pub async fn stop(&self) -> Result<ExitStatus> {
        self.admin_post("/quitquitquit").await?;
        eventually("end of Envoy", PATIENCE, async || self.ended().ok_or_else(|| self.tail())).await
    }

    /// Runs what waits for Envoy, but no longer than Envoy lives; an error gets the end of the log.
    async fn while_alive<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.process.while_alive("Envoy", || self.home.log(), work).await
    }
}

/// Where it listens.
impl Envoy {
    /// The port of that listener, also after it was removed.
    ///
    /// # Panics
    /// When there is no such listener.
    #[must_use]
    pub fn port(&self, listener: &str) -> u16 {
        let ports = self.home.ports.lock().unwrap();
        match ports.get(listener) {
            Some(port) => port.number,
            None => panic!("no listener `{listener}` among {:?}", ports.keys()),
        }
    }

    /// The address of that listener.
    ///
    /// # Panics
    /// When there is no such listener.
    #[must_use]
    pub fn addr(&self, listener: &str) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port(listener)))
    }

    /// The address of the admin interface.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin
    }

    /// Sends one GET over HTTP/1.1, on a connection of its own.
    ///
    /// # Errors
    /// When no whole response came.
    pub async fn get(&self, listener: &str, path: &str, headers: impl Into<Headers>) -> Result<Response> {
        self.send(listener, &Request::get(path).headers(headers)).await
    }

    /// Sends one request over HTTP/1.1, on a connection of its own.
    ///
    /// # Errors
    /// When no whole response came.
    pub async fn send(&self, listener: &str, request: &Request) -> Result<Response> {
        H1::connect(self.addr(listener)).await?.send(request).await
    }
}

/// New configuration for a running Envoy.
impl Envoy {
    /// Replaces all listeners (LDS). Returns when Envoy accepted them, and every worker has them, or when it refused
    /// them.
    ///
    /// Listeners are judged one by one: in a refused push the good ones still take effect, and a bad one goes on as it
    /// was. One that is not in the list any more is removed. Connections that are open stay with the old configuration
    /// until they are drained; a new connection has the new one.
    ///
    /// # Errors
    /// When Envoy did not judge in time, or ended.
    pub async fn push(&self, listeners: impl IntoIterator<Item = Listener>) -> Result<Verdict> {
        let _turn = self.turn.lock().await;
        let listeners: Vec<Listener> = listeners.into_iter().collect();
        self.home.prepare(&listeners)?;
        let before = self.stats("listener_manager.").await?;
        let logged = self.home.log().len();
        let rendered = listeners.iter().map(|listener| self.home.render(listener));
        self.home.replace(&self.home.lds(), &resources(rendered))?;
        self.while_alive(async {
            let verdict = self.verdict("listener_manager.lds.", &before, logged).await?;
            self.workers_follow(&before).await?;
            Ok(verdict)
        })
        .await
    }

    /// Gives a [discovered](HttpFilter::discovered) filter a new configuration (ECDS). The workers take it a moment
    /// after this returned, for every request that begins then, on open connections too.
    ///
    /// # Errors
    /// When Envoy did not judge in time, or ended.
    pub async fn push_extension(&self, filter: &HttpFilter) -> Result<Verdict> {
        let _turn = self.turn.lock().await;
        let prefix = extension_prefix(filter);
        let before = self.stats(&prefix).await?;
        let logged = self.home.log().len();
        let content = resources(std::iter::once(filter.render_extension()));
        self.home.replace(&self.home.places().extension(filter.name()), &content)?;
        self.while_alive(self.verdict(&prefix, &before, logged)).await
    }

    async fn first_listeners(&self, listeners: &[Listener]) -> Result<Verdict> {
        let nothing = BTreeMap::new();
        let extensions = listeners.iter().flat_map(Listener::extensions).map(extension_prefix);
        for prefix in extensions.chain(["listener_manager.lds.".to_owned()]) {
            let verdict = self.verdict(&prefix, &nothing, 0).await?;
            if verdict != Verdict::Accepted {
                return Ok(verdict);
            }
        }
        self.ready().await?;
        self.workers_follow(&nothing).await?;
        Ok(Verdict::Accepted)
    }

    /// Waits until the subscription whose stats start so has counted one more update, and tells how it went.
    async fn verdict(&self, prefix: &str, before: &BTreeMap<String, u64>, logged: usize) -> Result<Verdict> {
        let accepted = eventually(format!("Envoy's verdict in {prefix}"), START, async || {
            let now = self.stats(prefix).await.map_err(|error| format!("{error:#}"))?;
            let grew = |stat: &str| growth(before, &now, &format!("{prefix}{stat}")) > 0;
            match (grew("update_success"), grew("update_rejected") || grew("update_failure")) {
                (true, _) => Ok(true),
                (_, true) => Ok(false),
                _ => Err(format!("{now:?}")),
            }
        })
        .await?;
        if accepted {
            return Ok(Verdict::Accepted);
        }
        eventually("the reason of the refusal in the log", PATIENCE, async || {
            let log = self.home.log();
            let why = warnings(log.get(logged..).unwrap_or_default()).concat();
            let said = why.contains("update rejected") || why.contains("update failure");
            if said { Ok(Verdict::Rejected(why)) } else { Err(why) }
        })
        .await
    }

    /// Waits until every worker has told that it took every listener which is new since then.
    async fn workers_follow(&self, before: &BTreeMap<String, u64>) -> Result<()> {
        eventually("all workers with the new listeners", START, async || {
            let now = self.stats("listener_manager.").await.map_err(|error| format!("{error:#}"))?;
            let grown = |stat: &str| growth(before, &now, &format!("listener_manager.{stat}"));
            let wanted = self.concurrency * (grown("listener_added") + grown("listener_modified"));
            let warming = now.get("listener_manager.total_listeners_warming").copied().unwrap_or_default();
            let done = warming == 0 && grown("listener_create_success") >= wanted;
            if done { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await
    }
}

fn extension_prefix(filter: &HttpFilter) -> String {
    format!("extension_config_discovery.http_filter.{}.", filter.name())
}

fn growth(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>, stat: &str) -> u64 {
    let value = |stats: &BTreeMap<String, u64>| stats.get(stat).copied().unwrap_or_default();
    value(now).saturating_sub(value(before))
}

/// The entries of level warning and above, whole, though some have several lines. Each line has its end.
fn warnings(log: &str) -> Vec<String> {
    let mut wanted = false;
    let mut entries: Vec<String> = Vec::new();
    for line in log.lines() {
        if line.starts_with("[20") {
            wanted = ["[warning]", "[error]", "[critical]"].iter().any(|level| line.contains(level));
            entries.extend(wanted.then(String::new));
        }
        if let (true, false, Some(entry)) = (wanted, line.is_empty(), entries.last_mut()) {
            entry.push_str(line);
            entry.push('\n');
        }
    }
    entries
}

/// What it tells of itself.
impl Envoy {
    /// Everything logged so far, by Envoy and by the filters.
    #[must_use]
    pub fn log(&self) -> String {
        self.home.log()
    }

    /// The entries of the log of level warning and above, whole, though some have several lines.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        warnings(&self.log())
    }

    fn tail(&self) -> String {
        tail(&self.log())
    }

    /// Waits for a line in the log that contains this, and returns the first.
    ///
    /// # Errors
    /// When none came in time.
    pub async fn wait_for_log(&self, needle: &str, within: Duration) -> Result<String> {
        let wait = eventually(format!("{needle:?} in the log"), within, async || {
            let log = self.log();
            log.lines().find(|line| line.contains(needle)).map(str::to_owned).ok_or_else(|| "other lines".to_owned())
        });
        self.while_alive(wait).await
    }

    /// The whole lines of that listener's access log.
    #[must_use]
    pub fn access_log(&self, listener: &str) -> Vec<String> {
        let bytes = fs::read(self.home.places().access_log(listener)).unwrap_or_default();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or_default();
        String::from_utf8_lossy(&bytes[..whole]).lines().map(str::to_owned).collect()
    }

    /// Waits until that listener's access log has so many lines, and returns all.
    ///
    /// # Errors
    /// When fewer came in time; the message shows them.
    pub async fn wait_for_lines(&self, listener: &str, n: usize) -> Result<Vec<String>> {
        let wait = eventually(format!("{n} lines in the access log of `{listener}`"), PATIENCE, async || {
            let lines = self.access_log(listener);
            if lines.len() >= n { Ok(lines) } else { Err(format!("{lines:#?}")) }
        });
        self.while_alive(wait).await
    }

    /// [`wait_for_lines`](Self::wait_for_lines) of an access log that is [JSON](crate::AccessLog::json).
    ///
    /// # Errors
    /// When fewer came in time, or one is no JSON object.
    pub async fn wait_for_json(&self, listener: &str, n: usize) -> Result<Vec<Map<String, Value>>> {
        let lines = self.wait_for_lines(listener, n).await?;
        lines.iter().map(|line| serde_json::from_str(line).with_context(|| format!("not an object: {line}"))).collect()
    }

    /// The body of an admin page.
    ///
    /// # Errors
    /// When the answer is not 200.
    pub async fn admin_get(&self, path: &str) -> Result<String> {
        self.admin(Request::get(path)).await
    }

    /// The body of the answer to a POST to an admin page.
    ///
    /// # Errors
    /// When the answer is not 200.
    pub async fn admin_post(&self, path: &str) -> Result<String> {
        self.admin(Request::new("POST", path).header("content-length", "0")).await
    }

    async fn admin(&self, request: Request) -> Result<String> {
        let request = request.header("connection", "close");
        let response = H1::connect(self.admin).await?.send(&request).await?;
        ensure!(response.status == 200, "admin {}: {} {}", request.path, response.status, response.text());
        Ok(response.text())
    }

    /// The counters and gauges whose names start so.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn stats(&self, prefix: &str) -> Result<BTreeMap<String, u64>> {
        let filter: String = format!("^\\Q{prefix}\\E").bytes().map(|byte| format!("%{byte:02x}")).collect();
        let text = self.admin_get(&format!("/stats?filter={filter}")).await?;
        // Histograms and text follow the same form, but are no numbers.
        let number =
            |line: &str| line.rsplit_once(": ").and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        Ok(text.lines().filter_map(number).collect())
    }

    /// The value of that counter or gauge, or `None` while there is none.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn counter(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.stats(name).await?.remove(name))
    }

    /// Waits until that counter or gauge is at least this, and returns it.
    ///
    /// # Errors
    /// When it is not in time; the message tells its value.
    pub async fn wait_for_counter(&self, name: &str, at_least: u64) -> Result<u64> {
        let wait = eventually(format!("{name} of at least {at_least}"), PATIENCE, async || {
            match self.counter(name).await.map_err(|error| format!("{error:#}"))? {
                Some(value) if value >= at_least => Ok(value),
                other => Err(format!("{other:?}")),
            }
        });
        self.while_alive(wait).await
    }

    /// What Prometheus would scrape.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn prometheus(&self) -> Result<Metrics> {
        Ok(Metrics::parse(&self.admin_get("/stats/prometheus").await?))
    }

    /// Envoy's version, such as `1.40.0`.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub async fn version(&self) -> Result<String> {
        let info: Value = serde_json::from_str(&self.admin_get("/server_info").await?)?;
        let version = info["version"].as_str().and_then(|version| version.split('/').nth(1));
        version.map(str::to_owned).with_context(|| format!("no version: {info}"))
    }

    /// Resident memory of the process in bytes: Envoy's own heap and those of the VMs.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn memory(&self) -> Result<u64> {
        self.status("VmRSS")
    }

    /// The part of the [memory](Self::memory) that no file is behind, in bytes: heaps, stacks and the memory of the VMs,
    /// without the pages of Envoy's binary, which come and go.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn anonymous_memory(&self) -> Result<u64> {
        self.status("RssAnon")
    }

    /// The linear memories of the VMs, all together, in bytes: just what their modules asked for. V8 keeps the address
    /// space behind each of them free, so far as a module can reach.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn linear_memory(&self) -> Result<u64> {
        Ok(linear_memory(&fs::read_to_string(format!("/proc/{}/maps", self.pid()))?))
    }

    fn status(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let of =
            |line: &str| line.strip_prefix(field)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse::<u64>().ok();
        Ok(status.lines().find_map(of).with_context(|| format!("no {field}"))? * 1024)
    }

    /// How many files and sockets the process has open.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn open_files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }
}

/// What is writable and stands before a gap of 4 GiB or more, in `/proc/PID/maps`.
fn linear_memory(maps: &str) -> u64 {
    let mapping = |line: &str| {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?, words.next()?.to_owned()))
    };
    let mappings: Vec<(u64, u64, String)> = maps.lines().filter_map(mapping).collect();
    let memory = |two: &[(u64, u64, String)]| match two {
        [(start, end, access), (gap, beyond, none)]
            if access == "rw-p" && none == "---p" && end == gap && beyond - gap >= 4 << 30 =>
        {
            end - start
        }
        _ => 0,
    };
    mappings.windows(2).map(memory).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_memory_stands_before_a_large_gap() {
        let maps = "7f13bffb0000-7f13c0160000 rw-p 00000000 00:00 0 \n\
                    7f13c0160000-7f15bffb0000 ---p 00000000 00:00 0 \n\
                    7f15bffb0000-7f15bffc0000 rw-p 00000000 00:00 0 \n\
                    7f15bffc0000-7f15c0000000 ---p 00000000 00:00 0 \n\
                    7f484cb59000-7f484cb5d000 rw-p 00000000 00:00 0 [stack]\n";
        assert_eq!(linear_memory(maps), 0x1b_0000);
    }

    #[test]
    fn warnings_are_whole_entries() {
        let log =
            "[2026-01-01][1][info][a] 1\n[2026-01-01][1][warning][a] two\ntwo goes on\n\n[2026-01-01][1][info][a] x";
        assert_eq!(warnings(log), ["[2026-01-01][1][warning][a] two\ntwo goes on\n"]);
    }

    #[test]
    fn a_missing_module_says_how_to_get_it() {
        assert!(crate::module("no-such").unwrap_err().to_string().ends_with("run `make modules`"));
    }
}
