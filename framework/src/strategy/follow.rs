//! The losses that a stage follows within its window, as configuration files give them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The losses of its window that a stage follows. In configuration files: `"last"`, `"mean"`, or a list of weights such as `[0.7, 0.3]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum FollowConfig {
    /// The last loss of the window.
    #[default]
    Last,
    /// The mean of all losses in the window.
    Mean,
    /// One weight for each distance: first that of the stage's own loss, then that of the next one, and so on. The list sets the width.
    Weights(Vec<f64>),
}

impl Serialize for FollowConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Last => serializer.serialize_str("last"),
            Self::Mean => serializer.serialize_str("mean"),
            Self::Weights(weights) => weights.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for FollowConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = FollowConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"last\", \"mean\", or a list of weights by distance such as [0.7, 0.3]")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<FollowConfig, E> {
                match name {
                    "last" => Ok(FollowConfig::Last),
                    "mean" => Ok(FollowConfig::Mean),
                    _ => Err(E::invalid_value(de::Unexpected::Str(name), &self)),
                }
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<FollowConfig, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(FollowConfig::Weights)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for FollowConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Follow".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [
                { "const": "last", "description": "The last loss of the window." },
                { "const": "mean", "description": "The mean of all losses in the window." },
                {
                    "type": "array",
                    "items": { "type": "number", "minimum": 0 },
                    "minItems": 1,
                    "description": "One weight for each distance: first that of the stage's own loss. The list sets the width."
                }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_or_a_list_of_weights_is_read_and_written() {
        for (text, expected) in [
            ("\"last\"", FollowConfig::Last),
            ("\"mean\"", FollowConfig::Mean),
            ("[0.7,0.3]", FollowConfig::Weights(vec![0.7, 0.3])),
        ] {
            let read: FollowConfig = serde_json::from_str(text).unwrap();
            assert_eq!(read, expected);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        assert_eq!(serde_json::from_str::<FollowConfig>("[1, 0]").unwrap(), FollowConfig::Weights(vec![1.0, 0.0]));
        for text in ["\"first\"", "0.5", "true", "[\"a\"]"] {
            let error = serde_json::from_str::<FollowConfig>(text).unwrap_err().to_string();
            assert!(error.contains("\"last\", \"mean\", or a list of weights") || error.contains("f64"), "{error}");
        }
    }
}
