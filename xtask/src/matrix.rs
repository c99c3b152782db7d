//! `make test-matrix`: every test that needs a real Envoy, on every version that is pinned, and the table of it.

use crate::docs;
use anyhow::{Context as _, Result, ensure};
use owo_colors::{OwoColorize as _, Style};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt, fs,
    io::{IsTerminal as _, Write as _, stdout},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

/// Which Istio comes with which Envoy. One that is not here comes with none that is known of.
const ISTIO: [((u32, u32), &str); 4] =
    [((1, 36), "1.28"), ((1, 37), "1.29"), ((1, 38), "1.30"), ((1, 40), "1.31 (about)")];

/// Where the pins lie: a file per version.
const PINS: &str = "test-harness/envoy";

/// The package whose tests start Envoys.
const PACKAGE: &str = "test-harness";

/// What has a wasm filter, and nothing that only some versions know.
const PROBE: &str = "examples/envoy/trace-id.yaml";

/// The mark of the table in the README.
const MARK: &str = "matrix";

/// How much is shown of what a failed test said.
const LINES: usize = 40;

/// A version of Envoy, in the order of numbers: 1.9 is before 1.10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version([u32; 3]);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Vec<u32> = text.split('.').map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
        let numbers = numbers.try_into().ok().with_context(|| format!("`{text}` is no version such as 1.40.0"))?;
        Ok(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch]) = self;
        // As one text, so that a width pads all of it.
        to.pad(&format!("{major}.{minor}.{patch}"))
    }
}

impl Version {
    fn istio(self) -> &'static str {
        let Self([major, minor, _]) = self;
        ISTIO.iter().find(|(envoy, _)| *envoy == (major, minor)).map_or("–", |(_, istio)| istio)
    }

    fn binary(self, root: &Path) -> PathBuf {
        root.join(format!(".tools/envoy-{self}/envoy/_bin/envoy"))
    }
}

/// What is pinned, the oldest first.
fn pinned(root: &Path) -> Result<Vec<Version>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(root.join(PINS)).context(PINS)? {
        let path = entry?.path();
        let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        versions.push(name.parse().with_context(|| path.display().to_string())?);
    }
    versions.sort_unstable();
    Ok(versions)
}

/// A program of tests, and those of them that need an Envoy.
struct Program {
    name: String,
    path: PathBuf,
    tests: Vec<String>,
}

/// What became of a program on a version.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    passed: usize,
    /// By the names of the tests: the end of what was said.
    failed: BTreeMap<String, String>,
}

/// A version and what became of it.
struct Row {
    version: Version,
    /// Why it could not be asked at all.
    unfit: Option<String>,
    passed: usize,
    failed: BTreeMap<String, String>,
    time: Duration,
}

impl Row {
    fn is_green(&self) -> bool {
        self.unfit.is_none() && self.failed.is_empty()
    }

    /// In words that are the same in every run with the same result.
    fn result(&self) -> String {
        match (&self.unfit, self.failed.len()) {
            (Some(why), _) => why.clone(),
            (None, 0) => format!("{} passed", self.passed),
            (None, failed) => format!("{} passed, {failed} failed", self.passed),
        }
    }
}

/// Runs the tests on these versions; without any, on all that are pinned, which is what the README shows.
pub(crate) fn run(versions: &[&str]) -> Result<()> {
    let root = docs::root()?;
    let pinned = pinned(&root)?;
    let mut chosen = versions.iter().map(|text| text.parse()).collect::<Result<Vec<Version>>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.is_empty() {
        chosen.clone_from(&pinned);
    }
    let show = Show { coloured: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };

    let programs = programs(&root)?;
    let total: usize = programs.iter().map(|program| program.tests.len()).sum();
    ensure!(total > 0, "no test needs an Envoy: that cannot be");
    let about = format!("{total} tests fail without an Envoy; on each of {} they must pass", join(&chosen));
    show.line(Style::new().bold(), &about);

    let mut rows = Vec::new();
    for version in &chosen {
        rows.push(one_version(&root, *version, &programs, &show)?);
    }
    show.table(&rows);
    show.failures(&rows);
    if chosen == pinned {
        let path = root.join("README.md");
        let readme = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let written = docs::fill(&readme, MARK, &table(&rows))?;
        if written != readme {
            fs::write(&path, written)?;
            println!("The table in README.md was another: it is written anew");
        }
    }
    let red: Vec<Version> = rows.iter().filter(|row| !row.is_green()).map(|row| row.version).collect();
    ensure!(red.is_empty(), "not green: {}", join(&red));
    Ok(())
}

/// Says what is wrong about the README's table, and about who names the newest version, as far as that can be known
/// without running an Envoy.
pub(crate) fn check() -> Result<()> {
    let root = docs::root()?;
    let pinned = pinned(&root)?;
    let read = |file: &str| fs::read_to_string(root.join(file)).context(file.to_owned());
    let newest = pinned.last().context("no Envoy is pinned")?;
    for (file, wanted) in [
        ("Makefile", format!("ENVOY_VERSION ?= {newest}\n")),
        ("test-harness/src/envoy.rs", format!("VERSION: &str = \"{newest}\";\n")),
    ] {
        ensure!(read(file)?.contains(&wanted), "{file} does not say `{}`, the newest that is pinned", wanted.trim());
    }
    let readme = read("README.md")?;
    let (_, shown, _) = docs::marked(&readme, MARK)?;
    let shown: Vec<&str> = shown.lines().skip(HEAD.lines().count()).take_while(|line| !line.is_empty()).collect();
    let wanted: Vec<String> = pinned.iter().map(|version| start_of_row(*version)).collect();
    let same = shown.len() == wanted.len() && shown.iter().zip(&wanted).all(|(row, start)| row.starts_with(start));
    ensure!(same, "README.md does not show {}: run `make test-matrix`", join(&pinned));
    Ok(())
}

const HEAD: &str = "| Envoy | Istio with it | tests in it |\n| --- | --- | --- |\n";

fn start_of_row(version: Version) -> String {
    format!("| {version} | {} | ", version.istio())
}

/// For the README: without times, so that it changes only when something else has.
fn table(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let names: Vec<String> = row.failed.keys().map(|name| format!("`{name}`")).collect();
        let failed = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        format!("{}{}{failed} |\n", start_of_row(row.version), row.result())
    };
    let rows: String = rows.iter().map(row).collect();
    format!("{HEAD}{rows}\nRun on {} {}.\n", std::env::consts::OS, std::env::consts::ARCH)
}

fn one_version(root: &Path, version: Version, programs: &[Program], show: &Show) -> Result<Row> {
    let begin = Instant::now();
    let unfit = unfit(root, version)?;
    let mut row = Row { version, unfit, passed: 0, failed: BTreeMap::new(), time: Duration::ZERO };
    if let Some(why) = &row.unfit {
        show.begin(version, "");
        show.end(false, why);
        return Ok(row);
    }
    for program in programs {
        show.begin(version, &program.name);
        let begin = Instant::now();
        let outcome = outcome(program, version)?;
        let seconds = begin.elapsed().as_secs_f32();
        let failed: Vec<&str> = outcome.failed.keys().map(String::as_str).collect();
        match failed.as_slice() {
            [] => show.end(true, &format!("{:>3} passed  {seconds:>5.1} s", outcome.passed)),
            names => show.end(false, &format!("{:>3} passed, failed: {}", outcome.passed, names.join(", "))),
        }
        row.passed = row.passed.saturating_add(outcome.passed);
        row.failed.extend(outcome.failed.into_iter().map(|(test, said)| (format!("{}::{test}", program.name), said)));
    }
    row.time = begin.elapsed();
    Ok(row)
}

/// Why this Envoy cannot be tested, if so. One that was built without WebAssembly would fail nearly every test, and
/// none of them would say that.
fn unfit(root: &Path, version: Version) -> Result<Option<String>> {
    let binary = version.binary(root);
    let ask = |arguments: &[&str]| -> Result<(bool, String)> {
        let mut command = Command::new(&binary);
        let output = command.args(arguments).current_dir(root).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("{} (make envoy ENVOY_VERSION={version})", binary.display()))?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    };
    let (_, said) = ask(&["--version"])?;
    if !said.contains(&format!("/{version}/")) {
        return Ok(Some(format!(
            "does not say that it is {version}: {}",
            said.trim().lines().next().unwrap_or_default()
        )));
    }
    // Whatever else may be wrong with the example, its test will say so.
    let (taken, said) = ask(&["--mode", "validate", "--log-level", "warning", "-c", PROBE])?;
    let without = !taken && said.contains("Envoy was compiled without support for it");
    Ok(without.then(|| "built without WebAssembly: no filter runs".to_owned()))
}

/// Builds the package's programs of tests, and asks each which of its tests need an Envoy: those that fail when there
/// is none. Nobody has to keep a list of them.
fn programs(root: &Path) -> Result<Vec<Program>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        // The whole workspace, as `make test` builds it: with other features, much would be built again.
        .args(["test", "--quiet", "--locked", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"])
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo does not start")?;
    ensure!(output.status.success(), "the tests do not build");
    let manifest = root.join(PACKAGE).join("Cargo.toml");
    let mut programs = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let text = |pointer: &str| message.pointer(pointer).and_then(Value::as_str);
        let is_test = message.pointer("/profile/test") == Some(&Value::Bool(true));
        let ours = text("/manifest_path").is_some_and(|path| Path::new(path) == manifest);
        if let (true, true, Some(path), Some(name)) = (is_test, ours, text("/executable"), text("/target/name")) {
            let mut program = Program { name: name.to_owned(), path: path.into(), tests: Vec::new() };
            program.tests = needing_an_envoy(&program)?;
            if !program.tests.is_empty() {
                programs.push(program);
            }
        }
    }
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(programs)
}

/// In place of an Envoy's path: a test that needs one fails, and says so.
const NOWHERE: &str = "/there/is/no/envoy";

fn needing_an_envoy(program: &Program) -> Result<Vec<String>> {
    let (success, said) = execute(command(program)?.env("ENVOY_BIN", NOWHERE))?;
    let failed = Outcome::read(&said).failed;
    // Who breaks off before it names a test would otherwise look like one that needs no Envoy.
    ensure!(success == failed.is_empty(), "{} breaks off:\n{}", program.name, end(&said));
    // A test that fails for another reason is none of the matrix's.
    Ok(failed.into_iter().filter(|(_, told)| told.contains(NOWHERE)).map(|(name, _)| name).collect())
}

fn outcome(program: &Program, version: Version) -> Result<Outcome> {
    let mut command = command(program)?;
    command.arg("--exact").args(&program.tests);
    command.env("ENVOY_VERSION", version.to_string()).env_remove("ENVOY_BIN");
    let (success, said) = execute(&mut command)?;
    let mut outcome = Outcome::read(&said);
    // A program that breaks off names no failed test, or not all that it was to run.
    let reported = outcome.passed.saturating_add(outcome.failed.len());
    if reported != program.tests.len() || success != outcome.failed.is_empty() {
        let what = format!("broke off: {reported} of {} tests reported", program.tests.len());
        outcome.failed.insert(what, end(&said));
    }
    Ok(outcome)
}

fn command(program: &Program) -> Result<Command> {
    let mut command = Command::new(&program.path);
    command.args(["--color", "never"]);
    // As cargo does it; and the end of what a test says shall be more than addresses.
    command.current_dir(docs::root()?.join(PACKAGE)).env("RUST_BACKTRACE", "0");
    Ok(command)
}

fn execute(command: &mut Command) -> Result<(bool, String)> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| command.get_program().display().to_string())?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

impl Outcome {
    /// From what Rust's own test runner prints.
    fn read(said: &str) -> Self {
        let mut outcome = Self::default();
        for line in said.lines() {
            let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) else {
                continue;
            };
            match result {
                "ok" => outcome.passed = outcome.passed.saturating_add(1),
                "FAILED" => {
                    let start = format!("---- {name} stdout ----\n");
                    let of_it = said.split_once(&start).map_or("", |(_, rest)| rest);
                    let of_it = of_it.split("\n---- ").next().and_then(|text| text.split("\nfailures:\n").next());
                    outcome.failed.insert(name.to_owned(), end(of_it.unwrap_or_default()));
                }
                _ => {}
            }
        }
        outcome
    }
}

/// The last lines.
fn end(said: &str) -> String {
    let lines: Vec<&str> = said.trim().lines().collect();
    let skipped = lines.len().saturating_sub(LINES);
    lines.into_iter().skip(skipped).collect::<Vec<_>>().join("\n")
}

fn join(versions: &[Version]) -> String {
    versions.iter().map(Version::to_string).collect::<Vec<_>>().join(", ")
}

/// What the terminal shows.
struct Show {
    coloured: bool,
}

impl Show {
    fn paint(&self, style: Style, text: &str) -> String {
        if self.coloured { text.style(style).to_string() } else { text.to_owned() }
    }

    fn line(&self, style: Style, text: &str) {
        println!("{}", self.paint(style, text));
    }

    /// Says what runs now; [`Show::end`] goes on in the same line.
    fn begin(&self, version: Version, program: &str) {
        print!("  {} {program:<14} ", self.paint(Style::new().cyan(), &format!("{version:<8}")));
        // Nobody may be there to see it; the tests go on.
        let _ = stdout().flush();
    }

    fn end(&self, good: bool, text: &str) {
        self.line(verdict(good), text);
    }

    fn table(&self, rows: &[Row]) {
        let head = format!("\n  {:<8} {:<13} {:<24} time", "Envoy", "Istio", "tests");
        self.line(Style::new().bold(), &head);
        for row in rows {
            let result = self.paint(verdict(row.is_green()), &format!("{:<24}", row.result()));
            let time = format!("{:.0} s", row.time.as_secs_f32());
            println!("  {:<8} {:<13} {result} {}", row.version, row.version.istio(), time);
        }
    }

    fn failures(&self, rows: &[Row]) {
        for row in rows {
            for (test, said) in &row.failed {
                self.line(verdict(false), &format!("\nEnvoy {}: {test}", row.version));
                println!("{said}");
            }
        }
        println!();
    }
}

fn verdict(good: bool) -> Style {
    if good { Style::new().green() } else { Style::new().red().bold() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "
running 3 tests
test kit::good ... ok
test it_waits ... FAILED
test other ... FAILED

failures:

---- it_waits stdout ----
error: not in time
--- Envoy's log ends with:
[info] x

---- other stdout ----
assertion failed

failures:
    it_waits
    other

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 4.04s
";

    #[test]
    fn what_the_runner_prints_is_understood() {
        let outcome = Outcome::read(SAID);
        let failed =
            [("it_waits", "error: not in time\n--- Envoy's log ends with:\n[info] x"), ("other", "assertion failed")];
        let failed = failed.map(|(test, said)| (test.to_owned(), said.to_owned())).into();
        assert_eq!(outcome, Outcome { passed: 1, failed });
    }

    #[test]
    fn a_program_that_breaks_off_is_red() {
        let dies = Program { name: "sh".into(), path: "/bin/false".into(), tests: vec!["one".into()] };
        assert!(needing_an_envoy(&dies).is_err());
        let outcome = outcome(&dies, Version([1, 40, 0])).unwrap();
        assert_eq!(
            (outcome.passed, outcome.failed.keys().next().unwrap().as_str()),
            (0, "broke off: 0 of 1 tests reported")
        );
    }

    #[test]
    fn versions_are_in_the_order_of_their_numbers() {
        let mut versions: Vec<Version> = ["1.40.0", "1.9.10", "1.9.9"].map(|text| text.parse().unwrap()).into();
        versions.sort_unstable();
        assert_eq!(join(&versions), "1.9.9, 1.9.10, 1.40.0");
        for bad in ["", "1.40", "1.36.2.post1", "v1.40.0", "1.40.0.1"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_names_what_failed() {
        let row = |version, unfit: Option<&str>, failed: &[&str]| Row {
            version: Version(version),
            unfit: unfit.map(str::to_owned),
            passed: 40,
            failed: failed.iter().map(|name| ((*name).to_owned(), String::new())).collect(),
            time: Duration::from_secs(9),
        };
        let rows = [
            row([1, 36, 4], None, &[]),
            row([1, 39, 3], None, &["kit::a", "kit::b"]),
            row([1, 40, 0], Some("built without WebAssembly: no filter runs"), &[]),
        ];
        let shown = table(&rows);
        let shown: Vec<&str> = shown.strip_prefix(HEAD).unwrap().lines().take(3).collect();
        assert_eq!(
            shown,
            [
                "| 1.36.4 | 1.28 | 40 passed |",
                "| 1.39.3 | – | 40 passed, 2 failed: `kit::a`, `kit::b` |",
                "| 1.40.0 | 1.31 (about) | built without WebAssembly: no filter runs |",
            ]
        );
        assert_eq!(rows.map(|row| row.is_green()), [true, false, false]);
    }
}
