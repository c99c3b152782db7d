//! Which modules are taken.

use anyhow::Result;
use serde_json::json;
use test_harness::{Request, Verdict};

use crate::envoy::RealEnvoy;
use crate::world::{Ask as _, Plugin, Scene, Site, World};

/// A module with these imports and this start, that does nothing else.
fn module(imports: &str, start: &str) -> String {
    format!(
        r#"(module
            {imports}
            (memory (export "memory") 1)
            (data (i32.const 16) "hello")
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "_initialize") {start})
            (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 1024))"#
    )
}

fn import(module: &str, name: &str, signature: &str) -> String {
    let (parameters, results) = signature.split_once('>').unwrap();
    let types = |of: &str| of.chars().map(|c| if c == 'l' { " i64" } else { " i32" }).collect::<String>();
    let result = if results.is_empty() { String::new() } else { format!("(result{})", types(results)) };
    format!("(import \"{module}\" \"{name}\" (func (param{}) {result}))\n", types(parameters))
}

async fn judged<W: World>(wat: String) -> Result<Verdict> {
    let plugin = Plugin { wat: Some(wat), ..Plugin::new("m", json!({})) };
    W::judge(&Scene::new([Site::new("in", [plugin])])).await
}

/// Each with its parameters and results: `i` for `i32`, `l` for `i64`.
const ABI: &str = "log:iii>i get_status:iii>i set_property:iiii>i get_property:iiii>i send_local_response:iiiiiiii>i
    get_shared_data:iiiii>i set_shared_data:iiiii>i register_shared_queue:iii>i resolve_shared_queue:iiiii>i
    dequeue_shared_queue:iii>i enqueue_shared_queue:iii>i get_header_map_value:iiiii>i add_header_map_value:iiiii>i
    replace_header_map_value:iiiii>i remove_header_map_value:iii>i get_header_map_pairs:iii>i
    set_header_map_pairs:iii>i get_header_map_size:ii>i get_buffer_status:iii>i get_buffer_bytes:iiiii>i
    set_buffer_bytes:iiiii>i http_call:iiiiiiiiii>i grpc_call:iiiiiiiiiiii>i grpc_stream:iiiiiiiii>i grpc_close:i>i
    grpc_cancel:i>i grpc_send:iiii>i set_tick_period_milliseconds:i>i get_current_time_nanoseconds:i>i
    define_metric:iiii>i increment_metric:il>i record_metric:il>i get_metric:ii>i set_effective_context:i>i done:>i
    call_foreign_function:iiiiii>i continue_stream:i>i close_stream:i>i get_log_level:i>i";

const WASI: &str =
    "fd_write:iiii>i fd_read:iiii>i fd_seek:ilii>i fd_close:i>i fd_fdstat_get:ii>i fd_fdstat_set_flags:ii>i
    environ_get:ii>i environ_sizes_get:ii>i args_get:ii>i args_sizes_get:ii>i clock_time_get:ili>i random_get:ii>i
    sched_yield:>i poll_oneoff:iiii>i proc_exit:i> path_open:iiiiillii>i fd_prestat_get:ii>i fd_prestat_dir_name:iii>i";

pub async fn every_function_of_the_abi_and_18_of_wasi_are_offered<W: World>() -> Result<()> {
    let all = |module: &str, prefix: &str, list: &str| -> String {
        let one = |entry: &str| {
            let (name, signature) = entry.split_once(':').unwrap();
            import(module, &format!("{prefix}{name}"), signature)
        };
        list.split_whitespace().map(one).collect()
    };
    let imports = all("env", "proxy_", ABI) + &all("wasi_snapshot_preview1", "", WASI);
    assert_eq!(imports.lines().count(), 39 + 18);
    judged::<W>(module(&imports, "")).await?.accepted()
}

/// One unknown name, or a known one with other types, and the module is refused.
pub async fn a_module_that_asks_for_more_is_refused<W: World>() -> Result<()> {
    for (from, name, signature) in [
        ("env", "proxy_no_such_call", "i>i"),
        ("env", "proxy_log", "ii>i"),
        ("env", "proxy_done", ">"),
        // Of the ABIs before 0.2.
        ("env", "proxy_continue_request", ">i"),
        ("env", "proxy_clear_route_cache", ">i"),
        ("wasi_snapshot_preview1", "no_such_call", "i>i"),
        ("wasi_snapshot_preview1", "sock_open", "iii>i"),
        ("other", "proxy_log", "iii>i"),
    ] {
        let verdict = judged::<W>(module(&import(from, name, signature), "")).await?;
        assert_ne!(verdict, Verdict::Accepted, "{from} {name}");
    }
    Ok(())
}

pub async fn a_module_without_a_known_version_is_refused<W: World>() -> Result<()> {
    // 0.1.0 is known as well, with other calls; nobody here builds for it.
    for version in ["0_2_0", "0_2_1"] {
        judged::<W>(module("", "").replace("0_2_1", version)).await?.accepted()?;
    }
    for version in ["0_2_2", "0_3_0"] {
        assert_ne!(judged::<W>(module("", "").replace("0_2_1", version)).await?, Verdict::Accepted, "{version}");
    }
    assert_ne!(judged::<W>("(module)".to_owned()).await?, Verdict::Accepted);
    Ok(())
}

/// Before the first context there is nothing else that could be asked.
pub async fn the_start_of_a_module_may_log<W: World>() -> Result<()> {
    let log = import("env", "proxy_log", "iii>i").replace("(func (param", "(func $log (param");
    let start = "(drop (call $log (i32.const 3) (i32.const 16) (i32.const 5)))";
    let plugin = Plugin { wat: Some(module(&log, start)), ..Plugin::new("m", json!({})) };
    let world = W::start(&Scene::new([Site::new("in", [plugin])])).await?;
    // In the base VM, the canary, and on each thread.
    assert_eq!(world.log().lines().filter(|line| line.ends_with("hello")).count(), 4, "{}", world.log());
    assert_eq!(
        world.send("in", &Request::get("/")).await?.status,
        200,
        "callbacks that are not exported are not called"
    );
    Ok(())
}

/// Any other call there is a trap.
pub async fn the_start_of_a_module_may_call_nothing_else<W: World>() -> Result<()> {
    for (name, signature, call) in [
        ("proxy_get_current_time_nanoseconds", "i>i", "(drop (call $it (i32.const 64)))"),
        (
            "proxy_set_shared_data",
            "iiiii>i",
            "(drop (call $it (i32.const 16) (i32.const 5) (i32.const 16) (i32.const 5) (i32.const 0)))",
        ),
    ] {
        let import = import("env", name, signature).replace("(func (param", "(func $it (param");
        judged::<W>(module(&import, "")).await?.accepted()?;
        assert_ne!(judged::<W>(module(&import, call)).await?, Verdict::Accepted, "{name}");
    }
    Ok(())
}

/// With a list of capabilities, all other calls fail, and all other callbacks are not called.
pub async fn only_the_capabilities_that_are_granted_are_there() -> Result<()> {
    let granted = [
        "proxy_log",
        "proxy_get_buffer_bytes",
        "proxy_on_memory_allocate",
        "proxy_on_context_create",
        "proxy_on_configure",
        "proxy_on_request_headers",
        "proxy_on_delete",
        "proxy_get_header_map_value",
        "random_get",
        "environ_get",
        "environ_sizes_get",
    ];
    let script = json!({
        "request_headers": [["get_header", "request", ":path"], ["get_map", "request"], ["set_shared", "k", "v"]],
    });
    let plugin = Plugin { capabilities: Some(granted.to_vec()), ..Plugin::new("p", script) };
    let world = RealEnvoy::start(&Scene::new([Site::new("in", [plugin])])).await?;
    world.send("in", &Request::get("/")).await?;
    let events = world.stream("p", 1).await?;
    assert_eq!(crate::world::names(&events), ["context_create", "request_headers", "delete"]);
    let wanted = json!([["get_header", 0, "/"], ["get_map", 10], ["set_shared", 10]]);
    assert_eq!(world.steps("p", "request_headers").await?, wanted);
    Ok(())
}

/// A VM's memory ends at 1 GiB: more is refused at the start, and cannot be had later. Instructions of `simd128` are
/// taken.
pub async fn memory_ends_at_one_gib_and_simd_is_taken() -> Result<()> {
    let configured = |pages: u32, body: &str| {
        let configure = format!("(func (export \"proxy_on_configure\") (param i32 i32) (result i32) {body}))");
        let module = module("", "").replace("\"memory\") 1)", &format!("\"memory\") {pages})"));
        format!("{}{configure}", module.strip_suffix(')').unwrap())
    };
    let nothing = "(i32.const 1)";
    let grow = |pages: u32| format!("(i32.ne (memory.grow (i32.const {pages})) (i32.const -1))");
    for (module, taken) in [
        (configured(16_384, nothing), true),
        (configured(16_385, nothing), false),
        (configured(1, &grow(16_383)), true),
        (configured(1, &grow(16_384)), false),
        (configured(1, "(i8x16.extract_lane_u 0 (i8x16.splat (i32.const 1)))"), true),
        // That it is the instruction's result which counts.
        (configured(1, "(i8x16.extract_lane_u 0 (i8x16.splat (i32.const 0)))"), false),
    ] {
        assert_eq!(judged::<RealEnvoy>(module.clone()).await? == Verdict::Accepted, taken, "{module}");
    }
    Ok(())
}
