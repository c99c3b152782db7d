//! Whether something of a value can still be read.

use std::borrow::Cow;

/// A value that must be nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// What must be gone.
    pub text: String,
    /// The rule that has to cover it.
    pub rule: String,
    /// Where it was put, for people.
    pub place: String,
}

/// Whether two thirds of a canary, or all of an address, can be read in an output: as it is, percent-decoded up to
/// three times, with `+` for spaces, and with JSON's escapes taken away as often; of `Basic` also what it says.
pub fn leaks(output: &[u8], canary: &Canary) -> bool {
    Readings::of(output).show(canary)
}

/// All that an output may be read as.
#[derive(Debug)]
pub struct Readings<'o>(Vec<Cow<'o, [u8]>>);

/// How many layers may be taken off.
const LAYERS: usize = 3;

impl<'o> Readings<'o> {
    /// Takes off all layers of encoding in every order.
    pub fn of(output: &'o [u8]) -> Self {
        let mut all = vec![without_hashes(output)];
        let mut layer = 0..1;
        for _ in 0..LAYERS {
            let end = all.len();
            for index in layer {
                let text = all[index].clone();
                for next in
                    [percent(&text), text.contains(&b'+').then(|| plus(&text)), json(&text)].into_iter().flatten()
                {
                    if !all.iter().any(|known| **known == *next) {
                        all.push(Cow::Owned(next));
                    }
                }
            }
            layer = end..all.len();
        }
        Self(all)
    }

    /// Whether a canary can be read.
    pub fn show(&self, canary: &Canary) -> bool {
        // Of `Basic`, what the base64 says is as secret.
        let decoded = (canary.rule == "credentials").then(|| base64(&canary.text)).flatten();
        self.has(canary.text.as_bytes(), canary) || decoded.is_some_and(|decoded| self.has(&decoded, canary))
    }

    fn has(&self, secret: &[u8], canary: &Canary) -> bool {
        // Of an address its network may stay; of others less than half.
        let length = if canary.rule == "ip" { secret.len() } else { (secret.len() * 2 / 3).max(6).min(secret.len()) };
        let step = (secret.len() / 12).max(1);
        let mut starts: Vec<usize> = (0..=secret.len() - length).step_by(step).collect();
        starts.push(secret.len() - length);
        starts.iter().any(|start| {
            let finder = memchr::memmem::Finder::new(&secret[*start..start + length]);
            self.0.iter().any(|text| finder.find(text).is_some())
        })
    }
}

/// Without the digits in `[card_0123456789abcdef]`: so many of them have any few in them by chance.
fn without_hashes(text: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let mut done = 0;
    for end in memchr::memchr_iter(b']', text) {
        let digits = text[done..end].iter().rev().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let start = end - digits;
        if (8..=64).contains(&digits) && start > done && text[start - 1] == b'_' {
            out.extend_from_slice(&text[done..start]);
            done = end;
        }
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.extend_from_slice(&text[done..]);
    Cow::Owned(out)
}

/// What base64 says; none if it is none, or says nothing that has a user and a password.
fn base64(text: &str) -> Option<Vec<u8>> {
    const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut count) = (Vec::new(), 0_usize, 0);
    for sign in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | SIGNS.iter().position(|known| *known == sign)?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (out.contains(&b':') && out.is_ascii()).then_some(out)
}

fn plus(text: &[u8]) -> Vec<u8> {
    text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect()
}

/// None where there is no such escape.
fn percent(text: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut at, mut found) = (Vec::with_capacity(text.len()), 0, false);
    while at < text.len() {
        let code = (text[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                found = true;
                at += 3;
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    found.then_some(out)
}

/// None where there is no escape. A surrogate is left out: no canary has letters beyond the basic plane.
fn json(text: &[u8]) -> Option<Vec<u8>> {
    if !text.contains(&b'\\') {
        return None;
    }
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while at < text.len() {
        if text[at] != b'\\' {
            out.push(text[at]);
            at += 1;
            continue;
        }
        match text.get(at + 1) {
            Some(b'u') => {
                let code = text.get(at + 2..at + 6).and_then(|digits| std::str::from_utf8(digits).ok());
                let letter = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
                let mut buffer = [0; 4];
                out.extend_from_slice(letter.map_or("", |letter| letter.encode_utf8(&mut buffer)).as_bytes());
                at += 6;
            }
            Some(b'n') => {
                out.push(b'\n');
                at += 2;
            }
            Some(b't') => {
                out.push(b'\t');
                at += 2;
            }
            Some(byte) => {
                out.push(*byte);
                at += 2;
            }
            None => at += 1,
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_in_every_encoding() {
        let canary = |text: &str, rule: &str| Canary { text: text.into(), rule: rule.into(), place: String::new() };
        let card = canary("4111 1111 1111 1112", "card");
        for output in [
            "x 4111 1111 1111 1112 y",
            "4111+1111+1111+1112",
            "4111%201111%201111%201112",
            "4111%252B1111%252B1111%252B1112",
            "%2534111%20%31111%201111%201112",
            "{\"a\":\"\\u0034111 1111 1111 1112\"}",
            "{\\\"a\\\":\\\"\\\\u0034111 1111 1111 1112\\\"}",
            "%5Cu0034111+1111+1111+1112",
            // Two thirds of it.
            "************ 111 1111 1112",
        ] {
            assert!(leaks(output.as_bytes(), &card), "{output}");
        }
        for output in ["[card]", "***************1112", "4111 1***********", "4111 1111 2222", "%4", "\\", "\\u12"] {
            assert!(!leaks(output.as_bytes(), &card), "{output}");
        }
        let phone = canary("4534675049", "phone");
        assert!(!leaks(b"[npm_token_6f41f47f4e57453467fbb872c6e5149a84a3d58b72c8130e014831d91649f]", &phone));
        assert!(leaks(b"[npm_token_6f41f47f4e5745] 453467504 [", &phone) && leaks(b"[x_453467504", &phone));
        let basic = canary("c2NobWlkdDEyMzpoMHJzZUJhdHRlcnk=", "credentials");
        assert!(leaks(b"user schmidt123:h0rseBattery", &basic) && leaks(b"c2NobWlkdDEyMzpoMHJzZUJhdHRlcnk", &basic));
        assert!(!leaks(b"Basic [credentials] schmidt", &basic));
        let address = canary("192.168.10.77", "ip");
        assert!(leaks(b"a 192.168.10.77", &address) && !leaks(b"192.168.10.0", &address));
    }
}
