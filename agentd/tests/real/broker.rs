//! A real mosquitto over mutual TLS, and a server's view of a device through it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rssh_mqtt::{Dial, Event, Identity, IdentityFiles, Publish, Session, Settings};
use rssh_proto::DeviceId;
use rssh_proto::payload::{self, CloseOrder, DeviceEvent, DeviceStatus, OpenOrder};
use rssh_proto::topic::Topic;
use tokio::sync::mpsc;

use crate::rig::{PATIENCE, Running, free_port, wait_for};

/// A running broker that takes every client of its CA.
pub(crate) struct Broker {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    process: Running,
}

impl Broker {
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("broker").tempdir().unwrap();
        make_certificates(dir.path(), &["broker", "device-1", "s1"]);
        let port = free_port();
        let config = format!(
            "listener {port} 127.0.0.1\ncafile {0}/ca.pem\ncertfile {0}/broker.pem\nkeyfile {0}/broker.key\n\
             require_certificate true\nuse_identity_as_username true\nallow_anonymous false\n\
             message_size_limit 4096\nset_tcp_nodelay true\nuser root\n",
            dir.path().display()
        );
        fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let process = Self::spawn(dir.path(), port);
        Self { dir, port, process }
    }

    fn spawn(dir: &Path, port: u16) -> Running {
        let process = Command::new("/usr/sbin/mosquitto")
            .arg("-c")
            .arg(dir.join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cannot run /usr/sbin/mosquitto; install the package mosquitto");
        let process = Running(process);
        wait_for("mosquitto listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        process
    }

    /// Kills it and starts another in its place, which knows nothing.
    pub(crate) fn restart(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        self.process = Self::spawn(self.dir.path(), self.port);
    }

    /// The same, with another line of configuration.
    pub(crate) fn restart_with(&mut self, line: &str) {
        let file = self.dir.path().join("mosquitto.conf");
        let config = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{config}{line}\n")).unwrap();
        self.restart();
    }

    pub(crate) fn identity(&self, name: &str) -> IdentityFiles {
        let path = |suffix: &str| -> PathBuf { self.dir.path().join(format!("{name}.{suffix}")) };
        IdentityFiles {
            ca: self.dir.path().join("ca.pem"),
            cert: path("pem"),
            key: path("key"),
        }
    }
}

fn make_certificates(dir: &Path, names: &[&str]) {
    let ca_key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(DnType::CommonName, "test CA");
    let ca = parameters.self_signed(&ca_key).unwrap();
    fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    let issuer = Issuer::new(parameters, ca_key);
    for name in names {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, *name);
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        let path = dir.join(format!("{name}.key"));
        rssh_mqtt::files::write_secret(&path, key.serialize_pem().as_bytes()).unwrap();
    }
}

/// What a device says.
#[derive(Debug)]
pub(crate) enum Said {
    Status(DeviceStatus),
    Event(DeviceEvent),
}

/// A server's session: it gives orders and hears the device.
pub(crate) struct Server {
    session: Session,
    said: mpsc::Receiver<Event>,
    driver: tokio::task::JoinHandle<()>,
    device: DeviceId,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Server {
    pub(crate) async fn connect(broker: &Broker) -> Self {
        let tls = Identity::load(&broker.identity("s1")).unwrap().client_config().unwrap();
        let (session, mut said, driver) = Session::new(Settings {
            brokers: vec![format!("127.0.0.1:{}", broker.port).parse().unwrap()],
            tls: Arc::new(tls),
            cn: "s1".into(),
            keep_alive: Duration::from_secs(30),
            inflight: 16,
            queue: 64,
            subscriptions: vec!["rssh/v1/device/+/status".into(), "rssh/v1/device/+/event".into()],
            will: None,
            reconnect: (Duration::from_millis(50), Duration::from_millis(100)),
            dial: Dial::default(),
        });
        let driver = tokio::spawn(driver);
        let up = tokio::time::timeout(PATIENCE, said.recv()).await;
        assert!(matches!(up, Ok(Some(Event::Up))), "{up:?}");
        Self {
            session,
            said,
            driver,
            device: "device-1".parse().unwrap(),
        }
    }

    pub(crate) async fn open(&self, order: &OpenOrder) {
        self.send(Publish::new(
            Topic::DeviceOpen(self.device.clone()),
            payload::encode(order),
        ))
        .await;
    }

    pub(crate) async fn close(&self, order: &CloseOrder) {
        self.send(Publish::new(
            Topic::DeviceClose(self.device.clone()),
            payload::encode(order),
        ))
        .await;
    }

    pub(crate) async fn send(&self, publish: Publish) {
        self.session.publish(publish).await.unwrap();
    }

    /// The next thing that the device says.
    pub(crate) async fn hear(&mut self) -> Said {
        let heard = async {
            loop {
                let Some(event) = self.said.recv().await else {
                    panic!("the session ended")
                };
                let Event::Message(message) = event else { continue };
                match Topic::parse(&message.topic) {
                    Some(Topic::DeviceStatus(_)) => return Said::Status(payload::decode(&message.payload).unwrap()),
                    Some(Topic::DeviceEvent(_)) => return Said::Event(payload::decode(&message.payload).unwrap()),
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, heard)
            .await
            .expect("the device says something")
    }

    pub(crate) async fn hear_event(&mut self) -> DeviceEvent {
        match self.hear().await {
            Said::Event(event) => event,
            other @ Said::Status(_) => panic!("{other:?}"),
        }
    }

    pub(crate) async fn hear_status(&mut self) -> DeviceStatus {
        match self.hear().await {
            Said::Status(status) => status,
            other @ Said::Event(_) => panic!("{other:?}"),
        }
    }
}
