//! Atomic operations of file systems: reserve room, exchange two directories.

#[cfg(target_os = "linux")]
pub(super) use linux::{available, exchange, rename_new, reserve};
#[cfg(not(target_os = "linux"))]
pub(super) use portable::{available, exchange, rename_new, reserve};

#[cfg(target_os = "linux")]
mod linux {
    use std::{fs::File, io, path::Path};

    use rustix::{
        fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with, statvfs},
        io::{Errno, retry_on_intr},
    };

    use crate::units::Bytes;

    /// Gives `file` the length `bytes`, all of it on the disk.
    pub(in super::super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
        match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, bytes)) {
            // NFS before 4.2 and some FUSE file systems cannot.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(bytes),
            done => Ok(done?),
        }
    }

    /// Bytes that may still be written where `path` is.
    pub(in super::super) fn available(path: &Path) -> Option<Bytes> {
        let stat = statvfs(path).ok()?;
        Some(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    /// Exchanges two directories; [`io::ErrorKind::Unsupported`] where the file system cannot.
    pub(in super::super) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
        rename(one, other, RenameFlags::EXCHANGE)
    }

    /// Renames, unless `to` exists.
    pub(in super::super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
        match rename(from, to, RenameFlags::NOREPLACE) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => std::fs::rename(from, to),
            done => done,
        }
    }

    fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
        match renameat_with(CWD, from, CWD, to, flags) {
            // An older kernel, or a file system without such flags.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Err(io::ErrorKind::Unsupported.into()),
            done => Ok(done?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::{
        fs::{self, File},
        io,
        path::Path,
    };

    use crate::units::Bytes;

    pub(in super::super) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    pub(in super::super) fn available(_: &Path) -> Option<Bytes> {
        None
    }

    pub(in super::super) fn exchange(_: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in super::super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
        if to.exists() { Err(io::ErrorKind::AlreadyExists.into()) } else { fs::rename(from, to) }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::Path,
    };

    use super::*;

    #[test]
    fn more_than_any_disk_has_cannot_be_reserved() {
        let file = tempfile::NamedTempFile::new().unwrap();
        reserve(file.as_file(), 5000).unwrap();
        assert_eq!(file.path().metadata().unwrap().len(), 5000);
        assert!(reserve(file.as_file(), 1 << 62).is_err());
    }

    #[test]
    fn renaming_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        File::create(&one).unwrap();
        fs::create_dir(&other).unwrap();
        assert!(rename_new(&one, &other).is_err());
        rename_new(&one, &dir.path().join("new")).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn directories_change_places() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
        for path in [&one, &other] {
            fs::create_dir(path).unwrap();
            File::create(path.join(path.file_name().unwrap())).unwrap();
        }
        exchange(&one, &other).unwrap();
        assert!(one.join("other").exists() && other.join("one").exists());
        assert!(available(Path::new(".")).is_some());
    }
}
