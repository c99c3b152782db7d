//! `make bench`: what the filters cost in a real Envoy, beside those who do the same. How it is measured:
//! `test_harness::bench` and `test_harness::bench::footprint`.
//!
//! A filter's arms are a file of its own beside this one, and an entry in [`arms`].
//!
//! Options: `--rounds N`, `--batch N`, `--repeat N` (of loads and memory), `--seed N`, `--only TEXT` (arms whose names
//! hold it, and none of the loads), `--bodies` (only how fast bodies pass), `--quick` (few of all: to see that it works, the figures are worth nothing), and
//! `--write FILE` (the results, if the measurement can be believed).

mod circuit_breaker;
mod hostcalls;
mod latency;
mod log_scrub;
mod machine;
mod noop;
mod suite;
mod trace_id;

use std::fs;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use owo_colors::OwoColorize;
use serde_json::{Value, json};
use test_harness::bench::footprint::{self, Module};
use test_harness::bench::{Arm, Settings, bodies, configuration, run};
use test_harness::{HttpFilter, module, root};

/// How often a filter is placed to see what one more of it costs: the first of a chain pays for things that the next do
/// not, such as choosing the route again once the headers have changed.
const TIMES: usize = 10;

/// What is measured.
fn arms() -> Result<Vec<Arm>> {
    let of_one = [trace_id::arms()?, latency::arms()?, log_scrub::arms()?, circuit_breaker::arms()?];
    Ok([noop::arms()?, of_one.concat(), suite::arms()?, hostcalls::arms()?].concat())
}

/// What is weighed: every module that is shipped, and the no-ops beside them.
fn modules() -> Result<Vec<Module>> {
    let dist = fs::read_dir(root().join("dist"))?.map(|entry| Ok(entry?.path()));
    let dist = dist.collect::<Result<Vec<PathBuf>>>()?;
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.strip_suffix(".wasm")?.to_owned());
    let mut names: Vec<String> = dist.iter().filter_map(name).collect();
    names.sort_unstable();
    names.extend(["raw", "floor", "noop", "called", "noop-sdk"].map(str::to_owned));
    let of = |name: String| {
        // Of the suite what is off would not be weighed.
        let config = if name == "suite" { configuration("suite")? } else { json!({}) };
        Ok(Module { name, config })
    };
    names.into_iter().map(of).collect()
}

fn wasm(name: &str) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm(name, module(name)?))
}

/// A script of `test-harness/bench`.
fn script(name: &str) -> Result<HttpFilter> {
    let path = root().join("test-harness/bench").join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("no script at {}", path.display()))?;
    Ok(HttpFilter::lua("lua", &text))
}

struct Options {
    settings: Settings,
    repeat: usize,
    only: Option<String>,
    bodies: bool,
    write: Option<PathBuf>,
}

fn options() -> Result<Options> {
    let mut options = Options { settings: Settings::default(), repeat: 5, only: None, bodies: false, write: None };
    let mut args = std::env::args().skip(1);
    while let Some(option) = args.next() {
        let mut value = || args.next().with_context(|| format!("{option} needs a value"));
        match option.as_str() {
            "--rounds" => options.settings.rounds = value()?.parse().context("--rounds")?,
            "--batch" => options.settings.batch = value()?.parse().context("--batch")?,
            "--seed" => options.settings.seed = value()?.parse().context("--seed")?,
            "--repeat" => options.repeat = value()?.parse().context("--repeat")?,
            "--only" => options.only = Some(value()?),
            "--bodies" => options.bodies = true,
            "--write" => options.write = Some(value()?.into()),
            "--quick" => (options.settings.rounds, options.settings.batch, options.repeat) = (20, 50, 1),
            _ => bail!(
                "unknown option {option}: there are --quick, --rounds N, --batch N, --repeat N, --seed N, --only TEXT, \
                 --bodies, --write FILE"
            ),
        }
    }
    let part = options.only.is_some() || options.bodies;
    ensure!(!part || options.write.is_none(), "what is written is whole: --only and --bodies do not go with it");
    Ok(options)
}

/// Tells how far it is: on a terminal in a line that changes, else at every fifth.
fn progress(what: &'static str, total: usize) -> impl Fn(usize) + Send + 'static {
    let terminal = stderr().is_terminal();
    move |done| {
        if terminal {
            let end = if done == total { "\r\x1b[2K" } else { "" };
            let _ = write!(stderr(), "\r\x1b[2K{what}: {done} of {total}{end}");
        } else if done.is_multiple_of((total / 5).max(1)) {
            eprintln!("{what}: {done} of {total}");
        }
    }
}

async fn measure(coloured: bool) -> Result<()> {
    let Options { settings, repeat, only, bodies: bodies_only, write } = options()?;
    let begun = Instant::now();
    // As many as give an interval in a tenth of the time of the requests.
    let body_rounds = (settings.rounds / 10).saturating_add(1);
    let seed = settings.seed;
    let pass = || bodies::measure(body_rounds, seed, progress("bodies, rounds", body_rounds));
    if bodies_only {
        println!("{}", bodies::table(&pass().await?, coloured));
        return Ok(());
    }
    let mut arms = arms()?;
    if let Some(part) = &only {
        arms.retain(|arm| arm.name().contains(part.as_str()));
    }
    let rounds = settings.rounds;
    let report = run(&arms, settings, progress("requests, rounds", rounds)).await?;
    println!("{}", report.table(coloured));
    if only.is_some() {
        return report.check();
    }
    // What cannot be believed need not be waited for.
    report.check()?;
    let footprints = footprint::measure(&modules()?, repeat, progress("loads and memory, rounds", repeat)).await?;
    println!("{}", footprint::table(&footprints, coloured));
    let passed = pass().await?;
    println!("{}", bodies::table(&passed, coloured));
    println!("{} s in all", begun.elapsed().as_secs());
    if let Some(path) = write {
        let machine = machine::describe()?;
        let results = json!({ "machine": machine, "requests": report, "modules": footprints, "bodies": passed });
        let text = serde_json::to_string_pretty(&rounded(results))?;
        fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// No more digits than a reader can use.
fn rounded(value: Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            json!(number.as_f64().map(|number| (number * 1000.0).round() / 1000.0))
        }
        Value::Array(list) => list.into_iter().map(rounded).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, rounded(value))).collect(),
        other => other,
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let coloured = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match measure(coloured).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", if coloured { "failed:".red().bold().to_string() } else { "failed:".to_owned() });
            ExitCode::FAILURE
        }
    }
}
