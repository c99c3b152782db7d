//! Fields that are covered whatever their value is.

use kit::prelude::*;

/// Names whose values are secrets by what they are for. `authorization` keeps its scheme.
const USUAL: [&str; 39] = [
    "access_token",
    "api_key",
    "apikey",
    "auth_token",
    "authorization",
    "aws_secret_access_key",
    "client_secret",
    "code_verifier",
    "cookie",
    "csrf_token",
    "cvc",
    "cvv",
    "id_token",
    "otp",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "pin",
    "private_key",
    "proxy_authorization",
    "pwd",
    "refresh_token",
    "secret",
    "secret_key",
    "security_code",
    "session_id",
    "session_token",
    "sessionid",
    "set_cookie",
    "token",
    "x_amz_security_token",
    "x_api_key",
    "x_auth_token",
    "x_access_token",
    "x_amz_signature",
    "x_csrf_token",
    "x_goog_signature",
    "x_xsrf_token",
];

/// The names, as [`plain`] has them, in order.
pub(crate) struct Names {
    all: Vec<Box<[u8]>>,
    /// By the low bits of the first sign of a name, which of the last signs there are: no matter which case.
    ends: [u32; 32],
    /// By the low bits of the first and the last sign, the lengths, up to 63.
    lengths: [u64; 64],
}

impl Names {
    pub(crate) fn new(usual: bool, more: &[String], except: &[String]) -> Self {
        let usual = if usual { USUAL.as_slice() } else { &[] };
        let mut names: Vec<_> = usual.iter().copied().chain(more.iter().map(String::as_str)).map(plain).collect();
        let except: Vec<_> = except.iter().map(|name| plain(name)).collect();
        names.retain(|name| !except.contains(name));
        names.sort_unstable();
        names.dedup();
        let (mut ends, mut lengths) = ([0; 32], [0; 64]);
        for name in &names {
            let Some((first, last)) = name.first().zip(name.last()) else { continue };
            if let Some(ends) = ends.get_mut(usize::from(first & 31)) {
                *ends |= 1 << (last & 31);
            }
            if let Some(lengths) = lengths.get_mut(mixed(*first, *last)) {
                *lengths |= length(name.len());
            }
        }
        Self { all: names, ends, lengths }
    }

    /// Whether a name may be one of them: quickly said, and never wrong where it says no.
    #[inline]
    pub(crate) fn may_have(&self, name: &[u8]) -> bool {
        let (Some(first), Some(last)) = (name.first(), name.last()) else { return true };
        let place = usize::from(first & 31);
        let ends = self.ends.get(place).copied().unwrap_or(u32::MAX);
        // Only then is it worth to see what counts of it.
        if ends >> (last & 31) & 1 == 0 && !matches!(first, b'-' | b'_') && !matches!(last, b'-' | b'_') {
            return false;
        }
        let counted = name.iter().filter_map(letter);
        let Some((first, last)) = counted.clone().next().zip(counted.clone().next_back()) else { return true };
        let place = mixed(first, last);
        self.lengths.get(place).copied().unwrap_or(u64::MAX) & length(counted.count()) != 0
    }

    /// In any case, `-` and `_` alike.
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.all.binary_search_by(|known| known.iter().copied().cmp(name.iter().filter_map(letter))).is_ok()
    }
}

fn mixed(first: u8, last: u8) -> usize {
    usize::from((first & 31) ^ (last << 1) & 63)
}

/// Of a length its bit; long ones have one together.
fn length(length: usize) -> u64 {
    1 << length.min(63)
}

/// `userPassword`, `user-password` and `user_password` are one name.
fn plain(name: &str) -> Box<[u8]> {
    name.as_bytes().iter().filter_map(letter).collect()
}

fn letter(byte: &u8) -> Option<u8> {
    (!matches!(byte, b'-' | b'_')).then(|| byte.to_ascii_lowercase())
}

/// How much of a field's value is its scheme, which stays: `Bearer `, `Basic `.
pub(crate) fn scheme(value: &[u8]) -> usize {
    const SCHEMES: [&[u8]; 9] =
        [b"basic", b"bearer", b"digest", b"dpop", b"hoba", b"negotiate", b"aws4-hmac-sha256", b"token", b"apikey"];
    let Some(space) = value.iter().position(|byte| *byte == b' ') else { return 0 };
    let scheme = value.get(..space).unwrap_or(&[]);
    if SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme)) { space.saturating_add(1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_quick_look_misses_no_name() {
        let long = "a_long_name_".repeat(20);
        let names = Names::new(true, &[long.clone(), "-Zx_".to_string(), "é".to_string()], &[]);
        for name in USUAL.iter().copied().chain([&*long, "zx", "É", "é"]) {
            for name in [name.to_string(), name.to_uppercase(), format!("_{name}-"), name.replace('_', "-")] {
                assert!(!names.has(name.as_bytes()) || names.may_have(name.as_bytes()), "{name}");
            }
        }
        for name in ["price", "name", "id", "created", "description", "tags", "uuid", "active"] {
            assert!(!names.may_have(name.as_bytes()), "{name}");
        }
    }
}
