//! Tests the dashboards with real runs: a Prometheus scrapes them and evaluates every query and every variable.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    drift::{legend_labels, values_of},
    files::{Dashboard, Panel, dashboards, grafana, listed},
    process::{Process, SMALL, free_address, run, wait_for, when},
    prometheus::{Api, Prometheus, Series, now},
    scrape::{exposition, label, promtool},
};
#[cfg(feature = "mpi")]
use crate::{
    mpirun::{PROGRAM, mpirun},
    process::{free_addresses, run_by},
};

/// Panels that show nothing for a run, with the reason.
const EMPTY: [(&str, &str, &str); 5] = [
    ("learning / Alignment", "done", "only adaptive widths measure it"),
    ("pipeline / Restarts", "trains", "only runs that restart count them"),
    ("pipeline / Restarts", "done", "only runs that restart count them"),
    ("learning / Alignment", "ranks", "only adaptive widths measure it"),
    ("pipeline / Restarts", "ranks", "runs of several ranks cannot restart"),
];

/// The limit for the number of series of each stage, and of those without a stage: more make monitoring expensive.
const SERIES_LIMIT: usize = 200;

/// The choices on a dashboard: variables by name, and the shown time.
struct Chosen {
    values: HashMap<String, String>,
    start: f64,
    end: f64,
}

impl Chosen {
    /// Fills in the variables of a query as Grafana does, for a graph with a point a second and scrapes every second.
    fn fill(&self, query: &str) -> String {
        let range = format!("{}s", (self.end - self.start).ceil());
        let given = query.replace("$__rate_interval", "4s").replace("$__range", &range);
        self.values.iter().fold(given, |query, (name, value)| query.replace(&format!("${name}"), value))
    }
}

#[test]
#[ignore = "needs prometheus"]
fn every_panel_and_every_variable_shows_something() {
    let folder = TempDir::new().unwrap();
    let (busy, done) = (free_address(), free_address());
    let Prometheus { process: mut server, api } = Prometheus::start(folder.path(), &[&busy, &done], |_| {});
    let start = now();
    let mut trains = trains(&busy, folder.path());
    let mut ends = ends(&done, folder.path());
    #[cfg(feature = "mpi")]
    let (ranks, mut of_ranks) = ranks(folder.path());

    let limit = Duration::from_secs(120);
    let pipeline = "pipeline='trains'";
    for selector in
        ["interlock_loss{split='validation',", "interlock_stage_alignment{", "interlock_stage_predicted_idle_ratio{"]
    {
        let query = format!("{selector}{pipeline}}}");
        wait_for(&query, limit, &mut [&mut trains, &mut server], || {
            when(!api.at(&query, now())?.is_empty(), "no series")
        });
    }
    wait_for("the second run has been scraped as finished", limit, &mut [&mut ends], || {
        let states =
            api.at("last_over_time(interlock_run_state{pipeline='done', state='finished'}[1m]) == 1", now())?;
        when(!states.is_empty(), "it has not been scraped as finished")
    });
    wait_for("the second run has ended", limit, &mut [], || when(!ends.runs(), ends.describe()));
    wait_for("the second run is not scraped any more", limit, &mut [&mut server], || {
        let up = api.at(&format!("up{{instance='{done}'}} == 0"), now())?;
        when(!up.is_empty(), "it is still up")
    });
    #[cfg(feature = "mpi")]
    check_ranks(&api, &ranks, &mut of_ranks);
    let end = now();
    assert!(trains.runs() && end - start > 10.0, "{}", trains.describe());

    let runs = [
        ("trains", &busy),
        ("done", &done),
        #[cfg(feature = "mpi")]
        ("ranks", &ranks),
    ];
    println!("{:60} series of the runs {:?}", "panel", runs.map(|(pipeline, _)| pipeline));
    let (mut faults, mut counts) = (Vec::new(), BTreeMap::<String, Vec<String>>::new());
    for dashboard in dashboards() {
        for (pipeline, instance) in runs {
            let chosen = choose(&api, &dashboard, (pipeline, instance), (start, end), &mut faults);
            for panel in &dashboard.panels {
                let shown = shown(&api, panel, &chosen, &mut faults);
                let excepted = EMPTY.iter().any(|&(place, of, _)| place == panel.place && of == pipeline);
                if (shown == 0) != excepted {
                    let excepted = if excepted { ", but is said to be empty" } else { "" };
                    faults.push(format!("{}: {shown} series of {pipeline}{excepted}", panel.place));
                }
                counts.entry(panel.place.clone()).or_default().push(shown.to_string());
            }
        }
    }
    for (place, counts) in &counts {
        println!("{place:60} {}", counts.join(" "));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    check_exposition(&busy);
    check_scrape_times(&api, &busy, &mut trains);
}

/// Starts a run that trains until it is killed, and whose widths change.
fn trains(address: &str, folder: &Path) -> Process {
    let adaptive =
        ["adaptive.every=10", "adaptive.window=2", "adaptive.below=0.9", "adaptive.max_width=3", "name='adaptive'"];
    let adaptive = adaptive.map(|set| format!("strategy.{set}"));
    let more =
        adaptive.iter().map(|set| &**set).chain(["steps=10000000", "eval_every=500", "checkpoint.every_steps=100"]);
    let sets: Vec<&str> = SMALL.into_iter().chain(more).collect();
    run("trains", address, folder, &sets, &[])
}

/// Starts a run that ends, and is served for some seconds more. Its stages sleep, so that it lasts for some seconds.
fn ends(address: &str, folder: &Path) -> Process {
    let sleepy =
        "devices=['emulated:forward-ms=10,head-ms=2,input-gradient-ms=5,parameter-gradient-ms=10,transfer-ms=1']";
    let sets: Vec<&str> = SMALL.into_iter().chain(["steps=120", "eval_every=60", sleepy]).collect();
    run("done", address, folder, &sets, &["--metrics-linger", "10"])
}

/// Starts a run of two replicas on two ranks each, whose addresses Prometheus finds in the run's folder. Returns the address of the first rank, and the run.
#[cfg(feature = "mpi")]
fn ranks(folder: &Path) -> (String, Process) {
    let address = free_addresses(3);
    let sets: Vec<&str> = SMALL
        .into_iter()
        .chain(["replicas=2", "steps=10000000", "eval_every=50", "checkpoint.every_steps=50"])
        .collect();
    let started = run_by(mpirun(4, &[PROGRAM]), "ranks", &address, folder, &sets, &[]);
    (address, started)
}

/// Waits until all ranks have been scraped for some seconds, and asserts that they appear as one run whose stages are told by rank.
#[cfg(feature = "mpi")]
fn check_ranks(api: &Api, address: &str, run: &mut Process) {
    let of = format!("instance='{address}'");
    wait_for("all ranks have trained and evaluated", Duration::from_secs(120), &mut [run], || {
        for (selector, count) in [
            (format!("interlock_loss{{split='validation', {of}}}"), 4),
            (format!("rate(interlock_stage_microbatches_total{{{of}}}[4s]) > 0"), 8),
            (format!("interlock_checkpoint_last_success_timestamp_seconds{{{of}}} > 0"), 1),
            (format!("interlock_stage_predicted_idle_ratio{{{of}}}"), 4),
        ] {
            let found = api.at(&selector, now())?.len();
            when(found == count, format!("{found} instead of {count} series of {selector}"))?;
        }
        Ok(())
    });
    let labels = |query: &str, label: &str| -> Vec<String> {
        let mut found: Vec<_> =
            api.at(query, now()).unwrap().into_iter().map(|one| one.labels[label].clone()).collect();
        found.sort();
        found
    };
    assert_eq!(labels(&format!("up{{{of}}} == 1"), "process"), ["0", "1", "2", "3"]);
    let on_rank = |rank: usize| labels(&format!("interlock_stage_info{{{of}, rank='{rank}'}} == 1"), "stage");
    assert_eq!([on_rank(0), on_rank(1)], [["0", "1"], ["2", "3"]]);
}

/// Chooses a run on a dashboard, one variable after the other as a reader does. The values of the run must be among those of the variables.
fn choose(
    api: &Api,
    dashboard: &Dashboard,
    (pipeline, instance): (&str, &str),
    (start, end): (f64, f64),
    faults: &mut Vec<String>,
) -> Chosen {
    let mut chosen = Chosen { values: HashMap::new(), start, end };
    for variable in &dashboard.variables {
        let (selector, label) = values_of(&variable.query);
        let selector = chosen.fill(selector);
        let values = api.label_values(&selector, label, start, end).unwrap_or_else(|why| {
            faults.push(format!("{}, variable {}: {why}", dashboard.name, variable.name));
            Vec::new()
        });
        let wanted = match &*variable.name {
            "job" => vec!["interlock"],
            "pipeline" => vec![pipeline],
            "instance" => vec![instance],
            _ => vec!["0", "1", "2", "3"],
        };
        if let Some(missing) = wanted.iter().find(|value| !values.iter().any(|there| there == *value)) {
            faults.push(format!(
                "{}, variable {}: {missing} is not among {values:?} of {selector}",
                dashboard.name, variable.name
            ));
        }
        let value = if variable.multi { ".+" } else { wanted[0] };
        chosen.values.insert(variable.name.clone(), value.to_owned());
    }
    chosen
}

/// Returns the number of series that a panel shows, and adds what is wrong with them to `faults`.
fn shown(api: &Api, panel: &Panel, chosen: &Chosen, faults: &mut Vec<String>) -> usize {
    let mut count = 0;
    for query in &panel.queries {
        let asked = chosen.fill(&query.expr);
        let answer =
            if query.instant { api.at(&asked, chosen.end) } else { api.along(&asked, chosen.start, chosen.end) };
        match answer {
            Err(why) => faults.push(format!("{}: {why}: {asked}", panel.place)),
            Ok(all) => {
                for Series { labels, values } in &all {
                    for label in legend_labels(&query.legend).into_iter().filter(|label| !labels.contains_key(*label)) {
                        faults.push(format!("{}: no {label} for the legend in {labels:?}", panel.place));
                    }
                    // The mean and the quantiles of no values are NaN, which is drawn as a gap. Not all values may be NaN.
                    if values.iter().any(|(_, value)| value.is_infinite()) || !values.iter().any(|(_, v)| v.is_finite())
                    {
                        faults.push(format!("{}: {labels:?} has an infinite value, or only NaN: {asked}", panel.place));
                    }
                }
                count += all.len();
            }
        }
    }
    count
}

/// Asserts that the metrics of a run are well formed, have histograms instead of summaries, and not too many series.
fn check_exposition(address: &str) {
    let text = exposition(address).unwrap();
    promtool(&["check", "metrics"], &text);
    assert!(!text.lines().any(|line| line.starts_with("# TYPE") && line.ends_with("summary")), "a summary:\n{text}");
    let mut series = BTreeMap::<&str, usize>::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let of = label(line, "stage").or_else(|| label(line, "src")).unwrap_or("no stage");
        *series.entry(of).or_default() += 1;
    }
    println!("series of each stage: {series:?}");
    assert_eq!(series.len(), 5, "four stages, and what belongs to none");
    assert!(series.values().all(|&count| count < SERIES_LIMIT), "{SERIES_LIMIT} series or more: {series:?}");
}

/// Asserts that scraping does not wait for the computations of stages.
fn check_scrape_times(api: &Api, address: &str, run: &mut Process) {
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let since = Instant::now();
            exposition(address).unwrap();
            since.elapsed()
        })
        .collect();
    assert!(run.runs(), "the run should still train: {}", run.describe());
    times.sort();
    let of = |how: &str| {
        let query = format!("{how}scrape_duration_seconds{{instance='{address}'}}[5m])");
        api.at(&query, now()).unwrap()[0].values[0].1
    };
    let (most, longest) = (of("quantile_over_time(0.9, "), of("max_over_time("));
    println!(
        "a scrape while it trains: median {:?}, longest {:?} of 50; of Prometheus' nine in ten within {most:.3} s, the longest {longest:.3} s",
        times[25], times[49]
    );
    // Some scrapes may wait on a busy machine. All of them wait only if the exporter waits for the computations of stages.
    assert!(times[25] < Duration::from_millis(100) && most < 0.5, "scrapes wait for something: {times:?}, {most} s");
}

#[test]
#[ignore = "needs prometheus"]
fn promtool_finds_no_errors() {
    let text = |path: std::path::PathBuf| path.display().to_string();
    promtool(&["check", "config", &text(grafana().join("prometheus.yml"))], "");
    for path in listed("rules", "yml") {
        promtool(&["check", "rules", &text(path)], "");
    }
    for path in listed("rules/tests", "yml") {
        print!("{}", promtool(&["test", "rules", &text(path)], ""));
    }
}
