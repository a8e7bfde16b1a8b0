//! The protocol buffer messages of an event file, with only the fields that are used here.

use prost::{Message, Oneof};

/// A record: the file's version, the beginning of a session, or the scalars of a step.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// Seconds since the Unix epoch.
    #[prost(double, tag = "1")]
    pub(super) wall_time: f64,
    #[prost(int64, tag = "2")]
    pub(super) step: i64,
    #[prost(oneof = "Content", tags = "3, 5, 7")]
    pub(super) content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Content {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    Session(Session),
}

/// The beginning of a session: events of earlier files from its step on are void.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Session {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

impl Session {
    pub(super) const START: i32 = 1;
}

/// A list of scalars.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) value: Vec<Scalar>,
}

/// A named number.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Scalar {
    #[prost(string, tag = "1")]
    pub(super) tag: String,
    /// Always present, so that zeros are written too.
    #[prost(float, optional, tag = "2")]
    pub(super) simple_value: Option<f32>,
}
