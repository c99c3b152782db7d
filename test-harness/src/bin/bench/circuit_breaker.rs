//! circuit-breaker, closed, which is how it is nearly always; beside a Lua script that does as much of it as such scripts
//! do: for one worker, without probes that are counted, rules that change, metrics or a log; and one as it is written with the proxy-wasm
//! crate, which is open on all workers at once.

use anyhow::Result;
use serde_json::json;
use test_harness::bench::Arm;

use crate::{TIMES, script, wasm};

const GROUP: &str = "circuit-breaker";
const LUA: &str = "a breaker in Lua, in a chain, upstream";
const LUA_ALONE: &str = "a breaker in Lua, alone, upstream";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let rules = json!({ "rules": [
        { "resource": "upstream", "strategy": "error_ratio", "threshold": 0.5 },
        { "resource": "upstream", "strategy": "slow_ratio", "max_allowed_rt": "500ms", "threshold": 0.5 },
    ] });
    let one = json!({ "rules": [{ "resource": "upstream", "strategy": "error_ratio", "threshold": 0.5 }] });
    let none = json!({ "rules": [{ "resource": "elsewhere", "strategy": "error_ratio", "threshold": 0.5 }] });
    let ours = |config| Ok::<_, anyhow::Error>(wasm("circuit-breaker")?.config(config));
    let plain = wasm("circuit-breaker-sdk")?.config(one.clone());
    let arm = |name, filter| Arm::new(GROUP, name).filter(filter).upstream();
    let chain = |name, filter| arm(name, filter).repeat(TIMES);
    Ok(vec![
        chain(LUA, script("breaker.lua")?),
        chain("circuit-breaker, one rule, in a chain, upstream", ours(one.clone())?).versus(LUA).ours(),
        chain("a breaker by proxy-wasm, in a chain, upstream", plain).versus(LUA),
        chain("circuit-breaker, two rules, in a chain, upstream", ours(rules)?).versus(LUA).ours(),
        chain("circuit-breaker, no rule meets, in a chain, upstream", ours(none)?).versus(LUA).ours(),
        arm(LUA_ALONE, script("breaker.lua")?),
        arm("circuit-breaker, one rule, alone, upstream", ours(one)?).versus(LUA_ALONE).ours(),
    ])
}
