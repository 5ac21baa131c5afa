//! One port for everything.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::front::Got;
use crate::names::{Door, in_};
use crate::parts::{banner, greeter, until};

/// The first bytes of a TLS client that offers these protocols.
fn hello(protocols: &[&str]) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("mqtt.proxy.test").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// What the public port answers to a client's first bytes.
async fn answer(door: &Door, first: &[u8]) -> String {
    let public = door.front.config.haproxy.public.as_ref().unwrap().listen[0];
    let mut stream = TcpStream::connect(public).await.unwrap();
    stream.write_all(first).await.unwrap();
    let mut said = Vec::new();
    let reading = async {
        while !said.ends_with(b"\n") {
            match stream.read_u8().await {
                Ok(byte) => said.push(byte),
                Err(_) => break,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap();
    String::from_utf8_lossy(&said).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_goes_to_the_broker_with_its_tls() {
    let door = Door::open().await;
    let broker = door.front.config.mqtt.brokers[0].to_string().parse().unwrap();
    assert_eq!(answer(&door, &hello(&["mqtt"])).await, "", "no broker");
    greeter(broker, "broker").await;
    until("HAProxy has seen the broker", async || {
        answer(&door, &hello(&["mqtt"])).await == banner("broker")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_names_are_admitted_as_at_their_own_doors() {
    let door = Door::open().await;
    let public = door.front.config.haproxy.public.as_ref().unwrap().listen[0];
    let (front, port) = (&door.front, door.tunnel.port());
    let to = async |name: &str, who| front.connect(public, None, name, who).await;
    assert_eq!(to(&door.name("alice"), Some(&front.alice)).await, in_());
    assert_eq!(to(&door.name("alice"), Some(&front.bob)).await, Got::Refused);
    assert_eq!(
        to(&door.name("alice"), None).await,
        Got::Refused,
        "without a certificate"
    );
    let bearer = front.name("s1", port, None);
    assert_eq!(
        to(&bearer, Some(&front.alice)).await,
        Got::Refused,
        "a bearer name at the users' door"
    );
    let browser = front.browse(public, &bearer).await;
    assert_eq!(browser, in_(), "a browser with a bearer name");
    assert_eq!(front.browse(public, &door.name("alice")).await, Got::Refused);
    let log = front.log();
    assert!(
        log.contains(r#""door":"users""#) && !log.contains(r#""src":"unix:"#),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_neither_ssh_nor_tls_gets_no_answer() {
    let door = Door::open().await;
    assert_eq!(answer(&door, b"GET / HTTP/1.0\r\n\r\n").await, "");
}
