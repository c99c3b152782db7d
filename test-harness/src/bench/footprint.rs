//! What a module costs before the first request, and to keep.
//!
//! **Load**: a running Envoy with one worker gets a listener with a copy of the module whose bytes it has never seen, so
//! that nothing of it is in a cache. What counts is the processor time of all its threads until the listener serves and
//! they are at rest again, less that of a listener without a filter in the same round. So it holds compiling, the trial
//! of the configuration, and three VMs: the one that others are made from, the main thread's and the worker's.
//!
//! **Memory**: an Envoy whose one VM has served gets a listener with eight more, told apart by their `vm_id`, and all
//! serve. What counts is by how much its resident memory without a file behind it grows, for each VM that it then has
//! more: what one more worker costs. The compiled code is shared between them.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use owo_colors::Style;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Estimate, Random, aligned, median, ran};
use crate::{Envoy, H1, HttpFilter, Listener, PATIENCE, Request, Route, eventually, module};

/// A module to look at.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// What its filter is configured with.
    pub config: Value,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Footprint {
    /// The module's name.
    pub name: String,
    /// Its size.
    pub bytes: usize,
    /// Its size as it travels, compressed by gzip.
    pub gzip: usize,
    /// ms of processor time to load it: the median, the least and the most.
    pub load: Estimate,
    /// KiB of resident memory for each further VM: the median, the least and the most.
    pub vm: Estimate,
    /// KiB of linear memory of each VM, as part of that or not yet touched.
    pub linear: f64,
}

/// VMs that are added at once.
const MORE: usize = 8;
/// Requests that each VM has served before its memory counts.
const SERVED: usize = 200;

/// Looks at the modules, so many times, and tells each time that it did.
///
/// # Errors
/// When a module is not there, or Envoy does not take it.
pub async fn measure(modules: &[Module], repeat: usize, told: impl Fn(usize)) -> Result<Vec<Footprint>> {
    ensure!(repeat > 0, "nothing to measure");
    let mut random = Random(1);
    let mut loads = vec![Vec::new(); modules.len()];
    let mut memories = vec![Vec::new(); modules.len()];
    for turn in 0..repeat {
        for (at, cost) in load(modules, turn, &mut random).await?.into_iter().enumerate() {
            loads[at].push(cost);
        }
        for (at, module) in modules.iter().enumerate() {
            memories[at].push(memory(module).await.with_context(|| module.name.clone())?);
        }
        told(turn + 1);
    }
    let footprint = |(at, Module { name, .. }): (usize, &Module)| {
        let bytes = fs::read(module(name)?)?;
        let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
        gzip.write_all(&bytes)?;
        let (vms, linear): (Vec<f64>, Vec<f64>) = memories[at].iter().copied().unzip();
        Ok(Footprint {
            name: name.clone(),
            bytes: bytes.len(),
            gzip: gzip.finish()?.len(),
            load: range(loads[at].clone()),
            vm: range(vms),
            linear: median(linear),
        })
    };
    modules.iter().enumerate().map(footprint).collect()
}

fn range(values: Vec<f64>) -> Estimate {
    Estimate {
        low: values.iter().copied().fold(f64::INFINITY, f64::min),
        high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        median: median(values),
    }
}

fn filter(module: &Module, code: &Path) -> HttpFilter {
    HttpFilter::wasm(&module.name, code).config(module.config.clone())
}

fn quiet() -> crate::envoy::Builder {
    Envoy::builder().concurrency(1).log_level("warning").merge_bootstrap(json!({ "stats_flush_interval": "299s" }))
}

fn answering(name: &str) -> Listener {
    Listener::http(name).route(Route::respond(200, "ok"))
}

/// ms for each module, in one Envoy, in a random order.
async fn load(modules: &[Module], turn: usize, random: &mut Random) -> Result<Vec<f64>> {
    let dir = tempfile::tempdir()?;
    let envoy = quiet().listener(answering("first")).start().await?;
    let mut listeners = vec![answering("first")];
    let mut costs = vec![0.0; modules.len() + 1];
    let mut order: Vec<usize> = (0..costs.len()).collect();
    random.shuffle(&mut order);
    for at in order {
        let mut listener = answering(&format!("listener-{at}"));
        if let Some(module) = modules.get(at) {
            let copy = dir.path().join(format!("{at}.wasm"));
            fs::write(&copy, unseen(fs::read(crate::module(&module.name)?)?, turn as u64))?;
            listener = listener.filter(filter(module, &copy));
        }
        listeners.push(listener);
        let before = settled(&envoy).await?;
        envoy.push(listeners.clone()).await?.accepted()?;
        let spent = settled(&envoy).await?.checked_sub(before).context("a thread of Envoy ended")?;
        costs[at] = spent as f64 / 1e6;
    }
    let bare = costs.pop().unwrap_or_default();
    Ok(costs.into_iter().map(|cost| cost - bare).collect())
}

/// The module with a custom section at its end, which changes nothing but its hash.
fn unseen(mut module: Vec<u8>, number: u64) -> Vec<u8> {
    let name = b"copy";
    let size = 1 + name.len() + 8;
    module.extend([0, size as u8, name.len() as u8]);
    module.extend(name);
    module.extend(number.to_le_bytes());
    module
}

/// What Envoy's threads have run, once they run no more.
async fn settled(envoy: &Envoy) -> Result<u64> {
    let mut last = ran(envoy.pid())?;
    eventually("threads at rest", PATIENCE, async || {
        sleep(Duration::from_millis(30)).await;
        let now = ran(envoy.pid()).map_err(|error| format!("{error:#}"))?;
        let before = std::mem::replace(&mut last, now);
        if now - before < 200_000 { Ok(now) } else { Err(format!("{} ns in 30 ms", now - before)) }
    })
    .await
}

/// KiB for each further VM, and of its linear memory.
async fn memory(module: &Module) -> Result<(f64, f64)> {
    let code = crate::module(&module.name)?;
    let vm = |id: usize| filter(module, &code).vm_id(&id.to_string());
    let first = answering("first").filter(vm(0));
    let more = (1..=MORE).map(vm).fold(answering("more"), Listener::filter);
    let envoy = quiet().listener(first.clone()).start().await?;
    let before = held(&envoy, "first").await?;
    envoy.push([first, more]).await?.accepted()?;
    let after = held(&envoy, "more").await?;
    let vms = after[0] - before[0];
    ensure!(vms > 0.0, "no VM came with another vm_id");
    Ok(((after[1] - before[1]) / vms / 1024.0, (after[2] - before[2]) / vms / 1024.0))
}

/// VMs, resident memory and linear memory, after the filters of that listener have served.
async fn held(envoy: &Envoy, listener: &str) -> Result<[f64; 3]> {
    let mut client = H1::connect(envoy.addr(listener)).await?;
    for _ in 0..SERVED {
        let response = client.send(&Request::get("/")).await?;
        ensure!(response.status == 200, "{response:?}");
    }
    drop(client);
    settled(envoy).await?;
    let vms = envoy.counter("wasm.envoy.wasm.runtime.v8.active").await?.unwrap_or_default();
    Ok([vms, envoy.anonymous_memory()?, envoy.linear_memory()?].map(|number| number as f64))
}

/// An aligned table for a terminal.
#[must_use]
pub fn table(footprints: &[Footprint], coloured: bool) -> String {
    let head = ["module", "bytes", "gzip", "ms of CPU to load", "KiB a VM", "of linear memory"];
    let mut cells = vec![head.map(str::to_owned)];
    let span = |Estimate { median, low, high }: Estimate| format!("{median:.1} [{low:.1}, {high:.1}]");
    cells.extend(footprints.iter().map(|Footprint { name, bytes, gzip, load, vm, linear }| {
        [name.clone(), bytes.to_string(), gzip.to_string(), span(*load), span(*vm), format!("{linear:.0}")]
    }));
    let mut styles = [Style::new(); 6];
    styles[3] = Style::new().cyan();
    styles[4] = Style::new().cyan();
    aligned(&cells, coloured, |_| styles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_another_module_that_does_the_same() {
        let module = wat::parse_str("(module (memory 1))").unwrap();
        let (one, two) = (unseen(module.clone(), 1), unseen(module.clone(), 2));
        assert!(one != two && one.starts_with(&module));
        wasmparser::validate(&one).unwrap();
    }

    #[test]
    fn a_range_is_the_least_and_the_most() {
        assert_eq!(range(vec![3.0, 1.0, 2.0]), Estimate { median: 2.0, low: 1.0, high: 3.0 });
    }
}
