//! Modules of this crate depend on each other without circles; plan and schedule know no tensors, and only `actor` knows actix.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The Rust files of a module, by its name at the root of the crate, without tests and comments.
fn modules() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut modules = BTreeMap::<String, String>::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().is_some_and(|name| name != "tests.rs") {
                let module = path.strip_prefix(&root).unwrap().with_extension("");
                let module = module.iter().next().unwrap().to_str().unwrap().to_owned();
                let text = fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
                *modules.entry(module).or_default() += &lines.collect::<Vec<_>>().join("\n");
            }
        }
    }
    modules
}

/// The first names of all paths below `crate::` or, in `lib.rs`, of re-exports with what they export.
fn first_names(text: &str, from: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(from) {
        let rest = &text[at + from.len()..];
        let end = rest.find(';').unwrap_or(rest.len());
        match rest.strip_prefix('{') {
            Some(list) => {
                let (mut depth, mut start) = (0, 0);
                for (i, c) in list.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' | ',' if depth == 0 => {
                            found.push(first_name(&list[start..i]));
                            start = i + 1;
                            if c == '}' {
                                break;
                            }
                        }
                        '}' => depth -= 1,
                        _ => {}
                    }
                }
            }
            None => found.push(first_name(&rest[..end])),
        }
    }
    found.retain(|(name, _)| !name.is_empty());
    found
}

/// The first name of a path, and what follows it.
fn first_name(path: &str) -> (String, String) {
    let path = path.trim();
    let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(path.len());
    (path[..end].to_owned(), path[end..].to_owned())
}

/// The modules that each module uses.
fn edges(modules: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut home = BTreeMap::new();
    for (module, items) in first_names(&modules["lib"], "pub use ") {
        for item in items.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
            home.insert(item.to_owned(), module.clone());
        }
    }
    let mut edges = BTreeMap::new();
    for (module, text) in modules.iter().filter(|(module, _)| !["lib", "tools", "prelude"].contains(&module.as_str())) {
        let uses = first_names(text, "crate::").into_iter().map(|(name, _)| home.get(&name).cloned().unwrap_or(name));
        edges.insert(module.clone(), uses.filter(|used| used != module && modules.contains_key(used)).collect());
    }
    edges
}

#[test]
fn modules_depend_on_each_other_without_circles() {
    let mut left = edges(&modules());
    assert!(left["trainer"].contains("stage") && left["stage"].contains("tensor"), "{left:#?}");
    while let Some(free) = left.iter().find(|(_, uses)| uses.iter().all(|used| !left.contains_key(used))) {
        let free = free.0.clone();
        left.remove(&free);
    }
    assert!(left.is_empty(), "a circle among {left:#?}");
}

#[test]
fn plan_and_schedule_know_no_tensors_and_only_actors_know_actix() {
    let modules = modules();
    let uses = edges(&modules);
    for module in ["plan", "schedule", "simulator"] {
        let text = &modules[module];
        assert!(!text.contains("candle") && !uses[module].contains("tensor"), "{module} uses tensors");
    }
    for (module, text) in &modules {
        assert_eq!(text.contains("actix"), module == "actor", "{module}");
    }
}
