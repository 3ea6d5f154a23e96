//! `model.onnx.packed`: packed weights in a file, which is used only for the weights that it was made from.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use eka::{
    device::SessionOptions,
    device_spec::{PackedFileChoice, Verify, WeightFormat},
    export::{Layout, Options, Source, Storage, ZeroPoints, export},
    model::{Scope, check_directory},
};

use crate::support::{
    files::{cut, flip},
    models::{OPTIONS, open_with},
    program::root,
};

const PROMPT: [u32; 6] = [5, 9, 2, 31, 17, 8];

fn model(dir: &Path, seed: u64, format: WeightFormat, zero_points: ZeroPoints) {
    let source =
        Source::Random { config: root().join("tests/fixtures/models/qwen3-biases/base/config.json"), seed };
    let weights = Storage { format, zero_points, ..Storage::default() };
    let options = Options { weights, layout: Layout::Eka, ..Options::new(source, dir.into()) };
    export(&options, &()).unwrap();
}

fn logits(dir: &Path, packed_file: PackedFileChoice) -> Vec<f32> {
    open_with(dir, 8, SessionOptions { packed_file, ..OPTIONS }).forward_all(&PROMPT).unwrap()
}

/// The file, once it has its name: that is given in the background.
fn packed(dir: &Path) -> PathBuf {
    let (path, began) = (dir.join("model.onnx.packed"), Instant::now());
    while !path.exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "{} was not made", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    path
}

fn made_at(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn weights_from_the_packed_file_give_the_same_bits() {
    for (format, zero_points) in [
        (WeightFormat::Int4, ZeroPoints::Middle),
        (WeightFormat::Int4, ZeroPoints::PerBlock),
        (WeightFormat::Int8, ZeroPoints::Middle),
        (WeightFormat::Int8, ZeroPoints::PerBlock),
    ] {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("model");
        model(&dir, 3, format, zero_points);
        let expected = logits(&dir, PackedFileChoice::Never);
        // Weights of a few KiB are not worth a file.
        assert_eq!(logits(&dir, PackedFileChoice::Auto), expected);
        assert!(!dir.join("model.onnx.packed").exists());
        assert_eq!(logits(&dir, PackedFileChoice::Always), expected, "{format:?}, when it is made");
        let made = made_at(&packed(&dir));
        assert_eq!(logits(&dir, PackedFileChoice::Always), expected, "{format:?}, when it is read");
        assert_eq!(made_at(&packed(&dir)), made, "it was made again without need");
    }
}

#[test]
fn a_packed_file_of_other_weights_or_a_damaged_one_is_made_again() {
    let place = tempfile::tempdir().unwrap();
    let (dir, other) = (place.path().join("model"), place.path().join("other"));
    model(&dir, 3, WeightFormat::Int4, ZeroPoints::Middle);
    model(&other, 4, WeightFormat::Int4, ZeroPoints::Middle);
    logits(&dir, PackedFileChoice::Always);
    let path = packed(&dir);
    let whole = fs::read(&path).unwrap();

    fs::copy(other.join("model.onnx.data"), dir.join("model.onnx.data")).unwrap();
    let expected = logits(&other, PackedFileChoice::Never);
    assert_eq!(logits(&dir, PackedFileChoice::Always), expected, "weights were replaced");

    let damages: [(&str, &dyn Fn()); 5] = [
        ("cut", &|| cut(&path, 100)),
        ("empty", &|| fs::write(&path, "").unwrap()),
        ("text", &|| fs::write(&path, "not a packed file, but longer than a trailer").unwrap()),
        ("of other weights", &|| fs::write(&path, &whole).unwrap()),
        ("with an index as long as the file", &|| {
            let mut bytes = whole.clone();
            let trailer = bytes.len() - 16;
            bytes[trailer..trailer + 8].copy_from_slice(&(trailer as u64).to_le_bytes());
            fs::write(&path, bytes).unwrap();
        }),
    ];
    for (name, damage) in damages {
        damage();
        assert_eq!(logits(&dir, PackedFileChoice::Always), expected, "{name}");
    }
}

#[test]
fn verification_by_hash_removes_a_packed_file_with_changed_bytes() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("model");
    model(&dir, 3, WeightFormat::Int8, ZeroPoints::Middle);
    let expected = logits(&dir, PackedFileChoice::Always);
    let path = packed(&dir);
    check_directory(&dir, Verify::Hash, Scope::All).unwrap();
    assert!(path.exists());
    flip(&path);
    check_directory(&dir, Verify::Hash, Scope::All).unwrap();
    assert!(!path.exists());
    assert_eq!(logits(&dir, PackedFileChoice::Always), expected);
}

#[test]
fn a_directory_that_cannot_be_written_is_served_without_a_packed_file() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("model");
    model(&dir, 3, WeightFormat::Int4, ZeroPoints::Middle);
    let expected = logits(&dir, PackedFileChoice::Never);
    // A directory in its place: as the superuser, permissions would not stop it.
    fs::create_dir(dir.join("model.onnx.packed")).unwrap();
    assert_eq!(logits(&dir, PackedFileChoice::Always), expected);
    let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().any(|name| name == "model.onnx.packed"), "{left:?}");
}
