//! The picture, by hand: a plotting library draws with fixed colours, and this shall be read on a light and on a dark page.

use std::fmt::Write as _;

use serde_json::Value;

const WIDTH: f64 = 880.0;
const PANEL: (f64, f64) = (414.0, 212.0);
const MARGIN: f64 = 16.0;
const TOP: f64 = 74.0;
/// Of the plot within its panel.
const PLOT: (f64, f64, f64, f64) = (52.0, 46.0, 400.0, 162.0);

const STYLE: &str = "\
text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.title{font-size:17px;font-weight:600}.head{font-size:13px;font-weight:600}.dim{fill:#59636e;font-size:11px}\
.page{fill:#fff}.card{fill:#f6f8fa;stroke:#d1d9e0}.grid{stroke:#d1d9e0;fill:none}.mark{stroke:#59636e;stroke-dasharray:2 3}\
.dot{fill:#59636e}.number{fill:#fff;font-size:10px;font-weight:600}.limit{stroke-width:1;stroke-dasharray:6 4;fill:none}\
.line{fill:none;stroke-width:1.8}.area{fill-opacity:.75;stroke:none}\
.f-green{fill:#2da44e}.f-red{fill:#cf222e}.f-orange{fill:#e16f24}.f-yellow{fill:#d4a72c}.f-blue{fill:#218bff}.f-purple{fill:#8250df}.f-grey{fill:#8c959f}\
.s-green{stroke:#2da44e}.s-red{stroke:#cf222e}.s-orange{stroke:#e16f24}.s-yellow{stroke:#d4a72c}.s-blue{stroke:#218bff}.s-purple{stroke:#8250df}.s-grey{stroke:#8c959f}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.dim{fill:#9198a1}.page{fill:#0d1117}.card{fill:#151b23;stroke:#2f353d}\
.grid{stroke:#2f353d}.mark{stroke:#9198a1}.dot{fill:#9198a1}.number{fill:#0d1117}}";

/// For series that the dashboard gives no colour.
const PALETTE: [&str; 6] = ["blue", "orange", "green", "purple", "yellow", "red"];

/// A moment of the story.
pub(crate) struct Marker {
    pub(crate) at: f64,
    pub(crate) words: &'static str,
}

/// A panel of the dashboard, and what its queries came to: names, and times since the story began with values.
pub(crate) struct Panel {
    json: Value,
    series: Vec<Series>,
}

type Series = (String, Vec<(f64, f64)>);

/// All of it.
pub(crate) struct Picture {
    pub(crate) panels: Vec<Panel>,
    pub(crate) markers: Vec<Marker>,
    pub(crate) length: f64,
    pub(crate) about: String,
}

impl Picture {
    /// Draws it.
    pub(crate) fn svg(&self) -> String {
        let lines = self.panels.len().div_ceil(2) as f64;
        let bottom = TOP + lines * (PANEL.1 + MARGIN);
        let height = bottom + 12.0 + 18.0 * self.markers.len().div_ceil(2) as f64;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
             role=\"img\">\n<title>The dashboard, while an upstream gets slow and recovers</title>\n<style>{STYLE}</style>\n\
             <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n"
        );
        text(
            &mut out,
            (MARGIN, 30.0),
            "title",
            "start",
            "An upstream gets slow, its breaker opens, a threshold changes, it recovers",
        );
        text(&mut out, (MARGIN, 52.0), "dim", "start", &self.about);
        for (number, panel) in self.panels.iter().enumerate() {
            let x = MARGIN + (number % 2) as f64 * (PANEL.0 + MARGIN + 4.0);
            let y = TOP + (number / 2) as f64 * (PANEL.1 + MARGIN);
            let _ = writeln!(out, "<g transform=\"translate({x} {y})\">");
            panel.draw(&mut out, self);
            out.push_str("</g>\n");
        }
        for (number, Marker { words, .. }) in self.markers.iter().enumerate() {
            let half = self.markers.len().div_ceil(2);
            let (x, y) = (
                MARGIN + 8.0 + (number / half) as f64 * (PANEL.0 + MARGIN),
                bottom + 10.0 + 18.0 * (number % half) as f64,
            );
            badge(&mut out, (x, y), number);
            text(&mut out, (x + 14.0, y + 4.0), "", "start", words);
        }
        out.push_str("</svg>\n");
        out
    }
}

impl Panel {
    pub(crate) fn new(json: &Value, series: Vec<Series>) -> Self {
        Self { json: json.clone(), series }
    }

    /// The points of the series whose name begins so.
    pub(crate) fn series<'a>(&'a self, start: &'a str) -> impl Iterator<Item = (f64, f64)> + 'a {
        self.series
            .iter()
            .filter(move |(name, _)| name.starts_with(start))
            .flat_map(|(_, points)| points.iter().copied())
    }

    fn draw(&self, out: &mut String, picture: &Picture) {
        let (left, top, right, bottom) = PLOT;
        let _ = writeln!(out, "<rect class=\"card\" width=\"{}\" height=\"{}\" rx=\"6\"/>", PANEL.0, PANEL.1);
        let x = |at: f64| left + (at / picture.length).clamp(0.0, 1.0) * (right - left);
        text(out, (12.0, 22.0), "head", "start", self.json["title"].as_str().unwrap_or_default());
        for at in (0..).map(|n| f64::from(n) * 20.0).take_while(|at| *at <= picture.length) {
            let anchor = if at < picture.length { "middle" } else { "end" };
            text(out, (x(at), bottom + 15.0), "dim", anchor, &format!("{at} s"));
        }
        match self.json["type"].as_str() {
            Some("state-timeline") => self.states(out, x),
            _ => self.curves(out, x),
        }
        let mut after = 0.0;
        for (number, Marker { at, .. }) in picture.markers.iter().enumerate() {
            let x = x(*at);
            // Two badges stand beside each other, though their moments are nearer.
            let place = x.max(after);
            after = place + 15.0;
            let _ = writeln!(out, "<path class=\"mark\" d=\"M{x:.1} {top}V{bottom}\"/>");
            badge(out, (place, top - 7.0), number);
        }
    }

    /// A strip for each series, coloured by its value as the panel says it.
    fn states(&self, out: &mut String, x: impl Fn(f64) -> f64) {
        let (left, top, right, bottom) = PLOT;
        let states = &self.json["fieldConfig"]["defaults"]["mappings"][0]["options"];
        let row = (bottom - top) / self.series.len().max(1) as f64;
        for (number, (name, points)) in self.series.iter().enumerate() {
            let y = top + row * number as f64;
            text(out, (left - 40.0, y + 14.0), "dim", "start", name);
            let mut points = points.iter().peekable();
            while let Some((from, value)) = points.next() {
                let mut to = *from;
                while let Some((next, _)) = points.next_if(|(_, next)| next == value) {
                    to = *next;
                }
                to = points.peek().map_or(to, |(next, _)| *next);
                let colour = states[format!("{value}")]["color"].as_str().unwrap_or("grey");
                let (from, to) = (x(*from), x(to));
                let _ = writeln!(
                    out,
                    "<rect class=\"f-{colour}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                    y + 18.0,
                    (to - from).min(right - from),
                    row - 24.0
                );
            }
        }
        let state = |value: &str| {
            let of = |key: &str| states[value][key].as_str().unwrap_or_default().to_owned();
            (of("text"), of("color"))
        };
        legend(out, ["0", "1", "2"].map(state).iter());
    }

    fn curves(&self, out: &mut String, x: impl Fn(f64) -> f64) {
        let (left, top, right, bottom) = PLOT;
        let custom = &self.json["fieldConfig"]["defaults"]["custom"];
        let stacked = custom["stacking"]["mode"] == "normal";
        let steps = custom["lineInterpolation"] == "stepAfter";
        let logarithmic = custom["scaleDistribution"]["type"] == "symlog";
        let times: Vec<f64> = {
            let mut all: Vec<f64> =
                self.series.iter().flat_map(|(_, points)| points.iter().map(|point| point.0)).collect();
            all.sort_by(f64::total_cmp);
            all.dedup();
            all
        };
        let value = |points: &[(f64, f64)], at: f64| points.iter().find(|point| point.0 == at).map(|point| point.1);
        let sum = |at: f64| self.series.iter().filter_map(|(_, points)| value(points, at)).sum::<f64>();
        let most = match stacked {
            true => times.iter().map(|at| sum(*at)).fold(0.0, f64::max),
            false => self.series.iter().flat_map(|(_, points)| points).map(|point| point.1).fold(0.0, f64::max),
        };
        let scale = |value: f64| if logarithmic { (1.0 + value).log10() } else { value };
        let ticks = if logarithmic { vec![0.0, 1.0, 10.0, 100.0, 1000.0] } else { ticks(most, steps) };
        let top_value = scale(ticks.iter().copied().find(|tick| *tick >= most).unwrap_or(most)).max(f64::MIN_POSITIVE);
        let y = |value: f64| bottom - scale(value) / top_value * (bottom - top - 4.0);
        for tick in ticks.iter().filter(|tick| scale(**tick) <= top_value) {
            let _ = writeln!(out, "<path class=\"grid\" d=\"M{left} {:.1}H{right}\"/>", y(*tick));
            text(out, (left - 6.0, y(*tick) + 4.0), "dim", "end", &self.written(*tick));
        }
        if custom["thresholdsStyle"]["mode"] == "dashed" {
            for step in self.json["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array().into_iter().flatten() {
                if let (Some(limit), Some(colour)) = (step["value"].as_f64(), step["color"].as_str()) {
                    let _ = writeln!(out, "<path class=\"limit s-{colour}\" d=\"M{left} {:.1}H{right}\"/>", y(limit));
                }
            }
        }
        let mut below: Vec<f64> = vec![0.0; times.len()];
        let mut names = Vec::new();
        for (number, (name, points)) in self.series.iter().enumerate() {
            let colour = self.colour(name, number);
            names.push((name.clone(), colour.clone()));
            let mut path = String::new();
            if stacked {
                let above: Vec<f64> = times
                    .iter()
                    .zip(&below)
                    .map(|(at, below)| below + value(points, *at).unwrap_or_default())
                    .collect();
                let up = times.iter().zip(&above).map(|(at, value)| (x(*at), y(*value)));
                let down = times.iter().zip(&below).rev().map(|(at, value)| (x(*at), y(*value)));
                for (n, (x, y)) in up.chain(down).enumerate() {
                    let _ = write!(path, "{}{x:.1} {y:.1}", if n == 0 { 'M' } else { 'L' });
                }
                let _ = writeln!(out, "<path class=\"area f-{colour}\" d=\"{path}Z\"/>");
                below = above;
            } else {
                for (n, (at, value)) in points.iter().enumerate() {
                    let (x, y) = (x(*at), y(*value));
                    let _ = match (n, steps) {
                        (0, _) => write!(path, "M{x:.1} {y:.1}"),
                        (_, true) => write!(path, "H{x:.1}V{y:.1}"),
                        (_, false) => write!(path, "L{x:.1} {y:.1}"),
                    };
                }
                let _ = writeln!(out, "<path class=\"line s-{colour}\" d=\"{path}\"/>");
            }
        }
        legend(out, names.iter());
    }

    /// The dashboard's own colour, or the next.
    fn colour(&self, name: &str, number: usize) -> String {
        let overrides = self.json["fieldConfig"]["overrides"].as_array().map(Vec::as_slice).unwrap_or_default();
        let fits = |one: &&Value| {
            let start =
                one["matcher"]["options"].as_str().unwrap_or_default().trim_matches('/').trim_start_matches('^');
            name.starts_with(start)
        };
        let own = overrides.iter().find(fits).and_then(|one| one["properties"][0]["value"]["fixedColor"].as_str());
        let own = own.map(|colour| if colour.starts_with('#') { "grey" } else { colour });
        own.unwrap_or(PALETTE[number % PALETTE.len()]).to_owned()
    }

    /// A value in the panel's unit.
    fn written(&self, value: f64) -> String {
        match self.json["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default() {
            "reqps" | "ops" => format!("{value}/s"),
            "s" => format!("{:.0} ms", value * 1e3),
            unit => format!("{value}{}", unit.strip_prefix("suffix:").unwrap_or_default()),
        }
    }
}

/// From 0 on, at a round distance, three to five of them.
fn ticks(most: f64, whole: bool) -> Vec<f64> {
    let mut step = if whole { 1.0 } else { 10.0_f64.powf((most.max(1e-9) / 10.0).log10().floor()) };
    for factor in [2.0, 2.5, 2.0].into_iter().cycle() {
        if most / step <= 4.0 {
            break;
        }
        step *= factor;
    }
    let count = (most / step).ceil() as u32;
    // Without what is not exact in the last digits.
    (0..=count).map(|n| (f64::from(n) * step * 1e6).round() / 1e6).collect()
}

fn badge(out: &mut String, (x, y): (f64, f64), number: usize) {
    let _ = writeln!(out, "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6.5\"/>");
    text(out, (x, y + 3.6), "number", "middle", &(number + 1).to_string());
}

fn legend<'a>(out: &mut String, entries: impl Iterator<Item = &'a (String, String)>) {
    let mut x = 12.0;
    for (name, colour) in entries {
        let y = PANEL.1 - 20.0;
        let _ =
            writeln!(out, "<rect class=\"f-{colour}\" x=\"{x:.1}\" y=\"{y}\" width=\"10\" height=\"10\" rx=\"2\"/>");
        text(out, (x + 15.0, y + 9.5), "dim", "start", name);
        x += 34.0 + 6.2 * name.chars().count() as f64;
    }
}

fn text(out: &mut String, (x, y): (f64, f64), class: &str, anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_strip_as_long_as_it_lasts_and_a_name_is_no_markup() {
        let state = |text: &str, color: &str| serde_json::json!({ "text": text, "color": color });
        let states = serde_json::json!({ "0": state("closed", "green"), "2": state("open", "red") });
        let mappings = serde_json::json!([{ "options": states }]);
        let json = serde_json::json!({
            "title": "A", "type": "state-timeline", "fieldConfig": { "defaults": { "mappings": mappings } },
        });
        let points = vec![(0.0, 0.0), (1.0, 0.0), (2.0, 2.0), (3.0, 2.0), (4.0, 0.0)];
        let panel = Panel::new(&json, vec![("a<b".into(), points)]);
        assert_eq!(panel.series("a").filter(|(_, state)| *state == 2.0).count(), 2);
        let picture = Picture { panels: vec![panel], markers: Vec::new(), length: 4.0, about: String::new() };
        let drawn = picture.svg();
        assert!(drawn.contains(">a&lt;b</text>"), "{drawn}");
        // Two strips closed and one open, and the legend; half of the time is 174 wide.
        assert_eq!(
            (drawn.matches("<rect class=\"f-green\"").count(), drawn.matches("<rect class=\"f-red\"").count()),
            (3, 2)
        );
        assert!(drawn.contains("<rect class=\"f-red\" x=\"226.0\" y=\"64.0\" width=\"174.0\""), "{drawn}");
    }

    #[test]
    fn lines_stand_at_round_values_and_reach_over_the_highest() {
        assert_eq!(ticks(43.0, false), [0.0, 20.0, 40.0, 60.0]);
        assert_eq!(ticks(0.23, false), [0.0, 0.1, 0.2, 0.3]);
        assert_eq!(ticks(2.0, true), [0.0, 1.0, 2.0]);
    }
}
