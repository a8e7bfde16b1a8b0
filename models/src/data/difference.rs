//! The difference between the pixels of images and those that a model was trained on.

use candle_core::D;
use interlock::{Dataset, Result};

use super::{DataConfig, Description, Normalization, config::Normalize};

/// The largest number of images that are compared, spread evenly over the set.
const SAMPLE: usize = 256;
/// The number of images that are read at once.
const BATCH: usize = 32;
/// The fewest images whose deviation is compared.
const FEW: usize = 16;
/// The distance between means, in deviations of the training images, above which images differ clearly.
const FAR: f64 = 0.25;
/// The number of standard errors of the mean by which it may differ beyond that.
const ERRORS: f64 = 3.0;
/// The factor between deviations above which images differ clearly.
const FACTOR: f64 = 2.0;

impl DataConfig {
    /// Compares the pixels of `data`, which are normalised as in a run whose data had the description `saved`, with those of the run's training
    /// images. Returns how they differ, in words; none if they do not clearly differ, or the statistics of the training images are not known.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn difference(&self, saved: &Description, data: &dyn Dataset) -> Result<Option<String>> {
        let normalize = match self {
            Self::FashionMnistMini(c) => &c.normalize,
            Self::Idx(c) => &c.normalize,
            Self::Cifar10(c) | Self::Cifar100(c) => &c.normalize,
            Self::ImageFolder(c) => &c.normalize,
            Self::Shakespeare(_) | Self::Text(_) => return Ok(None),
        };
        match (normalize, &saved.normalization) {
            (Normalize::Own(true), Some(trained)) => Ok(difference(trained, &Moments::of(data)?)),
            _ => Ok(None),
        }
    }
}

/// The moments of one channel of images.
#[derive(Clone, Copy, Default)]
struct Moments {
    /// The sum of the images' means.
    means: f64,
    /// The sum of the squares of the images' means.
    squares_of_means: f64,
    /// The sum of the images' mean squares.
    squares: f64,
    images: usize,
}

impl Moments {
    /// Returns the moments of each channel of a sample of images.
    fn of(data: &dyn Dataset) -> Result<Vec<Self>> {
        let count = data.len().min(SAMPLE);
        let numbers: Vec<usize> = (0..count).map(|at| at * data.len() / count).collect();
        let mut channels: Vec<Self> = Vec::new();
        for numbers in numbers.chunks(BATCH) {
            let images = data.batch(numbers, None)?.inputs.single()?.flatten_from(2)?;
            let means: Vec<Vec<f32>> = images.mean(D::Minus1)?.to_vec2()?;
            let squares: Vec<Vec<f32>> = images.sqr()?.mean(D::Minus1)?.to_vec2()?;
            for (means, squares) in means.into_iter().zip(squares) {
                channels.resize(means.len(), Self::default());
                for (channel, (mean, square)) in channels.iter_mut().zip(means.into_iter().zip(squares)) {
                    channel.means += f64::from(mean);
                    channel.squares_of_means += f64::from(mean).powi(2);
                    channel.squares += f64::from(square);
                    channel.images += 1;
                }
            }
        }
        Ok(channels)
    }

    fn mean(self) -> f64 {
        self.means / self.images as f64
    }

    fn deviation(self) -> f64 {
        (self.squares / self.images as f64 - self.mean().powi(2)).max(0.0).sqrt()
    }

    /// Returns the standard error of the mean.
    fn error(self) -> f64 {
        let variance = self.squares_of_means / self.images as f64 - self.mean().powi(2);
        (variance.max(0.0) / (self.images - 1) as f64).sqrt()
    }

    /// Returns whether these normalised pixels, which have mean 0 and deviation 1 where they are like the training images, clearly differ from them.
    fn differ(self) -> bool {
        let deviation = self.deviation();
        self.mean().abs() > FAR + ERRORS * self.error()
            || (self.images >= FEW && !(1.0 / FACTOR..=FACTOR).contains(&deviation))
    }
}

fn difference(trained: &Normalization, channels: &[Moments]) -> Option<String> {
    // A single image says nothing about the others.
    if channels.iter().any(|channel| channel.images < 2) || !channels.iter().any(|channel| channel.differ()) {
        return None;
    }
    let list = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(", ")
    };
    let pixels = || channels.iter().zip(trained.mean.iter().zip(&trained.std));
    Some(format!(
        "the images differ from those of the run: the mean of their pixels is {} (in training {}), the deviation {} (in training {})",
        list(&mut pixels().map(|(channel, (mean, std))| mean + std * channel.mean())),
        list(&mut trained.mean.iter().copied()),
        list(&mut pixels().map(|(channel, (_, std))| std * channel.deviation())),
        list(&mut trained.std.iter().copied()),
    ))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use interlock::{Batch, Key};
    use rand::RngExt;
    use serde_json::json;

    use super::*;
    use crate::data::DataKind;

    /// Images of one channel and 16 pixels, whose normalised values are random around `mean`.
    struct Noise {
        images: usize,
        mean: f32,
        deviation: f32,
    }

    impl Dataset for Noise {
        fn len(&self) -> usize {
            self.images
        }

        fn batch(&self, numbers: &[usize], _: Option<Key>) -> Result<Batch> {
            let mut stream = Key::new(numbers[0] as u64).stream();
            // The deviation of uniform numbers from -1 to 1 is 1/√3.
            let spread = 3.0_f32.sqrt() * self.deviation;
            let mut value = || self.mean + spread * (stream.random::<f32>() * 2.0 - 1.0);
            let values: Vec<f32> = (0..16 * numbers.len()).map(|_| value()).collect();
            Ok(Batch {
                inputs: Tensor::from_vec(values, (numbers.len(), 1, 4, 4), &Device::Cpu)?.into(),
                targets: Tensor::zeros(numbers.len(), candle_core::DType::U32, &Device::Cpu)?,
            })
        }
    }

    #[test]
    fn images_with_clearly_other_statistics_are_described() {
        let trained = Normalization { mean: vec![0.5], std: vec![0.2] };
        let kind = DataKind::Images { channels: 1, height: 4, width: 4, classes: 2, class_names: Vec::new() };
        let saved = Description::new(kind, Some(trained));
        let config = |normalize| {
            let json = json!({ "kind": "fashion-mnist-mini", "normalize": normalize });
            serde_json::from_value::<DataConfig>(json).unwrap()
        };
        let found = |images, mean, deviation| {
            config(json!(true)).difference(&saved, &Noise { images, mean, deviation }).unwrap()
        };
        for (images, mean, deviation) in
            [(400, 0.0, 1.0), (400, 0.2, 1.0), (400, 0.0, 0.7), (3, 0.3, 1.0), (1, 5.0, 1.0)]
        {
            assert_eq!(found(images, mean, deviation), None);
        }
        for (images, mean, deviation) in
            [(400, 0.4, 1.0), (400, -0.4, 1.0), (400, 0.0, 0.3), (400, 0.0, 3.0), (4, 3.0, 1.0)]
        {
            assert!(found(images, mean, deviation).is_some(), "{images} {mean} {deviation}");
        }
        let words = found(400, 2.0, 1.0).unwrap();
        assert!(words.contains("(in training 0.50), the deviation 0.20 (in training 0.20)"), "{words}");
        // Values that were given, or none, say nothing about the training images.
        for normalize in [json!(false), json!({ "mean": [0.5], "std": [0.2] })] {
            let other = Noise { images: 400, mean: 2.0, deviation: 1.0 };
            assert_eq!(config(normalize).difference(&saved, &other).unwrap(), None);
        }
    }
}
