//! Redis on one host, or wherever its Sentinels say that the master is.
//!
//! `redis://host:6379`, `redis+unix:///run/redis.sock`, or `redis+sentinel://[user:password@]one,two:26379/service[/db]`.
//! With `rediss` in place of `redis` every connection is TLS, to Sentinels too: the server's certificate is checked, and
//! ours is shown to a server that asks for it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _,
    ProtocolVersion, RedisError, RedisResult, TlsCertificates, Value,
};
use rssh_mqtt::{IdentityFiles, files};
use tokio::task::JoinSet;

use crate::url::{UrlError, hosts};

/// The port of a Sentinel that its URL does not name.
const SENTINEL: u16 = 26379;
/// How long a Sentinel may take to answer: they are asked at once, and the first answer counts.
const SENTINELS: Duration = Duration::from_millis(300);

/// What goes with the URL. They are read for each connection: certificates are renewed, and passwords changed.
#[derive(Debug, Clone)]
pub struct RedisFiles {
    /// Who we are, and who Redis has to be, where the URL says TLS.
    pub identity: IdentityFiles,
    /// The password of the URL's user.
    pub password: Option<PathBuf>,
}

/// Where Redis is.
pub struct Redis {
    place: Place,
    /// What the master is told on connect: account, database, protocol.
    info: ConnectionInfo,
    files: RedisFiles,
}

enum Place {
    One,
    Sentinels {
        sentinels: Vec<ConnectionInfo>,
        service: String,
    },
}

impl Redis {
    /// Reads a URL; nothing is connected yet, and no file is read.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(url: &str, files: RedisFiles) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let Some(scheme) = scheme.strip_suffix("+sentinel") else {
            let info = url.into_connection_info()?;
            if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
                return Err(UrlError::Insecure);
            }
            return Ok(Self {
                place: Place::One,
                info,
                files,
            });
        };
        let place = hosts(url)?;
        let (service, db) = match url[place.end..].trim_start_matches('/').split_once('/') {
            Some((service, db)) => (service, db),
            None => (url[place.end..].trim_start_matches('/'), ""),
        };
        if service.is_empty() {
            return Err(UrlError::NoService);
        }
        if db.contains('#') {
            return Err(UrlError::Insecure);
        }
        let sentinels = url[place]
            .split(',')
            .map(|host| match host {
                "" => Err(UrlError::NoHost),
                host if has_port(host) => Ok(format!("{scheme}://{host}").into_connection_info()?),
                host => Ok(format!("{scheme}://{host}:{SENTINEL}").into_connection_info()?),
            })
            .collect::<Result<_, _>>()?;
        let account = rest.rsplit_once('@').map_or("", |(account, _)| account);
        let at = if account.is_empty() { "" } else { "@" };
        Ok(Self {
            place: Place::Sentinels {
                sentinels,
                service: service.to_owned(),
            },
            // The host is a place holder until a Sentinel names the master.
            info: format!("{scheme}://{account}{at}localhost/{db}").into_connection_info()?,
            files,
        })
    }

    /// Speaks version 3 of the protocol, which carries announcements and answers over one connection.
    #[must_use]
    pub fn with_announcements(mut self) -> Self {
        let settings = self.info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        self.info = self.info.set_redis_settings(settings);
        self
    }

    /// Connects to the master.
    ///
    /// # Errors
    /// When no Sentinel knows it, it cannot be reached, is not who it has to be, or is none; or a file is missing.
    pub async fn connect(&self, config: &AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        let tls = self.tls()?;
        let mut info = self.info.clone();
        if let Some(path) = &self.files.password {
            let password = files::read_secret(path).map_err(|error| unusable(&error))?;
            let password = String::from_utf8(password).map_err(|error| unusable(&error))?;
            let settings = info.redis_settings().clone().set_password(password.trim_end());
            info = info.set_redis_settings(settings);
        }
        let (sentinels, service) = match &self.place {
            Place::One => {
                let client = client(info, tls.as_ref())?;
                return client.get_multiplexed_async_connection_with_config(config).await;
            }
            Place::Sentinels { sentinels, service } => (sentinels, service),
        };
        let (host, port) = master(sentinels, service, tls.as_ref()).await?;
        let address = match tls {
            None => ConnectionAddr::Tcp(host, port),
            Some(_) => ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            },
        };
        let client = client(info.set_addr(address), tls.as_ref())?;
        let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
        // A Sentinel that has just come back may name the last one.
        let role: Value = redis::cmd("ROLE").query_async(&mut connection).await?;
        match is_master(&role) {
            true => Ok(connection),
            false => Err(fault("the host that the Sentinels name is no master yet")),
        }
    }

    /// The certificates, where the URL says TLS.
    fn tls(&self) -> RedisResult<Option<TlsCertificates>> {
        if !matches!(self.info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Ok(None);
        }
        let IdentityFiles { ca, cert, key } = &self.files.identity;
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|error| unusable(&format!("cannot read {}: {error}", path.display())))
        };
        Ok(Some(TlsCertificates {
            client_tls: Some(ClientTlsConfig {
                client_cert: read(cert)?,
                client_key: files::read_secret(key).map_err(|error| unusable(&error))?,
            }),
            root_cert: Some(read(ca)?),
        }))
    }
}

fn client(info: ConnectionInfo, tls: Option<&TlsCertificates>) -> RedisResult<Client> {
    match tls {
        None => Client::open(info),
        Some(tls) => Client::build_with_tls(info, tls.clone()),
    }
}

/// Asks every Sentinel at once; the first that knows the master is believed. Its host may be a name
/// (`resolve-hostnames`).
async fn master(
    sentinels: &[ConnectionInfo],
    service: &str,
    tls: Option<&TlsCertificates>,
) -> RedisResult<(String, u16)> {
    let mut asked = JoinSet::new();
    for sentinel in sentinels {
        let (client, service) = (client(sentinel.clone(), tls)?, service.to_owned());
        asked.spawn(async move {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(SENTINELS))
                .set_response_timeout(Some(SENTINELS));
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let answer: Option<(String, u16)> = redis::cmd("SENTINEL")
                .arg("get-master-addr-by-name")
                .arg(service)
                .query_async(&mut connection)
                .await?;
            answer.ok_or_else(|| fault("a Sentinel does not know the service"))
        });
    }
    let mut last = fault("no Sentinel answers");
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Ok(master)) => return Ok(master),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

fn is_master(role: &Value) -> bool {
    let first = match role {
        Value::Array(parts) => parts.first(),
        _ => None,
    };
    match first {
        Some(Value::BulkString(bytes)) => bytes == b"master",
        Some(Value::SimpleString(text)) => text == "master",
        _ => false,
    }
}

fn fault(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Io, what))
}

/// What we bring to a connection is missing or wrong.
fn unusable(what: &impl ToString) -> RedisError {
    RedisError::from((
        ErrorKind::InvalidClientConfig,
        "what goes with redis.url",
        what.to_string(),
    ))
}

fn has_port(host: &str) -> bool {
    // The colons of an IPv6 address are within brackets.
    host.rsplit_once(']').map_or(host, |(_, rest)| rest).contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Redis, UrlError> {
        let identity = IdentityFiles {
            ca: "/ca".into(),
            cert: "/cert".into(),
            key: "/key".into(),
        };
        Redis::parse(
            url,
            RedisFiles {
                identity,
                password: None,
            },
        )
    }

    #[test]
    fn a_url_may_name_sentinels_and_a_service() {
        let redis = parse("redis+sentinel://joe:secret@s1,s2:5,[::1]/main/3").unwrap();
        let Place::Sentinels { sentinels, service } = &redis.place else {
            panic!("one host");
        };
        let at: Vec<String> = sentinels.iter().map(|info| info.addr().to_string()).collect();
        assert_eq!((at.len(), service.as_str()), (3, "main"));
        assert_eq!((at[0].as_str(), at[1].as_str()), ("s1:26379", "s2:5"));
        assert!(at[2].contains("::1") && at[2].ends_with("26379"), "{}", at[2]);
        let settings = redis.info.redis_settings();
        assert_eq!((settings.username(), settings.db()), (Some("joe"), 3));
        assert_eq!(settings.password(), Some("secret"));
    }

    #[test]
    fn with_tls_each_sentinel_and_the_master_are_spoken_to_by_tls() {
        let is_tls = |info: &ConnectionInfo| matches!(info.addr(), ConnectionAddr::TcpTls { insecure: false, .. });
        let redis = parse("rediss+sentinel://joe@s1,s2:5/main").unwrap();
        let Place::Sentinels { sentinels, .. } = &redis.place else {
            panic!("one host");
        };
        assert!(is_tls(&redis.info) && sentinels.iter().all(is_tls));
        assert!(is_tls(&parse("rediss://joe@r1:6380/1").unwrap().info));
        assert!(!is_tls(&parse("redis://joe@r1:6380/1").unwrap().info));
    }

    #[test]
    fn a_url_of_one_host_is_as_ever_and_a_wrong_one_is_refused() {
        for good in [
            "redis://localhost",
            "redis+unix:///run/redis.sock",
            "redis+sentinel://a/main",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "redis+sentinel://a",
            "redis+sentinel://a,,b/main",
            "redis+sentinel://a:x/main",
            "carrier+sentinel://a/main",
            "rediss://a/#insecure",
            "rediss+sentinel://a/main/0#insecure",
            "main",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_replica_is_no_master() {
        let role = |text: &str| Value::Array(vec![Value::BulkString(text.as_bytes().to_vec()), Value::Int(0)]);
        assert!(is_master(&role("master")));
        assert!(!is_master(&role("slave")));
        assert!(!is_master(&Value::Nil));
    }
}
