//! Checks that values are finite before they spread.

use crate::{Activation, Error, NonFinite, Result, elementwise::is_finite};

/// # Errors
/// If a tensor of floating-point dtype holds an infinity or a NaN; `what` names it.
pub(crate) fn check(activation: &Activation, sort: NonFinite, what: impl Fn() -> String) -> Result<()> {
    for tensor in activation.tensors().iter().filter(|t| t.dtype().is_float()) {
        if !is_finite(tensor)? {
            return Err(Error::NotFinite(sort, format!("{} holds an infinity or a NaN", what())));
        }
    }
    Ok(())
}
