//! Layers, names and models against the golden cases: step 0 of every case by plain calls, and the trained model's logits.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use interlock::{
    Activation, Batch, Differentiable, Gradients, ParameterStore, Pass, Sequential, Wants,
    clip::{ClipConfig, ClipScope},
    parameters::unused,
};
use interlock_models::golden::{Comparison, Computed, GoldenCase};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn cases() -> Vec<GoldenCase> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    folders.iter().map(|f| GoldenCase::read(f).unwrap_or_else(|e| panic!("{e}"))).collect()
}

fn case(name: &str) -> GoldenCase {
    GoldenCase::read(folder().join(name)).unwrap()
}

/// A case's model, cut into stages, over one store.
struct Built {
    store: ParameterStore,
    stages: Vec<Sequential>,
    heads: Vec<Option<Box<dyn Differentiable>>>,
    /// The stated output shape of each stage and head, without the batch dimension.
    outputs: Vec<(Vec<usize>, Option<Vec<usize>>)>,
}

impl Built {
    fn new(case: &GoldenCase) -> Self {
        let store = ParameterStore::new(0, case.init.clone());
        let root = store.builder(&Device::Cpu);
        let spec = case.spec().unwrap();
        let units = spec.units().unwrap();
        let mut built = Self { store, stages: vec![], heads: vec![], outputs: vec![] };
        let mut at = 0;
        for (stage, &count) in case.units_per_stage.iter().enumerate() {
            let part = &units[at..at + count];
            at += count;
            built.stages.push(Sequential::new(part.iter().map(|u| u.build(&root).unwrap()).collect()));
            let headed = case.heads && stage + 1 < case.stages();
            let head = headed.then(|| spec.head(at - 1, &case.head).unwrap());
            built.heads.push(head.as_ref().map(|h| h.build(&root.pp("aux").pp(stage)).unwrap()));
            built.outputs.push((part[count - 1].output.clone(), head.map(|h| h.output)));
        }
        let names: Vec<String> = built.store.entries().into_iter().map(|e| e.name).collect();
        assert_eq!(unused(&case.init, names.iter().map(String::as_str)), [""; 0], "{}", case.name);
        assert_eq!(built.store.fresh(), [""; 0], "{}", case.name);
        built
    }

    fn name(&self, id: candle_core::TensorId) -> String {
        self.store.entries()[self.store.position(id).unwrap()].name.clone()
    }

    /// Adds `found` to `sums` by name.
    fn add(&self, sums: &mut BTreeMap<String, Tensor>, found: Gradients) {
        for (id, gradient) in found {
            let name = self.name(id);
            let sum = match sums.get(&name) {
                Some(before) => (before + &gradient).unwrap(),
                None => gradient,
            };
            sums.insert(name, sum);
        }
    }

    /// One micro-batch of step 0: adds its gradients, gives its part of each stage's mean loss.
    fn differentiate(
        &self,
        widths: &[usize],
        piece: &Batch,
        micro: usize,
        total: f64,
        gradients: &mut BTreeMap<String, Tensor>,
    ) -> Vec<Option<f64>> {
        let pass = Pass::train(0, 0, micro);
        let last = self.stages.len() - 1;
        let (mut x, mut saved, mut losses, mut cotangents) = (piece.inputs.clone(), vec![], vec![], vec![]);
        for (stage, module) in self.stages.iter().enumerate() {
            let (y, kept) = module.forward(&x, &pass).unwrap();
            assert_eq!(y.single().unwrap().dims()[1..], self.outputs[stage].0);
            saved.push(kept);
            let mut loss = None;
            let mut cotangent = None;
            if let Some(head) = &self.heads[stage] {
                let (logits, kept) = head.forward(&y, &pass).unwrap();
                assert_eq!(logits.single().unwrap().dims()[1..], *self.outputs[stage].1.as_ref().unwrap());
                let (value, gradient) = cross_entropy(&logits, &piece.targets, total);
                let pulled = head.pull_back(&kept, &gradient, Wants::BOTH).unwrap();
                self.add(gradients, pulled.parameters);
                (loss, cotangent) = (Some(value), pulled.input);
            } else if stage == last {
                let (value, gradient) = cross_entropy(&y, &piece.targets, total);
                (loss, cotangent) = (Some(value), Some(gradient));
            }
            losses.push(loss);
            cotangents.push(cotangent);
            x = y;
        }
        for stage in 0..=last {
            let follows = (stage + widths[stage] - 1).min(last);
            let mut cotangent = cotangents[follows].clone().unwrap();
            for above in (stage + 1..=follows).rev() {
                let pulled = self.stages[above].pull_back(&saved[above], &cotangent, Wants::INPUT).unwrap();
                assert!(pulled.parameters.is_empty());
                cotangent = pulled.input.unwrap();
            }
            let pulled = self.stages[stage].pull_back(&saved[stage], &cotangent, Wants::PARAMETERS).unwrap();
            self.add(gradients, pulled.parameters);
        }
        losses
    }

    fn evaluate(&self, inputs: &Activation) -> Tensor {
        let mut x = inputs.clone();
        for stage in &self.stages {
            x = stage.forward(&x, &Pass::eval()).unwrap().0;
        }
        x.single().unwrap().clone()
    }

    /// The stage of a main parameter, or the head of a head's.
    fn group(&self, case: &GoldenCase, name: &str) -> String {
        if let Some(rest) = name.strip_prefix("aux.") {
            return format!("head {}", rest.split('.').next().unwrap());
        }
        let Some(ClipConfig { scope: ClipScope::Stage, .. }) = case.clip else { return "all".into() };
        // Build the stages one by one to learn which names are whose.
        let units = case.spec().unwrap().units().unwrap();
        let mut at = 0;
        for (stage, &count) in case.units_per_stage.iter().enumerate() {
            let store = ParameterStore::new(0, case.init.clone());
            for unit in &units[at..at + count] {
                unit.build(&store.builder(&Device::Cpu)).unwrap();
            }
            at += count;
            if store.entries().iter().any(|e| e.name == name) {
                return format!("stage {stage}");
            }
        }
        panic!("{name} is nobody's");
    }
}

/// The sum of cross-entropies divided by `total`, and its gradient; by the definition, in f64.
fn cross_entropy(logits: &Activation, targets: &Tensor, total: f64) -> (f64, Activation) {
    let logits = logits.single().unwrap();
    let rows: Vec<Vec<f32>> = logits.flatten_to(logits.rank() - 2).unwrap().to_vec2().unwrap();
    let targets: Vec<u32> = targets.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(rows.len(), targets.len());
    let (mut loss, mut gradient) = (0.0, Vec::new());
    for (row, &target) in rows.iter().zip(&targets) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f64> = row.iter().map(|&z| f64::from(z - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        loss -= (powers[target as usize] / sum).ln() / total;
        let probabilities = powers.iter().map(|p| p / sum).enumerate();
        gradient.extend(probabilities.map(|(at, p)| ((p - f64::from(u8::from(at == target as usize))) / total) as f32));
    }
    let gradient = Tensor::from_vec(gradient, logits.shape(), &Device::Cpu).unwrap();
    (loss, gradient.into())
}

fn clip(built: &Built, case: &GoldenCase, gradients: &mut BTreeMap<String, Tensor>) {
    let Some(Clip { max_norm, .. }) = case.clip else { return };
    let mut squares: HashMap<String, f64> = HashMap::new();
    for (name, gradient) in gradients.iter() {
        let square = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        *squares.entry(built.group(case, name)).or_default() += f64::from(square);
    }
    for (name, gradient) in gradients.iter_mut() {
        let norm = squares[&built.group(case, name)].sqrt();
        *gradient = gradient.affine((max_norm / (norm + 1e-6)).min(1.0), 0.0).unwrap();
    }
}

/// What plain calls compute of a case: losses and gradients of step 0, and the trained model's logits. What would need an
/// optimizer is taken from the case.
fn replay(case: &GoldenCase, widths: &[usize]) -> Computed {
    let built = Built::new(case);
    let batch = &case.batches[0];
    let total = batch.targets.elem_count() as f64;
    let mut gradients = BTreeMap::new();
    let mut losses: Vec<Option<f64>> = vec![None; case.stages()];
    for (micro, piece) in batch.split(case.micro_batches).unwrap().iter().enumerate() {
        let parts = built.differentiate(widths, piece, micro, total, &mut gradients);
        for (sum, part) in losses.iter_mut().zip(parts) {
            *sum = part.map(|part| sum.unwrap_or(0.0) + part);
        }
    }
    clip(&built, case, &mut gradients);
    built.store.load(&case.expected.finals).unwrap();
    let mut all_losses = case.expected.losses.clone();
    all_losses[0] = losses;
    Computed {
        losses: all_losses,
        gradients: gradients.into_iter().collect(),
        finals: case.expected.finals.clone(),
        logits: built.evaluate(&batch.inputs),
    }
}

fn failing(comparisons: &[Comparison]) -> Vec<String> {
    comparisons.iter().filter(|c| !c.passes()).map(ToString::to_string).collect()
}

#[test]
fn step_0_and_the_trained_models_logits_agree_with_every_case() {
    let cases = cases();
    assert_eq!(cases.len(), 17);
    for case in cases {
        let comparisons = case.compare(&replay(&case, &case.widths));
        assert_eq!(failing(&comparisons), [""; 0], "{}", case.name);
    }
}

#[test]
fn another_interlock_width_does_not_agree() {
    let case = case("mlp-k5-w3");
    let comparisons = case.compare(&replay(&case, &[2; 5]));
    let failing = failing(&comparisons);
    // The last two stages follow the last loss either way; the heads their own.
    assert!(failing.iter().all(|f| (0..3).any(|stage| f.starts_with(&format!("grad/layers.{stage}.")))), "{failing:?}");
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
fn a_malformed_case_is_refused() {
    for (from, to, says) in [
        ("\"steps\"", "\"step\"", "unknown field `step`"),
        ("\"seed\": 1", "\"seed\": 1,,", "line 32"),
        ("\"kind\": \"mlp\"", "\"kind\": \"mpl\"", "unknown variant `mpl`"),
        ("\"kind\": \"sgd\"", "\"kind\": \"sdg\"", "unknown variant `sdg`"),
        ("\"steps\": 3", "\"steps\": 0", "steps: it is 0"),
        ("\"steps\": 3", "\"steps\": 4", "there is no tensor batch/3/inputs"),
        ("\"steps\": 3", "\"steps\": 2", "does not ask for the tensor batch/2/inputs"),
        ("\"batch\": 6", "\"batch\": 5", "batch/0/inputs is f32 [6, 12]; the case needs f32 [5, 12]"),
        ("\"width\": 2", "\"width\": 0", "no interlock widths of 5 stages"),
        ("\"width\": 2", "\"width\": 2, \"widths\": [1, 2]", "2 and [1, 2] are no interlock widths"),
        ("\"units_per_stage\": [\n    1,", "\"units_per_stage\": [", "does not cut the model's 5 units"),
        ("\"units_per_stage\": [\n    1,", "\"units_per_stage\": [0, 1,", "at least one unit"),
        ("\"head\": \"fc\"", "\"head\": \"gbpl_fc\"", "part 1 of \"gbpl_fc\""),
        ("\"heads\": true", "\"heads\": false", "does not ask for the tensor local_loss/0/0"),
    ] {
        let text = read_changed("mlp-k5-w2", from, to);
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
        (insert("loss/0"), "loss/0 is f32 [3]; the case needs f32 []"),
        (insert("batch/1/targets"), "batch/1/targets is f32 [3]; the case needs u32 [6]"),
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
