//! The way of a stream through a chain of plugins: who is asked what and when, what is held back, what goes on.

use std::collections::BTreeMap;

use crate::abi::{Callback, Pairs, buffer, map};
use crate::message::{Reply, Sent};
use crate::plugin::FailurePolicy;
use crate::proxy::{Entered, Proxy};
use crate::world::{Ctx, Thread};

/// Which way something goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Request,
    Response,
}

/// What goes that way.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Headers { end: bool },
    Data { bytes: Vec<u8>, end: bool },
    Trailers,
}

/// Where a plugin has stopped one way of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stopped {
    #[default]
    No,
    /// At the headers; `all`: what follows waits as well.
    Headers {
        end: bool,
        all: bool,
    },
    /// In the body.
    Data {
        end: bool,
    },
    Trailers,
}

/// One way of a stream through one plugin.
#[derive(Default)]
struct Flow {
    stopped: Stopped,
    /// What came while all was stopped.
    held: Vec<Item>,
    /// The bytes in hand: the chunk of the callback, behind what was kept before.
    bytes: Vec<u8>,
    /// Whether the next chunk is shown behind what was kept.
    keep: bool,
    /// Whether the bytes are to be seen and changed.
    open: bool,
    /// What was kept out of the plugin's sight.
    aside: Vec<u8>,
    /// While the plugin is asked what to do with the headers: whether they are all.
    asked: Option<bool>,
}

/// A plugin's part of a stream.
pub(crate) struct Leg {
    pub(crate) root: usize,
    pub(crate) vm: usize,
    pub(crate) context: Option<u32>,
    /// Its VM had trapped before, and its policy is to let pass.
    skipped: bool,
    /// The maps that it may read and write now.
    open: [bool; 4],
    flows: [Flow; 2],
}

pub(crate) struct Stream {
    pub(crate) legs: Vec<Leg>,
    pub(crate) tcp: bool,
    pub(crate) maps: [Option<Pairs>; 4],
    pub(crate) filter_state: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) properties: BTreeMap<Vec<Vec<u8>>, Vec<u8>>,
    pub(crate) upstream: Sent,
    pub(crate) downstream: Sent,
    pub(crate) reply: Option<Reply>,
    pub(crate) reset: bool,
    /// A VM under it has trapped, and it was answered for that.
    pub(crate) failed: bool,
    pub(crate) route_cleared: u64,
    pub(crate) logging: bool,
    /// Filter state as access loggers see it: when all plugins have logged.
    pub(crate) logged: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    pub(crate) aborted: [bool; 2],
    pub(crate) started_ns: u64,
    pub(crate) over: bool,
}

impl Stream {
    /// A map, where this plugin can read it now.
    pub(crate) fn readable(&self, leg: usize, map: u32) -> Option<&Pairs> {
        let at = map as usize;
        let logged = self.logging && map != map::REQUEST_TRAILERS;
        let there = self.maps.get(at)?.as_ref();
        if logged || *self.legs[leg].open.get(at)? { there } else { None }
    }

    pub(crate) fn writable(&mut self, leg: usize, map: u32) -> Option<&mut Pairs> {
        let at = map as usize;
        if *self.legs[leg].open.get(at)? { self.maps[at].as_mut() } else { None }
    }

    fn way(&self, kind: u32) -> Option<usize> {
        match (kind, self.tcp) {
            (buffer::REQUEST_BODY, false) | (buffer::DOWNSTREAM_DATA, true) => Some(0),
            (buffer::RESPONSE_BODY, false) | (buffer::UPSTREAM_DATA, true) => Some(1),
            _ => None,
        }
    }

    pub(crate) fn buffer(&self, leg: usize, kind: u32) -> Option<&[u8]> {
        let flow = &self.legs[leg].flows[self.way(kind)?];
        flow.open.then_some(&flow.bytes)
    }

    pub(crate) fn buffer_mut(&mut self, leg: usize, kind: u32) -> Option<&mut Vec<u8>> {
        let way = self.way(kind)?;
        let flow = &mut self.legs[leg].flows[way];
        flow.open.then_some(&mut flow.bytes)
    }

    /// Whether all that is left to be told of it is its end.
    pub(crate) fn ending(&self) -> bool {
        self.over && !self.tcp
    }

    /// A plugin cuts it off.
    pub(crate) fn close(&mut self, kind: u32) {
        self.reset = true;
        if kind == 0 {
            self.details("wasm_close_stream");
        }
    }

    fn details(&mut self, details: &str) {
        self.properties.insert(vec![b"response".to_vec(), b"code_details".to_vec()], details.as_bytes().to_vec());
    }

    /// A stream that is told to go on loses sight of its request.
    pub(crate) fn forget_request(&mut self, leg: usize) {
        self.legs[leg].open[0] = false;
        self.legs[leg].open[1] = false;
    }

    fn leg(&self, way: Way, at: usize) -> Option<usize> {
        match way {
            Way::Request => (at < self.legs.len()).then_some(at),
            Way::Response => self.legs.len().checked_sub(at + 1),
        }
    }

    fn at(&self, way: Way, leg: usize) -> usize {
        match way {
            Way::Request => leg,
            Way::Response => self.legs.len() - 1 - leg,
        }
    }
}

/// What a plugin said to an item.
pub(crate) enum Said {
    Next,
    Wait(u64),
    /// The stream is no more.
    Lost,
}

impl Proxy {
    pub(crate) fn open(&self, chain: &str, worker: usize, tcp: bool) -> u64 {
        let thread = Thread::Worker(worker);
        let roots = self.roots_for_stream(chain, thread);
        let mut world = self.0.borrow_mut();
        let legs = roots.into_iter().map(|root| {
            let vm = world.roots[root].vm;
            world.roots[root].held += 1;
            let skipped = world.vms[vm].failed && world.roots[root].plugin.failure == FailurePolicy::Open;
            Leg { root, vm, context: None, skipped, open: [false; 4], flows: Default::default() }
        });
        let legs = legs.collect();
        let id = world.next_stream;
        world.next_stream += 1;
        let stream = Stream {
            legs,
            tcp,
            maps: Default::default(),
            filter_state: BTreeMap::new(),
            properties: BTreeMap::new(),
            upstream: Sent::default(),
            downstream: Sent::default(),
            reply: None,
            reset: false,
            failed: false,
            route_cleared: 0,
            logging: false,
            logged: None,
            aborted: [false; 2],
            started_ns: world.now_ns,
            over: false,
        };
        world.streams.insert(id, stream);
        id
    }

    pub(crate) fn with<T>(&self, id: u64, run: impl FnOnce(&mut Stream) -> T) -> T {
        run(self.0.borrow_mut().streams.get_mut(&id).expect("streams stay"))
    }

    /// Makes the plugin's context, where it has none.
    pub(crate) fn begin(&self, id: u64, leg: usize) {
        let (vm, context, parent) = {
            let mut world = self.0.borrow_mut();
            let Leg { vm, root, context, .. } = world.streams[&id].legs[leg];
            if context.is_some() || world.vms[vm].failed {
                return;
            }
            let parent = world.roots[root].context;
            let context = world.new_context(vm, Ctx::Stream { id, leg });
            world.streams.get_mut(&id).expect("streams stay").legs[leg].context = Some(context);
            (vm, context, parent)
        };
        self.enter(vm, Callback::ContextCreate { context, parent });
    }

    /// Calls a plugin for a stream. A VM that has trapped does as its policy says.
    pub(crate) fn ask(&self, id: u64, leg: usize, callback: impl FnOnce(u32) -> Callback) -> Said {
        let (vm, root, context) = self.with(id, |stream| {
            let leg = &stream.legs[leg];
            (leg.vm, leg.root, leg.context)
        });
        let entered = match context {
            Some(context) => self.enter(vm, callback(context)),
            // It has not heard of the stream, and the proxy does not begin in the middle; unless it could not hear.
            None if !self.0.borrow().vms[vm].failed => return Said::Next,
            None => Entered::Failed,
        };
        let policy = self.0.borrow().roots[root].plugin.failure;
        match entered {
            Entered::Failed if policy == FailurePolicy::Open => Said::Next,
            // The reply that stands for the trap goes out past what trapped.
            Entered::Failed if self.with(id, |stream| stream.failed) => Said::Next,
            Entered::Failed => {
                self.fail(id);
                Said::Lost
            }
            Entered::Missing => Said::Next,
            Entered::Returned { stop: true, .. } => Said::Wait(u64::MAX),
            Entered::Returned { value: 0, .. } => Said::Next,
            Entered::Returned { value, .. } => Said::Wait(value),
        }
    }

    /// Sends an item along its way, from the plugin at `at` on.
    pub(crate) fn pass(&self, id: u64, way: Way, mut at: usize, mut item: Item) {
        loop {
            let w = way as usize;
            let step = self.with(id, |stream| {
                if stream.aborted[w] || stream.reset || stream.over {
                    return None;
                }
                let Some(leg) = stream.leg(way, at) else {
                    stream.send(way, item.clone());
                    return None;
                };
                // A plugin that was not there for the request is not there for the response.
                let absent = stream.legs[leg].skipped || (w == 1 && stream.legs[leg].context.is_none() && !stream.tcp);
                let flow = &mut stream.legs[leg].flows[w];
                if matches!(flow.stopped, Stopped::Headers { all: true, .. }) {
                    flow.held.push(item.clone());
                    return None;
                }
                Some((leg, absent))
            });
            let Some((leg, absent)) = step else { return };
            if absent {
                at += 1;
                continue;
            }
            let next = match item {
                Item::Headers { end } => self.pass_headers(id, way, leg, end),
                Item::Data { bytes, end } => self.pass_data(id, way, (leg, at), bytes, end),
                Item::Trailers => self.pass_trailers(id, way, (leg, at)),
            };
            let Some(next) = next else { return };
            item = next;
            at += 1;
        }
    }

    fn pass_headers(&self, id: u64, way: Way, leg: usize, end: bool) -> Option<Item> {
        let map = [map::REQUEST_HEADERS, map::RESPONSE_HEADERS][way as usize] as usize;
        if way == Way::Request {
            self.begin(id, leg);
        }
        let count = self.with(id, |stream| {
            stream.legs[leg].open[map] = true;
            stream.legs[leg].flows[way as usize].asked = Some(end);
            stream.maps[map].as_ref().map_or(0, Vec::len) as u32
        });
        let end_flag = u32::from(end);
        let said = self.ask(id, leg, |context| match way {
            Way::Request => Callback::RequestHeaders { context, count, end: end_flag },
            Way::Response => Callback::ResponseHeaders { context, count, end: end_flag },
        });
        let stop_iteration = {
            let world = self.0.borrow();
            world.roots[world.streams[&id].legs[leg].root].plugin.stop_iteration
        };
        self.with(id, |stream| stream.legs[leg].flows[way as usize].asked = None);
        self.with(id, |stream| match said {
            Said::Next => {
                stream.legs[leg].open[map] = false;
                (!stream.aborted[way as usize]).then_some(Item::Headers { end })
            }
            Said::Wait(value) => {
                let all = value != 1 || !stop_iteration;
                stream.legs[leg].flows[way as usize].stopped = Stopped::Headers { end, all };
                None
            }
            Said::Lost => None,
        })
    }

    fn pass_data(&self, id: u64, way: Way, (leg, at): (usize, usize), bytes: Vec<u8>, end: bool) -> Option<Item> {
        let w = way as usize;
        let limit = self.0.borrow().buffer_limit;
        let size = self.with(id, |stream| {
            let tcp = stream.tcp;
            let flow = &mut stream.legs[leg].flows[w];
            flow.open = true;
            if flow.keep {
                flow.bytes.extend(bytes);
                if flow.bytes.len() > limit && !tcp {
                    return None;
                }
            } else {
                let before = std::mem::replace(&mut flow.bytes, bytes);
                flow.aside.extend(before);
            }
            Some(flow.bytes.len() as u32)
        });
        let Some(size) = size else {
            self.too_large(id, way);
            return None;
        };
        let (tcp, end_flag) = (self.with(id, |stream| stream.tcp), u32::from(end));
        let said = self.ask(id, leg, |context| match (way, tcp) {
            (Way::Request, false) => Callback::RequestBody { context, size, end: end_flag },
            (Way::Response, false) => Callback::ResponseBody { context, size, end: end_flag },
            (Way::Request, true) => Callback::DownstreamData { context, size, end: end_flag },
            (Way::Response, true) => Callback::UpstreamData { context, size, end: end_flag },
        });
        let mut over = false;
        let step = self.with(id, |stream| {
            let flow = &mut stream.legs[leg].flows[w];
            match said {
                Said::Next => {
                    flow.keep = false;
                    flow.open = false;
                    let before = std::mem::take(&mut flow.aside);
                    let bytes = [before, std::mem::take(&mut flow.bytes)].concat();
                    // A stop at the headers that let the body run ends where the body goes on.
                    let headers = matches!(flow.stopped, Stopped::Headers { all: false, .. });
                    flow.stopped = Stopped::No;
                    (!stream.aborted[w]).then_some((headers, Item::Data { bytes, end }))
                }
                Said::Wait(value) => {
                    if !matches!(flow.stopped, Stopped::Headers { .. }) {
                        flow.stopped = Stopped::Data { end };
                    }
                    match value {
                        // Stop and buffer; a connection always does.
                        _ if tcp => flow.keep = true,
                        1 => {
                            flow.keep = true;
                            over = flow.bytes.len() > limit;
                        }
                        // Stop and let the sender wait: kept, but not shown again.
                        2 => {
                            flow.keep = false;
                            let bytes = std::mem::take(&mut flow.bytes);
                            flow.aside.extend(bytes);
                        }
                        // Stop and throw away.
                        _ => {
                            flow.keep = false;
                            flow.bytes.clear();
                        }
                    }
                    None
                }
                Said::Lost => None,
            }
        });
        if over {
            self.too_large(id, way);
        }
        let (headers, item) = step?;
        if headers {
            self.pass(id, way, at + 1, Item::Headers { end: false });
        }
        Some(item)
    }

    /// What is kept is more than the listener lets a filter keep.
    fn too_large(&self, id: u64, way: Way) {
        let (status, details, text) = match way {
            Way::Request => (413, "request_payload_too_large", "Payload Too Large"),
            Way::Response => (500, "response_payload_too_large", "Internal Server Error"),
        };
        self.reply(
            id,
            &Reply {
                status,
                details: details.to_owned(),
                body: text.as_bytes().to_vec(),
                headers: Pairs::new(),
                grpc_status: None,
            },
        );
    }

    fn pass_trailers(&self, id: u64, way: Way, (leg, at): (usize, usize)) -> Option<Item> {
        let (w, map) = match way {
            Way::Request => (0, map::REQUEST_TRAILERS as usize),
            Way::Response => (1, map::RESPONSE_TRAILERS as usize),
        };
        let count = self.with(id, |stream| {
            stream.legs[leg].open[map] = true;
            stream.maps[map].as_ref().map_or(0, Vec::len) as u32
        });
        let said = self.ask(id, leg, |context| match way {
            Way::Request => Callback::RequestTrailers { context, count },
            Way::Response => Callback::ResponseTrailers { context, count },
        });
        match said {
            Said::Next => {
                let kept = self.with(id, |stream| {
                    stream.legs[leg].open[map] = false;
                    stream.legs[leg].flows[w].kept()
                });
                self.pass_kept(id, way, at, kept);
                self.with(id, |stream| !stream.aborted[w]).then_some(Item::Trailers)
            }
            Said::Wait(_) => {
                self.with(id, |stream| {
                    let flow = &mut stream.legs[leg].flows[w];
                    if !matches!(flow.stopped, Stopped::Headers { .. }) {
                        flow.stopped = Stopped::Trailers;
                    } else {
                        flow.held.push(Item::Trailers);
                    }
                });
                None
            }
            Said::Lost => None,
        }
    }

    /// What a plugin had kept goes on before what comes next.
    fn pass_kept(&self, id: u64, way: Way, at: usize, (headers, bytes): (bool, Vec<u8>)) {
        if headers {
            self.pass(id, way, at + 1, Item::Headers { end: false });
        }
        if !bytes.is_empty() {
            self.pass(id, way, at + 1, Item::Data { bytes, end: false });
        }
    }

    /// A plugin lets go on what it had stopped.
    pub(crate) fn resume(&self, id: u64, leg: usize, response: bool) {
        let way = if response { Way::Response } else { Way::Request };
        let w = way as usize;
        let found = self.with(id, |stream| {
            if stream.over || stream.aborted[w] {
                return None;
            }
            let at = stream.at(way, leg);
            let flow = &mut stream.legs[leg].flows[w];
            let (stopped, held) = (flow.stopped, std::mem::take(&mut flow.held));
            let kept = flow.kept();
            Some((at, stopped, held, kept.1))
        });
        let Some((at, stopped, held, bytes)) = found else { return };
        match stopped {
            Stopped::No => self.resume_in_vain(id, leg, way, at),
            Stopped::Headers { end, all: true } => {
                self.pass(id, way, at + 1, Item::Headers { end });
                for item in merged(held) {
                    self.pass(id, way, at, item);
                }
            }
            Stopped::Headers { end, all: false } => {
                self.pass(id, way, at + 1, Item::Headers { end });
                self.pass_kept(id, way, at, (false, bytes));
                for item in held {
                    self.pass(id, way, at + 1, item);
                }
            }
            Stopped::Data { end } => self.pass(id, way, at + 1, Item::Data { bytes, end }),
            Stopped::Trailers => {
                self.pass_kept(id, way, at, (false, bytes));
                self.pass(id, way, at + 1, Item::Trailers);
            }
        }
    }

    /// A plugin lets go on what it does not hold. The real proxy does not ignore that: parts may go on twice.
    fn resume_in_vain(&self, id: u64, leg: usize, way: Way, at: usize) {
        let (vm, root, asked) = self.with(id, |stream| {
            let leg = &stream.legs[leg];
            (leg.vm, leg.root, leg.flows[way as usize].asked)
        });
        let mut world = self.0.borrow_mut();
        let plugin = world.roots[root].plugin.name.clone();
        let text = format!("{way:?} continued that the plugin does not hold: the proxy may play parts of it twice");
        world.say(vm, &plugin, 4, text);
        drop(world);
        // From within the callback of the headers they go on at once, and then once more, or stay, as it returns.
        if let Some(end) = asked {
            self.pass(id, way, at + 1, Item::Headers { end });
        }
    }

    /// Answers in place of the upstream, if nothing was answered yet.
    pub(crate) fn reply(&self, id: u64, reply: &Reply) {
        let go = self.with(id, |stream| {
            if stream.over || stream.reset || stream.tcp {
                return None;
            }
            // Those of the last reply, though it is the first that goes out.
            stream.details(&reply.details);
            if stream.reply.is_some() {
                return None;
            }
            if stream.downstream.headers.is_some() {
                stream.reset = true;
                return None;
            }
            let grpc = stream.maps[0].iter().flatten().any(|(name, value)| {
                name == b"content-type" && (value == b"application/grpc" || value.starts_with(b"application/grpc+"))
            });
            let began = stream.maps[map::RESPONSE_HEADERS as usize].is_some();
            stream.reply = Some(reply.clone());
            stream.aborted[0] = true;
            let (headers, body) = reply.render(grpc);
            if began {
                // Its own response callbacks are under way: the reply goes out past the plugins.
                stream.aborted[1] = true;
                stream.maps[map::RESPONSE_HEADERS as usize] = Some(headers.clone());
                let chunks = if body.is_empty() { Vec::new() } else { vec![body] };
                stream.downstream = Sent { headers: Some(headers), chunks, trailers: None, ended: true };
                return None;
            }
            stream.maps[map::RESPONSE_HEADERS as usize] = Some(headers);
            Some(body)
        });
        let Some(body) = go else { return };
        self.pass(id, Way::Response, 0, Item::Headers { end: body.is_empty() });
        if !body.is_empty() {
            self.pass(id, Way::Response, 0, Item::Data { bytes: body, end: true });
        }
    }

    /// A VM under it has trapped.
    pub(crate) fn fail(&self, id: u64) {
        if self.with(id, |stream| {
            stream.failed = true;
            stream.reset |= stream.tcp;
            stream.tcp
        }) {
            return;
        }
        let details = "wasm_fail_stream".to_owned();
        self.reply(id, &Reply { status: 503, details, body: Vec::new(), headers: Pairs::new(), grpc_status: None });
    }

    /// Logs the stream and takes it down.
    pub(crate) fn finish(&self, id: u64) {
        let (legs, tcp) = self.with(id, |stream| (stream.legs.len(), stream.tcp));
        if self.with(id, |stream| std::mem::replace(&mut stream.over, true)) {
            return;
        }
        let tell = |leg: usize, callback: fn(u32) -> Callback| {
            let (vm, context) = self.with(id, |stream| (stream.legs[leg].vm, stream.legs[leg].context));
            if let Some(context) = context {
                self.enter(vm, callback(context));
            }
        };
        if tcp {
            for leg in 0..legs {
                tell(leg, |context| Callback::Done { context });
                tell(leg, |context| Callback::Log { context });
                tell(leg, |context| Callback::Delete { context });
            }
        } else {
            self.with(id, |stream| stream.logging = true);
            for leg in 0..legs {
                // It may be the first that a plugin hears of the stream.
                if !self.with(id, |stream| stream.legs[leg].skipped) {
                    self.begin(id, leg);
                }
                tell(leg, |context| Callback::Log { context });
            }
            self.with(id, |stream| {
                stream.logging = false;
                stream.logged = Some(stream.filter_state.clone());
            });
            for leg in 0..legs {
                tell(leg, |context| Callback::Done { context });
                tell(leg, |context| Callback::Delete { context });
            }
        }
        for leg in 0..legs {
            let (vm, context, root) = self.with(id, |stream| {
                let leg = &stream.legs[leg];
                (leg.vm, leg.context, leg.root)
            });
            if let Some(context) = context {
                self.0.borrow_mut().vms[vm].contexts.remove(&context);
            }
            self.let_go(root);
        }
    }
}

impl Flow {
    /// Takes what was kept: whether headers wait, and the bytes.
    fn kept(&mut self) -> (bool, Vec<u8>) {
        let headers = matches!(self.stopped, Stopped::Headers { all: false, .. });
        self.stopped = Stopped::No;
        self.keep = false;
        self.open = false;
        let before = std::mem::take(&mut self.aside);
        (headers, [before, std::mem::take(&mut self.bytes)].concat())
    }
}

impl Stream {
    fn send(&mut self, way: Way, item: Item) {
        let (sent, headers, trailers) = match way {
            Way::Request => (&mut self.upstream, &self.maps[0], &self.maps[1]),
            Way::Response => (&mut self.downstream, &self.maps[2], &self.maps[3]),
        };
        match item {
            Item::Headers { end } => {
                sent.headers.clone_from(headers);
                sent.ended = end;
            }
            Item::Data { bytes, end } => {
                sent.chunks.push(bytes);
                sent.ended = end;
            }
            Item::Trailers => {
                sent.trailers.clone_from(trailers);
                sent.ended = true;
            }
        }
    }
}

/// What waited comes as one chunk.
fn merged(items: Vec<Item>) -> Vec<Item> {
    let mut merged: Vec<Item> = Vec::new();
    for item in items {
        match (merged.last_mut(), item) {
            (Some(Item::Data { bytes, end }), Item::Data { bytes: more, end: last }) => {
                bytes.extend(more);
                *end = last;
            }
            (_, item) => merged.push(item),
        }
    }
    merged
}
