//! The critical path: the chain of causes that determines the time of a step.

use std::{collections::HashMap, fmt};

use crate::{
    plan::Wants,
    schedule::{Action, Event},
    timeline::Span,
};

/// The cause that let an action begin: the last one to occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The beginning of the simulation.
    Start,
    /// The stage had finished this action.
    Own(usize),
    /// A message had arrived, sent when this action was done.
    Message(usize, Event),
    /// This action had freed the device or the cores.
    Device(usize),
}

/// The actions or transfers of one kind on the critical path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Segment {
    /// The kind, in words.
    pub kind: &'static str,
    /// How many there are in a step; not a whole number if the period is longer than a step.
    pub count: f64,
    /// Their seconds in a step.
    pub seconds: f64,
}

/// The reason why a step takes as long as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottleneck {
    /// One stage works all the time.
    Work {
        /// The stage.
        stage: usize,
    },
    /// Activations go forward and gradients back through some stages, which wait for each other.
    Chain {
        /// The first of them.
        first: usize,
        /// The last of them.
        last: usize,
    },
    /// A stage waits for a credit of the next stage.
    InFlight {
        /// The stage that waits.
        stage: usize,
    },
    /// Every stage waits for the norm of all gradients.
    GlobalNorm,
    /// Stages wait until others free the device or the cores that they share.
    Device,
}

/// The critical path: a delay of anything on it delays all later steps.
#[derive(Clone, Debug, PartialEq)]
pub struct CriticalPath {
    /// Why the step takes as long as it does.
    pub bottleneck: Bottleneck,
    /// The parts of the path, per step, in the order of the kinds.
    pub segments: Vec<Segment>,
    /// Its actions, as indices into the timeline's spans, latest first. The path repeats: the cause of its last action is its first action, `steps`
    /// steps earlier. If steps never repeat, the path goes back to the beginning of the simulation.
    pub path: Vec<usize>,
    /// The number of steps that it goes through.
    pub steps: u64,
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work { stage } => write!(f, "stage {stage} has work all the time"),
            Self::Chain { first, last } => {
                write!(f, "the way forward and back through stages {first} to {last}")
            }
            Self::InFlight { stage } => {
                write!(f, "stage {stage} waits for a credit of stage {}; a larger in_flight may help", stage + 1)
            }
            Self::GlobalNorm => f.write_str("all stages wait for the norm of all gradients (clip.scope = \"global\")"),
            Self::Device => f.write_str("stages wait until other stages free the device or the cores that they share"),
        }
    }
}

impl fmt::Display for CriticalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bottleneck)?;
        let words = |s: &Segment| format!("{} {:.1} ms", s.kind, 1e3 * s.seconds);
        let parts: Vec<String> = self.segments.iter().filter(|s| s.seconds > 0.0).map(words).collect();
        if !parts.is_empty() {
            write!(f, " ({})", parts.join(", "))?;
        }
        Ok(())
    }
}

fn kind(action: &Action) -> &'static str {
    match action {
        Action::Forward(_) => "forward",
        Action::Head { .. } => "head",
        Action::Backward { wants: Wants::INPUT, .. } => "input gradient",
        Action::Backward { wants: Wants::BOTH, .. } => "both gradients",
        Action::Backward { .. } | Action::BackwardSum { .. } => "parameter gradient",
        Action::ShareGradients(_) | Action::ShareNorm(_) => "norm",
        Action::Update(_) => "update",
    }
}

const KINDS: [&str; 8] =
    ["forward", "head", "input gradient", "parameter gradient", "both gradients", "norm", "update", "transfer"];

/// Goes back from the last update, from cause to cause, until an action occurs again a multiple of `period` steps earlier.
pub(super) fn find(spans: &[Span], causes: &[Cause], period: u64) -> CriticalPath {
    let mut path = Vec::new();
    let mut seen = HashMap::new();
    let mut at = (0..spans.len()).rev().find(|&at| matches!(spans[at].action, Action::Update(_)));
    while let Some(span) = at {
        let Span { stage, action, .. } = spans[span];
        let same = (stage, action.of_step(action.step() % period));
        if let Some((begin, step)) = seen.insert(same, (path.len(), action.step())) {
            return describe(spans, causes, path.split_off(begin), step - action.step());
        }
        path.push(span);
        at = match causes[span] {
            Cause::Start => None,
            Cause::Own(before) | Cause::Message(before, _) | Cause::Device(before) => Some(before),
        };
    }
    let steps = path.first().map_or(0, |&last| spans[last].action.step() + 1);
    describe(spans, causes, path, steps.max(1))
}

/// Sums up `path`, which goes through `steps` steps.
fn describe(spans: &[Span], causes: &[Cause], path: Vec<usize>, steps: u64) -> CriticalPath {
    let share = 1.0 / steps as f64;
    let mut sums = KINDS.map(|kind| Segment { kind, count: 0.0, seconds: 0.0 });
    let mut add = |kind: &str, seconds: f64| {
        for sum in sums.iter_mut().filter(|sum| sum.kind == kind) {
            sum.count += share;
            sum.seconds += seconds * share;
        }
    };
    let (mut norm, mut credit, mut device) = (false, None, false);
    for &at in &path {
        let span = spans[at];
        add(kind(&span.action), span.end - span.start);
        match causes[at] {
            Cause::Message(before, event) => {
                let waited = span.start - spans[before].end;
                if waited > 0.0 {
                    add("transfer", waited);
                }
                norm |= matches!(event, Event::Norm(_));
                if matches!(event, Event::Credit) {
                    credit = Some(span.stage);
                }
            }
            Cause::Device(before) => device |= spans[before].stage != span.stage,
            Cause::Own(_) | Cause::Start => {}
        }
    }
    let stages = || path.iter().map(|&at| spans[at].stage);
    let (first, last) = (stages().min().unwrap_or(0), stages().max().unwrap_or(0));
    let bottleneck = match credit {
        _ if norm => Bottleneck::GlobalNorm,
        _ if device => Bottleneck::Device,
        Some(stage) => Bottleneck::InFlight { stage },
        None if first == last => Bottleneck::Work { stage: first },
        None => Bottleneck::Chain { first, last },
    };
    CriticalPath { bottleneck, segments: sums.into_iter().filter(|sum| sum.count > 0.0).collect(), path, steps }
}
