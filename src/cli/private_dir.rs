//! Directories that no other user may put anything into.
//!
//! Files in the cache are trusted: exports are served, prompts are restored. Without a home directory it lies in the
//! temporary directory, where any user may make a directory of the name that eka expects, or a link of that name, before
//! eka does. So the default directory is created with mode 0700, and an existing one must belong to this user. A directory
//! named in the settings is not checked: choosing it is the operator's decision.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrivateDirError {
    /// Another user made it, or the link to it.
    #[error(
        "{} belongs to user {owner} and not to user {user}, so anything could be in it; {way_out}, or have it removed",
        dir.display()
    )]
    Owner {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who eka runs as.
        user: u32,
        /// What to set instead.
        way_out: &'static str,
    },
    /// Every user may write there.
    #[error(
        "every user may write to {} (mode {mode:04o}); look at what is in it and run `chmod 700` on it, or {way_out}",
        dir.display()
    )]
    Writable {
        /// The directory.
        dir: PathBuf,
        /// Its mode.
        mode: u32,
        /// What to set instead.
        way_out: &'static str,
    },
    /// It is something else.
    #[error("{} is not a directory; {way_out}, or have it removed", dir.display())]
    NoDirectory {
        /// What is not one.
        dir: PathBuf,
        /// What to set instead.
        way_out: &'static str,
    },
    /// The system does not say whose it is.
    #[error("{}: {source}; {way_out}", dir.display())]
    Unknown {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
        /// What to set instead.
        way_out: &'static str,
    },
}

/// Creates `dir` for this user alone, or checks that an existing one belongs to this user. Failure to create it is not an
/// error here, because writing to it fails later with a better message. `way_out` ends the error message.
///
/// # Errors
/// [`PrivateDirError`] when somebody else may have put something there.
pub(super) fn ensure(dir: &Path, way_out: &'static str) -> Result<(), PrivateDirError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    if let Err(e) = builder.create(dir) {
        tracing::debug!("{} cannot be made: {e}", dir.display());
    }
    let unknown = |source| PrivateDirError::Unknown { dir: dir.into(), source, way_out };
    match fs::symlink_metadata(dir) {
        // Nothing can be below a file either: service users often have HOME=/dev/null.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(unknown(e)),
        Ok(found) => check(dir, &found, &fs::metadata(dir).map_err(unknown)?, way_out),
    }
}

/// Checks what was found at `dir`, and what that leads to if it is a link.
#[cfg(unix)]
fn check(
    dir: &Path,
    found: &fs::Metadata,
    target: &fs::Metadata,
    way_out: &'static str,
) -> Result<(), PrivateDirError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const OTHERS_WRITE: u32 = 0o002;
    const GROUP_AND_OTHERS: u32 = 0o077;
    let user = rustix::process::geteuid().as_raw();
    // Root may put anything anywhere.
    let stranger = [found, target].map(MetadataExt::uid).into_iter().find(|owner| ![0, user].contains(owner));
    if let Some(owner) = stranger {
        return Err(PrivateDirError::Owner { dir: dir.into(), owner, user, way_out });
    }
    if !target.is_dir() {
        return Err(PrivateDirError::NoDirectory { dir: dir.into(), way_out });
    }
    let mode = target.mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(PrivateDirError::Writable { dir: dir.into(), mode, way_out });
    }
    // An older eka made it as the user's umask said.
    if target.uid() == user && mode & GROUP_AND_OTHERS != 0 {
        let permissions = fs::Permissions::from_mode(mode & !GROUP_AND_OTHERS);
        if let Err(e) = fs::set_permissions(dir, permissions) {
            tracing::debug!("{} stays readable for others: {e}", dir.display());
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn check(
    dir: &Path,
    _: &fs::Metadata,
    target: &fs::Metadata,
    way_out: &'static str,
) -> Result<(), PrivateDirError> {
    if target.is_dir() { Ok(()) } else { Err(PrivateDirError::NoDirectory { dir: dir.into(), way_out }) }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    const WAY_OUT: &str = "set model.cache_dir";

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn it_is_made_for_its_user_alone_and_one_that_others_could_read_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("a/b");
        ensure(&dir, WAY_OUT).unwrap();
        assert_eq!((mode(&dir), mode(&folder.path().join("a"))), (0o700, 0o700));
        for lax in [0o755, 0o775] {
            set_mode(&dir, lax);
            ensure(&dir, WAY_OUT).unwrap();
            assert_eq!(mode(&dir), 0o700);
        }
        let link = folder.path().join("link");
        symlink(&dir, &link).unwrap();
        ensure(&link, WAY_OUT).unwrap();
    }

    #[test]
    fn one_that_every_user_may_write_to_is_refused_with_the_way_out() {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), 0o777);
        let refused = ensure(folder.path(), WAY_OUT).unwrap_err();
        assert!(matches!(refused, PrivateDirError::Writable { mode: 0o777, .. }));
        assert!(refused.to_string().ends_with("or set model.cache_dir"), "{refused}");
    }

    #[test]
    fn a_file_and_a_link_to_one_are_no_directories_and_one_that_cannot_be_made_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, dangling] = ["file", "link", "dangling"].map(|name| folder.path().join(name));
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert!(matches!(ensure(path, WAY_OUT), Err(PrivateDirError::NoDirectory { .. })));
        }
        symlink(folder.path().join("nowhere"), &dangling).unwrap();
        assert!(matches!(ensure(&dangling, WAY_OUT), Err(PrivateDirError::Unknown { .. })));
        for impossible in [file.join("below"), "/proc/eka".into(), "/dev/null/.cache/eka".into()] {
            ensure(&impossible, WAY_OUT).unwrap();
        }
    }

    /// A stranger's directory takes another user to make, so the check is given what the system would say.
    #[test]
    fn a_directory_of_another_user_is_refused_and_so_is_a_link_of_another_user() {
        let folder = tempfile::tempdir().unwrap();
        let own = fs::metadata(folder.path()).unwrap();
        let strangers = fs::metadata(folder.path()).unwrap();
        assert!(check(folder.path(), &own, &strangers, WAY_OUT).is_ok());
        if !rustix::process::geteuid().is_root() {
            return;
        }
        std::os::unix::fs::chown(folder.path(), Some(12_345), None).unwrap();
        let strangers = fs::metadata(folder.path()).unwrap();
        for (found, target) in [(&strangers, &own), (&own, &strangers)] {
            let refused = check(folder.path(), found, target, WAY_OUT).unwrap_err();
            assert!(matches!(refused, PrivateDirError::Owner { owner: 12_345, .. }), "{refused}");
        }
        let refused = ensure(folder.path(), WAY_OUT).unwrap_err().to_string();
        assert!(refused.contains("belongs to user 12345 and not to user 0"), "{refused}");
    }
}
