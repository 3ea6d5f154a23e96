//! Bounded reads of regular files.
//!
//! Model directories, key files and settings come from elsewhere. Opening a FIFO in place of a file would wait for ever, and a
//! device such as `/dev/zero` has no end. Therefore all code that reads a whole file does it here: the file is opened without
//! waiting, its type is checked on the descriptor and not on the path, which could be replaced in between, and the number of
//! bytes is limited.
//!
//! Symbolic links are followed: all of the Hugging Face cache consists of them.

use std::{
    fs::{self, File, FileType},
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::units::Bytes;

/// Limit for a JSON file: configurations, manifests and lists of keys. Typical ones have a hundredth of it; parsed, a file
/// of this size takes a few hundred megabytes.
pub const MAX_JSON: Bytes = Bytes::mib(16);

/// Read at once while hashing.
const PIECE_BYTES: usize = 1 << 20;

/// Opens the regular file at `path` for reading, without ever waiting.
///
/// # Errors
/// [`io::Error`] when it cannot be opened, or is a directory, a FIFO, a socket or a device.
pub fn open(path: &Path) -> io::Result<File> {
    // Opening a device can have effects, and opening a socket fails with an obscure message.
    check_type(metadata(path)?.file_type())?;
    let file = open_without_waiting(path)?;
    // Something else may be at `path` by now.
    check_type(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads the regular file at `path`, which may have `max` bytes.
///
/// # Errors
/// As [`open`], and [`io::ErrorKind::FileTooLarge`] when it is larger.
pub fn read(path: &Path, max: Bytes) -> io::Result<Vec<u8>> {
    let (file, length) = open_within(path, max)?;
    let mut content = Vec::with_capacity(usize::try_from(length.0).unwrap_or(0));
    // The file may grow while it is read.
    file.take(max.0.saturating_add(1)).read_to_end(&mut content)?;
    if Bytes::from(content.len()) > max { Err(too_large("grown", max)) } else { Ok(content) }
}

/// Checks that a regular file at `path` can be opened and has at most `max` bytes, without reading it.
///
/// # Errors
/// Those of [`read`].
pub fn check(path: &Path, max: Bytes) -> io::Result<()> {
    open_within(path, max).map(drop)
}

fn open_within(path: &Path, max: Bytes) -> io::Result<(File, Bytes)> {
    let file = open(path)?;
    let length = Bytes(file.metadata()?.len());
    if length > max { Err(too_large(&length.to_string(), max)) } else { Ok((file, length)) }
}

fn too_large(found: &str, max: Bytes) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has {found}, and at most {max} are read"))
}

/// The length of the regular file at `path` and its SHA-256 in lower-case hexadecimal. `advance` is called with the length
/// of each piece that was read.
///
/// # Errors
/// As [`open`], and when it cannot be read.
pub fn hash(path: &Path, advance: impl Fn(Bytes)) -> io::Result<(Bytes, String)> {
    let mut file = open(path)?;
    let (mut sum, mut length) = (Sha256::new(), Bytes(0));
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = match file.read(&mut piece) {
            Ok(0) => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        sum.update(&piece[..read]);
        length = length + Bytes::from(read);
        advance(Bytes::from(read));
    }
    Ok((length, hexadecimal(sum)))
}

/// A SHA-256 in lower-case hexadecimal.
#[must_use]
pub fn hexadecimal(sum: Sha256) -> String {
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the regular file at `path` as UTF-8; it may have `max` bytes.
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`] when it is not UTF-8.
pub fn read_text(path: &Path, max: Bytes) -> io::Result<String> {
    String::from_utf8(read(path, max)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

/// `None` if the file does not exist.
///
/// # Errors
/// Every error but [`io::ErrorKind::NotFound`].
pub fn optional<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A regular file in a directory.
#[derive(Debug)]
pub struct ListedFile {
    /// Its name in the directory.
    pub name: String,
    /// The directory's path and the name.
    pub path: PathBuf,
    /// Size and times; those of the target if the name is a link.
    pub metadata: fs::Metadata,
}

/// The regular files in `dir`, sorted by name. Links are followed; dangling ones are skipped, and so are files that are removed
/// meanwhile.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(dir: &Path) -> io::Result<Vec<ListedFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
        {
            files.push(ListedFile { name, path, metadata });
        }
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// The owner of a directory, or of the link to it, that is neither this user nor root. Such an owner can change the content.
#[cfg(unix)]
#[must_use]
pub fn foreign_owner(link: &fs::Metadata, directory: &fs::Metadata) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let user = rustix::process::geteuid().as_raw();
    [link, directory].map(MetadataExt::uid).into_iter().find(|owner| ![0, user].contains(owner))
}

/// Whether every user can write to a directory.
#[cfg(unix)]
#[must_use]
pub fn is_world_writable(directory: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    const OTHERS_WRITE: u32 = 0o002;
    directory.mode() & OTHERS_WRITE != 0
}

/// Whether a directory entry has this name. A dangling link counts: reading it then fails with an error, where skipping it
/// would hide the mistake.
#[must_use]
pub fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The metadata of the file at `path`. A dangling link is an error and not an absent file: the file was meant to exist, for
/// example in a Hugging Face cache that lost a blob, and a model without it would answer differently.
fn metadata(path: &Path) -> io::Result<fs::Metadata> {
    fs::metadata(path).map_err(|e| match fs::read_link(path) {
        Ok(target) if e.kind() == io::ErrorKind::NotFound => {
            io::Error::other(format!("it is a link to {}, which does not exist", target.display()))
        }
        _ => e,
    })
}

fn check_type(file_type: FileType) -> io::Result<()> {
    if file_type.is_file() {
        return Ok(());
    }
    let found = if file_type.is_dir() { "a directory" } else { special(file_type) };
    Err(io::Error::other(format!("it is {found}, expected a regular file")))
}

#[cfg(unix)]
fn special(file_type: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if file_type.is_fifo() {
        "a FIFO"
    } else if file_type.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(not(unix))]
fn special(_: FileType) -> &'static str {
    "no file"
}

/// Opening a FIFO waits for a writer unless it is opened so; regular files are read in the same way as ever.
#[cfg(unix)]
fn open_without_waiting(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(flags).open(path)
}

#[cfg(not(unix))]
fn open_without_waiting(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    /// A directory with a file, links, and everything that is not a regular file.
    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "12345").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/dev/zero", at("device")).unwrap();
        symlink("gone", at("dangling")).unwrap();
        make_fifo(&at("fifo"));
        UnixListener::bind(at("socket")).unwrap();
        dir
    }

    fn make_fifo(path: &Path) {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    }

    #[test]
    fn a_fifo_a_device_a_socket_and_a_directory_are_refused_at_once() {
        let dir = directory();
        let error = |name: &str| open(&dir.path().join(name)).unwrap_err().to_string();
        for (name, found) in
            [("fifo", "a FIFO"), ("device", "a device"), ("socket", "a socket"), ("", "a directory")]
        {
            assert_eq!(error(name), format!("it is {found}, expected a regular file"));
        }
        let dangling = dir.path().join("dangling");
        assert!(exists(&dangling) && !exists(&dir.path().join("gone")));
    }

    #[test]
    fn a_dangling_link_is_an_error_and_not_an_absent_file() {
        let dir = directory();
        let read = |name: &str| optional(read(&dir.path().join(name), Bytes(1)));
        assert_eq!(read("gone").unwrap(), None);
        let refused = read("dangling").unwrap_err().to_string();
        assert_eq!(refused, "it is a link to gone, which does not exist");
    }

    #[test]
    fn a_fifo_that_appears_between_look_and_open_does_not_block() {
        let dir = directory();
        let fifo = open_without_waiting(&dir.path().join("fifo")).unwrap();
        check_type(fifo.metadata().unwrap().file_type()).unwrap_err();
    }

    #[test]
    fn no_more_than_the_limit_is_read() {
        let dir = directory();
        for name in ["file", "link"] {
            let path = dir.path().join(name);
            assert_eq!(read(&path, Bytes(5)).unwrap(), b"12345");
            let error = read(&path, Bytes(4)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert_eq!(error.to_string(), "it has 5 B, and at most 4 B are read");
        }
        let sparse = dir.path().join("sparse");
        File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        read(&sparse, Bytes::mib(1)).unwrap_err();
    }

    #[test]
    fn a_directory_lists_its_regular_files_and_links_to_them_by_name() {
        let dir = directory();
        fs::write(dir.path().join("a"), "1").unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        let listed = list(dir.path()).unwrap();
        let sizes: Vec<_> = listed.iter().map(|file| (&*file.name, file.metadata.len())).collect();
        assert_eq!(sizes, [("a", 1), ("file", 5), ("link", 5)]);
        assert_eq!(listed[2].path, dir.path().join("link"));
        list(&dir.path().join("gone")).unwrap_err();
    }

    #[test]
    fn a_file_is_hashed_in_pieces_and_its_length_counted() {
        let dir = directory();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash(&path, |_| {}).unwrap(), (Bytes(3), sum.to_owned()));
        hash(&dir.path().join("device"), |_| {}).unwrap_err();
    }

    #[test]
    fn text_is_utf_8() {
        let dir = directory();
        let path = dir.path().join("text");
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path, Bytes(9)).unwrap_err().to_string(), "it is not UTF-8");
        fs::write(&path, "é").unwrap();
        assert_eq!(read_text(&path, Bytes(9)).unwrap(), "é");
    }
}
