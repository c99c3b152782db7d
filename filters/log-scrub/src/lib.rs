//! Makes what is logged about a request free of personal data and secrets.
//!
//! The filter leaves clean copies of a request's parts for access logs. Its engine is there without a proxy too:
//! [`Rules`] are compiled once from a [`config::Config`] and clean values with [`Rules::scrub`] and the functions of
//! [`places`]; [`Findings`] count what was found, by rule. Text that was found is never shown: no type here prints it.
#![no_std]

#[cfg(test)]
extern crate std;

mod action;
mod anchors;
mod blocks;
mod body;
pub mod config;
mod context;
mod detectors;
mod digits;
mod engine;
mod fields;
mod line;
mod own;
mod pattern;
pub mod places;
#[cfg(test)]
mod testing;
mod view;

pub use detectors::detectors;
pub use engine::{Findings, Rule, Rules, Stream};

use alloc::borrow::Cow;
use body::Passing;
use config::{Config, HeadersAs};
use kit::Map;
use kit::alloc;
use kit::config::HeaderName;
use kit::prelude::*;
use kit::{Body, Context, Filter, Flow, Headers, Metric, MetricKind, Pass, Phases, Refusal};
use line::{Json, Line};
use places::{Header, UNSCANNED};

/// What was found.
pub static FINDINGS: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_scrub_findings_total",
    help: Metric::help("Values that were found and covered, by rule and place."),
    labels: &["rule", "place"],
};

/// What could not be looked at.
pub static UNSCANNED_TOTAL: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_scrub_unscanned_total",
    help: "Values and bodies that could not be looked at, by reason: compressed, type, encoding, broken, deep, long, \
           large, incomplete, host, part.",
    labels: &["reason"],
};

/// How much was looked at.
pub static BYTES: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_scrub_bytes_total",
    help: Metric::help("Bytes that were looked at."),
    labels: &[],
};

/// Where something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Path,
    Query,
    Authority,
    Referer,
    UserAgent,
    RequestHeader,
    ResponseHeader,
    RequestBody,
    ResponseBody,
}

impl Place {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Authority => "authority",
            Self::Referer => "referer",
            Self::UserAgent => "user_agent",
            Self::RequestHeader => "request_header",
            Self::ResponseHeader => "response_header",
            Self::RequestBody => "request_body",
            Self::ResponseBody => "response_body",
        }
    }
}

/// Why something could not be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// By its Content-Encoding.
    Compressed,
    /// Its Content-Type is none that can be looked at.
    Type,
    Encoding,
    Broken,
    Deep,
    Long,
    /// It goes on after `max_body`.
    Large,
    /// It was to be held, and its end never came.
    Incomplete,
    /// The proxy did not give it.
    Host,
    /// Only a part of it: a file in a form, a value in it that is no UTF-8, more nested or repeated than anyone needs.
    Part,
}

impl Reason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Compressed => "compressed",
            Self::Type => "type",
            Self::Encoding => "encoding",
            Self::Broken => "broken",
            Self::Deep => "deep",
            Self::Long => "long",
            Self::Large => "large",
            Self::Incomplete => "incomplete",
            Self::Host => "host",
            Self::Part => "part",
        }
    }
}

impl From<places::Why> for Reason {
    fn from(why: places::Why) -> Self {
        match why {
            places::Why::Broken => Self::Broken,
            places::Why::Encoding => Self::Encoding,
            places::Why::Deep => Self::Deep,
            places::Why::Long => Self::Long,
        }
    }
}

/// What was seen in one place.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) place: Place,
    pub(crate) findings: Findings,
    pub(crate) unscanned: Option<Reason>,
}

/// All that was seen of a request.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    seen: Vec<Seen>,
    bytes: usize,
    /// To count in, before it is known whether there is anything to count.
    scratch: Findings,
}

/// How a text is cleaned.
type Clean<'a, 't> = dyn Fn(&'t [u8], &mut Findings) -> Result<Cow<'t, [u8]>, places::Why> + 'a;

impl Tally {
    /// Cleans a text of a place, and notes what was found. By a call, and not once more for each closure.
    #[inline(never)]
    fn clean<'t>(&mut self, place: Place, text: &'t [u8], clean: &Clean<'_, 't>) -> Option<Cow<'t, [u8]>> {
        self.bytes = self.bytes.saturating_add(text.len());
        let result = clean(text, &mut self.scratch);
        let unscanned = result.as_ref().err().copied().map(Reason::from);
        if unscanned.is_some() || self.scratch.any() {
            let findings = core::mem::take(&mut self.scratch);
            self.note(Seen { place, findings, unscanned });
        }
        result.ok()
    }

    pub(crate) fn note(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    pub(crate) fn add_bytes(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// A header that is asked for, and the key of its copy.
#[derive(Debug)]
struct Target {
    header: Header,
    key: Box<str>,
    place: Place,
}

/// A small number that tells most names apart: a request's headers are many, and those that are asked for may be too.
fn mark(name: &[u8]) -> u8 {
    let (first, last) = (name.first().copied().unwrap_or(0), name.last().copied().unwrap_or(0));
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    length.wrapping_mul(5).wrapping_add(first).wrapping_add(last.wrapping_mul(3)) & 63
}

impl Target {
    /// Whether it is more than one header of a list.
    fn is_single(&self) -> bool {
        !matches!(self.place, Place::RequestHeader | Place::ResponseHeader)
    }
}

/// The filter.
#[derive(Debug)]
pub struct LogScrub {
    config: Config,
    rules: Rules,
    request: Vec<Target>,
    /// Of the names in `request`, in order, and all that there are.
    marks: Vec<u8>,
    marked: u64,
    response: Vec<Target>,
    mutate_request: Vec<Header>,
    mutate_response: Vec<Header>,
}

/// What is kept of a request.
#[derive(Debug, Default)]
pub struct Seeing {
    tally: Tally,
    request_body: Option<Box<Passing>>,
    response_body: Option<Box<Passing>>,
}

impl Filter for LogScrub {
    const NAME: &'static str = "log-scrub";
    const PHASES: Phases = Phases::REQUEST_HEADERS
        .and(Phases::REQUEST_BODY)
        .and(Phases::REQUEST_TRAILERS)
        .and(Phases::RESPONSE_HEADERS)
        .and(Phases::RESPONSE_BODY)
        .and(Phases::RESPONSE_TRAILERS)
        .and(Phases::LOG);
    type Config = Config;
    type State = ();
    type Stream = Seeing;

    fn new(config: Config) -> Result<Self, Refusal> {
        let rules = Rules::new(&config)?;
        let target = |prefix: &str, place: Place, name: &str| Target {
            header: Header::new(&rules, name),
            key: format!("scrub.{prefix}{}", if prefix.is_empty() { place.name() } else { name }).into(),
            place,
        };
        let list = |path: &str, names: &[HeaderName]| -> Result<(), Refusal> {
            let twice = |index: &usize| names.iter().take(*index).any(|earlier| Some(earlier) == names.get(*index));
            match (0..names.len()).find(twice) {
                None => Ok(()),
                Some(index) => Err(Refusal::at(&format!("{path}[{index}]"), "stands there twice, take one out")),
            }
        };
        let outputs = &config.outputs;
        list("outputs.request_headers", &outputs.request_headers)?;
        list("outputs.response_headers", &outputs.response_headers)?;
        list("mutate.request_headers", &config.mutate.request_headers)?;
        list("mutate.response_headers", &config.mutate.response_headers)?;
        let named = [
            (outputs.authority, Place::Authority, ":authority"),
            (outputs.referer, Place::Referer, "referer"),
            (outputs.user_agent, Place::UserAgent, "user-agent"),
        ];
        let named = named.iter().filter(|(on, ..)| *on).map(|(_, place, name)| target("", *place, name));
        let headers = outputs.request_headers.iter();
        let headers = headers.map(|name| target("header.", Place::RequestHeader, name.as_str()));
        let request: Vec<Target> = named.chain(headers).collect();
        let marks: Vec<u8> = request.iter().map(|target| mark(target.header.name().as_bytes())).collect();
        let marked = marks.iter().fold(0, |marked, mark| marked | 1 << mark);
        let headers = outputs.response_headers.iter();
        let response = headers.map(|name| target("response_header.", Place::ResponseHeader, name.as_str())).collect();
        let plain = |names: &[HeaderName]| names.iter().map(|name| Header::new(&rules, name.as_str())).collect();
        let mutate_request = plain(&config.mutate.request_headers);
        let mutate_response = plain(&config.mutate.response_headers);
        Ok(Self { config, rules, request, marks, marked, response, mutate_request, mutate_response })
    }

    fn metrics() -> Vec<&'static Metric> {
        vec![&FINDINGS, &UNSCANNED_TOTAL, &BYTES]
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        let (tally, mutate) = (&mut cx.stream.tally, self.config.mutate.request_body);
        self.mutate(Place::RequestHeader, &self.mutate_request, tally, headers);
        if (self.config.outputs.request_body || mutate) && !headers.ends() {
            cx.stream.request_body =
                Some(Passing::begin(Place::RequestBody, &self.rules, mutate, self.most(), headers));
        }
        Flow::Continue
    }

    fn request_body(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) -> Pass {
        let passing = &mut cx.stream.request_body;
        passing.as_mut().map_or(Pass::On, |passing| passing.pass(&self.rules, self.most(), body))
    }

    fn request_trailers(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) {
        if let Some(passing) = &mut cx.stream.request_body {
            passing.end(&self.rules, self.most(), body);
        }
    }

    fn response_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        let (tally, mutate) = (&mut cx.stream.tally, self.config.mutate.response_body);
        self.mutate(Place::ResponseHeader, &self.mutate_response, tally, headers);
        if (self.config.outputs.response_body || mutate) && !headers.ends() {
            cx.stream.response_body =
                Some(Passing::begin(Place::ResponseBody, &self.rules, mutate, self.most(), headers));
        }
        Flow::Continue
    }

    fn response_body(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) -> Pass {
        let passing = &mut cx.stream.response_body;
        passing.as_mut().map_or(Pass::On, |passing| passing.pass(&self.rules, self.most(), body))
    }

    fn response_trailers(&self, cx: &mut Context<'_, Self>, body: &Body<'_>) {
        if let Some(passing) = &mut cx.stream.response_body {
            passing.end(&self.rules, self.most(), body);
        }
    }

    fn log(&self, cx: &mut Context<'_, Self>, request: &Headers<'_>, response: &Headers<'_>) {
        let outputs = &self.config.outputs;
        let mut tally = core::mem::take(&mut cx.stream.tally);
        let mut line = (outputs.line || outputs.proxy_log).then(Line::default);
        self.log_request(cx, request, &mut tally, &mut line);
        self.log_response(cx, response, &mut tally);
        let bodies = [
            (cx.stream.request_body.take(), outputs.request_body, "scrub.request_body"),
            (cx.stream.response_body.take(), outputs.response_body, "scrub.response_body"),
        ];
        for (passing, wanted, key) in bodies {
            if let Some(clean) = passing.and_then(|passing| passing.finish(&self.rules, &mut tally))
                && wanted
            {
                let _ = cx.host.set_filter_state(key, &clean);
            }
        }
        if let Some(line) = line {
            let text = line.finish(cx.host, &self.rules, request, response, &tally.seen);
            if outputs.line {
                let _ = cx.host.set_filter_state("scrub.log", text.as_bytes());
            }
            if outputs.proxy_log {
                kit::log::info!("{text}");
            }
        }
        self.count(cx, &tally);
    }
}

impl LogScrub {
    fn most(&self) -> usize {
        usize::try_from(self.config.max_body.get()).unwrap_or(0)
    }

    /// Cleans headers on their way. What is no text goes on as it is.
    fn mutate(&self, place: Place, list: &[Header], tally: &mut Tally, headers: &mut Headers<'_>) {
        for header in list {
            let mut changed = false;
            let values: Vec<Vec<u8>> = headers
                .all(header.name())
                .map(|value| match tally.clean(place, value, &|value, found| header.clean(&self.rules, value, found)) {
                    Some(Cow::Owned(clean)) => {
                        changed |= clean != value;
                        clean
                    }
                    _ => value.to_vec(),
                })
                .collect();
            if !changed {
                continue;
            }
            headers.remove(header.name());
            for value in values {
                headers.add(header.name(), &value);
            }
        }
    }

    fn log_request(&self, cx: &Context<'_, Self>, request: &Headers<'_>, tally: &mut Tally, line: &mut Option<Line>) {
        let outputs = &self.config.outputs;
        let wants_path = outputs.path || outputs.query;
        if !wants_path && !outputs.method && self.request.is_empty() {
            return;
        }
        let (mut path, mut original) = (None, None);
        let mut copies: Vec<Option<Cow<'_, [u8]>>> = Vec::new();
        copies.resize(self.request.len(), None);
        for (name, value) in request.iter() {
            match name {
                b":path" => path = Some(value),
                b":method" if outputs.method => {
                    let _ = cx.host.set_filter_state("scrub.method", line::method(value).as_bytes());
                }
                // What the client sent, where a route has rewritten it.
                b"x-envoy-original-path" => original = Some(value),
                _ => {}
            }
            let of = mark(name);
            if self.marked >> of & 1 == 0 {
                continue;
            }
            for (place, _) in self.marks.iter().enumerate().filter(|(_, mark)| **mark == of) {
                if let (Some(target), Some(copy)) = (self.request.get(place), copies.get_mut(place))
                    && target.header.name().as_bytes() == name
                {
                    self.copy(target, value, tally, copy);
                }
            }
        }
        self.leave(cx, &self.request, &copies, "scrub.headers");
        let Some(whole) = original.or(path).filter(|_| wants_path) else { return };
        let (path, query) = match whole.iter().position(|byte| *byte == b'?') {
            Some(at) => (whole.get(..at).unwrap_or(whole), whole.get(at.saturating_add(1)..)),
            None => (whole, None),
        };
        let utf8 = |text: &[u8]| if core::str::from_utf8(text).is_ok() { Ok(()) } else { Err(places::Why::Encoding) };
        if outputs.path {
            let clean = tally.clean(Place::Path, path, &|path, found| {
                utf8(path)?;
                Ok(places::path(&self.rules, path, found))
            });
            let clean = clean.unwrap_or(Cow::Borrowed(UNSCANNED));
            let _ = cx.host.set_filter_state("scrub.path", &clean);
            if let Some(line) = line {
                line.path = clean.into_owned();
            }
        }
        if outputs.query
            && let Some(query) = query
        {
            let clean = tally.clean(Place::Query, query, &|query, found| {
                utf8(query)?;
                Ok(places::query(&self.rules, query, found))
            });
            let clean = clean.unwrap_or(Cow::Borrowed(UNSCANNED));
            let _ = cx.host.set_filter_state("scrub.query", &clean);
            if let Some(line) = line {
                line.query = Some(clean.into_owned());
            }
        }
    }

    fn log_response(&self, cx: &Context<'_, Self>, response: &Headers<'_>, tally: &mut Tally) {
        if self.response.is_empty() {
            return;
        }
        let names = self.response.iter().map(|target| target.header.name());
        let trailers: Vec<_> = names
            .map(|name| match response.get(name) {
                Some(_) => None,
                None => cx.host.header(Map::ResponseTrailers, name).ok(),
            })
            .collect();
        let mut copies: Vec<Option<Cow<'_, [u8]>>> = Vec::new();
        for (target, trailer) in self.response.iter().zip(&trailers) {
            let mut copy = None;
            for value in response.all(target.header.name()).chain(trailer.as_deref()) {
                self.copy(target, value, tally, &mut copy);
            }
            copies.push(copy);
        }
        self.leave(cx, &self.response, &copies, "scrub.response_headers");
    }

    /// Leaves clean headers for logs.
    fn leave(&self, cx: &Context<'_, Self>, targets: &[Target], copies: &[Option<Cow<'_, [u8]>>], together: &str) {
        let mut json = Json::new();
        for (target, copy) in targets.iter().zip(copies) {
            let Some(copy) = copy else { continue };
            if self.config.outputs.headers_as == HeadersAs::Each || target.is_single() {
                let _ = cx.host.set_filter_state(&target.key, copy);
            } else {
                json.text(target.header.name(), &String::from_utf8_lossy(copy));
            }
        }
        if let Some(text) = json.finish() {
            let _ = cx.host.set_filter_state(together, text.as_bytes());
        }
    }

    /// Cleans a value of a header into its copy. Of several, each is cleaned by itself.
    fn copy<'t>(&self, target: &Target, value: &'t [u8], tally: &mut Tally, copy: &mut Option<Cow<'t, [u8]>>) {
        let clean = tally.clean(target.place, value, &|value, found| target.header.clean(&self.rules, value, found));
        let clean = clean.unwrap_or(Cow::Borrowed(UNSCANNED));
        *copy = Some(match copy.take() {
            None => clean,
            Some(earlier) => Cow::Owned([&*earlier, b", ", &*clean].concat()),
        });
    }

    fn count(&self, cx: &mut Context<'_, Self>, tally: &Tally) {
        for Seen { place, findings, unscanned } in &tally.seen {
            for (rule, count) in findings.iter(&self.rules) {
                cx.metrics.add(cx.host, &FINDINGS, &[rule, place.name()], i64::from(count));
            }
            let parts = i64::from(findings.unscanned());
            if parts > 0 {
                cx.metrics.add(cx.host, &UNSCANNED_TOTAL, &[Reason::Part.name()], parts);
            }
            if let Some(reason) = unscanned {
                cx.metrics.add(cx.host, &UNSCANNED_TOTAL, &[reason.name()], 1);
            }
        }
        if tally.bytes > 0 {
            cx.metrics.add(cx.host, &BYTES, &[], i64::try_from(tally.bytes).unwrap_or(i64::MAX));
        }
    }
}

kit::export!(LogScrub);
