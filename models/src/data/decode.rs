//! Decodes image files.

use std::{fs, io::Cursor, ops::Range, path::Path};

use image::{DynamicImage, ImageDecoder, ImageReader, imageops};
use interlock::Result;

/// The most bytes of a decoded image.
const LIMIT: u64 = 512 << 20;
/// The first bytes of every JPEG file.
const JPEG: [u8; 2] = [0xff, 0xd8];

/// Decodes files of the formats png, jpg, bmp and webp, turned as their EXIF orientation says. Errors say why a file cannot be decoded, without its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoder(());

impl Decoder {
    /// Makes a decoder.
    pub(super) fn new() -> Result<Self> {
        Ok(Self(()))
    }

    /// Reads the header of a file.
    pub(super) fn check_header(self, path: &Path) -> Result<(), String> {
        let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format).map_err(|e| e.to_string())?;
        reader.into_dimensions().map(drop).map_err(|e| e.to_string())
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

/// Decodes an image file, and turns the image as its EXIF orientation says. Transparency is ignored.
fn decode(path: &Path) -> Result<DynamicImage, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let bytes = if bytes.starts_with(&JPEG) { whole_jpeg(bytes)? } else { bytes };
    let failed = |e: image::ImageError| e.to_string();
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let ((width, height), size) = (decoder.dimensions(), decoder.total_bytes());
    if size > LIMIT {
        let (size, limit) = (size >> 20, LIMIT >> 20);
        return Err(format!(
            "{width} × {height} pixels take {size} MiB when decoded; the limit is {limit} MiB: make it smaller"
        ));
    }
    let orientation = decoder.orientation().map_err(failed)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Checks that a JPEG file is whole: decoders fill the missing part of one that was cut short with grey.
///
/// In a file of three components with both a JFIF and an Adobe segment, the first says that the colours are YCbCr, and the second may say that
/// they are not. The Adobe segment is removed, so that the first one counts, as in libjpeg.
fn whole_jpeg(mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let (mut at, mut components, mut is_jfif, mut adobe) = (2, 0, false, None::<Range<usize>>);
    loop {
        let cut = || format!("the JPEG file is cut short: it has no end marker within its {} bytes", bytes.len());
        // A marker is 0xff and a code. Codes 0 and 0xff are no markers, and those of restarts stand inside of the pixels' data.
        let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 1 | 0xd0..=0xd8 | 0xff);
        let rest = bytes.get(at..).unwrap_or_default();
        let marker = at + rest.windows(2).position(is_marker).ok_or_else(cut)?;
        let code = bytes[marker + 1];
        if code == 0xd9 {
            break;
        }
        let length = bytes.get(marker + 2..marker + 4).map_or(0, |l| usize::from(u16::from_be_bytes([l[0], l[1]])));
        at = marker + 2 + length.max(2);
        let content = bytes.get(marker + 4..at).ok_or_else(cut)?;
        match code {
            0xc0..=0xcf if !matches!(code, 0xc4 | 0xc8 | 0xcc) => components = content.get(5).copied().unwrap_or(0),
            0xe0 => is_jfif |= content.starts_with(b"JFIF\0"),
            0xee if content.starts_with(b"Adobe") => adobe = Some(marker..at),
            _ => {}
        }
    }
    if let Some(segment) = adobe.filter(|_| is_jfif && components == 3) {
        bytes.drain(segment);
    }
    Ok(bytes)
}
