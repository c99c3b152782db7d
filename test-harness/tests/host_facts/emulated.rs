//! The emulator as a world: what is no module's and no proxy's doing, such as the upstream, is played here.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use emulator::{CallEnd, FailurePolicy, HttpStream, Message, Module, Pairs, Peer, Proxy, VmKind, pairs};
use serde_json::{Map, Value, json};
use test_harness::{Headers, PATIENCE, Request, Response, Verdict, module};

use crate::world::{Event, Plugin, Scene, Site, Tcp, Thread, World};

/// Between two chunks.
const CHUNK: Duration = Duration::from_millis(60);
const STEP: Duration = Duration::from_millis(1);

pub struct Emulated {
    proxy: Proxy,
    sites: RefCell<BTreeMap<&'static str, Site>>,
    workers: usize,
    streams: Cell<usize>,
    received: Rc<RefCell<Vec<Request>>>,
    logged: RefCell<BTreeMap<&'static str, Vec<Map<String, Value>>>>,
    died: Cell<bool>,
}

/// How the upstream answers: what `test_harness::Reply` says of it.
struct Answer {
    head: Pairs,
    steps: Vec<Step>,
    trailers: Pairs,
}

enum Step {
    Pause(Duration),
    Head,
    Chunk(String),
    Reset,
}

impl Answer {
    fn to(request: &Request) -> Self {
        let status = request.path.strip_prefix("/status/").unwrap_or("200");
        let script = match request.headers.text("x-reply") {
            Some(script) => script,
            None if status == "200" => "chunk=ok".to_owned(),
            None => String::new(),
        };
        let mut answer = Self { head: pairs([(":status", status)]), steps: Vec::new(), trailers: Pairs::new() };
        for step in script.split(';').map(str::trim).filter(|step| !step.is_empty()) {
            let (verb, object) = step.split_once('=').unwrap_or((step, ""));
            let pair = || {
                let (name, value) = object.split_once(':').unwrap();
                (name.as_bytes().to_vec(), value.as_bytes().to_vec())
            };
            match verb {
                "status" => answer.head[0].1 = object.as_bytes().to_vec(),
                "header" => answer.head.push(pair()),
                "trailer" => answer.trailers.push(pair()),
                "pause" => answer.steps.push(Step::Pause(Duration::from_millis(object.parse().unwrap()))),
                "head" => answer.steps.push(Step::Head),
                "chunk" => answer.steps.push(Step::Chunk(object.to_owned())),
                "reset" => answer.steps.push(Step::Reset),
                _ => panic!("unknown step {step:?}"),
            }
        }
        let first = answer.steps.iter().position(|step| !matches!(step, Step::Pause(_))).unwrap_or(answer.steps.len());
        if !matches!(answer.steps.get(first), Some(Step::Head | Step::Reset)) {
            answer.steps.insert(first, Step::Head);
        }
        let mut after = answer.steps.iter().skip(first + 1);
        let whole = answer.trailers.is_empty() && after.all(|step| matches!(step, Step::Chunk(_)));
        let length: usize =
            answer.steps.iter().map(|step| if let Step::Chunk(text) = step { text.len() } else { 0 }).sum();
        if answer.head[0].1 != b"204" {
            answer.head.extend(if whole {
                pairs([("content-length", length.to_string())])
            } else {
                pairs([("transfer-encoding", "chunked")])
            });
        }
        answer.head.extend(pairs([("x-envoy-upstream-service-time", "0")]));
        answer
    }

    /// As a call sees it: after how long, and how it ends. Whose answer has begun is cut off by a timeout.
    fn end(&self, timeout: Duration) -> (Duration, CallEnd) {
        let (mut passed, mut body, mut began) = (Duration::ZERO, String::new(), None);
        for step in &self.steps {
            match step {
                Step::Pause(time) => passed += *time,
                Step::Head => began = Some(passed),
                Step::Chunk(text) => body.push_str(text),
                Step::Reset if began.is_some() => return (passed, CallEnd::Reset),
                Step::Reset => {
                    let text = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
                    let length = text.len().to_string();
                    let headers =
                        [(":status", "503"), ("content-length", length.as_str()), ("content-type", "text/plain")];
                    return (passed, CallEnd::Response(Message::new(headers).chunk(text)));
                }
            }
        }
        if !timeout.is_zero() && passed > timeout && began.is_some_and(|at| at < timeout) {
            return (timeout, CallEnd::Reset);
        }
        let message = Message::new(self.head.clone()).chunk(body);
        let message = if self.trailers.is_empty() { message } else { message.trailers(self.trailers.clone()) };
        (passed, CallEnd::Response(message))
    }
}

/// A request as it arrives at the upstream.
fn arrived(headers: &Pairs, body: Vec<u8>, trailers: &Pairs) -> Request {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut request = Request { body, trailers: trailers.iter().cloned().collect(), ..Request::default() };
    for (name, value) in headers {
        match name.as_slice() {
            b":method" => request.method = text(value),
            b":path" => request.path = text(value),
            b":authority" => request.headers.push("host", value),
            b":scheme" => {}
            _ => request.headers.push(name, value),
        }
    }
    request
}

/// A request on its way through a site.
struct Running<'a> {
    world: &'a Emulated,
    site: Site,
    stream: HttpStream,
}

impl Emulated {
    fn new(scene: &Scene) -> Self {
        let world = Self {
            proxy: Proxy::new(scene.workers as usize, 1),
            sites: RefCell::default(),
            workers: scene.workers as usize,
            streams: Cell::new(0),
            received: Rc::default(),
            logged: RefCell::default(),
            died: Cell::new(false),
        };
        for cluster in ["up", "other", "tcp"] {
            let received = Rc::clone(&world.received);
            world.proxy.cluster(cluster, move |call| {
                let trailers = call.request.trailers.clone().unwrap_or_default();
                let request = arrived(&call.request.headers, call.request.chunks.concat(), &trailers);
                let end = Answer::to(&request).end(call.timeout);
                // A canary is gone before its call gets out.
                if call.vm != VmKind::Canary {
                    received.borrow_mut().push(request);
                }
                Some(end)
            });
        }
        world
    }

    fn configure(&self, scene: &Scene) -> Result<Verdict> {
        for site in &scene.sites {
            let plugins = site.plugins.iter().map(plugin).collect::<Result<Vec<_>, _>>();
            let plugins = match plugins {
                Ok(plugins) => plugins,
                Err(why) => return Ok(Verdict::Rejected(why)),
            };
            if let Err(refused) = self.proxy.push(site.name, plugins) {
                return Ok(Verdict::Rejected(refused.to_string()));
            }
            self.sites.borrow_mut().insert(site.name, site.clone());
        }
        // A site that is not there any more lets its plugins go.
        let gone = |name: &&&str| scene.sites.iter().all(|site| site.name != **name);
        let gone: Vec<&str> = self.sites.borrow().keys().filter(gone).copied().collect();
        for name in gone {
            self.sites.borrow_mut().remove(name);
            self.proxy.push(name, [])?;
        }
        Ok(Verdict::Accepted)
    }

    fn open(&self, site: &str) -> Running<'_> {
        let site = self.sites.borrow().get(site).cloned().unwrap_or_else(|| panic!("no site {site}"));
        self.proxy.set_buffer_limit(site.limit.map_or(1 << 20, |limit| limit as usize));
        let stream = self.proxy.http(site.name, self.streams.get() % self.workers);
        self.streams.set(self.streams.get() + 1);
        Running { world: self, site, stream }
    }

    async fn run(&self, site: &str, request: &Request, chunks: &[&[u8]], slowly: bool) -> Result<Response> {
        let running = self.open(site);
        let mut work = pin!(async {
            running.request(request, chunks, slowly).await;
            let outcome = running.response(request).await;
            outcome.and(running.finish())
        });
        // The emulator panics where the real one would die.
        poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(polled) => polled,
            Err(panic) if panic.downcast_ref::<String>().is_some_and(|why| why.starts_with("the proxy dies")) => {
                self.died.set(true);
                Poll::Ready(Err(anyhow!("the proxy has died")))
            }
            Err(panic) => resume_unwind(panic),
        })
        .await
    }
}

fn plugin(plugin: &Plugin) -> Result<emulator::Plugin, String> {
    let code = match &plugin.wat {
        None => Module::read(module("probe").map_err(|error| error.to_string())?)?,
        Some(text) => Module::parse(&wat::parse_str(text).map_err(|error| error.to_string())?)?,
    };
    let mut made = emulator::Plugin::new(plugin.name, &code)
        .configuration(plugin.configuration())
        .root_id(plugin.root_id)
        .vm_id(plugin.vm_id);
    if !plugin.vm_script.is_null() {
        made = made.vm_configuration(plugin.vm_script.to_string());
    }
    made = match plugin.failure_policy {
        Some("FAIL_OPEN") => made.failure_policy(FailurePolicy::Open),
        Some("FAIL_RELOAD") => made.failure_policy(FailurePolicy::Reload),
        _ => made,
    };
    if let Some(seconds) = plugin.reload_after {
        made = made.reload_backoff(Duration::from_secs_f64(seconds.trim_end_matches('s').parse().unwrap()));
    }
    if plugin.stop_iteration == Some(true) {
        made = made.allow_on_headers_stop_iteration();
    }
    Ok(made)
}

impl Running<'_> {
    fn over(&self) -> bool {
        self.stream.reply().is_some() || self.stream.was_reset()
    }

    /// Until that is so.
    async fn until(&self, what: &str, so: impl Fn(&HttpStream) -> bool) -> Result<()> {
        let mut left = PATIENCE;
        while !so(&self.stream) {
            left = left.checked_sub(STEP).ok_or_else(|| anyhow!("{what}: not within {PATIENCE:?}"))?;
            self.world.pass(STEP).await;
        }
        Ok(())
    }

    /// The route as the headers say: looked up before the first filter, and again where it was cleared.
    fn route(&self, headers: &Headers) {
        let wanted = headers.text("x-route");
        let route = self.site.routes.iter().find(|route| Some(**route) == wanted.as_deref());
        self.stream.set_property(&["xds", "cluster_name"], *route.unwrap_or(&"up"));
        self.stream.set_property(&["xds", "route_name"], *route.unwrap_or(&"default"));
    }

    async fn request(&self, request: &Request, chunks: &[&[u8]], slowly: bool) {
        let stream = &self.stream;
        let properties: [(&[&str], emulator::Value); 14] = [
            (&["request", "protocol"], "HTTP/1.1".into()),
            (&["request", "size"], (request.body.len() as u64).into()),
            (&["xds", "virtual_host_name"], "all".into()),
            (&["xds", "listener_direction"], 0_i64.into()),
            (&["source", "address"], "127.0.0.1:40000".into()),
            (&["destination", "port"], 10_000_i64.into()),
            (&["connection", "id"], (self.world.streams.get() as u64).into()),
            (&["connection", "mtls"], false.into()),
            (&["response", "flags"], 0_i64.into()),
            (&["upstream", "request_attempt_count"], 0_i64.into()),
            (&["response", "size"], 0_i64.into()),
            (&["response", "total_size"], 0_i64.into()),
            (&["upstream", "num_endpoints"], 1_i64.into()),
            (&["xds", "filter_chain_name"], "".into()),
        ];
        for (path, value) in properties {
            stream.set_property(path, value);
        }
        self.route(&request.headers);
        let mut headers = pairs([
            (":authority", request.headers.text("host").unwrap_or_else(|| "test".to_owned())),
            (":path", request.path.clone()),
            (":method", request.method.clone()),
            (":scheme", "http".to_owned()),
        ]);
        let other = |name: &[u8]| name != b"host" && name != b"x-request-id";
        headers.extend(
            request.headers.iter().filter(|(name, _)| other(name)).map(|(name, value)| (name.to_vec(), value.to_vec())),
        );
        if request.trailers.is_empty() && !request.body.is_empty() {
            headers.extend(pairs([("content-length", request.body.len().to_string())]));
        }
        headers.extend(pairs([("x-forwarded-proto", "http"), ("x-request-id", "1")]));
        if self.site.front && request.headers.has("x-front") {
            // A filter in front has answered: the plugins see nothing of it but its log.
            stream.edit_request_headers(|all| *all = headers);
            let reply = emulator::Reply {
                status: 403,
                details: "lua_response".to_owned(),
                body: b"front".to_vec(),
                headers: Pairs::new(),
                grpc_status: None,
            };
            stream.reply_locally(&reply);
            return;
        }
        let trailers: Pairs = request.trailers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        stream.request_headers(headers, chunks.is_empty() && trailers.is_empty());
        for chunk in chunks {
            if self.over() {
                return;
            }
            stream.request_body(chunk, false);
            if slowly {
                self.world.pass(CHUNK).await;
            }
        }
        match (self.over(), trailers.is_empty(), chunks.is_empty()) {
            (true, ..) | (_, true, true) => {}
            (_, true, false) => stream.request_body("", true),
            (_, false, _) => stream.request_trailers(trailers),
        }
    }

    async fn response(&self, request: &Request) -> Result<()> {
        let stream = &self.stream;
        self.until("the request at the upstream", |stream| stream.upstream().ended || self.over()).await?;
        if self.over() {
            return Ok(());
        }
        let sent = stream.upstream();
        let headers = sent.headers.clone().unwrap_or_default();
        let bad = |bytes: &[u8], ok: fn(u8) -> bool| !bytes.iter().all(|byte| ok(*byte));
        let name = |byte: u8| byte.is_ascii_graphic();
        let value = |byte: u8| byte >= b' ' || byte == b'\t';
        if headers.iter().any(|(n, v)| bad(n, name) || bad(v, value)) {
            // What the proxy's codec refuses.
            let reply = emulator::Reply {
                status: 503,
                details: String::new(),
                body: b"invalid header".to_vec(),
                headers: Pairs::new(),
                grpc_status: None,
            };
            stream.reply_locally(&reply);
            return Ok(());
        }
        let arrived = arrived(&headers, sent.body(), &sent.trailers.unwrap_or_default());
        if stream.route_cleared() > 0 {
            self.route(&arrived.headers);
        }
        let answer = Answer::to(&arrived);
        self.world.received.borrow_mut().push(arrived);
        let begun = self.world.proxy.now_ns();
        let properties: [(&[&str], emulator::Value); 8] = [
            (&["response", "code_details"], "via_upstream".into()),
            (&["upstream", "address"], "127.0.0.1:20000".into()),
            (&["upstream", "port"], 20_000_i64.into()),
            (&["upstream", "cx_pool_ready_duration"], Duration::from_micros(10).into()),
            (&["upstream", "transport_failure_reason"], "".into()),
            (&["upstream", "request_attempt_count"], 1_i64.into()),
            (&["response", "total_size"], 60_i64.into()),
            (&["response", "grpc_status"], 2_i64.into()),
        ];
        for (path, value) in properties {
            stream.set_property(path, value);
        }
        let bodiless = request.method == "HEAD" || answer.head[0].1 == b"204";
        let more = !bodiless
            && (answer.steps.iter().any(|step| matches!(step, Step::Chunk(_))) || !answer.trailers.is_empty());
        let mut size = 0;
        for step in &answer.steps {
            if self.over() {
                return Ok(());
            }
            match step {
                Step::Pause(time) => self.world.pass(*time).await,
                Step::Head => stream.response_headers(answer.head.clone(), !more),
                Step::Chunk(_) if bodiless => {}
                Step::Chunk(text) => {
                    size += text.len() as i64;
                    stream.response_body(text, false);
                }
                Step::Reset => bail!("no upstream of a site is reset here"),
            }
        }
        if self.over() {
            return Ok(());
        }
        match (more, answer.trailers.is_empty()) {
            (true, true) => stream.response_body("", true),
            (true, false) => stream.response_trailers(answer.trailers.clone()),
            (false, _) => {}
        }
        self.until("the response at the client", |stream| stream.downstream().ended || self.over()).await?;
        stream.set_property(&["response", "backend_latency"], Duration::from_nanos(self.world.proxy.now_ns() - begun));
        stream.set_property(&["response", "size"], size);
        Ok(())
    }

    fn finish(&self) -> Result<Response> {
        let done = self.stream.finish();
        if !self.site.logged.is_empty() {
            let field = |(name, operator): &(&str, &str)| {
                let key = operator.strip_prefix("%FILTER_STATE(").and_then(|key| key.strip_suffix(":PLAIN)%")).unwrap();
                let value = done.filter_state.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
                ((*name).to_owned(), json!(value))
            };
            let line = self.site.logged.iter().map(field).collect();
            self.world.logged.borrow_mut().entry(self.site.name).or_default().push(line);
        }
        let headers = done.downstream.headers.clone().unwrap_or_default();
        let status = headers
            .iter()
            .find(|(name, _)| name == b":status")
            .map(|(_, value)| String::from_utf8_lossy(value).parse());
        let status = status.transpose()?.unwrap_or(0);
        if done.reset || !done.downstream.ended {
            bail!("no whole response, but status: {status}");
        }
        Ok(Response {
            status,
            headers: headers.iter().filter(|(name, _)| name != b":status").cloned().collect(),
            body: done.downstream.body(),
            trailers: done.downstream.trailers.unwrap_or_default().iter().cloned().collect(),
        })
    }
}

impl World for Emulated {
    async fn start(scene: &Scene) -> Result<Self> {
        let world = Self::new(scene);
        world.configure(scene)?.accepted()?;
        Ok(world)
    }

    async fn judge(scene: &Scene) -> Result<Verdict> {
        Self::new(scene).configure(scene)
    }

    async fn push(&self, scene: &Scene) -> Result<Verdict> {
        self.configure(scene)
    }

    async fn send(&self, site: &str, request: &Request) -> Result<Response> {
        let body = request.body.as_slice();
        let chunks: &[&[u8]] = if body.is_empty() { &[] } else { &[body] };
        self.run(site, request, chunks, false).await
    }

    async fn send_all(&self, site: &str, requests: &[Request]) -> Result<Vec<Response>> {
        let mut responses = Vec::new();
        for request in requests {
            responses.push(self.send(site, request).await?);
        }
        Ok(responses)
    }

    async fn send_chunks(&self, site: &str, request: &Request, chunks: &[&str]) -> Result<Response> {
        let chunks: Vec<&[u8]> = chunks.iter().map(|chunk| chunk.as_bytes()).collect();
        self.run(site, request, &chunks, true).await
    }

    async fn connect(&self, site: &str, script: &[Tcp]) -> Result<()> {
        let stream = self.proxy.tcp(site, 0);
        let (mut sent, mut got) = (0, 0);
        // What the upstream has not given back yet.
        let echo = |sent: &mut usize| {
            let all = stream.upstream().body();
            let new = all[*sent..].to_vec();
            *sent = all.len();
            if !new.is_empty() {
                stream.upstream_data(&new, new.ends_with(b"quit"));
            }
        };
        let mut ended = false;
        for step in script {
            match step {
                Tcp::Send(text) => {
                    stream.downstream_data(text, false);
                    echo(&mut sent);
                }
                Tcp::Expect(text) => {
                    let all = stream.downstream().body();
                    let new = all.get(got..got + text.len()).unwrap_or(&all[got..]);
                    ensure!(new == text.as_bytes(), "{step:?}, but {:?}", new.escape_ascii().to_string());
                    got += text.len();
                }
                Tcp::ExpectEnd => {
                    let down = stream.downstream();
                    ensure!(down.ended || stream.was_closed(), "{step:?}, but {down:?}");
                    ensure!(down.body().len() == got, "{step:?}, but {down:?}");
                    ended = true;
                }
                Tcp::Wait => self.pass(3 * CHUNK).await,
                Tcp::End => {
                    stream.downstream_data("", true);
                    echo(&mut sent);
                    if stream.upstream().ended && !stream.downstream().ended {
                        stream.upstream_data("", true);
                    }
                }
                Tcp::Reset => {
                    stream.close(Peer::Remote);
                    return Ok(());
                }
            }
        }
        // Both sides have said that they send no more, or a plugin has closed: then it is the proxy that closes.
        stream.close(if ended { Peer::Local } else { Peer::Remote });
        Ok(())
    }

    fn events(&self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for line in self.proxy.log() {
            let Some(event) = line.text.strip_prefix("probe ") else { continue };
            let thread = match line.vm {
                VmKind::Base => bail!("a base VM runs no plugin: {line:?}"),
                VmKind::Canary => Thread::Canary,
                VmKind::Local(emulator::Thread::Main) => Thread::Main,
                VmKind::Local(emulator::Thread::Worker(worker)) => Thread::Worker(worker),
            };
            events.push(Event::parse(event, thread)?);
        }
        Event::name_all(&mut events);
        Ok(events)
    }

    fn log(&self) -> String {
        let log = self.proxy.log();
        let other = log.iter().filter(|line| !line.text.starts_with("probe "));
        other.map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
    }

    async fn received(&self, n: usize) -> Result<Vec<Request>> {
        let received = std::mem::take(&mut *self.received.borrow_mut());
        ensure!(received.len() >= n, "{n} requests at the upstream, but {received:#?}");
        Ok(received)
    }

    async fn access_log(&self, site: &str, n: usize) -> Result<Vec<Map<String, Value>>> {
        let lines = self.logged.borrow().get(site).cloned().unwrap_or_default();
        ensure!(lines.len() >= n, "{n} lines in the access log, but {lines:?}");
        Ok(lines)
    }

    async fn stat(&self, name: &str) -> Result<Option<u64>> {
        let metric = name.strip_prefix("wasmcustom.").and_then(|name| self.proxy.metric(name));
        Ok(metric.map(|metric| metric.value))
    }

    async fn is_dead(&self) -> bool {
        self.died.get()
    }

    async fn pass(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(STEP);
            self.proxy.advance(step);
            left -= step;
            tokio::task::yield_now().await;
        }
    }
}
