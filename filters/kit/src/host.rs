//! What a filter may ask of the proxy, and how the proxy answers.

use crate::prelude::*;
use core::{fmt, ops::Deref};

/// Why the proxy did not do what was asked: the status of a hostcall, as the ABI numbers it.
///
/// Every hostcall of the kit gives it back as a value. Nothing in a filter may trap because of one: a trap ends every
/// plugin and every stream of that VM on that worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 1: no such header, property, key or metric.
    NotFound,
    /// 2: an argument that the host does not take.
    BadArgument,
    /// 8: shared data was written by somebody else since it was read.
    CasMismatch,
    /// Any other, by its number.
    Other(u32),
}

impl Status {
    /// Reads the number that a hostcall returned; `Ok` is 0.
    pub fn check(code: u32) -> Result<(), Status> {
        match code {
            0 => Ok(()),
            1 => Err(Status::NotFound),
            2 => Err(Status::BadArgument),
            8 => Err(Status::CasMismatch),
            other => Err(Status::Other(other)),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Status::NotFound => f.write_str("not found"),
            Status::BadArgument => f.write_str("bad argument"),
            Status::CasMismatch => f.write_str("changed meanwhile"),
            Status::Other(code) => write!(f, "status {code}"),
        }
    }
}

/// Bytes that the host gave. In the proxy they stay where the host wrote them, and go back to the kit's allocator when
/// dropped; natively they are a vector.
#[derive(Default)]
pub struct Bytes(Inner);

#[cfg(target_arch = "wasm32")]
type Inner = crate::abi::HostBuffer;
#[cfg(not(target_arch = "wasm32"))]
type Inner = Vec<u8>;

#[cfg(target_arch = "wasm32")]
impl From<crate::abi::HostBuffer> for Bytes {
    fn from(buffer: crate::abi::HostBuffer) -> Self {
        Self(buffer)
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Bytes {
    /// The length alone: what headers and properties hold does not belong into a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

/// The header maps of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// What goes upstream.
    Request,
    /// What goes back to the client.
    Response,
    /// What ends a response, such as gRPC's status. For [`Host::header`] in a request's log.
    ResponseTrailers,
    /// What answers a call. For [`Answer`](crate::Answer).
    Answer,
}

impl Map {
    /// As the ABI numbers them.
    pub const fn number(self) -> u32 {
        match self {
            Map::Request => 0,
            Map::Response => 2,
            Map::ResponseTrailers => 3,
            Map::Answer => 6,
        }
    }
}

/// What a metric does with the numbers it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only goes up.
    Counter,
    /// Goes up and down; workers share one value, so move it by differences.
    Gauge,
    /// A distribution of unsigned integers.
    Histogram,
}

impl MetricKind {
    /// As the ABI numbers them.
    pub const fn number(self) -> u32 {
        match self {
            MetricKind::Counter => 0,
            MetricKind::Gauge => 1,
            MetricKind::Histogram => 2,
        }
    }
}

/// A reply of the filter's own, in place of the upstream's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Header names in lower case, and their values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// May be empty.
    pub body: Vec<u8>,
    /// For gRPC callers, who get a trailers-only reply; `None` lets the proxy map the HTTP status.
    pub grpc_status: Option<u8>,
    /// A short word for `%RESPONSE_CODE_DETAILS%`, without spaces.
    pub details: &'static str,
}

/// An HTTP request of the filter's own.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Of the proxy's clusters.
    pub cluster: &'a str,
    /// `:method`, `:path` and `:authority` among them.
    pub headers: &'a [(String, Vec<u8>)],
    /// May be empty.
    pub body: &'a [u8],
    /// How long it may take; 0 is without end.
    pub timeout_ms: u32,
}

/// The proxy, as a filter sees it.
///
/// In the proxy this is one hostcall per method; in tests, `testing::NativeHost`. No method panics, blocks or retries.
/// Those that return [`Bytes`] are several times dearer than the others,
/// because the host enters the VM again for memory: `docs/performance.md` has figures.
pub trait Host {
    /// Wall clock, nanoseconds since 1970; 0 where the host does not say.
    fn now_ns(&self) -> u64;

    /// 32 bytes to seed the VM's generator with. Not for use per request: take [`Rng`](crate::Rng).
    fn seed(&self) -> [u8; 32];

    /// An attribute of the request, connection or plugin, such as `["xds", "cluster_name"]`. Integers come as 8 bytes
    /// little-endian, durations and timestamps as nanoseconds in an `i64`.
    fn property(&self, path: &[&str]) -> Result<Bytes, Status>;

    /// An attribute that is an integer, a duration or a time (nanoseconds): 8 bytes, little-endian.
    fn number(&self, path: &[&str]) -> Option<i64> {
        self.property(path).ok()?.first_chunk().map(|bytes| i64::from_le_bytes(*bytes))
    }

    /// Sets filter state `wasm.<key>`: what access logs print with `%FILTER_STATE(wasm.<key>:PLAIN)%`. One path
    /// segment, without NUL.
    fn set_filter_state(&self, key: &str, value: &[u8]) -> Result<(), Status>;

    /// From now on the first value of filter state `wasm.<key>` stands, for this plugin's requests: whoever sets it again
    /// gets [`Status::BadArgument`]. Only while a plugin is configured (Envoy's foreign function `declare_property`).
    fn declare_once(&self, key: &str) -> Result<(), Status>;

    /// Reads a key of the process-wide store, and the number to give to [`Host::set_shared_data`].
    fn shared_data(&self, key: &str) -> Result<(Bytes, u32), Status>;

    /// Writes a key of the process-wide store. `cas` 0 writes whatever is there; another number writes only if nobody
    /// wrote since it was read. Keys start with `meshfilter/<filter>/`: without a `vm_id`, all plugins share the store.
    fn set_shared_data(&self, key: &str, value: &[u8], cas: u32) -> Result<(), Status>;

    /// Makes a new id for a series. For [`Metrics`](crate::Metrics): an id is to be kept, each call makes another.
    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status>;

    /// What a counter or gauge stands at, over all workers: a number, and so as cheap as moving it.
    fn metric(&self, id: u32) -> Result<u64, Status>;

    /// Moves a counter or gauge. Counters take only positive numbers.
    fn add_metric(&self, id: u32, delta: i64) -> Result<(), Status>;

    /// Records a value in a histogram, or sets a gauge.
    fn record_metric(&self, id: u32, value: u64) -> Result<(), Status>;

    /// The configuration of the plugin, as the proxy hands it over: JSON text, or nothing.
    fn configuration(&self) -> Result<Bytes, Status>;

    /// All pairs of a header map, in the ABI's encoding. For [`Headers`](crate::Headers).
    fn header_pairs(&self, map: Map) -> Result<Bytes, Status>;

    /// The value of a header; of several pairs of that name all, joined by commas.
    fn header(&self, map: Map, name: &str) -> Result<Bytes, Status>;

    /// Of the part of a body that passes, at most `max` bytes from `start` on. For [`Body`](crate::Body).
    fn body(&self, map: Map, start: usize, max: usize) -> Result<Bytes, Status>;

    /// Puts other bytes in place of the part of a body that passes, and of what was held before it.
    fn replace_body(&self, map: Map, bytes: &[u8]) -> Result<(), Status>;

    /// Adds a pair beside those of the same name.
    fn add_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status>;

    /// Puts one pair, at the end, in place of all of that name.
    fn replace_header(&self, map: Map, name: &[u8], value: &[u8]) -> Result<(), Status>;

    /// Removes every pair of that name.
    fn remove_header(&self, map: Map, name: &[u8]) -> Result<(), Status>;

    /// How often the plugin is to be told that time has passed, in milliseconds; 0 for never. Not for filters, which say it
    /// with [`Filter::tick_ms`](crate::Filter::tick_ms).
    fn set_tick(&self, ms: u32) -> Result<(), Status>;

    /// Sends an HTTP request to a cluster of the proxy; its number, by which
    /// [`Filter::answered`](crate::Filter::answered) will know it. [`Status::BadArgument`] where there is no such cluster.
    fn call(&self, call: &Call<'_>) -> Result<u32, Status>;

    /// Answers the client in place of the upstream.
    fn send_reply(&self, reply: &Reply) -> Result<(), Status>;
}

/// The argument of `declare_property` for a read-only key: a protobuf message of `name` (1) and `readonly` (2), written
/// here because nothing else in a module needs protobuf's encoder.
#[cfg(any(target_arch = "wasm32", test, feature = "testing"))]
pub(crate) fn read_only(key: &str) -> Vec<u8> {
    let length = u8::try_from(key.len()).ok().filter(|length| *length < 0x80).unwrap_or(0);
    [&[0x0a, length], key.as_bytes(), &[0x10, 1]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_wasm::types as abi;

    #[test]
    #[allow(clippy::as_conversions)]
    fn our_numbers_are_those_of_the_proxy_wasm_crate() {
        assert_eq!(Map::Request.number(), abi::MapType::HttpRequestHeaders as u32);
        assert_eq!(Map::Response.number(), abi::MapType::HttpResponseHeaders as u32);
        assert_eq!(Map::ResponseTrailers.number(), abi::MapType::HttpResponseTrailers as u32);
        assert_eq!(Map::Answer.number(), abi::MapType::HttpCallResponseHeaders as u32);
        assert_eq!(MetricKind::Counter.number(), abi::MetricType::Counter as u32);
        assert_eq!(MetricKind::Gauge.number(), abi::MetricType::Gauge as u32);
        assert_eq!(MetricKind::Histogram.number(), abi::MetricType::Histogram as u32);
        assert_eq!(Status::check(abi::Status::Ok as u32), Ok(()));
        assert_eq!(Status::check(abi::Status::NotFound as u32), Err(Status::NotFound));
        assert_eq!(Status::check(abi::Status::BadArgument as u32), Err(Status::BadArgument));
        assert_eq!(Status::check(abi::Status::CasMismatch as u32), Err(Status::CasMismatch));
        assert_eq!(Status::check(abi::Status::InternalFailure as u32), Err(Status::Other(10)));
        // src/abi.rs is there only in a module.
        assert_eq!(abi::BufferType::PluginConfiguration as u32, 7);
        assert_eq!(abi::BufferType::HttpCallResponseBody as u32, 4);
        assert_eq!(
            (abi::LogLevel::Trace as u32, abi::LogLevel::Error as u32, abi::LogLevel::Critical as u32),
            (0, 4, 5)
        );
        assert_eq!((log::Level::Error as u32, log::Level::Trace as u32), (1, 5));
    }
}
