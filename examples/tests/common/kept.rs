//! Configurations with everything that a run keeps, and what is left of a run that can be compared.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Everything with a state: batch norm, augmentation, momentum, micro-batches, a mean of losses, a plateau, early stopping, an average, `bf16`.
pub const IMAGES: &str = r#"
steps = 40
batch_size = 16
micro_batches = 2
eval_every = 9
seed = 5
dtype = "bf16"
devices = ["cpu:threads=1"]
[checkpoint]
every_steps = 4
[data]
kind = "fashion-mnist-mini"
limit = 160
augment = { crop = true, flip = true }
[model]
kind = "resnet"
block = "basic"
stem = "cifar"
stem_planes = 4
planes = [4, 8]
blocks = [1, 1]
[partition]
stages = 3
[strategy]
width = 2
follow = "mean"
[heads]
arch = "gbpl_fc"
[optimizer]
lr = 0.05
[lr_schedule]
kind = "reduce_on_plateau"
factor = 0.5
patience = 1
[early_stopping]
patience = 50
[ema]
decay = 0.9
"#;

/// Text, with dropout, AdamW, clipping, and a strategy that decides during the run.
pub const TEXT: &str = r#"
steps = 40
batch_size = 4
eval_every = 15
seed = 6
devices = ["cpu:threads=1"]
[checkpoint]
every_steps = 4
[data]
kind = "shakespeare"
context = 16
limit = 200
validation_fraction = 0.002
[model]
kind = "transformer"
width = 16
heads = 2
layers = 3
dropout = 0.1
[partition]
stages = 3
[strategy]
name = "adaptive"
adaptive = { every = 5, window = 2, below = 0.99 }
[optimizer]
kind = "adamw"
lr = 1e-3
[clip]
max_norm = 1.0
scope = "global"
[lr_schedule]
kind = "cosine"
warmup_steps = 4
"#;

/// The files of a folder and those below it, by their path.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    found
}

/// The tensors of the weights, the best weights and the last checkpoint of a run, as bytes of their files.
pub fn results(run: &Path, steps: u64) -> BTreeMap<String, Vec<u8>> {
    let last = format!("checkpoints/step-{steps}");
    let folders = ["model", "best", &last];
    let of = |folder: &str| {
        let all = files(&run.join(folder))
            .into_iter()
            .filter(|(path, _)| path.extension().is_some_and(|end| end == "safetensors"));
        // Best weights may have been saved a different number of times, which their files' names tell.
        let name = |path: &Path| {
            format!("{folder}/{}", path.display().to_string().replace("-v1", "").rsplit(folder).next().unwrap())
        };
        all.map(|(path, bytes)| (name(&path), bytes)).collect::<Vec<_>>()
    };
    folders.into_iter().flat_map(of).collect()
}

/// The events of a run without times, and without those that only tell of interruptions.
pub fn events(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("events.jsonl")).unwrap();
    let without_times = |line: &str| {
        let mut event: Value = serde_json::from_str(line).unwrap();
        let fields = event.as_object_mut().unwrap();
        for name in ["time", "seconds", "step_seconds", "evaluation_seconds"] {
            fields.remove(name);
        }
        if let Some(stages) = fields.get_mut("stages").and_then(Value::as_array_mut) {
            stages.iter_mut().for_each(|stage| drop(stage.as_object_mut().unwrap().remove("busy_seconds")));
        }
        event
    };
    let is_result =
        |event: &Value| ["started", "step", "evaluated", "plan_changed"].contains(&event["event"].as_str().unwrap());
    text.lines().map(without_times).filter(is_result).collect()
}
