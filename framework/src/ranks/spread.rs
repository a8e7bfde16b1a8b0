//! Which rank has which stage.

use super::Ranks;
use crate::{Error, Result};

/// The ranks of a run, and the rank of each stage.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    /// The ranks.
    pub(crate) ranks: Ranks,
    /// The rank of each stage.
    pub(crate) homes: Vec<usize>,
    /// What all ranks must agree in, a line each.
    pub(crate) agreement: String,
}

impl Spread {
    /// Spreads `stages` stages over ranks: `given` has the stages of each rank; by default each has about as many, in order.
    ///
    /// # Errors
    /// If there are fewer stages than ranks, or `given` does not name every stage once, or has another number of ranks.
    pub(crate) fn new(ranks: Ranks, stages: usize, given: Option<&[Vec<usize>]>) -> Result<Self> {
        let refuse = |problem: String, remedy: String| Err(Error::invalid("placement.stages", problem, remedy));
        let size = ranks.size();
        let Some(given) = given else {
            if stages < size {
                let remedy = format!("start at most {stages}, or cut the model into {size} stages");
                return Err(Error::invalid("ranks", format!("{size} ranks for {stages} stages"), remedy));
            }
            // The first ranks have one more, if they cannot all have as many.
            let homes = (0..size).flat_map(|rank| {
                let own = stages / size + usize::from(rank < stages % size);
                std::iter::repeat_n(rank, own)
            });
            return Ok(Self { ranks, homes: homes.collect(), agreement: String::new() });
        };
        if given.len() != size {
            return refuse(format!("lists for {} ranks", given.len()), format!("there are {size}"));
        }
        let mut homes = vec![None; stages];
        for (rank, own) in given.iter().enumerate() {
            for &stage in own {
                match homes.get_mut(stage) {
                    Some(home @ None) => *home = Some(rank),
                    Some(Some(_)) => return refuse(format!("stage {stage} twice"), "name each stage once".to_owned()),
                    None => {
                        let remedy = format!("stages are 0 to {}", stages - 1);
                        return refuse(format!("stage {stage}"), remedy);
                    }
                }
            }
        }
        match homes.iter().position(Option::is_none) {
            Some(stage) => refuse(format!("stage {stage} is missing"), "name each stage once".to_owned()),
            None => {
                let homes = homes.into_iter().flatten().collect();
                Ok(Self { ranks, homes, agreement: String::new() })
            }
        }
    }

    /// Returns the stages of a rank.
    pub(crate) fn stages_of(&self, rank: usize) -> Vec<usize> {
        (0..self.homes.len()).filter(|&stage| self.homes[stage] == rank).collect()
    }

    /// Returns whether a stage is in this process.
    pub(crate) fn is_here(&self, stage: usize) -> bool {
        self.homes[stage] == self.ranks.rank()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::ranks::{Communicator, Listener, RankMessage};

    struct Alone(usize);

    impl Communicator for Alone {
        fn rank(&self) -> usize {
            0
        }

        fn size(&self) -> usize {
            self.0
        }

        fn send(&self, _: usize, _: RankMessage) -> Result<()> {
            Ok(())
        }

        fn listen(&self, _: Listener) {}
    }

    #[test]
    fn stages_are_spread_in_order_or_as_given() {
        let spread = |ranks, stages, given: Option<&[Vec<usize>]>| {
            Spread::new(Ranks::with_timeout(Arc::new(Alone(ranks)), Duration::from_secs(60)).unwrap(), stages, given)
        };
        assert_eq!(spread(3, 8, None).unwrap().homes, [0, 0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(spread(2, 2, None).unwrap().homes, [0, 1]);
        let given = spread(2, 3, Some(&[vec![2, 0], vec![1]])).unwrap();
        assert_eq!((given.homes.clone(), given.stages_of(0)), (vec![0, 1, 0], vec![0, 2]));
        assert!(given.is_here(0) && !given.is_here(1));
        let refused =
            |ranks, stages, given: Option<&[Vec<usize>]>| spread(ranks, stages, given).unwrap_err().to_string();
        assert!(refused(3, 2, None).contains("3 ranks for 2 stages; start at most 2"));
        assert!(refused(2, 2, Some(&[vec![0, 1]])).contains("lists for 1 ranks"));
        assert!(refused(2, 2, Some(&[vec![0], vec![0]])).contains("stage 0 twice"));
        assert!(refused(2, 2, Some(&[vec![0], vec![2]])).contains("stage 2; stages are 0 to 1"));
        assert!(refused(2, 2, Some(&[vec![0], vec![]])).contains("stage 1 is missing"));
    }
}
