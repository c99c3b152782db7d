//! JSON Web Tokens, RFC 7519: base64url parts with dots between, three in a signed one, five in an encrypted one. The
//! first is a JSON object, so it begins with `eyJ`, and it has the member `alg`.

use super::{Found, Look, Tail};
use crate::view::{View, is_base64url};

/// The shortest header, `{"alg":"x"}`, takes fifteen digits.
const SHORTEST: usize = 15;

pub(super) fn find(view: &View<'_>) -> Look {
    let start = view.anchor();
    if !view.starts(start, b"eyJ") || view.before(start).is_ascii_alphanumeric() {
        return Look::Nothing;
    }
    let dot = view.skip(start, is_base64url);
    // Each header is read once: what begins within it is none.
    let no = Look::Until(dot);
    if dot.saturating_sub(start) < SHORTEST || view.at(dot) != b'.' || !has_alg(view.slice(start, dot)) {
        return no;
    }
    let end = view.skip(dot, |byte| is_base64url(byte) || byte == b'.');
    let parts = view.slice(dot, end).iter().filter(|byte| **byte == b'.').count();
    if (end < view.end() || !view.is_cut()) && parts < 2 {
        return no;
    }
    Look::Found(Found { start, end: dot, tail: Tail::Token })
}

/// Whether base64url text says `"alg"`: its bytes are three to four digits, so the five stand in one of three ways.
fn has_alg(header: &[u8]) -> bool {
    let mut recent = [0_u8; 5];
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in header {
        let value = match digit {
            b'A'..=b'Z' => digit.wrapping_sub(b'A'),
            b'a'..=b'z' => digit.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => digit.wrapping_sub(b'0').wrapping_add(52),
            b'-' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        count = count.wrapping_add(6);
        if count >= 8 {
            count = count.wrapping_sub(8);
            let [_, kept @ ..] = recent;
            let [a, b, c, d] = kept;
            let [.., byte] = (bits >> count).to_be_bytes();
            recent = [a, b, c, d, byte];
            if recent == *b"\"alg\"" {
                return true;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    const HEADER: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9";
    const BODY: &str = "eyJzdWIiOiIxMjM0NTY3ODkwIn0";

    #[test]
    fn tokens() {
        let token = format!("{HEADER}.{BODY}.c2lnbmF0dXJl");
        let late = format!("{}.{BODY}.c2ln", "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0");
        let long = format!("{HEADER}.{}.c2ln", "QUJD".repeat(3000));
        found(
            "jwt",
            &[
                (&token, "[jwt]"),
                (&format!("?t={token}&x=1"), "?t=[jwt]&x=1"),
                (&format!("{{\"t\":\"{late}\"}}"), "{\"t\":\"[jwt]\"}"),
                (&format!("{long} {token}"), "[jwt] [jwt]"),
                (&format!("{HEADER}.{BODY}."), "[jwt]"),
                (&format!("{HEADER}.a.b.c.d"), "[jwt]"),
                (&format!("token-{token}"), "token-[jwt]"),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "jwt",
            &[
                HEADER,
                &format!("{HEADER}.{BODY}"),
                &format!("{BODY}.{BODY}.c2ln"),
                &format!("x{HEADER}.{BODY}.c2ln"),
                "eyJ.eyJ.x",
                &"eyJ".repeat(2000),
                &"eyJ.".repeat(2000),
                &"-eyJ".repeat(2000),
            ],
        );
    }
}
