//! circuit-breaker without a proxy: what rules would have done on a recorded access log.
//!
//! [`log`](mod@log) reads lines, by [`template`] where they are text, and [`ending`] says what the end of a request says of
//! its upstream. [`replay`] lets the requests begin and end in virtual time before the filter's own breakers, [`timeline`]
//! keeps what is drawn, [`report`] says what came of it, and [`picture`] draws it.

pub mod ending;
pub mod log;
pub mod picture;
pub mod replay;
pub mod report;
pub mod template;
pub mod timeline;

/// A whole number as one with a fraction, for ratios and pictures: exact up to 2^53.
pub(crate) fn real(number: u64) -> f64 {
    let low = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let high = u32::try_from(number >> 32).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}
