//! One line of JSON about a request.

use crate::{Reason, Rules, Seen};
use kit::prelude::*;
use kit::{Headers, Host};

/// What is gathered for it.
#[derive(Default)]
pub(crate) struct Line {
    pub(crate) path: Vec<u8>,
    pub(crate) query: Option<Vec<u8>>,
}

/// The usual methods (RFC 9110, 9.3; RFC 5789), and those that proxies see; any other may hold anything.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// The method, if it is one of these.
pub(crate) fn method(method: &[u8]) -> &'static str {
    METHODS.iter().find(|known| known.as_bytes() == method).copied().unwrap_or("OTHER")
}

impl Line {
    pub(crate) fn finish(
        self,
        host: &dyn Host,
        rules: &Rules,
        request: &Headers<'_>,
        response: &Headers<'_>,
        seen: &[Seen],
    ) -> String {
        let mut json = Json::new();
        if let Some(time) = host.number(&["request", "time"]).and_then(|time| u64::try_from(time).ok()) {
            json.text("time", &rfc3339(time));
        }
        json.text("method", request.look(":method", |value| method(value.unwrap_or(&[]))));
        if !self.path.is_empty() {
            json.text("path", &String::from_utf8_lossy(&self.path));
        }
        if let Some(query) = &self.query {
            json.text("query", &String::from_utf8_lossy(query));
        }
        let status = response.look(":status", |status| core::str::from_utf8(status?).ok()?.parse::<u16>().ok());
        if let Some(status) = status {
            json.number("status", &format!("{status}"));
        }
        if let Some(ns) = host.number(&["request", "duration"]).and_then(|ns| u64::try_from(ns).ok()) {
            let us = ns / 1000;
            json.number("duration", &format!("{}.{:03}", us / 1000, us % 1000));
        }
        let (trace_id, span_id) = trace(host, request);
        for (key, id) in [("trace_id", trace_id), ("span_id", span_id)] {
            if let Some(id) = id {
                json.text(key, &id);
            }
        }
        json.object("findings", |json| {
            for rule in rules.names() {
                let of =
                    |seen: &Seen| seen.findings.iter(rules).find(|(name, _)| *name == rule).map(|(_, count)| count);
                // A place may have been seen more than once.
                let mut places: Vec<(&'static str, u32)> = Vec::new();
                for (place, count) in seen.iter().filter_map(|seen| Some((seen.place.name(), of(seen)?))) {
                    match places.iter_mut().find(|(name, _)| *name == place) {
                        Some((_, sum)) => *sum = sum.saturating_add(count),
                        None => places.push((place, count)),
                    }
                }
                if !places.is_empty() {
                    json.object(rule, |json| {
                        places.iter().for_each(|(place, count)| json.number(place, &format!("{count}")));
                    });
                }
            }
        });
        let mut unscanned: Vec<(&'static str, &'static str)> = Vec::new();
        let reason = |seen: &Seen| {
            let part = (seen.findings.unscanned() > 0).then_some(Reason::Part);
            Some((seen.place.name(), seen.unscanned.or(part)?.name()))
        };
        for (place, reason) in seen.iter().filter_map(reason) {
            if unscanned.iter().all(|(name, _)| *name != place) {
                unscanned.push((place, reason));
            }
        }
        if !unscanned.is_empty() {
            json.object("unscanned", |json| unscanned.iter().for_each(|(place, reason)| json.text(place, reason)));
        }
        json.finish().unwrap_or_default()
    }
}

/// The trace that trace-id left for logs, else the one that went upstream.
fn trace(host: &dyn Host, request: &Headers<'_>) -> (Option<String>, Option<String>) {
    let id = |bytes: &[u8], digits: usize| {
        let such = bytes.len() == digits && bytes.iter().all(u8::is_ascii_hexdigit);
        such.then(|| String::from_utf8_lossy(bytes).into_owned())
    };
    let given = |key: &str, digits| host.property(&[key]).ok().and_then(|value| id(&value, digits));
    if let Some(trace_id) = given("trace_id", 32) {
        return (Some(trace_id), given("span_id", 16));
    }
    request.look("traceparent", |value| {
        let mut parts = value.unwrap_or(&[]).split(|byte| *byte == b'-').skip(1);
        match (parts.next().and_then(|part| id(part, 32)), parts.next().and_then(|part| id(part, 16))) {
            (Some(trace_id), span_id @ Some(_)) => (Some(trace_id), span_id),
            _ => (None, None),
        }
    })
}

/// An object that is being written.
pub(crate) struct Json(String);

impl Json {
    pub(crate) fn new() -> Self {
        Self(String::with_capacity(256))
    }

    /// The text; none if nothing is in it.
    pub(crate) fn finish(mut self) -> Option<String> {
        self.put('}');
        (self.0.len() > 1).then_some(self.0)
    }

    /// One function, and not UTF-8 in each place.
    #[inline(never)]
    fn put(&mut self, sign: char) {
        self.0.push(sign);
    }

    fn key(&mut self, key: &str) {
        if self.0.is_empty() {
            self.put('{');
        } else if !self.0.ends_with('{') {
            self.put(',');
        }
        self.quoted(key);
        self.put(':');
    }

    fn number(&mut self, key: &str, number: &str) {
        self.key(key);
        self.0.push_str(number);
    }

    pub(crate) fn text(&mut self, key: &str, text: &str) {
        self.key(key);
        self.quoted(text);
    }

    fn object(&mut self, key: &str, fill: impl FnOnce(&mut Self)) {
        self.key(key);
        self.put('{');
        fill(self);
        self.put('}');
    }

    fn quoted(&mut self, text: &str) {
        self.put('"');
        // Most texts need nothing.
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
            self.0.push_str(text);
        } else {
            for c in text.chars() {
                match c {
                    '"' | '\\' => self.0.extend(['\\', c]),
                    // What ends a line or rules a terminal.
                    c if c.is_control() => self.0.push_str(&format!("\\u{:04x}", u32::from(c))),
                    c => self.put(c),
                }
            }
        }
        self.put('"');
    }
}

/// A time in UTC, to the millisecond (RFC 3339). A page of its own, because a library for time is larger than the rest
/// of a module.
fn rfc3339(ns: u64) -> String {
    let (days, ms) = (ns / 86_400_000_000_000, ns / 1_000_000 % 86_400_000);
    // From the calendar of 400 years, 146097 days, that begins in March: a leap day is then the last of its year.
    let day = days.saturating_add(719_468);
    let (era, day) = (day / 146_097, day % 146_097);
    let leap_days = (day / 1460).saturating_add(day / 146_096).saturating_sub(day / 36_524);
    let year = day.saturating_sub(leap_days) / 365;
    let before = year.saturating_mul(365).saturating_add(year / 4).saturating_sub(year / 100);
    let day = day.saturating_sub(before);
    // Months of 30.6 days, from March.
    let month = day.saturating_mul(5).saturating_add(2) / 153;
    let day = day.saturating_sub(month.saturating_mul(153).saturating_add(2) / 5).saturating_add(1);
    let month = if month < 10 { month.saturating_add(3) } else { month.saturating_sub(9) };
    let year = era.saturating_mul(400).saturating_add(year).saturating_add(u64::from(month <= 2));
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times() {
        // From `date -u`.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_399, "2000-02-28T23:59:59.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_800, "2000-03-01T00:00:00.007Z"),
            (1_704_067_199, "2023-12-31T23:59:59.007Z"),
            (1_709_164_800, "2024-02-29T00:00:00.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
            (1_795_418_213, "2026-11-23T07:16:53.007Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000_000_000 + 7_999_999), expected);
        }
    }
}
