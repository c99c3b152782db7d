//! What is recorded of the traces that begin here: OpenTelemetry's root samplers, and "TraceState: Probability Sampling".
//!
//! A ratio p becomes a threshold T of 56 bits, (1 − p) · 2^56. A trace is kept if the low 7 bytes of its id, which are random
//! (W3C Level 2), are T or more: so every hop decides alike, and a trace kept at p is kept at all larger p. What T was goes along as
//! `tracestate: ot=th:{hex of T without its trailing zeros}`.

use crate::context::TraceId;
use crate::hex;
use kit::prelude::*;

/// Hex digits of T that are significant; "SDKs are recommended to use 4 digits of precision by default".
const PRECISION: u32 = 4;
/// Hex digits of 56 bits.
const DIGITS: u32 = 14;
/// Of an `f64`: bits of the fraction, the exponent of 1.0, and that of the smallest ratio, 2^-56.
const FRACTION_BITS: u32 = 52;
const EXPONENT_OF_ONE: u64 = 1023;
const SMALLEST_EXPONENT: u64 = 967;

/// How a trace without a decision is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Record all.
    AlwaysOn,
    /// Record none.
    AlwaysOff,
    /// Record a share of them.
    Ratio(Threshold),
}

impl Root {
    /// Whether the trace is to be recorded.
    pub fn decide(&self, trace_id: &TraceId) -> bool {
        match self {
            Self::AlwaysOn => true,
            Self::AlwaysOff => false,
            Self::Ratio(threshold) => randomness(trace_id) >= threshold.rejected,
        }
    }

    /// The value of the `ot` member for a trace that was kept: `th:fd70a`. Only a ratio writes one: with everything kept there is
    /// nothing to weigh, and a header less to write. For one that was not kept nothing is written either: a threshold says how many
    /// traces a recorded one stands for.
    pub fn ot(&self) -> Option<&str> {
        match self {
            Self::AlwaysOn | Self::AlwaysOff => None,
            Self::Ratio(threshold) => Some(&threshold.ot),
        }
    }
}

/// The rejection threshold: of 2^56 traces, how many are not recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Threshold {
    rejected: u64,
    ot: String,
}

impl Threshold {
    /// From a ratio; `None` if it is not in 2^-56 ..= 1, which is all that the specification defines.
    ///
    /// Rounded to 4 digits, not counting the leading `f`s that small ratios have. Exact to all 56 bits, where the specification's
    /// sample code prints a float and stops at 12 digits: below 2^-28 its last digit can be another.
    pub fn new(ratio: f64) -> Option<Self> {
        // The float is taken apart and shifted, because rounding it as a float needs a cast.
        let exponent = ratio.to_bits() >> FRACTION_BITS;
        if !(ratio > 0.0 && ratio <= 1.0 && exponent >= SMALLEST_EXPONENT) {
            return None;
        }
        let fraction = ratio.to_bits() & ((1 << FRACTION_BITS) - 1) | 1 << FRACTION_BITS;
        let halvings = u32::try_from(EXPONENT_OF_ONE.saturating_sub(exponent)).ok()?;

        // fraction · 2^(4 - halvings) is ratio · 2^56.
        let kept = round_off(fraction << 4, halvings);
        let leading_fs = halvings.saturating_sub(1) / 4;
        let digits = PRECISION.saturating_add(leading_fs).min(DIGITS);
        let dropped_bits = DIGITS.saturating_sub(digits).saturating_mul(4);
        let rejected = (1_u64 << 56).saturating_sub(kept);
        let rejected = round_off(rejected, dropped_bits).checked_shl(dropped_bits)?;

        let mut digits = [b'0'; 16];
        hex::encode(&rejected.to_be_bytes(), &mut digits);
        let [_, _, digits @ ..] = digits;
        let text = String::from_utf8_lossy(&digits);
        let text = match text.trim_end_matches('0') {
            "" => "0",
            text => text,
        };
        Some(Self { rejected, ot: ["th:", text].concat() })
    }
}

/// `number` without its low `bits`, rounded to the nearest.
fn round_off(number: u64, bits: u32) -> u64 {
    let half = 1_u64.checked_shl(bits).unwrap_or(0) >> 1;
    number.saturating_add(half).checked_shr(bits).unwrap_or(0)
}

/// The low 7 bytes.
fn randomness(trace_id: &TraceId) -> u64 {
    let [.., a, b, c, d, e, f, g] = trace_id.bytes();
    u64::from_be_bytes([0, a, b, c, d, e, f, g])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ratio(ratio: f64) -> Root {
        Root::Ratio(Threshold::new(ratio).unwrap())
    }

    fn id(randomness: u64) -> TraceId {
        TraceId::new((u128::from(randomness) | 1 << 127).to_be_bytes()).unwrap()
    }

    #[test]
    fn thresholds_of_the_specification() {
        // "Converting floating-point probability to threshold value", the column for precision 4.
        for (one_in, th) in [
            (1, "th:0"),
            (2, "th:8"),
            (3, "th:aaab"),
            (4, "th:c"),
            (5, "th:cccd"),
            (8, "th:e"),
            (10, "th:e666"),
            (16, "th:f"),
            (100, "th:fd70a"),
            (1_000, "th:ffbe77"),
            (10_000, "th:fff9724"),
            (100_000, "th:ffff583a"),
            (1_000_000, "th:ffffef39"),
        ] {
            assert_eq!(ratio(1.0 / f64::from(one_in)).ot(), Some(th), "1 in {one_in}");
        }
        for (share, th) in [
            (0.99, "th:028f"),
            (0.999_999_9, "th:0"),
            (0.75, "th:4"),
            (2.0_f64.powi(-32), "th:ffffffff"),
            (2.0_f64.powi(-56), "th:ffffffffffffff"),
            (1.5 * 2.0_f64.powi(-55), "th:fffffffffffffd"),
        ] {
            assert_eq!(ratio(share).ot(), Some(th), "{share}");
        }
        assert_eq!((Root::AlwaysOn.ot(), Root::AlwaysOff.ot()), (None, None));
    }

    #[test]
    fn not_a_ratio() {
        for bad in [
            0.0,
            -0.0,
            -0.5,
            1.000_000_1,
            2.0_f64.powi(-57),
            f64::MIN_POSITIVE,
            f64::NAN,
            f64::INFINITY,
            -f64::INFINITY,
        ] {
            assert_eq!(Threshold::new(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_the_low_seven_bytes_decide() {
        let half = ratio(0.5);
        for (randomness, kept) in
            [(0x80 << 48, true), ((0x80 << 48) - 1, false), (u64::MAX >> 8, true), (0xff << 56, false)]
        {
            assert_eq!(half.decide(&id(randomness)), kept, "{randomness:x}");
        }
        assert!(ratio(1.0).decide(&id(0)) && Root::AlwaysOn.decide(&id(0)));
        assert!(!Root::AlwaysOff.decide(&id(u64::MAX)));
    }

    /// splitmix64, for a seeded sequence without another crate.
    fn random(seed: u64) -> impl Iterator<Item = u64> {
        (1..).scan(seed, |state, _: u64| {
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            Some(z ^ z >> 31)
        })
    }

    #[test]
    fn share_kept_is_the_ratio() {
        const IDS: u32 = 100_000;
        for share in [0.5, 0.25, 0.1, 1.0 / 3.0, 0.9, 0.01, 0.001] {
            let root = ratio(share);
            let kept = random(7).take(100_000).filter(|r| root.decide(&id(*r))).count();
            let expected = f64::from(IDS) * share;
            let sigma = (expected * (1.0 - share)).sqrt();
            let kept = f64::from(u32::try_from(kept).unwrap());
            assert!((kept - expected).abs() < 4.0 * sigma, "{share}: {kept} of {IDS}");
        }
    }

    /// Ratios of every size down to 2^-`least`.
    fn any_ratio(least: i32) -> impl Strategy<Value = f64> {
        (0.5..=1.0_f64, 1_i32.saturating_sub(least)..=0).prop_map(|(x, exponent)| x * 2.0_f64.powi(exponent))
    }

    proptest! {
        #[test]
        fn kept_at_p_is_kept_at_every_larger_p(a in any_ratio(56), b in any_ratio(56), randomness: u64) {
            let (less, more) = (ratio(a.min(b)), ratio(a.max(b)));
            for randomness in [randomness, randomness | 0xffff_ffff << 24] {
                prop_assert!(!less.decide(&id(randomness)) || more.decide(&id(randomness)));
            }
            prop_assert!(matches!((less, more), (Root::Ratio(less), Root::Ratio(more)) if less.rejected >= more.rejected));
        }

        #[test]
        fn close_to_the_ratio(share in any_ratio(40)) {
            let rejected = Threshold::new(share).unwrap().rejected;
            // As a sum of two exact halves, because a `u64` does not become an `f64` without a cast.
            let [high, low] = [rejected >> 32, rejected & 0xffff_ffff].map(|half| f64::from(u32::try_from(half).unwrap()));
            let kept = 1.0 - high * 2.0_f64.powi(-24) - low * 2.0_f64.powi(-56);
            // Rounded twice: to whole traces of 2^56, and to 4 digits.
            prop_assert!((kept - share).abs() <= share * 2.0_f64.powi(-13) + 2.0_f64.powi(-57), "{kept}");
        }

        #[test]
        fn any_float(bits: u64) {
            if let Some(threshold) = Threshold::new(f64::from_bits(bits)) {
                prop_assert!(threshold.rejected < 1 << 56);
                prop_assert!(threshold.ot.len() <= "th:ffffffffffffff".len());
            }
        }
    }
}
