//! Predictions of a trained model, without targets.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::{
    Activation, Adapted, Error, Failure, ModelSpec, NonFinite, Origin, Phase, Result, Trainer, Weights,
    schedule::{Action, MicroBatchId, Purpose},
    stage::{
        ActionContext, Outcome, Payload, Stage, StageBlueprint,
        initial::{AllowedDifferences, HeadName, InitialValues},
    },
    tensor::elementwise::is_finite,
};

/// A trained model that predicts in evaluation mode, on the calling thread.
///
/// [`Trainer::predictor`] makes one of a trainer's present weights, [`Predictor::new`] of a model and its saved weights. With auxiliary heads,
/// [`TrainerBuilder::predictor`](crate::trainer::TrainerBuilder::predictor) makes one of saved weights.
///
/// ```
/// # use candle_core::{DType, Device, Tensor};
/// # use candle_nn::linear;
/// # use interlock::{Autograd, ModelSpec, Result, Trainer, Unit, FromModule};
/// # struct Net;
/// # impl ModelSpec for Net {
/// #     fn units(&self) -> Result<Vec<Unit>> {
/// #         let unit = |name: &str| {
/// #             Unit::new(name, [4], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(4, 4, vb)?))))
/// #         };
/// #         Ok(vec![unit("first"), unit("second")])
/// #     }
/// #     fn head(&self, _: usize, _: &str) -> Result<Unit> {
/// #         Ok(Unit::new("", [4], |vb| Autograd::build(vb, |vb| Ok(FromModule(linear(4, 4, vb)?)))))
/// #     }
/// # }
/// use interlock::{Local, Predictor};
///
/// let trainer = Trainer::builder(Net).strategy(Local).stages(2).build()?;
/// let inputs = Tensor::ones((3, 4), DType::F32, &Device::Cpu)?;
/// let mut predictor = trainer.predictor()?;
/// let logits = predictor.predict(&inputs)?; // of the last stage
/// let early = predictor.predict_at(0, &inputs)?; // of the head of stage 0, which needs no other stage
/// assert_eq!((logits.dims(), early.dims()), (&[3, 4][..], &[3, 4][..]));
///
/// // The same from weights, such as those of a file.
/// let mut saved = Predictor::new(Net, trainer.snapshot()?)?;
/// assert_eq!(saved.predict(&inputs)?.to_vec2::<f32>()?, logits.to_vec2::<f32>()?);
/// # Ok::<(), interlock::Error>(())
/// ```
pub struct Predictor {
    stages: Vec<Stage>,
    /// The heads of the model that the weights do not hold.
    missing_heads: Vec<HeadName>,
    calls: u64,
}

impl Predictor {
    /// Builds `model` in one stage, on candle's CPU device, with these weights. Weights of auxiliary heads are not used.
    ///
    /// # Errors
    /// If a weight is missing, unknown or of another shape; the message lists them.
    pub fn new(model: impl ModelSpec + 'static, weights: impl Into<Arc<Weights>>) -> Result<Self> {
        Trainer::builder(model).predictor(weights)
    }

    /// Builds the stages with these weights.
    pub(crate) fn build(stages: &[StageBlueprint], weights: Adapted) -> Result<Self> {
        let InitialValues { values, differences } = InitialValues::of(weights, &[], stages)?;
        differences.refuse("weights", AllowedDifferences::default())?;
        differences.warn_of_heads_by_stage("weights");
        let missing_heads = differences.fresh_heads;
        let build = |stage: &StageBlueprint| {
            let has_head = !missing_heads.iter().any(|head| head.stage == stage.index);
            stage.for_predictions(Arc::clone(&values), has_head).build().map_err(Error::Failed)
        };
        Ok(Self { stages: stages.iter().map(build).collect::<Result<_>>()?, missing_heads, calls: 0 })
    }

    /// Returns the stages that have a head with weights, in order. The last stage always has one.
    pub fn heads(&self) -> Vec<usize> {
        (0..self.stages.len()).filter(|&k| has_head(&self.stages, k)).collect()
    }

    /// Returns the last stage's output for `inputs`, which are stacked along the first dimension as in a [`Batch`](crate::Batch). The output is on
    /// the CPU.
    ///
    /// # Errors
    /// If the inputs do not fit the model or are not finite, or a stage fails.
    pub fn predict(&mut self, inputs: impl Into<Activation>) -> Result<Tensor> {
        self.predict_at(self.stages.len() - 1, inputs)
    }

    /// Returns the output of stage `head`'s head for `inputs`. Later stages do nothing.
    ///
    /// # Errors
    /// As [`Self::predict`], or if stage `head` has no head, or the weights hold none that follows its last unit.
    pub fn predict_at(&mut self, head: usize, inputs: impl Into<Activation>) -> Result<Tensor> {
        let inputs = inputs.into();
        for tensor in inputs.tensors().iter().filter(|tensor| tensor.dtype().is_float()) {
            if !is_finite(tensor)? {
                return Err(Error::invalid("inputs", "they hold an infinity or a NaN", "give finite values"));
            }
        }
        if let Some(missing) = self.missing_heads.iter().find(|missing| missing.stage == head) {
            let problem = format!("the weights do not hold the head of stage {head} ({missing})");
            return Err(Error::invalid("head", problem, format!("heads are at stages {}", numbers(&self.heads()))));
        }
        self.calls += 1;
        predict_at(&mut self.stages, self.calls, inputs, head)
    }
}

fn numbers(heads: &[usize]) -> String {
    heads.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

fn has_head(stages: &[Stage], k: usize) -> bool {
    k + 1 == stages.len() || stages.get(k).is_some_and(Stage::has_head)
}

/// Returns the output of stage `head`'s head in evaluation mode, on the CPU and in `f32`. `call` tells calls apart.
pub(crate) fn predict_at(stages: &mut [Stage], call: u64, inputs: Activation, head: usize) -> Result<Tensor> {
    if !has_head(stages, head) {
        let heads: Vec<usize> = (0..stages.len()).filter(|&k| has_head(stages, k)).collect();
        let remedy = format!("heads are at stages {}", numbers(&heads));
        return Err(Error::invalid("head", format!("stage {head} has no head"), remedy));
    }
    let micro_batch = MicroBatchId { step: call, purpose: Purpose::Evaluate, index: 0, count: 1 };
    let output = forward(&mut stages[..=head], micro_batch, inputs);
    stages.iter_mut().for_each(|stage| stage.free(micro_batch));
    let output = output?.single()?.to_device(&Device::Cpu)?;
    if !output.dtype().is_float() {
        return Ok(output);
    }
    // A device may compute in less than f32, and an asynchronous one does not check values before they are read.
    let output = output.to_dtype(DType::F32)?;
    if !is_finite(&output)? {
        let cause = Error::NotFinite(NonFinite::Activation, "the output of the head is not finite".to_owned());
        return Err(Failure::new(Origin::Stage(head), Phase::Head, cause).into());
    }
    Ok(output)
}

/// Runs the forward pass through all of `stages`, and the last one's head.
fn forward(stages: &mut [Stage], micro_batch: MicroBatchId, inputs: Activation) -> Result<Activation> {
    // The targets are not used: there is no loss.
    let mut payload = Payload { inputs, targets: Tensor::zeros(1, DType::U32, &Device::Cpu)?, total: 1.0 };
    let last = stages.len() - 1;
    for (k, stage) in stages.iter_mut().enumerate() {
        stage.accept(micro_batch, payload).map_err(Error::Failed)?;
        match stage.perform(Action::Forward(micro_batch), ActionContext::default()).map_err(Error::Failed)? {
            Outcome::Activation(next) if k < last => payload = next,
            Outcome::Activation(_) => return stage.head_output(micro_batch).map_err(Error::Failed),
            other => return Err(Error::Internal(format!("a forward pass gave {other:?}"))),
        }
    }
    Err(Error::Internal("a predictor without stages".to_owned()))
}
