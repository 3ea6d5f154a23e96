use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;

use super::*;

const SHAPE: CacheShape = CacheShape { layers: 2, heads: 3, row: 8, kind: CacheDtype::Float16 };
const TOKENS: [u32; 5] = [4, 8, 15, 16, 23];
/// Of one layer's keys.
const TENSOR: usize = 3 * 5 * 8 * 2;

fn head() -> PromptInfo {
    let (model, identity) = ("demo".into(), "abc".into());
    PromptInfo { model, identity, saved_at: 1_795_000_000, tokens: TOKENS.len(), shape: SHAPE }
}

fn expected() -> ExpectedPrompt {
    ExpectedPrompt {
        model: "demo".into(),
        identity: "abc".into(),
        shape: SHAPE,
        capacity: 64,
        vocabulary: 50,
    }
}

fn name(text: &str) -> PromptName {
    PromptName::try_from(text).unwrap()
}

fn tensor(number: usize) -> Vec<u8> {
    (0..TENSOR).map(|i| u8::try_from((i * 7 + number * 31) % 251).unwrap()).collect()
}

fn save(dir: &Path, called: &str) -> PathBuf {
    let mut writer = PromptWriter::create(dir, &name(called), head(), &TOKENS).unwrap();
    for number in 0..4 {
        writer.append(&tensor(number)).unwrap();
    }
    let (path, bytes) = (PromptStore::new(dir).path(&name(called)), writer.finish().unwrap());
    assert_eq!(fs::metadata(&path).unwrap().len(), bytes.0);
    path
}

/// Reads a file to its end as a worker does.
fn load(path: &Path, expected: &ExpectedPrompt) -> Result<(Vec<u32>, Vec<Vec<u8>>), PromptStoreError> {
    let mut reader = PromptReader::open(path)?;
    let tokens = reader.tokens(expected)?;
    let bytes = expected.shape.tensor_bytes(tokens.len()).unwrap();
    let mut tensors = vec![vec![0; bytes]; 2 * expected.shape.layers];
    tensors.iter_mut().try_for_each(|tensor| reader.tensor(tensor))?;
    reader.finish()?;
    Ok((tokens, tensors))
}

#[test]
fn a_saved_prompt_is_restored_and_is_valid_safetensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), "greeting");
    let (tokens, tensors) = load(&path, &expected()).unwrap();
    assert_eq!(tokens, TOKENS);
    assert!(tensors.iter().enumerate().all(|(number, found)| *found == tensor(number)));
    let file = fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.len(), 5);
    let values = theirs.tensor("past_key_values.1.value").unwrap();
    assert_eq!((values.dtype(), values.shape()), (safetensors::Dtype::F16, &[3, 5, 8][..]));
    assert_eq!(values.data(), tensor(3));
}

#[cfg(unix)]
#[test]
fn only_the_owner_may_read_it() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("deep/down");
    let path = save(&place, "greeting");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&place)), (0o600, 0o700));
}

#[test]
fn the_store_lists_its_prompts_and_reports_unusable_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = PromptStore::new(dir.path().join("none"));
    assert!(
        store.list().unwrap().is_empty()
            && matches!(store.delete(&name("a")), Err(PromptStoreError::Missing))
    );
    let store = PromptStore::new(dir.path());
    save(dir.path(), "b");
    save(dir.path(), "a");
    fs::write(store.path(&name("broken")), "no such file").unwrap();
    fs::write(dir.path().join("notes.txt"), "").unwrap();
    fs::write(dir.path().join(".hidden.safetensors"), "").unwrap();
    let listed = store.list().unwrap();
    let names: Vec<_> = listed.iter().map(|one| (one.name.as_str(), one.found.is_ok())).collect();
    assert_eq!(names, [("a", true), ("b", true), ("broken", false)]);
    assert_eq!(listed[0].found.as_ref().unwrap().0, head());
    store.delete(&name("broken")).unwrap();
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn saving_again_replaces_the_file_and_one_that_is_not_finished_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), "a");
    let before = fs::read(&path).unwrap();
    drop(PromptWriter::create(dir.path(), &name("a"), head(), &TOKENS).unwrap());
    assert_eq!((fs::read(&path).unwrap(), fs::read_dir(dir.path()).unwrap().count()), (before, 1));
    // Files of killed workers: an old one and a new one.
    let left = [".a.old.part", ".a.new.part"].map(|name| dir.path().join(name));
    left.iter().for_each(|path| fs::write(path, "half").unwrap());
    let old = fs::File::options().write(true).open(&left[0]).unwrap();
    old.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
    save(dir.path(), "a");
    assert_eq!(left.map(|path| path.exists()), [false, true]);
}

#[test]
fn each_thing_that_is_otherwise_than_expected_has_a_sentence_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), "a");
    let kind = CacheDtype::Int8;
    let others = [
        (
            ExpectedPrompt { identity: "abd".into(), ..expected() },
            "computed by another export of the model (demo)",
        ),
        (ExpectedPrompt { shape: CacheShape { kind, ..SHAPE }, ..expected() }, "are float16, expected int8"),
        (ExpectedPrompt { shape: CacheShape { layers: 3, ..SHAPE }, ..expected() }, "are [2, 3, 8]"),
        (ExpectedPrompt { shape: CacheShape { row: 4, ..SHAPE }, ..expected() }, "expected [2, 3, 4]"),
        (
            ExpectedPrompt { capacity: 5, ..expected() },
            "it has 5 tokens, which leaves no room in a context length of 5 tokens",
        ),
        (ExpectedPrompt { vocabulary: 23, ..expected() }, "token id 23"),
    ];
    for (expected, phrase) in others {
        let refused = load(&path, &expected).unwrap_err();
        assert!(refused.to_string().contains(phrase) && !refused.is_io(), "{refused}");
    }
    let whole = fs::read(&path).unwrap();
    let with = |content: &[u8]| {
        fs::write(&path, content).unwrap();
        load(&path, &expected()).unwrap_err().to_string()
    };
    for cut in [0, 7, 8, 100, whole.len() - 1] {
        assert!(with(&whole[..cut]).contains("truncated or corrupt"), "{cut}: {}", with(&whole[..cut]));
    }
    assert!(with(&[&whole[..], b"."].concat()).contains("truncated or corrupt"));
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert!(with(&damaged).contains("SHA-256"), "{}", with(&damaged));
    let text = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        [&whole[..at], to.as_bytes(), &whole[at + to.len()..]].concat()
    };
    assert!(with(&text(r#"prompt":"1"#, r#"prompt":"2"#)).contains("format 2"));
    assert!(with(&text("eka_saved", "eka_other")).contains("not marked as a saved prompt"));
    assert!(with(&text("past_key_values.1.key", "past_key_values.7.key")).contains("tensors"));
    assert!(with(&[0xff; 4096]).contains("its length is 18446744073709551615 bytes, more than 1048576"));
    assert!(matches!(load(&dir.path().join("none"), &expected()), Err(PromptStoreError::Missing)));
    let directory = load(dir.path(), &expected()).unwrap_err();
    assert!(directory.is_io(), "{directory}");
}

/// A file with some bytes changed, left out or put in.
fn mutated() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the file holds: never a panic, never rows that were not written.
    #[test]
    fn a_damaged_file_is_refused_or_has_the_original_content(changes in mutated(), in_header in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = save(dir.path(), "a");
        let mut bytes = fs::read(&path).unwrap();
        for (place, byte, how) in changes {
            let length = if in_header { bytes.len().min(900) } else { bytes.len() };
            let at = place.index(length.max(1)).min(bytes.len().saturating_sub(1));
            match how {
                0 if !bytes.is_empty() => bytes[at] = byte,
                // A digit for a digit: headers that are still JSON.
                1 if !bytes.is_empty() && bytes[at].is_ascii_digit() => bytes[at] = b'0' + byte % 10,
                2 => bytes.insert(at, byte),
                _ if bytes.len() > 1 => { bytes.remove(at); }
                _ => {}
            }
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok((tokens, tensors)) = load(&path, &expected()) {
            prop_assert_eq!(tokens, TOKENS);
            for (number, found) in tensors.into_iter().enumerate() {
                prop_assert_eq!(found, tensor(number));
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0u64..400) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        fs::write(&path, [&length.to_le_bytes()[..], &bytes].concat()).unwrap();
        prop_assert!(PromptReader::open(&path).is_err());
    }
}
