//! Whether the filters stay well: a real Envoy under load, with a push of configuration every second.
//!
//! Every filter stands in two listeners: one has it inline, and a push replaces the listener (LDS); the other has it
//! [discovered](crate::HttpFilter::discovered), and a push replaces the filter alone (ECDS). Right pushes take turns with
//! wrong ones of either kind, which must be refused while the old configuration serves on. No two configurations are
//! the same, because Envoy remembers what a VM said of one, and does not ask again. With every second right push the
//! inline filter also gets another `vm_id`, and with it new VMs; the discovered one keeps its VMs from start to end, so
//! that what piles up in them is seen.
//!
//! What is compared are two states of rest: no load, replaced listeners drained, connections closed, one and the same
//! configuration. The first comes after a warm-up with load and pushes of every kind.
//!
//! Memory is looked at in three ways. What a filter leaks is in the linear memory of its VMs, and that is exact: a module
//! takes it in pages of 64 KiB and cannot give it back, so at rest it may differ by what one worker had to do more than
//! another, a page for each VM. What pushes leave behind is on Envoy's heap, in bytes that are allocated; Envoy itself
//! keeps some for every configuration that a living VM has judged. The resident memory is what the machine sees, but
//! rises for minutes while the allocator fills what it holds: its bound is wide, and for what the other two miss. So
//! these are bounds and not slopes: a longer run sees a smaller leak.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use owo_colors::{OwoColorize, Style};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::client::LoadReport;
use crate::{
    Cluster, Envoy, HttpFilter, Listener, Load, PATIENCE, Protocol, Request, Response, Route, Upstream, Verdict,
    eventually, module,
};

/// A filter under load.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The name of the filter and of its module.
    pub name: &'static str,
    /// A configuration that is right, another one for every number, of about the same size.
    pub right: fn(u64) -> Value,
    /// A configuration that must be refused, another one for every number.
    pub wrong: fn(u64) -> Value,
    /// What is sent all the time.
    pub request: Request,
    /// Whether a response is right, under any right configuration.
    pub check: fn(&Response) -> Result<()>,
}

/// How long, and how hard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From start to end, warm-up and rests included.
    pub duration: Duration,
    /// Connections over each of HTTP/1.1 and h2, for each listener.
    pub connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { duration: Duration::from_secs(300), connections: 4 }
    }
}

/// What Envoy holds at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The linear memories of the VMs, in bytes.
    pub linear: u64,
    /// What is allocated on Envoy's own heap, in bytes.
    pub heap: u64,
    /// Resident memory without a file behind it, in bytes: both of these, V8's own, and what allocators keep.
    pub anonymous: u64,
    /// Open files and sockets.
    pub files: u64,
    /// Living VMs.
    pub vms: u64,
    /// Connections of callers.
    pub connections: u64,
}

/// What the pushes came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushes {
    /// Accepted, as they should be.
    pub accepted: u64,
    /// Refused, as they should be.
    pub refused: u64,
}

/// Where the run is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Since the start.
    pub elapsed: Duration,
    /// Whether what happens now comes before the first rest.
    pub warming: bool,
    /// Requests that were answered so far.
    pub answered: u64,
    /// Pushes so far.
    pub pushes: Pushes,
    /// What Envoy holds.
    pub held: Held,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// At rest after the warm-up.
    pub before: Held,
    /// At rest at the end.
    pub after: Held,
    /// Answered requests between the two.
    pub requests: u64,
    /// Of these, the ones to VMs that live from start to end; of the filter that had the fewest.
    pub fewest: u64,
    /// Pushes in the whole run, counted by filters.
    pub pushes: Pushes,
    /// Requests that were lost or answered wrongly in the whole run, each with the reason.
    pub failed: Vec<String>,
    /// What Envoy or a filter logged at level warning and above, but for the refusals that were asked for.
    pub logged: Vec<String>,
}

/// All kinds of pushes, and two changes of the `vm_id`.
const WARM_UP: Duration = Duration::from_secs(16);
/// What a rest takes: replaced listeners drain for 2 s, and connections to the upstream are idle for 1.
const REST: Duration = Duration::from_secs(5);
const IDLE: &str = "1s";

/// Puts the filters under load and pushes for so long, and reports what became of Envoy. Ends early when a request fails.
///
/// # Errors
/// When Envoy does not start, or ends, or judges a push otherwise than it should, or does not come to rest.
pub async fn run(subjects: &[Subject], settings: &Settings, mut watch: impl FnMut(&Progress)) -> Result<Report> {
    ensure!(!subjects.is_empty() && settings.connections > 0, "nothing to soak: {settings:?}");
    let shortest = (WARM_UP + REST) * 2;
    ensure!(settings.duration >= shortest, "give at least {shortest:?}, or there is nothing between two rests");
    let begun = Instant::now();
    let upstream = Upstream::start().await?;
    let options = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": { "idle_timeout": IDLE },
        "explicit_http_config": { "http_protocol_options": {} },
    });
    let service = Cluster::new("service", upstream.addr()).merge(json!({
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options },
    }));
    let mut builder = Envoy::builder().log_level("warning").add_cluster(service);
    for listener in listeners(subjects, Variant::FIRST)? {
        builder = builder.listener(listener);
    }
    let envoy = builder.start().await?;
    let at_start = envoy.warnings().len();
    let mut run = Run {
        envoy: &envoy,
        upstream: &upstream,
        subjects,
        connections: settings.connections,
        begun,
        turn: 0,
        pushes: Pushes::default(),
        answered: vec![0; subjects.len() * 2],
        failed: Vec::new(),
    };

    run.strain(begun + WARM_UP.max(settings.duration / 5), true, &mut watch).await?;
    let mut report = Report { before: run.rest().await?, ..Report::default() };
    let warm = run.answered.clone();
    if run.failed.is_empty() {
        run.strain(begun + settings.duration - REST, false, &mut watch).await?;
    }
    report.after = run.rest().await?;
    let answered: Vec<u64> = run.answered.iter().zip(warm).map(|(all, warm)| all - warm).collect();
    report.requests = answered.iter().sum();
    report.fewest = answered.chunks(2).map(|two| two[1]).min().unwrap_or_default();
    report.pushes = run.pushes;
    report.failed = run.failed;
    report.logged = unexpected(&envoy.warnings()[at_start..], &report.pushes);
    Ok(report)
}

/// What is logged of a refused configuration; the first comes from the filter, once for each.
const REFUSAL: [&str; 5] = [
    ": configuration refused at ",
    "] Wasm VM failed Failed to configure base Wasm plugin",
    " failed to load",
    " config rejected: Unable to create Wasm plugin ",
    " config update rejected: ",
];

fn unexpected(entries: &[String], pushes: &Pushes) -> Vec<String> {
    let mut other: Vec<String> =
        entries.iter().filter(|entry| !REFUSAL.iter().any(|part| entry.contains(part))).cloned().collect();
    let said = entries.iter().filter(|entry| entry.contains(REFUSAL[0])).count() as u64;
    if said != pushes.refused {
        other.push(format!("{said} reasons of a refusal were logged, after {} refused pushes\n", pushes.refused));
    }
    other
}

/// Which configuration is meant.
#[derive(Clone, Copy)]
struct Variant {
    number: u64,
    right: bool,
    vm: u64,
}

impl Variant {
    const FIRST: Self = Self { number: 0, right: true, vm: 0 };
}

fn filter(subject: &Subject, name: &str, variant: Variant) -> Result<HttpFilter> {
    let config = if variant.right { subject.right } else { subject.wrong };
    let vm = format!("{name}-{}", variant.vm);
    Ok(HttpFilter::wasm(name, module(subject.name)?).vm_id(&vm).config(config(variant.number)))
}

/// The names of the listener with the filter inline, and of that with the discovered one.
fn names(subject: &Subject) -> [String; 2] {
    ["inline", "discovered"].map(|kind| format!("{}-{kind}", subject.name))
}

fn listeners(subjects: &[Subject], inline: Variant) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for subject in subjects {
        let [one, other] = names(subject);
        let listener = |name: &str, filter| Listener::http(name).filter(filter).route(Route::cluster("service"));
        listeners.push(listener(&one, filter(subject, &one, inline)?));
        listeners.push(listener(&other, filter(subject, &other, Variant::FIRST)?.discovered()));
    }
    Ok(listeners)
}

struct Run<'a> {
    envoy: &'a Envoy,
    upstream: &'a Upstream,
    subjects: &'a [Subject],
    connections: usize,
    begun: Instant,
    turn: u64,
    pushes: Pushes,
    /// For each subject, inline and discovered.
    answered: Vec<u64>,
    failed: Vec<String>,
}

impl Run<'_> {
    /// Load and a push every second, until then.
    async fn strain(&mut self, until: Instant, warming: bool, watch: &mut impl FnMut(&Progress)) -> Result<()> {
        let mut loads = Vec::new();
        for subject in self.subjects {
            for name in names(subject) {
                let addr = self.envoy.addr(&name);
                let load = |protocol| Load::checked(addr, self.connections, &subject.request, protocol, subject.check);
                loads.push([load(Protocol::H1), load(Protocol::H2)]);
            }
        }
        let mut second = interval(Duration::from_secs(1));
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            second.tick().await;
            let reports: Vec<LoadReport> = loads.iter().flatten().map(Load::report).collect();
            if Instant::now() >= until || reports.iter().any(|report| !report.errors.is_empty()) {
                break;
            }
            self.push().await?;
            // Nobody needs its record.
            drop(self.upstream.take());
            let now: u64 = reports.iter().map(LoadReport::answered).sum();
            watch(&Progress {
                elapsed: self.begun.elapsed(),
                warming,
                answered: self.answered.iter().sum::<u64>() + now,
                pushes: self.pushes,
                held: held(self.envoy).await?,
            });
        }
        for (at, load) in loads.into_iter().enumerate().flat_map(|(at, two)| two.map(|load| (at, load))) {
            let report = load.stop().await;
            self.answered[at] += report.answered();
            self.failed.extend(report.errors);
        }
        drop(self.upstream.take());
        Ok(())
    }

    async fn push(&mut self) -> Result<()> {
        let (kind, round) = (self.turn % 4, self.turn / 4);
        self.turn += 1;
        let variant = Variant { number: self.turn, right: kind < 2, vm: round.div_ceil(2) % 2 };
        if kind % 2 == 0 { self.push_inline(variant).await } else { self.push_discovered(variant).await }
    }

    async fn push_inline(&mut self, variant: Variant) -> Result<()> {
        let verdict = self.envoy.push(listeners(self.subjects, variant)?).await?;
        // The listeners are judged one by one.
        self.judge(verdict, variant, self.subjects.len())
    }

    async fn push_discovered(&mut self, variant: Variant) -> Result<()> {
        for subject in self.subjects {
            let [_, name] = names(subject);
            let filter = filter(subject, &name, Variant { vm: 0, ..variant })?.discovered();
            let verdict = self.envoy.push_extension(&filter).await?;
            self.judge(verdict, variant, 1)?;
        }
        Ok(())
    }

    fn judge(&mut self, verdict: Verdict, variant: Variant, filters: usize) -> Result<()> {
        if variant.right {
            verdict.accepted()?;
            self.pushes.accepted += filters as u64;
        } else {
            verdict.rejected()?;
            self.pushes.refused += filters as u64;
        }
        Ok(())
    }

    /// Waits until nothing goes on any more, and looks.
    async fn rest(&mut self) -> Result<Held> {
        self.push_inline(Variant::FIRST).await?;
        self.push_discovered(Variant::FIRST).await?;
        let envoy = self.envoy;
        eventually("an Envoy at rest", PATIENCE, async || {
            let state = async {
                let manager = envoy.stats("listener_manager.total_").await?;
                let draining = manager.iter().filter(|(name, _)| name.ends_with("_draining")).map(|(_, n)| n).sum();
                let upstream = envoy.counter("cluster.service.upstream_cx_active").await?;
                anyhow::Ok::<(u64, _, _)>((draining, upstream, held(envoy).await?.connections))
            };
            match state.await {
                Ok((0, Some(0), 0)) => Ok(()),
                other => Err(format!("draining, to the upstream, from callers: {other:?}")),
            }
        })
        .await?;
        // VMs end a little after the last listener that had them, on every thread.
        sleep(Duration::from_millis(500)).await;
        held(envoy).await
    }
}

async fn held(envoy: &Envoy) -> Result<Held> {
    let memory: Value = serde_json::from_str(&envoy.admin_get("/memory").await?)?;
    let heap = memory["allocated"].as_str().and_then(|text| text.parse().ok());
    // By address, and by address and worker; the admin interface is one, too.
    let active = |name: &str| name.starts_with("listener.127.0.0.1_") && name.ends_with(".downstream_cx_active");
    let listeners = envoy.stats("listener.").await?;
    let connections = listeners.iter().filter(|(name, _)| active(name) && !name.contains(".worker_"));
    Ok(Held {
        linear: envoy.linear_memory()?,
        heap: heap.with_context(|| format!("/memory says {memory}"))?,
        anonymous: envoy.anonymous_memory()?,
        files: envoy.open_files()? as u64,
        vms: envoy.counter("wasm.envoy.wasm.runtime.v8.active").await?.unwrap_or_default(),
        connections: connections.map(|(_, value)| value).sum(),
    })
}

/// A row of the table: what, at the two rests, and how much more there may be.
type Row = (&'static str, [u64; 2], u64);

/// Of linear memory.
const PAGE: u64 = 64 << 10;

impl Report {
    /// How much more of everything there may be at the end.
    fn more(&self) -> Held {
        let Pushes { accepted, refused } = self.pushes;
        Held {
            linear: self.before.vms * PAGE,
            heap: (512 << 10) + (accepted + refused) * 1024,
            anonymous: 8 << 20,
            files: 4,
            vms: 0,
            connections: 0,
        }
    }

    fn rows(&self) -> [Row; 6] {
        let more = self.more();
        let row = |name, of: fn(&Held) -> u64| (name, [of(&self.before), of(&self.after)], of(&more));
        [
            row("linear memory, KiB", |held| held.linear >> 10),
            row("Envoy's heap, KiB", |held| held.heap >> 10),
            row("resident memory, KiB", |held| held.anonymous >> 10),
            row("open files", |held| held.files),
            row("VMs", |held| held.vms),
            row("connections", |held| held.connections),
        ]
    }

    /// Whether all stayed well.
    ///
    /// # Errors
    /// When it did not, with everything that did not.
    pub fn check(&self) -> Result<()> {
        let mut wrong = String::new();
        for (name, [before, after], more) in self.rows() {
            if after > before + more {
                let _ = writeln!(wrong, "{name}: {before} became {after}, at most {more} more would do");
            }
        }
        for (what, list) in [("requests failed", &self.failed), ("unexpected log entries", &self.logged)] {
            if let Some(first) = list.first() {
                let _ = writeln!(wrong, "{} {what}, the first: {}", list.len(), first.trim_end());
            }
        }
        if self.fewest == 0 && self.failed.is_empty() {
            wrong.push_str("a filter had no request\n");
        }
        ensure!(wrong.is_empty(), "{}", wrong.trim_end());
        Ok(())
    }

    /// Bytes per request that a filter would have to leave behind, to be seen in this run.
    #[must_use]
    pub fn visible(&self) -> u64 {
        self.more().linear.div_ceil(self.fewest.max(1))
    }

    /// An aligned table for a terminal.
    #[must_use]
    pub fn table(&self, coloured: bool) -> String {
        let paint = |style: Style| if coloured { style } else { Style::new() };
        let (head, dim) = (paint(Style::new().bold()), paint(Style::new().dimmed()));
        let verdict = |well| paint(if well { Style::new().green() } else { Style::new().red().bold() });
        let mut out = String::new();
        let title = format!("{:<24}{:>10}{:>10}{:>10}{:>10}", "at rest", "before", "after", "change", "allowed");
        let _ = writeln!(out, "{}", title.style(head));
        for (name, [before, after], more) in self.rows() {
            let change = i128::from(after) - i128::from(before);
            let change = format!("{change:>+10}").style(verdict(after <= before + more)).to_string();
            let more = format!("{:>+10}", more as i64).style(dim).to_string();
            let _ = writeln!(out, "{name:<24}{before:>10}{after:>10}{change}{more}");
        }
        for (name, list) in [("failed requests", &self.failed), ("unexpected log entries", &self.logged)] {
            let count = format!("{:>10}", list.len()).style(verdict(list.is_empty())).to_string();
            let _ = writeln!(out, "{name:<24}{:>10}{count}", "");
        }
        let Pushes { accepted, refused } = self.pushes;
        let note = format!(
            "{} requests between the rests; {accepted} configurations accepted, {refused} refused, as they should be.\n\
             A filter that leaves {} bytes behind per request would have been seen.",
            self.requests,
            self.visible(),
        );
        let _ = writeln!(out, "\n{}", note.style(dim));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Report {
        let before = Held { linear: 8 << 20, heap: 14 << 20, anonymous: 40 << 20, files: 40, vms: 8, connections: 0 };
        Report { before, after: before, requests: 200_000, fewest: 100_000, ..Report::default() }
    }

    #[test]
    fn what_grows_beyond_its_bound_is_told() {
        well().check().unwrap();
        let table = well().table(false);
        assert!(table.contains("\nVMs                              8         8        +0        +0\n"), "{table}");
        assert!(!table.contains('\u{1b}') && well().table(true).contains('\u{1b}'));
        type Change = fn(&mut Report);
        let changes: [(Change, &str); 8] = [
            (|report| report.after.linear += 9 * PAGE, "linear memory, KiB: 8192 became 8768, at most 512 more"),
            (|report| report.after.anonymous += (8 << 20) + 1024, "resident memory"),
            (|report| report.after.heap += (512 << 10) + 1024, "Envoy's heap"),
            (|report| report.after.files += 5, "open files: 40 became 45"),
            (|report| report.after.vms += 1, "VMs: 8 became 9"),
            (|report| report.failed.push("lost".to_owned()), "1 requests failed, the first: lost"),
            (|report| report.logged.push("[error]".to_owned()), "1 unexpected log entries"),
            (|report| report.fewest = 0, "no request"),
        ];
        for (change, told) in changes {
            let mut report = well();
            change(&mut report);
            let error = report.check().unwrap_err().to_string();
            assert!(error.contains(told) && error.lines().count() == 1, "{told}: {error}");
        }
        let mut less = well();
        less.after = Held::default();
        less.check().unwrap();
    }

    #[test]
    fn a_leak_of_what_is_visible_is_over_the_bound() {
        let mut report = well();
        report.after.linear += (report.visible() + 1) * report.fewest;
        report.check().unwrap_err();
    }

    #[test]
    fn only_refusals_that_were_asked_for_are_expected() {
        let reason = "[error] x: configuration refused at `a`: b\n".to_owned();
        let refused = Pushes { accepted: 0, refused: 1 };
        assert!(unexpected(std::slice::from_ref(&reason), &refused).is_empty());
        assert_eq!(unexpected(&[], &refused).len(), 1, "the filter was not asked");
        let trap = "[critical] Uncaught RuntimeError: unreachable\n".to_owned();
        assert_eq!(unexpected(&[reason, trap.clone()], &refused), [trap]);
    }
}
