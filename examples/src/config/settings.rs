//! The values that the command line sets in a configuration.

use std::path::Path;

use interlock::{Error, Result};
use toml::{Table, Value};

use super::RunConfig;
use crate::program::{DataSection, ModelSection, Program, program};

/// Keys that exclude each other: if the command line sets the first, the others are removed from the file's values. `key[]` is the key where its value
/// is a list.
const RIVALS: [(&str, &str, &[&str]); 14] = [
    ("strategy", "width", &["name", "widths", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "widths", &["name", "width", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "name", &["width", "widths", "width_schedule", "adaptive", "follow[]", "follows"]),
    ("strategy", "width_schedule", &["name", "width", "widths", "end_to_end_every", "adaptive", "follow[]", "follows"]),
    ("strategy", "adaptive", &["name", "width", "widths", "end_to_end_every", "width_schedule", "follow[]", "follows"]),
    ("strategy", "follow", &["follows"]),
    ("strategy", "follow[]", &["name", "width", "widths", "width_schedule", "adaptive"]),
    ("strategy", "follows", &["name", "width", "widths", "width_schedule", "adaptive", "follow"]),
    ("partition", "stages", &["units_per_stage"]),
    ("partition", "units_per_stage", &["stages"]),
    ("heads", "arch", &["archs"]),
    ("heads", "every", &["archs"]),
    ("heads", "archs", &["arch", "every"]),
    ("", "steps", &["epochs"]),
];

/// The text of a configuration, in which values can be set.
pub(crate) struct ConfigText {
    /// The file's name.
    subject: String,
    text: String,
}

impl ConfigText {
    /// Reads the file at `path`, or the program's built-in configuration.
    pub(crate) fn read<P: Program>(path: Option<&Path>) -> Result<Self> {
        Ok(match path {
            Some(path) => Self {
                subject: path.display().to_string(),
                text: std::fs::read_to_string(path).map_err(|e| Error::file(path, e))?,
            },
            None => Self { subject: "built-in configuration".to_owned(), text: P::CONFIG.to_owned() },
        })
    }

    /// Returns the configuration with these settings, each applied after the one before.
    ///
    /// # Errors
    /// If a key is unknown or a value has the wrong type; the message names the key and the settings.
    pub(crate) fn with<M: ModelSection, D: DataSection>(&self, settings: &[Setting]) -> Result<RunConfig<M, D>> {
        let refused = |subject: &str, e: toml::de::Error| {
            let remedy = format!("`{} config --schema` lists every key", program());
            Error::invalid(subject, e.to_string().trim_end().to_owned(), remedy)
        };
        let mut table: Table = toml::from_str(&self.text).map_err(|e| refused(&self.subject, e))?;
        if settings.is_empty() {
            // Parsed from the text, so that messages name the line.
            return toml::from_str(&self.text).map_err(|e| refused(&self.subject, e));
        }
        for setting in settings {
            setting.apply(&mut table, settings)?;
        }
        table.try_into().map_err(|e| refused(&Setting::list(settings), e))
    }
}

/// A key of the configuration and the value that the command line gives it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    /// The option and its value, for messages.
    pub(crate) given: String,
    /// The path of the key, such as `optimizer.lr`.
    pub(crate) key: String,
    pub(crate) value: Value,
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
        let value = toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        Ok(Self { given, key, value })
    }

    /// Reads the values of `--set`.
    pub(crate) fn sets(texts: &[String]) -> Result<Vec<Self>> {
        texts.iter().map(|text| Self::parse("--set", text)).collect()
    }

    /// Returns these settings as the command line gives them.
    pub(crate) fn list(settings: &[Self]) -> String {
        settings.iter().map(|setting| setting.given.as_str()).collect::<Vec<_>>().join(" ")
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
        let value = &self.value;
        let is_set = |key: &str| key == last || (value.is_array() && key.strip_suffix("[]") == Some(last));
        for (_, _, rivals) in RIVALS.iter().filter(|(table, key, _)| *table == parent && is_set(key)) {
            for rival in *rivals {
                let (key, only_lists) = rival.strip_suffix("[]").map_or((*rival, false), |key| (key, true));
                // A strategy's name does not remove the table of that strategy's own keys.
                let stays = asked(key)
                    || value.as_str() == Some(key)
                    || (only_lists && !at.get(key).is_some_and(Value::is_array));
                if !stays {
                    at.remove(key);
                }
            }
        }
        // Another kind of data, model or schedule has other keys.
        if last == "kind" && parent != "optimizer" && at.get("kind") != Some(value) {
            at.clear();
        }
        at.insert(last.to_owned(), value.clone());
        Ok(())
    }
}

/// Returns whether a key is `path` or lies in that table.
pub(crate) fn is_within(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use interlock_models::ModelConfig;

    use super::*;
    use crate::{BuiltIn, config::ConfigOf};

    fn load(sets: &[&str]) -> Result<ConfigOf<BuiltIn>> {
        crate::config::load::<BuiltIn>(None, &sets.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    fn apply(table: &mut Table, set: &str, all: &[String]) -> Result<()> {
        Setting::parse("--set", set)?.apply(table, &Setting::sets(all)?)
    }

    #[test]
    fn set_value_replaces_values_that_contradict_it() {
        let config = load(&["strategy.width=3", "steps=5", "name=abc", "optimizer.lr=1"]).unwrap();
        assert_eq!((config.strategy.width, config.strategy.name), (Some(3), None));
        assert_eq!((config.steps, config.epochs, config.name.as_str()), (Some(5), None, "abc"));
        let config = load(&["model.kind=mlp", "model.hidden=[8]", "heads.arch=fc"]).unwrap();
        assert!(matches!(config.model, ModelConfig::Mlp(_)));
        // Contradictory values on the command line remain an error.
        assert!(load(&["strategy.width=3", "strategy.name=local"]).unwrap().strategy.build().is_err());
    }

    #[test]
    fn strategies_that_change_widths_are_read_and_written_and_replace_others() {
        let phases =
            "strategy.width_schedule=[{from_step=0, width=1}, {from_step=9, widths=[2,1], end_to_end_every=3}]";
        let adaptive = ["strategy.adaptive.every=5", "strategy.adaptive.window=2", "strategy.adaptive.below=0.1"];
        let named = [&["strategy.name=adaptive"], &adaptive[..]].concat();
        let whole = ["strategy.adaptive={every=5, window=2, below=0.1, width=2, max_width=3}"];
        let steps = ["strategy.end_to_end_every=4"];
        let within = [&["strategy.adaptive.every=7"], &whole[..]].concat();
        for sets in [&[phases][..], &named, &whole, &steps] {
            let config = load(sets).unwrap();
            let again: ConfigOf<BuiltIn> = toml::from_str(&config.to_toml().unwrap()).unwrap();
            assert_eq!(config, again);
            config.strategy.build().unwrap();
        }
        assert!(load(&within).is_ok());
        let config = load(&named).unwrap();
        let adaptive = config.strategy.adaptive.unwrap();
        assert_eq!((adaptive.every, adaptive.width, adaptive.max_width), (5, 1, None));

        // A file has the table `adaptive`: setting its own name keeps the table, and setting another removes it.
        let over = |set: &str| {
            let mut table: Table = toml::from_str(&load(&named).unwrap().to_toml().unwrap()).unwrap();
            apply(&mut table, set, &[set.to_owned()]).unwrap();
            table.try_into::<ConfigOf<BuiltIn>>().unwrap().strategy
        };
        assert!(over("strategy.name=adaptive").adaptive.is_some());
        for set in ["strategy.name=local", "strategy.width=2", phases] {
            let strategy = over(set);
            assert!(strategy.adaptive.is_none(), "{set}");
            strategy.build().unwrap();
        }
        // A single key of `adaptive` is an error, since the others are missing.
        let error = load(&["strategy.adaptive.every=5"]).unwrap_err().to_string();
        assert!(error.contains("window"), "{error}");
    }

    #[test]
    fn lists_of_weights_and_widths_replace_each_other() {
        let over = |file: &str, set: &str| {
            let mut table: Table = toml::from_str(&format!("[strategy]\n{file}")).unwrap();
            apply(&mut table, set, &[set.to_owned()]).unwrap();
            let strategy: interlock::tools::strategy::StrategyConfig =
                table.remove("strategy").unwrap().try_into().unwrap();
            strategy.build().unwrap();
            serde_json::to_string(&strategy).unwrap()
        };
        assert_eq!(over("name = \"local\"\ngroup = 2", "strategy.follow=[1, 2]"), r#"{"follow":[1.0,2.0],"group":2}"#);
        assert_eq!(over("name = \"local\"", "strategy.follow=mean"), r#"{"name":"local","follow":"mean"}"#);
        assert_eq!(over("follow = [1]", "strategy.width=2"), r#"{"width":2}"#);
        assert_eq!(over("follow = \"mean\"", "strategy.width=2"), r#"{"width":2,"follow":"mean"}"#);
        assert_eq!(over("follows = [[1]]", "strategy.name=local"), r#"{"name":"local"}"#);
        assert_eq!(over("follows = [[1]]", "strategy.follow=mean"), r#"{"follow":"mean"}"#);
        assert_eq!(over("width = 2\nfollow = \"mean\"", "strategy.follows=[[1]]"), r#"{"follows":[[1.0]]}"#);
        assert!(load(&["strategy.follow=[1]", "strategy.width=2"]).unwrap().strategy.build().is_err());
    }

    #[test]
    fn descriptions_for_each_stage_replace_one_for_all_and_the_reverse() {
        let over = |first: &[&str], set: &str| {
            let mut table: Table = toml::from_str(&load(first).unwrap().to_toml().unwrap()).unwrap();
            apply(&mut table, set, &[set.to_owned()]).unwrap();
            table.try_into::<ConfigOf<BuiltIn>>().unwrap().heads
        };
        let archs = r#"heads.archs=["fc", ""]"#;
        let each = over(&["heads.arch=fc", "heads.every=2"], archs);
        assert_eq!((each.arch, each.every, each.archs), (None, None, Some(vec!["fc".to_owned(), String::new()])));
        // The built-in configuration has an `arch`.
        for set in ["heads.arch=ln_fc", "heads.every=3"] {
            assert_eq!(over(&[archs], set).archs, None, "{set}");
        }
        let both = load(&["heads.arch=fc", "heads.every=2"]).unwrap().heads;
        assert_eq!((both.arch.as_deref(), both.every), (Some("fc"), Some(2)));
        assert!(load(&["heads.arch=fc", archs]).unwrap().heads.carriers(3).is_err());
    }

    #[test]
    fn errors_name_the_key_or_value() {
        let refused = |set: &str, word: &str| {
            let error = load(&[set]).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(word), "{error}");
        };
        refused("optimizer.learning_rate=0.1", "learning_rate");
        refused("batch_size=many", "batch_size");
        refused("batch_size=-1", "batch_size");
        refused("seed", "no =");
        refused("seed.x=1", "seed is a value");
        refused("colour=blue", "colour");
        refused("devices=3", "\"auto\", a name, or a list of names");
        refused("devices=[1]", "expected a string");
    }
}
