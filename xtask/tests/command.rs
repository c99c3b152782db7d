//! The command, as make calls it: what it says when something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::process::Command;

fn error(arguments: &[&str]) -> String {
    // Where a developer has it set, errors bring a stack.
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).env("RUST_BACKTRACE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_error_is_a_line_for_each_cause_and_no_stack() {
    assert_eq!(
        error(&["manifests", "--registry", "registry.example.com/Filters"]).lines().collect::<Vec<_>>().len(),
        1
    );
    let said = error(&["manifests", "--version", "1.2"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("error: `1.2` is no version"), "{said}");
    assert!(lines[1].starts_with("  because: "), "{said}");
}
