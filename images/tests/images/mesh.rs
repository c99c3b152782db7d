//! The rules of the mesh's fetcher, one by one.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use images::mesh::{LARGEST, LARGEST_MODULE, fits, layer, module, module_of};
use images::{Blob, Form, Image};
use serde_json::json;

use crate::world::{both, hex, shipped, small};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const CONFIG: &str = "application/vnd.module.wasm.config.v1+json";
const WASM: &str = "application/vnd.module.wasm.content.layer.v1+wasm";

/// A layer with a file of that name, which says that it has so many bytes.
pub(crate) fn packed(name: &str, bytes: &[u8], size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_path(name).unwrap();
    header.set_cksum();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(header.as_bytes()).unwrap();
    gzip.write_all(bytes).unwrap();
    gzip.write_all(&vec![0; 512 - bytes.len() % 512 + 1024]).unwrap();
    gzip.finish().unwrap()
}

fn plugin(bytes: &[u8]) -> Vec<u8> {
    packed("plugin.wasm", bytes, bytes.len().try_into().unwrap())
}

/// A manifest of layers of these kinds.
fn manifest(kind: &str, layers: &[&str]) -> Vec<u8> {
    let descriptor = |kind: &str, at: usize| {
        let digest = format!("sha256:{at:064}");
        json!({ "mediaType": kind, "digest": digest, "size": 10 })
    };
    let layers: Vec<_> = layers.iter().enumerate().map(|(at, kind)| descriptor(kind, at)).collect();
    let config = descriptor("application/vnd.oci.image.config.v1+json", 99);
    json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers }).to_string().into_bytes()
}

fn oci(layers: &[&str]) -> Vec<u8> {
    manifest("application/vnd.oci.image.manifest.v1+json", layers)
}

/// The form, and which layer it is.
#[track_caller]
fn taken(manifest: &[u8]) -> (Form, usize) {
    let (form, layer) = layer(manifest).unwrap();
    (form, hex(&layer.digest).parse().unwrap())
}

#[track_caller]
fn refused(manifest: &[u8], because: &str) {
    let said = format!("{:#}", layer(manifest).unwrap_err());
    assert!(said.contains(because), "{said}");
}

#[test]
fn both_forms_are_taken_and_give_the_module() {
    for module in [small(), shipped().unwrap()] {
        for (form, image) in both(&module).unwrap() {
            assert_eq!(layer(&image.manifest.bytes).unwrap().0, form);
            assert_eq!(module_of(&image).unwrap(), module.wasm, "{form:?}");
        }
    }
}

#[test]
fn of_an_image_the_last_layer_counts() {
    assert_eq!(taken(&oci(&[GZIP])), (Form::Image, 0));
    assert_eq!(taken(&oci(&[GZIP, GZIP, GZIP])), (Form::Image, 2));
    refused(&oci(&[GZIP, "application/vnd.oci.image.layer.v1.tar"]), "the last layer is");
    refused(&oci(&[]), "no layers");
}

#[test]
fn a_manifest_of_docker_has_layers_of_docker() {
    let docker = |layers: &[&str]| manifest("application/vnd.docker.distribution.manifest.v2+json", layers);
    assert_eq!(taken(&docker(&[DOCKER])), (Form::Image, 0));
    refused(&docker(&[GZIP]), "the last layer is");
    refused(&docker(&[CONFIG, WASM]), "the last layer is");
    refused(&oci(&[DOCKER]), "the last layer is");
}

#[test]
fn an_artifact_has_exactly_two_layers() {
    assert_eq!(taken(&oci(&[CONFIG, WASM])), (Form::Artifact, 1));
    assert_eq!(taken(&oci(&[WASM, CONFIG])), (Form::Artifact, 0));
    refused(&oci(&[WASM]), "an artifact has two layers, this one 1");
    refused(&oci(&[CONFIG, WASM, CONFIG]), "an artifact has two layers, this one 3");
}

#[test]
fn what_others_push_is_refused() {
    refused(&oci(&[CONFIG, "application/wasm"]), "none is application/vnd.module.wasm.content.layer.v1+wasm");
    refused(&oci(&["application/vnd.oci.image.layer.v1.tar+zstd"]), "the last layer is");
    let index = json!({ "schemaVersion": 2, "manifests": [] });
    refused(index.to_string().as_bytes(), "an index");
    refused(b"{}", "no manifest of an image");
    refused(b"", "no JSON");
}

#[test]
fn the_file_is_plugin_wasm_in_whatever_folder() {
    let wasm = small().wasm;
    let size = wasm.len().try_into().unwrap();
    for name in ["plugin.wasm", "./plugin.wasm", "a/b/plugin.wasm"] {
        assert_eq!(module(Form::Image, &packed(name, &wasm, size)).unwrap(), wasm, "{name}");
    }
    for name in ["filter.wasm", "plugin.wasm.bak", "plugin.wasm/other"] {
        let said = format!("{:#}", module(Form::Image, &packed(name, &wasm, size)).unwrap_err());
        assert!(said.contains("there is no plugin.wasm"), "{name}: {said}");
    }
}

#[test]
fn a_module_has_its_magic_number() {
    assert_eq!(module(Form::Artifact, b"\0asm\x01\0\0\0").unwrap(), b"\0asm\x01\0\0\0");
    for bytes in [&b"\0asm"[..], b"MZ\0\0\0\0\0\0", b""] {
        assert!(module(Form::Artifact, bytes).is_err());
        assert!(module(Form::Image, &plugin(bytes)).is_err());
    }
}

#[test]
fn more_than_the_limit_is_refused_before_it_is_read() {
    let with_size = |size: u64| {
        let text = String::from_utf8(oci(&[CONFIG, WASM])).unwrap();
        text.replace("\"size\":10", &format!("\"size\":{size}")).into_bytes()
    };
    assert_eq!(taken(&with_size(LARGEST)), (Form::Artifact, 1));
    refused(&with_size(LARGEST + 1), "268435456 at most");
    let unpacked = |size| format!("{:#}", module(Form::Image, &packed("plugin.wasm", b"\0asm", size)).unwrap_err());
    assert!(unpacked(LARGEST_MODULE).contains("cut off"), "{}", unpacked(LARGEST_MODULE));
    assert!(unpacked(LARGEST_MODULE + 1).contains("268434944 at most"), "{}", unpacked(LARGEST_MODULE + 1));
    let largest = LARGEST_MODULE.try_into().unwrap();
    assert!(fits(largest) && !fits(largest + 1));
}

#[test]
fn a_layer_that_is_no_archive_or_cut_off_is_refused() {
    let layer = plugin(&shipped().unwrap().wasm);
    for cut in [0, 5, 100, layer.len() / 2] {
        assert!(module(Form::Image, &layer[..cut]).is_err(), "{cut}");
    }
    assert!(module(Form::Image, b"no archive at all").is_err());
}

#[test]
fn an_image_without_its_layer_is_none() {
    let mut image: Image = both(&small()).unwrap().remove(0).1;
    image.blobs.pop();
    image.blobs.push(Blob::new(GZIP, plugin(b"\0asm\x01\0\0\0")).unwrap());
    assert!(module_of(&image).is_err());
}
