//! Writes event files for TensorBoard, with the scalars of a run.

mod messages;
mod record;

use std::{fs::File, io, path::Path, time::SystemTime};

use interlock::{Error, Result};
use prost::Message;

use self::messages::{Content, Record, Scalar, Session, Summary};
use crate::events::{Appended, Evaluated, Event, EventKind, Sink, Step};

/// The folder within a run's folder.
pub(crate) const FOLDER: &str = "tensorboard";

/// An event file.
pub(crate) struct TensorBoard(Appended);

impl TensorBoard {
    /// Creates `folder`, and begins a file in it. For a run that continues after `after` steps, TensorBoard leaves out what earlier files have of later steps.
    ///
    /// # Errors
    /// If folder or file cannot be made or written to.
    pub(crate) fn create(folder: &Path, after: Option<u64>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| Error::file(folder, e))?;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Sorted by name, files are in the order of time.
        let name = |number: u32| folder.join(format!("events.out.tfevents.{}.{number}.interlock", time.as_secs()));
        let created = (0..).map(|number| (File::create_new(name(number)), name(number)));
        let is_new = |file: &io::Result<File>| !matches!(file, Err(e) if e.kind() == io::ErrorKind::AlreadyExists);
        let Some((file, path)) = created.into_iter().find(|(file, _)| is_new(file)) else { unreachable!() };
        let file = file.map_err(|e| Error::file(&path, e))?;
        let mut board = Self(Appended::to(file, &path)?);
        let version = Content::FileVersion("brain.Event:2".to_owned());
        board.put(Record { wall_time: time.as_secs_f64(), step: 0, content: Some(version) })?;
        if let Some(steps) = after {
            let start = Content::Session(Session { status: Session::START });
            board.put(Record { wall_time: time.as_secs_f64(), step: to_i64(steps), content: Some(start) })?;
        }
        Ok(board)
    }

    fn put(&mut self, record: Record) -> Result<()> {
        self.0.put(&record::framed(&record.encode_to_vec()))
    }
}

impl Sink for TensorBoard {
    fn write(&mut self, event: &Event) -> Result<()> {
        let (step, scalars) = match &event.what {
            EventKind::Step(step) => (step.step, of_step(step)),
            EventKind::Evaluated(evaluated) => (evaluated.steps, of_evaluation(evaluated)),
            _ => return Ok(()),
        };
        let content = Some(Content::Summary(Summary { value: scalars }));
        self.put(Record { wall_time: event.time, step: to_i64(step), content })
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

fn to_i64(step: u64) -> i64 {
    i64::try_from(step).unwrap_or(i64::MAX)
}

fn scalar(tag: impl Into<String>, value: f64) -> Scalar {
    Scalar { tag: tag.into(), simple_value: Some(value as f32) }
}

fn of_step(step: &Step) -> Vec<Scalar> {
    let mut scalars = Vec::new();
    for stage in &step.stages {
        let k = stage.stage;
        scalars.extend(stage.loss.map(|loss| scalar(format!("loss/train/stage{k}"), loss)));
        scalars.extend(stage.accuracy.map(|accuracy| scalar(format!("accuracy/train/stage{k}"), accuracy)));
        scalars.push(scalar(format!("gradient_norm/stage{k}"), stage.gradient_norm));
        scalars.extend(stage.alignment.map(|cosine| scalar(format!("alignment/stage{k}"), cosine)));
        if step.step_seconds > 0.0 {
            let idle = 1.0 - stage.busy_seconds / step.step_seconds;
            scalars.push(scalar(format!("idle/stage{k}"), idle.clamp(0.0, 1.0)));
        }
    }
    // One curve, unless the rates of stages differ.
    let rates = step.stages.iter().map(|stage| (stage.stage, stage.lr));
    match step.stages.windows(2).all(|pair| pair[0].lr == pair[1].lr) {
        true => scalars.extend(rates.take(1).map(|(_, lr)| scalar("learning_rate", lr))),
        false => scalars.extend(rates.map(|(k, lr)| scalar(format!("learning_rate/stage{k}"), lr))),
    }
    if step.step_seconds > 0.0 {
        scalars.push(scalar("examples_per_second", step.examples as f64 / step.step_seconds));
    }
    scalars
}

fn of_evaluation(evaluated: &Evaluated) -> Vec<Scalar> {
    let mut scalars = Vec::new();
    for head in &evaluated.heads {
        scalars.push(scalar(format!("loss/validation/stage{}", head.stage), head.loss));
        let accuracy =
            head.accuracy.map(|accuracy| scalar(format!("accuracy/validation/stage{}", head.stage), accuracy));
        scalars.extend(accuracy);
    }
    scalars
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Head, StageMetrics};

    fn event(what: EventKind) -> Event {
        Event { time: 1.5, what }
    }

    fn stage(stage: usize, loss: Option<f64>, lr: f64) -> StageMetrics {
        StageMetrics { stage, loss, accuracy: None, lr, gradient_norm: 0.0, busy_seconds: 0.25, alignment: None }
    }

    fn step(step: u64, stages: Vec<StageMetrics>) -> Event {
        event(EventKind::Step(Step { step, epoch: 0, examples: 32, seconds: 1.0, step_seconds: 1.0, stages }))
    }

    #[test]
    fn written_records_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(&folder.path().join("a/b"), None).unwrap();
        board.write(&step(4, vec![stage(0, None, 0.5), stage(1, Some(2.0), 0.5)])).unwrap();
        board.write(&step(5, vec![stage(0, None, 0.5), stage(1, None, 0.25)])).unwrap();
        let heads = vec![Head { stage: 1, loss: 0.0, accuracy: Some(0.75) }];
        let evaluated = Evaluated { steps: 6, seconds: 2.0, evaluation_seconds: 1.0, improved: true, heads };
        board.write(&event(EventKind::Evaluated(evaluated))).unwrap();

        assert!(board.path().file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
        let bytes = std::fs::read(board.path()).unwrap();
        let records: Vec<Record> =
            record::unframed(&bytes).unwrap().iter().map(|bytes| Record::decode(&**bytes).unwrap()).collect();
        assert_eq!(records[0].content, Some(Content::FileVersion("brain.Event:2".to_owned())));
        let found = |n: usize| -> (i64, f64, Vec<(String, f32)>) {
            let Record { wall_time, step, content: Some(Content::Summary(summary)) } = records[n].clone() else {
                panic!("{:?}", records[n])
            };
            (step, wall_time, summary.value.into_iter().map(|s| (s.tag, s.simple_value.unwrap())).collect())
        };
        let expected = |pairs: &[(&str, f32)]| pairs.iter().map(|(tag, v)| ((*tag).to_owned(), *v)).collect::<Vec<_>>();
        let first = expected(&[
            ("gradient_norm/stage0", 0.0),
            ("idle/stage0", 0.75),
            ("loss/train/stage1", 2.0),
            ("gradient_norm/stage1", 0.0),
            ("idle/stage1", 0.75),
            ("learning_rate", 0.5),
            ("examples_per_second", 32.0),
        ]);
        assert_eq!(found(1), (4, 1.5, first));
        assert!(found(2).2.contains(&("learning_rate/stage1".to_owned(), 0.25)));
        let last = expected(&[("loss/validation/stage1", 0.0), ("accuracy/validation/stage1", 0.75)]);
        assert_eq!(found(3), (6, 1.5, last));
        assert_eq!(records.len(), 4);

        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(TensorBoard::create(&file, None).is_err());
    }
}
