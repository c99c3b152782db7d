//! Points in time as people write them: RFC 3339.

/// Nanoseconds since 1970 of a time such as `2026-01-01T00:00:00Z` or `2026-06-01 08:30:00.5+02:00`; `None` for anything
/// else, and for what is before 1970 or after 2500. Digits beyond the nanosecond are dropped, and a leap second is the
/// second after it. A page of its own, because a library for time is larger than the rest of a module.
pub fn read(text: &str) -> Option<u64> {
    let (year, rest) = digits(text.as_bytes(), 4)?;
    let (month, rest) = digits(sign(rest, b"-")?, 2)?;
    let (day, rest) = digits(sign(rest, b"-")?, 2)?;
    let (hour, rest) = digits(sign(rest, b"Tt ")?, 2)?;
    let (minute, rest) = digits(sign(rest, b":")?, 2)?;
    let (second, mut rest) = digits(sign(rest, b":")?, 2)?;
    let leap = (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    let days = match month {
        2 => 28_u64.saturating_add(leap.into()),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1970..=2500).contains(&year) || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let mut ns = 0_u64;
    if let Some(fraction) = sign(rest, b".") {
        let mut unit = 100_000_000_u64;
        rest = fraction;
        while let Some((digit, after)) = digits(rest, 1) {
            ns = ns.saturating_add(unit.saturating_mul(digit));
            unit /= 10;
            rest = after;
        }
        if rest.len() == fraction.len() {
            return None;
        }
    }
    let seconds = day_of_epoch(year, month, day)?
        .checked_mul(86_400)?
        .checked_add(hour.checked_mul(3600)?)?
        .checked_add(minute.checked_mul(60)?)?
        .checked_add(second)?;
    let seconds = if let Some(end) = sign(rest, b"Zz") {
        end.is_empty().then_some(seconds)?
    } else {
        let (hours, after) = digits(sign(rest, b"+-")?, 2)?;
        let (minutes, after) = digits(sign(after, b":")?, 2)?;
        if hours > 23 || minutes > 59 || !after.is_empty() {
            return None;
        }
        let offset = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
        // East of Greenwich the clock is ahead.
        if rest.first() == Some(&b'+') { seconds.checked_sub(offset)? } else { seconds.checked_add(offset)? }
    };
    seconds.checked_mul(1_000_000_000)?.checked_add(ns)
}

/// A number of so many digits, and what follows it.
#[inline(never)]
fn digits(text: &[u8], count: usize) -> Option<(u64, &[u8])> {
    let (number, rest) = text.split_at_checked(count)?;
    let mut value = 0_u64;
    for digit in number {
        value = value.checked_mul(10)?.checked_add(u64::from(char::from(*digit).to_digit(10)?))?;
    }
    Some((value, rest))
}

/// What follows one of these signs.
#[inline(never)]
fn sign<'a>(text: &'a [u8], signs: &[u8]) -> Option<&'a [u8]> {
    let (first, rest) = text.split_first()?;
    signs.contains(first).then_some(rest)
}

/// Days since 1970-01-01, by years that begin in March: a leap day is then the last of its year.
fn day_of_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) =
        if month > 2 { (year, month.checked_sub(3)?) } else { (year.checked_sub(1)?, month.checked_add(9)?) };
    // Months of 30.6 days.
    let of_year = month.checked_mul(153)?.checked_add(2)? / 5;
    year.checked_mul(365)?
        .checked_add(year / 4)?
        .checked_sub(year / 100)?
        .checked_add(year / 400)?
        .checked_add(of_year)?
        .checked_add(day)?
        // What the same gives for the last day of 1969.
        .checked_sub(719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        // From `date -u -d … +%s%N`.
        for (text, ns) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-28T23:59:59Z", 951_782_399_000_000_000),
            ("2000-02-29T00:00:00Z", 951_782_400_000_000_000),
            ("2000-03-01T00:00:00Z", 951_868_800_000_000_000),
            ("2023-12-31t23:59:59z", 1_704_067_199_000_000_000),
            ("2024-02-29 00:00:00Z", 1_709_164_800_000_000_000),
            ("2100-03-01T00:00:00Z", 4_107_542_400_000_000_000),
            ("2026-11-23T07:16:53.25Z", 1_795_418_213_250_000_000),
            ("2026-11-23T07:16:53.1234567899Z", 1_795_418_213_123_456_789),
            ("2026-11-23T09:16:53+02:00", 1_795_418_213_000_000_000),
            ("2026-11-23T01:46:53-05:30", 1_795_418_213_000_000_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000_000_000),
            ("1970-01-01T01:00:00+01:00", 0),
        ] {
            assert_eq!(read(text), Some(ns), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "now",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00Z",
            "2026-1-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00ZZ",
            "2026-01-01T00:00:00+0200",
            "2026-01-01T00:00:00+24:00",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+00:01",
            "2501-01-01T00:00:00Z",
            "+026-01-01T00:00:00Z",
            "２026-01-01T00:00:00Z",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut last = None;
        for year in 1970..=2500_u64 {
            for month in 1..=12_u64 {
                for day in 1..=31_u64 {
                    let Some(ns) = read(&std::format!("{year}-{month:02}-{day:02}T00:00:00Z")) else { continue };
                    assert_eq!(ns, last.map_or(0, |last: u64| last + 86_400_000_000_000), "{year}-{month}-{day}");
                    last = Some(ns);
                }
            }
        }
    }
}
