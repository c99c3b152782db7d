//! Prometheus' text format, as far as Envoy writes it.

use std::collections::BTreeMap;

/// One line: a name, its labels, a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The series' name, with `_bucket`, `_sum` or `_count` for histograms.
    pub name: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Vec<Sample>);

impl Metrics {
    /// Reads the text; what is no sample is passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Every sample of that name whose labels include these.
    #[must_use]
    pub fn series(&self, name: &str, labels: &[(&str, &str)]) -> Vec<&Sample> {
        let has = |sample: &Sample, (key, value): &(&str, &str)| sample.labels.get(*key).is_some_and(|v| v == value);
        let wanted = |sample: &&Sample| sample.name == name && labels.iter().all(|label| has(sample, label));
        self.0.iter().filter(wanted).collect()
    }

    /// The sum over [`series`](Self::series), or `None` when there is none.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let series = self.series(name, labels);
        (!series.is_empty()).then(|| series.iter().map(|sample| sample.value).sum())
    }

    /// The names that start so, each once, in order of the alphabet.
    #[must_use]
    pub fn names(&self, prefix: &str) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|sample| sample.name.as_str()).collect();
        names.retain(|name| name.starts_with(prefix));
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, quoted) = rest.split_once("=\"")?;
            let (value, after) = unquote(quoted)?;
            labels.insert(key.trim_start_matches([',', ' ']).to_owned(), value);
            rest = after;
        }
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// The label's value up to its closing quote, and what comes after that.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                escaped => escaped,
            }),
            plain => value.push(plain),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_some_of_their_labels() {
        let metrics = Metrics::parse(concat!(
            "# TYPE a counter\n",
            "a{x=\"1\",y=\"q\\\"}\\\\\\n\"} 2\n",
            "a{x=\"1\"} 3\n",
            "b_bucket{le=\"+Inf\"} 1e3\n",
            "c{} 4\n",
            "d 5\n\nnot a sample\n",
        ));
        assert_eq!(metrics.value("a", &[("x", "1")]), Some(5.0));
        assert_eq!(metrics.value("a", &[("y", "q\"}\\\n")]), Some(2.0));
        assert_eq!(metrics.value("a", &[("x", "2")]), None);
        assert_eq!(metrics.value("b_bucket", &[("le", "+Inf")]), Some(1000.0));
        assert_eq!((metrics.value("c", &[]), metrics.value("d", &[])), (Some(4.0), Some(5.0)));
        assert_eq!(metrics.names("b"), ["b_bucket"]);
    }
}
