//! No file of `src` may depend on a file that depends on it, directly or through others.
//!
//! A file depends on the files that define the items it names, and on its child modules: `mod a;` is a dependency. An
//! item that `mod.rs` re-exports belongs to the file that defines it. Test modules are left out, since they use the
//! file that they test.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
};

use super::source::{source_files, words};

/// Folders whose files may form a cycle, each with the reason; none at present.
const ALLOWED: &[(&str, &str)] = &[];

/// A module: a file, or an inline `mod name { … }` of one.
#[derive(Default)]
struct Module {
    file: usize,
    /// What it defines itself.
    items: BTreeSet<String>,
    /// Names that `use` brings in, with the path as written.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths of `use path::*`.
    globs: Vec<Vec<String>>,
    /// Other paths in its code, as written.
    paths: Vec<Vec<String>>,
    /// Child modules in files of their own.
    children: Vec<String>,
    /// Names of child modules that only tests compile.
    tests: Vec<String>,
}

/// What a path leads to.
enum Target {
    Module(Vec<String>),
    /// An item that the file with this index defines.
    Item(usize),
}

/// The modules of a crate, by path.
struct Crate {
    modules: BTreeMap<Vec<String>, Module>,
}

impl Crate {
    /// Parses `files`: paths below `src`, and their text.
    fn parse(files: &[(&Path, &str)]) -> Self {
        let mut modules = BTreeMap::new();
        for (file, (path, text)) in files.iter().enumerate() {
            let words = words(text);
            Parser { words: &words, at: 0, file, modules: &mut modules }.module(module_path(path));
        }
        let tests = modules.iter().flat_map(|(path, module): (&Vec<String>, &Module)| {
            module.tests.iter().map(|name| join(path, name)).collect::<Vec<_>>()
        });
        let tests: Vec<_> = tests.collect();
        modules.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
        Self { modules }
    }

    /// Which files each file depends on.
    fn dependencies(&self) -> BTreeMap<usize, BTreeSet<usize>> {
        let mut edges: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (path, module) in &self.modules {
            let children = module.children.iter().filter_map(|name| self.modules.get(&join(path, name)));
            let globs = module.globs.iter().filter_map(|glob| self.glob_file(path, glob));
            let named = module.imports.values().chain(&module.paths);
            let items = named.filter_map(|written| match self.resolve(path, written, 0)? {
                Target::Item(file) => Some(file),
                Target::Module(_) => None,
            });
            let used = children.map(|child| child.file).chain(globs).chain(items);
            edges.entry(module.file).or_default().extend(used.filter(|&file| file != module.file));
        }
        edges
    }

    /// The file that `use glob::*` in the module at `path` depends on.
    fn glob_file(&self, path: &[String], glob: &[String]) -> Option<usize> {
        match self.resolve(path, glob, 0)? {
            Target::Module(path) => Some(self.modules.get(&path)?.file),
            Target::Item(file) => Some(file),
        }
    }

    /// Where the path `written` in the module at `path` leads; `None` when it leads out of the crate.
    fn resolve(&self, path: &[String], written: &[String], depth: u32) -> Option<Target> {
        let mut module = path.to_vec();
        let mut rest = written;
        let anchored = matches!(written.first()?.as_str(), "crate" | "self" | "super");
        while let Some(head) = rest.first() {
            match head.as_str() {
                "crate" => module.clear(),
                "self" => {}
                "super" => drop(module.pop()),
                _ => break,
            }
            rest = &rest[1..];
        }
        for (at, name) in rest.iter().enumerate() {
            match self.member(&module, name, depth) {
                Some(Target::Module(path)) => module = path,
                Some(item) => return Some(item),
                // A macro may have defined it.
                None if anchored || at > 0 => return Some(Target::Item(self.modules.get(&module)?.file)),
                None => return None,
            }
        }
        Some(Target::Module(module))
    }

    /// What `name` means in the module at `path`.
    fn member(&self, path: &[String], name: &str, depth: u32) -> Option<Target> {
        const MAX_DEPTH: u32 = 16;
        let module = self.modules.get(path).filter(|_| depth < MAX_DEPTH)?;
        let child = join(path, name);
        if self.modules.contains_key(&child) {
            Some(Target::Module(child))
        } else if module.items.contains(name) {
            Some(Target::Item(module.file))
        } else if let Some(import) = module.imports.get(name) {
            self.resolve(path, import, depth + 1)
        } else {
            module.globs.iter().find_map(|glob| match self.resolve(path, glob, depth + 1)? {
                Target::Module(other) if other != path => self.member(&other, name, depth + 1),
                _ => None,
            })
        }
    }
}

/// Reads the words of one file.
struct Parser<'a> {
    words: &'a [String],
    at: usize,
    file: usize,
    modules: &'a mut BTreeMap<Vec<String>, Module>,
}

impl Parser<'_> {
    /// Reads a module up to its closing brace or the end of the file.
    fn module(&mut self, path: Vec<String>) {
        let mut module = Module { file: self.file, ..Module::default() };
        let (mut depth, mut tests) = (0_u32, false);
        while let Some(word) = self.next() {
            match word.as_str() {
                "#" if self.starts_with(&["["]) || self.starts_with(&["!", "["]) => {
                    tests |= self.attribute();
                    continue;
                }
                "pub" if tests => continue,
                "mod" if tests => module.tests.extend(self.next()),
                _ if tests => {}
                "{" => depth += 1,
                "}" if depth == 0 => break,
                "}" => depth -= 1,
                "mod" => self.child(&path, &mut module),
                "use" if !self.starts_with(&["<"]) => self.import(&[], &mut module),
                "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union" if depth == 0 => {
                    module.items.extend(self.words.get(self.at).cloned());
                }
                _ if self.starts_with(&["::"]) && is_name(&word) => {
                    let path = self.path(word);
                    module.paths.push(path);
                }
                _ => {}
            }
            if tests {
                self.skip_item();
                tests = false;
            }
        }
        self.modules.insert(path, module);
    }

    fn next(&mut self) -> Option<String> {
        self.at += 1;
        self.words.get(self.at - 1).cloned()
    }

    fn starts_with(&self, words: &[&str]) -> bool {
        self.words[self.at..].iter().map(String::as_str).take(words.len()).eq(words.iter().copied())
    }

    /// Reads an attribute after its `#`; whether it limits what follows to tests.
    fn attribute(&mut self) -> bool {
        let (start, mut depth) = (self.at, 0);
        while let Some(word) = self.next() {
            match word.as_str() {
                "[" => depth += 1,
                "]" if depth == 1 => break,
                "]" => depth -= 1,
                _ => {}
            }
        }
        let has = |word: &str| self.words[start..self.at].iter().any(|other| other == word);
        has("cfg") && has("test") && !has("not")
    }

    /// Skips the rest of an item that only tests compile.
    fn skip_item(&mut self) {
        let mut depth = 0_u32;
        while let Some(word) = self.words.get(self.at) {
            match word.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" if depth == 0 => return,
                ")" | "]" => depth -= 1,
                "}" => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 && (word == "}" || word == ";") {
                return;
            }
        }
    }

    /// Reads `mod name;` or `mod name { … }` after its `mod`.
    fn child(&mut self, path: &[String], module: &mut Module) {
        let Some(name) = self.next() else { return };
        if self.starts_with(&["{"]) {
            self.at += 1;
            self.module(join(path, &name));
        } else {
            module.children.push(name);
        }
    }

    /// Reads a tree of `use`, or one branch of it below `prefix`.
    fn import(&mut self, prefix: &[String], module: &mut Module) {
        let mut path = prefix.to_vec();
        while let Some(word) = self.next() {
            match word.as_str() {
                "::" => {}
                "*" => {
                    module.globs.push(std::mem::take(&mut path));
                    return;
                }
                "{" => {
                    while !self.starts_with(&["}"]) && self.at < self.words.len() {
                        self.import(&path, module);
                        self.at += usize::from(self.starts_with(&[","]));
                    }
                    self.at += 1;
                    return;
                }
                "as" => {
                    let name = self.next().expect("a name after `as`");
                    module.imports.insert(name, path);
                    return;
                }
                _ => path.push(word),
            }
            if self.starts_with(&[","]) || self.starts_with(&["}"]) || self.starts_with(&[";"]) {
                if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
                    path.pop();
                }
                module.imports.extend(path.last().cloned().map(|name| (name, path)));
                return;
            }
        }
    }

    /// Reads the rest of a path that starts with `first`.
    fn path(&mut self, first: String) -> Vec<String> {
        let mut path = vec![first];
        while self.starts_with(&["::"]) && self.words.get(self.at + 1).is_some_and(|word| is_name(word)) {
            self.at += 1;
            path.extend(self.next());
        }
        path
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

fn join(path: &[String], name: &str) -> Vec<String> {
    path.iter().cloned().chain([name.to_owned()]).collect()
}

/// The module that the file at `path`, below `src`, holds.
fn module_path(path: &Path) -> Vec<String> {
    let without = path.with_extension("");
    let names = without.components().map(|name| name.as_os_str().to_string_lossy().into_owned());
    names.filter(|name| name != "mod" && name != "lib").collect()
}

/// The shortest path from `start` along `edges` back to `start`.
fn shortest_cycle(start: usize, edges: &BTreeMap<usize, BTreeSet<usize>>) -> Option<Vec<usize>> {
    let (mut from, mut queue) = (BTreeMap::new(), VecDeque::from([start]));
    while let Some(file) = queue.pop_front() {
        for &next in edges.get(&file).into_iter().flatten() {
            if from.contains_key(&next) {
                continue;
            }
            from.insert(next, file);
            if next == start {
                let mut path = vec![start];
                let mut at = file;
                while at != start {
                    path.push(at);
                    at = from[&at];
                }
                path.push(start);
                path.reverse();
                return Some(path);
            }
            queue.push_back(next);
        }
    }
    None
}

/// Every shortest cycle outside the folders in `allowed`, as a list of files.
fn cycles(files: &[(&Path, &str)], allowed: &[(&str, &str)]) -> Vec<String> {
    let edges = Crate::parse(files).dependencies();
    let allowed = |file: &usize| allowed.iter().any(|(folder, _)| files[*file].0.starts_with(folder));
    let found = (0..files.len()).filter_map(|file| shortest_cycle(file, &edges));
    let wrong = found.filter(|cycle| !cycle.iter().all(allowed));
    let mut seen = BTreeSet::new();
    let new = wrong.filter(|cycle| seen.insert(cycle.iter().copied().collect::<BTreeSet<_>>()));
    let name = |file: &usize| files[*file].0.display().to_string();
    new.map(|cycle| cycle.iter().map(name).collect::<Vec<_>>().join(" -> ")).collect()
}

#[test]
fn no_file_depends_on_a_file_that_depends_on_it() {
    let files = source_files();
    let files: Vec<_> = files.iter().filter(|(path, _)| path != Path::new("main.rs")).collect();
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_path(), text.as_str())).collect();
    let found = cycles(&files, ALLOWED);
    assert!(found.is_empty(), "{} cycles:\n{}", found.len(), found.join("\n"));
}

mod the_checker {
    use std::path::Path;

    use super::cycles;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        cycles(&files, &[])
    }

    #[test]
    fn catches_two_files_that_use_each_other() {
        let cycle = [
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "mod b;\nmod c;"),
            ("a/b.rs", "use super::c::C;\npub struct B;"),
            ("a/c.rs", "use crate::a::b::B;\npub struct C;"),
        ];
        assert_eq!(found(&cycle), ["a/b.rs -> a/c.rs -> a/b.rs"]);
    }

    #[test]
    fn catches_a_child_that_uses_an_item_of_its_parent() {
        let parent = "mod b;\npub struct A;";
        for source in [
            "use super::A;",
            "use super::*;",
            "use crate::a::{A as Other};",
            "fn f() -> super::A { super::A }",
            "mod inner { use super::super::A; }",
        ] {
            let cycle = [("lib.rs", "mod a;"), ("a/mod.rs", parent), ("a/b.rs", source)];
            assert_eq!(found(&cycle), ["a/mod.rs -> a/b.rs -> a/mod.rs"], "{source}");
        }
    }

    #[test]
    fn catches_a_cycle_through_an_import_of_a_module() {
        let cycle = [
            ("a.rs", "mod b;\nmod c;"),
            ("a/b.rs", "use super::c;\npub fn f() { c::g() }"),
            ("a/c.rs", "use super::b;\npub fn g() { b::f() }"),
        ];
        assert_eq!(found(&cycle), ["a/b.rs -> a/c.rs -> a/b.rs"]);
    }

    #[test]
    fn follows_a_re_export_to_the_file_that_defines_the_item() {
        let line = [
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "mod b;\nmod c;\npub use self::{b::*, c::C as Renamed};"),
            ("a/b.rs", "pub struct B;"),
            ("a/c.rs", "use super::B;\npub struct C;"),
            ("a/d.rs", "use super::{B, Renamed};"),
        ];
        assert!(found(&line).is_empty());
        let cycle = [line[0], line[1], ("a/b.rs", "use crate::a::Renamed;\npub struct B;"), line[3]];
        assert_eq!(found(&cycle), ["a/b.rs -> a/c.rs -> a/b.rs"]);
    }

    #[test]
    fn leaves_test_modules_and_other_crates_out() {
        let line = [
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "mod b;\n#[cfg(test)]\nmod tests;\npub struct A;"),
            ("a/tests.rs", "use super::*;"),
            ("a/b.rs", "use std::fs;\n#[cfg(test)]\nmod tests { use super::*; use crate::a::A; }\nstruct B;"),
        ];
        assert!(found(&line).is_empty());
    }

    #[test]
    fn takes_a_cycle_of_a_folder_that_is_allowed() {
        let files =
            [(Path::new("a/mod.rs"), "mod b;\npub struct A;"), (Path::new("a/b.rs"), "use super::A;")];
        assert_eq!(cycles(&files, &[]).len(), 1);
        assert!(cycles(&files, &[("a", "an example")]).is_empty());
    }
}
