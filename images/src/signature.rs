//! Signatures as cosign makes and finds them: a small document that names the image's digest, signed with ECDSA on P-256,
//! in an image of its own beside, whose tag is made of that digest.

use crate::layout::{Blob, Image, digest};
use crate::registry::Registry;
use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use crypto_secretbox::{KeyInit as _, Nonce, XSalsa20Poly1305, aead::Aead as _};
use oci_client::{
    config::{Architecture, ConfigFile, Os, Rootfs},
    manifest::{IMAGE_CONFIG_MEDIA_TYPE, OciDescriptor, OciImageManifest},
};
use p256::{
    SecretKey,
    ecdsa::{
        Signature, SigningKey, VerifyingKey,
        signature::{Signer as _, Verifier as _},
    },
    pkcs8::{DecodePrivateKey as _, DecodePublicKey as _},
};
use scrypt::{Params, scrypt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{collections::BTreeMap, env, fs, path::Path};

/// What is signed.
pub const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// The annotation of the layer with what is signed: the signature.
pub const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// What the document says that it is.
const KIND: &str = "cosign container image signature";

/// The tag of an image's signatures.
#[must_use]
pub fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replacen(':', "-", 1))
}

/// Signs with a private key.
#[derive(Debug)]
pub struct Signer(SigningKey);

impl Signer {
    /// Reads an ECDSA key on P-256, as PEM: PKCS #8, SEC 1, or as cosign makes it, with the password in `COSIGN_PASSWORD`.
    ///
    /// # Errors
    /// When there is none in the file.
    pub fn read(path: &Path) -> Result<Self> {
        let pem = fs::read_to_string(path).with_context(|| format!("the key {}", path.display()))?;
        let whose = || format!("{} holds no private key for ECDSA on P-256, as PEM", path.display());
        let parsed = pem::parse(&pem).with_context(whose)?;
        let key = match parsed.tag() {
            "ENCRYPTED SIGSTORE PRIVATE KEY" | "ENCRYPTED COSIGN PRIVATE KEY" => {
                let password = env::var("COSIGN_PASSWORD").ok();
                let password = password.with_context(|| {
                    format!("the key {} is encrypted: give its password in COSIGN_PASSWORD", path.display())
                })?;
                let key = decrypt(parsed.contents(), password.as_bytes());
                SigningKey::from_pkcs8_der(&key.with_context(|| format!("the key {}", path.display()))?).ok()
            }
            "PRIVATE KEY" => SigningKey::from_pkcs8_der(parsed.contents()).ok(),
            _ => SecretKey::from_sec1_der(parsed.contents()).ok().map(SigningKey::from),
        };
        Ok(Self(key.with_context(whose)?))
    }

    /// Signs that image, and adds the signature to those that there are.
    ///
    /// # Errors
    /// When the registry does not take it.
    pub async fn sign(&self, registry: &Registry, repository: &str, digest: &str) -> Result<()> {
        let tag = tag(digest);
        let mut layers = Vec::new();
        for descriptor in layers_of(registry, repository, &tag).await?.unwrap_or_default() {
            layers.push(Blob { bytes: registry.blob(repository, &descriptor).await?, descriptor });
        }
        let ours = self.layer(&registry.name(repository), digest)?;
        if layers.iter().any(|layer| {
            layer.descriptor.digest == ours.descriptor.digest
                && layer.descriptor.annotations == ours.descriptor.annotations
        }) {
            return Ok(());
        }
        layers.push(ours);
        let config = ConfigFile {
            architecture: Architecture::Other(String::new()),
            os: Os::Other(String::new()),
            rootfs: Rootfs {
                r#type: "layers".to_owned(),
                diff_ids: layers.iter().map(|layer| layer.descriptor.digest.clone()).collect(),
            },
            created: None,
            author: None,
            config: None,
            history: None,
        };
        let image = Image::new(Blob::json(IMAGE_CONFIG_MEDIA_TYPE, &config)?, layers, None)?;
        registry.push(repository, &tag, &image, |_| ()).await
    }

    /// The signed document, with the signature. The same key and image give the same bytes.
    fn layer(&self, name: &str, digest: &str) -> Result<Blob> {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": name },
                "image": { "docker-manifest-digest": digest },
                "type": KIND,
            },
            "optional": null,
        });
        let mut layer = Blob::json(PAYLOAD, &payload)?;
        let signature: Signature = self.0.sign(&layer.bytes);
        let signature = BASE64_STANDARD.encode(signature.to_der());
        layer.descriptor.annotations = Some(BTreeMap::from([(SIGNATURE.to_owned(), signature)]));
        Ok(layer)
    }
}

/// A key as cosign keeps it.
#[derive(Deserialize)]
struct Encrypted {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

/// How the password becomes a key.
#[derive(Deserialize)]
struct Kdf {
    name: String,
    params: Cost,
    salt: String,
}

#[derive(Deserialize)]
struct Cost {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// The key in PKCS #8.
fn decrypt(json: &[u8], password: &[u8]) -> Result<Vec<u8>> {
    let Encrypted { kdf, cipher, ciphertext } = serde_json::from_slice(json).context("is not as cosign writes keys")?;
    let known = kdf.name == "scrypt" && cipher.name == "nacl/secretbox";
    ensure!(known, "is encrypted by {} and {}, which cosign did not use", kdf.name, cipher.name);
    // More would be hours, or all of the memory.
    let fair = kdf.params.n.is_power_of_two() && kdf.params.n <= 1 << 20 && kdf.params.r <= 32 && kdf.params.p <= 16;
    ensure!(fair, "asks for more work than a key should");
    let cost = Params::new(kdf.params.n.ilog2().try_into()?, kdf.params.r, kdf.params.p)?;
    let mut key = [0; 32];
    scrypt(password, &BASE64_STANDARD.decode(kdf.salt)?, &cost, &mut key)?;
    let nonce = BASE64_STANDARD.decode(cipher.nonce)?;
    ensure!(nonce.len() == 24, "is not as cosign writes keys");
    let opened = XSalsa20Poly1305::new(&key.into())
        .decrypt(Nonce::from_slice(&nonce), BASE64_STANDARD.decode(ciphertext)?.as_slice());
    opened.ok().context("does not open with the password in COSIGN_PASSWORD")
}

/// Checks with a public key.
#[derive(Debug)]
pub struct Verifier(VerifyingKey);

impl Verifier {
    /// Reads an ECDSA key on P-256, as PEM.
    ///
    /// # Errors
    /// When there is none in the file.
    pub fn read(path: &Path) -> Result<Self> {
        let pem = fs::read_to_string(path).with_context(|| format!("the key {}", path.display()))?;
        let key = VerifyingKey::from_public_key_pem(&pem);
        Ok(Self(key.with_context(|| format!("{} holds no public key for ECDSA on P-256, as PEM", path.display()))?))
    }

    /// Whether one of the image's signatures is by this key.
    ///
    /// # Errors
    /// When none is; the message says what is wrong with the last.
    pub async fn verify(&self, registry: &Registry, repository: &str, digest: &str) -> Result<()> {
        let name = registry.name(repository);
        let layers = layers_of(registry, repository, &tag(digest)).await?;
        let layers = layers.with_context(|| format!("{name}@{digest} is not signed"))?;
        let mut last = None;
        for layer in layers.iter().filter(|layer| layer.media_type == PAYLOAD) {
            let payload = registry.blob(repository, layer).await?;
            match self.check(layer, &payload, digest) {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) => Err(error.context(format!("{name}@{digest} is not signed by that key"))),
            None => bail!("{name}@{digest} has an image for signatures, and none in it"),
        }
    }

    fn check(&self, layer: &OciDescriptor, payload: &[u8], image: &str) -> Result<()> {
        // The registry's client has compared them already.
        ensure!(digest(payload) == layer.digest, "the signed document is another");
        let signature = layer.annotations.as_ref().and_then(|annotations| annotations.get(SIGNATURE));
        let signature = BASE64_STANDARD.decode(signature.context("there is no signature at the document")?)?;
        let signature = Signature::from_der(&signature).context("that is no signature")?;
        self.0.verify(payload, &signature).context("the signature is not by that key, or not of that document")?;
        let payload: Value = serde_json::from_slice(payload)?;
        let said = |pointer: &str| payload.pointer(pointer).and_then(Value::as_str);
        ensure!(said("/critical/type") == Some(KIND), "what was signed is no document about an image");
        ensure!(said("/critical/image/docker-manifest-digest") == Some(image), "what was signed is another image");
        Ok(())
    }
}

async fn layers_of(registry: &Registry, repository: &str, tag: &str) -> Result<Option<Vec<OciDescriptor>>> {
    let Some(manifest) = registry.manifest(repository, tag).await? else { return Ok(None) };
    let manifest: OciImageManifest = serde_json::from_slice(&manifest).context("the image of the signatures")?;
    Ok(Some(manifest.layers))
}
