//! The command: see `--help`.

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use log_scrub::Rules;
use log_scrub_native::scrub::{self, Output};
use log_scrub_native::settings;
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// log-scrub without a proxy.
#[derive(Parser)]
#[command(name = "log-scrub-native", version)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Clean log lines from stdin: JSON, Envoy's and Istio's text format, common and combined format, any text
    ///
    /// The clean lines go to stdout, a summary by rule and by kind of line to stderr. A line that is not UTF-8, has more
    /// than 1 MiB or is broken JSON becomes [UNSCANNED].
    #[command(
        after_help = "Exit codes:\n  0  done (with --check: nothing was found)\n  1  reading or writing failed\n  \
                            2  the command or the configuration is wrong\n  3  with --check: something was found"
    )]
    Scrub(Scrub),
}

#[derive(Args)]
struct Scrub {
    /// The filter's configuration, YAML or JSON; without, its defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the summary only
    #[arg(long)]
    check: bool,
    /// Print line number, byte offset and rule of each finding instead of the lines; never the text that was found
    #[arg(long, conflicts_with = "check")]
    explain: bool,
}

fn main() -> ExitCode {
    let What::Scrub(options) = Command::parse().what;
    let coloured = is_coloured();
    scrub(&options, coloured).unwrap_or_else(|(error, code)| {
        let word = if coloured { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        tell(&format!("{word} {error:#}\n"));
        ExitCode::from(code)
    })
}

/// Whether stderr may have colours.
fn is_coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Writes to stderr, if anyone reads it.
fn tell(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn scrub(options: &Scrub, coloured: bool) -> Result<ExitCode, (anyhow::Error, u8)> {
    let rules = rules(options).map_err(|error| (error, 2))?;
    let wanted = match (options.check, options.explain) {
        (true, _) => Output::Nothing,
        (_, true) => Output::Findings,
        _ => Output::Lines,
    };
    let (mut input, mut output) =
        (BufReader::with_capacity(64 << 10, io::stdin().lock()), BufWriter::new(io::stdout().lock()));
    let terminal = io::stderr().is_terminal();
    let progress = |lines: u64, bytes: u64, time: Duration| {
        if terminal {
            let speed = u128::from(bytes).checked_div(time.as_micros()).unwrap_or(0);
            tell(&format!("\r\x1b[K{lines} lines, {} MB, {speed} MB/s", bytes / 1_000_000));
        }
    };
    let result = scrub::run(&rules, &mut input, &mut output, wanted, progress);
    if terminal {
        tell("\r\x1b[K");
    }
    let summary = result.context("reading or writing failed").map_err(|error| (error, 1))?;
    if !summary.broken_pipe {
        tell(&summary.show(coloured));
    }
    let found = options.check && summary.findings() > 0;
    Ok(ExitCode::from(if found { 3 } else { 0 }))
}

fn rules(options: &Scrub) -> Result<Rules> {
    let mut config = options.config.as_deref().map(settings::read).transpose()?.unwrap_or_default();
    if options.explain {
        // The configuration itself is checked too, not only what is left of it here.
        Rules::new(&config)?;
        config = scrub::masking(&config);
    }
    let rules = Rules::new(&config);
    let file = options.config.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    rules.context(file)
}
