//! What is generated: a schema per filter, the tables in its README between `<!-- name -->` and `<!-- end -->`, and what
//! the last run of the benchmarks came to, what is in the modules, and the dashboard.

use crate::{dashboard, manifests, matrix, pages};
use anyhow::{Context as _, Result, ensure};
use circuit_breaker::CircuitBreaker;
use kit::{Filter, Metric, MetricKind, tag_regex};
use latency::Latency;
use log_scrub::LogScrub;
use schemars::JsonSchema;
use serde_json::{Map, Value};
use std::{collections::HashMap, fs, path::PathBuf};
use suite::Suite;
use trace_id::TraceId;

use crate::benchmarks;

/// Writes every generated file.
pub(crate) fn write() -> Result<()> {
    for (path, text) in generate()? {
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::write(&path, text)?;
            println!("wrote {}", path.display());
        }
    }
    Ok(())
}

/// Says which files are not as they would be generated.
pub(crate) fn check() -> Result<()> {
    let stale = generate()?.into_iter().filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(text));
    let stale: Vec<String> = stale.map(|(path, _)| path.display().to_string()).collect();
    ensure!(stale.is_empty(), "not up to date, run `make docs`: {}", stale.join(", "));
    pages::check(&root()?)?;
    manifests::check()?;
    matrix::check()
}

/// The project's folder.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?)
}

fn generate() -> Result<Vec<(PathBuf, String)>> {
    let mut files = [
        filter::<TraceId>("trace-id", configuration)?,
        filter::<Latency>("latency", configuration)?,
        filter::<CircuitBreaker>("circuit-breaker", configuration)?,
        filter::<Suite>("suite", keys)?,
    ]
    .concat();
    for (path, text) in filter::<LogScrub>("log-scrub", configuration)? {
        let text = if path.ends_with("README.md") { fill(&text, "detectors", &detectors()?)? } else { text };
        files.push((path, text));
    }
    files.push(guide()?);
    files.extend(benchmarks::pages()?);
    files.push(dashboard::page()?);
    Ok(files)
}

/// The kit's guide, with the example's source and its test.
fn guide() -> Result<(PathBuf, String)> {
    let (root, path) = (root()?, root()?.join("filters/kit/README.md"));
    let read = |path: &PathBuf| fs::read_to_string(path).with_context(|| path.display().to_string());
    // No example of the kit's own documentation: there it is without its crate.
    let shown = |path: &str| Ok::<_, anyhow::Error>(format!("```rust,ignore\n{}```\n", read(&root.join(path))?));
    let page = fill(&read(&path)?, "example", &shown("examples/api-key/src/lib.rs")?)?;
    let page = fill(&page, "test", &shown("examples/api-key/tests/requests.rs")?)?;
    Ok((path, page))
}

/// `table` makes the table of its configuration.
fn filter<F: Filter<Config: JsonSchema>>(
    name: &str,
    table: fn(&Value) -> Result<String>,
) -> Result<Vec<(PathBuf, String)>> {
    let folder = root()?.join("filters").join(name);
    let schema = schemars::schema_for!(F::Config);
    let readme_path = folder.join("README.md");
    let readme = fs::read_to_string(&readme_path).with_context(|| readme_path.display().to_string())?;
    let readme = fill(&readme, "configuration", &table(schema.as_value())?)?;
    let readme = fill(&readme, "metrics", &metrics(&F::metrics()))?;
    let readme = fill(&readme, "stats-tags", &stats_tags(&F::metrics())?)?;
    let schema = format!("{}\n", serde_json::to_string_pretty(&schema)?);
    Ok(vec![(folder.join("schema.json"), schema), (readme_path, readme)])
}

/// Puts `text` between the marks.
pub(crate) fn fill(page: &str, name: &str, text: &str) -> Result<String> {
    let (before, _, after) = marked(page, name)?;
    Ok([before, text, after].concat())
}

/// A page until after the mark, between the marks, and from the end mark on.
pub(crate) fn marked<'a>(page: &'a str, name: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let mark = format!("<!-- {name} -->\n");
    let start = page.find(&mark).with_context(|| format!("no mark {}", mark.trim()))?.saturating_add(mark.len());
    let (before, rest) = page.split_at(start);
    let end = rest.find("<!-- end -->").with_context(|| format!("{} has no end", mark.trim()))?;
    let (between, after) = rest.split_at(end);
    Ok((before, between, after))
}

/// A row per filter of a module of several, each with its own page.
fn keys(schema: &Value) -> Result<String> {
    let mut text = String::from("| field | type | default | meaning |\n| --- | --- | --- | --- |\n");
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let description = property.get("description").and_then(Value::as_str).unwrap_or_default();
        ensure!(!description.is_empty(), "`{key}` has no description");
        let page = format!("../{}/README.md#configuration", key.replace('_', "-"));
        text.push_str(&format!("| `{key}` | object, [its configuration]({page}) | none | {description} |\n"));
    }
    Ok(text)
}

/// A row per field, fields of objects by their path.
fn configuration(schema: &Value) -> Result<String> {
    let text = String::from("| field | type | default | meaning |\n| --- | --- | --- | --- |\n");
    let mut rows = Rows { text, kinds: HashMap::new() };
    fields(schema, "", schema.get("properties"), None, &mut rows)?;
    Ok(rows.text)
}

/// Rows of a table, and where an object of each kind was first.
struct Rows {
    text: String,
    kinds: HashMap<String, String>,
}

fn fields(
    root: &Value,
    prefix: &str,
    properties: Option<&Value>,
    defaults: Option<&Value>,
    rows: &mut Rows,
) -> Result<()> {
    for (name, property) in properties.and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{prefix}{name}");
        // Of two objects of one kind, the second is as the first.
        let reference = [property].into_iter().chain(any_of(property)).find_map(|p| p.get("$ref")?.as_str());
        let earlier = reference.and_then(|reference| rows.kinds.insert(reference.to_owned(), path.clone()));
        let own = property.get("description");
        let property = resolve(root, property);
        let description = own.or_else(|| property.get("description")).and_then(Value::as_str).unwrap_or_default();
        let description = description.replace('\n', " ").replace('|', "\\|");
        ensure!(!description.is_empty(), "`{path}` has no description");
        let default = match property.get("default").or_else(|| defaults.and_then(|d| d.get(name))) {
            None | Some(Value::Object(_)) => String::new(),
            Some(Value::Null) => "none".into(),
            Some(default) => format!("`{default}`"),
        };
        if let (Some(earlier), Some(reference)) = (earlier, reference) {
            rows.text.push_str(&format!("| `{path}` | object, as `{earlier}` | {default} | {description} |\n"));
            rows.kinds.insert(reference.to_owned(), earlier);
            continue;
        }
        rows.text.push_str(&format!("| `{path}` | {} | {default} | {description} |\n", kind(root, property)));
        for choice in choices(property) {
            if let (Some(value), Some(meaning)) = (choice.get("const"), choice.get("description")) {
                let (value, meaning) = (value.as_str().unwrap_or_default(), meaning.as_str().unwrap_or_default());
                rows.text.push_str(&format!("| | | | `{value}`: {} |\n", meaning.replace('\n', " ")));
            }
        }
        let object =
            [property].into_iter().chain(any_of(property)).map(|p| resolve(root, p)).find_map(|p| p.get("properties"));
        fields(root, &format!("{path}."), object, property.get("default"), rows)?;
        let item = property.get("items").and_then(|items| resolve(root, items).get("properties"));
        fields(root, &format!("{path}[]."), item, None, rows)?;
    }
    Ok(())
}

fn resolve<'a>(root: &'a Value, property: &'a Value) -> &'a Value {
    let reference = property.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
    reference.and_then(|path| root.pointer(path)).unwrap_or(property)
}

fn any_of(property: &Value) -> impl Iterator<Item = &Value> {
    property.get("anyOf").and_then(Value::as_array).into_iter().flatten()
}

fn choices(property: &Value) -> Vec<&Value> {
    let of = |value: &'_ Value| {
        value.get("oneOf").and_then(Value::as_array).map(|list| list.iter().collect::<Vec<_>>()).is_some()
    };
    let item = property.get("items").filter(|items| of(items)).unwrap_or(property);
    item.get("oneOf").and_then(Value::as_array).into_iter().flatten().collect()
}

fn kind(root: &Value, property: &Value) -> String {
    let property =
        any_of(property).find(|p| p.get("type") != Some(&Value::from("null"))).map_or(property, |p| resolve(root, p));
    let words: Vec<&str> = match property.get("type") {
        Some(Value::String(word)) => vec![word],
        Some(Value::Array(words)) => words.iter().filter_map(Value::as_str).filter(|word| *word != "null").collect(),
        _ => vec![],
    };
    let range = |map: &Map<String, Value>| match (map.get("minimum"), map.get("maximum")) {
        (Some(least), Some(most)) => format!(", {least} to {most}"),
        _ => String::new(),
    };
    let range = property.as_object().map(range).unwrap_or_default();
    let pattern = property.get("pattern").and_then(Value::as_str).unwrap_or_default();
    match words.as_slice() {
        _ if property.get("oneOf").is_some() => "one of these:".into(),
        ["array"] if !choices(property).is_empty() => "list of these:".into(),
        ["array"] if property.get("items").is_some_and(|items| resolve(root, items).get("properties").is_some()) => {
            "list of objects".into()
        }
        ["array"] => "list of texts".into(),
        ["string"] if pattern.contains("ms|s|m|h") => "duration, `\"250ms\"`".into(),
        ["string"] if !pattern.is_empty() => "header name".into(),
        ["boolean"] => "true or false".into(),
        ["integer"] => format!("whole number{range}"),
        ["number"] => format!("number{range}"),
        words => words.join(" or "),
    }
}

/// A row per detector, with what its file says of it first.
fn detectors() -> Result<String> {
    let mut rows = String::from("| detector | pack | by default | what |\n| --- | --- | --- | --- |\n");
    for (name, pack, default) in log_scrub::detectors() {
        let path = root()?.join(format!("filters/log-scrub/src/detectors/{name}.rs"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let about: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
        let about = about.split(|line| line.is_empty()).next().unwrap_or_default().join(" ");
        ensure!(!about.is_empty(), "{} does not say what it is", path.display());
        let pack = serde_json::to_value(pack)?;
        let (pack, default) = (pack.as_str().unwrap_or_default(), if default { "on" } else { "off" });
        rows.push_str(&format!("| `{name}` | `{pack}` | {default} | {} |\n", about.replace('|', "\\|")));
    }
    Ok(rows)
}

fn metrics(metrics: &[&Metric]) -> String {
    let mut rows = String::from("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for metric in metrics {
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        rows.push_str(&format!("| `{}` | {kind} | {} | {} |\n", metric.name, labels.join(", "), metric.help));
    }
    rows
}

/// What makes labels of them, for plain Envoy and for Istio.
fn stats_tags(metrics: &[&Metric]) -> Result<String> {
    let mut labels: Vec<&str> = metrics.iter().flat_map(|metric| metric.labels).copied().collect();
    labels.sort_unstable();
    labels.dedup();
    // The expressions are not anchored: `code` would be found at the end of `grpc_code`.
    for label in &labels {
        let longer = labels.iter().find(|other| *other != label && other.ends_with(label));
        ensure!(longer.is_none(), "label `{label}` ends label `{}`: rename one", longer.unwrap_or(label));
    }
    let envoy: String =
        labels.iter().map(|l| format!("    - {{ tag_name: {l}, regex: '{}' }}\n", tag_regex(l))).collect();
    Ok(format!(
        "```yaml\n# Plain Envoy, bootstrap\nstats_config:\n  stats_tags:\n{envoy}---\n\
         # Istio, pod annotation\nproxy.istio.io/config: |\n  extraStatTags: [{}]\n```\n",
        labels.join(", ")
    ))
}
