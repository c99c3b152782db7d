//! Bodies: what could not be looked at is counted.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::indexing_slicing)]

use log_scrub::config::{Config, Fields};
use log_scrub::places::{self, Body};
use log_scrub::{Findings, Rules};

fn rules() -> Rules {
    Rules::new(&Config::default()).unwrap()
}

/// The whole in one part.
fn pass(rules: &Rules, mut body: Body, text: &[u8], findings: &mut Findings) -> Vec<u8> {
    let mut out = Vec::new();
    body.push(rules, text, &mut out, findings);
    body.finish(rules, &mut out, findings).unwrap();
    out
}

#[test]
fn what_could_not_be_looked_at_is_counted() {
    let rules = rules();
    let mut findings = Findings::default();
    let long = "x".repeat(70_000);
    pass(&rules, Body::form(), format!("a={long}&password={long}&{long}&b=1").as_bytes(), &mut findings);
    assert_eq!((findings.unscanned(), findings.total()), (2, 1));
    findings.clear();
    assert_eq!((findings.unscanned(), findings.total()), (0, 0));
    pass(&rules, Body::json(), format!(r#"{{"{long}":"{long}","b":"{{{long}"}}"#).as_bytes(), &mut findings);
    assert_eq!((findings.unscanned(), findings.total()), (2, 0));
    findings.clear();
    let bare = Config { fields: Fields { usual: false, ..Fields::default() }, ..Config::default() };
    places::url(&Rules::new(&bare).unwrap(), b"ftp://bob:hunter2@example.com/", &mut findings);
    assert_eq!((findings.unscanned(), findings.total()), (1, 0));
}
