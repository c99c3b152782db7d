//! Bodies: what could not be looked at is counted; and JSON that comes whole, where plain tokens are taken many at a
//! time, is as JSON that comes byte by byte.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::indexing_slicing)]

use log_scrub::config::{Config, Fields, How, Kind, Pack};
use log_scrub::places::{self, Body, Why};
use log_scrub::{Findings, Rules};
use proptest::prelude::*;

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

/// In parts of these sizes, over and over; what it wrote counts only if there is no error.
fn parts(rules: &Rules, text: &[u8], sizes: &[usize]) -> (Result<Vec<u8>, Why>, u32, u32) {
    let (mut out, mut findings, mut body, mut rest) = (Vec::new(), Findings::default(), Body::json(), text);
    for size in sizes.iter().cycle() {
        let (part, after) = rest.split_at((*size).min(rest.len()));
        body.push(rules, part, &mut out, &mut findings);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let result = body.finish(rules, &mut out, &mut findings);
    (result.map(|()| out), findings.total(), findings.unscanned())
}

/// JSON, mostly plain, and with one piece in some place that may make it anything.
fn mostly_json() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::sample::select(vec![
        "a",
        "price",
        "password",
        "Pass_Word",
        "user.token",
        "x-api-key-",
        "é",
        "",
        "-pin_",
        "first name",
        "bob@example.com",
        "a\\u0062",
        "phone",
        "n[pin]",
        "a_name_of_more_than_sixty_four_signs_of_which_just_the_end_is_kept_password",
        "a_name_of_more_than_sixty_four_signs_______________________________________________________________password",
    ]);
    let leaf = prop::sample::select(vec![
        "1",
        "-12.5e+3",
        "01",
        "4111111111111111",
        "true",
        "nul",
        "null",
        "\"\"",
        "\"plain text, and more of it\"",
        "\"tab\t\"",
        "\"\\n\"",
        "\"é 手机\"",
        "\"bob@example.com\"",
        "\"0f8fad5b-d9cb-469f-a165-70867728950e\"",
        "\"2024-03-01T12:34:56.789Z\"",
        "1700000000000",
        "\" {\\\"pin\\\":1}\"",
        "\"[1]\"",
        "\"a=1&pin=2\"",
        "\"//u:p@h/\"",
        "\"/x?token=1\"",
        "\"a/b\"",
        "4155552671",
        "\"123-45-6789\"",
        "\"https://shop.example.com/a/b\"",
    ]);
    let value = leaf.prop_map(str::to_owned).prop_recursive(5, 60, 5, move |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..5), prop::sample::select(vec![",", ", ", ",\n  "]))
                .prop_map(|(values, joint)| format!("[{}]", values.join(joint))),
            (prop::collection::vec((name.clone(), inner), 0..5), prop::sample::select(vec![":", ": "])).prop_map(
                |(pairs, joint)| {
                    let pairs: Vec<_> = pairs.iter().map(|(name, value)| format!("\"{name}\"{joint}{value}")).collect();
                    format!("{{{}}}", pairs.join(","))
                }
            ),
        ]
    });
    let broken = prop_oneof![
        6 => Just(None),
        1 => (any::<prop::sample::Index>(), any::<bool>(), prop::sample::select(b"{}[]:,\"\\ 1-ae\x01\xff\xc3.".to_vec())).prop_map(Some),
    ];
    (prop::collection::vec(value, 0..4), prop::sample::select(vec![0_usize, 1, 63, 4000, 4090]), broken).prop_map(
        |(values, before, broken)| {
            let mut text = format!("{}{}", " ".repeat(before), values.join("\n")).into_bytes();
            if let Some((place, replaces, byte)) = broken
                && !text.is_empty()
            {
                let place = place.index(text.len());
                if replaces {
                    text[place] = byte;
                } else {
                    text.insert(place, byte);
                }
            }
            text
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn json_that_comes_whole_is_as_json_byte_by_byte(
        text in mostly_json(),
        sizes in prop::collection::vec(1_usize..200, 1..4),
        everything: bool,
        kind in prop::sample::select(vec![Kind::Mask, Kind::Drop, Kind::Partial]),
    ) {
        let packs = everything.then(|| vec![Pack::Secrets, Pack::Pii, Pack::PiiCn, Pack::Financial]);
        let action = How { kind, ..How::default() };
        let rules = Rules::new(&Config { packs, action, ..Config::default() }).unwrap();
        let whole = parts(&rules, &text, &[usize::MAX]);
        prop_assert_eq!(&whole, &parts(&rules, &text, &[1]));
        prop_assert_eq!(&whole, &parts(&rules, &text, &sizes));
    }
}
