//! Real programs as children that end with the test, and what they talk to.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A child that is ended and waited for with its handle.
pub(crate) struct Part {
    child: Child,
    /// What asks it to end soon.
    stop: Signal,
}

impl Part {
    /// Starts a program; what it says goes to `<name>.log` in `dir`.
    pub(crate) fn start(dir: &Path, name: &str, command: &mut Command) -> Self {
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join(format!("{name}.log")))
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        // To PostgreSQL, SIGTERM means to wait for its clients.
        let stop = if name == "postgres" {
            Signal::SIGINT
        } else {
            Signal::SIGTERM
        };
        Self { child, stop }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Ends it with a signal and waits.
    pub(crate) fn end(&mut self, signal: Signal) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(Signal::SIGCONT);
            self.signal(signal);
            self.child.wait().unwrap();
        }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.end(self.stop);
    }
}

/// A loopback address that no other test has.
pub(crate) fn loopback() -> IpAddr {
    let random = u32::from_str_radix(&rssh_proto::id::random_hex::<4>(), 16).unwrap();
    let [a, b, c, _] = random.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 1 + a % 250, b, 1 + c % 250))
}

/// A port that nobody listens on at an address of ours.
pub(crate) fn free(ip: IpAddr) -> SocketAddr {
    std::net::TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// What a fake server's listeners say.
pub(crate) fn banner(of: &str) -> String {
    format!("SSH-2.0-{of}\r\n")
}

/// Listens, greets everyone with a banner and then returns what comes.
pub(crate) async fn greeter(address: SocketAddr, of: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let bound = listener.local_addr().unwrap();
    let banner = banner(of);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let banner = banner.clone();
            tokio::spawn(async move {
                stream.write_all(banner.as_bytes()).await?;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    bound
}

/// Answers every request with "200 OK", as a healthy serverd does.
pub(crate) async fn health(address: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let bound = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    bound
}

/// Starts Redis on a unix socket.
pub(crate) fn redis(dir: &Path) -> (Part, String) {
    let socket = dir.join("redis.sock");
    let part = Part::start(
        dir,
        "redis",
        Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(&socket)
            .arg("--dir")
            .arg(dir),
    );
    (part, format!("redis+unix://{}", socket.display()))
}

/// Starts PostgreSQL on a unix socket, with the table of servers.
pub(crate) async fn postgres(dir: &Path) -> (Part, String) {
    let bin = postgres_bin();
    let data = dir.join("pg");
    std::fs::create_dir(&data).unwrap();
    let run = |program: &str| {
        let mut command = Command::new(bin.join(program));
        // PostgreSQL refuses to run as root.
        if nix::unistd::geteuid().is_root() {
            use std::os::unix::process::CommandExt as _;
            let user = nix::unistd::User::from_name("postgres")
                .unwrap()
                .expect("an account for PostgreSQL");
            nix::unistd::chown(&data, Some(user.uid), Some(user.gid)).unwrap();
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command.current_dir(&data).env("LC_ALL", "C.UTF-8");
        command
    };
    let mut initdb = run("initdb");
    initdb.args(["-A", "trust", "-U", "rssh", "--no-sync", "-D"]).arg(&data);
    let made = initdb.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut server = run("postgres");
    server
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(&data)
        .args(["-F", "-c", "listen_addresses="]);
    let part = Part::start(dir, "postgres", &mut server);
    let url = format!("postgres://rssh@localhost/postgres?host={}", data.display());
    until("PostgreSQL answers", async || sql(&url, "SELECT 1").await.is_ok()).await;
    let table = "CREATE TABLE servers (id text PRIMARY KEY, registration text, state text NOT NULL DEFAULT 'serving', \
                 generation bigint NOT NULL, lost_at timestamptz)";
    sql(&url, table).await.unwrap();
    let identities = "CREATE TABLE identities (name text PRIMARY KEY, kind text NOT NULL, revoked_at timestamptz)";
    sql(&url, identities).await.unwrap();
    (part, url)
}

/// Executes one statement.
pub(crate) async fn sql(url: &str, statement: &str) -> Result<(), sqlx::Error> {
    use sqlx::{Connection as _, Executor as _};
    let mut connection = sqlx::PgConnection::connect(url).await?;
    connection.execute(sqlx::AssertSqlSafe(statement.to_owned())).await?;
    connection.close().await
}

fn postgres_bin() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let newest = versions
        .map(|entry| entry.unwrap().path())
        .max()
        .expect("a version of PostgreSQL");
    newest.join("bin")
}
