//! `enroll`: a device makes its keys, brings a one-time token, and gets everything that it needs to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, bail};
use rssh_mqtt::https::Client;
use rssh_mqtt::{ask, files, identity};
use rssh_proto::enrolment::{DeviceEnrolled, EnrolDevice};
use rssh_proto::{Account, DeviceId, HttpsUrl};

use crate::config::Config;
use crate::{init, user_ca};

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct Enroll {
    /// Where the installation answers: https://HOST[:PORT]
    pub url: HttpsUrl,
    /// This device's id, where the token is a fleet's and does not say.
    #[arg(long, value_name = "ID")]
    pub device: Option<DeviceId>,
    /// Where the configuration is written; one that is there stays.
    #[arg(long, value_name = "FILE", default_value = "/etc/rssh/agentd.toml")]
    pub config: PathBuf,
    /// Where the keys and certificates go.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/rssh-agentd")]
    pub state_dir: PathBuf,
    /// Read the one-time token from this file, which only its owner may read, and not from a prompt or standard input.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The configuration of this device's own sshd, by which its host keys are found.
    #[arg(long, value_name = "FILE", default_value = "/etc/ssh/sshd_config")]
    pub sshd_config: PathBuf,
    /// A public host key of this device's own sshd, where it is not beside its configuration; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub host_key: Vec<PathBuf>,
    /// Let users log in to this device's sshd by the short-lived certificates that their grants give them.
    #[arg(long)]
    pub trust_user_ca: bool,
    /// Keep the keys of users whose grants let them in to an account in its authorized_keys, for a device whose sshd
    /// (dropbear) knows no certificates; ~/.ssh/authorized_keys where no file is given. May be given several times.
    #[arg(long, value_name = "ACCOUNT[=FILE]", conflicts_with = "trust_user_ca")]
    pub authorized_keys: Vec<KeysOf>,
    /// Do not reload sshd after that.
    #[arg(long, requires = "trust_user_ca")]
    pub no_reload: bool,
}

/// An account, and the file that opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeysOf {
    account: Account,
    file: PathBuf,
}

impl FromStr for KeysOf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = match text.split_once('=') {
            Some((name, file)) => (name, Some(PathBuf::from(file))),
            None => (text, None),
        };
        let account: Account = name
            .parse()
            .map_err(|error: rssh_proto::id::IdError| error.to_string())?;
        let file = match file {
            Some(file) if file.is_absolute() => file,
            Some(file) => return Err(format!("{}: name the file by its whole path", file.display())),
            None => home(&account)?.join(".ssh/authorized_keys"),
        };
        Ok(Self { account, file })
    }
}

/// The home of an account (passwd(5)).
fn home(account: &Account) -> Result<PathBuf, String> {
    let accounts = fs::read_to_string("/etc/passwd").map_err(|error| format!("/etc/passwd: {error}"))?;
    accounts
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&account.as_str()))
        .and_then(|fields| fields.get(5).map(PathBuf::from))
        .ok_or_else(|| format!("there is no account {account} here; name its file: {account}=FILE"))
}

/// Enrols this device. It can be repeated with the same token when it failed half-way. Run as root, it leaves the keys to
/// the account that the directory belongs to.
///
/// # Errors
/// When the token or the server refuses, or a file cannot be written.
pub async fn run(args: Enroll) -> anyhow::Result<()> {
    let token = ask::enrolment_token(args.token_file.as_deref()).context("there is no token")?;
    let dir = std::path::absolute(&args.state_dir)?;
    init::make(&dir)?;
    let asked = EnrolDevice {
        token: token.secret(),
        device: args.device.clone(),
        csr: identity::certificate_request("rssh", &dir.join("device.key"))?,
        ssh_key: init::public_key(&init::public_file(&dir.join("ssh_key")))?,
        host_keys: host_keys(&args.host_key, &args.sshd_config)?,
    };
    let client = Client::pinned(args.url.clone(), token.authority)?;
    let enrolled: DeviceEnrolled = client.post("/v1/enrol/device", &asked).await?;
    for (name, text) in [
        ("device.pem", &enrolled.certificate),
        ("servers-ca.pem", &enrolled.servers_ca),
        ("known_hosts", &enrolled.known_hosts),
    ] {
        files::write_public(&dir.join(name), text.as_bytes())?;
    }
    files::hand_over(&dir)?;
    let device = enrolled.device.clone();
    write_config(&args.config, &dir, &enrolled, &args.authorized_keys)?;
    if args.trust_user_ca {
        user_ca::trust(&device, &enrolled.user_ca, &args.sshd_config, !args.no_reload)?;
    }
    println!("{device}");
    Ok(())
}

/// The public host keys of this device's sshd.
fn host_keys(given: &[PathBuf], sshd_config: &Path) -> anyhow::Result<Vec<String>> {
    if !given.is_empty() {
        return given.iter().map(|path| init::public_key(path)).collect();
    }
    let beside = sshd_config.parent().unwrap_or(Path::new("/etc/ssh"));
    let entries = fs::read_dir(beside).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("ssh_host_") && name.ends_with("_key.pub")
        })
        .collect();
    paths.sort();
    paths.truncate(8);
    paths.iter().map(|path| init::public_key(path)).collect()
}

fn write_config(path: &Path, dir: &Path, enrolled: &DeviceEnrolled, keys: &[KeysOf]) -> anyhow::Result<()> {
    if path.exists() {
        let config = Config::load(path).with_context(|| format!("{} is there already", path.display()))?;
        if config.device != enrolled.device {
            bail!(
                "{} is that of {}, and the token that of {}; give another with --config",
                path.display(),
                config.device,
                enrolled.device
            );
        }
        if let Some(missing) = keys.iter().find(|of| !config.authorized_keys.contains_key(&of.account)) {
            bail!(
                "{} is there already; add to it: [authorized-keys] {} = \"{}\"",
                path.display(),
                missing.account,
                missing.file.display()
            );
        }
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    files::write_public(path, render(dir, enrolled, keys)?.as_bytes())?;
    Ok(())
}

fn render(dir: &Path, enrolled: &DeviceEnrolled, keys: &[KeysOf]) -> anyhow::Result<String> {
    // JSON's strings are TOML's basic strings.
    let text = |path: &Path| serde_json::to_string(&path.to_string_lossy());
    let file = |name: &str| text(&dir.join(name));
    let mut kept = String::new();
    for of in keys {
        if kept.is_empty() {
            kept += "\n# While users' keys are good.\n[authorized-keys]\n";
        }
        kept += &format!(
            "{} = {}\n",
            serde_json::to_string(of.account.as_str())?,
            text(&of.file)?
        );
    }
    Ok(format!(
        "# Written by rssh-agentd enroll.\n\
         device = \"{device}\"\n\
         state-dir = {state}\n\
         url = \"{url}\"\n\
         \n\
         [mqtt]\n\
         brokers = {brokers}\n\
         ca = {ca}\n\
         cert = {cert}\n\
         key = {key}\n\
         \n\
         [ssh]\n\
         key = {ssh_key}\n\
         known-hosts = {known_hosts}\n\
         \n\
         # Tunnels lead to this device's sshd and nowhere else, unless [targets] says more.\n\
         {kept}",
        device = enrolled.device,
        state = text(dir)?,
        url = enrolled.url,
        brokers = serde_json::to_string(&enrolled.brokers)?,
        ca = file("servers-ca.pem")?,
        cert = file("device.pem")?,
        key = file("device.key")?,
        ssh_key = file("ssh_key")?,
        known_hosts = file("known_hosts")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "enrolment")]
    #[test]
    fn the_configuration_that_is_written_can_be_read() {
        let enrolled = DeviceEnrolled {
            device: "device-1".parse().unwrap(),
            certificate: String::new(),
            servers_ca: String::new(),
            known_hosts: String::new(),
            user_ca: String::new(),
            brokers: vec!["127.0.0.1:8883".parse().unwrap()],
            url: "https://127.0.0.1:8445".parse().unwrap(),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/agentd.toml");
        let keys: [KeysOf; 1] = ["root=/etc/dropbear/authorized_keys".parse().unwrap()];
        write_config(&path, &dir.path().join("a state"), &enrolled, &keys).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.url.as_ref(), Some(&enrolled.url));
        assert_eq!(config.mqtt.cert, dir.path().join("a state/device.pem"));
        let file = Path::new("/etc/dropbear/authorized_keys");
        assert_eq!(config.authorized_keys.values().collect::<Vec<_>>(), [file]);
        // A second time it stays, unless it is another device's.
        write_config(&path, dir.path(), &enrolled, &keys).unwrap();
        let other = DeviceEnrolled {
            device: "device-2".parse().unwrap(),
            ..enrolled
        };
        assert!(write_config(&path, dir.path(), &other, &keys).is_err());
    }
}
