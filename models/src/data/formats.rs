//! The endings of image files.

/// The endings of the images that every build with the feature `images` reads.
const BASIC: &[&str] = &["png", "jpg", "jpeg", "jpe", "jfif", "bmp", "webp"];
/// The endings of the images that need the feature `more-images`.
const MORE: &[&str] = &["gif", "tif", "tiff", "pbm", "pgm", "pnm", "ppm"];
/// The endings of images that no build reads.
const UNREADABLE: &[&str] =
    &["avif", "cr2", "cr3", "dng", "heic", "heif", "ico", "jp2", "jxl", "nef", "psd", "raf", "tga"];
/// The formats that this build reads, for messages.
pub(super) const FORMATS: &str =
    if cfg!(feature = "more-images") { "png, jpg, bmp, webp, gif, tif, pnm" } else { "png, jpg, bmp, webp" };

/// Returns whether this build reads images with this ending, which is in lower case.
pub(super) fn is_read(ending: &str) -> bool {
    BASIC.contains(&ending) || cfg!(feature = "more-images") && MORE.contains(&ending)
}

/// Returns whether images have this ending, which is in lower case.
pub(super) fn is_image(ending: &str) -> bool {
    [BASIC, MORE, UNREADABLE].iter().any(|endings| endings.contains(&ending))
}

/// Returns how images with some of these endings, in lower case, can be read too; nothing if this build reads them or they are no images.
pub(super) fn remedies<'a>(endings: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut endings: Vec<&str> = endings.into_iter().filter(|ending| is_image(ending) && !is_read(ending)).collect();
    endings.sort_unstable();
    endings.dedup();
    let (more, others): (Vec<&str>, Vec<&str>) = endings.into_iter().partition(|ending| MORE.contains(ending));
    let remedy = |endings: Vec<&str>, remedy: &str| {
        (!endings.is_empty()).then(|| format!("for {} {remedy}", endings.join(", ")))
    };
    let more = remedy(more, "rebuild with --features more-images, or convert them to png");
    more.into_iter().chain(remedy(others, "convert them to png or jpg")).collect()
}
