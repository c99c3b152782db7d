//! `make budgets`: counts what every case costs, says what has changed, and writes the file.

use anyhow::Result;
use test_harness::budgets;

fn main() -> Result<()> {
    let new = budgets::measure()?;
    let changed = budgets::differences(&budgets::read().unwrap_or_default(), &new);
    budgets::write(&new)?;
    if changed.is_empty() {
        println!("Nothing has changed.");
    } else {
        print!("{changed}");
    }
    Ok(())
}
