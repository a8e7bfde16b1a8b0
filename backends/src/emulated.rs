//! Devices that compute nothing: they sleep for given times and pass on tensors of the right shapes.
//!
//! The real actors and schedules run on them. This shows on any machine how long a step would take on devices of these speeds: a stage that
//! sleeps needs no core.

mod name;
mod part;

use std::sync::Arc;

use candle_core::Device;
use interlock::{
    Backend, Differentiable, Optimizer, Result, StageDevice,
    tools::device::{DeviceHooks, Link, Part, PartKind},
};

use self::{
    name::Costs,
    part::{Asleep, Rest},
};

/// The backend of the scheme `emulated`.
///
/// A name sets costs, as in `emulated:forward-ms=5,head-ms=2,gbps=10`. Default: every cost is zero.
///
/// | key | milliseconds of |
/// |---|---|
/// | `forward-ms` | a forward pass of one micro-batch through the stage |
/// | `head-ms` | all work of a stage's auxiliary head for one micro-batch |
/// | `input-gradient-ms` | a backward pass to the input |
/// | `parameter-gradient-ms` | the parameter gradients after that; if only they are wanted, both times are spent |
/// | `update-ms` | an update |
/// | `transfer-ms` | the transfer of a message to a neighbour |
///
/// | key | gigabits a second |
/// |---|---|
/// | `gbps` | sent to each neighbour, one message after another; default: unlimited |
///
/// Each stage on the device runs as if it had the device for itself, so that one name is enough for a whole pipeline. Outputs and gradients are
/// zeros, parameters never change, and losses are computed as on any device. An update takes `update-ms` whichever optimizer is set, your own too.
#[derive(Clone, Copy, Debug, Default)]
pub struct EmulatedBackend;

struct Emulated {
    name: String,
    costs: Costs,
}

impl Backend for EmulatedBackend {
    fn scheme(&self) -> &'static str {
        "emulated"
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StageDevice>> {
        Ok(Arc::new(Emulated { name: name.to_owned(), costs: name.parse()? }))
    }

    fn list(&self) -> Vec<(String, String)> {
        let what = "computes nothing and sleeps for the given times, as in emulated:forward-ms=5,input-gradient-ms=5";
        vec![("emulated".to_owned(), what.to_owned())]
    }
}

impl StageDevice for Emulated {
    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn hooks(&self) -> &dyn DeviceHooks {
        self
    }
}

impl DeviceHooks for Emulated {
    /// Returns 0, since a stage that sleeps keeps no core busy.
    fn threads(&self) -> usize {
        0
    }

    fn prepare_optimizer(&self, part: &Part<'_>, _: Box<dyn Optimizer>) -> Result<Box<dyn Optimizer>> {
        // `update-ms` covers the stage and its head.
        Ok(Box::new(match part.kind {
            PartKind::Main => Rest(self.costs.update),
            PartKind::Head => Rest::default(),
        }))
    }

    fn prepare(&self, part: &Part<'_>, _: Box<dyn Differentiable>) -> Result<Box<dyn Differentiable>> {
        Ok(Box::new(Asleep::new(part, &self.costs)?))
    }

    fn link(&self) -> Link {
        self.costs.link
    }
}
