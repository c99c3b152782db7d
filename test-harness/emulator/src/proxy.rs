//! The proxy: threads, VMs, plugins, configuration, time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use crate::Host;
use crate::abi::{Answer, Callback};
use crate::plugin::{FailurePolicy, Plugin};
use crate::property::Value;
use crate::world::{
    CallEnd, Chain, Ctx, Deferred, Fault, HttpCall, LogLine, Metric, Reloads, Root, RootState, Tally, Thread, Vm,
    VmKind, World,
};

/// A proxy in memory.
///
/// It is one value that its streams share; a clone is the same proxy. Nothing happens by itself: what comes in, and
/// how time passes, is the test's to say. Threads do not run at once, but in the order of the test's calls, which is
/// how a race can be played as often as one likes.
#[derive(Clone)]
pub struct Proxy(pub(crate) Rc<RefCell<World>>);

/// Why a configuration was refused. What was there before goes on serving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The plugin's name.
    pub plugin: String,
    /// At what it failed.
    pub why: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "plugin `{}`: {}", self.plugin, self.why)
    }
}

impl std::error::Error for Refused {}

/// A VM, as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmState {
    /// What it is for.
    pub kind: VmKind,
    /// Its `vm_id`.
    pub id: String,
    /// Whether it has trapped.
    pub failed: bool,
    /// Plugins in it.
    pub roots: usize,
    /// Streams in it.
    pub streams: usize,
    /// Pages of memory.
    pub pages: u64,
}

/// What became of a callback.
pub(crate) enum Entered {
    /// The module does not export it.
    Missing,
    /// The VM has trapped, now or before.
    Failed,
    Returned {
        value: u64,
        /// A reply was sent: the stream stops here whatever was returned.
        stop: bool,
    },
}

impl World {
    pub(crate) fn new_context(&mut self, vm: usize, ctx: Ctx) -> u32 {
        let vm = &mut self.vms[vm];
        let id = vm.next_context;
        vm.next_context += 1;
        vm.contexts.insert(id, ctx);
        id
    }
}

impl Proxy {
    /// A proxy with so many workers. The seed is of what `random_get` gives: the same one, the same bytes.
    #[must_use]
    pub fn new(workers: usize, seed: u64) -> Self {
        Self(Rc::new(RefCell::new(World::new(workers, seed))))
    }

    /// Calls into a VM, and then does what it asked to be done afterwards.
    pub(crate) fn enter(&self, vm: usize, callback: Callback) -> Entered {
        let name = callback.name();
        let mut guest = {
            let mut world = self.0.borrow_mut();
            let inside = &mut world.vms[vm];
            if inside.failed || !inside.alive {
                return Entered::Failed;
            }
            let Some(guest) = inside.guest.take() else { return Entered::Failed };
            if !guest.has(name) {
                inside.guest = Some(guest);
                return Entered::Missing;
            }
            inside.current = callback.arguments()[0];
            *world.tally.entries.entry(name).or_default() += 1;
            guest
        };
        let result = guest.call(callback);
        if let Some(why) = self.0.borrow_mut().death.take() {
            panic!("the proxy dies in {name}: {why}");
        }
        let (entered, deferred) = {
            let mut world = self.0.borrow_mut();
            let pages = guest.pages();
            let inside = &mut world.vms[vm];
            let grown = pages.saturating_sub(std::mem::replace(&mut inside.pages, pages));
            inside.guest = Some(guest);
            let stop = std::mem::take(&mut inside.stop_iteration);
            let deferred = std::mem::take(&mut inside.after);
            let plugin = world.root_of(vm, world.context(vm)).map(|root| world.roots[root].plugin.name.clone());
            let inside = &mut world.vms[vm];
            (inside.current, inside.effective) = (0, 0);
            let entered = match result {
                Ok(value) => Entered::Returned { value, stop },
                Err(trap) => {
                    inside.failed = true;
                    inside.ticks.clear();
                    world.say(vm, &plugin.unwrap_or_default(), 5, format!("{name} trapped: {trap}"));
                    Entered::Failed
                }
            };
            world.tally.pages += grown;
            (entered, deferred)
        };
        for action in deferred {
            match action {
                Deferred::Resume { stream, leg, response } => self.resume(stream, leg, response),
                Deferred::Reply { stream, reply } => self.reply(stream, &reply),
                Deferred::Deleted { root } => self.delete_root(root),
            }
        }
        entered
    }

    fn start_vm(&self, kind: VmKind, plugin: &Plugin) -> Result<usize, String> {
        let index = {
            let mut world = self.0.borrow_mut();
            let vm = Vm {
                kind,
                key: plugin.vm_key(),
                id: plugin.vm_id.clone(),
                configuration: Rc::clone(&plugin.vm_configuration),
                environment: Rc::clone(&plugin.environment),
                guest: None,
                alive: true,
                failed: false,
                started_ns: world.now_ns,
                contexts: BTreeMap::new(),
                next_context: 1,
                next_call: 0,
                metrics: BTreeMap::new(),
                next_metric: [0, 1, 2],
                ticks: BTreeMap::new(),
                current: 0,
                effective: 0,
                stop_iteration: false,
                restricted: false,
                after: Default::default(),
                pages: 0,
            };
            world.vms.push(vm);
            world.vms.len() - 1
        };
        let started = plugin.code.start(Host { world: Rc::clone(&self.0), vm: index });
        let mut world = self.0.borrow_mut();
        let vm = &mut world.vms[index];
        match started {
            Ok(guest) => {
                vm.pages = guest.pages();
                vm.guest = Some(guest);
                Ok(index)
            }
            Err(why) => {
                vm.alive = false;
                Err(why)
            }
        }
    }

    /// Makes the plugin's root context in a VM and configures it.
    fn start_root(&self, vm: usize, plugin: &Rc<Plugin>) -> Result<usize, String> {
        let (root, context) = {
            let mut world = self.0.borrow_mut();
            let root = world.roots.len();
            let context = world.new_context(vm, Ctx::Root(root));
            world.roots.push(Root {
                vm,
                context,
                plugin: Rc::clone(plugin),
                held: 0,
                state: RootState::Live,
                declared: BTreeMap::new(),
                answer: None,
                broken: false,
                configuring: true,
            });
            (root, context)
        };
        let sizes = (plugin.vm_configuration.len() as u32, plugin.configuration.len() as u32);
        let configuring = |yes| self.0.borrow_mut().roots[root].configuring = yes;
        self.enter(vm, Callback::ContextCreate { context, parent: 0 });
        // The VM starts without knowing for which plugin.
        configuring(false);
        let started = self.enter(vm, Callback::VmStart { context, size: sizes.0 });
        configuring(true);
        let result = match started {
            Entered::Failed => Err("the VM trapped when it started".to_owned()),
            Entered::Returned { value: 0, .. } => Err("on_vm_start refused".to_owned()),
            _ => match self.enter(vm, Callback::Configure { context, size: sizes.1 }) {
                Entered::Failed => Err("the VM trapped when it was configured".to_owned()),
                Entered::Returned { value: 0, .. } => Err("on_configure refused".to_owned()),
                _ => Ok(root),
            },
        };
        configuring(false);
        result
    }

    /// The plugin's root on a thread: the one that is there, or a new one, in the VM that is there, or a new one.
    fn local_root(&self, thread: Thread, plugin: &Rc<Plugin>) -> Result<usize, String> {
        let (vm_key, key) = (plugin.vm_key(), plugin.key());
        let vm = {
            let world = self.0.borrow();
            let usable = |vm: &Vm| vm.kind == VmKind::Local(thread) && vm.alive && !vm.failed && vm.key == vm_key;
            let found = world.roots.iter().position(|root| {
                root.state == RootState::Live && usable(&world.vms[root.vm]) && root.plugin.key() == key
            });
            if let Some(root) = found {
                return Ok(root);
            }
            world.vms.iter().position(usable)
        };
        let vm = match vm {
            Some(vm) => vm,
            None => self.start_vm(VmKind::Local(thread), plugin)?,
        };
        self.start_root(vm, plugin)
    }

    /// Gives a chain these plugins, in this order: a new configuration, or the first.
    ///
    /// As in the proxy, each is tried first in a canary VM, once per configuration; then every thread gets it. VMs of
    /// the same code, `vm_id` and VM configuration stay, with a new root context beside the old one, which ends with
    /// its last stream.
    ///
    /// # Errors
    /// When a module does not load, or a plugin refuses its configuration: then nothing has changed.
    pub fn push(&self, chain: &str, plugins: impl IntoIterator<Item = Plugin>) -> Result<(), Refused> {
        let plugins: Vec<Rc<Plugin>> = plugins.into_iter().map(Rc::new).collect();
        for plugin in &plugins {
            self.canary(plugin).map_err(|why| {
                self.reap();
                Refused { plugin: plugin.name.clone(), why }
            })?;
        }
        let threads = [Thread::Main].into_iter().chain((0..self.0.borrow().workers).map(Thread::Worker));
        let mut roots: BTreeMap<Thread, Vec<usize>> = BTreeMap::new();
        for thread in threads {
            for plugin in &plugins {
                match self.local_root(thread, plugin) {
                    Ok(root) => {
                        self.0.borrow_mut().roots[root].held += 1;
                        roots.entry(thread).or_default().push(root);
                    }
                    Err(why) => {
                        roots.into_values().flatten().for_each(|root| self.let_go(root));
                        self.reap();
                        return Err(Refused { plugin: plugin.name.clone(), why: format!("{why}, on {thread:?}") });
                    }
                }
            }
        }
        let old = self.0.borrow_mut().chains.insert(chain.to_owned(), Chain { plugins, roots });
        self.drop_chain(old);
        Ok(())
    }

    /// Takes a chain away. Its streams go on to their ends.
    pub fn remove(&self, chain: &str) {
        let old = self.0.borrow_mut().chains.remove(chain);
        self.drop_chain(old);
    }

    fn drop_chain(&self, chain: Option<Chain>) {
        chain.into_iter().flat_map(|chain| chain.roots.into_values()).flatten().for_each(|root| self.let_go(root));
        self.reap();
    }

    fn canary(&self, plugin: &Rc<Plugin>) -> Result<(), String> {
        let vm_key = plugin.vm_key();
        let base = |vm: &Vm| vm.kind == VmKind::Base && vm.alive && vm.key == vm_key;
        if !self.0.borrow().vms.iter().any(base) {
            self.start_vm(VmKind::Base, plugin)?;
        }
        let key = (vm_key, plugin.key());
        match self.0.borrow().tried.get(&key) {
            Some(true) => return Ok(()),
            Some(false) => return Err("on_configure refused".to_owned()),
            None => {}
        }
        let vm = self.start_vm(VmKind::Canary, plugin)?;
        let result = self.start_root(vm, plugin);
        let mut world = self.0.borrow_mut();
        // It is not told that it ends.
        let canary = &mut world.vms[vm];
        canary.alive = false;
        let guest = canary.guest.take();
        world.roots.iter_mut().filter(|root| root.vm == vm).for_each(|root| root.state = RootState::Gone);
        if result.is_ok() || matches!(&result, Err(why) if why == "on_configure refused") {
            world.tried.insert(key, result.is_ok());
        }
        drop(world);
        drop(guest);
        result.map(|_| ())
    }

    /// The roots that a new stream gets. Where a VM has trapped and its policy says so, it is started again.
    pub(crate) fn roots_for_stream(&self, chain: &str, thread: Thread) -> Vec<usize> {
        let (plugins, mut roots) = {
            let world = self.0.borrow();
            let found = world.chains.get(chain).unwrap_or_else(|| panic!("there is no chain `{chain}`"));
            if let Thread::Worker(worker) = thread {
                assert!(worker < world.workers, "there are {} workers, and {worker} is none", world.workers);
            }
            (found.plugins.clone(), found.roots.get(&thread).cloned().unwrap_or_default())
        };
        for (at, plugin) in plugins.iter().enumerate() {
            let old = roots[at];
            let (failed, age) = {
                let world = self.0.borrow();
                let vm = &world.vms[world.roots[old].vm];
                (vm.failed, world.now_ns - vm.started_ns)
            };
            if !failed || plugin.failure != FailurePolicy::Reload {
                continue;
            }
            if u128::from(age) < plugin.backoff.as_nanos() {
                self.0.borrow_mut().reloads.backoff += 1;
                continue;
            }
            match self.local_root(thread, plugin) {
                Ok(new) => {
                    let mut world = self.0.borrow_mut();
                    world.reloads.success += 1;
                    world.roots[new].held += 1;
                    let chain = world.chains.get_mut(chain).expect("it was there");
                    if let Some(place) = chain.roots.get_mut(&thread).and_then(|roots| roots.get_mut(at)) {
                        *place = new;
                    }
                    roots[at] = new;
                    drop(world);
                    self.let_go(old);
                }
                Err(_) => self.0.borrow_mut().reloads.failure += 1,
            }
        }
        roots
    }

    /// One holder less; the last one ends the root.
    pub(crate) fn let_go(&self, root: usize) {
        let end = {
            let mut world = self.0.borrow_mut();
            let root = &mut world.roots[root];
            root.held -= 1;
            (root.held == 0 && root.state == RootState::Live).then_some((root.vm, root.context))
        };
        let Some((vm, context)) = end else { return };
        match self.enter(vm, Callback::Done { context }) {
            Entered::Returned { value: 0, .. } => {
                self.0.borrow_mut().roots[root].state = RootState::Pending;
                self.bury(vm);
            }
            _ => self.delete_root(root),
        }
    }

    fn delete_root(&self, root: usize) {
        let (vm, context) = {
            let world = self.0.borrow();
            let root = &world.roots[root];
            if root.state == RootState::Gone {
                return;
            }
            (root.vm, root.context)
        };
        self.enter(vm, Callback::Delete { context });
        let mut world = self.0.borrow_mut();
        world.roots[root].state = RootState::Gone;
        world.vms[vm].contexts.remove(&context);
        world.vms[vm].ticks.remove(&context);
        let cancelled: Vec<u64> = world.calls.iter().filter(|call| call.root == root).map(|call| call.id).collect();
        world.calls.retain(|call| call.root != root);
        world.ends.retain(|(_, id), _| !cancelled.contains(id));
        drop(world);
        self.bury(vm);
    }

    /// A VM goes with its last plugin, even if another one still asked for time.
    fn bury(&self, vm: usize) {
        let mut world = self.0.borrow_mut();
        if world.roots.iter().any(|root| root.vm == vm && root.state == RootState::Live) {
            return;
        }
        let inside = &mut world.vms[vm];
        inside.alive = false;
        inside.ticks.clear();
        let guest = inside.guest.take();
        drop(world);
        drop(guest);
        self.reap();
    }

    /// Base VMs go with the last chain that uses them; shared data and queues with the last VM of their id.
    fn reap(&self) {
        let mut world = self.0.borrow_mut();
        let world = &mut *world;
        let mut guests = Vec::new();
        for at in 0..world.vms.len() {
            let key = &world.vms[at].key;
            let used = world.chains.values().flat_map(|chain| &chain.plugins).any(|plugin| plugin.vm_key() == *key);
            let lives = world.vms.iter().any(|vm| matches!(vm.kind, VmKind::Local(_)) && vm.alive && vm.key == *key);
            if world.vms[at].kind == VmKind::Base && !used && !lives {
                let key = key.clone();
                world.vms[at].alive = false;
                guests.push(world.vms[at].guest.take());
                world.tried.retain(|(vm, _), _| *vm != key);
            }
        }
        let lives = |id: &str| world.vms.iter().any(|vm| vm.alive && vm.id == id);
        world.shared.retain(|id, _| lives(id));
        let queues = &mut world.queues;
        world.queue_tokens.retain(|(id, _), token| lives(id) || queues.remove(token).is_none());
    }

    /// Calls the module as no proxy does: a callback out of its order, with any numbers, in the VM of the chain's first
    /// plugin. What it returned; `None` where it has no such callback, or its VM has trapped.
    ///
    /// # Panics
    /// Where there is no such chain or worker.
    pub fn call_out_of_order(&self, chain: &str, worker: usize, callback: Callback) -> Option<u64> {
        let root = *self.roots_for_stream(chain, Thread::Worker(worker)).first()?;
        let vm = self.0.borrow().roots[root].vm;
        match self.enter(vm, callback) {
            Entered::Returned { value, .. } => Some(value),
            Entered::Missing | Entered::Failed => None,
        }
    }

    // Time.

    /// Lets time pass: ticks, ends of calls and items of queues come in their order.
    pub fn advance(&self, time: Duration) {
        let until = self.now_ns().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        while let Some(at) = self.next_event().filter(|at| *at <= until) {
            self.happen(at);
        }
        self.0.borrow_mut().now_ns = until;
    }

    /// Lets time pass up to the end of the next call that will end; false where there is none.
    pub(crate) fn advance_to_next_end(&self) -> bool {
        let Some(at) = self.0.borrow().ends.keys().next().map(|(at, _)| *at) else { return false };
        self.advance(Duration::from_nanos(at.saturating_sub(self.now_ns())));
        true
    }

    fn next_event(&self) -> Option<u64> {
        let world = self.0.borrow();
        if !world.ready.is_empty() {
            return Some(world.now_ns);
        }
        let ticks = world.vms.iter().filter(|vm| vm.alive && !vm.failed).flat_map(|vm| vm.ticks.values());
        let next_tick = ticks.map(|(_, due)| *due).min();
        let next_end = world.ends.keys().next().map(|(at, _)| *at);
        [next_tick, next_end].into_iter().flatten().min()
    }

    fn happen(&self, at: u64) {
        let mut world = self.0.borrow_mut();
        world.now_ns = world.now_ns.max(at);
        let now = world.now_ns;
        if !world.ready.is_empty() {
            let ready = std::mem::take(&mut world.ready);
            drop(world);
            for (vm, context, token) in ready {
                self.enter(vm, Callback::QueueReady { context, token });
            }
            return;
        }
        if let Some(entry) = world.ends.first_entry()
            && entry.key().0 <= now
        {
            let ((_, id), end) = entry.remove_entry();
            drop(world);
            self.end(id, end);
            return;
        }
        let due = |vm: &Vm| vm.ticks.iter().find(|(_, (_, due))| *due <= now).map(|(context, _)| *context);
        let found = world
            .vms
            .iter()
            .enumerate()
            .filter(|(_, vm)| vm.alive && !vm.failed)
            .find_map(|(at, vm)| Some((at, due(vm)?)));
        if let Some((vm, context)) = found {
            if let Some((period, due)) = world.vms[vm].ticks.get_mut(&context) {
                *due = now + *period;
            }
            drop(world);
            self.enter(vm, Callback::Tick { context });
        }
    }

    fn end(&self, id: u64, end: CallEnd) {
        let found = {
            let mut world = self.0.borrow_mut();
            world.ends.retain(|(_, other), _| *other != id);
            let at = world.calls.iter().position(|call| call.id == id);
            let call = at.map(|at| world.calls.remove(at));
            call.map(|call| {
                let root = &mut world.roots[call.root];
                let counts = match &end {
                    CallEnd::Response(message) => [
                        message.headers.len(),
                        message.chunks.iter().map(Vec::len).sum(),
                        message.trailers.as_ref().map_or(0, Vec::len),
                    ],
                    CallEnd::Reset => [0; 3],
                };
                root.broken = end == CallEnd::Reset;
                root.answer = match end {
                    CallEnd::Response(mut message) => {
                        message.chunks = vec![message.chunks.concat()];
                        Some(message)
                    }
                    CallEnd::Reset => None,
                };
                (call.root, root.vm, root.context, call.token, counts.map(|count| count as u32))
            })
        };
        let Some((root, vm, context, token, [headers, body, trailers])) = found else { return };
        self.enter(vm, Callback::HttpCallResponse { context, token, headers, body, trailers });
        let root = &mut self.0.borrow_mut().roots[root];
        (root.answer, root.broken) = (None, false);
    }

    /// The time, in nanoseconds since 1970. It begins at 1 700 000 000 s.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.0.borrow().now_ns
    }

    // What plugins call.

    /// A cluster that plugins may call: after how long and how each call ends. `None`: never by itself, but its
    /// timeout may end it, or [`end_call`](Self::end_call).
    pub fn cluster(&self, name: &str, responder: impl Fn(&HttpCall) -> Option<(Duration, CallEnd)> + 'static) {
        self.0.borrow_mut().clusters.insert(name.to_owned(), Rc::new(responder));
    }

    /// The calls that are under way.
    #[must_use]
    pub fn calls(&self) -> Vec<HttpCall> {
        self.0.borrow().calls.clone()
    }

    /// Ends a call that is under way, now.
    pub fn end_call(&self, call: &HttpCall, end: CallEnd) {
        self.end(call.id, end);
    }

    /// A foreign function.
    pub fn foreign_function(&self, name: &str, run: impl Fn(&[u8]) -> Answer<Vec<u8>> + 'static) {
        self.0.borrow_mut().foreign.insert(name.as_bytes().to_vec(), Rc::new(run));
    }

    /// An attribute that is the same for all streams, such as `["node", "id"]`.
    pub fn set_property(&self, path: &[&str], value: impl Into<Value>) {
        let path = path.iter().map(|part| part.as_bytes().to_vec()).collect();
        self.0.borrow_mut().properties.insert(path, value.into().0);
    }

    /// From now on, another answer than the true one.
    pub fn fault(&self, fault: Fault) {
        self.0.borrow_mut().faults.push((fault, 0));
    }

    /// No more faults.
    pub fn clear_faults(&self) {
        self.0.borrow_mut().faults.clear();
    }

    /// The log level of the proxy: 0 trace to 5 critical. At first 2, info.
    pub fn set_log_level(&self, level: u32) {
        self.0.borrow_mut().log_level = level;
    }

    /// How much of a body a filter may keep: `per_connection_buffer_limit_bytes`, at first 1 MiB.
    pub fn set_buffer_limit(&self, bytes: usize) {
        self.0.borrow_mut().buffer_limit = bytes;
    }

    /// How much fuel a callback may burn before it traps: what stands for a loop without end.
    pub fn set_fuel_limit(&self, fuel: u64) {
        self.0.borrow_mut().fuel_limit = fuel;
    }

    // What came of it.

    /// The log so far.
    #[must_use]
    pub fn log(&self) -> Vec<LogLine> {
        self.0.borrow().log.clone()
    }

    /// A metric of the process, by the name that plugins gave it.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<Metric> {
        self.0.borrow().metrics.get(name).cloned()
    }

    /// All metrics.
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<String, Metric> {
        self.0.borrow().metrics.clone()
    }

    /// What stands under a key of shared data, with its number.
    #[must_use]
    pub fn shared_data(&self, vm_id: &str, key: &str) -> Option<(Vec<u8>, u32)> {
        self.0.borrow().shared.get(vm_id)?.get(key.as_bytes()).cloned()
    }

    /// All shared data of a `vm_id`.
    #[must_use]
    pub fn all_shared_data(&self, vm_id: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let world = self.0.borrow();
        let data = world.shared.get(vm_id).into_iter().flatten();
        data.map(|(key, (value, _))| (key.clone(), value.clone())).collect()
    }

    /// Another plugin writes under a key, whatever is there.
    pub fn set_shared_data(&self, vm_id: &str, key: &str, value: impl AsRef<[u8]>) {
        let mut world = self.0.borrow_mut();
        let cas = world.next_cas;
        world.next_cas += 1;
        let data = world.shared.entry(vm_id.to_owned()).or_default();
        data.insert(key.as_bytes().to_vec(), (value.as_ref().to_vec(), cas));
    }

    /// What modules cost so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.0.borrow().tally.clone()
    }

    /// The same, and counting begins anew.
    #[must_use]
    pub fn take_tally(&self) -> Tally {
        std::mem::take(&mut self.0.borrow_mut().tally)
    }

    /// Whether another proxy, that went through the same, is in the same state: log, metrics, shared data.
    /// Lines of the logs are compared as `said` reads them.
    ///
    /// # Errors
    /// The first thing in which they differ.
    pub fn same_as(&self, other: &Self, said: impl Fn(&str) -> String) -> Result<(), String> {
        let (one, two) = (self.0.borrow(), other.0.borrow());
        let lines = |log: &[LogLine]| -> Vec<LogLine> {
            log.iter().map(|line| LogLine { text: said(&line.text), ..line.clone() }).collect()
        };
        let (log, other) = (lines(&one.log), lines(&two.log));
        if log != other {
            let at = log.iter().zip(&other).position(|(one, two)| one != two);
            let at = at.unwrap_or(log.len().min(other.len()));
            return Err(format!("log line {at}: {:?}\n    and {:?}", log.get(at), other.get(at)));
        }
        if one.metrics != two.metrics {
            return Err(format!("metrics: {:#?}\n    and {:#?}", one.metrics, two.metrics));
        }
        if one.shared != two.shared {
            return Err(format!("shared data: {:?}\n    and {:?}", one.shared, two.shared));
        }
        Ok(())
    }

    /// The VMs that are there.
    #[must_use]
    pub fn vms(&self) -> Vec<VmState> {
        let world = self.0.borrow();
        let alive = world.vms.iter().enumerate().filter(|(_, vm)| vm.alive);
        alive
            .map(|(at, vm)| VmState {
                kind: vm.kind,
                id: vm.id.clone(),
                failed: vm.failed,
                roots: world.roots.iter().filter(|root| root.vm == at && root.state == RootState::Live).count(),
                streams: vm.contexts.values().filter(|ctx| matches!(ctx, Ctx::Stream { .. })).count(),
                pages: vm.pages,
            })
            .collect()
    }

    /// How often VMs were started again.
    #[must_use]
    pub fn reloads(&self) -> Reloads {
        self.0.borrow().reloads
    }
}
