//! The differences between the configurations of several runs.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::{
    super::run::Run,
    html::{Cell, table},
    or_dash,
};

/// Returns a table of the keys that differ.
pub(super) fn section(runs: &[Run]) -> String {
    let configs: Vec<BTreeMap<String, String>> = runs.iter().map(|run| flat(&run.config_text)).collect();
    let rows = differences(&configs);
    if rows.is_empty() {
        return "<p class=\"faint\">Nothing: they are the same.</p>\n".to_owned();
    }
    let header: Vec<Cell> = std::iter::once(Cell::text("key"))
        .chain(runs.iter().enumerate().map(|(n, run)| Cell::text(run.label.clone()).keyed(n)))
        .collect();
    let row = |(key, values): (String, Vec<String>)| {
        std::iter::once(Cell::text(key)).chain(values.into_iter().map(Cell::text)).collect()
    };
    table(&header, &rows.into_iter().map(row).collect::<Vec<_>>())
}

/// Returns the keys whose values differ, with the values; a dash stands for none.
fn differences(configs: &[BTreeMap<String, String>]) -> Vec<(String, Vec<String>)> {
    let keys: BTreeSet<&String> = configs.iter().flat_map(BTreeMap::keys).collect();
    let values =
        |key: &String| -> Vec<String> { configs.iter().map(|config| or_dash(config.get(key).cloned())).collect() };
    let rows = keys.into_iter().map(|key| (key.clone(), values(key)));
    rows.filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

/// Returns the full keys of a configuration with their values, or none if the text is not TOML, which is refused earlier.
fn flat(text: &str) -> BTreeMap<String, String> {
    fn add(flat: &mut BTreeMap<String, String>, prefix: &str, table: Table) {
        for (key, value) in table {
            let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(inner) => add(flat, &name, inner),
                Value::String(text) => drop(flat.insert(name, text)),
                other => drop(flat.insert(name, other.to_string())),
            }
        }
    }
    let mut all = BTreeMap::new();
    add(&mut all, "", text.parse().unwrap_or_default());
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_different_keys_are_listed() {
        let [a, b] = ["x = 1\n[t]\ny = [1, 2]\nz = \"a\"", "x = 1\nw = true\n[t]\ny = [1, 3]\nz = \"a\""].map(flat);
        let found = differences(&[a.clone(), b]);
        let row = |key: &str, values: [&str; 2]| (key.to_owned(), values.map(str::to_owned).to_vec());
        assert_eq!(found, [row("t.y", ["[1, 2]", "[1, 3]"]), row("w", ["–", "true"])]);
        assert_eq!(differences(&[a.clone(), a]), []);
    }
}
