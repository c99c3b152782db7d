//! latency, beside a filter that does the same with the proxy-wasm crate as it is. A Lua script has no metrics to do it with.

use anyhow::Result;
use test_harness::bench::Arm;

use crate::{TIMES, wasm};

const GROUP: &str = "latency";
const SDK_CHAIN: &str = "latency with the proxy-wasm crate, in a chain";
const SDK_ALONE: &str = "latency with the proxy-wasm crate, alone";
const SDK_UPSTREAM: &str = "latency with the proxy-wasm crate, in a chain before an upstream";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let arm = |name, module| Ok::<_, anyhow::Error>(Arm::new(GROUP, name).filter(wasm(module)?));
    let ours = |arm: Arm, sdk| arm.versus(sdk).goal(0.5).ours().headline();
    Ok(vec![
        arm(SDK_CHAIN, "latency-sdk")?.repeat(TIMES).headline(),
        ours(arm("latency, in a chain", "latency")?.repeat(TIMES), SDK_CHAIN),
        arm(SDK_UPSTREAM, "latency-sdk")?.repeat(TIMES).upstream().headline(),
        ours(arm("latency, in a chain before an upstream", "latency")?.repeat(TIMES).upstream(), SDK_UPSTREAM),
        arm(SDK_ALONE, "latency-sdk")?,
        ours(arm("latency, alone", "latency")?, SDK_ALONE),
    ])
}
