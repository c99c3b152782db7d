//! The filter's configuration, from a file in YAML or JSON.

use anyhow::{Context as _, Result, bail};
use log_scrub::config::Config;
use std::path::Path;

/// Reads a file. Nothing at all is an empty configuration, as it is for the filter.
///
/// # Errors
/// What is wrong, where, and what would be right; no value is repeated, since one may be a key.
pub fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Reads a text, as [`read`] does.
///
/// # Errors
/// As [`read`].
pub fn parse(text: &str) -> Result<Config> {
    let is_json = text.trim_start().starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
    if is_json || text.trim().is_empty() {
        return Ok(kit::config::parse(text.as_bytes())?);
    }
    let tree: serde_json::Value = match serde_saphyr::from_str(text) {
        Ok(tree) => tree,
        // The library's own message shows the line.
        Err(error) => match error.location() {
            Some(place) => bail!("is neither YAML nor JSON: line {}, column {}", place.line(), place.column()),
            None => bail!("is neither YAML nor JSON"),
        },
    };
    // A file of comments.
    if tree.is_null() {
        return Ok(Config::default());
    }
    Ok(kit::config::parse(&serde_json::to_vec(&tree)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        format!("{:#}", parse(text).unwrap_err())
    }

    #[test]
    fn yaml_and_json() {
        for text in ["packs: [pii]\nfields:\n  names: [staff]\n", r#"{"packs":["pii"],"fields":{"names":["staff"]}}"#] {
            let config = parse(text).unwrap();
            assert_eq!(config.packs.unwrap().len(), 1);
            assert_eq!(config.fields.names, ["staff"]);
        }
        for text in ["", " \n", "# nothing\n", "{}"] {
            assert!(parse(text).unwrap().packs.is_none(), "{text:?}");
        }
    }

    #[test]
    fn refused_with_the_place_and_the_cure() {
        assert_eq!(
            problem("packs: [pii, money]"),
            "at `packs[1]`: is not known, give one of secrets, pii, pii-cn, financial"
        );
        assert!(problem("pack: [pii]").starts_with("at `pack`: is no field, give one of "));
        assert_eq!(problem(r#"{"packs": [], "packs": []}"#), "at `packs`: stands there twice, take one out");
        assert!(problem("a: [\nb").contains("is neither YAML nor JSON: line"));
        assert!(problem("just words").contains("give an object") || problem("just words").contains("(top level)"));
    }

    #[test]
    fn no_value_is_repeated() {
        for text in ["hmac_key: [canary-canary", "hmac_key: {a: canary-canary}", "hmac_key:\n\t- canary-canary: :\n"] {
            assert!(!problem(text).contains("canary"), "{}", problem(text));
        }
    }
}
