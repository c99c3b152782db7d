//! What runs in the proxy: code, and how it is configured.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::rc::Rc;
use std::time::Duration;

use crate::Host;
use crate::abi::Callback;

/// Something that VMs are made from: a [`Module`](crate::Module), or native code that stands in for one.
pub trait Code {
    /// Two codes with the same identity share VMs.
    fn identity(&self) -> u64;

    /// Makes a VM and starts it (`_initialize`).
    ///
    /// # Errors
    /// Why the proxy would refuse it.
    fn start(&self, host: Host) -> Result<Box<dyn Guest>, String>;

    /// What a plugin of this code is handed as its configuration, where its user gave this: the same, unless the code
    /// stands in for other code.
    fn configuration(&self, given: &[u8]) -> Rc<[u8]> {
        Rc::from(given)
    }
}

/// The inside of a VM.
pub trait Guest {
    /// Whether it has this export; without, the proxy does not call it.
    fn has(&self, callback: &str) -> bool;

    /// Runs a callback. What it returns is 0 where the callback returns nothing.
    ///
    /// # Errors
    /// What trapped: the VM is lost.
    fn call(&mut self, callback: Callback) -> Result<u64, String>;

    /// Pages of memory, of 64 KiB.
    fn pages(&self) -> u64 {
        0
    }
}

/// What becomes of traffic when a plugin's VM has trapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FailurePolicy {
    /// 503, until the configuration changes. The default.
    #[default]
    Closed,
    /// It passes without the plugin.
    Open,
    /// 503 for what was in the VM; the next stream starts a new one.
    Reload,
}

/// A plugin's place in a chain: the `PluginConfig` of the proxy.
#[derive(Clone)]
#[must_use]
pub struct Plugin {
    pub(crate) code: Rc<dyn Code>,
    pub(crate) name: String,
    pub(crate) root_id: String,
    pub(crate) vm_id: String,
    pub(crate) vm_configuration: Rc<[u8]>,
    pub(crate) environment: Rc<[(String, String)]>,
    pub(crate) configuration: Rc<[u8]>,
    pub(crate) failure: FailurePolicy,
    pub(crate) backoff: Duration,
    pub(crate) stop_iteration: bool,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).field("vm_id", &self.vm_id).finish_non_exhaustive()
    }
}

impl Plugin {
    /// A plugin without configuration.
    pub fn new(name: &str, code: &Rc<dyn Code>) -> Self {
        Self {
            code: Rc::clone(code),
            name: name.to_owned(),
            root_id: String::new(),
            vm_id: String::new(),
            vm_configuration: Rc::from([]),
            environment: Rc::from([]),
            configuration: code.configuration(&[]),
            failure: FailurePolicy::Closed,
            backoff: Duration::from_secs(1),
            stop_iteration: false,
        }
    }

    /// Its configuration.
    pub fn configuration(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.configuration = self.code.configuration(bytes.as_ref());
        self
    }

    /// `root_id`.
    pub fn root_id(mut self, id: &str) -> Self {
        self.root_id = id.to_owned();
        self
    }

    /// `vm_id`: plugins of the same code and `vm_id` share VMs, and all of the same `vm_id` share data.
    pub fn vm_id(mut self, id: &str) -> Self {
        self.vm_id = id.to_owned();
        self
    }

    /// The VM's configuration.
    pub fn vm_configuration(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.vm_configuration = Rc::from(bytes.as_ref());
        self
    }

    /// An environment variable of the VM.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment = self.environment.iter().cloned().chain([(name.to_owned(), value.to_owned())]).collect();
        self
    }

    /// `failure_policy`.
    pub fn failure_policy(mut self, policy: FailurePolicy) -> Self {
        self.failure = policy;
        self
    }

    /// `reload_config.backoff.base_interval`: how long after its start a VM that traps stays dead.
    pub fn reload_backoff(mut self, interval: Duration) -> Self {
        self.backoff = interval;
        self
    }

    /// `allow_on_headers_stop_iteration`: a pause at headers does not stop the body callbacks.
    pub fn allow_on_headers_stop_iteration(mut self) -> Self {
        self.stop_iteration = true;
        self
    }

    /// Plugins that have the same share a VM on each thread.
    pub(crate) fn vm_key(&self) -> String {
        hash((&self.vm_id, &self.vm_configuration, &self.environment, self.code.identity()))
    }

    /// Plugins of one VM that have the same are one, with one root context.
    pub(crate) fn key(&self) -> String {
        hash((&self.name, &self.root_id, &self.configuration, self.failure, self.stop_iteration))
    }
}

fn hash(value: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
