//! The way of a request through a VM: phases in any order, hosts that fail, configurations that change.
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

use emulator::{Fault, Plugin, Status};
use kit::{
    Answer, Call, Context, Filter, Flow, Headers, Next, Phases, Refusal, Reply, RootContext, Vm,
    testing::{Message, Proxy, host, native, pairs},
};

/// Counts requests in its state, answers where it is told to, and edits headers as a list of words says.
struct Probe {
    name: String,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    name: String,
}

#[derive(Default)]
struct State {
    seen: u32,
}

impl Filter for Probe {
    const NAME: &'static str = "probe";
    const PHASES: Phases = Phases::REQUEST_HEADERS.and(Phases::RESPONSE_HEADERS).and(Phases::LOG);
    type Config = Config;
    type State = State;
    type Stream = Vec<u8>;

    fn new(config: Config) -> Result<Self, Refusal> {
        Ok(Self { name: config.name })
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        cx.state.seen += 1;
        let word = headers.get("x-edit").unwrap_or_default().to_vec();
        match word.as_slice() {
            b"set" => headers.set("x", b"new"),
            b"set same" => headers.set("x", b"1"),
            b"set twice" => {
                headers.set("x", b"first");
                headers.set("x", b"second");
            }
            b"set and add" => {
                headers.set("x", b"a");
                headers.add("x", b"b");
            }
            b"remove" => headers.remove("x"),
            b"remove absent" => headers.remove("y"),
            b"set and remove" => {
                headers.set("x", b"a");
                headers.remove("x");
            }
            b"remove and set" => {
                headers.remove("x");
                headers.set("x", b"a");
            }
            b"reply" => {
                return Flow::Reply(Reply { status: 403, body: b"no".to_vec(), ..Reply::default() });
            }
            _ => {}
        }
        // What is seen is what will be written.
        let seen: Vec<_> = headers.all("x").map(|value| String::from_utf8_lossy(value).into_owned()).collect();
        let walked: Vec<_> =
            headers.iter().filter(|(n, _)| *n == b"x").map(|(_, v)| String::from_utf8_lossy(v).into_owned()).collect();
        assert_eq!(seen, walked);
        assert_eq!(headers.get("x"), seen.first().map(String::as_bytes));
        *cx.stream = seen.join(",").into_bytes();
        let _ = cx.host.set_filter_state("by", format!("{} {}", self.name, cx.state.seen).as_bytes());
        Flow::Continue
    }

    fn response_headers(&self, _: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        headers.set("x-by", self.name.as_bytes());
        // Nothing has been read, and the change is seen all the same.
        assert!(headers.look("x-by", |value| value == Some(self.name.as_bytes())));
        Flow::Continue
    }

    fn log(&self, cx: &mut Context<'_, Self>, _: &Headers<'_>, _: &Headers<'_>) {
        let _ = cx.host.set_filter_state("logged", cx.stream);
    }
}

fn proxy() -> Proxy<Probe> {
    Proxy::start(r#"{"name": "a"}"#).unwrap()
}

#[test]
fn edits_are_seen_at_once_and_written_with_as_few_calls_as_can_be() {
    let one = [("x", "1")];
    let two = [("x", "1"), ("x", "2")];
    // Edit, what came, what goes on, and the calls (replace, add, remove).
    for (edit, came, want, calls) in [
        ("set", &one[..], vec!["new"], (1, 0, 0)),
        ("set", &[], vec!["new"], (1, 0, 0)),
        ("set", &two, vec!["new"], (1, 0, 0)),
        ("set same", &one, vec!["1"], (0, 0, 0)),
        ("set same", &two, vec!["1"], (1, 0, 0)),
        ("set twice", &one, vec!["second"], (1, 0, 0)),
        ("set and add", &one, vec!["a", "b"], (1, 1, 0)),
        ("remove", &one, vec![], (0, 0, 1)),
        ("remove", &two, vec![], (0, 0, 1)),
        ("remove", &[], vec![], (0, 0, 0)),
        ("remove absent", &one, vec!["1"], (0, 0, 0)),
        ("set and remove", &one, vec![], (0, 0, 1)),
        ("remove and set", &one, vec!["a"], (1, 0, 0)),
    ] {
        let mut proxy = proxy();
        let upstream = proxy.request([&pairs(&[("x-edit", edit)])[..], &pairs(came)].concat());
        let went: Vec<_> = upstream.iter().filter(|(n, _)| n == "x").map(|(_, v)| str::from_utf8(v).unwrap()).collect();
        assert_eq!(went, want, "{edit} of {came:?}");
        assert_eq!(proxy.state("logged").unwrap(), want.join(","), "{edit}: seen in the phase");
        // The response header is one more write, of a map that nobody read.
        let writes = ["replace", "add", "remove"].map(|call| proxy.calls(&format!("proxy_{call}_header_map_value")));
        let made = (writes[0] - 1, writes[1], writes[2]);
        assert_eq!(made, calls, "{edit} of {came:?}");
    }
}

#[test]
fn bytes_of_every_value_come_and_go_as_they_are() {
    let mut proxy = proxy();
    let all: Vec<u8> = (0..=255).collect();
    let came = vec![("y".into(), all.clone()), ("empty".into(), vec![]), ("x-edit".into(), all)];
    assert_eq!(proxy.request(came.clone()), came);
}

#[test]
fn state_outlives_a_configuration_and_requests_end_with_the_one_they_began_with() {
    let mut proxy = proxy();
    proxy.request(pairs(&[]));
    let streams = std::cell::RefCell::new(Vec::new());
    proxy.each(|proxy| {
        let stream = proxy.http("test", 0);
        stream.request_headers(emulator::Pairs::new(), true);
        streams.borrow_mut().push(stream);
    });
    assert!(proxy.configure(r#"{"name": "b"}"#));
    assert_eq!(proxy.held(), (1, 2), "the old policy waits for its request");
    proxy.request(pairs(&[]));
    assert_eq!(proxy.state("by").unwrap(), "b 3");
    for stream in streams.take() {
        stream.response_headers(emulator::pairs([(":status", "200")]), true);
        let done = stream.finish();
        assert_eq!(done.filter_state["wasm.by"], b"a 2", "the old policy, the same state");
        assert_eq!(done.downstream.all("x-by"), [b"a"]);
    }
    assert_eq!(proxy.held(), (0, 1));
}

#[test]
fn plugins_of_one_vm_have_a_state_each() {
    let (proxy, code) = (emulator::Proxy::new(1, 1), native::<Probe>());
    for name in ["one", "two"] {
        proxy.push(name, [Plugin::new(name, &code).configuration(format!(r#"{{"name": "{name}"}}"#))]).unwrap();
    }
    assert_eq!(proxy.vms().len(), 3, "base, main, worker: they share them");
    let by = |chain: &str| {
        let done = proxy.exchange(chain, 0, &Message::new([(":path", "/")]), &Message::new([(":status", "200")]));
        String::from_utf8(done.filter_state["wasm.by"].clone()).unwrap()
    };
    assert_eq!([by("one"), by("one"), by("two"), by("one")], ["one 1", "one 2", "two 1", "one 3"]);
}

#[test]
fn a_refused_configuration_changes_nothing() {
    let mut proxy = proxy();
    for wrong in ["", "{}", "[]", r#"{"name": 1}"#, r#"{"name": "x", "nane": "y"}"#, "{", "\u{1}"] {
        assert!(!proxy.configure(wrong), "{wrong}");
    }
    proxy.request(pairs(&[]));
    assert_eq!(proxy.state("by").unwrap(), "a 1");
    assert_eq!(proxy.held(), (0, 1));
}

#[test]
fn a_reply_stops_the_request_unless_the_host_will_not_send_it() {
    let mut proxy = proxy();
    assert_eq!(proxy.request(pairs(&[("x-edit", "reply")])), []);
    assert_eq!(proxy.reply().unwrap().status, 403);
    proxy.fail("proxy_send_local_response");
    let came = pairs(&[("x-edit", "reply")]);
    assert_eq!(proxy.request(came.clone()), came);
    assert_eq!(proxy.reply(), None);
}

#[test]
fn phases_that_nobody_announced_and_phases_that_never_came_pass() {
    let (host, proxy) = host();
    let vm = Vm::<Probe>::new();
    proxy.fault(Fault::of("proxy_get_buffer_bytes").status(Status::OK).bytes(r#"{"name": "a"}"#));
    vm.create_context(&host, 1, 0);
    assert!(vm.configure(&host, 1));
    for id in [0, 99, u32::MAX] {
        assert_eq!(vm.request_headers(&host, id, true), Next::Continue);
        assert_eq!(vm.response_headers(&host, id, true), Next::Continue);
        vm.log(&host, id);
        vm.delete_context(id);
    }
    // A request of a plugin that does not exist, and one that ends before it began.
    vm.create_context(&host, 50, 49);
    vm.log(&host, 50);
    vm.create_context(&host, 51, 1);
    vm.log(&host, 51);
    vm.delete_context(51);
    assert_eq!(vm.held(), (0, 1));
}

#[test]
fn a_host_that_fails_every_call_stops_nothing() {
    let mut proxy = proxy();
    proxy.fail_all();
    for edit in ["set", "set twice", "remove", "reply", ""] {
        proxy.request(pairs(&[("x-edit", edit), ("x", "1")]));
    }
    assert!(!proxy.configure(r#"{"name": "b"}"#), "a configuration that cannot be read is not taken for an empty one");
    assert_eq!(proxy.held(), (0, 1));
}

#[test]
fn a_thousand_requests_in_flight_leave_nothing_behind() {
    let proxy = proxy();
    let mut streams = Vec::new();
    proxy.each(|proxy| streams.extend((0..1000).map(|_| proxy.http("test", 0))));
    streams.iter().for_each(|stream| stream.request_headers(emulator::Pairs::new(), true));
    assert_eq!(proxy.held(), (1000, 1));
    streams.iter().rev().for_each(|stream| drop(stream.finish()));
    assert_eq!(proxy.held(), (0, 1));
}

/// Asks a cluster at each tick, and keeps what it heard.
struct Asker {
    name: String,
}

#[derive(Default)]
struct Heard {
    said: Vec<String>,
    call: Option<u32>,
}

impl Filter for Asker {
    const NAME: &'static str = "asker";
    const PHASES: Phases = Phases::TICK.and(Phases::ANSWERED).and(Phases::LOG);
    type Config = Config;
    type State = Heard;
    type Stream = ();

    fn new(config: Config) -> Result<Self, Refusal> {
        Ok(Self { name: config.name })
    }

    fn configured(&self, cx: &mut RootContext<'_, Self>) {
        cx.state.said.push(format!("configured {}", self.name));
    }

    fn tick_ms(&self) -> u32 {
        100
    }

    fn tick(&self, cx: &mut RootContext<'_, Self>) {
        cx.state.said.push(format!("tick {}", self.name));
        let header = |name: &str, value: &str| (name.to_string(), value.as_bytes().to_vec());
        let headers = [header(":method", "GET"), header(":path", "/"), header(":authority", "a")];
        let call = Call { cluster: "source", headers: &headers, body: b"", timeout_ms: 50 };
        match cx.host.call(&call) {
            Ok(call) => cx.state.call = Some(call),
            Err(status) => cx.state.said.push(format!("call: {status}")),
        }
    }

    fn answered(&self, cx: &mut RootContext<'_, Self>, call: u32, answer: &Answer<'_>) {
        let mine = cx.state.call == Some(call);
        let body = String::from_utf8(answer.body(100).to_vec()).unwrap();
        let etag = answer.header("etag").map(|etag| String::from_utf8(etag.to_vec()).unwrap());
        cx.state.said.push(format!("{mine} {:?} {etag:?} {} {body}", answer.status(), answer.size()));
    }

    fn log(&self, cx: &mut Context<'_, Self>, _: &Headers<'_>, _: &Headers<'_>) {
        let said = std::mem::take(&mut cx.state.said).join("; ");
        cx.host.set_filter_state("said", said.as_bytes()).unwrap();
    }
}

#[test]
fn a_plugin_hears_that_time_passes_and_what_answers_its_calls() {
    use emulator::CallEnd;
    use std::time::Duration;
    let proxy = emulator::Proxy::new(2, 1);
    let code = native::<Asker>();
    let plugin = |name: &str| Plugin::new("asker", &code).configuration(format!(r#"{{"name": "{name}"}}"#));
    let said = |worker| {
        let (request, response) = (Message::new([(":path", "/")]), Message::new([(":status", "200")]));
        let done = proxy.exchange("in", worker, &request, &response);
        String::from_utf8(done.filter_state["wasm.said"].clone()).unwrap()
    };
    proxy.push("in", [plugin("a")]).unwrap();
    proxy.advance(Duration::from_millis(100));
    assert_eq!(said(0), "configured a; tick a; call: bad argument", "there is no such cluster");
    assert_eq!(said(1), "configured a; tick a; call: bad argument", "each worker has ticks");

    proxy.cluster("source", |_| {
        let answer = Message::new([(":status", "200"), ("etag", "\"1\"")]).chunk("hello");
        Some((Duration::from_millis(10), CallEnd::Response(answer)))
    });
    proxy.advance(Duration::from_millis(110));
    assert_eq!(said(0), r#"tick a; true Some(200) Some("\"1\"") 5 hello"#);
    proxy.cluster("source", |_| Some((Duration::from_millis(10), CallEnd::Reset)));
    proxy.advance(Duration::from_millis(100));
    assert_eq!(said(0), "tick a; true None None 0 ");
    // Too slow: the proxy answers in its place.
    proxy.cluster("source", |_| None);
    proxy.advance(Duration::from_millis(140));
    assert!(said(0).starts_with("tick a; true Some(504)"));

    // One that was replaced ticks until its last request has ended.
    let open = proxy.http("in", 0);
    open.request_headers(Message::new([(":path", "/")]).headers, true);
    proxy.push("in", [plugin("b")]).unwrap();
    said(0);
    proxy.advance(Duration::from_millis(100));
    let heard = said(0);
    assert!(heard.contains("tick b") && heard.contains("tick a"), "{heard}");
    drop(open.finish());
    said(0);
    proxy.advance(Duration::from_millis(200));
    let heard = said(0);
    assert!(heard.contains("tick b") && !heard.contains("tick a"), "{heard}");
}
