//! The cases of `filters/<filter>/cases.toml`: natively, as the built module, and in a real Envoy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use kit::Filter;
use kit::testing::Proxy;
use serde_json::{Map, Value, json};
use suite::Suite;
use test_harness::cases::{self, Case, Outcome, series};
use test_harness::{
    AccessLog, Envoy, Headers, HttpFilter, Listener, PATIENCE, Reply, Route, Upstream, eventually, module,
};

/// Both in an emulated proxy, which holds them to the same final state; what it is has to be as the case says.
fn emulated<F: Filter>(filter: &str, cases: &[Case]) -> Result<()> {
    for case in cases {
        let (proxy, came) = outcome::<F>(filter, case)?;
        case.check(&came, true)?;
        for (name, values) in &case.expect.values {
            let got = proxy.values(&series(name)).len();
            assert_eq!(got, usize::try_from(*values).unwrap(), "{}: {name}", case.name);
        }
        for (name, value) in &case.expect.metrics {
            assert_eq!(proxy.metric(&series(name)).unwrap_or_default(), *value, "{}: {name}", case.name);
        }
    }
    Ok(())
}

/// What comes of a case in an emulated proxy.
fn outcome<F: Filter>(filter: &str, case: &Case) -> Result<(Proxy<F>, Outcome)> {
    let proxy = Proxy::<F>::start_beside(&format!("dist/{filter}.wasm"), &case.config.to_string());
    let mut proxy = proxy.with_context(|| format!("{}: the configuration is refused", case.name))?;
    let (request, response) = (case.request(), case.response());
    proxy.each(|proxy| case.give(proxy));
    let done = proxy.steps(|stream| {
        stream.request(&request);
        stream.response(&response);
    });
    let fields = |headers: &Option<emulator::Pairs>| -> Headers { headers.iter().flatten().cloned().collect() };
    let downstream = fields(&done.downstream.headers);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let state = done.filter_state.iter().map(|(key, value)| (key.trim_start_matches("wasm.").to_owned(), text(value)));
    let came = Outcome {
        status: downstream.text(":status").and_then(|status| status.parse().ok()).unwrap_or(0),
        upstream: fields(&done.upstream.headers),
        downstream,
        state: state.collect(),
    };
    Ok((proxy, came))
}

/// The filters of the suite: name, and key in its configuration.
const SINGLE: [(&str, &str); 4] = [
    ("trace-id", "trace_id"),
    ("latency", "latency"),
    ("log-scrub", "log_scrub"),
    ("circuit-breaker", "circuit_breaker"),
];

/// The cases of a filter for the suite, with the other three on at their defaults.
///
/// A case says also what must not be there. What the other three add by themselves, to the same request and without the
/// filter, is left out of that, and nothing else.
fn with_the_others(filter: &str, key: &str) -> Result<Vec<Case>> {
    let others = SINGLE.iter().filter(|(_, other)| *other != key).map(|(_, other)| ((*other).to_owned(), json!({})));
    let others: Map<String, Value> = others.collect();
    let mut cases = cases::load(filter)?;
    for case in &mut cases {
        let with = |config: &Map<String, Value>| -> Result<Outcome> {
            Ok(outcome::<Suite>("suite", &Case { config: Value::Object(config.clone()), ..case.clone() })?.1)
        };
        let (none, three) = (with(&Map::new())?, with(&others)?);
        let added = |of: fn(&Outcome) -> &Headers, name: &String| of(&three).has(name) && !of(&none).has(name);
        case.expect.state_without.retain(|key| !three.state.contains_key(key));
        case.expect.upstream_without.retain(|name| !added(|came| &came.upstream, name));
        case.expect.downstream_without.retain(|name| !added(|came| &came.downstream, name));
        let mut config = others.clone();
        config.insert(key.to_owned(), std::mem::take(&mut case.config));
        case.config = Value::Object(config);
    }
    Ok(cases)
}

/// All in one Envoy, but for those that look at histograms: a value of the case before may come at a later flush.
async fn real(filter: &str, cases: &[Case], on: impl Fn(&Case) -> Result<HttpFilter>, state: &str) -> Result<()> {
    let (alone, together): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| !case.expect.values.is_empty());
    for case in alone {
        in_one_envoy(filter, &[case], &on, state).await?;
    }
    in_one_envoy(filter, &together, &on, state).await
}

/// One listener per case; its requests go to an upstream that answers as the case says.
async fn in_one_envoy(
    filter: &str,
    cases: &[&Case],
    on: &impl Fn(&Case) -> Result<HttpFilter>,
    state: &str,
) -> Result<()> {
    let reply = Arc::new(Mutex::new(Reply::new(200)));
    let next = Arc::clone(&reply);
    let upstream = Upstream::with(move |_| next.lock().unwrap().clone()).await?;
    let mut envoy = Envoy::builder().cluster("up", upstream.addr());
    for (at, case) in cases.iter().enumerate() {
        let keys = case.expect.state.keys().chain(&case.expect.state_without);
        let log: Vec<_> = keys.map(|key| (key.clone(), state.replace("KEY", key))).collect();
        let listener = Listener::http(&at.to_string()).generate_request_id(false).access_log(AccessLog::json(log));
        envoy = envoy.listener(listener.filter(on(case)?).route(Route::cluster("up")));
    }
    let envoy = envoy.start().await?;
    for (at, case) in cases.iter().enumerate() {
        *reply.lock().unwrap() = case.wire_reply();
        let before = envoy.stats("wasmcustom.").await?;
        let response = envoy.send(&at.to_string(), &case.wire_request()).await.with_context(|| case.name.clone())?;
        let received = upstream.take().pop().map(|request| request.headers.clone()).unwrap_or_default();
        let lines = envoy.wait_for_json(&at.to_string(), 1).await?;
        let logged = lines[0]
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        let came = Outcome {
            upstream: received,
            downstream: response.headers.clone(),
            status: response.status,
            state: logged.collect(),
        };
        case.check(&came, true).with_context(|| format!("{filter}, {came:#?}"))?;
        // A script has no metrics.
        let counts = state.contains("wasm.");
        // Those that get one first: when they have it, so would the others.
        let mut wanted: Vec<_> = case.expect.values.iter().filter(|_| counts).collect();
        wanted.sort_by_key(|(_, values)| std::cmp::Reverse(**values));
        for (name, wanted) in wanted {
            let name = series(name).replace(|c: char| !c.is_ascii_alphanumeric(), "_") + "_count";
            let what = format!("{filter}, {}: {name}", case.name);
            eventually(&what, PATIENCE, async || {
                let now = envoy.prometheus().await.map_err(|error| format!("{error:#}"))?.value(&name, &[]);
                let got = now.unwrap_or(0.0);
                if got.to_string() == wanted.to_string() { Ok(()) } else { Err(got.to_string()) }
            })
            .await?;
        }
        let after = envoy.stats("wasmcustom.").await?;
        for (name, value) in &case.expect.metrics {
            let name = format!("wasmcustom.{}", series(name));
            let of = |stats: &BTreeMap<String, u64>| stats.get(&name).copied().unwrap_or(0);
            assert_eq!(
                of(&after).saturating_sub(of(&before)),
                if counts { *value } else { 0 },
                "{}: {name}",
                case.name
            );
        }
    }
    Ok(())
}

#[test]
fn trace_id_in_an_emulated_proxy() -> Result<()> {
    emulated::<trace_id::TraceId>("trace-id", &cases::load("trace-id")?)
}

#[tokio::test]
async fn trace_id_in_a_real_envoy() -> Result<()> {
    let path = module("trace-id")?;
    let on = |case: &Case| Ok(HttpFilter::wasm("trace-id", &path).config(case.config.clone()));
    real("trace-id", &cases::load("trace-id")?, on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await
}

#[test]
fn latency_in_an_emulated_proxy() -> Result<()> {
    emulated::<latency::Latency>("latency", &cases::load("latency")?)
}

#[test]
fn log_scrub_in_an_emulated_proxy() -> Result<()> {
    emulated::<log_scrub::LogScrub>("log-scrub", &cases::load("log-scrub")?)
}

#[tokio::test]
async fn log_scrub_in_a_real_envoy() -> Result<()> {
    let path = module("log-scrub")?;
    let on = |case: &Case| Ok(HttpFilter::wasm("log-scrub", &path).config(case.config.clone()));
    real("log-scrub", &cases::load("log-scrub")?, on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await
}

#[test]
fn circuit_breaker_in_an_emulated_proxy() -> Result<()> {
    emulated::<circuit_breaker::CircuitBreaker>("circuit-breaker", &cases::load("circuit-breaker")?)
}

#[tokio::test]
async fn circuit_breaker_in_a_real_envoy() -> Result<()> {
    let path = module("circuit-breaker")?;
    let on = |case: &Case| Ok(HttpFilter::wasm("circuit-breaker", &path).config(case.config.clone()));
    real("circuit-breaker", &cases::load("circuit-breaker")?, on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await
}

#[tokio::test]
async fn latency_in_a_real_envoy() -> Result<()> {
    let path = module("latency")?;
    let on = |case: &Case| Ok(HttpFilter::wasm("latency", &path).config(case.config.clone()));
    real("latency", &cases::load("latency")?, on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await
}

#[test]
fn the_suite_in_an_emulated_proxy() -> Result<()> {
    emulated::<Suite>("suite", &cases::load("suite")?)
}

#[tokio::test]
async fn the_suite_in_a_real_envoy() -> Result<()> {
    let path = module("suite")?;
    let on = |case: &Case| Ok(HttpFilter::wasm("suite", &path).config(case.config.clone()));
    real("suite", &cases::load("suite")?, on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await
}

#[test]
fn the_suite_with_all_four_on_does_what_each_does_in_an_emulated_proxy() -> Result<()> {
    for (filter, key) in SINGLE {
        emulated::<Suite>("suite", &with_the_others(filter, key)?).context(filter)?;
    }
    Ok(())
}

#[tokio::test]
async fn the_suite_with_all_four_on_does_what_each_does_in_a_real_envoy() -> Result<()> {
    let path = module("suite")?;
    let on = |case: &Case| Ok(HttpFilter::wasm("suite", &path).config(case.config.clone()));
    for (filter, key) in SINGLE {
        real(filter, &with_the_others(filter, key)?, on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await?;
    }
    Ok(())
}

/// Else the cases would say less with the others on than without.
#[test]
fn nothing_is_left_out_of_the_cases_but_what_filters_share() -> Result<()> {
    let mut left_out = 0;
    for (filter, key) in SINGLE {
        for (case, with) in cases::load(filter)?.iter().zip(with_the_others(filter, key)?) {
            let (case, with) = (&case.expect, &with.expect);
            assert_eq!(case.upstream_without, with.upstream_without);
            assert_eq!(case.downstream_without, with.downstream_without);
            for key in case.state_without.iter().filter(|key| !with.state_without.contains(key)) {
                assert!(Suite::SHARED.contains(&key.as_str()), "{filter}: {key}");
                left_out += 1;
            }
        }
    }
    assert!(left_out > 0, "or the rule is not needed");
    Ok(())
}

/// Else a run with `TEST_AS` would be one without.
#[tokio::test]
async fn the_module_that_is_to_stand_in_for_a_filters_own_does() -> Result<()> {
    let stand_in = std::env::var("TEST_AS").unwrap_or_default();
    let said = match &*stand_in {
        "" => "log-scrub: configuration refused at `nonsense`: is no field".to_owned(),
        name => format!("{name}: configuration refused at `log_scrub.nonsense`: is no field"),
    };
    let wrong = json!({ "nonsense": 1 });
    for filter in [
        HttpFilter::wasm("log-scrub", module("log-scrub")?).config(wrong.clone()),
        HttpFilter::wasm("log-scrub", module("log-scrub")?).config_struct(wrong.clone()),
    ] {
        let listener = Listener::http("in").filter(filter);
        let why = Envoy::builder().listener(listener).concurrency(1).validate().await?.rejected()?;
        assert!(why.contains(&said), "{said} in {why}");
    }
    let [_, (_, code)] = kit::testing::both::<log_scrub::LogScrub>("dist/log-scrub.wasm");
    let proxy = emulator::Proxy::new(1, 1);
    let plugin = emulator::Plugin::new("log-scrub", &code).configuration(wrong.to_string());
    assert!(proxy.push("in", [plugin]).is_err());
    assert!(proxy.log().iter().any(|line| line.text.starts_with(&said)), "{said} in {:?}", proxy.log());
    Ok(())
}

/// The cases that say `script`, with the filter of the proxy-wasm crate. Its speed beside the filter's would mean nothing
/// otherwise.
async fn plain(filter: &str, at_least: usize) -> Result<()> {
    let path = module(&format!("{filter}-sdk"))?;
    let cases: Vec<Case> = cases::load(filter)?.into_iter().filter(|case| case.script).collect();
    assert!(cases.len() >= at_least, "{filter}");
    let on = |case: &Case| Ok(HttpFilter::wasm("sdk", &path).config(case.config.clone()));
    real("sdk", &cases, on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await
}

#[tokio::test]
async fn the_filter_of_the_proxy_wasm_crate_that_trace_id_is_measured_against_does_the_same() -> Result<()> {
    plain("trace-id", 4).await
}

#[tokio::test]
async fn the_filter_of_the_proxy_wasm_crate_that_latency_is_measured_against_does_the_same() -> Result<()> {
    plain("latency", 4).await
}

#[tokio::test]
async fn the_filter_of_the_proxy_wasm_crate_that_log_scrub_is_measured_against_leaves_what_is_clean() -> Result<()> {
    plain("log-scrub", 1).await
}

/// What becomes of one that opens is in `tests/circuit_breaker.rs`.
#[tokio::test]
async fn the_filter_of_the_proxy_wasm_crate_that_circuit_breaker_is_measured_against_lets_pass() -> Result<()> {
    plain("circuit-breaker", 1).await
}

/// What such filters look for, both cover, wherever it stands; and what only looks like it, both leave.
#[tokio::test]
async fn the_filter_of_the_proxy_wasm_crate_that_log_scrub_is_measured_against_covers_the_same() -> Result<()> {
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U";
    let mut case = cases::named("log-scrub", "path, query, referer and user agent by default")?;
    case.request.path = Some("/users/ann@example.com/cards/4111111111111111?ssn=123-45-6789&page=2".into());
    case.request.headers = vec![
        ("referer".into(), "https://shop.example/find?pay=4111-1111-1111-1111&order=4111-1111-1111-1112".into()),
        ("user-agent".into(), format!("app/1.2 ({jwt})")),
    ];
    let state = [
        ("path", "/users/[email]/cards/[card]"),
        ("query", "ssn=[us_ssn]&page=2"),
        ("referer", "https://shop.example/find?pay=[card]&order=4111-1111-1111-1112"),
        ("user_agent", "app/1.2 ([jwt])"),
    ];
    case.expect.state = state.map(|(place, clean)| (format!("scrub.{place}"), clean.to_owned())).into();
    let found = [("email", "path"), ("card", "path"), ("us_ssn", "query"), ("card", "referer"), ("jwt", "user_agent")];
    let series = |(rule, place)| format!("meshfilter_scrub_findings_total{{rule={rule},place={place}}}");
    case.expect.metrics = found.map(|at| (series(at), 1)).into();
    for name in ["log-scrub", "log-scrub-sdk"] {
        let path = module(name)?;
        let on = |_: &Case| Ok(HttpFilter::wasm(name, &path));
        real(name, &[case.clone()], on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await?;
    }
    Ok(())
}

/// One that broke on them would be no filter to compare with.
#[tokio::test]
async fn the_filters_of_the_proxy_wasm_crate_that_are_measured_against_stand_bytes_that_are_no_text() -> Result<()> {
    let mut case = cases::named("circuit-breaker", "lets pass what is closed")?;
    let names = ["traceparent", "tracestate", "x-request-id", "referer", "user-agent", "content-type"];
    case.request.headers = names.map(|name| (name.to_owned(), "\u{ff}\u{fe} ann@example.com".to_owned())).into();
    case.expect.metrics.clear();
    for name in ["trace-id-sdk", "latency-sdk", "log-scrub-sdk", "circuit-breaker-sdk"] {
        let path = module(name)?;
        let on = |case: &Case| Ok(HttpFilter::wasm(name, &path).config(case.config.clone()));
        real(name, &[case.clone()], on, "%FILTER_STATE(wasm.KEY:PLAIN)%").await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_script_beside_latency_knows_the_time_to_the_first_byte() -> Result<()> {
    let script = std::fs::read_to_string(test_harness::root().join("test-harness/bench/latency.lua"))?;
    let mut case = cases::named("latency", "measures a request and its parts")?;
    case.expect.state.retain(|key, _| key == "latency.ttfb_us");
    assert_eq!(case.expect.state.len(), 1);
    real("script", &[case], |_| Ok(HttpFilter::lua("latency", &script)), "%DYNAMIC_METADATA(latency:KEY)%").await
}

/// The same.
#[tokio::test]
async fn the_script_that_trace_id_is_measured_against_does_the_same() -> Result<()> {
    let script = std::fs::read_to_string(test_harness::root().join("test-harness/bench/trace_id.lua"))?;
    let mut cases: Vec<Case> = cases::load("trace-id")?.into_iter().filter(|case| case.script).collect();
    assert!(cases.len() >= 4);
    // A script gets no nanoseconds: it writes `start_time_us`.
    cases.iter_mut().for_each(|case| drop(case.expect.state.remove("start_time_ns")));
    real("script", &cases, |_| Ok(HttpFilter::lua("trace-id", &script)), "%DYNAMIC_METADATA(trace:KEY)%").await
}

/// The same, of what such scripts look for.
#[tokio::test]
async fn the_script_beside_log_scrub_covers_an_address() -> Result<()> {
    let script = std::fs::read_to_string(test_harness::root().join("test-harness/bench/patterns.lua"))?;
    let mut case = cases::named("log-scrub", "path, query, referer and user agent by default")?;
    let clean = case.expect.state.remove("scrub.user_agent");
    case.expect.state = clean.map(|clean| ("user-agent".to_owned(), clean)).into_iter().collect();
    assert_eq!(case.expect.state.len(), 1);
    (case.expect.state_without, case.expect.metrics) = Default::default();
    real("script", &[case], |_| Ok(HttpFilter::lua("scrub", &script)), "%DYNAMIC_METADATA(scrub:KEY)%").await
}
