//! What ssh's last words mean.

use rssh_proto::text::sanitize;

/// Why an ssh ended, for a person; and whether another try may go better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub reason: String,
    pub retry: bool,
}

impl Fault {
    /// A fault that another try may not meet.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: true,
        }
    }

    /// A fault that stays until somebody changes something.
    pub fn lasting(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            retry: false,
        }
    }
}

/// What ssh says, what that means, and whether it may pass. The first match counts.
const KNOWN: &[(&str, &str, bool)] = &[
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the server's host key is not the pinned one; compare the device's known_hosts with the fleet's",
        false,
    ),
    (
        "Host key verification failed",
        "the server's host key is not signed by the pinned CA; compare the device's known_hosts with the fleet's",
        false,
    ),
    (
        "no matching host key type found",
        "the server shows no host certificate; run rssh-serverd server init there",
        false,
    ),
    (
        "no matching key exchange method found",
        "the server does not know the key exchange; set kex = \"system\" on the device",
        false,
    ),
    (
        "no matching cipher found",
        "the server allows none of the device's ciphers; allow aes128-gcm@openssh.com there",
        false,
    ),
    (
        "UNPROTECTED PRIVATE KEY FILE",
        "the device's ssh key is readable by others; run chmod 600 on it",
        false,
    ),
    (
        "Load key",
        "the device's ssh key cannot be read; run rssh-agentd init",
        false,
    ),
    (
        "no such identity",
        "the device's ssh key is missing; run rssh-agentd init",
        false,
    ),
    (
        "Bad configuration option",
        "the device's ssh does not know an option; upgrade the package openssh-client",
        false,
    ),
    (
        "Permission denied (",
        "the server does not admit the device's ssh key; see whether the device is enrolled with this key",
        true,
    ),
    (
        "Timeout, server",
        "the server stopped answering keepalives; see the device's network",
        true,
    ),
    (
        "timed out during banner exchange",
        "the load balancer, or every server behind it, says nothing; see HAProxy and rssh-serverd",
        true,
    ),
    // The connection was to begin with ssh's first words.
    (
        "kex_exchange_identification: read: Connection refused",
        "the load balancer refuses connections; see HAProxy",
        true,
    ),
    (
        "Connection closed by",
        "the server closed the connection; see whether it takes landings",
        true,
    ),
    (
        "closed by remote host",
        "the server closed the connection; see whether it takes landings",
        true,
    ),
    (
        "Connection reset by",
        "the connection was reset; see the load balancer",
        true,
    ),
    ("Broken pipe", "the connection broke; see the device's network", true),
    (
        "Too many authentication failures",
        "the server refused the login; see whether the device is enrolled with this key",
        true,
    ),
];

/// Whether a line of ssh says that a forwarded connection did not reach the target.
pub fn is_target_refused(line: &str) -> bool {
    line.strip_prefix("connect_to ")
        .is_some_and(|rest| rest.trim_end().ends_with(": failed.") || rest.contains(": unknown host ("))
}

/// Reads what ssh wrote.
pub fn explain(log: &str) -> Fault {
    if let Some((_, reason, retry)) = KNOWN.iter().find(|(says, _, _)| log.contains(says)) {
        return Fault {
            reason: (*reason).to_owned(),
            retry: *retry,
        };
    }
    let telling = |line: &&str| !line.is_empty() && !is_target_refused(line);
    match log.lines().map(str::trim).rfind(telling) {
        Some(line) => Fault::passing(format!("ssh says: {}", sanitize(line, 200))),
        None => Fault::passing("ssh ended without a word"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transcripts of OpenSSH 9.2 and 10.0.
    const TRANSCRIPTS: &[(&str, &str, bool)] = &[
        (
            "No ED25519-CERT host key is known for rssh-sshd and you have requested strict checking.\r\n\
             Host key verification failed.\r\n",
            "not signed by the pinned CA",
            false,
        ),
        (
            "Certificate invalid: name is not a listed principal\r\n\
             No ED25519-CERT host key is known for rssh-sshd and you have requested strict checking.\r\n\
             Host key verification failed.\r\n",
            "not signed by the pinned CA",
            false,
        ),
        (
            "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n\
             @    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\n\
             @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n\
             IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!\r\n\
             Host key verification failed.\r\n",
            "not the pinned one",
            false,
        ),
        (
            "Unable to negotiate with UNKNOWN port 65535: no matching host key type found. Their offer: ssh-ed25519\r\n",
            "no host certificate",
            false,
        ),
        (
            "rssh-tunnel@127.0.0.1: Permission denied (publickey).\r\n",
            "does not admit",
            true,
        ),
        (
            "Connection timed out during banner exchange\r\nConnection to UNKNOWN port 65535 timed out\r\n",
            "says nothing",
            true,
        ),
        (
            "kex_exchange_identification: read: Connection refused\r\n\
             banner exchange: Connection to UNKNOWN port 65535: Connection refused\r\n",
            "refuses connections",
            true,
        ),
        (
            "kex_exchange_identification: Connection closed by remote host\r\n\
             Connection closed by UNKNOWN port 65535\r\n",
            "closed the connection",
            true,
        ),
        (
            "Timeout, server 127.0.0.1 not responding.\r\n",
            "stopped answering keepalives",
            true,
        ),
        (
            "@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@\r\n\
             @         WARNING: UNPROTECTED PRIVATE KEY FILE!          @\r\n\
             Permissions 0644 for 'key' are too open.\r\n\
             Load key \"key\": bad permissions\r\n\
             rssh-tunnel@127.0.0.1: Permission denied (publickey).\r\n",
            "readable by others",
            false,
        ),
        ("something\x1b[2J new\r\n", "ssh says: something?[2J new", true),
        ("\r\n", "without a word", true),
        ("connect_to localhost port 22: failed.\r\n", "without a word", true),
    ];

    #[test]
    fn a_target_that_does_not_answer_is_known_by_sshs_words() {
        for (line, refused) in [
            ("connect_to localhost port 22: failed.\r", true),
            ("connect_to plc.lan: unknown host (Name or service not known)\r", true),
            ("Timeout, server 127.0.0.1 not responding.\r", false),
            ("", false),
        ] {
            assert_eq!(is_target_refused(line), refused, "{line}");
        }
    }

    #[test]
    fn each_transcript_has_its_reason() {
        for (log, says, retry) in TRANSCRIPTS {
            let fault = explain(log);
            assert!(fault.reason.contains(says), "{log}\n-> {fault:?}");
            assert_eq!(fault.retry, *retry, "{log}");
        }
    }
}
