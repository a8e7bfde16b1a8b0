//! Decodes image files.

use std::{fs::File, io::BufReader, path::Path};

use image::{DynamicImage, ImageReader, imageops};
use interlock::Result;

/// Decodes files of the formats png, jpg, bmp and webp. Errors say why a file cannot be decoded, without its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoder(());

impl Decoder {
    /// Makes a decoder.
    pub(super) fn new() -> Result<Self> {
        Ok(Self(()))
    }

    /// Reads the header of a file.
    pub(super) fn check_header(self, path: &Path) -> Result<(), String> {
        open(path)?.into_dimensions().map(drop).map_err(|e| e.to_string())
    }

    /// Decodes a file.
    pub(super) fn check(self, path: &Path) -> Result<(), String> {
        decode(path).map(drop)
    }

    /// Decodes a file, and returns its largest central part with the proportions of `shape`, resized to it (bilinear, smoothed when it shrinks), as
    /// bytes `(C, H, W)`: grey if `C` is 1, otherwise the first `C` of red, green and blue.
    pub(super) fn pixels(self, path: &Path, [channels, height, width]: [usize; 3]) -> Result<Vec<u8>, String> {
        let image = decode(path)?;
        let image = if channels == 1 { image.grayscale() } else { image }.into_rgb8();
        let (own_width, own_height) = image.dimensions();
        if own_width == 0 || own_height == 0 {
            return Err("the image has no pixels".to_owned());
        }
        let size = |pixels: usize| u32::try_from(pixels).map_err(|e| e.to_string());
        let (to_height, to_width) = (size(height)?, size(width)?);
        // In 64 bits, since the product of two sizes may not fit into 32.
        let scaled =
            |length: u32, to: u32, from: u32| (u64::from(length) * u64::from(to) / u64::from(from)).max(1) as u32;
        let cut_width = own_width.min(scaled(own_height, to_width, to_height));
        let cut_height = own_height.min(scaled(own_width, to_height, to_width));
        let (left, top) = ((own_width - cut_width) / 2, (own_height - cut_height) / 2);
        let mut cut = imageops::crop_imm(&image, left, top, cut_width, cut_height).to_image();
        if (cut_width, cut_height) != (to_width, to_height) {
            cut = imageops::resize(&cut, to_width, to_height, imageops::FilterType::Triangle);
        }
        let plane = height * width;
        let mut planes = vec![0; channels * plane];
        for (i, pixel) in cut.pixels().enumerate() {
            for (channel, &value) in pixel.0.iter().take(channels).enumerate() {
                planes[channel * plane + i] = value;
            }
        }
        Ok(planes)
    }
}

fn open(path: &Path) -> Result<ImageReader<BufReader<File>>, String> {
    ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(|e| e.to_string())
}

fn decode(path: &Path) -> Result<DynamicImage, String> {
    open(path)?.decode().map_err(|e| e.to_string())
}
