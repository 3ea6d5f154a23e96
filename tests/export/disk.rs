//! A full disk: no files are left, and the message has the needed size.

use std::process::{Command, Output};

use crate::support::{
    export_sources::{Sources, finish},
    files::{content, names},
    program::{argument, text},
};

/// Exports to file systems of increasing size, with and without an existing model. Prints a line for each.
const SMALL: &str = r#"
set -eu
dir=$1; shift
for kib in 64 128 256 512 640 704 720 728 736 744 760 800 1600; do
  mount -t tmpfs -o size=${kib}k tmpfs "$dir"
  said=$("$@" 2>&1) && code=0 || code=$?
  printf '%s\t%s\t%s\t%s\n' $kib $code "$(ls -A "$dir" | tr '\n' ' ')" "$(printf %s "$said" | grep '^error' | tr '\n' ' ')"
  if [ $code = 0 ] && [ $kib -lt 1400 ]; then
    before=$(cat "$dir"/model/* | sha256sum)
    said=$("$@" --force 2>&1) && code=0 || code=$?
    [ "$before" = "$(cat "$dir"/model/* | sha256sum)" ] || code=changed
    printf 'again\t%s\t%s\t%s\n' $code "$(ls -A "$dir" | tr '\n' ' ')" "$(printf %s "$said" | grep '^error' | tr '\n' ' ')"
  fi
  umount "$dir"
done
"#;

/// Whether this machine allows mounts in a new namespace.
fn may_mount() -> bool {
    let script = "mount -t tmpfs tmpfs /mnt";
    Command::new("unshare").args(["-rm", "sh", "-c", script]).output().is_ok_and(|done| done.status.success())
}

fn on_small_disks(sources: &Sources) -> Output {
    let export = sources.export(&sources.out("model"), &[]);
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", SMALL, "sh", argument(&sources.path().join("out"))]);
    command.arg(export.get_program()).args(export.get_args());
    finish(&mut command)
}

#[test]
fn a_full_disk_is_an_error_with_both_sizes_and_leaves_no_files() {
    if !may_mount() {
        return; // The test below limits the size of files instead.
    }
    let sources = Sources::new();
    let done = on_small_disks(&sources);
    assert!(done.status.success(), "{}", text(&done.stderr));
    let (mut failed, mut made) = (0, 0);
    for line in text(&done.stdout).lines() {
        let [kib, code, left, said] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        match (kib, code) {
            (_, "0") => {
                assert_eq!(left, "model ", "{line}");
                made += 1;
            }
            ("again", "1") => assert!(left == "model " && said.contains("the disk is full"), "{line}"),
            (_, "1") => {
                assert!(left.is_empty() && said.contains("the disk is full"), "{line}");
                failed += 1;
            }
            _ => panic!("{line}"),
        }
        if kib == "128" {
            assert!(said.contains("the weights need 7") && said.contains("128 KiB are available"), "{line}");
        }
    }
    assert!(failed >= 5 && made >= 2, "{failed} failed, {made} made:\n{}", text(&done.stdout));
}

#[test]
fn a_file_size_limit_is_an_error_and_leaves_no_files() {
    let sources = Sources::new();
    let export = sources.export(&sources.out("model"), &["--force"]);
    let limited = |blocks: u32| {
        let script = format!("ulimit -f {blocks}; trap '' XFSZ; exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).arg(export.get_program()).args(export.get_args());
        finish(&mut command)
    };
    for blocks in [0, 1, 8, 100, 1000] {
        let done = limited(blocks);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{said}");
        assert!(said.contains("the weights need 7") && said.contains("ulimit -f"), "{said}");
        assert_eq!(names(&sources.path().join("out")), [""; 0]);
    }
    assert!(limited(100_000).status.success());
    let before = content(&sources.out("model"));
    assert_eq!(limited(100).status.code(), Some(1));
    assert!(content(&sources.out("model")) == before, "a failure leaves what was there");
}
