//! Breaks the circuit to an upstream that is slow or failing, by rules that change while it runs.
#![no_std]

pub mod adaptive;
pub mod board;
pub mod config;
pub mod resource;
pub mod rules;
pub mod window;
mod wire;
