//! What the tests on a lab share.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::place::{LB, LB_USERS, Place, socket};
use crate::{Lab, Options};

/// A program that ends with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lab that the tests of one program share: up from the first that asks, who has it prepared, to the last that lets
/// go.
pub fn shared(options: Options, prepare: impl FnOnce(&Lab)) -> Arc<Lab> {
    static SHARED: Mutex<Weak<Lab>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(lab) = shared.upgrade() {
        return lab;
    }
    let lab = Arc::new(Lab::temporary(options).unwrap_or_else(|error| panic!("{error:#}")));
    prepare(&lab);
    *shared = Arc::downgrade(&lab);
    lab
}

/// Runs a command of the administrator's; returns how it ended and what it wrote.
pub fn administer(lab: &Lab, argv: &[&str]) -> Output {
    let serverd = lab.programs().path("rssh-serverd");
    let config = lab.dir().inside("servers/s1/admin.toml");
    let argv = [&[serverd.to_str().unwrap()], argv, &["--config", &config]].concat();
    lab.command(&Place::Core, &argv).output().unwrap()
}

/// Runs a command that has to succeed; returns what it wrote to stdout.
#[track_caller]
pub fn said(lab: &Lab, user: &str, argv: &[&str]) -> String {
    let output = lab.exec(user, argv).unwrap();
    assert!(output.status.success(), "{user}: {argv:?}: {}", all_of(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything a program left: how it ended and what it wrote.
pub fn all_of(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until something holds, or fails the test.
#[track_caller]
pub fn within(limit: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(crate::process::wait(limit, condition), "not within {limit:?}: {what}");
}

/// The first line that comes back from a host name at the load balancer's door for users, with a user's certificate;
/// empty when there is none.
pub fn greeting(lab: &Lab, user: &str, host: &str) -> String {
    let place = lab.place(Some(user)).unwrap();
    let dir = lab.dir().inside(format_args!("users/{user}/home/.config/rssh"));
    let (cert, key) = (format!("{dir}/user.pem"), format!("{dir}/user.key"));
    first_line(lab, &place, LB_USERS, host, &["-cert", &cert, "-key", &key])
}

/// The first line that comes back from a host name at a door of the load balancer; empty when there is none.
pub fn first_line(lab: &Lab, place: &Place, door: u16, host: &str, more: &[&str]) -> String {
    let at = socket(LB, door);
    let argv = [
        "openssl",
        "s_client",
        "-quiet",
        "-verify_quiet",
        "-connect",
        &at,
        "-servername",
        host,
    ];
    let mut client = lab
        .command(place, &[&argv, more].concat())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A refusal closes the connection, and with it this.
    let mut line = String::new();
    BufReader::new(client.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    line.trim_end().to_owned()
}

/// A login that lasts, and answers what it is told.
pub struct Login {
    ssh: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Login {
    /// Logs in, by plain ssh.
    pub fn new(lab: &Lab, user: &str, device: &str) -> Self {
        let place = lab.place(Some(user)).unwrap();
        let mut ssh = lab
            .command(&place, &["ssh", device, "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
        Self {
            ssh,
            to,
            from: BufReader::new(from),
        }
    }

    /// Tells it a word, which has to come back.
    #[track_caller]
    pub fn answers(&mut self, word: &str) {
        writeln!(self.to, "{word}").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word, "the login has ended");
    }

    /// Ends it, which has to end well.
    #[track_caller]
    pub fn ends_well(self) {
        drop(self.to);
        let mut ssh = self.ssh;
        assert!(ssh.wait().unwrap().success());
    }
}

/// Runs a command of the administrator's whose certificates live for a short while only, at one of the servers.
pub fn briefly(lab: &Lab, server: u32, lifetime: &str, args: &str) {
    let dir = lab.dir().inside(format!("servers/s{server}"));
    let script = format!(
        "sed 's/^accounts = .*/lifetime = \"{lifetime}\"/' {dir}/admin.toml > {dir}/brief-$$.toml && {} {args} --config \
         {dir}/brief-$$.toml && rm {dir}/brief-$$.toml",
        lab.programs().path("rssh-serverd").display()
    );
    let output = lab
        .command(&Place::Server(server), &["sh", "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", all_of(&output));
}

/// The end of the certificate that a command writes, in Unix seconds.
pub fn end_of(lab: &Lab, certificate: &str) -> u64 {
    let script = format!("date -d \"$({certificate} | openssl x509 -noout -enddate | cut -d= -f2)\" +%s");
    let output = lab.command(&Place::Core, &["sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.trim().parse().unwrap_or_else(|_| panic!("{}", all_of(&output)))
}

/// The first block of commands below a heading of a page in docs/, as readers see it.
#[track_caller]
pub fn commands(page: &str, heading: &str) -> String {
    block(page, heading, "sh", 1)
}

/// The `n`th block in a language below a heading of a page in docs/.
#[track_caller]
pub fn block(page: &str, heading: &str, language: &str, n: usize) -> String {
    let path = format!("{}/../docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text
        .lines()
        .skip_while(|line| line.trim_start_matches('#').trim() != heading || !line.starts_with('#'));
    assert!(lines.next().is_some(), "{page} has no heading {heading:?}");
    let fence = format!("```{language}");
    for _ in 1..n {
        lines.find(|line| **line == fence);
    }
    assert!(
        lines.any(|line| line == fence),
        "{page} has no block {n} of {language} below {heading:?}"
    );
    lines
        .take_while(|line| *line != "```")
        .flat_map(|line| [line, "\n"])
        .collect()
}
