//! Does nothing in the phase in which most filters do something: what the kit itself costs.
#![no_std]

use kit::{Context, Filter, Flow, Headers, Phases, Refusal};

/// The filter that does nothing.
#[derive(Debug)]
pub struct Noop;

/// Nothing to configure.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Filter for Noop {
    const NAME: &'static str = "noop";
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

kit::export!(Noop);
