//! Private keys as text: RFC 7468, PKCS #1 and OpenSSH alike, and OpenPGP's (RFC 9580). A key ends with its `END` line, or
//! where something follows that no such text has: what was cut off in the middle is covered too.

use super::{Found, Look, Step, Tail};
use crate::view::View;

const BEGIN: &[u8] = b"-----BEGIN ";
/// `ENCRYPTED`, `OPENSSH`.
const LABEL: usize = 24;

pub(super) fn find(view: &View<'_>) -> Look {
    let Some(start) = view.anchor().checked_sub(5).filter(|start| *start >= view.first()) else { return Look::Nothing };
    if !view.starts(start, BEGIN) {
        return Look::Nothing;
    }
    let label = start.saturating_add(BEGIN.len());
    let end = view.skip(label, |byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ');
    let text = view.slice(label, end);
    let text = text.strip_suffix(b" BLOCK").unwrap_or(text);
    if text.len() > LABEL || !text.ends_with(b"PRIVATE KEY") || !view.starts(end, b"-----") {
        return Look::Nothing;
    }
    Look::Found(Found { start, end: end.saturating_add(5), tail: Tail::Pem(End::Body) })
}

/// How much of the `END` line was read.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// None.
    Body,
    /// So many dashes before it.
    Dashes(u8),
    /// So many letters of it.
    Letters(u8),
    /// So many dashes after its label.
    Last(u8),
}

impl End {
    pub(super) fn step(&mut self, byte: u8) -> Step {
        let next = match (*self, byte) {
            (Self::Body, b'-') => Self::Dashes(1),
            (Self::Dashes(count), b'-') => Self::Dashes(count.saturating_add(1).min(5)),
            (Self::Dashes(5), b'E') => Self::Letters(1),
            (Self::Letters(1), b'N') => Self::Letters(2),
            (Self::Letters(2), b'D') => Self::Letters(3),
            (Self::Letters(3), b'A'..=b'Z' | b'0'..=b'9' | b' ') => Self::Letters(3),
            (Self::Letters(3), b'-') => Self::Last(1),
            (Self::Last(4), b'-') => return Step::Last,
            (Self::Last(count), b'-') => Self::Last(count.saturating_add(1)),
            // Base64, headers as in RFC 1421, and line ends as JSON and URLs write them.
            (
                _,
                b'A'..=b'Z'
                | b'a'..=b'z'
                | b'0'..=b'9'
                | b'+'
                | b'/'
                | b'='
                | b'\\'
                | b'%'
                | b':'
                | b','
                | b' '
                | b'\t'
                | b'\r'
                | b'\n',
            ) => Self::Body,
            (_, b'-') => Self::Dashes(1),
            _ => return Step::Out,
        };
        *self = next;
        Step::In
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn keys() {
        let key = |label: &str, end: &str| {
            format!("-----BEGIN {label}-----{end}{}{end}-----END {label}-----", "aB3+/".repeat(2000))
        };
        found(
            "private_key",
            &[
                (&key("PRIVATE KEY", "\n"), "[private_key]"),
                (&format!("x {}\ny", key("RSA PRIVATE KEY", "\r\n")), "x [private_key]\ny"),
                (&format!("\"{}\"", key("OPENSSH PRIVATE KEY", "\\n")), "\"[private_key]\""),
                (&key("PGP PRIVATE KEY BLOCK", "\n\n"), "[private_key]"),
                ("-----BEGIN PRIVATE KEY-----\nMIIEvQ\"}", "[private_key]\"}"),
                (
                    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,AB\n\nMII=\n-----END RSA PRIVATE KEY-----.",
                    "[private_key].",
                ),
            ],
        );
    }

    #[test]
    fn no_keys() {
        untouched(
            "private_key",
            &[
                "-----BEGIN CERTIFICATE-----\nMIIEvQ\n-----END CERTIFICATE-----",
                "-----BEGIN PUBLIC KEY-----",
                "BEGIN PRIVATE KEY",
                "-----BEGIN PRIVATE KEY----",
                "-----BEGIN ",
            ],
        );
    }
}
