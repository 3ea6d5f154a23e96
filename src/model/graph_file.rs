//! The file of a graph, and the files with its weights.
//!
//! ONNX Runtime opens weights by their place beside the graph and rejects links that lead out of the directory. The Hugging
//! Face cache is made of such links: `snapshots/x/model.onnx.data` leads to `blobs/<hash>`. Who may place a link in a
//! model's directory may place the file as well, so links are followed here: the graph is handed over with the paths that
//! they lead to. The paths in the graph itself are not trusted, as it may come from anywhere: an absolute path, or one with
//! `..`, is rejected.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use prost::Message;

use super::{IntegrityError, graph_facts};
use crate::{
    files,
    manifest::GraphNames,
    onnx::{self, external},
    units::Bytes,
};

/// A larger graph holds its weights itself: it is left to ONNX Runtime, which maps it.
const MAX_GRAPH: Bytes = Bytes::mib(256);

/// A graph as it is in its file.
pub(super) struct GraphFile {
    dir: PathBuf,
    path: PathBuf,
    /// `None` where it is too large to be worth a look.
    content: Option<Vec<u8>>,
    /// Files of weights by their location, with the least that each has.
    weights: BTreeMap<String, u64>,
}

/// The locations of weights, as a graph names them.
pub(super) struct Relocated {
    /// The directory that the graph's locations begin in.
    pub(super) folder: PathBuf,
    /// The graph.
    pub(super) content: Vec<u8>,
}

impl GraphFile {
    /// Reads the graph `name` in `dir`.
    pub(super) fn read(dir: &Path, name: &str) -> Result<Self, IntegrityError> {
        let path = dir.join(name);
        let failed = |source| IntegrityError::Read { path: path.clone(), source };
        let length = files::open(&path).and_then(|file| file.metadata()).map_err(failed)?.len();
        let is_small = Bytes(length) <= MAX_GRAPH;
        let content = is_small.then(|| files::read(&path, MAX_GRAPH)).transpose().map_err(failed)?;
        let weights = content.as_deref().map(|content| weights(&path, content)).transpose()?;
        Ok(Self { dir: dir.into(), path, content, weights: weights.unwrap_or_default() })
    }

    /// The directory of the model.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether its steps can be captured and repeated.
    pub(super) fn can_repeat_steps(&self, names: &GraphNames) -> bool {
        self.decode()
            .and_then(|model| model.graph)
            .is_some_and(|graph| graph_facts::can_repeat_steps(&graph, names))
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its bytes.
    pub(super) fn content(&self) -> Option<&[u8]> {
        self.content.as_deref()
    }

    /// The decoded graph; `None` if it is not one, for which ONNX Runtime has the better error.
    pub(super) fn decode(&self) -> Option<onnx::Model> {
        onnx::Model::decode(self.content()?).ok()
    }

    /// Names of the files of weights, with the least that each has.
    pub(super) fn weights(&self) -> impl Iterator<Item = (&str, u64)> {
        self.weights.iter().map(|(location, min)| (&**location, *min))
    }

    /// `content`, or the graph as it is, with its weights named by the targets of links; `None` if no link leads out of the
    /// directory.
    pub(super) fn relocated(&self, content: Option<&[u8]>) -> Option<Relocated> {
        let dir = self.dir.canonicalize().ok()?;
        let targets: BTreeMap<&str, PathBuf> = self
            .weights()
            .map(|(location, _)| Some((location, self.dir.join(location).canonicalize().ok()?)))
            .collect::<Option<_>>()?;
        if targets.values().all(|target| target.starts_with(&dir)) {
            return None;
        }
        let folder = common_folder(targets.values())?;
        let renamed = |location: &str| {
            let target = targets.get(location)?.strip_prefix(&folder).ok()?;
            target.to_str().map(str::to_owned)
        };
        let content = external::relocate(content.or(self.content())?, renamed).ok()?;
        Some(Relocated { folder, content })
    }
}

/// The files of weights that a graph names, with the least that each has.
fn weights(path: &Path, content: &[u8]) -> Result<BTreeMap<String, u64>, IntegrityError> {
    let externals = external::externals(content)
        .map_err(|source| IntegrityError::NotOnnx { path: path.into(), source })?;
    let mut weights = BTreeMap::new();
    for external::External { location, end } in externals {
        if !external::is_within(&location) {
            return Err(IntegrityError::Outside { path: path.into(), location });
        }
        let min = weights.entry(location).or_insert(0);
        *min = end.unwrap_or(0).max(*min);
    }
    Ok(weights)
}

/// The deepest directory that all of `paths`, which are absolute, are in.
fn common_folder<'a>(mut paths: impl Iterator<Item = &'a PathBuf>) -> Option<PathBuf> {
    let mut folder = paths.next()?.parent()?.to_path_buf();
    for path in paths {
        while !path.starts_with(&folder) {
            folder.pop();
        }
    }
    Some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_folder_of_files_is_the_deepest_one() {
        let folder = |paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            common_folder(paths.iter())
        };
        assert_eq!(folder(&["/a/blobs/1", "/a/blobs/2"]), Some("/a/blobs".into()));
        assert_eq!(folder(&["/a/blobs/1", "/a/b/2", "/a/blobs/3"]), Some("/a".into()));
        assert_eq!(folder(&["/a/1", "/b/2"]), Some("/".into()));
        assert_eq!(folder(&[]), None);
    }
}
