//! Which gradients a backward pass computes.

use serde::{Deserialize, Serialize};

/// The gradients that a backward pass computes; it computes nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Wants {
    /// The gradient with respect to the input.
    pub input: bool,
    /// The gradients with respect to the parameters.
    pub parameters: bool,
}

impl Wants {
    /// Neither.
    pub const NOTHING: Self = Self { input: false, parameters: false };
    /// Only the input gradient.
    pub const INPUT: Self = Self { input: true, parameters: false };
    /// Only the parameter gradients.
    pub const PARAMETERS: Self = Self { input: false, parameters: true };
    /// Both.
    pub const BOTH: Self = Self { input: true, parameters: true };
}
