//! Where time went, on a clock that the test moves: natively, and as the built module.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use std::rc::Rc;
use std::time::Duration;

use emulator::{Code, Exchange, HttpStream, Message, Peer, Plugin, Proxy, pairs};
use kit::testing::{both, refusal};
use latency::Latency;

const MS: Duration = Duration::from_millis(1);

fn each(configuration: &str, workers: usize, run: impl Fn(&Proxy, &dyn Fn(&str) -> Plugin)) {
    for (how, code) in both::<Latency>("dist/latency.wasm") {
        let code: Rc<dyn Code> = code;
        let plugin = |configuration: &str| Plugin::new("latency", &code).configuration(configuration);
        let proxy = Proxy::new(workers, 1);
        proxy.push("in", [plugin(configuration)]).unwrap_or_else(|why| panic!("{how}, {configuration}: {why}"));
        run(&proxy, &plugin);
        assert!(proxy.vms().iter().all(|vm| !vm.failed), "{how}");
    }
}

fn get(path: &str) -> Message {
    Message::new([(":method", "GET"), (":path", path), (":authority", "a")])
}

fn ok() -> Message {
    Message::new([(":status", "200")])
}

/// What the proxy tells of an upstream that took 20 ms, of which the client of the pool waited 3.
fn upstream(stream: &HttpStream) {
    stream.set_property(&["response", "backend_latency"], 20 * MS);
    stream.set_property(&["upstream", "cx_pool_ready_duration"], 3 * MS);
    stream.set_property(&["upstream", "request_attempt_count"], 1_u64);
}

/// 5 ms in the proxy, 20 ms to the response's headers, 2 ms to the end.
fn timed(proxy: &Proxy, request: &Message, response: &Message) -> Exchange {
    let stream = proxy.http("in", 0);
    stream.request(request);
    proxy.advance(25 * MS);
    upstream(&stream);
    stream.response(response);
    proxy.advance(2 * MS);
    stream.finish()
}

fn state(done: &Exchange, key: &str) -> Option<String> {
    done.filter_state.get(&format!("wasm.latency.{key}")).map(|value| String::from_utf8(value.clone()).unwrap())
}

fn value(proxy: &Proxy, name: &str) -> u64 {
    proxy.metric(&series(name)).map_or(0, |metric| metric.value)
}

fn samples(proxy: &Proxy, name: &str) -> Vec<u64> {
    proxy.metric(&series(name)).map(|metric| metric.samples).unwrap_or_default()
}

/// `name{label=value,…}` as the filter names it to the proxy.
fn series(text: &str) -> String {
    let Some((name, labels)) = text.split_once('{') else { return text.to_owned() };
    let labels = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
    labels.fold(name.to_owned(), |series, (label, value)| series + &format!("{label}=.={value};.;"))
}

#[test]
fn every_part_is_where_it_belongs() {
    each(r#"{"properties": {"json": true}, "server_timing": true}"#, 1, |proxy, _| {
        let done = timed(proxy, &get("/"), &ok());
        let part = |key: &str| state(&done, key);
        assert_eq!(part("total_us").unwrap(), "27000");
        assert_eq!(part("ttfb_us").unwrap(), "25000");
        assert_eq!(part("upstream_us").unwrap(), "20000");
        assert_eq!(part("pool_us").unwrap(), "3000");
        assert_eq!(part("proxy_us").unwrap(), "7000");
        assert_eq!(part("attempts").unwrap(), "1");
        assert_eq!(part("filters_us"), None);
        let json =
            r#"{"total_us":27000,"ttfb_us":25000,"upstream_us":20000,"pool_us":3000,"proxy_us":7000,"attempts":1}"#;
        assert_eq!(part("json").unwrap(), json);
        assert_eq!(done.downstream.all("server-timing"), [b"ttfb;dur=25.000"]);
        let labels = "protocol=http,method=GET,code=2xx";
        assert_eq!(value(proxy, &format!("meshfilter_requests_finished_total{{{labels}}}")), 1);
        assert_eq!(samples(proxy, &format!("meshfilter_request_duration_millis{{{labels}}}")), [27]);
        assert_eq!(samples(proxy, &format!("meshfilter_request_first_byte_millis{{{labels}}}")), [25]);
        assert_eq!(
            (value(proxy, "meshfilter_requests_started_total"), value(proxy, "meshfilter_requests_in_flight")),
            (1, 0)
        );
    });
}

#[test]
fn a_local_reply_has_no_upstream_and_one_in_front_no_beginning() {
    each("{}", 1, |proxy, _| {
        let reply =
            emulator::Reply { status: 429, details: "x".into(), body: vec![], headers: vec![], grpc_status: None };
        let stream = proxy.http("in", 0);
        proxy.advance(4 * MS);
        stream.edit_request_headers(|headers| *headers = get("/").headers);
        stream.reply_locally(&reply);
        let done = stream.finish();
        assert_eq!(
            (state(&done, "total_us"), state(&done, "ttfb_us"), state(&done, "upstream_us")),
            (Some("4000".into()), None, None)
        );
        assert_eq!(value(proxy, "meshfilter_requests_finished_total{protocol=http,method=GET,code=4xx}"), 1);
        assert_eq!(
            (value(proxy, "meshfilter_requests_started_total"), value(proxy, "meshfilter_requests_in_flight")),
            (0, 0)
        );

        let stream = proxy.http("in", 0);
        stream.request(&get("/"));
        proxy.advance(MS);
        stream.reply_locally(&reply);
        let done = stream.finish();
        assert_eq!((state(&done, "total_us"), state(&done, "proxy_us")), (Some("1000".into()), None));
        assert_eq!(value(proxy, "meshfilter_requests_in_flight"), 0);
    });
}

#[test]
fn streams_stay_out_of_the_requests_histogram() {
    let streams = [
        (
            get("/ws"),
            Message::new([(":status", "101"), ("upgrade", "websocket")]),
            "protocol=websocket,method=GET,code=1xx",
        ),
        (
            get("/sse"),
            Message::new([(":status", "200"), ("content-type", "text/event-stream; x")]),
            "protocol=http,method=GET,code=2xx",
        ),
        (get("/chat.Chat/Watch"), ok(), "protocol=http,method=GET,code=2xx"),
        (
            Message::new([(":method", "CONNECT"), (":authority", "a")]),
            ok(),
            "protocol=websocket,method=CONNECT,code=2xx",
        ),
    ];
    for (request, response, labels) in streams {
        each(r#"{"streams": ["/chat.Chat/"], "slo": [{"name": "fast", "within": "10ms"}]}"#, 1, |proxy, _| {
            timed(proxy, &request, &response);
            assert_eq!(samples(proxy, &format!("meshfilter_stream_duration_millis{{{labels}}}")), [27]);
            assert_eq!(samples(proxy, &format!("meshfilter_request_first_byte_millis{{{labels}}}")), [25]);
            assert!(!proxy.metrics().keys().any(|name| name.contains("request_duration") || name.contains("slo")));
        });
    }
}

/// A gRPC message of so many bytes.
fn message(size: u32) -> Vec<u8> {
    [&[0], &size.to_be_bytes()[..], &vec![b'x'; usize::try_from(size).unwrap()]].concat()
}

fn grpc() -> Message {
    Message::new([
        (":method", "POST"),
        (":path", "/a.B/C"),
        (":authority", "a"),
        ("content-type", "application/grpc+proto"),
    ])
}

/// The filter, and the one that the benchmark compares it with.
#[test]
fn a_grpc_call_of_more_than_one_message_is_a_stream() {
    let [one, none, large] = [message(3), message(0), message(70_000)];
    let two = [&one[..], &large[..]].concat();
    // The parts of the bodies of both sides, and what it is.
    type Parts<'a> = Vec<&'a [u8]>;
    let rows: [(&str, Parts<'_>, Parts<'_>, bool); 11] = [
        ("one and one", vec![&one], vec![&large], false),
        ("one in two parts", vec![&large[..9], &large[9..]], vec![&one], false),
        ("one in bytes", one.chunks(1).collect(), vec![&none], false),
        ("none", vec![], vec![], false),
        ("several of the server", vec![&one], vec![&one, &one], true),
        ("several of the client", vec![&one, &none], vec![&one], true),
        ("two in one part", vec![&one], vec![&two], true),
        ("two, a head in two parts", vec![&one], vec![&two[..10], &two[10..]], true),
        ("two in bytes", vec![&one], two.chunks(1).take(13).collect(), true),
        ("a second one that never comes", vec![&one], vec![&two[..12]], false),
        ("a length that is a lie", vec![&one], vec![b"\0\xff\xff\xff\xff", &large, &large], false),
    ];
    let sdk = kit::testing::both::<Latency>("target/modules/latency-sdk.wasm");
    for (how, code) in both::<Latency>("dist/latency.wasm").into_iter().chain(sdk.into_iter().skip(1)) {
        for (what, asked, answered, stream) in &rows {
            let proxy = Proxy::new(1, 1);
            proxy.push("in", [Plugin::new("latency", &code)]).unwrap();
            let call = proxy.http("in", 0);
            call.request(&asked.iter().fold(grpc(), Message::chunk));
            call.response(&answered.iter().fold(ok(), Message::chunk));
            call.finish();
            let of = |name: &str| {
                let metrics = proxy.metrics().into_iter().filter(|(series, _)| series.starts_with(name));
                metrics.map(|(_, metric)| metric.samples.len()).sum::<usize>()
            };
            let seen = (of("meshfilter_stream_duration_millis"), of("meshfilter_request_duration_millis"));
            assert_eq!(seen, if *stream { (1, 0) } else { (0, 1) }, "{how}: {what}");
        }
    }
}

#[test]
fn grpc_is_judged_by_its_own_status() {
    let request = grpc();
    each(
        r#"{"slo": [{"name": "ok", "within": "1s"}], "labels": ["protocol", "code", "grpc_status"]}"#,
        1,
        |proxy, _| {
            for (code, label, good) in [(0, "0", 1), (5, "5", 2), (14, "14", 2), (15, "15", 2), (17, "other", 2)] {
                let stream = proxy.http("in", 0);
                stream.request(&request);
                stream.set_property(&["response", "grpc_status"], i64::from(code));
                stream.response(&ok());
                stream.finish();
                let name = format!("meshfilter_requests_finished_total{{protocol=grpc,code=2xx,grpc_status={label}}}");
                assert_eq!(value(proxy, &name), 1);
                assert_eq!(value(proxy, "meshfilter_slo_good_requests_total{objective=ok}"), good, "{code}");
            }
            assert_eq!(value(proxy, "meshfilter_slo_requests_total{objective=ok}"), 5);
        },
    );
}

#[test]
fn objectives_and_apdex_count_what_users_feel() {
    let configuration =
        r#"{"slo": [{"name": "a", "within": "27ms"}, {"name": "b", "within": "26ms"}], "apdex": "10ms", "unit": "us"}"#;
    each(configuration, 1, |proxy, _| {
        timed(proxy, &get("/"), &Message::new([(":status", "503")]));
        let zero = |name: &str| proxy.metric(&series(name)).map(|metric| metric.value);
        assert_eq!(zero("meshfilter_slo_good_requests_total{objective=a}"), Some(0), "no share of nothing");
        assert_eq!(zero("meshfilter_apdex_requests_total{feeling=satisfied}"), Some(0));
        timed(proxy, &get("/"), &ok());
        let good = |name: &str| value(proxy, &format!("meshfilter_slo_good_requests_total{{objective={name}}}"));
        assert_eq!((good("a"), good("b")), (1, 0));
        let felt = |feeling: &str| value(proxy, &format!("meshfilter_apdex_requests_total{{feeling={feeling}}}"));
        assert_eq!((felt("satisfied"), felt("tolerating"), felt("frustrated")), (0, 1, 1));
        let name = "meshfilter_request_duration_micros{protocol=http,method=GET,code=2xx}";
        assert_eq!(samples(proxy, name), [27_000]);
    });
}

#[test]
fn the_gauge_is_back_at_zero_after_resets_pushes_and_on_every_worker() {
    each("{}", 3, |proxy, plugin| {
        let mut streams = Vec::new();
        for n in 0..300 {
            let stream = proxy.http("in", n % 3);
            stream.request(&get("/"));
            streams.push(stream);
            if n % 50 == 0 {
                proxy.push("in", [plugin(&format!("{{\"max_series\": {}}}", 100 + n))]).unwrap();
            }
        }
        assert_eq!(value(proxy, "meshfilter_requests_in_flight"), 300);
        // Half of them get an answer; all end.
        for (at, stream) in streams.iter().enumerate() {
            if at % 2 == 0 {
                stream.response(&ok());
            }
            stream.finish();
        }
        assert_eq!(value(proxy, "meshfilter_requests_in_flight"), 0);
        assert_eq!(value(proxy, "meshfilter_requests_started_total"), 300);
    });
}

#[test]
fn a_connection_has_metrics_of_its_own() {
    each(r#"{"bytes": true}"#, 1, |proxy, _| {
        proxy.set_property(&["xds", "listener_direction"], 1_i64);
        let stream = proxy.tcp("in", 0);
        assert_eq!(value(proxy, "meshfilter_connections_open{direction=inbound}"), 1);
        stream.downstream_data("abc", false);
        proxy.advance(9 * MS);
        stream.set_property(&["request", "total_size"], 3_i64);
        stream.close(Peer::Remote);
        assert_eq!(value(proxy, "meshfilter_connections_open{direction=inbound}"), 0);
        let labels = "direction=inbound,protocol=tcp";
        assert_eq!(value(proxy, &format!("meshfilter_connections_finished_total{{{labels}}}")), 1);
        assert_eq!(value(proxy, &format!("meshfilter_request_bytes_total{{{labels}}}")), 3);
        assert_eq!(samples(proxy, &format!("meshfilter_connection_duration_millis{{{labels}}}")), [9]);
        assert_eq!(stream.filter_state("latency.total_us").unwrap(), b"9000");
    });
}

#[test]
fn the_time_in_the_filters_between_is_the_chains() {
    for (_, code) in both::<Latency>("dist/latency.wasm") {
        let proxy = Proxy::new(1, 1);
        let role =
            |role: &str| Plugin::new(role, &code).configuration(format!(r#"{{"role": "{role}", "labels": []}}"#));
        // A filter that holds the request back for a while would stand between; here the chain does, by pausing.
        let slow = Slow::code();
        proxy.push("in", [role("outer"), Plugin::new("slow", &slow), role("inner")]).unwrap();
        proxy.cluster("wait", |_| Some((8 * MS, emulator::CallEnd::Reset)));
        let stream = proxy.http("in", 0);
        stream.request(&get("/"));
        proxy.advance(8 * MS);
        proxy.advance(20 * MS);
        stream.response(&ok());
        let done = stream.finish();
        assert_eq!(state(&done, "filters_us").unwrap(), "8000");
        assert_eq!(samples(&proxy, "meshfilter_filters_duration_micros"), [8000]);
        assert_eq!(value(&proxy, "meshfilter_requests_started_total"), 1, "the inner one does not count");
    }
}

/// Holds each request until a call has ended.
struct Slow(emulator::Host);

impl Slow {
    fn code() -> Rc<dyn Code> {
        struct Make;
        impl Code for Make {
            fn identity(&self) -> u64 {
                42
            }
            fn start(&self, host: emulator::Host) -> Result<Box<dyn emulator::Guest>, String> {
                Ok(Box::new(Slow(host)))
            }
        }
        Rc::new(Make)
    }
}

impl emulator::Guest for Slow {
    fn has(&self, callback: &str) -> bool {
        ["proxy_on_request_headers", "proxy_on_http_call_response"].contains(&callback)
    }
    fn call(&mut self, callback: emulator::Callback) -> Result<u64, String> {
        if let emulator::Callback::HttpCallResponse { .. } = callback {
            self.0.set_effective_context(2).unwrap();
            self.0.continue_stream(0).unwrap();
            return Ok(0);
        }
        let head = pairs([(":method", "GET"), (":path", "/"), (":authority", "a")]);
        self.0.http_call(b"wait", &emulator::encode_pairs(&head), b"", b"", 0).unwrap();
        Ok(1)
    }
}

#[test]
fn what_a_stranger_makes_up_makes_no_series() {
    each(r#"{"max_series": 20, "labels": ["method", "code", "route"], "code": "exact"}"#, 1, |proxy, _| {
        for n in 0..2000_u32 {
            let request = Message::new([
                (":method", format!("M{n}").as_str()),
                (":path", "/"),
                (":authority", format!("host-{n}").as_str()),
            ]);
            let stream = proxy.http("in", 0);
            stream.request(&request);
            stream.set_property(&["xds", "route_name"], format!("route-{n}").as_str());
            stream.response(&Message::new([(":status", (200 + n % 400).to_string().as_str())]));
            stream.finish();
        }
        // 20, and one more of each metric.
        assert!(proxy.metrics().len() <= 25, "{}", proxy.metrics().len());
        let over = "meshfilter_requests_finished_total{direction=overflow,protocol=overflow,method=overflow,code=overflow,grpc_status=overflow,failure=overflow,route=overflow,cluster=overflow}";
        assert!(value(proxy, over) > 1900);
    });
}

#[test]
fn what_is_left_out_is_not_measured_and_sampling_spares_only_the_log() {
    each(
        r#"{"exclude": {"paths": ["/health"], "routes": ["probe"]}, "properties": {"sample": 0.5}}"#,
        1,
        |proxy, _| {
            let done = timed(proxy, &get("/healthz"), &ok());
            assert!(done.filter_state.is_empty());
            let stream = proxy.http("in", 0);
            stream.set_property(&["xds", "route_name"], "probe");
            stream.request(&get("/"));
            stream.finish();
            assert!(!proxy.metrics().keys().any(|name| name.contains("finished")));
            assert_eq!(value(proxy, "meshfilter_requests_in_flight"), 0);
            let logged = (0..400).filter(|_| !timed(proxy, &get("/"), &ok()).filter_state.is_empty()).count();
            assert!((150..250).contains(&logged), "{logged} of 400");
            assert_eq!(value(proxy, "meshfilter_requests_finished_total{protocol=http,method=GET,code=2xx}"), 400);
        },
    );
}

#[test]
fn a_wrong_configuration_says_where_and_what_would_be_right() {
    each("{}", 1, |proxy, plugin| {
        for (wrong, said) in [
            (r#"{"lables": ["route"]}"#, "at `lables`: is no field"),
            (r#"{"labels": ["route", "route"]}"#, "at `labels[1]`: stands there twice, take one out"),
            (r#"{"slo": [{"name": "", "within": "1s"}]}"#, "at `slo[0].name`: is empty"),
            (r#"{"slo": [{"name": "a;b", "within": "1s"}]}"#, "at `slo[0].name`: does not fit into a label"),
            (r#"{"slo": [{"name": "a\u0007", "within": "1s"}]}"#, "at `slo[0].name`: does not fit into a label"),
            (
                &format!(r#"{{"slo": [{{"name": "{}", "within": "1s"}}]}}"#, "a".repeat(65)),
                "at `slo[0].name`: does not",
            ),
            (r#"{"slo": [{"name": "a", "within": "0s"}]}"#, "at `slo[0].within`: is zero"),
            (
                r#"{"slo": [{"name": "a", "within": "1s"}, {"name": "a", "within": "2s"}]}"#,
                "at `slo[1].name`: stands there twice",
            ),
            (r#"{"slo": [{"name": "overflow", "within": "1s"}]}"#, "at `slo[0].name`: is what stands for all"),
            (r#"{"role": "inner", "server_timing": true}"#, "at `server_timing`: does nothing with role inner"),
            (r#"{"role": "inner", "apdex": "1s"}"#, "at `apdex`: does nothing with role inner"),
            (r#"{"apdex": "0ms"}"#, "at `apdex`: is zero"),
            (r#"{"exclude": {"paths": [""]}}"#, "at `exclude.paths[0]`: is empty and would mean all"),
            (r#"{"max_series": 1e400}"#, "is not JSON"),
            (r#"{"max_series": 99.5}"#, "at `max_series`: "),
            (r#"{"max_series": -1}"#, "at `max_series`: "),
            (r#"{"max_series": 100001}"#, "at `max_series`: is out of range"),
            (r#"{"properties": {"sample": 1.01}}"#, "at `properties.sample`: is out of range"),
            (r#"{"properties": {"sample": -0.1}}"#, "at `properties.sample`: is out of range"),
            (r#"{"slo": [{"name": "a", "within": "99999999999999999999h"}]}"#, "at `slo[0].within`: "),
            (r#"{"slo": [{"name": "a"}]}"#, "at `slo[0]"),
            (r#"{"slo": {"name": "a", "within": "1s"}}"#, "at `slo`: "),
            (r#"{"apdex": 100}"#, "at `apdex`: "),
            (r#"{"apdex": "-1s"}"#, "at `apdex`: "),
            (r#"{"labels": ["host"]}"#, "at `labels[0]`: is not known, give one of direction"),
            (r#"{"labels": null}"#, "at `labels`: "),
            (r#"{"bytes": "yes"}"#, "at `bytes`: "),
            (r#"{"bytes": true, "bytes": true}"#, "bytes"),
            (r#"{"exclude": ["/healthz"]}"#, "at `exclude`: "),
            (r#"{"streams": [1]}"#, "at `streams[0]`: "),
            ("[]", "at `(top level)`: "),
            ("42", "at `(top level)`: "),
            (r#"{"max_series": 5}"#, "at `max_series`: is out of range, give a whole number from 10 to 100000"),
            (r#"{"role": "middle"}"#, "at `role`: is not known, give one of alone, outer, inner"),
        ] {
            assert!(proxy.push("in", [plugin(wrong)]).is_err(), "{wrong}");
            let line = refusal("latency", &proxy.log().last().unwrap().text);
            assert!(line.contains(said), "{wrong}: {line}");
        }
    });
}

#[test]
fn every_example_of_the_readme_is_taken_and_every_filter_state_is_in_it() {
    let readme = include_str!("../README.md");
    let examples: Vec<&str> =
        readme.lines().filter_map(|line| Some(line.split_once("| `{")?.1.split_once("` |")?.0)).collect();
    assert!(examples.len() >= 7);
    each("{}", 1, |proxy, plugin| {
        for example in &examples {
            proxy.push("in", [plugin(&format!("{{{example}"))]).unwrap_or_else(|why| panic!("{example}: {why}"));
        }
        let everything = r#"{"role": "outer", "properties": {"json": true}}"#;
        proxy.push("in", [plugin(everything), plugin(r#"{"role": "inner"}"#)]).unwrap();
        let done = timed(proxy, &get("/"), &ok());
        let named: std::collections::BTreeSet<&str> =
            readme.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0)).collect();
        let named: Vec<&str> = named.into_iter().filter(|name| name.starts_with("wasm.")).collect();
        // What the two tell each other is theirs.
        let set = done.filter_state.keys().map(String::as_str).filter(|key| *key != "wasm.latency.inner_ns");
        assert_eq!(set.collect::<Vec<_>>(), named);
    });
}

#[test]
fn the_first_beginning_that_is_written_stands() {
    for (how, code) in both::<Latency>("dist/latency.wasm") {
        let proxy = Proxy::new(1, 1);
        let slow = Slow::code();
        let chain = [Plugin::new("first", &code), Plugin::new("slow", &slow), Plugin::new("second", &code)];
        proxy.push("in", chain).unwrap();
        proxy.cluster("wait", |_| Some((8 * MS, emulator::CallEnd::Reset)));
        let began = proxy.now_ns().to_string();
        let stream = proxy.http("in", 0);
        stream.request(&get("/"));
        proxy.advance(8 * MS);
        stream.response(&ok());
        assert_eq!(stream.finish().filter_state["wasm.start_time_ns"], began.as_bytes(), "{how}");
    }
}

#[test]
fn a_push_changes_what_begins_and_not_what_is_under_way() {
    each("{}", 1, |proxy, plugin| {
        proxy.set_property(&["xds", "listener_direction"], 1_i64);
        let level = |name: &str| value(proxy, &format!("meshfilter_requests_in_flight{name}"));
        let mut under_way = Vec::new();
        for configuration in [
            "{}",
            r#"{"labels": [], "unit": "us"}"#,
            r#"{"max_series": 10, "role": "outer", "exclude": {"paths": ["/"]}}"#,
            r#"{"role": "inner"}"#,
        ] {
            proxy.push("in", [plugin(configuration)]).unwrap();
            let stream = proxy.http("in", 0);
            stream.request(&get("/"));
            under_way.push(stream);
        }
        assert_eq!((level("{direction=inbound}"), level("")), (1, 1));
        proxy.advance(3 * MS);
        for stream in under_way {
            stream.response(&ok());
            stream.finish();
        }
        assert_eq!((level("{direction=inbound}"), level("")), (0, 0));
        let ms = "meshfilter_request_duration_millis{direction=inbound,protocol=http,method=GET,code=2xx}";
        assert_eq!(samples(proxy, ms), [3]);
        assert_eq!(samples(proxy, "meshfilter_request_duration_micros"), [3000]);
        assert_eq!(proxy.metrics().keys().filter(|name| name.contains("finished")).count(), 2);
    });
}

#[test]
fn what_a_path_says_is_read_before_routes_write_it_over() {
    each(r#"{"exclude": {"paths": ["/healthz"]}, "streams": ["/watch"]}"#, 1, |proxy, _| {
        for (sent, routed, counted) in [
            ("/healthz", "/other", ""),
            ("/other", "/healthz", "request"),
            ("/watch", "/other", "stream"),
            ("/other", "/watch", "request"),
        ] {
            let before = proxy.metrics();
            let stream = proxy.http("in", 0);
            stream.request(&get(sent));
            stream.edit_request_headers(|headers| *headers = get(routed).headers);
            stream.response(&ok());
            stream.finish();
            let of = |kind: &str, metrics: &std::collections::BTreeMap<String, emulator::Metric>| {
                let name = format!("meshfilter_{kind}_duration");
                let histogram = metrics.iter().find(|(series, _)| series.starts_with(&name));
                histogram.map_or(0, |(_, metric)| metric.samples.len())
            };
            for kind in ["request", "stream"] {
                let more = of(kind, &proxy.metrics()) - of(kind, &before);
                assert_eq!(more, usize::from(kind == counted), "{sent}, {routed}: {kind}");
            }
        }
    });
}

#[test]
fn several_attempts_are_told_and_the_last_ones_times_with_them() {
    each(r#"{"properties": {"json": true}}"#, 1, |proxy, _| {
        for (attempts, approximate) in [(1_u64, false), (2, true), (7, true)] {
            let stream = proxy.http("in", 0);
            stream.request(&get("/"));
            proxy.advance(60 * MS);
            upstream(&stream);
            stream.set_property(&["upstream", "request_attempt_count"], attempts);
            stream.response(&ok());
            let done = stream.finish();
            assert_eq!(state(&done, "attempts").unwrap(), attempts.to_string());
            assert_eq!(
                (state(&done, "upstream_us"), state(&done, "proxy_us")),
                (Some("20000".into()), Some("40000".into()))
            );
            assert_eq!(state(&done, "json").unwrap().ends_with(r#","approximate":true}"#), approximate);
        }
    });
}

#[test]
fn how_it_was_cut_off_says_whose_fault_it_was() {
    let grpc = Message::new([
        (":method", "POST"),
        (":path", "/a.B/C"),
        (":authority", "a"),
        ("content-type", "application/grpc"),
    ]);
    let connect = Message::new([(":method", "CONNECT"), (":authority", "a")]);
    let answer = |status: &str| Message::new([(":status", status)]);
    // What was asked; how it was answered; the proxy's flags and details; the label; whether that was good.
    for (request, response, flags, details, failure, good) in [
        (get("/"), ok(), 0, "via_upstream", "", 1),
        (get("/"), ok(), 0, "max_duration_timeout", "timeout", 0),
        (get("/"), answer("408"), 0, "request_overall_timeout", "timeout", 0),
        (get("/"), ok(), 1 << 14, "downstream_remote_disconnect", "client_gone", 1),
        (grpc.clone(), ok(), 1 << 14, "downstream_remote_disconnect", "client_gone", 1),
        (grpc, ok(), 0, "max_duration_timeout", "timeout", 0),
        // Of a request, not of a stream: those are not judged.
        (connect.clone(), answer("404"), 1 << 8, "route_not_found", "no_route", 1),
        (connect, answer("503"), 1 << 5, "upstream_reset", "no_upstream", 0),
    ] {
        each(r#"{"labels": ["failure"], "slo": [{"name": "ok", "within": "1s"}]}"#, 1, |proxy, _| {
            let stream = proxy.http("in", 0);
            stream.request(&request);
            stream.set_property(&["response", "flags"], i64::from(flags));
            stream.set_property(&["response", "code_details"], details);
            // What the proxy makes of a status of HTTP where none of gRPC came.
            stream.set_property(&["response", "grpc_status"], 2_i64);
            stream.response(&response);
            stream.finish();
            let label = if failure.is_empty() { String::new() } else { format!("{{failure={failure}}}") };
            assert_eq!(value(proxy, &format!("meshfilter_requests_finished_total{label}")), 1, "{details}");
            assert_eq!(value(proxy, "meshfilter_slo_requests_total{objective=ok}"), 1, "{details}");
            assert_eq!(value(proxy, "meshfilter_slo_good_requests_total{objective=ok}"), good, "{details}");
        });
    }
}

#[test]
fn who_leaves_without_an_answer_says_nothing_of_one_unless_it_waited_for_longer_than_was_promised() {
    let configuration =
        r#"{"slo": [{"name": "a", "within": "20ms"}, {"name": "b", "within": "40ms"}], "apdex": "5ms"}"#;
    for (waited, a, b, frustrated) in [(19, 0, 0, 0), (21, 1, 0, 1), (41, 1, 1, 1)] {
        each(configuration, 1, |proxy, _| {
            let stream = proxy.http("in", 0);
            stream.request(&get("/"));
            proxy.advance(waited * MS);
            stream.set_property(&["response", "flags"], 1_i64 << 14);
            stream.finish();
            let all = |name: &str| value(proxy, &format!("meshfilter_slo_requests_total{{objective={name}}}"));
            assert_eq!((all("a"), all("b")), (a, b), "{waited} ms");
            let good = |name: &str| value(proxy, &format!("meshfilter_slo_good_requests_total{{objective={name}}}"));
            assert_eq!((good("a"), good("b")), (0, 0), "{waited} ms");
            let felt = |feeling: &str| value(proxy, &format!("meshfilter_apdex_requests_total{{feeling={feeling}}}"));
            assert_eq!((felt("satisfied"), felt("tolerating"), felt("frustrated")), (0, 0, frustrated), "{waited} ms");
        });
    }
}

/// Plugins of one VM share its series, whichever is configured last.
#[test]
fn the_least_limit_of_series_counts_and_an_inner_one_has_none() {
    let with = |role: &str, most: usize| {
        format!(r#"{{"role": "{role}", "max_series": {most}, "labels": ["code"], "code": "exact"}}"#)
    };
    let inner = r#"{"role": "inner"}"#.to_owned();
    for (first, second, overflows) in [
        (with("outer", 10), inner.clone(), true),
        (with("outer", 5000), inner, false),
        (with("alone", 10), with("alone", 5000), true),
        (with("alone", 5000), with("alone", 10), true),
    ] {
        for (how, code) in both::<Latency>("dist/latency.wasm") {
            let proxy = Proxy::new(1, 1);
            let chain = [("first", &first), ("second", &second)];
            proxy.push("in", chain.map(|(name, text)| Plugin::new(name, &code).configuration(text))).unwrap();
            for status in 200..600 {
                let stream = proxy.http("in", 0);
                stream.request(&get("/"));
                stream.response(&Message::new([(":status", status.to_string().as_str())]));
                stream.finish();
            }
            let metrics = proxy.metrics();
            let over = metrics.keys().any(|name| name.contains("overflow"));
            assert_eq!(over, overflows, "{how}: {first}, {second}");
            // Ten, and the one over of each metric that has labels.
            assert!(!over || metrics.len() <= 20, "{how}: {first}, {second}: {}", metrics.len());
        }
    }
}

#[test]
fn media_types_are_known_in_any_case_and_grpc_web_is_none_of_grpc() {
    for (asked, answered, protocol, kind) in [
        ("application/json", "Text/Event-Stream;charset=utf-8", "http", "stream"),
        ("application/json", "text/event-strea", "http", "request"),
        ("Application/GRPC+proto", "application/grpc", "grpc", "request"),
        ("application/grpc;a=b", "application/grpc", "grpc", "request"),
        ("application/grpc-web", "application/grpc-web", "http", "request"),
    ] {
        each(r#"{"labels": ["protocol"]}"#, 1, |proxy, _| {
            let request = [(":method", "POST"), (":path", "/"), (":authority", "a"), ("content-type", asked)];
            timed(proxy, &Message::new(request), &Message::new([(":status", "200"), ("content-type", answered)]));
            let name = format!("meshfilter_{kind}_duration_millis{{protocol={protocol}}}");
            assert_eq!(samples(proxy, &name), [27], "{asked}, {answered}");
        });
    }
}

#[test]
fn milliseconds_are_rounded_and_four_times_t_is_tolerated() {
    each(r#"{"labels": [], "apdex": "5ms"}"#, 1, |proxy, _| {
        for us in [499, 500, 20_000, 20_001] {
            let stream = proxy.http("in", 0);
            stream.request(&get("/"));
            proxy.advance(Duration::from_micros(us));
            stream.response(&ok());
            stream.finish();
        }
        assert_eq!(samples(proxy, "meshfilter_request_duration_millis"), [0, 1, 20, 20]);
        let felt = |feeling: &str| value(proxy, &format!("meshfilter_apdex_requests_total{{feeling={feeling}}}"));
        assert_eq!((felt("satisfied"), felt("tolerating"), felt("frustrated")), (2, 1, 1));
    });
}

#[test]
fn lists_of_any_length_are_taken() {
    let list = |beginning: &str| (0..20_000).map(|n| format!("\"{beginning}{n}/\"")).collect::<Vec<_>>().join(",");
    let objectives: Vec<_> = (0..500).map(|n| format!(r#"{{"name": "o{n}", "within": "{n}1ms"}}"#)).collect();
    let configuration = format!(
        r#"{{"exclude": {{"paths": [{}], "routes": [{}]}}, "streams": [{}], "slo": [{}], "max_series": 20}}"#,
        list("/out"),
        list("route"),
        list("/stream"),
        objectives.join(",")
    );
    each(&configuration, 1, |proxy, _| {
        for path in ["/out19999/a", "/stream19999/a", "/"] {
            timed(proxy, &get(path), &ok());
        }
        let finished = "meshfilter_requests_finished_total{protocol=http,method=GET,code=2xx}";
        assert_eq!((value(proxy, finished), value(proxy, "meshfilter_requests_in_flight")), (2, 0));
        assert_eq!(samples(proxy, "meshfilter_stream_duration_millis{protocol=http,method=GET,code=2xx}"), [27]);
        // More objectives than series: the rest is counted together.
        assert_eq!(value(proxy, "meshfilter_slo_requests_total{objective=o0}"), 1);
        assert!(value(proxy, "meshfilter_slo_requests_total{objective=overflow}") > 400);
        assert!(proxy.metrics().len() <= 25, "{}", proxy.metrics().len());
    });
}

#[test]
fn two_of_one_chain_both_count_and_both_come_back_to_zero() {
    each("{}", 1, |proxy, plugin| {
        proxy
            .push("in", [plugin(r#"{"labels": ["code"]}"#), plugin(r#"{"labels": ["protocol"], "unit": "us"}"#)])
            .unwrap();
        let stream = proxy.http("in", 0);
        stream.request(&get("/"));
        assert_eq!(value(proxy, "meshfilter_requests_in_flight"), 2);
        stream.response(&ok());
        stream.finish();
        for labels in ["code=2xx", "protocol=http"] {
            assert_eq!(value(proxy, &format!("meshfilter_requests_finished_total{{{labels}}}")), 1, "{labels}");
        }
        assert_eq!(value(proxy, "meshfilter_requests_in_flight"), 0);
    });
}
