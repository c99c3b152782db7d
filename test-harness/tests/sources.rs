//! What sources of thresholds answer, fact by fact: nginx with a ConfigMap, etcd's gateway, and the harness's own.
//! The filter's way of asking them is built on these.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use test_harness::sources::{ETCD, NGINX};
use test_harness::thresholds::Mode;
use test_harness::{
    ConfigMap, Envoy, Etcd, H1, H2, HttpFilter, Listener, Nginx, PATIENCE, Reply, Request, Response, Route, Thresholds,
    Upstream, eventually, module, root,
};
use tokio::time::timeout;

const RULES: &str = r#"[{"resource":"payment-service","threshold":0.5}]"#;
const OTHER: &str = r#"[{"resource":"payment-service","threshold":0.25}]"#;

/// `GET /rules`, with that ETag as the one that is known.
fn ask(known: Option<&str>) -> Request {
    known.into_iter().fold(Request::get("/rules"), |request, etag| request.header("if-none-match", etag))
}

fn etag(response: &Response) -> String {
    response.headers.text("etag").expect("an ETag")
}

/// Whether the process is gone, and what it had written.
fn gone(pid: u32, home: &Path) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists() && !home.exists()
}

fn command(pid: u32) -> Vec<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    line.split('\0').map(str::to_owned).collect()
}

fn is_given(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|directory| !directory.is_empty())
}

// --- nginx with a ConfigMap ---

#[tokio::test]
async fn nginx_gives_a_strong_etag_and_304_to_who_has_it() -> Result<()> {
    let map = ConfigMap::mount(RULES)?;
    let nginx = Nginx::start(map.path()).await?;
    let first = nginx.send(&ask(None)).await?;
    assert_eq!((first.status, first.text().as_str()), (200, RULES));
    assert_eq!(first.headers.text("content-type").as_deref(), Some("application/json"));
    let tag = etag(&first);
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2, "{tag}");
    // Asking again gives the same one: it is of the file, not of the answer.
    assert_eq!(etag(&nginx.send(&ask(None)).await?), tag);
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        let same = nginx.send(&ask(Some(&known))).await?;
        assert_eq!((same.status, same.body.len(), etag(&same)), (304, 0, tag.clone()), "{known}");
    }
    let other = nginx.send(&ask(Some("\"other\""))).await?;
    assert_eq!((other.status, other.text().as_str(), etag(&other)), (200, RULES, tag.clone()));
    // The log tells what was asked: quotes are escaped in it.
    let escaped = tag.replace('"', "\\x22");
    let log = nginx.access_log();
    assert!(log.contains(&format!("GET /rules 304 \"{escaped}\"")), "{log:#?}");
    Ok(())
}

#[tokio::test]
async fn a_configmap_that_is_updated_has_another_etag_at_nginx_and_is_never_seen_in_half() -> Result<()> {
    let mut map = ConfigMap::mount(RULES)?;
    let nginx = Nginx::start(map.path()).await?;
    let before = etag(&nginx.send(&ask(None)).await?);
    map.update(OTHER)?;
    let after = nginx.send(&ask(Some(&before))).await?;
    assert_eq!((after.status, after.text().as_str()), (200, OTHER));
    assert_ne!(etag(&after), before);
    // Documents of many blocks, replaced while they are read.
    let documents = ["a", "b"].map(|letter| json!(letter.repeat(300_000)).to_string());
    map.update(&documents[0])?;
    let (mut connection, request) = (H1::connect(nginx.addr()).await?, ask(None));
    for turn in 1..=100 {
        let reads = connection.send(&request);
        let update = async { map.update(&documents[turn % 2]) };
        let (read, updated) = tokio::join!(reads, update);
        updated?;
        let read = read?;
        assert!(read.status == 200 && documents.contains(&read.text()), "{}: {} bytes", read.status, read.body.len());
    }
    Ok(())
}

/// nginx makes the ETag of the file's time, in whole seconds, and its length. Who updates twice in a second, with a
/// document of the same length, is not seen by who asks with `if-none-match`: the time of the second one helps.
#[tokio::test]
async fn nginx_gives_two_documents_one_etag_that_are_of_one_length_and_second() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rules.json");
    let write = |document: &str, milliseconds: u64| -> Result<()> {
        fs::write(&file, document)?;
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + milliseconds);
        Ok(File::options().write(true).open(&file)?.set_modified(time)?)
    };
    write("[1]", 100)?;
    let nginx = Nginx::start(directory.path()).await?;
    let first = etag(&nginx.send(&ask(None)).await?);
    assert_eq!(first, format!("\"{:x}-{:x}\"", 1_700_000_000, 3));
    write("[2]", 900)?;
    assert_eq!(nginx.send(&ask(Some(&first))).await?.status, 304);
    assert_eq!(nginx.send(&ask(None)).await?.text(), "[2]");
    write("[2]", 1000)?;
    assert_eq!(nginx.send(&ask(Some(&first))).await?.status, 200);
    write("[20]", 100)?;
    assert_eq!(nginx.send(&ask(Some(&first))).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn nginx_says_404_to_a_configmap_that_was_deleted_and_goes_on_when_it_is_back() -> Result<()> {
    let map = ConfigMap::mount(RULES)?;
    let nginx = Nginx::start(map.path()).await?;
    let tag = etag(&nginx.send(&ask(None)).await?);
    let (data, away) = (map.path().join("..data"), map.path().join("away"));
    fs::rename(&data, &away)?;
    let lost = nginx.send(&ask(Some(&tag))).await?;
    assert_eq!((lost.status, lost.headers.has("etag")), (404, false));
    // A page for people, and no JSON.
    assert_eq!(lost.headers.text("content-type").as_deref(), Some("text/html"));
    assert!(nginx.log().contains("No such file"), "{}", nginx.log());
    fs::rename(&away, &data)?;
    assert_eq!(nginx.send(&ask(Some(&tag))).await?.status, 304);
    Ok(())
}

#[tokio::test]
async fn nginx_is_the_pinned_one_says_what_is_wrong_and_ends_with_its_value() -> Result<()> {
    let pin = root().join(format!("test-harness/debian/nginx/{NGINX}.txt"));
    assert!(pin.is_file(), "no {}: `make nginx` installs another version", pin.display());
    let map = ConfigMap::mount(RULES)?;
    let nginx = Nginx::start(map.path()).await?;
    if !is_given("NGINX") {
        let server = nginx.send(&ask(None)).await?.headers.text("server");
        assert_eq!(server, Some(format!("nginx/{NGINX}")));
    }
    let (pid, command) = (nginx.pid(), command(nginx.pid()));
    let home = Path::new(&command[command.iter().position(|argument| argument == "-p").unwrap() + 1]);
    assert!(home.is_dir());
    drop(nginx);
    assert!(gone(pid, home));
    // A name that ends the directive: nginx refuses the configuration.
    let odd = tempfile::Builder::new().prefix("a\"b").tempdir()?;
    let refused = format!("{:#}", Nginx::start(odd.path()).await.unwrap_err());
    assert!(refused.contains("nginx has ended") && refused.contains("[emerg]"), "{refused}");
    Ok(())
}

// --- etcd's gateway ---

fn keys_of(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test]
async fn etcd_gives_a_value_in_base64_with_its_revision_and_no_etag() -> Result<()> {
    let etcd = Etcd::start().await?;
    etcd.put("rules", RULES).await?;
    let request = Etcd::range("rules");
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v3/kv/range"));
    assert_eq!(String::from_utf8(request.body.clone())?, r#"{"key":"cnVsZXM="}"#);
    let response = etcd.send(&request).await?;
    assert_eq!(response.status, 200);
    assert_eq!(response.headers.text("content-type").as_deref(), Some("application/json"));
    for absent in ["etag", "last-modified", "cache-control"] {
        assert!(!response.headers.has(absent), "{absent}: {:?}", response.headers);
    }
    let body = response.json()?;
    // Numbers of 64 bits are strings.
    let mut expected = json!({
        "header": { "cluster_id": null, "member_id": null, "revision": "2", "raft_term": "2" },
        "kvs": [{ "key": BASE64_STANDARD.encode("rules"), "create_revision": "2", "mod_revision": "2",
            "version": "1", "value": BASE64_STANDARD.encode(RULES) }],
        "count": "1",
    });
    for id in ["cluster_id", "member_id"] {
        assert!(body["header"][id].as_str().is_some_and(|id| id.parse::<u64>().is_ok()), "{body}");
        expected["header"][id] = body["header"][id].clone();
    }
    assert_eq!(body, expected);
    // Asking with `if-none-match` changes nothing.
    let again = etcd.send(&request.clone().header("if-none-match", "*")).await?;
    assert_eq!((again.status, again.body.clone()), (200, response.body.clone()));
    // Nor does it need to be told that the body is JSON.
    let plain = etcd.send(&Request::post("/v3/kv/range", &request.body)).await?;
    assert_eq!((plain.status, plain.body), (200, response.body));
    Ok(())
}

#[tokio::test]
async fn etcds_revision_of_a_key_moves_with_the_key_and_not_with_others() -> Result<()> {
    let etcd = Etcd::start().await?;
    let seen = async || -> Result<(String, String, String)> {
        let body = etcd.send(&Etcd::range("rules")).await?.json()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kv = &body["kvs"][0];
        Ok((text(&kv["mod_revision"]), text(&kv["version"]), text(&kv["value"])))
    };
    etcd.put("rules", RULES).await?;
    let first = seen().await?;
    etcd.put("unrelated", "1").await?;
    assert_eq!(seen().await?, first);
    // The same value again is a new revision.
    etcd.put("rules", RULES).await?;
    let second = seen().await?;
    assert_eq!((first.0.as_str(), second.0.as_str(), second.1.as_str()), ("2", "4", "2"));
    assert_eq!(second.2, first.2);
    // A key that was deleted and made again counts from 1, but its revision goes on.
    etcd.delete("rules").await?;
    etcd.put("rules", OTHER).await?;
    assert_eq!(seen().await?, ("6".to_owned(), "1".to_owned(), BASE64_STANDARD.encode(OTHER)));
    Ok(())
}

#[tokio::test]
async fn etcd_says_200_without_kvs_for_a_key_that_is_not_there_and_without_value_for_an_empty_one() -> Result<()> {
    let etcd = Etcd::start().await?;
    let ask = async || etcd.send(&Etcd::range("rules")).await;
    let absent = ask().await?;
    assert_eq!((absent.status, keys_of(&absent.json()?)), (200, vec!["header"]));
    etcd.put("rules", "").await?;
    let empty = ask().await?.json()?;
    assert_eq!((keys_of(&empty["kvs"][0]).contains(&"value"), &empty["count"]), (false, &json!("1")));
    etcd.put("rules", RULES).await?;
    etcd.delete("rules").await?;
    let deleted = ask().await?;
    assert_eq!((deleted.status, keys_of(&deleted.json()?)), (200, vec!["header"]));
    Ok(())
}

#[tokio::test]
async fn etcds_gateway_refuses_what_it_cannot_read_and_speaks_no_h2c() -> Result<()> {
    let etcd = Etcd::start().await?;
    let bad = etcd.send(&Request::post("/v3/kv/range", r#"{"key":"*"}"#)).await?;
    let body = bad.json()?;
    assert_eq!((bad.status, &body["code"]), (400, &json!(3)));
    assert!(body["error"].as_str().is_some_and(|error| error.contains("base64")), "{body}");
    // The key stands in a body, so a GET will not do.
    assert_eq!(etcd.send(&Request::get("/v3/kv/range")).await?.status, 405);
    assert_eq!(etcd.send(&Request::get("/rules")).await?.status, 404);
    // What comes by h2c is taken for gRPC.
    let over_h2 = async { H2::connect(etcd.addr()).await?.send(&Etcd::range("rules")).await };
    assert!(over_h2.await.is_err());
    assert_eq!(etcd.send(&Etcd::range("rules")).await?.status, 200);
    Ok(())
}

#[tokio::test]
async fn etcd_is_the_pinned_one_and_ends_with_its_value() -> Result<()> {
    let pin = root().join(format!("test-harness/debian/etcd/{ETCD}.txt"));
    assert!(pin.is_file(), "no {}: `make etcd` installs another version", pin.display());
    let etcd = Etcd::start().await?;
    if !is_given("ETCD") {
        let version = etcd.send(&Request::get("/version")).await?.json()?;
        assert_eq!(version["etcdserver"], ETCD);
    }
    assert!(etcd.log().contains("\"level\":\"info\""), "{}", etcd.log());
    let (pid, command) = (etcd.pid(), command(etcd.pid()));
    let data = Path::new(&command[command.iter().position(|argument| argument == "--data-dir").unwrap() + 1]);
    assert!(data.is_dir());
    drop(etcd);
    assert!(gone(pid, data));
    Ok(())
}

// --- the harness's own ---

async fn send(thresholds: &Thresholds, request: &Request) -> Result<Response> {
    H1::connect(thresholds.addr()).await?.send(request).await
}

#[tokio::test]
async fn the_threshold_server_serves_its_document_over_both_protocols() -> Result<()> {
    let thresholds = Thresholds::start(RULES).await?;
    let h2 = H2::connect(thresholds.addr()).await?;
    let before = Instant::now();
    let first = send(&thresholds, &ask(None)).await?;
    assert_eq!((first.status, first.text().as_str()), (200, RULES));
    assert_eq!(first.headers.text("content-type").as_deref(), Some("application/json"));
    let tag = etag(&first);
    assert!(tag.starts_with('"') && tag.len() == 34, "{tag}");
    assert_eq!(thresholds.etag(), tag);
    for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
        for same in [send(&thresholds, &ask(Some(&known))).await?, h2.send(&ask(Some(&known))).await?] {
            assert_eq!((same.status, same.body.len(), etag(&same)), (304, 0, tag.clone()), "{known}");
        }
    }
    assert_eq!(h2.send(&ask(Some("\"other\""))).await?.text(), RULES);
    // What it saw.
    let seen = thresholds.wait(10).await?;
    assert_eq!(seen.len(), 10);
    assert!(seen.iter().all(|seen| (seen.method.as_str(), seen.path.as_str()) == ("GET", "/rules")));
    assert!(seen.iter().all(|seen| seen.etag.as_ref() == Some(&tag) && seen.at >= before));
    let known = |index: usize| (seen[index].if_none_match.clone(), seen[index].status);
    assert_eq!((known(0), known(1)), ((None, Some(200)), (Some(tag), Some(304))));
    assert_eq!(known(9), (Some("\"other\"".to_owned()), Some(200)));
    assert_eq!(thresholds.take(), []);
    Ok(())
}

#[tokio::test]
async fn the_threshold_server_takes_another_document_whatever_it_is() -> Result<()> {
    let thresholds = Thresholds::start(RULES).await?;
    let first = thresholds.etag();
    let odd = b"{\"resource\": \xff\0";
    let put = Request { method: "PUT".to_owned(), ..Request::post("/rules", odd) };
    let taken = send(&thresholds, &put).await?;
    let now = send(&thresholds, &ask(Some(&first))).await?;
    assert_eq!((taken.status, now.status, now.body.as_slice()), (204, 200, &odd[..]));
    assert_eq!((etag(&taken), etag(&now)), (thresholds.etag(), thresholds.etag()));
    assert_ne!(thresholds.etag(), first);
    // The ETag is of the bytes alone.
    thresholds.set(RULES);
    assert_eq!(send(&thresholds, &ask(Some(&first))).await?.status, 304);
    assert_eq!(send(&thresholds, &Request::post("/rules", "")).await?.status, 405);
    assert_eq!(send(&thresholds, &Request::get("/")).await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn the_threshold_server_fails_and_lies_as_told() -> Result<()> {
    let thresholds = Thresholds::start(RULES).await?;
    let tag = thresholds.etag();
    let known = ask(Some(&tag));

    thresholds.mode(Mode::Refuse(503));
    let refused = send(&thresholds, &known).await?;
    assert_eq!((refused.status, refused.headers.has("etag")), (503, false));

    thresholds.mode(Mode::Oversized(2_000_000));
    let big = send(&thresholds, &known).await?;
    assert_eq!((big.status, big.body.len(), big.json()?), (200, 2_000_000, serde_json::from_str(RULES)?));
    assert_ne!(etag(&big), tag);

    thresholds.mode(Mode::Empty);
    let empty = send(&thresholds, &known).await?;
    assert_eq!((empty.status, empty.body.len()), (200, 0));
    assert_ne!(etag(&empty), tag);

    thresholds.mode(Mode::NoEtag);
    let plain = send(&thresholds, &known).await?;
    assert_eq!((plain.status, plain.text().as_str(), plain.headers.has("etag")), (200, RULES, false));

    thresholds.mode(Mode::NotModified);
    assert_eq!(send(&thresholds, &ask(None)).await?.status, 304);

    thresholds.mode(Mode::Slow(Duration::from_millis(300)));
    let (start, slow) = (Instant::now(), send(&thresholds, &ask(None)).await?);
    assert_eq!((slow.status, slow.text().as_str()), (200, RULES));
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(send(&thresholds, &known).await?.status, 304);

    drop(thresholds.take());
    for mode in [Mode::Drop, Mode::Torn, Mode::Hang] {
        thresholds.mode(mode);
        let mut connection = H1::connect(thresholds.addr()).await?;
        connection.write(&known.to_bytes()).await?;
        let seen = thresholds.wait(1).await?;
        assert_eq!((seen.len(), seen[0].status), (1, if mode == Mode::Torn { Some(200) } else { None }), "{mode:?}");
        let read = connection.read(false);
        if mode == Mode::Hang {
            assert!(timeout(Duration::from_millis(300), read).await.is_err());
        } else {
            let error = read.await.unwrap_err();
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{mode:?}: {error:#}");
        }
    }
    thresholds.mode(Mode::Torn);
    let mut connection = H1::connect(thresholds.addr()).await?;
    connection.write(&known.to_bytes()).await?;
    let head = connection.read(true).await?;
    assert_eq!(head.headers.text("content-length"), Some(RULES.len().to_string()));

    // A lie has no consequences.
    thresholds.mode(Mode::default());
    assert_eq!(send(&thresholds, &known).await?.status, 304);
    Ok(())
}

#[tokio::test]
async fn the_threshold_server_goes_down_and_comes_back_where_it_was() -> Result<()> {
    let mut thresholds = Thresholds::start(RULES).await?;
    let (addr, tag) = (thresholds.addr(), thresholds.etag());
    let mut open = H1::connect(addr).await?;
    assert_eq!(open.send(&ask(None)).await?.status, 200);
    for _ in 0..3 {
        thresholds.down().await?;
        assert!(H1::connect(addr).await.is_err());
        // What is set meanwhile is there afterwards.
        thresholds.set(OTHER);
        thresholds.up().await?;
        assert_eq!((thresholds.addr(), send(&thresholds, &ask(Some(&tag))).await?.text().as_str()), (addr, OTHER));
    }
    // An open connection did not outlive it.
    assert!(timeout(PATIENCE, open.send(&ask(None))).await?.is_err());
    assert!(Thresholds::start_at(addr, "").await.is_err());
    Ok(())
}

#[tokio::test]
async fn the_program_serves_a_file_and_follows_it() -> Result<()> {
    let mut map = ConfigMap::mount(RULES)?;
    let program = env!("CARGO_BIN_EXE_thresholds");
    let mut command = tokio::process::Command::new(program);
    command.args(["--listen", "127.0.0.1:0"]).arg(map.path().join("rules.json"));
    let mut child = command.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let mut line = async || -> Result<String> { Ok(timeout(PATIENCE, lines.next_line()).await??.unwrap_or_default()) };
    let said = line().await?;
    let addr = said.split("http://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default().parse()?;
    let get = async |known: Option<&str>| H1::connect(addr).await?.send(&ask(known)).await;
    let first = get(None).await?;
    let tag = etag(&first);
    assert_eq!(first.text(), RULES);
    assert!(said.ends_with(&tag), "{said}");
    let said = line().await?;
    assert!(said.contains("  GET  200 ") && said.ends_with(&tag), "{said}");
    get(Some(&tag)).await?;
    let said = line().await?;
    assert!(said.contains("  GET  304 "), "{said}");
    map.update(OTHER)?;
    let said = line().await?;
    assert!(said.contains("  FILE read "), "{said}");
    assert_eq!(get(Some(&tag)).await?.text(), OTHER);
    line().await?;
    // The last document stays without the file.
    fs::remove_file(map.path().join("rules.json"))?;
    let said = line().await?;
    assert!(said.contains("  FILE lost "), "{said}");
    assert_eq!(get(None).await?.text(), OTHER);
    for (wrong, why) in
        [(&["--listen"][..], "needs an address"), (&["--listen", "x", "y"], "no address"), (&[], "usage")]
    {
        let output = tokio::process::Command::new(program).args(wrong).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{wrong:?}: {said}");
    }
    Ok(())
}

// --- the filter, against each of them: its tests begin here ---

/// An Envoy whose filter takes its rules from there, before a service that is well.
async fn filtered(source: SocketAddr, options: Value) -> Result<(Envoy, Upstream)> {
    let upstream = Upstream::start().await?;
    let mut options = options;
    options["cluster"] = "source".into();
    options["interval"] = "100ms".into();
    let filter = HttpFilter::wasm("circuit-breaker", module("circuit-breaker")?);
    let listener = Listener::http("in")
        .filter(filter.config(json!({ "source": options })))
        .route(Route::cluster("payment-service"));
    let builder = Envoy::builder().cluster("source", source).cluster("payment-service", upstream.addr());
    Ok((builder.listener(listener).start().await?, upstream))
}

/// Rules by which the filter can be told that it has them: they reject everything with this status.
fn rejecting(status: u16) -> String {
    json!([{ "resource": "payment-service", "strategy": "error_count", "threshold": 5,
        "mode": "forced_open", "reject": { "status": status } }])
    .to_string()
}

/// Waits until the filter has these rules on each worker that takes one of these connections.
async fn has(envoy: &Envoy, status: u16) -> Result<()> {
    for _ in 0..6 {
        eventually(format!("status {status}"), PATIENCE, async || {
            let answer = envoy.get("in", "/", ()).await.map_err(|error| format!("{error:#}"))?;
            if answer.status == status { Ok(()) } else { Err(format!("{}\n{}", answer.status, envoy.log())) }
        })
        .await?;
    }
    Ok(())
}

/// Waits until two more answers of the source had this result.
async fn hears(envoy: &Envoy, result: &str) -> Result<()> {
    let count = async || -> Result<u64> {
        let stats = envoy.stats("wasmcustom.meshfilter_circuit_updates_total").await?;
        Ok(stats.iter().filter(|(stat, _)| stat.contains(result)).map(|(_, value)| value).sum())
    };
    let before = count().await?;
    eventually(format!("two more {result}"), PATIENCE, async || {
        match count().await.map_err(|error| format!("{error:#}"))? {
            now if now.saturating_sub(before) >= 2 => Ok(()),
            now => Err(format!("{now} after {before}\n{}", envoy.log())),
        }
    })
    .await
}

/// What stands in the log about the last answer that was of no use.
fn complaint(envoy: &Envoy) -> String {
    let log = envoy.log();
    log.lines().rfind(|line| line.contains("the rules stay as they are: ")).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_filter_takes_rules_from_nginx_follows_them_and_keeps_them() -> Result<()> {
    let mut map = ConfigMap::mount(rejecting(420))?;
    let nginx = Nginx::start(map.path()).await?;
    let (envoy, _upstream) = filtered(nginx.addr(), json!({ "path": "/rules" })).await?;
    has(&envoy, 420).await?;
    hears(&envoy, "unchanged").await?;
    assert!(
        nginx.access_log().iter().any(|line| line.starts_with("GET /rules 304 \"\\x22")),
        "{:#?}",
        nginx.access_log()
    );
    for status in [421, 422, 423] {
        map.update(rejecting(status))?;
        has(&envoy, status).await?;
    }
    map.update("{ broken")?;
    hears(&envoy, "refused").await?;
    has(&envoy, 423).await?;
    let link = map.path().join("rules.json");
    fs::remove_file(&link)?;
    hears(&envoy, "unreachable").await?;
    has(&envoy, 423).await?;
    assert!(complaint(&envoy).contains("source/rules says 404"), "{}", complaint(&envoy));
    drop(nginx);
    hears(&envoy, "unreachable").await?;
    has(&envoy, 423).await
}

#[tokio::test]
async fn the_filter_takes_rules_from_etcd_follows_them_and_keeps_them() -> Result<()> {
    let etcd = Etcd::start().await?;
    etcd.put("circuit/rules", rejecting(420)).await?;
    let asked = Etcd::range("circuit/rules");
    let options = json!({ "path": asked.path, "method": "POST", "form": "etcd",
        "body": String::from_utf8(asked.body)?, "headers": { "content-type": "application/json" } });
    let (envoy, _upstream) = filtered(etcd.addr(), options).await?;
    has(&envoy, 420).await?;
    hears(&envoy, "unchanged").await?;
    for status in [421, 422] {
        etcd.put("circuit/rules", rejecting(status)).await?;
        has(&envoy, status).await?;
    }
    // Other keys are not its own, and move only etcd's revision.
    etcd.put("circuit/others", rejecting(499)).await?;
    hears(&envoy, "unchanged").await?;
    for (document, says) in [("", "is empty"), ("[{\"resource\":1}]", "resource"), ("no JSON", "source/v3/kv/range")] {
        etcd.put("circuit/rules", document).await?;
        hears(&envoy, "refused").await?;
        has(&envoy, 422).await?;
        assert!(complaint(&envoy).contains(says), "{}", complaint(&envoy));
        etcd.put("circuit/rules", rejecting(422)).await?;
        hears(&envoy, "unchanged").await?;
    }
    etcd.delete("circuit/rules").await?;
    hears(&envoy, "refused").await?;
    has(&envoy, 422).await?;
    assert!(complaint(&envoy).contains("has no value"), "{}", complaint(&envoy));
    etcd.put("circuit/rules", rejecting(424)).await?;
    has(&envoy, 424).await?;
    drop(etcd);
    hears(&envoy, "unreachable").await?;
    has(&envoy, 424).await
}

/// No server of theirs is at hand: these answers are written after their documentation, and show what the filter asks and
/// what it makes of such an answer.
#[tokio::test]
async fn the_filter_asks_consul_and_nacos_in_their_way() -> Result<()> {
    let tokens = json!({ "x-consul-token": "a-token" });
    let consul = "/v1/kv/circuit/rules";
    let nacos = "/nacos/v1/cs/configs?dataId=circuit-rules&group=SENTINEL_GROUP&tenant=mesh";
    let raw = format!("{consul}?raw");
    for (path, form, headers) in [
        (consul, "consul", tokens.clone()),
        (&*raw, "plain", tokens),
        (nacos, "plain", json!({ "accesstoken": "a-token" })),
    ] {
        let status = Arc::new(AtomicU16::new(420));
        let (now, wrapped) = (Arc::clone(&status), form == "consul");
        let store = Upstream::with(move |_| {
            let status = now.load(Ordering::SeqCst);
            let document = rejecting(status);
            // A key that is not there.
            if status == 404 {
                return Reply::new(404);
            }
            let entry = json!([{ "LockIndex": 0, "Key": "circuit/rules", "Flags": 0, "CreateIndex": 10,
                "Value": BASE64_STANDARD.encode(&document), "ModifyIndex": status }]);
            let reply = Reply::new(200).header("x-consul-index", status.to_string());
            let reply = reply.header("content-type", if wrapped { "application/json" } else { "text/plain" });
            reply.chunk(if wrapped { entry.to_string() } else { document })
        })
        .await?;
        let options = json!({ "path": path, "form": form, "headers": headers, "authority": "store.example" });
        let (envoy, _upstream) = filtered(store.addr(), options).await?;
        has(&envoy, 420).await?;
        hears(&envoy, "unchanged").await?;
        status.store(421, Ordering::SeqCst);
        has(&envoy, 421).await?;
        status.store(404, Ordering::SeqCst);
        hears(&envoy, "unreachable").await?;
        has(&envoy, 421).await?;
        for asked in store.take() {
            assert_eq!((asked.method.as_str(), asked.path.as_str(), asked.body.len()), ("GET", path, 0));
            assert_eq!(asked.headers.text("host").as_deref(), Some("store.example"));
            let token = asked.headers.text("x-consul-token").or_else(|| asked.headers.text("accesstoken"));
            assert_eq!(token.as_deref(), Some("a-token"));
            // Neither gives an ETag.
            assert!(!asked.headers.has("if-none-match"));
        }
    }
    Ok(())
}
