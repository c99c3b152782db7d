//! trace-id and a small second filter in one module: the suite's way, proved without touching either.
#![no_std]

use kit::prelude::*;
use kit::{Context, Filter, Flow, Headers, Phases, Refusal, Reply};
use trace_id::TraceId;

/// Says upstream which trace context it saw, refuses requests that ask for it, and stamps responses.
#[derive(Debug)]
pub struct Stamp {
    text: String,
    series: usize,
}

/// What the stamp says.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StampConfig {
    /// The value of response header `x-stamp`.
    pub text: String,
    /// How many series its metrics may have, if it had any.
    #[serde(default)]
    pub series: usize,
}

impl Filter for Stamp {
    const NAME: &'static str = "stamp";
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::RESPONSE_HEADERS);
    type Config = StampConfig;
    type State = ();
    type Stream = Vec<u8>;

    fn new(config: StampConfig) -> Result<Self, Refusal> {
        if config.text.is_empty() {
            return Err(Refusal::at("text", "is empty, give what the stamp is to say"));
        }
        Ok(Self { text: config.text, series: config.series })
    }

    fn max_series(&self) -> Option<usize> {
        Some(self.series)
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        *cx.stream = headers.get("traceparent").unwrap_or(b"none").to_vec();
        headers.set("x-saw", cx.stream);
        if headers.get("x-refuse").is_some() {
            return Flow::Reply(Reply {
                status: 418,
                body: b"refused".to_vec(),
                details: "stamp_refused",
                ..Reply::default()
            });
        }
        Flow::Continue
    }

    fn response_headers(&self, _: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        headers.set("x-stamp", self.text.as_bytes());
        Flow::Continue
    }
}

kit::compose! {
    /// trace-id, then the stamp.
    pub mod duo: Duo = "duo" {
        trace_id: TraceId,
        stamp: Stamp,
    }
}

kit::export!(duo::Duo);
