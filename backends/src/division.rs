//! Divides the GPUs of this machine, or its cores, among the stages of a pipeline.

use std::{ops::Range, sync::Arc, thread::available_parallelism};

use interlock::{Result, StageDevice, tools::trainer::Layout};

use crate::Backends;

/// Returns how many cores this process may use.
pub fn core_count() -> usize {
    available_parallelism().map_or(1, usize::from)
}

impl Backends {
    /// Opens devices for the stages of `layout`, by the rule that configurations call `auto`: the machine's GPUs if there are any and this build
    /// can use them, else its cores.
    ///
    /// - If there are more stages than GPUs, neighbouring stages share one. The GPUs get equally many stages; the first ones get one more each
    ///   if stages remain.
    /// - One device of all cores serves every stage if there is a single stage, if stages are hardly ever busy at the same time (one
    ///   micro-batch trained end to end), or if there are more stages than cores.
    /// - Otherwise each stage gets a device of its own. The cores are divided evenly; the remaining ones go, one each, to the stages with the
    ///   highest cost.
    ///
    /// No thread is pinned. The results do not depend on the devices.
    ///
    /// # Errors
    /// If this build has neither GPUs nor CPU devices, if a GPU does not open, or the system gives no more threads.
    pub fn auto(&self, layout: &Layout) -> Result<Vec<Arc<dyn StageDevice>>> {
        let all: Vec<usize> = (0..layout.blueprints.len()).collect();
        self.auto_of(layout, &all, (0, 1))
    }

    /// Opens devices for the stages `own` of `layout`, one for each, or one for all. This process is one of several on this machine, `place` says which and of how
    /// many; each takes its share of the machine.
    ///
    /// # Errors
    /// As [`Self::auto`].
    pub fn auto_of(&self, layout: &Layout, own: &[usize], place: (usize, usize)) -> Result<Vec<Arc<dyn StageDevice>>> {
        let gpus = self.names("cuda");
        if !gpus.is_empty() {
            let gpus = &gpus[share_of_host(gpus.len(), place)];
            let opened = gpus.iter().map(|name| self.open(name)).collect::<Result<Vec<_>>>()?;
            return Ok(gpu_of_each_stage(gpus.len(), own.len()).map(|gpu| Arc::clone(&opened[gpu])).collect());
        }
        let costs: Vec<f64> = own.iter().map(|&stage| layout.blueprints[stage].flops()).collect();
        let threads = threads_per_device(share_of_host(core_count(), place).len(), &costs, layout.stages_overlap());
        threads.into_iter().map(|threads| self.open(&format!("cpu:threads={threads}"))).collect()
    }
}

/// Returns which of `count` GPUs or cores a process takes that is `at` among `of` processes of one machine: its share, or one of them if there are too few.
pub fn share_of_host(count: usize, (at, of): (usize, usize)) -> Range<usize> {
    if count < of {
        let one = at % count.max(1);
        return one..one + 1;
    }
    let begin = |at: usize| count / of * at + (count % of).min(at);
    begin(at)..begin(at + 1)
}

/// Returns the GPU of each stage.
fn gpu_of_each_stage(gpus: usize, stages: usize) -> impl Iterator<Item = usize> {
    let (each, rest) = (stages / gpus, stages % gpus);
    (0..gpus).flat_map(move |gpu| std::iter::repeat_n(gpu, each + usize::from(gpu < rest)))
}

/// Returns the number of threads of each device; a single device serves all stages.
fn threads_per_device(cores: usize, costs: &[f64], overlap: bool) -> Vec<usize> {
    let stages = costs.len();
    if stages < 2 || !overlap || stages > cores {
        return vec![cores];
    }
    let mut threads = vec![cores / stages; stages];
    let rest = cores % stages;
    let mut costliest: Vec<usize> = (0..stages).collect();
    // The sort is stable: if costs are equal or unknown, the first stages come first.
    costliest.sort_by(|&a, &b| costs[b].total_cmp(&costs[a]));
    costliest.into_iter().take(rest).for_each(|stage| threads[stage] += 1);
    threads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_that_are_not_busy_together_share_all_cores() {
        assert_eq!(threads_per_device(6, &[1.0; 4], false), [6]);
        assert_eq!(threads_per_device(6, &[1.0], true), [6]);
        assert_eq!(threads_per_device(1, &[1.0; 4], false), [1]);
    }

    #[test]
    fn every_core_is_given_to_one_stage() {
        assert_eq!(threads_per_device(2, &[1.0; 2], true), [1, 1]);
        assert_eq!(threads_per_device(8, &[0.0; 3], true), [3, 3, 2]);
        assert_eq!(threads_per_device(8, &[1.0, 5.0, 2.0], true), [2, 3, 3]);
        assert_eq!(threads_per_device(4, &[1.0, 5.0, 2.0], true), [1, 2, 1]);
        for (cores, stages) in [(2, 2), (7, 3), (64, 5), (64, 64)] {
            assert_eq!(threads_per_device(cores, &vec![1.0; stages], true).iter().sum::<usize>(), cores);
        }
    }

    #[test]
    fn processes_of_one_machine_share_it() {
        assert_eq!([0, 1, 2].map(|at| share_of_host(8, (at, 3))), [0..3, 3..6, 6..8]);
        assert_eq!([0, 1, 2].map(|at| share_of_host(2, (at, 3))), [0..1, 1..2, 0..1]);
        assert_eq!(share_of_host(5, (0, 1)), 0..5);
    }

    #[test]
    fn neighbours_share_a_gpu() {
        let gpus = |gpus, stages| gpu_of_each_stage(gpus, stages).collect::<Vec<_>>();
        assert_eq!(gpus(2, 5), [0, 0, 0, 1, 1]);
        assert_eq!(gpus(3, 3), [0, 1, 2]);
        assert_eq!(gpus(4, 2), [0, 1]);
        assert_eq!(gpus(1, 3), [0, 0, 0]);
    }

    #[test]
    fn more_stages_than_cores_share_them() {
        assert_eq!(threads_per_device(2, &[1.0; 4], true), [2]);
        assert_eq!(threads_per_device(1, &[1.0; 2], true), [1]);
    }
}
