//! Places: what is found in each of them and in every encoding, what is left alone, twice, and in parts.
#![allow(clippy::arithmetic_side_effects, clippy::unwrap_used, clippy::indexing_slicing)]

use log_scrub::config::{Config, Fields, How, Kind, Pack, Secret};
use log_scrub::places::{self, Body, Why};
use log_scrub::{Findings, Rules};
use proptest::prelude::*;
use std::borrow::Cow;

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJlLWhlcmUtMTIz";

fn with(kind: Kind, except: &[&str]) -> Rules {
    Rules::new(&Config {
        packs: Some(vec![Pack::Secrets, Pack::Pii, Pack::PiiCn, Pack::Financial]),
        action: How { kind, with: "<removed>".into(), ..How::default() },
        hmac_key: Some(Secret("0123456789abcdef0123456789abcdef".into())),
        fields: Fields { except: except.iter().map(|name| (*name).into()).collect(), ..Fields::default() },
        ..Config::default()
    })
    .unwrap()
}

fn every_action() -> Vec<Rules> {
    let kinds = [Kind::Mask, Kind::Partial, Kind::Drop, Kind::Replace, Kind::Hmac];
    let mut all: Vec<_> = kinds.into_iter().map(|kind| with(kind, &[])).collect();
    all.push(with(Kind::Mask, &["cookie", "set_cookie"]));
    all
}

type Place = for<'t> fn(&Rules, &'t [u8], &mut Findings) -> Cow<'t, [u8]>;

const PLACES: [(&str, Place); 5] = [
    ("path", places::path),
    ("query", places::query),
    ("url", places::url),
    ("cookie", places::cookie),
    ("set-cookie", places::set_cookie),
];

fn clean(place: Place, text: &str) -> String {
    let rules = with(Kind::Mask, &["cookie", "set_cookie"]);
    String::from_utf8(place(&rules, text.as_bytes(), &mut Findings::default()).into_owned()).unwrap()
}

type Begin = fn(&Rules) -> Body;

const BODIES: [(&str, Begin); 4] = [
    ("json", |_| Body::json()),
    ("form", |_| Body::form()),
    ("multipart", |_| Body::multipart(b"a")),
    ("text", Body::text),
];

/// The whole in parts of these sizes, over and over.
fn pass(rules: &Rules, body: Body, text: &[u8], sizes: &[usize]) -> (Result<(), Why>, Vec<u8>, u32) {
    let (result, out, findings) = told(rules, body, text, sizes);
    (result, out, findings.total())
}

/// The same, with all that was found.
fn told(rules: &Rules, mut body: Body, text: &[u8], sizes: &[usize]) -> (Result<(), Why>, Vec<u8>, Findings) {
    let (mut out, mut findings, mut rest) = (Vec::new(), Findings::default(), text);
    for size in sizes.iter().cycle() {
        let (part, after) = rest.split_at((*size).min(rest.len()));
        body.push(rules, part, &mut out, &mut findings);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let result = body.finish(rules, &mut out, &mut findings);
    (result, out, findings)
}

fn json(text: &str) -> Result<String, Why> {
    let (result, out, _) = pass(&with(Kind::Mask, &[]), Body::json(), text.as_bytes(), &[usize::MAX]);
    result.map(|()| String::from_utf8(out).unwrap())
}

fn form(text: &str) -> String {
    let (result, out, _) = pass(&with(Kind::Mask, &[]), Body::form(), text.as_bytes(), &[usize::MAX]);
    result.unwrap();
    String::from_utf8(out).unwrap()
}

fn encoded(text: &str, every: bool) -> String {
    text.bytes()
        .map(|byte| {
            let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
            if plain && !every { char::from(byte).to_string() } else { format!("%{byte:02x}") }
        })
        .collect()
}

#[test]
fn paths() {
    for (text, expected) in [
        ("/users/bob@example.com/orders", "/users/[email]/orders"),
        ("/users/bob%40example.com", "/users/[email]"),
        ("/users/bob%2540example.com/%7e", "/users/[email]/%7e"),
        ("/a b%2Fc/4111%201111%201111%201111/?", "/a b%2Fc/[card]/?"),
        ("/x%2fbob%40example.com%2fy", "/x%2F[email]%2Fy"),
        ("/list;password=a;b/next", "/list;password=[field]/next"),
        ("/token/refresh", "/token/refresh"),
        ("/api/v1/tel/%252B49%2520151%252026223410", "/api/v1/tel/[phone]"),
        ("//a//%zz/%", "//a//%zz/%"),
    ] {
        assert_eq!(clean(places::path, text), expected, "{text}");
    }
}

#[test]
fn queries() {
    for (text, expected) in [
        ("a=1&mail=bob%40example.com&b=%7e+", "a=1&mail=[email]&b=%7e+"),
        ("mail=bob+tag@example.com", "mail=[email]"),
        ("card=4111+1111+1111+1111&x", "card=[card]&x"),
        ("card=4111%2B1111%2B1111%2B1111", "card=[card]"),
        ("card=4111%252D1111%252D1111%252D1111", "card=[card]"),
        ("Pass%77ord=hunter2&a=b", "Pass%77ord=[field]&a=b"),
        ("pass%2577ord=hunter2", "pass%2577ord=[field]"),
        ("user[password]=a&tokens[]=1&token[]=2", "user[password]=[field]&tokens[]=1&token[]=[field]"),
        ("a=1;password=b;c&d=2", "a=1;password=[field]&d=2"),
        ("password=&token", "password=&token"),
        ("bob@example.com=1", "[email]=1"),
        ("&&=&a==&;", "&&=&a==&;"),
        ("next=https%3A%2F%2Fx.example%2F%3Ftoken%3Dabc", "next=https://x.example/%3Ftoken%3D[field]"),
        ("next=/x?q=a%20b%26token=abc", "next=/x%3Fq%3Da%20b%26token%3D[field]"),
        ("next=/x?d=%7B%7D%26token=abc", "next=/x%3Fd%3D%7B%7D%26token%3D[field]"),
        ("state=a%3D1%26token%3Dabc", "state=a%3D1%26token%3D[field]"),
        ("q=%7B%22password%22%3A%22x%22%7D", "q=%7B%22password%22:%22[field]%22%7D"),
        ("authorization=Bearer+abc", "authorization=Bearer+[field]"),
        ("return=first=last@example.com", "return=[email]"),
        // The reading in which most is covered.
        ("mobile=%2B49+30+8156067", "mobile=[phone]"),
        ("tel=030+8156067&a=b+c", "tel=[phone]&a=b+c"),
        ("tel=%252B49%2520151%252026223410", "tel=[phone]"),
        ("tel=%252B49%2B30%2B8156067", "tel=[phone]"),
        ("mail=%22ann%20b%22@example.com,bob+tag@example.com", "mail=[email],[email]"),
        (
            "mail=%22ann+b%22@example.com&u=%E7%94%A8%E6%88%B7@%E4%BE%8B%E5%AD%90.%E5%85%AC%E5%8F%B8",
            "mail=[email]&u=[email]",
        ),
    ] {
        assert_eq!(clean(places::query, text), expected, "{text}");
    }
}

#[test]
fn urls() {
    for (text, expected) in [
        ("https://example.com/a?b=c#d", "https://example.com/a?b=c#d"),
        ("https://bob:hunter2@example.com:8443/a", "https://[field]@example.com:8443/a"),
        ("//bob@example.com", "//[field]@example.com"),
        ("https://a@b@example.com", "https://[field]@example.com"),
        ("/back?to=bob%40example.com", "/back?to=[email]"),
        ("https://app.example/cb#access_token=abc&state=1", "https://app.example/cb#access_token=[field]&state=1"),
        ("https://app.example/#/bob@example.com?token=abc", "https://app.example/#/[email]?token=[field]"),
        ("https://app.example/#token=a?b=1", "https://app.example/#token=[field]"),
        ("mailto:bob@example.com?subject=hi", "mailto:[email]?subject=hi"),
        ("about:blank", "about:blank"),
        ("", ""),
    ] {
        assert_eq!(clean(places::url, text), expected, "{text}");
    }
    let rules = Rules::new(&Config { fields: Fields { usual: false, ..Fields::default() }, ..Config::default() });
    let out = places::url(&rules.unwrap(), b"ftp://bob:hunter2@example.com/", &mut Findings::default()).into_owned();
    assert_eq!(String::from_utf8_lossy(&out), "ftp://[UNSCANNED]@example.com/");
}

#[test]
fn cookies() {
    let text = "theme=dark;  mail=\"bob%40example.com\"; session_id=abc; x; =";
    assert_eq!(clean(places::cookie, text), "theme=dark;  mail=\"[email]\"; session_id=[field]; x; =");
    let set = "id=\"bob@example.com\"; Path=/; Expires=Wed, 21 Oct 2026 07:28:00 GMT; HttpOnly";
    let expected = "id=\"[email]\"; Path=/; Expires=Wed, 21 Oct 2026 07:28:00 GMT; HttpOnly";
    assert_eq!(clean(places::set_cookie, set), expected);
    let rules = with(Kind::Mask, &[]);
    let all = |place: Place, text: &str| {
        String::from_utf8(place(&rules, text.as_bytes(), &mut Findings::default()).into_owned()).unwrap()
    };
    assert_eq!(all(places::cookie, "a=1; b = \"2\";c="), "a=[field]; b = \"[field]\";c=");
    assert_eq!(all(places::set_cookie, "a=1; Path=/; Secure"), "a=[field]; Path=/; Secure");
}

#[test]
fn forms() {
    assert_eq!(form("name=Bob&password=hunter2&mail=bob%40example.com"), "name=Bob&password=[field]&mail=[email]");
    let long = "x".repeat(70_000);
    assert_eq!(form(&format!("a={long}&password={long}&{long}&b=1")), "a=[UNSCANNED]&password=[field]&[UNSCANNED]&b=1");
    assert_eq!(
        form("a=%fcx&password=%ff&%ff=x&%c3%bc=%c3%bc"),
        "a=[UNSCANNED]&password=[field]&[UNSCANNED]&%c3%bc=%c3%bc"
    );
    let rules = with(Kind::Mask, &[]);
    for text in [b"a=\xfc&b=1".as_slice(), b"a=1&b=\xc3", b"\xff"] {
        assert_eq!(pass(&rules, Body::form(), text, &[1]).0, Err(Why::Encoding));
        assert_eq!(pass(&rules, Body::form(), text, &[9]).0, Err(Why::Encoding));
    }
    assert_eq!(pass(&rules, Body::form(), "a=ü".as_bytes(), &[1]).0, Ok(()));
    let fits = format!("a={}&b=1", "x".repeat((64 << 10) - 2));
    assert_eq!(form(&fits), fits);
}

#[test]
fn json_values() {
    for (text, expected) in [
        (" { } ", " { } "),
        ("", ""),
        (
            r#"{"mail": "bob@example.com", "n": 1.5e3, "t": [true, null]}"#,
            r#"{"mail": "[email]", "n": 1.5e3, "t": [true, null]}"#,
        ),
        (r#"{"\u0070assword":"x","a":"\u00e9\/"}"#, r#"{"\u0070assword":"[field]","a":"\u00e9\/"}"#),
        (r#"{"card":4111111111111111,"pin":1234}"#, r#"{"card":"[card]","pin":"[field]"}"#),
        (
            r#"{"secret":{"a":["x",1,{"b":"y"}],"c":null},"d":"z"}"#,
            r#"{"secret":{"a":["[field]","[field]",{"b":"[field]"}],"c":null},"d":"z"}"#,
        ),
        (r#"{"bob@example.com":1}"#, r#"{"[email]":1}"#),
        (r#"["bob\u0040example.com\n\ud83d\ude00"]"#, "[\"[email]\\n\u{1F600}\"]"),
        (
            r#"{"a":"{\"password\":\"x\",\"b\":\"{\\\"token\\\":1}\"}"}"#,
            r#"{"a":"{\"password\":\"[field]\",\"b\":\"{\\\"token\\\":\\\"[field]\\\"}\"}"}"#,
        ),
        (r#"{"url":"https://x.example/?token=abc&a=1"}"#, r#"{"url":"https://x.example/?token=[field]&a=1"}"#),
        // Paths and words that are percent-encoded.
        (r#"{"path":"/users/bob%40example.com"}"#, r#"{"path":"/users/[email]"}"#),
        (r#"{"u":"bob%40example.com","v":["%62ob\u002540example.com"]}"#, r#"{"u":"[email]","v":["[email]"]}"#),
        (r#"{"tel":"%2B49%2030%208156067","u":"bob%2540example.com"}"#, r#"{"tel":"[phone]","u":"[email]"}"#),
        (
            r#"{"u":"see bob%40example.com","n":"100%","m":"5%20 %zz"}"#,
            r#"{"u":"see [email]","n":"100%","m":"5%20 %zz"}"#,
        ),
        (r#"{"u":"/a%20b/%zz","v":"%7ebob"}"#, r#"{"u":"/a%20b/%zz","v":"%7ebob"}"#),
        ("{\"a\":1}\n{\"password\":\"x\"}\n", "{\"a\":1}\n{\"password\":\"[field]\"}\n"),
        (r#"{"a":"[1] 4111 1111 1111 1111"}"#, r#"{"a":"[1] [card]"}"#),
        (r#"["a\\","b\"",{"c\\":"\\\""}]"#, r#"["a\\","b\"",{"c\\":"\\\""}]"#),
        (r#"["\\\"bob@example.com\\"]"#, r#"["\\\"[email]\\"]"#),
        ("-0.5E+7", "-0.5E+7"),
    ] {
        assert_eq!(json(text).as_deref(), Ok(expected), "{text}");
    }
    for text in [
        "{",
        "[1,]",
        "{\"a\"}",
        "{,}",
        "[1 2]",
        "01",
        "1.",
        "+1",
        "tru",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\n\"",
        "1 2",
        "{} 1",
        "]",
        "{]",
        "[}",
        "{\"a\":1,}",
        "{1:2}",
        "nul l",
        "a@b",
        "'a'",
    ] {
        assert_eq!(json(text), Err(Why::Broken), "{text}");
    }
    assert_eq!(json(&"[".repeat(100_000)), Err(Why::Deep));
    assert_eq!(json(&"1".repeat(100_000)), Err(Why::Long));
    let (result, ..) = pass(&with(Kind::Mask, &[]), Body::json(), b"\"\xff\"", &[9]);
    assert_eq!(result, Err(Why::Encoding));
    let (result, ..) = pass(&with(Kind::Mask, &[]), Body::text(&with(Kind::Mask, &[])), b"a\xc3", &[9]);
    assert_eq!(result, Err(Why::Encoding));
}

#[test]
fn long_strings() {
    let long = "ab, \\u00e9 ".repeat(20_000);
    let text = format!(r#"{{"a":"{long}bob@example.com {long}","password":"{long}","{long}":1,"b":"{{{long}"}}"#);
    let plain = long.replace("\\u00e9", "é");
    let expected =
        format!(r#"{{"a":"{plain}[email] {plain}","password":"[field]","[UNSCANNED]":1,"b":"[UNSCANNED]"}}"#);
    assert!(json(&text).unwrap() == expected);
    let rules = with(Kind::Mask, &[]);
    for sizes in [[1, 1], [4095, 3], [65_536, 1], [7, 70_000]] {
        let (result, out, found) = pass(&rules, Body::json(), text.as_bytes(), &sizes);
        assert!(result.is_ok() && out == expected.as_bytes() && found == 2, "{sizes:?}");
    }
}

/// One that is longer than is held, and would be decoded.
#[test]
fn long_strings_that_are_encoded() {
    let long = "ab".repeat(35_000);
    for (text, expected, unscanned) in [
        (format!("https://x.example/?mail=bob%40example.com&x={long}"), "[UNSCANNED]", 1),
        (format!("/users/bob%40example.com/{long}"), "[UNSCANNED]", 1),
        (format!("bob%40example.com,{long}"), "[UNSCANNED]", 1),
        (format!("a=b&password=hunter2&c={long}"), "[UNSCANNED]", 1),
        (format!("{long}, 100% of a=b"), &*format!("{long}, 100% of a=b"), 0),
        (format!("{long}=="), &*format!("{long}=="), 0),
    ] {
        let (text, expected) = (format!(r#"{{"a":"{text}","b":1}}"#), format!(r#"{{"a":"{expected}","b":1}}"#));
        let rules = with(Kind::Mask, &[]);
        for sizes in [[usize::MAX, 1], [4095, 3], [65_536, 1], [7, 70_000]] {
            let (result, out, findings) = told(&rules, Body::json(), text.as_bytes(), &sizes);
            result.unwrap();
            let start: String = text.chars().take(60).collect();
            assert!(
                out == expected.as_bytes(),
                "{start} in {sizes:?}: {}",
                String::from_utf8_lossy(&out[out.len().saturating_sub(80)..])
            );
            assert_eq!(findings.unscanned(), unscanned, "{start} in {sizes:?}");
        }
    }
}

#[test]
fn headers_that_are_encoded() {
    let rules = with(Kind::Mask, &[]);
    for (name, value, expected) in [
        ("x-path", "/users/bob%40example.com", "/users/[email]"),
        ("x-user", "bob%40example.com", "[email]"),
        ("x-phone", "%2B49%2030%208156067", "[phone]"),
        ("x-note", "see bob%40example.com there", "see [email] there"),
        ("x-note", "100%25 and 5%20", "100%25 and 5%20"),
    ] {
        let clean = places::Header::new(&rules, name).clean(&rules, value.as_bytes(), &mut Findings::default());
        assert_eq!(String::from_utf8_lossy(&clean.unwrap()), expected, "{name}: {value}");
    }
}

/// What must not be in any output, the ways it may be written, and where.
#[test]
fn canaries() {
    let secrets = ["4111 1111 1111 1111", "4111111111111111", "canary@example.com", JWT];
    let in_url = |text: &str| {
        let once = encoded(text, false);
        vec![
            text.to_owned(),
            once.clone(),
            encoded(text, true),
            encoded(&once, false),
            encoded(&encoded(text, true), false),
            once.replace("%20", "+"),
        ]
    };
    let in_json = |text: &str| {
        let escaped: String = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        let nested = format!("{{\\\"a\\\":[\\\"{text}\\\"]}}");
        let deeper = format!("[\\\"{{\\\\\\\"a\\\\\\\":\\\\\\\"{text}\\\\\\\"}}\\\"]");
        vec![text.to_owned(), escaped, nested, deeper, format!("é {text} \\\"")]
    };
    let shown = |out: &[u8]| {
        // Readable whatever the encoding.
        let mut text = String::from_utf8_lossy(out).into_owned();
        for _ in 0..3 {
            let mut plain = Vec::new();
            let mut rest = text.as_bytes();
            while let Some((byte, after)) = rest.split_first() {
                if *byte == b'%'
                    && after.len() > 1
                    && let Ok(code) = u8::from_str_radix(&String::from_utf8_lossy(&after[..2]), 16)
                {
                    plain.push(code);
                    rest = &after[2..];
                } else if rest.starts_with(b"\\u")
                    && rest.len() > 5
                    && let Ok(code) = u8::from_str_radix(&String::from_utf8_lossy(&rest[2..6]), 16)
                {
                    plain.push(code);
                    rest = &rest[6..];
                } else {
                    plain.push(*byte);
                    rest = after;
                }
            }
            text = String::from_utf8_lossy(&plain).replace('+', " ");
        }
        text
    };
    for rules in &every_action() {
        let check = |place: &str, text: &str, out: &[u8]| {
            let shown = shown(out);
            for part in ["4111 1111", "411111111111", "canary@", "c2lnbmF0", "eyJzdW", "hunter2"] {
                assert!(!shown.contains(part), "{place}: {text}\nbecame {}", String::from_utf8_lossy(out));
            }
        };
        for secret in secrets {
            for text in in_url(secret) {
                for (place, scrub) in PLACES {
                    let texts = match place {
                        "path" => vec![format!("/a/{text}/b"), text.clone(), format!("/x{}{text}%2Fy", "%2F")],
                        "query" => {
                            vec![format!("a={text}&b=1"), text.clone(), format!("{text}=1"), format!("x;a={text};y")]
                        }
                        "url" => vec![
                            format!("https://a.example/{text}/b?c"),
                            format!("https://a.example/?a={text}#x"),
                            format!("https://a.example/#{text}"),
                            format!("https://a.example/#/{text}?a"),
                            format!("https://{text}@a.example/"),
                            format!("https://a.example/?u={}", encoded(&format!("http://b.example/?c={text}"), false)),
                        ],
                        _ => vec![
                            format!("a={text}"),
                            format!("a=\"{text}\"; Path=/"),
                            format!("a=b; Path={text}; c={text}"),
                        ],
                    };
                    for text in &texts {
                        check(place, text, &scrub(rules, text.as_bytes(), &mut Findings::default()));
                    }
                }
                let text = format!("x=1&a={text}");
                check("form", &text, &pass(rules, Body::form(), text.as_bytes(), &[3]).1);
            }
            for text in in_json(secret) {
                for text in [
                    format!("{{\"a\":\"{text}\"}}"),
                    format!("[[\"{text}\"]]"),
                    format!("{{\"{text}\":1}}"),
                    format!("\"{text}\""),
                ] {
                    let (result, out, _) = pass(rules, Body::json(), text.as_bytes(), &[5]);
                    assert_eq!(result, Ok(()), "{text}");
                    check("json", &text, &out);
                }
            }
        }
        for name in ["password", "Pass-Word", "%70assword", "%2570assword", "user[password]"] {
            for value in ["hunter2", "%68unter2", "%2568unter2", "hunter2;x=1"] {
                let pair = format!("{name}={value}");
                check(
                    "query",
                    &pair,
                    &places::query(rules, format!("a=1&{pair}").as_bytes(), &mut Findings::default()),
                );
                check("path", &pair, &places::path(rules, format!("/a;{pair}").as_bytes(), &mut Findings::default()));
                check(
                    "cookie",
                    &pair,
                    &places::cookie(rules, pair.split(';').next().unwrap().as_bytes(), &mut Findings::default()),
                );
                check("form", &pair, &pass(rules, Body::form(), pair.as_bytes(), &[1]).1);
            }
        }
    }
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400);
    ProptestConfig { failure_persistence: None, max_shrink_iters: 4000, ..ProptestConfig::with_cases(cases) }
}

/// Anything that means something to a place, side by side.
fn soup() -> BoxedStrategy<Vec<u8>> {
    let sign = prop::sample::select(vec![
        "/", "?", "#", "&", "=", ";", ":", "//", "@", "%", "+", " ", "\"", "\\", "{", "}", "[", "]", ",", "\n", "%2B",
        "%25", "%3D", "%26", "%2F", "%3F", "%22", "%7B", "\\\"", "\\\\", "\\u0040", "\\ud83d", "\\ude00", "é", "; ",
        "\":\"", "\",\"", "{\"", "\"}",
    ]);
    let word = prop::sample::select(vec![
        "password",
        "token",
        "a",
        "bob@example.com",
        "4111 1111 1111 1111",
        "4111111111111111",
        JWT,
        "Bearer ",
        "https://",
        "4111%201111%201111%201111",
        "bob%2540example.com",
        "12",
        "true",
        "138 0013 8000",
        "+4915112345678",
        "session_id",
        "%41",
        "[card]",
        "123-45-6789",
        "10.1.2.3",
        "Basic ",
        "UNSCANNED",
    ]);
    let part = prop_oneof![
        6 => sign.prop_map(|text| text.as_bytes().to_vec()),
        4 => word.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(part, 0..16).prop_map(|parts| parts.concat()).boxed()
}

/// JSON that is whole.
fn document() -> BoxedStrategy<String> {
    let text = prop::sample::select(vec![
        "a",
        "password",
        "token",
        "bob@example.com",
        "4111 1111 1111 1111",
        "\\u0062ob@example.com",
        "\\n\\/",
        "é",
        "",
        "{\\\"password\\\":\\\"x\\\"}",
        "[1,{}]",
        "https://x.example/?token=a",
        "a=1&pin=2",
        "\\ud83d\\ude00",
        "\\ud800",
        JWT,
    ])
    .prop_map(|text| format!("\"{text}\""));
    let number = prop::sample::select(vec!["0", "-1.5e+9", "4111111111111111", "13800138000", "true", "null"]);
    let leaf = prop_oneof![text.clone(), number.prop_map(str::to_owned)];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        let pair = (text.clone(), inner.clone()).prop_map(|(name, value)| format!("{name} : {value}"));
        prop_oneof![
            prop::collection::vec(pair, 0..5).prop_map(|all| format!("{{{}}}", all.join(", "))),
            prop::collection::vec(inner, 0..5).prop_map(|all| format!("[ {} ]", all.join(" ,"))),
        ]
    })
    .boxed()
}

#[test]
fn a_second_time_changes_nothing() {
    let rules = every_action();
    proptest!(config(), |(text in soup())| {
        for rules in &rules {
            for (name, place) in PLACES {
                let once = place(rules, &text, &mut Findings::default()).into_owned();
                let twice = place(rules, &once, &mut Findings::default()).into_owned();
                prop_assert!(once == twice, "{}: {:?}\nbecame {:?}\nthen   {:?}", name, String::from_utf8_lossy(&text), String::from_utf8_lossy(&once), String::from_utf8_lossy(&twice));
            }
            // Plain text is the engine's own matter.
                for (name, body) in BODIES.into_iter().filter(|(name, _)| *name != "text") {
                let (result, once, _) = pass(rules, body(rules), &text, &[usize::MAX]);
                if result.is_ok() {
                    let (_, twice, _) = pass(rules, body(rules), &once, &[usize::MAX]);
                    prop_assert!(once == twice, "{}: {:?}\nbecame {:?}\nthen   {:?}", name, String::from_utf8_lossy(&text), String::from_utf8_lossy(&once), String::from_utf8_lossy(&twice));
                }
            }
        }
    });
}

/// With what was found dropped, what is left of a name may be a field's.
#[test]
fn names_that_become_fields() {
    let rules = with(Kind::Drop, &[]);
    let out = places::query(&rules, b"token[4111111111111111]=x&a=b", &mut Findings::default()).into_owned();
    assert_eq!(String::from_utf8_lossy(&out), "token[[]]=&a=b");
    let (_, out, _) = pass(&rules, Body::json(), br#"{"token[4111111111111111]":"x"}"#, &[usize::MAX]);
    assert_eq!(String::from_utf8_lossy(&out), r#"{"token[[]]":""}"#);
}

#[test]
fn borders_do_not_matter() {
    let rules = every_action();
    let text = prop_oneof![soup(), document().prop_map(String::into_bytes)];
    proptest!(config(), |(text in text, sizes in prop::collection::vec(1..40_usize, 1..5))| {
        for rules in &rules {
            for (name, body) in BODIES {
                let whole = pass(rules, body(rules), &text, &[usize::MAX]);
                let parts = pass(rules, body(rules), &text, &sizes);
                // What is written of a body that failed is not used.
                let same = if whole.0.is_ok() { whole == parts } else { whole.0 == parts.0 };
                prop_assert!(same, "{}: {:?}\nbecame {:?}\nthen   {:?}", name, String::from_utf8_lossy(&text), whole, parts);
            }
        }
    });
}

#[test]
fn json_stays_json() {
    let rules = every_action();
    proptest!(config(), |(text in document())| {
        for rules in &rules {
            let (result, once, found) = pass(rules, Body::json(), text.as_bytes(), &[usize::MAX]);
            prop_assert_eq!(result, Ok(()), "{}", &text);
            prop_assert!(found > 0 || once == text.as_bytes(), "{} became {}", &text, String::from_utf8_lossy(&once));
            let (result, twice, _) = pass(rules, Body::json(), &once, &[1]);
            prop_assert_eq!(result, Ok(()), "{} became {}", &text, String::from_utf8_lossy(&once));
            prop_assert!(once == twice, "{}\nbecame {}\nthen   {}", &text, String::from_utf8_lossy(&once), String::from_utf8_lossy(&twice));
        }
    });
}

#[test]
fn what_is_clean_is_untouched() {
    let rules = with(Kind::Mask, &["cookie", "set_cookie"]);
    let word = "([a-z]{1,8}|[0-9]{1,5}|%[4-7][0-9a-e]|%20|%2F|%25|%zz|[+~!$'()*,.:@-]|é){0,6}";
    let text = proptest::string::string_regex(&format!("(/?{word}[=&;?#/]{{0,2}}){{0,6}}")).unwrap();
    proptest!(config(), |(text in text)| {
        for (name, place) in PLACES {
            let mut findings = Findings::default();
            let out = place(&rules, text.as_bytes(), &mut findings);
            prop_assert!(findings.total() > 0 || *out == *text.as_bytes(), "{}: {} became {}", name, &text, String::from_utf8_lossy(&out));
        }
    });
}

fn multipart(text: &[u8]) -> Result<String, Why> {
    let rules = with(Kind::Mask, &[]);
    let (result, out, found) = pass(&rules, Body::multipart(b"X-b"), text, &[usize::MAX]);
    for sizes in [[1, 1], [2, 3], [7, 1], [5, 8192]] {
        let parts = pass(&rules, Body::multipart(b"X-b"), text, &sizes);
        assert_eq!(parts.0, result, "{}", String::from_utf8_lossy(text));
        assert!(result.is_err() || (parts.1 == out && parts.2 == found), "{}", String::from_utf8_lossy(text));
    }
    result.map(|()| {
        let (again, twice, _) = pass(&rules, Body::multipart(b"X-b"), &out, &[usize::MAX]);
        assert_eq!((again, String::from_utf8_lossy(&twice)), (Ok(()), String::from_utf8_lossy(&out)));
        String::from_utf8(out).unwrap()
    })
}

/// One part with this head and this value.
fn part(head: &str, value: &str) -> String {
    format!("--X-b\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n--X-b--\r\n")
}

#[test]
fn multipart_forms() {
    let all = "--X-b\r\nContent-Disposition: form-data; name=\"mail\"\r\n\r\nbob@example.com\r\n\
        --X-b\r\ncontent-disposition:form-data;name=password\r\nX-Api-Key: abc\r\n\r\nhunter2\r\n\
        --X-b \t\r\nContent-Type: image/png\r\nContent-Disposition: form-data; name=\"f\"; filename=\"bob@example.com.png\"\r\n\r\n\x00\r\n-\r\n--X\r\n\
        --X-b\nContent-Disposition: form-data; name=\"n\"\n\na\nb\n--X-b--";
    let clean = "--X-b\r\nContent-Disposition: form-data; name=\"mail\"\r\n\r\n[email]\r\n\
        --X-b\r\ncontent-disposition:form-data;name=password\r\nX-Api-Key: [field]\r\n\r\n[field]\r\n\
        --X-b \t\r\nContent-Type: image/png\r\nContent-Disposition: form-data; name=\"f\"; filename=\"[email].png\"\r\n\r\n[UNSCANNED]\r\n\
        --X-b\nContent-Disposition: form-data; name=\"n\"\n\na\nb\n--X-b--";
    assert_eq!(multipart(all.as_bytes()).as_deref(), Ok(clean));
    for (head, value, clean_head, clean_value) in [
        ("name=\"a\"", "x\r\n--X-\r\n --X-b\r\n--X-bc", "name=\"a\"", "x\r\n--X-\r\n --X-b\r\n--X-bc"),
        ("name=\"a\"", "", "name=\"a\"", ""),
        ("name=\"a\"", "\r\n", "name=\"a\"", "\r\n"),
        ("name=\"user[password]\"", "a\r\nb", "name=\"user[password]\"", "[field]"),
        ("name=\"pass%77ord\"", "x", "name=\"pass%77ord\"", "[field]"),
        ("name=\"pass\\\"word\"", "x", "name=\"pass\\\"word\"", "x"),
        ("name=\"bob@example.com\"", "x", "name=\"[email]\"", "x"),
        ("name=bob@example.com", "x", "name=\"[email]\"", "x"),
        ("name=\"a;b\"; x=\"\\\\\"", "bob%40example.com", "name=\"a;b\"; x=\"\\\\\"", "[email]"),
        ("name=a; filename=\"\"", "", "name=a; filename=\"\"", ""),
        ("name=a; filename=b", "text", "name=a; filename=b", "[UNSCANNED]"),
        ("name=a; filename*=UTF-8''b%20c", "x", "name=a; filename*=UTF-8''b%20c", "[UNSCANNED]"),
        ("name=a; filename*=utf-8'en'bob%40example.com", "x", "name=a; filename*=utf-8'en'[email]", "[UNSCANNED]"),
        ("name=a; filename*=ISO-8859-1''bob%40example.com", "x", "name=a; filename*=UTF-8''[UNSCANNED]", "[UNSCANNED]"),
        ("filename=a", "x", "filename=a", "[UNSCANNED]"),
        ("name=token; filename=b", "text", "name=token; filename=b", "[field]"),
        (
            "name=a\r\nContent-Type: text/plain; charset=UTF-8",
            "bob@example.com",
            "name=a\r\nContent-Type: text/plain; charset=UTF-8",
            "[email]",
        ),
        (
            "name=a\r\nContent-Type: text/plain; charset=utf-16",
            "x",
            "name=a\r\nContent-Type: text/plain; charset=utf-16",
            "[UNSCANNED]",
        ),
        ("name=a\r\nContent-Type: application/json", "{}", "name=a\r\nContent-Type: application/json", "[UNSCANNED]"),
        (
            "name=a\r\nContent-Transfer-Encoding: base64",
            "eA==",
            "name=a\r\nContent-Transfer-Encoding: base64",
            "[UNSCANNED]",
        ),
        ("name=a\r\nX-From: bob@example.com", "1", "name=a\r\nX-From: [email]", "1"),
        ("name=a", "{\"password\":\"x\"}", "name=a", "{\"password\":\"[field]\"}"),
    ] {
        assert_eq!(multipart(part(head, value).as_bytes()), Ok(part(clean_head, clean_value)), "{head}: {value}");
    }
    // An empty line is the end of a head and of no value.
    let short = "\r\n--X-b\r\nContent-Disposition: form-data; name=a\r\n\r\n--X-b--";
    assert_eq!(multipart(short.as_bytes()).as_deref(), Ok(short));
    assert_eq!(multipart(b"--X-b--\r\n").as_deref(), Ok("--X-b--\r\n"));
    let long = "ab, ".repeat(20_000);
    for (name, expected) in [("a", "[UNSCANNED]"), ("token", "[field]")] {
        let head = format!("name={name}");
        assert_eq!(multipart(part(&head, &long).as_bytes()), Ok(part(&head, expected)));
    }
    let latin = [part("name=a", "").strip_suffix("\r\n--X-b--\r\n").unwrap().as_bytes(), b"\xfc\r\n--X-b--"].concat();
    assert!(multipart(&latin).unwrap().contains("\r\n\r\n[UNSCANNED]\r\n"));
}

#[test]
fn multipart_forms_that_are_broken() {
    for text in [
        "",
        "--X-b",
        "--X-b\r\n",
        "--X-b-\r\n",
        "--X-c\r\n",
        "hello\r\n--X-b--",
        "--X-b--\r\nhello",
        "--X-b\r\nbad\r\n\r\nx\r\n--X-b--",
        "--X-b\r\n folded: x\r\n\r\nx\r\n--X-b--",
        "--X-b\r\nContent-Disposition: form-data; name=a\r\n\r\nx",
        &part("name=\"a", "x"),
        &part("name=a; name=b", "x"),
        &part("name", "x"),
        &part("name=a\r\nContent-Disposition: form-data; name=password", "x"),
        &part("name=a; filename*=bob@example.com", "x"),
        &part("name=a; filename*=UTF-8'bob@example.com'x", "x"),
    ] {
        assert_eq!(multipart(text.as_bytes()), Err(Why::Broken), "{text}");
    }
    assert_eq!(multipart(part(&format!("name={}", "a".repeat(9000)), "x").as_bytes()), Err(Why::Long));
    let latin = [b"--X-b\r\nA: \xfc".as_slice(), b"\r\n\r\nx\r\n--X-b--"].concat();
    assert_eq!(multipart(&latin), Err(Why::Encoding));
    let rules = with(Kind::Mask, &[]);
    for boundary in ["", "a\r\nb", "a ", &"a".repeat(71)] {
        let text = format!("--{boundary}--");
        assert_eq!(pass(&rules, Body::multipart(boundary.as_bytes()), text.as_bytes(), &[9]).0, Err(Why::Broken));
    }
}

/// Anything in and around parts.
#[test]
fn multipart_soup() {
    let rules = every_action();
    let sign = prop::sample::select(vec![
        "--X-b\r\n",
        "--X-b",
        "--X-b--",
        "\r\n",
        "\n",
        "\r",
        "-",
        "Content-Disposition: form-data; name=\"a\"",
        "name=password",
        "; ",
        "\"",
        "filename=",
        "\r\n\r\n",
        "\r\n--X-b\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\n",
        "\r\n--X-b--\r\n",
        "bob@example.com",
        "4111 1111 1111 1111",
        "x",
        "é",
        "%40",
        "hunter2",
    ]);
    let begin = "--X-b\r\nContent-Disposition: form-data; name=a\r\n\r\n";
    proptest!(config(), |(parts in prop::collection::vec(sign, 0..14), begins: bool, sizes in prop::collection::vec(1..40_usize, 1..5))| {
        let text = format!("{}{}", if begins { begin } else { "" }, parts.concat());
        for rules in &rules {
            let whole = pass(rules, Body::multipart(b"X-b"), text.as_bytes(), &[usize::MAX]);
            let cut = pass(rules, Body::multipart(b"X-b"), text.as_bytes(), &sizes);
            prop_assert_eq!(&whole.0, &cut.0, "{:?}", &text);
            if whole.0.is_ok() {
                prop_assert!(whole == cut, "{:?}: {:?}\n{:?}", &text, &whole, &cut);
                let twice = pass(rules, Body::multipart(b"X-b"), &whole.1, &[usize::MAX]);
                prop_assert_eq!(String::from_utf8_lossy(&twice.1), String::from_utf8_lossy(&whole.1), "{:?}", &text);
            }
        }
    });
}

fn text(text: &str) -> String {
    let (rules, mut findings) = (with(Kind::Mask, &[]), Findings::default());
    let out = places::text(&rules, "", text.as_bytes(), &mut findings).into_owned();
    assert_eq!(out == text.as_bytes(), findings.total() == 0, "{text}");
    String::from_utf8(out).unwrap()
}

#[test]
fn texts() {
    for (given, expected) in [
        ("password=hunter2 and more", "password=[field] and more"),
        ("password: \"hunter2\", user: bob", "password: \"[field]\", user: bob"),
        ("password = 'it\\'s me' x", "password = '[field]' x"),
        ("api_key => x1, b => 2", "api_key => [field], b => 2"),
        ("token := `x`", "token := `[field]`"),
        ("<password>x y</password><a>b</a>", "<password>[field]</password><a>b</a>"),
        ("<ns:token type=\"a\"> x </ns:token>", "<ns:token type=\"a\"> [field] </ns:token>"),
        ("<secret><![CDATA[a<b]]></secret>", "<secret><![CDATA[[field]]]></secret>"),
        ("curl --token abc --user x", "curl --token [field] --user x"),
        ("curl --token=abc -v", "curl --token=[field] -v"),
        ("Authorization: Bearer abc\r\nHost: a", "Authorization: Bearer [field]\r\nHost: a"),
        ("curl -H 'authorization: token abc' x", "curl -H 'authorization: token [field]' x"),
        ("Cookie: a=1; b=2\nX: y", "Cookie: a=[field]; b=[field]\nX: y"),
        ("Set-Cookie: a=1; Path=/\nX: y", "Set-Cookie: a=[field]; Path=/\nX: y"),
        ("got {\"secret\":\"x\",\"pin\":1234} end", "got {\"secret\":\"[field]\",\"pin\":[field]} end"),
        ("msg=\"{\\\"secret\\\":\\\"x\\\"}\"", "msg=\"{\\\"secret\\\":\\\"[field]\\\"}\""),
        ("\"token\":[\"a\",{\"b\":\"c]\"}], d", "\"token\":[field], d"),
        ("params[\"password\"] = 'x'", "params[\"password\"] = '[field]'"),
        ("user[password]=x&a=b", "user[password]=[field]&a=b"),
        ("password=\"open\nnext", "password=\"[field]\nnext"),
        ("see https://bob:hunter2@example.com/a?token=b&c=d.", "see https://[field]@example.com/a?token=[field]&c=d."),
        (
            "1.2.3.4 - \"GET /a?pass%77ord=b&c=bob%40example.com HTTP/1.1\" 200",
            "[ip] - \"GET /a?pass%77ord=[field]&c=[email] HTTP/1.1\" 200",
        ),
        ("\"GET /users/bob%40example.com HTTP/1.1\"", "\"GET /users/[email] HTTP/1.1\""),
        ("(https://a.example/?card=4111+1111+1111+1111), ok", "(https://a.example/?card=[card]), ok"),
        ("mail bob@example.com", "mail [email]"),
        ("mail bob%40example.com, or bob%2540example.com.", "mail [email], or [email]."),
        ("q=1&mail=bob%40example.com&pass%77ord=x y", "q=1&mail=[email]&pass%77ord=[field] y"),
        // Brackets around a value, and before its scheme.
        ("authorization: (bearer abc)", "authorization: [field]"),
        ("authorization: <Basic abc>, x", "authorization: [field], x"),
        ("authorization: (bearer abc def", "authorization: [field] def"),
        ("authorization: 「Bearer abc」 x", "authorization: [field] x"),
        ("authorization: “Bearer abc” x", "authorization: [field] x"),
        ("authorization: 客户：Bearer abc。", "authorization: [field]"),
        ("password=(a)b, c", "password=[field], c"),
        ("password=(a b) c", "password=[field] c"),
        ("password: <b>a</b>", "password: [field]</b>"),
        // What is found only together with the first word.
        ("authorization: (bearer HSuQEcGwvfe8j3AFyLiSXyzA3QEJVfbjfk8IQbDcfS9AG16v5v3V", "authorization: [field]"),
        ("token: 4111 1111 1111 1111, 12", "token: [field], 12"),
        ("token: phone 030 1234567 x", "token: [field] x"),
        ("token: x 4111 1111 1111 1111", "token: [field] [card]"),
        (
            "password: -----BEGIN PRIVATE KEY-----\nMIIEvQabcdefghij\nabcdefgh\n-----END PRIVATE KEY-----\nx",
            "password: [field]\nx",
        ),
        ("password: -----BEGIN PRIVATE KEY-----\nMIIEvQabcdefghij\n", "password: [field]\n"),
    ] {
        assert_eq!(text(given), expected, "{given}");
        assert_eq!(text(expected), expected, "{expected}");
    }
    for given in [
        "the password is wrong",
        "token: none",
        "password=null, secret: true",
        "secret garden",
        "<password/> <token></token>",
        "token::new(x)",
        "--password",
        "--token --user x",
        "a--token x",
        "std::secret::x",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
        "see https://example.com/a?b=c, or /x?y=z.",
        "a < b: c = d",
        "password:",
        "password=",
        "",
    ] {
        assert_eq!(text(given), given, "{given}");
    }
    let rules = with(Kind::Mask, &[]);
    let named = |name, given: &'static str| {
        String::from_utf8(places::text(&rules, name, given.as_bytes(), &mut Findings::default()).into_owned()).unwrap()
    };
    assert_eq!(named("authorization", "Bearer x"), "Bearer [field]");
    assert_eq!(named("phone", "030 1234567"), "[phone]");
    let dropped = with(Kind::Drop, &[]);
    let out = places::text(&dropped, "", b"password: a b c", &mut Findings::default()).into_owned();
    assert_eq!(String::from_utf8_lossy(&out), "password: [] b c");
    let words =
        Config { action: How { kind: Kind::Replace, with: "no more".into(), ..How::default() }, ..Config::default() };
    let out = places::text(&Rules::new(&words).unwrap(), "", b"password: a b", &mut Findings::default()).into_owned();
    assert_eq!(String::from_utf8_lossy(&out), "password: no more b");
}

/// What a line is replaced by does not hide that a key began in it: its other lines go with it.
#[test]
fn keys_that_begin_where_nothing_is_shown() {
    let (lines, end) = ("Ab1/".repeat(16) + "\n" + &"Cd1/".repeat(16), "-----END PRIVATE KEY-----");
    let key = format!("-----BEGIN PRIVATE KEY-----\n{lines}\n{end}");
    let long = "lorem, ".repeat(10_000);
    let base64 = "Ab1/".repeat(20_000);
    for (text, expected, unscanned) in [
        (format!("a\n{long}{key}\nb\n"), "a\n[UNSCANNED]\n\nb\n", 1),
        (format!("{long}{key} b"), "[UNSCANNED]\n b", 1),
        (format!("{long}\n{key}\nb"), "[UNSCANNED]\n[private_key]\nb", 1),
        (format!("{long}{key}\n{long}{key}\nb"), "[UNSCANNED]\n\n[UNSCANNED]\n\nb", 2),
        (format!("-----BEGIN PRIVATE KEY-----\n{base64}\n{lines}\n{end}\nb"), "[private_key][UNSCANNED]\n\nb", 1),
        (format!("password: {key}\nb"), "password: [field]\n\nb", 0),
        (format!("password: {key}, b"), "password: [field]\n, b", 0),
        (format!("secret=x {key}\nb"), "secret=[field] [private_key]\nb", 0),
        (format!("{long}-----BEGIN PRIVATE KEY-----\n{lines}"), "[UNSCANNED]\n", 1),
        (format!("{long}-----BEGIN CERTIFICATE-----\n{lines}"), &*format!("[UNSCANNED]\n{lines}"), 1),
    ] {
        let rules = with(Kind::Mask, &[]);
        for sizes in [[usize::MAX, 1], [1, 1], [4095, 3], [65_536, 1]] {
            let (result, out, findings) = told(&rules, Body::text(&rules), text.as_bytes(), &sizes);
            result.unwrap();
            let start: String = text.chars().take(60).collect();
            assert_eq!(
                (&*String::from_utf8_lossy(&out), findings.unscanned()),
                (expected, unscanned),
                "{start} in {sizes:?}"
            );
        }
    }
}

/// Hostile text takes no more time than its length: this would not end.
#[test]
fn long_texts() {
    for piece in [
        "password=\"",
        "<token",
        "<token>",
        "--token ",
        "token:",
        "secret:{",
        "=",
        ":",
        "://",
        "/?",
        "\\\"pin\\\":",
        "token=[",
        "token=(",
        "token=<",
        "token: 4111 ",
        "token: bearer ",
        "a=",
    ] {
        let long = piece.repeat(40_000);
        for rules in [with(Kind::Mask, &[]), with(Kind::Drop, &[])] {
            places::text(&rules, "", long.as_bytes(), &mut Findings::default());
        }
    }
}

#[test]
fn texts_a_second_time() {
    let rules = every_action();
    let sign = prop::sample::select(vec![
        "=",
        ":",
        ": ",
        " = ",
        "=>",
        "\"",
        "'",
        "\\\"",
        "`",
        "<",
        ">",
        "</",
        "--",
        " ",
        "\n",
        ",",
        ";",
        "&",
        "{",
        "}",
        "[",
        "]",
        "?",
        "/",
        "://",
        "%",
        "\\",
        "password",
        "token",
        "Cookie: ",
        "Set-Cookie: ",
        "Authorization: ",
        "Bearer ",
        "<password>",
        "</password>",
        "<![CDATA[",
        "]]>",
        "--token ",
        "\"secret\":\"",
        "hunter2",
        "x",
        "bob@example.com",
        "https://",
        "/a?b=",
        "4111 1111 1111 1111",
        "10.1.2.3",
        "[field]",
        "null",
        "é",
        "user:pw@",
        "%40",
        "**",
    ]);
    proptest!(config(), |(parts in prop::collection::vec(sign, 0..16))| {
        let text = parts.concat();
        for rules in &rules {
            let mut findings = Findings::default();
            let once = places::text(rules, "", text.as_bytes(), &mut findings).into_owned();
            let twice = places::text(rules, "", &once, &mut Findings::default()).into_owned();
            prop_assert!(once == twice, "{:?}\nbecame {:?}\nthen   {:?}", text, String::from_utf8_lossy(&once), String::from_utf8_lossy(&twice));
            prop_assert!(findings.unscanned() == 0 || !once.is_empty());
        }
    });
}
