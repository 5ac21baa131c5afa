//! Devices: each with an agent, and with an sshd of its own to log in to.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::component::Component;
use crate::files;
use crate::parts::{server, ssh_keygen};
use crate::place::{Place, device_address, device_name};
use crate::ready::{Ready, notify_variable};
use crate::run;
use crate::setup::Setup;

fn dir(n: u32) -> String {
    format!("devices/{}", device_name(n))
}

/// Makes the sshd of device `n`; returns its public host key.
///
/// # Errors
/// When ssh-keygen fails.
pub fn init(setup: &Setup, n: u32) -> Result<String> {
    let outside = setup.root.join(dir(n));
    files::make_dir(&outside.join("sshd/sshd_config.d"))?;
    files::write(&outside.join("sshd/sshd_config"), sshd_config(setup, n))?;
    ssh_keygen::key_pair(&outside.join("sshd/ssh_host_ed25519_key"))
}

/// Lets the holders of these keys log in to device `n`.
///
/// # Errors
/// When the file cannot be written.
pub fn authorize(setup: &Setup, n: u32, keys: &str) -> Result<()> {
    files::write(&setup.root.join(dir(n)).join("sshd/authorized_keys"), keys)
}

/// The device's own sshd: root by key, as many small devices have it; its banner tells which device it is.
fn sshd_config(setup: &Setup, n: u32) -> String {
    let dir = setup.root.inside(format_args!("{}/sshd", dir(n)));
    format!(
        "Include {dir}/sshd_config.d/*.conf\n\
         Port 22\n\
         ListenAddress localhost\n\
         VersionAddendum {name}\n\
         HostKey {dir}/ssh_host_ed25519_key\n\
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

/// Has the operator make a token for all devices; returns its file.
///
/// # Errors
/// When the product's command fails.
pub fn token(setup: &Setup) -> Result<String> {
    let devices = setup.options.devices.max(1).to_string();
    let args = ["device", "add", "--uses", &devices];
    server::token(setup, &args, "devices")
}

/// Enrols device `n`, on the device.
///
/// # Errors
/// When the product's command fails.
pub fn enrol(setup: &Setup, n: u32, token: &str) -> Result<()> {
    let inside = |below: &str| setup.root.inside(format_args!("{}/{below}", dir(n)));
    let mut enrol = setup.programs.at(&setup.root, &Place::Device(n), None);
    enrol
        .arg(setup.programs.path("rssh-agentd"))
        .args(["enroll", &server::url(), "--device", &device_name(n)])
        .args(["--config", &inside("agentd.toml"), "--state-dir", &inside("state")])
        .args(["--token-file", token, "--sshd-config", &inside("sshd/sshd_config")])
        .args(["--trust-user-ca", "--no-reload"]);
    run::checked(&mut enrol).map(drop)
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
