//! What actors record of a run is what the plan demands, in an order that can be, and recording changes nothing.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use candle_core::Tensor;
use common::{Perceptron, Spiral};
use interlock::{
    ClipConfig, ClipScope, GradientPlan, Interlock, Strategy, Trainer, TrainerBuilder,
    tools::{
        schedule::{Action, PolicyName},
        timeline::{Span, Timeline},
    },
};

const STAGES: usize = 4;
const MICROS: usize = 3;
const STEPS: u64 = 5;

fn builder(policy: PolicyName, strategy: Interlock) -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: STAGES, fault: None })
        .stages(STAGES)
        .strategy(strategy)
        .probes()
        .clip(ClipConfig { max_norm: 0.1, scope: ClipScope::Global })
        .policy(policy)
        .micro_batches(MICROS)
        .batch_size(9)
        .eval_every(2)
        .steps(STEPS)
}

fn run(builder: TrainerBuilder) -> (interlock::Weights, Option<Timeline>) {
    let (train, validation) = (Spiral { examples: 60 }, Spiral { examples: 20 });
    let mut trainer = builder.build().unwrap();
    trainer.fit((train, validation)).unwrap();
    (trainer.snapshot().unwrap(), trainer.timeline())
}

/// What a stage does in a step, sorted; `true` marks a gradient of the input, `false` one of the parameters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Work {
    forwards: Vec<usize>,
    heads: Vec<(usize, bool)>,
    backward_passes: Vec<(usize, usize, bool)>,
    sums: Vec<usize>,
    norms: usize,
    updates: usize,
}

fn demanded(plan: &GradientPlan, k: usize) -> Work {
    let mut backward_passes = Vec::new();
    for micro in 0..MICROS {
        for &loss in plan.wants(k) {
            let wants = plan.gradients(k, loss);
            backward_passes.extend(
                [(wants.parameters, false), (wants.input, true)]
                    .into_iter()
                    .filter_map(|(wanted, input)| wanted.then_some((micro, loss, input))),
            );
        }
    }
    backward_passes.sort_unstable();
    let has_head = plan.may_carry_head(k);
    let heads = (0..MICROS).filter(|_| has_head).map(|micro| (micro, plan.is_needed(k))).collect();
    let sums = (0..MICROS).filter(|_| !plan.added_up(k).is_empty()).collect();
    Work { forwards: (0..MICROS).collect(), heads, backward_passes, sums, norms: 1, updates: 1 }
}

fn recorded<'a>(spans: impl Iterator<Item = &'a Span>) -> Work {
    let mut work = Work::default();
    for span in spans {
        assert_eq!(work.updates, 0, "something was done for a step after its update");
        match span.action {
            Action::Forward(micro_batch) => work.forwards.push(micro_batch.index),
            Action::Head { micro_batch, output_gradient } => work.heads.push((micro_batch.index, output_gradient)),
            Action::Backward { micro_batch, loss, wants, .. } => {
                let parts = [(wants.parameters, false), (wants.input, true)];
                let done = parts.into_iter().filter(|(wanted, _)| *wanted);
                work.backward_passes.extend(done.map(|(_, input)| (micro_batch.index, loss, input)));
            }
            Action::BackwardSum { micro_batch, .. } => work.sums.push(micro_batch.index),
            Action::ShareGradients(_) => unreachable!("there are no replicas"),
            Action::ShareNorm(_) => work.norms += 1,
            Action::Update(_) => work.updates += 1,
        }
    }
    work.backward_passes.sort_unstable();
    work
}

#[test]
fn a_run_records_what_the_plan_demands() {
    for policy in [PolicyName::FillDrain, PolicyName::OneFOneB, PolicyName::Interlock] {
        let widths = [1, 2, STAGES].map(Interlock::width);
        let weighted = [Interlock::width(2).mean(), Interlock::width(3).mean(), Interlock::weights([0.0, 0.5])];
        let groups = [Interlock::width(1).group(2), Interlock::width(2).group(2).mean(), Interlock::width(2).group(3)];
        for strategy in widths.into_iter().chain(weighted).chain(groups) {
            let plan = strategy.plan(STAGES).unwrap();
            let (_, timeline) = run(builder(policy, strategy.clone()).record(3));
            let Timeline { stages, spans } = timeline.unwrap();
            assert_eq!(stages, STAGES);
            assert!(spans.is_sorted_by(|a, b| a.end <= b.end));
            assert_eq!(spans.iter().map(|span| span.start).reduce(f64::min), Some(0.0));
            for k in 0..STAGES {
                let of: Vec<&Span> = spans.iter().filter(|span| span.stage == k).collect();
                assert!(of.iter().all(|span| span.start <= span.end && span.action.trains()));
                assert!(of.is_sorted_by(|a, b| a.end <= b.start), "stage {k} did two things at once");
                let steps: Vec<u64> = of.iter().map(|span| span.action.step()).collect();
                assert!(steps.is_sorted() && steps.first() == Some(&2) && steps.last() == Some(&4), "{steps:?}");
                for step in 2..STEPS {
                    let work = recorded(of.iter().copied().filter(|span| span.action.step() == step));
                    assert_eq!(work, demanded(&plan, k), "stage {k}, step {step}, {policy:?}, {strategy:?}");
                }
            }
        }
    }
}

/// All stages count from the same moment: nothing is used before it has been made.
#[test]
fn what_crosses_a_boundary_is_used_after_it_was_made() {
    for strategy in [Interlock::width(3), Interlock::width(2).mean(), Interlock::width(2).mean().group(2)] {
        check_crossings(&strategy);
    }
}

fn check_crossings(strategy: &Interlock) {
    let plan = strategy.plan(STAGES).unwrap();
    let (_, timeline) = run(builder(PolicyName::Interlock, strategy.clone()).record(STEPS));
    let spans = timeline.unwrap().spans;
    let mut crossed = 0;
    for from in &spans {
        let needs = |to: &&Span| match (from.action, to.action) {
            (Action::Forward(made), Action::Forward(used)) => to.stage == from.stage + 1 && made == used,
            (
                Action::Backward { micro_batch: made, loss: a, wants, .. },
                Action::Backward { micro_batch: used, loss: b, .. },
            ) => to.stage + 1 == from.stage && (made, a) == (used, b) && wants.input,
            (
                Action::Backward { micro_batch: made, loss, wants, .. },
                Action::BackwardSum { micro_batch: used, .. },
            ) => {
                let is_added_up = plan.added_up(to.stage).iter().any(|&(added, _)| added == loss);
                to.stage + 1 == from.stage && made == used && wants.input && is_added_up
            }
            _ => false,
        };
        for to in spans.iter().filter(needs) {
            assert!(from.end <= to.start, "{from:?} {to:?}");
            crossed += 1;
        }
    }
    let gradients: usize = (0..STAGES - 1)
        .map(|k| {
            let parts = |&loss: &usize| {
                let wants = plan.gradients(k, loss);
                let is_added_up = plan.added_up(k).iter().any(|&(added, _)| added == loss);
                usize::from(wants.input) + usize::from(wants.parameters) + usize::from(is_added_up)
            };
            plan.losses_sent_back(k + 1).iter().map(parts).sum::<usize>()
        })
        .sum();
    assert_eq!(crossed, (STAGES - 1 + gradients) * MICROS * STEPS as usize);
}

#[test]
fn recording_changes_nothing_and_is_off_unless_asked_for() {
    let (plain, none) = run(builder(PolicyName::Interlock, Interlock::width(2)));
    let (noted, some) = run(builder(PolicyName::Interlock, Interlock::width(2)).record(100));
    assert!(none.is_none());
    assert_eq!(some.unwrap().spans.iter().filter(|span| matches!(span.action, Action::Update(_))).count(), 4 * 5);
    let bits = |tensor: &Tensor| -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
    };
    assert_eq!(plain.len(), noted.len());
    assert!(plain.iter().zip(&noted).all(|((n, a), (m, b))| n == m && bits(a) == bits(b)));
    let refused = builder(PolicyName::Interlock, Interlock::width(2)).record(0).layout().err().unwrap().to_string();
    assert!(refused.contains("record") && refused.contains("1 or more"), "{refused}");
}
