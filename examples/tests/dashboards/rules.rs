//! Checks that every alert gives advice, and has tests in which it fires and in which it does not.

use std::{collections::HashSet, fs};

use crate::{
    files::{grafana, listed, rules, text_of},
    yaml,
};

#[test]
fn alerts_give_advice() {
    let names: Vec<String> = rules().into_iter().filter(|rule| rule.alert).map(|rule| rule.name).collect();
    let expected = [
        "StageStalled",
        "LossNotFinite",
        "PipelineImbalanced",
        "MailboxNearFull",
        "ThroughputDrop",
        "CheckpointStale",
        "CheckpointFailing",
        "StageRestarting",
        "TargetDown",
    ];
    let expected = expected.map(|name| format!("Interlock{name}"));
    assert_eq!(names, expected, "the alerts that the documentation lists");
    for rule in rules().into_iter().filter(|rule| rule.alert) {
        let severity = text_of(&rule.json["labels"], "severity");
        assert!(["critical", "warning"].contains(&&*severity), "{}: severity {severity:?}", rule.name);
        let (summary, description) =
            (text_of(&rule.json["annotations"], "summary"), text_of(&rule.json["annotations"], "description"));
        let label = if rule.name == "InterlockTargetDown" { "$labels.instance" } else { "$labels.pipeline" };
        assert!(summary.contains(label), "{}: the summary does not name the run", rule.name);
        let advice = ["look", "Look", "raise", "lower", "Lower", "find"];
        assert!(advice.iter().any(|word| description.contains(word)), "{}: the description gives no advice", rule.name);
    }
}

/// Returns the addresses of a Markdown text's headings within it, as Git hosts make them of headings without punctuation.
fn anchors(text: &str) -> HashSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings.map(|heading| heading.to_lowercase().replace(' ', "-")).collect()
}

#[test]
fn alerts_link_to_their_sections_of_the_documentation() {
    let anchors = anchors(&fs::read_to_string(grafana().join("README.md")).unwrap());
    for rule in rules().into_iter().filter(|rule| rule.alert) {
        let url = text_of(&rule.json["annotations"], "runbook_url");
        let (page, anchor) = url.split_once('#').unwrap_or_else(|| panic!("{}: {url} names no heading", rule.name));
        // A path in the repository, or an address that ends in it.
        assert!(page == "grafana/README.md" || page.ends_with("/grafana/README.md"), "{}: {url}", rule.name);
        assert_eq!(anchor, rule.name.to_lowercase(), "{}: the section of the alert", rule.name);
        assert!(anchors.contains(anchor), "{}: grafana/README.md has no heading #{anchor}", rule.name);
    }
}

#[test]
fn tests_cover_firing_and_silent_alerts() {
    let (mut fires, mut silent) = (HashSet::new(), HashSet::new());
    for path in listed("rules/tests", "yml") {
        let file = yaml::read(&path);
        assert_eq!(file["rule_files"], serde_json::json!(["../recording.yml", "../alerts.yml"]), "{}", path.display());
        for test in file["tests"].as_array().unwrap() {
            // Only tests in which an alert never fires count as silent: being silent before it fires proves less.
            let cases: Vec<(String, bool)> = test["alert_rule_test"]
                .as_array()
                .unwrap_or_else(|| panic!("{}: a test without alert_rule_test", path.display()))
                .iter()
                .map(|case| (text_of(case, "alertname"), !case["exp_alerts"].as_array().unwrap().is_empty()))
                .collect();
            let firing: HashSet<String> = cases.iter().filter(|case| case.1).map(|case| case.0.clone()).collect();
            silent.extend(cases.into_iter().map(|case| case.0).filter(|name| !firing.contains(name)));
            fires.extend(firing);
        }
    }
    let alerts: HashSet<String> = rules().into_iter().filter(|rule| rule.alert).map(|rule| rule.name).collect();
    assert_eq!(fires, alerts, "alerts that fire in some test");
    assert_eq!(silent, alerts, "alerts that never fire in some test");
}
