//! VMs, contexts, configurations and traps. Statics, a trap's cost and the way back from it are also in `tests/kit.rs`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::world::{Ask as _, Event, MOMENT, Plugin, Scene, Site, Thread, World, calls, names};

/// The callbacks of a plugin's root on a thread.
fn root_on(events: &[Event], plugin: &str, thread: Thread) -> Vec<Event> {
    events.iter().filter(|event| event.plugin == plugin && event.thread == thread && event.is_root()).cloned().collect()
}

/// A canary tries the configuration in a VM of its own and is gone without a word; then the main thread has one VM, and
/// each worker. What a canary counted is lost.
pub async fn a_plugin_starts_in_a_canary_on_the_main_thread_and_on_each_worker<W: World>() -> Result<()> {
    let vm_script = json!({ "vm_start": [["get_buffer", "vm_config", 0, "max"], ["get_buffer", "plugin_config", 0, "max"], ["get_property", "plugin_name"]] });
    let script = json!({ "configure": [["get_buffer", "plugin_config", 0, "max"], ["get_buffer", "vm_config", 0, "max"], ["count", "c"]] });
    let plugin = Plugin { vm_script: vm_script.clone(), ..Plugin::new("p", script) };
    let (plugin_config, vm_config) = (plugin.configuration(), vm_script.to_string());
    let world = W::start(&Scene { workers: 2, ..Scene::new([Site::new("in", [plugin])]) }).await?;
    world.seen("p", "configure", 3).await?;
    world.pass(MOMENT).await;
    let events = world.events()?;
    let wanted = [
        "context_create(0)".to_owned(),
        format!("vm_start({})", vm_config.len()),
        format!("configure({})", plugin_config.len()),
    ];
    let threads = [Thread::Canary, Thread::Main, Thread::Worker(0), Thread::Worker(1)];
    for thread in threads {
        let root = root_on(&events, "p", thread);
        assert_eq!(calls(&root), wanted, "{thread:?}");
        // In `vm_start` there is no plugin's configuration yet.
        assert_eq!(
            root[1].steps,
            json!([["get_buffer", 0, vm_config], ["get_buffer", 1], ["get_property", 0, "p"]]),
            "{thread:?}"
        );
        assert_eq!(
            root[2].steps,
            json!([["get_buffer", 0, plugin_config], ["get_buffer", 0, vm_config], ["count", 0, 1]]),
            "{thread:?}"
        );
    }
    assert_eq!(events.len(), 4 * 3, "{events:#?}");
    assert_eq!(events.iter().map(|event| event.vm).collect::<BTreeSet<_>>().len(), 4);
    let first = |thread: Thread| events.iter().position(|event| event.thread == thread).unwrap();
    assert!(first(Thread::Canary) < first(Thread::Main) && first(Thread::Main) < first(Thread::Worker(0)));
    Ok(())
}

/// One VM for all plugins of the same code, `vm_id` and VM configuration; each has a root of its own, started like the
/// first.
pub async fn plugins_of_one_vm_have_a_root_each<W: World>() -> Result<()> {
    let script = json!({ "configure": [["count", "c"]], "request_headers": [["count", "r"]] });
    let chain = [
        Plugin::new("a", script.clone()),
        Plugin::new("b", script.clone()),
        Plugin { vm_id: "another", ..Plugin::new("other_id", script.clone()) },
        Plugin { vm_script: json!({ "x": 1 }), ..Plugin::new("other_vm", script) },
    ];
    let world = W::start(&Scene::new([Site::new("in", chain)])).await?;
    world.send("in", &Request::get("/")).await?;
    let of = async |plugin: &str| -> Result<(u64, u64, Vec<Value>, Vec<String>)> {
        let configured = world.seen(plugin, "configure", 2).await?.remove(1);
        assert_eq!(configured.thread, Thread::Worker(0));
        let counted = world.steps(plugin, "request_headers").await?[0][2].clone();
        let root = root_on(&world.events()?, plugin, Thread::Worker(0));
        let names = names(&root).into_iter().map(str::to_owned).collect();
        Ok((configured.vm, configured.root, vec![configured.steps[0][2].clone(), counted], names))
    };
    let (a, b, other_id, other_vm) = (of("a").await?, of("b").await?, of("other_id").await?, of("other_vm").await?);
    let all = [&a, &b, &other_id, &other_vm];
    assert!(all.iter().all(|one| one.3 == ["context_create", "vm_start", "configure"]), "{all:#?}");
    assert_eq!((a.0, a.1 + 1), (b.0, b.1), "the roots are numbered one after the other");
    assert_eq!(all.iter().map(|one| one.0).collect::<BTreeSet<_>>().len(), 3);
    assert_eq!((&a.2, &b.2), (&vec![json!(1), json!(1)], &vec![json!(2), json!(2)]), "statics are shared");
    assert_eq!((&other_id.2, &other_vm.2), (&vec![json!(1), json!(1)], &vec![json!(1), json!(1)]));
    Ok(())
}

/// A new root on the same VM; statics live on. A request under way stays with the old root, and when the last has
/// ended, the old root does: `done`, then `delete`. Until then it ticks.
pub async fn a_new_configuration_is_a_new_root_on_the_same_vm<W: World>() -> Result<()> {
    let script = |value: &str| {
        json!({
            "configure": [["tick", 50], ["count", "c"]],
            "request_headers": [["count", "r"], ["add_header", "request", "x-config", value]],
            "tick": [["count", "t"]],
        })
    };
    let world = W::start(&Scene::new([Site::new("in", [Plugin::new("old", script("old"))])])).await?;
    let slow = Request::get("/slow").header("x-reply", "pause=400");
    let pushed = async {
        world.seen("old", "request_headers", 1).await?;
        world.push(&Scene::new([Site::new("in", [Plugin::new("new", script("new"))])])).await?.accepted()?;
        world.send("in", &Request::get("/")).await
    };
    let (old, new) = tokio::join!(world.send("in", &slow), pushed);
    assert_eq!((old?.status, new?.status), (200, 200));
    let sent = world.received(2).await?;
    assert_eq!(sent[0].headers.text("x-config").as_deref(), Some("old"));
    assert_eq!(sent[1].headers.text("x-config").as_deref(), Some("new"));
    // On the main thread and the worker, beside the one of the stream.
    let ended = world.seen("old", "delete", 3).await?;
    assert_eq!(ended.iter().filter(|event| event.is_root()).count(), 2);
    world.pass(2 * MOMENT).await;
    let events = world.events()?;
    for thread in [Thread::Main, Thread::Worker(0)] {
        let (old, new) = (root_on(&events, "old", thread), root_on(&events, "new", thread));
        assert_eq!(
            (old[0].vm, old[0].root + 1),
            (new[0].vm, if thread == Thread::Main { new[0].root } else { new[0].root - 1 }),
            "{thread:?}"
        );
        assert_eq!(
            (&names(&new)[..3], &new[2].steps[1][2]),
            (&["context_create", "vm_start", "configure"][..], &json!(2)),
            "{thread:?}"
        );
        let names = names(&old);
        assert_eq!(names[names.len() - 2..], ["done", "delete"], "{thread:?}: no tick after them");
        let done = events
            .iter()
            .position(|event| {
                event.vm == old[0].vm && event.root == old[0].root && event.callback == "done" && event.is_root()
            })
            .unwrap();
        let ticks_beside = events[..done]
            .iter()
            .rev()
            .take_while(|event| event.callback != "configure")
            .filter(|event| event.callback == "tick" && event.plugin == "old")
            .count();
        // On the main thread it depends on how long the proxy drains.
        assert!(thread == Thread::Main || ticks_beside > 0, "it ticks beside the new one");
    }
    assert_eq!(world.seen("new", "request_headers", 1).await?[0].steps[0][2], 2, "statics live on");
    Ok(())
}

/// The same text, and nothing happens at all.
pub async fn the_same_configuration_makes_no_new_root<W: World>() -> Result<()> {
    let scene = Scene::new([Site::of("p", json!({}))]);
    let more = Scene::new([Site::of("p", json!({})), Site::of("q", json!({}))]);
    let world = W::start(&scene).await?;
    world.push(&more).await?.accepted()?;
    world.seen("q", "configure", 2).await?;
    assert_eq!(world.seen("p", "configure", 2).await?.len(), 2);
    Ok(())
}

/// Returned by `configure` or `vm_start`, or a trap there. While another configuration serves, it goes on.
pub async fn a_configuration_can_be_refused<W: World>() -> Result<()> {
    let good = Plugin::new("good", json!({ "request_headers": [["add_header", "request", "x-good", "1"]] }));
    let bad = [
        Plugin::new("a", json!({ "configure": [["return", false]] })),
        Plugin::new("b", json!({ "configure": [["trap"]] })),
        Plugin { vm_script: json!({ "vm_start": [["return", false]] }), ..Plugin::new("c", json!({})) },
        Plugin { failure_policy: Some("FAIL_OPEN"), ..Plugin::new("d", json!({ "configure": [["return", false]] })) },
    ];
    let scene = |plugin: &Plugin| Scene::new([Site::new("in", [plugin.clone()])]);
    let world = W::start(&scene(&good)).await?;
    for plugin in &bad {
        world.push(&scene(plugin)).await?.rejected()?;
        world.send("in", &Request::get("/")).await?;
        assert!(world.received(1).await?[0].headers.has("x-good"), "{plugin:?}");
        let threads: BTreeSet<Thread> =
            world.events()?.iter().filter(|event| event.plugin == plugin.name).map(|event| event.thread).collect();
        // Before it is configured, a root has no name: of `c` there is none.
        assert!(threads.is_subset(&[Thread::Canary].into()), "{plugin:?}: nobody but the canary has seen it");
    }
    Ok(())
}

/// A root that is not done yet stays until it says so; a stream is not asked.
pub async fn only_a_root_can_put_off_its_end<W: World>() -> Result<()> {
    let script = json!({
        "configure": [["tick", 30]],
        "done": [["set_shared", "asked", "yes"], ["return", false]],
        "tick": [["when", ["get_shared", "asked"], "yes", [["done"]]]],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.push(&Scene::new([Site::of("q", json!({}))])).await?.accepted()?;
    world.seen("p", "delete", 2).await?;
    let events = world.events()?;
    for thread in [Thread::Main, Thread::Worker(0)] {
        let root = root_on(&events, "p", thread);
        let names = names(&root);
        let end = names.iter().position(|name| *name == "done").unwrap();
        assert_eq!(names[end..].iter().filter(|name| **name == "done").count(), 1, "{names:?}");
        assert_eq!(root.last().unwrap().callback, "delete", "{names:?}");
        assert!(root.iter().any(|event| event.callback == "tick" && event.steps[1] == json!(["done", 0])), "{root:#?}");
    }
    Ok(())
}

/// Once per period, root and thread; 0 ends it.
pub async fn a_root_ticks_on_every_thread_until_told_otherwise<W: World>() -> Result<()> {
    let sites = [
        Site::of(
            "p",
            json!({ "configure": [["tick", 20]], "tick": [["calls"], ["when", ["calls"], 3, [["tick", 0]]]] }),
        ),
        Site::of("never", json!({ "tick": [["calls"]] })),
        Site::of("late", json!({ "request_headers": [["tick", 20]], "tick": [["calls"], ["tick", 0]] })),
    ];
    let world = W::start(&Scene { workers: 2, ..Scene::new(sites) }).await?;
    world.seen("p", "tick", 9).await?;
    world.pass(MOMENT).await;
    let ticks = world.seen("p", "tick", 9).await?;
    assert_eq!(ticks.len(), 9, "{ticks:#?}");
    assert_eq!(
        ticks.iter().map(|event| event.thread).collect::<BTreeSet<_>>(),
        [Thread::Main, Thread::Worker(0), Thread::Worker(1)].into()
    );
    world.send("late", &Request::get("/")).await?;
    let stream = world.stream("late", 1).await?;
    let tick = world.seen("late", "tick", 1).await?.remove(0);
    assert!(
        tick.is_root() && (tick.vm, tick.root) == (stream[0].vm, stream[0].root),
        "asked for by a stream, the root of that VM ticks"
    );
    world.pass(MOMENT).await;
    let ticks = world.events()?.iter().filter(|event| event.callback == "tick" && event.plugin != "p").count();
    assert_eq!(ticks, 1, "alone, and once");
    Ok(())
}

/// All plugins and streams of the VM on that thread, and nobody else. Not even the end of the streams is told.
pub async fn a_trap_ends_all_of_its_vm<W: World>() -> Result<()> {
    let traps = json!({ "request_headers": [["when", ["get_header", "request", "x-trap"], "1", [["trap"]]]] });
    let sites = [
        Site::of("traps", traps),
        Site::of("same", json!({ "response_headers": [["calls"]] })),
        Site::new("open", [Plugin { failure_policy: Some("FAIL_OPEN"), ..Plugin::new("open", json!({})) }]),
        Site::new("other", [Plugin { vm_id: "another", ..Plugin::new("other", json!({})) }]),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    for site in ["traps", "same", "open", "other"] {
        assert_eq!(world.send(site, &Request::get("/")).await?.status, 200, "{site}");
        world.stream(site, 1).await?;
    }
    let slow = Request::get("/slow").header("x-reply", "pause=200");
    let trap = async {
        world.seen("same", "request_headers", 2).await?;
        world.send("traps", &Request::get("/").header("x-trap", "1")).await
    };
    let (under_way, trapped) = tokio::join!(world.send("same", &slow), trap);
    assert_eq!((under_way?.status, trapped?.status), (503, 503));
    for (site, status) in [("traps", 503), ("same", 503), ("open", 200), ("other", 200)] {
        assert_eq!(world.send(site, &Request::get("/")).await?.status, status, "{site}");
    }
    world.stream("other", 2).await?;
    let events = world.events()?;
    let trap = events.iter().position(|event| event.steps.to_string().contains("[\"trap\"]")).unwrap();
    let after: Vec<&Event> = events[trap + 1..].iter().filter(|event| event.vm == events[trap].vm).collect();
    assert!(after.is_empty(), "{after:#?}");
    Ok(())
}

/// The request gets its response, for it has it already; the next one does not.
pub async fn a_trap_in_on_log_ends_the_vm_as_well<W: World>() -> Result<()> {
    let world = W::start(&Scene::new([Site::of("p", json!({ "log": [["trap"]] }))])).await?;
    assert_eq!(world.send("p", &Request::get("/")).await?.status, 200);
    world.seen("p", "log", 1).await?;
    assert_eq!(world.send("p", &Request::get("/")).await?.status, 503);
    Ok(())
}

/// With `FAIL_RELOAD` the next request meets a new VM: without what the old one counted, and with what it shared. The
/// plugin is started there as in the beginning, but without a canary.
pub async fn a_new_vm_after_a_trap_finds_what_was_shared<W: World>() -> Result<()> {
    let script = json!({ "request_headers": [
        ["count", "c"], ["get_shared", "k"], ["set_shared", "k", "kept"],
        ["when", ["get_header", "request", "x-trap"], "1", [["trap"]]],
    ] });
    let plugin =
        Plugin { failure_policy: Some("FAIL_RELOAD"), reload_after: Some("0.002s"), ..Plugin::new("p", script) };
    let world = W::start(&Scene::new([Site::new("in", [plugin])])).await?;
    assert_eq!(world.send("in", &Request::get("/").header("x-trap", "1")).await?.status, 503);
    world.pass(Duration::from_millis(50)).await;
    assert_eq!(world.send("in", &Request::get("/")).await?.status, 200);
    let events = world.seen("p", "request_headers", 2).await?;
    assert_ne!(events[0].vm, events[1].vm);
    assert_eq!(
        (&events[1].steps[0], &events[1].steps[1]),
        (&json!(["count", 0, 1]), &json!(["get_shared", 0, "kept"]))
    );
    let events = world.events()?;
    let new: Vec<Event> = events.iter().filter(|event| event.vm == events.last().unwrap().vm).cloned().collect();
    assert_eq!(names(&new)[..5], ["context_create", "vm_start", "configure", "context_create", "request_headers"]);
    assert_eq!(events.iter().filter(|event| event.callback == "configure").count(), 4);
    Ok(())
}
