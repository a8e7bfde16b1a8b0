//! The build without the feature `top`.

use crate::{
    arguments::Top,
    exit::{Exit, built_without},
};

pub(crate) fn run(_: &Top) -> Result<(), Exit> {
    Err(built_without("top", "top").into())
}
