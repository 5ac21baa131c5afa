//! `join`: a router makes its key, brings a one-time token, and gets its certificate and the master of the name keys.

use std::path::Path;

use anyhow::Context as _;
use rssh_mqtt::https::Client;
use rssh_mqtt::{ask, files, identity};
use rssh_proto::enrolment::{EnrolRouter, RouterEnrolled};
use rssh_proto::{HostPort, HttpsUrl};

/// Joins. It can be repeated with the same token when it failed half-way.
///
/// # Errors
/// When the token or the server refuses, or a file cannot be written.
pub async fn run(
    url: HttpsUrl,
    connect: Option<HostPort>,
    dir: &Path,
    token_file: Option<&Path>,
) -> anyhow::Result<()> {
    let token = ask::enrolment_token(token_file).context("there is no token")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    let asked = EnrolRouter {
        token: token.secret(),
        csr: identity::certificate_request("rssh", &dir.join("router.key"))?,
    };
    let client = Client::pinned(url, token.authority)?.at(connect);
    let enrolled: RouterEnrolled = client.post("/v1/enrol/router", &asked).await?;
    let master = format!("{}\n", enrolled.name_master);
    files::write_secret(&dir.join("name-master"), master.as_bytes())?;
    for (name, text) in [
        ("router.pem", &enrolled.certificate),
        ("servers-ca.pem", &enrolled.trust.servers_ca),
        ("users-ca.pem", &enrolled.trust.users_ca),
    ] {
        files::write_public(&dir.join(name), text.as_bytes())?;
    }
    println!("{}", enrolled.router);
    Ok(())
}
