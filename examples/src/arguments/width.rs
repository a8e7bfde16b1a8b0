//! An interlock width on the command line.

/// An interlock width on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Width {
    /// A number.
    Number(usize),
    /// As wide as there are stages.
    EndToEnd,
}

impl Width {
    /// Returns the width as a number, for this many stages.
    pub(crate) fn of(self, stages: usize) -> usize {
        match self {
            Self::Number(width) => width,
            Self::EndToEnd => stages,
        }
    }
}

impl std::str::FromStr for Width {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "e2e" => Ok(Self::EndToEnd),
            number => {
                number.parse().map(Self::Number).map_err(|_| format!("{number:?} is not a width; use 1, 2, … or e2e"))
            }
        }
    }
}

impl std::fmt::Display for Width {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::EndToEnd => f.write_str("e2e"),
        }
    }
}
