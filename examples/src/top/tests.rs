//! Tests from texts of metrics, written by hand, to values and pictures.

use std::time::{Duration, Instant};

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyModifiers},
};

use interlock::tools::metrics::PHASES;

use super::{
    draw::{self, Choice},
    model::View,
    plain, press,
    scrape::Scrape,
    watch::Watch,
};

/// Returns the metrics of a process with two stages and width 2 after `steps` steps of 32 examples and half a second. Stage 0 computes a quarter of
/// the time, half of that in forward passes; stage 1 computes the whole time.
fn exposition(steps: u32) -> String {
    let seconds = f64::from(steps) * 0.5;
    let mut text = format!(
        r#"# TYPE interlock_build_info gauge
interlock_build_info{{pipeline="chain",version="0.1.0",revision="0"}} 1
interlock_run_info{{pipeline="chain",run_id="chain-1",model="mlp",strategy="width 2"}} 1
interlock_run_state{{pipeline="chain",state="training"}} 1
interlock_run_state{{pipeline="chain",state="evaluating"}} 0
interlock_pipeline_stages{{pipeline="chain"}} 2
interlock_pipeline_microbatches{{pipeline="chain"}} 2
interlock_current_step{{pipeline="chain"}} {steps}
interlock_samples_total{{pipeline="chain"}} {samples}
interlock_tokens_total{{pipeline="chain"}} 0
interlock_learning_rate{{pipeline="chain"}} 0.05
interlock_step_duration_seconds_sum{{pipeline="chain"}} {seconds}
interlock_step_duration_seconds_count{{pipeline="chain"}} {steps}
interlock_step_duration_seconds_bucket{{pipeline="chain",le="+Inf"}} {steps}
interlock_boundary_messages_total{{pipeline="chain",src="0",dst="1",kind="activation"}} {messages}
interlock_boundary_messages_total{{pipeline="chain",src="1",dst="0",kind="gradient"}} {messages}
interlock_boundary_bytes_total{{pipeline="chain",src="0",dst="1",kind="activation"}} {bytes}
interlock_boundary_bytes_total{{pipeline="chain",src="1",dst="0",kind="gradient"}} {steps}
interlock_boundary_transfer_seconds_sum{{pipeline="chain",src="0",dst="1",kind="activation"}} {transfer}
interlock_boundary_transfer_seconds_count{{pipeline="chain",src="0",dst="1",kind="activation"}} {messages}
interlock_accuracy_ratio{{pipeline="chain",stage="1",split="train"}} 0.5
interlock_accuracy_ratio{{pipeline="chain",stage="1",split="validation"}} 0.75
interlock_stage_alignment{{pipeline="chain",stage="0"}} 0.25
interlock_stage_info{{pipeline="chain",stage="0",device="cpu:threads=1,cores=0-1",follows="0"}} 0
interlock_stage_info{{pipeline="chain",stage="0",device="cpu:threads=1,cores=0-1",follows="1"}} 1
interlock_stage_info{{pipeline="chain",stage="1",device="cpu",follows="1"}} 1
interlock_nonfinite_total{{pipeline="chain",stage="1",kind="loss"}} 0
interlock_nonfinite_total{{pipeline="chain",stage="1",kind="gradient"}} 0
interlock_stage_queue_wait_seconds_sum{{pipeline="chain",stage="1",kind="activation"}} {wait}
interlock_stage_queue_wait_seconds_count{{pipeline="chain",stage="1",kind="activation"}} {messages}
"#,
        samples = 32 * steps,
        messages = 2 * steps,
        bytes = 4096 * steps,
        transfer = f64::from(2 * steps) * 0.0005,
        wait = f64::from(2 * steps) * 0.01,
    );
    let of = |stage: usize, name: &str, labels: &str, value: f64| {
        format!("interlock_{name}{{pipeline=\"chain\",stage=\"{stage}\"{labels}}} {value}\n")
    };
    let phases = [[0.125, 0.0, 0.0, 0.0625, 0.0, 0.0625], [0.25, 0.25, 0.125, 0.25, 0.0, 0.125]];
    for (k, phases) in phases.iter().enumerate() {
        for (share, phase) in phases.iter().zip(PHASES) {
            let phase = format!(",phase=\"{phase}\"");
            text += &of(k, "stage_phase_duration_seconds_sum", &phase, share * seconds);
            text += &of(k, "stage_phase_duration_seconds_count", &phase, f64::from(steps));
        }
        let memory = [("parameters", 1000.0), ("gradients", 1000.0), ("optimizer", 500.0), ("activations", 123_456.0)];
        for (kind, bytes) in memory {
            text += &of(k, "stage_memory_bytes", &format!(",kind=\"{kind}\""), bytes);
        }
        text += &of(k, "stage_interlock_width", "", 2.0 - k as f64);
        text += &of(k, "stage_predicted_idle_ratio", "", 0.5 - 0.5 * k as f64);
        text += &of(k, "stage_mailbox_messages", "", k as f64);
        text += &of(k, "stage_mailbox_capacity", "", 20.0);
        text += &of(k, "stage_inflight_microbatches", "", 2.0);
        text += &of(k, "stage_last_progress_timestamp_seconds", "", 1000.0 + seconds);
        text += &of(k, "loss", ",split=\"train\"", 2.0 - 0.125 * f64::from(steps % 8));
        text += &of(k, "loss", ",split=\"validation\"", 1.5);
        text += &of(k, "gradient_norm", "", 0.75);
    }
    text
}

/// Returns scrapes after these numbers of steps of half a second each.
fn scrapes<const N: usize>(steps: [u32; N]) -> [Scrape; N] {
    let begun = Instant::now();
    steps.map(|steps| {
        let seconds = 0.5 * f64::from(steps);
        Scrape::read(&exposition(steps), begun + Duration::from_secs_f64(seconds), 1000.25 + seconds).unwrap()
    })
}

#[test]
fn two_scrapes_give_rates_and_shares() {
    let [first, second] = scrapes([10, 14]);
    let view = View::new(Some(&first), &second);
    let texts = [&view.pipeline, &view.run, &view.model, &view.strategy, &view.state].map(String::as_str);
    assert_eq!(texts, ["chain", "chain-1", "mlp", "width 2", "training"]);
    assert_eq!((view.step, view.micro_batches, view.learning_rate), (Some(14.0), Some(2.0), Some(0.05)));
    // Four steps of 32 examples in two seconds.
    assert_eq!((view.examples_per_second, view.step_seconds, view.tokens_per_second), (Some(64.0), Some(0.5), None));
    let [zero, one] = &view.stages[..] else { panic!("{:?}", view.stages) };
    assert_eq!(
        (zero.device.as_str(), zero.follows.as_deref(), zero.width),
        ("cpu:threads=1,cores=0-1", Some("1"), Some(2.0))
    );
    assert_eq!(
        (zero.busy, zero.simulated_busy, one.busy, one.simulated_busy),
        (Some(0.25), Some(0.5), Some(1.0), Some(1.0))
    );
    assert_eq!(zero.phases, [0.5, 0.0, 0.0, 0.25, 0.0, 0.25]);
    assert_eq!((zero.accuracy, one.accuracy, one.validation_accuracy), (None, Some(0.5), Some(0.75)));
    assert_eq!(
        (zero.loss, zero.validation_loss, zero.alignment, one.alignment),
        (Some(1.25), Some(1.5), Some(0.25), None)
    );
    assert_eq!((zero.mailbox, zero.in_flight, zero.since_progress), (Some((0.0, 20.0)), Some(2.0), Some(0.25)));
    assert!((one.activation_wait.unwrap() - 0.01).abs() < 1e-9 && zero.activation_wait.is_none());
    assert_eq!((zero.memory.iter().sum::<f64>(), one.not_finite), (125_956.0, 0.0));
    let [boundary] = &view.boundaries[..] else { panic!("{:?}", view.boundaries) };
    assert_eq!((boundary.from, boundary.to), (0, 1));
    assert_eq!(
        (boundary.activations.messages_per_second, boundary.activations.bytes_per_second),
        (Some(4.0), Some(8192.0))
    );
    assert!((boundary.activations.transfer.unwrap() - 0.0005).abs() < 1e-9);
    assert_eq!((boundary.gradients.messages_per_second, boundary.gradients.transfer), (Some(4.0), None));
}

#[test]
fn one_scrape_gives_all_values_but_rates() {
    let [only] = scrapes([10]);
    let view = View::new(None, &only);
    assert_eq!((view.step, view.examples_per_second, view.step_seconds), (Some(10.0), None, None));
    assert_eq!((view.stages[1].loss, view.stages[1].busy), (Some(1.75), None));
    assert!(view.stages[1].phases.is_empty() && view.boundaries[0].activations.messages_per_second.is_none());
}

#[test]
fn another_process_at_the_address_gives_no_negative_rates() {
    let [before] = scrapes([100]);
    let [_, now] = scrapes([0, 3]);
    let view = View::new(Some(&before), &now);
    assert_eq!((view.step, view.examples_per_second), (Some(3.0), None));
    let later = Scrape::read(&exposition(3), before.at + Duration::from_secs(2), 0.0).unwrap();
    let view = View::new(Some(&before), &later);
    assert_eq!((view.examples_per_second, view.step_seconds, view.stages[1].busy), (None, None, None));
    assert_eq!(view.boundaries[0].activations.bytes_per_second, None);
}

#[test]
fn process_without_stages_is_starting() {
    let text = "interlock_build_info{pipeline=\"chain\",version=\"0.1.0\",revision=\"0\"} 1\n";
    let view = View::new(None, &Scrape::read(text, Instant::now(), 0.0).unwrap());
    assert_eq!((view.state.as_str(), view.stages.len(), view.step), ("starting", 0, None));
    assert!(plain::text("host:1", &view).starts_with("host:1  chain  run -  -  -  starting\nstep -"));
}

#[test]
fn phase_longer_than_an_interval_is_spread_over_the_window() {
    // A stage computes for six seconds of eight, and reports that at the end.
    let at = |k: u32, done: f64| {
        let text = format!(
            "interlock_stage_info{{stage=\"0\",device=\"cpu\",follows=\"0\"}} 1\n\
             interlock_stage_phase_duration_seconds_sum{{stage=\"0\",phase=\"forward\"}} {done}\n\
             interlock_stage_phase_duration_seconds_count{{stage=\"0\",phase=\"forward\"}} {}\n",
            done / 6.0
        );
        Scrape::read(&text, BEGUN.with(|begun| *begun) + Duration::from_secs(k.into()), 0.0).unwrap()
    };
    let mut watch = Watch::new("host:1");
    watch.take(Ok(at(0, 0.0)));
    for k in 1..=7 {
        watch.take(Ok(at(k, 0.0)));
        assert_eq!(watch.view.stages[0].busy, Some(0.0));
    }
    watch.take(Ok(at(8, 6.0)));
    // The window is the five seconds, and the interval before them.
    assert_eq!(watch.view.stages[0].busy, Some(1.0));
    for k in 9..=12 {
        watch.take(Ok(at(k, 6.0)));
        assert_eq!(watch.view.stages[0].busy, Some(1.0));
    }
    watch.take(Ok(at(14, 6.0)));
    assert_eq!(watch.view.stages[0].busy, Some(0.0));
}

thread_local! {
    static BEGUN: Instant = Instant::now();
}

#[test]
fn endpoint_without_an_answer_keeps_its_last_values() {
    let [first, second, third, fourth] = scrapes([10, 12, 20, 22]);
    let mut watch = Watch::new("host:1");
    watch.take(Ok(first));
    watch.take(Ok(second));
    assert_eq!((watch.view.examples_per_second, watch.losses.len()), (Some(64.0), 2));
    let before = watch.view.clone();
    watch.take(Err("refused".to_owned()));
    let since = watch.trouble.as_ref().unwrap().since;
    watch.take(Err("timeout".to_owned()));
    let trouble = watch.trouble.clone().unwrap();
    assert_eq!((trouble.since, trouble.problem.as_str(), &watch.view), (since, "timeout", &before));
    watch.take(Ok(third));
    assert!(watch.trouble.is_none());
    assert_eq!((watch.view.step, watch.view.examples_per_second), (Some(20.0), None));
    watch.take(Ok(fourth));
    assert_eq!(watch.view.examples_per_second, Some(64.0));
}

fn picture(watches: &[Watch], choice: Choice, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, watches, choice)).unwrap();
    terminal.backend().to_string()
}

fn watch_after(steps: [u32; 6]) -> Watch {
    let mut watch = Watch::new("127.0.0.1:9464");
    scrapes(steps).into_iter().for_each(|scrape| watch.take(Ok(scrape)));
    watch
}

#[test]
fn pictures_of_narrow_and_wide_terminals() {
    let watch = watch_after([10, 12, 14, 16, 18, 20]);
    insta::assert_snapshot!("narrow", picture(std::slice::from_ref(&watch), Choice::default(), 100, 28));
    insta::assert_snapshot!("of_80_columns", picture(std::slice::from_ref(&watch), Choice::default(), 80, 28));
    insta::assert_snapshot!("wide", picture(&[watch], Choice { stage: 1, ..Choice::default() }, 140, 28));
}

#[test]
fn trouble_pause_and_the_number_of_endpoints_are_shown() {
    let mut watches = [watch_after([1, 2, 3, 4, 5, 6]), watch_after([1, 2, 3, 4, 5, 6])];
    let second = Choice { endpoint: 1, paused: true, ..Choice::default() };
    let shown = picture(&watches, second, 100, 28);
    assert!(shown.contains(" paused") && shown.contains("2 of 2") && shown.contains("tab next"), "{shown}");
    watches[1].take(Err("io: Connection refused".to_owned()));
    let shown = picture(&watches, second, 100, 28);
    assert!(shown.contains("no answer for") && shown.contains("Connection refused; these are the last"), "{shown}");
}

#[test]
fn an_address_without_a_run_is_waited_for() {
    let mut watches = [Watch::new("127.0.0.1:9464"), watch_after([1, 2, 3, 4, 5, 6])];
    let first = picture(&watches, Choice::default(), 120, 24);
    assert!(first.contains("waiting for 127.0.0.1:9464 …") && first.contains("1 of 2"), "{first}");
    assert!(first.contains("train --metrics 127.0.0.1:9464`") && first.contains("q quit"), "{first}");
    watches[0].take(Err("io: Connection refused".to_owned()));
    let refused = picture(&watches, Choice::default(), 120, 24);
    assert!(refused.contains("waiting for") && refused.contains("Connection refused"), "{refused}");
    let [scrape] = scrapes([1]);
    watches[0].take(Ok(scrape));
    let shown = picture(&watches, Choice::default(), 120, 24);
    assert!(shown.contains("training  chain") && !shown.contains("waiting for"), "{shown}");
}

#[test]
fn another_run_at_the_address_is_shown_with_curves_of_its_own() {
    let mut watch = watch_after([1, 2, 3, 4, 5, 6]);
    assert_eq!((watch.losses.len(), watch.view.run.as_str()), (6, "chain-1"));
    watch.take(Err("io: Connection refused".to_owned()));
    assert_eq!(watch.losses.len(), 6);
    let next = exposition(1).replace("chain-1", "chain-2");
    watch.take(Scrape::read(&next, Instant::now(), 2000.0));
    assert_eq!((watch.losses.len(), watch.view.run.as_str(), watch.view.step), (1, "chain-2", Some(1.0)));
    assert!(watch.trouble.is_none());
}

#[test]
fn legend_explains_all_columns_and_colours() {
    let watch = watch_after([1, 2, 3, 4, 5, 6]);
    let shown = picture(&[watch], Choice { legend: true, ..Choice::default() }, 100, 28);
    for words in ["mailbox", "in flight", "gradient norm", "valid. acc. %", "before clipping", "▆ optimizer", "30 s"]
    {
        assert!(shown.contains(words), "{words}\n{shown}");
    }
}

#[test]
fn training_scores_are_never_shown_as_those_of_an_evaluation() {
    let text = exposition(1).replace("split=\"validation\"", "split=\"other\"");
    let view = View::new(None, &Scrape::read(&text, Instant::now(), 0.0).unwrap());
    assert_eq!((view.stages[1].accuracy, view.stages[1].validation_accuracy), (Some(0.5), None));
    let mut watch = Watch::new("host:1");
    watch.take(Scrape::read(&text, Instant::now(), 0.0));
    let shown = picture(&[watch], Choice::default(), 100, 28);
    assert!(!shown.contains(" 50 "), "{shown}");
}

#[test]
fn all_losses_that_a_stage_follows_are_shown() {
    let text = "interlock_stage_info{stage=\"0\",device=\"cpu\",follows=\"0,2\"} 1\ninterlock_stage_interlock_width{stage=\"0\"} 3\n";
    let view = View::new(None, &Scrape::read(text, Instant::now(), 0.0).unwrap());
    assert_eq!(plain::follows(&view.stages[0]), "0,2 (3)");
}

#[test]
fn many_stages_are_scrolled_and_any_size_works() {
    let info = |k: usize| {
        format!(
            "interlock_stage_info{{stage=\"{k}\",device=\"cpu\",follows=\"{k}\"}} 1\n\
             interlock_boundary_messages_total{{src=\"{k}\",dst=\"{}\",kind=\"activation\"}} 1\n",
            k + 1
        )
    };
    let text: String = (0..64).map(info).collect();
    let mut watch = [Watch::new("host:1")];
    watch[0].take(Scrape::read(&text, Instant::now(), 0.0));
    for chosen in [0, 40, 63] {
        let choice = Choice { stage: chosen, ..Choice::default() };
        let shown = picture(&watch, choice, 100, 40);
        assert!(shown.contains(&format!("│{chosen:>5} cpu")), "{shown}");
        assert!(shown.contains(&format!(" stage {chosen} ")) && shown.contains("q quit"), "{shown}");
        for (width, height) in [(1, 1), (20, 5), (40, 12), (300, 100)] {
            picture(&watch, choice, width, height);
        }
    }
}

#[test]
fn a_hundred_thousand_boundaries_and_stages_are_drawn_in_time() {
    let line = |k: usize| {
        format!(
            "interlock_stage_info{{stage=\"{k}\",device=\"cpu\"}} 1\n\
             interlock_boundary_messages_total{{src=\"{k}\",dst=\"{}\",kind=\"activation\"}} 1\n",
            k + 1
        )
    };
    let text: String = (0..100_000).map(line).collect();
    let begun = Instant::now();
    let mut watch = [Watch::new("host:1")];
    watch[0].take(Scrape::read(&text, Instant::now(), 0.0));
    let last = Choice { stage: 99_999, ..Choice::default() };
    for _ in 0..10 {
        let shown = picture(&watch, last, 100, 40);
        assert!(shown.contains("│99999 cpu") && shown.contains("99999 ⇄ 1"), "{shown}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn numbers_without_sense_are_drawn() {
    let phases = |values: [&str; 2]| -> String {
        let lines = PHASES.iter().zip(values.iter().cycle()).map(|(phase, value)| {
            let labels = format!("{{stage=\"0\",phase=\"{phase}\"}}");
            format!(
                "interlock_stage_phase_duration_seconds_sum{labels} {value}\n\
                 interlock_stage_phase_duration_seconds_count{labels} {value}\n"
            )
        });
        "interlock_stage_info{stage=\"0\"} 1\ninterlock_stage_predicted_idle_ratio{stage=\"0\"} -1e308\n".to_owned()
            + &lines.collect::<String>()
    };
    for values in [["NaN", "1"], ["+Inf", "1"], ["1e308", "1e308"], ["-1e308", "1e308"], ["-Inf", "+Inf"]] {
        let mut watch = Watch::new("host:1");
        let begun = Instant::now();
        for (seconds, text) in [(0, phases(["0", "0"])), (10, phases(values))] {
            watch.take(Scrape::read(&text, begun + Duration::from_secs(seconds), 0.0));
        }
        plain::text("host:1", &watch.view);
        picture(&[watch], Choice::default(), 140, 30);
    }
}

#[test]
fn names_from_the_server_cannot_give_the_terminal_orders() {
    let text = "interlock_run_info{run_id=\"a\x1b[2J\",model=\"\u{9b}1m\"} 1\ninterlock_stage_info{stage=\"0\",device=\"\x07\r\"} 1\n";
    let mut watch = Watch::new("host:1");
    watch.take(Scrape::read(text, Instant::now(), 0.0));
    let shown = plain::text("host:1", &watch.view) + &picture(&[watch], Choice::default(), 140, 30);
    assert!(shown.contains("a\\u001b[2J") && shown.contains("\\u0007\\u000d"), "{shown}");
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
}

#[test]
fn keys_do_what_the_footer_says() {
    let mut choice = Choice::default();
    let mut press =
        |key| (press(&mut choice, key, KeyModifiers::NONE, 4, 2), choice.stage, choice.endpoint, choice.paused);
    assert_eq!(press(KeyCode::Up), (false, 0, 0, false));
    assert_eq!(press(KeyCode::Down), (false, 1, 0, false));
    assert_eq!(press(KeyCode::End), (false, 3, 0, false));
    assert_eq!(press(KeyCode::PageDown), (false, 3, 0, false));
    assert_eq!(press(KeyCode::Tab), (false, 3, 1, false));
    assert_eq!(press(KeyCode::Tab), (false, 3, 0, false));
    assert_eq!(press(KeyCode::BackTab), (false, 3, 1, false));
    assert_eq!(press(KeyCode::Char('p')), (false, 3, 1, true));
    assert!(!press(KeyCode::Char('?')).0);
    assert!(press(KeyCode::Char('q')).0 && press(KeyCode::Esc).0 && !press(KeyCode::Char('c')).0);
    assert!(choice.legend);
    assert!(super::press(&mut choice, KeyCode::Char('c'), KeyModifiers::CONTROL, 4, 2));
}
