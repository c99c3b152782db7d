//! Real servers that may hold the thresholds of a circuit breaker: nginx with a mounted ConfigMap, and etcd.
//!
//! Each runs as whoever started the test, in a directory and on a port of its own, and ends with its value.

use std::env;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::client::H1;
use crate::eventually;
use crate::process::{Process, packaged, tail};
use crate::wire::{Request, Response};

/// The version of nginx that `make nginx` installs: `debian/nginx/<version>.txt` pins it.
pub const NGINX: &str = "1.22.1";

/// The version of etcd that `make etcd` installs: `debian/etcd/<version>.txt` pins it.
pub const ETCD: &str = "3.4.23";

/// How long a server may take to start, where all processors are busy.
const START: Duration = Duration::from_secs(60);

/// An address that stays ours while nobody listens there. The socket is bound, but does not listen: so no other gets
/// the port when it asks for any, and a server that asks for this one, with `SO_REUSEADDR` as all do, gets it.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) addr: SocketAddr,
    _socket: TcpSocket,
}

impl Held {
    /// Takes the address; with port 0 a free one.
    pub(crate) fn at(addr: SocketAddr) -> Result<Self> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr).with_context(|| format!("cannot listen at {addr}"))?;
        Ok(Self { addr: socket.local_addr()?, _socket: socket })
    }

    /// A free port of 127.0.0.1.
    pub(crate) fn any() -> Result<Self> {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }
}

/// A server in a directory of its own; its log is the file `log` there.
#[derive(Debug)]
struct Server {
    name: &'static str,
    // The process goes before its directory does.
    process: Process,
    held: Held,
    home: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {}'s log ends with:\n{}", self.name, tail(&self.log()));
        }
    }
}

impl Server {
    /// Starts the command, and returns when the request has got the status 200.
    async fn start(
        name: &'static str,
        mut command: Command,
        held: Held,
        home: TempDir,
        asks: &Request,
    ) -> Result<Self> {
        // It appends, for nginx opens the file as well.
        let log = File::options().create(true).append(true).open(home.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let server = Self { name, process: Process::start(command).await?, held, home };
        let answers = eventually(format!("an answer of {name}"), START, async || {
            let response = server.send(asks).await.map_err(|error| format!("{error:#}"))?;
            if response.status == 200 { Ok(()) } else { Err(format!("{}: {}", response.status, response.text())) }
        });
        server.process.while_alive(name, || server.log(), answers).await?;
        Ok(server)
    }

    /// On a connection of its own.
    async fn send(&self, request: &Request) -> Result<Response> {
        H1::connect(self.held.addr).await?.send(&request.clone().header("connection", "close")).await
    }

    fn file(&self, name: &str) -> String {
        fs::read(self.home.path().join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    fn log(&self) -> String {
        self.file("log")
    }
}

/// A directory as Kubernetes mounts a ConfigMap with the one key `rules.json`: a link to a file behind another link,
/// which an update replaces at once. So no reader finds half of a document, or none.
#[derive(Debug)]
pub struct ConfigMap {
    directory: TempDir,
    updates: u32,
}

impl ConfigMap {
    /// A mount that holds this document.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn mount(document: impl AsRef<[u8]>) -> Result<Self> {
        let mut mount = Self { directory: tempfile::Builder::new().prefix("configmap-").tempdir()?, updates: 0 };
        mount.update(document)?;
        symlink("..data/rules.json", mount.path().join("rules.json"))?;
        Ok(mount)
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Replaces the document, as the kubelet does: a new directory, and the link to the old one replaced by a rename.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn update(&mut self, document: impl AsRef<[u8]>) -> Result<()> {
        // The one before the last is what no reader is on its way to any more.
        let old = self.generation(self.updates.saturating_sub(1));
        self.updates += 1;
        let new = self.generation(self.updates);
        fs::create_dir(&new)?;
        fs::write(new.join("rules.json"), document)?;
        let link = self.path().join("..data_tmp");
        symlink(new.file_name().expect("it has a name"), &link)?;
        fs::rename(link, self.path().join("..data"))?;
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
        Ok(())
    }

    /// What holds the document of that update.
    fn generation(&self, update: u32) -> PathBuf {
        self.path().join(format!("..{update}"))
    }
}

/// A running nginx that serves the file `rules.json` of a directory at `/rules`, as one would have it that serves a
/// mounted [`ConfigMap`].
#[derive(Debug)]
pub struct Nginx(Server);

impl Nginx {
    /// Starts nginx; returns when it answers.
    ///
    /// # Errors
    /// When there is none, or it refuses its configuration, or does not answer with 200. The message ends with the last
    /// lines of its log.
    pub async fn start(directory: impl AsRef<Path>) -> Result<Self> {
        let rules = directory.as_ref().canonicalize()?.join("rules.json");
        // One process, which can be killed without leaving others. The paths that are compiled in are the system's.
        Self::configured(|addr, _| {
            format!(
                r#"daemon off;
master_process off;
pid pid;
error_log log notice;
events {{}}
http {{
    log_format rules '$request_method $request_uri $status "$http_if_none_match"';
    access_log access rules;
    client_body_temp_path temp-body;
    proxy_temp_path temp-proxy;
    fastcgi_temp_path temp-fastcgi;
    uwsgi_temp_path temp-uwsgi;
    scgi_temp_path temp-scgi;
    server {{
        listen {addr};
        location = /rules {{
            alias "{}";
            default_type application/json;
            etag on;
        }}
    }}
}}
"#,
                rules.display()
            )
        })
        .await
    }

    /// Starts nginx with a configuration of one's own, made for an address and a directory of its own; returns when it
    /// answers `/rules`. It has to be one process: `daemon off; master_process off;`.
    ///
    /// # Errors
    /// When there is none, or it refuses its configuration, or does not answer with 200. The message ends with the last
    /// lines of its log.
    pub async fn configured(configuration: impl FnOnce(SocketAddr, &Path) -> String) -> Result<Self> {
        let program = packaged("nginx", NGINX, "nginx")?;
        let libraries = program.with_file_name("lib");
        let home = tempfile::Builder::new().prefix("nginx-").tempdir()?;
        let held = Held::any()?;
        fs::write(home.path().join("nginx.conf"), configuration(held.addr, home.path()))?;
        let mut command = Command::new(program);
        command.arg("-p").arg(home.path()).args(["-c", "nginx.conf", "-e", "log"]);
        // To nginx this is a list of sockets that it inherits; to the harness, where it is.
        command.env_remove("NGINX");
        if libraries.is_dir() {
            let more = env::var_os("LD_LIBRARY_PATH")
                .into_iter()
                .flat_map(|paths| env::split_paths(&paths).collect::<Vec<_>>());
            command.env("LD_LIBRARY_PATH", env::join_paths([libraries].into_iter().chain(more))?);
        }
        Ok(Self(Server::start("nginx", command, held, home, &Request::get("/rules")).await?))
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.0.held.addr
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.process.id()
    }

    /// Its error log.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// A line for each request: method, path, status, and the header `if-none-match` in quotes, where `-` is none, and
    /// a quote of its own is `\x22`. The first is of the start.
    #[must_use]
    pub fn access_log(&self) -> Vec<String> {
        self.0.file("access").lines().map(str::to_owned).collect()
    }

    /// Sends a request on a connection of its own.
    ///
    /// # Errors
    /// When no whole response came in time.
    pub async fn send(&self, request: &Request) -> Result<Response> {
        self.0.send(request).await
    }
}

/// A running etcd, asked through its gateway: JSON over HTTP/1.1, with keys and values in base64.
#[derive(Debug)]
pub struct Etcd(Server);

impl Etcd {
    /// Starts etcd with nothing in it; returns when its gateway answers.
    ///
    /// # Errors
    /// When there is none, or it does not answer. The message ends with the last lines of its log.
    pub async fn start() -> Result<Self> {
        let mut command = Command::new(packaged("etcd", ETCD, "etcd")?);
        let home = tempfile::Builder::new().prefix("etcd-").tempdir()?;
        // The gateway is a client of the address in the configuration: port 0 does not do.
        let held = Held::any()?;
        let clients = format!("http://{}", held.addr);
        // No peer will come.
        let peers = "http://127.0.0.1:0";
        command.arg("--data-dir").arg(home.path().join("data")).args(["--logger", "zap"]);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        command.args(["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]);
        command.args(["--initial-cluster", &format!("default={peers}")]);
        // It takes options from there as well. On arm64 it does not run unless told so.
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
            command.env_remove(name);
        }
        command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
        Ok(Self(Server::start("etcd", command, held, home, &Self::range("any")).await?))
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.0.held.addr
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.process.id()
    }

    /// Everything logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.0.log()
    }

    /// The request for the value of a key.
    pub fn range(key: &str) -> Request {
        Self::request("/v3/kv/range", &json!({ "key": BASE64_STANDARD.encode(key) }))
    }

    fn request(path: &str, body: &Value) -> Request {
        Request::post(path, body.to_string()).header("content-type", "application/json")
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// When etcd does not answer with 200.
    pub async fn put(&self, key: &str, value: impl AsRef<[u8]>) -> Result<()> {
        let body = json!({ "key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value) });
        self.change("/v3/kv/put", &body).await
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// When etcd does not answer with 200.
    pub async fn delete(&self, key: &str) -> Result<()> {
        self.change("/v3/kv/deleterange", &json!({ "key": BASE64_STANDARD.encode(key) })).await
    }

    async fn change(&self, path: &str, body: &Value) -> Result<()> {
        let response = self.send(&Self::request(path, body)).await?;
        ensure!(response.status == 200, "{path}: {}: {}", response.status, response.text());
        Ok(())
    }

    /// Sends a request on a connection of its own.
    ///
    /// # Errors
    /// When no whole response came in time.
    pub async fn send(&self, request: &Request) -> Result<Response> {
        self.0.send(request).await
    }
}
