//! `application/x-www-form-urlencoded`.

use super::encoding::{QUERY, goes_on_as_utf8};
use super::{LONG, Scan, UNSCANNED, Why};
use crate::{Findings, Rules};
use kit::prelude::*;

/// A form that comes in parts: pair by pair, each as in a query.
#[derive(Default)]
pub(super) struct Form {
    pair: Vec<u8>,
    /// Whether the rest of the pair is passed over.
    skips: bool,
    /// A character that is not whole.
    partial: Vec<u8>,
    failed: bool,
}

impl core::fmt::Debug for Form {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Form").field("held", &self.pair.len()).finish_non_exhaustive()
    }
}

impl Form {
    pub(super) fn push(&mut self, rules: &Rules, part: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        self.failed = self.failed || !goes_on_as_utf8(&mut self.partial, part);
        if self.failed {
            return;
        }
        let mut rest = part;
        while !rest.is_empty() {
            let end = super::find(b'&', rest);
            let (pair, after) = rest.split_at_checked(end.unwrap_or(rest.len())).unwrap_or((rest, &[]));
            if !self.skips {
                let room = LONG.saturating_sub(self.pair.len());
                self.pair.extend_from_slice(pair.get(..room).unwrap_or(pair));
                if pair.len() > room {
                    self.give_up(rules, out, findings);
                }
            }
            rest = after;
            if let Some((_, after)) = after.split_first() {
                self.end(rules, out, findings);
                out.push(b'&');
                rest = after;
            }
        }
    }

    /// Why nothing that was written may be used.
    pub(super) fn failed(&self) -> Option<Why> {
        self.failed.then_some(Why::Encoding)
    }

    pub(super) fn finish(mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) -> Result<(), Why> {
        self.end(rules, out, findings);
        if self.failed || !self.partial.is_empty() { Err(Why::Encoding) } else { Ok(()) }
    }

    fn end(&mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        if !self.skips {
            if core::str::from_utf8(&QUERY.decoded(&self.pair)).is_err() {
                // Written in who knows what.
                self.give_up(rules, out, findings);
            } else {
                out.extend_from_slice(&Scan::new(rules).query(&self.pair, findings));
            }
        }
        self.pair.clear();
        self.skips = false;
    }

    /// Keeps the name of a pair that is too long, or not UTF-8.
    fn give_up(&mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        self.skips = true;
        let name = super::find(b'=', &self.pair).map_or(0, |end| end.saturating_add(1));
        self.pair.truncate(name);
        if core::str::from_utf8(&QUERY.decoded(&self.pair)).is_err() {
            self.pair.clear();
        }
        self.pair.extend_from_slice(UNSCANNED);
        let clean = Scan::new(rules).query(&self.pair, findings);
        // Else its name says that it is covered whatever it is.
        if clean.ends_with(UNSCANNED) {
            findings.add_unscanned();
        }
        out.extend_from_slice(&clean);
        self.pair.clear();
    }
}
