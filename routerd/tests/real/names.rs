//! Who gets in by which name.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use base64::Engine as _;
use ring::hmac;
use rssh_routerd::desired::{Desired, Map, Rows};
use rssh_routerd::plan;

use crate::front::{Front, Got, unix_now};
use crate::parts::{banner, free, greeter, loopback, until};

/// A running HAProxy that routes to s1, whose tunnel is a greeter.
pub(crate) struct Door {
    pub(crate) front: Front,
    pub(crate) tunnel: SocketAddr,
}

fn rows(rows: &[(&str, String)]) -> Rows {
    rows.iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect()
}

impl Door {
    pub(crate) async fn open() -> Self {
        let mut front = Front::alone();
        let tunnel = greeter(free(loopback()), "device").await;
        let key = |server: &str| front.master.key(&server.parse().unwrap()).to_base64();
        let mut desired = Desired::default();
        // s3 has an address, as s1 has, but no key.
        let addresses = [("s1", tunnel.ip().to_string()), ("s3", tunnel.ip().to_string())];
        desired.maps.insert(Map::Addresses, rows(&addresses));
        desired.maps.insert(Map::KeysCurrent, rows(&[("s1", key("s1"))]));
        desired.maps.insert(Map::KeysPrevious, Rows::new());
        front.write(&desired);
        front.start().await;
        Self { front, tunnel }
    }

    pub(crate) fn name(&self, user: &str) -> String {
        self.front.name("s1", self.tunnel.port(), Some(user))
    }

    /// A name with a mac made with any key.
    fn forged(&self, server: &str, key: &[u8], user: &str) -> String {
        let (port, exp) = (self.tunnel.port(), unix_now() + 120);
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let tag = hmac::sign(&key, format!("{server}:{port}:{exp}:{user}").as_bytes());
        let mac = rssh_proto::text::hex(&tag.as_ref()[..16]);
        format!("{server}-{port}-{exp}-{mac}.proxy.test")
    }

    async fn alice(&self, name: &str) -> Got {
        self.front.user(&self.front.alice, name).await
    }

    async fn execute(&self, command: plan::Command) {
        self.front.runtime().execute(&command).await.unwrap();
    }
}

pub(crate) fn in_() -> Got {
    Got::Banner(banner("device"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_name_admits_its_user_and_nobody_else() {
    let door = Door::open().await;
    let front = &door.front;
    assert_eq!(door.alice(&door.name("alice")).await, in_());
    assert_eq!(front.user(&front.bob, &door.name("bob")).await, in_());
    assert_eq!(front.user(&front.bob, &door.name("alice")).await, Got::Refused);
    assert_eq!(
        door.alice(&front.name("s1", door.tunnel.port(), None)).await,
        Got::Refused,
        "a bearer name"
    );
    let nobody = front
        .connect(front.config.haproxy.users[0], None, &door.name("alice"), None)
        .await;
    assert_eq!(nobody, Got::Refused, "no certificate");
    let stranger = front.servers.client("alice").write(front.path(), "stranger");
    assert_eq!(
        front.user(&stranger, &door.name("alice")).await,
        Got::Refused,
        "another CA"
    );
    let odd = front.users.client("ALICE x").write(front.path(), "odd");
    assert_eq!(
        front.user(&odd, &door.forged("s1", b"", "ALICE x")).await,
        Got::Refused,
        "no user id"
    );
    let anonymous = front.users.client("").write(front.path(), "anonymous");
    let name = front.name("s1", door.tunnel.port(), None);
    assert_eq!(
        front.user(&anonymous, &name).await,
        Got::Refused,
        "an empty CN with a bearer name"
    );
    let log = front.log();
    assert!(
        log.contains(r#""user":"bob","name":"s1-"#) && log.contains(r#""check":"mac""#),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_exactly_what_a_server_signed_are_refused() {
    let door = Door::open().await;
    let (front, port) = (&door.front, door.tunnel.port());
    let good = door.name("alice");
    assert_eq!(door.alice(&good).await, in_());
    let label = good.strip_suffix(".proxy.test").unwrap();
    let fields: Vec<&str> = label.split('-').collect();
    let [server, _, exp, mac] = fields[..] else {
        panic!("{label}")
    };
    let other_port = port ^ 1;
    let flipped = if mac.starts_with('0') { "1" } else { "0" }.to_owned() + &mac[1..];
    for (what, bad) in [
        ("another port", format!("{server}-{other_port}-{exp}-{mac}")),
        ("a port with a leading zero", format!("{server}-0{port}-{exp}-{mac}")),
        (
            "a later expiry",
            format!("{server}-{port}-{}-{mac}", exp.parse::<u64>().unwrap() + 1),
        ),
        ("a wrong mac", format!("{server}-{port}-{exp}-{flipped}")),
        ("a short mac", format!("{server}-{port}-{exp}-{}", &mac[..31])),
        ("no mac", format!("{server}-{port}-{exp}")),
        ("an empty mac", format!("{server}-{port}-{exp}-")),
        ("five fields", format!("{label}-0")),
        ("five fields, the first empty", format!("0-{label}")),
        ("port 0", format!("{server}-0-{exp}-{mac}")),
        ("an unknown server", format!("s2-{port}-{exp}-{mac}")),
        ("no fields", "x".to_owned()),
    ] {
        assert_eq!(door.alice(&format!("{bad}.proxy.test")).await, Got::Refused, "{what}");
    }
    for (what, bad) in [
        ("expired", front.name_until("s1", port, unix_now() - 1, Some("alice"))),
        (
            "long expired",
            front.name_until("s1", port, 1_000_000_000, Some("alice")),
        ),
        (
            "signed, but for a server without an address",
            front.name("s2", port, Some("alice")),
        ),
        (
            "signed, but for a server without a key row",
            front.name("s3", port, Some("alice")),
        ),
        ("no key at all", door.forged("s3", b"", "alice")),
        ("an empty key", door.forged("s1", b"", "alice")),
        ("the key \"none\"", door.forged("s1", b"none", "alice")),
        (
            "the key \"none\", decoded",
            door.forged("s1", &base64_lossy("none"), "alice"),
        ),
        (
            "the key \"none\" for a server without one",
            door.forged("s3", b"none", "alice"),
        ),
        ("another label before it", format!("x.{good}")),
        ("another domain", good.replace("proxy.test", "proxy.example")),
        (
            "a domain that only ends alike",
            good.replace("proxy.test", "evilproxy.test"),
        ),
    ] {
        assert_eq!(door.alice(&bad).await, Got::Refused, "{what}");
    }
    assert_eq!(door.alice(&good).await, in_(), "and the good one still works");
}

fn base64_lossy(text: &str) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_with_an_empty_or_short_key_is_no_key() {
    let door = Door::open().await;
    let path = door.front.path().join("haproxy/maps/keys-current.map");
    for (row, key) in [
        ("s3 none\n", b"none".as_slice()),
        ("s3 AAAA\n", &[0, 0, 0]),
        ("s3\n", b""),
        ("s3 \n", b""),
    ] {
        let before = std::fs::read_to_string(&path).unwrap();
        let s1: String = before
            .lines()
            .filter(|line| line.starts_with("s1"))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(&path, s1 + row).unwrap();
        // Even when such a row came into the file by hand.
        door.front.reload().await;
        for key in [key, b"", b"none", &base64_lossy("none")] {
            assert_eq!(
                door.alice(&door.forged("s3", key, "alice")).await,
                Got::Refused,
                "{row:?} {key:?}"
            );
        }
        assert_eq!(door.alice(&door.name("alice")).await, in_());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_keys_change_names_by_the_key_before_are_good_too() {
    let door = Door::open().await;
    let old = door.name("alice");
    let current = rssh_proto::NameMaster::generate().key(&"s1".parse().unwrap());
    let previous = door.front.master.key(&"s1".parse().unwrap());
    let row = |map, key: String| plan::Command::MapReplace(map, rows(&[("s1", key)]));
    door.execute(row(Map::KeysCurrent, current.to_base64())).await;
    assert_eq!(door.alice(&old).await, Got::Refused);
    door.execute(row(Map::KeysPrevious, previous.to_base64())).await;
    assert_eq!(door.alice(&old).await, in_());
    let domain = "proxy.test".parse().unwrap();
    let user = "alice".parse().unwrap();
    let server = "s1".parse().unwrap();
    let new = rssh_proto::SignedName::sign(&current, &server, door.tunnel.port(), unix_now() + 120, Some(&user));
    assert_eq!(door.alice(&new.host(&domain)).await, in_());
    door.execute(plan::Command::MapReplace(Map::KeysPrevious, Rows::new()))
        .await;
    assert_eq!(door.alice(&old).await, Got::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bearer_name_is_short_lived_and_its_first_user_s_alone() {
    let door = Door::open().await;
    let (front, port) = (&door.front, door.tunnel.port());
    let (first, second) = (loopback(), loopback());
    let name = front.name("s1", port, None);
    assert_eq!(front.bearer(first, &name).await, in_());
    assert_eq!(front.bearer(first, &name).await, in_());
    assert_eq!(front.bearer(second, &name).await, Got::Refused);
    assert_eq!(front.bearer(first, &name).await, in_());
    // A reload forgets nothing, once the process has given up waiting for a predecessor of its own (5 s).
    let settled = async || ask(front, "show peers").contains("resync_timeout=<PAST>");
    until("HAProxy has no predecessor", settled).await;
    front.reload().await;
    let learnt = async || ask(front, "show table bearer_holders").contains(&first.to_string());
    until("the successor knows the name's holder", learnt).await;
    assert_eq!(front.bearer(second, &name).await, Got::Refused);
    assert_eq!(front.bearer(first, &name).await, in_());
    let long = front.name_until("s1", port, unix_now() + 700, None);
    assert_eq!(front.bearer(first, &long).await, Got::Refused);
    assert_eq!(
        front.bearer(first, &front.name("s1", port, Some("alice"))).await,
        Got::Refused,
        "a user's name"
    );
}

/// Asks HAProxy's admin socket something that the product has no need to ask.
fn ask(front: &Front, question: &str) -> String {
    let mut socket = std::os::unix::net::UnixStream::connect(front.config.haproxy.socket.path()).unwrap();
    socket.write_all(format!("{question}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_race_for_a_bearer_name_one_gets_it() {
    let door = Door::open().await;
    let front = std::sync::Arc::new(door.front);
    let name = front.name("s1", door.tunnel.port(), None);
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let (front, name) = (front.clone(), name.clone());
            tokio::spawn(async move { front.bearer(loopback(), &name).await })
        })
        .collect();
    let mut winners = 0;
    for racer in racers {
        winners += usize::from(racer.await.unwrap() == in_());
    }
    assert_eq!(winners, 1);
}

/// Runs `openssl s_client`; returns what it printed of the session, and the banner if there was one.
fn openssl(front: &Front, name: &str, options: &[&str]) -> (String, bool) {
    let mut client = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &front.config.haproxy.users[0].to_string(),
            "-servername",
            name,
        ])
        .arg("-cert")
        .arg(&front.alice.cert)
        .arg("-key")
        .arg(&front.alice.key)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(client.stdout.take().unwrap());
    let mut said = String::new();
    // Until the banner, or the end of a refused connection.
    while output.read_line(&mut said).unwrap() > 0 && !said.contains("SSH-2.0-device") {}
    drop(client.stdin.take());
    client.kill().unwrap();
    output.read_to_string(&mut said).unwrap();
    client.wait().unwrap();
    let admitted = said.contains("SSH-2.0-device");
    (said, admitted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_capitals_is_the_same_name() {
    let door = Door::open().await;
    let (said, admitted) = openssl(&door.front, &door.name("alice").to_uppercase(), &[]);
    assert!(admitted, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_revocation_neither_a_new_nor_a_resumed_session_gets_in() {
    let serial = |door: &Door| {
        let shown = Command::new("openssl")
            .args(["x509", "-noout", "-serial", "-in"])
            .arg(&door.front.alice.cert)
            .output()
            .unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        let serial = shown.trim().strip_prefix("serial=").unwrap();
        serial.trim_start_matches('0').to_ascii_lowercase()
    };
    for by_serial in [false, true] {
        let door = Door::open().await;
        let (map, key) = if by_serial {
            (Map::RevokedSerials, serial(&door))
        } else {
            (Map::RevokedUsers, "alice".to_owned())
        };
        let saved = |version: &str| door.front.path().join(format!("session{version}"));
        for version in ["-tls1_2", "-tls1_3"] {
            let file = saved(version);
            let file = file.to_str().unwrap();
            let (said, admitted) = openssl(&door.front, &door.name("alice"), &[version, "-sess_out", file]);
            assert!(admitted, "{said}");
            if saved(version).exists() {
                let (said, admitted) = openssl(&door.front, &door.name("alice"), &[version, "-sess_in", file]);
                assert!(admitted && !said.contains("Reused"), "a session was resumed: {said}");
            }
        }
        door.execute(plan::Command::MapAdd(map, key, "1".into())).await;
        assert_eq!(door.alice(&door.name("alice")).await, Got::Refused);
        assert_eq!(door.front.user(&door.front.bob, &door.name("bob")).await, in_());
        for version in ["-tls1_2", "-tls1_3"] {
            if saved(version).exists() {
                let file = saved(version);
                let (said, admitted) = openssl(
                    &door.front,
                    &door.name("alice"),
                    &[version, "-sess_in", file.to_str().unwrap()],
                );
                assert!(!admitted, "{said}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn old_versions_of_tls_are_refused() {
    let door = Door::open().await;
    let (said, admitted) = openssl(
        &door.front,
        &door.name("alice"),
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    );
    assert!(!admitted, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_address_that_floods_is_refused_and_others_are_not() {
    let door = Door::open().await;
    let at = door.front.config.haproxy.users[0];
    let flooder = loopback();
    let connect = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(flooder, 0)).unwrap();
        socket.connect(at).await
    };
    let most = rssh_routerd::config::Limits::default().users_source;
    // Refused ones are closed at once; the others would be waited on for their TLS handshake.
    let mut refused = false;
    for _ in 0..most * 2 {
        let Ok(mut stream) = connect().await else { continue };
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte);
        match tokio::time::timeout(std::time::Duration::from_micros(200), read).await {
            Err(_) => {}
            Ok(_) => {
                refused = true;
                break;
            }
        }
    }
    assert!(refused, "{most} connections and more were taken");
    assert_eq!(door.alice(&door.name("alice")).await, in_(), "from another address");
}
