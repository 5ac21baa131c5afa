//! mosquitto: TLS, client certificates, and access denied by default, as `rssh-serverd broker render` has it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::component::Component;
use crate::parts::{pki, server};
use crate::place::{BROKER_PORT, LB, LB2, Place, socket};
use crate::ready::Ready;
use crate::setup::{Setup, numbered};

/// Where the first broker listens.
pub fn address() -> String {
    socket(LB, BROKER_PORT)
}

/// Where a broker and a load balancer are.
pub fn host(n: u32) -> Ipv4Addr {
    if n == 1 { LB } else { LB2 }
}

/// Where the brokers listen, as a TOML list.
pub fn addresses(setup: &Setup) -> String {
    let all: Vec<String> = setup
        .twins()
        .map(|n| format!("\"{}\"", socket(host(n), BROKER_PORT)))
        .collect();
    format!("[{}]", all.join(", "))
}

/// The directory of broker `n`.
pub fn dir(n: u32) -> String {
    numbered("broker", n)
}

/// Writes the broker's configuration.
///
/// # Errors
/// When the product's command fails.
pub fn render(setup: &Setup, n: u32) -> Result<()> {
    let dir = dir(n);
    server::admin(
        setup,
        &[
            "broker",
            "render",
            "--pki",
            &pki::dir(setup),
            "--listen",
            &socket(host(n), BROKER_PORT),
            "--cert",
            &setup.root.inside(format_args!("{dir}/tls.pem")),
            "--key",
            &setup.root.inside(format_args!("{dir}/tls.key")),
            "--dir",
            &setup.root.inside(&dir),
            "--user",
            "root",
        ],
    )
}

/// Broker `n`: mosquitto is no cluster, each knows its clients and what they retain by itself.
pub fn component(setup: &Setup, n: u32) -> Component {
    let listen = SocketAddr::new(host(n).into(), BROKER_PORT);
    let config = setup.root.inside(format_args!("{}/mosquitto.conf", dir(n)));
    Component::new(numbered("mosquitto", n), Place::Core, &["mosquitto", "-c", &config]).ready(Ready::Tcp(listen))
}
