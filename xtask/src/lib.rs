//! What make calls and a shell line cannot: `modules` builds the wasm modules, `docs` writes what is generated,
//! `manifests` writes the mesh's, `matrix` runs the tests on every Envoy, `sizes` says what is in the modules.

mod benchmarks;
mod dashboard;
mod docs;
mod manifests;
mod matrix;
mod modules;
mod pages;
mod plot;
pub mod release;
mod sizes;

use anyhow::{Error, Result, bail};

pub use modules::{SHIPPED, TARGET};

/// Does what the command line asks for.
///
/// # Errors
/// When it asks for nothing that there is, and when that fails.
pub fn run(arguments: &[&str]) -> Result<()> {
    match arguments {
        ["modules"] => modules::build(),
        ["modules", "--plain"] => modules::plain(),
        ["docs"] => docs::write(),
        ["docs", "--check"] => docs::check(),
        ["manifests", arguments @ ..] => manifests::run(arguments),
        ["matrix", versions @ ..] => matrix::run(versions),
        ["sizes"] => sizes::run(false),
        ["sizes", "--functions"] => sizes::run(true),
        _ => bail!(
            "usage: xtask modules [--plain] | docs [--check] | manifests [--version <tag>] [--registry <place>] | matrix [version...] \
             | sizes [--functions]"
        ),
    }
}

/// What went wrong, for people: a line, and one for each cause, whatever `RUST_BACKTRACE` says.
#[must_use]
pub fn explained(error: &Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join("\n  because: ")
}
