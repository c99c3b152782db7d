//! A real registry: what is pushed there comes back from there, by the mesh's rules.

use anyhow::Result;
use images::{Blob, Form, Image, layout};
use serde_json::{Value, json};
use test_harness::{H1, Request, root};

use crate::mesh::packed;
use crate::world::{NAME, VERSION, both, registry, shipped, small};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test]
async fn what_is_pushed_comes_back_by_tag_and_by_digest() -> Result<()> {
    let (docker, place) = registry().await?;
    let module = shipped()?;
    for (form, image) in both(&module)? {
        let tag = form.tag(VERSION);
        let mut sent = 0;
        place.push(NAME, &tag, &image, |bytes| sent += bytes).await?;
        assert_eq!(sent, image.size());
        for reference in [tag.as_str(), image.digest()] {
            let pulled = place.pull(NAME, reference).await?;
            assert_eq!((pulled.form, pulled.digest.as_str()), (form, image.digest()), "{reference}");
            assert!(pulled.module == module.wasm, "{reference}");
        }
        // The digest is that of the manifest, as the registry says it too.
        let accept = "application/vnd.oci.image.manifest.v1+json";
        let request = Request::get(&format!("/v2/filters/{NAME}/manifests/{tag}")).header("accept", accept);
        let response = H1::connect(docker.addr()).await?.send(&request.header("connection", "close")).await?;
        assert_eq!(response.headers.text("docker-content-digest").as_deref(), Some(image.digest()));
        assert_eq!(response.headers.text("content-type").as_deref(), Some(accept));
        assert_eq!(response.text().as_bytes(), image.manifest.bytes);
    }
    Ok(())
}

#[tokio::test]
async fn a_second_push_changes_nothing_and_a_new_module_moves_the_tag() -> Result<()> {
    let (_docker, place) = registry().await?;
    let old = layout::image(&small(), Form::Image)?;
    let new = layout::image(&shipped()?, Form::Image)?;
    for (image, times) in [(&old, 2), (&new, 1)] {
        for _ in 0..times {
            place.push(NAME, VERSION, image, |_| ()).await?;
        }
        assert_eq!(place.pull(NAME, VERSION).await?.digest, image.digest());
    }
    // Who has the digest has the old one still.
    assert_eq!(place.pull(NAME, old.digest()).await?.module, small().wasm);
    Ok(())
}

#[tokio::test]
async fn what_the_mesh_refuses_is_refused_from_the_registry() -> Result<()> {
    let (_docker, place) = registry().await?;
    let [(_, image), (_, artifact)] = both(&small())?.try_into().unwrap();
    place.push(NAME, VERSION, &image, |_| ()).await?;
    let entry = json!({
        "mediaType": image.manifest.descriptor.media_type, "digest": image.digest(),
        "size": image.manifest.bytes.len(), "platform": { "architecture": "amd64", "os": "linux" },
    });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    let index = Image { manifest: Blob::json(INDEX, &index)?, blobs: Vec::new() };
    let [config, module] = [&artifact.blobs[0], &artifact.blobs[2]].map(Clone::clone);
    let single = Image::new(config.clone(), vec![module.clone()], None)?;
    let other = Blob::new("application/wasm", module.bytes)?;
    let unknown = Image::new(config.clone(), vec![config, other], None)?;
    let wasm = small().wasm;
    let gzip = &image.blobs[1].descriptor.media_type;
    let misnamed = Blob::new(gzip, packed("filter.wasm", &wasm, wasm.len().try_into()?))?;
    let misnamed = Image::new(image.blobs[0].clone(), vec![misnamed], None)?;
    let cases = [
        ("index", index, "an index"),
        ("single", single, "two layers"),
        ("unknown", unknown, "the last layer is application/wasm"),
        ("misnamed", misnamed, "there is no plugin.wasm"),
    ];
    for (tag, image, because) in cases {
        place.push(NAME, tag, &image, |_| ()).await?;
        let said = format!("{:#}", place.pull(NAME, tag).await.unwrap_err());
        assert!(said.contains("the mesh does not take it") && said.contains(because), "{tag}: {said}");
    }
    // Of two layers the last has the module, whatever the first has.
    let first = Blob::new(gzip, packed("plugin.wasm", b"\0asmother", 9))?;
    let two = Image::new(image.blobs[0].clone(), vec![first, image.blobs[1].clone()], None)?;
    place.push(NAME, "two", &two, |_| ()).await?;
    assert_eq!(place.pull(NAME, "two").await?.module, wasm);
    Ok(())
}

#[tokio::test]
async fn what_is_not_there_is_none_and_no_error() -> Result<()> {
    let (_docker, place) = registry().await?;
    assert_eq!(place.manifest(NAME, VERSION).await?, None);
    place.push(NAME, VERSION, &layout::image(&small(), Form::Image)?, |_| ()).await?;
    assert_eq!(place.manifest(NAME, "2.0.0").await?, None);
    let said = format!("{:#}", place.pull(NAME, "2.0.0").await.unwrap_err());
    assert!(said.contains("there is no") && said.contains("filters/trace-id:2.0.0"), "{said}");
    let manifest: Value = serde_json::from_slice(&place.manifest(NAME, VERSION).await?.unwrap())?;
    assert_eq!(manifest["schemaVersion"], 2);
    Ok(())
}

#[tokio::test]
async fn the_registry_is_the_pinned_one_and_goes_with_its_value() -> Result<()> {
    use test_harness::registry::VERSION;
    let pin = root().join(format!("test-harness/debian/docker-registry/{VERSION}.txt"));
    assert!(pin.is_file(), "{}", pin.display());
    let (docker, _) = registry().await?;
    let given = std::env::var_os("DOCKER_REGISTRY").is_some_and(|directory| !directory.is_empty());
    assert!(given || docker.log().contains(&format!("\"version\":\"{VERSION}")), "{}", docker.log());
    let pid = docker.pid();
    drop(docker);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}
