//! Hostile keys, users and messages against the real stack, and failures as people meet them.
//!
//! All of a run share one lab; each test has a device and a user of its own. Its servers say at which port they let
//! whom listen: serverd logs its reservations, sshd its decisions.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod administration;
mod audit;
mod bearer;
mod broker;
mod claims;
mod failures;
mod fairness;
mod keys;
mod names;
mod redis;
mod secrets;
mod sharing;
mod thief;
mod threats;
mod words;

use std::collections::HashSet;
use std::fs;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use rssh_lab::component::Component;
use rssh_lab::place::{HEALTH_PORT, Place, server_address, socket};
use rssh_lab::process::{PATIENTLY, PROMPTLY};
use rssh_lab::testing::{administer, all_of, first_line, greeting, said, shared, within};
use rssh_lab::{Action, Lab, Options};
use rssh_proto::failure::FailureKind;
use serde::Deserialize;

/// How many servers the lab has.
const SERVERS: u32 = 2;

/// Held for reading by each test, for writing by those that take something away from all.
static PEACE: RwLock<()> = RwLock::new(());

/// The lab that tests share, for as long as nobody else needs it alone.
struct Shared<Guard> {
    lab: Arc<Lab>,
    _guard: Guard,
}

impl<Guard> Deref for Shared<Guard> {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// The lab, beside other tests.
fn lab() -> Shared<RwLockReadGuard<'static, ()>> {
    // Whoever waits for peace keeps the lab up.
    Shared {
        lab: running(),
        _guard: PEACE.read().unwrap_or_else(PoisonError::into_inner),
    }
}

/// The lab, while no other test uses it.
fn lab_alone() -> Shared<RwLockWriteGuard<'static, ()>> {
    Shared {
        lab: running(),
        _guard: PEACE.write().unwrap_or_else(PoisonError::into_inner),
    }
}

/// The lab: up from the first that asks to the last that lets go.
fn running() -> Arc<Lab> {
    let options = Options {
        servers: NonZeroU32::new(SERVERS).unwrap(),
        devices: 55,
        users: 42,
        ..Options::default()
    };
    shared(options, make_talkative)
}

/// Has serverd log each reservation, and sshd what it permits to whom.
fn make_talkative(lab: &Lab) {
    for n in 1..=SERVERS {
        let name = format!("serverd-{n}");
        let component = Component::read(lab.dir(), &name).unwrap();
        component
            .env("RSSH_LOG", "info,rssh_serverd=debug")
            .write(lab.dir())
            .unwrap();
        // It writes sshd's configuration when it starts.
        lab.ctl(Action::Restart, &name).unwrap();
        let file = lab.dir().join(format!("servers/s{n}/sshd/sshd_config"));
        let config = fs::read_to_string(&file).unwrap();
        assert!(config.contains("LogLevel VERBOSE\n"), "{config}");
        fs::write(&file, config.replace("LogLevel VERBOSE\n", "LogLevel DEBUG1\n")).unwrap();
        lab.ctl(Action::Restart, &format!("sshd-{n}")).unwrap();
    }
    within(PATIENTLY, "the load balancer sees every server", || {
        rssh_lab::parts::router::servers_up(lab.dir()).is_ok_and(|up| up == SERVERS as usize)
    });
}

/// What `rssh open --json` prints, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Opened {
    tunnel: String,
    device: String,
    server: String,
    host: String,
    expires_at: String,
    banner: Option<String>,
}

/// Opens a tunnel with more arguments, or fails the test.
fn open(lab: &Lab, user: &str, device: &str, more: &[&str]) -> Opened {
    let text = said(lab, user, &[&["rssh", "open", device, "--json"], more].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs a command that has to fail: with the kind's own exit code, and with one line that names the object and a remedy.
/// Returns how long that took.
#[track_caller]
fn fails(lab: &Lab, user: &str, argv: &[&str], kind: FailureKind, object: &str) -> Duration {
    let began = Instant::now();
    let output = lab.exec(user, argv).unwrap();
    let took = began.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    let all = || format!("{user}: {argv:?} after {took:?}: {}", all_of(&output));
    assert_eq!(output.status.code(), Some(i32::from(kind.exit_code())), "{}", all());
    assert_eq!(output.stdout, b"", "{}", all());
    assert_eq!(said.trim_end().lines().count(), 1, "{}", all());
    assert!(said.contains(object), "{object} is not named: {}", all());
    assert!(
        said.contains(';') || said.contains(" it allows "),
        "no remedy: {}",
        all()
    );
    took
}

/// The live lease of a tunnel as `SERVER|PORT|EPOCH`; empty when it has none.
fn lease(lab: &Lab, tunnel: &str) -> String {
    lab.psql(&format!(
        "SELECT server_id, port, epoch FROM live_leases WHERE tunnel_id = '{tunnel}'"
    ))
    .unwrap()
}

/// The addresses at which something listens on the servers' side.
fn listeners(lab: &Lab) -> HashSet<String> {
    let output = lab.command(&Place::Core, &["ss", "-Htln"]).output().unwrap();
    assert!(output.status.success(), "{}", all_of(&output));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(3).map(str::to_owned))
        .collect()
}

/// What the health checks of all servers say.
fn health(lab: &Lab) -> Vec<serde_json::Value> {
    (1..=SERVERS)
        .map(|n| {
            let url = format!("http://{}/healthz", socket(server_address(n), HEALTH_PORT));
            let output = lab
                .command(&Place::Core, &["curl", "-s", "-m", "5", &url])
                .output()
                .unwrap();
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", all_of(&output)))
        })
        .collect()
}
