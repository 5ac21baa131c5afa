//! The certificate authorities, by `rssh-serverd ca`.

use anyhow::Result;

use crate::files;
use crate::parts::{broker, router, server};
use crate::place::{DOMAIN, LB_PUBLIC};
use crate::setup::Setup;

/// The directory of the authorities, as programs see it.
pub fn dir(setup: &Setup) -> String {
    setup.root.inside("pki")
}

/// A file of theirs, as programs see it.
pub fn file(setup: &Setup, name: &str) -> String {
    setup.root.inside(format_args!("pki/{name}"))
}

/// The name that servers' host certificates are made for, and that agents expect.
const SSH_HOST_NAME: &str = "rssh-sshd";

/// Makes the authorities, and the certificates of the broker and the load balancer.
///
/// # Errors
/// When the product's command fails.
pub fn create(setup: &Setup) -> Result<()> {
    server::admin(
        setup,
        &["ca", "init", "--pki", &dir(setup), "--ssh-host-name", SSH_HOST_NAME],
    )?;
    for n in setup.twins() {
        let (broker, router) = (broker::dir(n), router::dir(n));
        let ip = broker::host(n).to_string();
        for below in [&broker, &router] {
            files::make_dir(&setup.root.join(below))?;
        }
        let public = LB_PUBLIC.to_string();
        tls(setup, &broker, &["--name", "broker", "--ip", &ip, "--ip", &public])?;
        let wildcard = format!("*.{DOMAIN}");
        tls(setup, &router, &["--name", &wildcard, "--name", DOMAIN, "--ip", &ip])?;
    }
    Ok(())
}

/// Makes a server's TLS certificate at `DIR/<below>/tls.{pem,key}`.
///
/// # Errors
/// When the product's command fails.
pub fn tls(setup: &Setup, below: &str, names: &[&str]) -> Result<()> {
    let (cert, key) = (
        setup.root.inside(format_args!("{below}/tls.pem")),
        setup.root.inside(format_args!("{below}/tls.key")),
    );
    let mut args = vec!["ca", "tls", "--pki"];
    let pki = dir(setup);
    args.extend([pki.as_str(), "--cert-out", &cert, "--key-out", &key]);
    args.extend(names);
    server::admin(setup, &args)
}
