//! Bytes in use in the course of training steps, and what units have to do with them.

use super::{
    chain::{Chain, Piece},
    reader::{Reader, Used},
};
use crate::Result;

/// What was found.
pub(super) struct Memory {
    pub(super) units: Vec<UnitMemory>,
    pub(super) loss: Option<u64>,
    pub(super) scratch: u64,
}

/// What was found of one unit.
pub(super) struct UnitMemory {
    pub(super) saved: u64,
    pub(super) pending: u64,
    pub(super) transient: Option<u64>,
    pub(super) head_transient: Option<u64>,
}

impl Memory {
    /// Runs steps on `chain`, which has run none yet.
    pub(super) fn measure<'a>(chain: &mut Chain<'a>, reader: Reader<'a>) -> Result<Self> {
        chain.reader = Some(reader);
        let start = reader.in_use();
        steps(chain)?;
        let grown = reader.in_use() - start;
        // Again, now that scratch and the optimizer's values are there.
        steps(chain)?;
        chain.reader = None;
        let found = Readings(chain).memory(grown);
        chain.seen.clear();
        found
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
    fn all(&self, i: usize, figure: Piece) -> impl DoubleEndedIterator<Item = Used> {
        self.0.seen.get(&(i, figure)).into_iter().flatten().filter_map(|seen| seen.used)
    }

    fn last(&self, i: usize, figure: Piece) -> Used {
        self.all(i, figure).next_back().unwrap_or(Used { before: 0, after: 0, peak: None })
    }

    /// The most in use during `figure` beyond what was before it.
    fn risen(&self, i: usize, figure: Piece) -> Option<i64> {
        let used = self.last(i, figure);
        Some(used.peak? - used.before)
    }

    fn output_gradient(&self, i: usize) -> i64 {
        self.0.output_gradients[i] as i64
    }

    /// What units 0 to `i` keep, from the last [`Chain::relay`]: no gradients of parameters are in use there.
    fn kept(&self, i: usize) -> i64 {
        self.last(i, Piece::Relay).before - self.output_gradient(i) - self.empty()
    }

    /// What is in use when no step is in work.
    fn empty(&self) -> i64 {
        self.last(0, Piece::Relay).after
    }

    /// What the output of unit `i` takes, unless the unit keeps it anyway.
    fn output(&self, i: usize) -> i64 {
        let next = match i + 1 == self.0.parts.units.len() {
            true => self.last(i, Piece::Loss),
            false => self.last(i + 1, Piece::Forward),
        };
        next.before - self.kept(i) - self.empty()
    }

    /// Bytes that the input passes of the units after `i` have left.
    fn left_after(&self, i: usize) -> i64 {
        let used = self.last(i, if i > 0 { Piece::Input } else { Piece::Between });
        used.before - self.output_gradient(i)
    }

    fn memory(&self, grown: i64) -> Result<Memory> {
        let parts = &self.0.parts;
        // The first update makes the optimizer's values and frees the gradients, the second frees them only.
        let net = |used: Used| used.after - used.before;
        let slots = |i: usize, figure| {
            let mut updates = self.all(i, figure);
            updates.next().map_or(0, net) - updates.next().map_or(0, net)
        };
        let slots: i64 = (0..parts.units.len()).map(|i| slots(i, Piece::Update) + slots(i, Piece::HeadUpdate)).sum();
        let units = (0..parts.units.len()).map(|i| self.unit(i)).collect::<Result<Vec<_>>>()?;
        let last = parts.units.len() - 1;
        let loss = self.risen(last, Piece::Loss).map(|risen| bytes(risen + self.output(last)));
        Ok(Memory { units, loss, scratch: bytes(grown - slots) })
    }

    fn unit(&self, i: usize) -> Result<UnitMemory> {
        let parts = &self.0.parts;
        let gradients = parts.bytes(&parts.units[i])?.gradients as i64;
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
        let head_transient = match &parts.heads[i] {
            Some(head) => {
                let gradients = parts.bytes(head)?.gradients as i64;
                self.risen(i, Piece::HeadNeeded).map(|risen| bytes(risen + self.output(i) - gradients))
            }
            None => None,
        };
        Ok(UnitMemory {
            saved: bytes(self.kept(i) - before),
            pending: bytes(pending),
            transient: transients.into_iter().flatten().max().map(bytes),
            head_transient,
        })
    }
}
