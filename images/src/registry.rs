//! A place in a registry: images go there and come from there.
//!
//! The protocol is `oci-client`'s. Here is what it leaves open: whose credentials, in which order, whether what is there
//! afterwards is what was sent, and what an error means to the one who reads it.

use crate::layout::{Blob, Form, Image, digest};
use crate::mesh;
use anyhow::{Context as _, Error, Result, bail, ensure};
use docker_credential::{CredentialRetrievalError, DockerCredential, get_credential};
use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
        OciDescriptor,
    },
    secrets::RegistryAuth,
};
use std::{env, error::Error as _, path::PathBuf, time::Duration};

/// What is asked for when a manifest is pulled: also what is not taken then, so that it can be said.
const MANIFESTS: [&str; 4] =
    [OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];

/// How long a registry may let one wait.
const CONNECT: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(60);

/// A host and a path there, under which each module has a repository.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    host: String,
    location: String,
    auth: RegistryAuth,
    plain_http: bool,
}

/// A module as the mesh's fetcher gets it.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The digest of its manifest, which is what one configures.
    pub digest: String,
    /// In which form it came.
    pub form: Form,
    /// The module.
    pub module: Vec<u8>,
}

impl Registry {
    /// A place, by `host[:port]/path`, with the credentials that docker has for the host. Without TLS only on demand.
    ///
    /// # Errors
    /// When that is no such place; when the credentials cannot be had. Nothing is sent yet.
    pub fn new(location: &str, plain_http: bool) -> Result<Self> {
        let location = xtask::release::registry(location)?;
        let (host, _) = location.split_once('/').context("it has a path")?;
        // Another may have been the first, as in a test.
        drop(rustls::crypto::ring::default_provider().install_default());
        let protocol = if plain_http { ClientProtocol::Http } else { ClientProtocol::Https };
        let client = ClientConfig {
            protocol,
            use_monolithic_push: true,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(ANSWER),
            ..ClientConfig::default()
        };
        let client = Client::try_from(client)
            .context("no TLS here; where certificates are missing, install ca-certificates or set SSL_CERT_FILE")?;
        let auth = credentials(host)?;
        Ok(Self { client, host: host.to_owned(), location, auth, plain_http })
    }

    /// The name of an image there, without a tag.
    #[must_use]
    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.location)
    }

    fn reference(&self, repository: &str, tag: &str) -> Result<Reference> {
        let separator = if tag.starts_with("sha256:") { '@' } else { ':' };
        let name = format!("{}{separator}{tag}", self.name(repository));
        name.parse().with_context(|| format!("`{name}` cannot be the name of an image"))
    }

    /// Pushes an image: what it is made of first, its manifest last. So it is seen whole or not at all. Then asks what is
    /// there. `done` hears of bytes that are there.
    ///
    /// # Errors
    /// When the registry does not take it, or has something else afterwards.
    pub async fn push(&self, repository: &str, tag: &str, image: &Image, mut done: impl FnMut(u64)) -> Result<()> {
        let name = self.reference(repository, tag)?;
        self.log_in(&name, RegistryOperation::Push).await?;
        for blob in image.parts() {
            let Blob { descriptor: OciDescriptor { digest, media_type, .. }, bytes } = blob;
            if digest == image.digest() {
                let kind = media_type.parse().context("the manifest's kind is no word")?;
                let pushed = self.client.push_manifest_raw(&name, bytes.clone(), kind).await;
                pushed.map_err(|error| self.explain(error))?;
            } else if !self.client.blob_exists(&name, digest).await.map_err(|error| self.explain(error))? {
                let pushed = self.client.push_blob(&name, bytes.clone(), digest).await;
                pushed.map_err(|error| self.explain(error))?;
            }
            done(u64::try_from(bytes.len())?);
        }
        let there = self.manifest(repository, tag).await?.context("the registry took it, but does not have it")?;
        ensure!(
            there == image.manifest.bytes,
            "the registry has {} as {tag}, pushed was {}",
            digest(&there),
            image.digest()
        );
        Ok(())
    }

    /// The manifest of that tag or digest, if there is one.
    ///
    /// # Errors
    /// When the registry does not say.
    pub async fn manifest(&self, repository: &str, tag: &str) -> Result<Option<Vec<u8>>> {
        let name = self.reference(repository, tag)?;
        self.log_in(&name, RegistryOperation::Pull).await?;
        match self.client.pull_manifest_raw(&name, &self.auth, &MANIFESTS).await {
            Ok((bytes, _)) => Ok(Some(bytes.to_vec())),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(self.explain(error)),
        }
    }

    /// A blob of a repository; its digest is checked.
    ///
    /// # Errors
    /// When the registry does not give it.
    pub async fn blob(&self, repository: &str, descriptor: &OciDescriptor) -> Result<Vec<u8>> {
        let name = self.reference(repository, &descriptor.digest)?;
        let mut bytes = Vec::new();
        let pulled = self.client.pull_blob(&name, descriptor, &mut bytes).await;
        pulled.map_err(|error| self.explain(error))?;
        Ok(bytes)
    }

    /// Pulls the module of that tag or digest, by the rules of the mesh's fetcher.
    ///
    /// # Errors
    /// When it is not there, or is nothing that the mesh takes.
    pub async fn pull(&self, repository: &str, tag: &str) -> Result<Pulled> {
        let manifest = self.manifest(repository, tag).await?;
        let manifest = manifest.with_context(|| {
            format!(
                "there is no {}",
                self.reference(repository, tag).map_or_else(|_| tag.to_owned(), |name| name.to_string())
            )
        })?;
        let (form, layer) = mesh::layer(&manifest).context("the mesh does not take it")?;
        let layer = self.blob(repository, &layer).await?;
        let module = mesh::module(form, &layer).context("the mesh does not take it")?;
        Ok(Pulled { digest: digest(&manifest), form, module })
    }

    /// The client asks for a token by itself, but says nothing when it gets none.
    async fn log_in(&self, name: &Reference, operation: RegistryOperation) -> Result<()> {
        self.client.auth(name, &self.auth, operation).await.map_err(|error| self.explain(error))?;
        Ok(())
    }

    /// What is wrong, for the one who pushes.
    fn explain(&self, error: OciDistributionError) -> Error {
        let host = &self.host;
        let said = whole(&error);
        let anonymous = matches!(self.auth, RegistryAuth::Anonymous);
        let broken = matches!(error, OciDistributionError::RequestError(_) | OciDistributionError::IoError(_));
        let unreachable = matches!(&error, OciDistributionError::RequestError(error) if error.is_connect());
        let reason = match status(&error) {
            // Servers of TLS say it so, each in its own words.
            // A registry's own errors are JSON of the distribution's.
            Some(400) if self.plain_http && !said.contains("_UNKNOWN") && !said.contains("_INVALID") => {
                format!("{host} does not take this without TLS, as it seems: leave out PLAIN_HTTP=1")
            }
            Some(401) if anonymous => {
                format!("{host} wants credentials, and {} has none for it: run `docker login {host}`", configuration())
            }
            Some(401) => format!("{host} does not take the credentials that {} has for it", configuration()),
            Some(403) => format!("{host} does not allow it with these credentials"),
            Some(404) => format!("{host} does not know {}", self.location),
            Some(429) => format!("{host} has had too many requests: try again later"),
            Some(500..) => format!("{host} has failed; that is its own fault"),
            _ if said.contains("InvalidContentType") => {
                format!(
                    "{host} does not speak TLS; PLAIN_HTTP=1 pushes without, where anybody between can read and change it"
                )
            }
            _ if said.contains("CaUsedAsEndEntity") => {
                format!(
                    "the certificate of {host} is an authority's own, which is refused for a server: it needs CA:FALSE"
                )
            }
            _ if said.contains("invalid peer certificate") => {
                format!("the certificate of {host} is not trusted here; SSL_CERT_FILE=<file> names other authorities")
            }
            // The one that gives tokens may be another.
            _ if unreachable && !said.contains(&format!("://{host}/")) => {
                format!("{host} wants a token, and who gives them cannot be reached")
            }
            _ if unreachable => format!("{host} cannot be reached: is the name right, and is it up?"),
            _ if broken => {
                format!("the connection to {host} broke before all was there; what is not whole has no tag: push again")
            }
            _ => return error.into(),
        };
        Error::new(error).context(reason)
    }
}

/// The status of an answer that was no success.
fn status(error: &OciDistributionError) -> Option<u16> {
    match error {
        OciDistributionError::ServerError { code, .. } => Some(*code),
        OciDistributionError::RequestError(error) => error.status().map(|status| status.as_u16()),
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => Some(401),
        OciDistributionError::RegistryError { envelope, .. } => match envelope.errors.first()?.code {
            OciErrorCode::Unauthorized => Some(401),
            OciErrorCode::Denied => Some(403),
            OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound => Some(404),
            OciErrorCode::Toomanyrequests => Some(429),
            _ => None,
        },
        _ => None,
    }
}

/// The error with all its causes.
fn whole(error: &OciDistributionError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Where docker keeps its credentials.
fn configuration() -> String {
    let folder = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".docker")));
    folder
        .map_or_else(|| "docker's configuration".to_owned(), |folder| folder.join("config.json").display().to_string())
}

/// What docker would say to that host.
fn credentials(host: &str) -> Result<RegistryAuth> {
    use CredentialRetrievalError as Trouble;
    let file = configuration();
    match get_credential(host) {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(RegistryAuth::Basic(user, password)),
        Ok(DockerCredential::IdentityToken(_)) => {
            bail!(
                "{file} has an identity token for {host}, which is not supported: log in with a user and a password or access token"
            )
        }
        Err(Trouble::NoCredentialConfigured | Trouble::ConfigNotFound) => Ok(RegistryAuth::Anonymous),
        Err(Trouble::ConfigReadError) if !PathBuf::from(&file).exists() => Ok(RegistryAuth::Anonymous),
        // What all helpers say of a host that they do not know.
        Err(Trouble::HelperFailure { stdout, stderr, .. })
            if [&stdout, &stderr].iter().any(|said| said.contains("credentials not found")) =>
        {
            Ok(RegistryAuth::Anonymous)
        }
        Err(error) => Err(Error::new(error).context(format!("no credentials for {host} from {file}"))),
    }
}
