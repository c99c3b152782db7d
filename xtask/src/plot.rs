//! The picture of the benchmarks: bars with their intervals, in groups.
//!
//! Written by hand, because a plotting library draws with fixed colours, and this shall be read on a light and on a dark
//! page alike: it has classes, a style for either, and a background of its own for who knows of neither.

use std::fmt::Write as _;

use crate::benchmarks::{Estimate, Requests, Results, Row, origin, span};

const WIDTH: f64 = 860.0;
/// Names stand right of here, bars begin at [`LEFT`].
const MARGIN: f64 = 20.0;
const LEFT: f64 = 300.0;
/// Where the longest bar ends; its figures stand behind it.
const RIGHT: f64 = 690.0;
const TOP: f64 = 90.0;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
const HEAD: f64 = 34.0;

const STYLE: &str = "\
text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.title{font-size:17px;font-weight:600}.head{font-size:14px;font-weight:600}.dim{fill:#59636e}\
.page{fill:#fff}.grid{stroke:#d1d9e0}.zero{stroke:#59636e}.ours{fill:#0969da}.other{fill:#afb8c1}\
.span{stroke:#1f2328;stroke-width:1.5;fill:none}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.dim{fill:#9198a1}.page{fill:#0d1117}.grid{stroke:#2f353d}\
.zero{stroke:#9198a1}.ours{fill:#388bfd}.other{fill:#545d68}.span{stroke:#f0f6fc}}";

/// Draws the arms that are wanted; the twin comes first.
pub(crate) fn bars(results: &Results, wanted: impl Fn(&Row) -> bool) -> String {
    let Requests { bare, twin, rows, .. } = &results.requests;
    let mut groups: Vec<(&str, Vec<Bar<'_>>)> = vec![(
        "the measurement itself",
        vec![Bar { name: "no filter, again", cost: *twin, note: span(*twin, 2), ours: false }],
    )];
    for row in rows.iter().filter(|row| wanted(row)) {
        match groups.last_mut() {
            Some((group, bars)) if *group == row.group => bars.push(Bar::of(row)),
            _ => groups.push((&row.group, vec![Bar::of(row)])),
        }
    }
    let costs = || groups.iter().flat_map(|(_, bars)| bars).map(|bar| bar.cost);
    let least = costs().map(|cost| cost.low).fold(0.0, f64::min);
    let most = costs().map(|cost| cost.high).fold(f64::MIN_POSITIVE, f64::max);
    let x = |cost: f64| LEFT + (cost - least) / (most - least) * (RIGHT - LEFT);

    let mut body = String::new();
    let mut y = TOP;
    for (group, bars) in &groups {
        y += HEAD;
        text(&mut body, MARGIN, y - 10.0, "head", "start", group);
        for bar in bars {
            bar.draw(&mut body, y, &x);
            y += ROW;
        }
    }
    let bottom = y + 6.0;
    let height = bottom + 64.0;

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\">\n<title>What the filters cost per request</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
    );
    text(&mut out, MARGIN, 32.0, "title", "start", "Processor time that a filter adds to a request, µs");
    let whole = format!("beside the {} µs of a whole request without one", span(*bare, 2));
    text(&mut out, MARGIN, 54.0, "dim", "start", &whole);
    // Names of processors are long: it has a line of its own.
    text(&mut out, MARGIN, height - 14.0, "dim", "start", origin(results).trim_end());
    legend(&mut out);
    // At most ten lines, at a round distance.
    let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];
    let step = step.into_iter().find(|step| most / step <= 10.0).unwrap_or(most);
    let mut at = 0.0;
    while at <= most {
        let (class, x) = (if at == 0.0 { "zero" } else { "grid" }, x(at));
        let _ = writeln!(out, "<path class=\"{class}\" d=\"M{x:.1} {TOP}V{bottom:.1}\"/>");
        text(&mut out, x, bottom + 18.0, "dim", "middle", &format!("{}", (at * 10.0).round() / 10.0));
        at += step;
    }
    out.push_str(&body);
    out.push_str("</svg>\n");
    out
}

struct Bar<'a> {
    name: &'a str,
    cost: Estimate,
    note: String,
    ours: bool,
}

impl<'a> Bar<'a> {
    fn of(Row { name, cost, ratio, ours, .. }: &'a Row) -> Self {
        let ratio = ratio.as_ref().map_or_else(String::new, |(_, ratio)| format!("  ({:.2} ×)", ratio.median));
        Self { name, cost: *cost, note: format!("{:.2}{ratio}", cost.median), ours: *ours }
    }

    fn draw(&self, out: &mut String, y: f64, x: &impl Fn(f64) -> f64) {
        let Estimate { median, low, high } = self.cost;
        let (middle, half) = (y + BAR / 2.0, BAR / 4.0);
        text(out, LEFT - 12.0, middle + 4.5, if self.ours { "" } else { "dim" }, "end", self.name);
        let (from, to) = (x(median.min(0.0)), x(median.max(0.0)));
        let class = if self.ours { "ours" } else { "other" };
        let _ = writeln!(
            out,
            "<rect class=\"{class}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\"/>",
            to - from
        );
        let (low, high) = (x(low), x(high));
        let (up, down) = (middle - half, middle + half);
        let _ = writeln!(
            out,
            "<path class=\"span\" d=\"M{low:.1} {up:.1}V{down:.1}M{low:.1} {middle:.1}H{high:.1}M{high:.1} {up:.1}V{down:.1}\"/>"
        );
        text(out, high + 8.0, middle + 4.5, "", "start", &self.note);
    }
}

fn legend(out: &mut String) {
    let mut x = MARGIN;
    for (class, words, width) in [("ours", "this project", 120.0), ("other", "beside it", 100.0)] {
        let _ = writeln!(out, "<rect class=\"{class}\" x=\"{x}\" y=\"68\" width=\"12\" height=\"12\"/>");
        text(out, x + 18.0, 79.0, "dim", "start", words);
        x += width;
    }
    let _ = writeln!(out, "<path class=\"span\" d=\"M{x} 70V78M{x} 74H{0}M{0} 70V78\"/>", x + 16.0);
    text(out, x + 24.0, 79.0, "dim", "start", "99 % interval");
    text(out, x + 130.0, 79.0, "dim", "start", "(0.5 ×) as a ratio to what it is compared with");
}

fn text(out: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arm_has_a_bar_and_a_text_is_no_markup() {
        let estimate = |median: f64| serde_json::json!({ "median": median, "low": median - 0.5, "high": median + 0.5 });
        let row = |name: &str, ours: bool| {
            serde_json::json!({
                "group": "g", "name": name, "cost": estimate(3.0), "ratio": ["a", estimate(1.5)], "goal": null,
                "ours": ours,
            })
        };
        let results = serde_json::json!({
            "machine": {
                "date": "today", "cpu": "A&B", "cores": 1, "memory_gib": 1.0, "kernel": "k", "rust": "r", "modules": "m",
            },
            "requests": {
                "envoy": "1", "settings": { "rounds": 1, "batch": 1, "seed": 1 }, "headers": 1, "bare": estimate(20.0),
                "twin": estimate(0.0), "rows": [row("a<b", true), row("c", false)],
            },
            "modules": [],
        });
        let results: Results = serde_json::from_value(results).unwrap();
        let picture = bars(&results, |_| true);
        assert!(picture.contains(">a&lt;b</text>") && picture.contains("A&amp;B.</text>"), "{picture}");
        // One each for the twin and the legend.
        assert_eq!(picture.matches("class=\"ours\"").count(), 2);
        assert_eq!(picture.matches("class=\"other\"").count(), 3);
        assert_eq!(picture.matches("class=\"span\"").count(), 4);
        assert!(picture.contains("3.00  (1.50 ×)</text>"));
        assert!(!bars(&results, |row| row.name != "c").contains(">c</text>"));
    }
}
