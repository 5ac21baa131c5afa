//! Renewal: another certificate for whoever is known, and a user's SSH certificate for one device.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use ring::hmac;
use rssh_proto::DeviceId;
use rssh_proto::audit::Event;
use rssh_proto::enrolment::{
    AuthorizedKeys, AuthorizedKeysRequest, CertifySsh, Challenge, ChallengeRequest, NameKeyNow, NameMastersNow,
    NewSshKey, RECOVERY_NAMESPACE, Recover, Renew, Renewed, SshCertified, principal, recovery_text,
};
use rssh_proto::id::random_hex;

use super::Web;
use super::body::Json;
use super::caller::Caller;
use super::enrol::{host_keys, request, ssh_key, trust, unsigned, url};
use super::problem::Problem;
use crate::clock;
use crate::domain::Domain;
use crate::masters::MasterError;
use crate::ssh_keygen;
use crate::store::Kind;
use crate::token::Scope;
use crate::who::Who;

/// How long a challenge may be answered, in seconds.
const CHALLENGE_S: i64 = 60;
/// For how long a device's SSH key stays good once there is another: its tunnels and its state files outlive it.
const OVERLAP: Duration = Duration::from_secs(24 * 3600);

pub(super) fn routes() -> Router<Web> {
    Router::new()
        .route("/v1/renew", post(renew))
        .route("/v1/server/name-key", post(name_key))
        .route("/v1/router/name-masters", post(name_masters))
        .route("/v1/recover/challenge", post(challenge))
        .route("/v1/recover", post(recover))
        .route("/v1/device/ssh-key", post(new_ssh_key))
        .route("/v1/device/authorized-keys", post(authorized_keys))
        .route("/v1/ssh-certificate", post(certify_ssh))
}

async fn renew(
    State(web): State<Web>,
    caller: Caller,
    Json(asked): Json<Renew>,
) -> Result<axum::Json<Renewed>, Problem> {
    let office = web.office()?;
    let domain = caller.certificate()?.domain;
    let name = caller.who.name();
    let csr = request(&asked.csr)?;
    let issued = office.issue(domain, name, &csr).await;
    let issued = issued.map_err(|error| unsigned(&error))?;
    let mut renewed = Renewed {
        certificate: issued.pem,
        https_certificate: None,
        trust: trust(office)?,
    };
    if let (Who::Server(server), Some(csr)) = (&caller.who, &asked.https_csr) {
        let host = url(&office.config)?.host();
        let https = office.pki.issue_https(server.as_str(), &host, &request(csr)?);
        renewed.https_certificate = Some(https.map_err(|error| unsigned(&error.into()))?.pem);
    }
    tracing::info!(name, kind = caller.who.kind().name(), "renewed");
    Ok(axum::Json(renewed))
}

async fn name_key(State(web): State<Web>, caller: Caller) -> Result<axum::Json<NameKeyNow>, Problem> {
    let Who::Server(server) = &caller.who else {
        return Err(Problem::denied("only servers sign names"));
    };
    let masters = web.office()?.pki.masters().read(clock::now());
    let masters = masters.map_err(|error| unreadable(&error))?;
    Ok(axum::Json(NameKeyNow {
        name_key: masters.key(server).to_base64(),
    }))
}

async fn name_masters(State(web): State<Web>, caller: Caller) -> Result<axum::Json<NameMastersNow>, Problem> {
    let Who::Router(_) = &caller.who else {
        return Err(Problem::denied("only routers check names"));
    };
    let masters = web.office()?.pki.masters().read(clock::now());
    let masters = masters.map_err(|error| unreadable(&error))?;
    Ok(axum::Json(NameMastersNow {
        current: masters.current.to_base64(),
        previous: masters.previous.map(|previous| previous.to_base64()),
    }))
}

fn unreadable(error: &MasterError) -> Problem {
    Problem::internal("the masters of the name keys cannot be read", error)
}

/// A text that only this server could have made, for a while.
async fn challenge(
    State(web): State<Web>,
    Json(asked): Json<ChallengeRequest>,
) -> Result<axum::Json<Challenge>, Problem> {
    web.office()?;
    let text = format!("{}.{}", clock::now().0 + CHALLENGE_S, random_hex::<16>());
    let seal = rssh_proto::text::hex(hmac::sign(&web.seal, sealed(&asked.device, &text).as_bytes()).as_ref());
    Ok(axum::Json(Challenge {
        challenge: format!("{text}.{seal}"),
    }))
}

fn sealed(device: &DeviceId, text: &str) -> String {
    format!("{device} {text}")
}

/// Whether a challenge is this server's, for this device, and still good.
fn is_ours(key: &hmac::Key, device: &DeviceId, challenge: &str) -> bool {
    let Some((text, seal)) = challenge.rsplit_once('.') else {
        return false;
    };
    let until = text.split('.').next().and_then(|until| until.parse::<i64>().ok());
    let bytes: Option<Vec<u8>> = (0..seal.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(seal.get(at..at + 2)?, 16).ok())
        .collect();
    until.is_some_and(|until| clock::now().0 <= until)
        && bytes.is_some_and(|seal| hmac::verify(key, sealed(device, text).as_bytes(), &seal).is_ok())
}

async fn recover(State(web): State<Web>, Json(asked): Json<Recover>) -> Result<axum::Json<Renewed>, Problem> {
    let office = web.office()?;
    let Recover {
        device,
        csr,
        challenge,
        signature,
    } = asked;
    let refused = || {
        Problem::denied(format!(
            "{device} is not known by this key, or took too long; enrol it again with a new token"
        ))
    };
    let request = request(&csr)?;
    if !is_ours(&web.seal, &device, &challenge) || web.server.store.kind(device.as_str()).await? != Some(Kind::Device) {
        return Err(refused());
    }
    let (keys, _) = web.server.store.device_keys(&device).await?;
    let text = recovery_text(&device, &challenge, &csr);
    let good = tokio::task::block_in_place(|| {
        ssh_keygen::verify(&keys, device.as_str(), RECOVERY_NAMESPACE, text.as_bytes(), &signature)
    });
    if !good.map_err(|error| Problem::internal("the signature could not be checked", &error))? {
        tracing::warn!(%device, "a recovery was refused");
        return Err(refused());
    }
    let issued = office.issue(Domain::Devices, device.as_str(), &request).await;
    let issued = issued.map_err(|error| unsigned(&error))?;
    tracing::info!(%device, "recovered by its SSH key");
    web.server.audit.record(Event::now("device-recovered").device(&device));
    Ok(axum::Json(Renewed {
        certificate: issued.pem,
        https_certificate: None,
        trust: trust(office)?,
    }))
}

async fn new_ssh_key(
    State(web): State<Web>,
    caller: Caller,
    Json(asked): Json<NewSshKey>,
) -> Result<axum::Json<serde_json::Value>, Problem> {
    let Who::Device(device) = &caller.who else {
        return Err(Problem::denied("only a device has a key of this kind"));
    };
    caller.certificate()?;
    let (key, host_keys) = (ssh_key(&asked.ssh_key)?, host_keys(&asked.host_keys)?);
    let store = &web.server.store;
    store.rotate_ssh_key(device, &key, OVERLAP.as_secs_f64()).await?;
    store
        .describe_device(device, &rssh_proto::Tags::new(), &host_keys)
        .await?;
    tracing::info!(%device, "has another SSH key");
    Ok(axum::Json(serde_json::json!({})))
}

async fn certify_ssh(
    State(web): State<Web>,
    caller: Caller,
    Json(asked): Json<CertifySsh>,
) -> Result<axum::Json<SshCertified>, Problem> {
    let office = web.office()?;
    let user = caller.user(Scope::Open)?;
    let key = ssh_key(&asked.public_key)?;
    let accounts = web
        .server
        .store
        .accounts_of(user, &asked.device, &office.admin.accounts)
        .await?;
    if accounts.is_empty() {
        return Err(Problem::denied(format!(
            "no grant of {user} names an account on {}; ask an administrator for one, or log in with a key of your own",
            asked.device
        )));
    }
    let (_, host_keys) = web.server.store.device_keys(&asked.device).await?;
    let principals: Vec<String> = accounts
        .iter()
        .map(|account| principal(account, &asked.device))
        .collect();
    let lives = office.admin.ssh_lifetime.duration();
    let store = &web.server.store;
    store.keep_ssh_key(user, &asked.device, &key, &accounts, lives).await?;
    let certificate = office.pki.certify_user(user, &principals, lives, &key);
    let certificate = certificate.map_err(|error| unsigned(&error.into()))?;
    tracing::info!(%user, device = %asked.device, ?accounts, "certified for ssh");
    let event = Event::now("ssh-certified").user(user).device(&asked.device);
    let names: Vec<&str> = accounts.iter().map(AsRef::as_ref).collect();
    web.server.audit.record(event.with("accounts", names));
    Ok(axum::Json(SshCertified {
        certificate,
        accounts,
        valid_s: u32::try_from(lives.as_secs()).unwrap_or(u32::MAX),
        host_keys: host_keys.iter().map(ToString::to_string).collect(),
    }))
}

/// The keys that log in to a device whose own sshd knows no certificates, as the grants are now.
async fn authorized_keys(
    State(web): State<Web>,
    caller: Caller,
    Json(asked): Json<AuthorizedKeysRequest>,
) -> Result<axum::Json<AuthorizedKeys>, Problem> {
    let Who::Device(device) = &caller.who else {
        return Err(Problem::denied("only a device is told who logs in to it"));
    };
    caller.certificate()?;
    let keys = web.server.store.authorized_keys(device, &asked.accounts).await?;
    Ok(axum::Json(AuthorizedKeys { keys }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_good_for_its_device_and_its_time_only() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
        let device: DeviceId = "device-1".parse().unwrap();
        let made = |until: i64| {
            let text = format!("{until}.00");
            let seal = rssh_proto::text::hex(hmac::sign(&key, sealed(&device, &text).as_bytes()).as_ref());
            format!("{text}.{seal}")
        };
        let now = clock::now().0;
        assert!(is_ours(&key, &device, &made(now + 30)));
        assert!(!is_ours(&key, &device, &made(now - 30)));
        assert!(!is_ours(&key, &"device-2".parse().unwrap(), &made(now + 30)));
        let later = made(now + 30).replacen(&(now + 30).to_string(), &(now + 900).to_string(), 1);
        for bad in ["", ".", "a.b.c", &later, &made(now + 30)[1..], "9999999999.00.é"] {
            assert!(!is_ours(&key, &device, bad), "{bad}");
        }
    }
}
