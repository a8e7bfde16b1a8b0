//! The schema of configurations (JSON Schema, draft 7, which editors' TOML plug-ins read), and the explanation of single keys from it.

mod part;

pub(crate) use part::{DIGITS, KIND, Part, either, one_of};

use interlock::{Error, Result, tools::names::misspelt};
use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::{
    config::ConfigOf,
    program::{ModelSection, Program, program},
};

/// Returns the schema of the program's configurations.
pub(crate) fn schema<P: Program>() -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<ConfigOf<P>>().to_value();
    tidy(&mut schema);
    if let (parts @ [_, ..], Some(Value::String(words))) =
        (P::Model::head_parts(), schema.pointer_mut("/definitions/HeadsConfig/properties/arch/description"))
    {
        *words += &format!(" It is a list of parts, joined by `_`: {}.", parts.join(", "));
    }
    schema
}

/// Makes descriptions, which come from the documentation of the program's source, fit for readers of configurations. The key `kind` of a table gets
/// that of the table. Integers have the greatest value that a configuration can hold.
fn tidy(schema: &mut Value) {
    let of_table = schema.get("description").cloned();
    if let (Some(words), Some(kind)) = (of_table, schema.pointer_mut("/properties/kind").and_then(Value::as_object_mut))
    {
        kind.entry("description").or_insert(words);
    }
    match schema {
        Value::Object(fields) => {
            // TOML has no larger integers.
            if fields.get("format").is_some_and(|format| format == "uint64") {
                fields.insert("maximum".to_owned(), i64::MAX.into());
            }
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "description" => *text = plain(text),
                    _ => tidy(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Returns a description without the code that follows it and without links into the source, each paragraph on one line.
fn plain(description: &str) -> String {
    let words = &description[..description.find("\n\n```").unwrap_or(description.len())];
    let paragraphs: Vec<String> = words.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
    let mut text = paragraphs.join("\n\n");
    // [`name`] and [`name`](link) become `name`.
    while let Some(begin) = text.find("[`") {
        let Some(end) = text[begin..].find("`]").map(|at| begin + at) else { break };
        let mut rest = &text[end + 2..];
        if let Some(link) = rest.strip_prefix('(') {
            rest = link.split_once(')').map_or(rest, |(_, rest)| rest);
        }
        let path = &text[begin + 2..end];
        let name = path.rsplit("::").next().unwrap_or(path);
        text = format!("{}`{name}`{rest}", &text[..begin]);
    }
    text
}

/// Explains a key, such as `optimizer.lr` or `strategy`: what it is, its values, its default, and for a table its keys. A key that several kinds of
/// a table have is explained for each.
///
/// # Errors
/// If there is no such key; the message lists the keys of the table.
pub(crate) fn explain<P: Program>(key: &str) -> Result<String> {
    let root = schema::<P>();
    let mut found = vec![Part::of(&root)];
    let mut path = String::new();
    for part in key.split('.') {
        let tables: Vec<Part<'_>> = found.iter().flat_map(|found| found.alternatives_and_items()).collect();
        let next: Vec<Part<'_>> = tables.iter().filter_map(|table| table.key(part)).collect();
        if next.is_empty() {
            return Err(unknown(key, &path, &tables));
        }
        path = if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
        found = next;
    }
    // Kinds whose key is the same are explained together.
    let mut texts: Vec<(String, Vec<String>)> = Vec::new();
    for part in &found {
        let (words, kind) = (in_words(*part), part.kind.map(|kind| format!("{kind:?}")));
        match texts.iter_mut().find(|(other, _)| *other == words) {
            Some((_, kinds)) => kinds.extend(kind),
            None => texts.push((words, kind.into_iter().collect())),
        }
    }
    let several = texts.len() > 1;
    let text = |(words, kinds): &(String, Vec<String>)| match several && !kinds.is_empty() {
        true => format!("{key} (kind = {}){words}", one_of(kinds)),
        false => format!("{key}{words}"),
    };
    Ok(texts.iter().map(text).collect::<Vec<_>>().join("\n\n"))
}

fn unknown(key: &str, table: &str, tables: &[Part<'_>]) -> Error {
    let mut keys: Vec<&str> = tables.iter().flat_map(|table| table.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    let problem = match (table, keys.is_empty()) {
        ("", _) => "there is no such key".to_owned(),
        (_, true) => format!("{table} has no keys"),
        (_, false) => format!("{table} has no such key"),
    };
    // The part of the key that the table does not have.
    let part = key[table.len()..].trim_start_matches('.').split('.').next().unwrap_or(key);
    let remedy = match (misspelt(part, keys.iter().copied()), keys.is_empty()) {
        (Some(like), _) => format!("did you mean {like}?"),
        (None, true) => format!("see `{} config {table}`", program()),
        (None, false) => format!("keys are {}", keys.join(", ")),
    };
    Error::invalid(format!("config {key}"), problem, remedy)
}

/// Explains one key, in lines that follow its name.
fn in_words(part: Part<'_>) -> String {
    let mut text = String::new();
    if let Some(words) = part.description() {
        text += &format!("\n  {}", words.replace('\n', "\n  "));
    }
    if let Some(default) = part.default() {
        text += &format!("\n  default: {default}");
    }
    let alternatives = part.alternatives();
    let (tables, values): (Vec<Part<'_>>, Vec<Part<'_>>) =
        alternatives.iter().partition(|part| part.keys().next().is_some());
    match values.as_slice() {
        [] => {}
        [only] if tables.is_empty() => text += &format!("\n  value: {}", only.in_words()),
        several => {
            text += if several.len() > 1 { "\n  one of:" } else { "\n  either" };
            let indent = if several.len() > 1 { "\n    " } else { " " };
            for value in several {
                let words = value.description().map(|words| format!(": {}", words.replace('\n', " ")));
                text += &format!("{indent}{}{}", value.in_words(), words.unwrap_or_default());
            }
        }
    }
    for table in &tables {
        text += &match table.kind.filter(|_| tables.len() > 1) {
            Some(kind) => {
                let words =
                    table.description().map_or_else(String::new, |words| format!(": {}", first_sentence(words)));
                let keys = if table.own_keys().next().is_some() { "; its keys:" } else { "; it has no keys" };
                format!("\n  kind = \"{kind}\"{}{keys}", words.trim_end_matches('.'))
            }
            None if !values.is_empty() => "\n  or a table, with the keys:".to_owned(),
            None => "\n  keys:".to_owned(),
        };
        text += &keys_in_words(*table);
    }
    for table in values.iter().filter_map(|value| value.items()).flat_map(Part::tables) {
        text += "\n  keys of each:";
        text += &keys_in_words(table);
    }
    text
}

/// Lists the keys of a table, each with its first sentence.
fn keys_in_words(table: Part<'_>) -> String {
    let words = |name| table.key(name).and_then(Part::description).unwrap_or_default();
    table.own_keys().map(|name| format!("\n    {name}: {}", first_sentence(words(name)))).collect()
}

/// Returns the first sentence of a description. A point within one, as in `approx. 2 s`, is not followed by a capital letter.
pub(crate) fn first_sentence(words: &str) -> &str {
    let line = words.lines().next().unwrap_or("");
    let ends = line.match_indices(". ").map(|(at, _)| at);
    let begins_another = |at: &usize| line[at + 2..].starts_with(|c: char| c.is_uppercase() || c == '`' || c == '"');
    ends.into_iter().find(begins_another).map_or(line, |end| &line[..=end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BuiltIn;

    #[test]
    fn keys_are_explained_with_values_defaults_and_kinds() {
        let explain = |key: &str| explain::<BuiltIn>(key).unwrap();
        assert_eq!(
            explain("optimizer.lr"),
            "optimizer.lr (kind = \"sgd\")\n  The learning rate before any schedule.\n  default: 0.1\n  value: a number\n\n\
             optimizer.lr (kind = \"adamw\")\n  The learning rate before any schedule.\n  default: 0.001\n  value: a number"
        );
        let follow = explain("strategy.follow");
        let several = "\n  one of:\n    \"last\": The last loss of the window.\n    \"mean\": The mean";
        assert!(
            follow.contains(several)
                && follow.contains("\n    a list of numbers from 0 on: One weight for each distance"),
            "{follow}"
        );
        let path = explain("data.path");
        for words in [
            "data.path (kind = \"cifar10\" or \"cifar100\")",
            "data.path (kind = \"text\")\n  The text, plain or `.gz`.",
        ] {
            assert!(path.contains(words), "{path}");
        }
        let data = explain("data");
        for words in [
            "The data set.",
            "kind = \"shakespeare\": Nine plays by Shakespeare, embedded in the program: 988,098 bytes; its keys:",
            "    tokenizer: The tokenizer; by default",
        ] {
            assert!(data.contains(words), "{data}");
        }
        assert!(explain("strategy").contains("\n    group: The number of stages in a block."));
        assert!(!explain("data").contains("```"));
    }

    #[test]
    fn unknown_keys_are_refused_with_those_that_there_are() {
        let refused = |key: &str| {
            let error = explain::<BuiltIn>(key).unwrap_err();
            assert!(error.is_refusal());
            error.to_string()
        };
        assert!(
            refused("colour").contains("config colour: there is no such key; keys are batch_size, checkpoint, clip,")
        );
        assert!(refused("optimiser.lr").contains("config optimiser.lr: there is no such key; did you mean optimizer?"));
        assert!(refused("optimizer.momentun").contains("optimizer has no such key; did you mean momentum?"));
        assert!(refused("optimizer.rate").contains("optimizer has no such key; keys are betas, eps,"));
        assert!(refused("seed.x").contains("seed has no keys; see `"), "{}", refused("seed.x"));
    }
}
