//! Resources: what requests are called by, and which rules meet which name.
//!
//! | kind | a request's name | |
//! |---|---|---|
//! | `cluster` | `payment-service` | the host in the upstream cluster's name, else the cluster's name |
//! | `host` | `payment-service` | the authority without its port, in lower case |
//! | a template | `GET /users/{id}` | the template's own text |
//! | `route` | `route:checkout` | the route's name |
//! | `method` | `method:GET` | a registered method, else `method:OTHER` |
//! | `header:x-tenant` | `header:x-tenant=acme` | the header's value |
//!
//! No name of one kind is a name of another by accident: a host has no `:`, `/`, `=` or blank, templates have a `/`, and the
//! others begin with their kind. Only clusters and hosts share their names, which is meant: both are what is called.
//!
//! A name that is empty, longer than 256 bytes, not UTF-8 or with control characters is none, and its request is not
//! protected by this kind: cut or mended, two such names could become one, and one's errors would break the other.

use crate::rules::LONGEST_RESOURCE;
use core::mem::discriminant;
use kit::Refusal;
use kit::alloc::borrow::Cow;
use kit::config::HeaderName;
use kit::prelude::*;

/// Most kinds that a request may be called by.
pub const MOST_KINDS: usize = 8;

/// By what requests are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the upstream cluster.
    Cluster,
    /// By the authority.
    Host,
    /// By the route.
    Route,
    /// By the first template that matches.
    Path(Vec<Template>),
    /// By the method.
    Method,
    /// By a request header, whose name is in lower case.
    Header(String),
}

impl Kind {
    /// Reads the operator's list: `cluster`, `host`, `route`, `method`, `header:<name>`, or a template. All templates are
    /// one kind, at the place of the first one.
    pub fn read(list: &[String]) -> Result<Vec<Self>, Refusal> {
        let mut kinds: Vec<Self> = Vec::with_capacity(list.len());
        for (index, text) in list.iter().enumerate() {
            let wrong = |problem: &str| Refusal::at("", problem).within_item(index);
            let kind = match text.as_str() {
                "cluster" => Self::Cluster,
                "host" => Self::Host,
                "route" => Self::Route,
                "method" => Self::Method,
                _ if text.contains('/') => {
                    let template = Template::parse(text).map_err(|refusal| wrong(&refusal.problem))?;
                    if let Some(Self::Path(templates)) = kinds.iter_mut().find(|kind| matches!(kind, Self::Path(_))) {
                        if templates.iter().any(|known| known.text == template.text) {
                            return Err(wrong("stands there twice, take one out"));
                        }
                        templates.push(template);
                        continue;
                    }
                    Self::Path(vec![template])
                }
                _ => {
                    let cure = "is not known, give cluster, host, route, method, header:<name> or a template of a path \
                                such as /users/{id}";
                    let name = text.strip_prefix("header:").ok_or_else(|| wrong(cure))?;
                    Self::Header(header_name(name).map_err(wrong)?)
                }
            };
            let same = |known: &Self| match (known, &kind) {
                (Self::Header(known), Self::Header(name)) => known == name,
                (known, kind) => discriminant(known) == discriminant(kind),
            };
            if kinds.iter().any(same) {
                return Err(wrong("stands there twice, take one out"));
            }
            if kinds.len() >= MOST_KINDS {
                return Err(wrong("is one too many, give up to 8 kinds, of which all templates are one"));
            }
            kinds.push(kind);
        }
        Ok(kinds)
    }

    /// What a request is called, from what this kind looks at: the cluster's name, the authority, the route's name, the
    /// path, the method, or the header's value. `method` is for templates alone.
    pub fn name<'a>(&'a self, from: &'a [u8], method: &[u8]) -> Option<Cow<'a, str>> {
        let name = match self {
            Self::Cluster => Cow::Borrowed(str::from_utf8(cluster_host(from)).ok()?),
            Self::Host => host(from)?,
            Self::Path(templates) => {
                return templates.iter().find(|template| template.matches(method, from)).map(|t| t.name().into());
            }
            Self::Route => ["route:", text(from)?].concat().into(),
            Self::Method => {
                let method = text(from)?;
                let known = METHODS.contains(&method);
                ["method:", if known { method } else { "OTHER" }].concat().into()
            }
            Self::Header(header) => ["header:", header, "=", text(from)?].concat().into(),
        };
        let fits = (1..=LONGEST_RESOURCE).contains(&name.len()) && !name.bytes().any(|b| b.is_ascii_control());
        fits.then_some(name)
    }
}

/// RFC 9110, 9.3, and RFC 5789.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// UTF-8, and not empty.
fn text(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// A header's name in lower case, or what is wrong with it.
pub(crate) fn header_name(name: &str) -> Result<String, &'static str> {
    HeaderName::read(name).map(|name| name.as_str().into())
}

/// The host in the name that Istio gives a cluster: `outbound|80||host`, `outbound|80|subset|host`, or in the form for SNI
/// `outbound_.80_._.host`. Any other name as it is, as is one without a host, such as `inbound|8080||`.
pub fn cluster_host(name: &[u8]) -> &[u8] {
    let istio = name.starts_with(b"outbound") || name.starts_with(b"inbound");
    let host = if !istio {
        None
    } else if name.contains(&b'|') {
        name.splitn(4, |b| *b == b'|').nth(3)
    } else {
        let mut rest = Some(name);
        for _ in 0..3 {
            rest = rest.and_then(|rest| {
                let at = rest.windows(2).position(|pair| pair == b"_.")?;
                rest.get(at.saturating_add(2)..)
            });
        }
        rest
    };
    host.filter(|host| !host.is_empty()).unwrap_or(name)
}

/// Whether a rule's resource means this name: it is the name, or the raw name of the request's cluster. For a host of
/// Kubernetes, `a.ns.svc.cluster.local` or any other `a.ns.svc` with or without more, it may also be `a`, `a.ns` or
/// `a.ns.svc`. Not for `*`, which is what no rule means.
pub fn meets(rule_resource: &str, name: &[u8], cluster: Option<&[u8]>) -> bool {
    let resource = rule_resource.as_bytes();
    if resource == name || Some(resource) == cluster {
        return true;
    }
    // The rest of the name after what the rule says, which ends with a label.
    let Some(rest) = name.strip_prefix(resource).and_then(|rest| rest.strip_prefix(b".")) else { return false };
    let is_host = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    let mut labels = name.split(|b| *b == b'.');
    let (Some(service), Some(namespace), Some(b"svc")) = (labels.next(), labels.next(), labels.next()) else {
        return false;
    };
    let said = resource.split(|b| *b == b'.').count();
    !service.is_empty() && !namespace.is_empty() && !rest.is_empty() && said <= 3 && name.iter().all(is_host)
}

/// The host of an authority: without its port, in lower case, `[::1]` as it is. `None` if it is none: empty, or with bytes
/// that no host has.
pub fn host(authority: &[u8]) -> Option<Cow<'_, str>> {
    let authority = text(authority)?;
    let end = match authority.strip_prefix('[') {
        Some(inner) => inner.find(']')?.saturating_add(2),
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, port) = authority.split_at_checked(end)?;
    let address = host.starts_with('[');
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-._~%".contains(&b) || (address && b"[]:".contains(&b));
    let port = if port.is_empty() { "" } else { port.strip_prefix(':')? };
    if host.is_empty() || !host.bytes().all(valid) || !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let upper = host.bytes().any(|b| b.is_ascii_uppercase());
    Some(if upper { host.to_ascii_lowercase().into() } else { host.into() })
}

/// A template of paths, such as `/users/{id}/orders`, `/static/**` or `GET /users/{id}`. Segments are compared byte for
/// byte with the path as it came, without its query; `{name}` is one segment that is not empty, and `**` at the end is
/// whatever follows, nothing included. Matching takes time in proportion to the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    /// How long the method is, 0 for any.
    method: usize,
    segments: Vec<Segment>,
    open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let wrong = |problem: &str| Err(Refusal::at("", problem));
        // Looked for as bytes: for one text in another the library brings 7 KB into the module.
        let blank = || text.as_bytes().windows(2).position(|pair| pair == b" /");
        let (method, path) = match text.strip_prefix('/') {
            Some(path) => ("", path),
            None => match blank().and_then(|at| Some((text.get(..at)?, text.get(at.saturating_add(2)..)?))) {
                Some(parts) => parts,
                None => {
                    return wrong(
                        "is no path, give one that begins with /, and before it perhaps a method and a blank",
                    );
                }
            },
        };
        if !text.starts_with('/') && (method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase())) {
            return wrong("has no method in front, give one such as GET in capital letters");
        }
        if text.len() > LONGEST_RESOURCE {
            return wrong(&format!("is too long, give up to {LONGEST_RESOURCE} bytes"));
        }
        let (mut segments, mut open) = (Vec::new(), false);
        for segment in path.split('/') {
            if open {
                return wrong("has ** in the middle, give it at the end");
            }
            let name = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}'));
            match name {
                _ if segment == "**" => open = true,
                Some(name) if !name.is_empty() && !name.contains(['{', '}']) => segments.push(Segment::Any),
                _ if segment.contains(['{', '}', '*']) => {
                    return wrong("has a segment with {, } or *, give {name} for a whole segment, or ** at the end");
                }
                _ if segment.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'?' || b == b'#') => {
                    return wrong("has a byte that no path has, take out the query, blanks and control characters");
                }
                _ => segments.push(Segment::Literal(segment.into())),
            }
        }
        Ok(Self { text: text.into(), method: method.len(), segments, open })
    }

    /// Its text, which names the requests that it matches.
    pub fn name(&self) -> &str {
        &self.text
    }

    /// Whether a request is of this template. The path may have a query.
    pub fn matches(&self, method: &[u8], path: &[u8]) -> bool {
        if self.method > 0 && self.text.as_bytes().get(..self.method) != Some(method) {
            return false;
        }
        let path = path.split(|b| *b == b'?' || *b == b'#').next().unwrap_or_default();
        let Some(path) = path.strip_prefix(b"/") else { return false };
        let mut parts = path.split(|b| *b == b'/');
        for segment in &self.segments {
            let matches = match (segment, parts.next()) {
                (Segment::Literal(literal), Some(part)) => literal.as_bytes() == part,
                (Segment::Any, Some(part)) => !part.is_empty(),
                (_, None) => false,
            };
            if !matches {
                return false;
            }
        }
        self.open || parts.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, proptest};

    #[test]
    fn a_clusters_host() {
        for (name, host) in [
            ("outbound|80||payment-service", "payment-service"),
            ("outbound|80|v1|pay.shop.svc.cluster.local", "pay.shop.svc.cluster.local"),
            ("outbound_.80_._.pay.shop.svc.cluster.local", "pay.shop.svc.cluster.local"),
            ("outbound_.80_.v1_.pay.shop.svc.cluster.local", "pay.shop.svc.cluster.local"),
            ("inbound|8080||", "inbound|8080||"),
            ("inbound|8080|http|pay.shop.svc.cluster.local", "pay.shop.svc.cluster.local"),
            ("outbound|80", "outbound|80"),
            ("outbound|80|", "outbound|80|"),
            ("outbound", "outbound"),
            ("outbound_.80_._.", "outbound_.80_._."),
            ("outbound_.80", "outbound_.80"),
            ("PassthroughCluster", "PassthroughCluster"),
            ("payment-service", "payment-service"),
            ("a|b|c|d", "a|b|c|d"),
            ("", ""),
        ] {
            assert_eq!(cluster_host(name.as_bytes()), host.as_bytes(), "{name}");
        }
    }

    #[test]
    fn which_rules_meet_which_name() {
        let raw = "outbound|80||pay.shop.svc.cluster.local";
        let kube = "pay.shop.svc.cluster.local";
        for (resource, name, cluster, expected) in [
            ("payment-service", "payment-service", None, true),
            ("payment", "payment-service", None, false),
            ("payment-service", "payment", None, false),
            (raw, kube, Some(raw), true),
            (raw, kube, None, false),
            (raw, kube, Some("outbound|81||pay.shop.svc.cluster.local"), false),
            (kube, kube, Some(raw), true),
            ("pay", kube, None, true),
            ("pay.shop", kube, None, true),
            ("pay.shop.svc", kube, None, true),
            ("pay.shop.svc.cluster", kube, None, false),
            ("pay.", kube, None, false),
            ("pa", kube, None, false),
            ("", kube, None, false),
            ("shop", kube, None, false),
            ("pay", "pay.shop.svc", None, true),
            ("pay.shop", "pay.shop.svc", None, true),
            ("pay", "pay.shop.svc.my.domain", None, true),
            ("pay", "pay.shop.example.com", None, false),
            ("pay", "pay.svc.cluster.local", None, false),
            ("pay", "pay..svc.cluster.local", None, false),
            (".shop", ".shop.svc.cluster.local", None, false),
            ("route:pay", "route:pay.shop.svc.cluster.local", None, false),
            ("/pay", "/pay.shop.svc.x", None, false),
            ("*", kube, None, false),
        ] {
            let met = meets(resource, name.as_bytes(), cluster.map(str::as_bytes));
            assert_eq!(met, expected, "{resource} {name} {cluster:?}");
        }
    }

    #[test]
    fn hosts() {
        for (authority, expected) in [
            ("payment-service", Some("payment-service")),
            ("Payment-Service:8080", Some("payment-service")),
            ("api.example.com:443", Some("api.example.com")),
            ("api.example.com:", Some("api.example.com")),
            ("10.0.0.7:80", Some("10.0.0.7")),
            ("[::1]:8080", Some("[::1]")),
            ("[2001:DB8::1]", Some("[2001:db8::1]")),
            ("[::1", None),
            ("[::1]8080", None),
            ("::1", None),
            ("a:b", None),
            ("", None),
            (":80", None),
            ("/users/{id}", None),
            ("a b", None),
            ("a=b", None),
            ("a[b", None),
            ("ä", None),
        ] {
            assert_eq!(host(authority.as_bytes()).as_deref(), expected, "{authority}");
        }
        assert_eq!(host(b"\xff"), None);
        assert!(matches!(host(b"a:80"), Some(Cow::Borrowed("a"))));
    }

    #[test]
    fn templates_match() {
        for (template, method, path, expected) in [
            ("/users/{id}/orders", "GET", "/users/5/orders", true),
            ("/users/{id}/orders", "GET", "/users/5/orders?a=/b", true),
            ("/users/{id}/orders", "GET", "/users/5/orders#x", true),
            ("/users/{id}/orders", "GET", "/users//orders", false),
            ("/users/{id}/orders", "GET", "/users/5/orders/", false),
            ("/users/{id}/orders", "GET", "/users/5", false),
            ("/users/{id}/orders", "GET", "/users/5/6/orders", false),
            ("/users/{id}", "GET", "/users/", false),
            ("/users/{id}", "GET", "/users/?id=5", false),
            ("/users/{id}", "GET", "/Users/5", false),
            ("GET /users/{id}", "GET", "/users/5", true),
            ("GET /users/{id}", "POST", "/users/5", false),
            ("GET /users/{id}", "GE", "/users/5", false),
            ("/static/**", "GET", "/static/a/b", true),
            ("/static/**", "GET", "/static/", true),
            ("/static/**", "GET", "/static", true),
            ("/static/**", "GET", "/statics", false),
            ("/**", "GET", "/", true),
            ("/**", "GET", "/a", true),
            ("/**", "GET", "*", false),
            ("/", "GET", "/", true),
            ("/", "GET", "/?a", true),
            ("/", "GET", "/a", false),
            ("/", "GET", "", false),
            ("/", "GET", "?", false),
        ] {
            let parsed = Template::parse(template).unwrap();
            assert_eq!(parsed.matches(method.as_bytes(), path.as_bytes()), expected, "{template} {method} {path}");
            assert_eq!(parsed.name(), template);
        }
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_cure() {
        let (long, capitals) =
            (std::format!("/{}", "x".repeat(256)), "has no method in front, give one such as GET in capital");
        for (list, path, problem) in [
            (
                &["cluster", "path"][..],
                "[1]",
                "is not known, give cluster, host, route, method, header:<name> or a template",
            ),
            (&["cluster", "cluster"], "[1]", "stands there twice, take one out"),
            (&["/a", "/b", "/a"], "[2]", "stands there twice, take one out"),
            (&["header:x-a", "header:X-A"], "[1]", "stands there twice, take one out"),
            (
                &["cluster", "host", "route", "method", "/a", "header:a", "header:b", "header:c", "/b", "header:d"],
                "[9]",
                "is one too many, give up to 8 kinds, of which all templates are one",
            ),
            (&["header:"], "[0]", "is no header name, give 1 to 64 letters, digits or `-`, without `:`"),
            (&["header::path"], "[0]", "is no header name, give 1 to 64"),
            (&["header:host"], "[0]", "is a header that the proxy itself lives by, give another"),
            (
                &["users/{id}"],
                "[0]",
                "is no path, give one that begins with /, and before it perhaps a method and a blank",
            ),
            (&["GET  /a"], "[0]", capitals),
            (&["get /a"], "[0]", capitals),
            (&[" /a"], "[0]", capitals),
            (&["/a/{id"], "[0]", "has a segment with {, } or *, give {name} for a whole segment, or ** at the end"),
            (&["/a/{}"], "[0]", "has a segment with {, } or *"),
            (&["/a/x{id}"], "[0]", "has a segment with {, } or *"),
            (&["/a/{{id}}"], "[0]", "has a segment with {, } or *"),
            (&["/a/*"], "[0]", "has a segment with {, } or *"),
            (&["/a/**/b"], "[0]", "has ** in the middle, give it at the end"),
            (&["/a?b"], "[0]", "has a byte that no path has, take out the query, blanks and control characters"),
            (&["/a b"], "[0]", "has a byte that no path has"),
            (&["/a\n"], "[0]", "has a byte that no path has"),
            (&[&long], "[0]", "is too long, give up to 256 bytes"),
        ] {
            let refusal = Kind::read(&texts(list)).expect_err(&std::format!("{list:?}"));
            assert_eq!(refusal.path, path, "{list:?}: {refusal}");
            assert!(refusal.problem.starts_with(problem), "{list:?}: {refusal}");
        }
    }

    #[test]
    fn requests_have_names() {
        let list = ["host", "/users/{id}", "header:X-Tenant", "GET /users/me", "route", "method", "cluster"];
        let kinds = Kind::read(&texts(&list)).unwrap();
        let [host, path, header, route, method, cluster] = &kinds[..] else { panic!("{kinds:?}") };
        let name = |kind: &Kind, from: &str| kind.name(from.as_bytes(), b"GET").map(|name| name.to_string());
        let some = |text: &str| Some(text.to_string());
        assert_eq!(name(host, "Payment-Service:80"), some("payment-service"));
        assert_eq!(name(cluster, "outbound|80||payment-service"), some("payment-service"));
        assert_eq!(name(cluster, "payment-service"), some("payment-service"));
        // The first template that matches.
        assert_eq!(name(path, "/users/me?x"), some("/users/{id}"));
        assert_eq!(name(path, "/other"), None);
        assert_eq!(name(route, "checkout"), some("route:checkout"));
        assert_eq!(name(method, "GET"), some("method:GET"));
        assert_eq!(name(method, "BREW"), some("method:OTHER"));
        assert_eq!(name(header, "acme"), some("header:x-tenant=acme"));
        for kind in &kinds {
            assert_eq!(name(kind, ""), None, "{kind:?}");
            assert_eq!(kind.name(b"\xff\xfe", b"\xff"), None, "{kind:?}");
        }
        for kind in [header, route, cluster, host] {
            assert_eq!(name(kind, &"x".repeat(257)), None, "{kind:?}");
        }
        for kind in [header, route, cluster] {
            assert_eq!(name(kind, "a\u{1}b"), None, "{kind:?}");
        }
        assert_eq!(name(cluster, &"x".repeat(256)), some(&"x".repeat(256)));
    }

    proptest! {
        #[test]
        fn odd_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "[/{}*|_.:a-z \u{e4}\\[\\]]{0,24}") {
            for bytes in [&bytes[..], text.as_bytes()] {
                let _ = (cluster_host(bytes), host(bytes), meets(&text, bytes, Some(bytes)));
                let list = ["cluster", "host", "route", "method", "header:x", "/a/{b}", "/{c}/**"];
                for kind in Kind::read(&texts(&list)).unwrap() {
                    let name = kind.name(bytes, bytes);
                    assert!(name.is_none_or(|name| (1..=256).contains(&name.len())));
                }
            }
            if let Ok(template) = Template::parse(&text) { template.matches(&bytes, &bytes); }
        }
    }
}
