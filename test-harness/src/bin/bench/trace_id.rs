//! trace-id, beside a Lua script that does the same, and a filter that does it with the proxy-wasm crate as it is. What is sent
//! is two of the cases that prove it, of all three (`tests/cases.rs`, and at length `tests/lua_twin.rs`).

use anyhow::Result;
use serde_json::json;
use test_harness::bench::Arm;
use test_harness::cases::{self, Case};

use crate::{TIMES, script, wasm};

const GROUP: &str = "trace-id";
const LUA_CHAIN: &str = "trace id in Lua, in a chain";
const LUA_GENERATING: &str = "trace id in Lua, alone, generating";
const LUA_CONTINUING: &str = "trace id in Lua, alone, continuing";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let generating = cases::named("trace-id", "generates a trace for a request without one")?;
    let continuing = cases::named("trace-id", "continues a trace")?;
    let lua = || script("trace_id.lua");
    // In a chain every instance but the last would find that somebody replaced its context, and follow it.
    let chained = wasm("trace-id")?.config(json!({ "follow_tracer": "never" }));
    let alone = |case: &Case| Ok::<_, anyhow::Error>(wasm("trace-id")?.config(case.config.clone()));
    let arm = |name, case: &Case, filter| Arm::new(GROUP, name).headers(case.wire_request().headers).filter(filter);
    let chain = |name, filter| arm(name, &continuing, filter).repeat(TIMES);
    let ours = |arm: Arm, lua| arm.versus(lua).goal(0.5).ours();
    Ok(vec![
        chain(LUA_CHAIN, lua()?),
        ours(chain("trace-id, in a chain", chained), LUA_CHAIN),
        chain("trace id by proxy-wasm, in a chain", wasm("trace-id-sdk")?).versus(LUA_CHAIN),
        arm(LUA_GENERATING, &generating, lua()?),
        ours(arm("trace-id, alone, generating", &generating, alone(&generating)?), LUA_GENERATING),
        arm(LUA_CONTINUING, &continuing, lua()?),
        ours(arm("trace-id, alone, continuing", &continuing, alone(&continuing)?), LUA_CONTINUING),
    ])
}
