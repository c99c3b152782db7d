//! PyPI's API tokens: `pypi-` and a macaroon in base64url, whose beginning says the site.

use super::vendors::{self, Form, Length};
use crate::view::is_base64url;

pub(super) const FORMS: &[Form] = &[Form {
    anchor: 2,
    prefixes: &[b"pypi-AgEIcHlwaS5vcmc"],
    such: is_base64url,
    length: Length::AtLeast(50),
    fits: vendors::any,
}];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found(
            "pypi_token",
            &[
                (&format!("pypi-AgEIcHlwaS5vcmc{}", "aB-_3".repeat(30)), "[pypi_token]"),
                (&format!("pypi-AgEIcHlwaS5vcmc{} x", "aB-_3".repeat(400)), "[pypi_token] x"),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "pypi_token",
            &["pypi-", "pypi-server", &format!("pypi-{}", "aB-_3".repeat(30)), "pypi-AgEIcHlwaS5vcmcA"],
        );
    }
}
