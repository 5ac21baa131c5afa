//! `--trust-user-ca`: this device's sshd takes users' certificates, for the accounts that they name and no other.
//!
//! A certificate names `ACCOUNT@DEVICE`. sshd has every account's name compared with just that: so a certificate for
//! another device, or for another account of this one, opens nothing here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use rssh_mqtt::files::write_public;
use rssh_proto::DeviceId;
use rssh_proto::enrolment::principal;
use rssh_proto::text::sanitize;

/// The file beside sshd's configuration that is ours.
const DROP_IN: &str = "sshd_config.d/50-rssh.conf";
/// The authority's public key.
const CA: &str = "rssh-user-ca.pub";

/// Makes sshd trust the users' CA; where sshd does not take the configuration, everything is as it was.
///
/// # Errors
/// When sshd's configuration does not include the directory of drop-ins, or refuses ours.
pub fn trust(device: &DeviceId, ca: &str, sshd_config: &Path, reload: bool) -> anyhow::Result<()> {
    let dir = sshd_config.parent().unwrap_or(Path::new("/etc/ssh"));
    let main = fs::read_to_string(sshd_config).with_context(|| {
        format!(
            "cannot read {}; name sshd's configuration with --sshd-config",
            sshd_config.display()
        )
    })?;
    let drop_in = dir.join(DROP_IN);
    if !includes(&main, &drop_in) {
        bail!(
            "{0} does not include {1}/*.conf; put this line first: Include {1}/*.conf",
            sshd_config.display(),
            drop_in.parent().unwrap_or(dir).display()
        );
    }
    let ca_file = dir.join(CA);
    write_public(&ca_file, format!("{ca}\n").as_bytes())?;
    if let Some(parent) = drop_in.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    let before = fs::read(&drop_in).ok();
    write_public(&drop_in, render(device, &ca_file)?.as_bytes())?;
    if let Err(error) = check(sshd_config) {
        match before {
            Some(text) => write_public(&drop_in, &text)?,
            None => fs::remove_file(&drop_in)?,
        }
        return Err(error);
    }
    if reload {
        reload_sshd();
    }
    Ok(())
}

/// Whether the main configuration reads the drop-in, before its first `Match`.
fn includes(main: &str, drop_in: &Path) -> bool {
    let dir = drop_in.parent().unwrap_or(Path::new("")).to_string_lossy();
    main.lines()
        .map(str::trim)
        .take_while(|line| !line.to_ascii_lowercase().starts_with("match"))
        .filter(|line| line.to_ascii_lowercase().starts_with("include"))
        .any(|line| line.contains(&format!("{dir}/*")))
}

fn render(device: &DeviceId, ca: &Path) -> anyhow::Result<String> {
    let ca = ca.to_string_lossy();
    if ca.contains(|c: char| c.is_whitespace() || c.is_control() || "\"'\\%".contains(c)) {
        bail!("sshd's configuration cannot name {ca}; use a directory without spaces");
    }
    let echo = ["/usr/bin/echo", "/bin/echo"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .context("there is no echo in /usr/bin or /bin")?;
    Ok(format!(
        "# Written by rssh-agentd enroll --trust-user-ca. A certificate of this CA logs in to the accounts that it names\n\
         # for this device, as {example}, and to no other.\n\
         TrustedUserCAKeys {ca}\n\
         AuthorizedPrincipalsCommand {echo} {principal}\n\
         AuthorizedPrincipalsCommandUser nobody\n",
        example = principal("root", device),
        echo = echo.display(),
        principal = principal("%u", device),
    ))
}

fn check(sshd_config: &Path) -> anyhow::Result<()> {
    let output = Command::new("/usr/sbin/sshd")
        .args(["-t", "-f"])
        .arg(sshd_config)
        .stdin(Stdio::null())
        .output()
        .context("cannot run /usr/sbin/sshd; users' certificates need OpenSSH's sshd")?;
    let said = sanitize(String::from_utf8_lossy(&output.stderr).trim(), 300);
    // That directory is made when sshd's unit starts, which may be later than now.
    if output.status.success() || said.contains("Missing privilege separation directory") {
        return Ok(());
    }
    bail!("sshd refuses to trust the users' CA, and nothing was changed: {said}")
}

/// Reloads the unit of sshd, where systemd runs; elsewhere its next start does it.
fn reload_sshd() {
    let systemd = Path::new("/run/systemd/system").exists();
    let reloaded = systemd
        && ["ssh.service", "sshd.service"].iter().any(|unit| {
            let status = Command::new("systemctl")
                .args(["reload", unit])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            status.is_ok_and(|status| status.success())
        });
    if !reloaded {
        eprintln!("reload sshd, so that it takes users' certificates");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_counts_only_where_the_configuration_reads_it() {
        let drop_in = Path::new("/etc/ssh/sshd_config.d/50-rssh.conf");
        assert!(includes("Include /etc/ssh/sshd_config.d/*.conf\nPort 22\n", drop_in));
        assert!(includes("  include /etc/ssh/sshd_config.d/*\n", drop_in));
        for bad in [
            "",
            "Port 22\n",
            "# Include /etc/ssh/sshd_config.d/*.conf\n",
            "Match User x\nInclude /etc/ssh/sshd_config.d/*.conf\n",
            "Include /etc/other.d/*.conf\n",
        ] {
            assert!(!includes(bad, drop_in), "{bad}");
        }
    }

    #[test]
    fn only_the_named_account_of_this_device_matches() {
        let text = render(&"device-1".parse().unwrap(), Path::new("/etc/ssh/rssh-user-ca.pub")).unwrap();
        assert!(text.contains("echo %u@device-1\n"), "{text}");
        assert!(render(&"device-1".parse().unwrap(), Path::new("/a b/ca")).is_err());
    }
}
