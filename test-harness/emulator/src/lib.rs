//! Plays Envoy to a Proxy-Wasm module.
//!
//! A filter's logic that spans several VMs, odd phases or failing hostcalls cannot be tested through sockets alone.
//! Here a built `.wasm` runs in an interpreter, and the proxy around it is a value in memory: worker and main threads
//! with a VM each, the canary that tries a configuration, root and stream contexts, shared data with CAS, queues, ticks,
//! HTTP calls, metrics, traps and reloads. Time is virtual and randomness seeded, so what happens once happens again.
//! Every hostcall is counted, and can be made to fail.
//!
//! ```
//! use emulator::{Message, Module, Plugin, Proxy};
//!
//! // A module that sets a header; in a test, `Module::read("dist/my-filter.wasm")?`.
//! # let wat = r#"(module
//! #   (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
//! #   (memory (export "memory") 1) (data (i32.const 0) "x-helloworld")
//! #   (func (export "proxy_abi_version_0_2_1"))
//! #   (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 1024))
//! #   (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
//! #     (call $add (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 7) (i32.const 5))))"#;
//! # let module = Module::parse(&wat::parse_str(wat)?)?;
//! // Two workers, a seed; one plugin where traffic comes in.
//! let proxy = Proxy::new(2, 1);
//! proxy.push("in", [Plugin::new("hello", &module).configuration("{}")])?;
//!
//! let request = Message::new([(":method", "GET"), (":path", "/"), (":authority", "a")]);
//! let response = Message::new([(":status", "200")]).chunk("ok");
//! let done = proxy.exchange("in", 0, &request, &response);
//! assert_eq!(done.upstream.all("x-hello"), [b"world"]);
//! assert_eq!(proxy.tally().hostcalls["proxy_add_header_map_value"], 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`Proxy`] is the proxy: [`push`](Proxy::push) a configuration, let time [`advance`](Proxy::advance), read logs,
//!   metrics, shared data and what it all cost.
//! - [`Module`] is a built module, [`Plugin`] its place in a chain. [`Code`] and [`Guest`] let native code stand in for a
//!   module, over the same [`Host`].
//! - [`Proxy::exchange`] runs a whole request; [`HttpStream`] and [`TcpStream`] go phase by phase, several at once.
//! - [`Fault`] makes a hostcall fail, or lie.
//!
//! What the host does is what Envoy does, in what surprises most of all. The tests name each such fact, and the same
//! scenarios run against the real one.
//!
//! What would kill the real proxy, such as a reply in the log phase, is a panic.
//!
//! What it does not play, the README says.
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "runs in tests, not in a proxy: a broken assumption shall stop the test"
)]

mod abi;
mod chain;
mod host;
mod message;
mod plugin;
mod property;
mod proxy;
mod stream;
mod wasm;
mod world;

pub use abi::{Answer, Callback, MetricKind, Pairs, Status, buffer, decode_pairs, encode_pairs, map, pairs};
pub use host::Host;
pub use message::{Message, Reply, Sent};
pub use plugin::{Code, FailurePolicy, Guest, Plugin};
pub use property::Value;
pub use proxy::{Proxy, Refused, VmState};
pub use stream::{Exchange, HttpStream, Peer, TcpStream};
pub use wasm::Module;
pub use world::{CallEnd, Fault, HttpCall, LogLine, Metric, Reloads, Tally, Thread, VmKind};
