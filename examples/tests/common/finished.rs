//! Small runs on images, for the tests of commands that use a finished run.
#![allow(dead_code, unreachable_pub)] // each test file uses a part

use std::{fs, path::Path};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{done, interlock};

pub const IMAGES: &str = r#"
steps = 30
batch_size = 4
devices = ["cpu:threads=1"]
[data]
kind = "image-folder"
path = "images"
size = 8
augment = false
[model]
kind = "mlp"
hidden = [8]
[partition]
stages = 2
[strategy]
name = "pairwise"
[heads]
train = "all"
[optimizer]
lr = 0.05
"#;

/// Writes an image of one colour, as an uncompressed bitmap of 24 bits a pixel.
pub fn image(path: &Path, side: u32, [red, green, blue]: [u8; 3]) {
    let row = (side * 3).next_multiple_of(4);
    let mut bytes = b"BM".to_vec();
    for number in [54 + row * side, 0, 54, 40, side, side, 1 | 24 << 16, 0, row * side, 0, 0, 0, 0] {
        bytes.extend(number.to_le_bytes());
    }
    let mut pixels = [blue, green, red].repeat(side as usize);
    pixels.resize(row as usize, 0);
    bytes.extend(pixels.repeat(side as usize));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Makes a folder with red and blue images for training and validation, and the configuration of a run on them.
pub fn folder_of_images() -> TempDir {
    let folder = TempDir::new().unwrap();
    for i in 0..4 {
        let shade = 150 + 20 * i;
        for (class, colour) in [("blue", [10, 10, shade]), ("red", [shade, 10, 10])] {
            for part in ["train", "val"] {
                image(&folder.path().join(format!("images/{part}/{class}/{i}.bmp")), 12, colour);
            }
        }
    }
    fs::write(folder.path().join("config.toml"), IMAGES).unwrap();
    folder
}

pub fn train(folder: &Path) {
    done(&interlock(folder, &["train", "--quiet", "--config", "config.toml", "--out", "run"]));
}

pub fn printed(folder: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&done(&interlock(folder, arguments))).unwrap()
}
