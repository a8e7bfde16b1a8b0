//! Runs a case.

use std::{collections::HashMap, sync::Arc};

use interlock::{
    HeadsConfig, HeadsTrained, Result, Score, StageDevice, Trainer, TrainerBuilder,
    tools::{plain::PlainPipeline, stage::Stage},
};

use super::{Computed, GoldenCase};

impl GoldenCase {
    /// Returns a trainer with everything of the case but its batches, on `devices`.
    ///
    /// # Errors
    /// None for a case that was read and not changed.
    pub fn trainer(&self, devices: Vec<Arc<dyn StageDevice>>) -> Result<TrainerBuilder> {
        let train = if self.heads { HeadsTrained::All } else { HeadsTrained::Needed };
        Ok(Trainer::builder(self.spec()?)
            .units_per_stage(self.units_per_stage.clone())
            .strategy(self.strategy.clone())
            .heads(HeadsConfig { arch: Some(self.head.clone()), train, ..HeadsConfig::default() })
            .optimizer(self.optimizer.clone())
            .clip(self.clip.clone())
            .micro_batches(self.micro_batches)
            .initial_values(Arc::clone(&self.init))
            .allow_missing_heads(false)
            .devices(devices))
    }

    /// Runs the case with plain calls of the stage engine, on `devices`.
    ///
    /// # Errors
    /// If a stage cannot be built or fails.
    pub fn replay(&self, devices: Vec<Arc<dyn StageDevice>>) -> Result<Computed> {
        let layout = self.trainer(devices)?.layout()?;
        let mut pipeline = PlainPipeline::build(&layout.blueprints, layout.plans, &layout.settings)?;
        pipeline.stages_mut().iter_mut().for_each(Stage::keep_gradients);
        let mut losses = Vec::with_capacity(self.steps);
        let mut gradients = HashMap::new();
        for (step, batch) in self.batches.iter().enumerate() {
            let scores = pipeline.train_step(batch, self.micro_batches)?;
            losses.push(scores.iter().map(|score| score.as_ref().map(Score::mean_loss)).collect());
            if step == 0 {
                let parts = pipeline.stages().iter().flat_map(|s| [Some(s.parameters()), s.head_parameters()]);
                gradients = parts.flatten().flat_map(|part| part.applied().to_vec()).collect();
            }
        }
        let finals = pipeline.snapshot()?.into_iter().collect();
        let logits = pipeline.predict(&self.batches[0].inputs)?;
        Ok(Computed { losses, gradients, finals, logits })
    }
}
