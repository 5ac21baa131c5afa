//! Installation: the authorities, the broker's configuration, and a server's own identity.

use anyhow::Result;
use rssh_mqtt::{files, identity};
use rssh_proto::ServerId;

use super::enroll;
use crate::args::{Broker, Ca, Request};
use crate::broker;
use crate::clock;
use crate::config::Config;
use crate::domain::Domain;
use crate::home::Home;
use crate::office::Office;
use crate::pki::{self, CertificateRequest, Pki};
use crate::sshd;
use crate::store::{Kind, Store};
use crate::who::Who;

pub(super) fn ca(command: Ca) -> Result<()> {
    match command {
        Ca::Init { pki, ssh_host_name } => Pki::at(&pki).init(&ssh_host_name)?,
        Ca::Tls {
            pki,
            name,
            ip,
            cert_out,
            key_out,
        } => {
            let (issued, key) = Pki::at(&pki).issue_tls(&name, &ip)?;
            files::write_secret(&key_out, key.as_bytes())?;
            files::write_public(&cert_out, issued.pem.as_bytes())?;
        }
    }
    Ok(())
}

pub(super) async fn broker(command: &Broker) -> Result<()> {
    match command {
        Broker::Render {
            pki,
            listen,
            cert,
            key,
            dir,
            user,
        } => {
            let to = broker::Render {
                dir,
                listen: *listen,
                cert,
                key,
                user,
            };
            broker::render(&Pki::at(pki), &to)?;
        }
        Broker::Rebuild { dir, user, at } => {
            let store = Store::new(&Config::load(&at.config)?.database)?;
            let enrolled = store.enrolled().await?;
            broker::rebuild(dir, &enrolled, user)?;
            println!("{} identities; start the broker", enrolled.len());
        }
    }
    Ok(())
}

/// Leaves what root made to the account of the daemon.
pub(super) fn hand_over(config: &Config) -> Result<()> {
    files::hand_over(&config.state_dir)?;
    Ok(files::hand_over(&config.sshd.dir)?)
}

pub(crate) async fn server(config: &Config, id: Option<ServerId>) -> Result<()> {
    let office = Office::open(config.clone())?;
    let home = Home::open(config)?;
    let id = home.keep_id(id)?;
    office.store.add_identity(Kind::Server, id.as_str()).await?;

    let files = config.identity();
    let request = Request {
        csr: files.key.with_extension("csr"),
        cert_out: files.cert.clone(),
    };
    identity::request_certificate(id.as_str(), &files.key, &request.csr)?;
    enroll::issue(&office, Domain::Servers, id.as_str(), &request).await?;
    pki::keep_trust(&config.trust(), &office.trust()?)?;
    if let Some(https) = &config.https {
        let files = config.https_identity();
        let request = files.key.with_extension("csr");
        identity::request_certificate(id.as_str(), &files.key, &request)?;
        let request = CertificateRequest::read(&request)?;
        let issued = office.pki.issue_https(id.as_str(), &https.url.host(), &request)?;
        files::write_public(&files.cert, issued.pem.as_bytes())?;
    }
    home.keep_name_key(&office.pki.masters().read(clock::now())?.key(&id))?;
    let host_key = sshd::public_host_key(config)?;
    sshd::keep_host_certificate(config, &office.pki.certify_host(id.as_str(), &host_key)?)?;
    sshd::render(config)?;
    hand_over(config)?;
    office.admit(&Who::Server(id.clone())).await?;
    println!("{id}");
    Ok(())
}
