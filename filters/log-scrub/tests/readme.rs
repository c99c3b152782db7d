//! What the README says, held to what the filter does.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use emulator::{Exchange, Message, Plugin, Proxy};
use kit::testing::native;
use log_scrub::LogScrub;

const README: &str = include_str!("../README.md");

/// The rows of the table with this head: their cells.
fn rows(head: &str) -> Vec<Vec<&'static str>> {
    let table = README.split(head).nth(1).unwrap_or_else(|| panic!("no table {head}"));
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<Vec<_>> = lines
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    assert!(!rows.is_empty(), "nothing in {head}");
    rows
}

/// A request under a configuration that the filter has to take.
fn request(configuration: &str, path: &str, address: &str) -> Exchange {
    let proxy = Proxy::new(1, 1);
    let plugin = Plugin::new("log-scrub", &native::<LogScrub>()).configuration(configuration);
    let plugin = plugin.environment("SCRUB_KEY", "0123456789abcdef0123456789abcdef");
    proxy.push("in", [plugin]).unwrap_or_else(|why| panic!("{configuration}: {why}: {:?}", proxy.log()));
    let request = Message::new([(":method", "GET"), (":path", path), ("x-user", address)]);
    proxy.exchange("in", 0, &request, &Message::new([(":status", "200")]))
}

fn state(done: &Exchange, key: &str) -> String {
    let value = done.filter_state.get(&format!("wasm.scrub.{key}"));
    String::from_utf8(value.unwrap_or_else(|| panic!("no {key}")).clone()).unwrap()
}

#[test]
fn the_example_is_logged_as_it_says() {
    let quoted = README.split("value: '").nth(1).unwrap().split('\'').next().unwrap();
    let sentence: Vec<&str> = README.split("is then logged as").collect();
    let last = |text: &'static str| text.rsplit('`').nth(1).unwrap();
    let (path, mut becomes) = (last(sentence[0]), sentence[1].split('`').skip(1).step_by(2));
    let done = request(quoted, path, "ann@example.com");
    assert_eq!(state(&done, "path"), becomes.next().unwrap());
    assert_eq!(state(&done, "query"), becomes.next().unwrap());
    assert_eq!(state(&done, "header.x-user"), "[email]");
}

#[test]
fn every_action_does_what_its_row_says() {
    for row in rows("| action | `4111 1111 1111 1111` becomes |") {
        let [action, becomes] = row[..] else { panic!("{row:?}") };
        let outputs = r#""outputs": {"request_headers": ["x-user"]}, "hmac_key_env": "SCRUB_KEY""#;
        if action.contains("network") {
            let network = format!(r#"{{{outputs}, "detectors": [{{"name": "ip", "action": {action}}}]}}"#);
            assert_eq!(state(&request(&network, "/", "203.0.113.7"), "header.x-user"), "203.0.113.0");
            assert_eq!(state(&request(&network, "/", "2001:db8:1:2:3:4:5:6"), "header.x-user"), "2001:db8:1:2::");
            continue;
        }
        let configuration = format!(r#"{{{outputs}, "action": {action}}}"#);
        let clean = state(&request(&configuration, "/", "4111 1111 1111 1111"), "header.x-user");
        if let Some((start, _)) = becomes.split_once("` and 16 hex digits") {
            let digits = clean.strip_prefix(start).and_then(|rest| rest.strip_suffix(']')).expect("a token");
            assert!(digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{clean}");
            let other = state(&request(&configuration, "/", "4111-1111-1111-1111"), "header.x-user");
            assert_eq!(clean, other, "however the number is written");
        } else {
            assert_eq!(clean, becomes, "{action}");
        }
    }
}

#[test]
fn every_example_of_a_configuration_is_taken() {
    for row in rows("| wanted | configuration |") {
        request(row[1], "/", "x");
    }
}
