//! Stripe's secret and restricted keys: prefixes as in Stripe's documentation of API keys. Publishable ones are public.

use super::vendors::{self, Form, Length};

pub(super) const FORMS: &[Form] = &[Form {
    anchor: 0,
    prefixes: &[b"sk_live_", b"sk_test_", b"sk_prod_", b"rk_live_", b"rk_test_", b"rk_prod_"],
    such: vendors::is_alphanumeric,
    length: Length::AtLeast(16),
    fits: vendors::any,
}];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found(
            "stripe_key",
            &[
                (&format!("sk_live_{}", "a1B2".repeat(6)), "[stripe_key]"),
                (&format!("sk_prod_{}", "a1B2".repeat(6)), "[stripe_key]"),
                (&format!("\"rk_test_{}\"", "a1B2".repeat(25)), "\"[stripe_key]\""),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "stripe_key",
            &[
                "sk_live_",
                "sk_live_abc",
                &format!("pk_live_{}", "a1B2".repeat(6)),
                &format!("desk_live_{}", "a1B2".repeat(6)),
            ],
        );
    }
}
