//! The partition of a model's units into stages.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, model::Unit};

/// A partition as configuration files describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PartitionConfig {
    /// The number of stages. The units are divided so that the most expensive stage costs as little as possible.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub stages: Option<usize>,
    /// The number of units of each stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(inner(range(min = 1))))]
    pub units_per_stage: Option<Vec<usize>>,
}

/// A division of a model's units into consecutive, non-empty stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    units_per_stage: Vec<usize>,
}

impl Partition {
    /// Returns the partition with these numbers of units.
    ///
    /// # Errors
    /// If they do not add up to the model's units, a stage is empty, or a unit shares parameters with one on another stage.
    pub fn new(units_per_stage: Vec<usize>, units: &[Unit]) -> Result<Self> {
        let sum = units_per_stage.iter().fold(0_usize, |sum, units| sum.saturating_add(*units));
        if units_per_stage.is_empty() || units_per_stage.contains(&0) || sum != units.len() {
            return Err(Error::invalid(
                "partition.units_per_stage",
                format!("{units_per_stage:?} adds up to {sum} units, the model has {}", units.len()),
                "give each stage at least one unit and every unit a stage",
            ));
        }
        let partition = Self { units_per_stage };
        for (at, unit) in units.iter().enumerate() {
            if let Some(other) = unit.tied_to {
                let (a, b) = (partition.stage_of(other), partition.stage_of(at));
                if a != b {
                    return Err(Error::invalid(
                        "partition",
                        format!("units {other} and {at} share weights (tied) but lie on stages {a} and {b}"),
                        "put both on one stage, or untie them (model.tied = false)",
                    ));
                }
            }
        }
        Ok(partition)
    }

    /// Refuses a number of stages into which these units cannot be divided.
    pub(crate) fn check_stages(stages: usize, units: &[Unit]) -> Result<()> {
        match units.len() {
            count if stages == 0 || stages > count => Err(Error::invalid(
                "partition.stages",
                format!("{stages} stages for a model of {count} units"),
                format!("1 to {count} stages are possible"),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the partition into `stages` stages whose most expensive stage costs least, in floating-point operations of a forward pass.
    ///
    /// `head_flops(k, i)` is the cost of stage `k`'s auxiliary head after unit `i`, 0 if the stage has none. It is not called for the last
    /// stage. Of equally good partitions, the one with the larger later stages is returned, so that the result is unique.
    ///
    /// # Errors
    /// If there are no stages, or more stages than units.
    pub fn balanced(stages: usize, units: &[Unit], head_flops: impl Fn(usize, usize) -> f64) -> Result<Self> {
        Self::check_stages(stages, units)?;
        let count = units.len();
        let mut before = vec![0.0];
        for unit in units {
            before.push(before[before.len() - 1] + unit.flops);
        }
        let cost = |stage: usize, range: Range<usize>| {
            let head = if stage + 1 < stages { head_flops(stage, range.end - 1) } else { 0.0 };
            before[range.end] - before[range.start] + head
        };
        Self::new(Self::minimize_largest(stages, count, &cost), units)
    }

    /// Returns the number of units of each stage for which the most expensive stage costs least; see [`Self::divide`].
    pub(crate) fn minimize_largest(
        stages: usize,
        count: usize,
        cost: &dyn Fn(usize, Range<usize>) -> f64,
    ) -> Vec<usize> {
        Self::divide(stages, count, cost, f64::max)
    }

    /// Returns the number of units of each stage for which the stages' costs, combined by `join` from first to last, are least.
    ///
    /// `cost(k, range)` is the cost of stage `k` with these units. It must not fall when `range` starts earlier, except from infinity: an
    /// infinite cost means that the stage may become possible with more units, `f64::MAX` that it cannot. `join` must return at least the
    /// larger of its arguments. Of equally good partitions, the one with the larger later stages is returned.
    pub(crate) fn divide(
        stages: usize,
        count: usize,
        cost: &dyn Fn(usize, Range<usize>) -> f64,
        join: fn(f64, f64) -> f64,
    ) -> Vec<usize> {
        // best[s][end]: the least cost of s stages over the first `end` units, and the first unit of the last of them.
        let mut best: Vec<Vec<Option<(f64, usize)>>> = vec![vec![None; count + 1]; stages + 1];
        best[0][0] = Some((0.0, 0));
        for s in 1..=stages {
            // The last stage ends at the last unit.
            let ends = if s == stages { count..=count } else { s..=count + s - stages };
            for end in ends {
                for start in (s - 1..end).rev() {
                    let own = cost(s - 1, start..end);
                    let known = best[s][end].map_or(f64::MAX, |(known, _)| known);
                    if own.is_finite() && (own > known || own == f64::MAX) {
                        break;
                    }
                    let Some((below, _)) = best[s - 1][start] else { continue };
                    let sum = join(below, own);
                    if best[s][end].is_none_or(|(known, _)| sum <= known) {
                        best[s][end] = Some((sum, start));
                    }
                }
            }
        }
        let mut units_per_stage = Vec::with_capacity(stages);
        let mut end = count;
        for s in (1..=stages).rev() {
            let start = best[s][end].map_or(0, |(_, start)| start);
            units_per_stage.push(end - start);
            end = start;
        }
        units_per_stage.reverse();
        units_per_stage
    }

    /// Returns the number of stages.
    pub fn stages(&self) -> usize {
        self.units_per_stage.len()
    }

    /// Returns the number of units of each stage.
    pub fn units_per_stage(&self) -> &[usize] {
        &self.units_per_stage
    }

    /// Returns the units of stage `k`.
    pub fn units(&self, k: usize) -> Range<usize> {
        let start = self.units_per_stage[..k].iter().sum();
        start..start + self.units_per_stage[k]
    }

    fn stage_of(&self, unit: usize) -> usize {
        (0..self.stages()).find(|&k| self.units(k).contains(&unit)).unwrap_or(self.stages())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Sequential;

    fn units(flops: &[f64]) -> Vec<Unit> {
        flops.iter().map(|&f| Unit::new("u", [1], |_| Ok(Sequential::default())).with_flops(f)).collect()
    }

    #[test]
    fn the_most_expensive_stage_costs_least() {
        let units = units(&[1.0, 1.0, 1.0, 1.0, 4.0]);
        let cut = |stages, head: f64| Partition::balanced(stages, &units, |_, _| head).unwrap().units_per_stage;
        assert_eq!(cut(2, 0.0), [4, 1]);
        assert_eq!(cut(5, 0.0), [1; 5]);
        // A head that costs as much as two units moves the boundary.
        assert_eq!(cut(2, 2.0), [3, 2]);
        // Only the stage that has a head pays for it.
        let only = |k: usize| move |stage: usize, _: usize| if stage == k { 3.0 } else { 0.0 };
        assert_eq!(Partition::balanced(3, &units, only(0)).unwrap().units_per_stage, [1, 3, 1]);
        assert_eq!(Partition::balanced(3, &units, only(1)).unwrap().units_per_stage, [3, 1, 1]);
        assert!(Partition::balanced(6, &units, |_, _| 0.0).is_err());
        assert!(Partition::balanced(0, &units, |_, _| 0.0).is_err());
    }

    #[test]
    fn units_must_add_up_and_ties_must_not_be_cut() {
        let mut units = units(&[1.0; 4]);
        assert_eq!(Partition::new(vec![1, 3], &units).unwrap().units(1), 1..4);
        for wrong in [vec![], vec![4, 0], vec![1, 2], vec![5]] {
            assert!(Partition::new(wrong, &units).is_err());
        }
        units[3] = units[3].clone().tied_to(0);
        let error = Partition::new(vec![2, 2], &units).unwrap_err().to_string();
        assert!(error.contains("units 0 and 3") && error.contains("tied = false"), "{error}");
        assert!(Partition::new(vec![4], &units).is_ok());
    }
}
