//! The table of settings: names, defaults, limits. Everything that finds, checks or prints a setting reads it here.

use config::ValueKind;

/// One setting.
#[derive(Debug)]
pub(super) struct Key {
    /// `section.key`, as in the file and in `--set`.
    pub(super) path: &'static str,
    pub(super) default: Default,
    pub(super) kind: Kind,
}

/// The value of a setting that nobody set.
#[derive(Debug)]
pub(super) enum Default {
    /// This one, written as on the command line.
    Is(&'static str),
    /// None; what happens then, for people.
    Derived(&'static str),
}

/// What a setting may be.
#[derive(Debug)]
pub(super) enum Kind {
    /// A whole number between these, both included.
    Whole { least: i64, most: i64 },
    /// Text; what it must say, for people.
    Text(&'static str),
    /// A number from 0 to 1.
    Ratio,
    /// true or false.
    Truth,
    /// Text that is shown to nobody; what it must say, for people.
    Secret(&'static str),
}

const WEEK_MS: i64 = 7 * 24 * 3_600_000;

const fn whole(path: &'static str, default: &'static str, least: i64, most: i64) -> Key {
    Key { path, default: Default::Is(default), kind: Kind::Whole { least, most } }
}

const fn text(path: &'static str, default: &'static str, expected: &'static str) -> Key {
    Key { path, default: Default::Is(default), kind: Kind::Text(expected) }
}

const fn truth(path: &'static str, default: &'static str) -> Key {
    Key { path, default: Default::Is(default), kind: Kind::Truth }
}

const fn derived(path: &'static str, default: &'static str, kind: Kind) -> Key {
    Key { path, default: Default::Derived(default), kind }
}

/// Every setting, section by section; printed in this order.
pub(super) const KEYS: [Key; 68] = [
    text("server.bind", "127.0.0.1", "an IP address, such as 127.0.0.1, or 0.0.0.0 for every interface"),
    whole("server.port", "8110", 0, 65_535),
    whole("server.grace_ms", "30000", 0, WEEK_MS),
    whole("server.heartbeat_ms", "2000", 100, 60_000),
    whole("server.body_limit_bytes", "4194304", 1, 1 << 30),
    whole("server.body_memory_bytes", "67108864", 1, 1 << 40),
    whole("server.max_connections", "1024", 1, 1 << 20),
    derived(
        "server.hosts",
        "addresses, localhost and names of private networks",
        Kind::Text("names without ports, separated by commas, such as chat.example.org, or * for any"),
    ),
    text("server.unknown_fields", "refuse", "refuse or warn"),
    derived("auth.keys_file", "no keys but those of auth.keys", Kind::Text("a file of [[key]] tables")),
    derived(
        "auth.keys",
        "no keys but those of auth.keys_file",
        Kind::Secret("keys of 16 characters or more, separated by commas, each as name:key or alone"),
    ),
    truth("auth.open_metrics", "false"),
    derived(
        "tls.cert_file",
        "HTTP without TLS",
        Kind::Text("a file of PEM certificates, the server's own first"),
    ),
    derived(
        "tls.key_file",
        "HTTP without TLS",
        Kind::Text("a file with the certificate's private key, in PEM"),
    ),
    derived(
        "cors.origins",
        "no page of another origin",
        Kind::Text("origins separated by commas, such as https://chat.example.org, or * for all"),
    ),
    derived("limits.requests_per_minute_per_ip", "no limit", Kind::Whole { least: 1, most: 1_000_000 }),
    text("model.path", "models/demo", "a directory: an exported model, or one that holds base/"),
    derived("model.id", "the directory's name", Kind::Text("a name that is not empty, without spaces")),
    text("model.quantize", "none", "none, int8 or int4"),
    derived("model.block_size", "the exporter's choice", Kind::Whole { least: 32, most: 128 }),
    derived("model.cache_dir", "the user's cache directory", Kind::Text("a directory")),
    text("model.verify", "size", "size, or hash to read every byte of a model before it is served"),
    derived("models.dir", "the model of model.path is served alone", Kind::Text("a directory of models")),
    derived("models.memory_bytes", "half of the machine's memory", Kind::Whole { least: 1, most: 1 << 50 }),
    derived(
        "models.keep_alive_ms",
        "until another needs the memory",
        Kind::Whole { least: 0, most: WEEK_MS },
    ),
    whole("queue.max_jobs", "32", 1, 1 << 20),
    whole("queue.max_prompt_tokens", "65536", 1, 1 << 24),
    whole("queue.timeout_ms", "60000", 1, WEEK_MS),
    whole("queue.total_timeout_ms", "600000", 1, WEEK_MS),
    whole("queue.max_overtakes", "4", 0, 1 << 20),
    derived("queue.max_switches", "no limit", Kind::Whole { least: 1, most: 1 << 20 }),
    text(
        "engine.device",
        "auto",
        "auto, cpu, cuda, cuda:N with the number of a GPU, or several such as cuda:0,cuda:1",
    ),
    derived("engine.threads", "physical cores", Kind::Whole { least: 1, most: 1024 }),
    whole("engine.prefill_chunk", "512", 1, 16_384),
    derived("engine.context_length", "the model's", Kind::Whole { least: 2, most: 1 << 24 }),
    whole("engine.prefix_cache_bytes", "268435456", 0, 1 << 50),
    derived("engine.prefix_cache_dir", "prompts/ in model.cache_dir", Kind::Text("a directory")),
    truth("engine.prefix_cache_shared", "false"),
    whole("engine.draft_tokens", "15", 0, 255),
    derived(
        "engine.draft_model",
        "guesses come from the text at hand alone",
        Kind::Text("a directory, or the name of one in models.dir: a model with the same tokens"),
    ),
    whole("engine.default_max_new_tokens", "256", 1, 1 << 24),
    truth("engine.pin_cores", "false"),
    truth("engine.own_operators", "true"),
    text("engine.kv_cache", "auto", "auto, float32, float16 or int8"),
    derived(
        "device.memory_limit_bytes",
        "all that the GPU has",
        Kind::Whole { least: 1 << 20, most: 1 << 50 },
    ),
    text(
        "device.trim",
        "always",
        "always, above=<bytes>, idle=<milliseconds> or never, and ,keep=<bytes> after it if anything shall stay",
    ),
    whole("device.kv_keep_bytes", "0", 0, 1 << 50),
    truth("device.cuda_graphs", "true"),
    truth("device.host_pool", "false"),
    derived("onnxruntime.dir", "where `eka doctor` looks", Kind::Text("a directory")),
    whole("watchdog.load_ms", "600000", 1, WEEK_MS),
    whole("watchdog.warm_up_ms", "120000", 1, WEEK_MS),
    whole("watchdog.prefill_base_ms", "30000", 1, WEEK_MS),
    whole("watchdog.prefill_factor", "10", 1, 10_000),
    whole("watchdog.decode_floor_ms", "15000", 1, WEEK_MS),
    whole("watchdog.decode_factor", "50", 1, 10_000),
    whole("watchdog.pipe_ms", "10000", 1, WEEK_MS),
    whole("watchdog.idle_ms", "20000", 100, WEEK_MS),
    derived("recycle.after_jobs", "never", Kind::Whole { least: 1, most: 1 << 40 }),
    derived("recycle.after_ms", "never", Kind::Whole { least: 1000, most: 52 * WEEK_MS }),
    whole("recycle.memory_growth_bytes", "1073741824", 1 << 20, 1 << 50),
    truth("recycle.between_requests", "false"),
    text("log.level", "info", "error, warn, info, debug, trace or a filter such as info,eka=debug"),
    text("log.format", "text", "text or json"),
    truth("log.prompts", "false"),
    derived(
        "trace.otlp_endpoint",
        "no traces",
        Kind::Text("where a collector takes OTLP over HTTP without TLS, such as http://127.0.0.1:4318"),
    ),
    Key { path: "trace.sample_ratio", default: Default::Is("1"), kind: Kind::Ratio },
    text("trace.service_name", "eka", "a name that is not empty"),
];

impl Key {
    /// The setting with this path.
    pub(super) fn by_path(path: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.path == path)
    }

    /// The setting that this environment variable is for.
    pub(super) fn by_variable(variable: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.variable() == variable)
    }

    /// Its environment variable: `EKA_SERVER_PORT` for `server.port`.
    pub(super) fn variable(&self) -> String {
        format!("EKA_{}", self.path.replace('.', "_").to_uppercase())
    }

    /// A value typed as plain text. What is no number where one is asked for stays text, for [`Key::has_type`] to refuse.
    pub(super) fn read(&self, typed: &str) -> ValueKind {
        let read = match self.kind {
            Kind::Whole { .. } => typed.trim().parse().ok().map(ValueKind::I64),
            Kind::Ratio => typed.trim().parse().ok().map(ValueKind::Float),
            Kind::Truth => typed.trim().parse().ok().map(ValueKind::Boolean),
            Kind::Text(_) | Kind::Secret(_) => None,
        };
        read.unwrap_or_else(|| ValueKind::String(typed.to_owned()))
    }

    /// Whether `value` is of the setting's type.
    pub(super) const fn has_type(&self, value: &ValueKind) -> bool {
        matches!(
            (&self.kind, value),
            (Kind::Whole { .. }, ValueKind::I64(_))
                | (Kind::Text(_) | Kind::Secret(_), ValueKind::String(_))
                | (Kind::Ratio, ValueKind::Float(_) | ValueKind::I64(_))
                | (Kind::Truth, ValueKind::Boolean(_))
        )
    }

    /// A value of this setting as the file would say it; a secret is not said.
    pub(super) fn show(&self, value: &ValueKind) -> String {
        match self.kind {
            Kind::Secret(_) => "a secret".into(),
            Kind::Whole { .. } | Kind::Text(_) | Kind::Ratio | Kind::Truth => show(value),
        }
    }

    /// What the setting may be, for people.
    pub(super) fn expected(&self) -> String {
        match self.kind {
            Kind::Whole { least, most } => format!("a whole number from {least} to {most}"),
            Kind::Text(expected) | Kind::Secret(expected) => expected.to_owned(),
            Kind::Ratio => "a number from 0 to 1".into(),
            Kind::Truth => "true or false".into(),
        }
    }
}

/// A value as the file would say it.
fn show(value: &ValueKind) -> String {
    match value {
        // JSON's escapes are TOML's, but for DEL, which TOML wants escaped as well.
        ValueKind::String(text) => {
            serde_json::Value::from(text.as_str()).to_string().replace('\u{7f}', "\\u007f")
        }
        other => other.to_string(),
    }
}

/// The known name that takes the fewest changed letters.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = String>) -> String {
    known.min_by_key(|candidate| distance(name, candidate)).unwrap_or_default()
}

/// Letters to insert, remove or replace between `a` and `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_of_its_settings_type() {
        for key in &KEYS {
            if let Default::Is(default) = key.default {
                assert!(key.has_type(&key.read(default)), "{}", key.path);
            }
        }
    }

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let paths = || KEYS.iter().map(|key| key.path.to_owned());
        assert_eq!(nearest("queue.max_job", paths()), "queue.max_jobs");
        assert_eq!(nearest("server.prot", paths()), "server.port");
        assert_eq!(nearest("port", paths()), "server.port");
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
