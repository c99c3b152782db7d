//! trace-id, beside a Lua script that does the same; the same cases run against both (`tests/lua_twin.rs`).

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::bench::Arm;

use crate::{TIMES, script, wasm};

const GROUP: &str = "trace-id";
const LUA_CHAIN: &str = "trace id in Lua, in a chain";
const LUA_GENERATING: &str = "trace id in Lua, alone, generating";
const LUA_CONTINUING: &str = "trace id in Lua, alone, continuing";

/// What a request that is continued comes with.
const CONTINUED: [(&str, &str); 1] = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")];

/// In a chain every instance but the last would find that somebody replaced its context, and follow it.
fn chained() -> Value {
    json!({ "follow_tracer": "never" })
}

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let lua = || script("trace_id.lua");
    let trace_id = |config| Ok::<_, anyhow::Error>(wasm("trace-id")?.config(config));
    let arm = |name, filter| Arm::new(GROUP, name).filter(filter);
    let chain = |name, filter| arm(name, filter).headers(CONTINUED).repeat(TIMES).headline();
    let ours = |arm: Arm, lua| arm.versus(lua).goal(0.5).ours();
    Ok(vec![
        chain(LUA_CHAIN, lua()?),
        ours(chain("trace-id, in a chain", trace_id(chained())?), LUA_CHAIN),
        arm(LUA_GENERATING, lua()?),
        ours(arm("trace-id, alone, generating", trace_id(json!({}))?), LUA_GENERATING),
        arm(LUA_CONTINUING, lua()?).headers(CONTINUED).headline(),
        ours(arm("trace-id, alone, continuing", trace_id(json!({}))?).headers(CONTINUED), LUA_CONTINUING).headline(),
    ])
}
