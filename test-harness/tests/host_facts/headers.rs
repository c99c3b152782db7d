//! Header maps and trailers.

use anyhow::Result;
use serde_json::{Value, json};
use test_harness::Request;

use crate::world::{Ask as _, Plugin, Scene, Site, World, text};

/// What the proxy adds or changes by itself.
fn is_own(name: &str) -> bool {
    let proxys =
        ["date", "server", "transfer-encoding", "content-length", "x-forwarded-proto", "x-request-id", "x-reply"];
    !proxys.contains(&name) && !name.starts_with("x-envoy-")
}

/// The pairs of a step that are the test's own.
fn own(step: &Value) -> Value {
    let name = |pair: &&Value| is_own(pair[0].as_str().unwrap_or_default());
    step[2].as_array().unwrap_or_else(|| panic!("no pairs: {step}")).iter().filter(name).cloned().collect()
}

/// The fields of a message that are the test's own.
fn fields(headers: &test_harness::Headers) -> Value {
    let name = |(name, _): &(&[u8], &[u8])| is_own(&String::from_utf8_lossy(name));
    headers.iter().filter(name).map(|(name, value)| json!([text(name), text(value)])).collect()
}

pub async fn one_value_is_the_first_of_several<W: World>() -> Result<()> {
    let script = json!({ "request_headers": [
        ["get_header", "request", "x-a"],
        ["get_header", "request", "X-A"],
        ["get_header", "request", "x-empty"],
        ["get_header", "request", "x-none"],
        ["get_header", "request", "x-bytes"],
        ["get_header", "request", ":path"],
        ["get_map", "request"],
        // The size of the names and values, not their number.
        ["map_size", "request"],
        ["set_map", "request", [[":path", "/"], [":method", "GET"], [":scheme", "http"], [":authority", "a"]]],
        ["map_size", "request"],
    ] });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    let several = [("x-a", &b"1"[..]), ("x-b", b"2"), ("x-a", b"3"), ("x-empty", b""), ("x-bytes", b"\xff\x80")];
    world.send("p", &Request::get("/p?q").headers(several)).await?;
    let steps = world.steps("p", "request_headers").await?;
    assert_eq!(steps[0], json!(["get_header", 0, "1"]));
    assert_eq!(steps[1], json!(["get_header", 0, "1"]), "in any case of letters");
    assert_eq!(steps[2], json!(["get_header", 0, ""]));
    assert_eq!(steps[3], json!(["get_header", 1]));
    assert_eq!(steps[4], json!(["get_header", 0, "\u{ff}\u{80}"]));
    assert_eq!(steps[5], json!(["get_header", 0, "/p?q"]));
    let pairs = json!([
        [":authority", "test"],
        [":path", "/p?q"],
        [":method", "GET"],
        [":scheme", "http"],
        ["x-a", "1"],
        ["x-b", "2"],
        ["x-a", "3"],
        ["x-empty", ""],
        ["x-bytes", "\u{ff}\u{80}"]
    ]);
    assert_eq!(own(&steps[6]), pairs);
    assert_eq!(steps[9], json!(["map_size", 0, 5 + 1 + 7 + 3 + 7 + 4 + 10 + 1]));
    // With what the proxy added.
    let all = steps[6][2].as_array().unwrap();
    let size: usize =
        all.iter().flat_map(|pair| [&pair[0], &pair[1]]).map(|text| text.as_str().unwrap().chars().count()).sum();
    assert_eq!(steps[7], json!(["map_size", 0, size]));
    Ok(())
}

/// A callback that continues ends the phase: from then on one value is refused, and all of them are none, until `log`.
/// `done` and `delete` come after it and see nothing.
pub async fn maps_are_there_in_their_own_phase_and_in_on_log<W: World>() -> Result<()> {
    let look = json!([
        ["get_header", "request", "x-q"],
        ["get_map", "request"],
        ["get_header", "response", "x-r"],
        ["get_map", "response"],
        ["map_size", "request"],
        ["map_size", "response"],
        ["get_map", "request_trailers"],
        ["get_map", "response_trailers"],
        ["get_map", "call"],
        ["get_header", "call", "x"],
        // Of gRPC, and what is none.
        ["get_map", 4],
        ["get_map", 8],
    ]);
    let phases = [
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
        "log",
        "done",
        "delete",
    ];
    let script: Value =
        phases.iter().map(|phase| ((*phase).to_owned(), look.clone())).collect::<serde_json::Map<_, _>>().into();
    let late = |map: &str| {
        json!([
            ["add_header", map, "x-late", "1"],
            ["replace_header", map, "x-late", "1"],
            ["remove_header", map, "x-q"],
            ["set_map", map, []]
        ])
    };
    let writer = json!({
        "request_headers": late("response"),
        "request_body": late("request"),
        "response_body": late("response"),
        "log": [["add_header", "request", "x-late", "1"], ["add_header", "response", "x-late", "1"]],
    });
    let world = W::start(&Scene::new([Site::of("look", script), Site::of("late", writer)])).await?;
    let request = Request::post("/", "body").header("x-q", "q").trailer("x-qt", "qt");
    let request = request.header("x-reply", "header=x-r:r; chunk=ok; trailer=x-rt:rt");
    for site in ["look", "late"] {
        let response = world.send(site, &request).await?;
        assert_eq!((fields(&response.headers), response.text().as_str()), (json!([["x-r", "r"]]), "ok"), "{site}");
        let sent = world.received(1).await?.remove(0);
        assert_eq!(fields(&sent.headers), json!([["host", "test"], ["x-q", "q"]]), "{site}");
    }
    for event in world.stream("look", 1).await? {
        let phase = event.callback.as_str();
        if phase == "context_create" {
            continue;
        }
        let logging = phase == "log";
        let one =
            |there: bool, value: &str| if there { json!(["get_header", 0, value]) } else { json!(["get_header", 2]) };
        let of = |at: usize| (own(&event.steps[at]), event.steps[at][1].clone());
        let pairs = |there: bool, pairs: Value| (if there { pairs } else { json!([]) }, json!(0));
        let request =
            json!([[":authority", "test"], [":path", "/"], [":method", "POST"], [":scheme", "http"], ["x-q", "q"]]);
        let response = json!([[":status", "200"], ["x-r", "r"]]);
        let request_there = logging || phase == "request_headers";
        let response_there = logging || phase == "response_headers";
        assert_eq!(event.steps[0], one(request_there, "q"), "{phase}");
        assert_eq!(of(1), pairs(request_there, request), "{phase}");
        assert_eq!(event.steps[2], one(response_there, "r"), "{phase}");
        assert_eq!(of(3), pairs(response_there, response), "{phase}");
        // Not even in `log`.
        assert_eq!(event.steps[4][1] == 0, phase == "request_headers", "{phase}: {}", event.steps[4]);
        assert_eq!(event.steps[5][1] == 0, phase == "response_headers", "{phase}: {}", event.steps[5]);
        // In `log`, of the trailers only the response's.
        assert_eq!(of(6), pairs(phase == "request_trailers", json!([["x-qt", "qt"]])), "{phase}");
        assert_eq!(of(7), pairs(logging || phase == "response_trailers", json!([["x-rt", "rt"]])), "{phase}");
        assert_eq!(of(8), pairs(false, json!([])), "{phase}");
        // What is not there is another status in `log`, where all could be.
        assert_eq!(event.steps[9], json!(["get_header", if logging { 1 } else { 2 }]), "{phase}");
        assert_eq!(event.steps[10], json!(["get_map", 0, []]), "{phase}");
        assert_eq!(event.steps[11], json!(["get_map", 2]), "{phase}");
    }
    let refused = json!([["add_header", 2], ["replace_header", 2], ["remove_header", 2], ["set_map", 2]]);
    for event in world.stream("late", 1).await? {
        match event.callback.as_str() {
            "request_headers" | "request_body" | "response_body" => {
                assert_eq!(event.steps, refused, "{}", event.callback)
            }
            "log" => assert_eq!(event.steps, json!([["add_header", 2], ["add_header", 2]])),
            _ => {}
        }
    }
    Ok(())
}

pub async fn replace_puts_one_pair_at_the_end_for_all_of_a_name<W: World>() -> Result<()> {
    let script = json!({
        "request_headers": [
            ["replace_header", "request", "x-a", "3"],
            ["add_header", "request", "x-b", "4"],
            ["add_header", "request", "X-Upper", "5"],
            ["remove_header", "request", "x-c"],
            ["remove_header", "request", "x-none"],
            ["replace_header", "request", "x-new", "6"],
            ["replace_header", "request", ":path", "/new"],
            ["get_map", "request"],
        ],
        "response_headers": [
            ["replace_header", "response", "x-r", "3"],
            ["add_header", "response", "x-s", "4"],
            ["remove_header", "response", "x-t"],
            ["replace_header", "response", ":status", "202"],
            ["get_map", "response"],
        ],
    });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    let request = [("x-a", "1"), ("x-b", "2"), ("x-a", "2"), ("x-c", "1"), ("x-c", "2")];
    let reply = "header=x-r:1; header=x-s:2; header=x-r:2; header=x-t:1";
    let response = world.send("p", &Request::get("/").headers(request).header("x-reply", reply)).await?;
    let steps = world.steps("p", "request_headers").await?;
    let done = json!([
        ["replace_header", 0],
        ["add_header", 0],
        ["add_header", 0],
        ["remove_header", 0],
        ["remove_header", 0],
        ["replace_header", 0],
        ["replace_header", 0]
    ]);
    assert_eq!(&steps.as_array().unwrap()[..7], done.as_array().unwrap().as_slice());
    // A name that starts with a colon stays in front of the others.
    let pairs = json!([
        [":authority", "test"],
        [":method", "GET"],
        [":scheme", "http"],
        [":path", "/new"],
        ["x-b", "2"],
        ["x-a", "3"],
        ["x-b", "4"],
        ["x-upper", "5"],
        ["x-new", "6"]
    ]);
    assert_eq!(own(&steps[7]), pairs);
    let sent = world.received(1).await?.remove(0);
    assert_eq!(sent.path, "/new");
    let wanted = json!([["host", "test"], ["x-b", "2"], ["x-a", "3"], ["x-b", "4"], ["x-upper", "5"], ["x-new", "6"]]);
    assert_eq!(fields(&sent.headers), wanted);
    let steps = world.steps("p", "response_headers").await?;
    assert_eq!(own(&steps[4]), json!([[":status", "202"], ["x-s", "2"], ["x-r", "3"], ["x-s", "4"]]));
    assert_eq!(response.status, 202);
    assert_eq!(fields(&response.headers), json!([["x-s", "2"], ["x-r", "3"], ["x-s", "4"]]));
    Ok(())
}

/// Nothing is looked at when it is written; what no upstream could be sent is refused later.
pub async fn whatever_a_map_is_given_is_taken<W: World>() -> Result<()> {
    let with = |name: &str, value: &str| json!({ "request_headers": [["add_header", "request", name, value], ["get_header", "request", name]] });
    let sites = [
        Site::of("name", with("bad name", "x")),
        Site::of("empty", with("", "x")),
        Site::of("control", with("x-b", "\u{1}")),
        Site::of("bytes", with("x-b", "\u{ff}")),
    ];
    let world = W::start(&Scene::new(sites)).await?;
    for (site, value, status) in
        [("name", "x", 503), ("empty", "x", 200), ("bytes", "\u{ff}", 200), ("control", "\u{1}", 503)]
    {
        let response = world.send(site, &Request::get("/")).await?;
        let steps = world.steps(site, "request_headers").await?;
        assert_eq!(steps, json!([["add_header", 0], ["get_header", 0, value]]), "{site}");
        assert_eq!(response.status, status, "{site}: {response:?}");
    }
    Ok(())
}

pub async fn a_map_over_1024_pairs_or_one_mib_is_emptied<W: World>() -> Result<()> {
    let many = |n: usize| (0..n).map(|n| json!([format!("x-{n}"), "v"])).collect::<Value>();
    // Four for the count, eight for the lengths of a pair, and a NUL behind each text.
    let rest = (1 << 20) - 4 - 8 - "x-big\0\0".len();
    let big = |times: usize| json!([["x-big", { "repeat": "v", "times": times }]]);
    let script = json!({ "request_headers": [
        ["set_map", "request", many(1024)], ["map_size", "request"],
        ["set_map", "request", many(1025)], ["get_map", "request"],
        ["set_map", "request", big(rest)], ["map_size", "request"],
        ["set_map", "request", big(rest + 1)], ["get_map", "request"],
        ["add_header", "request", "x-still", "writable"], ["get_map", "request"],
        ["reply", 418, "", ""],
    ] });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    assert_eq!(world.send("p", &Request::get("/")).await?.status, 418);
    let size: usize = (0..1024).map(|n| format!("x-{n}v").len()).sum();
    let wanted = json!([
        ["set_map", 0],
        ["map_size", 0, size],
        ["set_map", 0],
        ["get_map", 0, []],
        ["set_map", 0],
        ["map_size", 0, "x-big".len() + rest],
        ["set_map", 0],
        ["get_map", 0, []],
        ["add_header", 0],
        ["get_map", 0, [["x-still", "writable"]]],
        ["reply", 0],
    ]);
    assert_eq!(world.steps("p", "request_headers").await?, wanted);
    Ok(())
}

/// The cleared route is not looked up at once: a property shows the old one until somebody needs the new one.
pub async fn a_write_of_a_request_header_clears_the_route<W: World>() -> Result<()> {
    let look = |at: &str| json!(["get_property", ["xds", at]]);
    let script = json!({
        "request_headers": [
            look("cluster_name"), look("route_name"),
            ["replace_header", "request", "x-route", "other"],
            look("cluster_name"), look("route_name"),
        ],
        "response_headers": [look("cluster_name"), look("route_name")],
        "log": [look("cluster_name"), look("route_name")],
    });
    let world = W::start(&Scene::new([Site { routes: vec!["other"], ..Site::of("p", script) }])).await?;
    world.send("p", &Request::get("/")).await?;
    let old = json!([["get_property", 0, "up"], ["get_property", 0, "default"]]);
    let steps = world.steps("p", "request_headers").await?;
    assert_eq!(json!([steps[0], steps[1]]), old, "the route is known before the first filter");
    assert_eq!(json!([steps[3], steps[4]]), old);
    let new = json!([["get_property", 0, "other"], ["get_property", 0, "other"]]);
    assert_eq!(world.steps("p", "response_headers").await?, new);
    assert_eq!(world.steps("p", "log").await?, new);
    Ok(())
}

pub async fn trailers_can_be_read_and_written_in_their_phase<W: World>() -> Result<()> {
    let change = |map: &str| {
        json!([
            ["get_header", map, "x-t"],
            ["get_map", map],
            ["add_header", map, "x-more", "2"],
            ["replace_header", map, "x-t", "3"],
            ["get_map", map],
        ])
    };
    let script =
        json!({ "request_trailers": change("request_trailers"), "response_trailers": change("response_trailers") });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    let request = Request::post("/", "body")
        .trailer("x-t", "1")
        .trailer("x-t", "2")
        .header("x-reply", "chunk=a; trailer=x-t:1; trailer=x-t:2");
    let response = world.send("p", &request).await?;
    let done = json!([
        ["get_header", 0, "1"],
        ["get_map", 0, [["x-t", "1"], ["x-t", "2"]]],
        ["add_header", 0],
        ["replace_header", 0],
        ["get_map", 0, [["x-more", "2"], ["x-t", "3"]]],
    ]);
    let changed = json!([["x-more", "2"], ["x-t", "3"]]);
    assert_eq!(world.steps("p", "request_trailers").await?, done);
    assert_eq!(world.received(1).await?[0].trailers.to_json(), changed);
    assert_eq!(world.steps("p", "response_trailers").await?, done);
    assert_eq!(response.trailers.to_json(), changed);
    Ok(())
}

/// Of some names the proxy keeps one value: what is added to it stands behind a comma. Replaced, it goes to the end too.
pub async fn some_names_have_one_value_with_commas<W: World>() -> Result<()> {
    let script = json!({ "request_headers": [
        ["add_header", "request", "user-agent", "b"], ["get_header", "request", "user-agent"],
        ["add_header", "request", "x-plain", "b"], ["get_header", "request", "x-plain"],
        ["add_header", "request", ":path", "/c"], ["get_header", "request", ":path"],
        ["replace_header", "request", "user-agent", "c"],
        ["replace_header", "request", ":path", "/d"],
        ["get_map", "request"],
    ] });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/a").header("user-agent", "a").header("x-plain", "a")).await?;
    let steps = world.steps("p", "request_headers").await?;
    let wanted = json!([
        ["add_header", 0],
        ["get_header", 0, "a,b"],
        ["add_header", 0],
        ["get_header", 0, "a"],
        ["add_header", 0],
        ["get_header", 0, "/a,/c"],
        ["replace_header", 0],
        ["replace_header", 0],
    ]);
    assert_eq!(steps.as_array().unwrap()[..8], wanted.as_array().unwrap()[..]);
    let pairs = json!([
        [":authority", "test"],
        [":method", "GET"],
        [":scheme", "http"],
        [":path", "/d"],
        ["x-plain", "a"],
        ["x-plain", "b"],
        ["user-agent", "c"]
    ]);
    assert_eq!(own(&steps[8]), pairs);
    Ok(())
}

/// Which names these are, by direction; those that no request could go on with are left out, and so are the pseudo headers.
pub async fn the_names_with_one_value_are_others_in_requests_and_responses<W: World>() -> Result<()> {
    const REQUEST: &str = "accept accept-encoding access-control-request-method authorization cache-control expect \
        grpc-timeout keep-alive origin proxy-connection referer user-agent via x-client-trace-id \
        x-envoy-decorator-operation x-envoy-external-address x-envoy-original-path x-envoy-retry-on \
        x-forwarded-client-cert x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-proto x-request-id";
    const RESPONSE: &str = "cache-control date etag grpc-message grpc-status keep-alive location proxy-connection server \
        vary via x-envoy-decorator-operation x-envoy-upstream-service-time x-request-id";
    const NEITHER: &str =
        "cookie accept-language traceparent tracestate b3 server-timing set-cookie x-b3-traceid forwarded";
    let names: Vec<&str> = [REQUEST, RESPONSE, NEITHER]
        .iter()
        .flat_map(|names| names.split(' '))
        .filter(|name| !name.is_empty())
        .collect();
    let steps = |map: &str| -> Vec<Value> {
        let each = |name: &&str| {
            [
                json!(["remove_header", map, name]),
                json!(["add_header", map, name, "1"]),
                json!(["add_header", map, name, "2"]),
                json!(["get_header", map, name]),
                json!(["remove_header", map, name]),
            ]
        };
        names.iter().flat_map(each).collect()
    };
    let script = json!({ "request_headers": steps("request"), "response_headers": steps("response") });
    let world = W::start(&Scene::new([Site::of("p", script)])).await?;
    world.send("p", &Request::get("/")).await?;
    for (on, once) in [("request_headers", REQUEST), ("response_headers", RESPONSE)] {
        let steps = world.steps("p", on).await?;
        for (name, done) in names.iter().zip(steps.as_array().unwrap().chunks(5)) {
            let one = once.split(' ').any(|other| other == *name);
            assert_eq!(done[3], json!(["get_header", 0, if one { "1,2" } else { "1" }]), "{name} in {on}");
        }
    }
    Ok(())
}

/// A plugin that continues the request from within its headers, and does not hold it: they go on twice.
pub async fn headers_that_are_continued_and_not_held_go_on_twice<W: World>() -> Result<()> {
    let first = json!({ "request_headers": [["continue", "request"]] });
    let second = json!({ "request_headers": [["get_header", "request", "x-q"]] });
    let chain = [Plugin::new("first", first), Plugin { vm_id: "another", ..Plugin::new("second", second) }];
    let world = W::start(&Scene::new([Site::new("in", chain)])).await?;
    let _ = world.send("in", &Request::get("/").header("x-q", "1")).await;
    let heard = world.seen("second", "request_headers", 2).await?;
    assert_eq!(heard.len(), 2);
    Ok(())
}

/// In `log` the headers are those that went out, whoever changed them since.
pub async fn on_log_sees_what_others_wrote_later<W: World>() -> Result<()> {
    let look = json!([["get_header", "request", "x-q"], ["get_header", "response", "x-r"]]);
    let first = json!({ "request_headers": [["get_header", "request", "x-q"]], "log": look });
    let second = json!({
        "request_headers": [["replace_header", "request", "x-q", "later"]],
        "response_headers": [["replace_header", "response", "x-r", "sooner"]],
    });
    let chain = [Plugin::new("first", first), Plugin { vm_id: "another", ..Plugin::new("second", second) }];
    let world = W::start(&Scene::new([Site::new("in", chain)])).await?;
    world.send("in", &Request::get("/").header("x-q", "came").header("x-reply", "header=x-r:came")).await?;
    assert_eq!(world.steps("first", "request_headers").await?, json!([["get_header", 0, "came"]]));
    assert_eq!(world.steps("first", "log").await?, json!([["get_header", 0, "later"], ["get_header", 0, "sooner"]]));
    Ok(())
}
