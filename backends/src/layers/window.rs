//! Windows that move over images.

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
    /// The distance from one place of the window to the next, in pixels.
    pub(crate) stride: usize,
    /// Pixels around the image: zeros for convolutions, none for pools.
    pub(crate) padding: usize,
    /// The number of places of the window, down and across.
    pub(crate) places: [usize; 2],
}

impl Window {
    /// Returns the window over an input of shape `dims`, which must be `(B, C, H, W)`.
    ///
    /// # Errors
    /// If it is not, if the window is larger than the padded image, or if `kernel` or `stride` is zero.
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
                format_args!("images on which a window of {kernel}×{kernel} (padding {padding}, stride {stride}) fits"),
            )),
        }
    }

    /// Returns the number of pixels of an image.
    pub(crate) fn pixels(&self) -> usize {
        self.image[0] * self.image[1]
    }

    /// Returns the number of places of the window on one image.
    pub(crate) fn places(&self) -> usize {
        self.places[0] * self.places[1]
    }
}
