//! Filter state: how other parts of the proxy read what a filter found.

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::envoy::RealEnvoy;
use crate::world::{Ask as _, Plugin, Scene, Site, World};

pub async fn a_property_that_is_set_is_filter_state<W: World>() -> Result<()> {
    let read = json!([
        ["get_property", "k"],
        ["get_property", ["filter_state", "wasm.k"]],
        ["get_property", "wasm.k"],
        ["get_property", ["filter_state", "k"]],
    ]);
    let chain = [
        Plugin::new(
            "sets",
            json!({
                "request_headers": [["get_property", "k"], ["set_property", "k", "v"]],
                "response_headers": [["get_property", "k"], ["set_property", "k", "w\u{ff}"], ["get_property", "k"]],
            }),
        ),
        Plugin { vm_id: "another", ..Plugin::new("reads", json!({ "request_headers": read, "log": read })) },
    ];
    let logged = [("k", "%FILTER_STATE(wasm.k:PLAIN)%"), ("none", "%FILTER_STATE(wasm.none:PLAIN)%")];
    let world = W::start(&Scene::new([Site::new("in", chain).logged(logged)])).await?;
    world.send("in", &Request::get("/")).await?;
    assert_eq!(world.steps("sets", "request_headers").await?, json!([["get_property", 1], ["set_property", 0]]));
    let seen = |value: &str| {
        json!([["get_property", 0, value], ["get_property", 0, value], ["get_property", 1], ["get_property", 1]])
    };
    assert_eq!(world.steps("reads", "request_headers").await?, seen("v"), "in a VM of its own");
    let wanted = json!([["get_property", 0, "v"], ["set_property", 0], ["get_property", 0, "w\u{ff}"]]);
    assert_eq!(world.steps("sets", "response_headers").await?, wanted, "it can be set again");
    assert_eq!(world.steps("reads", "log").await?, seen("w\u{ff}"));
    let line = world.access_log("in", 1).await?.remove(0);
    assert!(line["k"].as_str().unwrap().starts_with('w') && line["none"].is_null(), "{line:?}");
    Ok(())
}

pub async fn what_on_log_sets_still_reaches_the_access_log<W: World>() -> Result<()> {
    let script = json!({ "log": [["set_property", "late", "yes"]], "done": [["set_property", "later", "yes"]] });
    let logged = [("late", "%FILTER_STATE(wasm.late:PLAIN)%"), ("later", "%FILTER_STATE(wasm.later:PLAIN)%")];
    let world = W::start(&Scene::new([Site::of("p", script).logged(logged)])).await?;
    world.send("p", &Request::get("/")).await?;
    assert_eq!(json!(world.access_log("p", 1).await?), json!([{ "late": "yes", "later": null }]));
    Ok(())
}

/// Its key is the path as it was given, with a NUL between its segments, which nothing else can name.
pub async fn a_key_of_two_segments_cannot_be_read_again<W: World>() -> Result<()> {
    let script = json!({ "request_headers": [
        ["set_property", ["a", "b"], "v"], ["get_property", ["a", "b"]], ["get_property", ["filter_state", "wasm.a", "b"]],
        ["set_property", "", "v"], ["set_property", "big", { "repeat": "v", "times": 100_000 }], ["get_property", "big"],
    ] });
    let world = W::start(&Scene::new([Site::of("p", script).logged([("a", "%FILTER_STATE(wasm.a:PLAIN)%")])])).await?;
    world.send("p", &Request::get("/")).await?;
    let wanted = json!([
        ["set_property", 0], ["get_property", 1], ["get_property", 1],
        ["set_property", 0], ["set_property", 0], ["get_property", 0, { "length": 100_000 }],
    ]);
    assert_eq!(world.steps("p", "request_headers").await?, wanted);
    assert_eq!(json!(world.access_log("p", 1).await?), json!([{ "a": null }]));
    Ok(())
}

/// `DeclarePropertyArguments`: the name, whether it is read-only, the type (0 is bytes), how long it lives (0 with the
/// filter chain, 1 with the request, 2 with the connection).
fn declared(name: &str, readonly: bool, life: u8) -> Value {
    let mut message = vec![0x0a, u8::try_from(name.len()).unwrap()];
    message.extend_from_slice(name.as_bytes());
    message.extend_from_slice(&[0x10, readonly.into(), 0x28, life]);
    json!(["foreign", "declare_property", crate::world::text(message)])
}

/// Declared in the root, it holds for all its streams; it can be declared once.
pub async fn a_declared_property_can_be_read_only<W: World>() -> Result<()> {
    let script = json!({
        "configure": [
            declared("once", true, 0), declared("once", false, 0),
            ["foreign", "declare_property", "\u{ff}"], ["foreign", "none", ""],
        ],
        "request_headers": [
            ["get_property", "once"], ["set_property", "once", "1"], ["set_property", "once", "2"], ["get_property", "once"],
        ],
        "log": [declared("late", true, 0)],
    });
    let logged = [("once", "%FILTER_STATE(wasm.once:PLAIN)%")];
    let world = W::start(&Scene::new([Site::of("p", script).logged(logged)])).await?;
    let two = [Request::get("/"), Request::get("/")];
    world.send_all("p", &two).await?;
    let configured = json!([["foreign", 0, ""], ["foreign", 2], ["foreign", 2], ["foreign", 1]]);
    assert_eq!(world.steps("p", "configure").await?, configured);
    let wanted = json!([["get_property", 1], ["set_property", 0], ["set_property", 2], ["get_property", 0, "1"]]);
    for event in world.seen("p", "request_headers", 2).await? {
        assert_eq!(event.steps, wanted);
    }
    assert_eq!(world.access_log("p", 2).await?[1]["once"], "1");
    assert_eq!(world.steps("p", "log").await?, json!([["foreign", 0, ""]]));
    Ok(())
}

/// With the connection, for the next request on it.
pub async fn a_declared_property_can_outlive_its_request() -> Result<()> {
    let script = json!({
        "configure": [declared("lasting", false, 2), declared("short", false, 0)],
        "request_headers": [
            ["get_property", "lasting"], ["set_property", "lasting", "1"],
            ["get_property", "short"], ["set_property", "short", "1"],
        ],
    });
    let world = RealEnvoy::start(&Scene::new([Site::of("p", script)])).await?;
    world.send_all("p", &[Request::get("/"), Request::get("/")]).await?;
    world.send("p", &Request::get("/")).await?;
    let seen = |lasting: Value| json!([lasting, ["set_property", 0], ["get_property", 1], ["set_property", 0]]);
    let missing = json!(["get_property", 1]);
    let events = world.seen("p", "request_headers", 3).await?;
    let wanted = [seen(missing.clone()), seen(json!(["get_property", 0, "1"])), seen(missing)];
    assert_eq!(events.into_iter().map(|event| event.steps).collect::<Vec<_>>(), wanted);
    Ok(())
}
