//! What a module is made of, as CycloneDX: the crates that its build compiles into it, and Rust's standard library.
//!
//! Cargo says which: for the module's target and features alone, without what only builds or tests need. There is no time
//! and no random number in it, so the same sources make the same list.

use crate::layout::{Module, digest};
use anyhow::{Context as _, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand, Package};
use cyclonedx_bom::models::{
    bom::{Bom, SpecVersion},
    component::{Classification, Component, Components},
    dependency::{Dependencies, Dependency},
    hash::{Hash, HashAlgorithm, HashValue, Hashes},
    license::{LicenseChoice, Licenses},
    metadata::Metadata as BomMetadata,
};
use cyclonedx_bom::{external_models::uri::Purl, prelude::NormalizedString};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use xtask::TARGET;

/// The crates of the workspace and all that they need, as Cargo and its lock file tell.
#[derive(Debug)]
pub struct Crates {
    root: PathBuf,
    metadata: Metadata,
    checksums: BTreeMap<Crate, String>,
    rust: String,
}

/// Name and version.
type Crate = (String, String);

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Crates {
    /// Reads the workspace in that folder.
    ///
    /// # Errors
    /// When Cargo or rustc cannot tell.
    pub fn read(root: &Path) -> Result<Self> {
        let metadata = MetadataCommand::new().current_dir(root).other_options(vec!["--locked".to_owned()]).exec()?;
        let lock: Lock = toml::from_str(&fs::read_to_string(root.join("Cargo.lock"))?)?;
        let checksum = |locked: Locked| Some(((locked.name, locked.version), locked.checksum?));
        let rust = told(root, program("RUSTC", "rustc"), &["-vV"])?;
        let rust = rust.lines().find_map(|line| line.strip_prefix("release: ")).context("rustc says no release")?;
        Ok(Self {
            root: root.to_owned(),
            metadata,
            checksums: lock.package.into_iter().filter_map(checksum).collect(),
            rust: rust.to_owned(),
        })
    }

    /// The crate of that name in the workspace.
    ///
    /// # Errors
    /// When there is none.
    pub fn member(&self, name: &str) -> Result<&Package> {
        let member = self.metadata.workspace_packages().into_iter().find(|package| package.name == name);
        member.with_context(|| format!("no crate {name} in the workspace"))
    }

    /// The list for a module, as JSON.
    ///
    /// # Errors
    /// When Cargo cannot tell; when a crate has no licence.
    pub fn bom(&self, module: &Module) -> Result<Vec<u8>> {
        let needs = self.needs(&module.name)?;
        let mut components = Vec::new();
        let mut dependencies = Vec::new();
        let own = (module.name.clone(), self.member(&module.name)?.version.to_string());
        let std = format!("std@{}", self.rust);
        for (of, on) in &needs {
            let on = on.iter().map(reference).chain((*of == own).then(|| std.clone()));
            dependencies.push(Dependency { dependency_ref: reference(of), dependencies: on.collect() });
            if *of != own {
                components.push(self.component(of)?);
            }
        }
        let mut rust = Component::new(Classification::Library, "std", &self.rust, Some(std.clone()));
        rust.licenses = licences("MIT OR Apache-2.0");
        rust.description =
            Some(NormalizedString::new("Rust's standard library, as it comes compiled with the compiler"));
        rust.purl = Some(Purl::new("generic", "rust", &self.rust)?);
        components.push(rust);
        dependencies.push(Dependency { dependency_ref: std, dependencies: Vec::new() });
        let mut whole =
            Component::new(Classification::Application, &module.name, &module.version, Some(reference(&own)));
        whole.description = Some(NormalizedString::new(&module.description));
        whole.licenses = licences(&module.licenses);
        whole.hashes = Some(sha256(digest(&module.wasm).trim_start_matches("sha256:")));
        let bom = Bom {
            version: 1,
            serial_number: None,
            metadata: Some(BomMetadata { component: Some(whole), ..BomMetadata::default() }),
            components: Some(Components(components)),
            dependencies: Some(Dependencies(dependencies)),
            spec_version: SpecVersion::V1_5,
            ..Bom::default()
        };
        let mut json = Vec::new();
        bom.output_as_json(&mut json, SpecVersion::V1_5)?;
        let mut value: Value = serde_json::from_slice(&json)?;
        value.sort_all_objects();
        Ok(format!("{value:#}\n").into_bytes())
    }

    fn component(&self, of: &Crate) -> Result<Component> {
        let (name, version) = of;
        let package = self.metadata.packages.iter().find(|p| p.name == *name && p.version.to_string() == *version);
        let package = package.with_context(|| format!("Cargo does not know {name} {version}"))?;
        let mut component = Component::new(Classification::Library, name, version, Some(reference(of)));
        component.licenses =
            licences(package.license.as_deref().with_context(|| format!("{name} {version} names no licence"))?);
        component.description = package.description.as_deref().map(|text| NormalizedString::new(text.trim()));
        // A member of the workspace is on no registry, so nothing there is called by its name.
        if package.source.is_some() {
            component.purl = Some(Purl::new("cargo", name, version)?);
            component.hashes = self.checksums.get(of).map(|checksum| sha256(checksum));
        }
        Ok(component)
    }

    /// Every crate in the module, and which each needs.
    fn needs(&self, name: &str) -> Result<BTreeMap<Crate, BTreeSet<Crate>>> {
        let arguments = ["tree", "--locked", "--package", name, "--target", TARGET, "--features", "module"];
        let shape = ["--edges", "normal,no-proc-macro", "--prefix", "depth", "--no-dedupe", "--format", " {p}"];
        let tree = told(&self.root, program("CARGO", "cargo"), &[&arguments[..], &shape].concat())?;
        let mut needs = BTreeMap::<Crate, BTreeSet<Crate>>::new();
        let mut path: Vec<Crate> = Vec::new();
        for line in tree.lines() {
            let mut words = line.split_whitespace();
            let mut word = || words.next().with_context(|| format!("cargo tree: {line}"));
            let (depth, name, version) = (word()?.parse::<usize>()?, word()?, word()?);
            let this = (name.to_owned(), version.trim_start_matches('v').to_owned());
            path.truncate(depth);
            if let Some(of) = path.last() {
                needs.entry(of.clone()).or_default().insert(this.clone());
            }
            needs.entry(this.clone()).or_default();
            path.push(this);
        }
        ensure!(!needs.is_empty(), "cargo tree says nothing about {name}");
        Ok(needs)
    }
}

fn reference((name, version): &Crate) -> String {
    format!("{name}@{version}")
}

fn licences(expression: &str) -> Option<Licenses> {
    // An old way of saying "or", which is not SPDX.
    Some(Licenses(vec![LicenseChoice::expression(&expression.replace('/', " OR "))]))
}

fn sha256(hex: &str) -> Hashes {
    Hashes(vec![Hash { alg: HashAlgorithm::SHA_256, content: HashValue(hex.to_owned()) }])
}

fn program(variable: &str, name: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| name.into())
}

/// What a program prints.
fn told(root: &Path, program: OsString, arguments: &[&str]) -> Result<String> {
    let what = format!("{} {}", program.display(), arguments.join(" "));
    let output = Command::new(program).args(arguments).current_dir(root).output().with_context(|| what.clone())?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
