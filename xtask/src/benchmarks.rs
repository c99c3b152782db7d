//! The pages and the picture of the benchmarks: all from `docs/benchmarks.json`, which one run of `make bench` wrote, so
//! that no two of them can be of different runs.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::{fmt::Write as _, fs, path::PathBuf};

use crate::{docs::fill, modules::SHIPPED, plot, sizes};

/// What the run wrote.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) requests: Requests,
    modules: Vec<Module>,
    /// Not in results from before there were any.
    #[serde(default)]
    bodies: Vec<Body>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) cpu: String,
    cores: u32,
    memory_gib: f64,
    kernel: String,
    rust: String,
    modules: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Requests {
    pub(crate) envoy: String,
    settings: Settings,
    headers: u32,
    pub(crate) bare: Estimate,
    pub(crate) twin: Estimate,
    pub(crate) rows: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    rounds: u32,
    batch: u32,
    seed: u64,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Estimate {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Row {
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) cost: Estimate,
    pub(crate) ratio: Option<(String, Estimate)>,
    goal: Option<f64>,
    pub(crate) ours: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Module {
    name: String,
    bytes: usize,
    gzip: usize,
    load: Estimate,
    vm: Estimate,
    linear: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    hostile: bool,
    v8: Speeds,
    native: Speeds,
    ratio: Estimate,
}

/// MB/s.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Speeds {
    scrub: Estimate,
    json: Estimate,
    regex: Estimate,
}

/// What a JSON body is to pass at in V8, in MB/s: one that is clean, and one that is made to be slow; and how many times as
/// fast as the `regex` crate's alternation a clean one is.
const CLEAN: f64 = 2000.0;
const HOSTILE: f64 = 300.0;
const TIMES: f64 = 4.0;

/// A row that stands there a second time, beside another.
const TWICE: &str = "the same suite beside one that is empty";

/// The files, and what is to stand in them.
pub(crate) fn pages() -> Result<Vec<(PathBuf, String)>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| path.display().to_string());
    let results = root.join("docs/benchmarks.json");
    let results: Results = serde_json::from_str(&read(&results)?).with_context(|| results.display().to_string())?;
    let (page_path, readme_path) = (root.join("docs/performance.md"), root.join("README.md"));
    let (four, calls) = (|row: &Row| row.group == "all four", |row: &Row| row.group == "hostcalls");
    let page = fill(&read(&page_path)?, "machine", &machine(&results))?;
    let page = fill(&page, "all-four", &requests(&results, four))?;
    let page = fill(&page, "hostcalls", &hostcalls(&results))?;
    let page = fill(&page, "requests", &requests(&results, |row| !four(row) && !calls(row)))?;
    let page = fill(&page, "modules", &modules(&results.modules))?;
    let page = fill(&page, "bodies", &bodies(&results.bodies))?;
    let alone = |row: &Row| four(row) && row.name.ends_with("alone");
    let short = format!("{}\n{}", origin(&results), requests(&results, |row| alone(row) || row.name == TWICE));
    let readme = fill(&read(&readme_path)?, "benchmarks", &short)?;
    let page = fill(&page, "sizes", &sizes::table()?)?;
    let each = plot::bars(&results, |row| !four(row) && !calls(row));
    // Before an upstream and all by itself is many times the rest, and known to a third.
    let suite =
        plot::bars(&results, |row| four(row) && !row.name.ends_with("alone, upstream") && !row.name.starts_with(TWICE));
    Ok(vec![
        (page_path, page),
        (readme_path, readme),
        (root.join("docs/benchmarks.svg"), each),
        (root.join("docs/suite.svg"), suite),
    ])
}

/// Which run it was.
pub(crate) fn origin(results: &Results) -> String {
    let Results { machine: Machine { date, cpu, .. }, requests: Requests { envoy, .. }, .. } = results;
    format!("Run of {date}: Envoy {envoy}, {cpu}.\n")
}

fn machine(results: &Results) -> String {
    let Machine { cores, memory_gib, kernel, rust, modules, .. } = &results.machine;
    let Requests { settings: Settings { rounds, batch, seed }, headers, .. } = &results.requests;
    format!(
        "{}{cores} cores, {memory_gib:.1} GiB of memory, Linux {kernel}, Rust {rust}, modules {modules}.\n\
         {rounds} rounds of {batch} requests with {headers} headers, seed {seed}.\n",
        origin(results)
    )
}

fn requests(results: &Results, wanted: impl Fn(&Row) -> bool) -> String {
    let Requests { bare, twin, rows, .. } = &results.requests;
    let mut out = String::from("| | µs per request [99 %] | ratio | to | goal |\n| --- | --- | --- | --- | --- |\n");
    let _ = writeln!(out, "| whole request, no filter | {} | | | |", span(*bare, 2));
    let _ = writeln!(out, "| no filter, again: the difference | {} | | | |", span(*twin, 2));
    for Row { name, cost, ratio, goal, .. } in rows.iter().filter(|row| wanted(row)) {
        let (ratio, to, goal) = match ratio {
            Some((to, ratio)) => {
                (span(*ratio, 2), to.as_str(), goal.map_or_else(String::new, |goal| met(*ratio, goal)))
            }
            None => Default::default(),
        };
        let _ = writeln!(out, "| {name} | {} | {ratio} | {to} | {goal} |", span(*cost, 2));
    }
    out
}

/// What the proxy charges for each.
fn hostcalls(results: &Results) -> String {
    let mut out = String::from("| hostcall | µs [99 %] |\n| --- | --- |\n");
    for Row { name, cost, .. } in results.requests.rows.iter().filter(|row| row.group == "hostcalls") {
        let _ = writeln!(out, "| {name} | {} |", span(*cost, 2));
    }
    out
}

/// Only the whole interval says yes or no.
fn met(ratio: Estimate, goal: f64) -> String {
    let verdict = match ratio {
        Estimate { high, .. } if high <= goal => "met",
        Estimate { low, .. } if low > goal => "**missed**",
        _ => "undecided",
    };
    format!("≤ {goal}: {verdict}")
}

fn modules(modules: &[Module]) -> String {
    let mut out = String::from(
        "| module | bytes | gzip | budget | ms of CPU to load | KiB of memory a VM | linear memory, KiB |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for Module { name, bytes, gzip, load, vm, linear } in modules {
        let budget = SHIPPED.iter().find(|(shipped, _)| shipped == name).map_or_else(String::new, |(_, budget)| {
            format!("≤ {budget}: {}", if bytes <= budget { "met" } else { "**missed**" })
        });
        let (load, vm) = (span(*load, 1), span(*vm, 0));
        let _ = writeln!(out, "| {name} | {bytes} | {gzip} | {budget} | {load} | {vm} | {linear:.0} |");
    }
    out
}

fn bodies(bodies: &[Body]) -> String {
    let mut out = String::from(
        "| 64 KiB | JSON body, V8 | goal | regex, V8 | JSON : regex | goal | text, V8 | JSON body, native | text, native | \
         regex, native |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    for Body { name, hostile, v8, native, ratio } in bodies {
        let clean = name.starts_with("clean");
        let speed = match (clean, hostile) {
            (true, _) => least(v8.json, CLEAN),
            (_, true) => least(v8.json, HOSTILE),
            _ => String::new(),
        };
        let times = if clean { least(*ratio, TIMES) } else { String::new() };
        let whole = |speed| span(speed, 0);
        let _ = writeln!(
            out,
            "| {name} | {} | {speed} | {} | {} | {times} | {} | {} | {} | {} |",
            whole(v8.json),
            whole(v8.regex),
            span(*ratio, 2),
            whole(v8.scrub),
            whole(native.json),
            whole(native.scrub),
            whole(native.regex)
        );
    }
    out
}

/// As [`met`], of what is to be no less.
fn least(value: Estimate, goal: f64) -> String {
    let verdict = match value {
        Estimate { low, .. } if low >= goal => "met",
        Estimate { high, .. } if high < goal => "**missed**",
        _ => "undecided",
    };
    format!("≥ {goal}: {verdict}")
}

/// The median and the interval, with so many digits behind the point.
pub(crate) fn span(Estimate { median, low, high }: Estimate, digits: usize) -> String {
    let number = |number: f64| {
        let text = format!("{number:.digits$}");
        // Nothing is less than zero by nothing.
        if text.trim_start_matches(['-', '0', '.']).is_empty() { text.trim_start_matches('-').to_owned() } else { text }
    };
    format!("{} [{}, {}]", number(median), number(low), number(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_when_the_whole_interval_says_so() {
        let verdict = |low, high| met(Estimate { median: 0.5, low, high }, 0.5);
        assert_eq!(verdict(0.4, 0.5), "≤ 0.5: met");
        assert_eq!(verdict(0.49, 0.51), "≤ 0.5: undecided");
        assert_eq!(verdict(0.51, 0.52), "≤ 0.5: **missed**");
    }

    #[test]
    fn a_speed_is_met_when_the_whole_interval_says_so() {
        let speed = |low: f64| serde_json::json!({ "median": low + 1.0, "low": low, "high": low + 2.0 });
        let speeds = |low| serde_json::json!({ "scrub": speed(low), "json": speed(low), "regex": speed(low) });
        let body = |name: &str, hostile: bool, low: f64| serde_json::json!({ "name": name, "hostile": hostile, "v8": speeds(low), "native": speeds(low), "ratio": speed(4.0) });
        let rows = serde_json::json!([
            body("clean", false, 2000.0),
            body("clean too", false, 1997.0),
            body("dense", false, 9.0),
            body("hostile", true, 299.0),
        ]);
        let table = bodies(&serde_json::from_value::<Vec<Body>>(rows).unwrap());
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert!(rows[0].contains("≥ 2000: met") && rows[0].contains("≥ 4: met"), "{table}");
        assert!(rows[1].contains("≥ 2000: **missed**"), "{table}");
        assert!(!rows[2].contains('≥'), "{table}");
        assert!(rows[3].contains("≥ 300: undecided") && !rows[3].contains("≥ 4"), "{table}");
    }

    #[test]
    fn zero_has_no_sign() {
        assert_eq!(span(Estimate { median: -0.001, low: -0.12, high: 0.004 }, 2), "0.00 [-0.12, 0.00]");
    }
}
