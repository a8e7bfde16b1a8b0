//! Compares results with the expected ones.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use candle_core::{DType, Tensor};

use super::Computed;

/// The allowed absolute error.
const ABSOLUTE: f64 = 2e-6;
/// The allowed error relative to the largest expected magnitude.
const RELATIVE: f64 = 5e-5;

/// The comparison of a tensor or loss with the expected one.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The name in the case: `loss/0`, `local_loss/0/1`, `grad/…`, `final/…`, `eval/logits`.
    pub name: String,
    /// The largest absolute difference; infinite if the two cannot be compared or a value is NaN.
    pub worst: f64,
    /// The largest allowed difference: `2e-6 + 5e-5 · max|theirs|`.
    pub allowance: f64,
    /// The reason why the two cannot be compared, if they cannot.
    pub problem: Option<String>,
}

impl Comparison {
    /// Returns whether the two can be compared and the difference is within the allowance.
    pub fn passes(&self) -> bool {
        self.problem.is_none() && self.worst <= self.allowance
    }

    fn of(name: String, ours: &[f32], theirs: &[f32]) -> Self {
        let pairs = ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        Self::of_pairs(name, pairs)
    }

    fn of_pairs(name: String, pairs: impl Iterator<Item = (f64, f64)>) -> Self {
        let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
        for (ours, theirs) in pairs {
            let error = (ours - theirs).abs();
            // `max` ignores NaN, so it is replaced.
            worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
            largest = largest.max(theirs.abs());
        }
        Self { name, worst, allowance: allowance(largest), problem: None }
    }

    fn incomparable(name: String, problem: impl Into<String>) -> Self {
        Self { name, worst: f64::INFINITY, allowance: ABSOLUTE, problem: Some(problem.into()) }
    }
}

fn allowance(largest: f64) -> f64 {
    let allowance = ABSOLUTE + RELATIVE * largest;
    if allowance.is_finite() { allowance } else { ABSOLUTE }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            Some(problem) => write!(f, "{}: {problem}", self.name),
            None => {
                let verdict = if self.passes() { "within" } else { "beyond" };
                write!(f, "{}: off by {:.3e}, {verdict} {:.3e}", self.name, self.worst, self.allowance)
            }
        }
    }
}

/// Compares losses, gradients, final values and logits, in this order.
pub(super) fn compare(expected: &Computed, computed: &Computed) -> Vec<Comparison> {
    let mut all = losses(&expected.losses, &computed.losses);
    all.extend(named("grad", &expected.gradients, &computed.gradients));
    all.extend(named("final", &expected.finals, &computed.finals));
    all.push(tensors("eval/logits".to_owned(), Some(&expected.logits), Some(&computed.logits)));
    all
}

fn losses(expected: &[Vec<Option<f64>>], computed: &[Vec<Option<f64>>]) -> Vec<Comparison> {
    let last = expected.iter().map(Vec::len).max().unwrap_or(0).saturating_sub(1);
    let at = |losses: &[Vec<Option<f64>>], step: usize, stage: usize| losses.get(step)?.get(stage).copied()?;
    let stages = expected.iter().chain(computed).map(Vec::len).max().unwrap_or(0);
    let mut all = Vec::new();
    for step in 0..expected.len().max(computed.len()) {
        for stage in 0..stages {
            let name = if stage == last { format!("loss/{step}") } else { format!("local_loss/{step}/{stage}") };
            match (at(expected, step, stage), at(computed, step, stage)) {
                (Some(theirs), Some(ours)) => all.push(Comparison::of_pairs(name, [(ours, theirs)].into_iter())),
                (Some(_), None) => all.push(Comparison::incomparable(name, "was not computed")),
                (None, Some(_)) => {
                    all.push(Comparison::incomparable(name, "was computed, but is not in the reference run"))
                }
                (None, None) => {}
            }
        }
    }
    all
}

fn named(prefix: &str, expected: &HashMap<String, Tensor>, computed: &HashMap<String, Tensor>) -> Vec<Comparison> {
    let names: BTreeSet<&String> = expected.keys().chain(computed.keys()).collect();
    names.into_iter().map(|n| tensors(format!("{prefix}/{n}"), expected.get(n), computed.get(n))).collect()
}

fn tensors(name: String, expected: Option<&Tensor>, computed: Option<&Tensor>) -> Comparison {
    let (theirs, ours) = match (expected, computed) {
        (Some(theirs), Some(ours)) => (theirs, ours),
        (Some(_), None) => return Comparison::incomparable(name, "was not computed"),
        _ => return Comparison::incomparable(name, "was computed, but is not in the reference run"),
    };
    if ours.dims() != theirs.dims() {
        return Comparison::incomparable(name, format!("has shape {:?} instead of {:?}", ours.dims(), theirs.dims()));
    }
    match (values(ours), values(theirs)) {
        (Ok(ours), Ok(theirs)) => Comparison::of(name, &ours, &theirs),
        (Err(cause), _) | (_, Err(cause)) => Comparison::incomparable(name, format!("cannot be read: {cause}")),
    }
}

fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn run() -> Computed {
        Computed {
            losses: vec![vec![Some(2.0), None, Some(1.0)]],
            gradients: HashMap::from([("w".to_owned(), tensor(&[1.0, -2.0]))]),
            finals: HashMap::from([("w".to_owned(), tensor(&[0.0, 0.5]))]),
            logits: tensor(&[3.0]),
        }
    }

    fn failing(computed: &Computed) -> Vec<String> {
        let all = compare(&run(), computed);
        all.iter().filter(|c| !c.passes()).map(ToString::to_string).collect()
    }

    #[test]
    fn equal_runs_pass_and_everything_is_compared() {
        assert_eq!(failing(&run()), [""; 0]);
        let names: Vec<String> = compare(&run(), &run()).into_iter().map(|c| c.name).collect();
        assert_eq!(names, ["local_loss/0/0", "loss/0", "grad/w", "final/w", "eval/logits"]);
    }

    #[test]
    fn allowance_grows_with_the_largest_expected_value() {
        let near = Computed { gradients: HashMap::from([("w".to_owned(), tensor(&[1.0001, -2.0]))]), ..run() };
        assert_eq!(failing(&near), [""; 0]);
        let far = Computed { gradients: HashMap::from([("w".to_owned(), tensor(&[1.0002, -2.0]))]), ..run() };
        assert_eq!(failing(&far), ["grad/w: off by 2.000e-4, beyond 1.020e-4"]);
    }

    #[test]
    fn missing_unexpected_misshaped_and_nan_values_fail() {
        let broken = Computed {
            losses: vec![vec![None, Some(7.0), Some(f64::NAN)], vec![Some(0.0)]],
            gradients: HashMap::from([("v".to_owned(), tensor(&[1.0]))]),
            finals: HashMap::from([("w".to_owned(), tensor(&[0.0, f32::NAN]))]),
            logits: tensor(&[3.0, 3.0]),
        };
        assert_eq!(
            failing(&broken),
            [
                "local_loss/0/0: was not computed",
                "local_loss/0/1: was computed, but is not in the reference run",
                "loss/0: off by inf, beyond 5.200e-5",
                "local_loss/1/0: was computed, but is not in the reference run",
                "grad/v: was computed, but is not in the reference run",
                "grad/w: was not computed",
                "final/w: off by inf, beyond 2.700e-5",
                "eval/logits: has shape [2] instead of [1]",
            ]
        );
    }
}
