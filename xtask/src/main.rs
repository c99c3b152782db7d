//! `xtask <task>`: see the library.

use anyhow::Result;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    xtask::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}
