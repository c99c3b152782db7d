//! Metrics: declared once, their series defined once and bounded.

use crate::host::{Host, MetricKind};
use crate::prelude::*;

/// A metric and the labels of its series.
///
/// A series is named `<name><label>=.=<value>;.;…`, in the order of `labels`: what Istio's `extraStatTags` and the
/// regular expressions of plain Envoy's `stats_tags` take apart again, so that Prometheus shows labels as labels.
#[derive(Debug)]
pub struct Metric {
    /// What it does with numbers.
    pub kind: MetricKind,
    /// `meshfilter_<noun>_<unit>`, by Prometheus' rules of naming.
    pub name: &'static str,
    /// One line for people.
    pub help: &'static str,
    /// Names of the labels, in the order that values are given in.
    pub labels: &'static [&'static str],
}

impl Metric {
    fn series(&self, values: &[&str]) -> String {
        let mut name = String::from(self.name);
        for (label, value) in self.labels.iter().zip(values) {
            name.push_str(label);
            name.push_str("=.=");
            // `=.=` and `;.;` are what a label is known by: without `=` and `;` a value can forge neither.
            name.extend(value.chars().map(|c| if matches!(c, ';' | '=') { '_' } else { c }));
            name.push_str(";.;");
        }
        name
    }
}

/// The regular expression that takes label `name` out of a series' name again: for `stats_tags` of plain Envoy.
pub fn tag_regex(label: &str) -> String {
    format!(r"({label}=\.=(.*?);\.;)")
}

/// The value of every label of the series that takes what is over the limit.
pub const OVERFLOW: &str = "overflow";

/// How many series a VM may have.
pub const MAX_SERIES: usize = 1000;

/// How long a label's value may be, in bytes; a longer one is cut.
const MAX_VALUE: usize = 128;

/// The VM's series. An id is asked for once per series; no series ever goes away in the proxy, so their number is
/// bounded, and one more per metric counts what is over.
pub struct Metrics {
    /// Sorted by key: the address of the metric and the values of its labels. A sorted list and no hash table, because
    /// it is short, hardly ever grows, and needs a tenth of the code.
    ids: Vec<(Box<[u8]>, Option<u32>)>,
    key: Vec<u8>,
    max: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::bounded(MAX_SERIES)
    }
}

impl Metrics {
    /// At most `max` series, not counting the overflow series.
    pub fn bounded(max: usize) -> Self {
        Self { ids: Vec::new(), key: Vec::new(), max }
    }

    /// Moves a counter or gauge. `values` are those of [`Metric::labels`], in that order.
    pub fn add(&mut self, host: &dyn Host, metric: &'static Metric, values: &[&str], delta: i64) {
        if let Some(id) = self.id(host, metric, values) {
            // A lost count is no reason to hold a request.
            let _ = host.add_metric(id, delta);
        }
    }

    /// Records a value in a histogram.
    pub fn record(&mut self, host: &dyn Host, metric: &'static Metric, values: &[&str], value: u64) {
        if let Some(id) = self.id(host, metric, values) {
            let _ = host.record_metric(id, value);
        }
    }

    fn id(&mut self, host: &dyn Host, metric: &'static Metric, values: &[&str]) -> Option<u32> {
        self.key.clear();
        self.key.extend_from_slice(&core::ptr::from_ref(metric).addr().to_le_bytes());
        for value in values {
            // With its length in front, so that no two lists of values have one key.
            let value = cut(value);
            self.key.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
            self.key.extend_from_slice(value.as_bytes());
        }
        let place = match self.ids.binary_search_by(|(key, _)| (**key).cmp(&self.key)) {
            Ok(found) => return self.ids.get(found).and_then(|(_, id)| *id),
            Err(place) => place,
        };
        if self.ids.len() >= self.max && values.iter().any(|value| *value != OVERFLOW) {
            return self.id(host, metric, &vec![OVERFLOW; values.len()]);
        }
        // One that cannot be defined is not asked for again: not per request.
        let values: Vec<&str> = values.iter().map(|value| cut(value)).collect();
        let id = host.define_metric(metric.kind, &metric.series(&values)).ok();
        self.ids.insert(place.min(self.ids.len()), (self.key.as_slice().into(), id));
        id
    }
}

/// What counts of a value.
fn cut(value: &str) -> &str {
    value.get(..value.floor_char_boundary(MAX_VALUE)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::host;
    use emulator::{Fault, Proxy};

    fn defined(proxy: &Proxy) -> u64 {
        proxy.tally().hostcalls["proxy_define_metric"]
    }

    fn value(proxy: &Proxy, series: &str) -> Option<u64> {
        proxy.metric(series).map(|metric| metric.value)
    }

    static SEEN: Metric =
        Metric { kind: MetricKind::Counter, name: "meshfilter_seen_total", help: "Seen.", labels: &["who", "how"] };

    #[test]
    fn a_series_is_defined_once_and_encodes_its_labels() {
        let (host, proxy) = host();
        let mut metrics = Metrics::default();
        for _ in 0..3 {
            metrics.add(&host, &SEEN, &["a;.;b", "well"], 2);
        }
        assert_eq!(defined(&proxy), 1);
        assert_eq!(value(&proxy, "meshfilter_seen_totalwho=.=a_._b;.;how=.=well;.;"), Some(6));
    }

    #[test]
    fn values_forge_no_labels_and_do_not_meet() {
        let (host, proxy) = host();
        let mut metrics = Metrics::default();
        metrics.add(&host, &SEEN, &["how=.=forged;.;", "b"], 1);
        assert_eq!(value(&proxy, "meshfilter_seen_totalwho=.=how_._forged_._;.;how=.=b;.;"), Some(1));
        for values in [["a", "\0b"], ["a\0", "b"], ["a\0b", ""]] {
            metrics.add(&host, &SEEN, &values, 1);
        }
        assert_eq!(defined(&proxy), 4);
        metrics.add(&host, &SEEN, &["é".repeat(1000).as_str(), "b"], 1);
        let cut = "é".repeat(64);
        assert_eq!(value(&proxy, &format!("meshfilter_seen_totalwho=.={cut};.;how=.=b;.;")), Some(1));
    }

    #[test]
    fn a_million_hostile_labels_make_no_more_than_the_limit_and_one() {
        let (host, proxy) = host();
        let mut metrics = Metrics::bounded(10);
        for n in 0..1_000_000 {
            metrics.add(&host, &SEEN, &[&n.to_string(), "x"], 1);
        }
        assert_eq!(defined(&proxy), 11);
        assert_eq!(value(&proxy, "meshfilter_seen_totalwho=.=overflow;.;how=.=overflow;.;"), Some(1_000_000 - 10));
    }

    #[test]
    fn a_host_that_defines_nothing_is_asked_once() {
        let (host, proxy) = host();
        proxy.fault(Fault::of("proxy_define_metric"));
        let mut metrics = Metrics::default();
        metrics.add(&host, &SEEN, &["a", "b"], 1);
        metrics.add(&host, &SEEN, &["a", "b"], 1);
        assert_eq!(defined(&proxy), 1);
    }
}
