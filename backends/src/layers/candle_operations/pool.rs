//! Pools, along rows and then along columns: the greatest of the greatest in each row, the mean of the means.
//!
//! Along one axis, the pixels that lie `u` behind the first of each place of the window are one selection for each `u`.

use candle_core::{DType, Device, Shape, Tensor};
use interlock::{Gradients, Held, Pass, Result, Wants};

use super::{CandleOperations, as_dtype, input, where_set, wide};
use crate::layers::{AvgPool2d, GlobalAvgPool, MaxPool2d, window::Window};

/// A window along one axis of images.
struct Along {
    axis: usize,
    /// Pixels of the image.
    side: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    /// Places of the window.
    places: usize,
}

/// No pixel: what is selected is zero.
const NONE: u32 = u32::MAX;

impl Along {
    /// Along the columns (axis 2) or within a row (axis 3) of images `(B, C, H, W)`.
    fn of(window: &Window, axis: usize) -> Self {
        let Window { kernel, stride, padding, image, places, .. } = *window;
        Self { axis, side: image[axis - 2], kernel, stride, padding, places: places[axis - 2] }
    }

    /// For each place, its pixel number `u`; where that lies outside, the nearest inside, which is another pixel of the same window.
    fn pixels(&self, u: usize, device: &Device) -> Result<Tensor> {
        let pixel = |place: usize| (place * self.stride + u).saturating_sub(self.padding).min(self.side - 1) as u32;
        Ok(Tensor::new((0..self.places).map(pixel).collect::<Vec<u32>>(), device)?)
    }

    /// For each pixel, the place whose pixel number `u` it is.
    fn places(&self, u: usize, device: &Device) -> Result<Tensor> {
        let place = |pixel: usize| {
            let start = (pixel + self.padding).checked_sub(u)?;
            (start % self.stride == 0 && start / self.stride < self.places).then_some((start / self.stride) as u32)
        };
        Ok(Tensor::new((0..self.side).map(|pixel| place(pixel).unwrap_or(NONE)).collect::<Vec<u32>>(), device)?)
    }

    /// For each place, the number of its first pixel that lies inside.
    fn first(&self, dtype: DType, device: &Device) -> Result<Tensor> {
        let first = |place: usize| self.padding.saturating_sub(place * self.stride) as u32;
        let mut shape = [1; 4];
        shape[self.axis] = self.places;
        let first = Tensor::new((0..self.places).map(first).collect::<Vec<u32>>(), device)?;
        Ok(first.to_dtype(dtype)?.reshape(&shape)?)
    }

    /// The greatest value of each place, and the number of its pixel: of equal ones, the first. What is not a number wins and stays.
    fn greatest(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let select = |u: usize| Ok::<_, interlock::Error>(x.index_select(&self.pixels(u, x.device())?, self.axis)?);
        let mut y = select(0)?;
        let numbers = if self.kernel <= 1 << 8 { DType::U8 } else { DType::U32 };
        let mut chosen = self.first(numbers, x.device())?.broadcast_as(y.shape())?.contiguous()?;
        for u in 1..self.kernel {
            let x = select(u)?;
            // `x` is greater or no number, and `y` is one.
            let wins = y.eq(&y)?.gt(&x.le(&y)?)?;
            y = wins.where_cond(&x, &y)?;
            // Numbers grow, so the last winner has the greatest.
            chosen = chosen.maximum(&wins.to_dtype(numbers)?.affine(u as f64, 0.0)?)?;
        }
        Ok((y, chosen))
    }

    /// The output gradient of [`Self::greatest`] to the pixels that were chosen.
    fn to_chosen(&self, chosen: &Tensor, c: &Tensor) -> Result<Tensor> {
        self.to_pixels(c, |u, c| {
            let u = Tensor::full(u as u32, 1, c.device())?.to_dtype(chosen.dtype())?;
            where_set(&chosen.broadcast_eq(&u.reshape((1, 1, 1, 1))?)?, c)
        })
    }

    /// The sum of each place.
    fn sums(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.index_select(&self.pixels(0, x.device())?, self.axis)?;
        for u in 1..self.kernel {
            y = (y + x.index_select(&self.pixels(u, x.device())?, self.axis)?)?;
        }
        Ok(y)
    }

    /// For each pixel, the sum of `of(u, c)` over the places whose pixel number `u` it is.
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

/// What a max pool keeps.
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
        let (y, columns) = Along::of(&window, 3).greatest(x)?;
        let (y, rows) = Along::of(&window, 2).greatest(&y)?;
        Ok((y, SavedMaxPool { window, columns, rows }))
    }

    fn held(saved: &SavedMaxPool) -> Vec<Held> {
        vec![Held::tensor(&saved.columns), Held::tensor(&saved.rows)]
    }

    fn pull(&self, SavedMaxPool { window, columns, rows }: &SavedMaxPool, c: &Tensor, _: Wants) -> Result<Gradients> {
        // A pixel gets sums of output gradients where windows overlap.
        let dtype = c.dtype();
        let c = Along::of(window, 2).to_chosen(rows, &wide(c)?)?;
        Ok(input(as_dtype(&Along::of(window, 3).to_chosen(columns, &c)?, dtype)?))
    }
}

impl CandleOperations for AvgPool2d {
    type Saved = Window;

    fn name(&self) -> &str {
        "average pool"
    }

    fn compute(&self, x: &Tensor, _: &Pass) -> Result<(Tensor, Window)> {
        let window = Window::over(x.dims(), self.window, "average pool")?;
        let y = Along::of(&window, 2).sums(&Along::of(&window, 3).sums(&wide(x)?)?)?;
        Ok((as_dtype(&(y * share(&window))?, x.dtype())?, window))
    }

    fn held(_: &Window) -> Vec<Held> {
        Vec::new()
    }

    fn pull(&self, window: &Window, c: &Tensor, _: Wants) -> Result<Gradients> {
        let dtype = c.dtype();
        let plain = |_, c: &Tensor| Ok(c.clone());
        let c = Along::of(window, 2).to_pixels(&(wide(c)? * share(window))?, plain)?;
        Ok(input(as_dtype(&Along::of(window, 3).to_pixels(&c, plain)?, dtype)?))
    }
}

/// What each pixel under a window is of its mean.
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

    fn held(_: &Shape) -> Vec<Held> {
        Vec::new()
    }

    fn pull(&self, shape: &Shape, c: &Tensor, _: Wants) -> Result<Gradients> {
        let (batch, channels, height, width) = shape.dims4()?;
        let c = (wide(c)? / (height * width) as f64)?.to_dtype(c.dtype())?;
        Ok(input(c.reshape((batch, channels, 1, 1))?.broadcast_as(shape)?.contiguous()?))
    }
}
