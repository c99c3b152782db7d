//! What the parts of a request look like: each is taken apart, its texts decoded, cleaned and encoded again.
//!
//! What has nothing to hide stays byte for byte as it came. A text that was changed is encoded again in the plainest
//! way, with the brackets and stars of masks as they are.

mod cookie;
mod encoding;
mod form;
mod header;
mod json;
mod multipart;
mod text;
mod url;

pub use cookie::{cookie, set_cookie};
pub use header::Header;
use text::Lines;
pub use text::text;
pub use url::{path, query, url};

use crate::{Findings, Rule, Rules};
use alloc::borrow::Cow;
use encoding::{SEGMENT, has_percent};
use form::Form;
use json::Json;
use kit::alloc;
use kit::prelude::*;
use multipart::Multipart;

/// Stands for what could not be looked at.
pub(crate) const UNSCANNED: &[u8] = b"[UNSCANNED]";

/// How deep a value in a value is taken apart: JSON in a string, a URL in a query.
const DEPTH: u8 = 3;

/// The longest piece that is held to be decoded.
const LONG: usize = 64 << 10;

/// How often a text is cleaned until nothing is found. More than twice is for texts made to be so.
const ROUNDS: usize = 8;

/// Why a body could not be cleaned. What was written of it must not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is not what its kind says.
    Broken,
    /// It is not UTF-8.
    Encoding,
    /// It nests deeper than anyone needs.
    Deep,
    /// A number or a word in it is too long, or the head of a part.
    Long,
}

/// A body that passes in parts of any size; what comes out does not depend on their borders.
#[derive(Debug)]
pub struct Body(Inner);

#[derive(Debug)]
enum Inner {
    Json(Box<Json>),
    Form(Form),
    Multipart(Box<Multipart>),
    Text(Box<Lines>),
}

impl Body {
    /// JSON: one value, or objects and arrays one after the other.
    ///
    /// Strings of more than 64 KiB are cleaned as they pass and escaped anew; if they are names, or begin like JSON, a
    /// URL, a query or what is percent-encoded, `[UNSCANNED]` stands for them.
    pub fn json() -> Self {
        Self(Inner::Json(Box::new(Json::new(DEPTH, "", true))))
    }

    /// `application/x-www-form-urlencoded`. For a value of more than 64 KiB, or that is not UTF-8 when it is decoded,
    /// stands `[UNSCANNED]`.
    pub fn form() -> Self {
        Self(Inner::Form(Form::default()))
    }

    /// `multipart/form-data` with this boundary. Names are cleaned, and so is text, by its field's name; for a value of
    /// more than 64 KiB, a file, or what is of another type, stands `[UNSCANNED]`.
    pub fn multipart(boundary: &[u8]) -> Self {
        Self(Inner::Multipart(Box::new(Multipart::new(boundary))))
    }

    /// Plain text in UTF-8, as [`text`]. For a line of more than 64 KiB stands `[UNSCANNED]`.
    pub fn text(rules: &Rules) -> Self {
        Self(Inner::Text(Box::new(Lines::new(rules))))
    }

    /// Takes the next part, and writes what is clean of all so far.
    pub fn push(&mut self, rules: &Rules, part: &[u8], out: &mut Vec<u8>, findings: &mut Findings) {
        match &mut self.0 {
            Inner::Json(json) => json.push(rules, part, out, findings),
            Inner::Form(form) => form.push(rules, part, out, findings),
            Inner::Multipart(multipart) => multipart.push(rules, part, out, findings),
            Inner::Text(lines) => lines.push(rules, part, out, findings),
        }
    }

    /// Ends it where it is, though more of it would come: what was written is clean, and what is not decided is dropped.
    ///
    /// # Errors
    /// Why nothing that was written may be used.
    pub fn cut(self) -> Result<(), Why> {
        let failed = match self.0 {
            Inner::Json(json) => json.failed(),
            Inner::Form(form) => form.failed(),
            Inner::Multipart(multipart) => multipart.failed(),
            Inner::Text(lines) => lines.failed(),
        };
        failed.map_or(Ok(()), Err)
    }

    /// Writes the rest: no more parts come.
    ///
    /// # Errors
    /// Why nothing that was written may be used.
    pub fn finish(self, rules: &Rules, out: &mut Vec<u8>, findings: &mut Findings) -> Result<(), Why> {
        match self.0 {
            Inner::Json(json) => json.finish(rules, out, findings),
            Inner::Form(form) => form.finish(rules, out, findings),
            Inner::Multipart(multipart) => multipart.finish(),
            Inner::Text(lines) => lines.finish(rules, out, findings),
        }
    }
}

/// What a byte may mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    None,
    /// A name and its value.
    Joins,
    Dash,
    Opens,
    /// An encoding, a tag, a user; what is not ASCII.
    Other,
}

const SIGNS: [Sign; 256] = signs();

// The compiler runs it: what could panic in it would not build.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
const fn signs() -> [Sign; 256] {
    let mut signs = [Sign::None; 256];
    let mut byte = 0;
    while byte < 256 {
        if byte < 32 || byte > 126 {
            signs[byte] = Sign::Other;
        }
        byte += 1;
    }
    // In ASCII by their numbers: `=`, `:`, `-`, `{`, `[`, `"`; `%`, `+`, `@`, `<` and the backslash.
    let of = [
        (61, Sign::Joins),
        (58, Sign::Joins),
        (45, Sign::Dash),
        (123, Sign::Opens),
        (91, Sign::Opens),
        (34, Sign::Opens),
        (37, Sign::Other),
        (43, Sign::Other),
        (64, Sign::Other),
        (60, Sign::Other),
        (92, Sign::Other),
    ];
    let mut index = 0;
    while index < of.len() {
        signs[of[index].0] = of[index].1;
        index += 1;
    }
    signs
}

/// How names in structured text are looked up, and their values cleaned.
#[derive(Clone, Copy)]
struct Scan<'r> {
    rules: &'r Rules,
    /// How deep values may yet be taken apart.
    depth: u8,
}

impl<'r> Scan<'r> {
    fn new(rules: &'r Rules) -> Self {
        Self { rules, depth: DEPTH }
    }

    /// Whether there surely is nothing to find in a text, whatever it is and whatever its name is: quickly said of what
    /// most requests are made of.
    fn is_plain(self, text: &[u8]) -> bool {
        for (at, byte) in text.iter().enumerate() {
            let before = text.get(..at).unwrap_or(&[]);
            match SIGNS.get(usize::from(*byte)) {
                Some(Sign::None) => {}
                Some(Sign::Joins) if !self.may_name(before) => {}
                // An option: `--token abc`.
                Some(Sign::Dash) if before.last() != Some(&b'-') => {}
                // JSON as a whole.
                Some(Sign::Opens) if at > 0 => {}
                _ => return false,
            }
        }
        !self.rules.may_hold(text)
    }

    /// Whether what stands before a sign may be a field's name; a quick guess. A URL's colon has none before it.
    fn may_name(self, before: &[u8]) -> bool {
        let is_word = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let length = before.iter().rev().take_while(is_word).count();
        let (rest, name) = before.split_at_checked(before.len().saturating_sub(length)).unwrap_or((before, &[]));
        let joint = matches!(rest.last(), Some(b'.' | b'[' | b']' | b' ' | b'\t' | b'"' | b'\'' | b'`' | b'\\'));
        // A number may be one of a list, and what is before it the name: `token/0=`.
        let bare = name.iter().all(u8::is_ascii_digit);
        let joint = joint || (bare && matches!(rest.last(), Some(b',' | b'?' | b'#' | b'&' | b'/' | b'!')));
        (joint && !rest.ends_with(b"; ")) || (!name.is_empty() && self.rules.may_be_field(name))
    }

    /// Whether a field may be assigned in a text, as [`Scan::taken_apart`] finds it; a quick guess.
    fn may_assign(self, text: &[u8]) -> bool {
        let mut from = 0_usize;
        while let Some(at) = memchr::memchr3(b'=', b':', b'<', text.get(from..).unwrap_or(&[])) {
            let at = from.saturating_add(at);
            if text.get(at) == Some(&b'<') {
                // A tag, or an address of a page as in a Link.
                if text.get(at.saturating_add(1)).is_some_and(u8::is_ascii_alphabetic) {
                    return true;
                }
            } else if self.may_name(text.get(..at).unwrap_or(&[])) {
                return true;
            }
            from = at.saturating_add(1);
        }
        // A URL in a sentence.
        find(b'/', text).is_some_and(|at| text.get(at..).is_some_and(|rest| rest.starts_with(b"//"))) && !is_word(text)
    }

    /// The rule for a field: by its name, or the last part of it as in `user[password]`, `password[]`, `token[0]` and
    /// `user.password`.
    fn field(self, name: &[u8]) -> Option<Rule> {
        self.field_of(name, |c| matches!(c, '.' | '[' | ']' | ' '))
    }

    /// The same for a parameter, before which more may stand: `a?token`.
    fn parameter(self, name: &[u8]) -> Option<Rule> {
        self.field_of(name, |c| matches!(c, '.' | '[' | ']' | ' ' | '?' | '#' | '&' | ',' | '/' | '!' | '\0'))
    }

    fn field_of(self, name: &[u8], is_joint: fn(char) -> bool) -> Option<Rule> {
        let name = String::from_utf8_lossy(name);
        self.rules.field(&name).or_else(|| {
            let mut parts = name.contains(is_joint).then(|| name.rsplit(is_joint))?;
            // Of a list, the number is none of its name.
            let is_index = |part: &str| part.len() <= 6 && part.bytes().all(|byte| byte.is_ascii_digit());
            self.rules.field(parts.find(|part| !is_index(part))?)
        })
    }

    /// Whether [`Scan::value`] may find anything, whatever the name is; a quick guess, never wrong where it says no.
    fn may_change(self, text: &[u8]) -> bool {
        self.rules.may_hold(text)
            || json::looks_so(text)
            || (self.depth > 0
                && (find(b'=', text).is_some() || url::looks_so(text) || has_percent(text) || self.may_assign(text)))
    }

    /// Whether a text that is not JSON is taken apart, as [`Scan::value`] does it.
    fn has_parts(self, text: &[u8]) -> bool {
        let has_pairs = find(b'=', text.trim_ascii_end()).is_some() && is_word(text);
        self.depth > 0 && (has_pairs || url::looks_so(text) || has_percent(text) || self.may_assign(text))
    }

    /// Cleans a decoded value until there is nothing to find; none if there was nothing.
    fn value(self, name: &str, text: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
        settle(text, findings, |text, findings| self.value_once(name, text, findings))
    }

    fn value_once(self, name: &str, text: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
        let Some(depth) = self.depth.checked_sub(1) else { return changed(self.rules.scrub(name, text, findings)) };
        // What stands for a value that was found, and is mostly all that was left of it.
        if is_mask(text) && !self.rules.may_hold(text) && self.rules.field(name).is_none() {
            return None;
        }
        let inner = Self { depth, ..self };
        if json::looks_so(text) {
            let mut found = findings.clone();
            if let Some(clean) = json::whole(inner, name, text, &mut found) {
                *findings = found;
                return (clean != text).then_some(clean);
            }
            findings.looked_as(&found);
        }
        if url::looks_so(text) && is_word(text) {
            return changed(inner.url(text, findings));
        }
        // As it is written, just the end of a number may be found: `%2B49%20301234567`.
        let decoded = if has_percent(text) { inner.decoded(name, text, findings) } else { None };
        let text = decoded.as_deref().unwrap_or(text);
        // What is to be found may go over the borders of what else it may be, so the whole first.
        let clean = changed(self.rules.scrub(name, text, findings));
        let rest = clean.as_deref().unwrap_or(text);
        let again = if url::looks_so(rest) {
            changed(inner.url(rest, findings))
        } else if find(b'=', rest).is_some() && is_word(rest) {
            changed(inner.query(rest, findings))
        } else if self.may_assign(rest) {
            inner.taken_apart(rest, findings)
        } else {
            None
        };
        again.or(clean).or(decoded)
    }

    /// Cleans what is percent-encoded in a text.
    fn decoded(self, name: &str, text: &[u8], findings: &mut Findings) -> Option<Vec<u8>> {
        if !is_word(text) || text.starts_with(b"/") {
            changed(self.urls(text, findings))
        } else if text.contains(&b'=') {
            changed(self.query(text, findings))
        } else {
            SEGMENT.clean(Self { depth: 0, ..self }, name, text, findings)
        }
    }
}

/// Whether a text is the name of a rule in brackets. As JSON it says nothing either.
fn is_mask(text: &[u8]) -> bool {
    let name = text.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    name.is_some_and(|name| name.iter().all(|byte| byte.is_ascii_lowercase() || *byte == b'_'))
}

/// Cleans a text until nothing changes any more; none if nothing did.
fn settle(
    text: &[u8],
    findings: &mut Findings,
    once: impl FnMut(&[u8], &mut Findings) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    if findings.is_over() {
        return (text != UNSCANNED).then(|| UNSCANNED.into());
    }
    let unscanned = findings.unscanned();
    let begins = findings.begin(text.len());
    let clean = rounds(text, findings, once);
    if begins && findings.end(unscanned) { Some(UNSCANNED.into()) } else { clean }
}

fn rounds(
    text: &[u8],
    findings: &mut Findings,
    mut once: impl FnMut(&[u8], &mut Findings) -> Option<Vec<u8>>,
) -> Option<Vec<u8>> {
    let mut clean = once(text, findings)?;
    for _ in 0..ROUNDS {
        if findings.is_over() {
            break;
        }
        match once(&clean, findings) {
            Some(again) => clean = again,
            None => return Some(clean),
        }
    }
    findings.add_unscanned();
    Some(UNSCANNED.into())
}

/// Whether a text is one word, as far as URLs go.
fn is_word(text: &[u8]) -> bool {
    !text.iter().any(|byte| matches!(byte, 0..=b' ' | b'"' | b'<'))
}

fn changed(text: Cow<'_, [u8]>) -> Option<Vec<u8>> {
    match text {
        Cow::Borrowed(_) => None,
        Cow::Owned(text) => Some(text),
    }
}

/// A text of which pieces are replaced; nothing is copied before one is.
struct Edit<'t> {
    text: &'t [u8],
    /// How much of it is in `out`.
    done: usize,
    out: Vec<u8>,
}

impl<'t> Edit<'t> {
    fn new(text: &'t [u8]) -> Self {
        Self { text, done: 0, out: Vec::new() }
    }

    /// Puts other bytes where `start` and `end` are. Pieces come in order.
    fn replace(&mut self, start: usize, end: usize, with: &[u8]) {
        self.out.extend_from_slice(self.text.get(self.done..start).unwrap_or(&[]));
        self.out.extend_from_slice(with);
        self.done = end;
    }

    fn finish(mut self) -> Cow<'t, [u8]> {
        if self.done == 0 {
            return Cow::Borrowed(self.text);
        }
        self.out.extend_from_slice(self.text.get(self.done..).unwrap_or(&[]));
        Cow::Owned(self.out)
    }
}

/// The pieces between separators, and where each begins.
fn pieces(text: &[u8], is_separator: impl Fn(u8) -> bool) -> impl Iterator<Item = (usize, &[u8])> {
    let mut start = 0_usize;
    text.split(move |byte| is_separator(*byte)).map(move |piece| {
        let at = start;
        start = start.saturating_add(piece.len()).saturating_add(1);
        (at, piece)
    })
}

/// The first such byte. A function of its own, because each `memchr` in place takes a few hundred bytes of the module.
#[inline(never)]
fn find(byte: u8, text: &[u8]) -> Option<usize> {
    memchr::memchr(byte, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Pack};
    use proptest::prelude::*;

    /// Of what texts in requests are made, and what hides there.
    fn piece() -> impl Strategy<Value = std::string::String> {
        let some = [
            "/",
            "&",
            "=",
            ";",
            "?",
            ":",
            "//",
            "-",
            "--",
            ".",
            ",",
            " ",
            "\"",
            "[",
            "]",
            "{",
            "}",
            "@",
            "%40",
            "+",
            "<",
            "'",
            "token",
            "password",
            "user",
            "q",
            "a",
            "id",
            "phone",
            "tel",
            "card",
            "pin",
            "api-key",
            "Bearer ",
            "https://",
            "12",
            "4155552671",
            "4111",
            "1111",
            "+49",
            "v1.2.3",
            "0.9",
            "2024-01-02",
            "hunter2",
            "ann",
            "example.com",
            "\\",
            "`",
            "ghp_",
            "eyJ",
            "secret",
            "none",
        ];
        prop_oneof![6 => prop::sample::select(some.to_vec()).prop_map(str::to_owned), 1 => "[ -~]{1,4}"]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn in_plain_text_nothing_is_found(
            parts in prop::collection::vec(piece(), 1..10),
            name in prop::sample::select(vec!["", "x-phone", "x-a"]),
        ) {
            let rules = all();
            let scan = Scan::new(&rules);
            let text = parts.concat().into_bytes();
            if scan.is_plain(&text) {
                let mut findings = Findings::default();
                let shown = text.escape_ascii();
                prop_assert_eq!(scan.value_once(name, &text, &mut findings), None, "{}", shown);
                prop_assert!(matches!(scan.segments(&text, &mut findings), Cow::Borrowed(_)), "path {}", shown);
                prop_assert!(matches!(scan.parameters(&text, &mut findings), Cow::Borrowed(_)), "query {}", shown);
                prop_assert!(matches!(scan.url(&text, &mut findings), Cow::Borrowed(_)), "URL {}", shown);
                let clean = super::text(&rules, name, &text, &mut findings);
                prop_assert!(matches!(clean, Cow::Borrowed(_)), "text {}", shown);
            }
        }
    }

    #[test]
    fn what_a_look_at_a_whole_text_must_not_miss() {
        let rules = all();
        // A number of a list is not the name: the name is before it.
        for text in ["token/4111==", "a?token,0=x", "token/1:x"] {
            assert!(!Scan::new(&rules).is_plain(text.as_bytes()), "{text}");
        }
    }

    fn all() -> Rules {
        let packs = Some(vec![Pack::Secrets, Pack::Pii, Pack::PiiCn, Pack::Financial]);
        Rules::new(&Config { packs, ..Config::default() }).unwrap()
    }

    #[test]
    fn most_of_a_request_is_plain() {
        let rules = Rules::new(&Config::default()).unwrap();
        for text in [
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
            "/api/v1/orders/1234",
            "expand=items&page=2&sort=-created",
            "en-GB,en;q=0.9,de;q=0.8",
            "https://shop.example.com/cart",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "W/\"5f3-17a0b2c3d4e\"",
            "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
        ] {
            assert!(Scan::new(&rules).is_plain(text.as_bytes()), "{text}");
        }
    }

    /// Changes in each round, at each level.
    fn hard(rules: &Rules, text: &[u8], levels: u8, calls: &mut u32, findings: &mut Findings) -> Option<Vec<u8>> {
        settle(text, findings, |text, findings| {
            *calls = calls.saturating_add(1);
            rules.scrub("", text, findings);
            match levels {
                0 => Some([text, b"x"].concat()),
                _ => hard(rules, text, levels.saturating_sub(1), calls, findings),
            }
        })
    }

    #[test]
    fn no_value_is_looked_at_too_often() {
        let (rules, mut findings, mut calls) = (Rules::new(&Config::default()).unwrap(), Findings::default(), 0);
        let text = [b'a'; 4096];
        // Ten levels of nine rounds would be thousands of millions.
        assert_eq!(hard(&rules, &text, 10, &mut calls, &mut findings).as_deref(), Some(UNSCANNED));
        // So many short looks as the bytes that are granted.
        assert!(calls < 256 * 4096 / 16, "{calls}");
        assert_eq!(findings.unscanned(), 1);
        // The next has as much again.
        let mut once = 0;
        assert_eq!(hard(&rules, &text, 10, &mut once, &mut findings).as_deref(), Some(UNSCANNED));
        assert_eq!((once, findings.unscanned()), (calls, 2));
    }

    #[test]
    fn what_never_settles_is_not_shown_and_counted() {
        let mut findings = Findings::default();
        let more = |text: &[u8], _: &mut Findings| Some([text, b"x"].concat());
        assert_eq!(settle(b"a", &mut findings, more).as_deref(), Some(UNSCANNED));
        assert_eq!((findings.unscanned(), findings.total()), (1, 0));
    }
}
