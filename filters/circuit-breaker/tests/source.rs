//! Rules from a source, over several workers: who asks and when, what is taken, and what nothing changes.
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

use std::collections::BTreeSet;
use std::time::Duration;

use circuit_breaker::CircuitBreaker;
use emulator::{Fault, Status};
use support::{BAD, Bed, Decision, End, GOOD, MS, Source, decision, end};

const OTHER: &str = r#"[{"id": "other", "resource": "elsewhere", "strategy": "error_count", "threshold": 5}]"#;

fn errors(threshold: u32) -> String {
    format!(
        r#"[{{"id": "r", "resource": "up", "strategy": "error_count", "threshold": {threshold}, "min_requests": 1,
        "interval": "60s", "retry_timeout": "600s"}}]"#
    )
}

fn from(more: &str) -> String {
    format!(r#"{{"source": {{"cluster": "rules", "path": "/r?a=b"{more}}}}}"#)
}

fn start(workers: usize, more: &str, body: &str) -> (Bed, Source) {
    let bed = Bed::new(workers, "{}");
    let source = Source::new(&bed, body);
    bed.push(&from(more));
    (bed, source)
}

fn version(bed: &Bed) -> u64 {
    bed.metric("meshfilter_circuit_rules_version", &[("plugin", "cb")])
}

fn age(bed: &Bed) -> u64 {
    bed.metric("meshfilter_circuit_rules_age_seconds", &[("plugin", "cb")])
}

fn updates(bed: &Bed, result: &str) -> u64 {
    bed.metric("meshfilter_circuit_updates_total", &[("plugin", "cb"), ("result", result)])
}

fn sends(bed: &Bed, worker: usize, how: End, times: usize) {
    (0..times).for_each(|time| assert_eq!(bed.send(worker, how), Decision::None, "{time}"));
}

fn pauses(source: &Source) -> Vec<u64> {
    let at: Vec<u64> = source.asked.borrow().iter().map(|asked| asked.at_ns).collect();
    at.windows(2).map(|pair| (pair[1] - pair[0]) / MS).collect()
}

#[test]
fn one_poller_over_all_workers_at_the_interval_less_up_to_a_tenth() {
    for (interval, ms) in [("100ms", 100), ("1s", 1000), ("10s", 10_000), ("1h", 3_600_000)] {
        let bed = Bed::new(4, "{}");
        let source = Source::new(&bed, "[]");
        let tick = (ms / 100).clamp(10, 10_000);
        bed.push(&format!(
            r#"{{"tick": "{tick}ms", "source": {{"cluster": "rules", "path": "/", "interval": "{interval}"}}}}"#
        ));
        bed.advance(100 * ms);
        let pauses = pauses(&source);
        // It is asked at ticks: at the next one after 0.9 to 1 times the interval.
        assert!((90..=112).contains(&source.times()), "{interval}: {}", source.times());
        let within = |pause: &u64| (ms * 9 / 10..=ms + tick).contains(pause);
        assert!(pauses.iter().all(within), "{interval}: {pauses:?}");
        if ms >= 1000 {
            let different: BTreeSet<u64> = pauses.iter().copied().collect();
            assert!(different.len() >= 5, "{interval}: no jitter: {different:?}");
        }
        let by: Vec<_> = source.asked.borrow().iter().map(|asked| asked.by).collect();
        assert!(by.windows(2).all(|pair| pair[0] == pair[1]), "{interval}: one of them asks for all");
    }
}

#[test]
fn two_proxies_that_start_together_do_not_ask_together_for_long() {
    let at = |seed: u64| {
        let bed = Bed::seeded(seed, 2, "{}");
        let source = Source::new(&bed, "[]");
        bed.push(&from(r#", "interval": "10s""#));
        bed.advance(200_000);
        pauses(&source)
    };
    assert_ne!(at(1), at(7));
}

#[test]
fn it_is_asked_as_the_configuration_says() {
    let (bed, source) = start(
        1,
        r#", "method": "POST", "body": "{\"key\": \"a\"}", "headers": {"X-Token": "t"}, "authority": "rules.example",
        "interval": "1s", "timeout": "250ms""#,
        "[]",
    );
    bed.advance(500);
    let asked = source.last();
    let header = |name: &str| asked.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    assert_eq!(header(":method").as_deref(), Some("POST"));
    assert_eq!(header(":path").as_deref(), Some("/r?a=b"));
    assert_eq!(header(":authority").as_deref(), Some("rules.example"));
    assert_eq!(header("x-token").as_deref(), Some("t"));
    assert_eq!(header("if-none-match"), None);
    assert_eq!(asked.timeout, Duration::from_millis(250));
}

#[test]
fn an_etag_is_said_and_what_is_unchanged_changes_nothing() {
    let (bed, source) = start(3, r#", "interval": "1s""#, &errors(5));
    source.change(|says| says.etag = Some("\"one\"".into()));
    bed.advance(2500);
    assert!(source.last().headers.contains(&("if-none-match".into(), "\"one\"".into())));
    assert_eq!((version(&bed), updates(&bed, "applied")), (1, 1));
    assert!(updates(&bed, "unchanged") >= 1);
    source.change(|says| (says.etag, says.body) = (Some("\"two\"".into()), errors(2)));
    bed.advance(2500);
    assert_eq!((version(&bed), updates(&bed, "applied")), (2, 2));
    assert!(source.last().headers.contains(&("if-none-match".into(), "\"two\"".into())));
    sends(&bed, 2, BAD, 2);
    assert_eq!(bed.send(0, GOOD), Decision::Rejected);
    // Without one the same document is the same document.
    source.change(|says| says.etag = None);
    bed.advance(11_000);
    assert_eq!((version(&bed), updates(&bed, "applied")), (2, 2));
    assert!(source.last().headers.iter().all(|(name, _)| name != "if-none-match"));
}

/// As nginx makes them of a file's time, in each of the pods that serve one ConfigMap.
#[test]
fn the_same_document_under_another_etag_is_unchanged_and_asked_for_by_that() {
    let (bed, source) = start(3, r#", "interval": "1s""#, &errors(5));
    source.change(|says| says.etag = Some("\"pod-0\"".into()));
    bed.advance(1500);
    assert_eq!((version(&bed), updates(&bed, "applied")), (1, 1));
    for turn in 1..=6 {
        let tag = format!("\"pod-{}\"", turn % 2);
        source.change(|says| says.etag = Some(tag.clone()));
        let before = updates(&bed, "unchanged");
        // The one that finds out, and one that is asked with it; of ten in a row one is asked without.
        bed.advance(3500);
        let asked = source.asked.borrow();
        let last: Vec<_> = asked.iter().rev().take(2).flat_map(|asked| asked.headers.clone()).collect();
        assert!(last.contains(&("if-none-match".into(), tag)), "{turn}: {last:?}");
        assert!(updates(&bed, "unchanged") >= before + 3, "{turn}");
        assert_eq!((version(&bed), updates(&bed, "applied")), (1, 1), "{turn}");
    }
    assert_eq!(bed.log("version ").len(), 1, "{:?}", bed.log("version "));
    assert!(age(&bed) <= 2);
    // A new document under an ETag that was there is new.
    source.change(|says| (says.etag, says.body) = (Some("\"pod-1\"".into()), errors(2)));
    bed.advance(11_000);
    assert_eq!((version(&bed), updates(&bed, "applied")), (2, 2));
    bed.is_well();
}

#[test]
fn what_is_not_understood_is_refused_whole_with_a_line_that_names_it() {
    let good = errors(3);
    let two = |second: &str| format!("[{}, {second}]", good.trim_matches(['[', ']']));
    for (body, named) in [
        (String::new(), "is empty, give [] for no rules"),
        (" \n".into(), "is empty"),
        ("<!DOCTYPE html><html><body>502</body></html>".into(), "expected"),
        ("{}".into(), "has no rules"),
        ("null".into(), "is null"),
        (good.strip_suffix("}]").unwrap().into(), "EOF"),
        (two("{}"), "[1]"),
        (two(r#"{"resource": "a", "strategy": "error_ratio", "threshold": 2}"#), "[1].threshold"),
        (two(r#"{"resource": "a", "strategy": "error_ratio", "treshold": 1}"#), "treshold"),
        (two(&good.trim_matches(['[', ']']).replace(": 3", ": 4")), "[1].id"),
        (
            format!("{{\"rules\": {}}}", two(r#"{"resource": "", "strategy": "error_count", "threshold": 2}"#)),
            "rules[1].resource",
        ),
    ] {
        let (bed, source) = start(4, r#", "interval": "1s""#, &good);
        bed.advance(1500);
        source.say(&body);
        bed.advance(10_000);
        let lines = bed.log("the rules stay as they are");
        assert!(lines.len() == 1 && lines[0].contains(named) && lines[0].contains("rules/r?a=b"), "{body}: {lines:?}");
        assert_eq!((version(&bed), updates(&bed, "applied")), (1, 1), "{body}");
        assert!(updates(&bed, "refused") >= 2, "{body}");
        sends(&bed, 0, BAD, 3);
        for worker in 0..4 {
            assert_eq!(bed.send(worker, GOOD), Decision::Rejected, "{body}");
        }
        // It is mended, and that is said.
        source.say(&errors(4));
        bed.advance(40_000);
        assert_eq!((version(&bed), bed.log("answers again").len()), (2, 1), "{body}");
    }
}

#[test]
fn no_rules_are_rules_too() {
    for none in ["[]", r#"{"rules": []}"#] {
        let (bed, source) = start(3, r#", "interval": "1s""#, &errors(2));
        bed.advance(1500);
        sends(&bed, 0, BAD, 2);
        assert_eq!(bed.send(2, GOOD), Decision::Rejected);
        source.say(none);
        bed.advance(1500);
        (0..3).for_each(|worker| sends(&bed, worker, BAD, 5));
        assert_eq!((version(&bed), bed.state("r")), (2, "closed"));
    }
}

#[test]
fn what_is_too_large_or_late_or_no_200_is_refused() {
    let (bed, source) = start(2, r#", "interval": "1s", "timeout": "300ms", "max_bytes": 1024"#, &errors(2));
    bed.advance(1500);
    type Change = fn(&mut support::Says);
    let changes: [(&str, &str, Change); 6] = [
        ("2000 bytes", "refused", |says| says.body = format!("[]{}", " ".repeat(1998))),
        ("says 504", "unreachable", |says| says.after_ms = 301),
        ("gives no answer", "unreachable", |says| says.breaks = true),
        ("says 404", "unreachable", |says| says.status = 404),
        ("says 204", "unreachable", |says| says.status = 204),
        ("says 301", "unreachable", |says| says.status = 301),
    ];
    for (what, result, change) in changes {
        let before = updates(&bed, result);
        source.say("[]");
        source.change(change);
        bed.advance(40_000);
        assert!(!bed.log(what).is_empty(), "{what}: {:?}", bed.log("stay as they are"));
        assert!(updates(&bed, result) > before, "{what}");
        assert_eq!(version(&bed), 1, "{what}");
        source.say(&errors(2));
        bed.advance(40_000);
    }
    // As large as it may be, and as late.
    source.say(&format!("[]{}", " ".repeat(1022)));
    source.change(|says| says.after_ms = 299);
    bed.advance(2500);
    assert_eq!(version(&bed), 2);
    // A cluster that is not there.
    let bed = Bed::new(2, &from(""));
    bed.advance(20_000);
    assert_eq!(bed.log("the proxy sends nothing to `rules`").len(), 1);
    bed.is_well();
}

#[test]
fn a_source_that_fails_is_asked_less_and_less_often_and_at_once_when_it_is_well() {
    let (bed, source) = start(3, r#", "interval": "1s", "timeout": "100ms""#, &errors(2));
    source.change(|says| says.status = 500);
    bed.advance(300_000);
    let slow = pauses(&source);
    // After the first failures the interval, then twice as long each time, up to sixteen times.
    for (n, pause) in slow.iter().enumerate() {
        let times = 1 << n.saturating_sub(1).min(4);
        assert!((900 * times..=1000 * times + 100).contains(pause), "{n}: {slow:?}");
    }
    assert!(slow.len() > 15, "{slow:?}");
    source.change(|says| says.status = 200);
    bed.advance(16_100);
    assert_eq!(version(&bed), 1);
    let before = source.times();
    bed.advance(10_000);
    assert!(source.times() >= before + 9, "the interval is what it was");
    // However long the interval, no pause is longer than an hour, or it.
    let bed = Bed::new(1, "{}");
    let source = Source::new(&bed, "");
    bed.push(r#"{"tick": "10s", "source": {"cluster": "rules", "path": "/", "interval": "30m"}}"#);
    bed.advance(86_400_000);
    assert!(pauses(&source).iter().all(|pause| *pause <= 3_610_000), "{:?}", pauses(&source));
    assert!(source.times() > 20);
}

#[test]
fn every_worker_follows_within_a_tick() {
    for worker in 0..4 {
        let (bed, source) = start(4, r#", "interval": "1s""#, &errors(3));
        bed.advance(1500);
        (0..4).for_each(|worker| sends(&bed, worker, GOOD, 1));
        sends(&bed, worker, BAD, 2);
        let applied = updates(&bed, "applied");
        source.say(&errors(100));
        while updates(&bed, "applied") == applied {
            bed.advance(1);
        }
        // The very next request.
        sends(&bed, worker, BAD, 10);
        source.say(&errors(13));
        while updates(&bed, "applied") == applied + 1 {
            bed.advance(1);
        }
        sends(&bed, worker, BAD, 1);
        assert_eq!(bed.send(worker, GOOD), Decision::Rejected, "{worker}");
        // Those without requests by their tick.
        bed.advance(100);
        source.say("[]");
        bed.advance(1200);
        assert_eq!(bed.state("r"), "closed");
    }
}

#[test]
fn who_asks_next_when_the_one_that_asked_is_gone() {
    let module = kit::testing::both::<CircuitBreaker>("dist/circuit-breaker.wasm")[1].1.clone();
    let bed = Bed::of(module, 3, "{}");
    let source = Source::new(&bed, &errors(3));
    bed.push(&from(r#", "interval": "2s", "timeout": "500ms""#));
    bed.advance(10_000);
    let asker = source.last().by;
    // Every VM dies at its next tick. Requests bring those of the workers back; the main thread has none.
    bed.proxy.set_fuel_limit(10);
    bed.advance(100);
    bed.proxy.set_fuel_limit(2_000_000_000);
    let before = source.times();
    (0..3).for_each(|worker| _ = bed.send(worker, GOOD));
    assert_eq!(bed.proxy.reloads().success, 3);
    bed.advance(2000 + 500 + 1000 + 300);
    assert!(source.times() > before, "the lease has passed on");
    assert_ne!(source.last().by, asker, "{:?}", source.last());
    source.say(&errors(1));
    bed.advance(2500);
    sends(&bed, 2, BAD, 1);
    assert_eq!(bed.send(0, GOOD), Decision::Rejected);
    assert_eq!(version(&bed), 2);
}

#[test]
fn a_new_vm_has_the_last_good_rules_at_once() {
    let (bed, source) = start(2, r#", "interval": "1s""#, &errors(2));
    bed.advance(1500);
    source.change(|says| says.breaks = true);
    // The same VMs with a new root, whose first tick is far away.
    bed.push(r#"{"source": {"cluster": "rules", "path": "/r?a=b", "interval": "1s"}, "rules": [], "tick": "10s"}"#);
    sends(&bed, 0, BAD, 2);
    assert_eq!(bed.send(1, GOOD), Decision::Rejected);
    assert_eq!(version(&bed), 1);
}

#[test]
fn a_configuration_that_comes_while_rules_of_a_source_hold_changes_nothing_of_them() {
    let (bed, source) = start(4, r#", "interval": "1s""#, &errors(2));
    bed.advance(1500);
    sends(&bed, 0, BAD, 1);
    let rules = errors(1000);
    bed.push(&format!(r#"{{"rules": {rules}, "properties": "all", "source": {{"cluster": "rules", "path": "/r?a=b", "interval": "1s"}}}}"#));
    let stream = bed.begin(0);
    assert_eq!(stream.filter_state("circuit.version").unwrap(), b"1");
    drop(end(&stream, BAD));
    assert_eq!((bed.send(1, GOOD), version(&bed)), (Decision::Rejected, 1));
    bed.advance(5000);
    assert_eq!((version(&bed), updates(&bed, "applied")), (1, 1), "the same document is no new version");
    // While a call is under way.
    source.say(&errors(7));
    source.change(|says| says.after_ms = 500);
    let asked = source.times();
    while source.times() == asked {
        bed.advance(10);
    }
    bed.push(&format!(
        r#"{{"rules": {rules}, "source": {{"cluster": "rules", "path": "/r?a=b", "interval": "1s", "timeout": "1s"}}}}"#
    ));
    bed.advance(10_000);
    assert_eq!(version(&bed), 2);
    bed.is_well();
}

#[test]
fn the_configurations_rules_hold_until_the_source_has_answered() {
    let bed = Bed::new(2, "{}");
    let source = Source::new(&bed, &errors(50));
    source.change(|says| says.breaks = true);
    bed.push(&format!(r#"{{"rules": {}, "source": {{"cluster": "rules", "interval": "1s"}}}}"#, errors(2)));
    bed.advance(5000);
    sends(&bed, 1, BAD, 2);
    assert_eq!((bed.send(0, GOOD), version(&bed)), (Decision::Rejected, 0));
    let open = bed.proxy.now_ns();
    source.change(|says| says.breaks = false);
    bed.advance(40_000);
    assert_eq!((bed.send(0, GOOD), version(&bed)), (Decision::Rejected, 1), "gently: it is open still");
    bed.advance((open + 600_000 * MS - bed.proxy.now_ns()) / MS);
    assert_eq!(bed.send(0, BAD), Decision::Probe);
}

#[test]
fn a_version_never_goes_back_whatever_the_source_is() {
    let (bed, source) = start(3, r#", "interval": "1s""#, &errors(2));
    let mut last = 0;
    let mut seen = |bed: &Bed, more: bool| {
        let now = version(bed);
        assert!(if more { now > last } else { now >= last }, "{now} after {last}");
        last = now;
    };
    for n in 0..4 {
        source.say(&errors(n + 3));
        bed.advance(2000);
        seen(&bed, true);
    }
    // Another one.
    let other = |path: &str| format!(r#"{{"source": {{"cluster": "rules", "path": "{path}", "interval": "1s"}}}}"#);
    bed.push(&other("/b"));
    source.say(&errors(40));
    bed.advance(2000);
    seen(&bed, true);
    bed.push(&other("/c"));
    source.say(OTHER);
    bed.advance(2000);
    seen(&bed, true);
    // And back to the first.
    bed.push(&from(r#", "interval": "1s""#));
    source.say(&errors(2));
    bed.advance(2000);
    seen(&bed, false);
    sends(&bed, 0, BAD, 2);
    assert_eq!(bed.send(2, GOOD), Decision::Rejected);
    source.say(&errors(1));
    bed.advance(2000);
    seen(&bed, true);
}

#[test]
fn a_source_that_is_down_for_a_minute_is_no_event_for_requests() {
    let (bed, source) = start(4, r#", "interval": "500ms""#, &errors(4));
    bed.advance(1000);
    sends(&bed, 0, BAD, 2);
    source.change(|says| says.breaks = true);
    let mut worst = 0;
    for second in 0..60 {
        bed.advance(1000);
        sends(&bed, second % 4, GOOD, 3);
        worst = worst.max(age(&bed));
    }
    assert!((57..=62).contains(&worst), "{worst}");
    assert_eq!((version(&bed), bed.log("the rules stay").len()), (1, 1));
    source.change(|says| says.breaks = false);
    bed.advance(8500);
    assert!(age(&bed) <= 2, "{}", age(&bed));
    assert_eq!((version(&bed), bed.log("answers again").len(), updates(&bed, "applied")), (1, 1, 1));
    assert!(updates(&bed, "unreachable") >= 5);
}

#[test]
fn a_document_in_consuls_or_etcds_wrapping() {
    // base64 of `[]`, and of an error count of 1.
    let rules = "W3siaWQiOiJyIiwicmVzb3VyY2UiOiJ1cCIsInN0cmF0ZWd5IjoiZXJyb3JfY291bnQiLCJ0aHJlc2hvbGQiOjEsIm1pbl9yZXF1ZXN0cyI6MX1d";
    for (form, body, broken) in [
        ("consul", format!(r#"[{{"Key": "a", "Value": "{rules}"}}]"#), "[]"),
        ("etcd", format!(r#"{{"header": {{}}, "kvs": [{{"key": "YQ==", "value": "{rules}"}}]}}"#), r#"{"header": {}}"#),
    ] {
        let (bed, source) = start(2, &format!(r#", "interval": "1s", "form": "{form}""#), &body);
        bed.advance(1500);
        assert_eq!(version(&bed), 1, "{form}: {:?}", bed.log("stay"));
        source.say(broken);
        bed.advance(3000);
        assert!(updates(&bed, "refused") >= 1, "{form}: a key without a value is no empty set of rules");
        sends(&bed, 0, BAD, 1);
        assert_eq!(bed.send(1, GOOD), Decision::Rejected, "{form}");
    }
}

#[test]
fn a_source_counts_for_its_own_plugin_alone() {
    let (bed, source) = start(2, r#", "interval": "1s""#, &errors(1));
    bed.push_to("other", &format!(r#"{{"rules": {}}}"#, errors(50).replace(r#""r""#, r#""mild""#)));
    bed.advance(1500);
    let other = bed.begin_with("other", 0, support::UP, &[]);
    drop(end(&other, BAD));
    assert_eq!((bed.state("r"), bed.state("mild")), ("closed", "closed"));
    sends(&bed, 0, BAD, 1);
    assert_eq!(bed.send(1, GOOD), Decision::Rejected);
    assert_eq!(decision(&bed.begin_with("other", 1, support::UP, &[])), Decision::None);
    drop(source);
}

#[test]
fn a_store_that_fails_while_rules_come_loses_none() {
    for call in ["proxy_set_shared_data", "proxy_get_shared_data", "proxy_http_call"] {
        for status in [Status::INTERNAL_FAILURE, Status::CAS_MISMATCH, Status::NOT_FOUND] {
            let (bed, source) = start(2, r#", "interval": "1s""#, &errors(30));
            bed.advance(1500);
            bed.proxy.fault(Fault::of(call).status(status));
            source.say(&errors(2));
            bed.advance(5000);
            (0..2).for_each(|worker| sends(&bed, worker, GOOD, 2));
            bed.proxy.clear_faults();
            bed.advance(40_000);
            assert!(version(&bed) >= 2, "{call}, {status}");
            sends(&bed, 0, BAD, 2);
            assert_eq!(bed.send(1, GOOD), Decision::Rejected, "{call}, {status}");
            bed.is_well();
        }
    }
}
