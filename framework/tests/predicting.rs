//! Predictors at every head, and weights against the model that they are for.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use candle_core::{D, Device, Tensor};
use common::{Perceptron, Spiral};
use interlock::{Dataset, EndToEnd, Interlock, Predictor, Trainer, TrainerBuilder, Weights};

fn model() -> Perceptron {
    Perceptron { layers: 4, fault: None }
}

fn builder() -> TrainerBuilder {
    Trainer::builder(model()).strategy(Interlock::width(2)).stages(3).probes().batch_size(10).epochs(20).seed(2)
}

fn trained() -> Trainer {
    let mut trainer = builder().build().unwrap();
    trainer.fit(&Spiral { examples: 60 }).unwrap();
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
    let evaluation = trainer.evaluate(&Spiral { examples: 60 }).unwrap();
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
    trainer.fit(&Spiral { examples: 60 }).unwrap();
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
    let expected = "initial values: 2 missing (aux.1.0.weight, layers.0.weight), 1 not in the model (layers.0.weihgt), \
                    2 of another shape (layers.1.weight, which is [8, 7] and must be [8, 8], \
                    layers.3.weight, which is [8, 10] and must be [8, 3]); give the weights of this model \
                    (allow_missing and allow_unknown allow other names)";
    let given = || builder().initial_values(weights.clone());
    for _ in 0..3 {
        let error = given().layout().err().unwrap();
        assert!(error.is_refusal());
        assert_eq!(error.to_string(), expected);
        assert_eq!(given().build().err().unwrap().to_string(), expected);
    }
    // Names may be allowed; shapes may not.
    let error = given().allow_missing(true).allow_unknown(true).build().err().unwrap().to_string();
    assert!(error.starts_with("initial values: 2 of another shape (layers.1.weight,"), "{error}");
    let error = builder().predictor(weights.clone()).err().unwrap().to_string();
    assert!(error.starts_with("weights: 2 missing (aux.1.0.weight, layers.0.weight)"), "{error}");
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
fn no_values_at_all_are_weights_of_another_model() {
    let error = builder().initial_values(Weights::default()).layout().err().unwrap().to_string();
    assert!(error.contains("6 missing"), "{error}");
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
    assert!(error.starts_with("initial values: 1 missing (first.weight); "), "{error}");
    let error = given(["first.weight", "second.weight"]);
    assert!(error.contains("no such layer"), "{error}");
}
