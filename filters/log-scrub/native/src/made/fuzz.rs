//! Values in every place, encoding and split, under random configurations: none may be in anything that comes out.

use super::corpus::{AROUND, BODIES, FIELDS, put};
use super::drive::{Output, drive};
use super::leak::{Canary, Readings};
use super::random::{ALPHANUMERIC, Random};
use super::request::{BodyKind, Break, Case, Encoding, Fate, Item, Place, Plan};
use super::values::{self, RULES};
use log_scrub::Rules;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A configuration, and what it says has to be covered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As the filter takes it.
    pub json: Value,
    /// The detectors that are on.
    pub detectors: Vec<&'static str>,
    /// Names of covered fields.
    pub fields: Vec<&'static str>,
    /// Whether there is a rule of one's own, [`staff`].
    pub own: bool,
}

/// Which detectors are in which pack, and whether they are on by default: what the filter promises, said once more.
const PACKS: [(&str, &str, bool); 19] = [
    ("jwt", "secrets", true),
    ("credentials", "secrets", true),
    ("private_key", "secrets", true),
    ("aws_key", "secrets", true),
    ("github_token", "secrets", true),
    ("gitlab_token", "secrets", true),
    ("google_key", "secrets", true),
    ("npm_token", "secrets", true),
    ("pypi_token", "secrets", true),
    ("slack_token", "secrets", true),
    ("stripe_key", "secrets", true),
    ("us_ssn", "pii", true),
    ("phone", "pii", true),
    ("email", "pii", true),
    ("ip", "pii", false),
    ("cn_id", "pii-cn", true),
    ("cn_mobile", "pii-cn", false),
    ("card", "financial", true),
    ("iban", "financial", true),
];

const MORE_FIELDS: [&str; 3] = ["nickname", "favourite_colour", "x-badge"];

fn how(random: &mut Random, ip: bool) -> Value {
    match random.below(if ip { 7 } else { 6 }) {
        0 | 1 => json!({ "kind": "mask" }),
        2 => json!({ "kind": "partial", "first": random.below(9), "last": random.below(9) }),
        3 => json!({ "kind": "drop" }),
        4 => json!({ "kind": "replace", "with": random.pick(&["<removed>", "[x]", "", "REDACTED", "***"]) }),
        5 => json!({ "kind": "hmac", "digits": random.within(8, 64) }),
        _ => json!({ "kind": "network" }),
    }
}

/// A random configuration.
pub fn settings(random: &mut Random) -> Settings {
    let mut json = json!({ "hmac_key": "0123456789abcdef0123456789abcdef" });
    let packs: Vec<&str> =
        ["secrets", "pii", "pii-cn", "financial"].into_iter().filter(|_| random.percent(80)).collect();
    let chosen = random.percent(70);
    if chosen {
        json["packs"] = json!(packs);
    }
    if random.percent(70) {
        json["action"] = how(random, false);
    }
    let mut detectors: Vec<&'static str> = PACKS
        .iter()
        .filter(|(_, pack, default)| if chosen { packs.contains(pack) } else { *default })
        .map(|(name, ..)| *name)
        .collect();
    let mut choices = Vec::new();
    for name in RULES {
        if random.percent(15) {
            let on = random.percent(70);
            detectors.retain(|other| *other != name);
            if on {
                detectors.push(name);
            }
            let mut choice = json!({ "name": name, "on": on });
            if random.percent(60) {
                choice["action"] = how(random, name == "ip");
            }
            choices.push(choice);
        }
    }
    json["detectors"] = json!(choices);
    let (usual, except) = (random.percent(85), *random.pick(&FIELDS));
    let except = random.percent(20).then_some(except);
    let mut fields: Vec<&str> = if usual { FIELDS.to_vec() } else { Vec::new() };
    fields.retain(|name| Some(*name) != except);
    fields.extend(MORE_FIELDS);
    json["fields"] = json!({ "usual": usual, "names": MORE_FIELDS, "except": except.into_iter().collect::<Vec<_>>() });
    if random.percent(40) {
        json["fields"]["action"] = how(random, false);
    }
    let own = random.percent(40);
    if own {
        json["own"] = json!([{ "name": "staff", "regex": "\\bEMP-[A-Za-z0-9]{12}\\b" }]);
        if random.percent(50) {
            json["own"][0]["action"] = how(random, false);
        }
    }
    Settings { json, detectors, fields, own }
}

impl Settings {
    /// The rules; none if the filter refuses them, as a text that is itself found.
    pub fn rules(&self) -> Option<Rules> {
        Rules::new(&kit::config::parse(self.json.to_string().as_bytes()).ok()?).ok()
    }
}

/// A random request whose values all have to be covered.
pub fn plan(settings: &Settings, random: &mut Random) -> Plan {
    let breaks = [
        Break::Cut,
        Break::Byte(0xff),
        Break::Byte(b'"'),
        Break::Byte(b'\\'),
        Break::Byte(b'{'),
        Break::Byte(b'}'),
        Break::Byte(b','),
        Break::Byte(0),
        Break::Byte(b'%'),
        Break::Byte(b'&'),
        Break::Deep,
    ];
    let mut plan = Plan {
        items: Vec::new(),
        request: *random.pick(&BODIES),
        response: *random.pick(&BODIES),
        broken: random.percent(20).then(|| *random.pick(&breaks)),
        split: random.percent(70),
        seed: random.seed(),
    };
    let several = random.within(1, 8);
    while plan.items.len() < several {
        let item = item(settings, random);
        let body = match item.place {
            Place::Body | Place::BodyName => Some(plan.request),
            Place::ResponseBody => Some(plan.response),
            _ => None,
        };
        let is_field = matches!(item.fate, Fate::Covered { rule: "field", .. });
        // In plain text no field has a value; and what is broken may be the name that says what a value is.
        let cannot_be =
            body.is_some() && ((is_field && body == Some(BodyKind::Text)) || plan.broken.is_some() && is_named(&item));
        if !cannot_be {
            plan.items.push(item);
        }
    }
    plan
}

/// Whether an item is found under its name alone.
fn is_named(item: &Item) -> bool {
    let Fate::Covered { rule, .. } = &item.fate else { return false };
    matches!(*rule, "field" | "phone" | "cn_id" | "us_ssn" | "card")
}

fn item(settings: &Settings, random: &mut Random) -> Item {
    let kind = random.below(10);
    if kind < 2 || settings.detectors.is_empty() {
        let name = *random.pick(&settings.fields);
        if random.percent(15) {
            let text = format!("{}:{}", random.signs(ALPHANUMERIC, 8), random.signs(ALPHANUMERIC, 12));
            let fate = Fate::Covered { rule: "field", secret: text.clone() };
            let (before, after) = (String::new(), String::new());
            return Item {
                place: Place::RefererUser,
                encoding: Encoding::Plain,
                name: name.into(),
                before,
                text,
                after,
                fate,
            };
        }
        let text = values::unseen(random);
        let fate = Fate::Covered { rule: "field", secret: text.clone() };
        return put(random, name, false, text, fate);
    }
    if kind == 2 && settings.own {
        let text = staff(random);
        let fate = Fate::Covered { rule: "staff", secret: text.clone() };
        return put(random, "note", false, text, fate);
    }
    let rule = *random.pick(&settings.detectors);
    let value = values::value(rule, random);
    let name = if value.needs_name || random.percent(50) { *random.pick(value.names) } else { values::neutral(random) };
    let mut item =
        put(random, name, value.needs_name, value.text, Fate::Covered { rule: value.rule, secret: value.secret });
    // Much text before it, so that what is held back comes into it.
    if random.percent(6) && matches!(item.place, Place::Body | Place::ResponseBody) && !value.needs_name {
        let length = match random.below(10) {
            0 => 70_000,
            1 => random.within(0, 70_000),
            // Text is taken in pieces of 8 KiB, and here one may end in the value.
            _ => random.within(8080, 8190),
        };
        let (before, after) = *random.pick(&AROUND);
        item.before = format!("{}{before}", "lorem, ".repeat(length / 7) + &" ".repeat(length % 7));
        item.after = after.into();
    }
    item
}

/// What a rule of one's own finds.
pub fn staff(random: &mut Random) -> String {
    format!("EMP-{}", random.signs(ALPHANUMERIC, 12))
}

/// Something that was not covered.
#[derive(Debug)]
pub struct Leak {
    /// What.
    pub canary: Canary,
    /// What came out.
    pub outputs: Vec<Output>,
}

/// Whether anything can be read in what comes out.
pub fn check(rules: &Rules, case: &Case) -> Option<Leak> {
    let outputs = drive(rules, case);
    let mut all = Vec::new();
    for output in &outputs {
        all.extend_from_slice(&output.bytes);
        all.extend_from_slice(b" \n ");
    }
    let readings = Readings::of(&all);
    let canary = case.canaries.iter().find(|canary| readings.show(canary))?.clone();
    Some(Leak { canary, outputs })
}

/// A case that fails, as small as it could be made.
#[derive(Debug)]
pub struct Failure {
    /// To try it again.
    pub seed: u64,
    /// To try it again.
    pub number: u64,
    /// The configuration.
    pub settings: Settings,
    /// What is in the request.
    pub plan: Plan,
    /// What can be read.
    pub leak: Leak,
}

impl Failure {
    /// All that is needed to look into it. The values are made up.
    pub fn show(&self) -> String {
        let case = self.plan.case();
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let long = text.chars().count() > 2000;
            if long {
                text.chars()
                    .take(500)
                    .chain(" … ".chars())
                    .chain(text.chars().skip(text.chars().count() - 500))
                    .collect()
            } else {
                text
            }
        };
        let mut out = format!(
            "LEAK of {} ({}): {:?}\nwith --seed {} --only {}\nconfiguration: {}\ntarget: {}\n",
            self.leak.canary.rule,
            self.leak.canary.place,
            self.leak.canary.text,
            self.seed,
            self.number,
            self.settings.json,
            text(&case.path_and_query)
        );
        for (about, headers, body) in [
            ("request", &case.request_headers, &case.request_body),
            ("response", &case.response_headers, &case.response_body),
        ] {
            for (name, value) in headers {
                out += &format!("{about} header {name}: {}\n", text(value));
            }
            out += &format!("{about} body in {} parts: {}\n", body.len(), text(&body.concat()));
        }
        let canary = &self.leak.canary;
        for output in self.leak.outputs.iter().filter(|output| Readings::of(&output.bytes).show(canary)) {
            out += &format!("came out of {:?}: {}\n", output.part, text(&output.bytes));
        }
        out
    }
}

/// How many cases share a configuration.
const SHARED: u64 = 16;

/// The configuration of a case.
fn settings_of(seed: u64, number: u64) -> (Settings, Rules) {
    let mut random = Random::new(seed, number / SHARED * 2);
    loop {
        let settings = settings(&mut random);
        if let Some(rules) = settings.rules() {
            return (settings, rules);
        }
    }
}

/// Tries the cases of a range.
///
/// # Errors
/// What was not covered in the first that failed, minimised.
pub fn try_cases(seed: u64, numbers: std::ops::Range<u64>) -> Result<(), Box<Failure>> {
    let mut shared: Option<(u64, (Settings, Rules))> = None;
    for number in numbers {
        let (_, (settings, rules)) = match shared.take() {
            Some(known) if known.0 == number / SHARED => shared.insert(known),
            _ => shared.insert((number / SHARED, settings_of(seed, number))),
        };
        let plan = plan(settings, &mut Random::new(seed, number * 2 + 1));
        if let Some(leak) = check(rules, &plan.case()) {
            return Err(Box::new(minimised(Failure { seed, number, settings: settings.clone(), plan, leak })));
        }
    }
    Ok(())
}

/// Takes away what the failure does not need, as long as there is something.
fn minimised(mut failure: Failure) -> Failure {
    loop {
        let Some(smaller) = smaller(&failure) else { return failure };
        failure = smaller;
    }
}

fn smaller(failure: &Failure) -> Option<Failure> {
    let mut plans = Vec::new();
    let plan = &failure.plan;
    for index in 0..plan.items.len() {
        let mut one = plan.clone();
        one.items.remove(index);
        plans.push(one);
    }
    if plan.split {
        plans.push(Plan { split: false, ..plan.clone() });
    }
    if plan.broken.is_some() {
        plans.push(Plan { broken: None, ..plan.clone() });
    }
    for (index, item) in plan.items.iter().enumerate() {
        let mut change = |item: Item| {
            let mut one = plan.clone();
            one.items[index] = item;
            plans.push(one);
        };
        if item.encoding != Encoding::Plain {
            change(Item { encoding: Encoding::Plain, ..item.clone() });
        }
        if !item.before.is_empty() {
            change(Item { before: String::new(), ..item.clone() });
        }
        if !item.after.is_empty() {
            change(Item { after: String::new(), ..item.clone() });
        }
    }
    let rules = failure.settings.rules()?;
    for plan in plans {
        if let Some(leak) = check(&rules, &plan.case()) {
            return Some(Failure { plan, leak, settings: failure.settings.clone(), ..*failure });
        }
    }
    // What turns detectors on is needed; actions and rules of one's own may not be.
    let needed = &failure.leak.canary.rule;
    for key in ["action", "own", "detectors"] {
        let mut settings = failure.settings.clone();
        let Some(object) = settings.json.as_object_mut() else { continue };
        if object.remove(key).is_none() || (key == "own" && needed == "staff") {
            continue;
        }
        if key == "detectors" && RULES.contains(&needed.as_str()) {
            settings.json["detectors"] = json!([{ "name": needed, "on": true }]);
            if settings.json["detectors"] == failure.settings.json["detectors"] {
                continue;
            }
        }
        let Some(rules) = settings.rules() else { continue };
        if let Some(leak) = check(&rules, &failure.plan.case()) {
            return Some(Failure { settings, leak, plan: failure.plan.clone(), ..*failure });
        }
    }
    None
}

/// How long it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// So many cases.
    Cases(u64),
    /// So long.
    Time(Duration),
}

/// Cases that are tried between two looks at the clock.
const BATCH: u64 = 512;

/// Tries cases on all processors, and says how many that were. `progress` is told of them now and then.
///
/// # Errors
/// The first failure.
pub fn run(seed: u64, until: Until, progress: impl Fn(u64, Duration) + Sync) -> Result<u64, Box<Failure>> {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    let (next, done, begin) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let failure: Mutex<Option<Box<Failure>>> = Mutex::new(None);
    let found = |new: Option<Box<Failure>>| {
        let mut failure = failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(new) = new {
            failure.get_or_insert(new);
        }
        failure.is_some()
    };
    let work = || {
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            let end = match until {
                Until::Cases(most) => (start + BATCH).min(most),
                Until::Time(most) if begin.elapsed() >= most => return,
                Until::Time(_) => start + BATCH,
            };
            if start >= end || found(None) || found(try_cases(seed, start..end).err()) {
                return;
            }
            progress(done.fetch_add(end - start, Ordering::Relaxed) + end - start, begin.elapsed());
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    match failure.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(failure) => Err(failure),
        None => Ok(done.into_inner()),
    }
}
