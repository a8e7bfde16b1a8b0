//! Tests of measurements and predictions: `bench` and `plan`.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/command.rs"]
mod common;

use std::fs;

use common::{SMALL, done, err, interlock, json, out, refused, train};
use serde_json::Value;
use tempfile::TempDir;

/// Returns the output of `bench step` for the smallest workload: one step, after two that are not timed.
fn measure_step(more: &[&str]) -> Value {
    let folder = TempDir::new().unwrap();
    let bench = ["bench", "step", "--workload", "gpt", "--steps", "1", "--json"];
    serde_json::from_str(&done(&interlock(folder.path(), &[&bench[..], more].concat()))).unwrap()
}

fn losses(of: &Value) -> Vec<f64> {
    of["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect()
}

/// Returns the number of examples of a step, from its rate and its time.
fn examples(of: &Value) -> f64 {
    of["examples_per_second"].as_f64().unwrap() * of["step_seconds"].as_f64().unwrap()
}

const ONE_STAGE: [&str; 4] = ["--stages", "1", "--width", "1"];

#[test]
fn timed_step_reports_its_settings_times_and_losses() {
    let step = measure_step(&ONE_STAGE);
    let keys: Vec<&str> = step.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "workload",
        "batch",
        "width",
        "group",
        "follow",
        "stages",
        "threads",
        "devices",
        "micro_batches",
        "recompute",
        "precision",
        "dtype",
        "step_seconds",
        "examples_per_second",
        "device_seconds",
        "runtime_seconds",
        "peak_memory_mib",
        "losses",
    ];
    assert_eq!(keys, expected);
    let counts = ["width", "stages", "micro_batches"].map(|key| step[key].as_u64());
    assert_eq!((step["workload"].as_str(), counts), (Some("gpt"), [Some(1); 3]));
    assert_eq!((&step["threads"], step["devices"].as_array().unwrap().len()), (&Value::from("auto"), 1));
    assert_eq!(step["batch"], 16);
    let seconds = step["step_seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && (examples(&step) - 16.0).abs() < 1e-6, "{step}");
    let device_seconds: Vec<f64> =
        step["device_seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    assert!(device_seconds.len() == 1 && device_seconds[0] > 0.0 && device_seconds[0] <= seconds, "{step}");
    assert!(!cfg!(target_os = "linux") || step["peak_memory_mib"].as_f64().unwrap() > 0.0, "{step}");
    // The losses of the two steps that are not timed are near that of a guess among 256 tokens.
    let losses = losses(&step);
    assert!(losses.len() == 2 && losses.iter().all(|loss| (loss - 256.0_f64.ln()).abs() < 1.0), "{losses:?}");
}

#[test]
fn recomputation_gives_the_same_losses_and_bf16_others() {
    let step = measure_step(&ONE_STAGE);
    let again = measure_step(&[&ONE_STAGE[..], &["--recompute"]].concat());
    assert_eq!((&step["recompute"], &again["recompute"]), (&Value::from(false), &Value::from(true)));
    assert_eq!(step["losses"], again["losses"]);
    let rounded = measure_step(&[&ONE_STAGE[..], &["--dtype", "bf16"]].concat());
    assert_eq!((&step["dtype"], &rounded["dtype"]), (&Value::from("f32"), &Value::from("bf16")));
    // The first losses are equal. The second forward pass uses parameters whose gradients come from rounded values.
    assert_eq!(losses(&step)[0], losses(&rounded)[0]);
    assert_ne!(losses(&step)[1], losses(&rounded)[1]);
    let computed = measure_step(&[&ONE_STAGE[..], &["--precision", "bf16"]].concat());
    assert_eq!((&computed["precision"], &computed["dtype"]), (&Value::from("bf16"), &Value::from("bf16")));
    assert!(computed["devices"][0].as_str().unwrap().ends_with(",precision=bf16"), "{computed}");
    let (whole, half) = (losses(&step)[0], losses(&computed)[0]);
    assert!(whole != half && (whole - half).abs() < 0.02, "{whole} {half}");
}

#[test]
fn step_in_micro_batches_has_nearly_the_same_losses() {
    let (whole, pieces) = (
        measure_step(&ONE_STAGE),
        measure_step(&[&ONE_STAGE[..], &["--threads", "1", "--micro-batches", "4"]].concat()),
    );
    assert_eq!((&pieces["threads"], &pieces["devices"][0]), (&Value::from(1), &Value::from("cpu:threads=1")));
    let (whole, pieces) = (losses(&whole), losses(&pieces));
    // Dividing the batches changes the last digits.
    assert_ne!(whole, pieces);
    assert!(whole.iter().zip(&pieces).all(|(a, b)| (a - b).abs() < 1e-4), "{whole:?} {pieces:?}");
}

#[test]
fn step_has_the_requested_number_of_examples() {
    let small = measure_step(&["--batch", "4", "--micro-batches", "4"]);
    assert_eq!(small["batch"], 4);
    assert!((examples(&small) - 4.0).abs() < 1e-6, "{small}");
}

#[test]
fn step_runs_on_the_named_devices() {
    let named = measure_step(&["--width", "1", "--devices", "cpu:threads=1", "cpu:threads=2"]);
    assert!(named["threads"].is_null(), "{named}");
    assert_eq!(named["devices"], serde_json::json!(["cpu:threads=1", "cpu:threads=2"]));
}

#[test]
fn steps_that_cannot_be_timed_are_refused() {
    let folder = TempDir::new().unwrap();
    refused(folder.path(), &["bench", "step", "--workload", "vgg"], &["vgg", "resnet32"]);
    let bench = ["bench", "step", "--workload", "gpt"];
    let refused = |more: &[&str], words: &[&str]| refused(folder.path(), &[&bench[..], more].concat(), words);
    refused(&["--steps", "0"], &["--steps", "0 is not in 1.."]);
    refused(&["--batch", "0"], &["--batch", "0 is not in 1..=65536"]);
    refused(&["--batch", "4", "--micro-batches", "5"], &["--micro-batches 5", "has 4 examples", "1 to 4"]);
    refused(&["--stages", "3"], &["--stages", "gpt into 3", "1, 2, 4"]);
    refused(&["--width", "0"], &["width 0", "1 (local) to 2"]);
    refused(&["--width", "3"], &["width 3", "1 (local) to 2"]);
    refused(&["--group", "0"], &["strategy.group", "use 1 to 2"]);
    refused(&["--threads", "0"], &["--threads", "\"0\" is not a number of threads", "auto, 1"]);
    refused(&["--threads", "1", "--devices", "cpu"], &["--devices", "cannot be used with", "--threads"]);
    refused(&["--devices", "tpu:0"], &["tpu:0", "kind"]);
    refused(&["--micro-batches", "0"], &["--micro-batches 0", "use 1 to 16"]);
    refused(&["--micro-batches", "17"], &["--micro-batches 17", "use 1 to 16"]);
}

#[test]
fn stages_that_sleep_are_timed() {
    let folder = TempDir::new().unwrap();
    let measure = |more: &[&str]| -> Value {
        let shown = done(&interlock(folder.path(), &[&["bench", "runtime", "--steps", "10", "--json"], more].concat()));
        serde_json::from_str(shown.lines().last().unwrap()).unwrap()
    };
    let costs = ["--forward-ms=1", "--head-ms=2", "--input-gradient-ms=3", "--parameter-gradient-ms=4"];
    let three = measure(&[&["--stages=5", "--transfer-ms=0.1", "--gbps=1"], &costs[..]].concat());
    // Stage 2 computes gradients of losses 2, 3 and 4.
    assert_eq!(three["lower_bound_seconds"].as_f64(), Some(0.016));
    // Activations and credits for each of 5 stages, gradients of 1, 2, 2 and 1 losses, and 5 reports.
    assert_eq!(three["messages_per_step"].as_u64(), Some(21));
    // On a busy machine the clock may start late, by less than half of the ten steps.
    let takes =
        |result: &Value, seconds: f64| assert!(result["step_seconds"].as_f64().unwrap() > seconds / 2.0, "{result}");
    takes(&three, 0.016);
    let worked: Vec<f64> = three["device_seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    assert!(worked.len() == 5 && worked[2] >= 0.016 && worked.iter().all(|&seconds| seconds > 0.0), "{three}");
    if cfg!(unix) {
        let cpu = ["cpu_seconds_per_step", "cpu_seconds_per_message"].map(|key| three[key].as_f64().unwrap());
        assert!(cpu[1] > 0.0 && (cpu[0] - 21.0 * cpu[1]).abs() < 1e-9, "{three}");
    }
    // The work of two stages, one after the other, and two transfers.
    let whole = measure(&[&["--stages=2", "--width=e2e", "--transfer-ms=1"], &costs[..]].concat());
    assert_eq!((whole["width"].as_str(), whole["lower_bound_seconds"].as_f64()), (Some("e2e"), Some(0.008)));
    takes(&whole, 0.014);
    let cut = measure(&["--stages=2", "--width=1", "--micro-batches=3", "--schedule=fill_drain", "--in-flight=2"]);
    assert_eq!((&cut["schedule"], &cut["in_flight"]), (&Value::from("fill_drain"), &Value::from(2)));
    assert_eq!(cut["messages_per_step"].as_u64(), Some(3 * 4 + 2));
    // Two blocks of two stages: a gradient crosses the boundary inside each, beside activations, credits and reports.
    let blocks = measure(&[&["--width=1", "--group=2", "--follow=mean"], &costs[..]].concat());
    assert_eq!((&blocks["group"], &blocks["follow"]), (&Value::from(2), &Value::from("mean")));
    assert_eq!(blocks["messages_per_step"].as_u64(), Some(3 * 4 + 2));

    let refused =
        |more: &[&str], words: &[&str]| refused(folder.path(), &[&["bench", "runtime"], more].concat(), words);
    refused(&["--stages", "0"], &["--stages", "0 is not in 1..=1024"]);
    refused(&["--stages", "2", "--width", "3"], &["width 3", "1 (local) to 2"]);
    refused(&["--group", "5"], &["strategy.group", "blocks of 5 stages, for 4", "use 1 to 4"]);
    refused(&["--group", "2", "--width", "3"], &["width 3", "2 blocks of 2"]);
    refused(&["--width", "wide"], &["\"wide\" is not a width", "e2e"]);
    refused(&["--forward-ms=-1"], &["forward-ms: \"-1\" is not a time", "write emulated"]);
    refused(&["--gbps", "0"], &["gbps: \"0\" is not a number", "above 0"]);
    refused(&["--bytes", "6"], &["--bytes 6", "a multiple of 4"]);
    refused(&["--micro-batches", "0"], &["micro_batches", "1 or more"]);
    refused(&["--in-flight", "0"], &["in_flight", "1 or more"]);
}

#[test]
fn messages_are_timed_and_activations_are_not_copied() {
    let folder = TempDir::new().unwrap();
    let shown = done(&interlock(folder.path(), &["bench", "mailbox", "--bytes", "100", "--messages", "500", "--json"]));
    let result: Value = serde_json::from_str(shown.lines().last().unwrap()).unwrap();
    assert_eq!(["bytes", "messages", "bytes_copied"].map(|key| result[key].as_u64()), [Some(100), Some(500), Some(0)]);
    // An activation to each of two stages, two credits, two reports. The last credits of the warm-up may be counted late, and those at the end not.
    assert!(result["messages_of_all_kinds"].as_u64().unwrap().abs_diff(500 * 6) <= 4, "{result}");
    let (rate, ns) = (result["messages_per_second"].as_f64().unwrap(), result["wall_ns_per_message"].as_f64().unwrap());
    assert!(rate > 0.0 && (rate * ns - 1e9).abs() < 1.0, "{result}");
    refused(folder.path(), &["bench", "mailbox", "--bytes", "7"], &["--bytes 7", "use 8 or more"]);
    refused(folder.path(), &["bench", "mailbox", "--messages", "0"], &["--messages", "0 is not in 1.."]);
}

#[test]
fn units_of_a_configuration_are_measured_and_written_to_a_file() {
    let folder = TempDir::new().unwrap();
    let bench = [&["bench", "units"], &SMALL[..], &["--set=data.limit=256", "--set=batch_size=256"]].concat();
    let more = ["--devices", "cpu:threads=1", "cpu:threads=2", "--micro-batches", "2", "--out", "costs.json", "--json"];
    let printed = done(&interlock(folder.path(), &[&bench[..], &more].concat()));
    let costs = json(&folder.path().join("costs.json"));
    assert_eq!(costs, serde_json::from_str::<Value>(printed.lines().last().unwrap()).unwrap());
    assert_eq!((&costs["examples"], &costs["devices"][0]["dtype"]), (&Value::from(128), &Value::from("f32")));
    assert_eq!(costs["order"], serde_json::json!([0, 1]));
    for (device, name) in costs["devices"].as_array().unwrap().iter().zip(["cpu:threads=1", "cpu:threads=2"]) {
        assert_eq!(device["device"], name);
        let units = device["units"].as_array().unwrap();
        let names: Vec<&str> = units.iter().map(|unit| unit["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["", "layer1.0", "layer2.0", ""]);
        // Four planes of 7 by 7 and eight of 4 by 4, in f32; ten classes.
        let bytes: Vec<u64> = units.iter().map(|unit| unit["output_bytes"].as_u64().unwrap()).collect();
        assert_eq!(bytes, [4 * 49, 4 * 49, 8 * 16, 10].map(|count| 128 * count * 4));
        // A block keeps more than its input.
        assert!(units[1]["saved_bytes"].as_u64().unwrap() > bytes[0], "{device}");
        assert!(units.iter().all(|unit| unit["forward"].as_f64().unwrap() > 0.0));
        assert!(units[2]["heads"]["gbpl_fc"].is_object() && units[3]["heads"] == serde_json::json!({}));
    }
    let shown = done(&interlock(folder.path(), &bench));
    assert!(shown.contains("1 layer1.0") && shown.contains("micro-batches of 256 examples"), "{shown}");

    let refused = |more: &[&str], words: &[&str]| refused(folder.path(), &[&["bench", "units"], more].concat(), words);
    refused(&["--workload", "gpt", "--config", "x.toml"], &["--workload", "--config"]);
    refused(&["--dtype", "bf16"], &["--workload"]);
    refused(&["--workload", "gpt", "--micro-batches", "17"], &["--micro-batches 17", "use 1 to 16"]);
    refused(&["--set=batch_size=8", "--micro-batches", "9"], &["--micro-batches 9", "use 1 to 8"]);
    refused(&["--devices", "tpu"], &["tpu", "cpu"]);
    refused(&["--out", "none/costs.json"], &["--out", "no folder none"]);
}

#[test]
fn plans_know_heads_of_different_descriptions() {
    let folder = TempDir::new().unwrap();
    let small = SMALL.iter().copied().filter(|set| !set.contains("heads") && !set.contains("stages"));
    let heads = r#"--set=heads.archs=["gbpl_fc", "", "conv4_bn_gbpl_fc"]"#;
    let sets: Vec<&str> = small.chain(["--set=partition.stages=4", "--set=strategy.width=2", heads]).collect();
    done(&interlock(folder.path(), &[&["bench", "units"], &sets[..], &["--out", "costs.json"]].concat()));
    let costs = json(&folder.path().join("costs.json"));
    for (i, unit) in costs["devices"][0]["units"].as_array().unwrap().iter().enumerate() {
        let archs: Vec<&String> = unit["heads"].as_object().unwrap().keys().collect();
        assert_eq!(archs, if i < 3 { vec!["conv4_bn_gbpl_fc", "gbpl_fc"] } else { vec![] });
    }
    let shown = done(&interlock(folder.path(), &[&["bench", "units"], &sets[..]].concat()));
    assert!(shown.contains("head gbpl_fc") && shown.contains("transient, head conv4_bn_gbpl_fc"), "{shown}");

    // The last head of a stage with a head takes 100 seconds, by the file.
    let step = |unit: usize, arch: &str| {
        let mut costs = costs.clone();
        costs["devices"][0]["units"][unit]["heads"][arch]["needed"] = Value::from(100.0);
        fs::write(folder.path().join("changed.json"), costs.to_string()).unwrap();
        let plan = [&["plan"], &sets[..], &["--costs", "changed.json", "--json"]].concat();
        let answer: Value = serde_json::from_str(&done(&interlock(folder.path(), &plan))).unwrap();
        let row = &answer["rows"][0];
        assert_eq!(row["units_per_stage"], serde_json::json!([1, 1, 1, 1]));
        row["step_seconds"].as_f64().unwrap()
    };
    assert!(step(0, "gbpl_fc") > 100.0 && step(2, "conv4_bn_gbpl_fc") > 100.0);
    assert!(step(0, "conv4_bn_gbpl_fc") < 100.0 && step(1, "gbpl_fc") < 100.0 && step(2, "gbpl_fc") < 100.0);
    let other = [&["plan"], &sets[..], &["--stages", "2"]].concat();
    refused(folder.path(), &other, &["heads.archs", "3 descriptions for 2 stages"]);
    let measured = [&["plan"], &sets[..], &["--json"]].concat();
    let answer: Value = serde_json::from_str(&done(&interlock(folder.path(), &measured))).unwrap();
    assert!(answer["rows"][0]["step_seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn plans_mark_a_refresh_interval_that_a_run_would_refuse() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("text.txt"), "to be or not to be ".repeat(20)).unwrap();
    let sets = [
        "data.kind=text",
        "data.path=text.txt",
        "data.tokenizer=chars",
        "data.context=8",
        "model.kind=transformer",
        "model.width=8",
        "model.heads=2",
        "model.layers=2",
        "partition.stages=3",
        "strategy.width=1",
        "batch_size=4",
        "heads.arch=ln_fc",
        "heads.train=needed",
        "heads.readout=shared",
        "heads.readout_refresh=3",
    ];
    let sets: Vec<String> = sets.into_iter().map(|set| format!("--set={set}")).collect();
    let plan = |more: &[&str]| {
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        interlock(folder.path(), &[&["plan"], &sets[..], more].concat())
    };
    // With 2 in flight stage 0 may be 4 micro-batches ahead.
    let why = "would fail: heads.readout_refresh: 3, but with 2 micro-batches in flight stage 0 may be so far ahead of the last \
               stage that it waits; use 5 or more";
    let both = plan(&["--micro-batches", "1,2"]);
    let shown = done(&both);
    assert!(
        shown.contains(&format!("1 micro-batch: {why}")) && !shown.contains("2 micro-batches: would fail"),
        "{shown}"
    );
    assert!(shown.contains("2 micro-batches: recommended"), "{shown}");
    let one = plan(&[]);
    assert_eq!(one.status.code(), Some(1));
    assert!(out(&one).contains(why) && err(&one).contains("nothing that was tried would run"), "{}", out(&one));
    // End-to-end needs no heads.
    assert!(!done(&plan(&["--widths", "e2e"])).contains("would fail"));
}

#[test]
fn plan_simulates_training_and_training_can_use_it() {
    let folder = TempDir::new().unwrap();
    let plan = [&["plan"], &SMALL[..]].concat();
    let more = ["--stages", "1,2", "--widths", "1", "--micro-batches", "1,2", "--trace", "plan.svg", "--json"];
    let answer: Value = serde_json::from_str(&done(&interlock(folder.path(), &[&plan[..], &more].concat()))).unwrap();
    let rows = answer["rows"].as_array().unwrap();
    let asked: Vec<_> = rows.iter().map(|row| (row["stages"].as_u64(), row["micro_batches"].as_u64())).collect();
    assert_eq!(asked, [(1, 1), (1, 2), (2, 1), (2, 2)].map(|(stages, micro)| (Some(stages), Some(micro))));
    for row in rows {
        let units: Vec<u64> = row["units_per_stage"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        assert_eq!((units.iter().sum::<u64>(), Some(units.len() as u64)), (4, row["stages"].as_u64()));
        assert!(row["step_seconds"].as_f64().unwrap() > 0.0 && row["proven"].as_bool().unwrap());
        assert!(row["memory_bytes"][0].as_u64().unwrap() > 0 && row["refused"].is_null());
    }
    assert!(answer["recommended"].is_u64() && answer["fastest"].is_u64());
    assert!(fs::read_to_string(folder.path().join("plan.svg")).unwrap().contains("simulated"));

    // Commas separate both the options of a device and the devices of a list.
    let devices = ["--devices", "cpu:threads=1,cores=0,cpu:threads=1", "--widths", "1", "--json"];
    let planned: Value =
        serde_json::from_str(&done(&interlock(folder.path(), &[&plan[..], &devices].concat()))).unwrap();
    assert_eq!(planned["rows"][0]["stages"], 2);

    // The file of `bench units` replaces measuring, for micro-batches of its size.
    done(&interlock(folder.path(), &[&["bench", "units"], &SMALL[..], &["--out", "costs.json"]].concat()));
    let from_file = [&plan[..], &["--costs", "costs.json"]].concat();
    let of_replicas = ["--micro-batches", "8", "--out", "eighth.json"];
    done(&interlock(folder.path(), &[&["bench", "units"], &SMALL[..], &of_replicas].concat()));
    let replicas = ["--costs", "eighth.json", "--replicas", "8", "--latency-us", "5"];
    let shown = done(&interlock(folder.path(), &[&plan[..], &replicas].concat()));
    assert!(
        shown.contains("recommended") && shown.contains("2 stages × 8 replicas, as configured, 1 micro-batch"),
        "{shown}"
    );
    // As many devices with each number of stages.
    let ranks = ["--costs", "eighth.json", "--costs", "costs.json", "--ranks", "16", "--stages", "2,3,4", "--json"];
    let planned = interlock(folder.path(), &[&plan[..], &ranks].concat());
    assert!(err(&planned).contains("no file has the costs of micro-batches of 8 examples"), "{}", err(&planned));
    let ranks = ["--costs", "eighth.json", "--ranks", "16", "--stages", "2,3", "--json"];
    let planned: Value = serde_json::from_str(&done(&interlock(folder.path(), &[&plan[..], &ranks].concat()))).unwrap();
    let rows: Vec<_> =
        planned["rows"].as_array().unwrap().iter().map(|row| (&row["stages"], &row["replicas"])).collect();
    assert_eq!(rows, [(&Value::from(2), &Value::from(8))]);
    // Four units in two stages, one by one.
    let units = shown.lines().find_map(|line| line.split_once("units of each stage: ")).unwrap().1;
    assert!(["1, 3 ", "2, 2 ", "3, 1 "].iter().any(|list| units.starts_with(list)), "{shown}");
    assert!(shown.contains("(no partition is faster)"), "{shown}");
    let too_little = interlock(folder.path(), &[&from_file[..], &["--dedicated", "--memory-mib", "0"]].concat());
    assert_eq!(too_little.status.code(), Some(1));
    assert!(
        out(&too_little).contains("would fail: stage") && err(&too_little).contains("nothing that was tried would run")
    );

    let refused = |more: &[&str], words: &[&str]| refused(folder.path(), &[&plan[..], more].concat(), words);
    refused(
        &["--costs", "costs.json", "--micro-batches", "2"],
        &["--costs", "micro-batches of 16", "the files have those of 32"],
    );
    refused(&["--costs", "none.json"], &["none.json"]);
    let mut costs = json(&folder.path().join("costs.json"));
    for (key, value, words) in [
        ("order", serde_json::json!([3]), "order names device 3, there are 1"),
        ("order", serde_json::json!([]), "there is no device"),
        ("devices", serde_json::json!([]), "there is no device"),
    ] {
        let kept = std::mem::replace(&mut costs[key], value);
        fs::write(folder.path().join("bad.json"), costs.to_string()).unwrap();
        refused(&["--costs", "bad.json"], &["costs of units", words, "bench units"]);
        costs[key] = kept;
    }
    refused(&["--costs", "costs.json", "--set", "model.blocks=[1, 2]"], &["4 units", "the model has 5"]);
    refused(
        &["--costs", "costs.json", "--set", "heads.arch=conv4_gbpl_fc"],
        &["the head \"conv4_gbpl_fc\" after unit 0 is missing", "bench units"],
    );
    // A file of another version.
    let heads = costs["devices"][0]["units"][1].as_object_mut().unwrap().remove("heads").unwrap();
    costs["devices"][0]["units"][1]["head"] = heads["gbpl_fc"].clone();
    fs::write(folder.path().join("old.json"), costs.to_string()).unwrap();
    refused(
        &["--costs", "old.json"],
        &["old.json", "unknown field `head`", "measure them again with `interlock bench units"],
    );
    let unit = costs["devices"][0]["units"][1].as_object_mut().unwrap();
    unit.remove("head");
    unit.insert("heads".to_owned(), heads);
    costs["devices"][0]["units"][1]["forward"] = Value::from(-1.0);
    fs::write(folder.path().join("bad.json"), costs.to_string()).unwrap();
    refused(&["--costs", "bad.json"], &["unit 1 has a cost of -1 seconds"]);
    refused(&["--stages", "5"], &["5 stages", "1 to 4 stages"]);
    refused(&["--stages", "0"], &["--stages", "1 to 1000"]);
    refused(&["--micro-batches", "33"], &["--micro-batches", "use 1 to 32"]);
    refused(&["--units-per-stage", "2,3"], &["[2, 3]", "4 units"]);
    refused(&["--widths", "3"], &["width 3", "1 (local) to 2"]);
    refused(&["--replicas", "0"], &["--replicas", "use 1 to 32"]);
    refused(&["--replicas", "1,33"], &["--replicas: 33", "use 1 to 32"]);
    refused(&["--ranks", "3"], &["--ranks: 3 with [2] stages", "a multiple of a number of stages"]);
    refused(&["--ranks", "0"], &["--ranks"]);
    refused(&["--replicas", "8", "--micro-batches", "5"], &["5 of each of 8 replicas", "use 1 to 4"]);
    refused(&["--ranks", "66", "--stages", "2"], &["--ranks: 66 are 33 replicas", "use 1 to 32"]);
    refused(&["--gbps", "0"], &["--gbps", "above 0"]);
    refused(&["--latency-us=-1"], &["--latency-us", "0 or more"]);
    refused(&["--trace", "plan.png"], &["--trace plan.png", ".svg"]);
    refused(&["--workload", "gpt"], &["--workload", "--set"]);

    let shown = done(&train(folder.path(), &[&SMALL[..], &["--auto"]].concat()));
    let written = fs::read_to_string(folder.path().join("run/config.toml")).unwrap();
    assert!(written.contains("units_per_stage = [") && shown.contains("units ["), "{written}");
}

#[test]
fn lr_find_suggests_a_rate_and_stops_where_losses_diverge() {
    let folder = TempDir::new().unwrap();
    // The length is that of `--steps`.
    let small: Vec<&str> = SMALL.into_iter().filter(|set| !set.contains("epochs")).collect();
    let find = [&["lr-find"], &small[..], &["--to", "1000", "--steps", "40"]].concat();
    let run = interlock(folder.path(), &[&find[..], &["--json", "--plot", "rates.svg"]].concat());
    let found: Value = serde_json::from_str(&done(&run)).unwrap();
    let lr = found["lr"].as_f64().unwrap();
    assert!((1e-4..1.0).contains(&lr), "{lr}");
    assert_eq!(found["diverged"], true);
    let steps = found["steps"].as_array().unwrap();
    assert!(steps.len() < 40 && steps[0]["lr"] == 1e-6, "{} steps", steps.len());
    assert!(steps.iter().all(|step| step["losses"][1].as_f64().unwrap().is_finite()));
    assert!(fs::read_to_string(folder.path().join("rates.svg")).unwrap().contains("learning rate"));
    let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["rates.svg"]);

    for (more, says) in [
        (["--from", "20"], "--to: 10; use a number above 20"),
        (["--steps", "5"], "--steps: 5; use 20 or more"),
        (["--plot", "no/rates.svg"], "--plot no/rates.svg: there is no folder no"),
        (["--set", "optimizer.lr=0"], "optimizer.lr: 0"),
    ] {
        refused(folder.path(), &[&["lr-find"], &small[..], &more].concat(), &[says]);
    }
}
