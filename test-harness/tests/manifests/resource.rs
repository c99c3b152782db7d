//! What the mesh takes: of each resource its fields, and the rules between them, as its published schemas have them. What
//! is not known here is refused, as the mesh would drop it.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

type Checked = Result<(), String>;

fn ensure(right: bool, why: &str) -> Checked {
    if right { Ok(()) } else { Err(why.to_owned()) }
}

/// Whether the mesh takes it.
pub(crate) fn check(document: &Value) -> Checked {
    let said = |key: &str| document[key].as_str().unwrap_or_default();
    let of = format!("{} {}: ", said("kind"), document["metadata"]["name"]);
    metadata(&document["metadata"]).map_err(|why| format!("{of}{why}"))?;
    let checked = match (said("apiVersion"), said("kind")) {
        ("extensions.istio.io/v1alpha1", "WasmPlugin") => object::<WasmPlugin>(document),
        ("extensions.istio.io/v1alpha1", "TrafficExtension") => object::<TrafficExtension>(document),
        ("networking.istio.io/v1alpha3", "EnvoyFilter") => object::<EnvoyFilter>(document),
        ("telemetry.istio.io/v1", "Telemetry") => object::<Telemetry>(document),
        ("gateway.envoyproxy.io/v1alpha1", "EnvoyExtensionPolicy") => object::<EnvoyExtensionPolicy>(document),
        ("v1", "ConfigMap") => built_in::<ConfigMap>(document),
        ("v1", "Service") => built_in::<Service>(document),
        ("v1", "Namespace") => built_in::<Namespace>(document),
        ("apps/v1", "Deployment") => built_in::<Deployment>(document),
        (version, kind) => Err(format!("there is no {kind} of {version}")),
    };
    checked.map_err(|why| format!("{of}{why}"))
}

/// The names, which every API server checks.
fn metadata(metadata: &Value) -> Checked {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Metadata {
        name: String,
        namespace: Option<String>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let metadata: Metadata = Deserialize::deserialize(metadata).map_err(|why| format!("metadata: {why}"))?;
    let name = |text: &str| {
        let sign = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !text.is_empty() && text.len() <= 63 && text.bytes().all(sign) && !text.starts_with('-') && !text.ends_with('-')
    };
    ensure(name(&metadata.name), "metadata.name")?;
    ensure(metadata.namespace.as_deref().is_none_or(name), "metadata.namespace")?;
    let key = |key: &String| key.rsplit('/').next().is_some_and(|last| (1..=63).contains(&last.len()));
    ensure(metadata.labels.keys().chain(metadata.annotations.keys()).all(key), "metadata: a key")?;
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let label = |text: &String| text.len() <= 63 && text.bytes().all(sign);
    ensure(metadata.labels.values().all(label), "metadata.labels: a value")
}

/// What Kubernetes has itself: its types drop what they do not know, so it has to come out again.
fn built_in<T: DeserializeOwned + Serialize>(document: &Value) -> Checked {
    let read: T = serde_json::from_value(document.clone()).map_err(|why| why.to_string())?;
    let again = serde_json::to_value(read).map_err(|why| why.to_string())?;
    lost(document, &again, "")
}

fn lost(written: &Value, read: &Value, path: &str) -> Checked {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => written.iter().try_for_each(|(key, value)| {
            let path = format!("{path}/{key}");
            read.get(key).map_or_else(|| Err(format!("{path} is not known")), |read| lost(value, read, &path))
        }),
        (Value::Array(written), Value::Array(read)) => written
            .iter()
            .zip(read)
            .enumerate()
            .try_for_each(|(i, (value, read))| lost(value, read, &format!("{path}/{i}"))),
        _ => ensure(written == read, &format!("{path} is {written}, which is read as {read}")),
    }
}

trait Rules: DeserializeOwned {
    fn check(&self) -> Checked;
}

fn object<S: Rules>(document: &Value) -> Checked {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Object {
        #[serde(rename = "apiVersion")]
        _api_version: String,
        #[serde(rename = "kind")]
        _kind: String,
        #[serde(rename = "metadata")]
        _metadata: Value,
        spec: Value,
    }
    let object: Object = Deserialize::deserialize(document).map_err(|why| why.to_string())?;
    let spec: S = Deserialize::deserialize(&object.spec).map_err(|why| format!("spec: {why}"))?;
    spec.check().map_err(|why| format!("spec: {why}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Selector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Workloads {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn labels(labels: &BTreeMap<String, String>) -> Checked {
    ensure(labels.keys().all(|key| !key.is_empty() && !key.contains('*')), "a label's key is empty or has a wildcard")?;
    ensure(
        labels.values().all(|value| value.len() <= 63 && !value.contains('*')),
        "a label's value is too long or has a wildcard",
    )
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetRef {
    #[serde(default)]
    group: String,
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

impl TargetRef {
    fn check(&self) -> Checked {
        let sign = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        ensure(self.group.len() <= 253 && self.group.bytes().all(sign), "a target's group")?;
        let sign = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ensure((1..=63).contains(&self.kind.len()) && self.kind.bytes().all(sign), "a target's kind")?;
        ensure((1..=253).contains(&self.name.len()), "a target's name")?;
        ensure(self.namespace.is_empty(), "a target of another namespace")
    }
}

fn targets(targets: Option<&Vec<TargetRef>>, selects: bool) -> Checked {
    ensure(!(selects && targets.is_some()), "only one of targetRefs and a selector")?;
    ensure(targets.is_none_or(|targets| targets.len() <= 16), "more than 16 targets")?;
    targets.into_iter().flatten().try_for_each(TargetRef::check)
}

#[derive(Deserialize)]
enum Mode {
    #[serde(rename = "UNDEFINED")]
    Undefined,
    #[serde(rename = "CLIENT")]
    Client,
    #[serde(rename = "SERVER")]
    Server,
    #[serde(rename = "CLIENT_AND_SERVER")]
    Both,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Match {
    #[serde(rename = "mode")]
    _mode: Option<Mode>,
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    number: u16,
}

fn matches(matches: &[Match]) -> Checked {
    ensure(matches.iter().flat_map(|each| &each.ports).all(|port| port.number > 0), "a port is 0")
}

#[derive(Deserialize)]
enum WasmPhase {
    #[serde(rename = "UNSPECIFIED_PHASE")]
    Unspecified,
    #[serde(rename = "AUTHN")]
    Authn,
    #[serde(rename = "AUTHZ")]
    Authz,
    #[serde(rename = "STATS")]
    Stats,
}

#[derive(Deserialize)]
enum Phase {
    #[serde(rename = "UNSPECIFIED")]
    Unspecified,
    #[serde(rename = "AUTHN")]
    Authn,
    #[serde(rename = "AUTHZ")]
    Authz,
    #[serde(rename = "STATS")]
    Stats,
}

#[derive(Deserialize)]
enum FailStrategy {
    #[serde(rename = "FAIL_CLOSE")]
    Close,
    #[serde(rename = "FAIL_OPEN")]
    Open,
    #[serde(rename = "FAIL_RELOAD")]
    Reload,
}

#[derive(Deserialize)]
enum Pull {
    #[serde(rename = "UNSPECIFIED_POLICY")]
    Unspecified,
    IfNotPresent,
    Always,
}

#[derive(Deserialize)]
enum PluginType {
    #[serde(rename = "UNSPECIFIED_PLUGIN_TYPE")]
    Unspecified,
    #[serde(rename = "HTTP")]
    Http,
    #[serde(rename = "NETWORK")]
    Network,
}

/// What both resources for modules have; `flatten` would let unknown fields pass.
struct Wasm<'a> {
    url: &'a str,
    sha256: &'a str,
    image_pull_secret: Option<&'a str>,
    plugin_name: Option<&'a str>,
    vm_config: Option<&'a VmConfig>,
}

impl Wasm<'_> {
    fn check(&self) -> Checked {
        let scheme = self.url.split_once("://").map_or("", |(scheme, _)| scheme);
        ensure(!self.url.is_empty() && ["", "http", "https", "file", "oci"].contains(&scheme), "the url's scheme")?;
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        ensure(self.sha256.is_empty() || self.sha256.len() == 64 && self.sha256.bytes().all(hex), "sha256")?;
        ensure(self.image_pull_secret.is_none_or(|name| (1..=253).contains(&name.len())), "imagePullSecret")?;
        ensure(self.plugin_name.is_none_or(|name| (1..=256).contains(&name.len())), "pluginName")?;
        self.vm_config.map_or(Ok(()), VmConfig::check)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VmConfig {
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Variable {
    name: String,
    value: Option<String>,
    value_from: Option<ValueFrom>,
}

#[derive(Deserialize, PartialEq)]
enum ValueFrom {
    #[serde(rename = "INLINE")]
    Inline,
    #[serde(rename = "HOST")]
    Host,
}

impl VmConfig {
    fn check(&self) -> Checked {
        ensure(self.env.len() <= 256, "more than 256 variables")?;
        self.env.iter().try_for_each(|variable| {
            ensure((1..=256).contains(&variable.name.len()), "a variable's name")?;
            ensure(variable.value.as_ref().is_none_or(|value| value.len() <= 2048), "a variable's value")?;
            ensure(
                variable.value.is_none() || variable.value_from != Some(ValueFrom::Host),
                "a value, and one of the host",
            )
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WasmPlugin {
    url: String,
    #[serde(default)]
    sha256: String,
    image_pull_secret: Option<String>,
    plugin_name: Option<String>,
    vm_config: Option<VmConfig>,
    #[serde(rename = "failStrategy")]
    _fail_strategy: Option<FailStrategy>,
    #[serde(rename = "imagePullPolicy")]
    _image_pull_policy: Option<Pull>,
    #[serde(rename = "phase")]
    _phase: Option<WasmPhase>,
    #[serde(rename = "priority")]
    _priority: Option<i32>,
    #[serde(rename = "pluginConfig")]
    _plugin_config: Option<Map<String, Value>>,
    #[serde(rename = "type")]
    _type: Option<PluginType>,
    #[serde(default, rename = "match")]
    matches: Vec<Match>,
    selector: Option<Selector>,
    target_refs: Option<Vec<TargetRef>>,
}

impl Rules for WasmPlugin {
    fn check(&self) -> Checked {
        targets(self.target_refs.as_ref(), self.selector.is_some())?;
        self.selector.as_ref().map_or(Ok(()), |selector| labels(&selector.match_labels))?;
        matches(&self.matches)?;
        let Self { url, sha256, image_pull_secret, plugin_name, vm_config, .. } = self;
        let (secret, name) = (image_pull_secret.as_deref(), plugin_name.as_deref());
        Wasm { url, sha256, image_pull_secret: secret, plugin_name: name, vm_config: vm_config.as_ref() }.check()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TrafficExtension {
    wasm: Option<WasmConfig>,
    lua: Option<Lua>,
    #[serde(rename = "phase")]
    _phase: Option<Phase>,
    #[serde(rename = "priority")]
    _priority: Option<i32>,
    #[serde(default, rename = "match")]
    matches: Vec<Match>,
    selector: Option<Selector>,
    target_refs: Option<Vec<TargetRef>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WasmConfig {
    url: String,
    #[serde(default)]
    sha256: String,
    image_pull_secret: Option<String>,
    plugin_name: Option<String>,
    vm_config: Option<VmConfig>,
    #[serde(rename = "failStrategy")]
    _fail_strategy: Option<FailStrategy>,
    #[serde(rename = "imagePullPolicy")]
    _image_pull_policy: Option<Pull>,
    #[serde(rename = "pluginConfig")]
    _plugin_config: Option<Map<String, Value>>,
    #[serde(rename = "type")]
    _type: Option<PluginType>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Lua {
    inline_code: String,
}

impl Rules for TrafficExtension {
    fn check(&self) -> Checked {
        targets(self.target_refs.as_ref(), self.selector.is_some())?;
        self.selector.as_ref().map_or(Ok(()), |selector| labels(&selector.match_labels))?;
        matches(&self.matches)?;
        ensure(self.wasm.is_some() != self.lua.is_some(), "exactly one of wasm and lua")?;
        ensure(self.lua.as_ref().is_none_or(|lua| (1..=65536).contains(&lua.inline_code.len())), "inlineCode")?;
        let Some(WasmConfig { url, sha256, image_pull_secret, plugin_name, vm_config, .. }) = &self.wasm else {
            return Ok(());
        };
        let (secret, name) = (image_pull_secret.as_deref(), plugin_name.as_deref());
        Wasm { url, sha256, image_pull_secret: secret, plugin_name: name, vm_config: vm_config.as_ref() }.check()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EnvoyFilter {
    #[serde(default)]
    config_patches: Vec<ConfigPatch>,
    #[serde(rename = "priority")]
    _priority: Option<i32>,
    workload_selector: Option<Workloads>,
    target_refs: Option<Vec<TargetRef>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ConfigPatch {
    apply_to: ApplyTo,
    #[serde(rename = "match")]
    matches: Option<PatchMatch>,
    patch: Patch,
}

/// Of the places that there are, those that these manifests use.
#[derive(Deserialize, PartialEq)]
enum ApplyTo {
    #[serde(rename = "HTTP_FILTER")]
    HttpFilter,
    #[serde(rename = "EXTENSION_CONFIG")]
    ExtensionConfig,
}

#[derive(Deserialize, PartialEq)]
enum Context {
    #[serde(rename = "ANY")]
    Any,
    #[serde(rename = "SIDECAR_INBOUND")]
    SidecarInbound,
    #[serde(rename = "SIDECAR_OUTBOUND")]
    SidecarOutbound,
    #[serde(rename = "GATEWAY")]
    Gateway,
    #[serde(rename = "WAYPOINT")]
    Waypoint,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PatchMatch {
    context: Option<Context>,
    listener: Option<ListenerMatch>,
    waypoint: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ListenerMatch {
    name: Option<String>,
    filter_chain: Option<FilterChainMatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterChainMatch {
    filter: Option<FilterMatch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FilterMatch {
    name: String,
    sub_filter: Option<SubFilter>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubFilter {
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    operation: Operation,
    value: Value,
}

#[derive(Deserialize, PartialEq)]
enum Operation {
    #[serde(rename = "ADD")]
    Add,
    #[serde(rename = "INSERT_FIRST")]
    InsertFirst,
    #[serde(rename = "INSERT_BEFORE")]
    InsertBefore,
}

impl Rules for EnvoyFilter {
    fn check(&self) -> Checked {
        targets(self.target_refs.as_ref(), self.workload_selector.is_some())?;
        if let Some(Workloads { labels }) = &self.workload_selector {
            ensure(labels.len() <= 256, "more than 256 labels")?;
            ensure(labels.values().all(|value| value.len() <= 63 && !value.contains('*')), "a label's value")?;
        }
        self.config_patches.iter().try_for_each(ConfigPatch::check)
    }
}

impl ConfigPatch {
    fn check(&self) -> Checked {
        let name = |value: &Value| value["name"].as_str().is_some_and(|name| !name.is_empty());
        ensure(name(&self.patch.value), "a patch's value has no name")?;
        let Some(PatchMatch { context, listener, waypoint }) = &self.matches else {
            // Without a match it would insert into whatever there is.
            return ensure(self.apply_to == ApplyTo::ExtensionConfig, "a filter for everything");
        };
        ensure(
            (*context == Some(Context::Waypoint)) == waypoint.is_some(),
            "a match for waypoints with another context",
        )?;
        ensure(listener.is_none() || waypoint.is_none(), "two matches")?;
        if let (Some(listener), Some(Context::SidecarInbound)) = (listener, context) {
            // Without a name it also stands before the tunnels of HBONE.
            let names = ["virtualInbound", "main_internal"];
            ensure(listener.name.as_deref().is_some_and(|name| names.contains(&name)), "what comes in by no listener")?;
        }
        // What the mesh's own validation refuses, beyond the schema.
        let filter = listener.as_ref().and_then(|listener| listener.filter_chain.as_ref()?.filter.as_ref());
        if let Some(FilterMatch { name, sub_filter }) = filter {
            ensure(!name.is_empty(), "a filter's match without a name")?;
            if let Some(SubFilter { name: sub }) = sub_filter {
                ensure(self.apply_to == ApplyTo::HttpFilter, "a sub filter of no HTTP filter")?;
                let manager = name == "envoy.filters.network.http_connection_manager";
                ensure(manager && !sub.is_empty(), "a sub filter of no connection manager, or without a name")?;
            }
            let needs = self.patch.operation == Operation::InsertBefore;
            ensure(!needs || sub_filter.is_some(), "before what? Without a sub filter it is put first")?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Telemetry {
    #[serde(default)]
    access_logging: Vec<AccessLogging>,
    selector: Option<Selector>,
    target_refs: Option<Vec<TargetRef>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessLogging {
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    name: String,
}

impl Rules for Telemetry {
    fn check(&self) -> Checked {
        targets(self.target_refs.as_ref(), self.selector.is_some())?;
        self.selector.as_ref().map_or(Ok(()), |selector| labels(&selector.match_labels))?;
        let mut providers = self.access_logging.iter().flat_map(|log| &log.providers);
        ensure(providers.all(|provider| !provider.name.is_empty()), "a provider without a name")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EnvoyExtensionPolicy {
    target_refs: Vec<PolicyTarget>,
    wasm: Vec<PolicyWasm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicyTarget {
    group: String,
    kind: String,
    name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicyWasm {
    #[serde(rename = "name")]
    _name: String,
    code: PolicyCode,
    #[serde(rename = "config")]
    _config: Option<Value>,
    #[serde(rename = "failOpen")]
    _fail_open: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PolicyCode {
    r#type: String,
    image: Option<PolicyImage>,
    #[serde(rename = "pullPolicy")]
    _pull_policy: Option<PolicyPull>,
}

#[derive(Deserialize)]
enum PolicyPull {
    IfNotPresent,
    Always,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyImage {
    url: String,
    sha256: Option<String>,
}

impl Rules for EnvoyExtensionPolicy {
    fn check(&self) -> Checked {
        let kinds = ["Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute", "UDPRoute", "TCPRoute", "TLSRoute"];
        for target in &self.target_refs {
            ensure(target.group == "gateway.networking.k8s.io", "a target's group")?;
            ensure(kinds.contains(&target.kind.as_str()), "a target's kind")?;
            ensure((1..=253).contains(&target.name.len()), "a target's name")?;
        }
        ensure(self.wasm.len() <= 16, "more than 16 modules")?;
        self.wasm.iter().try_for_each(|wasm| {
            ensure(["HTTP", "Image"].contains(&wasm.code.r#type.as_str()), "a code's type")?;
            ensure(
                (wasm.code.r#type == "Image") == wasm.code.image.is_some(),
                "a code's type and what it is do not agree",
            )?;
            wasm.code.image.as_ref().map_or(Ok(()), |image| {
                ensure(!image.url.is_empty() && !image.url.contains("://"), "an image is named without a scheme")?;
                let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                let right = |sha: &String| sha.len() == 64 && sha.bytes().all(hex);
                ensure(image.sha256.as_ref().is_none_or(right), "sha256")
            })
        })
    }
}
