//! Images of real modules: built twice, pushed to a real registry, pulled as the mesh does, signed and checked.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test"
)]

mod command;
mod errors;
mod layout;
mod mesh;
mod registry;
mod sbom;
mod signature;
mod world;
