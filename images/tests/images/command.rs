//! The command: `build`, and what `push` says when all goes well.

use std::fs;

use anyhow::Result;
use images::{Form, Module};
use serde_json::Value;
use tempfile::tempdir;
use test_harness::module;
use xtask::SHIPPED;

use crate::world::{Line, NAME, VERSION, at, dist, dist_of, images, make, push, registry, shipped, small};

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

#[tokio::test]
async fn a_build_that_fails_leaves_what_was_there_and_nothing_else() -> Result<()> {
    let folder = tempdir()?;
    for (name, _) in SHIPPED {
        fs::copy(module(NAME)?, folder.path().join(format!("{name}.wasm")))?;
    }
    let dist = folder.path().display().to_string();
    images(&["--dist", &dist, "--version", VERSION, "build", "--revision", "abc"], &[]).await?.went_well();
    let names = || -> Result<Vec<_>> {
        let mut names: Vec<_> = folder.path().read_dir()?.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        Ok(names)
    };
    let sums = || fs::read_to_string(folder.path().join("images/SHA256SUMS"));
    let (before, what) = (names()?, sums()?);
    let (last, _) = SHIPPED[SHIPPED.len() - 1];
    // All but the last are right.
    let wasm = folder.path().join(format!("{last}.wasm"));
    fs::write(&wasm, "no module")?;
    let again = ["--dist", &dist, "--version", "2.0.0", "build", "--revision", "def"];
    images(&again, &[]).await?.refused(&[&format!("{last} is no module that a proxy loads")]);
    assert_eq!((names()?, sums()?), (before, what.clone()));
    assert!(images::layout::read(&folder.path().join("images").join(NAME), VERSION).is_ok());
    fs::remove_file(&wasm)?;
    images(&again, &[]).await?.refused(&["no module", "run `make modules`"]);
    assert_eq!(sums()?, what);
    Ok(())
}

/// Two modules, as others of the same names and version.
fn others() -> Result<[Module; 2]> {
    let one = Module { revision: Some("another".to_owned()), ..small() };
    Ok([Module { name: "suite".to_owned(), ..one.clone() }, one])
}

#[tokio::test]
async fn a_tag_that_is_there_with_another_image_is_moved_only_when_told_to() -> Result<()> {
    let (docker, place) = registry().await?;
    let (first, to) = (dist()?, at(docker.addr()));
    push(first.path(), &to, &["--plain-http"], &[]).await?.went_well();
    // The same once more is well: nothing moves.
    let run = push(first.path(), &to, &["--plain-http"], &[]).await?;
    run.went_well();
    assert!(!run.out.contains("moved"), "{run:?}");
    let was = [place.pull(NAME, VERSION).await?.digest, place.pull(NAME, &Form::Artifact.tag(VERSION)).await?.digest];

    let [suite, one] = others()?;
    let second = dist_of(&[&suite, &one])?;
    let is: Vec<String> = images::layout::read(&second.path().join("images").join(NAME), VERSION)?
        .into_iter()
        .map(|(_, image)| image.digest().to_owned())
        .collect();
    let sent = |docker: &test_harness::DockerRegistry| {
        docker
            .log()
            .lines()
            .filter(|line| ["POST", "PUT", "PATCH"].iter().any(|m| line.contains(&format!("\"{m}"))))
            .count()
    };
    let before = sent(&docker);
    assert!(before > 0, "{}", docker.log());
    // The suite, which is not there yet, comes after: it is not pushed either.
    let run = push(second.path(), &to, &["--plain-http", "suite"], &[]).await?;
    run.refused(&["nothing was pushed", "give another VERSION, or MOVE=1 to move them"]);
    for (form, (was, is)) in Form::ALL.into_iter().zip(was.iter().zip(&is)) {
        let line = format!("  {to}/{NAME}:{} was {was}, and is {is} here", form.tag(VERSION));
        assert!(run.error.lines().any(|said| said == line), "no {line:?} in {}", run.error);
    }
    assert_eq!(sent(&docker), before, "{}", docker.log());
    assert_eq!(place.manifest("suite", VERSION).await?, None);
    assert_eq!(place.pull(NAME, VERSION).await?.digest, was[0]);

    // One that breaks while it moves the tag leaves that where it was.
    let line = Line::cut_after(docker.addr(), "PUT /v2/filters/trace-id/manifests/1.2.3 HTTP", 100).await?;
    push(second.path(), &at(line.addr), &["--plain-http", "--move"], &[])
        .await?
        .refused(&["trace-id:1.2.3 was not pushed"]);
    assert!(line.is_cut());
    assert_eq!(place.pull(NAME, VERSION).await?.digest, was[0]);

    let run = push(second.path(), &to, &["--plain-http", "--move", "suite"], &[]).await?;
    run.went_well();
    assert!(
        run.out.contains(&format!("moved:\n  {to}/{NAME}:{VERSION} was {}, and is {} here", was[0], is[0])),
        "{run:?}"
    );
    assert_eq!(place.pull(NAME, VERSION).await?.digest, is[0]);
    assert_eq!(place.pull("suite", VERSION).await?.module, suite.wasm);
    // Who has the digest has the old one still.
    assert!(place.pull(NAME, &was[0]).await?.module == shipped()?.wasm);
    Ok(())
}

#[tokio::test]
async fn make_says_what_is_wrong_with_a_push_before_it_builds_anything() -> Result<()> {
    let place = "REGISTRY=127.0.0.1:1/filters";
    for (given, says) in [
        (&["REGISTRY="][..], "give REGISTRY=<host[:port]/path>"),
        (&["REGISTRY=https://registry.example.com/a"], "begins with a scheme"),
        (&["REGISTRY=registry.example.com/A"], "`A` in `registry.example.com/A`"),
        (&[place, "VERSION=latest"], "`latest` is no version"),
        (&[place, "NAMES=trace-id nonsense"], "no module nonsense, there is: trace-id, latency"),
        (&[place, "SIGN_KEY=/no/such/key"], "the key /no/such/key"),
    ] {
        let (run, notes) = make(&[&["push"], given].concat()).await?;
        run.refused(&[says]);
        assert!(notes.lines().all(|line| line.contains(" -- push ") && line.contains(" --check ")), "{notes}");
    }
    let (run, notes) = make(&["verify", place, "KEY=/no/such/key"]).await?;
    run.refused(&["the key /no/such/key"]);
    assert_eq!(notes.lines().count(), 1, "{notes}");
    // What make would do: look, build, push.
    let (run, _) = make(&["--dry-run", "push", place, "MOVE=1"]).await?;
    run.went_well();
    let steps = [" --move --check --registry ", "xtask -- modules", " -- build", " --move --registry "];
    let at: Vec<Option<usize>> = steps.iter().map(|step| run.out.find(step)).collect();
    assert!(at.iter().all(Option::is_some) && at.is_sorted(), "{at:?} in {}", run.out);
    let (run, _) = make(&["--dry-run", "push", place]).await?;
    assert!(!run.out.contains("--move"), "{}", run.out);
    Ok(())
}
