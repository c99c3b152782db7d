//! The same resources as a Helm chart. Its templates use no more than conditions, `with`, `index`, `default`, `quote`,
//! `toYaml`, `toJson`, `nindent` and `fail`.

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::Release;
use super::mesh::{self, Source};
use super::resources::{Fill, Kind, envoy_filter, extension, insertion, insertions, referenced, source};
use super::truth::{Deployed, LOG, Mode, Place, ROOT_NAMESPACE};
use super::yaml::{block, comment};

/// With expressions, inside `with .Values.<filter>`.
struct Expressions<'a>(&'a Deployed);

impl Fill for Expressions<'_> {
    fn version(&self) -> String {
        "{{ $.Values.version | quote }}".into()
    }

    fn url(&self) -> String {
        format!("\"oci://{{{{ $.Values.registry }}}}/{}:{{{{ $.Values.version }}}}\"", self.0.name)
    }

    fn metadata(&self, kind: Kind) -> String {
        let mut out = "  namespace: {{ $.Release.Namespace }}\n".to_owned();
        if kind == Kind::EnvoyFilter && self.0.asks() {
            let (key, value) = referenced(NAMESPACE);
            out.push_str(&format!(
                "{{{{- if ne $.Values.place \"sidecar\" }}}}\n  annotations:\n    {key}: {value}\n{{{{- end }}}}\n"
            ));
        }
        out
    }

    fn digest(&self, key: &str, indent: usize) -> String {
        let pad = " ".repeat(indent);
        format!("{{{{- with .sha256 }}}}\n{pad}{key}: {{{{ . | quote }}}}\n{{{{- end }}}}\n")
    }

    fn pull(&self, indent: usize) -> String {
        let pad = " ".repeat(indent);
        format!("{{{{- with $.Values.imagePullSecret }}}}\n{pad}imagePullSecret: {{{{ . | quote }}}}\n{{{{- end }}}}\n")
    }

    fn target(&self, kind: Kind) -> String {
        let modes = match kind {
            Kind::EnvoyFilter => String::new(),
            Kind::WasmPlugin | Kind::TrafficExtension => {
                format!("{}  match:\n    - mode: {}\n", comment(self.0.why_mode, 2), self.0.mode.name())
            }
        };
        format!(
            "{{{{- if eq $.Values.place \"waypoint\" }}}}\n{}{{{{- else if eq $.Values.place \"gateway\" }}}}\n{}{{{{- else }}}}\n\
             {{{{- with $.Values.selector }}}}\n{}{{{{- end }}}}\n{modes}{{{{- end }}}}\n",
            waypoint(),
            select(kind, "$.Values.gateway"),
            select(kind, "."),
        )
    }

    fn on_failure(&self, kind: Kind) -> String {
        let otherwise = kind.on_failure();
        match kind {
            Kind::EnvoyFilter => format!(
                "{{{{ if eq .failStrategy \"FAIL_CLOSE\" }}}}FAIL_CLOSED{{{{ else }}}}{{{{ .failStrategy | default \"{otherwise}\" }}}}{{{{ end }}}}"
            ),
            Kind::WasmPlugin | Kind::TrafficExtension => format!("{{{{ .failStrategy | default \"{otherwise}\" }}}}"),
        }
    }

    fn configuration(&self, indent: usize) -> String {
        format!("{}{{{{- toYaml (index .pluginConfig $.Values.place) | nindent {indent} }}}}\n", " ".repeat(indent))
    }

    fn configuration_text(&self) -> String {
        "{{ toJson (index .pluginConfig $.Values.place) | quote }}".into()
    }

    fn insertions(&self, filter: &Deployed) -> String {
        let at = |place| insertions(filter, place).iter().map(|into| insertion(filter, *into)).collect::<String>();
        format!(
            "{{{{- if eq $.Values.place \"waypoint\" }}}}\n{}{{{{- else if eq $.Values.place \"gateway\" }}}}\n{}{{{{- else }}}}\n\
             {}{{{{- end }}}}\n",
            at(Place::Waypoint),
            at(Place::Gateway),
            at(Place::Sidecar),
        )
    }
}

/// The namespace of the source of thresholds.
const NAMESPACE: &str = "{{ $.Values.thresholds.namespace }}";

/// Selects pods by labels that stand there in the values.
fn select(kind: Kind, values: &str) -> String {
    let (selector, labels) = match kind {
        Kind::EnvoyFilter => ("workloadSelector", "labels"),
        Kind::WasmPlugin | Kind::TrafficExtension => ("selector", "matchLabels"),
    };
    format!("  {selector}:\n    {labels}:\n      {{{{- toYaml {values} | nindent 6 }}}}\n")
}

fn waypoint() -> String {
    "  targetRefs:\n    - group: gateway.networking.k8s.io\n      kind: Gateway\n      name: {{ $.Values.waypoint | quote }}\n".into()
}

/// The chart's files, by their paths below `istio/chart`.
pub(crate) fn files(filters: &[Deployed], release: &Release) -> Result<Vec<(String, String)>> {
    let mut files = vec![
        ("Chart.yaml".to_owned(), about(release)),
        ("values.yaml".to_owned(), values(filters, release)),
        ("values.schema.json".to_owned(), format!("{}\n", serde_json::to_string_pretty(&schema(filters)?)?)),
        ("templates/NOTES.txt".to_owned(), notes(filters)),
        ("templates/telemetry.yaml".to_owned(), telemetry()),
        ("templates/thresholds.yaml".to_owned(), thresholds()),
    ];
    for filter in filters {
        files.push((format!("templates/{}.yaml", filter.name), template(filter)));
    }
    Ok(files)
}

fn about(release: &Release) -> String {
    format!(
        "apiVersion: v2\nname: mesh-filters\ndescription: Filters for Istio's proxies, and what belongs to them\ntype: application\nversion: {0}\n\
         appVersion: {0:?}\n",
        release.version
    )
}

fn template(filter: &Deployed) -> String {
    let mut out = format!("{{{{- with .Values.{} }}}}\n{{{{- if .enabled }}}}\n", filter.key);
    if filter.name == "suite" {
        let others = "(or $.Values.trace_id.enabled $.Values.latency.enabled $.Values.log_scrub.enabled $.Values.circuit_breaker.enabled)";
        out.push_str(&format!(
            "{{{{- if {others} }}}}\n{{{{- fail \"suite holds the other four: enable it, or them\" }}}}\n{{{{- end }}}}\n"
        ));
    }
    for kind in Kind::ALL {
        let written = match kind {
            Kind::EnvoyFilter => envoy_filter(filter, &Expressions(filter)),
            Kind::WasmPlugin | Kind::TrafficExtension => extension(filter, kind, &Expressions(filter)),
        };
        out.push_str(&format!("{{{{- if eq $.Values.kind \"{}\" }}}}\n", kind.name()));
        if kind == Kind::EnvoyFilter {
            let why = "an EnvoyFilter knows no imagePullSecret: take another kind, or a registry that asks for nothing";
            out.push_str(&format!(
                "{{{{- if $.Values.imagePullSecret }}}}\n{{{{- fail \"{why}\" }}}}\n{{{{- end }}}}\n"
            ));
        }
        out.push_str(&format!("---\n{written}"));
        if filter.asks() && kind != Kind::EnvoyFilter {
            let target = format!(
                "{{{{- if eq $.Values.place \"waypoint\" }}}}\n{}{{{{- else }}}}\n{}{{{{- end }}}}\n",
                waypoint(),
                select(Kind::EnvoyFilter, "$.Values.gateway"),
            );
            let source = source(filter, NAMESPACE, "  namespace: {{ $.Release.Namespace }}\n", &target);
            out.push_str(&format!("{{{{- if ne $.Values.place \"sidecar\" }}}}\n---\n{source}{{{{- end }}}}\n"));
        }
        out.push_str("{{- end }}\n");
    }
    out.push_str("{{- end }}\n{{- end }}\n");
    out
}

fn telemetry() -> String {
    let written = mesh::telemetry("  namespace: {{ .namespace }}\n");
    format!("{{{{- with .Values.telemetry }}}}\n{{{{- if .enabled }}}}\n---\n{written}{{{{- end }}}}\n{{{{- end }}}}\n")
}

fn thresholds() -> String {
    let source = Source {
        namespace: "{{ .namespace }}".into(),
        image: "{{ .image | quote }}".into(),
        rules: "    {\"rules\": {{ toJson .rules }}}\n".into(),
    };
    let namespace = "{{- if ne .namespace $.Release.Namespace }}\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {{ .namespace }}\n{{- end }}\n";
    format!(
        "{{{{- with .Values.thresholds }}}}\n{{{{- if .enabled }}}}\n{namespace}---\n{}---\n{}---\n{}{{{{- end }}}}\n{{{{- end }}}}\n",
        source.config_map(),
        source.deployment(),
        source.service()
    )
}

fn values(filters: &[Deployed], release: &Release) -> String {
    let mut out = String::new();
    let mut add = |about: &str, key: &str, value: &Value| {
        out.push_str(&comment(about, 0));
        out.push_str(&block(&json!({ key: value }), 0));
        out.push('\n');
    };
    add("Where the images are: <registry>/trace-id:<version> and so on.", "registry", &json!(release.registry));
    add("The images' tag.", "version", &json!(release.version));
    add(
        "For a private registry: a Secret of type kubernetes.io/dockerconfigjson in the release's namespace. An EnvoyFilter knows none.",
        "imagePullSecret",
        &json!(""),
    );
    add(
        "Which resource puts the filters into proxies: WasmPlugin, TrafficExtension (Istio 1.30 and later) or EnvoyFilter.",
        "kind",
        &json!(Kind::WasmPlugin.name()),
    );
    add("Into which proxies, of the release's namespace: sidecar, gateway or waypoint.", "place", &json!("sidecar"));
    add("With `sidecar`: of pods with these labels; of all, if there are none.", "selector", &json!({}));
    add("With `gateway`: of pods with these labels.", "gateway", &json!({ "istio": "ingressgateway" }));
    add("With `waypoint`: the name of the Gateway.", "waypoint", &json!("waypoint"));
    for filter in filters {
        let configurations: Map<String, Value> =
            Place::ALL.iter().map(|place| (place.name().to_owned(), filter.configuration(*place))).collect();
        let value = json!({
            "enabled": matches!(filter.name, "trace-id" | "latency" | "log-scrub"),
            "sha256": release.digest(filter.name).unwrap_or_default(),
            "failStrategy": "",
            "pluginConfig": configurations,
        });
        let modes = if filter.mode == Mode::Client { " Of sidecars, for what workloads call." } else { "" };
        add(
            &format!(
                "{} {}.{modes} `sha256`: the digest of the image's manifest, checked if given; of another version it is another. `failStrategy`: FAIL_OPEN, FAIL_CLOSE or \
                 FAIL_RELOAD; left empty, FAIL_OPEN, or FAIL_RELOAD in an EnvoyFilter. `pluginConfig`: by the place.",
                filter.name, filter.does
            ),
            &filter.key,
            &value,
        );
    }
    let whole = mesh::values();
    for (key, about) in [
        (
            "telemetry",
            "The clean access log; the mesh's configuration needs its provider first, see istio/telemetry/istiod-values.yaml.",
        ),
        (
            "thresholds",
            "A source of thresholds for circuit-breaker: nginx, and a ConfigMap with `rules`. Under another namespace, name its \
            cluster in circuit-breaker's pluginConfig too.",
        ),
    ] {
        add(about, key, whole.get(key).unwrap_or(&Value::Null));
    }
    out
}

fn notes(filters: &[Deployed]) -> String {
    let mut out =
        "{{ .Values.kind }}s in namespace {{ .Release.Namespace }}, for its proxies of kind {{ .Values.place }}:\n"
            .to_owned();
    for filter in filters {
        out.push_str(&format!(
            "{{{{- if .Values.{}.enabled }}}}\n  {}: {{{{ .Values.registry }}}}/{}:{{{{ .Values.version }}}}\n{{{{- end }}}}\n",
            filter.key, filter.name, filter.name
        ));
    }
    out.push_str(
        "\nIs it there?\n  istioctl proxy-config ecds <pod> -n {{ .Release.Namespace }}\n  kubectl logs <pod> -n {{ .Release.Namespace }} -c istio-proxy \
         | grep -i wasm\n\nLabels of metrics: annotate pods as istio/<filter>/pod-annotations.yaml does, and start them again.\n",
    );
    out.push_str(&format!(
        "{{{{- if .Values.telemetry.enabled }}}}\n\nThe Telemetry names the provider {LOG}: it has to be in the mesh's configuration,\n\
         istio/telemetry/istiod-values.yaml, in {ROOT_NAMESPACE}.\n{{{{- end }}}}\n"
    ));
    out
}

/// What the values may be. Of the configurations, what the filters' own schemas say.
fn schema(filters: &[Deployed]) -> Result<Value> {
    let object =
        |properties: Value| json!({ "type": "object", "additionalProperties": false, "properties": properties });
    let labels = json!({ "type": "object", "additionalProperties": { "type": "string", "maxLength": 63 } });
    let namespace = json!({ "type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$" });
    // None at all would be all proxies of the namespace.
    let mut some = labels.clone();
    if let Some(some) = some.as_object_mut() {
        some.insert("minProperties".into(), 1.into());
    }
    let mut properties = json!({
        "registry": { "type": "string", "minLength": 1, "pattern": "^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+$" },
        "version": {
            "type": "string", "maxLength": 63, "pattern": "^[0-9]+\\.[0-9]+\\.[0-9]+(-[A-Za-z0-9.-]*[A-Za-z0-9])?$",
        },
        "imagePullSecret": { "type": "string", "maxLength": 253 },
        "kind": { "enum": Kind::ALL.map(Kind::name) },
        "place": { "enum": Place::ALL.map(Place::name) },
        "selector": labels,
        "gateway": some,
        "waypoint": { "type": "string", "minLength": 1, "maxLength": 253 },
        "telemetry": object(json!({ "enabled": { "type": "boolean" }, "namespace": namespace })),
        "thresholds": object(json!({
            "enabled": { "type": "boolean" },
            "image": { "type": "string" },
            "namespace": namespace,
            "rules": { "$ref": "#/definitions/circuit_breaker/properties/rules" },
        })),
        // What Helm itself hands over to a chart that is part of another.
        "global": { "type": "object" },
    });
    let mut definitions = Map::new();
    let all = properties.as_object_mut().context("it is an object")?;
    for filter in filters {
        let within = format!("#/definitions/{}", filter.key);
        let configuration = json!({ "$ref": within });
        let places: Map<String, Value> =
            Place::ALL.iter().map(|place| (place.name().to_owned(), configuration.clone())).collect();
        // One of null would be refused by the filter.
        let mut configurations = object(Value::Object(places));
        if let Some(configurations) = configurations.as_object_mut() {
            configurations.insert("required".into(), json!(Place::ALL.map(Place::name)));
        }
        let properties = json!({
            "enabled": { "type": "boolean" },
            "sha256": { "type": "string", "pattern": "^([a-f0-9]{64})?$" },
            "failStrategy": { "enum": ["", "FAIL_OPEN", "FAIL_CLOSE", "FAIL_RELOAD"] },
            "pluginConfig": configurations,
        });
        all.insert(filter.key.clone(), object(properties));
        let mut schema = filter.schema.clone();
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("$schema");
        }
        refer(&mut schema, &within);
        definitions.insert(filter.key.clone(), schema);
    }
    let mut schema = object(properties);
    let whole = schema.as_object_mut().context("it is an object")?;
    whole.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
    whole.insert("title".into(), "Values of mesh-filters".into());
    // What is set to null is gone.
    whole.insert("required".into(), json!(["registry", "version", "kind", "place", "gateway", "waypoint"]));
    whole.insert("definitions".into(), Value::Object(definitions));
    Ok(schema)
}

/// Lets what refers to the schema's own root refer to where it now stands.
fn refer(value: &mut Value, within: &str) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(to) if key == "$ref" => *to = to.replacen('#', within, 1),
                    value => refer(value, within),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| refer(value, within)),
        _ => {}
    }
}
