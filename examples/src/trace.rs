//! The file of `--trace`: a picture (`.svg`) or a trace (`.json`) of a timeline.

use std::path::{Path, PathBuf};

use interlock::{
    Error, Result,
    tools::{
        files,
        simulator::Simulated,
        timeline::{Drawing, Timeline},
    },
};

use crate::run_folder;

/// The default of `--trace-steps`: the number of steps that a run records.
pub(crate) const STEPS: u64 = 4;

/// The file to write a timeline to.
#[derive(Debug)]
pub(crate) struct TraceFile {
    path: PathBuf,
    format: Format,
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Svg,
    Json,
}

impl TraceFile {
    /// Checks the path, and chooses the format by its ending.
    ///
    /// # Errors
    /// If the ending is neither `.svg` nor `.json`, or a file cannot be written there.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let format = match path.extension().and_then(|ending| ending.to_str()) {
            Some("svg") => Format::Svg,
            Some("json") => Format::Json,
            _ => {
                return Err(Error::invalid(
                    format!("--trace {}", path.display()),
                    "its ending is neither that of a picture nor that of a trace",
                    "use .svg (a picture) or .json (a trace for ui.perfetto.dev)",
                ));
            }
        };
        run_folder::refuse_no_place("--trace", path)?;
        Ok(Self { path: path.to_owned(), format })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the last `steps` steps of `timeline`; a picture has this title.
    pub(crate) fn write(&self, timeline: &Timeline, steps: u64, title: &str) -> Result<()> {
        self.draw(&timeline.cut_to_last_steps(steps as usize), &Drawing { title, ..Drawing::default() })
    }

    /// Writes the last steps of a simulation; a picture has this title and outlines the critical path.
    pub(crate) fn write_simulated(&self, simulated: &Simulated, title: &str) -> Result<()> {
        let timeline = &simulated.timeline;
        let window = Some(timeline.last_steps(STEPS as usize));
        self.draw(timeline, &Drawing { title, window, path: &simulated.critical.path })
    }

    fn draw(&self, timeline: &Timeline, drawing: &Drawing<'_>) -> Result<()> {
        let text = match self.format {
            Format::Svg => timeline.to_svg(drawing),
            Format::Json => timeline.to_trace(),
        };
        files::write_output(&self.path, text)
    }
}
