//! Somebody who has taken a device over: its key, its network and its ssh are theirs.

use std::fs;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rssh_lab::place::{LB, LB_DEVICES, Place, SSHD_PORTS, device_name, server_address, socket};
use rssh_lab::{Action, Lab};
use rssh_proto::claim::ClaimReply;

use crate::{Opened, SERVERS, all_of, open};

/// The holder of a device's key.
pub(crate) struct Thief<'a> {
    lab: &'a Lab,
    n: u32,
    /// The ssh configuration, as programs of the lab see it.
    config: String,
}

/// A port that a server keeps for a login.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reserved {
    pub(crate) server: u32,
    pub(crate) port: u16,
    /// Which login, as serverd names it.
    pub(crate) login: String,
}

impl Reserved {
    /// Where the login may listen.
    pub(crate) fn address(&self) -> String {
        socket(server_address(self.server), self.port)
    }
}

/// A device whose agent is gone while its tunnel lives, so that its key may land at any time; and the tunnel.
pub(crate) fn robbed<'a>(lab: &'a Lab, user: &str, n: u32) -> (Thief<'a>, Opened) {
    let opened = open(lab, user, &device_name(n), &[]);
    lab.ctl(Action::Kill, &format!("agentd-{n}")).unwrap();
    (Thief::of(lab, n), opened)
}

impl<'a> Thief<'a> {
    /// Takes over device `n`.
    pub(crate) fn of(lab: &'a Lab, n: u32) -> Self {
        let state = lab.dir().inside(format_args!("devices/{}/state", device_name(n)));
        Self::with_key(lab, n, &format!("{state}/ssh_key"))
    }

    /// Somebody on device `n` with a key of their own.
    pub(crate) fn with_key(lab: &'a Lab, n: u32, key: &str) -> Self {
        let dir = format!("devices/{}", device_name(n));
        let mut text = format!(
            "Host *\n\
             \x20   User rssh-tunnel\n\
             \x20   IdentityFile {key}\n\
             \x20   IdentitiesOnly yes\n\
             \x20   IdentityAgent none\n\
             \x20   UserKnownHostsFile {}\n\
             \x20   HostKeyAlias rssh-sshd\n\
             \x20   StrictHostKeyChecking yes\n\
             \x20   BatchMode yes\n\
             \x20   ConnectTimeout 10\n\
             Host lb\n\
             \x20   HostName {LB}\n\
             \x20   Port {LB_DEVICES}\n",
            lab.dir().inside(format_args!("{dir}/state/known_hosts"))
        );
        for server in 1..=SERVERS {
            text += &format!(
                "Host s{server}\n    HostName {}\n    Port {}\n",
                server_address(server),
                SSHD_PORTS[0]
            );
        }
        fs::write(lab.dir().join(&dir).join("thief.conf"), text).unwrap();
        Self {
            lab,
            n,
            config: lab.dir().inside(format_args!("{dir}/thief.conf")),
        }
    }

    /// The ssh configuration that leads to the servers.
    pub(crate) fn config(&self) -> &str {
        &self.config
    }

    /// A way to the servers: through the load balancer from the device, or straight to one of them from beside it.
    fn command(&self, host: &str, options: &[&str]) -> Command {
        let place = match host {
            "lb" => Place::Device(self.n),
            _ => Place::Core,
        };
        self.lab
            .command(&place, &[&["ssh", "-F", &self.config], options].concat())
    }

    /// Logs in through the load balancer with options and runs a command, to its end.
    pub(crate) fn ssh(&self, options: &[&str], command: &[&str]) -> Output {
        self.command("lb", &[options, &["lb"], command].concat())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Logs in and stays.
    ///
    /// # Errors
    /// What ssh says when it is refused.
    pub(crate) fn try_login(&self, host: &str, options: &[&str]) -> Result<Login<'a>, String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let control = format!(
            "devices/{}/run/thief-{}",
            device_name(self.n),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let inside = self.lab.dir().inside(&control);
        let before = self.reserved();
        let mut master = self
            .command(host, &[options, &["-M", "-N", "-S", &inside, host]].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let socket = self.lab.dir().join(&control);
        let up = rssh_lab::process::wait(Duration::from_secs(20), || {
            socket.exists() || matches!(master.try_wait(), Ok(Some(_)))
        });
        if !up || !socket.exists() {
            master.kill().ok();
            return Err(all_of(&master.wait_with_output().unwrap()));
        }
        let after = self.reserved();
        let reserved = after.into_iter().rfind(|reserved| !before.contains(reserved)).unwrap();
        Ok(Login {
            lab: self.lab,
            config: self.config.clone(),
            control: inside,
            host: host.to_owned(),
            master,
            reserved,
        })
    }

    /// Logs in through the load balancer, and stays.
    pub(crate) fn login(&self) -> Login<'a> {
        self.try_login("lb", &[]).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Logs in straight to server `n`, and stays.
    pub(crate) fn login_at(&self, server: u32) -> Login<'a> {
        self.try_login(&format!("s{server}"), &[])
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Every port that was ever reserved for a login of the device, in the order of each server's log.
    pub(crate) fn reserved(&self) -> Vec<Reserved> {
        let device = format!(" device={} ", device_name(self.n));
        let mut found = Vec::new();
        for server in 1..=SERVERS {
            let log = fs::read_to_string(self.lab.log(&format!("serverd-{server}"))).unwrap();
            for line in log
                .lines()
                .filter(|line| line.contains("port reserved") && line.contains(&device))
            {
                let field = |name: &str| {
                    let at = line.find(name).unwrap() + name.len();
                    line[at..].split(' ').next().unwrap()
                };
                let reserved = Reserved {
                    server,
                    port: field("port=").parse().unwrap(),
                    login: field("login=").to_owned(),
                };
                // sshd asks twice where ssh asks first whether a key would do.
                if !found.contains(&reserved) {
                    found.push(reserved);
                }
            }
        }
        found
    }
}

/// A login that stays.
pub(crate) struct Login<'a> {
    lab: &'a Lab,
    config: String,
    control: String,
    host: String,
    master: Child,
    pub(crate) reserved: Reserved,
}

impl Login<'_> {
    /// Has the login do something more.
    fn more(&self, options: &[&str], command: &[&str]) -> Output {
        // Should the login be gone, ssh must not make a new one.
        let fixed = [
            "ssh",
            "-F",
            &self.config,
            "-S",
            &self.control,
            "-o",
            "ProxyCommand=false",
        ];
        let argv = [&fixed[..], options, &[&self.host], command].concat();
        self.lab
            .command(&Place::Core, &argv)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command in it.
    pub(crate) fn run(&self, command: &str) -> Output {
        self.more(&[], &[command])
    }

    /// Claims a tunnel in it.
    pub(crate) fn claim(&self, tunnel: &str) -> ClaimReply {
        let output = self.run(&format!("claim {tunnel}"));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", all_of(&output)))
    }

    /// Asks for a remote forward at `listen`, to the device's own sshd.
    pub(crate) fn forward(&self, listen: &str) -> Output {
        self.more(&["-O", "forward", "-R", &format!("{listen}:127.0.0.1:22")], &[])
    }

    /// Takes one back.
    pub(crate) fn cancel(&self, listen: &str) -> Output {
        self.more(&["-O", "cancel", "-R", &format!("{listen}:127.0.0.1:22")], &[])
    }

    /// Whether the server has ended it, or does within a time.
    pub(crate) fn ends_within(&mut self, limit: Duration) -> bool {
        let master = &mut self.master;
        rssh_lab::process::wait(limit, || matches!(master.try_wait(), Ok(Some(_))))
    }
}

impl Drop for Login<'_> {
    fn drop(&mut self) {
        // ssh hears of its forwarder's end, and that of the session, by itself.
        self.master.kill().ok();
        self.master.wait().ok();
    }
}
