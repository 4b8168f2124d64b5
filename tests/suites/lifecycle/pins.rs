//! What is pinned on a node, as the file system shows it.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_tests::harness::{Node, Scene};

/// Where the agent of `node` pins.
pub(crate) fn dir(scene: &Scene, node: &Node) -> PathBuf {
    scene.world.bpffs().join(node.name()).join(node.name())
}

/// All pins below the directory of `node`, as paths.
pub(crate) fn pins(scene: &Scene, node: &Node) -> Vec<String> {
    fn below(dir: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => below(&entry.path(), root, found),
                false => found.push(
                    entry
                        .path()
                        .strip_prefix(root)
                        .unwrap_or(root)
                        .display()
                        .to_string(),
                ),
            }
        }
    }
    let root = dir(scene, node);
    let mut found = Vec::new();
    below(&root, &root, &mut found);
    found.sort();
    found
}
