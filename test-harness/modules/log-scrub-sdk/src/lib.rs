//! What log-scrub leaves by default, clean copies of path, query, Referer and User-Agent, as one writes it with the proxy-wasm
//! and the `regex` crate: one expression for five kinds of values, over each text as it came, and a check digit for cards.
//! For the benchmark; `tests/cases.rs` says what it finds as log-scrub does. It decodes nothing, and knows no names of fields.
#![allow(unsafe_code)] // The crate's entry point is a macro that exports a symbol.

#[cfg(feature = "module")]
mod module {
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::rc::Rc;

    use proxy_wasm::hostcalls;
    use proxy_wasm::traits::{Context, HttpContext, RootContext};
    use proxy_wasm::types::{Action, ContextType, LogLevel, MetricType};
    use regex::bytes::{Captures, Regex};

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root::default()) });
    }}

    /// What is looked for; the first that matches at a place counts.
    const PATTERNS: [(&str, &str); 5] = [
        ("jwt", r"\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"),
        ("bearer", r"\b(?i:bearer)(?: |\+|%20)+[A-Za-z0-9._~+/-]+=*"),
        ("email", r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}"),
        ("card", r"\b\d(?:[ -]?\d){12,18}\b"),
        ("us_ssn", r"\b\d{3}-\d{2}-\d{4}\b"),
    ];

    thread_local! {
        static SERIES: RefCell<HashMap<String, u32>> = RefCell::new(HashMap::new());
    }

    fn add(name: &str, delta: usize) {
        let id = SERIES.with_borrow_mut(|series| match series.get(name) {
            Some(id) => Some(*id),
            None => {
                let id = hostcalls::define_metric(MetricType::Counter, name).ok()?;
                series.insert(name.to_owned(), id);
                Some(id)
            }
        });
        if let Some(id) = id {
            let _ = hostcalls::increment_metric(id, i64::try_from(delta).unwrap_or(i64::MAX));
        }
    }

    #[derive(Default)]
    struct Root {
        pattern: Option<Rc<Regex>>,
    }

    impl Context for Root {}

    impl RootContext for Root {
        fn on_configure(&mut self, _: usize) -> bool {
            let pattern = PATTERNS.map(|(name, pattern)| format!("(?P<{name}>{pattern})")).join("|");
            self.pattern = Regex::new(&format!("(?-u){pattern}")).ok().map(Rc::new);
            self.pattern.is_some()
        }
        fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
            let pattern = self.pattern.clone()?;
            Some(Box::new(Request { pattern }))
        }
        fn get_type(&self) -> Option<ContextType> {
            Some(ContextType::HttpContext)
        }
    }

    struct Request {
        pattern: Rc<Regex>,
    }

    /// The check digit of ISO/IEC 7812-1.
    fn luhn(text: &[u8]) -> bool {
        let digits = text.iter().rev().filter(|byte| byte.is_ascii_digit()).map(|byte| u32::from(byte & 15));
        let weighed = digits.enumerate().map(|(place, digit)| match (place.is_multiple_of(2), digit) {
            (true, _) => digit,
            (false, 0..=4) => digit.saturating_mul(2),
            (false, _) => digit.saturating_mul(2).saturating_sub(9),
        });
        weighed.sum::<u32>().is_multiple_of(10)
    }

    impl Context for Request {}

    impl Request {
        /// Leaves a clean copy, and counts what was found.
        fn leave(&self, place: &str, text: &[u8]) {
            let clean = self.pattern.replace_all(text, |found: &Captures<'_>| {
                let whole = found.get(0).map_or(&b""[..], |whole| whole.as_bytes());
                match PATTERNS.iter().find(|(name, _)| found.name(name).is_some()) {
                    Some((name, _)) if *name != "card" || luhn(whole) => {
                        add(&format!("meshfilter_scrub_findings_totalrule=.={name};.;place=.={place};.;"), 1);
                        format!("[{name}]").into_bytes()
                    }
                    _ => whole.to_vec(),
                }
            });
            self.set_property(vec![&format!("scrub.{place}")], Some(&clean));
        }
    }

    impl HttpContext for Request {
        fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
            let path = self.get_http_request_header_bytes(":path").unwrap_or_default();
            let mut bytes = 0_usize;
            let mut texts = Vec::new();
            let mut parts = path.splitn(2, |byte| *byte == b'?');
            texts.extend(parts.next().map(|path| ("path", path.to_vec())));
            texts.extend(parts.next().map(|query| ("query", query.to_vec())));
            texts.extend(self.get_http_request_header_bytes("referer").map(|value| ("referer", value)));
            texts.extend(self.get_http_request_header_bytes("user-agent").map(|value| ("user_agent", value)));
            for (place, text) in &texts {
                self.leave(place, text);
                bytes = bytes.saturating_add(text.len());
            }
            add("meshfilter_scrub_bytes_total", bytes);
            Action::Continue
        }
    }
}
