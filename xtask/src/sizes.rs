//! What is in the shipped modules: bytes of code by crate, of data, and of the rest. `make sizes` writes
//! `docs/sizes.json`, from which the table in `docs/performance.md` is made.
//!
//! A function counts for the crate whose source it is: a generic one for the crate that wrote it and not for the one that
//! needed it, a method of a trait for the crate that implements it, what the compiler writes by a derive for the crate that
//! derives, what drops a value for `core`. What was inlined counts where it was inlined to.

#![allow(clippy::arithmetic_side_effects, reason = "sums of bytes of one file, and places in texts")]

use anyhow::{Context as _, Result, ensure};
use owo_colors::OwoColorize as _;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    fs,
    io::IsTerminal as _,
    iter,
    ops::Range,
    path::PathBuf,
};
use wasmparser::{KnownCustom, Name, Parser, Payload, TypeRef};

use crate::{
    docs::root,
    modules::{self, SHIPPED},
};

/// Of the largest functions, so many are told.
const LARGEST: usize = 15;
/// What a crate has to have in some module for a row of its own.
const ROW: usize = 500;
/// Functions that no Rust crate wrote, or none with a name of its own: arithmetic that wasm lacks, `memcmp`, the
/// compiler's own allocation functions.
const BUILTINS: &str = "compiler-builtins, libc";
const UNKNOWN: &str = "unknown";
/// Of Rust's library.
const LIBRARY: [&str; 3] = ["core", "alloc", "std"];

#[derive(Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    name: String,
    /// The module's.
    bytes: usize,
    /// Of functions, by crate.
    code: BTreeMap<String, usize>,
    data: usize,
    /// Types, imports, tables, exports, and what the sections say of themselves.
    rest: usize,
}

impl Sizes {
    fn sum(&self) -> usize {
        self.code.values().sum::<usize>().saturating_add(self.data).saturating_add(self.rest)
    }
}

/// A function, and how many bytes it takes.
struct Function {
    name: String,
    size: usize,
}

/// Measures all that is shipped, tells, and writes the results.
pub(crate) fn run(functions: bool) -> Result<()> {
    let mut all = Vec::new();
    let mut largest = String::new();
    for (name, _) in SHIPPED {
        let (sizes, mut list) = measure(name, &modules::named(name)?)?;
        all.push(sizes);
        list.sort_by_key(|function| std::cmp::Reverse(function.size));
        let _ = writeln!(largest, "\n{name}");
        for Function { name, size } in list.iter().take(LARGEST) {
            let _ = writeln!(largest, "{size:>7}  {}", demangled(name));
        }
    }
    print!("{}", terminal(&all, std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()));
    if functions {
        print!("{largest}");
    }
    let path = results()?;
    fs::write(&path, serde_json::to_string_pretty(&all)? + "\n").with_context(|| path.display().to_string())
}

/// The table of what was last measured.
pub(crate) fn table() -> Result<String> {
    let path = results()?;
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let all: Vec<Sizes> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    for sizes in &all {
        ensure!(sizes.sum() == sizes.bytes, "{}: what is in {} is not all of it", path.display(), sizes.name);
    }
    Ok(markdown(&all))
}

fn results() -> Result<PathBuf> {
    Ok(root()?.join("docs/sizes.json"))
}

/// Of a module with its names, which are not part of what is shipped. Fails if anything is left over.
fn measure(module: &str, wasm: &[u8]) -> Result<(Sizes, Vec<Function>)> {
    // Magic and version.
    let (mut rest, mut data, mut names) = (8, 0, 0);
    let mut imported = 0_usize;
    let mut bodies = Vec::new();
    let mut called = HashMap::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        let section = payload.as_section().map_or(0, |(_, range)| section(&range));
        match payload {
            Payload::CustomSection(custom) => {
                names = section;
                let KnownCustom::Name(parts) = custom.as_known() else { continue };
                for part in parts {
                    let Name::Function(list) = part? else { continue };
                    for naming in list {
                        let naming = naming?;
                        called.insert(usize::try_from(naming.index)?, naming.name.to_owned());
                    }
                }
            }
            Payload::ImportSection(imports) => {
                rest += section;
                for import in imports.into_imports() {
                    imported += usize::from(matches!(import?.ty, TypeRef::Func(_)));
                }
            }
            Payload::CodeSectionStart { count, range, .. } => {
                let inside = usize::try_from(count).map(leb)?;
                rest += 1 + leb(range.len()) + inside;
            }
            Payload::CodeSectionEntry(body) => bodies.push(body.range().len()),
            Payload::DataSection(_) => data = section,
            _ => rest += section,
        }
    }
    let function = |(at, length): (usize, usize)| Function {
        name: called.remove(&(at + imported)).unwrap_or_default(),
        size: length + leb(length),
    };
    let functions: Vec<Function> = bodies.into_iter().enumerate().map(function).collect();
    let mut code = BTreeMap::<String, usize>::new();
    for Function { name, size } in &functions {
        *code.entry(crate_of(name)).or_default() += size;
    }
    let sizes = Sizes { name: module.to_owned(), bytes: wasm.len() - names, code, data, rest };
    ensure!(sizes.sum() == sizes.bytes, "{module} has {} bytes, and {} were found", sizes.bytes, sizes.sum());
    Ok((sizes, functions))
}

/// Its kind, its length, and what is in it.
fn section(range: &Range<usize>) -> usize {
    1 + leb(range.len()) + range.len()
}

/// How many bytes a number takes.
fn leb(number: usize) -> usize {
    iter::successors(Some(number >> 7), |left| Some(left >> 7)).take_while(|left| *left > 0).count() + 1
}

/// The crate whose source a function is.
fn crate_of(symbol: &str) -> String {
    let found = match symbol {
        "" => return UNKNOWN.to_owned(),
        _ if symbol.starts_with("proxy_") || symbol == "_initialize" => return "kit".to_owned(),
        _ => written_in(symbol).or_else(|| implementor(&demangled(symbol))),
    };
    match found.as_deref() {
        None | Some("compiler_builtins" | "__rustc") => BUILTINS.to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// Where the newer mangling says which crate an `impl` stands in, which no name for readers does.
fn written_in(symbol: &str) -> Option<String> {
    let mut rest = symbol.strip_prefix("_R")?;
    loop {
        let kind = rest.chars().next()?;
        rest = rest.get(1..)?;
        match kind {
            // A name in a path, behind what it names: a type, a value.
            'N' => rest = rest.get(1..)?,
            // Arguments of a generic.
            'I' => {}
            // An `impl`, with where it stands: without and with a trait.
            'M' | 'X' => rest = disambiguated(rest),
            'C' => {
                let rest = disambiguated(rest);
                let digits = rest.find(|c: char| !c.is_ascii_digit())?;
                let (length, name) = rest.split_at_checked(digits)?;
                // Before a name that begins as digits or this do.
                let name = name.strip_prefix('_').unwrap_or(name);
                return name.get(..length.parse().ok()?).map(str::to_owned);
            }
            _ => return None,
        }
    }
}

/// Without the number that tells several of the same name apart.
fn disambiguated(path: &str) -> &str {
    path.strip_prefix('s').and_then(|path| path.split_once('_')).map_or(path, |(_, path)| path)
}

/// As a reader would write it, without hashes.
fn demangled(symbol: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(symbol))
}

/// The crate of a path. Of `<type as trait>` it is the crate that may implement it: that of the type or that of the
/// trait, whichever knows the other.
fn implementor(path: &str) -> Option<String> {
    let path = ["&", "mut ", "*const ", "*mut ", "dyn ", "[", "("].iter().fold(path, |path, sign| {
        let bare = path.trim_start_matches(sign);
        if bare.is_empty() { path } else { bare }
    });
    let Some(inside) = path.strip_prefix('<') else {
        let (name, _) = path.split_once("::")?;
        return name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| name.to_owned());
    };
    let (kind, of) = split(inside);
    let (kind, of) = (implementor(kind), of.and_then(implementor));
    let rank = |name: &Option<String>| match name.as_deref() {
        None => 0,
        Some(name) if LIBRARY.contains(&name) => 1,
        Some(name) if !own(name) => 2,
        Some(_) => 3,
    };
    if rank(&kind) >= rank(&of) { kind } else { of }
}

/// The type, and the trait if there is one, of what stands behind a `<`.
fn split(inside: &str) -> (&str, Option<&str>) {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (at, sign) in inside.char_indices() {
        let (kind, rest) = inside.split_at_checked(at).unwrap_or((inside, ""));
        match sign {
            '<' => depth += 1,
            // Not the arrow of a function.
            '>' if before != '-' => match depth.checked_sub(1) {
                Some(less) => depth = less,
                None => return (kind, None),
            },
            ' ' if depth == 0 && rest.starts_with(" as ") => return (kind, rest.strip_prefix(" as ")),
            _ => {}
        }
        before = sign;
    }
    (inside, None)
}

/// Whether the project wrote it.
fn own(name: &str) -> bool {
    name == "kit" || SHIPPED.iter().any(|(shipped, _)| shipped.replace('-', "_") == name)
}

/// What it is, its bytes in each module, and whether it is of the project.
fn rows(all: &[Sizes]) -> Vec<(String, Vec<usize>, bool)> {
    let column = |value: &dyn Fn(&Sizes) -> usize| all.iter().map(value).collect::<Vec<usize>>();
    let mut names: Vec<&String> = all.iter().flat_map(|sizes| sizes.code.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let of = |name: &String| column(&|sizes| sizes.code.get(name).copied().unwrap_or_default());
    let mut crates: Vec<(&String, Vec<usize>)> = names.into_iter().map(|name| (name, of(name))).collect();
    crates.sort_by_key(|(name, sizes)| (!own(name), std::cmp::Reverse(sizes.iter().sum::<usize>())));
    let large = |(name, sizes): &(&String, Vec<usize>)| own(name) || sizes.iter().any(|size| *size >= ROW);
    let (large, small): (Vec<_>, Vec<_>) = crates.into_iter().partition(large);
    let mut rows: Vec<_> = large.into_iter().map(|(name, sizes)| (name.clone(), sizes, own(name))).collect();
    if !small.is_empty() {
        let of = |sizes: &Sizes| small.iter().filter_map(|(name, _)| sizes.code.get(*name)).sum();
        rows.push((format!("{} smaller crates", small.len()), column(&of), false));
    }
    rows.push(("data".to_owned(), column(&|sizes| sizes.data), false));
    rows.push(("the rest".to_owned(), column(&|sizes| sizes.rest), false));
    rows
}

fn markdown(all: &[Sizes]) -> String {
    let mut out = format!("| bytes |{}\n|", all.iter().map(|sizes| format!(" {} |", sizes.name)).collect::<String>());
    out.push_str(&" --- |".repeat(all.len() + 1));
    for (name, sizes, _) in rows(all) {
        let _ = write!(out, "\n| {name} |");
        for size in sizes {
            let _ = if size == 0 { write!(out, "  |") } else { write!(out, " {size} |") };
        }
    }
    let sums = all.iter().map(|sizes| format!(" **{}** |", sizes.bytes)).collect::<String>();
    let _ = writeln!(out, "\n| **the module** |{sums}");
    out
}

fn terminal(all: &[Sizes], coloured: bool) -> String {
    let rows = rows(all);
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or_default();
    let paint = |text: String, own: bool| match (coloured, own) {
        (false, _) => text,
        (true, true) => text.cyan().to_string(),
        (true, false) => text.dimmed().to_string(),
    };
    let head = all.iter().map(|sizes| format!("{:>22}", sizes.name)).collect::<String>();
    let mut out = format!("{:width$}{head}\n", "bytes");
    for (name, sizes, own) in rows {
        out.push_str(&paint(format!("{name:width$}"), own));
        for (size, Sizes { bytes, .. }) in sizes.into_iter().zip(all) {
            let share = 1000 * size / bytes;
            let share = format!("{}.{}", share / 10, share % 10);
            let cell = if size == 0 { format!("{:>22}", "") } else { format!("{size:>14} {share:>5} %") };
            out.push_str(&paint(cell, own));
        }
        out.push('\n');
    }
    let sums = all.iter().map(|sizes| format!("{:>14}        ", sizes.bytes)).collect::<String>();
    let sums = format!("{:width$}{}", "the module", sums.trim_end());
    let _ = writeln!(out, "{}", if coloured { sums.bold().to_string() } else { sums });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a function of each kind is called, and whose it is.
    #[test]
    fn a_function_is_of_the_crate_that_wrote_it() {
        for (symbol, wanted) in [
            ("_ZN3kit7headers7Headers3get17h39958cd31df6c0e8E", "kit"),
            ("_ZN8trace_id3w3c17parse_traceparent17h73d867835b03640fE", "trace_id"),
            // A filter's, though the trait is the kit's.
            ("_ZN57_$LT$trace_id..TraceId$u20$as$u20$kit..filter..Filter$GT$3log17hfd598b52008f9a68E", "trace_id"),
            // Its type is the kit's, though the trait is serde's and what it is for is a filter's.
            (
                "_ZN65_$LT$kit..config..Fields$u20$as$u20$serde_core..de..MapAccess$GT$15next_value_seed17h0a6270b85179556bE",
                "kit",
            ),
            (
                "_ZN70_$LT$$RF$kit..config..Tree$u20$as$u20$serde_core..de..Deserializer$GT$15deserialize_f6417h7f607dda7ab83f63E",
                "kit",
            ),
            (
                "_ZN131_$LT$$LT$kit..config..Duration$u20$as$u20$serde_core..de..Deserialize$GT$..deserialize..Text$u20$as$u20$serde_core..de..Visitor$GT$9expecting17h26cb1c9132653b7eE",
                "kit",
            ),
            // Generic: of who wrote it.
            ("_ZN10serde_json2de21Deserializer$LT$R$GT$13parse_decimal17h9455f36ab98fedeaE", "serde_json"),
            ("_ZN4core3ptr38drop_in_place$LT$kit..config..Tree$GT$17hd2058b0f9d1d9be2E", "core"),
            ("_ZN46_$LT$T$u20$as$u20$serde_core..de..Expected$GT$3fmt17h588ac41fbc6d5fefE", "serde_core"),
            ("_ZN38_$LT$u64$u20$as$u20$itoa..Unsigned$GT$3fmt17hfcba2a6aa4045520E", "itoa"),
            (
                "_ZN70_$LT$alloc..vec..Vec$LT$T$C$A$GT$$u20$as$u20$core..ops..drop..Drop$GT$4drop17hb8df692ae882c266E",
                "alloc",
            ),
            (
                "_ZN71_$LT$dyn$u20$serde_core..de..Expected$u20$as$u20$core..fmt..Display$GT$3fmt17h7176b855f07fc295E",
                "serde_core",
            ),
            // The newer mangling.
            ("_RNvNtCsi9YzqDQQz2q_5alloc7raw_vec17capacity_overflow", "alloc"),
            ("_RNvXsd_NtNtNtCsdHhIpgkcIfN_4core3fmt3num3impyNtB9_7Display3fmt", "core"),
            ("_RNvMsf_NtNtNtCsdHhIpgkcIfN_4core3fmt3num3impy4__fmt", "core"),
            ("_RNvYNtNtCsi9YzqDQQz2q_5alloc6string6StringNtNtCsdHhIpgkcIfN_4core3fmt5Write9write_fmtB6_", "alloc"),
            ("proxy_on_log", "kit"),
            ("_initialize", "kit"),
            ("__multi3", BUILTINS),
            ("memcmp", BUILTINS),
            ("", UNKNOWN),
        ] {
            assert_eq!(crate_of(symbol), wanted, "{symbol}");
        }
    }

    #[test]
    fn every_byte_is_counted_once() {
        let text = format!(
            r#"(module
                (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
                (memory 1)
                (func ${} (result i32) {} i32.const 0)
                (func $memcmp)
                (func $proxy_on_log (export "proxy_on_log"))
                (data (i32.const 0) "four"))"#,
            "_ZN3kit7headers7Headers3get17h39958cd31df6c0e8E",
            "i32.const 1 drop ".repeat(100),
        );
        let wasm = wat::parse_str(text).unwrap();
        let mut bare = walrus::ModuleConfig::new();
        let bare =
            bare.generate_name_section(false).generate_producers_section(false).parse(&wasm).unwrap().emit_wasm();
        let (sizes, functions) = measure("it", &wasm).unwrap();
        assert_eq!(sizes.bytes, bare.len(), "the names are not part of it");
        assert_eq!(sizes.sum(), sizes.bytes);
        // A length of two bytes, no locals, a hundred times three bytes, and the end.
        assert_eq!(sizes.code, BTreeMap::from([("kit".to_owned(), 306 + 3), (BUILTINS.to_owned(), 3)]));
        // Its kind, its length, one piece: of the first memory, at an expression, with a length.
        assert_eq!(sizes.data, 2 + 1 + 1 + 3 + 1 + 4);
        assert_eq!(functions.iter().map(|function| function.size).collect::<Vec<_>>(), [306, 3, 3]);
        assert_eq!(functions[2].name, "proxy_on_log");
    }

    #[test]
    fn a_number_takes_its_bytes() {
        assert_eq!([0, 127, 128, 16_383, 16_384].map(leb), [1, 1, 2, 2, 3]);
    }
}
