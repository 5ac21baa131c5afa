//! The binary against a real mosquitto, a peer that answers as a server does, and a TLS listener as load balancer.

#![expect(clippy::unwrap_used, reason = "a peer that cannot start fails its test")]

mod balancer;
mod broker;
mod config;
mod devices;
mod doctor;
mod examples;
mod exec;
mod forward;
mod open;
mod pki;
mod proxy;
mod rig;
mod server;
mod shell;
mod ssh;
mod tunnels;
mod usage;
mod watch;
