//! candle's CPU device on the calling thread.

use candle_core::Device;

use super::StageDevice;

/// candle's CPU device on the calling thread: enough for tests and small models.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainCpu;

impl StageDevice for PlainCpu {
    fn name(&self) -> &str {
        "plain"
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}
