//! Random numbers, keyed by their purpose.
//!
//! The stream behind a key does not depend on what was drawn elsewhere, so initial values, dropout masks, shuffles and
//! augmentations are the same for any thread count, interleaving, partition and restart, and the same again when a forward
//! pass is recomputed. The generator is ChaCha with 8 rounds, keyed by a hash of the purpose.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// The purpose of a stream of random numbers. Two different keys give unrelated streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key(u64);

impl Key {
    /// Returns the root key of a seed.
    pub fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// Returns the key derived from this one by a number (step, micro-batch, index of an example).
    pub fn with(self, number: u64) -> Self {
        Self(mix(self.0.rotate_left(17) ^ mix(number.wrapping_add(0x2545_f491_4f6c_dd1d))))
    }

    /// Returns the key derived from this one by a name (of a parameter, a layer, a purpose).
    pub fn named(self, name: &str) -> Self {
        // FNV-1a over the bytes, then mixed with the key above.
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        self.with(hash)
    }

    /// Returns the stream of random numbers of this key.
    pub fn stream(self) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(self.0)
    }
}

/// A bijection of 64 bits in which every input bit reaches every output bit (the finalizer of SplitMix64).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn a_key_gives_the_same_stream_again_and_other_keys_give_others() {
        let draw = |key: Key| key.stream().next_u64();
        let key = Key::new(1).named("layer1.0.conv1.weight");
        assert_eq!(draw(key), draw(Key::new(1).named("layer1.0.conv1.weight")));
        let others = [
            Key::new(2).named("layer1.0.conv1.weight"),
            Key::new(1).named("layer1.0.conv2.weight"),
            key.with(0),
            key.with(1),
            Key::new(1),
        ];
        let mut seen: Vec<u64> = others.iter().map(|&k| draw(k)).chain([draw(key)]).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), others.len() + 1);
    }
}
