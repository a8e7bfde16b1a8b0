//! Updates, and the norms that they clip by.

use candle_core::Tensor;

use super::{
    Head, Outcome, Stage, Trainable, Updated,
    watch::{Numbers, What},
};
use crate::{
    Error, Result,
    optimizer::{
        Clip,
        clip::{self, ClipConfig, ClipScope},
    },
};

impl Stage {
    pub(super) fn share_norms(&mut self) -> Result<Outcome> {
        if !self.watch.is_asynchronous() {
            return Ok(Outcome::SquaredNorms(self.parameters.squared_norms()));
        }
        if let Some(norms) = self.parameters.squared_norms_later()? {
            self.watch.note(What::SquaredNorms, Numbers::Later(norms));
        }
        // Without one stage's norms no step is made, and none is needed: some stage fails.
        Ok(self.read_norms()?.map_or(Outcome::None, Outcome::SquaredNorms))
    }

    pub(super) fn update(&mut self, step: u64, global_norm: Option<f64>) -> Result<Outcome> {
        let lr = self.schedule.lr(step);
        let coefficient = |norm: f64| self.clip.as_ref().map_or(1.0, |clip| clip::coefficient(clip.max_norm, norm));
        let global = match &self.clip {
            Some(ClipConfig { scope: ClipScope::Global, .. }) => {
                Some(Clip::Known(coefficient(global_norm.ok_or_else(|| {
                    Error::Internal("an update under global clipping came before the norm of all stages".to_owned())
                })?)))
            }
            _ => None,
        };
        // Finite: checked as every gradient came.
        let own_norm = |parameters: &Trainable| parameters.squared_norms().iter().sum::<f64>().sqrt();
        let own_clip = |parameters: &Trainable, later: Option<&Tensor>| {
            let Some(config) = &self.clip else { return Ok(Clip::NONE) };
            Ok::<_, Error>(match later {
                Some(squares) => Clip::Later(clip::coefficient_later(config.max_norm, squares)?),
                None => Clip::Known(coefficient(own_norm(parameters))),
            })
        };
        let squares = self.parameters.squared_norms_later()?;
        let clip = global.map_or_else(|| own_clip(&self.parameters, squares.as_ref()), Ok)?;
        let head_clip = match &self.head {
            Some(Head { parameters, .. }) => own_clip(parameters, parameters.squared_norms_later()?.as_ref())?,
            None => Clip::NONE,
        };
        let gradient_norm = own_norm(&self.parameters);
        let asynchronous = self.watch.is_asynchronous();
        if asynchronous {
            let numbers = [(What::SquaredNorms, squares), (What::Products, self.parameters.products_later()?)];
            for (what, numbers) in numbers {
                if let Some(numbers) = numbers {
                    self.watch.note(what, Numbers::Later(numbers));
                }
            }
        } else {
            self.alignment = self.parameters.alignment()?;
        }
        self.parameters.update(lr, clip, &mut self.watch)?;
        if let Some(head) = &mut self.head {
            head.parameters.update(lr, head_clip, &mut self.watch)?;
        }
        if asynchronous {
            return self.begin_reading(lr).map(Outcome::Reading);
        }
        Ok(Outcome::Updated(Updated { lr, gradient_norm }))
    }
}
