//! The hostcalls: what the inside of a VM may ask of the proxy. The only door, for wasm and for native code.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::Message;
use crate::abi::{Answer, MetricKind, Pairs, Status, buffer, decode_pairs, encode_pairs, map};
use crate::message::Reply;
use crate::world::{CallEnd, Ctx, Deferred, HttpCall, Metric, Queue, RootState, VmKind, World};

/// The proxy, as the inside of one VM sees it.
///
/// Every method is a hostcall of the ABI, and what it says of a status is what the real proxy does. Those that give
/// something back give it as an `Option`, which is `None` only where a [`Fault`](crate::Fault) claims success and has
/// nothing to give: then the module's pointers stay as they are.
#[derive(Clone)]
pub struct Host {
    pub(crate) world: Rc<RefCell<World>>,
    pub(crate) vm: usize,
}

/// What a hostcall gives: how heavy it is, and what it is when a fault makes it up.
trait Given: Sized {
    fn weight(&self) -> usize {
        0
    }
    fn made_up(bytes: Option<Vec<u8>>) -> Self;
}

impl Given for () {
    fn made_up(_: Option<Vec<u8>>) {}
}

impl<T: Part> Given for Option<T> {
    fn weight(&self) -> usize {
        self.as_ref().map_or(0, T::weight)
    }
    fn made_up(bytes: Option<Vec<u8>>) -> Self {
        bytes.map(T::from_bytes)
    }
}

/// What can be in a [`Given`].
trait Part {
    fn weight(&self) -> usize;
    fn from_bytes(bytes: Vec<u8>) -> Self;
}

impl Part for Vec<u8> {
    fn weight(&self) -> usize {
        self.len()
    }
    fn from_bytes(bytes: Vec<u8>) -> Self {
        bytes
    }
}

impl Part for u64 {
    fn weight(&self) -> usize {
        8
    }
    fn from_bytes(bytes: Vec<u8>) -> Self {
        bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

impl Part for u32 {
    fn weight(&self) -> usize {
        4
    }
    fn from_bytes(bytes: Vec<u8>) -> Self {
        bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

impl<T: Part, U: Part> Part for (T, U) {
    fn weight(&self) -> usize {
        self.0.weight() + self.1.weight()
    }
    fn from_bytes(bytes: Vec<u8>) -> Self {
        (T::from_bytes(bytes.clone()), U::from_bytes(bytes))
    }
}

/// Names that the proxy keeps once in request headers, values joined: a second one is appended to the first, with a comma.
/// Held against the real one by `tests/host_facts`.
const ONCE_IN_REQUESTS: &str = ":authority :method :path :protocol :scheme accept accept-encoding \
    access-control-request-method authorization cache-control connection content-length content-type expect grpc-timeout \
    host keep-alive origin proxy-connection referer te transfer-encoding upgrade user-agent via x-client-trace-id \
    x-envoy-decorator-operation x-envoy-external-address x-envoy-original-path x-envoy-retry-on x-forwarded-client-cert \
    x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto x-request-id";
/// The same in response headers.
const ONCE_IN_RESPONSES: &str = ":status cache-control connection content-length content-type date etag grpc-message \
    grpc-status keep-alive location proxy-connection server transfer-encoding upgrade vary via \
    x-envoy-decorator-operation x-envoy-upstream-service-time x-request-id";

fn once(map: u32, name: &[u8]) -> bool {
    let names = match map {
        map::REQUEST_HEADERS => ONCE_IN_REQUESTS,
        map::RESPONSE_HEADERS => ONCE_IN_RESPONSES,
        _ => "",
    };
    names.split(' ').any(|once| once.as_bytes() == name)
}

fn add(map: u32, pairs: &mut Pairs, name: &[u8], value: &[u8]) {
    let name = name.to_ascii_lowercase();
    if once(map, &name)
        && let Some((_, old)) = pairs.iter_mut().find(|(other, _)| *other == name)
    {
        if !old.is_empty() {
            old.push(b',');
        }
        old.extend_from_slice(value);
    } else {
        append(pairs, name, value);
    }
}

/// At the end; a name that starts with a colon behind the last such one.
fn append(pairs: &mut Pairs, name: Vec<u8>, value: &[u8]) {
    let special = |name: &[u8]| name.starts_with(b":");
    let at = if special(&name) { pairs.iter().take_while(|(other, _)| special(other)).count() } else { pairs.len() };
    pairs.insert(at, (name, value.to_vec()));
}

impl Host {
    /// Runs a hostcall: counted, and in the hands of the faults.
    fn call<T: Given>(
        &self,
        name: &'static str,
        out: usize,
        run: impl FnOnce(&mut World, usize) -> Answer<T>,
    ) -> Answer<T> {
        let mut world = self.world.borrow_mut();
        *world.tally.hostcalls.entry(name).or_default() += 1;
        world.tally.bytes_out += out as u64;
        let answer = match world.fault(name) {
            Some((Status::OK, bytes)) => Ok(T::made_up(bytes)),
            Some((status, _)) => Err(status),
            None => run(&mut world, self.vm),
        };
        world.tally.bytes_in += answer.as_ref().map_or(0, T::weight) as u64;
        answer
    }

    /// A call that is counted and may fail, and has nothing to do with the proxy: the rest of WASI. The number is its errno.
    pub(crate) fn wasi(&self, name: &'static str) -> Answer {
        self.call(name, 0, |_, _| Ok(()))
    }

    /// WASI's `fd_write` to stdout (2, info) or stderr (4, error), which the proxy writes to its log.
    pub(crate) fn write(&self, level: u32, text: &[u8]) -> Answer {
        self.call("fd_write", text.len(), |world, vm| {
            world.write_log(vm, level, text);
            Ok(())
        })
    }

    /// A call that never came to be one, because what it pointed to is not there: it is counted all the same.
    pub(crate) fn count_call(&self, name: &'static str) {
        *self.world.borrow_mut().tally.hostcalls.entry(name).or_default() += 1;
    }

    pub(crate) fn counted(&self) -> u64 {
        self.world.borrow().tally.hostcalls.values().sum()
    }

    /// What the VM is for: known to native code that stands in for a module, never to a module.
    #[must_use]
    pub fn vm_kind(&self) -> VmKind {
        self.world.borrow().vms[self.vm].kind
    }

    /// Counts an entry that the host makes while it is in a hostcall: for memory.
    pub(crate) fn count_entry(&self, name: &'static str) {
        *self.world.borrow_mut().tally.entries.entry(name).or_default() += 1;
    }

    pub(crate) fn restrict(&self, restricted: bool) {
        self.world.borrow_mut().vms[self.vm].restricted = restricted;
    }

    pub(crate) fn restricted(&self) -> bool {
        self.world.borrow().vms[self.vm].restricted
    }

    pub(crate) fn fuel_limit(&self) -> u64 {
        self.world.borrow().fuel_limit
    }

    pub(crate) fn count_fuel(&self, fuel: u64) {
        self.world.borrow_mut().tally.fuel += fuel;
    }

    /// An environment variable of the VM.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.environment().iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    pub(crate) fn environment(&self) -> Rc<[(String, String)]> {
        Rc::clone(&self.world.borrow().vms[self.vm].environment)
    }

    /// `proxy_log`.
    pub fn log(&self, level: u32, text: &[u8]) -> Answer {
        self.call("proxy_log", text.len(), |world, vm| {
            if level > 5 {
                return Err(Status::BAD_ARGUMENT);
            }
            world.write_log(vm, level, text);
            Ok(())
        })
    }

    /// `proxy_get_log_level`: 0 trace to 5 critical.
    pub fn log_level(&self) -> Answer<Option<u32>> {
        self.call("proxy_get_log_level", 0, |world, _| Ok(Some(world.log_level)))
    }

    /// `proxy_get_current_time_nanoseconds`: the virtual clock, since 1970.
    pub fn now(&self) -> Answer<Option<u64>> {
        self.call("proxy_get_current_time_nanoseconds", 0, |world, _| Ok(Some(world.now_ns)))
    }

    /// WASI's `clock_time_get`: 0 is real time, 1 monotonic; no other clock.
    pub fn clock(&self, id: u32) -> Answer<Option<u64>> {
        self.call("clock_time_get", 0, |world, _| match id {
            0 => Ok(Some(world.now_ns)),
            1 => Ok(Some(world.now_ns - world.begun_ns)),
            _ => Err(Status(58)),
        })
    }

    /// WASI's `random_get`, from the emulator's seed.
    pub fn random(&self, length: usize) -> Answer<Option<Vec<u8>>> {
        self.call("random_get", 0, |world, _| {
            if length > 1 << 16 {
                return Err(Status(28));
            }
            let mut bytes = vec![0; length];
            world.fill_random(&mut bytes);
            Ok(Some(bytes))
        })
    }

    /// `proxy_get_property`: the path's segments with a NUL between them.
    pub fn property(&self, path: &[u8]) -> Answer<Option<Vec<u8>>> {
        self.call("proxy_get_property", path.len(), |world, vm| {
            let path: Vec<&[u8]> = path.split(|byte| *byte == 0).collect();
            let missing = || crate::property::missing(world, vm, &path);
            crate::property::find(world, vm, &path).map(Some).ok_or_else(missing)
        })
    }

    /// `proxy_set_property`: filter state `wasm.<path>` of the stream; there is none in a root context.
    pub fn set_property(&self, path: &[u8], value: &[u8]) -> Answer {
        self.call("proxy_set_property", path.len() + value.len(), |world, vm| {
            let Some(Ctx::Stream { id, leg }) = world.ctx(vm) else { return Err(Status::NOT_FOUND) };
            let stream = world.streams.get_mut(&id).ok_or(Status::NOT_FOUND)?;
            let read_only = world.roots[stream.legs[leg].root].declared.get(path) == Some(&true);
            let key = [b"wasm.", path].concat();
            if read_only && stream.filter_state.contains_key(&key) {
                return Err(Status::BAD_ARGUMENT);
            }
            stream.filter_state.insert(key, value.to_vec());
            Ok(())
        })
    }

    /// `proxy_get_shared_data`: the value, and the number for [`set_shared_data`](Self::set_shared_data).
    pub fn shared_data(&self, key: &[u8]) -> Answer<Option<(Vec<u8>, u32)>> {
        self.call("proxy_get_shared_data", key.len(), |world, vm| {
            let found = world.shared.get(&world.vms[vm].id).and_then(|data| data.get(key));
            found.cloned().map(Some).ok_or(Status::NOT_FOUND)
        })
    }

    /// `proxy_set_shared_data`: `cas` 0 writes whatever is there, and any number does where nothing is.
    pub fn set_shared_data(&self, key: &[u8], value: &[u8], cas: u32) -> Answer {
        self.call("proxy_set_shared_data", key.len() + value.len(), |world, vm| {
            let data = world.shared.entry(world.vms[vm].id.clone()).or_default();
            if data.get(key).is_some_and(|(_, now)| cas != 0 && cas != *now) {
                return Err(Status::CAS_MISMATCH);
            }
            data.insert(key.to_vec(), (value.to_vec(), world.next_cas));
            // 0 means whatever is there: it is no number of a value.
            world.next_cas = world.next_cas.checked_add(1).unwrap_or(1);
            Ok(())
        })
    }

    /// `proxy_register_shared_queue`: the queue's token; from now on this plugin is told of items.
    pub fn register_queue(&self, name: &[u8]) -> Answer<Option<u32>> {
        self.call("proxy_register_shared_queue", name.len(), |world, vm| {
            let root = world.root_of(vm, world.context(vm)).ok_or(Status::BAD_ARGUMENT)?;
            let next = world.queue_tokens.len() as u32 + 1;
            let token = *world.queue_tokens.entry((world.vms[vm].id.clone(), name.to_vec())).or_insert(next);
            world.queues.entry(token).or_insert_with(Queue::default).reader = (vm, world.roots[root].context);
            Ok(Some(token))
        })
    }

    /// `proxy_resolve_shared_queue`: the token of a queue of that `vm_id`; empty is the own one.
    pub fn resolve_queue(&self, vm_id: &[u8], name: &[u8]) -> Answer<Option<u32>> {
        self.call("proxy_resolve_shared_queue", vm_id.len() + name.len(), |world, vm| {
            let id = String::from_utf8_lossy(vm_id).into_owned();
            let id = if id.is_empty() { world.vms[vm].id.clone() } else { id };
            world.queue_tokens.get(&(id, name.to_vec())).copied().map(Some).ok_or(Status::NOT_FOUND)
        })
    }

    /// `proxy_enqueue_shared_queue`. The reader is told when time next passes.
    pub fn enqueue(&self, token: u32, item: &[u8]) -> Answer {
        self.call("proxy_enqueue_shared_queue", item.len(), |world, _| {
            let queue = world.queues.get_mut(&token).ok_or(Status::NOT_FOUND)?;
            queue.items.push_back(item.to_vec());
            let (vm, context) = queue.reader;
            world.ready.push((vm, context, token));
            Ok(())
        })
    }

    /// `proxy_dequeue_shared_queue`.
    pub fn dequeue(&self, token: u32) -> Answer<Option<Vec<u8>>> {
        self.call("proxy_dequeue_shared_queue", 0, |world, _| {
            let queue = world.queues.get_mut(&token).ok_or(Status::NOT_FOUND)?;
            queue.items.pop_front().map(Some).ok_or(Status::EMPTY)
        })
    }

    /// `proxy_get_header_map_pairs`, encoded; nothing where the map cannot be read now.
    pub fn header_pairs(&self, map: u32) -> Answer<Option<Vec<u8>>> {
        self.call("proxy_get_header_map_pairs", 0, |world, vm| {
            check_map(map)?;
            Ok(Some(world.pairs(vm, map).map(encode_pairs).unwrap_or_default()))
        })
    }

    /// `proxy_get_header_map_value`: the first of that name.
    pub fn header(&self, map: u32, name: &[u8]) -> Answer<Option<Vec<u8>>> {
        self.call("proxy_get_header_map_value", name.len(), |world, vm| {
            check_map(map)?;
            // At the end of a stream any map could be there, and one that is not is only missing.
            let missing = if world.logging(vm) { Status::NOT_FOUND } else { Status::BAD_ARGUMENT };
            let pairs = world.pairs(vm, map).ok_or(missing)?;
            let found = pairs.iter().find(|(other, _)| other.eq_ignore_ascii_case(name));
            found.map(|(_, value)| Some(value.clone())).ok_or(Status::NOT_FOUND)
        })
    }

    /// `proxy_get_header_map_size`: bytes of names and values, of a map that can be written now.
    pub fn header_map_size(&self, map: u32) -> Answer<Option<u32>> {
        self.call("proxy_get_header_map_size", 0, |world, vm| {
            check_map(map)?;
            let Some(Ctx::Stream { id, leg }) = world.ctx(vm) else { return Err(Status::BAD_ARGUMENT) };
            let stream = world.streams.get_mut(&id).ok_or(Status::BAD_ARGUMENT)?;
            let pairs = stream.writable(leg, map).ok_or(Status::BAD_ARGUMENT)?;
            Ok(Some(pairs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() as u32))
        })
    }

    fn edit(&self, name: &'static str, out: usize, map: u32, edit: impl FnOnce(&mut Pairs)) -> Answer {
        self.call(name, out, |world, vm| {
            check_map(map)?;
            let Some(Ctx::Stream { id, leg }) = world.ctx(vm) else { return Err(Status::BAD_ARGUMENT) };
            let stream = world.streams.get_mut(&id).ok_or(Status::BAD_ARGUMENT)?;
            edit(stream.writable(leg, map).ok_or(Status::BAD_ARGUMENT)?);
            if map == map::REQUEST_HEADERS {
                stream.route_cleared += 1;
            }
            Ok(())
        })
    }

    /// `proxy_add_header_map_value`: beside those of the same name, or, where the proxy keeps one, behind a comma.
    pub fn add_header(&self, map: u32, name: &[u8], value: &[u8]) -> Answer {
        let out = name.len() + value.len();
        self.edit("proxy_add_header_map_value", out, map, |pairs| add(map, pairs, name, value))
    }

    /// `proxy_replace_header_map_value`: one, at the end, in place of all of that name.
    pub fn replace_header(&self, map: u32, name: &[u8], value: &[u8]) -> Answer {
        let out = name.len() + value.len();
        self.edit("proxy_replace_header_map_value", out, map, |pairs| {
            let name = name.to_ascii_lowercase();
            pairs.retain(|(other, _)| *other != name);
            append(pairs, name, value);
        })
    }

    /// `proxy_remove_header_map_value`: all of that name.
    pub fn remove_header(&self, map: u32, name: &[u8]) -> Answer {
        self.edit("proxy_remove_header_map_value", name.len(), map, |pairs| {
            pairs.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        })
    }

    /// `proxy_set_header_map_pairs`: these in place of all. More than 1024, or more than 1 MiB, are none.
    pub fn set_header_pairs(&self, map: u32, encoded: &[u8]) -> Answer {
        self.edit("proxy_set_header_map_pairs", encoded.len(), map, |pairs| {
            pairs.clear();
            decode_pairs(encoded).iter().for_each(|(name, value)| add(map, pairs, name, value));
        })
    }

    /// `proxy_get_buffer_status`: the length.
    pub fn buffer_length(&self, kind: u32) -> Answer<Option<u32>> {
        self.call("proxy_get_buffer_status", 0, |world, vm| Ok(Some(bytes_of(world, vm, kind)?.len() as u32)))
    }

    /// `proxy_get_buffer_bytes`: at most so many from `start`; none beyond the end.
    pub fn buffer(&self, kind: u32, start: u32, max: u32) -> Answer<Option<Vec<u8>>> {
        self.call("proxy_get_buffer_bytes", 0, |world, vm| {
            let bytes = bytes_of(world, vm, kind)?;
            // The host adds in 64 bits, so 32-bit numbers never run over.
            let start = start as usize;
            let end = start.saturating_add(max as usize).min(bytes.len());
            Ok(Some(bytes.get(start..end).unwrap_or_default().to_vec()))
        })
    }

    /// `proxy_set_buffer_bytes`: in place of the first `length` bytes (0: before them), or behind them all (`start` at
    /// their end). Nothing else.
    pub fn set_buffer(&self, kind: u32, start: u32, length: u32, new: &[u8]) -> Answer {
        self.call("proxy_set_buffer_bytes", new.len(), |world, vm| {
            bytes_of(world, vm, kind)?;
            let Some(Ctx::Stream { id, leg }) = world.ctx(vm) else { return Err(Status::BAD_ARGUMENT) };
            let stream = world.streams.get_mut(&id).ok_or(Status::BAD_ARGUMENT)?;
            let bytes = stream.buffer_mut(leg, kind).ok_or(Status::BAD_ARGUMENT)?;
            match (start as usize, length as usize) {
                (0, length) => drop(bytes.splice(0..length.min(bytes.len()), new.iter().copied())),
                (start, _) if start > 0 && start >= bytes.len() => bytes.extend_from_slice(new),
                _ => return Err(Status::BAD_ARGUMENT),
            }
            Ok(())
        })
    }

    /// `proxy_http_call`: the call's token. The cluster must exist, and `:method`, `:path` and `:authority` must be
    /// there; a negative timeout is refused, and none is 0.
    pub fn http_call(
        &self,
        cluster: &[u8],
        headers: &[u8],
        body: &[u8],
        trailers: &[u8],
        timeout_ms: i32,
    ) -> Answer<Option<u32>> {
        let out = cluster.len() + headers.len() + body.len() + trailers.len();
        let mut made = None;
        let answer = self.call("proxy_http_call", out, |world, vm| {
            let root = world.root_of(vm, world.context(vm)).ok_or(Status::BAD_ARGUMENT)?;
            let timeout = u64::try_from(timeout_ms).map_err(|_| Status::BAD_ARGUMENT)?;
            let cluster = String::from_utf8_lossy(cluster).into_owned();
            if !world.clusters.contains_key(&cluster) {
                return Err(Status::BAD_ARGUMENT);
            }
            let mut headers = decode_pairs(headers);
            for needed in [":method", ":path", ":authority"] {
                if !headers.iter().any(|(name, _)| name == needed.as_bytes()) {
                    return Err(Status::BAD_ARGUMENT);
                }
            }
            if !body.is_empty() {
                headers.push((b"content-length".to_vec(), body.len().to_string().into_bytes()));
            }
            let trailers = decode_pairs(trailers);
            let request = Message::new(headers).chunk(body);
            let request = if trailers.is_empty() { request } else { request.trailers(trailers) };
            // The lowest two bits tell HTTP calls from gRPC's; they are 0 here.
            world.vms[vm].next_call += 4;
            world.next_call_id += 1;
            let call = HttpCall {
                token: world.vms[vm].next_call,
                vm: world.vms[vm].kind,
                cluster,
                request,
                timeout: Duration::from_millis(timeout),
                id: world.next_call_id,
                root,
                made_ns: world.now_ns,
            };
            let token = call.token;
            made = Some((Rc::clone(&world.clusters[&call.cluster]), call.clone()));
            world.calls.push(call);
            Ok(Some(token))
        });
        if let Some((responder, call)) = made {
            // The proxy is free here: what answers may look at it.
            let end = responder(&call);
            let timed_out = (!call.timeout.is_zero()).then(|| (call.timeout, CallEnd::Response(Message::timed_out())));
            let ends = [end, timed_out].into_iter().flatten();
            if let Some((after, end)) = ends.min_by_key(|(after, _)| *after) {
                let at = call.made_ns.saturating_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX));
                self.world.borrow_mut().ends.insert((at, call.id), end);
            }
        }
        answer
    }

    /// gRPC calls, which the emulator does not play: [`Status::UNIMPLEMENTED`].
    pub fn grpc(&self, name: &'static str) -> Answer<Option<u32>> {
        self.call(name, 0, |_, _| Err(Status::UNIMPLEMENTED))
    }

    /// `proxy_set_tick_period_milliseconds`, of the plugin; 0 turns it off.
    pub fn set_tick_period(&self, ms: u32) -> Answer {
        self.call("proxy_set_tick_period_milliseconds", 0, |world, vm| {
            let root = world.root_of(vm, world.context(vm)).ok_or(Status::BAD_ARGUMENT)?;
            let (context, period) = (world.roots[root].context, u64::from(ms) * 1_000_000);
            let due = world.now_ns + period;
            match ms {
                0 => drop(world.vms[vm].ticks.remove(&context)),
                _ => drop(world.vms[vm].ticks.insert(context, (period, due))),
            }
            Ok(())
        })
    }

    /// `proxy_define_metric`: an id of this VM, another one each time. The numbers belong to the name and the process.
    pub fn define_metric(&self, kind: u32, name: &[u8]) -> Answer<Option<u32>> {
        self.call("proxy_define_metric", name.len(), |world, vm| {
            let kinds = [MetricKind::Counter, MetricKind::Gauge, MetricKind::Histogram];
            let metric = *kinds.get(kind as usize).ok_or(Status::BAD_ARGUMENT)?;
            let name = String::from_utf8_lossy(name).into_owned();
            // Of another kind, another series; only the first has the plain name here.
            let other = world.metrics.get(&name).is_some_and(|known| known.kind != metric);
            let name = if other { format!("{name} ({metric:?})") } else { name };
            world.metrics.entry(name.clone()).or_insert_with(|| Metric { kind: metric, value: 0, samples: Vec::new() });
            let vm = &mut world.vms[vm];
            // The lowest two bits say the kind.
            vm.next_metric[kind as usize] += 4;
            let id = vm.next_metric[kind as usize];
            vm.metrics.insert(id, name);
            Ok(Some(id))
        })
    }

    /// `proxy_increment_metric`: a counter by more than 0, a gauge by anything.
    pub fn increment_metric(&self, id: u32, by: i64) -> Answer {
        self.call("proxy_increment_metric", 0, |world, vm| {
            let metric = metric(world, vm, id)?;
            match metric.kind {
                MetricKind::Counter if by <= 0 => return Err(Status::BAD_ARGUMENT),
                MetricKind::Histogram => return Err(Status::BAD_ARGUMENT),
                _ => metric.value = metric.value.wrapping_add_signed(by),
            }
            Ok(())
        })
    }

    /// `proxy_record_metric`: adds to a counter, sets a gauge, records in a histogram.
    pub fn record_metric(&self, id: u32, value: u64) -> Answer {
        self.call("proxy_record_metric", 0, |world, vm| {
            let metric = metric(world, vm, id).map_err(|_| Status::NOT_FOUND)?;
            match metric.kind {
                MetricKind::Counter => metric.value = metric.value.wrapping_add(value),
                MetricKind::Gauge => metric.value = value,
                MetricKind::Histogram => metric.samples.push(value),
            }
            Ok(())
        })
    }

    /// `proxy_get_metric`, of a counter or gauge.
    pub fn metric(&self, id: u32) -> Answer<Option<u64>> {
        self.call("proxy_get_metric", 0, |world, vm| {
            let metric = metric(world, vm, id)?;
            if metric.kind == MetricKind::Histogram { Err(Status::BAD_ARGUMENT) } else { Ok(Some(metric.value)) }
        })
    }

    /// `proxy_set_effective_context`: what follows is for that context of the same VM.
    pub fn set_effective_context(&self, context: u32) -> Answer {
        self.call("proxy_set_effective_context", 0, |world, vm| {
            let vm = &mut world.vms[vm];
            if context != 0 && !vm.contexts.contains_key(&context) {
                return Err(Status::BAD_ARGUMENT);
            }
            vm.effective = context;
            Ok(())
        })
    }

    /// `proxy_done`, of a plugin whose `proxy_on_done` asked for time.
    pub fn done(&self) -> Answer {
        self.call("proxy_done", 0, |world, vm| {
            let root = world.root_of(vm, world.context(vm)).ok_or(Status::NOT_FOUND)?;
            if world.roots[root].state != RootState::Pending {
                return Err(Status::NOT_FOUND);
            }
            world.vms[vm].after.push_back(Deferred::Deleted { root });
            Ok(())
        })
    }

    /// `proxy_call_foreign_function`: `declare_property` and `clear_route_cache`, and what the test gave.
    pub fn foreign_function(&self, name: &[u8], argument: &[u8]) -> Answer<Option<Vec<u8>>> {
        let mut own = None;
        let answer = self.call("proxy_call_foreign_function", name.len() + argument.len(), |world, vm| match name {
            b"declare_property" => {
                let (property, read_only) = declaration(argument).ok_or(Status::BAD_ARGUMENT)?;
                let root = world.root_of(vm, world.context(vm)).ok_or(Status::BAD_ARGUMENT)?;
                let declared = &mut world.roots[root].declared;
                if declared.contains_key(&property) {
                    return Err(Status::BAD_ARGUMENT);
                }
                declared.insert(property, read_only);
                Ok(Some(Vec::new()))
            }
            b"clear_route_cache" => {
                if let Some(Ctx::Stream { id, .. }) = world.ctx(vm)
                    && let Some(stream) = world.streams.get_mut(&id)
                {
                    stream.route_cleared += 1;
                }
                Ok(Some(Vec::new()))
            }
            _ => {
                own = Some(world.foreign.get(name).cloned().ok_or(Status::NOT_FOUND)?);
                Ok(Some(Vec::new()))
            }
        });
        // The proxy is free here, and what the test gave may look at it.
        let Some(own) = own else { return answer };
        let result = own(argument)?;
        self.world.borrow_mut().tally.bytes_in += result.len() as u64;
        Ok(Some(result))
    }

    /// `proxy_continue_stream`: 0 the request, 1 the response. It goes on when the VM has returned.
    pub fn continue_stream(&self, kind: u32) -> Answer {
        self.call("proxy_continue_stream", 0, |world, vm| {
            if kind > 1 {
                return Err(Status::BAD_ARGUMENT);
            }
            if let Some(Ctx::Stream { id, leg }) = world.ctx(vm) {
                if kind == 1 && world.streams.get(&id).is_some_and(|stream| stream.maps[2].is_none()) {
                    world.die("a plugin continued a response that is not there");
                }
                world.vms[vm].after.push_back(Deferred::Resume { stream: id, leg, response: kind == 1 });
                if let Some(stream) = world.streams.get_mut(&id) {
                    stream.forget_request(leg);
                }
            }
            Ok(())
        })
    }

    /// `proxy_close_stream`: resets an HTTP stream (0, 1), closes a connection (2, 3).
    pub fn close_stream(&self, kind: u32) -> Answer {
        self.call("proxy_close_stream", 0, |world, vm| {
            if kind > 3 {
                return Err(Status::BAD_ARGUMENT);
            }
            if let Some(Ctx::Stream { id, .. }) = world.ctx(vm)
                && let Some(stream) = world.streams.get_mut(&id)
            {
                stream.close(kind);
                if stream.logging && kind < 2 {
                    world.die("a plugin closed a stream in its log phase, which logs it again, and so on");
                }
            }
            Ok(())
        })
    }

    /// `proxy_get_status`: in the callback of a call that broke off, 11 and why; else 0.
    pub fn status(&self) -> Answer<Option<(u32, Vec<u8>)>> {
        self.call("proxy_get_status", 0, |world, vm| {
            let broken = world.root_of(vm, world.context(vm)).is_some_and(|root| world.roots[root].broken);
            Ok(Some(if broken { (11, b"reset".to_vec()) } else { (0, Vec::new()) }))
        })
    }

    /// `proxy_send_local_response`, when the VM has returned. `grpc_status` below 0 leaves it to the proxy.
    pub fn send_local_response(
        &self,
        status: u32,
        details: &[u8],
        body: &[u8],
        headers: &[u8],
        grpc_status: i32,
    ) -> Answer {
        let out = details.len() + body.len() + headers.len();
        self.call("proxy_send_local_response", out, |world, vm| {
            let reply = Reply {
                status,
                details: String::from_utf8_lossy(details).into_owned(),
                body: body.to_vec(),
                headers: decode_pairs(headers),
                grpc_status: u32::try_from(grpc_status).ok(),
            };
            if let Some(Ctx::Stream { id, .. }) = world.ctx(vm) {
                if world.streams.get(&id).is_some_and(|stream| stream.ending()) {
                    world.die("a plugin replied in the log or done phase of a stream");
                }
                world.vms[vm].after.push_back(Deferred::Reply { stream: id, reply });
            }
            world.vms[vm].stop_iteration = true;
            Ok(())
        })
    }
}

fn check_map(map: u32) -> Answer {
    if map > map::HTTP_CALL_TRAILERS { Err(Status::BAD_ARGUMENT) } else { Ok(()) }
}

fn metric(world: &mut World, vm: usize, id: u32) -> Answer<&mut Metric> {
    if id & 3 == 3 {
        return Err(Status::BAD_ARGUMENT);
    }
    let name = world.vms[vm].metrics.get(&id).ok_or(Status::NOT_FOUND)?;
    world.metrics.get_mut(name).ok_or(Status::NOT_FOUND)
}

fn bytes_of(world: &World, vm: usize, kind: u32) -> Answer<&[u8]> {
    match kind {
        buffer::VM_CONFIGURATION => Ok(&world.vms[vm].configuration),
        buffer::PLUGIN_CONFIGURATION => {
            let root = world.root_of(vm, world.context(vm)).ok_or(Status::NOT_FOUND)?;
            let root = &world.roots[root];
            if root.configuring { Ok(&root.plugin.configuration) } else { Err(Status::NOT_FOUND) }
        }
        buffer::HTTP_CALL_BODY => {
            let root = world.root_of(vm, world.context(vm)).ok_or(Status::NOT_FOUND)?;
            let answer = world.roots[root].answer.as_ref().ok_or(Status::NOT_FOUND)?;
            Ok(answer.chunks.first().map(Vec::as_slice).unwrap_or_default())
        }
        buffer::CALL_DATA => Ok(&[]),
        0..=buffer::UPSTREAM_DATA => match world.ctx(vm) {
            Some(Ctx::Stream { id, leg }) => {
                Ok(world.streams.get(&id).and_then(|stream| stream.buffer(leg, kind)).unwrap_or_default())
            }
            _ => Ok(&[]),
        },
        buffer::GRPC_MESSAGE => Ok(&[]),
        _ => Err(Status::BAD_ARGUMENT),
    }
}

/// Name and `readonly` of a `DeclarePropertyArguments` message: fields 1, a string, and 2, a bool.
fn declaration(mut bytes: &[u8]) -> Option<(Vec<u8>, bool)> {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = bytes.split_first()?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    let (mut name, mut read_only) = (None, false);
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        match (tag >> 3, tag & 7) {
            (field, 2) => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (text, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                if field == 1 {
                    name = Some(text.to_vec());
                }
            }
            (field, 0) => {
                let value = varint(&mut bytes)?;
                read_only |= field == 2 && value != 0;
            }
            _ => return None,
        }
    }
    Some((name?, read_only))
}
