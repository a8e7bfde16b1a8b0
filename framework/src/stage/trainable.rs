//! Parameters with their gradients and their optimizer.

use candle_core::Tensor;

use crate::{
    Error, Gradients, ParameterStore, Result, clip,
    optimizer::{Optimizer, OptimizerConfig, ParameterSettings, Slot},
    parameters::{Entry, Kind},
};

/// The parameters of a stage's main part or of its head: their values, the gradients of the step in work, and the optimizer.
pub struct Trainable {
    store: ParameterStore,
    entries: Vec<Entry>,
    /// One for each entry; buffers are never trained.
    settings: Vec<Option<ParameterSettings>>,
    gradients: Vec<Option<Tensor>>,
    /// The gradients of the last update as the optimizer got them, where they are kept.
    applied: Option<Vec<(String, Tensor)>>,
    optimizer: Box<dyn Optimizer>,
}

impl Trainable {
    /// The parameters that `store` holds by now.
    pub fn new(store: ParameterStore, config: &OptimizerConfig, optimizer: Box<dyn Optimizer>) -> Result<Self> {
        let entries = store.entries();
        let settings = entries
            .iter()
            .map(|e| Ok(if e.kind == Kind::Parameter { Some(config.settings(&e.name)?) } else { None }))
            .collect::<Result<_>>()?;
        let gradients = vec![None; entries.len()];
        Ok(Self { store, entries, settings, gradients, applied: None, optimizer })
    }

    /// The named tensors.
    pub fn store(&self) -> &ParameterStore {
        &self.store
    }

    /// From now on keeps the gradients that each update applies, for [`Self::applied`].
    pub fn keep_gradients(&mut self) {
        self.applied = Some(Vec::new());
    }

    /// The clipped gradients of the last update by name; empty unless [`Self::keep_gradients`] was called before it.
    pub fn applied(&self) -> &[(String, Tensor)] {
        self.applied.as_deref().unwrap_or_default()
    }

    fn is_trained(&self, at: usize) -> bool {
        self.settings[at].is_some_and(|s| !s.frozen)
    }

    /// Adds gradients of a micro-batch, in the order given.
    ///
    /// # Errors
    /// If one is not finite, has the wrong shape, or belongs to no parameter here.
    pub fn accumulate(&mut self, gradients: Gradients) -> Result<()> {
        for (id, gradient) in gradients {
            let Some(at) = self.store.position(id) else {
                return Err(Error::invalid(
                    "pull-back",
                    format!("a gradient of shape {:?} belongs to no parameter of this stage", gradient.dims()),
                    "return gradients under the identity of the tensor that the VarBuilder gave",
                ));
            };
            let entry = &self.entries[at];
            if gradient.shape() != entry.var.shape() {
                return Err(Error::invalid(
                    &entry.name,
                    format!("its gradient has shape {:?}", gradient.dims()),
                    format!("it must have the parameter's, {:?}", entry.var.dims()),
                ));
            }
            if !self.is_trained(at) {
                continue;
            }
            if !clip::squared_norm(&gradient)?.is_finite() {
                return Err(Error::NotFinite(format!("the gradient of {} holds an infinity or a NaN", entry.name)));
            }
            let sum = match self.gradients[at].take() {
                Some(sum) => (sum + &gradient)?,
                None => gradient.detach(),
            };
            self.gradients[at] = Some(sum);
        }
        Ok(())
    }

    /// The squared norm of each trained parameter's gradient, in order of creation.
    pub fn squared_norms(&self) -> Result<Vec<f64>> {
        self.gradients.iter().flatten().map(clip::squared_norm).collect()
    }

    /// Multiplies the gradients with `coefficient`, updates every trained parameter, and forgets the gradients.
    ///
    /// # Errors
    /// If a parameter that is not frozen has received no gradient, or is not finite after the update.
    pub fn update(&mut self, lr: f64, coefficient: f64) -> Result<()> {
        let mut gradients = Vec::with_capacity(self.entries.len());
        let summed = std::mem::replace(&mut self.gradients, vec![None; self.entries.len()]);
        for (at, gradient) in summed.into_iter().enumerate().filter(|(at, _)| self.is_trained(*at)) {
            let entry = &self.entries[at];
            let gradient = gradient.ok_or_else(|| {
                Error::invalid(
                    &entry.name,
                    "the parameter received no gradient",
                    "use it in forward, through operations that can be differentiated, or freeze it (optimizer.groups)",
                )
            })?;
            gradients.push(if coefficient < 1.0 { (gradient * coefficient)? } else { gradient });
        }
        let trained = self.entries.iter().zip(&self.settings);
        let trained = trained.filter_map(|(entry, settings)| Some((entry, settings.filter(|s| !s.frozen)?)));
        let slots: Vec<Slot<'_>> = trained
            .zip(&gradients)
            .map(|((entry, settings), gradient)| Slot {
                name: &entry.name,
                var: &entry.var,
                gradient,
                lr_scale: settings.lr_scale,
                weight_decay: settings.weight_decay,
            })
            .collect();
        self.optimizer.update(lr, &slots)?;
        for slot in &slots {
            if !super::finite::is_finite(slot.var)? {
                return Err(Error::NotFinite(format!("{} holds an infinity or a NaN after the update", slot.name)));
            }
        }
        if self.applied.is_some() {
            self.applied = Some(slots.iter().map(|s| (s.name.to_owned(), s.gradient.clone())).collect());
        }
        Ok(())
    }
}
