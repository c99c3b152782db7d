//! docker-compose.yaml and what belongs to it: only what both generations of docker-compose read, images of a version
//! each, and no file mounted that is not there. That it runs, `make compose-test` shows.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use test_harness::{envoy, prometheus, registry, root};

const FILES: [&str; 2] = ["docker-compose.yaml", "docker-compose.registry.yaml"];

fn read(file: &str) -> Value {
    let text = fs::read_to_string(root().join("test-harness").join(file)).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// A text of compose with the defaults of its variables in their place, all of which need one.
fn defaulted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, variable)) = rest.split_once("${") {
        let (variable, after) = variable.split_once('}').unwrap();
        let (_, default) = variable.split_once(":-").unwrap_or_else(|| panic!("{text} has no default"));
        out.push_str(before);
        out.push_str(default);
        rest = after;
    }
    out + rest
}

/// Every service of every file, by file and name.
fn services() -> BTreeMap<(&'static str, String), Value> {
    let of = |file| {
        entries(&read(file)["services"])
            .map(|(name, service)| ((file, name.clone()), service.clone()))
            .collect::<Vec<_>>()
    };
    FILES.into_iter().flat_map(of).collect()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|text| defaulted(text.as_str().unwrap())).collect()
}

#[test]
fn only_what_both_generations_read_is_in_it() {
    // 1.29 refuses, or passes over, what it does not know: `name`, `include`, `configs` with their content, `develop`,
    // `gpus`; `version` makes the new ones warn.
    let top = ["services", "volumes", "x-health", "x-stamp"];
    let service =
        ["command", "depends_on", "entrypoint", "environment", "healthcheck", "image", "ports", "profiles", "volumes"];
    let health = ["test", "interval", "timeout", "retries"];
    let conditions = ["service_healthy", "service_completed_successfully"];
    for file in FILES {
        for (key, _) in entries(&read(file)) {
            assert!(top.contains(&key.as_str()), "{file}: {key}");
        }
    }
    for ((file, name), of) in services() {
        for (key, _) in entries(&of) {
            assert!(service.contains(&key.as_str()), "{file}: {name}: {key}");
        }
        for (key, _) in entries(&of["healthcheck"]) {
            assert!(health.contains(&key.as_str()), "{file}: {name}: {key}");
        }
        for (other, on) in entries(&of["depends_on"]) {
            let on: Vec<_> = entries(on).map(|(key, value)| (key.as_str(), value.as_str().unwrap())).collect();
            assert!(
                matches!(on[..], [("condition", is)] if conditions.contains(&is)),
                "{file}: {name}: {other}: {on:?}"
            );
        }
        // In the long form, or with a list that has more than strings, they differ.
        for list in ["command", "entrypoint", "ports", "profiles", "volumes"] {
            let list = &of[list];
            assert!(
                list.is_null() || list.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
                "{name}: {list}"
            );
        }
    }
}

#[test]
fn every_image_is_of_one_version_and_those_that_tests_know_are_of_theirs() {
    let mut images = BTreeSet::new();
    for ((_, name), service) in services() {
        // What a second file adds to a service has none.
        let Some(image) = service["image"].as_str() else { continue };
        let image = defaulted(image);
        let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{name}: {image} has no version"));
        assert!(tag.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit()), "{name}: {image}");
        assert!(tag.contains('.'), "{name}: {image} is of more than one version");
        // For the program to be there whatever the image starts.
        assert!(name == "grafana" || service["entrypoint"].is_array(), "{name} begins with what its image says");
        images.insert(image);
    }
    for tested in [
        format!("envoyproxy/envoy:v{}", envoy::VERSION),
        format!("prom/prometheus:v{}", prometheus::VERSION),
        format!("registry:{}", registry::VERSION),
    ] {
        assert!(images.contains(&tested), "{tested} is not among {images:?}");
    }
    // In the mesh they are served by the same.
    let mesh = fs::read_to_string(root().join("istio/thresholds/deployment.yaml")).unwrap();
    assert!(images.iter().any(|image| mesh.contains(&format!("image: {image}\n"))), "{images:?}");
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    assert!(makefile.contains(&format!("ENVOY_VERSION ?= {}\n", envoy::VERSION)));
}

#[test]
fn every_file_that_is_mounted_is_there() {
    let mut seen = 0;
    for ((file, name), service) in services() {
        for volume in strings(&service["volumes"]) {
            let (from, to) = volume.split_once(':').unwrap();
            assert!(to.starts_with('/'), "{name}: {volume}");
            if !from.starts_with('.') {
                assert!(read(file)["volumes"].as_object().unwrap().contains_key(from), "{name}: no volume {from}");
                continue;
            }
            assert!(to.ends_with(":ro"), "{name} could write into {from}");
            // What is built is not there before.
            let built = ["../dist", "../target/compose/bin"].contains(&from);
            assert!(built || root().join("test-harness").join(from).exists(), "{name}: {from} is not there");
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen}");
}

#[test]
fn every_port_is_of_this_machine_alone_and_free() {
    for ((_, name), service) in services() {
        for port in strings(&service["ports"]) {
            let of: Vec<&str> = port.split(':').collect();
            assert!(matches!(of[..], ["127.0.0.1", "0", inside] if inside.parse::<u16>().is_ok()), "{name}: {port}");
        }
        let long = service["ports"].as_array().is_some_and(|ports| !ports.is_empty());
        assert!(!long || service["healthcheck"]["test"][1] == "/harness/upstream", "{name} has no health check");
    }
}

#[test]
fn envoy_takes_the_configuration_with_the_labels_of_the_example() {
    let text = fs::read_to_string(root().join("test-harness/compose/envoy.yaml")).unwrap();
    let configuration: Value = serde_saphyr::from_str(&text).unwrap();
    let example = fs::read_to_string(root().join("examples/envoy/suite.yaml")).unwrap();
    let example: Value = serde_saphyr::from_str(&example).unwrap();
    assert_eq!(configuration["stats_config"], example["stats_config"]);
    // What is in the access log is clean, or the proxy's own.
    let manager = &configuration["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    let format = &manager["access_log"][0]["typed_config"]["log_format"]["json_format"];
    for (field, operator) in entries(format) {
        let operator = operator.as_str().unwrap();
        let own = ["%RESPONSE_CODE%", "%RESPONSE_FLAGS%", "%ROUTE_NAME%"].contains(&operator);
        assert!(own || operator.starts_with("%FILTER_STATE(wasm."), "{field}: {operator}");
    }
}

#[test]
fn prometheus_takes_its_configuration() {
    let text = fs::read_to_string(root().join("test-harness/compose/prometheus.yaml")).unwrap();
    let rules = root().join("examples/prometheus");
    let here = text.replace("/etc/prometheus/rules", &rules.to_string_lossy());
    assert_ne!(here, text);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), here).unwrap();
    let output =
        Command::new(prometheus::binary("promtool").unwrap()).args(["check", "config"]).arg(file.path()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_docker_it_is_said_what_to_install() {
    let script = root().join("test-harness/compose/compose");
    let say = |path: &Path| {
        let output = Command::new("/bin/bash").arg(&script).arg("up").env("PATH", path).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    // A system with no more than what the script itself needs.
    let folder = tempfile::tempdir().unwrap();
    for program in ["dirname", "realpath"] {
        let at = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(program));
        let at = at.iter().find(|at| at.exists()).unwrap();
        std::os::unix::fs::symlink(at, folder.path().join(program)).unwrap();
    }
    assert!(
        say(folder.path()).contains("docker is missing\n  Debian, Ubuntu: apt-get install docker.io docker-compose\n")
    );
    let docker = |does: &str| {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.path().join("docker");
        fs::write(&path, format!("#!/bin/bash\n{does}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    docker("echo 'Cannot connect' >&2; exit 1");
    let said = say(folder.path());
    assert!(
        said.contains("no docker daemon answers: Cannot connect\n") && said.contains("systemctl start docker"),
        "{said}"
    );
    docker("[[ $1 == version ]]");
    assert!(
        say(folder.path())
            .contains("neither `docker compose` nor docker-compose\n  Debian: apt-get install docker-compose")
    );
}
