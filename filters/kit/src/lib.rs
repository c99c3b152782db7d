//! What every filter shares.
#![doc = include_str!("../README.md")]
// Without std a module is half as large: std brings its own printing of panics, threads and environment.
#![no_std]

#[doc(hidden)]
pub extern crate alloc;
#[cfg(not(target_arch = "wasm32"))]
extern crate std;

#[cfg(target_arch = "wasm32")]
pub mod abi;
mod body;
pub mod config;
mod environment;
mod filter;
mod headers;
mod host;
mod metrics;
mod module;
mod random;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vm;

/// What `std` has in its prelude and `core` has not; a filter is built without std.
pub mod prelude {
    pub use alloc::{
        borrow::ToOwned,
        boxed::Box,
        format,
        string::{String, ToString},
        vec,
        vec::Vec,
    };
}

pub use body::{Answer, Body, Pass};
pub use environment::environment;
pub use filter::{Common, Context, Filter, Flow, Phases, Problem, Refusal, RootContext};
pub use headers::Headers;
pub use host::{Bytes, Call, Host, Map, MetricKind, Reply, Status};
pub use log;
pub use metrics::{Labels, MAX_SERIES, Metric, Metrics, OVERFLOW, tag_regex};
#[doc(hidden)]
pub use module::lists;
pub use random::Rng;
#[doc(hidden)]
pub use serde;
pub use vm::{Next, Vm};
