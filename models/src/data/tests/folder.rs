use std::{fs, path::Path};

use image::{DynamicImage, Rgb, RgbImage};
use interlock::Key;
use serde_json::json;

use super::{assert_targets_alone, config, labels, refused, values, write};
use crate::data::{DataKind, Description, Listing};

fn save(path: &Path, image: RgbImage) {
    fs::create_dir_all(path.parent().expect("has a parent")).expect("makes folders");
    DynamicImage::ImageRgb8(image).save(path).expect("saves");
}

/// Writes images of three classes of one colour each; some images are wide or high.
fn part(folder: &Path, count: usize) {
    for (class, colour) in [("ant", [255, 0, 0]), ("bee", [0, 255, 0]), ("cat", [0, 0, 255])] {
        for i in 0..count {
            let (w, h) = [(8, 8), (20, 8), (8, 12)][i % 3];
            let ending = ["png", "bmp", "PNG"][i % 3];
            save(&folder.join(class).join(format!("{i}.{ending}")), RgbImage::from_pixel(w, h, Rgb(colour)));
        }
    }
}

fn json_of(path: &Path) -> serde_json::Value {
    json!({ "kind": "image-folder", "path": path, "size": 4, "normalize": false })
}

#[test]
fn examples_of_train_and_val_folders_take_classes_in_turn() {
    let folder = tempfile::tempdir().expect("a folder");
    part(&folder.path().join("train"), 4);
    part(&folder.path().join("val"), 1);
    write(&folder.path().join("train/ant/notes.txt"), "not an image");
    write(&folder.path().join("train/.hidden/x"), "not a class");
    let data = config(json_of(folder.path())).open().expect("data");
    assert_eq!((data.train.len(), data.validation.len()), (12, 3));
    let batch = data.train.batch(&(0..12).collect::<Vec<_>>(), None).expect("a batch");
    assert_eq!(labels(&batch), [0, 1, 2].repeat(4));
    let values = values(&batch);
    for (i, image) in values.chunks(48).enumerate() {
        for (channel, plane) in image.chunks(16).enumerate() {
            assert_eq!(plane, [if channel == i % 3 { 1.0 } else { 0.0 }; 16], "image {i}");
        }
    }
    let DataKind::Images { channels: 3, height: 4, width: 4, classes: 3, class_names } = data.description.kind else {
        panic!("{:?}", data.description);
    };
    assert_eq!(class_names, ["ant", "bee", "cat"]);
    let limited = config(json!({ "kind": "image-folder", "path": folder.path(), "size": 4, "limit": 4 }));
    let limited = limited.open().expect("data");
    assert_eq!(limited.train.len(), 4);
    assert_targets_alone(&limited);
}

#[test]
fn images_are_cut_to_their_central_square() {
    let folder = tempfile::tempdir().expect("a folder");
    // 8 × 4 pixels: red columns left and right of the central four, which are grey.
    let image = RgbImage::from_fn(8, 4, |x, _| if (2..6).contains(&x) { Rgb([51; 3]) } else { Rgb([255, 0, 0]) });
    save(&folder.path().join("train/a/wide.png"), image.clone());
    save(&folder.path().join("test/a/high.png"), image::imageops::rotate90(&image));
    let data = config(json_of(folder.path())).open().expect("data");
    for set in [&data.train, &data.validation] {
        assert_eq!(values(&set.batch(&[0], None).expect("a batch")), [0.2; 48]);
    }
}

#[test]
fn single_folder_is_split_in_the_same_way_every_time() {
    let folder = tempfile::tempdir().expect("a folder");
    part(folder.path(), 10);
    let listing = Listing::open(folder.path(), 0.2).expect("a listing");
    assert_eq!((listing.train.len(), listing.validation.len()), (24, 6));
    for class in 0..3 {
        assert_eq!(listing.validation.iter().filter(|f| f.1 == class).count(), 2);
    }
    assert!(listing.validation.iter().all(|file| !listing.train.contains(file)));
    assert_eq!(listing, Listing::open(folder.path(), 0.2).expect("a listing"));
    // Each class has at least one image in each part.
    let count = |fraction| Listing::open(folder.path(), fraction).expect("a listing").validation.len();
    assert_eq!((count(0.001), count(0.999)), (3, 27));
}

#[test]
fn results_do_not_depend_on_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    for i in 0..13_u8 {
        let image = RgbImage::from_fn(9, 11, |x, y| Rgb([i * 9, (x * 20) as u8, (y * 20) as u8 ^ i]));
        save(&folder.path().join(format!("{}/{i}.png", i % 2)), image);
    }
    let run = |threads: usize| {
        let json = json!({ "kind": "image-folder", "path": folder.path(), "size": 6, "threads": threads });
        let data = config(json).open().expect("data");
        let numbers: Vec<_> = (0..data.train.len()).rev().collect();
        let batch = data.train.batch(&numbers, Some(Key::new(1))).expect("a batch");
        (values(&batch), labels(&batch), data.description.normalization)
    };
    let one = run(1);
    assert_eq!(one, run(3));
    assert_eq!(one, run(64));
}

#[test]
fn statistics_are_those_of_the_training_images() {
    let folder = tempfile::tempdir().expect("a folder");
    part(&folder.path().join("train"), 2);
    part(&folder.path().join("val"), 1);
    let data = config(json!({ "kind": "image-folder", "path": folder.path(), "size": 4 })).open().expect("data");
    let normalization = data.description.normalization.expect("statistics");
    let std = (2.0_f64 / 9.0).sqrt();
    for channel in 0..3 {
        assert!((normalization.mean[channel] - 1.0 / 3.0).abs() < 1e-12, "{normalization:?}");
        assert!((normalization.std[channel] - std).abs() < 1e-12, "{normalization:?}");
    }
}

#[test]
fn folders_without_classes_or_images_are_refused() {
    refused(
        json_of(Path::new("/no/such/images")),
        &["/no/such/images: no such file or folder", "a folder for each class"],
    );
    let folder = tempfile::tempdir().expect("a folder");
    refused(json_of(folder.path()), &["no class folders", "a folder for each class"]);
    save(&folder.path().join("loose.png"), RgbImage::new(4, 4));
    refused(json_of(folder.path()), &["no class folders"]);
    fs::create_dir(folder.path().join("empty")).expect("makes a folder");
    refused(json_of(folder.path()), &["empty: holds no image that can be read, but no files"]);
    save(&folder.path().join("empty/only.png"), RgbImage::new(4, 4));
    refused(json_of(folder.path()), &["data.path", "none is left for validation"]);
    part(&folder.path().join("train"), 1);
    refused(json_of(folder.path()), &["has train/, but neither val/ nor test/"]);
    save(&folder.path().join("val/dog/1.png"), RgbImage::new(4, 4));
    refused(json_of(folder.path()), &["val/dog", "no such class in train/"]);
}

#[test]
fn undecodable_image_is_named_before_training() {
    let folder = tempfile::tempdir().expect("a folder");
    part(folder.path(), 3);
    let path = folder.path().join("bee/1.bmp");
    write(&path, "no image at all");
    for verify in [true, false] {
        let mut json = json_of(folder.path());
        json["verify"] = verify.into();
        refused(json, &["bee/1.bmp", "cannot be decoded as an image", "1 of "]);
    }
}

#[test]
fn truncated_image_is_found_by_verification_or_named_by_the_batch() {
    let folder = tempfile::tempdir().expect("a folder");
    part(&folder.path().join("train"), 2);
    part(&folder.path().join("val"), 1);
    let path = folder.path().join("val/cat/0.png");
    save(&path, RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8])));
    let bytes = fs::read(&path).expect("reads");
    write(&path, &bytes[..bytes.len() / 2]);
    refused(json_of(folder.path()), &["val/cat/0.png", "cannot be decoded as an image"]);

    let mut json = json_of(folder.path());
    json["verify"] = false.into();
    let data = config(json).open().expect("headers are whole");
    let error = data.validation.batch(&[0, 1, 2], None).expect_err("cut short").to_string();
    assert!(error.contains("val/cat/0.png"), "{error}");
}

#[test]
fn options_out_of_range_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    part(folder.path(), 3);
    for (key, value, part) in [
        ("size", json!(0), "data.size"),
        ("limit", json!(0), "data.limit"),
        ("threads", json!(0), "data.threads"),
        ("validation_fraction", json!(1.0), "between 0 and 1"),
        ("validation_fraction", json!(0.0), "between 0 and 1"),
    ] {
        let mut json = json_of(folder.path());
        json[key] = value;
        refused(json, &[part]);
    }
    part(&folder.path().join("train"), 1);
    part(&folder.path().join("val"), 1);
    let mut json = json_of(folder.path());
    json["validation_fraction"] = 0.5.into();
    refused(json, &["data.validation_fraction", "leave it out"]);
}

#[test]
fn images_below_class_folders_are_taken_and_folders_of_the_system_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    part(&folder.path().join("train"), 2);
    part(&folder.path().join("val"), 1);
    save(&folder.path().join("train/ant/more/9.png"), RgbImage::new(4, 4));
    for system in ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"] {
        save(&folder.path().join("train").join(system).join("0.png"), RgbImage::new(4, 4));
        save(&folder.path().join("train/bee").join(system).join("0.png"), RgbImage::new(4, 4));
    }
    let listing = Listing::open(folder.path(), 0.1).expect("a listing");
    assert_eq!((listing.class_names.len(), listing.train.len()), (3, 7));
    assert!(listing.train.iter().any(|(file, class)| file.ends_with("ant/more/9.png") && *class == 0));
}

#[test]
fn images_of_a_format_that_cannot_be_read_are_left_out_with_a_note() {
    let folder = tempfile::tempdir().expect("a folder");
    part(&folder.path().join("train"), 2);
    part(&folder.path().join("val"), 1);
    write(&folder.path().join("train/bee/b.HEIC"), "x");
    write(&folder.path().join("train/bee/more/a.heic"), "x");
    write(&folder.path().join("val/bee/a.txt"), "x");
    let data = config(json_of(folder.path())).open().expect("data");
    assert_eq!(
        data.notes,
        [
            "images: 9 in 3 classes (ant 3, bee 3, cat 3): 3 bmp, 6 png; left out: 1 txt in val/bee, 2 heic in train/bee (for heic convert them to png or jpg)"
        ]
    );
    // A score of some of the images would be another score.
    let folder = folder.path().join("train");
    let error = data.description.open_labelled(&folder).err().expect("refused").to_string();
    assert!(error.contains("train: 2 images in it have a format that cannot be read (heic)"), "{error}");
}

/// Returns a JPEG file of these pixels with a segment of this marker after the one that the encoder begins with.
fn jpeg_with(image: &RgbImage, marker: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Jpeg).expect("encodes");
    let bytes = bytes.into_inner();
    assert!(bytes.starts_with(&[0xff, 0xd8, 0xff, 0xe0]) && bytes[6..].starts_with(b"JFIF\0"));
    let (start, rest) = bytes.split_at(4 + usize::from(bytes[5]));
    let length = (content.len() as u16 + 2).to_be_bytes();
    [start, &[0xff, marker], &length, content, rest].concat()
}

/// Makes a folder whose class `a` has this file, and returns the first training image's values at 2 × 2 pixels.
fn read_jpeg(bytes: &[u8]) -> Vec<f32> {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("train/a/x.jpg"), bytes);
    write(&folder.path().join("val/a/x.jpg"), bytes);
    let json = json!({ "kind": "image-folder", "path": folder.path(), "size": 2, "normalize": false });
    values(&config(json).open().expect("data").train.batch(&[0], None).expect("a batch"))
}

#[test]
fn exif_orientation_is_counted_and_can_be_switched_off_also_for_the_trained_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("train/a/x.jpg");
    write(&file, include_bytes!("images/exif.jpg"));
    write(&folder.path().join("val/a/x.jpg"), include_bytes!("images/exif.jpg"));
    for (on, is_red) in [(true, 0.0), (false, 1.0)] {
        let mut json = json_of(folder.path());
        (json["size"], json["exif_orientation"]) = (16.into(), on.into());
        let data = config(json.clone()).open().expect("data");
        assert_eq!(data.notes[0].contains("EXIF orientation turns 2 of them"), on, "{:?}", data.notes);
        // The upper left square is red in the file, and is turned to the right.
        let saved = serde_json::from_value(serde_json::to_value(&data.description).expect("json"));
        let saved: Description = saved.expect("a description");
        let inputs = saved.read_images(std::slice::from_ref(&file)).expect("inputs").flatten_all();
        let validation = config(json).open_validation(&saved).expect("validation");
        let labelled = saved.open_labelled(folder.path()).expect("labelled");
        let mut sets: Vec<Vec<f32>> = [&data.train, &data.validation, &validation, &labelled]
            .map(|set| values(&set.batch(&[0], None).expect("a batch")))
            .into();
        sets.push(inputs.and_then(|t| t.to_vec1()).expect("values"));
        for values in sets {
            assert!((values[2 * 16 + 2] - is_red).abs() < 0.02, "{on}: {}", values[2 * 16 + 2]);
        }
    }
}

#[test]
fn resized_crops_are_parts_of_the_whole_image() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in ["train/a/x.png", "val/a/x.png"] {
        save(&folder.path().join(path), RgbImage::from_fn(200, 100, |x, y| Rgb([x as u8, 2 * y as u8, 0])));
    }
    let set = |augment: serde_json::Value| {
        let mut json = json_of(folder.path());
        (json["size"], json["augment"]) = (8.into(), augment);
        config(json).open().expect("data")
    };
    let data = set(json!({ "resized_crop": [0.1, 0.3] }));
    assert_eq!(
        values(&data.train.batch(&[0], None).expect("a batch")),
        values(&data.validation.batch(&[0], None).expect("a batch"))
    );
    let mut left = Vec::new();
    for seed in 0..40 {
        let values = values(&data.train.batch(&[0], Some(Key::new(seed))).expect("a batch"));
        let (first, last, bottom) = (values[0] * 255.0, values[7] * 255.0, values[64 + 56] * 255.0 / 2.0);
        // The middles of the first and last pixel are a sixteenth of the sides from the edges.
        let (width, height) = ((last - first) * 8.0 / 7.0, (bottom - values[64] * 255.0 / 2.0) * 8.0 / 7.0);
        let (area, ratio) = (width * height / 20_000.0, width / height);
        assert!((0.09..0.32).contains(&area) && (0.7..1.4).contains(&ratio), "{width} × {height}");
        left.push(first - width / 16.0);
    }
    // Also outside of the central square, which begins at 50.
    assert!(left.iter().any(|x| *x < 40.0) && left.iter().any(|x| *x > 110.0), "{left:?}");
    // The other switches do not change the rectangle.
    let flipped = set(json!({ "resized_crop": [0.1, 0.3], "flip": true }));
    let both = (0..20).map(|seed| {
        [&data, &flipped].map(|data| values(&data.train.batch(&[0], Some(Key::new(seed))).expect("a batch")))
    });
    for [plain, flipped] in both {
        let mirrored: Vec<f32> = plain.chunks(8).flat_map(|row| row.iter().rev().copied()).collect();
        assert!(flipped == plain || flipped == mirrored);
    }
    for bad in [json!([0.0, 1.0]), json!([0.5, 0.1]), json!([0.5, 1.5])] {
        let json = json!({ "kind": "image-folder", "path": "x", "size": 8, "augment": { "resized_crop": bad } });
        let error = serde_json::from_value::<crate::data::DataConfig>(json).expect_err("bad shares").to_string();
        assert!(error.contains("the least and the largest share"), "{error}");
    }
}

#[test]
fn jfif_marker_decides_about_colours_before_an_adobe_marker() {
    let image = RgbImage::from_pixel(16, 16, Rgb([200, 40, 90]));
    let plain = read_jpeg(&jpeg_with(&image, 0xfe, b"a comment"));
    assert!((plain[0] - 200.0 / 255.0).abs() < 0.02, "{plain:?}");
    // Transform 0: the colours are RGB. They are YCbCr, as the JFIF segment says.
    assert_eq!(read_jpeg(&jpeg_with(&image, 0xee, b"Adobe\0\x64\0\0\0\0\0")), plain);
}

#[test]
fn jpeg_that_was_cut_short_is_refused() {
    let image = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8]));
    let whole = jpeg_with(&image, 0xfe, b"a comment");
    for length in [whole.len() * 3 / 5, whole.len() - 2, 10, 22, 25] {
        let folder = tempfile::tempdir().expect("a folder");
        write(&folder.path().join("train/a/broken.jpg"), &whole[..length]);
        write(&folder.path().join("val/a/x.jpg"), &whole);
        refused(json_of(folder.path()), &["train/a/broken.jpg", "the JPEG file is cut short", "no end marker"]);
    }
    // Bytes after the end do no harm.
    assert_eq!(read_jpeg(&[&whole[..], &[0xff, 0, 7]].concat()), read_jpeg(&whole));
}

#[test]
#[cfg(unix)]
fn folders_that_link_to_each_other_are_listed_once() {
    let folder = tempfile::tempdir().expect("a folder");
    part(&folder.path().join("train"), 4);
    part(&folder.path().join("val"), 1);
    let bee = folder.path().join("train/bee");
    for name in ["a", "b"] {
        std::os::unix::fs::symlink(&bee, bee.join(name)).expect("links");
    }
    assert_eq!(config(json_of(folder.path())).open().expect("data").train.len(), 12);
}
