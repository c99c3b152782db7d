//! What the pages say of this project: their links lead somewhere, and the targets of make that they name are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// Folders in which nobody writes pages.
const BUILT: [&str; 4] = ["target", "dist", ".tools", ".git"];

/// Says which links and targets of make are wrong.
pub(crate) fn check(root: &Path) -> Result<()> {
    let mut pages = BTreeMap::new();
    for path in below(root)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        pages.insert(path, Page::read(&text));
    }
    ensure!(!pages.is_empty(), "no pages in {}", root.display());
    let makefile = root.join("Makefile");
    let targets = targets(&fs::read_to_string(&makefile).with_context(|| makefile.display().to_string())?);
    let mut wrong = Vec::new();
    for (path, page) in &pages {
        let shown = path.strip_prefix(root).unwrap_or(path).display();
        for link in &page.links {
            if let Some(why) = astray(path, link, &pages) {
                wrong.push(format!("{shown}: {link}: {why}"));
            }
        }
        let unknown = page.made.iter().filter(|target| !targets.contains(*target));
        wrong.extend(unknown.map(|target| format!("{shown}: `make {target}`: no such target")));
    }
    ensure!(wrong.is_empty(), "pages are wrong:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// All pages below a folder.
fn below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let built = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| BUILT.contains(&name));
        if path.is_dir() && !path.is_symlink() && !built {
            found.extend(below(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    Ok(found)
}

/// Why a link from that page leads nowhere; those to other places are not tried.
fn astray(from: &Path, link: &str, pages: &BTreeMap<PathBuf, Page>) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let to = if file.is_empty() { from.to_owned() } else { from.parent()?.join(file) };
    let Ok(to) = to.canonicalize() else { return Some("nothing is there".to_owned()) };
    let there = heading.is_empty() || pages.get(&to).is_some_and(|page| page.headings.contains(heading));
    (!there).then(|| format!("no heading `{heading}`"))
}

/// What a page says that can be wrong.
#[derive(Default)]
struct Page {
    links: Vec<String>,
    /// As links name them.
    headings: BTreeSet<String>,
    /// Targets of make.
    made: BTreeSet<String>,
}

impl Page {
    fn read(text: &str) -> Self {
        let mut page = Self::default();
        let (mut heading, mut console) = (None::<String>, false);
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            if let (Some(heading), Event::Text(text) | Event::Code(text)) = (&mut heading, &event) {
                heading.push_str(text);
            }
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => page.headings.extend(heading.take().map(|text| name(&text))),
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.into_string());
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(language))) => console = &*language == "console",
                Event::End(TagEnd::CodeBlock) => console = false,
                Event::Code(code) => page.made.extend(asked(&code)),
                Event::Text(text) if console => {
                    page.made.extend(text.lines().filter_map(|line| line.strip_prefix("$ ")).flat_map(asked));
                }
                _ => {}
            }
        }
        page
    }
}

/// The name by which links know a heading: small letters, without signs, dashes for blanks.
fn name(heading: &str) -> String {
    let small = heading.to_lowercase();
    let kept = small.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect::<String>().trim_matches('-').to_owned()
}

/// The targets that a command line asks of make.
fn asked(command: &str) -> Vec<String> {
    let mut words = command.split_whitespace();
    if words.next() != Some("make") {
        return Vec::new();
    }
    let target =
        |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    // Variables may stand between them; a remark ends it.
    words.take_while(|word| !word.starts_with('#')).filter(target).map(str::to_owned).collect()
}

fn targets(makefile: &str) -> BTreeSet<String> {
    let phony = makefile.lines().filter_map(|line| line.strip_prefix(".PHONY:"));
    phony.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_nowhere_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("docs")).unwrap();
        fs::write(root.join("Makefile"), ".PHONY: test lint\ntest:\n").unwrap();
        let write = |page: &str, text: &str| fs::write(root.join(page), text).unwrap();
        write(
            "docs/b.md",
            "# What `it` costs, exactly\n\n```console\n$ make test    # it\n$ make lint V=1 test\n```\n",
        );
        write("a.md", "# A\n[b](docs/b.md#what-it-costs-exactly) [a](#a) [x](https://x.example/y) `make lint`\n");
        check(&root).unwrap();
        write(
            "a.md",
            "[b](docs/c.md) [b](docs/b.md#costs) ![p](p.svg) [m](Makefile#x) `make it` so\n```console\n$ make that NAMES=\"a\"\n```\n",
        );
        let why = check(&root).unwrap_err().to_string();
        let expected = [
            "a.md: docs/c.md: nothing is there",
            "a.md: docs/b.md#costs: no heading `costs`",
            "a.md: p.svg: nothing is there",
            "a.md: Makefile#x: no heading `x`",
            "a.md: `make it`: no such target",
            "a.md: `make that`: no such target",
        ];
        assert_eq!(why.lines().skip(1).map(str::trim).collect::<Vec<_>>(), expected);
    }
}
