//! Users: each with a home, a profile for `rssh`, and an ssh configuration that leads to the devices.

use std::path::PathBuf;

use anyhow::Result;
use rssh_proto::id::UserId;

use crate::files;
use crate::parts::{broker, router, server, ssh_keygen};
use crate::place::{LB_USERS, Place, user_name};
use crate::run;
use crate::setup::Setup;

/// User `n` as an id.
fn id(n: u32) -> Result<UserId> {
    Ok(user_name(n).parse()?)
}

fn home(setup: &Setup, user: &UserId) -> PathBuf {
    setup.root.join(format!("users/{user}/home"))
}

/// Makes the keys of user `n`; returns the public one for ssh.
///
/// # Errors
/// When the product's command or ssh-keygen fails.
pub fn init(setup: &Setup, n: u32) -> Result<String> {
    let user = id(n)?;
    let profile = setup.root.inside(format_args!("users/{user}/home/.config/rssh"));
    let mut init = setup.programs.at(&setup.root, &Place::User(user.clone()), None);
    init.arg(setup.programs.path("rssh"))
        .args(["init", "--user", user.as_str(), "--dir", &profile]);
    run::checked(&mut init)?;
    let home = home(setup, &user);
    files::write(&home.join(".config/rssh/profile.toml"), profile_toml(setup, &user))?;
    let ssh = home.join(".ssh");
    files::make_dir(&ssh)?;
    files::set_mode(&ssh, 0o700)?;
    files::write(&ssh.join("config"), ssh_config(setup))?;
    ssh_keygen::key_pair(&ssh.join("id_ed25519"))
}

fn profile_toml(setup: &Setup, user: &UserId) -> String {
    format!(
        r#"user = "{user}"
brokers = {brokers}
lb = {lb}
url = "{url}"
ca = "{dir}/servers-ca.pem"
cert = "{dir}/user.pem"
key = "{dir}/user.key"
"#,
        brokers = broker::addresses(setup),
        lb = router::doors(setup, LB_USERS),
        url = server::url(),
        dir = setup.root.inside(format_args!("users/{user}/home/.config/rssh")),
    )
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

/// Enrols user `n`, and grants: bob opens device-1 only, everybody else every device.
///
/// # Errors
/// When a command of the product fails.
pub fn enrol(setup: &Setup, n: u32) -> Result<()> {
    let user = id(n)?;
    let profile = setup.root.inside(format_args!("users/{user}/home/.config/rssh"));
    let config = server::admin_config(setup);
    let (csr, cert) = (format!("{profile}/user.csr"), format!("{profile}/user.pem"));
    server::admin(
        setup,
        &[
            "user",
            "add",
            user.as_str(),
            "--config",
            &config,
            "--csr",
            &csr,
            "--cert-out",
            &cert,
        ],
    )?;
    let ca = home(setup, &user).join(".config/rssh/servers-ca.pem");
    files::copy(&setup.root.join("pki/servers-ca.pem"), &ca)?;
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
