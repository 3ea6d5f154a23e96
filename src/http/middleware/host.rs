//! Checks the `Host` header, against DNS rebinding.
//!
//! A page at `http://evil.example` can make its own name resolve to 127.0.0.1 after it is loaded. The browser then treats this
//! server as the page's own origin, and the page may read every answer. Only `Host` still has the page's name. So without API
//! keys, `Host` has to be a name that cannot be registered in public DNS:
//!
//! - an IP address, which cannot be rebound; Kubernetes probes and most scrapers send one;
//! - `localhost`, a name without a dot (of a container or machine), or a name below `localhost`, `local`, `internal` or
//!   `home.arpa`, which are reserved for private networks;
//! - or a name listed in `server.hosts`, for a server with a public name; `*` allows any name.
//!
//! With API keys, a rebound page gets a 401, and the name is checked only if `server.hosts` is set, so that a proxy may send
//! any `Host`. Probes are never checked: they reveal nothing and change nothing.

use std::net::Ipv6Addr;

use actix_web::http::{
    Uri,
    header::{self, HeaderMap},
};

use crate::{auth::Rules, config::Hosts};

/// Suffixes of names in private networks.
const PRIVATE: [&str; 4] = ["localhost", "local", "internal", "home.arpa"];

/// The name that is not allowed, in `Host` or in a target that is a full URL.
pub(crate) fn foreign_name<'a>(headers: &'a HeaderMap, target: &'a Uri, rules: &Rules) -> Option<&'a str> {
    if rules.hosts == Hosts::default() && !rules.keys.is_empty() {
        return None;
    }
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    // Only HTTP/1.0 requests lack `Host`, which no browser sends.
    let names = [host, target.authority().map(|authority| authority.as_str())];
    names.into_iter().flatten().find(|name| !is_ours(name, &rules.hosts))
}

fn is_ours(host: &str, hosts: &Hosts) -> bool {
    let Hosts::List(listed) = hosts else { return true };
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    is_private(name) || listed.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Whether the name cannot be registered in public DNS.
fn is_private(name: &str) -> bool {
    if name.is_empty() || is_address(name) || !name.contains('.') {
        return true;
    }
    let name = name.to_ascii_lowercase();
    PRIVATE.iter().any(|suffix| name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.')))
}

fn is_address(name: &str) -> bool {
    let bracketed = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    bracketed
        .map_or_else(|| name.parse::<std::net::Ipv4Addr>().is_ok(), |inner| inner.parse::<Ipv6Addr>().is_ok())
}

/// The name in `Host`.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(names: &[&str]) -> Hosts {
        Hosts::List(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_name_that_can_be_registered_is_refused_unless_it_is_listed() {
        let none = these(&[]);
        for ours in [
            "127.0.0.1:8000",
            "127.0.0.1",
            "[::1]:8000",
            "localhost:8000",
            "LOCALHOST",
            "localhost.",
            "10.1.2.3:80",
            "eka:8000",
            "eka",
            "eka.local",
            "eka.default.svc.cluster.local:8000",
            "eka.internal",
            "",
        ] {
            assert!(is_ours(ours, &none), "{ours}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evillocal.example",
            "notlocalhost.com",
            "127.1.evil",
            "[::1].evil.example",
            "a.b:x",
        ] {
            assert!(!is_ours(foreign, &none), "{foreign}");
            assert!(is_ours(foreign, &Hosts::Any), "{foreign}");
        }
        assert!(is_ours("Chat.Example.org:443", &these(&["chat.example.org"])));
        assert!(!is_ours("chat.example.com", &these(&["chat.example.org"])));
    }

    #[test]
    fn the_refused_name_is_found_in_host_and_target() {
        let rules = Rules { hosts: these(&[]), ..Rules::default() };
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, header::HeaderValue::from_static("localhost"));
        let name = |target: &'static str| {
            foreign_name(&headers, &Uri::from_static(target), &rules).map(str::to_owned)
        };
        assert_eq!(name("/v1/models"), None);
        assert_eq!(name("http://evil.example/v1/models").as_deref(), Some("evil.example"));
    }
}
