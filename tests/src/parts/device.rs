//! Devices: each with an agent, and with an sshd of its own to log in to.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::component::Component;
use crate::files;
use crate::parts::{broker, server, ssh_keygen};
use crate::place::{Place, device_address, device_name};
use crate::ready::{Ready, notify_variable};
use crate::run;
use crate::setup::Setup;

fn dir(n: u32) -> String {
    format!("devices/{}", device_name(n))
}

/// Makes the keys of device `n` on the device, and writes its configuration; returns its sshd's public host key.
///
/// # Errors
/// When the product's command or ssh-keygen fails.
pub fn init(setup: &Setup, n: u32) -> Result<String> {
    let outside = setup.root.join(dir(n));
    let state = setup.root.inside(format_args!("{}/state", dir(n)));
    files::make_dir(&outside.join("state"))?;
    files::make_dir(&outside.join("sshd"))?;
    let mut init = setup.programs.at(&setup.root, &Place::Device(n), None);
    init.arg(setup.programs.path("rssh-agentd"))
        .args(["init", "--device", &device_name(n), "--dir", &state]);
    run::checked(&mut init)?;
    files::write(&outside.join("agentd.toml"), agent_toml(setup, n))?;
    files::write(&outside.join("sshd/sshd_config"), sshd_config(setup, n))?;
    ssh_keygen::key_pair(&outside.join("sshd/host_key"))
}

/// Lets the holders of these keys log in to device `n`.
///
/// # Errors
/// When the file cannot be written.
pub fn authorize(setup: &Setup, n: u32, keys: &str) -> Result<()> {
    files::write(&setup.root.join(dir(n)).join("sshd/authorized_keys"), keys)
}

fn agent_toml(setup: &Setup, n: u32) -> String {
    format!(
        r#"device = "{name}"
state-dir = "{state}"

[mqtt]
brokers = {brokers}
ca = "{state}/servers-ca.pem"
cert = "{state}/device.pem"
key = "{state}/device.key"

[ssh]
key = "{state}/ssh_key"
known-hosts = "{state}/known_hosts"
"#,
        name = device_name(n),
        state = setup.root.inside(format_args!("{}/state", dir(n))),
        brokers = broker::addresses(setup),
    )
}

/// The device's own sshd: root by key, as many small devices have it; its banner tells which device it is.
fn sshd_config(setup: &Setup, n: u32) -> String {
    let dir = setup.root.inside(format_args!("{}/sshd", dir(n)));
    format!(
        "Port 22\n\
         ListenAddress localhost\n\
         VersionAddendum {name}\n\
         HostKey {dir}/host_key\n\
         AuthorizedKeysFile {dir}/authorized_keys\n\
         # Below a directory such as /tmp no file is safe by its rules.\n\
         StrictModes no\n\
         PermitRootLogin prohibit-password\n\
         PasswordAuthentication no\n\
         KbdInteractiveAuthentication no\n\
         UsePAM no\n\
         PidFile none\n\
         PrintMotd no\n\
         AcceptEnv LANG LC_*\n\
         Subsystem sftp internal-sftp\n",
        name = device_name(n)
    )
}

/// Registers device `n` and hands it what it has to trust.
///
/// # Errors
/// When the product's command fails.
pub fn enrol(setup: &Setup, n: u32) -> Result<()> {
    let state = setup.root.inside(format_args!("{}/state", dir(n)));
    server::admin(
        setup,
        &[
            "device",
            "add",
            &device_name(n),
            "--config",
            &server::admin_config(setup),
            "--csr",
            &format!("{state}/device.csr"),
            "--ssh-key",
            &format!("{state}/ssh_key.pub"),
            "--cert-out",
            &format!("{state}/device.pem"),
        ],
    )?;
    let outside = setup.root.join(dir(n)).join("state");
    for name in ["servers-ca.pem", "known_hosts"] {
        files::copy(&setup.root.join("pki").join(name), &outside.join(name))?;
    }
    Ok(())
}

/// The sshd and agent of device `n`.
pub fn components(setup: &Setup, n: u32) -> [Component; 2] {
    let agentd = setup.programs.path("rssh-agentd");
    let name = format!("agentd-{n}");
    let (variable, value) = notify_variable(&setup.root, &name);
    let sshd = setup.root.inside(format_args!("{}/sshd/sshd_config", dir(n)));
    let config = setup.root.inside(format_args!("{}/agentd.toml", dir(n)));
    [
        Component::new(
            format!("target-{n}"),
            Place::Device(n),
            &["/usr/sbin/sshd", "-D", "-e", "-f", &sshd],
        )
        .ready(Ready::Tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 22))),
        Component::new(
            name,
            Place::Device(n),
            &[&agentd.to_string_lossy(), "run", "--config", &config],
        )
        .address(device_address(n).to_string())
        .env(&variable, value)
        .ready(Ready::Notify),
    ]
}
