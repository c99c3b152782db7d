//! Lines in, clean lines out.

use crate::line::{self, Kind, LONGEST, UNSCANNED};
use log_scrub::config::{Config, How};
use log_scrub::{Findings, Rules};
use owo_colors::{OwoColorize as _, Style};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufRead, ErrorKind, Write};
use std::time::{Duration, Instant};

/// What is written beside the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The clean lines.
    Lines,
    /// A line for each finding: line number, byte offset, rule. Never the text.
    Findings,
    /// Nothing.
    Nothing,
}

/// What was there.
#[derive(Debug, Default)]
pub struct Summary {
    /// Lines read, of each kind.
    pub kinds: BTreeMap<Kind, u64>,
    /// Findings by rule, and in how many lines there were any.
    pub rules: BTreeMap<String, (u64, u64)>,
    /// Bytes read.
    pub bytes: u64,
    /// Whether the reader of what comes out went away before the end.
    pub broken_pipe: bool,
}

impl Summary {
    /// How many lines were read.
    pub fn lines(&self) -> u64 {
        self.kinds.values().sum()
    }

    /// How much was found in all.
    pub fn findings(&self) -> u64 {
        self.rules.values().map(|(findings, _)| findings).sum()
    }

    fn add(&mut self, kind: Kind, rules: &Rules, findings: &Findings) {
        let lines = self.kinds.entry(kind).or_default();
        *lines = lines.saturating_add(1);
        for (name, count) in findings.iter(rules) {
            let count = u64::from(count);
            match self.rules.get_mut(name) {
                Some((findings, lines)) => {
                    *findings = findings.saturating_add(count);
                    *lines = lines.saturating_add(1);
                }
                None => {
                    self.rules.insert(name.into(), (count, 1));
                }
            }
        }
    }

    /// A table by rule and one by kind of line.
    pub fn show(&self, coloured: bool) -> String {
        let style = |style: Style| if coloured { style } else { Style::new() };
        let (head, found, bad) =
            (style(Style::new().bold()), style(Style::new().yellow()), style(Style::new().red().bold()));
        let mut text = format!("{:>12}  {:>12}  {}\n", "findings".style(head), "lines".style(head), "rule".style(head));
        let mut rows: Vec<_> = self.rules.iter().collect();
        rows.sort_by_key(|(_, (findings, _))| std::cmp::Reverse(*findings));
        for (rule, (findings, lines)) in rows {
            text += &format!("{findings:>12}  {lines:>12}  {}\n", rule.style(found));
        }
        if self.rules.is_empty() {
            text += &format!("{:>12}  {:>12}  nothing found\n", 0, 0);
        }
        text += &format!("\n{:>12}  {}\n", "lines".style(head), "kind".style(head));
        for (kind, lines) in &self.kinds {
            let style = if *kind == Kind::Unscanned { bad } else { Style::new() };
            text += &format!("{lines:>12}  {}\n", kind.name().style(style));
        }
        text + &format!("{:>12}  in all, {} bytes\n", self.lines(), self.bytes)
    }
}

/// The same rules, all of which mask: [`line::explain`] needs them so.
pub fn masking(config: &Config) -> Config {
    let mut config = config.clone();
    config.action = How::default();
    config.fields.action = None;
    config.detectors.iter_mut().for_each(|choice| choice.action = None);
    config.own.iter_mut().for_each(|own| own.action = None);
    config
}

/// Cleans all lines. For [`Output::Findings`] the rules must mask.
///
/// One line is held at a time, [`LONGEST`] bytes at most. What was written is flushed before more is waited for, so
/// that it may stand in a pipe that never ends. `progress` is told now and then how far it is.
///
/// # Errors
/// What reading or writing came to, but for a reader that went away: that is an end like any other.
pub fn run(
    rules: &Rules,
    input: &mut impl BufRead,
    output: &mut impl Write,
    wanted: Output,
    mut progress: impl FnMut(u64, u64, Duration),
) -> io::Result<Summary> {
    let mut summary = Summary::default();
    match lines(rules, input, output, wanted, &mut progress, &mut summary).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => summary.broken_pipe = true,
        result => result?,
    }
    Ok(summary)
}

fn lines(
    rules: &Rules,
    input: &mut impl BufRead,
    output: &mut impl Write,
    wanted: Output,
    progress: &mut impl FnMut(u64, u64, Duration),
    summary: &mut Summary,
) -> io::Result<()> {
    let mut lines = Lines { input, held: Vec::new(), drained: false };
    let (mut findings, mut number) = (Findings::default(), 0_u64);
    let (begin, mut told) = (Instant::now(), Instant::now());
    while let Some(read) = lines.next(output)? {
        number = number.saturating_add(1);
        summary.bytes = summary.bytes.saturating_add(read.bytes);
        let (text, end) = match lines.held.strip_suffix(b"\r") {
            Some(text) if read.ended => (text, &b"\r\n"[..]),
            _ if read.ended => (&*lines.held, &b"\n"[..]),
            _ => (&*lines.held, &b""[..]),
        };
        findings.clear();
        let (kind, clean) = if read.is_long {
            (Kind::Unscanned, Cow::Borrowed(UNSCANNED))
        } else {
            line::clean(rules, text, &mut findings)
        };
        summary.add(kind, rules, &findings);
        match wanted {
            Output::Lines => {
                output.write_all(&clean)?;
                output.write_all(end)?;
            }
            Output::Findings if kind == Kind::Unscanned => writeln!(output, "{number}\t0\t[UNSCANNED]")?,
            Output::Findings if findings.total() > 0 => {
                for mark in line::explain(rules, text) {
                    let about = if mark.exact { "" } else { "\tin the part that begins there" };
                    writeln!(output, "{number}\t{}\t{}{about}", mark.offset, mark.rule)?;
                }
            }
            Output::Findings | Output::Nothing => {}
        }
        // Asking for the time costs more than a line.
        if number.is_multiple_of(256) && told.elapsed() >= Duration::from_millis(200) {
            told = Instant::now();
            progress(number, summary.bytes, begin.elapsed());
        }
    }
    Ok(())
}

/// Reads lines of any length, and holds one.
struct Lines<'i, I> {
    input: &'i mut I,
    held: Vec<u8>,
    /// Whether all that had come was read: the next may be long in coming.
    drained: bool,
}

struct Read {
    bytes: u64,
    /// Whether more than [`LONGEST`] came; the rest was passed over.
    is_long: bool,
    /// Whether a line feed ended it.
    ended: bool,
}

impl<I: BufRead> Lines<'_, I> {
    /// Reads a line; none at the end of all. What was written is flushed before more is waited for.
    fn next(&mut self, output: &mut impl Write) -> io::Result<Option<Read>> {
        self.held.clear();
        let mut read = Read { bytes: 0, is_long: false, ended: false };
        while !read.ended {
            if self.drained {
                output.flush()?;
            }
            let part = match self.input.fill_buf() {
                Ok(part) => part,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if part.is_empty() {
                return Ok((read.bytes > 0).then_some(read));
            }
            let end = memchr::memchr(b'\n', part);
            let text = part.get(..end.unwrap_or(part.len())).unwrap_or(part);
            let room = LONGEST.saturating_sub(self.held.len());
            read.is_long |= text.len() > room;
            read.ended = end.is_some();
            self.held.extend_from_slice(text.get(..room).unwrap_or(text));
            let taken = end.map_or(part.len(), |end| end.saturating_add(1));
            self.drained = taken == part.len();
            self.input.consume(taken);
            read.bytes = read.bytes.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
        }
        Ok(Some(read))
    }
}
