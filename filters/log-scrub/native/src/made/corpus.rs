//! How much is found, and how much is touched that should not be, on requests made of identities and ids.

use super::drive::{Output, drive};
use super::leak::Readings;
use super::random::Random;
use super::request::{BodyKind, Encoding, Fate, Item, Part, Place, Plan};
use super::values::{self, IDS, NEAR, RULES};
use anyhow::{Context as _, Result};
use log_scrub::{Findings, Rules};
use std::collections::BTreeMap;

/// Every detector; cookies by what is in them, since otherwise all of them are covered unseen.
pub const CONFIG: &str =
    r#"{"packs":["secrets","pii","pii-cn","financial"],"fields":{"except":["cookie","set_cookie"]}}"#;

/// Random ids of each kind that are tried.
pub const IDS_EACH: u32 = 100_000;

/// Usual names of fields whose values are covered unseen.
pub(crate) const FIELDS: [&str; 12] = [
    "password",
    "passwd",
    "token",
    "api_key",
    "secret",
    "access_token",
    "refresh_token",
    "client_secret",
    "sessionId",
    "x-api-key",
    "csrf-token",
    "passphrase",
];

/// Of one rule.
#[derive(Clone, Copy, Debug, Default)]
pub struct Row {
    /// Values put into requests.
    pub planted: u32,
    /// Of these, such as were covered.
    pub found: u32,
    /// Of these, such as another rule found.
    pub by_other: u32,
    /// Other values that this rule touched.
    pub wrong: u32,
}

impl Row {
    /// The share of what is there that is covered.
    pub fn recall(&self) -> f64 {
        share(self.found, self.planted)
    }

    /// The share of what is covered that was to be.
    pub fn precision(&self) -> f64 {
        share(self.found, self.found + self.wrong)
    }
}

fn share(part: u32, whole: u32) -> f64 {
    if whole == 0 { 1.0 } else { f64::from(part) / f64::from(whole) }
}

/// What a corpus came to.
#[derive(Debug, Default)]
pub struct Figures {
    /// How many requests.
    pub requests: u32,
    /// By rule.
    pub rules: BTreeMap<&'static str, Row>,
    /// Ids and near-misses in the requests, and how many of them were touched.
    pub others: u32,
    /// By kind.
    pub touched: BTreeMap<&'static str, u32>,
    /// By kind of id: how many of [`IDS_EACH`] were touched.
    pub ids: BTreeMap<&'static str, u32>,
    /// Some of what was missed and what was wrongly touched, to be looked into. All of it is made up.
    pub examples: BTreeMap<String, Vec<String>>,
}

/// The rules that [`CONFIG`] makes.
///
/// # Errors
/// If the filter refuses it.
pub fn rules() -> Result<Rules> {
    Ok(Rules::new(&kit::config::parse(CONFIG.as_bytes())?)?)
}

/// Makes requests, and counts what becomes of what is in them.
pub fn measure(rules: &Rules, requests: u32, seed: u64) -> Figures {
    let mut figures = Figures { requests, ..Figures::default() };
    for number in 0..requests {
        let plan = plan(&mut Random::new(seed, u64::from(number)));
        figures.add(rules, &plan);
    }
    figures
}

/// Tries random ids alone, each under a name that such ids have.
pub fn try_ids(rules: &Rules, figures: &mut Figures, each: u32, seed: u64) {
    for (index, kind) in IDS.into_iter().enumerate() {
        let mut random = Random::new(seed, u64::MAX - index as u64);
        let touched = figures.ids.entry(kind).or_default();
        for _ in 0..each {
            let id = values::id(kind, &mut random);
            let name = *random.pick(id.names);
            let mut findings = Findings::default();
            let clean = rules.scrub(name, id.text.as_bytes(), &mut findings);
            if *clean != *id.text.as_bytes() {
                *touched += 1;
                let clean = String::from_utf8_lossy(&clean).into_owned();
                example(
                    &mut figures.examples,
                    format!("id touched: {kind}"),
                    format!("{name}={} became {clean}", id.text),
                );
            }
        }
    }
}

fn example(examples: &mut BTreeMap<String, Vec<String>>, about: String, text: String) {
    let list = examples.entry(about).or_default();
    if list.len() < 4 {
        list.push(text);
    }
}

/// What stands around a value in a text.
pub(crate) const AROUND: [(&str, &str); 10] = [
    ("", ""),
    ("", ""),
    ("", ""),
    ("see ", " please"),
    ("(", ")"),
    ("<", ">"),
    ("客户：", "。"),
    ("x, ", ", y"),
    ("\"", "\""),
    ("客户", "号"),
];

/// As often as each is met, about.
pub(crate) const BODIES: [BodyKind; 6] =
    [BodyKind::Json, BodyKind::Json, BodyKind::Json, BodyKind::Form, BodyKind::Multipart, BodyKind::Text];

/// A request with values of some rules, and ids and near-misses beside them.
pub fn plan(random: &mut Random) -> Plan {
    let mut plan = Plan {
        items: Vec::new(),
        request: *random.pick(&BODIES),
        response: *random.pick(&BODIES),
        broken: None,
        split: random.percent(50),
        seed: random.seed(),
    };
    for _ in 0..random.within(2, 5) {
        let item = if random.percent(6) {
            let name = *random.pick(&FIELDS);
            let text = values::unseen(random);
            let fate = Fate::Covered { rule: "field", secret: text.clone() };
            put(random, name, false, text, fate)
        } else {
            let rule = *random.pick(&RULES);
            let value = values::value(rule, random);
            let natural = value.needs_name || random.percent(60);
            let name = if natural { *random.pick(value.names) } else { values::neutral(random) };
            put(random, name, value.needs_name, value.text, Fate::Covered { rule: value.rule, secret: value.secret })
        };
        plan.items.push(item);
    }
    for _ in 0..random.within(3, 7) {
        let other = if random.percent(60) {
            let kind = *random.pick(&IDS);
            values::id(kind, random)
        } else {
            let kind = *random.pick(&NEAR);
            values::near(kind, random)
        };
        let name = *random.pick(other.names);
        let mut item = put(random, name, true, other.text, Fate::Kept { kind: other.kind });
        // Names are covered by another rule if they are such; and what is read twice is not written as it came.
        if matches!(
            item.encoding,
            Encoding::Nested | Encoding::NestedTwice | Encoding::Url | Encoding::Path | Encoding::Word
        ) {
            item.encoding = Encoding::Plain;
        }
        plan.items.push(item);
    }
    plan
}

/// A value somewhere where such may be.
pub(crate) fn put(random: &mut Random, name: &str, needs_name: bool, text: String, fate: Fate) -> Item {
    const PLACES: [Place; 23] = [
        Place::Path,
        Place::Path,
        Place::Query,
        Place::Query,
        Place::Query,
        Place::Query,
        Place::QueryName,
        Place::Header,
        Place::Header,
        Place::UserAgent,
        Place::Cookie,
        Place::Referer,
        Place::Referer,
        Place::Body,
        Place::Body,
        Place::Body,
        Place::Body,
        Place::BodyName,
        Place::ResponseHeader,
        Place::SetCookie,
        Place::Location,
        Place::LocationPath,
        Place::ResponseBody,
    ];
    let is_field = matches!(fate, Fate::Covered { rule: "field", .. });
    let covered = matches!(fate, Fate::Covered { .. });
    let place = loop {
        let place = *random.pick(&PLACES);
        let in_header = matches!(place, Place::Header | Place::UserAgent | Place::ResponseHeader);
        let has_name =
            !matches!(place, Place::QueryName | Place::BodyName | Place::UserAgent | Place::Path | Place::LocationPath);
        let ascii = matches!(
            place,
            Place::Header
                | Place::ResponseHeader
                | Place::Path
                | Place::LocationPath
                | Place::Cookie
                | Place::SetCookie
        );
        let fits = !(in_header && text.contains('\n'))
            && (has_name || !(is_field || needs_name))
            && (name.is_ascii() || !ascii)
            // A body in text names no fields.
            && !(is_field && matches!(place, Place::Body | Place::ResponseBody) && name.is_empty());
        if fits {
            break place;
        }
    };
    let in_text = matches!(
        place,
        Place::Header | Place::UserAgent | Place::Query | Place::Body | Place::ResponseHeader | Place::ResponseBody
    );
    let (before, after) = if in_text && !is_field && covered { *random.pick(&AROUND) } else { ("", "") };
    Item {
        place,
        encoding: *random.pick(&Encoding::ALL),
        name: name.into(),
        before: before.into(),
        text,
        after: after.into(),
        fate,
    }
}

impl Figures {
    fn add(&mut self, rules: &Rules, plan: &Plan) {
        let mut plan = plan.clone();
        // In plain text no field has a value.
        for (body, place) in [(plan.request, Place::Body), (plan.response, Place::ResponseBody)] {
            if body == BodyKind::Text {
                plan.items
                    .retain(|item| item.place != place || !matches!(item.fate, Fate::Covered { rule: "field", .. }));
            }
        }
        let case = plan.case();
        for output in drive(rules, &case) {
            self.count(rules, &plan, &case.kept, &output);
        }
    }

    fn count(&mut self, rules: &Rules, plan: &Plan, kept: &[super::request::Kept], output: &Output) {
        let mut counts: BTreeMap<&str, u32> = output.findings.iter(rules).collect();
        let readings = Readings::of(&output.bytes);
        let mut by_other = Vec::new();
        for item in plan.items.iter().filter(|item| item.part() == output.part) {
            let Fate::Covered { rule, secret } = &item.fate else { continue };
            let canary =
                super::leak::Canary { text: secret.clone(), rule: (*rule).into(), place: format!("{:?}", item.place) };
            let row = self.rules.entry(rule).or_default();
            row.planted += 1;
            if readings.show(&canary) {
                let text = format!("{:?} {:?} {}: {}", item.place, item.encoding, item.name, item.text);
                example(&mut self.examples, format!("missed: {rule}"), text);
                continue;
            }
            row.found += 1;
            match counts.get_mut(rule) {
                Some(count) if *count > 0 => *count -= 1,
                _ => {
                    row.by_other += 1;
                    by_other.push(rule);
                }
            }
        }
        for kept in kept.iter().filter(|kept| kept.part == output.part) {
            self.others += 1;
            if memchr::memmem::find(&output.bytes, &kept.written).is_some() {
                continue;
            }
            *self.touched.entry(kept.kind).or_default() += 1;
            // Whichever found more than was put there.
            let rule =
                counts.iter().filter(|(_, count)| **count > 0).max_by_key(|(_, count)| **count).map(|(rule, _)| *rule);
            let rule = RULES.into_iter().find(|known| Some(*known) == rule).unwrap_or("field");
            self.rules.entry(rule).or_default().wrong += 1;
            let text = format!(
                "{} ({:?}) in {}",
                kept.kind,
                String::from_utf8_lossy(&kept.written),
                String::from_utf8_lossy(&output.bytes)
            );
            example(&mut self.examples, format!("wrongly touched by {rule}"), text);
        }
        for part in [Part::RequestBody, Part::ResponseBody] {
            if output.part == part && output.is_unscanned {
                example(&mut self.examples, "not scanned".into(), format!("{:?}", plan.items));
            }
        }
    }

    /// Two tables in Markdown: by rule, and by kind of id.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| rule | planted | found | of these by another rule | missed | wrongly touched | recall | precision |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for (rule, row) in &self.rules {
            text += &format!(
                "| `{rule}` | {} | {} | {} | {} | {} | {:.4} | {:.4} |\n",
                row.planted,
                row.found,
                row.by_other,
                row.planted - row.found,
                row.wrong,
                row.recall(),
                row.precision()
            );
        }
        let touched: u32 = self.touched.values().sum();
        text += &format!(
            "\n{} requests; of {} ids and near-misses in them {touched} were touched.\n\n\
             | random ids, {IDS_EACH} of each kind | touched |\n| --- | --- |\n",
            self.requests, self.others
        );
        for (kind, count) in &self.ids {
            text += &format!("| {kind} | {count} |\n");
        }
        text
    }
}

/// Puts the tables between `<!-- recall -->` and `<!-- end -->`.
///
/// # Errors
/// If the page has no such marks.
pub fn fill(page: &str, text: &str) -> Result<String> {
    let mark = "<!-- recall -->\n";
    let (before, rest) = page.split_once(mark).with_context(|| format!("no mark {}", mark.trim()))?;
    let (_, after) = rest.split_once("<!-- end -->").with_context(|| format!("{} has no end", mark.trim()))?;
    Ok([before, mark, text, "<!-- end -->", after].concat())
}
