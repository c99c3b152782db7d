//! npm's access tokens: `npm_` and 36 letters and digits, as npm's announcement of the format has it.

use super::vendors::{self, Form, Length};

pub(super) const FORMS: &[Form] = &[Form {
    anchor: 1,
    prefixes: &[b"npm_"],
    such: vendors::is_alphanumeric,
    length: Length::Exactly(36),
    fits: vendors::any,
}];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found(
            "npm_token",
            &[(
                &format!("//registry.example/:_authToken=npm_{}", "a1B2".repeat(9)),
                "//registry.example/:_authToken=[npm_token]",
            )],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "npm_token",
            &[
                "npm_",
                "npm_config_registry",
                &format!("npm_{}", "a1B2".repeat(8)),
                &format!("npm_{}", "a1B2".repeat(10)),
            ],
        );
    }
}
