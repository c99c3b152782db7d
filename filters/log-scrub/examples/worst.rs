//! What costs most: texts made of two repeated pieces, in every place, by time per byte; and whether it grows with length.
#![allow(clippy::arithmetic_side_effects, clippy::cast_precision_loss, clippy::as_conversions, clippy::unwrap_used)]

use log_scrub::config::{Config, Pack};
use log_scrub::places::{self, Body};
use log_scrub::{Findings, Rules};
use std::time::{Duration, Instant};

const PIECES: [&str; 36] = [
    "a",
    "=",
    "&",
    ";",
    "%",
    "%25",
    "%2525",
    "%26",
    "%3d",
    "%2f",
    "%2f%2f",
    "+",
    "/",
    "//",
    "//a/?",
    "?a=",
    "#",
    "a@",
    "a@b.co",
    "1111 ",
    "1111-",
    "1.",
    ":",
    "eyJ",
    "eyJ.",
    "-eyJhbGciOiJIUzI1NiJ9.",
    "[",
    "{",
    "\\\"",
    "\\\\",
    "phone 1 ",
    "Bearer ",
    "AB12",
    "+49 ",
    "{\\\"a\\\":",
    "xoxb-",
];

fn main() {
    let packs = Some(vec![Pack::Secrets, Pack::Pii, Pack::PiiCn, Pack::Financial]);
    let rules = Rules::new(&Config { packs, ..Config::default() }).unwrap();
    let length: usize = std::env::args().nth(1).map_or(16 << 10, |length| length.parse().unwrap());
    let mut found = Vec::new();
    for first in PIECES {
        for second in PIECES {
            let (both, times) = (format!("{first}{second}"), length / (first.len() + second.len()));
            let (inner, half) = (both.repeat(times), both.repeat(times / 2));
            for place in PLACES {
                let once = |text: &str| cost(place, &rules, text);
                found.push((once(&inner), once(&half), place, both.clone()));
            }
        }
    }
    found.sort_by(|one, other| other.0.total_cmp(&one.0));
    println!("ns a byte, of half the length, place, what is repeated");
    for (cost, half, place, text) in found.iter().take(25) {
        println!("{cost:8.1} {half:8.1}  {place:6} {text}");
    }
}

const PLACES: [&str; 6] = ["json", "form", "query", "url", "cookie", "text"];

fn cost(place: &str, rules: &Rules, text: &str) -> f64 {
    let json = format!("{{\"a\":\"{text}\"}}");
    let url = format!("//a/?{text}");
    let mut best = Duration::MAX;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_micros(300) || best == Duration::MAX {
        let (start, mut findings, mut out) = (Instant::now(), Findings::default(), Vec::new());
        let mut whole = |mut body: Body, text: &str| {
            body.push(rules, text.as_bytes(), &mut out, &mut findings);
            let _ = body.finish(rules, &mut out, &mut findings);
        };
        match place {
            "json" => whole(Body::json(), &json),
            "form" => whole(Body::form(), text),
            "text" => whole(Body::text(rules), text),
            "query" => drop(places::query(rules, text.as_bytes(), &mut findings)),
            "url" => drop(places::url(rules, url.as_bytes(), &mut findings)),
            _ => drop(places::cookie(rules, text.as_bytes(), &mut findings)),
        }
        best = best.min(start.elapsed());
    }
    best.as_nanos() as f64 / text.len() as f64
}
