//! The router and the load balancer beside the server.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rssh_mqtt::identity;

use super::machine::Machine;
use super::{CONFIG, HAPROXY, PKI, ROUTER, Wanted, files, lasts};
use crate::args::Request;
use crate::cmd::enroll;
use crate::config::Config;
use crate::office::Office;
use crate::pki::Pki;

/// The account of routerd and of the HAProxy that it commands.
const ACCOUNT: &str = "rssh-routerd";
const CONFIG_FILE: &str = "/etc/rssh/routerd.toml";

/// Sets the router up: its identity, its configuration, HAProxy's, and their units.
///
/// # Errors
/// When a file cannot be written, or the server's administration refuses.
pub(super) async fn prepare(wanted: &Wanted, machine: &mut Machine) -> Result<()> {
    let (state, haproxy) = (Path::new(ROUTER), Path::new(HAPROXY));
    machine.directory(state, 0o700, ACCOUNT)?;
    machine.directory(haproxy, 0o700, ACCOUNT)?;
    certificate(wanted, machine, haproxy)?;
    for (name, to) in [("servers-ca.pem", state), ("users-ca.pem", haproxy)] {
        copy(machine, name, to, 0o644)?;
    }
    copy(machine, "name-master", state, 0o600)?;
    enrol(wanted, machine, state).await?;
    let path = Path::new(CONFIG_FILE);
    if !path.exists() {
        machine.file(
            path,
            &files::routerd(&wanted.domain, wanted.router.as_str()),
            0o644,
            "root",
        )?;
    }
    if !haproxy.join("haproxy.cfg").exists() {
        machine.run(
            "write HAProxy's configuration",
            &["runuser", "--user", ACCOUNT, "--", "rssh-routerd", "render"],
        )?;
    }
    machine.unit("rssh-haproxy.service")?;
    machine.unit("rssh-routerd.service")
}

/// The load balancer's certificate and key, in one file as HAProxy takes them.
fn certificate(wanted: &Wanted, machine: &mut Machine, haproxy: &Path) -> Result<()> {
    let path = haproxy.join("tls.pem");
    if lasts(&path) {
        return Ok(());
    }
    let names = [format!("*.{}", wanted.domain), wanted.domain.to_string()];
    if machine.change(&format!(
        "issue the certificate of the load balancer, for {}",
        names.join(" and ")
    )) {
        let renewal = path.exists();
        let (issued, key) = Pki::at(Path::new(PKI)).issue_tls(&names, &[])?;
        rssh_mqtt::files::write_secret(&path, (issued.pem + &key).as_bytes())?;
        if renewal {
            machine.run(
                "let HAProxy read its certificate",
                &["systemctl", "reload", "rssh-haproxy.service"],
            )?;
        }
    }
    Ok(())
}

/// The router's key, and the certificate that the server's administration gives it.
async fn enrol(wanted: &Wanted, machine: &mut Machine, state: &Path) -> Result<()> {
    let (request, cert) = (state.join("router.csr"), state.join("router.pem"));
    if lasts(&cert) || !machine.change(&format!("enrol the router {}", wanted.router)) {
        return Ok(());
    }
    identity::request_certificate(wanted.router.as_str(), &state.join("router.key"), &request)?;
    let office = Office::open(Config::load(Path::new(CONFIG))?)?;
    let request = Request {
        csr: request,
        cert_out: cert,
    };
    enroll::router(&office, wanted.router.clone(), &request).await
}

/// Gives the router its own copy of a file of the authorities.
fn copy(machine: &mut Machine, name: &str, to: &Path, mode: u32) -> Result<()> {
    let from = Path::new(PKI).join(name);
    if machine.is_dry() && !from.exists() {
        machine.change(&format!("copy {} to {}", from.display(), to.display()));
        return Ok(());
    }
    let text = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
    machine.secret(&to.join(name), &text, mode, ACCOUNT)
}
