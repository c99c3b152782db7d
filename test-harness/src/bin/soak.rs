//! `make soak`: whether the filters stay well under load and pushes. What is done and compared: `test_harness::soak`.
//!
//! Options: `--minutes N`, `--seconds N`, `--connections N`, and `--leak BYTES`, which adds a filter that leaks so much
//! with every request, to see the soak fail.

use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use owo_colors::OwoColorize;
use serde_json::json;
use test_harness::Request;
use test_harness::soak::{Progress, Pushes, Settings, Subject, run};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Every filter that is shipped.
fn subjects() -> Vec<Subject> {
    vec![trace_id(), latency(), log_scrub(), circuit_breaker(), suite()]
}

/// All four at once, each as it changes by itself.
fn suite() -> Subject {
    Subject {
        name: "suite",
        right: |number| {
            json!({
                "trace_id": (trace_id().right)(number),
                "latency": (latency().right)(number),
                "log_scrub": (log_scrub().right)(number),
                "circuit_breaker": (circuit_breaker().right)(number),
            })
        },
        wrong: |number| match number % 4 {
            0 => json!({ "trace_id": (trace_id().wrong)(number) }),
            1 => json!({ "latency": (latency().wrong)(number) }),
            2 => json!({ "log_scrub": (log_scrub().wrong)(number) }),
            _ => json!({ "circuit_breaker": (circuit_breaker().wrong)(number) }),
        },
        request: log_scrub().request.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01")),
        check: |response| {
            (trace_id().check)(response)?;
            (latency().check)(response)
        },
    }
}

fn circuit_breaker() -> Subject {
    Subject {
        name: "circuit-breaker",
        // Each push edits the rule, and moves its counts into other buckets.
        right: |number| {
            json!({
                "resources": ["cluster", "host"],
                "rules": [{
                    "id": "errors", "resource": "*", "strategy": "error_ratio", "threshold": 0.5,
                    "interval": format!("{}ms", (number % 10_000).saturating_add(100)),
                    "buckets": (number % 99).saturating_add(2),
                }],
                "properties": "all",
            })
        },
        wrong: |number| json!({ "rules": [{ "resource": "*", "strategy": format!("strategy-{number}") }] }),
        request: Request::get("/"),
        check: |response| {
            ensure!(response.status == 200, "wrong answer: {response:?}");
            Ok(())
        },
    }
}

fn log_scrub() -> Subject {
    Subject {
        name: "log-scrub",
        right: |number| {
            json!({
                "outputs": { "request_body": true, "response_body": true, "line": number.is_multiple_of(2) },
                "mutate": { "request_body": number.is_multiple_of(3) },
                "max_body": (number % 1000).saturating_add(100),
                "own": [{ "name": format!("own-{}", number % 50), "regex": "a[0-9]+b" }],
            })
        },
        wrong: |number| json!({ "packs": [format!("pack-{number}")] }),
        request: Request::post("/?token=abc", r#"{"mail":"ann@example.com","n":4111111111111111}"#)
            .header("content-type", "application/json"),
        check: |response| {
            ensure!(response.status == 200, "wrong answer: {response:?}");
            Ok(())
        },
    }
}

fn latency() -> Subject {
    Subject {
        name: "latency",
        right: |number| {
            json!({
                "max_series": (number % 100).saturating_add(100),
                "server_timing": true,
                "bytes": true,
                "slo": [{ "name": "fast", "within": format!("{}ms", (number % 10_000).saturating_add(1)) }],
                "properties": { "json": number.is_multiple_of(2) },
            })
        },
        wrong: |number| json!({ "labels": [format!("label-{number}")] }),
        request: Request::get("/"),
        check: |response| {
            let told = response.headers.text("server-timing");
            let right = told.as_deref().is_some_and(|told| told.starts_with("ttfb;dur="));
            ensure!(response.status == 200 && right, "wrong answer: {response:?}");
            Ok(())
        },
    }
}

fn trace_id() -> Subject {
    Subject {
        name: "trace-id",
        right: |number| {
            let formats = if number.is_multiple_of(2) { ["w3c", "b3"] } else { ["jaeger", "xray"] };
            let ratio = f64::from(u16::try_from(number % 10_000).unwrap_or_default()) / 10_000.0;
            json!({
                "inject": formats,
                "sampling": { "root": "ratio", "ratio": ratio },
                "response": { "trace_id_header": "x-trace-id" },
            })
        },
        wrong: |number| json!({ "inject": [format!("format-{number}")] }),
        request: Request::get("/").header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01")),
        check: |response| {
            let told = response.headers.text("x-trace-id");
            ensure!(response.status == 200 && told.as_deref() == Some(TRACE), "wrong answer: {response:?}");
            Ok(())
        },
    }
}

static LEAK: OnceLock<u32> = OnceLock::new();

/// The test module that leaks.
fn leaking() -> Subject {
    Subject {
        name: "trap",
        right: |number| json!({ "leak": LEAK.get(), "number": number }),
        wrong: |number| json!({ "leak": format!("{number} bytes") }),
        request: Request::get("/"),
        check: |response| {
            ensure!(response.status == 200, "wrong answer: {response:?}");
            Ok(())
        },
    }
}

struct Options {
    settings: Settings,
    subjects: Vec<Subject>,
}

fn options() -> Result<Options> {
    let mut options = Options { settings: Settings::default(), subjects: subjects() };
    let mut args = std::env::args().skip(1);
    while let Some(option) = args.next() {
        ensure!(
            ["--minutes", "--seconds", "--connections", "--leak"].contains(&option.as_str()),
            "unknown option {option}: there are --minutes, --seconds, --connections, --leak"
        );
        let value = args.next().with_context(|| format!("{option} needs a value"))?;
        let number: u32 = value.parse().with_context(|| format!("{option} {value}"))?;
        match option.as_str() {
            "--minutes" => options.settings.duration = Duration::from_secs(u64::from(number) * 60),
            "--seconds" => options.settings.duration = Duration::from_secs(u64::from(number)),
            "--connections" => options.settings.connections = usize::try_from(number)?,
            _ => {
                LEAK.get_or_init(|| number);
                options.subjects.push(leaking());
            }
        }
    }
    Ok(options)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let terminal = stdout().is_terminal();
    let coloured = terminal && std::env::var_os("NO_COLOR").is_none();
    match soak(terminal, coloured).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if coloured => {
            eprintln!("{} {error:#}", "not well:".red().bold());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("not well: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn soak(terminal: bool, coloured: bool) -> Result<()> {
    let Options { settings, subjects } = options()?;
    let total = settings.duration.as_secs();
    let mut seen = 0_u64;
    let show = |progress: &Progress| {
        let Progress { elapsed, warming, answered, pushes: Pushes { accepted, refused }, held } = progress;
        let phase = if *warming { "warming up" } else { "soaking" };
        // Short enough for a line of a terminal.
        let line = format!(
            "{:>4} of {total} s  {phase:<10}  {answered} requests  {accepted}+{refused} pushes  {} VMs  {} MiB  {} files",
            elapsed.as_secs(),
            held.vms,
            held.anonymous >> 20,
            held.files,
        );
        // A terminal has one line that changes, a log one line every ten pushes.
        if terminal {
            print!("\r\x1b[2K{}", if coloured { line.cyan().to_string() } else { line });
            let _ = stdout().flush();
        } else if seen.is_multiple_of(10) {
            println!("{line}");
        }
        seen = seen.saturating_add(1);
    };
    let result = run(&subjects, &settings, show).await;
    if terminal {
        print!("\r\x1b[2K");
    }
    let report = result?;
    println!("{}", report.table(coloured));
    report.check()
}
