//! A real mosquitto that takes clients with a certificate of the users' or the servers' authority.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rssh_mqtt::IdentityFiles;
use rssh_proto::HostPort;

pub(crate) struct Broker {
    process: Child,
    pub(crate) address: HostPort,
}

impl Broker {
    /// Starts it; returns when it listens.
    pub(crate) fn start(directory: &Path, identity: &IdentityFiles, clients: &Path) -> Self {
        loop {
            // mosquitto cannot report a port that the system chose; another process may take a free one meanwhile.
            let port = free_port();
            let config = directory.join("mosquitto.conf");
            let text = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nrequire_certificate true\nuser root\n\
                 cafile {}\ncertfile {}\nkeyfile {}\nlog_dest stderr\nlog_type all\n",
                clients.display(),
                identity.cert.display(),
                identity.key.display()
            );
            fs::write(&config, text).unwrap();
            let mut process = Command::new("/usr/sbin/mosquitto")
                .arg("-c")
                .arg(&config)
                .stderr(Stdio::piped())
                .spawn()
                .expect("mosquitto is installed");
            let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
            let running = log
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.ends_with(" running"));
            // Its log must go on being read, or it would block.
            thread::spawn(move || log.for_each(drop));
            let address = format!("127.0.0.1:{port}").parse().unwrap();
            let broker = Self { process, address };
            if running {
                return broker;
            }
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port that was free a moment ago, and where nothing listens.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
