//! Enrolment of routers, devices and users: a one-time token, with which they enrol themselves over HTTPS; or, where no
//! network leads there yet, a certificate for a request that was carried here.
//!
//! Each step can be repeated, so that a command that failed half-way is simply run again.

use anyhow::{Context as _, Result, bail};
use rssh_mqtt::files;
use rssh_proto::audit::Event;
use rssh_proto::id::random_hex;
use rssh_proto::{RouterId, Tag, UserId};

use super::audit;
use crate::args::{DeviceAdd, Offer, Request};
use crate::domain::Domain;
use crate::office::Office;
use crate::pki::CertificateRequest;
use crate::ssh_keygen;
use crate::store::{Kind, NewEnrolment};
use crate::who::Who;

/// How long a token may be used, in seconds: a month.
const LONGEST_S: u64 = 31 * 86_400;

pub(crate) async fn router(office: &Office, id: RouterId, request: &Request) -> Result<()> {
    office.store.add_identity(Kind::Router, id.as_str()).await?;
    issue(office, Domain::Servers, id.as_str(), request).await?;
    enrolled(office, Kind::Router, id.as_str()).await?;
    office.admit(&Who::Router(id)).await
}

pub(super) async fn device(add: DeviceAdd) -> Result<()> {
    let DeviceAdd {
        id,
        at,
        offer,
        tag,
        uses,
        request,
        ssh_key,
    } = add;
    let office = super::office(&at)?;
    let Some(request) = request.request() else {
        let id = id.as_ref().map(rssh_proto::DeviceId::as_str);
        return print(&office, Kind::Device, id, uses.unwrap_or(1), &tag, &offer).await;
    };
    let (Some(id), Some(ssh_key)) = (id, ssh_key) else {
        bail!("a request is one device's: give its id, and its key with --ssh-key");
    };
    let key = ssh_keygen::public_key(&ssh_key)?;
    office.store.add_device(&id, &key).await?;
    let tags = tag
        .iter()
        .map(|tag| (tag.key().to_owned(), tag.value().to_owned()))
        .collect();
    office.store.describe_device(&id, &tags, &[]).await?;
    issue(&office, Domain::Devices, id.as_str(), &request).await?;
    enrolled(&office, Kind::Device, id.as_str()).await?;
    office.admit(&Who::Device(id)).await
}

pub(super) async fn user(office: &Office, name: UserId, request: &Request) -> Result<()> {
    office.store.add_identity(Kind::User, name.as_str()).await?;
    issue(office, Domain::Users, name.as_str(), request).await?;
    enrolled(office, Kind::User, name.as_str()).await?;
    office.admit(&Who::User(name)).await
}

async fn enrolled(office: &Office, kind: Kind, name: &str) -> Result<()> {
    audit::record_name(&office.store, "enrolled", kind, name, audit::by_administrator("")).await
}

pub(super) async fn issue(office: &Office, domain: Domain, id: &str, request: &Request) -> Result<()> {
    let csr = CertificateRequest::read(&request.csr)
        .and_then(|csr| csr.check(id).map(|()| csr))
        .with_context(|| format!("cannot use {}", request.csr.display()))?;
    let issued = office.issue(domain, id, &csr).await?;
    Ok(files::write_public(&request.cert_out, issued.pem.as_bytes())?)
}

/// Prints a token for one identity.
pub(super) async fn offer(office: &Office, kind: Kind, name: Option<&str>, offer: &Offer) -> Result<()> {
    print(office, kind, name, 1, &[], offer).await
}

/// Makes a token and prints it: the only time that anyone sees it.
async fn print(office: &Office, kind: Kind, name: Option<&str>, uses: u32, tags: &[Tag], offer: &Offer) -> Result<()> {
    let lives = offer.expires.duration().as_secs();
    if !(1..=LONGEST_S).contains(&lives) {
        bail!("a token is good for 1s to 31d, not {}", offer.expires);
    }
    let (token, hash) = office.draw_token()?;
    let new = NewEnrolment {
        id: &random_hex::<4>(),
        hash: &hash,
        kind,
        name,
        uses: i32::try_from(uses)?,
        tags,
        lives_s: lives as f64,
    };
    office.store.add_enrolment(&new).await?;
    let event = audit::by_administrator("").with("token", new.id).with("uses", uses);
    match name {
        Some(name) => audit::record_name(&office.store, "offered", kind, name, event).await?,
        None => {
            let kind = format!("{}-offered", kind.name());
            audit::record(&office.store, Event { kind, ..event }).await?;
        }
    }
    let url = office
        .config
        .https
        .as_ref()
        .map_or_else(|| "URL".to_owned(), |https| https.url.to_string());
    let how = match kind {
        Kind::Device => format!("rssh-agentd enroll {url}"),
        Kind::User => format!("rssh login {url}"),
        Kind::Server => format!("rssh-serverd join {url}"),
        Kind::Router => format!("rssh-routerd join {url}"),
    };
    let whom = name.map_or_else(|| format!("{uses} devices"), str::to_owned);
    eprintln!("the token of {whom}, good for {}; there, run: {how}", offer.expires);
    println!("{}", token.reveal());
    Ok(())
}
