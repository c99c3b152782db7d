//! How fast text passes the engine, by what is in it.
#![allow(clippy::arithmetic_side_effects, clippy::cast_precision_loss, clippy::as_conversions, clippy::unwrap_used)]

use log_scrub::config::{Config, Pack};
use log_scrub::places::{self, Body};
use log_scrub::{Findings, Rules};
use std::borrow::Cow;
use std::hint::black_box;
use std::time::{Duration, Instant};

const LENGTH: usize = 64 * 1024;

type Clean = for<'t> fn(&Rules, &'t [u8], &mut Findings) -> Cow<'t, [u8]>;

/// Of these, half as much is taken.
const PLACES: [&str; 6] = [
    "a=b&name=widget&",
    "//a@b.co",
    "q=//a@b.co&",
    "a@b.co&",
    "a=4111111111111111&",
    "https://a.co/x?mail=ann%40b.co ",
];

fn main() {
    let repeated = |make: &dyn Fn(usize) -> String| {
        let mut text = String::new();
        let mut count = 0;
        while text.len() < LENGTH {
            text += &make(count);
            count += 1;
        }
        text.truncate(LENGTH);
        text
    };
    let of = |text: &'static str| repeated(&move |_| text.to_owned());
    let texts = [
        (
            "clean JSON",
            repeated(&|n| {
                format!(
                    "{{\"id\":{n},\"sku\":\"AB-{}\",\"name\":\"Widget, blue\",\"price\":{}.99,\"tags\":[\"new\",\"sale\"],\"uuid\":\"{:08x}-1b2c-4d3e-8f40-{:012x}\",\"created\":\"2024-03-{:02}T12:34:56.789Z\",\"ts\":{},\"active\":true,\"description\":\"A widget that does what widgets do, and some more\"}},",
                    n % 997,
                    n % 89,
                    n.wrapping_mul(2_654_435_761) & 0xffff_ffff,
                    n.wrapping_mul(0x9E37_79B9_7F4A) & 0xffff_ffff_ffff,
                    n % 28 + 1,
                    1_700_000_000_000_u64 + n as u64
                )
            }),
        ),
        (
            "JSON, no ids",
            of(
                "{\"name\":\"Widget, blue\",\"price\":12.99,\"tags\":[\"new\",\"sale\"],\"active\":true,\"text\":\"does what widgets do\"},",
            ),
        ),
        (
            "PII-dense",
            repeated(&|n| {
                format!(
                    "{{\"email\":\"ann{n}@example.com\",\"card\":\"4111 1111 1111 1111\",\"phone\":\"+4915112345678\",\"ssn\":\"123-45-6789\",\"iban\":\"DE89370400440532013000\"}},"
                )
            }),
        ),
        ("all @", of("@")),
        ("a@a@", of("a@")),
        ("all digits", of("1")),
        ("groups of digits", of("1111 ")),
        ("groups of three", of("111-")),
        ("eyJeyJ", of("eyJ")),
        ("-eyJ", of("-eyJ")),
        ("eyJ.", of("eyJ.")),
        ("colons", of(":")),
        ("1:1:", of("1:")),
        ("1.1.1.", of("1.")),
        ("capitals and digits", of("DE8 ")),
        ("DE89 3704 ", of("DE89 3704 ")),
        ("xoxb-", of("xoxb-.")),
        ("Bearer ", of("Bearer ")),
        ("long words and @", repeated(&|_| format!("{}@", "a".repeat(64)))),
        ("4111-", of("4111-")),
        ("phone 123 ", of("phone 123 ")),
        ("+1234567890123456", of("+1234567890123456 ")),
    ];
    // With a name: only the texts whose name has it.
    let chosen = std::env::args().nth(1).unwrap_or_default();
    let everything = vec![Pack::Secrets, Pack::Pii, Pack::PiiCn, Pack::Financial];
    for (which, packs) in [("by default", None), ("everything", Some(everything))] {
        println!("{which}: MB/s of text whole, in parts of 16 KiB, and as JSON");
        let rules = Rules::new(&Config { packs, ..Config::default() }).unwrap();
        for (name, text) in texts.iter().filter(|(name, _)| name.contains(&chosen)) {
            let whole = speed(|| {
                let mut findings = Findings::default();
                black_box(rules.scrub("", black_box(text.as_bytes()), &mut findings));
            });
            let mut out = Vec::with_capacity(2 * LENGTH);
            let parts = speed(|| {
                let mut findings = Findings::default();
                let mut stream = rules.stream("");
                out.clear();
                for part in black_box(text.as_bytes()).chunks(16 * 1024) {
                    stream.push(&rules, part, &mut out, &mut findings);
                }
                stream.finish(&rules, &mut out, &mut findings);
                black_box(&out);
            });
            // What is no JSON already is a string in some.
            let json = if text.starts_with('{') {
                let end = text.rfind("},").unwrap_or(0);
                format!("[{}}}]", text.get(..end).unwrap_or_default())
            } else {
                format!("[{}]", vec![format!("\"{}\"", text.get(..1000).unwrap_or_default()); LENGTH / 1000].join(","))
            };
            let json = speed(|| {
                let mut findings = Findings::default();
                let mut body = Body::json();
                out.clear();
                for part in black_box(json.as_bytes()).chunks(16 * 1024) {
                    body.push(&rules, part, &mut out, &mut findings);
                }
                body.finish(&rules, &mut out, &mut findings).unwrap();
                black_box(&out);
            });
            println!("  {name:20} {whole:8.0} {parts:8.0} {json:8.0}");
        }
        println!("{which}: MB/s as a form, a query, a URL and a line of text");
        for piece in PLACES.into_iter().filter(|piece| piece.contains(&chosen)) {
            let text = piece.repeat(LENGTH / 2 / piece.len());
            let mut out = Vec::with_capacity(2 * LENGTH);
            let form = speed(|| {
                let (mut findings, mut body) = (Findings::default(), Body::form());
                out.clear();
                body.push(&rules, black_box(text.as_bytes()), &mut out, &mut findings);
                body.finish(&rules, &mut out, &mut findings).unwrap();
                black_box(&out);
            });
            let cleans: [Clean; 3] =
                [places::query, places::url, |rules, text, findings| places::text(rules, "", text, findings)];
            let [query, url, line] = cleans.map(|clean| {
                speed(|| drop(black_box(clean(&rules, black_box(text.as_bytes()), &mut Findings::default()))))
            });
            println!("  {piece:20} {:8.1} {:8.1} {:8.1} {:8.1}", form / 2.0, query / 2.0, url / 2.0, line / 2.0);
        }
    }
}

/// The best of many rounds, in MB/s.
fn speed(mut round: impl FnMut()) -> f64 {
    let (mut best, begin) = (Duration::MAX, Instant::now());
    while begin.elapsed() < Duration::from_millis(60) {
        let start = Instant::now();
        round();
        best = best.min(start.elapsed());
    }
    LENGTH as f64 / best.as_secs_f64() / 1e6
}
