//! What the findings of an examination mean: pure judgements, each with its remedy.

use std::io;

use rssh_proto::UserId;
pub use rssh_proto::finding::{Finding, Status};
use rustls::{AlertDescription, CertificateError};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ssh;

/// A certificate that ends within so many seconds is to be renewed.
const SOON: i64 = 14 * 86_400;
/// The first OpenSSH that knows `Include`.
const OLDEST_SSH: (u16, u16) = (7, 3);
const SET_THE_CLOCK: &str = "set this machine's clock, as with: timedatectl set-ntp true";
const ASK_FOR_A_CERTIFICATE: &str = "send user.csr from the profile's directory to your administrator";

/// Judges the user's certificate at a time in Unix seconds.
pub fn certificate(der: &[u8], user: &UserId, now: i64) -> Finding {
    let check = "certificate";
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return Finding::fail(check, "it is no X.509 certificate", ASK_FOR_A_CERTIFICATE);
    };
    let cn = certificate.subject().iter_common_name().next();
    let cn = cn.and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    if cn != user.as_str() {
        let cn = rssh_proto::text::quoted(cn, 64);
        return Finding::fail(
            check,
            format!("it is for {cn}, and the profile for {user}"),
            "put your own certificate, or your own name, into the profile",
        );
    }
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let day = |seconds| jiff::Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |time| time.to_string());
    if now < from {
        let detail = format!("it is not valid before {}, and the clock says {}", day(from), day(now));
        Finding::fail(check, detail, SET_THE_CLOCK)
    } else if now >= until {
        Finding::fail(check, format!("it ended at {}", day(until)), ASK_FOR_A_CERTIFICATE)
    } else if until - now < SOON {
        Finding::warn(check, format!("it ends soon, at {}", day(until)), ASK_FOR_A_CERTIFICATE)
    } else {
        Finding::ok(check, format!("for {cn}, until {}", day(until)))
    }
}

/// What a TLS handshake showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handshake {
    /// It was done, or failed by the host name only, which an examination does not have.
    Good,
    /// The peer's certificate does not fit this machine's clock.
    Clock(String),
    /// The certificates are not accepted.
    Untrusted(String),
    Failed(String),
}

/// Judges how a handshake ended.
pub fn handshake(ended: Result<(), io::Error>) -> Handshake {
    use CertificateError as Wrong;
    let Err(error) = ended else {
        return Handshake::Good;
    };
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(
            rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)
            | rustls::Error::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }),
        ) => Handshake::Good,
        Some(rustls::Error::InvalidCertificate(
            reason @ (Wrong::Expired
            | Wrong::ExpiredContext { .. }
            | Wrong::NotValidYet
            | Wrong::NotValidYetContext { .. }),
        )) => Handshake::Clock(reason.to_string()),
        Some(reason @ rustls::Error::InvalidCertificate(_)) => Handshake::Untrusted(reason.to_string()),
        _ => Handshake::Failed(error.to_string()),
    }
}

/// Judges the handshake with a peer, and what it says of the clock.
pub fn tls(check: &'static str, address: &str, handshake: &Handshake) -> Finding {
    match handshake {
        Handshake::Good => Finding::ok(check, format!("{address} speaks TLS and is trusted")),
        Handshake::Clock(reason) => Finding::fail(check, format!("{address}: {reason}"), SET_THE_CLOCK),
        Handshake::Untrusted(reason) => Finding::fail(
            check,
            format!("{address} has a certificate that ca in the profile does not vouch for: {reason}"),
            "ask your administrator for the current ca.pem",
        ),
        Handshake::Failed(reason) => Finding::fail(
            check,
            format!("{address} does not speak TLS as expected: {reason}"),
            "check the address in the profile",
        ),
    }
}

/// Judges the clock by all handshakes; `None` when none was so good as to tell.
pub fn clock(handshakes: &[Handshake]) -> Option<Finding> {
    let check = "clock";
    if handshakes
        .iter()
        .any(|handshake| matches!(handshake, Handshake::Clock(_)))
    {
        let detail = "a certificate of the servers is not valid at the time that this machine believes it is";
        return Some(Finding::fail(
            check,
            detail,
            format!("{SET_THE_CLOCK}; if it is right, tell your administrator"),
        ));
    }
    let fits = handshakes.contains(&Handshake::Good);
    fits.then(|| Finding::ok(check, "it fits the servers' certificates"))
}

/// Judges what `ssh -V` says.
pub fn ssh_version(said: &str) -> Finding {
    let check = "ssh";
    let name = rssh_proto::text::sanitize(said.trim(), 80);
    match ssh::version(said) {
        Some(version) if version >= OLDEST_SSH => Finding::ok(check, name),
        Some(_) => Finding::fail(check, format!("{name} is too old"), "install OpenSSH 7.3 or later"),
        None => Finding::warn(
            check,
            format!("{name} is not OpenSSH"),
            "install the package openssh-client",
        ),
    }
}

/// Judges what `ssh -G HOST.rssh` says.
pub fn ssh_config(options: &str) -> Finding {
    let check = "ssh config";
    let proxied = options
        .lines()
        .any(|line| line.starts_with("proxycommand ") && line.contains(" proxy "));
    if proxied {
        Finding::ok(check, "ssh DEVICE.rssh leads through rssh")
    } else {
        Finding::warn(check, "ssh does not know DEVICE.rssh", "rssh config ssh --install")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(cn: &str) -> Vec<u8> {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, cn);
        parameters.not_before = rcgen::date_time_ymd(2030, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2031, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_is_judged_by_its_name_and_its_time() {
        let alice = "alice".parse().unwrap();
        let (start, end) = (1_893_456_000, 1_924_992_000);
        for (cn, now, status, what) in [
            ("alice", start + 1, Status::Ok, "until 2031-01-01"),
            ("alice", end - SOON + 1, Status::Warn, "ends soon"),
            ("alice", end, Status::Fail, "ended at 2031-01-01"),
            ("alice", start - 1, Status::Fail, "the clock says 2029-12-31"),
            ("bob", start + 1, Status::Fail, "for \"bob\""),
        ] {
            let finding = certificate(&issued(cn), &alice, now);
            assert_eq!(finding.status, status, "{finding:?}");
            assert!(finding.detail.contains(what), "{finding:?}");
            assert_eq!(finding.remedy.is_none(), status == Status::Ok);
        }
        assert_eq!(certificate(b"x", &alice, 0).status, Status::Fail);
    }

    #[test]
    fn a_peers_certificate_tells_of_the_clock() {
        let error = |error| Err(io::Error::new(io::ErrorKind::InvalidData, error));
        let wrong = |wrong| error(rustls::Error::InvalidCertificate(wrong));
        let judge = |ended| handshake(ended);
        assert_eq!(judge(Ok(())), Handshake::Good);
        assert_eq!(judge(wrong(CertificateError::NotValidForName)), Handshake::Good);
        let unknown = rustls::Error::AlertReceived(AlertDescription::UnrecognisedName);
        assert_eq!(judge(error(unknown)), Handshake::Good);
        assert!(matches!(judge(wrong(CertificateError::Expired)), Handshake::Clock(_)));
        assert!(matches!(
            judge(wrong(CertificateError::UnknownIssuer)),
            Handshake::Untrusted(_)
        ));
        assert!(matches!(
            judge(Err(io::ErrorKind::ConnectionReset.into())),
            Handshake::Failed(_)
        ));
        let early = judge(wrong(CertificateError::NotValidYet));
        assert_eq!(clock(&[Handshake::Good, early]).unwrap().status, Status::Fail);
        assert_eq!(clock(&[Handshake::Good]).unwrap().status, Status::Ok);
        assert_eq!(clock(&[Handshake::Failed(String::new())]), None);
    }

    #[test]
    fn ssh_is_judged_by_what_it_says() {
        assert_eq!(ssh_version("OpenSSH_9.2p1 Debian-2\n").status, Status::Ok);
        assert_eq!(ssh_version("OpenSSH_7.2p2\n").status, Status::Fail);
        assert_eq!(ssh_version("Dropbear v2022.83").status, Status::Warn);
        assert_eq!(
            ssh_config("user x\nproxycommand 'rssh' proxy '%h' %p\n").status,
            Status::Ok
        );
        assert_eq!(ssh_config("user x\n").status, Status::Warn);
    }
}
