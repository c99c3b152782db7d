//! `application/x-www-form-urlencoded`.

use super::{LONG, Scan, UNSCANNED};
use crate::{Findings, Rules};
use kit::prelude::*;

/// A form that comes in parts: pair by pair, each as in a query.
#[derive(Default)]
pub(super) struct Form {
    pair: Vec<u8>,
    /// Whether the rest of the pair is passed over.
    skips: bool,
}

impl core::fmt::Debug for Form {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Form").field("held", &self.pair.len()).finish_non_exhaustive()
    }
}

impl Form {
    pub(super) fn push(&mut self, rules: &Rules, part: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        let mut rest = part;
        while !rest.is_empty() {
            let end = memchr::memchr(b'&', rest);
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

    pub(super) fn finish(mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        self.end(rules, out, findings);
    }

    fn end(&mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        if !self.skips {
            out.extend_from_slice(&Scan::new(rules).query(&self.pair, findings));
        }
        self.pair.clear();
        self.skips = false;
    }

    /// Keeps the name of a pair that is too long.
    fn give_up(&mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        self.skips = true;
        self.pair.truncate(memchr::memchr(b'=', &self.pair).map_or(0, |end| end.saturating_add(1)));
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
