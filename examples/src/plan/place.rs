//! `placement = "auto"`: which rank trains which stages.

use interlock::{
    Result,
    ranks::{Host, Ranks},
    tools::{model::PartitionConfig, planner::Placement},
};
use interlock_backends::share;

use super::{subject::Subject, windows::Windows};
use crate::{config::ConfigOf, program::Program};

/// Returns the units of each stage, and the stages of each rank of a replica, with the shortest simulated step among those that spread the stages over the ranks
/// by their cores. The costs of units are those on the first device of this rank; links take no time.
///
/// # Errors
/// If the configuration is not valid, there are fewer stages than ranks, or the model cannot be measured.
pub(crate) fn best_placement<P: Program>(config: &ConfigOf<P>, ranks: &Ranks) -> Result<(Vec<usize>, Vec<Vec<usize>>)> {
    let size = ranks.size() / config.replicas.max(1);
    let mut config = config.clone();
    if config.partition == PartitionConfig::default() {
        config.partition.stages = Some(size);
    }
    let (subject, defaults) = Subject::<P>::of_run(config.clone(), true)?;
    let stages = defaults.stages;
    let here = config.on_devices(subject.builder(stages, Windows::END_TO_END)?)?;
    let first = here.stages_here(&here.layout()?)?[0];
    let device = here.pinned_to()[first].clone();
    let piece = subject.batch(subject.batch_size())?.split(config.micro_batches * config.replicas)?.swap_remove(0);
    let profile = here.devices([device.clone()]).profile(&piece, Some(&crate::ALLOCATOR))?;

    let hosts = ranks.hosts();
    let cores_of = |(rank, host): (usize, &Host)| share(host.cores, ranks.place_on_host(rank)).len();
    let cores: Vec<usize> = hosts.iter().take(size).enumerate().map(cores_of).collect();
    let spread = spread(stages, &cores);
    let builder = subject.builder(stages, Windows::CONFIGURED)?.devices([device]);
    let units = match &config.partition.units_per_stage {
        Some(units) => units.clone(),
        None => {
            let setup = builder.setup(stages, &profile, on(&spread, &cores))?;
            setup.best_cut(&builder.tied_units()?)?.units_per_stage
        }
    };
    Ok((units, spread))
}

/// Spreads stages over ranks in order: each has one, and of the others about as many as it has cores.
fn spread(stages: usize, cores: &[usize]) -> Vec<Vec<usize>> {
    let mut counts = vec![1; cores.len()];
    for _ in cores.len()..stages {
        // The rank that has the most cores for each of its stages, were this one of them; of equal ones the first.
        let fraction = |rank: usize| cores[rank] as f64 / (counts[rank] + 1) as f64;
        let most = (0..cores.len()).rev().max_by(|&a, &b| fraction(a).total_cmp(&fraction(b)));
        counts[most.unwrap_or(0)] += 1;
    }
    let mut next = 0;
    let take = |count: usize| {
        next += count;
        (next - count..next).collect()
    };
    counts.into_iter().map(take).collect()
}

/// Returns where the stages compute: those of a rank with too few cores take turns.
fn on(spread: &[Vec<usize>], cores: &[usize]) -> Placement {
    let stages: usize = spread.iter().map(Vec::len).sum();
    let rank_of = |stage: usize| spread.iter().position(|own| own.contains(&stage)).unwrap_or(0);
    let device = |stage: usize| {
        let rank = rank_of(stage);
        if spread[rank].len() > cores[rank] { stages + rank } else { stage }
    };
    Placement { devices: (0..stages).map(device).collect(), ..Placement::dedicated(stages) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_spread_by_cores() {
        assert_eq!(spread(5, &[2, 2]), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(spread(3, &[1, 1, 1]), [vec![0], vec![1], vec![2]]);
        assert_eq!(spread(6, &[8, 2]), [vec![0, 1, 2, 3, 4], vec![5]]);
        // Even a rank with few cores has one.
        assert_eq!(spread(3, &[64, 1]), [vec![0, 1], vec![2]]);
    }

    #[test]
    fn stages_of_a_rank_with_too_few_cores_take_turns() {
        let placement = on(&[vec![0, 1], vec![2, 3]], &[2, 1]);
        assert_eq!(placement.devices, [0, 1, 5, 5]);
        assert_eq!(placement.cores, None);
    }
}
