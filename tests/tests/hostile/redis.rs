//! Who gets a word out of Redis.

use rssh_lab::parts::redis::{HOST, PORTS, User};
use rssh_lab::place::Place;

use crate::{Lab, all_of, lab};

/// Asks Redis something: by TLS with a certificate, as far as `options` say so, and as a user, when one is given.
fn ask(lab: &Lab, options: &[&str], user: Option<User>, command: &[&str]) -> String {
    let (host, port) = (HOST.to_string(), PORTS[0].to_string());
    let who = user.map_or(Vec::new(), |user| vec!["--user", user.name()]);
    let argv = [
        &["redis-cli", "-h", &host, "-p", &port, "--no-auth-warning"][..],
        options,
        &who,
        command,
    ]
    .concat();
    let mut redis = lab.command(&Place::Core, &argv);
    if let Some(user) = user {
        redis.env(
            "REDISCLI_AUTH",
            std::fs::read_to_string(lab.dir().join(user.password())).unwrap(),
        );
    }
    all_of(&redis.output().unwrap())
}

/// The options that show a certificate, and demand one of the servers' CA.
fn with<'a>(ca: &'a str, cert: &'a str, key: &'a str) -> [&'a str; 7] {
    ["--tls", "--cacert", ca, "--cert", cert, "--key", key]
}

#[test]
fn in_redis_a_router_writes_nothing_and_a_server_only_registrations() {
    let lab = lab();
    let [ca, server, server_key, router, router_key] = [
        "pki/servers-ca.pem",
        "servers/s1/state/server.pem",
        "servers/s1/state/server.key",
        "router/router.pem",
        "router/router.key",
    ]
    .map(|below| lab.dir().inside(below));
    for command in [
        &["set", "rssh:server:s1", "x"][..],
        &["del", "rssh:server:s1"],
        &["psetex", "rssh:server:s9", "1000", "x"],
        &["publish", "rssh:servers", "s1"],
        &["get", "another"],
        &["flushall"],
        &["config", "get", "*"],
        &["acl", "list"],
    ] {
        let said = ask(&lab, &with(&ca, &router, &router_key), Some(User::Routerd), command);
        assert!(said.contains("NOPERM"), "routerd: {command:?}: {said}");
    }
    for command in [
        &["psetex", "another", "1000", "x"][..],
        &["publish", "others", "x"],
        &["get", "rssh:server:s1"],
        &["flushall"],
        &["eval", "return 1", "0"],
    ] {
        let said = ask(&lab, &with(&ca, &server, &server_key), Some(User::Serverd), command);
        assert!(said.contains("NOPERM"), "serverd: {command:?}: {said}");
    }
    let command = ["get", "rssh:server:s1"];
    let said = ask(&lab, &with(&ca, &router, &router_key), Some(User::Routerd), &command);
    assert!(said.contains("signature"), "it may read: {said}");
}

#[test]
fn redis_answers_nobody_in_the_clear_without_our_certificate_or_without_a_password() {
    let lab = lab();
    let [ca, server, server_key, device, device_key] = [
        "pki/servers-ca.pem",
        "servers/s1/state/server.pem",
        "servers/s1/state/server.key",
        "devices/device-1/state/device.pem",
        "devices/device-1/state/device.key",
    ]
    .map(|below| lab.dir().inside(below));
    let command = ["get", "rssh:server:s1"];
    let reader = Some(User::Routerd);
    let said = ask(&lab, &with(&ca, &server, &server_key), reader, &command);
    assert!(said.contains("signature"), "by the book: {said}");

    let in_the_clear = ask(&lab, &[], reader, &command);
    let no_certificate = ask(&lab, &["--tls", "--cacert", &ca], reader, &command);
    let of_another_ca = ask(&lab, &with(&ca, &device, &device_key), reader, &command);
    let no_user = ask(&lab, &with(&ca, &server, &server_key), None, &command);
    for said in [&in_the_clear, &no_certificate, &of_another_ca, &no_user] {
        assert!(!said.contains("signature"), "{said}");
    }
    assert!(no_user.contains("NOAUTH"), "{no_user}");
    assert!(
        of_another_ca.contains("unknown ca") || of_another_ca.contains("onnection"),
        "{of_another_ca}"
    );
}
