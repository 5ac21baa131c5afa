//! A server joins: it makes its keys, and brings a token; it gets its certificates and the key that it signs names with.

use std::path::Path;

use anyhow::{Context as _, Result};
use rssh_mqtt::ask;
use rssh_mqtt::https::Client;
use rssh_mqtt::{files, identity};
use rssh_proto::enrolment::{EnrolServer, ServerEnrolled};
use rssh_proto::{HostPort, HttpsUrl};

use super::install::hand_over;
use crate::config::Config;
use crate::home::Home;
use crate::{pki, sshd};

pub(crate) async fn run(
    config: &Config,
    url: HttpsUrl,
    connect: Option<HostPort>,
    token_file: Option<&Path>,
) -> Result<()> {
    let home = Home::open(config)?;
    let token = ask::enrolment_token(token_file).context("there is no token")?;
    let (files, https) = (config.identity(), config.https_identity());
    let asked = EnrolServer {
        token: token.secret(),
        csr: identity::certificate_request("rssh", &files.key)?,
        https_csr: identity::certificate_request("rssh", &https.key)?,
        host_key: sshd::public_host_key(config)?.to_string(),
    };
    let client = Client::pinned(url, token.authority)?.at(connect);
    let enrolled: ServerEnrolled = client.post("/v1/enrol/server", &asked).await?;
    let id = home.keep_id(Some(enrolled.server))?;
    pki::keep_trust(&config.trust(), &enrolled.trust)?;
    let key = enrolled.name_key.parse().context("the name key that came is none")?;
    home.keep_name_key(&key)?;
    files::write_public(&files.cert, enrolled.certificate.as_bytes())?;
    files::write_public(&https.cert, enrolled.https_certificate.as_bytes())?;
    sshd::keep_host_certificate(config, &enrolled.host_certificate)?;
    sshd::render(config)?;
    hand_over(config)?;
    println!("{id}");
    Ok(())
}
