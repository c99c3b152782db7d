//! Filters under test: the same filter natively and, where there is one, as the built module, both in an emulated
//! proxy, held to the same final state after every step.
//!
//! The proxy is the `emulator` crate's: several VMs, virtual time, every hostcall counted and made to fail at will.
#![allow(clippy::expect_used, clippy::panic, reason = "runs in tests: a broken assumption shall stop them")]

use crate::prelude::*;
use crate::{Bytes, Call, Filter, Host, Map, MetricKind, Next, Pass, Phases, Reply, Status, Vm};
use alloc::rc::Rc;
use core::{any::TypeId, cell::RefCell, fmt::Debug, marker::PhantomData};
use emulator::{Callback, Code, Fault, Guest, Plugin, Thread, VmKind, map};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

pub use emulator::Message;

/// Header pairs as they stand in a map.
pub type Pairs = Vec<(String, Vec<u8>)>;

/// Pairs of text, for tests that need no odd bytes.
pub fn pairs(text: &[(&str, &str)]) -> Pairs {
    text.iter().map(|(name, value)| (String::from(*name), value.as_bytes().to_vec())).collect()
}

fn readable(pairs: Option<emulator::Pairs>) -> Pairs {
    let pairs = pairs.into_iter().flatten();
    pairs.map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), value)).collect()
}

/// The emulated proxy, as a filter sees it.
pub struct NativeHost(emulator::Host);

std::thread_local! {
    /// Where the log macros of what runs now go to.
    static LOG: RefCell<Option<emulator::Host>> = const { RefCell::new(None) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Error => 4,
            log::Level::Warn => 3,
            log::Level::Info => 2,
            log::Level::Debug => 1,
            log::Level::Trace => 0,
        };
        LOG.with_borrow(|host| {
            if let Some(host) = host {
                let _ = host.log(level, record.args().to_string().as_bytes());
            }
        });
    }
    fn flush(&self) {}
}

fn status(status: emulator::Status) -> Status {
    Status::check(status.0).err().unwrap_or(Status::Other(status.0))
}

fn bytes(answer: emulator::Answer<Option<Vec<u8>>>) -> Result<Bytes, Status> {
    answer.map(|bytes| bytes.unwrap_or_default().into()).map_err(status)
}

fn number(map: Map) -> u32 {
    match map {
        Map::Request => map::REQUEST_HEADERS,
        Map::Response => map::RESPONSE_HEADERS,
        Map::ResponseTrailers => map::RESPONSE_TRAILERS,
        Map::Answer => map::HTTP_CALL_HEADERS,
    }
}

fn buffer(map: Map) -> u32 {
    match map {
        Map::Request => emulator::buffer::REQUEST_BODY,
        Map::Response | Map::ResponseTrailers => emulator::buffer::RESPONSE_BODY,
        Map::Answer => emulator::buffer::HTTP_CALL_BODY,
    }
}

impl Host for NativeHost {
    fn now_ns(&self) -> u64 {
        self.0.now().ok().flatten().unwrap_or(0)
    }
    fn seed(&self) -> [u8; 32] {
        let seed = self.0.random(32).ok().flatten().and_then(|seed| seed.try_into().ok());
        // As in the module, but for the place of its stack.
        seed.unwrap_or_else(|| {
            let mut seed = [0; 32];
            seed.iter_mut().zip(self.now_ns().to_le_bytes()).for_each(|(to, from)| *to = from);
            seed
        })
    }
    fn property(&self, path: &[&str]) -> Result<Bytes, Status> {
        bytes(self.0.property(path.join("\0").as_bytes()))
    }
    fn set_filter_state(&self, key: &str, value: &[u8]) -> Result<(), Status> {
        self.0.set_property(key.as_bytes(), value).map_err(status)
    }
    fn declare_once(&self, key: &str) -> Result<(), Status> {
        self.0.foreign_function(b"declare_property", &crate::host::read_only(key)).map_err(status).map(|_| ())
    }
    fn shared_data(&self, key: &str) -> Result<(Bytes, u32), Status> {
        let (value, cas) = self.0.shared_data(key.as_bytes()).map_err(status)?.unwrap_or_default();
        Ok((value.into(), cas))
    }
    fn set_shared_data(&self, key: &str, value: &[u8], cas: u32) -> Result<(), Status> {
        self.0.set_shared_data(key.as_bytes(), value, cas).map_err(status)
    }
    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status> {
        self.0.define_metric(kind.number(), name.as_bytes()).map(Option::unwrap_or_default).map_err(status)
    }
    fn metric(&self, id: u32) -> Result<u64, Status> {
        self.0.metric(id).map(Option::unwrap_or_default).map_err(status)
    }
    fn add_metric(&self, id: u32, delta: i64) -> Result<(), Status> {
        self.0.increment_metric(id, delta).map_err(status)
    }
    fn record_metric(&self, id: u32, value: u64) -> Result<(), Status> {
        self.0.record_metric(id, value).map_err(status)
    }
    fn configuration(&self) -> Result<Bytes, Status> {
        bytes(self.0.buffer(emulator::buffer::PLUGIN_CONFIGURATION, 0, u32::MAX))
    }
    fn header_pairs(&self, map: Map) -> Result<Bytes, Status> {
        bytes(self.0.header_pairs(number(map)))
    }
    fn body(&self, map: Map, start: usize, max: usize) -> Result<Bytes, Status> {
        let number = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        bytes(self.0.buffer(buffer(map), number(start), number(max)))
    }
    fn replace_body(&self, map: Map, bytes: &[u8]) -> Result<(), Status> {
        self.0.set_buffer(buffer(map), 0, u32::MAX, bytes).map_err(status)
    }
    fn header(&self, map: Map, name: &str) -> Result<Bytes, Status> {
        bytes(self.0.header(number(map), name.as_bytes()))
    }
    fn add_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status> {
        self.0.add_header(number(map), name, value).map_err(status)
    }
    fn replace_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status> {
        self.0.replace_header(number(map), name, value).map_err(status)
    }
    fn remove_header(&self, map: Map, name: &[u8]) -> Result<(), Status> {
        self.0.remove_header(number(map), name).map_err(status)
    }
    fn set_tick(&self, ms: u32) -> Result<(), Status> {
        self.0.set_tick_period(ms).map_err(status)
    }
    fn call(&self, call: &Call<'_>) -> Result<u32, Status> {
        let (headers, trailers) = (crate::headers::encode(call.headers), crate::headers::encode(&[]));
        // The ABI's number is unsigned, and the host reads it as signed.
        let timeout = i32::from_le_bytes(call.timeout_ms.to_le_bytes());
        let token = self.0.http_call(call.cluster.as_bytes(), &headers, call.body, &trailers, timeout);
        token.map(Option::unwrap_or_default).map_err(status)
    }
    fn send_reply(&self, reply: &Reply) -> Result<(), Status> {
        let headers = crate::headers::encode(&reply.headers);
        let grpc_status = reply.grpc_status.map_or(-1, i32::from);
        let details = reply.details.as_bytes();
        self.0.send_local_response(reply.status.into(), details, &reply.body, &headers, grpc_status).map_err(status)
    }
}

/// An environment variable of the VM that runs now; where none does, of the process.
pub(crate) fn variable(name: &str) -> Option<String> {
    LOG.with_borrow(|host| match host {
        Some(host) => host.variable(name),
        None => std::env::var(name).ok(),
    })
}

/// The worker's VM, to be looked into.
type Worker<F> = Rc<RefCell<Option<Rc<Vm<F>>>>>;

/// A filter as code that VMs are made from: what [`export!`](crate::export) makes of it, without wasm.
struct Native<F: Filter>(Worker<F>);

struct NativeVm<F: Filter> {
    vm: Rc<Vm<F>>,
    host: NativeHost,
}

impl<F: Filter> Code for Native<F> {
    fn identity(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        TypeId::of::<F>().hash(&mut hasher);
        hasher.finish()
    }

    fn start(&self, host: emulator::Host) -> Result<Box<dyn Guest>, String> {
        let vm = Rc::new(Vm::new());
        if matches!(host.vm_kind(), VmKind::Local(Thread::Worker(_))) {
            self.0.replace(Some(Rc::clone(&vm)));
        }
        Ok(Box::new(NativeVm { vm, host: NativeHost(host) }))
    }
}

impl<F: Filter> Guest for NativeVm<F> {
    /// As the build leaves it in the module.
    fn has(&self, callback: &str) -> bool {
        match callback {
            "proxy_on_configure" => true,
            "proxy_on_context_create" | "proxy_on_delete" => F::PHASES != Phases::NONE,
            "proxy_on_request_headers" => F::PHASES.has(Phases::REQUEST_HEADERS),
            "proxy_on_response_headers" => F::PHASES.has(Phases::RESPONSE_HEADERS),
            "proxy_on_request_body" => F::PHASES.has(Phases::REQUEST_BODY),
            "proxy_on_response_body" => F::PHASES.has(Phases::RESPONSE_BODY),
            "proxy_on_request_trailers" => F::PHASES.has(Phases::REQUEST_TRAILERS),
            "proxy_on_response_trailers" => F::PHASES.has(Phases::RESPONSE_TRAILERS),
            "proxy_on_log" => F::PHASES.has(Phases::LOG),
            "proxy_on_new_connection" => F::PHASES.has(Phases::CONNECTION),
            "proxy_on_tick" => F::PHASES.has(Phases::TICK),
            "proxy_on_http_call_response" => F::PHASES.has(Phases::ANSWERED),
            _ => false,
        }
    }

    fn call(&mut self, callback: Callback) -> Result<u64, String> {
        let Self { vm, host } = self;
        // Fails when another one was first, which is as good: they are all the same.
        let _ = log::set_logger(&Logger);
        LOG.set(Some(host.0.clone()));
        let next = |next: Next| u64::from(next == Next::Stop);
        let pass = |pass: Pass| u64::from(pass == Pass::Hold);
        Ok(match callback {
            Callback::ContextCreate { context, parent } => {
                vm.create_context(host, context, parent);
                0
            }
            Callback::Configure { context, .. } => {
                let level = host.0.log_level().ok().flatten();
                log::set_max_level(match level {
                    Some(0) => log::LevelFilter::Trace,
                    Some(1) => log::LevelFilter::Debug,
                    Some(3) => log::LevelFilter::Warn,
                    Some(4 | 5) => log::LevelFilter::Error,
                    _ => log::LevelFilter::Info,
                });
                u64::from(vm.configure(host, context))
            }
            Callback::RequestHeaders { context, end, .. } => next(vm.request_headers(host, context, end != 0)),
            Callback::ResponseHeaders { context, end, .. } => next(vm.response_headers(host, context, end != 0)),
            Callback::RequestBody { context, size, end } => {
                pass(vm.request_body(host, context, usize::try_from(size).unwrap_or(usize::MAX), end != 0))
            }
            Callback::ResponseBody { context, size, end } => {
                pass(vm.response_body(host, context, usize::try_from(size).unwrap_or(usize::MAX), end != 0))
            }
            Callback::RequestTrailers { context, .. } => {
                vm.request_trailers(host, context);
                0
            }
            Callback::ResponseTrailers { context, .. } => {
                vm.response_trailers(host, context);
                0
            }
            Callback::Tick { context } => {
                vm.tick(host, context);
                0
            }
            Callback::HttpCallResponse { context, token, headers, body, .. } => {
                let number = |of: u32| usize::try_from(of).unwrap_or(usize::MAX);
                vm.answered(host, context, token, (number(headers), number(body)));
                0
            }
            Callback::NewConnection { context } => {
                vm.connection(host, context);
                0
            }
            Callback::Log { context } => {
                vm.log(host, context);
                0
            }
            Callback::Delete { context } => {
                vm.delete_context(context);
                0
            }
            _ => 0,
        })
    }
}

/// The filter's code natively, and as the module at a path from the root of the workspace: for tests that need more of a
/// proxy than [`Proxy`] has, such as several workers. With the name of each.
///
/// # Panics
/// When the module is not there: `make modules` builds it.
pub fn both<F: Filter>(module: &str) -> [(&'static str, Rc<dyn Code>); 2] {
    [("natively", native::<F>()), ("as a module", read(module))]
}

/// The filter's code natively.
pub fn native<F: Filter>() -> Rc<dyn Code> {
    Rc::new(Native::<F>(Worker::default()))
}

/// A module of several filters that has to stand in for that of each: its name in `TEST_AS`. Then what a test loads from
/// `dist` is that module, with the configuration under the filter's key, and all else of the test stays as it is.
fn stands_in() -> Option<String> {
    std::env::var("TEST_AS").ok().filter(|name| !name.is_empty())
}

/// The key of a filter in the configuration of a module of several.
fn key(filter: &str) -> String {
    filter.replace('-', "_")
}

/// A line about a refused configuration, in the filter's own words: where a module of several stands in for its own, that
/// one says its name first and the filter's key in the path, and both are taken out again; and so is where a text is no
/// JSON, which the key in front of it moves.
///
/// # Panics
/// When such a module does not name the filter.
pub fn refusal(filter: &str, said: &str) -> String {
    let Some(stand_in) = stands_in().filter(|name| name != filter) else { return said.into() };
    let refused = |name: &str, place: &str| format!("{name}: configuration refused at `{place}");
    let (key, top) = (key(filter), "(top level)`");
    let mut own = String::new();
    for (at, part) in said.split(&refused(&stand_in, "")).enumerate() {
        let within = part.strip_prefix(&*key).map(|rest| (rest.strip_prefix('.'), rest.strip_prefix('`')));
        own.push_str(&match within {
            _ if at == 0 => String::from(part),
            Some((Some(place), _)) => refused(filter, place),
            Some((_, Some(rest))) => refused(filter, &[top, rest].concat()),
            // It has no path yet.
            _ if part.starts_with(top) => refused(filter, part),
            _ => panic!("{stand_in} does not name `{key}`: {part}"),
        });
    }
    match own.split_once("is not JSON (").and_then(|(before, rest)| Some((before, rest.split_once(')')?.1))) {
        Some((before, after)) => format!("{before}is not JSON{after}"),
        None => own,
    }
}

/// A module that stands in for a filter's own.
struct StandIn {
    module: Rc<dyn Code>,
    key: String,
}

impl Code for StandIn {
    fn identity(&self) -> u64 {
        self.module.identity()
    }
    fn start(&self, host: emulator::Host) -> Result<Box<dyn Guest>, String> {
        self.module.start(host)
    }
    fn configuration(&self, given: &[u8]) -> Rc<[u8]> {
        let given = if given.trim_ascii().is_empty() { b"{}" } else { given };
        [format!("{{\"{}\": ", self.key).as_bytes(), given, b"}"].concat().into()
    }
}

fn read(module: &str) -> Rc<dyn Code> {
    let read = |module: &str| -> Rc<dyn Code> {
        let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(module);
        emulator::Module::read(path).unwrap_or_else(|why| panic!("{why}: run `make modules`"))
    };
    let filter = module.strip_prefix("dist/").and_then(|file| file.strip_suffix(".wasm"));
    match (filter, stands_in()) {
        (Some(filter), Some(name)) if filter != name => {
            Rc::new(StandIn { module: read(&format!("dist/{name}.wasm")), key: key(filter) })
        }
        _ => read(module),
    }
}

/// A host without a filter, to test what works with one; and the proxy that it belongs to.
///
/// # Panics
/// Not in practice: nothing in it can be refused.
pub fn host() -> (NativeHost, emulator::Proxy) {
    struct Empty(Rc<RefCell<Option<emulator::Host>>>);
    struct Nothing;
    impl Guest for Nothing {
        fn has(&self, _: &str) -> bool {
            false
        }
        fn call(&mut self, _: Callback) -> Result<u64, String> {
            Ok(0)
        }
    }
    impl Code for Empty {
        fn identity(&self) -> u64 {
            0
        }
        fn start(&self, host: emulator::Host) -> Result<Box<dyn Guest>, String> {
            self.0.replace(Some(host));
            Ok(Box::new(Nothing))
        }
    }
    let proxy = emulator::Proxy::new(1, 7);
    let last = Rc::default();
    let code: Rc<dyn Code> = Rc::new(Empty(Rc::clone(&last)));
    proxy.push("test", [Plugin::new("test", &code)]).expect("it refuses nothing");
    let host = last.take().expect("it was started");
    (NativeHost(host), proxy)
}

/// A filter in a chain of its own, `test`, on one worker: natively, and beside it, in a proxy that goes through the same,
/// as the built module. After every step both have to be in the same state, whatever the filter did at random.
pub struct Proxy<F: Filter> {
    /// First the native one.
    sides: Vec<(emulator::Proxy, Rc<dyn Code>)>,
    worker: Worker<F>,
    /// Filter state of the last request.
    last: BTreeMap<String, Vec<u8>>,
    /// What was answered in place of its upstream.
    reply: Option<emulator::Reply>,
    of: PhantomData<F>,
}

impl<F: Filter> Proxy<F> {
    /// The filter natively, with this configuration; `None` where it refuses it.
    pub fn start(configuration: &str) -> Option<Self> {
        Self::of(configuration, None)
    }

    /// The filter natively and as a module, a path from the root of the workspace, such as `dist/trace-id.wasm`.
    ///
    /// # Panics
    /// When the module is not there: `make modules` builds it.
    pub fn start_beside(module: &str, configuration: &str) -> Option<Self> {
        Self::of(configuration, Some(read(module)))
    }

    fn of(configuration: &str, module: Option<Rc<dyn Code>>) -> Option<Self> {
        let worker = Worker::default();
        let native: Rc<dyn Code> = Rc::new(Native::<F>(Rc::clone(&worker)));
        let sides = [Some(native), module].into_iter().flatten().map(|code| (emulator::Proxy::new(1, 7), code));
        let mut proxy = Self { sides: sides.collect(), worker, last: BTreeMap::new(), reply: None, of: PhantomData };
        proxy.configure(configuration).then_some(proxy)
    }

    /// Does something on each side, in the chain `test`. Both have to come to the same.
    ///
    /// # Panics
    /// When they do not.
    pub fn each<T: PartialEq + Debug>(&self, mut run: impl FnMut(&emulator::Proxy) -> T) -> T {
        let mut sides = self.sides.iter().map(|(proxy, _)| (run(proxy), proxy));
        let (native, proxy) = sides.next().expect("there is a native side");
        for (module, beside) in sides {
            assert_eq!(native, module, "the module is on the right");
            proxy
                .same_as(beside, |line| refusal(F::NAME, line))
                .unwrap_or_else(|why| panic!("natively, and as a module: {why}"));
        }
        native
    }

    /// A new configuration. False: refused, and the old one serves.
    pub fn configure(&mut self, configuration: &str) -> bool {
        let codes: Vec<_> = self.sides.iter().map(|(_, code)| Rc::clone(code)).collect();
        let mut code = codes.iter();
        self.each(|proxy| {
            let plugin = Plugin::new("test", code.next().expect("one per side")).configuration(configuration);
            proxy.push("test", [plugin]).is_ok()
        })
    }

    /// A whole request, from its headers to its log; what went upstream.
    pub fn request(&mut self, headers: Pairs) -> Pairs {
        self.exchange(headers, pairs(&[(":status", "200")])).0
    }

    /// A whole request without bodies; what went upstream, and what went back.
    pub fn exchange(&mut self, request: Pairs, response: Pairs) -> (Pairs, Pairs) {
        let (request, response) = (Message::new(request), Message::new(response));
        let done = self.each(|proxy| proxy.exchange("test", 0, &request, &response));
        self.keep(&done);
        (readable(done.upstream.headers), readable(done.downstream.headers))
    }

    /// A request phase by phase; how it ended.
    pub fn steps(&mut self, mut run: impl FnMut(&emulator::HttpStream)) -> emulator::Exchange {
        let done = self.each(|proxy| {
            let stream = proxy.http("test", 0);
            run(&stream);
            stream.finish()
        });
        self.keep(&done);
        done
    }

    fn keep(&mut self, done: &emulator::Exchange) {
        self.last.clone_from(&done.filter_state);
        self.reply.clone_from(&done.reply);
    }

    /// Filter state of the last request, as text; the key without `wasm.`.
    pub fn state(&self, key: &str) -> Option<String> {
        self.last.get(&format!("wasm.{key}")).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    /// The keys of its filter state, without `wasm.`.
    pub fn states(&self) -> Vec<String> {
        self.last.keys().map(|key| key.trim_start_matches("wasm.").into()).collect()
    }

    /// What was answered in place of its upstream.
    pub fn reply(&self) -> Option<&emulator::Reply> {
        self.reply.as_ref()
    }

    /// The value of a series, by its full name.
    pub fn metric(&self, series: &str) -> Option<u64> {
        self.each(|proxy| proxy.metric(series)).map(|metric| metric.value)
    }

    /// The values that a histogram got.
    pub fn values(&self, series: &str) -> Vec<u64> {
        self.each(|proxy| proxy.metric(series)).map(|metric| metric.samples).unwrap_or_default()
    }

    /// How often a hostcall was made since the last time this was asked of any, failed ones included.
    pub fn take_calls(&self) -> BTreeMap<&'static str, u64> {
        self.each(|proxy| proxy.take_tally().hostcalls)
    }

    /// How often a hostcall was made.
    pub fn calls(&self, call: &str) -> u64 {
        self.each(|proxy| proxy.tally().hostcalls.get(call).copied()).unwrap_or(0)
    }

    /// From now on this hostcall fails.
    pub fn fail(&self, call: &'static str) {
        self.each(|proxy| proxy.fault(Fault::of(call)));
    }

    /// From now on every hostcall fails.
    pub fn fail_all(&self) {
        self.each(|proxy| proxy.fault(Fault::any()));
    }

    /// What the native VM of the worker holds: requests, plugins.
    pub fn held(&self) -> (usize, usize) {
        self.worker.borrow().as_ref().map_or((0, 0), |vm| vm.held())
    }
}
