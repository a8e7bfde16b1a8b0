//! Pools, along rows and then along columns: the maximum of the maxima of the rows, or the mean of their means.
//!
//! Along one axis, element `u` of the window at all of its places is one `index_select` for each `u`.

use candle_core::{DType, Device, Shape, Tensor};
use interlock::{Gradients, Pass, Result, SavedMemory, Wants};

use super::{CandleOperations, as_dtype, input, where_set, wide};
use crate::layers::{AvgPool2d, GlobalAvgPool, MaxPool2d, window::Window};

/// A window along one axis of images.
struct AxisWindow {
    axis: usize,
    /// The number of pixels of the image along the axis.
    side: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    /// The number of places of the window.
    places: usize,
}

/// The index for no pixel: candle selects zeros for it.
const NO_PIXEL: u32 = u32::MAX;

impl AxisWindow {
    /// Returns the window along the columns (axis 2) or within a row (axis 3) of images `(B, C, H, W)`.
    fn of(window: &Window, axis: usize) -> Self {
        let Window { kernel, stride, padding, image, places, .. } = *window;
        Self { axis, side: image[axis - 2], kernel, stride, padding, places: places[axis - 2] }
    }

    /// Returns, for each place of the window, its pixel number `u`. If that lies outside of the image, returns the nearest pixel inside, which the
    /// same window covers too.
    fn pixels(&self, u: usize, device: &Device) -> Result<Tensor> {
        let pixel = |place: usize| (place * self.stride + u).saturating_sub(self.padding).min(self.side - 1) as u32;
        Ok(Tensor::new((0..self.places).map(pixel).collect::<Vec<u32>>(), device)?)
    }

    /// Returns, for each pixel, the place whose pixel number `u` it is, or [`NO_PIXEL`].
    fn places(&self, u: usize, device: &Device) -> Result<Tensor> {
        let place = |pixel: usize| {
            let start = (pixel + self.padding).checked_sub(u)?;
            (start % self.stride == 0 && start / self.stride < self.places).then_some((start / self.stride) as u32)
        };
        Ok(Tensor::new((0..self.side).map(|pixel| place(pixel).unwrap_or(NO_PIXEL)).collect::<Vec<u32>>(), device)?)
    }

    /// Returns, for each place, the number `u` of its first pixel that lies inside of the image.
    fn first(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let first = |place: usize| self.padding.saturating_sub(place * self.stride) as u32;
        let mut shape = [1; 4];
        shape[self.axis] = self.places;
        let first = Tensor::new((0..self.places).map(first).collect::<Vec<u32>>(), device)?;
        Ok(first.to_dtype(dtype)?.reshape(&shape)?)
    }

    /// Returns the greatest value of each place, and the number `u` of its pixel: the first among equal ones. NaN counts as the greatest.
    fn greatest(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let select = |u: usize| Ok::<_, interlock::Error>(x.index_select(&self.pixels(u, x.device())?, self.axis)?);
        let mut y = select(0)?;
        let numbers = if self.kernel <= 1 << 8 { DType::U8 } else { DType::U32 };
        let mut chosen = self.first(numbers, x.device())?.broadcast_as(y.shape())?.contiguous()?;
        for u in 1..self.kernel {
            let x = select(u)?;
            // True if `y` is not NaN, and `x` is greater or NaN.
            let wins = y.eq(&y)?.gt(&x.le(&y)?)?;
            y = wins.where_cond(&x, &y)?;
            // `u` increases, so the last winner has the greatest.
            chosen = chosen.maximum(&wins.to_dtype(numbers)?.affine(u as f64, 0.0)?)?;
        }
        Ok((y, chosen))
    }

    /// Returns the input gradient of [`Self::greatest`]: that of each place goes to the chosen pixel.
    fn to_chosen(&self, chosen: &Tensor, c: &Tensor) -> Result<Tensor> {
        self.to_pixels(c, |u, c| {
            let u = Tensor::full(u as u32, 1, c.device())?.to_dtype(chosen.dtype())?;
            where_set(&chosen.broadcast_eq(&u.reshape((1, 1, 1, 1))?)?, c)
        })
    }

    /// Returns the sum of each place.
    fn sums(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.index_select(&self.pixels(0, x.device())?, self.axis)?;
        for u in 1..self.kernel {
            y = (y + x.index_select(&self.pixels(u, x.device())?, self.axis)?)?;
        }
        Ok(y)
    }

    /// Returns, for each pixel, the sum of `of(u, c)` over the places whose pixel number `u` it is.
    fn to_pixels(&self, c: &Tensor, of: impl Fn(usize, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let select = |u: usize| {
            Ok::<_, interlock::Error>(of(u, c)?.contiguous()?.index_select(&self.places(u, c.device())?, self.axis)?)
        };
        let mut sum = select(0)?;
        for u in 1..self.kernel {
            sum = (sum + select(u)?)?;
        }
        Ok(sum)
    }
}

/// The tensors that a max pool saves.
pub(crate) struct SavedMaxPool {
    window: Window,
    /// In each row of the input, the pixel chosen for each place, `(B, C, H, W')`.
    columns: Tensor,
    /// The row chosen for each place, `(B, C, H', W')`.
    rows: Tensor,
}

impl CandleOperations for MaxPool2d {
    type Saved = SavedMaxPool;

    fn name(&self) -> &str {
        "max pool"
    }

    fn compute(&self, x: &Tensor, _: &Pass) -> Result<(Tensor, SavedMaxPool)> {
        let window = Window::over(x.dims(), self.window, "max pool")?;
        let (y, columns) = AxisWindow::of(&window, 3).greatest(x)?;
        let (y, rows) = AxisWindow::of(&window, 2).greatest(&y)?;
        Ok((y, SavedMaxPool { window, columns, rows }))
    }

    fn memory(saved: &SavedMaxPool) -> Vec<SavedMemory> {
        vec![SavedMemory::of_tensor(&saved.columns), SavedMemory::of_tensor(&saved.rows)]
    }

    fn compute_gradients(
        &self,
        SavedMaxPool { window, columns, rows }: &SavedMaxPool,
        c: &Tensor,
        _: Wants,
    ) -> Result<Gradients> {
        // In `f32`, since a pixel gets a sum of output gradients if windows overlap.
        let dtype = c.dtype();
        let c = AxisWindow::of(window, 2).to_chosen(rows, &wide(c)?)?;
        Ok(input(as_dtype(&AxisWindow::of(window, 3).to_chosen(columns, &c)?, dtype)?))
    }
}

impl CandleOperations for AvgPool2d {
    type Saved = Window;

    fn name(&self) -> &str {
        "average pool"
    }

    fn compute(&self, x: &Tensor, _: &Pass) -> Result<(Tensor, Window)> {
        let window = Window::over(x.dims(), self.window, "average pool")?;
        let y = AxisWindow::of(&window, 2).sums(&AxisWindow::of(&window, 3).sums(&wide(x)?)?)?;
        Ok((as_dtype(&(y * share(&window))?, x.dtype())?, window))
    }

    fn memory(_: &Window) -> Vec<SavedMemory> {
        Vec::new()
    }

    fn compute_gradients(&self, window: &Window, c: &Tensor, _: Wants) -> Result<Gradients> {
        let dtype = c.dtype();
        let plain = |_, c: &Tensor| Ok(c.clone());
        let c = AxisWindow::of(window, 2).to_pixels(&(wide(c)? * share(window))?, plain)?;
        Ok(input(as_dtype(&AxisWindow::of(window, 3).to_pixels(&c, plain)?, dtype)?))
    }
}

/// Returns the weight of each pixel in the mean of a window.
fn share(window: &Window) -> f64 {
    1.0 / (window.kernel * window.kernel) as f64
}

impl CandleOperations for GlobalAvgPool {
    type Saved = Shape;

    fn name(&self) -> &str {
        "global average pool"
    }

    fn compute(&self, x: &Tensor, _: &Pass) -> Result<(Tensor, Shape)> {
        Ok((as_dtype(&wide(x)?.flatten_from(2)?.mean(2)?, x.dtype())?, x.shape().clone()))
    }

    fn memory(_: &Shape) -> Vec<SavedMemory> {
        Vec::new()
    }

    fn compute_gradients(&self, shape: &Shape, c: &Tensor, _: Wants) -> Result<Gradients> {
        let (batch, channels, height, width) = shape.dims4()?;
        let c = (wide(c)? / (height * width) as f64)?.to_dtype(c.dtype())?;
        Ok(input(c.reshape((batch, channels, 1, 1))?.broadcast_as(shape)?.contiguous()?))
    }
}
