//! The mesh's own schemas as the judge, where a folder has them: `CRDS=<folder>` with CustomResourceDefinitions as YAML.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use cel::extractors::This;
use serde_json::{Value, json};

/// The schemas by `apiVersion kind`.
pub(crate) struct Judge(BTreeMap<String, Value>);

impl Judge {
    /// None where no folder is named.
    pub(crate) fn summon() -> Option<Self> {
        let Some(folder) = std::env::var_os("CRDS").map(PathBuf::from) else {
            println!("The mesh's own schemas have not judged: CRDS names no folder with them.");
            return None;
        };
        let mut schemas = BTreeMap::new();
        for entry in folder.read_dir().unwrap_or_else(|why| panic!("CRDS is {}: {why}", folder.display())) {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            for definition in super::parse(&fs::read_to_string(&path).unwrap()) {
                let (spec, kind) = (&definition["spec"], &definition["spec"]["names"]["kind"]);
                for version in spec["versions"].as_array().into_iter().flatten() {
                    let name = [&spec["group"], &version["name"], kind].map(|part| part.as_str().unwrap());
                    let schema = version["schema"]["openAPIV3Schema"].clone();
                    schemas.insert(format!("{}/{} {}", name[0], name[1], name[2]), schema);
                }
            }
        }
        assert!(!schemas.is_empty(), "CRDS is {}, and there is none in it", folder.display());
        Some(Self(schemas))
    }

    /// What it has against a resource; nothing against those of which it knows no schema.
    pub(crate) fn against(&self, document: &Value) -> Vec<String> {
        let said = |key: &str| document[key].as_str().unwrap_or_default();
        let Some(schema) = self.0.get(&format!("{} {}", said("apiVersion"), said("kind"))) else { return Vec::new() };
        let mut against = Vec::new();
        // These belong to every resource, and no schema says so.
        let (spec, value) = (&schema["properties"]["spec"], &document["spec"]);
        let mut strict = spec.clone();
        close(&mut strict);
        let validator = jsonschema::validator_for(&strict).unwrap();
        against.extend(validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())));
        rules(spec, value, "spec", &mut against);
        against
    }

    /// Whether it knows the resource.
    pub(crate) fn knows(&self, document: &Value) -> bool {
        let said = |key: &str| document[key].as_str().unwrap_or_default();
        self.0.contains_key(&format!("{} {}", said("apiVersion"), said("kind")))
    }
}

/// An API server drops what it does not know: here it is refused.
fn close(schema: &mut Value) {
    let open = schema["x-kubernetes-preserve-unknown-fields"] == json!(true);
    if let Some(map) = schema.as_object_mut() {
        if map.get("nullable") == Some(&json!(true)) {
            let kind = map["type"].clone();
            map.insert("type".into(), json!([kind, "null"]));
        }
        if map.get("format") == Some(&json!("int32")) {
            map.entry("minimum").or_insert(json!(i32::MIN));
            map.entry("maximum").or_insert(json!(i32::MAX));
        }
        if map.contains_key("properties") && !open && !map.contains_key("additionalProperties") {
            map.insert("additionalProperties".into(), json!(false));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = map.get_mut(key).filter(|inner| inner.is_object()) {
                close(inner);
            }
        }
        if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
            properties.values_mut().for_each(close);
        }
    }
}

/// The rules in CEL, at each place of the value.
fn rules(schema: &Value, value: &Value, path: &str, against: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().unwrap();
        match holds(text, value) {
            Ok(true) => {}
            Ok(false) => against.push(format!("{path}: {}", rule["message"].as_str().unwrap_or(text))),
            Err(why) => panic!("{path}: {text}: {why}"),
        }
    }
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let schema = schema["properties"].get(key).unwrap_or(&schema["additionalProperties"]);
                rules(schema, inner, &format!("{path}.{key}"), against);
            }
        }
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(i, inner)| rules(&schema["items"], inner, &format!("{path}[{i}]"), against));
        }
        _ => {}
    }
}

fn holds(rule: &str, value: &Value) -> Result<bool, String> {
    let program = cel::Program::compile(rule).map_err(|why| why.to_string())?;
    let mut context = cel::Context::default();
    // Kubernetes' library for URLs, as far as these rules use it: an URL stays a text.
    let functions = [
        context.add_function("isURL", |url: Arc<String>| url.contains("://") || url.starts_with('/')),
        context.add_function("url", |url: Arc<String>| url),
        context.add_function("getScheme", |This(url): This<Arc<String>>| {
            url.split_once("://").map_or_else(String::new, |(scheme, _)| scheme.to_owned())
        }),
    ];
    assert!(functions.iter().all(Result::is_ok));
    context.add_variable("self", value).map_err(|why| why.to_string())?;
    match program.execute(&context).map_err(|why| why.to_string())? {
        cel::Value::Bool(holds) => Ok(holds),
        other => Err(format!("{other:?} is no answer")),
    }
}
