//! Tests that a finished run can be used after its data, text or initial weights have been changed, moved or removed.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;
#[path = "common/finished.rs"]
mod finished;

use std::fs;

use common::{done, err, interlock, json, refused};
use finished::{IMAGES, folder_of_images, image, printed, train};
use tempfile::TempDir;

const TEXT: &str = r#"
steps = 2
batch_size = 2
devices = ["cpu:threads=1"]
init_from = "init"
[data]
kind = "text"
path = "text.txt"
tokenizer = "chars"
context = 8
[model]
kind = "transformer"
width = 8
heads = 2
layers = 1
[partition]
stages = 1
"#;

/// Makes the metadata of an index those of earlier versions, which nothing compares.
fn without_checksums(metadata: &mut serde_json::Map<String, serde_json::Value>) {
    assert!(metadata.remove("index_checksum").is_some() && metadata.remove("shard_checksums").is_some());
}

#[test]
#[cfg_attr(not(feature = "images"), ignore = "needs --features images")]
fn evaluation_uses_the_statistics_and_classes_of_the_run() {
    let folder = folder_of_images();
    let path = folder.path();
    train(path);
    let first = printed(path, &["eval", "run", "--json"]);
    assert_eq!(first[1]["accuracy"], 1.0);
    // Brighter training images would change the statistics, and a class before the others would change the classes' numbers.
    image(&path.join("images/train/red/white.bmp"), 8, [255; 3]);
    image(&path.join("images/train/azure/white.bmp"), 8, [255; 3]);
    assert_eq!(printed(path, &["eval", "run", "--json"]), first);
    fs::remove_dir_all(path.join("images/train")).unwrap();
    assert_eq!(printed(path, &["eval", "run", "--json"]), first);
    fs::rename(path.join("images/val/blue"), path.join("images/val/navy")).unwrap();
    refused(path, &["eval", "run"], &["navy", "blue, red", "rename"]);
}

#[test]
#[cfg_attr(not(feature = "images"), ignore = "needs --features images")]
fn other_images_are_scored_refused_or_noted() {
    let folder = folder_of_images();
    let path = folder.path();
    train(path);
    let scored = |arguments: &[&str]| {
        let output = interlock(path, &[&["eval", "run", "--json"], arguments].concat());
        (serde_json::from_str::<serde_json::Value>(&done(&output)).unwrap(), err(&output))
    };
    let (first, said) = scored(&[]);
    assert_eq!(said, "");
    fs::rename(path.join("images"), path.join("moved")).unwrap();
    refused(path, &["eval", "run"], &["images", "if the data have moved, name them with --data"]);
    assert_eq!(scored(&["--data", "moved"]), (first, String::new()));

    for class in ["red", "blue"] {
        (0..3).for_each(|i| image(&path.join(format!("white/{class}/{i}.bmp")), 8, [255; 3]));
    }
    let (_, said) = scored(&["--data", "white"]);
    let differ = "the images differ from those of the run: the mean of their pixels is 1.00, 1.00, 1.00 (in training";
    assert!(said.starts_with(differ) && said.lines().count() == 1, "{said}");
    // Some of the classes are enough, and others are refused.
    fs::remove_dir_all(path.join("moved/val/blue")).unwrap();
    assert_eq!(scored(&["--data", "moved"]).0[1]["targets"], 4);
    image(&path.join("moved/val/green/0.bmp"), 8, [0, 255, 0]);
    refused(path, &["eval", "run", "--data", "moved"], &["green", "its classes are blue, red"]);
}

#[test]
#[cfg_attr(not(feature = "images"), ignore = "needs --features images")]
fn run_begins_with_a_line_about_its_images() {
    let folder = folder_of_images();
    let path = folder.path();
    fs::write(path.join("images/train/red/x.heic"), "").unwrap();
    let line = "images: 16 in 2 classes (blue 8, red 8): 16 bmp; left out: 1 heic in train/red (for heic convert them to png or jpg)";
    let output = interlock(path, &["train", "--plain", "--config", "config.toml", "--out", "run"]);
    done(&output);
    assert_eq!(err(&output).lines().next(), Some(line));
    assert!(fs::read_to_string(path.join("run/run.log")).unwrap().contains(line));
    let output = interlock(path, &["compare", "--seeds", "2", "--config", "config.toml", "--out", "runs"]);
    done(&output);
    assert_eq!(err(&output).matches(line).count(), 1);
}

#[test]
#[cfg_attr(not(feature = "images"), ignore = "needs --features images")]
fn images_are_classified_without_the_data_of_the_run() {
    let folder = folder_of_images();
    let path = folder.path();
    train(path);
    fs::remove_dir_all(path.join("images")).unwrap();
    image(&path.join("new/deep/b.bmp"), 16, [20, 5, 190]);
    image(&path.join("new/r.bmp"), 8, [190, 5, 20]);
    image(&path.join("one.bmp"), 8, [190, 5, 20]);
    let predicted = printed(path, &["predict", "run", "new", "one.bmp", "--top", "2", "--json"]);
    let files = predicted.as_array().unwrap();
    let expected = [("new/deep/b.bmp", "blue"), ("new/r.bmp", "red"), ("one.bmp", "red")];
    assert_eq!(files.len(), expected.len());
    for (file, (name, class)) in files.iter().zip(expected) {
        assert_eq!((&file["file"], &file["classes"][0]["class"]), (&name.into(), &class.into()));
        let probability = |at: usize| file["classes"][at]["probability"].as_f64().unwrap();
        assert!(probability(0) > 0.5 && (probability(0) + probability(1) - 1.0).abs() < 1e-6, "{file}");
    }
    // The same file alone and in a folder.
    assert_eq!(files[1]["classes"], files[2]["classes"]);
    let shown = done(&interlock(path, &["predict", "run", "one.bmp"]));
    assert!(shown.contains("one.bmp") && shown.contains("red") && !shown.contains("blue"), "{shown}");

    fs::write(path.join("text.bmp"), "no image").unwrap();
    refused(path, &["predict", "run", "text.bmp"], &["text.bmp", "cannot be decoded", "png"]);
    refused(path, &["predict", "run", "nothing.png"], &["nothing.png"]);
    fs::create_dir(path.join("empty")).unwrap();
    refused(path, &["predict", "run", "empty"], &["empty", "no image"]);
    refused(path, &["predict", "run", "one.bmp", "--top", "0"], &["--top", "1 or more"]);
    refused(path, &["predict", "run", "one.bmp", "--head", "2"], &["--head", "stage 2 has no head", "0, 1"]);
    let early = printed(path, &["predict", "run", "one.bmp", "--head", "0", "--top", "2", "--json"]);
    assert_eq!(early[0]["classes"][0]["class"], "red");
    assert_ne!(early[0]["classes"][1]["probability"], files[2]["classes"][1]["probability"]);
}

#[test]
fn text_model_needs_neither_its_text_nor_its_initial_weights() {
    let folder = TempDir::new().unwrap();
    let path = folder.path();
    fs::write(path.join("text.txt"), "to be or not to be, that is the question. ".repeat(8)).unwrap();
    fs::write(path.join("config.toml"), TEXT.replace("init_from = \"init\"\n", "")).unwrap();
    done(&interlock(path, &["train", "--quiet", "--config", "config.toml", "--out", "init"]));
    fs::write(path.join("config.toml"), TEXT).unwrap();
    train(path);
    let scored = printed(path, &["eval", "run", "--json"]);
    fs::rename(path.join("init"), path.join("moved")).unwrap();
    assert_eq!(printed(path, &["eval", "run", "--json"]), scored);
    assert_eq!(json(&path.join("run/status.json"))["state"], "finished");

    // An evaluation trains nothing, so it does not matter that everything is frozen.
    let config = fs::read_to_string(path.join("run/config.toml")).unwrap();
    let frozen = config.replace("[optimizer]\n", "[optimizer]\ngroups = [{ match = [\"*\"], frozen = true }]\n");
    assert_ne!(config, frozen);
    fs::write(path.join("run/config.toml"), frozen).unwrap();
    assert_eq!(printed(path, &["eval", "run", "--json"]), scored);

    let generate = ["generate", "run", "--prompt", "to be", "--tokens", "5"];
    let text = done(&interlock(path, &generate));
    assert_eq!(done(&interlock(path, &[&generate[..], &["--devices", "cpu:threads=2"]].concat())), text);
    refused(path, &[&generate[..], &["--devices", "cpu:threads=x"]].concat(), &["cpu:threads=x"]);
    fs::rename(path.join("text.txt"), path.join("gone.txt")).unwrap();
    assert_eq!(done(&interlock(path, &generate)), text);
    // Another text is scored with the vocabulary of the run, which may lack some of its characters.
    fs::write(path.join("text.txt"), "z".repeat(400)).unwrap();
    refused(path, &["eval", "run"], &["text.txt", "'z'", "not in the vocabulary"]);
}

#[test]
#[cfg_attr(not(feature = "images"), ignore = "needs --features images")]
fn run_of_other_devices_is_used_on_those_that_are_named() {
    let folder = folder_of_images();
    let path = folder.path();
    // Emulated stages compute nothing, so the weights are the initial ones, as after training at a rate of almost 0.
    let config = |devices: &str, lr: &str| {
        let config = IMAGES.replace("devices = [\"cpu:threads=1\"]", devices).replace("lr = 0.05", lr);
        config.replace("[partition]\nstages = 2\n", "")
    };
    let emulated = "devices = [\"emulated:forward-ms=0\", \"emulated:head-ms=0\"]";
    for (run, devices, lr) in [
        ("emulated", emulated, "lr = 0.05"),
        ("computed", "devices = [\"cpu:threads=1\", \"cpu:threads=1\"]", "lr = 1e-30"),
    ] {
        fs::write(path.join("config.toml"), config(devices, lr)).unwrap();
        done(&interlock(path, &["train", "--quiet", "--config", "config.toml", "--out", run]));
    }
    let on_cpu = |command: &[&str]| printed(path, &[command, &["--devices", "cpu", "--json"]].concat());
    let scores = printed(path, &["eval", "computed", "--json"]);
    // One device, and still the two stages of the run, which had a device each.
    assert_eq!(scores.as_array().unwrap().len(), 2);
    assert_eq!(on_cpu(&["eval", "emulated"]), scores);
    assert_ne!(printed(path, &["eval", "emulated", "--json"]), scores);
    let image = "images/val/red/0.bmp";
    for head in ["0", "1"] {
        let predicted = printed(path, &["predict", "computed", image, "--head", head, "--json"]);
        assert_eq!(on_cpu(&["predict", "emulated", image, "--head", head]), predicted, "{head}");
        assert_ne!(printed(path, &["predict", "emulated", image, "--head", head, "--json"]), predicted, "{head}");
    }
    // The option may stand before images, and names a list.
    let both = ["predict", "emulated", "--devices", "cpu:threads=1,cpu:threads=2", image, "--json"];
    assert_eq!(printed(path, &both), printed(path, &["predict", "computed", image, "--json"]));

    // So it is with weights of earlier versions, which do not state the partition.
    let index = path.join("emulated/model/model.safetensors.index.json");
    let mut stated = json(&index);
    let metadata = stated["metadata"].as_object_mut().unwrap();
    assert!(metadata.remove("units_per_stage").is_some());
    without_checksums(metadata);
    fs::write(&index, stated.to_string()).unwrap();
    assert_eq!(on_cpu(&["eval", "emulated"]), scores);

    refused(path, &["eval", "emulated", "--devices", "tpu:0"], &["tpu:0", "unknown device kind"]);
    let config = path.join("emulated/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (device, problem) = match cfg!(feature = "cuda") {
        false => ("cuda:0", "this build has cpu and emulated only"),
        true => ("gpu:0", "unknown device kind"),
    };
    let missing = text.replace("emulated:forward-ms=0", device);
    assert_ne!(missing, text);
    fs::write(&config, missing).unwrap();
    for command in [&["eval", "emulated"][..], &["predict", "emulated", image]] {
        refused(path, command, &[device, problem, "or choose others, such as --devices cpu"]);
    }
    assert_eq!(on_cpu(&["eval", "emulated"]), scores);
}

#[test]
#[cfg_attr(not(feature = "images"), ignore = "needs --features images")]
fn heads_that_the_weights_do_not_hold_are_not_scored() {
    let folder = folder_of_images();
    let path = folder.path();
    train(path);
    let scored = printed(path, &["eval", "run", "--json"]);
    assert_eq!(printed(path, &["eval", "run", "--head", "0", "--json"]), serde_json::json!([scored[0]]));
    let index = path.join("run/model/model.safetensors.index.json");
    let mut left = json(&index);
    let names = left["weight_map"].as_object_mut().unwrap();
    names.retain(|name, _| !name.starts_with("aux."));
    without_checksums(left["metadata"].as_object_mut().unwrap());
    fs::write(&index, left.to_string()).unwrap();
    refused(path, &["eval", "run"], &["run: its weights", "heads without values         1  aux.0 after unit 0"]);
    let image = "images/val/red/0.bmp";
    refused(path, &["predict", "run", image, "--head", "0"], &["stage 0 has no head", "heads are at stages 1"]);
    done(&interlock(path, &["predict", "run", image]));
    // The others are not needed to score one of them.
    let one = printed(path, &["eval", "run", "--head", "1", "--json"]);
    assert_eq!(one, serde_json::json!([scored[1]]));
    refused(path, &["eval", "run", "--head", "0"], &["--head: stage 0 has no head with weights", "at stages 1"]);
    refused(path, &["eval", "run", "--head", "2"], &["--head: stage 2 has no head", "at stages 1"]);
}
