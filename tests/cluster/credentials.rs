//! Logging in at the NATS server.

use std::{fs, time::Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use serde_json::json;

use crate::support::{
    cluster::NatsServer,
    program::{Program, argument, cache_setting, eka, text},
};

const USERS: &str = "authorization { users = [ { user: one, password: \"the right one\" } ] }";

#[test]
fn wrong_credentials_end_the_program_with_one_sentence() {
    let nats = NatsServer::start_with(USERS, &[]);
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    fs::write(&password, "a wrong one\n").unwrap();
    let (url, file) = (nats.url(), format!("cluster.password_file={}", argument(&password)));
    let wrong = ["--set", "cluster.user=one", "--set", &file];
    for credentials in [&[][..], &wrong[..]] {
        let begun = Instant::now();
        let mut command = eka(&["node", "--port", "0", "--join", &url, "--set", &cache_setting()]);
        let output = command.args(credentials).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{error}");
        let sentence = error.lines().find(|line| line.contains("refuses the credentials")).expect(&error);
        assert!(sentence.contains("cluster.password_file") && !error.contains("a wrong one"), "{error}");
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}

#[test]
fn a_password_in_the_url_and_a_missing_file_are_errors_of_the_settings() {
    for (flags, expected) in [
        (&["--join", "nats://one:two@127.0.0.1:4222"][..], "without user and password"),
        (&["--join", "http://127.0.0.1:4222"], "URLs of NATS servers"),
        (&[], "cluster.join is not set"),
        (&["--join", "nats://127.0.0.1:1", "--set", "cluster.user=one"], "cluster.password_file"),
        (&["--join", "nats://127.0.0.1:1", "--set", "cluster.ca_file=nowhere.pem"], "nowhere.pem"),
    ] {
        let output = eka(&["node", "--port", "0", "--set", &cache_setting()]).args(flags).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

/// Certificates and an nkey as `scripts/deploy/nats/make_keys.py` makes them, and the server's configuration.
struct Secured {
    dir: tempfile::TempDir,
    nats: NatsServer,
}

impl Secured {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        for authority in ["", "other-"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            put(&format!("{authority}ca.pem"), &certificate.pem());
            let issuer = Issuer::new(params, key);
            for name in ["server", "node"] {
                let key = rcgen::KeyPair::generate().unwrap();
                let params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
                put(&format!("{authority}{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
                put(&format!("{authority}{name}-key.pem"), &key.serialize_pem());
            }
        }
        let [own, strange] = [(); 2].map(|()| nkeys::KeyPair::new_user());
        put("own.nk", &own.seed().unwrap());
        put("strange.nk", &strange.seed().unwrap());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let configuration = format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true, timeout: 5 }}\n\
             authorization {{ users = [ {{ nkey: {} }} ] }}",
            path("server.pem"),
            path("server-key.pem"),
            path("ca.pem"),
            own.public_key(),
        );
        let nats = NatsServer::start_with(&configuration, &[]);
        Self { dir, nats }
    }

    /// Flags with these files in place of the right ones; an empty name leaves the setting out.
    fn flags(&self, ca: &str, certificate: &str, nkey: &str) -> Vec<String> {
        let settings = [
            ("ca_file", ca.to_owned()),
            ("cert_file", if certificate.is_empty() { String::new() } else { format!("{certificate}.pem") }),
            (
                "key_file",
                if certificate.is_empty() { String::new() } else { format!("{certificate}-key.pem") },
            ),
            ("nkey_file", nkey.to_owned()),
        ];
        let mut flags = vec!["--join".into(), self.nats.url().replace("nats://", "tls://")];
        for (setting, file) in settings.into_iter().filter(|(_, file)| !file.is_empty()) {
            let file = self.dir.path().join(file);
            flags.extend(["--set".into(), format!("cluster.{setting}={}", file.display())]);
        }
        flags
    }
}

#[tokio::test]
async fn requests_are_answered_over_tls_with_client_certificates_and_an_nkey() {
    let secured = Secured::start();
    let flags = secured.flags("ca.pem", "node", "own.nk");
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = Program::start(&flags).await;
    let (status, answer) = server.ask("/v1/completions", &json!({ "prompt": "a", "max_tokens": 3 })).await;
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn wrong_certificates_and_nkeys_end_the_program_with_one_sentence() {
    let secured = Secured::start();
    for (ca, certificate, nkey, expected) in [
        ("other-ca.pem", "node", "own.nk", "cluster.ca_file"),
        ("ca.pem", "other-node", "own.nk", "cluster.cert_file"),
        ("ca.pem", "", "own.nk", "cluster.cert_file"),
        ("ca.pem", "node", "strange.nk", "cluster.nkey_file"),
        ("ca.pem", "node", "", "cluster.nkey_file"),
    ] {
        let flags = secured.flags(ca, certificate, nkey);
        let begun = Instant::now();
        let mut command = eka(&["node", "--port", "0", "--set", &cache_setting()]);
        let output = command.args(&flags).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{flags:?}: {error}");
        assert!(error.lines().any(|line| line.contains("NATS server") && line.contains(expected)), "{error}");
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}
