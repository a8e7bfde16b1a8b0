//! Tests that malformed golden cases are refused, and that other results fail.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use interlock::Interlock;
use interlock_backends::cpu;
use interlock_models::golden::GoldenCase;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn results_of_another_interlock_width_fail() {
    let mut case = GoldenCase::read(folder().join("mlp-k5-w3")).unwrap();
    case.strategy = Interlock::width(2);
    let comparisons = case.compare(&case.replay(vec![cpu(0)]).unwrap());
    let failing: Vec<_> = comparisons.iter().filter(|c| !c.passes() && c.name.starts_with("grad/")).collect();
    // With both widths the last two stages follow the last loss, and heads their own losses.
    assert!(failing.iter().all(|c| (0..3).any(|stage| c.name.starts_with(&format!("grad/layers.{stage}.")))));
    assert_eq!(failing.len(), 6, "{failing:?}");
}

/// Copies a case, changes its `case.json` as text, and reads it.
fn read_changed(name: &str, from: &str, to: &str) -> String {
    let copy = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(folder().join(name).join("case.json")).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(copy.path().join("case.json"), text.replacen(from, to, 1)).unwrap();
    fs::copy(folder().join(name).join("tensors.safetensors"), copy.path().join("tensors.safetensors")).unwrap();
    let error = GoldenCase::read(copy.path()).unwrap_err();
    assert!(error.is_refusal());
    error.to_string()
}

#[test]
fn malformed_cases_are_refused() {
    for (from, to, says) in [
        ("\"steps\"", "\"step\"", "unknown field `step`"),
        ("\"seed\": 1", "\"seed\": 1,,", "line 32"),
        ("\"kind\": \"mlp\"", "\"kind\": \"mpl\"", "unknown variant `mpl`"),
        ("\"kind\": \"sgd\"", "\"kind\": \"sdg\"", "unknown variant `sdg`"),
        ("\"steps\": 3", "\"steps\": 0", "steps: it is 0"),
        ("\"steps\": 3", "\"steps\": 4", "there is no tensor batch/3/inputs"),
        ("\"steps\": 3", "\"steps\": 2", "does not ask for the tensor batch/2/inputs"),
        ("\"batch\": 6", "\"batch\": 5", "batch/0/inputs is f32 [6, 12]; the reference run needs f32 [5, 12]"),
        ("\"width\": 2", "\"width\": 0", "not interlock widths for 5 stages"),
        ("\"width\": 2", "\"width\": 2, \"widths\": [1, 2]", "2 and [1, 2] are not interlock widths"),
        ("\"units_per_stage\": [\n    1,", "\"units_per_stage\": [", "does not cut the model's 5 units"),
        ("\"units_per_stage\": [\n    1,", "\"units_per_stage\": [0, 1,", "at least one unit"),
        ("\"head\": \"fc\"", "\"head\": \"gbpl_fc\"", "part 1 of \"gbpl_fc\""),
        ("\"heads\": true", "\"heads\": false", "does not ask for the tensor local_loss/0/0"),
    ] {
        let text = read_changed("mlp-k5-w2", from, to);
        assert!(text.contains(says), "{from} -> {to}: {text}");
    }
    for (from, to, says) in [
        ("\"follow\": [", "\"follow\": [-1, ", "weight -1 at distance 0, for stage 0"),
        ("\"follow\": [", "\"follow\": [1, 1, 1, 1, ", "6 weights for stage 0 of 5"),
        ("\"follow\": [", "\"follows\": [[1]], \"follow\": [", "follow: follows is given too"),
    ] {
        let text = read_changed("mlp-k5-w2-mean", from, to);
        assert!(text.contains(says), "{from} -> {to}: {text}");
    }
    let text = read_changed("gpt-k4-w1", "\"context\": 16\n}", "\"size\": 16\n}");
    assert!(text.contains("context: it is not given"), "{text}");
}

#[test]
fn missing_misshaped_and_truncated_tensors_are_refused() {
    let name = "mlp-k5-w2";
    let source = folder().join(name).join("tensors.safetensors");
    let tensors = candle_core::safetensors::load(&source, &Device::Cpu).unwrap();
    let copy = tempfile::tempdir().unwrap();
    fs::copy(folder().join(name).join("case.json"), copy.path().join("case.json")).unwrap();
    let target = copy.path().join("tensors.safetensors");
    let refusal = || GoldenCase::read(copy.path()).unwrap_err().to_string();
    let three = || Tensor::new(&[1.0_f32, 2.0, 3.0], &Device::Cpu).unwrap();
    type Change = Box<dyn Fn(&mut HashMap<String, Tensor>)>;
    let remove = |name: &'static str| -> Change { Box::new(move |t| drop(t.remove(name))) };
    let insert = |name: &'static str| -> Change { Box::new(move |t| drop(t.insert(name.into(), three()))) };
    for (change, says) in [
        (remove("eval/logits"), "there is no tensor eval/logits"),
        (remove("loss/1"), "there is no tensor loss/1"),
        (remove("local_loss/2/3"), "there is no tensor local_loss/2/3"),
        (remove("batch/0/targets"), "there is no tensor batch/0/targets"),
        (remove("init/layers.0.weight"), "but no init/layers.0.weight"),
        (remove("final/layers.0.weight"), "but no final/layers.0.weight"),
        (insert("grad/layers.0.bias"), "grad/layers.0.bias has shape [3], init/layers.0.bias [16]"),
        (insert("loss/0"), "loss/0 is f32 [3]; the reference run needs f32 []"),
        (insert("batch/1/targets"), "batch/1/targets is f32 [3]; the reference run needs u32 [6]"),
        (insert("more"), "does not ask for the tensor more"),
    ] {
        let mut changed = tensors.clone();
        change(&mut changed);
        candle_core::safetensors::save(&changed, &target).unwrap();
        let text = refusal();
        assert!(text.contains(says), "{says}: {text}");
    }
    let bytes = fs::read(&source).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        fs::write(&target, &bytes[..length]).unwrap();
        assert!(refusal().contains("tensors.safetensors"), "{length}");
    }
    fs::remove_file(&target).unwrap();
    assert!(refusal().contains("tensors.safetensors"));
}
