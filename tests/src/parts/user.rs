//! Users: each with a home, a profile for `rssh`, and an ssh configuration that leads to the devices.

use std::path::PathBuf;

use anyhow::Result;
use rssh_proto::id::UserId;

use crate::files;
use crate::parts::{server, ssh_keygen};
use crate::place::{Place, user_name};
use crate::run;
use crate::setup::Setup;

/// User `n` as an id.
fn id(n: u32) -> Result<UserId> {
    Ok(user_name(n).parse()?)
}

fn home(setup: &Setup, user: &UserId) -> PathBuf {
    setup.root.join(format!("users/{user}/home"))
}

/// Makes the home of user `n`; returns the user's own public key for ssh.
///
/// # Errors
/// When ssh-keygen fails.
pub fn init(setup: &Setup, n: u32) -> Result<String> {
    let home = home(setup, &id(n)?);
    let ssh = home.join(".ssh");
    files::make_dir(&ssh)?;
    files::set_mode(&ssh, 0o700)?;
    files::write(&ssh.join("config"), ssh_config(setup))?;
    ssh_keygen::key_pair(&ssh.join("id_ed25519"))
}

fn ssh_config(setup: &Setup) -> String {
    // By its path: programs such as scp may run ssh with another PATH.
    let rssh = setup.programs.path("rssh");
    format!(
        "Host device-*\n\
         \x20   User root\n\
         \x20   ProxyCommand {} proxy %h %p\n\
         \x20   IdentityFile ~/.ssh/id_ed25519\n\
         \x20   IdentitiesOnly yes\n\
         \x20   UserKnownHostsFile ~/.ssh/known_hosts\n\
         \x20   StrictHostKeyChecking yes\n\
         \x20   BatchMode yes\n",
        rssh.display()
    )
}

/// Has the operator make a token for user `n`, who logs in with it.
///
/// # Errors
/// When a command of the product fails.
pub fn enrol(setup: &Setup, n: u32) -> Result<()> {
    let user = id(n)?;
    let token = server::token(setup, &["user", "add", user.as_str()], user.as_str())?;
    let mut login = setup.programs.at(&setup.root, &Place::User(user), None);
    login
        .arg(setup.programs.path("rssh"))
        .args(["login", &server::url(), "--token-file", &token]);
    run::checked(&mut login).map(drop)
}

/// Grants: bob opens device-1 only, everybody else every device.
///
/// # Errors
/// When the product's command fails.
pub fn grant(setup: &Setup, n: u32) -> Result<()> {
    let user = id(n)?;
    let config = server::admin_config(setup);
    if user.as_str() == "bob" {
        server::admin(
            setup,
            &[
                "grant",
                "add",
                user.as_str(),
                "--config",
                &config,
                "--device",
                "device-1",
            ],
        )
    } else {
        server::admin(
            setup,
            &[
                "grant",
                "add",
                user.as_str(),
                "--config",
                &config,
                "--all-devices",
                "--share",
            ],
        )
    }
}

/// Tells user `n` the devices' host keys.
///
/// # Errors
/// When the file cannot be written.
pub fn pin(setup: &Setup, n: u32, known_hosts: &str) -> Result<()> {
    files::write(&home(setup, &id(n)?).join(".ssh/known_hosts"), known_hosts)
}
