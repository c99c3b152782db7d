//! The built modules themselves: what they ask of the proxy, what they offer it, and what they say of this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::path::PathBuf;

use anyhow::{Context, Result};
use test_harness::{Envoy, HttpFilter, Listener, Route, module, root};
use wasmparser::{Parser, Payload};

/// Of the proxy-wasm ABI 0.2.1, as proxy-wasm-cpp-host registers it (`exports.h`, `wasm.cc`): 36 for every ABI, 3 for
/// this one. What each takes: an `i` per i32, an `l` per i64.
const ABI: &str = "log(iii) get_status(iii) set_property(iiii) get_property(iiii) send_local_response(iiiiiiii)
    get_shared_data(iiiii) set_shared_data(iiiii) register_shared_queue(iii) resolve_shared_queue(iiiii)
    dequeue_shared_queue(iii) enqueue_shared_queue(iii) get_header_map_value(iiiii) add_header_map_value(iiiii)
    replace_header_map_value(iiiii) remove_header_map_value(iii) get_header_map_pairs(iii)
    set_header_map_pairs(iii) get_header_map_size(ii) get_buffer_status(iii) get_buffer_bytes(iiiii)
    set_buffer_bytes(iiiii) http_call(iiiiiiiiii) grpc_call(iiiiiiiiiiii) grpc_stream(iiiiiiiii) grpc_close(i)
    grpc_cancel(i) grpc_send(iiii) set_tick_period_milliseconds(i) get_current_time_nanoseconds(i)
    define_metric(iiii) increment_metric(il) record_metric(il) get_metric(ii) set_effective_context(i) done()
    call_foreign_function(iiiiii) continue_stream(i) close_stream(i) get_log_level(i)";

/// Of WASI, as proxy-wasm-cpp-host registered it from December 2024 to April 2026, and so Envoy 1.36 to 1.38. Later
/// ones have more; one name that the proxy does not know, and it refuses the module.
const WASI: &str = "fd_write(iiii) fd_read(iiii) fd_seek(ilii) fd_close(i) fd_fdstat_get(ii) fd_fdstat_set_flags(ii)
    environ_get(ii) environ_sizes_get(ii) args_get(ii) args_sizes_get(ii) clock_time_get(ili) random_get(ii)
    sched_yield() poll_oneoff(iiii) proc_exit(i) path_open(iiiiillii) fd_prestat_get(ii) fd_prestat_dir_name(iii)";

/// What is shipped, and the most that it may weigh: size is load time, about 1 ms of CPU per KB and VM.
const SHIPPED: [(&str, usize); 5] = [
    ("trace-id", 130_000),
    ("latency", 130_000),
    ("log-scrub", 350_000),
    ("circuit-breaker", 190_000),
    ("suite", 580_000),
];

const KIT: [&str; 10] =
    ["trace-id", "latency", "log-scrub", "circuit-breaker", "suite", "noop", "called", "trap", "duo", "api-key"];

/// With the proxy-wasm crate, as one writes it.
const PLAIN: [&str; 5] = ["noop-sdk", "trace-id-sdk", "latency-sdk", "log-scrub-sdk", "circuit-breaker-sdk"];

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
    let more = ["proxy_on_new_connection", "proxy_on_request_body", "proxy_on_response_body"];
    let tcp = [&all[..], &more].concat();
    let bodies = ["request_body", "response_body", "request_trailers", "response_trailers"];
    let bodies = bodies.map(|phase| format!("proxy_on_{phase}"));
    let bodies: Vec<&str> = all.iter().copied().chain(bodies.iter().map(String::as_str)).collect();
    let breaker = ["response_body", "response_trailers", "tick", "http_call_response"];
    let breaker = breaker.map(|callback| format!("proxy_on_{callback}"));
    let breaker: Vec<&str> = all.iter().copied().chain(breaker.iter().map(String::as_str)).collect();
    // What any of the four uses.
    let mut suite = [&tcp[..], &bodies[..], &breaker[..]].concat();
    suite.sort_unstable();
    suite.dedup();
    for (name, callbacks) in [
        ("noop", &[][..]),
        ("called", &request),
        ("trap", &request),
        ("trace-id", &all),
        ("latency", &tcp),
        ("log-scrub", &bodies),
        ("circuit-breaker", &breaker),
        ("suite", &suite),
        ("duo", &all),
    ] {
        let mut wanted = [&always[..], callbacks].concat();
        wanted.sort_unstable();
        assert_eq!(parts(name)?.exports, wanted, "{name}");
    }
    Ok(())
}

/// Module, name and what it takes.
fn offered() -> Vec<(&'static str, String, &'static str)> {
    let abi = ABI.split_whitespace().map(|function| ("env", "proxy_", function));
    let wasi = WASI.split_whitespace().map(|function| ("wasi_snapshot_preview1", "", function));
    let split = |(module, prefix, function): (&'static str, &str, &'static str)| {
        let (name, takes) = function.strip_suffix(')').unwrap().split_once('(').unwrap();
        (module, format!("{prefix}{name}"), takes)
    };
    abi.chain(wasi).map(split).collect()
}

#[test]
fn every_import_is_one_that_envoy_1_36_offers() -> Result<()> {
    let offered: Vec<String> = offered().into_iter().map(|(module, name, _)| format!("{module}.{name}")).collect();
    assert_eq!(offered.len(), 36 + 3 + 18);
    for name in KIT.into_iter().chain(PLAIN).chain(["probe"]) {
        let imports = parts(name)?.imports;
        assert!(!imports.is_empty(), "{name} cannot do anything");
        let unknown: Vec<_> = imports.iter().filter(|import| !offered.contains(import)).collect();
        assert!(unknown.is_empty(), "{name} asks for {unknown:?}");
    }
    Ok(())
}

/// What stands above, asked of the Envoy itself.
#[tokio::test]
async fn this_envoy_offers_what_the_modules_are_held_to() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let asking = |file: &str, functions: &[(&str, String, &str)]| -> Result<Listener> {
        let import = |(module, name, takes): &(&str, String, &str)| {
            let takes: String = takes.chars().map(|one| if one == 'l' { " i64" } else { " i32" }).collect();
            let gives = if name == "proc_exit" { "" } else { "(result i32)" };
            format!("(import \"{module}\" \"{name}\" (func (param{takes}) {gives}))\n")
        };
        let text = format!(
            r#"(module {}
                (memory (export "memory") 1)
                (func (export "proxy_abi_version_0_2_1"))
                (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 0)))"#,
            functions.iter().map(import).collect::<String>(),
        );
        let path = dir.path().join(file);
        std::fs::write(&path, wat::parse_str(text)?)?;
        Ok(Listener::http("in").filter(HttpFilter::wasm("asking", path)).route(Route::respond(200, "served")))
    };
    let envoy = Envoy::builder().listener(asking("all", &offered())?).start().await?;
    assert_eq!(envoy.get("in", "/", ()).await?.text(), "served");

    let version = envoy.version().await?;
    let few = ["1.36.", "1.37.", "1.38."].iter().any(|line| version.starts_with(line));
    for (module, name, takes, known) in [
        ("env", "proxy_no_such", "", false),
        ("wasi_snapshot_preview1", "clock_res_get", "ii", !few),
        ("wasi_snapshot_preview1", "proc_raise", "i", false),
    ] {
        let verdict = envoy.push([asking(name, &[(module, name.to_owned(), takes)])?]).await?;
        if known {
            verdict.accepted()?;
        } else {
            let why = verdict.rejected()?;
            assert!(why.contains(&format!("missing import: {module}.{name}")), "{version}: {why}");
        }
    }
    Ok(())
}

#[test]
fn what_is_shipped_asks_the_proxy_for_this() -> Result<()> {
    // The host is one table of calls: a module that uses some of them has all.
    let wanted = [
        "env.proxy_add_header_map_value",
        "env.proxy_call_foreign_function",
        "env.proxy_define_metric",
        "env.proxy_get_buffer_bytes",
        "env.proxy_get_current_time_nanoseconds",
        "env.proxy_get_header_map_pairs",
        "env.proxy_get_header_map_value",
        "env.proxy_get_log_level",
        "env.proxy_get_metric",
        "env.proxy_get_property",
        "env.proxy_get_shared_data",
        "env.proxy_http_call",
        "env.proxy_increment_metric",
        "env.proxy_log",
        "env.proxy_record_metric",
        "env.proxy_remove_header_map_value",
        "env.proxy_replace_header_map_value",
        "env.proxy_send_local_response",
        "env.proxy_set_buffer_bytes",
        "env.proxy_set_property",
        "env.proxy_set_shared_data",
        "env.proxy_set_tick_period_milliseconds",
        "wasi_snapshot_preview1.random_get",
    ];
    for (name, _) in SHIPPED {
        let mut wanted = wanted.to_vec();
        if ["log-scrub", "suite"].contains(&name) {
            // For a key that the operator keeps in the VM's environment.
            wanted.extend(["wasi_snapshot_preview1.environ_get", "wasi_snapshot_preview1.environ_sizes_get"]);
            wanted.sort_unstable();
        }
        assert_eq!(parts(name)?.imports, wanted, "{name}");
    }
    Ok(())
}

#[test]
fn what_is_shipped_is_within_its_budget() -> Result<()> {
    for (name, budget) in SHIPPED {
        let size = std::fs::read(module(name)?)?.len();
        assert!(size <= budget, "{name}: {size} bytes");
    }
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
