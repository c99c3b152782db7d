//! What spans several VMs, configurations and failures: the filter in an emulated proxy with several workers, natively and
//! as the built module.
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

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use emulator::{Code, Exchange, FailurePolicy, Fault, Message, Plugin, Proxy, Status};
use kit::testing::both;
use trace_id::TraceId;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER: &str = "00-11111111111111111111111111111111-2222222222222222-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn each(run: impl Fn(&str, &dyn Fn(&str) -> Plugin)) {
    for (how, code) in both::<TraceId>("dist/trace-id.wasm") {
        let code: Rc<dyn Code> = code;
        run(how, &|configuration| Plugin::new("trace-id", &code).configuration(configuration));
    }
}

fn with(headers: &[(&str, &str)]) -> Message {
    Message::new([(":method", "GET"), (":path", "/")].iter().chain(headers).copied())
}

fn send(proxy: &Proxy, worker: usize, headers: &[(&str, &str)]) -> Exchange {
    proxy.exchange("in", worker, &with(headers), &Message::new([(":status", "200")]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn traceparent(done: &Exchange) -> String {
    let [value] = done.upstream.all("traceparent")[..] else { panic!("not one traceparent: {done:?}") };
    text(value)
}

fn state(done: &Exchange, key: &str) -> String {
    text(&done.filter_state[&format!("wasm.{key}")])
}

#[test]
fn no_two_workers_make_the_same_ids_nor_does_a_vm_that_was_started_again() {
    each(|how, plugin| {
        let proxy = Proxy::new(4, 3);
        let plugin = || plugin("{}").failure_policy(FailurePolicy::Reload).reload_backoff(Duration::ZERO);
        proxy.push("in", [plugin()]).unwrap();
        let mut seen = BTreeSet::new();
        let mut draw = |rounds: usize| {
            for round in 0..rounds {
                for worker in 0..4 {
                    let sent = traceparent(&send(&proxy, worker, &[]));
                    assert!(seen.insert(sent[3..35].to_owned()), "{how}, worker {worker}, round {round}: {sent}");
                    assert!(seen.insert(sent[36..52].to_owned()), "{how}, worker {worker}, round {round}: {sent}");
                }
            }
        };
        draw(50);
        if how == "as a module" {
            // Too little fuel is a trap; native code has none to run out of.
            proxy.set_fuel_limit(10);
            for worker in 0..4 {
                assert_eq!(send(&proxy, worker, &[]).reply.unwrap().status, 503);
            }
            proxy.set_fuel_limit(2_000_000_000);
            draw(50);
            assert_eq!(proxy.reloads().success, 4);
        }
        // New VMs, at the very same time.
        proxy.remove("in");
        proxy.push("in", [plugin()]).unwrap();
        draw(50);
    });
}

#[test]
fn what_came_in_on_one_worker_is_joined_on_another() {
    each(|how, plugin| {
        let proxy = Proxy::new(3, 1);
        proxy.push("in", [plugin(r#"{"join": {"ttl": "10s"}}"#)]).unwrap();
        let id = ("x-request-id", "e1d34fd8-93ab-4d32-b8a2-52a18a0a0f9b");
        let direction = |way: i64| proxy.set_property(&["xds", "listener_direction"], way);
        direction(1);
        let came = send(&proxy, 0, &[("traceparent", TRACEPARENT), id]);
        direction(2);
        for worker in [1, 2, 0] {
            let out = send(&proxy, worker, &[id]);
            assert_eq!(state(&out, "trace_id"), TRACE, "{how}, worker {worker}");
            assert_eq!(state(&out, "parent_span_id"), state(&came, "span_id"), "{how}, worker {worker}");
        }
        // The newest counts, whichever worker saw it.
        direction(1);
        drop(send(&proxy, 1, &[("traceparent", OTHER), id]));
        direction(2);
        assert_eq!(state(&send(&proxy, 0, &[id]), "trace_id"), OTHER[3..35], "{how}");
        direction(1);
        drop(send(&proxy, 2, &[("traceparent", TRACEPARENT), id]));
        direction(2);
        // What is remembered outlives a configuration.
        proxy.push("in", [plugin(r#"{"join": {"ttl": "10s"}, "inject": ["b3"]}"#)]).unwrap();
        assert_eq!(text(send(&proxy, 2, &[id]).upstream.all("x-b3-traceid")[0]), TRACE, "{how}");
        proxy.advance(Duration::from_secs(10));
        assert_ne!(state(&send(&proxy, 1, &[id]), "trace_id"), TRACE, "{how}: too late");
    });
}

#[test]
fn workers_remember_no_more_together_than_they_may() {
    each(|how, plugin| {
        let proxy = Proxy::new(3, 1);
        proxy.push("in", [plugin(r#"{"join": {"entries": 16}}"#)]).unwrap();
        for n in 0..300 {
            drop(send(&proxy, n % 3, &[("traceparent", TRACEPARENT), ("x-request-id", &n.to_string())]));
        }
        let kept = proxy.all_shared_data("");
        assert_eq!(kept.len(), 16, "{how}");
        assert!(kept.keys().all(|key| key.starts_with(b"meshfilter/trace-id/")), "{how}: {:?}", kept.keys());
    });
}

#[test]
fn a_memory_that_fails_costs_the_join_and_nothing_else() {
    each(|how, plugin| {
        for (call, status) in [
            ("proxy_set_shared_data", Status::CAS_MISMATCH),
            ("proxy_set_shared_data", Status::INTERNAL_FAILURE),
            ("proxy_get_shared_data", Status::INTERNAL_FAILURE),
        ] {
            let proxy = Proxy::new(2, 1);
            proxy.push("in", [plugin(r#"{"join": {}}"#)]).unwrap();
            proxy.fault(Fault::of(call).status(status));
            let id = ("x-request-id", "abc");
            let came = send(&proxy, 0, &[("traceparent", TRACEPARENT), id]);
            assert_eq!(state(&came, "trace_id"), TRACE, "{how}, {call}");
            let out = send(&proxy, 1, &[id]);
            assert_ne!(state(&out, "trace_id"), TRACE, "{how}, {call}");
            assert!(traceparent(&out).contains(&state(&out, "trace_id")), "{how}, {call}");
        }
    });
}

#[test]
fn trying_a_configuration_leaves_no_trace_of_itself() {
    each(|how, plugin| {
        let proxy = Proxy::new(2, 1);
        proxy.push("in", [plugin(r#"{"join": {}}"#)]).unwrap();
        assert!(proxy.push("in", [plugin(r#"{"join": {"entries": 0}}"#)]).is_err());
        assert_eq!(proxy.all_shared_data(""), [].into(), "{how}");
        assert_eq!(proxy.metrics(), [].into(), "{how}");
    });
}

#[test]
fn a_request_ends_with_the_configuration_that_it_began_with() {
    each(|how, plugin| {
        let proxy = Proxy::new(1, 1);
        proxy.push("in", [plugin(r#"{"response": {"trace_id_header": "x-old"}}"#)]).unwrap();
        let early = proxy.http("in", 0);
        early.request(&with(&[("traceparent", TRACEPARENT)]));
        proxy.push("in", [plugin(r#"{"response": {"trace_id_header": "x-new"}}"#)]).unwrap();
        let late = send(&proxy, 0, &[("traceparent", TRACEPARENT)]);
        assert_eq!((late.downstream.all("x-new").len(), late.downstream.all("x-old").len()), (1, 0), "{how}");
        early.response(&Message::new([(":status", "200")]));
        let early = early.finish();
        assert_eq!((early.downstream.all("x-old").len(), early.downstream.all("x-new").len()), (1, 0), "{how}");
        assert_eq!(state(&early, "trace_id"), TRACE);
        let roots: Vec<usize> = proxy.vms().iter().map(|vm| vm.roots).collect();
        assert_eq!(roots, [0, 1, 1], "{how}: base, main, worker; the old root is gone");
    });
}

#[test]
fn phases_that_never_came_are_made_up_for_when_it_is_logged() {
    each(|how, plugin| {
        let proxy = Proxy::new(1, 1);
        proxy.push("in", [plugin("{}")]).unwrap();
        let stream = proxy.http("in", 0);
        stream.edit_request_headers(|headers| *headers = with(&[("traceparent", TRACEPARENT)]).headers);
        let done = stream.finish();
        assert_eq!(
            (state(&done, "trace_id"), state(&done, "parent_span_id")),
            (TRACE.into(), TRACEPARENT[36..52].into())
        );
        // Not even headers: a connection that broke before them.
        let done = proxy.http("in", 0).finish();
        assert_eq!(done.reply, None, "{how}");
        assert!(proxy.vms().iter().all(|vm| !vm.failed), "{how}");
    });
}

#[test]
fn a_hundred_thousand_bytes_of_other_callbacks_change_nothing() {
    each(|how, plugin| {
        let proxy = Proxy::new(1, 1);
        proxy.push("in", [plugin("{}")]).unwrap();
        let chunk = vec![0xff; 10_000];
        let body =
            |message: Message| (0..10).fold(message, |message, _| message.chunk(&chunk)).trailers([("t", [0xff; 9])]);
        let done = proxy.exchange("in", 0, &body(with(&[])), &body(Message::new([(":status", "200")])));
        assert_eq!((done.upstream.body().len(), done.downstream.body().len()), (100_000, 100_000), "{how}");
        assert!(done.upstream.trailers.is_some() && done.downstream.ended, "{how}");
    });
}
