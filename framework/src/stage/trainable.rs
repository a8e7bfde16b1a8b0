//! Parameters with their gradients and their optimizer.

mod shared;
pub(super) mod state;

use candle_core::Tensor;

use super::{
    average::{Average, EmaConfig},
    monitor::Monitor,
};
use crate::{
    Error, NonFinite, ParameterGradients, ParameterStore, Result,
    differentiation::TensorKind,
    model::parameters::Entry,
    optimizer::{ClipFactor, Optimizer, OptimizerConfig, ParameterSettings, ParameterUpdate, bytes},
    tensor::Numbers,
};

/// The parameters of a stage's main part or of its head, the gradients of the present step, and the optimizer.
pub struct Trainable {
    store: ParameterStore,
    entries: Vec<Entry>,
    /// One for each entry; buffers are never trained.
    settings: Vec<Option<ParameterSettings>>,
    gradients: Vec<Option<Sum>>,
    /// The gradients of the loss that is only measured; empty if none is.
    measured: Vec<Option<Sum>>,
    /// The gradients of the last update as the optimizer received them, if they are stored.
    applied: Option<Vec<(String, Tensor)>>,
    optimizer: Box<dyn Optimizer>,
    average: Option<Average>,
}

/// The sum of a parameter's gradients.
struct Sum {
    value: Tensor,
    /// Whether no other tensor shares its elements, so that gradients can be added in place.
    owned: bool,
    /// Its squared norm, which is finite iff every element is.
    squares: Numbers,
}

impl Sum {
    /// Returns the sum of `so_far` and `gradient`.
    fn and(so_far: Option<Self>, gradient: Tensor, monitor: &Monitor) -> Result<Self> {
        let Some(Self { value, owned, .. }) = so_far else {
            return Ok(Self { squares: monitor.squared_norm(&gradient)?, value: gradient, owned: false });
        };
        let (value, squares) = monitor.add(value, owned, &gradient)?;
        Ok(Self { value, owned: true, squares })
    }
}

impl Trainable {
    /// Takes the parameters that `store` holds at present.
    pub fn new(store: ParameterStore, config: &OptimizerConfig, optimizer: Box<dyn Optimizer>) -> Result<Self> {
        let entries = store.entries();
        let settings = entries
            .iter()
            .map(|e| Ok(if e.kind == TensorKind::Parameter { Some(config.settings(&e.name)?) } else { None }))
            .collect::<Result<_>>()?;
        let gradients = entries.iter().map(|_| None).collect();
        Ok(Self { store, entries, settings, gradients, measured: Vec::new(), applied: None, optimizer, average: None })
    }

    /// Keeps a moving average of the trained parameters from now on; none if `config` is none.
    #[must_use]
    pub(crate) fn with_average(self, config: Option<EmaConfig>) -> Self {
        let trained = || {
            let entries = self.entries.iter().enumerate();
            entries.filter(|&(at, _)| self.is_trained(at)).map(|(_, entry)| entry.var.clone())
        };
        let average = config.map(|config| Average::new(config, trained()));
        Self { average, ..self }
    }

    /// Adds the values after the update of `step` to the moving average.
    pub(crate) fn update_average(&mut self, step: u64) -> Result<()> {
        self.average.as_mut().map_or(Ok(()), |average| average.update(step))
    }

    /// Replaces the parameters' own values by the moving averages, or restores the values.
    pub(super) fn show_averages(&mut self, averages: bool) -> Result<()> {
        self.average.as_mut().map_or(Ok(()), |average| average.show(averages))
    }

    /// Returns a copy of every value by name; of a parameter with a moving average, the average.
    pub(super) fn snapshot(&self) -> Result<Vec<(String, Tensor)>> {
        let value = |entry: &Entry| match self.average.as_ref().and_then(|average| average.of(&entry.var)) {
            Some(average) => average.copy(),
            None => entry.var.as_tensor().copy(),
        };
        self.entries.iter().map(|entry| Ok((entry.name.clone(), value(entry)?.detach()))).collect()
    }

    /// The named tensors.
    pub fn store(&self) -> &ParameterStore {
        &self.store
    }

    /// Returns whether any parameter is trained.
    pub(crate) fn trains(&self) -> bool {
        (0..self.entries.len()).any(|at| self.is_trained(at))
    }

    /// Makes later updates store the gradients that they apply, for [`Self::applied`].
    pub fn keep_gradients(&mut self) {
        self.applied = Some(Vec::new());
    }

    /// Returns the clipped gradients of the last update by name; empty unless [`Self::keep_gradients`] was called before it.
    pub fn applied(&self) -> &[(String, Tensor)] {
        self.applied.as_deref().unwrap_or_default()
    }

    fn is_trained(&self, at: usize) -> bool {
        self.settings[at].is_some_and(|s| !s.frozen)
    }

    /// Adds gradients of a micro-batch, in the order given. `monitor` checks the sums.
    ///
    /// # Errors
    /// If one is not finite, has the wrong shape, or belongs to no parameter here.
    pub(crate) fn accumulate(&mut self, gradients: ParameterGradients, monitor: &mut Monitor) -> Result<()> {
        let mut sums = std::mem::take(&mut self.gradients);
        let added = self.add(&mut sums, gradients, monitor);
        self.gradients = sums;
        added
    }

    /// Adds gradients of the loss that is only measured, in the same way. They are compared with the others ([`Self::products`]), and freed by the
    /// update.
    ///
    /// # Errors
    /// As [`Self::accumulate`].
    pub(crate) fn measure(&mut self, gradients: ParameterGradients, monitor: &mut Monitor) -> Result<()> {
        let mut sums = std::mem::take(&mut self.measured);
        sums.resize_with(self.entries.len(), || None);
        let added = self.add(&mut sums, gradients, monitor);
        self.measured = sums;
        added
    }

    fn add(&self, sums: &mut [Option<Sum>], gradients: ParameterGradients, monitor: &mut Monitor) -> Result<()> {
        for (id, gradient) in gradients {
            let Some(at) = self.store.position(id) else {
                return Err(Error::invalid(
                    "backward",
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
            // The sums have the dtype of the values.
            let gradient = gradient.detach().to_dtype(entry.var.dtype())?;
            let sum = Sum::and(sums[at].take(), gradient, monitor)?;
            monitor.check_numbers(sum.squares.clone(), NonFinite::Gradient, || entry.gradient_not_finite())?;
            sums[at] = Some(sum);
        }
        Ok(())
    }

    /// Whether a loss was measured since the last update.
    pub(super) fn has_measured(&self) -> bool {
        self.measured.iter().any(Option::is_some)
    }

    /// Returns the products of the followed and the measured gradients, over all trained parameters.
    pub(super) fn products(&self, monitor: &Monitor) -> Result<Numbers> {
        let both = self.gradients.iter().zip(&self.measured);
        monitor.products(
            both.filter_map(|(followed, measured)| Some((&followed.as_ref()?.value, &measured.as_ref()?.value))),
        )
    }

    /// The squared norm of each trained parameter's gradient, in order of creation.
    pub(super) fn squared_norms(&self) -> Result<Numbers> {
        Numbers::concatenate(self.gradients.iter().flatten().map(|sum| &sum.squares))
    }

    /// Bytes of the trained parameters and of the buffers.
    pub fn parameter_bytes(&self) -> usize {
        self.entries.iter().map(|entry| bytes(&entry.var)).sum()
    }

    /// Returns the bytes of the trained parameters, as many as their gradients take.
    pub(crate) fn trained_bytes(&self) -> usize {
        (0..self.entries.len()).filter(|&at| self.is_trained(at)).map(|at| bytes(&self.entries[at].var)).sum()
    }

    /// Returns the bytes of the present gradients, including those that are only measured.
    pub fn gradient_bytes(&self) -> usize {
        self.gradients.iter().chain(&self.measured).flatten().map(|sum| bytes(&sum.value)).sum()
    }

    /// Returns the bytes of the optimizer's state, as far as it reports them, and of the moving averages.
    pub fn optimizer_bytes(&self) -> usize {
        self.optimizer.state_bytes() + self.average.as_ref().map_or(0, Average::bytes)
    }

    /// Clips the gradients, updates every trained parameter, and frees the gradients. `monitor` checks the values if the optimizer does not.
    ///
    /// # Errors
    /// If a parameter that is not frozen has received no gradient under an optimizer that uses them, or is not finite after the update.
    pub(crate) fn update(&mut self, lr: f64, clip: &ClipFactor, monitor: &mut Monitor) -> Result<()> {
        self.measured = Vec::new();
        let mut gradients = Vec::with_capacity(self.entries.len());
        let none = (0..self.entries.len()).map(|_| None).collect();
        let summed = std::mem::replace(&mut self.gradients, none);
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
        let parameters: Vec<ParameterUpdate<'_>> = gradients
            .iter()
            .map(|(entry, settings, gradient)| ParameterUpdate {
                name: &entry.name,
                var: &entry.var,
                unclipped: gradient,
                clip: clip.clone(),
                asynchronous: monitor.is_asynchronous(),
                lr_scale: settings.lr_scale,
                weight_decay: settings.weight_decay,
            })
            .collect();
        self.optimizer.update(lr, &parameters)?;
        if monitor.is_asynchronous() || !self.optimizer.checks_values() {
            let mut check = |parameter: &ParameterUpdate<'_>| {
                monitor.check_tensor(parameter.var.as_tensor(), NonFinite::Parameter, || parameter.not_finite_words())
            };
            parameters.iter().try_for_each(&mut check)?;
        }
        if self.applied.is_some() {
            self.applied =
                Some(parameters.iter().map(|s| Ok((s.name.to_owned(), s.gradient()?))).collect::<Result<_>>()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::{
        optimizer::{OptimizerKind, clip},
        tensor::cosine::Products,
    };

    /// One parameter of two zeros under plain descent with rate 1, and its tensor.
    fn one_parameter(optimizer: Option<Box<dyn Optimizer>>) -> (Trainable, Tensor) {
        let config = OptimizerConfig { lr: 1.0, momentum: 0.0, ..OptimizerConfig::default() };
        let store = ParameterStore::new(1, Default::default());
        let weight = store.builder(&Device::Cpu).get_with_hints(2, "w", candle_nn::Init::Const(0.0)).unwrap();
        let optimizer = optimizer.unwrap_or_else(|| crate::optimizer::built_in(&config).unwrap());
        (Trainable::new(store, &config, optimizer).unwrap(), weight)
    }

    fn values(numbers: &Numbers) -> Vec<f64> {
        match numbers {
            Numbers::Host(values) => values.clone(),
            Numbers::Device(tensor) => tensor.to_vec1().unwrap(),
        }
    }

    fn host() -> Monitor {
        Monitor::new(false)
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
                trainable.accumulate(vec![(weight.id(), gradient.clone())], &mut host()).unwrap();
            }
            // In this order the 3 is lost beside 1e8, and nothing else is.
            assert_eq!(values(&trainable.squared_norms().unwrap()), [25.0 + 225.0]);
            trainable.update(1.0, &ClipFactor::NONE, &mut host()).unwrap();
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
        trainable.accumulate(vec![(weight.id(), gradient([3.0, -8.0]))], &mut host()).unwrap();
        trainable.update(1.0, &ClipFactor::Host(0.25), &mut host()).unwrap();
        assert_eq!(trainable.applied()[0].1.to_vec1::<f32>().unwrap(), [0.75, -2.0]);
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-0.75, 2.0]);
    }

    #[test]
    fn numbers_left_on_the_device_are_the_same() {
        let (mut trainable, weight) = one_parameter(None);
        trainable.keep_gradients();
        let mut monitor = Monitor::new(true);
        // The second is narrower than the parameter.
        for (values, dtype) in [([3.0, -5.0], DType::F32), ([0.0, 1.0], DType::BF16)] {
            let gradient = gradient(values).to_dtype(dtype).unwrap();
            trainable.accumulate(vec![(weight.id(), gradient)], &mut monitor).unwrap();
        }
        trainable.measure(vec![(weight.id(), gradient([-4.0, -3.0]))], &mut monitor).unwrap();
        let squares = trainable.squared_norms().unwrap();
        assert!(matches!(squares, Numbers::Device(_)));
        assert_eq!(values(&squares), [25.0]);
        assert_eq!(values(&trainable.products(&monitor).unwrap()), [0.0, 25.0, 25.0]);
        trainable.update(1.0, &clip::factor(2.5, &squares).unwrap(), &mut monitor).unwrap();
        let applied = trainable.applied()[0].1.to_vec1::<f32>().unwrap();
        assert!(applied.iter().zip([1.5, -2.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{applied:?}");
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-applied[0], -applied[1]]);
        // Each sum, the one measured, and the value after the update; none is looked at.
        trainable.accumulate(vec![(weight.id(), gradient([1.0, f32::NAN]))], &mut monitor).unwrap();
        assert_eq!(monitor.take_step().len(), 5);
    }

    #[test]
    fn what_is_measured_is_compared_and_not_applied() {
        let (mut trainable, weight) = one_parameter(None);
        let add = |trainable: &mut Trainable, followed: [f32; 2], measured: Option<[f32; 2]>| {
            trainable.accumulate(vec![(weight.id(), gradient(followed))], &mut host()).unwrap();
            if let Some(measured) = measured {
                trainable.measure(vec![(weight.id(), gradient(measured))], &mut host()).unwrap();
            }
        };
        // (1, 0) and (3, 4), each in two pieces.
        add(&mut trainable, [5.0, -1.0], Some([1.0, 1.0]));
        add(&mut trainable, [-4.0, 1.0], Some([2.0, 3.0]));
        let products = trainable.products(&host()).unwrap();
        assert_eq!(Products::from_slice(&values(&products)).cosine(), Some(0.6));
        assert_eq!(values(&trainable.squared_norms().unwrap()), [1.0]);
        trainable.update(1.0, &ClipFactor::NONE, &mut host()).unwrap();
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [-1.0, 0.0]);
        // The next step knows nothing of it.
        add(&mut trainable, [1.0, 0.0], None);
        assert!(!trainable.has_measured());
        let error = trainable.measure(vec![(weight.id(), gradient([1.0, f32::NAN]))], &mut host()).unwrap_err();
        assert!(error.to_string().starts_with("the gradient of w holds an infinity or a NaN"), "{error}");
    }

    #[test]
    fn gradients_that_are_not_finite_are_refused_whichever_comes() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for before in 0..3 {
                let (mut trainable, weight) = one_parameter(None);
                for _ in 0..before {
                    trainable.accumulate(vec![(weight.id(), gradient([1e30, -1e30]))], &mut host()).unwrap();
                }
                let error = trainable.accumulate(vec![(weight.id(), gradient([1.0, bad]))], &mut host()).unwrap_err();
                assert!(error.to_string().starts_with("the gradient of w holds an infinity or a NaN"), "{error}");
            }
        }
        // Two that are finite, and their sum is not.
        let (mut trainable, weight) = one_parameter(None);
        trainable.accumulate(vec![(weight.id(), gradient([f32::MAX, 0.0]))], &mut host()).unwrap();
        assert!(trainable.accumulate(vec![(weight.id(), gradient([f32::MAX, 0.0]))], &mut host()).is_err());
    }

    /// Changes nothing, and so needs nothing.
    struct Rest;

    impl Optimizer for Rest {
        fn update(&mut self, _: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
            assert!(parameters.is_empty(), "nobody gave a gradient");
            Ok(())
        }

        fn uses_gradients(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_parameter_without_a_gradient_is_an_error_where_gradients_are_used() {
        let (mut trainable, _) = one_parameter(None);
        let error = trainable.update(1.0, &ClipFactor::NONE, &mut host()).unwrap_err().to_string();
        assert!(error.starts_with("w: the parameter received no gradient"), "{error}");
        let (mut trainable, weight) = one_parameter(Some(Box::new(Rest)));
        trainable.update(1.0, &ClipFactor::NONE, &mut host()).unwrap();
        assert_eq!(weight.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
    }

    /// A user's rule, which does not look at what it writes.
    struct Subtract;

    impl Optimizer for Subtract {
        fn update(&mut self, lr: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
            for parameter in parameters {
                parameter.var.set(&(parameter.var.as_detached_tensor() - (parameter.gradient()? * lr)?)?)?;
            }
            Ok(())
        }
    }

    #[test]
    fn parameters_that_are_not_finite_are_found_under_every_rule() {
        let rule = |kind| crate::optimizer::built_in(&OptimizerConfig { kind, ..OptimizerConfig::default() }).unwrap();
        for make in [&|| None, &|| Some(rule(OptimizerKind::Sgd)), &|| Some(rule(OptimizerKind::Adamw)), &|| {
            Some(Box::new(Subtract) as Box<dyn Optimizer>)
        }] as [&dyn Fn() -> Option<Box<dyn Optimizer>>; 4]
        {
            let (mut trainable, weight) = one_parameter(make());
            let mut step = |lr: f64| {
                trainable.accumulate(vec![(weight.id(), gradient([0.0, 1e20]))], &mut host()).unwrap();
                trainable.update(lr, &ClipFactor::NONE, &mut host())
            };
            step(1e-3).unwrap();
            let error = step(1e38).unwrap_err().to_string();
            assert!(error.starts_with("w holds an infinity or a NaN after the update"), "{error}");
        }
    }
}
