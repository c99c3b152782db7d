//! The resources as text. Each is written once, and filled in twice: with what is known, for kustomize, and with the
//! chart's expressions, for Helm.

use serde_json::{Value, json};

use super::truth::{Deployed, Mode, Place, Position, host};
use super::yaml::{block, comment, text};

/// The three resources that put a module into a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    WasmPlugin,
    TrafficExtension,
    EnvoyFilter,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::WasmPlugin, Self::TrafficExtension, Self::EnvoyFilter];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::WasmPlugin => "WasmPlugin",
            Self::TrafficExtension => "TrafficExtension",
            Self::EnvoyFilter => "EnvoyFilter",
        }
    }

    pub(crate) const fn group(self) -> (&'static str, &'static str) {
        match self {
            Self::WasmPlugin | Self::TrafficExtension => ("extensions.istio.io", "v1alpha1"),
            Self::EnvoyFilter => ("networking.istio.io", "v1alpha3"),
        }
    }

    /// Where the plugin's configuration stands in it.
    pub(crate) const fn configuration(self) -> &'static str {
        match self {
            Self::WasmPlugin => "/spec/pluginConfig",
            Self::TrafficExtension => "/spec/wasm/pluginConfig",
            Self::EnvoyFilter => "/spec/configPatches/0/patch/value/typed_config/config/configuration/value",
        }
    }

    /// What happens when the module cannot be had, or traps.
    pub(crate) const fn on_failure(self) -> &'static str {
        match self {
            Self::WasmPlugin | Self::TrafficExtension => "FAIL_OPEN",
            Self::EnvoyFilter => "FAIL_RELOAD",
        }
    }
}

/// What differs between the two forms. Where it returns lines, they end with a line break; they may be none.
pub(crate) trait Fill {
    fn version(&self) -> String;
    /// `oci://…`
    fn url(&self) -> String;
    /// More of `metadata`.
    fn metadata(&self, kind: Kind) -> String;
    /// Lines of the digest, or none, under this key.
    fn digest(&self, key: &str, indent: usize) -> String;
    fn pull(&self, indent: usize) -> String;
    /// Whom it applies to, in `spec`.
    fn target(&self, kind: Kind) -> String;
    fn on_failure(&self, kind: Kind) -> String;
    /// The configuration's lines.
    fn configuration(&self, indent: usize) -> String;
    /// The configuration's text, as YAML on one line.
    fn configuration_text(&self) -> String;
    /// The patches that insert the filter: `insertion` for each context.
    fn insertions(&self, filter: &Deployed) -> String;
}

fn head(kind: Kind, name: &str, fill: &dyn Fill) -> String {
    let (group, version) = kind.group();
    format!(
        "apiVersion: {group}/{version}\nkind: {}\nmetadata:\n  name: {name}\n{}  labels:\n    app.kubernetes.io/name: {name}\n    \
         app.kubernetes.io/part-of: mesh-filters\n    app.kubernetes.io/version: {}\nspec:\n",
        kind.name(),
        fill.metadata(kind),
        fill.version(),
    )
}

const RESOURCES: &str = "Resources: each worker of the proxy, and its main thread, has a VM of its own for the module, of 1 to \
    2 MB, and the module is compiled when the proxy loads it: docs/performance.md says what that and a request cost.";

fn failure(filter: &Deployed, kind: Kind) -> String {
    let missing = filter.when_missing;
    match kind {
        Kind::WasmPlugin | Kind::TrafficExtension => format!(
            "FAIL_OPEN: where the image cannot be pulled, or the VM is lost, traffic goes on without it: {missing}. With \
             FAIL_CLOSE and FAIL_RELOAD (1.27 and later) a failed pull answers every request with 403; after a trap FAIL_RELOAD \
             starts a new VM, which FAIL_OPEN does not.",
        ),
        Kind::EnvoyFilter => "FAIL_RELOAD: a trap costs the request that caused it a 503, and the next one has a new VM, after a \
            pause where they follow each other. A failed pull answers every request with 403, as with FAIL_CLOSED: where that \
            weighs more, FAIL_OPEN."
            .to_owned(),
    }
}

/// A WasmPlugin or TrafficExtension.
pub(crate) fn extension(filter: &Deployed, kind: Kind, fill: &dyn Fill) -> String {
    let unset = match kind {
        Kind::TrafficExtension => "UNSPECIFIED",
        Kind::WasmPlugin | Kind::EnvoyFilter => "UNSPECIFIED_PHASE",
    };
    let mut out = comment(&format!("{} {}.", filter.name, filter.does), 0);
    out.push_str(&match kind {
        Kind::TrafficExtension => comment("For Istio 1.30 and later, where it takes the place of WasmPlugin.", 0),
        Kind::WasmPlugin | Kind::EnvoyFilter => {
            comment("For every version of Istio; for 1.30 and later there is TrafficExtension.", 0)
        }
    });
    out.push_str(&comment(RESOURCES, 0));
    out.push_str(&head(kind, filter.name, fill));
    out.push_str(&fill.target(kind));
    out.push_str(&comment(filter.why_there, 2));
    out.push_str(&match filter.position {
        Position::First(priority) => format!("  phase: AUTHN\n  priority: {priority}\n"),
        Position::Last => {
            let why = "No phase and no priority, which is less than any number: of all extensions the last. Fault injection is behind it \
                in sidecars and gateways: what that aborts counts like an answer of the upstream.";
            format!("{}  phase: {unset}\n", comment(why, 2))
        }
    });
    let indent = if kind == Kind::TrafficExtension {
        out.push_str("  wasm:\n");
        4
    } else {
        2
    };
    let pad = " ".repeat(indent);
    out.push_str(&format!("{pad}url: {}\n{}", fill.url(), fill.digest("sha256", indent)));
    out.push_str(&format!("{pad}imagePullPolicy: IfNotPresent\n{}", fill.pull(indent)));
    out.push_str(&comment(&failure(filter, kind), indent));
    out.push_str(&format!("{pad}failStrategy: {}\n", fill.on_failure(kind)));
    let refused = format!(
        "What is not known is refused: the configuration before goes on serving, but a proxy that has had none answers every \
         request with 500, whatever the strategy. filters/{}/README.md and schema.json have all of it.",
        filter.name
    );
    out.push_str(&comment(&refused, indent));
    out.push_str(&format!("{pad}pluginConfig:\n{}", fill.configuration(indent.saturating_add(2))));
    out
}

/// The name under which the proxy asks for the filter's configuration.
fn resource(filter: &Deployed) -> String {
    format!("mesh-filters.{}", filter.name)
}

/// An EnvoyFilter.
pub(crate) fn envoy_filter(filter: &Deployed, fill: &dyn Fill) -> String {
    let kind = Kind::EnvoyFilter;
    let resource = resource(filter);
    let mut out = comment(&format!("{} {}.", filter.name, filter.does), 0);
    out.push_str(&comment(
        "For what the other two cannot say: `vm_id`, how a VM is started again. It leans on the inside of the proxy, and \
         cannot name a secret for a private registry: where there is no need for it, take one of the others.",
        0,
    ));
    out.push_str(&comment(RESOURCES, 0));
    out.push_str(&head(kind, filter.name, fill));
    out.push_str(&fill.target(kind));
    out.push_str(&match filter.position {
        Position::First(priority) => format!(
            "{}  priority: {priority}\n",
            comment(
                "Patches are applied from the lowest priority to the highest, and each is put in front: the highest stands first.",
                2
            )
        ),
        Position::Last => format!(
            "{}  priority: 1000\n",
            comment("Patches are applied from the lowest priority to the highest: the last is next to the router.", 2)
        ),
    });
    out.push_str("  configPatches:\n");
    out.push_str(&comment(
        "Its configuration, delivered on its own: only so the agent beside the proxy pulls the module.",
        4,
    ));
    out.push_str(&format!(
        "    - applyTo: EXTENSION_CONFIG\n      patch:\n        operation: ADD\n        value:\n          name: {resource}\n          \
         typed_config:\n            \"@type\": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm\n            config:\n              \
         name: {}\n",
        filter.name
    ));
    out.push_str(&comment(&failure(filter, kind), 14));
    out.push_str(&format!(
        "              failure_policy: {}\n              reload_config: {{ backoff: {{ base_interval: 1s, max_interval: 10s }} }}\n",
        fill.on_failure(kind)
    ));
    out.push_str(&format!(
        "              configuration:\n                \"@type\": type.googleapis.com/google.protobuf.StringValue\n                value: {}\n",
        fill.configuration_text()
    ));
    out.push_str("              vm_config:\n");
    out.push_str(&comment(
        "The name space of shared data: what is in it stays over pushes and new versions, as long as one VM of this id lives.",
        16,
    ));
    out.push_str(&format!(
        "                vm_id: {resource}\n                runtime: envoy.wasm.runtime.v8\n                code:\n                  \
         remote:\n                    http_uri:\n                      uri: {}\n                      timeout: 30s\n",
        fill.url()
    ));
    out.push_str("                      # The agent asks the registry itself, by no cluster.\n                      cluster: _\n");
    out.push_str(&fill.digest("sha256", 20));
    out.push_str(&fill.insertions(filter));
    out
}

/// Which listeners a patch inserts into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listeners {
    /// What comes in to a sidecar, but for what comes through a tunnel.
    Inbound,
    /// What comes in through a tunnel (HBONE), to a sidecar that takes part in it, and all that comes to a waypoint. The
    /// listener that ends the tunnels has requests of its own, each of them a tunnel: it is another, and gets nothing.
    Tunnelled,
    /// What a workload calls: these listeners have names of their own.
    Outbound,
    /// What comes to a gateway.
    Gateway,
}

impl Listeners {
    /// What the patch matches.
    pub(crate) fn matched(self, filter: &Deployed) -> Value {
        let (context, name) = match self {
            Self::Inbound => ("SIDECAR_INBOUND", Some("virtualInbound")),
            Self::Tunnelled => ("SIDECAR_INBOUND", Some("main_internal")),
            Self::Outbound => ("SIDECAR_OUTBOUND", None),
            Self::Gateway => ("GATEWAY", None),
        };
        let manager = "envoy.filters.network.http_connection_manager";
        let filter = match filter.position {
            Position::First(_) => json!({ "name": manager }),
            Position::Last => json!({ "name": manager, "subFilter": { "name": "envoy.filters.http.router" } }),
        };
        let chain = json!({ "filter": filter });
        let listener =
            name.map_or_else(|| json!({ "filterChain": chain }), |name| json!({ "filterChain": chain, "name": name }));
        json!({ "context": context, "listener": listener })
    }
}

/// The patch that inserts it there.
pub(crate) fn insertion(filter: &Deployed, into: Listeners) -> String {
    let resource = resource(filter);
    let operation = match filter.position {
        Position::First(_) => "INSERT_FIRST",
        Position::Last => "INSERT_BEFORE",
    };
    let why = comment(filter.why_there, 4);
    let tunnelled = match into {
        Listeners::Tunnelled => {
            comment("Of what comes through a tunnel (HBONE); the tunnels themselves are no requests.", 6)
        }
        _ => String::new(),
    };
    format!(
        "{why}    - applyTo: HTTP_FILTER\n{tunnelled}      match:\n{}      patch:\n        operation: {operation}\n        value:\n          name: {resource}\n          config_discovery:\n            \
         config_source:\n              ads: {{}}\n              resource_api_version: V3\n              \
         # No listener before an answer is there.\n              initial_fetch_timeout: 0s\n            type_urls:\n              \
         - type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm\n              \
         # What the agent puts in its place when the module cannot be pulled.\n              \
         - type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC\n            \
         # Until there is a configuration that it takes, it lets all pass; else every request would get 500.\n            \
         default_config:\n              \"@type\": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC\n",
        block(&into.matched(filter), 8),
    )
}

/// Where it is inserted. To Istio a waypoint's listeners are those of a sidecar for what comes in.
pub(crate) fn insertions(filter: &Deployed, place: Place) -> &'static [Listeners] {
    match (place, filter.mode) {
        (Place::Sidecar, Mode::Both) => &[Listeners::Inbound, Listeners::Tunnelled, Listeners::Outbound],
        (Place::Sidecar, Mode::Client) => &[Listeners::Outbound],
        (Place::Gateway, _) => &[Listeners::Gateway],
        (Place::Waypoint, _) => &[Listeners::Tunnelled],
    }
}

/// The annotation by which a waypoint, and a gateway whose clusters are filtered, has the cluster of the source of
/// thresholds in that namespace.
pub(crate) fn referenced(namespace: &str) -> (&'static str, String) {
    ("envoyfilter.istio.io/referenced-services", format!("{namespace}/{}", host(namespace)))
}

/// The name of what only gives a proxy the source's cluster.
pub(crate) fn source_name(filter: &Deployed) -> String {
    format!("{}-source", filter.name)
}

/// What only gives a proxy the cluster of the source in that namespace; lines of metadata, and of the target.
pub(crate) fn source(filter: &Deployed, namespace: &str, metadata: &str, target: &str) -> String {
    let why = comment(
        "A waypoint has clusters of its own services alone, as has a gateway where istiod runs with \
         PILOT_FILTER_GATEWAY_CLUSTER_CONFIG, and of what is named here: the source of thresholds, which the breaker asks. \
         This patches nothing. Istio 1.26 and later.",
        0,
    );
    let (key, value) = referenced(namespace);
    let (group, version) = Kind::EnvoyFilter.group();
    format!(
        "{why}apiVersion: {group}/{version}\nkind: EnvoyFilter\nmetadata:\n  name: {}\n{metadata}  annotations:\n    {key}: {value}\n\
         spec:\n{target}",
        source_name(filter)
    )
}

/// A policy of Envoy Gateway.
pub(crate) fn envoy_gateway(filter: &Deployed, url: &str, digest: Option<&str>) -> String {
    let mut out =
        comment(&format!("{} {}, in Envoy Gateway: for all routes of the Gateway `eg`.", filter.name, filter.does), 0);
    out.push_str(&comment(
        "Of several policies for one target the oldest alone counts: for more than one filter, one policy.",
        0,
    ));
    if filter.asks() {
        out.push_str(&comment(
            "Without a source: clusters are made of routes there, and a source of thresholds has none of a name that can be \
             relied on. The rules stand here.",
            0,
        ));
    }
    out.push_str(&comment(RESOURCES, 0));
    out.push_str(&format!(
        "apiVersion: gateway.envoyproxy.io/v1alpha1\nkind: EnvoyExtensionPolicy\nmetadata:\n  name: {}\nspec:\n  targetRefs:\n    - \
         group: gateway.networking.k8s.io\n      kind: Gateway\n      name: eg\n  wasm:\n    - name: {}\n",
        filter.name, filter.name
    ));
    out.push_str(&format!("      code:\n        type: Image\n        image:\n          url: {}\n", text(url)));
    if let Some(digest) = digest {
        out.push_str(&format!("          sha256: {}\n", Value::from(digest)));
    }
    out.push_str("        pullPolicy: IfNotPresent\n");
    out.push_str(&comment(
        "It is no reason for an outage: what cannot be loaded or configured, or traps, is left out. Several stand in the order of \
         this list.",
        6,
    ));
    out.push_str("      failOpen: true\n      config:\n");
    let mut configuration = filter.configuration(Place::Gateway);
    let rules = json!([{
        "resource": "*", "strategy": "error_ratio", "threshold": 0.9, "min_requests": 20, "interval": "30s",
        "retry_timeout": "10s", "mode": "dry_run",
    }]);
    let alone = json!({ "rules": rules });
    if filter.name == "circuit-breaker" {
        configuration = alone;
    } else if let Some(breaker) = configuration.get_mut("circuit_breaker") {
        *breaker = alone;
    }
    out.push_str(&block(&configuration, 8));
    out
}
