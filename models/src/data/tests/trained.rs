use std::{fs, path::Path};

#[cfg(feature = "images")]
use image::{Rgb, RgbImage};
use interlock::Dataset;
use serde_json::json;

use super::{config, labels, tokens, values, write};
use crate::data::{DataConfig, DataKind, Description, Normalization};
#[cfg(feature = "images")]
use crate::data::{Listing, image_files};

fn idx_file(magic: u32, dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let words = [magic].into_iter().chain(dimensions.iter().copied());
    words.flat_map(u32::to_be_bytes).chain(bytes.iter().copied()).collect()
}

/// Writes two training and two test images of one pixel.
fn idx(folder: &Path) -> DataConfig {
    for (part, pixels) in [("train", [0, 200]), ("t10k", [100, 50])] {
        write(&folder.join(format!("{part}-images-idx3-ubyte")), idx_file(0x803, &[2, 1, 1], &pixels));
        write(&folder.join(format!("{part}-labels-idx1-ubyte")), idx_file(0x801, &[2], &[1, 0]));
    }
    config(json!({ "kind": "idx", "path": folder, "classes": 2 }))
}

fn all(set: &dyn Dataset) -> interlock::Batch {
    set.batch(&(0..set.len()).collect::<Vec<_>>(), None).expect("a batch")
}

fn refusal<T>(result: interlock::Result<T>) -> String {
    match result {
        Ok(_) => panic!("must be refused"),
        Err(error) => {
            assert!(error.is_refusal(), "not a refusal: {error:?}");
            error.to_string()
        }
    }
}

#[test]
fn validation_images_use_the_saved_normalization_without_training_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = idx(folder.path());
    let data = config.open().expect("data");
    let expected = values(&all(&*data.validation));
    fs::remove_file(folder.path().join("train-images-idx3-ubyte")).expect("removes");
    assert!(config.open().is_err());
    let validation = config.open_validation(&data.description).expect("validation");
    assert_eq!((values(&all(&*validation)), labels(&all(&*validation))), (expected, vec![1, 0]));
    // Other statistics give other values.
    let other = Description { normalization: Some(Normalization::none(1)), ..data.description.clone() };
    let validation = config.open_validation(&other).expect("validation");
    assert_eq!(values(&all(&*validation)), [100.0 / 255.0, 50.0 / 255.0]);
}

#[test]
fn data_of_another_kind_or_shape_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = idx(folder.path());
    let saved = config.open().expect("data").description;
    let text = DataConfig::Shakespeare(Default::default());
    assert!(refusal(text.open_validation(&saved)).contains("the model is of images"));
    let of_text = text.open().expect("data").description;
    assert!(refusal(config.open_validation(&of_text)).contains("the model is not"));
    let mut wider = saved.clone();
    let DataKind::Images { width, .. } = &mut wider.kind else { panic!("{saved:?}") };
    *width = 2;
    assert!(refusal(config.open_validation(&wider)).contains("[1, 1, 2]"));
}

#[test]
fn validation_text_is_encoded_with_the_saved_vocabulary() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text.txt");
    let json = json!({ "kind": "text", "path": path, "tokenizer": "chars", "context": 2, "validation_fraction": 0.5 });
    write(&path, "abcdabcdabcdabcd");
    let config = config(json);
    let data = config.open().expect("data");
    let saved = data.description.clone();
    let opened = config.open_validation(&saved).expect("validation");
    assert_eq!(tokens(&all(&*opened)), tokens(&all(&*data.validation)));
    // The vocabulary of this text would begin with `b`.
    write(&path, "bbbbbbbbdcdcdcdc");
    let opened = config.open_validation(&saved).expect("validation");
    assert_eq!(tokens(&all(&*opened)).0[0], [3, 2]);
    write(&path, "bbbbbbbbxxxxxxxx");
    assert!(refusal(config.open_validation(&saved)).contains("'x'"));
}

#[cfg(feature = "images")]
fn image(path: &Path, colour: [u8; 3], (width, height): (u32, u32)) {
    fs::create_dir_all(path.parent().expect("has a parent")).expect("makes folders");
    RgbImage::from_pixel(width, height, Rgb(colour)).save(path).expect("saves");
}

#[test]
#[cfg(feature = "images")]
fn classes_of_folders_keep_their_saved_numbers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path();
    for class in ["test", "wolf"] {
        for i in 0..4 {
            image(&path.join(class).join(format!("{i}.png")), [i; 3], (2, 2));
        }
    }
    // In a folder without train/, `test` is a class.
    let Listing { class_names, validation, .. } = Listing::open(path, 0.5).expect("a listing");
    let reversed: Vec<String> = class_names.iter().rev().cloned().collect();
    let same = Listing::open_validation(path, 0.5, &class_names).expect("a listing");
    assert_eq!(same, validation);
    let swapped = Listing::open_validation(path, 0.5, &reversed).expect("a listing");
    assert!(swapped.iter().all(|(file, class)| file.starts_with(path.join(&reversed[*class as usize]))));
    let error = refusal(Listing::open_validation(path, 0.5, &["test".to_owned()]));
    assert!(error.contains("wolf") && error.contains("its classes are test"), "{error}");
    assert_eq!(image_files(path).expect("files").len(), 8);
}

#[test]
#[cfg(feature = "images")]
fn images_are_read_in_the_shape_and_colours_of_the_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let (wide, high) = (folder.path().join("wide.png"), folder.path().join("high.png"));
    image(&wide, [255, 0, 0], (12, 4));
    image(&high, [51; 3], (2, 8));
    let description = |channels| Description {
        kind: DataKind::Images { channels, height: 2, width: 3, classes: 2, class_names: Vec::new() },
        normalization: Some(Normalization::none(channels)),
    };
    let read = |channels| description(channels).read_images(&[wide.clone(), high.clone()]);
    let colours = read(3).expect("inputs");
    assert_eq!(colours.dims(), [2, 3, 2, 3]);
    let values: Vec<f32> = colours.flatten_all().and_then(|all| all.to_vec1()).expect("values");
    assert_eq!(values, [[1.0; 6].as_slice(), &[0.0; 12], &[0.2; 18]].concat());
    let grey: Vec<f32> = read(1).and_then(|all| Ok(all.flatten_all()?.to_vec1()?)).expect("values");
    assert!(grey[..6].iter().all(|&value| value > 0.0 && value < 0.5) && grey[6..] == [0.2; 6], "{grey:?}");
    assert!(refusal(read(2)).contains("2 channels"));
    write(&wide, "no image");
    assert!(refusal(read(3)).contains("wide.png"));
}
