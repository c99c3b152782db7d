//! Renders the chart as Helm does, with another implementation of its language and those of its functions that the
//! templates use.

use std::collections::HashMap;
use std::fs;

use gtmpl::{Context, FuncError, Template, Value as Argument};
use serde_json::{Value, json};
use test_harness::root;

type Returned = Result<Argument, FuncError>;

/// The chart's own values, and these over them; they have to be what its schema says.
pub(crate) fn values(over: &Value) -> Value {
    let text = fs::read_to_string(root().join("istio/chart/values.yaml")).unwrap();
    let mut values: Value = serde_saphyr::from_str(&text).unwrap();
    json_patch::merge(&mut values, over);
    values
}

/// What the schema says against values.
pub(crate) fn refused(values: &Value) -> Vec<String> {
    let schema = fs::read_to_string(root().join("istio/chart/values.schema.json")).unwrap();
    let schema = serde_json::from_str(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    validator.iter_errors(values).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// The resources that the chart makes of its values and these.
pub(crate) fn render(over: &Value, namespace: &str) -> Result<Vec<Value>, String> {
    let values = values(over);
    assert_eq!(refused(&values), Vec::<String>::new(), "{over}");
    let data = json!({ "Values": values, "Release": { "Namespace": namespace, "Name": "filters" } });
    let mut resources = Vec::new();
    for entry in root().join("istio/chart/templates").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let text =
            one(&fs::read_to_string(&path).unwrap(), &data).map_err(|why| format!("{}: {why}", path.display()))?;
        assert!(!text.contains("<no value>"), "{}: a value that is not there\n{text}", path.display());
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let read: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
            resources.extend(read.into_iter().filter(|document| !document.is_null()));
        }
    }
    Ok(resources)
}

fn one(template: &str, data: &Value) -> Result<String, String> {
    let mut made = Template::default();
    made.add_func("toYaml", to_yaml);
    made.add_func("toJson", to_json);
    made.add_func("nindent", nindent);
    made.add_func("quote", quote);
    made.add_func("default", default);
    made.add_func("fail", fail);
    made.parse(template).map_err(|why| why.to_string())?;
    made.render(&Context::from(argument(data))).map_err(|why| why.to_string())
}

fn argument(value: &Value) -> Argument {
    match value {
        Value::Null => Argument::Nil,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            (None, value) => value.unwrap().into(),
        },
        Value::String(text) => text.into(),
        Value::Array(list) => Argument::Array(list.iter().map(argument).collect()),
        Value::Object(map) => {
            Argument::Map(map.iter().map(|(key, value)| (key.clone(), argument(value))).collect::<HashMap<_, _>>())
        }
    }
}

fn value(argument: &Argument) -> Value {
    match argument {
        Argument::NoValue | Argument::Nil | Argument::Function(_) => Value::Null,
        Argument::Bool(value) => json!(value),
        Argument::String(text) => json!(text),
        Argument::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => json!(whole),
            (None, value) => json!(value),
        },
        Argument::Array(list) => list.iter().map(value).collect(),
        Argument::Map(map) | Argument::Object(map) => map.iter().map(|(key, of)| (key.clone(), value(of))).collect(),
    }
}

fn to_json(arguments: &[Argument]) -> Returned {
    Ok(value(&arguments[0]).to_string().into())
}

fn to_yaml(arguments: &[Argument]) -> Returned {
    Ok(block(&value(&arguments[0]), 0).trim_end().to_owned().into())
}

/// In lines, as Helm writes it, so that a wrong depth is seen.
fn block(value: &Value, depth: usize) -> String {
    let pad = " ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => map
            .iter()
            .map(|(key, value)| match value {
                Value::Object(map) if !map.is_empty() => format!("{pad}{}:\n{}", json!(key), block(value, depth + 2)),
                Value::Array(list) if !list.is_empty() => format!("{pad}{}:\n{}", json!(key), block(value, depth)),
                value => format!("{pad}{}: {value}\n", json!(key)),
            })
            .collect(),
        Value::Array(list) if !list.is_empty() => {
            list.iter().map(|item| format!("{pad}- {}", block(item, depth + 2).trim_start())).collect()
        }
        value => format!("{pad}{value}\n"),
    }
}

fn nindent(arguments: &[Argument]) -> Returned {
    let depth = value(&arguments[0]).as_u64().unwrap().try_into().unwrap();
    let lines = arguments[1].to_string();
    Ok(lines.lines().map(|line| format!("\n{}{line}", " ".repeat(depth))).collect::<String>().into())
}

fn quote(arguments: &[Argument]) -> Returned {
    Ok(json!(arguments[0].to_string()).to_string().into())
}

fn default(arguments: &[Argument]) -> Returned {
    let empty = matches!(&arguments[1], Argument::NoValue | Argument::Nil) || arguments[1].to_string().is_empty();
    Ok(arguments[usize::from(!empty)].clone())
}

fn fail(arguments: &[Argument]) -> Returned {
    Err(FuncError::Generic(arguments[0].to_string()))
}
