//! Redis on one host, or wherever its Sentinels say that the master is.
//!
//! `redis://host:6379`, `redis+unix:///run/redis.sock`, or `redis+sentinel://[user:password@]one,two:26379/service[/db]`.

use std::net::SocketAddr;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, ProtocolVersion, RedisError,
    RedisResult, Value,
};
use tokio::task::JoinSet;

use crate::url::{UrlError, hosts};

/// The port of a Sentinel that its URL does not name.
const SENTINEL: u16 = 26379;
/// How long a Sentinel may take to answer: they are asked at once, and the first answer counts.
const SENTINELS: Duration = Duration::from_millis(300);

/// Where Redis is.
pub struct Redis {
    place: Place,
    /// What the master is told on connect: account, database, protocol.
    info: ConnectionInfo,
}

enum Place {
    One,
    Sentinels { clients: Vec<Client>, service: String },
}

impl Redis {
    /// Reads a URL; nothing is connected yet.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let Some(rest) = url.strip_prefix("redis+sentinel://") else {
            return Ok(Self {
                place: Place::One,
                info: url.into_connection_info()?,
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
        let clients = url[place]
            .split(',')
            .map(|host| match host {
                "" => Err(UrlError::NoHost),
                host if has_port(host) => Ok(Client::open(format!("redis://{host}"))?),
                host => Ok(Client::open(format!("redis://{host}:{SENTINEL}"))?),
            })
            .collect::<Result<_, _>>()?;
        let account = rest.rsplit_once('@').map_or("", |(account, _)| account);
        let at = if account.is_empty() { "" } else { "@" };
        Ok(Self {
            place: Place::Sentinels {
                clients,
                service: service.to_owned(),
            },
            // The host is a place holder until a Sentinel names the master.
            info: format!("redis://{account}{at}localhost/{db}").into_connection_info()?,
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
    /// When no Sentinel knows it, it cannot be reached, or it is none.
    pub async fn connect(&self, config: &AsyncConnectionConfig) -> RedisResult<MultiplexedConnection> {
        let (clients, service) = match &self.place {
            Place::One => {
                let client = Client::open(self.info.clone())?;
                return client.get_multiplexed_async_connection_with_config(config).await;
            }
            Place::Sentinels { clients, service } => (clients, service),
        };
        let master = master(clients, service).await?;
        let address = redis::ConnectionAddr::Tcp(master.ip().to_string(), master.port());
        let client = Client::open(self.info.clone().set_addr(address))?;
        let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
        // A Sentinel that has just come back may name the last one.
        let role: Value = redis::cmd("ROLE").query_async(&mut connection).await?;
        match is_master(&role) {
            true => Ok(connection),
            false => Err(fault("the host that the Sentinels name is no master yet")),
        }
    }
}

/// Asks every Sentinel at once; the first that knows the master is believed.
async fn master(clients: &[Client], service: &str) -> RedisResult<SocketAddr> {
    let mut asked = JoinSet::new();
    for client in clients {
        let (client, service) = (client.clone(), service.to_owned());
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
            let (host, port) = answer.ok_or_else(|| fault("a Sentinel does not know the service"))?;
            // `resolve-hostnames` lets a Sentinel answer with a name.
            let mut addresses = tokio::net::lookup_host((host.as_str(), port)).await?;
            addresses
                .next()
                .ok_or_else(|| fault("the master's name has no address"))
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

fn has_port(host: &str) -> bool {
    // The colons of an IPv6 address are within brackets.
    host.rsplit_once(']').map_or(host, |(_, rest)| rest).contains(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_name_sentinels_and_a_service() {
        let redis = Redis::parse("redis+sentinel://joe:secret@s1,s2:5,[::1]/main/3").unwrap();
        let Place::Sentinels { clients, service } = &redis.place else {
            panic!("one host");
        };
        let at: Vec<String> = clients
            .iter()
            .map(|client| client.get_connection_info().addr().to_string())
            .collect();
        assert_eq!((at.len(), service.as_str()), (3, "main"));
        assert_eq!((at[0].as_str(), at[1].as_str()), ("s1:26379", "s2:5"));
        assert!(at[2].contains("::1") && at[2].ends_with("26379"), "{}", at[2]);
        let settings = redis.info.redis_settings();
        assert_eq!((settings.username(), settings.db()), (Some("joe"), 3));
        assert_eq!(settings.password(), Some("secret"));
    }

    #[test]
    fn a_url_of_one_host_is_as_ever_and_a_wrong_one_is_refused() {
        for good in [
            "redis://localhost",
            "redis+unix:///run/redis.sock",
            "redis+sentinel://a/main",
        ] {
            assert!(Redis::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "redis+sentinel://a",
            "redis+sentinel://a,,b/main",
            "redis+sentinel://a:x/main",
            "main",
        ] {
            assert!(Redis::parse(bad).is_err(), "{bad}");
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
