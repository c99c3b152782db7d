//! A breaker by the share of errors, as one writes it with the proxy-wasm crate: each worker counts by itself in a window of
//! ten buckets, and what all have to know, open, half open or closed, is in shared data, changed by compare-and-swap. For the
//! benchmark; `tests/cases.rs` and `tests/circuit_breaker.rs` hold it to what circuit-breaker does with the same rule.
#![allow(unsafe_code)] // The crate's entry point is a macro that exports a symbol.
#![allow(clippy::arithmetic_side_effects, clippy::as_conversions, reason = "as one writes it")]

#[cfg(feature = "module")]
mod module {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::time::SystemTime;

    use proxy_wasm::hostcalls;
    use proxy_wasm::traits::{Context, HttpContext, RootContext};
    use proxy_wasm::types::{Action, ContextType, LogLevel, MetricType};
    use serde::{Deserialize, Deserializer};

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| -> Box<dyn RootContext> { Box::new(Root::default()) });
    }}

    const BUCKETS: u64 = 10;

    /// What is read of circuit-breaker's configuration.
    #[derive(Deserialize)]
    struct Config {
        rules: Vec<Rule>,
    }

    #[derive(Deserialize)]
    struct Rule {
        /// The cluster.
        resource: String,
        /// Errors per request, 0 to 1.
        threshold: f64,
        #[serde(default = "ten")]
        min_requests: u64,
        #[serde(default = "minute", deserialize_with = "duration")]
        interval: u64,
        #[serde(default = "minute", deserialize_with = "duration")]
        retry_timeout: u64,
    }

    fn ten() -> u64 {
        10
    }

    fn minute() -> u64 {
        60_000_000_000
    }

    /// `60s` or `250ms`, as nanoseconds.
    fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
            (Some(number), _) => (number, 1_000_000_u64),
            (None, Some(number)) => (number, 1_000_000_000),
            _ => return Err(serde::de::Error::custom("no `s` or `ms`")),
        };
        Ok(number.parse::<u64>().map_err(serde::de::Error::custom)?.saturating_mul(unit))
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Phase {
        Closed,
        Open,
        HalfOpen,
    }

    /// What all workers share of a breaker.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Shared {
        phase: Phase,
        /// Closed: since when. Else: until when nobody may try.
        at_ns: u64,
    }

    impl Shared {
        fn decode(bytes: &[u8]) -> Option<Self> {
            let (phase, at_ns) = bytes.split_first()?;
            let phase = match phase {
                0 => Phase::Closed,
                1 => Phase::Open,
                _ => Phase::HalfOpen,
            };
            Some(Self { phase, at_ns: u64::from_le_bytes(at_ns.try_into().ok()?) })
        }

        fn encode(self) -> Vec<u8> {
            let phase = match self.phase {
                Phase::Closed => 0,
                Phase::Open => 1,
                Phase::HalfOpen => 2,
            };
            [&[phase][..], &self.at_ns.to_le_bytes()].concat()
        }
    }

    #[derive(Default)]
    struct Bucket {
        number: u64,
        total: u64,
        errors: u64,
    }

    /// A breaker as one worker has it.
    struct Breaker {
        rule: Rule,
        key: String,
        allowed: Option<u32>,
        rejected: Option<u32>,
        buckets: VecDeque<Bucket>,
        /// Since when it was closed, as last seen: what was counted before is over.
        closed_ns: u64,
    }

    impl Breaker {
        fn new(rule: Rule) -> Self {
            let counter = |what: &str| {
                let resource = &rule.resource;
                let labels = format!("resource=.={resource};.;rule=.={resource}/error_ratio;.;");
                hostcalls::define_metric(MetricType::Counter, &format!("meshfilter_circuit_{what}_total{labels}")).ok()
            };
            let (allowed, rejected) = (counter("allowed"), counter("rejected"));
            let key = format!("circuit-breaker-sdk.{}", rule.resource);
            Self { rule, key, allowed, rejected, buckets: VecDeque::new(), closed_ns: 0 }
        }

        fn load(&self) -> (Shared, Option<u32>) {
            let (bytes, cas) = hostcalls::get_shared_data(&self.key).unwrap_or_default();
            let shared = bytes.and_then(|bytes| Shared::decode(&bytes));
            (shared.unwrap_or(Shared { phase: Phase::Closed, at_ns: 0 }), cas)
        }

        /// Whether nobody was faster.
        fn store(&self, shared: Shared, cas: Option<u32>) -> bool {
            hostcalls::set_shared_data(&self.key, Some(&shared.encode()), cas).is_ok()
        }

        /// Whether a request may pass, and as a probe; else the state, and in how many nanoseconds to try again.
        fn admit(&mut self, now_ns: u64) -> Result<bool, (&'static str, u64)> {
            let (shared, cas) = self.load();
            if shared.phase == Phase::Closed {
                if self.closed_ns != shared.at_ns {
                    self.closed_ns = shared.at_ns;
                    self.buckets.clear();
                }
                return Ok(false);
            }
            // Half open, a probe that never ended is given up when another retry timeout is over.
            let until_ns = now_ns.saturating_add(self.rule.retry_timeout);
            if now_ns >= shared.at_ns && self.store(Shared { phase: Phase::HalfOpen, at_ns: until_ns }, cas) {
                return Ok(true);
            }
            let state = if shared.phase == Phase::Open { "open" } else { "half_open" };
            Err((state, shared.at_ns.saturating_sub(now_ns)))
        }

        /// Counts a request that ended; whether it is to open.
        fn trips(&mut self, now_ns: u64, error: bool) -> bool {
            let length = (self.rule.interval / BUCKETS).max(1);
            let number = now_ns / length;
            while self.buckets.front().is_some_and(|bucket| bucket.number.saturating_add(BUCKETS) <= number) {
                self.buckets.pop_front();
            }
            if self.buckets.back().is_none_or(|bucket| bucket.number != number) {
                self.buckets.push_back(Bucket { number, ..Bucket::default() });
            }
            if let Some(bucket) = self.buckets.back_mut() {
                bucket.total = bucket.total.saturating_add(1);
                bucket.errors = bucket.errors.saturating_add(u64::from(error));
            }
            let total: u64 = self.buckets.iter().map(|bucket| bucket.total).sum();
            let errors: u64 = self.buckets.iter().map(|bucket| bucket.errors).sum();
            error && total >= self.rule.min_requests && errors as f64 / total as f64 >= self.rule.threshold
        }

        fn end(&mut self, probe: bool, now_ns: u64, error: bool) {
            let open = Shared { phase: Phase::Open, at_ns: now_ns.saturating_add(self.rule.retry_timeout) };
            if probe {
                // It alone decides.
                self.store(if error { open } else { Shared { phase: Phase::Closed, at_ns: now_ns } }, None);
            } else if self.trips(now_ns, error) {
                // Until it is open, by whomever.
                loop {
                    let (shared, cas) = self.load();
                    if shared.phase != Phase::Closed || self.store(open, cas) {
                        break;
                    }
                }
            }
        }
    }

    fn count(id: Option<u32>) {
        if let Some(id) = id {
            let _ = hostcalls::increment_metric(id, 1);
        }
    }

    #[derive(Default)]
    struct Root {
        breakers: Rc<RefCell<Vec<Breaker>>>,
    }

    impl Context for Root {}

    impl RootContext for Root {
        fn on_configure(&mut self, _: usize) -> bool {
            let bytes = self.get_plugin_configuration().unwrap_or_default();
            match serde_json::from_slice::<Config>(&bytes) {
                Ok(config) => {
                    let breakers = config.rules.into_iter().map(Breaker::new).collect();
                    self.breakers = Rc::new(RefCell::new(breakers));
                    true
                }
                Err(error) => {
                    let _ = hostcalls::log(LogLevel::Error, &format!("configuration refused: {error}"));
                    false
                }
            }
        }
        fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
            Some(Box::new(Request { breakers: Rc::clone(&self.breakers), passes: None }))
        }
        fn get_type(&self) -> Option<ContextType> {
            Some(ContextType::HttpContext)
        }
    }

    struct Request {
        breakers: Rc<RefCell<Vec<Breaker>>>,
        /// By which breaker, and whether as a probe; until it has ended.
        passes: Option<(usize, bool)>,
    }

    impl Context for Request {}

    impl Request {
        fn now_ns(&self) -> u64 {
            let now = self.get_current_time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
        }

        fn end(&mut self, error: bool) {
            if let Some((at, probe)) = self.passes.take()
                && let Some(breaker) = self.breakers.borrow_mut().get_mut(at)
            {
                breaker.end(probe, self.now_ns(), error);
            }
        }
    }

    impl HttpContext for Request {
        fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
            let Some(cluster) = self.get_property(vec!["xds", "cluster_name"]) else { return Action::Continue };
            let mut breakers = self.breakers.borrow_mut();
            let named = |breaker: &Breaker| breaker.rule.resource.as_bytes() == cluster;
            let Some(at) = breakers.iter().position(named) else { return Action::Continue };
            let Some(breaker) = breakers.get_mut(at) else { return Action::Continue };
            match breaker.admit(self.now_ns()) {
                Ok(probe) => {
                    count(breaker.allowed);
                    self.passes = Some((at, probe));
                    Action::Continue
                }
                Err((state, wait_ns)) => {
                    count(breaker.rejected);
                    let wait = wait_ns.div_ceil(1_000_000_000).max(1).to_string();
                    drop(breakers);
                    self.send_http_response(503, vec![("retry-after", &wait), ("x-circuit-state", state)], None);
                    Action::Pause
                }
            }
        }

        fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
            let status = self.get_http_response_header_bytes(":status").unwrap_or_default();
            self.end(status.starts_with(b"5"));
            Action::Continue
        }

        // There was no response: of a probe this counts, of others nothing does, for the client may have left.
        fn on_log(&mut self) {
            if let Some((_, true)) = self.passes {
                self.end(true);
            }
        }
    }
}
