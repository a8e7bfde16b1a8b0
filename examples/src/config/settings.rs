//! The values that the command line sets in a configuration.

use std::path::Path;

use interlock::{Error, Result, tools::strategy::StrategyConfig};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    RunConfig,
    check::{self, Misfit},
    rivals,
};
use crate::{
    bounded,
    program::{DataSection, ModelSection, Program, program},
    schema::{self, KIND, Part},
};

/// Keys that stay when another kind of their table is chosen.
const STAYING: [(&str, &str); 1] = [("optimizer", "groups")];

/// The most parts of a key.
const MOST_PARTS: usize = 32;

/// The sections that are a program's own types, which have the last word on what they accept.
const OWN: [&str; 2] = ["data", "model"];

/// The text of a configuration, in which values can be set.
pub(crate) struct ConfigText {
    /// The file's name.
    subject: String,
    text: String,
    /// The schema of the program's configurations.
    schema: serde_json::Value,
    /// The program's built-in configuration.
    built_in: &'static str,
}

impl ConfigText {
    /// Reads the file at `path`, or the program's built-in configuration.
    pub(crate) fn read<P: Program>(path: Option<&Path>) -> Result<Self> {
        let (subject, text) = match path {
            Some(path) => {
                let remedy = "name a configuration in TOML, or leave --config out for the built-in one";
                let text =
                    bounded::read(path, bounded::CONFIG).map_err(|e| Error::file(path, format!("{e}; {remedy}")))?;
                (path.display().to_string(), text)
            }
            None => ("built-in configuration".to_owned(), P::CONFIG.to_owned()),
        };
        Ok(Self { subject, text, schema: schema::schema::<P>(), built_in: P::CONFIG })
    }

    /// The text of a configuration that another rank has read.
    pub(crate) fn of<P: Program>(text: String) -> Self {
        Self { subject: "configuration of rank 0".to_owned(), text, schema: schema::schema::<P>(), built_in: P::CONFIG }
    }

    /// Returns the configuration with these settings, each applied after the one before.
    ///
    /// # Errors
    /// If a key is unknown or missing, or a value is wrong; the message names the key and the line of the file, or the setting that gives it.
    pub(crate) fn with<M: ModelSection, D: DataSection>(&self, settings: &[Setting]) -> Result<RunConfig<M, D>> {
        let mut table = self.table()?;
        let schema = Part::of(&self.schema);
        let settings: Vec<Setting> = settings.iter().map(|setting| setting.in_full(schema)).collect();
        for (at, setting) in settings.iter().enumerate() {
            if let Some(anew) = setting.begins_anew(&mut table, schema) {
                for earlier in settings[..at].iter().filter(|earlier| is_within(&earlier.key, anew)) {
                    earlier.apply(&mut table, &settings)?;
                }
            }
            setting.apply(&mut table, &settings)?;
        }
        match (table.clone().try_into(), check::misfit(&table, schema)) {
            (Ok(config), None) => Ok(with_named_strategy(config)),
            (Ok(config), Some(misfit)) if misfit.path.first().is_some_and(|key| OWN.contains(&&**key)) => {
                Ok(with_named_strategy(config))
            }
            (_, Some(misfit)) => Err(self.refuse(&misfit, &table, &settings)),
            (Err(error), None) => Err(self.refuse_in_other_words::<M, D>(&error, &settings)),
        }
    }

    fn table(&self) -> Result<Table> {
        toml::from_str(&self.text).map_err(|error| {
            let remedy = format!("write TOML; `{} config` prints a whole configuration", program());
            Error::invalid(&self.subject, error.to_string().trim_end().to_owned(), remedy)
        })
    }

    fn refuse(&self, misfit: &Misfit, table: &Table, settings: &[Setting]) -> Error {
        let remedy = match misfit.path.is_empty() && misfit.is_missing {
            true => self.missing_sections(table).unwrap_or_else(|| misfit.remedy.clone()),
            false => misfit.remedy.clone(),
        };
        let path = misfit.path.join(".");
        let has_table =
            misfit.path.is_empty() || self.line(&misfit.path).is_some_and(|(_, depth)| depth == misfit.path.len());
        let gives = |setting: &&Setting| match misfit.is_missing {
            // A kind that needs more keys, or the only keys of the table.
            true => {
                is_within(&path, &setting.key)
                    || setting.key == format!("{path}.{KIND}")
                    || (!has_table && is_within(&setting.key, &path))
            }
            false => is_within(&path, &setting.key),
        };
        let subject = match (settings.iter().rev().find(gives), self.line(&misfit.path)) {
            (Some(setting), _) => setting.given.clone(),
            (None, Some((line, _))) => format!("{}, line {line}", self.subject),
            (None, None) => self.subject.clone(),
        };
        Error::invalid(subject, misfit.problem.clone(), remedy)
    }

    /// Returns the sections of the built-in configuration that `table` lacks, as an example.
    fn missing_sections(&self, table: &Table) -> Option<String> {
        let built_in: Table = toml::from_str(self.built_in).ok()?;
        let missing = built_in.into_iter().filter(|(key, _)| OWN.contains(&&**key) && !table.contains_key(key));
        let section = |(key, value): (String, Value)| {
            let text = toml::to_string(&value).ok()?;
            let (kind, others): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with(KIND));
            Some(format!("[{key}]\n{}", [kind, others].concat().join("\n")))
        };
        let sections: Vec<String> = missing.map(section).collect::<Option<_>>()?;
        Some(format!("add, for example:\n\n{}", sections.join("\n\n")))
    }

    /// Returns the line of the last of these keys that the file has, counted from 1, and how many of them it has; none if it has none.
    fn line(&self, path: &[String]) -> Option<(usize, usize)> {
        let document = DeTable::parse(&self.text).ok()?;
        let mut within: Option<&DeValue<'_>> = None;
        let mut found = None;
        for (depth, part) in (1..).zip(path) {
            let in_table = |table: &DeTable<'_>| {
                table.iter().find(|(key, _)| key.get_ref().as_ref() == part.as_str()).map(|(key, _)| key.span().start)
            };
            let (start, next) = match within {
                None => (in_table(document.get_ref())?, document.get_ref().get(part.as_str())),
                Some(DeValue::Table(table)) => match in_table(table) {
                    Some(start) => (start, table.get(part.as_str())),
                    None => break,
                },
                Some(DeValue::Array(items)) => match part.parse().ok().and_then(|at: usize| items.get(at)) {
                    Some(item) => (item.span().start, Some(item)),
                    None => break,
                },
                Some(_) => break,
            };
            found = Some((self.text[..start].matches('\n').count() + 1, depth));
            within = next.map(|value| value.get_ref());
        }
        found
    }

    /// Returns the refusal of a value that the schema allows and its type does not, such as a tokenizer of an unknown name.
    fn refuse_in_other_words<M: ModelSection, D: DataSection>(
        &self,
        error: &toml::de::Error,
        settings: &[Setting],
    ) -> Error {
        let remedy = format!("`{} config KEY` explains a key", program());
        if let Err(error) = toml::from_str::<RunConfig<M, D>>(&self.text) {
            return Error::invalid(&self.subject, error.to_string().trim_end().to_owned(), remedy);
        }
        let first = (1..settings.len()).find(|&count| self.with::<M, D>(&settings[..count]).is_err());
        let given = match first.map_or(settings.last(), |count| settings.get(count - 1)) {
            Some(setting) => &setting.given,
            None => &self.subject,
        };
        Error::invalid(given, error.to_string().trim_end().replace('\n', " "), remedy)
    }
}

/// Names the default strategy where the configuration has none, so that the files of a run say which it was.
fn with_named_strategy<M: ModelSection, D: DataSection>(mut config: RunConfig<M, D>) -> RunConfig<M, D> {
    if config.strategy == StrategyConfig::default() {
        config.strategy.name = Some(config.strategy.name());
    }
    config
}

/// A key of the configuration and the value that the command line gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    /// The option and its value, for messages.
    pub(crate) given: String,
    /// The path of the key, such as `optimizer.lr`.
    pub(crate) key: String,
    pub(crate) value: Value,
    /// The value as the command line has it, if it is the only one of its option.
    pub(crate) text: Option<String>,
}

impl Setting {
    /// Reads the `key.path=value` of an option. What is not a TOML value is a string, so that quotes may be left out.
    pub(crate) fn parse(option: &str, text: &str) -> Result<Self> {
        let given = format!("{option} {text}");
        let refuse = |problem: &str| {
            Err(Error::invalid(&given, problem.to_owned(), "write key.path=value, such as optimizer.lr=0.1"))
        };
        let Some((key, text)) = text.split_once('=') else {
            return refuse("there is no =");
        };
        let key = key.trim().to_owned();
        if key.split('.').any(str::is_empty) {
            return refuse("a part of the key is empty");
        }
        if key.split('.').count() > MOST_PARTS {
            let start: String = key.chars().take(2 * MOST_PARTS).collect();
            let problem = format!("the key has more than {MOST_PARTS} parts");
            return Err(Error::invalid(format!("{option} {start}…"), problem, "no key has so many"));
        }
        let value = toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        Ok(Self { given, key, value, text: Some(text.trim().to_owned()) })
    }

    /// Reads the values of `--set`.
    pub(crate) fn sets(texts: &[String]) -> Result<Vec<Self>> {
        texts.iter().map(|text| Self::parse("--set", text)).collect()
    }

    /// Returns these settings as the command line gives them.
    pub(crate) fn list(settings: &[Self]) -> String {
        settings.iter().map(|setting| setting.given.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Returns the setting with its whole key: `optimizer=adamw` is short for `optimizer.kind=adamw`, and `strategy=local` for `strategy.name=local`.
    /// The value of a key that takes only strings is one, whatever it looks like: `name=2026`.
    fn in_full(&self, schema: Part<'_>) -> Self {
        let found = schema.find(&self.key);
        let kinds: Vec<Part<'_>> = found.iter().flat_map(|part| part.alternatives()).collect();
        let is_string =
            !kinds.is_empty() && kinds.iter().all(|kind| kind.names("string") && kind.constants().is_empty());
        let is_bare =
            matches!(self.value, Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_));
        if let Some(text) = self.text.as_ref().filter(|_| is_string && is_bare) {
            return Self { value: Value::String(text.clone()), ..self.clone() };
        }
        let tables: Vec<Part<'_>> = found.into_iter().flat_map(Part::tables).collect();
        let named = |key: &str| {
            let values = tables.iter().filter_map(|table| table.key(key)).flat_map(Part::alternatives);
            let values: Vec<Part<'_>> = values.collect();
            !values.is_empty() && values.iter().all(|value| !value.constants().is_empty())
        };
        match [KIND, "name"].into_iter().find(|key| self.value.is_str() && named(key)) {
            Some(key) => Self { key: format!("{}.{key}", self.key), ..self.clone() },
            None => self.clone(),
        }
    }

    /// Begins its table anew if it chooses another kind, which has other keys and other defaults, and returns the table's path then.
    fn begins_anew(&self, table: &mut Table, schema: Part<'_>) -> Option<&str> {
        let parent = self.key.strip_suffix(KIND)?.strip_suffix('.')?;
        let tables: Vec<Part<'_>> = schema.find(parent).into_iter().flat_map(Part::tables).collect();
        let mut at = table;
        for key in parent.split('.') {
            at = at.get_mut(key)?.as_table_mut()?;
        }
        let present = match at.get(KIND) {
            Some(kind) => kind.as_str(),
            None => check::default_kind(&tables).and_then(Part::own_kind),
        };
        if tables.iter().all(|table| table.own_kind().is_none()) || present == self.value.as_str() {
            return None;
        }
        at.retain(|key, _| STAYING.contains(&(parent, key)));
        Some(parent)
    }

    /// Sets the value in the table. Removes the values that contradict it, unless a setting of `all` gives them.
    fn apply(&self, table: &mut Table, all: &[Self]) -> Result<()> {
        let (parent, last) = self.key.rsplit_once('.').unwrap_or(("", &self.key));
        let mut at = table;
        for key in parent.split('.').filter(|key| !key.is_empty()) {
            let next = at.entry(key.to_owned()).or_insert_with(|| Value::Table(Table::new()));
            match next {
                Value::Table(next) => at = next,
                _ => {
                    let problem = format!("{key} is a value, not a table");
                    let remedy = format!("see `{} config` for the keys", program());
                    return Err(Error::invalid(&self.given, problem, remedy));
                }
            }
        }
        let asked = |rival: &str| {
            let path = if parent.is_empty() { rival.to_owned() } else { format!("{parent}.{rival}") };
            all.iter().any(|setting| is_within(&setting.key, &path))
        };
        rivals::remove(at, parent, last, &self.value, asked);
        at.insert(last.to_owned(), self.value.clone());
        Ok(())
    }
}

/// Returns whether a key is `path` or lies in that table.
pub(crate) fn is_within(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests;
