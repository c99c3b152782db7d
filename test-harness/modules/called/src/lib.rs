//! Is called for the headers of every request and does nothing: what a callback costs.
#![no_std]

use kit::{Context, Filter, Flow, Headers, Phases, Refusal};

/// The filter.
#[derive(Debug)]
pub struct Called;

/// Nothing to configure.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Filter for Called {
    const NAME: &'static str = "called";
    const PHASES: Phases = Phases::REQUEST_HEADERS;
    type Config = Config;
    type State = ();
    type Stream = ();

    fn new(_: Config) -> Result<Self, Refusal> {
        Ok(Self)
    }

    fn request_headers(&self, _: &mut Context<'_, Self>, _: &mut Headers<'_>) -> Flow {
        Flow::Continue
    }
}

kit::export!(Called);
