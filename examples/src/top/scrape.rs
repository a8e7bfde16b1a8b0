//! Fetches the metrics of a process over HTTP, and reads them.
//!
//! They are in Prometheus's text format: a line `name{label="value",…} number` for each series, and comment lines. Values of labels may contain
//! commas and equal signs, as the names of devices do.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use interlock::tools::metrics::{Metric, table};

/// The time limit of a request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The labels and the value of a series.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// The values of all series of a process at one moment.
#[derive(Clone, Debug)]
pub(super) struct Scrape {
    /// The time of the scrape.
    pub(super) at: Instant,
    /// The same, in seconds since the Unix epoch.
    pub(super) unix: f64,
    /// The samples by name.
    samples: HashMap<String, Vec<Sample>>,
    /// The indices of each stage's samples in `samples`, by name and stage.
    of_stage: HashMap<String, HashMap<String, Vec<usize>>>,
}

impl Scrape {
    /// Fetches the metrics that are served at `address`.
    ///
    /// # Errors
    /// If there is no answer, or it does not contain the metrics of this program.
    pub(super) fn fetch(address: &str) -> Result<Self, String> {
        let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).proxy(None).build().into();
        let mut answer = agent.get(format!("http://{address}/metrics")).call().map_err(|e| e.to_string())?;
        let text = answer.body_mut().read_to_string().map_err(|e| e.to_string())?;
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let scrape = Self::read(&text, Instant::now(), unix.as_secs_f64())?;
        match scrape.samples.contains_key(table::BUILD_INFO.name) {
            true => Ok(scrape),
            false => Err("it does not serve the metrics of interlock".to_owned()),
        }
    }

    /// Reads a text of metrics, without the buckets of histograms.
    ///
    /// # Errors
    /// If a line cannot be read; the message names the line.
    pub(super) fn read(text: &str, at: Instant, unix: f64) -> Result<Self, String> {
        let mut samples: HashMap<String, Vec<Sample>> = HashMap::new();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let (name, sample) = read_line(line).ok_or_else(|| format!("{line:?} is not a line of metrics"))?;
            if !name.ends_with("_bucket") {
                samples.entry(name.to_owned()).or_default().push(sample);
            }
        }
        let mut of_stage: HashMap<String, HashMap<String, Vec<usize>>> = HashMap::new();
        for (name, all) in &samples {
            for (i, sample) in all.iter().enumerate() {
                if let Some(stage) = sample.label("stage") {
                    of_stage.entry(name.clone()).or_default().entry(stage.to_owned()).or_default().push(i);
                }
            }
        }
        Ok(Self { at, unix, samples, of_stage })
    }

    /// Returns all samples of this name.
    pub(super) fn all(&self, name: &str) -> &[Sample] {
        self.samples.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the sum over all series of a metric that have these labels, and perhaps others. Returns none if there is no such series.
    pub(super) fn get(&self, metric: &Metric, labels: &[(&str, &str)]) -> Option<f64> {
        self.sum_of(metric.name, labels)
    }

    /// Returns the sum and the number of the values of a histogram, summed over series as in [`Self::get`].
    pub(super) fn sum_and_count(&self, metric: &Metric, labels: &[(&str, &str)]) -> Option<(f64, f64)> {
        let part = |end: &str| self.sum_of(&format!("{}{end}", metric.name), labels);
        part("_sum").zip(part("_count"))
    }

    fn sum_of(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let all = self.all(name);
        let add = |sum, value| sum + value;
        match labels {
            [("stage", stage), rest @ ..] => {
                let of_stage = self.of_stage.get(name)?.get(*stage)?.iter().map(|&i| &all[i]);
                of_stage.filter(|sample| sample.has(rest)).map(|sample| sample.value).reduce(add)
            }
            _ => all.iter().filter(|sample| sample.has(labels)).map(|sample| sample.value).reduce(add),
        }
    }
}

impl Sample {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == Some(value))
    }
}

/// Reads `name{label="value",…} number`; labels, and a timestamp after the number, may be missing.
fn read_line(line: &str) -> Option<(&str, Sample)> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside.trim_start();
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once('=')?;
            let (value, after) = read_quoted(after.trim_start())?;
            labels.insert(label.trim().to_owned(), value);
            rest = after.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        rest = &rest[1..];
    }
    let value = match rest.split_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    (!name.is_empty()).then_some((name, Sample { labels, value }))
}

/// Reads a quoted string at the beginning of `text`. Returns it without quotes and escapes, and the text after it.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut characters = inside.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &inside[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Scrape, String> {
        Scrape::read(text, Instant::now(), 0.0)
    }

    #[test]
    fn every_form_of_line_is_read() {
        let text = r#"
# HELP a Something {with="braces"} 1
# TYPE a gauge
a 1.5
b{} 2
c{device="cpu:threads=1,cores=0-1",stage="3"} 3e-4 1700000000000
c{ device = "a \"quoted\" \\ name\n" , stage="4", } +Inf
d_bucket{le="0.1"} 7
d_sum 0.5
d_count 10
e NaN
"#;
        let scrape = read(text).unwrap();
        assert_eq!((scrape.all("a")[0].value, scrape.all("b")[0].value), (1.5, 2.0));
        let c = scrape.all("c");
        assert_eq!((c[0].label("device"), c[0].value), (Some("cpu:threads=1,cores=0-1"), 3e-4));
        assert_eq!((c[1].label("device"), c[1].value), (Some("a \"quoted\" \\ name\n"), f64::INFINITY));
        assert!(scrape.all("d_bucket").is_empty() && scrape.all("e")[0].value.is_nan());
        assert_eq!((scrape.sum_of("c", &[("stage", "3")]), scrape.sum_of("c", &[("stage", "5")])), (Some(3e-4), None));
        assert_eq!(scrape.sum_of("d_sum", &[]), Some(0.5));
    }

    #[test]
    fn errors_name_the_line() {
        for line in ["<html>", "a{b=\"c\" 1", "a{b} 1", "a b", "a{b=\"c\"}", "{} 1"] {
            let error = read(&format!("x 1\n{line}\n")).unwrap_err();
            assert!(error.contains(&format!("{line:?}")), "{error}");
        }
    }
}
