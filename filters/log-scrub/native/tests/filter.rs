//! The fuzz's requests through the whole filter, natively and as the built module, in an emulated proxy: whatever it
//! leaves for logs and prints.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use emulator::{Message, Plugin, Proxy};
use kit::testing::both;
use log_scrub::LogScrub;
use log_scrub_native::fuzz;
use log_scrub_native::leak::Readings;
use log_scrub_native::random::Random;
use log_scrub_native::request::{Case, Headers};
use serde_json::{Value, json};

/// As many configurations, and as many requests under each.
const CONFIGURATIONS: u64 = 150;
const REQUESTS: u64 = 10;

/// What the filter is to look at: all of the request.
fn outputs(cases: &[Case], together: bool) -> Value {
    let names = |of: fn(&Case) -> &Headers| {
        let mut names: Vec<&str> = cases.iter().flat_map(of).map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| !["content-length", "content-encoding", "host"].contains(name));
        names.iter().map(|name| json!(name)).collect::<Vec<_>>()
    };
    json!({
        "method": true, "authority": true, "request_body": true, "response_body": true, "line": true, "proxy_log": true,
        "headers_as": if together { "json" } else { "each" },
        "request_headers": names(|case| &case.request_headers),
        "response_headers": names(|case| &case.response_headers),
    })
}

fn message(first: Vec<(&str, &[u8])>, headers: &Headers, parts: &[Vec<u8>]) -> Message {
    let first = first.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
    let rest = headers.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone()));
    parts.iter().fold(Message::new(first.chain(rest)), |message, part| message.chunk(part))
}

#[test]
fn nothing_leaks_through_the_filter() {
    let mut covered = 0_u64;
    for number in 0..CONFIGURATIONS {
        let mut random = Random::new(11, number);
        let settings = fuzz::settings(&mut random);
        let cases: Vec<Case> = (0..REQUESTS).map(|_| fuzz::plan(&settings, &mut random).case()).collect();
        let mut configuration = settings.json.clone();
        configuration["outputs"] = outputs(&cases, number % 2 == 0);
        for (how, code) in both::<LogScrub>("dist/log-scrub.wasm") {
            let proxy = Proxy::new(1, 1);
            let plugin = Plugin::new("log-scrub", &code).configuration(configuration.to_string());
            if proxy.push("in", [plugin]).is_err() {
                // An action whose text is itself found.
                assert!(settings.rules().is_none(), "{how}: {configuration}");
                continue;
            }
            for case in &cases {
                let first =
                    vec![(":method", case.method.as_bytes()), (":path", &case.path_and_query), (":authority", b"a")];
                let request = message(first, &case.request_headers, &case.request_body);
                let response = message(vec![(":status", b"200")], &case.response_headers, &case.response_body);
                let done = proxy.exchange("in", 0, &request, &response);
                assert_eq!(done.upstream.body(), case.request_body.concat(), "{how}: the traffic was touched");
                let logged = proxy.log();
                let line = logged.last().map(|line| line.text.clone().into_bytes()).unwrap_or_default();
                let states = done.filter_state.iter().map(|(key, value)| (key.clone(), value.clone()));
                for (key, value) in states.chain([("the proxy's log".to_owned(), line)]) {
                    let readings = Readings::of(&value);
                    for canary in &case.canaries {
                        let shown = String::from_utf8_lossy(&value);
                        assert!(
                            !readings.show(canary),
                            "{how}, {number}: {canary:?} in {key}: {shown}\n{configuration}"
                        );
                        covered += 1;
                    }
                }
            }
            assert!(proxy.vms().iter().all(|vm| !vm.failed), "{how}");
        }
    }
    assert!(covered > 10_000, "only {covered} looks");
}
