//! Does nothing, and so names no phase and is never called: what it costs to be there.
#![no_std]

use kit::{Filter, Phases, Refusal};

/// The filter that does nothing.
#[derive(Debug)]
pub struct Noop;

/// Nothing to configure.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Filter for Noop {
    const NAME: &'static str = "noop";
    const PHASES: Phases = Phases::NONE;
    type Config = Config;
    type State = ();
    type Stream = ();

    fn new(_: Config) -> Result<Self, Refusal> {
        Ok(Self)
    }
}

kit::export!(Noop);
