//! Files, headings, settings, metrics, error codes and modules that the documentation names exist.

use std::{collections::BTreeSet, fs, path::Path};

use crate::support::{
    pages::{Page, pages},
    program::{root, run},
};

/// The targets of Markdown links, without those to other sites.
fn links(page: &Page) -> Vec<String> {
    let prose = page.prose();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    for page in pages() {
        for link in links(&page) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { root().join(&page.path) } else { page.folder().join(file) };
            assert!(target.exists(), "{}: no file {link}", page.path);
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                let anchors = Page { path: String::new(), text }.anchors();
                assert!(anchors.contains(&anchor.to_owned()), "{}: no heading {link}", page.path);
            }
        }
    }
}

#[test]
fn every_path_of_the_repository_that_is_named_exists() {
    let folders = ["src/", "tests/", "scripts/", "bench/", "docs/"];
    for page in pages() {
        for span in page.code_spans() {
            let path = span.split_whitespace().next().unwrap_or_default();
            let is_path = folders.iter().any(|folder| path.starts_with(folder))
                && path.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
            assert!(!is_path || root().join(path).exists(), "{}: no file {path}", page.path);
        }
    }
}

#[test]
fn the_readme_has_at_most_180_lines() {
    let lines = Page::read("README.md".into()).text.lines().count();
    assert!(lines <= 180, "{lines} lines");
}

/// Words in backticks that begin with the name of a section of the settings.
fn named_settings(page: &Page, sections: &BTreeSet<&str>) -> Vec<String> {
    let key = |span: &String| span.split(['=', ' ']).next().unwrap_or_default().to_owned();
    let is_setting = |key: &String| {
        key.split_once('.').is_some_and(|(section, name)| {
            let is_file = name == "onnx";
            !is_file && sections.contains(section) && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        })
    };
    page.code_spans().iter().map(key).filter(is_setting).collect()
}

#[test]
fn every_setting_that_is_named_exists() {
    let printed = run(&["serve", "--print-config", "--json"]);
    let settings: serde_json::Value = serde_json::from_slice(&printed.stdout).unwrap();
    let known: BTreeSet<&str> = settings.as_object().unwrap().keys().map(String::as_str).collect();
    let sections: BTreeSet<&str> =
        known.iter().filter_map(|key| key.split_once('.')).map(|(section, _)| section).collect();
    let mut found = 0;
    for page in pages() {
        for name in named_settings(&page, &sections) {
            assert!(known.contains(name.as_str()), "{}: no setting {name}", page.path);
            found += 1;
        }
    }
    assert!(found > 30, "{found} settings");
}

#[test]
fn the_metrics_page_lists_the_registered_metrics() {
    let files = ["src/metrics.rs", "src/metrics/cluster.rs"];
    let source = files.map(|file| fs::read_to_string(root().join(file)).unwrap()).concat();
    let calls = source.split("r.register").skip(1).filter(|call| call.starts_with(['(', '_']));
    let registered: BTreeSet<String> =
        calls.filter_map(|call| call.split('"').nth(1)).map(|name| format!("eka_{name}")).collect();
    let is_metric =
        |span: &String| span.starts_with("eka_") && span.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    let without_suffix = |span: String| {
        let suffixes = ["_total", "_seconds", "_bytes", "_ratio"];
        suffixes.iter().find_map(|suffix| span.strip_suffix(suffix)).unwrap_or(&span).to_owned()
    };
    let page = Page::read("docs/metrics.md".into());
    let named: BTreeSet<String> =
        page.code_spans().into_iter().filter(is_metric).map(without_suffix).collect();
    assert!(registered.len() > 20, "{registered:?}");
    assert_eq!(named, registered);
}

#[test]
fn every_error_code_in_the_api_table_exists() {
    let sources = all_sources(&root().join("src/http"));
    let page = Page::read("docs/api.md".into());
    let table = page.text.split("| status | common codes").nth(1).unwrap().split("\n\n").next().unwrap();
    for code in table.split('`').skip(1).step_by(2).filter(|code| code.contains('_')) {
        assert!(sources.contains(&format!("\"{code}\"")), "no code {code}");
    }
}

fn all_sources(dir: &Path) -> String {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let one = |path: std::path::PathBuf| {
        if path.is_dir() { all_sources(&path) } else { fs::read_to_string(&path).unwrap_or_default() }
    };
    entries.map(one).collect()
}

#[test]
fn the_layer_map_of_the_architecture_page_lists_the_modules_in_layer_order() {
    let page = Page::read("ARCHITECTURE.md".into());
    let table = page.text.split("| module |").nth(1).expect("a table of modules");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let listed: Vec<String> = rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let module = |line: &str| {
        let name = line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?;
        Some(name.to_owned())
    };
    assert_eq!(listed, lib.lines().filter_map(module).collect::<Vec<_>>());
}
