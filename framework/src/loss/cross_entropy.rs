//! Cross-entropy.
/// Cross-entropy.
pub struct CrossEntropy;
