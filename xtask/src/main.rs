//! What make calls and a shell line cannot: `modules` builds the wasm modules, `docs` writes what is generated,
//! `manifests` writes the mesh's, `matrix` runs the tests on every Envoy, `sizes` says what is in the modules.

mod benchmarks;
mod docs;
mod manifests;
mod matrix;
mod modules;
mod plot;
mod sizes;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["modules"] => modules::build(),
        ["docs"] => docs::write(),
        ["docs", "--check"] => docs::check(),
        ["manifests", arguments @ ..] => manifests::run(arguments),
        ["matrix", versions @ ..] => matrix::run(versions),
        ["sizes"] => sizes::run(false),
        ["sizes", "--functions"] => sizes::run(true),
        _ => bail!(
            "usage: xtask modules | docs [--check] | manifests [--version <tag>] [--registry <place>] | matrix [version...] \
             | sizes [--functions]"
        ),
    }
}
