//! The decoder of a build without the feature `images`: there is none.

use std::path::Path;

use interlock::{Error, Result};

use super::augment::Part;

/// A decoder, which this build cannot make.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decoder {}

/// The size of an image and the part to take of it.
pub(super) type Cut<'a> = &'a dyn Fn(u32, u32) -> Option<Part>;

/// Takes the largest central part.
pub(super) const CENTRAL: Cut<'static> = &|_, _| None;

impl Decoder {
    pub(super) fn new(_: bool) -> Result<Self> {
        Err(Error::invalid(
            "image files",
            "this program was built without their decoder",
            "rebuild with --features images",
        ))
    }

    pub(super) fn trust(&mut self) {
        match *self {}
    }

    pub(super) fn check_header(self, _: &Path) -> Result<bool, String> {
        match self {}
    }

    pub(super) fn check(self, _: &Path) -> Result<bool, String> {
        match self {}
    }

    pub(super) fn pixels(self, _: &Path, _: [usize; 3], _: Cut<'_>) -> Result<(Vec<u8>, bool), String> {
        match self {}
    }
}
