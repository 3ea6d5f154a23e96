//! Directories in which a platform keeps the files of a user.

use std::path::PathBuf;

/// A kind of files, and its directory on each platform. Windows has one directory for all kinds.
pub struct UserDir {
    /// Below the home directory.
    macos: &'static str,
    /// The variable of the XDG base directory specification.
    xdg_variable: &'static str,
    /// Below the home directory, if the variable is not set.
    xdg_default: &'static str,
}

/// Files that can be computed again.
pub(super) const USER_CACHE: UserDir =
    UserDir { macos: "Library/Caches", xdg_variable: "XDG_CACHE_HOME", xdg_default: ".cache" };

/// Files that should survive a restart, such as a history.
pub const USER_STATE: UserDir = UserDir {
    macos: "Library/Application Support",
    xdg_variable: "XDG_STATE_HOME",
    xdg_default: ".local/state",
};

impl UserDir {
    /// The directory `eka` in it; `None` without a home directory. `variable` returns the value of an environment variable.
    pub fn find(&self, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
        // A relative path would depend on the working directory; the XDG specification says to ignore it.
        let absolute = |name: &str| variable(name).filter(|path| path.is_absolute());
        let home = |below: &str| absolute("HOME").map(|home| home.join(below));
        let base = if cfg!(windows) {
            absolute("LOCALAPPDATA")
        } else if cfg!(target_os = "macos") {
            home(self.macos)
        } else {
            absolute(self.xdg_variable).or_else(|| home(self.xdg_default))
        };
        base.map(|base| base.join("eka"))
    }
}
