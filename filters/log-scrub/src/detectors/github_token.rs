//! GitHub's tokens: prefixes and lengths as GitHub's documentation and its announcement of token formats have them.

use super::vendors::{self, Form, Length};

pub(super) const FORMS: &[Form] = &[
    Form {
        anchor: 1,
        prefixes: &[b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_"],
        such: vendors::is_alphanumeric,
        length: Length::AtLeast(36),
        fits: vendors::any,
    },
    Form {
        anchor: 8,
        prefixes: &[b"github_pat_"],
        such: vendors::is_alphanumeric_or_underscore,
        length: Length::AtLeast(36),
        fits: vendors::any,
    },
];

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn tokens() {
        found(
            "github_token",
            &[
                (&format!("ghp_{}", "a1B2".repeat(9)), "[github_token]"),
                (&format!("t=gho_{}&", "a1B2".repeat(9)), "t=[github_token]&"),
                (&format!("\"ghs_{}\"", "a1B2".repeat(60)), "\"[github_token]\""),
                (&format!("github_pat_11{}_{}", "A1b2".repeat(5), "a1B2".repeat(15)), "[github_token]"),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "github_token",
            &[
                "ghp_",
                "ghp_abc",
                &format!("ghp_{}", "x".repeat(36)),
                &format!("github_pat_{}_{}", "x".repeat(22), "x".repeat(59)),
                &format!("ghx_{}", "a1B2".repeat(9)),
                &format!("xghp_{}", "a1B2".repeat(9)),
                "github_pat_short",
                "high_performance_graph_with_names_of_some_length",
            ],
        );
    }
}
