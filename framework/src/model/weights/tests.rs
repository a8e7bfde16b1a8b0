//! Tests of weights in memory and in files.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use proptest::{collection::vec, prelude::*};
use safetensors::{Dtype, tensor::TensorView};

use super::{Weights, index::INDEX};
use crate::files::tests::names;

fn weights() -> Weights {
    let tensor = |v: f32| Tensor::new(&[v, v + 1.0], &Device::Cpu).unwrap();
    Weights::of_stages([
        vec![("a.weight".to_owned(), tensor(1.0))],
        vec![("b.weight".to_owned(), tensor(3.0)), ("aux".to_owned(), tensor(5.0))],
    ])
    .with_units_per_stage([3, 1])
}

#[test]
fn saved_weights_are_loaded_from_folder_index_and_shard() {
    let folder = tempfile::tempdir().unwrap();
    weights().save(folder.path()).unwrap();
    for path in [folder.path().to_owned(), folder.path().join(INDEX)] {
        let loaded = Weights::load(&path).unwrap();
        assert!(loaded.names().eq(["a.weight", "aux", "b.weight"]));
        assert_eq!(loaded.units_per_stage(), Some(&[3, 1][..]));
        assert_eq!(loaded["b.weight"].to_vec1::<f32>().unwrap(), [3.0, 4.0]);
    }
    assert_eq!(Weights::load(folder.path().join("model-00001-of-00002.safetensors")).unwrap().len(), 1);
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 3, "two shards, the index and nothing else");
}

#[test]
fn a_save_that_fails_leaves_the_old_weights() {
    let one = |v: f32| ("a.weight".to_owned(), Tensor::new(&[v], &Device::Cpu).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let value = || Weights::load(folder.path()).unwrap()["a.weight"].to_vec1::<f32>().unwrap()[0];
    let new = Weights::of_stages([vec![one(7.0)], vec![("b".to_owned(), one(8.0).1)]]);
    weights().save(folder.path()).unwrap();
    let before = names(folder.path());
    // The second shard cannot be written, then the index.
    for file in ["model-v1-00002-of-00002.safetensors", INDEX] {
        let in_the_way = folder.path().join(format!("{file}.part"));
        fs::create_dir(&in_the_way).unwrap();
        assert!(new.save(folder.path()).is_err());
        fs::remove_dir(&in_the_way).unwrap();
        assert_eq!((value(), names(folder.path())), (1.0, before.clone()));
    }
    new.save(folder.path()).unwrap();
    assert_eq!(value(), 7.0);
    let names_of = |version: &str| [1, 2].map(|shard| format!("model-{version}0000{shard}-of-00002.safetensors"));
    assert_eq!(names(folder.path()), [&names_of("v1-")[..], &[INDEX.to_owned()]].concat());
    // Another number of shards; then the first names are free again.
    Weights::from_iter([one(9.0)]).save(folder.path()).unwrap();
    assert_eq!((value(), names(folder.path()).len()), (9.0, 2));
    weights().save(folder.path()).unwrap();
    assert_eq!((value(), names(folder.path())), (1.0, before));
}

#[test]
fn files_of_others_stay_when_weights_are_saved_over_an_index_that_lists_them() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let listed = r#"{"metadata":{"total_size":0},"weight_map":{"a":"../model-outside.safetensors","b":"other.bin"}}"#;
    for (path, text) in [("model-outside.safetensors", ""), ("inner/other.bin", ""), ("inner/index", listed)] {
        fs::write(folder.path().join(path), text).unwrap();
    }
    fs::rename(inner.join("index"), inner.join(INDEX)).unwrap();
    weights().save(&inner).unwrap();
    assert!(folder.path().join("model-outside.safetensors").exists() && inner.join("other.bin").exists());
    assert_eq!(Weights::load(&inner).unwrap().len(), 3);
    // An index that is damaged is replaced.
    fs::write(inner.join(INDEX), "{").unwrap();
    weights().save(&inner).unwrap();
    assert_eq!(Weights::load(&inner).unwrap().len(), 3);
}

#[test]
fn loaded_weights_are_saved_as_the_same_files() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    weights().save(first.path()).unwrap();
    Weights::load(first.path()).unwrap().save(second.path()).unwrap();
    for file in ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", INDEX] {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert_eq!(read(first.path()), read(second.path()), "{file}");
    }
}

#[test]
fn weights_are_a_map() {
    let mut weights = weights();
    let zero = Tensor::new(&[0.0_f32], &Device::Cpu).unwrap();
    assert!(weights.insert("new", zero.clone()).is_none() && weights.insert("aux", zero).is_some());
    assert_eq!(weights.remove("new").unwrap().dims(), [1]);
    assert!(!weights.contains("new") && weights.get("new").is_none());
    assert_eq!((weights.len(), weights.get("aux").unwrap().dims()), (3, &[1][..]));
    let names: Vec<String> = weights.clone().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().map(String::as_str).eq(weights.iter().map(|(name, _)| name)));
}

#[test]
fn missing_and_broken_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(Weights::load(folder.path()).unwrap_err().to_string().contains(INDEX));
    weights().save(folder.path()).unwrap();
    let shard = folder.path().join("model-00002-of-00002.safetensors");
    fs::write(&shard, b"short").unwrap();
    let error = Weights::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors: the file is damaged"), "{error}");
    // As earlier versions and other programs write it.
    let index = folder.path().join(INDEX);
    let mut without: serde_json::Value = serde_json::from_str(&fs::read_to_string(&index).unwrap()).unwrap();
    without["metadata"]
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !key.ends_with("checksum") && !key.ends_with("checksums"));
    fs::write(&index, without.to_string()).unwrap();
    let error = Weights::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002") && error.contains("not a safetensors file"), "{error}");
    let one: HashMap<&str, Tensor> = HashMap::from([("aux", Tensor::new(&[1.0_f32], &Device::Cpu).unwrap())]);
    candle_core::safetensors::save(&one, &shard).unwrap();
    assert!(Weights::load(folder.path()).unwrap_err().to_string().contains("no tensor b.weight"));
}

/// Writes a safetensors file with these tensors: name, dtype, and bytes of a vector.
fn write_tensors(path: &Path, tensors: &[(&str, Dtype, &[u8])]) {
    let view = |&(name, dtype, bytes): &(&str, Dtype, &'static [u8])| {
        (name.to_owned(), TensorView::new(dtype, vec![bytes.len() * 8 / dtype.bitsize()], bytes).unwrap())
    };
    // The bytes live as long as the test.
    let tensors: Vec<(&str, Dtype, &'static [u8])> =
        tensors.iter().map(|&(name, dtype, bytes)| (name, dtype, &*bytes.to_vec().leak())).collect();
    safetensors::serialize_to_file(tensors.iter().map(view), None, path).unwrap();
}

#[test]
fn folders_of_other_programs_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let tensor = [("a", Dtype::F32, &[0_u8, 0, 128, 63][..])];
    write_tensors(&folder.path().join("model.safetensors"), &tensor);
    let loaded = || Weights::load(folder.path());
    assert_eq!(loaded().unwrap()["a"].to_vec1::<f32>().unwrap(), [1.0]);
    // Indices without metadata, and with anything in them.
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("x.safetensors")).unwrap();
    for metadata in
        ["", r#""metadata": null,"#, r#""metadata": {"total_size": 1.2e9},"#, r#""metadata": {"total_size": "4"},"#]
    {
        let index = format!(r#"{{{metadata} "weight_map": {{"a": "x.safetensors"}}}}"#);
        fs::write(folder.path().join(INDEX), index).unwrap();
        assert_eq!((loaded().unwrap().len(), loaded().unwrap().units_per_stage()), (1, None), "{metadata}");
    }
    for (index, problem) in [
        (r#"{"weight_map": {"a": "../x.safetensors"}}"#, "not in its folder"),
        (r#"{"weight_map": {"a": "/x.safetensors"}}"#, "not in its folder"),
        (r#"{"metadata": {"units_per_stage": "2"}, "weight_map": {"a": "x.safetensors"}}"#, "no list of numbers"),
        (r#"{"metadata": {}}"#, "not an index of safetensors shards: missing field `weight_map`"),
    ] {
        fs::write(folder.path().join(INDEX), index).unwrap();
        let error = loaded().unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    assert!(loaded().unwrap_err().to_string().contains("name one of its files: x.safetensors"));
}

#[test]
fn tensors_of_other_dtypes_are_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let one = &[0_u8, 0, 128, 63][..];
    let tensors =
        [("a", Dtype::F32, one), ("b", Dtype::BOOL, &[1, 0]), ("c", Dtype::U64, &[0; 8]), ("d", Dtype::I8, &[3])];
    let path = folder.path().join("model.safetensors");
    write_tensors(&path, &tensors);
    let loaded = Weights::load(&path).unwrap();
    assert!(loaded.names().eq(["a"]));
    assert!(loaded.unreadable().eq([("b", "BOOL"), ("c", "U64"), ("d", "I8")]));
    let listed = r#"{"weight_map": {"a": "model.safetensors", "c": "model.safetensors"}}"#;
    fs::write(folder.path().join(INDEX), listed).unwrap();
    assert!(Weights::load(folder.path()).unwrap().unreadable().eq([("c", "U64")]));
    let renamed = loaded.renamed(|name| (name != "d").then(|| name.to_uppercase())).unwrap();
    assert!(renamed.names().eq(["A"]) && renamed.unreadable().eq([("B", "BOOL"), ("C", "U64")]));
    assert!(weights().renamed(|_| Some("same".to_owned())).unwrap_err().to_string().contains("both called same"));
}

#[test]
fn files_of_other_kinds_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, words) in [
        ("model.bin", &b"PK\x03\x04..."[..], "pickle"),
        ("zip.safetensors", b"PK\x03\x04...", "pickle"),
        ("old.pth", b"\x80\x02\x8a\nl", "pickle"),
        ("pickle", b"\x80\x04\x95", "torch.load"),
        ("empty", b"", "is empty"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("llama.gguf", b"GGUF\x03\0\0\0", "a GGUF file"),
        ("page", b"\n<!doctype html>", "a web page"),
        ("noise", b"\x01\x02\x03", "not a safetensors file"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = Weights::load(&path).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(words), "{error}");
    }
    let error = Weights::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("name one of its files: zip.safetensors"), "{error}");
    fs::remove_file(folder.path().join("zip.safetensors")).unwrap();
    let error = Weights::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.bin, old.pth is in PyTorch's pickle format"), "{error}");
}

#[cfg(unix)]
#[test]
fn others_may_read_saved_weights_where_they_may_read_new_files() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    weights().save(folder.path()).unwrap();
    let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
    fs::write(folder.path().join("new"), "").unwrap();
    assert_eq!(mode("model-00001-of-00002.safetensors"), mode("new"));
    assert_eq!(mode(INDEX), mode("new"));
    weights().save_file(folder.path().join("one.safetensors")).unwrap();
    assert_eq!(mode("one.safetensors"), mode("new"));
    assert_eq!(Weights::load(folder.path().join("one.safetensors")).unwrap().len(), 3);
}

proptest! {
    #[test]
    fn whatever_is_saved_is_loaded(
        tensors in vec(("[a-z_.\\PC]{1,12}", 0_usize..7, vec(0_usize..4, 0..4), any::<u64>()), 0..12),
        stages in 1_usize..4,
    ) {
        let dtypes = [DType::F32, DType::F64, DType::F16, DType::BF16, DType::U8, DType::U32, DType::I64];
        let mut all: Vec<Vec<(String, Tensor)>> = vec![Vec::new(); stages];
        let mut expected = BTreeMap::new();
        for (at, (name, dtype, dims, seed)) in tensors.into_iter().enumerate() {
            let count: usize = dims.iter().product();
            let values: Vec<f64> = (0..count).map(|i| (seed.wrapping_mul(i as u64 + 1) % 200) as f64).collect();
            let tensor = Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtypes[dtype]).unwrap();
            if expected.insert(name.clone(), tensor.clone()).is_none() {
                all[at % stages].push((name, tensor));
            } else {
                all.iter_mut().flatten().filter(|(other, _)| *other == name).for_each(|(_, old)| *old = tensor.clone());
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let weights = Weights::of_stages(all);
        weights.save(folder.path()).unwrap();
        weights.save_file(folder.path().join("one")).unwrap();
        for loaded in [Weights::load(folder.path()).unwrap(), Weights::load(folder.path().join("one")).unwrap()] {
            prop_assert!(loaded.names().eq(expected.keys().map(String::as_str)));
            for (name, tensor) in &loaded {
                prop_assert_eq!((tensor.dims(), tensor.dtype()), (expected[name].dims(), expected[name].dtype()));
                let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
                prop_assert_eq!(numbers(tensor), numbers(&expected[name]));
            }
        }
    }
}
