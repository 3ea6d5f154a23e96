//! Tests import helpers from `tests/support` only, never from another test file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::program::root;

/// The modules that a test may import; `soak` and `simulation` are what `bench/pool_soak` and `bench/cluster_simulation` share.
const SHARED: [&str; 3] = ["support", "soak", "simulation"];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    // The fuzz targets are a separate crate, and the tests of the layer map hold source as text.
    let dirs = dirs.iter().filter(|dir| !dir.ends_with("fuzz") && !dir.ends_with("architecture"));
    let files = files.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "rs"));
    files.chain(dirs.flat_map(|dir| sources(dir))).collect()
}

/// The modules of this crate that `source` names, as `crate::name` or in `use crate::{…}`.
fn imports(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in source.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            continue;
        };
        let mut depth = 0;
        for part in group.split_inclusive(['{', '}', ',']) {
            let name = part.trim().split([':', ',', '{', '}', ' ']).next().unwrap();
            if depth == 0 && !name.is_empty() {
                names.push(name.into());
            }
            match part.chars().last() {
                Some('{') => depth += 1,
                Some('}') if depth == 0 => break,
                Some('}') => depth -= 1,
                _ => {}
            }
        }
    }
    names
}

#[test]
fn test_files_import_helpers_only_from_support() {
    for file in sources(&root().join("tests")) {
        if file.ends_with("layout.rs") {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        for name in imports(&source) {
            assert!(SHARED.contains(&name.as_str()), "{}: imports {name}", file.display());
        }
        let is_in_support = file.parent().is_some_and(|folder| folder.ends_with("support"));
        assert!(
            is_in_support || !source.contains("\nuse super::"),
            "{}: imports from a sibling",
            file.display()
        );
    }
}

#[test]
fn imports_are_found_in_paths_and_in_groups() {
    assert_eq!(imports("use crate::support::a;\ncrate::other::f()"), ["support", "other"]);
    assert_eq!(
        imports("use crate::{\n    soak,\n    support::{a::{b, c}, d},\n    third,\n};"),
        ["soak", "support", "third"]
    );
}
