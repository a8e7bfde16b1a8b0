//! The best cut for stages that are spread over ranks.

use std::collections::BTreeMap;

use interlock::{
    Error, Result,
    ranks::{Host, Ranks},
    tools::{
        device::Link,
        planner::{DeviceCosts, HeadCosts, Placement, PlannerSetup, Profile, Replicas, UnitCosts},
    },
};

use super::{subject::Subject, windows::Windows};
use crate::{config::ConfigOf, program::Program};

/// Returns the units of each stage in the best cut of the configured model, with `placement = "auto"`. The costs of units are measured on this rank; those on a
/// rank with more cores for each of its stages are taken to be less in proportion. Links are measured.
///
/// # Errors
/// If the configuration is not valid, there are fewer stages than ranks, the model cannot be measured, or a rank does not answer.
pub(crate) fn best_partition_on_ranks<P: Program>(config: &ConfigOf<P>, ranks: &Ranks) -> Result<Vec<usize>> {
    // Costs do not depend on the values to start from.
    let config = ConfigOf::<P> { init_from: None, init_partial: false, init_skip: Vec::new(), ..config.clone() };
    let (subject, defaults) = Subject::<P>::of_run(config.clone(), true)?;
    let stages = defaults.stages;
    let here = config.on_devices(subject.builder(stages, Windows::CONFIGURED)?)?;
    let first = here.stages_here(&here.layout()?)?[0];
    let device = here.pinned_to()[first].clone();
    let piece = subject.batch(subject.batch_size())?.split(config.micro_batches * config.replicas)?.swap_remove(0);
    let alone = subject.builder(stages, Windows::END_TO_END)?.devices([device.clone()]);
    let profile = alone.profile(&piece, Some(&crate::ALLOCATOR))?;

    let spread = config.placed().1.ok_or_else(|| Error::Internal("stages without a rank".to_owned()))?;
    let cores = config.cores_of_ranks(ranks);
    let builder = subject.builder(stages, Windows::CONFIGURED)?.devices([device]);
    let (profile, placement) = on_ranks(&profile, &spread, &cores);
    let measured = ranks.measure_links()?;
    let setup = builder.setup(stages, &profile, placement)?;
    let replicas = Replicas { link: measured.iter().copied().fold(Link::IMMEDIATE, slower), ..setup.replicas };
    let hosts = ranks.hosts();
    let links = links_of_stages(&spread, config.replicas, &|a, b| between(&hosts, &measured, a, b));
    let setup = PlannerSetup { links, replicas, ..setup };
    Ok(setup.best_cut(&builder.tied_units()?)?.units_per_stage)
}

/// Returns the costs of units on each rank, given those on the first, and where the stages compute: those of a rank with too few cores take turns.
fn on_ranks(first: &Profile, spread: &[Vec<usize>], cores: &[usize]) -> (Profile, Placement) {
    let stages: usize = spread.iter().map(Vec::len).sum();
    let takes_turns = |rank: usize| spread[rank].len() > cores[rank];
    let threads = |rank: usize| if takes_turns(rank) { cores[rank] } else { cores[rank] / spread[rank].len() } as f64;
    let ranks: Vec<usize> =
        spread.iter().enumerate().flat_map(|(rank, own)| std::iter::repeat_n(rank, own.len())).collect();
    let costs = &first.devices[first.order[0]];
    let devices = (0..spread.len()).map(|rank| scaled(costs, threads(0) / threads(rank))).collect();
    let turns = |(stage, &rank): (usize, &usize)| if takes_turns(rank) { stages + rank } else { stage };
    let placement =
        Placement { devices: ranks.iter().enumerate().map(turns).collect(), ..Placement::dedicated(stages) };
    (Profile { devices, order: ranks, ..first.clone() }, placement)
}

/// Returns the slower one in both respects.
fn slower(a: Link, b: Link) -> Link {
    Link { latency: a.latency.max(b.latency), bandwidth: a.bandwidth.min(b.bandwidth) }
}

/// Returns the link between two ranks, given their hosts and the links between rank 0 and each rank. Between two other hosts it is the slower of theirs, within
/// any host that within the host of rank 0, or one without delay if that has no other rank.
fn between(hosts: &[Host], measured: &[Link], a: usize, b: usize) -> Link {
    let same = |a: usize, b: usize| hosts.get(a).map(|host| &host.name) == hosts.get(b).map(|host| &host.name);
    match same(a, b) {
        true => (1..measured.len()).find(|&rank| same(0, rank)).map_or(Link::IMMEDIATE, |rank| measured[rank]),
        false => slower(measured[a], measured[b]),
    }
}

/// Returns the links over which each stage sends, to the next stage and to the one before it. `spread` has the stages of each rank of a replica, `between` the
/// link between two ranks. Of several replicas the slowest link counts.
fn links_of_stages(spread: &[Vec<usize>], replicas: usize, between: &dyn Fn(usize, usize) -> Link) -> Vec<[Link; 2]> {
    let stages: usize = spread.iter().map(Vec::len).sum();
    let home = |stage: usize| spread.iter().position(|own| own.contains(&stage)).unwrap_or(0);
    let boundary = |stage: usize| match (home(stage), home(stage + 1)) {
        (a, b) if a == b => Link::IMMEDIATE,
        (a, b) => {
            let of_replica = |replica: usize| between(replica * spread.len() + a, replica * spread.len() + b);
            (0..replicas).map(of_replica).fold(Link::IMMEDIATE, slower)
        }
    };
    let boundaries: Vec<Link> = (1..stages).map(|stage| boundary(stage - 1)).collect();
    let link = |boundary: Option<usize>| boundary.and_then(|k| boundaries.get(k)).copied().unwrap_or_default();
    (0..stages).map(|stage| [link(Some(stage)), link(stage.checked_sub(1))]).collect()
}

/// Returns the costs on a device on which all computations take `factor` times as long.
fn scaled(costs: &DeviceCosts, factor: f64) -> DeviceCosts {
    let head = |head: &HeadCosts| HeadCosts {
        needed: head.needed * factor,
        probe: head.probe * factor,
        update: head.update * factor,
        ..head.clone()
    };
    let unit = |unit: &UnitCosts| UnitCosts {
        forward: unit.forward * factor,
        input_gradient: unit.input_gradient * factor,
        parameter_gradient: unit.parameter_gradient * factor,
        both: unit.both * factor,
        parameters_only: unit.parameters_only * factor,
        update: unit.update * factor,
        send: unit.send * factor,
        receive: unit.receive * factor,
        add: unit.add * factor,
        heads: unit.heads.iter().map(|(arch, costs)| (arch.clone(), head(costs))).collect::<BTreeMap<_, _>>(),
        ..unit.clone()
    };
    DeviceCosts { units: costs.units.iter().map(unit).collect(), loss: costs.loss * factor, ..costs.clone() }
}

#[cfg(test)]
mod tests {
    use interlock::{
        EndToEnd, ModelSpec, Sequential, Trainer, TrainerBuilder, Unit,
        candle_core::{DType, Device, Tensor},
    };

    use super::*;

    /// Units that do nothing; their costs are set by the test.
    struct Nothing;

    impl ModelSpec for Nothing {
        fn units(&self) -> Result<Vec<Unit>> {
            (0..12).map(|k| Ok(Unit::new(format!("u{k}"), [1], |_| Ok(Sequential::default())))).collect()
        }
    }

    /// Two stages of equal units, and their costs.
    fn two_stages() -> (TrainerBuilder, Profile) {
        let builder = Trainer::builder(Nothing).strategy(EndToEnd).stages(2);
        let inputs = Tensor::zeros((4, 1), DType::F32, &Device::Cpu).unwrap();
        let targets = Tensor::zeros(4, DType::U32, &Device::Cpu).unwrap();
        let batch = interlock::Batch { inputs: inputs.into(), targets };
        let mut profile = builder.profile(&batch, None).unwrap();
        for unit in &mut profile.devices[0].units {
            (unit.forward, unit.both, unit.parameters_only) = (1.0, 1.0, 1.0);
        }
        (builder, profile)
    }

    #[test]
    fn a_rank_with_more_cores_gets_more_units() {
        let (builder, profile) = two_stages();
        let cut = |cores: [usize; 2]| {
            let (profile, placement) = on_ranks(&profile, &[vec![0], vec![1]], &cores);
            builder.setup(2, &profile, placement).unwrap().best_cut(&[]).unwrap().units_per_stage
        };
        let (equal, more) = (cut([2, 2]), cut([6, 2]));
        assert!(more[0] > equal[0], "{more:?} {equal:?}");
    }

    #[test]
    fn what_is_sent_over_a_slow_link_is_small() {
        let (builder, mut profile) = two_stages();
        for (k, unit) in profile.devices[0].units.iter_mut().enumerate() {
            // The fourth unit has a small output.
            unit.output_bytes = if k == 3 { 1 } else { 100 };
        }
        let cut = |link: Link| {
            let spread = [vec![0], vec![1]];
            let (profile, placement) = on_ranks(&profile, &spread, &[2, 2]);
            let links = links_of_stages(&spread, 1, &|_, _| link);
            let setup = PlannerSetup { links, ..builder.setup(2, &profile, placement).unwrap() };
            setup.best_cut(&[]).unwrap().units_per_stage
        };
        assert_ne!(cut(Link::IMMEDIATE), [4, 8]);
        assert_eq!(cut(Link { latency: 0.0, bandwidth: 10.0 }), [4, 8]);
    }

    #[test]
    fn links_between_ranks_count_and_those_within_a_rank_do_not() {
        let link = |latency: f64| Link { latency, bandwidth: 1.0 / latency };
        // Ranks of replica 1 are farther apart.
        let between = |a: usize, b: usize| link((a + b) as f64);
        let links = links_of_stages(&[vec![0, 1], vec![2]], 2, &between);
        assert_eq!(links, [[Link::IMMEDIATE; 2], [link(5.0), Link::IMMEDIATE], [Link::IMMEDIATE, link(5.0)]]);
        assert_eq!(links_of_stages(&[vec![0]], 1, &between), [[Link::IMMEDIATE; 2]]);
        let host = |name: &str| Host { name: name.to_owned(), cores: 1 };
        let hosts = ["a", "b", "b", "a"].map(host);
        let measured = [Link::IMMEDIATE, link(4.0), link(5.0), link(1.0)];
        let pairs = [(0, 1), (1, 2), (0, 3), (2, 3)];
        assert_eq!(
            pairs.map(|(a, b)| super::between(&hosts, &measured, a, b)),
            [link(4.0), link(1.0), link(1.0), link(5.0)].map(|link| slower(link, link))
        );
        assert_eq!(slower(Link { latency: 1.0, bandwidth: 9.0 }, Link { latency: 2.0, bandwidth: 9.5 }).bandwidth, 9.0);
    }

    #[test]
    fn stages_of_a_rank_with_too_few_cores_take_turns() {
        let device = DeviceCosts {
            dtype: interlock::ActivationDtype::F32,
            device: String::new(),
            action: 0.0,
            units: Vec::new(),
            loss: 1.0,
            loss_bytes: None,
            scratch_bytes: None,
        };
        let profile = Profile { examples: 1, devices: vec![device], order: vec![0] };
        let (profile, placement) = on_ranks(&profile, &[vec![0, 1], vec![2, 3]], &[4, 1]);
        assert_eq!(placement.devices, [0, 1, 5, 5]);
        assert_eq!(profile.order, [0, 0, 1, 1]);
        // Stages of rank 0 have two cores each, those of rank 1 one.
        assert_eq!([profile.devices[0].loss, profile.devices[1].loss], [1.0, 2.0]);
    }
}
