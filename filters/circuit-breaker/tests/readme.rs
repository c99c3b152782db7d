//! What the README says, held to what the filter does.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use circuit_breaker::config::{Config, Settings};
use circuit_breaker::rules;

const README: &str = include_str!("../README.md");
const SENTINEL: &str = include_str!("../../../examples/thresholds/sentinel.json");
const RULES: &str = include_str!("../../../examples/thresholds/rules.json");

fn settings(configuration: &str) -> Settings {
    let config: Config =
        kit::config::parse(configuration.as_bytes()).unwrap_or_else(|why| panic!("{configuration}: {why}"));
    Settings::new(config).unwrap_or_else(|why| panic!("{configuration}: {why}"))
}

/// The second cells of the table with this head.
fn configurations(head: &str) -> Vec<&'static str> {
    let table = README.split(head).nth(1).unwrap_or_else(|| panic!("no table {head}"));
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| line.split(" | ").nth(1).unwrap().trim_end_matches(" |").trim_matches('`')).collect()
}

#[test]
fn every_configuration_is_taken() {
    let wanted = configurations("| wanted | configuration |");
    let sources = configurations("| source | configuration | |");
    assert!(wanted.len() > 5 && sources.len() == 4, "{wanted:?} {sources:?}");
    for configuration in wanted.into_iter().chain(sources) {
        settings(configuration);
    }
}

#[test]
fn the_first_example_is_the_rule_that_sentinel_writes() {
    let example = README.split("value: |\n").nth(1).unwrap().split("        vm_config").next().unwrap();
    let ours = settings(example).rules;
    assert_eq!(ours, rules::read(SENTINEL.as_bytes()).unwrap());
    assert_eq!(rules::read(RULES.as_bytes()).unwrap().len(), 2);
}

#[test]
fn the_rules_in_the_config_map_are_rules() {
    let rules_json = README.split("  rules.json: |\n").nth(1).unwrap().lines().next().unwrap();
    assert_eq!(rules::read(rules_json.as_bytes()).unwrap().len(), 1);
}

#[test]
fn the_key_of_etcd_is_the_word_rules() {
    let sources = configurations("| source | configuration | |");
    let body = settings(sources[3]).source.unwrap().body;
    assert_eq!(body, r#"{"key":"cnVsZXM="}"#);
    let answer = r#"{"kvs": [{"value": "cnVsZXM="}]}"#;
    assert_eq!(
        &*circuit_breaker::config::payload(circuit_breaker::config::Form::Etcd, answer.as_bytes()).unwrap(),
        b"rules"
    );
}
