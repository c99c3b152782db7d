//! What a release is called: one rule for the images, and for the manifests that name them.

use anyhow::{Context as _, Result, ensure};
use semver::Version;

/// The longest that Kubernetes takes as the value of a label; a registry takes longer tags.
const LONGEST: usize = 63;

/// What follows the version in the tag of an artifact.
pub const ARTIFACT: &str = "-artifact";

/// A version: three numbers, and what may follow them after `-`. It is a tag in a registry, also with [`ARTIFACT`] behind it,
/// the version of a chart, and the value of a label.
///
/// # Errors
/// When it is none; the message says what one is.
pub fn version(text: &str) -> Result<String> {
    let wrong = || format!("`{text}` is no version: give one such as 1.2.3 or 1.2.3-rc.1");
    let version = Version::parse(text).with_context(wrong)?;
    // A tag has no `+`.
    ensure!(version.build.is_empty(), "{}, and nothing after a `+`, which no tag has", wrong());
    ensure!(!text.ends_with(ARTIFACT), "`{text}` would have the tag of an artifact: no version ends with {ARTIFACT}");
    ensure!(text.len() <= LONGEST, "`{text}` is too long for a label: {LONGEST} letters at most");
    ensure!(
        text.ends_with(|last: char| last.is_ascii_alphanumeric()),
        "`{text}` has to end with a letter or digit, as a label"
    );
    Ok(text.to_owned())
}

/// A place in a registry, `host[:port]/path`; what comes back has no `/` at its end.
///
/// # Errors
/// When it is none; the message says what is wrong with it.
pub fn registry(text: &str) -> Result<String> {
    let asked = "give <host[:port]/path>, as registry.example.com/filters";
    let location = text.trim_end_matches('/');
    ensure!(!location.contains("://"), "`{text}` begins with a scheme: {asked}");
    let (place, path) = location.split_once('/').with_context(|| format!("`{text}` has no path: {asked}"))?;
    ensure!(is_host(place), "`{place}` is no host: {asked}");
    for part in path.split('/') {
        ensure!(
            is_part(part),
            "`{part}` in `{text}` cannot be in the path of an image: small letters and digits, and between them `.`, `_`, `__` or `-`"
        );
    }
    Ok(location.to_owned())
}

/// `host[:port]`. A word alone is the first part of a path, as with docker.
fn is_host(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let right = port.is_none_or(|port| port.parse::<u16>().is_ok());
    right && host.split('.').all(label) && (host == "localhost" || port.is_some() || host.contains('.'))
}

/// A part of the path, as the distribution's specification has it.
fn is_part(text: &str) -> bool {
    let word = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let between = |signs: &str| matches!(signs, "" | "." | "_" | "__") || signs.bytes().all(|sign| sign == b'-');
    text.starts_with(word) && text.ends_with(word) && text.split(word).all(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_tag_and_a_chart_s() {
        let longest = format!("1.2.3-{}", "a".repeat(LONGEST - 6));
        for right in ["0.1.0", "1.2.3", "1.2.3-rc.1", "10.20.30-a-b", &longest] {
            assert_eq!(version(right).unwrap(), right);
        }
        for wrong in
            ["", "latest", "1.2", "v1.2.3", "01.2.3", "1.2.3-", "1.2.3-\"", "1.2.3-a_b", "a b", "-1", "1.2.3\n"]
        {
            let said = version(wrong).unwrap_err().to_string();
            assert!(said.contains("is no version: give one such as 1.2.3"), "{said}");
        }
        for (wrong, says) in [
            ("1.2.3+4", "which no tag has"),
            ("1.2.3-artifact", "would have the tag of an artifact"),
            (&format!("{longest}a"), "too long"),
            ("1.2.3-rc-", "has to end with a letter or digit"),
        ] {
            let said = version(wrong).unwrap_err().to_string();
            assert!(said.contains(says), "{said}");
        }
    }

    #[test]
    fn a_registry_is_a_host_and_a_path() {
        for (right, is) in [
            ("registry.example.com/filters", "registry.example.com/filters"),
            ("localhost:5000/a/", "localhost:5000/a"),
            ("localhost/filters", "localhost/filters"),
            ("Registry.Example.com:443/a/b", "Registry.Example.com:443/a/b"),
            ("box:5000/a.b_c__d---e/0", "box:5000/a.b_c__d---e/0"),
        ] {
            assert_eq!(registry(right).unwrap(), is);
        }
        for (wrong, says) in [
            ("https://registry.example.com/filters", "begins with a scheme"),
            ("oci://a/b", "begins with a scheme"),
            ("", "has no path"),
            ("registry.example.com", "has no path"),
            ("registry.example.com/", "has no path"),
            ("filters/mesh", "`filters` is no host"),
            ("a b.c/d", "is no host"),
            ("-a.b/c", "is no host"),
            ("a.b:/c", "is no host"),
            ("a.b:x/c", "is no host"),
            ("a.b:70000/c", "is no host"),
            ("{{ a }}/b", "is no host"),
            ("registry.example.com/Filters", "`Filters` in `registry.example.com/Filters` cannot be in the path"),
            ("a.b/c//d", "`` in"),
            ("a.b/c d", "cannot be in the path"),
            ("a.b/c\nd", "cannot be in the path"),
            ("a.b/-c", "cannot be in the path"),
            ("a.b/c.", "cannot be in the path"),
            ("a.b/c._d", "cannot be in the path"),
            ("a.b/c___d", "cannot be in the path"),
            ("a.b/c:1", "cannot be in the path"),
        ] {
            let said = registry(wrong).unwrap_err().to_string();
            assert!(said.contains(says), "{wrong}: {said}");
        }
    }
}
