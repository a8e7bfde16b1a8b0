//! Normalization of pixels with the statistics of their values.

use interlock::{Error, Result};
use serde::{Deserialize, Serialize};

/// The mean and the standard deviation of each channel's pixel values, scaled to 0 … 1.
///
/// A pixel byte `p` of channel `c` becomes `(p / 255 - mean[c]) / std[c]`. The statistics of the training set are used for the test set too; they
/// are part of a trained model and are saved with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// The mean of each channel.
    pub mean: Vec<f64>,
    /// The (population) standard deviation of each channel.
    pub std: Vec<f64>,
}

impl Normalization {
    /// Returns the normalization that only scales bytes to 0 … 1.
    pub fn none(channels: usize) -> Self {
        Self { mean: vec![0.0; channels], std: vec![1.0; channels] }
    }

    /// Computes the statistics of images of shape `(C, H, W)` each, one after another.
    ///
    /// Sums are integers, so only the last operations are rounded. A channel with only one value gets the standard deviation 1, so its pixels become
    /// zeros.
    pub fn of(pixels: &[u8], [channels, height, width]: [usize; 3]) -> Self {
        let mut sums = Sums::new(channels);
        for image in pixels.chunks_exact((channels * height * width).max(1)) {
            sums.add(image);
        }
        sums.finish()
    }

    /// Checks that these values can normalise images with this number of channels.
    ///
    /// # Errors
    /// If the lengths are not `channels`, a value is not finite, or a standard deviation is not positive.
    pub fn check(&self, channels: usize) -> Result<()> {
        if self.mean.len() != channels || self.std.len() != channels {
            return Err(Error::invalid(
                "data.normalize",
                format!("{} means and {} deviations for {channels} channels", self.mean.len(), self.std.len()),
                "give one mean and one standard deviation for each channel",
            ));
        }
        if self.mean.iter().any(|m| !m.is_finite()) || self.std.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(Error::invalid(
                "data.normalize",
                format!("mean {:?}, std {:?}", self.mean, self.std),
                "give finite means and standard deviations above 0, of pixel values scaled to 0 … 1",
            ));
        }
        Ok(())
    }

    /// Returns the value of each pixel byte, for each channel.
    pub(super) fn tables(&self) -> Vec<[f32; 256]> {
        let table = |(mean, std): (&f64, &f64)| {
            std::array::from_fn(|byte| {
                let value = (byte as f64 / 255.0 - mean) / std;
                value as f32
            })
        };
        self.mean.iter().zip(&self.std).map(table).collect()
    }
}

/// Running sums of pixel bytes for each channel. They are exact, so the order of additions does not matter.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    /// The number of pixels of each channel.
    count: u64,
    /// `(Σ p, Σ p²)` of each channel.
    channels: Vec<(u64, u64)>,
}

impl Sums {
    pub(super) fn new(channels: usize) -> Self {
        Self { count: 0, channels: vec![(0, 0); channels] }
    }

    /// Adds one image `(C, H, W)`.
    pub(super) fn add(&mut self, image: &[u8]) {
        let plane = image.len() / self.channels.len();
        self.count += plane as u64;
        for (sums, pixels) in self.channels.iter_mut().zip(image.chunks_exact(plane.max(1))) {
            sums.0 += pixels.iter().map(|&p| u64::from(p)).sum::<u64>();
            sums.1 += pixels.iter().map(|&p| u64::from(p) * u64::from(p)).sum::<u64>();
        }
    }

    /// Adds the sums of other images.
    pub(super) fn merge(&mut self, other: &Self) {
        self.count += other.count;
        for (sums, more) in self.channels.iter_mut().zip(&other.channels) {
            sums.0 += more.0;
            sums.1 += more.1;
        }
    }

    pub(super) fn finish(&self) -> Normalization {
        let n = u128::from(self.count.max(1));
        let mut result = Normalization::none(0);
        for &(sum, squares) in &self.channels {
            let (sum, squares) = (u128::from(sum), u128::from(squares));
            let variance = (n * squares - sum * sum) as f64 / (n * n) as f64;
            result.mean.push(sum as f64 / n as f64 / 255.0);
            result.std.push(if variance > 0.0 { variance.sqrt() / 255.0 } else { 1.0 });
        }
        result
    }
}
