//! What goes wrong with a push is said, and leaves nothing half-written.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use images::Form;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use test_harness::DockerRegistry;
use tokio::net::TcpListener;

use crate::world::{Line, NAME, VERSION, at, both, dist, images, line_with_another, place, push, registry, small};

/// The user `publisher`, whose password is `right`.
const USERS: &str = "publisher:$2b$04$LmWKoTc4b.WnWh0IkqiHEewrkrtQbIaLOuGgXjvZC9r7QtaMs.Cb2\n";

/// Docker's configuration with that in it.
fn docker(configuration: &Value) -> Result<TempDir> {
    let folder = tempdir()?;
    fs::write(folder.path().join("config.json"), configuration.to_string())?;
    Ok(folder)
}

fn password(host: SocketAddr, password: &str) -> Result<TempDir> {
    let auth = BASE64_STANDARD.encode(format!("publisher:{password}"));
    docker(&json!({ "auths": { host.to_string(): { "auth": auth } } }))
}

#[tokio::test]
async fn credentials_right_wrong_and_none() -> Result<()> {
    let registry = DockerRegistry::builder().users(USERS).start().await?;
    let (dist, host) = (dist()?, registry.addr());
    let with =
        async |config: &Path| push(dist.path(), &at(host), &["--plain-http"], &[("DOCKER_CONFIG", config)]).await;
    let nothing = tempdir()?;
    let run = with(nothing.path()).await?;
    run.refused(&[
        "trace-id:1.2.3 was not pushed",
        &format!("{host} wants credentials"),
        &format!("{} has none for it: run `docker login {host}`", nothing.path().join("config.json").display()),
    ]);
    let run = with(password(host, "wrong!")?.path()).await?;
    run.refused(&["does not take the credentials that"]);
    assert!(!run.error.contains("wrong!"), "{run:?}");
    // Those of another host are nobody's here.
    with(password("127.0.0.1:1".parse()?, "right")?.path()).await?.refused(&["wants credentials"]);
    with(password(host, "right")?.path()).await?.went_well();
    // From a field each, as some tools write them.
    let plain = json!({ "auths": { host.to_string(): { "username": "publisher", "password": "right" } } });
    with(docker(&plain)?.path()).await?.went_well();
    Ok(())
}

#[tokio::test]
async fn credentials_come_from_docker_s_helpers() -> Result<()> {
    let registry = DockerRegistry::builder().users(USERS).start().await?;
    let (dist, host) = (dist()?, registry.addr().to_string());
    let programs = tempdir()?;
    let program = programs.path().join("docker-credential-tests");
    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH")?);
    let with = async |script: &str, configuration: Value| {
        fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let config = docker(&configuration)?;
        let variables = [("DOCKER_CONFIG", config.path()), ("PATH", Path::new(&path))];
        push(dist.path(), &at(registry.addr()), &["--plain-http"], &variables).await
    };
    let gives = |name: &str| {
        let answer = json!({ "ServerURL": host, "Username": name, "Secret": "right" });
        format!("test \"$1\" = get && test \"$(cat)\" = {host} && echo '{answer}'")
    };
    let helpers = json!({ "credHelpers": { &host: "tests" } });
    with(&gives("publisher"), helpers.clone()).await?.went_well();
    with(&gives("publisher"), json!({ "credsStore": "tests" })).await?.went_well();
    with(&gives("somebody"), helpers.clone()).await?.refused(&["does not take the credentials"]);
    let none = "cat >/dev/null; echo 'credentials not found in native keychain'; exit 1";
    with(none, json!({ "credsStore": "tests" })).await?.refused(&["wants credentials"]);
    with("cat >/dev/null; echo out of order >&2; exit 1", helpers.clone())
        .await?
        .refused(&["no credentials for", "out of order"]);
    with(&gives("<token>"), helpers).await?.refused(&["identity token", "not supported"]);
    with("", json!("no object")).await?.refused(&["no credentials for", "config.json"]);
    Ok(())
}

/// Gives tokens for the one repository to who is `publisher`, with the password `right`.
async fn give_tokens(listener: TcpListener, key: KeyPair, certificate: Vec<u8>) -> Result<()> {
    use p256::ecdsa::{Signature, SigningKey, signature::Signer as _};
    use p256::pkcs8::DecodePrivateKey as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let key = SigningKey::from_pkcs8_der(&key.serialize_der())?;
    let right = format!("Basic {}", BASE64_STANDARD.encode("publisher:right"));
    loop {
        let (mut client, _) = listener.accept().await?;
        let mut request = vec![0; 64 * 1024];
        let count = client.read(&mut request).await?;
        let (status, body) = if String::from_utf8_lossy(&request[..count]).contains(&right) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let access =
                json!([{ "type": "repository", "name": format!("filters/{NAME}"), "actions": ["pull", "push"] }]);
            let claims = json!({
                "iss": "tests", "aud": "tests", "sub": "publisher", "jti": "1",
                "iat": now - 10, "nbf": now - 10, "exp": now + 300, "access": access,
            });
            let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [BASE64_STANDARD.encode(&certificate)] });
            let text = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
            let signature: Signature = key.sign(text.as_bytes());
            let token = format!("{text}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature.to_bytes()));
            ("200 OK", json!({ "token": token }).to_string())
        } else {
            ("401 Unauthorized", "{}".to_owned())
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        client.write_all(format!("{head}{body}").as_bytes()).await?;
    }
}

#[tokio::test]
async fn a_registry_that_wants_tokens() -> Result<()> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(["tokens".to_owned()])?.self_signed(&key)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/token", listener.local_addr()?);
    let registry = DockerRegistry::builder().tokens(&url, certificate.pem()).start().await?;
    let server = tokio::spawn(give_tokens(listener, key, certificate.der().to_vec()));
    let (dist, host, nothing) = (dist()?, registry.addr(), tempdir()?);
    let with =
        async |config: &Path| push(dist.path(), &at(host), &["--plain-http"], &[("DOCKER_CONFIG", config)]).await;
    with(nothing.path()).await?.refused(&["trace-id:1.2.3 was not pushed", "wants credentials"]);
    with(password(host, "wrong!")?.path()).await?.refused(&["does not take the credentials that"]);
    with(password(host, "right")?.path()).await?.went_well();
    server.abort();
    assert!(server.await.unwrap_err().is_cancelled());
    let says = format!("{host} wants a token, and who gives them cannot be reached");
    with(password(host, "right")?.path()).await?.refused(&[&says, &url]);
    Ok(())
}

#[tokio::test]
async fn a_registry_that_is_down() -> Result<()> {
    let registry = DockerRegistry::builder().start().await?;
    let host = registry.addr();
    drop(registry);
    let dist = dist()?;
    for scheme in [&["--plain-http"][..], &[]] {
        let run = push(dist.path(), &at(host), scheme, &[]).await?;
        run.refused(&["trace-id:1.2.3 was not pushed", &format!("{host} cannot be reached"), "Connection refused"]);
    }
    let run = push(dist.path(), "registry.invalid/filters", &[], &[]).await?;
    run.refused(&["registry.invalid cannot be reached: is the name right"]);
    Ok(())
}

#[tokio::test]
async fn a_push_that_breaks_anywhere_leaves_no_tag_and_can_be_repeated() -> Result<()> {
    // Of a blob the beginning has gone; of the manifest nothing, the head, a part of it, all but the end.
    let cuts = [
        ("GET /v2/", 0),
        ("HEAD /v2/filters/trace-id/blobs/", 0),
        ("POST /v2/filters/trace-id/blobs/uploads/", 10),
        ("PUT /v2/filters/trace-id/blobs/uploads/", 0),
        ("PUT /v2/filters/trace-id/blobs/uploads/", 20_000),
        ("PUT /v2/filters/trace-id/manifests/1.2.3 HTTP", 0),
        ("PUT /v2/filters/trace-id/manifests/1.2.3 HTTP", 100),
        ("PUT /v2/filters/trace-id/manifests/1.2.3 HTTP", 600),
        ("\"schemaVersion\":2", 0),
    ];
    let dist = dist()?;
    for (text, more) in cuts {
        let (docker, direct) = registry().await?;
        let line = Line::cut_after(docker.addr(), text, more).await?;
        let run = push(dist.path(), &at(line.addr), &["--plain-http"], &[]).await?;
        assert!(line.is_cut(), "{text}: {run:?}");
        run.refused(&["trace-id:1.2.3 was not pushed", "because: ", &line.addr.to_string()]);
        assert!(["broke before all was there", "cannot be reached"].iter().any(|t| run.error.contains(t)), "{run:?}");
        for form in Form::ALL {
            assert_eq!(direct.manifest(NAME, &form.tag(VERSION)).await?, None, "{text} and {more} bytes");
        }
        push(dist.path(), &at(docker.addr()), &["--plain-http"], &[]).await?.went_well();
        assert!(direct.manifest(NAME, VERSION).await?.is_some());
    }
    Ok(())
}

/// What was pushed is asked for again, by its tag and by its digest, and a registry that has something else is found out.
#[tokio::test]
async fn a_registry_that_has_something_else_afterwards() -> Result<()> {
    let (docker, direct) = registry().await?;
    let dist = dist()?;
    for (form, image) in both(&small())? {
        direct.push(NAME, &form.tag("9.9.9"), &image, |_| ()).await?;
    }
    let put = "PUT /v2/filters/trace-id/manifests/1.2.3 ";
    let line = line_with_another(
        docker.addr(),
        put,
        "GET /v2/filters/trace-id/manifests/1.2.3 ",
        "GET /v2/filters/trace-id/manifests/9.9.9 ",
    )
    .await?;
    let run = push(dist.path(), &at(line), &["--plain-http"], &[]).await?;
    run.refused(&["trace-id:1.2.3 was not pushed", "the registry has sha256:", " as 1.2.3, pushed was sha256:"]);
    Ok(())
}

#[tokio::test]
async fn a_signature_that_fails_leaves_no_image() -> Result<()> {
    let (docker, direct) = registry().await?;
    let (dist, keys) = (dist()?, tempdir()?);
    let key = keys.path().join("key.pem");
    fs::write(&key, KeyPair::generate()?.serialize_pem())?;
    let line = Line::cut_after(docker.addr(), "PUT /v2/filters/trace-id/manifests/sha256-", 0).await?;
    let key = key.display().to_string();
    let run = push(dist.path(), &at(line.addr), &["--plain-http", "--sign-key", &key], &[]).await?;
    run.refused(&["trace-id:1.2.3 was not pushed", "because: the signature"]);
    assert!(line.is_cut());
    assert_eq!(direct.manifest(NAME, VERSION).await?, None);
    Ok(())
}

/// An authority, and a certificate of it for that name.
fn authority(name: &str) -> Result<(String, String, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([name.to_owned()])?.signed_by(&key, &authority)?;
    Ok((authority.pem(), certificate.pem(), key.serialize_pem()))
}

#[tokio::test]
async fn tls_is_the_default_and_an_authority_can_be_given() -> Result<()> {
    let (authority_pem, certificate, key) = authority("127.0.0.1")?;
    let registry = DockerRegistry::builder().tls(certificate, key).start().await?;
    let (dist, files) = (dist()?, tempdir()?);
    let to = at(registry.addr());
    let (trusted, other) = (files.path().join("trusted.pem"), files.path().join("other.pem"));
    fs::write(&trusted, authority_pem)?;
    fs::write(&other, authority("127.0.0.1")?.0)?;
    push(dist.path(), &to, &[], &[("SSL_CERT_FILE", &trusted)]).await?.went_well();
    let run = push(dist.path(), &to, &[], &[("SSL_CERT_FILE", &other)]).await?;
    run.refused(&["the certificate of 127.0.0.1:", "is not trusted here", "SSL_CERT_FILE"]);
    let run = push(dist.path(), &to, &["--plain-http"], &[("SSL_CERT_FILE", &trusted)]).await?;
    run.refused(&["does not take this without TLS, as it seems: leave out PLAIN_HTTP=1"]);
    // One that is an authority, as is easily made by mistake.
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let own = params.self_signed(&key)?.pem();
    fs::write(&trusted, &own)?;
    let registry = DockerRegistry::builder().tls(own, key.serialize_pem()).start().await?;
    let run = push(dist.path(), &at(registry.addr()), &[], &[("SSL_CERT_FILE", &trusted)]).await?;
    run.refused(&["is an authority's own, which is refused for a server: it needs CA:FALSE"]);
    // One for another name.
    let (authority_pem, certificate, key) = authority("registry.example.com")?;
    fs::write(&trusted, authority_pem)?;
    let registry = DockerRegistry::builder().tls(certificate, key).start().await?;
    let run = push(dist.path(), &at(registry.addr()), &[], &[("SSL_CERT_FILE", &trusted)]).await?;
    run.refused(&["is not trusted here"]);
    Ok(())
}

#[tokio::test]
async fn without_tls_only_by_choice() -> Result<()> {
    let registry = DockerRegistry::builder().start().await?;
    let dist = dist()?;
    let run = push(dist.path(), &at(registry.addr()), &[], &[]).await?;
    run.refused(&["does not speak TLS; PLAIN_HTTP=1 pushes without"]);
    assert_eq!(place(registry.addr())?.manifest(NAME, VERSION).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_server_that_says_no() -> Result<()> {
    let dist = dist()?;
    for (status, says) in [
        ("403 Forbidden", "does not allow it with these credentials"),
        ("404 Not Found", "does not know"),
        ("429 Too Many Requests", "too many requests"),
        ("503 Service Unavailable", "has failed; that is its own fault"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let server = tokio::spawn(refuse(listener, status));
        let run = push(dist.path(), &at(addr), &["--plain-http"], &[]).await?;
        run.refused(&["trace-id:1.2.3 was not pushed", says]);
        server.abort();
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_say_what_is_there_gets_nothing() -> Result<()> {
    let dist = dist()?;
    for (status, says) in [
        ("401 Unauthorized", "wants credentials"),
        ("403 Forbidden", "does not allow it with these credentials"),
        ("500 Internal Server Error", "has failed; that is its own fault"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (told, seen) = (Arc::new(Mutex::new(Vec::new())), status);
        let server = tokio::spawn(answer(listener, told.clone(), move |request| match request {
            get if get.starts_with("GET /v2/ ") => "200 OK",
            _ => seen,
        }));
        for more in [&["--plain-http"][..], &["--plain-http", "--move"]] {
            push(dist.path(), &at(addr), more, &[]).await?.refused(&["trace-id:1.2.3 was not pushed", says]);
        }
        server.abort();
        let told = told.lock().unwrap();
        assert!(!told.is_empty() && told.iter().all(|request| request.starts_with("GET ")), "{told:?}");
    }
    Ok(())
}

/// Lets in who asks whether it may, has nothing, and says no to a push.
async fn refuse(listener: TcpListener, status: &'static str) -> Result<()> {
    answer(listener, Arc::default(), move |request| match request {
        get if get.starts_with("GET /v2/ ") => "200 OK",
        // In its own words, as proxies in front of registries have them.
        read if read.starts_with("GET ") || read.starts_with("HEAD ") => "404 Not Found",
        _ => status,
    })
    .await
}

/// Answers each request with a status of its own, and notes its first line.
async fn answer(
    listener: TcpListener,
    told: Arc<Mutex<Vec<String>>>,
    status: impl Fn(&str) -> &'static str,
) -> Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    loop {
        let (mut client, _) = listener.accept().await?;
        let mut request = vec![0; 64 * 1024];
        let count = client.read(&mut request).await?;
        let request = String::from_utf8_lossy(&request[..count]).into_owned();
        let status = status(&request);
        told.lock().unwrap().extend(request.lines().next().map(str::to_owned));
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        client.write_all(answer.as_bytes()).await?;
    }
}

#[tokio::test]
async fn what_is_wrong_here_is_said_before_anything_is_sent() -> Result<()> {
    let (docker, _) = registry().await?;
    let (dist, nothing) = (dist()?, tempdir()?);
    let to = at(docker.addr());
    let run = push(nothing.path(), &to, &["--plain-http"], &[]).await?;
    run.refused(&["there are no images in", "run `make images VERSION=1.2.3`"]);
    let run = push(dist.path(), &to, &["--plain-http", "no-such-filter"], &[]).await?;
    run.refused(&["no module no-such-filter, there is: trace-id"]);
    let run = push(dist.path(), &to, &["--plain-http", "--sign-key", "/no/such/key"], &[]).await?;
    run.refused(&["the key /no/such/key"]);
    for (wrong, says) in
        [("registry.example.com", "has no path"), ("localhost:5000/Filters", "`Filters` in `localhost:")]
    {
        push(dist.path(), wrong, &["--plain-http"], &[]).await?.refused(&[wrong, says]);
    }
    let root = dist.path().display().to_string();
    let other = ["--dist", &root, "--version", "2.0.0", "push", "--registry", &to, "--plain-http", NAME];
    images(&other, &[]).await?.refused(&["there is 1.2.3, 1.2.3-artifact, and no 2.0.0"]);
    let other = ["--dist", &root, "--version", "latest", "push", "--registry", &to, "--plain-http", NAME];
    images(&other, &[]).await?.refused(&["`latest` is no version: give one such as 1.2.3"]);
    assert!(!docker.log().contains("/v2/"), "{}", docker.log());
    Ok(())
}
