//! Metrics.

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::envoy::RealEnvoy;
use crate::world::{Ask as _, Plugin, Scene, Site, World};

/// An id is the how-manieth series it is for this VM and, in its last two bits, the kind.
pub async fn each_definition_has_a_new_id_for_the_same_series<W: World>() -> Result<()> {
    let script = json!({ "request_headers": [
        ["define_metric", "counter", "c"], ["increment_metric", "c", 2],
        ["define_metric", "counter", "c"], ["increment_metric", "c", 3], ["get_metric", "c"],
        ["define_metric", "gauge", "g"],
        ["define_metric", "histogram", "h"],
        // Of another kind, another series.
        ["define_metric", "gauge", "c"], ["get_metric", "c"],
        ["define_metric", 3, "x"],
        ["define_metric", "counter", ""],
    ] });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/")).await?;
    let wanted = json!([
        ["define_metric", 0, 4],
        ["increment_metric", 0],
        ["define_metric", 0, 8],
        ["increment_metric", 0],
        ["get_metric", 0, 5],
        ["define_metric", 0, 5],
        ["define_metric", 0, 6],
        ["define_metric", 0, 9],
        ["get_metric", 0, 0],
        ["define_metric", 2],
        ["define_metric", 0, 12],
    ]);
    assert_eq!(world.steps("p", "request_headers").await?, wanted);
    Ok(())
}

/// A counter takes no negative number and no 0, and adds what is recorded. A gauge goes below zero into the largest numbers.
/// A histogram is only recorded, and cannot be read.
pub async fn each_kind_takes_what_it_takes<W: World>() -> Result<()> {
    let script = json!({ "request_headers": [
        ["define_metric", "counter", "c"],
        ["increment_metric", "c", 2], ["increment_metric", "c", -1], ["increment_metric", "c", 0], ["record_metric", "c", 10], ["get_metric", "c"],
        ["define_metric", "gauge", "g"],
        ["increment_metric", "g", 5], ["increment_metric", "g", -2], ["get_metric", "g"], ["record_metric", "g", 50], ["get_metric", "g"],
        ["increment_metric", "g", -51], ["get_metric", "g"], ["increment_metric", "g", 8],
        ["define_metric", "histogram", "h"],
        ["increment_metric", "h", 1], ["record_metric", "h", 7], ["get_metric", "h"],
        ["increment_metric", 400, 1], ["record_metric", 400, 1], ["get_metric", 400],
    ] });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/")).await?;
    let wanted = json!([
        ["define_metric", 0, 4],
        ["increment_metric", 0],
        ["increment_metric", 2],
        ["increment_metric", 2],
        ["record_metric", 0],
        ["get_metric", 0, 12],
        ["define_metric", 0, 5],
        ["increment_metric", 0],
        ["increment_metric", 0],
        ["get_metric", 0, 3],
        ["record_metric", 0],
        ["get_metric", 0, 50],
        ["increment_metric", 0],
        ["get_metric", 0, u64::MAX],
        ["increment_metric", 0],
        ["define_metric", 0, 6],
        ["increment_metric", 2],
        ["record_metric", 0],
        ["get_metric", 2],
        ["increment_metric", 1],
        ["record_metric", 1],
        ["get_metric", 1],
    ]);
    assert_eq!(world.steps("p", "request_headers").await?, wanted);
    assert_eq!((world.stat("wasmcustom.c").await?, world.stat("wasmcustom.g").await?), (Some(12), Some(7)));
    Ok(())
}

/// By its name, whatever the VM is; an id belongs to the VM, and so to all its plugins.
pub async fn a_series_is_one_for_the_whole_process<W: World>() -> Result<()> {
    let define = |more: Value| {
        let mut steps = vec![json!(["define_metric", "counter", "c"]), json!(["increment_metric", "c", 1])];
        steps.extend(more.as_array().unwrap().clone());
        json!({ "configure": steps })
    };
    let chain = [
        Plugin::new("a", define(json!([]))),
        Plugin::new(
            "same_vm",
            json!({ "request_headers": [["get_metric", 4], ["get_metric", 8], ["increment_metric", 4, 1]] }),
        ),
        Plugin { vm_id: "another", ..Plugin::new("b", define(json!([]))) },
    ];
    let world = W::start(&Scene::new([Site::new("in", chain)])).await?;
    // In a canary, on the main thread, on the worker, of two plugins.
    assert_eq!(world.stat("wasmcustom.c").await?, Some(6));
    world.send("in", &Request::get("/")).await?;
    let wanted = json!([["get_metric", 0, 6], ["get_metric", 1], ["increment_metric", 0]]);
    assert_eq!(world.steps("same_vm", "request_headers").await?, wanted);
    assert_eq!(world.stat("wasmcustom.c").await?, Some(7));
    Ok(())
}

/// Differences add up over all VMs; what is recorded is the last writer's.
pub async fn a_gauge_that_several_vms_move_is_moved_by_differences<W: World>() -> Result<()> {
    let script = json!({ "configure": [
        ["define_metric", "gauge", "moved"], ["increment_metric", "moved", 3], ["increment_metric", "moved", -1],
        ["define_metric", "gauge", "set"], ["increment_metric", "set", 7], ["record_metric", "set", 5],
    ] });
    let world = W::start(&Scene { workers: 2, ..Scene::new([Site::of("p", script)]) }).await?;
    world.seen("p", "configure", 3).await?;
    // A canary, the main thread, two workers.
    assert_eq!((world.stat("wasmcustom.moved").await?, world.stat("wasmcustom.set").await?), (Some(4 * 2), Some(5)));
    Ok(())
}

/// For Prometheus without `envoy_` and `wasmcustom`; a label is what `stats_tags` take out of the name. Characters that a
/// series may not have become `_`.
pub async fn a_label_is_taken_out_of_the_name() -> Result<()> {
    let script = json!({ "request_headers": [
        ["define_metric", "counter", "requests_probe_tag.=.some value;.;_total"], ["increment_metric", 4, 3],
        ["define_metric", "gauge", "odd-name.with/more"], ["record_metric", 5, 2],
        ["define_metric", "histogram", "times"], ["record_metric", 6, 7], ["record_metric", 6, 70],
    ] });
    let world = RealEnvoy::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/")).await?;
    assert_eq!(world.stat("wasmcustom.requests_probe_tag.=.some value;.;_total").await?, Some(3));
    let label = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    assert_eq!(world.series("requests__total").await?, [(label("probe_tag", "some value"), 3.0)]);
    assert_eq!(world.series("odd_name_with_more").await?, [(Vec::new(), 2.0)]);
    // Histograms are merged now and then.
    let sum = async || {
        world
            .series("times_sum")
            .await
            .ok()
            .filter(|series| series.iter().any(|(_, sum)| *sum > 0.0))
            .ok_or_else(|| "none".to_owned())
    };
    let sum = test_harness::eventually("the histogram", test_harness::PATIENCE, sum).await?;
    assert!((70.0..85.0).contains(&sum[0].1), "the sum is made from the buckets: {sum:?}");
    assert_eq!(world.series("times_count").await?, [(Vec::new(), 2.0)]);
    let buckets = world.series("times_bucket").await?;
    let below =
        |limit: &str| buckets.iter().find(|(labels, _)| labels[..] == label("le", limit)[..]).map(|(_, count)| *count);
    assert_eq!(
        [below("0.5"), below("5"), below("10"), below("100"), below("+Inf")],
        [Some(0.0), Some(0.0), Some(1.0), Some(2.0), Some(2.0)]
    );
    Ok(())
}
