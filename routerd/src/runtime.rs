//! HAProxy's runtime API over its admin socket: builds commands, reads its answers, knows its faults.
//!
//! A command is one line; `;` in it begins a second command, and `<<` a payload. So nothing but ids, addresses and
//! base64 gets into one: each argument is checked once more where the line is made. Each command has a connection of
//! its own: after a reload the path leads to the new worker, while an open connection would still talk to the old.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::config::{HaproxyConfig, Limits};
use crate::desired::{Map, Pool, Rows};
use crate::plan::{Actual, ActualRows, ActualServer, Command};
use crate::render::{map_path, server_settings};

/// How long HAProxy may take for one command.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest answer that is read: the maps of some hundred thousand servers.
const ANSWER_LIMIT: u64 = 64 << 20;
/// Bytes of rows per `add map`; HAProxy takes a command of at most one buffer (16 KiB).
const PAYLOAD: usize = 8 << 10;

/// What HAProxy answered, or why it did not.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("haproxy does not answer on {socket}: {source}; is it running?")]
    Away { socket: PathBuf, source: io::Error },
    #[error("haproxy has not answered on {0} within {PATIENCE:?}")]
    Slow(PathBuf),
    #[error("haproxy refused to {command}: {answer}")]
    Refused { command: String, answer: String },
    #[error("haproxy's answer to {command} is not understood: {answer}")]
    Answer { command: &'static str, answer: String },
    #[error("not fit for a runtime command: {0}")]
    Unfit(String),
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Connections still go through the server that was to be deleted.
    InUse,
}

/// The admin socket of one HAProxy.
pub struct Runtime {
    haproxy: HaproxyConfig,
}

impl Runtime {
    /// Takes where the socket is; connects later.
    pub fn new(haproxy: HaproxyConfig) -> Self {
        Self { haproxy }
    }

    /// The worker's process id: another one has started from the files.
    ///
    /// # Errors
    /// When HAProxy is away.
    pub async fn worker(&self) -> Result<u32, RuntimeError> {
        let answer = self.ask("show info").await?;
        answer
            .lines()
            .find_map(|line| line.strip_prefix("Pid: ")?.trim().parse().ok())
            .ok_or_else(|| not_understood("show info", &answer))
    }

    /// Reads all that HAProxy does.
    ///
    /// # Errors
    /// When HAProxy is away, or says something unknown.
    pub async fn actual(&self) -> Result<Actual, RuntimeError> {
        let mut actual = Actual::default();
        for pool in Pool::ALL {
            let answer = self.ask(&format!("show servers state {}", pool.name())).await?;
            actual.pool.extend(read_pool(&answer)?);
        }
        for map in Map::ALL {
            let path = map_path(&self.haproxy, map);
            let answer = self.ask(&format!("show map {}", argument(&path.to_string())?)).await?;
            actual.maps.insert(map, read_map(&answer)?);
        }
        Ok(actual)
    }

    /// The servers that are to be reached and do not answer HAProxy's checks.
    ///
    /// # Errors
    /// When HAProxy is away, or says something unknown.
    pub async fn down(&self) -> Result<Vec<String>, RuntimeError> {
        let mut down = Vec::new();
        for pool in Pool::ALL {
            let answer = self.ask(&format!("show servers state {}", pool.name())).await?;
            down.extend(read_down(&answer)?);
        }
        Ok(down)
    }

    /// Carries out one command.
    ///
    /// # Errors
    /// When HAProxy is away or refuses.
    pub async fn execute(&self, command: &Command) -> Result<Outcome, RuntimeError> {
        if let Command::MapReplace(map, rows) = command {
            self.replace(*map, rows).await?;
            return Ok(Outcome::Done);
        }
        let answer = self.ask(&self.line(command)?).await?;
        let answer = answer.trim();
        let expected = match command {
            Command::ServerAdd(..) => answer == "New server registered.",
            Command::ServerDelete(_) => answer == "Server deleted.",
            Command::ServerAddress(..) => answer.starts_with("IP changed") || answer.starts_with("no need to change"),
            _ => answer.is_empty(),
        };
        match command {
            _ if expected => Ok(Outcome::Done),
            // "Server still has connections attached to it, cannot remove it."
            Command::ServerDelete(_) if answer.contains("connection") => Ok(Outcome::InUse),
            _ => Err(RuntimeError::Refused {
                command: format!("{command:?}"),
                answer: rssh_proto::text::sanitize(answer, 200),
            }),
        }
    }

    fn line(&self, command: &Command) -> Result<String, RuntimeError> {
        let path = |map: &Map| argument(&map_path(&self.haproxy, *map).to_string()).map(str::to_owned);
        let name = |name: &dyn ToString| {
            let name = name.to_string();
            Ok::<_, RuntimeError>(format!("{}/{}", Pool::of(&name).name(), argument(&name)?))
        };
        Ok(match command {
            // Asked for by replace().
            Command::MapReplace(map, _) => format!("prepare map {}", path(map)?),
            Command::MapAdd(map, key, value) => {
                format!("add map {} {} {}", path(map)?, argument(key)?, argument(value)?)
            }
            Command::MapSet(map, key, value) => {
                format!("set map {} {} {}", path(map)?, argument(key)?, argument(value)?)
            }
            Command::MapDelete(map, key) => format!("del map {} {}", path(map)?, argument(key)?),
            Command::ServerAdd(server, wanted) => {
                format!(
                    "add server {} {}",
                    name(server)?,
                    server_settings(wanted, self.limits())
                )
            }
            Command::ServerAddress(server, address) => {
                format!(
                    "set server {} addr {} port {}",
                    name(server)?,
                    address.ip(),
                    address.port()
                )
            }
            Command::ServerHealth(server, address) => {
                format!(
                    "set server {} check-addr {} port {}",
                    name(server)?,
                    address.ip(),
                    address.port()
                )
            }
            Command::ServerWeight(server, weight) => format!("set server {} weight {weight}", name(server)?),
            Command::ServerCheck(server) => format!("enable health {}", name(server)?),
            Command::ServerEnable(server) => format!("set server {} state ready", name(server)?),
            Command::ServerDisable(server) => format!("set server {} state maint", name(server)?),
            Command::ServerDelete(server) => format!("del server {}", name(server)?),
        })
    }

    fn limits(&self) -> &Limits {
        &self.haproxy.limits
    }

    /// Replaces a map's rows: lookups see the old rows until the commit, and the new ones from then on.
    async fn replace(&self, map: Map, rows: &Rows) -> Result<(), RuntimeError> {
        let path = map_path(&self.haproxy, map).to_string();
        let path = argument(&path)?;
        let answer = self.ask(&format!("prepare map {path}")).await?;
        let version: u32 = answer
            .trim()
            .strip_prefix("New version created: ")
            .and_then(|version| version.parse().ok())
            .ok_or_else(|| not_understood("prepare map", &answer))?;
        for payload in payloads(rows)? {
            self.quiet("add map", &format!("add map @{version} {path} <<\n{payload}"))
                .await?;
        }
        self.quiet("commit map", &format!("commit map @{version} {path}")).await
    }

    /// Sends a command that says nothing when it succeeds.
    async fn quiet(&self, what: &str, line: &str) -> Result<(), RuntimeError> {
        let answer = self.ask(line).await?;
        match answer.trim() {
            "" => Ok(()),
            answer => Err(RuntimeError::Refused {
                command: what.to_owned(),
                answer: rssh_proto::text::sanitize(answer, 200),
            }),
        }
    }

    async fn ask(&self, line: &str) -> Result<String, RuntimeError> {
        let socket = self.haproxy.socket.path();
        let exchange = async {
            let mut stream = UnixStream::connect(socket).await?;
            stream.write_all(line.as_bytes()).await?;
            stream.write_all(b"\n").await?;
            let mut answer = Vec::new();
            stream.take(ANSWER_LIMIT).read_to_end(&mut answer).await?;
            Ok(String::from_utf8(answer).unwrap_or_else(|bad| String::from_utf8_lossy(bad.as_bytes()).into_owned()))
        };
        match timeout(PATIENCE, exchange).await {
            Ok(answer) => answer.map_err(|source| RuntimeError::Away {
                socket: socket.to_owned(),
                source,
            }),
            Err(_) => Err(RuntimeError::Slow(socket.to_owned())),
        }
    }
}

/// Lets a text into a command only if it can be nothing but one argument.
fn argument(text: &str) -> Result<&str, RuntimeError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/:+=[]".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        Ok(text)
    } else {
        Err(RuntimeError::Unfit(rssh_proto::text::quoted(text, 80)))
    }
}

/// Rows as payloads of `add map`, each ended by the empty line.
fn payloads(rows: &Rows) -> Result<Vec<String>, RuntimeError> {
    let mut payloads: Vec<String> = Vec::new();
    for (key, value) in rows {
        let row = format!("{} {}\n", argument(key)?, argument(value)?);
        match payloads.last_mut() {
            Some(payload) if payload.len() + row.len() <= PAYLOAD => payload.push_str(&row),
            _ => payloads.push(row),
        }
    }
    Ok(payloads)
}

fn not_understood(command: &'static str, answer: &str) -> RuntimeError {
    RuntimeError::Answer {
        command,
        answer: rssh_proto::text::quoted(answer.trim(), 200),
    }
}

/// A server in `show servers state`.
#[derive(Clone, Copy)]
struct StateRow<'a> {
    columns: &'a str,
    line: &'a str,
}

impl<'a> StateRow<'a> {
    fn get(&self, column: &str) -> Option<&'a str> {
        let at = self.columns.split(' ').position(|name| name == column)?;
        self.line.split(' ').nth(at)
    }

    /// Whether there is no reason for maintenance.
    fn is_enabled(&self) -> Option<bool> {
        let admin: u32 = self.get("srv_admin_state")?.parse().ok()?;
        Some(admin & 0x27 == 0)
    }
}

/// Reads `show servers state` (management guide, 9.3): a version, the columns' names, a line per server.
fn read_table(answer: &str) -> Result<impl Iterator<Item = StateRow<'_>>, RuntimeError> {
    let not_read = || not_understood("show servers state", answer);
    let mut lines = answer.lines();
    if lines.next() != Some("1") {
        return Err(not_read());
    }
    let columns = lines.next().ok_or_else(not_read)?.trim_start_matches("# ");
    Ok(lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(move |line| StateRow { columns, line }))
}

fn read_pool(answer: &str) -> Result<BTreeMap<String, ActualServer>, RuntimeError> {
    let server = |row: StateRow<'_>| {
        let field = |name: &str| row.get(name);
        let ip: IpAddr = field("srv_addr")?.parse().ok()?;
        let check: u32 = field("srv_check_state")?.parse().ok()?;
        let health = || {
            let ip: IpAddr = field("srv_check_addr")?.parse().ok()?;
            Some(SocketAddr::new(ip, field("srv_check_port")?.parse().ok()?))
        };
        let server = ActualServer {
            address: SocketAddr::new(ip, field("srv_port")?.parse().ok()?),
            health: health(),
            weight: field("srv_uweight")?.parse().ok()?,
            enabled: row.is_enabled()?,
            checked: check & 0x04 != 0,
            leaving: false,
        };
        Some((field("srv_name")?.to_owned(), server))
    };
    let not_read = || not_understood("show servers state", answer);
    read_table(answer)?
        .map(|row| server(row).ok_or_else(not_read))
        .collect()
}

/// The servers that are to be reached and are down: state 0.
fn read_down(answer: &str) -> Result<Vec<String>, RuntimeError> {
    let down = read_table(answer)?.filter(|row| row.is_enabled() == Some(true) && row.get("srv_op_state") == Some("0"));
    Ok(down.filter_map(|row| row.get("srv_name").map(str::to_owned)).collect())
}

/// Reads `show map`: a pointer, the key and the value on each line.
fn read_map(answer: &str) -> Result<ActualRows, RuntimeError> {
    let mut map = ActualRows::default();
    for line in answer.lines().filter(|line| !line.is_empty()) {
        let mut fields = line.splitn(3, ' ');
        let (Some(pointer), Some(key), value) = (fields.next(), fields.next(), fields.next()) else {
            return Err(not_understood("show map", "a line without a key"));
        };
        if !pointer.starts_with("0x") {
            return Err(not_understood("show map", line));
        }
        let value = value.unwrap_or_default().to_owned();
        map.duplicates |= map.rows.insert(key.to_owned(), value).is_some();
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_could_be_more_than_one_argument_never_reaches_haproxy() {
        for bad in [
            "", "a b", "a;b", "a\nb", "a\\;b", "a\tb", "<<", "a\0", "ä", "$x", "a'b", "a\"b", "#1",
        ] {
            assert!(argument(bad).is_err(), "{bad:?}");
        }
        for good in [
            "s1",
            "10.0.0.1",
            "::1",
            "[::1]:22",
            "/run/x/keys-current.map",
            "ab+/cd==",
        ] {
            assert!(argument(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn haproxys_list_of_servers_is_read() {
        let answer = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
                      srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
                      srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
                      srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n\
                      3 sshd 1 s1_0 127.0.0.2 2 0 30 100 0 1 0 1 6 0 0 0 - 20002 - 0 8023 127.0.0.3 127.0.0.1 8022\n\
                      3 sshd 2 s2_0 127.0.0.2 0 1 0 100 0 1 0 0 14 0 0 0 - 20003 - 0 8023 - - 0\n\n";
        let pool = read_pool(answer).unwrap();
        let s1 = &pool["s1_0"];
        assert_eq!(s1.address, "127.0.0.2:20002".parse().unwrap());
        assert_eq!(s1.health, Some("127.0.0.3:8023".parse().unwrap()));
        assert!(s1.enabled && s1.checked && s1.weight == 30);
        let s2 = &pool["s2_0"];
        assert!(!s2.enabled && s2.checked && s2.weight == 0 && s2.health.is_none());
        assert!(read_pool("Can't find backend.\n").is_err());
        // One in maintenance is not to be reached.
        assert!(read_down(answer).unwrap().is_empty());
        let down = answer.replace("127.0.0.2 0 1 ", "127.0.0.2 0 0 ");
        assert_eq!(read_down(&down).unwrap(), ["s2_0"]);
    }

    #[test]
    fn a_map_with_a_key_twice_is_known_as_such() {
        let map = read_map("0x1 s1 a\n0x2 s2 b\n\n").unwrap();
        assert!(!map.duplicates && map.rows.len() == 2);
        assert!(read_map("0x1 s1 a\n0x2 s1 b\n").unwrap().duplicates);
        assert!(read_map("Unknown map identifier. Please use #<id> or <file>.\n").is_err());
    }

    #[test]
    fn many_rows_are_sent_in_pieces_that_haproxy_takes() {
        let rows: Rows = (0..1000).map(|n| (format!("s{n}"), "x".repeat(44))).collect();
        let payloads = payloads(&rows).unwrap();
        assert!(payloads.len() > 1);
        assert!(payloads.iter().all(|payload| payload.len() <= PAYLOAD));
        assert_eq!(payloads.concat().lines().count(), 1000);
    }
}
