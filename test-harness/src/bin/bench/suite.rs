//! All four filters in one module, beside four filters as one writes them with the proxy-wasm crate (`tests/cases.rs` says what
//! they do as the project's do), one after the other; beside one empty filter of that crate; and beside its own hostcalls
//! without a filter, which is what no filter that says the same can be below (`tests/budgets.rs` holds them to be the same).

use anyhow::Result;
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
const SEPARATE: &str = "the four filters, a module each, alone";

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let all = configuration("suite")?;
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
    let floor = wasm("hostcalls")?.config(configuration("suite-hostcalls")?);
    let quarter = |arm: Arm, plain| arm.versus(plain).goal(0.35);
    Ok(vec![
        plain(PLAIN)?.repeat(TIMES),
        quarter(suite("suite, all four on, in a chain")?.repeat(TIMES), PLAIN),
        plain(PLAIN_UPSTREAM)?.repeat(TIMES).upstream(),
        quarter(suite("suite, all four on, in a chain, upstream")?.repeat(TIMES).upstream(), PLAIN_UPSTREAM),
        plain(PLAIN_ALONE)?.headline(),
        separate.filter(wasm("circuit-breaker")?.config(rules.clone())).versus(PLAIN_ALONE).ours().headline(),
        quarter(suite("suite, all four on, alone")?, PLAIN_ALONE).headline(),
        arm(EMPTY_ALONE).filter(wasm("noop-sdk")?).headline(),
        arm(HOSTCALLS).filter(floor).versus(EMPTY_ALONE).headline(),
        suite("the same suite beside one that is empty")?.versus(EMPTY_ALONE).goal(2.0).headline(),
        arm("suite, what can be left out left out, alone")
            .filter(wasm("suite")?.config(configuration("suite-lean")?))
            .versus(PLAIN_ALONE)
            .ours(),
        arm("suite, nothing on, alone").filter(wasm("suite")?).versus(EMPTY_ALONE).ours(),
        plain(PLAIN_ALONE_UPSTREAM)?.upstream(),
        quarter(suite("suite, all four on, alone, upstream")?.upstream(), PLAIN_ALONE_UPSTREAM),
        arm(EMPTY_ALONE_UPSTREAM).filter(wasm("noop-sdk")?).upstream(),
        suite("the same suite beside one that is empty, upstream")?.upstream().versus(EMPTY_ALONE_UPSTREAM).goal(2.0),
    ])
}
