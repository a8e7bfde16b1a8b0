//! The combinations of the values that `--widths` and `--vary` give.

use interlock::{Error, Result};
use serde::Serialize;
use toml::{Table, Value};

use crate::{
    arguments::{Compare, Width},
    config::{ConfigOf, ConfigText, Devices, Setting, is_within},
    program::Program,
};

/// The column of `--widths`.
const WIDTH: &str = "width";

/// The most combinations.
const MOST: usize = 10_000;

/// What one option varies.
struct Varied {
    /// The option and its value, for messages.
    given: String,
    /// The name of its column.
    column: String,
    values: Vec<Labelled>,
}

/// One value of a varied option.
#[derive(Clone)]
struct Labelled {
    label: String,
    setting: Setting,
}

/// One value of each varied option.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Combination {
    /// The value of `--widths`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) width: Option<String>,
    /// The value of each key.
    pub(super) varied: Table,
    /// The name of each column and the label of its value.
    #[serde(skip)]
    pub(super) labels: Vec<(String, String)>,
    /// The command line's options for these values alone, for messages.
    #[serde(skip)]
    pub(super) given: String,
}

/// Returns all combinations with their configurations. The values of the last key change fastest.
///
/// # Errors
/// If an option is wrong, two options set the same key, or a configuration has an unknown key or a wrong value.
pub(super) fn combinations<P: Program>(arguments: &Compare) -> Result<Vec<(Combination, ConfigOf<P>)>> {
    let text = ConfigText::read::<P>(arguments.source.config.as_deref())?;
    let mut sets = Setting::sets(&arguments.source.sets)?;
    sets.extend(devices(&arguments.devices)?);
    let widths = (!arguments.widths.is_empty()).then(|| Varied::of_widths(&arguments.widths));
    let varied = widths.into_iter().map(Ok).chain(arguments.vary.iter().map(|text| Varied::parse(text)));
    let varied: Vec<Varied> = varied.collect::<Result<_>>()?;
    check(&varied, &sets)?;
    let count = varied.iter().fold(1_usize, |count, key| count.saturating_mul(key.values.len()));
    if count > MOST {
        let problem = format!("{count} combinations of the values");
        return Err(Error::invalid("--vary", problem, format!("give values for at most {MOST}")));
    }
    let all = product(&varied).into_iter().map(|values| {
        let settings: Vec<Setting> = values.iter().map(|value| value.setting.clone()).collect();
        let config = text.with(&[&sets[..], &settings].concat())?;
        let labels = varied.iter().zip(&values).map(|(key, value)| (key.column.clone(), value.label.clone()));
        let labels: Vec<(String, String)> = labels.collect();
        let width = labels.iter().find(|(column, _)| column == WIDTH).map(|(_, label)| label.clone());
        let given = if settings.is_empty() { "configuration".to_owned() } else { Setting::list(&settings) };
        let varied = settings.into_iter().map(|setting| (setting.key, setting.value)).collect();
        Ok((Combination { width, varied, labels, given }, config))
    });
    all.collect()
}

/// Returns the setting that `--devices` stands for.
fn devices(arguments: &[String]) -> Result<Option<Setting>> {
    let given = format!("--devices {}", arguments.join(" "));
    let setting = |devices: Devices| {
        let value = Value::try_from(devices).map_err(|e| Error::invalid(&given, e.to_string(), "name devices"))?;
        Ok(Setting { given: given.clone(), key: "devices".to_owned(), value, text: None })
    };
    Devices::of_arguments(arguments).map(setting).transpose()
}

/// Returns every choice of one value from each key.
fn product(varied: &[Varied]) -> Vec<Vec<&Labelled>> {
    varied.iter().fold(vec![Vec::new()], |choices, key| {
        let with = |choice: Vec<_>| key.values.iter().map(move |value| [&choice[..], &[value]].concat());
        choices.into_iter().flat_map(with).collect()
    })
}

/// Refuses a value that is given twice, and an option whose key another one sets.
fn check(varied: &[Varied], sets: &[Setting]) -> Result<()> {
    for (i, key) in varied.iter().enumerate() {
        let twice = |(n, value): &(usize, &Labelled)| key.values[..*n].iter().any(|other| other.label == value.label);
        if let Some((_, value)) = key.values.iter().enumerate().find(twice) {
            return Err(Error::invalid(
                &key.given,
                format!("{} is given twice", value.label),
                "give each value once; --seeds repeats a run with other seeds",
            ));
        }
        if let Some((other, theirs)) = varied[..i].iter().find_map(|other| Some((other, key.overlap(other)?))) {
            let problem = format!("{} varies {theirs} too", other.given);
            return Err(Error::invalid(&key.given, problem, "give one of them"));
        }
        let sets_it = |set: &&Setting| key.keys().any(|own| is_within(&set.key, own));
        if let Some(set) = sets.iter().find(sets_it) {
            let problem = format!("{} replaces {}", key.given, set.key);
            return Err(Error::invalid(&set.given, problem, "give one of them"));
        }
    }
    Ok(())
}

impl Varied {
    /// The keys that its values set.
    fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|value| value.setting.key.as_str())
    }

    /// Returns a key of `other` that this one sets as well, or a table around it or a key in it.
    fn overlap<'a>(&self, other: &'a Self) -> Option<&'a str> {
        let shared = |theirs: &&str| self.keys().any(|own| is_within(own, theirs) || is_within(theirs, own));
        other.keys().find(shared)
    }

    /// Reads the `KEY=[V, …]` of `--vary`.
    fn parse(text: &str) -> Result<Self> {
        let Setting { given, key, value, .. } = Setting::parse("--vary", text)?;
        let refuse = |problem: &str, remedy: &str| Err(Error::invalid(&given, problem.to_owned(), remedy.to_owned()));
        if key == "seed" {
            return refuse("a run is repeated with other seeds by --seeds", "give --seeds N");
        }
        let Value::Array(values) = value else {
            return refuse(
                "the value is not an array",
                r#"write a TOML array, with quotes around text, such as strategy.follow=["last", "mean"]"#,
            );
        };
        if values.is_empty() {
            return refuse("the array is empty", "give one value or more");
        }
        let labelled = |value: Value| {
            let text = match value {
                Value::Float(number) => format!("{number:?}"),
                _ => value.to_string(),
            };
            let setting = Setting { given: format!("--vary {key}={text}"), key: key.clone(), value, text: None };
            Labelled { label: setting.value.as_str().map_or(text, str::to_owned), setting }
        };
        let values = values.into_iter().map(labelled).collect();
        Ok(Self { given, column: key, values })
    }

    /// Returns the widths of `--widths`, each a setting that replaces other widths and leaves groups and what stages follow.
    fn of_widths(widths: &[Width]) -> Self {
        let labelled = |width: &Width| {
            let label = width.to_string();
            let (key, value) = match *width {
                // A width above every integer of TOML is as wrong as the largest one.
                Width::Number(width) => ("strategy.width", Value::Integer(width.try_into().unwrap_or(i64::MAX))),
                Width::EndToEnd => ("strategy.name", Value::from("end_to_end")),
            };
            Labelled {
                setting: Setting { given: format!("--widths {label}"), key: key.to_owned(), value, text: None },
                label,
            }
        };
        let values: Vec<Labelled> = widths.iter().map(labelled).collect();
        let labels: Vec<&str> = values.iter().map(|value| value.label.as_str()).collect();
        Self { given: format!("--widths {}", labels.join(",")), column: WIDTH.to_owned(), values }
    }
}

#[cfg(test)]
mod tests {
    use interlock::tools::strategy::{FollowConfig, StrategyConfig, StrategyName};

    use super::*;
    use crate::{BuiltIn, arguments::Source, config::load};

    fn all(sets: &[&str], widths: &[Width], vary: &[&str]) -> Result<Vec<(Combination, ConfigOf<BuiltIn>)>> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let source = Source { config: None, sets: owned(sets) };
        let vary = owned(vary);
        let (widths, devices) = (widths.to_vec(), Vec::new());
        combinations::<BuiltIn>(&Compare { source, widths, vary, devices, seeds: None, out: None, json: false })
    }

    fn labels(combinations: &[(Combination, ConfigOf<BuiltIn>)]) -> Vec<Vec<&str>> {
        let labels = combinations.iter().map(|(combination, _)| combination.labels.iter());
        labels.map(|labels| labels.map(|(_, label)| label.as_str()).collect()).collect()
    }

    #[test]
    fn every_value_of_a_key_meets_every_value_of_the_others() {
        let vary = [r#"strategy.follow=["last", "mean", [0.7, 0.3]]"#, "strategy.group=[1,2]"];
        let six = all(&["seed=5", "heads.arch=fc"], &[], &vary).unwrap();
        let expected =
            [["last", "1"], ["last", "2"], ["mean", "1"], ["mean", "2"], ["[0.7, 0.3]", "1"], ["[0.7, 0.3]", "2"]];
        assert_eq!(labels(&six), expected);
        let (combination, config) = &six[3];
        assert_eq!(combination.labels[0].0, "strategy.follow");
        assert_eq!(combination.given, r#"--vary strategy.follow="mean" --vary strategy.group=2"#);
        assert_eq!(combination.varied.to_string(), "\"strategy.follow\" = \"mean\"\n\"strategy.group\" = 2\n");
        assert_eq!(combination.width, None);
        let sets = ["seed=5", "heads.arch=fc", "strategy.follow=mean", "strategy.group=2"].map(str::to_owned);
        assert_eq!(*config, load::<BuiltIn>(None, &sets).unwrap());
        // A list of weights replaces the file's name of a strategy, in its own combinations only.
        let names: Vec<_> = six.iter().map(|(_, config)| config.strategy.name).collect();
        let pairwise = Some(StrategyName::Pairwise);
        assert_eq!(names, [pairwise, pairwise, pairwise, pairwise, None, None]);
        assert!(six.iter().all(|(_, config)| config.strategy.build().is_ok()));
    }

    #[test]
    fn whole_tables_replace_the_strategy() {
        let vary = r#"strategy=[{width=1}, {width=2, follow="mean"}, {name="local", group=2}]"#;
        let three = all(&[], &[], &[vary]).unwrap();
        let expected = ["{ width = 1 }", r#"{ follow = "mean", width = 2 }"#, r#"{ group = 2, name = "local" }"#];
        assert_eq!(labels(&three), expected.map(|label| [label]));
        let local = StrategyConfig { name: Some(StrategyName::Local), group: Some(2), ..StrategyConfig::default() };
        assert_eq!(three[2].1.strategy, local);
        assert_eq!(three[0].1.strategy, StrategyConfig { width: Some(1), ..StrategyConfig::default() });
    }

    #[test]
    fn widths_have_a_column_of_their_own_and_leave_groups_and_what_is_followed() {
        let rates = "optimizer.lr=[0.1, 0.00002]";
        let sets = ["strategy.group=2", "strategy.follow=mean"];
        let widths = all(&sets, &[Width::Number(3), Width::EndToEnd], &[rates]).unwrap();
        assert_eq!(labels(&widths), [["3", "0.1"], ["3", "2e-5"], ["e2e", "0.1"], ["e2e", "2e-5"]]);
        let (last, _) = &widths[3];
        assert_eq!((last.labels[0].0.as_str(), last.width.as_deref()), ("width", Some("e2e")));
        assert_eq!(last.given, "--widths e2e --vary optimizer.lr=2e-5");
        let expected = ["strategy.width=3", "strategy.name=end_to_end"].map(|width| {
            ["optimizer.lr=0.1", "optimizer.lr=2e-5"].map(|rate| {
                let sets = [sets[0], sets[1], width, rate].map(str::to_owned);
                load::<BuiltIn>(None, &sets).unwrap()
            })
        });
        let configs: Vec<&ConfigOf<BuiltIn>> = widths.iter().map(|(_, config)| config).collect();
        assert_eq!(configs, expected.as_flattened().iter().collect::<Vec<_>>());
        let StrategyConfig { group, follow, .. } = &widths[0].1.strategy;
        assert_eq!((*group, follow), (Some(2), &Some(FollowConfig::Mean)));
        // Groups and widths are a product too.
        let product = all(&[], &[Width::Number(1), Width::Number(2)], &["strategy.group=[1, 2]"]).unwrap();
        assert_eq!(labels(&product), [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]);
    }

    #[test]
    fn configuration_alone_is_one_combination() {
        let one = all(&["steps=3"], &[], &[]).unwrap();
        assert_eq!((one.len(), one[0].0.labels.len(), one[0].0.given.as_str()), (1, 0, "configuration"));
        assert_eq!(one[0].1, load::<BuiltIn>(None, &["steps=3".to_owned()]).unwrap());
    }

    #[test]
    fn wrong_options_are_refused_and_named() {
        let refused = |sets: &[&str], widths: &[Width], vary: &[&str], words: &[&str]| {
            let error = all(sets, widths, vary).unwrap_err();
            let message = error.to_string();
            assert!(error.is_refusal() && words.iter().all(|word| message.contains(word)), "{message}");
        };
        refused(&[], &[], &["strategy.group"], &["--vary strategy.group: there is no ="]);
        refused(&[], &[], &["strategy.group=2"], &["--vary strategy.group=2: the value is not an array"]);
        refused(&[], &[], &["strategy.follow=[last, mean]"], &["not an array", "with quotes around text"]);
        refused(&[], &[], &["strategy.group=[]"], &["--vary strategy.group=[]: the array is empty"]);
        refused(&[], &[], &["seed=[1, 2]"], &["--vary seed=[1, 2]", "--seeds"]);
        refused(&[], &[], &["strategy.group=[1, 2, 1]"], &["1 is given twice"]);
        refused(&[], &[Width::EndToEnd; 2], &[], &["--widths e2e,e2e: e2e is given twice"]);
        refused(&[], &[], &["colour=[1]"], &["--vary colour=1: there is no key colour"]);
        refused(&["steps=1"], &[], &["strategy.colour=[1]"], &["--vary strategy.colour=1: strategy has no key colour"]);
        refused(
            &[],
            &[],
            &["strategy.group=[1, \"two\"]"],
            &["--vary strategy.group=\"two\"", "strategy.group is \"two\""],
        );
        refused(&[], &[], &["seed.x=[1]"], &["--vary seed.x=1: seed is a value"]);
        let group = ["strategy.group=[1]", "strategy.group=[2]"];
        refused(&[], &[], &group, &["--vary strategy.group=[2]: --vary strategy.group=[1] varies strategy.group too"]);
        let within = ["strategy.group=[1]", "strategy=[{width=1}]"];
        refused(&[], &[], &within, &["--vary strategy=[{width=1}]: --vary strategy.group=[1] varies"]);
        let width = [Width::Number(1)];
        refused(
            &[],
            &width,
            &["strategy=[{width=2}]"],
            &["--vary strategy=[{width=2}]: --widths 1 varies strategy.width"],
        );
        refused(&[], &[Width::EndToEnd], &["strategy.name=[\"local\"]"], &["--widths e2e varies strategy.name too"]);
        refused(&["strategy.width=2"], &width, &[], &["--set strategy.width=2: --widths 1 replaces strategy.width"]);
        // Neither is within the other.
        assert!(all(&["strategy={width=2}"], &[], &["strategy.group=[1]"]).is_ok());
        assert!(all(&[], &[], &["strategy.width=[1]", "strategy.widths=[[1, 1]]"]).is_ok());
    }
}
