//! The kinds of work, with their letters and names.

/// The kind of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    /// A forward pass.
    Forward,
    /// The head and its loss.
    Head,
    /// The gradient of a loss with respect to the stage's input.
    InputGradient,
    /// The gradient of a loss with respect to the stage's parameters.
    ParameterGradient,
    /// Both gradients in one go.
    BothGradients,
    /// The gradient of a loss that the stage does not follow with respect to its parameters, to be compared with that of the one it does.
    MeasuredGradient,
    /// That and the input's in one go.
    BothMeasured,
    /// The squared norms of the step's gradients.
    Norm,
    /// The update of the parameters.
    Update,
}

impl ActionKind {
    /// Every kind, in the order in which a micro-batch meets them.
    pub const ALL: [Self; 9] = [
        Self::Forward,
        Self::Head,
        Self::InputGradient,
        Self::ParameterGradient,
        Self::BothGradients,
        Self::MeasuredGradient,
        Self::BothMeasured,
        Self::Norm,
        Self::Update,
    ];

    /// The letter of the notation: `F`, `H`, `I`, `W`, `B`, `w`, `b`, `N` or `U`.
    pub fn letter(self) -> char {
        match self {
            Self::Forward => 'F',
            Self::Head => 'H',
            Self::InputGradient => 'I',
            Self::ParameterGradient => 'W',
            Self::BothGradients => 'B',
            Self::MeasuredGradient => 'w',
            Self::BothMeasured => 'b',
            Self::Norm => 'N',
            Self::Update => 'U',
        }
    }

    /// The kind of a letter.
    pub fn of_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.letter() == letter)
    }

    /// The kind in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Head => "head",
            Self::InputGradient => "input gradient",
            Self::ParameterGradient => "parameter gradient",
            Self::BothGradients => "both gradients",
            Self::MeasuredGradient => "measured gradient",
            Self::BothMeasured => "input gradient and measured one",
            Self::Norm => "norm",
            Self::Update => "update",
        }
    }

    /// Whether it concerns one micro-batch, not the whole step.
    pub fn has_micro(self) -> bool {
        !matches!(self, Self::Norm | Self::Update)
    }

    /// Whether it is a backward pass, of one loss.
    pub fn has_loss(self) -> bool {
        matches!(
            self,
            Self::InputGradient
                | Self::ParameterGradient
                | Self::BothGradients
                | Self::MeasuredGradient
                | Self::BothMeasured
        )
    }
}
