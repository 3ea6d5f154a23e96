//! The settings that say who may come in, and how, and who is told of it: keys, TLS, origins, rates, traces.

use std::num::NonZeroU32;

use super::{
    Auth, Cors, Hosts, Limits, Origins, Secret, Tls, Trace,
    prove::Proof,
    raw::{RawAuth, RawCors, RawLimits, RawTls, RawTrace},
};
use crate::units::Ratio;

impl Proof<'_> {
    pub(super) fn auth(&mut self, raw: &RawAuth) -> Option<Auth> {
        let keys_file =
            self.optional(raw.keys_file.as_deref(), |proof, path| proof.directory("auth.keys_file", path));
        // What keys may look like is checked where they are read, as the file's are.
        let keys = self.optional(raw.keys.as_deref(), |proof, keys| {
            proof.some("auth.keys", (!keys.trim().is_empty()).then(|| Secret(keys.into())))
        });
        Some(Auth { keys_file: keys_file?, keys: keys?, open_metrics: raw.open_metrics })
    }

    /// Both files or neither: with one of them alone somebody believes to have TLS, and has not.
    pub(super) fn tls(&mut self, raw: &RawTls) -> Option<Option<Tls>> {
        match (&raw.cert_file, &raw.key_file) {
            (None, None) => Some(None),
            (Some(cert), Some(key)) => {
                let cert_file = self.directory("tls.cert_file", cert);
                let key_file = self.directory("tls.key_file", key);
                Some(Some(Tls { cert_file: cert_file?, key_file: key_file? }))
            }
            (Some(_), None) => {
                self.refuse("tls.cert_file", "tls.key_file to be set as well".into());
                None
            }
            (None, Some(_)) => {
                self.refuse("tls.key_file", "tls.cert_file to be set as well".into());
                None
            }
        }
    }

    pub(super) fn cors(&mut self, raw: &RawCors) -> Option<Cors> {
        let origins = match &raw.origins {
            None => Some(Origins::default()),
            Some(typed) => self.some("cors.origins", origins(typed)),
        };
        Some(Cors { origins: origins? })
    }

    pub(super) fn hosts(&mut self, raw: Option<&str>) -> Option<Hosts> {
        match raw {
            None => Some(Hosts::default()),
            Some(typed) => self.some("server.hosts", hosts(typed)),
        }
    }

    pub(super) fn trace(&mut self, raw: &RawTrace) -> Option<Trace> {
        let endpoint = self.optional(raw.otlp_endpoint.as_deref(), |proof, typed| {
            proof.some("trace.otlp_endpoint", collector(typed))
        });
        let sample_ratio = self.some("trace.sample_ratio", Ratio::new(raw.sample_ratio));
        let name = raw.service_name.trim();
        let service_name = self.some("trace.service_name", (!name.is_empty()).then(|| name.into()));
        Some(Trace { endpoint: endpoint?, sample_ratio: sample_ratio?, service_name: service_name? })
    }

    pub(super) fn limits(&mut self, raw: &RawLimits) -> Option<Limits> {
        const KEY: &str = "limits.requests_per_minute_per_ip";
        let most = self.optional(raw.requests_per_minute_per_ip, |proof, n| {
            proof.whole(KEY, n).and_then(NonZeroU32::new)
        });
        Some(Limits { requests_per_minute_per_ip: most? })
    }
}

/// Where traces go: the path that collectors have by default, where none is named.
fn collector(typed: &str) -> Option<String> {
    let authority = typed.strip_prefix("http://")?;
    let (host, path) = authority.split_once('/').unwrap_or((authority, ""));
    let is_plain = |text: &str| text.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}@#".contains(c));
    let path = if path.is_empty() { "v1/traces" } else { path };
    (!host.is_empty() && is_plain(host) && is_plain(path)).then(|| format!("http://{host}/{path}"))
}

fn hosts(typed: &str) -> Option<Hosts> {
    let list: Vec<_> = typed.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
    if list == ["*"] {
        return Some(Hosts::Any);
    }
    let is_name = |name: &str| name.chars().all(|c| c.is_alphanumeric() || "-._".contains(c));
    let is_listed = !list.is_empty() && list.iter().all(|name| is_name(name));
    is_listed.then(|| Hosts::These(list.iter().map(|name| name.to_ascii_lowercase()).collect()))
}

fn origins(typed: &str) -> Option<Origins> {
    let list: Vec<_> = typed.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
    if list == ["*"] {
        return Some(Origins::Any);
    }
    if list.is_empty() {
        return None;
    }
    let these = list.iter().map(|one| is_origin(one).then(|| one.to_ascii_lowercase()));
    these.collect::<Option<_>>().map(Origins::These)
}

/// Whether a browser would call some page's origin this: a scheme and an authority, and nothing after it.
fn is_origin(typed: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    typed.split_once("://").is_some_and(|(scheme, authority)| {
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
        is_scheme && !authority.is_empty() && authority.chars().all(is_name)
    })
}
