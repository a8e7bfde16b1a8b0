//! Panics of other crates at files that are damaged or made to harm.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs code of a crate that panics at some files. An error has the message of the panic.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("it panicked: {}", text.as_deref().unwrap_or("without a message"))
    })
}
