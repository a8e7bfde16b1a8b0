//! The thread of a rank that writes the captures of its stages to files, so that they need not be sent to rank 0.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
};

use super::exchange::Outbox;
use crate::{
    Error, Failure, Origin, Phase, Result,
    error::guarded,
    stage::CaptureTo,
    transport::CoordinatorMessage,
    watch::{Activity, Doing, Worker},
};

/// How many captures of each stage may wait to be written. Then the stage waits too, so that memory stays bounded.
const WAITING: usize = 2;

/// Hands captures over to the thread. It ends with the last clone.
#[derive(Clone)]
pub(super) struct ShardWriter(SyncSender<CoordinatorMessage>);

impl ShardWriter {
    /// Starts the thread for a rank with `stages` stages, which reports to rank 0.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn start(outbox: Outbox, rank: usize, stages: usize, activity: Arc<Activity>) -> Result<(Self, Worker)> {
        let (give, taken) = sync_channel(WAITING * stages);
        let thread = Worker::start("interlock-shards", move || {
            let doing = Doing::new(Origin::Rank(rank), Phase::Snapshot);
            let mut told = false;
            for mut report in taken {
                activity.during(doing, || write(&mut report, &mut told));
                if let Err(error) = outbox.report(report) {
                    // If it cannot be told, rank 0 is lost.
                    let failure = Failure::new(Origin::Rank(rank), Phase::Transfer, error);
                    let _ = outbox.report(CoordinatorMessage::Failed(failure));
                    return;
                }
            }
        })?;
        Ok((Self(give), thread))
    }

    /// Lets the thread write a capture and report what came of it. Waits only if others of the stage are not written yet.
    ///
    /// # Errors
    /// If the thread has ended.
    pub(super) fn write(&self, report: CoordinatorMessage) -> Result<()> {
        self.0.send(report).map_err(|_| Error::Ended("the thread that writes shards".to_owned()))
    }
}

/// Returns whether a report is for the thread.
pub(super) fn is_for_files(report: &CoordinatorMessage) -> bool {
    matches!(report, CoordinatorMessage::Captured { to: CaptureTo::Folder(_), .. })
}

/// Writes a capture to files. Where the folder is not there, since this rank does not share it with rank 0, or where a file cannot be written, the capture
/// stays in memory; a warning tells that once.
fn write(report: &mut CoordinatorMessage, told: &mut bool) {
    let CoordinatorMessage::Captured { stage, capture, to: CaptureTo::Folder(folder), .. } = report else { return };
    let folder = Path::new(folder);
    let written = match folder.is_dir() {
        true => guarded(|| capture.write_to(folder, *stage)),
        false => Err(Error::file(folder, "this rank does not see it")),
    };
    if let Err(error) = written
        && !std::mem::replace(told, true)
    {
        tracing::warn!("rank 0 writes the checkpoints of this rank's stages: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelSpec, Sequential, Trainer, Unit};

    /// One unit that does nothing.
    struct Nothing;

    impl ModelSpec for Nothing {
        fn units(&self) -> Result<Vec<Unit>> {
            Ok(vec![Unit::new("", [1], |_| Ok(Sequential::default()))])
        }
    }

    #[test]
    fn a_capture_stays_in_memory_where_its_folder_is_missing_or_cannot_be_written() {
        let stage = Trainer::builder(Nothing).layout().unwrap().blueprints.remove(0).build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let files_in = |to: &Path| {
            let to = CaptureTo::Folder(to.to_str().unwrap().to_owned());
            let capture = Box::new(stage.capture().unwrap());
            let (mut report, mut told) = (CoordinatorMessage::Captured { stage: 0, step: None, capture, to }, false);
            write(&mut report, &mut told);
            let CoordinatorMessage::Captured { capture, .. } = report else { panic!("{report:?}") };
            assert_eq!(capture.files.is_none(), told);
            capture.files
        };
        assert!(files_in(&folder.path().join("elsewhere")).is_none());
        assert!(files_in(folder.path()).is_some());
        let blocked = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(blocked.path().join("state-0.safetensors/not-empty")).unwrap();
        assert!(files_in(blocked.path()).is_none());
        assert!(!blocked.path().join("weights-0.safetensors").exists());
    }
}
