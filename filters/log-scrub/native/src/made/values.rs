//! Values that have to be found, such as nearly are such values, and ids that are none.
//!
//! All are made up, by the public rules of their formats, and with nothing of the detectors' code: what both had wrong
//! in the same way would never be seen.

use super::random::{ALPHANUMERIC, BASE64, BASE64URL, DIGITS, HEX, LOWER, Random, UPPER};

/// A value that a rule has to find.
#[derive(Clone, Debug)]
pub struct Value {
    /// The rule that names it.
    pub rule: &'static str,
    /// As it is written, with a scheme before it.
    pub text: String,
    /// What of it must be gone.
    pub secret: String,
    /// Names of fields that hold such.
    pub names: &'static [&'static str],
    /// Whether it says what it is only under such a name.
    pub needs_name: bool,
}

/// What is no value of anyone.
#[derive(Clone, Debug)]
pub struct Other {
    /// Which kind.
    pub kind: &'static str,
    /// As it is written.
    pub text: String,
    /// Names of fields that hold such.
    pub names: &'static [&'static str],
}

/// The rules that [`value`] has values for.
pub const RULES: [&str; 19] = [
    "jwt",
    "credentials",
    "private_key",
    "aws_key",
    "github_token",
    "gitlab_token",
    "google_key",
    "npm_token",
    "pypi_token",
    "slack_token",
    "stripe_key",
    "cn_id",
    "card",
    "iban",
    "us_ssn",
    "cn_mobile",
    "phone",
    "email",
    "ip",
];

/// The kinds of ids that [`id`] has.
pub const IDS: [&str; 38] = [
    "trace id",
    "span id",
    "traceparent",
    "UUID",
    "UUID, capital",
    "UUID without dashes",
    "ULID",
    "KSUID",
    "ObjectId",
    "nanoid",
    "Snowflake",
    "SHA-1",
    "SHA-256",
    "SHA-256, capital",
    "short commit",
    "ETag",
    "seconds",
    "milliseconds",
    "microseconds",
    "nanoseconds",
    "seconds with a fraction",
    "date",
    "date and time",
    "date of a log",
    "date of HTTP",
    "version",
    "version with a build",
    "product version",
    "order number",
    "order number of a day",
    "invoice",
    "order of 16 digits",
    "counter",
    "price",
    "coordinates",
    "EAN-13",
    "MAC address",
    "fraction",
];

/// The near-misses that [`near`] has.
pub const NEAR: [&str; 17] = [
    "card, wrong check digit",
    "card in a longer number",
    "IBAN, wrong check digits",
    "IBAN, wrong length",
    "resident id, wrong check digit",
    "resident id, no date",
    "SSN, area 000",
    "SSN, area 666",
    "SSN, area 9xx",
    "SSN, group 00",
    "SSN, serial 0000",
    "JWT without alg",
    "access key of one sign",
    "token too short",
    "file with density",
    "address without a domain",
    "octet above 255",
];

const NEUTRAL: &[&str] =
    &["q", "value", "note", "data", "text", "customer", "info", "account", "contact", "field1", "ref"];

/// A name that says nothing.
pub fn neutral(random: &mut Random) -> &'static str {
    NEUTRAL[random.below(NEUTRAL.len())]
}

/// A value for a rule.
pub fn value(rule: &'static str, random: &mut Random) -> Value {
    let plain = |text: String, names: &'static [&'static str]| Value {
        rule,
        secret: text.clone(),
        text,
        names,
        needs_name: false,
    };
    match rule {
        "jwt" => plain(jwt(random, true), &["id", "jws", "assertion", "credential", "t"]),
        "credentials" => credentials(random),
        "private_key" => private_key(random),
        "aws_key" => {
            let kind = *random.pick(&["AKIA", "ASIA"]);
            // By chance a few have less, and are left out as stand-ins are.
            let text = loop {
                let text = format!("{kind}{}", random.signs(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16));
                if entropy(&text) >= 3.0 {
                    break text;
                }
            };
            plain(text, &["AWSAccessKeyId", "aws_access_key_id", "access_key_id", "key"])
        }
        "github_token" => plain(
            if random.percent(30) {
                format!("github_pat_{}_{}", random.signs(ALPHANUMERIC, 22), random.signs(ALPHANUMERIC, 59))
            } else {
                format!("{}_{}", random.pick(&["ghp", "gho", "ghu", "ghs", "ghr"]), random.signs(ALPHANUMERIC, 36))
            },
            &["github", "gh", "pat", "auth"],
        ),
        "gitlab_token" => plain(format!("glpat-{}", random.signs(BASE64URL, 20)), &["gitlab", "pat", "auth"]),
        "google_key" => plain(format!("AIza{}", random.signs(BASE64URL, 35)), &["key", "google", "maps_key"]),
        "npm_token" => plain(format!("npm_{}", random.signs(ALPHANUMERIC, 36)), &["npm", "registry", "auth"]),
        "pypi_token" => {
            let length = random.within(120, 170);
            plain(format!("pypi-AgEIcHlwaS5vcmc{}", random.signs(BASE64URL, length)), &["pypi", "twine", "auth"])
        }
        "slack_token" => {
            let (kind, one) = (*random.pick(&["xoxb", "xoxp", "xoxa", "xoxr", "xoxs"]), random.within(10, 13));
            plain(
                format!("{kind}-{}-{}-{}", random.number(one), random.number(12), random.signs(ALPHANUMERIC, 24)),
                &["slack", "bot", "auth"],
            )
        }
        "stripe_key" => {
            let (kind, length) = (*random.pick(&["sk_live_", "sk_test_", "rk_live_"]), *random.pick(&[24, 99]));
            plain(format!("{kind}{}", random.signs(ALPHANUMERIC, length)), &["stripe", "key", "auth"])
        }
        "cn_id" => {
            let old = random.percent(10);
            let names: &[&str] = &["id_card", "idCard", "idno", "identity", "身份证"];
            Value { needs_name: old, ..plain(resident(random, old), names) }
        }
        "card" => card(random),
        "iban" => plain(iban(random), &["iban", "IBAN", "account", "bankAccount", "from"]),
        "us_ssn" => {
            let area = loop {
                let area = random.within(1, 899);
                if area != 666 {
                    break area;
                }
            };
            let (group, serial) = (random.within(1, 99), random.within(1, 9999));
            let sign = *random.pick(&["-", "-", "-", " ", ""]);
            let text = format!("{area:03}{sign}{group:02}{sign}{serial:04}");
            Value { needs_name: sign != "-", ..plain(text, &["ssn", "userSsn", "social_security", "SSN"]) }
        }
        "cn_mobile" => {
            let number = format!("1{}{}", random.within(3, 9), random.signs(DIGITS, 9));
            let (a, b, c) = (&number[..3], &number[3..7], &number[7..]);
            let text = match random.below(6) {
                0 => format!("+86{number}"),
                1 => format!("+86 {a} {b} {c}"),
                2 => format!("{a} {b} {c}"),
                3 => format!("{a}-{b}-{c}"),
                _ => number,
            };
            plain(text, &["mobile", "phone", "手机", "contact"])
        }
        "phone" => phone(random),
        "email" => plain(email(random), &["email", "mail", "user", "to", "contact", "login"]),
        _ => plain(address(random), &["ip", "client", "remote_addr", "x-client", "from"]),
    }
}

/// A value of a covered field: nothing in it says what it is.
pub fn unseen(random: &mut Random) -> String {
    let words = ["correct", "horse", "battery", "staple", "x", "Zz9"];
    let length = random.within(10, 16);
    match random.below(4) {
        0 => format!("{} {} {}", random.pick(&words), random.signs(LOWER, 8), random.pick(&words)),
        1 => format!("{}!{}", random.signs(ALPHANUMERIC, 5), random.signs(ALPHANUMERIC, 5)),
        _ => random.signs(ALPHANUMERIC, length),
    }
}

/// A person's name, in Latin letters.
const PERSONS: [(&str, &str); 14] = [
    ("anna", "schmidt"),
    ("james", "obrien"),
    ("marie", "dubois"),
    ("lars", "johansson"),
    ("wei", "zhang"),
    ("yuki", "tanaka"),
    ("priya", "sharma"),
    ("carlos", "garcia"),
    ("olga", "ivanova"),
    ("fatima", "hassan"),
    ("kwame", "mensah"),
    ("joao", "silva"),
    ("emma", "devries"),
    ("minh", "nguyen"),
];

fn email(random: &mut Random) -> String {
    let (first, last) = *random.pick(&PERSONS);
    let number = random.number(4);
    let local = match random.below(7) {
        0 => format!("{first}.{last}{number}"),
        1 => format!("{first}_{last}_{number}"),
        2 => format!("{}{last}{number}", &first[..1]),
        3 => format!("{first}.{last}+{number}"),
        4 => format!("{}.{}", first.to_uppercase(), number),
        5 => format!("{last}-{first}-{number}"),
        _ => format!("{first}{number}"),
    };
    let length = random.within(4, 10);
    let host = random.signs(LOWER, length);
    // Of other scripts (RFC 6531).
    if random.percent(15) {
        return match random.below(4) {
            0 => format!("josé.{last}{number}@{host}.example.com"),
            1 => format!("{local}@{host}-müller.de"),
            2 => format!("иван{number}@{host}.пример.рф"),
            _ => format!("用户{number}@例子{host}.公司"),
        };
    }
    let top =
        *random.pick(&["com", "org", "de", "co.uk", "fr", "cn", "jp", "com.br", "io", "museum", "se", "xn--p1ai"]);
    let sub = *random.pick(&["", "", "", "mail.", "eu-west.corp."]);
    format!("{local}@{sub}{host}.{top}")
}

/// In bits a sign.
fn entropy(text: &str) -> f64 {
    let share = |sign: u8| text.bytes().filter(|other| *other == sign).count() as f64 / text.len() as f64;
    // Each sign has its share of the sum as often as it is there.
    text.bytes().map(|sign| -share(sign).log2()).sum::<f64>() / text.len() as f64
}

fn credentials(random: &mut Random) -> Value {
    let (scheme, secret) = if random.percent(50) {
        let length = random.within(20, 80);
        (*random.pick(&["Bearer", "bearer", "BEARER"]), random.signs(BASE64URL, length))
    } else {
        let (_, last) = *random.pick(&PERSONS);
        let pair = format!("{last}{}:{}", random.number(3), random.signs(ALPHANUMERIC, 12));
        ("Basic", base64(pair.as_bytes(), BASE64, true))
    };
    Value {
        rule: "credentials",
        text: format!("{scheme} {secret}"),
        secret,
        names: &["header", "x-forwarded-authorization", "auth", "upstream"],
        needs_name: false,
    }
}

fn private_key(random: &mut Random) -> Value {
    let kind = *random.pick(&[
        "RSA PRIVATE KEY",
        "EC PRIVATE KEY",
        "PRIVATE KEY",
        "OPENSSH PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
    ]);
    let count = random.within(1, 6);
    let lines: Vec<String> = (0..count).map(|_| random.signs(BASE64, 64)).collect();
    let last = random.within(8, 60);
    let end = random.signs(BASE64, last);
    let secret = random.pick(&lines).clone();
    Value {
        rule: "private_key",
        text: format!("-----BEGIN {kind}-----\n{}\n{end}==\n-----END {kind}-----", lines.join("\n")),
        secret,
        names: &["key", "pem", "tls"],
        needs_name: false,
    }
}

fn jwt(random: &mut Random, alg: bool) -> String {
    let name = if alg { *random.pick(&["HS256", "RS256", "ES256", "EdDSA"]) } else { "" };
    let header = match (alg, random.below(3)) {
        (false, _) => format!("{{\"name\":\"{}\",\"n\":1}}", random.signs(LOWER, 8)),
        (_, 0) => format!("{{\"alg\":\"{name}\",\"typ\":\"JWT\"}}"),
        (_, 1) => format!("{{\"typ\":\"JWT\",\"alg\":\"{name}\"}}"),
        _ => format!("{{\"kid\":\"{}\",\"alg\":\"{name}\"}}", random.signs(HEX, 8)),
    };
    let payload = format!("{{\"sub\":\"{}\",\"exp\":{}}}", random.signs(LOWER, 9), random.number(10));
    let encode = |text: &str| base64(text.as_bytes(), BASE64URL, false);
    format!("{}.{}.{}", encode(&header), encode(&payload), random.signs(BASE64URL, 43))
}

fn base64(bytes: &[u8], signs: &[u8], padded: bool) -> String {
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            if place <= three.len() {
                out.push(char::from(signs[(bits >> (18 - 6 * place)) as usize & 63]));
            } else if padded {
                out.push('=');
            }
        }
    }
    out
}

/// Appends the digit that makes the sum of ISO/IEC 7812-1 a multiple of ten, or one that does not.
fn with_luhn(number: &str, right: bool) -> String {
    let doubled = [0, 2, 4, 6, 8, 1, 3, 5, 7, 9];
    let mut sum = 0;
    for (place, digit) in number.bytes().rev().enumerate() {
        let digit = usize::from(digit - b'0');
        sum += if place % 2 == 0 { doubled[digit] } else { digit };
    }
    format!("{number}{}", (10 - sum % 10 + usize::from(!right)) % 10)
}

/// Networks: what numbers begin with, their length, and how they are printed. Where a network's length is not the usual
/// one, only a name says that it is a card.
const NETWORKS: [(&str, usize, &[usize], bool); 27] = [
    ("4", 16, &[4, 4, 4, 4], false),
    ("4", 13, &[4, 3, 3, 3], true),
    ("4", 19, &[4, 4, 4, 4, 3], true),
    ("51", 16, &[4, 4, 4, 4], false),
    ("53", 16, &[4, 4, 4, 4], false),
    ("55", 16, &[4, 4, 4, 4], false),
    ("2221", 16, &[4, 4, 4, 4], false),
    ("2345", 16, &[4, 4, 4, 4], false),
    ("2720", 16, &[4, 4, 4, 4], false),
    ("34", 15, &[4, 6, 5], false),
    ("37", 15, &[4, 6, 5], false),
    ("6011", 16, &[4, 4, 4, 4], false),
    ("644", 16, &[4, 4, 4, 4], false),
    ("65", 16, &[4, 4, 4, 4], false),
    ("3528", 16, &[4, 4, 4, 4], false),
    ("3589", 16, &[4, 4, 4, 4], false),
    ("62", 16, &[4, 4, 4, 4], false),
    ("62", 19, &[4, 4, 4, 4, 3], false),
    ("36", 14, &[4, 6, 4], false),
    ("38", 14, &[4, 6, 4], false),
    ("300", 14, &[4, 6, 4], false),
    ("305", 14, &[4, 6, 4], false),
    ("2200", 16, &[4, 4, 4, 4], false),
    ("9792", 16, &[4, 4, 4, 4], false),
    ("607", 16, &[4, 4, 4, 4], false),
    ("5018", 16, &[4, 4, 4, 4], true),
    ("6759", 18, &[4, 4, 4, 4, 2], true),
];

fn card(random: &mut Random) -> Value {
    let (prefix, length, groups, needs_name) = *random.pick(&NETWORKS);
    let number = with_luhn(&format!("{prefix}{}", random.signs(DIGITS, length - 1 - prefix.len())), true);
    let text = match random.below(3) {
        0 => grouped(&number, groups, ' '),
        1 => grouped(&number, groups, '-'),
        _ => number,
    };
    let names: &[&str] = if needs_name {
        &["card", "card_number", "cardNumber", "credit_card", "pan", "cc"]
    } else {
        &["card", "card_number", "pan", "cc", "number", "payment", "source", "n"]
    };
    Value { rule: "card", secret: text.clone(), text, names, needs_name }
}

fn grouped(number: &str, groups: &[usize], sign: char) -> String {
    let (mut out, mut at) = (String::new(), 0);
    for group in groups {
        if at > 0 {
            out.push(sign);
        }
        out += &number[at..at + group];
        at += group;
    }
    out
}

/// SWIFT's registry: each country's account number, `n` digits, `a` capital letters, `c` either.
const ACCOUNTS: [(&str, &str); 76] = [
    ("AD", "8n12c"),
    ("AE", "19n"),
    ("AL", "8n16c"),
    ("AT", "16n"),
    ("AZ", "4a20c"),
    ("BA", "16n"),
    ("BE", "12n"),
    ("BG", "4a6n8c"),
    ("BH", "4a14c"),
    ("BR", "23n1a1c"),
    ("BY", "4c4n16c"),
    ("CH", "5n12c"),
    ("CR", "18n"),
    ("CY", "8n16c"),
    ("CZ", "20n"),
    ("DE", "18n"),
    ("DK", "14n"),
    ("DO", "4c20n"),
    ("EE", "16n"),
    ("EG", "25n"),
    ("ES", "20n"),
    ("FI", "14n"),
    ("FK", "2a12n"),
    ("FO", "14n"),
    ("FR", "10n11c2n"),
    ("GB", "4a14n"),
    ("GE", "2a16n"),
    ("GI", "4a15c"),
    ("GL", "14n"),
    ("GR", "7n16c"),
    ("GT", "24c"),
    ("HR", "17n"),
    ("HU", "24n"),
    ("IE", "4a14n"),
    ("IL", "19n"),
    ("IQ", "4a15n"),
    ("IS", "22n"),
    ("IT", "1a10n12c"),
    ("JO", "4a4n18c"),
    ("KW", "4a22c"),
    ("KZ", "3n13c"),
    ("LB", "4n20c"),
    ("LC", "4a24c"),
    ("LI", "5n12c"),
    ("LT", "16n"),
    ("LU", "3n13c"),
    ("LV", "4a13c"),
    ("LY", "21n"),
    ("MC", "10n11c2n"),
    ("MD", "20c"),
    ("ME", "18n"),
    ("MK", "3n10c2n"),
    ("MR", "23n"),
    ("MT", "4a5n18c"),
    ("MU", "4a19n3a"),
    ("NL", "4a10n"),
    ("NO", "11n"),
    ("PK", "4a16c"),
    ("PL", "24n"),
    ("PS", "4a21c"),
    ("PT", "21n"),
    ("QA", "4a21c"),
    ("RO", "4a16c"),
    ("RS", "18n"),
    ("SA", "2n18c"),
    ("SC", "4a20n3a"),
    ("SE", "20n"),
    ("SI", "15n"),
    ("SK", "20n"),
    ("SM", "1a10n12c"),
    ("ST", "21n"),
    ("SV", "4a20n"),
    ("TN", "20n"),
    ("TR", "6n16c"),
    ("UA", "6n19c"),
    ("XK", "16n"),
];

fn iban_bare(random: &mut Random, right: bool) -> String {
    let (country, form) = *random.pick(&ACCOUNTS);
    let (mut account, mut count) = (String::new(), 0);
    for sign in form.bytes() {
        match sign {
            b'0'..=b'9' => count = count * 10 + usize::from(sign - b'0'),
            sign => {
                let set: &[u8] = match sign {
                    b'n' => DIGITS,
                    b'a' => UPPER,
                    _ => b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789",
                };
                account += &random.signs(set, count);
                count = 0;
            }
        }
    }
    // The number as one of many digits, divided by hand.
    let digits: String = format!("{account}{country}00")
        .chars()
        .map(|sign| sign.to_digit(36).map(|value| value.to_string()).unwrap_or_default())
        .collect();
    let rest = digits.bytes().fold(0, |rest, digit| (rest * 10 + usize::from(digit - b'0')) % 97);
    let check = 98 - rest;
    let check = if right { check } else { (check + random.within(1, 90) - 2) % 97 + 2 };
    format!("{country}{check:02}{account}")
}

fn in_fours(text: &str) -> String {
    text.as_bytes().chunks(4).map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
}

fn iban(random: &mut Random) -> String {
    let number = iban_bare(random, true);
    if random.percent(40) { in_fours(&number) } else { number }
}

const REGIONS: [&str; 12] = [
    "110101", "310104", "440305", "510104", "330106", "420111", "610113", "210202", "350203", "650102", "120101",
    "810000",
];

fn resident(random: &mut Random, old: bool) -> String {
    let region = *random.pick(&REGIONS);
    let (year, month, day) = (random.within(1935, 2014), random.within(1, 12), random.within(1, 28));
    let serial = random.signs(DIGITS, 3);
    if old {
        return format!("{region}{:02}{month:02}{day:02}{serial}", year.min(1999) % 100);
    }
    with_mod_11(&format!("{region}{year}{month:02}{day:02}{serial}"), true)
}

/// Appends the check digit of GB 11643: each digit by its weight, the sum's rest by a table.
fn with_mod_11(number: &str, right: bool) -> String {
    let weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let sum: usize = number.bytes().zip(weights).map(|(digit, weight)| usize::from(digit - b'0') * weight).sum();
    let table = b"10X98765432";
    format!("{number}{}", char::from(table[(sum + usize::from(!right)) % 11]))
}

/// By country: with its code in several ways, and how it is dialled within.
fn phone(random: &mut Random) -> Value {
    let mut n = |count: usize| random.signs(DIGITS, count);
    let mut first = |count: usize| {
        let rest = n(count - 1);
        format!("{}{rest}", 2 + rest.len() % 7)
    };
    let (a3, b3, c4, d2) = (first(3), first(3), first(4), first(2));
    let (e2, f2, g2) = (first(2), first(2), first(2));
    let (h7, i8) = (first(7), first(8));
    let (j, k) = (first(4), first(4));
    let forms: [(&str, String, String); 12] = [
        ("+1", format!("({a3}) {b3}-{c4}"), format!("({a3}) {b3}-{c4}")),
        ("+1", format!("{a3}-{b3}-{c4}"), format!("{a3}-{b3}-{c4}")),
        ("+1", format!("{a3}.{b3}.{c4}"), format!("{a3}.{b3}.{c4}")),
        ("+44", format!("20 {j} {k}"), format!("020 {j} {k}")),
        ("+49", format!("30 {h7}"), format!("030 {h7}")),
        ("+49", format!("151 {i8}"), format!("0151 {i8}")),
        ("+33", format!("1 {d2} {e2} {f2} {g2}"), format!("01 {d2} {e2} {f2} {g2}")),
        ("+81", format!("90-{j}-{k}"), format!("090-{j}-{k}")),
        ("+55", format!("11 9{j}-{k}"), format!("(11) 9{j}-{k}")),
        ("+91", format!("98{j} {k}"), format!("098{j} {k}")),
        ("+39", format!("06 {j} {k}"), format!("06 {j} {k}")),
        ("+46", format!("70-{a3} {d2} {e2}"), format!("070-{a3} {d2} {e2}")),
    ];
    let (code, abroad, at_home) = random.pick(&forms).clone();
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    let (text, needs_name) = match random.below(5) {
        0 => (format!("{code}{}", digits(&abroad)), false),
        1 | 2 => (format!("{code} {abroad}"), false),
        3 => (at_home, true),
        _ => (digits(&at_home), true),
    };
    let names: &[&str] = &["phone", "tel", "mobile", "phoneNumber", "user_phone", "fax"];
    Value { rule: "phone", secret: text.clone(), text, names, needs_name }
}

fn address(random: &mut Random) -> String {
    let mut octet = || random.within(11, 250);
    let four = format!("{}.{}.{}.{}", octet(), octet(), octet(), octet());
    let mut part = || format!("{:x}", random.within(0x1000, 0xffff));
    let (a, b, c, d, e, f) = (part(), part(), part(), part(), part(), part());
    match random.below(6) {
        0 => format!("2001:db8:{a}:{b}:{c}:{d}:{e}:{f}"),
        1 => format!("2001:db8:{a}::{b}:{c}"),
        2 => format!("::ffff:{four}"),
        3 => format!("fe80::{a}:{b}:{c}:{d}"),
        _ => four,
    }
}

/// An id of a kind of [`IDS`].
pub fn id(kind: &'static str, random: &mut Random) -> Other {
    let hex = |random: &mut Random, count| random.signs(HEX, count);
    let uuid = |random: &mut Random| {
        let version = *random.pick(&["4", "7", "1"]);
        format!(
            "{}-{}-{version}{}-{}{}-{}",
            random.signs(HEX, 8),
            random.signs(HEX, 4),
            random.signs(HEX, 3),
            random.pick(&["8", "9", "a", "b"]),
            random.signs(HEX, 3),
            random.signs(HEX, 12)
        )
    };
    // 2015 to 2035.
    let second = |random: &mut Random| random.within(1_420_000_000, 2_050_000_000);
    let day = |random: &mut Random| (random.within(2015, 2035), random.within(1, 12), random.within(1, 28));
    let time = |random: &mut Random| (random.below(24), random.below(60), random.below(60));
    let (text, names): (String, &'static [&'static str]) = match kind {
        "trace id" => (hex(random, 32), &["trace_id", "traceId", "x-trace", "q"]),
        "span id" => (hex(random, 16), &["span_id", "parent", "q"]),
        "traceparent" => (format!("00-{}-{}-01", hex(random, 32), hex(random, 16)), &["traceparent", "trace"]),
        "UUID" => (uuid(random), &["id", "request_id", "x-request-id", "user_id", "device", "q"]),
        "UUID, capital" => (uuid(random).to_uppercase(), &["id", "deviceId", "q"]),
        "UUID without dashes" => (hex(random, 32).to_uppercase(), &["id", "guid"]),
        "ULID" => (
            format!("0{}{}", random.within(1, 7), random.signs(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ", 24)),
            &["id", "event", "q"],
        ),
        "KSUID" => (format!("2{}", random.signs(ALPHANUMERIC, 26)), &["id", "event"]),
        "ObjectId" => (hex(random, 24), &["_id", "id", "q"]),
        "nanoid" => (random.signs(BASE64URL, 21), &["id", "key2", "q"]),
        "Snowflake" => (format!("1{}", random.signs(DIGITS, 18)), &["id", "user_id", "channel", "q"]),
        "SHA-1" => (hex(random, 40), &["commit", "sha", "q"]),
        "SHA-256" => (hex(random, 64), &["digest", "sha256", "q"]),
        "SHA-256, capital" => (hex(random, 64).to_uppercase(), &["digest", "checksum"]),
        "short commit" => (hex(random, 7), &["commit", "rev"]),
        "ETag" => (format!("W/\"{}-{}\"", hex(random, 5), random.signs(BASE64URL, 27)), &["etag", "if-none-match"]),
        "seconds" => (second(random).to_string(), &["ts", "time", "t", "iat", "q", "expires"]),
        "milliseconds" => {
            (format!("{}{:03}", second(random), random.below(1000)), &["ts", "time", "_", "created", "q"])
        }
        "microseconds" => (format!("{}{}", second(random), random.signs(DIGITS, 6)), &["ts", "time", "q"]),
        "nanoseconds" => (format!("{}{}", second(random), random.signs(DIGITS, 9)), &["ts", "time", "q"]),
        "seconds with a fraction" => (format!("{}.{}", second(random), random.signs(DIGITS, 6)), &["ts", "t", "start"]),
        "date" => {
            let (year, month, day) = day(random);
            let text = match random.below(4) {
                0 => format!("{day:02}.{month:02}.{year}"),
                1 => format!("{month:02}/{day:02}/{year}"),
                2 => format!("{year}{month:02}{day:02}"),
                _ => format!("{year}-{month:02}-{day:02}"),
            };
            (text, &["date", "from", "until", "day", "q"])
        }
        "date and time" => {
            let ((year, month, day), (hour, minute, second)) = (day(random), time(random));
            let zone = *random.pick(&["Z", "+08:00", "-05:00", ".123Z", ".123456+01:00"]);
            (
                format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{zone}"),
                &["time", "created_at", "q"],
            )
        }
        "date of a log" => {
            let ((year, month, day), (hour, minute, second)) = (day(random), time(random));
            (
                format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02},{:03}", random.below(1000)),
                &["at", "note"],
            )
        }
        "date of HTTP" => {
            let ((year, _, day), (hour, minute, second)) = (day(random), time(random));
            (
                format!("Tue, {day:02} Mar {year} {hour:02}:{minute:02}:{second:02} GMT"),
                &["date", "last-modified", "expires"],
            )
        }
        "version" => (
            format!("{}.{}.{}", random.below(30), random.below(300), random.below(3000)),
            &["version", "v", "app", "q"],
        ),
        "version with a build" => (
            format!(
                "v{}.{}.{}-rc.{}+{}",
                random.below(30),
                random.below(300),
                random.below(30),
                random.below(9),
                hex(random, 7)
            ),
            &["version", "release"],
        ),
        "product version" => {
            (format!("Chrome/{}.0.0.0 Safari/537.{}", random.within(80, 140), random.below(40)), &["agent", "browser"])
        }
        "order number" => {
            (format!("ORD-{}-{}", random.within(2015, 2035), random.signs(DIGITS, 8)), &["order", "order_id", "q"])
        }
        "order number of a day" => {
            let (year, month, day) = day(random);
            (format!("{year}{month:02}{day:02}{}", random.signs(DIGITS, 8)), &["order_id", "order_no", "q"])
        }
        "invoice" => (format!("INV{}", random.signs(DIGITS, 10)), &["invoice", "q"]),
        "order of 16 digits" => (random.number(16), &["order_id", "orderId", "transaction_id", "order_number"]),
        "counter" => {
            let count = random.within(1, 9);
            (random.number(count), &["page", "count", "offset", "size", "q", "id"])
        }
        "price" => (format!("{}.{:02}", random.below(100_000), random.below(100)), &["price", "total", "amount"]),
        "coordinates" => (
            format!(
                "{}.{},{}.{}",
                random.within(1, 89),
                random.signs(DIGITS, 6),
                random.within(1, 179),
                random.signs(DIGITS, 6)
            ),
            &["at", "ll", "center"],
        ),
        "EAN-13" => (
            format!("{}{}", random.pick(&["400", "871", "690", "978"]), random.signs(DIGITS, 10)),
            &["ean", "sku", "gtin", "product_code"],
        ),
        "MAC address" => {
            let octets: Vec<String> = (0..6).map(|_| random.signs(HEX, 2)).collect();
            (octets.join(":"), &["mac", "device"])
        }
        _ => (format!("0.{}", random.signs(DIGITS, 16)), &["score", "ratio", "r"]),
    };
    Other { kind, text, names }
}

/// A near-miss of a kind of [`NEAR`].
pub fn near(kind: &'static str, random: &mut Random) -> Other {
    let (text, names): (String, &'static [&'static str]) = match kind {
        "card, wrong check digit" => {
            let (prefix, length, groups, _) = *random.pick(&NETWORKS);
            let number = with_luhn(&format!("{prefix}{}", random.signs(DIGITS, length - 1 - prefix.len())), false);
            (if random.percent(50) { grouped(&number, groups, ' ') } else { number }, &["number", "value", "n", "card"])
        }
        "card in a longer number" => (
            format!("{}{}", with_luhn(&format!("4{}", random.signs(DIGITS, 14)), true), random.signs(DIGITS, 4)),
            &["number", "n"],
        ),
        "IBAN, wrong check digits" => {
            let number = iban_bare(random, false);
            (if random.percent(50) { in_fours(&number) } else { number }, &["iban", "account", "value"])
        }
        "IBAN, wrong length" => (iban_bare(random, true) + &random.signs(DIGITS, 1), &["iban", "account"]),
        "resident id, wrong check digit" => {
            let number = resident(random, false);
            (with_mod_11(&number[..17], false), &["number", "value", "n"])
        }
        "resident id, no date" => {
            let region = *random.pick(&REGIONS);
            let (year, month, serial) = (random.within(1935, 2014), random.within(13, 99), random.signs(DIGITS, 3));
            (with_mod_11(&format!("{region}{year}{month}10{serial}"), true), &["number", "value", "n"])
        }
        "SSN, area 000" => {
            (format!("000-{:02}-{:04}", random.within(1, 99), random.within(1, 9999)), &["ssn", "value"])
        }
        "SSN, area 666" => {
            (format!("666-{:02}-{:04}", random.within(1, 99), random.within(1, 9999)), &["ssn", "value"])
        }
        "SSN, area 9xx" => (
            format!("{}-{:02}-{:04}", random.within(900, 999), random.within(1, 99), random.within(1, 9999)),
            &["ssn", "value"],
        ),
        "SSN, group 00" => {
            (format!("{:03}-00-{:04}", random.within(1, 665), random.within(1, 9999)), &["ssn", "value"])
        }
        "SSN, serial 0000" => {
            (format!("{:03}-{:02}-0000", random.within(1, 665), random.within(1, 99)), &["ssn", "value"])
        }
        "JWT without alg" => (jwt(random, false), &["state", "cursor", "value"]),
        "access key of one sign" => (format!("AKIA{}", random.signs(UPPER, 1).repeat(16)), &["key", "value"]),
        "token too short" => {
            let prefix = *random.pick(&["ghp_", "glpat-", "npm_", "AIza", "sk_live_"]);
            (format!("{prefix}{}", random.signs(ALPHANUMERIC, 9)), &["name", "value"])
        }
        "file with density" => {
            (format!("{}@{}x.png", random.signs(LOWER, 8), random.within(2, 3)), &["file", "value", "image"])
        }
        "address without a domain" => (format!("@{}", random.signs(LOWER, 8)), &["handle", "value"]),
        _ => (
            format!("{}.{}.{}.{}", random.within(256, 999), random.below(99), random.below(99), random.below(99)),
            &["value", "x"],
        ),
    };
    Other { kind, text, names }
}
