//! Reading `events.jsonl`.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use interlock::{Error, Result};
use serde::Deserialize;

use super::{Event, EventKind, check_format};
use crate::{bounded, memory::in_words};

/// The fields that all events have.
#[derive(Deserialize)]
struct Tag {
    format: Option<u32>,
    time: f64,
    event: String,
}

/// Parses the event of one line.
///
/// # Errors
/// If the line is not an event; the message says what is missing or wrong.
fn parse(line: &[u8]) -> serde_json::Result<Event> {
    // Reading the tag first and then its fields is many times faster than a tagged enum, and runs have many lines.
    let Tag { format, time, event } = serde_json::from_slice(line)?;
    check_format(format).map_err(serde::de::Error::custom)?;
    let what = match event.as_str() {
        "started" => EventKind::Started(serde_json::from_slice(line)?),
        "resumed" => EventKind::Resumed(serde_json::from_slice(line)?),
        "checkpoint_saved" => EventKind::CheckpointSaved(serde_json::from_slice(line)?),
        "restarted" => EventKind::Restarted(serde_json::from_slice(line)?),
        "step_skipped" => EventKind::StepSkipped(serde_json::from_slice(line)?),
        "checkpoint_failed" => EventKind::CheckpointFailed(serde_json::from_slice(line)?),
        "step" => EventKind::Step(serde_json::from_slice(line)?),
        "plan_changed" => EventKind::PlanChanged(serde_json::from_slice(line)?),
        "evaluated" => EventKind::Evaluated(serde_json::from_slice(line)?),
        "finished" => EventKind::Finished(serde_json::from_slice(line)?),
        "failed" => EventKind::Failed(serde_json::from_slice(line)?),
        other => return Err(serde::de::Error::custom(format!("there is no event {other:?}"))),
    };
    Ok(Event { time, what })
}

/// Reads the events of the file at `path`, in order. Ignores an incomplete last line: the program that writes it was killed, or has not finished
/// writing it.
///
/// # Errors
/// If the file cannot be read, or another line is not an event; the message names the line.
pub(crate) fn read(path: &Path) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    each(path, |event, _| events.push(event))?;
    Ok(events)
}

/// Calls `take` with each event of the file and its line.
fn each(path: &Path, mut take: impl FnMut(Event, &[u8])) -> Result<()> {
    let mut file = BufReader::new(File::open(path).map_err(|e| Error::file(path, e))?);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if (&mut file).take(bounded::LINE).read_until(b'\n', &mut line).map_err(|e| Error::file(path, e))? == 0 {
            break;
        }
        match parse(&line) {
            Ok(event) => take(event, &line),
            Err(_) if line.len() as u64 == bounded::LINE => {
                let cause = format!("line {number} has {} or more, which no event has", in_words(bounded::LINE));
                return Err(Error::file(path, cause));
            }
            Err(_) if !line.ends_with(b"\n") => {}
            Err(error) => {
                let cause = format!("line {number} is not an event: {error}; docs/reports.md describes the lines");
                return Err(Error::file(path, cause));
            }
        }
    }
    Ok(())
}

/// What a run that continues needs of its events.
#[derive(Default)]
pub(crate) struct Before {
    /// The lines that are kept.
    pub(crate) lines: Vec<u8>,
    /// The seconds of the run by the last of them.
    pub(crate) seconds: f64,
    /// The evaluation after the last step.
    pub(crate) evaluated: Option<Event>,
}

/// Returns the lines of the file at `path` about the first `steps` steps of the run. An incomplete last line is left out.
///
/// # Errors
/// As [`read`].
pub(crate) fn until(path: &Path, steps: u64) -> Result<Before> {
    let mut before = Before::default();
    each(path, |event, line| {
        let is_before = match &event.what {
            EventKind::Step(step) => step.step < steps,
            EventKind::PlanChanged(change) => change.from_step <= steps,
            EventKind::Evaluated(evaluated) => evaluated.steps <= steps,
            EventKind::CheckpointSaved(saved) => saved.steps <= steps,
            EventKind::CheckpointFailed(failed) => failed.steps <= steps,
            EventKind::Resumed(resumed) => resumed.next_step <= steps,
            EventKind::Restarted(restarted) => restarted.to_step < steps,
            EventKind::StepSkipped(skipped) => skipped.step < steps,
            EventKind::Started(_) => true,
            EventKind::Finished(_) | EventKind::Failed(_) => false,
        };
        if is_before && line.ends_with(b"\n") {
            before.lines.extend_from_slice(line);
            match &event.what {
                EventKind::Step(step) => before.seconds = step.seconds,
                EventKind::Evaluated(evaluated) => {
                    before.seconds = evaluated.seconds;
                    before.evaluated = Some(event.clone()).filter(|_| evaluated.steps == steps);
                }
                _ => {}
            }
        }
    })?;
    Ok(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILED: &str =
        r#"{"time":12.5,"event":"failed","cause":"no","stage":1,"step":null,"micro_batch":null,"phase":"build"}"#;

    fn reading(text: &[u8]) -> Result<Vec<Event>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn format_1_is_read_and_a_later_format_is_refused() {
        let first = r#"{"time":1,"event":"failed","cause":"no","stage":1,"step":2,"micro":3,"phase":"pull-back"}"#;
        let second = r#"{"format":2,"time":1,"event":"failed","cause":"no","origin":null,"stage":1,"step":2,"micro_batch":3,"phase":"backward"}"#;
        assert_eq!(reading(first.as_bytes()).unwrap(), reading(second.as_bytes()).unwrap());
        let plan = r#"{"time":1,"event":"plan_changed","from_step":2,"follows":[0,1]}"#;
        let pairs = r#"{"time":1,"event":"plan_changed","from_step":2,"follows":[[[0,1.0]],[[1,1.0]]]}"#;
        assert_eq!(reading(plan.as_bytes()).unwrap(), reading(pairs.as_bytes()).unwrap());
        let later = second.replace("\"format\":2", "\"format\":3") + "\n";
        let error = reading(later.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("format 3") && error.contains("1 to 2"), "{error}");
    }

    #[test]
    fn incomplete_last_line_is_ignored_and_any_other_bad_line_is_refused() {
        let two = format!("{FAILED}\n{FAILED}\n");
        let whole = reading(two.as_bytes()).unwrap();
        assert_eq!((whole.len(), &whole[0]), (2, &whole[1]));
        // With and without a final newline, and cut at any byte, even inside of a character.
        assert_eq!(reading(two.trim_end().as_bytes()).unwrap().len(), 2);
        for cut in FAILED.len() + 2..two.len() - 2 {
            assert_eq!(reading(&two.as_bytes()[..cut]).unwrap().len(), 1);
        }
        assert_eq!(reading("{\"time\":1,\"event\":\"ä".as_bytes()).unwrap(), []);
        assert_eq!(reading(b"").unwrap(), []);

        let refused = |line: &str, word: &str| {
            let text = format!("{FAILED}\n{line}\n{FAILED}\n");
            let error = reading(text.as_bytes()).unwrap_err();
            assert!(error.is_refusal());
            let error = error.to_string();
            assert!(error.contains("line 2") && error.contains(word) && error.contains("docs/reports.md"), "{error}");
        };
        refused("", "EOF");
        refused("{", "EOF");
        refused("3", "invalid type");
        refused(r#"{"time":1,"event":"slept"}"#, "no event \"slept\"");
        refused(r#"{"event":"failed","cause":"no"}"#, "time");
        refused(r#"{"time":1,"event":"failed"}"#, "cause");
        refused(r#"{"time":1,"event":"step","step":-1}"#, "-1");
        assert!(read(Path::new("/nowhere/events.jsonl")).unwrap_err().to_string().contains("/nowhere/events.jsonl"));
    }
}
