//! Replies of a filter's own, streams that are closed, and what of it kills the proxy.

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::world::{Ask as _, Plugin, Scene, Site, World, names, number};

fn reply(body: &str) -> Value {
    json!(["reply", 418, "why_not", body, [["x-own", "1"]]])
}

/// What the callback returns does not matter. Of two replies the first is sent, with the details of the second. The filter's own response callbacks run on the reply, and can change it.
pub async fn a_reply_in_the_request_phase_goes_through_the_own_response_callbacks<W: World>() -> Result<()> {
    let of = |phase: &str, steps: Value| {
        let mut script = json!({
            "response_headers": [["get_header", "response", ":status"], ["get_header", "response", "x-own"], ["add_header", "response", "x-seen", "1"], ["remove_header", "response", "content-length"]],
            "response_body": [["get_buffer", "response", 0, "max"], ["set_buffer", "response", "max", 0, "!"]],
            "log": [["get_property", ["response", "code"]], ["get_property", ["response", "code_details"]], ["get_property", ["response", "flags"]]],
        });
        script[phase] = steps;
        script
    };
    let sites = [
        Site::of("paused", of("request_headers", json!([reply("short"), ["return", "pause"]]))),
        Site::of(
            "twice",
            of("request_headers", json!([reply("short"), ["reply", 419, "second", "two"], ["return", "continue"]])),
        ),
        Site::of("body", of("request_body", json!([reply("short"), ["return", "pause"]]))),
        Site::of("trailers", of("request_trailers", json!([reply("short"), ["return", "pause"]]))),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    for site in ["paused", "twice", "body", "trailers"] {
        let response = world.send(site, &Request::post("/", "body").trailer("x-t", "1")).await?;
        assert_eq!((response.status, response.text().as_str()), (418, "short!"), "{site}");
        assert!(response.headers.has("x-own") && response.headers.has("x-seen"), "{site}: {response:?}");
        let events = world.stream(site, 1).await?;
        let request: &[&str] = match site {
            "paused" | "twice" => &["request_headers"],
            "body" => &["request_headers", "request_body"],
            _ => &["request_headers", "request_body", "request_trailers"],
        };
        let wanted =
            [&["context_create"], request, &["response_headers", "response_body", "log", "done", "delete"]].concat();
        assert_eq!(names(&events), wanted, "{site}");
        let seen = json!([["get_header", 0, "418"], ["get_header", 0, "1"], ["add_header", 0], ["remove_header", 0]]);
        assert_eq!(world.steps(site, "response_headers").await?, seen, "{site}");
        let log = world.steps(site, "log").await?;
        let details = if site == "twice" { "second" } else { "why_not" };
        assert_eq!((number(&log[0]), &log[1]), (418, &json!(["get_property", 0, details])), "{site}");
    }
    assert!(world.received(0).await?.iter().all(|request| request.body.is_empty()), "nothing whole went upstream");
    Ok(())
}

/// It replaces the upstream's response, and no more callbacks see it but `log`.
pub async fn a_reply_at_response_headers_is_seen_by_no_own_callback<W: World>() -> Result<()> {
    let script = json!({
        "response_headers": [reply("short"), ["get_header", "response", ":status"], ["return", "pause"]],
        "log": [["get_header", "response", ":status"], ["get_header", "response", "x-up"]],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    let response = world.send("p", &Request::get("/").header("x-reply", "header=x-up:1; chunk=body")).await?;
    assert_eq!((response.status, response.text().as_str(), response.headers.has("x-up")), (418, "short", false));
    assert_eq!(world.steps("p", "response_headers").await?[1], json!(["get_header", 0, "200"]));
    let events = world.stream("p", 1).await?;
    assert_eq!(names(&events), ["context_create", "request_headers", "response_headers", "log", "done", "delete"]);
    assert_eq!(world.steps("p", "log").await?, json!([["get_header", 0, "418"], ["get_header", 1]]));
    Ok(())
}

/// Once the headers have gone there is no reply: the stream is broken off.
pub async fn a_reply_at_the_response_body_breaks_the_stream_off<W: World>() -> Result<()> {
    let world = W::start(&Scene::new([Site::of("p", json!({ "response_body": [reply("late")] }))])).await?;
    let error = world.send("p", &Request::get("/")).await.expect_err("broken off");
    assert!(format!("{error:#}").contains("status: 200"), "{error:#}");
    let events = world.stream("p", 1).await?;
    assert_eq!(
        names(&events)[..],
        ["context_create", "request_headers", "response_headers", "response_body", "log", "done", "delete"]
    );
    Ok(())
}

/// The reply passes the replying filter and those in front of it, in reverse order. A filter behind it has no context
/// until `log`, which is all that it sees.
pub async fn filters_behind_a_reply_see_on_log_alone<W: World>() -> Result<()> {
    let log = json!({ "log": [["get_header", "request", "x-a"], ["get_header", "response", ":status"],
        ["get_property", ["response", "code_details"]]] });
    let chain = [
        Plugin::new("first", log.clone()),
        Plugin::new("second", json!({ "request_headers": [reply("mine"), ["return", "pause"]] })),
        Plugin::new("third", log.clone()),
    ];
    let behind = Site { front: true, ..Site::new("front", [Plugin::new("behind", log)]) };
    let world = W::start(&Scene::new([Site::new("chain", chain), behind])).await?;
    world.send("chain", &Request::get("/").header("x-a", "1")).await?;
    let all = ["context_create", "request_headers", "response_headers", "response_body", "log", "done", "delete"];
    assert_eq!(names(&world.stream("first", 1).await?), all);
    assert_eq!(names(&world.stream("second", 1).await?), all);
    assert_eq!(names(&world.stream("third", 1).await?), ["context_create", "log", "done", "delete"]);
    let order = |callback: &str| -> Result<Vec<String>> {
        let events = world.events()?;
        Ok(events.into_iter().filter(|event| event.callback == callback).map(|event| event.plugin).collect())
    };
    assert_eq!(order("response_headers")?, ["second", "first"]);
    assert_eq!(order("log")?, ["first", "second", "third"], "as they stand in the chain");
    let seen = |details: &str| {
        json!([
            ["get_header", 0, "1"],
            ["get_header", 0, if details == "why_not" { "418" } else { "403" }],
            ["get_property", 0, details]
        ])
    };
    assert_eq!(world.steps("third", "log").await?, seen("why_not"));

    let response = world.send("front", &Request::get("/").header("x-a", "1").header("x-front", "1")).await?;
    assert_eq!(response.status, 403);
    assert_eq!(names(&world.stream("behind", 1).await?), ["context_create", "log", "done", "delete"]);
    let log = world.steps("behind", "log").await?;
    assert_eq!((&log[0], &log[1]), (&json!(["get_header", 0, "1"]), &json!(["get_header", 0, "403"])));
    Ok(())
}

/// To a gRPC caller a reply is trailers alone, with the status that was given, or one that fits the HTTP status; to
/// others the gRPC status says nothing.
pub async fn a_reply_to_a_grpc_caller_is_in_grpc<W: World>() -> Result<()> {
    let with = |grpc: i32| json!({ "request_headers": [["reply", 503, "", "text", [], grpc]] });
    let world = W::start(&Scene::new([Site::of("given", with(7)), Site::of("mapped", with(-1))])).await?;
    for (site, status) in [("given", "7"), ("mapped", "14")] {
        let grpc = Request::post("/s/m", "").header("content-type", "application/grpc");
        let response = world.send(site, &grpc).await?;
        assert_eq!(response.status, 200, "{site}");
        assert_eq!(response.headers.text("grpc-status").as_deref(), Some(status), "{site}: {response:?}");
        assert_eq!(response.headers.text("grpc-message").as_deref(), Some("text"), "{site}");
        let response = world.send(site, &Request::get("/")).await?;
        assert_eq!((response.status, response.headers.has("grpc-status")), (503, false), "{site}: {response:?}");
    }
    Ok(())
}

/// The client sees no response at all.
pub async fn a_closed_stream_ends_without_a_response<W: World>() -> Result<()> {
    let log = json!([["get_property", ["response", "code_details"]]]);
    let sites = [
        Site::of("request", json!({ "request_headers": [["close", "request"], ["return", "pause"]], "log": log })),
        Site::of("response", json!({ "response_headers": [["close", "response"], ["return", "pause"]], "log": log })),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    for (site, details, last) in
        [("request", "wasm_close_stream", "request_headers"), ("response", "via_upstream", "response_headers")]
    {
        world.send(site, &Request::get("/")).await.expect_err("no response");
        let events = world.stream(site, 1).await?;
        let names = names(&events);
        assert_eq!(names[names.len() - 4..], [last, "log", "done", "delete"], "{site}");
        assert_eq!(world.steps(site, "log").await?, json!([["get_property", 0, details]]), "{site}");
    }
    Ok(())
}

/// A filter can end the whole proxy: with a reply in `log` or `done` or a close in `log`, which calls `log` again without
/// end, and by continuing a response that is not there.
pub async fn some_calls_kill_the_proxy<W: World>() -> Result<()> {
    let scripts = [
        json!({ "log": [reply("late")] }),
        json!({ "log": [["close", "request"]] }),
        json!({ "done": [reply("late")] }),
        json!({ "request_headers": [["continue", "response"]] }),
    ];
    for script in scripts {
        let world = W::start(&Scene::new([Site::of("p", script.clone())])).await?;
        // Before `done` the response may have gone out.
        drop(world.send("p", &Request::get("/")).await);
        assert!(world.is_dead().await, "{script}");
    }
    Ok(())
}

/// In a root context, where there is no stream, the same calls are taken and do nothing.
pub async fn calls_for_a_stream_do_nothing_without_one<W: World>() -> Result<()> {
    let calls = json!([
        ["tick", 0],
        reply("nobody"),
        ["close", "request"],
        ["close", "response"],
        ["continue", "request"],
        ["continue", "response"],
        ["get_buffer", "request", 0, "max"],
        ["set_buffer", "request", 0, 0, "x"],
        ["get_map", "request"],
        ["get_header", "request", "x-a"],
        ["add_header", "request", "x-a", "1"],
        ["get_property", ["request", "path"]]
    ]);
    let script = json!({
        "configure": [["tick", 20]],
        "tick": calls,
        "request_headers": [["continue", "request"], ["continue", 9], ["close", 9], ["done"]],
        "log": [["continue", "request"], ["http_call", "up", [[":method", "GET"], [":path", "/"], [":authority", "a"]], "", [], 100]],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    let wanted = json!([
        ["tick", 0],
        ["reply", 0],
        ["close", 0],
        ["close", 0],
        ["continue", 0],
        ["continue", 0],
        ["get_buffer", 0, ""],
        ["set_buffer", 2],
        ["get_map", 0, []],
        ["get_header", 2],
        ["add_header", 2],
        ["get_property", 1]
    ]);
    for event in world.seen("p", "tick", 2).await? {
        assert_eq!(event.steps, wanted, "{:?}", event.thread);
    }
    assert_eq!(world.send("p", &Request::get("/")).await?.text(), "ok");
    let wanted = json!([["continue", 0], ["continue", 2], ["close", 2], ["done", 1]]);
    assert_eq!(world.steps("p", "request_headers").await?, wanted);
    let log = world.steps("p", "log").await?;
    assert_eq!((&log[0], &log[1][1]), (&json!(["continue", 0]), &json!(0)));
    Ok(())
}
