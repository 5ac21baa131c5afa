//! What a person would do instead: `ssh -f -N -R` from the device, straight to an sshd.
//!
//! serverd admits nobody who has no tunnel to claim, so this is a second sshd: the same program with the configuration
//! that serverd rendered, but for who may log in, where it listens and which port may be forwarded. It is reached without
//! a load balancer, and asks nobody whether a key may log in: both favour the person.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};

use super::route;
use crate::Lab;
use crate::accounts;
use crate::component::Component;
use crate::files;
use crate::parts::ssh_keygen;
use crate::place::{LB, Place, TUNNEL_ACCOUNT, device_name, socket};
use crate::ready::Ready;
use crate::setup;

/// The number of the server that this sshd is: past those of the lab.
const SERVER: u32 = 999;
/// The names as components: the sshd as it comes, and one that was told to send small packets at once, as ours is.
pub const SSHDS: [&str; 2] = ["sshd-998", "sshd-999"];
/// Where they listen, beside the load balancer, since the devices reach that.
pub const PORTS: [u16; 2] = [2300, 2301];
/// Where forwards listen: an address that no server of the lab has.
pub const FORWARD: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 200, 1), 20000);

/// What is different in the sshd's configuration; how long a login may take is as by default, since nobody holds a port.
const REPLACED: [&str; 7] = [
    "ListenAddress",
    "PidFile",
    "AuthorizedKeysFile",
    "AuthorizedKeysCommand",
    "AuthorizedKeysCommandUser",
    "PermitListen",
    "LoginGraceTime",
];

/// How the hand-run ssh is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// As the distribution has it.
    Default,
    /// With the key exchange and the ciphers of the agent's ssh.
    Equal,
    /// The same, to an sshd that sends small packets at once, which nobody's does by default.
    Tuned,
    /// As `Equal`, by way of the load balancer that [`route::open_doors`] starts.
    Balanced,
}

impl Client {
    fn port(self) -> u16 {
        match self {
            Self::Default | Self::Equal => PORTS[0],
            Self::Tuned => PORTS[1],
            Self::Balanced => route::TO_SSHD,
        }
    }
}

/// The sshd of the person, and how the lab's devices reach it.
#[derive(Debug)]
pub struct ByHand {
    /// The agent's key exchange and ciphers, as options.
    equal: Vec<String>,
}

impl ByHand {
    /// Starts the sshd and prepares devices for it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(lab: &Lab, devices: RangeInclusive<u32>) -> Result<Self> {
        let root = lab.dir();
        let server = Place::Server(SERVER);
        let below = server.owner_dir();
        let dir = root.join(&below);
        // Any number that no server of the lab has: each takes the processes of its account for its own.
        let lab_number = uuid::Uuid::new_v4().as_u64_pair().0 as u16;
        accounts::write(root, &server, accounts::tunnels_uid(lab_number, SERVER))?;

        let device_dir = |device| root.join(format!("devices/{}", device_name(device)));
        let (address, port) = FORWARD;
        let mut keys = String::new();
        for device in devices.clone() {
            let key = ssh_keygen::key_pair(&device_dir(device).join("key_by_hand"))?;
            keys += &format!("restrict,port-forwarding,permitlisten=\"{address}:{port}\" {key}\n");
        }
        files::write(&dir.join("authorized_keys"), keys)?;
        for (name, port) in SSHDS.into_iter().zip(PORTS) {
            start_sshd(lab, &server, name, port)?;
        }

        // The person has been there before.
        let host_key = files::read(&root.join("servers/s1/sshd/ssh_host_ed25519_key.pub"))?;
        let [default, tuned] = PORTS;
        let known = [default, tuned, route::TO_SSHD].map(|port| format!("[{LB}]:{port} {host_key}"));
        let known = known.concat();
        for device in devices.clone() {
            files::write(&device_dir(device).join("known_by_hand"), &known)?;
        }
        let agents = files::read(&device_dir(*devices.start()).join("state/run/ssh_config"))?;
        Ok(Self {
            equal: equal_options(&agents).context("the agent's ssh_config has no key exchange and ciphers")?,
        })
    }

    /// The command, which returns once the forward is there and stays in the background.
    pub fn command(&self, device: u32, client: Client, lab: &Lab, to: &str) -> Vec<String> {
        let forward = ["-R".to_owned(), format!("{}:{to}", socket(FORWARD.0, FORWARD.1))];
        self.login(device, client, lab, forward)
    }

    /// A command that logs in, with more options, and stays in the background.
    pub fn login(&self, device: u32, client: Client, lab: &Lab, more: impl IntoIterator<Item = String>) -> Vec<String> {
        let dir = lab.dir().inside(format_args!("devices/{}", device_name(device)));
        let mut words: Vec<String> = ["ssh", "-f", "-N"].map(str::to_owned).into();
        for option in [
            "ExitOnForwardFailure=yes",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            &format!("UserKnownHostsFile={dir}/known_by_hand"),
        ] {
            words.extend(["-o".to_owned(), option.to_owned()]);
        }
        if client != Client::Default {
            words.extend(self.equal.iter().cloned());
        }
        words.extend(["-i".to_owned(), format!("{dir}/key_by_hand")]);
        words.extend(["-p".to_owned(), client.port().to_string()]);
        words.extend(more);
        words.push(format!("{TUNNEL_ACCOUNT}@{LB}"));
        words
    }
}

/// Starts one of the two.
fn start_sshd(lab: &Lab, server: &Place, name: &str, port: u16) -> Result<()> {
    let root = lab.dir();
    let below = server.owner_dir();
    let dir = format!("{below}/{name}");
    files::make_dir(&root.join(&dir))?;
    let (dir, outside) = (root.inside(&dir), root.join(&dir));
    let rendered = files::read(&root.join("servers/s1/sshd/sshd_config"))?;
    let keys = root.inside(format_args!("{below}/authorized_keys"));
    files::write(&outside.join("sshd_config"), sshd_config(&rendered, &dir, port, &keys))?;
    let config = format!("{dir}/sshd_config");
    let mut sshd = Component::new(name, server.clone(), &["/usr/sbin/sshd", "-D", "-e", "-f", &config])
        .ready(Ready::Tcp(SocketAddr::new(LB.into(), port)));
    if port == Client::Tuned.port() {
        let serverd = files::read(&root.join("servers/s1/serverd.toml"))?;
        files::write(&outside.join("serverd.toml"), serverd_toml(&serverd, &dir, port))?;
        let program = lab.programs().path("rssh-serverd");
        let config = format!("{dir}/serverd.toml");
        sshd = sshd.after(&[&program.to_string_lossy(), "sshd", "nodelay", "--config", &config]);
    }
    setup::start(root, lab.programs(), &[sshd])
}

/// A server's configuration with this sshd for its own.
fn serverd_toml(text: &str, dir: &str, port: u16) -> String {
    let line = |line: &str| match line.split(" = ").next() {
        Some("listen") if line.contains('[') => format!("listen = [\"{}\"]\n", socket(LB, port)),
        Some("dir") => format!("dir = \"{dir}\"\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

/// The rendered configuration with another listener, and with keys from a file.
fn sshd_config(rendered: &str, dir: &str, port: u16, keys: &str) -> String {
    let mut text = format!(
        "ListenAddress {}\nPidFile {dir}/sshd.pid\nAuthorizedKeysFile {keys}\nPermitListen {}:*\n",
        socket(LB, port),
        FORWARD.0
    );
    for line in rendered.lines() {
        let keyword = line.split_ascii_whitespace().next().unwrap_or_default();
        if !REPLACED.contains(&keyword) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// The key exchange and the ciphers of an ssh_config, as options of a command line.
fn equal_options(config: &str) -> Option<Vec<String>> {
    let mut options = Vec::new();
    for keyword in ["KexAlgorithms", "Ciphers"] {
        let value = config
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(keyword))?
            .trim();
        options.extend(["-o".to_owned(), format!("{keyword}={value}")]);
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_may_log_in_and_where_differs_from_the_rendered_configuration() {
        let rendered = "ListenAddress 127.0.1.1:2201\nHostKey /k\nAuthorizedKeysCommand /h/rssh-authorize\n\
                        AuthorizedKeysCommandUser u\nAuthorizedKeysFile none\nPermitListen 127.0.1.1:*\nUseDNS no\n";
        let text = sshd_config(rendered, "/d", 2300, "/keys");
        assert!(text.ends_with("HostKey /k\nUseDNS no\n"), "{text}");
        assert_eq!(text.matches("AuthorizedKeys").count(), 1, "{text}");
        assert_eq!(text.matches("ListenAddress").count(), 1, "{text}");
    }

    #[test]
    fn the_agents_choices_become_options() {
        let config = "Host *\n    KexAlgorithms curve25519-sha256\n    Ciphers aes128-gcm@openssh.com\n";
        assert_eq!(
            equal_options(config).unwrap(),
            [
                "-o",
                "KexAlgorithms=curve25519-sha256",
                "-o",
                "Ciphers=aes128-gcm@openssh.com"
            ]
        );
        assert_eq!(equal_options("Host *\n"), None);
    }
}
