//! Where the values of accepted objects stand in the file that they came from, for what is found only when objects stand together.

use std::collections::HashMap;

use super::positions::Positions;
use super::report::{Origin, Path};
use super::split::{self, Document};

/// Finds values in one file. A document's places are read once.
#[derive(Debug, Default)]
pub struct Locator<'a> {
    documents: Vec<Document<'a>>,
    places: HashMap<usize, Positions>,
}

impl<'a> Locator<'a> {
    /// Of the file `bytes`; finds nothing in one that is not UTF-8.
    pub fn new(bytes: &'a [u8]) -> Self {
        let text = std::str::from_utf8(bytes).unwrap_or_default();
        Self {
            documents: split::documents(text),
            places: HashMap::new(),
        }
    }

    /// Where the value at `path` of the object at `origin` stands, or the nearest value around it that is there.
    pub fn find(&mut self, origin: &Origin, path: &Path) -> Option<Origin> {
        let before = self
            .documents
            .iter()
            .take_while(|one| one.line_offset < origin.line);
        let index = before.count().checked_sub(1)?;
        let document = self.documents.get(index)?;
        let places = self
            .places
            .entry(index)
            .or_insert_with(|| Positions::read(document.text));
        let from = (origin.line - document.line_offset, origin.column);
        let (line, column) = places.find_below(from, path)?;
        Some(Origin {
            file: origin.file.clone(),
            line: line + document.line_offset,
            column,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_in_each_document_and_in_lists() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: \
                    Pod\n  metadata:\n    name: b\n- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: c\n    labels:\n      x: z\n";
        let contents = crate::manifest::parse("f", text.as_bytes());
        let mut locator = Locator::new(text.as_bytes());
        let mut place = |index: usize, path: &str| {
            let origin = &contents.accepted[index].origin;
            let found = locator.find(origin, &Path::of(path)).unwrap();
            (found.line, found.column)
        };
        assert_eq!(place(0, "metadata.name"), (3, 12));
        assert_eq!(place(1, "metadata.name"), (11, 5));
        assert_eq!(place(2, "metadata.labels.x"), (17, 7));
        assert_eq!(place(2, "spec"), (12, 3));
        let nowhere = Origin {
            file: "f".into(),
            line: 0,
            column: 0,
        };
        assert_eq!(locator.find(&nowhere, &Path::default()), None);
    }
}
