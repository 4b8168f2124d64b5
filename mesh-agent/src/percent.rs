//! Percent-encoding (RFC 3986, section 2.1) of all but unreserved characters: right in queries and in values of `baggage` alike.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// `text` with everything but letters, digits, `-`, `.`, `_` and `~` as `%XX`.
pub(crate) fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreserved_characters_stay_and_all_others_are_bytes() {
        assert_eq!(encoded("a-Z0._~").to_string(), "a-Z0._~");
        assert_eq!(
            encoded("a b,c=d&e%\u{e9}/").to_string(),
            "a%20b%2Cc%3Dd%26e%25%C3%A9%2F"
        );
    }
}
