//! Which names a request may call this server by, against DNS rebinding.
//!
//! A page at `http://evil.example` may have its own name resolve to 127.0.0.1 once it is loaded. The browser then takes
//! this server for the page's own: no header tells of another origin, and the page may read every answer. What remains is
//! the page's name in `Host`. So where no API keys keep strangers out, `Host` must be a name that cannot be registered:
//!
//! - an address, because a page that is served from an address cannot rebind it; Kubernetes' probes and most scrapers send one;
//! - `localhost`, a name without a dot (a container's or a machine's), or one below `localhost`, `local`, `internal` or
//!   `home.arpa`, which are reserved for private networks;
//! - or what `server.hosts` lists, for a server with a public name. `*` there is any.
//!
//! With API keys a rebound page gets a 401, because it has no key. The names are not checked then, so that a proxy in front
//! of the server may send whatever it likes; unless `server.hosts` is set, which is obeyed always. Probes are never
//! checked: they reveal nothing and change nothing.

use std::net::Ipv6Addr;

use actix_web::http::{
    Uri,
    header::{self, HeaderMap},
};

use crate::{auth::Rules, config::Hosts};

/// What the names of private networks end in.
const PRIVATE: [&str; 4] = ["localhost", "local", "internal", "home.arpa"];

/// The name by which the request calls this server, if it may not have it. Every name is checked that a handler could take
/// for the server's: `Host`, and the target where it is a whole URL.
pub(crate) fn foreign_name<'a>(headers: &'a HeaderMap, target: &'a Uri, rules: &Rules) -> Option<&'a str> {
    if rules.hosts == Hosts::default() && !rules.keys.is_empty() {
        return None;
    }
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
    // HTTP/1.0 has no `Host`, and no browser sends it.
    let names = [host, target.authority().map(|authority| authority.as_str())];
    names.into_iter().flatten().find(|name| !is_ours(name, &rules.hosts))
}

fn is_ours(host: &str, hosts: &Hosts) -> bool {
    let Hosts::List(listed) = hosts else { return true };
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    is_private(name) || listed.iter().any(|one| one.eq_ignore_ascii_case(name))
}

/// Whether this name cannot be registered: an address, or a name that exists only in private networks.
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

/// The name in a `Host`.
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
    fn a_host_that_anybody_could_register_is_refused_unless_it_is_listed() {
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
    fn the_name_that_is_not_allowed_is_named_wherever_it_stands() {
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
