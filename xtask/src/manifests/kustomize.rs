//! Bases and overlays for `kubectl apply -k`.

use serde_json::{Value, json};

use super::Release;
use super::resources::{Fill, Kind, envoy_filter, extension, insertion, insertions, referenced, source};
use super::truth::{Deployed, Place, SOURCE};
use super::yaml::{block, comment, text};

/// With what is known.
struct Plain<'a>(&'a Deployed, &'a Release);

impl Fill for Plain<'_> {
    fn version(&self) -> String {
        Value::from(self.1.version.as_str()).to_string()
    }

    fn url(&self) -> String {
        format!("oci://{}", self.1.image(self.0.name))
    }

    fn metadata(&self, _: Kind) -> String {
        String::new()
    }

    fn digest(&self, key: &str, indent: usize) -> String {
        let pad = " ".repeat(indent);
        self.1.digest(self.0.name).map_or_else(
            || format!("{pad}# No {key} yet: `make images manifests REGISTRY=…` writes it.\n"),
            |digest| format!("{pad}# Of the manifest, not of the module.\n{pad}{key}: {}\n", Value::from(digest)),
        )
    }

    fn pull(&self, indent: usize) -> String {
        let pad = " ".repeat(indent);
        format!(
            "{pad}# For a private registry: imagePullSecret, a Secret of type kubernetes.io/dockerconfigjson in this namespace.\n"
        )
    }

    fn target(&self, _: Kind) -> String {
        String::new()
    }

    fn on_failure(&self, kind: Kind) -> String {
        kind.on_failure().to_owned()
    }

    fn configuration(&self, indent: usize) -> String {
        block(&self.0.configuration(Place::Sidecar), indent)
    }

    fn configuration_text(&self) -> String {
        quoted(&self.0.configuration(Place::Sidecar))
    }

    fn insertions(&self, filter: &Deployed) -> String {
        insertions(filter, Place::Sidecar).iter().map(|into| insertion(filter, *into)).collect()
    }
}

/// JSON as a text of YAML.
fn quoted(value: &Value) -> String {
    format!("'{}'", value.to_string().replace('\'', "''"))
}

/// The files of a module, by their paths below `istio/`.
pub(crate) fn files(filter: &Deployed, release: &Release) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for kind in Kind::ALL {
        let (folder, plain) = (kind.name().to_lowercase(), Plain(filter, release));
        let written = match kind {
            Kind::EnvoyFilter => envoy_filter(filter, &plain),
            Kind::WasmPlugin | Kind::TrafficExtension => extension(filter, kind, &plain),
        };
        let base = format!("{}/{folder}", filter.name);
        files.push((format!("{base}/{folder}.yaml"), written));
        let about = format!(
            "The base: it applies to every proxy of its namespace but waypoints. For {} there are overlays.",
            places()
        );
        files.push((format!("{base}/kustomization.yaml"), kustomization(&about, &[format!("{folder}.yaml")], "")));
        for place in Place::ALL {
            let folder = format!("{}/{}/{folder}", filter.name, place.name());
            let base = format!("../../{}", kind.name().to_lowercase());
            let mut resources = vec![base];
            if place != Place::Sidecar && filter.asks() && kind != Kind::EnvoyFilter {
                let source = source(filter, SOURCE.1, "", &target(Kind::EnvoyFilter, place));
                files.push((format!("{folder}/source.yaml"), source));
                resources.push("source.yaml".to_owned());
            }
            let patches = patches(filter, kind, place);
            files.push((format!("{folder}/kustomization.yaml"), kustomization(about_of(place), &resources, &patches)));
        }
    }
    files
}

fn places() -> String {
    Place::ALL.map(Place::name).join(", ")
}

const fn about_of(place: Place) -> &'static str {
    match place {
        Place::Sidecar => "For all sidecars of the namespace that it is applied to.",
        Place::Gateway => {
            "For the gateway whose pods have the label `istio: ingressgateway`, applied to its namespace. For a Gateway of the \
             Gateway API take what the overlay for waypoints has: targetRefs with its name."
        }
        Place::Waypoint => {
            "Ambient: for the Gateway `waypoint`, of class istio-waypoint, applied to its namespace. A selector never selects a \
             waypoint."
        }
    }
}

fn kustomization(about: &str, resources: &[String], patches: &str) -> String {
    let resources: String = resources.iter().map(|resource| format!("  - {resource}\n")).collect();
    format!(
        "{}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{resources}{patches}",
        comment(about, 0)
    )
}

/// Whom it applies to there: the key in `spec` and its value. Of a sidecar, everybody.
fn whom(kind: Kind, place: Place) -> Option<(&'static str, Value)> {
    let labels = json!({ "istio": "ingressgateway" });
    match (place, kind) {
        (Place::Sidecar, _) => None,
        (Place::Gateway, Kind::EnvoyFilter) => Some(("workloadSelector", json!({ "labels": labels }))),
        (Place::Gateway, _) => Some(("selector", json!({ "matchLabels": labels }))),
        (Place::Waypoint, _) => Some((
            "targetRefs",
            json!([{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "waypoint" }]),
        )),
    }
}

fn target(kind: Kind, place: Place) -> String {
    whom(kind, place).map_or_else(String::new, |(key, value)| block(&json!({ key: value }), 2))
}

/// JSON patches that make the base the place's.
fn patches(filter: &Deployed, kind: Kind, place: Place) -> String {
    let mut operations = Vec::new();
    let mut add = |operation: &str, path: String, value: Option<Value>, why: &str| {
        let mut lines = if why.is_empty() { String::new() } else { comment(why, 6) };
        lines.push_str(&format!("      - op: {operation}\n        path: {}\n", text(&path)));
        match value {
            Some(value @ (Value::Object(_) | Value::Array(_))) => {
                lines.push_str(&format!("        value:\n{}", block(&value, 10)));
            }
            Some(Value::String(value)) => lines.push_str(&format!("        value: '{}'\n", value.replace('\'', "''"))),
            _ => {}
        }
        operations.push(lines);
    };
    if let Some((key, value)) = whom(kind, place) {
        add("add", format!("/spec/{key}"), Some(value), "");
    }
    match (kind, place) {
        (Kind::WasmPlugin | Kind::TrafficExtension, Place::Sidecar) => {
            add("add", "/spec/match".into(), Some(json!([{ "mode": filter.mode.name() }])), filter.why_mode);
        }
        (Kind::EnvoyFilter, Place::Gateway | Place::Waypoint) => {
            // The first is the configuration; one insertion is left, and made the place's.
            for more in (1..insertions(filter, Place::Sidecar).len()).rev() {
                add("remove", format!("/spec/configPatches/{}", more.saturating_add(1)), None, "");
            }
            for into in insertions(filter, place) {
                let why = if place == Place::Waypoint { "What a waypoint lets in is inbound to Istio." } else { "" };
                add("replace", "/spec/configPatches/1/match".into(), Some(into.matched(filter)), why);
            }
            if filter.asks() {
                let (key, value) = referenced(SOURCE.1);
                let why = "The cluster of the source of thresholds, which a waypoint has only when told, and a gateway whose \
                    clusters are filtered.";
                add("add", "/metadata/annotations".into(), Some(json!({ key: value })), why);
            }
        }
        _ => {}
    }
    let configuration = filter.configuration(place);
    if configuration != filter.configuration(Place::Sidecar) {
        let value = if kind == Kind::EnvoyFilter { configuration.to_string().into() } else { configuration };
        let why = "At the edge, what strangers say of traces is not continued.";
        add("replace", kind.configuration().to_owned(), Some(value), why);
    }
    if operations.is_empty() {
        return String::new();
    }
    let (group, version) = kind.group();
    format!(
        "patches:\n  - target:\n      group: {group}\n      version: {version}\n      kind: {}\n      name: {}\n    patch: |-\n{}",
        kind.name(),
        filter.name,
        operations.concat()
    )
}
