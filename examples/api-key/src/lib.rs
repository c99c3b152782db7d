//! Refuses requests without an API key and counts them: a small filter of one's own, which the kit's guide shows.
#![no_std]

use kit::prelude::*;
use kit::{Context, Filter, Flow, Headers, Metric, MetricKind, Phases, Refusal, Reply};

/// What the operator writes. Unknown fields are refused, and so is what is out of range.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The header with the key.
    pub header: kit::config::HeaderName,
    /// The keys that are known.
    pub keys: Vec<String>,
}

/// A metric is declared once; its series are made when they are first counted.
static REQUESTS: Metric = Metric {
    kind: MetricKind::Counter,
    name: "meshfilter_api_key_requests_total",
    help: "Requests by whether their key was known.",
    labels: &["outcome"],
};

/// Policy: what the operator said, checked and compiled. Never changed by traffic.
pub struct ApiKey {
    header: String,
    keys: Vec<Vec<u8>>,
}

impl Filter for ApiKey {
    const NAME: &'static str = "api-key";
    // The phases that have a method here: the module exports no others.
    const PHASES: Phases = Phases::REQUEST_HEADERS;
    type Config = Config;
    // State: what traffic did. One per plugin and VM, kept when the configuration changes.
    type State = ();
    // What is kept of a request from one phase to the next.
    type Stream = ();

    fn new(config: Config) -> Result<Self, Refusal> {
        if config.keys.is_empty() {
            return Err(Refusal::at("keys", "is empty, give at least one key"));
        }
        let keys = config.keys.into_iter().map(String::into_bytes).collect();
        Ok(Self { header: config.header.as_str().into(), keys })
    }

    fn metrics() -> Vec<&'static Metric> {
        vec![&REQUESTS]
    }

    fn request_headers(&self, cx: &mut Context<'_, Self>, headers: &mut Headers<'_>) -> Flow {
        // Bytes, whatever a stranger sent: nothing is taken for text. (A comparison of secrets in earnest takes the same time
        // wherever they differ.)
        let known = headers.get(&self.header).is_some_and(|key| self.keys.iter().any(|known| known == key));
        let outcome = if known { "known" } else { "unknown" };
        cx.metrics.add(cx.host, &REQUESTS, &[outcome], 1);
        if known {
            headers.remove(&self.header);
            return Flow::Continue;
        }
        Flow::Reply(Reply { status: 401, body: b"no key\n".to_vec(), details: "api_key_unknown", ..Reply::default() })
    }
}

// The last line of a filter's lib.rs; it stands for nothing but in the module that `make modules` builds.
kit::export!(ApiKey);
