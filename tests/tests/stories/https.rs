//! HTTPS: who is known there, and how a program is told what is wrong.

use std::fs;

use serde_json::Value;

use crate::{administer, all_of, lab, said};

/// Asks with curl, as a user; returns the status and the answer's text.
fn curl(lab: &rssh_lab::Lab, user: &str, path: &str, more: &[&str]) -> (u16, String) {
    let url = format!("{}{path}", rssh_lab::parts::server::url());
    let ca = profile(lab, user, "servers-ca.pem");
    let mut argv = vec![
        "curl",
        "--silent",
        "--show-error",
        "--cacert",
        &ca,
        "--write-out",
        "\n%{http_code}",
    ];
    argv.extend(more);
    argv.push(&url);
    let text = said(lab, user, &argv);
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn profile(lab: &rssh_lab::Lab, user: &str, file: &str) -> String {
    lab.dir().inside(format!("users/{user}/home/.config/rssh/{file}"))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Makes a token that acts for a user.
pub(crate) fn token(lab: &rssh_lab::Lab, user: &str, scopes: &str) -> String {
    let added = administer(
        lab,
        &["token", "add", "--user", user, "--scope", scopes, "--expires", "1h"],
    );
    assert!(added.status.success(), "{}", all_of(&added));
    String::from_utf8(added.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_user_is_known_by_certificate() {
    let lab = lab();
    let (cert, key) = (profile(&lab, "dave", "user.pem"), profile(&lab, "dave", "user.key"));
    let (status, body) = curl(&lab, "dave", "/v1/whoami", &["--cert", &cert, "--key", &key]);
    assert_eq!(status, 200, "{body}");
    assert_eq!(json(&body), serde_json::json!({"kind": "user", "name": "dave"}));
}

#[test]
fn nobody_is_known_without_one_and_the_answer_says_so_to_a_program() {
    let lab = lab();
    let (status, body) = curl(&lab, "dave", "/v1/whoami", &[]);
    assert_eq!(status, 401, "{body}");
    let problem = json(&body);
    assert_eq!(problem["code"], "denied");
    assert_eq!(problem["status"], 401);
    let (status, body) = curl(&lab, "dave", "/v1/nothing-here", &[]);
    assert_eq!((status, json(&body)["status"].as_u64()), (404, Some(404)));
}

#[test]
fn a_token_stands_for_its_user_until_it_is_taken_back() {
    let lab = lab();
    let token = token(&lab, "erin", "read");
    // In a file: what stands in argv is everyone's to read.
    let header = lab.dir().join("users/erin/home/header");
    fs::write(&header, format!("Authorization: Bearer {}\n", token.trim())).unwrap();
    let from_file = format!("@{}", lab.dir().inside("users/erin/home/header"));
    let ask = || curl(&lab, "erin", "/v1/whoami", &["--header", &from_file]);
    let (status, body) = ask();
    assert_eq!(status, 200, "{body}");
    assert_eq!(json(&body)["name"], "erin");
    assert_eq!(json(&body)["scopes"], serde_json::json!(["read"]));

    let listed = administer(&lab, &["token", "list", "--user", "erin", "--json"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(!listed.contains(token.trim()), "the token itself is not kept: {listed}");
    let id = json(listed.lines().next().unwrap())["id"].as_str().unwrap().to_owned();
    let kept = lab
        .psql("SELECT count(*) FROM api_tokens WHERE octet_length(hash) = 32")
        .unwrap();
    assert_ne!(kept, "0");

    assert!(administer(&lab, &["token", "revoke", &id]).status.success());
    let (status, body) = ask();
    assert_eq!(status, 401, "{body}");
    assert!(!administer(&lab, &["token", "revoke", &id]).status.success());
}

#[test]
fn an_older_tls_is_refused() {
    let lab = lab();
    let ca = profile(&lab, "dave", "servers-ca.pem");
    let url = format!("{}/v1/whoami", rssh_lab::parts::server::url());
    let old = lab.exec("dave", &["curl", "--silent", "--cacert", &ca, "--tls-max", "1.2", &url]);
    let old = old.unwrap();
    // curl(1): 35, the handshake failed.
    assert_eq!(old.status.code(), Some(35), "{}", all_of(&old));
}
