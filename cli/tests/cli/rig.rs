//! One test's world: authorities, a user with a profile and home of its own, and peers as the test wants them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Output;

use assert_cmd::Command;
use rssh_mqtt::IdentityFiles;
use rssh_proto::HostPort;
use tempfile::TempDir;

use crate::balancer::{Act, Acts, Balancer};
use crate::broker::{Broker, free_port};
use crate::pki::Authority;
use crate::server::{Answers, Server};

pub(crate) struct Rig {
    directory: TempDir,
    pub(crate) servers: Authority,
    pub(crate) users: Authority,
    pub(crate) alice: IdentityFiles,
    // Dropped in this order: the server goes before its broker.
    server: Option<Server>,
    balancer: Option<Balancer>,
    broker: Option<Broker>,
}

/// Every name leads to an ssh.
pub(crate) const SSH: Acts = |_, _| Act::Ssh;

impl Rig {
    /// A user without peers: what its profile names is not there.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let servers = Authority::new(directory.path(), "servers");
        let users = Authority::new(directory.path(), "users");
        let alice = users.issue("alice", &[], &servers.file);
        let rig = Self {
            directory,
            servers,
            users,
            alice,
            server: None,
            balancer: None,
            broker: None,
        };
        rig.write_profile();
        rig
    }

    /// The same with all peers.
    pub(crate) fn with(answers: Answers, acts: Acts) -> Self {
        Self::new().broker().server(answers).balancer(acts)
    }

    pub(crate) fn broker(mut self) -> Self {
        let clients = self.path("clients-ca.pem");
        let pem = |authority: &Authority| fs::read_to_string(&authority.file).unwrap();
        fs::write(&clients, pem(&self.users) + &pem(&self.servers)).unwrap();
        let files = self.servers.issue("broker", &["127.0.0.1"], &self.servers.file);
        self.broker = Some(Broker::start(self.directory.path(), &files, &clients));
        self.write_profile();
        self
    }

    pub(crate) fn server(mut self, answers: Answers) -> Self {
        let files = self.servers.issue("s1", &[], &self.servers.file);
        let broker = self.broker.as_ref().expect("the broker comes first");
        self.server = Some(Server::start(&broker.address, &files, answers));
        self
    }

    pub(crate) fn balancer(mut self, acts: Acts) -> Self {
        let files = self.servers.issue("lb", &["*.proxy.test"], &self.servers.file);
        self.balancer = Some(Balancer::start(&files, &self.users.file, acts));
        self.write_profile();
        self
    }

    /// With a shell script in a program's place.
    pub(crate) fn program(self, name: &str, script: &str) -> Self {
        fs::create_dir_all(self.path("bin")).unwrap();
        let file = self.path("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// The peers that a test asks about.
    pub(crate) fn peers(&self) -> (&Server, &Balancer) {
        (self.server.as_ref().unwrap(), self.balancer.as_ref().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the profile anew, after a change.
    pub(crate) fn write_profile(&self) {
        let nowhere = || -> HostPort { format!("127.0.0.1:{}", free_port()).parse().unwrap() };
        let broker = self
            .broker
            .as_ref()
            .map_or_else(nowhere, |broker| broker.address.clone());
        let lb = self
            .balancer
            .as_ref()
            .map_or_else(nowhere, |balancer| balancer.address.clone());
        let IdentityFiles { ca, cert, key } = &self.alice;
        let text = format!(
            "user = \"alice\"\nbrokers = [\"{broker}\"]\nlb = \"{lb}\"\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n"
        );
        fs::create_dir_all(self.path("config/rssh")).unwrap();
        fs::write(self.path("config/rssh/profile.toml"), text).unwrap();
    }

    /// `rssh` as this user.
    pub(crate) fn rssh(&self, line: &str) -> Command {
        let mut command = Command::from(self.process(line));
        command.timeout(std::time::Duration::from_secs(60));
        command
    }

    /// The same for a test that drives the process itself.
    pub(crate) fn process(&self, line: &str) -> std::process::Command {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("rssh"));
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .args(line.split_whitespace())
            .env_remove("RSSH_PROFILE")
            .env_remove("RSSH_LOG")
            .env("HOME", self.path("home"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    pub(crate) fn names_cached(&self) -> usize {
        fs::read_dir(self.path("cache/rssh/names")).map_or(0, Iterator::count)
    }
}

/// Checks that a command failed with this code and one line that says these things; returns the line.
#[track_caller]
pub(crate) fn failed(output: &Output, code: i32, says: &[&str]) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("rssh: ") && stderr.ends_with('\n'), "{stderr}");
    for word in says {
        assert!(stderr.contains(word), "{stderr}");
    }
    assert!(
        output.stdout.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    stderr
}

/// Checks that a command succeeded without a remark; returns its stdout.
#[track_caller]
pub(crate) fn succeeded(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    String::from_utf8(output.stdout.clone()).unwrap()
}
