//! The line ends of a text.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// How the line ends of a text become tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum LineEnds {
    /// As they are in the text.
    #[default]
    Keep,
    /// All as a line feed, also those of Windows (`\r\n`) and a carriage return alone.
    Lf,
}

impl LineEnds {
    /// Returns whether line ends stay as they are.
    pub(super) fn are_kept(&self) -> bool {
        *self == Self::Keep
    }

    /// Returns the text with these line ends.
    pub(super) fn of(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Lf if text.contains('\r') => Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")),
            _ => Cow::Borrowed(text),
        }
    }

    /// Returns the bytes of a text with these line ends.
    pub(super) fn of_bytes(self, text: &[u8]) -> impl Iterator<Item = u8> {
        self.kept(text).map(|(_, byte)| byte)
    }

    /// Returns where byte `at` of [`Self::of`] comes from in `text`.
    pub(super) fn origin(self, text: &str, at: usize) -> usize {
        self.kept(text.as_bytes()).nth(at).map_or(text.len(), |(origin, _)| origin)
    }

    /// Returns the bytes with these line ends, each with its place in `text`.
    fn kept(self, text: &[u8]) -> impl Iterator<Item = (usize, u8)> {
        text.iter().enumerate().filter_map(move |(at, &byte)| match byte {
            b'\r' if self == Self::Lf => (text.get(at + 1) != Some(&b'\n')).then_some((at, b'\n')),
            _ => Some((at, byte)),
        })
    }
}
