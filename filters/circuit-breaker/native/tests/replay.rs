//! The command on logs of a service that is healthy, turns slow and recovers; and its code on logs that are out of order.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

mod made;

use circuit_breaker::rules::{self, Rule};
use circuit_breaker_native::log::{Form, Line, Reader};
use circuit_breaker_native::replay::{By, Replay};
use circuit_breaker_native::{picture, report};
use made::{BEGIN_MS, Made, half_hour};
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const OWNERS: &str = r#"[{"resource": "payment-service", "strategy": 0, "retryTimeoutMs": 60000, "minRequestAmount": 10,
    "statIntervalMs": 60000, "maxAllowedRtMs": 500, "threshold": 0.5}]"#;

fn here(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuit-breaker-native"));
    command.arg("replay").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // It may be refused before it reads.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output().unwrap()
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// `UPDATE=1` writes it anew, to be read before it is kept.
fn golden(path: &str, found: &str) {
    let path = here(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, found).unwrap();
    }
    assert_eq!(found, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
}

fn rules_file(rules: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, rules).unwrap();
    file
}

fn replay_by(rules: &str, by: &[&str], log: &str, look_ahead_s: u64) -> Replay {
    let words: Vec<_> = by.iter().map(|word| (*word).to_owned()).collect();
    let (by, fields) = By::read(&words).unwrap();
    let reader = Reader::new(Form::Any, &[], fields, &[]).unwrap();
    let rules = rules::read(rules.as_bytes()).unwrap();
    let mut replay = Replay::new(rules, by, 100, look_ahead_s * 1_000_000_000, true);
    for (number, line) in (1..).zip(log.lines()) {
        replay.seen.lines += 1;
        match reader.read(line.as_bytes()) {
            Ok(line) => replay.line(number, &line),
            Err(why) => replay.unread(number, why),
        }
    }
    replay.finish();
    replay
}

fn replay(rules: &str, log: &str) -> Replay {
    replay_by(rules, &[], log, 60)
}

/// A log of requests to `up`: begin and duration in ms, and status.
fn log(requests: &[(u64, u64, u16)]) -> String {
    let line = |(begin, duration, status): &(u64, u64, u16)| {
        let start = BEGIN_MS + begin;
        format!("{{\"start_time\":{start},\"duration\":{duration},\"status\":{status},\"upstream_cluster\":\"up\"}}\n")
    };
    requests.iter().map(line).collect()
}

const ERRORS: &str = r#"{"rules": [{"id": "e", "resource": "up", "strategy": "error_ratio", "threshold": 0.5, "min_requests": 4,
    "interval": "10s", "retry_timeout": "5s"}]}"#;

#[test]
fn the_sample_is_what_the_generator_makes() {
    golden("examples/access.log", &made::json(&half_hour(7, 5000)));
}

#[test]
fn the_report_of_the_sample() {
    let sample = std::fs::read(here("examples/access.log")).unwrap();
    let rules = here("examples/rules.json");
    let picture = tempfile::NamedTempFile::new().unwrap();
    let picture = picture.path().to_str().unwrap();
    let output = run(&["--rules", rules.to_str().unwrap(), "--svg", picture], &sample);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    let report = text(&output.stdout);
    golden("tests/logs/sample.txt", &report);
    // What the README shows.
    golden("examples/replay.svg", &std::fs::read_to_string(picture).unwrap());
    let readme = std::fs::read_to_string(here("../README.md")).unwrap();
    let shown = readme.split("access.log\n```\n\n```text\n").nth(1).unwrap().split("```").next().unwrap();
    let mut lines = report.lines();
    for line in shown.lines().filter(|line| *line != "…") {
        assert!(lines.any(|found| found == line), "not in the report, or not in this order: {line}");
    }
}

#[test]
fn every_format_says_the_same() {
    let all = half_hour(3, 3000);
    let rules = rules_file(OWNERS);
    let rules = rules.path().to_str().unwrap();
    let report = |arguments: &[&str], log: &str| {
        let output = run(&[&["--rules", rules, "--json"], arguments].concat(), log.as_bytes());
        assert_eq!(output.status.code(), Some(0), "{arguments:?} {}", text(&output.stderr));
        text(&output.stdout)
    };
    let json = report(&[], &made::json(&all));
    // In which order an object's fields are depends on what else is built with serde_json.
    let fields: std::collections::BTreeMap<String, Value> = serde_json::from_str(&json).unwrap();
    let path = here("tests/logs/formats.json");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &json).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert_eq!(fields, serde_json::from_str(&expected).unwrap());
    let own =
        "[%START_TIME%] \"%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL%\" %RESPONSE_CODE% %RESPONSE_FLAGS% %A% %B% %DURATION%";
    for (what, arguments, log) in [
        ("numbers", &[][..], made::numbers(&all)),
        ("envoy", &[], made::envoy(&all)),
        ("istio", &[], made::istio(&all)),
        ("envoy, said", &["--format", "envoy"], made::envoy(&all)),
        ("istio, said", &["--format", "istio"], made::istio(&all)),
        ("a template", &["--format", own, "--resource", "=payment-service"], made::envoy(&all)),
    ] {
        assert_eq!(report(arguments, &log), json, "{what}");
    }
}

/// The owner's rule on a sick half hour: it opens when the half hour begins, and is closed when it is over.
#[test]
fn a_sick_half_hour() {
    let replay = replay(OWNERS, &made::json(&half_hour(1, 1000)));
    let judge = &replay.judges[0];
    assert_eq!((judge.resource.as_str(), judge.rule.id.as_str()), ("payment-service", "payment-service/slow_ratio"));
    let minute = |ns: u64| (ns / 1_000_000 - BEGIN_MS) / 60_000;
    let (first, last) = (&judge.openings[0], judge.openings.last().unwrap());
    assert!((10..12).contains(&minute(first.at_ns)), "{first:?}");
    assert!(first.total >= 10 && first.bad * 2 >= first.total, "{first:?}");
    assert!((40..43).contains(&minute(last.closed_ns.unwrap())), "{last:?}");
    let tally = &judge.tally;
    assert!(tally.refused_bad > tally.refused_good && tally.open_ns > 15 * 60_000_000_000, "{tally:?}");
    assert_eq!(tally.refused(), judge.openings.iter().map(|opening| opening.refused).sum::<u64>());
    // A breaker that is harder to trip refuses no more.
    let refused = |factor: f64| {
        let found = replay.variations().find(|variation| (variation.factor - factor).abs() < 0.01).unwrap();
        found.judge().unwrap().tally.refused()
    };
    assert!(
        refused(0.5) >= tally.refused() && tally.refused() >= refused(1.5),
        "{} {tally:?} {}",
        refused(0.5),
        refused(1.5)
    );
    assert_eq!(refused(2.0), 0, "never are all requests of a minute slow");
}

/// A plain model of the simple case: requests that end before the next one begins, one probe, errors by ratio, a window
/// that is longer than the log and is emptied by each change of state.
#[test]
fn as_a_plain_count_says() {
    let mut opened = 0;
    for seed in 1..50 {
        let mut random = made::Random(seed);
        let requests: Vec<(u64, u64, u16)> =
            (0..400).map(|n| (n * 100, random.below(90), if random.below(3) == 0 { 500 } else { 200 })).collect();
        let rule = r#"[{"id": "e", "resource": "up", "strategy": "error_ratio", "threshold": 0.45, "min_requests": 5,
            "interval": "1h", "retry_timeout": "2s"}]"#;
        let (mut total, mut bad, mut open_at, mut refused, mut openings, mut probes) = (0_u32, 0_u32, None, 0, 0, 0);
        for (begin, duration, status) in &requests {
            let (failed, end) = (*status == 500, begin + duration);
            match open_at {
                Some(at) if *begin < at + 2000 => refused += 1,
                Some(_) => {
                    probes += 1;
                    open_at = failed.then_some(end);
                    // It closes before its probe is counted, but the probe is not of the new period.
                    (total, bad) = (0, 0);
                    if !failed && *duration == 0 {
                        total = 1;
                    }
                }
                None => {
                    total += 1;
                    bad += u32::from(failed);
                    if bad > 0 && total >= 5 && f64::from(bad) / f64::from(total) >= 0.45 {
                        open_at = Some(end);
                        openings += 1;
                    }
                }
            }
        }
        let replay = replay(rule, &log(&requests));
        let tally = &replay.judges[0].tally;
        assert_eq!(
            (tally.requests, tally.refused(), tally.openings, tally.probes),
            (400, refused, openings, probes),
            "{seed}"
        );
        opened += openings;
    }
    assert!(opened > 30, "{opened}");
}

#[test]
fn refused_ones_do_not_count_and_probes_do() {
    // Four errors open it at 40 ms; 1000 is refused needlessly, 2000 was bad anyway; of 6000 and 6001 one is the probe.
    let requests = [
        (0, 10, 500),
        (10, 10, 500),
        (20, 10, 500),
        (30, 10, 500),
        (1000, 1, 200),
        (2000, 1, 500),
        (6000, 50, 200),
        (6001, 1, 200),
        (7000, 1, 200),
    ];
    let replay = replay(ERRORS, &log(&requests));
    let judge = &replay.judges[0];
    let tally = &judge.tally;
    assert_eq!((tally.requests, tally.bad, tally.openings), (9, 5, 1));
    assert_eq!((tally.refused_good, tally.refused_bad, tally.probes, tally.probes_failed), (2, 1, 1, 0));
    let opening = &judge.openings[0];
    let at = |ms: u64| (BEGIN_MS + ms) * 1_000_000;
    assert_eq!((opening.at_ns, opening.total, opening.bad, opening.closed_ns), (at(40), 4, 4, Some(at(6050))));
    assert_eq!(tally.open_ns, 6_010_000_000);
}

#[test]
fn order_of_lines_within_the_look_ahead_makes_no_difference() {
    let all = half_hour(5, 700);
    let by_end = replay(OWNERS, &made::json(&all));
    let sorted = |key: fn(&Made) -> u64| {
        let mut all = half_hour(5, 700);
        all.sort_by_key(key);
        replay(OWNERS, &made::json(&all))
    };
    for other in
        [sorted(|made| made.begin_ms), sorted(|made| made.begin_ms / 20_000 * 100_000 + 1000 - made.duration_ms % 1000)]
    {
        assert_eq!((other.seen.misplaced, other.seen.late), (0, 0));
        assert_eq!(other.judges[0].tally, by_end.judges[0].tally);
        assert_eq!(other.judges[0].openings, by_end.judges[0].openings);
    }
}

#[test]
fn out_of_order_beyond_the_look_ahead_is_said() {
    let requests = [(0, 10, 200), (1000, 10, 200), (300_000, 10, 200), (2000, 10, 200), (300_100, 10, 200)];
    let replay = replay(ERRORS, &log(&requests));
    assert_eq!((replay.seen.misplaced, &replay.seen.misplaced_first[..]), (0, &[][..]), "nothing was due after 1010");
    let requests = [(0, 10, 200), (100_000, 10, 200), (300_000, 10, 200), (2000, 10, 200), (300_100, 10, 200)];
    let replay = replay_by(ERRORS, &[], &log(&requests), 60);
    assert_eq!((replay.seen.misplaced, &replay.seen.misplaced_first[..]), (1, &[4][..]));
    assert!(report::text(&replay, false).contains("sort the log by time"), "{}", report::text(&replay, false));
    assert_eq!(replay.judges[0].tally.requests, 4);
}

#[test]
fn clocks_that_jump() {
    const DAY: u64 = 86_400_000;
    // One line of another year, first, in the middle or last but one.
    for place in [0, 3, 5] {
        let mut requests: Vec<_> = (0..6).map(|n| (n * 1000, 10, 500)).collect();
        requests.insert(place, (400 * DAY, 10, 200));
        let replay = replay(ERRORS, &log(&requests));
        assert_eq!((replay.seen.misplaced, replay.judges[0].tally.requests), (1, 6), "{place}");
        assert_eq!(replay.judges[0].tally.openings, 1);
    }
    // A silent night, and another one.
    let requests = [(0, 10, 200), (DAY, 10, 200), (2 * DAY, 10, 200), (2 * DAY + 1000, 10, 200), (3 * DAY, 1, 200)];
    let replay = replay(ERRORS, &log(&requests));
    assert_eq!((replay.seen.misplaced, replay.judges[0].tally.requests), (0, 5));
}

#[test]
fn durations_that_are_huge() {
    // Sorted by ends: a connection of two hours is late, and is decided by the state in which its beginning was.
    let mut requests: Vec<_> = (0..7200).map(|n| (n * 1000, 10, 200)).collect();
    requests.push((5, 7_200_000, 200));
    let replay1 = replay(ERRORS, &log(&requests));
    assert_eq!((replay1.seen.late, replay1.seen.misplaced), (1, 0));
    assert_eq!((replay1.judges[0].tally.requests, replay1.judges[0].tally.refused()), (7201, 0));
    // A duration that cannot be does not stretch the time, nor hold up anything.
    let requests = [(0, 10, 200), (1000, 8_000_000_000, 200), (2000, 10, 500), (3000, 10, 200)];
    let replay2 = replay(ERRORS, &log(&requests));
    assert_eq!((replay2.seen.unfinished, replay2.judges[0].tally.requests), (1, 4));
    assert_eq!(replay2.seen.last_ns, (BEGIN_MS + 3010) * 1_000_000);
    // While it is open, one that began before is let pass, and one that began while it was open is not.
    let mut requests: Vec<_> = (0..4).map(|n| (100_000 + n, 1, 500)).collect();
    requests.extend([(180_000, 1, 200), (400_000, 1, 200), (50, 399_000, 200), (101_000, 299_000, 200)]);
    let replay3 = replay(ERRORS, &log(&requests));
    let tally = &replay3.judges[0].tally;
    assert_eq!((replay3.seen.late, tally.refused(), tally.openings), (2, 1, 1), "{tally:?}");
}

#[test]
fn memory_is_bounded_by_the_look_ahead() {
    let rules = rules::read(ERRORS.as_bytes()).unwrap();
    let mut replay = Replay::new(rules, By::read(&[]).unwrap().0, 10, 1_000_000_000, true);
    for number in 0..200_000_u64 {
        let line = Line {
            begin_ns: (BEGIN_MS + number) * 1_000_000,
            rt_us: 50_000,
            outcome: Some(circuit_breaker_native::ending::Outcome::Success),
            cluster: Some("up".into()),
            ..Line::default()
        };
        replay.line(number, &line);
        assert!(replay.held() <= 1100, "{}", replay.held());
    }
}

#[test]
fn by_what_requests_are_called() {
    let line = |route: &str| {
        format!(
            "{{\"start_time\":{BEGIN_MS},\"duration\":1,\"status\":500,\"authority\":\"Shop:80\",\"route_name\":\"{route}\",\
             \"method\":\"GET\",\"path\":\"/users/7?x\",\"tenant\":\"acme\"}}\n"
        )
    };
    let all = r#"[{"resource": "*", "strategy": 2, "threshold": 5, "retryTimeoutMs": 1, "statIntervalMs": 1}]"#;
    for (by, name) in [
        (&["host"][..], "shop"),
        (&[], "shop"),
        (&["route"], "route:a"),
        (&["method"], "method:GET"),
        (&["/users/{id}"], "/users/{id}"),
        (&["field:tenant"], "acme"),
        (&["=everything"], "everything"),
    ] {
        let replay = replay_by(all, by, &line("a"), 60);
        assert_eq!(replay.judges[0].resource, name);
    }
    let both = replay_by(all, &["host", "route"], &[line("a"), line("b")].concat(), 60);
    let tallies: Vec<_> = both.judges.iter().map(|judge| (judge.resource.as_str(), judge.tally.requests)).collect();
    assert_eq!(tallies, [("shop", 2), ("route:a", 1), ("route:b", 1)]);
    for wrong in ["header:x", "nonsense", "="] {
        assert!(By::read(&[wrong.to_owned()]).is_err(), "{wrong}");
    }
}

#[test]
fn modes() {
    let rule = |mode: &str| ERRORS.replace("\"id\"", &format!("\"mode\": \"{mode}\", \"id\""));
    let requests: Vec<_> = (0..10).map(|n| (n * 100, 10, 500)).collect();
    for (mode, openings, refused) in
        [("enforce", 1, 6), ("dry_run", 1, 6), ("forced_open", 0, 10), ("forced_closed", 0, 0), ("disabled", 0, 0)]
    {
        let replay = replay(&rule(mode), &log(&requests));
        let tally = &replay.judges[0].tally;
        assert_eq!((tally.openings, tally.refused()), (openings, refused), "{mode}");
    }
}

#[test]
fn lines_that_cannot_be_read() {
    let log = format!("hello\n{}\n\n{{\"start_time\":1}}\n", log(&[(0, 1, 200), (5, 1, 200)]));
    let rules = rules_file(ERRORS);
    let output = run(&["--rules", rules.path().to_str().unwrap()], log.as_bytes());
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains("2 lines could not be read\n  line 1 is neither JSON nor"), "{said}");
    assert!(said.contains("  line 6 does not say how long"), "{said}");
}

#[test]
fn what_is_refused_with_its_cure() {
    let rules = rules_file(ERRORS);
    let rules = rules.path().to_str().unwrap();
    let (wrong, none) = (rules_file(r#"[{"resource": "up", "strategy": 7}]"#), rules_file("[]"));
    let good = log(&[(0, 1, 200)]);
    for (arguments, input, code, problem) in [
        (&["--rules", rules][..], "", 1, "the log is empty"),
        (&["--rules", rules], "\n \n", 1, "the log is empty"),
        (&["--rules", rules], "x\ny\n", 1, "no line could be read:\n  line 1 is neither"),
        (&["--rules", rules], &good.replace("\"up\"", "\"other\""), 1, "other: 1 requests\nName one of these"),
        (&["--rules", "/nowhere"], &good, 2, "/nowhere"),
        (&["--rules", wrong.path().to_str().unwrap()], &good, 2, "`[0].strategy`: is not known"),
        (&["--rules", none.path().to_str().unwrap()], &good, 2, "has no rules"),
        (&["--rules", rules, "--format", "nonsense"], &good, 2, "--format: has no %START_TIME%"),
        (&["--rules", rules, "--resource", "header:x"], &good, 2, "a log has no headers"),
        (&["--rules", rules, "--field", "x=y"], &good, 2, "x is not known"),
        (&["--rules", rules, "--error-status", "many"], &good, 2, "errors.status[0]"),
    ] {
        let output = run(arguments, input.as_bytes());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {said}");
        assert!(said.contains(problem) && output.stdout.is_empty(), "{arguments:?} {said}");
    }
}

fn lanes(svg: &str) -> usize {
    let tree = roxmltree::Document::parse(svg).unwrap();
    tree.descendants().filter(|node| node.attribute("class") == Some("lane")).count()
}

#[test]
fn the_picture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.svg");
    let (rules, sample) = (here("examples/rules.json"), std::fs::read(here("examples/access.log")).unwrap());
    let output = run(&["--rules", rules.to_str().unwrap(), "--svg", path.to_str().unwrap()], &sample);
    assert_eq!(output.status.code(), Some(0));
    let svg = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lanes(&svg), 2);
    let tree = roxmltree::Document::parse(&svg).unwrap();
    for class in ["good", "bad", "refused", "open", "half", "measure", "threshold"] {
        let drawn = tree.descendants().filter(|node| node.attribute("class") == Some(class)).count();
        assert!(drawn >= 2, "{class} is in the legend only");
    }
    for label in ["payment-service, rule payments-slow", "requests/min", "10:20", "≥ 0.5", "Time is UTC"] {
        assert!(svg.contains(label), "{label}");
    }
}

#[test]
fn the_picture_is_small_and_well_formed_whatever_the_log_is() {
    let all = r#"[{"resource": "*", "strategy": 1, "threshold": 0.1, "minRequestAmount": 1, "retryTimeoutMs": 1,
        "statIntervalMs": 100}]"#;
    // Twenty breakers that open and close without end, with names that XML does not like.
    let mut random = made::Random(1);
    let mut log = String::new();
    for n in 0..100_000_u64 {
        let (at, status) = (BEGIN_MS + n * 5000, if random.below(2) == 0 { 500 } else { 200 });
        let name = random.below(20);
        log += &format!(
            "{{\"start_time\":{at},\"duration\":3,\"status\":{status},\"x\":\"<a&b>\\\"\\u0001\\uffff{name}\"}}\n"
        );
    }
    let replay = replay_by(all, &["field:x"], &log, 60);
    assert_eq!(replay.judges.len(), 20);
    let svg = picture::svg(&replay);
    assert_eq!(lanes(&svg), 10);
    assert!(svg.len() < 200_000, "{}", svg.len());
    assert!(svg.contains("10 more breakers are in the report"));
    assert!(replay.judges.iter().all(|judge| judge.openings.len() <= 1000 && judge.spans.len() <= 2000));
}

#[test]
fn the_report_for_programs() {
    let replay = replay(ERRORS, &log(&(0..10).map(|n| (n * 100, 10, 500)).collect::<Vec<_>>()));
    let report: Value = report::json(&replay);
    let breaker = &report["breakers"][0];
    assert_eq!(
        (&breaker["resource"], &breaker["rule"], &breaker["state"]),
        (&"up".into(), &"e".into(), &"open".into())
    );
    assert_eq!((&breaker["opened"], &breaker["refused"], &breaker["refused_bad"]), (&1.into(), &6.into(), &6.into()));
    assert_eq!(breaker["openings"][0]["closed_ns"], Value::Null);
    let factors: Vec<_> = breaker["what_if"].as_array().unwrap().iter().map(|row| row["threshold"].as_f64()).collect();
    assert_eq!(factors, [Some(0.25), Some(0.4), Some(0.625), Some(0.75), Some(1.0)]);
    assert!(report["about"].as_str().unwrap().contains("as it was recorded"));
}

/// What a what-if says is what the rule with that threshold does.
#[test]
fn what_if_is_what_is() {
    let rules = std::fs::read_to_string(here("examples/rules.json")).unwrap();
    let log = made::json(&half_hour(9, 2000));
    let one = replay(&rules, &log);
    for variation in one.variations() {
        let mut changed: Value = serde_json::from_str(&rules).unwrap();
        let threshold = report::threshold(variation.judge().unwrap());
        changed["rules"][variation.of]["threshold"] = threshold.into();
        let other = replay(&changed.to_string(), &log);
        let rule: &Rule = &other.judges[variation.of].rule;
        assert_eq!(variation.judge().unwrap().tally, other.judges[variation.of].tally, "{} {}", rule.id, threshold);
    }
    assert_eq!(one.variations().count(), 10);
}

#[test]
fn a_rule_sees_only_what_the_others_let_pass() {
    let rules = r#"{"rules": [
        {"id": "few", "resource": "up", "strategy": "error_count", "threshold": 2, "min_requests": 1, "interval": "60s"},
        {"id": "many", "resource": "up", "strategy": "error_count", "threshold": 3, "min_requests": 1, "interval": "60s"}
    ]}"#;
    let replay = replay(rules, &log(&(0..10).map(|n| (n * 100, 10, 500)).collect::<Vec<_>>()));
    let sums: Vec<_> = replay.judges.iter().map(|judge| (judge.tally.openings, judge.tally.refused())).collect();
    assert_eq!(sums, [(1, 8), (0, 0)]);
}
