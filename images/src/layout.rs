//! From a module to its images, and to files and back.
//!
//! Nothing of the machine or of the moment gets in: no times, no users, sorted JSON. So two builds of the same module have
//! the same digest, and whoever builds the same revision can compare.

use crate::mesh;
use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use oci_client::{
    annotations as names,
    config::{Architecture, ConfigFile, Os, Rootfs},
    manifest::{
        IMAGE_CONFIG_MEDIA_TYPE, IMAGE_LAYER_GZIP_MEDIA_TYPE, ImageIndexEntry, OCI_IMAGE_INDEX_MEDIA_TYPE,
        OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageIndex, OciImageManifest, Platform,
    },
};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, fs, io::Write as _, path::Path};
use wasmparser::{Parser, Payload, Validator, WasmFeatures};
use xtask::release;

/// The annotation that says which version of the Proxy-Wasm ABI the module speaks.
pub const ABI: &str = "proxy-wasm.abi";

/// The configuration of the artifact; as a layer it is the first of the two.
pub const ARTIFACT_CONFIG: &str = "application/vnd.module.wasm.config.v1+json";

/// The module in an artifact, as it is.
pub const ARTIFACT_MODULE: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// The two forms of an image that the mesh takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As a container's image: the file `plugin.wasm` in a layer.
    Image,
    /// As an artifact: the module is a layer.
    Artifact,
}

impl Form {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Image, Self::Artifact];

    /// The tag of a version in this form.
    #[must_use]
    pub fn tag(self, version: &str) -> String {
        match self {
            Self::Image => version.to_owned(),
            Self::Artifact => [version, release::ARTIFACT].concat(),
        }
    }

    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Artifact => "artifact",
        }
    }
}

/// A module, and what its images say of it.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name, which is its repository's last part.
    pub name: String,
    /// What it is.
    pub description: String,
    /// The version, which is its tag.
    pub version: String,
    /// An SPDX expression.
    pub licenses: String,
    /// The commit that it was built from, where that is known.
    pub revision: Option<String>,
    /// Where the sources are, where that is known.
    pub source: Option<String>,
    /// Its bytes.
    pub wasm: Vec<u8>,
}

/// Bytes, and what others call them by.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Digest, size and kind.
    pub descriptor: OciDescriptor,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Names the bytes.
    ///
    /// # Errors
    /// When there are more than a descriptor can say.
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Result<Self> {
        let descriptor = OciDescriptor {
            media_type: media_type.to_owned(),
            digest: digest(&bytes),
            size: bytes.len().try_into()?,
            urls: None,
            annotations: None,
            artifact_type: None,
        };
        Ok(Self { descriptor, bytes })
    }

    /// JSON with sorted keys.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn json(media_type: &str, value: &impl Serialize) -> Result<Self> {
        let mut value = serde_json::to_value(value)?;
        value.sort_all_objects();
        Self::new(media_type, serde_json::to_vec(&value)?)
    }

    fn titled(mut self, title: &str) -> Self {
        let title = (names::ORG_OPENCONTAINERS_IMAGE_TITLE.to_owned(), title.to_owned());
        self.descriptor.annotations = Some(BTreeMap::from([title]));
        self
    }
}

/// A manifest and what it names.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest; its digest is the image's.
    pub manifest: Blob,
    /// Configuration and layers.
    pub blobs: Vec<Blob>,
}

impl Image {
    /// A manifest of these, with these annotations.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(config: Blob, layers: Vec<Blob>, annotations: Option<BTreeMap<String, String>>) -> Result<Self> {
        let manifest = OciImageManifest {
            schema_version: 2,
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: config.descriptor.clone(),
            layers: layers.iter().map(|layer| layer.descriptor.clone()).collect(),
            subject: None,
            artifact_type: None,
            annotations,
        };
        let mut blobs = vec![config];
        blobs.extend(layers);
        Ok(Self { manifest: Blob::json(OCI_IMAGE_MEDIA_TYPE, &manifest)?, blobs })
    }

    /// The image's digest: that of its manifest.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.manifest.descriptor.digest
    }

    /// Bytes in all that is pushed.
    #[must_use]
    pub fn size(&self) -> u64 {
        let sizes = self.parts().into_iter().map(|blob| u64::try_from(blob.bytes.len()).unwrap_or(u64::MAX));
        sizes.fold(0, u64::saturating_add)
    }

    /// The blobs, each once: an artifact's configuration is a layer too.
    #[must_use]
    pub fn parts(&self) -> Vec<&Blob> {
        let mut parts: Vec<&Blob> = Vec::new();
        for blob in self.blobs.iter().chain([&self.manifest]) {
            if parts.iter().all(|part| part.descriptor.digest != blob.descriptor.digest) {
                parts.push(blob);
            }
        }
        parts
    }
}

/// The digest of bytes, as all of OCI writes it.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Builds the image of that form.
///
/// # Errors
/// When the bytes are no module of the Proxy-Wasm ABI, or more than the mesh takes; when the version is none.
pub fn image(module: &Module, form: Form) -> Result<Image> {
    let Module { name, wasm, .. } = module;
    release::version(&module.version)?;
    let abi = abi(wasm).with_context(|| format!("{name} is no module that a proxy loads"))?;
    ensure!(mesh::fits(wasm.len()), "{name} has {} bytes, the mesh takes {} at most", wasm.len(), mesh::LARGEST_MODULE);
    let (config, layers) = match form {
        Form::Image => {
            let tar = tar(wasm)?;
            let config = ConfigFile {
                // There is no other that every mesh pulls for; the module itself runs on any.
                architecture: Architecture::Amd64,
                os: Os::Linux,
                rootfs: Rootfs { r#type: "layers".to_owned(), diff_ids: vec![digest(&tar)] },
                created: None,
                author: None,
                config: None,
                history: None,
            };
            let config = Blob::json(IMAGE_CONFIG_MEDIA_TYPE, &config)?;
            (config, vec![Blob::new(IMAGE_LAYER_GZIP_MEDIA_TYPE, gzip(&tar)?)?])
        }
        Form::Artifact => {
            let config = json!({ "type": "envoy_proxy", "abiVersions": [abi], "config": {} });
            let config = Blob::json(ARTIFACT_CONFIG, &config)?;
            let first = config.clone().titled("runtime-config.json");
            (config, vec![first, Blob::new(ARTIFACT_MODULE, wasm.clone())?.titled(mesh::FILE)])
        }
    };
    Image::new(config, layers, Some(annotations(module, &abi)))
}

fn annotations(module: &Module, abi: &str) -> BTreeMap<String, String> {
    let known = [
        (names::ORG_OPENCONTAINERS_IMAGE_TITLE, Some(&module.name)),
        (names::ORG_OPENCONTAINERS_IMAGE_DESCRIPTION, Some(&module.description)),
        (names::ORG_OPENCONTAINERS_IMAGE_VERSION, Some(&module.version)),
        (names::ORG_OPENCONTAINERS_IMAGE_LICENSES, Some(&module.licenses)),
        (names::ORG_OPENCONTAINERS_IMAGE_REVISION, module.revision.as_ref()),
        (names::ORG_OPENCONTAINERS_IMAGE_SOURCE, module.source.as_ref()),
    ];
    let known = known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.clone())));
    known.chain([(ABI.to_owned(), abi.to_owned())]).collect()
}

/// The version of the ABI, by what the module exports to say so.
fn abi(wasm: &[u8]) -> Result<String> {
    // All of it: one that was cut off has its exports too.
    Validator::new_with_features(WasmFeatures::default()).validate_all(wasm)?;
    for payload in Parser::new(0).parse_all(wasm) {
        if let Payload::ExportSection(section) = payload? {
            for export in section {
                if let Some(version) = export?.name.strip_prefix("proxy_abi_version_") {
                    return Ok(version.replace('_', "."));
                }
            }
        }
    }
    bail!("it exports no version of the Proxy-Wasm ABI")
}

fn tar(wasm: &[u8]) -> Result<Vec<u8>> {
    let mut header = tar::Header::new_ustar();
    header.set_size(wasm.len().try_into()?);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, mesh::FILE, wasm)?;
    Ok(tar.into_inner()?)
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // The header names neither time nor file, and of the system that it is not known.
    let mut gzip = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    Ok(gzip.finish()?)
}

/// Writes a module's images as an OCI layout into a folder that is not there yet; each form has its tag as reference.
///
/// # Errors
/// When a file cannot be written.
pub fn write(folder: &Path, version: &str, images: &[(Form, Image)]) -> Result<()> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| blobs.display().to_string())?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut manifests = Vec::new();
    for (form, image) in images {
        for blob in image.parts() {
            fs::write(blobs.join(hex(&blob.descriptor.digest)?), &blob.bytes)?;
        }
        let reference = (names::ORG_OPENCONTAINERS_IMAGE_REF_NAME.to_owned(), form.tag(version));
        manifests.push(ImageIndexEntry {
            media_type: image.manifest.descriptor.media_type.clone(),
            digest: image.digest().to_owned(),
            size: image.manifest.descriptor.size,
            platform: Some(Platform {
                architecture: Architecture::Amd64,
                os: Os::Linux,
                os_version: None,
                os_features: None,
                variant: None,
                features: None,
            }),
            artifact_type: None,
            annotations: Some(BTreeMap::from([reference])),
        });
    }
    let index = OciImageIndex {
        schema_version: 2,
        media_type: Some(OCI_IMAGE_INDEX_MEDIA_TYPE.to_owned()),
        manifests,
        artifact_type: None,
        annotations: None,
    };
    // Last: without it there is no layout.
    fs::write(folder.join("index.json"), Blob::json(OCI_IMAGE_INDEX_MEDIA_TYPE, &index)?.bytes)?;
    Ok(())
}

/// Reads the images of that version from a layout, and checks every byte of them.
///
/// # Errors
/// When there are none; when a file is not what it was.
pub fn read(folder: &Path, version: &str) -> Result<Vec<(Form, Image)>> {
    let advice = format!("run `make images VERSION={version}`");
    let index = fs::read(folder.join("index.json"))
        .with_context(|| format!("there are no images in {}: {advice}", folder.display()))?;
    let index: OciImageIndex = serde_json::from_slice(&index).with_context(|| folder.display().to_string())?;
    let mut images = Vec::new();
    for form in Form::ALL {
        let tag = form.tag(version);
        let reference = |entry: &ImageIndexEntry| {
            entry.annotations.as_ref()?.get(names::ORG_OPENCONTAINERS_IMAGE_REF_NAME).cloned()
        };
        let Some(entry) = index.manifests.iter().find(|entry| reference(entry).as_ref() == Some(&tag)) else {
            let there: Vec<String> = index.manifests.iter().filter_map(reference).collect();
            bail!("in {} there is {}, and no {tag}: {advice}", folder.display(), there.join(", "));
        };
        let manifest = blob(folder, &entry.media_type, &entry.digest).context(advice.clone())?;
        let parsed: OciImageManifest = serde_json::from_slice(&manifest.bytes)?;
        let mut blobs = Vec::new();
        for descriptor in [&parsed.config].into_iter().chain(&parsed.layers) {
            let blob = blob(folder, &descriptor.media_type, &descriptor.digest).context(advice.clone())?;
            blobs.push(Blob { descriptor: descriptor.clone(), ..blob });
        }
        images.push((form, Image { manifest, blobs }));
    }
    Ok(images)
}

fn blob(folder: &Path, media_type: &str, name: &str) -> Result<Blob> {
    let path = folder.join("blobs/sha256").join(hex(name)?);
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    ensure!(digest(&bytes) == name, "{} is not what its name says", path.display());
    Blob::new(media_type, bytes)
}

fn hex(digest: &str) -> Result<&str> {
    let hex =
        digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    hex.with_context(|| format!("`{digest}` is no SHA-256 digest"))
}

/// Writes `SHA256SUMS` for every file in the folder, as `sha256sum --check` takes it.
///
/// # Errors
/// When a file cannot be read.
pub fn checksums(folder: &Path) -> Result<()> {
    const FILE: &str = "SHA256SUMS";
    let mut folders = vec![folder.to_owned()];
    let mut lines = Vec::new();
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let path = entry?.path();
            let name = path.strip_prefix(folder)?.display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if name != FILE {
                lines.push((name, digest(&fs::read(&path)?)));
            }
        }
    }
    lines.sort();
    let text: String =
        lines.iter().map(|(name, digest)| format!("{}  {name}\n", digest.trim_start_matches("sha256:"))).collect();
    fs::write(folder.join(FILE), text).with_context(|| folder.display().to_string())
}
