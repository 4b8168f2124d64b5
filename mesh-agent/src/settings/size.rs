//! Sizes in bytes as Kubernetes writes quantities: `67108864`, `64Mi`, `512Ki`.

const UNITS: [(&str, usize); 3] = [("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];

/// Reads a size in bytes.
///
/// # Errors
/// With a sentence that says what was expected.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is no size: expected bytes, or such as 64Ki, 4Mi or 1Gi");
    let text = text.trim();
    let unit = UNITS.iter().find(|(name, _)| text.ends_with(name));
    let (digits, unit) = match unit {
        Some((name, unit)) => (text.strip_suffix(name).unwrap_or(text), *unit),
        None => (text, 1),
    };
    let number: usize = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// As [`parse_size`] reads it, in the largest unit that divides it.
pub fn show_size(bytes: usize) -> String {
    let fits = |(_, unit): &&(&str, usize)| bytes > 0 && bytes.is_multiple_of(*unit);
    match UNITS.iter().rev().find(fits) {
        Some((name, unit)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// For serde: a size as text or number, absent when the key is.
pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<usize>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(usize),
        Text(String),
    }
    match serde::Deserialize::deserialize(from)? {
        None => Ok(None),
        Some(Written::Number(bytes)) => Ok(Some(bytes)),
        Some(Written::Text(text)) => parse_size(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_kubernetes_writes_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("64Ki", 65_536),
            (" 4Mi ", 4 << 20),
            ("1Gi", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "Mi",
            "-1",
            "1.5Mi",
            "4M",
            "99999999999999999999",
            "18446744073709551615Ki",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
