//! A real Redis by TLS: whom we speak to, and who we are there.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use redis::AsyncConnectionConfig;
use rssh_mqtt::IdentityFiles;
use rssh_stores::{Redis, RedisFiles};

/// How long Redis may take to come up on a busy machine.
const PATIENTLY: Duration = Duration::from_secs(30);

/// A CA, with a certificate of its own at `DIR/<name>-ca.pem`.
struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(dir.join(format!("{name}-ca.pem")), certificate.pem()).unwrap();
        Self(Issuer::new(params, key))
    }

    /// Makes `DIR/<name>.pem` and `DIR/<name>.key`, for 127.0.0.1.
    fn issue(&self, dir: &Path, name: &str, usage: ExtendedKeyUsagePurpose) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        secret(&dir.join(format!("{name}.key")), &key.serialize_pem());
    }
}

fn secret(path: &Path, text: &str) {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A Redis that speaks TLS only, to holders of `ours`; it ends with the test.
struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start(dir: &Path) -> Self {
        // Redis binds no port 0.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        secret(
            &dir.join("redis.conf"),
            &format!(
                "bind 127.0.0.1\nport 0\ntls-port {port}\ntls-cert-file {0}/redis.pem\ntls-key-file {0}/redis.key\n\
                 tls-ca-cert-file {0}/ours-ca.pem\ntls-auth-clients yes\nsave \"\"\nuser default off\n\
                 user serverd on >rightly ~rssh:server:* +psetex +ping\n",
                dir.display()
            ),
        );
        let process = Command::new("redis-server")
            .arg(dir.join("redis.conf"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { process, port };
        let began = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < PATIENTLY, "Redis does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// What becomes of a registration.
async fn written(url: &str, dir: &Path, [ca, own]: [&str; 2], password: Option<PathBuf>) -> Result<(), String> {
    let files = RedisFiles {
        identity: IdentityFiles {
            ca: dir.join(format!("{ca}-ca.pem")),
            cert: dir.join(format!("{own}.pem")),
            key: dir.join(format!("{own}.key")),
        },
        password,
    };
    let redis = Redis::parse(url, files).unwrap();
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENTLY))
        .set_response_timeout(Some(PATIENTLY));
    let mut connection = redis.connect(&config).await.map_err(|error| error.to_string())?;
    redis::cmd("PSETEX")
        .arg("rssh:server:s1")
        .arg(60_000)
        .arg("x")
        .query_async(&mut connection)
        .await
        .map_err(|error| error.to_string())
}

#[tokio::test]
async fn redis_by_tls_is_who_it_has_to_be_and_so_are_we() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (ours, theirs) = (Authority::new(dir, "ours"), Authority::new(dir, "theirs"));
    ours.issue(dir, "redis", ExtendedKeyUsagePurpose::ServerAuth);
    ours.issue(dir, "server", ExtendedKeyUsagePurpose::ClientAuth);
    theirs.issue(dir, "stranger", ExtendedKeyUsagePurpose::ClientAuth);
    let (right, wrong) = (dir.join("right"), dir.join("wrong"));
    secret(&right, "rightly\n");
    secret(&wrong, "wrongly");
    let redis = Server::start(dir);
    let tls = format!("rediss://serverd@127.0.0.1:{}", redis.port);
    let plain = format!("redis://serverd@127.0.0.1:{}", redis.port);
    let by_the_book = ["ours", "server"];

    assert_eq!(written(&tls, dir, by_the_book, Some(right.clone())).await, Ok(()));
    for (what, url, identity, password) in [
        ("in the clear", &plain, by_the_book, Some(&right)),
        (
            "with a stranger's certificate",
            &tls,
            ["ours", "stranger"],
            Some(&right),
        ),
        (
            "to a server that is not of the CA",
            &tls,
            ["theirs", "server"],
            Some(&right),
        ),
        ("with a wrong password", &tls, by_the_book, Some(&wrong)),
        ("without a password", &tls, by_the_book, None),
    ] {
        let outcome = written(url, dir, identity, password.cloned()).await;
        assert!(outcome.is_err(), "{what}");
    }
    let other_ca = written(&tls, dir, ["theirs", "server"], Some(right.clone())).await;
    assert!(other_ca.as_ref().unwrap_err().contains("certificate"), "{other_ca:?}");
    let password = written(&tls, dir, by_the_book, Some(wrong)).await;
    assert!(password.as_ref().unwrap_err().contains("WRONGPASS") || password.unwrap_err().contains("uthentication"));

    // A password that others may read is not used.
    fs::set_permissions(&right, fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = written(&tls, dir, by_the_book, Some(right)).await;
    assert!(exposed.as_ref().unwrap_err().contains("chmod 600"), "{exposed:?}");
}
