//! Traps when a request asks for it: what a trap does to a proxy, and that it comes back. Leaks when it is told to: the
//! soak must see it.
#![no_std]

use kit::prelude::*;
use kit::{Context, Filter, Flow, Headers, Phases, Refusal};

/// Traps on a request with header `x-trap`.
#[derive(Debug)]
pub struct Trap {
    leak: usize,
}

/// What else it does wrong.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Bytes that every request leaves behind in the VM.
    #[serde(default)]
    pub leak: usize,
    /// Tells one configuration from another.
    #[serde(default)]
    pub number: u64,
}

impl Filter for Trap {
    const NAME: &'static str = "trap";
    const PHASES: Phases = Phases::REQUEST_HEADERS;
    type Config = Config;
    type State = u64;
    type Stream = ();

    fn new(config: Config) -> Result<Self, Refusal> {
        Ok(Self { leak: config.leak })
    }

    /// Counts the requests that this VM has seen, so that a test can tell a new VM from an old one.
    #[allow(clippy::panic)] // What it is for.
    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        *cx.state = cx.state.saturating_add(1);
        headers.set("x-seen-by-vm", cx.state.to_string().as_bytes());
        // Without the box, the compiler sees that nobody needs it, and takes none.
        core::mem::forget(core::hint::black_box(vec![0_u8; self.leak]));
        if let Some(secret) = headers.get("x-trap") {
            panic!("with {}", String::from_utf8_lossy(secret));
        }
        Flow::Continue
    }
}

kit::export!(Trap);
