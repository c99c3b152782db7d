//! Filters of TCP connections.

use anyhow::Result;
use serde_json::json;

use crate::world::{Ask as _, Scene, Site, Tcp, World, calls};

fn tcp(script: serde_json::Value) -> Site {
    Site { tcp: true, ..Site::of("p", script) }
}

pub async fn a_connection_has_these_callbacks<W: World>() -> Result<()> {
    let world = W::start(&Scene::new([tcp(json!({}))])).await?;
    world
        .connect(
            "p",
            &[Tcp::Send("abc"), Tcp::Expect("abc"), Tcp::Send("defg"), Tcp::Expect("defg"), Tcp::End, Tcp::ExpectEnd],
        )
        .await?;
    let wanted = [
        "context_create(1)",
        "new_connection()",
        "downstream_data(3,0)",
        "upstream_data(3,0)",
        "downstream_data(4,0)",
        "upstream_data(4,0)",
        "downstream_data(0,1)",
        "upstream_data(0,1)",
        "upstream_connection_close(0)",
        // 1 is the proxy's own side, 2 the other. And here `done` comes before `log`.
        "downstream_connection_close(1)",
        "done()",
        "log()",
        "delete()",
    ];
    assert_eq!(calls(&world.stream("p", 1).await?), wanted);
    Ok(())
}

pub async fn who_closes_is_told<W: World>() -> Result<()> {
    let world = W::start(&Scene::new([tcp(json!({}))])).await?;
    world.connect("p", &[Tcp::Send("abc"), Tcp::Expect("abc"), Tcp::Reset]).await?;
    let ended = calls(&world.stream("p", 1).await?);
    assert!(ended.contains(&"downstream_connection_close(2)".to_owned()), "{ended:?}");
    assert!(!ended.iter().any(|call| call.ends_with(",1)")), "no end of data: {ended:?}");
    world.connect("p", &[Tcp::Send("quit"), Tcp::Expect("quit"), Tcp::ExpectEnd, Tcp::End]).await?;
    let ended = calls(&world.stream("p", 2).await?);
    let last = ended.iter().rfind(|call| call.starts_with("upstream_data("));
    assert!(last.is_some_and(|call| call.ends_with(",1)")), "{ended:?}");
    Ok(())
}

pub async fn data_can_be_read_changed_and_held<W: World>() -> Result<()> {
    let script = json!({
        "new_connection": [["get_buffer", "downstream", 0, "max"]],
        "downstream_data": [
            ["get_buffer", "downstream", 0, "max"], ["get_buffer", "upstream", 0, "max"], ["get_buffer", "request", 0, "max"],
            ["when", ["calls"], 1, [["return", "pause"]]],
            ["when", ["calls"], 2, [["set_buffer", "downstream", "max", 0, "+"]]],
        ],
        "upstream_data": [["get_buffer", "upstream", 0, "max"], ["when", ["calls"], 1, [["set_buffer", "upstream", 0, 0, ">"]]]],
        "log": [["get_buffer", "downstream", 0, "max"]],
    });
    let world = W::start(&Scene::new([tcp(script)])).await?;
    let held = async { world.seen("p", "downstream_data", 1).await };
    let (first, sent) = tokio::join!(held, async {
        world
            .connect(
                "p",
                &[Tcp::Send("abc"), Tcp::Wait, Tcp::Send("def"), Tcp::Expect(">abcdef+"), Tcp::End, Tcp::ExpectEnd],
            )
            .await
    });
    sent?;
    assert_eq!(first?[0].args, [3, 0]);
    let events = world.seen("p", "downstream_data", 2).await?;
    let shown = |text: &str| json!([["get_buffer", 0, text], ["get_buffer", 0, ""], ["get_buffer", 0, ""]]);
    assert_eq!(events[0].steps.as_array().unwrap()[..3], shown("abc").as_array().unwrap()[..]);
    // What was held is there again, with what came.
    assert_eq!(
        (&events[1].args, &events[1].steps.as_array().unwrap()[..3]),
        (&vec![6, 0], &shown("abcdef").as_array().unwrap()[..])
    );
    assert_eq!(world.steps("p", "upstream_data").await?[0], json!(["get_buffer", 0, "abcdef+"]));
    Ok(())
}

pub async fn a_refused_connection_reaches_nobody<W: World>() -> Result<()> {
    let script = json!({ "new_connection": [["close", "downstream"], ["return", "pause"]] });
    let world = W::start(&Scene::new([tcp(script)])).await?;
    world.connect("p", &[Tcp::ExpectEnd]).await?;
    let wanted =
        ["context_create(1)", "new_connection()", "downstream_connection_close(1)", "done()", "log()", "delete()"];
    assert_eq!(calls(&world.stream("p", 1).await?), wanted);
    Ok(())
}
