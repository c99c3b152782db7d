//! Shared data and queues.

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::world::{Ask as _, MOMENT, Plugin, Scene, Site, Thread, World};

/// Without a number, and with 0, whatever is there is overwritten; with another, only what has that number, or nothing.
pub async fn a_value_has_a_number_that_a_write_may_ask_for<W: World>() -> Result<()> {
    let script = json!({ "request_headers": [
        ["get_shared", "k"],
        ["set_shared", "k", "a", 5], ["get_shared", "k"], ["get_cas", "k"],
        ["set_shared", "k", "b", 5], ["get_shared", "k"],
        ["set_shared", "k", "c", "last"], ["get_cas", "k"],
        ["set_shared", "k", "d"], ["get_shared", "k"], ["get_cas", "k"],
        ["set_shared", "other", "e"], ["get_cas", "other"],
        ["set_shared", "k", ""], ["get_shared", "k"], ["get_cas", "k"],
        ["set_shared", "", "f"], ["get_shared", ""],
        ["set_shared", "bytes", "\u{0}\u{ff}"], ["get_shared", "bytes"],
    ] });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/")).await?;
    let wanted = json!([
        ["get_shared", 1],
        // Not looked at, for there is nothing. The numbers count the writes to the whole store.
        ["set_shared", 0],
        ["get_shared", 0, "a"],
        ["get_cas", 0, 1],
        ["set_shared", 8],
        ["get_shared", 0, "a"],
        ["set_shared", 0],
        ["get_cas", 0, 2],
        ["set_shared", 0],
        ["get_shared", 0, "d"],
        ["get_cas", 0, 3],
        ["set_shared", 0],
        ["get_cas", 0, 4],
        ["set_shared", 0],
        ["get_shared", 0, ""],
        ["get_cas", 0, 5],
        ["set_shared", 0],
        ["get_shared", 0, "f"],
        ["set_shared", 0],
        ["get_shared", 0, "\u{0}\u{ff}"],
    ]);
    assert_eq!(world.steps("p", "request_headers").await?, wanted);
    Ok(())
}

/// The key space belongs to the `vm_id`: whatever the module, its VM's configuration and the thread are.
pub async fn plugins_with_one_vm_id_share_and_others_do_not<W: World>() -> Result<()> {
    let get = json!({ "request_headers": [["get_shared", "k"]] });
    let chain = [
        Plugin::new("writer", json!({ "request_headers": [["set_shared", "k", "v"]] })),
        Plugin::new("same", get.clone()),
        Plugin { vm_script: json!({ "another": "VM" }), ..Plugin::new("other_vm", get.clone()) },
        Plugin { vm_id: "another", ..Plugin::new("other_id", get) },
    ];
    let ticking = Site::of("ticking", json!({ "configure": [["tick", 30]], "tick": [["get_shared", "k"]] }));
    let world = W::start(&Scene::new([Site::new("in", chain), ticking])).await?;
    world.send("in", &Request::get("/")).await?;
    for (plugin, wanted) in [
        ("same", json!([["get_shared", 0, "v"]])),
        ("other_vm", json!([["get_shared", 0, "v"]])),
        ("other_id", json!([["get_shared", 1]])),
    ] {
        assert_eq!(world.steps(plugin, "request_headers").await?, wanted, "{plugin}");
    }
    world
        .wait_for("the main thread sees it", |events| {
            let sees = |event: &&crate::world::Event| {
                event.thread == Thread::Main && event.callback == "tick" && event.steps[0][1] == 0
            };
            events.iter().find(sees).map(drop)
        })
        .await
}

/// As long as any VM with that id lives, a canary's included; then all is gone.
pub async fn it_outlives_a_configuration_but_not_the_last_vm<W: World>() -> Result<()> {
    let plugin = |name, vm_id, script| Plugin { vm_id, ..Plugin::new(name, script) };
    let first = json!({ "request_headers": [["set_shared", "k", "v"]] });
    let then = json!({ "configure": [["get_shared", "k"]], "request_headers": [["get_shared", "k"]] });
    let scene = |plugin: Plugin| Scene::new([Site::new("in", [plugin])]);
    let world = W::start(&scene(plugin("first", "a", first))).await?;
    world.send("in", &Request::get("/")).await?;
    // Another VM, of the same id.
    let second = Plugin { vm_script: json!({ "another": "VM" }), ..plugin("second", "a", then.clone()) };
    world.push(&scene(second)).await?.accepted()?;
    world.send("in", &Request::get("/")).await?;
    assert_eq!(world.steps("second", "request_headers").await?, json!([["get_shared", 0, "v"]]));
    world.push(&scene(plugin("away", "b", then.clone()))).await?.accepted()?;
    // The old one goes when its connections have been drained.
    world.seen("second", "delete", 3).await?;
    world.pass(MOMENT).await;
    world.push(&scene(plugin("back", "a", then))).await?.accepted()?;
    world.send("in", &Request::get("/")).await?;
    assert_eq!(world.steps("back", "request_headers").await?, json!([["get_shared", 1]]));
    Ok(())
}

/// A queue is read by its token, whoever has it; the VM that registered it last is told of what comes in.
pub async fn a_queue_takes_and_gives_in_order<W: World>() -> Result<()> {
    let script = json!({
        "request_headers": [
            ["register_queue", "q"], ["register_queue", "q"], ["resolve_queue", "", "q"], ["resolve_queue", "", "none"],
            ["enqueue", "last", "a"], ["enqueue", "last", "b"], ["dequeue", "last"],
            ["enqueue", 999, "x"], ["dequeue", 999],
        ],
        "queue_ready": [["dequeue", "last"], ["dequeue", "last"]],
    });
    let other = json!({ "response_headers": [["resolve_queue", "", "q"], ["resolve_queue", "a", "q"], ["enqueue", "last", "c"]] });
    let chain =
        [Plugin { vm_id: "b", ..Plugin::new("other", other) }, Plugin { vm_id: "a", ..Plugin::new("p", script) }];
    let world = W::start(&Scene::new([Site::new("in", chain)])).await?;
    world.send("in", &Request::get("/")).await?;
    let steps = world.steps("p", "request_headers").await?;
    let token = &steps[0][2];
    let wanted = json!([
        ["register_queue", 0, token],
        ["register_queue", 0, token],
        ["resolve_queue", 0, token],
        ["resolve_queue", 1],
        ["enqueue", 0],
        ["enqueue", 0],
        ["dequeue", 0, "a"],
        ["enqueue", 1],
        ["dequeue", 1],
    ]);
    assert_eq!(steps, wanted);
    let wanted = json!([["resolve_queue", 1], ["resolve_queue", 0, token], ["enqueue", 0]]);
    assert_eq!(world.steps("other", "response_headers").await?, wanted, "the queue belongs to a VM's id");
    let events = world.seen("p", "queue_ready", 3).await?;
    assert!(events.iter().all(|event| event.is_root() && Some(event.args[0]) == token.as_u64()), "{events:#?}");
    let given: Vec<&Value> =
        events.iter().flat_map(|event| event.steps.as_array().unwrap()).filter(|step| step[1] == 0).collect();
    assert_eq!(given, [&json!(["dequeue", 0, "b"]), &json!(["dequeue", 0, "c"])]);
    // One call for each, and 7 where nothing is left.
    assert_eq!(events.last().unwrap().steps[1], json!(["dequeue", 7]));
    Ok(())
}
