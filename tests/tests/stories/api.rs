//! The HTTP API, by the very commands that its page shows.

use std::fs;

use serde_json::Value;

use crate::https::token;
use crate::{all_of, lab, leases, open, said};

/// The shell commands of the page, in their order.
fn commands() -> Vec<String> {
    let page = include_str!("../../../docs/http-api.md");
    let blocks = page.split("```sh\n").skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

/// Runs shell commands as a user who has a token, in a directory with what the page speaks of.
fn script(lab: &rssh_lab::Lab, user: &str, scopes: &str, commands: &str) -> std::process::Output {
    let home = lab.dir().join(format!("users/{user}/home"));
    let header = format!("Authorization: Bearer {}\n", token(lab, user, scopes));
    fs::write(home.join("token.header"), header).unwrap();
    fs::copy(home.join(".config/rssh/servers-ca.pem"), home.join("servers-ca.pem")).unwrap();
    let url = rssh_lab::parts::server::url();
    fs::write(home.join("script"), format!("set -eu\ncd\nRSSH_API={url}\n{commands}")).unwrap();
    lab.exec(user, &["sh", "-c", "sh ~/script"]).unwrap()
}

#[test]
fn the_commands_of_the_page_open_watch_list_and_close_a_tunnel() {
    let lab = lab();
    let all: Vec<String> = commands()
        .iter()
        .map(|command| format!("{}\necho; echo ----\n", command.replace("device-42", "device-10")))
        .collect();
    assert_eq!(all.len(), 6, "{all:?}");
    let output = script(&lab, "judy", "read,open", &all.concat());
    assert!(output.status.success(), "{}", all_of(&output));
    let said = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<&str> = said.split("----\n").map(str::trim).collect();
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let devices = json(answers[1]);
    assert_eq!(devices["items"].as_array().unwrap().len(), 5, "{devices}");
    assert!(devices["next"].is_string(), "{devices}");
    let opened = json(answers[2]);
    assert_eq!(
        (&opened["device"], &opened["state"]),
        (&"device-10".into(), &"active".into())
    );
    assert!(opened["banner"].as_str().unwrap().ends_with(" device-10"), "{opened}");
    let tunnel = opened["tunnel"].as_str().unwrap();
    let fresh = json(answers[3]);
    assert_eq!(fresh["tunnel"], opened["tunnel"]);
    assert!(
        fresh["host"]
            .as_str()
            .unwrap()
            .starts_with(fresh["server"].as_str().unwrap()),
        "{fresh}"
    );
    let stages: Vec<String> = answers[4]
        .split("\n\n")
        .filter(|event| event.contains("event: stage"))
        .map(|event| {
            json(event.split("data: ").nth(1).unwrap())["stage"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(
        stages,
        ["accepted", "device", "ssh", "claim", "listener"],
        "{}",
        answers[4]
    );
    let (listed, closed) = answers[5].split_at(answers[5].rfind("{\"items\"").unwrap());
    assert_eq!(json(listed)["items"][0]["tunnel"], tunnel);
    let closed = json(closed);
    assert_eq!(
        (&closed["items"][0]["tunnel"], &closed["items"][0]["holders_left"]),
        (&tunnel.into(), &0.into())
    );
    assert_eq!(leases(&lab, tunnel), 0);
}

#[test]
fn a_key_finds_its_first_outcome_and_no_token_does_what_it_is_not_for() {
    let lab = lab();
    let api = &commands()[0];
    let ask = "api \"$RSSH_API/v1/tunnels\" --header 'Idempotency-Key: nightly 7' --json";
    let twice = format!(
        "{api}\n{ask} '{{\"device\": \"device-11\"}}'; echo\n{ask} '{{\"device\": \"device-11\", \"new\": true}}'; echo\n\
         {ask} '{{\"device\": \"device-4\"}}' || true\n"
    );
    let output = script(&lab, "niaj", "open", &twice);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let answers: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", all_of(&output))))
        .collect();
    assert_eq!(answers[0]["tunnel"], answers[1]["tunnel"], "{text}");
    assert_eq!(
        (&answers[2]["status"], &answers[2]["code"]),
        (&400.into(), &"bad-request".into())
    );
    // This token may not look, and one that may look may not open.
    let looks = script(
        &lab,
        "niaj",
        "open",
        &format!("{api}\napi \"$RSSH_API/v1/tunnels\" || true\n"),
    );
    let problem: Value = serde_json::from_slice(&looks.stdout).unwrap();
    assert_eq!((&problem["status"], &problem["code"]), (&403.into(), &"denied".into()));
    let close = "api --request DELETE \"$RSSH_API/v1/tunnels?device=device-11\" || true";
    let closes = script(&lab, "niaj", "read", &format!("{api}\n{close}\n"));
    let problem: Value = serde_json::from_slice(&closes.stdout).unwrap();
    assert_eq!(problem["status"], 403, "{problem}");
    said(&lab, "niaj", &["rssh", "close", "device-11", "--force"]);
}

#[test]
fn rssh_does_over_http_what_it_does_over_mqtt() {
    let lab = lab();
    let http = |argv: &[&str]| said(&lab, "judy", &[&["rssh", "--via", "http"], argv].concat());
    let opened: Value = serde_json::from_str(&http(&["open", "device-16", "--json"])).unwrap();
    assert!(opened["banner"].as_str().unwrap().ends_with(" device-16"), "{opened}");
    let tunnel = opened["tunnel"].as_str().unwrap();
    assert!(http(&["ls", "--json"]).contains(tunnel));
    assert!(http(&["devices"]).contains("device-16  online"));
    assert!(http(&["why", "device-16"]).contains("listener"));
    // Both ways lead to the same tunnel.
    assert_eq!(open(&lab, "judy", "device-16").tunnel, tunnel);
    http(&["close", "device-16", "--force"]);
    assert_eq!(leases(&lab, tunnel), 0);
    let output = lab
        .exec("judy", &["rssh", "--via", "http", "open", "device-99"])
        .unwrap();
    assert_eq!(output.status.code(), Some(68), "{}", all_of(&output));
}
