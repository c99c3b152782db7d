//! All that the filters do: four filters as one writes them with the proxy-wasm crate (`tests/cases.rs` says what they do as the
//! project's do), one after the other; and one empty filter of that crate by itself.

use anyhow::Result;
use serde_json::json;
use test_harness::bench::Arm;

use crate::{TIMES, wasm};

const GROUP: &str = "all four";
const PLAIN: &str = "four plain filters, in a chain";
const PLAIN_ALONE: &str = "four plain filters, alone";
const PLAIN_UPSTREAM: &str = "four plain filters, in a chain, upstream";
const PLAIN_ALONE_UPSTREAM: &str = "four plain filters, alone, upstream";
const EMPTY_ALONE: &str = "no-op, proxy-wasm crate as built, alone";
const EMPTY_ALONE_UPSTREAM: &str = "no-op, proxy-wasm crate as built, alone, upstream";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let rules = json!({ "rules": [{ "resource": "upstream", "strategy": "error_ratio", "threshold": 0.5 }] });
    let plain = |name| {
        let arm = Arm::new(GROUP, name).filter(wasm("trace-id-sdk")?).filter(wasm("latency-sdk")?);
        let arm = arm.filter(wasm("log-scrub-sdk")?).filter(wasm("circuit-breaker-sdk")?.config(rules.clone()));
        Ok::<_, anyhow::Error>(arm)
    };
    let empty = |name| Ok::<_, anyhow::Error>(Arm::new(GROUP, name).filter(wasm("noop-sdk")?));
    Ok(vec![
        plain(PLAIN)?.repeat(TIMES),
        plain(PLAIN_UPSTREAM)?.repeat(TIMES).upstream(),
        plain(PLAIN_ALONE)?.headline(),
        plain(PLAIN_ALONE_UPSTREAM)?.upstream().headline(),
        empty(EMPTY_ALONE)?.headline(),
        empty(EMPTY_ALONE_UPSTREAM)?.upstream().headline(),
    ])
}
