use std::collections::{HashMap, HashSet};

use roxmltree::{Document, Node};
use serde_json::Value;

use super::*;
use crate::{
    Wants,
    schedule::{MicroBatchId, Purpose, Remaining},
};

fn micro_batch(step: u64, micro: usize) -> MicroBatchId {
    MicroBatchId { step, purpose: Purpose::Train, index: micro, count: 2 }
}

fn backward(step: u64, micro: usize, loss: usize, wants: Wants) -> Action {
    Action::Backward { micro_batch: micro_batch(step, micro), loss, wants, measured: false, then: Remaining::Nothing }
}

/// End to end over `stages` stages, one micro-batch after another, every action of one unit of time.
fn in_turn(stages: usize, steps: u64, micros: usize, unit: f64) -> Timeline {
    let mut spans = Vec::new();
    let mut now = 0.0;
    let mut add = |stage, action| {
        spans.push(Span { stage, action, start: now, end: now + unit });
        now += unit;
    };
    let last = stages - 1;
    for step in 0..steps {
        for micro in 0..micros {
            (0..stages).for_each(|k| add(k, Action::Forward(micro_batch(step, micro))));
            add(last, Action::Head { micro_batch: micro_batch(step, micro), output_gradient: true });
            (1..stages).rev().for_each(|k| add(k, backward(step, micro, last, Wants::INPUT)));
            (0..stages).rev().for_each(|k| add(k, backward(step, micro, last, Wants::PARAMETERS)));
        }
        (0..stages).for_each(|k| add(k, Action::Update(step)));
    }
    Timeline { stages, spans }
}

fn draw(timeline: &Timeline, drawing: &Drawing<'_>) -> String {
    let svg = timeline.to_svg(drawing);
    Document::parse(&svg).unwrap();
    svg
}

fn actions<'a, 'input>(document: &'a Document<'input>) -> Vec<Node<'a, 'input>> {
    let group = document.descendants().find(|node| node.attribute("id") == Some("actions")).unwrap();
    group.children().filter(|node| node.has_tag_name("rect")).collect()
}

fn length(node: &Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap().parse().unwrap()
}

#[test]
fn every_action_of_the_window_is_one_rectangle_of_its_length() {
    let timeline = in_turn(3, 2, 2, 1e-3);
    let svg = draw(&timeline, &Drawing::default());
    let document = Document::parse(&svg).unwrap();
    let rects = actions(&document);
    assert_eq!(rects.len(), timeline.spans.len());
    let (whole, one) = (1084.0 - 92.0, 1.0 / timeline.spans.len() as f64);
    for (rect, (n, span)) in rects.iter().zip(timeline.spans.iter().enumerate()) {
        assert!((length(rect, "x") - (92.0 + whole * n as f64 * one)).abs() < 0.01);
        assert!((length(rect, "width") - (whole * one - 0.7)).abs() < 0.01);
        let row = ((length(rect, "y") - 154.0) / 36.0).floor();
        assert_eq!(row as usize, span.stage);
    }
    let title = |n: usize| rects[n].children().find(Node::is_element).unwrap().text().unwrap().to_owned();
    assert_eq!(title(0), "stage 0: forward, micro-batch 0, step 0; from 0.000 ms, for 1.00 ms");
    assert_eq!(title(5), "stage 1: input gradient of loss 2, micro-batch 0, step 0; from 5.000 ms, for 1.00 ms");
    // The shades tell steps apart, the colours kinds.
    let fills = |step: u64| -> HashSet<&str> {
        let of = rects.iter().zip(&timeline.spans).filter(|(_, span)| span.action.step() == step);
        of.map(|(rect, _)| rect.attribute("fill").unwrap()).collect()
    };
    assert_eq!(fills(0).len(), 5);
    assert!(fills(0).is_disjoint(&fills(1)));
}

#[test]
fn a_window_leaves_out_what_lies_beside_it_and_cuts_what_crosses_its_edge() {
    let timeline = in_turn(2, 3, 1, 1.0);
    let per_step = timeline.spans.len() / 3;
    let window = timeline.last_steps(2);
    assert_eq!(window, per_step as f64..3.0 * per_step as f64);
    let count = |window: Range<f64>| {
        let svg = draw(&timeline, &Drawing { window: Some(window), ..Drawing::default() });
        let document = Document::parse(&svg).unwrap();
        let rects = actions(&document);
        for rect in &rects {
            assert!(length(rect, "x") >= 92.0 && length(rect, "x") + length(rect, "width") <= 1084.01);
        }
        rects.len()
    };
    assert_eq!(count(window), 2 * per_step);
    assert_eq!(count(0.5..2.5), 3);
    assert_eq!(count(1e3..2e3), 0);
}

#[test]
fn what_is_shown_of_a_step_is_how_busy_stages_are() {
    let timeline = in_turn(2, 1, 1, 0.5);
    assert_eq!(timeline.busy(&timeline.extent()), [3.0 / 8.0, 5.0 / 8.0]);
    assert_eq!(timeline.busy(&(0.25..1.25)), [0.25, 0.75]);
    assert_eq!(timeline.busy(&(9.0..9.0)), [0.0, 0.0]);
    let svg = draw(&timeline, &Drawing::default());
    assert!(svg.contains(">38 %<") && svg.contains(">62 %<") && svg.contains("busy for 50 %"), "{svg}");
}

#[test]
fn titles_are_escaped() {
    let title = "a<b> & \"c\" ' \u{1}\n]]>";
    let svg = draw(&in_turn(1, 1, 1, 1.0), &Drawing { title, ..Drawing::default() });
    let document = Document::parse(&svg).unwrap();
    let found = document.descendants().find(|node| node.has_tag_name("title")).unwrap().text().unwrap();
    assert_eq!(found, "a<b> & \"c\" ' \u{fffd} ]]>");
}

#[test]
fn a_path_is_outlined_and_joined() {
    let timeline = in_turn(2, 1, 1, 1.0);
    let without = draw(&timeline, &Drawing::default());
    assert!(!without.contains("critical path"));
    let svg = draw(&timeline, &Drawing { path: &[3, 0, 1, 99], ..Drawing::default() });
    let document = Document::parse(&svg).unwrap();
    let path = document.descendants().find(|node| node.attribute("id") == Some("path")).unwrap();
    let line = path.attribute("d").unwrap();
    assert_eq!((line.matches('z').count(), line.matches('L').count()), (3, 2), "{line}");
    assert!(svg.contains(">critical path<"));
}

#[test]
fn any_number_of_stages_can_be_drawn_and_text_is_left_out_where_it_does_not_fit() {
    let texts = |stages: usize| {
        let svg = draw(&in_turn(stages, 1, 1, 1e-6), &Drawing::default());
        let document = Document::parse(&svg).unwrap();
        let height = length(&document.root_element(), "height");
        let texts: Vec<String> = document
            .descendants()
            .filter(|n| n.has_tag_name("text"))
            .map(|n| n.text().unwrap_or("").to_owned())
            .collect();
        (height, texts)
    };
    let (small, few) = texts(2);
    assert!(
        small < 300.0 && ["stage 0", "stage 1", "F0", "I0.1", "U"].iter().all(|text| few.iter().any(|t| t == text)),
        "{few:?}"
    );
    let (large, many) = texts(1000);
    assert!(large < 2500.0 && many.len() < 350, "{large} {}", many.len());
    assert!(many.iter().any(|text| text == "stage 990") && !many.iter().any(|text| text == "F0"));
    texts(1);
}

#[test]
fn legend_explains_the_letters_and_numbers_that_are_drawn() {
    let texts = |timeline: &Timeline| -> Vec<String> {
        let svg = draw(timeline, &Drawing::default());
        let document = Document::parse(&svg).unwrap();
        let texts = document.descendants().filter(|n| n.has_tag_name("text"));
        texts.map(|n| n.text().unwrap_or("").to_owned()).collect()
    };
    let has = |texts: &[String], wanted: &str| texts.iter().any(|text| text == wanted);
    // Wide rectangles: every letter is in the legend, and an action is read out.
    let few = texts(&in_turn(2, 1, 1, 1.0));
    for wanted in ["F forward", "H head", "I input gradient", "W parameter gradient", "U update"] {
        assert!(has(&few, wanted), "{few:?}");
    }
    assert!(has(&few, "I0.1") && has(&few, "I0.1: input gradient of micro-batch 0 for the loss of stage 1"), "{few:?}");
    // Narrow rectangles: only numbers of micro-batches, and the letter of the update.
    let many = texts(&in_turn(2, 2, 7, 1.0));
    assert!(has(&many, "6") && has(&many, "U") && !has(&many, "F6"), "{many:?}");
    assert!(has(&many, "forward") && has(&many, "U update"), "{many:?}");
    assert!(has(&many, "numbers are micro-batches; shades alternate with steps"), "{many:?}");
    // Low rows: neither.
    let none = texts(&in_turn(300, 1, 1, 1.0));
    assert!(
        has(&none, "forward") && has(&none, "update") && !none.iter().any(|t| t.contains("micro-batch")),
        "{none:?}"
    );
}

#[test]
fn what_is_not_there_or_not_a_number_is_not_drawn() {
    let nothing = Timeline { stages: 2, spans: vec![] };
    assert_eq!((nothing.extent(), nothing.last_steps(3)), (0.0..0.0, 0.0..0.0));
    draw(&nothing, &Drawing::default());
    draw(&Timeline::default(), &Drawing::default());
    let mut timeline = in_turn(2, 1, 1, 1.0);
    let before = timeline.spans.len();
    timeline.spans[0].start = f64::NAN;
    timeline.spans[1].stage = 7;
    let svg = draw(&timeline, &Drawing { path: &[0, 1, 2], ..Drawing::default() });
    assert_eq!(actions(&Document::parse(&svg).unwrap()).len(), before - 2);
    assert!(!svg.contains("NaN"));
}

fn events(timeline: &Timeline) -> Vec<Value> {
    let trace: Value = serde_json::from_str(&timeline.to_trace()).unwrap();
    trace["traceEvents"].as_array().unwrap().clone()
}

fn of<'a>(events: &'a [Value], ph: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["ph"] == ph).collect()
}

#[test]
fn a_trace_has_a_thread_a_stage_and_a_slice_an_action() {
    let timeline = in_turn(2, 1, 1, 1.5e-3);
    let events = events(&timeline);
    let names: Vec<_> = of(&events, "M").into_iter().filter(|event| event["name"] == "thread_name").collect();
    assert_eq!(names.len(), 2);
    assert_eq!((&names[1]["tid"], &names[1]["args"]["name"]), (&Value::from(1), &Value::from("stage 1")));
    let slices = of(&events, "X");
    assert_eq!(slices.len(), timeline.spans.len());
    let expected = r#"{"ph":"X","pid":0,"tid":1,"ts":4500.0,"dur":1500.0,"name":"input gradient","cat":"train","args":{"step":0,"micro":0,"loss":1}}"#;
    assert_eq!(slices[3].to_string(), expected);
    assert_eq!(
        slices[7].to_string(),
        r#"{"ph":"X","pid":0,"tid":1,"ts":10500.0,"dur":1500.0,"name":"update","cat":"train","args":{"step":0}}"#
    );
}

#[test]
fn flows_go_from_forward_to_forward_and_from_gradient_to_its_first_use() {
    let (stages, steps, micros) = (4, 2, 2);
    let timeline = in_turn(stages, steps as u64, micros, 1e-6);
    let events = events(&timeline);
    let slice_of = |end: &Value| {
        let at = end["ts"].as_f64().unwrap();
        let inside = |slice: &&Value| {
            let start = slice["ts"].as_f64().unwrap();
            slice["tid"] == end["tid"] && start <= at && at < start + slice["dur"].as_f64().unwrap()
        };
        of(&events, "X").into_iter().find(inside).unwrap().clone()
    };
    let ends: HashMap<u64, &Value> =
        of(&events, "f").into_iter().map(|end| (end["id"].as_u64().unwrap(), end)).collect();
    let begins = of(&events, "s");
    // A boundary is crossed by every micro-batch, there and back.
    assert_eq!((begins.len(), ends.len()), (2 * (stages - 1) * steps * micros, begins.len()));
    for begin in begins {
        let end = ends[&begin["id"].as_u64().unwrap()];
        assert_eq!(end["bp"], "e");
        assert!(begin["ts"].as_f64() < end["ts"].as_f64());
        let (from, to) = (slice_of(begin), slice_of(end));
        assert_eq!((&from["args"]["step"], &from["args"]["micro"]), (&to["args"]["step"], &to["args"]["micro"]));
        let [a, b] = [&from, &to].map(|slice| slice["tid"].as_i64().unwrap());
        match begin["name"].as_str().unwrap() {
            "activation" => assert_eq!((b, &from["name"], &to["name"]), (a + 1, &"forward".into(), &"forward".into())),
            _ => {
                // The previous stage relays the gradient first, if it relays it at all.
                let first = if b == 0 { "parameter gradient" } else { "input gradient" };
                assert_eq!((b, &from["name"], &to["name"]), (a - 1, &"input gradient".into(), &first.into()));
            }
        }
    }
}

#[test]
fn the_last_steps_are_cut_out_and_come_back_from_json() {
    let timeline = in_turn(2, 3, 1, 1.5e-3);
    let last = timeline.cut_to_last_steps(2);
    assert!(last.spans.iter().all(|span| span.action.step() >= 1));
    assert_eq!(last.spans.len() * 3, timeline.spans.len() * 2);
    assert_eq!(last.extent().start, 0.0);
    assert!((last.extent().end - timeline.extent().end * 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(timeline.cut_to_last_steps(9), timeline);
    assert_eq!(timeline.cut_to_last_steps(0).spans, []);
    let text = serde_json::to_string(&timeline).unwrap();
    assert_eq!(serde_json::from_str::<Timeline>(&text).unwrap(), timeline);
    let first =
        r#"{"stage":0,"action":{"forward":{"step":0,"purpose":"train","index":0,"count":2}},"start":0.0,"end":0.0015}"#;
    assert!(text.contains(first), "{text}");
    // The words of format 1 are read too.
    let words = [
        ("\"backward\"", "\"pull_back\""),
        ("micro_batch", "ticket"),
        ("output_gradient", "cotangent"),
        ("index", "micro"),
        ("count", "micros"),
    ];
    let old = words.iter().fold(text.clone(), |text, (new, old)| text.replace(new, old));
    assert_ne!(old, text);
    assert_eq!(serde_json::from_str::<Timeline>(&old).unwrap(), timeline);
}

#[test]
fn evaluations_are_told_apart_in_words_and_traces() {
    let evaluation = MicroBatchId { purpose: Purpose::Evaluate, ..micro_batch(3, 1) };
    let timeline = Timeline {
        stages: 1,
        spans: vec![Span { stage: 0, action: Action::Forward(evaluation), start: 0.0, end: 1.0 }],
    };
    assert!(draw(&timeline, &Drawing::default()).contains("forward, micro-batch 1 of the evaluation before step 3;"));
    assert_eq!(of(&events(&timeline), "X")[0]["cat"], "evaluate");
    assert_eq!(timeline.last_steps(1), 0.0..0.0);
}

#[test]
fn timelines_of_impossible_stages_or_times_are_refused() {
    let whole = in_turn(2, 1, 1, 1e-3);
    let read = |text: &str| serde_json::from_str::<Timeline>(text).map_err(|e| e.to_string());
    let text = serde_json::to_string(&whole).unwrap();
    assert_eq!(read(&text), Ok(whole));
    for (right, wrong, words) in [
        (r#""stages":2"#, r#""stages":18446744073709551615"#, "at most 1024"),
        (r#""stages":2"#, r#""stages":1"#, "an action is of stage 1, there are 1 stages"),
        (r#""start":0.0"#, r#""start":-1e308"#, "times are at most"),
    ] {
        let refused = read(&text.replacen(right, wrong, 1)).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
}
