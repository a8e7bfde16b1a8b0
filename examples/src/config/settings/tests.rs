//! Tests of settings of the command line.

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
    let config = load(&["steps=5", "epochs=2", "name=2026"]).unwrap();
    assert_eq!((config.steps, config.epochs, config.name.as_str()), (Some(5), Some(2), "2026"));
    // Without a strategy, the default one is named.
    let config = load(&["strategy={}"]).unwrap();
    assert!(config.to_toml().unwrap().contains("[strategy]\nname = \"groups\"\n"));
    // Contradictory values on the command line remain an error.
    assert!(load(&["strategy.width=3", "strategy.name=local"]).unwrap().strategy.build().is_err());
}

#[test]
fn strategies_that_change_widths_are_read_and_written_and_replace_others() {
    let phases = "strategy.width_schedule=[{from_step=0, width=1}, {from_step=9, widths=[2,1], end_to_end_every=3}]";
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
fn key_that_is_set_replaces_those_that_it_excludes() {
    for (file, set, expected) in [
        ("epochs = 2", "steps=3", "steps = 3"),
        ("[partition]\nstages = 2", "partition.units_per_stage=[1]", "[partition]\nunits_per_stage = [1]"),
        ("[strategy]\nwidth = 3", "strategy.name=interlock", "[strategy]\nwidth = 3\nname = \"interlock\""),
        ("[strategy]\nwidth = 3", "strategy.name=local", "[strategy]\nname = \"local\""),
        ("[heads]\nreadout = \"shared\"\nreadout_refresh = 9", "heads.readout=own", "[heads]\nreadout = \"own\""),
        ("[data]\nvalidation_path = \"a\"", "data.validation_fraction=0.2", "[data]\nvalidation_fraction = 0.2"),
        ("[data]\nvalidation_fraction = 0.2", "data.validation_path=a", "[data]\nvalidation_path = \"a\""),
        ("[model]\ndims = [4, 2]", "model.hidden=[8]", "[model]\nhidden = [8]"),
        ("[model]\nhidden = [8]", "model.dims=[4, 2]", "[model]\ndims = [4, 2]"),
        ("[model]\nstem = \"cifar\"\nplanes = [4]", "model.preset=resnet20", "[model]\npreset = \"resnet20\""),
        (
            "[model]\nwidth = 8\nheads = 2\ndropout = 0.1",
            "model.preset=gpt2",
            "[model]\ndropout = 0.1\npreset = \"gpt2\"",
        ),
        // Keys that override a preset stay beside another one.
        (
            "[model]\npreset = \"resnet18\"\nstem = \"cifar\"",
            "model.preset=resnet34",
            "[model]\npreset = \"resnet34\"\nstem = \"cifar\"",
        ),
        (
            "[model]\npreset = \"resnet20\"",
            "model.blocks=[1, 1, 1]",
            "[model]\npreset = \"resnet20\"\nblocks = [1, 1, 1]",
        ),
    ] {
        let mut table: Table = toml::from_str(file).unwrap();
        apply(&mut table, set, &[set.to_owned()]).unwrap();
        assert_eq!(table, toml::from_str::<Table>(expected).unwrap(), "{file}, --set {set}");
    }
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
    refused("optimizer.kind=adam", "did you mean \"adamw\"?");
    refused("devices=3", "use \"auto\", a list of strings or a string, such as");
    refused("devices=[1]", "devices[0] is 1; use a string");
}
