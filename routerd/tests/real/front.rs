//! An HAProxy with the product's configuration, and clients for its doors.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use rssh_mqtt::{Identity, IdentityFiles};
use rssh_proto::name::{NameMaster, ProxyDomain};
use rssh_proto::{ServerId, SignedName, UserId};
use rssh_routerd::config::Config;
use rssh_routerd::desired::Desired;
use rssh_routerd::files::Files;
use rssh_routerd::runtime::Runtime;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::parts::{Part, free, loopback, until};
use crate::pki::{Ca, LeafFiles};

/// A directory with keys and certificates, and the configuration of a router in it.
pub(crate) struct Front {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) servers: Ca,
    pub(crate) users: Ca,
    pub(crate) master: NameMaster,
    pub(crate) config: Config,
    pub(crate) config_text: String,
    pub(crate) alice: LeafFiles,
    pub(crate) bob: LeafFiles,
    haproxy: Option<Part>,
}

/// What became of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Banner(String),
    Refused,
}

pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

impl Front {
    /// Makes everything but a running HAProxy. The URLs and the broker are for routerd.
    pub(crate) fn new(redis: &str, database: &str, broker: SocketAddr) -> Self {
        let dir = tempfile::Builder::new().prefix("rssh-").tempdir().unwrap();
        Self::within(dir, redis, database, broker)
    }

    pub(crate) fn within(dir: tempfile::TempDir, redis: &str, database: &str, broker: SocketAddr) -> Self {
        let path = dir.path();
        let (servers, users) = (Ca::new("servers"), Ca::new("users"));
        std::fs::write(path.join("servers-ca.pem"), &servers.pem).unwrap();
        std::fs::write(path.join("users-ca.pem"), &users.pem).unwrap();
        servers.server("*.proxy.test").write_bundle(&path.join("lb.pem"));
        let (alice, bob) = (
            users.client("alice").write(path, "alice"),
            users.client("bob").write(path, "bob"),
        );
        let router = servers.client("lb1").write(path, "router");
        let master = NameMaster::generate();
        let master_file = path.join("name-master");
        rssh_mqtt::files::write_secret(&master_file, master.to_base64().as_bytes()).unwrap();
        let ip = loopback();
        let config_text = format!(
            r#"
router = "lb1"
state-dir = "{d}/state"
name-master = "{d}/name-master"
[haproxy]
dir = "{d}/haproxy"
socket = "{d}/haproxy/admin.sock"
certificate = "{d}/lb.pem"
users-ca = "{d}/users-ca.pem"
domain = "proxy.test"
devices = ["{devices}"]
users = ["{users}"]
bearer = ["{bearer}"]
[haproxy.public]
listen = ["{public}"]
brokers = ["{broker}"]
[haproxy.limits]
devices = 200
users = 200
bearer = 200
public = 200
check-interval = "200ms"
[mqtt]
brokers = ["{broker}"]
ca = "{d}/servers-ca.pem"
cert = "{cert}"
key = "{key}"
[redis]
url = "{redis}"
[database]
url = "{database}"
[registry]
servers-ca = "{d}/servers-ca.pem"
reconcile = "500ms"
"#,
            d = path.display(),
            devices = free(ip),
            users = free(ip),
            bearer = free(ip),
            public = free(ip),
            cert = router.cert.display(),
            key = router.key.display(),
        );
        let config_path = path.join("routerd.toml");
        std::fs::write(&config_path, &config_text).unwrap();
        Self {
            config: Config::load(&config_path).unwrap(),
            config_text,
            dir,
            servers,
            users,
            master,
            alice,
            bob,
            haproxy: None,
        }
    }

    /// Makes a front that needs no registry.
    pub(crate) fn alone() -> Self {
        Self::new(
            "redis://127.0.0.1:1",
            "postgres://nobody@127.0.0.1:1/none",
            free(loopback()),
        )
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime::new(self.config.haproxy.clone())
    }

    /// Writes the files for a state.
    pub(crate) fn write(&self, desired: &Desired) {
        Files::new(self.config.haproxy.clone()).unwrap().write(desired).unwrap();
    }

    /// Starts HAProxy from its files.
    pub(crate) async fn start(&mut self) {
        let file = self.path().join("haproxy/haproxy.cfg");
        let check = Command::new("haproxy").arg("-c").arg("-f").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&check.stderr).into_owned() + &String::from_utf8_lossy(&check.stdout);
        assert!(check.status.success() && !said.contains("WARNING"), "{said}");
        self.haproxy = Some(Part::start(
            self.path(),
            "haproxy",
            Command::new("haproxy").arg("-W").arg("-f").arg(&file),
        ));
        let runtime = self.runtime();
        until("HAProxy answers", async || runtime.worker().await.is_ok()).await;
    }

    /// Ends HAProxy at once and waits.
    pub(crate) fn stop(&mut self) {
        self.haproxy.as_mut().unwrap().end(Signal::SIGTERM);
    }

    /// Reloads HAProxy and waits for the new worker.
    pub(crate) async fn reload(&self) {
        let runtime = self.runtime();
        let worker = runtime.worker().await.unwrap();
        let mut asked: Option<Instant> = None;
        until("HAProxy has reloaded", async || {
            // A master that has only just started loses the signal (seen with 2.6).
            if asked.is_none_or(|asked| asked.elapsed() > Duration::from_secs(1)) {
                self.haproxy.as_ref().unwrap().signal(Signal::SIGUSR2);
                asked = Some(Instant::now());
            }
            runtime.worker().await.is_ok_and(|now| now != worker)
        })
        .await;
    }

    /// What HAProxy has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("haproxy.log")).unwrap()
    }

    /// A good name.
    pub(crate) fn name(&self, server: &str, port: u16, user: Option<&str>) -> String {
        self.name_until(server, port, unix_now() + 120, user)
    }

    pub(crate) fn name_until(&self, server: &str, port: u16, expires_at: u64, user: Option<&str>) -> String {
        let server: ServerId = server.parse().unwrap();
        let user: Option<UserId> = user.map(|user| user.parse().unwrap());
        let key = self.master.key(&server);
        let domain: ProxyDomain = "proxy.test".parse().unwrap();
        SignedName::sign(&key, &server, port, expires_at, user.as_ref()).host(&domain)
    }

    /// Connects to the users' door.
    pub(crate) async fn user(&self, who: &LeafFiles, name: &str) -> Got {
        self.connect(self.config.haproxy.users[0], None, name, Some(who)).await
    }

    /// Connects to the bearers' door from an address.
    pub(crate) async fn bearer(&self, source: IpAddr, name: &str) -> Got {
        self.connect(self.config.haproxy.bearer[0], Some(source), name, None)
            .await
    }

    /// Connects to a TLS door and reads one line, or the end. A refusal must come at once.
    pub(crate) async fn connect(
        &self,
        door: SocketAddr,
        source: Option<IpAddr>,
        name: &str,
        who: Option<&LeafFiles>,
    ) -> Got {
        self.got(self.try_connect(door, source, name, self.tls(who))).await
    }

    /// Connects to a TLS door as a browser does.
    pub(crate) async fn browse(&self, door: SocketAddr, name: &str) -> Got {
        let mut tls = self.tls(None);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        self.got(self.try_connect(door, None, name, tls)).await
    }

    async fn got(&self, connecting: impl Future<Output = std::io::Result<String>>) -> Got {
        let start = Instant::now();
        let got = connecting.await;
        let Ok(banner) = got else {
            assert!(
                start.elapsed() < Duration::from_secs(1),
                "refused only after {:?}",
                start.elapsed()
            );
            return Got::Refused;
        };
        Got::Banner(banner)
    }

    async fn try_connect(
        &self,
        door: SocketAddr,
        source: Option<IpAddr>,
        name: &str,
        tls: rustls::ClientConfig,
    ) -> std::io::Result<String> {
        let socket = TcpSocket::new_v4()?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(door).await?;
        let name = rustls::pki_types::ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        let mut stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.push(stream.read_u8().await?);
        }
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn tls(&self, who: Option<&LeafFiles>) -> rustls::ClientConfig {
        let files = who.unwrap_or(&self.alice);
        let identity = Identity::load(&IdentityFiles {
            ca: self.path().join("servers-ca.pem"),
            cert: files.cert.clone(),
            key: files.key.clone(),
        })
        .unwrap();
        if who.is_some() {
            return identity.client_config().unwrap();
        }
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(identity.roots)
            .with_no_client_auth()
    }
}
