//! The public items of this crate are those of a committed list: growth is a decision.
//!
//! Items that macros declare are not listed. After a change that is meant, `UPDATE_PUBLIC_ITEMS=1 cargo test -p interlock-train --test public_api` writes the list anew.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const KEYWORDS: [&str; 8] = ["struct", "enum", "trait", "fn", "const", "static", "type", "union"];

/// The public items of a module of this crate, by their paths: those that its file declares or re-exports, and those of its public modules.
fn items(file: &Path, path: &str, found: &mut BTreeSet<String>) {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    declared(&text, file, path, found);
}

/// The public items of the module `path` whose formatted text is `text`, a part of `file`.
fn declared(text: &str, file: &Path, path: &str, found: &mut BTreeSet<String>) {
    for statement in statements(text) {
        let Some(rest) = statement.strip_prefix("pub ") else { continue };
        let mut words = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
        let word = words.find(|word| !["unsafe", "async", "extern"].contains(word)).unwrap_or_default();
        match word {
            "use" => {
                for name in used(rest["use ".len()..].trim()) {
                    assert_ne!(name, "*", "{}: a glob re-export hides what is public; name the items", file.display());
                    found.insert(format!("{path}::{name}"));
                }
            }
            "mod" => {
                let name = words.next().unwrap();
                let inner = format!("{path}::{name}");
                match rest.ends_with(';') {
                    true => items(&file_of(file, name), &inner, found),
                    false => declared(&body(text, &statement), file, &inner, found),
                }
                found.insert(inner);
            }
            _ if KEYWORDS.contains(&word) => {
                let name = words.find(|word| !KEYWORDS.contains(word)).unwrap();
                found.insert(format!("{path}::{name}"));
            }
            _ => panic!("{}: cannot read `{statement}`", file.display()),
        }
    }
}

/// The file of a module that `file` declares.
fn file_of(file: &Path, module: &str) -> PathBuf {
    let folder = match file.file_stem().unwrap().to_str() {
        Some("lib") => file.parent().unwrap().to_owned(),
        _ => file.with_extension(""),
    };
    folder.join(format!("{module}.rs"))
}

/// What stands between the braces of the module that `text` declares by the line `head`, one level less indented.
fn body(text: &str, head: &str) -> String {
    let lines = text.lines().skip_while(|line| *line != head).skip(1).take_while(|line| *line != "}");
    lines.map(|line| line.strip_prefix("    ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// The declarations of a formatted file: each begins in the first column, and ends there or in its line.
fn statements(text: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut at = 0;
    for line in text.lines().filter(|line| line.starts_with("pub ")) {
        let mut statement = line.to_owned();
        if line.starts_with("pub use ") && !line.ends_with(';') {
            at += text[at..].find(line).unwrap();
            let end = text[at..].find(';').unwrap();
            statement = text[at..=at + end].split_whitespace().collect::<Vec<_>>().join(" ");
        }
        statements.push(statement);
    }
    statements
}

/// The names that a `use` of this tree brings into scope.
fn used(tree: &str) -> Vec<String> {
    let tree = tree.trim().trim_end_matches(';').trim();
    let Some((before, inner)) = tree.split_once('{') else {
        let last = tree.rsplit("::").next().unwrap().trim();
        return vec![last.rsplit(" as ").next().unwrap().trim().to_owned()];
    };
    let inner = inner.strip_suffix('}').unwrap_or_else(|| panic!("cannot read `{tree}`"));
    let module = before.trim_end_matches("::").rsplit("::").next().unwrap();
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                match inner[start..at].trim() {
                    "" => {}
                    "self" => names.push(module.to_owned()),
                    part => names.extend(used(part)),
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    items(&root.join("src/lib.rs"), "interlock", &mut found);
    let tools = |item: &&String| *item == "interlock::tools" || item.starts_with("interlock::tools::");
    let outside = found.iter().filter(|item| !tools(item)).count();
    let at_root = found.iter().filter(|item| item.matches("::").count() == 1).count();
    let heading = format!("# {outside} public items outside interlock::tools, {at_root} of them at the root");
    let list = root.join("public-items.txt");
    if std::env::var_os("UPDATE_PUBLIC_ITEMS").is_some() {
        let lines: Vec<&str> = std::iter::once(heading.as_str()).chain(found.iter().map(String::as_str)).collect();
        fs::write(&list, lines.join("\n") + "\n").unwrap();
    }
    let text = fs::read_to_string(&list).unwrap();
    let listed: BTreeSet<String> = text.lines().skip(1).map(str::to_owned).collect();
    let new: Vec<_> = found.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty() && text.lines().next() == Some(&heading),
        "public-items.txt: new {new:#?}, gone {gone:#?}; remove what need not be public, or set UPDATE_PUBLIC_ITEMS=1 to write the list anew"
    );
}

#[test]
fn re_exports_and_declarations_are_read() {
    let text = "mod a;\npub use a::{\n    B,\n    c::{self, D as E},\n};\npub use f::G;\nmod tests {\n    pub fn hidden() {}\n}\n";
    let names: Vec<_> = statements(text).iter().flat_map(|s| used(&s["pub use ".len()..])).collect();
    assert_eq!(names, ["B", "c", "E", "G"]);
    assert_eq!(file_of(Path::new("src/lib.rs"), "plan"), Path::new("src/plan.rs"));
    assert_eq!(file_of(Path::new("src/plan.rs"), "schedule"), Path::new("src/plan/schedule.rs"));
}
