//! A real sshd that grants claims, and what a device needs to log in to it.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rssh_agentd::config::{Kex, Ssh as SshConfig};
use rssh_proto::duration::Span;

/// How long a test waits for a condition before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `holds` gives something; fails with `what` when it never does.
pub(crate) fn wait_for<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = holds() {
            return value;
        }
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}; is it installed?"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A process that ends with its owner.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running sshd with a host certificate, whose only account has the claim as its forced command.
pub(crate) struct Sshd {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    /// What the claim grants.
    pub(crate) granted: u16,
    _process: Running,
}

impl Sshd {
    /// Starts it; each claim gets the next epoch, and `granted` as its port.
    pub(crate) fn start() -> Self {
        let granted = free_port();
        let sshd = Self::start_with("cat claim");
        let claim = format!(
            r#"n=$(($(cat {dir}/epoch) + 1)); echo $n > {dir}/epoch; echo "$SSH_ORIGINAL_COMMAND" >> {dir}/commands
printf '{{"claimed":{{"server":"s1","bind":"127.0.0.1","port":{granted},"epoch":%s}}}}\n' $n"#,
            dir = sshd.dir.path().display()
        );
        sshd.answer_claims_with(&claim);
        fs::write(sshd.dir.path().join("epoch"), "0").expect("write");
        Self { granted, ..sshd }
    }

    fn start_with(claim: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("sshd").tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        for key in ["ca", "host", "key"] {
            run(
                "ssh-keygen",
                &["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", &path(key)],
            );
        }
        run(
            "ssh-keygen",
            &[
                "-q",
                "-s",
                &path("ca"),
                "-I",
                "host",
                "-h",
                "-n",
                "rssh-sshd",
                &path("host.pub"),
            ],
        );
        let public = |name: &str| fs::read_to_string(path(name)).expect("a public key").trim().to_owned();
        fs::write(
            path("known_hosts"),
            format!("@cert-authority rssh-sshd {}\n", public("ca.pub")),
        )
        .expect("write");
        let script = path("claim.sh");
        fs::write(&script, format!("{claim}\n")).expect("write");
        fs::write(
            path("authorized_keys"),
            format!(
                "restrict,port-forwarding,command=\"exec sh {script}\" {}\n",
                public("key.pub")
            ),
        )
        .expect("write");
        let port = free_port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nHostCertificate {0}/host-cert.pub\nPidFile none\n\
             AuthorizedKeysFile {0}/authorized_keys\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
             AuthenticationMethods publickey\nAllowTcpForwarding remote\nGatewayPorts clientspecified\n\
             LogLevel VERBOSE\n",
            dir.path().display()
        );
        fs::write(path("sshd_config"), config).expect("write");
        // Debian's sshd wants its chroot; a package makes it at boot.
        let _ = fs::create_dir("/run/sshd");
        let log = fs::File::create(path("sshd.log")).expect("a log");
        let process = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f", &path("sshd_config")])
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("cannot run /usr/sbin/sshd; install the package openssh-server");
        let process = Running(process);
        wait_for("sshd listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self {
            dir,
            port,
            granted: 0,
            _process: process,
        }
    }

    /// Replaces the script that answers claims.
    pub(crate) fn answer_claims_with(&self, script: &str) {
        fs::write(self.dir.path().join("claim.sh"), format!("{script}\n")).expect("write");
    }

    /// The device's part of a configuration.
    pub(crate) fn ssh_config(&self) -> SshConfig {
        SshConfig {
            key: self.path("key"),
            known_hosts: self.path("known_hosts"),
            host_key_alias: "rssh-sshd".parse().expect("a label"),
            kex: Kex::Fast,
            lb: None,
            program: "/usr/bin/ssh".into(),
            keep_alive: Span::seconds(5),
            rotate_after: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The commands that devices asked for.
    pub(crate) fn commands(&self) -> String {
        fs::read_to_string(self.path("commands")).unwrap_or_default()
    }
}

/// Accepts connections and answers each with `banner`.
pub(crate) fn serve_banner(banner: &'static str) -> SocketAddr {
    serve_banner_at(0, banner)
}

/// The same at a given port.
pub(crate) fn serve_banner_at(port: u16, banner: &'static str) -> SocketAddr {
    use std::io::Write as _;

    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(banner.as_bytes()));
        }
    });
    address
}

/// What a connection to a port answers before it closes; `None` while nobody listens.
pub(crate) fn banner(port: u16) -> Option<String> {
    use std::io::Read as _;

    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The processes whose command line has this text, such as the ssh of one state directory.
pub(crate) fn processes_with(text: &Path) -> Vec<u32> {
    let text = text.display().to_string();
    let Ok(all) = fs::read_dir("/proc") else {
        return vec![];
    };
    all.flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(&text).then_some(pid)
        })
        .collect()
}
