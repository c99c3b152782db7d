//! What is in a module: all that its build compiles into it, and nothing else.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use anyhow::Result;
use cyclonedx_bom::prelude::{Bom, Validate as _};
use images::{Module, sbom::Crates};
use serde_json::Value;
use test_harness::{module, root};
use xtask::SHIPPED;

use crate::world::{hex, small};

static CRATES: LazyLock<Crates> = LazyLock::new(|| Crates::read(&root()).unwrap());

fn bom(name: &str) -> Value {
    let wasm = std::fs::read(module(name).unwrap()).unwrap();
    let bytes = CRATES.bom(&Module { name: name.to_owned(), wasm, ..small() }).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn names(bom: &Value) -> BTreeSet<&str> {
    bom["components"].as_array().unwrap().iter().map(|component| component["name"].as_str().unwrap()).collect()
}

#[test]
fn it_is_valid_and_the_same_each_time() -> Result<()> {
    for (name, _) in SHIPPED {
        let text = bom(name).to_string();
        let result = Bom::parse_from_json(text.as_bytes())?.validate();
        assert!(result.passed(), "{name}: {result:?}");
        assert_eq!(text, bom(name).to_string());
        // They would be another each time.
        assert!(!text.contains("\"serialNumber\"") && !text.contains("\"timestamp\""), "{text}");
    }
    Ok(())
}

#[test]
fn it_names_what_is_in_the_module_and_nothing_that_only_builds_or_tests_it() {
    for (name, _) in SHIPPED {
        let bom = bom(name);
        let names = names(&bom);
        for wanted in ["mesh-filters-kit", "serde", "serde_core", "serde_json", "talc", "hashbrown", "log", "std"] {
            assert!(names.contains(wanted), "{name}: no {wanted} in {names:?}");
        }
        for other in
            ["serde_derive", "syn", "quote", "proptest", "schemars", "wasmi", "libc", "windows-sys", "tokio", name]
        {
            assert!(!names.contains(other), "{name}: {other}");
        }
    }
    // What one filter alone needs is in its module alone.
    assert!(names(&bom("trace-id")).contains("uuid") && !names(&bom("latency")).contains("uuid"));
}

#[test]
fn each_crate_has_version_licence_and_the_hash_of_its_package() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for component in bom("trace-id")["components"].as_array().unwrap() {
        let (name, version) = (component["name"].as_str().unwrap(), component["version"].as_str().unwrap());
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
        if ["mesh-filters-kit", "std"].contains(&name) {
            continue;
        }
        let hash = component["hashes"][0]["content"].as_str().unwrap();
        let source = "registry+https://github.com/rust-lang/crates.io-index";
        let locked =
            format!("name = \"{name}\"\nversion = \"{version}\"\nsource = \"{source}\"\nchecksum = \"{hash}\"\n");
        assert!(lock.contains(&locked), "{locked}");
        assert_eq!(component["purl"], format!("pkg:cargo/{name}@{version}"));
    }
}

#[test]
fn it_says_whose_it_is_and_what_needs_what() {
    let bom = bom("trace-id");
    let whole = &bom["metadata"]["component"];
    let wasm = std::fs::read(module("trace-id").unwrap()).unwrap();
    assert_eq!(whole["hashes"][0]["content"], hex(&images::layout::digest(&wasm)));
    assert_eq!((&whole["name"], &whole["version"]), (&Value::from("trace-id"), &Value::from("1.2.3")));
    let all: BTreeSet<&str> =
        bom["components"].as_array().unwrap().iter().map(|component| component["bom-ref"].as_str().unwrap()).collect();
    let mut reached = BTreeSet::new();
    let mut next = vec![whole["bom-ref"].as_str().unwrap()];
    while let Some(at) = next.pop() {
        let edges = bom["dependencies"].as_array().unwrap().iter().find(|edges| edges["ref"] == at).unwrap();
        for on in edges["dependsOn"].as_array().into_iter().flatten() {
            if reached.insert(on.as_str().unwrap()) {
                next.push(on.as_str().unwrap());
            }
        }
    }
    assert_eq!(reached, all);
    let needs = |name: &str| {
        let edges = bom["dependencies"].as_array().unwrap().iter();
        let edges = edges.filter(|edges| edges["ref"].as_str().unwrap().starts_with(&format!("{name}@")));
        let on: Vec<String> = edges
            .flat_map(|edges| edges["dependsOn"].as_array().cloned().unwrap_or_default())
            .map(|on| on.as_str().unwrap().split('@').next().unwrap().to_owned())
            .collect();
        on
    };
    assert_eq!(needs("lock_api"), ["scopeguard"]);
    assert_eq!(needs("serde_json"), ["itoa", "memchr", "serde_core", "zmij"]);
    assert!(needs("memchr").is_empty() && needs("std").is_empty());
}
