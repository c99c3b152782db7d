//! The manifests in `istio/` and `examples/envoy-gateway/`, without a cluster: what the mesh takes of them, what the filters
//! say to their configuration, and what a real Envoy does with what they put into it.
//!
//! Where `CRDS` names a folder with the mesh's own schemas, these judge as well; the rules here are theirs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

mod helm;
mod judge;
mod kustomize;
mod proxy;
mod resource;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use circuit_breaker::CircuitBreaker;
use judge::Judge;
use kit::{Filter, Metric};
use latency::Latency;
use log_scrub::LogScrub;
use serde_json::{Value, json};
use suite::Suite;
use test_harness::root;
use trace_id::TraceId;

const FILTERS: [&str; 5] = ["trace-id", "latency", "log-scrub", "circuit-breaker", "suite"];
const KINDS: [&str; 3] = ["WasmPlugin", "TrafficExtension", "EnvoyFilter"];
const PLACES: [&str; 3] = ["sidecar", "gateway", "waypoint"];

/// Where an EnvoyFilter has the module's configuration.
const EXTENSION: &str = "/spec/configPatches/0/patch/value/typed_config";

fn parse(text: &str) -> Vec<Value> {
    let read: Vec<Value> = serde_saphyr::from_multiple(text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    read.into_iter().filter(|document| !document.is_null()).collect()
}

fn documents(path: &Path) -> Vec<Value> {
    parse(&fs::read_to_string(path).unwrap_or_else(|why| panic!("{}: {why}", path.display())))
}

/// All files below a folder with that name, or that end so.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_string_lossy().ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What `kubectl apply -k` would apply.
fn built(filter: &str, kind: &str, place: &str) -> Vec<Value> {
    kustomize::build(&root().join(format!("istio/{filter}/{place}/{}", kind.to_lowercase())))
}

/// The same by the chart.
fn rendered(filter: &str, kind: &str, place: &str) -> Vec<Value> {
    let mut values = json!({ "kind": kind, "place": place });
    for each in FILTERS {
        values[each.replace('-', "_")] = json!({ "enabled": each == filter });
    }
    helm::render(&values, "shop").unwrap()
}

/// Every combination of filter, kind and place.
fn combinations() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    FILTERS
        .iter()
        .flat_map(|filter| KINDS.iter().flat_map(move |kind| PLACES.iter().map(move |place| (*filter, *kind, *place))))
}

/// Everything that is ever applied.
fn resources() -> Vec<Value> {
    let mut all = Vec::new();
    for kustomization in files(&root().join("istio"), "kustomization.yaml") {
        all.extend(kustomize::build(kustomization.parent().unwrap()));
    }
    for (filter, kind, place) in combinations() {
        all.extend(rendered(filter, kind, place));
    }
    let more = json!({ "telemetry": { "enabled": true }, "thresholds": { "enabled": true } });
    all.extend(helm::render(&more, "shop").unwrap());
    for policy in files(&root().join("examples/envoy-gateway"), ".yaml") {
        all.extend(documents(&policy));
    }
    all
}

#[test]
fn the_mesh_takes_every_resource() {
    let (all, judge) = (resources(), Judge::summon());
    for resource in &all {
        resource::check(resource).unwrap_or_else(|why| panic!("{why}\n{resource:#}"));
        if let Some(judge) = &judge {
            assert_eq!(judge.against(resource), Vec::<String>::new(), "{resource:#}");
        }
    }
    let kinds: BTreeSet<&str> = all.iter().map(|resource| resource["kind"].as_str().unwrap()).collect();
    let expected =
        ["ConfigMap", "Deployment", "EnvoyExtensionPolicy", "EnvoyFilter", "Namespace", "Service", "Telemetry"];
    let expected: BTreeSet<&str> = expected.into_iter().chain(["TrafficExtension", "WasmPlugin"]).collect();
    assert_eq!(kinds, expected);
    if let Some(judge) = &judge {
        let known: BTreeSet<&str> = all
            .iter()
            .filter(|resource| judge.knows(resource))
            .map(|resource| resource["kind"].as_str().unwrap())
            .collect();
        assert!(known.is_superset(&["EnvoyFilter", "Telemetry", "TrafficExtension", "WasmPlugin"].into()), "{known:?}");
    }
}

/// Each of these is a mistake, and the checks see it; so do the mesh's schemas, but where only its code does.
#[test]
fn what_the_mesh_would_refuse_or_drop_is_refused() {
    let set = |path: &str, value: Value| json!([{ "op": "add", "path": path, "value": value }]);
    let remove = |path: &str| json!([{ "op": "remove", "path": path }]);
    let (gateway, other) = (json!([{ "kind": "Gateway", "name": "waypoint" }]), json!({ "matchLabels": { "a": "b" } }));
    let both = |path: &str| {
        json!([
            { "op": "add", "path": "/spec/targetRefs", "value": gateway }, { "op": "add", "path": path, "value": other },
        ])
    };
    let long = "x".repeat(64);
    let many: Vec<Value> = (0..17).map(|i| json!({ "kind": "Gateway", "name": format!("g{i}") })).collect();
    let wasm = |prefix: &str| {
        vec![
            set(&format!("{prefix}/unknown"), json!(1)),
            set(&format!("{prefix}/url"), json!("ftp://a/b")),
            set(&format!("{prefix}/url"), json!("")),
            remove(&format!("{prefix}/url")),
            set(&format!("{prefix}/sha256"), json!("sha256:00")),
            set(&format!("{prefix}/sha256"), json!("A".repeat(64))),
            set(&format!("{prefix}/failStrategy"), json!("FAIL_CLOSED")),
            set(&format!("{prefix}/imagePullPolicy"), json!("Never")),
            set(&format!("{prefix}/imagePullSecret"), json!("")),
            set(&format!("{prefix}/pluginConfig"), json!("{}")),
            set(&format!("{prefix}/type"), json!("TCP")),
            set(&format!("{prefix}/vmConfig"), json!({ "env": [{ "name": "A", "value": "b", "valueFrom": "HOST" }] })),
            set(&format!("{prefix}/vmConfig"), json!({ "env": [{ "name": "" }] })),
        ]
    };
    let common = vec![
        both("/spec/selector"),
        set("/spec/selector", json!({ "matchLabels": { "a*": "b" } })),
        set("/spec/selector", json!({ "matchLabels": { "a": "*" } })),
        set("/spec/selector", json!({ "matchLabels": { "a": long } })),
        set("/spec/targetRefs", json!(many)),
        set("/spec/targetRefs", json!([{ "name": "waypoint" }])),
        set("/spec/targetRefs", json!([{ "kind": "Gateway", "name": "waypoint", "namespace": "other" }])),
        set("/spec/match", json!([{ "mode": "BOTH" }])),
        set("/spec/match", json!([{ "ports": [{ "number": 0 }] }])),
        set("/spec/match", json!([{ "ports": [{ "number": 65536 }] }])),
        set("/spec/phase", json!("FIRST")),
        set("/spec/priority", json!("high")),
        set("/spec/priority", json!(1_u64 << 32)),
    ];
    let plugin =
        [wasm("/spec"), common.clone(), vec![set("/spec/phase", json!("UNSPECIFIED")), set("/spec/wasm", json!({}))]];
    let extension = [
        wasm("/spec/wasm"),
        common,
        vec![
            set("/spec/phase", json!("UNSPECIFIED_PHASE")),
            set("/spec/url", json!("oci://a/b")),
            set("/spec/lua", json!({ "inlineCode": "x" })),
            remove("/spec/wasm"),
        ],
    ];
    let filter = [vec![
        both("/spec/workloadSelector"),
        set("/spec/unknown", json!(1)),
        set("/spec/selector", json!({ "matchLabels": { "a": "b" } })),
        set("/spec/workloadSelector", json!({ "labels": { "a": "*" } })),
        set("/spec/targetRefs", json!(many)),
        set("/spec/priority", json!("high")),
        set("/spec/configPatches/0/applyTo", json!("HTTP")),
        set("/spec/configPatches/0/patch/operation", json!("INSERT_LAST")),
        set("/spec/configPatches/0/patch/values", json!({})),
        set("/spec/configPatches/1/match/context", json!("SIDECAR")),
        set("/spec/configPatches/1/match/context", json!("WAYPOINT")),
        set("/spec/configPatches/1/match/waypoint", json!({})),
        set("/spec/configPatches/1/match/listener/filterChain/filters", json!({})),
    ]];
    let only_code = [vec![
        remove("/spec/configPatches/0/patch/value/name"),
        remove("/spec/configPatches/1/match"),
        remove("/spec/configPatches/1/match/listener/name"),
        set("/spec/configPatches/1/match/listener/name", json!("connect_terminate")),
        set("/spec/configPatches/1/match/listener/filterChain/filter/name", json!("")),
        set("/spec/configPatches/1/patch/operation", json!("INSERT_BEFORE")),
        set(
            "/spec/configPatches/0/match",
            json!({ "listener": { "filterChain": { "filter": {
            "name": "envoy.filters.network.http_connection_manager", "subFilter": { "name": "envoy.filters.http.router" },
        } } } }),
        ),
    ]];
    let telemetry = [vec![
        both("/spec/selector"),
        set("/spec/accessLogging/0/provider", json!("x")),
        set("/spec/accessLogging/0/providers/0/name", json!("")),
        remove("/spec/accessLogging/0/providers/0/name"),
        set("/spec/accessLog", json!([])),
    ]];
    let policy = [vec![
        set("/spec/targetRefs/0/group", json!("apps")),
        set("/spec/targetRefs/0/kind", json!("Service")),
        remove("/spec/targetRefs"),
        set("/spec/wasm/0/code/type", json!("OCI")),
        set("/spec/wasm/0/code/type", json!("HTTP")),
        remove("/spec/wasm/0/code/image"),
        remove("/spec/wasm/0/code/image/url"),
        set("/spec/wasm/0/code/pullPolicy", json!("Never")),
        set("/spec/wasm/0/failStrategy", json!("FAIL_OPEN")),
    ]];
    let object = [vec![
        json!([{ "op": "replace", "path": "/apiVersion", "value": "extensions.istio.io/v1" }]),
        json!([{ "op": "replace", "path": "/kind", "value": "Wasmplugin" }]),
        json!([{ "op": "replace", "path": "/metadata/name", "value": "Trace_Id" }]),
        json!([{ "op": "add", "path": "/metadata/lables", "value": {} }]),
        json!([{ "op": "add", "path": "/metadata/labels/x", "value": "a b" }]),
        json!([{ "op": "add", "path": "/metadata/labels/y", "value": 1 }]),
        set("/status2", json!({})),
    ]];
    let deployment = [vec![
        set("/spec/template/spec/containers/0/imagePolicy", json!("Always")),
        set("/spec/template/spec/securityContext/runAsRoot", json!(false)),
        set("/spec/replicas", json!("two")),
    ]];

    let judge = Judge::summon();
    let istio = |path: &str| documents(&root().join("istio").join(path)).remove(0);
    let cases: [(Value, &[Vec<Value>], bool); 8] = [
        (istio("trace-id/wasmplugin/wasmplugin.yaml"), &plugin, true),
        (istio("trace-id/trafficextension/trafficextension.yaml"), &extension, true),
        (istio("trace-id/envoyfilter/envoyfilter.yaml"), &filter, true),
        (istio("trace-id/envoyfilter/envoyfilter.yaml"), &only_code, false),
        (istio("telemetry/telemetry.yaml"), &telemetry, true),
        (documents(&root().join("examples/envoy-gateway/trace-id.yaml")).remove(0), &policy, true),
        (istio("trace-id/wasmplugin/wasmplugin.yaml"), &object, false),
        (istio("thresholds/deployment.yaml"), &deployment, false),
    ];
    for (right, mistakes, in_schema) in cases {
        assert_eq!(resource::check(&right), Ok(()));
        for mistake in mistakes.iter().flatten() {
            let mut wrong = right.clone();
            let operations: json_patch::Patch = serde_json::from_value(mistake.clone()).unwrap();
            json_patch::patch(&mut wrong, &operations).unwrap_or_else(|why| panic!("{why}: {mistake}"));
            assert!(resource::check(&wrong).is_err(), "{}: {mistake} is not seen", right["kind"]);
            if let (Some(judge), true) = (&judge, in_schema && wrong["kind"] == right["kind"]) {
                assert_ne!(
                    judge.against(&wrong),
                    Vec::<String>::new(),
                    "{}: the schema takes {mistake}",
                    right["kind"]
                );
            }
        }
    }
}

/// Which of a resource's texts and objects are a filter's configuration.
fn configuration(resource: &Value) -> Option<Value> {
    let spec = &resource["spec"];
    let found = match resource["kind"].as_str()? {
        "WasmPlugin" => &spec["pluginConfig"],
        "TrafficExtension" => &spec["wasm"]["pluginConfig"],
        "EnvoyExtensionPolicy" => &spec["wasm"][0]["config"],
        "EnvoyFilter" => {
            let text = resource.pointer(&format!("{EXTENSION}/config/configuration/value"))?.as_str().unwrap();
            return Some(serde_json::from_str(text).unwrap());
        }
        _ => return None,
    };
    Some(found.clone())
}

/// Whether the filter takes it, by the code that reads it in the proxy.
fn taken<F: Filter>(configuration: &Value) -> Result<(), String> {
    let read = kit::config::parse::<F::Config>(configuration.to_string().as_bytes()).map_err(|why| why.to_string())?;
    F::new(read).map(drop).map_err(|why| why.to_string())
}

fn taken_by(filter: &str, configuration: &Value) -> Result<(), String> {
    match filter {
        "trace-id" => taken::<TraceId>(configuration),
        "latency" => taken::<Latency>(configuration),
        "log-scrub" => taken::<LogScrub>(configuration),
        "circuit-breaker" => taken::<CircuitBreaker>(configuration),
        "suite" => taken::<Suite>(configuration),
        other => panic!("no filter {other}"),
    }
}

#[test]
fn every_filter_takes_its_configuration() {
    let mut seen = BTreeSet::new();
    for resource in resources() {
        let Some(mut configuration) = configuration(&resource) else { continue };
        let name = resource["metadata"]["name"].as_str().unwrap();
        taken_by(name, &configuration).unwrap_or_else(|why| panic!("{name}: {why}\n{resource:#}"));
        configuration["no_such_field"] = json!(1);
        assert!(taken_by(name, &configuration).is_err(), "{name} takes what it does not know");
        seen.insert(format!("{} {name}", resource["kind"]));
    }
    assert_eq!(seen.len(), 4 * FILTERS.len(), "{seen:?}");
}

/// What a resource says, whatever its form: an EnvoyFilter has its configuration as a text.
fn said(mut resource: Value) -> Value {
    let text = format!("{EXTENSION}/config/configuration/value");
    if let Some(value) = resource.pointer_mut(&text) {
        *value = serde_json::from_str(value.as_str().unwrap()).unwrap();
    }
    if let Some(rules) = resource.pointer_mut("/data/rules.json") {
        *rules = serde_json::from_str(rules.as_str().unwrap()).unwrap();
    }
    resource
}

fn sorted(resources: Vec<Value>) -> Vec<Value> {
    let mut said: Vec<Value> = resources.into_iter().map(said).collect();
    said.sort_by_key(|resource| format!("{} {}", resource["kind"], resource["metadata"]["name"]));
    said
}

#[test]
fn the_chart_and_the_overlays_say_the_same() {
    for (filter, kind, place) in combinations() {
        let mut chart = rendered(filter, kind, place);
        for resource in &mut chart {
            // Of the overlays, kubectl is told the namespace.
            assert_eq!(resource["metadata"].as_object_mut().unwrap().remove("namespace"), Some(json!("shop")));
        }
        assert_eq!(sorted(chart), sorted(built(filter, kind, place)), "{filter} {kind} {place}");
    }
    let mut values = json!({ "telemetry": { "enabled": true }, "thresholds": { "enabled": true } });
    for filter in FILTERS {
        values[filter.replace('-', "_")] = json!({ "enabled": false });
    }
    let mut overlays = kustomize::build(&root().join("istio/telemetry"));
    overlays.extend(kustomize::build(&root().join("istio/thresholds")));
    assert_eq!(sorted(helm::render(&values, "shop").unwrap()), sorted(overlays.clone()));
    // Helm itself makes the release's namespace.
    overlays.retain(|resource| resource["kind"] != "Namespace");
    assert_eq!(sorted(helm::render(&values, "mesh-filters").unwrap()), sorted(overlays));
}

#[test]
fn the_chart_takes_values_and_refuses_wrong_ones() {
    let digest = "0123456789abcdef".repeat(4);
    let over = json!({
        "registry": "localhost:5000/a", "version": "9.9.9", "imagePullSecret": "pull", "selector": { "app": "shop" },
        "trace_id": { "sha256": digest, "failStrategy": "FAIL_CLOSE", "pluginConfig": { "sidecar": { "inject": ["b3"] } } },
        "latency": { "enabled": false }, "log_scrub": { "enabled": false },
    });
    let expected = [
        ("/spec/url", json!("oci://localhost:5000/a/trace-id:9.9.9")),
        ("/spec/sha256", json!(digest)),
        ("/spec/imagePullSecret", json!("pull")),
        ("/spec/failStrategy", json!("FAIL_CLOSE")),
        ("/spec/selector/matchLabels", json!({ "app": "shop" })),
        ("/spec/pluginConfig", json!({ "inject": ["b3"] })),
    ];
    let plugin = helm::render(&over, "shop").unwrap().remove(0);
    for (path, value) in &expected {
        assert_eq!(plugin.pointer(path), Some(value), "{path}");
    }
    let mut over = over;
    over["kind"] = json!("EnvoyFilter");
    let secret = helm::render(&over, "shop").unwrap_err();
    assert!(secret.contains("knows no imagePullSecret"), "{secret}");
    over["imagePullSecret"] = json!("");
    let filter = helm::render(&over, "shop").unwrap().remove(0);
    let remote = filter.pointer(&format!("{EXTENSION}/config/vm_config/code/remote")).unwrap();
    assert_eq!(remote["sha256"], *digest);
    assert_eq!(filter.pointer(&format!("{EXTENSION}/config/failure_policy")), Some(&json!("FAIL_CLOSED")));
    assert_eq!(filter["spec"]["workloadSelector"]["labels"], json!({ "app": "shop" }));
    for resource in [plugin, filter] {
        resource::check(&resource).unwrap();
    }

    let both = helm::render(&json!({ "suite": { "enabled": true } }), "shop").unwrap_err();
    assert!(both.contains("enable it, or them"), "{both}");
    for wrong in [
        json!({ "registy": "x" }),
        json!({ "registry": "oci://x" }),
        json!({ "registry": "a #b/c" }),
        json!({ "registry": "r.example.com/x/" }),
        json!({ "registry": "r.example.com" }),
        json!({ "registry": "{{x}}/y" }),
        json!({ "version": "1 #x" }),
        json!({ "version": "latest" }),
        json!({ "version": "1.2.3-rc-" }),
        json!({ "gateway": null }),
        json!({ "thresholds": { "namespace": "Not A NS" } }),
        json!({ "thresholds": { "rules": [{ "bogus": 1 }] } }),
        json!({ "trace_id": { "pluginConfig": { "sidecar": null } } }),
        json!({ "kind": "wasmplugin" }),
        json!({ "place": "ingress" }),
        json!({ "trace_id": { "sha256": "sha256:00" } }),
        json!({ "trace_id": { "failStrategy": "FAIL_CLOSED" } }),
        json!({ "trace_id": { "pluginConfig": { "sidecar": { "injekt": ["b3"] } } } }),
        json!({ "latency": { "pluginConfig": { "gateway": { "labels": ["path"] } } } }),
        json!({ "log_scrub": { "pluginConfig": { "sidecar": { "action": { "kind": "hide" } } } } }),
        json!({ "circuit_breaker": { "pluginConfig": { "sidecar": { "source": { "method": "PUT" } } } } }),
        json!({ "suite": { "pluginConfig": { "sidecar": { "trace_id": { "injekt": [] } } } } }),
        json!({ "thresholds": { "rules": {} } }),
    ] {
        assert_ne!(helm::refused(&helm::values(&wrong)), Vec::<String>::new(), "{wrong}");
    }
}

fn metrics_of(filter: &str) -> Vec<&'static Metric> {
    match filter {
        "trace-id" => TraceId::metrics(),
        "latency" => Latency::metrics(),
        "log-scrub" => LogScrub::metrics(),
        "circuit-breaker" => CircuitBreaker::metrics(),
        _ => Suite::metrics(),
    }
}

fn labels_of(filter: &str) -> BTreeSet<&'static str> {
    metrics_of(filter).iter().flat_map(|metric| metric.labels).copied().collect()
}

#[test]
fn labels_and_buckets_are_those_of_the_metrics() {
    let mut buckets_seen = 0;
    for filter in FILTERS {
        let patch = documents(&root().join(format!("istio/{filter}/pod-annotations.yaml"))).remove(0);
        // As a patch of a Deployment: it reaches the pods.
        let annotations = patch["spec"]["template"]["metadata"]["annotations"].as_object().unwrap();
        let config = parse(annotations["proxy.istio.io/config"].as_str().unwrap());
        assert_eq!(config, [json!({ "extraStatTags": labels_of(filter) })], "{filter}");
        let Some(buckets) = annotations.get("sidecar.istio.io/statsHistogramBuckets") else { continue };
        let buckets: Value = serde_json::from_str(buckets.as_str().unwrap()).unwrap();
        for (prefix, borders) in buckets.as_object().unwrap() {
            let name = prefix.strip_prefix("wasmcustom.").unwrap();
            let histogram =
                |metric: &&Metric| metric.name.starts_with(name) && matches!(metric.kind, kit::MetricKind::Histogram);
            assert!(
                metrics_of(filter).into_iter().any(|metric| histogram(&metric)),
                "{filter} has no histogram {name}"
            );
            let borders: Vec<u64> = borders.as_array().unwrap().iter().map(|border| border.as_u64().unwrap()).collect();
            assert!(borders.is_sorted() && borders.len() > 3, "{borders:?}");
            buckets_seen += 1;
        }
    }
    assert_eq!(buckets_seen, 6, "of latency, and of the suite");
    let values = documents(&root().join("istio/telemetry/istiod-values.yaml")).remove(0);
    let all: BTreeSet<&str> = FILTERS.iter().flat_map(|filter| labels_of(filter)).collect();
    assert_eq!(values["meshConfig"]["defaultConfig"]["extraStatTags"], json!(all));
}

#[test]
fn names_that_have_to_agree_do() {
    let service = documents(&root().join("istio/thresholds/service.yaml")).remove(0);
    let (name, namespace) = (&service["metadata"]["name"], &service["metadata"]["namespace"]);
    let host = format!("{}.{}.svc.cluster.local", name.as_str().unwrap(), namespace.as_str().unwrap());
    let cluster = format!("outbound|{}||{host}", service["spec"]["ports"][0]["port"]);
    for (filter, kind, place) in combinations().filter(|(filter, _, _)| ["circuit-breaker", "suite"].contains(filter)) {
        let resources = built(filter, kind, place);
        let of = resources.iter().find_map(configuration).unwrap();
        let of = if filter == "suite" { &of["circuit_breaker"] } else { &of };
        assert_eq!(of["source"]["cluster"], *cluster);
        // Only a sidecar surely has the cluster.
        let referenced: Vec<&Value> = resources
            .iter()
            .filter_map(|resource| resource["metadata"]["annotations"].get("envoyfilter.istio.io/referenced-services"))
            .collect();
        let expected = json!(format!("{}/{host}", namespace.as_str().unwrap()));
        let expected = if place == "sidecar" { vec![] } else { vec![&expected] };
        assert_eq!(referenced, expected, "{filter} {kind} {place}");
        // And it is told to the same proxies.
        let whom: BTreeSet<String> = resources
            .iter()
            .map(|resource| {
                let spec = &resource["spec"];
                let of = |key: &str| spec.get(key).map(ToString::to_string);
                let labels = [&spec["selector"]["matchLabels"], &spec["workloadSelector"]["labels"]];
                let labels = labels.into_iter().find(|labels| labels.is_object()).map(ToString::to_string);
                of("targetRefs").or(labels).unwrap_or_default()
            })
            .collect();
        assert_eq!(whom.len(), 1, "{filter} {kind} {place}: {whom:?}");
    }
    // Where the chart puts the source into another namespace, that is told.
    for (kind, place) in [("WasmPlugin", "gateway"), ("EnvoyFilter", "waypoint")] {
        let values = json!({
            "kind": kind, "place": place, "thresholds": { "enabled": true, "namespace": "elsewhere" },
            "circuit_breaker": { "enabled": true }, "trace_id": { "enabled": false }, "latency": { "enabled": false },
            "log_scrub": { "enabled": false },
        });
        let told: Vec<Value> = helm::render(&values, "shop")
            .unwrap()
            .into_iter()
            .filter_map(|each| each["metadata"]["annotations"].get("envoyfilter.istio.io/referenced-services").cloned())
            .collect();
        assert_eq!(told, ["elsewhere/thresholds.elsewhere.svc.cluster.local"], "{kind} {place}");
    }
    let values = documents(&root().join("istio/telemetry/istiod-values.yaml")).remove(0);
    let telemetry = documents(&root().join("istio/telemetry/telemetry.yaml")).remove(0);
    let provider = &values["meshConfig"]["extensionProviders"][0]["name"];
    assert_eq!(telemetry["spec"]["accessLogging"][0]["providers"], json!([{ "name": provider }]));

    // The parts of the source's Deployment, which nothing but a cluster would see to.
    let deployment = documents(&root().join("istio/thresholds/deployment.yaml")).remove(0);
    let config_map = documents(&root().join("istio/thresholds/configmap.yaml")).remove(0);
    let pod = &deployment["spec"]["template"];
    assert_eq!(deployment["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"]);
    assert_eq!(service["spec"]["selector"], pod["metadata"]["labels"]);
    assert_eq!(pod["spec"]["volumes"][0]["configMap"]["name"], config_map["metadata"]["name"]);
    let container = &pod["spec"]["containers"][0];
    let volumes: BTreeSet<&str> =
        pod["spec"]["volumes"].as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert!(volumes.contains(mount["name"].as_str().unwrap()), "{mount}");
    }
    let port = &container["ports"][0];
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], port["name"]);
    }
    assert!(config_map["data"]["nginx.conf"].as_str().unwrap().contains(&format!("listen {};", port["containerPort"])));
    let security = &container["securityContext"];
    assert_eq!(
        (&security["readOnlyRootFilesystem"], &security["allowPrivilegeEscalation"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
}

/// One image each, and everywhere the same.
#[test]
fn every_manifest_names_the_image_of_the_release() {
    let release = fs::read_to_string(root().join("istio/release.json")).unwrap();
    let release: Value = serde_json::from_str(&release).unwrap();
    let mut seen = 0;
    for resource in resources() {
        let name = resource["metadata"]["name"].as_str().unwrap();
        let (code, url, plain) = match resource["kind"].as_str().unwrap() {
            "WasmPlugin" => (&resource["spec"], "url", false),
            "TrafficExtension" => (&resource["spec"]["wasm"], "url", false),
            "EnvoyExtensionPolicy" => (&resource["spec"]["wasm"][0]["code"]["image"], "url", true),
            "EnvoyFilter" if resource["spec"]["configPatches"].is_array() => {
                let remote = resource.pointer(&format!("{EXTENSION}/config/vm_config/code/remote")).unwrap();
                assert_eq!(remote["http_uri"]["timeout"], "30s");
                (remote, "http_uri", false)
            }
            _ => continue,
        };
        let image =
            format!("{}/{name}:{}", release["registry"].as_str().unwrap(), release["version"].as_str().unwrap());
        let expected = if plain { image } else { format!("oci://{image}") };
        let written = if url == "url" { &code["url"] } else { &code["http_uri"]["uri"] };
        assert_eq!(written, &json!(expected), "{name}");
        assert_eq!(code.get("sha256"), release["digests"].get(name), "{name}");
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
}

/// The page that a stranger follows.
#[test]
fn what_the_readme_names_is_there() {
    let page = fs::read_to_string(root().join("istio/README.md")).unwrap();
    let mut seen = 0;
    // But for Istio's own chart.
    let names = page.split_whitespace().map(|word| word.trim_matches(['`', '.', ',', ':', ';', ')', '(']));
    for name in names.filter(|word| word.starts_with("istio/") && *word != "istio/istiod" && !word.contains('<')) {
        assert!(root().join(name).exists(), "{name}");
        seen += 1;
    }
    assert!(seen > 5, "{seen}");
    let strategy = |kind: &str| built("trace-id", kind, "sidecar").remove(0);
    // What its table of failures says of the manifests here.
    assert_eq!(strategy("WasmPlugin")["spec"]["failStrategy"], "FAIL_OPEN");
    assert_eq!(strategy("TrafficExtension")["spec"]["wasm"]["failStrategy"], "FAIL_OPEN");
    let policy = strategy("EnvoyFilter").pointer(&format!("{EXTENSION}/config/failure_policy")).cloned();
    assert_eq!(policy, Some(json!("FAIL_RELOAD")));
    // And its table of the order.
    for (filter, priority) in [("trace-id", 1000), ("latency", 900), ("log-scrub", 800)] {
        let plugin = built(filter, "WasmPlugin", "sidecar").remove(0);
        assert_eq!((&plugin["spec"]["phase"], &plugin["spec"]["priority"]), (&json!("AUTHN"), &json!(priority)));
        assert!(page.contains(&format!("{filter} ({priority})")), "{filter}");
    }
    for filter in ["circuit-breaker", "suite"] {
        let plugin = built(filter, "WasmPlugin", "sidecar").remove(0);
        assert!(plugin["spec"]["phase"] == "UNSPECIFIED_PHASE" && plugin["spec"].get("priority").is_none(), "{filter}");
    }
}
