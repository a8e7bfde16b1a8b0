//! Windows that move over images, and the columns that they cut out.

use std::ops::Range;

use interlock::Result;

use super::slices::wrong_shape;

/// A square window over images of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Channels `C`.
    pub(crate) channels: usize,
    /// Height `H` and width `W` of an image.
    pub(crate) image: [usize; 2],
    /// Side of the window.
    pub(crate) kernel: usize,
    /// Step from one place of the window to the next.
    pub(crate) stride: usize,
    /// Pixels of value zero (or none at all) around the image.
    pub(crate) padding: usize,
    /// Places of the window, down and across.
    pub(crate) places: [usize; 2],
}

impl Window {
    /// The window over an input of shape `dims`, which must be `(B, C, H, W)`.
    ///
    /// # Errors
    /// If it is not, or if the window is larger than the padded image, or has no side or no step.
    pub(crate) fn over(dims: &[usize], [kernel, stride, padding]: [usize; 3], layer: &str) -> Result<Self> {
        let &[_, channels, height, width] = dims else {
            return Err(wrong_shape(layer, dims, "(B, C, H, W)"));
        };
        let places = |side: usize| Some((side + 2 * padding).checked_sub(kernel)?.checked_div(stride)? + 1);
        match (places(height), places(width)) {
            (Some(down), Some(across)) if kernel > 0 => {
                Ok(Self { channels, image: [height, width], kernel, stride, padding, places: [down, across] })
            }
            _ => Err(wrong_shape(
                layer,
                dims,
                format_args!(
                    "images on which a window of {kernel}×{kernel} (padding {padding}, stride {stride}) has a place"
                ),
            )),
        }
    }

    /// Pixels of one channel of an image.
    pub(crate) fn pixels(&self) -> usize {
        self.image[0] * self.image[1]
    }

    /// Places of the window on one image.
    pub(crate) fn places(&self) -> usize {
        self.places[0] * self.places[1]
    }

    /// Pixels under the window in all channels: rows of [`Self::fill`].
    pub(crate) fn depth(&self) -> usize {
        self.channels * self.kernel * self.kernel
    }

    /// Whether columns and image are the same: every place of the window is one pixel.
    pub(crate) fn is_pointwise(&self) -> bool {
        (self.kernel, self.stride, self.padding) == (1, 1, 0)
    }

    /// The places along a side of length `side` at which tap `tap` of the window lies on the image, and the pixel of the first.
    fn inside(&self, tap: usize, side: usize, places: usize) -> (Range<usize>, usize) {
        let first = self.padding.saturating_sub(tap).div_ceil(self.stride);
        let end = match (side + self.padding).checked_sub(tap + 1) {
            Some(last) => (last / self.stride + 1).min(places),
            None => 0,
        };
        if first < end { (first..end, first * self.stride + tap - self.padding) } else { (0..0, 0) }
    }

    /// Calls `visit(row, place, pixel, count)` for every run of `count` places, from `place` on, whose tap lies on the image: on `pixel`
    /// and then every `stride` pixels; and `visit_outside(row, places)` for the runs of places whose tap lies on the padding.
    fn runs(
        &self,
        mut visit: impl FnMut(usize, usize, usize, usize),
        mut visit_outside: impl FnMut(usize, Range<usize>),
    ) {
        let ([height, width], [down, across]) = (self.image, self.places);
        for channel in 0..self.channels {
            for tap_y in 0..self.kernel {
                let (rows_inside, first_y) = self.inside(tap_y, height, down);
                for tap_x in 0..self.kernel {
                    let row = (channel * self.kernel + tap_y) * self.kernel + tap_x;
                    let (inside, first_x) = self.inside(tap_x, width, across);
                    visit_outside(row, 0..rows_inside.start * across);
                    for (i, place_y) in rows_inside.clone().enumerate() {
                        let start = place_y * across;
                        let pixel = (channel * height + first_y + i * self.stride) * width + first_x;
                        visit_outside(row, start..start + inside.start);
                        visit(row, start + inside.start, pixel, inside.len());
                        visit_outside(row, start + inside.end..start + across);
                    }
                    visit_outside(row, rows_inside.end * across..down * across);
                }
            }
        }
    }

    /// Writes the pixels under the window at every place: row `(channel, tap)` of `columns` has one element for each place, from
    /// `at` on; rows begin `row_stride` elements apart.
    pub(crate) fn fill(&self, image: &[f32], columns: &mut [f32], row_stride: usize, at: usize) {
        // Two visitors write the same slice, one after the other.
        let columns = std::cell::RefCell::new(columns);
        self.runs(
            |row, place, pixel, count| {
                let to = &mut columns.borrow_mut()[row * row_stride + at + place..][..count];
                if self.stride == 1 {
                    to.copy_from_slice(&image[pixel..][..count]);
                } else if count > 0 {
                    for (to, &from) in to.iter_mut().zip(image[pixel..].iter().step_by(self.stride)) {
                        *to = from;
                    }
                }
            },
            |row, places| {
                let start = row * row_stride + at;
                columns.borrow_mut()[start + places.start..start + places.end].fill(0.0);
            },
        );
    }

    /// The transpose of [`Self::fill`]: adds every column element to the pixel it came from.
    pub(crate) fn add_back(&self, columns: &[f32], row_stride: usize, at: usize, image: &mut [f32]) {
        self.runs(
            |row, place, pixel, count| {
                if count == 0 {
                    return;
                }
                let from = &columns[row * row_stride + at + place..][..count];
                if self.stride == 1 {
                    for (to, &from) in image[pixel..][..count].iter_mut().zip(from) {
                        *to += from;
                    }
                } else {
                    for (to, &from) in image[pixel..].iter_mut().step_by(self.stride).zip(from) {
                        *to += from;
                    }
                }
            },
            |_, _| {},
        );
    }
}
