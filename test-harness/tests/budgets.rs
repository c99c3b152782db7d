//! What every case costs is what `budgets.toml` says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use anyhow::{Result, anyhow};
use emulator::{Message, Module, Plugin, Proxy};
use test_harness::bench::{HEADERS, PATH, configuration};
use test_harness::budgets::{self, Budget};
use test_harness::module;

#[test]
fn no_case_costs_more_or_less_than_its_budget() -> Result<()> {
    let changed = budgets::differences(&budgets::read()?, &budgets::measure()?);
    assert!(changed.is_empty(), "\n{changed}\nIf it is meant: make budgets, and review the change.");
    Ok(())
}

#[test]
fn what_changed_is_told_with_old_and_new() {
    let one = |fuel: u64| {
        let budget = Budget { fuel, entries: [("on_log".to_owned(), fuel)].into(), ..Budget::default() };
        [("filter".to_owned(), [("a case".to_owned(), budget)].into())].into()
    };
    let told = budgets::differences(&one(100), &one(110));
    for part in ["filter", "a case", "entry on_log", "fuel", "100", "110", "+10.0 %"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert_eq!(budgets::differences(&one(100), &one(100)), "");
    assert!(budgets::differences(&one(100), &budgets::Budgets::new()).contains("in the file alone"));
}

/// The benchmark shows what the proxy charges for the suite's hostcalls alone: that is only true of the same calls.
#[test]
fn what_is_measured_as_the_hostcalls_of_the_suite_is_what_it_calls() -> Result<()> {
    let calls = |name: &str, config: &str| {
        let code = Module::read(module(name)?).map_err(|why| anyhow!(why))?;
        let proxy = Proxy::new(1, 1);
        proxy.push("in", [Plugin::new(name, &code).configuration(configuration(config)?.to_string())])?;
        // As a listener of the benchmark says: a route without a name, and no cluster, as the proxy answers itself.
        proxy.set_property(&["xds", "route_name"], "");
        proxy.set_property(&["xds", "listener_direction"], 0_i64);
        // Envoy makes the request id, and the client's `host` is its `:authority`.
        let more = [(":method", "GET"), (":path", PATH), (":scheme", "http"), ("x-request-id", "0")];
        let request = Message::new(more.into_iter().chain(HEADERS));
        let response = Message::new([(":status", "200"), ("content-length", "2")]).chunk("ok");
        (0..20).for_each(|_| drop(proxy.exchange("in", 0, &request, &response)));
        drop(proxy.take_tally());
        drop(proxy.exchange("in", 0, &request, &response));
        let tally = proxy.take_tally();
        anyhow::Ok((tally.entries, tally.hostcalls, tally.bytes_in))
    };
    assert_eq!(calls("hostcalls", "suite-hostcalls")?, calls("suite", "suite")?);
    Ok(())
}
