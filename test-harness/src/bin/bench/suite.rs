//! All four filters in one module, beside four filters as one writes them with the proxy-wasm crate (`tests/cases.rs` says what
//! they do as the project's do), one after the other; beside one empty filter of that crate; and beside its own hostcalls
//! without a filter, which is what no filter that says the same can be below (`tests/budgets.rs` holds them to be the same).

use anyhow::Result;
use serde_json::json;
use test_harness::bench::{Arm, configuration};

use crate::{TIMES, wasm};

const GROUP: &str = "all four";
const PLAIN: &str = "four plain filters, in a chain";
const PLAIN_ALONE: &str = "four plain filters, alone";
const PLAIN_UPSTREAM: &str = "four plain filters, in a chain, upstream";
const PLAIN_ALONE_UPSTREAM: &str = "four plain filters, alone, upstream";
const EMPTY_ALONE: &str = "no-op, proxy-wasm crate, alone";
const EMPTY_ALONE_UPSTREAM: &str = "no-op, proxy-wasm crate, alone, upstream";
const HOSTCALLS: &str = "the suite's hostcalls, nothing else, alone";
const TRACE_ID: &str = "trace-id, a module of its own, alone";
const SEPARATE: &str = "the four filters, a module each, alone";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let all = configuration("suite")?;
    // In a chain each instance would take the next one's span for one of the proxy's tracer.
    let mut chained = all.clone();
    if let Some(trace_id) = chained.get_mut("trace_id") {
        *trace_id = json!({ "follow_tracer": "never" });
    }
    let rules = all.get("circuit_breaker").cloned().unwrap_or_default();
    let arm = |name: &str| Arm::new(GROUP, name);
    let plain = |name| {
        let arm = arm(name).filter(wasm("trace-id-sdk")?).filter(wasm("latency-sdk")?);
        Ok::<_, anyhow::Error>(
            arm.filter(wasm("log-scrub-sdk")?).filter(wasm("circuit-breaker-sdk")?.config(rules.clone())),
        )
    };
    let separate = arm(SEPARATE).filter(wasm("trace-id")?).filter(wasm("latency")?).filter(wasm("log-scrub")?);
    let suite = |name| Ok::<_, anyhow::Error>(arm(name).filter(wasm("suite")?.config(all.clone())).ours());
    let chain =
        |name| Ok::<_, anyhow::Error>(arm(name).filter(wasm("suite")?.config(chained.clone())).repeat(TIMES).ours());
    let floor = wasm("hostcalls")?.config(configuration("suite-hostcalls")?);
    let third = |arm: Arm, plain| arm.versus(plain).goal(0.35);
    Ok(vec![
        plain(PLAIN)?.repeat(TIMES),
        third(chain("suite, all four on, in a chain")?, PLAIN),
        plain(PLAIN_UPSTREAM)?.repeat(TIMES).upstream(),
        third(chain("suite, all four on, in a chain, upstream")?.upstream(), PLAIN_UPSTREAM),
        plain(PLAIN_ALONE)?,
        separate.filter(wasm("circuit-breaker")?.config(rules.clone())).versus(PLAIN_ALONE).ours(),
        third(suite("suite, all four on, alone")?, PLAIN_ALONE),
        arm(EMPTY_ALONE).filter(wasm("noop-sdk")?),
        arm(HOSTCALLS).filter(floor).versus(EMPTY_ALONE),
        suite("the same suite beside one that is empty")?.versus(EMPTY_ALONE).goal(2.0),
        arm("suite, what can be left out left out, alone")
            .filter(wasm("suite")?.config(configuration("suite-lean")?))
            .versus(PLAIN_ALONE)
            .ours(),
        arm(TRACE_ID).filter(wasm("trace-id")?).ours(),
        arm("suite, trace-id alone on, alone")
            .filter(wasm("suite")?.config(json!({ "trace_id": {} })))
            .versus(TRACE_ID)
            .ours(),
        arm("suite, nothing on, alone").filter(wasm("suite")?).versus(EMPTY_ALONE).ours(),
        plain(PLAIN_ALONE_UPSTREAM)?.upstream(),
        third(suite("suite, all four on, alone, upstream")?.upstream(), PLAIN_ALONE_UPSTREAM),
        arm(EMPTY_ALONE_UPSTREAM).filter(wasm("noop-sdk")?).upstream(),
        suite("the same suite beside one that is empty, upstream")?.upstream().versus(EMPTY_ALONE_UPSTREAM).goal(2.0),
    ])
}
