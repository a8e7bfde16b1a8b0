//! The warnings of a call.
#![allow(unreachable_pub)] // used by test files

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Collects the messages of warnings.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<String>>>);

impl Visit for &Collector {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }
    fn event(&self, event: &Event<'_>) {
        event.record(&mut &*self);
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Returns what `call` returns and the warnings that it gives on this thread.
pub fn warnings_of<T>(call: impl FnOnce() -> T) -> (T, Vec<String>) {
    let collector = Collector::default();
    let returned = tracing::subscriber::with_default(collector.clone(), call);
    let warnings = std::mem::take(&mut *collector.0.lock().unwrap());
    (returned, warnings)
}
