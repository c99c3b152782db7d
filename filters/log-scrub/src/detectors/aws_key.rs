//! AWS access key ids: as in the IAM user guide's table of unique identifiers, sixteen signs of base32 after the kind.
//! What is no key but a stand-in, such as `AKIAXXXXXXXXXXXXXXXX`, has less than three bits of entropy a sign.

use super::{Found, Look, Tail};
use crate::view::{View, is_word};

const LENGTH: usize = 20;

/// The shortest key of Bedrock's API, in base64, after its mark.
const BEDROCK: usize = 109;

/// A key of Bedrock's that is a signed request: the mark and the host in base64.
const REQUEST: &[u8] = b"bedrock-api-key-YmVkcm9jay5hbWF6b25hd3MuY29t";

/// `n log2 n`, in thousandths, of how often a sign is there.
const WEIGHTS: [u32; 13] = [0, 0, 2000, 4755, 8000, 11610, 15510, 19651, 24000, 28529, 33219, 38054, 43020];

/// The most that the weights of twenty signs sum up to at three bits each: `20 (log2 20 - 3)`.
const MOST: u32 = 26_439;

pub(super) fn find(view: &View<'_>) -> Look {
    let start = view.anchor();
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if view.starts(start, b"ABSK") {
        let end = view.skip(start, is_base64);
        let found = end.saturating_sub(start) >= BEDROCK && !view.word_before(start);
        return if found { Look::Found(Found { start, end, tail: Tail::Token }) } else { Look::Nothing };
    }
    if let Some(start) = start.checked_sub(9).filter(|start| *start >= view.first())
        && view.starts(start, REQUEST)
        && !view.word_before(start)
    {
        let end = start.saturating_add(REQUEST.len());
        return Look::Found(Found { start, end, tail: Tail::Token });
    }
    let end = start.saturating_add(LENGTH);
    let text = view.slice(start, end);
    let kind = matches!(
        text,
        [b'A', b'K' | b'S', b'I', b'A', ..]
            | [b'A', b'B', b'I', b'A', ..]
            | [b'A', b'C', b'C', b'A', ..]
            | [b'A', b'3', b'T', _, ..]
    );
    let base32 = text.iter().skip(4).all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'));
    let found = kind
        && text.len() == LENGTH
        && base32
        && text.get(3).is_some_and(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
        && !view.word_before(start)
        && !is_word(view.at(end))
        && is_varied(text);
    found.then(|| Found::new(start, end)).into()
}

fn is_varied(text: &[u8]) -> bool {
    // Each sign is weighed where it stands first.
    let weights =
        text.iter().enumerate().filter(|(place, byte)| !text.iter().take(*place).any(|earlier| earlier == *byte));
    let sum = weights.fold(0_u32, |sum, (_, byte)| {
        let times = text.iter().filter(|other| *other == byte).count();
        sum.saturating_add(WEIGHTS.get(times).copied().unwrap_or(MOST.saturating_add(1)))
    });
    sum <= MOST
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, untouched};
    use kit::prelude::*;

    #[test]
    fn keys() {
        found(
            "aws_key",
            &[
                ("AKIAIOSFODNN7EXAMPLE", "[aws_key]"),
                ("Credential=ASIAY34FZKBOKMUTVV7A/20240102", "Credential=[aws_key]/20240102"),
                ("A3TX2QWERTYUIOPASDFG", "[aws_key]"),
                (&format!("key=ABSK{}=&", "aB3+".repeat(30)), "key=[aws_key]&"),
                ("\"bedrock-api-key-YmVkcm9jay5hbWF6b25hd3MuY29tL0FjdGlvbj\"", "\"[aws_key]\""),
                ("\"ABIA2QWERTYUIOPASDFG\" ACCA2QWERTYUIOPASDFG", "\"[aws_key]\" [aws_key]"),
            ],
        );
    }

    #[test]
    fn no_keys() {
        untouched(
            "aws_key",
            &[
                "AKIAXXXXXXXXXXXXXXXX",
                "ABSKaB3",
                "bedrock-api-key-",
                "AKIAABABABABABABABAB",
                "AKIAIOSFODNN7EXAMPL",
                "AKIAIOSFODNN7EXAMPLEX",
                "xAKIAIOSFODNN7EXAMPLE",
                "AKIAIOSFODNN8EXAMPLE",
                "akiaiosfodnn7example",
                "AGPAIOSFODNN7EXAMPLE",
            ],
        );
    }
}
