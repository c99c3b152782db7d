//! A short run of what `make fuzz` does for long.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use log_scrub_native::fuzz::{self, Until};
use log_scrub_native::leak::leaks;
use log_scrub_native::random::Random;
use log_scrub_native::request::{BodyKind, Encoding, Place};
use std::collections::BTreeSet;

#[test]
fn nothing_leaks() {
    if let Err(failure) = fuzz::run(1, Until::Cases(10_000), |_, _| {}) {
        panic!("{}", failure.show());
    }
}

/// What is not in the requests is not looked for: every place and encoding has canaries, and they can be read there.
#[test]
fn canaries_are_everywhere() {
    let mut seen = BTreeSet::new();
    for number in 0..4000 {
        let mut random = Random::new(3, number);
        let settings = fuzz::settings(&mut random);
        let plan = fuzz::plan(&settings, &mut random);
        let case = plan.case();
        let mut all: Vec<u8> = case.path_and_query.clone();
        for (_, value) in case.request_headers.iter().chain(&case.response_headers) {
            all.push(b'\n');
            all.extend(value);
        }
        for part in [&case.request_body, &case.response_body] {
            all.push(b'\n');
            all.extend(part.concat());
        }
        if plan.broken.is_none() {
            for canary in &case.canaries {
                assert!(leaks(&all, canary), "{} in {}", canary.place, String::from_utf8_lossy(&all));
            }
        }
        for item in &plan.items {
            seen.insert(format!("{:?}", item.place));
            seen.insert(format!("{:?} in {:?}", item.encoding, plan.request));
        }
        seen.extend(case.canaries.iter().map(|canary| canary.rule.clone()));
        seen.extend(plan.broken.map(|how| format!("{how:?}")));
    }
    for place in [
        Place::Path,
        Place::Query,
        Place::QueryName,
        Place::Header,
        Place::UserAgent,
        Place::Cookie,
        Place::Referer,
        Place::RefererUser,
        Place::Body,
        Place::BodyName,
        Place::ResponseHeader,
        Place::SetCookie,
        Place::Location,
        Place::LocationPath,
        Place::ResponseBody,
    ] {
        assert!(seen.contains(&format!("{place:?}")), "{place:?}");
    }
    for kind in BodyKind::ALL {
        for encoding in Encoding::ALL {
            assert!(seen.contains(&format!("{encoding:?} in {kind:?}")), "{encoding:?} in {kind:?}");
        }
    }
    for rule in log_scrub_native::values::RULES.into_iter().chain(["field", "staff"]) {
        assert!(seen.contains(rule), "{rule}");
    }
}

/// A case can be made again from what a failure prints.
#[test]
fn a_seed_repeats_it() {
    let cases = || {
        let mut random = Random::new(5, 0);
        let settings = fuzz::settings(&mut random);
        (0..50).map(|_| format!("{:?}", fuzz::plan(&settings, &mut random).case())).collect::<Vec<_>>()
    };
    assert_eq!(cases(), cases());
}
