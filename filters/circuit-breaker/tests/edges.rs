//! What is rare: clocks that are put back, proxies that keep no counters, configurations beside each other, two names of one thing.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

mod support;

use circuit_breaker::CircuitBreaker;
use emulator::{Fault, Status};
use support::{BAD, Bed, Decision, GOOD, MS, Source, UP, end, passes};

fn rule(threshold: u32, more: &str) -> String {
    format!(
        r#"{{"id": "r", "resource": "up", "strategy": "error_count", "threshold": {threshold}, "min_requests": 1,
        "interval": "10s", "retry_timeout": "5s"{more}}}"#
    )
}

fn with(rule: &str) -> String {
    format!(r#"{{"rules": [{rule}]}}"#)
}

/// Requests with an error are never counted again, for as long as the clock was put back.
#[test]
fn a_breaker_that_closed_before_the_clock_was_put_back_opens_again() {
    let bed = Bed::new(1, &with(&rule(1, "")));
    let _ = bed.send(0, BAD);
    bed.advance(5000);
    assert_eq!((bed.send(0, GOOD), bed.state("r")), (Decision::Probe, "closed"));
    let fault = Fault::of("proxy_get_current_time_nanoseconds").status(Status::OK);
    bed.proxy.fault(fault.bytes((bed.proxy.now_ns() - 3_600_000 * MS).to_le_bytes()));
    for _ in 0..100 {
        let _ = bed.send(0, BAD);
    }
    assert_eq!(bed.state("r"), "open");
}

/// `stats_matcher` may leave out the counter by which workers tell each other that something changed: it stays at 0.
#[test]
fn workers_follow_where_the_proxy_keeps_no_counters() {
    let bed = Bed::new(2, "{}");
    let source = Source::new(&bed, &format!("[{}]", rule(1, "")));
    bed.proxy.fault(Fault::of("proxy_get_metric").status(Status::OK).bytes(0_u64.to_le_bytes()));
    bed.push(r#"{"source": {"cluster": "rules", "path": "/r", "interval": "1s", "timeout": "500ms"}}"#);
    bed.advance(2000);
    let _ = (bed.send(0, GOOD), bed.send(1, GOOD));
    source.say(&format!("[{}]", rule(1, r#", "mode": "forced_open""#)));
    bed.advance(10_000);
    assert_eq!([0, 1].map(|worker| bed.send(worker, GOOD)), [Decision::Rejected; 2]);
}

/// The older configuration, which one request keeps, has the later place in the list.
#[test]
fn rules_from_a_source_come_under_the_newest_configuration() {
    let bed = Bed::new(1, "{}");
    let source = Source::new(&bed, &format!("[{}]", rule(5, "")));
    let from = |mode: &str| {
        format!(
            r#"{{"mode": "{mode}", "source": {{"cluster": "rules", "path": "/r", "interval": "1s", "timeout": "500ms"}}}}"#
        )
    };
    bed.push(&from("dry_run"));
    bed.advance(1200);
    let long = bed.begin(0);
    bed.push(&from("enforce"));
    bed.advance(1200);
    let _ = bed.send(0, GOOD);
    source.say(&format!("[{}]", rule(1, "")));
    bed.advance(1200);
    let _ = bed.send(0, BAD);
    assert_eq!((bed.state("r"), bed.send(0, GOOD)), ("open", Decision::Rejected));
    let _ = end(&long, GOOD);
}

/// Headers choose the namespace of a Nacos or a Consul, and so other rules.
#[test]
fn sources_that_differ_in_their_headers_are_two() {
    let bed = Bed::new(1, "{}");
    let source = Source::new(&bed, &format!("[{}]", rule(5, "")));
    let from = |space: &str| {
        format!(
            r#"{{"source": {{"cluster": "rules", "path": "/r", "interval": "1s", "timeout": "500ms",
            "headers": {{"x-consul-namespace": "{space}"}}}}}}"#
        )
    };
    bed.push(&from("a"));
    bed.push_to("other", &from("b"));
    bed.advance(3000);
    let mut asked: Vec<_> = source.asked.borrow().iter().flat_map(|asked| asked.headers.clone()).collect();
    asked.retain(|(name, _)| name == "x-consul-namespace");
    asked.sort();
    asked.dedup();
    assert_eq!(asked.len(), 2, "{asked:?}");
}

/// More than four names of one request: the rest is not looked at, which nobody is told.
#[test]
fn all_of_a_requests_resources_count() {
    let bed = Bed::new(
        1,
        &format!(
            r#"{{"resources": ["host", "method", "header:a", "header:b", "cluster"], "rules": [{},
            {{"resource": "*", "strategy": "error_ratio", "threshold": 1, "min_requests": 1000}}]}}"#,
            rule(1, "")
        ),
    );
    let headers = [("a", "1"), ("b", "1")];
    let _ = end(&bed.begin_with("in", 0, UP, &headers), BAD);
    assert!(!passes(&bed.begin_with("in", 0, UP, &headers)), "the rule for the cluster has its one error");
}

/// A client chooses the route while no rule has a fallback: before the source has answered, or after a rule was taken out.
#[test]
fn a_forged_fallback_header_is_taken_out_whatever_the_rules_say_just_now() {
    let bed = Bed::new(1, &with(&rule(1, "")));
    let stream = bed.begin_with("in", 0, UP, &[("x-circuit-fallback", "cache")]);
    let sent = stream.upstream().headers.unwrap_or_default();
    assert!(sent.iter().all(|(name, _)| name != b"x-circuit-fallback"));
}

/// An hour without rules, since the proxy's cluster was not there yet at the first question.
#[test]
fn the_first_question_that_fails_is_asked_again_soon() {
    let bed = Bed::new(1, "{}");
    let source = Source::new(&bed, &format!("[{}]", rule(1, "")));
    source.change(|says| says.breaks = true);
    bed.push(r#"{"source": {"cluster": "rules", "path": "/r", "interval": "1h"}}"#);
    bed.advance(5000);
    source.change(|says| says.breaks = false);
    bed.advance(120_000);
    assert!(source.times() >= 2, "two minutes later it was asked {} times", source.times());
}

/// Who is gone leaves what was open on the board: each request that is a probe reads and writes all of it.
#[test]
fn what_no_rule_names_any_more_leaves_the_board() {
    let of = |id: &str| {
        let rule = rule(1, "").replace(r#""id": "r""#, &format!(r#""id": "{id}""#));
        format!(r#"{{"tick": "10s", "rules": [{rule}]}}"#)
    };
    let bed = Bed::new(1, &of("r"));
    let size = || {
        let all = bed.proxy.all_shared_data("");
        all.iter().find(|(key, _)| key.ends_with(b"/board")).map_or(0, |(_, board)| board.len())
    };
    for version in 0..20 {
        bed.push(&of(&format!("r{version}")));
        let _ = bed.send(0, BAD);
        bed.advance(3_600_000 * 24);
    }
    assert!(size() < 200, "{} bytes", size());
}

/// Of two plugins in one VM the first has used up the series on one worker, before the second one comes.
#[test]
fn workers_tell_each_other_whatever_became_of_the_series() {
    let kit_code = kit::testing::native::<CircuitBreaker>();
    let bed = Bed::of(
        std::rc::Rc::clone(&kit_code),
        2,
        r#"{"max_series": 10, "resources": ["header:x-t"], "rules": [{"resource": "*", "strategy": "error_ratio", "threshold": 1}]}"#,
    );
    for tenant in 0..20 {
        let _ = end(&bed.begin_with("in", 0, UP, &[("x-t", &tenant.to_string())]), GOOD);
    }
    let source = Source::new(&bed, &format!("[{}]", rule(1, "")));
    let plugin = emulator::Plugin::new("second", &kit_code).configuration(
        r#"{"max_series": 10, "source": {"cluster": "rules", "path": "/r", "interval": "1s", "timeout": "500ms"}}"#,
    );
    bed.proxy.push("other", [plugin]).unwrap();
    bed.advance(2000);
    let send = |worker: usize| {
        let stream = bed.begin_with("other", worker, UP, &[]);
        let passed = passes(&stream);
        let _ = end(&stream, GOOD);
        passed
    };
    assert_eq!([0, 1].map(send), [true; 2]);
    source.say(&format!("[{}]", rule(1, r#", "mode": "forced_open""#)));
    bed.advance(10_000);
    assert_eq!([0, 1].map(send), [false; 2]);
}

/// Both rules meet the same cluster, and their ids are the same.
fn two_that_are_one() -> Bed {
    let of = |resource: &str| rule(4, "").replace(r#""resource": "up""#, &format!(r#""resource": "{resource}""#));
    Bed::new(1, &format!(r#"{{"rules": [{}, {}]}}"#, of("pay"), of("pay.shop")))
}

const PAY: &str = "outbound|80||pay.shop.svc.cluster.local";

#[test]
fn no_request_counts_twice() {
    let bed = two_that_are_one();
    assert_eq!([BAD; 4].map(|how| bed.send_to(0, PAY, how)), [Decision::None; 4], "the fourth is the last");
}

#[test]
fn what_two_rules_of_one_id_opened_is_probed() {
    let bed = two_that_are_one();
    for _ in 0..5 {
        let _ = bed.send_to(0, PAY, BAD);
    }
    assert_eq!(bed.send_to(0, PAY, GOOD), Decision::Rejected);
    bed.advance(3_600_000);
    assert_eq!(bed.send_to(0, PAY, GOOD), Decision::Probe, "an hour later");
}

/// Whoever never sends the rest of a request is given up with 408, an upstream that does not answer with 504.
#[test]
fn a_client_that_does_not_end_its_request_says_nothing() {
    for (status, expected) in [("408", "closed"), ("504", "open")] {
        let bed = Bed::new(1, &with(&rule(1, "")));
        let stream = bed.begin(0);
        stream.set_property(&["response", "flags"], 1_i64 << 16);
        stream.set_property(&["response", "code_details"], "stream_idle_timeout");
        stream.response_headers(emulator::Message::new([(":status", status)]).headers, true);
        drop(stream.finish());
        assert_eq!(bed.state("r"), expected, "{status}");
    }
}

/// Each tick looks at the board; what the host does not give for a while is as it was.
#[test]
fn what_cannot_be_read_for_a_while_stays_open() {
    let bed = Bed::new(2, &with(&rule(1, "")));
    let _ = bed.send(0, BAD);
    assert_eq!(bed.send(1, GOOD), Decision::Rejected);
    bed.proxy.fault(Fault::of("proxy_get_shared_data").status(Status::INTERNAL_FAILURE));
    bed.advance(1000);
    assert_eq!([0, 1].map(|worker| bed.send(worker, GOOD)), [Decision::Rejected; 2]);
}
