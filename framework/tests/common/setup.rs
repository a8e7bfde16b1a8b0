//! A perceptron of one layer a stage, and devices that are far from each other.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::sync::Arc;

use interlock::{
    HeadsConfig, HeadsTrained, OptimizerConfig, Pairwise, PlainCpu, StageDevice, Trainer, TrainerBuilder,
    tools::device::{DeviceHooks, Link},
};

use crate::common::{Fault, Perceptron};

/// One layer a stage, every stage with a head, on candle's CPU device.
pub fn builder(layers: usize, fault: Option<Fault>) -> TrainerBuilder {
    Trainer::builder(Perceptron { layers, fault })
        .devices([Arc::new(PlainCpu) as Arc<dyn StageDevice>])
        .stages(layers)
        .strategy(Pairwise)
        .heads(HeadsConfig { train: HeadsTrained::All, ..HeadsConfig::default() })
        .optimizer(OptimizerConfig { lr: 0.05, ..OptimizerConfig::default() })
        .batch_size(7)
        .seed(3)
}

/// The CPU, far away: half a millisecond a message of 100 floats.
pub struct Remote(pub Link);

impl StageDevice for Remote {
    fn name(&self) -> &str {
        "remote"
    }

    fn device(&self) -> &candle_core::Device {
        &candle_core::Device::Cpu
    }

    fn hooks(&self) -> &dyn DeviceHooks {
        self
    }
}

impl DeviceHooks for Remote {
    fn link(&self) -> Link {
        self.0
    }
}

pub const FAR: Link = Link { latency: 1e-4, bandwidth: 1e6 };

/// Every other stage is far away.
pub fn devices(link: Link) -> [Arc<dyn StageDevice>; 2] {
    [Arc::new(PlainCpu), Arc::new(Remote(link))]
}
