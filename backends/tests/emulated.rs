//! Emulated devices, used by real actors.

use candle_core::{DType, Device, Tensor};
use interlock::{
    Batch, Dataset, EndToEnd, Interlock, Key, MeanSquaredError, ModelSpec, Sequential, Strategy, Trainer,
    TrainerBuilder, Unit,
    tools::{
        schedule::ActionKind,
        timeline::{Span, Timeline},
    },
};
use interlock_backends::Backends;

/// A model of this many units without parameters, with outputs of 1000 numbers for each example, and a head after each.
struct Units(usize);

fn unit() -> Unit {
    Unit::new("", [1000], |_| Ok(Sequential::default()))
}

impl ModelSpec for Units {
    fn units(&self) -> interlock::Result<Vec<Unit>> {
        Ok((0..self.0).map(|_| unit()).collect())
    }

    fn head(&self, _: usize, _: &str) -> interlock::Result<Unit> {
        Ok(unit())
    }
}

/// A data set of ones.
#[derive(Clone, Copy)]
struct Ones;

impl Dataset for Ones {
    fn len(&self) -> usize {
        64
    }

    fn batch(&self, numbers: &[usize], _: Option<Key>) -> interlock::Result<Batch> {
        let ones = Tensor::ones((numbers.len(), 1000), DType::F32, &Device::Cpu)?;
        Ok(Batch { inputs: ones.clone().into(), targets: ones })
    }
}

fn builder(name: &str, stages: usize, strategy: impl Strategy + 'static) -> TrainerBuilder {
    let device = Backends::default().open(name).expect("an emulated device");
    let builder = Trainer::builder(Units(stages)).stages(stages).strategy(strategy).devices([device]);
    builder.loss(MeanSquaredError).batch_size(1)
}

/// Runs `steps` steps. Returns the last stage's loss and the timeline of the last `recorded` steps.
fn run(builder: TrainerBuilder, steps: u64, recorded: u64) -> (f64, Timeline) {
    let mut trainer = builder.steps(steps).record(recorded).build().expect("a pipeline");
    let report = trainer.fit(Ones).expect("a run");
    (report.final_scores.loss.expect("a final loss"), trainer.timeline().expect("a recorded timeline"))
}

fn spans(timeline: &Timeline, stage: usize, kind: ActionKind) -> Vec<Span> {
    timeline.spans.iter().filter(|span| span.stage == stage && span.action.kind() == kind).copied().collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty());
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the median time from one update to the next, in seconds, of the slowest stage.
fn period(timeline: &Timeline) -> f64 {
    let of = |stage| {
        let updates = spans(timeline, stage, ActionKind::Update);
        median(updates.windows(2).map(|pair| pair[1].end - pair[0].end).collect())
    };
    (0..timeline.stages).map(of).fold(0.0, f64::max)
}

fn overlap(a: &Span, b: &Span) -> bool {
    a.start < b.end && b.start < a.end
}

/// Returns the average number of stages that work at the same time, between the last first update of a stage and the first last one.
fn working(timeline: &Timeline) -> f64 {
    let updates = |k| spans(timeline, k, ActionKind::Update);
    let begin = (0..timeline.stages).map(|k| updates(k)[0].end).fold(0.0, f64::max);
    let end = (0..timeline.stages).map(|k| updates(k).last().map_or(0.0, |last| last.end)).fold(f64::MAX, f64::min);
    assert!(begin < end, "record more steps: no time is common to all stages");
    timeline.busy(&(begin..end)).iter().sum()
}

/// Returns the timeline of the same actions one after the other, as if no two stages ever worked at the same time.
fn serial(timeline: &Timeline) -> Timeline {
    let mut spans = timeline.spans.clone();
    spans.sort_by(|a, b| a.start.total_cmp(&b.start));
    let mut now = 0.0;
    for span in &mut spans {
        let took = span.end - span.start;
        (span.start, span.end) = (now, now + took);
        now += took;
    }
    Timeline { spans, ..*timeline }
}

/// Checks that a step takes about as long with sixteen stages as with four, and that neighbouring stages work at the same time.
fn depth_costs_nothing(four: &Timeline, sixteen: &Timeline) -> Result<(), String> {
    let growth = period(sixteen) / period(four);
    if growth > 1.6 {
        return Err(format!("a step takes {growth} times as long with sixteen stages as with four"));
    }
    if working(sixteen) < 3.0 * working(four) {
        return Err(format!("{} of sixteen stages work at a time, {} of four", working(sixteen), working(four)));
    }
    for k in 0..sixteen.stages - 1 {
        let of = |stage| sixteen.spans.iter().filter(move |span| span.stage == stage);
        if !of(k).any(|a| of(k + 1).any(|b| overlap(a, b))) {
            return Err(format!("stages {k} and {} never work at the same time", k + 1));
        }
    }
    Ok(())
}

/// The claim of this project: with a given width, the time of a step does not grow with the number of stages. End-to-end it does.
#[test]
fn the_time_of_a_step_does_not_grow_with_depth() {
    let name = "emulated:forward-ms=6,head-ms=2,input-gradient-ms=6,parameter-gradient-ms=6";
    let timeline = |stages, steps, strategy| run(builder(name, stages, strategy), steps, 12).1;
    let (four, sixteen) = (timeline(4, 40, Interlock::width(2)), timeline(16, 40, Interlock::width(2)));
    depth_costs_nothing(&four, &sixteen).expect("stages that work at the same time");

    // The check fails if one stage works at a time.
    depth_costs_nothing(&serial(&four), &serial(&sixteen)).expect_err("stages that take turns");
    assert!(working(&serial(&sixteen)) < 1.01);
    let (four, sixteen) = (timeline(4, 14, Interlock::width(4)), timeline(16, 14, Interlock::width(16)));
    let refused = depth_costs_nothing(&four, &sixteen).expect_err("end-to-end");
    assert!(refused.contains("times as long"), "{refused}");
}

#[test]
fn parameter_gradients_are_computed_while_input_gradients_travel() {
    let name = "emulated:forward-ms=2,input-gradient-ms=6,parameter-gradient-ms=12,update-ms=1,head-ms=100";
    let (loss, timeline) = run(builder(name, 3, EndToEnd), 6, 6);
    // The outputs are zeros, and the targets ones.
    assert_eq!(loss, 1.0);
    let count = |spans: Vec<Span>, ms: f64| {
        assert!(spans.iter().all(|span| span.end - span.start >= ms / 1e3 - 1e-6), "{spans:?}");
        spans.len()
    };
    for k in 0..3 {
        let both = if k == 0 { 18.0 } else { 12.0 };
        let of = |kind, ms| count(spans(&timeline, k, kind), ms);
        let found =
            [of(ActionKind::Forward, 2.0), of(ActionKind::ParameterGradient, both), of(ActionKind::Update, 1.0)];
        assert_eq!((found, of(ActionKind::InputGradient, 6.0)), ([6; 3], if k == 0 { 0 } else { 6 }));
    }
    // In most steps the last stage computes its parameter gradient while the middle one computes its input gradient.
    let (last, middle) =
        (spans(&timeline, 2, ActionKind::ParameterGradient), spans(&timeline, 1, ActionKind::InputGradient));
    let together = last.iter().filter(|own| middle.iter().any(|other| overlap(own, other))).count();
    assert!(together >= 4, "in {together} of 6 steps");
    // A step takes less time than all its actions together, and at least as long as its longest chain of actions.
    let chain = [(0, ActionKind::Forward), (1, ActionKind::Forward), (2, ActionKind::Forward)]
        .into_iter()
        .chain([(2, ActionKind::InputGradient), (1, ActionKind::InputGradient)])
        .chain([(0, ActionKind::ParameterGradient), (0, ActionKind::Update)]);
    let least: f64 =
        chain.map(|(k, kind)| spans(&timeline, k, kind).iter().map(|s| s.end - s.start).fold(f64::MAX, f64::min)).sum();
    let all: f64 = timeline.spans.iter().map(|span| span.end - span.start).sum();
    assert!(period(&timeline) >= least && period(&timeline) < 0.9 * all / 6.0, "{least} {} {all}", period(&timeline));
}

#[test]
fn a_stage_waits_for_its_own_head_alone() {
    let (_, timeline) = run(builder("emulated:forward-ms=3,head-ms=12", 3, Interlock::width(1)), 20, 8);
    for k in 0..2 {
        assert!(spans(&timeline, k, ActionKind::Head).iter().all(|span| span.end - span.start >= 12e-3 - 1e-6));
    }
    let (first, second) = (spans(&timeline, 0, ActionKind::Head), spans(&timeline, 1, ActionKind::Head));
    let together = first.iter().filter(|own| second.iter().any(|other| overlap(own, other))).count();
    assert!(together >= 4, "heads of two stages ran at the same time in {together} of 8 steps");
}

/// Returns the time from the end of each forward pass of stage 0 to the start of the same micro-batch's in stage 1, in seconds.
fn transfer_times(timeline: &Timeline) -> Vec<f64> {
    let (sent, arrived) = (spans(timeline, 0, ActionKind::Forward), spans(timeline, 1, ActionKind::Forward));
    assert_eq!(sent.len(), arrived.len());
    sent.iter().zip(&arrived).map(|(sent, arrived)| arrived.start - sent.end).collect()
}

#[test]
fn latency_delays_every_message_and_no_message_waits_for_another() {
    let builder = builder("emulated:transfer-ms=20", 2, EndToEnd).batch_size(4).micro_batches(4).in_flight(4);
    let (_, timeline) = run(builder, 4, 4);
    let times = transfer_times(&timeline);
    assert!(times.iter().all(|seconds| *seconds >= 20e-3 - 1e-4), "{times:?}");
    // One message after the other would take 20, 40, 60 and 80 ms.
    let first_to_last: Vec<f64> =
        spans(&timeline, 1, ActionKind::Forward).chunks(4).map(|step| step[3].start - step[0].start).collect();
    assert!(median(first_to_last.clone()) < 30e-3, "{first_to_last:?}");
    // The gradients are delayed as much: an update comes after two transfers.
    let (updates, forwards) = (spans(&timeline, 0, ActionKind::Update), spans(&timeline, 0, ActionKind::Forward));
    assert!(updates.iter().zip(forwards.chunks(4)).all(|(update, step)| update.start - step[0].end >= 40e-3 - 2e-4));
}

#[test]
fn bandwidth_lets_one_message_leave_after_the_other() {
    // 125,000 bytes a second: an activation and its targets, of one example, take 64 ms to leave.
    let builder = builder("emulated:gbps=0.001", 2, EndToEnd).batch_size(2).micro_batches(2).in_flight(2);
    let (_, timeline) = run(builder, 2, 2);
    let times = transfer_times(&timeline);
    for step in times.chunks(2) {
        assert!(step[0] >= 64e-3 - 1e-4 && step[1] >= 128e-3 - 2e-3, "{times:?}");
        // The first message does not wait for the second.
        assert!(step[0] < 0.8 * step[1], "{times:?}");
    }
}
