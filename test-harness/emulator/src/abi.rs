//! The Proxy-Wasm ABI 0.2.1, in names and numbers.

use std::fmt;

/// The status of a hostcall, as the ABI numbers it. `Ok` is the `Ok` of a `Result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// All went well: only for faults that claim it.
    pub const OK: Self = Self(0);
    /// No such thing.
    pub const NOT_FOUND: Self = Self(1);
    /// Not now, or not so.
    pub const BAD_ARGUMENT: Self = Self(2);
    /// A value that cannot be written as bytes.
    pub const SERIALIZATION_FAILURE: Self = Self(3);
    /// Bytes that cannot be read as what they should be.
    pub const PARSE_FAILURE: Self = Self(4);
    /// A pointer that points nowhere.
    pub const INVALID_MEMORY_ACCESS: Self = Self(6);
    /// A queue without items.
    pub const EMPTY: Self = Self(7);
    /// Somebody else wrote meanwhile.
    pub const CAS_MISMATCH: Self = Self(8);
    /// Anything else.
    pub const INTERNAL_FAILURE: Self = Self(10);
    /// Known, and not built.
    pub const UNIMPLEMENTED: Self = Self(12);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("ok"),
            1 => f.write_str("not found"),
            2 => f.write_str("bad argument"),
            3 => f.write_str("serialization failure"),
            4 => f.write_str("parse failure"),
            6 => f.write_str("invalid memory access"),
            7 => f.write_str("empty"),
            8 => f.write_str("cas mismatch"),
            10 => f.write_str("internal failure"),
            12 => f.write_str("unimplemented"),
            other => write!(f, "status {other}"),
        }
    }
}

/// What a hostcall gives back.
pub type Answer<T = ()> = Result<T, Status>;

/// Header pairs in their order; a name may stand there several times.
pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Pairs from text or bytes.
pub fn pairs<N: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: impl IntoIterator<Item = (N, V)>) -> Pairs {
    pairs.into_iter().map(|(name, value)| (name.as_ref().to_vec(), value.as_ref().to_vec())).collect()
}

/// The header maps, as the ABI numbers them.
pub mod map {
    #![allow(missing_docs, reason = "the names say it")]
    pub const REQUEST_HEADERS: u32 = 0;
    pub const REQUEST_TRAILERS: u32 = 1;
    pub const RESPONSE_HEADERS: u32 = 2;
    pub const RESPONSE_TRAILERS: u32 = 3;
    pub const GRPC_INITIAL_METADATA: u32 = 4;
    pub const GRPC_TRAILING_METADATA: u32 = 5;
    pub const HTTP_CALL_HEADERS: u32 = 6;
    pub const HTTP_CALL_TRAILERS: u32 = 7;
}

/// The buffers, as the ABI numbers them.
pub mod buffer {
    #![allow(missing_docs, reason = "the names say it")]
    pub const REQUEST_BODY: u32 = 0;
    pub const RESPONSE_BODY: u32 = 1;
    pub const DOWNSTREAM_DATA: u32 = 2;
    pub const UPSTREAM_DATA: u32 = 3;
    pub const HTTP_CALL_BODY: u32 = 4;
    pub const GRPC_MESSAGE: u32 = 5;
    pub const VM_CONFIGURATION: u32 = 6;
    pub const PLUGIN_CONFIGURATION: u32 = 7;
    pub const CALL_DATA: u32 = 8;
}

/// What a metric does with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

macro_rules! callbacks {
    ($($(#[$doc:meta])* $variant:ident $name:literal $($argument:ident)*;)+) => {
        /// An entry of the VM that the proxy calls. The first argument is always the context.
        #[allow(missing_docs, reason = "the ABI's own argument names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Callback { $($(#[$doc])* $variant { context: u32, $($argument: u32),* }),+ }

        impl Callback {
            /// The name of the export.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant { .. } => $name),+ }
            }

            /// The arguments, in order.
            #[must_use]
            pub fn arguments(self) -> Vec<u32> {
                match self { $(Self::$variant { context, $($argument),* } => vec![context, $($argument),*]),+ }
            }
        }
    };
}

callbacks! {
    /// A plugin (`parent` 0) or a stream of one begins.
    ContextCreate "proxy_on_context_create" parent;
    /// The VM starts, once more for each plugin in it.
    VmStart "proxy_on_vm_start" size;
    /// The plugin's configuration is there.
    Configure "proxy_on_configure" size;
    /// The period that the plugin asked for is over.
    Tick "proxy_on_tick";
    /// A queue of the plugin has an item.
    QueueReady "proxy_on_queue_ready" token;
    /// A TCP connection was accepted.
    NewConnection "proxy_on_new_connection";
    /// Bytes from the client.
    DownstreamData "proxy_on_downstream_data" size end;
    /// The client's side is closed: by 1 the proxy, 2 the peer.
    DownstreamClose "proxy_on_downstream_connection_close" peer;
    /// Bytes from the upstream.
    UpstreamData "proxy_on_upstream_data" size end;
    /// The upstream's side is closed.
    UpstreamClose "proxy_on_upstream_connection_close" peer;
    /// Request headers.
    RequestHeaders "proxy_on_request_headers" count end;
    /// A part of the request's body.
    RequestBody "proxy_on_request_body" size end;
    /// Request trailers.
    RequestTrailers "proxy_on_request_trailers" count;
    /// Response headers.
    ResponseHeaders "proxy_on_response_headers" count end;
    /// A part of the response's body.
    ResponseBody "proxy_on_response_body" size end;
    /// Response trailers.
    ResponseTrailers "proxy_on_response_trailers" count;
    /// An HTTP call of the plugin is over; without headers it failed.
    HttpCallResponse "proxy_on_http_call_response" token headers body trailers;
    /// May the context go? 0 asks for time, until `proxy_done`.
    Done "proxy_on_done";
    /// The stream is over and about to be logged.
    Log "proxy_on_log";
    /// The context is gone.
    Delete "proxy_on_delete";
}

/// The hostcalls of the ABI.
pub(crate) const HOSTCALLS: [(&str, &str); 39] = [
    ("proxy_log", "iii"),
    ("proxy_get_status", "iii"),
    ("proxy_set_property", "iiii"),
    ("proxy_get_property", "iiii"),
    ("proxy_send_local_response", "iiiiiiii"),
    ("proxy_get_shared_data", "iiiii"),
    ("proxy_set_shared_data", "iiiii"),
    ("proxy_register_shared_queue", "iii"),
    ("proxy_resolve_shared_queue", "iiiii"),
    ("proxy_dequeue_shared_queue", "iii"),
    ("proxy_enqueue_shared_queue", "iii"),
    ("proxy_get_header_map_value", "iiiii"),
    ("proxy_add_header_map_value", "iiiii"),
    ("proxy_replace_header_map_value", "iiiii"),
    ("proxy_remove_header_map_value", "iii"),
    ("proxy_get_header_map_pairs", "iii"),
    ("proxy_set_header_map_pairs", "iii"),
    ("proxy_get_header_map_size", "ii"),
    ("proxy_get_buffer_status", "iii"),
    ("proxy_get_buffer_bytes", "iiiii"),
    ("proxy_set_buffer_bytes", "iiiii"),
    ("proxy_http_call", "iiiiiiiiii"),
    ("proxy_grpc_call", "iiiiiiiiiiii"),
    ("proxy_grpc_stream", "iiiiiiiii"),
    ("proxy_grpc_close", "i"),
    ("proxy_grpc_cancel", "i"),
    ("proxy_grpc_send", "iiii"),
    ("proxy_set_tick_period_milliseconds", "i"),
    ("proxy_get_current_time_nanoseconds", "i"),
    ("proxy_define_metric", "iiii"),
    ("proxy_increment_metric", "il"),
    ("proxy_record_metric", "il"),
    ("proxy_get_metric", "ii"),
    ("proxy_set_effective_context", "i"),
    ("proxy_done", ""),
    ("proxy_call_foreign_function", "iiiiii"),
    ("proxy_continue_stream", "i"),
    ("proxy_close_stream", "i"),
    ("proxy_get_log_level", "i"),
];

/// The functions of WASI that Envoy 1.36 to 1.38 offers; later ones have more.
pub(crate) const WASI: [(&str, &str); 18] = [
    ("fd_write", "iiii"),
    ("fd_read", "iiii"),
    ("fd_seek", "ilii"),
    ("fd_close", "i"),
    ("fd_fdstat_get", "ii"),
    ("fd_fdstat_set_flags", "ii"),
    ("environ_get", "ii"),
    ("environ_sizes_get", "ii"),
    ("args_get", "ii"),
    ("args_sizes_get", "ii"),
    ("clock_time_get", "ili"),
    ("random_get", "ii"),
    ("sched_yield", ""),
    ("poll_oneoff", "iiii"),
    ("proc_exit", "i"),
    ("path_open", "iiiiillii"),
    ("fd_prestat_get", "ii"),
    ("fd_prestat_dir_name", "iii"),
];

/// The most pairs that the host reads from a module; more, and it takes the map for empty.
const MAX_PAIRS: usize = 1024;
/// The most bytes of pairs that the host reads from a module.
const MAX_PAIRS_BYTES: usize = 1 << 20;

/// Pairs as the ABI encodes them: their count, all lengths, then names and values, each with a NUL behind it.
#[must_use]
pub fn encode_pairs(pairs: &Pairs) -> Vec<u8> {
    if pairs.is_empty() {
        return Vec::new();
    }
    let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
    let mut encoded = (pairs.len() as u32).to_le_bytes().to_vec();
    for (name, value) in pairs {
        encoded.extend(length(name));
        encoded.extend(length(value));
    }
    for (name, value) in pairs {
        for part in [name, value] {
            encoded.extend_from_slice(part);
            encoded.push(0);
        }
    }
    encoded
}

/// Reads [`encode_pairs`] back as the proxy does: what is not exactly so, and what is too much, is an empty map.
#[must_use]
pub fn decode_pairs(bytes: &[u8]) -> Pairs {
    if bytes.len() > MAX_PAIRS_BYTES {
        return Pairs::new();
    }
    let decode = || {
        let number = |at: usize| -> Option<usize> {
            let bytes = bytes.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
        };
        let count = number(0)?;
        if count > MAX_PAIRS {
            return None;
        }
        let mut at = 4 + 8 * count;
        let mut text = |length: usize| {
            let text = bytes.get(at..at.checked_add(length)?)?;
            at += length;
            (*bytes.get(at)? == 0).then_some(())?;
            at += 1;
            Some(text.to_vec())
        };
        let mut pairs = Pairs::new();
        for pair in 0..count {
            let (name, value) = (number(4 + 8 * pair)?, number(8 + 8 * pair)?);
            pairs.push((text(name)?, text(value)?));
        }
        (at == bytes.len()).then_some(pairs)
    };
    decode().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_back_as_they_were() {
        let all: Vec<u8> = (0..=255).collect();
        let some = pairs([(&b"a"[..], &b"1"[..]), (b"", b""), (b"a", &all)]);
        assert_eq!(decode_pairs(&encode_pairs(&some)), some);
        assert_eq!(encode_pairs(&Pairs::new()), b"");
    }

    #[test]
    fn what_is_no_map_or_too_much_is_an_empty_one() {
        let encoded = encode_pairs(&pairs([("a", "1"), ("b", "2")]));
        for wrong in [&encoded[..encoded.len() - 1], &[&encoded[..], b"x"].concat(), b"", b"\x01", &[0xff; 64]] {
            assert_eq!(decode_pairs(wrong), Pairs::new());
        }
        let full = pairs((0..1024).map(|n| (n.to_string(), "x")));
        assert_eq!(decode_pairs(&encode_pairs(&full)).len(), 1024);
        let more = pairs((0..1025).map(|n| (n.to_string(), "x")));
        assert_eq!(decode_pairs(&encode_pairs(&more)), Pairs::new());
        let heavy = pairs([("a", vec![b'x'; 1 << 20])]);
        assert_eq!(decode_pairs(&encode_pairs(&heavy)), Pairs::new());
    }
}
