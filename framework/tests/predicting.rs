//! Predictors at every head, and weights against the model that they are for.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

#[path = "common/warnings.rs"]
mod warnings;

use std::fs;

use candle_core::{D, Device, Tensor};
use common::{Matrices, Perceptron, Spiral, scalars};
use interlock::{Dataset, EndToEnd, Interlock, Local, Predictor, Trainer, TrainerBuilder, Weights};
use warnings::warnings_of;

fn model() -> Perceptron {
    Perceptron { layers: 4, fault: None }
}

fn builder() -> TrainerBuilder {
    Trainer::builder(model()).strategy(Interlock::width(2)).stages(3).probes().batch_size(10).epochs(20).seed(2)
}

fn trained() -> Trainer {
    let mut trainer = builder().build().unwrap();
    trainer.fit(Spiral { examples: 60 }).unwrap();
    trainer
}

fn inputs() -> (Tensor, Tensor) {
    let batch = Spiral { examples: 60 }.batch(&(0..60).collect::<Vec<_>>(), None).unwrap();
    (batch.inputs.single().unwrap().clone(), batch.targets)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_predictor_gives_at_every_head_what_an_evaluation_scores() {
    let mut trainer = trained();
    let evaluation = trainer.evaluate(Spiral { examples: 60 }).unwrap();
    let mut predictor = trainer.predictor().unwrap();
    let (inputs, targets) = inputs();
    assert_eq!(predictor.heads(), [0, 1, 2]);
    for head in evaluation.heads() {
        let classes = predictor.predict_at(head.stage, &inputs).unwrap().argmax(D::Minus1).unwrap();
        let right: u32 = classes.eq(&targets).unwrap().to_vec1::<u8>().unwrap().into_iter().map(u32::from).sum();
        assert_eq!(Some(f64::from(right)), head.score.correct, "head {}", head.stage);
    }
    let last = predictor.predict(&inputs).unwrap();
    assert_eq!(bits(&last), bits(&predictor.predict_at(2, &inputs).unwrap()));
    // Later training does not change it.
    trainer.fit(Spiral { examples: 60 }).unwrap();
    assert_eq!(bits(&last), bits(&predictor.predict(&inputs).unwrap()));
    assert_ne!(bits(&last), bits(&trainer.predictor().unwrap().predict(&inputs).unwrap()));
}

#[test]
fn saved_weights_predict_as_their_trainer_does() {
    let trainer = trained();
    let (inputs, _) = inputs();
    let mut predictor = trainer.predictor().unwrap();
    let folder = tempfile::tempdir().unwrap();
    trainer.snapshot().unwrap().save(folder.path()).unwrap();
    assert!(folder.path().join("model-00003-of-00003.safetensors").exists());
    let weights = Weights::load(folder.path()).unwrap();
    let mut with_heads = builder().predictor(weights.clone()).unwrap();
    let mut in_one_piece = Predictor::new(model(), weights).unwrap();
    assert_eq!(bits(&predictor.predict_at(0, &inputs).unwrap()), bits(&with_heads.predict_at(0, &inputs).unwrap()));
    let expected = bits(&predictor.predict(&inputs).unwrap());
    assert_eq!(expected, bits(&with_heads.predict(&inputs).unwrap()));
    assert_eq!(expected, bits(&in_one_piece.predict(&inputs).unwrap()));
    assert_eq!(in_one_piece.heads(), [0]);
}

#[test]
fn a_head_that_is_not_there_and_inputs_that_are_not_finite_are_refused() {
    let trainer = Trainer::builder(model()).strategy(EndToEnd).stages(2).build().unwrap();
    let mut predictor = trainer.predictor().unwrap();
    let (inputs, _) = inputs();
    for head in [0, 2] {
        let error = predictor.predict_at(head, &inputs).unwrap_err().to_string();
        assert_eq!(error, format!("head: stage {head} has no head; heads are at stages 1"));
    }
    let error = predictor.predict((&inputs / 0.0).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("inputs: they hold an infinity or a NaN"), "{error}");
    // A wrong shape fails, and the next prediction is right.
    let expected = bits(&predictor.predict(&inputs).unwrap());
    assert!(predictor.predict(inputs.narrow(1, 0, 1).unwrap()).is_err());
    assert_eq!(expected, bits(&predictor.predict(&inputs).unwrap()));
}

fn tensor(dims: (usize, usize)) -> Tensor {
    Tensor::ones(dims, candle_core::DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn initial_values_of_another_model_are_refused_with_every_name() {
    let mut weights = trained().snapshot().unwrap();
    let misspelt = weights.remove("layers.0.weight").unwrap();
    weights.insert("layers.0.weihgt", misspelt);
    weights.remove("aux.1.0.weight").unwrap();
    weights.insert("layers.3.weight", tensor((8, 10)));
    weights.insert("layers.1.weight", tensor((8, 7)));
    let expected = "initial values: they fit 1 of the model's 4 tensors; give the weights of this model, or start these \
                    from the seed with skip_initial_values\n  \
                      fit                          1  layers.2.weight\n  \
                      missing                      1  layers.0.weight\n  \
                      not in the model             1  layers.0.weihgt\n  \
                      of another shape             2  layers.1.weight (is [8, 7], must be [8, 8]), \
                    layers.3.weight (is [8, 10], must be [8, 3])\n  \
                      heads without values         1  aux.1 after unit 1";
    let given = || builder().initial_values(weights.clone());
    for _ in 0..3 {
        let error = given().layout().err().unwrap();
        assert!(error.is_refusal());
        assert_eq!(error.to_string(), expected);
        assert_eq!(given().build().err().unwrap().to_string(), expected);
    }
    // Names may be allowed; shapes may not.
    let error = given().allow_missing(true).allow_unknown(true).build().err().unwrap().to_string();
    assert!(error.contains("of another shape             2  layers.1.weight"), "{error}");
    let error = builder().predictor(weights.clone()).err().unwrap().to_string();
    assert!(
        error.starts_with("weights: ") && error.contains("missing                      1  layers.0.weight"),
        "{error}"
    );
}

#[test]
fn misspelt_names_of_heads_are_refused_like_those_of_the_model() {
    let mut weights = trained().snapshot().unwrap();
    let misspelt = weights.remove("aux.0.0.weight").unwrap();
    weights.insert("aux.0.0.weihgt", misspelt.clone());
    let given = |weights: &Weights| builder().initial_values(weights.clone());
    let error = given(&weights).layout().err().unwrap().to_string();
    assert!(error.contains("not in the model             1  aux.0.0.weihgt\n"), "{error}");
    given(&weights).allow_unknown(true).build().unwrap();
    // Another head has other names; the model's own starts from the seed.
    weights.remove("aux.0.0.weihgt").unwrap();
    weights.insert("aux.0.1.weight", misspelt);
    given(&weights).build().unwrap();
}

#[test]
fn names_that_are_allowed_to_be_missing_start_from_the_seed() {
    let expected = builder().seed(9).build().unwrap().snapshot().unwrap();
    let mut weights = trained().snapshot().unwrap();
    weights.remove("layers.3.weight").unwrap();
    weights.insert("other", tensor((1, 1)));
    let trainer = builder().seed(9).initial_values(weights.clone()).allow_missing(true).allow_unknown(true);
    let found = trainer.build().unwrap().snapshot().unwrap();
    assert!(found.names().eq(expected.names()));
    for (name, tensor) in &found {
        let source = if name == "layers.3.weight" { &expected } else { &weights };
        assert_eq!(bits(tensor), bits(&source[name]), "{name}");
    }
}

#[test]
fn half_of_the_names_may_be_missing_where_that_is_allowed() {
    let mut weights = trained().snapshot().unwrap();
    let given = |weights: &Weights| builder().initial_values(weights.clone()).allow_half_missing(true);
    let layout = |weights: &Weights| given(weights).layout().map(|layout| layout.initial_values().unwrap());
    assert_eq!(layout(&weights).unwrap(), "they fit 4 of the model's 4 tensors");
    weights.remove("layers.3.weight").unwrap();
    weights.remove("layers.0.weight").unwrap();
    assert_eq!(layout(&weights).unwrap(), "they fit 2 of the model's 4 tensors");
    let (_, warnings) = warnings_of(|| given(&weights).build().unwrap());
    assert!(warnings[0].contains("missing                      2  layers.0.weight, layers.3.weight"), "{warnings:?}");
    weights.remove("layers.1.weight").unwrap();
    let error = layout(&weights).unwrap_err().to_string();
    assert!(error.contains("fit 1 of the model's 4 tensors; give weights of this model; where fewer"), "{error}");
}

#[test]
fn names_that_are_skipped_start_from_the_seed_although_they_are_given() {
    let fresh = builder().seed(9).build().unwrap().snapshot().unwrap();
    let mut weights = trained().snapshot().unwrap();
    weights.insert("layers.3.weight", tensor((8, 10)));
    let given = |patterns: &[&str]| {
        builder().seed(9).initial_values(weights.clone()).skip_initial_values(patterns.iter().copied())
    };
    let found = given(&["layers.3.*", "aux.*"]).build().unwrap().snapshot().unwrap();
    for (name, tensor) in &found {
        let source = if name == "layers.3.weight" || name.starts_with("aux.") { &fresh } else { &weights };
        assert_eq!(bits(tensor), bits(&source[name]), "{name}");
    }
    let error = |patterns: &[&str]| given(patterns).layout().err().unwrap().to_string();
    let wrong = "initial values: skip_initial_values: no name matches \"layer.3.*\"; the names most like it are layers.3.weight";
    assert!(error(&["layer.3.*"]).starts_with(wrong), "{}", error(&["layer.3.*"]));
    assert!(error(&["["]).contains("use names with *, ? and [...]"));
    assert!(error(&["layers.0.*"]).contains("of another shape             1  layers.3.weight"));
}

#[test]
fn values_that_cannot_be_trained_are_refused_by_name() {
    let weights = || trained().snapshot().unwrap();
    let refused = |weights: Weights| builder().initial_values(weights).layout().err().unwrap().to_string();
    let mut broken = weights();
    broken.insert("layers.2.weight", (tensor((8, 8)) / 0.0).unwrap());
    let row = "with infinities or NaN       1  layers.2.weight";
    assert!(refused(broken.clone()).contains(row), "{}", refused(broken.clone()));
    assert!(builder().predictor(broken).err().unwrap().to_string().contains(row));
    let mut head = weights();
    head.insert("aux.0.0.weight", (head["aux.0.0.weight"].clone() * f64::NAN).unwrap());
    assert!(refused(head.clone()).contains("with infinities or NaN       1  aux.0.0.weight"), "{}", refused(head));
    let mut whole = weights();
    whole.insert("layers.2.weight", tensor((8, 8)).to_dtype(candle_core::DType::I64).unwrap());
    assert!(refused(whole).contains("no floats                    1  layers.2.weight (I64)"));
    // Numbers of fewer bits are floats too.
    let mut half = weights();
    half.insert("layers.2.weight", tensor((8, 8)).to_dtype(candle_core::DType::BF16).unwrap());
    builder().initial_values(half).build().unwrap();
}

#[test]
fn the_names_that_wrappers_add_are_left_out() {
    let weights = trained().snapshot().unwrap();
    for wrapped in ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "model.module."] {
        let given = weights.clone().renamed(|name| Some(format!("{wrapped}{name}"))).unwrap();
        let found = builder().initial_values(given).build().unwrap().snapshot().unwrap();
        assert!(found.iter().all(|(name, tensor)| bits(tensor) == bits(&weights[name])), "{wrapped}");
    }
    // A part of the model that is compiled, and a name that some tensors have by chance.
    let given = weights.clone().renamed(|name| Some(name.replace("layers.1.", "layers.1._orig_mod."))).unwrap();
    let layout = builder().initial_values(given).layout().unwrap();
    let summary = layout.initial_values().unwrap();
    assert_eq!(summary, "they fit 4 of the model's 4 tensors; the parts of names that wrappers add were left out");
    let given = weights.clone().renamed(|name| Some(name.replace("layers.1.", "module.layers.1."))).unwrap();
    assert!(builder().initial_values(given).layout().is_err());
    let mut twice = weights;
    twice.insert("_orig_mod.layers.1.weight", tensor((8, 8)));
    let error = builder().initial_values(twice).layout().err().unwrap().to_string();
    assert!(error.contains("both called layers.1.weight"), "{error}");
}

#[test]
fn no_values_at_all_are_weights_of_another_model() {
    let error = builder().initial_values(Weights::default()).layout().err().unwrap().to_string();
    assert!(error.contains("fit 0 of the model's 4 tensors"), "{error}");
    assert!(Predictor::new(model(), Weights::default()).is_err());
}

/// A model whose second unit cannot be built.
struct Unbuildable;

impl interlock::ModelSpec for Unbuildable {
    fn units(&self) -> interlock::Result<Vec<interlock::Unit>> {
        Ok(vec![
            interlock::Unit::new("first", [1], |vb| common::Scale::new(&vb)),
            interlock::Unit::new("second", [1], |vb| {
                common::Scale::new(&vb)?;
                Err::<common::Scale, _>(interlock::Error::Data("no such layer".to_owned()))
            }),
        ])
    }
}

#[test]
fn values_are_compared_as_far_as_a_model_can_be_built() {
    let given = |names: [&str; 2]| {
        let weights =
            names.map(|name| (name.to_owned(), Tensor::ones(1, candle_core::DType::F32, &Device::Cpu).unwrap()));
        Trainer::builder(Unbuildable).initial_values(Weights::from_iter(weights)).build().err().unwrap().to_string()
    };
    let error = given(["first.weihgt", "second.weight"]);
    assert!(error.contains("missing                      1  first.weight"), "{error}");
    let error = given(["first.weight", "second.weight"]);
    assert!(error.contains("no such layer"), "{error}");
}

/// Six units, cut in this way. All heads have the same shapes.
fn cut(units_per_stage: &[usize]) -> TrainerBuilder {
    let model = Perceptron { layers: 6, fault: None };
    Trainer::builder(model).strategy(Local).units_per_stage(units_per_stage).batch_size(10).epochs(4).seed(2)
}

/// Trained weights with heads after units 1 and 3, after a trip through files.
fn weights_of_three_pairs() -> Weights {
    let mut trainer = cut(&[2, 2, 2]).build().unwrap();
    trainer.fit(Spiral { examples: 60 }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    trainer.snapshot().unwrap().save(folder.path()).unwrap();
    let weights = Weights::load(folder.path()).unwrap();
    assert_eq!(weights.units_per_stage(), Some(&[2, 2, 2][..]));
    weights
}

const FRESH: &str = "heads without values";
const UNUSED: &str = "heads that are not used";
const BY_STAGE: &str = "initial values: they do not say which units their heads followed, so heads were found by the \
                        stage's number: ";

/// Asserts that a trainer cut in this way starts with the heads of `weights` that `heads` names for each stage, and with fresh ones elsewhere.
fn assert_heads(weights: &Weights, units_per_stage: &[usize], heads: &[Option<usize>], expected: &[(&str, &str)]) {
    let builder = || cut(units_per_stage).seed(9);
    let fresh = builder().build().unwrap().snapshot().unwrap();
    let (trainer, warnings) = warnings_of(|| builder().initial_values(weights.clone()).build().unwrap());
    let found = trainer.snapshot().unwrap();
    assert!(found.names().eq(fresh.names()));
    assert_eq!(found.units_per_stage(), Some(units_per_stage));
    for (name, tensor) in &found {
        let stage = name.strip_prefix("aux.").map(|rest| rest.split('.').next().unwrap().parse::<usize>().unwrap());
        let source = match stage.map(|stage| heads[stage]) {
            None => &weights[name],
            Some(Some(source)) => &weights[&*format!("aux.{source}.0.weight")],
            Some(None) => &fresh[name],
        };
        assert_eq!(bits(tensor), bits(source), "{name} in {units_per_stage:?}");
    }
    let expected: Vec<String> = expected.iter().map(|(what, heads)| format!("{what}{heads}")).collect();
    assert_eq!(told_of_heads(&warnings), expected, "{units_per_stage:?}");
}

/// What warnings tell about heads: each row of their tables, without the number, and each warning about stages' numbers.
fn told_of_heads(warnings: &[String]) -> Vec<String> {
    let row = |line: &str| match line.trim_start().split_once("   ") {
        Some((what, names)) if what.starts_with("heads ") => {
            Some(format!("{what}{}", names.trim_start().split_once("  ")?.1))
        }
        _ => line.starts_with(BY_STAGE).then(|| line.to_owned()),
    };
    warnings.iter().flat_map(|warning| warning.lines().filter_map(row)).collect()
}

#[test]
fn heads_are_carried_over_at_their_unit_and_others_start_from_the_seed() {
    let weights = weights_of_three_pairs();
    assert_heads(&weights, &[2, 2, 2], &[Some(0), Some(1)], &[]);
    // The same stage's number is no reason: here stage 1 ends with unit 2.
    let expected = [(FRESH, "aux.1 after unit 2"), (UNUSED, "aux.1 after unit 3")];
    assert_heads(&weights, &[2, 1, 3], &[Some(0), None], &expected);
    let expected = [(FRESH, "aux.0 after unit 0"), (UNUSED, "aux.0 after unit 1")];
    assert_heads(&weights, &[1, 3, 2], &[None, Some(1)], &expected);
    // Under other stages' numbers.
    let expected = [(FRESH, "aux.1 after unit 4"), (UNUSED, "aux.0 after unit 1")];
    assert_heads(&weights, &[4, 1, 1], &[Some(1), None], &expected);
    assert_heads(&weights, &[1, 1, 2, 2], &[None, Some(0), Some(1)], &[(FRESH, "aux.0 after unit 0")]);
    assert_heads(&weights, &[6], &[], &[(UNUSED, "aux.0 after unit 1, aux.1 after unit 3")]);
}

#[test]
fn heads_of_other_names_or_shapes_start_from_the_seed_as_a_whole() {
    let mut weights = weights_of_three_pairs();
    weights.insert("aux.0.0.bias", tensor((1, 3)));
    weights.insert("aux.1.0.weight", tensor((4, 3)));
    let heads = "aux.0 after unit 1, aux.1 after unit 3";
    assert_heads(&weights, &[2, 2, 2], &[None, None], &[(FRESH, heads), (UNUSED, heads)]);
    weights.remove("aux.0.0.bias").unwrap();
    weights.remove("aux.1.0.weight").unwrap();
    assert_heads(&weights, &[2, 2, 2], &[Some(0), None], &[(FRESH, "aux.1 after unit 3")]);
    let strict = || cut(&[2, 2, 2]).initial_values(weights.clone()).allow_missing_heads(false);
    let error = strict().build().err().unwrap().to_string();
    let expected =
        ["give weights that were trained with these heads", "heads without values         1  aux.1 after unit 3"];
    assert!(expected.iter().all(|words| error.contains(words)), "{error}");
    // A run that is restored is exact, so it needs its heads.
    let state = cut(&[2, 2, 2]).build().unwrap().state().unwrap();
    let error = cut(&[2, 2, 2]).initial_values(weights).restore(state).build().err().unwrap().to_string();
    assert!(expected.iter().all(|words| error.contains(words)), "{error}");
}

#[test]
fn weights_of_earlier_versions_are_loaded_and_their_heads_found_by_stage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    let given = weights_of_three_pairs();
    given.save(folder.path()).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let metadata = index["metadata"].as_object_mut().unwrap();
    assert_eq!(metadata.remove("units_per_stage"), Some(serde_json::json!([2, 2, 2])));
    assert!(metadata.remove("shard_checksums").is_some() && metadata.remove("index_checksum").is_some());
    fs::write(&path, index.to_string()).unwrap();
    let weights = Weights::load(folder.path()).unwrap();
    assert_eq!(weights.units_per_stage(), None);
    let expected = [(BY_STAGE, "aux.0 after unit 1, aux.1 after unit 2")];
    assert_heads(&weights, &[2, 1, 3], &[Some(0), Some(1)], &expected);
    assert_heads(&weights, &[2, 4], &[Some(0)], &[(UNUSED, "aux.1"), (BY_STAGE, "aux.0 after unit 1")]);
    // Who knows the partition can tell it.
    let expected = [(FRESH, "aux.1 after unit 2"), (UNUSED, "aux.1 after unit 3")];
    assert_heads(&weights.clone().with_units_per_stage([2, 2, 2]), &[2, 1, 3], &[Some(0), None], &expected);

    let (predictor, warnings) = warnings_of(|| cut(&[2, 2, 2]).predictor(weights).unwrap());
    assert_eq!(predictor.heads(), [0, 1, 2]);
    assert_eq!(warnings, [BY_STAGE.replace("initial values", "weights") + "aux.0 after unit 1, aux.1 after unit 3"]);
}

#[test]
fn a_predictor_uses_heads_at_their_unit_and_refuses_others() {
    let weights = weights_of_three_pairs();
    let (inputs, _) = inputs();
    let mut whole = cut(&[2, 2, 2]).predictor(weights.clone()).unwrap();
    let expected = [0, 1, 2].map(|head| bits(&whole.predict_at(head, &inputs).unwrap()));
    let check = |units_per_stage: &[usize], heads: &[(usize, usize)], missing: &[(usize, usize)]| {
        let (predictor, warnings) = warnings_of(|| cut(units_per_stage).predictor(weights.clone()));
        assert_eq!(warnings, [""; 0]);
        let mut predictor = predictor.unwrap();
        assert_eq!(predictor.heads(), heads.iter().map(|(stage, _)| *stage).collect::<Vec<_>>());
        for &(stage, source) in heads {
            assert_eq!(bits(&predictor.predict_at(stage, &inputs).unwrap()), expected[source], "{units_per_stage:?}");
        }
        let known = heads.iter().map(|(stage, _)| stage.to_string()).collect::<Vec<_>>().join(", ");
        for (stage, unit) in missing {
            let error = predictor.predict_at(*stage, &inputs).unwrap_err();
            assert!(error.is_refusal());
            let problem = format!("the weights do not hold the head of stage {stage} (aux.{stage} after unit {unit})");
            assert_eq!(error.to_string(), format!("head: {problem}; heads are at stages {known}"));
        }
    };
    check(&[4, 1, 1], &[(0, 1), (2, 2)], &[(1, 4)]);
    check(&[2, 1, 3], &[(0, 0), (2, 2)], &[(1, 2)]);
    check(&[1, 3, 2], &[(1, 1), (2, 2)], &[(0, 0)]);
    check(&[6], &[(0, 2)], &[]);
}

/// A model whose only unit has the name of a head.
struct NamedAsAHead;

impl interlock::ModelSpec for NamedAsAHead {
    fn units(&self) -> interlock::Result<Vec<interlock::Unit>> {
        Ok(vec![interlock::Unit::new("aux.0", [1], |vb| common::Scale::new(&vb))])
    }
}

#[test]
fn main_parameters_that_are_named_as_a_head_are_no_head() {
    let weights = Trainer::builder(NamedAsAHead).seed(3).build().unwrap().snapshot().unwrap();
    let trainer = Trainer::builder(NamedAsAHead).initial_values(weights.clone()).build().unwrap();
    assert_eq!(bits(&trainer.snapshot().unwrap()["aux.0.weight"]), bits(&weights["aux.0.weight"]));
    let error = Predictor::new(NamedAsAHead, Weights::default()).err().unwrap().to_string();
    assert!(error.contains("missing                      1  aux.0.weight"), "{error}");
}

#[test]
fn a_model_with_given_heads_can_be_profiled_unit_by_unit() {
    let builder = || Trainer::builder(Matrices { dims: vec![1, 2, 3, 1] }).strategy(Local).units_per_stage([2, 1]);
    let weights = builder().build().unwrap().snapshot().unwrap();
    assert_eq!(weights["aux.0.weight"].dims(), [3, 1]);
    let builder = builder().loss(common::Slope(1.0)).initial_values(weights);
    builder.profile(&scalars(&[1.0, 2.0]), None).unwrap();
}
