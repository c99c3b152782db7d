//! The Proxy-Wasm ABI 0.2.1, crossed here and nowhere else.
//!
//! The calls and callbacks are our own page and not the `proxy-wasm` crate's, for three reasons. Its wrappers panic on
//! a status they do not expect and on a header value that is not UTF-8, which a client can send. Its dispatcher panics
//! on a context it does not know. And what an empty filter costs is mostly what its callbacks cost: see `make bench`.
//! Even for its types alone it would cost 27 KB of every module: it exports every callback itself, and nothing drops what
//! its tables of functions name. That our numbers are its numbers is a test.

// The only place that talks to the host in pointers. On wasm32 a pointer and a length are 32 bits wide.
#![allow(unsafe_code, clippy::as_conversions)]

use crate::host::{Bytes, Call, Host, Map, MetricKind, Reply, Status};
use crate::prelude::*;
use alloc::alloc::{alloc, dealloc};
use core::{alloc::Layout, cell::Cell};
use core::{
    ops::Deref,
    ptr::{NonNull, null, null_mut},
};

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, text: *const u8, len: usize) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_get_property(path: *const u8, len: usize, value: *mut *mut u8, value_len: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, len: usize, value: *const u8, value_len: usize) -> u32;
    fn proxy_get_shared_data(
        key: *const u8,
        len: usize,
        value: *mut *mut u8,
        value_len: *mut usize,
        cas: *mut u32,
    ) -> u32;
    fn proxy_set_shared_data(key: *const u8, len: usize, value: *const u8, value_len: usize, cas: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, len: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, delta: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
    fn proxy_set_tick_period_milliseconds(ms: u32) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_len: usize,
        headers: *const u8,
        headers_len: usize,
        body: *const u8,
        body_len: usize,
        trailers: *const u8,
        trailers_len: usize,
        timeout_ms: u32,
        token: *mut u32,
    ) -> u32;
    fn proxy_get_buffer_bytes(buffer: u32, start: usize, max: usize, value: *mut *mut u8, value_len: *mut usize)
    -> u32;
    fn proxy_set_buffer_bytes(buffer: u32, start: usize, length: usize, new: *const u8, new_len: usize) -> u32;
    fn proxy_get_header_map_pairs(map: u32, value: *mut *mut u8, value_len: *mut usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        name: *const u8,
        len: usize,
        value: *mut *mut u8,
        value_len: *mut usize,
    ) -> u32;
    fn proxy_add_header_map_value(map: u32, name: *const u8, len: usize, value: *const u8, value_len: usize) -> u32;
    fn proxy_replace_header_map_value(map: u32, name: *const u8, len: usize, value: *const u8, value_len: usize)
    -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, len: usize) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        len: usize,
        argument: *const u8,
        argument_len: usize,
        result: *mut *mut u8,
        result_len: *mut usize,
    ) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_len: usize,
        body: *const u8,
        body_len: usize,
        headers: *const u8,
        headers_len: usize,
        grpc_status: i32,
    ) -> u32;
}

// For memcmp and what else the compiler takes for granted; the target has it in its libc, which only std would link.
#[link(name = "c")]
unsafe extern "C" {
    fn __wasm_call_ctors();
}

/// The highest log level.
const CRITICAL: u32 = 5;
/// Of the buffers, those that hold a part of a body.
const REQUEST_BODY: u32 = 0;
const RESPONSE_BODY: u32 = 1;
/// The one that holds what answers a call.
const ANSWER_BODY: u32 = 4;
/// The one that holds the configuration.
const PLUGIN_CONFIGURATION: u32 = 7;

fn buffer(map: Map) -> u32 {
    match map {
        Map::Request => REQUEST_BODY,
        Map::Response | Map::ResponseTrailers => RESPONSE_BODY,
        Map::Answer => ANSWER_BODY,
    }
}

/// The host that the module runs in.
pub struct WasmHost;

/// Runs a hostcall that gives bytes back.
fn bytes(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Bytes, Status> {
    let (mut start, mut len) = (null_mut(), 0);
    Status::check(call(&mut start, &mut len))?;
    // SAFETY: the host put the bytes where `allocate` told it to, or says null for none.
    Ok(unsafe { HostBuffer::from_host(start, len) }.into())
}

impl Host for WasmHost {
    fn now_ns(&self) -> u64 {
        let mut time = 0;
        // SAFETY: the host writes one u64.
        match unsafe { proxy_get_current_time_nanoseconds(&mut time) } {
            0 => time,
            _ => 0,
        }
    }

    fn seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        if getrandom::fill(&mut seed).is_err() {
            // Without a source of randomness the clock has to tell VMs apart, and the place of the stack where it can.
            let time = self.now_ns().to_le_bytes();
            let place = seed.as_ptr().addr() as u64;
            for (to, from) in seed.iter_mut().zip(time.iter().chain(&place.to_le_bytes())) {
                *to = *from;
            }
        }
        seed
    }

    fn property(&self, path: &[&str]) -> Result<Bytes, Status> {
        let path = Path::new(path);
        // SAFETY: the path is readable for its length during the call.
        bytes(|value, len| unsafe { proxy_get_property(path.as_ptr(), path.len(), value, len) })
    }

    fn set_filter_state(&self, key: &str, value: &[u8]) -> Result<(), Status> {
        // SAFETY: both are readable for their lengths during the call.
        Status::check(unsafe { proxy_set_property(key.as_ptr(), key.len(), value.as_ptr(), value.len()) })
    }

    fn declare_once(&self, key: &str) -> Result<(), Status> {
        let (name, argument) = ("declare_property", crate::host::read_only(key));
        // SAFETY: both are readable for their lengths during the call.
        let result = bytes(|result, len| unsafe {
            proxy_call_foreign_function(name.as_ptr(), name.len(), argument.as_ptr(), argument.len(), result, len)
        });
        result.map(|_| ())
    }

    fn shared_data(&self, key: &str) -> Result<(Bytes, u32), Status> {
        let mut cas = 0;
        // SAFETY: the key is readable for its length; the host writes one u32.
        let value =
            bytes(|value, len| unsafe { proxy_get_shared_data(key.as_ptr(), key.len(), value, len, &mut cas) })?;
        Ok((value, cas))
    }

    fn set_shared_data(&self, key: &str, value: &[u8], cas: u32) -> Result<(), Status> {
        // SAFETY: both are readable for their lengths during the call.
        Status::check(unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas) })
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status> {
        let mut id = 0;
        // SAFETY: the name is readable for its length; the host writes one u32.
        Status::check(unsafe { proxy_define_metric(kind.number(), name.as_ptr(), name.len(), &mut id) })?;
        Ok(id)
    }

    fn metric(&self, id: u32) -> Result<u64, Status> {
        let mut value = 0;
        // SAFETY: the host writes one u64.
        Status::check(unsafe { proxy_get_metric(id, &mut value) })?;
        Ok(value)
    }

    fn add_metric(&self, id: u32, delta: i64) -> Result<(), Status> {
        // SAFETY: no pointers.
        Status::check(unsafe { proxy_increment_metric(id, delta) })
    }

    fn record_metric(&self, id: u32, value: u64) -> Result<(), Status> {
        // SAFETY: no pointers.
        Status::check(unsafe { proxy_record_metric(id, value) })
    }

    fn configuration(&self) -> Result<Bytes, Status> {
        // SAFETY: no pointers but those for the result.
        bytes(|value, len| unsafe { proxy_get_buffer_bytes(PLUGIN_CONFIGURATION, 0, usize::MAX, value, len) })
    }

    fn header_pairs(&self, map: Map) -> Result<Bytes, Status> {
        // SAFETY: no pointers but those for the result.
        bytes(|value, len| unsafe { proxy_get_header_map_pairs(map.number(), value, len) })
    }

    fn body(&self, map: Map, start: usize, max: usize) -> Result<Bytes, Status> {
        // SAFETY: no pointers but those for the result.
        bytes(|value, len| unsafe { proxy_get_buffer_bytes(buffer(map), start, max, value, len) })
    }

    fn replace_body(&self, map: Map, bytes: &[u8]) -> Result<(), Status> {
        // SAFETY: the bytes are readable for their length during the call.
        Status::check(unsafe { proxy_set_buffer_bytes(buffer(map), 0, usize::MAX, bytes.as_ptr(), bytes.len()) })
    }

    fn header(&self, map: Map, name: &str) -> Result<Bytes, Status> {
        // SAFETY: the name is readable for its length during the call.
        bytes(|value, len| unsafe { proxy_get_header_map_value(map.number(), name.as_ptr(), name.len(), value, len) })
    }

    fn add_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status> {
        // SAFETY: both are readable for their lengths during the call.
        Status::check(unsafe {
            proxy_add_header_map_value(map.number(), name.as_ptr(), name.len(), value.as_ptr(), value.len())
        })
    }

    fn replace_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status> {
        // SAFETY: both are readable for their lengths during the call.
        Status::check(unsafe {
            proxy_replace_header_map_value(map.number(), name.as_ptr(), name.len(), value.as_ptr(), value.len())
        })
    }

    fn remove_header(&self, map: Map, name: &[u8]) -> Result<(), Status> {
        // SAFETY: the name is readable for its length during the call.
        Status::check(unsafe { proxy_remove_header_map_value(map.number(), name.as_ptr(), name.len()) })
    }

    fn set_tick(&self, ms: u32) -> Result<(), Status> {
        // SAFETY: no pointers.
        Status::check(unsafe { proxy_set_tick_period_milliseconds(ms) })
    }

    fn call(&self, call: &Call<'_>) -> Result<u32, Status> {
        let (headers, trailers) = (crate::headers::encode(call.headers), crate::headers::encode(&[]));
        let mut token = 0;
        // SAFETY: all are readable for their lengths during the call; the host writes one u32.
        Status::check(unsafe {
            proxy_http_call(
                call.cluster.as_ptr(),
                call.cluster.len(),
                headers.as_ptr(),
                headers.len(),
                call.body.as_ptr(),
                call.body.len(),
                trailers.as_ptr(),
                trailers.len(),
                call.timeout_ms,
                &mut token,
            )
        })?;
        Ok(token)
    }

    fn send_reply(&self, reply: &Reply) -> Result<(), Status> {
        let headers = crate::headers::encode(&reply.headers);
        let grpc_status = reply.grpc_status.map_or(-1, i32::from);
        // SAFETY: all are readable for their lengths during the call.
        Status::check(unsafe {
            proxy_send_local_response(
                reply.status.into(),
                reply.details.as_ptr(),
                reply.details.len(),
                if reply.body.is_empty() { null() } else { reply.body.as_ptr() },
                reply.body.len(),
                headers.as_ptr(),
                headers.len(),
                grpc_status,
            )
        })
    }
}

/// A property's path as the ABI wants it: segments with a NUL between. Short ones need no allocation.
struct Path {
    short: [u8; 64],
    long: Vec<u8>,
    len: usize,
}

impl Path {
    fn new(segments: &[&str]) -> Self {
        let mut path = Self { short: [0; 64], long: Vec::new(), len: 0 };
        for segment in segments {
            let start = if path.len == 0 { 0 } else { path.len.saturating_add(1) };
            let end = start.saturating_add(segment.len());
            match path.short.get_mut(start..end) {
                Some(place) if path.long.is_empty() => place.copy_from_slice(segment.as_bytes()),
                _ => {
                    path.long = segments.join("\0").into_bytes();
                    path.len = path.long.len();
                    break;
                }
            }
            path.len = end;
        }
        path
    }
}

impl Deref for Path {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        if self.long.is_empty() { self.short.get(..self.len).unwrap_or_default() } else { &self.long }
    }
}

/// Memory that the host asked for and wrote to. Before the bytes stands how many there is room for.
#[derive(Default)]
pub struct HostBuffer {
    start: Option<NonNull<u8>>,
    len: usize,
}

/// Room for the capacity in front of the bytes; keeps them aligned to 8.
const HEAD: usize = 8;
/// A spare buffer larger than this goes back to the allocator.
const SPARE_MAX: usize = 64 * 1024;
/// Most header maps fit.
const ROOM_MIN: usize = 4 * 1024;

/// The last buffer given back, for the next call: most calls need no allocator at all.
static SPARE: Single<Cell<Option<NonNull<u8>>>> = Single(Cell::new(None));

/// What a module has one of: a VM runs on one thread, and the target has no others.
pub struct Single<T>(pub T);

// SAFETY: wasm32-wasip1 has one thread.
unsafe impl<T> Sync for Single<T> {}

/// 6 KB less than the target's own allocator.
#[global_allocator]
static ALLOCATOR: talc::wasm::WasmDynamicTalc = talc::wasm::new_wasm_dynamic_allocator();

/// Gives the host `size` bytes to write to; null where there is no memory.
pub fn allocate(size: usize) -> *mut u8 {
    if let Some(spare) = SPARE.0.take() {
        if room(spare) >= size {
            return spare.as_ptr();
        }
        release(spare);
    }
    let room = size.max(ROOM_MIN);
    let Some(layout) = layout(room) else { return null_mut() };
    // SAFETY: the layout is not empty; the head is inside and aligned.
    unsafe {
        let head = alloc(layout);
        if head.is_null() {
            return head;
        }
        head.cast::<usize>().write(room);
        head.add(HEAD)
    }
}

fn layout(room: usize) -> Option<Layout> {
    Layout::from_size_align(room.checked_add(HEAD)?, HEAD).ok()
}

fn room(start: NonNull<u8>) -> usize {
    // SAFETY: `start` came from `allocate`, which wrote the head.
    unsafe { start.as_ptr().sub(HEAD).cast::<usize>().read() }
}

fn release(start: NonNull<u8>) {
    if let Some(layout) = layout(room(start)) {
        // SAFETY: the same layout as in `allocate`.
        unsafe { dealloc(start.as_ptr().sub(HEAD), layout) }
    }
}

impl HostBuffer {
    /// # Safety
    /// `start` is null or came from [`allocate`] with at least `len` bytes, all written, and nobody else has it.
    unsafe fn from_host(start: *mut u8, len: usize) -> Self {
        Self { start: NonNull::new(start), len }
    }
}

impl Deref for HostBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self.start {
            // SAFETY: as promised to `from_host`.
            Some(start) => unsafe { core::slice::from_raw_parts(start.as_ptr(), self.len) },
            None => &[],
        }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            let spare = if room(start) > SPARE_MAX { Some(start) } else { SPARE.0.replace(Some(start)) };
            if let Some(spare) = spare {
                release(spare);
            }
        }
    }
}

/// What [`log`]'s macros of a filter say goes to the proxy's own log.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            // The ABI counts from trace, 0, to error, 4; `log` from error, 1, to trace, 5.
            write_log(5_u32.saturating_sub(record.level() as u32), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn write_log(level: u32, text: &str) {
    // SAFETY: the text is readable for its length. That it could not be logged cannot be logged.
    let _ = unsafe { proxy_log(level, text.as_ptr(), text.len()) };
}

/// For the module's `_initialize`, where a host allows nothing but logging.
pub fn initialize() {
    // SAFETY: the linker makes it; it is called once.
    unsafe { __wasm_call_ctors() };
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Info);
}

/// Where, and never what: a panic's text can hold what a request held.
#[panic_handler]
fn panicked(panic: &core::panic::PanicInfo<'_>) -> ! {
    let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line())).unwrap_or_default();
    write_log(CRITICAL, &format!("mesh-filters: panic at {place}"));
    core::arch::wasm32::unreachable()
}

/// Takes over the proxy's own log level, so that a line that it would not print costs nothing.
pub fn follow_log_level() {
    let mut level = 0;
    // SAFETY: the host writes one u32.
    if Status::check(unsafe { proxy_get_log_level(&mut level) }).is_ok() {
        log::set_max_level(match level {
            0 => log::LevelFilter::Trace,
            1 => log::LevelFilter::Debug,
            2 => log::LevelFilter::Info,
            3 => log::LevelFilter::Warn,
            _ => log::LevelFilter::Error,
        });
    }
}
