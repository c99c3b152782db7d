//! From a crate to a module that the proxy loads: linked, pruned to the callbacks that its filters use, stripped.

use anyhow::{Context as _, Result, bail, ensure};
use kit::Phases;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use walrus::{Module, ModuleConfig, RawCustomSection};
use wasmparser::{Validator, WasmFeatures};

/// What modules are built for.
pub const TARGET: &str = "wasm32-wasip1";

/// What is shipped: crate, and the most that its module may weigh in bytes. Size is load time, about 1 ms of CPU per
/// KB and VM. Of log-scrub 250 KB was the goal, of circuit-breaker 180, of the suite 400, and all are missed: `docs/performance.md` says what was
/// tried.
pub const SHIPPED: [(&str, usize); 5] = [
    ("trace-id", 130_000),
    ("latency", 130_000),
    ("log-scrub", 350_000),
    ("circuit-breaker", 190_000),
    ("suite", 580_000),
];

/// What only tests load, and the example of a filter of one's own.
const TESTED: [&str; 7] = ["noop", "called", "hostcalls", "trap", "duo", "kernels", "api-key"];

/// Built for processors of the proxy's VM that take sixteen bytes at once, which all of V8 do: what reads whole bodies.
const WIDE: [&str; 3] = ["kernels", "log-scrub", "suite"];

/// Built with less copied into its callers, and no loop written out: a tenth less of the module, for a few hundredths more
/// of what a request costs at most. What reads whole bodies would lose by it; `docs/performance.md` has what was measured.
const TERSE: [&str; 2] = ["circuit-breaker", "latency"];

/// Taken as they are linked, with every callback: what others build, and what asks a host about all of them.
const WHOLE: [&str; 6] = ["noop-sdk", "trace-id-sdk", "latency-sdk", "log-scrub-sdk", "circuit-breaker-sdk", "probe"];

/// Written by hand, as text.
const RAW: [&str; 2] = ["floor", "raw"];

/// Kept in every module: what the host knows a module by, and its configuration.
const ALWAYS: [&str; 5] =
    ["memory", "_initialize", "proxy_abi_version_0_2_1", "proxy_on_memory_allocate", "proxy_on_configure"];

/// Kept where a module uses any phase: a request that no filter sees needs no beginning and no end.
const IF_ANY: [&str; 2] = ["proxy_on_context_create", "proxy_on_delete"];

/// Kept where a filter of the module uses the phase: the proxy enters the VM for every callback that it finds.
const BY_PHASE: [(Phases, &str); 10] = [
    (Phases::REQUEST_HEADERS, "proxy_on_request_headers"),
    (Phases::RESPONSE_HEADERS, "proxy_on_response_headers"),
    (Phases::REQUEST_BODY, "proxy_on_request_body"),
    (Phases::RESPONSE_BODY, "proxy_on_response_body"),
    (Phases::REQUEST_TRAILERS, "proxy_on_request_trailers"),
    (Phases::RESPONSE_TRAILERS, "proxy_on_response_trailers"),
    (Phases::LOG, "proxy_on_log"),
    (Phases::CONNECTION, "proxy_on_new_connection"),
    (Phases::TICK, "proxy_on_tick"),
    (Phases::ANSWERED, "proxy_on_http_call_response"),
];

/// Builds every module: shipped ones to `dist`, the others to `target/modules`.
pub(crate) fn build() -> Result<()> {
    let (root, target) = places()?;
    let (dist, tests) = (root.join("dist"), root.join("target/modules"));
    for folder in [&dist, &tests] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    let mut over = Vec::new();
    for (name, budget) in SHIPPED {
        let size = module(&compile(root, &target, name, WIDE.contains(&name))?, &dist, name)?;
        println!("{}", line(name, size, budget));
        if size > budget {
            over.push(name);
        }
    }
    for name in TESTED {
        module(&compile(root, &target, name, WIDE.contains(&name))?, &tests, name)?;
    }
    for name in RAW {
        let wasm = wat::parse_file(root.join(format!("test-harness/modules/{name}.wat")))?;
        fs::write(tests.join(format!("{name}.wasm")), wasm)?;
    }
    for name in WHOLE {
        let wasm = compile(root, &target, name, WIDE.contains(&name))?;
        fs::copy(wasm, tests.join(format!("{name}.wasm")))?;
    }
    ensure!(over.is_empty(), "over budget: {}", over.join(", "));
    Ok(())
}

/// A shipped module as it lies in `dist`, but with the names of its functions at its end.
pub(crate) fn named(name: &str) -> Result<Vec<u8>> {
    let (root, target) = places()?;
    let shipped = root.join("dist").join(format!("{name}.wasm"));
    let shipped = fs::read(&shipped).with_context(|| format!("{}: run `make modules`", shipped.display()))?;
    let named = linked(&compile(root, &target, name, WIDE.contains(&name))?, name, true)?.emit_wasm();
    ensure!(named.starts_with(&shipped), "dist/{name}.wasm is of other sources: run `make modules`");
    Ok(named)
}

/// The project's folder, and the one of its builds.
fn places() -> Result<(&'static Path, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is a member of the workspace")?;
    Ok((root, std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)))
}

/// Builds once more, to `dist/plain`, what is built for sixteen bytes at once: for a proxy whose VM has no such instructions.
/// It does the same, and bodies take longer.
pub(crate) fn plain() -> Result<()> {
    let (root, target) = places()?;
    let to = root.join("dist/plain");
    fs::create_dir_all(&to).with_context(|| format!("cannot make the folder {}", to.display()))?;
    let without = WasmFeatures::default().difference(WasmFeatures::SIMD | WasmFeatures::RELAXED_SIMD);
    for (name, _) in SHIPPED.iter().filter(|(name, _)| WIDE.contains(name)) {
        let size = module(&compile(root, &target, name, false)?, &to, name)?;
        let bytes = fs::read(to.join(format!("{name}.wasm")))?;
        Validator::new_with_features(without)
            .validate_all(&bytes)
            .with_context(|| format!("dist/plain/{name}.wasm"))?;
        println!("dist/plain/{name}.wasm  {size} bytes");
    }
    Ok(())
}

fn line(name: &str, size: usize, budget: usize) -> String {
    let kb = |bytes: usize| format!("{}.{} KB", bytes / 1000, bytes % 1000 / 100);
    format!("dist/{name}.wasm  {:>9} of {:>9}", kb(size), kb(budget))
}

/// Each in a build of its own, so that no other crate's features reach it; in a folder for each set of flags, since cargo
/// would begin anew whenever they change.
fn compile(root: &Path, target: &Path, name: &str, wide: bool) -> Result<PathBuf> {
    let target = match (wide, TERSE.contains(&name)) {
        (true, _) => target.join("wide"),
        (false, true) => target.join("terse"),
        (false, false) => target.to_path_buf(),
    };
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--locked", "--release", "--target", TARGET, "--features", "module", "-p", name])
        .arg("--target-dir")
        .arg(&target)
        .current_dir(root)
        // The same bytes wherever the project lies.
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, name, wide))
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("`{name}` does not build for {TARGET}; if the target is missing: rustup target add {TARGET}");
    }
    Ok(target.join(TARGET).join("release").join(format!("{}.wasm", name.replace('-', "_"))))
}

/// Takes the places of the project and of other crates' sources out of what a module says of itself. Encoded, because a
/// place may hold spaces; and in place of the user's own flags, so that a module is the same wherever it is built.
fn flags(root: &Path, name: &str, wide: bool) -> String {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registries = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok()).into_iter().flatten().flatten();
    let sources = registries.map(|entry| entry.path()).chain([root.to_path_buf()]);
    let places = sources.map(|place| format!("--remap-path-prefix={}/=", place.display()));
    let mut flags: Vec<String> = places.collect();
    if wide {
        flags.push("-Ctarget-feature=+simd128".into());
    }
    if TERSE.contains(&name) {
        let limits = ["inline-threshold=40", "inlinehint-threshold=40", "unroll-threshold=0"];
        flags.extend(limits.map(|limit| format!("-Cllvm-args=-{limit}")));
    }
    flags.join("\u{1f}")
}

/// What was linked, pruned and stripped, but for the names of functions if they are wanted.
fn linked(wasm: &Path, name: &str, names: bool) -> Result<Module> {
    let mut config = ModuleConfig::new();
    config.generate_name_section(names).generate_producers_section(false);
    let mut module = config.parse_file(wasm).with_context(|| wasm.display().to_string())?;
    prune(&mut module).with_context(|| format!("module {name}"))?;
    Ok(module)
}

/// Prunes, strips and writes; the size.
fn module(wasm: &Path, to: &Path, name: &str) -> Result<usize> {
    let bytes = linked(wasm, name, false)?.emit_wasm();
    let path = to.join(format!("{name}.wasm"));
    fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(bytes.len())
}

/// Drops the callbacks that no filter of the module uses, and all that only they needed.
fn prune(module: &mut Module) -> Result<()> {
    let mark: RawCustomSection = module.customs.remove_raw("mesh-filters-phases").context("not a module of the kit")?;
    let Ok(bytes) = mark.data.as_slice().try_into() else {
        bail!("the mark of the phases is {} bytes long", mark.data.len())
    };
    let phases = Phases::from_bytes(bytes);
    let mut wanted = ALWAYS.to_vec();
    if phases != Phases::NONE {
        wanted.extend(IF_ANY);
    }
    wanted.extend(BY_PHASE.iter().filter(|(phase, _)| phases.has(*phase)).map(|(_, name)| name));
    for name in &wanted {
        ensure!(module.exports.iter().any(|export| export.name == *name), "no export {name}");
    }
    let unwanted: Vec<_> =
        module.exports.iter().filter(|export| !wanted.contains(&export.name.as_str())).map(|e| e.id()).collect();
    unwanted.into_iter().for_each(|id| module.exports.delete(id));
    walrus::passes::gc::run(module);
    let customs: Vec<_> = module.customs.iter().map(|(id, _)| id).collect();
    customs.into_iter().for_each(|id| drop(module.customs.delete(id)));
    Ok(())
}
