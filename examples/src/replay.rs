//! `interlock replay`: repeats reference runs, and compares the results.

use std::path::Path;

use interlock::Result;
use interlock_backends::Backends;
use interlock_models::golden::{Comparison, GoldenCase};

use crate::{arguments::Replay, exit::Exit, terminal::say};

pub(crate) fn run(arguments: &Replay) -> Result<(), Exit> {
    let device = Backends::default().open(&arguments.device)?;
    let cases = arguments.runs.iter().map(GoldenCase::read).collect::<Result<Vec<_>>>();
    let cases = cases.map_err(|error| Exit::Refused(error.to_string()))?;
    let mut failed = 0;
    for (folder, case) in arguments.runs.iter().zip(cases) {
        let outcome = case.replay(vec![device.clone()]).map(|replayed| case.compare(&replayed));
        let (verdict, words) = match outcome {
            Ok(comparisons) => {
                let passed = comparisons.iter().all(Comparison::passes);
                (passed, worst(&comparisons).map_or_else(|| "nothing was compared".to_owned(), describe))
            }
            Err(error) => (false, error.to_string()),
        };
        failed += usize::from(!verdict);
        let name = folder.file_name().unwrap_or(Path::new("run").as_os_str()).to_string_lossy();
        say(&format!("{name:<28} {}  {words}", if verdict { "passed" } else { "FAILED" }));
    }
    say(&format!("{} passed, {failed} failed", arguments.runs.len() - failed));
    match failed {
        0 => Ok(()),
        _ => Err(Exit::Failed(format!("{failed} of {} reference runs failed", arguments.runs.len()))),
    }
}

/// Returns the comparison that is nearest to failing, or fails worst.
fn worst(comparisons: &[Comparison]) -> Option<&Comparison> {
    let share = |c: &Comparison| c.worst / c.allowance;
    comparisons.iter().max_by(|a, b| share(a).total_cmp(&share(b)))
}

fn describe(comparison: &Comparison) -> String {
    match &comparison.problem {
        Some(_) => comparison.to_string(),
        None => {
            format!("worst {}: error {:.1e} of {:.1e} allowed", comparison.name, comparison.worst, comparison.allowance)
        }
    }
}
