//! Builds what `kubectl kustomize` builds, of as much of kustomize as the overlays use.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kustomization {
    api_version: String,
    kind: String,
    resources: Vec<String>,
    #[serde(default)]
    patches: Vec<Patch>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch {
    target: Target,
    patch: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    group: String,
    version: String,
    kind: String,
    name: String,
}

/// The resources of a folder, patched.
pub(crate) fn build(folder: &Path) -> Vec<Value> {
    let path = folder.join("kustomization.yaml");
    let text = fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let read: Kustomization = serde_saphyr::from_str(&text).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    assert_eq!((read.api_version.as_str(), read.kind.as_str()), ("kustomize.config.k8s.io/v1beta1", "Kustomization"));
    let mut resources = Vec::new();
    for resource in &read.resources {
        let path = folder.join(resource);
        if path.is_dir() {
            // Kustomize refuses a base that holds the overlay.
            let (base, overlay) = (path.canonicalize().unwrap(), folder.canonicalize().unwrap());
            assert!(!overlay.starts_with(&base), "{} is within its own base", overlay.display());
            resources.extend(build(&path));
        } else {
            assert!(!resource.contains(".."), "{resource}: kustomize reads no file out of its folder");
            resources.extend(super::documents(&path));
        }
    }
    for Patch { target, patch } in &read.patches {
        let operations: Value = serde_saphyr::from_str(patch).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        let operations: json_patch::Patch = serde_json::from_value(operations).unwrap();
        let version = format!("{}/{}", target.group, target.version);
        let mut found = 0;
        for resource in &mut resources {
            if resource["apiVersion"] == *version
                && resource["kind"] == *target.kind
                && resource["metadata"]["name"] == *target.name
            {
                json_patch::patch(resource, &operations).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
                found += 1;
            }
        }
        assert_eq!(found, 1, "{}: what {} {} patches is not there", path.display(), target.kind, target.name);
    }
    resources
}
