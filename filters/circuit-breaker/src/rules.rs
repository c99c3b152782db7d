//! Rules: what they say, and how they are read from documents in three forms.
//!
//! Ours is `{"rules": […]}` with names in snake_case. Sentinel's JSON arrays are taken unchanged, as sentinel-golang writes
//! them (`retryTimeoutMs` …) and as Sentinel and its dashboard write them (`grade`, `count`, `timeWindow` …). An item is
//! told by its fields' names, so a list may hold items of several forms, but an item is of one.
//!
//! A set is read whole or not at all. What is read keeps within the bounds that are written at the fields of [`Rule`].

// Sentinel's fields are called as Sentinel calls them.
#![allow(non_snake_case)]

use crate::adaptive::Adaptive as Measure;
use crate::moment;
use core::fmt;
use kit::Refusal;
use kit::config::{Duration, HeaderName, Known};
use kit::prelude::*;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// Most rules of a set.
pub const MOST_RULES: usize = 1000;
/// Longest name of a resource, in bytes.
pub const LONGEST_RESOURCE: usize = 256;
const LONGEST_ID: usize = 256 + 32;
const LONGEST_BODY: usize = 16 << 10;
const LONGEST_VALUE: usize = 1024;
/// A day: the longest span that a rule speaks of.
const DAY_MS: u32 = 86_400_000;
const MINUTE_MS: u64 = 60_000;
/// What a rule of ours has where it says nothing.
const MIN_REQUESTS: u32 = 10;
const BUCKETS: u32 = 10;

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its name within the resource: as given, else made of resource and strategy, `payment-service/slow_ratio`, with `#2`
    /// for the second such. So a rule without a name keeps its state when its numbers are changed.
    pub id: String,
    /// What it protects: 1 to 256 bytes. `*` is every resource that no other rule names.
    pub resource: String,
    /// When it trips.
    pub strategy: Strategy,
    /// Whether it acts.
    pub mode: Mode,
    /// How long it stays open before probes: 1 ms to 24 h.
    pub retry_ns: u64,
    /// Fewer requests in the window trip nothing: 1 at least.
    pub min_requests: u32,
    /// The length of the window: 1 ms to 24 h.
    pub interval_ns: u64,
    /// Into how many parts the window is cut, by which it slides: 2 to 100.
    pub buckets: u32,
    /// How many probes may be under way, and how many must succeed: 1 to 100.
    pub probes: u32,
    /// How long a probe that never ends keeps its permit: 1 ms to 24 h.
    pub probe_timeout_ns: u64,
    /// Before this time it does nothing, in ns since 1970.
    pub active_from_ns: Option<u64>,
    /// From this time on it does nothing, later than `active_from_ns`.
    pub active_until_ns: Option<u64>,
    /// The value of the fallback header: the request goes on, to another route, in place of a rejection.
    pub fallback: Option<String>,
    /// How it rejects, in place of what the plugin says.
    pub reject: Option<Reject>,
}

/// When a rule trips. Ratios are 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// By the share of requests that took longer than the limit.
    SlowRatio {
        /// What is too long.
        limit: Limit,
        /// The share.
        threshold: f64,
    },
    /// By the share of errors.
    ErrorRatio {
        /// The share.
        threshold: f64,
    },
    /// By the number of errors.
    ErrorCount {
        /// The number; of one with a fraction the next whole one.
        threshold: u32,
    },
}

impl Strategy {
    /// `slow_ratio`, `error_ratio` or `error_count`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SlowRatio { .. } => "slow_ratio",
            Self::ErrorRatio { .. } => "error_ratio",
            Self::ErrorCount { .. } => "error_count",
        }
    }
}

/// The response time beyond which a request is slow.
#[derive(Clone, Debug, PartialEq)]
pub enum Limit {
    /// Said.
    Fixed {
        /// In µs: 1 ms to 24 h.
        us: u64,
    },
    /// Measured: a multiple of a quantile, within bounds.
    Adaptive(Measure),
}

/// Whether a rule acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It rejects.
    #[default]
    Enforce,
    /// It counts and says what it would do, and rejects nothing.
    DryRun,
    /// It rejects everything.
    ForcedOpen,
    /// It counts, and never opens.
    ForcedClosed,
    /// It does nothing.
    Disabled,
}

/// How a request is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// 200 to 599.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Up to 16 KiB.
    pub body: String,
    /// Whether `retry-after` says when the next probe is due.
    pub retry_after: bool,
    /// What gRPC is told: 1 to 16.
    pub grpc_status: u8,
}

impl Default for Reject {
    fn default() -> Self {
        Self { status: 503, headers: Vec::new(), body: String::new(), retry_after: true, grpc_status: 14 }
    }
}

impl Rule {
    /// Whether `now` is within its time.
    pub fn is_active(&self, now_ns: u64) -> bool {
        self.active_from_ns.is_none_or(|from| from <= now_ns) && self.active_until_ns.is_none_or(|until| now_ns < until)
    }

    /// Whether so many bad ones of all requests in the window are too many. Without a bad one nothing trips, whatever the
    /// threshold is.
    pub fn trips(&self, total: u32, bad: u32) -> bool {
        if total < self.min_requests || bad == 0 {
            return false;
        }
        match self.strategy {
            // Divided, and not multiplied: 3 of 10 is then the very number that 0.3 is read as.
            Strategy::SlowRatio { threshold, .. } | Strategy::ErrorRatio { threshold } => {
                f64::from(bad) / f64::from(total) >= threshold
            }
            Strategy::ErrorCount { threshold } => bad >= threshold,
        }
    }

    /// What its state for a resource is known by, on every worker: 64-bit FNV-1a of the resource, NUL, and the id.
    pub fn key(&self, resource: &str) -> u64 {
        fnv(&[resource, "\0", &self.id])
    }
}

/// 64-bit FNV-1a of the parts, one after the other.
pub(crate) fn fnv(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// Reads a set of rules from a source's answer, those that say no mode enforcing.
pub fn read(document: &[u8]) -> Result<Vec<Rule>, Refusal> {
    read_as(document, Mode::Enforce)
}

/// Reads a set of rules from a source's answer; `mode` is that of rules that say none.
pub fn read_as(document: &[u8], mode: Mode) -> Result<Vec<Rule>, Refusal> {
    if document.trim_ascii().is_empty() {
        return Err(Refusal::at("", "is empty, give [] for no rules"));
    }
    let Document { items, is_list } = kit::config::parse(document)?;
    compile(&items, mode).map_err(|wrong| if is_list { wrong } else { wrong.within("rules") })
}

/// Makes rules of what is written. A refusal's path begins with the item, `[2].threshold`.
pub(crate) fn compile(items: &[Item], mode: Mode) -> Result<Vec<Rule>, Refusal> {
    if items.len() > MOST_RULES {
        return Err(Refusal::at("", &format!("is too long, give up to {MOST_RULES} rules")));
    }
    let mut rules: Vec<Rule> = Vec::with_capacity(items.len());
    // Of each rule: the item that it was made of, and whether that gave an id.
    let mut origins: Vec<(usize, bool)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let within = |wrong: Refusal| wrong.within_item(index);
        let mut rule = item.rule(mode).map_err(within)?;
        let named = !rule.id.is_empty();
        let mut alike = 1_u32;
        let mut known = false;
        if !named {
            rule.id = [&rule.resource, "/", rule.strategy.name()].concat();
        }
        for (other, (_, other_named)) in rules.iter().zip(&origins) {
            if other.resource != rule.resource {
                continue;
            }
            if named && *other_named && other.id == rule.id {
                if !other.same_but_id(&rule) {
                    let problem = "stands there twice for this resource, give each rule its own";
                    return Err(within(Refusal::at("id", problem)));
                }
                known = true;
            } else if !named && !*other_named && other.strategy.name() == rule.strategy.name() {
                alike = alike.saturating_add(1);
                known |= other.same_but_id(&rule);
            }
        }
        if known {
            continue;
        }
        if alike > 1 {
            rule.id.push_str(&format!("#{alike}"));
        }
        rules.push(rule);
        origins.push((index, named));
    }
    // An id that was given may be one that was made for another rule, earlier or later.
    for (rule, (index, _)) in rules.iter().zip(&origins).filter(|(_, (_, named))| *named) {
        let taken = |(other, (_, named)): &(&Rule, &(usize, bool))| {
            !*named && other.id == rule.id && other.resource == rule.resource
        };
        if let Some((_, (of, _))) = rules.iter().zip(&origins).find(taken) {
            let problem = format!("is what [{of}] is called, which has no id, give another");
            return Err(Refusal::at("id", &problem).within_item(*index));
        }
    }
    Ok(rules)
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.same_but_id(other)
    }
}

impl Rule {
    #[inline(never)]
    fn same_but_id(&self, other: &Rule) -> bool {
        let Rule {
            id: _,
            resource,
            strategy,
            mode,
            retry_ns,
            min_requests,
            interval_ns,
            buckets,
            probes,
            probe_timeout_ns,
            active_from_ns,
            active_until_ns,
            fallback,
            reject,
        } = self;
        *resource == other.resource
            && *strategy == other.strategy
            && *mode == other.mode
            && (*retry_ns, *interval_ns, *probe_timeout_ns)
                == (other.retry_ns, other.interval_ns, other.probe_timeout_ns)
            && (*min_requests, *buckets, *probes) == (other.min_requests, other.buckets, other.probes)
            && (*active_from_ns, *active_until_ns) == (other.active_from_ns, other.active_until_ns)
            && *fallback == other.fallback
            && *reject == other.reject
    }
}

/// A rule as it is written, in one of three forms, told by the names of its fields.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields))]
pub struct Item {
    /// Its name, a text or a number. Left out, it is made of resource and strategy, `up/error_ratio`, and `#2` for the second such.
    pub id: Option<Word>,
    /// What it protects, `payment-service`; `*` is every resource that no other rule names.
    pub resource: Option<String>,
    /// `slow_ratio`, `error_ratio` or `error_count`; Sentinel's 0, 1, 2.
    pub strategy: Option<Word>,
    /// The ratio, 0 to 1, or the number of errors from which it trips.
    pub threshold: Option<f64>,
    /// With `slow_ratio`: a request that takes longer is slow. A duration, `"500ms"`; or a measured one, `{"adaptive": {"factor": 3,
    /// "floor": "50ms", "ceiling": "2s", "quantile": 0.9}}`, which are the values of what is left out (factor 1.1 to 100,
    /// quantile 0.5 to 0.99).
    pub max_allowed_rt: Option<MaxRt>,
    /// Fewer requests in the window trip nothing. 10 if left out.
    pub min_requests: Option<f64>,
    /// The length of the window. `60s` if left out.
    pub interval: Option<Duration>,
    /// Into how many parts the window is cut, by which it slides: 2 to 100. 10 if left out.
    pub buckets: Option<f64>,
    /// How long it stays open. `60s` if left out.
    pub retry_timeout: Option<Duration>,
    /// How many probes may be under way, and how many must succeed: 1 to 100. 1 if left out.
    pub probes: Option<f64>,
    /// How long a probe that never ends keeps its permit. As long as `retry_timeout` if left out.
    pub probe_timeout: Option<Duration>,
    /// Whether it acts. As the plugin's `mode` if left out.
    pub mode: Option<Mode>,
    /// From when on it counts, `2026-01-01T00:00:00Z`.
    pub active_from: Option<String>,
    /// Until when it counts.
    pub active_until: Option<String>,
    /// Sets the fallback header to this, and the request goes on, in place of a rejection.
    pub fallback: Option<String>,
    /// How it rejects, in place of the plugin's `reject`.
    pub reject: Option<Rejection>,
    /// Of sentinel-golang: `retry_timeout`.
    pub retryTimeoutMs: Option<f64>,
    /// Of both Sentinels: `min_requests`.
    pub minRequestAmount: Option<f64>,
    /// Of both Sentinels: `interval`.
    pub statIntervalMs: Option<f64>,
    /// Of sentinel-golang: `buckets`. 1, which it has where nothing is said, is 10 here.
    pub statSlidingWindowBucketCount: Option<f64>,
    /// Of sentinel-golang: `max_allowed_rt`.
    pub maxAllowedRtMs: Option<f64>,
    /// Of sentinel-golang: `probes`.
    pub probeNum: Option<f64>,
    /// Of Sentinel: `strategy`, 0, 1 or 2.
    pub grade: Option<f64>,
    /// Of Sentinel: `max_allowed_rt` with grade 0, else `threshold`.
    pub count: Option<f64>,
    /// Of Sentinel: `retry_timeout`, in seconds.
    pub timeWindow: Option<f64>,
    /// Of Sentinel: `threshold` with grade 0.
    pub slowRatioThreshold: Option<f64>,
    /// Of Sentinel: whether `resource` is a regular expression, which is not taken.
    pub regex: Option<bool>,
    /// Of Sentinel. Breaking does not look at it there either.
    pub limitApp: Option<Anything>,
    /// Of Sentinel's dashboard, not looked at.
    pub app: Option<Anything>,
    /// Of Sentinel's dashboard, not looked at.
    pub ip: Option<Anything>,
    /// Of Sentinel's dashboard, not looked at.
    pub port: Option<Anything>,
    /// Of Sentinel's dashboard, not looked at.
    pub gmtCreate: Option<Anything>,
    /// Of Sentinel's dashboard, not looked at.
    pub gmtModified: Option<Anything>,
    /// Of Sentinel before 1.8, where it was state, not looked at.
    pub passCount: Option<Anything>,
    /// Of Sentinel before 1.8, where it was state, not looked at.
    pub cut: Option<Anything>,
    /// Of Sentinel before 1.8, not looked at, as in later ones.
    pub rtSlowRequestAmount: Option<Anything>,
}

kit::fields!(Item {
    id,
    resource,
    strategy,
    threshold,
    max_allowed_rt,
    min_requests,
    interval,
    buckets,
    retry_timeout,
    probes,
    probe_timeout,
    mode,
    active_from,
    active_until,
    fallback,
    reject,
    retryTimeoutMs,
    minRequestAmount,
    statIntervalMs,
    statSlidingWindowBucketCount,
    maxAllowedRtMs,
    probeNum,
    grade,
    count,
    timeWindow,
    slowRatioThreshold,
    regex,
    limitApp,
    app,
    ip,
    port,
    gmtCreate,
    gmtModified,
    passCount,
    cut,
    rtSlowRequestAmount,
});

enum Form {
    Own,
    Golang,
    Java,
}

impl Item {
    fn rule(&self, mode: Mode) -> Result<Rule, Refusal> {
        let form = self.form()?;
        let resource = self.resource.as_deref().unwrap_or_default();
        let resource = name("resource", resource, LONGEST_RESOURCE, "name what it protects, or * for all the rest")?;
        let id = match &self.id {
            // A row of the dashboard's own table: another on each of its starts.
            _ if matches!(form, Form::Java) => String::new(),
            None => String::new(),
            // sentinel-golang writes this for none.
            Some(Word::Text(id)) if id.is_empty() && matches!(form, Form::Golang) => String::new(),
            Some(id) => name("id", &id.text(), LONGEST_ID, "give a name or leave it out")?,
        };
        let mut rule = Rule {
            id,
            resource,
            strategy: Strategy::ErrorCount { threshold: 0 },
            mode: self.mode.unwrap_or(mode),
            retry_ns: 0,
            min_requests: 0,
            interval_ns: 0,
            buckets: BUCKETS,
            probes: 1,
            probe_timeout_ns: 0,
            active_from_ns: None,
            active_until_ns: None,
            fallback: None,
            reject: None,
        };
        match form {
            Form::Own => self.own(&mut rule)?,
            Form::Golang => self.golang(&mut rule)?,
            Form::Java => self.java(&mut rule)?,
        }
        Ok(rule)
    }

    /// Which form it is of: ours if nothing tells.
    fn form(&self) -> Result<Form, Refusal> {
        let (text, number) = match &self.strategy {
            Some(Word::Text(_)) => (true, false),
            Some(Word::Number(_)) => (false, true),
            None => (false, false),
        };
        let own = first(&[
            ("strategy", text),
            ("max_allowed_rt", self.max_allowed_rt.is_some()),
            ("min_requests", self.min_requests.is_some()),
            ("interval", self.interval.is_some()),
            ("buckets", self.buckets.is_some()),
            ("retry_timeout", self.retry_timeout.is_some()),
            ("probes", self.probes.is_some()),
            ("probe_timeout", self.probe_timeout.is_some()),
            ("mode", self.mode.is_some()),
            ("active_from", self.active_from.is_some()),
            ("active_until", self.active_until.is_some()),
            ("fallback", self.fallback.is_some()),
            ("reject", self.reject.is_some()),
        ]);
        let golang = first(&[
            ("strategy", number),
            ("retryTimeoutMs", self.retryTimeoutMs.is_some()),
            ("statSlidingWindowBucketCount", self.statSlidingWindowBucketCount.is_some()),
            ("maxAllowedRtMs", self.maxAllowedRtMs.is_some()),
            ("probeNum", self.probeNum.is_some()),
        ]);
        let java = first(&[
            ("grade", self.grade.is_some()),
            ("count", self.count.is_some()),
            ("timeWindow", self.timeWindow.is_some()),
            ("slowRatioThreshold", self.slowRatioThreshold.is_some()),
            ("regex", self.regex.is_some()),
            ("limitApp", self.limitApp.is_some()),
            ("app", self.app.is_some()),
            ("ip", self.ip.is_some()),
            ("port", self.port.is_some()),
            ("gmtCreate", self.gmtCreate.is_some()),
            ("gmtModified", self.gmtModified.is_some()),
            ("passCount", self.passCount.is_some()),
            ("cut", self.cut.is_some()),
            ("rtSlowRequestAmount", self.rtSlowRequestAmount.is_some()),
        ]);
        let sentinel = first(&[
            ("minRequestAmount", self.minRequestAmount.is_some()),
            ("statIntervalMs", self.statIntervalMs.is_some()),
        ]);
        let threshold = self.threshold.map(|_| "threshold");
        let two = own.zip(golang).or(own.zip(java)).or(own.zip(sentinel)).or(golang.zip(java)).or(java.zip(threshold));
        if let Some((one, other)) = two {
            let problem = format!("is of another form of rules than `{one}`, give all fields of one form");
            return Err(Refusal::at(other, &problem));
        }
        Ok(match (golang.or(sentinel), java) {
            (_, Some(_)) => Form::Java,
            (Some(_), None) => Form::Golang,
            (None, None) => Form::Own,
        })
    }

    fn own(&self, rule: &mut Rule) -> Result<(), Refusal> {
        let names = "give one of slow_ratio, error_ratio, error_count";
        let threshold = |most| ratio("threshold", self.threshold, most);
        rule.strategy = match &self.strategy {
            Some(Word::Text(name)) if name == "slow_ratio" => {
                Strategy::SlowRatio { limit: self.limit()?, threshold: threshold(1)? }
            }
            Some(Word::Text(name)) if name == "error_ratio" => Strategy::ErrorRatio { threshold: threshold(1)? },
            Some(Word::Text(name)) if name == "error_count" => {
                Strategy::ErrorCount { threshold: count(threshold(u32::MAX)?) }
            }
            Some(_) => return Err(Refusal::at("strategy", &["is not known, ", names].concat())),
            None => return Err(Refusal::at("strategy", &["is missing, ", names].concat())),
        };
        if self.max_allowed_rt.is_some() && !matches!(rule.strategy, Strategy::SlowRatio { .. }) {
            return Err(Refusal::at("max_allowed_rt", "is for slow_ratio alone, take it out"));
        }
        rule.retry_ns = ns(span("retry_timeout", self.retry_timeout, MINUTE_MS)?);
        rule.interval_ns = ns(span("interval", self.interval, MINUTE_MS)?);
        rule.probe_timeout_ns = ns(span("probe_timeout", self.probe_timeout, rule.retry_ns / 1_000_000)?);
        rule.min_requests = whole("min_requests", self.min_requests, 0, u32::MAX, Some(MIN_REQUESTS))?.max(1);
        rule.buckets = buckets(whole("buckets", self.buckets, 1, 100, Some(BUCKETS))?);
        rule.probes = whole("probes", self.probes, 1, 100, Some(1))?;
        rule.active_from_ns = time("active_from", self.active_from.as_deref())?;
        rule.active_until_ns = time("active_until", self.active_until.as_deref())?;
        if rule.active_from_ns.zip(rule.active_until_ns).is_some_and(|(from, until)| from >= until) {
            return Err(Refusal::at("active_until", "is not later than `active_from`, give a later time"));
        }
        if let Some(fallback) = &self.fallback {
            if fallback.is_empty() {
                return Err(Refusal::at("fallback", "is empty, give what the fallback header is to say"));
            }
            value("fallback", fallback)?;
            rule.fallback = Some(fallback.clone());
        }
        rule.reject =
            self.reject.as_ref().map(|reject| reject.compile().map_err(|w| w.within("reject"))).transpose()?;
        Ok(())
    }

    fn limit(&self) -> Result<Limit, Refusal> {
        const FIELD: &str = "max_allowed_rt";
        match &self.max_allowed_rt {
            None => {
                Err(Refusal::at(FIELD, "is missing, give the time beyond which a request is slow, such as \"500ms\""))
            }
            Some(MaxRt::Fixed(limit)) => Ok(Limit::Fixed { us: us(span(FIELD, Some(*limit), 0)?) }),
            Some(MaxRt::Adaptive(adaptive)) => {
                adaptive.compile().map_err(|wrong| wrong.within("adaptive").within(FIELD))
            }
        }
    }

    /// Where nothing is said it is as there, except that what has no sensible default, and is always written there, is
    /// refused: the threshold, and times, for which it has 0.
    fn golang(&self, rule: &mut Rule) -> Result<(), Refusal> {
        let threshold = |most| ratio("threshold", self.threshold, most);
        rule.strategy = match &self.strategy {
            None | Some(Word::Number(0)) => {
                let field = "maxAllowedRtMs";
                let limit = self.maxAllowedRtMs.filter(|ms| *ms != 0.0);
                let limit = whole(field, Some(limit.ok_or_else(|| slow_without_limit(field))?), 1, DAY_MS, None)?;
                Strategy::SlowRatio { limit: Limit::Fixed { us: us(limit.into()) }, threshold: threshold(1)? }
            }
            Some(Word::Number(1)) => Strategy::ErrorRatio { threshold: threshold(1)? },
            Some(Word::Number(2)) => Strategy::ErrorCount { threshold: count(threshold(u32::MAX)?) },
            Some(_) => return Err(Refusal::at("strategy", "is not known, give 0, 1 or 2")),
        };
        let ms = |field, ms| whole(field, ms, 1, DAY_MS, None).map(|ms| ns(ms.into()));
        rule.retry_ns = ms("retryTimeoutMs", self.retryTimeoutMs)?;
        rule.interval_ns = ms("statIntervalMs", self.statIntervalMs)?;
        rule.probe_timeout_ns = rule.retry_ns;
        rule.min_requests = whole("minRequestAmount", self.minRequestAmount, 0, u32::MAX, Some(0))?.max(1);
        let field = "statSlidingWindowBucketCount";
        rule.buckets = buckets(whole(field, self.statSlidingWindowBucketCount, 0, 100, Some(0))?);
        rule.probes = whole("probeNum", self.probeNum, 0, 100, Some(0))?.max(1);
        Ok(())
    }

    fn java(&self, rule: &mut Rule) -> Result<(), Refusal> {
        if self.regex == Some(true) {
            return Err(Refusal::at("regex", "is not taken, name each resource, or give *"));
        }
        rule.strategy = match whole("grade", self.grade, 0, 2, Some(0))? {
            0 => {
                let limit = self.count.filter(|ms| *ms != 0.0);
                let limit = limit.ok_or_else(|| slow_without_limit("count"))?;
                let limit = rounded(limit).filter(|ms| (1..=DAY_MS).contains(ms));
                let limit = limit.ok_or_else(|| out_of("count", 1, DAY_MS))?;
                let threshold = ratio("slowRatioThreshold", self.slowRatioThreshold.or(Some(1.0)), 1)?;
                Strategy::SlowRatio { limit: Limit::Fixed { us: us(limit.into()) }, threshold }
            }
            1 => Strategy::ErrorRatio { threshold: ratio("count", self.count, 1)? },
            _ => Strategy::ErrorCount { threshold: count(ratio("count", self.count, u32::MAX)?) },
        };
        let seconds = whole("timeWindow", self.timeWindow, 1, DAY_MS / 1000, None)?;
        rule.retry_ns = ns(u64::from(seconds).saturating_mul(1000));
        rule.interval_ns = ns(whole("statIntervalMs", self.statIntervalMs, 1, DAY_MS, Some(1000))?.into());
        rule.probe_timeout_ns = rule.retry_ns;
        rule.min_requests = whole("minRequestAmount", self.minRequestAmount, 0, u32::MAX, Some(5))?.max(1);
        Ok(())
    }
}

#[inline(never)]
fn first(fields: &[(&'static str, bool)]) -> Option<&'static str> {
    fields.iter().find(|(_, given)| *given).map(|(field, _)| *field)
}

#[cold]
fn slow_without_limit(field: &str) -> Refusal {
    Refusal::at(field, "is missing, give the milliseconds beyond which a request is slow, such as 500")
}

fn ns(ms: u64) -> u64 {
    ms.saturating_mul(1_000_000)
}

fn us(ms: u64) -> u64 {
    ms.saturating_mul(1000)
}

/// One bucket, which Sentinel has where nothing is said, would be a window that tumbles and forgets all at its end.
fn buckets(number: u32) -> u32 {
    if number < 2 { BUCKETS } else { number }
}

/// The least whole number that is not below `value`; `None` out of bounds. By halves, since numbers have no lossless way
/// from float to whole.
#[inline(never)]
fn ceiling(value: f64) -> Option<u32> {
    if !(0.0..=f64::from(u32::MAX)).contains(&value) {
        return None;
    }
    let (mut low, mut high) = (0, u32::MAX);
    while low < high {
        let middle = u32::midpoint(low, high);
        if f64::from(middle) < value {
            low = middle.saturating_add(1);
        } else {
            high = middle;
        }
    }
    Some(low)
}

/// The nearest whole number, as Sentinel rounds a response time that its dashboard gave it with a fraction.
fn rounded(value: f64) -> Option<u32> {
    let above = ceiling(value)?;
    Some(if f64::from(above) - value > 0.5 { above.saturating_sub(1) } else { above })
}

/// A number of errors: `ratio` has seen to its bounds.
fn count(threshold: f64) -> u32 {
    ceiling(threshold).unwrap_or(u32::MAX)
}

#[cold]
fn out_of(field: &str, min: u32, max: u32) -> Refusal {
    Refusal::at(field, &format!("is out of range, give a whole number from {min} to {max}"))
}

/// A whole number within bounds; `None` for a default: must be given.
#[inline(never)]
fn whole(field: &str, value: Option<f64>, min: u32, max: u32, default: Option<u32>) -> Result<u32, Refusal> {
    let Some(value) = value else {
        let missing = || Refusal::at(field, &format!("is missing, give a whole number from {min} to {max}"));
        return default.ok_or_else(missing);
    };
    let number = ceiling(value).filter(|number| f64::from(*number) == value && (min..=max).contains(number));
    number.ok_or_else(|| out_of(field, min, max))
}

/// A number from 0 to `most`.
#[inline(never)]
fn ratio(field: &str, value: Option<f64>, most: u32) -> Result<f64, Refusal> {
    let problem = match value {
        Some(value) if (0.0..=f64::from(most)).contains(&value) => return Ok(value),
        Some(_) => "is out of range",
        None => "is missing",
    };
    Err(Refusal::at(field, &format!("{problem}, give a number from 0 to {most}")))
}

/// Milliseconds, 1 to a day; the default is within that.
#[inline(never)]
fn span(field: &str, value: Option<Duration>, default: u64) -> Result<u64, Refusal> {
    let ms = value.map_or(default, Duration::ms);
    if (1..=u64::from(DAY_MS)).contains(&ms) {
        Ok(ms)
    } else {
        Err(Refusal::at(field, "is out of range, give a duration from \"1ms\" to \"24h\""))
    }
}

#[inline(never)]
fn time(field: &str, text: Option<&str>) -> Result<Option<u64>, Refusal> {
    let wrong = || Refusal::at(field, "is no time, give one such as \"2026-01-01T00:00:00Z\"");
    text.map(|text| moment::read(text).ok_or_else(wrong)).transpose()
}

/// A name that stands in logs and metrics.
#[inline(never)]
fn name(field: &str, text: &str, longest: usize, cure: &str) -> Result<String, Refusal> {
    let problem = if text.is_empty() {
        "is missing or empty"
    } else if text.len() > longest || text.chars().any(char::is_control) {
        &format!("is longer than {longest} bytes or not in one line")
    } else {
        return Ok(text.into());
    };
    Err(Refusal::at(field, &[problem, ", ", cure].concat()))
}

/// The value of a header (RFC 9110, 5.5).
#[inline(never)]
pub(crate) fn value(field: &str, text: &str) -> Result<(), Refusal> {
    let valid = |b: u8| b == b'\t' || (b >= b' ' && b != 0x7f);
    if text.len() <= LONGEST_VALUE && text.bytes().all(valid) && text.trim_ascii() == text {
        return Ok(());
    }
    let problem = format!("is no header value, give up to {LONGEST_VALUE} bytes in one line, without blanks around");
    Err(Refusal::at(field, &problem))
}

/// A source's answer.
struct Document {
    items: Vec<Item>,
    is_list: bool,
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Document;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{\"rules\": []} or a list, [] for no rules")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Document, A::Error> {
                // As a field is read, and not by another loop of its own.
                let items = Vec::deserialize(de::value::SeqAccessDeserializer::new(list))?;
                Ok(Document { items, is_list: true })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut items = None;
                while map.next_key_seed(Known(&["rules"]))?.is_some() {
                    items = Some(map.next_value()?);
                }
                let items = items.ok_or_else(|| de::Error::custom("has no rules, give {\"rules\": []} for none"))?;
                Ok(Document { items, is_list: false })
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A text or a whole number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(untagged), schemars(inline))]
pub enum Word {
    /// A text.
    Text(String),
    /// A whole number.
    Number(u64),
}

impl Word {
    /// As a text.
    #[inline(never)]
    pub(crate) fn text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a whole number")
            }
            fn visit_str<E>(self, text: &str) -> Result<Word, E> {
                Ok(Word::Text(text.into()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Word, E> {
                Ok(Word::Number(number))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A value that is not looked at.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "schema", derive(serde::Serialize))]
pub struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

#[cfg(feature = "schema")]
impl JsonSchema for Anything {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> kit::alloc::borrow::Cow<'static, str> {
        "Anything".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        true.into()
    }
}

/// The time beyond which a request is slow.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(untagged), schemars(inline))]
pub enum MaxRt {
    /// Said.
    Fixed(Duration),
    /// Measured: `{"adaptive": {…}}`.
    #[cfg_attr(feature = "schema", schemars(with = "Measured"))]
    Adaptive(Adaptive),
}

/// Only for the schema.
#[cfg(feature = "schema")]
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, inline)]
#[allow(dead_code)]
struct Measured {
    /// By what is measured.
    adaptive: Adaptive,
}

impl<'de> Deserialize<'de> for MaxRt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = MaxRt;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"500ms\" or {\"adaptive\": {}}")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<MaxRt, E> {
                Duration::deserialize(text.into_deserializer()).map(MaxRt::Fixed)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MaxRt, A::Error> {
                let mut read = None;
                while map.next_key_seed(Known(&["adaptive"]))?.is_some() {
                    read = Some(map.next_value()?);
                }
                read.map(MaxRt::Adaptive).ok_or_else(|| de::Error::custom("is empty, give {\"adaptive\": {}}"))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A limit that is measured: a multiple of a quantile of the response times, within bounds.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Adaptive {
    /// The multiple, 1 to 100.
    pub factor: f64,
    /// The least limit.
    pub floor: Duration,
    /// The largest limit.
    pub ceiling: Duration,
    /// The quantile, 0.5 to 0.99.
    pub quantile: f64,
}

kit::fields!(Adaptive { factor, floor, ceiling, quantile });

impl Default for Adaptive {
    fn default() -> Self {
        Self { factor: 3.0, floor: Duration::from_ms(50), ceiling: Duration::from_ms(2000), quantile: 0.9 }
    }
}

impl Adaptive {
    fn compile(&self) -> Result<Limit, Refusal> {
        if !(1.1..=100.0).contains(&self.factor) {
            return Err(Refusal::at("factor", "is out of range, give a number from 1.1 to 100"));
        }
        if !(0.5..=0.99).contains(&self.quantile) {
            return Err(Refusal::at("quantile", "is out of range, give a number from 0.5 to 0.99"));
        }
        let floor = span("floor", Some(self.floor), 0)?;
        let ceiling = span("ceiling", Some(self.ceiling), 0)?;
        if floor > ceiling {
            return Err(Refusal::at("floor", "is above `ceiling`, give a lower one"));
        }
        let (floor_us, ceiling_us) = (us(floor), us(ceiling));
        Ok(Limit::Adaptive(Measure { factor: self.factor, floor_us, ceiling_us, quantile: self.quantile }))
    }
}

/// How a request is rejected.
#[derive(Clone, Debug)]
#[cfg_attr(
    feature = "schema",
    derive(JsonSchema, serde::Serialize),
    serde(deny_unknown_fields, default),
    schemars(inline)
)]
pub struct Rejection {
    /// The status, 200 to 599.
    pub status: f64,
    /// Headers by name.
    pub headers: HeaderMap,
    /// The body, up to 16 KiB.
    pub body: String,
    /// Whether `retry-after` says when the next probe is due.
    pub retry_after: bool,
    /// What gRPC is told, 1 to 16, in place of the status.
    pub grpc_status: f64,
}

kit::fields!(Rejection { status, headers, body, retry_after, grpc_status });

impl Default for Rejection {
    fn default() -> Self {
        let Reject { status, headers: _, body, retry_after, grpc_status } = Reject::default();
        let headers = HeaderMap::default();
        Self { status: status.into(), headers, body, retry_after, grpc_status: grpc_status.into() }
    }
}

impl Rejection {
    pub(crate) fn compile(&self) -> Result<Reject, Refusal> {
        let status = whole("status", Some(self.status), 200, 599, None)?;
        let grpc_status = whole("grpc_status", Some(self.grpc_status), 1, 16, None)?;
        let headers = self.headers.compile()?;
        if self.retry_after && headers.iter().any(|(name, _)| name == "retry-after") {
            let problem = "is what the filter says itself, take it out or give `retry_after` false";
            return Err(Refusal::at("headers.retry-after", problem));
        }
        if self.body.len() > LONGEST_BODY {
            return Err(Refusal::at("body", &format!("is too long, give up to {LONGEST_BODY} bytes")));
        }
        Ok(Reject {
            // Both are within bounds.
            status: u16::try_from(status).unwrap_or(503),
            headers,
            body: self.body.clone(),
            retry_after: self.retry_after,
            grpc_status: u8::try_from(grpc_status).unwrap_or(14),
        })
    }
}

/// Headers, `{"name": "value"}`.
#[derive(Clone, Debug, Default)]
pub struct HeaderMap(Vec<(HeaderName, String)>);

impl HeaderMap {
    pub(crate) fn compile(&self) -> Result<Vec<(String, String)>, Refusal> {
        let mut headers: Vec<(String, String)> = Vec::with_capacity(self.0.len());
        for (name, text) in &self.0 {
            let name = name.as_str();
            value(name, text).map_err(|wrong| wrong.within("headers"))?;
            headers.push((name.into(), text.clone()));
        }
        Ok(headers)
    }
}

impl<'de> Deserialize<'de> for HeaderMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = HeaderMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object such as {\"content-type\": \"text/plain\"}")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderMap, A::Error> {
                let mut headers = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    headers.push(pair);
                }
                Ok(HeaderMap(headers))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(feature = "schema")]
impl serde::Serialize for HeaderMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name.as_str(), value)))
    }
}

#[cfg(feature = "schema")]
impl JsonSchema for HeaderMap {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> kit::alloc::borrow::Cow<'static, str> {
        "HeaderMap".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let name = HeaderName::json_schema(generator);
        schemars::json_schema!({
            "type": "object", "propertyNames": name, "additionalProperties": { "type": "string", "maxLength": LONGEST_VALUE }
        })
    }
}

#[cfg(test)]
#[allow(clippy::as_conversions, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop, prop_oneof, proptest};
    use proptest::strategy::Strategy as Generator;

    fn one(document: &str) -> Rule {
        let mut rules = read(document.as_bytes()).unwrap_or_else(|wrong| panic!("{document}: {wrong}"));
        assert_eq!(rules.len(), 1, "{document}");
        rules.remove(0)
    }

    /// The example that all began with, in ours, as sentinel-golang and as Sentinel's dashboard write it.
    const OWN: &str = r#"{"rules": [{"resource": "payment-service", "strategy": "slow_ratio", "max_allowed_rt": "500ms",
        "threshold": 0.5, "min_requests": 10, "interval": "60s", "retry_timeout": "60s"}]}"#;
    const GOLANG: &str = r#"[{"id": "", "resource": "payment-service", "strategy": 0, "retryTimeoutMs": 60000,
        "minRequestAmount": 10, "statIntervalMs": 60000, "statSlidingWindowBucketCount": 1, "maxAllowedRtMs": 500,
        "threshold": 0.5, "probeNum": 0}]"#;
    const JAVA: &str = r#"[{"id": 7, "app": "shop", "ip": "10.0.0.7", "port": 8719, "resource": "payment-service",
        "limitApp": "default", "grade": 0, "count": 500.0, "timeWindow": 60, "minRequestAmount": 10,
        "slowRatioThreshold": 0.5, "statIntervalMs": 60000, "regex": false, "gmtCreate": null,
        "gmtModified": 1700000000000}]"#;

    #[test]
    fn the_same_rule_in_three_forms() {
        let expected = Rule {
            id: "payment-service/slow_ratio".into(),
            resource: "payment-service".into(),
            strategy: Strategy::SlowRatio { limit: Limit::Fixed { us: 500_000 }, threshold: 0.5 },
            mode: Mode::Enforce,
            retry_ns: 60_000_000_000,
            min_requests: 10,
            interval_ns: 60_000_000_000,
            buckets: 10,
            probes: 1,
            probe_timeout_ns: 60_000_000_000,
            active_from_ns: None,
            active_until_ns: None,
            fallback: None,
            reject: None,
        };
        for document in [OWN, GOLANG, JAVA] {
            assert_eq!(one(document), expected, "{document}");
        }
        // And all in one list are one rule, and in ours a list may hold Sentinel's items.
        let list = OWN.strip_prefix("{\"rules\": ").unwrap().strip_suffix('}').unwrap();
        let [own, golang, java] = [list, GOLANG, JAVA].map(|list| list.trim_matches(['[', ']']));
        assert_eq!(one(&std::format!("[{own}, {golang}, {java}]")), expected);
        assert_eq!(one(&std::format!(r#"{{"rules": [{java}]}}"#)), expected);
    }

    #[test]
    fn every_field_of_ours() {
        let rule = one(r#"{"rules": [{"id": "pay-slow", "resource": "payment-service", "strategy": "slow_ratio",
            "max_allowed_rt": {"adaptive": {"factor": 4, "floor": "20ms", "ceiling": "3s", "quantile": 0.95}},
            "threshold": 0.25, "min_requests": 0, "interval": "10s", "buckets": 20, "retry_timeout": "5s", "probes": 3,
            "probe_timeout": "2s", "mode": "dry_run", "active_from": "2026-01-01T00:00:00Z",
            "active_until": "2026-01-02T00:00:00+01:00", "fallback": "static",
            "reject": {"status": 429, "headers": {"Content-Type": "text/plain"}, "body": "later", "retry_after": false,
            "grpc_status": 8}}]}"#);
        let expected = Rule {
            id: "pay-slow".into(),
            resource: "payment-service".into(),
            strategy: Strategy::SlowRatio {
                limit: Limit::Adaptive(Measure {
                    factor: 4.0,
                    floor_us: 20_000,
                    ceiling_us: 3_000_000,
                    quantile: 0.95,
                }),
                threshold: 0.25,
            },
            mode: Mode::DryRun,
            retry_ns: 5_000_000_000,
            min_requests: 1,
            interval_ns: 10_000_000_000,
            buckets: 20,
            probes: 3,
            probe_timeout_ns: 2_000_000_000,
            active_from_ns: Some(1_767_225_600_000_000_000),
            active_until_ns: Some(1_767_308_400_000_000_000),
            fallback: Some("static".into()),
            reject: Some(Reject {
                status: 429,
                headers: vec![("content-type".into(), "text/plain".into())],
                body: "later".into(),
                retry_after: false,
                grpc_status: 8,
            }),
        };
        assert_eq!(rule, expected);
        let adaptive =
            one(r#"[{"resource": "a", "strategy": "slow_ratio", "max_allowed_rt": {"adaptive": {}}, "threshold": 1}]"#);
        let limit = Limit::Adaptive(Measure { factor: 3.0, floor_us: 50_000, ceiling_us: 2_000_000, quantile: 0.9 });
        assert_eq!(adaptive.strategy, Strategy::SlowRatio { limit, threshold: 1.0 });
        let plain = one(
            r#"[{"resource": "a", "strategy": "error_ratio", "threshold": 1, "reject": {}, "id": 5, "buckets": 1}]"#,
        );
        assert_eq!(plain.reject, Some(Reject::default()));
        assert_eq!((plain.id.as_str(), plain.buckets, plain.min_requests, plain.probes), ("5", 10, 10, 1));
        assert_eq!((plain.interval_ns, plain.retry_ns), (60_000_000_000, 60_000_000_000));
        let short = one(r#"[{"resource": "a", "strategy": "error_ratio", "threshold": 1, "retry_timeout": "5s"}]"#);
        assert_eq!(short.probe_timeout_ns, 5_000_000_000);
    }

    #[test]
    fn what_sentinel_leaves_out_is_as_there() {
        let rule = one(
            r#"[{"resource": "a", "threshold": 1, "maxAllowedRtMs": 1, "retryTimeoutMs": 2000, "statIntervalMs": 1000}]"#,
        );
        assert_eq!(rule.strategy, Strategy::SlowRatio { limit: Limit::Fixed { us: 1000 }, threshold: 1.0 });
        assert_eq!((rule.min_requests, rule.buckets, rule.probes), (1, 10, 1));
        assert_eq!((rule.probe_timeout_ns, rule.interval_ns), (2_000_000_000, 1_000_000_000));
        let rule = one(r#"[{"resource": "a", "count": 20, "timeWindow": 10}]"#);
        assert_eq!(rule.strategy, Strategy::SlowRatio { limit: Limit::Fixed { us: 20_000 }, threshold: 1.0 });
        assert_eq!((rule.min_requests, rule.interval_ns, rule.buckets), (5, 1_000_000_000, 10));
        assert_eq!((rule.retry_ns, rule.probe_timeout_ns, rule.probes), (10_000_000_000, 10_000_000_000, 1));
        // What was written by older ones is read as the newer ones read it.
        let old =
            r#"[{"resource": "a", "count": 20, "timeWindow": 10, "passCount": 3, "cut": 1, "rtSlowRequestAmount": 5}]"#;
        assert_eq!(one(old), rule);
        // Its maximum response time is rounded to whole milliseconds there too.
        for (count, us) in [("20.4", 20_000), ("20.5", 21_000), ("20.6", 21_000), ("2e1", 20_000)] {
            let rule = one(&std::format!(r#"[{{"resource": "a", "count": {count}, "timeWindow": 10}}]"#));
            assert_eq!(rule.strategy, Strategy::SlowRatio { limit: Limit::Fixed { us }, threshold: 1.0 }, "{count}");
        }
        let of = |text: &str| one(text).strategy;
        assert_eq!(
            of(r#"[{"resource": "a", "grade": 1, "count": 0.5, "timeWindow": 10, "slowRatioThreshold": null}]"#),
            Strategy::ErrorRatio { threshold: 0.5 }
        );
        assert_eq!(
            of(r#"[{"resource": "a", "grade": 2, "count": 9.5, "timeWindow": 10, "slowRatioThreshold": 1.0}]"#),
            Strategy::ErrorCount { threshold: 10 }
        );
        // Each rule is written with all fields there, whatever its strategy is.
        let rest = r#""resource": "a", "retryTimeoutMs": 1, "statIntervalMs": 1, "maxAllowedRtMs": 0"#;
        assert_eq!(
            of(&std::format!(r#"[{{"strategy": 1, "threshold": 0.5, {rest}}}]"#)),
            Strategy::ErrorRatio { threshold: 0.5 }
        );
        assert_eq!(
            of(&std::format!(r#"[{{"strategy": 2, "threshold": 9.01, {rest}}}]"#)),
            Strategy::ErrorCount { threshold: 10 }
        );
    }

    #[test]
    fn what_is_wrong_is_refused_with_path_and_cure() {
        let own = |more: &str| std::format!(r#"{{"rules": [{{"resource": "a", "strategy": "error_ratio", {more}}}]}}"#);
        let slow = |more: &str| std::format!(r#"{{"rules": [{{"resource": "a", "strategy": "slow_ratio", {more}}}]}}"#);
        let golang = |more: &str| std::format!(r#"[{{"resource": "a", "strategy": 1, {more}}}]"#);
        let java = |more: &str| std::format!(r#"[{{"resource": "a", {more}}}]"#);
        let good = r#"{"resource": "a", "strategy": "error_ratio", "threshold": 0.5, "id": "x"}"#;
        let other = good.replace("0.5", "0.6");
        let made = good.replace(r#", "id": "x""#, "");
        let taken = good.replace("\"x\"", "\"a/error_ratio\"");
        let long = "x".repeat(257);
        for (document, expected) in [
            ("".into(), "at `(top level)`: is empty, give [] for no rules"),
            (" \n".into(), "at `(top level)`: is empty, give [] for no rules"),
            ("null".into(), "at `(top level)`: is null, give {\"rules\": []} or a list, [] for no rules"),
            ("5".into(), "at `(top level)`: is a whole number, give {\"rules\": []} or a list, [] for no rules"),
            ("{}".into(), "at `(top level)`: has no rules, give {\"rules\": []} for none"),
            (r#"{"rule": []}"#.into(), "at `rule`: is no field, give one of rules"),
            (r#"{"rules": {}}"#.into(), "at `rules`: is an object, give a list"),
            (r#"{"rules": [], "rules": []}"#.into(), "at `rules`: stands there twice, take one out"),
            ("[null]".into(), "at `[0]`: is null, give an object"),
            (r#"[{"resource": "a"}"#.into(), "at `(top level)`: is not JSON (EOF while parsing a list"),
            (std::format!("[{}]", vec!["{}"; 1001].join(",")), "at `(top level)`: is too long, give up to 1000 rules"),
            (
                r#"{"rules": [{"strategy": "error_ratio", "threshold": 1}]}"#.into(),
                "at `rules[0].resource`: is missing or empty, name what it protects, or * for all the rest",
            ),
            (
                r#"[{"resource": "", "strategy": 1, "threshold": 1}]"#.into(),
                "at `[0].resource`: is missing or empty, name what it protects, or * for all the rest",
            ),
            (
                std::format!(r#"[{{"resource": "{long}", "grade": 1, "count": 1, "timeWindow": 1}}]"#),
                "at `[0].resource`: is longer than 256 bytes or not in one line, name what it protects",
            ),
            (
                r#"[{"resource": "a\nb", "strategy": "error_ratio", "threshold": 1}]"#.into(),
                "at `[0].resource`: is longer than 256 bytes or not in one line, name",
            ),
            (own(r#""threshold": 1, "id": """#), "at `rules[0].id`: is missing or empty, give a name or leave it out"),
            (
                own(r#""threshold": 1, "id": "a\u0000""#),
                "at `rules[0].id`: is longer than 288 bytes or not in one line, give a name or leave it out",
            ),
            (own(r#""threshold": 1, "id": -1"#), "at `rules[0].id`: is a whole number, give a text or a whole number"),
            (own(r#""threshold": 1, "id": []"#), "at `rules[0].id`: is a list, give a text or a whole number"),
            (
                r#"[{"resource": "a", "threshold": 1}]"#.into(),
                "at `[0].strategy`: is missing, give one of slow_ratio, error_ratio, error_count",
            ),
            (
                r#"[{"resource": "a", "strategy": "slow"}]"#.into(),
                "at `[0].strategy`: is not known, give one of slow_ratio, error_ratio, error_count",
            ),
            (
                own(r#""thresh": 1"#),
                "at `rules[0].thresh`: is no field, give one of id, resource, strategy, threshold,",
            ),
            (own(r#""id": "x""#), "at `rules[0].threshold`: is missing, give a number from 0 to 1"),
            (own(r#""threshold": 1.01"#), "at `rules[0].threshold`: is out of range, give a number from 0 to 1"),
            (own(r#""threshold": -0.1"#), "at `rules[0].threshold`: is out of range, give a number from 0 to 1"),
            (own(r#""threshold": "1""#), "at `rules[0].threshold`: is a text, give a number"),
            (
                r#"[{"resource": "a", "strategy": "error_count", "threshold": 4294967295.5}]"#.into(),
                "at `[0].threshold`: is out of range, give a number from 0 to 4294967295",
            ),
            (
                slow(r#""threshold": 0.5"#),
                "at `rules[0].max_allowed_rt`: is missing, give the time beyond which a request is slow, such as \"500ms\"",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": "0ms""#),
                "at `rules[0].max_allowed_rt`: is out of range, give a duration from \"1ms\" to \"24h\"",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": "soon""#),
                "at `rules[0].max_allowed_rt`: is out of range, give a duration such as \"250ms\"",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": 500"#),
                "at `rules[0].max_allowed_rt`: is a whole number, give a duration such as \"500ms\" or {\"adaptive\": {}}",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": {}"#),
                "at `rules[0].max_allowed_rt`: is empty, give {\"adaptive\": {}}",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": {"fixed": 1}"#),
                "at `rules[0].max_allowed_rt.fixed`: is no field, give one of adaptive",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": {"adaptive": {"factor": 0.5}}"#),
                "at `rules[0].max_allowed_rt.adaptive.factor`: is out of range, give a number from 1.1 to 100",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": {"adaptive": {"quantile": 1}}"#),
                "at `rules[0].max_allowed_rt.adaptive.quantile`: is out of range, give a number from 0.5 to 0.99",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": {"adaptive": {"floor": "3s"}}"#),
                "at `rules[0].max_allowed_rt.adaptive.floor`: is above `ceiling`, give a lower one",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": {"adaptive": {"floor": "0s"}}"#),
                "at `rules[0].max_allowed_rt.adaptive.floor`: is out of range, give a duration from \"1ms\" to \"24h\"",
            ),
            (
                slow(r#""threshold": 0.5, "max_allowed_rt": {"adaptive": {"ceiling": "25h"}}"#),
                "at `rules[0].max_allowed_rt.adaptive.ceiling`: is out of range, give a duration from \"1ms\" to \"24h\"",
            ),
            (
                own(r#""threshold": 1, "max_allowed_rt": "1s""#),
                "at `rules[0].max_allowed_rt`: is for slow_ratio alone, take it out",
            ),
            (
                own(r#""threshold": 1, "interval": "0s""#),
                "at `rules[0].interval`: is out of range, give a duration from \"1ms\" to \"24h\"",
            ),
            (
                own(r#""threshold": 1, "retry_timeout": "25h""#),
                "at `rules[0].retry_timeout`: is out of range, give a duration from \"1ms\" to \"24h\"",
            ),
            (
                own(r#""threshold": 1, "probe_timeout": "0ms""#),
                "at `rules[0].probe_timeout`: is out of range, give a duration from \"1ms\" to \"24h\"",
            ),
            (
                own(r#""threshold": 1, "min_requests": -1"#),
                "at `rules[0].min_requests`: is out of range, give a whole number from 0 to 4294967295",
            ),
            (
                own(r#""threshold": 1, "min_requests": 1.5"#),
                "at `rules[0].min_requests`: is out of range, give a whole number from 0 to 4294967295",
            ),
            (
                own(r#""threshold": 1, "buckets": 101"#),
                "at `rules[0].buckets`: is out of range, give a whole number from 1 to 100",
            ),
            (
                own(r#""threshold": 1, "probes": 0"#),
                "at `rules[0].probes`: is out of range, give a whole number from 1 to 100",
            ),
            (
                own(r#""threshold": 1, "mode": "open""#),
                "at `rules[0].mode`: is not known, give one of enforce, dry_run, forced_open, forced_closed, disabled",
            ),
            (
                own(r#""threshold": 1, "active_from": "tomorrow""#),
                "at `rules[0].active_from`: is no time, give one such as \"2026-01-01T00:00:00Z\"",
            ),
            (
                own(
                    r#""threshold": 1, "active_from": "2026-01-01T00:00:00Z", "active_until": "2026-01-01T01:00:00+01:00""#,
                ),
                "at `rules[0].active_until`: is not later than `active_from`, give a later time",
            ),
            (
                own(r#""threshold": 1, "fallback": """#),
                "at `rules[0].fallback`: is empty, give what the fallback header is to say",
            ),
            (
                own(r#""threshold": 1, "fallback": "a\nb""#),
                "at `rules[0].fallback`: is no header value, give up to 1024 bytes in one line, without blanks around",
            ),
            (
                own(r#""threshold": 1, "reject": {"status": 199}"#),
                "at `rules[0].reject.status`: is out of range, give a whole number from 200 to 599",
            ),
            (
                own(r#""threshold": 1, "reject": {"grpc_status": 0}"#),
                "at `rules[0].reject.grpc_status`: is out of range, give a whole number from 1 to 16",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": []}"#),
                "at `rules[0].reject.headers`: is a list, give an object such as {\"content-type\": \"text/plain\"}",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": {"Content-Length": "5"}}"#),
                "at `rules[0].reject.headers.Content-Length`: is a header that the proxy itself lives by, give another",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": {":status": "5"}}"#),
                "at `rules[0].reject.headers.:status`: is no header name, give 1 to 64",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": {"transfer-encoding": "chunked"}}"#),
                "at `rules[0].reject.headers.transfer-encoding`: is a header that the proxy itself lives by",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": {"connection": "close"}}"#),
                "at `rules[0].reject.headers.connection`: is a header that the proxy itself lives by",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": {"x-a": " b"}}"#),
                "at `rules[0].reject.headers.x-a`: is no header value, give up to 1024 bytes in one line",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": {"x-a": "a\r\nb: c"}}"#),
                "at `rules[0].reject.headers.x-a`: is no header value, give up to 1024 bytes in one line",
            ),
            (
                own(r#""threshold": 1, "reject": {"headers": {"Retry-After": "5"}}"#),
                "at `rules[0].reject.headers.retry-after`: is what the filter says itself, take it out or give `retry_after` false",
            ),
            (
                own(&std::format!(r#""threshold": 1, "reject": {{"body": "{}"}}"#, "x".repeat(16_385))),
                "at `rules[0].reject.body`: is too long, give up to 16384 bytes",
            ),
            (
                golang(r#""threshold": 1, "retryTimeoutMs": 1"#),
                "at `[0].statIntervalMs`: is missing, give a whole number from 1 to 86400000",
            ),
            (
                golang(r#""threshold": 1, "retryTimeoutMs": 0"#),
                "at `[0].retryTimeoutMs`: is out of range, give a whole number from 1 to 86400000",
            ),
            (golang(r#""retryTimeoutMs": 1"#), "at `[0].threshold`: is missing, give a number from 0 to 1"),
            (
                r#"[{"resource": "a", "strategy": 3, "threshold": 1}]"#.into(),
                "at `[0].strategy`: is not known, give 0, 1 or 2",
            ),
            (
                r#"[{"resource": "a", "strategy": 0, "threshold": 1, "maxAllowedRtMs": 0}]"#.into(),
                "at `[0].maxAllowedRtMs`: is missing, give the milliseconds beyond which a request is slow, such as 500",
            ),
            (
                r#"[{"resource": "a", "strategy": 0, "threshold": 1, "maxAllowedRtMs": 0.5}]"#.into(),
                "at `[0].maxAllowedRtMs`: is out of range, give a whole number from 1 to 86400000",
            ),
            (
                golang(r#""threshold": 1, "retryTimeoutMs": 1, "statIntervalMs": 1, "minRequestAmount": 4294967296"#),
                "at `[0].minRequestAmount`: is out of range, give a whole number from 0 to 4294967295",
            ),
            (
                golang(
                    r#""threshold": 1, "retryTimeoutMs": 1, "statIntervalMs": 1, "statSlidingWindowBucketCount": 101"#,
                ),
                "at `[0].statSlidingWindowBucketCount`: is out of range, give a whole number from 0 to 100",
            ),
            (
                golang(r#""threshold": 1, "retryTimeoutMs": 1, "statIntervalMs": 1, "probeNum": 101"#),
                "at `[0].probeNum`: is out of range, give a whole number from 0 to 100",
            ),
            (java(r#""grade": 3"#), "at `[0].grade`: is out of range, give a whole number from 0 to 2"),
            (
                java(r#""grade": 0, "count": 0"#),
                "at `[0].count`: is missing, give the milliseconds beyond which a request is slow, such as 500",
            ),
            (java(r#""count": 0.2"#), "at `[0].count`: is out of range, give a whole number from 1 to 86400000"),
            (java(r#""count": -5"#), "at `[0].count`: is out of range, give a whole number from 1 to 86400000"),
            (
                java(r#""count": 5, "slowRatioThreshold": 2"#),
                "at `[0].slowRatioThreshold`: is out of range, give a number from 0 to 1",
            ),
            (java(r#""grade": 1, "count": 2"#), "at `[0].count`: is out of range, give a number from 0 to 1"),
            (java(r#""grade": 2"#), "at `[0].count`: is missing, give a number from 0 to 4294967295"),
            (java(r#""grade": 2, "count": 1"#), "at `[0].timeWindow`: is missing, give a whole number from 1 to 86400"),
            (
                java(r#""grade": 2, "count": 1, "timeWindow": 1, "statIntervalMs": 0"#),
                "at `[0].statIntervalMs`: is out of range, give a whole number from 1 to 86400000",
            ),
            (java(r#""grade": 2, "regex": true"#), "at `[0].regex`: is not taken, name each resource, or give *"),
            (
                own(r#""threshold": 1, "retryTimeoutMs": 5"#),
                "at `rules[0].retryTimeoutMs`: is of another form of rules than `strategy`, give all fields of one form",
            ),
            (
                own(r#""threshold": 1, "count": 5"#),
                "at `rules[0].count`: is of another form of rules than `strategy`, give all fields of one form",
            ),
            (
                java(r#""interval": "1s", "statIntervalMs": 5"#),
                "at `[0].statIntervalMs`: is of another form of rules than `interval`, give all fields of one form",
            ),
            (
                golang(r#""threshold": 1, "limitApp": "default""#),
                "at `[0].limitApp`: is of another form of rules than `strategy`, give all fields of one form",
            ),
            (
                java(r#""timeWindow": 1, "threshold": 5"#),
                "at `[0].threshold`: is of another form of rules than `timeWindow`, give all fields of one form",
            ),
            (
                std::format!("[{good}, {other}]"),
                "at `[1].id`: stands there twice for this resource, give each rule its own",
            ),
            (std::format!("[{taken}, {made}]"), "at `[0].id`: is what [1] is called, which has no id, give another"),
        ] {
            let refusal = read(document.as_bytes()).expect_err(&document).to_string();
            assert!(refusal.starts_with(expected), "{document}:\n{refusal}\n{expected}");
        }
    }

    #[test]
    fn no_number_of_a_message_is_out_of_bounds() {
        // JSON has no such numbers, but a Struct has.
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(ratio("x", Some(bad), u32::MAX).is_err());
            assert!(whole("x", Some(bad), 0, u32::MAX, None).is_err());
            assert!(Adaptive { factor: bad, ..Adaptive::default() }.compile().is_err());
            assert!(Adaptive { quantile: bad, ..Adaptive::default() }.compile().is_err());
            assert_eq!(rounded(bad), None);
        }
        assert_eq!(ceiling(f64::from(u32::MAX)), Some(u32::MAX));
        assert_eq!((ceiling(0.0), ceiling(-0.0), ceiling(1e-300), ceiling(1.0)), (Some(0), Some(0), Some(1), Some(1)));
    }

    #[test]
    fn no_rules_are_an_empty_list() {
        for document in ["[]", r#"{"rules": []}"#, " [ ]\n"] {
            assert_eq!(read(document.as_bytes()).unwrap(), [], "{document}");
        }
    }

    #[test]
    fn a_rule_that_says_no_mode_has_the_plugins() {
        let document = r#"[{"resource": "a", "strategy": "error_ratio", "threshold": 1},
            {"resource": "b", "strategy": "error_ratio", "threshold": 1, "mode": "forced_closed"},
            {"resource": "c", "grade": 1, "count": 1, "timeWindow": 1}]"#;
        let modes = |rules: Vec<Rule>| rules.iter().map(|rule| rule.mode).collect::<Vec<_>>();
        assert_eq!(modes(read(document.as_bytes()).unwrap()), [Mode::Enforce, Mode::ForcedClosed, Mode::Enforce]);
        assert_eq!(
            modes(read_as(document.as_bytes(), Mode::DryRun).unwrap()),
            [Mode::DryRun, Mode::ForcedClosed, Mode::DryRun]
        );
    }

    #[test]
    fn duplicate_rules_do_not_stick() {
        let item = |resource: &str, id: &str, threshold: f64| {
            let id = if id.is_empty() { String::new() } else { std::format!(r#""id": "{id}", "#) };
            std::format!(r#"{{{id}"resource": "{resource}", "strategy": "error_ratio", "threshold": {threshold}}}"#)
        };
        for (items, ids) in [
            (vec![item("a", "", 0.5), item("a", "", 0.5)], vec!["a/error_ratio"]),
            (vec![item("a", "x", 0.5), item("a", "x", 0.5), item("a", "x", 0.5)], vec!["x"]),
            // The same id for another resource is another rule.
            (vec![item("a", "x", 0.5), item("b", "x", 0.6)], vec!["x", "x"]),
            (vec![item("a", "", 0.5), item("a", "", 0.6), item("a", "", 0.5), item("a", "", 0.7)], {
                vec!["a/error_ratio", "a/error_ratio#2", "a/error_ratio#3"]
            }),
            // A rule of another resource or with an id changes nobody's name.
            (vec![item("b", "", 0.5), item("a", "x", 0.6), item("a", "", 0.5)], {
                vec!["b/error_ratio", "x", "a/error_ratio"]
            }),
            // And a threshold does not.
            (vec![item("a", "", 0.9)], vec!["a/error_ratio"]),
        ] {
            let rules = read(std::format!("[{}]", items.join(",")).as_bytes()).unwrap();
            assert_eq!(rules.iter().map(|rule| rule.id.as_str()).collect::<Vec<_>>(), ids, "{items:?}");
        }
    }

    #[test]
    fn rules_that_differ_in_one_field_are_two() {
        let base = r#""resource": "a", "strategy": "slow_ratio", "threshold": 0.5"#;
        let first = std::format!(r#"{{{base}, "max_allowed_rt": "1s"}}"#);
        for more in [
            r#""max_allowed_rt": "2s""#,
            r#""max_allowed_rt": "1s", "min_requests": 11"#,
            r#""max_allowed_rt": "1s", "interval": "61s""#,
            r#""max_allowed_rt": "1s", "buckets": 11"#,
            r#""max_allowed_rt": "1s", "retry_timeout": "61s", "probe_timeout": "60s""#,
            r#""max_allowed_rt": "1s", "probes": 2"#,
            r#""max_allowed_rt": "1s", "probe_timeout": "61s""#,
            r#""max_allowed_rt": "1s", "mode": "dry_run""#,
            r#""max_allowed_rt": "1s", "active_from": "2026-01-01T00:00:00Z""#,
            r#""max_allowed_rt": "1s", "active_until": "2026-01-01T00:00:00Z""#,
            r#""max_allowed_rt": "1s", "fallback": "f""#,
            r#""max_allowed_rt": "1s", "reject": {}"#,
        ] {
            let rules = read(std::format!("[{first}, {{{base}, {more}}}, {first}]").as_bytes()).unwrap();
            let ids: Vec<&str> = rules.iter().map(|rule| rule.id.as_str()).collect();
            assert_eq!(ids, ["a/slow_ratio", "a/slow_ratio#2"], "{more}");
        }
    }

    #[test]
    fn a_full_set_is_read() {
        let item = |n: usize| std::format!(r#"{{"resource": "a", "grade": 2, "count": {n}, "timeWindow": 1}}"#);
        let document = std::format!("[{}]", (0..MOST_RULES).map(item).collect::<Vec<_>>().join(","));
        let rules = read(document.as_bytes()).unwrap();
        assert_eq!((rules.len(), rules[999].id.as_str()), (1000, "a/error_count#1000"));
    }

    #[test]
    fn thresholds() {
        let rule = |strategy: &str, threshold: f64, min: u32| {
            one(&std::format!(
                r#"[{{"resource": "a", "strategy": "{strategy}", "threshold": {threshold}, "min_requests": {min}}}]"#
            ))
        };
        for (rule, total, bad, trips) in [
            (rule("error_ratio", 0.5, 10), 9, 9, false),
            (rule("error_ratio", 0.5, 10), 10, 5, true),
            (rule("error_ratio", 0.5, 10), 10, 4, false),
            // The very number: 0.3 and 3 of 10 are the same.
            (rule("error_ratio", 0.3, 1), 10, 3, true),
            (rule("error_ratio", 0.7, 1), 10, 7, true),
            // 100 times 0.07 is more than 7.
            (rule("error_ratio", 0.07, 1), 100, 7, true),
            (rule("error_ratio", 0.1, 1), 1_000_000, 100_000, true),
            (rule("error_ratio", 0.1, 1), 1_000_000, 99_999, false),
            (rule("error_ratio", 1.0, 1), 10, 9, false),
            (rule("error_ratio", 1.0, 1), 10, 10, true),
            // A threshold of 0 does not trip on a success.
            (rule("error_ratio", 0.0, 0), 0, 0, false),
            (rule("error_ratio", 0.0, 0), 100, 0, false),
            (rule("error_ratio", 0.0, 0), 100, 1, true),
            (rule("error_count", 0.0, 0), 100, 0, false),
            (rule("error_count", 0.0, 0), 100, 1, true),
            (rule("error_count", 10.0, 0), 10, 9, false),
            (rule("error_count", 10.0, 0), 10, 10, true),
            (rule("error_count", 9.5, 0), 10, 9, false),
            (rule("error_count", 9.5, 20), 19, 19, false),
            (rule("error_count", 4294967295.0, 0), u32::MAX, u32::MAX, true),
        ] {
            assert_eq!(rule.trips(total, bad), trips, "{bad} of {total}: {rule:?}");
        }
    }

    #[test]
    fn a_rule_has_its_time() {
        let mut rule = one(OWN);
        assert!(rule.is_active(0) && rule.is_active(u64::MAX));
        rule.active_from_ns = Some(10);
        rule.active_until_ns = Some(20);
        assert_eq!([9, 10, 19, 20].map(|now| rule.is_active(now)), [false, true, true, false]);
    }

    #[test]
    fn a_key_is_of_resource_and_id() {
        let mut rule = one(OWN);
        rule.id = "id".into();
        // FNV-1a of "a\0id", from its definition.
        let expected = [b'a', 0, b'i', b'd'].iter().fold(14_695_981_039_346_656_037_u64, |hash, byte| {
            (u128::from(hash ^ u64::from(*byte)) * 1_099_511_628_211 % (1 << 64)) as u64
        });
        assert_eq!(rule.key("a"), expected);
        assert_ne!(rule.key("b"), expected);
        // The sign between them belongs to neither.
        rule.id = "d".into();
        assert_ne!(rule.key("a\0i"), rule.key("a"));
        let key = |resource: &str, id: &str| Rule { id: id.into(), ..one(OWN) }.key(resource);
        assert_ne!(key("ab", "c"), key("a", "bc"));
    }

    fn keeps_its_bounds(rule: &Rule) {
        const DAY: u64 = 86_400_000_000_000;
        assert!(!rule.id.is_empty() && rule.id.len() <= 300);
        assert!((1..=LONGEST_RESOURCE).contains(&rule.resource.len()));
        assert!(!rule.id.contains(char::is_control) && !rule.resource.contains(char::is_control));
        for ns in [rule.retry_ns, rule.interval_ns, rule.probe_timeout_ns] {
            assert!((1_000_000..=DAY).contains(&ns));
        }
        assert!(rule.min_requests >= 1);
        assert!((2..=100).contains(&rule.buckets) && (1..=100).contains(&rule.probes));
        match &rule.strategy {
            Strategy::SlowRatio { limit, threshold } => {
                assert!((0.0..=1.0).contains(threshold));
                match limit {
                    Limit::Fixed { us } => assert!((1000..=DAY / 1000).contains(us)),
                    Limit::Adaptive(Measure { factor, floor_us, ceiling_us, quantile }) => {
                        assert!((1.0..=100.0).contains(factor) && (0.5..=0.99).contains(quantile));
                        assert!(1000 <= *floor_us && floor_us <= ceiling_us && *ceiling_us <= DAY / 1000);
                    }
                }
            }
            Strategy::ErrorRatio { threshold } => assert!((0.0..=1.0).contains(threshold)),
            Strategy::ErrorCount { .. } => {}
        }
        assert!(rule.active_from_ns.zip(rule.active_until_ns).is_none_or(|(from, until)| from < until));
        assert!(rule.fallback.as_ref().is_none_or(|value| !value.is_empty() && !value.contains(['\r', '\n', '\0'])));
        if let Some(reject) = &rule.reject {
            assert!((200..=599).contains(&reject.status) && (1..=16).contains(&reject.grpc_status));
            assert!(reject.body.len() <= LONGEST_BODY);
            for (name, value) in &reject.headers {
                assert!(!name.is_empty() && !name.contains([':', ' ', '\r', '\n']));
                assert!(!["content-length", "transfer-encoding", "connection"].contains(&name.as_str()));
                assert!(!value.contains(['\r', '\n', '\0']));
            }
        }
    }

    /// What to put in place of a part of a document.
    fn patch() -> impl Generator<Value = String> {
        prop_oneof![
            "[-0-9.eE]{1,12}",
            any::<f64>().prop_map(|number| std::format!("{number}")),
            any::<u64>().prop_map(|number| std::format!("{number}")),
            prop::sample::select(vec![
                "null",
                "true",
                "\"\"",
                "{}",
                "[]",
                "\"1ms\"",
                "\"24h\"",
                "\"9999999h\"",
                "0",
                "1",
                "-1",
                "2",
                "0.5",
                "\"slow_ratio\"",
                "\"error_count\"",
                "\"2026-06-01T00:00:00Z\"",
                "\"\\n\"",
                ",",
                "}",
                "]",
                "\"",
                "{\"adaptive\":{\"factor\":1e308}}",
                "{\"headers\":{\"x\":\"\\u0000\"}}",
                "\"resource\"",
                "\u{0}",
            ])
            .prop_map(String::from),
        ]
    }

    /// A document with all fields of ours, to be mutated as the others are.
    const WIDE: &str = r#"{"rules":[{"id":"x","resource":"a","strategy":"slow_ratio","max_allowed_rt":{"adaptive":{"factor":3,"floor":"50ms","ceiling":"2s","quantile":0.9}},"threshold":0.5,"min_requests":10,"interval":"60s","buckets":10,"retry_timeout":"60s","probes":1,"probe_timeout":"60s","mode":"enforce","active_from":"2026-01-01T00:00:00Z","active_until":"2027-01-01T00:00:00Z","fallback":"f","reject":{"status":503,"headers":{"x-a":"b"},"body":"b","retry_after":true,"grpc_status":14}},{"resource":"b","strategy":"error_count","threshold":3}]}"#;

    proptest! {
           #![proptest_config(ProptestConfig::with_cases(4000))]

           #[test]
           fn bytes_never_panic(document in prop::collection::vec(any::<u8>(), 0..300)) {
               if let Ok(rules) = read(&document) { rules.iter().for_each(keeps_its_bounds); }
           }

           #[test]
           fn mutated_documents_keep_the_bounds(
               document in prop::sample::select(vec![OWN, GOLANG, JAVA, WIDE]),
               patches in prop::collection::vec((any::<prop::sample::Index>(), patch(), any::<bool>()), 0..4),
           ) {
               let mut document = document.to_owned();
               for (at, patch, value) in patches {
                   // A value in place of another, or anything anywhere.
                   let starts: Vec<usize> = document.match_indices(':').map(|(at, _)| at + 1).collect();
                   let (from, to) = if value && !starts.is_empty() {
                       let from = *at.get(&starts);
                       let rest = document.get(from..).unwrap();
    let length = rest.find([',', '}', ']', '{', '[']).unwrap_or(0);
                       (from, from + length)
                   } else {
                       let from = at.index(document.len().max(1));
                       let from = (0..=from.min(document.len())).rev().find(|at| document.is_char_boundary(*at)).unwrap_or(0);
                       (from, from)
                   };
                   document.replace_range(from..to, &patch);
               }
               if let Ok(rules) = read(document.as_bytes()) { rules.iter().for_each(keeps_its_bounds); }
           }
       }
}
