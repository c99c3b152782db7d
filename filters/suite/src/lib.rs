//! The four filters in one module: one VM, one read of the headers, one tick.
//!
//! No logic of its own. The order is the reason for this page:
//!
//! 1. trace-id, so that whatever becomes of a request has a trace.
//! 2. latency, so that what the breaker turns away is counted and timed like everything else.
//! 3. log-scrub, so that a header which it cleans on its way upstream is clean where it becomes the name of a resource,
//!    and with it a label and a line of the log.
//! 4. circuit-breaker, next to the upstream: it decides when all others know of the request, and an answer meets it first,
//!    as the upstream gave it.
//!
//! Answers meet them in the reverse order. Logs are written in this one, so that log-scrub's line has the trace.
#![no_std]

use circuit_breaker::CircuitBreaker;
use latency::Latency;
use log_scrub::LogScrub;
use trace_id::TraceId;

kit::compose! {
    /// trace-id, latency, log-scrub and circuit-breaker, in this order.
    #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
    pub mod filters: Suite = "suite" {
        /// trace-id: a valid trace context for every request. Left out, it is off.
        trace_id: TraceId,
        /// latency: where the time of a request went. Left out, it is off.
        latency: Latency,
        /// log-scrub: clean copies for access logs. Left out, it is off.
        log_scrub: LogScrub,
        /// circuit-breaker: breaks the circuit to a sick upstream. Left out, it is off.
        circuit_breaker: CircuitBreaker,
    }
}

pub use filters::Suite;

kit::export!(Suite);
