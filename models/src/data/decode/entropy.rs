//! Reads the blocks of a JPEG file's scans without decoding their values, to find out whether all are there (ITU-T T.81, annexes F and G).

/// The number of bits of a code that a table resolves at once.
const LOOKUP: u32 = 9;
/// The error for a scan that ends early, or has an impossible code.
const DAMAGED: &str = "blocks of pixels of the JPEG file are missing or damaged";

/// The codes of a Huffman table.
pub(super) struct Table {
    /// For the next [`LOOKUP`] bits: the length of the code and its symbol; length 0 if it is longer.
    short: Vec<(u8, u8)>,
    /// For each length: one more than the last code, in 16 bits, and what to add to a code for the place of its symbol.
    long: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Table {
    /// Reads a segment of tables: those of DC coefficients are at 0 … 3, those of AC coefficients at 4 … 7.
    pub(super) fn read_all(mut content: &[u8], tables: &mut [Option<Self>; 8]) -> Option<()> {
        while let Some((&place, rest)) = content.split_first() {
            let counts = rest.get(..16)?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let symbols = rest.get(16..16 + total)?;
            if place & 0xec != 0 {
                return None;
            }
            tables[usize::from((place >> 4) * 4 + (place & 3))] = Some(Self::new(counts, symbols)?);
            content = &rest[16 + total..];
        }
        Some(())
    }

    fn new(counts: &[u8], symbols: &[u8]) -> Option<Self> {
        let (mut short, mut long) = (vec![(0, 0); 1 << LOOKUP], [(0, 0); 17]);
        let (mut code, mut place) = (0_u32, 0_usize);
        for (length, &count) in (1..=16_u32).zip(counts) {
            long[length as usize].1 = place as i32 - code as i32;
            for _ in 0..count {
                if code >> length != 0 {
                    return None;
                }
                if length <= LOOKUP {
                    let first = (code << (LOOKUP - length)) as usize;
                    short[first..first + (1 << (LOOKUP - length))].fill((length as u8, symbols[place]));
                }
                code += 1;
                place += 1;
            }
            long[length as usize].0 = code << (16 - length);
            code <<= 1;
        }
        Some(Self { short, long, symbols: symbols.to_vec() })
    }
}

/// A component of an image: its blocks, and which coefficients have been read.
struct Component {
    id: u8,
    /// The number of blocks in a unit of all components, across and down.
    sampling: (usize, usize),
    /// The number of blocks, across and down, without those that fill up units.
    blocks: (usize, usize),
    /// The number of blocks across, with them.
    stride: usize,
    /// For each coefficient the number of its lowest bits that are missing.
    missing: [u8; 64],
    /// For each block the coefficients that are not zero; empty in sequential files.
    nonzero: Vec<u64>,
}

/// The size and the components of an image.
pub(super) struct Frame {
    is_progressive: bool,
    /// The number of units of all components, across and down.
    units: (usize, usize),
    components: Vec<Component>,
}

/// The components and coefficients of a scan.
pub(super) struct Scan {
    /// The places of components in the frame, and of their tables.
    components: Vec<(usize, usize, usize)>,
    first: usize,
    last: usize,
    /// Whether the scan adds a bit to coefficients of earlier scans.
    refines: bool,
    low: u8,
}

impl Frame {
    pub(super) fn new(content: &[u8], is_progressive: bool) -> Option<Self> {
        let [_, h1, h0, w1, w0, count, parts @ ..] = content else { return None };
        let (height, width) = (u16::from_be_bytes([*h1, *h0]).into(), u16::from_be_bytes([*w1, *w0]).into());
        let parts = parts.get(..3 * usize::from(*count)).filter(|_| matches!(count, 1 | 3 | 4))?;
        let sampling = |part: &[u8]| (usize::from(part[1] >> 4), usize::from(part[1] & 15));
        let most = |of: fn((usize, usize)) -> usize| parts.chunks(3).map(|part| of(sampling(part))).max().unwrap_or(1);
        let most = (most(|s| s.0), most(|s| s.1));
        if width == 0 || height == 0 || parts.chunks(3).any(|part| !matches!(sampling(part), (1..=4, 1..=4))) {
            return None;
        }
        let units = (usize::div_ceil(width, 8 * most.0), usize::div_ceil(height, 8 * most.1));
        let component = |part: &[u8]| {
            let sampling = sampling(part);
            let blocks = |length: usize, own: usize, most: usize| usize::div_ceil(length * own, 8 * most);
            Component {
                id: part[0],
                sampling,
                blocks: (blocks(width, sampling.0, most.0), blocks(height, sampling.1, most.1)),
                stride: units.0 * sampling.0,
                missing: [u8::MAX; 64],
                nonzero: Vec::new(),
            }
        };
        Some(Self { is_progressive, units, components: parts.chunks(3).map(component).collect() })
    }

    pub(super) fn component_count(&self) -> usize {
        self.components.len()
    }

    /// Returns whether the scans had every bit of every coefficient.
    pub(super) fn is_complete(&self) -> bool {
        self.components.iter().all(|component| component.missing.iter().all(|&bits| bits == 0))
    }

    /// Reads the blocks of a scan, which begins `bytes`, with a restart after each `interval` units, if that is not 0. Returns the number of bytes.
    pub(super) fn read(
        &mut self,
        scan: &Scan,
        tables: &[Option<Table>; 8],
        interval: usize,
        bytes: &[u8],
    ) -> Result<usize, String> {
        for &(place, ..) in &scan.components {
            let component = &mut self.components[place];
            component.missing[scan.first..=scan.last].fill(scan.low);
            if self.is_progressive && component.nonzero.is_empty() {
                component.nonzero.resize(component.stride * component.sampling.1 * self.units.1, 0);
            }
        }
        let mut bits = Bits { bytes, at: 0, buffer: 0, count: 0, padding: 0 };
        let mut run = 0;
        let (across, down) = match scan.components[..] {
            [(alone, ..)] => self.components[alone].blocks,
            _ => self.units,
        };
        for unit in 0..across * down {
            if interval > 0 && unit > 0 && unit % interval == 0 {
                bits.restart()?;
                run = 0;
            }
            let (column, row) = (unit % across, unit / across);
            for &(place, dc, ac) in &scan.components {
                let component = &mut self.components[place];
                let (wide, high) = if scan.components.len() == 1 { (1, 1) } else { component.sampling };
                for block in 0..wide * high {
                    let at = (row * high + block / wide) * component.stride + column * wide + block % wide;
                    let mut nonzero = component.nonzero.get(at).copied().unwrap_or(0);
                    let (dc, ac) = (tables[dc].as_ref(), tables[ac].as_ref());
                    if scan.refines {
                        scan.refine(&mut bits, ac, &mut nonzero, &mut run)
                    } else {
                        scan.read(&mut bits, dc, ac, &mut nonzero, &mut run)
                    }
                    .filter(|()| bits.padding <= bits.count)
                    .ok_or(DAMAGED)?;
                    if let Some(kept) = component.nonzero.get_mut(at) {
                        *kept = nonzero;
                    }
                }
            }
        }
        Ok(bits.at)
    }
}

impl Scan {
    pub(super) fn new(content: &[u8], frame: &Frame) -> Option<Self> {
        let count = usize::from(*content.first()?);
        let [first, last, bits] = *content.get(1 + 2 * count..4 + 2 * count)? else { return None };
        let component = |part: &[u8]| {
            let place = frame.components.iter().position(|component| component.id == part[0])?;
            Some((place, usize::from(part[1] >> 4 & 3), 4 + usize::from(part[1] & 3)))
        };
        let components: Vec<_> = content[1..1 + 2 * count].chunks(2).map(component).collect::<Option<_>>()?;
        let (first, last) = if frame.is_progressive { (first.into(), last.into()) } else { (0, 63) };
        let (high, low) = if frame.is_progressive { (bits >> 4, bits & 15) } else { (0, 0) };
        let is_valid =
            !components.is_empty() && first <= last && last < 64 && (first > 0 || last == 0 || !frame.is_progressive);
        (is_valid && (first == 0 || components.len() == 1 || !frame.is_progressive)).then_some(Self {
            components,
            first,
            last,
            refines: high > 0,
            low,
        })
    }

    /// Reads a block's coefficients for the first time. `run` is the number of further blocks without any.
    fn read(
        &self,
        bits: &mut Bits<'_>,
        dc: Option<&Table>,
        ac: Option<&Table>,
        nonzero: &mut u64,
        run: &mut u32,
    ) -> Option<()> {
        if self.first == 0 {
            let length = bits.symbol(dc?).filter(|&length| length <= 16)?;
            bits.take(length.into())?;
        }
        if *run > 0 {
            *run -= 1;
            return Some(());
        }
        let mut at = self.first.max(1);
        while at <= self.last {
            let symbol = bits.symbol(ac?)?;
            let (zeros, length) = (symbol >> 4, symbol & 15);
            at += usize::from(zeros);
            if length == 0 && zeros < 15 {
                if self.first > 0 {
                    *run = (1 << zeros) - 1 + bits.take(zeros.into())?;
                }
                return Some(());
            }
            if length > 0 {
                bits.take(length.into())?;
                if at > self.last {
                    return None;
                }
                *nonzero |= 1 << at;
            }
            at += 1;
        }
        Some(())
    }

    /// Reads one more bit of a block's coefficients.
    fn refine(&self, bits: &mut Bits<'_>, ac: Option<&Table>, nonzero: &mut u64, run: &mut u32) -> Option<()> {
        if self.first == 0 {
            return bits.take(1).map(drop);
        }
        let mut at = self.first;
        while at <= self.last && *run == 0 {
            let symbol = bits.symbol(ac?)?;
            let (mut zeros, length) = (symbol >> 4, symbol & 15);
            if length == 0 && zeros < 15 {
                *run = (1 << zeros) + bits.take(zeros.into())?;
                break;
            }
            if length > 0 {
                bits.take(1)?;
            }
            while at <= self.last {
                if *nonzero >> at & 1 == 1 {
                    bits.take(1)?;
                } else if zeros == 0 {
                    break;
                } else {
                    zeros -= 1;
                }
                at += 1;
            }
            if length > 0 {
                if at > self.last {
                    return None;
                }
                *nonzero |= 1 << at;
            }
            at += 1;
        }
        if *run > 0 {
            let known = (at..=self.last).filter(|at| *nonzero >> at & 1 == 1).count();
            (0..known).try_for_each(|_| bits.take(1).map(drop))?;
            *run -= 1;
        }
        Some(())
    }
}

/// The bits of a scan.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    /// The number of bits in the buffer.
    count: u32,
    /// How many of them are zeros after the end of the data, which nobody may take.
    padding: u32,
}

impl Bits<'_> {
    fn fill(&mut self) {
        while self.count <= 48 {
            let (byte, length) = match self.bytes.get(self.at..) {
                Some([0xff, 0, ..]) => (0xff, 2),
                Some([byte, ..]) if *byte != 0xff => (*byte, 1),
                // A marker, or the end of the file.
                _ => {
                    self.padding += 8;
                    (0, 0)
                }
            };
            self.at += length;
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    /// Returns the next `length` bits, at most 16.
    fn take(&mut self, length: u32) -> Option<u32> {
        self.fill();
        self.count -= length;
        let value = self.buffer >> self.count & ((1 << length) - 1);
        (self.padding <= self.count).then_some(value as u32)
    }

    fn symbol(&mut self, table: &Table) -> Option<u8> {
        self.fill();
        let next = (self.buffer >> (self.count - 16)) as u32 & 0xffff;
        let (length, symbol) = table.short[(next >> (16 - LOOKUP)) as usize];
        if length > 0 {
            self.count -= u32::from(length);
            return Some(symbol);
        }
        let length = (LOOKUP as usize + 1..=16).find(|&length| next < table.long[length].0)?;
        self.count -= length as u32;
        let place = (next >> (16 - length)) as i32 + table.long[length].1;
        table.symbols.get(usize::try_from(place).ok()?).copied()
    }

    /// Goes to the data after the next restart marker.
    fn restart(&mut self) -> Result<(), String> {
        let rest = &self.bytes[self.at..];
        let marker =
            rest.windows(2).position(|pair| pair[0] == 0xff && pair[1] != 0 && pair[1] != 0xff).ok_or(DAMAGED)?;
        if !matches!(rest[marker + 1], 0xd0..=0xd7) {
            return Err(DAMAGED.to_owned());
        }
        *self = Self { bytes: self.bytes, at: self.at + marker + 2, buffer: 0, count: 0, padding: 0 };
        Ok(())
    }
}
