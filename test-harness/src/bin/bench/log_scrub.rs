//! log-scrub over the path and 14 headers of a request with nothing to hide, beside a Lua script that merely iterates
//! over the headers, and one that looks for three things in them as such scripts do. Its default beside a filter that looks
//! for five in the same texts, with the proxy-wasm and the `regex` crate as they are.

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
    let ours = |headers_as: &str| {
        let outputs =
            json!({ "referer": false, "user_agent": false, "request_headers": names, "headers_as": headers_as });
        Ok::<_, anyhow::Error>(wasm("log-scrub")?.config(json!({ "outputs": outputs })))
    };
    let arm = |name, filter| Arm::new(GROUP, name).headers(MORE).filter(filter);
    let chain = |name, filter| arm(name, filter).repeat(TIMES);
    let goal = |arm: Arm, lua| arm.versus(lua).goal(0.6).ours();
    Ok(vec![
        chain(LUA, script("headers.lua")?),
        goal(chain("log-scrub, path, 14 headers, in a chain", ours("json")?), LUA),
        chain("log-scrub, each header a copy, chain", ours("each")?).versus(LUA).ours(),
        chain("log-scrub, default, in a chain", wasm("log-scrub")?).versus(LUA).ours(),
        chain("log-scrub by proxy-wasm, in a chain", wasm("log-scrub-sdk")?).versus(LUA),
        chain("Lua with three patterns, in a chain", script("patterns.lua")?).versus(LUA),
        arm(LUA_ALONE, script("headers.lua")?),
        goal(arm("log-scrub, path, 14 headers, alone", ours("json")?), LUA_ALONE),
    ])
}
