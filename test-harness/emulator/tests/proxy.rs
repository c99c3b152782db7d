//! The proxy around the VMs: what one cannot see through sockets, or not at will. Each test is a fact of the real one;
//! those that show on its outside are also held against it, in `test-harness/tests/host_facts`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "a test"
)]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use emulator::{
    CallEnd, Callback, Code, FailurePolicy, Fault, Guest, Host, Message, Module, Pairs, Peer, Plugin, Proxy, Reply,
    Status, Thread, VmKind, buffer, encode_pairs, map, pairs,
};

/// Code whose callbacks are one closure over the host, with a note of every entry.
type Entry = (VmKind, Callback);
type Run = Rc<dyn Fn(&Host, Callback) -> Result<u64, String>>;

struct Script {
    identity: u64,
    seen: Rc<RefCell<Vec<Entry>>>,
    run: Run,
}

struct Inside {
    host: Host,
    seen: Rc<RefCell<Vec<Entry>>>,
    run: Run,
}

impl Code for Script {
    fn identity(&self) -> u64 {
        self.identity
    }
    fn start(&self, host: Host) -> Result<Box<dyn Guest>, String> {
        Ok(Box::new(Inside { host, seen: Rc::clone(&self.seen), run: Rc::clone(&self.run) }))
    }
}

impl Guest for Inside {
    fn has(&self, _: &str) -> bool {
        true
    }
    fn call(&mut self, callback: Callback) -> Result<u64, String> {
        self.seen.borrow_mut().push((self.host.vm_kind(), callback));
        (self.run)(&self.host, callback)
    }
}

/// What every callback that is asked has to say for things to go on.
fn fine(callback: Callback) -> u64 {
    u64::from(matches!(callback, Callback::VmStart { .. } | Callback::Configure { .. } | Callback::Done { .. }))
}

struct World {
    proxy: Proxy,
    code: Rc<dyn Code>,
    seen: Rc<RefCell<Vec<Entry>>>,
}

fn world(workers: usize, run: impl Fn(&Host, Callback) -> Result<u64, String> + 'static) -> World {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let code: Rc<dyn Code> = Rc::new(Script { identity: 1, seen: Rc::clone(&seen), run: Rc::new(run) });
    World { proxy: Proxy::new(workers, 1), code, seen }
}

impl World {
    fn plugin(&self) -> Plugin {
        Plugin::new("test", &self.code)
    }

    /// The entries since the last time, of these VMs.
    fn entries(&self, of: impl Fn(VmKind) -> bool) -> Vec<Callback> {
        self.seen.take().into_iter().filter(|(kind, _)| of(*kind)).map(|(_, callback)| callback).collect()
    }
}

const WORKER: VmKind = VmKind::Local(Thread::Worker(0));

fn get() -> Message {
    Message::new([(":method", "GET"), (":path", "/"), (":authority", "a")])
}

fn ok() -> Message {
    Message::new([(":status", "200")])
}

#[test]
fn a_canary_tries_a_configuration_before_any_thread_gets_it() {
    let world = world(2, |_, callback| Ok(fine(callback)));
    world.proxy.push("in", [world.plugin().configuration("abc")]).unwrap();
    let kinds: Vec<VmKind> = world.seen.borrow().iter().map(|(kind, _)| *kind).collect();
    let each = [VmKind::Canary, VmKind::Local(Thread::Main), WORKER, VmKind::Local(Thread::Worker(1))];
    assert_eq!(kinds, each.map(|kind| [kind; 3]).concat());
    let (context, size) = (1, 3);
    assert_eq!(
        world.entries(|kind| kind == VmKind::Canary),
        [
            Callback::ContextCreate { context, parent: 0 },
            Callback::VmStart { context, size: 0 },
            Callback::Configure { context, size }
        ],
        "and it is not told of its end"
    );
    let left: Vec<VmKind> = world.proxy.vms().iter().map(|vm| vm.kind).collect();
    assert_eq!(left, [VmKind::Base, each[1], each[2], each[3]]);
    // The same configuration is not tried again, and makes no new root.
    world.proxy.push("in", [world.plugin().configuration("abc")]).unwrap();
    assert_eq!(world.entries(|_| true), []);
}

#[test]
fn what_on_configure_or_on_vm_start_refuses_changes_nothing() {
    for wrong in ["vm_start", "configure"] {
        let world = world(1, move |host, callback| {
            let refused = match callback {
                Callback::VmStart { .. } => {
                    wrong == "vm_start" && host.buffer_length(buffer::VM_CONFIGURATION) == Ok(Some(3))
                }
                Callback::Configure { size, .. } => wrong == "configure" && size == 3,
                Callback::ResponseHeaders { .. } => {
                    host.add_header(map::RESPONSE_HEADERS, b"x", b"old").unwrap();
                    false
                }
                _ => false,
            };
            Ok(if refused { 0 } else { fine(callback) })
        });
        world.proxy.push("in", [world.plugin()]).unwrap();
        let new = if wrong == "configure" {
            world.plugin().configuration("bad")
        } else {
            world.plugin().vm_configuration("bad")
        };
        let refused = world.proxy.push("in", [new]).unwrap_err();
        assert_eq!((refused.plugin.as_str(), refused.why.contains(wrong)), ("test", true), "{refused}");
        assert_eq!(world.proxy.exchange("in", 0, &get(), &ok()).downstream.all("x"), [b"old"]);
        assert_eq!(world.proxy.vms().len(), 3, "base, main, worker");
    }
}

#[test]
fn a_new_configuration_is_a_new_root_in_the_same_vm_and_the_old_one_ends_with_its_streams() {
    let world = world(1, |_, callback| Ok(fine(callback)));
    world.proxy.push("in", [world.plugin().configuration("one")]).unwrap();
    let early = world.proxy.http("in", 0);
    early.request(&get());
    world.entries(|_| true);
    world.proxy.push("in", [world.plugin().configuration("two!")]).unwrap();
    let new = 3;
    assert_eq!(
        world.entries(|kind| kind == WORKER),
        [
            Callback::ContextCreate { context: new, parent: 0 },
            Callback::VmStart { context: new, size: 0 },
            Callback::Configure { context: new, size: 4 }
        ]
    );
    let late = world.proxy.http("in", 0);
    late.request(&get());
    assert_eq!(world.entries(|_| true)[0], Callback::ContextCreate { context: 4, parent: new });
    drop(early.finish());
    assert_eq!(
        world.entries(|_| true),
        [
            Callback::Log { context: 2 },
            Callback::Done { context: 2 },
            Callback::Delete { context: 2 },
            Callback::Done { context: 1 },
            Callback::Delete { context: 1 }
        ],
        "the stream, and then its root"
    );
}

#[test]
fn a_root_that_asks_for_time_ends_when_it_says_so() {
    let world = world(1, |host, callback| {
        Ok(match callback {
            Callback::Done { context: 1 } => 0,
            Callback::Tick { context: 2 } => {
                host.set_effective_context(1).unwrap();
                host.done().unwrap();
                assert_eq!(host.done(), Ok(()), "the root is there until the VM returns");
                0
            }
            Callback::Configure { context: 2, .. } => {
                host.set_tick_period(10).unwrap();
                1
            }
            _ => fine(callback),
        })
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.proxy.push("in", [world.plugin().configuration("2")]).unwrap();
    let deleted = |world: &World| world.entries(|kind| kind == WORKER).contains(&Callback::Delete { context: 1 });
    assert!(!deleted(&world));
    world.proxy.advance(Duration::from_millis(10));
    assert!(deleted(&world));
}

#[test]
fn plugins_share_a_vm_where_code_id_and_vm_configuration_are_the_same() {
    let world = world(1, |_, callback| Ok(fine(callback)));
    let one = || world.plugin().configuration("1");
    for (other, vms) in [
        (one().configuration("2"), 3),
        (one().vm_id("x"), 6),
        (one().vm_configuration("x"), 6),
        (one().environment("A", "b"), 6),
    ] {
        world.proxy.push("in", [one(), other]).unwrap();
        assert_eq!(world.proxy.vms().len(), vms);
    }
    world.proxy.remove("in");
    assert_eq!(world.proxy.vms(), []);
}

#[test]
fn ticks_come_once_per_root_and_thread_and_end_with_it() {
    let world = world(2, |host, callback| {
        if let Callback::Configure { size, .. } = callback {
            host.set_tick_period(size).unwrap();
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin().configuration("x".repeat(100))]).unwrap();
    world.entries(|_| true);
    world.proxy.advance(Duration::from_millis(350));
    let ticks = world.seen.take();
    assert_eq!(ticks.len(), 3 * 3);
    assert!(ticks.iter().all(|(_, callback)| *callback == Callback::Tick { context: 1 }));
    assert_eq!(ticks.iter().filter(|(kind, _)| *kind == VmKind::Local(Thread::Main)).count(), 3);
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.entries(|_| true);
    world.proxy.advance(Duration::from_secs(10));
    assert_eq!(world.entries(|_| true), [], "a period of 0 is none, and the old root's went with it");
}

#[test]
fn time_is_what_the_test_says() {
    let world = world(1, |host, callback| {
        if let Callback::Log { .. } = callback {
            host.set_property(b"now", &host.now().unwrap().unwrap().to_le_bytes()).unwrap();
            let duration = host.property(b"request\0duration").unwrap().unwrap();
            host.set_property(b"took", &duration).unwrap();
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    let stream = world.proxy.http("in", 0);
    stream.request(&get());
    world.proxy.advance(Duration::from_millis(7));
    let done = stream.finish();
    assert_eq!(done.filter_state["wasm.now"], 1_700_000_000_007_000_000_u64.to_le_bytes());
    assert_eq!(done.filter_state["wasm.took"], 7_000_000_i64.to_le_bytes());
}

#[test]
fn shared_data_is_the_processes_and_cas_counts_only_where_something_is() {
    let results = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&results);
    let world = world(2, move |host, callback| {
        if let Callback::RequestHeaders { .. } = callback {
            let (_, cas) = host.shared_data(b"k").unwrap_or_default().unwrap_or_default();
            let mut log = log.borrow_mut();
            log.push(host.set_shared_data(b"k", b"1", cas + 1000));
            log.push(host.set_shared_data(b"k", b"2", cas));
            log.push(host.set_shared_data(b"k", b"3", 0));
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    for worker in [0, 1] {
        drop(world.proxy.exchange("in", worker, &get(), &ok()));
    }
    let mismatch = Err(Status::CAS_MISMATCH);
    assert_eq!(
        results.take(),
        // First nothing is there: any number will do, and 0 always does.
        [Ok(()), Ok(()), Ok(()), mismatch, Ok(()), Ok(())]
    );
    assert_eq!(world.proxy.shared_data("", "k").unwrap().0, b"3");
    // It outlives a configuration and a VM; not the last VM of its id.
    world.proxy.push("in", [world.plugin().configuration("2")]).unwrap();
    assert!(world.proxy.shared_data("", "k").is_some());
    world.proxy.push("in", [world.plugin().vm_id("other")]).unwrap();
    assert!(world.proxy.shared_data("", "k").is_none());
}

#[test]
fn two_workers_that_read_before_either_writes_lose_no_update_with_cas() {
    // Each adds 1 in two steps: reads when the request comes, writes when its response does, and tries again.
    let read = Rc::new(RefCell::new([(0_u8, 0_u32); 2]));
    let world = world(2, move |host, callback| {
        let at = usize::from(host.vm_kind() == VmKind::Local(Thread::Worker(1)));
        let now = || {
            let (value, cas) = host.shared_data(b"n").unwrap_or_default().unwrap_or((vec![0], 0));
            (value[0], cas)
        };
        match callback {
            Callback::RequestHeaders { .. } => read.borrow_mut()[at] = now(),
            Callback::ResponseHeaders { .. } => {
                let (mut value, mut cas) = read.borrow()[at];
                while host.set_shared_data(b"n", &[value + 1], cas) == Err(Status::CAS_MISMATCH) {
                    (value, cas) = now();
                }
            }
            _ => {}
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    drop(world.proxy.exchange("in", 0, &get(), &ok()));
    let streams = [0, 1].map(|worker| world.proxy.http("in", worker));
    streams.iter().for_each(|stream| stream.request(&get()));
    streams.iter().for_each(|stream| stream.response(&ok()));
    assert_eq!(world.proxy.shared_data("", "n").unwrap().0, [3]);
}

#[test]
fn a_trap_takes_every_plugin_and_stream_of_its_vm_and_no_other() {
    let world = world(2, |_, callback| match callback {
        Callback::RequestHeaders { count: 4, .. } => Err("on purpose".to_owned()),
        _ => Ok(fine(callback)),
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.proxy.push("beside", [world.plugin().configuration("another plugin of the same VM")]).unwrap();
    let under_way = world.proxy.http("beside", 0);
    under_way.request(&get());
    let trap = Message::new([(":method", "GET"), (":path", "/"), (":authority", "a"), ("x", "y")]);
    let status = |chain: &str, worker: usize, request: &Message| {
        let done = world.proxy.exchange(chain, worker, request, &ok());
        String::from_utf8(done.downstream.all(":status")[0].to_vec()).unwrap()
    };
    assert_eq!(status("in", 0, &trap), "503");
    under_way.response(&ok());
    assert_eq!(under_way.finish().reply.unwrap().status, 503);
    assert_eq!((status("in", 0, &get()), status("beside", 0, &get())), ("503".into(), "503".into()));
    assert_eq!((status("in", 1, &get()), status("beside", 1, &get())), ("200".into(), "200".into()));
    assert!(world.proxy.log().iter().any(|line| line.text == "proxy_on_request_headers trapped: on purpose"));
}

#[test]
fn what_follows_a_trap_is_the_policys() {
    let world = |policy| {
        let world = world(1, |host, callback| match callback {
            Callback::RequestHeaders { count: 4, .. } => Err("on purpose".to_owned()),
            Callback::RequestHeaders { .. } => {
                host.add_header(map::REQUEST_HEADERS, b"x", b"y").map(|()| 0).map_err(|_| String::new())
            }
            _ => Ok(fine(callback)),
        });
        let backoff = Duration::from_millis(500);
        world.proxy.push("in", [world.plugin().failure_policy(policy).reload_backoff(backoff)]).unwrap();
        world
    };
    let trap = Message::new([(":method", "GET"), (":path", "/"), (":authority", "a"), ("x", "y")]);
    let send = |world: &World, request: &Message| {
        let done = world.proxy.exchange("in", 0, request, &ok());
        (done.downstream.all(":status")[0] == b"200", done.upstream.all("x").concat() == b"y")
    };

    let open = world(FailurePolicy::Open);
    assert_eq!(send(&open, &get()), (true, true));
    assert_eq!(send(&open, &trap), (true, true), "it passes, with what it came with");
    assert_eq!(send(&open, &get()), (true, false), "and what comes later passes untouched");

    let reload = world(FailurePolicy::Reload);
    assert_eq!(send(&reload, &trap), (false, false));
    assert_eq!(send(&reload, &get()), (false, false), "too soon after its start");
    reload.proxy.advance(Duration::from_millis(500));
    assert_eq!(send(&reload, &get()), (true, true));
    assert_eq!((reload.proxy.reloads().success, reload.proxy.reloads().backoff), (1, 1));

    let closed = world(FailurePolicy::Closed);
    assert_eq!(send(&closed, &trap), (false, false));
    closed.proxy.advance(Duration::from_secs(600));
    assert_eq!(send(&closed, &get()), (false, false));
    closed.proxy.push("in", [closed.plugin().configuration("new")]).unwrap();
    assert_eq!(send(&closed, &get()), (true, true), "a new configuration brings a new VM");
}

#[test]
fn a_request_that_nobody_saw_is_logged_all_the_same() {
    let world = world(1, |host, callback| {
        if let Callback::Log { .. } = callback {
            host.set_property(b"path", &host.header(map::REQUEST_HEADERS, b":path").unwrap().unwrap()).unwrap();
            let status = host.property(b"response\0code").unwrap().unwrap();
            host.set_property(b"code", &status).unwrap();
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.entries(|_| true);
    let stream = world.proxy.http("in", 0);
    stream.edit_request_headers(|headers| *headers = get().headers);
    let reply = Reply { status: 429, details: "x".into(), body: vec![], headers: Pairs::new(), grpc_status: None };
    stream.reply_locally(&reply);
    let done = stream.finish();
    let context = 2;
    assert_eq!(
        world.entries(|_| true),
        [
            Callback::ContextCreate { context, parent: 1 },
            Callback::Log { context },
            Callback::Done { context },
            Callback::Delete { context }
        ]
    );
    assert_eq!(
        (&done.filter_state["wasm.path"][..], &done.filter_state["wasm.code"][..]),
        (&b"/"[..], &429_i64.to_le_bytes()[..])
    );
}

#[test]
fn the_end_of_a_body_comes_by_the_flag_or_by_trailers() {
    let world = world(1, |_, callback| Ok(fine(callback)));
    world.proxy.push("in", [world.plugin()]).unwrap();
    let ends = |request: Message| {
        world.entries(|_| true);
        drop(world.proxy.exchange("in", 0, &request, &ok()));
        let seen = world.entries(|_| true).into_iter();
        seen.filter_map(|callback| match callback {
            Callback::RequestHeaders { end, .. } => Some(("headers", end)),
            Callback::RequestBody { end, .. } => Some(("body", end)),
            Callback::RequestTrailers { .. } => Some(("trailers", 1)),
            _ => None,
        })
        .collect::<Vec<_>>()
    };
    assert_eq!(ends(get()), [("headers", 1)]);
    assert_eq!(ends(get().chunk("a").chunk("b")), [("headers", 0), ("body", 0), ("body", 1)]);
    assert_eq!(ends(get().chunk("a").trailers([("t", "1")])), [("headers", 0), ("body", 0), ("trailers", 1)]);
    assert_eq!(ends(get().trailers([("t", "1")])), [("headers", 0), ("trailers", 1)]);
}

#[test]
fn a_body_that_is_kept_grows_until_it_goes_on_or_is_too_much() {
    let world = world(1, |host, callback| {
        Ok(match callback {
            Callback::RequestBody { end: 0, .. } => 1,
            Callback::RequestBody { size, .. } => {
                assert_eq!(host.buffer(buffer::REQUEST_BODY, 0, size).unwrap().unwrap().len(), size as usize);
                host.set_buffer(buffer::REQUEST_BODY, 0, u32::MAX, b"whole").unwrap();
                0
            }
            _ => fine(callback),
        })
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.proxy.set_buffer_limit(10);
    let done = world.proxy.exchange("in", 0, &get().chunk("12345").chunk("6789").chunk("0"), &ok());
    assert_eq!((done.upstream.chunks, done.upstream.ended), (vec![b"whole".to_vec()], true));
    let done = world.proxy.exchange("in", 0, &get().chunk("12345").chunk("678901").chunk("0"), &ok());
    assert_eq!(done.reply.unwrap().status, 413);
    assert_eq!(done.upstream.chunks, [b""; 0]);
}

#[test]
fn a_request_waits_for_a_call_and_goes_on_with_its_answer() {
    let world = world(1, |host, callback| {
        Ok(match callback {
            Callback::RequestHeaders { context, .. } => {
                let head = encode_pairs(&pairs([(":method", "GET"), (":path", "/"), (":authority", "auth")]));
                let timeout = 100;
                if host.http_call(b"auth", &head, b"", b"", timeout).is_err() {
                    return Ok(0);
                }
                assert_eq!(host.http_call(b"nowhere", &head, b"", b"", 0), Err(Status::BAD_ARGUMENT));
                let bare = encode_pairs(&pairs([(":method", "GET")]));
                assert_eq!(host.http_call(b"auth", &bare, b"", b"", 0), Err(Status::BAD_ARGUMENT));
                host.set_shared_data(b"waiting", &context.to_le_bytes(), 0).unwrap();
                1
            }
            Callback::HttpCallResponse { headers, body, .. } => {
                let status = host.header(map::HTTP_CALL_HEADERS, b":status").ok().flatten();
                let text = host.buffer(buffer::HTTP_CALL_BODY, 0, 100).ok().flatten();
                let (waiting, _) = host.shared_data(b"waiting").unwrap().unwrap();
                let stream = u32::from_le_bytes(waiting.try_into().unwrap());
                host.set_effective_context(stream).unwrap();
                let told = format!("{headers} {body} {:?}", status.map(|status| String::from_utf8(status).unwrap()));
                host.add_header(map::REQUEST_HEADERS, b"x-auth", told.as_bytes()).unwrap();
                assert_eq!(text.map(|text| text.len()), (headers > 0).then_some(body as usize));
                host.continue_stream(0).unwrap();
                0
            }
            _ => fine(callback),
        })
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    let told = || {
        let done = world.proxy.exchange("in", 0, &get().chunk("body"), &ok());
        assert_eq!(done.upstream.body(), b"body");
        String::from_utf8(done.upstream.all("x-auth").concat()).unwrap()
    };
    let after = Duration::from_millis;
    world.proxy.cluster("auth", move |_| Some((after(20), CallEnd::Response(ok().chunk("yes")))));
    assert_eq!(told(), "1 3 Some(\"200\")");
    world.proxy.cluster("auth", move |_| Some((after(20), CallEnd::Reset)));
    assert_eq!(told(), "0 0 None");
    world.proxy.cluster("auth", |_| None);
    assert_eq!(told(), "3 24 Some(\"504\")", "the proxy answers in its place");
    assert_eq!(world.proxy.calls(), []);
    world.proxy.fault(Fault::of("proxy_http_call"));
    assert_eq!(told(), "");
}

#[test]
fn a_call_of_a_plugin_that_is_gone_ends_nowhere() {
    let world = world(1, |host, callback| {
        if let Callback::Configure { size: 1, .. } = callback {
            let head = encode_pairs(&pairs([(":method", "GET"), (":path", "/"), (":authority", "a")]));
            host.http_call(b"up", &head, b"", b"", 1000).unwrap();
        }
        Ok(fine(callback))
    });
    world.proxy.cluster("up", |_| None);
    world.proxy.push("in", [world.plugin().configuration("1")]).unwrap();
    assert!(!world.proxy.calls().is_empty());
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.proxy.calls().iter().for_each(|call| assert_eq!(call.vm, VmKind::Canary));
    world.entries(|_| true);
    world.proxy.advance(Duration::from_secs(2));
    assert!(!world.entries(|_| true).iter().any(|callback| matches!(callback, Callback::HttpCallResponse { .. })));
}

#[test]
fn queues_tell_their_reader() {
    let got = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&got);
    let world = world(1, move |host, callback| {
        match callback {
            Callback::Configure { size: 1, .. } => drop(host.register_queue(b"q").unwrap()),
            Callback::RequestHeaders { .. } => {
                assert_eq!(host.resolve_queue(b"", b"none"), Err(Status::NOT_FOUND));
                let token = host.resolve_queue(b"", b"q").unwrap().unwrap();
                host.enqueue(token, b"item").unwrap();
            }
            Callback::QueueReady { token, .. } => {
                log.borrow_mut().push(host.dequeue(token).unwrap().unwrap());
                assert_eq!(host.dequeue(token), Err(Status::EMPTY));
            }
            _ => {}
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin().configuration("1")]).unwrap();
    drop(world.proxy.exchange("in", 0, &get(), &ok()));
    world.proxy.advance(Duration::ZERO);
    assert_eq!(got.take(), [b"item"]);
}

#[test]
fn metrics_belong_to_their_names_and_ids_to_their_vms() {
    let world = world(2, |host, callback| {
        if let Callback::RequestHeaders { .. } = callback {
            let [counter, gauge, histogram] =
                [0, 1, 2].map(|kind| host.define_metric(kind, format!("m{kind}").as_bytes()).unwrap().unwrap());
            assert_ne!(host.define_metric(0, b"m0").unwrap().unwrap(), counter, "another id, the same number");
            assert_eq!(host.increment_metric(counter, -1), Err(Status::BAD_ARGUMENT));
            assert_eq!(host.increment_metric(counter + 400, 1), Err(Status::NOT_FOUND));
            assert_eq!(host.increment_metric(histogram, 1), Err(Status::BAD_ARGUMENT));
            assert_eq!(host.define_metric(3, b"m"), Err(Status::BAD_ARGUMENT));
            host.increment_metric(counter, 2).unwrap();
            host.increment_metric(gauge, 5).unwrap();
            host.increment_metric(gauge, -2).unwrap();
            host.record_metric(histogram, 7).unwrap();
            assert_eq!(host.metric(histogram), Err(Status::BAD_ARGUMENT));
            assert!(host.metric(counter).unwrap().unwrap() >= 2);
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    [0, 1].into_iter().for_each(|worker| drop(world.proxy.exchange("in", worker, &get(), &ok())));
    let value = |name: &str| world.proxy.metric(name).unwrap().value;
    assert_eq!((value("m0"), value("m1"), world.proxy.metric("m2").unwrap().samples), (4, 6, vec![7, 7]));
}

#[test]
fn faults_come_when_they_are_told_to() {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let log = Rc::clone(&seen);
    let world = world(1, move |host, callback| {
        if let Callback::RequestHeaders { .. } = callback {
            let mut answers: Vec<_> = (0..4).map(|_| host.property(b"plugin_name")).collect();
            log.borrow_mut().append(&mut answers);
        }
        Ok(fine(callback))
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    let answers = |fault: Fault| {
        world.proxy.fault(fault);
        drop(world.proxy.exchange("in", 0, &get(), &ok()));
        world.proxy.clear_faults();
        seen.take()
    };
    let (right, wrong) = (Ok(Some(b"test".to_vec())), Err(Status::INTERNAL_FAILURE));
    let call = "proxy_get_property";
    assert_eq!(
        answers(Fault::of(call).after(1).times(2)),
        [right.clone(), wrong.clone(), wrong.clone(), right.clone()]
    );
    assert_eq!(answers(Fault::any()), [wrong.clone(), wrong.clone(), wrong.clone(), wrong]);
    assert_eq!(answers(Fault::of("proxy_set_property")), [right.clone(), right.clone(), right.clone(), right]);
    let lie = Fault::of(call).status(Status::OK);
    assert_eq!(answers(lie.clone().times(1))[0], Ok(None));
    assert_eq!(answers(lie.bytes("x"))[0], Ok(Some(b"x".to_vec())));
}

#[test]
#[should_panic(expected = "no import is called `proxy_get_shard_data`")]
fn a_fault_that_could_never_come_is_refused() {
    let _ = Fault::of("proxy_get_shard_data");
}

#[test]
fn what_answers_a_call_may_look_at_the_proxy() {
    let world = world(1, |host, callback| {
        if let Callback::RequestHeaders { .. } = callback {
            let head = encode_pairs(&pairs([(":method", "GET"), (":path", "/"), (":authority", "a")]));
            host.http_call(b"up", &head, b"", b"", 0).unwrap();
            assert_eq!(host.foreign_function(b"time", b"").unwrap().unwrap(), 1_700_000_000_u64.to_le_bytes());
        }
        Ok(fine(callback))
    });
    let (clock, calls) = (world.proxy.clone(), world.proxy.clone());
    world.proxy.foreign_function("time", move |_| Ok((clock.now_ns() / 1_000_000_000).to_le_bytes().to_vec()));
    world.proxy.cluster("up", move |_| {
        assert_eq!(calls.calls().len(), 1);
        Some((Duration::ZERO, CallEnd::Reset))
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    drop(world.proxy.exchange("in", 0, &get(), &ok()));
    world.proxy.advance(Duration::ZERO);
    assert_eq!(world.proxy.calls(), []);
}

#[test]
fn a_stream_that_a_plugin_did_not_see_begin_passes_it_by() {
    let world = world(1, |_, callback| Ok(fine(callback)));
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.entries(|_| true);
    let stream = world.proxy.http("in", 0);
    stream.request_body("early", false);
    assert_eq!(world.entries(|_| true), []);
    assert_eq!((stream.upstream().body(), stream.reply()), (b"early".to_vec(), None));
    // And a connection that is closed hears nothing more.
    let connection = world.proxy.tcp("in", 0);
    connection.close(Peer::Local);
    world.entries(|_| true);
    connection.upstream_data("late", true);
    assert_eq!(world.entries(|_| true), []);
}

#[test]
fn a_plugin_that_continues_what_it_does_not_hold_is_told_of() {
    let world = world(1, |host, callback| {
        if let Callback::RequestHeaders { context: 3, .. } = callback {
            host.continue_stream(0).unwrap();
        }
        Ok(fine(callback))
    });
    let both = [world.plugin(), world.plugin().configuration("next")];
    world.proxy.push("in", both).unwrap();
    world.entries(|_| true);
    let stream = world.proxy.http("in", 0);
    stream.request(&get());
    let heard = world.entries(|_| true).iter().filter(|callback| callback.name() == "proxy_on_request_headers").count();
    assert_eq!(heard, 3, "the first once, the second twice");
    assert!(world.proxy.log().iter().any(|line| line.level == 4 && line.text.contains("does not hold")));
}

#[test]
fn a_connection_is_told_of_both_sides_and_logged_when_it_is_closed() {
    let world = world(1, |host, callback| {
        Ok(match callback {
            Callback::DownstreamData { size: 1..=3, end: 0, .. } => 1,
            Callback::DownstreamData { .. } => {
                host.set_buffer(buffer::DOWNSTREAM_DATA, 0, 0, b">").unwrap();
                0
            }
            _ => fine(callback),
        })
    });
    world.proxy.push("in", [world.plugin()]).unwrap();
    world.entries(|_| true);
    let stream = world.proxy.tcp("in", 0);
    stream.downstream_data("ab", false);
    assert_eq!(stream.upstream().chunks, [b""; 0]);
    stream.downstream_data("cd", false);
    assert_eq!(stream.upstream().body(), b">abcd");
    stream.upstream_data("x", true);
    stream.close(Peer::Remote);
    let context = 2;
    assert_eq!(
        world.entries(|_| true),
        [
            Callback::ContextCreate { context, parent: 1 },
            Callback::NewConnection { context },
            Callback::DownstreamData { context, size: 2, end: 0 },
            Callback::DownstreamData { context, size: 4, end: 0 },
            Callback::UpstreamData { context, size: 1, end: 1 },
            Callback::UpstreamClose { context, peer: 0 },
            Callback::DownstreamClose { context, peer: 2 },
            Callback::Done { context },
            Callback::Log { context },
            Callback::Delete { context }
        ]
    );
    assert_eq!(stream.downstream().body(), b"x");
}

#[test]
fn the_same_seed_gives_the_same_bytes_to_each_vm_and_others_to_the_next() {
    let drawn = |seed: u64| {
        let drawn = Rc::new(RefCell::new(Vec::new()));
        let log = Rc::clone(&drawn);
        let world = world(2, move |host, callback| {
            if let Callback::Configure { .. } = callback {
                log.borrow_mut().push(host.random(16).unwrap().unwrap());
            }
            Ok(fine(callback))
        });
        let proxy = Proxy::new(2, seed);
        proxy.push("in", [world.plugin()]).unwrap();
        drawn.take()
    };
    let first = drawn(1);
    assert_eq!(first, drawn(1));
    assert_ne!(first, drawn(2));
    assert_eq!(first.len(), 4);
    assert!((0..4).all(|at| first[at + 1..].iter().all(|other| *other != first[at])));
}

fn wat(body: &str) -> Result<Rc<dyn Code>, String> {
    let text = format!(
        r#"(module {body} (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1"))
           (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 4096))"#
    );
    Module::parse(&wat::parse_str(text).unwrap())
}

#[test]
fn a_module_that_the_proxy_would_not_load_is_refused() {
    let why = |code: Result<Rc<dyn Code>, String>| code.err().unwrap();
    for wrong in [&b"nonsense"[..], b"", b"\0asm", b"(module)"] {
        assert!(why(Module::parse(wrong)).starts_with("no module: "));
    }
    assert!(why(Module::parse(&wat::parse_str("(module)").unwrap())).contains("proxy_abi_version_0_2_1"));
    let import = |module: &str, name: &str| wat(&format!(r#"(import "{module}" "{name}" (func (result i32)))"#));
    assert!(
        why(import("env", "proxy_no_such")).contains("it imports env.proxy_no_such, which the proxy does not have")
    );
    assert!(why(import("wasi_snapshot_preview1", "path_rename")).contains("path_rename"));
    assert!(why(import("env", "proxy_log")).contains("with other types"));
    assert!(import("env", "proxy_done").is_ok() && import("wasi_snapshot_preview1", "sched_yield").is_ok());
}

#[test]
fn a_module_may_hardly_call_anything_while_it_starts() {
    let starts = |call: &str, import: &str| {
        let code = wat(&format!(r#"{import} (func (export "_initialize") {call})"#)).unwrap();
        Proxy::new(1, 1).push("in", [Plugin::new("test", &code)])
    };
    let time = r#"(import "env" "proxy_get_current_time_nanoseconds" (func $f (param i32) (result i32)))"#;
    let refused = starts("(drop (call $f (i32.const 0)))", time).unwrap_err();
    assert!(refused.why.contains("may not be called while the module starts"), "{refused}");
    let log = r#"(import "env" "proxy_log" (func $f (param i32 i32 i32) (result i32)))"#;
    starts("(drop (call $f (i32.const 2) (i32.const 0) (i32.const 0)))", log).unwrap();
}

#[test]
fn wasi_and_what_points_nowhere_are_counted_and_made_to_fail_like_the_rest() {
    let code = wat(r#"(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
           (import "env" "proxy_set_shared_data" (func $set (param i32 i32 i32 i32 i32) (result i32)))
           (data (i32.const 0) "\10\00\00\00\05\00\00\00........hello")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (i32.store8 (i32.const 64) (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 80)))
             (i32.store8 (i32.const 65) (call $sizes (i32.const 84) (i32.const 88)))
             (i32.store8 (i32.const 66) (call $set (i32.const -9) (i32.const 5) (i32.const 0) (i32.const 0) (i32.const 0)))
             (drop (call $set (i32.const 64) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 0)))
             i32.const 0)"#);
    let proxy = Proxy::new(1, 1);
    proxy.push("in", [Plugin::new("test", &code.unwrap())]).unwrap();
    let answers = || {
        drop(proxy.take_tally());
        drop(proxy.exchange("in", 0, &get(), &ok()));
        let counted = proxy.take_tally().hostcalls;
        let names = ["fd_write", "environ_sizes_get", "proxy_set_shared_data", "proxy_log"];
        let counts = names.map(|name| counted.get(name).copied().unwrap_or(0));
        (proxy.all_shared_data("").into_keys().collect::<Vec<_>>(), counts)
    };
    assert_eq!(answers(), (vec![vec![0, 0, 6]], [1, 1, 2, 0]));
    assert_eq!(proxy.log().last().unwrap().text, "hello");
    proxy.fault(Fault::of("fd_write").status(Status(29)));
    proxy.fault(Fault::of("environ_sizes_get").status(Status(52)));
    assert_eq!(answers(), (vec![vec![0, 0, 6], vec![29, 52, 6]], [1, 1, 2, 0]));
}

#[test]
fn a_loop_without_end_is_a_trap_and_memory_that_grows_is_counted() {
    let code = wat(r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (drop (memory.grow (i32.const 3))) i32.const 0)
           (func (export "proxy_on_log") (param i32) (loop $forever (br $forever)))"#);
    let proxy = Proxy::new(1, 1);
    proxy.set_fuel_limit(100_000);
    proxy.push("in", [Plugin::new("test", &code.unwrap())]).unwrap();
    drop(proxy.take_tally());
    drop(proxy.exchange("in", 0, &get(), &ok()));
    let tally = proxy.take_tally();
    assert_eq!((tally.pages, tally.entries["proxy_on_request_headers"], tally.fuel > 100), (3, 1, true));
    assert!(proxy.log().last().unwrap().text.starts_with("proxy_on_log trapped: "));
    assert!(proxy.vms().iter().any(|vm| vm.failed));
}

#[test]
fn what_goes_in_and_out_of_a_module_is_counted() {
    let code = wat(r#"(import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
           (data (i32.const 0) "x-a")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (drop (call $get (i32.const 0) (i32.const 0) (i32.const 3) (i32.const 16) (i32.const 20)))
             i32.const 0)"#);
    let proxy = Proxy::new(1, 1);
    proxy.push("in", [Plugin::new("test", &code.unwrap())]).unwrap();
    drop(proxy.take_tally());
    drop(proxy.exchange("in", 0, &Message::new([("x-a", "12345"), ("x-a", "not the first")]), &ok()));
    let tally = proxy.take_tally();
    assert_eq!((tally.bytes_out, tally.bytes_in), (3, 5));
    assert_eq!(tally.hostcalls["proxy_get_header_map_value"], 1);
    assert_eq!(tally.entries["proxy_on_memory_allocate"], 1);
}
