//! Google's API keys: `AIza` and 35 signs of base64url; and of its OAuth 2.0, access tokens, `ya29.`, and clients' secrets,
//! `GOCSPX-` and 28. What goes on after them may be a dash and the next word, so more are taken for one too.

use super::vendors::{self, Form, Length};
use crate::view::is_base64url;

pub(super) const FORMS: &[Form] = &[
    Form { anchor: 0, prefixes: &[b"AIza"], such: is_base64url, length: Length::AtLeast(35), fits: vendors::any },
    Form {
        anchor: 2,
        prefixes: &[b"ya29."],
        such: vendors::is_base64url_or_dot,
        length: Length::AtLeast(30),
        fits: vendors::any,
    },
    Form { anchor: 4, prefixes: &[b"GOCSPX-"], such: is_base64url, length: Length::AtLeast(28), fits: vendors::any },
];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found(
            "google_key",
            &[
                (&format!("key=AIza{}&", "Sy-_x".repeat(7)), "key=[google_key]&"),
                (&format!("ya29.a0{}.", "Sy-_x".repeat(30)), "[google_key]"),
                (&format!("secret: GOCSPX-{}", "S1-_xyz".repeat(4)), "secret: [google_key]"),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "google_key",
            &[
                "AIza",
                &format!("AIza{}", "Sy-_x".repeat(6)),
                &format!("xAIza{}", "Sy-_x".repeat(7)),
                &format!("AIza{}", "a".repeat(35)),
                "29.99 ya29.x GOCSPX-x",
            ],
        );
    }
}
