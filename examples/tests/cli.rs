//! Tests of the command: exit codes, messages, files.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use common::{SMALL, done, err, interlock, json, out, refused, train};
use serde_json::Value;
use tempfile::TempDir;

/// A small run on text.
const TEXT: [&str; 7] = [
    "--set=steps=12",
    "--set=eval_every=12",
    "--set=data.limit=64",
    "--set=data.context=16",
    "--set=data.validation_fraction=0.002",
    "--set=model.width=16",
    "--set=partition.stages=2",
];

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs")
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/golden").join(name)
}

#[test]
#[cfg(not(feature = "full"))]
fn what_this_build_lacks_is_refused_with_the_feature() {
    let folder = TempDir::new().unwrap();
    if !cfg!(feature = "top") {
        refused(folder.path(), &["top"], &["top", "built without", "rebuild with --features top"]);
    }
    if !cfg!(feature = "images") {
        let data = "--set=data={kind=\"image-folder\", path=\"images\", size=32}";
        refused(folder.path(), &["train", "--out", "run", data], &["image files", "rebuild with --features images"]);
        assert!(!folder.path().join("run").exists());
    }
}

#[test]
fn run_is_trained_saved_and_evaluated_again() {
    let folder = TempDir::new().unwrap();
    let output = train(folder.path(), &[&SMALL[..], &["--report", "report.json"]].concat());
    let shown = done(&output);
    assert!(shown.contains("accuracy of the last stage") && shown.contains("the run is in run"), "{shown}");

    let report = json(&folder.path().join("report.json"));
    assert_eq!(report, json(&folder.path().join("run/report.json")));
    let accuracy = report["final"]["accuracy"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&accuracy));
    assert!(report["final"]["loss"].is_f64() && report["examples_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!((report["steps"].as_u64(), report["seed"].as_u64()), (Some(3), Some(1)));
    let stages = report["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 2);
    for (k, stage) in stages.iter().enumerate() {
        assert_eq!(stage["index"].as_u64(), Some(k as u64));
        assert_eq!(stage["follows"].as_u64(), Some(1));
        assert!(
            stage["device"].as_str().unwrap().starts_with("cpu:threads=")
                && stage["loss"].is_f64()
                && stage["accuracy"].is_f64()
        );
    }
    assert_eq!(json(&folder.path().join("run/status.json"))["state"], "finished");
    assert!(fs::read_to_string(folder.path().join("run/run.log")).unwrap().contains("finished"));
    let index = json(&folder.path().join("run/model/model.safetensors.index.json"));
    assert_eq!(index["weight_map"]["conv1.weight"], "model-00001-of-00002.safetensors");
    assert_eq!(index["weight_map"]["fc.weight"], "model-00002-of-00002.safetensors");

    let scored = done(&interlock(folder.path(), &["eval", "run", "--json"]));
    let heads: Value = serde_json::from_str(&scored).unwrap();
    for (head, stage) in heads.as_array().unwrap().iter().zip(stages) {
        assert_eq!(head["accuracy"], stage["accuracy"]);
    }
    let early = done(&interlock(folder.path(), &["eval", "run", "--head", "0", "--json"]));
    let heads: Value = serde_json::from_str(&early).unwrap();
    assert_eq!((heads.as_array().unwrap().len(), &heads[0]["accuracy"]), (1, &stages[0]["accuracy"]));
    refused(folder.path(), &["eval", "run", "--head", "7"], &["stage 7 has no head", "0, 1"]);
    // The former name of the option.
    assert_eq!(done(&interlock(folder.path(), &["eval", "run", "--stage", "0", "--json"])), early);
    refused(folder.path(), &["generate", "run", "--prompt", "x"], &["on images", "interlock predict"]);

    // The configuration and the weights of the run start another one.
    let again = ["train", "--quiet", "--out", "again", "--config", "run/config.toml", "--set", "init_from=run"];
    assert_eq!(done(&interlock(folder.path(), &again)), "");
}

#[test]
fn timeline_is_written_as_picture_or_trace() {
    let folder = TempDir::new().unwrap();
    let train = |name: &str, more: &[&str]| -> String {
        let arguments = [&["train", "--quiet", "--out", name], &SMALL[..], more].concat();
        done(&interlock(folder.path(), &arguments));
        fs::read_to_string(folder.path().join(more[1])).unwrap()
    };
    let svg = train("a", &["--trace", "a.svg"]);
    assert!(svg.starts_with("<svg") && svg.contains("fashion-mnist") && svg.contains("steps 0 to 2"), "{svg}");
    // The example is the first action with a loss, of either stage; narrow rectangles have numbers only.
    assert!(
        svg.contains(" gradient of micro-batch 0 for the loss of stage 1") || svg.contains("numbers are micro-batches"),
        "{svg}"
    );
    let both = ["--trace", "b.json", "--trace", "b.svg", "--trace-steps", "1"];
    let trace: Value = serde_json::from_str(&train("b", &both)).unwrap();
    assert!(fs::read_to_string(folder.path().join("b.svg")).unwrap().contains("step 2,"));
    let slices: Vec<&Value> =
        trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").collect();
    // The last step of two stages of width 2 with a probe: forward pass, head, parameter gradient and update of both, and the input gradient of the
    // last one.
    assert_eq!(slices.len(), 4 * 2 + 1);
    assert!(slices.iter().all(|slice| slice["args"]["step"] == 2), "{slices:?}");

    let refused = |more: &[&str], words: &[&str]| {
        refused(folder.path(), &[&["train", "--out", "run"], &SMALL[..], more].concat(), words);
    };
    refused(&["--trace", "a.png"], &["--trace a.png", ".svg", ".json"]);
    refused(&["--trace", "svg"], &["--trace svg", ".svg", ".json"]);
    refused(&["--trace", "nowhere/a.svg"], &["--trace nowhere/a.svg", "no folder nowhere"]);
    fs::create_dir(folder.path().join("folder.svg")).unwrap();
    refused(&["--trace", "folder.svg"], &["--trace folder.svg", "it is a folder"]);
    refused(&["--report", "nowhere/a.json"], &["--report nowhere/a.json", "no folder nowhere"]);
    refused(&["--trace", "a.svg", "--trace-steps", "0"], &["--trace-steps", "0 is not in 1.."]);
    refused(&["--trace-steps", "2"], &["--trace <FILE>"]);
}

#[test]
fn same_seed_gives_the_same_run_and_another_seed_another() {
    let folder = TempDir::new().unwrap();
    let loss = |name: &str, more: &[&str]| {
        let arguments = [&["train", "--quiet", "--out", name], &SMALL[..], more].concat();
        done(&interlock(folder.path(), &arguments));
        json(&folder.path().join(name).join("report.json"))["final"]["loss"].as_f64().unwrap()
    };
    let first = loss("a", &[]);
    assert_eq!(first, loss("b", &["--set=devices=[\"cpu:threads=1\", \"cpu:threads=2\"]", "--set=in_flight=1"]));
    let rounded = loss("d", &["--set=dtype=bf16"]);
    assert!(rounded != first && (rounded - first).abs() < 0.1 * first, "{rounded} {first}");
    let computed = loss("e", &["--set=precision=bf16"]);
    assert!(computed != first && computed != rounded && (computed - first).abs() < 0.1 * first, "{computed} {first}");
    let devices = "--set=devices=[\"cpu:threads=1\", \"cpu:threads=2,precision=bf16\"]";
    assert_eq!(computed, loss("f", &["--set=precision=bf16", devices, "--set=in_flight=1"]));
    assert_ne!(computed, loss("g", &["--set=precision=bf16", "--set=devices=cpu:precision=f32"]));
    assert_ne!(first, loss("c", &["--set=seed=2"]));
}

#[test]
fn text_model_is_trained_and_continues_a_text() {
    let folder = TempDir::new().unwrap();
    let config = configs().join("shakespeare-gpt.toml");
    let source = ["--config", config.to_str().unwrap()];
    let shown = done(&train(folder.path(), &[&source[..], &TEXT].concat()));
    assert!(shown.contains("perplexity of the last stage"), "{shown}");
    assert!(json(&folder.path().join("run/report.json"))["final"]["perplexity"].as_f64().unwrap() > 1.0);
    let generate = |more: &[&str]| {
        let arguments = [&["generate", "run", "--prompt", "ROMEO", "--tokens", "20"], more].concat();
        done(&interlock(folder.path(), &arguments))
    };
    let text = generate(&["--seed", "4"]);
    assert!(text.starts_with("ROMEO") && text.chars().count() > 20, "{text}");
    assert_eq!(text, generate(&["--seed", "4"]));
    assert_ne!(text, generate(&["--seed", "5"]));
    refused(folder.path(), &["generate", "run", "--prompt", ""], &["--prompt"]);
    refused(folder.path(), &["generate", "run", "--prompt", "x", "--temperature=-1"], &["--temperature"]);
    refused(folder.path(), &["generate", "run", "--prompt", "x", "--top-k", "0"], &["--top-k"]);
}

#[test]
fn widths_change_by_schedule_and_by_measurement() {
    let folder = TempDir::new().unwrap();
    let train = |name: &str, more: &[&str]| {
        let arguments = [&["train", "--plain", "--out", name], &SMALL[..], more].concat();
        let shown = done(&interlock(folder.path(), &arguments));
        (shown, json(&folder.path().join(name).join("report.json")))
    };
    let schedule =
        "--set=strategy.width_schedule=[{from_step=0, width=1}, {from_step=2, widths=[2, 1], end_to_end_every=5}]";
    let (shown, report) = train("schedule", &[schedule]);
    for words in ["from step 0 on:", "from step 2 on:", "from step 2 on  stages follow the losses of stages 1 1"] {
        assert!(shown.contains(words), "{words:?} is not in {shown}");
    }
    let follows = |report: &Value, phase: usize| report["plans"][phase]["follows"].clone();
    let each = |losses: [usize; 2]| serde_json::json!(losses.map(|loss| [[Value::from(loss), 1.0.into()]]));
    assert_eq!((follows(&report, 0), follows(&report, 1)), (each([0, 1]), each([1, 1])));
    assert_eq!((&report["stages"][0]["follows"], &report["plans"][1]["every"]["steps"]), (&1.into(), &5.into()));
    assert!(!folder.path().join("schedule/strategy.json").exists());
    done(&interlock(folder.path(), &["eval", "schedule"]));

    let adaptive = ["name=adaptive", "adaptive.every=1", "adaptive.window=1", "adaptive.below=1.5"];
    let adaptive: Vec<String> = adaptive.iter().map(|set| format!("--set=strategy.{set}")).collect();
    let (shown, report) = train("adaptive", &adaptive.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(shown.contains("measures") && shown.contains("from step 1 on  stages follow"), "{shown}");
    let state = json(&folder.path().join("adaptive/strategy.json"));
    let change = &state["changes"][0];
    assert_eq!((&state["widths"], state["changes"].as_array().unwrap().len()), (&Value::from(vec![2, 1]), 1));
    assert_eq!([&change["step"], &change["stage"], &change["width"]], [&Value::from(1), &0.into(), &2.into()]);
    assert!(change["cosine"].as_f64().unwrap().abs() <= 1.0);
    assert_eq!((follows(&report, 0), follows(&report, 1)), (each([0, 1]), each([1, 1])));
    assert!(fs::read_to_string(folder.path().join("adaptive/run.log")).unwrap().contains("from step 1 on"));
    done(&interlock(folder.path(), &["eval", "adaptive"]));
}

#[test]
fn reference_runs_are_replayed_and_a_damaged_one_fails() {
    let folder = TempDir::new().unwrap();
    let good = golden("mlp-k5-w2");
    let shown = done(&interlock(folder.path(), &["replay", good.to_str().unwrap()]));
    assert_eq!(shown.lines().last(), Some("1 passed, 0 failed"));
    let damaged = folder.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    fs::copy(good.join("case.json"), damaged.join("case.json")).unwrap();
    let mut bytes = fs::read(good.join("tensors.safetensors")).unwrap();
    let at = bytes.len() - 2;
    bytes[at] ^= 0x40; // in the last tensor's last value
    fs::write(damaged.join("tensors.safetensors"), bytes).unwrap();
    let output = interlock(folder.path(), &["replay", good.to_str().unwrap(), "damaged"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output).lines().last(), Some("1 passed, 1 failed"));
    assert!(out(&output).contains("FAILED"), "{}", out(&output));
    assert!(err(&output).contains("1 of 2 reference runs failed"), "{}", err(&output));
    refused(folder.path(), &["replay", good.to_str().unwrap(), "missing"], &["missing/case.json"]);
}

#[test]
fn bad_files_are_refused_before_anything_is_written() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    let write = |name: &str, bytes: &[u8]| {
        let file = path.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    };
    let with = |data: &[&str], words: &[&str]| {
        refused(path, &[&["train", "--out", "run"], data].concat(), words);
    };
    refused(path, &["train", "--config", "none.toml"], &["none.toml"]);
    write("broken.toml", b"seed = 1\nseeed = 2\n[data]\nkind = \"shakespeare\"\n[model]\nkind = \"mlp\"\n");
    refused(path, &["train", "--config", "broken.toml"], &["broken.toml", "seeed", "line 2"]);

    let cifar = ["--set=data.kind=cifar10", "--set=data.path=cifar"];
    write("cifar/test_batch.bin", &[1; 3073]);
    for i in 1..=5 {
        write(&format!("cifar/data_batch_{i}.bin"), &[1; 3073]);
    }
    write("cifar/data_batch_3.bin", &[1; 3000]);
    with(&cifar, &["data_batch_3.bin", "3073"]);
    write("cifar/data_batch_3.bin", &[77; 3073]);
    with(&cifar, &["data_batch_3.bin", "77"]);

    let idx = |magic: u8, dims: &[u32], data: usize| {
        let mut bytes = vec![0, 0, 8, magic];
        dims.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
        bytes.resize(bytes.len() + data, 1);
        bytes
    };
    let set = ["--set=data.kind=idx", "--set=data.path=idx"];
    for part in ["train", "t10k"] {
        write(&format!("idx/{part}-images-idx3-ubyte"), &idx(3, &[2, 28, 28], 2 * 784));
        write(&format!("idx/{part}-labels-idx1-ubyte"), &idx(1, &[2], 2));
    }
    write("idx/train-images-idx3-ubyte", &idx(3, &[2, 28, 28], 784));
    with(&set, &["train-images-idx3-ubyte"]);
    write("idx/train-images-idx3-ubyte", &idx(3, &[3, 28, 28], 3 * 784));
    with(&set, &["3", "2"]);

    write("empty.txt", b"");
    with(&["--config", configs().join("text-gpt.toml").to_str().unwrap(), "--set=data.path=empty.txt"], &["empty.txt"]);
    with(
        &["--config", configs().join("shakespeare-gpt.toml").to_str().unwrap(), "--set=model.tied=true"],
        &["tied = false"],
    );
    write("archive.tar.gz", b"not an archive");
    with(&["--set=data.kind=cifar10", "--set=data.path=archive.tar.gz"], &["archive.tar.gz"]);
}

#[test]
fn folders_without_a_run_or_of_another_model_are_refused() {
    let folder = TempDir::new().unwrap();
    refused(folder.path(), &["eval", "nothing"], &["nothing", "is not the folder of a run"]);
    done(&train(folder.path(), &SMALL));
    refused(folder.path(), &["train", "--out", "run"], &["--out run", "it exists"]);
    let config = folder.path().join("run/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("planes = [\n    4,\n    8,\n]", "planes = [4, 16]").replace("[4, 8]", "[4, 16]"))
        .unwrap();
    refused(folder.path(), &["eval", "run"], &["shape"]);
    fs::write(
        &config,
        text.replace("blocks = [1, 1]", "blocks = [1, 2]").replace("blocks = [\n    1,\n    1,\n]", "blocks = [1, 2]"),
    )
    .unwrap();
    refused(folder.path(), &["eval", "run"], &["run: its weights", "missing", "layer2.1.bn1.bias"]);
    fs::write(&config, text).unwrap();
    fs::remove_file(folder.path().join("run/model/model-00002-of-00002.safetensors")).unwrap();
    refused(folder.path(), &["eval", "run"], &["model-00002-of-00002.safetensors"]);
}

#[test]
fn run_prints_its_model_and_strategy_first_and_no_missing_heads() {
    let folder = TempDir::new().unwrap();
    let heads = ["--set=partition.stages=3", "--set=strategy.name=end_to_end", "--set=heads.train=needed"];
    let shown = done(&train(folder.path(), &[&SMALL[..], &heads].concat()));
    let first = shown.lines().next().unwrap();
    assert!(first.contains("model resnet (") && first.contains("strategy end-to-end"), "{first}");
    let stages = json(&folder.path().join("run/report.json"))["stages"].clone();
    let parameters: u64 = stages.as_array().unwrap().iter().map(|stage| stage["parameters"].as_u64().unwrap()).sum();
    let digits: String =
        first.split_once("resnet (").unwrap().1.chars().take_while(|c| *c != ' ').filter(|c| *c != ',').collect();
    assert_eq!(digits, parameters.to_string(), "{first}");
    assert!(!shown.contains("probe"), "{shown}");
    // One score for each stage, or a dash if it has no head.
    let scores = shown.lines().find(|line| line.contains("of each stage's head")).unwrap();
    let scores = scores.split_once("head: ").unwrap().1.trim_end_matches("  (best so far)");
    assert_eq!(scores.split(' ').map(|score| score == "-").collect::<Vec<_>>(), [true, true, false], "{scores}");
}

#[test]
fn widths_are_named_in_the_first_line_and_on_the_command_line_devices_replace_those_of_the_configuration() {
    let folder = TempDir::new().unwrap();
    let given = ["--set=strategy.widths=[2, 1]", "--set=devices=cuda:7", "--devices", "cpu:threads=1", "cpu"];
    let shown = done(&train(folder.path(), &[&SMALL[..], &given].concat()));
    assert!(shown.lines().next().unwrap().contains("strategy widths 2, 1,"), "{shown}");
    assert!(shown.contains("stages on cpu:threads=1, cpu"), "{shown}");
    let config = fs::read_to_string(folder.path().join("run/config.toml")).unwrap();
    assert!(config.contains(r#"devices = ["cpu:threads=1", "cpu"]"#), "{config}");
    let compare = [&["compare", "--seeds", "1", "--devices", "cpu:threads=1,cpu", "--set=devices=cuda:7"], &SMALL[..]];
    done(&interlock(folder.path(), &compare.concat()));
    let varied = [&["compare", "--devices", "cpu", "--vary", r#"devices=["cpu", "auto"]"#], &SMALL[..]].concat();
    refused(folder.path(), &varied, &["--devices cpu", "replaces devices"]);
}

#[test]
fn emulated_devices_are_said_to_compute_nothing() {
    let folder = TempDir::new().unwrap();
    let note = "emulated devices compute nothing";
    let notes = |arguments: &[&str]| {
        let output = interlock(folder.path(), arguments);
        done(&output);
        err(&output).lines().filter(|line| line.contains(note)).count()
    };
    let train = |name: &'static str, devices: &'static str| {
        [&["train", "--plain", "--out", name, "--devices", devices], &SMALL[..]].concat()
    };
    assert_eq!(notes(&train("run", "cpu,emulated")), 1);
    assert_eq!(notes(&train("real", "cpu")), 0);
    assert_eq!(notes(&["eval", "run", "--json"]), 1);
    assert_eq!(notes(&["eval", "real", "--devices", "emulated"]), 1);
    assert_eq!(notes(&["eval", "real"]), 0);
    assert_eq!(notes(&[&["compare", "--seeds", "1", "--devices", "emulated"], &SMALL[..]].concat()), 1);
}

#[test]
fn run_with_a_non_finite_value_fails_and_saves_no_weights() {
    let folder = TempDir::new().unwrap();
    let output = train(folder.path(), &[&SMALL[..], &["--set=optimizer.lr=1e30"]].concat());
    let message = err(&output);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for word in ["stage ", "step ", "micro-batch 0", "marked as failed"] {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
    let status = json(&folder.path().join("run/status.json"));
    assert_eq!(status["state"], "failed");
    assert!(message.contains(status["cause"].as_str().unwrap()));
    let stored = fs::read_dir(folder.path().join("run")).unwrap().map(|e| e.unwrap().file_name());
    assert!(stored.into_iter().all(|name| !name.to_string_lossy().contains("safetensors")));
    refused(folder.path(), &["eval", "run"], &["the run has failed"]);
}

#[test]
fn included_configurations_are_valid() {
    let folder = TempDir::new().unwrap();
    let names = fs::read_dir(configs()).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    names.sort();
    assert_eq!(names.len(), 9);
    for name in names {
        assert!(fs::read_to_string(&name).unwrap().starts_with("#:schema ./interlock.schema.json\n"), "{name:?}");
        let printed = done(&interlock(folder.path(), &["config", "--config", name.to_str().unwrap()]));
        fs::write(folder.path().join("again.toml"), &printed).unwrap();
        assert_eq!(printed, done(&interlock(folder.path(), &["config", "--config", "again.toml"])));
    }
    let built_in = fs::read_to_string(configs().join("fashion-mnist.toml")).unwrap();
    fs::write(folder.path().join("built-in.toml"), built_in).unwrap();
    let printed = done(&interlock(folder.path(), &["config"]));
    assert_eq!(printed, done(&interlock(folder.path(), &["config", "--config", "built-in.toml"])));
    let schema = done(&interlock(folder.path(), &["config", "--schema"]));
    let file = fs::read_to_string(configs().join("interlock.schema.json")).unwrap();
    assert!(
        schema == file,
        "the schema has changed: interlock config --schema > examples/configs/interlock.schema.json"
    );
    let schema: Value = serde_json::from_str(&schema).unwrap();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    assert!(schema["properties"]["strategy"].is_object());
    let arch = schema["definitions"]["HeadsConfig"]["properties"]["arch"]["description"].as_str().unwrap();
    assert!(arch.contains("basicNsS") && arch.contains("block"), "{arch}");
}

#[test]
fn help_lists_commands_and_options() {
    let folder = TempDir::new().unwrap();
    insta::assert_snapshot!("help", done(&interlock(folder.path(), &["--help"])));
    insta::assert_snapshot!("help_train", done(&interlock(folder.path(), &["train", "--help"])));
    assert!(
        done(&interlock(folder.path(), &["config", "--help"]))
            .contains("Parts of heads.arch and heads.archs, joined by _:\n  convN")
    );
    let devices = done(&interlock(folder.path(), &["devices"]));
    assert!(devices.contains("cpu") && devices.contains("emulated:forward-ms=5"), "{devices}");
    assert_eq!(interlock(folder.path(), &["fly"]).status.code(), Some(2));
}

#[test]
fn launch_prints_the_line_that_starts_a_job() {
    let folder = TempDir::new().unwrap();
    let program = env!("CARGO_BIN_EXE_interlock");
    let line = |arguments: &[&str]| {
        let train = ["--", "train", "--config", "a b.toml", "--out", "run"];
        let printed = done(&interlock(folder.path(), &[&["launch"], arguments, &train].concat()));
        printed.trim_end().replace(program, "PROGRAM")
    };
    let train = "PROGRAM train --config 'a b.toml' --out run";
    assert_eq!(line(&["-n", "4"]), format!("mpirun --bind-to none -n 4 {train}"));
    assert_eq!(
        line(&["--hosts", "a:2,b", "--network", "10.0.0.0/24", "--oversubscribe"]),
        format!(
            "mpirun --host a:2,b:1 --mca oob_tcp_keepalive_time 10 --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 3 \
             --bind-to none --mca btl_tcp_if_include 10.0.0.0/24 --mca oob_tcp_if_include 10.0.0.0/24 \
             --oversubscribe --mca mpi_yield_when_idle 1 -n 3 {train}"
        )
    );
    assert_eq!(
        line(&["--hosts", "a:2,b", "--with", "mpich", "--network", "eth0"]),
        format!("mpirun -hosts a:2,b:1 -iface eth0 -bind-to none -n 3 {train}")
    );
    assert_eq!(line(&["-n", "2", "--with", "mpich"]), format!("mpirun -bind-to none -n 2 {train}"));
    let srun = "srun --mpi=pmix --kill-on-bad-exit=1";
    assert_eq!(
        line(&["--hosts", "a:2,b:2", "--with", "srun"]),
        format!("{srun} --nodelist=a,b --ntasks-per-node=2 -n 4 {train}")
    );
    assert_eq!(line(&["-n", "8", "--with", "srun"]), format!("{srun} -n 8 {train}"));
    let refused = |arguments: &[&str], words: &str| {
        let output = interlock(folder.path(), &[&["launch"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{}", err(&output));
        assert!(err(&output).contains(words), "{}", err(&output));
    };
    refused(&["--", "train"], "--hosts");
    refused(&["-n", "0", "--", "train"], "use 1 or more");
    refused(&["-n", "2"], "train");
    refused(&["-n", "2", "--hosts", "a", "--", "train"], "cannot be used with");
    refused(&["--hosts", "a:x", "--", "train"], "such as node1:2");
    refused(&["-n", "2", "--", "plan"], "launch starts `train` only");
    refused(&["-n", "2", "--", "train", "--sat=a"], "--sat");
    refused(&["-n", "2", "--retries", "1", "--", "train"], "--run");
    refused(&["-n", "2", "--run", "--retries", "1", "--", "train"], "name the run's folder");
    refused(&["--hosts", "a:2,b", "--with", "srun", "--", "train"], "hosts with different numbers of ranks");
    refused(&["-n", "2", "--with", "srun", "--network", "eth0", "--", "train"], "--network: it is an option of mpirun");
    refused(&["-n", "2", "--with", "srun", "--oversubscribe", "--", "train"], "--oversubscribe");
    refused(&["-n", "2", "--with", "mpich", "--oversubscribe", "--", "train"], "it is an option of Open MPI");
    refused(&["-n", "2", "--with", "mpich", "--network", "10.0.0.0/24", "--", "train"], "name an interface");
    refused(&["--hosts", "a", "--spares", "c:4", "--", "train"], "a spare host is a name");
    refused(&["--hosts", "a", "--spares", "c", "--", "train"], "--spares: they serve a retry");
    refused(&["-n", "2", "--memory-limit", "1GiB", "--", "train"], "give it after --");
}
