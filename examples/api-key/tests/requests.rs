//! The filter in an emulated proxy: natively, and as the module that `make modules` builds; both have to do the same.
#![allow(clippy::unwrap_used, reason = "a test that is wrong shall stop")]

use api_key::ApiKey;
use kit::testing::{Proxy, pairs};

#[test]
fn a_key_that_is_known_passes_and_goes_no_further() {
    let configuration = r#"{"header": "X-Api-Key", "keys": ["fake"]}"#;
    let mut proxy = Proxy::<ApiKey>::start_beside("target/modules/api-key.wasm", configuration).unwrap();
    assert_eq!(proxy.request(pairs(&[(":path", "/"), ("x-api-key", "fake")])), pairs(&[(":path", "/")]));
    proxy.request(vec![(":path".into(), b"/".to_vec()), ("x-api-key".into(), b"\xff\0".to_vec())]);
    assert_eq!(proxy.reply().unwrap().status, 401);
    assert_eq!(proxy.metric("meshfilter_api_key_requests_totaloutcome=.=known;.;"), Some(1));
    assert_eq!(proxy.metric("meshfilter_api_key_requests_totaloutcome=.=unknown;.;"), Some(1));
}

#[test]
fn a_wrong_configuration_is_refused_and_the_old_one_serves() {
    let configuration = r#"{"header": "x-api-key", "keys": ["fake"]}"#;
    let mut proxy = Proxy::<ApiKey>::start_beside("target/modules/api-key.wasm", configuration).unwrap();
    for wrong in [r#"{"header": "x-api-key", "keys": []}"#, r#"{"header": "a b", "keys": ["fake"]}"#, r#"{"key": 1}"#] {
        assert!(!proxy.configure(wrong), "{wrong}");
    }
    assert_eq!(proxy.request(pairs(&[("x-api-key", "fake")])), pairs(&[]));
}
