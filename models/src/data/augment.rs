//! Random changes to training images.

use interlock::Key;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// The random changes to training images; in a configuration also `true` (`crop` and `flip`) or `false` (none).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "Switch")]
pub struct Augment {
    /// Moves the image by up to the padding in each direction; pixels from outside of the image are black.
    ///
    /// The padding is 4 pixels; for folders of images an eighth of the size, at least 4.
    pub crop: bool,
    /// Mirrors the image left to right, with a probability of 1/2.
    pub flip: bool,
    /// Cuts a random rectangle out of the whole image, before it is resized; only for folders of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resized_crop: Option<ResizedCrop>,
}

/// A random rectangle of an image, as of torchvision's `RandomResizedCrop`: its share of the image's area is drawn from `scale`, its width over its
/// height from 3/4 … 4/3 (evenly in its logarithm). If ten draws do not fit the image, it is the largest central part of such a ratio.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "[f64; 2]", try_from = "[f64; 2]")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(feature = "schema", schemars(with = "[f64; 2]"))]
pub struct ResizedCrop {
    /// The least share, above 0.
    least: f64,
    /// The largest share, at most 1.
    most: f64,
}

/// The forms of an [`Augment`] in a configuration.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, deny_unknown_fields, expecting = "expected true, false or { crop = …, flip = …, resized_crop = … }")]
enum Switch {
    /// Crops and flips, or no changes.
    All(bool),
    /// Each change by itself.
    Each {
        /// Move the image by up to the padding in each direction: 4 pixels; for folders of images an eighth of the size, at least 4.
        #[serde(default)]
        crop: bool,
        /// Mirror the image left to right, with a probability of 1/2.
        #[serde(default)]
        flip: bool,
        /// Cut a random rectangle out of the whole image, before it is resized; only for folders of images. `true`, or the least and the largest
        /// share of the image's area that it has; `true` is [0.08, 1.0].
        #[serde(default)]
        resized_crop: Area,
    },
}

/// The forms of a [`ResizedCrop`] in a configuration.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(
    untagged,
    expecting = "expected true, false or the least and the largest share of the area, such as [0.08, 1.0]"
)]
enum Area {
    /// With the default shares, or no such crop.
    Default(bool),
    /// The least and the largest share.
    Shares([f64; 2]),
}

impl Default for Area {
    fn default() -> Self {
        Self::Default(false)
    }
}

impl TryFrom<Switch> for Augment {
    type Error = String;

    fn try_from(switch: Switch) -> Result<Self, String> {
        Ok(match switch {
            Switch::All(on) => Self { crop: on, flip: on, resized_crop: None },
            Switch::Each { crop, flip, resized_crop } => {
                let resized_crop = match resized_crop {
                    Area::Default(on) => on.then(ResizedCrop::default),
                    Area::Shares(shares) => Some(shares.try_into()?),
                };
                Self { crop, flip, resized_crop }
            }
        })
    }
}

impl Default for ResizedCrop {
    fn default() -> Self {
        Self { least: 0.08, most: 1.0 }
    }
}

impl From<ResizedCrop> for [f64; 2] {
    fn from(crop: ResizedCrop) -> Self {
        [crop.least, crop.most]
    }
}

impl TryFrom<[f64; 2]> for ResizedCrop {
    type Error = String;

    /// Makes a crop of these shares of the area, or says which are right.
    fn try_from([least, most]: [f64; 2]) -> Result<Self, String> {
        if least > 0.0 && least <= most && most <= 1.0 {
            return Ok(Self { least, most });
        }
        Err(format!(
            "resized_crop [{least}, {most}]; give the least and the largest share of the area, above 0 and at most 1, such as [0.08, 1.0]"
        ))
    }
}

impl Augment {
    /// Random crops and flips.
    pub const ALL: Self = Self { crop: true, flip: true, ..Self::NONE };
    /// No changes.
    pub const NONE: Self = Self { crop: false, flip: false, resized_crop: None };
    /// Flips only.
    pub const FLIP: Self = Self { flip: true, ..Self::NONE };

    /// Draws the part of an image of `width` × `height` pixels that is taken of example `number`; none without a key or without such crops.
    pub(super) fn part(self, key: Option<Key>, number: usize, width: u32, height: u32) -> Option<Part> {
        let crop = self.resized_crop?;
        // A stream of its own, so that it does not change the effect of the other switches.
        Some(crop.draw(&mut key?.with(number as u64).named("resized crop").stream(), width, height))
    }

    /// Draws the window of example `number`; without a key it is the image itself.
    ///
    /// All random numbers are drawn in any case, so that one switch does not change the effect of the other.
    pub(super) fn window(self, key: Option<Key>, number: usize, padding: usize) -> Window {
        let Some(key) = key else { return Window::default() };
        let mut random = key.with(number as u64).stream();
        let limit = i32::try_from(padding).unwrap_or(i32::MAX);
        let (down, right) = (random.random_range(-limit..=limit), random.random_range(-limit..=limit));
        let flip = random.random_range(0..2_u32) == 1;
        let (down, right) = if self.crop { (down as isize, right as isize) } else { (0, 0) };
        Window { down, right, flip: self.flip && flip }
    }
}

/// A rectangle of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Part {
    /// Returns the central part of this size.
    pub(super) fn central(image: (u32, u32), width: u32, height: u32) -> Self {
        Self { left: (image.0 - width) / 2, top: (image.1 - height) / 2, width, height }
    }
}

impl ResizedCrop {
    fn draw(self, random: &mut impl Rng, width: u32, height: u32) -> Part {
        const RATIOS: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];
        let (w, h) = (f64::from(width), f64::from(height));
        for _ in 0..10 {
            let area = w * h * random.random_range(self.least..=self.most);
            let ratio = random.random_range(RATIOS[0].ln()..=RATIOS[1].ln()).exp();
            let (cut_w, cut_h) = ((area * ratio).sqrt().round_ties_even(), (area / ratio).sqrt().round_ties_even());
            if (1.0..=w).contains(&cut_w) && (1.0..=h).contains(&cut_h) {
                let (cut_w, cut_h) = (cut_w as u32, cut_h as u32);
                let (top, left) = (random.random_range(0..=height - cut_h), random.random_range(0..=width - cut_w));
                return Part { left, top, width: cut_w, height: cut_h };
            }
        }
        let ratio = (w / h).clamp(RATIOS[0], RATIOS[1]);
        let side = |length: f64, limit: u32| (length.round_ties_even() as u32).clamp(1, limit);
        Part::central((width, height), side(h * ratio, width), side(w / ratio, height))
    }
}

/// A window of a padded image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// The number of rows by which the window is moved down.
    pub(super) down: isize,
    /// The number of columns by which the window is moved right.
    pub(super) right: isize,
    /// Whether the window is mirrored.
    pub(super) flip: bool,
}

impl Window {
    /// Writes the window of `image` `(C, H, W)` to `out` `(C, H, W)`, each byte through its channel's table.
    pub(super) fn render(self, image: &[u8], [_, height, width]: [usize; 3], tables: &[[f32; 256]], out: &mut [f32]) {
        // Columns of `out`, before mirroring, that lie inside the image.
        let inside = |moved: isize, len: usize| {
            let first = usize::try_from(-moved).unwrap_or(0).min(len);
            let end = len.saturating_sub(usize::try_from(moved).unwrap_or(0));
            first..end.max(first)
        };
        let (rows, columns) = (inside(self.down, height), inside(self.right, width));
        let plane = height * width;
        for ((image, out), table) in image.chunks_exact(plane).zip(out.chunks_exact_mut(plane)).zip(tables) {
            for (y, out) in out.chunks_exact_mut(width).enumerate() {
                if !rows.contains(&y) || columns.is_empty() {
                    out.fill(table[0]);
                    continue;
                }
                let start = y.wrapping_add_signed(self.down) * width;
                let source = &image[start..start + width];
                let from = columns.start.wrapping_add_signed(self.right);
                out[..columns.start].fill(table[0]);
                out[columns.end..].fill(table[0]);
                for (value, &pixel) in out[columns.clone()].iter_mut().zip(&source[from..]) {
                    *value = table[usize::from(pixel)];
                }
                if self.flip {
                    out.reverse();
                }
            }
        }
    }
}
