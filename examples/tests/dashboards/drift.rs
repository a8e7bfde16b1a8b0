//! Checks that dashboards and rules use only metrics that exist, and use all of them.

use std::collections::{HashMap, HashSet};

use interlock::tools::metrics::{ALL, MetricKind as Kind};

use crate::{
    files::{dashboards, rules},
    promql::{self, Selector},
};

/// The labels that every series of a run has: those of the scrape (the rank and its address where the run's `targets.json` is read), and one from
/// the program.
const EVERY: [&str; 5] = ["job", "instance", "process", "address", "pipeline"];

/// Metrics from elsewhere: from the crate that watches the process, and from Prometheus itself.
const FOREIGN: [(&str, Kind); 5] = [
    ("process_resident_memory_bytes", Kind::Gauge),
    ("process_cpu_seconds_total", Kind::Counter),
    ("process_threads", Kind::Gauge),
    ("scrape_duration_seconds", Kind::Gauge),
    ("up", Kind::Gauge),
];

/// Rules that use the value of a counter instead of its rate, with the reason.
const WITHOUT_RATE: [(&str, &str); 1] =
    [("InterlockLossNotFinite", "the run may end before a scrape has seen a 0, and increase() would not see the 1")];

/// The metric that a name in a query stands for.
struct Known {
    metric: String,
    kind: Kind,
    labels: Vec<String>,
    /// Whether the name is that of a histogram's series, such as its sum; they count up.
    part: bool,
}

/// Returns the names that rules record, with their labels.
fn recorded() -> HashMap<String, Vec<String>> {
    rules()
        .into_iter()
        .filter(|rule| !rule.alert)
        .map(|rule| {
            let labels = match rule.name.split(':').next() {
                Some("run") => vec![],
                Some("stage") => vec!["stage".to_owned()],
                _ => panic!("{}: a recorded name begins with run: or stage:", rule.name),
            };
            (rule.name, labels)
        })
        .collect()
}

fn known(selector: &Selector, recorded: &HashMap<String, Vec<String>>) -> Option<Known> {
    let name = &*selector.metric;
    let with = |metric: &str, kind, labels: &[&str], part| Known {
        metric: metric.to_owned(),
        kind,
        labels: labels.iter().map(|&label| label.to_owned()).collect(),
        part,
    };
    if let Some(labels) = recorded.get(name) {
        return Some(Known { metric: name.to_owned(), kind: Kind::Gauge, labels: labels.clone(), part: false });
    }
    if let Some(&(metric, kind)) = FOREIGN.iter().find(|(metric, _)| *metric == name) {
        return Some(with(metric, kind, &[], false));
    }
    let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| Some((name.strip_suffix(part)?, *part)));
    ALL.iter().find_map(|metric| match (metric.kind, of_histogram) {
        (Kind::Histogram, Some((base, part))) if base == metric.name => {
            let le: &[&str] = if part == "_bucket" { &["le"] } else { &[] };
            Some(with(metric.name, metric.kind, &[metric.labels, le].concat(), true))
        }
        (Kind::Counter | Kind::Gauge, _) if name == metric.name => Some(with(name, metric.kind, metric.labels, false)),
        _ => None,
    })
}

/// Returns the place, the query and the legend of every panel, variable and rule.
fn queries() -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for dashboard in dashboards() {
        for panel in dashboard.panels {
            all.extend(panel.queries.into_iter().map(|query| (panel.place.clone(), query.expr, query.legend)));
        }
        for variable in dashboard.variables {
            let (selector, label) = values_of(&variable.query);
            let place = format!("{}, variable {}", dashboard.name, variable.name);
            all.push((place, selector.to_owned(), format!("{{{{{label}}}}}")));
        }
    }
    for rule in rules() {
        // Annotations name labels as legends do.
        let annotations = rule.json["annotations"].to_string().replace("with $labels.", "").replace("$labels.", "");
        all.push((rule.name, rule.expr, if rule.alert { annotations } else { String::new() }));
    }
    all
}

/// Returns selector and label of `label_values(selector, label)`.
pub(crate) fn values_of(query: &str) -> (&str, &str) {
    let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
    inner
        .and_then(|inner| inner.rsplit_once(", "))
        .unwrap_or_else(|| panic!("{query} is not label_values(selector, label)"))
}

/// Returns the labels in a legend, written as `{{label}}`. `{{ . }}` and `{{ end }}` belong to the label of a `with` before them.
pub(crate) fn legend_labels(legend: &str) -> Vec<&str> {
    let inner = legend.split("{{").skip(1).filter_map(|rest| rest.split_once("}}"));
    let is_label = |text: &&str| !text.starts_with('$') && ![".", "end"].contains(text);
    inner.map(|(label, _)| label.trim()).filter(is_label).collect()
}

#[test]
fn queries_use_existing_metrics_and_labels_correctly() {
    let recorded = recorded();
    for (place, query, legend) in queries() {
        let names = promql::names(&query);
        assert!(!names.selectors.is_empty(), "{place}: {query} names no metric");
        let mut labels: HashSet<String> = EVERY.map(str::to_owned).into();
        labels.extend(names.made.iter().cloned());
        for selector in &names.selectors {
            let Some(known) = known(selector, &recorded) else {
                panic!("{place}: no metric is called {}; interlock::tools::metrics lists them", selector.metric)
            };
            for (label, _) in &selector.matchers {
                let there = EVERY.contains(&&**label) || known.labels.contains(label);
                assert!(there, "{place}: {} has no label {label}", selector.metric);
            }
            check_rates(&place, selector, &known);
            labels.extend(known.labels);
        }
        for label in names.grouped.iter().map(String::as_str).chain(legend_labels(&legend)) {
            assert!(labels.contains(label), "{place}: no metric of it has a label {label}");
        }
        let quantile = query.contains("histogram_quantile(");
        assert!(!quantile || names.grouped.iter().any(|label| label == "le"), "{place}: a quantile needs `by (le)`");
    }
}

/// Asserts that queries take rates of counters and of the series of histograms, and not of gauges.
fn check_rates(place: &str, selector: &Selector, known: &Known) {
    let rate = selector.inside.last().is_some_and(|of| of == "rate" || of == "increase");
    let counts = known.kind == Kind::Counter || known.part;
    let excepted = WITHOUT_RATE.iter().any(|(of, _)| *of == place);
    // Variables look up only the values of a label.
    let only_labels = place.contains(", variable ");
    assert!(rate == counts || excepted || only_labels, "{place}: rate() or increase() of {}: {rate}", selector.metric);
    let bucket = selector.metric.ends_with("_bucket");
    let quantile = selector.inside.iter().any(|of| of == "histogram_quantile");
    assert_eq!(bucket, quantile, "{place}: {} and histogram_quantile() go together", selector.metric);
}

#[test]
fn every_metric_is_shown_or_watched() {
    let recorded = recorded();
    let names = queries().into_iter().flat_map(|(_, query, _)| promql::names(&query).selectors);
    let used: HashSet<String> = names.filter_map(|selector| Some(known(&selector, &recorded)?.metric)).collect();
    let unused: Vec<&str> = ALL.iter().map(|metric| metric.name).filter(|name| !used.contains(*name)).collect();
    assert!(unused.is_empty(), "no dashboard and no rule uses {unused:?}");
    let unused: Vec<&String> = recorded.keys().filter(|name| !used.contains(*name)).collect();
    assert!(unused.is_empty(), "recorded but not used: {unused:?}");
}
