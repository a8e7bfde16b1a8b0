//! How long messages take from rank 0 to the others and back.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Tensor};

use super::{PULSE, RankMessage, Ranks, peers::RankMessageKind};
use crate::{Error, Result, device::Link};

/// The fewest and the most bytes of a long message, which has as many that it takes longer than a short one.
const FEWEST: usize = 1 << 18;
const MOST: usize = 1 << 24;
/// How often a short and a long message are sent; the fastest counts.
const SHORT: usize = 8;
const LONG: usize = 3;

impl Ranks {
    /// Measures the link between rank 0 and each rank; that of rank 0 itself has no delay. Call it on rank 0, before a pipeline is started, while the others are
    /// there.
    ///
    /// # Errors
    /// If a rank does not answer.
    pub fn measure_links(&self) -> Result<Vec<Link>> {
        let fastest = |rank: usize, tensors: &[Tensor], times: usize| -> Result<f64> {
            let times = (0..times).map(|_| self.echo(rank, tensors));
            Ok(times.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or_default().as_secs_f64())
        };
        let link = |rank: usize| {
            if rank == self.rank() {
                return Ok(Link::IMMEDIATE);
            }
            let short = fastest(rank, &[], SHORT)?;
            let mut bytes = FEWEST;
            loop {
                let long = Tensor::zeros(bytes, DType::U8, &Device::Cpu)?;
                let on_the_way = fastest(rank, &[long], LONG)? - short;
                if on_the_way > short || bytes >= MOST {
                    let bandwidth = if on_the_way > 0.0 { bytes as f64 / on_the_way } else { f64::INFINITY };
                    return Ok(Link { latency: short / 2.0, bandwidth });
                }
                bytes *= 4;
            }
        };
        (0..self.size()).map(link).collect()
    }

    /// Returns the time until a rank has answered.
    fn echo(&self, rank: usize, tensors: &[Tensor]) -> Result<Duration> {
        let echoes = self.0.echoes.lock().unwrap_or_else(PoisonError::into_inner);
        let start = Instant::now();
        let message = RankMessage { tensors: tensors.to_vec(), ..RankMessageKind::Echo.message(&[]) };
        self.0.communicator.send(rank, message)?;
        loop {
            match echoes.recv_timeout(PULSE) {
                Ok(from) if from == rank => return Ok(start.elapsed()),
                // The late answer of another rank.
                Ok(_) => {}
                Err(_) if start.elapsed() < self.timeout() && !self.has_lost(rank) => {}
                Err(_) => {
                    let cause = format!("rank {rank} does not answer; look at its host");
                    return Err(Error::RankLost(cause));
                }
            }
        }
    }
}
