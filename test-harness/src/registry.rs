//! A running registry for images: the Docker project's own.

use std::env;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tempfile::TempDir;

use crate::eventually;
use crate::process::{Process, packaged, tail};

/// The version that `make docker-registry` installs: `debian/docker-registry/<version>.txt` pins it.
pub const VERSION: &str = "2.8.2";

/// How long it may take to start, where all processors are busy.
const START: Duration = Duration::from_secs(60);

/// What to start.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Builder {
    users: Option<String>,
    tokens: Option<(String, String)>,
    tls: Option<(String, String)>,
}

impl Builder {
    /// Lets in only these: lines of `name:hash`, as `htpasswd -B` writes them.
    pub fn users(mut self, htpasswd: impl Into<String>) -> Self {
        self.users = Some(htpasswd.into());
        self
    }

    /// Lets in only who has a token: from that URL, in the name of `tests`, signed by the key of that certificate (PEM).
    pub fn tokens(mut self, url: impl Into<String>, certificate: impl Into<String>) -> Self {
        self.tokens = Some((url.into(), certificate.into()));
        self
    }

    /// Speaks TLS only, with this certificate and its key, as PEM.
    pub fn tls(mut self, certificate: impl Into<String>, key: impl Into<String>) -> Self {
        self.tls = Some((certificate.into(), key.into()));
        self
    }

    /// Starts it with nothing in it; returns when it listens.
    ///
    /// # Errors
    /// When there is none, or it ends. The message ends with the last lines of its log.
    pub async fn start(self) -> Result<DockerRegistry> {
        let home = tempfile::Builder::new().prefix("registry-").tempdir()?;
        let place = |name: &str| home.path().join(name);
        // The log tells which port it got.
        let mut http = json!({ "addr": "127.0.0.1:0", "secret": "of this one alone" });
        if let Some((certificate, key)) = self.tls {
            fs::write(place("certificate.pem"), certificate)?;
            fs::write(place("key.pem"), key)?;
            http["tls"] = json!({ "certificate": place("certificate.pem"), "key": place("key.pem") });
        }
        let mut configuration = json!({
            "version": "0.1",
            "log": { "formatter": "json", "level": "info" },
            "storage": { "filesystem": { "rootdirectory": place("data") } },
            "http": http,
        });
        if let Some(users) = self.users {
            fs::write(place("htpasswd"), users)?;
            configuration["auth"] = json!({ "htpasswd": { "realm": "tests", "path": place("htpasswd") } });
        }
        if let Some((url, certificate)) = self.tokens {
            fs::write(place("tokens.pem"), certificate)?;
            let bundle = place("tokens.pem");
            configuration["auth"] = json!({ "token": {
                "realm": url, "service": "tests", "issuer": "tests", "rootcertbundle": bundle,
            } });
        }
        // JSON is YAML.
        fs::write(place("config.yml"), configuration.to_string())?;
        let mut command = Command::new(packaged("docker-registry", VERSION, "docker-registry")?);
        command.arg("serve").arg(place("config.yml"));
        // It takes its configuration from there as well.
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"REGISTRY")) {
            command.env_remove(name);
        }
        let log = File::create(place("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = Process::start(command).await?;
        let mut registry = DockerRegistry { process, address: SocketAddr::from(([127, 0, 0, 1], 0)), home };
        let listening = eventually("the registry's address in its log", START, async || {
            let log = registry.log();
            let rest = log.split("\"listening on ").nth(1).ok_or("other lines")?;
            let address = rest.split(['"', ',']).next().unwrap_or_default();
            address.parse().map_err(|error| format!("{address}: {error}"))
        });
        registry.address = registry.process.while_alive("the registry", || registry.log(), listening).await?;
        Ok(registry)
    }
}

/// A running registry. Dropping it kills the process; in a panic, the last lines of its log are printed.
#[derive(Debug)]
pub struct DockerRegistry {
    // The process goes before its directory does.
    process: Process,
    address: SocketAddr,
    home: TempDir,
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the registry's log ends with:\n{}", tail(&self.log()));
        }
    }
}

impl DockerRegistry {
    /// One for everybody, without TLS, unless told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Everything logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.home.path().join("log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}
