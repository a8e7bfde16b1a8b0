//! The colours.

use crate::schedule::ActionKind;

pub(super) const PAPER: &str = "#ffffff";
pub(super) const TEXT: &str = "#0f172a";
pub(super) const FAINT: &str = "#64748b";
pub(super) const LINE: &str = "#dbe2ea";
pub(super) const LANE: &str = "#f1f5f9";
pub(super) const BUSY: &str = "#94a3b8";
/// Text within actions, and the outline of the actions of a path.
pub(super) const NAME: &str = "#ffffff";
pub(super) const PATH: &str = "#e11d48";

/// Returns the colour of a kind: one shade in even steps, a lighter one in odd steps.
pub(super) fn fill(kind: ActionKind, step: u64) -> &'static str {
    let shades = match kind {
        ActionKind::Forward => ["#1769aa", "#3f87c0"],
        ActionKind::Head => ["#6d4ba3", "#8a6bbb"],
        ActionKind::InputGradient => ["#c77700", "#dc9229"],
        ActionKind::ParameterGradient => ["#00805d", "#2b9b7b"],
        ActionKind::BothGradients => ["#6b7d14", "#86983a"],
        ActionKind::MeasuredGradient => ["#0e7490", "#3391a9"],
        ActionKind::BothMeasured => ["#9d5c8f", "#b27ba6"],
        ActionKind::Share => ["#8a5a3c", "#a37657"],
        ActionKind::Norm => ["#64748b", "#8090a5"],
        ActionKind::Update => ["#334155", "#536275"],
    };
    shades[usize::from(!step.is_multiple_of(2))]
}
