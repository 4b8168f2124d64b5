//! A page of a list, read element by element: each is given away before the next is made.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// What a list says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    /// The version of the whole list.
    pub(super) resource_version: String,
    /// Leads to the next page; empty on the last.
    #[serde(rename = "continue")]
    pub(super) next: String,
}

/// Reads a page and gives its elements to `each`.
pub(super) fn read(bytes: &[u8], each: impl FnMut(Value)) -> Result<ListMeta, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let meta = Page(each).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(meta)
}

struct Page<F>(F);

impl<'de, F: FnMut(Value)> DeserializeSeed<'de> for Page<F> {
    type Value = ListMeta;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<ListMeta, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Value)> Visitor<'de> for Page<F> {
    type Value = ListMeta;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<ListMeta, A::Error> {
        let (mut meta, mut listed) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "metadata" => meta = Some(map.next_value()?),
                "items" => {
                    map.next_value_seed(Items(&mut self.0))?;
                    listed = true;
                }
                _ => drop(map.next_value::<de::IgnoredAny>()?),
            }
        }
        // Something else in place of a list must not be taken for an empty one.
        let meta: ListMeta = meta.ok_or_else(|| de::Error::missing_field("metadata"))?;
        if !listed || meta.resource_version.is_empty() {
            return Err(de::Error::custom(
                "it is no list of objects with a resourceVersion",
            ));
        }
        Ok(meta)
    }
}

struct Items<'f, F>(&'f mut F);

impl<'de, F: FnMut(Value)> DeserializeSeed<'de> for Items<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        // A list without elements may be null.
        from.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Value)> Visitor<'de> for Items<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the elements of a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<Value>()? {
            (self.0)(item);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Result<(ListMeta, usize), serde_json::Error> {
        let mut count = 0;
        read(text.as_bytes(), |_| count += 1).map(|meta| (meta, count))
    }

    #[test]
    fn pages_are_read_in_any_order_of_their_fields() {
        let (meta, count) =
            read_all(r#"{"items":[{"a":1},{"b":2}],"kind":"PodList","metadata":{"continue":"x","resourceVersion":"7"}}"#)
                .unwrap();
        assert_eq!(
            (meta.next.as_str(), meta.resource_version.as_str(), count),
            ("x", "7", 2)
        );
        assert_eq!(
            read_all(r#"{"metadata":{"resourceVersion":"7"},"items":null}"#)
                .unwrap()
                .1,
            0
        );
    }

    #[test]
    fn what_is_no_list_is_no_empty_list() {
        for text in [
            "{}",
            "[]",
            "null",
            r#"{"metadata":{"resourceVersion":"7"}}"#,
            r#"{"items":[]}"#,
            r#"{"items":[],"metadata":{}}"#,
            r#"{"items":{},"metadata":{"resourceVersion":"7"}}"#,
            r#"{"items":[],"metadata":{"resourceVersion":"7"}} more"#,
        ] {
            assert!(read_all(text).is_err(), "{text}");
        }
    }
}
