use proptest::prelude::*;

use super::*;
use crate::{
    GradientPlan, Wants,
    schedule::{Action, MicroBatchId, Purpose, Remaining},
    simulator::{Scenario, StageCosts, simulate},
};

fn micro_batch(step: u64, micro: usize) -> MicroBatchId {
    MicroBatchId { step, purpose: Purpose::Train, index: micro, count: 4 }
}

fn backward(step: u64, micro: usize, loss: usize, wants: Wants) -> Action {
    Action::Backward { micro_batch: micro_batch(step, micro), loss, wants, measured: false, then: Remaining::Nothing }
}

fn timeline(stages: usize, spans: &[(usize, Action, f64, f64)]) -> Timeline {
    let spans = spans.iter().map(|&(stage, action, start, end)| Span { stage, action, start, end }).collect();
    Timeline { stages, spans }
}

/// Two stages end to end, two steps of one micro-batch, by hand; backward passes take two units of a tenth of a second.
fn two_steps() -> Timeline {
    let head = |step| Action::Head { micro_batch: micro_batch(step, 0), output_gradient: true };
    let mut spans = Vec::new();
    for (step, t) in [(7, 0.0), (8, 0.8)] {
        spans.extend([
            (0, Action::Forward(micro_batch(step, 0)), t, t + 0.1),
            (1, Action::Forward(micro_batch(step, 0)), t + 0.1, t + 0.2),
            (1, head(step), t + 0.2, t + 0.3),
            (1, backward(step, 0, 1, Wants::INPUT), t + 0.3, t + 0.5),
            (0, backward(step, 0, 1, Wants::PARAMETERS), t + 0.5, t + 0.7),
            (1, backward(step, 0, 1, Wants::PARAMETERS), t + 0.5, t + 0.7),
            (0, Action::Update(step), t + 0.7, t + 0.8),
            (1, Action::Update(step), t + 0.7, t + 0.8),
        ]);
    }
    timeline(2, &spans)
}

#[test]
fn two_steps_print_as_a_table_with_the_second_marked() {
    insta::assert_snapshot!(TimelineGrid::of(&two_steps(), 0.1).unwrap(), @r"
    F0 .  .  .    . W0.1 - U F0@1 .    .    .      . W0.1@1 - U@1
    .  F0 H0 I0.1 - W0.1 - U .    F0@1 H0@1 I0.1@1 - W0.1@1 - U@1
    ");
}

#[test]
fn a_unit_may_be_longer_than_a_gap_and_shorter_than_every_action() {
    let both = backward(0, 1, 0, Wants::BOTH);
    let spans =
        [(0, Action::Forward(micro_batch(0, 1)), 0.0, 1.9), (0, both, 2.1, 4.1), (0, Action::ShareNorm(0), 4.1, 5.0)];
    insta::assert_snapshot!(TimelineGrid::of(&timeline(2, &spans), 1.0).unwrap(), @r"
    F1 - B1.0 - N
    .  . .    . .
    ");
}

#[test]
fn what_takes_no_time_or_little_stands_before_what_fills_the_unit() {
    insta::assert_snapshot!(TimelineGrid::of(&two_steps(), 0.3).unwrap(), @r"
    F0+ .       W0.1+U F0@1+     W0.1@1        U@1+
    F0  H0+I0.1 W0.1+U F0@1+H0@1 I0.1@1+W0.1@1 U@1+
    ");
    let head = Action::Head { micro_batch: micro_batch(0, 0), output_gradient: true };
    let both = backward(0, 0, 0, Wants::BOTH);
    let spans = [
        (0, Action::Forward(micro_batch(0, 0)), 0.0, 1.0),
        (0, head, 1.0, 1.0),
        (0, both, 1.0, 3.0),
        (0, Action::ShareNorm(0), 3.0, 3.0),
        (0, Action::Update(0), 3.0, 3.0),
    ];
    insta::assert_snapshot!(TimelineGrid::of(&timeline(1, &spans), 1.0).unwrap(), @"F0 H0+B0.0 - N+U+");
}

#[test]
fn a_simulated_schedule_prints() {
    let plan = GradientPlan::of_widths(&[2; 3]).unwrap();
    let costs = [1.0, 1.0, 0.0].map(|head| StageCosts::of(1.0, head, 1.0, 1.0)).to_vec();
    let scenario = Scenario { micro_batches: 2, in_flight: 3, ..Scenario::new(plan, costs) };
    let mut timeline = simulate(&scenario).unwrap().timeline;
    timeline.spans.retain(|span| span.action.step() < 2);
    insta::assert_snapshot!(TimelineGrid::of(&timeline, 1.0).unwrap(), @r"
    F0 F1 .  .       W0.1 -  .       W1.1 -  U+F0@1 F1@1 .      .    .           W0.1@1 -    .           W1.1@1 -    U@1+   . .
    .  F0 H0 I0.1    F1   H1 I1.1    W0.2 -  W1.2   -    U+F0@1 H0@1 I0.1@1      F1@1   H1@1 I1.1@1      W0.2@1 -    W1.2@1 - U@1+
    .  .  F0 H0+I0.2 W0.2 F1 H1+I1.2 W1.2 U+ .      .    .      F0@1 H0@1+I0.2@1 W0.2@1 F1@1 H1@1+I1.2@1 W1.2@1 U@1+ .      . .
    ");
}

#[test]
fn evaluations_are_left_out_and_nothing_is_one_idle_slot() {
    let evaluation = MicroBatchId { purpose: Purpose::Evaluate, ..micro_batch(0, 0) };
    let grid = TimelineGrid::of(&timeline(2, &[(0, Action::Forward(evaluation), 0.0, 3.0)]), 1.0).unwrap();
    assert_eq!(grid.to_string(), ".\n.");
    assert_eq!((grid.stages(), grid.rows()[1].as_slice()), (2, [GridSlot::default()].as_slice()));
}

#[test]
fn a_hand_written_grid_is_read() {
    let grid: TimelineGrid = "
        F0 -  I0.2 U  .
        .  F0 N    N+U+  F12@3
    "
    .parse()
    .unwrap();
    let SlotFill::Begins(cell) = grid.rows()[1][4].then else { panic!() };
    assert_eq!((cell.kind().letter(), cell.micro_batch_index(), cell.loss(), cell.step()), ('F', Some(12), None, 3));
    let SlotFill::Begins(cell) = grid.rows()[0][2].then else { panic!() };
    assert_eq!((cell.kind().letter(), cell.micro_batch_index(), cell.loss(), cell.step()), ('I', Some(0), Some(2), 0));
    assert_eq!(grid.rows()[0][1].then, SlotFill::Continues);
    assert_eq!((grid.rows()[1][3].at_once.len(), grid.rows()[1][3].then), (2, SlotFill::Idle));
}

#[test]
fn what_is_no_grid_is_refused_with_its_place() {
    let refused = |text: &str| text.parse::<TimelineGrid>().unwrap_err().to_string();
    insta::assert_snapshot!(refused("F0 H0\n.  X0"), @r#"grid: line 2, column 4: "X0" is no action; use F0, H0, I0.2, W0.2 or B0.2 (micro-batch 0, loss 2), W0 (a sum of losses), N or U; F0@1 of the next step; . is idle, - goes on, H0+B0.2 takes no time for H0"#);
    insta::assert_snapshot!(refused("F0 . -"), @"grid: line 1, column 6: nothing is there to go on; put . where a stage is idle");
    insta::assert_snapshot!(refused("F0 H0 U\n.  F0"), @"grid: line 2, column 6: 2 slots, the first stage has 3; give every stage as many, with . where it is idle");
    insta::assert_snapshot!("I0".parse::<GridCell>().unwrap_err().to_string(), @r#"action: "I0" is none; use F0, H0, I0.2, W0.2 or B0.2 (micro-batch 0, loss 2), W0 (a sum of losses), N or U; F0@1 of the next step"#);
    for word in [
        "F",
        "F-1",
        "F+1",
        "F0.1",
        "I0",
        "I.1",
        "I0.",
        "U0",
        "N@",
        "U@-1",
        "F0@1@2",
        "f0",
        "é",
        "--",
        "F0@",
        "F99999999999999999999",
    ] {
        let error = refused(&format!("\n  F0 {word}"));
        assert!(error.contains("line 2, column 6") && error.contains(word), "{word}: {error}");
    }
}

#[test]
fn units_that_do_not_fit_are_refused() {
    let refused = |timeline: &Timeline, unit: f64| TimelineGrid::of(timeline, unit).unwrap_err().to_string();
    let good = two_steps();
    for unit in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(&good, unit).contains("above 0"));
    }
    assert!(refused(&good, 1e-9).contains("use a larger unit"));
    let forward = Action::Forward(micro_batch(0, 0));
    for (stage, start, end) in [(0, -1.0, 0.0), (0, 1.0, 0.0), (0, f64::NAN, 1.0), (0, 0.0, f64::NAN), (2, 0.0, 1.0)] {
        assert!(refused(&timeline(2, &[(stage, forward, start, end)]), 0.1).contains("actions end after they begin"));
    }
    assert!(refused(&timeline(2, &[(0, forward, 0.0, f64::INFINITY)]), 0.1).contains("larger unit"));
    let twice = timeline(1, &[(0, forward, 0.0, 2.0), (0, Action::Update(0), 1.0, 3.0)]);
    insta::assert_snapshot!(refused(&twice, 1.0), @"grid: U of stage 0 from 1 s to 3 s; a stage does one thing after the other");
}

fn any_action() -> impl Strategy<Value = Action> {
    let wants = prop_oneof![Just(Wants::INPUT), Just(Wants::PARAMETERS), Just(Wants::BOTH)];
    (0_u64..4, 0_usize..12, 0_usize..120, wants, 0..5).prop_map(|(step, micro, loss, wants, kind)| match kind {
        0 => Action::Forward(micro_batch(step, micro)),
        1 => Action::Head { micro_batch: micro_batch(step, micro), output_gradient: true },
        2 => backward(step, micro, loss, wants),
        3 => Action::ShareNorm(step),
        _ => Action::Update(step),
    })
}

proptest! {
    /// Any actions one after another on any stages, with pauses: the grid holds each of them where it was, and is read as it was
    /// printed.
    #[test]
    fn what_is_printed_is_read(
        rows in proptest::collection::vec(proptest::collection::vec((any_action(), 0_u32..3, 0_u32..4), 0..12), 1..6),
        unit in prop_oneof![Just(1.0), Just(0.1), Just(3e-6)],
    ) {
        let mut spans = Vec::new();
        for (stage, row) in rows.iter().enumerate() {
            let mut now = 0;
            for &(action, pause, length) in row {
                let (start, end) = (now + pause, now + pause + length);
                spans.push((stage, action, f64::from(start) * unit, f64::from(end) * unit));
                now = end;
            }
        }
        let first = spans.iter().map(|(_, action, ..)| action.step()).min().unwrap_or_default();
        let grid = TimelineGrid::of(&timeline(rows.len(), &spans), unit).unwrap();
        for (stage, action, start, end) in spans {
            let (start, end) = ((start / unit).round() as usize, (end / unit).round() as usize);
            let (row, cell) = (&grid.rows()[stage], GridCell::new(&action, first));
            match start == end {
                true => prop_assert!(row[start].at_once.contains(&cell)),
                false => prop_assert_eq!(row[start].then, SlotFill::Begins(cell)),
            }
            prop_assert!(row[start..end].iter().skip(1).all(|slot| slot.then == SlotFill::Continues));
        }
        let text = grid.to_string();
        prop_assert_eq!(text.parse::<TimelineGrid>().unwrap(), grid, "{}", text);
    }

    #[test]
    fn a_cell_is_read_as_it_is_printed(action in any_action()) {
        let cell = GridCell::new(&action, 0);
        prop_assert_eq!(cell.to_string().parse::<GridCell>().unwrap(), cell);
        let first = GridCell::new(&action, action.step());
        prop_assert_eq!(first.to_string(), action.to_string());
    }

    /// Every grid that is read prints as text that is read as the same grid.
    #[test]
    fn no_text_makes_the_reader_fail_in_any_other_way(text in "[FHIWBNU.@+0-9 \n-]{0,40}") {
        if let Ok(grid) = text.parse::<TimelineGrid>() {
            prop_assert_eq!(grid.to_string().parse::<TimelineGrid>().unwrap(), grid);
        }
    }
}
