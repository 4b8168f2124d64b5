//! Where each value of a YAML document stands, for messages about values that were read without trouble but make no sense.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, Span};

use super::report::{Path, Step};

/// Line and column, both from 1.
pub(super) type Position = (u64, u64);

/// The places of a document's values.
#[derive(Debug, Default)]
pub(super) struct Positions {
    root: Option<Node>,
}

#[derive(Debug)]
struct Node {
    at: Position,
    keys: HashMap<String, Node>,
    elements: Vec<Node>,
}

impl Node {
    fn at(at: Position) -> Self {
        Self {
            at,
            keys: HashMap::new(),
            elements: Vec::new(),
        }
    }
}

/// A collection that is being read.
struct Open {
    node: Node,
    /// The key under which it goes into its parent, if that is a mapping.
    key: Option<String>,
    /// In a mapping: the key whose value comes next, and where it stands.
    pending: Option<(String, Position)>,
    mapping: bool,
}

impl Positions {
    /// Reads the places of the first document in `text`, as far as it can be read.
    pub(super) fn read(text: &str) -> Self {
        let mut open: Vec<Open> = Vec::new();
        let mut root = None;
        for event in Parser::new_from_str(text) {
            let Ok((event, span)) = event else { break };
            match event {
                Event::MappingStart(..) | Event::SequenceStart(..) => {
                    let mapping = matches!(event, Event::MappingStart(..));
                    let (at, key) = place(&mut open, &span);
                    open.push(Open {
                        node: Node::at(at),
                        key,
                        pending: None,
                        mapping,
                    });
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    if let Some(closed) = open.pop() {
                        attach(&mut open, &mut root, closed.node, closed.key);
                    }
                }
                Event::Scalar(text, ..) => scalar(&mut open, &mut root, &text, &span),
                Event::Alias(..) => scalar(&mut open, &mut root, "", &span),
                Event::DocumentEnd => break,
                _ => {}
            }
        }
        // An unfinished document: what was read so far still tells where things stand.
        while let Some(closed) = open.pop() {
            attach(&mut open, &mut root, closed.node, closed.key);
        }
        Self { root }
    }

    /// Where the value at `path` stands, or the nearest value around it that is there.
    pub(super) fn find(&self, path: &Path) -> Option<Position> {
        Some(self.root.as_ref()?.find(path))
    }

    /// As [`Self::find`], from the outermost value that stands at `from`.
    pub(super) fn find_below(&self, from: Position, path: &Path) -> Option<Position> {
        let mut open: Vec<&Node> = self.root.iter().collect();
        while let Some(node) = open.pop() {
            if node.at == from {
                return Some(node.find(path));
            }
            open.extend(node.keys.values().chain(&node.elements));
        }
        None
    }
}

impl Node {
    /// Where the value at `path` stands, or the nearest value around it that is there.
    fn find(&self, path: &Path) -> Position {
        let mut node = self;
        for step in &path.0 {
            let next = match step {
                Step::Key(key) => node.keys.get(key),
                Step::Index(index) => node
                    .elements
                    .get(*index)
                    .or_else(|| node.keys.get(&index.to_string())),
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.at
    }
}

/// Where a value that begins at `span` stands (its key, when it has one) and the key.
fn place(open: &mut [Open], span: &Span) -> (Position, Option<String>) {
    let here = position(span);
    match open.last_mut() {
        Some(parent) if parent.mapping => match parent.pending.take() {
            Some((key, at)) => (at, Some(key)),
            None => {
                // A collection as a key: nothing that our documents have.
                parent.pending = Some((String::new(), here));
                (here, None)
            }
        },
        _ => (here, None),
    }
}

fn scalar(open: &mut [Open], root: &mut Option<Node>, text: &str, span: &Span) {
    if let Some(parent) = open.last_mut()
        && parent.mapping
        && parent.pending.is_none()
    {
        parent.pending = Some((text.to_owned(), position(span)));
        return;
    }
    let (at, key) = place(open, span);
    attach(open, root, Node::at(at), key);
}

fn attach(open: &mut [Open], root: &mut Option<Node>, node: Node, key: Option<String>) {
    match (open.last_mut(), key) {
        (Some(parent), Some(key)) => {
            parent.node.keys.entry(key).or_insert(node);
        }
        (Some(parent), None) if !parent.mapping => parent.node.elements.push(node),
        (Some(_), None) => {}
        (None, _) => *root = Some(node),
    }
}

fn position(span: &Span) -> Position {
    (span.start.line() as u64, span.start.col() as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_where_their_keys_stand() {
        let text = "a: 1\nb:\n  c: [x, {d: 2}]\n  \"8080\": y\n  e:\n  - f: 3\n    g: 4\n";
        let positions = Positions::read(text);
        for (path, expected) in [
            ("a", (1, 1)),
            ("b.c", (3, 3)),
            ("b.c.0", (3, 7)),
            ("b.c.1.d", (3, 11)),
            ("b.8080", (4, 3)),
            ("b.e.0.g", (7, 5)),
            ("b.e.0.missing", (6, 5)),
            ("b.missing", (2, 1)),
        ] {
            assert_eq!(positions.find(&Path::of(path)), Some(expected), "{path}");
        }
    }

    #[test]
    fn a_value_is_found_from_where_the_object_around_it_begins() {
        let positions = Positions::read("kind: List\nitems:\n- a: 1\n  b: 2\n- a: 3\n");
        assert_eq!(positions.find_below((3, 3), &Path::of("b")), Some((4, 3)));
        assert_eq!(positions.find_below((5, 3), &Path::of("b")), Some((5, 3)));
        assert_eq!(positions.find_below((1, 1), &Path::of("items.1.a")), Some((5, 3)));
        assert_eq!(positions.find_below((9, 1), &Path::of("a")), None);
    }

    #[test]
    fn a_broken_document_still_tells_what_came_before() {
        let positions = Positions::read("a:\n  b: 1\n  c: [\n");
        assert_eq!(positions.find(&Path::of("a.b")), Some((2, 3)));
        assert_eq!(Positions::read("").find(&Path::of("a")), None);
    }
}
