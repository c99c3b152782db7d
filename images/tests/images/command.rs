//! The command: `build`, and what `push` says when all goes well.

use std::fs;

use anyhow::Result;
use images::Form;
use serde_json::Value;
use tempfile::tempdir;
use test_harness::module;
use xtask::SHIPPED;

use crate::world::{NAME, VERSION, at, dist, images, push, registry};

#[tokio::test]
async fn build_makes_images_of_all_that_is_shipped_and_twice_the_same() -> Result<()> {
    let folders = [tempdir()?, tempdir()?];
    let mut sums = Vec::new();
    for folder in &folders {
        for (name, _) in SHIPPED {
            fs::copy(module(name)?, folder.path().join(format!("{name}.wasm")))?;
        }
        // What an older build left.
        fs::create_dir_all(folder.path().join("images/gone"))?;
        let dist = folder.path().display().to_string();
        let run = images(&["--dist", &dist, "--version", VERSION, "build", "--revision", "abc"], &[]).await?;
        run.went_well();
        for (name, _) in SHIPPED {
            assert!(run.out.contains(&format!("/images/{name}\n")), "{run:?}");
        }
        assert!(run.out.contains("revision abc") && run.out.contains("no source: give SOURCE=<url>"), "{run:?}");
        assert!(!folder.path().join("images/gone").exists());
        sums.push(fs::read_to_string(folder.path().join("images/SHA256SUMS"))?);
    }
    assert_eq!(sums[0], sums[1]);
    for (name, _) in SHIPPED {
        for file in [format!("{name}.cdx.json"), format!("{name}/index.json"), format!("{name}/oci-layout")] {
            assert!(sums[0].lines().any(|line| line.ends_with(&format!("  {file}"))), "no {file} in {}", sums[0]);
        }
    }
    let (_, image) = images::layout::read(&folders[0].path().join("images").join(NAME), VERSION)?.remove(0);
    let manifest: Value = serde_json::from_slice(&image.manifest.bytes)?;
    let said = |name: &str| manifest["annotations"][format!("org.opencontainers.image.{name}")].clone();
    assert_eq!([said("revision"), said("licenses"), said("title")], ["abc", "Apache-2.0", NAME]);
    assert_eq!(said("source"), Value::Null);
    assert!(said("description").as_str().unwrap().contains("trace context"));
    Ok(())
}

#[tokio::test]
async fn build_without_modules_says_what_to_do() -> Result<()> {
    let folder = tempdir()?;
    let dist = folder.path().display().to_string();
    images(&["--dist", &dist, "build"], &[]).await?.refused(&["no module", "run `make modules`"]);
    Ok(())
}

#[tokio::test]
async fn push_prints_names_digests_and_sizes() -> Result<()> {
    let (docker, place) = registry().await?;
    let dist = dist()?;
    let run = push(dist.path(), &at(docker.addr()), &["--plain-http"], &[]).await?;
    run.went_well();
    assert!(run.out.starts_with(&format!("{}/{NAME}\n", at(docker.addr()))), "{run:?}");
    for form in Form::ALL {
        let pulled = place.pull(NAME, &form.tag(VERSION)).await?;
        assert!(pulled.module == fs::read(module(NAME)?)?);
        let line = run.out.lines().find(|line| line.contains(&pulled.digest)).expect("a line with the digest");
        assert!(line.contains(&form.tag(VERSION)) && line.ends_with(" KB"), "{line}");
    }
    assert!(run.out.contains("pushed, pulled back and compared; not signed"), "{run:?}");
    // Not a terminal, so no colours.
    assert!(!run.out.contains('\u{1b}') && !run.error.contains('\u{1b}'), "{run:?}");
    Ok(())
}
