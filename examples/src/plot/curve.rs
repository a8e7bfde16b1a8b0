//! Reduces the many points of a run to the few of a plot.

/// The largest number of points of all curves of a plot together.
const MAX_POINTS: usize = 12_000;

/// Returns the largest number of points for each of `curves` curves.
pub(crate) fn points_for(curves: usize) -> usize {
    (MAX_POINTS / curves.max(1)).clamp(100, 1000)
}

/// Returns at most `most` points: means over bins of neighbours, whose sizes differ by at most one.
pub(crate) fn binned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let mean = |bin: &[(f64, f64)]| {
        let (x, y) = bin.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (x / bin.len() as f64, y / bin.len() as f64)
    };
    bins(points, most).map(mean).collect()
}

/// Returns at most `most` points of a ratio, given as `(x, numerator, denominator)`: the ratio of the sums over each bin.
pub(crate) fn ratios(points: &[(f64, f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let ratio = |bin: &[(f64, f64, f64)]| {
        let sum = bin.iter().fold((0.0, 0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1, sum.2 + p.2));
        (sum.0 / bin.len() as f64, sum.1 / sum.2)
    };
    bins(points, most).map(ratio).filter(|(_, y)| y.is_finite()).collect()
}

fn bins<T>(points: &[T], most: usize) -> impl Iterator<Item = &[T]> {
    let count = points.len().min(most.max(1));
    let edge = move |n: usize| n * points.len() / count.max(1);
    (0..count).map(move |n| &points[edge(n)..edge(n + 1)])
}

/// Returns the moving mean over a fiftieth of the points around each point: over fewer at the start, where curves are steep, and over the
/// previous ones at the end.
pub(crate) fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / 100;
    let mut sums = vec![0.0];
    for (n, (_, y)) in points.iter().enumerate() {
        sums.push(sums[n] + y);
    }
    let mean = |(n, &(x, _)): (usize, &(f64, f64))| {
        let before = reach.min(n);
        let after = before.min(points.len() - 1 - n);
        (x, (sums[n + after + 1] - sums[n - before]) / (before + after + 1) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_keep_means_and_few_points_are_all_kept() {
        let line: Vec<(f64, f64)> = (0..100_003).map(|n| (f64::from(n), 2.0 * f64::from(n))).collect();
        let thin = binned(&line, 1000);
        assert_eq!(thin.len(), 1000);
        assert!(thin.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(thin.iter().all(|(x, y)| (y - 2.0 * x).abs() < 1e-6));
        assert_eq!(binned(&line[..7], 1000), line[..7]);
        assert_eq!(binned(&[], 10), []);
        assert_eq!(binned(&line[..4], 0), [(1.5, 3.0)]);
        assert_eq!((points_for(0), points_for(4), points_for(100), points_for(10_000)), (1000, 1000, 120, 100));
    }

    #[test]
    fn ratios_are_of_sums_not_means_of_ratios() {
        assert_eq!(ratios(&[(0.0, 1.0, 1.0), (2.0, 1.0, 3.0)], 1), [(1.0, 0.5)]);
        assert_eq!(ratios(&[(0.0, 1.0, 0.0)], 5), []);
    }

    #[test]
    fn moving_mean_keeps_lines_and_flattens_noise() {
        let line: Vec<(f64, f64)> = (0..500).map(|n| (f64::from(n), f64::from(n))).collect();
        let smooth = smoothed(&line);
        assert!(smooth[..495].iter().all(|(x, y)| (x - y).abs() < 1e-9));
        assert_eq!(smooth[499], (499.0, 496.5));
        let noise: Vec<(f64, f64)> = (0..500).map(|n| (f64::from(n), f64::from(n % 2))).collect();
        assert!(smoothed(&noise)[20..480].iter().all(|(_, y)| (y - 0.5).abs() < 0.1));
        assert_eq!(smoothed(&line[..50]), line[..50]);
        assert_eq!(smoothed(&[]), []);
    }
}
