//! The command: see `--help`.

use anyhow::{Context as _, Result, bail};
use circuit_breaker::rules;
use circuit_breaker_native::log::{Form, Lines, Reader};
use circuit_breaker_native::replay::{By, Replay};
use circuit_breaker_native::{picture, report};
use clap::{Args, Parser, Subcommand};
use std::io::{self, BufReader, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// circuit-breaker without a proxy.
#[derive(Parser)]
#[command(name = "circuit-breaker-native", version)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Say what rules would have done on a recorded access log, from stdin
    ///
    /// The rules are those that the filter takes, in any of its three forms, and so is the code that decides. Time is the
    /// log's. A request that would have been refused has no effect on counts; one that would have been a probe ends as
    /// recorded. Rules whose time is not the log's (active_from, active_until) do nothing.
    #[command(
        after_help = "Exit codes:\n  0  done\n  1  nothing in the log could be read or meets a rule, or reading or writing \
                            failed\n  2  the command or the rules are wrong"
    )]
    Replay(Options),
}

#[derive(Args)]
struct Options {
    /// The rules, as the filter's source gives them
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    /// Also draw it
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How the log is written: auto (JSON, Envoy's or Istio's text), json, envoy, istio, or your proxy's format string
    #[arg(long, value_name = "FORM", default_value = "auto")]
    format: String,
    /// By what requests are called: cluster, host, route, method, a template such as /users/{id}, field:<JSON field>, or
    /// =<fixed name>; again for more. Without, the cluster where the log has it, else the host
    #[arg(long, value_name = "WHAT")]
    resource: Vec<String>,
    /// A JSON field's own name, such as duration=took, duration=took:us or start_time=when:ns; again for more
    #[arg(long, value_name = "WHAT=NAME")]
    field: Vec<String>,
    /// Which statuses are errors, such as 5xx or 429; again for more. Without, 5xx
    #[arg(long, value_name = "STATUS")]
    error_status: Vec<String>,
    /// How many resources at most, as max_resources of the filter
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    max_resources: u16,
    /// How far, in seconds, lines may be out of order, as they are where they are written when requests end
    #[arg(long, default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    look_ahead: u32,
    /// Without the rows of other thresholds
    #[arg(long)]
    no_what_if: bool,
}

fn main() -> ExitCode {
    let What::Replay(options) = Command::parse().what;
    let coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, code)) => {
            let word = if coloured { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
            tell(&format!("{word} {error:#}\n"));
            ExitCode::from(code)
        }
    }
}

/// Writes to stderr, if anyone reads it.
fn tell(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn run(options: &Options) -> Result<(), (anyhow::Error, u8)> {
    let (reader, mut replay) = prepare(options).map_err(|error| (error, 2))?;
    read(&reader, &mut replay).and_then(|()| show(options, &replay)).map_err(|error| (error, 1))
}

fn prepare(options: &Options) -> Result<(Reader, Replay)> {
    let file = || options.rules.display().to_string();
    let rules = rules::read(&std::fs::read(&options.rules).with_context(file)?).with_context(file)?;
    if rules.is_empty() {
        bail!("{}: has no rules, give one at least", file());
    }
    let (by, fields) = By::read(&options.resource)?;
    let form = Form::parse(&options.format).context("--format")?;
    let reader = Reader::new(form, &options.field, fields, &options.error_status)?;
    let look_ahead_ns = u64::from(options.look_ahead).saturating_mul(1_000_000_000);
    Ok((reader, Replay::new(rules, by, options.max_resources.into(), look_ahead_ns, !options.no_what_if)))
}

fn read(reader: &Reader, replay: &mut Replay) -> Result<()> {
    let mut lines = Lines::new(BufReader::with_capacity(256 << 10, io::stdin().lock()));
    let terminal = io::stderr().is_terminal();
    let (begin, mut told, mut number) = (Instant::now(), Instant::now(), 0_u64);
    while let Some(line) = lines.read().context("reading failed")? {
        number = number.saturating_add(1);
        if !line.trim_ascii().is_empty() {
            replay.seen.lines = replay.seen.lines.saturating_add(1);
            match reader.read(line) {
                Ok(line) => replay.line(number, &line),
                Err(why) => replay.unread(number, why),
            }
        }
        // Asking for the time costs more than a line.
        if terminal && number.is_multiple_of(256) && told.elapsed() >= Duration::from_millis(200) {
            told = Instant::now();
            let speed = u128::from(lines.bytes()).checked_div(begin.elapsed().as_micros()).unwrap_or(0);
            let mb = lines.bytes() / 1_000_000;
            tell(&format!("\r\x1b[K{number} lines, {mb} MB, {speed} MB/s, {} requests held", replay.held()));
        }
    }
    if terminal {
        tell("\r\x1b[K");
    }
    replay.finish();
    check(replay)
}

/// Whether there is anything to report.
fn check(replay: &Replay) -> Result<()> {
    let seen = &replay.seen;
    if seen.lines == 0 {
        bail!("the log is empty: give its lines on stdin, as in … replay --rules rules.json < access.log");
    }
    if seen.unread == seen.lines {
        let first: Vec<_> = seen.unread_first.iter().map(|(number, why)| format!("\n  line {number} {why}")).collect();
        bail!(
            "no line could be read:{}\nGive --format with your proxy's format string, or --field with the names of your \
             JSON fields",
            first.concat()
        );
    }
    if replay.judges.is_empty() {
        let named = seen.unprotected_names.iter().map(|(name, number)| format!("\n  {name}: {number} requests"));
        bail!(
            "no request meets a rule; what requests are called here:{}\nName one of these in the rules, or give \
             --resource, such as host, route, field:<JSON field> or =<fixed name>",
            named.collect::<String>()
        );
    }
    Ok(())
}

fn show(options: &Options, replay: &Replay) -> Result<()> {
    if let Some(path) = &options.svg {
        std::fs::write(path, picture::svg(replay)).with_context(|| path.display().to_string())?;
    }
    let text = if options.json {
        format!("{:#}\n", report::json(replay))
    } else {
        report::text(replay, io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none())
    };
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing failed"),
    }
}
