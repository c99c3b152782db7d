//! GitLab's tokens: prefixes and lengths as in GitLab's documentation of token prefixes.

use super::vendors::{self, Form, Length};

const fn form(anchor: usize, prefixes: &'static [&'static [u8]], least: usize) -> Form {
    // Routable tokens have dots.
    let such = vendors::is_base64url_or_dot;
    Form { anchor, prefixes, such, length: Length::AtLeast(least), fits: vendors::any }
}

pub(super) const FORMS: &[Form] = &[
    form(2, &[b"gldt-", b"glft-", b"glrt-", b"glwt-"], 20),
    form(3, &[b"glpat-", b"glcbt-", b"glimt-", b"gloas-", b"glptt-"], 20),
    form(4, &[b"glffct-", b"glsoat-"], 20),
    form(5, &[b"glagent-"], 20),
    // Of runners, before 2023.
    Form {
        anchor: 0,
        prefixes: &[b"GR1348941"],
        such: crate::view::is_base64url,
        length: Length::AtLeast(20),
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
            "gitlab_token",
            &[
                (&format!("glpat-{}", "aB-_3".repeat(4)), "[gitlab_token]"),
                (&format!("gldt-{0} glrt-t1_{0}", "aB-_3".repeat(4)), "[gitlab_token] [gitlab_token]"),
                (&format!("glcbt-64_{0},gloas-{0}{0}", "aB-_3".repeat(4)), "[gitlab_token],[gitlab_token]"),
                (&format!("glsoat-{0} glffct-{0}", "aB-_3".repeat(4)), "[gitlab_token] [gitlab_token]"),
                (&format!("glagent-{0}{0} GR1348941{0}", "aB-_3".repeat(4)), "[gitlab_token] [gitlab_token]"),
                (&format!("GITLAB_glpat-{}", "aB-_3".repeat(4)), "GITLAB_[gitlab_token]"),
                (&format!("glpat-{}.01.abcdefghi", "aB3_x".repeat(6)), "[gitlab_token]"),
            ],
        );
    }

    #[test]
    fn no_tokens() {
        untouched(
            "gitlab_token",
            &[
                "glpat-",
                "glpat-short",
                &format!("xglpat-{}", "aB-_3".repeat(4)),
                &format!("glpat-{}", "X".repeat(20)),
                "GR1348941",
                "glxt-aB-_3aB-_3aB-_3aB-_3",
            ],
        );
    }
}
