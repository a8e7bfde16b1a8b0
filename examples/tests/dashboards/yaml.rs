//! Reads YAML as JSON values.

use std::{fs, path::Path};

use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// Returns the only document of a file.
pub(crate) fn read(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let documents = YamlLoader::load_from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(documents.len(), 1, "{} should contain one document", path.display());
    value(&documents[0], path)
}

fn value(yaml: &Yaml, path: &Path) -> Value {
    match yaml {
        Yaml::String(text) => text.as_str().into(),
        Yaml::Real(text) => text.parse::<f64>().unwrap().into(),
        Yaml::Integer(number) => (*number).into(),
        Yaml::Boolean(truth) => (*truth).into(),
        Yaml::Null => Value::Null,
        Yaml::Array(items) => items.iter().map(|item| value(item, path)).collect(),
        Yaml::Hash(pairs) => {
            let pair = |(key, item): (&Yaml, &Yaml)| {
                let key = key.as_str().unwrap_or_else(|| panic!("{}: key {key:?} is not text", path.display()));
                (key.to_owned(), value(item, path))
            };
            Value::Object(pairs.iter().map(pair).collect::<Map<_, _>>())
        }
        Yaml::Alias(_) | Yaml::BadValue => panic!("{}: {yaml:?} is not understood", path.display()),
    }
}
