//! Random changes to training images.

use interlock::Key;
use rand::RngExt;
use serde::{Deserialize, Serialize};

/// The random changes to training images; in a configuration also `true` (both) or `false` (none).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "Switch")]
pub struct Augment {
    /// Moves the image by up to the padding in each direction; pixels from outside of the image are black.
    ///
    /// The padding is 4 pixels; for folders of images an eighth of the size, at least 4.
    pub crop: bool,
    /// Mirrors the image left to right, with a probability of 1/2.
    pub flip: bool,
}

/// The forms of an [`Augment`] in a configuration.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, deny_unknown_fields, expecting = "expected true, false or { crop = …, flip = … }")]
enum Switch {
    /// All changes, or none.
    All(bool),
    /// Each change by itself.
    Each {
        /// Move the image by up to the padding in each direction: 4 pixels; for folders of images an eighth of the size, at least 4.
        #[serde(default)]
        crop: bool,
        /// Mirror the image left to right, with a probability of 1/2.
        #[serde(default)]
        flip: bool,
    },
}

impl From<Switch> for Augment {
    fn from(switch: Switch) -> Self {
        match switch {
            Switch::All(on) => Self { crop: on, flip: on },
            Switch::Each { crop, flip } => Self { crop, flip },
        }
    }
}

impl Augment {
    /// Random crops and flips.
    pub const ALL: Self = Self { crop: true, flip: true };
    /// No changes.
    pub const NONE: Self = Self { crop: false, flip: false };
    /// Flips only.
    pub const FLIP: Self = Self { crop: false, flip: true };

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
