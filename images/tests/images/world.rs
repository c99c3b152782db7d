//! What the tests share: a module to make images of, a place to push to, the command, and a line that breaks.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use images::{Form, Image, Module, Registry, layout};
use tempfile::TempDir;
use test_harness::DockerRegistry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::timeout;

pub(crate) const NAME: &str = "trace-id";
pub(crate) const VERSION: &str = "1.2.3";

/// A module as it is shipped.
pub(crate) fn shipped() -> Result<Module> {
    Ok(described(std::fs::read(test_harness::module(NAME)?)?))
}

/// The smallest that says which ABI it speaks.
pub(crate) fn small() -> Module {
    described(wat::parse_str(r#"(module (func (export "proxy_abi_version_0_2_1")))"#).unwrap())
}

fn described(wasm: Vec<u8>) -> Module {
    Module {
        name: NAME.to_owned(),
        description: "Does something".to_owned(),
        version: VERSION.to_owned(),
        licenses: "Apache-2.0".to_owned(),
        revision: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
        source: None,
        wasm,
    }
}

pub(crate) fn both(module: &Module) -> Result<Vec<(Form, Image)>> {
    Form::ALL.into_iter().map(|form| Ok((form, layout::image(module, form)?))).collect()
}

/// A digest without the name of its algorithm.
pub(crate) fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").expect("SHA-256")
}

/// A folder as `make images` leaves it, with the one module that is shipped.
pub(crate) fn dist() -> Result<TempDir> {
    dist_of(&[&shipped()?])
}

/// A folder as `make images` leaves it, with these.
pub(crate) fn dist_of(modules: &[&Module]) -> Result<TempDir> {
    let dist = tempfile::tempdir()?;
    for module in modules {
        layout::write(&dist.path().join("images").join(&module.name), VERSION, &both(module)?)?;
    }
    Ok(dist)
}

/// A place in a registry that listens there without TLS.
pub(crate) fn place(addr: SocketAddr) -> Result<Registry> {
    Registry::new(&at(addr), true)
}

pub(crate) fn at(addr: SocketAddr) -> String {
    format!("{addr}/filters")
}

/// A place in a registry of one's own.
pub(crate) async fn registry() -> Result<(DockerRegistry, Registry)> {
    let docker = DockerRegistry::builder().start().await?;
    let place = place(docker.addr())?;
    Ok((docker, place))
}

/// What a run of the command came to.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Run {
    /// That it went wrong, and says all of this.
    #[track_caller]
    pub(crate) fn refused(&self, says: &[&str]) {
        // 2 for arguments that are none.
        assert!(matches!(self.code, Some(1 | 2)), "{self:#?}");
        assert!(says.iter().all(|text| self.error.contains(text)), "not all of {says:?}: {self:#?}");
    }

    #[track_caller]
    pub(crate) fn went_well(&self) {
        assert_eq!(self.code, Some(0), "{self:#?}");
    }
}

/// Runs the command, with nothing from docker's configuration of this machine, and these variables.
pub(crate) async fn images(arguments: &[&str], variables: &[(&str, &Path)]) -> Result<Run> {
    let nobody = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_images"));
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).env("DOCKER_CONFIG", nobody.path());
    for proxy in [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "SSL_CERT_DIR",
        "COSIGN_PASSWORD",
    ] {
        command.env_remove(proxy);
    }
    command.envs(variables.iter().copied());
    let output = timeout(Duration::from_secs(120), command.output()).await.context("it does not end")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Run { code: output.status.code(), out: text(&output.stdout), error: text(&output.stderr) })
}

/// Runs make with these arguments, in the project's root. In place of cargo is a script that notes what it is called for,
/// runs this command, and does nothing else; beside what make said are its notes.
pub(crate) async fn make(arguments: &[&str]) -> Result<(Run, String)> {
    let folder = tempfile::tempdir()?;
    let (cargo, notes) = (folder.path().join("cargo"), folder.path().join("notes"));
    let script = format!(
        "#!/bin/sh\necho \"$*\" >>'{}'\ncase \"$*\" in *'--package images -- '*) ;; *) exit 0 ;; esac\n\
         while [ \"$1\" != -- ]; do shift; done\nshift\nexec '{}' \"$@\"\n",
        notes.display(),
        env!("CARGO_BIN_EXE_images")
    );
    std::fs::write(&cargo, script)?;
    std::fs::set_permissions(&cargo, std::fs::Permissions::from_mode(0o755))?;
    let mut command = Command::new("make");
    command.current_dir(test_harness::root()).arg(format!("CARGO={}", cargo.display())).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true).env("DOCKER_CONFIG", folder.path());
    // Those of a make that runs the tests.
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "REGISTRY", "NAMES", "VERSION", "SIGN_KEY", "KEY", "MOVE"]
    {
        command.env_remove(variable);
    }
    let output = timeout(Duration::from_secs(120), command.output()).await.context("it does not end")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let run = Run { code: output.status.code(), out: text(&output.stdout), error: text(&output.stderr) };
    Ok((run, std::fs::read_to_string(&notes).unwrap_or_default()))
}

/// `push` of the one module of that folder.
pub(crate) async fn push(dist: &Path, to: &str, more: &[&str], variables: &[(&str, &Path)]) -> Result<Run> {
    let dist = dist.display().to_string();
    let arguments = ["--dist", &dist, "--version", VERSION, "push", "--registry", to];
    images(&[&arguments, more, &[NAME]].concat(), variables).await
}

/// A line to a server that is cut for good, so many bytes after the client has sent that text.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) addr: SocketAddr,
    cut: Arc<AtomicBool>,
}

impl Line {
    pub(crate) async fn cut_after(server: SocketAddr, text: &str, more: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let cut = Arc::new(AtomicBool::new(false));
        let (text, is_cut) = (text.as_bytes().to_owned(), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Who comes later is let in, and hung up on.
                if !is_cut.load(Ordering::SeqCst) {
                    tokio::spawn(carry(client, server, text.clone(), more, is_cut.clone()));
                }
            }
        });
        Ok(Self { addr, cut })
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }
}

/// A line to a server on which a text, once that other one was sent, becomes another of the same length.
pub(crate) async fn line_with_another(server: SocketAddr, after: &str, text: &str, other: &str) -> Result<SocketAddr> {
    assert_eq!(text.len(), other.len());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let (after, text, other) = (after.to_owned(), text.to_owned(), other.to_owned());
    let begun = Arc::new(AtomicBool::new(false));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (after, text, other, begun) = (after.clone(), text.clone(), other.clone(), begun.clone());
            tokio::spawn(async move {
                let server = TcpStream::connect(server).await?;
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
                let mut buffer = vec![0; 64 * 1024];
                loop {
                    let count = from_client.read(&mut buffer).await?;
                    if count == 0 {
                        return Ok::<_, anyhow::Error>(());
                    }
                    let part = &mut buffer[..count];
                    let place = |text: &str, part: &[u8]| part.windows(text.len()).position(|w| w == text.as_bytes());
                    if let (true, Some(at)) = (begun.load(Ordering::SeqCst), place(&text, part)) {
                        part[at..at + other.len()].copy_from_slice(other.as_bytes());
                    }
                    if place(&after, part).is_some() {
                        begun.store(true, Ordering::SeqCst);
                    }
                    to_server.write_all(part).await?;
                }
            });
        }
    });
    Ok(addr)
}

async fn carry(client: TcpStream, server: SocketAddr, text: Vec<u8>, more: usize, cut: Arc<AtomicBool>) -> Result<()> {
    let server = TcpStream::connect(server).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut sent = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from_client.read(&mut buffer).await?;
        if count == 0 {
            break;
        }
        let before = sent.len();
        sent.extend_from_slice(&buffer[..count]);
        let place = sent.windows(text.len()).position(|window| window == text);
        match place.map(|place| place + text.len() + more).filter(|end| *end <= sent.len()) {
            None => to_server.write_all(&buffer[..count]).await?,
            Some(end) => {
                to_server.write_all(&sent[before.min(end)..end]).await?;
                cut.store(true, Ordering::SeqCst);
                break;
            }
        }
    }
    back.abort();
    Ok(())
}
