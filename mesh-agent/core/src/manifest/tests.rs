//! What users write, and what they are told.

use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Contents {
    parse("mesh.yaml", text.as_bytes())
}

#[test]
fn debugging() {
    for text in [
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {v: 1.10}}\n",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n bad\n",
        "a: [1\n",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, nam: 2}\nspec:\n  foo: 1\n  containers:\n  - image: x\n    prots: []\n",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    8080: {mode: DISABLE}\n",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  mtls: {mode: STRICKT}\n",
        "a: 1\na: 2\n",
    ] {
        println!("{:#?}", read(text));
    }
}
