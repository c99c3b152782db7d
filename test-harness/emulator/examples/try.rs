//! Sends one request through a module, and prints what came of it and what it cost.
//!
//! ```console
//! $ cargo run --package proxy-wasm-emulator --example try -- dist/trace-id.wasm '{"inject": ["b3"]}' 'x-request-id: r'
//! ```

use std::process::ExitCode;

use emulator::{Message, Module, Pairs, Plugin, Proxy};

fn show(title: &str, pairs: Option<&Pairs>) {
    println!("{title}");
    for (name, value) in pairs.into_iter().flatten() {
        println!("    {}: {}", name.escape_ascii(), value.escape_ascii());
    }
}

#[allow(clippy::string_slice, clippy::arithmetic_side_effects, reason = "an example; the places are of a colon")]
fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().filter(|path| !path.starts_with('-'));
    let (Some(path), configuration) = (path, arguments.next().unwrap_or_default()) else {
        eprintln!("usage: try <module.wasm> [<configuration> [<name: value> …]]");
        return ExitCode::FAILURE;
    };
    let module = match Module::read(&path) {
        Ok(module) => module,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    };
    let proxy = Proxy::new(1, 1);
    let pushed = proxy.push("in", [Plugin::new("try", &module).configuration(configuration)]);
    let start = proxy.take_tally();

    let headers: Vec<String> = arguments.collect();
    let mut fields = Vec::new();
    for header in &headers {
        // The colon of a name such as `:path` is none that ends it.
        let Some((name, value)) = header[1.min(header.len())..].find(':').map(|at| header.split_at(at + 1)) else {
            eprintln!("{header:?} is no header: give `name: value`");
            return ExitCode::FAILURE;
        };
        fields.push((name.to_ascii_lowercase(), value[1..].trim().to_owned()));
    }
    let given = |name: &str| fields.iter().any(|(other, _)| other == name);
    let pseudo = [(":method", "GET"), (":path", "/"), (":authority", "example.com")];
    let pseudo = pseudo.into_iter().filter(|(name, _)| !given(name)).map(|(name, value)| (name.into(), value.into()));
    let request = Message::new(pseudo.collect::<Vec<(String, String)>>().into_iter().chain(fields.clone()));
    if pushed.is_ok() {
        let done = proxy.exchange("in", 0, &request, &Message::new([(":status", "200")]).chunk("ok"));
        show("upstream got", done.upstream.headers.as_ref());
        show("caller got", done.downstream.headers.as_ref());
        let state = done.filter_state.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
        show("filter state", Some(&state));
    }
    for (name, metric) in proxy.metrics() {
        println!("metric       {name} {} {:?}", metric.value, metric.samples);
    }
    for line in proxy.log() {
        println!("log          [{}] {:?} {}", line.level, line.vm, line.text);
    }
    println!("cost to start    {start:?}");
    println!("cost of request  {:?}", proxy.tally());
    if let Err(refused) = pushed {
        eprintln!("refused: {refused}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
