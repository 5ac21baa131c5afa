//! mosquitto: TLS, client certificates, and access denied by default, as `rssh-serverd broker render` has it.

use std::net::SocketAddr;

use anyhow::Result;

use crate::component::Component;
use crate::parts::{pki, server};
use crate::place::{BROKER_PORT, LB, Place, socket};
use crate::ready::Ready;
use crate::setup::Setup;

/// Where the broker listens.
pub fn address() -> String {
    socket(LB, BROKER_PORT)
}

/// Writes the broker's configuration.
///
/// # Errors
/// When the product's command fails.
pub fn render(setup: &Setup) -> Result<()> {
    server::admin(
        setup,
        &[
            "broker",
            "render",
            "--pki",
            &pki::dir(setup),
            "--listen",
            &address(),
            "--cert",
            &setup.root.inside("broker/tls.pem"),
            "--key",
            &setup.root.inside("broker/tls.key"),
            "--dir",
            &setup.root.inside("broker"),
            "--user",
            "root",
        ],
    )
}

/// The broker.
pub fn component(setup: &Setup) -> Component {
    let listen = SocketAddr::new(LB.into(), BROKER_PORT);
    Component::new(
        "mosquitto",
        Place::Core,
        &["mosquitto", "-c", &setup.root.inside("broker/mosquitto.conf")],
    )
    .ready(Ready::Tcp(listen))
}
