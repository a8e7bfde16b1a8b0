//! The kinds of actions, with their letters and names.

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
    /// The input gradient and the parameter gradient of a loss in one backward pass.
    BothGradients,
    /// The parameter gradient of a loss that the stage does not follow, to be compared with that of the loss it follows.
    MeasuredGradient,
    /// The input gradient and the measured parameter gradient in one backward pass.
    BothMeasured,
    /// What the other replicas need of the step's gradients.
    Share,
    /// The squared norms of the step's gradients.
    Norm,
    /// The update of the parameters.
    Update,
}

impl ActionKind {
    /// Every kind, in the order in which a micro-batch passes through them.
    pub const ALL: [Self; 10] = [
        Self::Forward,
        Self::Head,
        Self::InputGradient,
        Self::ParameterGradient,
        Self::BothGradients,
        Self::MeasuredGradient,
        Self::BothMeasured,
        Self::Share,
        Self::Norm,
        Self::Update,
    ];

    /// Returns its letter in the notation: `F`, `H`, `I`, `W`, `B`, `w`, `b`, `S`, `N` or `U`.
    pub fn letter(self) -> char {
        match self {
            Self::Forward => 'F',
            Self::Head => 'H',
            Self::InputGradient => 'I',
            Self::ParameterGradient => 'W',
            Self::BothGradients => 'B',
            Self::MeasuredGradient => 'w',
            Self::BothMeasured => 'b',
            Self::Share => 'S',
            Self::Norm => 'N',
            Self::Update => 'U',
        }
    }

    /// Returns the kind with this letter.
    pub fn of_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.letter() == letter)
    }

    /// Returns its name, in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Head => "head",
            Self::InputGradient => "input gradient",
            Self::ParameterGradient => "parameter gradient",
            Self::BothGradients => "both gradients",
            Self::MeasuredGradient => "measured gradient",
            Self::BothMeasured => "input gradient and measured one",
            Self::Share => "share gradients",
            Self::Norm => "norm",
            Self::Update => "update",
        }
    }

    /// Returns whether it concerns one micro-batch, not the whole step.
    pub fn has_micro(self) -> bool {
        !matches!(self, Self::Share | Self::Norm | Self::Update)
    }

    /// Returns whether it is a backward pass, of one loss.
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
