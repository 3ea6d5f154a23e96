//! The working directory and directories that all users share are not trusted.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

use crate::support::program::{eka, text};

#[test]
fn without_a_home_a_shared_writable_cache_is_rejected() {
    let temporary = tempfile::tempdir().unwrap();
    let user = fs::metadata(temporary.path()).unwrap().uid();
    let cache = temporary.path().join(format!("eka-{user}"));
    fs::create_dir(&cache).unwrap();
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    for command in [&["serve", "--port", "0"][..], &["generate", "x"]] {
        let mut command = eka(command);
        command.env_remove("HOME").env_remove("XDG_CACHE_HOME").env("TMPDIR", temporary.path());
        let refused = command.output().unwrap();
        let message = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{message}");
        assert!(
            message.contains("every user can write to") && message.contains("set model.cache_dir"),
            "{message}"
        );
        assert!(fs::read_dir(&cache).unwrap().next().is_none(), "nothing was put there");
    }
}

#[test]
fn a_library_in_the_working_directory_is_never_loaded() {
    let here = tempfile::tempdir().unwrap();
    let store = here.path().join(".onnxruntime/cpu");
    fs::create_dir_all(&store).unwrap();
    fs::write(store.join("libonnxruntime.so.1.99.0"), "somebody's download").unwrap();
    let mut doctor = eka(&["doctor"]);
    let message = doctor.current_dir(here.path()).env_remove("ORT_DYLIB_PATH").output().unwrap();
    let message = text(&message.stdout) + &text(&message.stderr);
    assert!(message.contains("onnxruntime") && !message.contains("1.99.0"), "{message}");
}
