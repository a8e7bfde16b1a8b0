//! Lists the images in folders of class folders, and what is left out.

mod entries;
mod left_out;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use interlock::{Error, Key, Result};
use rand::Rng;

use self::entries::{Kind, entries, images_in, is_folder_of_folders};
pub use self::{entries::image_files, left_out::LeftOut};
use super::formats::{self, FORMATS};

/// The names of the folder of validation images beside `train`, in order of preference.
const VALIDATION: [&str; 4] = ["val", "valid", "validation", "test"];

/// The files of a folder of class folders, split into training and validation.
///
/// Classes are numbered in the order of their folders' names. Within a part, examples are numbered by taking one image of each
/// class in turn, so that the first `n` are as balanced as the classes allow.
///
/// Bytes of a folder's name that are not UTF-8 are written `\xff` in the name of the class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The names of the classes.
    pub class_names: Vec<String>,
    /// The training images and their classes.
    pub train: Vec<(PathBuf, u32)>,
    /// The validation images and their classes.
    pub validation: Vec<(PathBuf, u32)>,
    /// What was left out. Hidden files and folders, and those that systems make for themselves, are not counted.
    pub left_out: Vec<LeftOut>,
}

/// A class folder.
struct Class {
    name: String,
    /// Its images in the order of their paths; not empty.
    files: Vec<PathBuf>,
}

impl Listing {
    /// Lists the images of `path`, from its folders `train/` and `val/` or, if there are none, split into two parts.
    ///
    /// `path` is divided if it has a folder `train` and one of `val`, `valid`, `validation` and `test`, of which the first is taken. One of them
    /// alone is a class if it holds images itself.
    ///
    /// A split gives `fraction` of each class, and at least one image of each class with two or more, to validation: the images whose names have the
    /// smallest hashes, so that the split depends neither on the order of the files nor on a seed.
    ///
    /// # Errors
    /// If a folder cannot be read, a class has no image, two classes have the same name, validation has a class that training lacks, or it is not
    /// clear whether `train` is a class.
    pub fn open(path: &Path, fraction: f64) -> Result<Self> {
        let mut left_out = Vec::new();
        let Some((train, validation)) = parts(path)? else {
            let classes = classes(path, "", &mut left_out)?;
            return Self::split(classes, fraction).map(|listing| Self { left_out, ..listing });
        };
        for (folder, _) in entries(path)?
            .iter()
            .filter(|(folder, kind)| *kind == Kind::Folder && *folder != train && *folder != validation)
        {
            left_out.push(LeftOut::Folder(name_of(folder)));
        }
        let held_out = classes(&validation, &name_of(&validation), &mut left_out)?;
        let train = classes(&train, "train", &mut left_out)?;
        let class_names: Vec<String> = train.iter().map(|class| class.name.clone()).collect();
        let (known, unknown): (Vec<_>, Vec<_>) =
            held_out.into_iter().partition(|class| class_names.binary_search(&class.name).is_ok());
        if let Some(first) = unknown.first() {
            let names: Vec<String> = unknown.iter().map(|class| shown(&class.name)).collect();
            return Err(Error::file(
                validation.join(&first.name),
                format!(
                    "there is no such class in train/ ({}); give validation the classes of training, or fewer",
                    names.join(", ")
                ),
            ));
        }
        let number = |class: Class| (class_names.binary_search(&class.name).unwrap_or_default(), class.files);
        let validation = in_turn(known.into_iter().map(number).collect());
        let train = in_turn(train.into_iter().map(|class| class.files).enumerate().collect());
        Ok(Self { class_names, train, validation, left_out })
    }

    /// Lists the validation images of `path` for a model that was trained on `class_names`, whose order gives the classes their numbers.
    ///
    /// If there is a validation folder, only that is read. What [`Self::open`] leaves out is left out.
    ///
    /// # Errors
    /// If a folder cannot be read, or has a class that has no image or is not among `class_names`.
    pub fn open_validation(path: &Path, fraction: f64, class_names: &[String]) -> Result<Vec<(PathBuf, u32)>> {
        if let Some(folder) = validation_folder(path, class_names) {
            return numbered(&folder, classes(&folder, "", &mut Vec::new())?, class_names);
        }
        let listing = Self::split(classes(path, "", &mut Vec::new())?, fraction)?;
        let mut held_out: Vec<_> =
            listing.class_names.into_iter().map(|name| Class { name, files: Vec::new() }).collect();
        listing.validation.into_iter().for_each(|(file, class)| held_out[class as usize].files.push(file));
        numbered(path, held_out, class_names)
    }

    /// Lists the images of `path` for a model that was trained on `class_names`: those of its validation folder, or if there is none, all images of
    /// its class folders.
    ///
    /// # Errors
    /// As [`Self::open_validation`], and if there are images of a format that cannot be read: the scores would be those of some images only.
    pub fn open_labelled(path: &Path, class_names: &[String]) -> Result<Vec<(PathBuf, u32)>> {
        let folder = validation_folder(path, class_names).unwrap_or_else(|| path.to_owned());
        let mut left_out = Vec::new();
        let classes = classes(&folder, "", &mut left_out)?;
        left_out::refuse_images(&folder, &left_out)?;
        numbered(&folder, classes, class_names)
    }

    fn split(classes: Vec<Class>, fraction: f64) -> Result<Self> {
        let (mut class_names, mut train, mut validation) = (Vec::new(), Vec::new(), Vec::new());
        for (class, Class { name, mut files }) in classes.into_iter().enumerate() {
            let hash = |file: &PathBuf| {
                let file = file.file_name().unwrap_or_default().to_string_lossy();
                Key::new(0).named(&name).named(&file).stream().next_u64()
            };
            files.sort_by_cached_key(|file| (hash(file), file.clone()));
            let wanted = (files.len() as f64 * fraction).round() as usize;
            let count = wanted.max(1).min(files.len() - 1);
            let mut rest = files.split_off(count);
            files.sort();
            rest.sort();
            if count > 0 {
                validation.push((class, files));
            }
            train.push((class, rest));
            class_names.push(name);
        }
        if validation.is_empty() {
            return Err(Error::invalid(
                "data.path",
                "no class has a second image, so none is left for validation",
                "give at least one class two images, or folders train/ and val/",
            ));
        }
        Ok(Self { class_names, train: in_turn(train), validation: in_turn(validation), left_out: Vec::new() })
    }

    /// Returns a line about the images that were taken, by class and by ending, and about what was left out. `turned` of them are turned when they are
    /// read.
    pub(super) fn summary(&self, turned: usize) -> String {
        let mut counts = vec![0_usize; self.class_names.len()];
        let mut endings = BTreeMap::<String, usize>::new();
        for (file, class) in self.train.iter().chain(&self.validation) {
            counts[*class as usize] += 1;
            *endings.entry(entries::ending(file)).or_default() += 1;
        }
        let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
        let each = match counts.len() {
            ..=12 => {
                let each = self.class_names.iter().zip(&counts).map(|(name, count)| format!("{} {count}", shown(name)));
                each.collect::<Vec<_>>().join(", ")
            }
            _ => format!("{least} to {most} in each"),
        };
        let classes = if counts.len() == 1 { "class" } else { "classes" };
        let sum: usize = counts.iter().sum();
        let endings: Vec<String> = endings.iter().map(|(ending, count)| format!("{count} {ending}")).collect();
        let mut line = format!("images: {sum} in {} {classes} ({each}): {}", counts.len(), endings.join(", "));
        if turned > 0 {
            line += &format!("; EXIF orientation turns {turned} of them");
        }
        if !self.left_out.is_empty() {
            line += &format!("; left out: {}", left_out::described(&self.left_out));
        }
        line
    }
}

/// The end of errors about a folder.
fn folder_remedy() -> String {
    format!(
        "expected a folder for each class with its images ({FORMATS}), either directly, or in train/ and val/ (or valid/, validation/, test/)"
    )
}

/// Returns the folders of training and of validation images in `path`, if it is divided into them.
///
/// # Errors
/// If it is not clear whether a folder `train`, `val`, … is a class or such a part.
pub(super) fn parts(path: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    let train = path.join("train");
    let validation: Vec<PathBuf> =
        VALIDATION.iter().map(|name| path.join(name)).filter(|folder| folder.is_dir()).collect();
    let as_class = |folder: &Path| {
        let name = name_of(folder);
        format!("if {name} is a class, put its images directly into {name}/, beside the folders of the other classes")
    };
    match (train.is_dir(), validation.first()) {
        (true, Some(validation)) => {
            let inside = entries(&train)?;
            if !inside.is_empty() && inside.iter().all(|(_, kind)| *kind != Kind::Folder) {
                return Err(Error::file(
                    path,
                    format!(
                        "has train/ and {0}/, and train/ holds files but no class folders; put a folder for each class into train/ and {0}/, \
                         or, if these two are classes, give one of them another name",
                        name_of(validation)
                    ),
                ));
            }
            Ok(Some((train, validation.clone())))
        }
        (true, None) => {
            let is_only = entries(path)?.iter().filter(|(_, kind)| *kind == Kind::Folder).count() == 1;
            if is_only || is_folder_of_folders(&train)? {
                let remedy = folder_remedy();
                let problem = format!("has train/, but neither val/ nor test/; {remedy}; {}", as_class(&train));
                return Err(Error::file(path, problem));
            }
            Ok(None)
        }
        (false, _) => {
            for folder in &validation {
                if is_folder_of_folders(folder)? {
                    let problem = format!("has {}/, but no train/", name_of(folder));
                    return Err(Error::file(path, format!("{problem}; {}; {}", folder_remedy(), as_class(folder))));
                }
            }
            Ok(None)
        }
    }
}

/// Returns the folder of validation images in `path`: one of the usual names that is not a class, or stands beside `train`.
fn validation_folder(path: &Path, class_names: &[String]) -> Option<PathBuf> {
    let is_part = |name: &str| path.join("train").is_dir() || !class_names.iter().any(|class| class == name);
    VALIDATION.iter().filter(|name| is_part(name)).map(|name| path.join(name)).find(|folder| folder.is_dir())
}

/// Gives the classes of `folder` the numbers of their names among `class_names`.
fn numbered(folder: &Path, classes: Vec<Class>, class_names: &[String]) -> Result<Vec<(PathBuf, u32)>> {
    let number = |name: &str| class_names.iter().position(|class| class == name);
    let unknown: Vec<&Class> = classes.iter().filter(|class| number(&class.name).is_none()).collect();
    if let Some(first) = unknown.first() {
        let shown =
            |names: &mut dyn Iterator<Item = &String>| names.map(|name| shown(name)).collect::<Vec<_>>().join(", ");
        return Err(Error::file(
            folder.join(&first.name),
            format!(
                "the model was not trained on a class of this name ({}); its classes are {}: rename or remove the folder",
                shown(&mut unknown.iter().map(|class| &class.name)),
                shown(&mut class_names.iter())
            ),
        ));
    }
    let classes = classes.into_iter().map(|class| (number(&class.name).unwrap_or_default(), class.files)).collect();
    Ok(in_turn(classes))
}

/// Takes one file of each class in turn, until all are taken.
fn in_turn(classes: Vec<(usize, Vec<PathBuf>)>) -> Vec<(PathBuf, u32)> {
    let mut files: Vec<_> = classes
        .into_iter()
        .flat_map(|(class, files)| files.into_iter().enumerate().map(move |(turn, file)| (turn, class, file)))
        .collect();
    files.sort();
    files.into_iter().map(|(_, class, file)| (file, class as u32)).collect()
}

/// Returns the class folders of `folder` in the order of their names, and adds what is left out. `part` is the folder's name in that, or empty.
fn classes(folder: &Path, part: &str, left_out: &mut Vec<LeftOut>) -> Result<Vec<Class>> {
    let (mut classes, mut empty, mut loose) = (Vec::new(), Vec::new(), 0);
    for (path, kind) in entries(folder)? {
        if kind != Kind::Folder {
            loose += usize::from(formats::is_image(&entries::ending(&path)));
            continue;
        }
        let (files, others) = images_in(&path)?;
        let name = name_of(&path);
        let shown = shown(&name);
        let place = if part.is_empty() { shown.clone() } else { format!("{part}/{shown}") };
        if files.is_empty() {
            empty.push((shown, others));
        } else {
            left_out.extend(others.into_iter().map(|(what, count)| LeftOut::Files {
                folder: place.clone(),
                what,
                count,
            }));
            classes.push(Class { name, files });
        }
    }
    if loose > 0 {
        left_out.push(LeftOut::Loose { folder: part.to_owned(), count: loose });
    }
    if !empty.is_empty() {
        return Err(without_images(folder, &empty));
    }
    classes.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(pair) = classes.windows(2).find(|pair| pair[0].name == pair[1].name) {
        let problem = format!("has two folders whose classes would have the name {}; rename one of them", pair[0].name);
        return Err(Error::file(folder, problem));
    }
    if classes.is_empty() {
        return Err(Error::file(folder, format!("holds no class folders; {}", folder_remedy())));
    }
    Ok(classes)
}

/// Returns the error for classes that hold no image, each with the numbers of its other files.
fn without_images(folder: &Path, classes: &[(String, BTreeMap<String, usize>)]) -> Error {
    let others = |others: &BTreeMap<String, usize>| -> String {
        let each: Vec<String> = others.iter().map(|(what, count)| format!("{count} {what}")).collect();
        if each.is_empty() { "no files".to_owned() } else { each.join(", ") }
    };
    let names: Vec<String> = classes.iter().map(|(name, files)| format!("{name} ({})", others(files))).collect();
    let (path, subject) = match classes {
        [(name, _)] => (folder.join(name), format!("holds no image that can be read, but {}", others(&classes[0].1))),
        _ => {
            (folder.to_owned(), format!("{} classes hold no image that can be read: {}", names.len(), names.join(", ")))
        }
    };
    let endings = classes.iter().flat_map(|(_, others)| others.keys().map(String::as_str));
    let mut remedies = formats::remedies(endings);
    remedies.push(format!("{}; remove classes without images", folder_remedy()));
    Error::file(path, format!("{subject}; {}", remedies.join("; ")))
}

/// Returns the name of a folder as text; bytes that are not UTF-8 are written `\xff`.
fn name_of(folder: &Path) -> String {
    let mut name = String::new();
    for chunk in folder.file_name().unwrap_or_default().as_encoded_bytes().utf8_chunks() {
        name += chunk.valid();
        chunk.invalid().iter().for_each(|byte| name += &format!("\\x{byte:02x}"));
    }
    name
}

/// Returns a name for messages: characters that cannot be seen by themselves are written `\u{301}`, so that names that look the same can be told
/// apart.
fn shown(name: &str) -> String {
    let is_plain = |c: char| {
        let joins = matches!(c, '\u{300}'..='\u{36f}' | '\u{1100}'..='\u{11ff}');
        let is_invisible = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        !(c.is_control() || joins || is_invisible)
    };
    name.chars().map(|c| if is_plain(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}
