//! The key `devices`: names, or `auto`.

use std::{borrow::Cow, fmt, sync::Arc};

use interlock::{Error, PlainCpu, Precision, Result, StageDevice, TrainerBuilder, ranks::Ranks};
use interlock_backends::{Backends, device_names};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The devices of the stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Devices {
    /// The machine's GPUs; if there are none, its cores, divided among the stages.
    #[default]
    Auto,
    /// Names of devices; stage `k` is pinned to device `k mod` their number.
    Named(Vec<String>),
}

const AUTO: &str = "auto";

impl Devices {
    /// Returns the devices that arguments name, each of which may be a list separated by commas; none if there are no arguments.
    pub(crate) fn of_arguments(arguments: &[String]) -> Option<Self> {
        match arguments {
            [] => None,
            [only] => Some(Self::of_list(only)),
            _ => Some(Self::Named(arguments.iter().flat_map(|list| device_names(list)).collect())),
        }
    }

    /// Returns the devices of a list separated by commas, or `auto`.
    fn of_list(list: &str) -> Self {
        match list {
            AUTO => Self::Auto,
            _ => Self::Named(device_names(list)),
        }
    }

    /// Opens the devices for the stages of `builder`, and sets them. Those whose names say no precision compute in `precision`.
    pub(crate) fn give_to(&self, builder: TrainerBuilder, precision: Precision) -> Result<TrainerBuilder> {
        let backends = Backends::default().precision(precision);
        let devices: Vec<Arc<dyn StageDevice>> = match self {
            Self::Auto => backends.auto(&builder.layout()?)?,
            Self::Named(names) if names.is_empty() => {
                return Err(Error::invalid(
                    "devices",
                    "the list is empty",
                    "name at least one, such as \"cpu\", or use \"auto\"",
                ));
            }
            Self::Named(names) => names.iter().map(|name| backends.open(name)).collect::<Result<_>>()?,
        };
        Ok(builder.devices(devices))
    }

    /// Opens the devices for the stages that `builder` has on this rank: those of its list among `lists`, if they are given. Sets them, and candle's CPU
    /// device for stages elsewhere, which are never built here. The precision is as for [`Self::give_to`].
    pub(crate) fn give_to_rank(
        &self,
        builder: TrainerBuilder,
        precision: Precision,
        ranks: &Ranks,
        lists: Option<&[Vec<String>]>,
    ) -> Result<TrainerBuilder> {
        let backends = Backends::default().precision(precision);
        let lists = match (lists, self) {
            (None, Self::Named(_)) => return self.give_to(builder, precision),
            (Some(_), Self::Named(_)) => {
                return Err(Error::invalid("placement.devices", "devices are given too", "give one of them"));
            }
            (lists, Self::Auto) => lists,
        };
        let layout = builder.layout()?;
        let own = builder.stages_here(&layout)?;
        let devices: Vec<_> = match lists {
            None => backends.auto_of(&layout, &own, ranks.place_on_host(ranks.rank()))?,
            Some(lists) => list_of(lists, ranks)?.iter().map(|name| backends.open(name)).collect::<Result<_>>()?,
        };
        let elsewhere: Arc<dyn StageDevice> = Arc::new(PlainCpu);
        let device = |stage: usize| match own.iter().position(|own| *own == stage) {
            Some(at) => Arc::clone(&devices[at % devices.len()]),
            None => Arc::clone(&elsewhere),
        };
        let all: Vec<_> = (0..layout.blueprints.len()).map(device).collect();
        Ok(builder.devices(all))
    }
}

/// Returns the list of this rank.
///
/// # Errors
/// If the ranks are no multiple of the lists, or a list is empty.
fn list_of<'a>(lists: &'a [Vec<String>], ranks: &Ranks) -> Result<&'a [String]> {
    if lists.is_empty() || !ranks.size().is_multiple_of(lists.len()) {
        let problem = format!("{} lists for {} ranks", lists.len(), ranks.size());
        let right = "give one for each rank, or one for every n-th";
        return Err(Error::invalid("placement.devices", problem, right));
    }
    if let Some(empty) = lists.iter().position(Vec::is_empty) {
        let problem = format!("the list of rank {empty} is empty");
        return Err(Error::invalid("placement.devices", problem, "name at least one device for each rank"));
    }
    Ok(&lists[ranks.rank() % lists.len()])
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str(AUTO),
            Self::Named(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Devices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("devices: \"auto\", a name, or a list of names such as [\"cpu:threads=2\", \"cuda:0\"]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Devices, E> {
                Ok(Devices::of_list(text))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> std::result::Result<Devices, A::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Devices::Named)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Devices {
    fn schema_name() -> Cow<'static, str> {
        "Devices".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "const": AUTO, "description": "The machine's GPUs; if there are none, its cores, divided among the stages." },
                {
                    "type": "array",
                    "items": { "type": "string" },
                    "description": "Names; stage `k` is pinned to device `k mod` their number."
                },
                { "type": "string", "description": "A name, or several separated by commas." }
            ]
        })
    }
}
