//! The rssh server daemon: leases ports to tunnels, tells sshd who may log in and to what, watches the sessions, and
//! signs the names by which users reach them. It also administrates an installation.

pub mod address;
pub mod args;
pub mod audit;
pub mod broker;
pub mod capacity;
pub mod clock;
pub mod cmd;
pub mod config;
pub mod control;
pub mod daemon;
pub mod devices;
pub mod doctor;
pub mod domain;
pub mod failover;
pub mod flood;
pub mod history;
pub mod home;
pub mod http;
pub mod landing;
pub mod lease;
pub mod load;
pub mod local;
pub mod masters;
pub mod metrics;
pub mod name_key;
pub mod office;
pub mod orphans;
pub mod pause;
pub mod peers;
pub mod pki;
pub mod ports;
pub mod process;
pub mod prove;
pub mod registry;
pub mod renewal;
pub mod requests;
pub mod server;
pub mod sessions;
pub mod setup;
pub mod signer;
pub mod sock_diag;
pub mod ssh_keygen;
pub mod sshd;
pub mod store;
pub mod suspicion;
pub mod token;
pub mod turns;
pub mod watcher;
pub mod web;
pub mod who;

/// Sends log lines to stderr, filtered by `RSSH_LOG` (`info` when unset).
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("RSSH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}
