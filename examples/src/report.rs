//! `interlock report`: writes one page about a run, or about several side by side.

mod curves;
mod page;
mod run;
pub(crate) mod words;

use std::path::{Path, PathBuf};

use interlock::{
    Error,
    tools::{files, timeline::Drawing},
};

use self::run::Run;
use crate::{
    arguments::Report,
    exit::Exit,
    plot::{Plot, png},
    run_folder,
    terminal::say,
};

/// The page's name in a run's folder.
const FILE: &str = "report.html";

pub(crate) fn run(arguments: &Report) -> Result<(), Exit> {
    let out = match (&arguments.out, arguments.runs.as_slice()) {
        (Some(out), _) => out.clone(),
        (None, [run]) => run.join(FILE),
        (None, runs) => {
            let problem = format!("a page about {} runs needs a file name", runs.len());
            return Err(Error::invalid("report", problem, "give one with --out FILE.html").into());
        }
    };
    // Everything is read before anything is written.
    let (runs, plots, page) = page_of(&arguments.runs)?;
    run_folder::refuse_no_place("--out", &out)?;
    let pictures = match &arguments.plots {
        Some(folder) => {
            check_plots_folder(folder)?;
            pictures(folder, &runs, &plots, arguments.png)?
        }
        None => Vec::new(),
    };
    files::write_output(&out, page).map_err(Exit::failed)?;
    if let Some(folder) = &arguments.plots {
        files::create_folder(folder).map_err(Exit::failed)?;
    }
    for (path, bytes) in &pictures {
        files::write_output(path, bytes).map_err(Exit::failed)?;
    }
    say(&format!("the report is in {}", out.display()));
    if let Some(folder) = &arguments.plots {
        say(&format!("{} pictures are in {}", pictures.len(), folder.display()));
    }
    Ok(())
}

/// Reads the runs in these folders. Returns them with their plots and their page.
pub(crate) fn page_of(folders: &[PathBuf]) -> interlock::Result<(Vec<Run>, Vec<Plot>, String)> {
    let runs = Run::open_all(folders)?;
    let plots = match runs.as_slice() {
        [one] => curves::of_run(one),
        several => curves::of_runs(several),
    };
    let page = page::page(&runs, &plots);
    Ok((runs, plots, page))
}

/// Checks that `--plots` names a folder, or a path at which one can be created.
fn check_plots_folder(folder: &Path) -> interlock::Result<()> {
    match folder.is_dir() {
        true => Ok(()),
        false if folder.exists() => {
            Err(Error::invalid(format!("--plots {}", folder.display()), "it is a file", "name a folder"))
        }
        false => run_folder::refuse_no_place("--plots", folder),
    }
}

/// Draws all plots, and the timeline of a single run, as SVG and on demand as PNG too. Returns the files and their contents.
fn pictures(folder: &Path, runs: &[Run], plots: &[Plot], as_png: bool) -> interlock::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut drawn: Vec<(&str, String)> = plots.iter().map(|plot| (plot.name.as_str(), plot.to_svg())).collect();
    if let [run] = runs
        && let Some(timeline) = run.timeline_to_show()
    {
        drawn.push(("timeline", timeline.to_svg(&Drawing { title: &run.config.name, ..Drawing::default() })));
    }
    let mut files = Vec::new();
    for (name, svg) in drawn {
        if as_png {
            files.push((folder.join(format!("{name}.png")), png(&svg)?));
        }
        files.push((folder.join(format!("{name}.svg")), svg.into_bytes()));
    }
    Ok(files)
}
