//! Decodes image files.

mod budget;
mod entropy;
mod jpeg;
mod whole;

use std::{fs, io::Cursor, path::Path};

use image::{
    ColorType, DynamicImage, ImageDecoder, ImageFormat, ImageReader, ImageResult, Limits, imageops,
    metadata::Orientation,
};
use interlock::Result;

use super::{
    augment::Part,
    caught::caught,
    formats::{self, FORMATS},
};

/// Decodes image files. Errors say why a file cannot be decoded, without its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decoder {
    /// Whether images are turned as their EXIF orientation says.
    turn: bool,
    /// Whether files were checked before.
    is_checked: bool,
}

/// The size of an image and the part to take of it.
pub(super) type Cut<'a> = &'a dyn Fn(u32, u32) -> Option<Part>;

/// Takes the largest central part.
pub(super) const CENTRAL: Cut<'static> = &|_, _| None;

impl Decoder {
    /// Makes a decoder, which turns images as their EXIF orientation says if `turn` is set.
    pub(super) fn new(turn: bool) -> Result<Self> {
        Ok(Self { turn, is_checked: false })
    }

    /// Takes less time from now on, for files that this decoder has decoded before.
    pub(super) fn trust(&mut self) {
        self.is_checked = true;
    }

    /// Reads the header of a file. Returns whether the image is turned.
    pub(super) fn check_header(self, path: &Path) -> Result<bool, String> {
        let (bytes, _room) = read(path)?;
        Ok(self.opened(&bytes)?.1 != Orientation::NoTransforms)
    }

    /// Decodes a file. Returns whether the image is turned.
    pub(super) fn check(self, path: &Path) -> Result<bool, String> {
        self.decode(path, 0, |_, is_turned| Ok(is_turned))
    }

    /// Decodes a file, and resizes the part that `cut` chooses to `shape` (bilinear, smoothed when it shrinks); if that is none, it is the largest
    /// central part with these proportions. Returns bytes `(C, H, W)`: grey if `C` is 1, otherwise the first `C` of red, green and blue; and whether
    /// the image is turned.
    pub(super) fn pixels(
        self,
        path: &Path,
        [channels, height, width]: [usize; 3],
        cut: Cut<'_>,
    ) -> Result<(Vec<u8>, bool), String> {
        let size = |pixels: usize| u32::try_from(pixels).map_err(|e| e.to_string());
        let (to_height, to_width) = (size(height)?, size(width)?);
        self.decode(path, to_height, |image, is_turned| {
            let image = if channels == 1 { image.grayscale() } else { image }.into_rgb8();
            let (own_width, own_height) = image.dimensions();
            let part = cut(own_width, own_height).unwrap_or_else(|| {
                // In 64 bits, since the product of two sizes may not fit into 32.
                let scaled = |length: u32, to: u32, from: u32| {
                    (u64::from(length) * u64::from(to) / u64::from(from)).max(1) as u32
                };
                let cut_width = own_width.min(scaled(own_height, to_width, to_height));
                let cut_height = own_height.min(scaled(own_width, to_height, to_width));
                Part::central((own_width, own_height), cut_width, cut_height)
            });
            let view = imageops::crop_imm(&image, part.left, part.top, part.width, part.height);
            let resized = imageops::resize(&*view, to_width, to_height, imageops::FilterType::Triangle);
            let plane = height * width;
            let mut planes = vec![0; channels * plane];
            for (i, pixel) in resized.pixels().enumerate() {
                for (channel, &value) in pixel.0.iter().take(channels).enumerate() {
                    planes[channel * plane + i] = value;
                }
            }
            Ok((planes, is_turned))
        })
    }

    /// Decodes an image file, turns the image, and gives it to `then`, which resizes it to the height `to`. Transparency is ignored.
    ///
    /// All images that are decoded at the same time have a bound: a thread may wait for another one here.
    fn decode<T>(
        self,
        path: &Path,
        to: u32,
        then: impl FnOnce(DynamicImage, bool) -> Result<T, String>,
    ) -> Result<T, String> {
        let (mut bytes, _file_room) = read(path)?;
        // That a file is cut short says more than what its decoder misses.
        let opened = self.opened(&bytes).map_err(|e| whole::check(&bytes, false).err().unwrap_or(e));
        let (decoder, orientation) = opened?;
        let _room = budget::PIXELS.take(peak(&decoder, orientation, format_of(&bytes)?, to));
        let unread = whole::check(&bytes, !self.is_checked)?;
        let mut image = match unread {
            None => of_decoder(|| DynamicImage::from_decoder(decoder))?,
            Some(unread) => {
                drop(decoder);
                bytes.drain(unread);
                let decoder = self.opened(&bytes)?.0;
                of_decoder(|| DynamicImage::from_decoder(decoder))?
            }
        };
        drop(bytes);
        image.apply_orientation(orientation);
        then(image, orientation != Orientation::NoTransforms)
    }

    /// Opens an image whose size is within the limit, and reads its orientation.
    fn opened(self, bytes: &[u8]) -> Result<(impl ImageDecoder + '_, Orientation), String> {
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format_of(bytes)?);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(2 * budget::EACH);
        reader.limits(limits);
        let mut decoder = of_decoder(|| reader.into_decoder())?;
        let ((width, height), size) = (decoder.dimensions(), size(&decoder));
        if width == 0 || height == 0 {
            return Err("the image has no pixels".to_owned());
        }
        if size > budget::EACH {
            let (size, limit) = (size >> 20, budget::EACH >> 20);
            return Err(format!(
                "{width} × {height} pixels take {size} MiB when decoded; the limit is {limit} MiB: make it smaller"
            ));
        }
        if !self.turn {
            return Ok((decoder, Orientation::NoTransforms));
        }
        // An image whose EXIF data are damaged is not turned. In PNG files they may stand after the pixels, where the decoder does not look; that of
        // WebP makes room for as many as the file says.
        let of_exif = |exif: std::ops::Range<usize>| Orientation::from_exif_chunk(&bytes[exif]);
        let orientation = match (format_of(bytes)?, whole::png_chunk(bytes, b"eXIf")) {
            (ImageFormat::WebP, _) => whole::webp_chunk(bytes, b"EXIF").and_then(of_exif),
            (_, Some(exif)) => of_exif(exif),
            (_, None) => of_decoder(|| decoder.orientation()).ok(),
        };
        Ok((decoder, orientation.unwrap_or(Orientation::NoTransforms)))
    }
}

/// Returns what the crate that decodes images returns. It panics at some damaged files.
fn of_decoder<T>(work: impl FnOnce() -> ImageResult<T>) -> Result<T, String> {
    match caught(work) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(panic) => Err(format!("its decoder cannot read it ({panic}); save the image again, or leave it out")),
    }
}

/// Returns the bytes of a decoded image, at least those as RGB.
fn size(decoder: &impl ImageDecoder) -> u64 {
    let (width, height) = decoder.dimensions();
    decoder.total_bytes().max(3 * u64::from(width) * u64::from(height))
}

/// Returns the most bytes that an image takes while it is decoded, turned, converted and resized to the height `to`.
fn peak(decoder: &impl ImageDecoder, orientation: Orientation, format: ImageFormat, to: u32) -> u64 {
    // Decoders of PNG and BMP write into the image itself; others hold it in another form, too. Turning and converting make a copy.
    let is_direct = matches!(format, ImageFormat::Png | ImageFormat::Bmp);
    let is_kept = decoder.color_type() == ColorType::Rgb8 && orientation == Orientation::NoTransforms;
    let copies = if is_direct && is_kept { 1 } else { 3 };
    // Images are first resized in height, to four numbers of `f32` a pixel. Turned images have their widths for heights.
    let (width, height) = decoder.dimensions();
    copies * size(decoder) + 4 * size_of::<f32>() as u64 * u64::from(width.max(height)) * u64::from(to)
}

/// Reads a file of bounded size.
fn read(path: &Path) -> Result<(Vec<u8>, budget::Taken), String> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound if path.is_symlink() => "it is a link to nothing".to_owned(),
        _ => e.to_string(),
    };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > budget::EACH {
        return Err(format!("the file has {} MiB; the limit is {} MiB", size >> 20, budget::EACH >> 20));
    }
    let room = budget::FILES.take(size);
    Ok((fs::read(path).map_err(failed)?, room))
}

/// Returns the format of a file, whatever its ending.
fn format_of(bytes: &[u8]) -> Result<ImageFormat, String> {
    let (name, ending) = match image::guess_format(bytes) {
        Ok(format) if format.reading_enabled() => return Ok(format),
        Ok(format) => (format!("{format:?}"), format.extensions_str().first().copied().unwrap_or_default()),
        Err(_) => match bytes {
            [] => return Err("the file is empty".to_owned()),
            // A TIFF file that may have more than 4 GiB.
            [b'I', b'I', 43, 0, ..] | [b'M', b'M', 0, 43, ..] if ImageFormat::Tiff.reading_enabled() => {
                return Ok(ImageFormat::Tiff);
            }
            [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => ("Heic".to_owned(), "heic"),
            _ => return Err(format!("it has none of the formats {FORMATS}")),
        },
    };
    let remedy = formats::remedies([ending]).pop().unwrap_or_else(|| "convert it to png".to_owned());
    Err(format!("it has the format {name}, which this program cannot read; {remedy}"))
}
