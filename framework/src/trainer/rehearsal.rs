//! What is tried on a few examples before the first step, with stages that are thrown away: the fewest examples of a micro-batch that a model can be
//! trained with, and gradients that could not be checked when the stages were built.
//!
//! Batch norm divides by the spread of each channel's values, and a single value has none: over a map of one pixel, it needs two examples.
//! Modules of a model's own may have the same need, so it is found by trying.

use std::sync::Arc;

use candle_core::Device;

use super::{
    FitSettings,
    calls::{self, Calls},
    example_order::ExampleOrder,
    guarded,
};
use crate::{
    Batch, Dataset, Error, Origin, Phase, PlanSchedule, Result,
    differentiation::{TensorKind, tensor_kind},
    schedule::{Action, MicroBatchId, Purpose},
    stage::{ActionContext, Outcome, Payload, Stage, StageBlueprint},
    tensor::elementwise::is_finite,
    watch::Doing,
};

/// The number of examples on which gradients are checked.
const EXAMPLES: usize = 4;

/// Returns the order of a training set for these stages, whose first epoch begins at step 0.
///
/// # Errors
/// As [`ExampleOrder::new`], or if a stage cannot be built.
pub(super) fn order_of(
    data: &dyn Dataset,
    len: usize,
    settings: &FitSettings,
    stages: &[StageBlueprint],
    calls: &Calls,
) -> Result<ExampleOrder> {
    let order = ExampleOrder::new(len, settings.division(1), settings.seed)?;
    if order.smallest_micro_batch() > 1 || stages.is_empty() {
        return Ok(order);
    }
    let Some(need) = need_of_two(data, len, stages, calls)? else { return Ok(order) };
    let order = ExampleOrder::new(len, settings.division(2), settings.seed);
    order.map_err(|error| match error {
        Error::Invalid { subject, problem, remedy } => Error::invalid(subject, format!("{problem} ({need})"), remedy),
        other => other,
    })
}

/// Returns why one example is not enough for a micro-batch, if two are; none if one is enough.
fn need_of_two(data: &dyn Dataset, len: usize, stages: &[StageBlueprint], calls: &Calls) -> Result<Option<String>> {
    let Some(batch) = examples(data, &[0, len.min(2) - 1], calls)? else { return Ok(None) };
    let one = batch.split(2)?.swap_remove(0);
    Ok(match rehearse(stages, one, calls)? {
        // What two cannot do either is reported where it arises, in the first step.
        Err(cause) if rehearse(stages, batch, calls)?.is_ok() => Some(match cause {
            Error::Failed(failure) => failure.cause.to_string(),
            other => other.to_string(),
        }),
        _ => None,
    })
}

/// Returns these examples; none if the data set fails, which the first step reports.
///
/// # Errors
/// If the fit is left behind.
fn examples(data: &dyn Dataset, numbers: &[usize], calls: &Calls) -> Result<Option<Batch>> {
    let batch = || data.batch(numbers, None).and_then(|batch| batch.validate(numbers).map(|()| batch));
    calls.during(calls::DATA, || Ok(guarded(batch).ok()))
}

/// Checks gradients by a backward pass through these stages, which are the first ones of a model with these plans.
///
/// # Errors
/// If a gradient is refused, or a stage cannot be built.
pub(super) fn check_gradients(
    data: &dyn Dataset,
    len: usize,
    stages: &[StageBlueprint],
    plans: &PlanSchedule,
    calls: &Calls,
) -> Result<()> {
    let numbers: Vec<usize> = (0..len.min(EXAMPLES)).collect();
    let Some(Batch { mut inputs, .. }) = examples(data, &numbers, calls)? else { return Ok(()) };
    for blueprint in stages {
        let (k, mut stage) = (blueprint.index, built(blueprint, calls)?);
        let sends_back = plans.plans().any(|plan| !plan.losses_sent_back(k).is_empty());
        let needs_head = plans.plans().any(|plan| plan.is_needed(k));
        let check = || guarded(|| Ok(stage.check_gradients(&inputs, sends_back, needs_head)?));
        match calls.during(Doing::new(Origin::Stage(k), Phase::Backward), check) {
            Ok(Some(output)) => inputs = output,
            // What a forward pass fails with is reported by the first step.
            Ok(None) | Err(Error::Panicked(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Builds a stage that is thrown away.
fn built(blueprint: &StageBlueprint, calls: &Calls) -> Result<Stage> {
    let build = || Ok(blueprint.for_predictions(Arc::default(), true).build()?);
    calls.during(Doing::new(Origin::Stage(blueprint.index), Phase::Build), build)
}

/// Runs the forward passes of a step of one micro-batch, heads included, and returns how they ended.
///
/// # Errors
/// If a stage cannot be built.
fn rehearse(stages: &[StageBlueprint], batch: Batch, calls: &Calls) -> Result<Result<()>> {
    let micro_batch = MicroBatchId { step: 0, purpose: Purpose::Train, index: 0, count: 1 };
    let mut payload = Payload { inputs: batch.inputs, targets: batch.targets, total: 1.0 };
    for blueprint in stages {
        let mut stage = built(blueprint, calls)?;
        let pass = || {
            stage.accept(micro_batch, payload)?;
            let next = match stage.perform(Action::Forward(micro_batch), ActionContext::default())? {
                Outcome::Activation(next) => next,
                other => return Err(Error::Internal(format!("a forward pass gave {other:?}"))),
            };
            if stage.has_head() {
                stage.head_output(micro_batch)?;
            }
            check_statistics(&stage)?;
            Ok(next)
        };
        let doing = Doing::new(Origin::Stage(blueprint.index), Phase::Forward);
        match calls.during(doing, || Ok(guarded(pass)))? {
            Ok(next) => payload = next,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

/// Refuses running statistics that the forward pass made non-finite: batch norm of candle divides by the number of values less one.
fn check_statistics(stage: &Stage) -> Result<()> {
    for (name, tensor) in stage.snapshot()? {
        let is_statistic = tensor_kind(&name) == TensorKind::Buffer && tensor.dtype().is_float();
        if is_statistic && !is_finite(&tensor.to_device(&Device::Cpu)?)? {
            return Err(Error::invalid(name, "it is not finite after a forward pass", "give more examples"));
        }
    }
    Ok(())
}
