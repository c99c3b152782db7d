//! What the operator says: what is looked at, what is found in it, and what is done with that.

use core::fmt;
use kit::config::{Bounded, HeaderName};
use kit::prelude::*;
#[cfg(feature = "schema")]
use schemars::JsonSchema;
use serde::Deserialize;

/// Configuration of log-scrub. Every field may be left out.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct Config {
    /// Clean copies for access logs, as filter state. Only what is asked for is looked at.
    pub outputs: Outputs,
    /// Of a body, so many bytes are looked at, and no more are kept.
    pub max_body: Bounded<0, 1_048_576>,
    /// What is cleaned on its way, for the upstream and for the client.
    pub mutate: Mutate,
    /// Kinds of values to look for. Left out: secrets, and of the others those whose form proves them.
    pub packs: Option<Vec<Pack>>,
    /// What is done where nothing else is said.
    pub action: How,
    /// Detectors one by one: to turn on, to turn off, or with an action of their own.
    pub detectors: Vec<Choice>,
    /// Rules of one's own.
    pub own: Vec<Own>,
    /// Fields that are covered whatever their value is.
    pub fields: Fields,
    /// Key of the action `hmac`: 32 bytes at least.
    pub hmac_key: Option<Secret>,
    /// The environment variable of the VM that holds the key, in place of `hmac_key`.
    pub hmac_key_env: Option<String>,
}

kit::fields!(Config { outputs, max_body, mutate, packs, action, detectors, own, fields, hmac_key, hmac_key_env });

impl Default for Config {
    fn default() -> Self {
        Self {
            outputs: Outputs::default(),
            max_body: Bounded::new(64 << 10).unwrap_or(Bounded::LEAST),
            mutate: Mutate::default(),
            packs: None,
            action: How::default(),
            detectors: Vec::new(),
            own: Vec::new(),
            fields: Fields::default(),
            hmac_key: None,
            hmac_key_env: None,
        }
    }
}

/// Clean copies of a request's parts.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct Outputs {
    /// `wasm.scrub.path`: the path as the client sent it, without its query.
    pub path: bool,
    /// `wasm.scrub.query`: the query, without its `?`.
    pub query: bool,
    /// `wasm.scrub.method`: the method, `OTHER` if it is none of the usual ones.
    pub method: bool,
    /// `wasm.scrub.authority`: the host that was asked for.
    pub authority: bool,
    /// `wasm.scrub.referer`.
    pub referer: bool,
    /// `wasm.scrub.user_agent`.
    pub user_agent: bool,
    /// `wasm.scrub.header.<name>` for each of these request headers.
    pub request_headers: Vec<HeaderName>,
    /// `wasm.scrub.response_header.<name>` for each of these response headers or trailers.
    pub response_headers: Vec<HeaderName>,
    /// How these headers are left.
    pub headers_as: HeadersAs,
    /// `wasm.scrub.request_body`.
    pub request_body: bool,
    /// `wasm.scrub.response_body`.
    pub response_body: bool,
    /// `wasm.scrub.log`: one line of JSON with time, method, path, status, duration, trace and what was found.
    pub line: bool,
    /// Writes the same line to the proxy's own log, at level info.
    pub proxy_log: bool,
}

kit::fields!(Outputs {
    path,
    query,
    method,
    authority,
    referer,
    user_agent,
    request_headers,
    response_headers,
    headers_as,
    request_body,
    response_body,
    line,
    proxy_log
});

impl Default for Outputs {
    fn default() -> Self {
        Self {
            path: true,
            query: true,
            method: false,
            authority: false,
            referer: true,
            user_agent: true,
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            headers_as: HeadersAs::Each,
            request_body: false,
            response_body: false,
            line: false,
            proxy_log: false,
        }
    }
}

/// Forms of clean headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum HeadersAs {
    /// Each by itself, as said.
    Each,
    /// All together as a JSON object, `wasm.scrub.headers` and `wasm.scrub.response_headers`: one field of a log, and
    /// cheaper where there are many.
    Json,
}

/// What is cleaned on its way. What cannot be looked at goes on as it is, and is counted.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct Mutate {
    /// Request headers that go upstream clean.
    pub request_headers: Vec<HeaderName>,
    /// Response headers that go to the client clean.
    pub response_headers: Vec<HeaderName>,
    /// JSON bodies that go upstream: held up to `max_body`, cleaned, and sent without a Content-Length.
    pub request_body: bool,
    /// JSON bodies that go to the client, in the same way.
    pub response_body: bool,
}

kit::fields!(Mutate { request_headers, response_headers, request_body, response_body });

/// Kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "kebab-case")]
pub enum Pack {
    /// Tokens, keys and credentials.
    Secrets,
    /// Of persons anywhere.
    Pii,
    /// Of persons in China.
    PiiCn,
    /// Cards and accounts.
    Financial,
}

/// One detector.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize))]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// Which, such as `card`.
    pub name: String,
    /// Whether it looks at all.
    #[serde(default = "yes")]
    pub on: bool,
    /// What is done with what it finds.
    pub action: Option<How>,
}

fn yes() -> bool {
    true
}

/// A rule of one's own: a literal or a regular expression.
#[derive(Clone, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize))]
#[serde(deny_unknown_fields)]
pub struct Own {
    /// In metrics and masks: small letters, digits, `_` and `-`, beginning with a letter.
    pub name: String,
    /// A text, byte for byte.
    pub literal: Option<String>,
    /// A regular expression on bytes: `[a-z]`, `.`, `\d`, `\w`, `\s`, `(a|b)`, `?`, `*`, `+`, `{2,5}`, `(?i)` at the beginning, `\b` at
    /// the ends. The longest match counts, of 256 bytes at most.
    pub regex: Option<String>,
    /// What is done with what it finds.
    pub action: Option<How>,
}

/// Fields that are covered whatever their value is.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct Fields {
    /// Whether the usual names count, such as `password` and `authorization`.
    pub usual: bool,
    /// More names, in any case, `-` and `_` alike.
    pub names: Vec<String>,
    /// Usual names that do not count.
    pub except: Vec<String>,
    /// What is done with their values.
    pub action: Option<How>,
}

kit::fields!(Fields { usual, names, except, action });

impl Default for Fields {
    fn default() -> Self {
        Self { usual: true, names: Vec::new(), except: Vec::new(), action: None }
    }
}

/// What is done with a value.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), serde(deny_unknown_fields, default))]
pub struct How {
    /// Which way.
    pub kind: Kind,
    /// With `partial`: how many bytes stay at the beginning.
    pub first: Bounded<0, 8>,
    /// With `partial`: how many bytes stay at the end.
    pub last: Bounded<0, 8>,
    /// With `replace`: the text, of 64 bytes at most.
    pub with: String,
    /// With `hmac`: how many hex digits.
    pub digits: Bounded<8, 64>,
}

kit::fields!(How { kind, first, last, with, digits });

impl Default for How {
    fn default() -> Self {
        Self {
            kind: Kind::Mask,
            first: Bounded::LEAST,
            last: Bounded::new(4).unwrap_or(Bounded::LEAST),
            with: String::new(),
            digits: Bounded::new(16).unwrap_or(Bounded::LEAST),
        }
    }
}

/// Ways to cover a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `[card]`.
    Mask,
    /// Stars, with a few bytes left at the ends, fewer than half.
    Partial,
    /// `[]`: not even what it was is left, and of a whole field nothing at all.
    Drop,
    /// A text of one's own. To be safe from being read together with what stands around, it is best in brackets.
    Replace,
    /// `[card_0123456789abcdef]`: the same for the same value under the same key.
    Hmac,
    /// Of an IP address its network: the last octet 0, or the first 64 bits.
    Network,
}

/// A text that is never shown.
#[derive(Clone, Deserialize)]
#[cfg_attr(feature = "schema", derive(JsonSchema, serde::Serialize), schemars(inline))]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
