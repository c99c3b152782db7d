//! The example of a filter of one's own, as the kit's guide shows it, in a real Envoy with two workers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use anyhow::Result;
use serde_json::json;
use test_harness::{Envoy, HttpFilter, Listener, Route, Upstream, module};

#[tokio::test(flavor = "multi_thread")]
async fn it_refuses_counts_and_keeps_its_configuration() -> Result<()> {
    let upstream = Upstream::start().await?;
    let edge = |keys: &[&str]| -> Result<Listener> {
        let configuration = json!({ "header": "x-api-key", "keys": keys });
        let filter = HttpFilter::wasm("api-key", module("api-key")?).config(configuration);
        Ok(Listener::http("edge").filter(filter).route(Route::cluster("service")))
    };
    let envoy = Envoy::builder().cluster("service", upstream.addr()).listener(edge(&["fake"])?).start().await?;
    assert_eq!(envoy.get("edge", "/", [("x-api-key", "fake")]).await?.status, 200);
    assert!(!upstream.wait(1).await?[0].headers.has("x-api-key"), "the key goes no further");
    let refused = envoy.get("edge", "/", ()).await?;
    assert_eq!((refused.status, refused.text().as_str()), (401, "no key\n"));
    envoy.wait_for_counter("wasmcustom.meshfilter_api_key_requests_totaloutcome=.=unknown;.;", 1).await?;
    envoy.wait_for_counter("wasmcustom.meshfilter_api_key_requests_totaloutcome=.=known;.;", 1).await?;
    let why = envoy.push([edge(&[])?]).await?.accepted().unwrap_err();
    assert!(why.to_string().contains("api-key: configuration refused at `keys`: is empty"), "{why}");
    assert_eq!(envoy.get("edge", "/", [("x-api-key", "fake")]).await?.status, 200, "the old one serves");
    Ok(())
}
