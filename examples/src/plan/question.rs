//! The question of a plan: the numbers of stages, widths and micro-batches to try, and the devices.

use std::{
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
    sync::Arc,
};

use interlock::{
    Batch, Error, Precision, Result, StageDevice, TrainerBuilder,
    tools::{
        device::Link,
        planner::{Placement, PlannedCut, PlannerSetup, Profile, Replicas},
    },
};
use interlock_backends::{Backends, core_count};

use super::{
    PlanRow,
    subject::{Defaults, Subject},
    windows::Windows,
};
use crate::{
    arguments::{Plan, Width},
    bounded,
    config::Devices,
    memory,
    program::Program,
};

/// The best cut for one way to train.
pub(super) struct Found {
    pub(super) cut: PlannedCut,
    /// The bytes of each stage; none if they could not be measured.
    memory: Option<Vec<u64>>,
    /// The largest width of any stage.
    pub(super) widest: usize,
    /// The reason why a run would refuse it, other than memory; none if it would not.
    refused: Option<String>,
}

/// The largest number of stages.
const MOST_STAGES: usize = 1000;

pub(super) struct Question<'a, P: Program> {
    subject: Subject<P>,
    arguments: &'a Plan,
    pub(super) stages: Vec<usize>,
    pub(super) windows: Vec<Windows>,
    /// Of each replica.
    pub(super) micro_batches: Vec<usize>,
    replicas: Vec<usize>,
    devices: Devices,
    /// That of devices whose names say none.
    precision: Precision,
    /// A batch of a step, and the largest one of an epoch if that has more examples.
    batches: HashMap<usize, Batch>,
    /// Profiles by the names of devices (none for profiles from files) and the number of examples of a micro-batch.
    profiles: HashMap<(Vec<String>, usize), Arc<Profile>>,
    /// The best cuts found, by stages, replicas and micro-batches, and windows.
    found: HashMap<(usize, (usize, usize), Windows), Rc<Found>>,
}

impl<'a, P: Program> Question<'a, P> {
    /// # Errors
    /// If an argument is out of range or a file of costs cannot be read.
    pub(super) fn new((subject, defaults): (Subject<P>, Defaults), arguments: &'a Plan) -> Result<Self> {
        let latency = arguments.latency_us;
        if !(latency.is_finite() && latency >= 0.0) {
            return Err(Error::invalid("--latency-us", latency.to_string(), "use 0 or more"));
        }
        if let Some(wrong) = arguments.gbps.filter(|speed| !(speed.is_finite() && *speed > 0.0)) {
            return Err(Error::invalid("--gbps", wrong.to_string(), "use a number above 0"));
        }
        let or_default = |list: &[usize], default: usize| if list.is_empty() { vec![default] } else { list.to_vec() };
        let stages = match arguments.units_per_stage.len() {
            0 => or_default(&arguments.stages, defaults.stages),
            given => vec![given],
        };
        if stages.iter().any(|&count| count == 0 || count > MOST_STAGES) {
            return Err(Error::invalid("--stages", format!("{stages:?}"), format!("use 1 to {MOST_STAGES}")));
        }
        let replicas = match arguments.ranks {
            None => or_default(&arguments.replicas, defaults.replicas),
            Some(ranks) => {
                let fitting = stages.iter().filter(|&&count| ranks.is_multiple_of(count) && ranks > 0);
                let replicas: Vec<usize> = fitting.map(|count| ranks / count).collect();
                if replicas.is_empty() {
                    let right = "use a multiple of a number of stages (--stages)";
                    return Err(Error::invalid("--ranks", format!("{ranks} with {stages:?} stages"), right));
                }
                replicas
            }
        };
        let examples = subject.batch_size();
        let of_batch = || format!("a batch has {examples} examples: use 1 to {examples}");
        if let Some(wrong) = replicas.iter().find(|&&count| count == 0 || count > examples) {
            let (key, problem) = match arguments.ranks {
                Some(ranks) => ("--ranks", format!("{ranks} are {wrong} replicas of the fewest stages")),
                None => ("--replicas", wrong.to_string()),
            };
            return Err(Error::invalid(key, problem, of_batch()));
        }
        let micro_batches = or_default(&arguments.micro_batches, defaults.micro_batches);
        if micro_batches.iter().any(|&count| count == 0 || count > examples) {
            return Err(Error::invalid("--micro-batches", format!("{micro_batches:?}"), of_batch()));
        }
        let windows = windows(arguments, defaults.width);
        let mut profiles = HashMap::new();
        for path in &arguments.costs {
            let text = bounded::read(path, bounded::JSON);
            let text =
                text.map_err(|e| Error::file(path, format!("{e}; name a file of `interlock bench units --out`")))?;
            let profile: Profile = serde_json::from_str(&text).map_err(|e| {
                let problem = format!("no costs of units as this version measures them ({e})");
                Error::file(path, format!("{problem}; measure them again with `interlock bench units --out`"))
            })?;
            profiles.insert((Vec::new(), profile.examples), Arc::new(profile));
        }
        Ok(Self {
            batches: HashMap::new(),
            subject,
            arguments,
            stages,
            windows,
            micro_batches,
            replicas,
            devices: Devices::of_arguments(&arguments.devices).unwrap_or(defaults.devices),
            precision: defaults.precision,
            profiles,
            found: HashMap::new(),
        })
    }

    /// Returns the numbers of replicas to try with this many stages.
    pub(super) fn replicas_of(&self, stages: usize) -> Vec<usize> {
        match self.arguments.ranks {
            None => self.replicas.clone(),
            Some(ranks) => ranks.is_multiple_of(stages).then_some(ranks / stages).into_iter().collect(),
        }
    }

    fn dedicated(&self) -> bool {
        self.arguments.dedicated || self.replicas.iter().any(|&count| count > 1)
    }

    /// Returns the builder for one way to train, on its devices.
    fn builder(
        &self,
        stages: usize,
        (replicas, micro_batches): (usize, usize),
        windows: Windows,
    ) -> Result<TrainerBuilder> {
        let builder = self.subject.builder(stages, windows)?.replicas(replicas).micro_batches(micro_batches);
        match &self.devices {
            Devices::Auto if self.dedicated() => {
                let backends = Backends::default().precision(self.precision);
                Ok(builder.devices([backends.open("cpu:threads=1")?]))
            }
            devices => devices.give_to(builder, self.precision),
        }
    }

    /// Returns the costs of units for a batch of `examples` in this number of micro-batches of each replica, and measures them if they are not known yet.
    fn profile(
        &mut self,
        builder: &TrainerBuilder,
        stages: usize,
        (replicas, micro_batches): (usize, usize),
        examples: usize,
    ) -> Result<Arc<Profile>> {
        let batch = match self.batches.entry(examples) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(self.subject.batch(examples)?),
        };
        let piece = batch.split(micro_batches * replicas)?.swap_remove(0);
        let examples = piece.len()?;
        if !self.arguments.costs.is_empty() {
            return self.profiles.get(&(Vec::new(), examples)).cloned().ok_or_else(|| {
                let mut known: Vec<String> = self.profiles.keys().map(|(_, examples)| examples.to_string()).collect();
                known.sort_unstable();
                let problem = format!("no file has the costs of micro-batches of {examples} examples");
                let right = format!("the files have those of {}; measure others with `bench units`", known.join(", "));
                Error::invalid("--costs", problem, &right)
            });
        }
        let measured = devices_to_measure(builder.pinned_to(), stages);
        let names: Vec<String> = measured.iter().map(|device| device.name().to_owned()).collect();
        if let Some(known) = self.profiles.get(&(names.clone(), examples)) {
            return Ok(Arc::clone(known));
        }
        let profile = Arc::new(
            self.builder(stages, (replicas, micro_batches), Windows::END_TO_END)?
                .devices(measured)
                .profile(&piece, Some(&crate::ALLOCATOR))?,
        );
        self.profiles.insert((names, examples), Arc::clone(&profile));
        Ok(profile)
    }

    /// Returns the best cut into this many stages, which is searched once for each way to train.
    fn find(&mut self, stages: usize, pieces: (usize, usize), windows: Windows) -> Result<Rc<Found>> {
        let way = (stages, pieces, windows);
        let replicas = pieces.0;
        if let Some(found) = self.found.get(&way) {
            return Ok(Rc::clone(found));
        }
        let builder = self.builder(stages, pieces, windows)?;
        let (usual, largest) = (self.subject.batch_size(), self.subject.largest_batch(&builder)?);
        let profile = self.profile(&builder, stages, pieces, usual)?;
        // Files of costs have those of usual batches.
        let largest = match largest > usual && self.arguments.costs.is_empty() {
            true => self.profile(&builder, stages, pieces, largest)?,
            false => Arc::clone(&profile),
        };
        let placement = match self.dedicated() {
            true => Placement::dedicated(stages),
            false => Placement::on(builder.pinned_to(), stages, core_count()),
        };
        let link = Link {
            latency: self.arguments.latency_us * 1e-6,
            bandwidth: self.arguments.gbps.map_or(f64::INFINITY, |gigabits| gigabits * 1e9 / 8.0),
        };
        let replicas = Replicas { count: replicas, link };
        let links = vec![[link; 2]; stages];
        let setup = PlannerSetup { links, replicas, ..builder.setup(stages, &profile, placement)? };
        let cut = match self.arguments.units_per_stage.as_slice() {
            [] => setup.best_cut(&builder.tied_units()?)?,
            units => setup.simulate(units)?,
        };
        let memory = PlannerSetup { profile: &largest, ..setup.clone() }.memory(&cut);
        let widest = (0..stages).map(|k| setup.plan.width(k)).max().unwrap_or(1);
        let refused = setup.check_readout().err().map(|error| error.to_string());
        let found = Rc::new(Found { cut, memory, widest, refused });
        self.found.insert(way, Rc::clone(&found));
        Ok(found)
    }

    /// Returns the row of one way to train.
    ///
    /// # Errors
    /// If it cannot be simulated.
    pub(super) fn row(
        &mut self,
        stages: usize,
        (replicas, micro_batches): (usize, usize),
        windows: Windows,
    ) -> Result<PlanRow> {
        let pieces = (replicas, micro_batches);
        let end_to_end = self.find(stages, pieces, Windows::END_TO_END)?.cut.simulated.step_seconds;
        let found = self.find(stages, pieces, windows)?;
        let cut = &found.cut;
        let step = cut.simulated.step_seconds;
        Ok(PlanRow {
            stages,
            width: windows.width.map_or_else(|| "as configured".to_owned(), |width| width.to_string()),
            group: windows.group,
            follow: windows.follow,
            replicas,
            micro_batches,
            units_per_stage: cut.units_per_stage.clone(),
            proven: cut.proven,
            in_flight: cut.scenario.in_flight,
            step_seconds: step,
            examples_per_second: self.subject.batch_size() as f64 / step,
            idle: cut.simulated.mean_idle(),
            refused: found.refused.clone().or_else(|| self.does_not_fit(found.memory.as_deref()?)),
            memory_bytes: found.memory.clone(),
            against_end_to_end: step / end_to_end,
            reason: cut.simulated.critical.to_string(),
            found,
        })
    }

    /// Returns the reason why stages of these bytes do not fit into memory, or none if they fit.
    fn does_not_fit(&self, bytes: &[u64]) -> Option<String> {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let limit = self.arguments.memory_mib;
        if self.dedicated() {
            let (stage, &most) = bytes.iter().enumerate().max_by_key(|(_, bytes)| **bytes)?;
            let limit = limit.filter(|&limit| mib(most) > limit)?;
            return Some(format!("stage {stage} needs {} MiB, but its device has {limit} (--memory-mib)", mib(most)));
        }
        let all = mib(bytes.iter().sum());
        let free = limit.or_else(|| memory::available().map(mib)).filter(|&free| all > free)?;
        Some(format!("all stages together need {all} MiB, but {free} are free"))
    }
}

/// Returns all combinations of the widths, groups and followed losses to try.
fn windows(arguments: &Plan, width: Option<Width>) -> Vec<Windows> {
    fn or<T: Copy>(given: &[T], default: Option<T>) -> Vec<Option<T>> {
        if given.is_empty() { vec![default] } else { given.iter().copied().map(Some).collect() }
    }
    let (widths, groups, follows) =
        (or(&arguments.widths, width), or(&arguments.groups, None), or(&arguments.follow, None));
    let mut all = Vec::new();
    for &width in &widths {
        for &group in &groups {
            all.extend(follows.iter().map(|&follow| Windows { width, group, follow }));
        }
    }
    all
}

/// Returns the devices to measure at the same time. Several devices of the same name are measured only as long as there are cores for them, since
/// the simulation itself accounts for waiting for cores.
fn devices_to_measure(devices: &[Arc<dyn StageDevice>], stages: usize) -> Vec<Arc<dyn StageDevice>> {
    let mut cores = 0;
    let mut taken: Vec<Arc<dyn StageDevice>> = Vec::new();
    for device in devices.iter().take(stages) {
        let known = taken.iter().any(|other| other.name() == device.name());
        if known && (cores + device.hooks().threads() > core_count() || device.hooks().threads() == 0) {
            continue;
        }
        cores += device.hooks().threads();
        taken.push(Arc::clone(device));
    }
    taken
}
