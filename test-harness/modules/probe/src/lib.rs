//! Does in each callback what its configuration lists, and logs what came of it: a module to ask a host how it behaves.
//!
//! The configuration is a JSON object: for each callback a list of steps, each a list of a name and its arguments.
//!
//! ```json
//! { "request_headers": [["get_header", "request", "x-a"], ["return", "pause"]], "log": [["get_property", "response", "code"]] }
//! ```
//!
//! Callbacks are named as the ABI's exports without `proxy_on_`. `vm_start` takes its steps from the VM's configuration,
//! because the plugin's is not there yet; `context_create` of a stream from its root's.
//!
//! Every callback logs one line at level warn, `probe ` and an object:
//!
//! | key | what |
//! | --- | --- |
//! | `cb` | the callback |
//! | `vm` | a random number that this VM chose |
//! | `cx`, `root` | the context, and the root that it belongs to |
//! | `name` | what the configuration holds as `name`, once it is there |
//! | `args` | the callback's other arguments |
//! | `steps` | for each step `[name, status, value]`, the value where there is one |
//! | `returned` | what the callback returned, where it returns anything |
//!
//! Bytes, in both directions, are strings in which each character stands for the byte of that number; values of more
//! than 2000 bytes are shown as `{"length": n}`. Where a step takes bytes, `{"repeat": "ab", "times": 3}` stands for
//! many of them. The steps are described where they are run, in `steps.rs`.
#![allow(
    clippy::as_conversions,
    clippy::arithmetic_side_effects,
    reason = "runs in tests alone; on wasm32 a pointer and a length are 32 bits wide"
)]

#[cfg(all(feature = "module", target_arch = "wasm32"))]
mod abi;
#[cfg(all(feature = "module", target_arch = "wasm32"))]
mod callbacks;
#[cfg(all(feature = "module", target_arch = "wasm32"))]
mod steps;
