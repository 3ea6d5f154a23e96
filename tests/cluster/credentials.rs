//! Logging in at the NATS server.

use std::{fs, time::Instant};

use crate::support::{
    cluster::NatsServer,
    program::{argument, cache_setting, eka, text},
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
