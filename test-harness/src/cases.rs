//! Test cases as data: `filters/<filter>/cases.toml` says what comes in and what has to come of it.
//!
//! The same cases run natively, against the built module, through a real Envoy, against the script and the plain
//! filter that a benchmark compares with, and, for their price, in `make budgets` and `make bench`.
//!
//! ```toml
//! [[case]]
//! name = "continues a trace"
//! config = { inject = ["w3c"] }
//! request.headers = [["traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]]
//! expect.upstream = [["traceparent", "00-0af7651916cd43dd8448eb211c80319c-{span}-01"]]
//! expect.state = { span_id = "{span}" }
//! ```
//!
//! In what is expected, `{name}` stands for letters, digits and `-` that are not known before: the same everywhere in
//! one case. In header values the character U+00FF stands for the byte 0xff, and so on from U+0080.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use emulator::Message;
use serde::Deserialize;

use crate::wire::{Headers, Request};
use crate::{Reply, root};

/// A case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What happens, as a sentence without its subject.
    pub name: String,
    /// The filter's configuration.
    #[serde(default = "empty")]
    pub config: serde_json::Value,
    /// What comes from the client.
    #[serde(default)]
    pub request: Parts,
    /// What comes from the upstream.
    #[serde(default)]
    pub response: Parts,
    /// What an emulated proxy tells of it besides, by the attribute's path, such as `xds.cluster_name`; a real one knows
    /// by itself.
    #[serde(default)]
    pub given: BTreeMap<String, Given>,
    /// What comes of it.
    #[serde(default)]
    pub expect: Expect,
    /// Whether what the filter is measured beside does the same: a script, and a filter of the proxy-wasm crate, where there are
    /// such.
    #[serde(default)]
    pub script: bool,
}

/// The value of an attribute.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Given {
    /// An integer, or nanoseconds.
    Number(i64),
    /// Text.
    Text(String),
}

fn empty() -> serde_json::Value {
    serde_json::json!({})
}

/// A message.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// Of a request; `GET` where it is not said.
    pub method: Option<String>,
    /// Of a request; `/` where it is not said.
    pub path: Option<String>,
    /// Of a response; 200 where it is not said.
    pub status: Option<u16>,
    /// Header fields besides.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The parts of the body. A real proxy may join or split them on the way.
    #[serde(default)]
    pub chunks: Vec<String>,
    /// Trailer fields.
    #[serde(default)]
    pub trailers: Vec<(String, String)>,
}

/// What comes of a case.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Fields that the upstream gets, all of each name, in order.
    #[serde(default)]
    pub upstream: Vec<(String, String)>,
    /// Names that it does not get.
    #[serde(default)]
    pub upstream_without: Vec<String>,
    /// Fields that the client gets.
    #[serde(default)]
    pub downstream: Vec<(String, String)>,
    /// Names that it does not get.
    #[serde(default)]
    pub downstream_without: Vec<String>,
    /// The status that the client gets.
    pub status: Option<u16>,
    /// Filter state, without `wasm.`.
    #[serde(default)]
    pub state: BTreeMap<String, String>,
    /// Keys that have no filter state.
    #[serde(default)]
    pub state_without: Vec<String>,
    /// By how much counters and gauges go up: `name{label=value,…}`.
    #[serde(default)]
    pub metrics: BTreeMap<String, u64>,
    /// How many values histograms get.
    #[serde(default)]
    pub values: BTreeMap<String, u64>,
}

/// What came of a case.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What the upstream got; nothing when it got nothing.
    pub upstream: Headers,
    /// What the client got.
    pub downstream: Headers,
    /// Its status.
    pub status: u16,
    /// Filter state, without `wasm.`.
    pub state: BTreeMap<String, String>,
}

/// The cases of a filter.
///
/// # Errors
/// When the file is not there or is not right.
pub fn load(filter: &str) -> Result<Vec<Case>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        case: Vec<Case>,
    }
    let path = root().join("filters").join(filter).join("cases.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let cases = toml::from_str::<File>(&text).with_context(|| path.display().to_string())?.case;
    for (at, case) in cases.iter().enumerate() {
        if cases[..at].iter().any(|other| other.name == case.name) {
            bail!("{}: `{}` is there twice", path.display(), case.name);
        }
    }
    Ok(cases)
}

/// The case of that name.
///
/// # Errors
/// As [`load`], and when there is none.
pub fn named(filter: &str, name: &str) -> Result<Case> {
    load(filter)?.into_iter().find(|case| case.name == name).with_context(|| format!("{filter} has no case `{name}`"))
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars().flat_map(|c| u8::try_from(c).map_or_else(|_| c.to_string().into_bytes(), |byte| vec![byte])).collect()
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn fields(pairs: &[(String, String)]) -> Headers {
    pairs.iter().map(|(name, value)| (name.clone(), bytes(value))).collect()
}

impl Parts {
    fn message(&self, first: Vec<(&str, String)>) -> Message {
        let first = first.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.into_bytes()));
        let rest = self.headers.iter().map(|(name, value)| (name.clone().into_bytes(), bytes(value)));
        let message = Message::new(first.chain(rest));
        let message = self.chunks.iter().fold(message, |message, chunk| message.chunk(bytes(chunk)));
        if self.trailers.is_empty() { message } else { message.trailers(fields(&self.trailers).iter()) }
    }

    fn body(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|chunk| bytes(chunk)).collect()
    }

    fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("GET")
    }

    fn path(&self) -> &str {
        self.path.as_deref().unwrap_or("/")
    }
}

/// The series' name as filters give it to the proxy.
#[must_use]
pub fn series(text: &str) -> String {
    let Some((name, labels)) = text.split_once('{') else { return text.to_owned() };
    let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
    labels.fold(name.to_owned(), |series, (label, value)| series + &format!("{label}=.={value};.;"))
}

impl Case {
    /// The request, for an emulated proxy.
    pub fn request(&self) -> Message {
        let first = [(":method", self.request.method()), (":path", self.request.path()), (":authority", "test")];
        self.request.message(first.map(|(name, value)| (name, value.to_owned())).into())
    }

    /// The response, for an emulated proxy.
    pub fn response(&self) -> Message {
        self.response.message(vec![(":status", self.response.status.unwrap_or(200).to_string())])
    }

    /// Lets an emulated proxy know what is [given](Self::given).
    pub fn give(&self, proxy: &emulator::Proxy) {
        for (path, value) in &self.given {
            let path: Vec<&str> = path.split('.').collect();
            match value {
                Given::Number(number) => proxy.set_property(&path, *number),
                Given::Text(text) => proxy.set_property(&path, text.as_str()),
            }
        }
    }

    /// The request, for a real one.
    #[must_use]
    pub fn wire_request(&self) -> Request {
        let request = Request::new(self.request.method(), self.request.path()).headers(fields(&self.request.headers));
        Request { body: self.request.body(), trailers: fields(&self.request.trailers), ..request }
    }

    /// The upstream's reply, for a real one.
    pub fn wire_reply(&self) -> Reply {
        let mut reply = Reply::new(self.response.status.unwrap_or(200));
        for (name, value) in fields(&self.response.headers).iter() {
            reply = reply.header(name, value);
        }
        for chunk in &self.response.chunks {
            reply = reply.chunk(bytes(chunk));
        }
        for (name, value) in fields(&self.response.trailers).iter() {
            reply = reply.trailer(name, value);
        }
        reply
    }

    /// Holds what came against what is expected. `state`: whether filter state was looked at.
    ///
    /// # Errors
    /// Everything that is otherwise.
    pub fn check(&self, came: &Outcome, state: bool) -> Result<()> {
        let mut wrong = Vec::new();
        let mut known = BTreeMap::new();
        for (side, expected, without, got) in [
            ("upstream", &self.expect.upstream, &self.expect.upstream_without, &came.upstream),
            ("downstream", &self.expect.downstream, &self.expect.downstream_without, &came.downstream),
        ] {
            let mut names: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
            names.dedup();
            for name in names {
                let wanted: Vec<&String> = expected.iter().filter(|(n, _)| n == name).map(|(_, value)| value).collect();
                let values: Vec<String> = got.all(name).into_iter().map(text).collect();
                let right = wanted.len() == values.len()
                    && wanted.iter().zip(&values).all(|(pattern, value)| matches(pattern, value, &mut known));
                if !right {
                    wrong.push(format!("{side}: {name} is {values:?}, not {wanted:?}"));
                }
            }
            for name in without.iter().filter(|name| got.has(name)) {
                wrong.push(format!("{side}: {name} is there: {:?}", got.text(name)));
            }
        }
        if self.expect.status.is_some_and(|status| status != came.status) {
            wrong.push(format!("status {}, not {:?}", came.status, self.expect.status));
        }
        if state {
            for (key, pattern) in &self.expect.state {
                match came.state.get(key) {
                    Some(value) if matches(pattern, value, &mut known) => {}
                    value => wrong.push(format!("filter state {key} is {value:?}, not {pattern:?}")),
                }
            }
            for key in self.expect.state_without.iter().filter(|key| came.state.contains_key(*key)) {
                wrong.push(format!("filter state {key} is there: {:?}", came.state[key]));
            }
        }
        if wrong.is_empty() { Ok(()) } else { bail!("{}:\n    {}", self.name, wrong.join("\n    ")) }
    }
}

/// The first `{name}`, what stands before it, and what after. Other braces, as in JSON, are what they are.
fn unknown(pattern: &str) -> Option<(&str, &str, &str)> {
    pattern.match_indices('{').find_map(|(at, _)| {
        let (name, after) = pattern[at + 1..].split_once('}')?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_name.then(|| (&pattern[..at], name, after))
    })
}

/// Whether a value is as the pattern says. What `{name}` stands for is kept, once the whole fits.
fn matches(pattern: &str, value: &str, known: &mut BTreeMap<String, String>) -> bool {
    let mut found = known.clone();
    let (mut pattern, mut value) = (pattern, value);
    while let Some((before, name, after)) = unknown(pattern) {
        let Some(rest) = value.strip_prefix(before) else { return false };
        // Up to the first byte of what comes next, or as far as a word goes.
        let length = match after.bytes().next() {
            Some(next) => rest.bytes().position(|byte| byte == next).unwrap_or(rest.len()),
            None => rest.len(),
        };
        let (word, rest) = rest.split_at(length);
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return false;
        }
        if found.entry(name.to_owned()).or_insert_with(|| word.to_owned()) != word {
            return false;
        }
        (pattern, value) = (after, rest);
    }
    let right = pattern == value;
    if right {
        *known = found;
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_before_is_the_same_everywhere() {
        let mut known = BTreeMap::new();
        assert!(matches("00-{trace}-{span}-01", "00-abc-def-01", &mut known));
        assert!(matches("{trace}", "abc", &mut known));
        assert!(!matches("{trace}", "abd", &mut known));
        assert!(!matches("00-{trace}-01", "00--01", &mut known));
        assert!(!matches("x{new}", "y1", &mut known));
        assert!(!matches("{new}", "a b", &mut known));
        assert!(matches(r#"{"a":{},"b":"{trace}"}"#, r#"{"a":{},"b":"abc"}"#, &mut known));
        assert!(matches("plain", "plain", &mut known) && !matches("plain", "plainer", &mut known));
        assert_eq!(known.len(), 2);
    }

    #[test]
    fn a_case_that_is_not_met_is_told_in_full() {
        let case = Case {
            name: "sends a".into(),
            config: empty(),
            request: Parts::default(),
            response: Parts::default(),
            given: BTreeMap::new(),
            expect: Expect {
                upstream: vec![("a".into(), "1".into()), ("a".into(), "{x}".into())],
                upstream_without: vec!["b".into()],
                status: Some(200),
                state: [("k".into(), "{x}".into())].into(),
                state_without: vec!["l".into()],
                ..Expect::default()
            },
            script: false,
        };
        let state = |k: &str| -> BTreeMap<String, String> { [("k".into(), k.into())].into() };
        let right =
            Outcome { upstream: [("a", "1"), ("a", "2")].into(), status: 200, state: state("2"), ..Outcome::default() };
        case.check(&right, true).unwrap();
        for wrong in [
            Outcome { upstream: [("a", "1")].into(), ..right.clone() },
            Outcome { upstream: [("a", "1"), ("a", "2"), ("b", "")].into(), ..right.clone() },
            Outcome { status: 503, ..right.clone() },
            Outcome { state: state("3"), ..right.clone() },
            Outcome { state: BTreeMap::new(), ..right.clone() },
            Outcome { state: [("k".into(), "2".into()), ("l".into(), String::new())].into(), ..right.clone() },
        ] {
            let told = case.check(&wrong, true).unwrap_err().to_string();
            assert!(told.starts_with("sends a:\n"), "{told}");
        }
        assert_eq!(series("n_total{a=b,c=d}"), "n_totala=.=b;.;c=.=d;.;");
    }
}
