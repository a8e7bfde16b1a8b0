//! A part of the schema: what a key is, its values, and the keys of a table.

use serde_json::Value;

/// The key that says of which kind a table is.
pub(crate) const KIND: &str = "kind";

/// The pattern of strings of digits.
pub(crate) const DIGITS: &str = "^[0-9]+$";

/// A part of the schema `root`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Part<'a> {
    root: &'a Value,
    schema: &'a Value,
    /// The `kind` of the table that it is or lies in, if there are several.
    pub(crate) kind: Option<&'a str>,
}

impl<'a> Part<'a> {
    /// Returns the whole schema, which is that of a table.
    pub(crate) fn of(root: &'a Value) -> Self {
        Self { root, schema: root, kind: None }
    }

    /// Returns the values of the key `path`, such as `optimizer.lr`: one for each kind that has it.
    pub(crate) fn find(self, path: &str) -> Vec<Self> {
        path.split('.').fold(vec![self], |found, key| {
            let tables = found.into_iter().flat_map(Self::alternatives);
            tables.filter_map(|table| table.key(key)).collect()
        })
    }

    /// Returns the parts of which a value must fit one: references followed, `null` left out.
    pub(crate) fn alternatives(self) -> Vec<Self> {
        let inner = |schemas: &'a [Value]| -> Vec<Self> {
            schemas.iter().flat_map(|schema| Part { schema, ..self }.alternatives()).collect()
        };
        if let Some(path) = self.schema.get("$ref").and_then(Value::as_str) {
            let schema = self.root.pointer(path.trim_start_matches('#'));
            return schema.map_or_else(Vec::new, |schema| Part { schema, ..self }.alternatives());
        }
        // Under draft 7 a reference beside other keys is wrapped in `allOf`.
        let list = |key: &str| self.schema.get(key).and_then(Value::as_array);
        if let Some(schemas) = list("allOf").or(list("anyOf")).or(list("oneOf")) {
            return inner(schemas);
        }
        if self.schema.get("type").is_some_and(|kind| kind == "null") {
            return Vec::new();
        }
        vec![Part { kind: self.own_kind().or(self.kind), ..self }]
    }

    /// Returns the alternatives, and those of the items of lists among them.
    pub(crate) fn alternatives_and_items(self) -> Vec<Self> {
        let alternatives = self.alternatives();
        let items = alternatives.iter().filter_map(|part| part.items()).flat_map(Self::alternatives);
        alternatives.iter().copied().chain(items).collect()
    }

    /// Returns those of the alternatives that are tables: one for each kind.
    pub(crate) fn tables(self) -> Vec<Self> {
        self.alternatives().into_iter().filter(|part| part.names("object")).collect()
    }

    /// Returns the keys of this table.
    pub(crate) fn keys(self) -> impl Iterator<Item = &'a str> {
        let properties = self.schema.get("properties").and_then(Value::as_object);
        properties.into_iter().flat_map(|keys| keys.keys().map(String::as_str))
    }

    /// Returns the keys of this table without its `kind`.
    pub(crate) fn own_keys(self) -> impl Iterator<Item = &'a str> {
        self.keys().filter(move |&key| key != KIND || self.own_kind().is_none())
    }

    /// Returns the kind of this table, if it is one of several kinds.
    pub(crate) fn own_kind(self) -> Option<&'a str> {
        self.schema.pointer("/properties/kind/const").and_then(Value::as_str)
    }

    /// Returns the value of a key of this table.
    pub(crate) fn key(self, name: &str) -> Option<Self> {
        let schema = self.schema.get("properties")?.get(name)?;
        Some(Part { schema, ..self })
    }

    /// Returns whether this table may have only the keys that the schema lists.
    pub(crate) fn is_closed(self) -> bool {
        self.schema.get("additionalProperties").is_some_and(|others| others == false)
    }

    /// Returns the keys that this table must have.
    pub(crate) fn required(self) -> impl Iterator<Item = &'a str> {
        let keys = self.schema.get("required").and_then(Value::as_array);
        keys.into_iter().flatten().filter_map(Value::as_str)
    }

    /// Returns the items of this list.
    pub(crate) fn items(self) -> Option<Self> {
        self.schema.get("items").map(|schema| Part { schema, ..self })
    }

    /// Returns the only number of items that this list may have, if there is one.
    pub(crate) fn item_count(self) -> Option<u64> {
        let count = |key: &str| self.schema.get(key).and_then(Value::as_u64);
        count("minItems").filter(|least| count("maxItems") == Some(*least))
    }

    /// Returns the least number that is allowed.
    pub(crate) fn minimum(self) -> Option<f64> {
        self.schema.get("minimum").and_then(Value::as_f64)
    }

    /// Returns the value that is the only one, or those that are the only ones.
    pub(crate) fn constants(self) -> Vec<&'a Value> {
        match (self.schema.get("const"), self.schema.get("enum").and_then(Value::as_array)) {
            (Some(value), _) => vec![value],
            (None, Some(values)) => values.iter().collect(),
            (None, None) => Vec::new(),
        }
    }

    /// Returns whether its values are of the JSON type `name`.
    pub(crate) fn names(self, name: &str) -> bool {
        match self.schema.get("type") {
            Some(Value::Array(names)) => names.iter().any(|other| other == name),
            Some(only) => only == name,
            None => false,
        }
    }

    /// Returns whether its values are strings of digits.
    pub(crate) fn is_digits(self) -> bool {
        self.schema.get("pattern").is_some_and(|pattern| pattern == DIGITS)
    }

    /// Returns whether the schema says nothing about its values.
    pub(crate) fn is_open(self) -> bool {
        self.schema.get("type").is_none() && self.constants().is_empty()
    }

    /// Returns the description of this key, or else that of its only kind of value.
    pub(crate) fn description(self) -> Option<&'a str> {
        let own = |schema: &'a Value| schema.get("description").and_then(Value::as_str);
        own(self.schema).or_else(|| match self.alternatives().as_slice() {
            [only] => own(only.schema),
            _ => None,
        })
    }

    /// Returns the default, if it is a value and no table.
    pub(crate) fn default(self) -> Option<&'a Value> {
        let is_value = |value: &&Value| !value.is_null() && !value.is_object() && **value != Value::Array(Vec::new());
        self.schema.get("default").filter(is_value)
    }

    /// Returns the first example.
    pub(crate) fn example(self) -> Option<&'a Value> {
        self.schema.get("examples")?.get(0)
    }

    /// Describes the values of one alternative, such as `a list of numbers`.
    pub(crate) fn in_words(self) -> String {
        if let [value] = self.constants()[..] {
            return value.to_string();
        }
        if let values @ [_, ..] = &self.constants()[..] {
            return one_of(&values.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        let name_of = |part: Self, plural: &str| {
            let name = ["array", "integer", "number", "string"].into_iter().find(|name| part.names(name));
            let limit = || part.minimum().map_or_else(String::new, |least| format!(" from {least} on"));
            let (noun, limit) = match name {
                Some("array") => ("list", String::new()),
                Some("integer") => ("whole number", limit()),
                Some("number") => ("number", limit()),
                Some(_) => ("string", if part.is_digits() { " of digits".to_owned() } else { String::new() }),
                None => ("table", String::new()),
            };
            format!("{noun}{plural}{limit}")
        };
        let name =
            ["object", "array", "boolean", "integer", "number", "string"].into_iter().find(|name| self.names(name));
        match name {
            None => "any value".to_owned(),
            Some("boolean") => "true or false".to_owned(),
            Some("array") => {
                let items = self.items().map(Self::alternatives).unwrap_or_default();
                let of = match items.as_slice() {
                    [] => return "a list".to_owned(),
                    [item] if item.names("boolean") => "true or false".to_owned(),
                    [item] => name_of(*item, "s"),
                    several => either(several),
                };
                match self.item_count() {
                    Some(count) => format!("a list of {count} {of}"),
                    None => format!("a list of {of}"),
                }
            }
            Some(_) => format!("a {}", name_of(self, "")),
        }
    }
}

/// Describes the values of several alternatives.
pub(crate) fn either(alternatives: &[Part<'_>]) -> String {
    let mut words: Vec<String> = Vec::new();
    for part in alternatives {
        let values: Vec<String> = match &part.constants()[..] {
            [] if part.names("boolean") => ["true", "false"].map(str::to_owned).to_vec(),
            [] => vec![part.in_words()],
            values => values.iter().map(ToString::to_string).collect(),
        };
        for word in values {
            if !words.contains(&word) {
                words.push(word);
            }
        }
    }
    one_of(&words)
}

/// Joins words: `a, b or c`.
pub(crate) fn one_of(words: &[String]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
