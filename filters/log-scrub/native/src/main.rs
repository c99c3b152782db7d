//! The command: see `--help`.

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use log_scrub::Rules;
use log_scrub_native::fuzz::{self, Until};
use log_scrub_native::scrub::{self, Output};
use log_scrub_native::{corpus, settings};
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
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
    /// Count what is found, missed and wrongly touched in generated requests
    Corpus(Corpus),
    /// Put values in every place, encoding and split, under random configurations, and look for them in what comes out
    #[command(
        after_help = "Exit codes:\n  0  nothing leaked\n  1  something did; it is printed, as small as it could be made"
    )]
    Fuzz(Fuzz),
}

#[derive(Args)]
struct Corpus {
    /// How many requests
    #[arg(long, default_value_t = 200_000)]
    requests: u32,
    /// The same seed makes the same requests
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print what was missed and what was wrongly touched (all of it is made up)
    #[arg(long)]
    examples: bool,
    /// Also write the tables into this page, between <!-- recall --> and <!-- end -->
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

#[derive(Args)]
struct Fuzz {
    /// How long
    #[arg(long, default_value_t = 5, conflicts_with = "cases")]
    minutes: u64,
    /// How many cases, however long they take
    #[arg(long)]
    cases: Option<u64>,
    /// The same seed makes the same cases; without, one of the time
    #[arg(long)]
    seed: Option<u64>,
    /// Only the case with this number
    #[arg(long, requires = "seed")]
    only: Option<u64>,
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
    let coloured = is_coloured();
    let result = match Command::parse().what {
        What::Scrub(options) => scrub(&options, coloured),
        What::Corpus(options) => corpus(&options).map_err(|error| (error, 1)),
        What::Fuzz(options) => fuzz(&options).map_err(|error| (error, 1)),
    };
    result.unwrap_or_else(|(error, code)| {
        let word = if coloured { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
        tell(&format!("{word} {error:#}\n"));
        ExitCode::from(code)
    })
}

fn corpus(options: &Corpus) -> Result<ExitCode> {
    let rules = corpus::rules()?;
    let mut figures = corpus::measure(&rules, options.requests, options.seed);
    corpus::try_ids(&rules, &mut figures, corpus::IDS_EACH, options.seed);
    let text = figures.markdown();
    io::stdout().write_all(text.as_bytes())?;
    if options.examples {
        for (about, list) in &figures.examples {
            writeln!(io::stdout(), "\n{about}\n  {}", list.join("\n  "))?;
        }
    }
    if let Some(path) = &options.write {
        let page = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        std::fs::write(path, corpus::fill(&page, &text).with_context(|| path.display().to_string())?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fuzz(options: &Fuzz) -> Result<ExitCode> {
    let seed = options.seed.unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.as_secs()
    });
    let result = if let Some(number) = options.only {
        fuzz::try_cases(seed, number..number.saturating_add(1)).map(|()| 1)
    } else {
        let until = match options.cases {
            Some(cases) => Until::Cases(cases),
            None => Until::Time(Duration::from_secs(options.minutes.saturating_mul(60))),
        };
        tell(&format!("seed {seed}\n"));
        let terminal = io::stderr().is_terminal();
        let every = Duration::from_millis(if terminal { 500 } else { 10_000 });
        let told = Mutex::new(Duration::ZERO);
        let progress = |cases: u64, time: Duration| {
            let Ok(mut told) = told.try_lock() else { return };
            if time.saturating_sub(*told) < every {
                return;
            }
            *told = time;
            let speed = u128::from(cases).saturating_mul(1000).checked_div(time.as_millis()).unwrap_or(0);
            let (begin, end) = if terminal { ("\r\x1b[K", "") } else { ("", "\n") };
            tell(&format!("{begin}{cases} cases, {speed} cases/s, {} s{end}", time.as_secs()));
        };
        let result = fuzz::run(seed, until, progress);
        if terminal {
            tell("\r\x1b[K");
        }
        result
    };
    match result {
        Ok(cases) => {
            tell(&format!("{cases} cases, nothing leaked\n"));
            Ok(ExitCode::SUCCESS)
        }
        Err(failure) => {
            tell(&failure.show());
            Ok(ExitCode::FAILURE)
        }
    }
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
    let file = options.config.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    let config = options.config.as_deref().map(settings::read).transpose()?.unwrap_or_default();
    // The configuration itself is checked too, not only what is left of it where all rules mask.
    let rules = Rules::new(&config).context(file)?;
    Ok(if options.explain { Rules::new(&scrub::masking(&config))? } else { rules })
}
