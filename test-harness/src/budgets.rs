//! What every case costs, counted in the emulated proxy: the same on every machine, so that a change is a decision.
//!
//! `test-harness/budgets.toml` has the figures; a test holds them to what is built, and `make budgets` writes the file
//! anew, for review. Fuel is what the interpreter charges for the code that is entered (see `emulator::Tally`): it is no
//! speed, and more than what ran, but it moves when the code does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, anyhow};
use emulator::{Module, Plugin, Proxy, Tally};
use owo_colors::OwoColorize;
use serde::{Deserialize, Serialize};

use crate::cases::{self, Case};
use crate::{module, root};

/// The filters that have cases.
pub const FILTERS: [&str; 5] = ["trace-id", "latency", "log-scrub", "circuit-breaker", "suite"];

/// Requests of a case that are not counted: the first ones define metrics and grow memory.
const WARM: usize = 8;
/// Requests that are counted. Together they have to divide by this, so that what is done now and then shows.
const COUNTED: u64 = 16;

/// What something costs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Entries into the VM, by callback.
    pub entries: BTreeMap<String, u64>,
    /// Hostcalls, by name.
    pub hostcalls: BTreeMap<String, u64>,
    /// Bytes that go into the VM's memory.
    pub bytes_in: u64,
    /// Bytes that come out of it.
    pub bytes_out: u64,
    /// As the interpreter charges it.
    pub fuel: u64,
    /// Pages of 64 KiB by which memory grows.
    pub pages: u64,
}

/// A filter's budgets: `start` is what one VM costs until it is configured, the others are 16 requests of a case each.
pub type Budgets = BTreeMap<String, BTreeMap<String, Budget>>;

impl From<Tally> for Budget {
    fn from(tally: Tally) -> Self {
        let named = |counts: BTreeMap<&'static str, u64>| {
            counts.into_iter().map(|(name, count)| (name.trim_start_matches("proxy_").to_owned(), count)).collect()
        };
        Self {
            entries: named(tally.entries),
            hostcalls: named(tally.hostcalls),
            bytes_in: tally.bytes_in,
            bytes_out: tally.bytes_out,
            fuel: tally.fuel,
            pages: tally.pages,
        }
    }
}

fn path() -> std::path::PathBuf {
    root().join("test-harness/budgets.toml")
}

/// Counts.
///
/// # Errors
/// When a module is not built, or refuses the configuration of a case.
pub fn measure() -> Result<Budgets> {
    FILTERS.into_iter().map(|filter| Ok((filter.to_owned(), measure_filter(filter)?))).collect()
}

fn measure_filter(filter: &str) -> Result<BTreeMap<String, Budget>> {
    let code = Module::read(module(filter)?).map_err(|why| anyhow!(why))?;
    let mut budgets = BTreeMap::new();
    for case in cases::load(filter)? {
        let proxy = Proxy::new(1, 1);
        let plugin = |text: String| Plugin::new(filter, &code).configuration(text);
        proxy.push("in", [plugin(case.config.to_string())]).with_context(|| case.name.clone())?;
        if !budgets.contains_key("start") {
            // Base, canary, main and worker; the base is not configured.
            budgets.insert("start".to_owned(), Budget::from(proxy.take_tally()));
        }
        budgets.insert(case.name.clone(), measure_case(&proxy, &case));
    }
    Ok(budgets)
}

fn measure_case(proxy: &Proxy, case: &Case) -> Budget {
    let (request, response) = (case.request(), case.response());
    case.give(proxy);
    (0..WARM).for_each(|_| drop(proxy.exchange("in", 0, &request, &response)));
    drop(proxy.take_tally());
    (0..COUNTED).for_each(|_| drop(proxy.exchange("in", 0, &request, &response)));
    Budget::from(proxy.take_tally())
}

/// Reads the file.
///
/// # Errors
/// When it is not there or is not right.
pub fn read() -> Result<Budgets> {
    let path = path();
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

/// Writes the file.
///
/// # Errors
/// When it cannot be written.
pub fn write(budgets: &Budgets) -> Result<()> {
    let mut text = format!(
        "# What {COUNTED} requests of each case cost, and what it costs to start, counted in the emulated proxy.\n\
         # Written by `make budgets`; a test holds it to the built modules.\n"
    );
    for (filter, cases) in budgets {
        for (case, budget) in cases {
            let inline = |counts: &BTreeMap<String, u64>| {
                counts.iter().map(|(name, count)| format!("{name} = {count}")).collect::<Vec<_>>().join(", ")
            };
            let Budget { entries, hostcalls, bytes_in, bytes_out, fuel, pages } = budget;
            let _ = write!(
                text,
                "\n[{filter}.{case:?}]\nentries = {{ {} }}\nhostcalls = {{ {} }}\nbytes_in = {bytes_in}\n\
                 bytes_out = {bytes_out}\nfuel = {fuel}\npages = {pages}\n",
                inline(entries),
                inline(hostcalls)
            );
        }
    }
    std::fs::write(path(), text).with_context(|| path().display().to_string())
}

/// What differs, a line per figure, old and new; empty when nothing does.
#[must_use]
pub fn differences(old: &Budgets, new: &Budgets) -> String {
    let mut text = String::new();
    let mut filters: Vec<&String> = old.keys().chain(new.keys()).collect();
    filters.sort();
    filters.dedup();
    for filter in filters {
        let none = BTreeMap::new();
        let (old, new) = (old.get(filter).unwrap_or(&none), new.get(filter).unwrap_or(&none));
        let mut cases: Vec<&String> = old.keys().chain(new.keys()).collect();
        cases.sort();
        cases.dedup();
        for case in cases {
            let rows = match (old.get(case), new.get(case)) {
                (Some(old), Some(new)) => rows(old, new),
                (None, _) => vec![("not in the file".to_owned(), 0, 0)],
                (_, None) => vec![("in the file alone".to_owned(), 0, 0)],
            };
            if !rows.is_empty() {
                let _ = writeln!(text, "{} {}", filter.bold(), case.bold());
            }
            for (figure, old, new) in rows {
                let change = if old == 0 || new == 0 {
                    String::new()
                } else {
                    format!("{:+.1} %", (new as f64 / old as f64 - 1.0) * 100.0)
                };
                let new = if new > old { new.red().to_string() } else { new.green().to_string() };
                let _ = writeln!(text, "    {figure:<40} {old:>10} -> {new:>10} {change:>9}");
            }
        }
    }
    text
}

fn rows(old: &Budget, new: &Budget) -> Vec<(String, u64, u64)> {
    let mut rows = Vec::new();
    for (kind, old, new) in [("entry", &old.entries, &new.entries), ("hostcall", &old.hostcalls, &new.hostcalls)] {
        let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let of = |counts: &BTreeMap<String, u64>| counts.get(name).copied().unwrap_or(0);
            rows.push((format!("{kind} {name}"), of(old), of(new)));
        }
    }
    rows.push(("bytes in".to_owned(), old.bytes_in, new.bytes_in));
    rows.push(("bytes out".to_owned(), old.bytes_out, new.bytes_out));
    rows.push(("fuel".to_owned(), old.fuel, new.fuel));
    rows.push(("pages".to_owned(), old.pages, new.pages));
    rows.retain(|(_, old, new)| old != new);
    rows
}
