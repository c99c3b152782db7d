//! The manifests in `istio/` and `examples/envoy-gateway/`: bases and overlays for kustomize, and a Helm chart. All are made
//! of what [`truth`] says, so that they say the same.

mod chart;
mod kustomize;
mod mesh;
mod resources;
mod truth;
mod yaml;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::docs::root;
use crate::modules::SHIPPED;
use crate::release;

/// Which images the manifests name. It is kept beside them, so that one can see whether they are up to date.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    version: String,
    registry: String,
    /// The SHA-256 digests of the images' manifests, in hex.
    digests: BTreeMap<String, String>,
}

impl Release {
    fn image(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.registry, self.version)
    }

    fn digest(&self, name: &str) -> Option<&str> {
        self.digests.get(name).map(String::as_str)
    }

    fn path() -> Result<PathBuf> {
        Ok(root()?.join("istio/release.json"))
    }

    fn read() -> Result<Self> {
        let path = Self::path()?;
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{}: it belongs to the sources, git has it", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// `[--version V] [--registry R]`: with a registry, the digests of the images that were made; what is not given stays as the
/// release has it, but no digest is taken for another version.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let before = Release::read()?;
    let (mut version, mut registry) = (None, None);
    for pair in arguments.chunks(2) {
        match pair {
            ["--version", text] => version = Some(release::version(text)?),
            ["--registry", text] => registry = Some(release::registry(text)?),
            _ => bail!("usage: xtask manifests [--version <tag>] [--registry <host[:port]/path>]"),
        }
    }
    // Images are of the workspace's version, where nothing else is said.
    let version = version.or_else(|| registry.as_ref().map(|_| env!("CARGO_PKG_VERSION").to_owned()));
    let release = next(before, version, registry, &root()?.join("dist/images"))?;
    let files = generate(&release)?;
    fs::write(Release::path()?, format!("{}\n", serde_json::to_string_pretty(&release)?))?;
    for path in stray(&files)? {
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
        println!("removed {}", path.display());
    }
    for (path, text) in files {
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            fs::create_dir_all(path.parent().context("it is in a folder")?)?;
            fs::write(&path, text)?;
            println!("wrote {}", path.display());
        }
    }
    println!(
        "manifests for {}, {} of {} with digests",
        release.image("<filter>"),
        release.digests.len(),
        SHIPPED.len()
    );
    Ok(())
}

/// The release after it; the images are OCI layouts, a folder for each module.
fn next(before: Release, version: Option<String>, registry: Option<String>, images: &Path) -> Result<Release> {
    let mut release = before;
    if let Some(version) = version.filter(|version| *version != release.version) {
        (release.version, release.digests) = (version, BTreeMap::new());
    }
    if let Some(registry) = registry {
        release.registry = registry;
        for (name, _) in SHIPPED {
            let digest = digest(&images.join(name), &release.version)?.with_context(|| {
                format!(
                    "no image {name}:{0} in {1}, so no digest: run `make push REGISTRY={2} VERSION={0}` first",
                    release.version,
                    images.display(),
                    release.registry
                )
            })?;
            release.digests.insert(name.to_owned(), digest);
        }
    }
    Ok(release)
}

/// Says which manifests are not as they would be generated, for the release that they are for.
pub(crate) fn check() -> Result<()> {
    let files = generate(&Release::read()?)?;
    let mut stale = stray(&files)?;
    stale.extend(
        files
            .into_iter()
            .filter_map(|(path, text)| (fs::read_to_string(&path).ok().as_ref() != Some(&text)).then_some(path)),
    );
    let stale: Vec<String> = stale.iter().map(|path| path.display().to_string()).collect();
    ensure!(stale.is_empty(), "not up to date, run `make manifests`: {}", stale.join(", "));
    Ok(())
}

/// The digest of the image of that tag in an OCI layout, if there is one.
fn digest(layout: &Path, tag: &str) -> Result<Option<String>> {
    let path = layout.join("index.json");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(None) };
    let index: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let manifests = index.get("manifests").and_then(Value::as_array).into_iter().flatten();
    let tagged = |manifest: &&Value| {
        manifest.pointer("/annotations/org.opencontainers.image.ref.name").and_then(Value::as_str) == Some(tag)
    };
    let Some(manifest) = manifests.into_iter().find(tagged) else { return Ok(None) };
    let digest = manifest.get("digest").and_then(Value::as_str).unwrap_or_default();
    let hex =
        digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    Ok(Some(hex.with_context(|| format!("{}: `{digest}` is no SHA-256 digest", path.display()))?.to_owned()))
}

fn generate(release: &Release) -> Result<Vec<(PathBuf, String)>> {
    let (root, filters) = (root()?, truth::all()?);
    let (istio, gateway) = (root.join("istio"), root.join("examples/envoy-gateway"));
    let names: Vec<&str> = filters.iter().map(|filter| filter.name).collect();
    ensure!(
        SHIPPED.iter().all(|(name, _)| names.contains(name)),
        "a module that is shipped has no manifests: {names:?}"
    );
    let mut files = Vec::new();
    for filter in &filters {
        files.extend(kustomize::files(filter, release).into_iter().map(|(path, text)| (istio.join(path), text)));
        let policy = resources::envoy_gateway(filter, &release.image(filter.name), release.digest(filter.name));
        files.push((gateway.join(format!("{}.yaml", filter.name)), policy));
    }
    files.extend(mesh::files(&filters).into_iter().map(|(path, text)| (istio.join(path), text)));
    files.extend(
        chart::files(&filters, release)?.into_iter().map(|(path, text)| (istio.join("chart").join(path), text)),
    );
    let made = "Made by `make manifests`; what it says is in xtask/src/manifests/truth.rs.";
    for (path, text) in &mut files {
        if path.parent().is_some_and(|folder| folder.ends_with("chart/templates")) {
            // Nothing is rendered of it, so that what is left out leaves nothing.
            text.insert_str(0, &format!("{{{{- /* {made} */ -}}}}\n"));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            text.insert_str(0, &format!("# {made}\n"));
        }
    }
    Ok(files)
}

/// Files that are there and are not generated, but those written by hand.
fn stray(files: &[(PathBuf, String)]) -> Result<Vec<PathBuf>> {
    let root = root()?;
    let mut folders = vec![root.join("istio"), root.join("examples/envoy-gateway")];
    let kept = [root.join("istio/README.md"), Release::path()?];
    let mut stray = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = folder.read_dir() else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if !kept.contains(&path) && !files.iter().any(|(file, _)| *file == path) {
                stray.push(path);
            }
        }
    }
    Ok(stray)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_tag() {
        let layout = tempfile::tempdir().unwrap();
        assert_eq!(digest(layout.path(), "1.0.0").unwrap(), None);
        let write = |digest: &str| {
            let entry = |tag: &str, digest: &str| serde_json::json!({ "digest": digest, "annotations": { "org.opencontainers.image.ref.name": tag } });
            let other = format!("sha256:{}", "b".repeat(64));
            let index = serde_json::json!({ "manifests": [entry("1.0.0-artifact", &other), entry("1.0.0", digest)] });
            fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
        };
        write(&format!("sha256:{}", "a".repeat(64)));
        assert_eq!(digest(layout.path(), "1.0.0").unwrap(), Some("a".repeat(64)));
        assert_eq!(digest(layout.path(), "2.0.0").unwrap(), None);
        write("sha512:00");
        assert!(digest(layout.path(), "1.0.0").is_err());
    }

    #[test]
    fn a_release_keeps_what_was_not_asked_for() {
        let images = tempfile::tempdir().unwrap();
        let image = |name: &str, version: &str| {
            let entry = serde_json::json!({
                "digest": format!("sha256:{}", digest_of(name)),
                "annotations": { "org.opencontainers.image.ref.name": version },
            });
            fs::create_dir_all(images.path().join(name)).unwrap();
            let index = serde_json::json!({ "manifests": [entry] }).to_string();
            fs::write(images.path().join(name).join("index.json"), index).unwrap();
        };
        let release = || Release { version: "1.0.0".into(), registry: "a/b".into(), digests: BTreeMap::new() };
        let all: BTreeMap<String, String> =
            SHIPPED.iter().map(|(name, _)| ((*name).to_owned(), digest_of(name))).collect();

        // A module without an image is no release.
        for (name, _) in SHIPPED.iter().skip(1) {
            image(name, "1.0.0");
        }
        let why = next(release(), None, Some("c/d".into()), images.path()).unwrap_err().to_string();
        assert!(why.starts_with(&format!("no image {}:1.0.0 in ", SHIPPED[0].0)), "{why}");
        assert!(why.ends_with("run `make push REGISTRY=c/d VERSION=1.0.0` first"), "{why}");
        image(SHIPPED[0].0, "1.0.0");
        let released = next(release(), None, Some("c/d".into()), images.path()).unwrap();
        assert_eq!((released.registry.as_str(), &released.digests), ("c/d", &all));

        // Nothing asked for: nothing changes. Another version: no digest of this one.
        let same = next(next(released, None, None, images.path()).unwrap(), Some("1.0.0".into()), None, images.path());
        let same = same.unwrap();
        assert_eq!((same.registry.as_str(), &same.digests), ("c/d", &all));
        let other = next(same, Some("2.0.0".into()), None, images.path()).unwrap();
        assert_eq!((other.version.as_str(), other.registry.as_str(), other.digests.len()), ("2.0.0", "c/d", 0));
        assert!(next(other, None, Some("c/d".into()), images.path()).is_err(), "images of another version");
    }

    #[test]
    fn a_release_with_digests_has_them_in_every_resource() {
        let of = digest_of;
        let digests = SHIPPED.iter().map(|(name, _)| ((*name).to_owned(), of(name))).collect();
        let release = Release { version: "9.8.7".into(), registry: "localhost:5000/a".into(), digests };
        let mut seen = 0;
        for (path, text) in generate(&release).unwrap() {
            let Some((name, _)) =
                SHIPPED.iter().find(|(name, _)| text.contains(&format!("localhost:5000/a/{name}:9.8.7")))
            else {
                continue;
            };
            assert!(text.contains(&format!("sha256: \"{}\"", of(name))), "{}", path.display());
            seen += 1;
        }
        // Three resources of Istio and one of Envoy Gateway for each.
        assert_eq!(seen, 4 * SHIPPED.len());
        let values = generate(&release).unwrap().into_iter().find(|(path, _)| path.ends_with("values.yaml")).unwrap().1;
        assert!(SHIPPED.iter().all(|(name, _)| values.contains(&of(name))), "{values}");
        assert!(values.contains("version: \"9.8.7\"") && values.contains("registry: \"localhost:5000/a\""), "{values}");
    }

    /// Another for each name.
    fn digest_of(name: &str) -> String {
        name.bytes().map(|byte| format!("{byte:02x}")).collect::<String>().chars().cycle().take(64).collect()
    }

    #[test]
    fn what_is_not_generated_is_stray() {
        let files = generate(&Release::read().unwrap()).unwrap();
        assert_eq!(stray(&files).unwrap(), Vec::<PathBuf>::new());
        let (gone, rest) = files.split_first().unwrap();
        assert_eq!(stray(rest).unwrap(), vec![gone.0.clone()]);
    }
}
