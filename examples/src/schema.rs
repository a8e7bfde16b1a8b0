//! The schema of configurations (JSON Schema, draft 7, which editors' TOML plug-ins read), and the explanation of single keys from it.

use interlock::{Error, Result};
use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::{
    config::ConfigOf,
    program::{Program, program},
};

/// Returns the schema of the program's configurations.
pub(crate) fn schema<P: Program>() -> Value {
    let mut schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<ConfigOf<P>>().to_value();
    without_code(&mut schema);
    schema
}

/// Removes the code from descriptions: it is for programs, not for configurations.
fn without_code(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "description" => {
                        text.truncate(text.find("\n\n```").unwrap_or(text.len()));
                    }
                    _ => without_code(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_code),
        _ => {}
    }
}

/// Explains a key, such as `optimizer.lr` or `strategy`: what it is, its values, its default, and for a table its keys. A key that several kinds of
/// a table have is explained for each.
///
/// # Errors
/// If there is no such key; the message lists the keys of the table.
pub(crate) fn explain<P: Program>(key: &str) -> Result<String> {
    let root = schema::<P>();
    let mut found = vec![Found { kind: None, schema: &root }];
    let mut path = String::new();
    for part in key.split('.') {
        let tables: Vec<Found<'_>> = found.iter().flat_map(|found| found.alternatives(&root)).collect();
        let next: Vec<Found<'_>> = tables.iter().filter_map(|table| table.key(part)).collect();
        if next.is_empty() {
            return Err(unknown(key, &path, &tables));
        }
        path = if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
        found = next;
    }
    found.dedup_by(|a, b| a.schema == b.schema);
    Ok(found.iter().map(|found| found.in_words(&root, key)).collect::<Vec<_>>().join("\n\n"))
}

fn unknown(key: &str, table: &str, tables: &[Found<'_>]) -> Error {
    let mut keys: Vec<&str> = tables.iter().flat_map(Found::keys).collect();
    keys.sort_unstable();
    keys.dedup();
    let problem = match (table, keys.is_empty()) {
        ("", _) => "there is no such key".to_owned(),
        (_, true) => format!("{table} has no keys"),
        (_, false) => format!("{table} has no such key"),
    };
    let remedy = match keys.is_empty() {
        true => format!("see `{} config {table}`", program()),
        false => format!("keys are {}", keys.join(", ")),
    };
    Error::invalid(format!("config {key}"), problem, remedy)
}

/// A part of the schema.
#[derive(Clone, Debug, PartialEq)]
struct Found<'a> {
    /// The `kind` of the table that it is in, if there are several.
    kind: Option<&'a str>,
    schema: &'a Value,
}

impl<'a> Found<'a> {
    /// Returns the schemas of which a value must fit one: references followed, `null` left out.
    fn alternatives(&self, root: &'a Value) -> Vec<Self> {
        let inner = |schemas: &'a [Value]| -> Vec<Self> {
            schemas.iter().flat_map(|schema| Found { kind: self.kind, schema }.alternatives(root)).collect()
        };
        let list = |key: &str| self.schema.get(key).and_then(Value::as_array);
        if let Some(path) = self.schema.get("$ref").and_then(Value::as_str) {
            return root
                .pointer(path.trim_start_matches('#'))
                .map_or_else(Vec::new, |schema| Found { kind: self.kind, schema }.alternatives(root));
        }
        // Under draft 7 a reference beside other keys is wrapped in `allOf`.
        if let Some(schemas) = list("allOf").or(list("anyOf")).or(list("oneOf")) {
            return inner(schemas);
        }
        if self.schema.get("type").is_some_and(|kind| kind == "null") {
            return Vec::new();
        }
        let kind = self.schema.pointer("/properties/kind/const").and_then(Value::as_str);
        vec![Found { kind: kind.or(self.kind), schema: self.schema }]
    }

    fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let properties = self.schema.get("properties").and_then(Value::as_object);
        properties.into_iter().flat_map(|keys| keys.keys().map(String::as_str))
    }

    fn key(&self, name: &str) -> Option<Self> {
        let schema = self.schema.get("properties")?.get(name)?;
        Some(Found { kind: self.kind, schema })
    }

    fn in_words(&self, root: &'a Value, key: &str) -> String {
        let alternatives = self.alternatives(root);
        let mut text = key.to_owned();
        if let Some(kind) = self.kind {
            text += &format!(" (kind = \"{kind}\")");
        }
        let own = description(self.schema);
        let shared = alternatives.first().filter(|_| alternatives.len() == 1).and_then(|only| description(only.schema));
        for words in own.into_iter().chain(shared.filter(|shared| own != Some(shared))) {
            text += &format!("\n  {}", words.replace('\n', "\n  "));
        }
        if let Some(default) = self.schema.get("default").filter(|default| !default.is_null() && !default.is_object()) {
            text += &format!("\n  default: {default}");
        }
        let values: Vec<(&Self, String)> =
            alternatives.iter().filter_map(|found| Some((found, found.values()?))).collect();
        match values.as_slice() {
            [] => {}
            [(_, only)] => text += &format!("\n  value: {only}"),
            several => {
                text += "\n  one of:";
                for (found, value) in several {
                    let words = description(found.schema).map(|words| format!(": {}", words.replace('\n', " ")));
                    text += &format!("\n    {value}{}", words.unwrap_or_default());
                }
            }
        }
        for table in alternatives.iter().filter(|table| table.keys().next().is_some()) {
            text += &match table.kind.filter(|_| alternatives.len() > 1) {
                Some(kind) => format!("\n  keys with kind = \"{kind}\":"),
                None => "\n  keys:".to_owned(),
            };
            for name in table.keys() {
                let words = table.key(name).and_then(|found| {
                    let inner = found.alternatives(root);
                    description(found.schema).or(inner.first().and_then(|first| description(first.schema)))
                });
                text += &format!("\n    {name}: {}", words.map_or("", first_sentence));
            }
        }
        text
    }

    /// Describes the values of this alternative; none for a table with keys.
    fn values(&self) -> Option<String> {
        if let Some(value) = self.schema.get("const") {
            return Some(value.to_string());
        }
        if let Some(values) = self.schema.get("enum").and_then(Value::as_array) {
            return Some(values.iter().map(Value::to_string).collect::<Vec<_>>().join(", "));
        }
        let name = match self.schema.get("type")? {
            Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null")?,
            name => name.as_str()?,
        };
        match name {
            "object" => None,
            "array" => Some("a list".to_owned()),
            "string" => Some("a text".to_owned()),
            "boolean" => Some("true or false".to_owned()),
            "integer" => Some("an integer".to_owned()),
            other => Some(format!("a {other}")),
        }
    }
}

fn description(schema: &Value) -> Option<&str> {
    schema.get("description").and_then(Value::as_str)
}

fn first_sentence(words: &str) -> &str {
    let line = words.lines().next().unwrap_or("");
    line.find(". ").map_or(line, |end| &line[..=end])
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
            "optimizer.lr\n  The learning rate before any schedule.\n  default: 0.1\n  value: a number"
        );
        let follow = explain("strategy.follow");
        let several = "\n  one of:\n    \"last\": The last loss of the window.\n    \"mean\": The mean";
        assert!(follow.contains(several) && follow.contains("\n    a list: One weight for each distance"), "{follow}");
        let path = explain("data.path");
        for words in ["data.path (kind = \"cifar10\")", "data.path (kind = \"text\")\n  The text, plain or `.gz`."] {
            assert!(path.contains(words), "{path}");
        }
        let data = explain("data");
        for words in ["The data set.", "keys with kind = \"shakespeare\":", "    tokenizer: The tokenizer; by default"]
        {
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
        assert!(refused("optimiser").contains("config optimiser: there is no such key; keys are batch_size, clip,"));
        assert!(refused("optimizer.rate").contains("optimizer has no such key; keys are betas, eps,"));
        assert!(refused("seed.x").contains("seed has no keys; see `"), "{}", refused("seed.x"));
    }
}
