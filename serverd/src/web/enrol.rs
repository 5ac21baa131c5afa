//! Enrolment: a token and a key go in, an identity comes out.
//!
//! Each can be repeated by whoever lost the answer: the token is used up for another key only.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use rssh_proto::audit::Event;
use rssh_proto::enrolment::{
    DeviceEnrolled, EnrolDevice, EnrolRouter, EnrolServer, EnrolUser, RouterEnrolled, ServerEnrolled, UserEnrolled,
};
use rssh_proto::{DeviceId, HostPort, RouterId, ServerId, UserId};

use super::body::Json;
use super::problem::Problem;
use super::{BODY_LIMIT, Web};
use crate::clock;
use crate::config::Config;
use crate::domain::Domain;
use crate::office::Office;
use crate::pki::{CertificateRequest, PkiError};
use crate::ssh_keygen::PublicKey;
use crate::store::{Kind, StoreError};
use crate::who::Who;

/// How many host keys a device's sshd may have.
const MAX_HOST_KEYS: usize = 8;

pub(super) fn routes() -> Router<Web> {
    Router::new()
        .route("/v1/enrol/device", post(device))
        .route("/v1/enrol/user", post(user))
        .route("/v1/enrol/server", post(server))
        .route("/v1/enrol/router", post(router))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
}

impl Web {
    /// The office, where this server has one.
    ///
    /// # Errors
    /// When it has none: another server has.
    pub fn office(&self) -> Result<&Arc<Office>, Problem> {
        self.office.as_ref().ok_or_else(|| {
            Problem::busy(format!(
                "{} does not issue certificates; another server does, so ask again",
                self.server.id
            ))
        })
    }
}

/// What a client did wrong with a request for a certificate, or an authority that does not sign.
pub(super) fn unsigned(error: &anyhow::Error) -> Problem {
    match error.downcast_ref::<PkiError>() {
        Some(PkiError::Request(_)) => Problem::bad_request(error.to_string()),
        None if matches!(error.downcast_ref(), Some(StoreError::Revoked { .. })) => Problem::denied(error.to_string()),
        _ => Problem::internal("the certificate could not be made", error),
    }
}

pub(super) fn request(pem: &str) -> Result<CertificateRequest, Problem> {
    CertificateRequest::from_pem(pem).map_err(|error| Problem::bad_request(error.to_string()))
}

pub(super) fn ssh_key(text: &str) -> Result<PublicKey, Problem> {
    let key: PublicKey = text.parse().map_err(|error| Problem::bad_request(format!("{error}")))?;
    if key.is_plain() {
        Ok(key)
    } else {
        Err(Problem::bad_request(
            "a certificate or a key of an unknown type is no SSH key",
        ))
    }
}

pub(super) fn host_keys(texts: &[String]) -> Result<Vec<PublicKey>, Problem> {
    if texts.len() > MAX_HOST_KEYS {
        return Err(Problem::bad_request(format!("more than {MAX_HOST_KEYS} host keys")));
    }
    texts.iter().map(|text| ssh_key(text)).collect()
}

/// A name that the database has kept; it was valid when it came there.
pub(super) fn kept<T: std::str::FromStr<Err: std::fmt::Display>>(name: &str) -> Result<T, Problem> {
    name.parse()
        .map_err(|error| Problem::internal("the token's name is no id", &error))
}

async fn admit(office: &Office, client: &Who) -> Result<(), Problem> {
    office.admit(client).await.map_err(|error| {
        tracing::warn!(error = format!("{error:#}"), "enrolment");
        Problem::busy("the broker could not be told; try again in a moment")
    })
}

pub(super) fn trust(office: &Office) -> Result<rssh_proto::enrolment::Trust, Problem> {
    office
        .trust()
        .map_err(|error| Problem::internal("the authorities cannot be read", &error))
}

/// Where this installation answers HTTPS.
pub(super) fn url(config: &Config) -> Result<rssh_proto::HttpsUrl, Problem> {
    let https = config.https.as_ref();
    https
        .map(|https| https.url.clone())
        .ok_or_else(|| Problem::internal("this server answers HTTPS", &"without an [https] section"))
}

/// Where users' connections go.
fn lb(config: &Config) -> Result<Vec<HostPort>, Problem> {
    match config.public.lb.as_slice() {
        some @ [_, ..] => Ok(some.to_vec()),
        [] => format!("{}:{}", config.public.domain, config.public.port)
            .parse()
            .map(|lb| vec![lb])
            .map_err(|error| Problem::internal("the domain is no host", &error)),
    }
}

async fn device(State(web): State<Web>, Json(asked): Json<EnrolDevice>) -> Result<axum::Json<DeviceEnrolled>, Problem> {
    let office = web.office()?;
    let (csr, key, host_keys) = (
        request(&asked.csr)?,
        ssh_key(&asked.ssh_key)?,
        host_keys(&asked.host_keys)?,
    );
    let wanted = asked.device.as_ref().map(DeviceId::as_str);
    let admission = office.redeem(&asked.token, Kind::Device, wanted, &csr).await?;
    let device: DeviceId = kept(&admission.name)?;
    office.store.add_device(&device, &key).await?;
    office
        .store
        .describe_device(&device, &admission.tags, &host_keys)
        .await?;
    let issued = office.issue(Domain::Devices, device.as_str(), &csr).await;
    let issued = issued.map_err(|error| unsigned(&error))?;
    admit(office, &Who::Device(device.clone())).await?;
    tracing::info!(%device, tags = ?admission.tags, "enrolled");
    web.server.audit.record(Event::now("device-enrolled").device(&device));
    let trust = trust(office)?;
    Ok(axum::Json(DeviceEnrolled {
        device,
        certificate: issued.pem,
        servers_ca: trust.servers_ca,
        known_hosts: trust.known_hosts,
        user_ca: trust.user_ca,
        brokers: office.config.mqtt.brokers.clone(),
        url: url(&office.config)?,
    }))
}

async fn user(State(web): State<Web>, Json(asked): Json<EnrolUser>) -> Result<axum::Json<UserEnrolled>, Problem> {
    let office = web.office()?;
    let csr = request(&asked.csr)?;
    let admission = office.redeem(&asked.token, Kind::User, None, &csr).await?;
    let user: UserId = kept(&admission.name)?;
    office.store.add_identity(Kind::User, user.as_str()).await?;
    let issued = office.issue(Domain::Users, user.as_str(), &csr).await;
    let issued = issued.map_err(|error| unsigned(&error))?;
    admit(office, &Who::User(user.clone())).await?;
    tracing::info!(%user, "enrolled");
    web.server.audit.record(Event::now("user-enrolled").user(&user));
    Ok(axum::Json(UserEnrolled {
        user,
        certificate: issued.pem,
        servers_ca: trust(office)?.servers_ca,
        brokers: office.config.mqtt.brokers.clone(),
        lb: lb(&office.config)?,
        url: url(&office.config)?,
    }))
}

async fn server(State(web): State<Web>, Json(asked): Json<EnrolServer>) -> Result<axum::Json<ServerEnrolled>, Problem> {
    let office = web.office()?;
    let (csr, https_csr, host_key) = (
        request(&asked.csr)?,
        request(&asked.https_csr)?,
        ssh_key(&asked.host_key)?,
    );
    let admission = office.redeem(&asked.token, Kind::Server, None, &csr).await?;
    let server: ServerId = kept(&admission.name)?;
    office.store.add_identity(Kind::Server, server.as_str()).await?;
    let issued = office.issue(Domain::Servers, server.as_str(), &csr).await;
    let issued = issued.map_err(|error| unsigned(&error))?;
    let host = url(&office.config)?.host();
    let (https, host_certificate, name_key) = office
        .pki
        .issue_https(server.as_str(), &host, &https_csr)
        .and_then(|https| {
            let certificate = office.pki.certify_host(server.as_str(), &host_key)?;
            Ok((
                https,
                certificate,
                office.pki.masters().read(clock::now())?.key(&server),
            ))
        })
        .map_err(|error| unsigned(&error.into()))?;
    admit(office, &Who::Server(server.clone())).await?;
    tracing::info!(%server, "enrolled");
    web.server
        .audit
        .record(Event::now("server-enrolled").with("name", server.as_str()));
    Ok(axum::Json(ServerEnrolled {
        server,
        certificate: issued.pem,
        https_certificate: https.pem,
        host_certificate,
        name_key: name_key.to_base64(),
        trust: trust(office)?,
    }))
}

async fn router(State(web): State<Web>, Json(asked): Json<EnrolRouter>) -> Result<axum::Json<RouterEnrolled>, Problem> {
    let office = web.office()?;
    let csr = request(&asked.csr)?;
    let admission = office.redeem(&asked.token, Kind::Router, None, &csr).await?;
    let router: RouterId = kept(&admission.name)?;
    office.store.add_identity(Kind::Router, router.as_str()).await?;
    let issued = office.issue(Domain::Servers, router.as_str(), &csr).await;
    let issued = issued.map_err(|error| unsigned(&error))?;
    let masters = office.pki.masters().read(clock::now());
    let master = masters.map_err(|error| unsigned(&error.into()))?.current;
    admit(office, &Who::Router(router.clone())).await?;
    tracing::info!(%router, "enrolled");
    web.server
        .audit
        .record(Event::now("router-enrolled").with("name", router.as_str()));
    Ok(axum::Json(RouterEnrolled {
        router,
        certificate: issued.pem,
        name_master: master.to_base64(),
        trust: trust(office)?,
    }))
}
