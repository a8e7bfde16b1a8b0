//! The plots of a report.

use interlock::tools::trainer::Followed;

use super::run::Run;
use crate::{
    events::{Evaluated, Head, StageMetrics, Step},
    plot::{Axis, Line, Plot, Series, binned, points_for, ratios, smoothed},
    table::Measure,
};

/// The largest number of curves in a plot.
const MAX_CURVES: usize = 10;
/// The axis of most plots.
const STEP: &str = "step";
/// The largest number of points in curves of throughput and idle shares: each point is a mean over many steps.
const MAX_COARSE_POINTS: usize = 80;

/// Returns the plots of one run that are not empty.
pub(super) fn of_run(run: &Run) -> Vec<Plot> {
    let stages = shown_stages(run.stages());
    let count = points_for(stages.len());
    let by_stage = |value: &dyn Fn(&StageMetrics) -> Option<f64>, smooth: bool| -> Vec<Series> {
        let curve = |(n, &k): (usize, &usize)| {
            let points = points(run, |step| value(step.stages.get(k)?));
            let points = binned(&if smooth { smoothed(&points) } else { points }, count);
            series(format!("stage {k}"), n, Line::Plain, points)
        };
        stages.iter().enumerate().map(curve).collect()
    };
    let by_head = |value: &dyn Fn(&Head) -> Option<f64>| -> Vec<Series> {
        let curve = |(n, &k): (usize, &usize)| {
            series(format!("stage {k}"), n, Line::Dotted, binned(&evaluated(run, Some(k), &updates, value), count))
        };
        stages.iter().enumerate().map(curve).collect()
    };
    let idle = |(n, &k): (usize, &usize)| {
        let busy = |step: &Step| Some((step.stages.get(k)?.busy_seconds, step.step_seconds));
        series(format!("stage {k}"), n, Line::Plain, idle_share(run, busy))
    };
    let titled = |what: &str| match run.stages() {
        all if all > stages.len() => format!("{what} ({} of {all} stages)", stages.len()),
        _ => what.to_owned(),
    };
    let (measure_axis, measure) = measured(run.measure);
    let plots = vec![
        plot("training_loss", titled("Training loss of each head, smoothed"), loss_axis(), by_stage(&|s| s.loss, true)),
        plot("validation_loss", titled("Validation loss of each head"), loss_axis(), by_head(&|h| Some(h.loss))),
        plot(
            &format!("validation_{}", run.measure.name()),
            titled(&format!("Validation {} of each head", run.measure.name())),
            measure_axis,
            by_head(&measure),
        ),
        plot("throughput", "Throughput".to_owned(), rate_axis(), vec![throughput(run, "all stages", 0)]),
        plot(
            "idle",
            titled("Idle share of each stage"),
            share_axis("idle share"),
            stages.iter().enumerate().map(idle).collect(),
        ),
        plot(
            "gradient_norm",
            titled("Gradient norm of each stage, before clipping"),
            Axis { logarithmic: true, ..Axis::new("gradient norm") },
            by_stage(&|s| Some(s.gradient_norm), true),
        ),
        plot("learning_rate", "Learning rate".to_owned(), Axis { from: Some(0.0), ..Axis::new("learning rate") }, {
            let mut rates = by_stage(&|s| Some(s.lr), false);
            if rates.windows(2).all(|pair| pair[0].points == pair[1].points) {
                rates.truncate(1);
                rates.iter_mut().for_each(|rate| "all stages".clone_into(&mut rate.name));
            }
            rates
        }),
        plot(
            "alignment",
            titled("Cosine between the gradients followed and measured, smoothed"),
            Axis { to: Some(1.0), ..Axis::new("cosine") },
            by_stage(&|s| s.alignment, true),
        ),
        plot(
            "width",
            titled("Interlock width of each stage"),
            Axis { whole: true, ..Axis::new("width") },
            widths(run, &stages),
        ),
    ];
    let mut plots: Vec<Plot> = plots.into_iter().filter(|plot| !plot.is_empty()).collect();
    end_at_last_step(&mut plots, std::slice::from_ref(run));
    plots
}

/// Returns the plots of several runs, with one curve for each run.
pub(super) fn of_runs(runs: &[Run]) -> Vec<Plot> {
    let count = points_for(runs.len());
    let each = |line: Line, points: &dyn Fn(&Run) -> Vec<(f64, f64)>| -> Vec<Series> {
        runs.iter().enumerate().map(|(n, run)| series(run.label.clone(), n, line, points(run))).collect()
    };
    let by_step = |value: &dyn Fn(&Head) -> Option<f64>| {
        each(Line::Dotted, &|run| binned(&evaluated(run, None, &updates, value), count))
    };
    let mut plots = vec![
        plot(
            "training_loss",
            "Training loss of the last head, smoothed".to_owned(),
            loss_axis(),
            each(Line::Plain, &|run| binned(&smoothed(&points(run, |step| step.stages.last()?.loss)), count)),
        ),
        plot("validation_loss", "Validation loss of the last head".to_owned(), loss_axis(), by_step(&|h| Some(h.loss))),
    ];
    for measure in [Measure::Accuracy, Measure::Perplexity] {
        let (axis, value) = measured(measure);
        // Only runs that are judged by this measure have a curve.
        let scores = |run: &Run, x: &dyn Fn(&Evaluated) -> f64| match run.measure == measure {
            true => evaluated(run, None, x, &value),
            false => Vec::new(),
        };
        let title = format!("Validation {} of the last head", measure.name());
        let name = format!("validation_{}", measure.name());
        plots.push(plot(
            &name,
            title.clone(),
            axis.clone(),
            each(Line::Dotted, &|run| binned(&scores(run, &updates), count)),
        ));
        let mut over_time = plot(
            &format!("{name}_by_time"),
            format!("{title}, over time"),
            axis,
            each(Line::Dotted, &|run| binned(&scores(run, &|evaluation| evaluation.seconds), count)),
        );
        over_time.x = Axis { from: Some(0.0), ..Axis::new("seconds since the run's start") };
        plots.push(over_time);
    }
    let rates: Vec<Series> = runs.iter().enumerate().map(|(n, run)| throughput(run, &run.label, n)).collect();
    plots.push(plot("throughput", "Throughput".to_owned(), rate_axis(), rates));
    let mean_idle = each(Line::Plain, &|run| {
        let all = |step: &Step| {
            let busy: f64 = step.stages.iter().map(|stage| stage.busy_seconds).sum();
            Some((busy, step.step_seconds * step.stages.len() as f64))
        };
        idle_share(run, all)
    });
    plots.push(plot("idle", "Idle share, mean of all stages".to_owned(), share_axis("idle share"), mean_idle));
    let mut plots: Vec<Plot> = plots.into_iter().filter(|plot| !plot.is_empty()).collect();
    end_at_last_step(&mut plots, runs);
    plots
}

/// Sets the end of all axes of steps to the last step, so that plots side by side can be compared.
fn end_at_last_step(plots: &mut [Plot], runs: &[Run]) {
    let made = |run: &Run| Some(run.steps.last()?.step as f64 + 1.0);
    let last = runs.iter().filter_map(made).reduce(f64::max);
    plots.iter_mut().filter(|plot| plot.x.label == STEP).for_each(|plot| plot.x.to = last);
}

/// Returns the numbers of the stages to show: all, or, if there are many, some evenly from the first to the last.
fn shown_stages(stages: usize) -> Vec<usize> {
    match stages {
        few if few <= MAX_CURVES => (0..few).collect(),
        many => (0..MAX_CURVES).map(|n| n * (many - 1) / (MAX_CURVES - 1)).collect(),
    }
}

fn plot(name: &str, title: String, y: Axis, series: Vec<Series>) -> Plot {
    let series = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    Plot { name: name.to_owned(), title, x: Axis { whole: true, from: Some(0.0), ..Axis::new(STEP) }, y, series }
}

fn series(name: String, colour: usize, line: Line, points: Vec<(f64, f64)>) -> Series {
    Series { name, colour, line, points }
}

fn loss_axis() -> Axis {
    Axis::new("loss (mean a target)")
}

fn rate_axis() -> Axis {
    Axis { from: Some(0.0), ..Axis::new("examples/s") }
}

fn share_axis(label: &str) -> Axis {
    Axis { from: Some(0.0), to: Some(1.0), percent: true, ..Axis::new(label) }
}

/// Returns the axis of a measure, and a function that returns its value for a head.
fn measured(measure: Measure) -> (Axis, impl Fn(&Head) -> Option<f64>) {
    let axis = match measure {
        Measure::Accuracy => Axis { percent: true, ..Axis::new("accuracy") },
        Measure::Perplexity => Axis::new("perplexity"),
    };
    (axis, move |head: &Head| match measure {
        Measure::Accuracy => head.accuracy,
        Measure::Perplexity => Some(head.loss.exp()),
    })
}

/// Returns the curve of a value over the steps that have it.
fn points(run: &Run, value: impl Fn(&Step) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |step: &Step| Some((step.step as f64, value(step).filter(|value| value.is_finite())?));
    run.steps.iter().filter_map(point).collect()
}

/// Returns the number of updates before an evaluation.
fn updates(evaluated: &Evaluated) -> f64 {
    evaluated.steps as f64
}

/// Returns the curve over `x` of a value of the head of stage `k`, or of the last head, at the evaluations that have it.
fn evaluated(
    run: &Run,
    k: Option<usize>,
    x: &dyn Fn(&Evaluated) -> f64,
    value: &dyn Fn(&Head) -> Option<f64>,
) -> Vec<(f64, f64)> {
    let point = |evaluated: &Evaluated| {
        let head = match k {
            Some(k) => evaluated.heads.iter().find(|head| head.stage == k),
            None => evaluated.heads.last(),
        };
        Some((x(evaluated), value(head?).filter(|value| value.is_finite())?))
    };
    run.evaluations.iter().filter_map(point).collect()
}

fn throughput(run: &Run, name: &str, colour: usize) -> Series {
    let points: Vec<_> =
        run.steps.iter().map(|step| (step.step as f64, step.examples as f64, step.step_seconds)).collect();
    series(name.to_owned(), colour, Line::Plain, ratios(&points, coarse(points.len())))
}

/// Returns the curve of the idle share; `busy` returns busy and total seconds of a step.
fn idle_share(run: &Run, busy: impl Fn(&Step) -> Option<(f64, f64)>) -> Vec<(f64, f64)> {
    let point = |step: &Step| busy(step).map(|(busy, seconds)| (step.step as f64, busy, seconds));
    let points: Vec<_> = run.steps.iter().filter_map(point).collect();
    ratios(&points, coarse(points.len())).into_iter().map(|(x, busy)| (x, (1.0 - busy).clamp(0.0, 1.0))).collect()
}

/// Returns the number of points of a curve in which each covers at least ten steps.
fn coarse(steps: usize) -> usize {
    (steps / 10).clamp(1, MAX_COARSE_POINTS).max(steps.min(10))
}

/// Returns the curves of the stages' widths over the steps, or none if the widths do not change.
fn widths(run: &Run, stages: &[usize]) -> Vec<Series> {
    let phases = run.plans();
    if phases.windows(2).all(|pair| pair[0].follows == pair[1].follows) {
        return Vec::new();
    }
    let end = run.steps.last().map_or(0, |step| step.step);
    let curve = |(n, &k): (usize, &usize)| {
        // Curves are shifted a little, so that equal ones do not hide each other.
        let shift = (n as f64 - (stages.len() as f64 - 1.0) / 2.0) * 0.03;
        let width = |follows: &[Followed]| {
            let farthest = follows.get(k)?.farthest()?;
            Some(farthest.saturating_add(1).saturating_sub(k) as f64 + shift)
        };
        let mut points: Vec<(f64, f64)> = phases
            .iter()
            .filter(|phase| phase.from_step <= end)
            .filter_map(|phase| Some((phase.from_step as f64, width(&phase.follows)?)))
            .collect();
        points.extend(points.last().map(|(_, width)| (end as f64, *width)));
        series(format!("stage {k}"), n, Line::Steps, points)
    };
    stages.iter().enumerate().map(curve).collect()
}
