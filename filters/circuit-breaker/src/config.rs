//! What the operator says: [`Config`] as it is written, and [`Settings`] as it is used.

use crate::resource::{Kind, cluster_host, header_name};
use crate::rules::{self, HeaderMap, Item, Mode, Reject, Rejection, Rule, Word};
use kit::Refusal;
use kit::alloc::borrow::Cow;
use kit::config::{Bounded, Duration, HeaderName};
use kit::prelude::*;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of circuit-breaker. Every field may be left out.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct Config {
    /// The rules, up to 1000. With `source` those that count until it has answered.
    pub rules: Vec<Item>,
    /// Where rules are fetched from while it runs.
    pub source: Option<Source>,
    /// By what requests are called, and rules find them: `cluster`, `host`, `route`, `method`, `header:<name>`, or templates of
    /// paths such as `/users/{id}`, `/static/**` or `GET /users/{id}`, of which the first that matches counts. Up to eight kinds.
    pub resources: Vec<String>,
    /// Most resources that have a state; what is beyond is not protected, and counted.
    pub max_resources: Bounded<1, 10_000>,
    /// What rules do that say no mode of their own.
    pub mode: Mode,
    /// What an error is. Resets and timeouts always are.
    pub errors: Errors,
    /// How requests are rejected.
    pub reject: Rejection,
    /// The request header that says the rule's `fallback`, for a route to match.
    #[cfg_attr(feature = "schema", schemars(with = "HeaderName"))]
    pub fallback_header: String,
    /// The response header of rejections that says the state; empty for none.
    #[cfg_attr(feature = "schema", schemars(extend("pattern" = "^[!#$%&'*+.^_`|~0-9A-Za-z-]{0,64}$")))]
    pub state_header: Option<String>,
    /// Requests that are let through while others are rejected. The first that matches counts.
    pub classes: Vec<Class>,
    /// Paths, by their beginnings, whose requests are streams although nothing in them says so, such as `/watch`. Streams are
    /// judged by their first byte.
    pub streams: Vec<String>,
    /// How often workers bring their counts together: `10ms` to `10s`.
    pub tick: Duration,
    /// Of which requests access logs get properties.
    pub properties: Properties,
    /// Most series of this module in one worker; one more per metric, `overflow`, takes the rest. The least of what the
    /// plugins of one VM say.
    pub max_series: Bounded<10, 100_000>,
}

kit::fields!(Config {
    rules,
    source,
    resources,
    max_resources,
    mode,
    errors,
    reject,
    fallback_header,
    state_header,
    classes,
    streams,
    tick,
    properties,
    max_series
});

impl Default for Config {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            source: None,
            resources: vec!["cluster".into()],
            max_resources: Bounded::new(1000).unwrap_or(Bounded::LEAST),
            mode: Mode::Enforce,
            errors: Errors::default(),
            reject: Rejection::default(),
            fallback_header: "x-circuit-fallback".into(),
            state_header: Some("x-circuit-state".into()),
            classes: Vec::new(),
            streams: Vec::new(),
            tick: Duration::from_ms(100),
            properties: Properties::Changes,
            max_series: Bounded::new(1000).unwrap_or(Bounded::LEAST),
        }
    }
}

/// Where rules are fetched from.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline, extend("required" = ["cluster"]))
)]
pub struct Source {
    /// The cluster that serves them, as the proxy calls it: `outbound|80||rules.shop.svc.cluster.local`.
    pub cluster: String,
    /// The path, with its query.
    pub path: String,
    /// The authority. Left out, the host in the cluster's name.
    pub authority: Option<String>,
    /// How it is asked.
    pub method: Method,
    /// The body of a POST.
    pub body: String,
    /// More headers, by name.
    pub headers: HeaderMap,
    /// How often it is asked: `100ms` to `1h`.
    pub interval: Duration,
    /// How long an answer may take: `1ms` to `1m`.
    pub timeout: Duration,
    /// The largest answer, in bytes.
    pub max_bytes: Bounded<1024, 4_194_304>,
    /// What rules are wrapped in.
    pub form: Form,
}

kit::fields!(Source { cluster, path, authority, method, body, headers, interval, timeout, max_bytes, form });

impl Default for Source {
    fn default() -> Self {
        Self {
            cluster: String::new(),
            path: "/".into(),
            authority: None,
            method: Method::Get,
            body: String::new(),
            headers: HeaderMap::default(),
            interval: Duration::from_ms(10_000),
            timeout: Duration::from_ms(2000),
            max_bytes: Bounded::new(256 << 10).unwrap_or(Bounded::LEAST),
            form: Form::Plain,
        }
    }
}

/// How a source is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// GET.
    Get,
    /// POST, as etcd's gateway wants it.
    Post,
}

impl Method {
    /// As `:method` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// What rules are wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Nothing.
    Plain,
    /// Consul's answer for one key, without `?raw`.
    Consul,
    /// The answer of etcd's gateway for one key.
    Etcd,
}

/// What an error is.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Errors {
    /// By status: `5xx`, or `429`.
    pub status: Vec<Word>,
    /// By gRPC status: 14, or `UNAVAILABLE`.
    pub grpc: Vec<Word>,
}

kit::fields!(Errors { status, grpc });

impl Default for Errors {
    fn default() -> Self {
        Self {
            status: vec![Word::Text("5xx".into())],
            grpc: [2, 4, 13, 14, 15].into_iter().map(Word::Number).collect(),
        }
    }
}

/// A class of requests.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// The request header that tells them.
    pub header: HeaderName,
    /// Its value, byte for byte. Left out, any.
    pub value: Option<String>,
    /// What is done with them.
    pub treat: Treat,
}

/// What is done with a class of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Treat {
    /// They are never rejected.
    Exempt,
    /// They pass while a breaker is open for the first time, until a probe has failed.
    ShedLast,
}

/// Of which requests access logs get properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Properties {
    /// Those that a breaker did something with: rejected, probes, sent elsewhere.
    Changes,
    /// All that a rule looks at.
    All,
}

/// The configuration as it is used: all of it is valid.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The rules that were written here.
    pub rules: Vec<Rule>,
    /// Where others come from.
    pub source: Option<Endpoint>,
    /// By what requests are called, in the order of the list.
    pub resources: Vec<Kind>,
    /// Most resources that have a state.
    pub max_resources: usize,
    /// What rules do that say no mode of their own.
    pub mode: Mode,
    /// What an error is.
    pub failures: Failures,
    /// How requests are rejected.
    pub reject: Reject,
    /// The request header that says a rule's fallback, in lower case.
    pub fallback_header: String,
    /// The response header that says the state, in lower case.
    pub state_header: Option<String>,
    /// Classes, of which the first that matches counts.
    pub classes: Vec<Class>,
    /// Beginnings of the paths of streams.
    pub streams: Vec<String>,
    /// How often workers bring their counts together: 10 to 10 000 ms.
    pub tick_ms: u64,
    /// Of which requests access logs get properties.
    pub properties: Properties,
    /// Most series.
    pub max_series: usize,
}

/// A source as it is asked.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The cluster.
    pub cluster: String,
    /// The path, with its query.
    pub path: String,
    /// The authority.
    pub authority: String,
    /// The method.
    pub method: Method,
    /// The body, empty for GET.
    pub body: String,
    /// More headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// 100 ms to 1 h.
    pub interval_ms: u64,
    /// 1 ms to 1 min.
    pub timeout_ms: u64,
    /// 1 KiB to 4 MiB.
    pub max_bytes: usize,
    /// What rules are wrapped in.
    pub form: Form,
}

impl Settings {
    /// Makes sense of a configuration.
    pub fn new(config: Config) -> Result<Self, Refusal> {
        let rules = rules::compile(&config.rules, config.mode).map_err(|wrong| wrong.within("rules"))?;
        let source = config.source.map(Endpoint::new).transpose().map_err(|wrong| wrong.within("source"))?;
        let resources = Kind::read(&config.resources).map_err(|wrong| wrong.within("resources"))?;
        if resources.is_empty() {
            return Err(Refusal::at("resources", "is empty, give one such as cluster"));
        }
        for (index, prefix) in config.streams.iter().enumerate() {
            if prefix.is_empty() {
                return Err(Refusal::at("", "is empty and would mean all, take it out")
                    .within_item(index)
                    .within("streams"));
            }
        }
        let header = |field, name: &str| header_name(name).map_err(|problem| Refusal::at(field, problem));
        let state_header = config.state_header.filter(|name| !name.is_empty());
        Ok(Self {
            rules,
            source,
            resources,
            max_resources: size(config.max_resources.get()),
            mode: config.mode,
            failures: Failures::new(&config.errors).map_err(|wrong| wrong.within("errors"))?,
            reject: config.reject.compile().map_err(|wrong| wrong.within("reject"))?,
            fallback_header: header("fallback_header", &config.fallback_header)?,
            state_header: state_header.map(|name| header("state_header", &name)).transpose()?,
            classes: config.classes,
            streams: config.streams,
            tick_ms: within("tick", config.tick, (10, "10ms"), (10_000, "10s"))?,
            properties: config.properties,
            max_series: size(config.max_series.get()),
        })
    }

    /// Reads the answer of a source: the document in it, and all of its rules, or none.
    pub fn read<'a>(&self, form: Form, answer: &'a [u8]) -> Result<(Cow<'a, [u8]>, Vec<Rule>), Refusal> {
        let document = payload(form, answer)?;
        let rules = rules::read_as(&document, self.mode)?;
        Ok((document, rules))
    }
}

impl Endpoint {
    fn new(source: Source) -> Result<Self, Refusal> {
        if source.cluster.is_empty() {
            return Err(Refusal::at("cluster", "is missing or empty, give the cluster that serves the rules"));
        }
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        if !plain(&source.path) || !source.path.starts_with('/') || source.path.contains('#') {
            return Err(Refusal::at("path", "is no path, give one that begins with /, without blanks"));
        }
        // All that it is cut at is ASCII.
        let host = || str::from_utf8(cluster_host(source.cluster.as_bytes())).unwrap_or(&source.cluster).into();
        let authority = source.authority.unwrap_or_else(host);
        if !plain(&authority) {
            return Err(Refusal::at("authority", "is no authority, give one such as rules.example.com"));
        }
        if source.method == Method::Get && !source.body.is_empty() {
            return Err(Refusal::at("body", "does nothing with GET, give `method` POST or take it out"));
        }
        let headers = source.headers.compile()?;
        if headers.iter().any(|(name, _)| name == "if-none-match") {
            return Err(Refusal::at("headers.if-none-match", "is what the filter says itself, take it out"));
        }
        Ok(Self {
            cluster: source.cluster,
            path: source.path,
            authority,
            method: source.method,
            body: source.body,
            headers,
            interval_ms: within("interval", source.interval, (100, "100ms"), (3_600_000, "1h"))?,
            timeout_ms: within("timeout", source.timeout, (1, "1ms"), (60_000, "1m"))?,
            max_bytes: size(source.max_bytes.get()),
            form: source.form,
        })
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[inline(never)]
fn within(field: &str, value: Duration, least: (u64, &str), most: (u64, &str)) -> Result<u64, Refusal> {
    let ms = value.ms();
    if (least.0..=most.0).contains(&ms) {
        return Ok(ms);
    }
    let problem = format!("is out of range, give a duration from \"{}\" to \"{}\"", least.1, most.1);
    Err(Refusal::at(field, &problem))
}

/// What an error is, made ready.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    /// From and to, both included.
    status: Vec<(u16, u16)>,
    /// A bit for each.
    grpc: u32,
}

/// By number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl Failures {
    fn new(errors: &Errors) -> Result<Self, Refusal> {
        let mut failures = Self::default();
        for (index, word) in errors.status.iter().enumerate() {
            let text = word.text();
            // A class is one digit, a status three.
            let (digits, length, width) = match text.strip_suffix("xx") {
                Some(class) => (class, 1, 100_u16),
                None => (text.as_str(), 3, 1),
            };
            let from = digits.parse::<u16>().ok().filter(|_| digits.len() == length);
            let from = from.map(|number| number.saturating_mul(width)).filter(|from| (100..=599).contains(from));
            let Some(range) = from.map(|from| (from, from.saturating_add(width.saturating_sub(1)))) else {
                let problem = "is no status, give a class such as \"5xx\" or a status such as 429";
                return Err(Refusal::at("", problem).within_item(index).within("status"));
            };
            failures.status.push(range);
        }
        for (index, word) in errors.grpc.iter().enumerate() {
            let text = word.text();
            let named = GRPC.iter().position(|name| name.eq_ignore_ascii_case(&text));
            let number = named.and_then(|number| u32::try_from(number).ok()).or_else(|| text.parse().ok());
            let Some(number) = number.filter(|number| (1..=16).contains(number)) else {
                let problem = "is no error of gRPC, give its number, 1 to 16, or its name such as UNAVAILABLE";
                return Err(Refusal::at("", problem).within_item(index).within("grpc"));
            };
            failures.grpc |= 1_u32.checked_shl(number).unwrap_or(0);
        }
        Ok(failures)
    }

    /// Whether a status is an error.
    pub fn has_status(&self, status: u16) -> bool {
        self.status.iter().any(|(from, to)| (*from..=*to).contains(&status))
    }

    /// Whether a gRPC status is an error. One that gRPC does not know is as UNKNOWN, 2.
    pub fn has_grpc(&self, status: u32) -> bool {
        let status = if status > 16 { 2 } else { status };
        self.grpc & 1_u32.checked_shl(status).unwrap_or(0) != 0
    }
}

/// One value of a key-value store, among other fields.
#[derive(Deserialize)]
struct Entry {
    #[serde(alias = "Value")]
    value: Option<String>,
}

#[derive(Deserialize)]
struct Kvs {
    /// Not there when the key is not.
    #[serde(default)]
    kvs: Vec<Entry>,
}

/// Takes the rules' document out of a source's answer.
pub fn payload(form: Form, answer: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    if form == Form::Plain {
        return Ok(answer.into());
    }
    if answer.trim_ascii().is_empty() {
        return Err(Refusal::at("", "is empty, look whether `form` is the source's"));
    }
    let (entries, field, path) = match form {
        Form::Etcd => (kit::config::parse::<Kvs>(answer)?.kvs, "kvs", "kvs[0].value"),
        Form::Consul | Form::Plain => (kit::config::parse(answer)?, "", "[0].Value"),
    };
    let [entry] = entries.as_slice() else {
        let problem =
            if entries.is_empty() { "has no value, write the key" } else { "has several values, ask for one key" };
        return Err(Refusal::at(field, problem));
    };
    let value = entry.value.as_deref().unwrap_or_default();
    base64(value.as_bytes())
        .map(Cow::Owned)
        .ok_or_else(|| Refusal::at(path, "is not base64, look whether `form` is the source's"))
}

/// Base64 with padding (RFC 4648, 4). By itself, because it is 30 lines for what runs once in an interval, and no library
/// leaves it at one alphabet and one direction.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let digits = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(text);
    let mut bytes = Vec::with_capacity(digits.len());
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit.wrapping_sub(b'A'),
            b'a'..=b'z' => digit.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => digit.wrapping_sub(b'0').wrapping_add(52),
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        count = count.saturating_add(6);
        if count >= 8 {
            count = count.saturating_sub(8);
            bytes.push(u8::try_from(bits.checked_shr(count)? & 0xff).ok()?);
        }
    }
    // What is left over is nothing.
    let rest = bits & 1_u32.checked_shl(count)?.wrapping_sub(1);
    (rest == 0).then_some(bytes)
}

#[cfg(test)]
#[allow(clippy::as_conversions, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, proptest};

    fn settings(text: &str) -> Result<Settings, Refusal> {
        kit::config::parse(text.as_bytes()).and_then(Settings::new)
    }

    #[test]
    fn nothing_is_said() {
        let settings = settings("").unwrap();
        assert_eq!(settings.rules, []);
        assert!(settings.source.is_none());
        assert_eq!(settings.resources, [Kind::Cluster]);
        assert_eq!((settings.max_resources, settings.max_series, settings.tick_ms), (1000, 1000, 100));
        assert_eq!((settings.mode, settings.properties), (Mode::Enforce, Properties::Changes));
        assert_eq!(settings.reject, Reject::default());
        assert_eq!(settings.fallback_header, "x-circuit-fallback");
        assert_eq!(settings.state_header.as_deref(), Some("x-circuit-state"));
        let failures = &settings.failures;
        assert!([500, 503, 599].iter().all(|status| failures.has_status(*status)));
        assert!([0, 200, 404, 429, 499].iter().all(|status| !failures.has_status(*status)));
        let grpc: Vec<u32> = (0..=17).filter(|status| failures.has_grpc(*status)).collect();
        assert_eq!(grpc, [2, 4, 13, 14, 15, 17]);
        assert!(failures.has_grpc(u32::MAX));
    }

    #[test]
    fn everything_is_said() {
        let settings = settings(
            r#"{"rules": [{"resource": "a", "strategy": "error_ratio", "threshold": 1},
                {"resource": "b", "strategy": 1, "threshold": 1, "retryTimeoutMs": 1000, "statIntervalMs": 1000},
                {"resource": "c", "grade": 2, "count": 5, "timeWindow": 10}],
            "source": {"cluster": "outbound|80||rules.shop.svc.cluster.local", "path": "/v1/kv/rules?dc=1", "method": "POST",
                "body": "{}", "headers": {"X-Token": "t"}, "interval": "100ms", "timeout": "1m", "max_bytes": 4194304,
                "form": "etcd"},
            "resources": ["host", "GET /users/{id}", "header:x-tenant"], "max_resources": 10, "mode": "dry_run",
            "errors": {"status": ["5xx", "429", 404], "grpc": [14, "unknown", "DATA_LOSS"]},
            "reject": {"status": 429}, "fallback_header": "X-Else", "state_header": "",
            "classes": [{"header": "X-Priority", "value": "high", "treat": "shed_last"}, {"header": "x-probe", "treat": "exempt"}],
            "streams": ["/watch"], "tick": "10s", "properties": "all", "max_series": 10}"#,
        )
        .unwrap();
        let ids: Vec<&str> = settings.rules.iter().map(|rule| rule.id.as_str()).collect();
        assert_eq!(ids, ["a/error_ratio", "b/error_ratio", "c/error_count"]);
        assert!(settings.rules.iter().all(|rule| rule.mode == Mode::DryRun));
        let source = settings.source.as_ref().unwrap();
        assert_eq!(source.authority, "rules.shop.svc.cluster.local");
        assert_eq!((source.method.name(), source.body.as_str(), source.form), ("POST", "{}", Form::Etcd));
        assert_eq!(source.headers, [("x-token".to_string(), "t".to_string())]);
        assert_eq!((source.interval_ms, source.timeout_ms, source.max_bytes), (100, 60_000, 4 << 20));
        assert_eq!((settings.resources.len(), settings.max_resources, settings.max_series), (3, 10, 10));
        for (status, error) in [(429, true), (404, true), (500, true), (403, false)] {
            assert_eq!(settings.failures.has_status(status), error, "{status}");
        }
        let grpc: Vec<u32> = (0..=16).filter(|status| settings.failures.has_grpc(*status)).collect();
        assert_eq!(grpc, [2, 14, 15]);
        assert_eq!((settings.reject.status, settings.fallback_header.as_str()), (429, "x-else"));
        assert_eq!(settings.state_header, None);
        assert_eq!(settings.classes[0].header.as_str(), "x-priority");
        assert_eq!((settings.classes[0].treat, settings.classes[1].treat), (Treat::ShedLast, Treat::Exempt));
        assert_eq!((settings.tick_ms, settings.properties), (10_000, Properties::All));
        let rules = settings.read(Form::Plain, br#"[{"resource": "a", "grade": 2, "count": 5, "timeWindow": 10}]"#);
        let rules = rules.map(|(_, rules)| rules);
        assert_eq!(rules.unwrap()[0].mode, Mode::DryRun);
        assert_eq!(
            super::Settings::new(Config { state_header: None, ..Config::default() }).unwrap().state_header,
            None
        );
        let null = kit::config::parse::<Config>(br#"{"state_header": null, "source": null}"#).unwrap();
        assert!(null.state_header.is_none() && null.source.is_none());
    }

    #[test]
    fn what_is_wrong_is_refused_with_path_and_cure() {
        for (text, expected) in [
            (r#"{"rule": []}"#, "at `rule`: is no field, give one of rules, source, resources"),
            (
                r#"{"rules": [{"resource": "a", "strategy": "error_ratio", "threshold": 2}]}"#,
                "at `rules[0].threshold`: is out of range, give a number from 0 to 1",
            ),
            (r#"{"source": {}}"#, "at `source.cluster`: is missing or empty, give the cluster that serves the rules"),
            (
                r#"{"source": {"cluster": "c", "path": "rules"}}"#,
                "at `source.path`: is no path, give one that begins with /, without blanks",
            ),
            (
                r#"{"source": {"cluster": "c", "path": "/a\r\nb"}}"#,
                "at `source.path`: is no path, give one that begins with /, without blanks",
            ),
            (
                r#"{"source": {"cluster": "c", "authority": ""}}"#,
                "at `source.authority`: is no authority, give one such as rules.example.com",
            ),
            (
                r#"{"source": {"cluster": "c", "body": "x"}}"#,
                "at `source.body`: does nothing with GET, give `method` POST or take it out",
            ),
            (
                r#"{"source": {"cluster": "c", "method": "PUT"}}"#,
                "at `source.method`: is not known, give one of GET, POST",
            ),
            (
                r#"{"source": {"cluster": "c", "headers": {"If-None-Match": "x"}}}"#,
                "at `source.headers.if-none-match`: is what the filter says itself, take it out",
            ),
            (
                r#"{"source": {"cluster": "c", "headers": {"x-a": "a\nb"}}}"#,
                "at `source.headers.x-a`: is no header value, give up to 1024 bytes in one line",
            ),
            (
                r#"{"source": {"cluster": "c", "interval": "99ms"}}"#,
                "at `source.interval`: is out of range, give a duration from \"100ms\" to \"1h\"",
            ),
            (
                r#"{"source": {"cluster": "c", "interval": "2h"}}"#,
                "at `source.interval`: is out of range, give a duration from \"100ms\" to \"1h\"",
            ),
            (
                r#"{"source": {"cluster": "c", "timeout": "61s"}}"#,
                "at `source.timeout`: is out of range, give a duration from \"1ms\" to \"1m\"",
            ),
            (
                r#"{"source": {"cluster": "c", "max_bytes": 1023}}"#,
                "at `source.max_bytes`: is out of range, give a whole number from 1024 to 4194304",
            ),
            (
                r#"{"source": {"cluster": "c", "form": "nacos"}}"#,
                "at `source.form`: is not known, give one of plain, consul, etcd",
            ),
            (r#"{"resources": []}"#, "at `resources`: is empty, give one such as cluster"),
            (
                r#"{"resources": ["host", "port"]}"#,
                "at `resources[1]`: is not known, give cluster, host, route, method,",
            ),
            (r#"{"max_resources": 0}"#, "at `max_resources`: is out of range, give a whole number from 1 to 10000"),
            (
                r#"{"mode": "off"}"#,
                "at `mode`: is not known, give one of enforce, dry_run, forced_open, forced_closed, disabled",
            ),
            (
                r#"{"errors": {"status": ["5xx", "6xx"]}}"#,
                "at `errors.status[1]`: is no status, give a class such as \"5xx\" or a status such as 429",
            ),
            (r#"{"errors": {"status": ["x"]}}"#, "at `errors.status[0]`: is no status, give"),
            (r#"{"errors": {"status": ["xx"]}}"#, "at `errors.status[0]`: is no status, give"),
            (r#"{"errors": {"status": ["+500"]}}"#, "at `errors.status[0]`: is no status, give"),
            (r#"{"errors": {"status": ["+5xx"]}}"#, "at `errors.status[0]`: is no status, give"),
            (r#"{"errors": {"status": [1000]}}"#, "at `errors.status[0]`: is no status, give"),
            (
                r#"{"errors": {"grpc": ["OK"]}}"#,
                "at `errors.grpc[0]`: is no error of gRPC, give its number, 1 to 16, or its name such as UNAVAILABLE",
            ),
            (r#"{"errors": {"grpc": [17]}}"#, "at `errors.grpc[0]`: is no error of gRPC, give"),
            (
                r#"{"reject": {"status": 100}}"#,
                "at `reject.status`: is out of range, give a whole number from 200 to 599",
            ),
            (r#"{"fallback_header": ""}"#, "at `fallback_header`: is no header name, give 1 to 64 letters"),
            (r#"{"fallback_header": "Host"}"#, "at `fallback_header`: is a header that the proxy itself lives by"),
            (r#"{"state_header": ":status"}"#, "at `state_header`: is no header name, give 1 to 64 letters"),
            (r#"{"classes": [{"header": "x-a"}]}"#, "at `classes[0].treat`: is missing"),
            (
                r#"{"classes": [{"header": "x-a", "treat": "first"}]}"#,
                "at `classes[0].treat`: is not known, give one of exempt, shed_last",
            ),
            (r#"{"streams": ["/a", ""]}"#, "at `streams[1]`: is empty and would mean all, take it out"),
            (r#"{"tick": "9ms"}"#, "at `tick`: is out of range, give a duration from \"10ms\" to \"10s\""),
            (r#"{"tick": "11s"}"#, "at `tick`: is out of range, give a duration from \"10ms\" to \"10s\""),
            (r#"{"properties": "none"}"#, "at `properties`: is not known, give one of changes, all"),
            (r#"{"max_series": 9}"#, "at `max_series`: is out of range, give a whole number from 10 to 100000"),
        ] {
            let refusal = settings(text).expect_err(text).to_string();
            assert!(refusal.starts_with(expected), "{text}:\n{refusal}\n{expected}");
        }
    }

    /// By the definition, for tests.
    fn encode(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
        let value = |bits: &[u8]| (0..6).fold(0, |value, at| value * 2 + bits.get(at).copied().unwrap_or(0));
        let mut text: String = bits.chunks(6).map(|bits| char::from(DIGITS[usize::from(value(bits))])).collect();
        while !text.len().is_multiple_of(4) {
            text.push('=');
        }
        text
    }

    #[test]
    fn base64_is_read() {
        // RFC 4648, 10.
        for (text, bytes) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg==", "foob"),
            ("Zm9vYmE=", "fooba"),
            ("Zm9vYmFy", "foobar"),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
            assert_eq!(encode(bytes.as_bytes()), text);
        }
        assert_eq!(base64(b"+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
        for text in
            ["Zg", "Zg=", "Zg===", "Z===", "====", "=", "Zh==", "Zm9=", "Zm 9v", "Zm9v\n", "Zm-_", "Zg==Zg==", "Zm=v"]
        {
            assert_eq!(base64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_document_is_taken_out_of_the_answer() {
        let document = r#"{"rules": []}"#;
        let value = encode(document.as_bytes());
        let consul = std::format!(
            r#"[{{"LockIndex": 0, "Key": "rules", "Flags": 0, "Value": "{value}", "CreateIndex": 5, "ModifyIndex": 9}}]"#
        );
        let etcd = std::format!(
            r#"{{"header": {{"cluster_id": "1", "revision": "2"}}, "kvs": [{{"key": "cnVsZXM=", "version": "1", "value": "{value}"}}],
               "count": "1"}}"#
        );
        for (form, answer) in [(Form::Plain, document), (Form::Consul, &consul), (Form::Etcd, &etcd)] {
            assert_eq!(payload(form, answer.as_bytes()).unwrap(), document.as_bytes(), "{form:?}");
        }
        for (form, answer, expected) in [
            (Form::Consul, "", "at `(top level)`: is empty, look whether `form` is the source's"),
            (Form::Consul, "{}", "at `(top level)`: is an object, give a list"),
            (Form::Consul, "[]", "at `(top level)`: has no value, write the key"),
            (Form::Consul, "[{}, {}]", "at `(top level)`: has several values, ask for one key"),
            (Form::Consul, "[{\"Value\": 5}]", "at `[0].Value`: is a whole number, give a text"),
            (
                Form::Consul,
                "[{\"Value\": \"x\"}]",
                "at `[0].Value`: is not base64, look whether `form` is the source's",
            ),
            (Form::Consul, "<html>", "at `(top level)`: is not JSON"),
            (Form::Etcd, "[]", "at `(top level)`: is a list, give an object"),
            (Form::Etcd, "{\"header\": {}}", "at `kvs`: has no value, write the key"),
            (Form::Etcd, "{\"kvs\": [{\"value\": \"x\"}]}", "at `kvs[0].value`: is not base64, look whether"),
        ] {
            let refusal = payload(form, answer.as_bytes()).expect_err(answer).to_string();
            assert!(refusal.starts_with(expected), "{answer}: {refusal}");
        }
        // A key without a value is an empty document, which is no set of rules.
        let settings = settings("").unwrap();
        for (form, answer) in [(Form::Consul, r#"[{"Value": null}]"#), (Form::Etcd, r#"{"kvs": [{"key": "a"}]}"#)] {
            let refusal = settings.read(form, answer.as_bytes()).expect_err(answer).to_string();
            assert_eq!(refusal, "at `(top level)`: is empty, give [] for no rules", "{answer}");
        }
        assert_eq!(settings.read(Form::Consul, consul.as_bytes()).unwrap().1, []);
    }

    proptest! {
        #[test]
        fn base64_comes_back(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            assert_eq!(base64(encode(&bytes).as_bytes()), Some(bytes));
        }

        #[test]
        fn answers_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[A-Za-z0-9+/=]{0,24}") {
            for form in [Form::Plain, Form::Consul, Form::Etcd] {
                let _ = payload(form, &bytes);
                let _ = payload(form, std::format!("[{{\"Value\":\"{text}\"}}]").as_bytes());
            }
            if let Some(read) = base64(text.as_bytes()) { assert_eq!(encode(&read), text); }
        }
    }
}
