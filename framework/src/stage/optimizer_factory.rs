//! Factories that make an optimizer for every stage.

use std::fmt;

use crate::{
    Optimizer, OptimizerConfig, Result, StageDevice,
    device::{Part, PartKind},
};

/// Makes the optimizers of a run: one instance for the main parameters of each stage, and one for each auxiliary head.
///
/// [`OptimizerConfig`] is the factory of the built-in optimizers. A closure makes your own, alone or in a pair with constants:
///
/// ```
/// # use interlock::{ModelSpec, Sequential, Unit};
/// # struct Net;
/// # impl ModelSpec for Net {
/// #     fn units(&self) -> interlock::Result<Vec<Unit>> {
/// #         Ok(vec![Unit::new("", [1], |_| Ok(Sequential::default()))])
/// #     }
/// # }
/// use interlock::{Result, Trainer, Optimizer, OptimizerConfig, OptimizerContext, ParameterUpdate};
///
/// /// Moves every parameter by the learning rate, against the sign of its gradient.
/// struct SignDescent;
///
/// impl Optimizer for SignDescent {
///     fn update(&mut self, lr: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
///         for parameter in parameters {
///             let change = (parameter.gradient()?.sign()? * (lr * parameter.lr_scale))?;
///             parameter.var.set(&(parameter.var.as_detached_tensor() - change)?)?;
///         }
///         Ok(())
///     }
/// }
///
/// let constants = OptimizerConfig { lr: 1e-3, ..Default::default() };
/// let builder = Trainer::builder(Net).optimizer((constants, |_: &OptimizerContext<'_>| Ok(SignDescent)));
/// # builder.build()?;
/// # Ok::<(), interlock::Error>(())
/// ```
pub trait OptimizerFactory: Send + Sync {
    /// Returns the constants of the run: the base learning rate, weight decay, parameter groups and overrides of single stages. They hold for every
    /// optimizer; `kind` and its own constants only for the built-in ones. Default: [`OptimizerConfig::default`].
    fn constants(&self) -> OptimizerConfig {
        OptimizerConfig::default()
    }

    /// Makes the optimizer for one part of a stage, without any state.
    ///
    /// # Errors
    /// If the constants do not fit the optimizer.
    fn make(&self, context: &OptimizerContext<'_>) -> Result<Box<dyn Optimizer>>;
}

/// The part of a stage that an optimizer is made for.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct OptimizerContext<'a> {
    /// The constants, including those of the stage.
    pub constants: &'a OptimizerConfig,
    /// The part of the stage: its number, and whether these are its main parameters or those of its head.
    pub part: &'a Part<'a>,
    /// The device that holds the parameters.
    pub device: &'a dyn StageDevice,
}

impl OptimizerContext<'_> {
    /// Returns the stage, counted from 0.
    pub fn stage(&self) -> usize {
        self.part.stage
    }

    /// Returns whether the parameters are those of an auxiliary head.
    pub fn is_head(&self) -> bool {
        self.part.kind == PartKind::Head
    }

    /// Lets `factory` make the optimizer, and the device wrap or replace it.
    pub(crate) fn optimizer(&self, factory: &dyn OptimizerFactory) -> Result<Box<dyn Optimizer>> {
        self.device.hooks().prepare_optimizer(self.part, factory.make(self)?)
    }
}

impl fmt::Debug for OptimizerContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OptimizerContext")
            .field("constants", self.constants)
            .field("part", self.part)
            .finish_non_exhaustive()
    }
}

impl OptimizerFactory for OptimizerConfig {
    fn constants(&self) -> OptimizerConfig {
        self.clone()
    }

    fn make(&self, context: &OptimizerContext<'_>) -> Result<Box<dyn Optimizer>> {
        crate::optimizer::built_in(context.constants)
    }
}

impl<F, O> OptimizerFactory for F
where
    F: Fn(&OptimizerContext<'_>) -> Result<O> + Send + Sync,
    O: Optimizer + 'static,
{
    fn make(&self, context: &OptimizerContext<'_>) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new(self(context)?))
    }
}

impl<F, O> OptimizerFactory for (OptimizerConfig, F)
where
    F: Fn(&OptimizerContext<'_>) -> Result<O> + Send + Sync,
    O: Optimizer + 'static,
{
    fn constants(&self) -> OptimizerConfig {
        self.0.clone()
    }

    fn make(&self, context: &OptimizerContext<'_>) -> Result<Box<dyn Optimizer>> {
        Ok(Box::new((self.1)(context)?))
    }
}
