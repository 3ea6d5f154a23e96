//! FIFOs, devices, directories and endless files in place of a model's files.

use std::{fs, os::unix::fs::symlink, path::Path, sync::mpsc, thread, time::Duration};

use eka::{
    device_spec::Verify,
    model::{Scope, check_directory},
    text::Text,
};

use crate::support::{
    files::make_fifo,
    model_folder::Folder,
    program::{argument, run, text},
};

/// The files of a model folder that the server and the worker read.
const FILES: [&str; 9] = [
    "eka.json",
    "model.onnx",
    "model.onnx.data",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
];

/// Everything that is not a regular file, and how it is made.
type Special = (&'static str, fn(&Path));

const OTHERS: [Special; 4] = [
    ("a FIFO", make_fifo),
    ("a device", |path| symlink("/dev/zero", path).unwrap()),
    ("a directory", |path| fs::create_dir(path).unwrap()),
    ("a file of a terabyte", |path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap()),
];

/// Opens all of a model but ONNX Runtime's part; `None` when that does not end.
fn open(dir: &Path) -> Option<Result<(), String>> {
    let (done, result) = mpsc::channel();
    let dir = dir.to_path_buf();
    thread::spawn(move || {
        let checked = check_directory(&dir, Verify::Size, Scope::Weights).map_err(|e| e.to_string());
        let opened = checked.and_then(|()| Text::open(&dir, "model").map(drop).map_err(|e| e.to_string()));
        done.send(opened)
    });
    result.recv_timeout(Duration::from_secs(60)).ok()
}

#[test]
fn fifos_devices_directories_and_endless_files_are_rejected_everywhere() {
    let folder = Folder::new();
    fs::create_dir_all(folder.file("additional_chat_templates")).unwrap();
    assert_eq!(open(&folder.path()), Some(Ok(())));
    for name in FILES {
        let (path, aside) = (folder.file(name), folder.file("aside"));
        let was_there = fs::rename(&path, &aside).is_ok();
        for (what, place) in OTHERS {
            place(&path);
            let problem = open(&folder.path()).expect("it does not end").expect_err(what);
            assert!(problem.contains(name), "{what} as {name}: {problem}");
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        }
        if was_there {
            fs::rename(&aside, &path).unwrap();
        }
    }
}

#[test]
fn keys_certificates_and_settings_must_be_regular_files() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    make_fifo(&fifo);
    let fifo = argument(&fifo);
    for arguments in [
        vec!["serve".to_owned(), "--config".into(), fifo.into()],
        vec!["serve".into(), "--set".into(), format!("auth.keys_file={fifo}")],
        vec![
            "serve".into(),
            "--set".into(),
            format!("tls.cert_file={fifo}"),
            "--set".into(),
            format!("tls.key_file={fifo}"),
        ],
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = run(&[&arguments[..], &["--port", "0", "--print-config"]].concat());
        let refused = if refused.status.success() {
            run(&[&arguments[..], &["--port", "0"]].concat())
        } else {
            refused
        };
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains("a FIFO, expected a regular file"), "{error}");
    }
}
