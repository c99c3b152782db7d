//! `make dashboard`: a story told to a real Envoy and seen by a real Prometheus, and a picture of what the dashboard shows of
//! it. Every line in it is what the panel's own query came to.
//!
//! An upstream gets slow, its breaker opens; it settles at a speed that is still too slow for the rule; the rule's threshold
//! is raised while all runs, and the next probe closes the breaker; then the upstream is as fast as before, and another fails.

#![allow(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "a picture that goes wrong shall stop"
)]

mod draw;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use draw::{Marker, Picture};
use test_harness::Request;
use test_harness::dashboard::{Dashboard, Stage, filled, rules};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// How long it takes, in seconds.
const LENGTH: f64 = 80.0;
const SLOW: f64 = 15.0;
const SETTLED: f64 = 29.0;
const CHANGED: f64 = 39.0;
const WELL: f64 = 55.0;
const ANOTHER: f64 = 61.0;
/// When some caller begins to send what it should not.
const CARDS: f64 = 48.0;

/// Over what rates are taken: as many scrapes as Grafana would take, and half as many again.
const RATES: &str = "3s";

#[tokio::main]
async fn main() -> Result<()> {
    let path = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [path] if !path.starts_with('-') => PathBuf::from(path),
        _ => bail!("usage: dashboard <picture.svg>"),
    };
    let stage = Arc::new(Stage::start("8s").await?);
    // So that the first point of the picture has a rate.
    let (begin, first) = (Instant::now() + Duration::from_secs(4), now()? + 4.0);
    println!("the story takes {LENGTH} s");
    let mut ticks = interval(Duration::from_millis(25));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut changed = false;
    for number in 0_u32.. {
        ticks.tick().await;
        let at = begin.elapsed().as_secs_f64();
        if at >= LENGTH {
            break;
        }
        if at >= CHANGED && !changed {
            stage.thresholds.set(rules("250ms", "8s"));
            changed = true;
        }
        let (stage, request) = (Arc::clone(&stage), request(number, at));
        tokio::spawn(async move { stage.send("edge", request).await });
    }
    sleep(Duration::from_secs(1)).await;
    fs::write(&path, picture(&stage, first).await?).with_context(|| path.display().to_string())?;
    println!("wrote {}", path.display());
    Ok(())
}

fn now() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// The request of that number at that time of the story: forty a second, most of them to the upstream that gets slow.
fn request(number: u32, at: f64) -> Request {
    let varied = number.wrapping_mul(7919) % 13;
    let reply =
        |pause: u32, rest: &str| ("x-reply", format!("pause={pause}; head; pause={}; chunk=ok{rest}", 4 + varied / 3));
    let (path, (name, value)) = match number % 10 {
        0..=5 => {
            let pause = if (SLOW..SETTLED).contains(&at) {
                400
            } else if (SETTLED..WELL).contains(&at) {
                190
            } else {
                30
            };
            ("/pay", reply(pause + varied, ""))
        }
        6 if (ANOTHER..ANOTHER + 5.0).contains(&at) => ("/sick", ("x-reply", "status=500; chunk=sick".to_owned())),
        6 => ("/sick", reply(10 + varied, "")),
        7 => ("/users/ann@example.com?token=abc", reply(15 + varied, "")),
        8 if at > CARDS => ("/orders?card=4111+1111+1111+1111", reply(15 + varied, "")),
        8 => ("/orders?page=2", reply(15 + varied, "")),
        _ if number % 40 == 9 => ("/missing", ("x-reply", "status=404; chunk=none".to_owned())),
        _ => ("/contacts/+4915112345678", reply(20 + varied, "")),
    };
    Request::get(path).header(name, value)
}

/// What some panels show of it.
async fn picture(stage: &Stage, first: f64) -> Result<String> {
    let dashboard = Dashboard::read()?;
    let all = dashboard.all();
    let mut panels = Vec::new();
    for (title, only) in [
        ("Requests by class", ""),
        ("Where the time goes", ""),
        ("Breakers over time", ""),
        ("Thresholds' version", "suite highest"),
        ("Burn of the error budget", " 5m"),
        ("Findings by rule", ""),
    ] {
        let panel = dashboard.panels().into_iter().find(|panel| panel.title == title);
        let panel = panel.with_context(|| format!("the dashboard has no panel `{title}`"))?;
        let mut series = Vec::new();
        for (expression, legend) in &panel.queries {
            let expression = filled(expression, &all, RATES)?;
            for mut track in stage.prometheus.range(&expression, (first, first + LENGTH), 0.5).await? {
                track.points.iter_mut().for_each(|point| point.0 -= first);
                let name = track
                    .labels
                    .iter()
                    .fold(legend.clone(), |legend, (label, value)| legend.replace(&format!("{{{{{label}}}}}"), value));
                if name.contains(only) {
                    series.push((name, track.points));
                }
            }
        }
        panels.push(dashboard.panel(title).map(|json| draw::Panel::new(json, series)).context("a panel")?);
    }
    let opened = panels.iter().flat_map(|panel| panel.series("payment")).find(|(_, state)| *state == 2.0);
    let (opened, _) = opened.context("the breaker did not open")?;
    let markers = [
        (SLOW, "the upstream answers in 400 ms, not in 30"),
        (opened, "its breaker opens"),
        (SETTLED, "190 ms: still too slow for the rule"),
        (CHANGED, "the threshold becomes 250 ms; the next probe closes it"),
        (WELL, "30 ms again"),
        (ANOTHER, "another upstream fails: its breaker opens, and no other"),
    ];
    let markers = markers.map(|(at, words)| Marker { at, words });
    let about = format!(
        "A real Envoy {} with the suite, {LENGTH} s of traffic; drawn from what the panels' own queries came to in Prometheus.",
        stage.envoy.version().await?
    );
    Ok(Picture { panels, markers: markers.into(), length: LENGTH, about }.svg())
}
