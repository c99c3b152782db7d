//! The release modules under a host that answers as none should: every call fails, or succeeds and gives nothing, or gives
//! what is no header map. A trap would end every plugin of the VM, so there must be none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test that is wrong shall stop"
)]

use test_harness::module;
use wasmi::{Caller, Engine, Extern, Func, Linker, Module, Store, Val};

/// How the host answers.
#[derive(Clone)]
struct Host {
    /// The status of every call but for the configuration, while the plugin is set up.
    status: i32,
    /// What it gives where bytes are asked for; `None` leaves the pointers as they are.
    bytes: Option<Vec<u8>>,
    configuration: &'static str,
    configured: bool,
}

/// Gives bytes to the module, as the proxy does: into memory that the module hands out.
fn give(caller: &mut Caller<'_, Host>, bytes: &[u8], outputs: &[Val]) {
    let allocate = caller.get_export("proxy_on_memory_allocate").and_then(Extern::into_func).unwrap();
    let mut place = [Val::I32(0)];
    allocate.call(&mut *caller, &[Val::I32(bytes.len() as i32)], &mut place).unwrap();
    let memory = caller.get_export("memory").and_then(Extern::into_memory).unwrap();
    let place = place[0].i32().unwrap();
    memory.write(&mut *caller, place as usize, bytes).unwrap();
    for (output, value) in outputs.iter().zip([place, bytes.len() as i32]) {
        memory.write(&mut *caller, output.i32().unwrap() as usize, &value.to_le_bytes()).unwrap();
    }
}

/// A whole life of the module's callbacks, in order and out of it. What traps is the error.
fn live(module: &Module, host: Host) -> Result<(), String> {
    let mut store = Store::new(module.engine(), host);
    let mut linker = Linker::new(module.engine());
    for import in module.imports() {
        let name = import.name().to_owned();
        let kind = import.ty().func().unwrap().clone();
        let function = Func::new(&mut store, kind, move |mut caller, inputs, results| {
            let host = caller.data().clone();
            let mut status = host.status;
            match name.as_str() {
                "proxy_get_buffer_bytes" if !host.configured => {
                    give(&mut caller, host.configuration.as_bytes(), &inputs[3..]);
                    status = 0;
                }
                "proxy_get_buffer_bytes"
                | "proxy_get_header_map_pairs"
                | "proxy_get_property"
                | "proxy_get_shared_data" => {
                    let outputs = match name.as_str() {
                        "proxy_get_buffer_bytes" => &inputs[3..],
                        "proxy_get_header_map_pairs" => &inputs[1..],
                        _ => &inputs[2..],
                    };
                    if let Some(bytes) = &host.bytes {
                        give(&mut caller, bytes, outputs);
                    }
                }
                _ => {}
            }
            if let Some(result) = results.first_mut() {
                *result = Val::I32(status);
            }
            Ok(())
        });
        linker.define(import.module(), import.name(), function).unwrap();
    }
    let instance = linker.instantiate_and_start(&mut store, module).unwrap();
    let call = |store: &mut Store<Host>, name: &str, inputs: &[i32]| {
        let Some(function) = instance.get_func(&*store, name) else { return Ok(()) };
        let inputs: Vec<Val> = inputs.iter().map(|input| Val::I32(*input)).collect();
        let mut results = vec![Val::I32(0); function.ty(&*store).results().len()];
        function.call(&mut *store, &inputs, &mut results).map_err(|trap| format!("{name}: {trap}"))
    };
    let phases = |store: &mut Store<Host>, id: i32| {
        call(store, "proxy_on_request_headers", &[id, 3, 0])?;
        call(store, "proxy_on_response_headers", &[id, 3, 1])?;
        call(store, "proxy_on_log", &[id])
    };
    call(&mut store, "_initialize", &[])?;
    phases(&mut store, 7)?;
    for (root, request) in [(1, 2), (3, 4)] {
        store.data_mut().configured = false;
        call(&mut store, "proxy_on_context_create", &[root, 0])?;
        call(&mut store, "proxy_on_configure", &[root, 1])?;
        store.data_mut().configured = true;
        call(&mut store, "proxy_on_configure", &[root, 1])?;
        call(&mut store, "proxy_on_context_create", &[request, root])?;
        (0..3).try_for_each(|_| phases(&mut store, request))?;
        call(&mut store, "proxy_on_log", &[root])?;
    }
    for id in [2, 1, 4, 3, 3, 99] {
        call(&mut store, "proxy_on_delete", &[id])?;
        phases(&mut store, id)?;
    }
    Ok(())
}

fn load(name: &str) -> Module {
    Module::new(&Engine::default(), std::fs::read(module(name).unwrap()).unwrap()).unwrap()
}

#[test]
fn no_answer_of_the_host_makes_a_module_trap() {
    // Counts and lengths that lie; a sound map whose text is cut; one pair, and bytes behind it.
    let maps: [&[u8]; 7] = [
        b"",
        b"\x01",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x02\0\0\0\x0b\0\0\0\x05\0\0\0\x0b\0\0\0\x05\0\0\0traceparent\0aaaaa",
        b"\x01\0\0\0\x0b\0\0\0\x02\0\0\0traceparent\0\xff\0\0trailing",
        &[0xff; 5000],
    ];
    let join = r#"{"join": {}, "trust": "link", "trust_mtls": true, "response": {"server_timing": true}}"#;
    let everything =
        r#"{"inject": ["w3c", "b3", "b3_single", "jaeger", "datadog", "xray"], "follow_tracer": "always"}"#;
    let both = r#"{"trace_id": {"join": {}}, "stamp": {"text": "x"}}"#;
    let modules = [("trace-id", join), ("trace-id", everything), ("trace-id", "{}"), ("duo", both), ("called", "")];
    for (name, configuration) in modules {
        let module = load(name);
        for status in [0, 1, 8, 10, -1] {
            for bytes in maps.iter().map(|map| Some(map.to_vec())).chain([None]) {
                let shown = bytes.as_ref().map(|bytes| bytes.iter().take(20).copied().collect::<Vec<_>>());
                let host = Host { status, bytes, configuration, configured: false };
                live(&module, host).unwrap_or_else(|trap| panic!("{name}, status {status}, {shown:?}: {trap}"));
            }
        }
    }
}

#[test]
fn a_trap_is_seen_here() {
    let module = load("trap");
    let map = b"\x01\0\0\0\x06\0\0\0\x01\0\0\0x-trap\0y\0".to_vec();
    let host = Host { status: 0, bytes: Some(map), configuration: "", configured: false };
    let trap = live(&module, host).unwrap_err();
    assert!(trap.starts_with("proxy_on_request_headers: "), "{trap}");
}
