//! GitLab's personal access tokens: prefix as in GitLab's documentation of token prefixes, twenty signs at least.

use super::vendors::{Form, Length};
use crate::view::is_base64url;

/// Routable tokens have dots.
fn is_in_token(byte: u8) -> bool {
    is_base64url(byte) || byte == b'.'
}

pub(super) const FORMS: &[Form] =
    &[Form { anchor: 3, prefixes: &[b"glpat-"], such: is_in_token, length: Length::AtLeast(20) }];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found(
            "gitlab_token",
            &[
                (&format!("glpat-{}", "aB-_3".repeat(4)), "[gitlab_token]"),
                (&format!("glpat-{}.01.abcdefghi", "aB3_x".repeat(6)), "[gitlab_token]"),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched("gitlab_token", &["glpat-", "glpat-short", &format!("xglpat-{}", "aB-_3".repeat(4))]);
    }
}
