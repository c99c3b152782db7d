//! Slack's tokens: prefixes as in Slack's documentation of token types.

use super::Look;
use super::vendors::{self, Form, Length};
use crate::view::View;

const FORMS: &[Form] = &[
    Form { anchor: 2, prefix: b"xoxb-", such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(10) },
    Form { anchor: 2, prefix: b"xoxp-", such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(10) },
    Form { anchor: 2, prefix: b"xoxa-", such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(10) },
    Form { anchor: 2, prefix: b"xoxr-", such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(10) },
    Form { anchor: 2, prefix: b"xoxs-", such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(10) },
    Form { anchor: 2, prefix: b"xoxe-", such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(10) },
    Form { anchor: 2, prefix: b"xapp-", such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(10) },
];

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
