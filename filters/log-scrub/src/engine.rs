//! Rules, and how text passes them.

use crate::action::{self, Action, Cover};
use crate::anchors::{self, Anchors};
use crate::config::{Config, How};
use crate::detectors::{self, Find, Found, Look, Normal, Tail};
use crate::digits;
use crate::fields::{self, Names};
use crate::own::Own;
use crate::view::{AHEAD, BEHIND, Before, View};
use alloc::borrow::Cow;
use core::ops::Range;
use kit::prelude::*;
use kit::{Refusal, alloc};

/// Of a rule: its place in [`Rules`], which counts and metrics go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule(usize);

/// What was found, by rule, and how often something could not be looked at.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    by_rule: Vec<u32>,
    unscanned: u32,
    /// How many bytes were looked at, each time counted, and how many may be before what is looked at is given up.
    looked: u64,
    most: Option<u64>,
}

impl Findings {
    /// How often each rule that found anything did.
    pub fn iter<'a>(&'a self, rules: &'a Rules) -> impl Iterator<Item = (&'a str, u32)> {
        rules.all.iter().zip(&self.by_rule).map(|(rule, count)| (&*rule.name, *count)).filter(|(_, count)| *count > 0)
    }

    /// How many there are.
    pub fn total(&self) -> u32 {
        self.by_rule.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether there is anything to tell.
    pub(crate) fn any(&self) -> bool {
        self.unscanned > 0 || self.by_rule.iter().any(|count| *count > 0)
    }

    /// Forgets them, to be used again.
    pub fn clear(&mut self) {
        self.by_rule.fill(0);
        self.unscanned = 0;
    }

    /// How many parts of values could not be looked at: `[UNSCANNED]` stands for each.
    pub fn unscanned(&self) -> u32 {
        self.unscanned
    }

    /// Begins a value that is taken apart, if it is no part of one. However it is taken apart, no more is looked at than
    /// so often its length: only texts made to be slow come near.
    pub(crate) fn begin(&mut self, length: usize) -> bool {
        const TIMES: u64 = 16;
        const LEAST: u64 = 64 << 10;
        let begins = self.most.is_none();
        if begins {
            let length = u64::try_from(length).unwrap_or(u64::MAX);
            self.most = Some(self.looked.saturating_add(length.saturating_mul(TIMES)).saturating_add(LEAST));
        }
        begins
    }

    /// Whether that much was looked at.
    pub(crate) fn is_over(&self) -> bool {
        self.most.is_some_and(|most| self.looked > most)
    }

    /// The value of [`Findings::begin`] has ended; for a whole one that was given up, one is counted.
    pub(crate) fn end(&mut self, unscanned: u32) -> bool {
        let over = self.is_over();
        self.most = None;
        if over {
            self.unscanned = unscanned.saturating_add(1);
        }
        over
    }

    /// Takes over what was looked at for nothing.
    pub(crate) fn looked_as(&mut self, other: &Self) {
        self.looked = other.looked;
    }

    pub(crate) fn add_unscanned(&mut self) {
        self.unscanned = self.unscanned.saturating_add(1);
    }

    fn add(&mut self, rule: usize) {
        if self.by_rule.len() <= rule {
            self.by_rule.resize(rule.saturating_add(1), 0);
        }
        if let Some(count) = self.by_rule.get_mut(rule) {
            *count = count.saturating_add(1);
        }
    }
}

/// What is found and what is done with it, ready for text.
pub struct Rules {
    /// The detectors as in [`detectors::ALL`], then fields, then one's own.
    all: Vec<Compiled>,
    /// The detectors that are on, by anchor, with their [`Find::heads`].
    by_anchor: [Vec<(usize, u64, Find)>; anchors::COUNT],
    /// The anchors of all detectors that are on.
    wanted: u8,
    names: Names,
    own: Vec<Own>,
}

struct Compiled {
    name: Box<str>,
    action: Action,
    normal: Normal,
    on: bool,
}

/// The rule of [`Names`].
const FIELD: usize = detectors::ALL.len();

impl core::fmt::Debug for Rules {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.all.iter().filter(|rule| rule.on).map(|rule| &rule.name)).finish()
    }
}

impl Rules {
    /// Compiles the rules.
    ///
    /// # Errors
    /// A name that is not known or stands twice; an action that lacks what it needs, or whose result would be found again.
    pub fn new(config: &Config) -> Result<Self, Refusal> {
        let key = match (&config.hmac_key, &config.hmac_key_env) {
            (None, None) => None,
            (Some(key), None) => Some(("hmac_key", key.0.clone())),
            (None, Some(name)) => {
                let missing = "is no variable of the environment, set it; in a proxy, in its VM's configuration";
                let key = kit::environment(name).ok_or_else(|| Refusal::at("hmac_key_env", missing))?;
                Some(("hmac_key_env", key))
            }
            (Some(_), Some(_)) => return Err(Refusal::at("hmac_key_env", "is given beside `hmac_key`, take one out")),
        };
        let short = |path| Refusal::at(path, "is too short, give 32 bytes at least");
        let key = match key {
            None => None,
            Some((path, key)) => Some(action::key(key.as_bytes()).ok_or_else(|| short(path))?),
        };
        let compile = |how: &How, ip: bool| Action::new(how, ip, key.as_deref());
        let usual = compile(&config.action, false).map_err(|refusal| refusal.within("action"))?;
        let mut all: Vec<Compiled> = detectors::ALL
            .iter()
            .map(|detector| Compiled {
                name: detector.name.into(),
                action: usual.clone(),
                normal: detector.normal,
                on: config.packs.as_ref().map_or(detector.default, |packs| packs.contains(&detector.pack)),
            })
            .collect();
        for (index, choice) in config.detectors.iter().enumerate() {
            let path = |refusal: Refusal| refusal.within(&format!("detectors[{index}]"));
            let Some(rule) = all.iter_mut().find(|rule| *rule.name == *choice.name) else {
                let known = detectors::ALL.iter().map(|detector| detector.name).collect::<Vec<_>>().join(", ");
                return Err(path(Refusal::at("name", &format!("is no detector, give one of {known}"))));
            };
            rule.on = choice.on;
            if let Some(how) = &choice.action {
                rule.action = compile(how, choice.name == "ip").map_err(|refusal| path(refusal.within("action")))?;
            }
        }
        let action = match &config.fields.action {
            Some(how) => compile(how, false).map_err(|refusal| refusal.within("action").within("fields"))?,
            None => usual.clone(),
        };
        all.push(Compiled { name: "field".into(), action, normal: Normal::Exact, on: true });

        let mut own = Vec::new();
        for (index, config) in config.own.iter().enumerate() {
            let path = |refusal: Refusal| refusal.within(&format!("own[{index}]"));
            if all.iter().any(|rule| *rule.name == *config.name) {
                return Err(path(Refusal::at("name", "is taken, give another")));
            }
            own.push(Own::new(config).map_err(path)?);
            let action = match &config.action {
                Some(how) => compile(how, false).map_err(|refusal| path(refusal.within("action")))?,
                None => usual.clone(),
            };
            all.push(Compiled { name: (*config.name).into(), action, normal: Normal::Exact, on: true });
        }

        let mut by_anchor: [Vec<(usize, u64, Find)>; anchors::COUNT] = Default::default();
        let mut wanted = 0;
        for (index, (detector, _)) in detectors::ALL.iter().zip(&all).enumerate().filter(|(_, (_, rule))| rule.on) {
            wanted |= detector.anchors;
            for (bit, list) in by_anchor.iter_mut().enumerate() {
                if detector.anchors >> bit & 1 == 1 {
                    list.push((index, detector.find.heads(), detector.find));
                }
            }
        }
        let names = Names::new(config.fields.usual, &config.fields.names, &config.fields.except);
        let rules = Self { all, by_anchor, wanted, names, own };
        rules.refuse_what_is_found_again()?;
        Ok(rules)
    }

    /// A text that replaces a value must not be one.
    fn refuse_what_is_found_again(&self) -> Result<(), Refusal> {
        let mut findings = Findings::default();
        for rule in &self.all {
            let Action::Replace(text) = &rule.action else { continue };
            for before in ["", "Bearer ", "Basic "] {
                self.scrub("", &[before.as_bytes(), text].concat(), &mut findings);
            }
            // Of such a text a part would stay each time that the field is covered.
            if findings.total() > 0 || fields::scheme(text) > 0 {
                return Err(Refusal::at("with", "is itself what a rule finds, give a text such as <removed>"));
            }
        }
        Ok(())
    }

    /// What a text has somewhere if anything is to be found in it; more than that if there are rules of one's own.
    pub(crate) fn anchors(&self) -> (u8, bool) {
        (self.wanted, !self.own.is_empty())
    }

    /// Whether a text may have anything to find in it, whatever its name is.
    pub(crate) fn may_hold(&self, text: &[u8]) -> bool {
        if self.own.iter().any(|own| own.next(text, 0, text.len()) < text.len()) {
            return true;
        }
        let (mut anchors, mut from) = (Anchors::new(text), 0);
        while let Some((at, kinds)) = anchors.next(from, text.len(), self.wanted) {
            match digits::sparse(text, at, false) {
                Some(end) if kinds == anchors::DIGITS && !self.has_addresses(text, at, end) => from = end,
                _ => return true,
            }
        }
        false
    }

    /// Whether digits and signs have the anchors of IP addresses, the only ones there but for [`anchors::DIGITS`].
    fn has_addresses(&self, text: &[u8], start: usize, end: usize) -> bool {
        let wanted = self.wanted & anchors::ADDRESS;
        wanted != 0 && anchors::next(text, start, end, wanted).is_some()
    }

    /// Whether a name may be a field's; no more than a quick guess, which is never wrong where it says no. It is no
    /// part of a longer name.
    pub(crate) fn may_be_field(&self, name: &[u8]) -> bool {
        self.names.may_have(name)
    }

    /// The names of all rules, by [`Rule`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|rule| &*rule.name)
    }

    /// The rule that covers a field of this name whatever its value is; the case does not matter, `-` and `_` neither.
    pub fn field(&self, name: &str) -> Option<Rule> {
        let name = name.as_bytes();
        (self.names.may_have(name) && self.names.has(name)).then_some(Rule(FIELD))
    }

    /// Covers a whole value. Of credentials the scheme stays, and of a value that was covered before all.
    pub fn cover(&self, rule: Rule, value: &[u8], findings: &mut Findings) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(compiled) = self.all.get(rule.0) else { return out };
        let (scheme, secret) = value.split_at_checked(fields::scheme(value)).unwrap_or((&[], value));
        out.extend_from_slice(scheme);
        if secret.is_empty() {
            return out;
        }
        if compiled.is_cover(secret) {
            out.extend_from_slice(secret);
            return out;
        }
        if !matches!(compiled.action, Action::Drop) {
            let mut cover = Cover::new(&compiled.action, compiled.normal);
            cover.push(secret);
            cover.finish(&compiled.action, &compiled.name, &mut out);
        }
        // What was covered before is not found again.
        if out != value {
            findings.add(rule.0);
        }
        out
    }

    /// The clean text of a value. Its name, empty where it has none, may say that the value is covered whole, and it is
    /// context for what is in the value.
    pub fn scrub<'t>(&self, name: &str, value: &'t [u8], findings: &mut Findings) -> Cow<'t, [u8]> {
        // What was covered before stays as it is: who cleans until nothing changes would not come to an end.
        let new = |clean: Vec<u8>| if clean == value { Cow::Borrowed(value) } else { Cow::Owned(clean) };
        if let Some(rule) = self.field(name) {
            return new(self.cover(rule, value, findings));
        }
        // Each look costs something, however short the text is.
        findings.looked = findings.looked.saturating_add(u64::try_from(value.len()).unwrap_or(0)).saturating_add(16);
        let mut state = State::new(name);
        let mut out = Vec::new();
        let settled = self.run(&mut state, value, true, &mut out, findings);
        if settled == 0 {
            return Cow::Borrowed(value);
        }
        out.extend_from_slice(value.get(settled..).unwrap_or(&[]));
        new(out)
    }

    /// Cleans text, all of which has come if it is the `end`. Writes what is settled, up to the end of the last value
    /// that was found, and says how much of the text that was.
    fn run(&self, state: &mut State, text: &[u8], end: bool, out: &mut Vec<u8>, findings: &mut Findings) -> usize {
        let mut settled = 0_usize;
        loop {
            let rest = text.get(settled..).unwrap_or(&[]);
            if let Some(inside) = &mut state.inside {
                let (taken, ended) = inside.push(rest);
                settled = settled.saturating_add(taken);
                state.moved(taken);
                if !(ended || end) {
                    return settled;
                }
                if let (Some(inside), written) = (state.inside.take(), out.len())
                    && let Some(rule) = self.all.get(inside.rule)
                {
                    inside.cover.finish(&rule.action, &rule.name, out);
                    state.before.note(out.get(written..).unwrap_or(&[]));
                }
                continue;
            }
            let limit = if end { rest.len() } else { rest.len().saturating_sub(AHEAD) };
            let Some((index, found)) = self.next(state, rest, limit) else { return settled };
            let Some(rule) = self.all.get(index) else { return settled };
            let (start, length) = (found.start.saturating_sub(BEHIND), found.end.saturating_sub(found.start));
            let (clean, value) = rest.split_at_checked(start).unwrap_or((rest, &[]));
            if out.capacity() == 0 {
                out.reserve(text.len().saturating_add(16).min(Stream::PIECE));
            }
            out.extend_from_slice(clean);
            state.before.note(clean);
            let value = value.get(..length).unwrap_or(value);
            if let Action::Network = rule.action {
                let written = out.len();
                detectors::ip_network(value, out);
                let network = out.get(written..).unwrap_or(&[]);
                state.before.note(network);
                // A network is an address too, and what was covered before is not found again.
                if network != value {
                    findings.add(index);
                }
                settled = settled.saturating_add(start).saturating_add(length);
                state.moved(start.saturating_add(length));
                continue;
            }
            findings.add(index);
            let mut cover = Cover::new(&rule.action, rule.normal);
            cover.push(value);
            if let Tail::None = found.tail {
                let written = out.len();
                cover.finish(&rule.action, &rule.name, out);
                state.before.note(out.get(written..).unwrap_or(&[]));
                settled = settled.saturating_add(start).saturating_add(length);
                state.moved(start.saturating_add(length));
                continue;
            }
            state.inside = Some(Inside { rule: index, tail: found.tail, cover });
            settled = settled.saturating_add(start).saturating_add(length);
            state.moved(start.saturating_add(length));
        }
    }

    /// The next value that begins, or whose anchor is, before the limit.
    fn next(&self, state: &mut State, text: &[u8], limit: usize) -> Option<(usize, Found)> {
        if self.own.is_empty() {
            return self.detect(state, text, limit);
        }
        loop {
            // Rules of one's own first: what they find begins where it is found.
            let start = state.from;
            state.own.resize(self.own.len(), 0);
            for (own, next) in self.own.iter().zip(&mut state.own) {
                if *next < start {
                    *next = own.next(text, start, limit);
                }
            }
            let first = state.own.iter().copied().min().unwrap_or(limit);
            let upto = first.saturating_add(1).min(limit);
            let view = View::new(&state.before, text, first);
            let mut best: Option<(usize, Found)> = None;
            for (rule, (own, _)) in self.own.iter().zip(&state.own).enumerate().filter(|(_, (_, next))| **next == first)
            {
                if first < limit
                    && let Some(found) = own.find(&view)
                    && best.is_none_or(|(_, best)| found.before(&best))
                {
                    best = Some((FIELD.saturating_add(1).saturating_add(rule), found));
                }
            }
            let best = best.map(|own| self.with_address(&view, own));
            // What has its anchor before, or at the same place.
            match (self.detect(state, text, upto), best) {
                (Some(other), Some(own)) => return Some(if own.1.before(&other.1) { own } else { other }),
                (Some(other), None) => return Some(other),
                (None, Some(own)) => return Some(own),
                (None, None) if upto >= limit => return None,
                (None, None) => {}
            }
        }
    }

    /// The address that a value is a part of, else the value. Only an address begins before an anchor that may be a
    /// part of it.
    fn with_address(&self, view: &View<'_>, value: (usize, Found)) -> (usize, Found) {
        let Some((rule, ..)) = self.by_anchor.get(1).and_then(|list| list.first()) else { return value };
        let known = (value.0 == *rule).then(|| view.anchor());
        match detectors::email_covering(view, value.1.start, known) {
            Some(address) if address.before(&value.1) => (*rule, address),
            _ => value,
        }
    }

    /// The next value of a detector, whose anchor is before the limit.
    fn detect(&self, state: &mut State, text: &[u8], limit: usize) -> Option<(usize, Found)> {
        let mut anchors = Anchors::new(text);
        loop {
            let (mut wanted, mut until) = (self.wanted, limit);
            if state.skip_all > state.from {
                for (bit, skip) in state.skip.iter().enumerate().filter(|(_, skip)| **skip > state.from) {
                    wanted &= !(1 << bit);
                    until = until.min(*skip);
                }
            }
            let Some((at, kinds)) = anchors.next(state.from, until, wanted) else {
                state.from = state.from.max(until);
                if until >= limit {
                    return None;
                }
                continue;
            };
            state.from = at.saturating_add(1);
            if kinds == anchors::DIGITS
                && let Some(end) = digits::sparse(text, at, state.before.joins())
            {
                if !self.has_addresses(text, at, end) {
                    state.from = state.from.max(end);
                } else if let Some(skip) = state.skip.first_mut() {
                    *skip = end;
                    state.skip_all = state.skip_all.max(end);
                }
                continue;
            }
            let view = View::new(&state.before, text, at);
            let head = detectors::head(text.get(at).copied().unwrap_or(0));
            let mut best: Option<(usize, Found)> = None;
            let mut kinds = kinds;
            while let Ok(bit) = usize::try_from(kinds.trailing_zeros())
                && let (Some(skip), Some(list)) = (state.skip.get_mut(bit), self.by_anchor.get(bit))
            {
                kinds &= !(1 << bit);
                let found = if 1 << bit == anchors::DIGITS {
                    let finds = list.iter().map(|(rule, _, find)| (*rule, find));
                    digits::find(&view, skip.saturating_add(BEHIND), finds)
                        .map_err(|until| *skip = until.saturating_sub(BEHIND))
                        .ok()
                } else {
                    let mut here = list.iter().filter(|(_, heads, _)| heads & head != 0);
                    here.find_map(|(rule, _, find)| match find.at_anchor(&view) {
                        Look::Found(found) => Some((*rule, found)),
                        Look::Until(until) => {
                            *skip = until.saturating_sub(BEHIND);
                            None
                        }
                        Look::Nothing => None,
                    })
                };
                state.skip_all = state.skip_all.max(*skip);
                best = match (best, found) {
                    (Some(best), Some(found)) if !found.1.before(&best.1) => Some(best),
                    (best, found) => found.or(best),
                };
            }
            let Some(best) = best else { continue };
            return Some(self.with_address(&view, best));
        }
    }

    /// Where the values are that are found in a text of this name, of those whose anchor is before a limit.
    pub(crate) fn values<'t>(&'t self, name: &str, text: &'t [u8], limit: usize) -> Values<'t> {
        Values { rules: self, state: State::new(name), text, at: 0, limit }
    }

    /// A scrubber for text that comes in parts. The name is as in [`Rules::scrub`], but for covering it whole.
    pub fn stream(&self, name: &str) -> Stream {
        Stream { state: State::new(name), held: Vec::new() }
    }
}

impl Compiled {
    /// Whether a value is what this rule itself writes, and so would not be hashed again.
    fn is_cover(&self, value: &[u8]) -> bool {
        let Action::Hmac { digits, .. } = self.action else { return false };
        let hex = value
            .strip_prefix(b"[")
            .and_then(|rest| rest.strip_prefix(self.name.as_bytes()))
            .and_then(|rest| rest.strip_prefix(b"_"))
            .and_then(|rest| rest.strip_suffix(b"]"));
        hex.is_some_and(|hex| hex.len() == digits && hex.iter().all(u8::is_ascii_hexdigit))
    }
}

/// How far a text was read.
struct State {
    before: Before,
    /// Where the next anchor may be, from the end of what is settled.
    from: usize,
    /// By anchor: where the next one is worth a look.
    skip: [usize; anchors::COUNT],
    /// The furthest of these.
    skip_all: usize,
    /// By rule of one's own: where it may match next; it does not match before.
    own: Vec<usize>,
    inside: Option<Inside>,
}

/// A value whose end has not come.
struct Inside {
    rule: usize,
    tail: Tail,
    cover: Cover,
}

impl Inside {
    /// Takes what belongs to the value, and says how much that was and whether the value ended.
    fn push(&mut self, text: &[u8]) -> (usize, bool) {
        let (taken, ended) = self.tail.of(text);
        self.cover.push(text.get(..taken).unwrap_or(text));
        (taken, ended)
    }
}

impl State {
    fn new(name: &str) -> Self {
        Self {
            before: Before::new(name.as_bytes()),
            from: 0,
            skip: [0; anchors::COUNT],
            skip_all: 0,
            own: Vec::new(),
            inside: None,
        }
    }

    /// So much text more is settled.
    // After each value that was found: not in each place.
    #[inline(never)]
    fn moved(&mut self, by: usize) {
        self.from = self.from.saturating_sub(by);
        self.skip_all = self.skip_all.saturating_sub(by);
        self.own.iter_mut().for_each(|next| *next = next.saturating_sub(by));
        self.skip.iter_mut().for_each(|skip| *skip = skip.saturating_sub(by));
    }
}

/// Where values are in a text.
pub(crate) struct Values<'t> {
    rules: &'t Rules,
    state: State,
    text: &'t [u8],
    at: usize,
    limit: usize,
}

impl Iterator for Values<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let rest = self.text.get(self.at..)?;
        let limit = self.limit.min(self.text.len()).saturating_sub(self.at);
        let (_, found) = self.rules.next(&mut self.state, rest, limit)?;
        let (start, end) = (found.start.saturating_sub(BEHIND), found.end.saturating_sub(BEHIND));
        let mut tail = found.tail;
        let end = end.saturating_add(tail.of(rest.get(end..).unwrap_or(&[])).0);
        self.state.before.note(rest.get(..end).unwrap_or(rest));
        self.state.moved(end);
        let from = self.at;
        self.at = from.saturating_add(end);
        Some(from.saturating_add(start)..self.at)
    }
}

/// Cleans text that comes in parts of any size; what comes out does not depend on their borders.
///
/// It holds back what is not decided, [`Stream::MOST`] bytes at most. Longer values are covered as they pass.
pub struct Stream {
    state: State,
    held: Vec<u8>,
}

impl core::fmt::Debug for Stream {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Stream").field("held", &self.held.len()).finish_non_exhaustive()
    }
}

impl Stream {
    /// Text is taken in such pieces: large ones cost no more memory, small ones are not looked at again and again.
    const PIECE: usize = 8 * AHEAD;

    /// The most that is held back.
    pub const MOST: usize = 2 * Self::PIECE;

    /// Takes the next part, and writes what is clean of all so far.
    pub fn push(&mut self, rules: &Rules, part: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        for piece in part.chunks(Self::PIECE) {
            self.held.extend_from_slice(piece);
            if self.held.len() >= Self::PIECE {
                let settled = rules.run(&mut self.state, &self.held, false, out, findings);
                // What a later match may still begin in stays.
                let keep = if self.state.inside.is_some() { 0 } else { self.state.from.saturating_sub(BEHIND) };
                let clean = self.held.get(settled..).and_then(|rest| rest.get(..keep)).unwrap_or(&[]);
                out.extend_from_slice(clean);
                self.state.before.note(clean);
                self.state.moved(clean.len());
                let done = settled.saturating_add(clean.len());
                self.held.drain(..done.min(self.held.len()));
            }
        }
    }

    /// What of a value goes on behind all that came; none of it is written after this.
    pub(crate) fn goes_on(mut self, rules: &Rules) -> Option<Tail> {
        // Where no value ends; what came is decided with so much behind it.
        self.push(rules, &[b'\n'; Self::PIECE], &mut Vec::new(), &mut Findings::default());
        self.state.inside.map(|inside| inside.tail)
    }

    /// Writes the rest: no more parts come.
    pub fn finish(mut self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) {
        let settled = rules.run(&mut self.state, &self.held, true, out, findings);
        out.extend_from_slice(self.held.get(settled..).unwrap_or(&[]));
    }
}
