//! Checks the dashboards' settings, layout and queries.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::{
    files::{Dashboard, Panel, dashboards, text_of},
    promql,
};

/// The units that the dashboards may use.
const UNITS: [&str; 6] = ["s", "bytes", "Bps", "percentunit", "short", "none"];

/// The variables that Grafana defines itself.
const BUILT_IN: [&str; 2] = ["__rate_interval", "__range"];

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

#[test]
fn dashboards_can_be_imported_anywhere() {
    let mut titles = HashSet::new();
    for Dashboard { name, json, variables, .. } in dashboards() {
        for key in ["id", "__inputs", "__requires", "__elements", "version", "iteration", "gnetId"] {
            assert!(json.get(key).is_none(), "{name}: {key:?} belongs to one server, or to an export");
        }
        assert_eq!(json["uid"], format!("interlock-{name}"), "{name}: links to a dashboard go by its uid");
        assert!(titles.insert(text_of(&json, "title")), "{name}: its title is that of another");
        assert!(!text_of(&json, "description").is_empty(), "{name}: no description");
        assert!((39..=41).contains(&json["schemaVersion"].as_u64().unwrap()), "{name}: schemaVersion");
        assert_eq!(json["tags"], json!(["interlock"]), "{name}: dashboards link to each other by this tag");
        let listed = json["templating"]["list"].as_array().unwrap();
        let names: Vec<String> = listed.iter().map(|variable| text_of(variable, "name")).collect();
        assert_eq!(names, ["datasource", "job", "pipeline", "instance", "stage"], "{name}: links carry variables over");
        assert_eq!((&listed[0]["type"], &listed[0]["query"]), (&json!("datasource"), &json!("prometheus")), "{name}");
        assert_eq!(variables.len(), 4, "{name}: all others ask Prometheus");
        for variable in &listed[1..] {
            let place = format!("{name}, variable {}", variable["name"]);
            assert_eq!(variable["datasource"], source(), "{place}");
            assert_eq!(
                variable["refresh"], 2,
                "{place}: runs that have ended are found in the range of time that is shown"
            );
            assert_eq!(variable["multi"], variable["includeAll"], "{place}");
            let all = if variable["multi"] == true { json!(".+") } else { Value::Null };
            assert_eq!(
                variable.get("allValue").unwrap_or(&Value::Null),
                &all,
                "{place}: all, not only those that are there now"
            );
        }
        assert_eq!(listed[4]["multi"], true, "{name}: several stages at once");
    }
}

#[test]
fn panels_are_complete() {
    let mut titles = HashSet::new();
    for Dashboard { name, json, panels, .. } in dashboards() {
        for Panel { place, title, json, queries } in &panels {
            assert!(titles.insert((name.clone(), title.clone())), "{place}: its title is that of another");
            assert!(text_of(json, "description").len() > 10, "{place}: no description");
            assert_eq!(json["datasource"], source(), "{place}");
            let units = [vec![&json["fieldConfig"]["defaults"]["unit"]], overridden(json, "unit")].concat();
            for unit in units {
                assert!(
                    unit.as_str().is_some_and(|unit| UNITS.contains(&unit)),
                    "{place}: unit {unit}, not one of {UNITS:?}"
                );
            }
            assert!(!queries.is_empty(), "{place}: no query");
            let targets = json["targets"].as_array().unwrap();
            for (k, target) in targets.iter().enumerate() {
                assert_eq!(target["datasource"], source(), "{place}");
                assert_eq!(target["refId"], json!(["A", "B", "C", "D", "E", "F", "G"][k]), "{place}");
                assert_eq!(target["range"], !target["instant"].as_bool().unwrap(), "{place}");
                let table = json["type"] == "table";
                assert_eq!(
                    target["format"] == "table",
                    table,
                    "{place}: tables, and only they, are asked for as tables"
                );
                assert!(
                    table || json["type"] == "stat" || !text_of(target, "legendFormat").is_empty(),
                    "{place}: no legend"
                );
            }
        }
        let rows = json["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] == "row");
        for row in rows {
            assert_eq!(
                (&row["panels"], &row["collapsed"]),
                (&json!([]), &json!(false)),
                "{name}: open rows contain no panels"
            );
        }
    }
}

/// Alerts and links name panels by their ids. So the id of a panel stays, and that of a removed panel is not used again: a new panel takes the number
/// after the highest that the dashboard ever had. The snapshot holds all ids, so that a change of one is seen.
#[test]
fn panels_have_stable_unique_ids() {
    let mut lines = Vec::new();
    for Dashboard { name, json, .. } in dashboards() {
        let mut ids = HashSet::new();
        for panel in json["panels"].as_array().unwrap() {
            let title = text_of(panel, "title");
            let id = panel["id"].as_u64().filter(|id| *id > 0);
            let id = id.unwrap_or_else(|| panic!("{name} / {title}: id {} is not a positive integer", panel["id"]));
            assert!(ids.insert(id), "{name} / {title}: another panel has id {id}; take the next that was never used");
            lines.push(format!("{name} {id} {} {title}", text_of(panel, "type")));
        }
    }
    insta::assert_snapshot!("panel_ids", lines.join("\n"));
}

/// Returns the values that overrides give a property.
fn overridden<'a>(panel: &'a Value, id: &str) -> Vec<&'a Value> {
    let overrides = panel["fieldConfig"]["overrides"].as_array().unwrap();
    let properties = overrides.iter().flat_map(|one| one["properties"].as_array().unwrap());
    properties.filter(|property| property["id"] == id).map(|property| &property["value"]).collect()
}

#[test]
fn panels_fill_the_grid_without_overlap() {
    for Dashboard { name, json, .. } in dashboards() {
        let mut taken = HashSet::new();
        for panel in json["panels"].as_array().unwrap() {
            let place = format!("{name} / {}", panel["title"]);
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(w > 0 && h > 0 && x + w <= 24, "{place}: {w} columns from {x}, of 24");
            for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line))) {
                assert!(taken.insert(cell), "{place}: column and line {cell:?} belong to another panel too");
            }
        }
        // Grafana moves panels up into holes, and the file would no longer say where they are.
        let lines = taken.iter().map(|cell| cell.1).max().unwrap() + 1;
        assert!((0..lines).all(|line| taken.iter().any(|cell| cell.1 == line)), "{name}: an empty line");
    }
}

#[test]
fn queries_select_the_chosen_runs_and_time_ranges() {
    for Dashboard { name, panels, variables, json } in dashboards() {
        let known: Vec<&str> = variables.iter().map(|variable| &*variable.name).collect();
        let mut used = HashSet::new();
        for (place, query) in panels.iter().flat_map(|p| p.queries.iter().map(|q| (&p.place, &q.expr))) {
            for variable in query.split('$').skip(1) {
                let end = variable.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(variable.len());
                let variable = &variable[..end];
                assert!(
                    known.contains(&variable) || BUILT_IN.contains(&variable),
                    "{place}: ${variable} is not defined"
                );
                used.insert(variable.to_owned());
            }
            let ranges = query.split('[').skip(1).map(|rest| rest.split(']').next().unwrap());
            for range in ranges.flat_map(|range| range.split(':')) {
                assert!(
                    ["$__rate_interval", "$__range"].contains(&range),
                    "{place}: [{range}] does not follow the zoom"
                );
            }
            for selector in promql::names(query).selectors {
                let of = |label: &str| selector.matchers.iter().find(|(l, _)| l == label).map(|(_, text)| &**text);
                let place = format!("{place}: {}", selector.metric);
                assert_eq!((of("job"), of("instance")), (Some("$job"), Some("$instance")), "{place} mixes runs");
                assert!(
                    of("pipeline") == Some("$pipeline")
                        || ["up", "scrape_duration_seconds"].contains(&&*selector.metric),
                    "{place} mixes runs"
                );
            }
        }
        assert!(known.iter().all(|variable| used.contains(*variable)), "{name}: a variable without use, of {known:?}");
        // Several values of a variable become a regular expression.
        let text = json["panels"].to_string();
        for variable in &variables {
            let wrong = format!("{}\\\"${}\\\"", if variable.multi { "=" } else { "=~" }, variable.name);
            assert!(!text.contains(&wrong), "{name}: {wrong}");
        }
    }
}
