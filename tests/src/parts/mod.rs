//! The parts of a lab: how each is configured, enrolled by the product's own commands, and started.

pub mod broker;
pub mod device;
pub mod pki;
pub mod redis;
pub mod router;
pub mod server;
pub mod ssh_keygen;
pub mod user;
