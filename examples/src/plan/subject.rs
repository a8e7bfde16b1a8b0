//! The subject of a plan: a configured run, or a workload of `bench`.

use interlock::{
    Batch, Precision, Result, TrainerBuilder,
    tools::{model::PartitionConfig, strategy::StrategyConfig},
};
use interlock_models::data::Data;

use super::windows::Windows;
use crate::{
    arguments::{Plan, Width},
    bench::Workload,
    config::{self, ConfigOf, Devices, Prepared},
    program::Program,
};

pub(super) enum Subject<P: Program> {
    Run(Box<ConfigOf<P>>, Data),
    Workload(&'static Workload),
}

/// The defaults of a plan.
pub(super) struct Defaults {
    pub(super) stages: usize,
    pub(super) width: Option<Width>,
    pub(super) micro_batches: usize,
    pub(super) replicas: usize,
    pub(super) devices: Devices,
    pub(super) precision: Precision,
}

impl<P: Program> Subject<P> {
    /// # Errors
    /// If the configuration is not valid.
    pub(super) fn new(arguments: &Plan) -> Result<(Self, Defaults)> {
        if let Some(name) = arguments.workload {
            let width = Some(Width::Number(2));
            let (devices, precision) = (Devices::Auto, Precision::F32);
            let defaults = Defaults { stages: 2, width, micro_batches: 1, replicas: 1, devices, precision };
            return Ok((Self::Workload(Workload::named(name)), defaults));
        }
        let config = config::load::<P>(arguments.source.config.as_deref(), &arguments.source.sets)?;
        Self::of_run(config, arguments.costs.is_empty())
    }

    /// # Errors
    /// If the configuration is not valid, or its model is to be measured and cannot fit in memory.
    pub(super) fn of_run(config: ConfigOf<P>, is_measured: bool) -> Result<(Self, Defaults)> {
        let prepared = if is_measured { config.prepare_to_train(None) } else { config.prepare() };
        let Prepared { data, builder, .. } = prepared?;
        let defaults = Defaults {
            stages: builder.layout()?.partition.stages(),
            width: None,
            micro_batches: config.micro_batches,
            replicas: config.replicas,
            devices: config.devices.clone(),
            precision: config.precision,
        };
        Ok((Self::Run(Box::new(config), data), defaults))
    }

    /// Returns the number of examples of a batch.
    pub(super) fn batch_size(&self) -> usize {
        match self {
            // A batch has at most all examples.
            Self::Run(config, data) => config.batch_size.min(data.train.len().max(1)),
            Self::Workload(workload) => workload.batch,
        }
    }

    /// Returns the number of examples of the largest batch of an epoch, to which a last one may be joined that is too small for the model.
    ///
    /// # Errors
    /// If a micro-batch has fewer examples than the model needs.
    pub(super) fn largest_batch(&self, builder: &TrainerBuilder) -> Result<usize> {
        match self {
            Self::Run(_, data) => Ok(builder.largest_batch(&*data.train)?.max(self.batch_size())),
            Self::Workload(workload) => Ok(workload.batch),
        }
    }

    /// Returns the batch of a step, or one of the next `examples` for the largest.
    pub(super) fn batch(&self, examples: usize) -> Result<Batch> {
        match self {
            Self::Run(_, data) => {
                let numbers: Vec<usize> = (0..examples).map(|i| i % data.train.len().max(1)).collect();
                data.train.batch(&numbers, None)
            }
            Self::Workload(workload) => workload.random_batch(0),
        }
    }

    /// Returns a builder with everything but devices.
    pub(super) fn builder(&self, stages: usize, windows: Windows) -> Result<TrainerBuilder> {
        let partition = PartitionConfig { stages: Some(stages), units_per_stage: None };
        Ok(match self {
            Self::Run(config, data) => {
                let strategy = windows.strategy(&config.strategy)?.build()?;
                config.builder(&data.description)?.partition(partition).strategy_boxed(strategy)
            }
            Self::Workload(workload) => {
                // Widths count blocks; end-to-end needs no heads.
                let blocks = stages.div_ceil(windows.group.unwrap_or(1).max(1));
                let width = windows.width.map_or(2, |width| width.of(blocks));
                let width = if width < blocks { width } else { stages };
                let configured = StrategyConfig { width: Some(2), ..StrategyConfig::default() };
                let strategy = windows.strategy(&configured)?.build()?;
                workload.trainer(width, stages)?.partition(partition).strategy_boxed(strategy)
            }
        })
    }
}
