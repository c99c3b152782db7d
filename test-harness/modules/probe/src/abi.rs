//! The hostcalls of ABI 0.2.1, each with its status and what it gives.
#![allow(unsafe_code, reason = "the only place that talks to the host in pointers")]

use std::ffi::c_void;
use std::ptr::null_mut;

type Out = *mut *mut u8;

#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_log(level: u32, text: *const u8, len: usize) -> u32;
    fn proxy_get_log_level(level: *mut u32) -> u32;
    fn proxy_get_status(code: *mut u32, value: Out, value_len: *mut usize) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
    fn proxy_get_property(path: *const u8, len: usize, value: Out, value_len: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, len: usize, value: *const u8, value_len: usize) -> u32;
    fn proxy_get_shared_data(key: *const u8, len: usize, value: Out, value_len: *mut usize, cas: *mut u32) -> u32;
    fn proxy_set_shared_data(key: *const u8, len: usize, value: *const u8, value_len: usize, cas: u32) -> u32;
    fn proxy_register_shared_queue(name: *const u8, len: usize, token: *mut u32) -> u32;
    fn proxy_resolve_shared_queue(
        vm: *const u8,
        vm_len: usize,
        name: *const u8,
        name_len: usize,
        token: *mut u32,
    ) -> u32;
    fn proxy_enqueue_shared_queue(token: u32, value: *const u8, len: usize) -> u32;
    fn proxy_dequeue_shared_queue(token: u32, value: Out, value_len: *mut usize) -> u32;
    fn proxy_get_header_map_value(map: u32, name: *const u8, len: usize, value: Out, value_len: *mut usize) -> u32;
    fn proxy_get_header_map_pairs(map: u32, value: Out, value_len: *mut usize) -> u32;
    fn proxy_get_header_map_size(map: u32, size: *mut usize) -> u32;
    fn proxy_add_header_map_value(map: u32, name: *const u8, len: usize, value: *const u8, value_len: usize) -> u32;
    fn proxy_replace_header_map_value(map: u32, name: *const u8, len: usize, value: *const u8, value_len: usize)
    -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, len: usize) -> u32;
    fn proxy_set_header_map_pairs(map: u32, pairs: *const u8, len: usize) -> u32;
    fn proxy_get_buffer_bytes(buffer: u32, start: usize, max: usize, value: Out, value_len: *mut usize) -> u32;
    fn proxy_get_buffer_status(buffer: u32, length: *mut usize, flags: *mut u32) -> u32;
    fn proxy_set_buffer_bytes(buffer: u32, start: usize, max: usize, value: *const u8, len: usize) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, len: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, delta: i64) -> u32;
    fn proxy_record_metric(id: u32, value: u64) -> u32;
    fn proxy_get_metric(id: u32, value: *mut u64) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_len: usize,
        headers: *const u8,
        headers_len: usize,
        body: *const u8,
        body_len: usize,
        trailers: *const u8,
        trailers_len: usize,
        timeout: u32,
        token: *mut u32,
    ) -> u32;
    fn proxy_done() -> u32;
    fn proxy_continue_stream(stream: u32) -> u32;
    fn proxy_close_stream(stream: u32) -> u32;
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
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        len: usize,
        argument: *const u8,
        argument_len: usize,
        value: Out,
        value_len: *mut usize,
    ) -> u32;
}

#[link(name = "c")]
unsafe extern "C" {
    fn __wasm_call_ctors();
    fn malloc(size: usize) -> *mut c_void;
    fn free(start: *mut c_void);
}

/// A status, and what the host gave with it; empty where it gave nothing.
pub(crate) type Given<T> = (u32, T);

/// Name and value of each field.
pub(crate) type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

pub(crate) fn initialize() {
    // SAFETY: the linker makes it; it is called once.
    unsafe { __wasm_call_ctors() }
}

/// Memory that the host writes to, and [`given`] frees.
pub(crate) fn allocate(size: usize) -> *mut u8 {
    // SAFETY: any size may be asked for.
    unsafe { malloc(size.max(1)).cast() }
}

fn given(call: impl FnOnce(Out, *mut usize) -> u32) -> Given<Vec<u8>> {
    let (mut start, mut len) = (null_mut::<u8>(), 0);
    let status = call(&mut start, &mut len);
    if start.is_null() {
        return (status, Vec::new());
    }
    // SAFETY: the host wrote so many bytes into what `allocate` gave it; nobody else frees them.
    let bytes = unsafe { std::slice::from_raw_parts(start, len) }.to_vec();
    unsafe { free(start.cast()) };
    (status, bytes)
}

/// How the ABI writes a header map: the count, the two lengths of each pair, then the text of each with a NUL.
fn encoded(pairs: &Pairs) -> Vec<u8> {
    let mut out = (pairs.len() as u32).to_le_bytes().to_vec();
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        out.extend((text.len() as u32).to_le_bytes());
    }
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        out.extend_from_slice(text);
        out.push(0);
    }
    out
}

fn decoded(bytes: &[u8]) -> Option<Pairs> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let count = number(0)?;
    let mut at = 4 + 8 * count;
    let mut text = |len: usize| {
        let text = bytes.get(at..at + len)?.to_vec();
        at += len + 1;
        Some(text)
    };
    (0..count).map(|pair| Some((text(number(4 + 8 * pair)?)?, text(number(8 + 8 * pair)?)?))).collect()
}

pub(crate) fn log(level: u32, text: &[u8]) -> u32 {
    // SAFETY: the text is readable for its length, here and in all calls below.
    unsafe { proxy_log(level, text.as_ptr(), text.len()) }
}

/// A call that gives one number.
macro_rules! number {
    ($($call:ident as $name:ident($($arg:ident: $type:ty),*) -> $number:ty;)*) => { $(
        pub(crate) fn $name($($arg: $type),*) -> Given<u64> {
            let mut number: $number = 0;
            // SAFETY: the host writes one number of this size.
            let status = unsafe { $call($($arg,)* &mut number) };
            (status, number as u64)
        }
    )* };
}

number! {
    proxy_get_log_level as log_level() -> u32;
    proxy_get_current_time_nanoseconds as time() -> u64;
    proxy_get_metric as get_metric(id: u32) -> u64;
    proxy_get_header_map_size as map_size(map: u32) -> usize;
}

pub(crate) fn get_status() -> Given<(u32, Vec<u8>)> {
    let mut code = 0;
    // SAFETY: the host writes one u32, and bytes into what it allocated.
    let (status, message) = given(|value, len| unsafe { proxy_get_status(&mut code, value, len) });
    (status, (code, message))
}

pub(crate) fn get_property(path: &[u8]) -> Given<Vec<u8>> {
    // SAFETY: as above.
    given(|value, len| unsafe { proxy_get_property(path.as_ptr(), path.len(), value, len) })
}

pub(crate) fn set_property(path: &[u8], value: &[u8]) -> u32 {
    // SAFETY: as above.
    unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) }
}

/// The value and its number for compare-and-swap.
pub(crate) fn get_shared(key: &[u8]) -> Given<(Vec<u8>, u32)> {
    let mut cas = 0;
    // SAFETY: as above, and the host writes one u32.
    let (status, value) =
        given(|value, len| unsafe { proxy_get_shared_data(key.as_ptr(), key.len(), value, len, &mut cas) });
    (status, (value, cas))
}

pub(crate) fn set_shared(key: &[u8], value: &[u8], cas: u32) -> u32 {
    // SAFETY: as above.
    unsafe { proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas) }
}

pub(crate) fn register_queue(name: &[u8]) -> Given<u32> {
    let mut token = 0;
    // SAFETY: as above, and the host writes one u32.
    (unsafe { proxy_register_shared_queue(name.as_ptr(), name.len(), &mut token) }, token)
}

pub(crate) fn resolve_queue(vm: &[u8], name: &[u8]) -> Given<u32> {
    let mut token = 0;
    // SAFETY: as above, and the host writes one u32.
    let status = unsafe { proxy_resolve_shared_queue(vm.as_ptr(), vm.len(), name.as_ptr(), name.len(), &mut token) };
    (status, token)
}

pub(crate) fn enqueue(token: u32, value: &[u8]) -> u32 {
    // SAFETY: as above.
    unsafe { proxy_enqueue_shared_queue(token, value.as_ptr(), value.len()) }
}

pub(crate) fn dequeue(token: u32) -> Given<Vec<u8>> {
    // SAFETY: as above.
    given(|value, len| unsafe { proxy_dequeue_shared_queue(token, value, len) })
}

pub(crate) fn get_header(map: u32, name: &[u8]) -> Given<Vec<u8>> {
    // SAFETY: as above.
    given(|value, len| unsafe { proxy_get_header_map_value(map, name.as_ptr(), name.len(), value, len) })
}

/// `None` when the bytes are no map.
pub(crate) fn get_map(map: u32) -> Given<Option<Pairs>> {
    // SAFETY: as above.
    let (status, bytes) = given(|value, len| unsafe { proxy_get_header_map_pairs(map, value, len) });
    (status, decoded(&bytes))
}

pub(crate) fn add_header(map: u32, name: &[u8], value: &[u8]) -> u32 {
    // SAFETY: as above.
    unsafe { proxy_add_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) }
}

pub(crate) fn replace_header(map: u32, name: &[u8], value: &[u8]) -> u32 {
    // SAFETY: as above.
    unsafe { proxy_replace_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) }
}

pub(crate) fn remove_header(map: u32, name: &[u8]) -> u32 {
    // SAFETY: as above.
    unsafe { proxy_remove_header_map_value(map, name.as_ptr(), name.len()) }
}

pub(crate) fn set_map(map: u32, pairs: &Pairs) -> u32 {
    let pairs = encoded(pairs);
    // SAFETY: as above.
    unsafe { proxy_set_header_map_pairs(map, pairs.as_ptr(), pairs.len()) }
}

pub(crate) fn get_buffer(buffer: u32, start: usize, max: usize) -> Given<Vec<u8>> {
    // SAFETY: as above.
    given(|value, len| unsafe { proxy_get_buffer_bytes(buffer, start, max, value, len) })
}

/// The length and the flags.
pub(crate) fn buffer_status(buffer: u32) -> Given<(usize, u32)> {
    let (mut length, mut flags) = (0, 0);
    // SAFETY: the host writes two numbers.
    let status = unsafe { proxy_get_buffer_status(buffer, &mut length, &mut flags) };
    (status, (length, flags))
}

pub(crate) fn set_buffer(buffer: u32, start: usize, max: usize, value: &[u8]) -> u32 {
    // SAFETY: as above.
    unsafe { proxy_set_buffer_bytes(buffer, start, max, value.as_ptr(), value.len()) }
}

pub(crate) fn define_metric(kind: u32, name: &[u8]) -> Given<u32> {
    let mut id = 0;
    // SAFETY: as above, and the host writes one u32.
    (unsafe { proxy_define_metric(kind, name.as_ptr(), name.len(), &mut id) }, id)
}

pub(crate) fn increment_metric(id: u32, delta: i64) -> u32 {
    // SAFETY: no pointers.
    unsafe { proxy_increment_metric(id, delta) }
}

pub(crate) fn record_metric(id: u32, value: u64) -> u32 {
    // SAFETY: no pointers.
    unsafe { proxy_record_metric(id, value) }
}

/// The token.
pub(crate) fn http_call(cluster: &[u8], headers: &Pairs, body: &[u8], trailers: &Pairs, timeout: u32) -> Given<u32> {
    let (headers, trailers) = (encoded(headers), encoded(trailers));
    let mut token = 0;
    // SAFETY: as above, and the host writes one u32.
    let status = unsafe {
        proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            body.as_ptr(),
            body.len(),
            trailers.as_ptr(),
            trailers.len(),
            timeout,
            &mut token,
        )
    };
    (status, token)
}

pub(crate) fn done() -> u32 {
    // SAFETY: no pointers.
    unsafe { proxy_done() }
}

pub(crate) fn continue_stream(stream: u32) -> u32 {
    // SAFETY: no pointers.
    unsafe { proxy_continue_stream(stream) }
}

pub(crate) fn close_stream(stream: u32) -> u32 {
    // SAFETY: no pointers.
    unsafe { proxy_close_stream(stream) }
}

pub(crate) fn send_reply(status: u32, details: &[u8], body: &[u8], headers: &Pairs, grpc_status: i32) -> u32 {
    let headers = encoded(headers);
    // SAFETY: as above.
    unsafe {
        proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status,
        )
    }
}

pub(crate) fn set_tick(period: u32) -> u32 {
    // SAFETY: no pointers.
    unsafe { proxy_set_tick_period_milliseconds(period) }
}

pub(crate) fn set_effective_context(context: u32) -> u32 {
    // SAFETY: no pointers.
    unsafe { proxy_set_effective_context(context) }
}

pub(crate) fn call_foreign(name: &[u8], argument: &[u8]) -> Given<Vec<u8>> {
    // SAFETY: as above.
    given(|value, len| unsafe {
        proxy_call_foreign_function(name.as_ptr(), name.len(), argument.as_ptr(), argument.len(), value, len)
    })
}
