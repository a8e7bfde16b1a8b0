//! An emulated asynchronous device: the CPU, whose numbers and moments are held back.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Tensor};
use interlock::{AsynchronousDevice, Mark, Reading, Result, StageDevice};

/// When numbers are there.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// At once.
    Now,
    /// When they have been looked for so often, or are waited for.
    Polled(usize),
    /// After a while; another thread brings them.
    After(Duration),
    /// When they are waited for, which fails.
    Never,
}

/// What has been asked of a device.
#[derive(Debug, Default)]
pub struct Counts {
    pub reads: AtomicUsize,
    pub numbers: AtomicUsize,
    pub released: AtomicUsize,
    pub brought: AtomicUsize,
    pub marks: AtomicUsize,
}

impl Counts {
    pub fn of(count: &AtomicUsize) -> usize {
        count.load(SeqCst)
    }
}

/// The device.
pub struct Behind {
    when: When,
    /// The moment of the first mark; every mark is a millisecond after the one before it.
    marks: Option<Instant>,
    /// From which tensor on what is brought is spoilt on its way.
    spoils: usize,
    pub counts: Counts,
}

impl Behind {
    pub fn new(when: When) -> Arc<Self> {
        Arc::new(Self { when, marks: None, spoils: usize::MAX, counts: Counts::default() })
    }

    /// With marks from `first` on.
    pub fn marking(when: When, first: Instant) -> Arc<Self> {
        Arc::new(Self { when, marks: Some(first), spoils: usize::MAX, counts: Counts::default() })
    }

    /// One that gets NaN instead of what was sent to it, from the tensor `spoils` on, counted from 0.
    pub fn spoiling(when: When, spoils: usize) -> Arc<Self> {
        Arc::new(Self { when, marks: None, spoils, counts: Counts::default() })
    }
}

/// One device for each of so many stages.
pub fn each(stages: usize, when: When) -> Vec<Arc<dyn StageDevice>> {
    (0..stages).map(|_| Behind::new(when) as Arc<dyn StageDevice>).collect()
}

impl StageDevice for Behind {
    fn name(&self) -> &str {
        "behind"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn asynchronous(&self) -> Option<&dyn AsynchronousDevice> {
        Some(self)
    }
}

impl AsynchronousDevice for Behind {
    fn release(&self, tensor: &Tensor) -> Result<Tensor> {
        self.counts.released.fetch_add(1, SeqCst);
        Ok(tensor.clone())
    }

    fn bring(&self, tensor: &Tensor) -> Result<Tensor> {
        let brought = self.counts.brought.fetch_add(1, SeqCst);
        if brought >= self.spoils && tensor.dtype().is_float() {
            return Ok((tensor * f64::NAN)?);
        }
        Ok(tensor.clone())
    }

    fn read(&self, values: &Tensor) -> Result<Box<dyn Reading>> {
        assert_eq!((values.rank(), values.dtype()), (1, DType::F64));
        self.counts.reads.fetch_add(1, SeqCst);
        self.counts.numbers.fetch_add(values.elem_count(), SeqCst);
        let values = values.to_vec1()?;
        Ok(match self.when {
            When::Now => Box::new(Counted { left: AtomicUsize::new(0), values }),
            When::Polled(times) => Box::new(Counted { left: AtomicUsize::new(times), values }),
            When::After(time) => {
                let (to, from) = channel();
                thread::spawn(move || {
                    thread::sleep(time);
                    // Nobody listens any more where the run has failed.
                    let _ = to.send(values);
                });
                Box::new(Carried { from, there: Mutex::new(None) })
            }
            When::Never => Box::new(Lost),
        })
    }

    fn mark(&self) -> Result<Box<dyn Mark>> {
        let number = self.counts.marks.fetch_add(1, SeqCst) as u64;
        Ok(Box::new(self.marks.map_or_else(Instant::now, |first| first + Duration::from_millis(number))))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

struct Counted {
    left: AtomicUsize,
    values: Vec<f64>,
}

impl Reading for Counted {
    fn is_ready(&self) -> Result<bool> {
        Ok(self.left.fetch_update(SeqCst, SeqCst, |left| Some(left.saturating_sub(1))).is_ok_and(|left| left == 0))
    }

    fn take(self: Box<Self>) -> Result<Vec<f64>> {
        Ok(self.values)
    }
}

struct Carried {
    from: Receiver<Vec<f64>>,
    there: Mutex<Option<Vec<f64>>>,
}

impl Reading for Carried {
    fn is_ready(&self) -> Result<bool> {
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        if there.is_none() {
            *there = self.from.try_recv().ok();
        }
        Ok(there.is_some())
    }

    fn take(self: Box<Self>) -> Result<Vec<f64>> {
        let there = self.there.into_inner().unwrap_or_else(PoisonError::into_inner);
        there.map_or_else(|| self.from.recv().map_err(|e| interlock::Error::Data(e.to_string())), Ok)
    }
}

struct Lost;

impl Reading for Lost {
    fn is_ready(&self) -> Result<bool> {
        Ok(false)
    }

    fn take(self: Box<Self>) -> Result<Vec<f64>> {
        Err(interlock::Error::Data("the device is gone".to_owned()))
    }
}
