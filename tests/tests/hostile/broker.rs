//! What a certificate is good for at the broker, and what becomes of messages that are none.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};

use rssh_lab::parts::broker;
use rssh_lab::place::Place;
use rssh_lab::process::Process;
use rssh_lab::{Action, Lab};
use rssh_proto::TunnelId;
use serde_json::{Value, json};

use crate::{PATIENTLY, SERVERS, all_of, health, lab, lab_alone, open, said, within};

/// Someone with a certificate.
pub(crate) struct Peer<'a> {
    lab: &'a Lab,
    place: Place,
    /// What leads to the broker, with the certificate.
    arguments: Vec<String>,
}

/// The refusal of an MQTT 5 broker: not authorized, and packet too large.
const DENIED: u8 = 135;
const TOO_LARGE: u8 = 149;

impl<'a> Peer<'a> {
    pub(crate) fn user(lab: &'a Lab, name: &str) -> Self {
        let dir = format!("users/{name}/home/.config/rssh");
        Self::at(lab, lab.place(Some(name)).unwrap(), &dir, "user")
    }

    pub(crate) fn device(lab: &'a Lab, n: u32) -> Self {
        Self::at(lab, Place::Device(n), &format!("devices/device-{n}/state"), "device")
    }

    fn at(lab: &'a Lab, place: Place, dir: &str, name: &str) -> Self {
        let dir = lab.dir().inside(dir);
        let address = broker::address();
        let (host, port) = address.split_once(':').unwrap();
        let arguments = [
            "-V",
            "5",
            "-q",
            "1",
            "-d",
            "-h",
            host,
            "-p",
            port,
            "--cafile",
            &format!("{dir}/servers-ca.pem"),
            "--cert",
            &format!("{dir}/{name}.pem"),
            "--key",
            &format!("{dir}/{name}.key"),
        ];
        Self {
            lab,
            place,
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }

    fn argv<'b>(&'b self, program: &'b str, more: &[&'b str]) -> Vec<&'b str> {
        // Line by line, also into a pipe.
        let fixed = ["stdbuf", "-oL", program].into_iter();
        let mut argv: Vec<&str> = fixed.chain(self.arguments.iter().map(String::as_str)).collect();
        argv.extend(more);
        argv
    }

    /// Publishes a message; returns the broker's reason code.
    pub(crate) fn publish(&self, topic: &str, payload: &[u8], more: &[&str]) -> u8 {
        let argv = self.argv("mosquitto_pub", &[&["-s", "-t", topic], more].concat());
        let mut child = self
            .lab
            .command(&self.place, &argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(payload).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = all_of(&output);
        let code = said
            .split_once("received PUBACK (Mid: 1, RC:")
            .map(|(_, rest)| rest.split(')').next().unwrap());
        code.unwrap_or_else(|| panic!("{topic}: {said}")).parse().unwrap()
    }

    /// Publishes the same line many times, as fast as the broker takes it.
    pub(crate) fn flood(&self, topic: &str, line: &str, times: usize) {
        self.pour(topic, std::iter::repeat_n(line.to_owned(), times));
    }

    /// Publishes whatever lines come, as they come, until none will.
    pub(crate) fn pour(&self, topic: &str, lines: impl Iterator<Item = String>) {
        let argv = self.argv("mosquitto_pub", &["-l", "-t", topic]);
        let mut child = self
            .lab
            .command(&self.place, &argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for line in lines {
            writeln!(stdin, "{line}").unwrap();
        }
        drop(stdin);
        assert!(child.wait().unwrap().success());
    }

    /// Whether the broker refuses the connection itself.
    pub(crate) fn is_refused(&self) -> bool {
        let argv = self.argv("mosquitto_pub", &["-t", "x", "-m", "x"]);
        let output = self.lab.command(&self.place, &argv).output().unwrap();
        all_of(&output).contains("Connection Refused") || all_of(&output).contains("Not authorized")
    }

    /// Subscribes; returns the broker's reason code, and what goes on listening.
    pub(crate) fn subscribe(&self, filter: &str, more: &[&str]) -> (u8, Listener) {
        let argv = self.argv("mosquitto_sub", &[&["-W", "20", "-t", filter], more].concat());
        let mut child = self
            .lab
            .command(&self.place, &argv)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let subscribed = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| Some(line.strip_prefix("Subscribed (mid: 1): ")?.parse().unwrap()));
        let code = subscribed.unwrap_or_else(|| panic!("{filter}: no answer"));
        (code, Listener { child, lines })
    }

    /// Sends a request as `rssh` does, under an id of the caller's choice; returns the last word on it.
    pub(crate) fn request(&self, user: &str, id: &str, operation: &Value) -> Value {
        let session = rssh_proto::SessionId::generate();
        let (code, listener) = self.subscribe(&format!("rssh/v1/user/{user}/reply/{session}"), &[]);
        assert!(code < 3, "{code}");
        let mut request = json!({"v": 1, "id": id, "session": session, "deadline_ms": 10_000});
        request
            .as_object_mut()
            .unwrap()
            .extend(operation.as_object().unwrap().clone());
        let topic = format!("rssh/v1/user/{user}/request");
        assert_eq!(self.publish(&topic, request.to_string().as_bytes(), &[]), 0);
        listener
            .filter_map(|text| serde_json::from_str::<Value>(&text).ok())
            .find(|reply| reply["rank"] == "final")
            .unwrap_or_else(|| panic!("no answer to {request}"))["body"]
            .take()
    }
}

/// A subscription, line by line.
pub(crate) struct Listener {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Listener {
    /// What listens.
    pub(crate) fn process(&self) -> Process {
        Process::with_pid(self.child.id().cast_signed()).unwrap()
    }
}

impl Iterator for Listener {
    type Item = String;

    /// The next message that is an object; what the client says of itself never is.
    fn next(&mut self) -> Option<String> {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines.find(|line| line.starts_with('{'))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn dropped(lab: &Lab) -> u64 {
    let counts = health(lab)
        .into_iter()
        .map(|health| health["messages_dropped"].as_u64().unwrap());
    counts.sum()
}

#[test]
fn what_is_no_request_is_dropped_and_counted_and_the_servers_go_on() {
    let lab = lab();
    let user = Peer::user(&lab, "sybil");
    let good =
        json!({"v": 1, "id": TunnelId::generate(), "session": "0123456789abcdef", "deadline_ms": 1000, "op": "list"})
            .to_string();
    let deep = "[".repeat(2000);
    let open = |device: &str| {
        good.replace(
            "\"list\"",
            &format!("\"open\",\"device\":{device},\"target\":\"localhost:22\""),
        )
    };
    let bad: Vec<Vec<u8>> = vec![
        b"{".to_vec(),
        b"null".to_vec(),
        b"not json".to_vec(),
        b"\xff\xfe{}".to_vec(),
        good.replace("\"list\"", "\"\u{0}\"").into_bytes(),
        [good.as_bytes(), b"\xc3\x28"].concat(),
        good.replace("\"v\":1", "\"v\":2").into_bytes(),
        good.replace("\"v\":1", "\"v\":\"1\"").into_bytes(),
        good.replace("1000", "-1").into_bytes(),
        good.replace("1000", "1e99").into_bytes(),
        good.replace("0123456789abcdef", "../../device/x").into_bytes(),
        good.replace("0123456789abcdef", "+").into_bytes(),
        good.replace("\"list\"", "\"format-disk\"").into_bytes(),
        open("\"Device-2\"").into_bytes(),
        open("\"device-2\\n\"").into_bytes(),
        open("\"$(id)\"").into_bytes(),
        open("\"-oProxyCommand=id\"").into_bytes(),
        open("\"%h\"").into_bytes(),
        open("\"../device-2\"").into_bytes(),
        open("[\"device-2\"]").into_bytes(),
        deep.clone().into_bytes(),
        good.replace("{\"", &format!("{{\"extra\":{deep},\"")).into_bytes(),
        vec![b' '; 4096],
    ];
    let before = dropped(&lab);
    let topic = "rssh/v1/user/sybil/request";
    for payload in &bad {
        assert_eq!(
            user.publish(topic, payload, &[]),
            0,
            "{}",
            String::from_utf8_lossy(payload)
        );
    }
    for length in [4097, 5000, 100_000] {
        assert_eq!(user.publish(topic, &vec![b'x'; length], &[]), TOO_LARGE, "{length}");
    }
    let expected = before + bad.len() as u64;
    within(PATIENTLY, "each message is counted", || dropped(&lab) >= expected);
    // Every server has seen some, and serves.
    assert!(
        health(&lab)
            .iter()
            .all(|health| health["messages_dropped"].as_u64() > Some(0))
    );
    for _ in 0..SERVERS * 2 {
        assert_eq!(said(&lab, "sybil", &["rssh", "ls", "--json"]), "");
    }
    let count = lab
        .psql("SELECT count(*) FROM tunnels WHERE user_id = 'sybil'")
        .unwrap();
    assert_eq!(count, "0");
}

#[test]
fn what_a_device_says_amiss_is_dropped_and_the_device_stays_reachable() {
    let lab = lab();
    let device = Peer::device(&lab, 25);
    let before = dropped(&lab);
    let instance = "0123456789abcdef";
    let status =
        json!({"v": 1, "presence": "online", "generation": 1, "instance": instance, "tunnels": []}).to_string();
    let bad = [
        "{".to_owned(),
        status.replace("online", "on fire"),
        status.replace("\"generation\":1", "\"generation\":-1"),
        status.replace("[]", "[[\"x\",1]]"),
        status.replace("[]", &"[".repeat(2000)),
    ];
    for payload in &bad {
        for topic in ["status", "event"] {
            let topic = format!("rssh/v1/device/device-25/{topic}");
            assert_eq!(device.publish(&topic, payload.as_bytes(), &[]), 0);
        }
    }
    let expected = before + 2 * bad.len() as u64;
    within(PATIENTLY, "each message is counted", || dropped(&lab) >= expected);
    // An old generation's farewell changes nothing either.
    let late = status.replace("online", "offline");
    assert_eq!(
        device.publish("rssh/v1/device/device-25/status", late.as_bytes(), &[]),
        0
    );
    open(&lab, "user-19", "device-25", &[]);
    said(&lab, "user-19", &["rssh", "close", "device-25"]);
}

#[test]
fn a_device_speaks_for_its_own_tunnels_only() {
    let lab = lab();
    let opened = open(&lab, "user-18", "device-26", &[]);
    let before = crate::lease(&lab, &opened.tunnel);
    let device = Peer::device(&lab, 27);
    for event in [
        json!("closed"),
        json!({"lost": {"reason": "x"}}),
        json!({"failed": {"kind": "target-refused", "message": "x"}}),
    ] {
        let event =
            json!({"v": 1, "tunnel": opened.tunnel, "instance": "0123456789abcdef", "epoch": 1, "event": event});
        assert_eq!(
            device.publish("rssh/v1/device/device-27/event", event.to_string().as_bytes(), &[]),
            0
        );
    }
    // The same session's requests come after those events, to whichever server.
    for _ in 0..SERVERS * 2 {
        assert!(said(&lab, "user-18", &["rssh", "ls", "--json"]).contains(&opened.tunnel));
    }
    assert_eq!(said(&lab, "user-18", &["ssh", "device-26", "hostname"]), "device-26\n");
    assert_eq!(crate::lease(&lab, &opened.tunnel), before);
}

#[test]
fn nobody_speaks_in_anothers_name() {
    let lab = lab();
    for (peer, own) in [
        (Peer::user(&lab, "sybil"), "rssh/v1/user/sybil/request"),
        (Peer::device(&lab, 27), "rssh/v1/device/device-27/event"),
    ] {
        assert_eq!(peer.publish(own, b"?", &[]), 0);
        for topic in [
            "rssh/v1/user/alice/request",
            "rssh/v1/user/sybil/reply/0123456789abcdef",
            "rssh/v1/user/alice/reply/0123456789abcdef",
            "rssh/v1/device/device-2/open",
            "rssh/v1/device/device-2/close",
            "rssh/v1/device/device-2/status",
            "rssh/v1/device/device-2/event",
            "rssh/v1/device/device-27/open",
            "rssh/v1/server/s1/request",
            "rssh/v1/server/s1/status",
            "rssh/v1/router/lb1/status",
            "$CONTROL/dynamic-security/v1",
            &format!("{own}/x"),
        ] {
            assert_eq!(peer.publish(topic, b"{}", &[]), DENIED, "{topic}");
            assert_eq!(peer.publish(topic, b"{}", &["-r"]), DENIED, "{topic}, retained");
        }
    }
}

#[test]
fn nobody_listens_to_others() {
    let lab = lab();
    for (peer, own) in [
        (Peer::user(&lab, "sybil"), "rssh/v1/user/sybil/reply/+"),
        (Peer::device(&lab, 27), "rssh/v1/device/device-27/open"),
    ] {
        assert!(peer.subscribe(own, &[]).0 < 3, "{own}");
        for filter in [
            "#",
            "+/#",
            "rssh/#",
            "rssh/v1/+/+/+",
            "$SYS/#",
            "$CONTROL/#",
            "$share/serverd/rssh/v1/user/+/request",
            "$share/serverd/rssh/v1/device/+/status",
            "$share/serverd/rssh/v1/device/+/event",
            "$share/serverd/#",
            "$share/mine/rssh/v1/user/+/request",
            "rssh/v1/user/+/request",
            "rssh/v1/user/sybil/request",
            "rssh/v1/user/+/reply/+",
            "rssh/v1/user/alice/reply/+",
            "rssh/v1/device/+/open",
            "rssh/v1/device/device-2/open",
            "rssh/v1/device/device-2/status",
            "rssh/v1/server/+/status",
            "rssh/v1/server/s1/request",
        ] {
            assert_eq!(peer.subscribe(filter, &[]).0, DENIED, "{filter}");
        }
    }
}

#[test]
fn a_will_on_anothers_topic_is_not_carried_out() {
    let lab = lab();
    let session = "0123456789will01";
    let topic = format!("rssh/v1/user/rupert/reply/{session}");
    let rupert = Peer::user(&lab, "rupert");
    let (_, mut heard) = rupert.subscribe(&topic, &[]);
    for (peer, own) in [
        (Peer::user(&lab, "sybil"), "rssh/v1/user/sybil/reply/+"),
        (Peer::device(&lab, 27), "rssh/v1/device/device-27/close"),
    ] {
        let will = ["--will-topic", topic.as_str(), "--will-payload", "{\"will\":1}"];
        let (code, listener) = peer.subscribe(own, &will);
        assert!(code < 3, "{code}");
        // It dies without a farewell.
        drop(listener);
    }
    // Whatever those deaths brought comes before the answer to a request.
    let request = json!({"v": 1, "id": TunnelId::generate(), "session": session, "deadline_ms": 5000, "op": "list"});
    assert_eq!(
        rupert.publish("rssh/v1/user/rupert/request", request.to_string().as_bytes(), &[]),
        0
    );
    let first = heard.next().unwrap();
    assert!(first.contains("\"tunnels\""), "{first}");
}

#[test]
fn a_retained_request_is_carried_out_once() {
    let lab = lab_alone();
    let user = Peer::user(&lab, "rupert");
    let request = json!({
        "v": 1, "id": TunnelId::generate(), "session": "0123456789abcdef", "deadline_ms": 10_000,
        "op": "open", "device": "device-28", "target": "localhost:22", "new": true, "hold": true,
    });
    let topic = "rssh/v1/user/rupert/request";
    assert_eq!(user.publish(topic, request.to_string().as_bytes(), &["-r"]), 0);
    let states = || {
        lab.psql("SELECT state FROM tunnels WHERE device_id = 'device-28'")
            .unwrap()
    };
    within(PATIENTLY, "the tunnel is open", || states() == "active");
    said(&lab, "rupert", &["rssh", "close", "device-28"]);
    assert_eq!(states(), "closed");
    // Not even to servers that subscribe anew.
    for n in 1..=SERVERS {
        lab.ctl(Action::Restart, &format!("serverd-{n}")).unwrap();
    }
    for _ in 0..SERVERS * 2 {
        assert_eq!(said(&lab, "rupert", &["rssh", "ls", "--json"]), "");
    }
    assert_eq!(states(), "closed");
}
