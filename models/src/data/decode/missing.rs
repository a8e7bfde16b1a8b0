//! The decoder of a build without the feature `images`: there is none.

use std::path::Path;

use interlock::{Error, Result};

/// A decoder, which this build cannot make.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decoder {}

impl Decoder {
    pub(super) fn new() -> Result<Self> {
        Err(Error::invalid(
            "image files",
            "this program was built without their decoder",
            "rebuild with --features images",
        ))
    }

    pub(super) fn check_header(self, _: &Path) -> Result<(), String> {
        match self {}
    }

    pub(super) fn check(self, _: &Path) -> Result<(), String> {
        match self {}
    }

    pub(super) fn pixels(self, _: &Path, _: [usize; 3]) -> Result<Vec<u8>, String> {
        match self {}
    }
}
