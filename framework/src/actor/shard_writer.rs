//! The thread of a rank that writes what its stages are captured to into files, so that it need not be sent to rank 0.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
};

use super::exchange::Outbox;
use crate::{
    Error, Origin, Phase, Result,
    error::guarded,
    stage::CaptureTo,
    transport::CoordinatorMessage,
    watch::{Activity, Doing, Worker},
};

/// How many captures may wait to be written. Then their stages wait too, so that their memory stays bounded.
const WAITING: usize = 2;

/// Hands captures over to the thread. It ends with the last clone.
#[derive(Clone)]
pub(super) struct ShardWriter(SyncSender<CoordinatorMessage>);

impl ShardWriter {
    /// Starts the thread, which reports to rank 0.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn start(outbox: Outbox, activity: Arc<Activity>) -> Result<(Self, Worker)> {
        let (give, taken) = sync_channel(WAITING);
        let thread = Worker::start("interlock-shards", move || {
            for report in taken {
                let report = activity.during(Doing::new(Origin::Coordinator, Phase::Snapshot), || written(report));
                // If it cannot be sent, rank 0 is lost.
                if outbox.report(report).is_err() {
                    return;
                }
            }
        })?;
        Ok((Self(give), thread))
    }

    /// Returns whether a report is for this thread.
    pub(super) fn is_for(&self, report: &CoordinatorMessage) -> bool {
        matches!(report, CoordinatorMessage::Captured { to: CaptureTo::Folder(_), .. })
    }

    /// Lets the thread write a capture and report what came of it. Waits only if others are not written yet.
    ///
    /// # Errors
    /// If the thread has ended.
    pub(super) fn write(&self, report: CoordinatorMessage) -> Result<()> {
        self.0.send(report).map_err(|_| Error::Ended("the thread that writes shards".to_owned()))
    }
}

/// Writes a capture to files. Where the folder is not there, since this rank does not share it with rank 0, or where a file cannot be written, the capture
/// stays in memory.
fn written(mut report: CoordinatorMessage) -> CoordinatorMessage {
    if let CoordinatorMessage::Captured { stage, capture, to: CaptureTo::Folder(folder), .. } = &mut report
        && Path::new(folder).is_dir()
        && let Err(error) = guarded(|| capture.write_to(Path::new(folder), *stage))
    {
        tracing::warn!("rank 0 will write the weights of stage {stage}, since this rank cannot: {error}");
    }
    report
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
            match written(CoordinatorMessage::Captured { stage: 0, step: None, capture, to }) {
                CoordinatorMessage::Captured { capture, .. } => capture.files,
                other => panic!("{other:?}"),
            }
        };
        assert!(files_in(&folder.path().join("elsewhere")).is_none());
        assert!(files_in(folder.path()).is_some());
        let blocked = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(blocked.path().join("weights-0.safetensors/not-empty")).unwrap();
        assert!(files_in(blocked.path()).is_none());
    }
}
