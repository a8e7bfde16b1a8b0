//! The bytes in use during training steps, and the share of each unit.

use super::{
    chain::{Chain, Piece},
    reader::{MemoryReader, MemoryUse},
};
use crate::Result;

/// The measured memory of a model.
pub(super) struct Memory {
    pub(super) units: Vec<UnitMemory>,
    pub(super) loss: Option<u64>,
    pub(super) scratch: u64,
}

/// The measured memory of one unit.
pub(super) struct UnitMemory {
    pub(super) saved: u64,
    pub(super) pending: u64,
    pub(super) transient: Option<u64>,
    /// The state that its first update created.
    pub(super) optimizer: u64,
    /// The heads after it.
    pub(super) heads: Vec<HeadMemory>,
}

/// The measured memory of one head.
pub(super) struct HeadMemory {
    pub(super) transient: Option<u64>,
    /// The state that its first update created.
    pub(super) optimizer: u64,
}

impl Memory {
    /// Measures steps on `chain`, which has run none yet.
    pub(super) fn measure<'a>(chain: &mut Chain<'a>, reader: MemoryReader<'a>) -> Result<Self> {
        chain.reader = Some(reader);
        let start = reader.in_use();
        steps(chain)?;
        let grown = reader.in_use() - start;
        // Once more, now that scratch memory and the optimizer's state exist.
        steps(chain)?;
        chain.reader = None;
        let found = Readings(chain).memory(grown);
        chain.seen.clear();
        Ok(found)
    }
}

fn steps(chain: &mut Chain<'_>) -> Result<()> {
    chain.whole()?;
    chain.split()?;
    chain.needed()?;
    chain.relay()
}

fn bytes(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

struct Readings<'c, 'a>(&'c Chain<'a>);

impl Readings<'_, '_> {
    fn all(&self, i: usize, figure: Piece) -> impl DoubleEndedIterator<Item = MemoryUse> {
        self.0.seen.get(&(i, figure)).into_iter().flatten().filter_map(|seen| seen.used)
    }

    fn last(&self, i: usize, figure: Piece) -> MemoryUse {
        self.all(i, figure).next_back().unwrap_or(MemoryUse { before: 0, after: 0, peak: None })
    }

    /// The most bytes in use during `figure` beyond those in use before it.
    fn risen(&self, i: usize, figure: Piece) -> Option<i64> {
        let used = self.last(i, figure);
        Some(used.peak? - used.before)
    }

    fn output_gradient(&self, i: usize) -> i64 {
        self.0.output_gradients[i] as i64
    }

    /// The bytes that units 0 to `i` have saved, from the last [`Chain::relay`]: there no parameter gradients are in use.
    fn kept(&self, i: usize) -> i64 {
        self.last(i, Piece::Relay).before - self.output_gradient(i) - self.empty()
    }

    /// The bytes in use between steps.
    fn empty(&self) -> i64 {
        self.last(0, Piece::Relay).after
    }

    /// The bytes of the output of unit `i`, unless the unit saves it anyway.
    fn output(&self, i: usize) -> i64 {
        let next = match i + 1 == self.0.parts.units.len() {
            true => self.last(i, Piece::Loss),
            false => self.last(i + 1, Piece::Forward),
        };
        next.before - self.kept(i) - self.empty()
    }

    /// The bytes in use after the input passes of the units after `i`.
    fn left_after(&self, i: usize) -> i64 {
        let used = self.last(i, if i > 0 { Piece::Input } else { Piece::Between });
        used.before - self.output_gradient(i)
    }

    /// The bytes of state that the first of these updates created. It freed the gradients too, and the second only freed them.
    fn optimizer(&self, i: usize, update: Piece) -> i64 {
        let mut net = self.all(i, update).map(|used| used.after - used.before);
        net.next().unwrap_or(0) - net.next().unwrap_or(0)
    }

    fn memory(&self, grown: i64) -> Memory {
        let parts = &self.0.parts;
        let of_heads = |i: usize| (0..parts.heads[i].len()).map(move |n| self.optimizer(i, Piece::HeadUpdate(n)));
        let optimizer = |i: usize| self.optimizer(i, Piece::Update) + of_heads(i).sum::<i64>();
        let optimizers: i64 = (0..parts.units.len()).map(optimizer).sum();
        let units = (0..parts.units.len()).map(|i| self.unit(i)).collect();
        let last = parts.units.len() - 1;
        let loss = self.risen(last, Piece::Loss).map(|risen| bytes(risen + self.output(last)));
        Memory { units, loss, scratch: bytes(grown - optimizers) }
    }

    fn unit(&self, i: usize) -> UnitMemory {
        let parts = &self.0.parts;
        let [_, gradients, _] = parts.units[i].bytes().map(|bytes| bytes as i64);
        let (output_gradient, before) = (self.output_gradient(i), if i > 0 { self.kept(i - 1) } else { 0 });
        let pending = if i > 0 { self.left_after(i - 1) - self.left_after(i) } else { 0 };
        let forward = self.last(i, Piece::Forward).peak.map(|peak| peak - self.kept(i) - self.empty());
        let back = if i > 0 { Piece::Both } else { Piece::ParametersOnly };
        let transients = [
            forward,
            self.risen(i, back).map(|risen| risen + output_gradient - gradients),
            self.risen(i, Piece::Input).map(|risen| risen + output_gradient - pending),
            self.risen(i, Piece::Parameters).map(|risen| risen - gradients),
        ];
        let heads = parts.heads[i].iter().enumerate().map(|(n, (_, head))| {
            let [_, gradients, _] = head.bytes().map(|bytes| bytes as i64);
            let transient = self.risen(i, Piece::HeadNeeded(n)).map(|risen| bytes(risen + self.output(i) - gradients));
            HeadMemory { transient, optimizer: bytes(self.optimizer(i, Piece::HeadUpdate(n))) }
        });
        UnitMemory {
            saved: bytes(self.kept(i) - before),
            pending: bytes(pending),
            transient: transients.into_iter().flatten().max().map(bytes),
            optimizer: bytes(self.optimizer(i, Piece::Update)),
            heads: heads.collect(),
        }
    }
}
