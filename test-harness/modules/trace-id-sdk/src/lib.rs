//! What trace-id does by default for W3C Trace Context, as one writes it with the proxy-wasm crate: all headers at once, ids of
//! the `rand` crate, text made with `format!`. For the benchmark; its cases that say `script = true`, and a table of headers
//! that goes through both, show that it does the same.
#![allow(unsafe_code)] // The crate's entry point is a macro that exports a symbol.

#[cfg(feature = "module")]
mod module {
    use std::collections::HashMap;
    use std::rc::Rc;
    use std::time::SystemTime;

    use proxy_wasm::hostcalls;
    use proxy_wasm::traits::{Context, HttpContext, RootContext};
    use proxy_wasm::types::{Action, ContextType, LogLevel, MetricType};

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root::default()) });
    }}

    #[derive(Default)]
    struct Root {
        counters: Rc<HashMap<&'static str, u32>>,
    }

    /// Series, by what they count.
    const COUNTERS: [(&str, &str); 7] = [
        ("continued", "meshfilter_trace_requests_totaloutcome=.=continued;.;format=.=w3c;.;"),
        ("generated", "meshfilter_trace_requests_totaloutcome=.=generated;.;format=.=none;.;"),
        ("duplicate", "meshfilter_trace_invalid_totalformat=.=w3c;.;reason=.=duplicate;.;"),
        ("length", "meshfilter_trace_invalid_totalformat=.=w3c;.;reason=.=length;.;"),
        ("syntax", "meshfilter_trace_invalid_totalformat=.=w3c;.;reason=.=syntax;.;"),
        ("version", "meshfilter_trace_invalid_totalformat=.=w3c;.;reason=.=version;.;"),
        ("zero", "meshfilter_trace_invalid_totalformat=.=w3c;.;reason=.=zero;.;"),
    ];

    impl Context for Root {}

    impl RootContext for Root {
        fn on_configure(&mut self, _: usize) -> bool {
            let define = |(what, name)| Some((what, hostcalls::define_metric(MetricType::Counter, name).ok()?));
            self.counters = Rc::new(COUNTERS.into_iter().filter_map(define).collect());
            true
        }
        fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
            Some(Box::new(Request { counters: Rc::clone(&self.counters) }))
        }
        fn get_type(&self) -> Option<ContextType> {
            Some(ContextType::HttpContext)
        }
    }

    struct Request {
        counters: Rc<HashMap<&'static str, u32>>,
    }

    struct Parent {
        trace_id: String,
        span_id: String,
        flags: u8,
    }

    /// Reads a `traceparent`; what is wrong with it, if anything is.
    fn parse(value: &[u8]) -> Result<Parent, &'static str> {
        let text = std::str::from_utf8(value).map_err(|_| "syntax")?.trim_matches([' ', '\t']);
        let mut parts = text.splitn(5, '-');
        let mut hex = |length: usize| {
            let part = parts.next().filter(|part| part.len() == length).ok_or("length")?;
            let is_hex = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if is_hex { Ok(part) } else { Err("syntax") }
        };
        let (version, trace_id, span_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        if version == "ff" {
            return Err("version");
        }
        // Only a later version may go on.
        if version == "00" && parts.next().is_some() {
            return Err("length");
        }
        if [trace_id, span_id].iter().any(|id| id.bytes().all(|byte| byte == b'0')) {
            return Err("zero");
        }
        let flags = u8::from_str_radix(flags, 16).map_err(|_| "syntax")?;
        Ok(Parent { trace_id: trace_id.to_owned(), span_id: span_id.to_owned(), flags })
    }

    /// Whether the list, over all headers, has members, at most 32, and each is `key=value`.
    fn is_tracestate(values: &[&[u8]]) -> bool {
        let mut members = 0_usize;
        for value in values {
            let Ok(text) = std::str::from_utf8(value) else { return false };
            for member in text.split(',').map(|member| member.trim_matches([' ', '\t'])) {
                if member.is_empty() {
                    continue;
                }
                let Some((key, value)) = member.split_once('=') else { return false };
                let in_key = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@');
                let key_fits = (1..=256).contains(&key.len())
                    && key.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
                    && key.bytes().all(in_key);
                let value_fits = (1..=256).contains(&value.len())
                    && value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'=');
                if !key_fits || !value_fits {
                    return false;
                }
                members = members.saturating_add(1);
            }
        }
        (1..=32).contains(&members)
    }

    impl Request {
        fn count(&self, what: &str) {
            if let Some(id) = self.counters.get(what) {
                let _ = hostcalls::increment_metric(*id, 1);
            }
        }
    }

    impl Context for Request {}

    impl HttpContext for Request {
        fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
            let headers = self.get_http_request_headers_bytes();
            let all = |name: &str| -> Vec<&[u8]> {
                headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_slice()).collect()
            };
            let tracestate = all("tracestate");
            let parent = match *all("traceparent") {
                [] => None,
                [value] => Some(parse(value)),
                _ => Some(Err("duplicate")),
            };
            let parent = match parent {
                Some(Ok(parent)) => Some(parent),
                Some(Err(reason)) => {
                    self.count(reason);
                    None
                }
                None => None,
            };

            // One that begins here is sampled, and its id is random: both flags.
            let (trace_id, flags) = match &parent {
                Some(parent) => (parent.trace_id.clone(), parent.flags & 3),
                None => (format!("{:032x}", rand::random::<u128>()), 3),
            };
            let span_id = format!("{:016x}", rand::random::<u64>());
            let sampled = if flags & 1 == 1 { "true" } else { "false" };
            self.set_http_request_header("traceparent", Some(&format!("00-{trace_id}-{span_id}-{flags:02x}")));
            if !tracestate.is_empty() && (parent.is_none() || !is_tracestate(&tracestate)) {
                self.set_http_request_header("tracestate", None);
            }
            if all("x-request-id").is_empty() {
                let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
                self.set_http_request_header("x-request-id", Some(&id.to_string()));
            }

            self.set_property(vec!["trace_id"], Some(trace_id.as_bytes()));
            self.set_property(vec!["span_id"], Some(span_id.as_bytes()));
            self.set_property(vec!["trace_sampled"], Some(sampled.as_bytes()));
            if let Some(parent) = &parent {
                self.set_property(vec!["parent_span_id"], Some(parent.span_id.as_bytes()));
            }
            let now = self.get_current_time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.set_property(vec!["start_time_ns"], Some(now.as_nanos().to_string().as_bytes()));
            self.count(if parent.is_some() { "continued" } else { "generated" });
            Action::Continue
        }
    }
}
