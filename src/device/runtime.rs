//! Finds, checks and loads ONNX Runtime's library, once per process.
//!
//! The search order: only the configured directory, if there is one; else only the path in `ORT_DYLIB_PATH`; else beside
//! the binary (`lib/`), then in `.onnxruntime/` of the directories above the binary, which finds a checkout's copy from
//! `target/release/eka`. Such a directory must belong to this user or root: a binary in `/tmp/x` has `/tmp` above it, where
//! any user may put one. Never the working directory, which may be a download, and never the system's search path, which may
//! have another version than the tested one.
//!
//! Libraries for the CPU only and libraries for GPUs are in separate folders (`cpu`, `gpu`), because their parts cannot be mixed.
//! A library for GPUs also supports the CPU, but has a gigabyte with its dependencies.
//!
//! `ort` panics when its own search fails, so it always gets a file.
//!
//! # Telemetry
//! From 1.29 on, the official builds of ONNX Runtime for Linux send usage data to Microsoft: names and hashes of models, the
//! machine, and an identifier that they store in the home directory ([pull request
//! 27379](https://github.com/microsoft/onnxruntime/pull/27379)). An option of the environment is too late, because the first
//! event was sent before. Only the variable `ORT_DISABLE_TELEMETRY` prevents it. So [`refuse_telemetry`] sets the variable, and
//! without it no library is loaded.

use std::{
    env,
    ffi::CStr,
    fs,
    path::{Path, PathBuf},
    ptr, slice,
};

use ort::environment::Environment;

use super::{
    DeviceError,
    cuda::{self, NoCuda},
    library_search::{Attempt, numbers},
};
use crate::files;

/// The oldest minor version of ONNX Runtime 1.x that eka's binding supports.
pub const LIBRARY_MINOR: u32 = ort::MINOR_VERSION;

/// The variable with the path of the library: a file, as in other programs with `ort`, or a directory, as in the settings.
const LIBRARY: &str = "ORT_DYLIB_PATH";

/// The variable that disables telemetry in ONNX Runtime if it is 1.
const NO_TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// Disables telemetry in ONNX Runtime, in this process and its children. Must be called at the beginning of `main`: it does
/// nothing if there is a second thread, which might read the environment.
pub fn refuse_telemetry() {
    let is_alone = || fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1);
    if !is_telemetry_refused() && is_alone() {
        // SAFETY: this is the only thread, so no other reads the environment while it is written.
        unsafe { env::set_var(NO_TELEMETRY, "1") };
    }
}

fn is_telemetry_refused() -> bool {
    env::var_os(NO_TELEMETRY).is_some_and(|value| value == "1")
}

/// ONNX Runtime, loaded. There is one environment in a process; it lives as long as its sessions.
#[derive(Debug)]
pub struct Runtime {
    environment: Environment,
    path: PathBuf,
}

/// Why ONNX Runtime could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No usable library was found.
    #[error(
        "no ONNX Runtime 1.{LIBRARY_MINOR} or newer; run scripts/onnxruntime, or set onnxruntime.dir to the directory \
         of the library. Tried:{}", attempts.iter().map(|a| format!("\n  {a}")).collect::<String>()
    )]
    NotFound {
        /// Every path that was tried, in order.
        attempts: Vec<Attempt>,
    },
    /// It would send telemetry.
    #[error("ONNX Runtime is not loaded, as it would send telemetry: set {NO_TELEMETRY}=1")]
    Telemetry,
    /// It was loaded but did not start.
    #[error(transparent)]
    Start(#[from] DeviceError),
}

impl Runtime {
    /// Loads the first library that can be used. If `configured` is set, only that directory is searched.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] with every path that was tried and the version found there, [`RuntimeError::Telemetry`] when
    /// telemetry is not disabled.
    pub fn load(configured: Option<&Path>) -> Result<Self, RuntimeError> {
        if !is_telemetry_refused() {
            return Err(RuntimeError::Telemetry);
        }
        let mut attempts = Vec::new();
        let mut places = directories(configured, "cpu");
        for place in directories(configured, "gpu") {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        for directory in places {
            let libraries = libraries(&directory);
            if libraries.is_empty() {
                attempts.push(Attempt { path: directory, found: "no ONNX Runtime library".into() });
                continue;
            }
            for path in libraries {
                match initialize(&path) {
                    Ok(builder) => return Ok(Self::start(builder, path)?),
                    Err(found) => attempts.push(Attempt { path, found }),
                }
            }
        }
        Err(RuntimeError::NotFound { attempts })
    }

    /// Loads the first library that has the CUDA provider beside it, after what that needs. `configured` as in
    /// [`load`](Self::load). Whether it was built with CUDA is seen in its [`providers`](Self::providers).
    ///
    /// # Errors
    /// The outer one when the library does not start; [`NoCuda`] when there is none or something that it needs is missing:
    /// then nothing of ONNX Runtime is loaded, and [`load`](Self::load) may be.
    pub(super) fn load_cuda(configured: Option<&Path>) -> Result<Result<Self, NoCuda>, RuntimeError> {
        if !is_telemetry_refused() {
            return Err(RuntimeError::Telemetry);
        }
        let mut attempts = Vec::new();
        for place in directories(configured, "gpu") {
            let libraries = libraries(&place);
            let Some(directory) = libraries.first().and_then(|library| library.parent()) else {
                attempts.push(Attempt { path: place, found: "no ONNX Runtime library".into() });
                continue;
            };
            if !directory.join(cuda::PROVIDER).is_file() {
                let found = format!("an ONNX Runtime for CPUs only: {} is missing beside it", cuda::PROVIDER);
                attempts.push(Attempt { path: place, found });
                continue;
            }
            if let Err(missing) = cuda::preload(directory) {
                return Ok(Err(missing));
            }
            for path in libraries {
                match initialize(&path) {
                    Ok(builder) => return Ok(Ok(Self::start(builder, path)?)),
                    Err(found) => attempts.push(Attempt { path, found }),
                }
            }
        }
        Ok(Err(NoCuda::NoLibrary { attempts }))
    }

    fn start(builder: ort::environment::EnvironmentBuilder, path: PathBuf) -> Result<Self, DeviceError> {
        let environment = builder
            .with_name("eka")
            .with_telemetry(false)
            .build()
            .map_err(DeviceError::runtime("ONNX Runtime does not start"))?;
        Ok(Self { environment, path })
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The library's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The library's version and build, as it reports them.
    #[must_use]
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// Execution providers that the library was built with. This machine may not be able to use them.
    ///
    /// # Errors
    /// [`DeviceError::Runtime`] when the library fails.
    pub fn providers(&self) -> Result<Vec<String>, DeviceError> {
        let failed = DeviceError::runtime("the list of execution providers");
        let (mut names, mut count) = (ptr::null_mut(), 0);
        // SAFETY: both out-parameters are valid for the call.
        let status = unsafe { (ort::api().GetAvailableProviders)(&raw mut names, &raw mut count) };
        // SAFETY: the status comes from the call above and is used once.
        unsafe { ort::Error::result_from_status(status) }.map_err(&failed)?;
        let listed = usize::try_from(count).unwrap_or(0);
        // SAFETY: on success `names` points at `count` C strings, which stay until they are released below.
        let all = unsafe { slice::from_raw_parts(names, listed) };
        // SAFETY: as above: each is a C string.
        let providers =
            all.iter().map(|name| unsafe { CStr::from_ptr(*name) }.to_string_lossy().into_owned()).collect();
        // SAFETY: they come from the call above, were copied, and are released once.
        let status = unsafe { (ort::api().ReleaseAvailableProviders)(names, count) };
        // SAFETY: the status comes from the call above and is used once.
        unsafe { ort::Error::result_from_status(status) }.map_err(failed)?;
        Ok(providers)
    }

    /// `ONNX Runtime 1.x.y`.
    #[must_use]
    pub fn version(&self) -> String {
        let minor = ort::util::probe(&self.path).map_or_else(|| "?".into(), |minor| minor.to_string());
        let from_name = self.path.file_name().and_then(|name| version_in(&name.to_string_lossy()));
        let version = from_name.unwrap_or_else(|| format!("1.{minor}"));
        format!("ONNX Runtime {version}")
    }
}

/// Loads the library at `path`, or returns why it cannot be used.
fn initialize(path: &Path) -> Result<ort::environment::EnvironmentBuilder, String> {
    match ort::init_from(path) {
        // If a library is loaded already, the argument does not matter.
        Ok(_) if ort::util::probe(path).is_none() => {
            Err("cannot be loaded: not an ONNX Runtime library".into())
        }
        Ok(builder) => Ok(builder),
        Err(e) => Err(describe(&e)),
    }
}

fn describe(error: &ort::LoadDynamicError) -> String {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => format!("cannot be loaded: {error}"),
        ort::LoadDynamicError::MissingApi { .. } => "not ONNX Runtime: it has no OrtGetApiBase".into(),
        ort::LoadDynamicError::InvalidVersionString => "its version cannot be read".into(),
        ort::LoadDynamicError::BadVersion { version_str, .. } => {
            format!("version {version_str}, 1.{LIBRARY_MINOR} or newer is needed")
        }
    }
}

/// The directories that are searched for libraries of a kind, `cpu` or `gpu`, in order.
fn directories(configured: Option<&Path>, kind: &str) -> Vec<PathBuf> {
    let named = env::var_os(LIBRARY).filter(|named| !named.is_empty()).map(PathBuf::from);
    let binary = env::current_exe().ok();
    directories_of(configured.map(Path::to_path_buf).or(named), binary.as_deref(), kind)
}

fn directories_of(named: Option<PathBuf>, binary: Option<&Path>, kind: &str) -> Vec<PathBuf> {
    if let Some(named) = named {
        // By its full path, because the system would search for a bare name in its search path.
        let named = std::path::absolute(&named).unwrap_or(named);
        return if named.is_file() { vec![named] } else { vec![named.clone(), named.join(kind)] };
    }
    let Some(beside) = binary.and_then(Path::parent) else { return Vec::new() };
    let above = beside.ancestors().map(|directory| directory.join(".onnxruntime"));
    let above = above.filter(|store| is_trusted(store)).map(|store| store.join(kind));
    [beside.join("lib"), beside.join("lib").join(kind)].into_iter().chain(above).collect()
}

/// Whether only this user and root can write to a directory, and to the link to it if it is one.
#[cfg(unix)]
fn is_trusted(directory: &Path) -> bool {
    let (Ok(link), Ok(target)) = (fs::symlink_metadata(directory), fs::metadata(directory)) else {
        return false;
    };
    target.is_dir() && files::foreign_owner(&link, &target).is_none() && !files::is_world_writable(&target)
}

#[cfg(not(unix))]
fn is_trusted(directory: &Path) -> bool {
    directory.is_dir()
}

/// The library files at a path: those in a directory, or the file itself.
fn libraries(place: &Path) -> Vec<PathBuf> {
    if place.is_file() { vec![place.to_path_buf()] } else { candidates(place) }
}

/// The library files in a directory, the newest version first.
#[must_use]
pub fn candidates(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| is_library(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    found.sort_by_cached_key(|path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        std::cmp::Reverse((numbers(&name), name))
    });
    found
}

fn is_library(name: &str) -> bool {
    let versioned = |rest: &str| rest.is_empty() || rest.starts_with('.');
    name == "onnxruntime.dll"
        || name.strip_prefix("libonnxruntime.so").is_some_and(versioned)
        || name.strip_prefix("libonnxruntime.").is_some_and(|rest| rest.ends_with("dylib"))
}

fn version_in(name: &str) -> Option<String> {
    let numbers = numbers(name);
    (numbers.len() >= 3).then(|| numbers.iter().map(u32::to_string).collect::<Vec<_>>().join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_directory_comes_first_and_providers_are_not_libraries() {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.31.1",
            "libonnxruntime.so",
            "libonnxruntime_providers_shared.so",
            "readme.txt",
        ] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let names: Vec<_> = candidates(directory.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["libonnxruntime.so.1.31.1", "libonnxruntime.so.1.9.0", "libonnxruntime.so"]);
    }

    #[test]
    fn a_library_is_looked_for_beside_the_binary_and_above_it_and_never_where_the_binary_is_started() {
        let checkout = tempfile::tempdir().unwrap();
        let binary = checkout.path().join("target/release/eka");
        fs::create_dir_all(checkout.path().join(".onnxruntime/cpu")).unwrap();
        let places = directories_of(None, Some(&binary), "cpu");
        let below = |path: &str| checkout.path().join(path);
        assert_eq!(
            places[..3],
            [below("target/release/lib"), below("target/release/lib/cpu"), below(".onnxruntime/cpu")]
        );
        let here = env::current_dir().unwrap();
        assert!(!places.iter().any(|place| place.starts_with(&here)), "{places:?}");
    }

    #[test]
    fn a_library_that_is_named_is_the_only_place_and_has_a_whole_path() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("libonnxruntime.so");
        fs::write(&file, "").unwrap();
        assert_eq!(directories_of(Some(file.clone()), None, "cpu"), std::slice::from_ref(&file));
        assert_eq!(libraries(&file), [file]);
        let named = directories_of(Some("libonnxruntime.so".into()), None, "gpu");
        let here = env::current_dir().unwrap();
        assert_eq!(named, [here.join("libonnxruntime.so"), here.join("libonnxruntime.so/gpu")]);
    }

    #[cfg(unix)]
    #[test]
    fn a_library_folder_that_another_user_can_write_to_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_trusted(folder.path()) && !is_trusted(&folder.path().join("nothing")));
        let set_mode = |mode| {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(folder.path(), permissions).unwrap();
        };
        set_mode(0o777);
        assert!(!is_trusted(folder.path()));
        set_mode(0o755);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(12_345), None).unwrap();
            assert!(!is_trusted(folder.path()));
        }
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_candidates() {
        assert!(candidates(Path::new("/nowhere/at/all")).is_empty());
    }

    #[test]
    fn only_the_configured_directory_is_searched_and_the_error_lists_its_content() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("libonnxruntime.so.1.31.1"), "not a library").unwrap();
        let Err(RuntimeError::NotFound { attempts }) = Runtime::load(Some(directory.path())) else {
            panic!("a text file was loaded");
        };
        assert_eq!(attempts.len(), 3, "{attempts:?}");
        assert!(attempts[0].found.starts_with("cannot be loaded"), "{attempts:?}");
        assert!(attempts.iter().all(|a| a.path.starts_with(directory.path())));
    }
}
