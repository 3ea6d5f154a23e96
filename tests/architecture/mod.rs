//! Checks the layers: which module may import which, and where `unsafe` is allowed.

mod file_cycles;
mod source;

use std::{collections::BTreeSet, fs, path::Path};

use self::source::{source_files, words};

/// Each module and what it may import. A line may only name modules of earlier lines.
const LAYERS: &str = "
    units:
    files: units
    trim_policy: units
    device_spec:
    log_queue:
    metrics: log_queue
    job: device_spec units
    config: device_spec files trim_policy units
    auth: config files units
    manifest: files units
    prompt_store: files units
    text: files job manifest units
    constraint: job text units
    wire: device_spec job trim_policy units
    child_process: wire
    sandbox: child_process constraint job metrics text units wire
    device: device_spec files units
    onnx:
    export: device_spec files manifest onnx text units
    calibration: device device_spec export manifest units
    model: device_spec device files manifest onnx prompt_store units
    engine: constraint device job model units
    worker: constraint device engine job manifest model prompt_store trim_policy wire units
    otel: job metrics units
    supervise: child_process files job log_queue metrics otel wire units
    executor: job metrics otel units
    cluster: executor job metrics units
    http: auth config constraint executor files job manifest metrics sandbox prompt_store text otel units
    client:
    smoke: client
    loadgen: client
    cli: auth calibration child_process cluster device_spec client config constraint device engine executor export files http job loadgen log_queue manifest metrics model sandbox prompt_store smoke supervise text otel units wire worker
";

/// The only module with `unsafe`.
const UNSAFE_MODULE: &str = "device";

/// The map's lines, each a module and what it may import.
fn layers(map: &str) -> Vec<(&str, Vec<&str>)> {
    let lines = map.lines().filter_map(|line| line.trim().split_once(':'));
    lines.map(|(module, imports)| (module, imports.split_whitespace().collect())).collect()
}

/// What is wrong with the map itself: imports that no earlier line declares.
fn upward_lines(map: &str) -> Vec<String> {
    let (mut earlier, mut wrong) = (Vec::new(), Vec::new());
    for (module, imports) in layers(map) {
        let later = imports.iter().filter(|import| !earlier.contains(*import));
        wrong.extend(
            later.map(|import| format!("the map lets {module} import {import}, which is not below it")),
        );
        earlier.push(module);
    }
    wrong
}

/// What is wrong with one source file of `module`.
fn violations(module: &str, source: &str) -> Vec<String> {
    let Some((_, allowed)) = layers(LAYERS).into_iter().find(|(name, _)| *name == module) else {
        return vec![format!("{module} is not in the layer map")];
    };
    let words = words(source);
    let forbidden =
        imports(&words).into_iter().filter(|head| head != module && !allowed.contains(&head.as_str()));
    let mut wrong: Vec<_> = forbidden.map(|head| format!("{module} may not import {head}")).collect();
    if module != UNSAFE_MODULE && words.iter().any(|word| word == "unsafe") {
        wrong.push(format!("{module} has `unsafe`, which belongs into {UNSAFE_MODULE}"));
    }
    wrong
}

/// The heads of all `crate::head` paths, also inside `crate::{head::…, head}`.
fn imports(words: &[String]) -> BTreeSet<String> {
    let mut heads = BTreeSet::new();
    for start in (0..words.len()).filter(|&at| words[at..].starts_with(&["crate".into(), "::".into()])) {
        let path = &words[start + 2..];
        match path.first().map(String::as_str) {
            Some("{") => heads.extend(group_heads(&path[1..])),
            Some(head) => heads.extend([head.to_owned()]),
            None => {}
        }
    }
    heads
}

/// The first word of each item of a group whose opening brace has been read.
fn group_heads(words: &[String]) -> Vec<String> {
    let (mut depth, mut at_item, mut heads) = (0, true, Vec::new());
    for word in words {
        match word.as_str() {
            "{" => depth += 1,
            "}" if depth == 0 => break,
            "}" => depth -= 1,
            "," if depth == 0 => at_item = true,
            head if at_item => {
                heads.push(head.to_owned());
                at_item = false;
            }
            _ => {}
        }
    }
    heads
}

/// The first component of a path under src/, without `.rs`.
fn module_of(file: &Path) -> String {
    let first = file.components().next().expect("a path with a file name").as_os_str();
    first.to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// What is wrong with the order in which lib.rs declares its modules.
fn misplaced(library: &str) -> Vec<String> {
    let words = words(library);
    let declared: Vec<_> =
        words.windows(2).filter(|pair| pair[0] == "mod").map(|pair| pair[1].as_str()).collect();
    let mut wrong = Vec::new();
    for (at, module) in declared.iter().enumerate() {
        match layers(LAYERS).into_iter().find(|(name, _)| name == module) {
            None => wrong.push(format!("{module} is not in the layer map")),
            Some((_, below)) => {
                let late = declared[at..].iter().filter(|other| below.contains(other));
                wrong.extend(
                    late.map(|other| format!("{other} must be declared above {module}, which may import it")),
                );
            }
        }
    }
    wrong
}

#[test]
fn every_import_points_down() {
    let mut wrong = upward_lines(LAYERS);
    for (file, text) in source_files() {
        let module = module_of(&file);
        if module != "main" && module != "lib" {
            let found = violations(&module, &text);
            wrong.extend(found.iter().map(|what| format!("src/{}: {what}", file.display())));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn lib_declares_its_modules_in_layer_order() {
    let library =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("src/lib.rs");
    assert_eq!(misplaced(&library), [""; 0]);
}

mod the_checker {
    use super::{LAYERS, misplaced, upward_lines, violations as found};

    #[test]
    fn catches_an_upward_import() {
        assert_eq!(found("units", "use crate::http::Route;"), ["units may not import http"]);
        assert_eq!(found("job", "fn f() -> u32 { crate::wire::PROTOCOL }"), ["job may not import wire"]);
    }

    #[test]
    fn catches_a_module_that_the_map_does_not_list() {
        assert_eq!(found("utils", ""), ["utils is not in the layer map"]);
    }

    #[test]
    fn reads_grouped_imports_over_several_lines() {
        let source = "use crate::{\n    job::{Event, Job},\n    engine::Engine, // why\n    units::Bytes,\n    cli,\n};";
        assert_eq!(found("wire", source), ["wire may not import cli", "wire may not import engine"]);
    }

    #[test]
    fn takes_what_the_map_allows_and_the_module_itself() {
        assert!(found("wire", "use crate::{job::Job, units::Bytes};\nuse crate::wire::Down;").is_empty());
    }

    #[test]
    fn does_not_read_comments_strings_and_character_literals() {
        let source = r##"
            //! [`crate::http`] is unsafe to name
            /* use crate::cli; */
            const A: &str = "crate::http \" unsafe";
            const B: &str = r#"crate::"http""#;
            fn quote<'a>(_: &'a str) -> [char; 3] { ['"', '\'', '\u{22}'] }
        "##;
        assert!(found("units", source).is_empty());
    }

    #[test]
    fn catches_unsafe_outside_the_device() {
        assert_eq!(found("engine", "unsafe { f() }"), ["engine has `unsafe`, which belongs into device"]);
        assert!(found("device", "unsafe { f() }").is_empty());
        assert!(found("engine", "#![forbid(unsafe_code)]").is_empty());
    }

    #[test]
    fn catches_a_library_out_of_order() {
        assert_eq!(
            misplaced("pub mod job;\npub mod units;"),
            ["units must be declared above job, which may import it"]
        );
        assert_eq!(misplaced("mod utils;"), ["utils is not in the layer map"]);
        assert!(misplaced("//! mod http\npub mod units;\npub mod export;\npub mod wire;").is_empty());
    }

    #[test]
    fn catches_a_map_that_points_up() {
        assert_eq!(upward_lines("a: b\nb: a"), ["the map lets a import b, which is not below it"]);
        assert!(upward_lines(LAYERS).is_empty());
    }
}
