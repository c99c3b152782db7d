//! On what was measured, and when.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::Serialize;
use test_harness::root;

#[derive(Serialize)]
pub(crate) struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
    rust: String,
    /// The project's version and commit, `+` if there are changes on top.
    modules: String,
}

pub(crate) fn describe() -> Result<Machine> {
    let field = |file: &str, name: &str| -> Result<String> {
        let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
        let value = text.lines().find_map(|line| Some(line.strip_prefix(name)?.split_once(':')?.1.trim().to_owned()));
        value.with_context(|| format!("no {name} in {file}"))
    };
    let memory = field("/proc/meminfo", "MemTotal")?;
    let kib: f64 = memory.trim_end_matches(" kB").parse().with_context(|| memory.clone())?;
    let commit = said("git", &["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|_| "unknown".to_owned());
    // The last results themselves do not count.
    let changed = said("git", &["status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!README.md"]);
    let mark = if changed.is_ok_and(|files| files.is_empty()) { "" } else { "+" };
    let rust = said("rustc", &["--version"])?;
    Ok(Machine {
        date: Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        // ARM says less of itself.
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|_| std::env::consts::ARCH.to_owned()),
        cores: available_parallelism()?.get(),
        memory_gib: kib / f64::from(1 << 20),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        rust: rust.split(' ').nth(1).unwrap_or(&rust).to_owned(),
        modules: format!("{} ({commit}{mark})", env!("CARGO_PKG_VERSION")),
    })
}

fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).current_dir(root()).output()?;
    ensure!(output.status.success(), "{program}: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
