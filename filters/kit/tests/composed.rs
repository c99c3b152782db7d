//! Several filters in one: in which order each phase meets them.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that is wrong shall stop"
)]

use emulator::Message;
use kit::testing::Proxy;
use kit::{Body, Context, Filter, Flow, Headers, Pass, Phases, Refusal};

/// Says by its number what it is called for.
pub struct Says<const NUMBER: u8>;

impl<const NUMBER: u8> Filter for Says<NUMBER> {
    const NAME: &'static str = "says";
    const PHASES: Phases = Phases::REQUEST_HEADERS
        .and(Phases::REQUEST_BODY)
        .and(Phases::REQUEST_TRAILERS)
        .and(Phases::RESPONSE_HEADERS)
        .and(Phases::RESPONSE_BODY)
        .and(Phases::RESPONSE_TRAILERS)
        .and(Phases::LOG);
    const SHARED: &'static [&'static str] = if NUMBER == 3 { &["b", "c"] } else { &["a", "b"] };
    type Config = std::collections::BTreeMap<String, String>;
    type State = ();
    type Stream = ();

    fn new(_: Self::Config) -> Result<Self, Refusal> {
        Ok(Self)
    }
    fn request_headers(&self, _: &mut Context<'_, Self>, _: &mut Headers<'_>) -> Flow {
        kit::log::info!("request headers {NUMBER}");
        Flow::Continue
    }
    fn request_body(&self, _: &mut Context<'_, Self>, _: &Body<'_>) -> Pass {
        kit::log::info!("request body {NUMBER}");
        Pass::On
    }
    fn request_trailers(&self, _: &mut Context<'_, Self>, _: &Body<'_>) {
        kit::log::info!("request trailers {NUMBER}");
    }
    fn response_headers(&self, _: &mut Context<'_, Self>, _: &mut Headers<'_>) -> Flow {
        kit::log::info!("response headers {NUMBER}");
        Flow::Continue
    }
    fn response_body(&self, _: &mut Context<'_, Self>, _: &Body<'_>) -> Pass {
        kit::log::info!("response body {NUMBER}");
        Pass::On
    }
    fn response_trailers(&self, _: &mut Context<'_, Self>, _: &Body<'_>) {
        kit::log::info!("response trailers {NUMBER}");
    }
    fn log(&self, _: &mut Context<'_, Self>, _: &Headers<'_>, _: &Headers<'_>) {
        kit::log::info!("log {NUMBER}");
    }
}

kit::compose! {
    pub mod trio: Trio = "trio" {
        one: Says<1>,
        two: Says<2>,
        three: Says<3>,
    }
}

#[test]
fn requests_and_logs_pass_in_the_order_given_and_responses_in_the_reverse() {
    let proxy = Proxy::<trio::Trio>::start(r#"{"one": {}, "two": {}, "three": {}}"#).unwrap();
    let request = Message::new([(":method", "POST")]).chunk("a").trailers([("t", "1")]);
    let response = Message::new([(":status", "200")]).chunk("a").trailers([("t", "1")]);
    let said = proxy.each(|proxy| {
        drop(proxy.exchange("test", 0, &request, &response));
        proxy.log().into_iter().map(|line| line.text).collect::<Vec<_>>()
    });
    let order = |phase: &str| -> Vec<char> {
        said.iter().filter(|line| line.starts_with(phase)).filter_map(|line| line.chars().last()).collect()
    };
    for (phase, wanted) in [
        ("request headers", ['1', '2', '3']),
        ("request body", ['1', '2', '3']),
        ("request trailers", ['1', '2', '3']),
        ("response headers", ['3', '2', '1']),
        ("response body", ['3', '2', '1']),
        ("response trailers", ['3', '2', '1']),
        ("log", ['1', '2', '3']),
    ] {
        assert_eq!(order(phase), wanted, "{phase}: {said:?}");
    }
}

#[test]
fn what_several_share_is_named_once() {
    assert_eq!(trio::Trio::SHARED, ["a", "b", "c"]);
}
