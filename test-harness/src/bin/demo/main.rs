//! `make demo`: the filters in a real Envoy, told as a tour. Everything shown is what came out of this run.
//!
//! A filter's part of the tour is a file of its own: the listeners it needs, and its steps.

#![allow(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    reason = "a tour that goes wrong shall stop"
)]

mod circuit_breaker;
mod latency;
mod log_scrub;
mod suite;
mod tour;
mod trace_id;

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Result, bail};
use test_harness::{Envoy, Listener, Upstream};
use tokio::signal::unix::{SignalKind, signal};
use tour::Tour;

#[tokio::main]
async fn main() -> Result<()> {
    let keep = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [flag] if flag == "--keep" => true,
        other => bail!("unknown: {}; there is --keep", other.join(" ")),
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    // Whatever ends the tour, Envoy and the upstream end with what this holds.
    tokio::select! {
        result = walk(keep) => return result,
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    // After a hangup there may be nobody to tell.
    let _ = writeln!(std::io::stdout(), "\nStopped.");
    Ok(())
}

/// All of them, trace-id's first: a push replaces the whole.
fn listeners() -> Result<Vec<Listener>> {
    let all = [
        trace_id::listeners()?,
        latency::listeners()?,
        log_scrub::listeners()?,
        circuit_breaker::listeners()?,
        suite::listeners()?,
    ];
    Ok(all.concat())
}

async fn walk(keep: bool) -> Result<()> {
    let upstream = Upstream::start().await?;
    let thresholds = circuit_breaker::thresholds().await?;
    let builder = Envoy::builder().cluster("service", upstream.addr());
    let mut builder = builder.cluster(circuit_breaker::SOURCE, thresholds.addr());
    let tags = [trace_id::stats_tags(), latency::stats_tags(), log_scrub::stats_tags(), circuit_breaker::stats_tags()];
    let tags = tags.concat();
    // Filters share labels.
    for (tag, regex) in tags.into_iter().collect::<BTreeMap<_, _>>() {
        builder = builder.stats_tag(&tag, &regex);
    }
    for listener in listeners()? {
        builder = builder.listener(listener);
    }
    let envoy = builder.start().await?;
    let tour = Tour::new(&envoy, &upstream).await?;
    trace_id::tour(&tour).await?;
    latency::tour(&tour).await?;
    log_scrub::tour(&tour).await?;
    circuit_breaker::tour(&tour, &thresholds).await?;
    suite::tour(&tour).await?;
    if keep {
        let lines = [trace_id::to_try(&envoy), latency::to_try(&envoy), log_scrub::to_try(&envoy)].concat();
        tour.kept(&[lines, circuit_breaker::to_try(&envoy, &thresholds), suite::to_try(&envoy)].concat());
        std::future::pending::<()>().await;
    }
    envoy.stop().await?;
    tour.end();
    Ok(())
}
