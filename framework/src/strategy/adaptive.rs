//! The adaptive strategy: widths that grow where gradients disagree.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Adapt, GroupSize, Strategy, WindowSettings};
use crate::{
    Error, Result,
    plan::{Blocks, GradientPlan, PlanPhase, PlanSchedule},
};

/// A strategy that begins narrow, and widens each stage whose gradient disagrees with that of the next loss.
///
/// In the steps divisible by `every`, each stage that may still be widened also computes the parameter gradient of the next loss: the one after the
/// last of its window. It computes the cosine between that and the gradient that it follows. A stage whose mean cosine over its last `window`
/// measurements is below `below` is widened by one from the next measuring step on, and begins a new window. Stages never get narrower.
///
/// A stage follows the last loss of its window, or the mean of all of them ([`Self::mean`]; `strategy.follow = "mean"`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Adaptive {
    /// Stages measure in the steps divisible by this.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub every: u64,
    /// The number of measurements over which the mean is taken.
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub window: usize,
    /// The mean cosine below which a stage is widened.
    pub below: f64,
    /// The width that every stage begins with.
    #[serde(default = "one")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub width: usize,
    /// The width beyond which no stage is widened; by default the number of stages, or of blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
    pub max_width: Option<usize>,
}

fn one() -> usize {
    1
}

/// The decisions and the memory of an [`Adaptive`] strategy; `strategy.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveState {
    /// The width of each stage.
    pub widths: Vec<usize>,
    /// The changes that led to these widths.
    pub changes: Vec<Widened>,
    /// The latest cosines of each stage, since it was last widened.
    pub windows: Vec<Vec<f64>>,
    /// The last step that was measured.
    pub measured: Option<u64>,
    /// Whether stages follow the mean of their windows.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mean: bool,
    /// The stages in a block.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub group: usize,
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_one(value: &usize) -> bool {
    *value == 1
}

/// The widening of one stage by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Widened {
    /// The first step with the new width.
    pub step: u64,
    /// The stage.
    pub stage: usize,
    /// Its new width.
    pub width: usize,
    /// The mean cosine that led to it.
    pub cosine: f64,
}

impl Adaptive {
    /// Returns the strategy with the same rule, in which every stage follows the mean of all losses in its window.
    pub fn mean(self) -> AdaptiveWindows {
        self.windows().mean()
    }

    /// Returns the strategy with the same rule for blocks of `stages` stages ([`Interlock::group`](super::Interlock::group)): widths count blocks.
    pub fn group(self, stages: usize) -> AdaptiveWindows {
        self.windows().group(stages)
    }

    fn windows(self) -> AdaptiveWindows {
        self.in_windows(WindowSettings::default())
    }

    pub(super) fn in_windows(self, settings: WindowSettings) -> AdaptiveWindows {
        AdaptiveWindows { rule: self, settings }
    }
}

/// An [`Adaptive`] rule for other windows than those of single stages that follow their last loss.
#[derive(Clone, Debug)]
pub struct AdaptiveWindows {
    rule: Adaptive,
    settings: WindowSettings,
}

impl AdaptiveWindows {
    /// Makes every stage follow the mean of all losses in its window.
    #[must_use]
    pub fn mean(self) -> Self {
        Self { settings: WindowSettings { mean: true, ..self.settings }, ..self }
    }

    /// Puts the stages into blocks of this many; widths count blocks.
    #[must_use]
    pub fn group(self, stages: usize) -> Self {
        Self { settings: WindowSettings { group: GroupSize::Of(stages), ..self.settings }, ..self }
    }

    fn validate(&self, stages: usize) -> Result<Blocks> {
        let refuse = |key: &str, problem: String, right: &str| {
            Err(Error::invalid(format!("strategy.adaptive.{key}"), problem, right))
        };
        let rule = &self.rule;
        if rule.every == 0 {
            return refuse("every", "0".to_owned(), "use 1 or more");
        }
        if rule.window == 0 {
            return refuse("window", "0".to_owned(), "use 1 or more");
        }
        if !rule.below.is_finite() {
            return refuse("below", rule.below.to_string(), "use a number; cosines are -1 to 1");
        }
        let blocks = self.settings.blocks(stages)?;
        let count = blocks.count();
        let of = if blocks.group == 1 { format!("{stages} stages") } else { format!("{count} blocks") };
        let widths = || format!("widths are 1 (local) to {count} (end-to-end)");
        let max = rule.max_width.unwrap_or(count);
        if rule.width == 0 || rule.width > count {
            return refuse("width", format!("width {} of {of}", rule.width), &widths());
        }
        if max < rule.width || max > count {
            return refuse("max_width", format!("width {max} of {of}, from width {} on", rule.width), &widths());
        }
        Ok(blocks)
    }

    fn widening(&self, stages: usize) -> Result<Widening> {
        let blocks = self.validate(stages)?;
        let state = AdaptiveState {
            widths: vec![self.rule.width; stages],
            changes: Vec::new(),
            windows: vec![Vec::new(); stages],
            measured: None,
            mean: self.settings.mean,
            group: blocks.group,
        };
        let max_width = self.rule.max_width.unwrap_or_else(|| blocks.count());
        Ok(Widening { windows: self.clone(), blocks, max_width, state })
    }
}

impl Strategy for Adaptive {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        self.clone().windows().plan(stages)
    }

    fn plans(&self, stages: usize) -> Result<PlanSchedule> {
        self.clone().windows().plans(stages)
    }

    fn adapt(&self, stages: usize) -> Result<Option<Box<dyn Adapt>>> {
        self.clone().windows().adapt(stages)
    }
}

impl Strategy for AdaptiveWindows {
    fn plan(&self, stages: usize) -> Result<GradientPlan> {
        self.widening(stages)?.plan()
    }

    fn plans(&self, stages: usize) -> Result<PlanSchedule> {
        PlanSchedule::new(vec![self.widening(stages)?.phase(0)?])
    }

    fn adapt(&self, stages: usize) -> Result<Option<Box<dyn Adapt>>> {
        Ok(Some(Box::new(self.widening(stages)?)))
    }
}

/// The part of an [`Adaptive`] strategy that runs.
#[derive(Debug)]
struct Widening {
    windows: AdaptiveWindows,
    blocks: Blocks,
    max_width: usize,
    state: AdaptiveState,
}

impl Widening {
    /// Returns the plan of the present widths.
    fn plan(&self) -> Result<GradientPlan> {
        let window = |&width: &usize| self.windows.settings.window(width);
        GradientPlan::of_windows(self.blocks.group, &self.state.widths.iter().map(window).collect::<Vec<_>>())
    }

    /// Returns the first loss after the window of stage `k`, if the stage may be widened to it.
    fn next_loss(&self, k: usize) -> Option<usize> {
        let width = self.state.widths[k];
        let next = self.blocks.of(k) + width;
        (width < self.max_width && next < self.blocks.count()).then(|| self.blocks.last_stage(next))
    }

    /// Returns the plans of the present widths, from a step on.
    fn phase(&self, from_step: u64) -> Result<PlanPhase> {
        let plan = self.plan()?;
        let measures: Vec<_> = (0..plan.stages()).map(|k| self.next_loss(k)).collect();
        let every = match measures.iter().any(Option::is_some) {
            true => Some((self.windows.rule.every, Arc::new(plan.clone().measuring(measures)?))),
            false => None,
        };
        Ok(PlanPhase { from_step, plan: Arc::new(plan), every })
    }

    /// Whether some stage may still be widened.
    fn goes_on(&self) -> bool {
        (0..self.blocks.stages).any(|k| self.next_loss(k).is_some())
    }
}

impl Adapt for Widening {
    fn may_need(&self, k: usize) -> bool {
        // By the last loss of the window, the stages of block b-width+1 follow the loss of block b at the beginning, and upstream stages may follow it
        // later. By the mean, the stages of block b follow it from the beginning.
        let block = self.blocks.of(k);
        self.blocks.last_stage(block) == k && (self.windows.settings.mean || block + 1 >= self.windows.rule.width)
    }

    fn known_until(&self) -> u64 {
        let Self { windows: AdaptiveWindows { rule: Adaptive { every, .. }, .. }, state, .. } = self;
        match state.measured {
            _ if !self.goes_on() => u64::MAX,
            None => *every,
            Some(step) => step.saturating_add(every.saturating_mul(2)),
        }
    }

    fn observe(&mut self, step: u64, alignments: &[Option<f64>]) -> Result<Option<PlanPhase>> {
        if !self.goes_on() || !step.is_multiple_of(self.windows.rule.every) {
            return Ok(None);
        }
        let (rule, state) = (&self.windows.rule, &mut self.state);
        let from_step = step.saturating_add(rule.every);
        state.measured = Some(step);
        let changes = state.changes.len();
        for (stage, cosine) in alignments.iter().enumerate().filter_map(|(k, cosine)| Some((k, (*cosine)?))) {
            let window = &mut state.windows[stage];
            window.push(cosine);
            if window.len() < rule.window {
                continue;
            }
            window.drain(..window.len() - rule.window);
            let cosine = window.iter().sum::<f64>() / rule.window as f64;
            if cosine < rule.below {
                window.clear();
                state.widths[stage] += 1;
                state.changes.push(Widened { step: from_step, stage, width: state.widths[stage], cosine });
            }
        }
        match state.changes.len() > changes {
            true => self.phase(from_step).map(Some),
            false => Ok(None),
        }
    }

    fn state(&self) -> Result<Value> {
        serde_json::to_value(&self.state)
            .map_err(|e| Error::invalid("strategy state", e.to_string(), "this is a defect; please report it"))
    }

    fn restore(&mut self, state: &Value) -> Result<PlanSchedule> {
        let refuse = |problem: String| {
            let right = "give the state of an adaptive strategy with the same widths and as many stages";
            Err(Error::invalid("strategy state", problem, right))
        };
        let stages = self.state.widths.len();
        let state: AdaptiveState = match serde_json::from_value(state.clone()) {
            Ok(state) => state,
            Err(error) => return refuse(error.to_string()),
        };
        if state.widths.len() != stages || state.windows.len() != stages {
            return refuse(format!("it is of {} stages, not {stages}", state.widths.len()));
        }
        if (state.mean, state.group) != (self.state.mean, self.state.group) {
            let says = |state: &AdaptiveState| {
                let follow = if state.mean { "the mean" } else { "the last loss" };
                format!("groups of {} and follow {follow} of their windows", state.group)
            };
            return refuse(format!("its stages form {}, not {}", says(&state), says(&self.state)));
        }
        // Repeats the changes from the beginning.
        let mut again = self.windows.widening(stages)?;
        let mut plans = PlanSchedule::new(vec![again.phase(0)?])?;
        for change in &state.changes {
            match again.state.widths.get_mut(change.stage) {
                Some(width) if *width + 1 == change.width && change.width <= again.max_width => *width += 1,
                _ => return refuse(format!("it widens stage {} to {}", change.stage, change.width)),
            }
            plans.change(again.phase(change.step)?)?;
        }
        if again.state.widths != state.widths {
            return refuse(format!("its changes lead to widths {:?}, not {:?}", again.state.widths, state.widths));
        }
        self.state = state;
        Ok(plans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::Plans;

    fn rule() -> Adaptive {
        Adaptive { every: 3, window: 2, below: 0.5, width: 1, max_width: None }
    }

    fn follows(plans: &Plans, step: u64) -> Vec<usize> {
        (0..plans.stages()).map(|k| plans.at(step).farthest(k)).collect()
    }

    fn measures(plans: &Plans, step: u64) -> Vec<Option<usize>> {
        (0..plans.stages()).map(|k| plans.at(step).measures(k)).collect()
    }

    #[test]
    fn a_stage_is_widened_when_its_window_is_full_and_low() {
        let mut plans = Plans::of(&rule(), 3).unwrap();
        assert_eq!((measures(&plans, 0), measures(&plans, 1)), (vec![Some(1), Some(2), None], vec![None; 3]));
        assert_eq!(plans.known_until(), 3);
        assert!(plans.observe(0, &[Some(-1.0), Some(0.9), None]).unwrap().is_none());
        assert_eq!(plans.known_until(), 6);
        for step in [1, 2] {
            assert!(plans.observe(step, &[None; 3]).unwrap().is_none());
        }
        // Means 0 and 0.85: stage 0 is widened, from the next measuring step on.
        let change = plans.observe(3, &[Some(1.0), Some(0.8), None]).unwrap().unwrap();
        assert_eq!((change.from_step, plans.known_until()), (6, 9));
        assert_eq!((follows(&plans, 5), follows(&plans, 6)), (vec![0, 1, 2], vec![1, 1, 2]));
        assert_eq!(measures(&plans, 6), [Some(2), Some(2), None]);
        // Its window begins anew; the other stage's goes on: 0.8 and 0.1 are below 0.5 on average.
        plans.observe(6, &[Some(-1.0), Some(0.1), None]).unwrap().unwrap();
        assert_eq!(follows(&plans, 9), [1, 2, 2]);
        plans.observe(9, &[Some(-1.0), None, None]).unwrap().unwrap();
        assert_eq!(follows(&plans, 12), [2, 2, 2]);
        // There is nothing left to widen.
        assert_eq!((measures(&plans, 12), plans.known_until()), (vec![None; 3], u64::MAX));
        let state: AdaptiveState = serde_json::from_value(plans.state().unwrap().unwrap()).unwrap();
        assert_eq!((state.widths, state.windows), (vec![3, 2, 1], vec![vec![]; 3]));
        let changes: Vec<_> = state.changes.iter().map(|c| (c.step, c.stage, c.width, c.cosine)).collect();
        assert_eq!(changes, [(6, 0, 2, 0.0), (9, 1, 2, 0.45), (12, 0, 3, -1.0)]);
    }

    #[test]
    fn a_measurement_that_failed_does_not_count_and_widths_have_a_limit() {
        let rule = Adaptive { window: 1, width: 2, max_width: Some(2), ..rule() };
        let plans = Plans::of(&rule, 4).unwrap();
        assert_eq!((plans.known_until(), plans.at(0).measures_any()), (u64::MAX, false));
        let rule = Adaptive { max_width: Some(3), ..rule };
        let mut plans = Plans::of(&rule, 4).unwrap();
        assert_eq!([0, 1, 2, 3].map(|k| plans.may_need(k)), [false, true, true, true]);
        assert_eq!(measures(&plans, 0), [Some(2), Some(3), None, None]);
        assert!(plans.observe(0, &[None; 4]).unwrap().is_none());
        plans.observe(3, &[Some(-1.0), Some(-1.0), None, None]).unwrap().unwrap();
        assert_eq!((follows(&plans, 6), measures(&plans, 6)), (vec![2, 3, 3, 3], vec![None; 4]));
    }

    #[test]
    fn what_is_restored_goes_on_as_the_original_would() {
        goes_on(&Adaptive { every: 2, window: 3, ..rule() }, [true; 5]);
        goes_on(&Adaptive { every: 2, window: 3, width: 2, ..rule() }, [false, true, false, true, false]);
    }

    fn goes_on(rule: &Adaptive, heads: [bool; 5]) {
        let plans = || Plans::of(rule, 5).unwrap().moved_to_heads(heads.to_vec()).unwrap();
        // Cosines that make stages widen at different steps.
        let cosines = |plans: &Plans, step: u64| -> Vec<Option<f64>> {
            let cosine = |k: usize| ((step * 7 + k as u64 * 5) % 11) as f64 / 10.0;
            (0..5).map(|k| plans.at(step).measures(k).map(|_| cosine(k))).collect()
        };
        for saved_after in 0..60 {
            let mut original = plans();
            for step in 0..saved_after {
                original.observe(step, &cosines(&original, step)).unwrap();
            }
            let text = original.state().unwrap().unwrap().to_string();
            let mut restored = plans();
            restored.restore(&serde_json::from_str(&text).unwrap()).unwrap();
            for step in saved_after..80 {
                assert_eq!(original.known_until(), restored.known_until());
                assert_eq!(original.at(step), restored.at(step));
                let measured = cosines(&original, step);
                assert_eq!(original.observe(step, &measured).unwrap(), restored.observe(step, &measured).unwrap());
            }
            assert_eq!(original.schedule(), restored.schedule());
            assert_eq!(original.state().unwrap(), restored.state().unwrap());
            assert!(original.schedule().phases().len() > 3);
        }
    }

    #[test]
    fn another_strategys_state_is_refused() {
        let mut plans = Plans::of(&rule(), 2).unwrap();
        let mut refused = |state: &str, word: &str| {
            let error = plans.restore(&serde_json::from_str(state).unwrap()).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(word), "{error}");
        };
        refused("{}", "missing field");
        let mean = r#"{"widths": [1, 1], "changes": [], "windows": [[], []], "measured": null, "mean": true}"#;
        refused(mean, "groups of 1 and follow the mean of their windows, not groups of 1 and follow the last loss");
        refused(r#"{"widths": [1], "changes": [], "windows": [[]], "measured": null}"#, "of 1 stages, not 2");
        refused(r#"{"widths": [2, 1], "changes": [], "windows": [[], []], "measured": 3}"#, "lead to widths [1, 1]");
        let skips = r#"{"step": 3, "stage": 0, "width": 3, "cosine": 0.0}"#;
        refused(
            &format!(r#"{{"widths": [3, 1], "changes": [{skips}], "windows": [[], []], "measured": 3}}"#),
            "widens stage 0 to 3",
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |rule: Adaptive, words: &str| {
            let error = Plans::of(&rule, 3).unwrap_err();
            assert!(error.is_refusal() && error.to_string().contains(words), "{error}");
        };
        refused(Adaptive { every: 0, ..rule() }, "strategy.adaptive.every: 0");
        refused(Adaptive { window: 0, ..rule() }, "strategy.adaptive.window: 0");
        refused(Adaptive { below: f64::NAN, ..rule() }, "strategy.adaptive.below: NaN");
        refused(Adaptive { width: 0, ..rule() }, "strategy.adaptive.width: width 0 of 3 stages");
        refused(Adaptive { width: 4, ..rule() }, "1 (local) to 3");
        refused(Adaptive { max_width: Some(4), ..rule() }, "strategy.adaptive.max_width: width 4");
        refused(Adaptive { width: 2, max_width: Some(1), ..rule() }, "from width 2 on");
    }
}
