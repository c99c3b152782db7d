//! log-scrub in a real Envoy with two workers: what it prints, and what it sends on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test"
)]

use std::fs;
use std::net::TcpListener;

use anyhow::Result;
use kit::testing::refusal;
use serde_json::{Map, Value, json};
use test_harness::{
    AccessLog, Cluster, Envoy, H1, H2, HttpFilter, Listener, Reply, Request, Response, Route, Upstream, module, root,
};

fn scrub(configuration: Value) -> Result<HttpFilter> {
    Ok(HttpFilter::wasm("log-scrub", module("log-scrub")?).config(configuration))
}

/// The example for plain Envoy: its access log and the plugin's configuration.
fn example() -> (Map<String, Value>, Value) {
    let text = fs::read_to_string(root().join("examples/envoy/log-scrub.yaml")).unwrap();
    let bootstrap: Value = serde_saphyr::from_str(&text).unwrap();
    let manager = &bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"];
    let format = manager["access_log"][0]["typed_config"]["log_format"]["json_format"].as_object().unwrap().clone();
    let plugin = &manager["http_filters"][0]["typed_config"]["config"]["configuration"]["value"];
    (format, serde_json::from_str(plugin.as_str().unwrap()).unwrap())
}

#[test]
fn the_examples_format_holds_nothing_raw() {
    let (format, _) = example();
    // What the proxy itself knows, and clean copies.
    let own = [
        "START_TIME",
        "PROTOCOL",
        "RESPONSE_CODE",
        "RESPONSE_FLAGS",
        "RESPONSE_CODE_DETAILS",
        "BYTES_RECEIVED",
        "BYTES_SENT",
        "DURATION",
        "UPSTREAM_CLUSTER",
        "ROUTE_NAME",
    ];
    for (field, operator) in &format {
        let operator = operator.as_str().unwrap().trim_matches('%');
        let clean = operator.strip_prefix("FILTER_STATE(wasm.scrub.").is_some_and(|rest| rest.ends_with(":PLAIN)"));
        assert!(clean || own.contains(&operator), "{field}: {operator}");
    }
}

/// Everything in it that says `kanari` is to be hidden, and so are these numbers.
const NUMBERS: [&str; 3] = ["4111111111111111", "4111 1111 1111 1111", "+4915112345678"];

/// Requests with something to hide in every place.
fn canaries() -> Vec<Request> {
    let json = r#"{"user":{"mail":"kanari.json@example.com","pass\u0077ord":"kanari-pw","card":4111111111111111,
        "inner":"{\"token\":\"kanari-inner\",\"to\":\"\\u002b4915112345678\"}","kanari.key@example.com":1}}"#;
    let get = Request::get;
    let post = |kind: &str, body: &str| Request::post("/post", body).header("content-type", kind);
    let reply = |steps: &str| Request::get("/reply").header("x-reply", steps);
    vec![
        get("/users/kanari.path@example.com/cards/4111111111111111"),
        get("/a?token=kanari-query&q=kanari%2Equery%40example.com&n=kanari%252Equery%2540example%252Ecom"),
        get("/a?to=%2B4915112345678&card=4111+1111+1111+1111&next=https%3A%2F%2Fkanari%3Apw%40a.example%2F"),
        get("/a/b;session_id=kanari/;password=kanari/c"),
        get("/a").header("referer", "https://a.example/kanari@example.com?access_token=kanari#token=kanari"),
        get("/a").header("user-agent", "app (kanari.agent@example.com; +4915112345678)"),
        get("/a").header("x-request-id", "kanari.id@example.com").header("authorization", "Bearer kanari"),
        get("/a").header("cookie", "sid=kanari").header("x-other", "kanari"),
        get("/a").header("host", "kanari.host@example.com"),
        post("application/json", json),
        post("application/json", "{\"broken\": \"kanari"),
        post("application/json", &format!("{{\"a\":\"{} kanari\"}}", "x".repeat(10_000))),
        post("application/x-www-form-urlencoded", "mail=kanari%40example.com&password=kanari&card=4111+1111+1111+1111"),
        post("text/plain", "write to kanari@example.com or call +4915112345678"),
        post("text/plain; charset=utf-16", "kanari"),
        post("application/octet-stream", "kanari"),
        post("application/json", "{\"a\":\"kanari\"}").header("content-encoding", "gzip"),
        Request::post("/no-type", "kanari"),
        reply("header=content-type:application/json; chunk={\"mail\":\"kanari@exam; chunk=ple.com\"}"),
        reply("status=302; header=location:/login?token=kanari&to=kanari%40example.com"),
        reply("header=content-type:application/grpc; trailer=grpc-status:5; trailer=grpc-message:kanari%40example.com"),
        get("/dead/kanari@example.com?token=kanari"),
        get("/none/kanari@example.com?token=kanari"),
        get("/front/kanari@example.com?token=kanari").header("x-front", "1"),
        Request::new("OPTIONS", "/kanari@example.com"),
    ]
}

/// The example's own format and configuration, with a filter in front that answers some, an upstream that is not there,
/// and paths without a route.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_the_proxy_prints_holds_what_was_hidden() -> Result<()> {
    let (format, mut configuration) = example();
    configuration["outputs"]["proxy_log"] = true.into();
    let upstream = Upstream::start().await?;
    let dead = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let front = HttpFilter::lua(
        "front",
        "function envoy_on_request(handle) if handle:headers():get('x-front') then \
         handle:respond({[':status'] = '429'}, 'later') end end",
    );
    let listener = Listener::http("edge")
        .access_log(AccessLog::json(format))
        .filter(front)
        .filter(scrub(configuration)?)
        .route(Route::cluster("dead").prefix("/dead"))
        .route(Route::respond(404, "kanari@example.com").prefix("/none"))
        .route(Route::cluster("up"));
    let envoy =
        Envoy::builder().cluster("up", upstream.addr()).cluster("dead", dead).listener(listener).start().await?;
    let requests = canaries();
    for request in &requests {
        envoy.send("edge", request).await?;
    }
    let mut sent = requests.len();
    let h2 = H2::connect(envoy.addr("edge")).await?;
    for request in canaries().iter().filter(|request| !request.headers.has("host")) {
        h2.send(request).await?;
        sent += 1;
    }
    // What is no request to the proxy: it answers by itself.
    for raw in
        ["GET /kanari@example.com HTTP/9.9\r\n\r\n", "kanari@example.com\r\n\r\n", "GET / HTTP/1.1\r\nkanari\r\n\r\n"]
    {
        let mut client = H1::connect(envoy.addr("edge")).await?;
        let _ = client.exchange(raw.as_bytes()).await;
    }
    let lines = envoy.wait_for_lines("edge", sent).await?;
    let printed = format!("{}\n{}", lines.join("\n"), envoy.log());
    let found: Vec<&str> = printed
        .lines()
        .filter(|line| line.contains("kanari") || NUMBERS.iter().any(|number| line.contains(number)))
        .collect();
    assert_eq!(found, Vec::<&str>::new());
    // They are there, only clean; in the proxy's own log too.
    for clean in
        ["/users/[email]/cards/[card]", "token=[field]", "app ([email]; [phone])", "/login?token=[field]&to=[email]"]
    {
        assert!(lines.iter().any(|line| line.contains(clean)), "{clean}\n{}", lines.join("\n"));
    }
    assert!(envoy.log().contains(r#""findings":{"card":{"path":1},"email":{"path":1}}"#));
    assert!(lines.iter().any(|line| line.contains("[UNSCANNED]")));
    // A filter in front had answered: this one heard of it only at the end.
    assert!(lines.iter().any(|line| line.contains("/front/[email]") && line.contains("429")));
    Ok(())
}

fn clean_of(response: &Response) -> (String, Option<String>) {
    (response.text(), response.headers.text("content-length"))
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_go_on_clean_with_the_right_length_over_both_versions() -> Result<()> {
    let upstream = Upstream::with(|request| {
        let reply = Reply::new(200).header("content-type", "application/json");
        match request.path.as_str() {
            "/head" => reply.header("content-length", "32"),
            "/large" => reply
                .header("content-length", "2033")
                .chunk(format!(r#"{{"mail":"ann@example.com","x":"{}"}}"#, "x".repeat(2000))),
            "/broken" => reply.chunk(r#"{"mail":"ann@example.com""#),
            "/trailers" => reply.chunk(r#"{"mail":"ann@exam"#).chunk(r#"ple.com"}"#).trailer("x-t", "1"),
            _ => reply.header("content-length", "32").chunk(r#"{"mail":"ann@exam"#).chunk(r#"ple.com","n":1}"#),
        }
    })
    .await?;
    let mutate = json!({ "max_body": 1000, "mutate": { "request_body": true, "response_body": true } });
    let listener = Listener::http("in").filter(scrub(mutate)?).route(Route::cluster("up"));
    let listener = listener.merge_hcm(json!({ "http_protocol_options": { "enable_trailers": true } }));
    let cluster = Cluster::new("up", upstream.addr()).http2();
    let envoy = Envoy::builder().add_cluster(cluster).listener(listener).start().await?;
    let h2 = H2::connect(envoy.addr("in")).await?;
    let json = |path: &str, body: &str| Request::post(path, body).header("content-type", "application/json");
    let small = r#"{"card":"4111 1111 1111 1111","a":[1,2]}"#;
    let large = format!(r#"{{"card":"4111 1111 1111 1111","a":"{}"}}"#, "x".repeat(100_000));
    for version in ["1.1", "2"] {
        let send = async |request: &Request| -> Result<Response> {
            if version == "2" { h2.send(request).await } else { envoy.send("in", request).await }
        };
        let response = send(&json("/", small)).await?;
        assert_eq!(clean_of(&response), (r#"{"mail":"[email]","n":1}"#.into(), None), "{version}");
        let received = upstream.take().pop().unwrap();
        assert_eq!(received.body, br#"{"card":"[card]","a":[1,2]}"#, "{version}");
        assert_eq!(received.headers.text("content-length"), None, "{version}");

        let response = send(&json("/trailers", small).trailer("x-t", "1")).await?;
        assert_eq!(response.text(), r#"{"mail":"[email]"}"#, "{version}");
        assert_eq!(response.trailers.text("x-t").as_deref(), Some("1"), "{version}");
        let received = upstream.take().pop().unwrap();
        assert_eq!(received.body, br#"{"card":"[card]","a":[1,2]}"#, "{version}");

        assert_eq!(received.trailers.text("x-t").as_deref(), Some("1"), "{version}");

        // Open for traffic.
        let response = send(&json("/large", &large)).await?;
        assert!(response.text().starts_with(r#"{"mail":"ann@example.com""#), "{version}");
        assert_eq!(response.headers.text("content-length").as_deref(), Some("2033"), "{version}");
        let received = upstream.take().pop().unwrap();
        assert_eq!(received.body, large.as_bytes(), "{version}");
        let response = send(&json("/broken", "{\"a\":")).await?;
        assert_eq!(response.text(), r#"{"mail":"ann@example.com""#, "{version}");
        assert_eq!(upstream.take().pop().unwrap().body, b"{\"a\":", "{version}");
    }
    // Without a body there is a length all the same.
    let head = Request::new("HEAD", "/head");
    let response = h2.send(&head).await?;
    assert_eq!(response.headers.text("content-type").as_deref(), Some("application/json"));
    assert!(response.headers.has("content-length") && response.body.is_empty(), "{response:?}");
    Ok(())
}

/// Bodies larger than what the listener lets a filter keep, with a filter that looks at them.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_only_looked_at_is_never_held() -> Result<()> {
    let large = format!(r#"{{"mail":"ann@example.com","x":"{}"}}"#, "x".repeat(3_000_000));
    let answer = large.clone();
    let upstream =
        Upstream::with(move |_| Reply::new(200).header("content-type", "application/json").chunk(answer.as_bytes()))
            .await?;
    let looks = json!({ "outputs": { "request_body": true, "response_body": true } });
    let listener = Listener::http("in")
        .filter(scrub(looks)?)
        .access_log(AccessLog::json([("body", "%FILTER_STATE(wasm.scrub.request_body:PLAIN)%")]))
        .merge(json!({ "per_connection_buffer_limit_bytes": 32768 }))
        .route(Route::cluster("up"));
    let envoy = Envoy::builder().cluster("up", upstream.addr()).listener(listener).start().await?;
    let request = Request::post("/", &large).header("content-type", "application/json");
    let response = envoy.send("in", &request).await?;
    assert!(response.status == 200 && response.text() == large);
    assert_eq!(upstream.take().pop().unwrap().body, large.as_bytes());
    let line = envoy.wait_for_json("in", 1).await?.pop().unwrap();
    let body = line["body"].as_str().unwrap();
    assert!(body.ends_with("[UNSCANNED]") && !body.contains("ann@"), "{} bytes", body.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_comes_from_the_vms_environment() -> Result<()> {
    let upstream = Upstream::start().await?;
    let hmac = json!({ "action": { "kind": "hmac" }, "hmac_key_env": "SCRUB_KEY" });
    let key = json!({ "vm_config": { "environment_variables": {
        "key_values": { "SCRUB_KEY": "0123456789abcdef0123456789abcdef" }
    } } });
    let listener = |filter| {
        Listener::http("in")
            .filter(filter)
            .access_log(AccessLog::json([("path", "%FILTER_STATE(wasm.scrub.path:PLAIN)%")]))
            .route(Route::cluster("up"))
    };
    let envoy = Envoy::builder()
        .cluster("up", upstream.addr())
        .listener(listener(scrub(hmac.clone())?.merge_plugin(key)))
        .start()
        .await?;
    envoy.get("in", "/123-45-6789", ()).await?;
    // What HMAC-SHA-256 of 123456789 begins with.
    assert_eq!(envoy.wait_for_json("in", 1).await?[0]["path"], "/[us_ssn_d1be6505f2b72976]");
    // Without the key it is refused, and what was goes on. In a VM of its own: up to 1.38 the environment is none of what
    // tells VMs apart, and one that is there already would be taken, with its key.
    envoy.push([listener(scrub(hmac)?.vm_id("other"))]).await?.rejected()?;
    let line = envoy.wait_for_log("is no variable of the environment", test_harness::PATIENCE).await?;
    assert!(
        refusal("log-scrub", &line).contains("log-scrub: configuration refused at `hmac_key_env`: is no"),
        "{line}"
    );
    envoy.get("in", "/123-45-6789", ()).await?;
    assert_eq!(envoy.wait_for_json("in", 2).await?[1]["path"], "/[us_ssn_d1be6505f2b72976]");
    Ok(())
}
