//! Which rank has which stage of which replica.

use super::Ranks;
use crate::{Error, Result};

/// The ranks of a run, and the rank of each stage. With replicas, each has as many ranks, in order, and all are spread alike.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    /// The ranks.
    pub(crate) ranks: Ranks,
    /// How many replicas of the stages there are.
    pub(crate) replicas: usize,
    /// The rank of each stage of the first replica.
    pub(crate) homes: Vec<usize>,
    /// What all ranks must agree in, a line each.
    pub(crate) agreement: String,
}

/// Returns how many of `count` things, such as micro-batches or stages, are those of one of `sharers`, a replica or a rank. The first ones have one more, if
/// they cannot all have as many.
pub(crate) fn share_of(sharer: usize, sharers: usize, count: usize) -> usize {
    count / sharers + usize::from(sharer < count % sharers)
}

impl Spread {
    /// Spreads `replicas` times `stages` stages over ranks: `given` has the stages of each rank of a replica; by default each has about as many, in order.
    ///
    /// # Errors
    /// If the replicas cannot have as many ranks each, there are fewer stages than ranks of a replica, or `given` does not name every stage once, or has another
    /// number of ranks.
    pub(crate) fn new(ranks: Ranks, replicas: usize, stages: usize, given: Option<&[Vec<usize>]>) -> Result<Self> {
        let refuse = |problem: String, remedy: String| Err(Error::invalid("placement.stages", problem, remedy));
        let size = ranks.size() / replicas;
        if size * replicas != ranks.size() {
            let problem = format!("{replicas} on {} ranks", ranks.size());
            let right = format!("start a multiple of {replicas} ranks: each replica has as many");
            return Err(Error::invalid("replicas", problem, right));
        }
        let Some(given) = given else {
            if stages < size {
                let of_each = if replicas == 1 { "" } else { " of each replica" };
                let most = stages * replicas;
                let remedy = format!("start at most {most}, or cut the model into {size} stages");
                return Err(Error::invalid("ranks", format!("{size} ranks{of_each} for {stages} stages"), remedy));
            }
            let homes = (0..size).flat_map(|rank| std::iter::repeat_n(rank, share_of(rank, size, stages)));
            return Ok(Self { ranks, replicas, homes: homes.collect(), agreement: String::new() });
        };
        if given.len() != size {
            let of_each = if replicas == 1 { "" } else { " for each replica" };
            return refuse(format!("lists for {} ranks", given.len()), format!("there are {size}{of_each}"));
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
                Ok(Self { ranks, replicas, homes, agreement: String::new() })
            }
        }
    }

    /// Returns the number of ranks of each replica.
    fn ranks_of_replica(&self) -> usize {
        self.ranks.size() / self.replicas
    }

    /// Returns the replica that a rank has stages of.
    pub(crate) fn replica_of(&self, rank: usize) -> usize {
        rank / self.ranks_of_replica()
    }

    /// Returns the replica that this process has stages of.
    pub(crate) fn replica(&self) -> usize {
        self.replica_of(self.ranks.rank())
    }

    /// Returns whether this process has the first stage of a replica other than the first.
    pub(crate) fn begins_replica(&self) -> bool {
        self.replica() > 0 && self.is_here(0)
    }

    /// Returns the rank of a stage.
    pub(crate) fn rank_of(&self, replica: usize, stage: usize) -> usize {
        replica * self.ranks_of_replica() + self.homes[stage]
    }

    /// Returns the stages of a rank.
    pub(crate) fn stages_of(&self, rank: usize) -> Vec<usize> {
        let replica = self.replica_of(rank);
        (0..self.homes.len()).filter(|&stage| self.rank_of(replica, stage) == rank).collect()
    }

    /// Returns whether a stage of this process's replica is in this process.
    pub(crate) fn is_here(&self, stage: usize) -> bool {
        self.rank_of(self.replica(), stage) == self.ranks.rank()
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
            Spread::new(Ranks::with_timeout(Arc::new(Alone(ranks)), Duration::from_secs(60)).unwrap(), 1, stages, given)
        };
        assert_eq!(spread(3, 8, None).unwrap().homes, [0, 0, 0, 1, 1, 1, 2, 2]);
        assert_eq!(spread(2, 2, None).unwrap().homes, [0, 1]);
        let given = spread(2, 3, Some(&[vec![2, 0], vec![1]])).unwrap();
        assert_eq!((given.homes.clone(), given.stages_of(0)), (vec![0, 1, 0], vec![0, 2]));
        assert!(given.is_here(0) && !given.is_here(1));
        let alone = |ranks| Ranks::with_timeout(Arc::new(Alone(ranks)), Duration::from_secs(60)).unwrap();
        let replicas = Spread::new(alone(6), 3, 3, Some(&[vec![2, 0], vec![1]])).unwrap();
        let stages: Vec<_> = (0..6).map(|rank| replicas.stages_of(rank)).collect();
        assert_eq!(stages, [vec![0, 2], vec![1], vec![0, 2], vec![1], vec![0, 2], vec![1]]);
        assert_eq!((replicas.replica_of(3), replicas.rank_of(2, 1), replicas.replica()), (1, 5, 0));
        let error = Spread::new(alone(5), 2, 3, None).unwrap_err().to_string();
        assert_eq!(error, "replicas: 2 on 5 ranks; start a multiple of 2 ranks: each replica has as many");
        let error = Spread::new(alone(8), 2, 3, None).unwrap_err().to_string();
        assert!(error.contains("4 ranks of each replica for 3 stages; start at most 6"), "{error}");
        let refused =
            |ranks, stages, given: Option<&[Vec<usize>]>| spread(ranks, stages, given).unwrap_err().to_string();
        assert!(refused(3, 2, None).contains("3 ranks for 2 stages; start at most 2"));
        assert!(refused(2, 2, Some(&[vec![0, 1]])).contains("lists for 1 ranks"));
        assert!(refused(2, 2, Some(&[vec![0], vec![0]])).contains("stage 0 twice"));
        assert!(refused(2, 2, Some(&[vec![0], vec![2]])).contains("stage 2; stages are 0 to 1"));
        assert!(refused(2, 2, Some(&[vec![0], vec![]])).contains("stage 1 is missing"));
    }
}
