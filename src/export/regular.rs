//! Opens files that are files.
//!
//! Sources may be links, as all of Hugging Face's cache is. But one that leads to a pipe would make the export wait for
//! ever, and one that leads to `/dev/zero` would never end.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Opens the file at `path` for reading; fails for a directory, a pipe and a device.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Asked before, because opening a pipe waits for its other end.
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() {
        return File::open(path);
    }
    let found = if kind.is_dir() { "a directory" } else { "a pipe, a socket or a device" };
    Err(io::Error::other(format!("it is {found}, expected a file")))
}

/// Whether something has this name, if only a link that leads nowhere: it was meant to be used, so an error says why it
/// cannot be.
pub(super) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_file_is_opened_by_whatever_way() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink("gone", at("dangling")).unwrap();
        open(&at("link")).unwrap();
        assert!(open(&at("zero")).unwrap_err().to_string().contains("device"));
        assert!(open(dir.path()).unwrap_err().to_string().contains("directory"));
        assert_eq!(open(&at("dangling")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(is_there(&at("dangling")) && !is_there(&at("gone")));
    }
}
