//! Mean squared error.
/// Mean squared error.
pub struct MeanSquaredError;
