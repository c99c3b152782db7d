//! log-scrub over the path and 14 headers of a request with nothing to hide, beside a Lua script that merely iterates
//! over the headers, and one that looks for three things in them as such scripts do.

use anyhow::Result;
use serde_json::json;
use test_harness::bench::Arm;

use crate::{TIMES, script, wasm};

const GROUP: &str = "log-scrub";
const LUA: &str = "Lua iterating headers, in a chain";
const LUA_ALONE: &str = "Lua iterating headers, alone";

/// Beside those that every request has.
const MORE: [(&str, &str); 7] = [
    ("origin", "https://shop.example.com"),
    ("if-none-match", "W/\"5f3-17a0b2c3d4e\""),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("x-correlation-id", "3f2504e0-4f89-41d3-9a0c-0305e82c3301"),
    ("x-client-version", "4.12.0-rc.1+build.77"),
    ("x-device-type", "desktop"),
    ("x-experiment", "checkout:b,search:a"),
];

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let every =
        ["user-agent", "accept", "accept-language", "accept-encoding", "referer", "cache-control", "x-tenant-id"];
    let names: Vec<&str> = every.into_iter().chain(MORE.map(|(name, _)| name)).collect();
    let outputs = json!({ "outputs": { "referer": false, "user_agent": false, "request_headers": names } });
    let ours = || Ok::<_, anyhow::Error>(wasm("log-scrub")?.config(outputs.clone()));
    let arm = |name, filter| Arm::new(GROUP, name).headers(MORE).filter(filter);
    Ok(vec![
        arm(LUA, script("headers.lua")?).repeat(TIMES).headline(),
        arm("log-scrub, path and 14 headers, chain", ours()?).repeat(TIMES).versus(LUA).goal(0.6).ours().headline(),
        arm("Lua with three patterns, in a chain", script("patterns.lua")?).repeat(TIMES).versus(LUA).headline(),
        arm("log-scrub, default, in a chain", wasm("log-scrub")?).repeat(TIMES).versus(LUA).ours(),
        arm(LUA_ALONE, script("headers.lua")?),
        arm("log-scrub, path and 14 headers, alone", ours()?).versus(LUA_ALONE).goal(0.6).ours(),
    ])
}
