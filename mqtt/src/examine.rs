//! What the daemons' doctors share: how files, certificates and brokers are examined and judged, and how findings are
//! told.

use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rssh_proto::finding::Status;
use rssh_proto::{Finding, HostPort};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::event::Down;
use crate::files;
use crate::identity::{self, Identity, IdentityFiles};
use crate::life::Life;
use crate::session::Session;
use crate::{Dial, Event, Settings};

/// A certificate that ends within so many seconds is to be renewed.
const SOON: i64 = 14 * DAY;
/// Seconds of a day.
const DAY: i64 = 86_400;
/// How long a neighbour may take to answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a broker may take to turn a stranger away.
const REFUSES_WITHIN: Duration = Duration::from_secs(3);
/// What no identity may subscribe to: everything.
const EVERYTHING: &str = "rssh/v1/#";
/// A CONNECT of MQTT 5 without a name: clean start, keep-alive 30 s, no properties, no client id (MQTT 5, 3.1).
const CONNECT: &[u8] = &[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 30, 0, 0, 0];
const SET_THE_CLOCK: &str = "set this machine's clock, as with: timedatectl set-ntp true";

/// Tells findings on stdout, as JSON or for a person; returns how many checks failed.
///
/// # Errors
/// When stdout does not take them.
pub fn tell(findings: &[Finding], json: bool) -> io::Result<usize> {
    let mut stdout = io::stdout().lock();
    for finding in findings {
        if json {
            writeln!(stdout, "{}", serde_json::to_string(finding)?)?;
        } else {
            writeln!(stdout, "{finding}")?;
        }
    }
    stdout.flush()?;
    Ok(findings.iter().filter(|finding| finding.status == Status::Fail).count())
}

/// This machine's clock, in Unix seconds.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Judges how long a certificate lasts, at a time in Unix seconds.
pub fn life(check: &'static str, what: &str, life: Option<Life>, now: i64, renew: &str) -> Finding {
    let Some(Life { from, until }) = life else {
        return Finding::fail(check, format!("{what} is no X.509 certificate"), renew);
    };
    let left = until - now;
    if now < from {
        Finding::fail(check, format!("{what} is not valid yet"), SET_THE_CLOCK)
    } else if left <= 0 {
        Finding::fail(check, format!("{what} ended {} days ago", -left / DAY), renew)
    } else if left < SOON && left < (until - from) / 3 {
        Finding::warn(check, format!("{what} ends in {} days", left / DAY), renew)
    } else {
        Finding::ok(check, format!("{what}, for {} more days", left / DAY))
    }
}

/// Examines the certificate in a file.
pub fn certificate(check: &'static str, path: &Path, now: i64, renew: &str) -> Finding {
    match files::certificates(path) {
        Ok(all) => {
            let first = all.first().and_then(|first| Life::read(first));
            life(check, &path.display().to_string(), first, now, renew)
        }
        Err(error) => Finding::fail(check, error.to_string(), renew),
    }
}

/// Examines an identity: certificate and key belong together, descend from the authority, and last.
pub fn own_identity(files: &IdentityFiles, now: i64, renew: &str) -> Finding {
    let check = "certificate";
    let identity = Identity::load(files).and_then(|identity| identity.client_config().map(|_| identity));
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => return Finding::of_error_or(check, &error.to_string(), renew),
    };
    let lasts = certificate(check, &files.cert, now, renew);
    if lasts.status == Status::Fail {
        return lasts;
    }
    match descends(&identity, now) {
        Ok(()) => lasts,
        Err(reason) => Finding::fail(
            check,
            format!(
                "{} does not descend from {}: {reason}",
                files.cert.display(),
                files.ca.display()
            ),
            "put the installation's current servers-ca.pem there, or enrol anew",
        ),
    }
}

fn descends(identity: &Identity, now: i64) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = Arc::new(identity.roots.clone());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let none = || rustls::Error::General("there is no certificate".to_owned());
    let (own, chain) = identity.certificates.split_first().ok_or_else(none)?;
    let at = Duration::from_secs(u64::try_from(now).unwrap_or(0));
    verifier
        .verify_client_cert(own, chain, UnixTime::since_unix_epoch(at))
        .map(drop)
}

/// Examines who may read secrets; those that are not there are another check's.
pub fn secrets(paths: impl IntoIterator<Item = PathBuf>) -> Vec<Finding> {
    let modes = paths
        .into_iter()
        .filter_map(|path| std::fs::metadata(&path).ok().map(|metadata| (path, metadata.mode())));
    private(modes)
}

/// Judges the modes of secret files.
fn private(files: impl IntoIterator<Item = (PathBuf, u32)>) -> Vec<Finding> {
    let check = "keys";
    let (mut kept, mut found) = (0, Vec::new());
    for (path, mode) in files {
        let shown = path.display();
        if mode & 0o077 == 0 {
            kept += 1;
            continue;
        }
        found.push(Finding::fail(
            check,
            format!("{shown} is open to others than its owner (mode {:o})", mode & 0o777),
            format!("run: chmod 600 {shown}; whoever read it has it: renew it"),
        ));
    }
    if found.is_empty() {
        found.push(Finding::ok(check, format!("{kept} files, each for its owner only")));
    }
    found
}

/// Judges the clock of a store against this machine's, both in Unix seconds.
pub fn clock(theirs: i64, ours: i64) -> Finding {
    let ahead = theirs - ours;
    if ahead.abs() <= 5 {
        return Finding::ok("clock", "as the database's");
    }
    let way = if ahead > 0 { "ahead of" } else { "behind" };
    Finding::fail(
        "clock",
        format!(
            "the database's is {} s {way} this machine's; signed names end too early or too late",
            ahead.abs()
        ),
        "run on both: timedatectl set-ntp true",
    )
}

/// Judges why Redis does not do what is asked; `rights` are those that its user has to have.
pub fn redis(fault: &str, rights: &str) -> Finding {
    // As the client tells of NOPERM.
    let remedy = if fault.contains("NoPerm") || fault.contains("no permissions") {
        format!("give its user the rights that docs/security.md lists: {rights}")
    } else {
        "start Redis, or correct redis.url, redis.password-file and redis.ca".to_owned()
    };
    Finding::fail("redis", fault, remedy)
}

/// What a broker answered.
#[derive(Debug)]
pub struct Answers {
    /// To a session as this identity.
    pub session: Result<(), Down>,
    /// To one that wants to hear everything.
    pub everything: Result<(), Down>,
    /// To one that shows no certificate: whether it was let in.
    pub stranger: bool,
    /// The life of the broker's certificate, where it came to be seen.
    pub life: Option<Life>,
}

/// Asks each broker for what it has to give, and for what it must not.
pub async fn brokers(files: &IdentityFiles, cn: &str, brokers: &[HostPort], now: i64, enrol: &str) -> Vec<Finding> {
    // Told as the identity's own fault.
    let Ok(identity) = Identity::load(files) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for broker in brokers {
        let (stranger, life) = stranger(&identity, broker).await;
        let answers = Answers {
            session: session(&identity, cn, broker, None).await,
            everything: session(&identity, cn, broker, Some(EVERYTHING)).await,
            stranger,
            life,
        };
        found.extend(judge_broker(broker, &answers, now, enrol));
    }
    found
}

/// Begins a session, which wants to hear something, and ends it.
async fn session(identity: &Identity, cn: &str, broker: &HostPort, filter: Option<&str>) -> Result<(), Down> {
    let away = |reason: String| Down::Unreachable {
        broker: broker.clone(),
        reason,
    };
    let tls = identity.client_config().map_err(|error| away(error.to_string()))?;
    let (session, mut events, driver) = Session::new(Settings {
        brokers: vec![broker.clone()],
        tls: Arc::new(tls),
        cn: cn.to_owned(),
        keep_alive: Duration::from_secs(30),
        inflight: 16,
        queue: 16,
        subscriptions: filter.map(str::to_owned).into_iter().collect(),
        will: None,
        reconnect: (Duration::from_secs(1), PATIENCE),
        dial: Dial::default(),
    });
    let driver = tokio::spawn(driver);
    let event = tokio::time::timeout(PATIENCE, events.recv()).await;
    session.goodbye();
    driver.abort();
    match event {
        Ok(Some(Event::Down(down))) => Err(down),
        Ok(Some(_)) => Ok(()),
        Ok(None) | Err(_) => Err(away(format!("no answer within {PATIENCE:?}"))),
    }
}

/// Whether a broker lets someone in who shows no certificate, and how long its own lasts.
async fn stranger(identity: &Identity, broker: &HostPort) -> (bool, Option<Life>) {
    let Ok(tls) = identity.client() else {
        return (false, None);
    };
    let tls = identity::with_alpn(&Arc::new(tls.with_no_client_auth()));
    let mut life = None;
    let knock = async {
        let socket = TcpStream::connect((broker.host(), broker.port())).await?;
        let name = ServerName::try_from(broker.host().to_owned()).map_err(io::Error::other)?;
        let mut stream = TlsConnector::from(tls).connect(name, socket).await?;
        let shown = stream.get_ref().1.peer_certificates();
        life = shown
            .and_then(<[CertificateDer<'_>]>::first)
            .and_then(|own| Life::read(own));
        stream.write_all(CONNECT).await?;
        // CONNACK: its type, its length, flags, and the reason (MQTT 5, 3.2).
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(answer[0] == 0x20 && answer[3] == 0)
    };
    let let_in = matches!(tokio::time::timeout(REFUSES_WITHIN, knock).await, Ok(Ok(true)));
    (let_in, life)
}

/// Judges a broker by what it answered.
fn judge_broker(broker: &HostPort, answers: &Answers, now: i64, enrol: &str) -> Vec<Finding> {
    let lasts = answers.life.map(|seen| {
        let what = format!("that of the broker {broker}");
        life(
            "broker cert",
            &what,
            Some(seen),
            now,
            "on the broker's machine: rssh-serverd ca tls, and restart it",
        )
    });
    let mut found: Vec<Finding> = lasts.into_iter().collect();
    if answers.stranger {
        found.push(Finding::fail(
            "broker rules",
            format!("{broker} lets in whoever shows no certificate"),
            "set require_certificate true and allow_anonymous false; rssh-serverd broker render writes them",
        ));
    }
    if let Err(down) = &answers.session {
        let remedy = match down {
            Down::Unreachable { .. } => "start the broker (systemctl start rssh-broker), or correct mqtt.brokers",
            Down::Certificate { .. } => {
                "check mqtt.ca, the clock, and both certificates; the broker's has to name its host"
            }
            Down::NotEnrolled { .. } | Down::Refused { .. } | Down::Subscription { .. } => enrol,
        };
        found.push(Finding::fail("broker", down.to_string(), remedy));
        return found;
    }
    found.push(Finding::ok("broker", format!("{broker} takes this identity")));
    found.push(match &answers.everything {
        Err(Down::Subscription { .. }) => Finding::ok("broker rules", format!("{broker} denies what nobody may have")),
        Ok(()) => Finding::fail(
            "broker rules",
            format!("{broker} lets this identity hear everything, and so perhaps anyone"),
            "let it deny by default: rssh-serverd broker render writes such a configuration",
        ),
        Err(down) => Finding::warn("broker rules", format!("not examined: {down}"), "run this again"),
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: Life = Life {
        from: 1_893_456_000,
        until: 1_893_456_000 + 365 * DAY,
    };

    /// Asserts that one of the findings is of this status, and that its remedy has these words.
    fn names(findings: &[Finding], status: Status, words: &str) {
        let named = |finding: &&Finding| {
            finding.status == status && finding.remedy.as_ref().is_some_and(|remedy| remedy.contains(words))
        };
        assert!(findings.iter().any(|finding| named(&finding)), "{words}: {findings:?}");
    }

    #[test]
    fn a_certificate_is_judged_by_its_time() {
        let judge = |now| life("certificate", "c.pem", Some(YEAR), now, "renew it");
        assert_eq!(judge(YEAR.from + 1).status, Status::Ok);
        names(&[judge(YEAR.until - DAY)], Status::Warn, "renew it");
        names(&[judge(YEAR.until)], Status::Fail, "renew it");
        names(&[judge(YEAR.from - 1)], Status::Fail, "timedatectl");
        names(
            &[life("certificate", "c.pem", None, 0, "renew it")],
            Status::Fail,
            "renew it",
        );
        // One that lives for days only is renewed by itself long before.
        let brief = Some(Life {
            until: YEAR.from + 6 * DAY,
            ..YEAR
        });
        assert_eq!(life("certificate", "c", brief, YEAR.from + 1, "r").status, Status::Ok);
        assert_eq!(
            life("certificate", "c", brief, YEAR.from + 5 * DAY, "r").status,
            Status::Warn
        );
    }

    #[test]
    fn a_secret_that_others_can_read_is_named() {
        let found = private([
            ("/a".into(), 0o100_600),
            ("/b".into(), 0o100_640),
            ("/c".into(), 0o100_604),
        ]);
        assert_eq!(found.len(), 2);
        names(&found, Status::Fail, "chmod 600 /b");
        names(&found, Status::Fail, "chmod 600 /c");
        assert_eq!(private([("/a".into(), 0o400)])[0].status, Status::Ok);
    }

    #[test]
    fn a_clock_that_is_off_is_named() {
        assert_eq!(clock(1000, 1004).status, Status::Ok);
        let found = clock(1000, 1060);
        assert!(found.detail.contains("60 s behind"), "{found}");
        names(&[found], Status::Fail, "timedatectl");
    }

    #[test]
    fn a_redis_that_refuses_is_told_from_one_that_is_away() {
        let refused = "NoPerm: this user has no permissions to run the 'mget' command";
        names(&[redis(refused, "+mget")], Status::Fail, "+mget");
        names(&[redis("Connection refused", "+mget")], Status::Fail, "start Redis");
    }

    #[test]
    fn a_broker_is_judged_by_whom_it_refuses() {
        let at: HostPort = "mqtt.example.com:8883".parse().unwrap();
        let denied = || {
            Err(Down::Subscription {
                broker: at.clone(),
                filter: EVERYTHING.to_owned(),
            })
        };
        let judge = |session, everything, stranger| {
            let answers = Answers {
                session,
                everything,
                stranger,
                life: Some(YEAR),
            };
            judge_broker(&at, &answers, YEAR.from + 1, "enrol it")
        };
        let sound = judge(Ok(()), denied(), false);
        assert!(sound.iter().all(|finding| finding.status == Status::Ok), "{sound:?}");
        names(&judge(Ok(()), Ok(()), false), Status::Fail, "deny by default");
        names(&judge(Ok(()), denied(), true), Status::Fail, "require_certificate");
        let unknown = || Err(Down::NotEnrolled { broker: at.clone() });
        names(&judge(unknown(), unknown(), false), Status::Fail, "enrol it");
        let away = || {
            Err(Down::Unreachable {
                broker: at.clone(),
                reason: "refused".to_owned(),
            })
        };
        names(&judge(away(), away(), false), Status::Fail, "mqtt.brokers");
    }
}
