//! What came of a replay, for people and for programs.

use crate::real;
use crate::replay::{Judge, Replay, share};
use circuit_breaker::board::State;
use circuit_breaker::rules::{Limit, Mode, Strategy};
use jiff::Timestamp;
use owo_colors::{OwoColorize as _, Style};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Of the openings of one breaker so many are printed.
const PRINTED: usize = 10;
/// Of what the figures are.
pub const CAVEAT: &str = "This is what these rules would have refused of the traffic as it was recorded. In life callers whose requests \
                          are refused retry, back off or go elsewhere, and an upstream that is spared recovers sooner.";

/// RFC 3339, to the millisecond.
pub fn moment(ns: u64) -> String {
    let cut = ns.saturating_sub(ns.checked_rem(1_000_000).unwrap_or(0));
    let time = Timestamp::from_nanosecond(cut.into());
    time.map_or_else(|_| ns.to_string(), |time| format!("{time:.3}"))
}

/// A span, in the unit that fits it.
pub fn span(ns: u64) -> String {
    let seconds = real(ns) / 1e9;
    let ms = ns / 1_000_000;
    match ms {
        0 if ns > 0 => format!("{:.2} ms", real(ns) / 1e6),
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{} s", trimmed(seconds, 1)),
        120_000..7_200_000 => format!("{} min", trimmed(seconds / 60.0, 1)),
        7_200_000..172_800_000 => format!("{} h", trimmed(seconds / 3600.0, 1)),
        _ => format!("{} d", trimmed(seconds / 86_400.0, 1)),
    }
}

/// Without zeros at its end.
pub fn trimmed(number: f64, digits: usize) -> String {
    let text = format!("{number:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn percent(part: u64, all: u64) -> String {
    format!("{} %", trimmed(share(part, all) * 100.0, 1))
}

/// What of a number there are.
fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// When a rule trips, in words.
pub fn condition(judge: &Judge) -> String {
    let rule = &judge.rule;
    let what = match &rule.strategy {
        Strategy::SlowRatio { limit, threshold } => {
            let limit = match limit {
                Limit::Fixed { us } => format!("> {}", span(us.saturating_mul(1000))),
                Limit::Adaptive(_) => {
                    let now = judge.limit_us().unwrap_or(0).saturating_mul(1000);
                    format!("> a measured limit, {} at the end", span(now))
                }
            };
            format!("slow ({limit}) ≥ {}", trimmed(*threshold, 4))
        }
        Strategy::ErrorRatio { threshold } => format!("errors ≥ {}", trimmed(*threshold, 4)),
        Strategy::ErrorCount { threshold } => format!("errors ≥ {threshold}"),
    };
    let mode = match rule.mode {
        Mode::Enforce => "",
        Mode::DryRun => ", dry run",
        Mode::ForcedOpen => ", forced open",
        Mode::ForcedClosed => ", forced closed",
        Mode::Disabled => ", disabled",
    };
    format!(
        "{what} of at least {} in {}, retry after {}, {}{mode}",
        rule.min_requests,
        span(rule.interval_ns),
        span(rule.retry_ns),
        count(rule.probes.into(), "probe", "probes"),
    )
}

/// The threshold.
pub fn threshold(judge: &Judge) -> f64 {
    match judge.rule.strategy {
        Strategy::SlowRatio { threshold, .. } | Strategy::ErrorRatio { threshold } => threshold,
        Strategy::ErrorCount { threshold } => threshold.into(),
    }
}

/// Of that rule.
pub fn is_ratio(judge: &Judge) -> bool {
    !matches!(judge.rule.strategy, Strategy::ErrorCount { .. })
}

/// Those first that refused or opened most.
pub fn in_order(replay: &Replay) -> Vec<(usize, &Judge)> {
    let mut judges: Vec<_> = replay.judges.iter().enumerate().collect();
    judges.sort_by_key(|(_, judge)| {
        let tally = &judge.tally;
        std::cmp::Reverse((tally.refused(), tally.openings, tally.bad, tally.requests))
    });
    judges
}

/// For people.
pub fn text(replay: &Replay, coloured: bool) -> String {
    let style = |style: Style| if coloured { style } else { Style::new() };
    let head = style(Style::new().bold());
    let (good, bad, dim) = (style(Style::new().green()), style(Style::new().red()), style(Style::new().dimmed()));
    let warn = style(Style::new().yellow());
    let seen = &replay.seen;
    let mut out = String::new();
    let long = seen.last_ns.saturating_sub(seen.first_ns);
    let _ = writeln!(
        out,
        "{} to {} ({}), {}",
        moment(seen.first_ns),
        moment(seen.last_ns),
        span(long),
        count(seen.lines, "line", "lines")
    );
    for (number, what, about) in problems(replay) {
        let _ = writeln!(out, "{}", format!("{number} {what}").style(warn));
        about.iter().for_each(|about| out += &format!("  {about}\n"));
    }
    let _ = writeln!(out, "{CAVEAT}");
    for (place, judge) in in_order(replay) {
        let tally = &judge.tally;
        let _ = writeln!(out, "\n{}  {}", judge.resource.style(head), judge.rule.id.style(dim));
        let _ = writeln!(out, "  {}", condition(judge));
        let unclear = if tally.unclear > 0 { format!(", {} say nothing", tally.unclear) } else { String::new() };
        let share = percent(tally.bad, tally.requests);
        let _ = writeln!(out, "  {:<10}{}, {} bad ({share}){unclear}", "requests", tally.requests, tally.bad);
        let still = if judge.state() == State::Closed { "" } else { ", still open at the end" };
        if tally.openings == 0 {
            let _ = writeln!(out, "  {:<10}{}", "opened", "never".style(good));
        } else {
            let times = count(tally.openings, "time", "times");
            let of = percent(tally.open_ns, long);
            let line = format!("{times}, for {} in all ({of} of the time){still}", span(tally.open_ns));
            let _ = writeln!(out, "  {:<10}{}", "opened", line.style(bad));
        }
        if tally.refused() > 0 {
            let line = format!("{} ({} of the requests)", tally.refused(), percent(tally.refused(), tally.requests));
            let _ = writeln!(out, "  {:<10}{}", "refused", line.style(bad));
            let unclear = if tally.refused_unclear > 0 {
                format!(", {} say nothing", tally.refused_unclear)
            } else {
                String::new()
            };
            let _ = writeln!(
                out,
                "  {:<10}{} had gone well by the record, refused needlessly; {} were bad anyway{unclear}",
                "", tally.refused_good, tally.refused_bad
            );
        }
        if tally.probes > 0 {
            let _ = writeln!(out, "  {:<10}{}, {} failed", "probes", tally.probes, tally.probes_failed);
        }
        for opening in judge.openings.iter().take(PRINTED) {
            let measure = if is_ratio(judge) {
                let ratio = f64::from(opening.bad) / f64::from(opening.total.max(1));
                format!(" = {ratio:.2}")
            } else {
                String::new()
            };
            let closed = match opening.closed_ns {
                Some(at) => format!("closed {} after {}", moment(at), span(at.saturating_sub(opening.at_ns))),
                None => "not closed before the end".into(),
            };
            let probes = count(opening.failed_probes, "probe", "probes");
            let _ = writeln!(
                out,
                "  {} {}  {} bad of {}{measure}; {probes} failed, {} refused, {closed}",
                "▲".style(bad),
                moment(opening.at_ns),
                opening.bad,
                opening.total,
                opening.refused
            );
        }
        if tally.openings > u64::try_from(PRINTED).unwrap_or(0) {
            let more = tally.openings.saturating_sub(u64::try_from(PRINTED).unwrap_or(0));
            let _ = writeln!(out, "  … {more} more; --json has up to 1000");
        }
        out += &what_if(replay, place, judge, head);
    }
    out
}

/// How the same breaker would have done with other thresholds.
fn what_if(replay: &Replay, place: usize, judge: &Judge, head: Style) -> String {
    let mut rows: Vec<(f64, f64, &Judge)> = replay
        .variations()
        .filter(|variation| variation.of == place)
        .filter_map(|variation| variation.judge().map(|judge| (threshold(judge), variation.factor, judge)))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    rows.push((threshold(judge), 1.0, judge));
    rows.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
    let columns = format!(
        "  {:>10} {:>8} {:>10} {:>10} {:>12} {:>12}",
        "what if", "opened", "open", "refused", "needlessly", "bad anyway"
    );
    let mut out = format!("{}\n", columns.style(head));
    for (threshold, factor, judge) in rows {
        let tally = &judge.tally;
        let mark = if (factor - 1.0).abs() < 1e-9 { "  ← the rule" } else { "" };
        let _ = writeln!(
            out,
            "  {:>10} {:>8} {:>10} {:>10} {:>12} {:>12}{mark}",
            format!("≥ {}", trimmed(threshold, 3)),
            tally.openings,
            span(tally.open_ns),
            tally.refused(),
            tally.refused_good,
            tally.refused_bad
        );
    }
    out
}

/// What did not count: how many, what they are with the cure, and some of them.
fn problems(replay: &Replay) -> Vec<(u64, String, Vec<String>)> {
    let seen = &replay.seen;
    let mut all = Vec::new();
    let at = |numbers: &[u64]| {
        let numbers: Vec<_> = numbers.iter().map(u64::to_string).collect();
        if numbers.is_empty() { vec![] } else { vec![format!("line {}", numbers.join(", "))] }
    };
    if seen.unread > 0 {
        let about = seen.unread_first.iter().map(|(number, why)| format!("line {number} {why}")).collect();
        all.push((seen.unread, "lines could not be read".into(), about));
    }
    if seen.misplaced > 0 {
        let what = "requests were over before the one before them in the log began, or are of another time, and do not \
                    count: sort the log by time, or give a longer --look-ahead";
        all.push((seen.misplaced, what.into(), at(&seen.misplaced_first)));
    }
    if seen.late > 0 {
        let what = "requests took longer than --look-ahead: what was half open when they began counts as open to them";
        all.push((seen.late, what.into(), vec![]));
    }
    if seen.unfinished > 0 {
        all.push((
            seen.unfinished,
            "requests would end more than an hour after the log, and are left open".into(),
            vec![],
        ));
    }
    if seen.unprotected > 0 {
        let about = seen.unprotected_names.iter().map(|(name, number)| format!("{name}: {number}")).collect();
        all.push((seen.unprotected, "requests meet no rule".into(), about));
    }
    all
}

/// For programs. Times are in ns since 1970, and spans in ns.
pub fn json(replay: &Replay) -> Value {
    let seen = &replay.seen;
    let unread: Vec<_> = seen.unread_first.iter().map(|(line, why)| json!({ "line": line, "why": why })).collect();
    let breakers: Vec<_> = in_order(replay)
        .into_iter()
        .map(|(place, judge)| {
            let openings: Vec<_> = judge
                .openings
                .iter()
                .map(|opening| {
                    json!({
                        "opened_ns": opening.at_ns, "closed_ns": opening.closed_ns, "total": opening.total,
                        "bad": opening.bad, "failed_probes": opening.failed_probes, "refused": opening.refused,
                    })
                })
                .collect();
            let variations = replay.variations().filter(|variation| variation.of == place);
            let what_if: Vec<_> = variations
                .filter_map(|variation| {
                    let mut row = sums(variation.judge()?);
                    row.insert("factor".into(), variation.factor.into());
                    Some(Value::Object(row))
                })
                .collect();
            let mut row = sums(judge);
            row.insert("resource".into(), judge.resource.as_str().into());
            row.insert("rule".into(), judge.rule.id.as_str().into());
            row.insert("strategy".into(), judge.rule.strategy.name().into());
            row.insert("state".into(), judge.state().name().into());
            row.insert("limit_us".into(), judge.limit_us().into());
            row.insert("openings".into(), openings.into());
            row.insert("what_if".into(), what_if.into());
            Value::Object(row)
        })
        .collect();
    json!({
        "about": CAVEAT,
        "first_ns": seen.first_ns, "last_ns": seen.last_ns, "lines": seen.lines,
        "unread": { "count": seen.unread, "first": unread },
        "misplaced": { "count": seen.misplaced, "first": seen.misplaced_first },
        "late": seen.late, "unfinished": seen.unfinished,
        "unprotected": { "count": seen.unprotected, "names": seen.unprotected_names },
        "breakers": breakers,
    })
}

fn sums(judge: &Judge) -> Map<String, Value> {
    let tally = &judge.tally;
    let numbers = [
        ("requests", tally.requests),
        ("bad", tally.bad),
        ("unclear", tally.unclear),
        ("opened", tally.openings),
        ("open_ns", tally.open_ns),
        ("refused", tally.refused()),
        ("refused_good", tally.refused_good),
        ("refused_bad", tally.refused_bad),
        ("refused_unclear", tally.refused_unclear),
        ("probes", tally.probes),
        ("probes_failed", tally.probes_failed),
    ];
    let threshold = [("threshold".to_owned(), threshold(judge).into())];
    threshold.into_iter().chain(numbers.map(|(name, number)| (name.to_owned(), number.into()))).collect()
}
