//! Slack's tokens: prefixes as in Slack's documentation of token types.

use super::vendors::{self, Form, Length};

pub(super) const FORMS: &[Form] = &[Form {
    anchor: 2,
    prefixes: &[b"xoxb-", b"xoxp-", b"xoxa-", b"xoxr-", b"xoxs-", b"xoxe-", b"xapp-"],
    such: vendors::is_alphanumeric_or_dash,
    length: Length::AtLeast(10),
}];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found(
            "slack_token",
            &[
                (&format!("xoxb-1234567890-{}", "aB3d".repeat(6)), "[slack_token]"),
                (&format!("\"xoxp-123-456-{}\"", "aB3d".repeat(6)), "\"[slack_token]\""),
                (&format!("xapp-1-A012-{}.", "aB3d".repeat(6)), "[slack_token]."),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "slack_token",
            &[
                "xoxb-",
                "xoxb-1",
                "xoxz-1234567890-abcdef",
                &format!("fxoxb-{}", "aB3d".repeat(6)),
                &"xoxb-.".repeat(500),
            ],
        );
    }
}
