//! What documents name exists: tests (the facts in ARCHITECTURE.md, docs/threat-model.md, the table in docs/proof.md), files that links lead to, and commands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::mutate::PROOFS;
use crate::stamp;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(name: &str) -> String {
    let path = root().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every test of the tree: the function that follows a test attribute.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in [
        "mesh-common/src",
        "mesh-common/tests",
        "mesh-agent/src",
        "mesh-agent/core/src",
        "tests/suites",
        "xtask/src",
    ] {
        stamp::files_below(&root().join(folder), &mut files).unwrap();
    }
    let mut tests = BTreeSet::new();
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "rs"))
    {
        let text = std::fs::read_to_string(file).unwrap();
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[") {
                marked |= line.contains("test]") || line.contains("::test(");
            } else if let Some((before, after)) = line.split_once("fn ") {
                let name: String = after
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                if marked && ["", "async ", "pub "].contains(&before) {
                    tests.insert(name);
                }
                marked = false;
            } else if !line.starts_with("//") {
                marked = false;
            }
        }
    }
    tests
}

/// Names in backquotes that are sentences, as only tests have them; the last part of a path.
fn sentences(text: &str) -> Vec<&str> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.rsplit("::").next())
        .filter(|name| name.matches('_').count() >= 4)
        .filter(|name| {
            name.chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        })
        .collect()
}

/// The cells of the rows of all tables whose head ends with `last`.
fn rows<'a>(text: &'a str, last: &str) -> Vec<Vec<&'a str>> {
    let mut inside = false;
    let mut rows = Vec::new();
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            inside = false;
            continue;
        };
        let cells: Vec<&str> = cells.split('|').map(str::trim).collect();
        if cells.last() == Some(&last) {
            inside = true;
        } else if inside && !cells.iter().all(|cell| cell.chars().all(|c| c == '-')) {
            rows.push(cells);
        }
    }
    rows
}

#[test]
fn every_test_that_a_document_names_exists() {
    let tests = tests();
    assert!(tests.len() > 300, "the tests are found: {}", tests.len());
    for document in ["ARCHITECTURE.md", "docs/threat-model.md", "docs/proof.md"] {
        let text = read(document);
        let missing: Vec<&str> = sentences(&text)
            .into_iter()
            .filter(|name| !tests.contains(*name))
            .collect();
        assert!(
            missing.is_empty(),
            "{document} names tests that are not there: {missing:#?}"
        );
    }
}

#[test]
fn every_fact_and_every_threat_has_a_test_beside_it() {
    for (document, last, least) in [
        ("ARCHITECTURE.md", "test", 25),
        ("docs/threat-model.md", "shown by", 30),
    ] {
        let text = read(document);
        let rows = rows(&text, last);
        assert!(rows.len() >= least, "{document}: {} rows", rows.len());
        for row in rows {
            assert!(
                !sentences(row.last().unwrap()).is_empty(),
                "{document}: no test beside {row:?}"
            );
        }
    }
}

#[test]
fn the_table_of_proofs_is_that_of_the_code() {
    let text = read("docs/proof.md");
    let shown: Vec<(String, String, String)> = rows(&text, "test that goes red")
        .into_iter()
        .map(|row| {
            let word = |cell: &str| cell.trim_matches('`').to_owned();
            let (program, test) = row[2].split_once(' ').unwrap();
            (word(row[0]), program.to_owned(), word(test))
        })
        .collect();
    let code: Vec<_> = PROOFS
        .iter()
        .map(|proof| {
            (
                proof.mechanism.name().to_owned(),
                proof.program.to_owned(),
                proof.test.to_owned(),
            )
        })
        .collect();
    assert_eq!(shown, code);
}

/// The documents that people read, by their paths.
fn pages() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for place in ["README.md", "ARCHITECTURE.md", "SECURITY.md", "docs", "deploy"] {
        stamp::files_below(&root().join(place), &mut files).unwrap();
    }
    files
        .into_iter()
        .filter(|file| {
            file.extension()
                .is_some_and(|e| ["md", "txt", "yaml"].iter().any(|known| e == *known))
        })
        .map(|file| {
            let text = std::fs::read_to_string(&file).unwrap();
            (file, text)
        })
        .collect()
}

/// Where the links of a page lead, other than out of the project or within the page.
fn links(text: &str) -> Vec<&str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter_map(|link| link.split('#').next())
        .filter(|link| !link.is_empty() && !link.contains("://") && !link.contains(' '))
        .collect()
}

#[test]
fn every_link_leads_to_a_file() {
    let pages = pages();
    assert!(pages.len() > 20, "the documents are found: {}", pages.len());
    let mut seen = 0;
    for (file, text) in &pages {
        if file.extension().is_none_or(|e| e != "md") {
            continue;
        }
        for link in links(text) {
            seen += 1;
            let target = file.parent().unwrap().join(link);
            assert!(target.exists(), "{}: nothing at {link}", file.display());
        }
    }
    assert!(seen > 50, "the links are found: {seen}");
}

/// The names of the variants of `enum Command` in a file, as a command line has them.
fn commands(file: &str) -> BTreeSet<String> {
    let text = read(file);
    let (_, block) = text.split_once("pub enum Command {\n").unwrap();
    let (block, _) = block.split_once("\n}").unwrap();
    let variants = block.lines().filter_map(|line| line.strip_prefix("    "));
    let names = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    names
        .map(|line| {
            let mut name = String::new();
            for c in line.chars().take_while(char::is_ascii_alphanumeric) {
                if c.is_ascii_uppercase() && !name.is_empty() {
                    name.push('-');
                }
                name.push(c.to_ascii_lowercase());
            }
            name
        })
        .collect()
}

/// The first words that follow `program` in what is quoted, or behind a prompt or the `--` of `kubectl exec`.
fn said(text: &str, program: &str) -> BTreeSet<String> {
    ["`", "-- ", "$ ", "    "]
        .iter()
        .flat_map(|before| {
            text.split(&format!("{before}{program} "))
                .skip(1)
                .collect::<Vec<_>>()
        })
        .filter_map(|rest| {
            let mut words = rest.split(|c: char| c.is_whitespace() || c == '`');
            let mut word = words.next()?;
            // Flags of the program itself, each with a value.
            while word.starts_with("--") {
                words.next()?;
                word = words.next()?;
            }
            let plain = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            (plain && !word.is_empty()).then(|| word.to_owned())
        })
        .collect()
}

#[test]
fn every_command_that_a_document_names_exists() {
    for (program, file, least) in [
        ("meshctl", "mesh-agent/src/cli/meshctl.rs", 8),
        ("mesh-agent", "mesh-agent/src/cli/agent.rs", 4),
    ] {
        let known = commands(file);
        let mut named = BTreeSet::new();
        for (file, text) in pages() {
            for word in said(&text, program) {
                assert!(
                    known.contains(&word),
                    "{}: there is no {program} {word}",
                    file.display()
                );
                named.insert(word);
            }
        }
        assert!(named.len() >= least, "{program}: {named:?}");
    }
}

#[test]
fn the_observer_sees_a_name_that_is_not_there() {
    assert!(!tests().contains("this_test_does_not_exist_anywhere"));
    assert_eq!(sentences("see `a::b_c_d_e_f` and `sk_lookup`"), ["b_c_d_e_f"]);
    assert_eq!(
        rows("| a | test |\n|---|---|\n| x | `y` |\n\n| z | w |\n", "test"),
        [["x", "`y`"]]
    );
    assert_eq!(
        links("[a](b.md#c) [d](https://e) [f](#g) [h](../i)"),
        ["b.md", "../i"]
    );
    let text = "`meshctl status` and\n    meshctl --socket /x certs\nkubectl exec x -- meshctl nonsense # `meshctl bpf`";
    let words: Vec<String> = said(text, "meshctl").into_iter().collect();
    assert_eq!(words, ["bpf", "certs", "nonsense", "status"]);
}
