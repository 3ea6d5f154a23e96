//! Finding a setting by its path or environment variable, and the nearest name of a misspelt one.

use super::{setting::Setting, settings_table::SETTINGS};

/// The setting with this path.
pub(super) fn by_path(path: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.path == path)
}

/// The setting of this environment variable.
pub(super) fn by_variable(variable: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.variable() == variable)
}

/// The known name with the smallest edit distance.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = String>) -> String {
    known.min_by_key(|candidate| strsim::levenshtein(name, candidate)).unwrap_or_default()
}

/// Every environment variable that is read, with the path of its setting.
pub fn variables() -> impl Iterator<Item = (String, &'static str)> {
    SETTINGS.iter().map(|setting| (setting.variable(), setting.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_most_similar_one() {
        let paths = || SETTINGS.iter().map(|setting| setting.path.to_owned());
        assert_eq!(nearest("queue.max_job", paths()), "queue.max_jobs");
        assert_eq!(nearest("server.prot", paths()), "server.port");
        assert_eq!(nearest("port", paths()), "server.port");
    }
}
