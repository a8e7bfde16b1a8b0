//! The page of a report: one self-contained HTML file.

mod differences;
mod html;
mod sections;

use super::{run::Run, words};
use interlock::tools::timeline::escape;

use crate::plot::{Plot, style};

/// The content security policy of the page: it fetches nothing and runs no scripts.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const STYLE: &str = include_str!("style.css");

/// Returns the page about these runs.
pub(super) fn page(runs: &[Run], plots: &[Plot]) -> String {
    let (title, body) = match runs {
        [run] => (run.config.name.clone(), of_one(run, plots)),
        several => (format!("{} runs compared", several.len()), of_several(several, plots)),
    };
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}{}\n@media (prefers-color-scheme: dark) {{ {} }}\n</style>\n</head>\n<body>\n<main>\n{body}\
         <footer>Written by interlock {} ({}).</footer>\n</main>\n</body>\n</html>\n",
        style(false),
        style(true),
        env!("CARGO_PKG_VERSION"),
        env!("SOURCE_REVISION"),
        title = escape(&title),
    )
}

fn of_one(run: &Run, plots: &[Plot]) -> String {
    let mut body = format!(
        "<h1>{}</h1>\n<p class=\"lead\">{}</p>\n<p class=\"faint\">{}</p>\n",
        escape(&run.config.name),
        escape(&sections::setting(run)),
        escape(&sections::folder_and_start(run))
    );
    body += &sections::banner(run, false);
    body += &sections::cards(run);
    body += &sections::plots(plots);
    body += &sections::stages(run);
    body += &sections::timeline(run);
    body += &sections::configuration(run);
    body += &sections::environment(run);
    body
}

fn of_several(runs: &[Run], plots: &[Plot]) -> String {
    let labels: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let mut body =
        format!("<h1>{} runs compared</h1>\n<p class=\"faint\">{}</p>\n", runs.len(), escape(&labels.join(", ")));
    runs.iter().for_each(|run| body += &sections::banner(run, true));
    body += "<h2>Summary</h2>\n";
    body += &sections::summary(runs);
    body += "<h2>What differs in their configurations</h2>\n";
    body += &differences::section(runs);
    body += &sections::plots(plots);
    body += &sections::environments(runs);
    body
}

/// The text for a missing value.
const DASH: &str = "–";

/// Returns the value, or a dash for none.
fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| DASH.to_owned())
}

/// Writes a loss with four decimals, or a very large one with its exponent.
fn four(value: f64) -> String {
    if value.abs() < 1e6 { format!("{value:.4}") } else { format!("{value:.2e}") }
}

/// Describes how the run was trained.
fn strategy(run: &Run) -> String {
    words::strategy(&run.config.strategy)
}
