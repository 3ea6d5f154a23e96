//! Directories that only this user can write to.
//!
//! Files in the cache are trusted: exports are served, prompts are restored. Without a home directory the cache is in the
//! temporary directory, where another user could create a directory or link of the expected name first. So the default
//! directory is created with mode 0700, and an existing one must belong to this user. A configured directory is not checked.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::files;

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrivateDirError {
    /// It, or the link to it, belongs to another user.
    #[error(
        "{} belongs to user {owner} and not to user {user}, so its content cannot be trusted; {way_out}, or remove it",
        dir.display()
    )]
    Owner {
        /// The directory.
        dir: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        user: u32,
        /// How to use another directory.
        way_out: &'static str,
    },
    /// Every user can write to it.
    #[error(
        "every user can write to {} (mode {mode:04o}); check its content and run `chmod 700` on it, or {way_out}",
        dir.display()
    )]
    Writable {
        /// The directory.
        dir: PathBuf,
        /// Its mode.
        mode: u32,
        /// How to use another directory.
        way_out: &'static str,
    },
    /// It is not a directory.
    #[error("{} is not a directory; {way_out}, or remove it", dir.display())]
    NoDirectory {
        /// The path.
        dir: PathBuf,
        /// How to use another directory.
        way_out: &'static str,
    },
    /// Its owner cannot be read.
    #[error("{}: {source}; {way_out}", dir.display())]
    Unknown {
        /// The directory.
        dir: PathBuf,
        /// The system's error.
        source: io::Error,
        /// How to use another directory.
        way_out: &'static str,
    },
}

/// Creates `dir` with mode 0700, or checks that an existing one belongs to this user. Failure to create it is not an error
/// here, because writing to it fails later with a better message. `way_out` ends the error message.
///
/// # Errors
/// [`PrivateDirError`] when another user could have written to it.
pub(super) fn ensure(dir: &Path, way_out: &'static str) -> Result<(), PrivateDirError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    if let Err(e) = builder.create(dir) {
        tracing::debug!("cannot create {}: {e}", dir.display());
    }
    let unknown = |source| PrivateDirError::Unknown { dir: dir.into(), source, way_out };
    match fs::symlink_metadata(dir) {
        // Service users often have HOME=/dev/null, below which nothing can exist.
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(unknown(e)),
        Ok(found) => check(dir, &found, &fs::metadata(dir).map_err(unknown)?, way_out),
    }
}

/// Checks `dir` itself and the target if it is a link.
#[cfg(unix)]
fn check(
    dir: &Path,
    found: &fs::Metadata,
    target: &fs::Metadata,
    way_out: &'static str,
) -> Result<(), PrivateDirError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    const GROUP_AND_OTHERS: u32 = 0o077;
    let user = rustix::process::geteuid().as_raw();
    if let Some(owner) = files::foreign_owner(found, target) {
        return Err(PrivateDirError::Owner { dir: dir.into(), owner, user, way_out });
    }
    if !target.is_dir() {
        return Err(PrivateDirError::NoDirectory { dir: dir.into(), way_out });
    }
    let mode = target.mode() & 0o7777;
    if files::is_world_writable(target) {
        return Err(PrivateDirError::Writable { dir: dir.into(), mode, way_out });
    }
    // Older versions created it with the user's umask.
    if target.uid() == user && mode & GROUP_AND_OTHERS != 0 {
        let permissions = fs::Permissions::from_mode(mode & !GROUP_AND_OTHERS);
        if let Err(e) = fs::set_permissions(dir, permissions) {
            tracing::debug!("{} remains readable for other users: {e}", dir.display());
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
    fn it_is_created_with_mode_0700_and_a_readable_one_is_restricted() {
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
    fn a_directory_that_every_user_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), 0o777);
        let refused = ensure(folder.path(), WAY_OUT).unwrap_err();
        assert!(matches!(refused, PrivateDirError::Writable { mode: 0o777, .. }));
        assert!(refused.to_string().ends_with("or set model.cache_dir"), "{refused}");
    }

    #[test]
    fn files_are_refused_and_a_directory_that_cannot_be_created_is_not_an_error() {
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

    /// Only root can create another user's directory, so others test the check itself.
    #[test]
    fn a_directory_or_link_of_another_user_is_refused() {
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
