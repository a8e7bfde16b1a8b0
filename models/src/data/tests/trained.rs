use std::{fs, path::Path};

#[cfg(feature = "images")]
use image::{Rgb, RgbImage};
use interlock::Dataset;
use serde_json::json;

use super::{config, gzip, labels, tokens, values, write};
use crate::data::{DataConfig, DataKind, Description, Inputs, Normalization, Vocabulary};
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
    let description = |channels| images_of([channels, 2, 3], &["a", "b"]);
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

/// Describes images of this shape that are only scaled to 0 … 1.
fn images_of([channels, height, width]: [usize; 3], class_names: &[&str]) -> Description {
    let class_names: Vec<String> = class_names.iter().map(|&name| name.to_owned()).collect();
    let kind = DataKind::Images { channels, height, width, classes: class_names.len(), class_names };
    Description::new(kind, Some(Normalization::none(channels)))
}

fn vectors() -> Description {
    let kind = DataKind::Vectors { width: 2, classes: 2, class_names: Vec::new() };
    Description::new(kind, None)
}

/// Returns the names of all inputs, and the values of each.
#[cfg(feature = "images")]
fn examples(inputs: &Inputs, batch: usize) -> (Vec<String>, Vec<Vec<f32>>) {
    let (mut names, mut all) = (Vec::new(), Vec::new());
    for batch in inputs.batches(batch) {
        let (batch, inputs) = batch.expect("inputs");
        names.extend_from_slice(batch);
        all.extend(inputs.single().and_then(|x| Ok(x.flatten_from(1)?.to_vec2::<f32>()?)).expect("values"));
    }
    (names, all)
}

#[test]
#[cfg(feature = "images")]
fn inputs_are_images_and_images_of_idx_files_in_the_order_of_their_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    image(&at("one.png"), [51; 3], (2, 2));
    image(&at("more/deep/two.png"), [102; 3], (4, 4));
    write(&at("digits.gz"), gzip(&idx_file(0x803, &[3, 1, 1], &[0, 255, 153])));
    let description = images_of([1, 1, 1], &["a", "b"]);
    let files = ["one.png", "digits.gz", "more"].map(at);
    let mut inputs = description.read_inputs(&files).expect("inputs");
    let name = |rest: &str| folder.path().join(rest).display().to_string();
    let expected = ["one.png", "digits.gz[0]", "digits.gz[1]", "digits.gz[2]", "more/deep/two.png"].map(name);
    for batch in [1, 2, 9] {
        let (names, values) = examples(&inputs, batch);
        assert_eq!((names, values), (expected.to_vec(), [0.2, 0.0, 1.0, 0.6, 0.4].map(|v| vec![v]).to_vec()));
    }
    inputs.truncate(3);
    assert_eq!(examples(&inputs, 2).0, expected[..3]);
}

#[test]
fn inputs_that_do_not_fit_the_model_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write(&at("wide-idx3-ubyte"), idx_file(0x803, &[1, 1, 2], &[0, 0]));
    write(&at("page.gz"), "<!DOCTYPE html><title>404</title>");
    write(&at("labels"), idx_file(0x801, &[2], &[1, 0]));
    write(&at("images-ubyte"), "<html></html>");
    let read = |name: &str| images_of([1, 1, 1], &["a"]).read_inputs(&[at(name)]);
    assert!(refusal(read("wide-idx3-ubyte")).contains("[1, 1, 2], the model was trained on [1, 1, 1]"));
    assert!(refusal(read("labels")).contains("begins with 0x00000801"));
    assert!(refusal(read("images-ubyte")).contains("an HTML or XML page"));
    assert!(refusal(read("nothing.png")).contains("nothing.png: no such file or folder; name image files"));
    assert!(refusal(read("page.gz")).contains("an HTML or XML page"));
    for description in [vectors(), DataConfig::Shakespeare(Default::default()).open().expect("data").description] {
        let error = refusal(description.read_inputs(&[at("labels")]));
        assert!(error.contains("cannot read from files") && error.contains("`read_inputs`"), "{error}");
    }
    assert!(refusal(vectors().open_labelled(&at("labels"))).contains("the model takes vectors"));
    let tensor = candle_core::Tensor::zeros((2, 3), candle_core::DType::F32, &candle_core::Device::Cpu).expect("zeros");
    assert!(refusal(Inputs::new(vec!["one".to_owned()], tensor)).contains("1 names for a tensor of shape [2, 3]"));
}

#[test]
#[cfg(feature = "images")]
fn other_folders_of_images_are_processed_as_that_of_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let open =
        |shape, names: &[&str], path: &str| images_of(shape, names).open_labelled(&at(path)).map(|set| all(&*set));
    // All images of class folders, numbered as in the run; grey for a model of one channel.
    image(&at("all/wolf/1.png"), [51; 3], (4, 2));
    image(&at("all/ant/1.png"), [102; 3], (2, 2));
    image(&at("all/ant/below/2.png"), [153; 3], (2, 2));
    let batch = open([1, 1, 2], &["wolf", "bee", "ant"], "all").expect("a set");
    assert_eq!((values(&batch), labels(&batch)), (vec![0.2, 0.2, 0.4, 0.4, 0.6, 0.6], vec![0, 2, 2]));
    let error = refusal(open([3, 1, 1], &["wolf"], "all"));
    assert!(error.contains("all/ant") && error.contains("its classes are wolf"), "{error}");
    // The validation folder, if there is one.
    image(&at("parts/train/ant/1.png"), [0; 3], (1, 1));
    image(&at("parts/val/ant/1.png"), [255; 3], (1, 1));
    assert_eq!(values(&open([1, 1, 1], &["ant"], "parts").expect("a set")), [1.0]);
    // Classes without names are numbers.
    image(&at("digits/1/x.png"), [255; 3], (1, 1));
    let mut unnamed = images_of([1, 1, 1], &["a", "b"]);
    let DataKind::Images { class_names, .. } = &mut unnamed.kind else { panic!("{unnamed:?}") };
    class_names.clear();
    assert_eq!(labels(&all(&*unnamed.open_labelled(&at("digits")).expect("a set"))), [1]);
    assert!(refusal(unnamed.open_labelled(&at("all"))).contains("its classes are 0, 1"));
}

#[test]
fn other_idx_files_and_cifar_are_processed_as_the_images_of_the_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let open =
        |shape, names: &[&str], path: &str| images_of(shape, names).open_labelled(&at(path)).map(|set| all(&*set));
    // A pair of idx files, or the test images of a folder.
    let DataConfig::Idx(_) = idx(&at("idx")) else { panic!("an idx configuration") };
    for path in ["idx", "idx/t10k-images-idx3-ubyte"] {
        let batch = open([1, 1, 1], &["a", "b"], path).expect("a set");
        assert_eq!((values(&batch), labels(&batch)), (vec![100.0 / 255.0, 50.0 / 255.0], vec![1, 0]));
    }
    fs::rename(at("idx/train-labels-idx1-ubyte"), at("idx/labels")).expect("renames");
    assert!(
        refusal(open([1, 1, 1], &["a", "b"], "idx/train-images-idx3-ubyte")).contains("train-labels-idx1-ubyte: no")
    );
    fs::rename(at("idx/train-images-idx3-ubyte"), at("idx/pixels-ubyte")).expect("renames");
    assert!(refusal(open([1, 1, 1], &["a", "b"], "idx/pixels-ubyte")).contains("no `images` in its name"));
    assert!(refusal(open([1, 1, 1], &["a"], "idx")).contains("label 1; expected 0 to 0"));
    assert!(refusal(open([1, 1, 2], &["a", "b"], "idx")).contains("trained on [1, 1, 2]"));

    // CIFAR, whose classes must be those of the run.
    write(&at("cifar/test_batch.bin"), [&[3_u8][..], &[255; 3072]].concat());
    let names = crate::data::cifar::CIFAR10.class_names;
    let batch = open([3, 32, 32], names, "cifar").expect("a set");
    assert_eq!((labels(&batch), values(&batch)[0]), (vec![3], 1.0));
    let error = refusal(open([3, 32, 32], &["cat", "dog"], "cifar"));
    assert!(error.contains("airplane, automobile") && error.contains("those of the model are cat, dog"), "{error}");

    write(&at("alone.png"), "x");
    assert!(refusal(open([1, 1, 1], &["a"], "alone.png")).contains("has no labels; name a folder"));
    assert!(refusal(open([1, 1, 1], &["a"], "nothing")).contains("no such file or folder"));
}

#[test]
fn texts_are_encoded_with_the_saved_vocabulary() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("text.txt");
    let of = |vocab| Description::new(DataKind::Text { vocab, context: 2 }, None);
    let characters = of(Vocabulary::of_characters("abc").expect("a vocabulary"));
    // A byte order mark is no part of the text.
    write(&path, gzip("\u{feff}abcab".as_bytes()));
    assert_eq!(characters.read_text(&path).expect("tokens"), [0, 1, 2, 0, 1]);
    assert_eq!(of(Vocabulary::bytes()).read_text(&path).expect("tokens"), *b"abcab".map(u32::from).as_slice());
    let set = characters.open_labelled(&path).expect("a set");
    assert_eq!(tokens(&all(&*set)).1, [[1, 2], [0, 1]]);
    for (bytes, part) in [
        (&b""[..], "text.txt: is empty; give a text"),
        (b"ab\xff", "is not UTF-8 at byte 2; convert it to UTF-8, or train with tokenizer"),
        (b"abx", "text.txt: the character 'x' at byte 2 is not in the vocabulary; use only the 3"),
    ] {
        write(&path, bytes);
        assert!(refusal(characters.read_text(&path)).contains(part), "{part}");
    }
    write(&path, "ab");
    let error = refusal(characters.open_labelled(&path));
    assert!(
        error.ends_with("text.txt: 2 tokens are too few for a window of 2 and the token after it; give a longer text")
    );
    assert_eq!(of(Vocabulary::bytes()).encode(Path::new("it"), b"\xff").expect("bytes need no UTF-8"), [255]);
    assert!(refusal(vectors().read_text(&path)).contains("the model is of vectors"));
}
