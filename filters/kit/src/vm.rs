//! One VM of the proxy: its plugins, their requests in flight, and the way of a request through a filter.

use crate::prelude::*;
use crate::{
    Answer, Body, Bytes, Common, Context, Filter, Flow, Headers, Host, Metrics, Pass, Phases, Refusal, Rng,
    RootContext, Status, config, headers::Edits, host::Map,
};
use alloc::rc::Rc;
use core::{
    cell::RefCell,
    hash::{BuildHasherDefault, Hasher},
};
use hashbrown::HashMap;

/// A VM that runs filter `F`. [`export!`](crate::export) makes one per module and hands it the proxy's callbacks; tests
/// make one and play the proxy.
///
/// Contexts that nobody announced, phases that come twice, late or never, and a host that fails each call are all taken
/// as they come: the request goes on.
pub struct Vm<F: Filter>(RefCell<Option<Inner<F>>>);

struct Inner<F: Filter> {
    roots: Vec<(u32, Rc<Root<F>>)>,
    streams: HashMap<u32, Stream<F>, BuildHasherDefault<IdHasher>>,
    edits: Edits,
    tools: Tools,
}

/// A plugin under one configuration. A change of configuration makes a new one; the old one lives as long as the
/// requests that began with it.
struct Root<F: Filter> {
    plugin: Vec<u8>,
    policy: F,
    state: Rc<RefCell<F::State>>,
}

struct Stream<F: Filter> {
    root: Rc<Root<F>>,
    own: F::Stream,
    common: Common,
}

/// What a VM has one of.
struct Tools {
    rng: Rng,
    metrics: Metrics,
}

/// What the proxy is to do with the request after a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Let it go on.
    Continue,
    /// Stop it here: a reply was sent.
    Stop,
}

impl<F: Filter> Inner<F> {
    fn new(host: &dyn Host) -> Self {
        Self {
            roots: Vec::new(),
            streams: HashMap::default(),
            edits: Edits::default(),
            tools: Tools { rng: Rng::new(host.seed()), metrics: Metrics::default() },
        }
    }

    /// Runs what belongs to no request of plugin `id`.
    fn at_root(&mut self, host: &dyn Host, id: u32, run: impl FnOnce(&F, &mut RootContext<'_, F>)) {
        let Self { roots, tools, .. } = self;
        if let Some((_, root)) = roots.iter().find(|(root, _)| *root == id)
            && let Ok(mut state) = root.state.try_borrow_mut()
        {
            let (rng, metrics) = (&mut tools.rng, &mut tools.metrics);
            run(&root.policy, &mut RootContext { host, rng, metrics, state: &mut *state });
        }
    }

    /// The least of what its plugins allow: they share one VM, and which was configured last is chance.
    fn limit_series(&mut self) {
        if let Some(max) = self.roots.iter().filter_map(|(_, root)| root.policy.max_series()).min() {
            self.tools.metrics.limit(max);
        }
    }
}

impl<F: Filter> Default for Vm<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Filter> Vm<F> {
    /// A VM in which nothing has happened.
    pub const fn new() -> Self {
        Self(RefCell::new(None))
    }

    /// A plugin (`parent` 0) or a request of one begins.
    pub fn create_context(&self, host: &dyn Host, id: u32, parent: u32) {
        let Ok(mut inner) = self.0.try_borrow_mut() else { return };
        let inner = inner.get_or_insert_with(|| Inner::new(host));
        if let Some((_, root)) = inner.roots.iter().find(|(root, _)| *root == parent) {
            inner
                .streams
                .insert(id, Stream { root: Rc::clone(root), own: F::Stream::default(), common: Common::default() });
        }
    }

    /// The configuration of a plugin is there. False refuses it, and then the proxy goes on with what it had.
    pub fn configure(&self, host: &dyn Host, id: u32) -> bool {
        let text = match host.configuration() {
            // No configuration is an empty one.
            Err(Status::NotFound) => Ok(Bytes::default()),
            text => text.map_err(|status| Refusal::at("", &format!("could not be read: {status}"))),
        };
        let policy = match text.and_then(|text| config::parse(&text)).and_then(F::new) {
            Ok(policy) => policy,
            Err(refusal) => {
                log::error!("{}: configuration refused {refusal}", F::NAME);
                return false;
            }
        };
        // A module without phases is told neither of requests nor of its plugins' ends: there is nothing to keep.
        if F::PHASES == Phases::NONE {
            return true;
        }
        let Ok(mut inner) = self.0.try_borrow_mut() else { return false };
        let inner = inner.get_or_insert_with(|| Inner::new(host));
        for key in F::SHARED {
            // Where the proxy has no such thing the last value stands, which says the same.
            let _ = host.declare_once(key);
        }
        let plugin = host.property(&["plugin_name"]).map(|name| name.to_vec()).unwrap_or_default();
        // What traffic did goes over to the new configuration of the same plugin.
        let state = inner.roots.iter().find(|(_, root)| root.plugin == plugin).map(|(_, root)| Rc::clone(&root.state));
        let root = Root { plugin, policy, state: state.unwrap_or_default() };
        inner.roots.retain(|(root, _)| *root != id);
        inner.roots.push((id, Rc::new(root)));
        inner.limit_series();
        inner.at_root(host, id, F::configured);
        if F::PHASES.has(Phases::TICK)
            && let Some((_, root)) = inner.roots.last()
            && root.policy.tick_ms() > 0
        {
            // Without it the filter goes on with what it has.
            let _ = host.set_tick(root.policy.tick_ms());
        }
        true
    }

    /// Time has passed for a plugin.
    pub fn tick(&self, host: &dyn Host, id: u32) {
        if let Ok(mut inner) = self.0.try_borrow_mut()
            && let Some(inner) = inner.as_mut()
        {
            inner.at_root(host, id, F::tick);
        }
    }

    /// A call of a plugin has ended, with so many headers and bytes.
    pub fn answered(&self, host: &dyn Host, id: u32, call: u32, (pairs, size): (usize, usize)) {
        if let Ok(mut inner) = self.0.try_borrow_mut()
            && let Some(inner) = inner.as_mut()
        {
            let answer = Answer::new(host, pairs, size);
            inner.at_root(host, id, |filter, cx| filter.answered(cx, call, &answer));
        }
    }

    /// The headers of the request are there.
    pub fn request_headers(&self, host: &dyn Host, id: u32, ends: bool) -> Next {
        self.headers_phase(host, id, (Map::Request, ends), F::request_headers)
    }

    /// The headers of the response are there.
    pub fn response_headers(&self, host: &dyn Host, id: u32, ends: bool) -> Next {
        self.headers_phase(host, id, (Map::Response, ends), F::response_headers)
    }

    #[inline]
    fn headers_phase(
        &self,
        host: &dyn Host,
        id: u32,
        (map, ends): (Map, bool),
        method: fn(&F, &mut Context<'_, F>, &mut Headers<'_>) -> Flow,
    ) -> Next {
        let flow = self.phase(host, id, |filter, cx, edits| {
            let mut headers = Headers::new(host, map, ends, edits);
            let flow = method(filter, cx, &mut headers);
            headers.flush();
            flow
        });
        match flow {
            // A reply that the host does not take lets the request go on: a filter is no reason for an outage.
            Some(Flow::Reply(reply)) if host.send_reply(&reply).is_ok() => Next::Stop,
            _ => Next::Continue,
        }
    }

    /// A part of the request's body passes.
    pub fn request_body(&self, host: &dyn Host, id: u32, size: usize, last: bool) -> Pass {
        let body = Body::new(host, Map::Request, size, last);
        self.phase(host, id, |filter, cx, _| filter.request_body(cx, &body)).unwrap_or_default()
    }

    /// A part of the response's body passes.
    pub fn response_body(&self, host: &dyn Host, id: u32, size: usize, last: bool) -> Pass {
        let body = Body::new(host, Map::Response, size, last);
        self.phase(host, id, |filter, cx, _| filter.response_body(cx, &body)).unwrap_or_default()
    }

    /// The request's trailers are there.
    pub fn request_trailers(&self, host: &dyn Host, id: u32) {
        let body = Body::new(host, Map::Request, 0, true);
        self.phase(host, id, |filter, cx, _| filter.request_trailers(cx, &body));
    }

    /// The response's trailers are there.
    pub fn response_trailers(&self, host: &dyn Host, id: u32) {
        let body = Body::new(host, Map::Response, 0, true);
        self.phase(host, id, |filter, cx, _| filter.response_trailers(cx, &body));
    }

    /// A TCP connection was accepted.
    pub fn connection(&self, host: &dyn Host, id: u32) {
        self.phase(host, id, |filter, cx, _| filter.connection(cx));
    }

    /// The request or connection is over.
    pub fn log(&self, host: &dyn Host, id: u32) {
        self.phase(host, id, |filter, cx, edits| {
            // Nothing of it is changed any more, so there is nothing to note.
            let mut none = Edits::default();
            let request = Headers::new(host, Map::Request, true, edits);
            filter.log(cx, &request, &Headers::new(host, Map::Response, true, &mut none));
        });
    }

    /// Runs one phase of request `id`; `None` where there is no such request.
    #[inline]
    fn phase<R>(
        &self,
        host: &dyn Host,
        id: u32,
        run: impl FnOnce(&F, &mut Context<'_, F>, &mut Edits) -> R,
    ) -> Option<R> {
        let mut inner = self.0.try_borrow_mut().ok()?;
        let Inner { streams, edits, tools, .. } = inner.as_mut()?;
        let Stream { root, own, common } = streams.get_mut(&id)?;
        let mut state = root.state.try_borrow_mut().ok()?;
        common.next();
        let (rng, metrics, state) = (&mut tools.rng, &mut tools.metrics, &mut *state);
        let mut cx = Context { host, rng, metrics, state, stream: own, common };
        Some(run(&root.policy, &mut cx, edits))
    }

    /// A request or a plugin is gone.
    pub fn delete_context(&self, id: u32) {
        if let Ok(mut inner) = self.0.try_borrow_mut()
            && let Some(inner) = inner.as_mut()
            && inner.streams.remove(&id).is_none()
        {
            inner.roots.retain(|(root, _)| *root != id);
            inner.limit_series();
        }
    }

    /// Requests and plugins that the VM holds something of; both go back to what they were when traffic ends.
    pub fn held(&self) -> (usize, usize) {
        self.0
            .try_borrow()
            .ok()
            .and_then(|inner| inner.as_ref().map(|i| (i.streams.len(), i.roots.len())))
            .unwrap_or_default()
    }
}

/// Context ids are numbers that the host counts up: spread by one multiplication (Fibonacci hashing), no seed.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }
    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}
