//! A real Envoy for tests, the demo and the benchmarks.
//!
//! - [`config`] says what Envoy shall run: listeners, filters, clusters, as typed values that become its JSON.
//! - [`envoy`] starts it, pushes new configuration into it, reads its stats and logs, and takes it down with the test.
//! - [`upstream`] is the service behind it: it records what arrives, byte for byte, and answers as it is told.
//! - [`client`] is the caller in front of it: exact bytes over HTTP/1.1, h2c, and continuous load.
//! - [`wire`] holds what the last two speak of: requests and responses whose headers are bytes.
//! - [`cases`] reads test cases that are data; [`budgets`] counts what they cost.
//! - [`metrics`] reads the Prometheus text; [`prometheus`] is a real Prometheus that scrapes it, asked in PromQL.
//! - [`thresholds`] is a source of thresholds that fails and lies as told; [`sources`] are real ones: nginx and etcd.
//! - [`registry`] is a real registry for images.
//! - [`dashboard`] asks what the dashboard for Grafana asks, of a Prometheus beside a proxy in which all of it happens.
//! - [`stack`] is all that `docker-compose.yaml` starts, with or without containers; [`scripted`] is the service in it.
//! - [`mod@bench`] measures what a filter costs, [`soak`] whether it stays well.
//!
//! Everything may run in parallel: ports are reserved, and each instance has a directory of its own. Every wait
//! has a deadline, and says at its end what it saw instead.
//!
//! ```no_run
//! use test_harness::{Envoy, HttpFilter, Listener, Route, Upstream, module};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let upstream = Upstream::start().await?;
//! let envoy = Envoy::builder()
//!     .cluster("service", upstream.addr())
//!     .listener(
//!         Listener::http("edge")
//!             .filter(HttpFilter::wasm("trace-id", module("trace-id")?))
//!             .route(Route::cluster("service")),
//!     )
//!     .start()
//!     .await?;
//! envoy.get("edge", "/", [("x-who", "me")]).await?;
//! assert!(upstream.wait(1).await?[0].headers.has("traceparent"));
//! # Ok(())
//! # }
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "runs beside tests, not on a stranger's bytes in a proxy: a broken assumption shall stop the test"
)]

pub mod bench;
pub mod budgets;
pub mod cases;
pub mod client;
pub mod config;
pub mod dashboard;
pub mod envoy;
pub mod metrics;
mod process;
pub mod prometheus;
pub mod registry;
pub mod scripted;
pub mod soak;
pub mod sources;
pub mod stack;
pub mod thresholds;
pub mod upstream;
pub mod wire;

pub use client::{H1, H2, Load, Protocol};
pub use config::{AccessLog, Cluster, HttpFilter, Listener, Route};
pub use envoy::{Envoy, Verdict};
pub use prometheus::Prometheus;
pub use registry::DockerRegistry;
pub use scripted::Scripted;
pub use sources::{ConfigMap, Etcd, Nginx};
pub use stack::Stack;
pub use thresholds::Thresholds;
pub use upstream::{Reply, Upstream};
pub use wire::{Headers, Request, Response};

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// How long the harness waits for anything but the start of Envoy. Generous: it only passes when something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The root of the workspace, where `dist`, `target` and `.tools` lie.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the harness is a member of the workspace").to_owned()
}

/// The built wasm module of that name: a shipped one from `dist`, else a test module from `target/modules`.
///
/// # Errors
/// When neither is there; the message says how to build it.
pub fn module(name: &str) -> Result<PathBuf> {
    let places = [root().join("dist"), root().join("target/modules")].map(|dir| dir.join(format!("{name}.wasm")));
    match places.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => bail!("no module `{name}` at {} or {}: run `make modules`", places[0].display(), places[1].display()),
    }
}

/// Asks again and again, until `check` gives a value or the time is over.
///
/// `check` returns `Err` with what it saw instead; the last of these stands in the error.
///
/// # Errors
/// When `within` has passed.
pub async fn eventually<T>(
    what: impl Display,
    within: Duration,
    mut check: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_millis(1);
    let mut seen = "nothing".to_owned();
    loop {
        match timeout_at(deadline, check()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(instead)) => seen = instead,
            Err(_) => bail!("{what}: the check itself did not end within {within:?}; last seen: {seen}"),
        }
        if Instant::now() + pause > deadline {
            bail!("{what}: not within {within:?}; last seen: {seen}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
