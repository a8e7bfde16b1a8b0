//! The build without the feature `png`.

use interlock::Result;

use crate::exit::built_without;

/// Refuses to render.
pub(crate) fn png(_: &str) -> Result<Vec<u8>> {
    Err(built_without("--png", "png"))
}
