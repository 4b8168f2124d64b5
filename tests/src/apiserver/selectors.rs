//! Field and label selectors.

use serde_json::Value;

use super::store::Refusal;

/// One requirement of a label selector.
#[derive(Debug)]
enum Requirement {
    Is(String, Vec<String>),
    IsNot(String, Vec<String>),
    Exists(String),
    Absent(String),
}

/// What a request selects.
#[derive(Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    /// Pointer, value, and whether it is to be that.
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    pub(super) fn parse(labels: &str, fields: &str) -> Result<Self, Refusal> {
        let bad = |message: String| Refusal::new(400, "BadRequest", message);
        let mut selector = Self::default();
        for term in terms(labels) {
            let requirement =
                requirement(&term).ok_or_else(|| bad(format!("unable to parse requirement: {term}")))?;
            selector.labels.push(requirement);
        }
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (name, value, wanted) = match term.split_once("!=") {
                Some((name, value)) => (name, value, false),
                None => {
                    let (name, value) = term
                        .split_once('=')
                        .ok_or_else(|| bad(format!("invalid field selector: {term}")))?;
                    (name, value.trim_start_matches('='), true)
                }
            };
            if ![
                "metadata.name",
                "metadata.namespace",
                "spec.nodeName",
                "status.phase",
            ]
            .contains(&name)
            {
                return Err(bad(format!("field label not supported: {name}")));
            }
            let pointer = format!("/{}", name.replace('.', "/"));
            selector.fields.push((pointer, value.to_owned(), wanted));
        }
        Ok(selector)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        let holds = |requirement: &Requirement| match requirement {
            Requirement::Is(key, values) => label(key).is_some_and(|value| values.iter().any(|v| v == value)),
            Requirement::IsNot(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|v| v != value))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        };
        let field = |(pointer, value, wanted): &(String, String, bool)| {
            let there = object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default();
            (there == value) == *wanted
        };
        self.labels.iter().all(holds) && self.fields.iter().all(field)
    }
}

/// The terms between commas that are not within parentheses.
fn terms(text: &str) -> Vec<String> {
    let (mut found, mut depth) = (vec![String::new()], 0);
    for c in text.chars() {
        match c {
            ',' if depth == 0 => {
                found.push(String::new());
                continue;
            }
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if let Some(last) = found.last_mut() {
            last.push(c);
        }
    }
    found.retain(|term| !term.trim().is_empty());
    found
}

fn requirement(term: &str) -> Option<Requirement> {
    let term = term.trim();
    let set = |text: &str| -> Option<Vec<String>> {
        let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    if let Some((key, values)) = term.split_once(" notin ") {
        return Some(Requirement::IsNot(key.trim().to_owned(), set(values)?));
    }
    if let Some((key, values)) = term.split_once(" in ") {
        return Some(Requirement::Is(key.trim().to_owned(), set(values)?));
    }
    if let Some((key, value)) = term.split_once("!=") {
        return Some(Requirement::IsNot(key.to_owned(), vec![value.to_owned()]));
    }
    if let Some((key, value)) = term.split_once('=') {
        return Some(Requirement::Is(
            key.to_owned(),
            vec![value.trim_start_matches('=').to_owned()],
        ));
    }
    match term.strip_prefix('!') {
        Some(key) => Some(Requirement::Absent(key.to_owned())),
        None => Some(Requirement::Exists(term.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_mean_what_they_mean_in_kubernetes() {
        let pod = json!({"metadata": {"name": "a", "labels": {"app": "web", "tier": "x"}}, "spec": {"nodeName": "n1"}});
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web,tier!=y", "spec.nodeName=n1", true),
            ("app in (api, web),!old", "spec.nodeName!=n2", true),
            ("app notin (web)", "", false),
            ("tier", "metadata.name==a", true),
            ("old", "", false),
            ("", "spec.nodeName=n2", false),
        ] {
            let selector = Selector::parse(labels, fields).unwrap();
            assert_eq!(selector.matches(&pod), expected, "{labels} {fields}");
        }
        assert_eq!(Selector::parse("", "spec.image=a").unwrap_err().code, 400);
    }
}
