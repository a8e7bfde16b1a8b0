//! Tests of gradient plans.

use super::*;

fn widths(n: usize, stages: usize) -> GradientPlan {
    GradientPlan::of_widths(&vec![n; stages]).unwrap()
}

#[test]
fn backward_passes_run_only_for_losses_that_a_stage_follows() {
    assert_eq!(widths(3, 4).backward_passes(), 6);
    assert_eq!(widths(5, 8).backward_passes(), 20);
    assert_eq!(widths(1, 4).backward_passes(), 4);
    assert_eq!(widths(4, 4).backward_passes(), 4);
}

#[test]
fn width_three_of_four_by_hand() {
    let plan = widths(3, 4);
    assert_eq!((0..4).map(|k| plan.farthest(k)).collect::<Vec<_>>(), [2, 3, 3, 3]);
    assert_eq!(plan.wants(0), [2]);
    assert_eq!(plan.wants(1), [2, 3]);
    assert_eq!(plan.wants(2), [2, 3]);
    assert_eq!(plan.wants(3), [3]);
    assert_eq!(plan.losses_sent_back(0), [0; 0]);
    assert_eq!(plan.losses_sent_back(1), [2]);
    assert_eq!(plan.losses_sent_back(2), [2, 3]);
    assert_eq!(plan.losses_sent_back(3), [3]);
    assert_eq!(plan.gradients(1, 2), Wants::INPUT);
    assert_eq!(plan.gradients(1, 3), Wants::PARAMETERS);
    assert_eq!(plan.gradients(2, 3), Wants::BOTH);
    assert!(!plan.is_needed(0) && !plan.is_needed(1) && plan.is_needed(2));
}

#[test]
fn mixed_widths_relay_gradients_upstream() {
    let plan = GradientPlan::of_widths(&[3, 1, 2, 2, 1]).unwrap();
    assert_eq!((0..5).map(|k| plan.farthest(k)).collect::<Vec<_>>(), [2, 1, 3, 4, 4]);
    assert_eq!(plan.wants(1), [1, 2]);
    assert_eq!(plan.gradients(1, 1), Wants::PARAMETERS);
    assert_eq!(plan.gradients(1, 2), Wants::INPUT);
    assert!(!plan.is_needed(0));
}

#[test]
fn a_measured_loss_runs_backward_and_is_not_followed() {
    let plan = widths(1, 4).measuring(vec![Some(1), None, Some(3), None]).unwrap();
    assert_eq!((0..4).map(|k| plan.farthest(k)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!([plan.wants(0), plan.wants(1), plan.wants(2), plan.wants(3)], [&[0, 1][..], &[1], &[2, 3], &[3]]);
    assert_eq!(
        (plan.losses_sent_back(1), plan.losses_sent_back(2), plan.losses_sent_back(3)),
        (&[1][..], &[][..], &[3][..])
    );
    assert_eq!(plan.gradients(0, 1), Wants::PARAMETERS);
    assert_eq!(plan.gradients(1, 1), Wants::BOTH);
    // A head that is only measured gives an output gradient.
    let plan = GradientPlan::new(vec![2, 2, 2]).unwrap().measuring(vec![Some(1), None, None]).unwrap();
    assert!(plan.is_needed(1) && !plan.is_needed(0) && plan.measures_any());
    assert_eq!(plan.gradients(1, 1), Wants::INPUT);
    insta::assert_snapshot!(plan, @r"
    stage  follows  measures  backward      sends back        head
        0        2         1  1 2           -                 probe
        1        2         -  1 2           1 2               needed
        2        2         -  2             2                 last
    ");
    let refused = |measures| widths(1, 3).measuring(measures).unwrap_err().to_string();
    assert!(refused(vec![None]).contains("1 losses to measure"));
    assert!(refused(vec![Some(0), None, None]).contains("stage 0 measures the loss of stage 0, which it follows"));
    assert!(refused(vec![None, Some(0), None]).contains("stage 1 measures the loss of stage 0"));
    assert!(refused(vec![Some(3), None, None]).contains("0 to 2"));
}

#[test]
fn a_stage_may_follow_several_weighted_losses() {
    let follows = vec![vec![(1, 0.5), (0, 0.5)], vec![(1, 0.5), (2, 0.25)], vec![(2, 1.0)]];
    let plan = GradientPlan::weighted(follows).unwrap();
    assert_eq!(plan.follows(0), [(0, 0.5), (1, 0.5)]);
    assert_eq!((plan.farthest(0), plan.width(1), plan.width(2)), (1, 2, 1));
    assert_eq!([plan.wants(0), plan.wants(1), plan.wants(2)], [&[0, 1][..], &[1, 2], &[2]]);
    assert_eq!([plan.losses_sent_back(1), plan.losses_sent_back(2)], [[1], [2]]);
    assert_eq!((plan.gradients(0, 0), plan.gradients(1, 1)), (Wants::NOTHING, Wants::INPUT));
    assert!(plan.is_needed(0) && !plan.is_end_to_end());
    // The mean of each window; the last stage follows its own loss alone.
    let mean = |n: usize, stages: usize| {
        let window = |k: usize| {
            let losses = k..(k + n).min(stages);
            let weight = 1.0 / losses.len() as f64;
            losses.map(|j| (j, weight)).collect()
        };
        GradientPlan::weighted((0..stages).map(window).collect()).unwrap().backward_passes()
    };
    assert_eq!([mean(3, 4), mean(5, 8)], [8, 29]);
    assert_eq!(losses_text(&[(0, 1.0 / 3.0), (2, 2.0), (3, 1e-5), (4, 1.0)]), "0:0.333 2:2 3:1e-5 4");
    insta::assert_snapshot!(plan, @r"
    stage       follows  backward      sends back        head
        0   0:0.5 1:0.5  0 1           -                 needed
        1  1:0.5 2:0.25  1 2           1                 needed
        2             2  2             2                 last
    ");
    let refused = |first| GradientPlan::weighted(vec![first, vec![(1, 1.0)]]).unwrap_err().to_string();
    assert_eq!(refused(vec![]), "gradient plan: stage 0 follows no loss; give every stage at least one");
    assert!(refused(vec![(1, 0.5), (1, 0.5)]).contains("follows the loss of stage 1 twice"));
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e39, 1e-50] {
        assert!(refused(vec![(1, weight)]).contains(&format!("with weight {weight}")));
    }
    assert!(refused(vec![(2, 1.0)]).contains("stage 0 follows the loss of stage 2; use its own"));
}

/// The stages with a head if every n-th of `stages` has one.
fn every(n: usize, stages: usize) -> Vec<bool> {
    (1..=stages).map(|k| k % n == 0).collect()
}

fn moved(plan: &GradientPlan, heads: &[bool]) -> (Vec<Vec<(usize, f64)>>, usize) {
    let plan = plan.moved_to_heads(heads).unwrap();
    ((0..plan.stages()).map(|k| plan.follows(k).to_vec()).collect(), plan.backward_passes())
}

#[test]
fn weights_of_missing_losses_move_within_the_window() {
    let one = |losses: [usize; 4]| losses.map(|loss| vec![(loss, 1.0)]).to_vec();
    // Stage 1 follows l_2, after which its window ends.
    assert_eq!(moved(&widths(2, 4), &every(2, 4)), (one([1, 1, 3, 3]), 4));
    // Stage 0 follows l_2 and ends there, stages 1 and 2 follow l_3.
    assert_eq!(moved(&widths(3, 4), &every(2, 4)), (one([1, 3, 3, 3]), 5));
    assert_eq!(moved(&widths(4, 4), &[false; 4]), (one([3, 3, 3, 3]), 4));
    let mean = |n| GradientPlan::of_windows(1, &vec![Window::Mean(n); 4]).unwrap();
    assert_eq!(moved(&mean(2), &every(2, 4)), (one([1, 1, 3, 3]), 4));
    let third = 1.0 / 3.0;
    let follows = vec![vec![(1, 1.0)], vec![(1, third), (3, 2.0 * third)], vec![(3, 1.0)], vec![(3, 1.0)]];
    // Stages 1, 2 and 3 send gradients back: l_1, l_3 and l_3. Stage 1 also adds up two.
    assert_eq!(moved(&mean(3), &every(2, 4)), (follows, 5));
    let follows =
        vec![vec![(3, 0.5), (0, 0.125), (1, 0.25)], vec![(2, 0.5), (1, 0.25)], vec![(2, 2.0)], vec![(3, 1.0)]];
    let plan = GradientPlan::weighted(follows).unwrap();
    let expected = vec![vec![(2, 0.375), (3, 0.5)], vec![(2, 0.75)], vec![(2, 2.0)], vec![(3, 1.0)]];
    assert_eq!(moved(&plan, &[false, false, true, false]).0, expected);
    // The weights of a mean that meet are exactly 1.
    for n in 1..50 {
        let plan = GradientPlan::of_windows(1, &vec![Window::Mean(n); n]).unwrap();
        assert_eq!(moved(&plan, &every(n, n)).0, vec![vec![(n - 1, 1.0)]; n], "{n}");
    }
}

#[test]
fn a_plan_whose_losses_all_exist_stays_as_it_is() {
    for window in [Window::Last(2), Window::Mean(3), Window::Weights(vec![0.1, 0.0, 0.7])] {
        let plan = GradientPlan::of_windows(1, &vec![window.clone(); 6]).unwrap();
        assert_eq!(plan.moved_to_heads(&every(1, 6)).unwrap(), plan);
        // Only the last stages of blocks carry heads as it is.
        let group = GradientPlan::of_windows(2, &vec![window; 6]).unwrap();
        for n in [1, 2] {
            assert_eq!(group.moved_to_heads(&every(n, 6)).unwrap(), group);
        }
    }
    // Of blocks of two and every third stage, stage 5 is left.
    let group = GradientPlan::of_windows(2, &vec![Window::Last(3); 7]).unwrap().moved_to_heads(&every(3, 7)).unwrap();
    assert_eq!((0..7).filter(|&k| group.may_carry_head(k)).collect::<Vec<_>>(), [5, 6]);
    assert_eq!((0..7).map(|k| group.farthest(k)).collect::<Vec<_>>(), [5, 5, 6, 6, 6, 6, 6]);
}

#[test]
fn windows_without_a_head_are_refused_all_at_once() {
    let refused = |plan: &GradientPlan, heads: &[bool]| plan.moved_to_heads(heads).unwrap_err().to_string();
    insta::assert_snapshot!(refused(&widths(1, 4), &every(2, 4)), @"heads: no head in the windows of stages 0, 2; use a larger width, or give a stage of each window a head");
    insta::assert_snapshot!(refused(&GradientPlan::of_widths(&[2, 2, 1, 1]).unwrap(), &every(2, 4)), @"heads: no head in the window of stage 2; use a larger width, or give a stage of each window a head");
    assert!(refused(&widths(2, 8), &every(4, 8)).contains("stages 0, 1, 4, 5;"));
    insta::assert_snapshot!(refused(&widths(1, 4), &[true]), @"gradient plan: 1 values of whether a stage carries a head; give one for each of 4 stages");
}

#[test]
fn a_measured_loss_moves_downstream_to_one_that_the_stage_does_not_follow() {
    let measures = |follows: Vec<usize>, measures: Vec<Option<usize>>, heads: &[bool]| {
        let plan = GradientPlan::new(follows).unwrap().measuring(measures).unwrap().moved_to_heads(heads).unwrap();
        (0..plan.stages()).map(|k| plan.measures(k)).collect::<Vec<_>>()
    };
    let next = vec![Some(2), Some(3), None, None];
    assert_eq!(measures(vec![1, 2, 3, 3], next, &every(2, 4)), [Some(3), Some(3), None, None]);
    // Stage 0 comes to follow l_1, which it measured; stage 1 follows the only loss there is.
    let next = vec![Some(1), Some(2), None, None];
    assert_eq!(measures(vec![2, 3, 3, 3], next, &every(2, 4)), [Some(3), None, None, None]);
}

#[test]
fn prints_as_a_table() {
    insta::assert_snapshot!(widths(3, 5), @r"
    stage  follows  backward      sends back        head
        0        2  2             -                 probe
        1        3  2 3           2                 probe
        2        4  2 3 4         2 3               needed
        3        4  3 4           3 4               needed
        4        4  4             4                 last
    ");
}

#[test]
fn impossible_plans_are_refused() {
    assert!(GradientPlan::new(vec![]).is_err());
    assert!(GradientPlan::new(vec![0, 0]).is_err());
    assert!(GradientPlan::new(vec![0, 2]).is_err());
    let error = GradientPlan::of_widths(&[0, 1]).unwrap_err().to_string();
    insta::assert_snapshot!(error, @"strategy.width: width 0 for stage 0 of 2; widths are 1 (local) to 2 (end-to-end)");
    let error = GradientPlan::of_widths(&[2, 3]).unwrap_err().to_string();
    insta::assert_snapshot!(error, @"strategy.width: width 3 for stage 1 of 2; widths are 1 (local) to 2 (end-to-end)");
}
