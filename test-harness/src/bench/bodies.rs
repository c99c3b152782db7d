//! How fast bodies pass: log-scrub's own passes and the `regex` crate's, in a real Envoy's V8 and natively.
//!
//! The module `kernels` has them all. A request says which pass over which body is made how often, and the reply how long
//! that took by the proxy's clock; natively the same code is called. Every round visits all of them in a new random order,
//! and a ratio is taken within each round before its median. What is found must be the same on both sides.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use kernels::{BODIES, Kernel, Kernels, body};
use owo_colors::Style;
use serde::Serialize;

use super::{Estimate, Random, aligned, median};
use crate::{Envoy, H1, HttpFilter, Listener, Request, Route, module};

/// How long a visit takes, about.
const VISIT_NS: f64 = 8e6;

/// MB/s of the passes over one body.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speeds {
    /// Of log-scrub, as text.
    pub scrub: Estimate,
    /// Of log-scrub, as a JSON body.
    pub json: Estimate,
    /// Of the `regex` crate.
    pub regex: Estimate,
}

/// One body.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Body {
    /// What is in it.
    pub name: String,
    /// Whether it is made to be slow.
    pub hostile: bool,
    /// In Envoy.
    pub v8: Speeds,
    /// On this machine without.
    pub native: Speeds,
    /// In Envoy, how many times as fast as the `regex` crate the JSON body passes.
    pub ratio: Estimate,
}

/// Measures every body so many times, and tells after each round how many there were.
///
/// # Errors
/// When Envoy does not start or does not take the module, or finds other things than are found natively.
pub async fn measure(rounds: usize, seed: u64, told: impl Fn(usize)) -> Result<Vec<Body>> {
    ensure!(rounds > 0, "nothing to measure");
    let listener = Listener::http("kernels")
        .route(Route::respond(404, "no pass"))
        .filter(HttpFilter::wasm("kernels", module("kernels")?));
    let envoy = Envoy::builder().concurrency(1).log_level("warning").listener(listener).start().await?;
    let mut client = H1::connect(envoy.addr("kernels")).await?;
    let kernels = Kernels::new().map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    let bodies: Vec<Vec<u8>> = BODIES.iter().map(|(name, _)| body(name)).collect();
    let mut out = Vec::new();

    // Body by body, kernel by kernel, V8 and then natively.
    let count = BODIES.len() * Kernel::ALL.len() * 2;
    let mut passes = vec![2_u32; count];
    let mut samples = vec![Vec::with_capacity(rounds); count];
    let mut random = Random(seed);
    let mut order: Vec<usize> = (0..count).collect();
    // The first rounds compile, and say how many passes a visit is; they are not kept.
    for round in 0..rounds + 2 {
        random.shuffle(&mut order);
        for &at in &order {
            let (body, kernel, native) =
                (at / 2 / Kernel::ALL.len(), Kernel::ALL[at / 2 % Kernel::ALL.len()], at % 2 == 1);
            let (took, found) = if native {
                let begun = Instant::now();
                let mut found = 0;
                for _ in 0..passes[at] {
                    found = kernels.pass(kernel, std::hint::black_box(&bodies[body]), &mut out);
                }
                (begun.elapsed().as_nanos() as f64, found)
            } else {
                let headers = [
                    ("x-kernel", kernel.name().to_owned()),
                    ("x-body", BODIES[body].0.to_owned()),
                    ("x-passes", passes[at].to_string()),
                ];
                let reply = client.send(&Request::get("/").headers(headers)).await?;
                let text = String::from_utf8_lossy(&reply.body).into_owned();
                let numbers =
                    text.split_once(' ').and_then(|(took, found)| Some((took.parse().ok()?, found.parse().ok()?)));
                numbers.with_context(|| format!("{}: {text}", reply.status))?
            };
            let expected = kernels.pass(kernel, &bodies[body], &mut out);
            ensure!(found == expected, "{} of {}: {found} found, natively {expected}", kernel.name(), BODIES[body].0);
            let each = took / f64::from(passes[at]);
            if round < 2 {
                passes[at] = (VISIT_NS / each).clamp(2.0, 5000.0) as u32;
            } else {
                samples[at].push(bodies[body].len() as f64 * 1000.0 / each);
            }
        }
        told(round.saturating_sub(1).min(rounds));
    }
    let kernels = Kernel::ALL.len();
    let place = |body: usize, kernel: Kernel, native: usize| {
        (body * kernels + Kernel::ALL.iter().position(|other| *other == kernel).unwrap_or_default()) * 2 + native
    };
    let mut report = Vec::new();
    for (at, (name, hostile)) in BODIES.into_iter().enumerate() {
        let mut speeds = |native| {
            let mut of = |kernel| estimate(&samples[place(at, kernel, native)], &mut random);
            Speeds { scrub: of(Kernel::Scrub), json: of(Kernel::Json), regex: of(Kernel::Regex) }
        };
        let (v8, native) = (speeds(0), speeds(1));
        let (json, regex) = (&samples[place(at, Kernel::Json, 0)], &samples[place(at, Kernel::Regex, 0)]);
        let ratios: Vec<f64> = json.iter().zip(regex).map(|(json, regex)| json / regex).collect();
        report.push(Body { name: name.to_owned(), hostile, v8, native, ratio: estimate(&ratios, &mut random) });
    }
    Ok(report)
}

/// The median, with the 99 % interval of a bootstrap.
fn estimate(values: &[f64], random: &mut Random) -> Estimate {
    let resample = |random: &mut Random| values.iter().map(|_| values[random.below(values.len())]).collect();
    let mut spread: Vec<f64> = (0..2000).map(|_| median(resample(random))).collect();
    spread.sort_by(f64::total_cmp);
    Estimate { median: median(values.to_vec()), low: spread[10], high: spread[1988] }
}

/// An aligned table for a terminal.
#[must_use]
pub fn table(bodies: &[Body], coloured: bool) -> String {
    let head =
        ["bodies of 64 KiB, MB/s", "JSON, V8", "text, V8", "regex, V8", "JSON : regex, V8", "JSON", "text", "regex"];
    let mut cells = vec![head.map(str::to_owned)];
    let span = |Estimate { median, low, high }: Estimate| format!("{median:.0} [{low:.0}, {high:.0}]");
    cells.extend(bodies.iter().map(|Body { name, v8, native, ratio, .. }| {
        let ratio = format!("{:.2} [{:.2}, {:.2}]", ratio.median, ratio.low, ratio.high);
        let [json, text, regex] = [v8.json, v8.scrub, v8.regex].map(span);
        let [native_json, native_text, native_regex] = [native.json, native.scrub, native.regex].map(span);
        [name.clone(), json, text, regex, ratio, native_json, native_text, native_regex]
    }));
    let mut styles = [Style::new(); 8];
    styles[1] = Style::new().cyan();
    aligned(&cells, coloured, |_| styles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_holds_its_median() {
        let of = |values: &[f64]| estimate(values, &mut Random(1));
        assert_eq!(of(&[2.0; 9]), Estimate { median: 2.0, low: 2.0, high: 2.0 });
        let wide = of(&(0..50).map(f64::from).collect::<Vec<_>>());
        assert!(wide.low < wide.median && wide.median < wide.high && wide.low > 5.0 && wide.high < 45.0, "{wide:?}");
    }
}
