//! The device's certificate renews itself; one that ended while the device lay in storage comes back by its SSH key.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rssh_mqtt::https::Client;
use rssh_mqtt::life::Life;
use rssh_mqtt::proxy::Proxies;
use rssh_mqtt::renewal::{self, Renewable};
use rssh_mqtt::{IdentityError, identity};
use rssh_proto::enrolment::{Challenge, ChallengeRequest, RECOVERY_NAMESPACE, Recover, Renew, Renewed, recovery_text};
use rssh_proto::{Failure, FailureKind, HttpsUrl};

use crate::config::{Config, ConfigError};
use crate::{init, rotate};

/// Renews for ever; where the configuration names nobody to ask, does nothing.
pub async fn run(config: Config, renewable: Arc<Renewable>) {
    let Some(url) = config.url.clone().filter(|_| cfg!(feature = "enrolment")) else {
        return;
    };
    renewal::keep(renewable, |life| once(&config, &url, life)).await;
}

/// Renews the certificate once, in whichever way is left.
///
/// # Errors
/// When no server answers or refuses.
pub async fn once(config: &Config, url: &HttpsUrl, life: Life) -> Result<(), Failure> {
    if life.is_over(renewal::now()) {
        return recover(config, url).await;
    }
    renewal::renew(url, Some(proxies(config)?), &config.identity(), Renew::default())
        .await
        .map(drop)
}

fn proxies(config: &Config) -> Result<Proxies, Failure> {
    let failure = |error: ConfigError| Failure::new(FailureKind::Configuration, error.to_string());
    config.proxies().map_err(failure)
}

async fn recover(config: &Config, url: &HttpsUrl) -> Result<(), Failure> {
    let outcome = recover_by(config, url, &config.ssh.key).await;
    // Where a change of the key was cut short for longer than the one before stays good, the next is the one.
    let next = rotate::Keys::of(config).next();
    match outcome {
        Err(failure) if failure.kind == FailureKind::Denied && next.exists() => recover_by(config, url, &next).await,
        outcome => outcome,
    }
}

async fn recover_by(config: &Config, url: &HttpsUrl, key: &Path) -> Result<(), Failure> {
    let local = |error: IdentityError| Failure::new(FailureKind::Configuration, error.to_string());
    let files = config.identity();
    let csr = identity::certificate_request("rssh", &files.key).map_err(local)?;
    let roots = identity::Identity::load(&files).map_err(local)?.roots;
    let client = Client::anonymous(url.clone(), roots)
        .map_err(|error| Failure::new(FailureKind::Configuration, error.to_string()))?
        .by(proxies(config)?);
    let asked = ChallengeRequest {
        device: config.device.clone(),
    };
    // A challenge is one server's: another, which does not issue, says so and is left.
    let (Challenge { challenge }, mut connection) = client.begin("/v1/recover/challenge", &asked).await?;
    let signature = sign(config, key, &recovery_text(&config.device, &challenge, &csr)).map_err(|error| {
        Failure::new(
            FailureKind::Configuration,
            format!("cannot sign by ssh-keygen: {error:#}"),
        )
    })?;
    let answer = Recover {
        device: config.device.clone(),
        csr,
        challenge,
        signature,
    };
    let renewed: Renewed = connection.post("/v1/recover", &answer).await?;
    renewal::replace(&files, &renewed.certificate)
}

/// Signs with the device's SSH key (ssh-keygen(1), `-Y sign`).
///
/// ssh-keygen signs only with a key whose public half lies beside it as `.pub`, where ssh is not to find it: both are shown
/// to it in a directory of their own.
fn sign(config: &Config, key: &Path, text: &str) -> anyhow::Result<String> {
    let dir = config.state_dir.join("recovery");
    // What one that was cut short has left.
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir)?;
    let shown = dir.join("key");
    std::os::unix::fs::symlink(std::path::absolute(key)?, &shown)?;
    fs::write(init::beside(&shown, ".pub"), init::public_half(key)?)?;
    let signature = sign_with(&shown, text);
    fs::remove_dir_all(&dir)?;
    Ok(signature?)
}

fn sign_with(key: &Path, text: &str) -> std::io::Result<String> {
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "sign", "-q", "-n", RECOVERY_NAMESPACE, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(std::io::Error::other(output.status.to_string()));
    }
    String::from_utf8(output.stdout).map_err(std::io::Error::other)
}
