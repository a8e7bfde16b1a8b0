//! The check of a configuration against the schema, with messages in the words of the configuration.

use std::fmt::Write;

use interlock::tools::names::misspelt;
use toml::{Table, Value};

use crate::{
    program::program,
    schema::{KIND, Part, either, one_of},
};

/// A value that does not fit the schema.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Misfit {
    /// The keys that lead to the wrong value, or for a key that is missing to its table. Items of lists are numbers.
    pub(super) path: Vec<String>,
    /// Whether a key is missing in the table.
    pub(super) is_missing: bool,
    pub(super) problem: String,
    pub(super) remedy: String,
}

/// Returns the first value of `table` that does not fit the schema, if there is one. In each table unknown keys come before wrong values, and these
/// before missing keys.
pub(super) fn misfit(table: &Table, schema: Part<'_>) -> Option<Misfit> {
    check(&Value::Table(table.clone()), schema, &[])
}

fn check(value: &Value, part: Part<'_>, path: &[String]) -> Option<Misfit> {
    let alternatives = part.alternatives();
    if alternatives.is_empty() || alternatives.iter().any(|part| part.is_open()) {
        return None;
    }
    match value {
        Value::Table(table) => match part.tables().as_slice() {
            [] => Some(wrong_type(value, part, path)),
            tables => check_table(table, tables, part, path),
        },
        _ => {
            let wrong: Vec<Option<Misfit>> =
                alternatives.iter().filter_map(|part| check_value(value, *part, path)).collect();
            match wrong.iter().find(|wrong| wrong.is_none()).or(wrong.first()) {
                Some(found) => found.clone(),
                None => Some(wrong_type(value, part, path)),
            }
        }
    }
}

/// Checks a value that is no table against one alternative. Returns none if it is not of this type, and otherwise what is wrong within it, if
/// anything is.
fn check_value(value: &Value, part: Part<'_>, path: &[String]) -> Option<Option<Misfit>> {
    let constants = part.constants();
    if !constants.is_empty() {
        return value.as_str().is_some_and(|text| constants.contains(&&text.into())).then_some(None);
    }
    let at_least = |number: f64| part.minimum().is_none_or(|least| number >= least);
    let fits = match value {
        Value::String(text) => {
            part.names("string") && (!part.is_digits() || (is_digits(text) && text.parse::<u64>().is_ok()))
        }
        Value::Boolean(_) => part.names("boolean"),
        Value::Integer(number) => (part.names("integer") || part.names("number")) && at_least(*number as f64),
        Value::Float(number) => part.names("number") && at_least(*number),
        Value::Array(items) => {
            let count = part.item_count().is_none_or(|count| count == items.len() as u64);
            if !part.names("array") || !count {
                return None;
            }
            let check = |(at, item): (usize, &Value)| check(item, part.items()?, &[path, &[at.to_string()]].concat());
            return Some(items.iter().enumerate().find_map(check));
        }
        Value::Datetime(_) | Value::Table(_) => false,
    };
    fits.then_some(None)
}

/// Checks a table that has one of several kinds, or is the only one.
fn check_table(table: &Table, tables: &[Part<'_>], part: Part<'_>, path: &[String]) -> Option<Misfit> {
    let kinds: Vec<&str> = tables.iter().filter_map(|table| table.own_kind()).collect();
    let chosen = match (tables, table.get(KIND)) {
        ([only], _) if kinds.is_empty() => *only,
        (several, _) if kinds.is_empty() => {
            let wrong: Vec<Option<Misfit>> =
                several.iter().map(|only| check_table(table, &[*only], part, path)).collect();
            return wrong.iter().find(|wrong| wrong.is_none()).or(wrong.first()).cloned().flatten();
        }
        (_, None) => match default_kind(tables) {
            Some(kind) => kind,
            None => return Some(missing_kind(&kinds, part, path)),
        },
        (_, Some(kind)) => match tables.iter().find(|table| table.own_kind() == kind.as_str()) {
            Some(table) => *table,
            None => return Some(wrong_kind(kind, &kinds, &[path, &[KIND.to_owned()]].concat())),
        },
    };
    let below = |key: &str| [path, &[key.to_owned()]].concat();
    let unknown = table.keys().filter(|_| chosen.is_closed()).find(|key| chosen.key(key).is_none());
    if let Some(key) = unknown {
        return Some(unknown_key(key, chosen, tables, &below(key)));
    }
    let wrong = table.iter().find_map(|(key, value)| check(value, chosen.key(key)?, &below(key)));
    let absent = || chosen.required().find(|key| !table.contains_key(*key)).map(|key| missing_key(key, chosen, path));
    wrong.or_else(absent)
}

/// Returns the kind of a table that names none: the one that needs no name.
pub(super) fn default_kind<'a>(tables: &[Part<'a>]) -> Option<Part<'a>> {
    tables.iter().copied().find(|table| table.own_kind().is_some() && table.required().all(|key| key != KIND))
}

/// Returns a path as it is written: `optimizer.groups[1].match`.
pub(super) fn written(path: &[String]) -> String {
    path.iter().fold(String::new(), |mut text, part| {
        let _ = match part.parse::<usize>() {
            Ok(item) => write!(text, "[{item}]"),
            Err(_) if text.is_empty() => write!(text, "{part}"),
            Err(_) => write!(text, ".{part}"),
        };
        text
    })
}

/// Returns the command that explains a key; items of lists are explained with the list.
fn explains(path: &[String]) -> String {
    let keys: Vec<&str> = path.iter().map(String::as_str).take_while(|key| key.parse::<usize>().is_err()).collect();
    format!("`{} config {}`", program(), keys.join("."))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn wrong_type(value: &Value, part: Part<'_>, path: &[String]) -> Misfit {
    let alternatives = part.alternatives();
    let is_table = alternatives.iter().all(|part| part.names("object"));
    let key = written(path);
    let given = match value {
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => value.to_string(),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
        Value::Datetime(_) => format!("the date {value}"),
    };
    let remedy = match (is_table, example(part)) {
        (true, example) => {
            let example = example.map_or_else(String::new, |example| format!(" such as {example}"));
            format!("it is a table{example}; {} lists its keys", explains(path))
        }
        (false, example) => {
            let example = example.map_or_else(String::new, |example| format!(", such as {example}"));
            format!("use {}{example}", either(&alternatives))
        }
    };
    // What no TOML integer can hold was read as text.
    let most = if alternatives.iter().any(|part| part.is_digits()) { u64::MAX } else { i64::MAX as u64 };
    let is_too_large = |text: &str| is_digits(text) && text.parse().map_or(true, |number: u64| number > most);
    if alternatives.iter().any(|part| part.names("integer")) && value.as_str().is_some_and(is_too_large) {
        let problem = format!("{key} is {}, too large", value.as_str().unwrap_or_default());
        let remedy = format!("use a whole number up to {most}");
        return Misfit { path: path.to_vec(), is_missing: false, problem, remedy };
    }
    Misfit { path: path.to_vec(), is_missing: false, problem: format!("{key} is {given}"), remedy }
}

fn wrong_kind(kind: &Value, kinds: &[&str], path: &[String]) -> Misfit {
    let quoted: Vec<String> = kinds.iter().map(|kind| format!("{kind:?}")).collect();
    let like = kind.as_str().and_then(|kind| misspelt(kind, kinds.iter().copied()));
    let like = like.map_or_else(String::new, |like| format!("did you mean {like:?}? "));
    let problem = format!("{} is {kind}", written(path));
    Misfit { path: path.to_vec(), is_missing: false, problem, remedy: format!("{like}use {}", one_of(&quoted)) }
}

fn unknown_key(key: &str, chosen: Part<'_>, tables: &[Part<'_>], path: &[String]) -> Misfit {
    let table = written(&path[..path.len() - 1]);
    let keys: Vec<&str> = chosen.own_keys().collect();
    let listed =
        if keys.is_empty() { "it has none but kind".to_owned() } else { format!("the keys are {}", keys.join(", ")) };
    let others = tables.iter().filter(|other| other.key(key).is_some());
    let others: Vec<String> = others.filter_map(|other| Some(format!("{:?}", other.own_kind()?))).collect();
    let of = of_kind(chosen);
    let (problem, remedy) = match others.is_empty() {
        false => (
            format!("{} is a key of kind = {}; {table} is{of}", written(path), one_of(&others)),
            format!("leave it out, or choose another kind ({listed})"),
        ),
        true => {
            let like = misspelt(key, keys.iter().copied()).map(|like| format!("did you mean {like}?"));
            let problem = match table.as_str() {
                "" => format!("there is no key {key}"),
                table => format!("{table}{of} has no key {key}"),
            };
            (problem, like.unwrap_or(listed))
        }
    };
    Misfit { path: path.to_vec(), is_missing: false, problem, remedy }
}

/// Returns the kind of a table as words after its name; nothing if it has none.
fn of_kind(table: Part<'_>) -> String {
    table.own_kind().map_or_else(String::new, |kind| format!(" of kind = {kind:?}"))
}

fn missing_kind(kinds: &[&str], part: Part<'_>, path: &[String]) -> Misfit {
    let quoted: Vec<String> = kinds.iter().map(|kind| format!("{kind:?}")).collect();
    let example = example(part).map_or_else(String::new, |example| format!(", such as {example}"));
    let remedy = format!("give {}{example}", one_of(&quoted));
    Misfit { path: path.to_vec(), is_missing: true, problem: format!("{} has no kind", written(path)), remedy }
}

fn missing_key(key: &str, table: Part<'_>, path: &[String]) -> Misfit {
    let value = table.key(key).map(|value| either(&value.alternatives())).unwrap_or_default();
    let words = table.key(key).and_then(Part::description).map_or_else(String::new, |words| {
        let words = crate::schema::first_sentence(words).trim_end_matches('.');
        format!(" ({words})")
    });
    let of = of_kind(table);
    let problem = match path {
        [] => format!("there is no [{key}]"),
        path => format!("{}{of} has no {key}", written(path)),
    };
    Misfit { path: path.to_vec(), is_missing: true, problem, remedy: format!("give {key}, {value}{words}") }
}

/// Returns the example of a table, as it is written in a configuration.
fn example(part: Part<'_>) -> Option<String> {
    Some(Value::try_from(part.example()?).ok()?.to_string())
}
