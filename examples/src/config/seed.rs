//! The seed in a configuration: a whole number up to 2⁶⁴ - 1, as text where it is larger than the integers of TOML.

use std::fmt;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserializer, Serializer, de};

pub(crate) fn serialize<S: Serializer>(seed: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    match i64::try_from(*seed) {
        Ok(number) => serializer.serialize_i64(number),
        Err(_) => serializer.serialize_str(&seed.to_string()),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a seed from 0 to {}", u64::MAX)
        }

        fn visit_u64<E: de::Error>(self, seed: u64) -> Result<u64, E> {
            Ok(seed)
        }

        fn visit_i64<E: de::Error>(self, seed: i64) -> Result<u64, E> {
            seed.try_into().map_err(|_| E::invalid_value(de::Unexpected::Signed(seed), &self))
        }

        fn visit_str<E: de::Error>(self, digits: &str) -> Result<u64, E> {
            digits.parse().map_err(|_| E::invalid_value(de::Unexpected::Str(digits), &self))
        }
    }

    deserializer.deserialize_any(Visitor)
}

pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [
            {
                "type": "integer",
                "format": "uint64",
                "minimum": 0,
                "description": format!("A seed up to {}, the largest integer of TOML.", i64::MAX)
            },
            {
                "type": "string",
                "pattern": crate::schema::DIGITS,
                "description": format!("A larger seed, up to {}.", u64::MAX)
            }
        ]
    })
}
