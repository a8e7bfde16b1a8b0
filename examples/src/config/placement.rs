//! The key `placement`: the stages and devices of each rank, or `auto`.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const AUTO: &str = "auto";

/// The stages and the devices of each rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// The planner chooses the stages of each rank.
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

impl Placement {
    /// Returns the stages of each rank, if they are given.
    pub(crate) fn stages(&self) -> Option<&[Vec<usize>]> {
        match self {
            Self::Auto => None,
            Self::Given(given) => given.stages.as_deref(),
        }
    }

    /// Returns the devices of each rank, if they are given.
    pub(crate) fn devices(&self) -> Option<&[Vec<String>]> {
        match self {
            Self::Auto => None,
            Self::Given(given) => given.devices.as_deref(),
        }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self::Given(PlacementConfig::default())
    }
}

impl Serialize for Placement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Given(given) => given.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Placement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Placement;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "placement: \"auto\", or stages and devices of each rank, such as { stages = [[0, 1], [2]] }",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Placement, E> {
                match text {
                    AUTO => Ok(Placement::Auto),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Placement, A::Error> {
                PlacementConfig::deserialize(de::value::MapAccessDeserializer::new(map)).map(Placement::Given)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Placement {
    fn schema_name() -> Cow<'static, str> {
        "Placement".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let given = generator.subschema_for::<PlacementConfig>();
        json_schema!({
            "anyOf": [
                { "const": AUTO, "description": "The planner chooses the cut and the stages of each rank, by the cores of the hosts." },
                given
            ]
        })
    }
}
