//! GitLab's personal access tokens: prefix as in GitLab's documentation of token prefixes, twenty signs at least.

use super::Look;
use super::vendors::{self, Form, Length};
use crate::view::View;
use crate::view::is_base64url;

/// Routable tokens have dots.
fn is_in_token(byte: u8) -> bool {
    is_base64url(byte) || byte == b'.'
}

const FORMS: &[Form] = &[Form { anchor: 3, prefix: b"glpat-", such: is_in_token, length: Length::AtLeast(20) }];

pub(super) fn find(view: &View<'_>) -> Look {
    vendors::find(view, FORMS)
}

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
