//! What the proxy charges for each hostcall: ten of it in one callback, less the same filter without, by ten. The module
//! `hostcalls` makes those that it is told to, and nothing else.

use anyhow::Result;
use serde_json::json;
use test_harness::bench::Arm;

use crate::{TIMES, wasm};

const GROUP: &str = "hostcalls";

/// The phase, the name in the module's configuration, and what a reader is to see.
const CALLS: [(&str, &str, &str); 14] = [
    ("request", "clock", "proxy_get_current_time_nanoseconds"),
    ("request", "count", "proxy_increment_metric"),
    ("request", "record", "proxy_record_metric"),
    ("request", "read_count", "proxy_get_metric"),
    ("request", "state", "proxy_set_property, a new key each"),
    ("request", "state_again", "proxy_set_property, the same key"),
    ("request", "number", "proxy_get_property, a number"),
    ("request", "missing", "proxy_get_property, no such value"),
    ("request", "name", "proxy_get_property, an empty text"),
    ("request", "header", "proxy_get_header_map_value, there"),
    ("request", "header_missing", "proxy_get_header_map_value, not there"),
    ("request", "set_header", "proxy_replace_header_map_value"),
    ("request", "request_pairs", "proxy_get_header_map_pairs, request"),
    ("log", "response_pairs", "proxy_get_header_map_pairs, response"),
];

pub(crate) fn arms() -> Result<Vec<Arm>> {
    let module = |config| Ok::<_, anyhow::Error>(wasm("hostcalls")?.config(config));
    let empty = Arm::new(GROUP, "no hostcall, six callbacks").filter(module(json!({}))?);
    let of = |(phase, call, name): (&str, &str, &str)| {
        let (with, without) = (module(json!({ phase: { call: TIMES } }))?, module(json!({}))?);
        Ok(Arm::new(GROUP, name).filter(with).less(without, TIMES))
    };
    // The first write makes the proxy choose the route again, and those after it have nothing to undo.
    let (with, without) = (module(json!({ "request": { "set_header": 1 } }))?, module(json!({}))?);
    let first = Arm::new(GROUP, "proxy_replace_header_map_value, the first").filter(with).less(without, 1);
    let calls = CALLS.into_iter().map(of).collect::<Result<Vec<Arm>>>()?;
    Ok([vec![empty], calls, vec![first]].concat())
}
