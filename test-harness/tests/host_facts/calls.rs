//! HTTP calls of a filter's own.

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::world::{Ask as _, Scene, Site, World};

fn call(cluster: &str, reply: &str, timeout: u32) -> Value {
    let headers = json!([[":method", "POST"], [":path", "/call"], [":authority", "who"], ["x-reply", reply]]);
    json!(["http_call", cluster, headers, "sent", [["x-t", "t"]], timeout])
}

/// What is told of the other side's answer, without what the proxy adds.
fn answered(steps: &Value, at: usize) -> Value {
    let own =
        |pair: &&Value| !["transfer-encoding", "x-envoy-upstream-service-time"].contains(&pair[0].as_str().unwrap());
    steps[at][2].as_array().unwrap().iter().filter(own).cloned().collect()
}

/// The answer comes to the root context, and is there in its callback alone. The caller's stream is reached by making
/// its context the effective one; then it can go on.
pub async fn an_answer_comes_to_the_root_and_the_stream_is_resumed<W: World>() -> Result<()> {
    let script = json!({
        "request_headers": [call("up", "status=207; header=x-c:c; chunk=called; trailer=x-ct:ct", 1000), ["return", "pause"]],
        "http_call_response": [
            ["get_header", "call", ":status"], ["get_map", "call"], ["map_size", "call"], ["get_map", "call_trailers"],
            ["get_buffer", "call", 0, "max"], ["get_buffer", "call", 1, 2], ["buffer_status", "call"], ["get_map", "request"],
            ["add_header", "call", "x", "y"],
            ["effective", "caller"], ["get_header", "call", "x-c"], ["get_buffer", "call", 0, "max"],
            ["get_header", "request", "x-a"], ["add_header", "request", "x-from-call", "1"], ["continue", "request"],
        ],
        "response_headers": [["get_map", "call"], ["get_header", "call", "x-c"], ["get_buffer", "call", 0, "max"]],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    assert_eq!(world.send("p", &Request::post("/", "body").header("x-a", "a")).await?.status, 200);
    let sent = world.received(2).await?;
    assert_eq!(
        (sent[0].method.as_str(), sent[0].path.as_str(), sent[0].body.as_slice()),
        ("POST", "/call", &b"sent"[..])
    );
    assert_eq!(sent[0].headers.text("host").as_deref(), Some("who"));
    assert_eq!((sent[1].path.as_str(), sent[1].headers.text("x-from-call").as_deref()), ("/", Some("1")));
    let event = world.seen("p", "http_call_response", 1).await?.remove(0);
    assert!(event.is_root());
    // Status, `x-c`, and two that the proxy added; the size of the body; the trailers.
    assert_eq!(event.args[1..], [4, 6, 1]);
    let steps = &event.steps;
    assert_eq!(steps[0], json!(["get_header", 0, "207"]));
    assert_eq!(answered(steps, 1), json!([[":status", "207"], ["x-c", "c"]]));
    let rest = json!([
        ["map_size", 2],
        ["get_map", 0, [["x-ct", "ct"]]],
        ["get_buffer", 0, "called"],
        ["get_buffer", 0, "al"],
        ["buffer_status", 0, [6, 0]],
        ["get_map", 0, []],
        ["add_header", 2],
        ["effective", 0],
        ["get_header", 0, "c"],
        ["get_buffer", 0, "called"],
        ["get_header", 0, "a"],
        ["add_header", 0],
        ["continue", 0],
    ]);
    assert_eq!(&steps.as_array().unwrap()[2..], rest.as_array().unwrap().as_slice());
    let later = json!([["get_map", 0, []], ["get_header", 2], ["get_buffer", 1]]);
    assert_eq!(world.steps("p", "response_headers").await?, later);
    Ok(())
}

/// Refused at once: a cluster that is not there, and headers that lack one of three. There is no callback then.
pub async fn a_call_that_cannot_be_made_is_refused_at_once<W: World>() -> Result<()> {
    let to = |cluster: &str, names: &[&str]| {
        let headers: Value =
            names.iter().map(|name| json!([name, if *name == ":method" { "GET" } else { "/" }])).collect();
        json!(["http_call", cluster, headers, "", [], 100])
    };
    let all = [":method", ":path", ":authority"];
    let script = json!({
        "request_headers": [to("none", &all), to("up", &all[..2]), to("up", &all[1..]), to("up", &[":method", ":authority"]), to("up", &all)],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/")).await?;
    let steps = world.steps("p", "request_headers").await?;
    let statuses: Vec<&Value> = steps.as_array().unwrap().iter().map(|step| &step[1]).collect();
    assert_eq!(statuses, [2, 2, 2, 2, 0]);
    world.pass(crate::world::MOMENT).await;
    let token = steps[4][2].as_u64().unwrap();
    assert_eq!(
        world.seen("p", "http_call_response", 1).await?.iter().map(|event| event.args[0]).collect::<Vec<_>>(),
        [token]
    );
    Ok(())
}

/// The proxy answers in the upstream's place when nothing came of it; only where an answer breaks off, are there no
/// headers.
pub async fn a_failed_call_has_the_proxys_own_answer_or_none<W: World>() -> Result<()> {
    let look =
        json!([["get_header", "call", ":status"], ["get_map", "call"], ["get_buffer", "call", 0, "max"], ["status"]]);
    let of = |reply: &str, timeout: u32| {
        json!({
            "request_headers": [call("up", reply, timeout)],
            "http_call_response": look,
        })
    };
    let sites = [
        Site::of("reset", of("reset", 1000)),
        Site::of("slow", of("pause=3000", 50)),
        Site::of("broken", of("head; chunk=part; pause=50; reset", 1000)),
        Site::of("late", of("head; chunk=part; pause=3000", 50)),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    for (site, status, body) in [
        (
            "reset",
            "503",
            Some("upstream connect error or disconnect/reset before headers. reset reason: connection termination"),
        ),
        ("slow", "504", Some("upstream request timeout")),
        ("broken", "", None),
        ("late", "", None),
    ] {
        world.send(site, &Request::get("/")).await?;
        let event = world.seen(site, "http_call_response", 1).await?.remove(0);
        match body {
            Some(body) => {
                assert_eq!(event.args[1..], [3, body.len() as u64, 0], "{site}");
                let headers = json!([
                    [":status", status],
                    ["content-length", body.len().to_string()],
                    ["content-type", "text/plain"]
                ]);
                let wanted = json!([
                    ["get_header", 0, status],
                    ["get_map", 0, headers],
                    ["get_buffer", 0, body],
                    ["status", 0, [0, ""]]
                ]);
                assert_eq!(event.steps, wanted, "{site}");
            }
            None => {
                assert_eq!(event.args[1..], [0, 0, 0], "{site}");
                let wanted =
                    json!([["get_header", 2], ["get_map", 0, []], ["get_buffer", 1], ["status", 0, [11, "reset"]]]);
                assert_eq!(event.steps, wanted, "{site}");
            }
        }
    }
    Ok(())
}

/// The call belongs to the root: it is answered when its stream is gone, whose context cannot be taken any more.
pub async fn a_call_outlives_its_stream<W: World>() -> Result<()> {
    let script = json!({
        "request_headers": [call("up", "pause=300", 2000)],
        "http_call_response": [["get_header", "call", ":status"], ["effective", "caller"], ["get_map", "request"]],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/")).await?;
    world.stream("p", 1).await?;
    assert_eq!(
        world.steps("p", "http_call_response").await?,
        json!([["get_header", 0, "200"], ["effective", 2], ["get_map", 0, []]])
    );
    Ok(())
}

/// From the configuration and from a tick as well, on every thread; the body comes as one, however it was sent.
pub async fn a_root_calls_without_a_stream<W: World>() -> Result<()> {
    let chunks = "head; pause=30; chunk=ab; pause=30; chunk=cd";
    let answer = json!([["get_buffer", "call", 0, "max"]]);
    let sites = [
        Site::of("starting", json!({ "configure": [call("up", chunks, 1000)], "http_call_response": answer })),
        Site::of(
            "ticking",
            json!({ "configure": [["tick", 30]], "tick": [["tick", 0], call("up", chunks, 1000)], "http_call_response": answer }),
        ),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    for site in ["starting", "ticking"] {
        let events = world.seen(site, "http_call_response", 2).await?;
        assert_ne!(events[0].thread, events[1].thread, "the main thread's and the worker's");
        for event in events {
            assert_eq!((&event.args[1..], event.steps), (&[3, 4, 0][..], json!([["get_buffer", 0, "abcd"]])), "{site}");
        }
    }
    assert_eq!(world.received(4).await?.len(), 4, "the canary's call does not get out");
    Ok(())
}

/// A stream that waits for an answer can be answered from it.
pub async fn a_waiting_stream_can_be_answered_from_the_callback<W: World>() -> Result<()> {
    let script = json!({
        "request_headers": [call("up", "status=403", 1000), ["return", "pause"]],
        "http_call_response": [["effective", "caller"], ["reply", 401, "denied", "no"]],
        "log": [["get_property", ["response", "code_details"]]],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    let response = world.send("p", &Request::get("/")).await?;
    assert_eq!((response.status, response.text().as_str()), (401, "no"));
    assert_eq!(world.steps("p", "log").await?, json!([["get_property", 0, "denied"]]));
    assert_eq!(world.received(1).await?.len(), 1, "the call alone");
    Ok(())
}
