//! The sum of the gradients of all replicas of a stage.
//!
//! The elements are divided among the replicas. Each replica adds up its part, in order of the replicas, and sends the sum to all others. So every replica sends
//! and receives about twice the bytes of its gradients, however many there are, and all have the same bits.

use std::{collections::BTreeMap, ops::Range};

use candle_core::Tensor;

use crate::{Error, Result, transport::GradientShare};

/// The sums that one replica of a stage takes part in.
pub(super) struct Sharing {
    replica: usize,
    replicas: usize,
    /// By step: another replica may be one step ahead.
    steps: BTreeMap<u64, Sum>,
}

/// The sum of one step.
struct Sum {
    /// The number of elements of all gradients, once this replica has its own.
    elements: Option<usize>,
    /// This replica's part of the gradients of each replica.
    gradients: Vec<Option<Tensor>>,
    /// The part of the sum that each replica adds up.
    sums: Vec<Option<Tensor>>,
}

/// What another replica is sent: its number, and the share.
pub(super) type Sent = (usize, GradientShare);

impl Sharing {
    pub(super) fn new(replica: usize, replicas: usize) -> Self {
        Self { replica, replicas, steps: BTreeMap::new() }
    }

    /// Returns how many replicas there are.
    pub(super) fn replicas(&self) -> usize {
        self.replicas
    }

    /// Begins the sum of a step with the gradients of this replica, `(elements)`. Returns what the others are sent.
    pub(super) fn begin(&mut self, step: u64, gradients: &Tensor) -> Result<Vec<Sent>> {
        let elements = gradients.elem_count();
        let part = |replica: usize| {
            let Range { start, end } = self.part(elements, replica);
            gradients.narrow(0, start, end - start)
        };
        let mut sent = Vec::with_capacity(2 * self.replicas);
        for to in self.others() {
            sent.push((to, self.share(step, false, part(to)?)));
        }
        let own = part(self.replica)?;
        let replica = self.replica;
        let sum = self.sum(step);
        (sum.elements, sum.gradients[replica]) = (Some(elements), Some(own));
        self.add_up(step, &mut sent)?;
        Ok(sent)
    }

    /// Takes what another replica sent. Returns what the others are sent.
    pub(super) fn take(&mut self, share: GradientShare) -> Result<Vec<Sent>> {
        let GradientShare { from, step, is_sum, values } = share;
        let sum = self.sum(step);
        let parts = if is_sum { &mut sum.sums } else { &mut sum.gradients };
        match parts.get_mut(from) {
            Some(part @ None) => *part = Some(values),
            _ => return Err(Error::Internal(format!("replica {from} sent gradients of step {step} twice"))),
        }
        let mut sent = Vec::new();
        self.add_up(step, &mut sent)?;
        Ok(sent)
    }

    /// Returns the sum of a step, `(elements)`, once all of it is there.
    pub(super) fn finish(&mut self, step: u64) -> Result<Option<Tensor>> {
        let Some(Sum { elements: Some(elements), sums, .. }) = self.steps.get(&step) else { return Ok(None) };
        let Some(parts) = sums.iter().cloned().collect::<Option<Vec<_>>>() else { return Ok(None) };
        let sum = Tensor::cat(&parts, 0)?;
        if sum.elem_count() != *elements {
            let (given, own) = (sum.elem_count(), *elements);
            return Err(Error::Internal(format!("replicas have gradients of {given} elements, and this one of {own}")));
        }
        self.steps.remove(&step);
        Ok(Some(sum))
    }

    fn sum(&mut self, step: u64) -> &mut Sum {
        let none = || (0..self.replicas).map(|_| None).collect();
        self.steps.entry(step).or_insert_with(|| Sum { elements: None, gradients: none(), sums: none() })
    }

    /// Adds up this replica's part of a step, if that of every replica is there.
    fn add_up(&mut self, step: u64, sent: &mut Vec<Sent>) -> Result<()> {
        let replica = self.replica;
        let sum = self.sum(step);
        let Some(gradients) = sum.gradients.iter().cloned().collect::<Option<Vec<_>>>() else { return Ok(()) };
        if sum.sums[replica].is_some() {
            return Ok(());
        }
        let mut parts = gradients.into_iter();
        let first = parts.next().ok_or_else(|| Error::Internal("a stage without replicas".to_owned()))?;
        let total = parts.try_fold(first, |total, part| total + part)?;
        sum.sums[replica] = Some(total.clone());
        // Empty ones take no memory, and what comes twice is still refused.
        sum.gradients.fill(Some(total.narrow(0, 0, 0)?.copy()?));
        for to in self.others() {
            sent.push((to, self.share(step, true, total.clone())));
        }
        Ok(())
    }

    fn share(&self, step: u64, is_sum: bool, values: Tensor) -> GradientShare {
        GradientShare { from: self.replica, step, is_sum, values }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let replica = self.replica;
        (0..self.replicas).filter(move |&other| other != replica)
    }

    /// Returns the elements that a replica adds up.
    fn part(&self, elements: usize, replica: usize) -> Range<usize> {
        let begin = |replica: usize| elements / self.replicas * replica + (elements % self.replicas).min(replica);
        begin(replica)..begin(replica + 1)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    /// Lets replicas with these gradients exchange messages, in the order that `pick` chooses, and returns the sum that each has.
    fn sums(gradients: &[Vec<f32>], mut pick: impl FnMut(usize) -> usize) -> Vec<Vec<f32>> {
        let count = gradients.len();
        let mut replicas: Vec<_> = (0..count).map(|replica| Sharing::new(replica, count)).collect();
        let mut ways: BTreeMap<(usize, usize), Vec<GradientShare>> = BTreeMap::new();
        let mut begin: Vec<_> = (0..count).collect();
        while !begin.is_empty() || ways.values().any(|way| !way.is_empty()) {
            let open: Vec<_> = ways.iter().filter(|(_, way)| !way.is_empty()).map(|(at, _)| *at).collect();
            let chosen = pick(open.len() + begin.len());
            let (from, sent) = match open.get(chosen) {
                // Messages from one replica to another keep their order.
                Some(&(from, to)) => (to, replicas[to].take(ways.get_mut(&(from, to)).unwrap().remove(0)).unwrap()),
                None => {
                    let replica = begin.remove(chosen - open.len());
                    (replica, replicas[replica].begin(3, &tensor(&gradients[replica])).unwrap())
                }
            };
            for (to, share) in sent {
                ways.entry((from, to)).or_default().push(share);
            }
        }
        replicas.iter_mut().map(|replica| replica.finish(3).unwrap().unwrap().to_vec1().unwrap()).collect()
    }

    #[test]
    fn replicas_have_the_same_sum_in_whatever_order_messages_come() {
        for (replicas, elements) in [(2, 5), (3, 7), (4, 2), (4, 0), (5, 23)] {
            // Sums of these depend on the order in which they are added.
            let value = |replica: usize, at: usize| [1e8, 1.0, -1e8, 0.25, 3.0][(replica + at) % 5];
            let gradients: Vec<Vec<f32>> =
                (0..replicas).map(|replica| (0..elements).map(|at| value(replica, at)).collect()).collect();
            let expected: Vec<f32> =
                (0..elements).map(|at| (1..replicas).fold(value(0, at), |sum, r| sum + value(r, at))).collect();
            let mut random = 1_u64;
            for _ in 0..20 {
                let found = sums(&gradients, |choices| {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (random >> 33) as usize % choices
                });
                assert!(found.iter().all(|sum| *sum == expected), "{replicas} {elements} {found:?}");
            }
        }
    }

    #[test]
    fn what_comes_twice_or_has_another_length_is_an_error() {
        let share = |is_sum, values: &[f32]| GradientShare { from: 1, step: 0, is_sum, values: tensor(values) };
        let mut sharing = Sharing::new(0, 2);
        assert!(sharing.take(share(false, &[1.0])).unwrap().is_empty());
        assert!(sharing.take(share(false, &[1.0])).is_err());
        sharing.begin(0, &tensor(&[1.0, 2.0])).unwrap();
        assert!(sharing.take(share(false, &[1.0])).is_err());
        assert!(sharing.finish(0).unwrap().is_none());
        sharing.take(share(true, &[1.0, 2.0, 3.0])).unwrap();
        assert!(sharing.finish(0).unwrap_err().to_string().contains("gradients of 4 elements, and this one of 2"));
    }
}
