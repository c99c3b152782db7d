//! The steps of a script.

use serde_json::{Value, json};

use crate::abi::{self, Pairs};
use crate::callbacks::{complain, vm};

/// One callback's run.
pub(crate) struct Run<'a> {
    /// The context that was called.
    pub(crate) context: u32,
    /// The root that it belongs to.
    pub(crate) root: u32,
    /// How often this callback was called in this context, this time included.
    pub(crate) calls: u64,
    /// The callback's other arguments.
    pub(crate) args: &'a [u32],
    /// What came of each step.
    pub(crate) done: Vec<Value>,
    /// What the callback shall return.
    pub(crate) returned: Option<u32>,
    /// Writes the line of this callback; for the step after which nobody else can.
    pub(crate) log: &'a dyn Fn(&[Value], Option<u32>),
}

/// Bytes as the log shows them.
pub(crate) fn shown(bytes: &[u8]) -> Value {
    if bytes.len() > 2000 {
        return json!({ "length": bytes.len() });
    }
    bytes.iter().copied().map(char::from).collect::<String>().into()
}

fn shown_pairs(pairs: Option<Pairs>) -> Value {
    let Some(pairs) = pairs else { return "no map".into() };
    if pairs.len() > 200 {
        return json!({ "pairs": pairs.len() });
    }
    pairs.iter().map(|(name, value)| json!([shown(name), shown(value)])).collect()
}

/// Bytes as a script writes them.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => text.chars().map(|char| u8::try_from(u32::from(char)).ok()).collect(),
        Value::Object(of) => Some(bytes(of.get("repeat")?)?.repeat(usize::try_from(of.get("times")?.as_u64()?).ok()?)),
        _ => None,
    }
}

/// A property's path: one segment, or a list of them.
fn path(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Array(segments) => Some(segments.iter().map(bytes).collect::<Option<Vec<_>>>()?.join(&0)),
        one => bytes(one),
    }
}

fn pairs(value: &Value) -> Option<Pairs> {
    let pair = |pair: &Value| Some((bytes(pair.get(0)?)?, bytes(pair.get(1)?)?));
    value.as_array()?.iter().map(pair).collect()
}

fn number(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn size(value: &Value) -> Option<usize> {
    if value == "max" { Some(usize::MAX) } else { usize::try_from(value.as_u64()?).ok() }
}

/// A number, or one of these names, which stand for 0, 1, ….
fn named(value: &Value, names: &[&str]) -> Option<u32> {
    match value {
        Value::String(name) => u32::try_from(names.iter().position(|known| known == name)?).ok(),
        value => number(value),
    }
}

fn map(value: &Value) -> Option<u32> {
    let names = ["request", "request_trailers", "response", "response_trailers", "", "", "call", "call_trailers"];
    named(value, &names)
}

fn buffer(value: &Value) -> Option<u32> {
    let names = ["request", "response", "downstream", "upstream", "call", "", "vm_config", "plugin_config", "foreign"];
    named(value, &names)
}

fn stream(value: &Value) -> Option<u32> {
    named(value, &["request", "response", "downstream", "upstream"])
}

/// A metric's number, or the name that it was defined with.
fn metric(value: &Value) -> Option<u32> {
    match value {
        Value::String(name) => vm(|vm| vm.metrics.get(name).copied()),
        value => number(value),
    }
}

fn queue(value: &Value) -> Option<u32> {
    if value == "last" { Some(vm(|vm| vm.queue)) } else { number(value) }
}

impl Run<'_> {
    pub(crate) fn steps(&mut self, steps: &Value) {
        for step in steps.as_array().into_iter().flatten() {
            if self.step(step).is_none() {
                self.done.push(complain(step));
            }
        }
    }

    /// `None` when the step is not understood.
    fn step(&mut self, step: &Value) -> Option<()> {
        let name = step.get(0)?.as_str()?;
        let arg = |at: usize| step.get(at);
        match name {
            // What the callback returns: a number, `continue`, `pause` (also `buffer`), `watermark`, `no_buffer`, or a
            // truth.
            "return" => {
                self.returned = Some(match arg(1)? {
                    Value::Bool(truth) => u32::from(*truth),
                    value => named(value, &["continue", "pause", "", "no_buffer", "watermark"])?,
                });
            }
            // `["when", step, value, steps]`: runs the steps if that step gives this value.
            "when" => {
                self.step(arg(1)?)?;
                if self.done.last().and_then(|done| done.get(2)) == Some(arg(2)?) {
                    self.steps(arg(3)?);
                }
            }
            // Ends the VM.
            "trap" => {
                self.done.push(json!([name]));
                (self.log)(&self.done, None);
                core::arch::wasm32::unreachable()
            }
            _ => {
                let (status, value) = self.call(name, step)?;
                self.done.push(match value {
                    Value::Null => json!([name, status]),
                    value => json!([name, status, value]),
                });
            }
        }
        Some(())
    }

    /// A step that has a status, and perhaps a value.
    fn call(&self, name: &str, step: &Value) -> Option<(u32, Value)> {
        let arg = |at: usize| step.get(at);
        let text = |at: usize| bytes(arg(at)?);
        let of = |(status, value): (u32, Vec<u8>)| (status, if status == 0 { shown(&value) } else { Value::Null });
        let one = |(status, value): (u32, u64)| (status, if status == 0 { value.into() } else { Value::Null });
        Some(match name {
            // The VM's own: a counter of that name that lives in a static, and how often this callback came here.
            "count" => {
                let counter = arg(1)?.as_str()?;
                let count = vm(|vm| {
                    let count = vm.counters.entry(counter.to_owned()).or_default();
                    *count += 1;
                    *count
                });
                (0, count.into())
            }
            "calls" => (0, self.calls.into()),

            "log" => (abi::log(number(arg(1)?)?, &text(2)?), Value::Null),
            "log_level" => one(abi::log_level()),
            "time" => one(abi::time()),
            "status" => {
                let (status, (code, message)) = abi::get_status();
                (status, json!([code, shown(&message)]))
            }

            "get_property" => of(abi::get_property(&path(arg(1)?)?)),
            "set_property" => (abi::set_property(&path(arg(1)?)?, &text(2)?), Value::Null),

            // The value is shown, its number is kept for `["set_shared", key, value, "last"]`, or shown as well by
            // `get_cas`.
            "get_shared" | "get_cas" => {
                let (status, (value, cas)) = abi::get_shared(&text(1)?);
                if status == 0 {
                    vm(|vm| vm.cas = cas);
                }
                if name == "get_cas" { one((status, cas.into())) } else { of((status, value)) }
            }
            "set_shared" => {
                let cas = match arg(3) {
                    None => 0,
                    Some(cas) if cas == "last" => vm(|vm| vm.cas),
                    Some(cas) => number(cas)?,
                };
                (abi::set_shared(&text(1)?, &text(2)?, cas), Value::Null)
            }
            "register_queue" | "resolve_queue" => {
                let (status, token) = if name == "register_queue" {
                    abi::register_queue(&text(1)?)
                } else {
                    abi::resolve_queue(&text(1)?, &text(2)?)
                };
                if status == 0 {
                    vm(|vm| vm.queue = token);
                }
                one((status, token.into()))
            }
            "enqueue" => (abi::enqueue(queue(arg(1)?)?, &text(2)?), Value::Null),
            "dequeue" => of(abi::dequeue(queue(arg(1)?)?)),

            "get_header" => of(abi::get_header(map(arg(1)?)?, &text(2)?)),
            "get_map" => {
                let (status, pairs) = abi::get_map(map(arg(1)?)?);
                (status, if status == 0 { shown_pairs(pairs) } else { Value::Null })
            }
            "map_size" => one(abi::map_size(map(arg(1)?)?)),
            "add_header" => (abi::add_header(map(arg(1)?)?, &text(2)?, &text(3)?), Value::Null),
            "replace_header" => (abi::replace_header(map(arg(1)?)?, &text(2)?, &text(3)?), Value::Null),
            "remove_header" => (abi::remove_header(map(arg(1)?)?, &text(2)?), Value::Null),
            "set_map" => (abi::set_map(map(arg(1)?)?, &pairs(arg(2)?)?), Value::Null),

            // `max` and the start may be `"max"`, the largest number.
            "get_buffer" => of(abi::get_buffer(buffer(arg(1)?)?, size(arg(2)?)?, size(arg(3)?)?)),
            "set_buffer" => (abi::set_buffer(buffer(arg(1)?)?, size(arg(2)?)?, size(arg(3)?)?, &text(4)?), Value::Null),
            "buffer_status" => {
                let (status, (length, flags)) = abi::buffer_status(buffer(arg(1)?)?);
                (status, if status == 0 { json!([length, flags]) } else { Value::Null })
            }

            "define_metric" => {
                let (status, id) = abi::define_metric(named(arg(1)?, &["counter", "gauge", "histogram"])?, &text(2)?);
                if let (0, Some(name)) = (status, arg(2).and_then(Value::as_str)) {
                    vm(|vm| vm.metrics.insert(name.to_owned(), id));
                }
                one((status, id.into()))
            }
            "increment_metric" => (abi::increment_metric(metric(arg(1)?)?, arg(2)?.as_i64()?), Value::Null),
            "record_metric" => (abi::record_metric(metric(arg(1)?)?, arg(2)?.as_u64()?), Value::Null),
            "get_metric" => one(abi::get_metric(metric(arg(1)?)?)),

            // `["http_call", cluster, headers, body, trailers, timeout]`
            "http_call" => {
                let (headers, trailers) = (pairs(arg(2)?)?, pairs(arg(4)?)?);
                let (status, token) = abi::http_call(&text(1)?, &headers, &text(3)?, &trailers, number(arg(5)?)?);
                if status == 0 {
                    vm(|vm| vm.callers.insert(token, self.context));
                }
                (status, token.into())
            }

            "done" => (abi::done(), Value::Null),
            "continue" => (abi::continue_stream(stream(arg(1)?)?), Value::Null),
            "close" => (abi::close_stream(stream(arg(1)?)?), Value::Null),
            // `["reply", status, details, body, headers, grpc_status]`
            "reply" => {
                let grpc = i32::try_from(arg(5).map_or(Some(-1), Value::as_i64)?).ok()?;
                let headers = arg(4).map_or_else(|| Some(Vec::new()), pairs)?;
                (abi::send_reply(number(arg(1)?)?, &text(2)?, &text(3)?, &headers, grpc), Value::Null)
            }
            "tick" => (abi::set_tick(number(arg(1)?)?), Value::Null),
            // A number, or `self`, `root`, `stream` (the last one created), `caller` (who made the HTTP call that this
            // is the answer to).
            "effective" => {
                let context = match arg(1)?.as_str() {
                    Some("self") => self.context,
                    Some("root") => self.root,
                    Some("stream") => vm(|vm| (vm.stream != 0).then_some(vm.stream))?,
                    Some("caller") => vm(|vm| vm.callers.get(self.args.first()?).copied())?,
                    Some(_) => return None,
                    None => number(arg(1)?)?,
                };
                (abi::set_effective_context(context), Value::Null)
            }
            "foreign" => of(abi::call_foreign(&text(1)?, &text(2)?)),
            _ => return None,
        })
    }
}
