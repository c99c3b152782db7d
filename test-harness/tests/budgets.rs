//! What every case costs is what `budgets.toml` says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use anyhow::Result;
use test_harness::budgets::{self, Budget};

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
