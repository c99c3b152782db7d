//! The trace headers of a request: found in one pass, read by format, and written by format.

use crate::{
    Plan, b3,
    config::{Format, Inject},
    context::{Invalid, Remote, Sampling},
    datadog, jaeger, w3c, xray,
};
use kit::Headers;
use kit::prelude::*;

/// A set of formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Formats(u8);

impl Formats {
    pub(crate) const ALL: [Format; 5] = [Format::W3c, Format::B3, Format::Jaeger, Format::Datadog, Format::Xray];

    fn bit(format: Format) -> u8 {
        match format {
            Format::W3c => 1,
            Format::B3 => 2,
            Format::Jaeger => 4,
            Format::Datadog => 8,
            Format::Xray => 16,
        }
    }

    pub(crate) fn insert(&mut self, format: Format) {
        self.0 |= Self::bit(format);
    }

    pub(crate) fn has(self, format: Format) -> bool {
        self.0 & Self::bit(format) != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// A header that there should be one of.
#[derive(Clone, Copy, Default)]
struct Once<'a> {
    value: Option<&'a [u8]>,
    again: bool,
}

impl<'a> Once<'a> {
    fn see(&mut self, value: &'a [u8]) {
        self.again = self.value.is_some();
        self.value.get_or_insert(value);
    }

    fn get(self) -> Result<Option<&'a [u8]>, Invalid> {
        if self.again { Err(Invalid::Duplicate) } else { Ok(self.value) }
    }
}

/// What a format's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There are none.
    Nothing,
    /// A decision for a trace that has no id yet.
    Decision(Sampling),
    /// A context.
    Context(Remote),
}

/// The headers of a request that matter here.
#[derive(Default)]
pub(crate) struct Incoming<'a> {
    traceparent: Once<'a>,
    b3: Once<'a>,
    b3_trace_id: Once<'a>,
    b3_span_id: Once<'a>,
    b3_parent: Once<'a>,
    b3_sampled: Once<'a>,
    b3_flags: Once<'a>,
    jaeger: Once<'a>,
    datadog_trace_id: Once<'a>,
    datadog_parent: Once<'a>,
    datadog_priority: Once<'a>,
    datadog_tags: Once<'a>,
    datadog_origin: Once<'a>,
    xray: Once<'a>,
    /// Formats that there is any header of.
    pub(crate) present: Formats,
    /// There is a `tracestate`.
    pub(crate) tracestate: bool,
    /// There is an `x-request-id`.
    pub(crate) request_id: bool,
}

impl<'a> Incoming<'a> {
    /// Looks at every pair once. Names come in lower case: the proxy makes them so.
    pub(crate) fn scan(headers: &'a Headers<'_>) -> Self {
        let mut found = Self::default();
        for (name, value) in headers.iter() {
            let (slot, format) = match name {
                b"traceparent" => (&mut found.traceparent, Format::W3c),
                b"b3" => (&mut found.b3, Format::B3),
                b"x-b3-traceid" => (&mut found.b3_trace_id, Format::B3),
                b"x-b3-spanid" => (&mut found.b3_span_id, Format::B3),
                b"x-b3-parentspanid" => (&mut found.b3_parent, Format::B3),
                b"x-b3-sampled" => (&mut found.b3_sampled, Format::B3),
                b"x-b3-flags" => (&mut found.b3_flags, Format::B3),
                b"uber-trace-id" => (&mut found.jaeger, Format::Jaeger),
                b"x-datadog-trace-id" => (&mut found.datadog_trace_id, Format::Datadog),
                b"x-datadog-parent-id" => (&mut found.datadog_parent, Format::Datadog),
                b"x-datadog-sampling-priority" => (&mut found.datadog_priority, Format::Datadog),
                b"x-datadog-tags" => (&mut found.datadog_tags, Format::Datadog),
                b"x-datadog-origin" => (&mut found.datadog_origin, Format::Datadog),
                b"x-amzn-trace-id" => (&mut found.xray, Format::Xray),
                b"tracestate" => {
                    found.tracestate = true;
                    continue;
                }
                b"x-request-id" => {
                    found.request_id = true;
                    continue;
                }
                _ => continue,
            };
            slot.see(value);
            found.present.insert(format);
        }
        found
    }

    /// What the headers of `format` say.
    pub(crate) fn read(&self, format: Format) -> Result<Found, Invalid> {
        if !self.present.has(format) {
            return Ok(Found::Nothing);
        }
        Ok(match format {
            Format::W3c => context(self.traceparent, w3c::parse_traceparent)?,
            Format::B3 => self.read_b3()?,
            Format::Jaeger => context(self.jaeger, jaeger::parse)?,
            Format::Datadog => match self.datadog_trace_id.get()? {
                Some(trace_id) => Found::Context(datadog::parse(&datadog::Headers {
                    trace_id,
                    parent_id: self.datadog_parent.get()?,
                    priority: self.datadog_priority.get()?,
                    tags: self.datadog_tags.get()?,
                })?),
                None => Found::Nothing,
            },
            Format::Xray => context(self.xray, xray::parse)?,
        })
    }

    /// The contexts of these formats: decisions without ids do not count. Hardly ever any, and then nothing is allocated.
    pub(crate) fn contexts(&self, among: impl Fn(Format) -> bool) -> Vec<(Format, Remote)> {
        let there = Formats::ALL.into_iter().filter(|format| self.present.has(*format) && among(*format));
        there
            .filter_map(|format| match self.read(format) {
                Ok(Found::Context(remote)) => Some((format, remote)),
                _ => None,
            })
            .collect()
    }

    /// The single header goes before the others; one that is not valid does not hide them (Zipkin's own libraries).
    fn read_b3(&self) -> Result<Found, Invalid> {
        let single = match self.b3.get() {
            Ok(None) => Ok(Found::Nothing),
            Ok(Some(value)) => b3::parse_single(value).map(Found::from),
            Err(invalid) => Err(invalid),
        };
        if matches!(single, Ok(Found::Context(_) | Found::Decision(_))) {
            return single;
        }
        let multi = b3::parse_multi(&b3::Multi {
            trace_id: self.b3_trace_id.get()?,
            span_id: self.b3_span_id.get()?,
            parent_span_id: self.b3_parent.get()?,
            sampled: self.b3_sampled.get()?,
            flags: self.b3_flags.get()?,
        })?;
        match Found::from(multi) {
            Found::Nothing => single,
            found => Ok(found),
        }
    }

    /// Whether there is one `traceparent`, and it is this.
    pub(crate) fn has_traceparent(&self, text: &[u8; 55]) -> bool {
        self.traceparent.get().is_ok_and(|value| value == Some(text.as_slice()))
    }

    /// What a Datadog context carries beside ids: the priority and the tags, as they came.
    pub(crate) fn datadog_extras(&self) -> (Option<&'a [u8]>, Option<&'a [u8]>) {
        (self.datadog_priority.value, self.datadog_tags.value)
    }
}

impl From<b3::Extract> for Found {
    fn from(extract: b3::Extract) -> Self {
        match extract {
            b3::Extract::Context(remote) => Found::Context(remote),
            b3::Extract::Decision(Sampling::Defer) => Found::Nothing,
            b3::Extract::Decision(sampling) => Found::Decision(sampling),
        }
    }
}

fn context(header: Once<'_>, parse: fn(&[u8]) -> Result<Remote, Invalid>) -> Result<Found, Invalid> {
    match header.get()? {
        Some(value) => parse(value).map(Found::Context),
        None => Ok(Found::Nothing),
    }
}

const B3_MULTI: [&str; 5] = [b3::TRACE_ID, b3::SPAN_ID, b3::PARENT_SPAN_ID, b3::SAMPLED, b3::FLAGS];

/// Takes the headers of a format out of the request.
pub(crate) fn remove(headers: &mut Headers<'_>, format: Format) {
    let names: &[&str] = match format {
        Format::W3c => &[w3c::TRACEPARENT, w3c::TRACESTATE],
        Format::B3 => {
            headers.remove(b3::B3);
            &B3_MULTI
        }
        Format::Jaeger => &[jaeger::UBER_TRACE_ID],
        Format::Datadog => {
            &[datadog::TRACE_ID, datadog::PARENT_ID, datadog::SAMPLING_PRIORITY, datadog::TAGS, datadog::ORIGIN]
        }
        Format::Xray => &[xray::X_AMZN_TRACE_ID],
    };
    for name in names {
        headers.remove(name);
    }
}

/// What goes on of a Datadog context beside ids.
#[derive(Default)]
pub(crate) struct DatadogExtras {
    pub(crate) priority: Vec<u8>,
    pub(crate) tags: Vec<u8>,
}

/// Writes a context in one form, and takes out what would contradict it in the same format.
pub(crate) fn write(headers: &mut Headers<'_>, form: Inject, plan: &Plan) {
    let Plan { local, traceparent, present, datadog, .. } = plan;
    let mut set_or_remove = |name: &str, value: Option<&[u8]>| match value {
        Some(value) => headers.set(name, value),
        None => headers.remove(name),
    };
    match form {
        Inject::W3c => headers.set(w3c::TRACEPARENT, traceparent),
        Inject::B3Single => headers.set(b3::B3, &b3::write_single(local)),
        Inject::B3 => {
            let text = b3::write_multi(local);
            set_or_remove(b3::TRACE_ID, Some(&text.trace_id));
            set_or_remove(b3::SPAN_ID, Some(&text.span_id));
            set_or_remove(b3::PARENT_SPAN_ID, text.parent_span_id.as_ref().map(<[u8; 16]>::as_slice));
            set_or_remove(b3::SAMPLED, text.sampled.map(str::as_bytes));
            set_or_remove(b3::FLAGS, text.flags.map(str::as_bytes));
        }
        Inject::Jaeger => headers.set(jaeger::UBER_TRACE_ID, &jaeger::write(local)),
        Inject::Datadog => {
            headers.set(datadog::TRACE_ID, datadog::write_trace_id(&local.trace_id).as_bytes());
            headers.set(datadog::PARENT_ID, datadog::write_parent_id(&local.span_id).as_bytes());
            headers.set(datadog::SAMPLING_PRIORITY, &datadog.priority);
            match datadog.tags.as_slice() {
                [] if present.has(Format::Datadog) => headers.remove(datadog::TAGS),
                [] => {}
                tags => headers.set(datadog::TAGS, tags),
            }
        }
        Inject::Xray => headers.set(xray::X_AMZN_TRACE_ID, &xray::write(local)),
    }
}

/// Takes out the B3 form that is not written: a reader takes the single header before the others, whichever is older.
pub(crate) fn remove_other_b3(headers: &mut Headers<'_>, inject: &[Inject]) {
    match (inject.contains(&Inject::B3Single), inject.contains(&Inject::B3)) {
        (true, false) => {
            for name in B3_MULTI {
                headers.remove(name);
            }
        }
        (false, true) => headers.remove(b3::B3),
        _ => {}
    }
}
