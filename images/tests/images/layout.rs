//! What is built: the same bytes each time, with all that should be said of a module, and nothing that is not known.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use flate2::read::GzDecoder;
use images::{Form, Module, layout};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::world::{VERSION, both, hex, shipped, small};

fn manifest(module: &Module, form: Form) -> Value {
    serde_json::from_slice(&layout::image(module, form).unwrap().manifest.bytes).unwrap()
}

/// Every file under it, with its bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else {
            all.push((path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn two_builds_at_two_times_in_two_places_are_the_same_bytes() -> Result<()> {
    let module = shipped()?;
    let mut built = Vec::new();
    for _ in 0..2 {
        let folder = tempdir()?;
        layout::write(folder.path(), VERSION, &both(&module)?)?;
        layout::checksums(folder.path())?;
        built.push(files(folder.path()));
        // Times in archives have whole seconds.
        sleep(Duration::from_millis(1100));
    }
    assert_eq!(built[0], built[1]);
    // Configuration and layer, configuration and module, two manifests; then the index, the layout's mark and the sums.
    assert_eq!(built[0].len(), 9);
    Ok(())
}

#[test]
fn the_bytes_do_not_change_unnoticed() -> Result<()> {
    // A new version of what packs may change them; whoever compares digests must hear of it.
    let digests: Vec<String> = both(&small())?.iter().map(|(_, image)| image.digest().to_owned()).collect();
    assert_eq!(
        digests,
        [
            "sha256:2b8c0ea05394ad9abc321acd125d687155616ec17af08485bfbf9e0569c7137b",
            "sha256:467649baca689b21cdd9208e5a17d100f798ae828eb6d25171031b6a1e179851"
        ]
    );
    Ok(())
}

#[test]
fn an_image_is_one_layer_that_its_configuration_names() -> Result<()> {
    let module = shipped()?;
    let image = layout::image(&module, Form::Image)?;
    let manifest = manifest(&module, Form::Image);
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.oci.image.config.v1+json");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    let mut tar = Vec::new();
    std::io::copy(&mut GzDecoder::new(&image.blobs[1].bytes[..]), &mut tar)?;
    let config: Value = serde_json::from_slice(&image.blobs[0].bytes)?;
    let rootfs = json!({ "type": "layers", "diff_ids": [layout::digest(&tar)] });
    assert_eq!(config, json!({ "architecture": "amd64", "os": "linux", "rootfs": rootfs }));
    // No time and no file name in the header of gzip, and no system.
    assert_eq!(image.blobs[1].bytes[3..8], [0; 5]);
    assert_eq!(image.blobs[1].bytes[9], 255);
    let mut archive = tar::Archive::new(&tar[..]);
    let entries: Vec<_> = archive.entries()?.collect::<Result<_, _>>()?;
    assert_eq!(entries.len(), 1);
    let header = entries[0].header();
    assert_eq!((header.path()?.to_str(), header.mode()?, header.mtime()?), (Some("plugin.wasm"), 0o644, 0));
    assert_eq!((header.uid()?, header.gid()?, header.username()?), (0, 0, Some("")));
    Ok(())
}

#[test]
fn an_artifact_is_two_layers_with_the_module_as_it_is() -> Result<()> {
    let module = shipped()?;
    let image = layout::image(&module, Form::Artifact)?;
    let manifest = manifest(&module, Form::Artifact);
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.module.wasm.config.v1+json");
    let kinds: Vec<_> = manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["mediaType"]).collect();
    assert_eq!(
        kinds,
        ["application/vnd.module.wasm.config.v1+json", "application/vnd.module.wasm.content.layer.v1+wasm"]
    );
    assert_eq!(image.blobs[2].bytes, module.wasm);
    let config: Value = serde_json::from_slice(&image.blobs[0].bytes)?;
    assert_eq!(config, json!({ "type": "envoy_proxy", "abiVersions": ["0.2.1"], "config": {} }));
    Ok(())
}

#[test]
fn what_is_not_known_is_not_said() {
    let about = |module: &Module, form| manifest(module, form)["annotations"].clone();
    let mut expected = json!({
        "org.opencontainers.image.title": "trace-id",
        "org.opencontainers.image.description": "Does something",
        "org.opencontainers.image.version": "1.2.3",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.revision": "0123456789abcdef0123456789abcdef01234567",
        "proxy-wasm.abi": "0.2.1",
    });
    for form in Form::ALL {
        assert_eq!(about(&small(), form), expected);
    }
    let known = Module { source: Some("https://git.example.com/filters".to_owned()), revision: None, ..small() };
    expected.as_object_mut().unwrap().remove("org.opencontainers.image.revision");
    expected["org.opencontainers.image.source"] = json!("https://git.example.com/filters");
    assert_eq!(about(&known, Form::Image), expected);
}

#[test]
fn no_image_of_what_is_no_module_or_has_no_version() {
    let error = |module: Module| format!("{:#}", layout::image(&module, Form::Artifact).unwrap_err());
    assert!(error(Module { wasm: b"plugin".to_vec(), ..small() }).contains("no module that a proxy loads"));
    let whole = shipped().unwrap().wasm;
    let cut = Module { wasm: whole[..whole.len() / 2].to_vec(), ..small() };
    assert!(error(cut).contains("no module that a proxy loads"));
    let other = wat::parse_str("(module)").unwrap();
    assert!(error(Module { wasm: other, ..small() }).contains("exports no version of the Proxy-Wasm ABI"));
    for version in ["1.0.0+1", "", "latest"] {
        let said = error(Module { version: version.to_owned(), ..small() });
        assert!(said.contains("is no version"), "{said}");
    }
}

#[test]
fn a_layout_is_read_as_it_was_written_or_not_at_all() -> Result<()> {
    let folder = tempdir()?;
    let error = |version: &str| format!("{:#}", layout::read(folder.path(), version).unwrap_err());
    let said = error(VERSION);
    assert!(said.contains("there are no images in") && said.contains("make images VERSION=1.2.3"), "{said}");
    let images = both(&small())?;
    layout::write(folder.path(), VERSION, &images)?;
    for ((form, image), (read_form, read)) in images.iter().zip(layout::read(folder.path(), VERSION)?) {
        assert_eq!((*form, &image.manifest.bytes), (read_form, &read.manifest.bytes));
        assert!(image.blobs.iter().map(|blob| &blob.bytes).eq(read.blobs.iter().map(|blob| &blob.bytes)));
    }
    let said = error("2.0.0");
    assert!(said.contains("there is 1.2.3, 1.2.3-artifact, and no 2.0.0"), "{said}");
    let layer = folder.path().join("blobs/sha256").join(hex(&images[0].1.blobs[1].descriptor.digest));
    fs::write(&layer, "something else")?;
    let said = error(VERSION);
    assert!(said.contains("is not what its name says"), "{said}");
    fs::remove_file(layer)?;
    assert!(error(VERSION).contains("make images VERSION=1.2.3"));
    Ok(())
}

#[test]
fn the_checksums_are_such_as_sha256sum_takes() -> Result<()> {
    let folder = tempdir()?;
    layout::write(&folder.path().join("trace-id"), VERSION, &both(&small())?)?;
    layout::checksums(folder.path())?;
    let check =
        || Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(folder.path()).output();
    let output = check()?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout)?.lines().count(), 8);
    fs::write(folder.path().join("trace-id/index.json"), "{}")?;
    assert!(!check()?.status.success());
    Ok(())
}
