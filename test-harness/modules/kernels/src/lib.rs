//! Passes over bodies of 64 KiB: log-scrub's, and those of the `regex` crate, which looks for six of the same things as
//! one writes it. Natively they are called; in the proxy, a request asks for some, and the reply says how long they took.
#![cfg_attr(target_arch = "wasm32", no_std)]

use kit::prelude::*;
use kit::{Context, Filter, Flow, Headers, Phases, Refusal, Reply};
use log_scrub::config::Config as Scrub;
use log_scrub::places::Body;
use log_scrub::{Findings, Rules};
use regex::bytes::Regex;

/// How long a body is, about.
pub const LENGTH: usize = 64 << 10;

/// In such parts it passes, as from the proxy.
const PART: usize = 16 << 10;

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// [`Rules::scrub`], as for any text.
    Scrub,
    /// [`Body::json`], as for a body.
    Json,
    /// The alternation, to its last match.
    Regex,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Scrub, Self::Json, Self::Regex];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scrub => "scrub",
            Self::Json => "json",
            Self::Regex => "regex",
        }
    }
}

/// The bodies, and whether somebody means harm with it.
pub const BODIES: [(&str, bool); 8] = [
    ("clean, no ids", false),
    ("clean, ids", false),
    ("clean, indented", false),
    ("dense with findings", false),
    ("hostile: 1111 1111", true),
    ("hostile: -eyJ.-eyJ.", true),
    ("hostile: a@a@", true),
    ("hostile: URLs in URLs", true),
];

/// A body; valid JSON. Nothing if there is none of this name.
pub fn body(name: &str) -> Vec<u8> {
    let filled = |make: &dyn Fn(usize) -> String| {
        let mut text = String::from("[");
        let mut count = 0_usize;
        while text.len() < LENGTH {
            if count > 0 {
                text.push(',');
            }
            text.push_str(&make(count));
            count = count.wrapping_add(1);
        }
        text.push(']');
        text.into_bytes()
    };
    // The same where addresses are narrower.
    let wide = |n: usize| u64::try_from(n).unwrap_or(0);
    let strings = |of: &str| {
        let value = of.repeat(1000_usize.checked_div(of.len()).unwrap_or(1));
        filled(&|_| format!("\"{value}\""))
    };
    match name {
        "clean, no ids" => filled(&|n| {
            format!(
                "{{\"name\":\"Widget, blue\",\"price\":{}.99,\"tags\":[\"new\",\"sale\"],\"active\":true,\"text\":\"does what \
                 widgets do, and some more\"}}",
                n % 89
            )
        }),
        "clean, ids" => filled(&|n| {
            format!(
                "{{\"id\":{n},\"sku\":\"AB-{}\",\"name\":\"Widget, blue\",\"price\":{}.99,\"tags\":[\"new\",\"sale\"],\
                 \"uuid\":\"{:08x}-1b2c-4d3e-8f40-{:012x}\",\"created\":\"2024-03-{:02}T12:34:56.789Z\",\"ts\":{},\
                 \"active\":true,\"description\":\"A widget that does what widgets do, and some more\"}}",
                n % 997,
                n % 89,
                wide(n).wrapping_mul(2_654_435_761) & 0xffff_ffff,
                wide(n).wrapping_mul(0x9e37_79b9_7f4a) & 0xffff_ffff_ffff,
                (n % 28).wrapping_add(1),
                1_700_000_000_000_u64.wrapping_add(wide(n))
            )
        }),
        "clean, indented" => filled(&|n| {
            format!(
                "\n  {{\n    \"name\": \"Widget, blue\",\n    \"price\": {}.99,\n    \"tags\": [\n      \"new\",\n      \
                 \"sale\"\n    ],\n    \"active\": true,\n    \"text\": \"does what widgets do, and some more\"\n  }}",
                n % 89
            )
        }),
        "dense with findings" => filled(&|n| {
            format!(
                "{{\"email\":\"ann{n}@example.com\",\"card\":\"4111 1111 1111 1111\",\"phone\":\"+4915112345678\",\
                 \"ssn\":\"123-45-6789\",\"iban\":\"DE89370400440532013000\",\"ip\":\"203.0.113.7\"}}"
            )
        }),
        "hostile: 1111 1111" => strings("1111 "),
        "hostile: -eyJ.-eyJ." => strings("-eyJ."),
        "hostile: a@a@" => strings("a@"),
        "hostile: URLs in URLs" => strings("//a/?a=%2f%2f"),
        _ => Vec::new(),
    }
}

/// Six patterns as they are written for logs: address, card, SSN, phone, IPv4, AWS key.
const PATTERNS: [&str; 6] = [
    r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}",
    r"\b(?:\d[ -]?){13,16}\b",
    r"\b\d{3}-\d{2}-\d{4}\b",
    r"\+\d{8,15}\b",
    r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
];

/// What passes over the bodies, ready.
#[derive(Debug)]
pub struct Kernels {
    rules: Rules,
    regex: Regex,
}

impl Kernels {
    /// Compiles them.
    ///
    /// # Errors
    /// None is known.
    pub fn new() -> Result<Self, Refusal> {
        let pattern = format!("(?-u){}", PATTERNS.map(|pattern| format!("(?:{pattern})")).join("|"));
        let regex = Regex::new(&pattern).map_err(|error| Refusal::at("", &format!("{error}")))?;
        Ok(Self { rules: Rules::new(&Scrub::default())?, regex })
    }

    /// One pass; how many were found. `out` is there to be used again.
    pub fn pass(&self, kernel: Kernel, body: &[u8], out: &mut Vec<u8>) -> u32 {
        let mut findings = Findings::default();
        match kernel {
            Kernel::Scrub => drop(core::hint::black_box(self.rules.scrub("", body, &mut findings))),
            Kernel::Json => {
                out.clear();
                let mut json = Body::json();
                for part in body.chunks(PART) {
                    json.push(&self.rules, part, out, &mut findings);
                }
                if json.finish(&self.rules, out, &mut findings).is_err() {
                    return u32::MAX;
                }
                core::hint::black_box(out);
            }
            Kernel::Regex => {
                return u32::try_from(core::hint::black_box(self.regex.find_iter(body).count())).unwrap_or(u32::MAX);
            }
        }
        findings.total()
    }
}

/// Nothing to configure.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// Answers a request with `x-kernel`, `x-body` and `x-passes`: the nanoseconds of so many passes, and what each found.
impl Filter for Kernels {
    const NAME: &'static str = "kernels";
    const PHASES: Phases = Phases::REQUEST_HEADERS;
    type Config = Config;
    type State = ();
    type Stream = ();

    fn new(_: Config) -> Result<Self, Refusal> {
        Self::new()
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        let text = |name| headers.get(name).and_then(|value| str::from_utf8(value).ok()).unwrap_or_default();
        let kernel = Kernel::ALL.into_iter().find(|kernel| kernel.name() == text("x-kernel"));
        let (body, passes) = (body(text("x-body")), text("x-passes").parse::<u32>());
        let (Some(kernel), Ok(passes)) = (kernel, passes) else { return Flow::Continue };
        if body.is_empty() {
            return Flow::Continue;
        }
        let (mut out, mut found) = (Vec::with_capacity(LENGTH.wrapping_mul(4)), 0);
        let begun = cx.host.now_ns();
        for _ in 0..passes {
            found = self.pass(kernel, core::hint::black_box(&body), &mut out);
        }
        let took = cx.host.now_ns().saturating_sub(begun);
        Flow::Reply(Reply { status: 200, body: format!("{took} {found}").into_bytes(), ..Reply::default() })
    }
}

kit::export!(Kernels);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_body_is_json_and_just_the_dense_one_has_findings() {
        let (kernels, mut out) = (Kernels::new().unwrap(), Vec::new());
        for (name, _) in BODIES {
            let body = body(name);
            assert!((LENGTH..LENGTH + 2000).contains(&body.len()), "{name}: {}", body.len());
            let found = kernels.pass(Kernel::Json, &body, &mut out);
            assert_eq!(found > 0, name == "dense with findings", "{name}: {found}");
        }
    }
}
