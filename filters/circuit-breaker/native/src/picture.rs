//! A replay as a picture: SVG, for light and dark pages, with text that can be selected, of bounded size.

use crate::real;
use crate::replay::{Judge, Replay};
use crate::report;
use crate::timeline::{Bin, Timeline};
use circuit_breaker::board::State;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt::Write as _;

/// Breakers that are drawn: those that refused most.
const LANES: usize = 10;
/// Widths and heights.
const WIDTH: f64 = 980.0;
const LEFT: f64 = 104.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 122.0;
const HEAD: f64 = 46.0;
const RATE: f64 = 62.0;
const STRIP: f64 = 9.0;
const MEASURE: f64 = 62.0;
const GAP: f64 = 6.0;
const AXIS: f64 = 20.0;
const LANE: f64 = HEAD + RATE + GAP + STRIP + GAP + MEASURE + AXIS + 22.0;
const SECOND: f64 = 1e9;

const STYLE: &str = "text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
    .title{font-size:17px;font-weight:600}.head{font-size:14px;font-weight:600}.dim{fill:#59636e}.page{fill:#fff}\
    .grid{stroke:#d1d9e0}.zero{stroke:#59636e}.good{fill:#54aeff}.bad{fill:#cf222e}.refused{fill:#8250df}\
    .open{fill:#ffcecb;opacity:.75}.half{fill:#fae17d;opacity:.8}.measure{stroke:#1f2328;stroke-width:1.5;fill:none}\
    .threshold{stroke:#cf222e;stroke-dasharray:5 3}.limit{fill:#cf222e}\
    @media(prefers-color-scheme:dark){text{fill:#f0f6fc}.dim{fill:#9198a1}.page{fill:#0d1117}.grid{stroke:#2f353d}\
    .zero{stroke:#9198a1}.good{fill:#388bfd}.bad{fill:#f85149}.refused{fill:#ab7df8}.open{fill:#67060c}\
    .half{fill:#5e4b0b}.measure{stroke:#f0f6fc}.threshold{stroke:#ff7b72}.limit{fill:#ff7b72}}";

/// From time to place.
struct Scale {
    first_ns: u64,
    long_ns: f64,
}

impl Scale {
    fn x(&self, at_ns: u64) -> f64 {
        let since = real(at_ns.saturating_sub(self.first_ns));
        LEFT + (since / self.long_ns).clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    /// Where the grid is, and what stands there: about eight lines.
    fn ticks(&self) -> Vec<(f64, String)> {
        const STEPS: [u64; 24] = [
            1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800,
            604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000,
        ];
        let seconds = self.long_ns / SECOND;
        let step = STEPS.into_iter().find(|step| seconds / real(*step) <= 9.0).unwrap_or(315_360_000);
        let form = match step {
            0..60 => "%H:%M:%S",
            60..43_200 if seconds < 86_400.0 => "%H:%M",
            60..86_400 => "%m-%d %H:%M",
            _ => "%Y-%m-%d",
        };
        let first = (self.first_ns / 1_000_000_000).div_ceil(step).saturating_mul(step);
        let mut ticks = Vec::new();
        let mut second = first;
        while real(second) * SECOND <= real(self.first_ns) + self.long_ns && ticks.len() < 20 {
            let time = i64::try_from(second).ok().and_then(|second| Timestamp::from_second(second).ok());
            let label = time.map(|time| time.to_zoned(TimeZone::UTC).strftime(form).to_string()).unwrap_or_default();
            ticks.push((self.x(second.saturating_mul(1_000_000_000)), label));
            second = second.saturating_add(step);
        }
        ticks
    }
}

/// Draws it.
pub fn svg(replay: &Replay) -> String {
    let judges = report::in_order(replay);
    let shown = judges.get(..LANES).unwrap_or(&judges);
    let seen = &replay.seen;
    let long_ns = real(seen.last_ns.saturating_sub(seen.first_ns)).max(SECOND);
    let scale = Scale { first_ns: seen.first_ns, long_ns };
    let lanes: f64 = shown.iter().map(|_| LANE).sum();
    let height = TOP + lanes + 16.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>What circuit-breaker rules would have done</title>\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    text(&mut out, "title", 20.0, 30.0, "start", "What these rules would have done");
    let (first, last) = (report::moment(seen.first_ns), report::moment(seen.last_ns));
    let period = format!("{first} to {last}, {} lines", seen.lines);
    text(&mut out, "dim", 20.0, 50.0, "start", &period);
    let caveat =
        "Refused is what would have been, of the traffic as it was recorded: callers would have behaved otherwise.";
    text(&mut out, "dim", 20.0, 68.0, "start", caveat);
    legend(&mut out);
    let mut top = TOP;
    for (_, judge) in shown {
        lane(&mut out, judge, &scale, top);
        top += LANE;
    }
    let left_out = judges.len().saturating_sub(shown.len());
    let rest = if left_out > 0 { format!("; {left_out} more breakers are in the report") } else { String::new() };
    text(&mut out, "dim", 20.0, height - 14.0, "start", &format!("Time is UTC{rest}"));
    out + "</svg>\n"
}

fn legend(out: &mut String) {
    let mut x = 20.0;
    for (class, label) in [
        ("good", "requests that were well"),
        ("bad", "bad ones"),
        ("refused", "refused"),
        ("open", "open"),
        ("half", "half open"),
        ("measure", "ratio or count in the window, at its most"),
        ("threshold", "threshold"),
    ] {
        let _ = if matches!(class, "measure" | "threshold") {
            writeln!(out, "<path class=\"{class}\" d=\"M{x} 90h20\"/>")
        } else {
            writeln!(out, "<rect class=\"{class}\" x=\"{x}\" y=\"84\" width=\"12\" height=\"12\"/>")
        };
        let wide = if matches!(class, "measure" | "threshold") { 26.0 } else { 18.0 };
        text(out, "dim", x + wide, 94.0, "start", label);
        let letters = u32::try_from(label.len()).unwrap_or(0);
        x += wide + f64::from(letters) * 6.1 + 16.0;
    }
}

fn lane(out: &mut String, judge: &Judge, scale: &Scale, top: f64) {
    let tally = &judge.tally;
    let _ = writeln!(out, "<g class=\"lane\">");
    let name = format!("{}, rule {}", judge.resource, judge.rule.id);
    text(out, "head", 20.0, top + 16.0, "start", &name);
    let sums = format!(
        "{}: opened {}×, {} refused of {}, {} of them needlessly by the record",
        report::condition(judge),
        tally.openings,
        tally.refused(),
        tally.requests,
        tally.refused_good
    );
    text(out, "dim", 20.0, top + 34.0, "start", &sums);
    let (rate_top, rate_bottom) = (top + HEAD, top + HEAD + RATE);
    let strip_bottom = rate_bottom + GAP + STRIP;
    let (measure_top, measure_bottom) = (strip_bottom + GAP, strip_bottom + GAP + MEASURE);
    spans(out, judge, scale, rate_top, measure_bottom);
    for (x, label) in scale.ticks() {
        let _ = writeln!(out, "<path class=\"grid\" d=\"M{x:.1} {rate_top:.1}V{measure_bottom:.1}\"/>");
        text(out, "dim", x, measure_bottom + 15.0, "middle", &label);
    }
    if let Some(timeline) = &judge.timeline {
        rates(out, timeline, scale, rate_top, rate_bottom);
        let strip = |bin: &Bin| (real(bin.refused) / real(bin.total.max(bin.refused).max(1))).max(0.2);
        bars(out, "refused", timeline, scale, |bin| {
            (bin.refused > 0).then(|| (strip_bottom - strip(bin) * STRIP, strip_bottom))
        });
        text(out, "dim", LEFT - 8.0, strip_bottom, "end", "refused");
        measures(out, judge, timeline, scale, measure_top, measure_bottom);
    }
    let right = WIDTH - RIGHT;
    for y in [rate_bottom, strip_bottom, measure_bottom] {
        let _ = writeln!(out, "<path class=\"zero\" d=\"M{LEFT} {y:.1}H{right}\"/>");
    }
    out.push_str("</g>\n");
}

/// When it was not closed.
fn spans(out: &mut String, judge: &Judge, scale: &Scale, top: f64, bottom: f64) {
    for (state, class) in [(State::Open, "open"), (State::HalfOpen, "half")] {
        // What is less than a pixel from the last one is one with it.
        let mut joined: Vec<(f64, f64)> = Vec::new();
        for span in judge.spans.iter().filter(|span| span.state == state) {
            let from = scale.x(span.from_ns);
            let until = scale.x(span.until_ns).max(from + 0.7);
            match joined.last_mut() {
                Some((_, last)) if from - *last < 1.0 => *last = last.max(until),
                _ => joined.push((from, until)),
            }
        }
        if joined.is_empty() {
            continue;
        }
        let high = bottom - top;
        let _ = write!(out, "<path class=\"{class}\" d=\"");
        for (from, until) in joined {
            let _ = write!(out, "M{from:.1} {top:.1}H{until:.1}v{high:.1}H{from:.1}z");
        }
        out.push_str("\"/>\n");
    }
}

/// One path of a bar for each bin that has one, from top to bottom.
fn bars(out: &mut String, class: &str, timeline: &Timeline, scale: &Scale, high: impl Fn(&Bin) -> Option<(f64, f64)>) {
    let mut path = String::new();
    for (at_ns, bin) in timeline.bins() {
        let Some((top, bottom)) = high(bin) else { continue };
        let from = scale.x(at_ns);
        let until = scale.x(at_ns.saturating_add(timeline.width_ns())).max(from + 0.7);
        let _ = write!(path, "M{from:.1} {top:.1}H{until:.1}V{bottom:.1}H{from:.1}z");
    }
    if !path.is_empty() {
        let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"/>");
    }
}

fn rates(out: &mut String, timeline: &Timeline, scale: &Scale, top: f64, bottom: f64) {
    let most = timeline.bins().map(|(_, bin)| bin.total).max().unwrap_or(0);
    let seconds = real(timeline.width_ns()) / SECOND;
    let per_second = real(most) / seconds;
    let (unit, name) = match per_second {
        rate if rate >= 2.0 => (1.0, "s"),
        rate if rate >= 2.0 / 60.0 => (60.0, "min"),
        _ => (3600.0, "h"),
    };
    let full = nice(per_second * unit);
    let y = |number: u64| bottom - real(number) / seconds * unit / full * (bottom - top);
    bars(out, "good", timeline, scale, |bin| (bin.total > bin.bad).then(|| (y(bin.total), y(bin.bad))));
    bars(out, "bad", timeline, scale, |bin| (bin.bad > 0).then(|| (y(bin.bad), bottom)));
    text(out, "dim", LEFT - 8.0, top + 9.0, "end", &report::trimmed(full, 3));
    text(out, "dim", LEFT - 8.0, (top + bottom) / 2.0 + 4.0, "end", &format!("requests/{name}"));
    text(out, "dim", LEFT - 8.0, bottom, "end", "0");
}

fn measures(out: &mut String, judge: &Judge, timeline: &Timeline, scale: &Scale, top: f64, bottom: f64) {
    let threshold = report::threshold(judge);
    let ratio = report::is_ratio(judge);
    let most = timeline.bins().filter_map(|(_, bin)| bin.measure).fold(threshold, f64::max);
    let full = if ratio { 1.0 } else { nice(most) };
    let y = |measure: f64| bottom - (measure / full).min(1.0) * (bottom - top);
    let (mut path, mut joined) = (String::new(), false);
    for (at_ns, bin) in timeline.bins() {
        let Some(measure) = bin.measure else {
            joined = false;
            continue;
        };
        let (from, until) = (scale.x(at_ns), scale.x(at_ns.saturating_add(timeline.width_ns())));
        let _ = if joined {
            write!(path, "V{:.1}H{until:.1}", y(measure))
        } else {
            write!(path, "M{from:.1} {:.1}H{until:.1}", y(measure))
        };
        joined = true;
    }
    if !path.is_empty() {
        let _ = writeln!(out, "<path class=\"measure\" d=\"{path}\"/>");
    }
    let line = y(threshold);
    let right = WIDTH - RIGHT;
    let _ = writeln!(out, "<path class=\"threshold\" d=\"M{LEFT} {line:.1}H{right}\"/>");
    let label = format!("≥ {}", report::trimmed(threshold, 3));
    text(out, "limit", right - 4.0, if line - top < 14.0 { line + 13.0 } else { line - 4.0 }, "end", &label);
    let name = match judge.rule.strategy.name() {
        "slow_ratio" => "slow, ratio",
        "error_ratio" => "errors, ratio",
        _ => "errors",
    };
    text(out, "dim", LEFT - 8.0, top + 9.0, "end", &report::trimmed(full, 3));
    text(out, "dim", LEFT - 8.0, (top + bottom) / 2.0 + 4.0, "end", name);
    text(out, "dim", LEFT - 8.0, bottom, "end", "0");
}

/// The next number of 1, 2 and 5 with zeros that is no less.
fn nice(number: f64) -> f64 {
    let mut ten = 1e-6;
    while ten < 1e15 {
        for step in [1.0, 2.0, 5.0] {
            if step * ten >= number {
                return step * ten;
            }
        }
        ten *= 10.0;
    }
    number
}

fn text(out: &mut String, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">");
    // Names are whatever a log has; longer ones would run out of the picture.
    for c in text.chars().take(170) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // Not in XML 1.0.
            '\u{fffe}' | '\u{ffff}' => out.push('?'),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out.push_str("</text>\n");
}
