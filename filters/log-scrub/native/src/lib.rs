//! log-scrub without a proxy.
//!
//! - [`scrub`] cleans log lines that are there already, with the filter's engine and the filter's configuration;
//!   [`line`](mod@line) knows what a line is.
//! - [`settings`] reads that configuration from a file.

pub mod line;
pub mod scrub;
pub mod settings;
