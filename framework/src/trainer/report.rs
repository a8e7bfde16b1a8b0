//! The report of a fit.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Trainer, trained::Trained};
use crate::{
    Error, GradientPlan, Result, Score,
    plan::{PlanPhase, losses_text},
};

/// One head's score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadScore {
    /// The stage whose head it is.
    pub stage: usize,
    /// Its score.
    pub score: Score,
}

/// The scores of every head on a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    heads: Vec<HeadScore>,
    seconds: f64,
}

impl Evaluation {
    pub(super) fn new(scores: &[Option<Score>], time: Duration) -> Result<Self> {
        let heads: Vec<_> = scores
            .iter()
            .enumerate()
            .filter_map(|(stage, score)| score.map(|score| HeadScore { stage, score }))
            .collect();
        if heads.is_empty() {
            return Err(Error::Internal("no stage scored anything".to_owned()));
        }
        Ok(Self { heads, seconds: time.as_secs_f64() })
    }

    /// The evaluation with these scores, which took `seconds`.
    ///
    /// # Errors
    /// If there is no score.
    pub(super) fn restored(heads: Vec<HeadScore>, seconds: f64) -> Result<Self> {
        match heads.is_empty() {
            true => {
                Err(Error::invalid("trainer state", "its best evaluation has no scores", "give it as it was saved"))
            }
            false => Ok(Self { heads, seconds }),
        }
    }

    /// Returns the score of every head, in order of stages. The last stage's is the last.
    pub fn heads(&self) -> &[HeadScore] {
        &self.heads
    }

    /// Returns the score of the head of stage `k`, if it has one.
    pub fn head(&self, k: usize) -> Option<&HeadScore> {
        self.heads.iter().find(|head| head.stage == k)
    }

    /// Returns the score of the last stage's head.
    pub fn last(&self) -> &HeadScore {
        &self.heads[self.heads.len() - 1]
    }

    /// Returns the wall time, in seconds.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

/// The final loss, with the measures that follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinalReport {
    /// The mean loss per target; none if nothing was scored, as in a run that was stopped before its first step.
    pub loss: Option<f64>,
    /// The fraction of targets predicted right; none if the loss does not count right predictions.
    pub accuracy: Option<f64>,
    /// `exp(loss)`; none if the loss does not count right predictions.
    pub perplexity: Option<f64>,
}

impl From<Score> for FinalReport {
    fn from(score: Score) -> Self {
        let perplexity = score.correct.map(|_| score.perplexity());
        Self { loss: (score.count > 0.0).then(|| score.mean_loss()), accuracy: score.accuracy(), perplexity }
    }
}

/// One stage of a [`Report`]. Losses and accuracies are null where there is no head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageReport {
    /// The stage, counted from 0.
    pub index: usize,
    /// Its device.
    pub device: String,
    /// The stage whose loss it followed at the end, the farthest of several; single steps with another plan do not count.
    pub follows: usize,
    /// The number of its units.
    pub units: usize,
    /// Trained elements of its main part.
    pub parameters: usize,
    /// Trained elements of its head.
    pub head_parameters: usize,
    /// Its head's mean loss at the final evaluation, or of the last training batch where there was none.
    pub loss: Option<f64>,
    /// Its head's accuracy, likewise.
    pub accuracy: Option<f64>,
    /// The share of the training time in which it computed.
    pub busy: f64,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestReport {
    /// Updates made before it.
    pub steps: u64,
    /// The last stage's scores.
    #[serde(flatten)]
    pub scores: FinalReport,
}

/// The report of a fit; `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The last stage's scores: at the final evaluation, or of the last training batch where there was none.
    #[serde(rename = "final")]
    pub final_scores: FinalReport,
    /// Whether `final` is the result of an evaluation on the validation set.
    pub evaluated: bool,
    /// Whether a [`Stopper`](super::Stopper) ended the run early.
    #[serde(default)]
    pub stopped: bool,
    /// The reason for which a callback, such as early stopping, ended the run early; none if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// The best evaluation, if it was kept.
    pub best: Option<BestReport>,
    /// Training examples per wall second, evaluations excluded.
    pub examples_per_second: f64,
    /// Wall seconds of training, evaluations excluded.
    pub train_seconds: f64,
    /// Optimizer steps since the model's first.
    pub steps: u64,
    /// The seed.
    pub seed: u64,
    /// Every stage.
    pub stages: Vec<StageReport>,
    /// The losses that each stage followed, by step.
    pub plans: Vec<PhaseReport>,
}

/// The losses that one stage follows: the number of each loss's stage, and its weight.
///
/// Reports of earlier versions name one loss alone; its weight is 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "FollowedForm")]
pub struct Followed(pub Vec<(usize, f64)>);

/// The forms in which a report names the losses that a stage follows.
#[derive(Deserialize)]
#[serde(untagged)]
enum FollowedForm {
    One(usize),
    Weighted(Vec<(usize, f64)>),
}

impl From<FollowedForm> for Followed {
    fn from(form: FollowedForm) -> Self {
        match form {
            FollowedForm::One(loss) => Self(vec![(loss, 1.0)]),
            FollowedForm::Weighted(losses) => Self(losses),
        }
    }
}

/// The losses in order; weights other than 1 follow their loss, rounded: `0:0.333 1:0.667`.
impl fmt::Display for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&losses_text(&self.0))
    }
}

impl Followed {
    /// Returns the losses that each stage of `plan` follows.
    pub fn of(plan: &GradientPlan) -> Vec<Self> {
        (0..plan.stages()).map(|k| Self(plan.follows(k).to_vec())).collect()
    }

    /// Returns the farthest stage whose loss is followed; none if there is none.
    pub fn farthest(&self) -> Option<usize> {
        self.0.iter().map(|&(loss, _)| loss).max()
    }
}

/// The losses that stages followed from one step on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// The first step.
    pub from_step: u64,
    /// The losses that each stage follows.
    pub follows: Vec<Followed>,
    /// The plan of single steps in between, if they have another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<EveryReport>,
}

/// Another plan for some steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EveryReport {
    /// The steps divisible by this number have it.
    pub steps: u64,
    /// The losses that each stage follows.
    pub follows: Vec<Followed>,
    /// The stage whose loss each stage measures, if any; empty where none does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measures: Vec<Option<usize>>,
}

impl From<&PlanPhase> for PhaseReport {
    fn from(phase: &PlanPhase) -> Self {
        let measures = |plan: &GradientPlan| match plan.measures_any() {
            true => (0..plan.stages()).map(|k| plan.measures(k)).collect(),
            false => Vec::new(),
        };
        let every = |(steps, plan): &(u64, Arc<GradientPlan>)| EveryReport {
            steps: *steps,
            follows: Followed::of(plan),
            measures: measures(plan),
        };
        Self { from_step: phase.from_step, follows: Followed::of(&phase.plan), every: phase.every.as_ref().map(every) }
    }
}

impl Report {
    pub(super) fn new(trainer: &Trainer, trained: &Trained, evaluation: Option<Evaluation>) -> Self {
        let seconds = trained.seconds();
        let score = |k: usize| match &evaluation {
            Some(evaluation) => evaluation.head(k).map(|head| head.score),
            None => trained.last.get(k).and_then(|stage| stage.score),
        };
        let plans = trainer.plans();
        // The plan of the last step made, not of the next one.
        let plan = &plans.phase_at(trainer.steps().saturating_sub(1)).plan;
        let stages = trainer
            .stages()
            .iter()
            .map(|built| StageReport {
                index: built.stage,
                device: built.device.clone(),
                follows: plan.farthest(built.stage),
                units: trainer.partition().units_per_stage()[built.stage],
                parameters: built.parameters,
                head_parameters: built.head_parameters,
                loss: score(built.stage).map(|s| s.mean_loss()),
                accuracy: score(built.stage).and_then(|s| s.accuracy()),
                busy: trained.busy.get(built.stage).map_or(0.0, |busy| busy / seconds.max(f64::MIN_POSITIVE)),
            })
            .collect();
        Self {
            final_scores: score(plan.stages() - 1).unwrap_or_default().into(),
            evaluated: evaluation.is_some(),
            stopped: trained.stopped,
            stop_reason: trained.stop_reason.clone(),
            best: trainer
                .best()
                .map(|best| BestReport { steps: best.steps, scores: best.evaluation.last().score.into() }),
            examples_per_second: if seconds > 0.0 { trained.examples as f64 / seconds } else { 0.0 },
            train_seconds: seconds,
            steps: trainer.steps(),
            seed: trainer.settings.seed,
            stages,
            plans: plans.phases().iter().map(PhaseReport::from).collect(),
        }
    }
}
