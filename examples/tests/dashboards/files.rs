//! Reads the files of `grafana/`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::yaml;

/// Returns the folder.
pub(crate) fn grafana() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("grafana")
}

/// A query of a panel.
pub(crate) struct Query {
    pub(crate) expr: String,
    pub(crate) legend: String,
    /// Whether it is evaluated only at the end of the shown time, instead of all along it.
    pub(crate) instant: bool,
}

/// A panel that is not a row.
pub(crate) struct Panel {
    /// Dashboard and title.
    pub(crate) place: String,
    pub(crate) title: String,
    pub(crate) json: Value,
    pub(crate) queries: Vec<Query>,
}

/// A variable whose values come from a query.
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) query: String,
    pub(crate) multi: bool,
}

pub(crate) struct Dashboard {
    /// The name of its file, without the ending.
    pub(crate) name: String,
    pub(crate) json: Value,
    pub(crate) panels: Vec<Panel>,
    pub(crate) variables: Vec<Variable>,
}

/// Reads all dashboards, in the order of their names.
pub(crate) fn dashboards() -> Vec<Dashboard> {
    let all: Vec<Dashboard> = listed("dashboards", "json").iter().map(|path| dashboard(path)).collect();
    let names: Vec<&str> = all.iter().map(|board| &*board.name).collect();
    assert_eq!(names, ["fleet", "learning", "pipeline"], "the dashboards that the tests and the documentation know");
    all
}

/// Returns the files of a folder of `grafana/` with this ending, in order.
pub(crate) fn listed(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = grafana().join(folder);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> =
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    paths.sort();
    assert!(!paths.is_empty(), "no *.{ending} in {}", folder.display());
    paths
}

fn dashboard(path: &Path) -> Dashboard {
    let text = fs::read_to_string(path).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let shown = json["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row");
    let panels = shown.map(|json| panel(&name, json)).collect();
    let listed = json["templating"]["list"].as_array().unwrap().iter().filter(|variable| variable["type"] == "query");
    let variables = listed
        .map(|json| Variable {
            name: text_of(json, "name"),
            query: text_of(&json["query"], "query"),
            multi: json["multi"].as_bool().unwrap(),
        })
        .collect();
    Dashboard { name, panels, variables, json }
}

fn panel(dashboard: &str, json: &Value) -> Panel {
    let title = text_of(json, "title");
    let place = format!("{dashboard} / {title}");
    let targets = json["targets"].as_array().unwrap_or_else(|| panic!("{place}: no targets"));
    let query = |target: &Value| Query {
        expr: text_of(target, "expr"),
        legend: text_of(target, "legendFormat"),
        instant: target["instant"].as_bool().unwrap_or_else(|| panic!("{place}: a target without instant")),
    };
    Panel { queries: targets.iter().map(query).collect(), json: json.clone(), title, place }
}

/// Returns the text of a key.
pub(crate) fn text_of(json: &Value, key: &str) -> String {
    json[key].as_str().unwrap_or_else(|| panic!("no text {key:?} in {json}")).to_owned()
}

/// A rule for an alert or for a recorded series.
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) expr: String,
    pub(crate) alert: bool,
    pub(crate) json: Value,
}

/// Reads the rules of all files of `rules/`.
pub(crate) fn rules() -> Vec<Rule> {
    let mut rules = Vec::new();
    for path in listed("rules", "yml") {
        for group in yaml::read(&path)["groups"].as_array().unwrap() {
            for json in group["rules"].as_array().unwrap() {
                let alert = json.get("alert").is_some();
                let name = text_of(json, if alert { "alert" } else { "record" });
                rules.push(Rule { name, expr: text_of(json, "expr"), alert, json: json.clone() });
            }
        }
    }
    rules
}
