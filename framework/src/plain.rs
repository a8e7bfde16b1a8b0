//! A training step by plain calls: one stage after another, on the calling thread.
//!
//! It computes a step without actors, credits or a schedule. The actors must agree with it to the bit.

use std::sync::Arc;

use candle_core::Tensor;

use crate::{
    Activation, Batch, Error, Loss, Result, Score, Wants,
    model::Weights,
    optimizer::clip::ClipScope,
    schedule::{Action, MicroBatchId, Purpose, Remaining},
    stage::{ActionContext, Outcome, Payload, Stage, StageBlueprint, StageSettings},
    strategy::Plans,
    trainer::predictor::predict_at,
};

/// The stages of a model in one thread.
pub struct PlainPipeline {
    stages: Vec<Stage>,
    plans: Plans,
    global_norm: bool,
    loss: Arc<dyn Loss>,
    units_per_stage: Vec<usize>,
    step: u64,
    alignments: Vec<Option<f64>>,
}

impl PlainPipeline {
    /// Builds every stage.
    ///
    /// # Errors
    /// If a stage cannot be built.
    pub fn build(blueprints: &[StageBlueprint], plans: impl Into<Plans>, settings: &StageSettings) -> Result<Self> {
        let stages = blueprints.iter().map(StageBlueprint::build).collect::<Result<_, _>>()?;
        let global_norm = settings.clip.as_ref().is_some_and(|clip| clip.scope == ClipScope::Global);
        Ok(Self {
            stages,
            plans: plans.into(),
            global_norm,
            loss: settings.loss.clone(),
            units_per_stage: blueprints.iter().map(|stage| stage.units().len()).collect(),
            step: 0,
            alignments: Vec::new(),
        })
    }

    /// The stages.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The stages, for changes.
    pub fn stages_mut(&mut self) -> &mut [Stage] {
        &mut self.stages
    }

    /// The plans by step, as far as they are decided.
    pub fn plans(&self) -> &Plans {
        &self.plans
    }

    /// Runs one training step and returns the score of every stage that has a head or is the last.
    pub fn train_step(&mut self, batch: &Batch, micro_batches: usize) -> Result<Vec<Option<Score>>> {
        let plan = Arc::clone(self.plans.at(self.step));
        let total = self.loss.count(&batch.targets)?;
        let pieces = batch.split(micro_batches)?;
        let micros = pieces.len();
        for (micro, piece) in pieces.into_iter().enumerate() {
            let micro_batch = MicroBatchId { step: self.step, purpose: Purpose::Train, index: micro, count: micros };
            self.run_forward(micro_batch, Payload { inputs: piece.inputs, targets: piece.targets, total })?;
            for k in (0..self.stages.len()).rev() {
                self.run_head(k, micro_batch, plan.is_needed(k))?;
                let context = ActionContext { added_up: plan.added_up(k), ..ActionContext::default() };
                let alone: Vec<usize> =
                    plan.wants(k).iter().copied().filter(|&loss| plan.gradients(k, loss) != Wants::NOTHING).collect();
                for (at, &loss) in alone.iter().enumerate() {
                    let (wants, measured) = (plan.gradients(k, loss), plan.measures(k) == Some(loss));
                    let then = Remaining::after(false, at + 1 < alone.len() || !context.added_up.is_empty());
                    let action = Action::Backward { micro_batch, loss, wants, measured, then };
                    if let Outcome::Gradient(gradient) = self.stages[k].perform(action, context)? {
                        self.stages[k - 1].accept_gradient(micro_batch, loss, &gradient)?;
                    }
                }
                if !context.added_up.is_empty() {
                    let action = Action::BackwardSum { micro_batch, then: Remaining::Nothing };
                    self.stages[k].perform(action, context)?;
                }
                self.stages[k].free(micro_batch);
            }
        }
        let global_norm = if self.global_norm { Some(self.norm()?) } else { None };
        let mut readings = Vec::new();
        for stage in &mut self.stages {
            match stage.perform(Action::Update(self.step), ActionContext { global_norm, ..ActionContext::default() })? {
                Outcome::Updated(reading) => readings.push(reading),
                other => return Err(Error::Internal(format!("an update gave {other:?}"))),
            }
        }
        let (mut scores, mut alignments) = (Vec::new(), Vec::new());
        let mut received = None;
        for (stage, reading) in self.stages.iter_mut().zip(readings) {
            let numbers = stage.take(reading)?;
            scores.push(numbers.and_then(|numbers| numbers.score));
            alignments.push(numbers.and_then(|numbers| numbers.alignment));
            received = received.or_else(|| stage.received_non_finite().cloned());
        }
        if let Some(failure) = received {
            return Err(failure.into());
        }
        for k in 0..self.stages.len() {
            if let Some(version) = self.stages[k].take_published()? {
                self.stages.iter_mut().try_for_each(|stage| stage.accept_readout(version.clone()))?;
            }
        }
        self.plans.observe(self.step, &alignments)?;
        self.alignments = alignments;
        self.step += 1;
        Ok(scores)
    }

    /// Returns what each stage measured in the last training step: the cosine between the gradients that it followed and those that it measured.
    pub fn alignments(&self) -> &[Option<f64>] {
        &self.alignments
    }

    /// Returns every head's score of a batch in evaluation mode.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<Vec<Option<Score>>> {
        let total = self.loss.count(&batch.targets)?;
        let micro_batch = MicroBatchId { step: self.step, purpose: Purpose::Evaluate, index: 0, count: 1 };
        self.run_forward(micro_batch, Payload { inputs: batch.inputs.clone(), targets: batch.targets.clone(), total })?;
        (0..self.stages.len())
            .map(|k| {
                let score = self.run_head(k, micro_batch, false);
                self.stages[k].free(micro_batch);
                score
            })
            .collect()
    }

    /// Returns the last stage's output for `inputs` in evaluation mode.
    pub fn predict(&mut self, inputs: impl Into<Activation>) -> Result<Tensor> {
        let last = self.stages.len() - 1;
        predict_at(&mut self.stages, self.step, inputs.into(), last)
    }

    /// Returns a copy of every parameter and buffer.
    pub fn snapshot(&self) -> Result<Weights> {
        let stages = self.stages.iter().map(Stage::snapshot).collect::<Result<Vec<_>>>()?;
        Ok(Weights::of_stages(stages).with_units_per_stage(self.units_per_stage.clone()))
    }

    fn run_forward(&mut self, micro_batch: MicroBatchId, mut payload: Payload) -> Result<Payload> {
        for stage in &mut self.stages {
            stage.accept(micro_batch, payload)?;
            match stage.perform(Action::Forward(micro_batch), ActionContext::default())? {
                Outcome::Activation(next) => payload = next,
                other => return Err(Error::Internal(format!("a forward pass gave {other:?}"))),
            }
        }
        Ok(payload)
    }

    fn run_head(&mut self, k: usize, micro_batch: MicroBatchId, output_gradient: bool) -> Result<Option<Score>> {
        if k + 1 < self.stages.len() && !self.stages[k].has_head() {
            return Ok(None);
        }
        match self.stages[k].perform(Action::Head { micro_batch, output_gradient }, ActionContext::default())? {
            Outcome::Score(score) => Ok(Some(score)),
            // In training the score is among the numbers of the step.
            Outcome::None => Ok(None),
            other => Err(Error::Internal(format!("a head gave {other:?}"))),
        }
    }

    /// The norm of all main parameters' gradients, summed in the order of stages and parameters.
    fn norm(&mut self) -> Result<f64> {
        let mut sum = 0.0;
        for stage in &mut self.stages {
            if let Outcome::SquaredNorms(norms) =
                stage.perform(Action::ShareNorm(self.step), ActionContext::default())?
            {
                sum = norms.iter().fold(sum, |sum, norm| sum + norm);
            }
        }
        Ok(sum.sqrt())
    }
}
