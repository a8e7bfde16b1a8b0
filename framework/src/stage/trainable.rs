//! Parameters with their gradients and their optimizer.

use candle_core::Tensor;

use crate::{
    Error, Gradients, ParameterStore, Result, clip, elementwise,
    optimizer::{Optimizer, OptimizerConfig, ParameterSettings, Slot},
    parameters::{Entry, Kind},
};

/// The parameters of a stage's main part or of its head: their values, the gradients of the step in work, and the optimizer.
pub struct Trainable {
    store: ParameterStore,
    entries: Vec<Entry>,
    /// One for each entry; buffers are never trained.
    settings: Vec<Option<ParameterSettings>>,
    gradients: Vec<Option<Sum>>,
    /// The squared norms of these gradients, once somebody has asked for them.
    norms: Option<Vec<f64>>,
    /// The gradients of the last update as the optimizer got them, where they are kept.
    applied: Option<Vec<(String, Tensor)>>,
    optimizer: Box<dyn Optimizer>,
}

/// The sum of a parameter's gradients.
#[derive(Clone)]
struct Sum {
    value: Tensor,
    /// Whether its elements are nobody else's, so that more can be added in place.
    own: bool,
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
        Ok(Self { store, entries, settings, gradients, norms: None, applied: None, optimizer })
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
            if !super::finite::is_finite(&gradient)? {
                return Err(Error::NotFinite(format!("the gradient of {} holds an infinity or a NaN", entry.name)));
            }
            match &mut self.gradients[at] {
                Some(sum) if sum.own && elementwise::add_in_place(&sum.value, &gradient)? => {}
                Some(sum) => *sum = Sum { value: (&sum.value + &gradient)?, own: true },
                none => *none = Some(Sum { value: gradient.detach(), own: false }),
            }
            self.norms = None;
        }
        Ok(())
    }

    /// The squared norm of each trained parameter's gradient, in order of creation.
    pub fn squared_norms(&mut self) -> Result<&[f64]> {
        let norms = match self.norms.take() {
            Some(norms) => norms,
            None => self.gradients.iter().flatten().map(|sum| clip::squared_norm(&sum.value)).collect::<Result<_>>()?,
        };
        Ok(self.norms.insert(norms))
    }

    /// Multiplies the gradients with `coefficient`, updates every trained parameter, and forgets the gradients.
    ///
    /// # Errors
    /// If a parameter that is not frozen has received no gradient, or is not finite after the update.
    pub fn update(&mut self, lr: f64, coefficient: f64) -> Result<()> {
        self.norms = None;
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
            gradients.push(if coefficient < 1.0 { (gradient.value * coefficient)? } else { gradient.value });
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn gradients_add_up_in_order_and_stay_as_they_were_given() {
        let config = OptimizerConfig { lr: 1.0, momentum: 0.0, ..OptimizerConfig::default() };
        let store = ParameterStore::new(1, Default::default());
        let weight = store.builder(&Device::Cpu).get_with_hints(2, "w", candle_nn::Init::Const(0.0)).unwrap();
        let mut trainable = Trainable::new(store, &config, crate::optimizer::plain(&config).unwrap()).unwrap();
        trainable.keep_gradients();
        let given = [[1e8_f32, 1.0], [3.0, 2.0], [-1e8, 4.0], [5.0, 8.0]];
        let gradients = given.map(|values| Tensor::new(&values, &Device::Cpu).unwrap());
        for step in 0..2 {
            for gradient in &gradients {
                trainable.accumulate(vec![(weight.id(), gradient.clone())]).unwrap();
            }
            // In this order the 3 is lost beside 1e8, and nothing else is.
            assert_eq!(trainable.squared_norms().unwrap(), [25.0 + 225.0]);
            assert_eq!(trainable.squared_norms().unwrap(), [25.0 + 225.0]);
            trainable.update(1.0, 1.0).unwrap();
            assert_eq!(trainable.applied()[0].1.to_vec1::<f32>().unwrap(), [5.0, 15.0], "step {step}");
        }
        for (gradient, given) in gradients.iter().zip(given) {
            assert_eq!(gradient.to_vec1::<f32>().unwrap(), given);
        }
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-10.0, -30.0]);
    }
}
