//! The windows of interlocking backpropagation: which losses a stage follows, by their distance from its own.

use crate::{Error, Result};

/// The losses that a stage follows, each with its weight, by distance: distance 0 is the loss of the stage's own block, distance 1 that of the next
/// one. A block is one stage by default ([`GradientPlan::of_windows`](super::GradientPlan::of_windows)).
#[derive(Clone, Debug, PartialEq)]
pub enum Window {
    /// The last loss of a window of this width, with weight 1: the rule of Gomez et al. (JMLR 23(171), 2022).
    Last(usize),
    /// The mean of all losses in a window of this width.
    Mean(usize),
    /// One weight for each distance from 0 on, at least one of them above 0. They need not add up to 1.
    Weights(Vec<f64>),
}

impl Window {
    /// Returns its width in blocks.
    pub fn width(&self) -> usize {
        match self {
            Self::Last(width) | Self::Mean(width) => *width,
            Self::Weights(weights) => weights.len(),
        }
    }

    /// Returns the weight of the distances `from` to `to`, the latter excluded.
    fn weight(&self, from: usize, to: usize) -> f64 {
        match self {
            Self::Last(width) => f64::from(u8::from((from..to).contains(&(width - 1)))),
            // Exactly 1 if these are all distances.
            Self::Mean(width) => (to.min(*width).saturating_sub(from)) as f64 / *width as f64,
            Self::Weights(weights) => weights.iter().take(to).skip(from).sum(),
        }
    }

    fn check_weights(&self, k: usize) -> Result<()> {
        let Self::Weights(weights) = self else { return Ok(()) };
        let refuse = |problem: String, remedy: &str| Err(Error::invalid("strategy.follow", problem, remedy));
        if let Some((distance, weight)) = weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
            return refuse(
                format!("weight {weight} at distance {distance}, for stage {k}"),
                "use finite weights of at least 0",
            );
        }
        if !weights.iter().any(|weight| *weight > 0.0) {
            return refuse(
                format!("no weight for stage {k} is above 0"),
                "give one weight for each distance, one of them above 0",
            );
        }
        Ok(())
    }
}

/// The division of `stages` stages into blocks of `group`; the last block may have fewer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Blocks {
    pub(crate) stages: usize,
    pub(crate) group: usize,
}

impl Blocks {
    /// # Errors
    /// If `group` is 0 or larger than the number of stages.
    pub(crate) fn new(stages: usize, group: usize) -> Result<Self> {
        if group == 0 || group > stages.max(1) {
            let problem = format!("blocks of {group} stages, for {stages}");
            return Err(Error::invalid("strategy.group", problem, format!("use 1 to {stages}")));
        }
        Ok(Self { stages, group })
    }

    /// The number of blocks.
    pub(crate) fn count(self) -> usize {
        self.stages.div_ceil(self.group)
    }

    /// The block of stage `k`.
    pub(crate) fn of(self, k: usize) -> usize {
        k / self.group
    }

    /// The last stage of a block, whose loss is the block's.
    pub(crate) fn last_stage(self, block: usize) -> usize {
        (self.group * (block + 1)).min(self.stages) - 1
    }

    /// Checks a width of stage `k` in blocks.
    ///
    /// # Errors
    /// If it is 0 or larger than the number of blocks.
    fn check_width(self, k: usize, window: &Window) -> Result<()> {
        let (width, blocks) = (window.width(), self.count());
        if (1..=blocks).contains(&width) {
            return Ok(());
        }
        let stages = self.stages;
        let (of, possible) = match self.group {
            1 => (format!("{stages}"), format!("widths are 1 (local) to {stages} (end-to-end)")),
            group => (
                format!("{stages}, in {blocks} blocks of {group}"),
                format!("widths count blocks: 1 (each by itself) to {blocks} (end-to-end)"),
            ),
        };
        Err(match window {
            Window::Weights(_) => Error::invalid(
                "strategy.follow",
                format!("{width} weights for stage {k} of {of}"),
                format!("give 1 to {blocks}, one for each distance"),
            ),
            _ => Error::invalid("strategy.width", format!("width {width} for stage {k} of {of}"), possible),
        })
    }
}

/// Returns the losses that each stage follows, each with its weight, nearest first.
pub(super) fn follows(group: usize, windows: &[Window]) -> Result<Vec<Vec<(usize, f64)>>> {
    if windows.is_empty() {
        return Ok(Vec::new());
    }
    let blocks = Blocks::new(windows.len(), group)?;
    let followed = |(k, window): (usize, &Window)| {
        blocks.check_width(k, window)?;
        window.check_weights(k)?;
        let own = blocks.of(k);
        let losses = (own..blocks.count()).map(|block| {
            // What reaches past the last block counts for it.
            let to = if block + 1 == blocks.count() { window.width().max(block - own + 1) } else { block - own + 1 };
            (blocks.last_stage(block), window.weight(block - own, to))
        });
        Ok(losses.filter(|(_, weight)| *weight > 0.0).collect())
    };
    windows.iter().enumerate().map(followed).collect()
}

#[cfg(test)]
mod tests {
    use crate::plan::{GradientPlan, Window, Window::*};

    fn follows(group: usize, stages: usize, window: Window) -> Vec<Vec<(usize, f64)>> {
        let plan = GradientPlan::of_windows(group, &vec![window; stages]).unwrap();
        (0..stages).map(|k| plan.follows(k).to_vec()).collect()
    }

    #[test]
    fn weights_that_reach_past_the_last_stage_count_for_its_loss() {
        assert_eq!(
            follows(1, 4, Mean(3)),
            [
                vec![(0, 1.0 / 3.0), (1, 1.0 / 3.0), (2, 1.0 / 3.0)],
                vec![(1, 1.0 / 3.0), (2, 1.0 / 3.0), (3, 1.0 / 3.0)],
                vec![(2, 1.0 / 3.0), (3, 2.0 / 3.0)],
                vec![(3, 1.0)],
            ]
        );
        assert_eq!(
            follows(1, 3, Weights(vec![0.25, 0.0, 0.5])),
            [vec![(0, 0.25), (2, 0.5)], vec![(1, 0.25), (2, 0.5)], vec![(2, 0.75)]]
        );
        assert_eq!(follows(1, 3, Last(2)), [vec![(1, 1.0)], vec![(2, 1.0)], vec![(2, 1.0)]]);
        // A mean over any width has weights of exactly 1 where one loss takes them all.
        for n in 1..50 {
            assert_eq!(follows(1, n, Mean(n))[n - 1], [(n - 1, 1.0)]);
        }
    }

    #[test]
    fn a_block_is_trained_by_the_loss_of_its_last_stage() {
        assert_eq!(
            follows(2, 5, Last(1)),
            [vec![(1, 1.0)], vec![(1, 1.0)], vec![(3, 1.0)], vec![(3, 1.0)], vec![(4, 1.0)]]
        );
        assert_eq!(
            follows(2, 4, Mean(2)),
            [vec![(1, 0.5), (3, 0.5)], vec![(1, 0.5), (3, 0.5)], vec![(3, 1.0)], vec![(3, 1.0)]]
        );
        assert_eq!(follows(4, 4, Last(1)), vec![vec![(3, 1.0)]; 4]);
        let plan = GradientPlan::of_windows(2, &vec![Last(1); 8]).unwrap();
        assert_eq!(plan.backward_passes(), 8);
        assert_eq!((0..8).filter(|&k| plan.is_needed(k)).collect::<Vec<_>>(), [1, 3, 5, 7]);
        assert_eq!((0..8).filter(|&k| plan.may_carry_head(k)).collect::<Vec<_>>(), [1, 3, 5, 7]);
        assert!([2, 4, 6].iter().all(|&k| plan.losses_sent_back(k).is_empty()));
        // Mixed widths say the same.
        let mixed = GradientPlan::of_widths(&[2, 1, 2, 1]).unwrap();
        let grouped = GradientPlan::of_windows(2, &vec![Last(1); 4]).unwrap();
        assert!((0..4).all(|k| mixed.follows(k) == grouped.follows(k)));
    }

    #[test]
    fn passes_messages_and_heads_of_means_by_hand() {
        let counts = |stages: usize, window: Window| {
            let plan = GradientPlan::of_windows(1, &vec![window; stages]).unwrap();
            let messages: usize = (0..stages).map(|k| plan.losses_sent_back(k).len()).sum();
            let heads = (0..stages - 1).filter(|&k| plan.is_needed(k)).count();
            (plan.backward_passes(), messages, heads)
        };
        assert_eq!([counts(4, Mean(3)), counts(4, Last(3))], [(8, 5, 3), (6, 4, 1)]);
        assert_eq!([counts(8, Mean(5)), counts(8, Last(5))], [(29, 22, 7), (20, 16, 3)]);
        // At width 2 only head 0 comes on top.
        assert_eq!([counts(4, Mean(2)), counts(4, Last(2))], [(6, 3, 3), (6, 3, 2)]);
    }

    #[test]
    fn windows_that_cannot_be_used_are_refused() {
        let refused =
            |group, window: Window| GradientPlan::of_windows(group, &vec![window; 4]).unwrap_err().to_string();
        insta::assert_snapshot!(refused(0, Last(1)), @"strategy.group: blocks of 0 stages, for 4; use 1 to 4");
        insta::assert_snapshot!(refused(5, Last(1)), @"strategy.group: blocks of 5 stages, for 4; use 1 to 4");
        insta::assert_snapshot!(refused(2, Mean(3)), @"strategy.width: width 3 for stage 0 of 4, in 2 blocks of 2; widths count blocks: 1 (each by itself) to 2 (end-to-end)");
        insta::assert_snapshot!(refused(1, Weights(vec![0.2; 5])), @"strategy.follow: 5 weights for stage 0 of 4; give 1 to 4, one for each distance");
        insta::assert_snapshot!(refused(1, Weights(vec![])), @"strategy.follow: 0 weights for stage 0 of 4; give 1 to 4, one for each distance");
        insta::assert_snapshot!(refused(1, Weights(vec![0.0, 0.0])), @"strategy.follow: no weight for stage 0 is above 0; give one weight for each distance, one of them above 0");
        for weight in [-0.5, f64::NAN, f64::INFINITY] {
            assert!(
                refused(1, Weights(vec![1.0, weight])).contains(&format!("weight {weight} at distance 1, for stage 0"))
            );
        }
    }
}
