//! log-scrub without a proxy.
//!
//! - [`scrub`] cleans log lines that are there already, with the filter's engine and the filter's configuration;
//!   [`line`](mod@line) knows what a line is, [`settings`] reads that configuration from a file.
//! - [`request`] makes requests of [`values`], [`drive`] lets them pass the engine, and [`leak`] sees what can still be
//!   read. [`corpus`] counts what was found and what was touched, [`fuzz`] looks for anything that was not covered.

#[allow(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    reason = "what makes values knows their form; no bytes of a stranger come here"
)]
mod made {
    pub mod corpus;
    pub mod drive;
    pub mod fuzz;
    pub mod leak;
    pub mod random;
    pub mod request;
    pub mod values;
}

pub mod line;
pub mod scrub;
pub mod settings;

pub use made::{corpus, drive, fuzz, leak, random, request, values};
