//! A proxy in memory, to test filters with: no sockets, no clock of its own, every hostcall made to fail at will.
//!
//! It stands beside the tests on a real Envoy, not in their place.

use crate::prelude::*;
use crate::{
    Filter, Next, Vm,
    headers::encode,
    host::{Bytes, Host, Map, MetricKind, Reply, Status},
};
use alloc::collections::{BTreeMap, BTreeSet};
use core::cell::{Cell, RefCell};

/// Header pairs as they stand in a map.
pub type Pairs = Vec<(String, Vec<u8>)>;

/// Pairs of text, for tests that need no odd bytes.
pub fn pairs(text: &[(&str, &str)]) -> Pairs {
    text.iter().map(|(name, value)| (String::from(*name), value.as_bytes().to_vec())).collect()
}

/// The host: what a filter asks for is in the public fields, and so is what it did.
#[derive(Default)]
pub struct FakeHost {
    /// What [`Host::now_ns`] says.
    pub now_ns: Cell<u64>,
    /// Attributes, by their path joined with dots.
    pub properties: RefCell<BTreeMap<String, Vec<u8>>>,
    /// Filter state of the request, without `wasm.`.
    pub filter_state: RefCell<BTreeMap<String, Vec<u8>>>,
    /// The store that all VMs share, with the number of writes of each key.
    pub shared: RefCell<BTreeMap<String, (Vec<u8>, u32)>>,
    /// The plugin's configuration.
    pub configuration: RefCell<Vec<u8>>,
    /// The headers of the request in hand.
    pub request: RefCell<Pairs>,
    /// The headers of its response.
    pub response: RefCell<Pairs>,
    /// What the filter answered with.
    pub reply: RefCell<Option<Reply>>,
    metrics: RefCell<Vec<(String, i64)>>,
    calls: RefCell<BTreeMap<&'static str, usize>>,
    failing: RefCell<BTreeSet<&'static str>>,
    all_fail: Cell<bool>,
}

impl FakeHost {
    /// From now on this call fails.
    pub fn fail(&self, call: &'static str) {
        self.failing.borrow_mut().insert(call);
    }

    /// From now on every call fails.
    pub fn fail_all(&self) {
        self.all_fail.set(true);
    }

    /// How often a call was made, failed ones included.
    pub fn calls(&self, call: &str) -> usize {
        self.calls.borrow().get(call).copied().unwrap_or(0)
    }

    /// Every call made so far, with its number.
    pub fn all_calls(&self) -> BTreeMap<&'static str, usize> {
        self.calls.borrow().clone()
    }

    /// The value of a series, by its full name.
    pub fn metric(&self, series: &str) -> Option<i64> {
        self.metrics.borrow().iter().find(|(name, _)| name == series).map(|(_, value)| *value)
    }

    /// Filter state as text.
    pub fn state(&self, key: &str) -> Option<String> {
        self.filter_state.borrow().get(key).map(|value| String::from_utf8_lossy(value).into_owned())
    }

    fn call(&self, name: &'static str) -> Result<(), Status> {
        let mut calls = self.calls.borrow_mut();
        let count = calls.entry(name).or_default();
        *count = count.saturating_add(1);
        if self.all_fail.get() || self.failing.borrow().contains(name) { Err(Status::Other(10)) } else { Ok(()) }
    }

    fn map(&self, map: Map) -> &RefCell<Pairs> {
        match map {
            Map::Request => &self.request,
            Map::Response => &self.response,
        }
    }
}

impl Host for FakeHost {
    fn now_ns(&self) -> u64 {
        self.call("now_ns").map(|()| self.now_ns.get()).unwrap_or(0)
    }
    fn seed(&self) -> [u8; 32] {
        let _ = self.call("seed");
        [7; 32]
    }
    fn property(&self, path: &[&str]) -> Result<Bytes, Status> {
        self.call("property")?;
        self.properties.borrow().get(&path.join(".")).cloned().map(Bytes::from).ok_or(Status::NotFound)
    }
    fn set_filter_state(&self, key: &str, value: &[u8]) -> Result<(), Status> {
        self.call("set_filter_state")?;
        self.filter_state.borrow_mut().insert(key.into(), value.to_vec());
        Ok(())
    }
    fn shared_data(&self, key: &str) -> Result<(Bytes, u32), Status> {
        self.call("shared_data")?;
        self.shared.borrow().get(key).map(|(v, cas)| (v.clone().into(), *cas)).ok_or(Status::NotFound)
    }
    fn set_shared_data(&self, key: &str, value: &[u8], cas: u32) -> Result<(), Status> {
        self.call("set_shared_data")?;
        let mut shared = self.shared.borrow_mut();
        let entry = shared.entry(key.into()).or_default();
        // Like the real one: `cas` counts only where there is a value.
        if cas != 0 && entry.1 != 0 && entry.1 != cas {
            return Err(Status::CasMismatch);
        }
        *entry = (value.to_vec(), entry.1.wrapping_add(1));
        Ok(())
    }
    fn define_metric(&self, _: MetricKind, name: &str) -> Result<u32, Status> {
        self.call("define_metric")?;
        let mut metrics = self.metrics.borrow_mut();
        metrics.push((name.into(), 0));
        u32::try_from(metrics.len().saturating_sub(1)).map_err(|_| Status::BadArgument)
    }
    fn add_metric(&self, id: u32, delta: i64) -> Result<(), Status> {
        self.call("add_metric")?;
        let mut metrics = self.metrics.borrow_mut();
        let series = usize::try_from(id).ok().and_then(|id| metrics.get_mut(id)).ok_or(Status::NotFound)?;
        series.1 = series.1.saturating_add(delta);
        Ok(())
    }
    fn record_metric(&self, id: u32, _: u64) -> Result<(), Status> {
        self.call("record_metric")?;
        self.add_metric(id, 1)
    }
    fn configuration(&self) -> Result<Bytes, Status> {
        self.call("configuration")?;
        Ok(self.configuration.borrow().clone().into())
    }
    fn header_pairs(&self, map: Map) -> Result<Bytes, Status> {
        self.call("header_pairs")?;
        Ok(encode(&self.map(map).borrow()).into())
    }
    fn add_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status> {
        self.call("add_header")?;
        self.map(map).borrow_mut().push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
        Ok(())
    }
    fn replace_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status> {
        self.call("replace_header")?;
        let mut pairs = self.map(map).borrow_mut();
        pairs.retain(|(n, _)| n.as_bytes() != name);
        pairs.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
        Ok(())
    }
    fn remove_header(&self, map: Map, name: &[u8]) -> Result<(), Status> {
        self.call("remove_header")?;
        self.map(map).borrow_mut().retain(|(n, _)| n.as_bytes() != name);
        Ok(())
    }
    fn send_reply(&self, reply: &Reply) -> Result<(), Status> {
        self.call("send_reply")?;
        self.reply.replace(Some(reply.clone()));
        Ok(())
    }
}

/// A VM with one plugin in it, and the part of the proxy.
pub struct Proxy<F: Filter> {
    /// The host that the filter sees.
    pub host: FakeHost,
    /// The VM, to call phases out of order.
    pub vm: Vm<F>,
    root: u32,
    next: u32,
}

impl<F: Filter> Proxy<F> {
    /// A proxy with this configuration; `None` where the filter refuses it.
    pub fn start(configuration: &str) -> Option<Self> {
        let mut proxy = Self { host: FakeHost::default(), vm: Vm::new(), root: 0, next: 1 };
        proxy.host.now_ns.set(1_700_000_000_000_000_000);
        proxy.host.properties.borrow_mut().insert("plugin_name".into(), b"test".to_vec());
        proxy.configure(configuration).then_some(proxy)
    }

    /// A new configuration in the same VM: a new root context, as the proxy does it. False: refused, the old one serves.
    pub fn configure(&mut self, configuration: &str) -> bool {
        self.host.configuration.replace(configuration.into());
        let id = self.id();
        self.vm.create_context(&self.host, id, 0);
        let accepted = self.vm.configure(&self.host, id);
        let old = if accepted { core::mem::replace(&mut self.root, id) } else { id };
        self.vm.delete_context(old);
        accepted
    }

    /// A request begins; its id.
    pub fn begin(&mut self) -> u32 {
        let id = self.id();
        self.host.filter_state.borrow_mut().clear();
        self.host.reply.replace(None);
        self.vm.create_context(&self.host, id, self.root);
        id
    }

    /// A whole request, from its headers to its log; what went upstream.
    pub fn request(&mut self, headers: Pairs) -> Pairs {
        self.exchange(headers, pairs(&[(":status", "200")])).0
    }

    /// A whole request; what went upstream, and what went back.
    pub fn exchange(&mut self, request: Pairs, response: Pairs) -> (Pairs, Pairs) {
        let id = self.begin();
        self.host.request.replace(request);
        self.host.response.replace(response);
        if F::PHASES.has(crate::Phases::REQUEST_HEADERS) && self.vm.request_headers(&self.host, id) == Next::Stop {
            self.host.response.replace(Pairs::new());
        }
        if F::PHASES.has(crate::Phases::RESPONSE_HEADERS) {
            self.vm.response_headers(&self.host, id);
        }
        if F::PHASES.has(crate::Phases::LOG) {
            self.vm.log(&self.host, id);
        }
        self.vm.delete_context(id);
        (self.host.request.borrow().clone(), self.host.response.borrow().clone())
    }

    fn id(&mut self) -> u32 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        id
    }
}
