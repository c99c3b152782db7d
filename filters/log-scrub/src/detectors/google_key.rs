//! Google's API keys: `AIza` and 35 signs of base64url. What goes on
//! after them may be a dash and the next word, so more are taken for a key too.

use super::vendors::{Form, Length};
use crate::view::is_base64url;

pub(super) const FORMS: &[Form] =
    &[Form { anchor: 0, prefixes: &[b"AIza"], such: is_base64url, length: Length::AtLeast(35) }];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found("google_key", &[(&format!("key=AIza{}&", "Sy-_x".repeat(7)), "key=[google_key]&")]);
    }

    #[test]
    fn no_tokens() {
        untouched(
            "google_key",
            &["AIza", &format!("AIza{}", "Sy-_x".repeat(6)), &format!("xAIza{}", "Sy-_x".repeat(7))],
        );
    }
}
