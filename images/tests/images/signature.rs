//! Signatures: made with one implementation of ECDSA, checked with that and with another; and what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use images::{Blob, Form, Image, Registry, Signer, Verifier, layout, signature};
use oci_client::manifest::OciImageManifest;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData as _};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::{NAME, VERSION, at, dist, hex, images, push, registry, small};

struct Key {
    pair: KeyPair,
    folder: TempDir,
}

impl Key {
    fn new() -> Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("private.pem"), pair.serialize_pem())?;
        fs::write(folder.path().join("public.pem"), pair.public_key_pem())?;
        Ok(Self { pair, folder })
    }

    fn private(&self) -> PathBuf {
        self.folder.path().join("private.pem")
    }

    fn public(&self) -> PathBuf {
        self.folder.path().join("public.pem")
    }

    async fn sign(&self, place: &Registry, digest: &str) -> Result<()> {
        Signer::read(&self.private())?.sign(place, NAME, digest).await
    }

    async fn verify(&self, place: &Registry, digest: &str) -> Result<()> {
        Verifier::read(&self.public())?.verify(place, NAME, digest).await
    }
}

async fn signatures(place: &Registry, digest: &str) -> Result<OciImageManifest> {
    let manifest = place.manifest(NAME, &signature::tag(digest)).await?.expect("signatures");
    Ok(serde_json::from_slice(&manifest)?)
}

#[tokio::test]
async fn a_signature_is_where_cosign_looks_and_another_implementation_takes_it() -> Result<()> {
    let (docker, place) = registry().await?;
    let key = Key::new()?;
    let image = layout::image(&small(), Form::Image)?;
    place.push(NAME, VERSION, &image, |_| ()).await?;
    key.sign(&place, image.digest()).await?;
    let tag = format!("sha256-{}.sig", hex(image.digest()));
    assert_eq!(signature::tag(image.digest()), tag);
    let manifest = signatures(&place, image.digest()).await?;
    assert_eq!(manifest.config.media_type, "application/vnd.oci.image.config.v1+json");
    let [layer] = &manifest.layers[..] else { panic!("{manifest:?}") };
    assert_eq!(layer.media_type, "application/vnd.dev.cosign.simplesigning.v1+json");
    let payload = place.blob(NAME, layer).await?;
    let expected = json!({ "critical": {
        "identity": { "docker-reference": format!("{}/{NAME}", at(docker.addr())) },
        "image": { "docker-manifest-digest": image.digest() },
        "type": "cosign container image signature",
    }, "optional": null });
    assert_eq!(serde_json::from_slice::<Value>(&payload)?, expected);
    let signed = &layer.annotations.as_ref().unwrap()["dev.cosignproject.cosign/signature"];
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.pair.der_bytes());
    public.verify(&payload, &BASE64_STANDARD.decode(signed)?).expect("ring takes it");
    key.verify(&place, image.digest()).await?;
    Ok(())
}

#[tokio::test]
async fn what_another_implementation_signed_is_taken() -> Result<()> {
    let (_docker, place) = registry().await?;
    let key = Key::new()?;
    let image = layout::image(&small(), Form::Image)?;
    let payload = json!({ "critical": {
        "identity": { "docker-reference": "" }, "image": { "docker-manifest-digest": image.digest() },
        "type": "cosign container image signature",
    }, "optional": { "creator": "another" } });
    let (tag, signed) = foreign(&key, image.digest(), &payload.to_string())?;
    place.push(NAME, &tag, &signed, |_| ()).await?;
    key.verify(&place, image.digest()).await
}

/// An image with a signature of that text, by ring.
fn foreign(key: &Key, digest: &str, payload: &str) -> Result<(String, Image)> {
    use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.pair.serialize_der(), &random).unwrap();
    let signature = pair.sign(&random, payload.as_bytes()).unwrap();
    let mut layer = Blob::new(signature::PAYLOAD, payload.as_bytes().to_vec())?;
    let signature = BASE64_STANDARD.encode(signature.as_ref());
    layer.descriptor.annotations = Some([(signature::SIGNATURE.to_owned(), signature)].into());
    let config = Blob::json("application/vnd.oci.image.config.v1+json", &json!({}))?;
    Ok((signature::tag(digest), Image::new(config, vec![layer], None)?))
}

#[tokio::test]
async fn another_key_no_signature_and_a_changed_document_are_refused() -> Result<()> {
    let (_docker, place) = registry().await?;
    let (key, other) = (Key::new()?, Key::new()?);
    let image = layout::image(&small(), Form::Image)?;
    place.push(NAME, VERSION, &image, |_| ()).await?;
    let said = async || format!("{:#}", key.verify(&place, image.digest()).await.unwrap_err());
    assert!(said().await.ends_with("is not signed"), "{}", said().await);
    other.sign(&place, image.digest()).await?;
    assert!(said().await.contains("is not signed by that key"), "{}", said().await);

    let document = |digest: &str, kind: &str| {
        json!({ "critical": { "image": { "docker-manifest-digest": digest }, "type": kind } }).to_string()
    };
    const KIND: &str = "cosign container image signature";
    let zero = format!("sha256:{}", "0".repeat(64));
    let (tag, _) = foreign(&key, image.digest(), "")?;
    // By the key, but about something else.
    for (payload, because) in [
        (document(&zero, KIND), "what was signed is another image"),
        (document(image.digest(), "another"), "no document about an image"),
    ] {
        place.push(NAME, &tag, &foreign(&key, image.digest(), &payload)?.1, |_| ()).await?;
        assert!(said().await.contains(because), "{}", said().await);
    }
    // The signature of one document at another.
    let (_, good) = foreign(&key, image.digest(), &document(image.digest(), KIND))?;
    let mut tampered = Blob::new(signature::PAYLOAD, format!("{} ", document(image.digest(), KIND)).into_bytes())?;
    tampered.descriptor.annotations = good.blobs[1].descriptor.annotations.clone();
    place.push(NAME, &tag, &Image::new(good.blobs[0].clone(), vec![tampered], None)?, |_| ()).await?;
    assert!(said().await.contains("not by that key, or not of that document"), "{}", said().await);
    place.push(NAME, &tag, &good, |_| ()).await?;
    key.verify(&place, image.digest()).await
}

#[tokio::test]
async fn a_second_key_adds_its_signature_and_the_same_key_adds_none() -> Result<()> {
    let (_docker, place) = registry().await?;
    let (one, two) = (Key::new()?, Key::new()?);
    let digest = layout::image(&small(), Form::Image)?.digest().to_owned();
    one.sign(&place, &digest).await?;
    let first = signatures(&place, &digest).await?;
    one.sign(&place, &digest).await?;
    assert_eq!(format!("{:?}", signatures(&place, &digest).await?), format!("{first:?}"));
    two.sign(&place, &digest).await?;
    assert_eq!(signatures(&place, &digest).await?.layers.len(), 2);
    one.verify(&place, &digest).await?;
    two.verify(&place, &digest).await
}

#[test]
fn a_file_that_holds_no_such_key_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |text: &str| {
        let path = folder.path().join("key.pem");
        fs::write(&path, text).unwrap();
        path
    };
    let private = |path: &Path| format!("{:#}", Signer::read(path).unwrap_err());
    let other = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384)?;
    assert!(private(&file("nothing")).contains("holds no private key for ECDSA on P-256"));
    assert!(private(&file(&other.serialize_pem())).contains("holds no private key for ECDSA on P-256"));
    assert!(private(&folder.path().join("none")).contains("the key "));
    let said = format!("{:#}", Verifier::read(&file(&other.public_key_pem())).unwrap_err());
    assert!(said.contains("holds no public key for ECDSA on P-256"), "{said}");
    Ok(())
}

/// As cosign writes it, but that it makes a key of a password with more work.
fn encrypted(pair: &KeyPair, password: &str) -> String {
    use crypto_secretbox::{KeyInit as _, XSalsa20Poly1305, aead::Aead as _};
    let mut key = [0; 32];
    scrypt::scrypt(password.as_bytes(), b"salt", &scrypt::Params::new(4, 8, 1).unwrap(), &mut key).unwrap();
    let nonce = [7; 24];
    let sealed = XSalsa20Poly1305::new(&key.into()).encrypt(&nonce.into(), &pair.serialize_der()[..]).unwrap();
    let json = json!({
        "kdf": { "name": "scrypt", "params": { "N": 16, "r": 8, "p": 1 }, "salt": BASE64_STANDARD.encode("salt") },
        "cipher": { "name": "nacl/secretbox", "nonce": BASE64_STANDARD.encode(nonce) },
        "ciphertext": BASE64_STANDARD.encode(sealed),
    });
    pem::encode(&pem::Pem::new("ENCRYPTED SIGSTORE PRIVATE KEY", json.to_string()))
}

#[tokio::test]
async fn a_key_of_cosign_s_opens_with_its_password_alone() -> Result<()> {
    let (docker, place) = registry().await?;
    let (dist, key) = (dist()?, Key::new()?);
    fs::write(key.private(), encrypted(&key.pair, "open sesame"))?;
    let private = key.private().display().to_string();
    let with = async |variables: &[(&str, &Path)]| {
        push(dist.path(), &at(docker.addr()), &["--plain-http", "--sign-key", &private], variables).await
    };
    with(&[]).await?.refused(&["is encrypted: give its password in COSIGN_PASSWORD"]);
    with(&[("COSIGN_PASSWORD", Path::new("sesame"))]).await?.refused(&["does not open with the password"]);
    with(&[("COSIGN_PASSWORD", Path::new("open sesame"))]).await?.went_well();
    key.verify(&place, &place.pull(NAME, VERSION).await?.digest).await
}

#[tokio::test]
async fn the_command_signs_and_verifies() -> Result<()> {
    let (docker, place) = registry().await?;
    let (dist, key, other) = (dist()?, Key::new()?, Key::new()?);
    let to = at(docker.addr());
    let private = key.private().display().to_string();
    let pushed = push(dist.path(), &to, &["--plain-http", "--sign-key", &private], &[]).await?;
    pushed.went_well();
    assert!(pushed.out.contains("signed, pushed, pulled back and compared"), "{pushed:?}");
    let verify = async |key: PathBuf| {
        let key = key.display().to_string();
        images(&["--version", VERSION, "verify", "--registry", &to, "--plain-http", "--key", &key, NAME], &[]).await
    };
    let verified = verify(key.public()).await?;
    verified.went_well();
    for form in Form::ALL {
        let digest = place.pull(NAME, &form.tag(VERSION)).await?.digest;
        assert!(verified.out.contains(&digest) && pushed.out.contains(&digest), "{verified:?}");
    }
    verify(other.public()).await?.refused(&["is not signed by that key"]);
    Ok(())
}
