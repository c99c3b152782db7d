//! `make bench`: what the filters cost in a real Envoy, beside those who do the same. How it is measured:
//! `test_harness::bench`.
//!
//! Options: `--rounds N`, `--batch N`, `--seed N`, `--markdown`.

use std::fs;
use std::io::{IsTerminal, stdout};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use owo_colors::OwoColorize;
use serde_json::json;
use test_harness::bench::{Arm, Settings, run};
use test_harness::{HttpFilter, module, root};

const SDK: &str = "no-op, proxy-wasm crate as built";
const LUA_CHAIN: &str = "trace id in Lua, in a chain";
const LUA_GENERATING: &str = "trace id in Lua, alone, generating";
const LUA_CONTINUING: &str = "trace id in Lua, alone, continuing";
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// How often a filter is placed to see what one more of it costs: the first of a chain pays for things that the next do
/// not, such as choosing the route again once the headers have changed.
const TIMES: usize = 10;

fn wasm(name: &str) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm(name, module(name)?))
}

fn script(path: PathBuf) -> Result<HttpFilter> {
    let text = fs::read_to_string(&path).with_context(|| format!("no script at {}", path.display()))?;
    Ok(HttpFilter::lua("lua", &text))
}

/// What is measured; an arm whose file is missing is an error, with the reason.
fn arms() -> Vec<Result<Arm>> {
    let lua = || script(root().join("test-harness/bench/trace_id.lua"));
    let trace_id = |configuration| Ok(wasm("trace-id")?.config(configuration));
    let idle = HttpFilter::lua("noop", "function envoy_on_request(handle) end");
    // In a chain every instance but the last would find that somebody replaced its context, and follow it.
    let chained = || trace_id(json!({ "follow_tracer": "never" }));
    let alone = || trace_id(json!({}));
    let generating = |name: &str, filter| Arm::new(name).filter(filter);
    let continuing = |name: &str, filter| Arm::new(name).filter(filter).header("traceparent", TRACEPARENT);
    vec![
        wasm("noop-sdk").map(|filter| Arm::new(SDK).filter(filter).repeat(TIMES)),
        wasm("noop").map(|filter| Arm::new("no-op, this kit, no phase").filter(filter).repeat(TIMES).versus(SDK)),
        wasm("called").map(|filter| Arm::new("no-op, this kit, one phase").filter(filter).repeat(TIMES).versus(SDK)),
        wasm("floor")
            .map(|filter| Arm::new("no-op, one phase, no instruction").filter(filter).repeat(TIMES).versus(SDK)),
        Ok(Arm::new("no-op, Lua, one phase").filter(idle).repeat(TIMES).versus(SDK)),
        lua().map(|filter| continuing(LUA_CHAIN, filter).repeat(TIMES)),
        chained().map(|filter| continuing("trace-id, in a chain", filter).repeat(TIMES).versus(LUA_CHAIN)),
        lua().map(|filter| generating(LUA_GENERATING, filter)),
        alone().map(|filter| generating("trace-id, alone, generating", filter).versus(LUA_GENERATING)),
        lua().map(|filter| continuing(LUA_CONTINUING, filter)),
        alone().map(|filter| continuing("trace-id, alone, continuing", filter).versus(LUA_CONTINUING)),
    ]
}

struct Options {
    settings: Settings,
    markdown: bool,
}

fn options() -> Result<Options> {
    let mut options = Options { settings: Settings::default(), markdown: false };
    let mut args = std::env::args().skip(1);
    while let Some(option) = args.next() {
        let mut value = || args.next().with_context(|| format!("{option} needs a value"));
        match option.as_str() {
            "--rounds" => options.settings.rounds = value()?.parse().context("--rounds")?,
            "--batch" => options.settings.batch = value()?.parse().context("--batch")?,
            "--seed" => options.settings.seed = value()?.parse().context("--seed")?,
            "--markdown" => options.markdown = true,
            _ => bail!("unknown option {option}: there are --rounds N, --batch N, --seed N, --markdown"),
        }
    }
    Ok(options)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let Options { settings, markdown } = options()?;
    let coloured = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut there = Vec::new();
    for arm in arms() {
        match arm {
            Ok(arm) => there.push(arm),
            Err(missing) if coloured => eprintln!("{} {missing}", "skipped:".yellow()),
            Err(missing) => eprintln!("skipped: {missing}"),
        }
    }
    let report = run(&there, settings).await?;
    println!("{}", if markdown { report.markdown() } else { report.table(coloured) });
    report.check()
}
