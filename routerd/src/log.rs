//! HAProxy's log, as far as the audit trail wants it: who connected to what, for how long, and who was refused.
//!
//! HAProxy writes its lines into a ring of its own and from there to our socket, so that none is lost while we restart.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use nix::unistd::Group;
use rssh_proto::UserId;
use rssh_proto::audit::Event;
use rssh_proto::text::sanitize;
use rssh_stores::Postgres;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{AccountName, PlainPath};

/// The socket's name in HAProxy's directory.
pub const SOCKET: &str = "audit.sock";
/// The longest line that is read.
const LINE: u64 = 8192;
/// How many events wait while PostgreSQL is away.
const WAITING: usize = 20_000;
/// How many go to PostgreSQL at once, and how long the first waits for others.
const BATCH: usize = 200;
const GATHER: Duration = Duration::from_millis(200);
/// How long PostgreSQL may take, and when it is tried again.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(1);
/// Refusals within a second that are written down: anyone on the internet can cause them.
const REFUSALS: u32 = 20;

/// A line as the configuration's `log-format`s write it.
#[derive(Debug, Deserialize)]
struct Line {
    door: String,
    /// Unix seconds.
    at: f64,
    src: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    check: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    via: Option<String>,
    #[serde(default)]
    server: Option<String>,
    #[serde(default)]
    to_client: u64,
    #[serde(default)]
    from_client: u64,
    #[serde(default)]
    ms: i64,
    #[serde(default)]
    end: String,
    #[serde(default)]
    error: String,
}

/// What a line says; `None` for one that is none of the doors'.
pub fn event(line: &str) -> Option<Event> {
    let line: Line = serde_json::from_str(line).ok()?;
    let passed = match line.door.as_str() {
        "devices" => return Some(device(&line)),
        // The rest of the one port has doors of its own, which log it.
        "public" if line.kind == "ssh" => return Some(device(&line)),
        "users" | "bearer" => line.check == "passed",
        _ => return None,
    };
    let kind = if passed { "connection" } else { "connection-refused" };
    let mut event = at(kind, &line).with("door", line.door.as_str());
    if let Ok(user) = line.user.parse::<UserId>() {
        event = event.user(&user);
    }
    // Without the mac, which is the right to connect. The rest says which port of which server.
    if let [server, port, exp, _] = line.name.split('-').collect::<Vec<_>>()[..] {
        event = event.with("server", server).with("port", port).with("exp", exp);
    }
    if !passed {
        event = event.with("check", line.check.as_str());
        if !line.error.is_empty() {
            event = event.with("error", line.error.as_str());
        }
        return Some(event);
    }
    Some(measured(event, &line))
}

fn device(line: &Line) -> Event {
    let via = line.via.as_deref().unwrap_or("-");
    let server = line.server.as_deref().unwrap_or("-");
    measured(
        at("device-connection", line).with("via", via).with("server", server),
        line,
    )
}

fn at(kind: &str, line: &Line) -> Event {
    Event {
        // Far below what a float cannot hold any more.
        at_us: (line.at * 1_000_000.0) as i64,
        ..Event::now(kind)
    }
    .source(&line.src)
}

fn measured(event: Event, line: &Line) -> Event {
    event
        .with("to_client", line.to_client)
        .with("from_client", line.from_client)
        .with("ms", line.ms)
        .with("end", line.end.as_str())
}

/// Opens the socket. HAProxy's account reaches it by the group that it shares with us, where one is configured.
///
/// # Errors
/// When the directory cannot be written, or we are not of that group.
pub fn listen(dir: &PlainPath, group: Option<&AccountName>) -> io::Result<UnixListener> {
    let path = dir.join(SOCKET);
    match std::fs::remove_file(path.path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path.path())?;
    let mode = match group {
        Some(group) => {
            // Its own group would be ours alone, whatever its mode says.
            let id = Group::from_name(&group.to_string())?
                .ok_or_else(|| io::Error::other(format!("there is no group {group}; see haproxy.socket-group")))?;
            std::os::unix::fs::chown(path.path(), None, Some(id.gid.as_raw()))?;
            0o660
        }
        None => 0o600,
    };
    std::fs::set_permissions(path.path(), std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Reads HAProxy's lines and hands what they say to PostgreSQL, for ever.
pub async fn run(listener: UnixListener, router: String, database: Postgres) {
    let (sender, events) = mpsc::channel(WAITING);
    tokio::join!(accept(listener, sender), seal(events, router, database));
}

async fn accept(listener: UnixListener, events: mpsc::Sender<Event>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let events = events.clone();
                tokio::spawn(async move {
                    let mut reader = BufReader::new(stream);
                    loop {
                        let mut line = Vec::new();
                        match (&mut reader).take(LINE).read_until(b'\n', &mut line).await {
                            Ok(0) | Err(_) => return,
                            Ok(_) => {}
                        }
                        // Waiting here leaves the lines in HAProxy's ring.
                        if let Some(event) = event(&String::from_utf8_lossy(&line))
                            && events.send(event).await.is_err()
                        {
                            return;
                        }
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take HAProxy's log");
                sleep(AGAIN).await;
            }
        }
    }
}

async fn seal(mut events: mpsc::Receiver<Event>, router: String, database: Postgres) {
    let mut connection = None;
    let mut refusals = Refusals::default();
    while let Some(first) = events.recv().await {
        sleep(GATHER).await;
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match events.try_recv() {
                Ok(event) => batch.push(event),
                Err(_) => break,
            }
        }
        batch.retain(|event| event.kind != "connection-refused" || refusals.take(Instant::now()));
        if let Some(count) = refusals.skipped() {
            batch.push(Event::now("events-lost").with("count", count));
        }
        for event in &batch {
            if let Ok(line) = serde_json::to_string(event) {
                tracing::info!(target: "audit", "{line}");
            }
        }
        let Ok(text) = serde_json::to_string(&batch) else {
            continue;
        };
        loop {
            let append = async {
                let mut live = database.go_on(connection.take()).await?;
                sqlx::query("SELECT audit_append($1, $2::jsonb)")
                    .bind(&router)
                    .bind(&text)
                    .execute(&mut live)
                    .await?;
                Ok::<_, sqlx::Error>(live)
            };
            let error = match timeout(PATIENCE, append).await {
                Ok(Ok(live)) => {
                    connection = Some(live);
                    break;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            tracing::debug!(error = sanitize(&error, 200), "cannot seal the audit trail yet");
            sleep(AGAIN).await;
        }
    }
}

/// Counts refusals, second by second.
#[derive(Default)]
struct Refusals {
    second: Option<Instant>,
    taken: u32,
    skipped: u64,
}

impl Refusals {
    fn take(&mut self, now: Instant) -> bool {
        if self
            .second
            .is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1))
        {
            self.second = Some(now);
            self.taken = 0;
        }
        self.taken += 1;
        let few = self.taken <= REFUSALS;
        self.skipped += u64::from(!few);
        few
    }

    fn skipped(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.skipped)).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_connection_is_written_down_without_what_would_let_someone_else_in() {
        let line = r#"{"door":"users","at":1700000000.123,"src":"192.0.2.1:4711","user":"alice","name":"s1-20001-1700000100-00112233445566778899aabbccddeeff","check":"passed","to_client":10,"from_client":20,"ms":30,"end":"--"}"#;
        let event = event(line).unwrap();
        assert_eq!(
            (event.kind.as_str(), event.at_us / 1000),
            ("connection", 1_700_000_000_123)
        );
        assert_eq!(event.user.as_ref().unwrap().as_str(), "alice");
        assert_eq!(event.source.as_deref(), Some("192.0.2.1:4711"));
        let text = serde_json::to_string(&event.detail).unwrap();
        assert!(
            text.contains("\"port\":\"20001\"") && !text.contains("00112233"),
            "{text}"
        );
        assert!(!text.contains("alice"), "{text}");
    }

    #[tokio::test]
    async fn the_socket_is_the_shared_groups_where_there_is_one() {
        use std::os::unix::fs::MetadataExt as _;

        let dir = tempfile::tempdir().unwrap();
        let at: PlainPath = dir.path().to_str().unwrap().parse().unwrap();
        let seen = || {
            let socket = std::fs::metadata(dir.path().join(SOCKET)).unwrap();
            (socket.mode() & 0o777, socket.gid())
        };
        let own = listen(&at, None).unwrap();
        assert_eq!(seen().0, 0o600);
        drop(own);
        // Whoever is not root gives files to groups of theirs only.
        if nix::unistd::geteuid().is_root() {
            let group: AccountName = "daemon".to_owned().try_into().unwrap();
            let _shared = listen(&at, Some(&group)).unwrap();
            let daemon = Group::from_name("daemon").unwrap().unwrap();
            assert_eq!(seen(), (0o660, daemon.gid.as_raw()));
        }
        let nobodys: AccountName = "no-such-group".to_owned().try_into().unwrap();
        let error = listen(&at, Some(&nobodys)).unwrap_err().to_string();
        assert!(error.contains("no-such-group"), "{error}");
    }

    #[test]
    fn refusals_name_the_check_and_lines_of_others_are_nothing() {
        let refused = event(r#"{"door":"users","at":1.5,"src":"::1:1","check":"tls","error":"x"}"#).unwrap();
        assert_eq!(
            (refused.kind.as_str(), refused.user.as_ref()),
            ("connection-refused", None)
        );
        let device = event(
            r#"{"door":"devices","at":1.5,"src":"a:1","via":"b:2","server":"s1_0","to_client":1,"from_client":2,"ms":3,"end":"--"}"#,
        );
        assert_eq!(device.unwrap().detail["via"], "b:2");
        for other in [
            "",
            "{",
            "[]",
            r#"{"door":"x","at":1,"src":"a"}"#,
            "Proxy users started.",
        ] {
            assert!(event(other).is_none(), "{other}");
        }
    }

    #[test]
    fn many_refusals_are_counted_and_not_written_down() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        assert_eq!((0..100).filter(|_| refusals.take(now)).count(), REFUSALS as usize);
        assert_eq!(refusals.skipped(), Some(80));
        assert_eq!(refusals.skipped(), None);
        assert!(refusals.take(now + Duration::from_secs(1)));
    }
}
