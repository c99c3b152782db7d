//! What latency does by default, as one writes it with the proxy-wasm crate: an id per series in a map, a call per header
//! and attribute. For the benchmark; its cases that say `script = true` show that it does the same.
#![allow(unsafe_code)] // The crate's entry point is a macro that exports a symbol.
#![allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "as one writes it")]

#[cfg(feature = "module")]
mod module {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::time::{Duration, SystemTime};

    use proxy_wasm::hostcalls;
    use proxy_wasm::traits::{Context, HttpContext, RootContext};
    use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel, MetricType};

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root) });
    }}

    thread_local! {
        static SERIES: RefCell<HashMap<String, u32>> = RefCell::new(HashMap::new());
    }

    fn id(kind: MetricType, name: String) -> Option<u32> {
        SERIES.with_borrow_mut(|series| match series.get(&name) {
            Some(id) => Some(*id),
            None => {
                let id = hostcalls::define_metric(kind, &name).ok()?;
                series.insert(name, id);
                Some(id)
            }
        })
    }

    fn add(kind: MetricType, name: String, delta: i64) {
        if let Some(id) = id(kind, name) {
            let _ = hostcalls::increment_metric(id, delta);
        }
    }

    fn record(name: String, value: u64) {
        if let Some(id) = id(MetricType::Histogram, name) {
            let _ = hostcalls::record_metric(id, value);
        }
    }

    /// The crate's own texts would be a panic where a header is none.
    fn text(bytes: Option<Vec<u8>>) -> String {
        String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    }

    struct Root;

    impl Context for Root {}

    impl RootContext for Root {
        fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
            Some(Box::new(Request {
                start: None,
                first: None,
                method: String::new(),
                grpc: false,
                status: String::new(),
                events: false,
                messages: Default::default(),
                direction: "",
            }))
        }
        fn get_type(&self) -> Option<ContextType> {
            Some(ContextType::HttpContext)
        }
    }

    struct Request {
        start: Option<SystemTime>,
        first: Option<SystemTime>,
        method: String,
        grpc: bool,
        status: String,
        events: bool,
        messages: [Messages; 2],
        direction: &'static str,
    }

    /// Of one side of a gRPC call, looked at until there are two.
    #[derive(Default)]
    struct Messages {
        number: usize,
        rest: usize,
        head: Vec<u8>,
    }

    impl Messages {
        fn pass(&mut self, size: usize, read: impl Fn(usize, usize) -> Option<Vec<u8>>) {
            let mut at = 0;
            while self.number < 2 {
                if self.rest >= size - at {
                    self.rest -= size - at;
                    return;
                }
                at += std::mem::take(&mut self.rest);
                let Some(part) = read(at, 5 - self.head.len()).filter(|part| !part.is_empty()) else { return };
                at += part.len();
                self.head.extend(part);
                if let [_, a, b, c, d] = *self.head.as_slice() {
                    self.number += 1;
                    self.rest = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.head.clear();
                }
            }
        }
    }

    impl Context for Request {}

    impl Request {
        fn number(&self, path: Vec<&str>) -> Option<i64> {
            let bytes = self.get_property(path)?;
            Some(i64::from_le_bytes(bytes.get(..8)?.try_into().ok()?))
        }

        fn direction(&self) -> &'static str {
            match self.number(vec!["xds", "listener_direction"]) {
                Some(1) => "direction=.=inbound;.;",
                Some(2) => "direction=.=outbound;.;",
                _ => "",
            }
        }
    }

    impl HttpContext for Request {
        fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
            self.start = Some(self.get_current_time());
            self.method = text(self.get_http_request_header_bytes(":method"));
            self.grpc = self
                .get_http_request_header_bytes("content-type")
                .is_some_and(|value| value.starts_with(b"application/grpc"));
            let direction = self.direction();
            self.direction = direction;
            add(MetricType::Counter, format!("meshfilter_requests_started_total{direction}"), 1);
            add(MetricType::Gauge, format!("meshfilter_requests_in_flight{direction}"), 1);
            Action::Continue
        }

        fn on_http_request_body(&mut self, size: usize, _: bool) -> Action {
            if self.grpc {
                let [messages, _] = &mut self.messages;
                messages
                    .pass(size, |start, max| hostcalls::get_buffer(BufferType::HttpRequestBody, start, max).ok()?);
            }
            Action::Continue
        }

        fn on_http_response_body(&mut self, size: usize, _: bool) -> Action {
            if self.grpc {
                let [_, messages] = &mut self.messages;
                messages
                    .pass(size, |start, max| hostcalls::get_buffer(BufferType::HttpResponseBody, start, max).ok()?);
            }
            Action::Continue
        }

        fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
            self.first = Some(self.get_current_time());
            self.status = text(self.get_http_response_header_bytes(":status"));
            self.events = self
                .get_http_response_header_bytes("content-type")
                .is_some_and(|value| value.starts_with(b"text/event-stream"));
            Action::Continue
        }

        fn on_log(&mut self) {
            let Some(start) = self.start else { return };
            let direction = self.direction;
            add(MetricType::Gauge, format!("meshfilter_requests_in_flight{direction}"), -1);
            let since = |time: SystemTime| time.duration_since(start).unwrap_or_default();
            let total = since(self.get_current_time());
            let first = self.first.map(since);
            let time = |number: Option<i64>| number.and_then(|ns| u64::try_from(ns).ok()).map(Duration::from_nanos);
            let upstream = time(self.number(vec!["response", "backend_latency"]));
            let pool = time(self.number(vec!["upstream", "cx_pool_ready_duration"]));
            let attempts = self.number(vec!["upstream", "request_attempt_count"]);
            let route = self.get_property(vec!["xds", "route_name"]).unwrap_or_default();

            let mut labels = String::from(direction);
            let tunnel = self.status == "101" || self.method == "CONNECT" && self.status.starts_with('2');
            let protocol = if tunnel {
                "websocket"
            } else if self.grpc {
                "grpc"
            } else {
                "http"
            };
            labels.push_str(&format!("protocol=.={protocol};.;"));
            let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
            let method = if known.contains(&self.method.as_str()) { self.method.as_str() } else { "OTHER" };
            labels.push_str(&format!("method=.={method};.;"));
            if let Some(class) = self.status.get(..1) {
                labels.push_str(&format!("code=.={class}xx;.;"));
            }
            if self.grpc
                && let Some(code) = self.number(vec!["response", "grpc_status"])
            {
                labels.push_str(&format!("grpc_status=.={code};.;"));
            }
            if !route.is_empty() {
                labels.push_str(&format!("route=.={};.;", String::from_utf8_lossy(&route)));
            }
            add(MetricType::Counter, format!("meshfilter_requests_finished_total{labels}"), 1);
            let half = Duration::from_micros(500);
            let ms = |time: Duration| u64::try_from(time.saturating_add(half).as_millis()).unwrap_or(u64::MAX);
            let lived = if tunnel || self.events || self.messages.iter().any(|messages| messages.number > 1) {
                "stream"
            } else {
                "request"
            };
            record(format!("meshfilter_{lived}_duration_millis{labels}"), ms(total));
            if let Some(first) = first {
                record(format!("meshfilter_request_first_byte_millis{labels}"), ms(first));
            }

            let us = |time: Duration| time.as_micros().to_string();
            let proxy = upstream.map(|upstream| total.saturating_sub(upstream));
            let fields = [
                ("total_us", Some(us(total))),
                ("ttfb_us", first.map(us)),
                ("upstream_us", upstream.map(us)),
                ("pool_us", pool.map(us)),
                ("proxy_us", proxy.map(us)),
                ("attempts", attempts.filter(|attempts| *attempts > 0).map(|attempts| attempts.to_string())),
            ];
            let began = start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos().to_string();
            self.set_property(vec!["start_time_ns"], Some(began.as_bytes()));
            for (name, value) in fields {
                if let Some(value) = value {
                    self.set_property(vec![&format!("latency.{name}")], Some(value.as_bytes()));
                }
            }
        }
    }
}
