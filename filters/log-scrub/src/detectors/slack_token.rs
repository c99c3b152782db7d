//! Slack's tokens: prefixes as in Slack's documentation of token types; and its webhooks, whose path is their secret.

use super::vendors::{self, Form, Length};

const fn form(anchor: usize, prefixes: &'static [&'static [u8]], least: usize, fits: fn(&[u8]) -> bool) -> Form {
    Form { anchor, prefixes, such: vendors::is_alphanumeric_or_dash, length: Length::AtLeast(least), fits }
}

pub(super) const FORMS: &[Form] = &[
    form(7, &[b"xoxe.xoxp-", b"xoxe.xoxb-"], 20, has_numbers),
    form(2, &[b"xoxb-", b"xoxp-", b"xoxs-", b"xoxo-", b"xoxe-", b"xapp-"], 18, has_numbers),
    form(2, &[b"xoxa-", b"xoxr-"], 10, vendors::any),
    Form {
        anchor: 3,
        prefixes: &[b"hooks.slack.com/services/", b"hooks.slack.com/workflows/", b"hooks.slack.com/triggers/"],
        such: is_in_path,
        length: Length::AtLeast(20),
        fits: vendors::any,
    },
];

/// The number of the workspace comes first, or that of a version, and the whole has eight digits at least.
fn has_numbers(text: &[u8]) -> bool {
    text.first().is_some_and(u8::is_ascii_digit) && text.iter().filter(|byte| byte.is_ascii_digit()).count() >= 8
}

fn is_in_path(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'/'
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
                (&format!("xoxe.xoxp-1-{}", "aB3d".repeat(40)), "[slack_token]"),
                (&format!("xoxo-123456-234567-345678-{}", "ab3d".repeat(6)), "[slack_token]"),
                (
                    &format!("https://hooks.slack.com/services/T012AB/B012AB/{}\"", "aB3d".repeat(6)),
                    "https://[slack_token]\"",
                ),
                (&format!("hooks.slack.com/workflows/T012AB/A012AB/123456/{}", "aB3d".repeat(6)), "[slack_token]"),
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
                "xoxb-12345-abcd234",
                "xoxb-the-token-of-my-bot-in-here",
                "xoxe.xoxp-1-YourConfigurationTokenHere",
                &format!("xoxp-{}", "X".repeat(60)),
                "https://hooks.slack.com/services/",
                "books. socks. hooks.",
                "xoxz-1234567890-abcdef",
                &format!("fxoxb-{}", "aB3d".repeat(6)),
                &"xoxb-.".repeat(500),
            ],
        );
    }
}
