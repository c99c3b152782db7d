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
    /// One line for people, by [`Metric::help`].
    pub help: &'static str,
    /// Names of the labels, in the order that values are given in.
    pub labels: &'static [&'static str],
}

impl Metric {
    /// For documentation, which is made natively: a module has nobody to show it to, and does not carry it.
    pub const fn help(text: &'static str) -> &'static str {
        if cfg!(target_arch = "wasm32") { "" } else { text }
    }

    fn series(&self, values: &[&str]) -> String {
        let mut name = String::from(self.name);
        // To Prometheus a label without a value is none.
        for (label, value) in self.labels.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
            name.push_str(label);
            name.push_str("=.=");
            // `=.=` and `;.;` are what a label is known by: without `=` and `;` a value can forge neither, and over the end
            // of a line no regular expression reaches.
            name.extend(value.chars().map(|c| if matches!(c, ';' | '=') || c.is_control() { '_' } else { c }));
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
    rows: Vec<Row>,
    /// Places in `rows`, sorted by key. A sorted list and no hash table, because it is short, hardly ever grows, and needs
    /// a tenth of the code.
    order: Vec<usize>,
    key: Vec<u8>,
    defined: usize,
    max: usize,
}

/// What stands for one list of label values.
struct Row {
    /// The values, each with its length in front, so that no two lists have one key.
    key: Box<[u8]>,
    /// By the address of the metric.
    ids: Vec<(usize, Option<u32>)>,
    overflow: bool,
}

/// The series of all metrics for one list of label values: found once, and then counted with.
#[derive(Clone, Copy, Debug)]
pub struct Labels(usize);

impl Default for Metrics {
    fn default() -> Self {
        Self::bounded(MAX_SERIES)
    }
}

impl Metrics {
    /// At most `max` series, not counting the overflow series.
    pub fn bounded(max: usize) -> Self {
        Self { rows: Vec::new(), order: Vec::new(), key: Vec::new(), defined: 0, max }
    }

    /// Changes the limit; series that are over it already stay.
    pub(crate) fn limit(&mut self, max: usize) {
        self.max = max;
    }

    /// Finds the series of these label values, for [`Metrics::add_to`] and [`Metrics::record_to`]: one search for all
    /// metrics that have the same labels. `values` are those of [`Metric::labels`], in that order; an empty one leaves its
    /// label out.
    pub fn labels(&mut self, values: &[&str]) -> Labels {
        self.key.clear();
        for value in values {
            let value = cut(value);
            self.key.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
            self.key.extend_from_slice(value.as_bytes());
        }
        let key = |place: &usize| self.rows.get(*place).map(|row| &*row.key).unwrap_or_default();
        match self.order.binary_search_by(|place| key(place).cmp(&self.key)) {
            Ok(found) => Labels(self.order.get(found).copied().unwrap_or_default()),
            Err(_) if self.rows.len() >= self.max && !overflows(values) => self.overflow(values.len()),
            Err(place) => {
                let row = Row { key: self.key.as_slice().into(), ids: Vec::new(), overflow: overflows(values) };
                self.rows.push(row);
                let new = self.rows.len().saturating_sub(1);
                self.order.insert(place.min(self.order.len()), new);
                Labels(new)
            }
        }
    }

    fn overflow(&mut self, labels: usize) -> Labels {
        self.labels(&vec![OVERFLOW; labels])
    }

    /// Moves a counter or gauge. `values` are those of [`Metric::labels`], in that order.
    pub fn add(&mut self, host: &dyn Host, metric: &'static Metric, values: &[&str], delta: i64) {
        let labels = self.labels(values);
        self.add_to(host, metric, labels, delta);
    }

    /// Records a value in a histogram, or sets a gauge.
    pub fn record(&mut self, host: &dyn Host, metric: &'static Metric, values: &[&str], value: u64) {
        let labels = self.labels(values);
        self.record_to(host, metric, labels, value);
    }

    /// Moves a counter or gauge; by 0, it is at least there from now on.
    pub fn add_to(&mut self, host: &dyn Host, metric: &'static Metric, labels: Labels, delta: i64) {
        if let Some(id) = self.id(host, metric, labels)
            && delta != 0
        {
            // A lost count is no reason to hold a request.
            let _ = host.add_metric(id, delta);
        }
    }

    /// What a counter or gauge stands at, over all workers; as cheap as moving it.
    pub fn value_of(&mut self, host: &dyn Host, metric: &'static Metric, labels: Labels) -> Option<u64> {
        host.metric(self.id(host, metric, labels)?).ok()
    }

    /// Records a value in a histogram, or sets a gauge.
    pub fn record_to(&mut self, host: &dyn Host, metric: &'static Metric, labels: Labels, value: u64) {
        if let Some(id) = self.id(host, metric, labels) {
            let _ = host.record_metric(id, value);
        }
    }

    fn id(&mut self, host: &dyn Host, metric: &'static Metric, labels: Labels) -> Option<u32> {
        let address = core::ptr::from_ref(metric).addr();
        let row = self.rows.get(labels.0)?;
        if let Some((_, id)) = row.ids.iter().find(|(known, _)| *known == address) {
            return *id;
        }
        if self.defined >= self.max && !row.overflow {
            let overflow = self.overflow(metric.labels.len());
            let id = self.id(host, metric, overflow);
            // For good, also under a later limit: what a gauge went up by, it has to come down by.
            if let Some(row) = self.rows.get_mut(labels.0) {
                row.ids.push((address, id));
            }
            return id;
        }
        // One that cannot be defined is not asked for again: not per request.
        let id = host.define_metric(metric.kind, &metric.series(&values(&row.key))).ok();
        self.defined = self.defined.saturating_add(usize::from(!row.overflow));
        if let Some(row) = self.rows.get_mut(labels.0) {
            row.ids.push((address, id));
        }
        id
    }
}

fn overflows(values: &[&str]) -> bool {
    values.iter().all(|value| *value == OVERFLOW)
}

/// The values that a key is made of.
fn values(mut key: &[u8]) -> Vec<&str> {
    let mut values = Vec::new();
    while let Some((length, rest)) = key.split_first() {
        let (value, rest) = rest.split_at_checked(usize::from(*length)).unwrap_or_default();
        values.push(str::from_utf8(value).unwrap_or_default());
        key = rest;
    }
    values
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
    fn a_series_that_is_moved_by_nothing_is_there() {
        let (host, proxy) = host();
        Metrics::default().add(&host, &SEEN, &["a", "b"], 0);
        assert_eq!(value(&proxy, "meshfilter_seen_totalwho=.=a;.;how=.=b;.;"), Some(0));
        assert_eq!(proxy.tally().hostcalls.get("proxy_increment_metric"), None);
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
        assert_eq!(value(&proxy, "meshfilter_seen_totalwho=.=a;.;how=.=_b;.;"), Some(1), "and no line ends in it");
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
    fn metrics_with_the_same_labels_are_found_at_once_and_a_label_without_value_is_left_out() {
        static ALSO: Metric =
            Metric { kind: MetricKind::Gauge, name: "meshfilter_also", help: "Also.", labels: &["who", "how"] };
        let (host, proxy) = host();
        let mut metrics = Metrics::bounded(3);
        for _ in 0..2 {
            let labels = metrics.labels(&["", "well"]);
            metrics.add_to(&host, &SEEN, labels, 1);
            metrics.add_to(&host, &ALSO, labels, -1);
        }
        assert_eq!(value(&proxy, "meshfilter_seen_totalhow=.=well;.;"), Some(2));
        assert_eq!(value(&proxy, "meshfilter_alsohow=.=well;.;"), Some(0_u64.wrapping_sub(2)));
        // The limit is of series, not of label values.
        let labels = metrics.labels(&["b", "well"]);
        metrics.add_to(&host, &SEEN, labels, 1);
        metrics.add_to(&host, &ALSO, labels, 1);
        assert_eq!(value(&proxy, "meshfilter_seen_totalwho=.=b;.;how=.=well;.;"), Some(1));
        assert_eq!(value(&proxy, "meshfilter_alsowho=.=b;.;how=.=well;.;"), None);
        assert_eq!(value(&proxy, "meshfilter_alsowho=.=overflow;.;how=.=overflow;.;"), Some(1));
    }

    #[test]
    fn what_went_up_over_the_limit_comes_down_there_under_another_limit() {
        static LEVEL: Metric =
            Metric { kind: MetricKind::Gauge, name: "meshfilter_level", help: "Level.", labels: &["who", "how"] };
        let (host, proxy) = host();
        let mut metrics = Metrics::bounded(1);
        let labels = metrics.labels(&["a", "well"]);
        metrics.add_to(&host, &SEEN, labels, 1);
        metrics.add_to(&host, &LEVEL, labels, 1);
        metrics.limit(10);
        metrics.add_to(&host, &LEVEL, labels, -1);
        assert_eq!(value(&proxy, "meshfilter_levelwho=.=overflow;.;how=.=overflow;.;"), Some(0));
        assert_eq!(value(&proxy, "meshfilter_levelwho=.=a;.;how=.=well;.;"), None);
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
