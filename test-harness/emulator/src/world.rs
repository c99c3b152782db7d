//! What the proxy knows: one value for all threads, VMs, plugins and streams.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::abi::{Answer, HOSTCALLS, MetricKind, Pairs, Status, WASI};
use crate::chain::Stream;
use crate::plugin::Plugin;
use crate::{Guest, Message};

/// A thread of the proxy. Each has its own VM of a module, and so its own plugins and statics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Thread {
    /// The one that takes configuration in. Its VM sees ticks, and no traffic.
    Main,
    /// One that serves connections; the first is 0.
    Worker(usize),
}

/// What a VM is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmKind {
    /// Loads the module and is what others are cloned from; no plugin runs in it.
    Base,
    /// Tries a configuration, and is thrown away.
    Canary,
    /// Runs plugins.
    Local(Thread),
}

/// A line of the proxy's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// The VM that wrote it, or about which it is.
    pub vm: VmKind,
    /// The plugin; empty where it is not known.
    pub plugin: String,
    /// 0 trace, 1 debug, 2 info, 3 warning, 4 error, 5 critical.
    pub level: u32,
    /// As the module wrote it.
    pub text: String,
}

/// A metric of the process: what all VMs that defined its name did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// What it is.
    pub kind: MetricKind,
    /// Of a counter or gauge.
    pub value: u64,
    /// What was recorded in a histogram, in order.
    pub samples: Vec<u64>,
}

/// What a module cost so far, on all VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Entries into the VM, by export; an entry for memory is one, too.
    pub entries: BTreeMap<&'static str, u64>,
    /// Calls out of the VM, by import; refused ones are among them.
    pub hostcalls: BTreeMap<&'static str, u64>,
    /// Bytes that the host copied into the VM's memory.
    pub bytes_in: u64,
    /// Bytes that the host read from the VM's memory.
    pub bytes_out: u64,
    /// What the interpreter charges: one for each operator of a stretch of code that is entered, whether or not a branch
    /// then skips it. So it is more than what ran, and no speed; but it is the same each time, and moves when the code does.
    pub fuel: u64,
    /// By how many pages of 64 KiB memories grew.
    pub pages: u64,
}

/// An answer that a hostcall gives in place of the true one.
///
/// ```
/// use emulator::{Fault, Status};
///
/// let never = Fault::of("proxy_http_call").status(Status::INTERNAL_FAILURE);
/// let third = Fault::of("proxy_set_shared_data").status(Status::CAS_MISMATCH).after(2).times(1);
/// let lies = Fault::any().status(Status::OK).bytes([0xff; 40]);
/// ```
#[derive(Clone)]
#[must_use]
pub struct Fault {
    call: Option<&'static str>,
    status: Status,
    bytes: Option<Vec<u8>>,
    after: u64,
    times: u64,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, status, bytes, after, times } = self;
        write!(f, "{} says {status}", call.unwrap_or("every call"))?;
        if let Some(bytes) = bytes {
            write!(f, " and gives {} bytes, {}…", bytes.len(), bytes[..bytes.len().min(24)].escape_ascii())?;
        }
        write!(f, ", after {after} calls, {times} times")
    }
}

impl Fault {
    /// In place of this call: the name of the import, such as `proxy_get_property` or `random_get`. It fails with
    /// [`Status::INTERNAL_FAILURE`], each time, until told otherwise. For WASI the status is its errno.
    ///
    /// # Panics
    /// When no import has that name: a fault that never comes would make a test that cannot fail.
    pub fn of(call: &'static str) -> Self {
        let known = HOSTCALLS.iter().chain(&WASI).any(|(known, _)| *known == call);
        assert!(known, "no import is called `{call}`; they are as `proxy_get_property` and `random_get`");
        Self { call: Some(call), ..Self::any() }
    }

    /// In place of every call.
    pub fn any() -> Self {
        Self { call: None, status: Status::INTERNAL_FAILURE, bytes: None, after: 0, times: u64::MAX }
    }

    /// Answers with this status. With [`Status::OK`] the call does nothing and says that it did.
    pub fn status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// Gives these bytes where the call has bytes to give. Without, it leaves the module's pointers as they are.
    pub fn bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.bytes = Some(bytes.into());
        self
    }

    /// Lets so many calls pass first.
    pub fn after(mut self, calls: u64) -> Self {
        self.after = calls;
        self
    }

    /// Ends after so many calls.
    pub fn times(mut self, calls: u64) -> Self {
        self.times = calls;
        self
    }
}

/// An HTTP call that a plugin made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCall {
    /// The number that the module got for it; one of its VM.
    pub token: u32,
    /// The thread whose VM made it.
    pub vm: VmKind,
    /// The cluster.
    pub cluster: String,
    /// Headers, body and trailers.
    pub request: Message,
    /// Zero is none.
    pub timeout: Duration,
    pub(crate) id: u64,
    pub(crate) root: usize,
    pub(crate) made_ns: u64,
}

/// How an HTTP call ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// With a response.
    Response(Message),
    /// With none: the callback comes with 0 headers.
    Reset,
}

/// What answers the calls to a cluster: after how long, and how; `None` is never.
pub(crate) type Responder = Rc<dyn Fn(&HttpCall) -> Option<(Duration, CallEnd)>>;
/// A foreign function: from its argument to its result.
pub(crate) type Foreign = Rc<dyn Fn(&[u8]) -> Answer<Vec<u8>>>;

/// What a hostcall wants done when the VM has returned.
pub(crate) enum Deferred {
    Resume { stream: u64, leg: usize, response: bool },
    Reply { stream: u64, reply: crate::message::Reply },
    Deleted { root: usize },
}

pub(crate) struct Vm {
    pub(crate) kind: VmKind,
    /// Of its id, configuration and code: plugins that have the same share the VM of a thread.
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) configuration: Rc<[u8]>,
    pub(crate) environment: Rc<[(String, String)]>,
    /// Taken out while it runs.
    pub(crate) guest: Option<Box<dyn Guest>>,
    pub(crate) alive: bool,
    pub(crate) failed: bool,
    pub(crate) started_ns: u64,
    pub(crate) contexts: BTreeMap<u32, Ctx>,
    pub(crate) next_context: u32,
    pub(crate) next_call: u32,
    pub(crate) metrics: BTreeMap<u32, String>,
    pub(crate) next_metric: [u32; 3],
    /// Period and next time, by root context.
    pub(crate) ticks: BTreeMap<u32, (u64, u64)>,
    pub(crate) current: u32,
    pub(crate) effective: u32,
    pub(crate) stop_iteration: bool,
    /// While the module starts or hands out memory, it may hardly call anything.
    pub(crate) restricted: bool,
    pub(crate) after: VecDeque<Deferred>,
    pub(crate) pages: u64,
}

/// What a context of a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ctx {
    Root(usize),
    Stream { id: u64, leg: usize },
}

/// A plugin in a VM.
pub(crate) struct Root {
    pub(crate) vm: usize,
    pub(crate) context: u32,
    pub(crate) plugin: Rc<Plugin>,
    /// Chains and streams that hold it.
    pub(crate) held: usize,
    pub(crate) state: RootState,
    pub(crate) declared: BTreeMap<Vec<u8>, bool>,
    /// While a call's answer is being handed over.
    pub(crate) answer: Option<Message>,
    /// While a call's end is being told that has no answer.
    pub(crate) broken: bool,
    /// While the configuration is being handed over.
    pub(crate) configuring: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootState {
    Live,
    /// `on_done` asked for time.
    Pending,
    Gone,
}

/// What runs where traffic comes in, per thread.
#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) plugins: Vec<Rc<Plugin>>,
    pub(crate) roots: BTreeMap<Thread, Vec<usize>>,
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) items: VecDeque<Vec<u8>>,
    /// The root that is told of items: the last that registered.
    pub(crate) reader: (usize, u32),
}

/// Values and their numbers.
pub(crate) type SharedData = BTreeMap<Vec<u8>, (Vec<u8>, u32)>;

pub(crate) struct World {
    pub(crate) workers: usize,
    pub(crate) now_ns: u64,
    pub(crate) begun_ns: u64,
    pub(crate) random: Xoshiro256PlusPlus,
    pub(crate) log: Vec<LogLine>,
    pub(crate) log_level: u32,
    /// By `vm_id`.
    pub(crate) shared: BTreeMap<String, SharedData>,
    pub(crate) next_cas: u32,
    pub(crate) queues: BTreeMap<u32, Queue>,
    pub(crate) queue_tokens: BTreeMap<(String, Vec<u8>), u32>,
    /// Items that readers have not been told of: VM, context, token.
    pub(crate) ready: Vec<(usize, u32, u32)>,
    pub(crate) metrics: BTreeMap<String, Metric>,
    pub(crate) properties: BTreeMap<Vec<Vec<u8>>, Vec<u8>>,
    pub(crate) clusters: BTreeMap<String, Responder>,
    pub(crate) calls: Vec<HttpCall>,
    /// When each pending call ends, by its own responder or by its timeout.
    pub(crate) ends: BTreeMap<(u64, u64), CallEnd>,
    pub(crate) next_call_id: u64,
    pub(crate) foreign: BTreeMap<Vec<u8>, Foreign>,
    pub(crate) vms: Vec<Vm>,
    pub(crate) roots: Vec<Root>,
    pub(crate) chains: BTreeMap<String, Chain>,
    /// Whether a plugin's configuration was accepted by a canary of this VM's key.
    pub(crate) tried: BTreeMap<(String, String), bool>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) next_stream: u64,
    pub(crate) faults: Vec<(Fault, u64)>,
    pub(crate) tally: Tally,
    pub(crate) fuel_limit: u64,
    pub(crate) buffer_limit: usize,
    pub(crate) reloads: Reloads,
    /// What would have killed the proxy.
    pub(crate) death: Option<&'static str>,
}

/// How often VMs that had trapped were started again, as the proxy counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reloads {
    /// `vm_reload_success`.
    pub success: u64,
    /// `vm_reload_backoff`: too soon after the last start.
    pub backoff: u64,
    /// `vm_reload_failure`: the new one did not start.
    pub failure: u64,
}

impl World {
    pub(crate) fn new(workers: usize, seed: u64) -> Self {
        // A time that people recognise, and that nobody takes for today.
        let begun_ns = 1_700_000_000_000_000_000;
        Self {
            workers,
            now_ns: begun_ns,
            begun_ns,
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            log: Vec::new(),
            log_level: 2,
            shared: BTreeMap::new(),
            next_cas: 1,
            queues: BTreeMap::new(),
            queue_tokens: BTreeMap::new(),
            ready: Vec::new(),
            metrics: BTreeMap::new(),
            properties: BTreeMap::new(),
            clusters: BTreeMap::new(),
            calls: Vec::new(),
            ends: BTreeMap::new(),
            next_call_id: 0,
            foreign: BTreeMap::new(),
            vms: Vec::new(),
            roots: Vec::new(),
            chains: BTreeMap::new(),
            tried: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 1,
            faults: Vec::new(),
            tally: Tally::default(),
            fuel_limit: 2_000_000_000,
            buffer_limit: 1 << 20,
            reloads: Reloads::default(),
            death: None,
        }
    }

    /// Writes to the log for the plugin that the VM is in, if the level is one that is written.
    pub(crate) fn write_log(&mut self, vm: usize, level: u32, text: &[u8]) {
        if level >= self.log_level {
            let root = self.root_of(vm, self.context(vm));
            let plugin = root.map_or(String::new(), |root| self.roots[root].plugin.name.clone());
            self.say(vm, &plugin, level, String::from_utf8_lossy(text).into_owned());
        }
    }

    pub(crate) fn say(&mut self, vm: usize, plugin: &str, level: u32, text: String) {
        self.log.push(LogLine { vm: self.vms[vm].kind, plugin: plugin.to_owned(), level, text });
    }

    /// Whether a fault stands in for this call.
    pub(crate) fn fault(&mut self, name: &str) -> Option<(Status, Option<Vec<u8>>)> {
        for (fault, seen) in &mut self.faults {
            if fault.call.is_none_or(|call| call == name) {
                *seen += 1;
                if *seen > fault.after && *seen - fault.after <= fault.times {
                    return Some((fault.status, fault.bytes.clone()));
                }
            }
        }
        None
    }

    /// The real proxy would crash here, or go on without end. Said when the VM has returned, because nothing may unwind
    /// through it.
    pub(crate) fn die(&mut self, why: &'static str) {
        self.death.get_or_insert(why);
    }

    /// Whether the stream that the VM is in is being logged.
    pub(crate) fn logging(&self, vm: usize) -> bool {
        matches!(self.ctx(vm), Some(Ctx::Stream { id, .. }) if self.streams.get(&id).is_some_and(|stream| stream.logging))
    }

    pub(crate) fn fill_random(&mut self, bytes: &mut [u8]) {
        self.random.fill_bytes(bytes);
    }

    /// The root that a context belongs to; none for the VM's own.
    pub(crate) fn root_of(&self, vm: usize, context: u32) -> Option<usize> {
        match *self.vms[vm].contexts.get(&context)? {
            Ctx::Root(root) => Some(root),
            Ctx::Stream { id, leg } => Some(self.streams.get(&id)?.legs[leg].root),
        }
    }

    /// Where the VM is in: the effective context where there is one, else the one that was called.
    pub(crate) fn context(&self, vm: usize) -> u32 {
        let vm = &self.vms[vm];
        if vm.effective != 0 && vm.contexts.contains_key(&vm.effective) { vm.effective } else { vm.current }
    }

    pub(crate) fn ctx(&self, vm: usize) -> Option<Ctx> {
        self.vms[vm].contexts.get(&self.context(vm)).copied()
    }

    /// The pairs of a map, where they can be read from where the VM is in.
    pub(crate) fn pairs(&self, vm: usize, map: u32) -> Option<&Pairs> {
        use crate::abi::map as m;
        match map {
            m::HTTP_CALL_HEADERS | m::HTTP_CALL_TRAILERS => {
                let answer = self.roots[self.root_of(vm, self.context(vm))?].answer.as_ref()?;
                if map == m::HTTP_CALL_HEADERS { Some(&answer.headers) } else { answer.trailers.as_ref() }
            }
            _ => {
                let Ctx::Stream { id, leg } = self.ctx(vm)? else { return None };
                self.streams.get(&id)?.readable(leg, map)
            }
        }
    }
}
