//! What the host calls, and what a VM remembers from one callback to the next.
#![allow(unsafe_code, reason = "exports symbols")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::rc::Rc;

use serde_json::{Map, Value, json};

use crate::abi;
use crate::steps::{Run, shown};

/// Levels and buffers, as the ABI numbers them.
const WARN: u32 = 3;
const VM_CONFIGURATION: u32 = 6;
const PLUGIN_CONFIGURATION: u32 = 7;

thread_local! {
    static VM: RefCell<Vm> = RefCell::new(Vm::new());
}

/// What the VM remembers.
pub(crate) struct Vm {
    tag: u32,
    contexts: BTreeMap<u32, Context>,
    /// What `count` counts.
    pub(crate) counters: BTreeMap<String, u64>,
    /// The last id of each metric.
    pub(crate) metrics: BTreeMap<String, u32>,
    /// Which context made which HTTP call.
    pub(crate) callers: BTreeMap<u32, u32>,
    /// The number that came with the last shared value.
    pub(crate) cas: u32,
    /// The last queue.
    pub(crate) queue: u32,
    /// The last stream that was created.
    pub(crate) stream: u32,
}

struct Context {
    root: u32,
    script: Rc<Value>,
    /// How often each callback was called.
    calls: BTreeMap<&'static str, u64>,
}

impl Vm {
    fn new() -> Self {
        Self {
            // 32 bits, which every reader of JSON takes as they are.
            tag: RandomState::new().hash_one(0) as u32,
            contexts: BTreeMap::new(),
            counters: BTreeMap::new(),
            metrics: BTreeMap::new(),
            callers: BTreeMap::new(),
            cas: 0,
            queue: 0,
            stream: 0,
        }
    }
}

/// No hostcall may happen inside: the host may come back into the VM before it ends.
pub(crate) fn vm<T>(with: impl FnOnce(&mut Vm) -> T) -> T {
    VM.with_borrow_mut(with)
}

fn configuration(buffer: u32) -> Rc<Value> {
    let (_, text) = abi::get_buffer(buffer, 0, usize::MAX);
    Rc::new(serde_json::from_slice(&text).unwrap_or_else(|_| json!({})))
}

/// Runs the steps of a callback and logs what came of them.
fn run(callback: &'static str, context: u32, args: &[u32], returns: Option<u32>) -> u32 {
    match callback {
        "context_create" => create(context, args.first().copied().unwrap_or_default()),
        "vm_start" => script(context, configuration(VM_CONFIGURATION)),
        "configure" => script(context, configuration(PLUGIN_CONFIGURATION)),
        _ => {}
    }
    let (tag, root, script, calls) = vm(|vm| match vm.contexts.get_mut(&context) {
        Some(known) => {
            let calls = known.calls.entry(callback).or_default();
            *calls += 1;
            (vm.tag, known.root, Rc::clone(&known.script), *calls)
        }
        None => (vm.tag, 0, Rc::new(json!({})), 1),
    });
    let named = script.get("name").cloned().unwrap_or_default();
    let line = move |steps: &[Value], returned: Option<u32>| {
        let mut line = Map::new();
        line.insert("cb".to_owned(), callback.into());
        line.insert("vm".to_owned(), tag.into());
        line.insert("cx".to_owned(), context.into());
        line.insert("root".to_owned(), root.into());
        line.insert("name".to_owned(), named.clone());
        line.insert("args".to_owned(), args.into());
        line.insert("steps".to_owned(), steps.into());
        if let Some(returned) = returned {
            line.insert("returned".to_owned(), returned.into());
        }
        abi::log(WARN, format!("probe {}", Value::Object(line)).as_bytes());
    };
    let mut run = Run { context, root, calls, args, done: Vec::new(), returned: None, log: &line };
    if let Some(steps) = script.get(callback) {
        run.steps(steps);
    }
    let returned = returns.map(|otherwise| run.returned.unwrap_or(otherwise));
    line(&run.done, returned);
    if callback == "delete" {
        vm(|vm| vm.contexts.remove(&context));
    }
    returned.unwrap_or_default()
}

fn create(context: u32, parent: u32) {
    vm(|vm| {
        let script = vm.contexts.get(&parent).map_or_else(|| Rc::new(json!({})), |root| Rc::clone(&root.script));
        let root = if parent == 0 { context } else { parent };
        if parent != 0 {
            vm.stream = context;
        }
        vm.contexts.insert(context, Context { root, script, calls: BTreeMap::new() });
    });
}

fn script(root: u32, script: Rc<Value>) {
    vm(|vm| {
        let known = vm.contexts.entry(root).or_insert_with(|| Context {
            root,
            script: Rc::clone(&script),
            calls: BTreeMap::new(),
        });
        known.script = script;
    });
}

/// The callbacks: exported name, the name in scripts, the arguments behind the context, and what is returned unless a
/// step says otherwise.
macro_rules! callbacks {
    ($($export:ident = $name:literal ($($arg:ident),*) $(-> $returns:literal)?;)*) => { $(
        #[unsafe(no_mangle)]
        extern "C" fn $export(context: u32 $(, $arg: u32)*) $(-> callbacks!(@type $returns))? {
            callbacks!(@run $name, context, [$($arg),*] $(, $returns)?)
        }
    )* };
    (@type $returns:literal) => { u32 };
    (@run $name:literal, $context:ident, $args:expr) => { { run($name, $context, &$args, None); } };
    (@run $name:literal, $context:ident, $args:expr, $returns:literal) => { run($name, $context, &$args, Some($returns)) };
}

callbacks! {
    proxy_on_context_create = "context_create"(parent);
    proxy_on_vm_start = "vm_start"(size) -> 1;
    proxy_on_configure = "configure"(size) -> 1;
    proxy_on_tick = "tick"();
    proxy_on_queue_ready = "queue_ready"(token);
    proxy_on_http_call_response = "http_call_response"(token, headers, body, trailers);
    proxy_on_foreign_function = "foreign_function"(function, size);
    proxy_on_new_connection = "new_connection"() -> 0;
    proxy_on_downstream_data = "downstream_data"(size, end) -> 0;
    proxy_on_downstream_connection_close = "downstream_connection_close"(by);
    proxy_on_upstream_data = "upstream_data"(size, end) -> 0;
    proxy_on_upstream_connection_close = "upstream_connection_close"(by);
    proxy_on_request_headers = "request_headers"(count, end) -> 0;
    proxy_on_request_body = "request_body"(size, end) -> 0;
    proxy_on_request_trailers = "request_trailers"(count) -> 0;
    proxy_on_response_headers = "response_headers"(count, end) -> 0;
    proxy_on_response_body = "response_body"(size, end) -> 0;
    proxy_on_response_trailers = "response_trailers"(count) -> 0;
    proxy_on_done = "done"() -> 1;
    proxy_on_log = "log"();
    proxy_on_delete = "delete"();
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn _initialize() {
    abi::initialize();
}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    abi::allocate(size)
}

/// A mistake in a script shall be read in the log, not be a trap that a test might take for one that it asked for.
pub(crate) fn complain(step: &Value) -> Value {
    json!(["bad step", shown(step.to_string().as_bytes())])
}
