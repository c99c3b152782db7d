//! A request or a TCP connection, as a test leads it through a chain.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::abi::{Callback, Pairs};
use crate::chain::{Item, Stream, Way};
use crate::message::{Message, Reply, Sent};
use crate::proxy::Proxy;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// What went to the upstream.
    pub upstream: Sent,
    /// What went to the client.
    pub downstream: Sent,
    /// What the proxy answered itself.
    pub reply: Option<Reply>,
    /// What the plugins left for access logs: the keys start `wasm.`.
    pub filter_state: BTreeMap<String, Vec<u8>>,
    /// Whether it was cut off.
    pub reset: bool,
    /// How often the choice of a route was undone.
    pub route_cleared: u64,
}

/// A request on its way. Its phases come when the test says so, in any order, and several streams may be under way.
///
/// One that is dropped unfinished stays under way, as that of a client that hangs: its context and its plugins' roots stay.
#[derive(Clone)]
pub struct HttpStream(Rc<Handle>);

/// A stream that is over goes with the last that holds it.
struct Handle {
    proxy: Proxy,
    id: u64,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut world = self.proxy.0.borrow_mut();
        if world.streams.get(&self.id).is_some_and(|stream| stream.over) {
            world.streams.remove(&self.id);
        }
    }
}

impl Handle {
    fn with<T>(&self, run: impl FnOnce(&mut Stream) -> T) -> T {
        self.proxy.with(self.id, run)
    }

    fn pass(&self, way: Way, item: Item) {
        self.proxy.pass(self.id, way, 0, item);
    }

    fn set_property(&self, path: &[&str], value: crate::Value) {
        let path = path.iter().map(|part| part.as_bytes().to_vec()).collect();
        self.with(|stream| stream.properties.insert(path, value.0));
    }

    fn filter_state(&self, key: &str) -> Option<Vec<u8>> {
        let key = [b"wasm.", key.as_bytes()].concat();
        self.with(|stream| stream.filter_state.get(&key).cloned())
    }
}

impl HttpStream {
    /// An attribute of this request, such as `["upstream", "address"]`. What follows from its headers, the clock and
    /// filter state is there by itself.
    pub fn set_property(&self, path: &[&str], value: impl Into<crate::Value>) {
        self.0.set_property(path, value.into());
    }

    /// Request headers come in.
    pub fn request_headers(&self, headers: Pairs, end: bool) {
        self.0.with(|stream| stream.maps[0] = Some(headers));
        self.0.pass(Way::Request, Item::Headers { end });
    }

    /// A part of the request's body comes in.
    pub fn request_body(&self, bytes: impl AsRef<[u8]>, end: bool) {
        self.0.pass(Way::Request, Item::Data { bytes: bytes.as_ref().to_vec(), end });
    }

    /// Request trailers come in.
    pub fn request_trailers(&self, trailers: Pairs) {
        self.0.with(|stream| stream.maps[1] = Some(trailers));
        self.0.pass(Way::Request, Item::Trailers);
    }

    /// Response headers come in.
    pub fn response_headers(&self, headers: Pairs, end: bool) {
        if self.reply().is_some() {
            return;
        }
        self.0.with(|stream| stream.maps[2] = Some(headers));
        self.0.pass(Way::Response, Item::Headers { end });
    }

    /// A part of the response's body comes in.
    pub fn response_body(&self, bytes: impl AsRef<[u8]>, end: bool) {
        if self.reply().is_none() {
            self.0.pass(Way::Response, Item::Data { bytes: bytes.as_ref().to_vec(), end });
        }
    }

    /// Response trailers come in.
    pub fn response_trailers(&self, trailers: Pairs) {
        if self.reply().is_none() {
            self.0.with(|stream| stream.maps[3] = Some(trailers));
            self.0.pass(Way::Response, Item::Trailers);
        }
    }

    /// All phases of a request.
    pub fn request(&self, message: &Message) {
        let last = message.trailers.is_none();
        self.request_headers(message.headers.clone(), last && message.chunks.is_empty());
        for (at, chunk) in message.chunks.iter().enumerate() {
            self.request_body(chunk, last && at + 1 == message.chunks.len());
        }
        if let Some(trailers) = &message.trailers {
            self.request_trailers(trailers.clone());
        }
    }

    /// All phases of a response.
    pub fn response(&self, message: &Message) {
        let last = message.trailers.is_none();
        self.response_headers(message.headers.clone(), last && message.chunks.is_empty());
        for (at, chunk) in message.chunks.iter().enumerate() {
            self.response_body(chunk, last && at + 1 == message.chunks.len());
        }
        if let Some(trailers) = &message.trailers {
            self.response_trailers(trailers.clone());
        }
    }

    /// A filter in front of the plugins that have not seen the request answers it.
    pub fn reply_locally(&self, reply: &Reply) {
        self.0.proxy.reply(self.0.id, reply);
    }

    /// Writes into the request's headers as a native filter behind the plugins does, such as the proxy's tracer.
    pub fn edit_request_headers(&self, edit: impl FnOnce(&mut Pairs)) {
        self.0.with(|stream| edit(stream.maps[0].get_or_insert_default()));
    }

    /// What has gone upstream so far.
    #[must_use]
    pub fn upstream(&self) -> Sent {
        self.0.with(|stream| stream.upstream.clone())
    }

    /// What has gone to the client so far.
    #[must_use]
    pub fn downstream(&self) -> Sent {
        self.0.with(|stream| stream.downstream.clone())
    }

    /// What the proxy answered itself.
    #[must_use]
    pub fn reply(&self) -> Option<Reply> {
        self.0.with(|stream| stream.reply.clone())
    }

    /// Filter state `wasm.<key>`.
    #[must_use]
    pub fn filter_state(&self, key: &str) -> Option<Vec<u8>> {
        self.0.filter_state(key)
    }

    /// How often the choice of a route was undone so far.
    #[must_use]
    pub fn route_cleared(&self) -> u64 {
        self.0.with(|stream| stream.route_cleared)
    }

    /// Whether it was cut off.
    #[must_use]
    pub fn was_reset(&self) -> bool {
        self.0.with(|stream| stream.reset)
    }

    /// The context's number in the VM of the chain's plugin at that place, once it has one.
    #[must_use]
    pub fn context(&self, plugin: usize) -> Option<u32> {
        self.0.with(|stream| stream.legs.get(plugin).and_then(|leg| leg.context))
    }

    /// The request is over: it is logged and taken down. A request of which no phase came is logged all the same.
    pub fn finish(&self) -> Exchange {
        self.0.proxy.finish(self.0.id);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.0.with(|stream| Exchange {
            upstream: stream.upstream.clone(),
            downstream: stream.downstream.clone(),
            reply: stream.reply.clone(),
            filter_state: stream
                .logged
                .as_ref()
                .unwrap_or(&stream.filter_state)
                .iter()
                .map(|(key, value)| (text(key), value.clone()))
                .collect(),
            reset: stream.reset,
            route_cleared: stream.route_cleared,
        })
    }
}

/// Who closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The proxy.
    Local,
    /// The other side.
    Remote,
}

/// A TCP connection.
#[derive(Clone)]
pub struct TcpStream(Rc<Handle>);

impl TcpStream {
    /// An attribute of the connection, such as `["source", "address"]`.
    pub fn set_property(&self, path: &[&str], value: impl Into<crate::Value>) {
        self.0.set_property(path, value.into());
    }

    /// Bytes from the client; `end`: it sends no more.
    pub fn downstream_data(&self, bytes: impl AsRef<[u8]>, end: bool) {
        self.0.pass(Way::Request, Item::Data { bytes: bytes.as_ref().to_vec(), end });
    }

    /// Bytes from the upstream. At their end the plugins are also told that the upstream's side is closed, by whom is
    /// not known.
    pub fn upstream_data(&self, bytes: impl AsRef<[u8]>, end: bool) {
        self.0.pass(Way::Response, Item::Data { bytes: bytes.as_ref().to_vec(), end });
        if end {
            self.tell(|context| Callback::UpstreamClose { context, peer: 0 });
        }
    }

    fn tell(&self, callback: impl Fn(u32) -> Callback) {
        if self.0.with(|stream| stream.over) {
            return;
        }
        let contexts =
            self.0.with(|stream| stream.legs.iter().filter_map(|leg| Some((leg.vm, leg.context?))).collect::<Vec<_>>());
        for (vm, context) in contexts {
            self.0.proxy.enter(vm, callback(context));
        }
    }

    /// What has gone to the upstream.
    #[must_use]
    pub fn upstream(&self) -> Sent {
        self.0.with(|stream| stream.upstream.clone())
    }

    /// What has gone to the client.
    #[must_use]
    pub fn downstream(&self) -> Sent {
        self.0.with(|stream| stream.downstream.clone())
    }

    /// Filter state `wasm.<key>`.
    #[must_use]
    pub fn filter_state(&self, key: &str) -> Option<Vec<u8>> {
        self.0.filter_state(key)
    }

    /// Whether a plugin closed it.
    #[must_use]
    pub fn was_closed(&self) -> bool {
        self.0.with(|stream| stream.reset)
    }

    /// The client's side is closed, and with it the stream: it is taken down and logged.
    pub fn close(&self, by: Peer) {
        if self.0.with(|stream| stream.over) {
            return;
        }
        let peer = if by == Peer::Local { 1 } else { 2 };
        self.tell(|context| Callback::DownstreamClose { context, peer });
        self.0.proxy.finish(self.0.id);
    }
}

impl Proxy {
    /// Begins a request on a worker.
    ///
    /// # Panics
    /// Where there is no such chain or worker.
    #[must_use]
    pub fn http(&self, chain: &str, worker: usize) -> HttpStream {
        HttpStream(Rc::new(Handle { id: self.open(chain, worker, false), proxy: self.clone() }))
    }

    /// Accepts a TCP connection on a worker.
    ///
    /// # Panics
    /// Where there is no such chain or worker.
    #[must_use]
    pub fn tcp(&self, chain: &str, worker: usize) -> TcpStream {
        let id = self.open(chain, worker, true);
        let legs = self.with(id, |stream| stream.legs.len());
        for leg in 0..legs {
            self.begin(id, leg);
            self.ask(id, leg, |context| Callback::NewConnection { context });
        }
        TcpStream(Rc::new(Handle { id, proxy: self.clone() }))
    }

    /// A whole request, and its response if it got through: headers, chunks, trailers, log, end.
    ///
    /// Where plugins hold the request back, time goes on from one end of a pending call to the next, until it went
    /// upstream, was answered, or nothing is pending any more.
    ///
    /// # Panics
    /// Where there is no such chain or worker.
    #[must_use]
    pub fn exchange(&self, chain: &str, worker: usize, request: &Message, response: &Message) -> Exchange {
        let stream = self.http(chain, worker);
        stream.request(request);
        let held = |stream: &HttpStream| stream.reply().is_none() && !stream.upstream().ended && !stream.was_reset();
        while held(&stream) && self.advance_to_next_end() {}
        if stream.upstream().headers.is_some() && stream.reply().is_none() && !stream.was_reset() {
            stream.response(response);
            while !stream.downstream().ended && self.advance_to_next_end() {}
        }
        stream.finish()
    }
}
