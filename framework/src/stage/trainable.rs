//! Parameters with their gradients and their optimizer.

use candle_core::Tensor;

use crate::{
    Error, Gradients, NonFinite, ParameterStore, Result,
    alignment::Products,
    clip,
    optimizer::{Optimizer, OptimizerConfig, ParameterSettings, Slot, bytes},
    parameters::{Entry, Kind},
};

/// The parameters of a stage's main part or of its head: their values, the gradients of the step in work, and the optimizer.
pub struct Trainable {
    store: ParameterStore,
    entries: Vec<Entry>,
    /// One for each entry; buffers are never trained.
    settings: Vec<Option<ParameterSettings>>,
    gradients: Vec<Option<Sum>>,
    /// Those of the loss that is only measured; empty where none is.
    measured: Vec<Option<Sum>>,
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
    /// Its squared norm, of the same pass over it that tells whether it is finite.
    squares: f64,
}

impl Sum {
    fn new(value: Tensor, own: bool) -> Result<Self> {
        Ok(Self { squares: clip::squared_norm(&value)?, value, own })
    }

    /// The sum of this and `gradient`.
    fn and(self, gradient: &Tensor) -> Result<Self> {
        if self.own
            && let Some(squares) = clip::add_with_squared_norm(&self.value, gradient)?
        {
            return Ok(Self { squares, ..self });
        }
        Self::new((&self.value + gradient)?, true)
    }
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
        Ok(Self { store, entries, settings, gradients, measured: Vec::new(), applied: None, optimizer })
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
        let mut sums = std::mem::take(&mut self.gradients);
        let added = self.add(&mut sums, gradients);
        self.gradients = sums;
        added
    }

    /// Adds gradients of the loss that is only measured, likewise: they are compared with the others ([`Self::alignment`]), and forgotten with
    /// the update.
    ///
    /// # Errors
    /// As [`Self::accumulate`].
    pub fn measure(&mut self, gradients: Gradients) -> Result<()> {
        let mut sums = std::mem::take(&mut self.measured);
        sums.resize(self.entries.len(), None);
        let added = self.add(&mut sums, gradients);
        self.measured = sums;
        added
    }

    fn add(&self, sums: &mut [Option<Sum>], gradients: Gradients) -> Result<()> {
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
            let sum = match sums[at].take() {
                Some(sum) => sum.and(&gradient)?,
                None => Sum::new(gradient.detach(), false)?,
            };
            if !sum.squares.is_finite() {
                return Err(Error::NotFinite(
                    NonFinite::Gradient,
                    format!("the gradient of {} holds an infinity or a NaN", entry.name),
                ));
            }
            sums[at] = Some(sum);
        }
        Ok(())
    }

    /// The cosine between the sums of the gradients and of those measured, over all trained parameters. None where nothing was measured, or
    /// one of the two is zero.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn alignment(&self) -> Result<Option<f64>> {
        let mut products = Products::default();
        for (gradient, measured) in self.gradients.iter().zip(&self.measured) {
            if let (Some(gradient), Some(measured)) = (gradient, measured) {
                products.add(&gradient.value, &measured.value)?;
            }
        }
        Ok(products.cosine())
    }

    /// The squared norm of each trained parameter's gradient, in order of creation.
    pub fn squared_norms(&self) -> Vec<f64> {
        self.gradients.iter().flatten().map(|sum| sum.squares).collect()
    }

    /// Bytes of the trained parameters and of the buffers.
    pub fn parameter_bytes(&self) -> usize {
        self.entries.iter().map(|entry| bytes(&entry.var)).sum()
    }

    /// Bytes of the gradients that are there by now, those that are only measured included.
    pub fn gradient_bytes(&self) -> usize {
        self.gradients.iter().chain(&self.measured).flatten().map(|sum| bytes(&sum.value)).sum()
    }

    /// Bytes of the optimizer's state, as far as it tells.
    pub fn optimizer_bytes(&self) -> usize {
        self.optimizer.state_bytes()
    }

    /// Multiplies the gradients with `coefficient`, updates every trained parameter, and forgets the gradients.
    ///
    /// # Errors
    /// If a parameter that is not frozen has received no gradient under an optimizer that uses them, or is not finite after the update.
    pub fn update(&mut self, lr: f64, coefficient: f64) -> Result<()> {
        self.measured = Vec::new();
        let mut gradients = Vec::with_capacity(self.entries.len());
        let summed = std::mem::replace(&mut self.gradients, vec![None; self.entries.len()]);
        for (at, sum) in summed.into_iter().enumerate() {
            let Some(settings) = self.settings[at].filter(|s| !s.frozen) else { continue };
            match sum {
                Some(sum) => gradients.push((&self.entries[at], settings, sum.value)),
                None if self.optimizer.uses_gradients() => {
                    return Err(Error::invalid(
                        &self.entries[at].name,
                        "the parameter received no gradient",
                        "use it in forward, through operations that can be differentiated, or freeze it (optimizer.groups)",
                    ));
                }
                None => {}
            }
        }
        let slots: Vec<Slot<'_>> = gradients
            .iter()
            .map(|(entry, settings, gradient)| Slot {
                name: &entry.name,
                var: &entry.var,
                unclipped: gradient,
                clip: coefficient,
                lr_scale: settings.lr_scale,
                weight_decay: settings.weight_decay,
            })
            .collect();
        self.optimizer.update(lr, &slots)?;
        if !self.optimizer.checks_values() {
            slots.iter().try_for_each(Slot::check)?;
        }
        if self.applied.is_some() {
            self.applied = Some(slots.iter().map(|s| Ok((s.name.to_owned(), s.gradient()?))).collect::<Result<_>>()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::optimizer::OptimizerKind;

    /// One parameter of two zeros under plain descent with rate 1, and its tensor.
    fn one_parameter(optimizer: Option<Box<dyn Optimizer>>) -> (Trainable, Tensor) {
        let config = OptimizerConfig { lr: 1.0, momentum: 0.0, ..OptimizerConfig::default() };
        let store = ParameterStore::new(1, Default::default());
        let weight = store.builder(&Device::Cpu).get_with_hints(2, "w", candle_nn::Init::Const(0.0)).unwrap();
        let optimizer = optimizer.unwrap_or_else(|| crate::optimizer::plain(&config).unwrap());
        (Trainable::new(store, &config, optimizer).unwrap(), weight)
    }

    fn gradient(values: [f32; 2]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap()
    }

    #[test]
    fn gradients_add_up_in_order_and_stay_as_they_were_given() {
        let (mut trainable, weight) = one_parameter(None);
        trainable.keep_gradients();
        let given = [[1e8_f32, 1.0], [3.0, 2.0], [-1e8, 4.0], [5.0, 8.0]];
        let gradients = given.map(gradient);
        for step in 0..2 {
            for gradient in &gradients {
                trainable.accumulate(vec![(weight.id(), gradient.clone())]).unwrap();
            }
            // In this order the 3 is lost beside 1e8, and nothing else is.
            assert_eq!(trainable.squared_norms(), [25.0 + 225.0]);
            trainable.update(1.0, 1.0).unwrap();
            assert_eq!(trainable.applied()[0].1.to_vec1::<f32>().unwrap(), [5.0, 15.0], "step {step}");
        }
        for (gradient, given) in gradients.iter().zip(given) {
            assert_eq!(gradient.to_vec1::<f32>().unwrap(), given);
        }
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-10.0, -30.0]);
    }

    #[test]
    fn clipping_reaches_the_update_and_what_is_kept_of_it() {
        let (mut trainable, weight) = one_parameter(None);
        trainable.keep_gradients();
        trainable.accumulate(vec![(weight.id(), gradient([3.0, -8.0]))]).unwrap();
        trainable.update(1.0, 0.25).unwrap();
        assert_eq!(trainable.applied()[0].1.to_vec1::<f32>().unwrap(), [0.75, -2.0]);
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-0.75, 2.0]);
    }

    #[test]
    fn what_is_measured_is_compared_and_not_applied() {
        let (mut trainable, weight) = one_parameter(None);
        let add = |trainable: &mut Trainable, followed: [f32; 2], measured: Option<[f32; 2]>| {
            trainable.accumulate(vec![(weight.id(), gradient(followed))]).unwrap();
            if let Some(measured) = measured {
                trainable.measure(vec![(weight.id(), gradient(measured))]).unwrap();
            }
        };
        // (1, 0) and (3, 4), each in two pieces.
        add(&mut trainable, [5.0, -1.0], Some([1.0, 1.0]));
        add(&mut trainable, [-4.0, 1.0], Some([2.0, 3.0]));
        assert_eq!(trainable.alignment().unwrap(), Some(0.6));
        assert_eq!(trainable.squared_norms(), [1.0]);
        trainable.update(1.0, 1.0).unwrap();
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-1.0, 0.0]);
        // The next step knows nothing of it.
        add(&mut trainable, [1.0, 0.0], None);
        assert_eq!(trainable.alignment().unwrap(), None);
        let error = trainable.measure(vec![(weight.id(), gradient([1.0, f32::NAN]))]).unwrap_err();
        assert!(error.to_string().starts_with("the gradient of w holds an infinity or a NaN"), "{error}");
    }

    #[test]
    fn gradients_that_are_not_finite_are_refused_whichever_comes() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for before in 0..3 {
                let (mut trainable, weight) = one_parameter(None);
                for _ in 0..before {
                    trainable.accumulate(vec![(weight.id(), gradient([1e30, -1e30]))]).unwrap();
                }
                let error = trainable.accumulate(vec![(weight.id(), gradient([1.0, bad]))]).unwrap_err();
                assert!(error.to_string().starts_with("the gradient of w holds an infinity or a NaN"), "{error}");
            }
        }
        // Two that are finite, and their sum is not.
        let (mut trainable, weight) = one_parameter(None);
        trainable.accumulate(vec![(weight.id(), gradient([f32::MAX, 0.0]))]).unwrap();
        assert!(trainable.accumulate(vec![(weight.id(), gradient([f32::MAX, 0.0]))]).is_err());
    }

    /// Changes nothing, and so needs nothing.
    struct Rest;

    impl Optimizer for Rest {
        fn update(&mut self, _: f64, slots: &[Slot<'_>]) -> Result<()> {
            assert!(slots.is_empty(), "nobody gave a gradient");
            Ok(())
        }

        fn uses_gradients(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_parameter_without_a_gradient_is_an_error_where_gradients_are_used() {
        let (mut trainable, _) = one_parameter(None);
        let error = trainable.update(1.0, 1.0).unwrap_err().to_string();
        assert!(error.starts_with("w: the parameter received no gradient"), "{error}");
        let (mut trainable, weight) = one_parameter(Some(Box::new(Rest)));
        trainable.update(1.0, 1.0).unwrap();
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    }

    /// A user's rule, which does not look at what it writes.
    struct Subtract;

    impl Optimizer for Subtract {
        fn update(&mut self, lr: f64, slots: &[Slot<'_>]) -> Result<()> {
            for slot in slots {
                slot.var.set(&(slot.var.as_detached_tensor() - (slot.gradient()? * lr)?)?)?;
            }
            Ok(())
        }
    }

    #[test]
    fn parameters_that_are_not_finite_are_found_under_every_rule() {
        let rule = |kind| crate::optimizer::plain(&OptimizerConfig { kind, ..OptimizerConfig::default() }).unwrap();
        for make in [&|| None, &|| Some(rule(OptimizerKind::Sgd)), &|| Some(rule(OptimizerKind::Adamw)), &|| {
            Some(Box::new(Subtract) as Box<dyn Optimizer>)
        }] as [&dyn Fn() -> Option<Box<dyn Optimizer>>; 4]
        {
            let (mut trainable, weight) = one_parameter(make());
            let mut step = |lr: f64| {
                trainable.accumulate(vec![(weight.id(), gradient([0.0, 1e20]))]).unwrap();
                trainable.update(lr, 1.0)
            };
            step(1e-3).unwrap();
            let error = step(1e38).unwrap_err().to_string();
            assert!(error.starts_with("w holds an infinity or a NaN after the update"), "{error}");
        }
    }
}
