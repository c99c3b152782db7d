//! Regular expressions of one's own, of bounded size, on bytes, in bounded time.
//!
//! A pattern becomes a position automaton: one state for each sign of the pattern, all of them in four words. A step
//! takes a few operations for each state that is on, nothing is tried twice, and a match is the longest one of at most
//! [`MOST`] bytes: what a stream can hold back.
//!
//! Why none of the crates: in a module for wasm32-wasip1, `regex-lite` adds 76 KB and takes text in UTF-8 only,
//! `regex-automata` with its PikeVM 264 KB, which is more than a whole module may weigh. This one adds 15 KB.

use crate::view::{View, is_word};
use kit::Refusal;
use kit::prelude::*;

/// The longest match.
pub(crate) const MOST: usize = 256;

/// The most signs of a pattern, repetitions written out.
const SIGNS: usize = 256;

/// The most brackets in brackets.
const DEPTH: u32 = 16;

/// The most repetitions of a part.
const REPEATS: usize = 256;

/// Signs of a pattern, or bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Set([u64; 4]);

impl Set {
    fn one(index: usize) -> Self {
        let mut set = Self::default();
        if let Some(word) = set.0.get_mut(index / 64) {
            *word = 1 << (index % 64);
        }
        set
    }

    fn of(bytes: impl Iterator<Item = u8>) -> Self {
        bytes.fold(Self::default(), |set, byte| set.or(Self::one(usize::from(byte))))
    }

    fn or(self, other: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        Self([a | e, b | f, c | g, d | h])
    }

    fn and(self, other: Self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        Self([a & e, b & f, c & g, d & h])
    }

    fn not(self) -> Self {
        Self(self.0.map(|word| !word))
    }

    fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn has(self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    fn iter(self) -> impl Iterator<Item = usize> {
        self.0.into_iter().zip([0_usize, 64, 128, 192]).flat_map(|(word, base)| {
            let mut word = word;
            core::iter::from_fn(move || {
                let index = usize::try_from(word.trailing_zeros()).ok().filter(|index| *index < 64)?;
                word &= word.wrapping_sub(1);
                Some(base.saturating_add(index))
            })
        })
    }
}

/// A pattern as it is written.
#[derive(Clone)]
enum Part {
    Sign(Set),
    Row(Vec<Part>),
    Either(Vec<Part>),
    Repeat(Box<Part>, usize, Option<usize>),
}

/// A pattern, ready to match.
pub(crate) struct Pattern {
    /// By byte: the signs that it may be.
    by_byte: Vec<Set>,
    first: Set,
    last: Set,
    follow: Vec<Set>,
    /// `\b` at the ends.
    word: (bool, bool),
}

impl Pattern {
    pub(crate) fn new(text: &str) -> Result<Self, Refusal> {
        let (text, any_case) = text.strip_prefix("(?i)").map_or((text, false), |rest| (rest, true));
        let (text, begins) = text.strip_prefix("\\b").map_or((text, false), |rest| (rest, true));
        let ends = text.ends_with("\\b") && !text.ends_with("\\\\b");
        let text = if ends { text.strip_suffix("\\b").unwrap_or(text) } else { text };
        let mut parser = Parser { rest: text.as_bytes(), any_case };
        let part = parser.either(DEPTH)?;
        if !parser.rest.is_empty() {
            return Err(refusal("has a `)` without its `(`"));
        }
        let mut pattern = Self {
            by_byte: vec![Set::default(); 256],
            first: Set::default(),
            last: Set::default(),
            follow: Vec::new(),
            word: (begins, ends),
        };
        let ends = pattern.add(&part)?;
        if ends.empty {
            return Err(refusal("matches where nothing is, give one that needs a sign at least"));
        }
        (pattern.first, pattern.last) = (ends.first, ends.last);
        Ok(pattern)
    }

    /// The bytes that a match may begin with.
    pub(crate) fn begins(&self, byte: u8) -> bool {
        self.by_byte.get(usize::from(byte)).is_some_and(|signs| !signs.and(self.first).is_empty())
    }

    /// The end of the longest match from here on.
    pub(crate) fn longest(&self, view: &View<'_>, start: usize) -> Option<usize> {
        if self.word.0 && view.word_before(start) {
            return None;
        }
        let (mut on, mut end, mut at) = (self.first, None, start);
        for byte in view.slice(start, view.end().min(start.saturating_add(MOST))) {
            on = self.by_byte.get(usize::from(*byte)).copied().unwrap_or_default().and(on);
            if on.is_empty() {
                break;
            }
            at = at.saturating_add(1);
            let whole = !self.word.1 || !is_word(view.at(at));
            if whole && !on.and(self.last).is_empty() {
                end = Some(at);
            }
            on = on
                .iter()
                .fold(Set::default(), |next, sign| next.or(self.follow.get(sign).copied().unwrap_or_default()));
        }
        end
    }

    fn add(&mut self, part: &Part) -> Result<Ends, Refusal> {
        match part {
            Part::Sign(bytes) => {
                let index = self.follow.len();
                if index >= SIGNS {
                    return Err(refusal("is too large, give one of 256 signs at most, repetitions written out"));
                }
                self.follow.push(Set::default());
                let sign = Set::one(index);
                for (_, signs) in self.by_byte.iter_mut().enumerate().filter(|(byte, _)| bytes.has(*byte)) {
                    *signs = signs.or(sign);
                }
                Ok(Ends { empty: false, first: sign, last: sign })
            }
            Part::Row(parts) => parts.iter().try_fold(Ends::NOTHING, |ends, part| self.join(ends, part)),
            Part::Either(parts) => {
                let mut all: Option<Ends> = None;
                for part in parts {
                    let ends = self.add(part)?;
                    all = Some(all.map_or(ends, |all| all.or(ends)));
                }
                Ok(all.unwrap_or(Ends::NOTHING))
            }
            Part::Repeat(part, least, most) => {
                let mut ends = Ends::NOTHING;
                for _ in 0..*least {
                    ends = self.join(ends, part)?;
                }
                if let Some(most) = most {
                    for _ in *least..*most {
                        ends = self.join(ends, &Part::Either(vec![Part::Row(Vec::new()), (**part).clone()]))?;
                    }
                } else {
                    let again = self.add(part)?;
                    self.link(again.last, again.first);
                    ends = self.after(ends, Ends { empty: true, ..again });
                }
                Ok(ends)
            }
        }
    }

    fn join(&mut self, before: Ends, part: &Part) -> Result<Ends, Refusal> {
        let ends = self.add(part)?;
        Ok(self.after(before, ends))
    }

    fn after(&mut self, before: Ends, next: Ends) -> Ends {
        self.link(before.last, next.first);
        Ends {
            empty: before.empty && next.empty,
            first: if before.empty { before.first.or(next.first) } else { before.first },
            last: if next.empty { next.last.or(before.last) } else { next.last },
        }
    }

    fn link(&mut self, from: Set, to: Set) {
        for sign in from.iter() {
            if let Some(follow) = self.follow.get_mut(sign) {
                *follow = follow.or(to);
            }
        }
    }
}

/// With which signs a part begins and ends, and whether it may be nothing.
#[derive(Clone, Copy)]
struct Ends {
    empty: bool,
    first: Set,
    last: Set,
}

impl Ends {
    const NOTHING: Self = Self { empty: true, first: Set([0; 4]), last: Set([0; 4]) };

    fn or(self, other: Self) -> Self {
        Self { empty: self.empty || other.empty, first: self.first.or(other.first), last: self.last.or(other.last) }
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    any_case: bool,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<u8> {
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    fn take(&mut self, text: &[u8]) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn either(&mut self, depth: u32) -> Result<Part, Refusal> {
        let mut parts = vec![self.row(depth)?];
        while self.take(b"|") {
            parts.push(self.row(depth)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Part::Either(parts) })
    }

    fn row(&mut self, depth: u32) -> Result<Part, Refusal> {
        let mut parts = Vec::new();
        while let Some(byte) = self.rest.first().copied().filter(|byte| !matches!(byte, b'|' | b')')) {
            self.next();
            let part = match byte {
                b'(' => {
                    let depth = depth.checked_sub(1).ok_or_else(|| refusal("has too many brackets in brackets"))?;
                    if !self.take(b"?:") && self.rest.starts_with(b"?") {
                        return Err(refusal("looks around or names groups, which is not there; groups are `(…)`"));
                    }
                    let part = self.either(depth)?;
                    if !self.take(b")") {
                        return Err(refusal("has a `(` without its `)`"));
                    }
                    part
                }
                b'[' => Part::Sign(self.class()?),
                b'.' => Part::Sign(Set::one(usize::from(b'\n')).not()),
                b'\\' => Part::Sign(self.escape()?),
                b'^' | b'$' => {
                    return Err(refusal(
                        "asks for the beginning or the end of a text, which a stream has not; `\\b` is there",
                    ));
                }
                b'*' | b'+' | b'?' | b'{' => {
                    return Err(refusal("repeats nothing; a sign of its own is written `\\*`"));
                }
                byte => Part::Sign(self.cased(Set::one(usize::from(byte)))),
            };
            parts.push(self.repeated(part)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Part::Row(parts) })
    }

    fn repeated(&mut self, part: Part) -> Result<Part, Refusal> {
        let (least, most) = match self.rest.first() {
            Some(b'*') => (0, None),
            Some(b'+') => (1, None),
            Some(b'?') => (0, Some(1)),
            Some(b'{') => {
                self.next();
                let least = self.number()?;
                let most = if self.take(b",") {
                    if self.rest.starts_with(b"}") { None } else { Some(self.number()?) }
                } else {
                    Some(least)
                };
                if !self.rest.starts_with(b"}") || most.is_some_and(|most| most < least) {
                    return Err(refusal("repeats wrongly, give such as {2,5}"));
                }
                (least, most)
            }
            _ => return Ok(part),
        };
        self.next();
        if matches!(self.rest.first(), Some(b'*' | b'+' | b'?' | b'{')) {
            return Err(refusal("repeats a repetition; a match is always the longest"));
        }
        Ok(Part::Repeat(Box::new(part), least, most))
    }

    fn number(&mut self) -> Result<usize, Refusal> {
        let mut number = None;
        while let Some(digit) = self.rest.first().filter(|byte| byte.is_ascii_digit()) {
            let digit = usize::from(digit.wrapping_sub(b'0'));
            number = Some(number.unwrap_or(0_usize).saturating_mul(10).saturating_add(digit));
            self.next();
        }
        number.filter(|number| *number <= REPEATS).ok_or_else(|| refusal("repeats wrongly, give up to 256 times"))
    }

    fn escape(&mut self) -> Result<Set, Refusal> {
        let word = || Set::of((0..=255_u8).filter(|byte| byte.is_ascii_alphanumeric() || *byte == b'_'));
        let space = || Set::of(b" \t\r\n\x0b\x0c".iter().copied());
        Ok(match self.next() {
            Some(b'd') => Set::of(b'0'..=b'9'),
            Some(b'D') => Set::of(b'0'..=b'9').not(),
            Some(b'w') => word(),
            Some(b'W') => word().not(),
            Some(b's') => space(),
            Some(b'S') => space().not(),
            Some(b't') => Set::one(usize::from(b'\t')),
            Some(b'r') => Set::one(usize::from(b'\r')),
            Some(b'n') => Set::one(usize::from(b'\n')),
            Some(byte) if byte.is_ascii_punctuation() || byte == b' ' => Set::one(usize::from(byte)),
            _ => return Err(refusal("has a `\\` before what needs none, or `\\b` not at an end")),
        })
    }

    fn class(&mut self) -> Result<Set, Refusal> {
        let open = || refusal("has a `[` without its `]`");
        let other = self.take(b"^");
        let (mut set, mut any) = (Set::default(), false);
        loop {
            let byte = self.next().ok_or_else(open)?;
            if byte == b']' && any {
                break;
            }
            any = true;
            if !byte.is_ascii() {
                return Err(refusal("has a sign in `[…]` that is not ASCII, write it as `(a|b)`"));
            }
            if byte == b'\\' {
                set = set.or(self.escape()?);
                continue;
            }
            let last = match self.rest {
                [b'-', b']', ..] => byte,
                [b'-', last, ..] if last.is_ascii() && *last >= byte && *last != b'\\' => {
                    let last = *last;
                    self.take(b"-");
                    self.next();
                    last
                }
                [b'-', ..] => return Err(refusal("has a range in `[…]` that ends before it begins")),
                _ => byte,
            };
            set = set.or(Set::of(byte..=last));
        }
        let set = self.cased(set);
        Ok(if other { set.not() } else { set })
    }

    fn cased(&self, set: Set) -> Set {
        if !self.any_case {
            return set;
        }
        let letters = (0..=255_u8).filter(|byte| {
            set.has(usize::from(byte.to_ascii_lowercase())) || set.has(usize::from(byte.to_ascii_uppercase()))
        });
        Set::of(letters)
    }
}

#[cold]
fn refusal(problem: &str) -> Refusal {
    Refusal::at("regex", problem)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::view::{BEHIND, Before};

    fn longest(pattern: &str, text: &str) -> Option<usize> {
        let before = Before::new(b"");
        let view = View::new(&before, text.as_bytes(), 0);
        Pattern::new(pattern).unwrap().longest(&view, BEHIND).map(|end| end - BEHIND)
    }

    #[test]
    fn patterns() {
        for (pattern, text, end) in [
            ("abc", "abcd", Some(3)),
            ("abc", "abd", None),
            ("a|ab|abc", "abcd", Some(3)),
            ("a*b", "aaab", Some(4)),
            ("(ab)+", "ababa", Some(4)),
            ("a?b?c", "bc", Some(2)),
            ("[a-c]{2,3}", "abcabc", Some(3)),
            ("[a-c]{2}", "abcabc", Some(2)),
            ("x[^0-9]{1,}", "xab1", Some(3)),
            ("(?i)emp-\\d{4}", "EMP-1234", Some(8)),
            ("emp-\\d{4}", "EMP-1234", None),
            ("\\bEMP\\d+\\b", "EMP12 ", Some(5)),
            ("\\bEMP\\d+\\b", "EMP12x", None),
            ("(a|b(c|d)){2}e", "abde", Some(4)),
            ("号\\d", "号1", Some(4)),
            (".+", "ab\nc", Some(2)),
            ("[]a-]+", "a]-b", Some(3)),
            ("(a*)*b", "aaaab", Some(5)),
            ("\\.\\*\\\\", ".*\\", Some(3)),
            ("(|a)b", "ab", Some(2)),
        ] {
            assert_eq!(longest(pattern, text), end, "{pattern} on {text}");
        }
        assert_eq!(longest("a+", &"a".repeat(1000)), Some(MOST));
    }

    #[test]
    fn refused() {
        for pattern in [
            "",
            "a*",
            "a|",
            "(a",
            "a)",
            "[a",
            "[b-a]",
            "a{3,2}",
            "a{,2}",
            "a{1000}",
            "(a{100}){100}",
            "a**",
            "*a",
            "^a",
            "a$",
            "\\1",
            "(?=a)",
            "(?P<a>b)",
            "\\",
            "a\\bc",
            &"(".repeat(100),
            "[é]",
        ] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
    }
}
