//! Epilogues: the work that follows a tile's sums while they are in registers or in the cache.

use crate::kernels::{
    channel_lines::{Line, blocks},
    lanes::{LANES, Lanes},
    numbers::{Loads, Numbers, NumbersMut, NumbersPointer, with_pointer},
};

/// The last operation of a convolution, on each of its sums.
pub(crate) enum Epilogue<'a> {
    /// Write them.
    Write,
    /// Write them, and write each image's moments to `[image][3][channels in blocks]`: a shift `d` near the mean, `Σ (y - d)` and `Σ (y - d)²`.
    Moments(&'a mut [f32]),
    /// Add them to the output.
    Add,
    /// Write them plus `g` where the gate is open; without a gate, everywhere.
    Skip { g: &'a [f32], gate: Option<&'a [u16]> },
    /// Write them where the line of `y` is above 0, and 0 elsewhere. `sums`, `[image][2][channels in blocks]`, receives the sums of the written
    /// numbers, and of those times `y - mean`.
    Gate { y: Numbers<'a>, line: &'a Line, sums: &'a mut [f32] },
}

impl Epilogue<'_> {
    /// Returns the output for sums of every `apart`-th pixel and row of images of `size` with `writes` channels each.
    pub(super) fn output(
        self,
        y: NumbersMut<'_>,
        images: usize,
        size: [usize; 2],
        writes: usize,
        apart: usize,
    ) -> Output {
        let [height, width] = size;
        let (pixels, padded) = (images * height * width, blocks(writes) * LANES);
        assert_eq!(y.len(), pixels * writes, "an output for other images");
        let (memory, is_half) = match &y {
            NumbersMut::F32(y) => (y.as_ptr().cast_mut().cast(), false),
            NumbersMut::Bf16(y) => (y.as_ptr().cast_mut().cast(), true),
        };
        assert!(!is_half || matches!(self, Self::Write | Self::Moments(_)), "only these epilogues write bf16");
        let epilogue = match self {
            Self::Write => EpiloguePointers::Write,
            Self::Add => EpiloguePointers::Add,
            Self::Moments(moments) => {
                assert_eq!(moments.len(), images * 3 * padded, "memory for other moments");
                moments.fill(0.0);
                EpiloguePointers::Moments(moments.as_mut_ptr())
            }
            Self::Skip { g, gate } => {
                assert!(g.len() == y.len() && gate.is_none_or(|gate| gate.len() == pixels * blocks(writes)));
                EpiloguePointers::Skip { g: g.as_ptr(), gate: gate.map_or(std::ptr::null(), <[u16]>::as_ptr) }
            }
            Self::Gate { y: own, line, sums } => {
                assert!(own.len() == y.len() && sums.len() == images * 2 * padded && line.holds(writes));
                EpiloguePointers::Gate { y: own.pointer(), line, sums: sums.as_mut_ptr() }
            }
        };
        Output {
            y: memory,
            is_half,
            writes,
            pixel_apart: apart,
            row_apart: apart * width,
            image_apart: height * width,
            epilogue,
        }
    }
}

/// The channels-last images that sums are written to.
pub(super) struct Output {
    pub(super) y: *mut f32,
    /// Whether `y` are `bf16`.
    pub(super) is_half: bool,
    /// Channels.
    pub(super) writes: usize,
    /// The distances between neighbours, rows and images, in pixels.
    pub(super) pixel_apart: usize,
    pub(super) row_apart: usize,
    pub(super) image_apart: usize,
    pub(super) epilogue: EpiloguePointers,
}

/// [`Epilogue`] as pointers.
#[derive(Clone, Copy)]
pub(super) enum EpiloguePointers {
    Write,
    Moments(*mut f32),
    Add,
    Skip { g: *const f32, gate: *const u16 },
    Gate { y: NumbersPointer, line: *const Line, sums: *mut f32 },
}

/// The position of a tile: its first pixel and channel, and its image.
#[derive(Clone, Copy)]
pub(super) struct TilePosition {
    pub(super) pixel: usize,
    pub(super) channel: usize,
    pub(super) image: usize,
}

/// Applies the epilogue to the sums `[R][Q][16]` of sixteen channels of a tile.
///
/// # Safety
/// The tile's pixels and channels lie within the output, and within what its epilogue points to.
#[inline(always)]
pub(super) unsafe fn finish<L: Lanes, const R: usize, const Q: usize>(
    output: &Output,
    position: TilePosition,
    sums: *const f32,
) {
    let tile = Tile::<R, Q>::new(output, position, sums);
    // SAFETY: as demanded of the caller.
    unsafe {
        match output.epilogue {
            EpiloguePointers::Write => tile.write::<L>(),
            EpiloguePointers::Add => tile.add::<L>(),
            EpiloguePointers::Skip { g, gate } => tile.skip::<L>(output, position.pixel, g, gate),
            EpiloguePointers::Moments(moments) => {
                // The shift is the image's first pixel: near the mean, and always the same.
                let is_first = position.pixel == position.image * output.image_apart;
                let channels = tile.blocks * LANES;
                tile.moments::<L>(moments.add(position.image * 3 * channels + position.channel), is_first);
            }
            EpiloguePointers::Gate { y, line, sums } => {
                let totals = sums.add(position.image * 2 * tile.blocks * LANES + position.channel);
                with_pointer!(y, y => tile.gate::<L>(y, (*line).lanes::<L>(position.channel), totals));
            }
        }
    }
}

/// Sixteen channels of `R` by `Q` pixels of an output, and their sums.
struct Tile<const R: usize, const Q: usize> {
    y: *mut f32,
    is_half: bool,
    sums: *const f32,
    channel: usize,
    /// The number of channels of the tile that exist, at most sixteen.
    count: usize,
    /// Blocks of sixteen channels of the output.
    blocks: usize,
    /// The index of the first element, and the distances between rows and columns, in numbers, so that an address needs no multiplication by
    /// channels.
    first: usize,
    row: usize,
    column: usize,
}

impl<const R: usize, const Q: usize> Tile<R, Q> {
    #[inline(always)]
    fn new(output: &Output, position: TilePosition, sums: *const f32) -> Self {
        let TilePosition { pixel, channel, .. } = position;
        let writes = output.writes;
        Self {
            y: output.y,
            is_half: output.is_half,
            sums,
            channel,
            count: writes.saturating_sub(channel).min(LANES),
            blocks: writes.div_ceil(LANES),
            first: pixel * writes + channel,
            row: output.row_apart * writes,
            column: output.pixel_apart * writes,
        }
    }

    /// Returns the index of the first channel of a pixel.
    #[inline(always)]
    fn at(&self, r: usize, q: usize) -> usize {
        self.first + r * self.row + q * self.column
    }

    /// # Safety
    /// As for [`finish`].
    #[inline(always)]
    unsafe fn sum<L: Lanes>(&self, r: usize, q: usize) -> L {
        // SAFETY: there are `R` by `Q` sums of sixteen channels.
        unsafe { L::load(self.sums.add((r * Q + q) * LANES)) }
    }

    /// Writes sums to the output, from number `at` on.
    ///
    /// # Safety
    /// As for [`finish`].
    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, sums: L, at: usize) {
        // SAFETY: as demanded of the caller.
        unsafe {
            let halves = self.y.cast::<u16>().wrapping_add(at);
            match (self.is_half, self.count) {
                (false, _) => put(sums, self.y.add(at), self.count),
                (true, LANES) => sums.store_halves(halves),
                (true, count) => sums.store_first_halves(halves, count),
            }
        }
    }

    /// Writes the sums.
    ///
    /// # Safety
    /// As for [`finish`].
    #[inline(always)]
    unsafe fn write<L: Lanes>(&self) {
        for r in 0..R {
            for q in 0..Q {
                // SAFETY: `count` channels of the tile's pixels.
                unsafe { self.put(self.sum::<L>(r, q), self.at(r, q)) };
            }
        }
    }

    /// Adds the sums to the output.
    ///
    /// # Safety
    /// As for [`finish`].
    #[inline(always)]
    unsafe fn add<L: Lanes>(&self) {
        for r in 0..R {
            for q in 0..Q {
                // SAFETY: `count` channels of the tile's pixels.
                unsafe {
                    let y = self.y.add(self.at(r, q));
                    put(get::<L>(y, self.count).plus(self.sum(r, q)), y, self.count);
                }
            }
        }
    }

    /// Writes the sums plus `g` where the gate is open, or everywhere if `gate` is null. `pixel` is the tile's first.
    ///
    /// # Safety
    /// As for [`finish`].
    #[inline(always)]
    unsafe fn skip<L: Lanes>(&self, output: &Output, pixel: usize, g: *const f32, gate: *const u16) {
        for r in 0..R {
            for q in 0..Q {
                let at = self.at(r, q);
                // SAFETY: `count` channels of the tile's pixels, and a gate of as many.
                unsafe {
                    let mut g = get::<L>(g.add(at), self.count);
                    if !gate.is_null() {
                        let pixel = pixel + r * output.row_apart + q * output.pixel_apart;
                        g = g.where_set(*gate.add(pixel * self.blocks + self.channel / LANES));
                    }
                    put(g.plus(self.sum(r, q)), self.y.add(at), self.count);
                }
            }
        }
    }

    /// Writes the sums, and adds to the moments of the image, which begin at `shift`. The image's first tile sets the shift.
    ///
    /// # Safety
    /// As for [`finish`].
    #[inline(always)]
    unsafe fn moments<L: Lanes>(&self, shift: *mut f32, is_first: bool) {
        // SAFETY: three numbers for each channel of the image; `count` channels of the tile's pixels.
        unsafe {
            let (first, second) = (shift.add(self.blocks * LANES), shift.add(2 * self.blocks * LANES));
            if is_first {
                L::load(self.sums).store(shift);
            }
            let shift = L::load(shift);
            let (mut sum, mut squares) = ([L::splat(0.0); CHAINS], [L::splat(0.0); CHAINS]);
            for r in 0..R {
                for q in 0..Q {
                    let chain = chain::<R, Q>(r, q);
                    let distance = self.sum::<L>(r, q).minus(shift);
                    sum[chain] = sum[chain].plus(distance);
                    squares[chain] = squares[chain].plus_product(distance, distance);
                    self.put(self.sum::<L>(r, q), self.at(r, q));
                }
            }
            add_to::<L, R, Q>(first, &sum);
            add_to::<L, R, Q>(second, &squares);
        }
    }

    /// Writes the sums where the line of `own` is above 0, and 0 elsewhere. Adds the written numbers, and those times `own - mean`, to `totals`.
    ///
    /// # Safety
    /// As for [`finish`].
    #[inline(always)]
    unsafe fn gate<L: Lanes>(&self, own: impl Loads, [mean, scale, shift]: [L; 3], totals: *mut f32) {
        // SAFETY: two numbers for each channel of the image; `count` channels of the tile's pixels.
        unsafe {
            let (mut sum, mut products) = ([L::splat(0.0); CHAINS], [L::splat(0.0); CHAINS]);
            for r in 0..R {
                for q in 0..Q {
                    let (at, chain) = (self.at(r, q), chain::<R, Q>(r, q));
                    let distance = own.load::<L>(at, self.count).minus(mean);
                    let open = self.sum::<L>(r, q).where_positive(shift.plus_product(scale, distance));
                    sum[chain] = sum[chain].plus(open);
                    products[chain] = products[chain].plus_product(open, distance);
                    put(open, self.y.add(at), self.count);
                }
            }
            add_to::<L, R, Q>(totals, &sum);
            add_to::<L, R, Q>(totals.add(self.blocks * LANES), &products);
        }
    }
}

/// The most sums that are added up side by side, so that an addition does not wait for the one before it.
const CHAINS: usize = 4;

/// Returns how many there are for a tile: one for each row, or four if there is one row of sixteen.
const fn chains(r: usize, q: usize) -> usize {
    if r == 1 && q == LANES { CHAINS } else { r }
}

/// Returns the sum that an output is added to.
#[inline(always)]
fn chain<const R: usize, const Q: usize>(r: usize, q: usize) -> usize {
    if chains(R, Q) == R { r } else { q % CHAINS }
}

/// Adds each of the sums of a tile to the numbers at `to`.
#[inline(always)]
unsafe fn add_to<L: Lanes, const R: usize, const Q: usize>(to: *mut f32, sums: &[L; CHAINS]) {
    // SAFETY: as demanded of the caller.
    unsafe {
        let mut sum = L::load(to);
        for i in 0..const { chains(R, Q) } {
            sum = sum.plus(sums[i]);
        }
        sum.store(to);
    }
}

/// Returns the first `count` numbers at `from`.
#[inline(always)]
unsafe fn get<L: Lanes>(from: *const f32, count: usize) -> L {
    // SAFETY: as demanded of the caller.
    unsafe { if count == LANES { L::load(from) } else { L::load_first(from, count) } }
}

/// Writes the first `count` lanes.
#[inline(always)]
unsafe fn put<L: Lanes>(lanes: L, to: *mut f32, count: usize) {
    // SAFETY: as demanded of the caller.
    unsafe { if count == LANES { lanes.store(to) } else { lanes.store_first(to, count) } }
}
