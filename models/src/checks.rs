//! Checks that several models share.

use interlock::{Error, Result};

/// The largest number accepted for any extent (channels, width, vocabulary, pixels a side): far larger than in any real model, and so small that
/// products of a few extents do not overflow.
const LARGEST_EXTENT: usize = 1 << 24;

/// The largest number accepted for layers or blocks.
const LARGEST_DEPTH: usize = 1 << 12;

fn within(subject: &str, value: usize, largest: usize) -> Result<()> {
    if (1..=largest).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(subject, format!("it is {value}"), format!("give a number from 1 to {largest}")))
}

/// Checks that an extent is not 0 and not absurdly large.
pub(crate) fn extent(subject: &str, value: usize) -> Result<()> {
    within(subject, value, LARGEST_EXTENT)
}

/// Checks that a number of layers or blocks is not 0 and not absurdly large.
pub(crate) fn depth(subject: &str, value: usize) -> Result<()> {
    within(subject, value, LARGEST_DEPTH)
}

/// Checks every extent of a list as [`extent`] does.
pub(crate) fn extents(subject: &str, values: &[usize]) -> Result<()> {
    values.iter().enumerate().try_for_each(|(at, &value)| extent(&format!("{subject}[{at}]"), value))
}

/// Checks that a value is a probability below 1.
pub(crate) fn probability(subject: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(subject, format!("it is {value}"), "give a probability of at least 0 and below 1"))
}

/// Returns the entry of `presets` called `name`.
pub(crate) fn preset<'a, P>(
    subject: &str,
    name: &str,
    presets: &'a [P],
    name_of: impl Fn(&P) -> &str,
) -> Result<&'a P> {
    presets.iter().find(|p| name_of(p) == name).ok_or_else(|| {
        let known: Vec<&str> = presets.iter().map(&name_of).collect();
        Error::invalid(subject, format!("there is no preset {name:?}"), format!("presets are {}", known.join(", ")))
    })
}
