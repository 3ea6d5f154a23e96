//! ONNX Runtime's Linux builds send telemetry and store an identifier by default; eka turns that off.

use std::{fs, path::Path};

use crate::support::program::{argument, cache_setting, eka, root, text};

/// By these it knows machines of continuous integration, where it is silent by itself.
const OTHER_REASONS: [&str; 12] = [
    "ORT_DISABLE_TELEMETRY",
    "ORT_RUNNING_UNIT_TESTS",
    "CI",
    "GITHUB_ACTIONS",
    "TF_BUILD",
    "GITLAB_CI",
    "TRAVIS",
    "CIRCLECI",
    "APPVEYOR",
    "JENKINS_URL",
    "TEAMCITY_VERSION",
    "BUILD_ID",
];

fn files(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        found.push(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            files(&entry.path(), found);
        }
    }
}

#[test]
fn onnx_runtime_writes_no_telemetry_files() {
    let home = tempfile::tempdir().unwrap();
    let model = root().join("models/demo");
    for allowed in [None, Some("0"), Some("1")] {
        let cache = cache_setting();
        let mut generate = eka(&["generate", "Once", "--raw", "--max-new-tokens", "2", "--set", &cache]);
        generate.args(["--model", argument(&model)]);
        for name in OTHER_REASONS {
            generate.env_remove(name);
        }
        if let Some(value) = allowed {
            generate.env("ORT_DISABLE_TELEMETRY", value);
        }
        for name in ["HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "TMPDIR"] {
            generate.env(name, home.path());
        }
        let output = generate.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut left = Vec::new();
        files(home.path(), &mut left);
        assert_eq!(left, [""; 0], "ORT_DISABLE_TELEMETRY={allowed:?}");
    }
}
