//! Credentials after their scheme, as `Authorization` has them: `Bearer` with a token68 (RFC 6750), `Basic` with the
//! base64 of `user:password` (RFC 7617). The scheme stays.

use super::{Found, Look, Tail};
use crate::view::View;

/// Words follow "bearer" and "basic" in plain English; a token is longer, or has other signs in it.
const BEARER: usize = 16;

pub(super) fn find(view: &View<'_>) -> Look {
    let at = view.anchor();
    if view.word_before(at) {
        return Look::Nothing;
    }
    let scheme = view.skip(at, |byte| byte.is_ascii_alphabetic());
    let bearer = match view.slice(at, scheme) {
        name if name.eq_ignore_ascii_case(b"bearer") => true,
        name if name.eq_ignore_ascii_case(b"basic") => false,
        _ => return Look::Nothing,
    };
    // As a header has it, and as a URL may. Just one: with a value dropped, there are two before what follows.
    let start = match view.at(scheme) {
        b' ' | b'\t' | b'+' => scheme.saturating_add(1),
        _ if view.starts(scheme, b"%20") => scheme.saturating_add(3),
        _ => return Look::Nothing,
    };
    let end = view.skip(start, is_token);
    let token = view.slice(start, end);
    // What was masked in part before.
    if view.at(end) == b'*' || !(if bearer { is_bearer(token) } else { is_basic(token) }) {
        return Look::Nothing;
    }
    Look::Found(Found { start, end, tail: Tail::Token })
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
}

fn is_bearer(token: &[u8]) -> bool {
    let digits = token.iter().filter(|byte| byte.is_ascii_digit()).count();
    token.len() >= BEARER || (token.len() >= 8 && digits >= 2)
}

/// Base64 whose bytes have a colon: one of four digits in a row is then one of few. Just this is asked: the length is a
/// multiple of four where it ends with `=`, and a capital letter or a digit is in it.
fn is_basic(token: &[u8]) -> bool {
    let padded = !token.ends_with(b"=") || token.len().is_multiple_of(4);
    padded && token.len() >= 4 && has_colon(token)
}

fn has_colon(token: &[u8]) -> bool {
    let (mut bits, mut count) = (0_u32, 0_u32);
    for digit in token {
        let value = match digit {
            b'A'..=b'Z' => digit.wrapping_sub(b'A'),
            b'a'..=b'z' => digit.wrapping_sub(b'a').wrapping_add(26),
            b'0'..=b'9' => digit.wrapping_sub(b'0').wrapping_add(52),
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return false,
        };
        bits = bits << 6 | u32::from(value);
        count = count.wrapping_add(6);
        if count >= 8 {
            count = count.wrapping_sub(8);
            let [.., byte] = (bits >> count).to_be_bytes();
            if byte == b':' {
                return true;
            }
            if byte < b' ' {
                return false;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn credentials() {
        found(
            "credentials",
            &[
                ("Bearer mF_9.B5f-4.1JqM", "Bearer [credentials]"),
                ("authorization: bearer abcdefghijklmnopqrst\r\n", "authorization: bearer [credentials]\r\n"),
                ("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Basic [credentials]"),
                ("BASIC YTpi", "BASIC [credentials]"),
                ("auth=Bearer+a1b2c3d4e5f6&x", "auth=Bearer+[credentials]&x"),
                ("auth=Bearer%20a1b2c3d4e5f6&x", "auth=Bearer%20[credentials]&x"),
                (&format!("Bearer {}", "A1b.".repeat(5000)), "Bearer [credentials]"),
            ],
        );
    }

    #[test]
    fn no_credentials() {
        untouched(
            "credentials",
            &[
                "Bearer",
                "Bearer token",
                "bearer of news",
                "Basic training",
                "basic information",
                "Basic YWJj",
                "forebearer a1b2c3d4e5f6",
                "Bearer [credentials]",
                "Bearer ab**********yz",
                "based a1b2c3d4e5",
            ],
        );
    }
}
