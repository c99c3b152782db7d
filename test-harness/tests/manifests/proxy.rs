//! What the manifests put into a proxy, in a real Envoy: the agent's part, which puts the pulled module's file in place of
//! the registry's name, is played here.

use std::fs;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use test_harness::{
    AccessLog, ConfigMap, Envoy, H2, HttpFilter, Listener, Nginx, PATIENCE, Request, Route, Upstream, eventually,
    module, root,
};

use super::{EXTENSION, FILTERS, PLACES, built, documents};

/// A listener as istiod knows it: its context and its name.
type Known = (&'static str, &'static str);

/// As istiod applies an EnvoyFilter to a connection manager of that listener: the filters that it inserts into these, and
/// what their configuration is.
fn insert(filter: &Value, mut chain: Vec<Value>, (context, listener): Known) -> (Vec<Value>, Value) {
    let patches = filter["spec"]["configPatches"].as_array().unwrap();
    for patch in patches.iter().filter(|patch| patch["applyTo"] == "HTTP_FILTER") {
        let named = patch["match"]["listener"].get("name").is_none_or(|name| name == listener);
        if patch["match"]["context"] != context || !named {
            continue;
        }
        let value = patch["patch"]["value"].clone();
        let before = &patch["match"]["listener"]["filterChain"]["filter"]["subFilter"]["name"];
        let at = match patch["patch"]["operation"].as_str().unwrap() {
            "INSERT_FIRST" => 0,
            "INSERT_BEFORE" => chain.iter().position(|there| there["name"] == *before).unwrap(),
            other => panic!("{other}"),
        };
        chain.insert(at, value);
    }
    let extension = patches.iter().find(|patch| patch["applyTo"] == "EXTENSION_CONFIG").unwrap();
    (chain, extension["patch"]["value"].clone())
}

/// The agent's part.
fn pulled(mut extension: Value, name: &str) -> Value {
    let code = extension.pointer_mut("/typed_config/config/vm_config/code").unwrap();
    assert!(code["remote"]["http_uri"]["uri"].as_str().unwrap().starts_with("oci://"), "{code}");
    *code = json!({ "local": { "filename": module(name).unwrap() } });
    extension
}

/// What stands in a chain without any of ours.
fn chain() -> Vec<Value> {
    let lua = json!({
        "name": "istio.stats",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
            "default_source_code": { "inline_string": "function envoy_on_request(handle) end" },
        },
    });
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    vec![lua, json!({ "name": "envoy.filters.http.router", "typed_config": { "@type": router } })]
}

/// Their listeners with requests of people in them. To istiod those of a waypoint are a sidecar's.
fn listeners(place: &str) -> &'static [Known] {
    match place {
        "sidecar" => &[
            ("SIDECAR_INBOUND", "virtualInbound"),
            ("SIDECAR_INBOUND", "main_internal"),
            ("SIDECAR_OUTBOUND", "0.0.0.0_80"),
        ],
        "gateway" => &[("GATEWAY", "0.0.0.0_8080")],
        _ => &[("SIDECAR_INBOUND", "main_internal")],
    }
}

/// Whose requests are tunnels.
const TUNNELS: Known = ("SIDECAR_INBOUND", "connect_terminate");

#[tokio::test(flavor = "multi_thread")]
async fn envoy_takes_what_every_envoy_filter_puts_into_it() -> Result<()> {
    for filter in FILTERS {
        for place in PLACES {
            let resource =
                built(filter, "EnvoyFilter", place).into_iter().find(|each| each["metadata"]["name"] == filter);
            let resource = resource.unwrap();
            assert_eq!(insert(&resource, chain(), TUNNELS).0, chain(), "{filter} {place}: a tunnel is no request");
            let mut inserted = 0;
            for listener in listeners(place) {
                let (mut chain, extension) = insert(&resource, chain(), *listener);
                let names: Vec<String> = chain.iter().map(|each| each["name"].as_str().unwrap().to_owned()).collect();
                let at = names.iter().position(|name| *name == format!("mesh-filters.{filter}"));
                if filter == "circuit-breaker" && listener.0 == "SIDECAR_INBOUND" && place == "sidecar" {
                    assert_eq!(at, None, "of a sidecar, for what the workload calls alone");
                    continue;
                }
                let at = at.unwrap_or_else(|| panic!("{filter} is not in {place} {listener:?}: {names:?}"));
                let last = ["circuit-breaker", "suite"].contains(&filter);
                assert_eq!(at, if last { names.len() - 2 } else { 0 }, "{names:?}");
                assert_eq!(names.len(), 3, "once: {names:?}");
                assert_eq!(chain[at]["name"], extension["name"], "what it asks for is what is delivered");
                // Inline, as only so `--mode validate` makes the VM and configures the plugin.
                chain[at] = pulled(extension, filter);
                let verdict = envoy_with(chain).validate().await?;
                verdict.accepted().map_err(|why| why.context(format!("{filter} {place} {listener:?}")))?;
                inserted += 1;
            }
            assert!(inserted > 0, "{filter} {place}");
        }
    }
    Ok(())
}

fn envoy_with(chain: Vec<Value>) -> test_harness::envoy::Builder {
    Envoy::builder().listener(Listener::http("in").merge_hcm(json!({ "http_filters": chain })))
}

/// A chain in which a filter's configuration is delivered on its own, as istiod and the agent do it: a file in place of
/// istiod.
struct Delivered {
    home: TempDir,
    chain: Vec<Value>,
    extension: Value,
}

impl Delivered {
    fn new() -> Result<Self> {
        let resource = built("trace-id", "EnvoyFilter", "sidecar").remove(0);
        let (mut chain, extension) = insert(&resource, chain(), ("SIDECAR_INBOUND", "virtualInbound"));
        let home = tempfile::tempdir()?;
        let source = &mut chain[0]["config_discovery"]["config_source"];
        assert_eq!(source.as_object_mut().unwrap().remove("ads"), Some(json!({})));
        let watched = json!({ "path": home.path() });
        source["path_config_source"] = json!({ "path": home.path().join("extension"), "watched_directory": watched });
        Ok(Self { home, chain, extension })
    }

    fn deliver(&self, typed: &Value) -> Result<()> {
        let kind = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
        let extension = json!({ "@type": kind, "name": self.extension["name"], "typed_config": typed });
        let new = self.home.path().join("new");
        fs::write(&new, json!({ "resources": [extension] }).to_string())?;
        Ok(fs::rename(new, self.home.path().join("extension"))?)
    }

    /// What the agent makes of it.
    fn module(&self) -> Value {
        pulled(self.extension.clone(), "trace-id")["typed_config"].clone()
    }

    /// The same with a configuration that is refused, under this policy.
    fn refused(&self, policy: &str) -> Value {
        let mut typed = self.module();
        typed["config"]["configuration"]["value"] = json!("{\"injekt\":[]}");
        typed["config"]["failure_policy"] = json!(policy);
        typed
    }

    async fn start(&self, upstream: &Upstream) -> Result<Envoy> {
        let listener =
            Listener::http("in").merge_hcm(json!({ "http_filters": self.chain })).route(Route::cluster("up"));
        Envoy::builder().cluster("up", upstream.addr()).listener(listener).start().await
    }

    /// Delivers the module, and waits until a request has met it.
    async fn recovers(&self, envoy: &Envoy, upstream: &Upstream) -> Result<()> {
        self.deliver(&self.module())?;
        eventually("the module", PATIENCE, async || {
            envoy.get("in", "/", ()).await.map_err(|why| why.to_string())?;
            let last = upstream.take().pop();
            let met = last.as_ref().is_some_and(|request| request.headers.has("traceparent"));
            if met { Ok(()) } else { Err(format!("{last:?}")) }
        })
        .await
    }
}

const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";

/// First what the agent puts in its place when a pull failed, which the filter has to allow for, then the module.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pull_is_survived_and_the_module_follows() -> Result<()> {
    let (delivered, upstream) = (Delivered::new()?, Upstream::start().await?);
    delivered.deliver(&json!({ "@type": RBAC, "rules": {} }))?;
    let envoy = delivered.start(&upstream).await?;
    assert_eq!(envoy.get("in", "/", ()).await?.status, 403, "denied by what the agent puts there with FAIL_RELOAD");
    delivered.recovers(&envoy, &upstream).await
}

/// No policy helps against it, so the EnvoyFilters bring something that stands there until then. A WasmPlugin and a
/// TrafficExtension cannot: istiod makes of them the same without.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_configuration_that_is_refused_lets_all_pass_only_with_a_default() -> Result<()> {
    for policy in ["FAIL_RELOAD", "FAIL_OPEN"] {
        for (with_default, status) in [(true, 200), (false, 500)] {
            let (mut delivered, upstream) = (Delivered::new()?, Upstream::start().await?);
            if !with_default {
                let discovery = delivered.chain[0]["config_discovery"].as_object_mut().unwrap();
                assert_eq!(discovery.remove("default_config"), Some(json!({ "@type": RBAC })));
            }
            delivered.deliver(&delivered.refused(policy))?;
            let envoy = delivered.start(&upstream).await?;
            assert_eq!(envoy.get("in", "/", ()).await?.status, status, "{policy}, default: {with_default}");
            envoy.wait_for_log("configuration refused at `injekt`", PATIENCE).await?;
            delivered.recovers(&envoy, &upstream).await?;
            // Once there was one that it took, a wrong one changes nothing.
            delivered.deliver(&delivered.refused(policy))?;
            let rejected = "extension_config_discovery.http_filter.mesh-filters.trace-id.update_rejected";
            envoy.wait_for_counter(rejected, 2).await?;
            assert_eq!(envoy.get("in", "/", ()).await?.status, 200, "{policy}");
            assert!(upstream.take().pop().unwrap().headers.has("traceparent"));
        }
    }
    Ok(())
}

/// The log's format, as the mesh's configuration has it.
fn format() -> Map<String, Value> {
    let values = documents(&root().join("istio/telemetry/istiod-values.yaml")).remove(0);
    let log = &values["meshConfig"]["extensionProviders"][0]["envoyFileAccessLog"];
    assert_eq!(log["path"], "/dev/stdout");
    log["logFormat"]["labels"].as_object().unwrap().clone()
}

#[test]
fn the_log_prints_nothing_raw() {
    let own = [
        "START_TIME",
        "PROTOCOL",
        "RESPONSE_CODE",
        "RESPONSE_FLAGS",
        "RESPONSE_CODE_DETAILS",
        "BYTES_RECEIVED",
        "BYTES_SENT",
        "UPSTREAM_CLUSTER",
        "ROUTE_NAME",
    ];
    let clean = [
        "scrub.",
        "trace_",
        "span_id",
        "latency.",
        "circuit.decision",
        "circuit.rule",
        "circuit.state",
        "circuit.version",
    ];
    for (field, operator) in format() {
        let operator = operator.as_str().unwrap().trim_matches('%');
        let state = operator.strip_prefix("FILTER_STATE(wasm.").and_then(|rest| rest.strip_suffix(":PLAIN)"));
        let right =
            state.map_or_else(|| own.contains(&operator), |name| clean.iter().any(|start| name.starts_with(start)));
        assert!(right, "{field}: {operator}");
    }
    // Apart from bodies, what the example for log-scrub in plain Envoy prints is in it too.
    let example = documents(&root().join("examples/envoy/log-scrub.yaml")).remove(0);
    let manager = &example["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    let log = &manager["access_log"][0]["typed_config"]["log_format"]["json_format"];
    let format = format();
    for (field, operator) in log.as_object().unwrap() {
        let more = ["request_body", "response_body", "duration", "scrub"].contains(&field.as_str());
        assert!(more || format.get(field) == Some(operator), "{field}: {operator}");
    }
}

/// The ConfigMap as it is mounted, and nginx with the configuration that is in it, but for its places and its port.
async fn thresholds() -> Result<(Nginx, ConfigMap)> {
    let data = documents(&root().join("istio/thresholds/configmap.yaml")).remove(0)["data"].clone();
    let rules = data["rules.json"].as_str().unwrap();
    assert_eq!(circuit_breaker::rules::read(rules.as_bytes()).unwrap().len(), 1);
    let mount = ConfigMap::mount(rules)?;
    let written = data["nginx.conf"].as_str().unwrap().to_owned();
    let nginx = Nginx::configured(|addr, home| {
        let places = [
            ("/tmp/", format!("{}/", home.display())),
            ("/etc/thresholds/", format!("{}/", mount.path().display())),
            ("listen 8500;", format!("listen {addr};")),
        ];
        places.iter().fold(format!("daemon off; master_process off;\n{written}"), |conf, (from, to)| {
            assert!(conf.contains(from), "{from}");
            conf.replace(from, to)
        })
    })
    .await?;
    Ok((nginx, mount))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_of_thresholds_answers_as_its_probes_ask() -> Result<()> {
    let (nginx, mut mount) = thresholds().await?;
    let rules = nginx.send(&Request::get("/rules")).await?;
    assert_eq!(rules.headers.text("content-type").as_deref(), Some("application/json"));
    let etag = rules.headers.text("etag").expect("an ETag, so that a question costs little");
    assert_eq!(nginx.send(&Request::get("/rules").header("if-none-match", &etag)).await?.status, 304);
    let deployment = documents(&root().join("istio/thresholds/deployment.yaml")).remove(0);
    for probe in ["readinessProbe", "livenessProbe"] {
        let container = &deployment["spec"]["template"]["spec"]["containers"][0];
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert!((200..400).contains(&nginx.send(&Request::get(path)).await?.status), "{path}");
    }
    assert_eq!(nginx.send(&Request::get("/nginx.conf")).await?.status, 404, "nothing else is served");
    mount.update(r#"{"rules":[]}"#)?;
    assert_eq!(nginx.send(&Request::get("/rules")).await?.text(), r#"{"rules":[]}"#);
    Ok(())
}

/// Requests with something to hide in every place that the log has a field for.
fn canaries() -> Vec<Request> {
    let get = Request::get;
    vec![
        get("/users/kanari.path@example.com/cards/4111111111111111"),
        get("/a?token=kanari-query&q=kanari%2Equery%40example.com&to=%2B4915112345678"),
        get("/a").header("referer", "https://a.example/kanari@example.com?access_token=kanari"),
        get("/a").header("user-agent", "app (kanari.agent@example.com; +4915112345678)"),
        get("/a").header("x-request-id", "kanari.id@example.com").header("authorization", "Bearer kanari"),
        get("/a").header("cookie", "sid=kanari").header("x-other", "kanari"),
        get("/a").header("host", "kanari.host@example.com"),
        get("/a").header("traceparent", "00-kanari"),
        get("/a").header("x-b3-traceid", "kanari").header("baggage", "mail=kanari@example.com"),
        get("/reply").header("x-reply", "status=302; header=location:/login?token=kanari&to=kanari%40example.com"),
        get("/reply").header(
            "x-reply",
            "header=content-type:application/grpc; header=grpc-status:5; header=grpc-message:kanari%40example.com",
        ),
        Request::post("/a", "kanari").header("content-type", "text/plain"),
        Request::new("OPTIONS", "/kanari@example.com"),
    ]
}

/// The suite as an EnvoyFilter of a sidecar puts it there, with the source of thresholds that its configuration names.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_all_its_fields_and_no_canary() -> Result<()> {
    let (nginx, mut mount) = thresholds().await?;
    let upstream = Upstream::start().await?;
    let resource = built("suite", "EnvoyFilter", "sidecar").remove(0);
    let extension = pulled(resource.pointer(EXTENSION).map(|typed| json!({ "typed_config": typed })).unwrap(), "suite");
    let configuration = extension.pointer("/typed_config/config/configuration/value").unwrap().as_str().unwrap();
    let configuration: Value = serde_json::from_str(configuration)?;
    let source = configuration["circuit_breaker"]["source"]["cluster"].as_str().unwrap();
    let listener = Listener::http("out")
        .access_log(AccessLog::json(format()))
        .filter(HttpFilter::raw("mesh-filters.suite", extension["typed_config"].clone()))
        .route(Route::cluster("up").merge(json!({ "name": "everything" })));
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .cluster(source, nginx.addr())
        .listener(listener)
        .start()
        .await?;
    let mut sent = 0;
    let h2 = H2::connect(envoy.addr("out")).await?;
    for request in canaries() {
        envoy.send("out", &request).await?;
        sent += 1;
        if !request.headers.has("host") {
            h2.send(&request).await?;
            sent += 1;
        }
    }
    // Now the source says to break: what it does has its fields too.
    mount.update(
        r#"{"rules":[{"id":"all","resource":"*","strategy":"error_ratio","threshold":0.5,"mode":"forced_open"}]}"#,
    )?;
    eventually("the rules of the source", PATIENCE, async || {
        sent += 1;
        let response = envoy.get("out", "/broken", ()).await.map_err(|why| why.to_string())?;
        if response.status == 503 { Ok(()) } else { Err(response.status.to_string()) }
    })
    .await?;

    let lines = envoy.wait_for_lines("out", sent).await?;
    let hidden = ["kanari", "4111111111111111", "4915112345678"];
    let found: Vec<&String> = lines.iter().filter(|line| hidden.iter().any(|canary| line.contains(canary))).collect();
    assert_eq!(found, Vec::<&String>::new());
    for clean in
        ["/users/[email]/cards/[card]", "token=[field]", "app ([email]; [phone])", "/login?token=[field]&to=[email]"]
    {
        assert!(lines.iter().any(|line| line.contains(clean)), "{clean}\n{}", lines.join("\n"));
    }
    let parsed: Vec<Map<String, Value>> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    for field in format().keys() {
        let there = |line: &Map<String, Value>| line.get(field).is_some_and(|value| !value.is_null() && value != "-");
        assert!(parsed.iter().all(|line| line.contains_key(field)), "{field}");
        // Nothing has flags of its own but what the breaker answered, if that.
        assert!(field == "flags" || parsed.iter().any(there), "{field} is never there\n{}", lines.join("\n"));
    }
    let broken = parsed.iter().rfind(|line| line["status"] == 503).unwrap();
    assert_eq!((&broken["circuit_decision"], &broken["circuit_rule"]), (&json!("rejected"), &json!("all")));
    Ok(())
}
