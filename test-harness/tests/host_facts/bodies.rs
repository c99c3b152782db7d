//! Bodies: what a callback is shown of them, and what it may do.

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::world::{Ask as _, Event, Plugin, Scene, Site, World, calls};

const TWO_CHUNKS: &str = "head; pause=60; chunk=ab; pause=60; chunk=cd; pause=60";

fn post() -> Request {
    Request::new("POST", "/").header("x-reply", TWO_CHUNKS)
}

/// The arguments and the steps of each of a stream's callbacks of this name.
fn bodies(events: &[Event], callback: &str) -> Value {
    events.iter().filter(|event| event.callback == callback).map(|event| json!([event.args, event.steps])).collect()
}

pub async fn a_chunk_can_be_read_in_part<W: World>() -> Result<()> {
    let script = json!({
        "request_headers": [["get_buffer", "request", 0, "max"]],
        "request_body": [
            ["get_buffer", "request", 0, "max"],
            ["get_buffer", "request", 1, 2],
            ["get_buffer", "request", 3, 1],
            ["get_buffer", "request", 4, 1],
            // The sum of both does not fit.
            ["get_buffer", "request", 1, "max"],
            ["buffer_status", "request"],
            ["get_buffer", "response", 0, "max"],
            ["get_buffer", "call", 0, "max"],
            ["get_buffer", "downstream", 0, "max"],
            ["get_buffer", "vm_config", 0, "max"],
            // The plugin's configuration is there while it is configured, and not later.
            ["get_buffer", "plugin_config", 0, "max"],
            ["get_buffer", 9, 0, "max"],
        ],
        "response_headers": [["get_buffer", "request", 0, "max"]],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::post("/", "abc")).await?;
    let given = |value: Value| json!(["get_buffer", 0, value]);
    let none = json!(["get_buffer", 1]);
    let wanted = json!([
        given(json!("abc")),
        given(json!("bc")),
        given(json!("")),
        given(json!("")),
        given(json!("bc")),
        ["buffer_status", 0, [3, 0]],
        given(json!("")),
        none,
        given(json!("")),
        given(json!("")),
        none,
        ["get_buffer", 2],
    ]);
    assert_eq!(world.steps("p", "request_body").await?, wanted);
    assert_eq!(world.steps("p", "request_headers").await?, json!([given(json!(""))]));
    assert_eq!(world.steps("p", "response_headers").await?, json!([given(json!(""))]));
    Ok(())
}

/// The last chunk of a body does not know that it is: the end comes with an empty one. With trailers it does not come
/// with the body at all. A message without a body ends with its headers.
pub async fn the_end_comes_with_an_empty_chunk_or_the_trailers<W: World>() -> Result<()> {
    let script = json!({});
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send_chunks("p", &post(), &["abc", "def"]).await?;
    let sides = |events: &[Event]| -> (Vec<String>, Vec<String>) {
        let without_count = |call: String| match call.split_once("headers(") {
            Some((side, args)) => format!("{side}headers{}", &args[args.find(',').unwrap()..args.len() - 1]),
            None => call,
        };
        let all = calls(events).into_iter().map(without_count);
        let (request, other): (Vec<_>, Vec<_>) = all.partition(|call| call.starts_with("request_"));
        (request, other.into_iter().filter(|call| call.starts_with("response_")).collect())
    };
    let (request, response) = sides(&world.stream("p", 1).await?);
    assert_eq!(request, ["request_headers,0", "request_body(3,0)", "request_body(3,0)", "request_body(0,1)"]);
    assert_eq!(response, ["response_headers,0", "response_body(2,0)", "response_body(2,0)", "response_body(0,1)"]);

    let reply = format!("{TWO_CHUNKS}; trailer=x-t:1");
    let request = Request::new("POST", "/").header("x-reply", reply).trailer("x-t", "1");
    world.send_chunks("p", &request, &["abc", "def"]).await?;
    let (request, response) = sides(&world.stream("p", 2).await?);
    assert_eq!(request, ["request_headers,0", "request_body(3,0)", "request_body(3,0)", "request_trailers(1)"]);
    assert_eq!(response, ["response_headers,0", "response_body(2,0)", "response_body(2,0)", "response_trailers(1)"]);

    world.send("p", &Request::get("/status/204")).await?;
    let (request, response) = sides(&world.stream("p", 3).await?);
    assert_eq!((request, response), (vec!["request_headers,1".to_owned()], vec!["response_headers,1".to_owned()]));
    Ok(())
}

pub async fn a_buffer_is_written_before_behind_or_instead<W: World>() -> Result<()> {
    let set = |start: Value, max: Value, value: &str| json!(["set_buffer", "request", start, max, value]);
    let then = |steps: &[Value]| {
        let steps = [steps, &[json!(["get_buffer", "request", 0, "max"])]].concat();
        json!({ "request_body": steps })
    };
    let sites = [
        Site::of("before", then(&[set(json!(0), json!(0), "<")])),
        Site::of("behind", then(&[set(json!("max"), json!(0), ">")])),
        Site::of("instead", then(&[set(json!(0), json!("max"), "new")])),
        Site::of("nothing", then(&[set(json!(0), json!("max"), "")])),
        // Of a part, only the beginning can be replaced.
        Site::of(
            "part",
            then(&[
                set(json!(1), json!(1), "x"),
                set(json!(0), json!(2), "12"),
                set(json!(3), json!(1), "-"),
                set(json!(0), json!(1), ""),
            ]),
        ),
        Site::of(
            "other",
            json!({
                "request_body": [["set_buffer", "response", 0, 0, "x"], ["set_buffer", "plugin_config", 0, 0, "x"], ["set_buffer", "call", 0, 0, "x"]],
                "response_body": [["set_buffer", "response", 0, 0, ">"]],
            }),
        ),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    for (site, body, seen) in [
        ("before", "<abc<def<", ["<abc", "<def", "<"]),
        ("behind", "abc>def>>", ["abc>", "def>", ">"]),
        ("instead", "newnewnew", ["new", "new", "new"]),
        ("nothing", "", ["", "", ""]),
    ] {
        world.send_chunks(site, &post(), &["abc", "def"]).await?;
        let steps = |text: &str| json!([["set_buffer", 0], ["get_buffer", 0, text]]);
        let wanted = json!([[[3, 0], steps(seen[0])], [[3, 0], steps(seen[1])], [[0, 1], steps(seen[2])]]);
        assert_eq!(bodies(&world.stream(site, 1).await?, "request_body"), wanted, "{site}");
        assert_eq!(String::from_utf8_lossy(&world.received(1).await?[0].body), body, "{site}");
    }
    world.send_chunks("part", &post(), &["abc"]).await?;
    let wanted =
        json!([["set_buffer", 2], ["set_buffer", 0], ["set_buffer", 0], ["set_buffer", 0], ["get_buffer", 0, "2c-"]]);
    assert_eq!(world.steps("part", "request_body").await?, wanted);
    let response = world.send_chunks("other", &post(), &["abc"]).await?;
    assert_eq!(response.text(), ">ab>cd>");
    assert_eq!(
        world.steps("other", "request_body").await?,
        json!([["set_buffer", 2], ["set_buffer", 1], ["set_buffer", 1]])
    );
    Ok(())
}

/// Who pauses is shown all that has come so far the next time, and may write it as one.
pub async fn pausing_a_body_gathers_it<W: World>() -> Result<()> {
    let gather = |side: &str| {
        json!([
            ["get_buffer", side, 0, "max"],
            ["return", "pause"],
            ["when", ["calls"], 3, [["set_buffer", side, 0, "max", "whole"], ["return", "continue"]]],
        ])
    };
    let look = |side: &str| json!([["get_buffer", side, 0, "max"], ["set_buffer", side, 0, "max", "all"]]);
    let sites = [
        Site::of("end", json!({ "request_body": gather("request"), "response_body": gather("response") })),
        Site::of(
            "trailers",
            json!({
                "request_body": [["return", "pause"]], "request_trailers": look("request"),
                "response_body": [["return", "pause"]], "response_trailers": look("response"),
            }),
        ),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    let response = world.send_chunks("end", &post(), &["abc", "def"]).await?;
    assert_eq!((world.received(1).await?[0].body.as_slice(), response.text().as_str()), (&b"whole"[..], "whole"));
    let events = world.stream("end", 1).await?;
    let shown = |side: &str| -> Vec<String> {
        let of = events.iter().filter(|event| event.callback == side);
        of.map(|event| format!("{:?} {}", event.args, event.steps[0][2].as_str().unwrap())).collect()
    };
    assert_eq!(shown("request_body"), ["[3, 0] abc", "[6, 0] abcdef", "[6, 1] abcdef"]);
    assert_eq!(shown("response_body"), ["[2, 0] ab", "[4, 0] abcd", "[4, 1] abcd"]);

    let request =
        Request::new("POST", "/").header("x-reply", format!("{TWO_CHUNKS}; trailer=x-t:1")).trailer("x-t", "1");
    let response = world.send_chunks("trailers", &request, &["abc", "def"]).await?;
    assert_eq!((world.received(1).await?[0].body.as_slice(), response.text().as_str()), (&b"all"[..], "all"));
    assert_eq!(
        world.steps("trailers", "request_trailers").await?,
        json!([["get_buffer", 0, "abcdef"], ["set_buffer", 0]])
    );
    assert_eq!(
        world.steps("trailers", "response_trailers").await?,
        json!([["get_buffer", 0, "abcd"], ["set_buffer", 0]])
    );
    Ok(())
}

/// Pausing the headers holds the body back as well; `tick` lets it go here. With `allow_on_headers_stop_iteration` the
/// body comes, and as long as it is paused too, the headers are still there and can be written.
pub async fn pausing_headers_stops_the_body_unless_it_is_allowed<W: World>() -> Result<()> {
    let body = json!([
        ["get_header", "request", "x-q"],
        ["add_header", "request", "x-late", "1"],
        ["get_buffer", "request", 0, "max"],
        ["when", ["calls"], 1, [["return", "pause"]]]
    ]);
    let held = json!({
        "configure": [["tick", 50]],
        "request_headers": [["set_shared", "held", "yes"], ["return", "pause"]],
        "request_body": [["get_header", "request", "x-q"], ["add_header", "request", "x-late", "1"], ["get_buffer", "request", 0, "max"]],
        "tick": [["when", ["get_shared", "held"], "yes", [
            ["when", ["count", "ticks"], 10, [
                ["tick", 0], ["effective", "stream"],
                ["get_header", "request", "x-q"], ["add_header", "request", "x-tick", "1"], ["continue", "request"],
            ]],
        ]]],
    });
    // Of the VMs only the worker's has a stream to go on with; the others say `bad step` to themselves.
    let sites = [
        Site::of("held", held),
        Site::new(
            "allowed",
            [Plugin {
                stop_iteration: Some(true),
                ..Plugin::new("allowed", json!({ "request_headers": [["return", "pause"]], "request_body": body }))
            }],
        ),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    let request = Request::new("POST", "/").header("x-q", "q");
    world.send_chunks("held", &request, &["abc", "def"]).await?;
    let events = world.stream("held", 1).await?;
    let wanted = json!([["get_header", 2], ["add_header", 2], ["get_buffer", 0, "abcdef"]]);
    assert_eq!(bodies(&events, "request_body")[0][1], wanted, "what came meanwhile comes in one");
    let sent = world.received(1).await?.remove(0);
    assert_eq!((sent.headers.text("x-tick").as_deref(), sent.headers.has("x-late")), (Some("1"), false));
    assert_eq!(sent.body, b"abcdef");

    world.send_chunks("allowed", &request, &["abc", "def"]).await?;
    let there = |text: &str, call: u8| {
        json!([["get_header", 0, "q"], ["add_header", 0], ["get_buffer", 0, text], ["calls", 0, call]])
    };
    let events = world.stream("allowed", 1).await?;
    let wanted = json!([[[3, 0], there("abc", 1)], [[6, 0], there("abcdef", 2)], [[0, 1], there("", 3)]]);
    assert_eq!(bodies(&events, "request_body"), wanted);
    let sent = world.received(1).await?.remove(0);
    assert_eq!(sent.headers.all("x-late").len(), 2, "the third came after the headers had gone");
    Ok(())
}

/// What has gone upstream before stays an incomplete request there. The filter's own response callbacks run.
pub async fn a_gathered_request_over_the_limit_is_413<W: World>() -> Result<()> {
    let script = json!({
        "request_body": [["return", "pause"]],
        "response_headers": [["get_header", "response", ":status"]],
    });
    let passing = json!({ "request_body": [["get_buffer", "request", 0, "max"]] });
    let with = |name, script| Site { limit: Some(20), ..Site::of(name, script) };
    let world = W::start(&Scene::new([with("p", script), with("passing", passing)])).await?;
    let request = Request::new("POST", "/");
    let chunks = ["0123456789", "0123456789", "0123456789"];
    assert_eq!(world.send_chunks("p", &request, &chunks).await?.status, 413);
    assert_eq!(world.steps("p", "response_headers").await?, json!([["get_header", 0, "413"]]));
    let events = world.stream("p", 1).await?;
    assert!(bodies(&events, "request_body").as_array().unwrap().iter().all(|body| body[0][1] == 0), "{events:#?}");
    assert_eq!(world.send_chunks("passing", &request, &chunks).await?.status, 200);
    assert_eq!(world.received(1).await?[0].body.len(), 30, "no limit for what is not gathered");
    Ok(())
}

/// It is 500 as long as the headers are held as well, which needs `allow_on_headers_stop_iteration`; once they have
/// gone, the stream is broken off.
pub async fn a_gathered_response_over_the_limit_is_500<W: World>() -> Result<()> {
    let script = |headers: &str| {
        json!({
            "response_headers": [["get_header", "response", ":status"], ["return", headers]],
            "response_body": [["return", "pause"]],
            "log": [["get_header", "response", ":status"], ["get_property", ["response", "code_details"]]],
        })
    };
    let with = |name, headers| Site {
        limit: Some(20),
        ..Site::new(name, [Plugin { stop_iteration: Some(true), ..Plugin::new(name, script(headers)) }])
    };
    let world = W::start(&Scene::new([with("held", "pause"), with("gone", "continue")])).await?;
    let reply = "head; pause=60; chunk=0123456789; pause=60; chunk=0123456789; pause=60; chunk=0123456789; pause=60";
    let request = Request::get("/").header("x-reply", reply);
    assert_eq!(world.send("held", &request).await?.status, 500);
    world.send("gone", &request).await.expect_err("broken off");
    for (site, headers) in [("held", 1), ("gone", 1)] {
        let events = world.stream(site, 1).await?;
        let seen = bodies(&events, "response_headers");
        assert_eq!(seen.as_array().unwrap().len(), headers, "{site} {events:#?}");
        let status = if site == "held" { "500" } else { "200" };
        let wanted = json!([["get_header", 0, status], ["get_property", 0, "response_payload_too_large"]]);
        assert_eq!(world.steps(site, "log").await?, wanted, "{site}");
    }
    Ok(())
}
