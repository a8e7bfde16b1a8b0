//! The update of a stage, and the norms for clipping.

use super::{Head, Outcome, Stage, monitor::Meaning};
use crate::{
    Error, Result,
    optimizer::{
        ClipFactor,
        clip::{self, ClipConfig, ClipScope},
    },
    tensor::Numbers,
};

impl Stage {
    pub(super) fn share_norms(&mut self) -> Result<Outcome> {
        let norms = self.parameters.squared_norms()?;
        self.monitor.measure(Meaning::SquaredNorms, norms);
        // Without the norms of one stage no update is made. None is needed: some stage fails.
        Ok(self.read_so_far()?.map_or(Outcome::None, Outcome::SquaredNorms))
    }

    pub(super) fn update(&mut self, step: u64, global_norm: Option<f64>) -> Result<Outcome> {
        let lr = self.lr_schedule.lr(step)?;
        // The norms are finite: every gradient was checked when it was added.
        let own_factor = |squares: &Numbers| match &self.clip {
            Some(config) => clip::factor(config.max_norm, squares),
            None => Ok(ClipFactor::NONE),
        };
        let squares = self.parameters.squared_norms()?;
        let factor = match &self.clip {
            Some(ClipConfig { scope: ClipScope::Global, max_norm }) => {
                let norm = global_norm.ok_or_else(|| {
                    Error::Internal("an update under global clipping came before the norm of all stages".to_owned())
                })?;
                ClipFactor::Host(clip::coefficient(*max_norm, norm))
            }
            _ => own_factor(&squares)?,
        };
        let head_factor = match &self.head {
            Some(Head { parameters, .. }) => own_factor(&parameters.squared_norms()?)?,
            None => ClipFactor::NONE,
        };
        self.monitor.measure(Meaning::SquaredNorms, squares);
        if self.parameters.has_measured() {
            let products = self.parameters.products(&self.monitor)?;
            self.monitor.measure(Meaning::Products, products);
        }
        self.parameters.update(lr, &factor, &mut self.monitor)?;
        self.parameters.update_average(step)?;
        if let Some(head) = &mut self.head {
            head.parameters.update(lr, &head_factor, &mut self.monitor)?;
            head.parameters.update_average(step)?;
        }
        if let Some(versions) = &mut self.readout {
            versions.updated(step + 1)?;
        }
        self.begin_reading(lr).map(Outcome::Updated)
    }
}
