//! What Envoy shall run, as values; [`Envoy`](crate::Envoy) turns them into its JSON.
//!
//! What tests vary has a method. For everything else there is `merge` (objects are merged deeply, any other value
//! replaces what was there) and [`HttpFilter::raw`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
const STRING_VALUE: &str = "type.googleapis.com/google.protobuf.StringValue";
const STRUCT: &str = "type.googleapis.com/google.protobuf.Struct";

/// Where the rendered configuration points to on this machine.
pub(crate) struct Places {
    /// The directory of access logs.
    pub(crate) logs: PathBuf,
    /// The directory of extension configurations that are delivered on their own.
    pub(crate) extensions: PathBuf,
}

impl Places {
    pub(crate) fn access_log(&self, listener: &str) -> PathBuf {
        self.logs.join(format!("{listener}.log"))
    }

    pub(crate) fn extension(&self, name: &str) -> PathBuf {
        self.extensions.join(format!("{name}.json"))
    }
}

/// Merges objects deeply; any other value replaces what was there.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

pub(crate) fn merged(mut into: Value, from: Value) -> Value {
    merge(&mut into, from);
    into
}

/// A listener on 127.0.0.1. Its port is a free one, and belongs to its name as long as the instance lives.
#[derive(Clone, Debug)]
pub struct Listener {
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
    kind: Kind,
    access_log: Option<AccessLog>,
    overrides: Value,
}

#[derive(Clone, Debug)]
enum Kind {
    Http(Box<Http>),
    Tcp(Vec<Value>),
}

#[derive(Clone, Debug)]
struct Http {
    filters: Vec<HttpFilter>,
    routes: Vec<Route>,
    overrides: Value,
}

impl Listener {
    /// A listener for HTTP/1.1 and h2c, whichever the client speaks. Without a route it answers 200 `ok` itself.
    #[must_use]
    pub fn http(name: &str) -> Self {
        let http = Http { filters: Vec::new(), routes: Vec::new(), overrides: json!({}) };
        Self::new(name, Kind::Http(Box::new(http)))
    }

    /// A listener for TCP with these network filters, as Envoy's JSON; the last one must be terminal.
    #[must_use]
    pub fn tcp(name: &str, filters: impl IntoIterator<Item = Value>) -> Self {
        Self::new(name, Kind::Tcp(filters.into_iter().collect()))
    }

    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), port: None, kind, access_log: None, overrides: json!({}) }
    }

    fn hcm(&mut self) -> &mut Http {
        match &mut self.kind {
            Kind::Http(http) => http,
            Kind::Tcp(_) => panic!("listener `{}` is for TCP, this setting is for HTTP", self.name),
        }
    }

    /// Appends an HTTP filter to the chain; the router always comes after the last.
    #[must_use]
    pub fn filter(mut self, filter: HttpFilter) -> Self {
        self.hcm().filters.push(filter);
        self
    }

    /// Appends a route; the first that matches is taken.
    #[must_use]
    pub fn route(mut self, route: Route) -> Self {
        self.hcm().routes.push(route);
        self
    }

    /// Sets the access log, a file that [`Envoy::access_log`](crate::Envoy::access_log) reads: a line per request, or, of
    /// a listener for TCP, per connection.
    #[must_use]
    pub fn access_log(mut self, log: AccessLog) -> Self {
        self.access_log = Some(log);
        self
    }

    /// Whether Envoy makes an `x-request-id` where none came. It does unless told otherwise.
    #[must_use]
    pub fn generate_request_id(self, yes: bool) -> Self {
        self.merge_hcm(json!({ "generate_request_id": yes }))
    }

    /// Sets Envoy's own tracing: `HttpConnectionManager.Tracing` as JSON.
    #[must_use]
    pub fn tracing(self, tracing: Value) -> Self {
        self.merge_hcm(json!({ "tracing": tracing }))
    }

    /// Merges JSON into the `HttpConnectionManager`.
    #[must_use]
    pub fn merge_hcm(mut self, json: Value) -> Self {
        merge(&mut self.hcm().overrides, json);
        self
    }

    /// Merges JSON into the `Listener` itself.
    #[must_use]
    pub fn merge(mut self, json: Value) -> Self {
        merge(&mut self.overrides, json);
        self
    }

    /// Takes this port instead of a free one. For demos: in tests it makes a race.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    pub(crate) fn render(&self, places: &Places, port: u16) -> Value {
        let log = self.access_log.as_ref().map(|log| log.render(&places.access_log(&self.name)));
        let filters = match &self.kind {
            Kind::Tcp(filters) => filters.clone(),
            Kind::Http(http) => vec![http.render(&self.name, log.as_ref(), places)],
        };
        let mut listener = json!({
            "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
            "name": self.name,
            "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
            "filter_chains": [{ "filters": filters }],
        });
        if let (Kind::Tcp(_), Some(log)) = (&self.kind, log) {
            // Here and not at the filter that sends it on: this one writes when every filter is done with the connection.
            listener["access_log"] = json!([log]);
        }
        merge(&mut listener, self.overrides.clone());
        listener
    }

    /// The extension configurations that its filters take from files of their own, at first.
    pub(crate) fn extensions(&self) -> impl Iterator<Item = &HttpFilter> {
        let filters = match &self.kind {
            Kind::Http(http) => http.filters.as_slice(),
            Kind::Tcp(_) => &[],
        };
        filters.iter().filter(|filter| filter.discovered)
    }
}

impl Http {
    fn render(&self, listener: &str, access_log: Option<&Value>, places: &Places) -> Value {
        let mut filters: Vec<Value> = self.filters.iter().map(|filter| filter.render(places)).collect();
        filters.push(json!({
            "name": "router",
            "typed_config": { "@type": format!("{FILTERS}.http.router.v3.Router") },
        }));
        let mut routes: Vec<Value> = self.routes.iter().map(|route| route.0.clone()).collect();
        if routes.is_empty() {
            routes.push(Route::respond(200, "ok").0);
        }
        let hosts = json!([{ "name": "all", "domains": ["*"], "routes": routes }]);
        let mut hcm = json!({
            "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": listener,
            "codec_type": "AUTO",
            "route_config": { "name": listener, "virtual_hosts": hosts },
            "http_filters": filters,
        });
        if let Some(log) = access_log {
            hcm["access_log"] = json!([log]);
        }
        merge(&mut hcm, self.overrides.clone());
        json!({ "name": "http", "typed_config": hcm })
    }
}

/// Where a request goes. Matches every path, until [`prefix`](Self::prefix) is called.
#[derive(Clone, Debug)]
pub struct Route(Value);

impl Route {
    /// To a cluster.
    #[must_use]
    pub fn cluster(name: &str) -> Self {
        Self(json!({ "match": { "prefix": "/" }, "route": { "cluster": name } }))
    }

    /// Nowhere: Envoy answers itself (`direct_response`).
    #[must_use]
    pub fn respond(status: u16, body: &str) -> Self {
        let response = json!({ "status": status, "body": { "inline_string": body } });
        Self(json!({ "match": { "prefix": "/" }, "direct_response": response }))
    }

    /// Only for paths that start so.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Self {
        self.merge(json!({ "match": { "prefix": prefix } }))
    }

    /// Merges JSON into the `Route`.
    #[must_use]
    pub fn merge(mut self, json: Value) -> Self {
        merge(&mut self.0, json);
        self
    }
}

/// An access log's format.
#[derive(Clone, Debug)]
pub struct AccessLog(Value);

impl AccessLog {
    fn render(&self, path: &Path) -> Value {
        json!({
            "name": "file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": path,
                "log_format": self.0,
            },
        })
    }

    /// A JSON object per request: its keys, and for each the operator that gives its value, such as `%RESPONSE_CODE%`.
    /// An operator alone keeps its type, and is `null` where it has no value.
    #[must_use]
    pub fn json<K: Into<String>, O: Into<Value>>(fields: impl IntoIterator<Item = (K, O)>) -> Self {
        let fields: Map<String, Value> =
            fields.into_iter().map(|(key, operator)| (key.into(), operator.into())).collect();
        Self(json!({ "json_format": fields }))
    }

    /// A line of text per request; the line break is added.
    #[must_use]
    pub fn text(format: &str) -> Self {
        Self(json!({ "text_format_source": { "inline_string": format!("{format}\n") } }))
    }
}

/// An HTTP filter.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFilter {
    name: String,
    typed_config: Value,
    discovered: bool,
}

impl HttpFilter {
    /// A wasm module as a filter; the name is also the plugin's.
    #[must_use]
    pub fn wasm(name: &str, module: impl AsRef<Path>) -> Self {
        let code = json!({ "local": { "filename": module.as_ref() } });
        let config = json!({
            "@type": format!("{FILTERS}.http.wasm.v3.Wasm"),
            "config": {
                "name": name,
                "vm_config": { "runtime": "envoy.wasm.runtime.v8", "code": code },
            },
        });
        Self::raw(name, config)
    }

    /// A Lua script as a filter.
    #[must_use]
    pub fn lua(name: &str, script: &str) -> Self {
        let source = json!({ "inline_string": script });
        Self::raw(name, json!({ "@type": format!("{FILTERS}.http.lua.v3.Lua"), "default_source_code": source }))
    }

    /// The same plugin as a filter of TCP connections: what [`Listener::tcp`] takes.
    ///
    /// # Panics
    /// When it is no wasm module.
    #[must_use]
    pub fn of_connections(self) -> Value {
        let typed_config = stand_in(&self.typed_config);
        let config = typed_config.get("config").expect("a wasm module");
        let kind = format!("{FILTERS}.network.wasm.v3.Wasm");
        json!({ "name": self.name, "typed_config": { "@type": kind, "config": config } })
    }

    /// Any other filter: its `typed_config` as JSON, with `@type`.
    #[must_use]
    pub fn raw(name: &str, typed_config: Value) -> Self {
        Self { name: name.to_owned(), typed_config, discovered: false }
    }

    /// The wasm plugin's configuration, handed over as JSON text, as Istio does it.
    #[must_use]
    pub fn config(self, config: Value) -> Self {
        self.config_text(&config.to_string())
    }

    /// The wasm plugin's configuration as this very text, JSON or not.
    #[must_use]
    pub fn config_text(self, config: &str) -> Self {
        self.config_any(json!({ "@type": STRING_VALUE, "value": config }))
    }

    /// The wasm plugin's configuration as a `google.protobuf.Struct`, as people write it for plain Envoy: it reaches
    /// the plugin as the bytes of that message, in which every number is a double.
    #[must_use]
    pub fn config_struct(self, config: Value) -> Self {
        self.config_any(json!({ "@type": STRUCT, "value": config }))
    }

    /// The wasm plugin's configuration as any protobuf message, JSON with `@type`.
    #[must_use]
    pub fn config_any(mut self, config: Value) -> Self {
        self.typed_config["config"]["configuration"] = config;
        self
    }

    /// The plugin's `root_id`.
    #[must_use]
    pub fn root_id(self, id: &str) -> Self {
        self.merge_plugin(json!({ "root_id": id }))
    }

    /// The `vm_id`, which is also the name space of shared data.
    #[must_use]
    pub fn vm_id(self, id: &str) -> Self {
        self.merge_plugin(json!({ "vm_config": { "vm_id": id } }))
    }

    /// What happens when the plugin traps: `FAIL_CLOSED`, `FAIL_OPEN` or `FAIL_RELOAD`.
    #[must_use]
    pub fn failure_policy(self, policy: &str) -> Self {
        self.merge_plugin(json!({ "failure_policy": policy }))
    }

    /// Merges JSON into the wasm `PluginConfig`.
    #[must_use]
    pub fn merge_plugin(self, json: Value) -> Self {
        self.merge(json!({ "config": json }))
    }

    /// Merges JSON into the `typed_config`.
    #[must_use]
    pub fn merge(mut self, json: Value) -> Self {
        merge(&mut self.typed_config, json);
        self
    }

    /// Delivers the filter's configuration on its own (ECDS), as Istio does it, beside the listener that names it; a
    /// new one goes there by [`Envoy::push_extension`](crate::Envoy::push_extension).
    #[must_use]
    pub fn discovered(mut self) -> Self {
        self.discovered = true;
        self
    }

    /// The filter's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn render(&self, places: &Places) -> Value {
        if !self.discovered {
            return json!({ "name": self.name, "typed_config": stand_in(&self.typed_config) });
        }
        json!({
            "name": self.name,
            "config_discovery": {
                "config_source": file_source(&places.extension(&self.name), &places.extensions),
                "type_urls": [self.typed_config["@type"]],
            },
        })
    }

    /// What stands in the file of a discovered filter.
    pub(crate) fn render_extension(&self) -> Value {
        json!({
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": self.name,
            "typed_config": stand_in(&self.typed_config),
        })
    }
}

/// With `TEST_AS=<module of several filters>` that module stands in for each filter's own: where a plugin's code is one
/// from `dist`, it is the other, and its configuration goes under the filter's key, in whatever form it is given.
///
/// What is rendered and not what a test says is the place: so it holds for every way to say it.
fn stand_in(typed_config: &Value) -> Value {
    let mut typed_config = typed_config.clone();
    let code = typed_config.pointer_mut("/config/vm_config/code/local/filename");
    let (Ok(stand_in), Some(code)) = (std::env::var("TEST_AS"), code) else { return typed_config };
    let path = PathBuf::from(code.as_str().unwrap_or_default());
    let Some(filter) = path.file_stem().and_then(|name| name.to_str()) else { return typed_config };
    let dist = crate::root().join("dist");
    if stand_in.is_empty() || stand_in == filter || path.parent() != Some(&dist) {
        return typed_config;
    }
    let key = filter.replace('-', "_");
    *code = json!(dist.join(stand_in).with_extension("wasm"));
    let given = &mut typed_config["config"]["configuration"];
    *given = match (given["@type"].as_str(), &given["value"]) {
        (None, _) => json!({ "@type": STRING_VALUE, "value": format!("{{\"{key}\": {{}}}}") }),
        (Some(STRING_VALUE), Value::String(text)) => {
            let text = if text.trim().is_empty() { "{}" } else { text };
            json!({ "@type": STRING_VALUE, "value": format!("{{\"{key}\": {text}}}") })
        }
        (Some(STRUCT), value) => json!({ "@type": STRUCT, "value": { key: value } }),
        (Some(other), _) => panic!("{filter}: a configuration of type {other} has no place for a key"),
    };
    typed_config
}

/// A `ConfigSource` that reads `file` again whenever something is moved into `directory`.
pub(crate) fn file_source(file: &Path, directory: &Path) -> Value {
    json!({
        "resource_api_version": "V3",
        "path_config_source": { "path": file, "watched_directory": { "path": directory } },
    })
}

/// Where requests are routed to: one address.
#[derive(Clone, Debug)]
pub struct Cluster(Value);

impl Cluster {
    /// A cluster that is spoken to in HTTP/1.1.
    #[must_use]
    pub fn new(name: &str, address: SocketAddr) -> Self {
        let socket = json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } });
        Self(json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket } }] }],
            },
        }))
    }

    /// Speaks h2 to it, by prior knowledge.
    #[must_use]
    pub fn http2(self) -> Self {
        let options = json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        });
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        self.merge(json!({ "typed_extension_protocol_options": { name: options } }))
    }

    /// Merges JSON into the `Cluster`.
    #[must_use]
    pub fn merge(mut self, json: Value) -> Self {
        merge(&mut self.0, json);
        self
    }
}

/// The bootstrap, but for what only the running instance knows.
#[derive(Clone, Debug)]
pub(crate) struct Bootstrap {
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) stats_tags: Vec<Value>,
    pub(crate) histogram_buckets: Vec<Value>,
    pub(crate) overrides: Value,
}

impl Bootstrap {
    /// `listeners` is `("dynamic_resources", {"lds_config": …})` or `("static_resources", {"listeners": …})`.
    pub(crate) fn render(&self, (section, listeners): (&str, Value)) -> Value {
        let clusters: Vec<&Value> = self.clusters.iter().map(|cluster| &cluster.0).collect();
        let mut bootstrap = json!({
            "node": { "id": "test", "cluster": "test" },
            "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
            "static_resources": { "clusters": clusters },
            "stats_config": { "stats_tags": self.stats_tags, "histogram_bucket_settings": self.histogram_buckets },
            // Histograms become visible only at a flush, which comes every 5 s by default.
            "stats_flush_interval": "0.2s",
        });
        merge(&mut bootstrap, json!({ section: listeners }));
        merge(&mut bootstrap, self.overrides.clone());
        bootstrap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_goes_into_objects_and_replaces_the_rest() {
        let mut into = json!({ "a": { "b": 1, "c": [1, 2] }, "d": 1 });
        merge(&mut into, json!({ "a": { "c": [3] }, "d": { "e": 1 }, "f": null }));
        assert_eq!(into, json!({ "a": { "b": 1, "c": [3] }, "d": { "e": 1 }, "f": null }));
    }
}
