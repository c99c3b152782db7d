//! Tables of cases.
#![allow(clippy::arithmetic_side_effects)]

use crate::config::{Choice, Config};
use crate::{Findings, Rules, Stream};
use kit::prelude::*;
use std::string::String;

/// Only this detector.
pub(crate) fn only(name: &str) -> Rules {
    let mut names = vec![name];
    if name != "email" {
        // An address may have any other value in it.
        names.push("email");
    }
    let detectors = names.iter().map(|name| Choice { name: (*name).into(), on: true, action: None }).collect();
    Rules::new(&Config { packs: Some(Vec::new()), detectors, ..Config::default() }).unwrap()
}

pub(crate) fn clean(rules: &Rules, text: &[u8]) -> (Vec<u8>, u32) {
    let mut findings = Findings::default();
    (rules.scrub("", text, &mut findings).into_owned(), findings.total())
}

/// The same in parts of these sizes, over and over.
pub(crate) fn clean_in_parts(rules: &Rules, text: &[u8], sizes: &[usize]) -> (Vec<u8>, u32) {
    let (mut out, mut findings, mut rest) = (Vec::new(), Findings::default(), text);
    let mut stream: Stream = rules.stream("");
    for size in sizes.iter().cycle() {
        let (part, after) = rest.split_at((*size).min(rest.len()));
        stream.push(rules, part, &mut out, &mut findings);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    stream.finish(rules, &mut out, &mut findings);
    (out, findings.total())
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// Text and what is left of it, also in parts, in the middle of a long text, and when cleaned again.
pub(crate) fn found(name: &str, cases: &[(&str, &str)]) {
    let rules = only(name);
    for (text, expected) in cases {
        let (once, count) = clean(&rules, text.as_bytes());
        assert_eq!(shown(&once), *expected, "{text}");
        assert!(count > 0, "{text}");
        assert_eq!(shown(&clean(&rules, &once).0), *expected, "{text}, twice");
        for long in [1, 1023, 1024, 8191, 20_000] {
            let around = "a, ".repeat(long / 3 + 1);
            let long = format!("{around}{text} {around}");
            let (parts, _) = clean_in_parts(&rules, long.as_bytes(), &[7, 5000, 1]);
            assert_eq!(shown(&parts), format!("{around}{expected} {around}"), "{text}, in parts");
        }
    }
}

/// Text that is left as it is.
pub(crate) fn untouched(name: &str, cases: &[&str]) {
    let rules = only(name);
    for text in cases {
        assert_eq!(shown(&clean(&rules, text.as_bytes()).0), *text);
    }
}
