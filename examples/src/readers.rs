//! Everything that reads files, as one table for the tests by mutation and for `cargo fuzz`.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use interlock::{
    Batch, Error, Result, Trainer, TrainerBuilder, Weights,
    candle_core::{DType, Device, Tensor},
    tools::planner::{Placement, Profile},
};
use interlock_models::{
    InputShape, ModelConfig,
    data::{DataKind, Description, Normalization, Vocabulary},
    golden::GoldenCase,
};

use crate::{
    BuiltIn, bounded,
    config::{ConfigOf, ConfigText},
    report,
    run_folder::RunFolder,
};

/// A kind of file, with the code that reads it.
pub struct Reader {
    /// The name of the kind.
    pub name: &'static str,
    /// Returns small files that are right.
    pub seeds: fn() -> Vec<Vec<u8>>,
    read: fn(&Path, &[u8]) -> Result<()>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Every kind of file that is read.
pub const READERS: &[Reader] = &[
    Reader { name: "config", seeds: configs, read: config },
    Reader { name: "run_config", seeds: || vec![RUN[0].1.to_vec()], read: |folder, bytes| run(folder, 0, bytes) },
    Reader { name: "run_data", seeds: || vec![RUN[1].1.to_vec()], read: |folder, bytes| run(folder, 1, bytes) },
    Reader { name: "run_status", seeds: || vec![RUN[2].1.to_vec()], read: |folder, bytes| run(folder, 2, bytes) },
    Reader { name: "run_events", seeds: || vec![RUN[3].1.to_vec()], read: |folder, bytes| run(folder, 3, bytes) },
    Reader { name: "run_timeline", seeds: || vec![RUN[4].1.to_vec()], read: |folder, bytes| run(folder, 4, bytes) },
    Reader { name: "run_environment", seeds: || vec![RUN[5].1.to_vec()], read: |folder, bytes| run(folder, 5, bytes) },
    Reader { name: "costs", seeds: || vec![costs().expect("costs")], read: plan },
    Reader {
        name: "idx_images",
        seeds: || vec![idx_images()],
        read: |folder, bytes| idx(folder, bytes, &idx_labels()),
    },
    Reader {
        name: "idx_labels",
        seeds: || vec![idx_labels()],
        read: |folder, bytes| idx(folder, &idx_images(), bytes),
    },
    Reader {
        name: "idx_gzip",
        seeds: || vec![gzip(&idx_images())],
        read: |folder, bytes| idx(folder, bytes, &idx_labels()),
    },
    Reader {
        name: "idx_in_gzip",
        seeds: || vec![idx_images()],
        read: |folder, bytes| idx(folder, &gzip(bytes), &idx_labels()),
    },
    Reader {
        name: "cifar",
        seeds: || vec![cifar_records()],
        read: |folder, bytes| cifar(folder, "test_batch.bin", bytes),
    },
    Reader {
        name: "cifar_gzip",
        seeds: || vec![gzip(&cifar_tar())],
        read: |folder, bytes| cifar(folder, CIFAR, bytes),
    },
    Reader { name: "cifar_tar", seeds: || vec![cifar_tar()], read: |folder, bytes| cifar(folder, CIFAR, bytes) },
    Reader { name: "text", seeds: || vec![b"A text\r\nof \xc3\xa9 lines.\n".to_vec(), gzip(b"packed")], read: text },
    Reader { name: "tokenizer", seeds: tokenizers, read: vocabulary },
    Reader {
        name: "vocabulary",
        seeds: || vec![br#"{"kind":"chars","characters":"abc d","line_ends":"lf"}"#.to_vec()],
        read: vocabulary,
    },
    Reader {
        name: "safetensors",
        seeds: || vec![TENSORS.to_vec()],
        read: |folder, bytes| weights(folder, bytes, INDEX),
    },
    Reader { name: "index", seeds: || vec![INDEX.to_vec()], read: |folder, bytes| weights(folder, TENSORS, bytes) },
    Reader { name: "case", seeds: || vec![CASE.to_vec()], read: |folder, bytes| case(folder, bytes, TENSORS) },
    Reader { name: "case_tensors", seeds: || vec![TENSORS.to_vec()], read: |folder, bytes| case(folder, CASE, bytes) },
    #[cfg(feature = "images")]
    Reader { name: "png", seeds: || pictures(&[0, 1, 2, 3]), read: image },
    #[cfg(feature = "images")]
    Reader {
        name: "png_summed",
        seeds: || pictures(&[0, 1, 2, 3]),
        read: |folder, bytes| image(folder, &summed(bytes)),
    },
    #[cfg(feature = "images")]
    Reader { name: "jpeg", seeds: || pictures(&[4, 5, 6, 7]), read: image },
    #[cfg(feature = "images")]
    Reader { name: "webp", seeds: || pictures(&[8, 9]), read: image },
    #[cfg(feature = "images")]
    Reader { name: "bmp", seeds: || vec![bitmap()], read: image },
    #[cfg(feature = "more-images")]
    Reader { name: "gif", seeds: || pictures(&[10]), read: image },
    #[cfg(feature = "more-images")]
    Reader { name: "tiff", seeds: || pictures(&[11]), read: image },
    #[cfg(feature = "more-images")]
    Reader {
        name: "pnm",
        seeds: || vec![b"P6 2 2 255\n0123456789ab".to_vec(), b"P2\n2 2\n255\n1 2 3 4\n".to_vec()],
        read: image,
    },
];

/// The files of a run's folder.
const RUN: [(&str, &[u8]); 6] = [
    ("config.toml", include_bytes!("../tests/format_1/config.toml")),
    ("data.json", include_bytes!("../tests/format_1/data.json")),
    ("status.json", include_bytes!("../tests/format_1/status.json")),
    ("events.jsonl", include_bytes!("../tests/format_1/events.jsonl")),
    ("timeline.json", include_bytes!("../tests/format_1/timeline.json")),
    (
        "environment.json",
        br#"{"version":"0.1.0","revision":"","started":"","command":["interlock"],"os":"linux",
            "architecture":"x86_64","cpu":null,"cores":2,"memory_bytes":4096,"instructions":"","devices":[]}"#,
    ),
];
const CASE: &[u8] = include_bytes!("../../models/tests/golden/mlp-k5-w1/case.json");
const TENSORS: &[u8] = include_bytes!("../../models/tests/golden/mlp-k5-w1/tensors.safetensors");
const INDEX: &[u8] =
    br#"{"metadata":{"units_per_stage":[1,1]},"weight_map":{"init/layers.0.weight":"model.safetensors"}}"#;
const CIFAR: &str = "cifar-10-binary.tar.gz";
#[cfg(feature = "images")]
const PICTURES: [&[u8]; 12] = [
    include_bytes!("../../models/src/data/tests/images/exif.png"),
    include_bytes!("../../models/src/data/tests/images/palette.png"),
    include_bytes!("../../models/src/data/tests/images/one_bit.png"),
    include_bytes!("../../models/src/data/tests/images/animated.png"),
    include_bytes!("../../models/src/data/tests/images/exif.jpg"),
    include_bytes!("../../models/src/data/tests/images/progressive.jpg"),
    include_bytes!("../../models/src/data/tests/images/restarts.jpg"),
    include_bytes!("../../models/src/data/tests/images/cmyk.jpg"),
    include_bytes!("../../models/src/data/tests/images/exif.webp"),
    include_bytes!("../../models/src/data/tests/images/animated.webp"),
    include_bytes!("../../models/src/data/tests/images/palette.gif"),
    include_bytes!("../../models/src/data/tests/images/exif.tif"),
];

impl Reader {
    /// Reads a file of these bytes; it and those beside it are written to `folder`.
    ///
    /// # Errors
    /// If it is refused.
    pub fn read(&self, folder: &Path, bytes: &[u8]) -> Result<()> {
        (self.read)(folder, bytes)
    }

    /// Returns the reader of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        READERS.iter().find(|reader| reader.name == name)
    }
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).expect("the folder can be written to");
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).and_then(|()| packed.finish()).expect("packs")
}

fn images(channels: usize, height: usize, width: usize) -> Description {
    let normalization = Normalization { mean: vec![0.5; channels], std: vec![0.5; channels] };
    let class_names = Vec::new();
    Description::new(DataKind::Images { channels, height, width, classes: 10, class_names }, Some(normalization))
}

fn configs() -> Vec<Vec<u8>> {
    let texts = [
        include_str!("../configs/fashion-mnist.toml"),
        include_str!("../configs/shakespeare-gpt.toml"),
        include_str!("../configs/image-folder-resnet50.toml"),
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn config(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = file(folder, "config.toml", bytes);
    let config: ConfigOf<BuiltIn> = ConfigText::read::<BuiltIn>(Some(&path))?.with(&[])?;
    config.to_toml()?;
    let description = match config.model.kind() {
        "transformer" => Description::new(DataKind::Text { vocab: Vocabulary::bytes(), context: 64 }, None),
        _ => images(3, 32, 32),
    };
    config.builder(&description)?.layout()?.least_memory();
    Ok(())
}

/// Reads a run's folder in which one file has these bytes.
fn run(folder: &Path, changed: usize, bytes: &[u8]) -> Result<()> {
    for (at, (name, own)) in RUN.iter().enumerate() {
        file(folder, name, if at == changed { bytes } else { own });
    }
    report::page_of(&[folder.to_owned()])?;
    RunFolder::open::<BuiltIn>(folder).map(drop)
}

fn perceptron() -> Result<TrainerBuilder> {
    let model: ModelConfig = serde_json::from_str(r#"{"kind":"mlp","dims":[4,8,3]}"#).map_err(Error::other)?;
    Ok(Trainer::builder(model.build(InputShape::Vectors { width: 4, outputs: 3 })?))
}

fn costs() -> Result<Vec<u8>> {
    let inputs = Tensor::zeros((4, 4), DType::F32, &Device::Cpu)?.into();
    let batch = Batch { inputs, targets: Tensor::zeros(4, DType::U32, &Device::Cpu)? };
    serde_json::to_vec(&perceptron()?.profile(&batch, Some(&crate::ALLOCATOR))?).map_err(Error::other)
}

fn plan(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = file(folder, "costs.json", bytes);
    let text = bounded::read(&path, bounded::JSON).map_err(|e| Error::file(&path, e))?;
    let profile: Profile = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
    let builder = perceptron()?;
    let setup = builder.setup(2, &profile, Placement::dedicated(2))?;
    setup.memory(&setup.best_cut(&builder.tied_units()?)?);
    Ok(())
}

fn idx_images() -> Vec<u8> {
    let header = [0x0803_u32, 3, 2, 2].map(u32::to_be_bytes);
    [header.as_flattened(), &[7; 12]].concat()
}

fn idx_labels() -> Vec<u8> {
    let header = [0x0801_u32, 3].map(u32::to_be_bytes);
    [header.as_flattened(), &[0, 1, 9]].concat()
}

fn idx(folder: &Path, pixels: &[u8], labels: &[u8]) -> Result<()> {
    file(folder, "labels-idx1-ubyte", labels);
    let path = file(folder, "images-idx3-ubyte", pixels);
    let data = images(1, 2, 2).open_labelled(&path)?;
    data.batch(&[data.len() - 1], None).map(drop)
}

fn cifar_records() -> Vec<u8> {
    (0..2).flat_map(|label| [vec![label], vec![100; 3072]].concat()).collect()
}

/// Returns a tar archive of the records.
fn cifar_tar() -> Vec<u8> {
    let records = cifar_records();
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "cifar-10-batches-bin/test_batch.bin");
    put(100, "0000644\x000000000\x000000000\x00");
    put(124, &format!("{:011o}\x0000000000000\x00        0", records.len()));
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\x00").as_bytes());
    let rest = records.len().next_multiple_of(512) - records.len() + 1024;
    [&header[..], &records, &vec![0; rest]].concat()
}

fn cifar(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = file(folder, name, bytes);
    let path = if name == CIFAR { &path } else { folder };
    let data = images(3, 32, 32).open_labelled(path)?;
    data.batch(&[data.len() - 1], None).map(drop)
}

fn text(folder: &Path, bytes: &[u8]) -> Result<()> {
    let path = file(folder, "text.txt", bytes);
    let kind = DataKind::Text { vocab: Vocabulary::bytes(), context: 4 };
    Description::new(kind, None).read_text(&path).map(drop)
}

fn tokenizers() -> Vec<Vec<u8>> {
    let texts = [
        include_str!("../../models/src/data/tests/tokenizers/gpt2.json"),
        include_str!("../../models/src/data/tests/tokenizers/bert.json"),
        include_str!("../../models/src/data/tests/tokenizers/llama2.json"),
        include_str!("../../models/src/data/tests/tokenizers/t5.json"),
        include_str!("../../models/src/data/tests/tokenizers/bloom.json"),
        include_str!("../../models/src/data/tests/tokenizers/words.json"),
        include_str!("../../models/src/data/tests/tokenizers/added.json"),
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn vocabulary(folder: &Path, bytes: &[u8]) -> Result<()> {
    let vocabulary = Vocabulary::load(&file(folder, "tokenizer.json", bytes))?;
    let tokens = vocabulary.encode("abc d")?;
    // A vocabulary may lack some of these.
    let _ = vocabulary.encode("The 12 dogs' caf\u{e9} \u{4e2d}\u{6587}\r\n\r\n  <s> x");
    vocabulary.decode(&[&tokens[..], &[0, vocabulary.len() as u32 - 1]].concat())?;
    let mut stream = vocabulary.stream();
    stream.push(&tokens)?;
    stream.finish().map(drop)
}

fn weights(folder: &Path, tensors: &[u8], index: &[u8]) -> Result<()> {
    file(folder, "model.safetensors", tensors);
    file(folder, "model.safetensors.index.json", index);
    Weights::load(folder).map(drop)
}

fn case(folder: &Path, case: &[u8], tensors: &[u8]) -> Result<()> {
    file(folder, "case.json", case);
    file(folder, "tensors.safetensors", tensors);
    GoldenCase::read(folder).map(drop)
}

#[cfg(feature = "images")]
fn pictures(numbers: &[usize]) -> Vec<Vec<u8>> {
    numbers.iter().map(|&number| PICTURES[number].to_vec()).collect()
}

#[cfg(feature = "images")]
fn image(folder: &Path, bytes: &[u8]) -> Result<()> {
    images(3, 16, 16).read_images(&[file(folder, "image", bytes)]).map(drop)
}

/// Returns a bitmap of 4 × 4 pixels.
#[cfg(feature = "images")]
fn bitmap() -> Vec<u8> {
    let header = [54 + 48_u32, 0, 54, 40, 4, 4, 1 | 24 << 16, 0, 48, 0, 0, 0, 0].map(u32::to_le_bytes);
    [&b"BM"[..], header.as_flattened(), &[99; 48]].concat()
}

/// Returns a PNG file with the right checksum of every chunk that is whole.
#[cfg(feature = "images")]
fn summed(bytes: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (bytes.to_vec(), 8);
    while let Some(length) = bytes.get(at..at + 4).and_then(|length| length.try_into().ok()) {
        let end = at + 8 + u32::from_be_bytes(length) as usize;
        let Some(content) = bytes.get(at + 4..end).filter(|_| bytes.len() >= end + 4) else { break };
        let mut sum = flate2::Crc::new();
        sum.update(content);
        bytes[end..end + 4].copy_from_slice(&sum.sum().to_be_bytes());
        at = end + 4;
    }
    bytes
}
