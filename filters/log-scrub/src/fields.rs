//! Fields that are covered whatever their value is.

use kit::prelude::*;

/// Names whose values are secrets by what they are for. `authorization` keeps its scheme.
///
/// Some that look like it are left out: `key`, `code`, `state`, `sig`, `signature`, `session` and `auth` are as often what a
/// log is read for, and `page_token` and the like are no secrets.
const USUAL: [&str; 110] = [
    "access_key",
    "access_token",
    "account_key",
    "actor_token",
    "api_key",
    "api_secret",
    "api_token",
    "apikey",
    "app_secret",
    "asp_net_session_id",
    "assertion",
    "auth_token",
    "authentication",
    "authorization",
    "authorization_code",
    "aws_secret_access_key",
    "bearer",
    "bearer_token",
    "client_assertion",
    "client_secret",
    "code_verifier",
    "connect_sid",
    "connection_string",
    "consumer_secret",
    "cookie",
    "credentials",
    "csrf_token",
    "csrfmiddlewaretoken",
    "cvc",
    "cvv",
    "cvv2",
    "database_url",
    "dsn",
    "encryption_key",
    "fcm_token",
    "gitlab_session",
    "gitlab_token",
    "id_token",
    "jsessionid",
    "jwt",
    "mfa_code",
    "mfa_token",
    "new_password_confirmation",
    "one_time_password",
    "otp",
    "pass",
    "passcode",
    "passphrase",
    "passwd",
    "password",
    "password_confirm",
    "password_confirmation",
    "passwords",
    "phpsessid",
    "pin",
    "private_key",
    "private_token",
    "proxy_authorization",
    "push_token",
    "pwd",
    "refresh_token",
    "saml_assertion",
    "saml_response",
    "sas_token",
    "secret",
    "secret_key",
    "secrets",
    "security_code",
    "session_id",
    "session_key",
    "session_token",
    "sessionid",
    "set_cookie",
    "shared_key",
    "signing_key",
    "ssh_key",
    "subject_token",
    "token",
    "totp",
    "x_access_token",
    "x_amz_security_token",
    "x_amz_signature",
    "x_api_key",
    "x_auth_token",
    "x_authorization",
    "x_aws_ec2_metadata_token",
    "x_consul_token",
    "x_csrf_token",
    "x_csrftoken",
    "x_forwarded_access_token",
    "x_functions_key",
    "x_github_token",
    "x_gitlab_token",
    "x_goog_api_key",
    "x_goog_iap_jwt_assertion",
    "x_goog_signature",
    "x_hub_signature",
    "x_hub_signature_256",
    "x_ms_token_aad_access_token",
    "x_nomad_token",
    "x_registry_auth",
    "x_secret",
    "x_session_id",
    "x_session_token",
    "x_slack_signature",
    "x_ssl_client_cert",
    "x_token",
    "x_vault_token",
    "x_xsrf_token",
    "xsrf_token",
];

/// What a name may end with to be such a one: `DB_PASSWORD`, `smtpPassword`, `stripe_secret_key`. A number may follow, as
/// in `new_password2`.
const ENDS: [&[u8]; 11] = [
    b"password",
    b"passwd",
    b"passphrase",
    b"secret",
    b"secretkey",
    b"secretaccesskey",
    b"privatekey",
    b"apikey",
    b"accesstoken",
    b"refreshtoken",
    // Last: what is said of the longer ones is not said of this.
    TOKEN,
];

const TOKEN: &[u8] = b"token";

/// What is before `token` where it says how far a list was read, and the like.
const NO_SECRET: [&[u8]; 18] = [
    b"checkpoint",
    b"continuation",
    b"continue",
    b"cursor",
    b"idempotency",
    b"marker",
    b"next",
    b"offset",
    b"page",
    b"pagination",
    b"paging",
    b"prev",
    b"previous",
    b"resume",
    b"scroll",
    b"skip",
    b"sync",
    b"valid",
];

/// As [`NO_SECRET`], but all that is before it: other words end so too. Some are signs of a language model.
const NO_SECRET_ALONE: [&[u8]; 21] = [
    b"bos",
    b"cls",
    b"costper",
    b"end",
    b"eos",
    b"first",
    b"has",
    b"hide",
    b"is",
    b"last",
    b"mask",
    b"need",
    b"no",
    b"pad",
    b"per",
    b"sep",
    b"show",
    b"start",
    b"stop",
    b"timetofirst",
    b"unk",
];

/// What begins a name that asks a question or says what is done, so that its value is none: `show_password`.
const ASKS: [&[u8]; 11] =
    [b"change", b"forgot", b"has", b"hide", b"is", b"lost", b"need", b"no", b"reset", b"show", b"update"];

/// The names, as [`plain`] has them, in order.
pub(crate) struct Names {
    all: Vec<Box<[u8]>>,
    /// By the low bits of the first sign of a name, which of the last signs there are: no matter which case.
    ends: [u32; 32],
    /// By the low bits of the first and the last sign, the lengths, up to 63.
    lengths: [u64; 64],
    /// Whether what ends like a usual one is one too, but for the exceptions.
    usual: bool,
    except: Vec<Box<[u8]>>,
}

/// The longest name that is looked at for its end.
const LONGEST: usize = 64;

impl Names {
    pub(crate) fn new(usual: bool, more: &[String], except: &[String]) -> Self {
        let known = if usual { USUAL.as_slice() } else { &[] };
        let mut names: Vec<_> = known.iter().copied().chain(more.iter().map(String::as_str)).map(plain).collect();
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
        Self { all: names, ends, lengths, usual, except }
    }

    /// Whether a name may be one of them: quickly said, and never wrong where it says no.
    #[inline]
    pub(crate) fn may_have(&self, name: &[u8]) -> bool {
        let (Some(first), Some(last)) = (name.first(), name.last()) else { return true };
        let place = usize::from(first & 31);
        let ends = self.ends.get(place).copied().unwrap_or(u32::MAX);
        // Only then is it worth to see what counts of it.
        if self.may_end_so(name) {
            return true;
        }
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
            || (self.may_end_so(name) && self.ends_so(name))
    }

    /// Whether a name may end like a usual one: by its last two letters, a number aside.
    #[inline]
    fn may_end_so(&self, name: &[u8]) -> bool {
        let [.., a, b] = without_number(name) else { return false };
        let two = [a.to_ascii_lowercase(), b.to_ascii_lowercase()];
        self.usual && (matches!(&two, b"rd" | b"wd" | b"se" | b"et" | b"ey" | b"en"))
    }

    fn ends_so(&self, name: &[u8]) -> bool {
        let (mut text, mut length) = ([0_u8; LONGEST], 0_usize);
        for (to, from) in text.iter_mut().zip(name.iter().filter_map(letter)) {
            *to = from;
            length = length.saturating_add(1);
        }
        let text = text.get(..length).unwrap_or(&[]);
        let bare = without_number(text);
        let Some((end, head)) = ENDS.iter().find_map(|end| Some((end, bare.strip_suffix(*end)?))) else { return false };
        // `resetToken` is a secret, while `resetPassword` asks for something.
        let is_none = if *end == TOKEN {
            NO_SECRET.iter().any(|word| head.ends_with(word)) || NO_SECRET_ALONE.contains(&head)
        } else {
            ASKS.iter().any(|asks| text.starts_with(asks))
        };
        // An exception is one for longer names that end with it too.
        length < LONGEST
            && !is_none
            && !self.except.iter().any(|except| **except == **end || **except == *bare || **except == *text)
    }
}

/// A name without the digits at its end, and what joins them to it.
#[inline]
fn without_number(mut name: &[u8]) -> &[u8] {
    while let [rest @ .., b'0'..=b'9' | b'-' | b'_'] = name {
        name = rest;
    }
    name
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
        for name in ["Token", "smtp_password", "x_secret", "reset-token", "api_key", "page_token"] {
            for end in ["", "1", "_2", "-", "12_", "_1-2", "3__4"] {
                let name = format!("{name}{end}");
                assert!(!names.has(name.as_bytes()) || names.may_have(name.as_bytes()), "{name}");
            }
        }
        for name in ["price", "name", "id", "created", "description", "tags", "uuid", "active", "address1", "line_2"] {
            assert!(!names.may_have(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn usual_names() {
        let names = Names::new(true, &[], &[]);
        for name in [
            "Password",
            "x-goog-api-key",
            "X-Vault-Token",
            "jwt",
            "SAMLResponse",
            "client_assertion",
            "PRIVATE-TOKEN",
            "_gitlab_session",
            "connect_sid",
            "DB_PASSWORD",
            "smtpPassword",
            "stripe_secret_key",
            "AWS_SECRET_ACCESS_KEY",
            "githubAccessToken",
            "X-Hub-Signature-256",
            "JSESSIONID",
            "csrfmiddlewaretoken",
            "new-password",
            "OPENAI_API_KEY",
            "pass",
            "password_confirmation",
            "passwordConfirm",
            "confirm_password",
            "password1",
            "new_password2",
            "password_2",
            "old_password",
            "passwords",
            "secrets",
            "userToken",
            "resetToken",
            "reset_password_token",
            "bot_token",
            "verification_token",
            "notification_token",
            "issuer_token",
            "hash_token",
            "helper_token",
            "token1",
        ] {
            assert!(names.has(name.as_bytes()), "{name}");
        }
        for name in [
            "key",
            "code",
            "state",
            "sig",
            "signature",
            "session",
            "auth",
            "page_token",
            "next_token",
            "nextPageToken",
            "tokens",
            "continuation_token",
            "sync_token",
            "cursor_token",
            "pagination-token",
            "idempotency_token",
            "has_token",
            "is_valid_token",
            "pad_token",
            "time_to_first_token",
            "reset_password",
            "reset_password2",
            "prompt_tokens",
            "total_tokens",
            "address1",
            "pass_count",
            "bypass",
            "token_type",
            "password_changed_at",
            "show_password",
            "isSecret",
            "secretary",
            "max_tokens",
            "secrets_count",
            "author",
            "cookies_ok",
            "pinned",
            "keyword",
            "passenger",
            "",
            "monkey",
            "author_id",
            "order_id",
            "spin",
            "opt",
            "compass",
        ] {
            assert!(!names.has(name.as_bytes()), "{name}");
        }
        let names = Names::new(true, &["x-mine".into()], &["password".into(), "my_api_key".into()]);
        for (name, has) in [
            ("password", false),
            ("db_password", false),
            ("passwd", true),
            ("X_Mine", true),
            ("my-api-key", false),
            ("your-api-key", true),
        ] {
            assert_eq!(names.has(name.as_bytes()), has, "{name}");
        }
        assert!(!Names::new(false, &[], &[]).has(b"db_password"));
    }
}
