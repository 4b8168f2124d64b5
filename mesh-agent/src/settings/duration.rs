//! Durations as Istio and Kubernetes write them: `24h`, `1h30m`, `10s`, `1.5s`, `250ms`.

use std::time::Duration;

/// Nanoseconds of a unit.
const UNITS: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// The longest that Go's `time.Duration` holds.
const LONGEST: Duration = Duration::from_nanos(i64::MAX as u64);

/// Reads a duration (Go's `time.ParseDuration` without signs; `d` for 24 hours besides).
///
/// # Errors
/// With a sentence that says what was expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("{text:?} is no duration: expected numbers with units, such as 24h, 1h30m, 10s or 250ms");
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at_checked(digits).ok_or_else(wrong)?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at_checked(end).ok_or_else(wrong)?;
        let nanos = if unit == "d" {
            24 * 3_600_000_000_000
        } else {
            UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, nanos)| *nanos)
                .ok_or_else(wrong)?
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * (nanos as f64) / 1e9).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = next;
    }
    if total > LONGEST {
        return Err(format!(
            "{text:?} is too long a duration: expected 292 years at most"
        ));
    }
    Ok(total)
}

/// As [`parse_duration`] reads it, in the largest units that fit.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let mut shown = String::new();
    for (name, nanos) in UNITS {
        let count = rest / nanos;
        if count > 0 {
            shown.push_str(&format!("{count}{name}"));
        }
        rest %= nanos;
    }
    if shown.is_empty() { "0".to_owned() } else { shown }
}

/// For serde: a duration as text, absent when the key is.
pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text: Option<String> = serde::Deserialize::deserialize(from)?;
    text.map(|text| parse_duration(&text).map_err(serde::de::Error::custom))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_beyond_292_years_is_refused() {
        assert!(parse_duration("600000000000000006s").is_err());
        assert!(parse_duration("2562047h").is_ok());
    }
}
