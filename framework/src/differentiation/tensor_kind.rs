//! Parameters and buffers.

/// The last parts of the names of buffers.
const BUFFERS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

/// The kind of a named tensor: a trained parameter or a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorKind {
    /// Trained by the optimizer; every one must receive a gradient.
    Parameter,
    /// Updated by its layer, such as running statistics. Saved with the weights, never updated by an optimizer.
    Buffer,
}

/// Returns the kind of a tensor by the last part of its name.
pub(crate) fn tensor_kind(name: &str) -> TensorKind {
    let last = name.rsplit('.').next().unwrap_or(name);
    if BUFFERS.contains(&last) { TensorKind::Buffer } else { TensorKind::Parameter }
}
