//! Runs in which only some stages carry a head.

#![allow(clippy::unwrap_used)] // a failed expectation is a failed test

#[path = "common/models.rs"]
mod common;

use std::collections::BTreeMap;

use common::{Perceptron, Spiral};
use interlock::{
    Adaptive, CrossEntropy, Dataset, EndToEnd, GradientPlan, HeadsConfig, HeadsTrained, Interlock, Local, ModelSpec,
    Result, Strategy, Trainer, TrainerBuilder, Unit, WidthSchedule, tools::planner::Placement,
};

fn every(n: impl Into<Option<usize>>) -> HeadsConfig {
    HeadsConfig { every: n.into(), ..HeadsConfig::default() }
}

fn archs(archs: &[&str]) -> HeadsConfig {
    HeadsConfig { archs: Some(archs.iter().map(|&arch| arch.to_owned()).collect()), ..HeadsConfig::default() }
}

/// Four stages of one layer.
fn builder(strategy: impl Strategy + 'static, heads: HeadsConfig) -> TrainerBuilder {
    Trainer::builder(Perceptron { layers: 4, fault: None })
        .strategy(strategy)
        .heads(heads)
        .stages(4)
        .batch_size(7)
        .micro_batches(2)
        .steps(10)
        .seed(3)
}

const DATA: Spiral = Spiral { examples: 40 };

/// The bits of all weights after ten steps.
fn train(strategy: impl Strategy + 'static, heads: HeadsConfig) -> BTreeMap<String, Vec<u32>> {
    let mut trainer = builder(strategy, heads).build().unwrap();
    trainer.fit(DATA).unwrap();
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let weights = trainer.snapshot().unwrap().into_iter();
    weights.map(|(name, value)| (name, bits(value.flatten_all().unwrap().to_vec1().unwrap()))).collect()
}

/// The stages whose heads have weights of these names.
fn heads_of(weights: &BTreeMap<String, Vec<u32>>) -> Vec<usize> {
    (0..4).filter(|k| weights.keys().any(|name| name.starts_with(&format!("aux.{k}.")))).collect()
}

/// Stages that follow these losses.
#[derive(Debug)]
struct Follow([usize; 4]);

impl Strategy for Follow {
    fn plan(&self, _: usize) -> Result<GradientPlan> {
        GradientPlan::new(self.0.to_vec())
    }
}

#[test]
fn heads_at_every_stage_change_no_bit() {
    for train_all in [HeadsTrained::Needed, HeadsTrained::All] {
        let with = |heads: HeadsConfig| {
            let heads = HeadsConfig { train: train_all, ..heads };
            let schedule = WidthSchedule::new(Interlock::width(2).mean()).then(4, Interlock::width(3));
            train(schedule.end_to_end_every(3), heads)
        };
        assert!(with(every(None)) == with(every(1)));
        assert!(with(every(None)) == with(archs(&["fc", "fc", "fc"])));
        let group =
            |heads: HeadsConfig| train(Interlock::width(2).group(2).mean(), HeadsConfig { train: train_all, ..heads });
        assert!(group(every(None)) == group(every(2)));
        assert_eq!(heads_of(&group(every(1))), [1]);
    }
}

#[test]
fn a_stage_without_a_head_is_trained_by_the_next_loss_in_its_window() {
    let expected = train(Follow([1, 1, 3, 3]), every(None));
    assert_eq!(heads_of(&expected), [1]);
    for heads in [every(2), archs(&["", "fc", ""])] {
        for heads in [heads.clone(), HeadsConfig { train: HeadsTrained::All, ..heads }] {
            assert!(train(Interlock::width(2), heads.clone()) == expected, "{heads:?}");
            assert!(train(Interlock::width(2).mean(), heads.clone()) == expected, "{heads:?}");
        }
    }
    // Of the heads that there may be, only those are built that a stage follows, or all.
    let (last, whole) = (train(EndToEnd, every(2)), train(EndToEnd, every(None)));
    assert!(heads_of(&last).is_empty());
    assert_eq!(heads_of(&train(EndToEnd, HeadsConfig { train: HeadsTrained::All, ..every(2) })), [1]);
    assert!(last == whole);
}

#[test]
fn windows_without_a_loss_and_contradictory_keys_are_refused_before_anything_is_built() {
    let refused = |strategy: Box<dyn Strategy>, heads: HeadsConfig| {
        let error = builder(Local, every(None)).strategy_boxed(strategy).heads(heads).layout().err().unwrap();
        assert!(error.is_refusal());
        error.to_string()
    };
    insta::assert_snapshot!(refused(Box::new(Local), every(2)), @"heads: no head in the windows of stages 0, 2; use a larger width, or give a stage of each window a head");
    insta::assert_snapshot!(refused(Box::new(WidthSchedule::new(EndToEnd).then(5, Local)), every(4)), @"heads: no head in the windows of stages 0, 1, 2 (from step 5 on); use a larger width, or give a stage of each window a head");
    let adaptive = Adaptive { every: 1, window: 1, below: 0.0, width: 1, max_width: None };
    assert!(refused(Box::new(adaptive), every(2)).contains("stages 0, 2;"));
    assert!(refused(Box::new(Follow([0, 2, 2, 3])), every(2)).contains("the windows of stages 0, 2;"));
    let refused = |heads| refused(Box::new(EndToEnd), heads);
    insta::assert_snapshot!(refused(every(0)), @"heads.every: 0; use 1 or more");
    insta::assert_snapshot!(refused(archs(&["fc"; 4])), @"heads.archs: 4 descriptions for 4 stages; give 3, one for each stage but the last");
    insta::assert_snapshot!(refused(HeadsConfig { arch: Some("fc".to_owned()), ..archs(&["fc"; 3]) }), @"heads.archs: arch is given too; give one of them");
    insta::assert_snapshot!(refused(HeadsConfig { every: Some(2), ..archs(&["fc"; 3]) }), @"heads.archs: every is given too; give one of them");
}

#[test]
fn a_stage_without_a_head_has_no_loss_and_no_predictor() {
    let with_loss = |k, heads| builder(Interlock::width(2), heads).head_loss(k, CrossEntropy::default()).layout();
    with_loss(1, every(2)).unwrap();
    let error = with_loss(2, HeadsConfig { train: HeadsTrained::All, ..every(2) }).err().unwrap();
    insta::assert_snapshot!(error, @"head_loss: stage 2 has no head, since `heads` or the strategy gives it none; leave it out, or give it one (heads.every, heads.archs, strategy.group)");
    let error = with_loss(0, every(1)).err().unwrap().to_string();
    assert!(error.contains("stage 0 has no head, since no stage follows its loss"), "{error}");

    let mut predictor = builder(Interlock::width(2), every(2)).build().unwrap().predictor().unwrap();
    assert_eq!(predictor.heads(), [1, 3]);
    let inputs = DATA.batch(&[0, 1], None).unwrap().inputs.single().unwrap().clone();
    predictor.predict_at(1, &inputs).unwrap();
    let error = predictor.predict_at(2, &inputs).unwrap_err().to_string();
    assert_eq!(error, "head: stage 2 has no head; heads are at stages 1, 3");
}

#[test]
fn adaptive_widths_move_to_the_heads_that_there_are() {
    // Every measurement widens its stage.
    let rule = || Adaptive { every: 2, window: 1, below: 2.0, width: 2, max_width: None };
    let phases = |trainer: &Trainer| -> Vec<(u64, Vec<usize>, Vec<Option<usize>>)> {
        let stages = 0..4;
        let losses = |from, plan: &GradientPlan, measuring: &GradientPlan| {
            let follows = stages.clone().map(|k| plan.farthest(k)).collect();
            (from, follows, stages.clone().map(|k| measuring.measures(k)).collect())
        };
        let of = |phase: &interlock::PlanPhase| {
            losses(phase.from_step, &phase.plan, phase.every.as_ref().map_or(&phase.plan, |(_, plan)| plan))
        };
        trainer.plans().phases().iter().map(of).collect()
    };
    let mut trainer = builder(rule(), every(2)).build().unwrap();
    trainer.fit(DATA).unwrap();
    let expected = [
        (0, vec![1, 1, 3, 3], vec![Some(3), Some(3), None, None]),
        // Stage 0 reaches loss 2, which does not exist, and measures loss 3 again.
        (2, vec![1, 3, 3, 3], vec![Some(3), None, None, None]),
        (4, vec![3, 3, 3, 3], vec![None; 4]),
    ];
    assert_eq!(phases(&trainer), expected);
    assert_eq!(
        trainer.stages().iter().map(|stage| stage.head_parameters > 0).collect::<Vec<_>>(),
        [false, true, false, false]
    );
    // Another trainer continues from its state to the same plans.
    let mut first = builder(rule(), every(2)).steps(2).build().unwrap();
    first.fit(DATA).unwrap();
    let restored = builder(rule(), every(2)).initial_values(first.snapshot().unwrap()).restore(first.state().unwrap());
    let mut second = restored.steps(8).build().unwrap();
    assert_eq!(phases(&second), expected[..2]);
    second.fit(DATA).unwrap();
    assert_eq!(phases(&second), expected);
}

/// A perceptron whose head `heavy` costs as much as two layers.
struct Heavy(Perceptron);

impl ModelSpec for Heavy {
    fn units(&self) -> Result<Vec<Unit>> {
        self.0.units()
    }

    fn head(&self, unit: usize, arch: &str) -> Result<Unit> {
        let head = self.0.head(unit, arch)?;
        Ok(if arch == "heavy" { head.with_flops(128.0) } else { head })
    }
}

#[test]
fn the_planner_and_the_partition_know_where_heads_are() {
    let run = builder(Interlock::width(2), every(2));
    let profile = run.profile(&DATA.batch(&[0, 1, 2], None).unwrap(), None).unwrap();
    let setup = run.setup(4, &profile, Placement::dedicated(4)).unwrap();
    assert_eq!(setup.heads, [None, Some("fc".to_owned()), None, None]);
    assert_eq!((0..4).map(|k| setup.plan.farthest(k)).collect::<Vec<_>>(), [1, 1, 3, 3]);
    assert!(run.setup(3, &profile, Placement::dedicated(3)).is_ok());
    let error = builder(Local, every(2)).setup(4, &profile, Placement::dedicated(4)).err().unwrap().to_string();
    assert!(error.starts_with("heads: no head in the windows of stages 0, 2"), "{error}");
    let different = builder(Local, archs(&["fc", "small", "fc"]));
    let error = different.setup(4, &profile, Placement::dedicated(4)).err().unwrap().to_string();
    assert!(error.starts_with(r#"costs of units: the head "small" after unit 0 is missing"#), "{error}");
    let profile = different.profile(&DATA.batch(&[0, 1, 2], None).unwrap(), None).unwrap();
    let setup = different.setup(4, &profile, Placement::dedicated(4)).unwrap();
    assert_eq!(
        setup.heads,
        ["fc", "small", "fc", ""].map(|arch| Some(arch.to_owned()).filter(|arch| !arch.is_empty()))
    );

    // Layers of 16, 64, 64, 64, 64 and 24 operations: the stage of a heavy head that is needed has a single one.
    let units = |strategy: Interlock, heads: HeadsConfig, train: HeadsTrained| -> Vec<usize> {
        let layers = Heavy(Perceptron { layers: 6, fault: None });
        let builder = Trainer::builder(layers).strategy(strategy).stages(3).heads(HeadsConfig { train, ..heads });
        builder.layout().unwrap().partition.units_per_stage().to_vec()
    };
    for train in [HeadsTrained::Needed, HeadsTrained::All] {
        let units = |width, heads: [&str; 2]| units(Interlock::width(width), archs(&heads), train);
        assert_eq!(units(3, ["", ""]), [2, 2, 2]);
        assert_eq!(units(2, ["heavy", ""])[0], 1);
        assert_eq!(units(2, ["", "heavy"])[1], 1);
        // Probe heads cost nothing where units are divided.
        for heads in [["heavy", ""], ["", "heavy"], ["heavy", "heavy"]] {
            assert_eq!(units(3, heads), [2, 2, 2]);
        }
    }
}
