//! What belongs to no one module: the access log, the labels and buckets of metrics, the source of thresholds.

use serde_json::{Map, Value, json};

use super::truth::{Deployed, LOG, ROOT_NAMESPACE, SOURCE, log_fields};
use super::yaml::{block, comment};

/// The port on which nginx listens, as a user who is not root.
const PORT: u16 = 8500;

/// The rules to begin with. They only say what they would do.
pub(crate) fn rules() -> Value {
    json!({ "rules": [{
        "resource": "*", "strategy": "error_ratio", "threshold": 0.9, "min_requests": 20, "interval": "30s",
        "retry_timeout": "10s", "mode": "dry_run",
    }] })
}

/// The Telemetry that chooses the clean log; `metadata` are lines.
pub(crate) fn telemetry(metadata: &str) -> String {
    let about = comment(
        "The clean access log in place of the default one, for all sidecars, gateways and waypoints. Its format is a provider of \
         the mesh's configuration, which has to be there first: istiod-values.yaml.",
        0,
    );
    format!(
        "{about}apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata:\n  name: {LOG}\n{metadata}spec:\n  accessLogging:\n    \
         - providers:\n        - name: {LOG}\n"
    )
}

/// `metadata` of what applies to the mesh.
pub(crate) fn of_the_mesh() -> String {
    format!("  # The mesh's root namespace; in another it is for that one alone.\n  namespace: {ROOT_NAMESPACE}\n")
}

/// What the mesh's configuration has to say: values of istiod's chart.
pub(crate) fn istiod_values(filters: &[Deployed]) -> String {
    let mut out = comment(
        "Values of istiod's chart: helm upgrade istiod istio/istiod -n istio-system --version <the one that runs> --reuse-values \
         -f istiod-values.yaml; without a version that would upgrade istiod too. A list takes the place of the one that is \
         there: if there are providers of your own, put them in.",
        0,
    );
    out.push_str("meshConfig:\n  # The default log prints paths and headers as they are.\n  accessLogFile: \"\"\n  extensionProviders:\n");
    out.push_str(&format!(
        "    - name: {LOG}\n      envoyFileAccessLog:\n        path: /dev/stdout\n        logFormat:\n"
    ));
    out.push_str(&comment(
        "What the proxy itself knows, and clean copies by the filters. No REQ(), RESP(), PATH() or address: a field whose copy is \
         missing is empty, never the raw text. The resource of circuit-breaker is left out, since it may be a client's host.",
        10,
    ));
    out.push_str("          labels:\n");
    out.push_str(&block(&log_fields(), 12));
    let mut tags: Vec<&str> = filters.iter().flat_map(Deployed::tags).collect();
    tags.sort_unstable();
    tags.dedup();
    out.push_str("  defaultConfig:\n");
    out.push_str(&comment(
        "Takes the labels of all filters out of the metrics' names, in proxies that start from now on. What a pod's own annotation \
         says stands in place of this.",
        4,
    ));
    out.push_str(&format!("    extraStatTags:\n{}", block(&json!(tags), 6)));
    out
}

/// A patch of a Deployment for a module's metrics.
pub(crate) fn pod_annotations(filter: &Deployed) -> String {
    let mut out = comment(
        &format!(
            "A patch for the metrics of {0}: kubectl patch deployment <name> --patch-file istio/{0}/pod-annotations.yaml. Proxies read \
             it when they start, and it stands in place of the mesh's extraStatTags: with several filters, put their lists \
             together. For a Gateway of the Gateway API, waypoints too: the same under spec.infrastructure.annotations.",
            filter.name
        ),
        0,
    );
    out.push_str("spec:\n  template:\n    metadata:\n      annotations:\n");
    out.push_str("        # Labels, which are in the metrics' names until then.\n        proxy.istio.io/config: |\n");
    out.push_str(&format!("          extraStatTags: [{}]\n", filter.tags().join(", ")));
    let buckets = filter.buckets();
    if buckets.as_object().is_some_and(|buckets| !buckets.is_empty()) {
        out.push_str(
            "        # Milliseconds of requests, microseconds of filters; with `unit: us`, a thousand times as much.\n",
        );
        out.push_str(&format!("        sidecar.istio.io/statsHistogramBuckets: '{buckets}'\n"));
    }
    out
}

/// What the source's resources are filled in with.
pub(crate) struct Source {
    /// The name space, as YAML.
    pub(crate) namespace: String,
    /// nginx' image, as YAML.
    pub(crate) image: String,
    /// The rules: lines at the depth of six.
    pub(crate) rules: String,
}

/// nginx' image, where nothing else is said.
pub(crate) const IMAGE: &str = "nginx:1.28-alpine";

impl Source {
    pub(crate) fn plain() -> Self {
        let rules = serde_json::to_string_pretty(&rules()).unwrap_or_default();
        let rules = rules.lines().map(|line| format!("    {line}\n")).collect();
        Self { namespace: SOURCE.1.to_owned(), image: IMAGE.to_owned(), rules }
    }

    fn metadata(&self) -> String {
        let name = SOURCE.0;
        format!(
            "metadata:\n  name: {name}\n  namespace: {}\n  labels:\n    app.kubernetes.io/name: {name}\n    \
             app.kubernetes.io/part-of: mesh-filters\n",
            self.namespace
        )
    }

    pub(crate) fn config_map(&self) -> String {
        let why = comment(
            "The rules of circuit-breaker: change them here, while it runs; all proxies have them within a minute or so, which the \
             kubelet takes to write them, and an interval. To begin with they only say what they would do: `mode: dry_run`.",
            0,
        );
        format!(
            "{why}apiVersion: v1\nkind: ConfigMap\n{}data:\n  rules.json: |\n{}  nginx.conf: |\n{}",
            self.metadata(),
            self.rules,
            nginx().lines().map(|line| format!("    {line}\n")).collect::<String>()
        )
    }

    pub(crate) fn deployment(&self) -> String {
        let name = SOURCE.0;
        let pods = json!({ "app.kubernetes.io/name": name });
        let pod = json!({
            "automountServiceAccountToken": false,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 101, "runAsGroup": 101, "seccompProfile": { "type": "RuntimeDefault" },
            },
        });
        let probe = |path: &str| json!({ "httpGet": { "path": path, "port": "http" }, "periodSeconds": 10 });
        let container = json!({
            "command": ["nginx", "-e", "/dev/stderr", "-c", "/etc/thresholds/nginx.conf", "-g", "daemon off;"],
            "ports": [{ "name": "http", "containerPort": PORT }],
            "readinessProbe": probe("/rules"),
            "livenessProbe": probe("/healthz"),
            "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "64Mi" } },
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
            },
            "volumeMounts": [
                { "name": "thresholds", "mountPath": "/etc/thresholds", "readOnly": true },
                { "name": "tmp", "mountPath": "/tmp" },
            ],
        });
        let volumes = json!([
            { "name": "thresholds", "configMap": { "name": name } },
            { "name": "tmp", "emptyDir": { "sizeLimit": "16Mi" } },
        ]);
        format!(
            "apiVersion: apps/v1\nkind: Deployment\n{}spec:\n  # While it is away, breakers keep the rules that they have.\n  replicas: 1\n  selector:\n    matchLabels:\n{}  template:\n    metadata:\n      \
             labels:\n{}    spec:\n{}      containers:\n        - name: nginx\n          image: {}\n{}      \
             # The whole folder: a file of it by subPath would never change.\n      volumes:\n{}",
            self.metadata(),
            block(&pods, 6),
            block(&pods, 8),
            block(&pod, 6),
            self.image,
            block(&container, 10),
            block(&volumes, 8),
        )
    }

    pub(crate) fn service(&self) -> String {
        let spec = json!({
            "selector": { "app.kubernetes.io/name": SOURCE.0 },
            "ports": [{ "name": "http", "appProtocol": "http", "port": 80, "targetPort": "http" }],
        });
        let why = comment(&format!("To a proxy of the mesh it is the cluster {}.", super::truth::cluster()), 0);
        format!("{why}apiVersion: v1\nkind: Service\n{}spec:\n{}", self.metadata(), block(&spec, 2))
    }

    pub(crate) fn namespace() -> String {
        format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}\n", SOURCE.1)
    }
}

/// Its configuration: it writes nowhere but to /tmp, and reads the rules for each request.
fn nginx() -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path /tmp/{name};\n"))
        .collect();
    format!(
        "worker_processes 1;\npid /tmp/nginx.pid;\nerror_log /dev/stderr notice;\nevents {{}}\nhttp {{\n  access_log off;\n{temporary}  \
         server {{\n    listen {PORT};\n    location = /rules {{ default_type application/json; alias /etc/thresholds/rules.json; }}\n    \
         location = /healthz {{ return 204; }}\n    location / {{ return 404; }}\n  }}\n}}\n"
    )
}

/// All files of `istio/telemetry` and `istio/thresholds`.
pub(crate) fn files(filters: &[Deployed]) -> Vec<(String, String)> {
    let list = |about: &str, resources: &[&str]| {
        let resources: String = resources.iter().map(|resource| format!("  - {resource}\n")).collect();
        let about = comment(about, 0);
        format!("{about}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{resources}")
    };
    let source = Source::plain();
    let mut files = vec![
        ("telemetry/telemetry.yaml".to_owned(), telemetry(&of_the_mesh())),
        ("telemetry/istiod-values.yaml".to_owned(), istiod_values(filters)),
        (
            "telemetry/kustomization.yaml".to_owned(),
            list("After istiod-values.yaml, which is no resource.", &["telemetry.yaml"]),
        ),
        ("thresholds/namespace.yaml".to_owned(), Source::namespace()),
        ("thresholds/configmap.yaml".to_owned(), source.config_map()),
        ("thresholds/deployment.yaml".to_owned(), source.deployment()),
        ("thresholds/service.yaml".to_owned(), source.service()),
        (
            "thresholds/kustomization.yaml".to_owned(),
            list(
                "A source of thresholds for circuit-breaker.",
                &["namespace.yaml", "configmap.yaml", "deployment.yaml", "service.yaml"],
            ),
        ),
    ];
    files.extend(
        filters.iter().map(|filter| (format!("{}/pod-annotations.yaml", filter.name), pod_annotations(filter))),
    );
    files
}

/// The whole of them as one object: what the chart's values say.
pub(crate) fn values() -> Map<String, Value> {
    let values = json!({
        "telemetry": { "enabled": false, "namespace": ROOT_NAMESPACE },
        "thresholds": { "enabled": false, "image": IMAGE, "namespace": SOURCE.1, "rules": rules().get("rules") },
    });
    if let Value::Object(values) = values { values } else { Map::new() }
}
