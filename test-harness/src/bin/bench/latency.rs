//! latency, beside a filter that does the same with the proxy-wasm crate as it is (`tests/cases.rs` holds it to the same
//! cases), and a Lua script that does as much of it as a script can.

use anyhow::Result;
use test_harness::bench::Arm;

use crate::{TIMES, script, wasm};

const GROUP: &str = "latency";
const SDK_CHAIN: &str = "latency by proxy-wasm, in a chain";
const SDK_ALONE: &str = "latency by proxy-wasm, alone";
const SDK_UPSTREAM: &str = "latency by proxy-wasm, upstream";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let arm = |name, module| Ok::<_, anyhow::Error>(Arm::new(GROUP, name).filter(wasm(module)?));
    let ours = |arm: Arm, sdk| arm.versus(sdk).goal(0.5).ours();
    let lua = "latency's first byte in Lua, in a chain";
    Ok(vec![
        arm(SDK_CHAIN, "latency-sdk")?.repeat(TIMES),
        ours(arm("latency, in a chain", "latency")?.repeat(TIMES), SDK_CHAIN),
        Arm::new(GROUP, lua).filter(script("latency.lua")?).repeat(TIMES).versus(SDK_CHAIN),
        arm(SDK_UPSTREAM, "latency-sdk")?.repeat(TIMES).upstream(),
        ours(arm("latency, in a chain, upstream", "latency")?.repeat(TIMES).upstream(), SDK_UPSTREAM),
        arm(SDK_ALONE, "latency-sdk")?,
        ours(arm("latency, alone", "latency")?, SDK_ALONE),
    ])
}
