//! What a fact is asked of: a proxy that runs probes, real or emulated.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};
use test_harness::{PATIENCE, Request, Response, Verdict};

/// Waits that pass in any case, such as for a tick that must not come.
pub const MOMENT: Duration = Duration::from_millis(100);

/// How often is looked whether something has come.
const LOOK: Duration = Duration::from_millis(4);

/// What runs: sites, and how many workers serve them.
#[derive(Clone, Debug)]
pub struct Scene {
    pub workers: u32,
    pub sites: Vec<Site>,
}

/// One listener. Its requests, or bytes, pass the plugins and then go to the upstream, cluster `up`. A site for HTTP
/// knows trailers, and writes an access log of [`Site::logged`].
#[derive(Clone, Debug)]
pub struct Site {
    pub name: &'static str,
    pub plugins: Vec<Plugin>,
    pub tcp: bool,
    /// A filter in front of the plugins answers 403 to a request with header `x-front`.
    pub front: bool,
    /// How many bytes of a body are buffered at most.
    pub limit: Option<u32>,
    /// Requests whose header `x-route` is this have the route of that name, to the cluster of that name: all of them
    /// are the same upstream. All others have route `default`.
    pub routes: Vec<&'static str>,
    /// Fields of the access log, and their operators.
    pub logged: Vec<(&'static str, &'static str)>,
}

/// A plugin. Plugins with the same module, `vm_id` and VM configuration share a VM per thread.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// In the proxy's configuration, and in the probe's events.
    pub name: &'static str,
    /// What the probe shall do.
    pub script: Value,
    /// What it shall do in `vm_start`; part of what VMs are told apart by.
    pub vm_script: Value,
    pub vm_id: &'static str,
    pub root_id: &'static str,
    pub failure_policy: Option<&'static str>,
    /// How soon after its start a VM may be started again, such as `0.002s`.
    pub reload_after: Option<&'static str>,
    /// Whether a header phase that pauses still lets the body come (`allow_on_headers_stop_iteration`).
    pub stop_iteration: Option<bool>,
    /// Capabilities, when not all.
    pub capabilities: Option<Vec<&'static str>>,
    /// Another module than the probe: its text.
    pub wat: Option<String>,
}

impl Plugin {
    pub fn new(name: &'static str, script: Value) -> Self {
        Self {
            name,
            script,
            vm_script: Value::Null,
            vm_id: "",
            root_id: "",
            failure_policy: None,
            reload_after: None,
            stop_iteration: None,
            capabilities: None,
            wat: None,
        }
    }

    /// The script as the probe reads it, with its name.
    pub fn configuration(&self) -> String {
        let mut script = self.script.clone();
        script["name"] = self.name.into();
        script.to_string()
    }
}

impl Site {
    pub fn new(name: &'static str, plugins: impl IntoIterator<Item = Plugin>) -> Self {
        Self {
            name,
            plugins: plugins.into_iter().collect(),
            tcp: false,
            front: false,
            limit: None,
            routes: Vec::new(),
            logged: Vec::new(),
        }
    }

    /// A site with one plugin of the same name.
    pub fn of(name: &'static str, script: Value) -> Self {
        Self::new(name, [Plugin::new(name, script)])
    }

    pub fn logged(mut self, fields: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        self.logged.extend(fields);
        self
    }
}

impl Scene {
    /// One worker, so that every request meets the same VM.
    pub fn new(sites: impl IntoIterator<Item = Site>) -> Self {
        Self { workers: 1, sites: sites.into_iter().collect() }
    }
}

/// Which of a plugin's VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thread {
    /// The one that tries a configuration first and is thrown away.
    Canary,
    /// The one on the main thread.
    Main,
    /// One on a worker, counted from 0 in the order in which they were seen.
    Worker(usize),
}

/// One callback of a probe.
#[derive(Clone, Debug)]
pub struct Event {
    pub thread: Thread,
    /// Tells VMs apart.
    pub vm: u64,
    /// The plugin's name.
    pub plugin: String,
    pub context: u64,
    pub root: u64,
    pub callback: String,
    pub args: Vec<u64>,
    /// `[name, status, value]` of each step.
    pub steps: Value,
}

impl Event {
    pub fn is_root(&self) -> bool {
        self.context == self.root
    }

    /// The callback, with its arguments.
    pub fn call(&self) -> String {
        let args: Vec<String> = self.args.iter().map(u64::to_string).collect();
        format!("{}({})", self.callback, args.join(","))
    }

    /// Reads what the probe logged.
    pub fn parse(line: &str, thread: Thread) -> Result<Self> {
        let line: Value = serde_json::from_str(line).with_context(|| format!("no event: {line}"))?;
        let number = |key: &str| line[key].as_u64().with_context(|| format!("no {key} in {line}"));
        Ok(Self {
            thread,
            vm: number("vm")?,
            plugin: line["name"].as_str().unwrap_or_default().to_owned(),
            context: number("cx")?,
            root: number("root")?,
            callback: line["cb"].as_str().unwrap_or_default().to_owned(),
            args: line["args"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect(),
            steps: line["steps"].clone(),
        })
    }

    /// Gives a root's first callbacks the name that only its configuration brings.
    pub fn name_all(events: &mut [Self]) {
        for at in 0..events.len() {
            if events[at].plugin.is_empty() {
                let (vm, root) = (events[at].vm, events[at].root);
                let named =
                    events.iter().find(|other| (other.vm, other.root) == (vm, root) && !other.plugin.is_empty());
                events[at].plugin = named.map(|other| other.plugin.clone()).unwrap_or_default();
            }
        }
    }
}

/// What a client does on a connection of a TCP site. The upstream of TCP gives back what it gets, and closes after
/// `quit`.
#[derive(Clone, Debug)]
pub enum Tcp {
    Send(&'static str),
    /// Waits for these bytes.
    Expect(&'static str),
    /// Waits for the peer's end.
    ExpectEnd,
    /// Waits until the probe has been called for what was sent.
    Wait,
    /// Closes for writing.
    End,
    /// Resets the connection.
    Reset,
}

/// A proxy that runs probes, before an upstream that answers as the request says (`x-reply`).
pub trait World: Sized {
    /// Starts it.
    async fn start(scene: &Scene) -> Result<Self>;

    /// What it says to that scene when it shall start with it.
    async fn judge(scene: &Scene) -> Result<Verdict>;

    /// Gives it another configuration while it runs.
    async fn push(&self, scene: &Scene) -> Result<Verdict>;

    /// Sends a request; its body as one chunk.
    async fn send(&self, site: &str, request: &Request) -> Result<Response>;

    /// Sends requests one after the other on one connection.
    async fn send_all(&self, site: &str, requests: &[Request]) -> Result<Vec<Response>>;

    /// Sends a request whose body comes in these chunks, each after the one before has been seen; trailers after that.
    async fn send_chunks(&self, site: &str, request: &Request, chunks: &[&str]) -> Result<Response>;

    /// Opens a connection to a TCP site and does this.
    async fn connect(&self, site: &str, script: &[Tcp]) -> Result<()>;

    /// What the probes logged so far, in order.
    fn events(&self) -> Result<Vec<Event>>;

    /// Everything else that the plugins and the proxy logged about them.
    fn log(&self) -> String;

    /// Waits until at least so many requests have arrived at the upstream since the last taking, and takes them all.
    async fn received(&self, n: usize) -> Result<Vec<Request>>;

    /// Waits until the access log has so many lines, and returns all.
    async fn access_log(&self, site: &str, n: usize) -> Result<Vec<Map<String, Value>>>;

    /// A counter or gauge by its name in the proxy's own stats.
    async fn stat(&self, name: &str) -> Result<Option<u64>>;

    /// Whether the proxy ended by itself.
    async fn is_dead(&self) -> bool;

    /// Lets time pass.
    async fn pass(&self, time: Duration);
}

/// What every world can be asked.
pub trait Ask: World {
    /// Waits for so many callbacks of that plugin outside its canary, and returns all there are.
    async fn seen(&self, plugin: &str, callback: &str, n: usize) -> Result<Vec<Event>> {
        self.wait_for(&format!("{n} times {callback} of {plugin}"), |events| {
            let wanted =
                |event: &&Event| event.plugin == plugin && event.callback == callback && event.thread != Thread::Canary;
            let seen: Vec<Event> = events.iter().filter(wanted).cloned().collect();
            (seen.len() >= n).then_some(seen)
        })
        .await
    }

    /// The steps of that plugin's first such callback outside its canary.
    async fn steps(&self, plugin: &str, callback: &str) -> Result<Value> {
        Ok(self.seen(plugin, callback, 1).await?.remove(0).steps)
    }

    /// Waits until `n` streams of that plugin have ended, and returns the callbacks of the last.
    async fn stream(&self, plugin: &str, n: usize) -> Result<Vec<Event>> {
        self.wait_for(&format!("the end of {n} streams of {plugin}"), |events| {
            let of: Vec<&Event> = events.iter().filter(|event| event.plugin == plugin && !event.is_root()).collect();
            let last = of.iter().filter(|event| event.callback == "delete").nth(n - 1)?;
            let same = |event: &&&Event| (event.vm, event.context) == (last.vm, last.context);
            Some(of.iter().filter(same).map(|event| (*event).clone()).collect())
        })
        .await
    }

    /// Waits until something is among the events.
    async fn wait_for<T>(&self, what: &str, find: impl Fn(&[Event]) -> Option<T>) -> Result<T> {
        let mut left = PATIENCE;
        loop {
            let events = self.events()?;
            if let Some(found) = find(&events) {
                return Ok(found);
            }
            left = match left.checked_sub(LOOK) {
                Some(left) => left,
                None => {
                    bail!("{what}: not within {PATIENCE:?}, but {:#?}", events.iter().map(short).collect::<Vec<_>>())
                }
            };
            self.pass(LOOK).await;
        }
    }
}

impl<W: World> Ask for W {}

fn short(event: &Event) -> String {
    format!("{:?} {} cx {}: {} {}", event.thread, event.plugin, event.context, event.call(), event.steps)
}

/// The callbacks, with their arguments.
pub fn calls(events: &[Event]) -> Vec<String> {
    events.iter().map(Event::call).collect()
}

/// The callbacks' names.
pub fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.callback.as_str()).collect()
}

/// Bytes as the probe writes them: a character for each.
pub fn text(bytes: impl AsRef<[u8]>) -> Value {
    bytes.as_ref().iter().copied().map(char::from).collect::<String>().into()
}

/// The bytes that a step gave.
pub fn bytes(step: &Value) -> Vec<u8> {
    let text = step[2].as_str().unwrap_or_else(|| panic!("no bytes: {step}"));
    text.chars().map(|char| u8::try_from(u32::from(char)).expect("a byte")).collect()
}

/// The number that a step gave: 8 bytes, little-endian.
pub fn number(step: &Value) -> i64 {
    let bytes = bytes(step);
    i64::from_le_bytes(bytes.as_slice().try_into().unwrap_or_else(|_| panic!("not 8 bytes: {step}")))
}
