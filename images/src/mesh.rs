//! What the mesh's fetcher takes out of an image, and what it refuses: its rules, so that what was pushed can be tried.
//!
//! The rules are those of Istio's agent. It pulls by tag or digest, and compares the digest that one configured with that
//! of the manifest, not with the module's.

use crate::layout::{ARTIFACT_MODULE, Form, Image};
use anyhow::{Context as _, Result, bail, ensure};
use flate2::read::GzDecoder;
use oci_client::manifest::{
    IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OciDescriptor,
    OciImageManifest,
};
use serde_json::Value;
use std::io::Read as _;

/// The most that it reads of a layer, unpacked where it is packed, in bytes.
pub const LARGEST: u64 = 256 * 1024 * 1024;

/// The name of the file with the module, in an image that is no artifact.
pub const FILE: &str = "plugin.wasm";

/// The most that a module may have, in either form: an archive has a head of 512 bytes before it.
pub const LARGEST_MODULE: u64 = LARGEST - 512;

/// Whether a module of that size is taken.
#[must_use]
pub fn fits(size: usize) -> bool {
    u64::try_from(size).is_ok_and(|size| size <= LARGEST_MODULE)
}

/// The layer that the module is in, and how.
///
/// # Errors
/// When the fetcher would refuse the manifest; the message says why.
pub fn layer(manifest: &[u8]) -> Result<(Form, OciDescriptor)> {
    let value: Value = serde_json::from_slice(manifest).context("the manifest is no JSON")?;
    ensure!(
        value.get("manifests").is_none(),
        "it is an index of several images, and the digest would be that of the index: push a single image"
    );
    let manifest: OciImageManifest = serde_json::from_value(value).context("it is no manifest of an image")?;
    let wanted = match manifest.media_type.as_deref() {
        Some(IMAGE_MANIFEST_MEDIA_TYPE) => IMAGE_DOCKER_LAYER_GZIP_MEDIA_TYPE,
        _ => IMAGE_LAYER_GZIP_MEDIA_TYPE,
    };
    let last = manifest.layers.last().context("it has no layers")?;
    let (form, layer) = if last.media_type == wanted {
        (Form::Image, last)
    } else {
        let found = manifest.layers.iter().find(|layer| layer.media_type == ARTIFACT_MODULE);
        let found = found.filter(|_| wanted == IMAGE_LAYER_GZIP_MEDIA_TYPE);
        let layer = found.with_context(|| {
            format!("the last layer is {}, not {wanted}, and none is {ARTIFACT_MODULE}", last.media_type)
        })?;
        ensure!(manifest.layers.len() == 2, "an artifact has two layers, this one {}", manifest.layers.len());
        (Form::Artifact, layer)
    };
    ensure!(
        u64::try_from(layer.size).is_ok_and(|size| size <= LARGEST),
        "the layer has {} bytes, the mesh takes {LARGEST} at most",
        layer.size
    );
    Ok((form, layer.clone()))
}

/// The module in that layer.
///
/// # Errors
/// When there is none that the fetcher would take.
pub fn module(form: Form, layer: &[u8]) -> Result<Vec<u8>> {
    let module = match form {
        Form::Image => unpack(layer)?,
        Form::Artifact => layer.to_vec(),
    };
    ensure!(fits(module.len()), "the module has more than {LARGEST_MODULE} bytes");
    ensure!(module.len() >= 8 && module.starts_with(b"\0asm"), "it is no WebAssembly");
    Ok(module)
}

/// The module in an image that is here.
///
/// # Errors
/// When there is none that the fetcher would take.
pub fn module_of(image: &Image) -> Result<Vec<u8>> {
    let (form, layer) = layer(&image.manifest.bytes)?;
    let blob = image.blobs.iter().find(|blob| blob.descriptor.digest == layer.digest);
    module(form, &blob.context("the image is without the layer that it names")?.bytes)
}

fn unpack(layer: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(layer).take(LARGEST));
    for entry in archive.entries().context("the layer is no archive")? {
        let entry = entry.context("the layer is no archive, compressed by gzip")?;
        if entry.path()?.file_name().is_some_and(|name| name == FILE) {
            let size = entry.size();
            ensure!(size <= LARGEST_MODULE, "{FILE} has {size} bytes, the mesh takes {LARGEST_MODULE} at most");
            let mut module = Vec::new();
            entry.take(size).read_to_end(&mut module).context("the layer is cut off")?;
            ensure!(u64::try_from(module.len()) == Ok(size), "{FILE} is cut off");
            return Ok(module);
        }
    }
    bail!("there is no {FILE} in the layer")
}
