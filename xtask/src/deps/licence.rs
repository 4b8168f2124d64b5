//! SPDX licence expressions, against a list of allowed ones.

/// Whether one can choose licences from `expression` that are all in `allowed`. What cannot be read is not allowed.
pub(super) fn allowed(expression: &str, allowed: &[String]) -> bool {
    // Before SPDX, crates.io had `MIT/Apache-2.0`.
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser {
        words: &words,
        allowed,
    };
    parser.any() == Some(true) && parser.words.is_empty()
}

struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a [String],
}

impl<'a> Parser<'a> {
    fn take(&mut self, word: &str) -> bool {
        match self.words.split_first() {
            Some((first, rest)) if *first == word => {
                self.words = rest;
                true
            }
            _ => false,
        }
    }

    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    /// a OR b OR …
    fn any(&mut self) -> Option<bool> {
        let mut good = self.all()?;
        while self.take("OR") {
            good |= self.all()?;
        }
        Some(good)
    }

    /// a AND b AND …
    fn all(&mut self) -> Option<bool> {
        let mut good = self.one()?;
        while self.take("AND") {
            good &= self.one()?;
        }
        Some(good)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let good = self.any()?;
            return self.take(")").then_some(good);
        }
        let mut licence = self.next()?.to_owned();
        if matches!(licence.as_str(), ")" | "OR" | "AND" | "WITH") {
            return None;
        }
        if self.take("WITH") {
            licence = format!("{licence} WITH {}", self.next()?);
        }
        Some(self.allowed.contains(&licence))
    }
}

#[cfg(test)]
mod tests {
    use super::allowed;

    fn check(expression: &str) -> bool {
        allowed(
            expression,
            &["MIT", "Apache-2.0", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned),
        )
    }

    #[test]
    fn one_of_several_alternatives_is_enough() {
        assert!(check("GPL-3.0 OR MIT"));
        assert!(check("Unlicense/MIT"));
        assert!(!check("GPL-2.0 OR GPL-3.0"));
    }

    #[test]
    fn all_of_a_conjunction_are_needed() {
        assert!(check("MIT AND ISC"));
        assert!(!check("MIT AND GPL-3.0"));
        assert!(check("ISC AND (GPL-3.0 OR MIT)"));
        assert!(!check("MIT AND (GPL-3.0 OR LGPL-2.1)"));
        assert!(!check("ISC AND GPL-3.0 OR GPL-2.0"));
    }

    #[test]
    fn an_exception_makes_it_another_licence() {
        assert!(check("Apache-2.0 WITH LLVM-exception"));
        assert!(!check("MIT WITH LLVM-exception"));
    }

    #[test]
    fn what_cannot_be_read_is_not_allowed() {
        for odd in ["", "MIT OR", "(MIT", "MIT)", "MIT ISC", "AND", "MIT WITH"] {
            assert!(!check(odd), "{odd}");
        }
    }
}
