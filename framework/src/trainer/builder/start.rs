//! The start of a trainer: the pipeline of a checked layout.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Layout, TrainerBuilder};
use crate::{
    DataFrom, Error, Result, Split,
    actor::{OpenData, Pipeline, PipelineSettings, serve},
    model::Partition,
    optimizer::clip::ClipScope,
    ranks::Spread,
    simulator::{HOP, Scenario, StageCosts},
    stage::StageBlueprint,
    trainer::{
        FailuresConfig, Trainer,
        calls::Calls,
        checkpoint::{Captures, Timing},
        guarded,
        recording::Recording,
        recovery::{Launch, Recovery},
        run_metrics::RunMetrics,
        simulated_idle::SimulatedIdle,
        told::Told,
    },
};

/// The shortest limit for code that may block, with several ranks: each tells the others only a few times a second what its stages do.
const SHORTEST_STALL: Duration = Duration::from_secs(1);

impl TrainerBuilder {
    /// Checks everything and starts the pipeline. Every stage is built on its device when this returns.
    ///
    /// # Errors
    /// As [`Self::layout`], or if a stage cannot be built or cannot continue from its state ([`Self::restore`]), or a pattern of
    /// [`OptimizerConfig::groups`](crate::OptimizerConfig::groups) matches no parameter, or these freeze all parameters.
    pub fn build(self) -> Result<Trainer> {
        guarded(|| self.start())
    }

    /// Builds the stages of this rank when rank 0 builds its trainer, and lets that train them until it ends. It waits for rank 0, also while that is refused a
    /// builder and makes another. Initial values come from rank 0.
    ///
    /// # Errors
    /// As [`Self::layout`], or if the run fails, another rank is lost, this is rank 0, or [`Self::ranks`] was not called.
    pub fn serve(self) -> Result<()> {
        self.serve_data(None)
    }

    /// As [`Self::serve`], with several replicas: the rank with the first stage of each reads the replica's part of every training batch itself
    /// ([`Self::data_from`]). Such a rank calls `open`, which returns the data on which rank 0 trains; others do not. What `open` refuses, rank 0 is
    /// refused too.
    ///
    /// # Errors
    /// As [`Self::serve`], or if `open` fails.
    pub fn serve_with<D: Into<Split>>(self, open: impl FnOnce() -> Result<D> + 'static) -> Result<()> {
        self.serve_data(Some(Box::new(|| Ok(open()?.into().train))))
    }

    fn serve_data(mut self, data: Option<OpenData>) -> Result<()> {
        // Rank 0 sends what its own gave.
        (self.initial, self.restored) = (None, None);
        guarded(|| {
            let Layout { partition, blueprints, .. } = self.layout()?;
            let Some(spread) = self.spread(&partition)?.filter(|spread| spread.ranks.rank() > 0) else {
                return Err(Error::invalid("rank 0", "it has nobody to serve", "call build and train"));
            };
            let reads = self.settings.data_from == DataFrom::All && spread.begins_replica();
            let without_data = || {
                let remedy = "call serve_with, or let rank 0 read all (DataFrom::First)";
                Err(Error::invalid("training set", "this rank has the first stage of a replica and no data", remedy))
            };
            let data = reads.then(|| data.unwrap_or_else(|| Box::new(without_data)));
            serve(blueprints, &spread, self.pipeline_settings()?, data)
        })
    }

    /// Starts the pipeline alone, without a trainer, for measurements.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn pipeline(self) -> Result<Pipeline> {
        guarded(|| {
            let Layout { partition, plans, blueprints, .. } = self.layout()?;
            Pipeline::start_on(blueprints, plans, self.pipeline_settings()?, self.spread(&partition)?)
        })
    }

    /// Returns the stages that this process trains, of the layout of this builder: all of them, without [`Self::ranks`].
    ///
    /// # Errors
    /// If the stages cannot be spread over the ranks.
    pub fn stages_here(&self, layout: &Layout) -> Result<Vec<usize>> {
        let stages = layout.partition.stages();
        Ok(match self.spread(&layout.partition)? {
            Some(spread) => spread.stages_of(spread.ranks.rank()),
            None => (0..stages).collect(),
        })
    }

    /// Returns the settings of the pipeline.
    fn pipeline_settings(&self) -> Result<PipelineSettings> {
        Ok(PipelineSettings {
            micro_batches: self.settings.micro_batches,
            in_flight: self.in_flight,
            policy: self.policy.into(),
            global_norm: self.clip.as_ref().is_some_and(|clip| clip.scope == ClipScope::Global),
            first_step: self.settings.first_step,
            record: self.settings.record.map(|_| Instant::now()),
            stall_timeout: self.failures.as_ref().map_or(Ok(None), FailuresConfig::stall_limit)?,
        })
    }

    /// Returns the rank of each stage; none in one process.
    fn spread(&self, partition: &Partition) -> Result<Option<Spread>> {
        let replicas = self.settings.replicas;
        let Some(ranks) = &self.ranks else {
            if replicas > 1 {
                let right = format!(
                    "start a multiple of {replicas} ranks, such as mpirun -n {replicas} with a build with the feature mpi"
                );
                return Err(Error::invalid("replicas", format!("{replicas} in one process"), right));
            }
            return match self.stages_of_ranks {
                None => Ok(None),
                Some(_) => Err(Error::invalid(
                    "placement.stages",
                    "there is only one process",
                    "start several, or leave it out",
                )),
            };
        };
        if self.failures.as_ref().is_some_and(FailuresConfig::recovers) {
            let remedy = "use \"stop\" for both, and resume the run after a failure";
            return Err(Error::invalid("failures", "restarts with several ranks", remedy));
        }
        let limit = self.failures.as_ref().map_or(Ok(None), FailuresConfig::stall_limit)?;
        if let Some(limit) = limit.filter(|limit| *limit < SHORTEST_STALL) {
            let problem = format!("{} with several ranks", limit.as_secs_f64());
            return Err(Error::invalid("failures.stall_timeout", problem, "use 1 or more, or 0 for no limit"));
        }
        let stages = partition.stages();
        let spread = Spread::new(ranks.clone(), replicas, stages, self.stages_of_ranks.as_deref())?;
        let own = [
            format!("version {}", env!("CARGO_PKG_VERSION")),
            format!("units of stages {:?}", (0..stages).map(|stage| partition.units(stage).len()).collect::<Vec<_>>()),
            format!(
                "replicas {replicas}, statistics {:?}, data from {:?}, ranks of stages {:?}",
                self.replica_statistics, self.settings.data_from, spread.homes
            ),
            format!("seed {}", self.settings.seed),
            format!("batch size {}, micro-batches {}", self.settings.batch_size, self.settings.micro_batches),
            format!("optimizer {:?}", self.optimizer.constants()),
            format!("clipping {:?}, moving average {:?}, dtype {:?}", self.clip, self.ema, self.dtype),
            format!("heads {:?}, recompute {:?}", self.heads, self.recompute),
        ];
        let agreement = own.into_iter().chain(self.agreement.lines().map(str::to_owned)).collect::<Vec<_>>().join("\n");
        Ok(Some(Spread { agreement, ..spread }))
    }

    fn start(self) -> Result<Trainer> {
        let Layout { partition, plans, blueprints, settings, differences, .. } = self.layout()?;
        let schedule = plans.schedule().clone();
        let pipeline_settings = self.pipeline_settings()?;
        let spread = self.spread(&partition)?;
        if let Some(rank) = spread.as_ref().map(|spread| spread.ranks.rank()).filter(|rank| *rank > 0) {
            return Err(Error::invalid(format!("rank {rank}"), "it has no trainer", "call serve on it"));
        }
        let scenario = Scenario {
            links: blueprints.iter().map(|stage| [stage.device.hooks().link(); 2]).collect(),
            heads: blueprints.iter().map(StageBlueprint::has_head).collect(),
            micro_batches: self.settings.micro_batches,
            policy: self.policy.into(),
            global_norm: pipeline_settings.global_norm,
            hop: HOP,
            ..Scenario::new(
                Arc::clone(&schedule.phase_at(self.settings.first_step).plan),
                vec![StageCosts::default(); partition.stages()],
            )
        };
        if let Some(differences) = &differences {
            differences.log("initial values");
        }
        let ranks = spread.as_ref().map_or_else(|| vec![0; partition.stages()], |spread| spread.homes.clone());
        let pipeline = Pipeline::start_on(blueprints.clone(), plans, pipeline_settings, spread)?;
        let names = || pipeline.built().iter().flat_map(|stage| &stage.names).map(String::as_str);
        self.optimizer.constants().check_patterns(names)?;
        // A model without parameters may be evaluated.
        let parameters: usize = pipeline.built().iter().map(|stage| stage.parameters + stage.head_parameters).sum();
        if parameters > 0 && pipeline.built().iter().all(|stage| stage.frozen) {
            let remedy = "leave a group with frozen = true out, or a pattern of it";
            return Err(Error::invalid(
                "optimizer.groups",
                "all parameters are frozen: nothing would be trained",
                remedy,
            ));
        }
        let steps = self.settings.first_step;
        let metrics = RunMetrics::new(pipeline.built(), &ranks, &scenario.plan, self.settings.micro_batches_of_step());
        let simulated_idle = SimulatedIdle::new(Scenario { in_flight: pipeline.in_flight(), ..scenario });
        let snapshot_every = self.failures.as_ref().map(|failures| failures.snapshot_every).filter(|every| *every > 0);
        let mut trainer = Trainer {
            recovery: Recovery::new(self.failures.unwrap_or_default(), partition.stages()),
            launch: Arc::new(Launch {
                strategy: self.strategy,
                heads: self.heads,
                settings: Arc::clone(&settings),
                pipeline: pipeline_settings,
            }),
            told: Told::default(),
            metrics,
            simulated_idle,
            recording: self.settings.record.map(Recording::new),
            pipeline,
            blueprints,
            plans: schedule,
            settings: self.settings,
            partition,
            loss: Arc::clone(&settings.loss),
            callbacks: self.callbacks,
            stop_reason: None,
            stopper: self.stopper,
            steps,
            order: None,
            interrupted: false,
            reduces_on_plateau: settings.lr_schedule.reduces_on_plateau(),
            warmup_steps: settings.lr_schedule.warmup_steps(),
            best: Arc::default(),
            fit: None,
            resumes: self.resumes,
            evaluation_due: false,
            captures: Captures::new(Timing::new(None, snapshot_every)),
            store: None,
            best_is_unwritten: false,
            attached: self.attached,
            snapshot_every,
            checkpoint_on_stop: false,
            rehearsed: Cell::new(false),
            calls: Calls::default(),
            failed: false,
        };
        if let Some(state) = self.restored {
            let steps = state.steps();
            trainer.restore(state)?;
            if self.resumes {
                trainer.captures.continues_from(steps);
            }
        }
        if let Some((run, config)) = &self.checkpoint {
            trainer.checkpoint_to(run, config)?;
        }
        Ok(trainer)
    }
}
