//! Lines of text, by the format string that wrote them.

use anyhow::{Result, bail};

/// What Envoy writes where nothing is said.
pub const ENVOY: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
    \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\"";

/// What Istio writes where nothing is said.
pub const ISTIO: &str = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% \
    %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% \
    \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% \
    %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
    \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% \
    %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%";

/// What a part of a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// When the request began.
    Start,
    /// How long it took.
    Duration,
    /// The response's status.
    Status,
    /// Envoy's response flags.
    Flags,
    /// Who answered.
    Details,
    /// Of gRPC.
    Grpc,
    /// The upstream cluster.
    Cluster,
    /// The authority.
    Host,
    /// The route's name.
    Route,
    /// The method.
    Method,
    /// The path.
    Path,
}

impl Field {
    fn of(operator: &str) -> Option<Self> {
        let (name, argument) = match operator.split_once('(') {
            Some((name, argument)) => (name, argument.to_ascii_uppercase()),
            None => (operator, String::new()),
        };
        Some(match name {
            "START_TIME" => Self::Start,
            "DURATION" => Self::Duration,
            "RESPONSE_CODE" => Self::Status,
            "RESPONSE_FLAGS" | "RESPONSE_FLAGS_LONG" => Self::Flags,
            "RESPONSE_CODE_DETAILS" => Self::Details,
            "GRPC_STATUS" | "GRPC_STATUS_NUMBER" => Self::Grpc,
            "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" => Self::Cluster,
            "ROUTE_NAME" => Self::Route,
            "REQ" if argument.starts_with(":AUTHORITY") => Self::Host,
            "REQ" if argument.starts_with(":METHOD") => Self::Method,
            "REQ" | "REQ_WITHOUT_QUERY" | "PATH" if name == "PATH" || argument.contains(":PATH") => Self::Path,
            _ => return None,
        })
    }
}

/// A format string, made ready: a text, then a value and the text behind it, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    begin: String,
    parts: Vec<(Option<Field>, String)>,
}

impl Template {
    /// Reads a format string.
    ///
    /// # Errors
    /// Where values could not be told apart, or when or how long a request was is not among them.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim_end_matches(['\n', '\r']);
        let text = text.strip_suffix("\\n").unwrap_or(text);
        let mut pieces = text.split('%');
        let begin = pieces.next().unwrap_or_default().to_owned();
        let mut parts: Vec<(Option<Field>, String)> = Vec::new();
        // An argument may have a % of its own, as `START_TIME(%s.%3f)` has.
        while let Some(piece) = pieces.next() {
            let mut operator = piece.to_owned();
            while operator.contains('(') && !operator.contains(')') {
                let Some(more) = pieces.next() else { bail!("has a ( without a ) in {operator:?}, close it") };
                operator.push('%');
                operator.push_str(more);
            }
            let Some(behind) = pieces.next() else { bail!("has a % without a second one, close the operator") };
            if parts.last().is_some_and(|(_, between)| between.is_empty()) {
                bail!("has two operators without anything between, so that nothing tells them apart");
            }
            parts.push((Field::of(&operator), behind.to_owned()));
        }
        let template = Self { begin, parts };
        for (field, name) in
            [(Field::Start, "START_TIME"), (Field::Duration, "DURATION"), (Field::Status, "RESPONSE_CODE")]
        {
            if !template.parts.iter().any(|(of, _)| *of == Some(field)) {
                bail!("has no %{name}%, which is needed: give json, envoy, istio, or your proxy's own format string");
            }
        }
        Ok(template)
    }

    /// The values of a line, in the order of the format; `false` where it is not of this form. A line may have more at its
    /// end than the format.
    pub fn read<'a>(&self, line: &'a str, mut value: impl FnMut(Field, &'a str)) -> bool {
        let Some(mut rest) = line.strip_prefix(self.begin.as_str()) else { return false };
        let mut before = self.begin.as_str();
        for (place, (field, behind)) in self.parts.iter().enumerate() {
            let is_last = place.saturating_add(1) == self.parts.len();
            let end = match rest.find(behind.as_str()) {
                Some(end) if !behind.is_empty() => end,
                // The last value, with nothing behind it.
                _ if is_last && behind.is_empty() => rest.find(' ').unwrap_or(rest.len()),
                _ => return false,
            };
            let Some((text, after)) = rest.split_at_checked(end) else { return false };
            // Only in quotes or brackets values have blanks.
            if before.ends_with(' ') && text.contains([' ', '"']) {
                return false;
            }
            if let Some(field) = field {
                value(*field, text);
            }
            rest = after.strip_prefix(behind.as_str()).unwrap_or(after);
            before = behind;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(template: &str, line: &str) -> Option<Vec<(Field, String)>> {
        let mut found = vec![];
        Template::parse(template)
            .unwrap()
            .read(line, |field, text| found.push((field, text.to_owned())))
            .then_some(found)
    }

    const OF_ENVOY: &str = "[2026-03-02T10:00:00.250Z] \"GET /pay?a=1 HTTP/1.1\" 503 UF 0 91 17 - \"-\" \"curl/8.5.0 (x y)\" \
                            \"5c1f\" \"payment-service:8080\" \"10.0.0.7:80\"";
    const OF_ISTIO: &str = "[2026-03-02T10:00:00.250Z] \"GET /pay HTTP/1.1\" 200 - via_upstream - \"-\" 0 91 17 16 \"-\" \
                            \"curl/8.5.0\" \"5c1f\" \"pay.shop:80\" \"10.0.0.7:80\" \
                            outbound|80||pay.shop.svc.cluster.local 10.0.0.1:1 10.0.0.2:80 10.0.0.1:2 - default";

    #[test]
    fn of_envoy_and_of_istio() {
        let found = values(ENVOY, OF_ENVOY).unwrap();
        for (field, text) in [
            (Field::Start, "2026-03-02T10:00:00.250Z"),
            (Field::Method, "GET"),
            (Field::Path, "/pay?a=1"),
            (Field::Status, "503"),
            (Field::Flags, "UF"),
            (Field::Duration, "17"),
            (Field::Host, "payment-service:8080"),
        ] {
            assert!(found.contains(&(field, text.into())), "{field:?} {found:?}");
        }
        let found = values(ISTIO, OF_ISTIO).unwrap();
        for (field, text) in [
            (Field::Details, "via_upstream"),
            (Field::Duration, "17"),
            (Field::Cluster, "outbound|80||pay.shop.svc.cluster.local"),
            (Field::Route, "default"),
        ] {
            assert!(found.contains(&(field, text.into())), "{field:?} {found:?}");
        }
        assert_eq!(values(ISTIO, OF_ENVOY), None);
        for text in ["", "[", "GET / HTTP/1.1", "[2026-03-02T10:00:00.250Z] \"GET /pay HTTP/1.1\" 200"] {
            assert_eq!((values(ENVOY, text), values(ISTIO, text)), (None, None), "{text}");
        }
    }

    #[test]
    fn ones_own() {
        let template = "%START_TIME(%s.%3f)%|%DURATION%|%RESPONSE_CODE%|%UPSTREAM_CLUSTER%\\n";
        let found = values(template, "1767225600.250|17|200|payment-service").unwrap();
        assert_eq!(found[0], (Field::Start, "1767225600.250".into()));
        assert_eq!(found[3], (Field::Cluster, "payment-service".into()));
        for (wrong, problem) in [
            ("%START_TIME%", "no %DURATION%"),
            ("%START_TIME%%DURATION%", "two operators"),
            ("%START_TIME% %DURATION", "without a second one"),
            ("%START_TIME(%s% ", "without a )"),
            ("nonsense", "no %START_TIME%"),
        ] {
            let error = Template::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(problem), "{wrong}: {error}");
        }
    }
}
