//! Image files of all kinds, made by `images/make.py` or by this project's encoder.

use std::{fs, io::Cursor, path::Path};

use flate2::Crc;
use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Pixel, Rgb, RgbImage};

use crate::data::decode::{CENTRAL, Decoder};

const RED: [u8; 3] = [255, 0, 0];
const GREEN: [u8; 3] = [0, 255, 0];
const BLUE: [u8; 3] = [0, 0, 255];
const YELLOW: [u8; 3] = [255, 255, 102];
/// The four squares of the images, row by row.
const SQUARES: [[u8; 3]; 4] = [RED, GREEN, BLUE, YELLOW];
/// Those of `cmyk.jpg` read as YCCK, as Pillow does.
const YCCK: [[u8; 3]; 4] = [[179, 0, 227], [255, 207, 30], [77, 255, 255], [36, 25, 0]];

const EXIF_JPG: &[u8] = include_bytes!("images/exif.jpg");
const EXIF_PNG: &[u8] = include_bytes!("images/exif.png");
const EXIF_WEBP: &[u8] = include_bytes!("images/exif.webp");
const PROGRESSIVE: &[u8] = include_bytes!("images/progressive.jpg");
const RESTARTS: &[u8] = include_bytes!("images/restarts.jpg");
const BOTH: &[u8] = include_bytes!("images/both.jpg");
const CMYK: &[u8] = include_bytes!("images/cmyk.jpg");
const PALETTE_PNG: &[u8] = include_bytes!("images/palette.png");
const UNEVEN_PALETTE: &[u8] = include_bytes!("images/uneven_palette.png");
const ONE_BIT: &[u8] = include_bytes!("images/one_bit.png");
const ANIMATED_WEBP: &[u8] = include_bytes!("images/animated.webp");
const ANIMATED_PNG: &[u8] = include_bytes!("images/animated.png");
const EXIF_TIF: &[u8] = include_bytes!("images/exif.tif");
const PALETTE_GIF: &[u8] = include_bytes!("images/palette.gif");

/// Decodes a file of these bytes, and returns the middles of its four squares.
fn decoded(turn: bool, bytes: &[u8]) -> Result<[[u8; 3]; 4], String> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image.png");
    fs::write(&path, bytes).expect("writes");
    decoded_file(turn, &path)
}

fn decoded_file(turn: bool, path: &Path) -> Result<[[u8; 3]; 4], String> {
    let (planes, _) = Decoder::new(turn).expect("a decoder").pixels(path, [3, 16, 16], CENTRAL)?;
    let at = |y: usize, x: usize| std::array::from_fn(|c| planes[c * 256 + y * 16 + x]);
    Ok([at(4, 4), at(4, 12), at(12, 4), at(12, 12)])
}

/// Asserts that two images are the same but for the rounding of JPEG.
#[track_caller]
fn same(found: Result<[[u8; 3]; 4], String>, expected: [[u8; 3]; 4]) {
    let found = found.expect("an image");
    let differs = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 2;
    assert!(!found.iter().flatten().zip(expected.iter().flatten()).any(differs), "{found:?} for {expected:?}");
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

/// Makes an image of four squares.
fn squares<P: Pixel>(colours: [P; 4]) -> ImageBuffer<P, Vec<P::Subpixel>> {
    ImageBuffer::from_fn(16, 16, |x, y| colours[(y / 8 * 2 + x / 8) as usize])
}

fn place(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).expect("is there")
}

/// Sets the checksum of a PNG file's chunk.
fn sum_chunk(bytes: &mut [u8], name: &[u8; 4]) {
    let at = place(bytes, name);
    let length = u32::from_be_bytes(bytes[at - 4..at].try_into().expect("four bytes")) as usize;
    let mut sum = Crc::new();
    sum.update(&bytes[at..at + 4 + length]);
    bytes[at + 4 + length..at + 8 + length].copy_from_slice(&sum.sum().to_be_bytes());
}

fn oriented(file: &[u8], orientation: u8) -> Vec<u8> {
    let mut bytes = file.to_vec();
    // In either order of bytes.
    let entries = [[0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0], [1, 0x12, 0, 3, 0, 0, 0, 1, 0, 6]];
    let at = bytes.windows(10).position(|window| entries.iter().any(|entry| entry == window)).expect("an orientation");
    bytes[at + 8..at + 10].iter_mut().filter(|byte| **byte == 6).for_each(|byte| *byte = orientation);
    if bytes.starts_with(b"\x89PNG") {
        sum_chunk(&mut bytes, b"eXIf");
    }
    bytes
}

#[test]
fn images_are_turned_as_each_orientation_says() {
    let [r, g, b, y] = SQUARES;
    let turned = [
        [r, g, b, y],
        [g, r, y, b],
        [y, b, g, r],
        [b, y, r, g],
        [r, b, g, y],
        [b, r, y, g],
        [y, g, b, r],
        [g, y, r, b],
    ];
    let mut files = vec![EXIF_JPG, EXIF_PNG, EXIF_WEBP];
    if cfg!(feature = "more-images") {
        files.push(EXIF_TIF);
    }
    for file in files {
        for (orientation, expected) in (1..).zip(turned) {
            same(decoded(true, &oriented(file, orientation)), expected);
        }
        same(decoded(true, &oriented(file, 9)), SQUARES);
        same(decoded(false, file), SQUARES);
    }
    // EXIF data after the pixels.
    let (start, end) = (place(EXIF_PNG, b"eXIf") - 4, place(EXIF_PNG, b"IDAT") - 4);
    let last = place(EXIF_PNG, b"IEND") - 4;
    let moved = [&EXIF_PNG[..start], &EXIF_PNG[end..last], &EXIF_PNG[start..end], &EXIF_PNG[last..]].concat();
    same(decoded(true, &moved), turned[5]);
}

#[test]
fn colours_of_every_kind_are_those_of_rgb() {
    same(decoded(true, CMYK), SQUARES);
    let mut ycck = CMYK.to_vec();
    let at = place(&ycck, b"Adobe");
    ycck[at + 11] = 2;
    same(decoded(true, &ycck), YCCK);
    for file in [PALETTE_PNG, ANIMATED_PNG, ANIMATED_WEBP, PROGRESSIVE, RESTARTS, BOTH] {
        same(decoded(true, file), SQUARES);
    }
    same(decoded(true, ONE_BIT), [[0; 3], [255; 3], [0; 3], [255; 3]]);
    let greys = [[10; 3], [20; 3], [130; 3], [255; 3]];
    let grey = [10, 20, 130, 255].map(|v: u8| Luma([v]));
    let grey16 = [10, 20, 130, 255].map(|v: u16| Luma([v * 257]));
    let grey_alpha = [10, 20, 130, 255].map(|v: u8| LumaA([v, 255 - v]));
    let rgb16 = SQUARES.map(|colour| Rgb(colour.map(|v| u16::from(v) * 257)));
    let png = ImageFormat::Png;
    same(decoded(true, &encoded(squares(grey), png)), greys);
    same(decoded(true, &encoded(squares(grey16), png)), greys);
    same(decoded(true, &encoded(squares(grey_alpha), png)), greys);
    same(decoded(true, &encoded(squares(rgb16), png)), SQUARES);
    let rounded = encoded(squares([Luma([128_u16]), Luma([129]), Luma([65_406]), Luma([65_407])]), png);
    assert_eq!(decoded(true, &rounded), Ok([[0; 3], [1; 3], [254; 3], [255; 3]]));
}

/// Returns a file of each format.
fn files() -> Vec<Vec<u8>> {
    let image = squares(SQUARES.map(Rgb));
    let mut files: Vec<Vec<u8>> = [EXIF_JPG, PROGRESSIVE, RESTARTS, BOTH, CMYK, EXIF_PNG, PALETTE_PNG, ANIMATED_PNG]
        .iter()
        .chain(&[EXIF_WEBP, ANIMATED_WEBP])
        .map(|file| file.to_vec())
        .collect();
    files.push(encoded(image.clone(), ImageFormat::Bmp));
    if cfg!(feature = "more-images") {
        files.extend([EXIF_TIF.to_vec(), PALETTE_GIF.to_vec(), encoded(image, ImageFormat::Pnm)]);
    }
    files
}

#[test]
fn file_that_is_cut_anywhere_is_refused() {
    for file in files() {
        same(decoded(false, &file), SQUARES);
        same(decoded(false, &[&file[..], b"more"].concat()), SQUARES);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        for length in 0..file.len() {
            fs::write(&path, &file[..length]).expect("writes");
            assert!(decoded_file(false, &path).is_err(), "{length} of {} bytes: {:?}", file.len(), &file[..4]);
        }
        // Two bytes are the end itself.
        for length in (2..file.len() - 2).filter(|_| file.starts_with(&[0xff, 0xd8])) {
            fs::write(&path, [&file[..length], &[0xff, 0xd9]].concat()).expect("writes");
            assert!(decoded_file(false, &path).is_err(), "{length} of {} bytes and an end", file.len());
        }
    }
}

#[test]
fn missing_scans_and_intervals_are_named() {
    let scan = |file: &[u8]| file.windows(2).rposition(|pair| pair == [0xff, 0xda]).expect("a scan");
    let cut = [&PROGRESSIVE[..scan(PROGRESSIVE)], &[0xff, 0xd9]].concat();
    assert_eq!(decoded(true, &cut), Err("scans of the JPEG file are missing".to_owned()));
    let (first, second) = (place(RESTARTS, &[0xff, 0xd0]), place(RESTARTS, &[0xff, 0xd1]));
    let cut = [&RESTARTS[..first], &RESTARTS[second..]].concat();
    assert!(decoded(true, &cut).expect_err("an interval is missing").contains("blocks of pixels"));
}

#[test]
fn damaged_and_foreign_files_are_refused_with_a_reason() {
    let refused = |bytes: &[u8], words: &[&str]| {
        let error = decoded(true, bytes).expect_err("must be refused");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(b"", &["empty"]);
    refused(b"<!DOCTYPE html>", &["none of the formats png, jpg"]);
    refused(b"\0\0\0\x18ftypheic", &["Heic", "convert them to png or jpg"]);
    refused(b"\0\0\0\x18ftypavif", &["Avif", "convert them to png or jpg"]);
    if !cfg!(feature = "more-images") {
        refused(PALETTE_GIF, &["Gif", "rebuild with --features more-images"]);
        refused(EXIF_TIF, &["Tiff", "rebuild with --features more-images"]);
    }
    let mut damaged = PALETTE_PNG.to_vec();
    let at = place(&damaged, b"IDAT");
    damaged[at + 6] ^= 1;
    refused(&damaged, &["CRC"]);
    let mut empty = EXIF_PNG.to_vec();
    empty[16..20].fill(0);
    sum_chunk(&mut empty, b"IHDR");
    refused(&empty, &["nvalid"]);
    let mut arithmetic = EXIF_JPG.to_vec();
    let frame = arithmetic.windows(4).rposition(|window| window == [0xff, 0xc0, 0, 17]).expect("a frame");
    arithmetic[frame + 1] = 0xc9;
    refused(&arithmetic, &["arithmetic JPEG", "convert it to png"]);
    let mut huge = EXIF_PNG.to_vec();
    huge[18..24].copy_from_slice(&[0x4e, 0x20, 0, 0, 0x4e, 0x20]);
    sum_chunk(&mut huge, b"IHDR");
    refused(&huge, &["20000 × 20000", "1144 MiB", "the limit is 512 MiB"]);
    let mut huge = EXIF_JPG.to_vec();
    // The first frame is that of the thumbnail.
    let frame = huge.windows(5).rposition(|window| window == [0xff, 0xc0, 0, 17, 8]).expect("a frame");
    huge[frame + 5..frame + 9].fill(0xff);
    refused(&huge, &["65535 × 65535", "the limit is 512 MiB"]);
}

#[test]
fn image_is_cut_to_a_part_before_it_is_resized() {
    use crate::data::augment::Part;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.png");
    RgbImage::from_fn(40, 20, |x, y| Rgb([x as u8, y as u8, 0])).save(&path).expect("saves");
    let part = |width, height| {
        assert_eq!((width, height), (40, 20));
        Some(Part { left: 30, top: 3, width: 6, height: 4 })
    };
    let (planes, _) = Decoder::new(true).expect("a decoder").pixels(&path, [3, 4, 6], &part).expect("pixels");
    let expected = |at: usize| [30 + at as u8 % 6, 3 + at as u8 / 6, 0];
    for at in 0..24 {
        assert_eq!([planes[at], planes[24 + at], planes[48 + at]], expected(at));
    }
}

/// Writes a white PNG file of this size without holding its pixels.
#[cfg(target_os = "linux")]
fn large_png(path: &Path, side: u32) {
    use std::io::Write;

    let mut pixels = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let row = [&[0][..], &vec![255; 3 * side as usize]].concat();
    (0..side).for_each(|_| pixels.write_all(&row).expect("packs"));
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let size = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    for (name, content) in [(b"IHDR", size), (b"IDAT", pixels.finish().expect("packs")), (b"IEND", Vec::new())] {
        let mut sum = Crc::new();
        sum.update(name);
        sum.update(&content);
        let length = u32::try_from(content.len()).expect("fits");
        file.extend([&length.to_be_bytes()[..], name, &content, &sum.sum().to_be_bytes()].concat());
    }
    fs::write(path, file).expect("writes");
}

#[cfg(target_os = "linux")]
#[test]
fn large_images_of_eight_threads_stay_within_the_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.png");
    // Decoded 412 MiB each.
    large_png(&path, 12_000);
    let mib = |key: &str| -> u64 {
        let status = fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
    };
    let before = mib("VmRSS:");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Decoder::new(true).expect("a decoder").check(&path).expect("an image"));
        }
    });
    // 1 GiB of images, and what the tests beside this one take.
    let taken = mib("VmHWM:").saturating_sub(before);
    assert!((412..1024 + 256).contains(&taken), "{taken} MiB");
    // Resizing is part of the budget: an image of one row that is as wide as possible is refused, or takes no more.
    let refused = Decoder::new(true).expect("a decoder").pixels(&path, [3, usize::MAX, 1], CENTRAL);
    assert!(refused.is_err());
}

#[test]
fn a_panic_of_a_decoder_is_an_error() {
    // The palette has 28 bytes, at which the decoder of PNG files panics. All checksums are right.
    let error = decoded(true, UNEVEN_PALETTE).expect_err("must be refused");
    assert!(error.starts_with("its decoder cannot read it (it panicked: "), "{error}");
}
