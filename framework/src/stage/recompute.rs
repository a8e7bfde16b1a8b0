//! The stages that repeat their forward pass instead of saving its activations.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, Result};

/// The stages that save only their input between the forward pass of a micro-batch and its first backward pass, and then repeat the forward pass.
///
/// They take less memory and more time. A stage with several backward passes of a micro-batch holds its activations from the first to the last of them, so
/// it saves little with several micro-batches in flight. The results are the same, bit for bit. In configuration files: `true`, `false`, or a list of stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// None: every stage saves its activations.
    #[default]
    None,
    /// All stages.
    All,
    /// The stages with these numbers, counted from 0.
    Stages(Vec<usize>),
}

impl Recompute {
    /// Returns whether stage `k` is one of them.
    pub fn is_for(&self, k: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Stages(stages) => stages.contains(&k),
        }
    }

    /// Checks the stages.
    ///
    /// # Errors
    /// If a stage does not exist or is named twice.
    pub fn validate(&self, stages: usize) -> Result<()> {
        let Self::Stages(named) = self else { return Ok(()) };
        for (i, &k) in named.iter().enumerate() {
            if k >= stages {
                let right = format!("stages are 0 to {}", stages.saturating_sub(1));
                return Err(Error::invalid("recompute", format!("there is no stage {k}"), right));
            }
            if named[..i].contains(&k) {
                return Err(Error::invalid("recompute", format!("stage {k} is named twice"), "name each stage once"));
            }
        }
        Ok(())
    }
}

impl Serialize for Recompute {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_bool(false),
            Self::All => serializer.serialize_bool(true),
            Self::Stages(stages) => stages.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Recompute {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Recompute;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("recompute: true, false, or a list of stages such as [0, 1]")
            }

            fn visit_bool<E: de::Error>(self, all: bool) -> std::result::Result<Recompute, E> {
                Ok(if all { Recompute::All } else { Recompute::None })
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> std::result::Result<Recompute, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Recompute::Stages)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Recompute {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Recompute".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [
                { "type": "boolean", "description": "All stages, or none." },
                {
                    "type": "array",
                    "items": { "type": "integer", "minimum": 0 },
                    "description": "The stages with these numbers, counted from 0."
                }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_none_or_some_stages_are_read_and_written() {
        for (text, expected) in [
            ("true", Recompute::All),
            ("false", Recompute::None),
            ("[]", Recompute::Stages(vec![])),
            ("[2,0]", Recompute::Stages(vec![2, 0])),
        ] {
            let read: Recompute = serde_json::from_str(text).unwrap();
            assert_eq!(read, expected);
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        let for_stages = |recompute: Recompute| [0, 1, 2].map(|k| recompute.is_for(k));
        assert_eq!(for_stages(Recompute::Stages(vec![2, 0])), [true, false, true]);
        assert_eq!(for_stages(Recompute::All), [true; 3]);
        for (text, word) in [("\"all\"", "true, false, or a list"), ("[-1]", "-1"), ("3", "true, false, or a list")] {
            let error = serde_json::from_str::<Recompute>(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn stages_that_are_not_there_are_refused() {
        assert!(Recompute::All.validate(1).is_ok() && Recompute::Stages(vec![0, 2]).validate(3).is_ok());
        let refused = |stages: &[usize]| Recompute::Stages(stages.to_vec()).validate(3).unwrap_err().to_string();
        assert_eq!(refused(&[1, 3]), "recompute: there is no stage 3; stages are 0 to 2");
        assert_eq!(refused(&[1, 1]), "recompute: stage 1 is named twice; name each stage once");
    }
}
