//! Two filters in one module: one read of the headers, changes seen by the next, refusals that name their filter.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use duo::duo::Duo;
use kit::{
    Filter,
    testing::{Proxy, pairs},
};

const BOTH: &str = r#"{"trace_id": {"response": {"trace_id_header": "x-trace-id"}}, "stamp": {"text": "seen"}}"#;

fn get<'a>(pairs: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(n, _)| n == name).map(|(_, value)| str::from_utf8(value).unwrap())
}

fn start(configuration: &str) -> Option<Proxy<Duo>> {
    Proxy::start_beside("target/modules/duo.wasm", configuration)
}

#[test]
fn the_second_sees_what_the_first_changed_and_the_headers_are_read_once() {
    let mut proxy = start(BOTH).unwrap();
    let (up, down) = proxy.exchange(pairs(&[("x-request-id", "r")]), pairs(&[(":status", "200")]));
    assert_eq!(get(&up, "x-saw"), get(&up, "traceparent"));
    assert!(get(&up, "x-saw").unwrap().starts_with("00-"));
    assert_eq!(get(&down, "x-stamp"), Some("seen"));
    assert_eq!(get(&down, "x-trace-id"), Some(&get(&up, "x-saw").unwrap()[3..35]));
    assert_eq!(
        proxy.calls("proxy_get_header_map_pairs"),
        2,
        "one for the request, one for the log, none for the response"
    );
}

#[test]
fn one_that_is_left_out_does_nothing() {
    let mut proxy = start(r#"{"stamp": {"text": "seen"}}"#).unwrap();
    assert_eq!(get(&proxy.request(pairs(&[])), "x-saw"), Some("none"));
    let mut proxy = start("").unwrap();
    proxy.request(pairs(&[]));
    assert_eq!(proxy.calls("proxy_get_header_map_pairs") + proxy.calls("proxy_set_property"), 0);
}

#[test]
fn a_reply_of_one_ends_the_phase() {
    let mut proxy = start(BOTH).unwrap();
    let (_, down) = proxy.exchange(pairs(&[("x-refuse", "1")]), pairs(&[]));
    assert_eq!(proxy.reply().unwrap().status, 418);
    assert_eq!(get(&down, "x-stamp"), Some("seen"), "replies pass the filters on their way back, as in the proxy");
}

#[test]
fn a_refusal_names_the_filter_and_the_field() {
    let refusal = |text: &str| match kit::config::parse(text.as_bytes()).and_then(Duo::new) {
        Ok(_) => panic!("{text} is taken"),
        Err(refusal) => refusal.to_string(),
    };
    assert_eq!(refusal(r#"{"stamp": {"text": ""}}"#), "at `stamp.text`: is empty, give what the stamp is to say");
    assert_eq!(
        refusal(r#"{"trace_id": {"inject": ["w3c", "w4c"]}}"#),
        "at `trace_id.inject[1]`: is not known, give one of w3c, b3, b3_single, jaeger, datadog, xray"
    );
    assert!(refusal(r#"{"trace_id": {"inject": []}}"#).starts_with("at `trace_id.inject`: is empty"));
    assert_eq!(refusal(r#"{"traceid": {}}"#), "at `traceid`: is no field, give one of trace_id, stamp");
}

#[test]
fn the_largest_limit_of_series_of_those_that_are_there_counts() {
    let limit = |text: &str| kit::config::parse(text.as_bytes()).and_then(Duo::new).unwrap().max_series();
    assert_eq!(limit(r#"{"trace_id": {}, "stamp": {"text": "a", "series": 7}}"#), Some(kit::MAX_SERIES));
    assert_eq!(limit(r#"{"trace_id": {}, "stamp": {"text": "a", "series": 5000}}"#), Some(5000));
    assert_eq!(limit(r#"{"stamp": {"text": "a", "series": 7}}"#), Some(7));
    assert_eq!(limit("{}"), None);
}
