use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::*;
use crate::{
    Activation, Differentiable, EmaConfig, Gradients, Optimizer, OptimizerContext, ParameterGroup, ParameterUpdate,
    Pass, Phase, Saved, Unit, Wants,
    device::{DeviceHooks, PlainCpu},
    differentiation::Pending,
    loss::MeanSquaredError,
    optimizer::{
        OptimizerConfig, OptimizerKind,
        clip::ClipConfig,
        lr_schedule::{LrSchedule, LrScheduleConfig},
    },
    stage::{HeadsConfig, Recompute},
};

/// Bytes that the layers of a test claim to have in use.
#[derive(Default)]
struct Ledger {
    in_use: AtomicI64,
    peak: AtomicI64,
}

/// Some of them.
struct Held(Arc<Ledger>, i64);

impl Held {
    fn new(ledger: &Arc<Ledger>, bytes: i64) -> Self {
        let now = ledger.in_use.fetch_add(bytes, Ordering::Relaxed) + bytes;
        ledger.peak.fetch_max(now, Ordering::Relaxed);
        Self(Arc::clone(ledger), bytes)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl MemoryMeter for Ledger {
    fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed) as u64
    }

    fn take_peak(&self) -> u64 {
        self.peak.swap(self.in_use.load(Ordering::Relaxed), Ordering::Relaxed) as u64
    }
}

const SAVED: i64 = 1_000_000;
const PENDING: i64 = 300_000;
const FORWARD: i64 = 50_000;
const BACK: i64 = 80_000;

/// `y = w·x` for one value `w`, which fails or panics in a pass if asked to, and claims bytes.
struct Scale {
    weight: Tensor,
    fails: Option<Phase>,
    panics: bool,
    /// The pass that takes [`SLOW`].
    slow: Option<Phase>,
    ledger: Arc<Ledger>,
}

const SLOW: Duration = Duration::from_millis(3);

impl Scale {
    /// Takes the time of a pass, or fails in it.
    fn pass(&self, phase: Phase) -> Result<()> {
        if self.slow == Some(phase) {
            thread::sleep(SLOW);
        }
        match self.fails {
            Some(fails) if fails == phase && self.panics => panic!("oh no"),
            Some(fails) if fails == phase => Err(Error::Data("oh no".to_owned())),
            _ => Ok(()),
        }
    }
}

impl Differentiable for Scale {
    fn forward(&self, x: &Activation, _: &Pass) -> Result<(Activation, Saved)> {
        self.pass(Phase::Forward)?;
        let held = Held::new(&self.ledger, SAVED);
        drop(Held::new(&self.ledger, FORWARD));
        let x = x.single()?.clone();
        Ok((x.broadcast_mul(&self.weight.detach())?.into(), Saved::new((x, held))))
    }

    fn backward(&self, saved: &Saved, output_gradient: &Activation, wants: Wants) -> Result<Gradients> {
        self.pass(Phase::Backward)?;
        drop(Held::new(&self.ledger, BACK));
        let ((x, _), c): (&(Tensor, Held), _) = (saved.get()?, output_gradient.single()?);
        let gradient = || Ok::<_, Error>((self.weight.id(), (x * c)?.sum_all()?.reshape(1)?));
        Ok(Gradients {
            input: wants.input.then(|| c.broadcast_mul(&self.weight.detach())).transpose()?.map(Into::into),
            parameters: wants.parameters.then(gradient).transpose()?.into_iter().collect(),
        })
    }

    fn backward_input(&self, saved: &Saved, output_gradient: &Activation) -> Result<(Activation, Pending)> {
        let input = self.backward(saved, output_gradient, Wants::INPUT)?.into_input()?;
        Ok((input, Pending::new((output_gradient.clone(), Held::new(&self.ledger, PENDING)))))
    }

    fn backward_parameters(&self, saved: &Saved, pending: Pending) -> Result<crate::ParameterGradients> {
        let (output_gradient, _): (Activation, Held) = pending.take()?;
        Ok(self.backward(saved, &output_gradient, Wants::PARAMETERS)?.parameters)
    }
}

/// Units `a`, `b` … of one value each.
#[derive(Clone, Default)]
struct Model {
    units: usize,
    heads: bool,
    /// Where and in which phase it fails.
    fails: Option<(usize, Phase)>,
    panics: bool,
    /// The unit and the pass that are slow.
    slow: Option<(usize, Phase)>,
    tied: Option<(usize, usize)>,
    ledger: Arc<Ledger>,
    /// How many units and heads have been built.
    built: Arc<AtomicUsize>,
}

impl Model {
    fn unit(&self, name: &str, [fails, slow]: [Option<Phase>; 2], tied: Option<usize>) -> Unit {
        let (model, name) = (self.clone(), name.to_owned());
        let unit = Unit::new(name.clone(), [4], move |vb: VarBuilder<'static>| {
            model.built.fetch_add(1, Ordering::Relaxed);
            if fails == Some(Phase::Build) {
                return Err(Error::Data("oh no".to_owned()));
            }
            let at_root = match tied {
                Some(_) => vb.root().pp("a"),
                None => vb,
            };
            Ok(Scale {
                weight: at_root.get_with_hints(1, "weight", candle_nn::Init::Const(0.5))?,
                fails,
                panics: model.panics,
                slow,
                ledger: Arc::clone(&model.ledger),
            })
        });
        tied.into_iter().fold(unit, Unit::tied_to)
    }
}

impl ModelSpec for Model {
    fn units(&self) -> Result<Vec<Unit>> {
        let of = |what: Option<(usize, Phase)>, i| what.filter(|&(unit, _)| unit == i).map(|(_, phase)| phase);
        let tied = |i| self.tied.filter(|&(unit, _)| unit == i).map(|(_, other)| other);
        Ok((0..self.units)
            .map(|i| self.unit(["a", "b", "c"][i], [of(self.fails, i), of(self.slow, i)], tied(i)))
            .collect())
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        match arch {
            "fc" if self.heads => Ok(self.unit("", [None; 2], None)),
            "slow" if self.heads && unit > 0 => Ok(self.unit("", [None, Some(Phase::Forward)], None)),
            _ => Err(Error::invalid("heads.arch", format!("no {arch} after {unit}"), "use fc")),
        }
    }
}

fn settings(optimizer: OptimizerConfig, arch: Option<&str>, dtype: ActivationDtype) -> StageSettings {
    StageSettings {
        seed: 1,
        optimizer: std::sync::Arc::new(optimizer),
        clip: None::<ClipConfig>,
        lr_schedule: LrSchedule::new(LrScheduleConfig::default()).unwrap(),
        loss: Arc::new(MeanSquaredError),
        head_losses: Default::default(),
        replica_statistics: crate::ReplicaStatistics::First,
        check_gradients: true,
        given: Default::default(),
        heads: HeadsConfig { arch: arch.map(str::to_owned), ..HeadsConfig::default() },
        recompute: Recompute::None,
        ema: None,
        dtype: Some(dtype),
    }
}

fn batch() -> Batch {
    let ones = Tensor::ones((3, 4), DType::F32, &Device::Cpu).unwrap();
    Batch { inputs: ones.clone().into(), targets: ones }
}

fn one_device() -> Vec<Arc<dyn StageDevice>> {
    vec![Arc::new(PlainCpu)]
}

fn measure(model: &Model, devices: &[Arc<dyn StageDevice>], meter: Option<&dyn MemoryMeter>) -> Result<Profile> {
    let settings = settings(OptimizerConfig::default(), None, ActivationDtype::F32);
    Profile::measure(model, &settings, devices, &batch(), meter)
}

#[test]
fn every_unit_and_head_has_its_costs_and_a_file_keeps_them() {
    let model = Model { units: 3, heads: true, ..Model::default() };
    let profile = measure(&model, &one_device(), None).unwrap();
    assert_eq!((profile.examples, profile.order.as_slice(), profile.devices.len()), (3, &[0][..], 1));
    let costs = &profile.devices[0];
    assert_eq!((costs.device.as_str(), costs.units.len()), ("plain", 3));
    for (i, unit) in costs.units.iter().enumerate() {
        assert_eq!(unit.name, ["a", "b", "c"][i]);
        assert!(unit.forward > 0.0 && unit.parameters_only > 0.0 && unit.update > 0.0);
        assert_eq!(unit.both > 0.0 && unit.input_gradient > 0.0 && unit.parameter_gradient > 0.0, i > 0);
        // 3 examples of 4 values; one value of a parameter, its gradient and its momentum.
        assert_eq!(unit.output_bytes, 3 * 4 * 4);
        assert_eq!((unit.parameter_bytes, unit.gradient_bytes, unit.optimizer_bytes), (4, 4, 4));
        assert_eq!((unit.saved_bytes, unit.pending_bytes, unit.transient_bytes), (None, None, None));
        assert_eq!((unit.heads.len(), unit.send > 0.0), if i < 2 { (1, true) } else { (0, false) });
        assert!(unit.add > 0.0);
        if let Some(head) = unit.heads.get("fc") {
            assert!(head.needed > 0.0 && head.probe > 0.0 && head.update > 0.0);
            assert_eq!((head.parameter_bytes, head.gradient_bytes, head.optimizer_bytes), (4, 4, 4));
        }
    }
    assert!(costs.loss > 0.0 && costs.action.is_finite() && costs.scratch_bytes.is_none());
    assert!(profile.on(5).is_some_and(|costs| costs.device == "plain"));
    let text = serde_json::to_string(&profile).unwrap();
    assert_eq!(serde_json::from_str::<Profile>(&text).unwrap(), profile);
}

#[test]
fn a_slow_pass_is_seen_in_the_times_of_its_unit_alone() {
    for phase in [Phase::Forward, Phase::Backward] {
        let model = Model { units: 3, slow: Some((1, phase)), ..Model::default() };
        let profile = measure(&model, &one_device(), None).unwrap();
        let units = &profile.devices[0].units;
        let slow = SLOW.as_secs_f64();
        for (i, unit) in units.iter().enumerate().skip(1) {
            let backward = [unit.both, unit.input_gradient, unit.parameter_gradient, unit.parameters_only];
            let expected = |of| i == 1 && phase == of;
            assert_eq!(unit.forward >= slow, expected(Phase::Forward), "{unit:?}");
            assert!(backward.iter().all(|seconds| (*seconds >= slow) == expected(Phase::Backward)), "{unit:?}");
        }
    }
}

#[test]
fn bytes_are_those_of_what_units_keep_and_need() {
    let model = Model { units: 3, heads: true, ..Model::default() };
    let profile = measure(&model, &one_device(), Some(&*model.ledger)).unwrap();
    let costs = &profile.devices[0];
    // Tensors, of 48 bytes, are not in the ledger.
    let about = |found: Option<u64>, expected: i64| {
        assert!(found.unwrap().abs_diff(expected as u64) < 200, "{found:?} where {expected} are right");
    };
    for (i, unit) in costs.units.iter().enumerate() {
        about(unit.saved_bytes, SAVED);
        about(unit.pending_bytes, if i > 0 { PENDING } else { 0 });
        about(unit.transient_bytes, BACK);
        for head in unit.heads.values() {
            about(head.transient_bytes, SAVED + BACK);
        }
    }
    about(costs.scratch_bytes, 0);
    about(costs.loss_bytes, 0);
    assert_eq!(model.ledger.in_use(), 0);
}

/// Keeps a ledger entry for each parameter from its first update on, and reports its bytes if asked to.
struct Own {
    ledger: Arc<Ledger>,
    reports: bool,
    state: HashMap<String, Held>,
}

const OWN: i64 = 7_000;

impl Optimizer for Own {
    fn update(&mut self, _: f64, parameters: &[ParameterUpdate<'_>]) -> Result<()> {
        for parameter in parameters {
            self.state.entry(parameter.name.to_owned()).or_insert_with(|| Held::new(&self.ledger, OWN));
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        if self.reports { self.state.len() * OWN as usize } else { 0 }
    }
}

#[test]
fn the_state_of_a_users_optimizer_counts_as_reported_or_as_measured() {
    let model = Model { units: 2, heads: true, ..Model::default() };
    for (reports, meter, expected) in [(true, false, OWN), (true, true, OWN), (false, true, OWN), (false, false, 0)] {
        let ledger = Arc::clone(&model.ledger);
        let own =
            move |_: &OptimizerContext<'_>| Ok(Own { ledger: Arc::clone(&ledger), reports, state: HashMap::new() });
        let settings = StageSettings {
            optimizer: Arc::new(own),
            ..settings(OptimizerConfig::default(), None, ActivationDtype::F32)
        };
        let meter = meter.then_some(&*model.ledger as &dyn MemoryMeter);
        let profile = Profile::measure(&model, &settings, &one_device(), &batch(), meter).unwrap();
        let units = &profile.devices[0].units;
        assert!(units.iter().all(|unit| unit.optimizer_bytes == expected as u64), "{units:?}");
        assert_eq!(units[0].heads["fc"].optimizer_bytes, expected as u64);
        assert!(profile.devices[0].scratch_bytes.is_none_or(|bytes| bytes < 200));
    }
}

#[test]
fn the_moving_average_counts_once_for_each_trained_value() {
    let group = |pattern: &str| ParameterGroup {
        patterns: vec![pattern.to_owned()],
        lr_scale: None,
        weight_decay: None,
        frozen: true,
    };
    let config = OptimizerConfig { groups: vec![group("b.*")], ..OptimizerConfig::default() };
    let model = Model { units: 3, heads: true, ..Model::default() };
    let settings = StageSettings {
        // It begins long after the steps that are measured.
        ema: Some(EmaConfig { decay: 0.9, from_step: 1_000_000 }),
        ..settings(config, None, ActivationDtype::F32)
    };
    let profile = Profile::measure(&model, &settings, &one_device(), &batch(), None).unwrap();
    let units = &profile.devices[0].units;
    // The momentum and the average; a frozen unit has neither, nor gradients.
    assert_eq!(units.iter().map(|unit| unit.optimizer_bytes).collect::<Vec<_>>(), [8, 0, 8]);
    assert_eq!(units.iter().map(|unit| unit.gradient_bytes).collect::<Vec<_>>(), [4, 0, 4]);
    assert_eq!(units[1].heads["fc"].optimizer_bytes, 8);
}

/// A device that tells what the layers claim.
struct Telling(Arc<Ledger>);

impl StageDevice for Telling {
    fn name(&self) -> &str {
        "telling"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hooks(&self) -> &dyn DeviceHooks {
        self
    }
}

impl DeviceHooks for Telling {
    fn memory_in_use(&self) -> Option<u64> {
        Some(self.0.in_use())
    }
}

#[test]
fn a_device_that_tells_is_asked_and_peaks_are_left_out() {
    let model = Model { units: 2, ..Model::default() };
    let devices: Vec<Arc<dyn StageDevice>> = vec![Arc::new(Telling(Arc::clone(&model.ledger)))];
    // The meter knows of nothing.
    let profile = measure(&model, &devices, Some(&Ledger::default())).unwrap();
    for unit in &profile.devices[0].units {
        assert!(unit.saved_bytes.unwrap().abs_diff(SAVED as u64) < 200);
        assert_eq!(unit.transient_bytes, None);
    }
    assert_eq!(profile.devices[0].loss_bytes, None);
}

#[test]
fn bf16_halves_what_crosses_a_boundary() {
    let settings = settings(
        OptimizerConfig { kind: OptimizerKind::Adamw, ..OptimizerConfig::default() },
        None,
        ActivationDtype::Bf16,
    );
    let model = Model { units: 2, ..Model::default() };
    let profile = Profile::measure(&model, &settings, &one_device(), &batch(), None).unwrap();
    let units = &profile.devices[0].units;
    // The last unit's output never crosses one.
    assert_eq!(units.iter().map(|unit| unit.output_bytes).collect::<Vec<_>>(), [24, 48]);
    assert!(units.iter().all(|unit| unit.heads.is_empty() && unit.optimizer_bytes == 8));
    assert_eq!(profile.devices[0].dtype, ActivationDtype::Bf16);
}

#[test]
fn a_head_that_is_possible_nowhere_is_refused_where_it_was_named() {
    let named = |arch| {
        let model = Model { units: 2, heads: true, ..Model::default() };
        let settings = settings(OptimizerConfig::default(), Some(arch), ActivationDtype::F32);
        Profile::measure(&model, &settings, &one_device(), &batch(), None)
    };
    assert!(named("fc").is_ok());
    assert!(named("conv").unwrap_err().to_string().contains("no conv after 0"));
}

#[test]
fn tied_parameters_count_once() {
    let model = Model { units: 3, tied: Some((2, 0)), ..Model::default() };
    let profile = measure(&model, &one_device(), None).unwrap();
    let bytes: Vec<u64> = profile.devices[0].units.iter().map(|unit| unit.parameter_bytes).collect();
    assert_eq!(bytes, [4, 4, 0]);
}

#[test]
fn what_fails_names_the_unit_and_its_phase() {
    for (phase, shown) in [(Phase::Build, "build"), (Phase::Forward, "forward"), (Phase::Backward, "backward")] {
        for panics in [false, true] {
            if panics && phase == Phase::Build {
                continue;
            }
            let model = Model { units: 3, fails: Some((1, phase)), panics, ..Model::default() };
            let devices: Vec<Arc<dyn StageDevice>> = vec![Arc::new(PlainCpu), Arc::new(PlainCpu)];
            let error = measure(&model, &devices, None).unwrap_err();
            assert!(
                matches!(&error, Error::Unit { unit: 1, name, phase: found, .. } if name == "b" && *found == phase)
            );
            let cause = if panics { "panicked: oh no" } else { "oh no" };
            assert_eq!(error.to_string(), format!("unit 1 \"b\", {shown}: {cause}"));
        }
    }
    assert!(measure(&Model::default(), &one_device(), None).unwrap_err().is_refusal());
    assert!(measure(&Model { units: 1, ..Model::default() }, &[], None).unwrap_err().is_refusal());
}

/// Takes one piece of work at a time.
#[derive(Default)]
struct OneAtATime(Mutex<()>);

impl StageDevice for OneAtATime {
    fn name(&self) -> &str {
        "one at a time"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn run(&self, work: &mut (dyn FnMut() + Send)) {
        // Two measurements at the same time would wait for each other for ever.
        let _alone = self.0.lock().unwrap();
        work();
    }
}

#[test]
fn a_device_that_stages_share_is_measured_once() {
    let model = Model { units: 2, ..Model::default() };
    let (shared, other): (Arc<dyn StageDevice>, Arc<dyn StageDevice>) =
        (Arc::new(OneAtATime::default()), Arc::new(OneAtATime::default()));
    let devices = [&shared, &other, &shared].map(Arc::clone);
    let profile = measure(&model, &devices, None).unwrap();
    assert_eq!((profile.order.as_slice(), profile.devices.len()), (&[0, 1, 0][..], 2));
    assert_eq!(model.built.load(Ordering::Relaxed), 2 * 2);
    assert!(std::ptr::eq(profile.on(0).unwrap(), profile.on(2).unwrap()));
}

#[test]
fn heads_of_all_descriptions_are_measured_where_they_are_possible() {
    let model = Model { units: 3, heads: true, ..Model::default() };
    let measure = |archs: &[&str]| {
        let mut settings = settings(OptimizerConfig::default(), None, ActivationDtype::F32);
        settings.heads.archs = Some(archs.iter().map(|&arch| arch.to_owned()).collect());
        Profile::measure(&model, &settings, &one_device(), &batch(), Some(&*model.ledger))
    };
    let profile = measure(&["slow", "fc", "", "slow"]).unwrap();
    let units = &profile.devices[0].units;
    let names = |unit: &UnitCosts| unit.heads.keys().cloned().collect::<Vec<_>>();
    assert_eq!(units.iter().map(names).collect::<Vec<_>>(), [vec!["fc"], vec!["fc", "slow"], vec![]]);
    let slow = SLOW.as_secs_f64();
    for (arch, head) in units.iter().flat_map(|unit| &unit.heads) {
        assert_eq!([head.needed, head.probe].map(|seconds| seconds >= slow), [arch == "slow"; 2], "{head:?}");
        assert!(head.update > 0.0 && head.update < slow);
        assert_eq!((head.parameter_bytes, head.gradient_bytes, head.optimizer_bytes), (4, 4, 4));
        assert!(head.transient_bytes.unwrap().abs_diff((SAVED + BACK) as u64) < 200, "{head:?}");
    }
    assert!(profile.devices[0].scratch_bytes.unwrap() < 200);
    let none = measure(&["", ""]).unwrap();
    assert!(none.devices[0].units.iter().all(|unit| unit.heads.is_empty()));
    assert!(measure(&["fc", "conv"]).unwrap_err().to_string().contains("no conv after 1"));

    // Costs serve a plan whose heads were measured wherever the model has them.
    let validate = |profile: &Profile, archs: &[&str]| profile.validate(&model, &archs.iter().copied().collect());
    assert!(validate(&profile, &["fc", "slow"]).is_ok() && validate(&none, &[]).is_ok());
    let mut negative = profile.clone();
    negative.devices[0].units[1].add = -1.0;
    let error = validate(&negative, &[]).unwrap_err().to_string();
    assert!(error.contains("unit 1 has a cost of -1 seconds"), "{error}");
    insta::assert_snapshot!(validate(&measure(&["fc"]).unwrap(), &["fc", "slow"]).unwrap_err(), @r#"costs of units: the head "slow" after unit 1 is missing; measure the model that is planned for, with its heads (`interlock bench units`)"#);
}
