//! Your own backend: devices that open by name, and do their work as you like.
//!
//! - A [`Backend`] opens the devices of one scheme; a [`StageDevice`] has a name, a candle device, and a way to run work.
#![allow(clippy::print_stdout)] // a lesson shows what it does

use std::sync::{Arc, atomic::AtomicUsize, atomic::Ordering::Relaxed};

use candle_core::Device;
use interlock::{Backend, Error, OptimizerConfig, Result, StageDevice, Trainer};
use interlock_models::{Mlp, data::config::DataConfig, data::config::FashionMnistMini};

#[derive(Default)]
struct Counting(Arc<AtomicUsize>);

impl Backend for Counting {
    fn scheme(&self) -> &'static str {
        "counting"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>> {
        if name != "counting" {
            return Err(Error::invalid("device", format!("{name:?} is unknown"), "use \"counting\""));
        }
        Ok(Arc::new(CountingDevice(Arc::clone(&self.0))))
    }

    fn list(&self) -> Vec<(String, String)> {
        vec![("counting".to_owned(), "the CPU, which counts its work".to_owned())]
    }
}

struct CountingDevice(Arc<AtomicUsize>);

impl StageDevice for CountingDevice {
    fn name(&self) -> &str {
        "counting"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn run(&self, work: &mut (dyn FnMut() + Send)) {
        self.0.fetch_add(1, Relaxed);
        work(); // on this thread; a device may have threads of its own
    }
}

fn main() -> anyhow::Result<()> {
    let data = DataConfig::FashionMnistMini(FashionMnistMini { limit: Some(1000), ..Default::default() }).open()?;
    let backend = Counting::default();
    let builder = Trainer::builder(Mlp { dims: vec![784, 64, 10], flatten: true }).devices([backend.open("counting")?]);
    let builder = builder.stages(2).optimizer(OptimizerConfig { lr: 0.02, ..Default::default() }).steps(20);
    builder.build()?.fit(data.train)?;
    let count = backend.0.load(Relaxed);
    println!("the device was given {count} pieces of work");
    // Two builds; then forward pass, backward pass and update of two stages, and the last stage's head, in each of 20 steps.
    assert!(count >= 2 + 20 * 7 && backend.open("other").is_err());
    Ok(())
}
