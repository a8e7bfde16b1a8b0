//! Starts a Prometheus for a test, and asks it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};

use crate::{
    files::{grafana, listed},
    process::{Process, free_address, wait_for},
    scrape::get,
    yaml,
};

/// A Prometheus that scrapes every second, and stores its data in the folder of the test.
pub(crate) struct Prometheus {
    pub(crate) process: Process,
    pub(crate) api: Api,
}

/// The HTTP API of a Prometheus.
pub(crate) struct Api {
    url: String,
}

/// A series of an answer: labels, and values at times.
pub(crate) struct Series {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) values: Vec<(f64, f64)>,
}

/// Returns the seconds since the Unix epoch.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64()
}

impl Prometheus {
    /// Starts one with the configuration and the rules of `grafana/`, with other times and targets, and rules changed by `change`. It also scrapes the
    /// run of several ranks in the folder `ranks`.
    pub(crate) fn start(folder: &Path, targets: &[&str], change: impl Fn(&mut Value)) -> Self {
        let mut config = yaml::read(&grafana().join("prometheus.yml"));
        config["global"] = json!({ "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" });
        let job = config["scrape_configs"][0].as_object_mut().unwrap();
        let ranks = folder.join("ranks/targets.json").display().to_string();
        job.insert("file_sd_configs".to_owned(), json!([{ "files": [ranks], "refresh_interval": "1s" }]));
        job.insert("static_configs".to_owned(), json!([{ "targets": targets }]));
        let changed = |path: &std::path::PathBuf| {
            let mut rules = yaml::read(path);
            for group in rules["groups"].as_array_mut().unwrap() {
                group["rules"].as_array_mut().unwrap().iter_mut().for_each(&change);
            }
            let to = folder.join(path.file_name().unwrap());
            fs::write(&to, rules.to_string()).unwrap(); // JSON is YAML
            to.display().to_string()
        };
        config["rule_files"] = listed("rules", "yml").iter().map(changed).collect();
        let file = folder.join("prometheus.yml");
        fs::write(&file, config.to_string()).unwrap();

        let address = free_address();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("storage").display()));
        command.args([&format!("--web.listen-address={address}"), "--log.level=warn"]);
        let mut process = Process::start("prometheus", &mut command, folder);
        let url = format!("http://{address}");
        wait_for("Prometheus is ready", Duration::from_secs(30), &mut [&mut process], || {
            match get(&format!("{url}/-/ready"), &[])? {
                (true, _) => Ok(()),
                (false, text) => Err(text),
            }
        });
        Self { process, api: Api { url } }
    }
}

impl Api {
    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let (success, text) = get(&format!("{}/api/v1/{path}", self.url), parameters)?;
        let answer: Value = serde_json::from_str(&text).map_err(|e| format!("{path}: {e}: {text}"))?;
        if success && answer["status"] == "success" {
            Ok(answer["data"].clone())
        } else {
            Err(answer["error"].to_string())
        }
    }

    /// Evaluates a query at one time.
    pub(crate) fn at(&self, query: &str, time: f64) -> Result<Vec<Series>, String> {
        Ok(series(&self.ask("query", &[("query", query), ("time", &time.to_string())])?))
    }

    /// Evaluates a query from `start` to `end`, every second.
    pub(crate) fn along(&self, query: &str, start: f64, end: f64) -> Result<Vec<Series>, String> {
        let times = [("start", &*start.to_string()), ("end", &end.to_string()), ("step", "1")];
        Ok(series(&self.ask("query_range", &[&[("query", query)], &times[..]].concat())?))
    }

    /// Returns the values of a label of the series that a selector finds between two times.
    pub(crate) fn label_values(
        &self,
        selector: &str,
        label: &str,
        start: f64,
        end: f64,
    ) -> Result<Vec<String>, String> {
        let times = [("start", &*start.to_string()), ("end", &end.to_string())];
        let values = self.ask(&format!("label/{label}/values"), &[&[("match[]", selector)], &times[..]].concat())?;
        Ok(values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect())
    }

    /// Returns the labels of the alerts that fire, with their summary as label `summary`.
    pub(crate) fn firing(&self) -> Result<Vec<BTreeMap<String, String>>, String> {
        let alerts = self.ask("alerts", &[])?["alerts"].clone();
        let firing = alerts.as_array().unwrap().iter().filter(|alert| alert["state"] == "firing");
        Ok(firing
            .map(|alert| {
                let mut labels = texts(&alert["labels"]);
                labels.insert("summary".to_owned(), alert["annotations"]["summary"].as_str().unwrap().to_owned());
                labels
            })
            .collect())
    }
}

fn texts(labels: &Value) -> BTreeMap<String, String> {
    labels.as_object().unwrap().iter().map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

fn series(data: &Value) -> Vec<Series> {
    let sample = |pair: &Value| (pair[0].as_f64().unwrap(), pair[1].as_str().unwrap().parse().unwrap());
    let all = data["result"].as_array().unwrap_or_else(|| panic!("an answer that is not a list: {data}"));
    all.iter()
        .map(|one| Series {
            labels: texts(&one["metric"]),
            values: match one.get("values") {
                Some(values) => values.as_array().unwrap().iter().map(sample).collect(),
                None => vec![sample(&one["value"])],
            },
        })
        .collect()
}
