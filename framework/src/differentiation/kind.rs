//! Parameters and buffers.

/// Last parts of names that are buffers, not parameters.
const BUFFERS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// Whether a named tensor is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Trained by the optimizer; every one must receive a gradient.
    Parameter,
    /// Kept by its layer, such as running statistics; saved, never updated by an optimizer.
    Buffer,
}

/// Whether a tensor of this name is trained: the last part of the name tells.
pub(crate) fn kind_of(name: &str) -> Kind {
    let last = name.rsplit('.').next().unwrap_or(name);
    if BUFFERS.contains(&last) { Kind::Buffer } else { Kind::Parameter }
}
