//! Whole requests: natively, and as the built module.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use std::rc::Rc;
use std::time::Duration;

use emulator::{Code, Exchange, Fault, Message, Plugin, Proxy};
use kit::testing::{both, refusal};
use log_scrub::LogScrub;

const MODULE: &str = "dist/log-scrub.wasm";
const JSON: (&str, &str) = ("content-type", "application/json");

/// Natively, and as the module.
fn each(configuration: &str, run: impl Fn(&Proxy)) {
    for (how, code) in both::<LogScrub>(MODULE) {
        let proxy = Proxy::new(1, 1);
        let plugin = Plugin::new("log-scrub", &code).configuration(configuration);
        proxy.push("in", [plugin]).unwrap_or_else(|why| panic!("{how}, {configuration}: {why}"));
        run(&proxy);
        assert!(proxy.vms().iter().all(|vm| !vm.failed), "{how}");
    }
}

fn refused(configuration: &str) -> String {
    let said = both::<LogScrub>(MODULE).map(|(how, code)| {
        let proxy = Proxy::new(1, 1);
        let plugin = Plugin::new("log-scrub", &code).configuration(configuration);
        assert!(proxy.push("in", [plugin]).is_err(), "{how}: {configuration} is taken");
        let lines: Vec<String> = proxy.log().into_iter().map(|line| line.text).collect();
        refusal("log-scrub", &lines.into_iter().find(|line| line.contains("refused")).unwrap_or_default())
    });
    assert_eq!(said[0], said[1]);
    said[0].clone()
}

fn post(headers: &[(&str, &str)]) -> Message {
    let first = [(":method", "POST"), (":path", "/"), (":authority", "a")];
    Message::new(first.into_iter().chain(headers.iter().copied()))
}

fn ok(headers: &[(&str, &str)]) -> Message {
    Message::new([(":status", "200")].into_iter().chain(headers.iter().copied()))
}

fn state(done: &Exchange, key: &str) -> Option<String> {
    done.filter_state.get(&format!("wasm.scrub.{key}")).map(|value| String::from_utf8(value.clone()).unwrap())
}

fn metric(proxy: &Proxy, series: &str) -> u64 {
    proxy.metric(series).map_or(0, |metric| metric.value)
}

fn unscanned(proxy: &Proxy, reason: &str) -> u64 {
    metric(proxy, &format!("meshfilter_scrub_unscanned_totalreason=.={reason};.;"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const MUTATE: &str = r#"{"max_body": 100, "mutate": {"request_body": true, "response_body": true},
    "outputs": {"request_body": true, "response_body": true}}"#;

#[test]
fn json_bodies_go_on_clean_and_without_a_length() {
    each(MUTATE, |proxy| {
        let request = post(&[JSON, ("content-length", "33")]).chunk(r#"{"mail":"ann@exa"#).chunk(r#"mple.com","a":1}"#);
        let response = ok(&[JSON, ("content-length", "25")]).chunk(r#"{"to":"+4915112"#).chunk(r#"345678"}"#);
        let done = proxy.exchange("in", 0, &request, &response);
        assert_eq!(text(&done.upstream.body()), r#"{"mail":"[email]","a":1}"#);
        assert_eq!(text(&done.downstream.body()), r#"{"to":"[phone]"}"#);
        assert!(done.upstream.all("content-length").is_empty() && done.downstream.all("content-length").is_empty());
        assert_eq!(state(&done, "request_body").unwrap(), r#"{"mail":"[email]","a":1}"#);
        assert_eq!(state(&done, "response_body").unwrap(), r#"{"to":"[phone]"}"#);
        let found = |rule: &str, place: &str| {
            metric(proxy, &format!("meshfilter_scrub_findings_totalrule=.={rule};.;place=.={place};.;"))
        };
        assert_eq!((found("email", "request_body"), found("phone", "response_body")), (1, 1));
    });
}

#[test]
fn before_trailers_too() {
    each(MUTATE, |proxy| {
        let request = post(&[JSON]).chunk(r#"{"mail":"ann@exa"#).chunk(r#"mple.com"}"#).trailers([("x-t", "1")]);
        let response = ok(&[JSON]).chunk(r#"{"to":"+4915112"#).chunk(r#"345678"}"#).trailers([("x-t", "1")]);
        let done = proxy.exchange("in", 0, &request, &response);
        assert_eq!(text(&done.upstream.body()), r#"{"mail":"[email]"}"#);
        assert_eq!(text(&done.downstream.body()), r#"{"to":"[phone]"}"#);
        assert_eq!(done.upstream.trailers.as_ref().map(Vec::len), Some(1));
        assert_eq!(state(&done, "request_body").unwrap(), r#"{"mail":"[email]"}"#);
    });
}

/// Open for traffic, closed for logs.
#[test]
fn what_cannot_be_cleaned_goes_on_as_it_is_and_is_not_logged() {
    let long = format!(r#"{{"mail":"ann@example.com","more":"{}"}}"#, "x".repeat(200));
    for (headers, body, reason) in [
        (vec![JSON], r#"{"mail":"ann@example.com""#, "broken"),
        (vec![JSON], "\u{feff}{}", "broken"),
        (vec![JSON, ("content-encoding", "gzip")], r#"{"mail":"ann@example.com"}"#, "compressed"),
        (vec![("content-type", "image/png")], "ann@example.com", "type"),
        (vec![], "ann@example.com", "type"),
        (vec![JSON], &long, "large"),
        (vec![JSON, ("content-length", "235")], &long, "large"),
    ] {
        each(MUTATE, |proxy| {
            let (first, rest) = body.split_at(4);
            let request = post(&headers).chunk(first).chunk(rest);
            let done = proxy.exchange("in", 0, &request, &ok(&headers).chunk(first).chunk(rest));
            assert_eq!(text(&done.upstream.body()), body, "{reason}");
            assert_eq!(text(&done.downstream.body()), body, "{reason}");
            assert_eq!(state(&done, "request_body").unwrap(), "[UNSCANNED]", "{reason}");
            assert_eq!(state(&done, "response_body").unwrap(), "[UNSCANNED]", "{reason}");
            assert_eq!(unscanned(proxy, reason), 2, "{reason}");
        });
    }
}

#[test]
fn what_is_not_changed_keeps_every_byte_on_its_way() {
    each(MUTATE, |proxy| {
        let body = "{ \"a\" : [1.50, \"\\u0041\\/\", null] }\n";
        let done = proxy.exchange("in", 0, &post(&[JSON]).chunk(body), &ok(&[]));
        assert_eq!(text(&done.upstream.body()), body);
        assert_eq!(state(&done, "request_body").unwrap(), body);
        assert_eq!(metric(proxy, "meshfilter_scrub_bytes_total"), 1 + body.len() as u64);
    });
}

#[test]
fn a_body_that_breaks_off_while_it_is_held_is_not_logged() {
    each(MUTATE, |proxy| {
        let stream = proxy.http("in", 0);
        stream.request_headers(post(&[JSON]).headers, false);
        stream.request_body(r#"{"mail":"ann@example.com""#, false);
        assert_eq!(stream.upstream().body(), b"");
        let done = stream.finish();
        assert_eq!(state(&done, "request_body").unwrap(), "[UNSCANNED]");
        assert_eq!(unscanned(proxy, "incomplete"), 1);
    });
}

const BODIES: &str = r#"{"max_body": 64, "outputs": {"request_body": true, "response_body": true}}"#;

#[test]
fn bodies_are_looked_at_as_they_pass_and_never_held() {
    each(BODIES, |proxy| {
        let stream = proxy.http("in", 0);
        stream.request_headers(post(&[JSON]).headers, false);
        stream.request_body(r#"{"mail":"ann@"#, false);
        assert_eq!(stream.upstream().body(), br#"{"mail":"ann@"#);
        stream.request_body(r#"example.com"}"#, false);
        stream.request_trailers(vec![(b"x-t".to_vec(), b"1".to_vec())]);
        let done = stream.finish();
        assert_eq!(text(&done.upstream.body()), r#"{"mail":"ann@example.com"}"#);
        assert_eq!(state(&done, "request_body").unwrap(), r#"{"mail":"[email]"}"#);
    });
}

/// No split of a body into parts changes what comes of it.
#[test]
fn parts_of_any_size_give_the_same() {
    let body = r#"{"u":"https://ann:pw@a.example/?token=x","n":[4111111111111111]}"#;
    each(BODIES, |proxy| {
        let whole = proxy.exchange("in", 0, &post(&[JSON]).chunk(body), &ok(&[]));
        let clean = state(&whole, "request_body").unwrap();
        assert_eq!(clean, r#"{"u":"https://[field]@a.example/?token=[field]","n":["[card]"]}"#);
        for size in [1, 2, 3, 7, 31, 63] {
            let message = body.as_bytes().chunks(size).fold(post(&[JSON]), |message, part| message.chunk(part));
            let done = proxy.exchange("in", 0, &message, &ok(&[]));
            assert_eq!(state(&done, "request_body").unwrap(), clean, "{size}");
        }
    });
}

#[test]
fn the_memory_of_a_body_is_bounded_and_what_is_beyond_is_said() {
    each(BODIES, |proxy| {
        let request = (0..100).fold(post(&[("content-type", "text/plain")]), |request, _| {
            request.chunk("4111 1111 1111 1111 and so on, and so on, and so on, and so on")
        });
        let done = proxy.exchange("in", 0, &request, &ok(&[]));
        let logged = state(&done, "request_body").unwrap();
        assert!(logged.ends_with("[UNSCANNED]") && !logged.contains("1111"), "{logged}");
        assert!(logged.len() <= 64 + "[UNSCANNED]".len(), "{logged}");
        assert_eq!(unscanned(proxy, "large"), 1);
        assert_eq!(metric(proxy, "meshfilter_scrub_bytes_total"), 1 + 64);
    });
}

/// What is logged of a body that is too large is its clean beginning, without what is not decided.
#[test]
fn a_body_that_is_too_large_begins_clean() {
    each(BODIES, |proxy| {
        let logged = |kind: &str, body: &str| {
            let done = proxy.exchange("in", 0, &post(&[("content-type", kind)]).chunk(body), &ok(&[]));
            state(&done, "request_body").unwrap()
        };
        let json = r#"{"mail":"ann@example.com","list":[1,2,3],"card":"4111 1111 1111 1111","more":1}"#;
        assert_eq!(logged(JSON.1, json), r#"{"mail":"[email]","list":[1,2,3],"card":[UNSCANNED]"#);
        let form = "mail=ann%40example.com&password=hunter2&card=4111111111111111&more=1";
        assert_eq!(
            logged("application/x-www-form-urlencoded", form),
            "mail=[email]&password=[field]&card=[card]&[UNSCANNED]"
        );
        let broken = format!("{{\"mail\":\"ann@example.com\"]{}", " ".repeat(100));
        assert_eq!(logged(JSON.1, &broken), "[UNSCANNED]");
        assert_eq!((unscanned(proxy, "large"), unscanned(proxy, "broken")), (2, 1));
    });
}

#[test]
fn the_line_says_what_was_found_and_where() {
    let configuration = r#"{"outputs": {"line": true, "request_headers": ["x-a", "x-b"], "request_body": true}}"#;
    each(configuration, |proxy| {
        let path = "/u/ann@example.com?card=4111111111111111&q=%22a%22";
        let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let request = Message::new([
            (":method", "POST"),
            (":path", path),
            (":authority", "a"),
            ("x-a", "bob@example.com"),
            ("x-b", "eve@example.com"),
            ("traceparent", traceparent),
            ("content-type", "application/json"),
            ("content-encoding", "br"),
        ]);
        let stream = proxy.http("in", 0);
        stream.request(&request.chunk("x"));
        proxy.advance(Duration::from_micros(12_345));
        stream.set_property(&["request", "time"], 1_795_418_213_007_000_000_i64);
        stream.set_property(&["request", "duration"], Duration::from_micros(12_345));
        stream.response(&Message::new([(":status", "404")]));
        let done = stream.finish();
        let expected = concat!(
            r#"{"time":"2026-11-23T07:16:53.007Z","method":"POST","path":"/u/[email]","#,
            r#""query":"card=[card]&q=%22a%22","status":404,"duration":12.345,"#,
            r#""trace_id":"0af7651916cd43dd8448eb211c80319c","span_id":"b7ad6b7169203331","#,
            r#""findings":{"card":{"query":1},"email":{"request_header":2,"path":1}},"#,
            r#""unscanned":{"request_body":"compressed"}}"#
        );
        assert_eq!(state(&done, "log").unwrap(), expected);
        let readme = include_str!("../README.md").replace('\n', "");
        assert!(readme.contains(expected), "the README has another line");
    });
}

#[test]
fn the_line_of_a_request_of_which_nothing_is_known_is_a_line() {
    each(r#"{"outputs": {"line": true, "proxy_log": true}}"#, |proxy| {
        let strange = Message::new([(":method", "4111111111111111"), (":path", "/\u{7f}\n\"x\\")]);
        let done = proxy.exchange("in", 0, &strange, &Message::new([("x", "y")]));
        let line = state(&done, "log").unwrap();
        assert!(line.starts_with("{\"") && line.ends_with(r#""findings":{}}"#), "{line}");
        assert!(line.contains(r#""method":"OTHER","path":"/\u007f\u000a\"x\\""#), "{line}");
        let logged: Vec<String> = proxy.log().into_iter().map(|line| line.text).collect();
        assert!(logged.contains(&line), "{logged:?}");
    });
}

/// What went upstream may differ: a route has written the path over.
#[test]
fn the_path_is_what_the_client_sent() {
    each("{}", |proxy| {
        let stream = proxy.http("in", 0);
        stream.request(&post(&[]));
        stream.edit_request_headers(|headers| {
            headers.push((b"x-envoy-original-path".to_vec(), b"/ann@example.com?a=1".to_vec()));
        });
        stream.response(&ok(&[]));
        let done = stream.finish();
        assert_eq!((state(&done, "path").unwrap(), state(&done, "query").unwrap()), ("/[email]".into(), "a=1".into()));
    });
}

#[test]
fn grpc_metadata_is_cleaned_in_headers_and_trailers() {
    let configuration = r#"{"outputs": {"response_headers": ["grpc-message", "x-user"], "request_body": true}}"#;
    each(configuration, |proxy| {
        let request = post(&[("content-type", "application/grpc")]).chunk(b"\0\0\0\0\x05ann@e");
        let trailers =
            [("grpc-status", "5"), ("grpc-message", "no%20user%20ann%40example.com"), ("x-user", "bob@a.io")];
        let response = ok(&[("content-type", "application/grpc")]).chunk(b"\0").trailers(trailers);
        let done = proxy.exchange("in", 0, &request, &response);
        assert_eq!(state(&done, "response_header.grpc-message").unwrap(), "no%20user%20[email]");
        assert_eq!(state(&done, "response_header.x-user").unwrap(), "[email]");
        assert_eq!(state(&done, "request_body").unwrap(), "[UNSCANNED]");
    });
}

#[test]
fn the_key_comes_from_the_environment() {
    let configuration = r#"{"action": {"kind": "hmac"}, "hmac_key_env": "SCRUB_KEY"}"#;
    let with = |code: &Rc<dyn Code>, key: Option<&str>| {
        let proxy = Proxy::new(1, 1);
        let plugin = Plugin::new("log-scrub", code).configuration(configuration).environment("OTHER", "x");
        let plugin = match key {
            Some(key) => plugin.environment("SCRUB_KEY", key),
            None => plugin,
        };
        let taken = proxy.push("in", [plugin]).is_ok();
        (proxy, taken)
    };
    for (how, code) in both::<LogScrub>(MODULE) {
        let (proxy, taken) = with(&code, Some("0123456789abcdef0123456789abcdef"));
        assert!(taken, "{how}");
        let request = Message::new([(":method", "GET"), (":path", "/123-45-6789")]);
        let done = proxy.exchange("in", 0, &request, &ok(&[]));
        // What HMAC-SHA-256 of 123456789 begins with.
        assert_eq!(state(&done, "path").unwrap(), "/[us_ssn_d1be6505f2b72976]", "{how}");
        for (key, problem) in [(None, "is no variable of the environment"), (Some("short"), "is too short")] {
            let (proxy, taken) = with(&code, key);
            let said: Vec<String> = proxy.log().iter().map(|line| refusal("log-scrub", &line.text)).collect();
            assert!(
                !taken && said.iter().any(|line| line.contains(&format!("at `hmac_key_env`: {problem}"))),
                "{how}: {said:?}"
            );
            assert!(!said.iter().any(|line| line.contains("short,") && line.contains("\"short\"")), "{said:?}");
        }
    }
}

#[test]
fn a_wrong_configuration_is_refused_with_the_place_and_the_cure() {
    for (configuration, place, problem) in [
        (r#"{"outputs": {"paht": true}}"#, "outputs.paht", "is no field, give one of path, query"),
        (r#"{"outputs": {"request_headers": ["a", "b", "A"]}}"#, "outputs.request_headers[2]", "stands there twice"),
        (r#"{"mutate": {"request_headers": ["Content-Length"]}}"#, "mutate.request_headers[0]", "is a header that the"),
        (r#"{"max_body": 2000000}"#, "max_body", "is out of range, give a whole number from 0 to 1048576"),
        (r#"{"packs": ["secret"]}"#, "packs[0]", "is not known, give one of secrets, pii, pii-cn, financial"),
        (r#"{"detectors": [{"name": "cards"}]}"#, "detectors[0].name", "is no detector, give one of jwt, "),
        (r#"{"own": [{"name": "a", "regex": "(a"}]}"#, "own[0].regex", ""),
        (r#"{"action": {"kind": "hmac"}}"#, "action.kind", "needs a key, give `hmac_key`"),
        (r#"{"hmac_key": "abc"}"#, "hmac_key", "is too short, give 32 bytes at least"),
        (r#"{"hmac_key": "0123456789abcdef0123456789abcdef", "hmac_key_env": "A"}"#, "hmac_key_env", "is given beside"),
        (r#"{"action": {"kind": "replace", "with": "ann@example.com"}}"#, "", "is itself what a rule finds"),
        (r#"{"action": {"kind": "replace", "with": "a\nb"}}"#, "action.with", "is too long or not in one line"),
        (
            r#"{"detectors": [{"name": "card", "action": {"kind": "replace", "with": "....................................................................."}}]}"#,
            "detectors[0].action.with",
            "is too long or not in one line, give up to 64 bytes",
        ),
    ] {
        let said = refused(configuration);
        assert!(said.contains(&format!("`{place}")) || place.is_empty(), "{configuration}: {said}");
        assert!(said.contains(problem), "{configuration}: {said}");
        assert!(!said.contains("abc") && !said.contains("ann@"), "{said}");
    }
}

/// Fail closed for logs, open for traffic.
#[test]
fn a_proxy_that_fails_every_call_gets_its_traffic_and_no_raw_text() {
    let configuration = r#"{"outputs": {"line": true, "proxy_log": true, "request_headers": ["x-a"], "request_body": true,
        "response_body": true}, "mutate": {"request_headers": ["x-a"], "response_body": true}}"#;
    let calls = [
        "proxy_get_header_map_pairs",
        "proxy_get_header_map_value",
        "proxy_replace_header_map_value",
        "proxy_remove_header_map_value",
        "proxy_add_header_map_value",
        "proxy_get_buffer_bytes",
        "proxy_set_buffer_bytes",
        "proxy_get_property",
        "proxy_set_property",
        "proxy_define_metric",
        "proxy_increment_metric",
        "proxy_log",
    ];
    for call in calls {
        each(configuration, |proxy| {
            proxy.fault(Fault::of(call));
            let request = post(&[JSON, ("x-a", "ann@example.com")]).chunk(r#"{"a":"ann@example.com"}"#);
            let response = ok(&[JSON]).chunk(r#"{"a":"ann@exam"#).chunk(r#"ple.com"}"#);
            let done = proxy.exchange("in", 0, &request, &response);
            assert_eq!(text(&done.upstream.body()), r#"{"a":"ann@example.com"}"#, "{call}");
            assert!(done.downstream.ended, "{call}");
            for (key, value) in &done.filter_state {
                assert!(!text(value).contains("ann@"), "{call}: {key} is {}", text(value));
            }
            assert!(!proxy.log().iter().any(|line| line.text.contains("ann@")), "{call}");
        });
    }
}

#[test]
fn a_change_of_configuration_reaches_new_requests_only() {
    for (how, code) in both::<LogScrub>(MODULE) {
        let proxy = Proxy::new(1, 1);
        let plugin = |configuration: &str| Plugin::new("log-scrub", &code).configuration(configuration);
        proxy.push("in", [plugin(BODIES)]).unwrap();
        let stream = proxy.http("in", 0);
        stream.request_headers(post(&[JSON]).headers, false);
        stream.request_body(r#"{"a":"ann@exa"#, false);
        proxy.push("in", [plugin(r#"{"packs": []}"#)]).unwrap();
        stream.request_body(r#"mple.com"}"#, true);
        stream.response(&ok(&[]));
        assert_eq!(state(&stream.finish(), "request_body").unwrap(), r#"{"a":"[email]"}"#, "{how}");
        let done = proxy.exchange("in", 0, &Message::new([(":path", "/ann@example.com")]), &ok(&[]));
        assert_eq!(state(&done, "path").unwrap(), "/ann@example.com", "{how}");
    }
}

/// Secrets that are assigned, in URLs, or in what does not parse, wherever they stand.
#[test]
fn a_secret_in_a_sentence_is_found_in_every_place() {
    let configuration = r#"{"outputs": {"request_body": true, "request_headers": ["x-a", "link", "x-email"],
        "response_headers": ["grpc-message"]}}"#;
    let json = |text: &str| format!("{{\"m\":{}}}", serde_json::to_string(text).unwrap());
    let sentences = [
        "login password=SECRET failed, see https://x.org/cb?access_token=SECRET ok",
        "password:SECRET",
        "GET /?token=SECRET HTTP/1.1",
        "?token=SECRET",
        "Server=db;User Id=a;Password=SECRET;",
        "Authorization: Basic SECRETcanary",
        "cookie: sid=SECRET; a=b",
        "{\"password\":\"SECRET\"",
        "{\"password\":\"SECRET\"} trailing",
        "user=\"ann\";password=\"SECRET\"",
        "<https://x.org/?token=SECRET>;rel=next",
        "a=b,token=SECRET",
        "x password=[field]SECRET y",
        "{\"a\":\"{\\\"b\\\":\\\"{\\\\\\\"c\\\\\\\":\\\\\\\"{\\\\\\\\\\\\\\\"password\\\\\\\\\\\\\\\":\\\\\\\\\\\\\\\"SECRET\\\\\\\\\\\\\\\"}\\\\\\\"}\\\"}\"}",
    ];
    let encode = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    each(configuration, |proxy| {
        for sentence in sentences {
            let form = format!("msg={}", encode(sentence));
            let multipart = format!("--b\r\nContent-Disposition: form-data; name=\"m\"\r\n\r\n{sentence}\r\n--b--\r\n");
            let line = sentence.replace('\n', " ");
            for (kind, body) in [
                ("application/json", json(sentence)),
                ("application/x-www-form-urlencoded", form.clone()),
                ("multipart/form-data; boundary=b", multipart),
                ("text/plain", format!("first\n{line}\nlast")),
            ] {
                // In plain text, JSON in JSON in JSON is not taken apart.
                if kind == "text/plain" && sentence.contains("{\\\"b") {
                    continue;
                }
                let request = Message::new([
                    (":method", "POST"),
                    (":path", &format!("/a?{form}")),
                    ("content-type", kind),
                    ("x-a", sentence),
                    ("link", sentence),
                ]);
                let done = proxy.exchange("in", 0, &request.chunk(&body), &ok(&[("grpc-message", sentence)]));
                for (key, value) in &done.filter_state {
                    assert!(!text(value).contains("SECRET"), "{kind}, {key}: {}", text(value));
                }
            }
        }
    });
}

/// What is decoded once more, or stands where it should not.
#[test]
fn odd_targets_and_headers_are_clean() {
    let configuration = r#"{"outputs": {"request_headers": ["x-email", "x-original-uri", "x-a"]}}"#;
    each(configuration, |proxy| {
        for path in [
            "/a%3Ftoken=SECRET",
            "/a%3Ftoken%3DSECRET",
            "/?a=b?token=SECRET",
            "/??token=SECRET",
            "/?ann.SECRET@example.com[token]=1",
            "/?token[0]=SECRET&token.0=SECRET",
        ] {
            let request = Message::new([
                (":method", "GET"),
                (":path", path),
                ("referer", "https://x.org/#cb?token=SECRET"),
                ("user-agent", "Mozilla/5.0 (SECRET%40example.com)"),
                ("x-email", "SECRET%40example.com"),
                ("x-original-uri", "/users/SECRET%40example.com"),
                ("x-a", "app/1.0;token:SECRET"),
            ]);
            let done = proxy.exchange("in", 0, &request, &ok(&[]));
            for (key, value) in &done.filter_state {
                assert!(!text(value).contains("SECRET"), "{path}, {key}: {}", text(value));
            }
        }
    });
}

/// Where two values stand beside each other, the second look finds the first one too.
#[test]
fn a_text_is_looked_at_until_nothing_changes() {
    each(r#"{"outputs": {"request_body": true}}"#, |proxy| {
        let body = "pay 4111111111111111-DE89370400440532013000 now";
        let done = proxy.exchange("in", 0, &post(&[("content-type", "text/plain")]).chunk(body), &ok(&[]));
        assert_eq!(state(&done, "request_body").unwrap(), "pay [card]-[iban] now");
    });
}

#[test]
fn a_part_that_was_not_looked_at_is_said() {
    each(r#"{"outputs": {"request_body": true, "line": true}}"#, |proxy| {
        let form = post(&[("content-type", "application/x-www-form-urlencoded")]).chunk("a=%FF&b=1");
        let done = proxy.exchange("in", 0, &form, &ok(&[]));
        assert_eq!(state(&done, "request_body").unwrap(), "a=[UNSCANNED]&b=1");
        assert!(state(&done, "log").unwrap().contains(r#""unscanned":{"request_body":"part"}"#));
        assert_eq!(unscanned(proxy, "part"), 1);
    });
}
