//! Makes what is logged about a request free of personal data and secrets.
//!
//! [`Rules`] are compiled once from a [`config::Config`]. They clean values in memory with [`Rules::scrub`], and bodies
//! that pass in parts with a [`Stream`]; [`Findings`] count what was found, by rule. Text that was found is never shown:
//! no type here prints it.
#![no_std]

#[cfg(test)]
extern crate std;

mod action;
mod anchors;
mod blocks;
pub mod config;
mod context;
mod detectors;
mod digits;
mod engine;
mod fields;
mod own;
mod pattern;
pub mod places;
#[cfg(test)]
mod testing;
mod view;

pub use engine::{Findings, Rule, Rules, Stream};
