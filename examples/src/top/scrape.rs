//! Fetches the metrics of a process over HTTP, and reads them.
//!
//! They are in Prometheus's text format: a line `name{label="value",…} number` for each series, and comment lines. Values of labels may contain
//! commas and equal signs, as the names of devices do. Whoever answers at the address may send anything, for any time: what is read is bounded, and
//! values of labels are kept as text that a terminal may show.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use interlock::tools::metrics::{Metric, table};

use crate::terminal::in_one_line;

/// The time limit of a request and its whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of an answer.
const MOST_BYTES: u64 = 32 << 20;
/// The most series that are kept.
const MOST_SAMPLES: usize = 200_000;
/// The most characters of a label's value, and of a line in an error.
const MOST_CHARACTERS: usize = 200;
/// The beginning of the names of all metrics that are shown.
const PREFIX: &str = "interlock_";
/// The labels that are kept.
const LABELS: [&str; 13] = [
    "pipeline", "run_id", "model", "strategy", "state", "stage", "device", "follows", "split", "kind", "phase", "src",
    "dst",
];

/// The labels and the value of a series.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    labels: Vec<(&'static str, Box<str>)>,
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
    /// The indices in `samples` of the samples of each stage and each direction of a boundary, by name and [`place`].
    of_place: HashMap<String, HashMap<String, Vec<usize>>>,
}

/// Returns the key of a stage or of a direction of a boundary.
fn place(stage_or_ends: &[&str]) -> String {
    stage_or_ends.join("\0")
}

impl Scrape {
    /// Fetches the metrics that are served at `address`. Redirects are not followed.
    ///
    /// # Errors
    /// If there is no answer, or it does not contain the metrics of this program, or it is too long.
    pub(super) fn fetch(address: &str) -> Result<Self, String> {
        let config = ureq::Agent::config_builder().timeout_global(Some(TIMEOUT)).max_redirects(0).proxy(None);
        let agent: ureq::Agent = config.build().into();
        let mut answer = agent.get(format!("http://{address}/metrics")).call().map_err(|e| in_words(&e))?;
        if answer.status().is_redirection() {
            return Err(format!(
                "it answers with status {}, a redirect, which is not followed",
                answer.status().as_u16()
            ));
        }
        let body = answer.body_mut().with_config().limit(MOST_BYTES);
        let text = body.read_to_string().map_err(|e| in_words(&e))?;
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
    /// If a line cannot be read; the message names the line. If there are too many series.
    pub(super) fn read(text: &str, at: Instant, unix: f64) -> Result<Self, String> {
        let mut samples: HashMap<String, Vec<Sample>> = HashMap::new();
        let mut of_place: HashMap<String, HashMap<String, Vec<usize>>> = HashMap::new();
        let mut kept = 0;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            let (name, sample) =
                read_line(line).ok_or_else(|| format!("{:?} is not a line of metrics", start_of(line)))?;
            if !name.starts_with(PREFIX) || name.ends_with("_bucket") {
                continue;
            }
            kept += 1;
            if kept > MOST_SAMPLES {
                return Err(format!("it has more than {MOST_SAMPLES} series, which are too many to show"));
            }
            let same = samples.entry(name.to_owned()).or_default();
            let place = match (sample.label("stage"), sample.label("src"), sample.label("dst")) {
                (Some(stage), ..) => Some(place(&[stage])),
                (_, Some(src), Some(dst)) => Some(place(&[src, dst])),
                _ => None,
            };
            if let Some(place) = place {
                of_place.entry(name.to_owned()).or_default().entry(place).or_default().push(same.len());
            }
            same.push(sample);
        }
        Ok(Self { at, unix, samples, of_place })
    }

    /// Returns all samples of this name.
    pub(super) fn all(&self, name: &str) -> &[Sample] {
        self.samples.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns all samples of a stage.
    pub(super) fn of_stage<'a>(&'a self, name: &str, stage: &str) -> impl Iterator<Item = &'a Sample> + use<'a> {
        self.at_place(name, &place(&[stage]))
    }

    fn at_place<'a>(&'a self, name: &str, place: &str) -> impl Iterator<Item = &'a Sample> + use<'a> {
        let all = self.all(name);
        let indices = self.of_place.get(name).and_then(|places| places.get(place));
        indices.into_iter().flatten().map(|&i| &all[i])
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
        let add = |sum, value| sum + value;
        let (place, rest) = match labels {
            [("stage", stage), rest @ ..] => (place(&[stage]), rest),
            [("src", src), ("dst", dst), rest @ ..] => (place(&[src, dst]), rest),
            _ => {
                let all = self.all(name).iter();
                return all.filter(|sample| sample.has(labels)).map(|sample| sample.value).reduce(add);
            }
        };
        self.at_place(name, &place).filter(|sample| sample.has(rest)).map(|sample| sample.value).reduce(add)
    }
}

/// Returns what is wrong with an answer.
fn in_words(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BodyExceedsLimit(bytes) => format!("its answer is longer than {} MiB", bytes >> 20),
        ureq::Error::Timeout(_) => format!("no whole answer came within {} seconds", TIMEOUT.as_secs()),
        other => start_of(&other.to_string()),
    }
}

/// Returns the first characters of a text, for the terminal.
fn start_of(text: &str) -> String {
    let end = text.char_indices().nth(MOST_CHARACTERS).map(|(at, _)| at);
    end.map_or_else(|| text.to_owned(), |end| format!("{}…", &text[..end]))
}

impl Sample {
    pub(super) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| &**value)
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.label(name) == Some(value))
    }
}

/// Reads `name{label="value",…} number`; labels, and a timestamp after the number, may be missing.
fn read_line(line: &str) -> Option<(&str, Sample)> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside.trim_start();
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once('=')?;
            let (value, after) = read_quoted(after.trim_start())?;
            if let Some(label) = LABELS.into_iter().find(|known| *known == label.trim()) {
                labels.push((label, in_one_line(&start_of(&value)).into()));
            }
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
other_a 1
interlock_a 1.5
interlock_b{} 2
interlock_c{device="cpu:threads=1,cores=0-1",stage="3"} 3e-4 1700000000000
interlock_c{ device = "a \"quoted\" \\ name" , stage="4", } +Inf
interlock_c{src="0",dst="1",unknown="x"} 5
interlock_d_bucket{le="0.1"} 7
interlock_d_sum 0.5
interlock_d_count 10
interlock_e NaN
"#;
        let scrape = read(text).unwrap();
        assert_eq!((scrape.all("interlock_a")[0].value, scrape.all("interlock_b")[0].value), (1.5, 2.0));
        let c = scrape.all("interlock_c");
        assert_eq!((c[0].label("device"), c[0].value), (Some("cpu:threads=1,cores=0-1"), 3e-4));
        assert_eq!((c[1].label("device"), c[1].value), (Some("a \"quoted\" \\ name"), f64::INFINITY));
        assert!(scrape.all("interlock_d_bucket").is_empty() && scrape.all("interlock_e")[0].value.is_nan());
        assert_eq!(
            (scrape.sum_of("interlock_c", &[("stage", "3")]), scrape.sum_of("interlock_c", &[("stage", "5")])),
            (Some(3e-4), None)
        );
        assert_eq!(scrape.sum_of("interlock_c", &[("src", "0"), ("dst", "1")]), Some(5.0));
        assert_eq!((c[2].label("unknown"), scrape.all("other_a")), (None, &[][..]));
        assert_eq!(scrape.sum_of("interlock_d_sum", &[]), Some(0.5));
    }

    #[test]
    fn errors_name_the_line() {
        for line in ["<html>", "a{b=\"c\" 1", "a{b} 1", "a b", "a{b=\"c\"}", "{} 1"] {
            let error = read(&format!("x 1\n{line}\n")).unwrap_err();
            assert!(error.contains(&format!("{line:?}")), "{error}");
        }
    }

    #[test]
    fn values_of_labels_are_short_and_harmless_on_a_terminal() {
        let text = format!("interlock_run_info{{run_id=\"\x1b[2J\\n\u{9b}1m\",model=\"{}\"}} 1", "x".repeat(10_000));
        let scrape = read(&text).unwrap();
        let run = &scrape.all("interlock_run_info")[0];
        assert_eq!(run.label("run_id"), Some("\\u001b[2J\\u000a\\u009b1m"));
        assert_eq!(run.label("model").unwrap().chars().count(), MOST_CHARACTERS + 1);
        let error = read(&"\x1b]0;".repeat(10_000)).unwrap_err();
        assert!(error.len() < 2000 && !error.contains('\x1b'), "{error}");
    }

    #[test]
    fn too_many_series_are_refused() {
        let lines = |count: usize| "interlock_step 1\n".repeat(count);
        assert!(read(&lines(MOST_SAMPLES)).is_ok());
        assert!(read(&lines(MOST_SAMPLES + 1)).unwrap_err().contains("more than 200000 series"));
        // Series that are not shown do not count.
        assert!(read(&"other 1\n".repeat(MOST_SAMPLES + 1)).is_ok());
    }
}
