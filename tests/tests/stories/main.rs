//! Stories on the real stack. All of a run share one lab; each has devices and a user of its own.

#![expect(clippy::unwrap_used, reason = "a story fails where it stands")]

mod access;
mod api;
mod certificates;
mod dashboard;
mod dropbear;
mod enrolment;
mod firewall;
mod https;
mod identity;
mod leases;
mod metrics;
mod secrets;
mod tools;
mod tunnel;
mod web;

use std::num::NonZeroU32;
use std::sync::Arc;

use rssh_lab::process::PROMPTLY;
use rssh_lab::testing::{Running, administer, all_of, greeting, said, shared, within};
use rssh_lab::{Lab, Options};
use serde::Deserialize;

/// The lab that stories share: up from the first that asks to the last that lets go.
fn lab() -> Arc<Lab> {
    let options = Options {
        servers: NonZeroU32::new(2).unwrap(),
        devices: 22,
        users: 16,
        ..Options::default()
    };
    shared(options, |_| ())
}

/// What `rssh open --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Opened {
    tunnel: String,
    device: String,
    target: String,
    server: String,
    host: String,
    port: u16,
    state: String,
    expires_at: String,
    host_expires_at: String,
    banner: Option<String>,
}

/// Opens a tunnel, or fails the story.
fn open(lab: &Lab, user: &str, device: &str) -> Opened {
    let text = said(lab, user, &["rssh", "open", device, "--json"]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// How many live leases a tunnel has.
fn leases(lab: &Lab, tunnel: &str) -> u32 {
    let count = lab.psql(&format!(
        "SELECT count(*) FROM live_leases WHERE tunnel_id = '{tunnel}'"
    ));
    count.unwrap().parse().unwrap()
}
