//! What Sentinel and resilience4j publish as tests of their breakers, as tables: the same calls, and the result that they
//! document. Where the filter does something else on purpose, the row says so, and what it does.
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

use emulator::HttpStream;
use support::{BAD, Bed, Decision, End, GOOD, decision, end};

/// What happens next, and what comes of it.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Calls that pass, one after the other: how many, how long each takes in ms, and how it ends.
    Pass(usize, u64, End),
    /// Calls that are refused.
    Refuse(usize),
    /// Calls that begin at once and end one by one, the first to end first.
    Together(&'static [(u64, End)]),
    /// Calls that pass and do not end.
    Hold(usize),
    /// One of those ends, the last that began.
    Release(End),
    Wait(u64),
    /// The states of the rules, in their order.
    Are(&'static [&'static str]),
}

use Step::{Are, Hold, Pass, Refuse, Release, Together, Wait};

struct Row {
    /// Where it is published.
    from: &'static str,
    /// Where the filter does something else, what and why.
    differs: Option<&'static str>,
    rules: &'static str,
    steps: &'static [Step],
}

/// What rules are called that have no name.
const IDS: [&str; 4] = ["up/slow_ratio", "up/slow_ratio#2", "up/error_ratio", "up/error_count"];

fn run(row: &Row) {
    let Row { from, rules, differs, .. } = row;
    let bed = Bed::new(1, &format!(r#"{{"properties": "all", "rules": {rules}}}"#));
    bed.align(100_000);
    let mut held: Vec<HttpStream> = Vec::new();
    let passes = |stream: &HttpStream| decision(stream) != Decision::Rejected;
    for (at, step) in row.steps.iter().enumerate() {
        let where_ = format!("{from}, step {at}, {step:?} ({differs:?}): {:?}", bed.log("rule"));
        match *step {
            Pass(times, ms, how) => {
                for time in 0..times {
                    assert_ne!(bed.send_for(0, ms, how), Decision::Rejected, "{where_}: call {time}");
                }
            }
            Refuse(times) => (0..times).for_each(|_| assert_eq!(bed.send(0, GOOD), Decision::Rejected, "{where_}")),
            Together(calls) => {
                let streams: Vec<_> = calls.iter().map(|_| bed.begin(0)).collect();
                let mut gone = 0;
                for (stream, (ms, how)) in streams.iter().zip(calls) {
                    assert!(passes(stream), "{where_}");
                    bed.advance(ms - gone);
                    gone = *ms;
                    drop(end(stream, *how));
                }
            }
            Hold(times) => {
                for _ in 0..times {
                    held.push(bed.begin(0));
                    assert!(passes(held.last().unwrap()), "{where_}");
                }
            }
            Release(how) => drop(end(&held.pop().unwrap(), how)),
            Wait(ms) => bed.advance(ms),
            Are(states) => {
                let known = |id: &&str| bed.proxy.metrics().keys().any(|name| name.contains(&format!("=.={id};.;")));
                let found: Vec<_> = IDS.into_iter().filter(known).map(|id| bed.state(id)).collect();
                assert_eq!(found, states, "{where_}");
            }
        }
    }
    bed.is_well();
}

/// Sentinel for Go, `core/circuitbreaker/circuit_breaker_test.go`. Its tests put a breaker in a state; here traffic does.
const GO: &[Row] = &[
    Row {
        from: "TestSlowRtCircuitBreaker_TryPass and TestSlowRt_OnRequestComplete",
        differs: None,
        rules: r#"[{"resource": "up", "strategy": 0, "retryTimeoutMs": 3000, "minRequestAmount": 10, "statIntervalMs": 10000,
            "maxAllowedRtMs": 50, "threshold": 0.5}]"#,
        steps: &[
            Pass(1, 0, GOOD), // TryPass_Closed
            Pass(1, 51, GOOD),
            Are(&["closed"]), // Less_Than_MinRequestAmount
            Pass(8, 51, GOOD),
            Are(&["open"]),
            Refuse(3),
            Wait(3000),
            Hold(1), // TryPass_Probe
            Are(&["half_open"]),
            Wait(60),
            Release(GOOD), // Probe_Failed: it was slow
            Are(&["open"]),
            Wait(3000),
            Pass(1, 10, GOOD), // Probe_Succeed
            Are(&["closed"]),
        ],
    },
    Row {
        from: "TestErrorRatioCircuitBreaker_TryPass and TestErrorRatio_OnRequestComplete",
        differs: None,
        rules: r#"[{"resource": "up", "strategy": 1, "retryTimeoutMs": 3000, "minRequestAmount": 10, "statIntervalMs": 10000,
            "threshold": 0.5}]"#,
        steps: &[
            Pass(5, 1, GOOD),
            Pass(4, 1, BAD),
            Are(&["closed"]),
            Pass(1, 1, BAD),
            Are(&["open"]),
            Refuse(1),
            Wait(3000),
            Hold(1),
            Are(&["half_open"]),
            Wait(1),
            Release(GOOD),
            Are(&["closed"]),
            Pass(10, 1, BAD),
            Wait(3000),
            Pass(1, 0, BAD),
            Are(&["open"]),
        ],
    },
    Row {
        from: "TestErrorCountCircuitBreaker_TryPass and TestErrorCount_OnRequestComplete",
        differs: None,
        rules: r#"[{"resource": "up", "strategy": 2, "retryTimeoutMs": 3000, "minRequestAmount": 10, "statIntervalMs": 10000,
            "threshold": 1}]"#,
        steps: &[
            Pass(9, 1, BAD),
            Are(&["closed"]), // Less_Than_MinRequestAmount
            Pass(1, 1, BAD),
            Are(&["open"]),
            Wait(3000),
            Hold(1),
            Are(&["half_open"]),
            Release(BAD),
            Are(&["open"]),
            Wait(3000),
            Pass(1, 0, GOOD),
            Are(&["closed"]),
        ],
    },
    Row {
        from: "TestFromHalfOpenToOpen: the next retry time is set anew",
        differs: None,
        rules: r#"[{"resource": "up", "strategy": 2, "retryTimeoutMs": 3000, "minRequestAmount": 1, "statIntervalMs": 10000,
            "threshold": 1}]"#,
        steps: &[
            Pass(1, 0, BAD),
            Wait(3000),
            Pass(1, 0, BAD),
            Wait(2999),
            Refuse(1),
            Wait(1),
            Pass(1, 0, GOOD),
            Are(&["closed"]),
        ],
    },
];

/// Sentinel, `sentinel-core/src/test/java/…/slots/block/degrade/`.
const JAVA: &[Row] = &[
    Row {
        from: "circuitbreaker/ResponseTimeCircuitBreakerTest.testMaxSlowRatioThreshold",
        differs: None,
        rules: r#"[{"resource": "up", "grade": 0, "count": 10, "minRequestAmount": 3, "slowRatioThreshold": 1,
            "statIntervalMs": 5000, "timeWindow": 5}]"#,
        steps: &[Pass(3, 20, GOOD), Refuse(1), Wait(1000), Refuse(1), Wait(4000), Pass(1, 20, GOOD), Are(&["open"])],
    },
    Row {
        from: "circuitbreaker/ExceptionCircuitBreakerTest.testRecordErrorOrSuccess",
        differs: None,
        rules: r#"[{"resource": "up", "grade": 1, "count": 0.2, "minRequestAmount": 1, "statIntervalMs": 20000,
            "timeWindow": 10}]"#,
        steps: &[
            Pass(1, 10, GOOD),
            Pass(1, 0, BAD),
            Are(&["open"]),
            Refuse(2),
            Wait(5000),
            Refuse(1),
            Wait(5000),
            Pass(1, 0, BAD),
            Refuse(2),
            Wait(10_000),
            Pass(1, 100, GOOD),
            Are(&["closed"]),
            Pass(6, 100, GOOD),
            Pass(1, 0, BAD), // 1 of 7 since it closed
            Pass(1, 100, GOOD),
            Are(&["closed"]),
        ],
    },
    Row {
        from: "CircuitBreakingIntegrationTest.testSlowRequestMode",
        differs: None,
        rules: r#"[{"resource": "up", "grade": 0, "count": 50, "minRequestAmount": 10, "slowRatioThreshold": 0.8,
            "statIntervalMs": 20000, "timeWindow": 5}]"#,
        steps: &[
            Pass(7, 65, GOOD),
            Pass(3, 35, GOOD),
            Pass(5, 65, GOOD), // 12 of 15 are 80 %
            Are(&["open"]),
            Refuse(1),
            Wait(1000),
            Refuse(1),
            Wait(5000),
            Pass(1, 65, GOOD),
            Are(&["open"]),
            Wait(6000),
            Pass(1, 35, GOOD),
            Are(&["closed"]),
            Pass(1, 65, GOOD),
        ],
    },
    Row {
        from: "CircuitBreakingIntegrationTest.testExceptionRatioMode",
        differs: None,
        rules: r#"[{"resource": "up", "grade": 1, "count": 0.5, "minRequestAmount": 10, "statIntervalMs": 25000,
            "timeWindow": 5}]"#,
        steps: &[
            Pass(6, 0, BAD),
            Pass(3, 0, GOOD),
            Are(&["closed"]),
            Pass(1, 0, BAD),
            Are(&["open"]),
            Refuse(1),
            Wait(2000),
            Refuse(1),
            Wait(5000),
            Pass(1, 0, BAD),
            Are(&["open"]),
            Wait(6000),
            Pass(1, 0, GOOD),
            Are(&["closed"]),
            Pass(1, 0, BAD),
        ],
    },
    Row {
        from: "CircuitBreakingIntegrationTest.testMultipleHalfOpenedBreakers",
        differs: Some(
            "the first breaker, whose time has come, takes no probe that the second blocks, so it does not go to half-open \
             and back; to requests it is the same",
        ),
        rules: r#"[{"resource": "up", "grade": 0, "count": 50, "minRequestAmount": 1, "slowRatioThreshold": 0.8,
            "statIntervalMs": 20000, "timeWindow": 2}, {"resource": "up", "grade": 0, "count": 50, "minRequestAmount": 1,
            "slowRatioThreshold": 0.8, "statIntervalMs": 20000, "timeWindow": 4}]"#,
        steps: &[
            Pass(1, 100, GOOD),
            Are(&["open", "open"]),
            Wait(3000),
            Refuse(10),
            Are(&["open", "open"]),
            Wait(3000),
            Pass(10, 1, GOOD),
            Are(&["closed", "closed"]),
        ],
    },
];

/// Of resilience4j's 50 % of failures, 50 % slower than 4 s, 5 calls at least in 5 s, 5 s open, 4 calls half-open.
const BOTH: &str = r#"[{"resource": "up", "strategy": "slow_ratio", "max_allowed_rt": "4s", "threshold": 0.5,
    "min_requests": 5, "interval": "10s", "buckets": 5, "retry_timeout": "5s", "probes": 4}, {"resource": "up",
    "strategy": "error_ratio", "threshold": 0.5, "min_requests": 5, "interval": "10s", "buckets": 5,
    "retry_timeout": "5s", "probes": 4}]"#;
const ERRORS: &str = r#"[{"resource": "up", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 5, "interval": "5s",
    "buckets": 5, "retry_timeout": "5s", "probes": 4}]"#;

/// resilience4j, `CircuitBreakerStateMachineTest`. An exception that it ignores is here a client that leaves.
const RESILIENCE4J: &[Row] = &[
    Row {
        from: "shouldOpenAfterFailureRateThresholdExceeded",
        differs: None,
        rules: ERRORS,
        steps: &[
            Pass(3, 0, BAD),
            Are(&["closed"]),
            Pass(1, 0, GOOD),
            Are(&["closed"]),
            Pass(1, 0, GOOD), // 3 of 5, by a success
            Are(&["open"]),
            Refuse(1),
        ],
    },
    Row {
        from: "shouldOpenAfterSlowCallRateThresholdExceeded",
        differs: Some(
            "there a call of 5 s takes no time, so that five fit into a window of 5 s; here the window is of 10 s",
        ),
        rules: BOTH,
        steps: &[
            Together(&[(100, BAD), (100, GOOD), (5000, BAD), (5000, GOOD)]),
            Are(&["closed", "closed"]),
            Pass(1, 4001, GOOD), // 3 of 5 slow, 2 of 5 failed
            Are(&["open", "closed"]),
            Refuse(1),
        ],
    },
    Row {
        from: "shouldTransitionToHalfOpenAfterWaitDuration",
        differs: None,
        rules: ERRORS,
        steps: &[
            Pass(5, 0, BAD),
            Are(&["open"]),
            Refuse(1),
            Wait(3000),
            Are(&["open"]),
            Refuse(1),
            Wait(3000),
            Hold(1),
            Are(&["half_open"]),
        ],
    },
    Row {
        from: "shouldTransitionToHalfOpenAfterWaitInterval",
        differs: Some(
            "there the second wait is longer by a function that is given; here it is the retry timeout each time",
        ),
        rules: ERRORS,
        steps: &[
            Pass(5, 0, BAD),
            Wait(3000),
            Refuse(1),
            Wait(3000),
            Pass(1, 0, BAD),
            Are(&["open"]),
            Wait(4999),
            Refuse(1),
            Wait(1),
            Hold(1),
            Are(&["half_open"]),
        ],
    },
    Row {
        from: "shouldOnlyPermitFourCallsInHalfOpenState, shouldThrowCallNotPermittedExceptionWhenNotFurtherTestCallsArePermitted",
        differs: None,
        rules: ERRORS,
        steps: &[
            Pass(5, 0, BAD),
            Wait(5000),
            Hold(4),
            Refuse(2),
            Release(BAD), // open again
            Are(&["open"]),
            Wait(5000),
            Hold(4),
            Refuse(2),
            Are(&["half_open"]),
        ],
    },
    Row {
        from: "shouldIncreaseCounterOnReleasePermission",
        differs: None,
        rules: ERRORS,
        steps: &[Pass(5, 0, BAD), Wait(5000), Hold(4), Refuse(2), Release(End::Gone), Hold(1), Refuse(1)],
    },
    Row {
        from: "shouldTransitionBackToOpenStateWhenFailureRateIsAboveThreshold",
        differs: Some(
            "there four calls are made, 3 of 4 fail, and it opens; here it opens with the first, as in Sentinel",
        ),
        rules: ERRORS,
        steps: &[
            Pass(5, 0, BAD),
            Wait(5000),
            Hold(4),
            Release(BAD),
            Are(&["open"]),
            Release(BAD),
            Release(GOOD),
            Release(BAD),
            Are(&["open"]),
            Refuse(1),
        ],
    },
    Row {
        from: "shouldTransitionBackToOpenStateWhenSlowCallRateIsAboveThreshold",
        differs: Some("as above: by the first slow one"),
        rules: r#"[{"resource": "up", "strategy": "slow_ratio", "max_allowed_rt": "4s", "threshold": 0.5, "min_requests": 5,
            "interval": "60s", "retry_timeout": "5s", "probe_timeout": "60s", "probes": 4}]"#,
        steps: &[
            Pass(5, 4001, GOOD),
            Wait(5000),
            Hold(4),
            Wait(1000),
            Release(GOOD),
            Are(&["half_open"]),
            Wait(4000),
            Release(GOOD),
            Are(&["open"]),
            Release(GOOD),
            Release(GOOD),
            Are(&["open"]),
        ],
    },
    Row {
        from: "shouldTransitionBackToClosedStateWhenFailureIsBelowThreshold",
        differs: Some("there it closes with 1 of 4 failed; here every probe has to succeed, as in Sentinel"),
        rules: ERRORS,
        steps: &[
            Pass(5, 0, BAD),
            Wait(5000),
            Hold(4),
            Release(BAD),
            Release(GOOD),
            Release(GOOD),
            Release(GOOD),
            Are(&["open"]),
            Wait(5000),
            Pass(3, 0, GOOD),
            Are(&["half_open"]),
            Pass(1, 0, GOOD),
            Are(&["closed"]),
            Pass(1, 0, GOOD),
        ],
    },
    Row {
        from: "shouldReleasePermissionWhenExceptionIgnored",
        differs: Some("there the last of the four fails and it closes; here it opens"),
        rules: ERRORS,
        steps: &[
            Pass(5, 0, BAD),
            Wait(5000),
            Pass(3, 0, GOOD),
            Are(&["half_open"]),
            Pass(1, 0, End::Gone),
            Are(&["half_open"]),
            Pass(1, 0, BAD),
            Are(&["open"]),
        ],
    },
    Row {
        from: "shouldIgnoreExceptionsAndThenTransitionToClosed",
        differs: Some(
            "there it stays half-open while calls are ignored; here it is as if they had not been, which is open",
        ),
        rules: ERRORS,
        steps: &[
            Pass(5, 0, BAD),
            Wait(5000),
            Pass(4, 0, End::Gone),
            Are(&["open"]),
            Pass(3, 0, GOOD),
            Are(&["half_open"]),
            Pass(1, 0, GOOD),
            Are(&["closed"]),
        ],
    },
    Row {
        from: "shouldDisableCircuitBreaker",
        differs: None,
        rules: r#"[{"resource": "up", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 1, "mode": "disabled"}]"#,
        steps: &[Pass(1, 0, GOOD), Pass(10, 0, BAD), Are(&["closed"])],
    },
    Row {
        from: "shouldForceOpenCircuitBreaker, shouldThrowCallNotPermittedExceptionWhenStateIsForcedOpen",
        differs: None,
        rules: r#"[{"resource": "up", "strategy": "error_ratio", "threshold": 0.5, "mode": "forced_open",
            "retry_timeout": "5s"}]"#,
        steps: &[Refuse(1), Wait(6000), Refuse(1)],
    },
    Row {
        from: "shouldForceCloseCircuitBreaker",
        differs: None,
        rules: r#"[{"resource": "up", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 1,
            "mode": "forced_closed"}]"#,
        steps: &[Pass(1, 1000, GOOD), Pass(5, 1000, BAD), Are(&["closed"])],
    },
    Row {
        from: "shouldRecordMetricsInMetricsOnlyState",
        differs: Some("there it keeps the state metrics-only; here in dry run the breaker opens, and refuses nothing"),
        rules: r#"[{"resource": "up", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 5, "mode": "dry_run"}]"#,
        steps: &[
            Pass(3, 0, BAD),
            Pass(1, 0, GOOD),
            Are(&["closed"]),
            Pass(1, 0, GOOD),
            Are(&["open"]),
            Pass(1, 0, BAD),
        ],
    },
];

#[test]
fn sentinel_for_go() {
    GO.iter().for_each(run);
}

#[test]
fn sentinel() {
    JAVA.iter().for_each(run);
}

#[test]
fn resilience4j() {
    RESILIENCE4J.iter().for_each(run);
}

/// Sentinel, `DegradeRuleManagerTest.testIsValidRule`: rules, and whether they are valid.
const VALID: &[(&str, bool, Option<&str>)] = &[
    ("{}", false, None),
    (r#"{"count": 100, "grade": 0, "timeWindow": -1}"#, false, None),
    (r#"{"count": 1.1, "grade": 1, "timeWindow": 2}"#, false, None),
    (r#"{"count": 1.0, "grade": 1, "timeWindow": 2}"#, true, None),
    (r#"{"count": 0.0, "grade": 1, "timeWindow": 2}"#, true, None),
    (r#"{"count": -3, "grade": 2, "timeWindow": 2}"#, false, None),
    (r#"{"count": 97, "grade": 0, "slowRatioThreshold": 15, "timeWindow": 15}"#, false, None),
    (
        r#"{"count": 0.93, "grade": 1, "timeWindow": 20, "minRequestAmount": 0}"#,
        true,
        Some("there 0 requests at least are no rule; here it is 1, as Sentinel for Go takes it"),
    ),
    (
        r#"{"count": 100, "slowRatioThreshold": 0.8, "timeWindow": 10, "statIntervalMs": 0, "minRequestAmount": 20}"#,
        false,
        None,
    ),
];

#[test]
fn sentinels_valid_rules() {
    for (rule, valid, differs) in VALID {
        let bed = Bed::new(1, "{}");
        let rule = rule.replacen('{', r#"{"resource": "up", "#, 1).replace(", }", "}");
        let configuration = format!(r#"{{"rules": [{rule}]}}"#);
        if *valid {
            bed.push(&configuration);
        } else {
            assert!(bed.refuses(&configuration).contains("rules[0]"), "{rule}, {differs:?}");
        }
    }
}

/// Sentinel, `DegradeRuleManagerTest.loadSameRuleUseSameCircuitBreaker`, and Sentinel for Go, `rule_test.go`,
/// `TestRuleIsStatReusable`: with which changes the counts stay. Here they also stay where the window gets another length
/// or other buckets.
#[test]
fn counts_that_outlive_a_change_of_the_rule() {
    let rule = |strategy: u8, retry: u32, min: u32, interval: u32, buckets: u32, threshold: &str| {
        format!(
            r#"{{"resource": "up", "strategy": {strategy}, "retryTimeoutMs": {retry}, "minRequestAmount": {min},
            "statIntervalMs": {interval}, "statSlidingWindowBucketCount": {buckets}, "threshold": {threshold}}}"#
        )
    };
    let old = rule(2, 3000, 10, 10_000, 2, "6");
    let beside = r#", {"resource": "abc", "grade": 0, "count": 20, "slowRatioThreshold": 0.8, "timeWindow": 20}"#;
    for (new, there, here) in [
        (format!("{old}{beside}"), true, true),
        (rule(2, 5000, 10, 10_000, 2, "6"), true, true),
        (rule(2, 3000, 9, 10_000, 2, "6"), true, true),
        (rule(2, 3000, 9, 10_000, 2, "5"), true, true),
        (rule(2, 3000, 10, 5000, 2, "6"), false, true),
        (rule(2, 3000, 10, 10_000, 5, "6"), false, true),
        (rule(1, 3000, 10, 10_000, 2, "0.1"), false, false),
        (old.replace(r#""up""#, r#""def""#), false, false),
    ] {
        let bed = Bed::new(1, &format!(r#"{{"rules": [{old}]}}"#));
        (0..9).for_each(|_| _ = bed.send(0, BAD));
        bed.push(&format!(r#"{{"rules": [{new}]}}"#));
        assert_ne!(bed.send(0, BAD), Decision::Rejected);
        let kept = bed.send(0, GOOD) == Decision::Rejected;
        assert_eq!(kept, here, "there {there}: {new}");
    }
}
