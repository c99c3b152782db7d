//! What is found by its form: one file for each kind of value.

use crate::anchors;
use crate::config::Pack;
use crate::digits::{Cluster, Group};
use crate::view::View;

mod aws_key;
mod card;
mod cn_id;
mod cn_mobile;
mod credentials;
mod email;
mod github_token;
mod gitlab_token;
mod google_key;
mod iban;
mod ip;
mod jwt;
mod npm_token;
mod phone;
mod private_key;
mod pypi_token;
mod slack_token;
mod stripe_key;
mod us_ssn;
mod vendors;

pub(crate) use card::may_begin as may_begin_card;
pub(crate) use email::covering as email_covering;
pub(crate) use ip::network as ip_network;

/// A kind of value.
pub(crate) struct Detector {
    /// In configuration, metrics and masks.
    pub(crate) name: &'static str,
    pub(crate) pack: Pack,
    /// Where nothing is configured.
    pub(crate) default: bool,
    /// Its anchors, of [`anchors`].
    pub(crate) anchors: u8,
    pub(crate) find: Find,
    pub(crate) normal: Normal,
}

/// How a detector looks.
#[derive(Clone, Copy)]
pub(crate) enum Find {
    /// At an anchor whose first byte is one of these; any if there are none.
    Anchor(&'static [u8], fn(&View<'_>) -> Look),
    /// At an anchor, for tokens that begin with their issuer's mark.
    Token(&'static [vendors::Form]),
    /// At the beginning of a group of digits.
    Digits(fn(&View<'_>, &Cluster, Group) -> Option<Found>),
}

impl Find {
    /// With what the anchors begin at which something may be: a set in which a byte is its lowest bits.
    pub(crate) fn heads(&self) -> u64 {
        let set = |bytes: &mut dyn Iterator<Item = u8>| bytes.fold(0, |set, byte| set | head(byte));
        match self {
            Self::Anchor([], _) | Self::Digits(_) => u64::MAX,
            Self::Anchor(heads, _) => set(&mut heads.iter().copied()),
            Self::Token(forms) => set(&mut forms.iter().flat_map(vendors::Form::heads)),
        }
    }

    /// Looks at the anchor of the view.
    pub(crate) fn at_anchor(&self, view: &View<'_>) -> Look {
        match self {
            Self::Anchor(_, find) => find(view),
            Self::Token(forms) => vendors::find(view, forms),
            Self::Digits(_) => Look::Nothing,
        }
    }
}

/// A set of one, as in [`Find::heads`].
pub(crate) fn head(byte: u8) -> u64 {
    1 << (byte & 63)
}

/// What of a value is its own, whichever way it was written: the same value gives the same token.
#[derive(Clone, Copy)]
pub(crate) enum Normal {
    /// All of it.
    Exact,
    /// Letters, in either case, and digits.
    Alphanumeric,
    /// Letters in either case.
    Lower,
}

/// What a detector says.
pub(crate) enum Look {
    /// Nothing here.
    Nothing,
    /// Nothing at this anchor nor at any of its kind before this position.
    Until(usize),
    /// A value.
    Found(Found),
}

impl From<Option<Found>> for Look {
    fn from(found: Option<Found>) -> Self {
        found.map_or(Self::Nothing, Self::Found)
    }
}

/// A value that was found.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// What more belongs to it.
    pub(crate) tail: Tail,
}

impl Found {
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start, end, tail: Tail::None }
    }
}

/// How a value goes on that may be longer than the window.
#[derive(Clone, Copy)]
pub(crate) enum Tail {
    /// It does not.
    None,
    /// As long as there are bytes of a token: letters, digits and `-._~+/=`.
    Token,
    /// To the end of a private key.
    Pem(private_key::End),
}

/// Whether a byte belongs to the value.
enum Step {
    /// It does.
    In,
    /// It does, as the last.
    Last,
    /// It does not.
    Out,
}

impl Tail {
    /// How much of a text belongs to the value, and whether it ended.
    pub(crate) fn of(&mut self, text: &[u8]) -> (usize, bool) {
        for (at, byte) in text.iter().enumerate() {
            match self.step(*byte) {
                Step::In => {}
                Step::Last => return (at.saturating_add(1), true),
                Step::Out => return (at, true),
            }
        }
        (text.len(), matches!(self, Self::None))
    }

    fn step(&mut self, byte: u8) -> Step {
        match self {
            Self::None => Step::Out,
            Self::Token => {
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=') {
                    Step::In
                } else {
                    Step::Out
                }
            }
            Self::Pem(end) => end.step(byte),
        }
    }
}

/// All of them; the first wins where two find the same bytes.
pub(crate) const ALL: &[Detector] = &[
    Detector {
        name: "jwt",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::UPPER,
        find: Find::Anchor(b"e", jwt::find),
        normal: Normal::Exact,
    },
    Detector {
        name: "credentials",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::SCHEME,
        find: Find::Anchor(&[], credentials::find),
        normal: Normal::Exact,
    },
    Detector {
        name: "private_key",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::UPPER,
        find: Find::Anchor(b"B", private_key::find),
        normal: Normal::Exact,
    },
    Detector {
        name: "aws_key",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::UPPER | anchors::DASH,
        find: Find::Anchor(b"Ap", aws_key::find),
        normal: Normal::Exact,
    },
    Detector {
        name: "github_token",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::UNDERSCORE,
        find: Find::Token(github_token::FORMS),
        normal: Normal::Exact,
    },
    Detector {
        name: "gitlab_token",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::DASH | anchors::COUNTRY,
        find: Find::Token(gitlab_token::FORMS),
        normal: Normal::Exact,
    },
    Detector {
        name: "google_key",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::UPPER | anchors::DASH,
        find: Find::Token(google_key::FORMS),
        normal: Normal::Exact,
    },
    Detector {
        name: "npm_token",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::UNDERSCORE,
        find: Find::Token(npm_token::FORMS),
        normal: Normal::Exact,
    },
    Detector {
        name: "pypi_token",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::DASH,
        find: Find::Token(pypi_token::FORMS),
        normal: Normal::Exact,
    },
    Detector {
        name: "slack_token",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::DASH,
        find: Find::Token(slack_token::FORMS),
        normal: Normal::Exact,
    },
    Detector {
        name: "stripe_key",
        pack: Pack::Secrets,
        default: true,
        anchors: anchors::UNDERSCORE,
        find: Find::Token(stripe_key::FORMS),
        normal: Normal::Exact,
    },
    Detector {
        name: "cn_id",
        pack: Pack::PiiCn,
        default: true,
        anchors: anchors::DIGITS,
        find: Find::Digits(cn_id::find),
        normal: Normal::Alphanumeric,
    },
    Detector {
        name: "card",
        pack: Pack::Financial,
        default: true,
        anchors: anchors::DIGITS,
        find: Find::Digits(card::find),
        normal: Normal::Alphanumeric,
    },
    Detector {
        name: "iban",
        pack: Pack::Financial,
        default: true,
        anchors: anchors::COUNTRY,
        find: Find::Anchor(&[], iban::find),
        normal: Normal::Alphanumeric,
    },
    Detector {
        name: "us_ssn",
        pack: Pack::Pii,
        default: true,
        anchors: anchors::DIGITS,
        find: Find::Digits(us_ssn::find),
        normal: Normal::Alphanumeric,
    },
    Detector {
        name: "cn_mobile",
        pack: Pack::PiiCn,
        default: false,
        anchors: anchors::DIGITS,
        find: Find::Digits(cn_mobile::find),
        normal: Normal::Alphanumeric,
    },
    Detector {
        name: "phone",
        pack: Pack::Pii,
        default: true,
        anchors: anchors::DIGITS,
        find: Find::Digits(phone::find),
        normal: Normal::Alphanumeric,
    },
    Detector {
        name: "email",
        pack: Pack::Pii,
        default: true,
        anchors: anchors::AT,
        find: Find::Anchor(&[], email::find),
        normal: Normal::Lower,
    },
    Detector {
        name: "ip",
        pack: Pack::Pii,
        default: false,
        anchors: anchors::ADDRESS,
        find: Find::Anchor(&[], ip::find),
        normal: Normal::Lower,
    },
];

/// Every detector: its name, its pack, and whether it looks where nothing is configured.
pub fn detectors() -> impl Iterator<Item = (&'static str, Pack, bool)> {
    ALL.iter().map(|detector| (detector.name, detector.pack, detector.default))
}

impl Found {
    /// Whether it comes before another: further left, or as far and longer.
    pub(crate) fn before(&self, other: &Self) -> bool {
        (self.start, other.end) < (other.start, self.end)
    }
}
