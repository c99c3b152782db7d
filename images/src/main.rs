//! `images build | push | verify | pull`: what `make images`, `make push` and `make verify` call, and a container that
//! needs a module.

use anyhow::{Context as _, Error, Result, ensure};
use clap::{Parser, Subcommand};
use images::{Form, Image, Module, Registry, Signer, Verifier, layout, mesh, sbom::Crates};
use indicatif::{ProgressBar, ProgressStyle};
use owo_colors::{OwoColorize as _, Style};
use std::{
    fs,
    io::{self, IsTerminal as _, stderr, stdout},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};
use xtask::{SHIPPED, release};

/// The modules as OCI images.
#[derive(Parser)]
struct Arguments {
    /// Where modules and images are.
    #[arg(long, global = true, default_value_os_t = root().join("dist"))]
    dist: PathBuf,
    /// The version of the images, which is their tag.
    #[arg(long, global = true, default_value = env!("CARGO_PKG_VERSION"), value_parser = release::version)]
    version: String,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Makes images of the modules, with a list of what is in each, and checksums.
    Build {
        /// Where the sources are, for the images to say so.
        #[arg(long)]
        source: Option<String>,
        /// The commit; where it is not given, git is asked.
        #[arg(long)]
        revision: Option<String>,
    },
    /// Pushes images, and pulls each as the mesh does.
    Push(Push),
    /// Pulls images as the mesh does, and checks their signatures.
    Verify {
        #[command(flatten)]
        place: Place,
        /// The public key.
        #[arg(long)]
        key: PathBuf,
    },
    /// Pulls modules as the mesh does, into a folder.
    Pull {
        #[command(flatten)]
        place: Place,
        /// The folder.
        #[arg(long)]
        into: PathBuf,
    },
}

#[derive(clap::Args)]
struct Push {
    #[command(flatten)]
    place: Place,
    /// Sign with this private key.
    #[arg(long)]
    sign_key: Option<PathBuf>,
    /// Move tags that are there with other images.
    #[arg(long = "move")]
    moves: bool,
    /// Only look whether what is given here can be used, before images are built: nothing is asked or sent.
    #[arg(long)]
    check: bool,
}

#[derive(clap::Args)]
struct Place {
    /// `host[:port]/path`
    #[arg(long, value_parser = release::registry)]
    registry: String,
    /// Without TLS.
    #[arg(long)]
    plain_http: bool,
    /// Which; all unless told.
    #[arg(value_parser = one_of_the_shipped)]
    names: Vec<&'static str>,
}

impl Place {
    fn open(&self) -> Result<Registry> {
        Registry::new(&self.registry, self.plain_http)
    }

    fn names(&self) -> Vec<&'static str> {
        shipped().filter(|name| self.names.is_empty() || self.names.contains(name)).collect()
    }
}

fn one_of_the_shipped(name: &str) -> Result<&'static str> {
    let there = || shipped().collect::<Vec<_>>().join(", ");
    shipped().find(|shipped| *shipped == name).with_context(|| format!("no module {name}, there is: {}", there()))
}

fn shipped() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Arguments { dist, version, task } = Arguments::parse();
    let show = Show { coloured: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() };
    let done = match task {
        Task::Build { source, revision } => build(&show, &dist, &version, source, revision),
        Task::Push(options) => push(&show, &dist, &version, &options).await,
        Task::Verify { place, key } => verify(&show, &version, &place, &key).await,
        Task::Pull { place, into } => pull(&show, &version, &place, &into).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            show.failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn build(show: &Show, dist: &Path, version: &str, source: Option<String>, revision: Option<String>) -> Result<()> {
    let mut modules = Vec::new();
    for name in shipped() {
        let path = dist.join(format!("{name}.wasm"));
        let wasm = fs::read(&path).with_context(|| format!("no module {}: run `make modules`", path.display()))?;
        modules.push((name, wasm));
    }
    let crates = Crates::read(&root())?;
    let revision = revision.or_else(|| git(&root()));
    // Beside what is there, which stays unless all goes well.
    let beside = tempfile::Builder::new().prefix(".images-").tempdir_in(dist)?;
    let (new, folder) = (beside.path().join("new"), dist.join("images"));
    let mut built = Vec::new();
    for (name, wasm) in modules {
        let member = crates.member(name)?;
        let module = Module {
            name: name.to_owned(),
            description: member.description.clone().with_context(|| format!("{name} has no description"))?,
            version: version.to_owned(),
            licenses: member.license.clone().with_context(|| format!("{name} has no licence"))?,
            revision: revision.clone(),
            source: source.clone(),
            wasm,
        };
        let mut images = Vec::new();
        for form in Form::ALL {
            images.push((form, layout::image(&module, form)?));
        }
        layout::write(&new.join(name), version, &images)?;
        fs::write(new.join(format!("{name}.cdx.json")), crates.bom(&module)?)?;
        built.push((name, images));
    }
    layout::checksums(&new)?;
    replace(&folder, &new, &beside.path().join("old")).with_context(|| folder.display().to_string())?;
    for (name, images) in &built {
        let shown = folder.join(name);
        show.title(&shown.strip_prefix(root()).unwrap_or(&shown).display().to_string());
        for (form, image) in images {
            show.image(*form, &form.tag(version), image);
        }
    }
    show.note(&match (&revision, &source) {
        (Some(revision), _) => format!("revision {revision}"),
        (None, _) => "no revision: there is no git here, and no REVISION was given".to_owned(),
    });
    if source.is_none() {
        show.note("no source: give SOURCE=<url> for the images to say where theirs is");
    }
    Ok(())
}

/// Puts a folder in the place of another, which goes aside; it comes back when the new one cannot be put there.
fn replace(folder: &Path, new: &Path, aside: &Path) -> io::Result<()> {
    match fs::rename(folder, aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(new, folder),
        moved => moved.and_then(|()| {
            fs::rename(new, folder).inspect_err(|_| {
                // What fails here as well is told by the first error.
                let _ = fs::rename(aside, folder);
            })
        }),
    }
}

async fn push(show: &Show, dist: &Path, version: &str, options: &Push) -> Result<()> {
    // Before anything is asked or sent: all that can be wrong here.
    let signer = options.sign_key.as_deref().map(Signer::read).transpose()?;
    let registry = options.place.open()?;
    if options.check {
        return Ok(());
    }
    let mut all = Vec::new();
    for name in options.place.names() {
        all.push((name, layout::read(&dist.join("images").join(name), version)?));
    }
    // Of all, before the first is sent.
    let others = others(&registry, version, &all).await?;
    ensure!(
        options.moves || others.is_empty(),
        "nothing was pushed, for these tags are there with other images: give another VERSION, or MOVE=1 to move them{}",
        others.concat()
    );
    let bar = bar(all.iter().flat_map(|(_, images)| images).map(|(_, image)| image.size()).sum());
    for (name, images) in &all {
        bar.suspend(|| show.title(&registry.name(name)));
        for (form, image) in images {
            let tag = form.tag(version);
            bar.set_message(format!("{name}:{tag}"));
            let pushed = push_one(&registry, name, &tag, image, signer.as_ref(), &bar).await;
            pushed.with_context(|| format!("{name}:{tag} was not pushed"))?;
            bar.suspend(|| show.image(*form, &tag, image));
        }
    }
    bar.finish_and_clear();
    if !others.is_empty() {
        show.note(&["moved:", &others.concat()].concat());
    }
    show.note(match signer {
        Some(_) => "signed, pushed, pulled back and compared",
        None => "pushed, pulled back and compared; not signed",
    });
    Ok(())
}

/// The tags that are there with other images than these, a line for each.
async fn others(registry: &Registry, version: &str, all: &[(&str, Vec<(Form, Image)>)]) -> Result<Vec<String>> {
    let mut others = Vec::new();
    for (name, images) in all {
        for (form, image) in images {
            let tag = form.tag(version);
            let there = registry.manifest(name, &tag).await;
            let there = there.with_context(|| format!("{name}:{tag} was not pushed"))?;
            if let Some(there) = there.map(|manifest| layout::digest(&manifest)).filter(|there| there != image.digest())
            {
                let name = registry.name(name);
                others.push(format!("\n  {name}:{tag} was {there}, and is {} here", image.digest()));
            }
        }
    }
    Ok(others)
}

async fn push_one(
    registry: &Registry,
    name: &str,
    tag: &str,
    image: &Image,
    signer: Option<&Signer>,
    bar: &ProgressBar,
) -> Result<()> {
    // First, so that there is no moment in which it is there and not signed.
    if let Some(signer) = signer {
        signer.sign(registry, name, image.digest()).await.context("the signature")?;
    }
    registry.push(name, tag, image, |bytes| bar.inc(bytes)).await?;
    let pulled = registry.pull(name, image.digest()).await.context("pulled back as the mesh does")?;
    let whole = pulled.module == mesh::module_of(image)?;
    ensure!(whole, "what was pulled back is another module");
    Ok(())
}

async fn verify(show: &Show, version: &str, place: &Place, key: &Path) -> Result<()> {
    let names = place.names();
    let verifier = Verifier::read(key)?;
    let registry = place.open()?;
    for name in names {
        show.title(&registry.name(name));
        for form in Form::ALL {
            let tag = form.tag(version);
            let pulled = registry.pull(name, &tag).await?;
            verifier.verify(&registry, name, &pulled.digest).await?;
            show.line(form, &tag, &pulled.digest, pulled.module.len().try_into()?);
        }
    }
    show.note("each is signed by that key, and the mesh takes it; sizes are those of the modules");
    Ok(())
}

async fn pull(show: &Show, version: &str, place: &Place, into: &Path) -> Result<()> {
    let names = place.names();
    let registry = place.open()?;
    let tag = Form::Image.tag(version);
    for name in names {
        show.title(&registry.name(name));
        let pulled = registry.pull(name, &tag).await?;
        let path = into.join(format!("{name}.wasm"));
        fs::write(&path, &pulled.module).with_context(|| path.display().to_string())?;
        show.line(pulled.form, &tag, &pulled.digest, pulled.module.len().try_into()?);
    }
    show.note(&format!("in {}", into.display()));
    Ok(())
}

/// On standard error, and only where somebody looks.
fn bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("  {bar:30} {bytes}/{total_bytes} {msg}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// The commit of the project's own repository; marked, where what lies there is not what was committed.
fn git(root: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // The project may lie in another's repository.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    (Path::new(&top).canonicalize().ok()? == root.canonicalize().ok()?).then_some(())?;
    let commit = git(&["rev-parse", "HEAD"])?;
    // Manifests name the digests of images, so they are made after these, and are no part of them.
    let sources = [".", ":(exclude)istio", ":(exclude)examples/envoy-gateway"];
    let clean = git(&[&["status", "--porcelain", "--"][..], &sources].concat())?.is_empty();
    Some(if clean { commit } else { format!("{commit}-dirty") })
}

struct Show {
    coloured: bool,
}

impl Show {
    fn paint(&self, style: Style, text: &str) -> String {
        if self.coloured { text.style(style).to_string() } else { text.to_owned() }
    }

    fn title(&self, text: &str) {
        println!("{}", self.paint(Style::new().bold(), text));
    }

    fn image(&self, form: Form, tag: &str, image: &Image) {
        self.line(form, tag, image.digest(), image.size());
    }

    fn line(&self, form: Form, tag: &str, digest: &str, size: u64) {
        let kb = size.div_ceil(1000);
        let (tag, digest) =
            (self.paint(Style::new().cyan(), &format!("{tag:<16}")), self.paint(Style::new().green(), digest));
        println!("  {:<9}{tag} {digest} {kb:>5} KB", form.name());
    }

    fn note(&self, text: &str) {
        println!("{}", self.paint(Style::new().dimmed(), text));
    }

    fn failed(&self, error: &Error) {
        let coloured = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let head = Self { coloured }.paint(Style::new().red().bold(), "error:");
        eprintln!("{head} {}", xtask::explained(error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_dirty_but_for_what_is_generated_after_images() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(git(root), None);
        let run = |arguments: &[&str]| {
            let author = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"];
            let output = Command::new("git").arg("-C").arg(root).args(author).args(arguments).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        run(&["init", "--quiet"]);
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        let paths = ["src/lib.rs", "istio/release.json", "examples/envoy-gateway/a.yaml", "examples/envoy/a.yaml"];
        paths.iter().for_each(|path| write(path, "1"));
        run(&["add", "."]);
        run(&["commit", "--quiet", "--message", "all"]);
        let commit = git(root).unwrap();
        assert!(commit.len() >= 40 && !commit.contains("dirty"), "{commit}");
        for generated in ["istio/release.json", "istio/chart/new.yaml", "examples/envoy-gateway/a.yaml"] {
            write(generated, "2");
            assert_eq!(git(root).unwrap(), commit, "{generated}");
        }
        for source in ["src/lib.rs", "examples/envoy/a.yaml", "new.rs", "src/istio"] {
            write(source, "2");
            assert_eq!(git(root).unwrap(), format!("{commit}-dirty"), "{source}");
            run(&["stash", "--quiet", "--include-untracked"]);
        }
        // It lies in that one's repository, which says nothing of it.
        assert_eq!(git(&root.join("src")), None);
    }
}
