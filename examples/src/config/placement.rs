//! The key `placement`: the stages and devices of each rank, or `auto`.

use std::{borrow::Cow, fmt};

use interlock::{ranks::Ranks, tools::model::PartitionConfig};
use interlock_backends::share_of_host;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Devices, RunConfig};
use crate::ranks::ranks;

const AUTO: &str = "auto";

/// The stages and the devices of each rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlacementChoice {
    /// The stages are spread over the ranks by their cores.
    Auto,
    Given(PlacementConfig),
}

/// The stages and the devices of each rank, as given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PlacementConfig {
    /// The stages of each rank; by default each rank has about as many, in order. With several replicas, those of each rank of a replica.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stages: Option<Vec<Vec<usize>>>,
    /// The devices of each rank, instead of `devices`: its `i`-th stage is on device `i mod` their number. One list for each rank; of fewer lists, each serves
    /// several ranks in turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("examples" = [[["cpu:threads=4"], ["cuda:0", "cuda:1"]]]))]
    pub(crate) devices: Option<Vec<Vec<String>>>,
}

impl PlacementChoice {
    /// Returns the devices of each rank, if they are given.
    pub(crate) fn devices(&self) -> Option<&[Vec<String>]> {
        match self {
            Self::Auto => None,
            Self::Given(given) => given.devices.as_deref(),
        }
    }
}

impl Default for PlacementChoice {
    fn default() -> Self {
        Self::Given(PlacementConfig::default())
    }
}

impl Serialize for PlacementChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Given(given) => given.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for PlacementChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = PlacementChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "placement: \"auto\", or stages and devices of each rank, such as { stages = [[0, 1], [2]] }",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PlacementChoice, E> {
                match text {
                    AUTO => Ok(PlacementChoice::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<PlacementChoice, A::Error> {
                PlacementConfig::deserialize(de::value::MapAccessDeserializer::new(map)).map(PlacementChoice::Given)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for PlacementChoice {
    fn schema_name() -> Cow<'static, str> {
        "PlacementChoice".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let given = generator.subschema_for::<PlacementConfig>();
        json_schema!({
            "anyOf": [
                { "const": AUTO, "description": "Spreads the stages over the ranks by their cores, and chooses the cut if none is given." },
                given
            ]
        })
    }
}

impl<M, D> RunConfig<M, D> {
    /// Returns how many cores each rank of a replica has for its stages. With named devices, each rank has the same ones and counts alike.
    pub(crate) fn cores_of_ranks(&self, ranks: &Ranks) -> Vec<usize> {
        let cores = cores_of_ranks(ranks, self.replicas);
        match self.devices {
            Devices::Auto => cores,
            Devices::Named(_) => vec![1; cores.len()],
        }
    }

    /// Returns the division of the model, and the stages of each rank if they are given or chosen.
    pub(crate) fn placed(&self) -> (PartitionConfig, Option<Vec<Vec<usize>>>) {
        let mut partition = self.partition.clone();
        let stages_of_ranks = match (&self.placement, ranks()) {
            (PlacementChoice::Given(given), _) => given.stages.clone(),
            (PlacementChoice::Auto, None) => None,
            (PlacementChoice::Auto, Some(ranks)) => {
                let cores = self.cores_of_ranks(ranks);
                if partition == PartitionConfig::default() {
                    partition.stages = Some(cores.len());
                }
                let stages = partition.units_per_stage.as_ref().map(Vec::len).or(partition.stages);
                stages.map(|stages| spread_by_cores(stages, &cores))
            }
        };
        (partition, stages_of_ranks)
    }
}

/// Returns how many cores each rank of a replica has; the ranks of several replicas that have the same stages count by the one with the fewest.
fn cores_of_ranks(ranks: &Ranks, replicas: usize) -> Vec<usize> {
    let hosts = ranks.hosts();
    let size = (ranks.size() / replicas.max(1)).max(1);
    let cores =
        |rank: usize| share_of_host(hosts.get(rank).map_or(1, |host| host.cores), ranks.place_on_host(rank)).len();
    let fewest = |part: usize| (part..ranks.size()).step_by(size).map(cores).min().unwrap_or(1);
    (0..size).map(fewest).collect()
}

/// Spreads stages over ranks in order: each has one, and of the others as many as its share of all cores lets it have.
fn spread_by_cores(stages: usize, cores: &[usize]) -> Vec<Vec<usize>> {
    let mut counts = vec![1; cores.len()];
    for _ in cores.len()..stages {
        // The next stage goes where stages have the most cores with it. If several ranks are equal, the first one gets it.
        let cores_of_each = |rank: usize| cores[rank] as f64 / (counts[rank] + 1) as f64;
        let most = (0..cores.len()).rev().max_by(|&a, &b| cores_of_each(a).total_cmp(&cores_of_each(b)));
        counts[most.unwrap_or(0)] += 1;
    }
    let mut next = 0;
    let take = |count: usize| {
        next += count;
        (next - count..next).collect()
    };
    counts.into_iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use interlock::ranks::{Communicator, Host, Listener, RankMessage};

    use super::*;

    /// Ranks on hosts of these names and cores.
    struct On(Vec<(&'static str, usize)>);

    impl Communicator for On {
        fn rank(&self) -> usize {
            0
        }

        fn size(&self) -> usize {
            self.0.len()
        }

        fn hosts(&self) -> Vec<Host> {
            self.0.iter().map(|&(name, cores)| Host { name: name.to_owned(), cores }).collect()
        }

        fn send(&self, _: usize, _: RankMessage) -> interlock::Result<()> {
            Ok(())
        }

        fn listen(&self, _: Listener) {}
    }

    #[test]
    fn ranks_of_one_host_share_its_cores_and_replicas_count_by_the_fewest() {
        let cores = |hosts: &[(&'static str, usize)], replicas| {
            let ranks = Ranks::with_timeout(Arc::new(On(hosts.to_vec())), Duration::from_secs(60)).unwrap();
            cores_of_ranks(&ranks, replicas)
        };
        assert_eq!(cores(&[("a", 8), ("b", 5), ("b", 5)], 1), [8, 3, 2]);
        assert_eq!(cores(&[("a", 8), ("b", 4), ("c", 2), ("d", 16)], 2), [2, 4]);
        // More replicas than ranks are refused later.
        assert_eq!(cores(&[("a", 8)], 2), [8]);
    }

    #[test]
    fn stages_are_spread_by_cores() {
        assert_eq!(spread_by_cores(5, &[2, 2]), [vec![0, 1, 2], vec![3, 4]]);
        assert_eq!(spread_by_cores(3, &[1, 1, 1]), [vec![0], vec![1], vec![2]]);
        assert_eq!(spread_by_cores(6, &[8, 2]), [vec![0, 1, 2, 3, 4], vec![5]]);
        // Even a rank with few cores has one.
        assert_eq!(spread_by_cores(3, &[64, 1]), [vec![0, 1], vec![2]]);
    }
}
