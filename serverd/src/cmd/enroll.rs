//! Enrolment of routers, devices and users: a row, a certificate, and a role at the broker.
//!
//! Each step can be repeated, so that a command that failed half-way is simply run again.

use std::path::Path;

use anyhow::Result;
use rssh_mqtt::identity;
use rssh_proto::{DeviceId, RouterId, UserId};

use super::{Office, audit};
use crate::args::Request;
use crate::broker::Client;
use crate::pki::{CertificateRequest, Domain};
use crate::ssh_keygen;
use crate::store::Kind;

pub(super) async fn router(office: &Office, id: RouterId, request: &Request) -> Result<()> {
    office.store.add_identity(Kind::Router, id.as_str()).await?;
    issue(office, Domain::Servers, id.as_str(), request).await?;
    enrolled(office, Kind::Router, id.as_str()).await?;
    office.admit(&Client::Router(id)).await
}

pub(super) async fn device(office: &Office, id: DeviceId, request: &Request, ssh_key: &Path) -> Result<()> {
    let key = ssh_keygen::public_key(ssh_key)?;
    office.store.add_device(&id, &key).await?;
    issue(office, Domain::Devices, id.as_str(), request).await?;
    enrolled(office, Kind::Device, id.as_str()).await?;
    office.admit(&Client::Device(id)).await
}

pub(super) async fn user(office: &Office, name: UserId, request: &Request) -> Result<()> {
    office.store.add_identity(Kind::User, name.as_str()).await?;
    issue(office, Domain::Users, name.as_str(), request).await?;
    enrolled(office, Kind::User, name.as_str()).await?;
    office.admit(&Client::User(name)).await
}

async fn enrolled(office: &Office, kind: Kind, name: &str) -> Result<()> {
    audit::record_name(&office.store, "enrolled", kind, name, audit::by_administrator("")).await
}

pub(super) async fn issue(office: &Office, domain: Domain, id: &str, request: &Request) -> Result<()> {
    let issued = office.pki.issue(domain, id, &CertificateRequest::read(&request.csr)?)?;
    office.store.add_certificate(id, &issued).await?;
    Ok(identity::write_public(&request.cert_out, issued.pem.as_bytes())?)
}
