//! The built modules themselves: what they ask of the proxy, what they offer it, and what they say of this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::path::PathBuf;

use anyhow::{Context, Result};
use test_harness::{module, root};
use wasmparser::{Parser, Payload};

/// Of the proxy-wasm ABI 0.2.1, as proxy-wasm-cpp-host registers it (`exports.h`, `wasm.cc`): 36 for every ABI, 3 for
/// this one.
const ABI: &str = "log get_status set_property get_property send_local_response get_shared_data set_shared_data
    register_shared_queue resolve_shared_queue dequeue_shared_queue enqueue_shared_queue get_header_map_value
    add_header_map_value replace_header_map_value remove_header_map_value get_header_map_pairs set_header_map_pairs
    get_header_map_size get_buffer_status get_buffer_bytes set_buffer_bytes http_call grpc_call grpc_stream grpc_close
    grpc_cancel grpc_send set_tick_period_milliseconds get_current_time_nanoseconds define_metric increment_metric
    record_metric get_metric set_effective_context done call_foreign_function
    continue_stream close_stream get_log_level";

/// Of WASI, as proxy-wasm-cpp-host registered it from December 2024 to April 2026, and so Envoy 1.36 to 1.38. Later
/// ones have more; one name that the proxy does not know, and it refuses the module.
const WASI: &str = "fd_write fd_read fd_seek fd_close fd_fdstat_get fd_fdstat_set_flags environ_get environ_sizes_get
    args_get args_sizes_get clock_time_get random_get sched_yield poll_oneoff proc_exit path_open fd_prestat_get
    fd_prestat_dir_name";

/// Size is load time, about 1 ms of CPU per KB and VM.
const BUDGET: usize = 130_000;

const KIT: [&str; 5] = ["trace-id", "noop", "called", "trap", "duo"];

#[derive(Default)]
struct Parts {
    /// `module.name`, sorted.
    imports: Vec<String>,
    /// Sorted.
    exports: Vec<String>,
    customs: Vec<String>,
    /// The text that the module holds, among other things.
    data: Vec<Vec<u8>>,
}

fn parts(name: &str) -> Result<Parts> {
    let bytes = std::fs::read(module(name)?)?;
    let mut parts = Parts::default();
    for payload in Parser::new(0).parse_all(&bytes) {
        match payload.with_context(|| format!("{name} is no module"))? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import?;
                    parts.imports.push(format!("{}.{}", import.module, import.name));
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    parts.exports.push(export?.name.to_owned());
                }
            }
            Payload::DataSection(section) => {
                for data in section {
                    parts.data.push(data?.data.to_vec());
                }
            }
            Payload::CustomSection(section) => parts.customs.push(section.name().to_owned()),
            _ => {}
        }
    }
    parts.imports.sort_unstable();
    parts.exports.sort_unstable();
    Ok(parts)
}

#[test]
fn a_module_exports_what_its_filters_use_and_nothing_else() -> Result<()> {
    let always = ["_initialize", "memory", "proxy_abi_version_0_2_1", "proxy_on_configure", "proxy_on_memory_allocate"];
    let request = ["proxy_on_context_create", "proxy_on_delete", "proxy_on_request_headers"];
    let all = [&request[..], &["proxy_on_log", "proxy_on_response_headers"]].concat();
    for (name, callbacks) in
        [("noop", &[][..]), ("called", &request), ("trap", &request), ("trace-id", &all), ("duo", &all)]
    {
        let mut wanted = [&always[..], callbacks].concat();
        wanted.sort_unstable();
        assert_eq!(parts(name)?.exports, wanted, "{name}");
    }
    Ok(())
}

#[test]
fn every_import_is_one_that_envoy_1_36_offers() -> Result<()> {
    let abi = ABI.split_whitespace().map(|name| format!("env.proxy_{name}"));
    let wasi = WASI.split_whitespace().map(|name| format!("wasi_snapshot_preview1.{name}"));
    let offered: Vec<String> = abi.chain(wasi).collect();
    assert_eq!(offered.len(), 36 + 3 + 18);
    for name in KIT.into_iter().chain(["noop-sdk", "probe"]) {
        let imports = parts(name)?.imports;
        assert!(!imports.is_empty(), "{name} cannot do anything");
        let unknown: Vec<_> = imports.iter().filter(|import| !offered.contains(import)).collect();
        assert!(unknown.is_empty(), "{name} asks for {unknown:?}");
    }
    Ok(())
}

#[test]
fn trace_id_asks_the_proxy_for_this() -> Result<()> {
    assert_eq!(
        parts("trace-id")?.imports,
        [
            "env.proxy_add_header_map_value",
            "env.proxy_define_metric",
            "env.proxy_get_buffer_bytes",
            "env.proxy_get_current_time_nanoseconds",
            "env.proxy_get_header_map_pairs",
            "env.proxy_get_log_level",
            "env.proxy_get_property",
            "env.proxy_get_shared_data",
            "env.proxy_increment_metric",
            "env.proxy_log",
            "env.proxy_record_metric",
            "env.proxy_remove_header_map_value",
            "env.proxy_replace_header_map_value",
            "env.proxy_send_local_response",
            "env.proxy_set_property",
            "env.proxy_set_shared_data",
            "wasi_snapshot_preview1.random_get",
        ]
    );
    Ok(())
}

#[test]
fn trace_id_is_within_its_budget() -> Result<()> {
    let size = std::fs::read(module("trace-id")?)?.len();
    assert!(size <= BUDGET, "{size} bytes");
    Ok(())
}

/// What a proxy does not need: a third of a module, when it has all of it.
#[test]
fn no_custom_section_is_left() -> Result<()> {
    for name in KIT {
        let customs = parts(name)?.customs;
        assert!(customs.is_empty(), "{name} has {customs:?}");
    }
    assert!(parts("noop-sdk")?.customs.contains(&"producers".to_owned()), "as a module is that nobody strips");
    Ok(())
}

#[test]
fn no_place_of_this_machine_is_in_a_module() -> Result<()> {
    let homes = ["HOME", "CARGO_HOME", "RUSTUP_HOME"].map(std::env::var_os).into_iter().flatten().map(PathBuf::from);
    let places: Vec<String> = homes
        .chain([root()])
        .map(|place| place.display().to_string())
        // A home such as `/` says nothing.
        .filter(|place| place.len() > 2)
        .collect();
    for name in KIT {
        let data = parts(name)?.data;
        let holds = |text: &str| data.iter().any(|data| data.windows(text.len()).any(|part| part == text.as_bytes()));
        assert!(holds("configuration refused"), "{name} says it, so this looks at the right bytes");
        for place in &places {
            assert!(!holds(place), "{name} holds {place}");
        }
    }
    Ok(())
}
