//! Filters that do nothing: what it costs to be there.

use anyhow::Result;
use test_harness::HttpFilter;
use test_harness::bench::Arm;

use crate::{TIMES, wasm};

const GROUP: &str = "no-ops";
const SDK: &str = "no-op, proxy-wasm crate as built";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let arm = |name: &str, filter| Arm::new(GROUP, name).filter(filter).repeat(TIMES);
    let lua = HttpFilter::lua("noop", "function envoy_on_request(handle) end");
    Ok(vec![
        arm(SDK, wasm("noop-sdk")?),
        arm("no-op, this kit, no phase", wasm("noop")?).versus(SDK).goal(0.6).ours(),
        arm("no-op, this kit, one phase", wasm("called")?).versus(SDK).goal(0.6).ours(),
        arm("no-op, raw, one phase with its state", wasm("floor")?).versus(SDK),
        arm("no-op, raw, one phase", wasm("raw")?).versus(SDK),
        arm("no-op, Lua, one phase", lua).versus(SDK),
    ])
}
