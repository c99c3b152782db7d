//! Lines of an access log: what they say of requests.

use crate::ending::{self, Outcome, Said};
use crate::template::{ENVOY, Field, ISTIO, Template};
use anyhow::{Result, bail};
use circuit_breaker::config::{Config, Failures, Settings};
use circuit_breaker::moment;
use serde_json::{Map, Value};
use std::io::{self, BufRead, ErrorKind};

/// Of a longer line the rest is not read.
pub const LONGEST: usize = 1 << 20;
/// A year: what takes longer is no duration of a request.
const LONGEST_US: f64 = 365.0 * 86_400e6;

/// What a line says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// When the request began.
    pub begin_ns: u64,
    /// How long it took.
    pub rt_us: u64,
    /// What it says of the upstream.
    pub outcome: Option<Outcome>,
    /// What it may be called by.
    pub cluster: Option<String>,
    /// The authority.
    pub host: Option<String>,
    /// The route's name.
    pub route: Option<String>,
    /// The method.
    pub method: Option<String>,
    /// The path.
    pub path: Option<String>,
    /// Fields that were asked for by their names, in the order in which they were.
    pub named: Vec<Option<String>>,
}

impl Line {
    /// When it ended.
    pub fn end_ns(&self) -> u64 {
        self.begin_ns.saturating_add(self.rt_us.saturating_mul(1000))
    }
}

/// How lines are written.
#[derive(Clone, Debug)]
pub enum Form {
    /// JSON, or Envoy's or Istio's text: each line as it is.
    Any,
    /// JSON.
    Json,
    /// Text.
    Text(Box<Template>),
}

impl Form {
    /// `auto`, `json`, `envoy`, `istio`, or a format string.
    ///
    /// # Errors
    /// What is wrong with the format string.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "auto" => Self::Any,
            "json" => Self::Json,
            "envoy" => Self::Text(Box::new(Template::parse(ENVOY)?)),
            "istio" => Self::Text(Box::new(Template::parse(ISTIO)?)),
            _ => Self::Text(Box::new(Template::parse(text)?)),
        })
    }
}

/// Of a number that stands for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Nano,
    Micro,
    Milli,
    Second,
}

impl Unit {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "ns" => Self::Nano,
            "us" | "µs" => Self::Micro,
            "ms" => Self::Milli,
            "s" => Self::Second,
            _ => return None,
        })
    }

    fn us(self) -> f64 {
        match self {
            Self::Nano => 1e-3,
            Self::Micro => 1.0,
            Self::Milli => 1e3,
            Self::Second => 1e6,
        }
    }
}

/// Under which names JSON has what: the first one that is there counts.
const NAMES: [(Field, &str, Option<Unit>); 33] = [
    (Field::Start, "start_time", None),
    (Field::Start, "start_time_ns", Some(Unit::Nano)),
    (Field::Start, "start", None),
    (Field::Start, "timestamp", None),
    (Field::Start, "@timestamp", None),
    (Field::Start, "time", None),
    (Field::Start, "ts", None),
    (Field::Duration, "duration", Some(Unit::Milli)),
    (Field::Duration, "duration_ms", Some(Unit::Milli)),
    (Field::Duration, "duration_us", Some(Unit::Micro)),
    (Field::Duration, "latency.total_us", Some(Unit::Micro)),
    (Field::Duration, "total_us", Some(Unit::Micro)),
    (Field::Duration, "total", Some(Unit::Micro)),
    (Field::Status, "response_code", None),
    (Field::Status, "status", None),
    (Field::Status, "status_code", None),
    (Field::Status, "code", None),
    (Field::Flags, "response_flags", None),
    (Field::Flags, "flags", None),
    (Field::Details, "response_code_details", None),
    (Field::Details, "details", None),
    (Field::Grpc, "grpc_status", None),
    (Field::Grpc, "grpc_status_number", None),
    (Field::Cluster, "upstream_cluster", None),
    (Field::Cluster, "upstream_cluster_raw", None),
    (Field::Cluster, "cluster", None),
    (Field::Host, "authority", None),
    (Field::Host, "host", None),
    (Field::Route, "route_name", None),
    (Field::Route, "route", None),
    (Field::Method, "method", None),
    (Field::Path, "path", None),
    (Field::Path, "x_envoy_original_path", None),
];

/// Makes sense of lines.
#[derive(Debug)]
pub struct Reader {
    form: Form,
    envoy: Template,
    istio: Template,
    names: Vec<(Field, String, Option<Unit>)>,
    wanted: Vec<String>,
    failures: Failures,
}

impl Reader {
    /// For lines of this form. `fields` are names of JSON fields in place of the usual ones, such as `duration=took` or
    /// `duration=took:us`; `wanted` are JSON fields that are looked up as they are; `errors` are statuses that are errors,
    /// none for the usual 5xx.
    ///
    /// # Errors
    /// What is wrong with the names or the statuses.
    pub fn new(form: Form, fields: &[String], wanted: Vec<String>, errors: &[String]) -> Result<Self> {
        let mut names: Vec<_> = NAMES.iter().map(|(field, name, unit)| (*field, (*name).to_owned(), *unit)).collect();
        for text in fields {
            let Some((what, name)) = text.split_once('=').filter(|(_, name)| !name.is_empty()) else {
                bail!("--field {text}: give <what>=<name>, such as duration=took");
            };
            let field = match what {
                "start_time" => Field::Start,
                "duration" => Field::Duration,
                "response_code" => Field::Status,
                "response_flags" => Field::Flags,
                "response_code_details" => Field::Details,
                "grpc_status" => Field::Grpc,
                "upstream_cluster" => Field::Cluster,
                "authority" => Field::Host,
                "route_name" => Field::Route,
                "method" => Field::Method,
                "path" => Field::Path,
                _ => bail!(
                    "--field {text}: {what} is not known, give one of start_time, duration, response_code, \
                     response_flags, response_code_details, grpc_status, upstream_cluster, authority, route_name, \
                     method, path"
                ),
            };
            let with_unit = name.rsplit_once(':').and_then(|(name, unit)| Some((name, Unit::of(unit)?)));
            let (name, unit) = with_unit.map_or((name, None), |(name, unit)| (name, Some(unit)));
            let usual = (field == Field::Duration).then_some(Unit::Milli);
            names.retain(|(of, ..)| *of != field);
            names.push((field, name.to_owned(), unit.or(usual)));
        }
        let mut config = Config::default();
        if !errors.is_empty() {
            let status = Value::from(errors.to_vec());
            let text = serde_json::json!({ "errors": { "status": status } }).to_string();
            config = kit::config::parse(text.as_bytes())?;
        }
        let failures = Settings::new(config)?.failures;
        let (envoy, istio) = (Template::parse(ENVOY)?, Template::parse(ISTIO)?);
        Ok(Self { form, envoy, istio, names, wanted, failures })
    }

    /// What a line says, or why it says nothing.
    ///
    /// # Errors
    /// In a few words, to stand behind a line's number.
    pub fn read(&self, line: &[u8]) -> Result<Line, String> {
        let text = str::from_utf8(line).map_err(|_| "is not UTF-8")?.trim();
        match &self.form {
            Form::Json => self.json(text),
            Form::Text(template) => self.text(template, text).unwrap_or(Err("is not of this format".into())),
            Form::Any if text.starts_with('{') => self.json(text),
            Form::Any => self
                .text(&self.istio, text)
                .or_else(|| self.text(&self.envoy, text))
                .unwrap_or(Err("is neither JSON nor Envoy's or Istio's text format".into())),
        }
    }

    fn json(&self, text: &str) -> Result<Line, String> {
        let tree: Map<String, Value> = serde_json::from_str(text).map_err(|wrong| {
            if wrong.is_data() {
                "is JSON, but no object".into()
            } else {
                format!("is no JSON: column {}", wrong.column())
            }
        })?;
        let mut raw = Raw::default();
        for (field, name, unit) in &self.names {
            if !raw.has(*field)
                && let Some(value) = find(&tree, name)
                && let Some(text) = text_of(value)
            {
                raw.put(*field, text, *unit);
            }
        }
        let mut line = self.line(&raw)?;
        line.named = self.wanted.iter().map(|name| find(&tree, name).and_then(text_of)).collect();
        Ok(line)
    }

    /// None where the line is of another form.
    fn text(&self, template: &Template, text: &str) -> Option<Result<Line, String>> {
        let mut raw = Raw::default();
        template.read(text, |field, value| raw.put(field, value.to_owned(), None)).then(|| self.line(&raw))
    }

    fn line(&self, raw: &Raw) -> Result<Line, String> {
        let (start, start_unit) = raw.get(Field::Start).ok_or("does not say when the request began (start_time)")?;
        let begin_ns = time(start, start_unit).ok_or_else(|| format!("has no time in {}", shown(start)))?;
        let (duration, unit) = raw.get(Field::Duration).ok_or("does not say how long the request took (duration)")?;
        let rt_us = span(duration, unit).ok_or_else(|| format!("has no duration in {}", shown(duration)))?;
        let grpc = raw.text(Field::Grpc).and_then(ending::grpc);
        let status = match raw.text(Field::Status) {
            Some(text) => text.parse().map_err(|_| format!("has no status in {}", shown(text)))?,
            None if grpc.is_some() => 200,
            None => return Err("does not say how it ended (response_code)".into()),
        };
        let (flags, details) = (raw.text(Field::Flags), raw.text(Field::Details));
        let said = Said { status, flags: flags.unwrap_or_default(), details: details.unwrap_or_default(), grpc };
        let own = |field| raw.text(field).map(str::to_owned);
        Ok(Line {
            begin_ns,
            rt_us,
            outcome: Some(ending::of(&said, &self.failures)),
            cluster: own(Field::Cluster),
            host: own(Field::Host),
            route: own(Field::Route),
            method: own(Field::Method),
            path: own(Field::Path),
            named: vec![None; self.wanted.len()],
        })
    }
}

/// Values as they stand in the line; those that are not there, or a dash, are left out.
#[derive(Default)]
struct Raw(Vec<(Field, String, Option<Unit>)>);

impl Raw {
    fn put(&mut self, field: Field, text: String, unit: Option<Unit>) {
        if !text.is_empty() && text != "-" {
            self.0.push((field, text, unit));
        }
    }

    fn has(&self, field: Field) -> bool {
        self.0.iter().any(|(of, ..)| *of == field)
    }

    fn get(&self, field: Field) -> Option<(&str, Option<Unit>)> {
        self.0.iter().find(|(of, ..)| *of == field).map(|(_, text, unit)| (text.as_str(), *unit))
    }

    fn text(&self, field: Field) -> Option<&str> {
        self.get(field).map(|(text, _)| text)
    }
}

/// The value of that name, or what the name leads to by its dots.
fn find<'t>(tree: &'t Map<String, Value>, name: &str) -> Option<&'t Value> {
    if let Some(value) = tree.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(tree.get(first)?.as_object()?, rest)
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// What stands in a message, short and on one line.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("{short:?}")
}

/// RFC 3339, or a number since 1970 whose unit its size tells: seconds until the year 5138, and so on.
fn time(text: &str, unit: Option<Unit>) -> Option<u64> {
    if let Some(ns) = moment::read(text) {
        return Some(ns);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let number: u64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let unit = unit.unwrap_or(match number {
        0..100_000_000_000 => Unit::Second,
        100_000_000_000..100_000_000_000_000 => Unit::Milli,
        100_000_000_000_000..100_000_000_000_000_000 => Unit::Micro,
        _ => Unit::Nano,
    });
    let digits = match unit {
        Unit::Second => 9,
        Unit::Milli => 6,
        Unit::Micro => 3,
        Unit::Nano => 0,
    };
    let fraction: u64 = format!("{:0<digits$}", fraction.get(..digits).unwrap_or(fraction)).parse().unwrap_or(0);
    number.checked_mul(10_u64.checked_pow(u32::try_from(digits).ok()?)?)?.checked_add(fraction)
}

/// A number, or one with a unit behind it: `17`, `0.4`, `17ms`, `0.2s`. Microseconds.
fn span(text: &str, unit: Option<Unit>) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, own) = text.split_at_checked(end)?;
    let unit = if own.is_empty() { unit.unwrap_or(Unit::Milli) } else { Unit::of(own.trim())? };
    let us = number.parse::<f64>().ok()? * unit.us();
    if !(0.0..=LONGEST_US).contains(&us) {
        return None;
    }
    format!("{us:.0}").parse().ok()
}

/// Reads lines of any length, and holds [`LONGEST`] bytes of one.
#[derive(Debug)]
pub struct Lines<I> {
    input: I,
    held: Vec<u8>,
    bytes: u64,
}

impl<I: BufRead> Lines<I> {
    /// From a log.
    pub fn new(input: I) -> Self {
        Self { input, held: Vec::new(), bytes: 0 }
    }

    /// How much was read.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line, without its end; none at the end of all.
    ///
    /// # Errors
    /// What reading came to.
    pub fn read(&mut self) -> io::Result<Option<&[u8]>> {
        self.held.clear();
        let (mut any, mut ended) = (false, false);
        while !ended {
            let part = match self.input.fill_buf() {
                Ok(part) => part,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if part.is_empty() {
                return Ok(any.then_some(&self.held));
            }
            any = true;
            let end = memchr::memchr(b'\n', part);
            ended = end.is_some();
            let text = part.get(..end.unwrap_or(part.len())).unwrap_or(part);
            let room = LONGEST.saturating_sub(self.held.len());
            self.held.extend_from_slice(text.get(..room).unwrap_or(text));
            let taken = end.map_or(part.len(), |end| end.saturating_add(1));
            self.input.consume(taken);
            self.bytes = self.bytes.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
        }
        Ok(Some(&self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NS: u64 = 1_767_225_600_250_000_000;

    fn reader(fields: &[&str]) -> Reader {
        let fields: Vec<_> = fields.iter().map(|field| (*field).to_owned()).collect();
        Reader::new(Form::Any, &fields, vec!["tenant".into()], &[]).unwrap()
    }

    #[test]
    fn times_and_spans() {
        for text in
            ["2026-01-01T00:00:00.250Z", "1767225600.25", "1767225600250", "1767225600250000", "1767225600250000000"]
        {
            assert_eq!(time(text, None), Some(NS), "{text}");
        }
        assert_eq!(time("1767225600250", Some(Unit::Nano)), Some(1_767_225_600_250));
        for text in ["", "-", "now", "-5", "1767225600.x", "99999999999999999999"] {
            assert_eq!(time(text, None), None, "{text}");
        }
        for (text, us) in
            [("17", 17_000), ("0.4", 400), ("17ms", 17_000), ("0.2s", 200_000), ("5 us", 5), ("900µs", 900)]
        {
            assert_eq!(span(text, None), Some(us), "{text}");
        }
        assert_eq!(span("17", Some(Unit::Micro)), Some(17));
        for text in ["", "-", "-1", "1e9", "31536000001", "17 parsecs", "1.2.3"] {
            assert_eq!(span(text, None), None, "{text}");
        }
    }

    #[test]
    fn json_by_usual_names_and_by_ones_own() {
        let expected = Line {
            begin_ns: NS,
            rt_us: 17_000,
            outcome: Some(Outcome::Success),
            cluster: Some("pay".into()),
            named: vec![None],
            ..Line::default()
        };
        for text in [
            r#"{"start_time":"2026-01-01T00:00:00.250Z","duration":17,"response_code":200,"upstream_cluster":"pay"}"#,
            r#"{"start_time":1767225600250,"duration":"17","response_code":"200","upstream_cluster":"pay","response_flags":"-"}"#,
            r#"{"@timestamp":"2026-01-01T00:00:00.250Z","duration_us":17000,"status":200,"cluster":"pay","route":null}"#,
            r#"{"start":"1767225600250000000","latency":{"total_us":17000},"status":200,"cluster":"pay"}"#,
            r#"{"ts":1767225600.25,"latency.total_us":17000,"status":200,"cluster":"pay"}"#,
        ] {
            assert_eq!(reader(&[]).read(text.as_bytes()), Ok(expected.clone()), "{text}");
        }
        let text = r#"{"when":1767225600250000,"took":17000,"s":503,"up":{"name":"pay"},"tenant":"acme"}"#;
        let own = reader(&["start_time=when", "duration=took:us", "response_code=s", "upstream_cluster=up.name"]);
        let failed = Line { outcome: Some(Outcome::Error), named: vec![Some("acme".into())], ..expected };
        assert_eq!(own.read(text.as_bytes()), Ok(failed));
        for wrong in ["took", "x=y", "duration="] {
            assert!(Reader::new(Form::Any, &[wrong.to_owned()], vec![], &[]).is_err(), "{wrong}");
        }
        let errors = Reader::new(Form::Any, &[], vec![], &["429".into()]).unwrap();
        for (status, outcome) in [(429, Outcome::Error), (503, Outcome::Success)] {
            let text = format!(r#"{{"start":1767225600,"duration":1,"status":{status}}}"#);
            assert_eq!(errors.read(text.as_bytes()).unwrap().outcome, Some(outcome));
        }
        assert!(Reader::new(Form::Any, &[], vec![], &["many".into()]).is_err());
    }

    #[test]
    fn why_a_line_says_nothing() {
        for (line, why) in [
            (&b"\xff"[..], "is not UTF-8"),
            (b"hello", "is neither JSON nor"),
            (b"{\"a\":", "is no JSON: column 5"),
            (b"{}", "does not say when"),
            (br#"{"start":"then","duration":1,"status":200}"#, "has no time in \"then\""),
            (br#"{"start":1767225600,"status":200}"#, "does not say how long"),
            (br#"{"start":1767225600,"duration":-1,"status":200}"#, "has no duration in \"-1\""),
            (br#"{"start":1767225600,"duration":1}"#, "does not say how it ended"),
            (br#"{"start":1767225600,"duration":1,"status":"fine"}"#, "has no status in \"fine\""),
        ] {
            let said = reader(&[]).read(line).unwrap_err();
            assert!(said.starts_with(why), "{said}");
        }
        let json = Reader::new(Form::Json, &[], vec![], &[]).unwrap();
        assert_eq!(json.read(b"[]"), Err("is JSON, but no object".into()));
    }

    #[test]
    fn lines_of_any_length() {
        let long = [b"x".repeat(LONGEST + 5), b"\nlast".to_vec()].concat();
        let mut lines = Lines::new(io::BufReader::with_capacity(7, &long[..]));
        assert_eq!(lines.read().unwrap().map(<[u8]>::len), Some(LONGEST));
        assert_eq!(lines.read().unwrap(), Some(&b"last"[..]));
        assert_eq!(lines.read().unwrap(), None);
        assert_eq!(usize::try_from(lines.bytes()), Ok(long.len()));
    }
}
