//! The real Envoy as a world.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use test_harness::envoy::Builder;
use test_harness::upstream::Received;
use test_harness::{
    AccessLog, Cluster, Envoy, H1, HttpFilter, Listener, PATIENCE, Request, Response, Route, Upstream, Verdict,
    eventually, module,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::world::{Event, Plugin, Scene, Site, Tcp, Thread, World};

/// How long a chunk that no callback tells of is given to arrive.
const CHUNK: Duration = Duration::from_millis(60);

pub struct RealEnvoy {
    envoy: Envoy,
    upstream: Upstream,
    received: Mutex<Vec<Received>>,
    modules: Modules,
    /// What the TCP sites speak to.
    _tcp: Echo,
}

/// Where modules that are text become files.
struct Modules(TempDir);

impl Modules {
    fn filter(&self, plugin: &Plugin) -> Result<Value> {
        let path = match &plugin.wat {
            None => module("probe")?,
            Some(text) => {
                let path = self.0.path().join(format!("{}.wasm", plugin.name));
                std::fs::write(&path, wat::parse_str(text)?)?;
                path
            }
        };
        let value = |text: String| json!({ "@type": "type.googleapis.com/google.protobuf.StringValue", "value": text });
        let mut config = json!({
            "name": plugin.name,
            "root_id": plugin.root_id,
            "configuration": value(plugin.configuration()),
            "vm_config": {
                "vm_id": plugin.vm_id,
                "runtime": "envoy.wasm.runtime.v8",
                "code": { "local": { "filename": path } },
            },
        });
        if !plugin.vm_script.is_null() {
            config["vm_config"]["configuration"] = value(plugin.vm_script.to_string());
        }
        if let Some(policy) = plugin.failure_policy {
            config["failure_policy"] = policy.into();
        }
        if let Some(time) = plugin.reload_after {
            config["reload_config"] = json!({ "backoff": { "base_interval": time } });
        }
        if let Some(allowed) = plugin.stop_iteration {
            config["allow_on_headers_stop_iteration"] = allowed.into();
        }
        if let Some(capabilities) = &plugin.capabilities {
            let allowed: Map<String, Value> = capabilities.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
            config["capability_restriction_config"] = json!({ "allowed_capabilities": allowed });
        }
        Ok(config)
    }

    fn listener(&self, site: &Site) -> Result<Listener> {
        if site.tcp {
            let filter = |plugin: &Plugin| -> Result<Value> {
                let kind = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm";
                Ok(json!({ "name": plugin.name, "typed_config": { "@type": kind, "config": self.filter(plugin)? } }))
            };
            let mut filters = site.plugins.iter().map(filter).collect::<Result<Vec<_>>>()?;
            filters.push(json!({
                "name": "tcp",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": site.name,
                    "cluster": "tcp",
                },
            }));
            return Ok(Listener::tcp(site.name, filters));
        }
        let mut listener = Listener::http(site.name).merge_hcm(json!({
            "http_protocol_options": { "enable_trailers": true },
            // A connection that is cut off is kept open for a second otherwise.
            "delayed_close_timeout": "0.05s",
        }));
        if site.front {
            let script = "function envoy_on_request(h)
                if h:headers():get('x-front') then h:respond({[':status'] = '403'}, 'front') end
            end";
            listener = listener.filter(HttpFilter::lua("front", script));
        }
        for plugin in &site.plugins {
            let kind = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm";
            let config = json!({ "@type": kind, "config": self.filter(plugin)? });
            listener = listener.filter(HttpFilter::raw(plugin.name, config));
        }
        for route in &site.routes {
            let header = json!([{ "name": "x-route", "string_match": { "exact": route } }]);
            let route = Route::cluster(route).merge(json!({ "name": route, "match": { "headers": header } }));
            listener = listener.route(route);
        }
        listener = listener.route(Route::cluster("up").merge(json!({ "name": "default" })));
        if let Some(limit) = site.limit {
            listener = listener.merge(json!({ "per_connection_buffer_limit_bytes": limit }));
        }
        if !site.logged.is_empty() {
            listener = listener.access_log(AccessLog::json(site.logged.iter().copied()));
        }
        Ok(listener)
    }

    fn builder(&self, scene: &Scene, upstream: &Upstream, tcp: &Echo) -> Result<Builder> {
        let mut builder = Envoy::builder()
            .concurrency(scene.workers)
            // No connection shall be drained while a test looks at it, and no old root stay longer than its streams.
            .drain_time(Duration::from_secs(1))
            .cluster("tcp", tcp.addr)
            // The name of the stat is looked at, so the tag's regex must take something out of it.
            .stats_tag("probe_tag", r"(probe_tag\.=\.(.*?);\.;)");
        let options = json!({ "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http_protocol_options": { "enable_trailers": true } },
            },
        } });
        for name in ["up", "other"] {
            builder = builder.add_cluster(Cluster::new(name, upstream.addr()).merge(options.clone()));
        }
        for site in &scene.sites {
            builder = builder.listener(self.listener(site)?);
        }
        Ok(builder)
    }
}

impl World for RealEnvoy {
    async fn start(scene: &Scene) -> Result<Self> {
        let (upstream, tcp, modules) = (Upstream::start().await?, Echo::start().await?, Modules(tempfile::tempdir()?));
        let envoy = modules.builder(scene, &upstream, &tcp)?.start().await?;
        Ok(Self { envoy, upstream, received: Mutex::default(), modules, _tcp: tcp })
    }

    async fn judge(scene: &Scene) -> Result<Verdict> {
        let (upstream, tcp, modules) = (Upstream::start().await?, Echo::start().await?, Modules(tempfile::tempdir()?));
        modules.builder(scene, &upstream, &tcp)?.validate().await
    }

    async fn push(&self, scene: &Scene) -> Result<Verdict> {
        let listeners = scene.sites.iter().map(|site| self.modules.listener(site)).collect::<Result<Vec<_>>>()?;
        self.envoy.push(listeners).await
    }

    async fn send(&self, site: &str, request: &Request) -> Result<Response> {
        self.envoy.send(site, request).await
    }

    async fn send_all(&self, site: &str, requests: &[Request]) -> Result<Vec<Response>> {
        let mut client = H1::connect(self.envoy.addr(site)).await?;
        let mut responses = Vec::new();
        for request in requests {
            responses.push(client.send(request).await?);
        }
        Ok(responses)
    }

    async fn send_chunks(&self, site: &str, request: &Request, chunks: &[&str]) -> Result<Response> {
        let mut client = H1::connect(self.envoy.addr(site)).await?;
        let mut head = request.clone().header("transfer-encoding", "chunked");
        let trailers = std::mem::take(&mut head.trailers);
        let mut seen = self.events()?.len();
        client.write(&head.to_bytes()).await?;
        for chunk in chunks {
            // Nothing tells that a chunk was taken which no filter is shown, so the wait has an end.
            let until = Instant::now() + CHUNK;
            while Instant::now() < until && self.events()?.len() == seen {
                sleep(Duration::from_millis(2)).await;
            }
            sleep(Duration::from_millis(5)).await;
            seen = self.events()?.len();
            // Whoever was answered already may find the connection closed.
            if client.write(format!("{:x}\r\n{chunk}\r\n", chunk.len()).as_bytes()).await.is_err() {
                return client.read(false).await;
            }
        }
        sleep(CHUNK).await;
        let mut end = b"0\r\n".to_vec();
        for (name, value) in trailers.iter() {
            end.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
        }
        end.extend_from_slice(b"\r\n");
        let _ = client.write(&end).await;
        client.read(false).await
    }

    async fn connect(&self, site: &str, script: &[Tcp]) -> Result<()> {
        let mut stream = TcpStream::connect(self.envoy.addr(site)).await?;
        for step in script {
            match step {
                Tcp::Send(text) => stream.write_all(text.as_bytes()).await?,
                Tcp::Wait => sleep(3 * CHUNK).await,
                Tcp::End => stream.shutdown().await?,
                Tcp::Reset => stream.set_zero_linger()?,
                Tcp::Expect(text) => {
                    let mut got = vec![0; text.len()];
                    timeout(PATIENCE, stream.read_exact(&mut got)).await.with_context(|| format!("{step:?}"))??;
                    ensure!(got == text.as_bytes(), "{step:?}, but {:?}", got.escape_ascii().to_string());
                }
                Tcp::ExpectEnd => {
                    let mut rest = Vec::new();
                    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.with_context(|| format!("{step:?}"))??;
                    ensure!(rest.is_empty(), "{step:?}, but {:?}", rest.escape_ascii().to_string());
                }
            }
        }
        Ok(())
    }

    fn events(&self) -> Result<Vec<Event>> {
        let log = self.envoy.log();
        let pid = self.envoy.pid().to_string();
        let mut workers = BTreeMap::new();
        let mut events = Vec::new();
        // A last line that is not whole yet waits for the next look.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines() {
            let Some((head, event)) = line.split_once(": probe {") else { continue };
            let id = head.split(['[', ']']).nth(3).context("no thread in a line of the log")?;
            let thread = if id == pid {
                Thread::Main
            } else {
                let next = workers.len();
                Thread::Worker(*workers.entry(id.to_owned()).or_insert(next))
            };
            events.push(Event::parse(&format!("{{{event}"), thread)?);
        }
        Event::name_all(&mut events);
        // On the main thread a plugin is configured twice, first in a VM of its own, the canary.
        let mut configured: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for event in events.iter().filter(|event| event.thread == Thread::Main && event.callback == "configure") {
            configured.entry(&event.plugin).or_default().push(event.vm);
        }
        let canaries: Vec<u64> = configured.into_values().flat_map(|vms| vms.into_iter().step_by(2)).collect();
        for event in &mut events {
            if canaries.contains(&event.vm) {
                event.thread = Thread::Canary;
            }
        }
        Ok(events)
    }

    fn log(&self) -> String {
        self.envoy.log().lines().filter(|line| !line.contains(": probe {")).collect::<Vec<_>>().join("\n")
    }

    async fn received(&self, n: usize) -> Result<Vec<Request>> {
        let received = eventually(format!("{n} requests at the upstream"), PATIENCE, async || {
            let mut kept = self.received.lock().unwrap();
            // Who gave up before the end has not sent a request.
            kept.extend(self.upstream.take().into_iter().filter(|received| received.complete));
            if kept.len() >= n { Ok(std::mem::take(&mut *kept)) } else { Err(format!("{kept:#?}")) }
        });
        Ok(received.await?.into_iter().map(|received| received.request).collect())
    }

    async fn access_log(&self, site: &str, n: usize) -> Result<Vec<Map<String, Value>>> {
        self.envoy.wait_for_json(site, n).await
    }

    async fn stat(&self, name: &str) -> Result<Option<u64>> {
        self.envoy.counter(name).await
    }

    async fn is_dead(&self) -> bool {
        let ended = async || self.envoy.ended().ok_or_else(|| "it lives".to_owned());
        eventually("the end of Envoy", PATIENCE, ended).await.is_ok()
    }

    async fn pass(&self, time: Duration) {
        sleep(time).await;
    }
}

impl RealEnvoy {
    /// The labels and values of a series for Prometheus.
    pub async fn series(&self, name: &str) -> Result<Vec<(Vec<(String, String)>, f64)>> {
        let metrics = self.envoy.prometheus().await?;
        let labels = |sample: &test_harness::metrics::Sample| sample.labels.clone().into_iter().collect();
        Ok(metrics.series(name, &[]).into_iter().map(|sample| (labels(sample), sample.value)).collect())
    }
}

/// A service over TCP: gives back what it gets, and closes after `quit`.
struct Echo {
    addr: std::net::SocketAddr,
    server: AbortHandle,
}

impl Echo {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream));
            }
        });
        Ok(Self { addr, server: server.abort_handle() })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let mut bytes = vec![0; 4096];
    loop {
        let n = stream.read(&mut bytes).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..n]).await?;
        if bytes[..n].ends_with(b"quit") {
            bail!("told to quit");
        }
    }
}
