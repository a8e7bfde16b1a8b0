//! Tests of wrong configurations: what is said about them, and that nothing is written.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{fs, net::TcpListener, path::Path, process::Command};

use common::{SMALL, done, err, interlock, out, refused};
use tempfile::TempDir;
use toml::Table;

/// Words of the source that mean nothing to readers of configurations.
const OF_THE_SOURCE: [&str; 12] =
    ["Config", "usize", "u64", "i64", "f64", "enum", "struct", "variant", "expected", "invalid type", "field", "map"];

/// Returns the configuration that `interlock config` prints with these values of `--set`.
fn printed(folder: &Path, sets: &[&str]) -> Table {
    let sets = sets.iter().map(|set| format!("--set={set}"));
    let arguments: Vec<String> = ["config".to_owned()].into_iter().chain(sets).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    toml::from_str(&done(&interlock(folder, &arguments))).unwrap()
}

/// Returns what `interlock config` says of a wrong value of `--set`.
fn said(folder: &Path, set: &str) -> String {
    let output = interlock(folder, &["config", "--set", set]);
    assert_eq!(output.status.code(), Some(2), "{set}: {}", out(&output));
    err(&output)
}

#[test]
fn another_kind_begins_its_table_with_its_own_defaults() {
    let folder = TempDir::new().unwrap();
    let printed = |sets: &[&str]| printed(folder.path(), sets);
    let optimizer = |sets: &[&str]| printed(sets)["optimizer"].to_string();
    let adamw = r#"{ kind = "adamw", lr = 0.001, betas = [0.9, 0.999], eps = 1e-8, weight_decay = 0.0 }"#;
    let adamw: toml::Value = toml::from_str::<Table>(&format!("value = {adamw}")).unwrap().remove("value").unwrap();
    // The built-in configuration has SGD with a momentum of Nesterov's.
    assert_eq!(printed(&[])["optimizer"]["nesterov"].as_bool(), Some(true));
    for sets in [["optimizer.kind=adamw"], ["optimizer=adamw"]] {
        assert_eq!(optimizer(&sets), adamw.to_string());
    }
    // The order of settings does not matter, and the present kind changes nothing.
    for sets in [["optimizer.lr=0.01", "optimizer=adamw"], ["optimizer=adamw", "optimizer.lr=0.01"]] {
        assert_eq!(printed(&sets)["optimizer"]["lr"].as_float(), Some(0.01), "{sets:?}");
    }
    assert_eq!(optimizer(&["optimizer=sgd"]), optimizer(&[]));
    // Groups of parameters are not constants of a rule.
    let config = "[data]\nkind = \"shakespeare\"\n[model]\nkind = \"mlp\"\nhidden = [8]\n[optimizer]\nnesterov = true\n\
                  stages = [{ stage = 0, momentum = 0.5 }]\ngroups = [{ match = [\"*.bias\"], frozen = true }]\n";
    fs::write(folder.path().join("groups.toml"), config).unwrap();
    let shown = done(&interlock(folder.path(), &["config", "-c", "groups.toml", "-s", "optimizer=adamw"]));
    let shown: Table = toml::from_str(&shown).unwrap();
    let optimizer = shown["optimizer"].as_table().unwrap();
    assert!(optimizer.contains_key("groups") && !optimizer.contains_key("stages"), "{shown}");

    assert_eq!(printed(&["data=shakespeare"])["data"]["kind"].as_str(), Some("shakespeare"));
    assert_eq!(printed(&["lr_schedule=cosine"])["lr_schedule"]["kind"].as_str(), Some("cosine"));
    assert_eq!(printed(&["strategy=local"])["strategy"]["name"].as_str(), Some("local"));
    assert_eq!(printed(&["model=mlp", "model.hidden=[8]"])["model"]["kind"].as_str(), Some("mlp"));
}

#[test]
fn kinds_are_compared_each_with_its_own_defaults() {
    let folder = TempDir::new().unwrap();
    let vary = ["compare", "--out", "table", "--set=steps=2", "--vary", r#"optimizer.kind=["sgd", "adamw"]"#];
    let small: Vec<&str> = SMALL.into_iter().filter(|set| !set.contains("epochs")).collect();
    let shown = done(&interlock(folder.path(), &[&vary[..], &small].concat()));
    assert!(shown.contains("sgd") && shown.contains("adamw"), "{shown}");
}

#[test]
fn wrong_values_are_refused_in_the_words_of_the_configuration() {
    let folder = TempDir::new().unwrap();
    for (set, words) in [
        ("optimizer=adam", r#"optimizer.kind is "adam"; did you mean "adamw"? use "sgd" or "adamw""#),
        (
            "optimizer=5",
            r#"optimizer is 5; it is a table such as { kind = "adamw", lr = 0.001 }; `interlock config optimizer` lists its keys"#,
        ),
        (
            "seed=18446744073709551616",
            "seed is 18446744073709551616, too large; use a whole number up to 18446744073709551615",
        ),
        ("seed=-1", "seed is -1; use a whole number from 0 on or a string of digits"),
        ("seed=x1", r#"seed is "x1"; use a whole number from 0 on or a string of digits"#),
        (
            "steps=18446744073709551615",
            "steps is 18446744073709551615, too large; use a whole number up to 9223372036854775807",
        ),
        ("epochs=0", "epochs is 0; use a whole number from 1 on"),
        ("optimizer.kind=5", r#"optimizer.kind is 5; use "sgd" or "adamw""#),
        ("data=shakespear", r#"data.kind is "shakespear"; did you mean "shakespeare"?"#),
        ("data=3", "data is 3; it is a table"),
        ("model=perceptron", r#"model.kind is "perceptron"; use "mlp", "resnet" or "transformer""#),
        (
            "lr_schedule=step",
            r#"lr_schedule of kind = "step" has no every; give every, a whole number from 1 on (Steps between two changes)"#,
        ),
        ("strategy=nearby", r#"strategy.name is "nearby"; use "local", "pairwise""#),
        ("heads=all", r#"heads is "all"; it is a table such as { train = "all" }"#),
        ("clip=1", "clip is 1; it is a table such as { max_norm = 1.0 }; `interlock config clip` lists its keys"),
        ("partition=4", "partition is 4; it is a table such as { stages = 4 }"),
        ("early_stopping=3", "early_stopping is 3; it is a table such as { patience = 5 }"),
        ("ema=0.999", "ema is 0.999; it is a table such as { decay = 0.999 }"),
        ("pipeline=one_f_one_b", r#"it is a table such as { schedule = "one_f_one_b" }"#),
        ("strategy.width=\"e2e\"", r#"strategy.width is "e2e"; use a whole number from 1 on"#),
        ("strategy.follow=first", r#"use "last", "mean" or a list of numbers"#),
        ("strategy.adaptive.every=5", "strategy.adaptive has no window; give window, a whole number from 1 on"),
        ("batch_size=-1", "batch_size is -1; use a whole number from 1 on"),
        ("batch_size=3.5", "batch_size is 3.5; use a whole number from 1 on"),
        ("optimizer.lr=fast", r#"optimizer.lr is "fast"; use a number"#),
        ("optimizer.nesterov=1", "optimizer.nesterov is 1; use true or false"),
        ("optimizer={kind=\"adamw\", betas=[0.9]}", "optimizer.betas is a list; use a list of 2 numbers"),
        ("optimizer.groups=[{match=\"*.bias\"}]", r#"optimizer.groups[0].match is "*.bias"; use a list of strings"#),
        ("strategy.follow=[-1.0, 0.3]", "strategy.follow[0] is -1.0; use a number from 0 on"),
        ("strategy.widths=[1, true]", "strategy.widths[1] is true; use a whole number from 1 on"),
        ("seed={a=1}", "seed is a table; use a whole number from 0 on or a string of digits"),
        ("dtype=f16", r#"dtype is "f16"; use "f32" or "bf16""#),
        ("name=[3]", "name is a list; use a string"),
        ("seeed=3", "there is no key seeed; did you mean seed?"),
        ("data.normalize=fast", r#"data.normalize is "fast"; use true, false or a table"#),
    ] {
        let message = said(folder.path(), set);
        assert!(
            message.starts_with(&format!("error: --set {set}: {words}")) || message.contains(words),
            "{set}: {message}"
        );
        assert!(message.contains(&format!("--set {set}")), "{set}: {message}");
        for word in OF_THE_SOURCE {
            assert!(!message.contains(word), "{set}: {word:?} is in {message}");
        }
    }
}

#[test]
fn seeds_beyond_the_integers_of_toml_are_kept_as_text() {
    let folder = TempDir::new().unwrap();
    let seed = "18446744073709551615";
    let set = format!("--set=seed={seed}");
    let small: Vec<&str> = SMALL.into_iter().filter(|set| !set.contains("epochs")).collect();
    let train = [&["train", "--quiet", "--out", "run", "--set=steps=1", &set], &small[..]].concat();
    done(&interlock(folder.path(), &train));
    let config = fs::read_to_string(folder.path().join("run/config.toml")).unwrap();
    assert!(config.contains(&format!("seed = \"{seed}\"")), "{config}");
    assert_eq!(done(&interlock(folder.path(), &["config", "-c", "run/config.toml"])), config);
    done(&interlock(folder.path(), &["eval", "run"]));
    done(&interlock(folder.path(), &["report", "run"]));
    let page = fs::read_to_string(folder.path().join("run/report.html")).unwrap();
    assert!(page.contains(&format!("seed {seed}")));
    // The seed after the last one is the first.
    let compare = ["compare", "--seeds", "2", "--json", "--out", "seeds", "--set=steps=1", &set];
    let compared = done(&interlock(folder.path(), &[&compare[..], &small].concat()));
    let compared: serde_json::Value = serde_json::from_str(&compared).unwrap();
    assert_eq!(
        [&compared["runs"][0]["seed"], &compared["runs"][1]["seed"]],
        [&serde_json::json!(u64::MAX), &serde_json::json!(0)]
    );
}

#[test]
fn options_that_are_keys_are_refused_with_the_setting() {
    let folder = TempDir::new().unwrap();
    for (arguments, tip) in [
        (&["train", "--epochs", "2"][..], "-s epochs=2"),
        (&["compare", "--batch-size=8"], "-s batch_size=8"),
        (&["--seed", "3"], "train -s seed=3"),
    ] {
        refused(
            folder.path(),
            arguments,
            &["unexpected argument", &format!("tip: to set a key of the configuration, use '{tip}'")],
        );
    }
    refused(
        folder.path(),
        &["lr-find", "-s", "steps=30"],
        &["--set steps=30: lr-find has a length of its own; use --steps"],
    );
    refused(folder.path(), &["lr-find", "-s", "epochs=3"], &["--set epochs=3", "--steps"]);
}

#[test]
fn file_without_sections_is_refused_with_an_example() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("two.toml"), "seed = 1\nsteps = 3\n").unwrap();
    let output = interlock(folder.path(), &["config", "-c", "two.toml"]);
    let message = err(&output);
    assert!(
        message.starts_with("error: two.toml: there is no [data]; add, for example:\n\n[data]\nkind = "),
        "{message}"
    );
    // The example makes the file whole.
    let (_, example) = message.split_once("example:\n\n").unwrap();
    fs::write(folder.path().join("whole.toml"), format!("seed = 1\nsteps = 3\n{example}")).unwrap();
    done(&interlock(folder.path(), &["config", "-c", "whole.toml"]));
}

#[test]
fn wrong_place_is_the_line_of_the_file_or_the_one_setting() {
    let folder = TempDir::new().unwrap();
    let with = |config: &str, sets: &[&str], words: &str| {
        fs::write(folder.path().join("a.toml"), config).unwrap();
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let output = interlock(folder.path(), &[&["config", "-c", "a.toml"], &sets[..]].concat());
        let message = err(&output);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.starts_with(&format!("error: {words}")), "{message}");
    };
    let model = "[model]\nkind = \"mlp\"\nhidden = [8]\n";
    let data = "[data]\nkind = \"fashion-mnist-mini\"\n";
    let wrong = format!("{model}[data]\nkind = \"cifar11\"\n");
    with(&wrong, &[], "a.toml, line 5: data.kind is \"cifar11\"; did you mean \"cifar10\"?");
    with(&wrong, &["steps=3"], "a.toml, line 5: data.kind is \"cifar11\"");
    let right = format!("{model}{data}");
    with(&right, &["steps=3", "batch_size=-1", "seed=2"], "--set batch_size=-1: batch_size is -1");
    with(&right, &["seed=2", "data.kind=idx"], "--set data.kind=idx: data of kind = \"idx\" has no path");
    with(
        &right,
        &["steps=3", "optimizer=adamw", "optimizer.momentum=0.9"],
        "--set optimizer.momentum=0.9: optimizer.momentum",
    );
    let groups = format!("{right}[optimizer]\ngroups = [\n  {{ match = [\"*\"] }},\n  {{ match = 3 }},\n]\n");
    with(&groups, &["steps=3"], "a.toml, line 9: optimizer.groups[1].match is 3; use a list of strings");
    with(
        &format!("{right}[lr_schedule]\nkind = \"step\"\nevery = 3\n"),
        &[],
        "a.toml, line 6: lr_schedule of kind = \"step\" has no gamma",
    );
    with("seed = [\n", &["steps=3"], "a.toml: TOML parse error at line");
    with(&right, &["steps=3", "data={kind=\"text\", path=\"x\", tokenizer=\"words\"}"], "--set data={kind=\"text\"");
}

#[test]
fn keys_that_do_nothing_are_refused() {
    let folder = TempDir::new().unwrap();
    let refused = |sets: &[&str], words: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|set| format!("--set={set}")).collect();
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        refused(folder.path(), &[&["train", "--out", "run"], &SMALL[..], &sets].concat(), words);
    };
    let of_sgd = r#"is a key of kind = "sgd"; optimizer is of kind = "adamw"; leave it out, or choose another kind (the keys are lr, betas, eps, weight_decay, groups, stages)"#;
    refused(&["optimizer={kind=\"adamw\", momentum=0.9}"], &[&format!("optimizer.momentum {of_sgd}")]);
    refused(&["optimizer={kind=\"adamw\", nesterov=false}"], &[&format!("optimizer.nesterov {of_sgd}")]);
    refused(
        &["optimizer.betas=[0.9, 0.99]"],
        &[r#"optimizer.betas is a key of kind = "adamw"; optimizer is of kind = "sgd""#],
    );
    refused(
        &["lr_schedule={kind=\"cosine\", gamma=0.1}"],
        &[r#"lr_schedule.gamma is a key of kind = "step" or "multi_step"; lr_schedule is of kind = "cosine""#],
    );
    refused(&["lr_schedule.gamma=0.1"], &["lr_schedule.gamma"]);
    refused(
        &["data.tokenizer=chars"],
        &[r#"data.tokenizer is a key of kind = "shakespeare" or "text"; data is of kind = "fashion-mnist-mini""#],
    );
    refused(&["model.hidden=[8]"], &[r#"model.hidden is a key of kind = "mlp""#]);
    refused(
        &["optimizer.groups=[{match=[\"conv1.wieght\"], frozen=true}]"],
        &[
            "optimizer.groups[0].match: \"conv1.wieght\" matches no parameter; the names most like it are conv1.weight, ",
        ],
    );
    refused(
        &["optimizer.groups=[{match=[\"*\"], frozen=true, lr_scale=2}]"],
        &["optimizer.groups[0].frozen: true beside"],
    );
    refused(&["optimizer.groups=[{match=[\"*\"]}]"], &["optimizer.groups[0]: it sets nothing"]);
    refused(
        &["optimizer.groups=[{match=[\"*.weight\", \"*.bias\"], frozen=true}]"],
        &["optimizer.groups: all parameters"],
    );
    refused(&["optimizer.stages=[{stage=1}]"], &["optimizer.stages[0]: stage 1 has no constant of its own"]);
    // In a file, the line is named.
    let config = "[data]\nkind = \"fashion-mnist-mini\"\n[model]\nkind = \"mlp\"\nhidden = [8]\n[optimizer]\nkind = \"adamw\"\nmomentum = 0.9\n";
    fs::write(folder.path().join("adamw.toml"), config).unwrap();
    let output = interlock(folder.path(), &["train", "-c", "adamw.toml", "--out", "run"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).starts_with("error: adamw.toml, line 8: optimizer.momentum is a key of"), "{}", err(&output));
}

#[test]
fn bad_settings_are_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let units = ["train", "--out", "run", "--set=partition.units_per_stage=[1, 1]"];
    refused(folder.path(), &units, &["units_per_stage", "adds up to 2 units, the model has 5"]);
    refused(folder.path(), &["train", "--out", "run", "--set=steps=0"], &["steps", "from 1 on"]);
    let refused = |sets: &[&str], words: &[&str]| {
        let sets: Vec<String> = sets.iter().map(|s| format!("--set={s}")).collect();
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        refused(folder.path(), &[&["train", "--out", "run"], &SMALL[..], &sets].concat(), words);
    };
    refused(&["strategy.width=0"], &["strategy.width is 0", "from 1 on"]);
    refused(&["strategy.width=3"], &["width 3", "1 (local) to 2"]);
    refused(&["strategy.widths=[1]"], &["strategy.widths", "1 widths for 2 stages"]);
    let schedule = |phases: &str| format!("strategy.width_schedule=[{phases}]");
    refused(&[&schedule("{from_step=1, width=1}")], &["strategy.width_schedule", "begins at step 1", "step 0"]);
    refused(
        &[&schedule("{from_step=0, width=1}, {from_step=5, width=3}")],
        &["width 3", "from step 5", "1 (local) to 2"],
    );
    refused(&[&schedule("{from_step=0, width=1, widths=[1, 1]}")], &["both width and widths", "give one"]);
    refused(&[&schedule("{from_step=0, width=1}"), "strategy.width=1"], &["width_schedule", "give one of them"]);
    refused(&["strategy.end_to_end_every=0"], &["strategy.end_to_end_every", "from 1 on"]);
    refused(&["strategy.name=adaptive"], &["strategy.adaptive", "every, window and below"]);
    refused(&["strategy.adaptive={every=0, window=1, below=0}"], &["strategy.adaptive.every", "from 1 on"]);
    refused(&["strategy.adaptive={every=1, window=1, below=0, max_width=3}"], &["max_width", "1 (local) to 2"]);
    refused(&["partition.stages=9"], &["partition.stages", "1 to 4"]);
    refused(
        &["optimizer.learning_rate=1"],
        &["optimizer of kind = \"sgd\" has no key learning_rate", "the keys are lr, momentum"],
    );
    refused(&["batch_size=\"many\""], &["batch_size is \"many\"; use a whole number from 1 on"]);
    refused(&["optimizer.lr=0"], &["optimizer.lr", "above 0"]);
    refused(&["optimizer.lr=-0.1"], &["optimizer.lr", "above 0"]);
    refused(&["batch_size=0"], &["batch_size", "from 1 on"]);
    refused(&["batch_size=-4"], &["batch_size"]);
    refused(&["devices=[\"tpu\"]"], &["tpu", "cpu"]);
    refused(&["devices=[\"cuda:0\"]"], &["cuda:0", "--features cuda"]);
    refused(&["devices=[]"], &["devices: the list is empty", "cpu", "auto"]);
    refused(&["devices=tpu,cpu"], &["device", "tpu", "cpu"]);
    refused(&["devices=3"], &["devices", "auto", "cpu:threads=2"]);
    refused(&["heads.arch=conv8_fancy"], &["fancy"]);
    refused(&["heads.arch=block_gbpl_fc"], &["block", "only for heads of a Transformer", "use convN"]);
    refused(&["heads.arch=basic8s0_gbpl_fc"], &["heads.arch", "stride of part 1", "it is 0"]);
    refused(&["heads.every=0"], &["heads.every", "from 1 on"]);
    refused(&["strategy.width=1", "heads.every=2"], &["no head in the window of stage 0", "a larger width"]);
    refused(&[r#"heads.archs=["fc"]"#, "heads.arch=fc"], &["heads.archs", "arch is given too"]);
    refused(&["heads.readout=shared", "strategy.width=1"], &["heads.readout", "has a bias", "readout = \"own\""]);
    refused(&["heads.readout_refresh=7"], &["heads.readout_refresh", "readout = \"shared\""]);
    refused(&["lr_schedule.kind=linear"], &["linear"]);
    refused(&["steps=1"], &["epochs", "steps are given too"]);
    refused(&["epochs=0"], &["epochs", "from 1 on"]);
    refused(&["eval_every=0"], &["eval_every", "from 1 on"]);
    refused(&["in_flight=0"], &["in_flight", "from 1 on"]);
    refused(&["recompute=[0, 2]"], &["recompute", "no stage 2", "0 to 1"]);
    refused(&["dtype=f16"], &["f16", "f32", "bf16"]);
    refused(&["precision=f16"], &["precision", "f16", "f32", "bf16"]);
    refused(&["precision=bf16", "dtype=f32"], &["dtype: f32, but cpu", "computes in bf16; leave dtype out"]);
    refused(&["devices=cpu:precision=bf16", "dtype=f32"], &["dtype: f32, but cpu:precision=bf16 computes in bf16"]);
    refused(&["precision=bf16", "devices=emulated"], &["device emulated", "f32 only", "leave precision out"]);
    refused(&["precision=bf16", "devices=cpu:layers=candle"], &["device cpu:layers=candle", "f32 on the CPU"]);
    refused(&["recompute=some"], &["recompute", "use true, false or a list of whole numbers"]);
    refused(&["micro_batches=0"], &["micro_batches", "from 1 on"]);
    refused(&["clip.max_norm=0"], &["clip.max_norm", "above 0"]);
    refused(&["init_from=nowhere"], &["init_from = nowhere: no such file or folder; name a safetensors file"]);
    refused(&["name=a/b"], &["name"]);
    refused(&["data.kind=cifar10", "data.path=nowhere"], &["nowhere"]);
}

#[test]
fn run_that_cannot_be_built_leaves_no_folder() {
    let folder = TempDir::new().unwrap();
    let gpt = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/shakespeare-gpt.toml");
    let gpt = gpt.to_str().unwrap();
    let small = [
        "--set=steps=2",
        "--set=data.limit=16",
        "--set=data.context=8",
        "--set=data.validation_fraction=0.002",
        "--set=model.width=16",
        "--set=partition.stages=4",
        "--set=heads.readout=shared",
    ];
    let short = "--set=heads.readout_refresh=2";
    let run = [&["train", "--out", "run", "--config", gpt], &small[..], &[short]].concat();
    refused(folder.path(), &run, &["heads.readout_refresh", "2"]);
    let vary = ["--vary", "heads.readout_refresh=[50, 2]"];
    let compare = [&["compare", "--out", "table", "--config", gpt], &small[..], &vary].concat();
    refused(folder.path(), &compare, &["--vary heads.readout_refresh=2: heads.readout_refresh"]);
}

#[test]
fn unknown_instructions_are_refused_by_every_command() {
    let folder = TempDir::new().unwrap();
    for arguments in [&["devices"][..], &["config"], &["plan"], &["train", "--out", "run"]] {
        for name in ["avx-2", "AVX2", ""] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_interlock"));
            command.args(arguments).env("INTERLOCK_CPU_INSTRUCTIONS", name).current_dir(folder.path());
            let output = command.output().unwrap();
            let message = err(&output);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
            let words = format!(
                "INTERLOCK_CPU_INSTRUCTIONS: unknown instructions {name:?}; write portable, avx2, avx512 or amx"
            );
            assert!(message.contains(&words), "{message}");
        }
    }
}

#[test]
fn port_in_use_is_refused_with_another_one() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let given = address.to_string();
    let output = interlock(folder.path(), &[&["train", "--out", "run", "--metrics", &given], &SMALL[..]].concat());
    let message = err(&output);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains(&format!("another process uses port {}", address.port())), "{message}");
    let (_, other) = message.trim_end().split_once("such as --metrics ").unwrap();
    assert_ne!(other, given);
    TcpListener::bind(other).unwrap();
}

#[test]
fn every_key_is_explained_in_whole_sentences() {
    let folder = TempDir::new().unwrap();
    let schema: serde_json::Value =
        serde_json::from_str(&done(&interlock(folder.path(), &["config", "--schema"]))).unwrap();
    let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    for key in keys {
        let shown = done(&interlock(folder.path(), &["config", key]));
        assert!(!shown.contains("[`") && !shown.contains("```") && !shown.contains("  kind: "), "{shown}");
        // A key of a table and its sentence.
        for line in shown.lines().filter(|line| line.starts_with("    ") && !line.contains("\": ")) {
            let (_, words) = line.trim_start().split_once(": ").unwrap_or_else(|| panic!("{key}: {line:?}"));
            assert!(words.ends_with('.'), "{key}: {line:?}");
        }
    }
    let explained = |key: &str| done(&interlock(folder.path(), &["config", key]));
    assert_eq!(explained("clip").matches("radient clipping").count(), 1, "{}", explained("clip"));
    let follow = "follow: The losses of its window that a stage follows: the last one (`\"last\"`), the mean of all (`\"mean\"`), or weights by distance, which set the width.";
    assert!(explained("strategy").contains(follow), "{}", explained("strategy"));
    assert!(explained("data.augment").contains("crop: Move the image"), "{}", explained("data.augment"));
    assert!(explained("optimizer").contains("kind = \"adamw\": Adam with decoupled weight decay; its keys:"));
    assert!(
        explained("optimizer.groups").contains("keys of each:\n    match: Patterns of names"),
        "{}",
        explained("optimizer.groups")
    );
    assert!(explained("optimizer.groups.frozen").contains("Whether the parameters"));
    assert!(explained("data.kind").contains("Images in the idx format"), "{}", explained("data.kind"));
    assert!(explained("optimizer.lr").contains("optimizer.lr (kind = \"adamw\")"), "{}", explained("optimizer.lr"));
}
