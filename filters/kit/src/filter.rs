//! What a filter is.

use crate::prelude::*;
use crate::{Answer, Body, Headers, Host, Metric, Metrics, Pass, Reply, Rng};
use core::cell::Cell;

/// A filter: what the operator said, compiled, and one method per phase of a request.
///
/// The value itself is *policy*: made from the configuration, never changed after. What traffic did lives in
/// [`Filter::State`], which outlives every change of configuration, and in [`Filter::Stream`], one per request. A
/// request that is under way when the configuration changes ends with the policy that it began with.
///
/// Every method has a default that costs nothing, and a phase that is not in [`Filter::PHASES`] is not even exported
/// from the module, so that the proxy does not enter the VM for it.
pub trait Filter: Sized + 'static {
    /// `trace-id`: in logs, in keys of shared data, as the module's name; with `_` for `-`, its key in a composed module.
    const NAME: &'static str;

    /// The phases whose methods the filter implements.
    const PHASES: Phases;

    /// Filter state that several filters may set to say the same: the first value stands.
    const SHARED: &'static [&'static str] = &[];

    /// What the operator writes. Derive `serde::Deserialize` with `deny_unknown_fields` and defaults.
    type Config: serde::de::DeserializeOwned;

    /// What traffic did: one per plugin name and VM, kept when the configuration changes, lost when the VM is.
    type State: Default + 'static;

    /// What is kept of one request, from its first phase to its log.
    type Stream: Default + 'static;

    /// Compiles the configuration. Pure: the proxy also runs it in a throw-away VM to see whether it is right.
    fn new(config: Self::Config) -> Result<Self, Refusal>;

    /// How many series its VM may have: past that, one more per metric counts the rest. Of several plugins in a VM the
    /// least counts. `None`: it makes no series, and limits nobody else's.
    fn max_series(&self) -> Option<usize> {
        Some(crate::MAX_SERIES)
    }

    /// Every metric that it counts with: what documentation and the proxy's tag extraction are generated from.
    fn metrics() -> Vec<&'static Metric> {
        Vec::new()
    }

    /// The configuration was taken, and from now on it is the plugin's. Also in the throw-away VM in which the proxy
    /// tries it: nothing outside the VM may change by it.
    fn configured(&self, _cx: &mut RootContext<'_, Self>) {}

    /// How often [`Filter::tick`] comes, in milliseconds; 0 for never.
    fn tick_ms(&self) -> u32 {
        0
    }

    /// Time has passed: on each worker, and on the proxy's main thread, which has no requests. Of several configurations that
    /// a plugin has at once each gets it: one that was replaced, until its last request has ended.
    fn tick(&self, _cx: &mut RootContext<'_, Self>) {}

    /// A call that [`Host::call`] began has ended. Other filters of the module may have made it: theirs have other numbers.
    fn answered(&self, _cx: &mut RootContext<'_, Self>, _call: u32, _answer: &Answer<'_>) {}

    /// The request's headers are there, and nothing has gone upstream.
    fn request_headers(&self, _cx: &mut Context<'_, Self>, _headers: &mut Headers<'_>) -> Flow {
        Flow::Continue
    }

    /// The response's headers are there, and nothing has gone to the client. Also for local replies, and then perhaps
    /// with no request phase before it.
    fn response_headers(&self, _cx: &mut Context<'_, Self>, _headers: &mut Headers<'_>) -> Flow {
        Flow::Continue
    }

    /// A part of the request's body passes. One that a filter in front held back comes as a whole.
    fn request_body(&self, _cx: &mut Context<'_, Self>, _body: &Body<'_>) -> Pass {
        Pass::On
    }

    /// A part of the response's body passes.
    fn response_body(&self, _cx: &mut Context<'_, Self>, _body: &Body<'_>) -> Pass {
        Pass::On
    }

    /// The request has trailers, and no part of its body was the last: `body` is what was held of it, and goes on now.
    fn request_trailers(&self, _cx: &mut Context<'_, Self>, _body: &Body<'_>) {}

    /// The same of the response.
    fn response_trailers(&self, _cx: &mut Context<'_, Self>, _body: &Body<'_>) {}

    /// A TCP connection was accepted: the module stands as a network filter. It ends with [`Filter::log`].
    fn connection(&self, _cx: &mut Context<'_, Self>) {}

    /// The request or connection is over; what is set now still reaches the access log. May come with no phase before it (a
    /// filter in front answered). `request` holds what went upstream, `response` what went to the client; a connection
    /// has neither. Changes to them do nothing any more.
    fn log(&self, _cx: &mut Context<'_, Self>, _request: &Headers<'_>, _response: &Headers<'_>) {}
}

/// What a phase method works with.
pub struct Context<'a, F: Filter> {
    /// The proxy.
    pub host: &'a dyn Host,
    /// The VM's generator.
    pub rng: &'a mut Rng,
    /// The VM's series.
    pub metrics: &'a mut Metrics,
    /// What traffic did so far.
    pub state: &'a mut F::State,
    /// What is kept of this request.
    pub stream: &'a mut F::Stream,
    /// What the filters of a module have in common of this request.
    pub common: &'a Common,
}

impl<F: Filter> Context<'_, F> {
    /// Nanoseconds since 1970, of this callback: the same for all filters, and asked of the proxy once. 0: it does not tell.
    pub fn now_ns(&self) -> u64 {
        if self.common.now_ns.get() == 0 {
            self.common.now_ns.set(self.host.now_ns());
        }
        self.common.now_ns.get()
    }

    /// Sets filter state that is in [`Filter::SHARED`], unless a filter of this module did already for this request.
    pub fn share(&self, key: &'static str, value: &[u8]) {
        // What cannot be set is missing from the log, unless the next filter has more luck; the request is not held up for it.
        if self.common.shared.get() != Some(key) && self.host.set_filter_state(key, value).is_ok() {
            self.common.shared.set(Some(key));
        }
    }
}

/// What filters of one module need not ask or say twice.
#[derive(Debug, Default)]
pub struct Common {
    now_ns: Cell<u64>,
    /// The last key that was shared; several are seldom, and then the proxy sees to it.
    shared: Cell<Option<&'static str>>,
}

impl Common {
    /// For the next callback of the same request.
    pub(crate) fn next(&self) {
        self.now_ns.set(0);
    }
}

/// What a filter works with where there is no request.
pub struct RootContext<'a, F: Filter> {
    /// The proxy.
    pub host: &'a dyn Host,
    /// The VM's generator.
    pub rng: &'a mut Rng,
    /// The VM's series.
    pub metrics: &'a mut Metrics,
    /// What traffic did so far.
    pub state: &'a mut F::State,
}

/// What happens to the request after a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// It goes on.
    #[default]
    Continue,
    /// It ends here with this reply. Filters further on do not see this phase.
    Reply(Reply),
}

/// A set of phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phases(u16);

impl Phases {
    /// None.
    pub const NONE: Self = Self(0);
    /// [`Filter::request_headers`].
    pub const REQUEST_HEADERS: Self = Self(1);
    /// [`Filter::response_headers`].
    pub const RESPONSE_HEADERS: Self = Self(2);
    /// [`Filter::log`].
    pub const LOG: Self = Self(4);
    /// [`Filter::connection`].
    pub const CONNECTION: Self = Self(8);

    /// [`Filter::request_body`].
    pub const REQUEST_BODY: Self = Self(16);
    /// [`Filter::response_body`].
    pub const RESPONSE_BODY: Self = Self(32);
    /// [`Filter::request_trailers`].
    pub const REQUEST_TRAILERS: Self = Self(64);
    /// [`Filter::response_trailers`].
    pub const RESPONSE_TRAILERS: Self = Self(128);
    /// [`Filter::tick`].
    pub const TICK: Self = Self(256);
    /// [`Filter::answered`].
    pub const ANSWERED: Self = Self(512);

    /// Both together.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As bytes, for the mark that [`export!`](crate::export) leaves in the module.
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_le_bytes()
    }

    /// Reads [`Phases::bytes`] back.
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_le_bytes(bytes))
    }
}

/// Why a configuration was refused: where, what is wrong, and what would be right. A pointer, since every step of reading
/// hands on what may be one, and hardly ever is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(Box<Problem>);

/// What a [`Refusal`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `sampling.ratio`, `inject[2]`; empty for the whole.
    pub path: String,
    /// What is wrong and what would be right, in one line.
    pub problem: String,
}

impl Refusal {
    /// A refusal of the value at `path`.
    #[cold]
    #[inline(never)]
    pub fn at(path: &str, problem: &str) -> Self {
        Self(Box::new(Problem { path: path.into(), problem: problem.into() }))
    }

    /// The same, seen from the configuration that `field` is a part of.
    #[must_use]
    #[cold]
    #[inline(never)]
    pub fn within(mut self, field: &str) -> Self {
        let joint = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.0.path = [field, joint, &self.path].concat();
        self
    }

    /// The same, seen from the list whose item `index` is.
    #[must_use]
    #[cold]
    #[inline(never)]
    pub fn within_item(self, index: usize) -> Self {
        self.within(&format!("[{index}]"))
    }
}

impl core::ops::Deref for Refusal {
    type Target = Problem;
    fn deref(&self) -> &Problem {
        &self.0
    }
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // A path is made of keys that somebody wrote: it stays on its line, and short.
        let path: String = self.path.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect();
        let path = if path.is_empty() { "(top level)" } else { &path };
        write!(f, "at `{path}`: {}", self.problem)
    }
}

impl core::error::Error for Refusal {}
